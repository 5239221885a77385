// SPDX-License-Identifier: Apache-2.0
// route: which options go together, checks of views, and the public call.
#include "ops/route.h"

#include <inttypes.h>

#include "core/tensor.h"

static const char *scoring_name(moe_scoring scoring)
{
    switch (scoring) {
    case MOE_SCORING_SOFTMAX:
        return "softmax";
    case MOE_SCORING_SIGMOID:
        return "sigmoid";
    case MOE_SCORING_SQRTSOFTPLUS:
        return "sqrtsoftplus";
    case MOE_SCORING_SOFTMAX_SELECTED:
        return "softmax_selected";
    case MOE_SCORING_SIGMOID_SELECTED:
        return "sigmoid_selected";
    case MOE_SCORING_SPARSEMIXER:
        return "sparsemixer";
    default:
        return "unknown";
    }
}

static bool finite_not_negative(float x)
{
    return x >= 0.0f && x <= 3.40282347e38f;
}

static moe_status check_fields(const moe_route_desc *d, const char *call)
{
    MOE_REQUIRE(d->scoring != MOE_SCORING_UNSET, MOE_E_UNSET,
                "%s: route.scoring is unset; set one of MOE_SCORING_*", call);
    MOE_REQUIRE(d->scoring >= MOE_SCORING_SOFTMAX && d->scoring <= MOE_SCORING_SPARSEMIXER,
                MOE_E_ARGUMENT, "%s: route.scoring = %d, must be %d..%d", call, (int)d->scoring,
                MOE_SCORING_SOFTMAX, MOE_SCORING_SPARSEMIXER);
    MOE_REQUIRE(d->renormalise != MOE_RENORM_UNSET, MOE_E_UNSET,
                "%s: route.renormalise is unset; set MOE_RENORM_NONE, _SUM or _CLAMPED", call);
    MOE_REQUIRE(d->renormalise >= MOE_RENORM_NONE && d->renormalise <= MOE_RENORM_CLAMPED,
                MOE_E_ARGUMENT, "%s: route.renormalise = %d, must be %d..%d", call,
                (int)d->renormalise, MOE_RENORM_NONE, MOE_RENORM_CLAMPED);
    MOE_REQUIRE(d->select_on >= MOE_SELECT_DEFAULT && d->select_on <= MOE_SELECT_LOGITS,
                MOE_E_ARGUMENT, "%s: route.select_on = %d, must be %d..%d", call, (int)d->select_on,
                MOE_SELECT_DEFAULT, MOE_SELECT_LOGITS);
    const struct {
        const char *name;
        int32_t value;
    } flags[] = {{"correction_bias", d->correction_bias},
                 {"scale_tensor", d->scale_tensor},
                 {"group_mask_zero", d->group_mask_zero},
                 {"renorm_shared", d->renorm_shared},
                 {"hash_table", d->hash_table}};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        MOE_REQUIRE(flags[i].value == 0 || flags[i].value == 1, MOE_E_ARGUMENT,
                    "%s: route.%s = %d, must be 0 or 1", call, flags[i].name, (int)flags[i].value);
    }
    const struct {
        const char *name;
        float value;
    } numbers[] = {
        {"renorm_eps", d->renorm_eps}, {"scale", d->scale}, {"jitter_eps", d->jitter_eps}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        MOE_REQUIRE(finite_not_negative(numbers[i].value), MOE_E_ARGUMENT,
                    "%s: route.%s = %g, must be finite and at least 0", call, numbers[i].name,
                    (double)numbers[i].value);
    }
    return MOE_OK;
}

