// SPDX-License-Identifier: Apache-2.0
// ggemm: shape rules, checks of views, and the public call.
#include "ops/ggemm.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/tensor.h"
#include "moe/ops.h"
#include "ops/matrix.h"
#include "ops/operand.h"
#include "quant/elements.h"
#include "quant/specs.h"

moe_dtype moei_gemm_operand_dtype(const moe_gemm_desc *gemm, moe_dtype x_dtype)
{
    moe_quant_desc act = gemm->act;
    if (act.spec == MOE_QUANT_NONE) {
        return x_dtype;
    }
    moei_quant_resolve(&act);
    return act.elem;
}

int64_t moei_ggemm_fold(const moei_ggemm_problem *problem)
{
    const moei_format_info *info = moei_format(problem->gemm->weight_format);
    const int64_t w = info->scale_dtypes != 0 ? moei_gemm_block_k(info, problem->gemm) : 0;
    int64_t x = 0;
    if (problem->gemm->act.spec != MOE_QUANT_NONE) {
        moe_quant_desc act = problem->gemm->act;
        moei_quant_resolve(&act);
        x = act.group;
    }
    if (w == 0 || x == 0) {
        return moei_i64_max(w, x);
    }
    const int64_t fine = moei_i64_min(w, x);
    return moei_i64_max(w, x) % fine == 0 ? fine : -1;
}

moei_arith moei_ggemm_arith(const moei_ggemm_problem *problem)
{
    const moei_format_info *info = moei_format(problem->gemm->weight_format);
    switch (moei_ggemm_fold(problem)) {
    case 0:
        return problem->x_dtype == MOE_I8 && info->elem == MOE_I8 ? MOEI_ARITH_I32
                                                                  : MOEI_ARITH_FMA_C256;
    case 16:
        return MOEI_ARITH_FMA_B16;
    case 32:
        return MOEI_ARITH_FMA_B32;
    case 64:
        return MOEI_ARITH_FMA_B64;
    case 128:
        return MOEI_ARITH_FMA_B128;
    default:
        return MOEI_NUM_ARITH;
    }
}

static moe_status fill_values(const moe_matrix_source *source, bool transposed, const char *call,
                              const char *name, moei_matrices *out)
{
    const moe_dtype elem = out->format->elem;
    const int bits = moe_dtype_bits(elem);
    const moe_tensor joined = moei_tensor_join_blocks(&source->values);
    const moe_tensor t = moei_tensor_with_experts(&joined, 3);
    // Code bytes often come as U8 (or I8), whatever they mean; the descriptor says what they are.
    const bool as_bytes = bits <= 8 && t.dtype != elem && (t.dtype == MOE_U8 || t.dtype == MOE_I8);
    MOE_REQUIRE(!transposed || bits >= 8, MOE_E_UNSUPPORTED,
                "%s: %s is %s, %d bits an element; transposed = 1 needs whole bytes: transpose it",
                call, name, out->format->name, bits);
    const int64_t inner = transposed ? out->n : out->k;
    const int64_t shape[3] = {out->count, transposed ? out->k : out->n,
                              as_bytes ? moei_elem_bytes(elem, inner) : inner};
    const uint32_t mask =
        MOEI_DTYPE_BIT(elem) | (bits <= 8 ? MOEI_DTYPE_BIT(MOE_U8) | MOEI_DTYPE_BIT(MOE_I8) : 0u);
    MOE_TRY(moei_tensor_check(&t, call, name, mask, 3, shape));
    out->values = moei_tensor_data(&t);
    out->value_e_stride = moei_tensor_stride_bytes(&t, 0);
    out->value_n_stride = transposed ? bits / 8 : moei_tensor_stride_bytes(&t, 1);
    out->value_k_stride = transposed ? moei_tensor_stride_bytes(&t, 1) : 0;
    return MOE_OK;
}

// One number per expert, or one for gate and one for up: [n], [n, 1], [n, 2].
static moe_status check_parts(const moe_tensor *t, uint32_t mask, int32_t count, bool gated,
                              const char *call, const char *name, int32_t *parts)
{
    const bool two = t->ndim == 2 && t->shape[1] == 2 && gated;
    const int64_t shape[2] = {count, two ? 2 : 1};
    *parts = two ? 2 : 1;
    return moei_tensor_check_any_order(t, call, name, mask, t->ndim == 1 ? 1 : 2, shape);
}

