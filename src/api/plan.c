// SPDX-License-Identifier: Apache-2.0
// The plan: a descriptor is checked, its defaults are resolved, a kernel is chosen for each step.
// Every field is either used or refused; nothing is ignored.
#include <inttypes.h>
#include <string.h>

#include "api/plan_internal.h"

#define MAX_DIM     (1 << 20)
#define MAX_EXPERTS 4096

static moe_status check_range(int64_t value, int64_t low, int64_t high, const char *name,
                              const char *call)
{
    MOE_REQUIRE(value >= low && value <= high, MOE_E_ARGUMENT,
                "%s: desc.%s = %" PRId64 ", must be %" PRId64 "..%" PRId64, call, name, value, low,
                high);
    return MOE_OK;
}

static bool all_zero(const void *p, size_t bytes)
{
    const unsigned char *c = p;
    for (size_t i = 0; i < bytes; i++) {
        if (c[i] != 0) {
            return false;
        }
    }
    return true;
}

static bool is_float(moe_dtype dtype)
{
    return dtype > 0 && dtype < 32 && (MOEI_DTYPE_BIT(dtype) & MOEI_DTYPES_FLOAT) != 0;
}

static moe_status check_sizes(moe_layer_desc *d, const char *call)
{
    MOE_TRY(check_range(d->hidden, 1, MAX_DIM, "hidden", call));
    MOE_TRY(check_range(d->inter, 1, MAX_DIM, "inter", call));
    MOE_TRY(check_range(d->num_experts, 1, MAX_EXPERTS, "num_experts", call));
    MOE_TRY(check_range(d->latent, 0, MAX_DIM, "latent", call));
    MOE_TRY(check_range(d->replicas, 0, MAX_EXPERTS, "replicas", call));
    MOE_TRY(check_range(d->expert_map, 0, 1, "expert_map", call));
    MOE_TRY(check_range(d->transposed, 0, 1, "transposed", call));
    MOE_TRY(check_range(d->output_bias, 0, 1, "output_bias", call));
    MOE_TRY(check_range(d->accumulate, 0, 1, "accumulate", call));
    MOE_TRY(check_range(d->x_layout, MOE_X_TOKENS, MOE_X_SORTED, "x_layout", call));
    MOE_TRY(check_range(d->out_mode, MOE_OUT_DEFAULT, MOE_OUT_LAYOUT, "out_mode", call));
    MOE_TRY(check_range(d->determinism, MOE_DET_DEFAULT, MOE_DET_KERNEL, "determinism", call));
    if (d->determinism == MOE_DET_DEFAULT) {
        d->determinism = MOE_DET_BATCH;
    }
    MOE_TRY(check_range(d->max_tokens, 0, INT32_MAX, "max_tokens", call));
    MOE_TRY(check_range(d->route.append_shared, 0, MAX_EXPERTS, "route.append_shared", call));
    const int32_t physical =
        d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
    if (d->num_local_experts == 0) {
        d->num_local_experts = physical;
    }
    MOE_TRY(check_range(d->num_local_experts, 1, MAX_EXPERTS, "num_local_experts", call));
    MOE_REQUIRE(d->num_local_experts == physical || d->expert_map != 0 ||
                    d->x_layout != MOE_X_TOKENS,
                MOE_E_UNSUPPORTED,
                "%s: desc.num_local_experts = %d of %d; set expert_map = 1 and give a map", call,
                (int)d->num_local_experts, (int)physical);
    return MOE_OK;
}