static moe_status check_sizes(const moe_route_desc *d, int32_t num_experts, int32_t top_k,
                              const char *call)
{
    MOE_REQUIRE(num_experts >= 1 && num_experts <= MOEI_ROUTE_MAX_EXPERTS, MOE_E_ARGUMENT,
                "%s: num_experts = %d, must be 1..%d", call, (int)num_experts,
                MOEI_ROUTE_MAX_EXPERTS);
    const struct {
        const char *name;
        int32_t value;
    } counts[] = {{"zero_experts", d->zero_experts},
                  {"shared_scores", d->shared_scores},
                  {"append_shared", d->append_shared}};
    int64_t rows = num_experts;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        MOE_REQUIRE(counts[i].value >= 0, MOE_E_ARGUMENT, "%s: route.%s = %d, must be at least 0",
                    call, counts[i].name, (int)counts[i].value);
        rows += counts[i].value;
    }
    MOE_REQUIRE(rows <= MOEI_ROUTE_MAX_ROWS, MOE_E_ARGUMENT,
                "%s: num_experts = %d with route.zero_experts = %d, shared_scores = %d and "
                "append_shared = %d is %" PRId64 ", at most %d work",
                call, (int)num_experts, (int)d->zero_experts, (int)d->shared_scores,
                (int)d->append_shared, rows, MOEI_ROUTE_MAX_ROWS);
    MOE_REQUIRE(top_k >= 1 && top_k <= num_experts + d->zero_experts, MOE_E_ARGUMENT,
                "%s: top_k = %d, must be 1..%d (num_experts = %d, route.zero_experts = %d)", call,
                (int)top_k, (int)(num_experts + d->zero_experts), (int)num_experts,
                (int)d->zero_experts);
    return MOE_OK;
}

static moe_status check_groups(const moe_route_desc *d, int32_t num_experts, int32_t top_k,
                               const char *call)
{
    MOE_REQUIRE(d->num_groups >= 0 && d->top_groups >= 0, MOE_E_ARGUMENT,
                "%s: route.num_groups = %d, top_groups = %d, must be at least 0", call,
                (int)d->num_groups, (int)d->top_groups);
    MOE_REQUIRE(d->group_score >= MOE_GROUP_SCORE_UNSET &&
                    d->group_score <= MOE_GROUP_SCORE_TOP2_SUM,
                MOE_E_ARGUMENT, "%s: route.group_score = %d, must be %d..%d", call,
                (int)d->group_score, MOE_GROUP_SCORE_UNSET, MOE_GROUP_SCORE_TOP2_SUM);
    if (d->num_groups == 0) {
        MOE_REQUIRE(d->top_groups == 0 && d->group_score == 0 && d->group_mask_zero == 0,
                    MOE_E_ARGUMENT,
                    "%s: route.num_groups = 0, but top_groups = %d, group_score = %d, "
                    "group_mask_zero = %d; groups off needs all four 0",
                    call, (int)d->top_groups, (int)d->group_score, (int)d->group_mask_zero);
        return MOE_OK;
    }
    MOE_REQUIRE(d->top_groups <= d->num_groups, MOE_E_ARGUMENT,
                "%s: route.top_groups = %d exceeds num_groups = %d", call, (int)d->top_groups,
                (int)d->num_groups);
    if (d->num_groups == 1) { // one group of all: every choice of the others means the same
        return MOE_OK;
    }
    MOE_REQUIRE(d->top_groups > 0, MOE_E_UNSET,
                "%s: route.top_groups is unset with num_groups = %d", call, (int)d->num_groups);
    MOE_REQUIRE(d->group_score != MOE_GROUP_SCORE_UNSET, MOE_E_UNSET,
                "%s: route.group_score is unset with num_groups = %d", call, (int)d->num_groups);
    MOE_REQUIRE(num_experts % d->num_groups == 0, MOE_E_ARGUMENT,
                "%s: num_experts = %d is not a multiple of route.num_groups = %d", call,
                (int)num_experts, (int)d->num_groups);
    const int32_t size = num_experts / d->num_groups;
    MOE_REQUIRE(d->group_score != MOE_GROUP_SCORE_TOP2_SUM || size >= 2, MOE_E_ARGUMENT,
                "%s: route.group_score is the sum of two keys, but num_experts = %d in "
                "num_groups = %d leave %d expert a group; MOE_GROUP_SCORE_MAX works",
                call, (int)num_experts, (int)d->num_groups, (int)size);
    MOE_REQUIRE(top_k <= d->top_groups * size, MOE_E_ARGUMENT,
                "%s: top_k = %d exceeds the %d experts of route.top_groups = %d groups", call,
                (int)top_k, (int)(d->top_groups * size), (int)d->top_groups);
    MOE_REQUIRE(d->zero_experts == 0, MOE_E_UNSUPPORTED,
                "%s: route.num_groups = %d with zero_experts = %d: zero experts belong to no "
                "group; num_groups = 0 works",
                call, (int)d->num_groups, (int)d->zero_experts);
    return MOE_OK;
}