// Numbers per output, [n, N] or [N] of a single expert, as [n, N, 1].
static moe_tensor as_channels(const moe_tensor *given, int64_t n, int32_t count)
{
    moe_tensor t = *given;
    if ((t.ndim == 2 && t.shape[1] == n) || (t.ndim == 1 && count == 1)) {
        t.shape[t.ndim] = 1;
        t.stride[t.ndim] = 1;
        t.ndim++;
    }
    return moei_tensor_with_experts(&t, 3);
}

static moe_status fill_scales(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                              bool gated, const char *call, const char *name, moei_matrices *out)
{
    const moei_format_info *info = out->format;
    char label[64];
    if (info->scale_dtypes == 0 && source->scales.data == NULL) {
        return MOE_OK;
    }
    (void)snprintf(label, sizeof label, "%s scales", name);
    MOE_REQUIRE(info->scale_dtypes != 0, MOE_E_ARGUMENT, "%s: %s are given, format %s has none",
                call, label, info->name);
    const moe_dtype dtype =
        gemm->weight_scale_dtype != 0 ? gemm->weight_scale_dtype : moei_format_scale_dtype(info);
    uint32_t mask = MOEI_DTYPE_BIT(dtype);
    if (moe_dtype_bits(dtype) == 8) {
        mask |= MOEI_DTYPE_BIT(MOE_U8);
    }
    moe_tensor t = source->scales;
    out->block_n = info->block_n;
    out->block_k = moei_gemm_block_k(info, gemm);
    if (info->block_n == 0) {
        MOE_TRY(check_parts(&t, mask, out->count, gated, call, label, &out->scale_parts));
        out->scale_n_stride = t.ndim == 2 ? t.stride[1] : 0;
    } else {
        const int64_t parts = out->n / out->part_rows;
        const int64_t rows = parts * moei_i64_ceil_div(out->part_rows, out->block_n);
        const int64_t columns = out->block_k > 0 ? moei_i64_ceil_div(out->k, out->block_k) : 1;
        const int64_t shape[3] = {out->count, rows, columns};
        t = out->block_k == 0 ? as_channels(&t, out->n, out->count)
                              : moei_tensor_with_experts(&t, 3);
        MOE_TRY(moei_tensor_check_any_order(&t, call, label, mask, 3, shape));
        out->scale_n_stride = t.stride[1];
        out->scale_k_stride = t.stride[2];
    }
    out->scales = moei_tensor_data(&t);
    out->scale_dtype = dtype;
    out->scale_e_stride = t.stride[0];
    return MOE_OK;
}

static moe_status fill_channel_scale(const moe_matrix_source *source, const char *call,
                                     const char *name, moei_matrices *out)
{
    char label[64];
    (void)snprintf(label, sizeof label, "%s channel scale", name);
    const moe_tensor t = as_channels(&source->scale2, out->n, out->count);
    const int64_t shape[3] = {out->count, out->n, 1};
    MOE_TRY(moei_tensor_check_any_order(&t, call, label, MOEI_DTYPE_BIT(MOE_F32), 3, shape));
    MOE_REQUIRE(t.stride[1] == 1 || out->n == 1, MOE_E_SHAPE,
                "%s: %s has stride %" PRId64 " between outputs, must be 1", call, label,
                t.stride[1]);
    out->scale2 = (const float *)(const void *)moei_tensor_data(&t);
    out->scale2_e_stride = t.stride[0];
    out->scale2_parts = (int32_t)out->n;
    out->scale2_per_row = true;
    return MOE_OK;
}

static moe_status fill_scale2(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                              bool gated, const char *call, const char *name, moei_matrices *out)
{
    char label[64];
    if (gemm->channel_scale == 0 && !out->format->scale2 && source->scale2.data == NULL) {
        return MOE_OK;
    }
    (void)snprintf(label, sizeof label, "%s second-level scale", name);
    if (gemm->channel_scale != 0) {
        return fill_channel_scale(source, call, name, out);
    }
    MOE_REQUIRE(out->format->scale2, MOE_E_ARGUMENT, "%s: %s is given, format %s has none%s", call,
                label, out->format->name,
                out->format->free_group ? " and the descriptor says channel_scale = 0" : "");
    const moe_tensor *t = &source->scale2;
    MOE_TRY(check_parts(t, MOEI_DTYPE_BIT(MOE_F32), out->count, gated, call, label,
                        &out->scale2_parts));
    MOE_REQUIRE(out->scale2_parts == 1 || t->stride[1] == 1, MOE_E_SHAPE,
                "%s: %s has stride %" PRId64 " between gate and up, must be 1", call, label,
                t->stride[1]);
    out->scale2 = (const float *)(const void *)moei_tensor_data(t);
    out->scale2_e_stride = t->stride[0];
    return MOE_OK;
}

