// SPDX-License-Identifier: Apache-2.0
// quantize: shapes of scales, checks of views, and the public calls.
#include "ops/quantize.h"

#include <inttypes.h>

#include "core/tensor.h"

moek_quantize_args moei_quantize_args_make(const moe_quant_desc *desc)
{
    moek_quantize_args args = {.quant = *desc, .info = moei_quant_get(desc->spec), .batches = 1};
    moei_quant_resolve(&args.quant);
    return args;
}

int64_t moei_quant_row_bytes(moe_dtype elem, int64_t k)
{
    const int64_t bits = moe_dtype_bits(elem);
    return k / 8 * bits + (k % 8 * bits + 7) / 8;
}

moei_scale_shape moei_quant_scale_shape(const moe_quant_desc *desc, int64_t batches, int64_t rows,
                                        int64_t k)
{
    moe_quant_desc quant = *desc;
    moei_quant_resolve(&quant);
    const moei_quant_info *info = moei_quant_get(quant.spec);
    moei_scale_shape s = {.dtype = moei_scale_dtype(quant.scale_type)};
    if (info->grain == MOEI_GRAIN_TENSOR) {
        s.rows = s.groups = s.columns = 1;
        s.elems = 1;
        return s;
    }
    const bool packed = quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    s.rows = moei_i64_ceil_div(rows, info->block_rows);
    s.groups = quant.group > 0 ? moei_i64_ceil_div(k, quant.group) : 1;
    s.columns = packed ? moei_i64_ceil_div(s.groups, 4) : s.groups;
    int64_t padded = s.rows;
    if (quant.scale_layout == MOE_SCALE_LAYOUT_COLUMN) {
        padded = packed && s.rows <= INT64_MAX - 3 ? moei_i64_round_up(s.rows, 4) : s.rows;
        s.row_stride = 1;
        s.k_stride = padded;
    } else {
        s.row_stride = moei_i64_max(s.columns, 1);
        s.k_stride = 1;
    }
    const size_t batch = moei_size_mul((size_t)padded, (size_t)s.columns);
    s.batch_stride = batch > INT64_MAX ? INT64_MAX : (int64_t)batch;
    s.elems = moei_size_mul(batch, (size_t)batches);
    return s;
}

// ------------------------------------------------------------------------------------------ checks

// The views of a public call, and its arguments as they are gathered.
typedef struct request {
    const char *call;
    const moe_tensor *x, *q, *scales, *global_scale, *counts;
    const char *x_name;
    int ndim;
    int64_t batches, rows, k; // k counts codes
    bool inverse;
    moek_quantize_args args;
} request;

static uint32_t dtype_or_bytes(moe_dtype dtype)
{
    return MOEI_DTYPE_BIT(dtype) | (moe_dtype_bits(dtype) <= 8 ? MOEI_DTYPE_BIT(MOE_U8) : 0u);
}

static moe_status check_codes(request *r)
{
    moek_quantize_args *a = &r->args;
    const moe_dtype elem = a->quant.elem;
    const bool bytes = r->q->dtype != elem;
    const int64_t width = bytes ? moei_quant_row_bytes(elem, r->k) : r->k;
    const int64_t shape3[3] = {r->batches, r->rows, width};
    const int64_t *shape = r->ndim == 3 ? shape3 : shape3 + 1;
    MOE_TRY(moei_tensor_check(r->q, r->call, "q", dtype_or_bytes(elem), r->ndim, shape));
    if (!r->inverse) {
        MOE_TRY(moei_tensor_check_unfolded(r->q, r->call, "q"));
    }
    a->q = moei_tensor_data(r->q);
    a->q_row_stride = moei_tensor_stride_bytes(r->q, r->ndim - 2);
    a->q_batch_stride = r->ndim == 3 ? moei_tensor_stride_bytes(r->q, 0) : 0;
    return MOE_OK;
}

