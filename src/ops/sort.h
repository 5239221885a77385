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

/// What a kernel call does.
typedef enum moek_sort_stage {
    MOEK_SORT_COUNT, // cursor[e] becomes the number of slots of expert e among the call's tokens
    MOEK_SORT_PLACE  // cursor[e] is the position of the first of them, and moves on: slots,
                     // positions
} moek_sort_stage;

/// Tokens [t0, t1), a share of the problem; cursor [num_experts] is the share's own. Between the
/// stages the driver turns the counts of all shares into positions, share after share, and writes
/// what the form has besides, padding in `slots` included. Outputs overlap nothing; tokens * top_k
/// and padded fit int32.
typedef void moek_sort_fn(const moek_sort_args *args, moek_sort_stage stage, int64_t t0, int64_t t1,
                          int32_t *cursor);

#endif
