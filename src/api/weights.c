// SPDX-License-Identifier: Apache-2.0
// Weights: pack, wrap, update, unpack. The portable kernels read canonical matrices, so packed
// form is canonical and compact; a source and a packed stack are both `moei_matrices`, and every
// copy goes from one to the other.
#include <inttypes.h>
#include <math.h>

#include "api/plan_internal.h"
#include "quant/elements.h"

// ---- layout of the packed memory
// --------------------------------------------------------------------

static void layout_stack(moei_arena *arena, const moei_mlp *mlp, int g, moei_matrices *out,
                         float **act_scale)
{
    const moe_gemm_desc *gemm = &mlp->gemm[g];
    const moei_format_info *info = moei_format(gemm->weight_format);
    const moe_gate_up gate_up = g == 0 ? mlp->gate_up : MOE_GATE_UP_UNSET;
    const bool gated = gate_up != MOE_GATE_UP_UNSET;
    moei_matrices m = {0};
    m.format = info;
    m.count = mlp->count;
    m.n = g == 0 ? mlp->rows1 : mlp->width;
    m.k = g == 0 ? mlp->width : mlp->inter;
    m.interleaved_parts = gate_up == MOE_GATE_UP_INTERLEAVED || gate_up == MOE_UP_GATE_INTERLEAVED;
    m.part_rows = gated && !m.interleaved_parts ? m.n / 2 : m.n;
    const size_t count = (size_t)m.count;
    const int64_t inner = moei_elem_bytes(info->elem, mlp->transposed ? m.n : m.k);
    const int64_t outer = mlp->transposed ? m.k : m.n;
    m.value_e_stride = inner * outer;
    m.value_n_stride = mlp->transposed ? moe_dtype_bits(info->elem) / 8 : inner;
    m.value_k_stride = mlp->transposed ? inner : 0;
    m.values = moei_arena_array(arena, count, (size_t)m.value_e_stride);
    if (info->scale_dtypes != 0) {
        m.scale_dtype = gemm->weight_scale_dtype != 0 ? gemm->weight_scale_dtype
                                                      : moei_format_scale_dtype(info);
        m.block_n = info->block_n;
        m.block_k = moei_gemm_block_k(info, gemm);
        m.scale_parts = gated ? 2 : 1;
        const int64_t rows = m.block_n == 0
                                 ? m.scale_parts
                                 : m.n / m.part_rows * moei_i64_ceil_div(m.part_rows, m.block_n);
        const int64_t columns = m.block_k > 0 ? moei_i64_ceil_div(m.k, m.block_k) : 1;
        m.scale_n_stride = columns;
        m.scale_k_stride = 1;
        m.scale_e_stride = rows * columns;
        m.scales = moei_arena_array(arena, count * (size_t)m.scale_e_stride,
                                    (size_t)moe_dtype_bits(m.scale_dtype) / 8);
    }
    if (info->scale2) {
        m.scale2_parts = gated ? 2 : 1;
        m.scale2_e_stride = m.scale2_parts;
        m.scale2 = moei_arena_array(arena, count * (size_t)m.scale2_parts, sizeof(float));
    }
    if (gemm->zero_points != 0) {
        m.zero_n_stride = moei_i64_ceil_div(m.k, m.block_k);
        m.zero_e_stride = m.n * m.zero_n_stride;
        m.zeros = moei_arena_array(arena, count, (size_t)m.zero_e_stride);
    }
    if (gemm->bias != 0) {
        m.bias_dtype = MOE_F32;
        m.bias_e_stride = m.n;
        m.bias = moei_arena_array(arena, count * (size_t)m.n, sizeof(float));
    }
    if (moei_quant_needs_given_scale(&gemm->act)) {
        *act_scale = moei_arena_array(arena, 1, sizeof(float));
        m.act_scale = *act_scale;
    }
    *out = m;
}

// A linear map [n, k] kept in f32: widening is exact.
static void layout_linear(moei_arena *arena, int64_t n, int64_t k, moei_matrices *out)
{
    moei_matrices m = {0};
    m.format = moei_format(MOE_FORMAT_F32);
    m.count = 1;
    m.n = n;
    m.k = k;
    m.part_rows = n;
    m.value_n_stride = k * (int64_t)sizeof(float);
    m.value_e_stride = n * m.value_n_stride;
    m.values = moei_arena_array(arena, (size_t)n, (size_t)m.value_n_stride);
    *out = m;
}