static moe_status fill_zeros(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                             const char *call, const char *name, moei_matrices *out)
{
    char label[64];
    if (gemm->zero_points == 0 && source->zero_points.data == NULL) {
        return MOE_OK;
    }
    (void)snprintf(label, sizeof label, "%s zero points", name);
    MOE_REQUIRE(gemm->zero_points != 0, MOE_E_ARGUMENT,
                "%s: %s are given, the descriptor says zero_points = 0", call, label);
    const moe_tensor t = moei_tensor_with_experts(&source->zero_points, 3);
    const int64_t groups = moei_i64_ceil_div(out->k, out->block_k);
    const bool narrow = out->format->elem == MOE_UINT4;
    const bool pairs = narrow && t.dtype == MOE_U8 && t.ndim == 3 && t.shape[1] != out->n &&
                       t.shape[1] == moei_i64_ceil_div(out->n, 2);
    const int64_t shape[3] = {out->count, pairs ? t.shape[1] : out->n, groups};
    const uint32_t mask = MOEI_DTYPE_BIT(MOE_U8) | (narrow ? MOEI_DTYPE_BIT(MOE_UINT4) : 0u);
    MOE_TRY(moei_tensor_check(&t, call, label, mask, 3, shape));
    out->zeros = moei_tensor_data(&t);
    out->zero_form = pairs                  ? MOEI_ZERO_PAIRS
                     : t.dtype == MOE_UINT4 ? MOEI_ZERO_NIBBLES
                                            : MOEI_ZERO_BYTES;
    out->zero_e_stride = moei_tensor_stride_bytes(&t, 0);
    out->zero_n_stride = moei_tensor_stride_bytes(&t, 1);
    return MOE_OK;
}

static moe_status fill_bias(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                            const char *call, const char *name, moei_matrices *out)
{
    char label[64];
    if (gemm->bias == 0 && source->bias.data == NULL) {
        return MOE_OK;
    }
    (void)snprintf(label, sizeof label, "%s bias", name);
    MOE_REQUIRE(gemm->bias != 0, MOE_E_ARGUMENT, "%s: %s is given, the descriptor says bias = 0",
                call, label);
    const moe_tensor t = moei_tensor_with_experts(&source->bias, 2);
    const int64_t shape[2] = {out->count, out->n};
    MOE_TRY(moei_tensor_check(&t, call, label, MOEI_DTYPES_FLOAT, 2, shape));
    out->bias = moei_tensor_data(&t);
    out->bias_dtype = t.dtype;
    out->bias_e_stride = t.stride[0];
    return MOE_OK;
}

static moe_status fill_act_scale(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                                 const char *call, const char *name, moei_matrices *out)
{
    char label[64];
    const bool needed = moei_quant_needs_given_scale(&gemm->act);
    if (!needed && source->act_scale.data == NULL) {
        return MOE_OK;
    }
    (void)snprintf(label, sizeof label, "%s activation scale", name);
    MOE_REQUIRE(needed, MOE_E_ARGUMENT, "%s: %s is given, quantiser %s takes none", call, label,
                moe_quant_name(gemm->act.spec));
    const int64_t shape[1] = {1};
    MOE_TRY(moei_tensor_check(&source->act_scale, call, label, MOEI_DTYPE_BIT(MOE_F32),
                              source->act_scale.ndim == 0 ? 0 : 1, shape));
    out->act_scale = (const float *)(const void *)moei_tensor_data(&source->act_scale);
    return MOE_OK;
}

