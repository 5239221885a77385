// SPDX-License-Identifier: Apache-2.0
/// @file routing.h  From router logits to expert ids and weights, the two public forms of the
/// result, and the token sort.
#ifndef MOE_ROUTING_H
#define MOE_ROUTING_H

#include "moe/context.h"
#include "moe/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Where ids and weights come from.
typedef int32_t moe_routing;
enum {
    MOE_ROUTING_UNSET = 0,
    MOE_ROUTING_FROM_LOGITS = 1, ///< computed from logits by a moe_route_desc
    MOE_ROUTING_GIVEN = 2,       ///< the caller's ids and weights
    MOE_ROUTING_PLACED = 3       ///< rows arrive per expert (x_layout BATCHED or SORTED)
};

/// How a logit becomes a score; always in f32.
typedef int32_t moe_scoring;
enum {
    MOE_SCORING_UNSET = 0,
    MOE_SCORING_SOFTMAX = 1,          ///< over all experts (and zero experts)
    MOE_SCORING_SIGMOID = 2,          ///< 1 / (1 + exp(-l))
    MOE_SCORING_SQRTSOFTPLUS = 3,     ///< sqrt(log(1 + exp(l))), DeepSeek-V4
    MOE_SCORING_SOFTMAX_SELECTED = 4, ///< selection on raw logits, softmax over the selected
    MOE_SCORING_SIGMOID_SELECTED = 5, ///< selection on raw logits, sigmoid of each (Llama 4)
    MOE_SCORING_SPARSEMIXER = 6       ///< Phi-3.5-MoE, k = 2
};

typedef int32_t moe_renorm;
enum {
    MOE_RENORM_UNSET = 0,
    MOE_RENORM_NONE = 1,   ///< weights as scored
    MOE_RENORM_SUM = 2,    ///< w / (sum + renorm_eps), sum in slot order; denominator 1 if <= 0
    MOE_RENORM_CLAMPED = 3 ///< w / max(sum, renorm_eps); denominator 1 if <= 0
};

/// Score of an expert group, for grouped selection (DeepSeek-V2 and V3).
typedef int32_t moe_group_score;
enum {
    MOE_GROUP_SCORE_UNSET = 0,
    MOE_GROUP_SCORE_MAX = 1,     ///< the largest key
    MOE_GROUP_SCORE_TOP2_SUM = 2 ///< the sum of the two largest keys
};

/// Which key selects: the score (default) or the raw logit. SELECTED scorings and sparsemixer
/// always select on logits.
typedef int32_t moe_select_on;
enum { MOE_SELECT_DEFAULT = 0, MOE_SELECT_SCORES = 1, MOE_SELECT_LOGITS = 2 };

/// Routing options. Rules that hold for every scoring (docs/routing.md has them all):
/// - Scores are computed in f32 whatever the logits' dtype; sums over experts are 32 partial sums
///   folded 16, 8, 4, 2, 1; sums over the selected run in slot order.
/// - The correction bias is added to the key and never reaches a weight. Equal keys go to the lower
///   expert id, equal groups to the lower group; ids come in descending key order.
/// - A computed score that is NaN or infinite becomes 0. A key that is NaN ranks as -inf; on raw
///   logits -inf is a mask (chosen last, weight 0), NaN counts as -inf, +inf is kept.
/// - Grouped: an expert whose logit is not finite has score 0 and key -inf. Where the group that
///   comes last of the kept ones has score -inf, the token gets ids 0 .. k-1, each with weight 1/k,
///   neither normalised nor scaled.
/// - The scale is applied exactly once, after normalisation: w = (w / sum) * scale * scale_tensor.
/// An option that would have no effect beside the others is refused, never ignored.
typedef struct moe_route_desc {
    moe_scoring scoring;
    moe_select_on select_on;
    moe_renorm renormalise;
    float renorm_eps;
    float scale;             ///< routed_scaling_factor, applied exactly once; 0: 1.0
    int32_t correction_bias; ///< 1: args.correction_bias is required
    int32_t scale_tensor;    ///< 1: args.scale_tensor (f32 [1]) multiplies the weights too
    int32_t num_groups;      ///< 0 or 1: not grouped; else it divides E
    int32_t top_groups;      ///< groups kept; they must hold at least k experts
    moe_group_score group_score;
    int32_t group_mask_zero; ///< 0: experts of dropped groups get key -inf; 1: key 0.0
    int32_t zero_experts;    ///< identity experts, ids E .. E + zero_experts - 1
    int32_t shared_scores;   ///< router rows after those: shared experts that the router weighs, by
                             ///< a scoring of single logits (sigmoid, sqrtsoftplus)
    int32_t renorm_shared;   ///< 1: their scores join the sum of the renormalisation and are
                             ///< divided by it; 0: they are scaled only
    int32_t hash_table;      ///< 1: ids come from args.hash_table[token id], nothing is selected;
                             ///< what either names outside its range is id -1, weight 0
    float jitter_eps;        ///< sparsemixer: half the relative band, as in the model's config
    int32_t append_shared;   ///< n: ids E + zero_experts + i, weight 1 (or args.shared_gate),
                             ///< follow the k selected ones, after normalisation and scale
} moe_route_desc;

