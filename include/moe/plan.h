// SPDX-License-Identifier: Apache-2.0
/// @file plan.h  The layer: descriptor -> plan -> workspace -> run.
///
/// A descriptor says what a Mixture-of-Experts layer computes. moe_plan_create either returns a
/// plan that computes exactly that, or refuses and names the reason, both values and the nearest
/// thing that works. One plan serves all layers of the same shape; the weights are an argument of
/// the run. A run never allocates, never locks but for the pool's hand-off, and never prints.
#ifndef MOE_PLAN_H
#define MOE_PLAN_H

#include "moe/context.h"
#include "moe/quantize.h"
#include "moe/routing.h"
#include "moe/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/// What a plan promises about the bits of a token's output.
typedef int32_t moe_determinism;
enum {
    MOE_DET_DEFAULT = 0, ///< BATCH
    MOE_DET_NONE = 1,    ///< nothing
    MOE_DET_RUN = 2,     ///< same plan, inputs, threads, device: same bits
    MOE_DET_BATCH = 3,   ///< also whatever the thread count and the other tokens of the batch
    MOE_DET_KERNEL = 4   ///< also on every instruction set that has the arithmetic class
};

/// Activation between the two products. g gate, u up; names with NO_MUL have no gate, and then
/// the first product has I rows instead of 2I.
typedef int32_t moe_activation;
enum {
    MOE_ACT_UNSET = 0,
    MOE_ACT_SILU = 1,      ///< g sigmoid(g) u; with limit L > 0: g = min(g, L), u = clamp(u, +-L)
    MOE_ACT_GELU = 2,      ///< 0.5 g (1 + erf(g / sqrt 2)) u
    MOE_ACT_GELU_TANH = 3, ///< 0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) u
    MOE_ACT_SWIGLUOAI =
        4, ///< clamps as SILU; g sigmoid(alpha g) (u + beta)  (gpt-oss: 1.702, 1, 7)
    MOE_ACT_SWIGLUSTEP = 5, ///< min(silu(g), L) clamp(u, +-L)
    MOE_ACT_SITU = 6,       ///< beta tanh(g/beta) sigmoid(g) lb tanh(u/lb), lb = linear_beta (0: u)
    MOE_ACT_SILU_NO_MUL = 7,
    MOE_ACT_GELU_NO_MUL = 8,
    MOE_ACT_GELU_TANH_NO_MUL = 9,
    MOE_ACT_RELU2_NO_MUL = 10 ///< max(x, 0)^2
};

/// Name as on the command line ("silu", "swigluoai"); "unknown activation" otherwise.
MOE_API const char *moe_activation_name(moe_activation activation);

/// 1 if the activation has a gate (the first product has 2I rows), else 0.
MOE_API int moe_activation_gated(moe_activation activation);

/// Where gate and up rows lie in the first matrix, its scales and its bias.
typedef int32_t moe_gate_up;
enum {
    MOE_GATE_UP_UNSET = 0,
    MOE_GATE_FIRST = 1,          ///< rows 0..I-1 gate, I..2I-1 up
    MOE_UP_FIRST = 2,            ///< rows 0..I-1 up, I..2I-1 gate
    MOE_GATE_UP_INTERLEAVED = 3, ///< row 2j gate j, row 2j+1 up j (gpt-oss)
    MOE_UP_GATE_INTERLEAVED = 4  ///< row 2j up j, row 2j+1 gate j
};

/// Where the router weight multiplies.
typedef int32_t moe_weight_stage;
enum {
    MOE_WEIGHT_UNSET = 0,
    MOE_WEIGHT_OUTPUT = 1, ///< the second product, in f32 after scales and bias
    MOE_WEIGHT_INPUT = 2,  ///< x, rounded to x's dtype, before quantisation (Llama 4)
    MOE_WEIGHT_NONE = 3    ///< nowhere; the caller does it
};

