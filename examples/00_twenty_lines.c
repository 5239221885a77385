// SPDX-License-Identifier: Apache-2.0
#include <moe/moe.h>
#include <stdio.h>
static float x[4 * 64] = {1}, y[4 * 64], logits[4 * 8], up[8 * 64 * 64], down[8 * 64 * 32];
static _Alignas(256) char workspace[1 << 20]; // moe_plan_workspace says how much a run takes
int main(void)
{
    moe_context *ctx;
    moe_plan *plan;
    moe_weights *weights;
    moe_layer_desc d = moe_layer_desc_default(); // what is left unset is refused, never guessed
    d.max_tokens = 4, d.hidden = 64, d.inter = 32, d.num_experts = 8, d.top_k = 2;
    d.x_dtype = MOE_F32, d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_F32;
    d.routing = MOE_ROUTING_FROM_LOGITS, d.weight_stage = MOE_WEIGHT_OUTPUT;
    d.route.scoring = MOE_SCORING_SOFTMAX, d.route.renormalise = MOE_RENORM_SUM;
    d.activation = MOE_ACT_SILU, d.gate_up = MOE_GATE_FIRST;
    moe_weights_source w = moe_weights_source_default(); // tensors are used where they lie
    w.gemm[0].values = moe_tensor_3d(up, MOE_F32, 8, 2 * 32, 64);
    w.gemm[1].values = moe_tensor_3d(down, MOE_F32, 8, 64, 32);
    moe_run_args a = moe_run_args_default();
    a.num_tokens = 4, a.logits = moe_tensor_2d(logits, MOE_F32, 4, 8);
    a.x = moe_tensor_2d(x, MOE_F32, 4, 64), a.out = moe_tensor_2d(y, MOE_F32, 4, 64);
    up[0] = up[32 * 64] = down[0] = 1; // expert 0: gate = up = x[0], out[0] = silu(1) = 0.731
    if (moe_context_create(NULL, &ctx) || moe_plan_create(ctx, &d, &plan) ||
        moe_weights_wrap(plan, &w, &weights) ||
        moe_run(plan, weights, &a, workspace, sizeof workspace, NULL)) {
        return puts(moe_last_error()), 1; // names the field, both values, and what works
    }
    return printf("%g\n", (double)y[0]) < 0; // 0.366: half of expert 0, half of expert 1's zero
}