moe_status moei_matrices_from_source(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                                     int32_t count, int64_t n, int64_t k, bool transposed,
                                     moe_gate_up gate_up, const char *call, const char *name,
                                     moei_matrices *out)
{
    const bool gated = gate_up != MOE_GATE_UP_UNSET;
    moei_matrices m = {0};
    m.format = moei_format(gemm->weight_format);
    MOE_REQUIRE(m.format != NULL, MOE_E_UNSET, "%s: %s.weight_format is unset", call, name);
    MOE_REQUIRE(n <= INT32_MAX && k <= INT32_MAX, MOE_E_SHAPE,
                "%s: %s has %" PRId64 " rows of %" PRId64 " elements; at most %d of each", call,
                name, n, k, INT32_MAX);
    m.n = n;
    m.k = k;
    m.count = count;
    m.interleaved_parts = gate_up == MOE_GATE_UP_INTERLEAVED || gate_up == MOE_UP_GATE_INTERLEAVED;
    m.part_rows = gated && !m.interleaved_parts ? n / 2 : n;
    if (n == 0 || k == 0) {
        m.part_rows = moei_i64_max(m.part_rows, 1);
    }
    MOE_TRY(fill_values(source, transposed, call, name, &m));
    MOE_TRY(fill_scales(source, gemm, gated, call, name, &m));
    MOE_TRY(fill_scale2(source, gemm, gated, call, name, &m));
    MOE_TRY(fill_zeros(source, gemm, call, name, &m));
    MOE_TRY(fill_bias(source, gemm, call, name, &m));
    MOE_TRY(fill_act_scale(source, gemm, call, name, &m));
    *out = m;
    return MOE_OK;
}

moe_status moei_matrices_check_aligned(const moei_matrices *m, const char *call, const char *name)
{
    MOE_REQUIRE((uintptr_t)m->scale2 % sizeof(float) == 0, MOE_E_ALIGNMENT,
                "%s: %s second-level scale lies %d bytes past a multiple of 4", call, name,
                (int)((uintptr_t)m->scale2 % sizeof(float)));
    MOE_REQUIRE((uintptr_t)m->act_scale % sizeof(float) == 0, MOE_E_ALIGNMENT,
                "%s: %s activation scale lies %d bytes past a multiple of 4", call, name,
                (int)((uintptr_t)m->act_scale % sizeof(float)));
    return MOE_OK;
}

moe_status moei_gemm_desc_check(const moe_gemm_desc *gemm, const char *call, const char *name)
{
    const moei_format_info *info = moei_format(gemm->weight_format);
    MOE_REQUIRE(gemm->weight_format != MOE_FORMAT_UNSET, MOE_E_UNSET,
                "%s: %s.weight_format is unset", call, name);
    MOE_REQUIRE(info != NULL, MOE_E_ARGUMENT, "%s: %s.weight_format = %d is not a format", call,
                name, (int)gemm->weight_format);
    MOE_REQUIRE(gemm->weight_scale_dtype >= 0 && gemm->weight_scale_dtype < 32 &&
                    (gemm->weight_scale_dtype == 0 ||
                     (info->scale_dtypes & MOEI_DTYPE_BIT(gemm->weight_scale_dtype)) != 0),
                MOE_E_UNSUPPORTED, "%s: %s.weight_scale_dtype = %s, format %s has %s", call, name,
                moe_dtype_name(gemm->weight_scale_dtype), info->name,
                info->scale_dtypes != 0 ? moe_dtype_name(moei_format_scale_dtype(info))
                                        : "no scales");
    MOE_REQUIRE(gemm->weight_group == 0 || info->free_group, MOE_E_UNSUPPORTED,
                "%s: %s.weight_group = %d, format %s has a fixed group of %d", call, name,
                (int)gemm->weight_group, info->name, (int)info->block_k);
    MOE_REQUIRE(gemm->weight_group == 0 || gemm->weight_group == 16 || gemm->weight_group == 32 ||
                    gemm->weight_group == 64 || gemm->weight_group == 128,
                MOE_E_UNSUPPORTED, "%s: %s.weight_group = %d, must be 16, 32, 64 or 128", call,
                name, (int)gemm->weight_group);
    MOE_REQUIRE(gemm->zero_points == 0 || gemm->zero_points == 1, MOE_E_ARGUMENT,
                "%s: %s.zero_points = %d, must be 0 or 1", call, name, (int)gemm->zero_points);
    MOE_REQUIRE(gemm->zero_points == 0 || info->zero_point >= 0, MOE_E_UNSUPPORTED,
                "%s: %s.zero_points = 1, format %s has none; int4_group and uint8_group do", call,
                name, info->name);
    MOE_REQUIRE(gemm->channel_scale == 0 || gemm->channel_scale == 1, MOE_E_ARGUMENT,
                "%s: %s.channel_scale = %d, must be 0 or 1", call, name, (int)gemm->channel_scale);
    MOE_REQUIRE(gemm->channel_scale == 0 || info->free_group, MOE_E_UNSUPPORTED,
                "%s: %s.channel_scale = 1, format %s has none beside its scales; int4_group, "
                "int8_group and uint8_group do",
                call, name, info->name);
    MOE_REQUIRE(gemm->bias == 0 || gemm->bias == 1, MOE_E_ARGUMENT,
                "%s: %s.bias = %d, must be 0 or 1", call, name, (int)gemm->bias);
    MOE_TRY(moei_quant_check(&gemm->act, call)); // NONE too: its parameters must be 0
    return moei_quant_check_act(&gemm->act, call, name);
}