/// Arguments of moe_route. T tokens, E experts, k selected, n = append_shared,
/// R = E + zero_experts + shared_scores router rows. Views that desc does not call for must be
/// absent (data NULL); the optional ones may be. Data are aligned to their elements; strides are
/// free but for the last.
typedef struct moe_route_args {
    size_t struct_size;
    moe_route_desc desc;
    int32_t num_experts;        ///< E, 1..4096; R + n at most 8192
    int32_t top_k;              ///< k, 1..E + zero_experts
    moe_tensor logits;          ///< [T, R] f32, bf16 or f16; last stride 1
    moe_tensor correction_bias; ///< f32 [E + zero_experts]
    moe_tensor scale_tensor;    ///< f32 [1]
    moe_tensor hash_table;      ///< I32 or I64 [vocabulary, k]
    moe_tensor token_ids;       ///< the same dtype, [T]
    moe_tensor shared_gate;     ///< f32 [T, n], optional
    moe_tensor expert_map;      ///< optional I32 [E], with replicas [physical experts]: global to
                                ///< local id, -1 remote; never read for other ids
    moe_tensor replica_table;   ///< optional I32 [E, slots]: logical to physical id, -1 fill
    moe_tensor replica_count;   ///< with replica_table: I32 [E]; outside 1..slots: id -1
    moe_tensor num_valid;       ///< optional I32 [1]: tokens at or past it get id -1, weight 0
    moe_tensor ids;             ///< out [T, k + n] I32 or I64
    moe_tensor weights;         ///< out [T, k + n] f32 or bf16
    moe_tensor shared_weights;  ///< out f32 [T, shared_scores], where shared_scores > 0
    moe_tensor load;            ///< optional, in and out: I32 [physical experts], incremented per
                                ///< slot of a valid token
} moe_route_args;

/// Scores, selects, normalises and scales; then maps ids: replicas first, then expert_map. Mapping
/// leaves weights alone; ids of zero experts stay as they are. No output may overlap another view.
/// Replica of a token: (token index * 0x9E3779B9 mod 2^32) mod replica_count, for all its slots.
/// Weights: f32, error bound in docs/routing.md#accuracy, then one rounding to their dtype.
/// Errors: ARGUMENT, UNSET, VERSION, SHAPE, DTYPE, ALIGNMENT, OVERLAP, OVERFLOW, UNSUPPORTED.
/// Determinism: KERNEL. Workspace: none. Thread safety: reentrant. Since 0.1.
MOE_API moe_status moe_route(const moe_context *ctx, const moe_route_args *args, void *stream);

/// Checks ids and weights structurally: ids in [0, E) or -1, no id twice in a token, weights
/// finite and >= 0, and where `weight_sum` > 0 that the weights of each token that has an expert
/// add up to it within `tolerance`. Reads host memory. The message names token, slot and both
/// values.
/// @param[in] ids      [T, k] I32 or I64
/// @param[in] weights  [T, k] f32 or bf16; NULL or data NULL: not checked
/// Errors: VALUE, ARGUMENT, SHAPE, DTYPE, ALIGNMENT, OVERFLOW. Since 0.1.
MOE_API moe_status moe_routing_validate(const moe_tensor *ids, const moe_tensor *weights,
                                        int32_t num_experts, float weight_sum, float tolerance);

/// The other public form of a routing result: selection as a bit matrix with ragged metadata (the
/// SparseMatrix of triton_kernels, and its older tuple (values, ids, bitmatrix)).
/// T tokens, k slots, E experts; ids outside [0, E) touch no bit and no count. Host memory.
typedef struct moe_routing_sparse {
    moe_tensor bitmatrix;  ///< U32 [T, ceil(E/32)]: bit (id mod 32) of word id / 32; any strides
                           ///< (triton_kernels stores it transposed)
    moe_tensor counts;     ///< I32 [E]: slots per expert
    moe_tensor offsets;    ///< I32 [E + 1]: exclusive prefix sum of counts
    moe_tensor gather;     ///< I32 [T*k]: position sorted by (expert, slot) -> flat slot; -1 fill
    moe_tensor scatter;    ///< I32 [T*k]: flat slot -> position; -1 where the id is absent
    moe_tensor gate_scale; ///< f32 or bf16 [T*k]: weights in sorted order, 0 fill; optional
} moe_routing_sparse;