static moe_status check_routing(moe_layer_desc *d, const char *call)
{
    MOE_REQUIRE(d->routing != MOE_ROUTING_UNSET, MOE_E_UNSET, "%s: desc.routing is unset", call);
    MOE_TRY(check_range(d->routing, MOE_ROUTING_FROM_LOGITS, MOE_ROUTING_PLACED, "routing", call));
    MOE_REQUIRE(
        (d->routing == MOE_ROUTING_PLACED) == (d->x_layout != MOE_X_TOKENS), MOE_E_UNSUPPORTED,
        "%s: desc.routing = %d with x_layout = %d; PLACED goes with BATCHED and SORTED, the "
        "others with TOKENS",
        call, (int)d->routing, (int)d->x_layout);
    MOE_REQUIRE(d->weight_stage != MOE_WEIGHT_UNSET, MOE_E_UNSET, "%s: desc.weight_stage is unset",
                call);
    MOE_TRY(check_range(d->weight_stage, MOE_WEIGHT_OUTPUT, MOE_WEIGHT_NONE, "weight_stage", call));
    MOE_REQUIRE(d->routing != MOE_ROUTING_PLACED || d->ids_dtype == 0, MOE_E_UNSUPPORTED,
                "%s: desc.ids_dtype = %s, but routing is PLACED, which has no ids; set it to 0",
                call, moe_dtype_name(d->ids_dtype));
    MOE_REQUIRE(d->routing != MOE_ROUTING_PLACED || d->weights_dtype == 0 ||
                    d->weights_dtype == MOE_F32,
                MOE_E_UNSUPPORTED, "%s: desc.weights_dtype = %s, but routing is PLACED; f32 works",
                call, moe_dtype_name(d->weights_dtype));
    d->ids_dtype = d->ids_dtype != 0 ? d->ids_dtype : MOE_I32;
    d->weights_dtype = d->weights_dtype != 0 ? d->weights_dtype : MOE_F32;
    MOE_REQUIRE(d->ids_dtype == MOE_I32 || d->ids_dtype == MOE_I64, MOE_E_DTYPE,
                "%s: desc.ids_dtype = %s, must be int32 or int64", call,
                moe_dtype_name(d->ids_dtype));
    MOE_REQUIRE(d->weights_dtype == MOE_F32 || d->weights_dtype == MOE_BF16, MOE_E_DTYPE,
                "%s: desc.weights_dtype = %s, must be f32 or bf16", call,
                moe_dtype_name(d->weights_dtype));
    if (d->routing == MOE_ROUTING_FROM_LOGITS) {
        d->logits_dtype = d->logits_dtype != 0 ? d->logits_dtype : MOE_F32;
        MOE_REQUIRE(is_float(d->logits_dtype), MOE_E_DTYPE,
                    "%s: desc.logits_dtype = %s, must be f32, bf16 or f16", call,
                    moe_dtype_name(d->logits_dtype));
        MOE_TRY(moei_route_check(&d->route, d->num_experts, d->top_k, call));
        MOE_REQUIRE(d->route.append_shared == 0 || (d->route.zero_experts == 0 && d->replicas == 0),
                    MOE_E_UNSUPPORTED,
                    "%s: desc.route.append_shared = %d with zero_experts = %d, replicas = %d; a "
                    "shared descriptor works",
                    call, (int)d->route.append_shared, (int)d->route.zero_experts,
                    (int)d->replicas);
        return MOE_OK;
    }
    MOE_REQUIRE(d->logits_dtype == 0, MOE_E_UNSUPPORTED,
                "%s: desc.logits_dtype = %s, but routing is not FROM_LOGITS", call,
                moe_dtype_name(d->logits_dtype));
    moe_route_desc rest = d->route;
    if (d->routing == MOE_ROUTING_GIVEN) {
        rest.zero_experts = 0; // given ids may name zero experts
        MOE_TRY(check_range(d->route.zero_experts, 0, MAX_EXPERTS, "route.zero_experts", call));
        MOE_TRY(check_range(d->top_k, 1, (int64_t)d->num_experts + d->route.zero_experts, "top_k",
                            call));
    } else {
        MOE_TRY(check_range(d->top_k, 0, 0, "top_k (PLACED)", call));
        MOE_TRY(check_range(d->expert_map, 0, 0, "expert_map (PLACED)", call));
        MOE_TRY(check_range(d->replicas, 0, 0, "replicas (PLACED)", call));
    }
    MOE_REQUIRE(all_zero(&rest, sizeof rest), MOE_E_UNSUPPORTED,
                "%s: desc.route has options set, but routing is %s; set them to 0", call,
                d->routing == MOE_ROUTING_GIVEN ? "GIVEN" : "PLACED");
    return MOE_OK;
}