static void layout_all(moei_arena *arena, const moe_plan *plan, moe_weights *w)
{
    for (int g = 0; g < 2; g++) {
        layout_stack(arena, &plan->routed, g, &w->gemm[g], &w->act_scale[g]);
        if (plan->shared.count > 0) {
            layout_stack(arena, &plan->shared, g, &w->shared[g], &w->act_scale[2 + g]);
        }
    }
    if (plan->desc.shared.count > 0 && plan->desc.shared.gate == MOE_SHARED_SIGMOID) {
        layout_linear(arena, 1, plan->desc.hidden, &w->shared_gate);
    }
    if (plan->desc.latent > 0) {
        layout_linear(arena, plan->desc.latent, plan->desc.hidden, &w->latent_in);
        layout_linear(arena, plan->desc.hidden, plan->desc.latent, &w->latent_out);
    }
    if (plan->desc.output_bias != 0) {
        w->output_bias_dtype = MOE_F32;
        w->output_bias = moei_arena_array(arena, (size_t)plan->desc.hidden, sizeof(float));
    }
}

static size_t self_bytes(const moe_plan *plan)
{
    return sizeof(moe_weights) + (size_t)plan->routed.count;
}

moe_status moe_weights_bytes(const moe_plan *plan, size_t *bytes, size_t *align)
{
    MOE_REQUIRE(plan != NULL && bytes != NULL && align != NULL, MOE_E_ARGUMENT,
                "moe_weights_bytes: an argument is NULL");
    moe_weights w;
    moei_arena arena = {NULL, 0};
    memset(&w, 0, sizeof w);
    layout_all(&arena, plan, &w);
    MOE_REQUIRE(arena.used != SIZE_MAX, MOE_E_OVERFLOW,
                "moe_weights_bytes: the weights exceed %zu bytes", SIZE_MAX);
    *bytes = arena.used;
    *align = MOEI_ARENA_ALIGN;
    return MOE_OK;
}

static moe_status allocate_self(const moe_plan *plan, const char *call, moe_weights **out)
{
    const size_t bytes = self_bytes(plan);
    moe_weights *w = moei_alloc(plan->ctx, bytes, 64);
    MOE_REQUIRE(w != NULL, MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", call, bytes);
    memset(w, 0, bytes);
    w->plan = plan;
    w->self_bytes = bytes;
    *out = w;
    return MOE_OK;
}

moe_status moe_weights_create(const moe_plan *plan, void *memory, size_t bytes, moe_weights **out)
{
    const char *call = "moe_weights_create";
    size_t need = 0;
    size_t align = 0;
    MOE_REQUIRE(plan != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                plan == NULL ? "plan" : "out");
    MOE_TRY(moe_weights_bytes(plan, &need, &align));
    MOE_REQUIRE(memory != NULL && bytes >= need, MOE_E_ARGUMENT,
                "%s: memory of %zu bytes, needs %zu", call, memory == NULL ? 0 : bytes, need);
    MOE_REQUIRE((uintptr_t)memory % align == 0, MOE_E_ALIGNMENT,
                "%s: memory is not aligned to %zu bytes", call, align);
    moe_weights *w = NULL;
    MOE_TRY(allocate_self(plan, call, &w));
    moei_arena arena = {memory, 0};
    layout_all(&arena, plan, w);
    for (int i = 0; i < 4; i++) {
        if (w->act_scale[i] != NULL) {
            *w->act_scale[i] = 0.0f;
        }
    }
    *out = w;
    return MOE_OK;
}

void moe_weights_destroy(moe_weights *weights)
{
    if (weights != NULL) {
        moei_free(weights->plan->ctx, weights, weights->self_bytes);
    }
}

// ---- checks of scales
// -------------------------------------------------------------------------------

static int64_t scale_rows(const moei_matrices *m)
{
    return m->block_n == 0 ? m->scale_parts
                           : m->n / m->part_rows * moei_i64_ceil_div(m->part_rows, m->block_n);
}

static int64_t scale_columns(const moei_matrices *m)
{
    return m->block_k > 0 ? moei_i64_ceil_div(m->k, m->block_k) : 1;
}

static moe_status check_scales(const moei_matrices *m, int32_t first, const char *call,
                               const char *name)
{
    for (int32_t e = 0; e < m->count; e++) {
        for (int64_t r = 0; m->scales != NULL && r < scale_rows(m); r++) {
            for (int64_t c = 0; c < scale_columns(m); c++) {
                const float s = moei_load_one(m->scale_dtype, m->scales,
                                              e * m->scale_e_stride + r * m->scale_n_stride +
                                                  c * m->scale_k_stride);
                MOE_REQUIRE(isfinite(s), MOE_E_VALUE,
                            "%s: %s scales of expert %d: element [%" PRId64 ", %" PRId64
                            "] is %s, must be finite",
                            call, name, (int)(first + e), r, c, isnan(s) ? "NaN" : "infinite");
            }
        }
        for (int32_t p = 0; m->scale2 != NULL && p < m->scale2_parts; p++) {
            const float s = moei_load_one(MOE_F32, m->scale2, e * m->scale2_e_stride + p);
            MOE_REQUIRE(isfinite(s), MOE_E_VALUE,
                        "%s: %s second-level scale of expert %d is %s, must be finite", call, name,
                        (int)(first + e), isnan(s) ? "NaN" : "infinite");
        }
    }
    if (m->act_scale != NULL) {
        const float s = moei_load_one(MOE_F32, m->act_scale, 0);
        MOE_REQUIRE(isfinite(s) && s > 0.0f, MOE_E_VALUE,
                    "%s: %s activation scale is %g, must be finite and above 0", call, name,
                    (double)s);
    }
    return MOE_OK;
}

// ---- copies
// -----------------------------------------------------------------------------------------

static void copy_values(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const bool transposed = s->value_k_stride != 0;
    const int64_t rows = transposed ? s->k : s->n;
    const size_t bytes = (size_t)moei_elem_bytes(s->format->elem, transposed ? s->n : s->k);
    const int64_t s_step = transposed ? s->value_k_stride : s->value_n_stride;
    const int64_t d_step = transposed ? d->value_k_stride : d->value_n_stride;
    const uint8_t *from = s->values + se * s->value_e_stride;
    uint8_t *to = (uint8_t *)(uintptr_t)d->values + de * d->value_e_stride;
    for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * d_step, from + r * s_step, bytes);
    }
}

