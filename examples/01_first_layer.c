// SPDX-License-Identifier: Apache-2.0
// A Mixture-of-Experts layer in bf16: 4 tokens, 8 experts, 2 chosen for each token.
#include <moe/moe.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 4, H = 64, I = 32, E = 8, K = 2 };
static uint16_t x[T * H], out[T * H];                    // bf16
static uint16_t gate_up[E * 2 * I * H], down[E * H * I]; // [E, 2I, H], [E, H, I]
static float logits[T * E] = {0, 1, 2, 3, 3, 2, 1, 0};   // of the router

static void check(moe_status status)
{
    if (status != MOE_OK) { // the message names the call, the field, both values, and what works
        (void)fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        exit(1);
    }
}

int main(void)
{
    for (int i = 0; i < E * 2 * I * H; i++) {
        gate_up[i] = 0x3D00; // 1/32
    }
    for (int i = 0; i < E * H * I; i++) {
        down[i] = 0x3D00;
    }
    for (int i = 0; i < T * H; i++) {
        x[i] = 0x3F80; // 1
    }

    // What the layer computes. Zero is unset: what has no default is refused until it is said.
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = T, d.hidden = H, d.inter = I, d.num_experts = E, d.top_k = K;
    d.x_dtype = MOE_BF16;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_BF16;
    d.routing = MOE_ROUTING_FROM_LOGITS;
    d.route.scoring = MOE_SCORING_SOFTMAX, d.route.renormalise = MOE_RENORM_SUM;
    d.activation = MOE_ACT_SILU, d.gate_up = MOE_GATE_FIRST, d.weight_stage = MOE_WEIGHT_OUTPUT;

    // Once per process, once per shape, once per layer.
    moe_context *ctx;
    moe_plan *plan;
    moe_weights *weights;
    check(moe_context_create(NULL, &ctx));
    check(moe_plan_create(ctx, &d, &plan));
    moe_weights_source w = moe_weights_source_default();
    w.gemm[0].values = moe_tensor_3d(gate_up, MOE_BF16, E, 2 * I, H);
    w.gemm[1].values = moe_tensor_3d(down, MOE_BF16, E, H, I);
    check(moe_weights_wrap(plan, &w, &weights)); // reads them where they lie

    // As often as there are tokens: no allocation, no lock, the same bits whatever the batch.
    size_t bytes, align;
    check(moe_plan_workspace(plan, T, &bytes, &align));
    void *workspace = aligned_alloc(align, (bytes + align - 1) / align * align);
    moe_run_args a = moe_run_args_default();
    a.num_tokens = T;
    a.x = moe_tensor_2d(x, MOE_BF16, T, H);
    a.logits = moe_tensor_2d(logits, MOE_F32, T, E);
    a.out = moe_tensor_2d(out, MOE_BF16, T, H);
    check(moe_run(plan, weights, &a, workspace, bytes, NULL));

    // gate = up = 64/32 = 2, h = 2 sigmoid(2) 2 = 3.52, 32/32 of it, weights that add up to 1
    printf("out[0] = bf16 0x%04X (3.52 is 0x4061)\n", out[0]);
    free(workspace);
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    moe_context_destroy(ctx);
    return out[0] != 0x4061;
}