static moe_status check_precision(moe_layer_desc *d, const char *call)
{
    MOE_REQUIRE(d->x_dtype != MOE_DTYPE_UNSET, MOE_E_UNSET, "%s: desc.x_dtype is unset", call);
    const moe_dtype codes = moei_gemm_operand_dtype(&d->gemm[0], MOE_DTYPE_UNSET);
    MOE_REQUIRE(is_float(d->x_dtype) || d->x_dtype == codes, MOE_E_DTYPE,
                "%s: desc.x_dtype = %s, must be f32, bf16, f16%s%s", call,
                moe_dtype_name(d->x_dtype), codes != 0 ? " or the codes of gemm[0].act, " : "",
                codes != 0 ? moe_dtype_name(codes) : "");
    // Where every second product quantises h, h is f32 until then.
    if (d->gemm[1].act.spec != MOE_QUANT_NONE &&
        (d->shared.count == 0 || d->shared.gemm[1].act.spec != MOE_QUANT_NONE)) {
        MOE_REQUIRE(
            d->inter_dtype == 0 || d->inter_dtype == MOE_F32, MOE_E_UNSUPPORTED,
            "%s: desc.inter_dtype = %s, but gemm[1].act = %s quantises h from f32; 0 and f32 "
            "work",
            call, moe_dtype_name(d->inter_dtype), moe_quant_name(d->gemm[1].act.spec));
        d->inter_dtype = MOE_F32;
    }
    if (is_float(d->x_dtype)) {
        d->inter_dtype = d->inter_dtype != 0 ? d->inter_dtype : d->x_dtype;
        d->partial_dtype = d->partial_dtype != 0 ? d->partial_dtype : d->x_dtype;
        d->out_dtype = d->out_dtype != 0 ? d->out_dtype : d->x_dtype;
    }
    const struct {
        moe_dtype dtype;
        const char *name;
    } fields[] = {{d->inter_dtype, "inter_dtype"},
                  {d->partial_dtype, "partial_dtype"},
                  {d->out_dtype, "out_dtype"}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        MOE_REQUIRE(fields[i].dtype != MOE_DTYPE_UNSET, MOE_E_UNSET,
                    "%s: desc.%s is unset, and x arrives as %s codes", call, fields[i].name,
                    moe_dtype_name(d->x_dtype));
        MOE_REQUIRE(is_float(fields[i].dtype), MOE_E_DTYPE,
                    "%s: desc.%s = %s, must be f32, bf16 or f16", call, fields[i].name,
                    moe_dtype_name(fields[i].dtype));
    }
    MOE_REQUIRE(
        is_float(d->x_dtype) || moei_quant_needs_given_scale(&d->gemm[0].act) ||
            !moei_quant_has_global_scale(&d->gemm[0].act),
        MOE_E_UNSUPPORTED,
        "%s: desc.x_dtype = %s with gemm[0].act = %s, whose global scale is computed with the "
        "codes; nvfp4, with a given one, works",
        call, moe_dtype_name(d->x_dtype), moe_quant_name(d->gemm[0].act.spec));
    MOE_REQUIRE(is_float(d->x_dtype) || d->latent == 0, MOE_E_UNSUPPORTED,
                "%s: desc.latent = %" PRId64 " with x as %s codes; x must be f32, bf16 or f16",
                call, d->latent, moe_dtype_name(d->x_dtype));
    MOE_REQUIRE(is_float(d->x_dtype) || d->weight_stage != MOE_WEIGHT_INPUT, MOE_E_UNSUPPORTED,
                "%s: desc.weight_stage = INPUT with x as %s codes; OUTPUT works", call,
                moe_dtype_name(d->x_dtype));
    MOE_REQUIRE(is_float(d->x_dtype) || d->route.zero_experts == 0, MOE_E_UNSUPPORTED,
                "%s: desc.route.zero_experts = %d with x as %s codes; x must be f32, bf16 or f16",
                call, (int)d->route.zero_experts, moe_dtype_name(d->x_dtype));
    return MOE_OK;
}

