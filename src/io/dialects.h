// SPDX-License-Identifier: Apache-2.0
// Inside libmoe_io: an open layer of a checkpoint. layer_names.c gathers the tensors by their
// names, dialects.c tells what they are and checks them, layer_load.c makes weights of them.
#ifndef MOEI_IO_DIALECTS_H
#define MOEI_IO_DIALECTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/json.h"
#include "io/quant_config.h"
#include "moe/io.h"

#define MOEI_NAME_BYTES 512 ///< of a tensor's name that is looked for, with its NUL

/// What follows a projection's name, without the '.' or '_' between them.
enum moei_suffix {
    MOEI_SUFFIX_NONE = 0,
    MOEI_SUFFIX_WEIGHT, ///< also nothing at all
    MOEI_SUFFIX_BLOCKS,
    MOEI_SUFFIX_SCALES,
    MOEI_SUFFIX_SCALE,
    MOEI_SUFFIX_WEIGHT_SCALE,
    MOEI_SUFFIX_WEIGHT_SCALE_INV, ///< also scale_inv
    MOEI_SUFFIX_WEIGHT_SCALE_2,
    MOEI_SUFFIX_WEIGHT_PACKED,
    MOEI_SUFFIX_WEIGHT_GLOBAL_SCALE,
    MOEI_SUFFIX_WEIGHT_ZERO_POINT,
    MOEI_SUFFIX_WEIGHT_SHAPE,
    MOEI_SUFFIX_WEIGHT_G_IDX,
    MOEI_SUFFIX_INPUT_SCALE,
    MOEI_SUFFIX_INPUT_GLOBAL_SCALE,
    MOEI_SUFFIX_BIAS,
    MOEI_NUM_SUFFIXES
};

/// How the format follows from the tensors.
enum moei_kind {
    MOEI_KIND_FLOAT = 1, ///< the values' dtype
    MOEI_KIND_FIXED,     ///< the row's format
    MOEI_KIND_BLOCK,     ///< the values' dtype with scales per block
    MOEI_KIND_BY_SCALES, ///< the values' dtype; the scales' shape says tensor, channel or block
    MOEI_KIND_WORDS      ///< integers of `bits` packed in words
};

#define MOEI_NUM_ROLES 9 ///< MOE_ROLE_VALUES .. MOE_ROLE_GROUP_INDEX, from 1

/// One row of dialects.def.
struct moei_dialect {
    const char *name;
    const char *methods; ///< "method" or "method:format", separated by ';': values of
                         ///< quantization_config that go with it; NULL: it is not quantised
    unsigned char role[MOEI_NUM_ROLES]; ///< the suffix of each role; values, scales and scale2 must
                                        ///< be there, the others may
    uint32_t values, scales;            ///< dtypes: bit 1 << moe_dtype
    enum moei_kind kind;
    moe_format format;   ///< FIXED
    int32_t bits;        ///< WORDS
    bool scale2_divides; ///< reciprocals of what the library multiplies by
    bool act_divides;
};

/// Projections of an expert.
enum moei_projection {
    MOEI_GATE_UP = 0, ///< joined; without a gate: up
    MOEI_GATE,
    MOEI_UP,
    MOEI_DOWN,
    MOEI_NUM_PROJECTIONS
};

/// The tensors of one projection: index in ascending order of names, plus 1; 0: none.
struct moei_piece {
    uint32_t tensor[MOEI_NUM_SUFFIXES];
};

/// How the scales of a product lie.
enum moei_grain { MOEI_GRAIN_NONE = 0, MOEI_GRAIN_TENSOR, MOEI_GRAIN_CHANNEL, MOEI_GRAIN_BLOCKS };

