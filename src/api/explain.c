// SPDX-License-Identifier: Apache-2.0
// What a plan would do and why: the support query, moe_plan_explain and moe_plan_describe.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/plan_internal.h"
#include "api/text.h"

// ---- text into a caller's buffer, snprintf-like ------------------------------------------------

// "name": value in the nine digits that name every f32, whatever the process's locale writes
// between units and tenths.
static void put_number(moei_text *t, const char *name, float value)
{
    char digits[32];
    (void)snprintf(digits, sizeof digits, "%.9g", (double)value);
    for (char *c = digits; *c != '\0'; c++) {
        const bool known = (*c >= '0' && *c <= '9') || *c == '-' || *c == '+' || *c == 'e';
        if (!known) {
            *c = '.';
        }
    }
    moei_put(t, "\"%s\": %s, ", name, digits);
}

static const char *level_name(moe_determinism level)
{
    static const char *const names[] = {"DEFAULT", "NONE", "RUN", "BATCH", "KERNEL"};
    return level >= 0 && level <= MOE_DET_KERNEL ? names[level] : "unknown";
}

// ---- support query -----------------------------------------------------------------------------

static int visit_op(const moe_plan *plan, moei_op op, bool runs,
                    int (*visit)(void *, const moe_support *), void *self)
{
    const moe_context *ctx = plan->ctx;
    const moei_backend *backend = ctx->backend;
    for (size_t i = 0; i < backend->num_kernels; i++) {
        const moei_kernel *kernel = &backend->kernels[i];
        char reason[320] = "";
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        if (kernel->op != op) {
            continue;
        }
        const bool supported = moei_registry_supports(kernel, ctx->isa, NULL, &why);
        const char *refusal = moei_whynot_text(ctx->backend, &why, reason, sizeof reason);
        const moe_support support = {.kernel = kernel->name,
                                     .step = moei_op_name(op),
                                     .supported = supported,
                                     .chosen = runs && kernel == ctx->op_kernel[op],
                                     .code = (int32_t)why.code,
                                     .have = why.have,
                                     .need = why.need,
                                     .text = refusal,
                                     .arith = moei_arith_get(kernel->arith)->name,
                                     .level = MOE_DET_KERNEL,
                                     .graph_safe = (kernel->flags & MOEI_KERNEL_GRAPH_SAFE) != 0,
                                     .workspace_bytes = plan->max_workspace};
        const int stop = visit(self, &support);
        if (stop != 0) {
            return stop;
        }
    }
    return 0;
}

static int visit_step(const moe_plan *plan, const moei_plan_step *step, const moei_kernel *chosen,
                      int (*visit)(void *, const moe_support *), void *self)
{
    const moe_context *ctx = plan->ctx;
    for (size_t i = 0; i < ctx->backend->num_kernels; i++) {
        const moei_kernel *kernel = &ctx->backend->kernels[i];
        char reason[320] = "";
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        if (kernel->op != MOEI_OP_GGEMM) {
            continue;
        }
        const bool supported = moei_registry_supports(kernel, ctx->isa, &step->problem, &why);
        const bool consistent = moei_arith_get(kernel->arith)->consistent;
        const char *refusal = moei_whynot_text(ctx->backend, &why, reason, sizeof reason);
        const moe_support support = {.kernel = kernel->name,
                                     .step = step->name,
                                     .supported = supported,
                                     .chosen = kernel == chosen,
                                     .code = (int32_t)why.code,
                                     .have = why.have,
                                     .need = why.need,
                                     .text = refusal,
                                     .arith = moei_arith_get(kernel->arith)->name,
                                     .level = consistent ? MOE_DET_KERNEL : MOE_DET_BATCH,
                                     .graph_safe = (kernel->flags & MOEI_KERNEL_GRAPH_SAFE) != 0,
                                     .workspace_bytes = plan->max_workspace};
        const int stop = visit(self, &support);
        if (stop != 0) {
            return stop;
        }
    }
    return 0;
}

moe_status moe_query_support(const moe_context *ctx, const moe_layer_desc *desc,
                             int (*visit)(void *self, const moe_support *support), void *self)
{
    const char *call = "moe_query_support";
    moe_plan plan;
    MOE_REQUIRE(ctx != NULL && visit != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                ctx == NULL ? "ctx" : "visit");
    const moe_status status = moei_plan_init(ctx, desc, call, &plan);
    // A descriptor that is refused for a kernel's sake has still been read: ask every row why.
    if (status != MOE_OK && status != MOE_E_NO_KERNEL && status != MOE_E_LEVEL &&
        status != MOE_E_WORKSPACE) {
        return status;
    }
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int n = moei_plan_steps(&plan, steps);
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        if (op == MOEI_OP_GGEMM) {
            for (int i = 0; i < n; i++) {
                const moei_kernel *chosen =
                    status == MOE_OK ? moei_plan_kernel(&plan, &steps[i]) : NULL;
                if (visit_step(&plan, &steps[i], chosen, visit, self) != 0) {
                    return status;
                }
            }
        } else if (visit_op(&plan, (moei_op)op,
                            status == MOE_OK && moei_plan_uses(&plan, (moei_op)op), visit,
                            self) != 0) {
            return status;
        }
    }
    return status;
}

