// SPDX-License-Identifier: Apache-2.0
// Every ggemm row, over every weight format and activation format that its arithmetic class takes.
// A case is drawn from the seed, the class and its number alone, so that rows of one class get the
// same problems and must give the same bits.
#include "checkmoe/check_ggemm.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/weights_internal.h"
#include "checkmoe/check_rows.h"
#include "checkmoe/layer_case.h"
#include "moe/ops.h"
#include "ops/ggemm.h"
#include "ops/operand.h"
#include "quant/elements.h"

#define MAX_EXPERTS 5

const char *moec_fill_name(moec_fill fill)
{
    static const char *const names[MOEC_NUM_FILLS] = {"exact",  "normal", "heavy",
                                                      "cancel", "tiny",   "special"};
    return names[fill];
}

typedef struct ggemm_case {
    // shape
    moe_gemm_desc gemm;
    const moei_format_info *info;
    moe_quant_desc act; // resolved; spec NONE: floats
    moec_fill fill;
    int32_t experts;
    int64_t n, k, rows;
    int32_t offsets[MAX_EXPERTS + 1];
    bool at_end; // guard pages after the buffers, else before
    bool transposed, scatter, row_weights;
    bool moderate;       // E8M0 scales are those that every packed layout keeps
    moe_gate_up gate_up; // parts for tensor scales
    moe_dtype x_dtype, y_dtype;
    // data
    moec_buffers buffers;
    unsigned char *values, *scales, *zeros, *bias, *x, *x_scales, *y;
    unsigned char *packed; // the experts as a row of a packed layout reads them
    float *scale2, *act_scale, *weights;
    int32_t *index, *out_index;
    int32_t *steps;   // offsets, then experts + 1 zeros, then as many ones
    int64_t y_stride; // elements
    float64_ggemm oracle;
    char text[256];
} ggemm_case;

// ---- drawing codes -----------------------------------------------------------------------------

static double decode(moe_dtype dtype, const void *data, int64_t i)
{
    return (double)moei_load_one(dtype, data, i);
}

static void put_code(moe_dtype dtype, unsigned char *row, int64_t i, uint32_t code)
{
    switch (moe_dtype_bits(dtype)) {
    case 4:
        moei_set_u4(row, (size_t)i, (uint8_t)(code & 15));
        break;
    case 6:
        moei_set_u6(row, (size_t)i, (uint8_t)(code & 63));
        break;
    case 8:
        row[i] = (unsigned char)code;
        break;
    case 16: {
        const uint16_t half = (uint16_t)code;
        memcpy(row + 2 * i, &half, sizeof half);
        break;
    }
    default:
        memcpy(row + 4 * i, &code, sizeof code);
        break;
    }
}

static uint32_t encode_float(moe_dtype dtype, float value)
{
    return dtype == MOE_F32    ? moei_f32_bits(value)
           : dtype == MOE_BF16 ? moei_f32_to_bf16(value)
                               : moei_f32_to_f16(value);
}

static bool is_wide(moe_dtype dtype)
{
    return dtype == MOE_F32 || dtype == MOE_BF16 || dtype == MOE_F16;
}

// Draws element i of a row so that, less `zero`, it suits the fill.
static void draw(moec_rng *rng, moec_fill fill, moe_dtype dtype, unsigned char *row, int64_t i,
                 double zero, bool outlier)
{
    if (is_wide(dtype)) {
        double value = fill == MOEC_EXACT ? (double)(moec_below(rng, 9) - 4) : moec_normal(rng);
        value *= fill == MOEC_HEAVY && outlier ? 100.0 : 1.0;
        value *= fill == MOEC_TINY ? (dtype == MOE_F16 ? 0x1p-20 : 0x1p-70) : 1.0;
        if (fill == MOEC_SPECIAL && moec_below(rng, 40) == 0) {
            static const double specials[] = {-0.0,  0.0,      0x1p-130,  1e30,
                                              -1e30, HUGE_VAL, -HUGE_VAL, (double)NAN};
            value = specials[moec_below(rng, moec_below(rng, 4) == 0 ? 8 : 4)];
        }
        put_code(dtype, row, i, encode_float(dtype, (float)value));
        return;
    }
    for (;;) {
        const uint32_t code = (uint32_t)moec_next(rng);
        put_code(dtype, row, i, code);
        const double value = decode(dtype, row, i) - zero;
        if (fill == MOEC_EXACT && (value != floor(value) || fabs(value) > 4.0)) {
            continue;
        }
        if (fill != MOEC_SPECIAL && !isfinite(value)) {
            continue;
        }
        return;
    }
}

// The E8M0 codes that every packed layout keeps.
#define FIRST_KEPT 2
#define LAST_KEPT  252

static void draw_scale(moec_rng *rng, moec_fill fill, moe_dtype dtype, void *data, int64_t i)
{
    unsigned char *row = data;
    const int power = (int)moec_below(rng, 3) - 1;
    if (dtype == MOE_E8M0) {
        row[i] = fill == MOEC_EXACT  ? (unsigned char)(127 + power)
                 : fill == MOEC_TINY ? (unsigned char)moec_below(rng, 60)
                                     : (unsigned char)(100 + moec_below(rng, 40));
        if (fill == MOEC_SPECIAL && moec_below(rng, 30) == 0) {
            row[i] = moec_below(rng, 2) == 0 ? 0xFF : 0;
        }
    } else if (dtype == MOE_E4M3FN) {
        row[i] = fill == MOEC_EXACT ? moei_f32_to_e4m3fn(ldexpf(1.0f, power), MOEI_OVERFLOW_NAN)
                                    : (unsigned char)moec_below(rng, 0x7F);
    } else {
        double value = fill == MOEC_EXACT ? ldexp(1.0, power) : 0.01 + 0.1 * fabs(moec_normal(rng));
        value *= fill == MOEC_TINY ? 0x1p-60 : 1.0;
        put_code(dtype, row, i, encode_float(dtype, (float)value));
    }
}

