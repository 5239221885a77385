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