moe_status moei_ggemm_select(const moe_context *ctx, const moei_ggemm_problem *problem,
                             const char *call, const char *name, const moei_kernel **out)
{
    const moei_kernel *kernels = ctx->backend->kernels;
    const size_t count = ctx->backend->num_kernels;
    moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
    char text[320];
    const int row = moei_registry_select(kernels, count, MOEI_OP_GGEMM, ctx->isa, problem, &why);
    moei_ggemm_problem lower = *problem;
    lower.level = MOE_DET_DEFAULT;
    const int any =
        row >= 0 || problem->level != MOE_DET_KERNEL
            ? row
            : moei_registry_select(kernels, count, MOEI_OP_GGEMM, ctx->isa, &lower, &why);
    MOE_REQUIRE(moei_ggemm_fold(problem) >= 0, MOE_E_NO_KERNEL,
                "%s: %s: weight scales change every %d elements of k, those of the input every %d "
                "(act.group); one must divide the other",
                call, name,
                (int)moei_gemm_block_k(moei_format(problem->gemm->weight_format), problem->gemm),
                (int)problem->gemm->act.group);
    MOE_REQUIRE(any >= 0, MOE_E_NO_KERNEL, "%s: %s: no kernel for %s x %s; nearest: %s", call, name,
                moe_dtype_name(problem->x_dtype), moe_format_name(problem->gemm->weight_format),
                moei_whynot_text(ctx->backend, &why, text, sizeof text));
    MOE_REQUIRE(row >= 0, MOE_E_LEVEL,
                "%s: %s: class %s of kernel %s is not CONSISTENT, desc.determinism = KERNEL; BATCH "
                "works",
                call, name, moei_arith_get(kernels[any].arith)->name, kernels[any].name);
    *out = &kernels[row];
    return MOE_OK;
}

const moei_kernel *moei_ggemm_canonical(const moe_context *ctx, const moei_ggemm_problem *problem,
                                        moei_arith arith)
{
    const moei_kernel *best = NULL;
    moei_ggemm_problem canonical = *problem;
    canonical.canonical = true;
    double best_cost = 0.0;
    for (size_t i = 0; i < ctx->backend->num_kernels; i++) {
        const moei_kernel *kernel = &ctx->backend->kernels[i];
        moei_whynot why;
        if (kernel->op != MOEI_OP_GGEMM || kernel->arith != arith ||
            !moei_registry_supports(kernel, ctx->isa, &canonical, &why)) {
            continue;
        }
        const double cost = kernel->cost != NULL ? kernel->cost(kernel, &canonical) : 0.0;
        if (best == NULL || cost < best_cost) {
            best = kernel;
            best_cost = cost;
        }
    }
    return best;
}

// K where the weights' values state elements; -1 where packed bytes leave it open.
static int64_t stated_k(const moe_tensor *values, const moei_format_info *info, bool transposed)
{
    const bool whole = moe_dtype_bits(info->elem) >= 8 || values->dtype == info->elem;
    return whole && (values->ndim == 2 || values->ndim == 3)
               ? values->shape[values->ndim - (transposed ? 2 : 1)]
               : -1;
}