// ---- building a case ---------------------------------------------------------------------------

// All buffers of a case lie on the same side of their guard pages.
static void *take(ggemm_case *c, bool output, int64_t count, size_t size, bool at_end)
{
    c->buffers.flip = (c->buffers.count % 2 == 0) != at_end;
    return output ? moec_output(&c->buffers, count, size) : moec_input(&c->buffers, count, size);
}

// Weight codes as doubles go to the oracle: (code - zero) * scale * scale2.
static bool build_weights(ggemm_case *c, moec_rng *rng, bool at_end)
{
    const moei_format_info *info = c->info;
    const int64_t block_k = moei_gemm_block_k(info, &c->gemm);
    const int64_t inner = moei_elem_bytes(info->elem, c->transposed ? c->n : c->k);
    const int64_t outer = c->transposed ? c->k : c->n;
    const bool halves = c->gate_up == MOE_GATE_FIRST || c->gate_up == MOE_UP_FIRST;
    const int64_t part_rows = halves ? c->n / 2 : c->n;
    const int64_t parts = c->gate_up != MOE_GATE_UP_UNSET ? 2 : 1;
    const int64_t parts2 = c->gemm.channel_scale != 0 ? c->n : parts;
    const int64_t srows =
        info->block_n == 0 ? parts
                           : (halves ? 2 : 1) * ((part_rows + info->block_n - 1) / info->block_n);
    const int64_t scolumns = block_k > 0 ? (c->k + block_k - 1) / block_k : 1;
    const moe_dtype sdtype = c->gemm.weight_scale_dtype != 0 ? c->gemm.weight_scale_dtype
                                                             : moei_format_scale_dtype(info);
    const size_t sbytes = (size_t)moe_dtype_bits(sdtype) / 8;
    const int64_t groups = block_k > 0 ? scolumns : 1;
    c->values = take(c, false, c->experts * outer * inner, 1, at_end);
    c->scales = take(c, false, c->experts * srows * scolumns, sbytes, at_end);
    c->scale2 = take(c, false, c->experts * parts2, sizeof(float), at_end);
    c->zeros = take(c, false, c->experts * c->n * groups, 1, at_end);
    c->bias = take(c, false, c->experts * c->n, 4, at_end);
    if (c->buffers.failed) {
        return false;
    }
    for (int64_t i = 0; i < c->experts * parts2; i++) {
        c->scale2[i] = c->fill == MOEC_EXACT ? 2.0f : 0.5f + (float)moec_below(rng, 100) * 0.01f;
    }
    for (int64_t i = 0; sbytes > 0 && i < c->experts * srows * scolumns; i++) {
        draw_scale(rng, c->fill, sdtype, c->scales, i);
        if (c->moderate && sdtype == MOE_E8M0) { // no new overflow, as 2^125 might bring
            c->scales[i] = c->scales[i] < FIRST_KEPT  ? FIRST_KEPT
                           : c->scales[i] > LAST_KEPT ? 127
                                                      : c->scales[i];
        }
    }
    for (int64_t i = 0; i < c->experts * c->n * groups; i++) {
        c->zeros[i] =
            (unsigned char)(info->zero_point < 0       ? 0
                            : c->gemm.zero_points != 0 ? info->zero_point - 2 + moec_below(rng, 5)
                                                       : info->zero_point);
    }
    for (int64_t i = 0; i < c->experts * c->n; i++) {
        draw(rng, c->fill == MOEC_TINY ? MOEC_NORMAL : c->fill, MOE_F32, c->bias, i, 0.0, false);
    }
    for (int32_t e = 0; e < c->experts; e++) {
        for (int64_t n = 0; n < c->n; n++) {
            const int64_t part = parts == 1 ? 0 : halves ? n / part_rows : n % 2;
            for (int64_t k = 0; k < c->k; k++) {
                const int64_t zero_at = (e * c->n + n) * groups + (block_k > 0 ? k / block_k : 0);
                const double zero = info->zero_point < 0 ? 0.0 : (double)c->zeros[zero_at];
                unsigned char *row = c->values + (e * outer + (c->transposed ? k : n)) * inner;
                const int64_t i = c->transposed ? n : k;
                draw(rng, c->fill, info->elem, row, i, zero, k % 17 == 3);
                double value = decode(info->elem, row, i) - zero;
                if (sbytes > 0) {
                    const int64_t srow =
                        info->block_n == 0
                            ? part
                            : (halves ? n / part_rows : 0) *
                                      ((part_rows + info->block_n - 1) / info->block_n) +
                                  (halves ? n % part_rows : n) / info->block_n;
                    const int64_t at =
                        (e * srows + srow) * scolumns + (block_k > 0 ? k / block_k : 0);
                    value *= decode(sdtype, c->scales, at);
                }
                if (info->scale2 || c->gemm.channel_scale != 0) {
                    value *= (double)c->scale2[e * parts2 + (parts2 == c->n ? n : part)];
                }
                c->oracle.w[(e * c->n + n) * c->k + k] = value;
            }
            c->oracle.bias[e * c->n + n] =
                c->gemm.bias != 0 ? decode(MOE_F32, c->bias, e * c->n + n) : 0.0;
        }
    }
    return true;
}