static moe_status check_normalisation(const moe_route_desc *d, const char *call)
{
    MOE_REQUIRE(d->renormalise != MOE_RENORM_NONE || !(d->renorm_eps > 0.0f), MOE_E_ARGUMENT,
                "%s: route.renorm_eps = %g, but renormalise is MOE_RENORM_NONE", call,
                (double)d->renorm_eps);
    MOE_REQUIRE(!d->renorm_shared || d->renormalise != MOE_RENORM_NONE, MOE_E_ARGUMENT,
                "%s: route.renorm_shared = 1, but renormalise is MOE_RENORM_NONE", call);
    MOE_REQUIRE(!d->renorm_shared || d->shared_scores > 0, MOE_E_ARGUMENT,
                "%s: route.renorm_shared = 1, but shared_scores = 0", call);
    // Their scores would depend on which rows the sum of a softmax runs over.
    MOE_REQUIRE(d->shared_scores == 0 || d->scoring == MOE_SCORING_SIGMOID ||
                    d->scoring == MOE_SCORING_SQRTSOFTPLUS ||
                    d->scoring == MOE_SCORING_SIGMOID_SELECTED,
                MOE_E_UNSUPPORTED,
                "%s: route.shared_scores = %d with scoring %s; sigmoid, sqrtsoftplus and "
                "sigmoid_selected work",
                call, (int)d->shared_scores, scoring_name(d->scoring));
    return MOE_OK;
}

static moe_status check_selection(const moe_route_desc *d, int32_t num_experts, int32_t top_k,
                                  const char *call)
{
    const bool selected_only = d->scoring >= MOE_SCORING_SOFTMAX_SELECTED;
    MOE_REQUIRE(!selected_only || d->select_on != MOE_SELECT_SCORES, MOE_E_ARGUMENT,
                "%s: route.select_on = %d (scores), but scoring %s selects on logits", call,
                (int)d->select_on, scoring_name(d->scoring));
    MOE_REQUIRE(d->jitter_eps == 0.0f || d->scoring == MOE_SCORING_SPARSEMIXER, MOE_E_ARGUMENT,
                "%s: route.jitter_eps = %g belongs to sparsemixer, but scoring is %s", call,
                (double)d->jitter_eps, scoring_name(d->scoring));
    if (d->hash_table) {
        MOE_REQUIRE(d->scoring != MOE_SCORING_SPARSEMIXER, MOE_E_ARGUMENT,
                    "%s: route.hash_table = 1, but scoring sparsemixer selects by itself", call);
        MOE_REQUIRE(d->num_groups <= 1, MOE_E_ARGUMENT,
                    "%s: route.hash_table = 1 with num_groups = %d: a table selects, groups have "
                    "no effect",
                    call, (int)d->num_groups);
        MOE_REQUIRE(!d->correction_bias, MOE_E_ARGUMENT,
                    "%s: route.hash_table = 1 with correction_bias = 1: a table selects, a bias "
                    "has no effect",
                    call);
        MOE_REQUIRE(d->select_on == MOE_SELECT_DEFAULT, MOE_E_ARGUMENT,
                    "%s: route.hash_table = 1 with select_on = %d: a table selects, a key has no "
                    "effect",
                    call, (int)d->select_on);
    }
    if (d->scoring == MOE_SCORING_SPARSEMIXER) {
        MOE_REQUIRE(top_k == 2, MOE_E_ARGUMENT,
                    "%s: top_k = %d, but route.scoring sparsemixer chooses 2", call, (int)top_k);
        MOE_REQUIRE(num_experts >= 2, MOE_E_ARGUMENT,
                    "%s: num_experts = %d, route.scoring sparsemixer needs at least 2", call,
                    (int)num_experts);
        MOE_REQUIRE(d->renormalise == MOE_RENORM_NONE, MOE_E_ARGUMENT,
                    "%s: route.renormalise = %d, but scoring sparsemixer takes MOE_RENORM_NONE",
                    call, (int)d->renormalise);
        MOE_REQUIRE(!d->correction_bias && d->num_groups <= 1 && d->zero_experts == 0,
                    MOE_E_UNSUPPORTED,
                    "%s: route.scoring sparsemixer with correction_bias = %d, num_groups = %d, "
                    "zero_experts = %d; it has none of them",
                    call, (int)d->correction_bias, (int)d->num_groups, (int)d->zero_experts);
    }
    return MOE_OK;
}

