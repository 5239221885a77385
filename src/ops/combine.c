// SPDX-License-Identifier: Apache-2.0
// combine: checks and the public call.
#include "ops/combine.h"

#include <inttypes.h>

#include "core/tensor.h"

moe_status moe_combine(const moe_context *ctx, const moe_combine_args *args, void *stream)
{
    const char *call = "moe_combine";
    moe_combine_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    const moei_view views[] = {{&args->out, "out", true},        {&args->slots, "slots", false},
                               {&args->ids, "ids", false},       {&args->weights, "weights", false},
                               {&args->shared, "shared", false}, {&args->bias, "bias", false}};
    const size_t num_views = sizeof views / sizeof views[0];
    MOE_TRY(moei_views_check_device(views, num_views, ctx->backend->device, call));
    MOE_REQUIRE(args->accumulate == 0 || args->accumulate == 1, MOE_E_ARGUMENT,
                "%s: accumulate = %d, must be 0 or 1", call, (int)args->accumulate);
    const int64_t any[3] = {-1, -1, -1};
    MOE_TRY(moei_tensor_check(&args->slots, call, "slots", MOEI_DTYPES_FLOAT, 3, any));
    const int64_t tokens = args->slots.shape[0];
    const int64_t top_k = args->slots.shape[1];
    const int64_t width = args->slots.shape[2];
    MOE_REQUIRE(top_k <= INT32_MAX, MOE_E_SHAPE, "%s: slots has %" PRId64 " slots a token", call,
                top_k);
    const int64_t out_shape[2] = {tokens, width};
    const int64_t id_shape[2] = {tokens, top_k};
    MOE_TRY(moei_tensor_check(&args->out, call, "out", MOEI_DTYPES_FLOAT, 2, out_shape));
    MOE_TRY(moei_tensor_check_unfolded(&args->out, call, "out"));
    moek_combine_args a = {.tokens = tokens,
                           .width = width,
                           .slots_per_token = (int32_t)top_k,
                           .slots = moei_tensor_data(&args->slots),
                           .slot_dtype = args->slots.dtype,
                           .slot_token_stride = moei_tensor_stride_bytes(&args->slots, 0),
                           .slot_stride = moei_tensor_stride_bytes(&args->slots, 1),
                           .accumulate = args->accumulate != 0,
                           .out = moei_tensor_data(&args->out),
                           .out_dtype = args->out.dtype,
                           .out_token_stride = moei_tensor_stride_bytes(&args->out, 0)};
    if (moei_tensor_present(&args->ids)) {
        MOE_TRY(moei_tensor_check(&args->ids, call, "ids", MOEI_DTYPES_ID, 2, id_shape));
        a.ids = moei_tensor_data(&args->ids);
        a.id_dtype = args->ids.dtype;
        a.id_token_stride = args->ids.stride[0];
    }
    if (moei_tensor_present(&args->weights)) {
        MOE_TRY(
            moei_tensor_check(&args->weights, call, "weights", MOEI_DTYPES_WEIGHT, 2, id_shape));
        a.weights = moei_tensor_data(&args->weights);
        a.weight_dtype = args->weights.dtype;
        a.weight_token_stride = args->weights.stride[0];
    }
    if (moei_tensor_present(&args->shared)) {
        MOE_TRY(moei_tensor_check(&args->shared, call, "shared", MOEI_DTYPES_FLOAT, 2, out_shape));
        a.shared = moei_tensor_data(&args->shared);
        a.shared_dtype = args->shared.dtype;
        a.shared_token_stride = moei_tensor_stride_bytes(&args->shared, 0);
        a.num_shared = 1;
    }
    if (moei_tensor_present(&args->bias)) {
        MOE_TRY(moei_tensor_check(&args->bias, call, "bias", MOEI_DTYPES_FLOAT, 1, &width));
        a.bias = moei_tensor_data(&args->bias);
        a.bias_dtype = args->bias.dtype;
    }
    MOE_TRY(moei_views_check_overlap(views, num_views, call));
    const moei_exec exec = moei_exec_make(ctx, stream);
    moei_count_run(ctx, ctx->op_kernel[MOEI_OP_COMBINE]);
    return ctx->backend->combine(&exec, ctx->op_kernel[MOEI_OP_COMBINE], &a);
}