// ---- explain -----------------------------------------------------------------------------------

static void explain_step(const moe_plan *plan, const moei_plan_step *step,
                         const moei_kernel *chosen, moei_text *t)
{
    const moei_ggemm_problem *p = &step->problem;
    const moe_context *ctx = plan->ctx;
    moei_put(t,
             "ggemm %s  %s x %s -> %s   e=%d m<=%" PRId64 " n=%" PRId64 " k=%" PRId64
             "   %s, arith %s\n",
             step->name, moe_dtype_name(p->x_dtype), moe_format_name(p->gemm->weight_format),
             moe_dtype_name(p->y_dtype), (int)p->experts, p->m_max, p->n, p->k,
             level_name(plan->level), moei_arith_get(chosen->arith)->name);
    for (size_t i = 0; i < ctx->backend->num_kernels; i++) {
        const moei_kernel *kernel = &ctx->backend->kernels[i];
        char reason[320];
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        if (kernel->op != MOEI_OP_GGEMM) {
            continue;
        }
        if (kernel == chosen) {
            moei_put(t, " *  %-44s runs\n", kernel->name);
        } else if (moei_registry_supports(kernel, ctx->isa, p, &why)) {
            moei_put(t, "    %-44s could; costs more\n", kernel->name);
        } else {
            moei_put(t, "    %-44s no: %s\n", kernel->name,
                     moei_whynot_text(ctx->backend, &why, reason, sizeof reason));
        }
    }
}

moe_status moe_plan_explain(const moe_plan *plan, char *buffer, size_t capacity, size_t *needed)
{
    MOE_TRY(moei_text_check(plan, buffer, capacity, "moe_plan_explain"));
    moei_text t = {buffer, capacity, 0};
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int n = moei_plan_steps(plan, steps);
    for (int i = 0; i < n; i++) {
        explain_step(plan, &steps[i], moei_plan_kernel(plan, &steps[i]), &t);
        const moei_kernel *canonical = moei_plan_canonical(plan, &steps[i]);
        if (canonical != NULL && canonical != moei_plan_kernel(plan, &steps[i])) {
            moei_put(&t, " *  %-44s runs wrapped weights, with the same bits\n", canonical->name);
        }
    }
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        if (op != MOEI_OP_GGEMM && moei_plan_uses(plan, (moei_op)op)) {
            moei_put(&t, "%s\n *  %-44s runs\n", moei_op_name((moei_op)op),
                     plan->ctx->op_kernel[op]->name);
        }
    }
    moei_put(&t, "level %s (asked: %s), workspace %zu bytes for %" PRId64 " tokens\n",
             level_name(plan->level), level_name(plan->desc.determinism), plan->max_workspace,
             plan->desc.max_tokens);
    if ((plan->flags & MOE_PLAN_USES_REF) != 0) {
        moei_put(&t,
                 "note: products run on the portable reference; no tuned kernel takes them here\n");
    }
    if (needed != NULL) {
        *needed = t.length;
    }
    return MOE_OK;
}

// ---- describe ----------------------------------------------------------------------------------

// Enumerators are written as their numbers where they have no name in the API.
static void describe_quant(const moe_quant_desc *q, moei_text *t)
{
    moei_put(t, "{\"spec\": \"%s\", \"elem\": \"%s\", \"group\": %d, ", moe_quant_name(q->spec),
             moe_dtype_name(q->elem), (int)q->group);
    put_number(t, "amax_bound", q->amax_bound);
    moei_put(t, "\"scale_type\": %d, \"scale_layout\": %d}", (int)q->scale_type,
             (int)q->scale_layout);
}

static void describe_mlp(const moei_mlp *mlp, const char *name, moei_text *t)
{
    moei_put(t,
             "\"%s\": {\"experts\": %d, \"width\": %" PRId64 ", \"inter\": %" PRId64
             ", \"activation\": \"%s\", ",
             name, (int)mlp->count, mlp->width, mlp->inter,
             moe_activation_name(mlp->act.activation));
    put_number(t, "alpha", mlp->act.alpha);
    put_number(t, "beta", mlp->act.beta);
    put_number(t, "linear_beta", mlp->act.linear_beta);
    put_number(t, "limit", mlp->act.limit);
    moei_put(t, "\"gate_up\": %d, \"transposed\": %d, \"products\": [", (int)mlp->gate_up,
             (int)mlp->transposed);
    for (int g = 0; g < 2; g++) {
        const moe_gemm_desc *gemm = &mlp->gemm[g];
        const moei_format_info *info = moei_format(gemm->weight_format);
        const moe_dtype scales = gemm->weight_scale_dtype != 0 ? gemm->weight_scale_dtype
                                                               : moei_format_scale_dtype(info);
        moei_put(t, "%s{\"input\": \"%s\", \"quantiser\": ", g > 0 ? ", " : "",
                 moe_dtype_name(mlp->operand[g]));
        describe_quant(&gemm->act, t);
        moei_put(t,
                 ", \"weights\": \"%s\", \"scales\": \"%s\", \"group\": %d, \"zero_points\": %d, "
                 "\"channel_scale\": %d, \"bias\": %d, \"arith\": \"%s\", \"kernel\": \"%s\"}",
                 info->name, moe_dtype_name(scales), (int)moei_gemm_block_k(info, gemm),
                 (int)gemm->zero_points, (int)gemm->channel_scale, (int)gemm->bias,
                 moei_arith_get(mlp->kernel[g]->arith)->name, mlp->kernel[g]->name);
    }
    moei_put(t, "]}");
}