static void copy_scales(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const int64_t bytes = moe_dtype_bits(s->scale_dtype) / 8;
    const uint8_t *from = (const uint8_t *)s->scales + se * s->scale_e_stride * bytes;
    uint8_t *to = (uint8_t *)(uintptr_t)d->scales + de * d->scale_e_stride * bytes;
    for (int64_t r = 0; r < scale_rows(d); r++) {
        const int64_t s_row = s->block_n == 0 && s->scale_parts == 1 ? 0 : r;
        for (int64_t c = 0; c < scale_columns(d); c++) {
            memcpy(to + (r * d->scale_n_stride + c * d->scale_k_stride) * bytes,
                   from + (s_row * s->scale_n_stride + c * s->scale_k_stride) * bytes,
                   (size_t)bytes);
        }
    }
}

static void copy_zeros(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const int64_t groups = moei_i64_ceil_div(s->k, s->block_k);
    const uint8_t *from = s->zeros + se * s->zero_e_stride;
    uint8_t *to = (uint8_t *)(uintptr_t)d->zeros + de * d->zero_e_stride;
    for (int64_t n = 0; n < s->n; n++) {
        for (int64_t g = 0; g < groups; g++) {
            const uint8_t byte = from[(s->zeros_packed ? n / 2 : n) * s->zero_n_stride + g];
            const uint8_t zero =
                !s->zeros_packed ? byte : (uint8_t)(n % 2 == 0 ? byte & 15 : byte >> 4);
            uint8_t *out = &to[(d->zeros_packed ? n / 2 : n) * d->zero_n_stride + g];
            if (!d->zeros_packed) {
                *out = zero;
            } else if (n % 2 == 0) {
                *out = (uint8_t)((*out & 0xF0) | zero);
            } else {
                *out = (uint8_t)((*out & 0x0F) | zero << 4);
            }
        }
    }
}

