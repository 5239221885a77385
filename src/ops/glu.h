// SPDX-License-Identifier: Apache-2.0
// glu: activation times up. Contract between the layer and its kernels.
//   y[i, j] = act(gate[i, j], up[i, j]) in f32, one rounding to y's dtype. docs/numerics.md#glu
#ifndef MOEI_OPS_GLU_H
#define MOEI_OPS_GLU_H

#include "core/check.h"
#include "moe/ops.h"
#include "ops/backend.h"

/// Rows [r0, r1) of batch b.
typedef void moek_glu_fn(const moek_glu_args *args, int32_t b, int64_t r0, int64_t r1);

/// Checks that every parameter is one that the activation has, and that those it needs are set.
/// Never ignores one. `call` heads the message.
moe_status moei_activation_check(const moei_activation_params *act, moe_gate_up gate_up,
                                 const char *call);

/// Offsets of gate and up in a row of 2I (or I) products.
void moei_glu_order(moe_activation activation, moe_gate_up gate_up, int64_t inter,
                    int64_t *gate_offset, int64_t *up_offset, int64_t *step);

#endif