static void describe_route(const moe_route_desc *route, moei_text *t)
{
    moe_route_desc r = *route;
    moei_route_resolve(&r);
    moei_put(t, "\"route\": {\"scoring\": %d, \"select_on\": %d, \"renormalise\": %d, ",
             (int)r.scoring, (int)r.select_on, (int)r.renormalise);
    put_number(t, "renorm_eps", r.renorm_eps);
    put_number(t, "scale", r.scale);
    put_number(t, "jitter_eps", r.jitter_eps);
    moei_put(t,
             "\"correction_bias\": %d, \"scale_tensor\": %d, \"num_groups\": %d, "
             "\"top_groups\": %d, \"group_score\": %d, \"group_mask_zero\": %d, "
             "\"zero_experts\": %d, \"shared_scores\": %d, \"renorm_shared\": %d, "
             "\"hash_table\": %d, \"append_shared\": %d}, ",
             (int)r.correction_bias, (int)r.scale_tensor, (int)r.num_groups, (int)r.top_groups,
             (int)r.group_score, (int)r.group_mask_zero, (int)r.zero_experts, (int)r.shared_scores,
             (int)r.renorm_shared, (int)r.hash_table, (int)r.append_shared);
}

moe_status moe_plan_describe(const moe_plan *plan, char *buffer, size_t capacity, size_t *needed)
{
    MOE_TRY(moei_text_check(plan, buffer, capacity, "moe_plan_describe"));
    const moe_layer_desc *d = &plan->desc;
    moei_text t = {buffer, capacity, 0};
    moei_put(&t,
             "{\"version\": \"%s\", \"backend\": \"%s\", \"max_tokens\": %" PRId64
             ", \"hidden\": %" PRId64 ", \"latent\": %" PRId64
             ", \"num_experts\": %d, \"num_local_experts\": %d, \"top_k\": %d, \"routing\": %d, ",
             moe_version_string(), plan->ctx->backend->name, d->max_tokens, d->hidden, d->latent,
             (int)d->num_experts, (int)d->num_local_experts, (int)d->top_k, (int)d->routing);
    describe_route(&d->route, &t);
    moei_put(&t,
             "\"expert_map\": %d, \"replicas\": %d, \"weight_stage\": %d, \"x_layout\": %d, "
             "\"out_mode\": %d, \"accumulate\": %d, \"output_bias\": %d, ",
             (int)d->expert_map, (int)d->replicas, (int)d->weight_stage, (int)d->x_layout,
             (int)d->out_mode, (int)d->accumulate, (int)d->output_bias);
    moei_put(&t,
             "\"logits_dtype\": \"%s\", \"ids_dtype\": \"%s\", \"weights_dtype\": \"%s\", "
             "\"x_dtype\": \"%s\", \"inter_dtype\": \"%s\", \"partial_dtype\": \"%s\", "
             "\"out_dtype\": \"%s\", ",
             moe_dtype_name(d->logits_dtype), moe_dtype_name(d->ids_dtype),
             moe_dtype_name(d->weights_dtype), moe_dtype_name(d->x_dtype),
             moe_dtype_name(d->inter_dtype), moe_dtype_name(d->partial_dtype),
             moe_dtype_name(d->out_dtype));
    describe_mlp(&plan->routed, "routed", &t);
    if (d->shared.count > 0) {
        moei_put(&t, ", ");
        describe_mlp(&plan->shared, "shared", &t);
        moei_put(&t, ", \"shared_gate\": %d", (int)d->shared.gate);
    }
    moei_put(&t,
             ", \"determinism\": \"%s\", \"level\": \"%s\", \"uses_ref\": %s, "
             "\"workspace_cap\": %zu, \"workspace_bytes\": %zu}",
             level_name(d->determinism), level_name(plan->level),
             (plan->flags & MOE_PLAN_USES_REF) != 0 ? "true" : "false", d->workspace_cap,
             plan->max_workspace);
    if (needed != NULL) {
        *needed = t.length;
    }
    return MOE_OK;
}