static void copy_bias(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const int64_t s_bytes = moe_dtype_bits(s->bias_dtype) / 8;
    const int64_t d_bytes = moe_dtype_bits(d->bias_dtype) / 8;
    const uint8_t *from = (const uint8_t *)s->bias + se * s->bias_e_stride * s_bytes;
    uint8_t *to = (uint8_t *)(uintptr_t)d->bias + de * d->bias_e_stride * d_bytes;
    if (s->bias_dtype == d->bias_dtype) {
        memcpy(to, from, (size_t)(s->n * s_bytes));
        return;
    }
    for (int64_t n = 0; n < s->n; n++) {
        const float value = moei_load_one(s->bias_dtype, from, n);
        moei_store_f32(d->bias_dtype, to + n * d_bytes, 1, &value);
    }
}

// Copies one expert between two stacks of the same format. Float weights may differ in width: a
// source narrower than the packed f32 widens exactly.
static void copy_expert(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    copy_values(s, se, d, de);
    if (s->scales != NULL) {
        copy_scales(s, se, d, de);
    }
    if (s->scale2 != NULL) {
        for (int32_t p = 0; p < d->scale2_parts; p++) {
            const int32_t from = s->scale2_parts == 1 ? 0 : p;
            uint8_t *to = (uint8_t *)(uintptr_t)(d->scale2 + de * d->scale2_e_stride + p);
            memcpy(to, s->scale2 + se * s->scale2_e_stride + from, sizeof(float));
        }
    }
    if (s->zeros != NULL) {
        copy_zeros(s, se, d, de);
    }
    if (s->bias != NULL) {
        copy_bias(s, se, d, de);
    }
}

// ---- sources
// ----------------------------------------------------------------------------------------

static const char *const stack_names[4] = {"gate_up", "down", "shared gate_up", "shared down"};

static bool source_present(const moe_matrix_source *source)
{
    return source->values.data != NULL;
}