static moe_status check_form(moe_layer_desc *d, const char *call)
{
    const bool tokens = d->x_layout == MOE_X_TOKENS;
    if (d->out_mode == MOE_OUT_DEFAULT) {
        d->out_mode = tokens ? MOE_OUT_COMBINED : MOE_OUT_LAYOUT;
    }
    MOE_REQUIRE(tokens == (d->out_mode != MOE_OUT_LAYOUT), MOE_E_UNSUPPORTED,
                "%s: desc.out_mode = %d with x_layout = %d; COMBINED and SLOTS go with TOKENS, "
                "LAYOUT with BATCHED and SORTED",
                call, (int)d->out_mode, (int)d->x_layout);
    const struct {
        bool used;
        const char *name;
    } needs_combined[] = {{d->shared.count > 0, "shared.count"},
                          {d->latent > 0, "latent"},
                          {d->output_bias != 0, "output_bias"}};
    for (size_t i = 0; i < sizeof needs_combined / sizeof needs_combined[0]; i++) {
        MOE_REQUIRE(!needs_combined[i].used || d->out_mode == MOE_OUT_COMBINED, MOE_E_UNSUPPORTED,
                    "%s: desc.%s is set with out_mode = %d; it needs COMBINED (%d)", call,
                    needs_combined[i].name, (int)d->out_mode, MOE_OUT_COMBINED);
    }
    const int64_t slots_per_row =
        tokens ? (int64_t)d->top_k + d->route.append_shared
               : (d->x_layout == MOE_X_BATCHED ? (int64_t)d->num_local_experts : 1);
    MOE_REQUIRE(d->max_tokens <= INT32_MAX / moei_i64_max(slots_per_row, 1), MOE_E_OVERFLOW,
                "%s: desc.max_tokens = %" PRId64 " times %" PRId64
                " rows each exceeds 2^31 - 1 rows",
                call, d->max_tokens, slots_per_row);
    return MOE_OK;
}

// Spelt out or by default.
static bool same_quantiser(const moe_quant_desc *a, const moe_quant_desc *b)
{
    moe_quant_desc x = *a;
    moe_quant_desc y = *b;
    moei_quant_resolve(&x);
    moei_quant_resolve(&y);
    return x.spec == y.spec && x.elem == y.elem && x.group == y.group &&
           x.scale_type == y.scale_type && x.scale_layout == y.scale_layout &&
           x.amax_bound == y.amax_bound;
}

static moe_status check_shared(moe_layer_desc *d, const char *call)
{
    const moe_shared_desc *s = &d->shared;
    MOE_TRY(check_range(s->count, 0, MAX_EXPERTS, "shared.count", call));
    MOE_REQUIRE(s->count > 0 || all_zero(s, sizeof *s), MOE_E_UNSUPPORTED,
                "%s: desc.shared has fields set, but shared.count = 0", call);
    MOE_REQUIRE(
        d->route.shared_scores == (s->count > 0 && s->gate == MOE_SHARED_ROUTER_WEIGHTED &&
                                           d->routing == MOE_ROUTING_FROM_LOGITS
                                       ? s->count
                                       : 0),
        MOE_E_UNSUPPORTED,
        "%s: desc.route.shared_scores = %d with shared.count = %d and shared.gate = %d; they "
        "go together with ROUTER_WEIGHTED (%d)",
        call, (int)d->route.shared_scores, (int)s->count, (int)s->gate, MOE_SHARED_ROUTER_WEIGHTED);
    if (s->count == 0) {
        return MOE_OK;
    }
    MOE_TRY(check_range(s->inter, 1, MAX_DIM, "shared.inter", call));
    MOE_TRY(
        check_range(s->gate, MOE_SHARED_PLAIN, MOE_SHARED_ROUTER_WEIGHTED, "shared.gate", call));
    MOE_TRY(check_range(s->transposed, 0, 1, "shared.transposed", call));
    MOE_REQUIRE(
        is_float(d->x_dtype) || same_quantiser(&s->gemm[0].act, &d->gemm[0].act), MOE_E_UNSUPPORTED,
        "%s: desc.shared.gemm[0].act is not gemm[0].act, with which x arrives quantised", call);
    MOE_REQUIRE(is_float(d->x_dtype) || s->gate != MOE_SHARED_SIGMOID, MOE_E_UNSUPPORTED,
                "%s: desc.shared.gate = SIGMOID with x as %s codes; x must be f32, bf16 or f16",
                call, moe_dtype_name(d->x_dtype));
    return MOE_OK;
}

