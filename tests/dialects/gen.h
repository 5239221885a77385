// SPDX-License-Identifier: Apache-2.0
// Layers with random weights, and the same weights as the dialects of public checkpoints store
// them. What a dialect is, is stated here a second time, apart from src/io/dialects.def.
#ifndef MOE_TESTS_DIALECTS_GEN_H
#define MOE_TESTS_DIALECTS_GEN_H

#include <stdbool.h>

#include "moe/io.h"
#include "moe/moe.h"

/// How one matrix, or a stack, is written.
typedef enum gen_style {
    GEN_NONE,
    GEN_FLOAT,         ///< weight [n, k] bf16
    GEN_STACK,         ///< bf16 [E, 2I, H], gate rows first
    GEN_STACK_IN_OUT,  ///< bf16 [E, H, 2I], gate columns first
    GEN_STACK_PAIRS,   ///< bf16 [E, H, 2I], gate and up columns in turn (gpt-oss)
    GEN_STACK_GRANITE, ///< as STACK, input_linear.weight and output_linear.weight
    GEN_GPT_OSS,       ///< blocks, scales, bias; gate and up rows in turn
    GEN_DEEPSEEK,      ///< e4m3 with weight_scale_inv
    GEN_STACK_FP8,     ///< e4m3 [E, 2I, H] with gate_up_proj_scale_inv
    GEN_V4,            ///< packed e2m1 with scale
    GEN_V4_FP8,        ///< e4m3 with e8m0 scale per block
    GEN_CT_NVFP4,
    GEN_CT_MXFP4,
    GEN_CT_INT4,
    GEN_CT_PACKED8,
    GEN_CT_INT8,
    GEN_MODELOPT,
    GEN_QUARK_MXFP4,
    GEN_MXFP8,
    GEN_FP8 ///< weight_scale in the grain of the format
} gen_style;

/// A convention taken the other way round: a file that opens and means something else.
typedef enum gen_wrong {
    GEN_RIGHT,
    GEN_NIBBLES,    ///< the high nibble first
    GEN_RECIPROCAL, ///< a scale as its reciprocal
    GEN_ORDER,      ///< halves instead of turns, or turns instead of halves
    GEN_TRANSPOSED, ///< of square matrices: the other order of the indices
    GEN_OFFSET,     ///< two's complement instead of offset binary
    GEN_GATE_UP     ///< up where the gate belongs
} gen_wrong;

/// One projection of one expert in the library's canonical form.
typedef struct gen_matrix {
    int64_t n, k;
    size_t row_bytes;
    uint8_t *values;
    uint8_t *scales; ///< [scale_rows, scale_cols]
    moe_dtype scale_dtype;
    int64_t scale_rows, scale_cols;
    bool one_scale; ///< of the whole matrix
    float scale2, input;
    uint8_t *zeros; ///< [n, scale_cols]
    uint16_t *bias; ///< bf16 [n]
} gen_matrix;

#define GEN_MAX_EXPERTS 8
#define GEN_MAX_TENSORS 512

/// What a layer is made of. Zero: none.
typedef struct gen_shape {
    int32_t experts, hidden, inter, latent, shared_inter;
    bool gated, zeros, bias, inputs;
    int32_t group;
    moe_format format, shared_format;
    moe_dtype scale_dtype, shared_scale_dtype;
    gen_style style, shared_style;
    const char *prefix;      ///< "model.layers.0.mlp."
    const char *names[3];    ///< of gate, up, down per expert
    const char *shared_name; ///< "shared_experts"
    const char *router;      ///< "gate.weight"
    const char *correction;  ///< of the correction bias; NULL: none
    bool router_bias, shared_gate;
} gen_shape;

typedef struct gen_layer {
    gen_shape shape;
    gen_matrix m[GEN_MAX_EXPERTS][3]; ///< gate, up, down
    gen_matrix shared[3];
    uint16_t *router, *router_bias, *shared_gate, *latent_in, *latent_out;
    float *correction;
    void *blocks[4096];
    int num_blocks;
} gen_layer;

typedef struct gen_file {
    moe_file_entry entries[GEN_MAX_TENSORS];
    size_t count;
    gen_layer *owner; ///< of the memory
} gen_file;

/// Random weights, the same for the same shape and seed.
void gen_make(gen_layer *layer, const gen_shape *shape, uint64_t seed);
void gen_free(gen_layer *layer);

/// Its tensors as its style writes them.
void gen_write(gen_layer *layer, gen_wrong wrong, gen_file *out);

/// Its weights in canonical form, gate rows first: what a load must be equal to.
void gen_source(gen_layer *layer, moe_weights_source *out);

/// Memory that gen_free releases.
void *gen_keep(gen_layer *layer, size_t bytes);

/// The tensor of a name; the program ends if there is none.
moe_file_entry *gen_find(gen_file *file, const char *name);

/// Adds a tensor whose bytes are copied; the name is printed as printf does.
void gen_add(gen_file *file, moe_dtype dtype, int ndim, const int64_t *shape, const void *bytes,
             const char *name, ...) __attribute__((format(printf, 6, 7)));

uint64_t gen_random(uint64_t *state);

#endif