/// Dense (ids, weights) to sparse. `weights` is given (not NULL, data not NULL) exactly where
/// out->gate_scale is. Errors: SHAPE, DTYPE, ARGUMENT, ALIGNMENT, OVERLAP, OVERFLOW, VALUE (an id
/// twice in a token: a bit holds it once). Determinism: KERNEL. Since 0.1.
MOE_API moe_status moe_routing_to_sparse(const moe_tensor *ids, const moe_tensor *weights,
                                         int32_t num_experts, const moe_routing_sparse *out);

/// Sparse to dense, slots where `scatter` places them. Absent slots get id -1, weight 0. Entries of
/// gather and gate_scale past offsets[E] are not read. `weights` may be NULL or absent.
/// Errors: SHAPE, DTYPE, ARGUMENT, ALIGNMENT, OVERLAP, OVERFLOW, VALUE (bit matrix and metadata
/// disagree; the message says where). Determinism: KERNEL. Since 0.1.
MOE_API moe_status moe_routing_from_sparse(const moe_routing_sparse *sparse, int32_t num_experts,
                                           const moe_tensor *ids, const moe_tensor *weights);

/// Arguments of moe_sort: a stable counting sort of slots by expert.
typedef struct moe_sort_args {
    size_t struct_size;
    int32_t num_experts;      ///< E of this rank, 1..8192: ids outside [0, E) are absent
    int32_t block;            ///< block-aligned form: block size B; 0: contiguous form
    moe_tensor ids;           ///< [T, k] I32 or I64
    moe_tensor num_valid;     ///< optional I32 [1]: tokens at or past it are absent
    moe_tensor offsets;       ///< contiguous: out I32 [E + 1]
    moe_tensor slots;         ///< contiguous: out I32 [T*k], sorted position -> flat slot t*k + j;
                              ///< T*k past offsets[E]. Block-aligned: [P], sentinel T*k
    moe_tensor positions;     ///< optional out I32 [T*k]: flat slot -> sorted position, -1 absent
    moe_tensor block_experts; ///< block-aligned: out I32 [ceil(P/B)], -1 past the end
    moe_tensor num_padded;    ///< block-aligned: out I32 [1] = sum of counts rounded up to B
    moe_tensor counts;        ///< optional out I32 or I64 [E]
    moe_tensor expert_map;    ///< optional I32 [global E]: ids are global; offsets, counts and
                              ///< block_experts are local, slots of remote experts are absent
} moe_sort_args;

/// Contiguous and block-aligned forms (vLLM's moe_align_block_size with ignore_invalid_experts, and
/// with the order inside an expert defined: ascending slots). Views of the other form must be
/// absent. T*k and P fit int32. No output may overlap another view.
/// Errors: ARGUMENT, VERSION, SHAPE, DTYPE, ALIGNMENT, OVERLAP, OVERFLOW. Determinism: KERNEL.
/// Workspace: none. Thread safety: reentrant. Since 0.1.
MOE_API moe_status moe_sort(const moe_context *ctx, const moe_sort_args *args, void *stream);

/// Elements of `slots` that the block-aligned form needs: P = num_slots + E*(B - 1) rounded up to
/// B, at most num_slots*B where num_slots < E. -1 where an argument is out of range (num_slots < 0,
/// E < 1, B < 1) or P does not fit 63 bits. Since 0.1.
MOE_API int64_t moe_sort_padded_size(int64_t num_slots, int32_t num_experts, int32_t block);

/// Arguments of moe_gather_batched: tokens [T, H] to the batched form [E, Tmax, H] with counts.
typedef struct moe_batched_args {
    size_t struct_size;
    moe_tensor ids;     ///< [T, k] I32 or I64, local; outside [0, E): absent
    moe_tensor x;       ///< [T, H], any dtype whose rows fill whole bytes
    moe_tensor batched; ///< out [E, Tmax, H], the same dtype; E*Tmax fits int32
    moe_tensor counts;  ///< out I32 [E]
    moe_tensor rows;    ///< out I32 [T*k]: flat slot -> e*Tmax + row, -1 absent
} moe_batched_args;

/// Copies each slot's token into its expert's rows, in slot order; fills counts and rows. Rows at
/// or past the count are not written. Host only: it reads ids and writes rows on the calling
/// thread. A context of another device: UNSUPPORTED; a view that says another device: ARGUMENT.
/// Errors: SHAPE (an expert gets more than Tmax rows; the message names it, and `batched` is
/// untouched), DTYPE, ARGUMENT, VERSION, ALIGNMENT, OVERLAP, OVERFLOW, UNSUPPORTED. Determinism:
/// KERNEL. Workspace: none. Thread safety: reentrant. Since 0.1.
MOE_API moe_status moe_gather_batched(const moe_context *ctx, const moe_batched_args *args,
                                      void *stream);

#ifdef __cplusplus
}
#endif
#endif
