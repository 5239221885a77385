// SPDX-License-Identifier: Apache-2.0
// Parts of weights.c: where packed matrices lie (weights_layout.c), how they are copied
// (weights_copy.c), how the host gets at them on a device or in a packed layout (weights_stage.c),
// how an expert is checked, packed and copied back (weights_put.c), and how packed bytes are named
// and taken back (weights_adopt.c). matrix.c is made of the same parts.
#ifndef MOEI_API_WEIGHTS_INTERNAL_H
#define MOEI_API_WEIGHTS_INTERNAL_H

#include "api/plan_internal.h"
#include "api/text.h"

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

/// What decides how a stack of matrices lies when it is packed.
typedef struct moei_stack {
    const moe_gemm_desc *gemm;
    const moei_kernel *kernel;
    int32_t count;
    int64_t n, k;
    bool transposed;
    moe_gate_up gate_up; // UNSET: rows have no parts
} moei_stack;

/// Product g of a plan's experts.
static inline moei_stack moei_mlp_stack(const moei_mlp *mlp, int g)
{
    return (moei_stack){.gemm = &mlp->gemm[g],
                        .kernel = mlp->kernel[g],
                        .count = mlp->count,
                        .n = g == 0 ? mlp->rows1 : mlp->width,
                        .k = g == 0 ? mlp->width : mlp->inter,
                        .transposed = mlp->transposed,
                        .gate_up = g == 0 ? mlp->gate_up : MOE_GATE_UP_UNSET};
}

/// A stack whose kernel reads a packed layout; no pointers.
moei_matrices moei_packed_geometry(const moe_context *ctx, const moei_stack *stack);

/// Takes a stack's memory from the arena; *act_scale is set where its quantiser has a given scale.
void moei_stack_place(moei_arena *arena, const moe_context *ctx, const moei_stack *stack,
                      moei_matrices *out, float **act_scale);

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

/// VALUE, naming tensor, expert and index, unless all scales of m, whose first expert is `first`,
/// are finite, and its activation scale above 0.
moe_status moei_scales_check(const moe_context *ctx, const moei_matrices *m, moei_place place,
                             int32_t first, const char *call, const char *name);
moe_status moei_act_scale_check(float scale, const char *call, const char *name);

/// The activation scale of `from`, if any, must be that of earlier calls, which *agreed holds (0:
/// none yet); `set`: the first one is kept and written to `packed`. May be called by several
/// threads. VALUE, ending in `rule`, where they differ.
moe_status moei_act_scale_agree(const moe_context *ctx, const moei_matrices *from, float *packed,
                                uint32_t *agreed, bool set, const char *call, const char *name,
                                const char *rule);

/// A matrix to be packed: from a source on the host to a packed stack that `kernel` reads.
typedef struct moei_put_one {
    const moei_matrices *source, *stack;
    const moei_kernel *kernel;
    const char *name;
} moei_put_one;

#define MOEI_MOST_PUTS 2

/// Packs expert `se` of up to MOEI_MOST_PUTS sources as expert `de` of their stacks: all or none.
/// The threads of the context share it. Errors: VALUE, NO_MEMORY, DEVICE.
moe_status moei_put_expert(const moe_context *ctx, const moei_put_one *puts, int count, int32_t se,
                           int32_t de, const char *call);

/// Whether a view to write to holds what expert e of a packed stack has. Errors: SHAPE, VALUE,
/// NO_MEMORY, DEVICE.
moe_status moei_fits_check(const moe_context *ctx, const moei_kernel *kernel,
                           const moei_matrices *from, int32_t e, const moei_matrices *to,
                           const char *call, const char *name);

/// The inverse of packing: expert `se` of a packed stack to expert `de` of canonical memory on the
/// host.
moe_status moei_get_expert(const moe_context *ctx, const moei_kernel *kernel,
                           const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de,
                           const char *call);

/// The text that names a layout: its head, then for each stack words that begin with its name.
void moei_put_layout_head(const moe_context *ctx, moei_text *t);
moe_status moei_put_stack(const moe_context *ctx, const moei_stack *stack, const moei_matrices *m,
                          const char *name, const char *call, moei_text *t);

/// Whose layout a text names.
typedef struct moei_layout_of {
    moe_status (*put)(const void *arg, const char *call, moei_text *t);
    const void *arg;
    const char *bytes, *maker; // "the plan's weights", "plan": for the message
} moei_layout_of;

/// UNSUPPORTED, with the first words that differ, unless `layout` is the text of `of`.
moe_status moei_layout_check(const moe_context *ctx, const moei_layout_of *of, const char *layout,
                             const char *call);

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
