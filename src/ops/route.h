// SPDX-License-Identifier: Apache-2.0
// route: router logits to expert ids and weights. Contract between the layer and its kernels;
// docs/routing.md has every rule, in this order.
//   score      s = f(logits), f32; sums over experts as 32 partial sums folded 16, 8, 4, 2, 1
//   select     the k largest keys (score or logit, + bias), equal keys to the lower id
//   normalise  w = s at the chosen ids, / sum in slot order; then * scale, once
//   map        router id -> physical id (replicas) -> local id (expert_map)
#ifndef MOEI_OPS_ROUTE_H
#define MOEI_OPS_ROUTE_H

#include "core/check.h"
#include "moe/routing.h"
#include "ops/backend.h"

#define MOEI_ROUTE_MAX_EXPERTS 4096
#define MOEI_ROUTE_MAX_ROWS    8192 // experts, zero experts and shared experts: the kernels' stack

typedef struct moek_route_args {
    moe_route_desc desc; // checked; defaults resolved (moei_route_resolve)
    int64_t tokens;
    int32_t num_experts;
    int32_t top_k;
    const int32_t *num_valid;     // NULL: all tokens; the others get id -1, weight 0
    const uint8_t *logits;        // [tokens, num_experts + zero_experts + shared_scores]
    moe_dtype logit_dtype;        // f32, bf16, f16
    int64_t logit_token_stride;   // bytes
    const float *correction_bias; // [num_experts + zero_experts], with desc.correction_bias
    const float *scale_tensor;    // [1], with desc.scale_tensor
    const void *hash_table;       // [vocabulary, top_k], with desc.hash_table
    const void *token_ids;        // [tokens]
    moe_dtype hash_dtype;         // of both: int32 or int64
    int64_t vocabulary;
    int64_t hash_token_stride;  // elements
    const float *shared_gate;   // [tokens, append_shared]; NULL: 1
    int64_t shared_gate_stride; // elements
    // Mapping; all NULL: ids are the router's own.
    const int32_t *replica_table; // [num_experts, replica_slots]; NULL: logical = physical
    int64_t replica_stride;
    int32_t replica_slots;
    const int32_t *replica_count; // [num_experts]
    int32_t num_physical;         // bound of physical ids: replicas, else num_experts
    const int32_t *expert_map;    // [num_physical] to local ids in [0, num_experts); NULL: none
    int32_t *load;      // [num_physical], incremented by relaxed atomic adds; NULL: not counted
    void *ids;          // out [tokens, top_k + append_shared]
    moe_dtype id_dtype; // int32 or int64
    int64_t id_token_stride;     // elements
    void *weights;               // out [tokens, top_k + append_shared]
    moe_dtype weight_dtype;      // f32 or bf16
    int64_t weight_token_stride; // elements
    float *shared_weights;       // out [tokens, shared_scores]; NULL where there are none
    int64_t shared_weight_stride;
} moek_route_args;

/// Tokens [t0, t1). Typed pointers are aligned to their elements; outputs overlap nothing.
typedef void moek_route_fn(const moek_route_args *args, int64_t t0, int64_t t1);

/// Router rows: experts, zero experts, shared experts.
static inline int64_t moei_route_rows(const moe_route_desc *desc, int32_t num_experts)
{
    return (int64_t)num_experts + desc->zero_experts + desc->shared_scores;
}

/// True if selection splits the experts into groups.
static inline bool moei_route_grouped(const moe_route_desc *desc)
{
    return desc->num_groups > 1;
}

/// True if the key that selects is the raw logit.
static inline bool moei_route_on_logits(const moe_route_desc *desc)
{
    return desc->select_on == MOE_SELECT_LOGITS || desc->scoring == MOE_SCORING_SOFTMAX_SELECTED ||
           desc->scoring == MOE_SCORING_SIGMOID_SELECTED ||
           desc->scoring == MOE_SCORING_SPARSEMIXER;
}

/// Checks routing options alone: unset, out of range, contradictory, or without effect (an option
/// is never ignored). Messages name `call` and both values. Errors: UNSET, ARGUMENT, UNSUPPORTED.
moe_status moei_route_check(const moe_route_desc *desc, int32_t num_experts, int32_t top_k,
                            const char *call);

/// Puts the defaults of a checked descriptor in place: scale 1, select_on SCORES or LOGITS.
void moei_route_resolve(moe_route_desc *desc);

/// Checks the arguments of moe_route, each by itself (overlaps are left to the caller), and fills
/// those of the kernels; reads and writes no data.
moe_status moei_route_prepare(const moe_route_args *args, const char *call, moek_route_args *out);

/// moei_tensor_check, and ALIGNMENT where data are not aligned to whole elements.
moe_status moei_route_view_check(const moe_tensor *t, const char *call, const char *name,
                                 uint32_t dtypes, int ndim, const int64_t *shape);

#endif