// How scales lie says how they arrive; those that the plan computes lie as its kernels need them.
static moe_status check_own_scales(const moe_quant_desc *act, const char *call, const char *name)
{
    MOE_REQUIRE(
        act->scale_layout != MOE_SCALE_LAYOUT_COLUMN, MOE_E_UNSUPPORTED,
        "%s: %s.act.scale_layout = COLUMN (%d), but the plan quantises that input itself and "
        "lays out the scales; 0 works",
        call, name, (int)act->scale_layout);
    MOE_REQUIRE(
        act->scale_type != MOE_SCALE_UE8M0_PACKED, MOE_E_UNSUPPORTED,
        "%s: %s.act.scale_type = UE8M0_PACKED (%d), but the plan quantises that input itself "
        "and lays out the scales; E8M0 (%d) has the same values",
        call, name, (int)act->scale_type, MOE_SCALE_E8M0);
    return MOE_OK;
}

static moe_status init_mlp(const moe_plan *plan, bool shared, const char *call, moei_mlp *mlp)
{
    const moe_layer_desc *d = &plan->desc;
    const moe_shared_desc *s = &d->shared;
    static const char *const names[2][2] = {{"desc.gemm[0]", "desc.gemm[1]"},
                                            {"desc.shared.gemm[0]", "desc.shared.gemm[1]"}};
    mlp->count = shared ? s->count : d->num_local_experts;
    mlp->width = !shared && d->latent > 0 ? d->latent : d->hidden;
    mlp->inter = shared ? s->inter : d->inter;
    mlp->act =
        shared
            ? (moei_activation_params){s->activation, s->alpha, s->beta, s->linear_beta, s->limit}
            : (moei_activation_params){d->activation, d->alpha, d->beta, d->linear_beta, d->limit};
    mlp->gate_up = shared ? s->gate_up : d->gate_up;
    mlp->transposed = (shared ? s->transposed : d->transposed) != 0;
    MOE_TRY(moei_activation_check(&mlp->act, mlp->gate_up, call));
    mlp->rows1 = moe_activation_gated(mlp->act.activation) != 0 ? 2 * mlp->inter : mlp->inter;
    for (int g = 0; g < 2; g++) {
        mlp->gemm[g] = shared ? s->gemm[g] : d->gemm[g];
        MOE_TRY(moei_gemm_desc_check(&mlp->gemm[g], call, names[shared][g]));
        const moe_dtype elem = moei_format(mlp->gemm[g].weight_format)->elem;
        MOE_REQUIRE(!mlp->transposed || moe_dtype_bits(elem) >= 8, MOE_E_UNSUPPORTED,
                    "%s: desc.%stransposed = 1 with %s.weight_format = %s, %d bits an element; it "
                    "needs whole bytes: transpose the weights",
                    call, shared ? "shared." : "", names[shared][g],
                    moe_format_name(mlp->gemm[g].weight_format), moe_dtype_bits(elem));
        if (mlp->gemm[g].act.spec != MOE_QUANT_NONE) {
            if (g == 1 || is_float(d->x_dtype)) {
                MOE_TRY(check_own_scales(&mlp->gemm[g].act, call, names[shared][g]));
            }
            moei_quant_resolve(&mlp->gemm[g].act);
        }
        const moe_dtype input = g == 0 ? d->x_dtype : d->inter_dtype;
        mlp->operand[g] = is_float(input) ? moei_gemm_operand_dtype(&mlp->gemm[g], input) : input;
    }
    return MOE_OK;
}