typedef int32_t moe_x_layout;
enum {
    MOE_X_TOKENS = 0,  ///< x [T, H]
    MOE_X_BATCHED = 1, ///< x [E, Tmax, H] with counts [E]
    MOE_X_SORTED = 2   ///< x [R, H] with offsets [E + 1]
};

typedef int32_t moe_out_mode;
enum {
    MOE_OUT_DEFAULT = 0,  ///< COMBINED for TOKENS, LAYOUT otherwise
    MOE_OUT_COMBINED = 1, ///< out [T, H]: the sum over the slots, in slot order
    MOE_OUT_SLOTS = 2,    ///< out [T, k, H] partial results; absent slots +0
    MOE_OUT_LAYOUT = 3    ///< out in x's BATCHED or SORTED layout
};

/// One grouped product: its weights, and how its input is quantised.
typedef struct moe_gemm_desc {
    moe_format weight_format;
    moe_dtype weight_scale_dtype; ///< 0: the format's first; F32, BF16, F16, E8M0 where it allows
    int32_t weight_group;         ///< elements of k per scale, for *_GROUP formats; 0: format's
    int32_t zero_points;          ///< 1: the weights bring zero points; 0: the format's own
    int32_t bias;                 ///< 1: a bias per output is added, in f32, after the scales
    moe_quant_desc
        act; ///< zero: the input is used as it is. scale_layout COLUMN and scale_type
             ///< UE8M0_PACKED say how x's scales arrive; refused where the plan quantises
    int32_t channel_scale; ///< 1: *_GROUP formats bring an f32 factor per output as well, which
                           ///< multiplies the scaled sum before the bias (W4AFP8 checkpoints)
} moe_gemm_desc;

/// How the output of the shared experts is weighed.
typedef int32_t moe_shared_gate;
enum {
    MOE_SHARED_PLAIN = 0,
    MOE_SHARED_SIGMOID = 1,        ///< times sigmoid(gate_weight . x), one scalar per token
    MOE_SHARED_ROUTER_WEIGHTED = 2 ///< expert i times the router's weight for it
};

/// Experts that see every token. They read the layer's x (never the latent one).
typedef struct moe_shared_desc {
    int32_t count; ///< 0: none
    int64_t inter;
    moe_shared_gate gate;
    moe_activation activation;
    float alpha, beta, linear_beta, limit;
    moe_gate_up gate_up;
    int32_t transposed; ///< 1: [E, in, out] instead of [E, out, in]
    moe_gemm_desc gemm[2];
} moe_shared_desc;

/// What one layer computes. Zero is UNSET: structural fields then have the stated default, the
/// semantic ones (formats, routing, scoring, renormalise, activation, gate_up, weight_stage) are
/// refused. See docs/tour.md for the order of the steps and docs/numerics.md for every rounding.
typedef struct moe_layer_desc {
    size_t struct_size; ///< sizeof(moe_layer_desc); moe_layer_desc_default sets it

    // Sizes. H, I <= 2^20, E <= 4096.
    int64_t max_tokens;        ///< TOKENS: T, BATCHED: Tmax, SORTED: R; a run takes up to this
    int64_t hidden;            ///< H
    int64_t inter;             ///< I
    int32_t num_experts;       ///< E, as the router numbers them
    int32_t num_local_experts; ///< experts whose weights are here; 0: all (replicas, else
                               ///< num_experts + route.append_shared)
    int32_t top_k;             ///< k
    int64_t latent;            ///< L > 0: experts map L -> I -> L between two linear transforms

    // Routing
    moe_routing routing;
    moe_route_desc route; ///< FROM_LOGITS
    int32_t expert_map;   ///< 1: args.expert_map is required
    int32_t replicas;     ///< physical experts; > 0: args.replica_table and replica_count required
    moe_dtype logits_dtype;  ///< FROM_LOGITS; 0: f32
    moe_dtype ids_dtype;     ///< of given or returned ids; 0: I32. PLACED: 0
    moe_dtype weights_dtype; ///< of given or returned weights; 0: f32. PLACED: f32
    moe_weight_stage weight_stage;

    // The experts
    moe_activation activation;
    float alpha, beta, linear_beta, limit; ///< 0: not used; an activation that needs one says so
    moe_gate_up gate_up;
    int32_t transposed; ///< 1: weights [E, in, out] instead of [E, out, in]
    moe_gemm_desc gemm[2];
    moe_shared_desc shared;
    int32_t output_bias; ///< 1: a bias [H] is added once per token

    // Precision and form
    moe_dtype x_dtype;       ///< f32, bf16, f16, or the element type of gemm[0].act
    moe_dtype inter_dtype;   ///< of h; 0: x's. Where gemm[1].act quantises h, that is straight from
                             ///< f32: 0 or f32
    moe_dtype partial_dtype; ///< of each slot's result; 0: x's
    moe_dtype out_dtype;     ///< 0: x's
    moe_x_layout x_layout;
    moe_out_mode out_mode;
    int32_t accumulate; ///< 1: out = round(out + result)

    moe_determinism determinism;
    size_t workspace_cap; ///< bytes; a plan that needs more for max_tokens is refused; 0: none
} moe_layer_desc;

