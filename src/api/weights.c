// SPDX-License-Identifier: Apache-2.0
// Weights: pack, wrap, update, unpack. A source and a packed stack are both `moei_matrices`; a
// source is checked as a whole before a byte is written.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "api/weights_internal.h"
#include "backends/backends.h"
#include "quant/elements.h"

// ---- sources -----------------------------------------------------------------------------------

static const char *const stack_names[4] = {"gate_up", "down", "shared gate_up", "shared down"};

static bool source_present(const moe_matrix_source *source)
{
    return source->values.data != NULL;
}

// All views of a source, for the checks that concern each: on the plan's device or on the host, and
// none of a matrix whose values are absent.
static moe_status check_source_views(const moe_plan *plan, const moe_weights_source *source,
                                     moei_place place, const char *call)
{
    const moe_device_type device = place == MOEI_ON_HOST && !plan->ctx->backend->host_memory
                                       ? MOE_DEVICE_CPU
                                       : plan->ctx->backend->device;
    for (int i = 0; i < 4; i++) {
        const moe_matrix_source *m = i < 2 ? &source->gemm[i] : &source->shared[i - 2];
        const moei_view views[] = {
            {&m->values, stack_names[i], false}, {&m->scales, "scales", false},
            {&m->scale2, "scale2", false},       {&m->zero_points, "zero_points", false},
            {&m->bias, "bias", false},           {&m->act_scale, "act_scale", false}};
        MOE_TRY(moei_views_check_device(views, 6, device, call));
        for (int v = 1; v < 6; v++) {
            MOE_REQUIRE(source_present(m) || views[v].tensor->data == NULL, MOE_E_ARGUMENT,
                        "%s: %s %s is given without values", call, stack_names[i], views[v].name);
        }
    }
    const moei_view rest[] = {{&source->shared_gate, "shared_gate", false},
                              {&source->latent_in, "latent_in", false},
                              {&source->latent_out, "latent_out", false},
                              {&source->output_bias, "output_bias", false}};
    return moei_views_check_device(rest, 4, device, call);
}

static moe_status stack_from_source(const moe_plan *plan, const moe_matrix_source *source,
                                    bool shared, int g, int32_t count, const char *call,
                                    moei_matrices *out)
{
    const moei_mlp *mlp = shared ? &plan->shared : &plan->routed;
    const char *name = stack_names[(shared ? 2 : 0) + g];
    const int64_t n = g == 0 ? mlp->rows1 : mlp->width;
    const int64_t k = g == 0 ? mlp->width : mlp->inter;
    return moei_matrices_from_source(source, &mlp->gemm[g], count, n, k, mlp->transposed,
                                     g == 0 ? mlp->gate_up : MOE_GATE_UP_UNSET, call, name, out);
}

// A linear map or bias in any float type.
static moe_status linear_from_tensor(const moe_tensor *tensor, int64_t n, int64_t k,
                                     const char *call, const char *name, moei_matrices *out)
{
    moe_tensor t = *tensor;
    if (t.ndim == 1 && n == 1) {
        t = moe_tensor_2d(tensor->data, tensor->dtype, 1, tensor->shape[0]);
        t.byte_offset = tensor->byte_offset;
    }
    const int64_t shape[2] = {n, k};
    MOE_TRY(moei_tensor_check(&t, call, name, MOEI_DTYPES_FLOAT, 2, shape));
    moei_matrices m = {0};
    m.format = moei_format(t.dtype == MOE_F32    ? MOE_FORMAT_F32
                           : t.dtype == MOE_BF16 ? MOE_FORMAT_BF16
                                                 : MOE_FORMAT_F16);
    m.count = 1;
    m.n = n;
    m.k = k;
    m.part_rows = n;
    m.values = moei_tensor_data(&t);
    m.value_n_stride = moei_tensor_stride_bytes(&t, 0);
    *out = m;
    return MOE_OK;
}

