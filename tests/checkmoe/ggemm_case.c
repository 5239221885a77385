// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/ggemm_case.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/weights_internal.h"
#include "ops/operand.h"
#include "quant/elements.h"

const char *moec_fill_name(moec_fill fill)
{
    static const char *const names[MOEC_NUM_FILLS] = {"exact",  "normal", "heavy",
                                                      "cancel", "tiny",   "special"};
    return names[fill];
}

// ---- drawing codes -----------------------------------------------------------------------------

static double decode(moe_dtype dtype, const void *data, int64_t i)
{
    return (double)moei_load_one(dtype, data, i);
}

void moec_put_code(moe_dtype dtype, unsigned char *row, int64_t i, uint32_t code)
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
        moec_put_code(dtype, row, i, encode_float(dtype, (float)value));
        return;
    }
    // Of 65536 integers few are small enough.
    const bool whole = dtype == MOE_I8 || dtype == MOE_U8 || dtype == MOE_I16;
    const int64_t middle = (int64_t)zero;
    for (;;) {
        const uint32_t code = fill == MOEC_EXACT && whole
                                  ? (uint32_t)(middle + moec_below(rng, 9) - 4)
                                  : (uint32_t)moec_next(rng);
        moec_put_code(dtype, row, i, code);
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

// What is left of a row's last byte is no element, and must not count.
static void fill_spare(moe_dtype dtype, unsigned char *row, int64_t elements)
{
    const int used = (int)(elements * moe_dtype_bits(dtype) % 8);
    if (used != 0) {
        row[elements * moe_dtype_bits(dtype) / 8] |= (unsigned char)(0xFFu << used);
    }
}

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
        moec_put_code(dtype, row, i, encode_float(dtype, (float)value));
    }
}

// ---- building a case ---------------------------------------------------------------------------

void *moec_ggemm_take(moec_ggemm_case *c, bool output, int64_t count, size_t size, bool at_end)
{
    c->buffers.flip = (c->buffers.count % 2 == 0) != at_end;
    return output ? moec_output(&c->buffers, count, size) : moec_input(&c->buffers, count, size);
}

// Weight codes as doubles go to the oracle: (code - zero) * scale * scale2.
static bool build_weights(moec_ggemm_case *c, moec_rng *rng, bool at_end)
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
    c->values = moec_ggemm_take(c, false, c->experts * outer * inner, 1, at_end);
    c->scales = moec_ggemm_take(c, false, c->experts * srows * scolumns, sbytes, at_end);
    c->scale2 = moec_ggemm_take(c, false, c->experts * parts2, sizeof(float), at_end);
    c->zeros = moec_ggemm_take(c, false, c->experts * c->n * groups, 1, at_end);
    c->bias = moec_ggemm_take(c, false, c->experts * c->n, 4, at_end);
    if (c->buffers.failed) {
        return false;
    }
    for (int64_t i = 0; i < c->experts * parts2; i++) {
        c->scale2[i] = c->fill == MOEC_EXACT ? 2.0f : 0.5f + (float)moec_below(rng, 100) * 0.01f;
    }
    for (int64_t i = 0; sbytes > 0 && i < c->experts * srows * scolumns; i++) {
        draw_scale(rng, c->fill, sdtype, c->scales, i);
        if (c->moderate && sdtype == MOE_E8M0) { // no new overflow, as 2^125 might bring
            c->scales[i] = c->scales[i] < moec_first_kept(c->info)  ? moec_first_kept(c->info)
                           : c->scales[i] > moec_last_kept(c->info) ? 127
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
        for (int64_t n = 0; n < outer; n++) {
            fill_spare(info->elem, c->values + (e * outer + n) * inner,
                       c->transposed ? c->n : c->k);
        }
        for (int64_t n = 0; n < c->n; n++) {
            const int64_t part = parts == 1 ? 0 : halves ? n / part_rows : n % 2;
            for (int64_t k = 0; k < c->k; k++) {
                const int64_t zero_at = (e * c->n + n) * groups + (block_k > 0 ? k / block_k : 0);
                const double zero = info->zero_point < 0 ? 0.0 : (double)c->zeros[zero_at];
                unsigned char *row = c->values + (e * outer + (c->transposed ? k : n)) * inner;
                const int64_t i = c->transposed ? n : k;
                draw(rng, c->fill, info->elem, row, i, zero, k % 17 == 3);
                double value = decode(info->elem, row, i) - zero;
                double scale = 1.0;
                if (sbytes > 0) {
                    const int64_t srow =
                        info->block_n == 0
                            ? part
                            : (halves ? n / part_rows : 0) *
                                      ((part_rows + info->block_n - 1) / info->block_n) +
                                  (halves ? n % part_rows : n) / info->block_n;
                    const int64_t at =
                        (e * srows + srow) * scolumns + (block_k > 0 ? k / block_k : 0);
                    scale = decode(sdtype, c->scales, at);
                    value *= scale;
                }
                if (info->scale2 || c->gemm.channel_scale != 0) {
                    const double second =
                        (double)c->scale2[e * parts2 + (parts2 == c->n ? n : part)];
                    value *= second;
                    scale *= second;
                }
                double *largest = &c->oracle.w_scale[e * c->n + n];
                *largest = fmax(*largest, fabs(scale));
                c->oracle.w[(e * c->n + n) * c->k + k] = value;
            }
            c->oracle.bias[e * c->n + n] =
                c->gemm.bias != 0 ? decode(MOE_F32, c->bias, e * c->n + n) : 0.0;
        }
    }
    return true;
}