// Where the host can read them (`readable`), values too, and `*rows` becomes what they say.
static moe_status check_offsets(const moe_tensor *offsets, int32_t count, bool readable,
                                const char *call, int64_t *rows)
{
    const int64_t shape[1] = {(int64_t)count + 1};
    MOE_TRY(moei_tensor_check(offsets, call, "offsets", MOEI_DTYPE_BIT(MOE_I32), 1, shape));
    MOE_TRY(moei_tensor_check_aligned(offsets, call, "offsets"));
    const int32_t *p = (const int32_t *)(const void *)moei_tensor_data(offsets);
    if (!readable) {
        return MOE_OK;
    }
    MOE_REQUIRE(p[0] == 0, MOE_E_VALUE, "%s: offsets[0] = %d, must be 0", call, (int)p[0]);
    for (int32_t e = 0; e < count; e++) {
        MOE_REQUIRE(p[e] <= p[e + 1], MOE_E_VALUE, "%s: offsets[%d] = %d exceeds offsets[%d] = %d",
                    call, (int)e, (int)p[e], (int)e + 1, (int)p[e + 1]);
    }
    *rows = p[count];
    return MOE_OK;
}

static moe_status check_index(const moe_tensor *index, int64_t rows, int64_t limit, bool readable,
                              const char *call, const char *name, const int32_t **out)
{
    *out = NULL;
    if (!moei_tensor_present(index)) {
        MOE_REQUIRE(rows <= limit, MOE_E_SHAPE, "%s: %" PRId64 " rows, but %s has %" PRId64, call,
                    rows, name, limit);
        return MOE_OK;
    }
    const int64_t shape[1] = {-1};
    MOE_TRY(moei_tensor_check(index, call, name, MOEI_DTYPE_BIT(MOE_I32), 1, shape));
    MOE_REQUIRE(index->shape[0] >= rows, MOE_E_SHAPE,
                "%s: %s has %" PRId64 " entries for %" PRId64 " rows", call, name, index->shape[0],
                rows);
    MOE_TRY(moei_tensor_check_aligned(index, call, name));
    const int32_t *p = (const int32_t *)(const void *)moei_tensor_data(index);
    for (int64_t i = 0; readable && i < rows; i++) {
        MOE_REQUIRE(p[i] >= 0 && p[i] < limit, MOE_E_VALUE,
                    "%s: %s[%" PRId64 "] = %d, must be 0..%" PRId64, call, name, i, (int)p[i],
                    limit - 1);
    }
    *out = p;
    return MOE_OK;
}

static moe_status check_row_weight(const moe_tensor *weight, const int64_t *rows, const char *call,
                                   const float **out)
{
    *out = NULL;
    if (moei_tensor_present(weight)) {
        MOE_TRY(moei_tensor_check(weight, call, "row_weight", MOEI_DTYPE_BIT(MOE_F32), 1, rows));
        MOE_TRY(moei_tensor_check_aligned(weight, call, "row_weight"));
        *out = (const float *)(const void *)moei_tensor_data(weight);
    }
    return MOE_OK;
}

// Refuses what a packed matrix has already, and one that cannot be multiplied by.
static moe_status check_matrix(const moe_context *ctx, const moe_ggemm_args *args, const char *call)
{
    static const moe_gemm_desc none;
    const moe_matrix *matrix = args->matrix;
    const moe_quant_desc *act = &matrix->desc.gemm.act;
    const bool brings_scale =
        !moei_quant_needs_given_scale(act) && moei_quant_has_global_scale(act);
    const struct {
        const moe_tensor *tensor;
        const char *name;
    } own[] = {{&args->weights.values, "values"}, {&args->weights.scales, "scales"},
               {&args->weights.scale2, "scale2"}, {&args->weights.zero_points, "zero_points"},
               {&args->weights.bias, "bias"},     {&args->weights.act_scale, "act_scale"}};
    MOE_REQUIRE(matrix->ctx == ctx, MOE_E_ARGUMENT,
                "%s: args.matrix was made from another context than ctx", call);
    MOE_REQUIRE(memcmp(&args->gemm, &none, sizeof none) == 0 && args->transposed == 0,
                MOE_E_ARGUMENT,
                "%s: args.%s is set beside args.matrix, whose descriptor says it; 0 works", call,
                args->transposed == 0 ? "gemm" : "transposed");
    for (size_t i = 0; i < sizeof own / sizeof own[0] - (brings_scale ? 1 : 0); i++) {
        MOE_REQUIRE(own[i].tensor->data == NULL, MOE_E_ARGUMENT,
                    "%s: weights.%s is given beside args.matrix, which has been packed", call,
                    own[i].name);
    }
    const bool *missing = memchr(matrix->has_expert, 0, (size_t)matrix->desc.count * sizeof(bool));
    MOE_REQUIRE(missing == NULL, MOE_E_STATE, "%s: expert %d of args.matrix has not been packed",
                call, missing != NULL ? (int)(missing - matrix->has_expert) : 0);
    return MOE_OK;
}