static moe_status check_layout(const request *r, const moe_tensor *t)
{
    const bool column = r->args.quant.scale_layout == MOE_SCALE_LAYOUT_COLUMN;
    const int dim = column ? t->ndim - 2 : t->ndim - 1;
    MOE_REQUIRE(t->stride[dim] == 1 || t->shape[dim] <= 1, MOE_E_SHAPE,
                "%s: scales have stride %" PRId64 " in dimension %d, layout %s needs 1", r->call,
                t->stride[dim], dim, column ? "column" : "row");
    return MOE_OK;
}

static moe_status check_aligned(const void *data, const char *call, const char *name)
{
    MOE_REQUIRE((uintptr_t)data % 4 == 0, MOE_E_ALIGNMENT,
                "%s: %s lies at an address that is not a multiple of 4", call, name);
    return MOE_OK;
}

static moe_status check_scales(request *r)
{
    moek_quantize_args *a = &r->args;
    const moei_scale_shape s = moei_quant_scale_shape(&a->quant, r->batches, r->rows, r->k);
    moe_tensor t = *r->scales;
    if (a->info->grain == MOEI_GRAIN_TENSOR) {
        const int64_t one[1] = {1};
        MOE_TRY(moei_tensor_check(&t, r->call, "scales", MOEI_DTYPE_BIT(s.dtype),
                                  t.ndim == 0 ? 0 : 1, one));
        a->scales = moei_tensor_data(&t);
        return check_aligned(a->scales, r->call, "scales"); // a device gathers amax there
    }
    if (t.ndim == r->ndim - 1 && s.columns == 1 && a->quant.group == 0) { // [rows]: [rows, 1]
        t.shape[t.ndim] = 1;
        t.stride[t.ndim] = 1;
        t.ndim++;
    }
    const int64_t shape3[3] = {r->batches, s.rows, s.columns};
    const int64_t *shape = r->ndim == 3 ? shape3 : shape3 + 1;
    MOE_TRY(moei_tensor_check_any_order(&t, r->call, "scales", dtype_or_bytes(s.dtype), r->ndim,
                                        shape));
    MOE_TRY(check_layout(r, &t));
    if (!r->inverse) {
        MOE_TRY(moei_tensor_check_unfolded(&t, r->call, "scales"));
    }
    a->scales = moei_tensor_data(&t);
    a->scale_batch_stride = r->ndim == 3 ? t.stride[0] : 0;
    a->scale_row_stride = t.stride[r->ndim - 2];
    a->scale_k_stride = t.stride[r->ndim - 1];
    return MOE_OK;
}

static moe_status check_global(request *r)
{
    moek_quantize_args *a = &r->args;
    const bool present = r->global_scale != NULL && moei_tensor_present(r->global_scale);
    if (!moei_quant_has_global_scale(&a->quant)) {
        MOE_REQUIRE(!present, MOE_E_ARGUMENT,
                    "%s: global_scale is given, quantiser %s has none (nvfp4, nvfp4_inverse have)",
                    r->call, a->info->name);
        return MOE_OK;
    }
    MOE_REQUIRE(present, MOE_E_ARGUMENT, "%s: global_scale is absent, quantiser %s %s it", r->call,
                a->info->name, moei_quantize_is_global(a->info) ? "writes" : "reads");
    const int64_t one[1] = {1};
    MOE_TRY(moei_tensor_check(r->global_scale, r->call, "global_scale", MOEI_DTYPE_BIT(MOE_F32),
                              r->global_scale->ndim == 0 ? 0 : 1, one));
    a->global_scale = (float *)(void *)moei_tensor_data(r->global_scale);
    return check_aligned(a->global_scale, r->call, "global_scale");
}