moe_status moei_route_check(const moe_route_desc *desc, int32_t num_experts, int32_t top_k,
                            const char *call)
{
    MOE_TRY(check_fields(desc, call));
    MOE_TRY(check_sizes(desc, num_experts, top_k, call));
    MOE_TRY(check_groups(desc, num_experts, top_k, call));
    MOE_TRY(check_normalisation(desc, call));
    return check_selection(desc, num_experts, top_k, call);
}

void moei_route_resolve(moe_route_desc *desc)
{
    if (desc->scale == 0.0f) {
        desc->scale = 1.0f;
    }
    if (!desc->hash_table) {
        desc->select_on = moei_route_on_logits(desc) ? MOE_SELECT_LOGITS : MOE_SELECT_SCORES;
    }
}

moe_status moei_route_view_check(const moe_tensor *t, const char *call, const char *name,
                                 uint32_t dtypes, int ndim, const int64_t *shape)
{
    MOE_TRY(moei_tensor_check(t, call, name, dtypes, ndim, shape));
    return moei_tensor_check_aligned(t, call, name);
}

// A view that the descriptor calls for must be there; one that it does not call for must not.
static moe_status check_wanted(const moe_tensor *t, bool wanted, const char *call, const char *name,
                               const char *field)
{
    const bool present = t != NULL && moei_tensor_present(t);
    MOE_REQUIRE(present || !wanted, MOE_E_ARGUMENT, "%s: %s is absent, but route.%s asks for it",
                call, name, field);
    MOE_REQUIRE(!present || wanted, MOE_E_ARGUMENT,
                "%s: %s is given, but route.%s is 0: it would be ignored", call, name, field);
    return MOE_OK;
}

static moe_status fill_hash(const moe_route_args *args, const char *call, moek_route_args *a)
{
    const int64_t table_shape[2] = {-1, a->top_k};
    MOE_TRY(moei_route_view_check(&args->hash_table, call, "hash_table", MOEI_DTYPES_ID, 2,
                                  table_shape));
    MOE_TRY(
        moei_route_view_check(&args->token_ids, call, "token_ids", MOEI_DTYPES_ID, 1, &a->tokens));
    MOE_REQUIRE(args->token_ids.dtype == args->hash_table.dtype, MOE_E_DTYPE,
                "%s: token_ids is %s, hash_table is %s; both must be the same", call,
                moe_dtype_name(args->token_ids.dtype), moe_dtype_name(args->hash_table.dtype));
    a->hash_table = moei_tensor_data(&args->hash_table);
    a->token_ids = moei_tensor_data(&args->token_ids);
    a->hash_dtype = args->hash_table.dtype;
    a->vocabulary = args->hash_table.shape[0];
    a->hash_token_stride = args->hash_table.stride[0];
    return MOE_OK;
}

static const float *f32_data(const moe_tensor *t)
{
    return (const float *)(const void *)moei_tensor_data(t);
}

static int32_t *i32_data(const moe_tensor *t)
{
    return (int32_t *)(void *)moei_tensor_data(t);
}