static int64_t max_rows(const moe_plan *plan)
{
    const moe_layer_desc *d = &plan->desc;
    return d->x_layout == MOE_X_TOKENS
               ? d->max_tokens * ((int64_t)d->top_k + d->route.append_shared)
           : d->x_layout == MOE_X_BATCHED ? d->max_tokens * plan->routed.count
                                          : d->max_tokens;
}

// n outputs of k inputs for every token.
static moei_ggemm_problem linear_problem(const moe_plan *plan, int64_t n, int64_t k, moe_dtype x,
                                         moe_dtype y)
{
    static const moe_gemm_desc f32 = {.weight_format = MOE_FORMAT_F32};
    return (moei_ggemm_problem){.m_max = plan->desc.max_tokens,
                                .n = n,
                                .k = k,
                                .experts = 1,
                                .gemm = &f32,
                                .x_dtype = x,
                                .y_dtype = y,
                                .canonical = true,
                                .level = plan->desc.determinism};
}

int moei_plan_steps(const moe_plan *plan, moei_plan_step steps[MOEI_PLAN_STEPS])
{
    const moe_layer_desc *d = &plan->desc;
    static const char *const names[4] = {"gate_up", "down", "shared gate_up", "shared down"};
    int n = 0;
    for (int shared = 0; shared < (plan->desc.shared.count > 0 ? 2 : 1); shared++) {
        const moei_mlp *mlp = shared != 0 ? &plan->shared : &plan->routed;
        const int64_t rows = shared != 0 ? plan->desc.max_tokens * mlp->count : max_rows(plan);
        for (int g = 0; g < 2; g++) {
            const moei_ggemm_problem problem = {
                .m_max = rows,
                .n = g == 0 ? mlp->rows1 : mlp->width,
                .k = g == 0 ? mlp->width : mlp->inter,
                .experts = mlp->count,
                .gemm = &mlp->gemm[g],
                .x_dtype = mlp->operand[g],
                .y_dtype = g == 0 ? MOE_F32 : plan->desc.partial_dtype,
                .transposed = mlp->transposed,
                .level = d->determinism,
            };
            steps[n++] = (moei_plan_step){names[2 * shared + g], 2 * shared + g, problem};
        }
    }
    if (d->latent > 0) {
        steps[n++] =
            (moei_plan_step){"latent in", 4 + MOEI_LINEAR_LATENT_IN,
                             linear_problem(plan, d->latent, d->hidden, d->x_dtype, d->x_dtype)};
        steps[n++] =
            (moei_plan_step){"latent out", 4 + MOEI_LINEAR_LATENT_OUT,
                             linear_problem(plan, d->hidden, d->latent, d->partial_dtype, MOE_F32)};
    }
    if (d->shared.count > 0 && d->shared.gate == MOE_SHARED_SIGMOID) {
        steps[n++] = (moei_plan_step){"shared gate", 4 + MOEI_LINEAR_SHARED_GATE,
                                      linear_problem(plan, 1, d->hidden, d->x_dtype, MOE_F32)};
    }
    return n;
}

bool moei_plan_uses(const moe_plan *plan, moei_op op)
{
    const moe_layer_desc *d = &plan->desc;
    const bool tokens = d->x_layout == MOE_X_TOKENS;
    switch (op) {
    case MOEI_OP_ROUTE:
        return d->routing == MOE_ROUTING_FROM_LOGITS;
    case MOEI_OP_PLACE:
    case MOEI_OP_SORT:
        return tokens;
    case MOEI_OP_QUANTIZE:
        return (is_float(d->x_dtype) && moei_mlp_quantizes(&plan->routed, 0)) ||
               moei_mlp_quantizes(&plan->routed, 1) ||
               (d->shared.count > 0 &&
                ((is_float(d->x_dtype) && moei_mlp_quantizes(&plan->shared, 0)) ||
                 moei_mlp_quantizes(&plan->shared, 1)));
    case MOEI_OP_COMBINE:
        return d->weight_stage == MOE_WEIGHT_INPUT || !moei_plan_writes_out_directly(plan);
    default:
        return true;
    }
}