// All views of a source, for the checks that concern each: on the plan's device, and none of a
// matrix whose values are absent.
static moe_status check_source_views(const moe_plan *plan, const moe_weights_source *source,
                                     const char *call)
{
    for (int i = 0; i < 4; i++) {
        const moe_matrix_source *m = i < 2 ? &source->gemm[i] : &source->shared[i - 2];
        const moei_view views[] = {
            {&m->values, stack_names[i], false}, {&m->scales, "scales", false},
            {&m->scale2, "scale2", false},       {&m->zero_points, "zero_points", false},
            {&m->bias, "bias", false},           {&m->act_scale, "act_scale", false}};
        MOE_TRY(moei_views_check_device(views, 6, plan->ctx->backend->device, call));
        for (int v = 1; v < 6; v++) {
            MOE_REQUIRE(source_present(m) || views[v].tensor->data == NULL, MOE_E_ARGUMENT,
                        "%s: %s %s is given without values", call, stack_names[i], views[v].name);
        }
    }
    const moei_view rest[] = {{&source->shared_gate, "shared_gate", false},
                              {&source->latent_in, "latent_in", false},
                              {&source->latent_out, "latent_out", false},
                              {&source->output_bias, "output_bias", false}};
    return moei_views_check_device(rest, 4, plan->ctx->backend->device, call);
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

static void widen_linear(const moei_matrices *s, const moei_matrices *d)
{
    for (int64_t n = 0; n < s->n; n++) {
        float *to = (float *)(uintptr_t)(d->values + n * d->value_n_stride);
        moei_load_f32(s->format->elem, s->values + n * s->value_n_stride, 0, s->k, to);
    }
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

static moe_status check_source(const moe_plan *plan, const moe_weights_source *source,
                               int32_t first, int32_t count, const char *call, checked_source *out)
{
    const moe_layer_desc *d = &plan->desc;
    memset(out, 0, sizeof *out);
    MOE_REQUIRE(source != NULL, MOE_E_ARGUMENT, "%s: source is NULL", call);
    moe_weights_source known;
    MOE_TRY(moei_struct_read(source, &known, sizeof known, call, "source"));
    source = &known;
    MOE_TRY(check_source_views(plan, source, call));
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
            MOE_TRY(check_scales(&out->gemm[g], first, call, g == 0 ? "gate_up" : "down"));
            out->has_gemm[g] = true;
        }
        if (source_present(&source->shared[g])) {
            if (plan->shared.count == 0) {
                return unexpected(call, "shared", "shared.count");
            }
            MOE_TRY(stack_from_source(plan, &source->shared[g], true, g, plan->shared.count, call,
                                      &out->shared[g]));
            MOE_TRY(
                check_scales(&out->shared[g], 0, call, g == 0 ? "shared gate_up" : "shared down"));
            out->has_shared[g] = true;
        }
    }
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

// One activation scale serves the whole layer: the first call sets it, later ones must agree. 0 is
// unset; calls for different experts may come from several threads.
static moe_status claim_act_scale(moe_weights *w, int stack, const moei_matrices *m,
                                  const char *call)
{
    uint32_t *to = (uint32_t *)(void *)w->act_scale[stack];
    if (to == NULL || m->act_scale == NULL) {
        return MOE_OK;
    }
    const float given = moei_load_one(MOE_F32, m->act_scale, 0);
    uint32_t bits;
    uint32_t before = 0;
    memcpy(&bits, &given, sizeof bits);
    if (__atomic_compare_exchange_n(to, &before, bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
        before == bits) {
        return MOE_OK;
    }
    float earlier;
    memcpy(&earlier, &before, sizeof earlier);
    return moe_fail(MOE_E_VALUE,
                    "%s: %s activation scale is %.9g, an earlier call gave %.9g; a layer has one",
                    call, stack_names[stack], (double)given, (double)earlier);
}

static moe_status claim_act_scales(moe_weights *w, const checked_source *s, const char *call)
{
    for (int g = 0; g < 2; g++) {
        if (s->has_gemm[g]) {
            MOE_TRY(claim_act_scale(w, g, &s->gemm[g], call));
        }
        if (s->has_shared[g]) {
            MOE_TRY(claim_act_scale(w, 2 + g, &s->shared[g], call));
        }
    }
    return MOE_OK;
}

static moe_status pack(moe_weights *w, int32_t first, int32_t count,
                       const moe_weights_source *source, const char *call)
{
    checked_source s;
    MOE_REQUIRE(w != NULL, MOE_E_ARGUMENT, "%s: weights is NULL", call);
    MOE_REQUIRE(!w->wrapped, MOE_E_STATE,
                "%s: the weights wrap the caller's tensors; change those instead", call);
    MOE_TRY(check_source(w->plan, source, first, count, call, &s));
    MOE_TRY(claim_act_scales(w, &s, call));
    for (int g = 0; g < 2; g++) {
        for (int32_t e = 0; s.has_gemm[g] && e < s.count; e++) {
            copy_expert(&s.gemm[g], e, &w->gemm[g], first + e);
            w->has_expert[first + e] = (unsigned char)(w->has_expert[first + e] | 1u << g);
        }
        for (int32_t e = 0; s.has_shared[g] && e < w->plan->shared.count; e++) {
            copy_expert(&s.shared[g], e, &w->shared[g], e);
        }
        if (s.has_shared[g]) {
            w->has_shared[g] = true;
        }
    }
    if (s.has_shared_gate) {
        widen_linear(&s.shared_gate, &w->shared_gate);
        w->has_shared_gate = true;
    }
    if (s.has_latent_in) {
        widen_linear(&s.latent_in, &w->latent_in);
        w->has_latent_in = true;
    }
    if (s.has_latent_out) {
        widen_linear(&s.latent_out, &w->latent_out);
        w->has_latent_out = true;
    }
    if (s.output_bias.data != NULL) {
        moei_load_f32(s.output_bias.dtype, moei_tensor_data(&s.output_bias), 0,
                      w->plan->desc.hidden, w->output_bias);
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
        char text[160];
        problem.gemm = &gemm;
        MOE_REQUIRE(moei_registry_supports(kernel, plan->ctx->isa, &problem, &why),
                    MOE_E_UNSUPPORTED, "%s: %s is %s, kernel %s: %s; use moe_weights_pack", call,
                    steps[i].name, map->format->name, kernel->name,
                    moei_whynot_text(&why, text, sizeof text));
    }
    return MOE_OK;
}

moe_status moe_weights_wrap(const moe_plan *plan, const moe_weights_source *source,
                            moe_weights **out)
{
    const char *call = "moe_weights_wrap";
    checked_source s;
    MOE_REQUIRE(plan != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                plan == NULL ? "plan" : "out");
    for (int g = 0; g < 2; g++) {
        MOE_REQUIRE(
            plan->routed.kernel[g]->layout == MOEI_LAYOUT_ROW &&
                (plan->shared.count == 0 || plan->shared.kernel[g]->layout == MOEI_LAYOUT_ROW),
            MOE_E_UNSUPPORTED, "%s: kernel %s reads a packed layout; use moe_weights_pack", call,
            plan->routed.kernel[g]->name);
    }
    MOE_TRY(check_source(plan, source, 0, plan->routed.count, call, &s));
    MOE_TRY(check_wrapped_linears(plan, &s, call));
    for (int g = 0; g < 2; g++) {
        MOE_TRY(moei_matrices_check_aligned(&s.gemm[g], call, stack_names[g]));
        MOE_TRY(moei_matrices_check_aligned(&s.shared[g], call, stack_names[2 + g]));
    }
    moe_weights *w = NULL;
    MOE_TRY(allocate_self(plan, call, &w));
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

// Views of one scale for gate and up take two only where these are the same.
static moe_status check_parts(const moei_matrices *from, int32_t e, const moei_matrices *to,
                              const char *call, const char *name)
{
    const size_t bytes = (size_t)moe_dtype_bits(from->scale_dtype) / 8;
    if (from->scales != NULL && from->block_n == 0 && from->scale_parts > to->scale_parts) {
        const uint8_t *at =
            (const uint8_t *)from->scales + (size_t)(e * from->scale_e_stride) * bytes;
        MOE_REQUIRE(memcmp(at, at + (size_t)from->scale_n_stride * bytes, bytes) == 0, MOE_E_SHAPE,
                    "%s: %s scales of gate and up differ, the view is [n]; [n, 2] works", call,
                    name);
    }
    if (from->scale2 != NULL && from->scale2_parts > to->scale2_parts) {
        const float *at = from->scale2 + e * from->scale2_e_stride;
        MOE_REQUIRE(
            at[0] == at[1], MOE_E_SHAPE,
            "%s: %s second-level scales of gate and up differ, the view is [n]; [n, 2] works", call,
            name);
    }
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
                MOE_TRY(check_parts(&w->gemm[g], first + e, &to->gemm[g], call, stack_names[g]));
            }
            to->has_gemm[g] = true;
        }
        if (source_present(&out->shared[g])) {
            MOE_REQUIRE(w->has_shared[g], MOE_E_STATE,
                        "%s: the shared experts have not been packed", call);
            MOE_TRY(stack_from_source(plan, &out->shared[g], true, g, plan->shared.count, call,
                                      &to->shared[g]));
            for (int32_t e = 0; e < plan->shared.count; e++) {
                MOE_TRY(check_parts(&w->shared[g], e, &to->shared[g], call, stack_names[2 + g]));
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

static void copy_act_scale(const moei_matrices *from, const moei_matrices *to)
{
    if (to->act_scale != NULL) {
        memcpy((uint8_t *)(uintptr_t)to->act_scale, from->act_scale, sizeof(float));
    }
}

static void copy_floats(moe_dtype from_type, const void *from, moe_dtype to_type, uint8_t *to,
                        int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float value = moei_load_one(from_type, from, i);
        moei_store_f32(to_type, to + i * moe_dtype_bits(to_type) / 8, 1, &value);
    }
}

static void copy_linear(const moei_matrices *from, const moei_matrices *to)
{
    for (int64_t n = 0; to->values != NULL && n < to->n; n++) {
        copy_floats(from->format->elem, from->values + n * from->value_n_stride, to->format->elem,
                    (uint8_t *)(uintptr_t)to->values + n * to->value_n_stride, to->k);
    }
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
    MOE_TRY(check_source_views(weights->plan, &known, call));
    MOE_TRY(check_target(weights, &known, first, call, &to));
    for (int g = 0; g < 2; g++) {
        for (int32_t e = 0; to.has_gemm[g] && e < to.gemm[g].count; e++) {
            copy_expert(&weights->gemm[g], first + e, &to.gemm[g], e);
        }
        for (int32_t e = 0; to.has_shared[g] && e < to.shared[g].count; e++) {
            copy_expert(&weights->shared[g], e, &to.shared[g], e);
        }
        copy_act_scale(&weights->gemm[g], &to.gemm[g]);
        copy_act_scale(&weights->shared[g], &to.shared[g]);
    }
    copy_linear(&weights->shared_gate, &to.shared_gate);
    copy_linear(&weights->latent_in, &to.latent_in);
    copy_linear(&weights->latent_out, &to.latent_out);
    if (known.output_bias.data != NULL) {
        copy_floats(weights->output_bias_dtype, weights->output_bias, known.output_bias.dtype,
                    moei_tensor_data(&known.output_bias), weights->plan->desc.hidden);
    }
    return MOE_OK;
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
