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

/// The whole problem, on one thread. Outputs overlap nothing; tokens * top_k and padded fit int32.
typedef void moek_sort_fn(const moek_sort_args *args);

#endif
