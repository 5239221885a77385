// SPDX-License-Identifier: Apache-2.0
// A layer whose experts are larger than 32-bit offsets reach (moec_device_run in checkmoe.h).
#ifndef MOE_CHECKMOE_CHECK_BIG_H
#define MOE_CHECKMOE_CHECK_BIG_H

#include "checkmoe/checkmoe.h"

typedef struct moec_big_sizes {
    int32_t experts;
    int64_t hidden, inter;
    int64_t period; // elements after which weights repeat; prime, so that no two rows are the same
    int32_t every;  // one weight of so many is not 0; at least 20 of a row of hidden
} moec_big_sizes;

/// Gate and up of an expert span more than 2^32 bytes, down more than 2^31: 19.3 GB.
extern const moec_big_sizes moec_big_full;

/// Bytes of the weights.
size_t moec_big_bytes(const moec_big_sizes *sizes);

/// Runs the layer on a context, by its fastest rows and by those of level KERNEL, and compares
/// every output with integers, which the sums are. NO_MEMORY, and nothing is counted, where the
/// weights find no room; other failures are counted.
moe_status moec_big_check(moec_run *run, moe_context *ctx, const moec_big_sizes *sizes);

#endif
