// SPDX-License-Identifier: Apache-2.0
// The public headers in a strict C99 program: the defaults, a view of each rank, a plan.
#include <moe/io.h>
#include <moe/moe.h>
#include <stdio.h>
#include <string.h>

static int visit(void *self, const moe_support *support)
{
    (void)support;
    *(int *)self += 1;
    return 0;
}

int main(void)
{
    const int64_t shape[4] = {2, 3, 4, 5};
    const moe_tensor t = moe_tensor_make(NULL, MOE_BF16, 4, shape);
    moe_context_desc context = moe_context_desc_default();
    moe_layer_desc d = moe_layer_desc_default();
    moe_context *ctx = NULL;
    moe_plan *plan = NULL;
    int rows = 0;
    int good = t.stride[0] == 60 && t.stride[3] == 1 && moe_version() == MOE_VERSION_NUMBER;
    good = good && moe_run_args_default().struct_size == sizeof(moe_run_args) &&
           moe_weights_source_default().struct_size == sizeof(moe_weights_source) &&
           moe_quantize_args_default().struct_size == sizeof(moe_quantize_args) &&
           moe_matrix_layout_default().struct_size == sizeof(moe_matrix_layout) &&
           moe_silu_mul_quantize_args_default().struct_size == sizeof(moe_silu_mul_quantize_args);
    context.num_threads = 1;
    d.max_tokens = 1;
    d.hidden = d.inter = 8;
    d.num_experts = 4;
    d.top_k = 1;
    d.x_dtype = MOE_F32;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_F32;
    d.routing = MOE_ROUTING_GIVEN;
    d.weight_stage = MOE_WEIGHT_OUTPUT;
    d.activation = MOE_ACT_RELU2_NO_MUL;
    good = good && moe_context_create(&context, &ctx) == MOE_OK &&
           moe_query_support(ctx, &d, visit, &rows) == MOE_OK && rows > 0 &&
           moe_plan_create(ctx, &d, &plan) == MOE_OK && moe_plan_level(plan) >= MOE_DET_BATCH;
    moe_plan_destroy(plan);
    moe_context_destroy(ctx);
    (void)printf("%d passed, %d failed\n", good, !good);
    return !good;
}