// Everything of a source, checked before a byte is written.
typedef struct checked_source {
    moei_matrices gemm[2], shared[2], shared_gate, latent_in, latent_out;
    moe_tensor output_bias;
    bool has_gemm[2], has_shared[2], has_shared_gate, has_latent_in, has_latent_out;
    int32_t count;
} checked_source;

static moe_status unexpected(const char *call, const char *name, const char *field)
{
    return moe_fail(MOE_E_ARGUMENT, "%s: %s is given, the descriptor says %s = 0", call, name,
                    field);
}

// Codes of x have one scale, whichever experts read them.
static moe_status check_x_scale(const moe_plan *plan, const checked_source *s, moei_place place,
                                const char *call)
{
    float routed;
    float shared;
    if (x_is_float(plan) || !s->has_gemm[0] || !s->has_shared[0] || s->gemm[0].act_scale == NULL) {
        return MOE_OK;
    }
    if (place == MOEI_ON_HOST) {
        memcpy(&routed, s->gemm[0].act_scale, sizeof routed);
        memcpy(&shared, s->shared[0].act_scale, sizeof shared);
    } else {
        MOE_TRY(moei_get_bytes(plan->ctx, &routed, s->gemm[0].act_scale, sizeof routed));
        MOE_TRY(moei_get_bytes(plan->ctx, &shared, s->shared[0].act_scale, sizeof shared));
    }
    MOE_REQUIRE(routed == shared, MOE_E_VALUE,
                "%s: shared gate_up activation scale is %.9g, that of gate_up is %.9g; x arrives "
                "as codes, which have one scale",
                call, (double)shared, (double)routed);
    return MOE_OK;
}

static moe_status check_source(const moe_plan *plan, const moe_weights_source *source,
                               moei_place place, int32_t first, int32_t count, const char *call,
                               checked_source *out)
{
    const moe_layer_desc *d = &plan->desc;
    memset(out, 0, sizeof *out);
    MOE_REQUIRE(source != NULL, MOE_E_ARGUMENT, "%s: source is NULL", call);
    moe_weights_source known;
    MOE_TRY(moei_struct_read(source, &known, sizeof known, call, "source"));
    source = &known;
    MOE_TRY(check_source_views(plan, source, place, call));
    for (int g = 0; g < 2; g++) {
        const moe_tensor *values = &source->gemm[g].values;
        if (source_present(&source->gemm[g])) {
            const int32_t n = count >= 0                              ? count
                              : values->ndim <= 2                     ? 1
                              : values->shape[0] > plan->routed.count ? plan->routed.count + 1
                                                                      : (int32_t)values->shape[0];
            MOE_REQUIRE(first >= 0 && n >= 0 && first + (int64_t)n <= plan->routed.count,
                        MOE_E_SHAPE, "%s: experts %d .. %" PRId64 ", the plan has %d", call,
                        (int)first, first + (int64_t)n - 1, (int)plan->routed.count);
            MOE_REQUIRE(!out->has_gemm[0] || out->count == n, MOE_E_SHAPE,
                        "%s: gate_up has %d experts, down has %d", call, (int)out->count, (int)n);
            out->count = n;
            MOE_TRY(stack_from_source(plan, &source->gemm[g], false, g, n, call, &out->gemm[g]));
            MOE_TRY(
                moei_scales_check(plan->ctx, &out->gemm[g], place, first, call, stack_names[g]));
            out->has_gemm[g] = true;
        }
        if (source_present(&source->shared[g])) {
            if (plan->shared.count == 0) {
                return unexpected(call, "shared", "shared.count");
            }
            MOE_TRY(stack_from_source(plan, &source->shared[g], true, g, plan->shared.count, call,
                                      &out->shared[g]));
            MOE_TRY(
                moei_scales_check(plan->ctx, &out->shared[g], place, 0, call, stack_names[2 + g]));
            out->has_shared[g] = true;
        }
    }
    MOE_TRY(check_x_scale(plan, out, place, call));
    if (source->shared_gate.data != NULL) {
        if (d->shared.count == 0 || d->shared.gate != MOE_SHARED_SIGMOID) {
            return moe_fail(MOE_E_ARGUMENT,
                            "%s: shared_gate is given, the descriptor's shared.gate is not SIGMOID",
                            call);
        }
        MOE_TRY(linear_from_tensor(&source->shared_gate, 1, d->hidden, call, "shared_gate",
                                   &out->shared_gate));
        out->has_shared_gate = true;
    }
    if (source->latent_in.data != NULL || source->latent_out.data != NULL) {
        if (d->latent == 0) {
            return unexpected(call, "a latent transform", "latent");
        }
        if (source->latent_in.data != NULL) {
            MOE_TRY(linear_from_tensor(&source->latent_in, d->latent, d->hidden, call, "latent_in",
                                       &out->latent_in));
            out->has_latent_in = true;
        }
        if (source->latent_out.data != NULL) {
            MOE_TRY(linear_from_tensor(&source->latent_out, d->hidden, d->latent, call,
                                       "latent_out", &out->latent_out));
            out->has_latent_out = true;
        }
    }
    if (source->output_bias.data != NULL) {
        if (d->output_bias == 0) {
            return unexpected(call, "output_bias", "output_bias");
        }
        MOE_TRY(moei_tensor_check(&source->output_bias, call, "output_bias", MOEI_DTYPES_FLOAT, 1,
                                  &d->hidden));
        out->output_bias = source->output_bias;
    }
    return MOE_OK;
}

