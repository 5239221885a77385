// SPDX-License-Identifier: Apache-2.0
// glu: activation times up. Contract between the layer and its kernels.
//   y[i, j] = act(gate[i, j], up[i, j]) in f32, one rounding to y's dtype. docs/numerics.md#glu
#ifndef MOEI_OPS_GLU_H
#define MOEI_OPS_GLU_H

#include "core/check.h"
#include "moe/ops.h"
#include "ops/backend.h"

/// Besides the public activations: y = sigmoid(x), for the gate of shared experts.
#define MOEI_ACT_SIGMOID 100

typedef struct moei_activation_params {
    moe_activation activation;
    float alpha, beta, linear_beta, limit;
} moei_activation_params;

typedef struct moek_glu_args {
    moei_activation_params act;
    const uint8_t *x;
    moe_dtype x_dtype;
    int64_t x_row_stride;                 // bytes
    int64_t gate_offset, up_offset, step; // elements within a row: gate j at gate_offset + j*step
    uint8_t *y;
    moe_dtype y_dtype;
    int64_t y_row_stride;  // bytes
    int64_t inter;         // I
    int64_t rows;          // rows in memory; with counts rows of one batch
    int32_t batches;       // 1 without counts
    const int32_t *counts; // [batches]; NULL: all rows
    const int32_t *total;  // rows to do = total[0] where given (device-side), else `rows`
    int64_t x_batch_stride, y_batch_stride; // bytes
} moek_glu_args;

/// Rows [r0, r1) of batch b.
typedef void moek_glu_fn(const moek_glu_args *args, int32_t b, int64_t r0, int64_t r1);

/// Checks that every parameter is one that the activation has, and that those it needs are set.
/// Never ignores one. `call` heads the message.
moe_status moei_activation_check(const moei_activation_params *act, moe_gate_up gate_up,
                                 const char *call);

/// Offsets of gate and up in a row of 2I (or I) products.
void moei_glu_order(moe_activation activation, moe_gate_up gate_up, int64_t inter,
                    int64_t *gate_offset, int64_t *up_offset, int64_t *step);

#endif