static bool build_x(ggemm_case *c, moec_rng *rng, bool at_end)
{
    const moe_dtype elem = c->x_dtype;
    const int64_t row_bytes = moei_elem_bytes(elem, c->k);
    const moei_scale_shape s =
        c->act.spec != MOE_QUANT_NONE
            ? moei_quant_scale_shape(&c->act, 1, c->rows, c->k)
            : (moei_scale_shape){.dtype = MOE_F32, .rows = 1, .columns = 1, .elems = 1};
    const int64_t bytes = moe_dtype_bits(s.dtype) / 8;
    c->x = take(c, false, c->rows * row_bytes, 1, at_end);
    c->x_scales = take(c, false, (int64_t)s.elems, (size_t)bytes, at_end);
    c->act_scale = take(c, false, 1, sizeof(float), at_end);
    if (c->buffers.failed) {
        return false;
    }
    *c->act_scale = c->fill == MOEC_EXACT ? 2.0f : 0.75f;
    const bool packed = c->act.scale_type == MOE_SCALE_UE8M0_PACKED;
    for (size_t i = 0; i < s.elems * (packed ? 4u : 1u); i++) {
        draw_scale(rng, c->fill, packed ? MOE_E8M0 : s.dtype, c->x_scales, (int64_t)i);
    }
    const bool given = c->act.spec != MOE_QUANT_NONE && moei_quant_needs_given_scale(&c->act);
    const bool global = c->act.spec != MOE_QUANT_NONE && moei_quant_has_global_scale(&c->act);
    for (int64_t r = 0; r < c->rows; r++) {
        unsigned char *row = c->x + r * row_bytes;
        for (int64_t k = 0; k < c->k; k++) {
            draw(rng, c->fill, elem, row, k, 0.0, k % 17 == 3);
            if (c->fill == MOEC_CANCEL && k >= (c->k + 1) / 2) {
                const double first = decode(elem, row, k - (c->k + 1) / 2);
                if (is_wide(elem)) {
                    put_code(elem, row, k, encode_float(elem, (float)-first));
                }
            }
            double value = decode(elem, row, k);
            if (c->act.spec != MOE_QUANT_NONE && !(given && !global)) {
                const int64_t group = c->act.group > 0 ? k / c->act.group : 0;
                value *= packed
                             ? (double)moei_e8m0_to_f32(
                                   c->x_scales[4 * (r * s.row_stride + group / 4 * s.k_stride) +
                                               group % 4])
                             : decode(s.dtype, c->x_scales, r * s.row_stride + group * s.k_stride);
            }
            value *= given && !global ? (double)*c->act_scale : 1.0;
            value /= global ? (double)*c->act_scale : 1.0;
            c->oracle.x[r * c->k + k] = value;
        }
    }
    return true;
}

static void build_rows(ggemm_case *c, moec_rng *rng)
{
    int32_t *out_index = c->out_index;
    for (int64_t i = 0; i < c->rows; i++) {
        c->index[i] = (int32_t)moec_below(rng, c->rows);
        out_index[i] = (int32_t)i;
        c->weights[i] = c->fill == MOEC_EXACT ? (i % 2 == 0 ? 0.5f : 2.0f)
                                              : (float)(0.1 + fabs(moec_normal(rng)));
    }
    for (int64_t i = c->rows - 1; c->scatter && i > 0; i--) { // a permutation
        const int64_t j = moec_below(rng, i + 1);
        const int32_t t = out_index[i];
        out_index[i] = out_index[j];
        out_index[j] = t;
    }
}

// Beside the offsets of all rows, numbers of which any window of experts + 1 says that there is one
// row, of one expert.
static void build_steps(ggemm_case *c)
{
    const int32_t n = c->experts + 1;
    memcpy(c->steps, c->offsets, (size_t)n * sizeof *c->steps);
    for (int32_t i = 0; i < n; i++) {
        c->steps[n + i] = 0;
        c->steps[2 * n + i] = 1;
    }
}

// Offsets of a group with one row of expert e.
static const int32_t *one_row_of(const ggemm_case *c, int32_t e)
{
    return c->steps + 2 * c->experts + 1 - e;
}

static void free_case(ggemm_case *c)
{
    moec_buffers_free(&c->buffers);
    float64_ggemm_free(&c->oracle);
}

/// Shapes of a case. Rows that refuse what is PLAIN get the ROUND one in its place.
typedef enum shape_kind {
    SHAPE_PLAIN,       // anything
    SHAPE_ROUND,       // multiples of 128
    SHAPE_LARGE,       // several tiles of any kernel, and more of k than one chunk
    SHAPE_LARGE_ROUND, // both
    NUM_SHAPES
} shape_kind;

static void draw_shape(ggemm_case *c, moec_rng *rng, shape_kind kind)
{
    static const int64_t k_sizes[] = {1,  2,   3,   5,   16,  17,  31,  32,  33,  64,
                                      96, 127, 128, 129, 160, 255, 256, 257, 320, 520};
    static const int64_t large_k_sizes[] = {576, 704, 1024, 1100, 1440, 2050};
    static const moe_dtype y_dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    const bool large = kind == SHAPE_LARGE || kind == SHAPE_LARGE_ROUND;
    c->at_end = moec_below(rng, 2) == 0;
    c->experts = 1 + (int32_t)moec_below(rng, large ? 2 : MAX_EXPERTS);
    c->n = 1 + moec_below(rng, large ? 300 : 70);
    c->k = large ? large_k_sizes[moec_below(rng, 6)]
                 : k_sizes[moec_below(rng, (int64_t)(sizeof k_sizes / sizeof k_sizes[0]))];
    if (kind == SHAPE_ROUND || kind == SHAPE_LARGE_ROUND) {
        c->n = (c->n + 127) / 128 * 128;
        c->k = (c->k + 127) / 128 * 128;
    }
    c->transposed = moe_dtype_bits(c->info->elem) >= 8 && moec_below(rng, 3) == 0;
    c->scatter = moec_below(rng, 2) == 0;
    c->row_weights = moec_below(rng, 2) == 0;
    c->gemm.bias = (int32_t)moec_below(rng, 2);
    c->gemm.zero_points = c->info->zero_point >= 0 ? (int32_t)moec_below(rng, 2) : 0;
    c->gemm.channel_scale = c->info->free_group ? (int32_t)moec_below(rng, 2) : 0;
    c->y_dtype = y_dtypes[moec_below(rng, 3)];
    if (moec_below(rng, 2) == 0) {
        c->n += c->n % 2;
        c->gate_up = 1 + (moe_gate_up)moec_below(rng, 4);
    }
    for (int32_t e = 0; e < c->experts; e++) {
        // Mostly few rows; now and then more than a kernel's tile holds.
        const int64_t most = large && e == 0 ? 300 : moec_below(rng, 6) == 0 ? 40 : 8;
        c->offsets[e + 1] = c->offsets[e] + (int32_t)moec_below(rng, most);
    }
    c->rows = c->offsets[c->experts];
    c->y_stride = c->n + 3;
}