static moe_status agree_act_scale(moe_weights *w, int stack, const moei_matrices *m, bool set,
                                  const char *call)
{
    const bool of_x = stack == 2 && w->act_scale[2] == w->act_scale[0]; // the routed experts' own
    return moei_act_scale_agree(w->plan->ctx, m, w->act_scale[stack], &w->agreed[of_x ? 0 : stack],
                                set, call, stack_names[stack],
                                of_x ? "a layer has one, with which x arrives" : "a layer has one");
}

// All of a source agree before one is set, so that a refused call leaves nothing behind.
static moe_status agree_act_scales(moe_weights *w, const checked_source *s, const char *call)
{
    for (int set = 0; set < 2; set++) {
        for (int g = 0; g < 2; g++) {
            if (s->has_gemm[g]) {
                MOE_TRY(agree_act_scale(w, g, &s->gemm[g], set != 0, call));
            }
            if (s->has_shared[g]) {
                MOE_TRY(agree_act_scale(w, 2 + g, &s->shared[g], set != 0, call));
            }
        }
    }
    return MOE_OK;
}

// Packs an expert of a source on the host: what is given of it, or nothing.
static moe_status put_expert(const moe_weights *w, const checked_source *s, bool shared, int32_t se,
                             int32_t de, const char *call)
{
    const moei_mlp *mlp = shared ? &w->plan->shared : &w->plan->routed;
    moei_put_one puts[2];
    int count = 0;
    for (int g = 0; g < 2; g++) {
        if ((shared ? s->has_shared : s->has_gemm)[g]) {
            puts[count++] = (moei_put_one){shared ? &s->shared[g] : &s->gemm[g],
                                           shared ? &w->shared[g] : &w->gemm[g], mlp->kernel[g],
                                           stack_names[shared ? 2 + g : g]};
        }
    }
    return moei_put_expert(w->plan->ctx, puts, count, se, de, call);
}

static moe_status put_linear(const moe_weights *w, const moei_matrices *s, const moei_matrices *d,
                             const char *call)
{
    moei_stage stage;
    MOE_TRY(moei_stage_begin(w->plan->ctx, NULL, d, 0, MOEI_ON_DEVICE, MOEI_PARTS_EXPERT, false,
                             call, &stage));
    moei_copy_linear(s, &stage.m);
    return moei_stage_end(&stage, true);
}

