// SPDX-License-Identifier: Apache-2.0
// glu: the table of activations with the parameters each has, checks, and the public call.
#include "ops/glu.h"

#include "core/tensor.h"

typedef enum parameter { UNUSED, OPTIONAL, REQUIRED } parameter;

static const struct {
    const char *name;
    bool gated;
    parameter alpha, beta, linear_beta, limit;
} activations[] = {
    [MOE_ACT_UNSET] = {"unset", true, UNUSED, UNUSED, UNUSED, UNUSED},
    [MOE_ACT_SILU] = {"silu", true, UNUSED, UNUSED, UNUSED, OPTIONAL},
    [MOE_ACT_GELU] = {"gelu", true, UNUSED, UNUSED, UNUSED, UNUSED},
    [MOE_ACT_GELU_TANH] = {"gelu_tanh", true, UNUSED, UNUSED, UNUSED, UNUSED},
    [MOE_ACT_SWIGLUOAI] = {"swigluoai", true, REQUIRED, REQUIRED, UNUSED, OPTIONAL},
    [MOE_ACT_SWIGLUSTEP] = {"swiglustep", true, UNUSED, UNUSED, UNUSED, REQUIRED},
    [MOE_ACT_SITU] = {"situ", true, UNUSED, REQUIRED, OPTIONAL, UNUSED},
    [MOE_ACT_SILU_NO_MUL] = {"silu_no_mul", false, UNUSED, UNUSED, UNUSED, UNUSED},
    [MOE_ACT_GELU_NO_MUL] = {"gelu_no_mul", false, UNUSED, UNUSED, UNUSED, UNUSED},
    [MOE_ACT_GELU_TANH_NO_MUL] = {"gelu_tanh_no_mul", false, UNUSED, UNUSED, UNUSED, UNUSED},
    [MOE_ACT_RELU2_NO_MUL] = {"relu2_no_mul", false, UNUSED, UNUSED, UNUSED, UNUSED},
};
#define NUM_ACTIVATIONS ((moe_activation)(sizeof activations / sizeof activations[0]))

const char *moe_activation_name(moe_activation activation)
{
    return activation >= 0 && activation < NUM_ACTIVATIONS ? activations[activation].name
                                                           : "unknown activation";
}

int moe_activation_gated(moe_activation activation)
{
    return activation > 0 && activation < NUM_ACTIVATIONS && activations[activation].gated;
}

static moe_status check_parameter(parameter rule, float value, const char *name,
                                  const char *activation, const char *call)
{
    MOE_REQUIRE(rule != UNUSED || value == 0.0f, MOE_E_UNSUPPORTED,
                "%s: %s = %g, activation %s has none; set it to 0", call, name, (double)value,
                activation);
    MOE_REQUIRE(rule != REQUIRED || value != 0.0f, MOE_E_UNSET,
                "%s: %s is unset (0), activation %s needs it", call, name, activation);
    MOE_REQUIRE(value >= 0.0f && value <= 3.4e38f, MOE_E_ARGUMENT,
                "%s: %s = %g, must be finite and >= 0", call, name, (double)value);
    return MOE_OK;
}

moe_status moei_activation_check(const moei_activation_params *act, moe_gate_up gate_up,
                                 const char *call)
{
    MOE_REQUIRE(act->activation != MOE_ACT_UNSET, MOE_E_UNSET, "%s: activation is unset", call);
    MOE_REQUIRE(act->activation > 0 && act->activation < NUM_ACTIVATIONS, MOE_E_ARGUMENT,
                "%s: activation = %d, must be 1..%d", call, (int)act->activation,
                (int)NUM_ACTIVATIONS - 1);
    const char *name = activations[act->activation].name;
    MOE_TRY(check_parameter(activations[act->activation].alpha, act->alpha, "alpha", name, call));
    MOE_TRY(check_parameter(activations[act->activation].beta, act->beta, "beta", name, call));
    MOE_TRY(check_parameter(activations[act->activation].linear_beta, act->linear_beta,
                            "linear_beta", name, call));
    MOE_TRY(check_parameter(activations[act->activation].limit, act->limit, "limit", name, call));
    if (activations[act->activation].gated) {
        MOE_REQUIRE(gate_up != MOE_GATE_UP_UNSET, MOE_E_UNSET,
                    "%s: gate_up is unset, activation %s has a gate", call, name);
        MOE_REQUIRE(gate_up > 0 && gate_up <= MOE_UP_GATE_INTERLEAVED, MOE_E_ARGUMENT,
                    "%s: gate_up = %d, must be 1..%d", call, (int)gate_up, MOE_UP_GATE_INTERLEAVED);
    } else {
        MOE_REQUIRE(gate_up == MOE_GATE_UP_UNSET, MOE_E_UNSUPPORTED,
                    "%s: gate_up = %d, activation %s has no gate; set it to 0", call, (int)gate_up,
                    name);
    }
    return MOE_OK;
}