static bool build_case(ggemm_case *c, moec_rng *rng)
{
    const bool at_end = c->at_end;
    (void)snprintf(
        c->text, sizeof c->text,
        "%s x %s (%s) -> %s, %s, e=%d rows=%lld n=%lld k=%lld%s%s%s%s%s gate_up=%d",
        c->act.spec != MOE_QUANT_NONE ? moe_quant_name(c->act.spec) : moe_dtype_name(c->x_dtype),
        c->info->name, moe_dtype_name(c->gemm.weight_scale_dtype), moe_dtype_name(c->y_dtype),
        moec_fill_name(c->fill), (int)c->experts, (long long)c->rows, (long long)c->n,
        (long long)c->k, c->transposed ? " transposed" : "", c->scatter ? " scatter" : "",
        c->gemm.bias != 0 ? " bias" : "", c->gemm.zero_points != 0 ? " zeros" : "",
        c->gemm.channel_scale != 0 ? " channel" : "", (int)c->gate_up);
    c->index = take(c, false, c->rows, sizeof *c->index, at_end);
    c->out_index = take(c, false, c->rows, sizeof *c->out_index, at_end);
    c->weights = take(c, false, c->rows, sizeof *c->weights, at_end);
    c->steps = take(c, false, 3 * ((int64_t)c->experts + 1), sizeof *c->steps, at_end);
    c->y = take(c, true, c->rows * c->y_stride, (size_t)moe_dtype_bits(c->y_dtype) / 8, at_end);
    if (c->buffers.failed || !float64_ggemm_alloc(&c->oracle, c->experts, c->rows, c->n, c->k) ||
        !build_weights(c, rng, at_end) || !build_x(c, rng, at_end)) {
        return false;
    }
    build_rows(c, rng);
    build_steps(c);
    return true;
}

// ---- running -----------------------------------------------------------------------------------

static moe_tensor scale_view(const ggemm_case *c)
{
    const moe_dtype dtype = c->gemm.weight_scale_dtype != 0 ? c->gemm.weight_scale_dtype
                                                            : moei_format_scale_dtype(c->info);
    const bool halves = c->gate_up == MOE_GATE_FIRST || c->gate_up == MOE_UP_FIRST;
    const int64_t block_k = moei_gemm_block_k(c->info, &c->gemm);
    const int64_t columns = block_k > 0 ? (c->k + block_k - 1) / block_k : 1;
    if (c->info->scale_dtypes == 0) {
        return (moe_tensor){0};
    }
    if (c->info->block_n == 0) {
        return moe_tensor_2d(c->scales, dtype, c->experts, c->gate_up != MOE_GATE_UP_UNSET ? 2 : 1);
    }
    const int64_t part = halves ? c->n / 2 : c->n;
    const int64_t rows = (halves ? 2 : 1) * ((part + c->info->block_n - 1) / c->info->block_n);
    return moe_tensor_3d(c->scales, dtype, c->experts, rows, columns);
}

static moe_status make_args(const ggemm_case *c, moek_ggemm_args *a)
{
    moe_matrix_source s = {0};
    const int64_t parts = c->gate_up != MOE_GATE_UP_UNSET ? 2 : 1;
    const int64_t block_k = moei_gemm_block_k(c->info, &c->gemm);
    s.values = c->transposed ? moe_tensor_3d(c->values, c->info->elem, c->experts, c->k, c->n)
                             : moe_tensor_3d(c->values, MOE_U8, c->experts, c->n,
                                             moei_elem_bytes(c->info->elem, c->k));
    if (!c->transposed && moe_dtype_bits(c->info->elem) > 8) {
        s.values = moe_tensor_3d(c->values, c->info->elem, c->experts, c->n, c->k);
    }
    s.scales = scale_view(c);
    if (c->info->scale2 || c->gemm.channel_scale != 0) {
        s.scale2 = moe_tensor_2d(c->scale2, MOE_F32, c->experts,
                                 c->gemm.channel_scale != 0 ? c->n : parts);
    }
    if (c->gemm.zero_points != 0) {
        s.zero_points =
            moe_tensor_3d(c->zeros, MOE_U8, c->experts, c->n, (c->k + block_k - 1) / block_k);
    }
    if (c->gemm.bias != 0) {
        s.bias = moe_tensor_2d(c->bias, MOE_F32, c->experts, c->n);
    }
    const moe_tensor act_scale = moe_tensor_1d(c->act_scale, MOE_F32, 1);
    if (moei_quant_needs_given_scale(&c->gemm.act)) {
        s.act_scale = act_scale;
    }
    memset(a, 0, sizeof *a);
    MOE_TRY(moei_matrices_from_source(&s, &c->gemm, c->experts, c->n, c->k, c->transposed,
                                      c->gate_up, "check", "weights", &a->w));
    const moe_tensor x =
        moe_dtype_bits(c->x_dtype) < 8
            ? moe_tensor_2d(c->x, MOE_U8, c->rows, moei_elem_bytes(c->x_dtype, c->k))
            : moe_tensor_2d(c->x, c->x_dtype, c->rows, c->k);
    moe_tensor x_scales = {0};
    if (c->act.spec != MOE_QUANT_NONE) {
        const moei_scale_shape shape = moei_quant_scale_shape(&c->act, 1, c->rows, c->k);
        if (shape.row_stride == 0) {
            x_scales = moe_tensor_1d(c->x_scales, shape.dtype, 1);
        } else {
            x_scales = moe_tensor_2d(c->x_scales, shape.dtype, shape.rows, shape.columns);
            x_scales.stride[0] = shape.row_stride;
            x_scales.stride[1] = shape.k_stride;
        }
        if (moei_quant_needs_given_scale(&c->act) && !moei_quant_has_global_scale(&c->act)) {
            x_scales = (moe_tensor){0};
        }
    }
    int64_t rows;
    int64_t k = c->k;
    MOE_TRY(moei_operand_from_tensors(&x, &x_scales, &act_scale, &c->gemm.act, "check", &a->x,
                                      &rows, &k));
    a->offsets = c->steps;
    a->rows = c->rows;
    a->row_index = c->index;
    a->row_divisor = 1;
    a->out_index = c->scatter ? c->out_index : NULL;
    a->row_weight = c->row_weights ? c->weights : NULL;
    a->weight_row_stride = 1;
    a->y = c->y;
    a->y_dtype = c->y_dtype;
    a->y_row_stride = c->y_stride * moe_dtype_bits(c->y_dtype) / 8;
    return MOE_OK;
}