// The bias [H], as one row of a map.
static moei_matrices bias_row(const void *data, moe_dtype dtype, int64_t hidden)
{
    return (moei_matrices){.format = moei_format(dtype == MOE_F32    ? MOE_FORMAT_F32
                                                 : dtype == MOE_BF16 ? MOE_FORMAT_BF16
                                                                     : MOE_FORMAT_F16),
                           .count = 1,
                           .n = 1,
                           .k = hidden,
                           .values = data};
}

static moe_status pack(moe_weights *w, int32_t first, int32_t count,
                       const moe_weights_source *source, const char *call)
{
    checked_source s;
    MOE_REQUIRE(w != NULL, MOE_E_ARGUMENT, "%s: weights is NULL", call);
    MOE_REQUIRE(!w->wrapped, MOE_E_STATE,
                "%s: the weights wrap the caller's tensors; change those instead", call);
    MOE_REQUIRE(!w->adopted, MOE_E_STATE,
                "%s: the weights were adopted from packed bytes, which are not written; pack into "
                "memory of moe_weights_create",
                call);
    MOE_TRY(check_source(w->plan, source, MOEI_ON_HOST, first, count, call, &s));
    MOE_TRY(agree_act_scales(w, &s, call));
    moei_pool_drain(w->plan->ctx->own_pool); // late tasks read what is replaced
    const unsigned given = (s.has_gemm[0] ? 1u : 0u) | (s.has_gemm[1] ? 2u : 0u);
    for (int32_t e = 0; e < s.count; e++) {
        MOE_TRY(put_expert(w, &s, false, e, first + e, call));
        w->has_expert[first + e] = (unsigned char)(w->has_expert[first + e] | given);
    }
    for (int32_t e = 0; e < w->plan->shared.count; e++) {
        MOE_TRY(put_expert(w, &s, true, e, e, call));
    }
    for (int g = 0; g < 2; g++) {
        if (s.has_shared[g]) { // calls for routed experts alone, from several threads, leave it
            w->has_shared[g] = true;
        }
    }
    if (s.has_shared_gate) {
        MOE_TRY(put_linear(w, &s.shared_gate, &w->shared_gate, call));
        w->has_shared_gate = true;
    }
    if (s.has_latent_in) {
        MOE_TRY(put_linear(w, &s.latent_in, &w->latent_in, call));
        w->has_latent_in = true;
    }
    if (s.has_latent_out) {
        MOE_TRY(put_linear(w, &s.latent_out, &w->latent_out, call));
        w->has_latent_out = true;
    }
    if (s.output_bias.data != NULL) {
        const int64_t hidden = w->plan->desc.hidden;
        const moei_matrices from =
            bias_row(moei_tensor_data(&s.output_bias), s.output_bias.dtype, hidden);
        const moei_matrices to = bias_row(w->output_bias, w->output_bias_dtype, hidden);
        MOE_TRY(put_linear(w, &from, &to, call));
        w->has_output_bias = true;
    }
    return MOE_OK;
}

moe_status moe_weights_pack(moe_weights *weights, int32_t first, const moe_weights_source *source)
{
    return pack(weights, first, -1, source, "moe_weights_pack");
}

moe_status moe_weights_update(moe_weights *weights, int32_t expert,
                              const moe_weights_source *source)
{
    return pack(weights, expert, 1, source, "moe_weights_update");
}