// Whether a call fits the matrix: rows of `k` elements of `x_dtype`, `n` outputs, `count` experts.
static moe_status check_fits_matrix(const moe_matrix *matrix, moe_dtype x_dtype, int64_t k,
                                    int64_t n, int32_t count, const char *call)
{
    const moe_matrix_desc *d = &matrix->desc;
    MOE_REQUIRE(x_dtype == d->x_dtype, MOE_E_DTYPE, "%s: x is %s, args.matrix was made for %s",
                call, moe_dtype_name(x_dtype), moe_dtype_name(d->x_dtype));
    MOE_REQUIRE(k == d->inputs, MOE_E_SHAPE,
                "%s: x has %" PRId64 " elements a row, args.matrix has %" PRId64 " inputs", call, k,
                d->inputs);
    MOE_REQUIRE(n == d->outputs, MOE_E_SHAPE,
                "%s: y has %" PRId64 " elements a row, args.matrix has %" PRId64 " outputs", call,
                n, d->outputs);
    MOE_REQUIRE(count == d->count, MOE_E_SHAPE,
                "%s: offsets say %d experts (absent: 1), args.matrix has %d", call, (int)count,
                (int)d->count);
    return MOE_OK;
}

// The kernel of a matrix was chosen when it was made; whether it takes this call's types.
static moe_status matrix_kernel(const moe_matrix *matrix, const moei_ggemm_problem *problem,
                                const char *call, const moei_kernel **out)
{
    moei_whynot why = {MOEI_WHYNOT_NONE, 0, 0};
    char text[320];
    MOE_REQUIRE(moei_registry_supports(matrix->kernel, matrix->ctx->isa, problem, &why),
                MOE_E_NO_KERNEL, "%s: args.matrix: kernel %s: %s", call, matrix->kernel->name,
                moei_whynot_text(matrix->ctx->backend, &why, text, sizeof text));
    *out = matrix->kernel;
    return MOE_OK;
}