// ---- packed layouts ----------------------------------------------------------------------------

// Packs one expert and unpacks it: all bytes must come back, unless the backend says that it cannot
// keep them (VALUE).
static moe_status pack_exactly(moec_run *run, const moei_kernel *kernel, const ggemm_case *c,
                               const moei_matrices *one, uint8_t *block)
{
    static const char silent[] = "pack gave no reason";
    const moei_backend *b = run->ctx->backend;
    const uint8_t *from[3] = {one->values, one->scales, one->zeros};
    const size_t bytes[3] = {(size_t)one->value_e_stride,
                             one->scales != NULL ? (size_t)one->scale_e_stride *
                                                       (size_t)moe_dtype_bits(one->scale_dtype) / 8
                                                 : 0,
                             one->zeros != NULL ? (size_t)one->zero_e_stride : 0};
    (void)moe_fail(MOE_E_VALUE, "%s", silent);
    const moe_status status = b->pack(kernel, one, block);
    if (status != MOE_OK) {
        moec_check(run, status == MOE_E_VALUE && strcmp(moe_last_error(), silent) != 0,
                   kernel->name, "%s: %s: pack says %s: %s", kernel->name, c->text,
                   moe_status_name(status), moe_last_error());
        return status;
    }
    uint8_t *memory = malloc(bytes[0] + bytes[1] + bytes[2] + 1);
    if (!moec_check(run, memory != NULL, kernel->name, "%s: %s: memory is short", kernel->name,
                    c->text)) {
        return MOE_E_NO_MEMORY;
    }
    uint8_t *to[3] = {memory, memory + bytes[0], memory + bytes[0] + bytes[1]};
    moei_matrices back = *one;
    memset(memory, MOEC_POISON, bytes[0] + bytes[1] + bytes[2]);
    back.values = to[0];
    back.scales = one->scales != NULL ? to[1] : NULL;
    back.zeros = one->zeros != NULL ? to[2] : NULL;
    b->unpack(kernel, block, &back);
    for (int p = 0; p < 3; p++) {
        static const char *const names[3] = {"values", "scales", "zero points"};
        moec_check(run, bytes[p] == 0 || memcmp(to[p], from[p], bytes[p]) == 0, kernel->name,
                   "%s: %s: pack and unpack change %s", kernel->name, c->text, names[p]);
    }
    free(memory);
    return MOE_OK;
}

// Scales at the ends of their range are kept, or refused; those that every layout keeps are kept.
static void check_extremes(moec_run *run, const moei_kernel *kernel, const ggemm_case *c,
                           const moei_matrices *expert, uint8_t *block)
{
    static const uint8_t codes[] = {0, 1, FIRST_KEPT, LAST_KEPT, 253, 254, 255};
    const size_t scales = (size_t)expert->scale_e_stride;
    uint8_t *copy = malloc(scales + 1);
    if (!moec_check(run, copy != NULL, kernel->name, "%s: %s: memory is short", kernel->name,
                    c->text)) {
        return;
    }
    moei_matrices one = *expert;
    one.scales = copy;
    for (size_t i = 0; i < sizeof codes; i++) {
        memcpy(copy, expert->scales, scales);
        copy[scales - 1] = codes[i];
        const moe_status status = pack_exactly(run, kernel, c, &one, block);
        moec_check(run,
                   status == MOE_OK ||
                       (status == MOE_E_VALUE && (codes[i] < FIRST_KEPT || codes[i] > LAST_KEPT)),
                   kernel->name, "%s: %s: scale %d is not packed: %s", kernel->name, c->text,
                   (int)codes[i], moe_last_error());
    }
    free(copy);
}