// Sizes and what selection and weights read.
static moe_status fill_inputs(const moe_route_args *args, const char *call, moek_route_args *a)
{
    const moe_route_desc *d = &args->desc;
    const uint32_t f32 = MOEI_DTYPE_BIT(MOE_F32);
    const int64_t keyed = (int64_t)args->num_experts + d->zero_experts;
    const int64_t logit_shape[2] = {-1, moei_route_rows(d, args->num_experts)};
    const int64_t one = 1;
    const bool hash = d->hash_table != 0;
    MOE_TRY(
        moei_route_view_check(&args->logits, call, "logits", MOEI_DTYPES_FLOAT, 2, logit_shape));
    MOE_TRY(check_wanted(&args->correction_bias, d->correction_bias != 0, call, "correction_bias",
                         "correction_bias"));
    MOE_TRY(check_wanted(&args->scale_tensor, d->scale_tensor != 0, call, "scale_tensor",
                         "scale_tensor"));
    MOE_TRY(check_wanted(&args->hash_table, hash, call, "hash_table", "hash_table"));
    MOE_TRY(check_wanted(&args->token_ids, hash, call, "token_ids", "hash_table"));
    *a = (moek_route_args){.desc = *d,
                           .tokens = args->logits.shape[0],
                           .num_experts = args->num_experts,
                           .top_k = args->top_k,
                           .logits = moei_tensor_data(&args->logits),
                           .logit_dtype = args->logits.dtype,
                           .logit_token_stride = moei_tensor_stride_bytes(&args->logits, 0)};
    moei_route_resolve(&a->desc);
    if (d->correction_bias) {
        MOE_TRY(
            moei_route_view_check(&args->correction_bias, call, "correction_bias", f32, 1, &keyed));
        a->correction_bias = f32_data(&args->correction_bias);
    }
    if (d->scale_tensor) {
        MOE_TRY(moei_route_view_check(&args->scale_tensor, call, "scale_tensor", f32, 1, &one));
        a->scale_tensor = f32_data(&args->scale_tensor);
    }
    if (hash) {
        MOE_TRY(fill_hash(args, call, a));
    }
    if (moei_tensor_present(&args->num_valid)) {
        MOE_TRY(moei_route_view_check(&args->num_valid, call, "num_valid", MOEI_DTYPE_BIT(MOE_I32),
                                      1, &one));
        a->num_valid = i32_data(&args->num_valid);
    }
    return MOE_OK;
}

// Replicas, expert_map, load.
static moe_status fill_mapping(const moe_route_args *args, const char *call, moek_route_args *a)
{
    const uint32_t i32 = MOEI_DTYPE_BIT(MOE_I32);
    const bool replicas = moei_tensor_present(&args->replica_table);
    const bool mapped = moei_tensor_present(&args->expert_map);
    MOE_REQUIRE(replicas == moei_tensor_present(&args->replica_count), MOE_E_ARGUMENT,
                "%s: replica_%s is given without replica_%s", call, replicas ? "table" : "count",
                replicas ? "count" : "table");
    MOE_REQUIRE(a->desc.append_shared == 0 || (!replicas && !mapped), MOE_E_UNSUPPORTED,
                "%s: route.append_shared = %d with %s: the appended ids would be taken for mapped "
                "ones; map ids after appending",
                call, (int)a->desc.append_shared, replicas ? "replica_table" : "expert_map");
    MOE_REQUIRE(a->desc.zero_experts == 0 || !replicas, MOE_E_UNSUPPORTED,
                "%s: route.zero_experts = %d with replica_table: their ids would be taken for "
                "physical ones",
                call, (int)a->desc.zero_experts);
    int64_t physical = -1; // any
    if (replicas) {
        const int64_t table_shape[2] = {args->num_experts, -1};
        const int64_t experts = args->num_experts;
        MOE_TRY(moei_route_view_check(&args->replica_table, call, "replica_table", i32, 2,
                                      table_shape));
        MOE_REQUIRE(args->replica_table.shape[1] <= INT32_MAX, MOE_E_SHAPE,
                    "%s: replica_table has %" PRId64 " slots an expert, at most %d work", call,
                    args->replica_table.shape[1], INT32_MAX);
        MOE_TRY(
            moei_route_view_check(&args->replica_count, call, "replica_count", i32, 1, &experts));
        a->replica_table = i32_data(&args->replica_table);
        a->replica_stride = args->replica_table.stride[0];
        a->replica_slots = (int32_t)args->replica_table.shape[1];
        a->replica_count = i32_data(&args->replica_count);
    } else {
        physical = args->num_experts;
    }
    if (mapped) {
        MOE_TRY(moei_route_view_check(&args->expert_map, call, "expert_map", i32, 1, &physical));
        physical = args->expert_map.shape[0];
        a->expert_map = i32_data(&args->expert_map);
    }
    if (moei_tensor_present(&args->load)) {
        MOE_TRY(moei_route_view_check(&args->load, call, "load", i32, 1, &physical));
        physical = args->load.shape[0];
        a->load = i32_data(&args->load);
    }
    a->num_physical = physical < 0 || physical > INT32_MAX ? INT32_MAX : (int32_t)physical;
    return MOE_OK;
}