static inline moe_layer_desc moe_layer_desc_default(void)
{
    moe_layer_desc d;
    char *p = (char *)&d;
    size_t i;
    for (i = 0; i < sizeof d; i++) {
        p[i] = 0;
    }
    d.struct_size = sizeof d;
    return d;
}

/// Opaque. Immutable after creation: any number of threads may run one plan at once, each with a
/// workspace of its own.
typedef struct moe_plan moe_plan;

/// @param[out] out  untouched on failure
/// Errors: ARGUMENT, UNSET, SHAPE, DTYPE, OVERFLOW, VERSION, UNSUPPORTED, NO_KERNEL, LEVEL,
/// WORKSPACE (workspace_cap), NO_MEMORY. Since 0.1.
MOE_API moe_status moe_plan_create(moe_context *ctx, const moe_layer_desc *desc, moe_plan **out);

/// NULL is fine. Weights and runs of the plan must be gone. Since 0.1.
MOE_API void moe_plan_destroy(moe_plan *plan);

/// The context that the plan was made from. Since 0.1.
MOE_API const moe_context *moe_plan_context(const moe_plan *plan);

/// The descriptor that the plan computes, defaults resolved. `desc` has its struct_size set.
/// Errors: ARGUMENT, VERSION. Since 0.1.
MOE_API moe_status moe_plan_desc(const moe_plan *plan, moe_layer_desc *desc);

/// Bytes and alignment of the workspace for a run of num_tokens (monotone, worst routing
/// included). Errors: ARGUMENT (num_tokens > max_tokens). Since 0.1.
MOE_API moe_status moe_plan_workspace(const moe_plan *plan, int64_t num_tokens, size_t *bytes,
                                      size_t *align);

/// The determinism level that the plan holds, at least the one asked for. Since 0.1.
MOE_API moe_determinism moe_plan_level(const moe_plan *plan);

enum {
    MOE_PLAN_USES_REF = 1 ///< a product runs on the portable reference
};
/// MOE_PLAN_* bits. Since 0.1.
MOE_API uint32_t moe_plan_flags(const moe_plan *plan);

/// Writes, for each grouped product, every kernel with its verdict, a star at the one that runs.
/// Like snprintf: at most capacity bytes with the final NUL, *needed (may be NULL) is the length
/// of the whole text. Since 0.1.
MOE_API moe_status moe_plan_explain(const moe_plan *plan, char *buffer, size_t capacity,
                                    size_t *needed);

/// The plan as JSON: version, descriptor with defaults resolved, kernels, level, workspace. Since
/// 0.1.
MOE_API moe_status moe_plan_describe(const moe_plan *plan, char *buffer, size_t capacity,
                                     size_t *needed);