moe_status moe_ggemm(const moe_context *ctx, const moe_ggemm_args *args, void *stream)
{
    const char *call = "moe_ggemm";
    moe_ggemm_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    const moe_matrix *matrix = args->matrix;
    moe_tensor packed = {0}; // as a view
    moe_tensor act_scale = args->weights.act_scale;
    if (matrix != NULL) {
        MOE_TRY(check_matrix(ctx, args, call));
        packed = moe_tensor_1d(matrix->memory, MOE_U8, (int64_t)matrix->bytes);
        if (matrix->act_scale != NULL) {
            act_scale = moe_tensor_1d(matrix->act_scale, MOE_F32, 1);
        }
    }
    const moe_gemm_desc *gemm = matrix != NULL ? &matrix->desc.gemm : &args->gemm;
    const moei_view views[] = {{&args->y, "y", true},
                               {&args->x, "x", false},
                               {&args->x_scales, "x_scales", false},
                               {&args->offsets, "offsets", false},
                               {&args->row_index, "row_index", false},
                               {&args->out_index, "out_index", false},
                               {&args->row_weight, "row_weight", false},
                               {&args->weights.values, "weights.values", false},
                               {&args->weights.scales, "weights.scales", false},
                               {&args->weights.scale2, "weights.scale2", false},
                               {&args->weights.zero_points, "weights.zero_points", false},
                               {&args->weights.bias, "weights.bias", false},
                               {&args->weights.act_scale, "weights.act_scale", false},
                               {&packed, "matrix", false}};
    const size_t num_views = sizeof views / sizeof views[0];
    MOE_TRY(moei_views_check_device(views, num_views, ctx->backend->device, call));
    MOE_REQUIRE(args->transposed == 0 || args->transposed == 1, MOE_E_ARGUMENT,
                "%s: args.transposed = %d, must be 0 or 1", call, (int)args->transposed);
    if (matrix == NULL) {
        MOE_TRY(moei_gemm_desc_check(gemm, call, "args.gemm"));
    }
    const int64_t any[2] = {-1, -1};
    MOE_TRY(moei_tensor_check(&args->y, call, "y", MOEI_DTYPES_FLOAT, 2, any));
    moek_ggemm_args a = {0};
    const bool readable = ctx->backend->host_memory;
    int32_t count = 1;
    int64_t rows = args->y.shape[0]; // on a device the most that there may be
    if (moei_tensor_present(&args->offsets)) {
        MOE_REQUIRE(args->offsets.ndim == 1 && args->offsets.shape[0] >= 1 &&
                        args->offsets.shape[0] <= 4097,
                    MOE_E_SHAPE, "%s: offsets has %" PRId64 " entries, must be 2..4097", call,
                    args->offsets.ndim == 1 ? args->offsets.shape[0] : -1);
        count = (int32_t)args->offsets.shape[0] - 1;
        MOE_TRY(check_offsets(&args->offsets, count, readable, call, &rows));
        a.offsets = (const int32_t *)(const void *)moei_tensor_data(&args->offsets);
    } else {
        MOE_REQUIRE(
            !moei_tensor_present(&args->row_index) && !moei_tensor_present(&args->out_index),
            MOE_E_ARGUMENT, "%s: row_index or out_index is given without offsets [2]", call);
    }
    int64_t x_rows;
    int64_t k = matrix != NULL ? matrix->desc.inputs
                               : stated_k(&args->weights.values, moei_format(gemm->weight_format),
                                          args->transposed != 0);
    MOE_TRY(moei_operand_from_tensors(&args->x, &args->x_scales, &act_scale, &gemm->act, call, &a.x,
                                      &x_rows, &k));
    if (matrix != NULL) {
        MOE_TRY(check_fits_matrix(matrix, a.x.dtype, k, args->y.shape[1], count, call));
        a.w = matrix->m;
    } else {
        moe_matrix_source weights = args->weights;
        if (!moei_quant_needs_given_scale(&gemm->act) && moei_quant_has_global_scale(&gemm->act)) {
            weights.act_scale.data = NULL; // came with the codes, belongs to x alone
        }
        MOE_TRY(moei_matrices_from_source(&weights, gemm, count, args->y.shape[1], k,
                                          args->transposed != 0, MOE_GATE_UP_UNSET, call, "weights",
                                          &a.w));
        MOE_TRY(moei_matrices_check_aligned(&a.w, call, "weights"));
    }
    MOE_TRY(moei_tensor_check_unfolded(&args->y, call, "y"));
    if (a.x.scale2 != NULL) {
        MOE_TRY(moei_tensor_check_aligned(&act_scale, call, "weights.act_scale"));
    }
    MOE_TRY(check_index(&args->row_index, rows, x_rows, readable, call, "row_index", &a.row_index));
    MOE_TRY(check_index(&args->out_index, rows, args->y.shape[0], readable, call, "out_index",
                        &a.out_index));
    MOE_TRY(check_row_weight(&args->row_weight, args->y.shape, call, &a.row_weight));
    a.rows = rows;
    a.row_divisor = 1;
    a.weight_row_stride = 1;
    a.y = moei_tensor_data(&args->y);
    a.y_dtype = args->y.dtype;
    a.y_row_stride = moei_tensor_stride_bytes(&args->y, 0);
    const moei_ggemm_problem problem = {.m_max = rows,
                                        .n = a.w.n,
                                        .k = k,
                                        .experts = count,
                                        .gemm = gemm,
                                        .x_dtype = a.x.dtype,
                                        .y_dtype = a.y_dtype,
                                        .transposed = matrix != NULL ? matrix->desc.transposed != 0
                                                                     : args->transposed != 0,
                                        .canonical = matrix == NULL};
    const moei_kernel *kernel = NULL;
    MOE_TRY(matrix != NULL ? matrix_kernel(matrix, &problem, call, &kernel)
                           : moei_ggemm_select(ctx, &problem, call, "args.gemm", &kernel));
    MOE_TRY(moei_views_check_overlap(views, num_views, call));
    const moei_exec exec = moei_exec_make(ctx, stream);
    moei_count_run(ctx, kernel);
    return ctx->backend->ggemm(&exec, kernel, &a);
}