/// One product of a stack, as its tensors have it.
struct moei_product {
    moe_format format;
    moe_dtype element;     ///< of the codes
    moe_dtype scale_dtype; ///< 0: no scales
    enum moei_grain grain;
    int32_t scale_parts; ///< of a piece, TENSOR: 1, or 2 for gate and up in one tensor
    int32_t group;       ///< for formats with a free group, else 0
    bool zeros, bias, act;
    int64_t k, rows[2]; ///< inputs; outputs of each piece (second: 0 where gate and up are joined)
    int32_t block_n, block_k; ///< BLOCKS
};

/// The routed experts, or the shared ones.
struct moei_stack {
    const char *what; ///< "experts", "shared experts"
    int32_t count;    ///< experts; 0: the layer has no such
    bool stacked;     ///< one tensor holds all experts
    bool apart;       ///< gate and up have tensors of their own
    bool transposed;
    moe_gate_up gate_up;
    const struct moei_dialect *dialect;
    struct moei_piece *pieces; ///< [count, or 1 where stacked][MOEI_NUM_PROJECTIONS]
    struct moei_product gemm[2];
};

#define MOEI_NUM_ROUTER_TENSORS 5
#define MOEI_NUM_NAMED          9

struct moe_checkpoint_layer {
    const moe_checkpoint *checkpoint;
    moe_layer_desc desc; ///< what the configuration says, then what the tensors say
    char class_name[64];
    char prefix[MOEI_NAME_BYTES]; ///< "model.layers.3.mlp."
    char outer[MOEI_NAME_BYTES];  ///< "model.layers.3."
    struct moei_stack routed, shared;
    moe_router_tensors router;
    moe_tensor latent_in, latent_out, shared_gate, output_bias;
    uint32_t named[MOEI_NUM_NAMED]; ///< tensors of the router, then linear maps; as in a piece
    float *widened; ///< correction bias and scale of the router, where stored narrower
};

/// layer_names.c: finds the prefix of layer `index`, gathers its tensors. The stacks' counts and
/// the descriptor are set. Errors: NOT_FOUND, MALFORMED, UNSUPPORTED, NO_MEMORY.
moe_status moei_layer_gather(moe_checkpoint_layer *layer, const char *call, int32_t index);

/// layer_router.c: finds the router's tensors and the linear maps. Errors: NOT_FOUND, MALFORMED,
/// NO_MEMORY.
moe_status moei_layer_find_router(moe_checkpoint_layer *layer, const char *call);

/// dialects.c: tells the dialect of a gathered stack, checks every tensor, fills its products.
/// `says` is what the configuration says. Errors: NOT_FOUND, MALFORMED, UNSUPPORTED.
moe_status moei_stack_check(const moe_checkpoint_layer *layer, const char *call,
                            const struct moei_quant_says *says, struct moei_stack *stack);

/// The piece of expert e (0 where stacked).
static inline const struct moei_piece *moei_stack_piece(const struct moei_stack *s, int32_t e,
                                                        enum moei_projection p)
{
    return &s->pieces[(size_t)(s->stacked ? 0 : e) * MOEI_NUM_PROJECTIONS + p];
}

/// The projections of product g, in row order; returns how many.
static inline int moei_stack_parts(const struct moei_stack *s, int g, enum moei_projection out[2])
{
    out[0] = g == 1 ? MOEI_DOWN : s->apart ? MOEI_GATE : MOEI_GATE_UP;
    out[1] = MOEI_UP;
    return g == 0 && s->apart ? 2 : 1;
}

/// Name and view of a tensor of a piece; absent where there is none.
const char *moei_piece_name(const moe_checkpoint_layer *layer, const struct moei_piece *piece,
                            enum moei_suffix suffix);
moe_status moei_piece_view(const moe_checkpoint_layer *layer, const char *call,
                           const struct moei_piece *piece, enum moei_suffix suffix,
                           moe_tensor *out);

/// "NAME is bf16 [4, 8]", for messages.
struct moei_tensor_text {
    char text[96];
};
struct moei_tensor_text moei_tensor_describe(const moe_tensor *t);

#endif