// A linear map that stays in the caller's type must be one that the plan's kernel reads.
static moe_status check_wrapped_linears(const moe_plan *plan, const checked_source *s,
                                        const char *call)
{
    const moei_matrices *maps[MOEI_NUM_LINEAR] = {&s->latent_in, &s->latent_out, &s->shared_gate};
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int n = moei_plan_steps(plan, steps);
    for (int i = 0; i < n; i++) {
        const moei_matrices *map = steps[i].slot >= 4 ? maps[steps[i].slot - 4] : NULL;
        if (map == NULL || map->values == NULL) {
            continue;
        }
        const moei_kernel *kernel = moei_plan_kernel(plan, &steps[i]);
        const moe_gemm_desc gemm = {.weight_format = map->format->format};
        moei_ggemm_problem problem = steps[i].problem;
        moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
        char text[320];
        problem.gemm = &gemm;
        MOE_REQUIRE(moei_registry_supports(kernel, plan->ctx->isa, &problem, &why),
                    MOE_E_UNSUPPORTED, "%s: %s is %s, kernel %s: %s; use moe_weights_pack", call,
                    steps[i].name, map->format->name, kernel->name,
                    moei_whynot_text(plan->ctx->backend, &why, text, sizeof text));
    }
    return MOE_OK;
}

// Kernels that read whole vectors of canonical weights say how those must lie.
static moe_status check_kernel_align(const moei_kernel *kernel, const moei_matrices *m,
                                     const char *call, const char *name)
{
    const uintptr_t at = (uintptr_t)m->values | (uintptr_t)m->value_n_stride |
                         (uintptr_t)m->value_k_stride |
                         (m->count > 1 ? (uintptr_t)m->value_e_stride : 0);
    const uint32_t need = kernel != NULL ? kernel->weight_align : 0;
    MOE_REQUIRE(m->values == NULL || need == 0 || at % need == 0, MOE_E_ALIGNMENT,
                "%s: rows of %s lie at multiples of %zu bytes, kernel %s needs %u; use "
                "moe_weights_pack",
                call, name, (size_t)(at & (0 - at)), kernel->name, (unsigned)need);
    return MOE_OK;
}

moe_status moe_weights_wrap(const moe_plan *plan, const moe_weights_source *source,
                            moe_weights **out)
{
    const char *call = "moe_weights_wrap";
    checked_source s;
    MOE_REQUIRE(plan != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                plan == NULL ? "plan" : "out");
    for (int i = 0; i < (plan->shared.count > 0 ? 4 : 2); i++) {
        const moei_mlp *mlp = i < 2 ? &plan->routed : &plan->shared;
        MOE_REQUIRE(mlp->canonical[i % 2] != NULL, MOE_E_UNSUPPORTED,
                    "%s: %s: kernel %s reads a packed layout; use moe_weights_pack", call,
                    stack_names[i], mlp->kernel[i % 2]->name);
    }
    MOE_TRY(check_source(plan, source,
                         plan->ctx->backend->host_memory ? MOEI_ON_HOST : MOEI_ON_DEVICE, 0,
                         plan->routed.count, call, &s));
    MOE_TRY(check_wrapped_linears(plan, &s, call));
    for (int g = 0; g < 2; g++) {
        MOE_TRY(moei_matrices_check_aligned(&s.gemm[g], call, stack_names[g]));
        MOE_TRY(moei_matrices_check_aligned(&s.shared[g], call, stack_names[2 + g]));
        MOE_TRY(check_kernel_align(plan->routed.canonical[g], &s.gemm[g], call, stack_names[g]));
        MOE_TRY(
            check_kernel_align(plan->shared.canonical[g], &s.shared[g], call, stack_names[2 + g]));
    }
    moe_weights *w = NULL;
    MOE_TRY(moei_weights_allocate(plan, call, &w));
    w->wrapped = true;
    for (int g = 0; g < 2; g++) {
        w->gemm[g] = s.gemm[g];
        w->shared[g] = s.shared[g];
        w->has_shared[g] = s.has_shared[g];
        for (int32_t e = 0; s.has_gemm[g] && e < plan->routed.count; e++) {
            w->has_expert[e] = (unsigned char)(w->has_expert[e] | 1u << g);
        }
    }
    w->shared_gate = s.shared_gate;
    w->has_shared_gate = s.has_shared_gate;
    w->latent_in = s.latent_in;
    w->has_latent_in = s.has_latent_in;
    w->latent_out = s.latent_out;
    w->has_latent_out = s.has_latent_out;
    w->output_bias = moei_tensor_data(&s.output_bias);
    w->output_bias_dtype = s.output_bias.dtype;
    w->has_output_bias = w->output_bias != NULL;
    const moe_status status = moei_weights_check_complete(w, call);
    if (status != MOE_OK) {
        moe_weights_destroy(w);
        return status;
    }
    *out = w;
    return MOE_OK;
}