// The arguments for a row of a packed layout. VALUE: it cannot keep the case's scales.
static moe_status pack_case(moec_run *run, const moei_kernel *kernel, ggemm_case *c,
                            const moek_ggemm_args *canonical, moek_ggemm_args *out)
{
    moei_matrices m = canonical->w;
    m.values = NULL;
    m.scales = NULL;
    m.zeros = NULL;
    const size_t bytes = run->ctx->backend->packed_bytes(kernel, &m);
    MOE_REQUIRE(bytes > 0 && bytes % 16 == 0 && bytes != SIZE_MAX, MOE_E_STATE,
                "a packed expert takes %zu bytes, must be a multiple of 16", bytes);
    c->packed = take(c, false, c->experts, bytes, c->at_end);
    MOE_REQUIRE(c->packed != NULL, MOE_E_NO_MEMORY, "memory is short");
    for (int32_t e = 0; e < c->experts; e++) {
        const moei_matrices one = moei_expert_of(&canonical->w, e);
        uint8_t *block = c->packed + (size_t)e * bytes;
        MOE_TRY(pack_exactly(run, kernel, c, &one, block));
        if (e == 0 && c->fill == MOEC_SPECIAL && one.scales != NULL &&
            one.scale_dtype == MOE_E8M0) {
            check_extremes(run, kernel, c, &one, block);
            MOE_TRY(pack_exactly(run, kernel, c, &one, block));
        }
    }
    *out = *canonical;
    m.layout = MOEI_LAYOUT_PACKED;
    m.values = c->packed;
    m.value_e_stride = (int64_t)bytes;
    out->w = m;
    return MOE_OK;
}

// ---- checking ----------------------------------------------------------------------------------

// Error / bound of the result of row i of expert e, column n, and what it follows from.
static double ratio_at(const ggemm_case *c, float64_model model, int32_t e, int64_t i, int64_t n,
                       double *want, double *bound)
{
    const int64_t y_row = c->scatter ? c->out_index[i] : i;
    const double weight = c->row_weights ? (double)c->weights[y_row] : 1.0;
    const double have = decode(c->y_dtype, c->y, y_row * c->y_stride + n);
    double magnitude;
    *want = float64_ggemm_element(&c->oracle, e, c->index[i], n, weight, &magnitude);
    *bound = c->fill == MOEC_EXACT ? float64_half_ulp(*want, c->y_dtype)
                                   : float64_ggemm_bound(model, c->k, magnitude, *want, c->y_dtype);
    if (isnan(*want) || isnan(have)) {
        // Products beyond f32's range may meet as inf - inf.
        const bool overflow = isnan(have) && magnitude > (double)FLT_MAX;
        return (isnan(*want) && isnan(have)) || overflow ? 0.0 : HUGE_VAL;
    }
    if (isinf(*want) || isinf(have)) {
        // Beyond the range of f32, or of y: infinity of the right sign.
        const double limit = c->y_dtype == MOE_F16 ? 65504.0 : (double)FLT_MAX;
        const bool may = fabs(*want) + *bound > limit || magnitude > (double)FLT_MAX;
        return (isinf(*want) && have == *want) || (may && (isinf(have) || fabs(*want) >= limit))
                   ? 0.0
                   : HUGE_VAL;
    }
    const double error = fabs(have - *want);
    return error == 0.0 ? 0.0 : *bound > 0.0 ? error / *bound : HUGE_VAL;
}

// Whether every element is within its bound. Where `wants` and `bounds` are given ([rows, n]),
// fills them instead of stopping at the first that is not. Raises `worst` to the largest ratio.
static bool within_bounds(const ggemm_case *c, float64_model model, double *wants, double *bounds,
                          double *worst)
{
    bool within = true;
    for (int32_t e = 0; e < c->experts; e++) {
        for (int64_t i = c->offsets[e]; i < c->offsets[e + 1]; i++) {
            const int64_t y_row = c->scatter ? c->out_index[i] : i;
            for (int64_t n = 0; n < c->n && (within || wants != NULL); n++) {
                double want;
                double bound;
                const double ratio = ratio_at(c, model, e, i, n, &want, &bound);
                within = within && ratio <= 1.0;
                *worst = ratio > *worst ? ratio : *worst;
                if (wants != NULL) {
                    // Equal, or excused: infinities and NaN that overflow explains.
                    wants[y_row * c->n + n] =
                        ratio > 0.0 ? want : decode(c->y_dtype, c->y, y_row * c->y_stride + n);
                    bounds[y_row * c->n + n] = bound;
                }
            }
        }
    }
    return within;
}

static void check_bounds(moec_run *run, const moei_kernel *kernel, const ggemm_case *c)
{
    const float64_model model = moec_model_of(kernel);
    if (within_bounds(c, model, NULL, NULL, &run->worst)) {
        run->counts->passed++;
        return;
    }
    const size_t elements = (size_t)(c->rows * c->n);
    double *wants = calloc(2 * elements, sizeof *wants);
    if (!moec_check(run, wants != NULL, kernel->name, "%s: %s: beyond its bound; memory is short",
                    kernel->name, c->text)) {
        return;
    }
    (void)within_bounds(c, model, wants, wants + elements, &run->worst);
    moec_compare compare = {.actual = moe_tensor_2d(c->y, c->y_dtype, c->rows, c->n),
                            .expected = moe_tensor_2d(wants, MOE_F64, c->rows, c->n),
                            .bound = wants + elements,
                            .nan_matches = 1};
    compare.actual.stride[0] = c->y_stride;
    moec_fail_compare(run, &compare, kernel->name, "%s: %s", kernel->name, c->text);
    free(wants);
}

static bool padding_intact(const ggemm_case *c)
{
    const size_t bytes = (size_t)moe_dtype_bits(c->y_dtype) / 8;
    for (int64_t r = 0; r < c->rows; r++) {
        const unsigned char *row = c->y + (size_t)(r * c->y_stride) * bytes;
        for (size_t b = (size_t)c->n * bytes; b < (size_t)c->y_stride * bytes; b++) {
            if (row[b] != MOEC_POISON) {
                return false;
            }
        }
    }
    return true;
}

