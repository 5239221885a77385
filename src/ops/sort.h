// SPDX-License-Identifier: Apache-2.0
// sort: slots by expert, stable. A slot is t * top_k + j. Contract between the layer and its
// kernels. Two forms:
//   contiguous (block 0)   expert e owns positions [offsets[e], offsets[e + 1])
//   block-aligned          each expert's positions are padded to a multiple of `block`
#ifndef MOEI_OPS_SORT_H
#define MOEI_OPS_SORT_H

#include "core/check.h"
#include "moe/routing.h"
#include "ops/backend.h"

#define MOEI_SORT_MAX_EXPERTS 8192 // local experts: the kernels' stack

typedef struct moek_sort_args {
    int64_t tokens;
    int32_t top_k;
    int32_t num_experts;      // ids (after expert_map) outside [0, num_experts) are absent
    const int32_t *num_valid; // NULL: all tokens; slots of the others are absent
    const void *ids;          // [tokens, top_k]
    moe_dtype id_dtype;       // int32 or int64
    int64_t id_token_stride;  // elements
    const int32_t
        *expert_map;    // [num_global]: ids are global, negative: remote; NULL: ids are local
    int32_t num_global; // ids outside [0, num_global) are never looked up
    int32_t *offsets;   // out [num_experts + 1]; contiguous only
    int32_t *slots;     // out: position -> slot; [tokens * top_k], or [padded] with block. Filled
                        // with tokens * top_k where no slot lies
    int32_t *positions; // optional out [tokens * top_k]: slot -> position, -1 absent
    void *counts;       // optional out [num_experts]
    moe_dtype count_dtype; // int32 or int64
    // Block-aligned form
    int32_t block;          // 0: contiguous
    int64_t padded;         // moe_sort_padded_size(tokens * top_k, num_experts, block)
    int32_t *block_experts; // out [ceil(padded / block)], -1 past the end
    int32_t *num_padded;    // out [1]: positions that belong to an expert's blocks
} moek_sort_args;

/// The whole problem, on one thread. Outputs overlap nothing; tokens * top_k and padded fit int32.
typedef void moek_sort_fn(const moek_sort_args *args);

#endif