// A source to write to, checked against what has been packed: experts [first, first + n).
static moe_status check_target(const moe_weights *w, const moe_weights_source *out, int32_t first,
                               const char *call, checked_source *to)
{
    const moe_plan *plan = w->plan;
    for (int g = 0; g < 2; g++) {
        if (source_present(&out->gemm[g])) {
            const moe_tensor *v = &out->gemm[g].values;
            const int64_t count = v->ndim <= 2 ? 1 : v->shape[0];
            MOE_REQUIRE(first >= 0 && count >= 0 && count <= plan->routed.count - first,
                        MOE_E_SHAPE, "%s: experts %d .. %" PRId64 ", the plan has %d", call,
                        (int)first, first + count - 1, (int)plan->routed.count);
            MOE_TRY(stack_from_source(plan, &out->gemm[g], false, g, (int32_t)count, call,
                                      &to->gemm[g]));
            for (int32_t e = 0; e < (int32_t)count; e++) {
                MOE_REQUIRE((w->has_expert[first + e] & 1u << g) != 0, MOE_E_STATE,
                            "%s: %s of expert %d has not been packed", call, stack_names[g],
                            (int)(first + e));
                MOE_TRY(moei_fits_check(plan->ctx, plan->routed.kernel[g], &w->gemm[g], first + e,
                                        &to->gemm[g], call, stack_names[g]));
            }
            to->has_gemm[g] = true;
        }
        if (source_present(&out->shared[g])) {
            MOE_REQUIRE(w->has_shared[g], MOE_E_STATE,
                        "%s: the shared experts have not been packed", call);
            MOE_TRY(stack_from_source(plan, &out->shared[g], true, g, plan->shared.count, call,
                                      &to->shared[g]));
            for (int32_t e = 0; e < plan->shared.count; e++) {
                MOE_TRY(moei_fits_check(plan->ctx, plan->shared.kernel[g], &w->shared[g], e,
                                        &to->shared[g], call, stack_names[2 + g]));
            }
            to->has_shared[g] = true;
        }
    }
    const struct {
        const moe_tensor *t;
        const moei_matrices *from;
        bool have;
        const char *name;
        moei_matrices *to;
    } maps[] = {
        {&out->shared_gate, &w->shared_gate, w->has_shared_gate, "shared_gate", &to->shared_gate},
        {&out->latent_in, &w->latent_in, w->has_latent_in, "latent_in", &to->latent_in},
        {&out->latent_out, &w->latent_out, w->has_latent_out, "latent_out", &to->latent_out}};
    for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) {
        if (maps[i].t->data != NULL) {
            MOE_REQUIRE(maps[i].have, MOE_E_STATE, "%s: %s has not been packed", call,
                        maps[i].name);
            MOE_TRY(linear_from_tensor(maps[i].t, maps[i].from->n, maps[i].from->k, call,
                                       maps[i].name, maps[i].to));
        }
    }
    if (out->output_bias.data != NULL) {
        MOE_REQUIRE(w->has_output_bias, MOE_E_STATE, "%s: output_bias has not been packed", call);
        MOE_TRY(moei_tensor_check(&out->output_bias, call, "output_bias", MOEI_DTYPES_FLOAT, 1,
                                  &plan->desc.hidden));
    }
    return MOE_OK;
}