static bool build_x(moec_ggemm_case *c, moec_rng *rng, bool at_end)
{
    const moe_dtype elem = c->x_dtype;
    const int64_t row_bytes = moei_elem_bytes(elem, c->k);
    const moei_scale_shape s =
        c->act.spec != MOE_QUANT_NONE
            ? moei_quant_scale_shape(&c->act, 1, c->rows, c->k)
            : (moei_scale_shape){.dtype = MOE_F32, .rows = 1, .columns = 1, .elems = 1};
    const int64_t bytes = moe_dtype_bits(s.dtype) / 8;
    c->x = moec_ggemm_take(c, false, c->rows * row_bytes, 1, at_end);
    c->x_scales = moec_ggemm_take(c, false, (int64_t)s.elems, (size_t)bytes, at_end);
    c->act_scale = moec_ggemm_take(c, false, 1, sizeof(float), at_end);
    if (c->buffers.failed) {
        return false;
    }
    *c->act_scale = c->fill == MOEC_EXACT ? 2.0f : 0.75f;
    const bool packed = c->act.scale_type == MOE_SCALE_UE8M0_PACKED;
    for (size_t i = 0; i < s.elems * (packed ? 4u : 1u); i++) {
        draw_scale(rng, c->fill, packed ? MOE_E8M0 : s.dtype, c->x_scales, (int64_t)i);
        if (c->act.scale_type == MOE_SCALE_UE8M0_F32) { // f32 that say they are powers of two
            float value;
            memcpy(&value, c->x_scales + 4 * i, sizeof value);
            value = moei_pow2_up(value);
            memcpy(c->x_scales + 4 * i, &value, sizeof value);
        }
    }
    const bool given = c->act.spec != MOE_QUANT_NONE && moei_quant_needs_given_scale(&c->act);
    const bool global = c->act.spec != MOE_QUANT_NONE && moei_quant_has_global_scale(&c->act);
    for (int64_t r = 0; r < c->rows; r++) {
        unsigned char *row = c->x + r * row_bytes;
        fill_spare(elem, row, c->k);
        for (int64_t k = 0; k < c->k; k++) {
            draw(rng, c->fill, elem, row, k, 0.0, k % 17 == 3);
            if (c->fill == MOEC_CANCEL && k >= (c->k + 1) / 2) {
                const double first = decode(elem, row, k - (c->k + 1) / 2);
                if (is_wide(elem)) {
                    moec_put_code(elem, row, k, encode_float(elem, (float)-first));
                }
            }
            double value = decode(elem, row, k);
            double scale = 1.0;
            if (c->act.spec != MOE_QUANT_NONE && !(given && !global)) {
                const int64_t group = c->act.group > 0 ? k / c->act.group : 0;
                scale = packed
                            ? (double)moei_e8m0_to_f32(
                                  c->x_scales[4 * (r * s.row_stride + group / 4 * s.k_stride) +
                                              group % 4])
                            : decode(s.dtype, c->x_scales, r * s.row_stride + group * s.k_stride);
                value *= scale;
            }
            // Twice: what is given for all rows, a factor or a divisor, lies between 1 / 2 and 2.
            c->oracle.x_scale[r] = fmax(c->oracle.x_scale[r], 2.0 * fabs(scale));
            value *= given && !global ? (double)*c->act_scale : 1.0;
            value /= global ? (double)*c->act_scale : 1.0;
            c->oracle.x[r * c->k + k] = value;
        }
    }
    return true;
}