static moe_status choose_kernels(moe_plan *plan, const char *call)
{
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int n = moei_plan_steps(plan, steps);
    for (int i = 0; i < n; i++) {
        const moei_kernel *kernel = NULL;
        const int slot = steps[i].slot;
        MOE_TRY(moei_ggemm_select(plan->ctx, &steps[i].problem, call, steps[i].name, &kernel));
        if (slot >= 4) {
            plan->linear[slot - 4] = kernel;
            continue;
        }
        moei_mlp *mlp = slot < 2 ? &plan->routed : &plan->shared;
        mlp->kernel[slot % 2] = kernel;
        mlp->canonical[slot % 2] =
            kernel->layout == MOEI_LAYOUT_ROW
                ? kernel
                : moei_ggemm_canonical(plan->ctx, &steps[i].problem, kernel->arith);
        if ((kernel->flags & MOEI_KERNEL_REF) != 0) {
            plan->flags |= MOE_PLAN_USES_REF;
        }
    }
    return MOE_OK;
}

// The level that every step holds; refuses one that is below what the descriptor asks. (Kernels
// have been chosen by it.)
static moe_status check_level(moe_plan *plan, const char *call)
{
    static const char *const names[] = {"DEFAULT", "NONE", "RUN", "BATCH", "KERNEL"};
    const moe_layer_desc *d = &plan->desc;
    plan->level = MOE_DET_KERNEL;
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int n = moei_plan_steps(plan, steps);
    for (int i = 0; i < n; i++) {
        const moe_gemm_desc *gemm = steps[i].problem.gemm;
        if (gemm->act.spec != MOE_QUANT_NONE) {
            const moe_determinism level = moei_quant_level(&gemm->act);
            MOE_REQUIRE(level >= d->determinism, MOE_E_LEVEL,
                        "%s: %s: quantiser %s spans tokens and holds level %s, desc.determinism = "
                        "%s; a scale per token or group, or a static scale, works",
                        call, steps[i].name, moe_quant_name(gemm->act.spec), names[level],
                        names[d->determinism]);
            plan->level = level < plan->level ? level : plan->level;
        }
        if (!moei_arith_get(moei_plan_kernel(plan, &steps[i])->arith)->consistent) {
            plan->level = plan->level > MOE_DET_BATCH ? MOE_DET_BATCH : plan->level;
        }
    }
    return MOE_OK;
}

// The plan as its backend sees it.
static moei_plan_info describe(const moe_plan *plan, moei_product products[MOEI_PLAN_STEPS])
{
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int n = moei_plan_steps(plan, steps);
    for (int i = 0; i < n; i++) {
        products[i] =
            (moei_product){steps[i].name, steps[i].problem, moei_plan_kernel(plan, &steps[i])};
    }
    return (moei_plan_info){&plan->desc, products, n};
}

moe_status moei_plan_init(const moe_context *ctx, const moe_layer_desc *desc, const char *call,
                          moe_plan *plan)
{
    memset(plan, 0, sizeof *plan);
    plan->ctx = ctx;
    moe_layer_desc *d = &plan->desc;
    MOE_REQUIRE(desc != NULL, MOE_E_ARGUMENT, "%s: desc is NULL", call);
    MOE_TRY(moei_struct_read(desc, d, sizeof *d, call, "desc"));
    MOE_TRY(check_sizes(d, call));
    for (int g = 0; g < 2; g++) {
        MOE_TRY(moei_gemm_desc_check(&d->gemm[g], call, g == 0 ? "desc.gemm[0]" : "desc.gemm[1]"));
    }
    MOE_TRY(check_routing(d, call));
    MOE_TRY(check_precision(d, call));
    MOE_TRY(check_form(d, call));
    MOE_TRY(check_shared(d, call));
    MOE_TRY(init_mlp(plan, false, call, &plan->routed));
    if (d->shared.count > 0) {
        MOE_TRY(init_mlp(plan, true, call, &plan->shared));
    }
    MOE_TRY(choose_kernels(plan, call));
    MOE_TRY(check_level(plan, call));
    if (ctx->backend->plan_check != NULL) {
        const moei_exec exec = moei_exec_make(ctx, NULL);
        moei_product products[MOEI_PLAN_STEPS];
        const moei_plan_info info = describe(plan, products);
        MOE_TRY(ctx->backend->plan_check(&exec, &info));
    }
    plan->max_workspace = moei_layer_workspace(plan, d->max_tokens);
    MOE_REQUIRE(plan->max_workspace != SIZE_MAX, MOE_E_OVERFLOW,
                "%s: the workspace for %" PRId64 " tokens exceeds %zu bytes", call, d->max_tokens,
                SIZE_MAX);
    MOE_REQUIRE(d->workspace_cap == 0 || plan->max_workspace <= d->workspace_cap, MOE_E_WORKSPACE,
                "%s: the workspace for %" PRId64 " tokens is %zu bytes, desc.workspace_cap = %zu; "
                "lower max_tokens",
                call, d->max_tokens, plan->max_workspace, d->workspace_cap);
    return MOE_OK;
}