static moe_status check_counts(request *r, bool readable)
{
    moek_quantize_args *a = &r->args;
    if (!moei_tensor_present(r->counts)) {
        return MOE_OK;
    }
    MOE_REQUIRE(r->ndim == 3, MOE_E_ARGUMENT,
                "%s: counts are given, %s is 2-D; they need [E, T, k]", r->call, r->x_name);
    MOE_TRY(
        moei_tensor_check(r->counts, r->call, "counts", MOEI_DTYPE_BIT(MOE_I32), 1, &r->batches));
    a->counts = (const int32_t *)(const void *)moei_tensor_data(r->counts);
    MOE_TRY(check_aligned(a->counts, r->call, "counts"));
    return readable ? moei_counts_check(a->counts, r->batches, r->rows, r->call) : MOE_OK;
}

static moe_status check_distinct(const request *r)
{
    // What is written comes first in each pair.
    const bool given = r->inverse || r->args.info->scale == MOEI_SCALE_GIVEN;
    const struct {
        const moe_tensor *a, *b;
        const char *a_name, *b_name;
        bool written;
    } pairs[] = {
        {r->q, r->x, "q", r->x_name, true},
        {r->scales, r->x, "scales", r->x_name, r->inverse || !given},
        {r->scales, r->q, "scales", "q", !r->inverse},
        {r->counts, r->q, "counts", "q", !r->inverse},
        {r->counts, r->x, "counts", r->x_name, r->inverse},
        {r->counts, r->scales, "counts", "scales", !given},
        {r->global_scale, r->x, "global_scale", r->x_name, true},
        {r->global_scale, r->q, "global_scale", "q", true},
        {r->global_scale, r->scales, "global_scale", "scales", true},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        MOE_REQUIRE(pairs[i].a == NULL || !pairs[i].written ||
                        !moei_tensor_overlap(pairs[i].a, pairs[i].b),
                    MOE_E_OVERLAP, "%s: %s overlaps %s", r->call, pairs[i].a_name, pairs[i].b_name);
    }
    return MOE_OK;
}

// Checks r's views (halves: x holds gate and up) and fills r->args.
static moe_status check_request(const moe_context *ctx, request *r, const moe_quant_desc *quant,
                                int64_t halves)
{
    const int64_t any[3] = {-1, -1, -1};
    const moe_tensor absent = {.data = NULL};
    const moei_view views[] = {
        {r->x, r->x_name, false},
        {r->q, "q", true},
        {r->scales, "scales", true},
        {r->global_scale != NULL ? r->global_scale : &absent, "global_scale", true},
        {r->counts, "counts", false}};
    MOE_TRY(moei_views_check_device(views, 5, ctx->backend->device, r->call));
    MOE_REQUIRE(quant->spec != MOE_QUANT_NONE, MOE_E_UNSET, "%s: quant.spec is unset (0)", r->call);
    MOE_TRY(moei_quant_check(quant, r->call));
    r->args = moei_quantize_args_make(quant);
    r->ndim = r->x->ndim == 3 ? 3 : 2;
    MOE_TRY(moei_tensor_check(r->x, r->call, r->x_name, MOEI_DTYPES_FLOAT, r->ndim, any));
    if (r->inverse) {
        MOE_TRY(moei_tensor_check_unfolded(r->x, r->call, r->x_name));
    }
    const int64_t width = r->x->shape[r->ndim - 1];
    MOE_REQUIRE(width % halves == 0, MOE_E_SHAPE,
                "%s: %s has %" PRId64 " columns, gate and up need an even number", r->call,
                r->x_name, width);
    r->batches = r->ndim == 3 ? r->x->shape[0] : 1;
    r->rows = r->x->shape[r->ndim - 2];
    r->k = width / halves;
    MOE_REQUIRE(r->batches <= INT32_MAX, MOE_E_SHAPE,
                "%s: %s has %" PRId64 " batches, at most 2147483647 work", r->call, r->x_name,
                r->batches);
    moek_quantize_args *a = &r->args;
    a->batches = (int32_t)r->batches;
    a->rows = r->rows;
    a->k = r->k;
    a->x = moei_tensor_data(r->x);
    a->x_dtype = r->x->dtype;
    a->x_row_stride = moei_tensor_stride_bytes(r->x, r->ndim - 2);
    a->x_batch_stride = r->ndim == 3 ? moei_tensor_stride_bytes(r->x, 0) : 0;
    a->stage = r->inverse ? MOEK_QUANTIZE_INVERSE : MOEK_QUANTIZE_CODES;
    MOE_TRY(check_codes(r));
    MOE_TRY(check_scales(r));
    MOE_TRY(check_global(r));
    MOE_TRY(check_counts(r, ctx->backend->host_memory));
    return check_distinct(r);
}

