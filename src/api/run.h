// SPDX-License-Identifier: Apache-2.0
// One run of a layer: its checked arguments and its workspace. prepare.c fills it, layer.c works on
// it.
#ifndef MOEI_API_RUN_H
#define MOEI_API_RUN_H

#include <string.h>

#include "api/plan_internal.h"
#include "moe/ops.h"

#define CALL "moe_run"

/// Buffers of one stack of MLPs. Rows: sorted slots, batches of rows, or count x tokens.
typedef struct mlp_buffers {
    moek_quantize_args in;      // x as codes, where gemm[0] quantises
    float *gate_up;             // [rows, rows1]
    void *h;                    // [rows, inter] inter_dtype (f32 where it is quantised next)
    moek_quantize_args h_quant; // h as codes, where gemm[1] quantises
    void *y;                    // [rows, width] partial_dtype
} mlp_buffers;

typedef struct buffers {
    int32_t *route_ids;   // [T, k] as computed
    float *route_weights; // [T, k]
    float *shared_scores; // [T, shared_scores]
    int32_t *router_ids;  // [T, k]
    int32_t *local_ids;   // [T, k]
    float *weights;       // [T, k]
    int32_t *offsets;     // [experts + 1]
    int32_t *slots;       // [T * k]
    void *latent;         // [T, L] x_dtype
    void *weighted_x;     // [rows, width] x_dtype: weight stage INPUT
    float *shared_gate;   // [T]: logits, then their sigmoid
    void *latent_sum;     // [T, L] partial_dtype
    float *latent_out;    // [T, H]
    mlp_buffers routed, shared;
    void *scratch; // the backend's own
} buffers;

/// Steps that are handed to a backend at once; longer lists go in parts.
#define MOEI_RUN_STEPS 32

/// What a run works on: checked views as pointers, and the buffers.
typedef struct run {
    const moe_plan *plan;
    const moe_layer_desc *desc;
    const moe_weights *weights;
    moe_run_args args;
    moek_route_args route; // FROM_LOGITS
    moei_exec exec;
    int64_t tokens;
    int32_t top_k; // slots per token
    const int32_t *num_valid;
    moei_operand x; // as it arrived
    buffers b;
    moei_step *steps; // [MOEI_RUN_STEPS] listed and not yet run, for a backend with run_steps
    int32_t num_steps;
} run;

static inline size_t dtype_bytes(moe_dtype dtype)
{
    return (size_t)moe_dtype_bits(dtype) / 8;
}

static inline int32_t slots_per_token(const moe_plan *plan)
{
    return plan->desc.top_k + plan->desc.route.append_shared;
}

/// True where the second product writes rows straight to out.
static inline bool out_is_direct(const run *r)
{
    return moei_plan_writes_out_directly(r->plan);
}

/// Checks every argument and places the buffers; nothing has been written when it fails.
moe_status moei_run_prepare(run *r, void *workspace, size_t bytes);

#endif