void moei_glu_order(moe_activation activation, moe_gate_up gate_up, int64_t inter,
                    int64_t *gate_offset, int64_t *up_offset, int64_t *step)
{
    *gate_offset = 0;
    *up_offset = 0;
    *step = 1;
    if (!moe_activation_gated(activation)) {
        return;
    }
    switch (gate_up) {
    case MOE_GATE_FIRST:
        *up_offset = inter;
        break;
    case MOE_UP_FIRST:
        *gate_offset = inter;
        break;
    case MOE_GATE_UP_INTERLEAVED:
        *up_offset = 1;
        *step = 2;
        break;
    case MOE_UP_GATE_INTERLEAVED:
        *gate_offset = 1;
        *step = 2;
        break;
    default:
        MOE_ASSERT(false);
        break;
    }
}

moe_status moe_glu(const moe_context *ctx, const moe_glu_args *args, void *stream)
{
    const char *call = "moe_glu";
    moe_glu_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    const moei_view views[] = {
        {&args->y, "y", true}, {&args->x, "x", false}, {&args->counts, "counts", false}};
    MOE_TRY(moei_views_check_device(views, 3, ctx->backend->device, call));
    const moei_activation_params act = {args->activation, args->alpha, args->beta,
                                        args->linear_beta, args->limit};
    MOE_TRY(moei_activation_check(&act, args->gate_up, call));
    const bool batched = args->y.ndim == 3;
    const int ndim = batched ? 3 : 2;
    const int64_t any[3] = {-1, -1, -1};
    MOE_TRY(moei_tensor_check(&args->y, call, "y", MOEI_DTYPES_FLOAT, ndim, any));
    const int64_t inter = args->y.shape[ndim - 1];
    int64_t shape[3] = {args->y.shape[0], args->y.shape[1], 0};
    shape[ndim - 1] = moe_activation_gated(args->activation) != 0 ? 2 * inter : inter;
    MOE_TRY(moei_tensor_check(&args->x, call, "x", MOEI_DTYPES_FLOAT, ndim, shape));
    MOE_TRY(moei_tensor_check_unfolded(&args->y, call, "y"));
    MOE_REQUIRE(batched || !moei_tensor_present(&args->counts), MOE_E_ARGUMENT,
                "%s: counts are given, y is 2-D; they need [E, Tmax, I]", call);
    moek_glu_args a = {.act = act,
                       .x = moei_tensor_data(&args->x),
                       .x_dtype = args->x.dtype,
                       .y = moei_tensor_data(&args->y),
                       .y_dtype = args->y.dtype,
                       .inter = inter,
                       .rows = args->y.shape[ndim - 2],
                       .batches = 1};
    a.x_row_stride = moei_tensor_stride_bytes(&args->x, ndim - 2);
    a.y_row_stride = moei_tensor_stride_bytes(&args->y, ndim - 2);
    moei_glu_order(act.activation, args->gate_up, inter, &a.gate_offset, &a.up_offset, &a.step);
    if (batched) {
        MOE_REQUIRE(args->y.shape[0] <= INT32_MAX, MOE_E_SHAPE, "%s: y has too many batches", call);
        a.batches = (int32_t)args->y.shape[0];
        a.x_batch_stride = moei_tensor_stride_bytes(&args->x, 0);
        a.y_batch_stride = moei_tensor_stride_bytes(&args->y, 0);
        if (moei_tensor_present(&args->counts)) {
            MOE_TRY(moei_tensor_check(&args->counts, call, "counts", MOEI_DTYPE_BIT(MOE_I32), 1,
                                      args->y.shape));
            MOE_TRY(moei_tensor_check_aligned(&args->counts, call, "counts"));
            a.counts = (const int32_t *)(const void *)moei_tensor_data(&args->counts);
            if (ctx->backend->host_memory) {
                MOE_TRY(moei_counts_check(a.counts, a.batches, a.rows, call));
            }
        }
    }
    MOE_TRY(moei_views_check_overlap(views, 3, call));
    const moei_exec exec = moei_exec_make(ctx, stream);
    moei_count_run(ctx, ctx->op_kernel[MOEI_OP_GLU]);
    return ctx->backend->glu(&exec, ctx->op_kernel[MOEI_OP_GLU], &a);
}