static moe_status fill_outputs(const moe_route_args *args, const char *call, moek_route_args *a)
{
    const int64_t shape[2] = {a->tokens, (int64_t)a->top_k + a->desc.append_shared};
    const int64_t appended_shape[2] = {a->tokens, a->desc.append_shared};
    const int64_t shared_shape[2] = {a->tokens, a->desc.shared_scores};
    MOE_TRY(moei_route_view_check(&args->ids, call, "ids", MOEI_DTYPES_ID, 2, shape));
    MOE_TRY(moei_route_view_check(&args->weights, call, "weights", MOEI_DTYPES_WEIGHT, 2, shape));
    MOE_TRY(moei_tensor_check_unfolded(&args->ids, call, "ids"));
    MOE_TRY(moei_tensor_check_unfolded(&args->weights, call, "weights"));
    a->ids = moei_tensor_data(&args->ids);
    a->id_dtype = args->ids.dtype;
    a->id_token_stride = args->ids.stride[0];
    a->weights = moei_tensor_data(&args->weights);
    a->weight_dtype = args->weights.dtype;
    a->weight_token_stride = args->weights.stride[0];
    if (moei_tensor_present(&args->shared_gate)) {
        MOE_TRY(check_wanted(&args->shared_gate, a->desc.append_shared > 0, call, "shared_gate",
                             "append_shared"));
        MOE_TRY(moei_route_view_check(&args->shared_gate, call, "shared_gate",
                                      MOEI_DTYPE_BIT(MOE_F32), 2, appended_shape));
        a->shared_gate = f32_data(&args->shared_gate);
        a->shared_gate_stride = args->shared_gate.stride[0];
    }
    MOE_TRY(check_wanted(&args->shared_weights, a->desc.shared_scores > 0, call, "shared_weights",
                         "shared_scores"));
    if (a->desc.shared_scores > 0) {
        MOE_TRY(moei_route_view_check(&args->shared_weights, call, "shared_weights",
                                      MOEI_DTYPE_BIT(MOE_F32), 2, shared_shape));
        MOE_TRY(moei_tensor_check_unfolded(&args->shared_weights, call, "shared_weights"));
        a->shared_weights = (float *)(void *)moei_tensor_data(&args->shared_weights);
        a->shared_weight_stride = args->shared_weights.stride[0];
    }
    return MOE_OK;
}

moe_status moei_route_prepare(const moe_route_args *args, const char *call, moek_route_args *out)
{
    MOE_TRY(moei_route_check(&args->desc, args->num_experts, args->top_k, call));
    MOE_TRY(fill_inputs(args, call, out));
    MOE_TRY(fill_mapping(args, call, out));
    return fill_outputs(args, call, out);
}

moe_status moe_route(const moe_context *ctx, const moe_route_args *args, void *stream)
{
    const char *call = "moe_route";
    moe_route_args known;
    moek_route_args a;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    const moei_view views[] = {{&args->ids, "ids", true},
                               {&args->weights, "weights", true},
                               {&args->shared_weights, "shared_weights", true},
                               {&args->load, "load", true},
                               {&args->logits, "logits", false},
                               {&args->correction_bias, "correction_bias", false},
                               {&args->scale_tensor, "scale_tensor", false},
                               {&args->hash_table, "hash_table", false},
                               {&args->token_ids, "token_ids", false},
                               {&args->shared_gate, "shared_gate", false},
                               {&args->expert_map, "expert_map", false},
                               {&args->replica_table, "replica_table", false},
                               {&args->replica_count, "replica_count", false},
                               {&args->num_valid, "num_valid", false}};
    const size_t num_views = sizeof views / sizeof views[0];
    MOE_TRY(moei_views_check_device(views, num_views, ctx->backend->device, call));
    MOE_TRY(moei_route_prepare(args, call, &a));
    MOE_TRY(moei_views_check_overlap(views, num_views, call));
    const moei_exec exec = moei_exec_make(ctx, stream);
    moei_count_run(ctx, ctx->op_kernel[MOEI_OP_ROUTE]);
    return ctx->backend->route(&exec, ctx->op_kernel[MOEI_OP_ROUTE], &a);
}