static moe_status get_linear(const moe_weights *w, const moei_matrices *s, const moei_matrices *d,
                             const char *call)
{
    moei_stage stage;
    if (d->values == NULL) {
        return MOE_OK;
    }
    MOE_TRY(moei_stage_begin(w->plan->ctx, NULL, s, 0, MOEI_ON_DEVICE, MOEI_PARTS_EXPERT, true,
                             call, &stage));
    moei_copy_linear(&stage.m, d);
    return moei_stage_end(&stage, false);
}

static moe_status get_act_scale(const moe_weights *w, const moei_matrices *s,
                                const moei_matrices *d)
{
    return d->act_scale == NULL ? MOE_OK
                                : moei_get_bytes(w->plan->ctx, (uint8_t *)(uintptr_t)d->act_scale,
                                                 s->act_scale, sizeof(float));
}

moe_status moe_weights_unpack(const moe_weights *weights, int32_t first,
                              const moe_weights_source *out)
{
    const char *call = "moe_weights_unpack";
    moe_weights_source known;
    checked_source to;
    memset(&to, 0, sizeof to);
    MOE_REQUIRE(weights != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                weights == NULL ? "weights" : "out");
    MOE_TRY(moei_struct_read(out, &known, sizeof known, call, "out"));
    MOE_TRY(check_source_views(weights->plan, &known, MOEI_ON_HOST, call));
    MOE_TRY(check_target(weights, &known, first, call, &to));
    for (int g = 0; g < 2; g++) {
        for (int32_t e = 0; to.has_gemm[g] && e < to.gemm[g].count; e++) {
            MOE_TRY(moei_get_expert(weights->plan->ctx, weights->plan->routed.kernel[g],
                                    &weights->gemm[g], first + e, &to.gemm[g], e, call));
        }
        for (int32_t e = 0; to.has_shared[g] && e < to.shared[g].count; e++) {
            MOE_TRY(moei_get_expert(weights->plan->ctx, weights->plan->shared.kernel[g],
                                    &weights->shared[g], e, &to.shared[g], e, call));
        }
        MOE_TRY(get_act_scale(weights, &weights->gemm[g], &to.gemm[g]));
        MOE_TRY(get_act_scale(weights, &weights->shared[g], &to.shared[g]));
    }
    MOE_TRY(get_linear(weights, &weights->shared_gate, &to.shared_gate, call));
    MOE_TRY(get_linear(weights, &weights->latent_in, &to.latent_in, call));
    MOE_TRY(get_linear(weights, &weights->latent_out, &to.latent_out, call));
    const int64_t hidden = weights->plan->desc.hidden;
    const moei_matrices bias = bias_row(weights->output_bias, weights->output_bias_dtype, hidden);
    const moei_matrices bias_out =
        bias_row(moei_tensor_data(&known.output_bias), known.output_bias.dtype, hidden);
    return get_linear(weights, &bias, &bias_out, call);
}

moe_status moei_weights_check_complete(const moe_weights *w, const char *call)
{
    const moe_plan *plan = w->plan;
    for (int32_t e = 0; e < plan->routed.count; e++) {
        MOE_REQUIRE(w->has_expert[e] == 3, MOE_E_STATE, "%s: %s of expert %d has not been given",
                    call, (w->has_expert[e] & 1) == 0 ? "gate_up" : "down", (int)e);
    }
    const bool shared = plan->shared.count > 0;
    const struct {
        bool need, have;
        const char *name;
    } parts[] = {
        {shared, w->has_shared[0], "gate_up of the shared experts"},
        {shared, w->has_shared[1], "down of the shared experts"},
        {shared && plan->desc.shared.gate == MOE_SHARED_SIGMOID, w->has_shared_gate, "shared_gate"},
        {plan->desc.latent > 0, w->has_latent_in, "latent_in"},
        {plan->desc.latent > 0, w->has_latent_out, "latent_out"},
        {plan->desc.output_bias != 0, w->has_output_bias, "output_bias"},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        MOE_REQUIRE(!parts[i].need || parts[i].have, MOE_E_STATE, "%s: %s has not been given", call,
                    parts[i].name);
    }
    return MOE_OK;
}