// All of y, padding included, against what it was.
static bool same_y(moec_run *run, const ggemm_case *c, const unsigned char *was, const char *repro,
                   const char *row, const char *what)
{
    return moec_check_same(run, c->y_dtype, c->rows, c->y_stride, c->y, was, repro, "%s: %s: %s",
                           row, c->text, what);
}

// Against the bits of the row of the same class that had the case before.
static void compare_rows(moec_run *run, const moec_launch *launch, const ggemm_case *c,
                         const unsigned char *first, uint64_t hash, int number)
{
    const moei_kernel *kernel = launch->kernel;
    moec_seen *seen = moec_seen_at(run, kernel, number);
    if (seen == NULL) {
        return;
    }
    if (seen->kernel != NULL && seen->hash != hash) {
        char both[128];
        char what[160];
        const char *isa = run->isa;
        moec_launch other = *launch;
        other.kernel = seen->kernel;
        other.args = moec_args_for(launch, seen->kernel);
        moec_pair_glob(seen->kernel->name, kernel->name, both, sizeof both);
        if (seen->kernel->layout != MOEI_LAYOUT_ROW) { // its weights are gone
            moec_check(run, false, both, "%s: %s: bits differ from %s", kernel->name, c->text,
                       seen->kernel->name);
            return;
        }
        (void)snprintf(what, sizeof what, "%s of the same class has other bits than expected",
                       seen->kernel->name);
        run->isa = NULL;
        moec_buffers_poison(launch->buffers);
        moec_launch_on(run, run->ctx, &other);
        same_y(run, c, first, both, kernel->name, what);
        run->isa = isa;
        return;
    }
    *seen = (moec_seen){kernel, hash};
    run->counts->passed++;
}

// Batch invariance: every row alone, in one group of its expert.
static void check_rows_alone(moec_run *run, const moec_launch *launch, const ggemm_case *c,
                             const unsigned char *first)
{
    const char *name = launch->kernel->name;
    const moek_ggemm_args *whole = launch->args;
    moek_ggemm_args *alone = calloc((size_t)c->rows + 1, sizeof *alone);
    if (!moec_check(run, alone != NULL, name, "%s: %s: memory is short", name, c->text)) {
        return;
    }
    for (int32_t e = 0; e < c->experts; e++) {
        for (int64_t i = c->offsets[e]; i < c->offsets[e + 1]; i++) {
            alone[i] = *whole;
            alone[i].offsets = one_row_of(c, e);
            alone[i].rows = 1;
            alone[i].row_index += i;
            if (c->scatter) {
                alone[i].out_index += i;
                continue;
            }
            alone[i].y += i * whole->y_row_stride;
            alone[i].row_weight += c->row_weights ? i : 0;
        }
    }
    moec_launch each = *launch;
    each.args = alone;
    each.count = c->rows;
    moec_buffers_poison(launch->buffers);
    if (c->rows > 0) {
        moec_launch_on(run, run->ctx, &each);
    }
    same_y(run, c, first, name, name, "rows alone differ from rows together");
    free(alone);
}

/// What becomes of a case.
typedef enum outcome {
    CASE_REFUSED, // the row does not take it
    CASE_BEYOND,  // the row's layout cannot keep its scales
    CASE_DONE
} outcome;

static outcome run_case(moec_run *run, const moec_teams *teams, const moei_kernel *kernel,
                        const moei_ggemm_problem *problem, ggemm_case *c, int number)
{
    const char *name = kernel->name;
    const bool packed = kernel->layout == MOEI_LAYOUT_PACKED;
    moek_ggemm_args canonical;
    moek_ggemm_args a;
    moe_status status = make_args(c, &canonical);
    a = canonical;
    if (status == MOE_OK && packed) {
        status = pack_case(run, kernel, c, &canonical, &a);
    }
    if (status == MOE_E_VALUE && packed && !c->moderate) {
        return CASE_BEYOND;
    }
    const size_t bytes = (size_t)(c->rows * c->y_stride * moe_dtype_bits(c->y_dtype) / 8);
    unsigned char *first = malloc(bytes + 1);
    if (moec_check(run, first != NULL && status == MOE_OK, name, "%s: %s: %s", name, c->text,
                   first != NULL ? moe_last_error() : "memory is short")) {
        const moec_launch launch = {.kernel = kernel,
                                    .args = &a,
                                    .canonical = &canonical,
                                    .problem = problem,
                                    .buffers = &c->buffers,
                                    .result = moe_tensor_2d(c->y, c->y_dtype, c->rows, c->y_stride),
                                    .text = c->text};
        const uint64_t hash = moec_run_all(run, teams, &launch);
        memcpy(first, c->y, bytes);
        check_bounds(run, kernel, c);
        moec_check(run, padding_intact(c), name, "%s: %s: wrote past its columns", name, c->text);
        check_rows_alone(run, &launch, c, first);
        if (!c->moderate) { // other rows have the case with other scales
            compare_rows(run, &launch, c, first, hash, number);
        }
    }
    free(first);
    return CASE_DONE;
}

// Activation forms: floats, and one quantiser of each scale form.
static const moe_quant_desc act_forms[] = {
    {.spec = MOE_QUANT_NONE},
    {.spec = MOE_QUANT_FP8_TOKEN},
    {.spec = MOE_QUANT_FP8_STATIC},
    {.spec = MOE_QUANT_FP8_GROUP_DIV},
    {.spec = MOE_QUANT_FP8_GROUP_RECIP,
     .scale_type = MOE_SCALE_UE8M0_PACKED,
     .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 64, .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
    {.spec = MOE_QUANT_INT8_TOKEN},
    {.spec = MOE_QUANT_INT8_STATIC},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E2M1},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E4M3FN},
    {.spec = MOE_QUANT_MX_EVEN, .elem = MOE_E3M2},
    {.spec = MOE_QUANT_NVFP4},
    {.spec = MOE_QUANT_I8B32},
    {.spec = MOE_QUANT_I16B32},
};