moe_status moe_plan_create(moe_context *ctx, const moe_layer_desc *desc, moe_plan **out)
{
    const char *call = "moe_plan_create";
    moe_plan plan;
    MOE_REQUIRE(ctx != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                ctx == NULL ? "ctx" : "out");
    MOE_TRY(moei_plan_init(ctx, desc, call, &plan));
    moe_plan *kept = moei_alloc(ctx, sizeof *kept, 64);
    MOE_REQUIRE(kept != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call, sizeof *kept);
    *kept = plan;
    if (ctx->backend->plan_prepare != NULL) {
        const moei_exec exec = moei_exec_make(ctx, NULL);
        moei_product products[MOEI_PLAN_STEPS];
        const moei_plan_info info = describe(kept, products);
        const moe_status status = ctx->backend->plan_prepare(&exec, &info, &kept->prepared);
        if (status != MOE_OK) {
            moei_free(ctx, kept, sizeof *kept);
            return status;
        }
    }
    *out = kept;
    return MOE_OK;
}

void moe_plan_destroy(moe_plan *plan)
{
    if (plan != NULL) {
        if (plan->ctx->backend->plan_release != NULL) {
            const moei_exec exec = moei_exec_make(plan->ctx, NULL);
            plan->ctx->backend->plan_release(&exec, plan->prepared);
        }
        moei_free(plan->ctx, plan, sizeof *plan);
    }
}

moe_status moe_plan_workspace(const moe_plan *plan, int64_t num_tokens, size_t *bytes,
                              size_t *align)
{
    const char *call = "moe_plan_workspace";
    MOE_REQUIRE(plan != NULL && bytes != NULL && align != NULL, MOE_E_ARGUMENT,
                "%s: an argument is NULL", call);
    MOE_REQUIRE(num_tokens >= 0 && num_tokens <= plan->desc.max_tokens, MOE_E_ARGUMENT,
                "%s: num_tokens = %" PRId64 ", must be 0..%" PRId64 " (max_tokens)", call,
                num_tokens, plan->desc.max_tokens);
    *bytes = moei_layer_workspace(plan, num_tokens);
    *align = MOEI_ARENA_ALIGN;
    return MOE_OK;
}

const moe_context *moe_plan_context(const moe_plan *plan)
{
    return plan->ctx;
}

moe_status moe_plan_desc(const moe_plan *plan, moe_layer_desc *desc)
{
    static const char call[] = "moe_plan_desc";
    moe_layer_desc known;
    MOE_REQUIRE(plan != NULL && desc != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                plan == NULL ? "plan" : "desc");
    MOE_TRY(moei_struct_read(desc, &known, sizeof known, call, "desc"));
    return moei_struct_write(&plan->desc, sizeof plan->desc, desc, call, "desc");
}

moe_determinism moe_plan_level(const moe_plan *plan)
{
    return plan->level;
}

uint32_t moe_plan_flags(const moe_plan *plan)
{
    return plan->flags;
}
