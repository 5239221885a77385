// SPDX-License-Identifier: Apache-2.0
// Parts of weights.c: where packed matrices lie (weights_layout.c) and how they are copied
// (weights_copy.c).
#ifndef MOEI_API_WEIGHTS_INTERNAL_H
#define MOEI_API_WEIGHTS_INTERNAL_H

#include "api/plan_internal.h"

/// Rows and columns of an expert's scales.
static inline int64_t moei_scale_rows(const moei_matrices *m)
{
    return m->block_n == 0 ? m->scale_parts
                           : m->n / m->part_rows * moei_i64_ceil_div(m->part_rows, m->block_n);
}

static inline int64_t moei_scale_columns(const moei_matrices *m)
{
    return m->block_k > 0 ? moei_i64_ceil_div(m->k, m->block_k) : 1;
}

/// Memory for a handle with nothing in it; `call` heads the message.
moe_status moei_weights_allocate(const moe_plan *plan, const char *call, moe_weights **out);

/// Copies one expert between two stacks of the same format. Float weights may differ in width: a
/// source narrower than the packed f32 widens exactly.
void moei_copy_expert(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de);

/// Copies the activation scale, where the target has one.
void moei_copy_act_scale(const moei_matrices *from, const moei_matrices *to);

/// Copies n floats of any type, rounding to nearest even where the target is narrower.
void moei_copy_floats(moe_dtype from_type, const void *from, moe_dtype to_type, uint8_t *to,
                      int64_t n);

/// The same for a linear map; nothing where the target is absent.
void moei_copy_linear(const moei_matrices *from, const moei_matrices *to);

#endif