/// One kernel's answer to a descriptor.
typedef struct moe_support {
    const char *kernel; ///< row name
    const char *step;   ///< "gate_up", "down", "shared gate_up", "shared down", "route"...
    int supported;
    int chosen;         ///< 1: a plan would run this row
    int32_t code;       ///< whynot code, 0 when supported
    int64_t have, need; ///< the two values that the code speaks of
    const char *text;   ///< one line with both values; valid during the visit
    const char *arith;
    moe_determinism level;
    int graph_safe;         ///< may be captured in a device graph
    size_t workspace_bytes; ///< for max_tokens
} moe_support;

/// Asks every kernel row whether it can run its part of `desc`; allocates nothing, under 1 ms.
/// Returns MOE_OK when a plan could be created, else the code that moe_plan_create would give.
/// `visit` stops the walk by returning non-zero. Since 0.1.
MOE_API moe_status moe_query_support(const moe_context *ctx, const moe_layer_desc *desc,
                                     int (*visit)(void *self, const moe_support *support),
                                     void *self);

typedef struct moe_weights moe_weights; // weights.h

/// Tensors of one run. Views that the descriptor does not call for must be absent (data NULL).
typedef struct moe_run_args {
    size_t struct_size;
    int64_t num_tokens;         ///< TOKENS: T; BATCHED: Tmax; SORTED: R; 0 is fine
    moe_tensor x;               ///< [T,H], [E,Tmax,H] or [R,H]; last stride 1
    moe_tensor x_scales;        ///< where x arrives quantised: as moe_quantize writes them
    moe_tensor logits;          ///< FROM_LOGITS: [T, E + zero_experts + shared_scores]
    moe_tensor ids;             ///< GIVEN: [T,k]
    moe_tensor weights;         ///< GIVEN: [T,k]; PLACED with a weight stage: [E,Tmax] or [R]
    moe_tensor shared_weights;  ///< GIVEN with a router-weighted shared expert: f32 [T, count]
    moe_tensor correction_bias; ///< these four, and the maps below, as in moe_route_args
    moe_tensor scale_tensor;
    moe_tensor hash_table;
    moe_tensor token_ids;
    moe_tensor append_gate; ///< route.append_shared > 0, optional f32 [T, append_shared]: weights
    moe_tensor expert_map;
    moe_tensor replica_table;
    moe_tensor replica_count;
    moe_tensor counts;    ///< BATCHED: I32 [E]
    moe_tensor offsets;   ///< SORTED: I32 [E + 1], ascending from 0
    moe_tensor num_valid; ///< optional I32 [1]; tokens at or past it are not computed, their
                          ///< outputs not written. TOKENS only
    moe_tensor out;
    moe_tensor out_ids;     ///< optional [T,k] of ids_dtype: as the router numbers experts
    moe_tensor out_weights; ///< optional [T,k] of weights_dtype
    moe_tensor out_counts;  ///< optional I64 [local experts]: rows that each expert computed
    moe_tensor load;        ///< optional I32 [physical experts], incremented
} moe_run_args;

static inline moe_run_args moe_run_args_default(void)
{
    moe_run_args a;
    char *p = (char *)&a;
    size_t i;
    for (i = 0; i < sizeof a; i++) {
        p[i] = 0;
    }
    a.struct_size = sizeof a;
    return a;
}

/// Runs the layer. out must not overlap an input (but x may be out's memory for no layout).
/// @param[in] workspace  `bytes` bytes aligned as moe_plan_workspace said; contents undefined after
/// @param[in] stream     cudaStream_t or hipStream_t by cast; NULL on the CPU
/// On an error of arguments nothing is written. Errors: ARGUMENT, SHAPE, DTYPE, OVERLAP, STATE
/// (weights incomplete), WORKSPACE, ALIGNMENT, DEVICE. Determinism: the plan's level. Thread
/// safety: reentrant, one workspace per concurrent run. Since 0.1.
MOE_API moe_status moe_run(const moe_plan *plan, const moe_weights *weights,
                           const moe_run_args *args, void *workspace, size_t bytes, void *stream);

#ifdef __cplusplus
}
#endif
#endif
