// SPDX-License-Identifier: Apache-2.0
// combine: a token's slots to its output. Contract between the layer and its kernels.
//   out[t] = round(((0 + slot 0 + slot 1 + ..) + identity + bias + shared) + previous out), f32
#ifndef MOEI_OPS_COMBINE_H
#define MOEI_OPS_COMBINE_H

#include "core/check.h"
#include "moe/ops.h"
#include "ops/backend.h"

typedef struct moek_combine_args {
    int64_t tokens, width;
    int32_t slots_per_token;
    const int32_t *num_valid; // NULL: all tokens
    // Tokens in batches: token t is skipped where t % batch_rows >= batch_counts[t / batch_rows].
    const int32_t *batch_counts; // NULL: no batches
    int64_t batch_rows;
    const uint8_t *slots; // NULL: none
    moe_dtype slot_dtype;
    int64_t slot_token_stride, slot_stride; // bytes
    const void *ids;                        // NULL: every slot is there; negative: absent, not read
    moe_dtype id_dtype;
    int64_t id_token_stride; // elements
    int32_t first_absent;    // ids >= this are absent too (0: no limit)
    const void *weights;     // NULL: 1
    moe_dtype weight_dtype;
    int64_t weight_token_stride; // elements
    // Zero experts: a slot whose router_ids entry lies in [identity_first, identity_first +
    // identity_count) adds identity_weights * x, rounded to slot_dtype, in its place.
    const int32_t *router_ids; // NULL: none
    int32_t identity_first, identity_count;
    const float *identity_weights; // NULL: 1
    int64_t router_token_stride;   // elements, of both
    const uint8_t *x;
    moe_dtype x_dtype;
    int64_t x_token_stride; // bytes
    const uint8_t *bias;    // NULL: none
    moe_dtype bias_dtype;
    // Added after the slots, in this order; s = 0 .. num_shared - 1
    const uint8_t *shared;
    moe_dtype shared_dtype;
    int64_t shared_token_stride, shared_stride; // bytes
    int32_t num_shared;
    bool accumulate;
    uint8_t *out;
    moe_dtype out_dtype;
    int64_t out_token_stride; // bytes
} moek_combine_args;

/// Tokens [t0, t1).
typedef void moek_combine_fn(const moek_combine_args *args, int64_t t0, int64_t t1);

#endif