static moe_status run(const moe_context *ctx, const request *r, void *stream)
{
    const moei_exec exec = moei_exec_make(ctx, stream);
    const moei_kernel *kernel = ctx->op_kernel[MOEI_OP_QUANTIZE];
    moei_count_run(ctx, kernel);
    return ctx->backend->quantize(&exec, kernel, &r->args);
}

static moe_status quantize_or_back(const moe_context *ctx, const moe_quantize_args *args,
                                   void *stream, const char *call, bool inverse)
{
    moe_quantize_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    request r = {.call = call,
                 .x = &args->x,
                 .x_name = "x",
                 .q = &args->q,
                 .scales = &args->scales,
                 .global_scale = &args->global_scale,
                 .counts = &args->counts,
                 .inverse = inverse};
    MOE_TRY(check_request(ctx, &r, &args->quant, 1));
    return run(ctx, &r, stream);
}

moe_status moe_quantize(const moe_context *ctx, const moe_quantize_args *args, void *stream)
{
    return quantize_or_back(ctx, args, stream, "moe_quantize", false);
}

moe_status moe_dequantize(const moe_context *ctx, const moe_quantize_args *args, void *stream)
{
    return quantize_or_back(ctx, args, stream, "moe_dequantize", true);
}

moe_status moe_silu_mul_quantize(const moe_context *ctx, const moe_silu_mul_quantize_args *args,
                                 void *stream)
{
    const char *call = "moe_silu_mul_quantize";
    moe_silu_mul_quantize_args known;
    MOE_TRY(moei_op_begin(ctx, args, &known, sizeof known, stream, call));
    args = &known;
    const moe_quant_spec spec = args->quant.spec;
    MOE_REQUIRE(spec == MOE_QUANT_NONE || moei_quant_get(spec) == NULL ||
                    (spec >= MOE_QUANT_FP8_GROUP_DIV && spec <= MOE_QUANT_FP8_GROUP_DEEPGEMM),
                MOE_E_UNSUPPORTED,
                "%s: quant.spec = %s, must be fp8_group_div, fp8_group_recip, fp8_group_bf16steps "
                "or fp8_group_deepgemm; moe_glu and moe_quantize do the others",
                call, moe_quant_name(spec));
    MOE_REQUIRE(args->round_steps == 0 || args->round_steps == 1, MOE_E_ARGUMENT,
                "%s: round_steps = %d, must be 0 or 1", call, (int)args->round_steps);
    const bool bf16_steps = spec == MOE_QUANT_FP8_GROUP_BF16STEPS;
    MOE_REQUIRE(!bf16_steps || args->y.dtype == MOE_BF16, MOE_E_DTYPE,
                "%s: y is %s, quantiser %s needs bf16", call, moe_dtype_name(args->y.dtype),
                moe_quant_name(spec));
    request r = {.call = call,
                 .x = &args->y,
                 .x_name = "y",
                 .q = &args->q,
                 .scales = &args->scales,
                 .counts = &args->counts};
    MOE_TRY(check_request(ctx, &r, &args->quant, 2));
    r.args.silu_mul = true;
    r.args.round_steps = bf16_steps || args->round_steps == 1;
    r.args.up_offset = r.k;
    r.args.zero_absent_scales = true;
    return run(ctx, &r, stream);
}