/// A row and its walk over the problems.
typedef struct ggemm_walk {
    moec_run *run;
    const moei_kernel *kernel;
    moec_teams teams;
    int number; // of the next case, the same for every row
} ggemm_walk;

static outcome one_case(const ggemm_walk *w, const moe_gemm_desc *gemm, moe_dtype x_dtype,
                        moec_fill fill, shape_kind shape, bool moderate)
{
    moec_run *run = w->run;
    const int number = w->number + (int)shape;
    const char *name = w->kernel->name;
    moec_rng rng = {run->options->seed * 1000003u + (uint64_t)w->kernel->arith * 65537u +
                    (uint64_t)number};
    moei_whynot why;
    ggemm_case *c = calloc(1, sizeof *c);
    if (c == NULL) {
        moec_check(run, false, name, "%s: no memory for a case", name);
        return CASE_DONE;
    }
    c->gemm = *gemm;
    c->info = moei_format(gemm->weight_format);
    c->act = gemm->act;
    if (c->act.spec != MOE_QUANT_NONE) {
        moei_quant_resolve(&c->act);
        c->gemm.act = c->act;
    }
    c->fill = fill;
    c->moderate = moderate;
    c->x_dtype = x_dtype;
    draw_shape(c, &rng, shape);
    const moei_ggemm_problem problem = {.m_max = c->rows,
                                        .n = c->n,
                                        .k = c->k,
                                        .experts = c->experts,
                                        .gemm = &c->gemm,
                                        .x_dtype = x_dtype,
                                        .y_dtype = c->y_dtype,
                                        .transposed = c->transposed};
    outcome end = CASE_REFUSED;
    if (moei_registry_supports(w->kernel, run->ctx->isa, &problem, &why)) {
        end = CASE_DONE;
        if (moec_check(run, build_case(c, &rng), name, "%s: no memory for a case", name)) {
            end = run_case(run, &w->teams, w->kernel, &problem, c, number);
        }
    }
    free_case(c);
    free(c);
    return end;
}

// One case, if the row takes it; with moderate scales where its layout cannot keep others.
static bool try_case(const ggemm_walk *w, const moe_gemm_desc *gemm, moe_dtype x_dtype,
                     moec_fill fill, shape_kind shape)
{
    outcome end = one_case(w, gemm, x_dtype, fill, shape, false);
    if (end == CASE_BEYOND) {
        end = one_case(w, gemm, x_dtype, fill, shape, true);
    }
    return end != CASE_REFUSED;
}

static void check_problem(ggemm_walk *w, const moe_gemm_desc *gemm, moe_dtype x_dtype)
{
    // On a CPU, float64 would take minutes for them.
    const bool large = !w->run->ctx->backend->host_memory && !w->run->options->quick;
    for (int fill = 0; fill < MOEC_NUM_FILLS; fill++, w->number += NUM_SHAPES) {
        if (!try_case(w, gemm, x_dtype, (moec_fill)fill, SHAPE_PLAIN)) {
            (void)try_case(w, gemm, x_dtype, (moec_fill)fill, SHAPE_ROUND);
        }
        if (large && fill == MOEC_NORMAL && !try_case(w, gemm, x_dtype, MOEC_NORMAL, SHAPE_LARGE)) {
            (void)try_case(w, gemm, x_dtype, MOEC_NORMAL, SHAPE_LARGE_ROUND);
        }
    }
}

// Every activation form with one scale dtype and group of a format.
static void check_weights(ggemm_walk *w, const moe_gemm_desc *weights)
{
    static const moe_dtype floats[] = {MOE_F32, MOE_BF16, MOE_F16};
    for (size_t v = 0; v < sizeof act_forms / sizeof act_forms[0]; v++) {
        // Other scale dtypes than the first change nothing in how activations are read.
        if (weights->weight_scale_dtype != MOE_DTYPE_UNSET && v != 1) {
            continue;
        }
        moe_gemm_desc gemm = *weights;
        gemm.act = act_forms[v];
        if (act_forms[v].spec != MOE_QUANT_NONE) {
            check_problem(w, &gemm, moei_gemm_operand_dtype(&gemm, MOE_DTYPE_UNSET));
            continue;
        }
        for (int d = 0; d < 3; d++) {
            check_problem(w, &gemm, floats[d]);
        }
    }
}

void moec_check_ggemm(moec_run *run, const moei_kernel *kernel)
{
    static const int32_t groups[] = {0, 32, 64, 16};
    const moei_format_info *info;
    ggemm_walk w = {.run = run, .kernel = kernel};
    const unsigned long before = run->cases;
    if (!moec_check(run, moec_teams_make(run, &w.teams), kernel->name, "%s: no threads",
                    kernel->name)) {
        return;
    }
    for (size_t f = 0; (info = moei_format_at(f)) != NULL; f++) {
        if (run->options->format != 0 && run->options->format != info->format) {
            continue;
        }
        for (int g = 0; g < (info->free_group ? 4 : 1); g++) {
            for (moe_dtype s = MOE_DTYPE_UNSET; s <= MOE_E8M0; s++) {
                if (s != MOE_DTYPE_UNSET && (info->scale_dtypes & (1u << s)) == 0) {
                    continue;
                }
                const moe_gemm_desc weights = {.weight_format = info->format,
                                               .weight_scale_dtype = s,
                                               .weight_group = groups[g]};
                check_weights(&w, &weights);
            }
        }
    }
    moec_teams_free(&w.teams);
    if (run->options->format == 0) { // one format alone need not have a case of every class
        moec_check(run, run->cases > before, kernel->name, "%s: no case fits", kernel->name);
    }
}