static void build_rows(moec_ggemm_case *c, moec_rng *rng)
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
static void build_steps(moec_ggemm_case *c)
{
    const int32_t n = c->experts + 1;
    memcpy(c->steps, c->offsets, (size_t)n * sizeof *c->steps);
    for (int32_t i = 0; i < n; i++) {
        c->steps[n + i] = 0;
        c->steps[2 * n + i] = 1;
    }
}

const int32_t *moec_ggemm_one_row(const moec_ggemm_case *c, int32_t e)
{
    return c->steps + 2 * c->experts + 1 - e;
}

void moec_ggemm_free(moec_ggemm_case *c)
{
    moec_buffers_free(&c->buffers);
    float64_ggemm_free(&c->oracle);
}

void moec_ggemm_begin(moec_ggemm_case *c, const moe_gemm_desc *gemm, moe_dtype x_dtype,
                      moec_fill fill, bool moderate)
{
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
}

void moec_ggemm_draw(moec_ggemm_case *c, moec_rng *rng, moec_ggemm_shape kind)
{
    static const int64_t k_sizes[] = {1,  2,   3,   5,   16,  17,  31,  32,  33,  64,
                                      96, 127, 128, 129, 160, 255, 256, 257, 320, 520};
    static const int64_t large_k_sizes[] = {576, 704, 1024, 1100, 1440, 2050};
    static const moe_dtype y_dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    const bool large = kind == MOEC_SHAPE_LARGE || kind == MOEC_SHAPE_LARGE_ROUND;
    c->at_end = moec_below(rng, 2) == 0;
    c->experts = 1 + (int32_t)moec_below(rng, large ? 2 : MOEC_GGEMM_EXPERTS);
    c->n = 1 + moec_below(rng, large ? 300 : 70);
    c->k = large ? large_k_sizes[moec_below(rng, 6)]
                 : k_sizes[moec_below(rng, (int64_t)(sizeof k_sizes / sizeof k_sizes[0]))];
    if (kind == MOEC_SHAPE_ROUND || kind == MOEC_SHAPE_LARGE_ROUND) {
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

bool moec_ggemm_build(moec_ggemm_case *c, moec_rng *rng)
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
    c->index = moec_ggemm_take(c, false, c->rows, sizeof *c->index, at_end);
    c->out_index = moec_ggemm_take(c, false, c->rows, sizeof *c->out_index, at_end);
    c->weights = moec_ggemm_take(c, false, c->rows, sizeof *c->weights, at_end);
    c->steps = moec_ggemm_take(c, false, 3 * ((int64_t)c->experts + 1), sizeof *c->steps, at_end);
    c->y = moec_ggemm_take(c, true, c->rows * c->y_stride, (size_t)moe_dtype_bits(c->y_dtype) / 8,
                           at_end);
    if (c->buffers.failed || !float64_ggemm_alloc(&c->oracle, c->experts, c->rows, c->n, c->k) ||
        !build_weights(c, rng, at_end) || !build_x(c, rng, at_end)) {
        return false;
    }
    build_rows(c, rng);
    build_steps(c);
    return true;
}

// ---- running -----------------------------------------------------------------------------------

static moe_tensor scale_view(const moec_ggemm_case *c)
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

moe_status moec_ggemm_args(const moec_ggemm_case *c, moek_ggemm_args *a)
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

float64_model moec_model_of(const moei_kernel *kernel)
{
    if (kernel == NULL) { // the plan has no such product
        return (float64_model){0};
    }
    const moei_arith_info *arith = moei_arith_get(kernel->arith);
    return (float64_model){arith->chunk, arith->fraction_bits, arith->truncating,
                           arith->products_per_step, arith->flushes};
}
