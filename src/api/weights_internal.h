// SPDX-License-Identifier: Apache-2.0
// Parts of weights.c: where packed matrices lie (weights_layout.c), how they are copied
// (weights_copy.c), how the host gets at them on a device or in a packed layout (weights_stage.c),
// and how packed bytes are named and taken back (weights_adopt.c).
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

/// Expert e of a stack, as a stack of one.
moei_matrices moei_expert_of(const moei_matrices *m, int32_t e);

/// Memory for a handle with nothing in it; `call` heads the message.
moe_status moei_weights_allocate(const moe_plan *plan, const char *call, moe_weights **out);

/// Points the packed matrices of a handle into `memory` (NULL: sizes and strides alone); returns
/// the bytes that they take, SIZE_MAX on overflow.
size_t moei_weights_place(const moe_plan *plan, const void *memory, moe_weights *w);

/// A stack whose kernel reads a packed layout; no pointers.
moei_matrices moei_packed_geometry(const moe_context *ctx, const moei_mlp *mlp, int g);

/// What an expert's matrix is made of.
typedef enum moei_part {
    MOEI_PART_VALUES,
    MOEI_PART_SCALES,
    MOEI_PART_SCALE2,
    MOEI_PART_ZEROS,
    MOEI_PART_BIAS,
    MOEI_PART_ACT_SCALE, // one for all experts
    MOEI_NUM_PARTS
} moei_part;

#define MOEI_PART_BIT(part) (1u << (part))
#define MOEI_PARTS_SCALES                                                                          \
    (MOEI_PART_BIT(MOEI_PART_SCALES) | MOEI_PART_BIT(MOEI_PART_SCALE2) |                           \
     MOEI_PART_BIT(MOEI_PART_ACT_SCALE))
#define MOEI_PARTS_EXPERT (MOEI_PART_BIT(MOEI_PART_ACT_SCALE) - 1) // what moei_copy_expert copies

typedef enum moei_place { MOEI_ON_HOST, MOEI_ON_DEVICE } moei_place;

/// One expert of a stack, canonical, readable and writable: in place, or as a copy of device memory
/// or of a packed layout.
typedef struct moei_stage {
    moei_matrices m; // count 1
    const moe_context *ctx;
    const moei_kernel *kernel;         // whose layout is packed; NULL: the layout is canonical
    const uint8_t *at[MOEI_NUM_PARTS]; // where the parts lie; packed: the block, at VALUES
    size_t bytes[MOEI_NUM_PARTS];
    uint8_t *packed; // the block's copy
    size_t packed_bytes;
    void *buffer; // NULL: in place
    size_t buffer_bytes;
} moei_stage;

/// Stages expert e of m, which `kernel` reads (canonical matrices: NULL will do); of a copy,
/// `parts` alone are there, with their data where `fetch`. Errors: NO_MEMORY, DEVICE. End it with
/// moei_stage_end, which writes a copy back where `write`.
moe_status moei_stage_begin(const moe_context *ctx, const moei_kernel *kernel,
                            const moei_matrices *m, int32_t e, moei_place place, uint32_t parts,
                            bool fetch, const char *call, moei_stage *out);
moe_status moei_stage_end(moei_stage *stage, bool write);

/// Packs what is to be written, where the layout is packed; to be called before the end. Errors:
/// VALUE, from the backend. Nothing has been written then.
moe_status moei_stage_pack(moei_stage *stage);

/// Copies from host memory to packed memory, and back. Errors: DEVICE.
moe_status moei_put_bytes(const moe_context *ctx, void *to, const void *from, size_t bytes);
moe_status moei_get_bytes(const moe_context *ctx, void *to, const void *from, size_t bytes);

/// Copies one expert between two stacks of the same format. Float weights may differ in width: a
/// source narrower than the packed f32 widens exactly.
void moei_copy_expert(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de);

/// Part `part` of `parts` of that; parts may run at the same time.
void moei_copy_part(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de,
                    int64_t part, int64_t parts);

/// Of moei_copy_expert, what a packed block does not hold: second-level scales and biases.
void moei_copy_beside(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de);

/// moei_copy_expert for a linear map in floats of any type; nothing where the target is absent.
void moei_copy_linear(const moei_matrices *from, const moei_matrices *to);

#endif
