// SPDX-License-Identifier: Apache-2.0
// The public headers in a strict C++11 program: the defaults, enumerators as constants, a plan.
#include <cstdio>
#include <moe/io.h>
#include <moe/moe.h>
#include <type_traits>

static_assert(std::is_standard_layout<moe_layer_desc>::value, "descriptors are plain data");
static_assert(std::is_standard_layout<moe_run_args>::value, "arguments are plain data");
static_assert(MOE_BF16 == 2 && MOE_OK == 0, "enumerators are constants");

int main()
{
    moe_context_desc context = moe_context_desc_default();
    moe_layer_desc d = moe_layer_desc_default();
    moe_context *ctx = nullptr;
    moe_plan *plan = nullptr;
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
    int rows = 0;
    const bool good = moe_context_create(&context, &ctx) == MOE_OK &&
                      moe_query_support(
                          ctx, &d,
                          [](void *self, const moe_support *) {
                              *static_cast<int *>(self) += 1;
                              return 0;
                          },
                          &rows) == MOE_OK &&
                      rows > 0 && moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                      moe_plan_level(plan) >= MOE_DET_BATCH;
    moe_plan_destroy(plan);
    moe_context_destroy(ctx);
    std::printf("%d passed, %d failed\n", good ? 1 : 0, good ? 0 : 1);
    return good ? 0 : 1;
}
