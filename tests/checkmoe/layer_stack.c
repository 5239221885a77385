// SPDX-License-Identifier: Apache-2.0
// Stacks of expert matrices: random codes of any format in every form that a source may have, and
// what they mean as doubles.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/ggemm_case.h"
#include "checkmoe/layer_case.h"
#include "ops/quantize.h"
#include "quant/elements.h"

// Codes of small floats stay below this magnitude, so that no single one decides a sum.
#define MAX_CODE 4.0

static bool halves(const moec_stack *m)
{
    return m->gate_up == MOE_GATE_FIRST || m->gate_up == MOE_UP_FIRST;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t block_k(const moec_stack *m)
{
    return moei_gemm_block_k(m->info, &m->gemm);
}

static int64_t groups_of(const moec_stack *m)
{
    return block_k(m) > 0 ? ceil_div(m->k, block_k(m)) : 1;
}

static size_t dtype_bytes(moe_dtype dtype)
{
    return (size_t)moe_dtype_bits(dtype) / 8;
}

// Standard deviation about 1, from one draw.
static double spread(moec_rng *rng)
{
    const uint64_t bits = moec_next(rng);
    return ((double)(bits >> 32) + (double)(bits & 0xFFFFFFFFu)) * 0x1p-32 * 2.45 - 2.45;
}

/// The codes that are drawn, their values, and the deviation of those.
typedef struct code_table {
    int count;
    uint32_t code[256];
    double value[256];
    double deviation;
} code_table;

static void make_table(const moec_stack *m, code_table *t)
{
    const moe_dtype elem = m->info->elem;
    const int codes = 1 << moe_dtype_bits(elem);
    const double zero = m->info->zero_point >= 0 ? m->info->zero_point : 0.0;
    const bool integer = elem == MOE_I8 || elem == MOE_U8 || elem == MOE_UINT4;
    double squares = 0.0;
    t->count = 0;
    for (int code = 0; code < codes; code++) {
        unsigned char row[4] = {0};
        moec_put_code(elem, row, 0, (uint32_t)code);
        const double value = (double)moei_load_one(elem, row, 0);
        if (isfinite(value) && (integer || fabs(value) <= MAX_CODE)) {
            t->code[t->count] = (uint32_t)code;
            t->value[t->count++] = value;
            squares += (value - zero) * (value - zero);
        }
    }
    t->deviation = sqrt(squares / t->count);
}

// ---- form ---------------------------------------------------------------------------------------

static void choose_form(moec_stack *m, moec_rng *rng)
{
    const moei_format_info *info = m->info;
    const int bits = moe_dtype_bits(info->elem);
    const int64_t pad = moec_below(rng, 3) == 0 ? 1 + moec_below(rng, 3) : 0;
    m->rows = m->transposed ? m->k : m->n;
    m->row_bytes = moei_elem_bytes(info->elem, m->transposed ? m->n : m->k);
    m->row_stride = m->row_bytes + pad * (bits > 8 ? bits / 8 : 1);
    m->value_view = bits > 8 || moec_below(rng, 2) == 0 ? info->elem : MOE_U8;
    if (bits == 6 && m->row_stride % 3 != 0) { // rows of whole elements only
        m->value_view = MOE_U8;
    }
    m->blocks = info->elem == MOE_E2M1 && m->k % 32 == 0 && moec_below(rng, 3) == 0;
    const bool gated = m->gate_up != MOE_GATE_UP_UNSET;
    m->scale_parts = gated ? 1 + (int32_t)moec_below(rng, 2) : 1;
    m->scale2_parts = m->gemm.channel_scale != 0 ? (int32_t)m->n
                      : !info->scale2            ? 0
                      : gated                    ? 1 + (int32_t)moec_below(rng, 2)
                                                 : 1;
    m->scale_dtype = 0;
    if (info->scale_dtypes != 0) {
        const int64_t part = halves(m) ? m->n / 2 : m->n;
        m->scale_dtype = m->gemm.weight_scale_dtype != 0 ? m->gemm.weight_scale_dtype
                                                         : moei_format_scale_dtype(info);
        m->scale_rows =
            info->block_n == 0 ? m->scale_parts : m->n / part * ceil_div(part, info->block_n);
        m->scale_columns = groups_of(m);
        m->scale_view =
            dtype_bytes(m->scale_dtype) == 1 && moec_below(rng, 2) == 0 ? MOE_U8 : m->scale_dtype;
        m->scale_by_column = moec_below(rng, 4) == 0;
    }
    m->zero_form =
        info->elem == MOE_UINT4 && m->n > 1 ? (moei_zero_form)moec_below(rng, 3) : MOEI_ZERO_BYTES;
    static const moe_dtype floats[] = {MOE_F32, MOE_BF16, MOE_F16};
    m->bias_dtype = floats[moec_below(rng, 3)];
}

static bool take(moec_guard *guard, size_t bytes, bool at_end, bool wanted)
{
    if (!wanted) {
        return true;
    }
    if (!moec_guard_alloc(guard, bytes, at_end)) {
        return false;
    }
    memset(guard->data, 0xFF, bytes);
    return true;
}

static int64_t zero_rows(const moec_stack *m)
{
    return m->zero_form == MOEI_ZERO_PAIRS ? ceil_div(m->n, 2) : m->n;
}

static int64_t zero_row_bytes(const moec_stack *m)
{
    return m->zero_form == MOEI_ZERO_NIBBLES ? ceil_div(groups_of(m), 2) : groups_of(m);
}

bool moec_stack_build(moec_stack *m, moec_rng *rng, moec_layer_fill fill)
{
    choose_form(m, rng);
    const bool at_end = moec_below(rng, 2) == 0;
    const size_t count = (size_t)m->count;
    const size_t values =
        (count * (size_t)m->rows - 1) * (size_t)m->row_stride + (size_t)m->row_bytes;
    m->dense = malloc(count * (size_t)(m->n * m->k) * sizeof(double));
    m->dense_bias = m->gemm.bias != 0 ? malloc(count * (size_t)m->n * sizeof(double)) : NULL;
    return m->dense != NULL && (m->gemm.bias == 0 || m->dense_bias != NULL) &&
           take(&m->values, values, at_end, true) &&
           take(&m->scales,
                count * (size_t)(m->scale_rows * m->scale_columns) * dtype_bytes(m->scale_dtype),
                at_end, m->scale_dtype != 0) &&
           take(&m->scale2, count * (size_t)m->scale2_parts * sizeof(float), at_end,
                m->scale2_parts > 0) &&
           take(&m->zeros, count * (size_t)(zero_rows(m) * zero_row_bytes(m)), at_end,
                m->gemm.zero_points != 0) &&
           take(&m->bias, count * (size_t)m->n * dtype_bytes(m->bias_dtype), at_end,
                m->gemm.bias != 0) &&
           take(&m->act_scale, sizeof(float), at_end, moei_quant_needs_given_scale(&m->gemm.act)) &&
           moec_stack_redraw(m, rng, fill);
}

void moec_stack_free(moec_stack *m)
{
    moec_guard *const guards[] = {&m->values, &m->scales, &m->scale2,
                                  &m->zeros,  &m->bias,   &m->act_scale};
    for (size_t i = 0; i < sizeof guards / sizeof guards[0]; i++) {
        moec_guard_free(guards[i]);
    }
    free(m->dense);
    free(m->dense_bias);
    memset(m, 0, sizeof *m);
}

// ---- data ---------------------------------------------------------------------------------------

static int64_t scale_at(const moec_stack *m, int32_t e, int64_t row, int64_t column)
{
    return e * m->scale_rows * m->scale_columns +
           (m->scale_by_column ? column * m->scale_rows + row : row * m->scale_columns + column);
}

// Part of a row (gate or up), and the row of its scale.
static int64_t part_of(const moec_stack *m, int64_t n)
{
    return m->gate_up == MOE_GATE_UP_UNSET ? 0 : halves(m) ? n / (m->n / 2) : n % 2;
}

static int64_t scale_row(const moec_stack *m, int64_t n)
{
    if (m->info->block_n == 0) {
        return m->scale_parts == 1 ? 0 : part_of(m, n);
    }
    const int64_t part = halves(m) ? m->n / 2 : m->n;
    return n / part * ceil_div(part, m->info->block_n) + n % part / m->info->block_n;
}

static void store_float(moe_dtype dtype, void *data, int64_t i, double value)
{
    const float f = (float)value;
    moei_store_f32(dtype, (uint8_t *)data + (size_t)i * dtype_bytes(dtype), 1, &f);
}

// Scales that make a product's results about 1.
static void draw_scales(moec_stack *m, moec_rng *rng, double amplitude)
{
    for (int32_t i = 0; i < m->count * m->scale2_parts; i++) {
        const double factor = 0.5 + 0.01 * (double)moec_below(rng, 100);
        store_float(MOE_F32, m->scale2.data, i,
                    m->gemm.channel_scale != 0 ? factor : amplitude * 0.5 * factor);
    }
    for (int64_t i = 0; m->scale_dtype != 0 && i < m->count * m->scale_rows * m->scale_columns;
         i++) {
        const double factor = 0.5 + 0.01 * (double)moec_below(rng, 100);
        if (m->scale_dtype == MOE_E8M0) {
            m->scales.data[i] = (unsigned char)(127 + ilogb(amplitude) - 1 + moec_below(rng, 3));
        } else if (m->scale_dtype == MOE_E4M3FN) {
            m->scales.data[i] = moei_f32_to_e4m3fn((float)(2.0 * factor), MOEI_OVERFLOW_NAN);
        } else {
            const bool negative = moec_below(rng, 40) == 0;
            store_float(m->scale_dtype, m->scales.data, i,
                        amplitude * factor * (negative ? -1.0 : 1.0));
        }
    }
}

static double scale_of(const moec_stack *m, int32_t e, int64_t n, int64_t k)
{
    double scale = 1.0;
    if (m->scale_dtype != 0) {
        const int64_t column = block_k(m) > 0 ? k / block_k(m) : 0;
        scale = (double)moei_load_one(m->scale_dtype, m->scales.data,
                                      scale_at(m, e, scale_row(m, n), column));
    }
    if (m->scale2_parts > 0) {
        const float *scale2 = (const float *)(const void *)m->scale2.data;
        const int64_t part = m->gemm.channel_scale != 0 ? n
                             : m->scale2_parts == 1     ? 0
                                                        : part_of(m, n);
        scale *= (double)scale2[(int64_t)e * m->scale2_parts + part];
    }
    return scale;
}

static double draw_zero(moec_stack *m, moec_rng *rng, int32_t e, int64_t n, int64_t group)
{
    if (m->info->zero_point < 0 || m->gemm.zero_points == 0) {
        return m->info->zero_point < 0 ? 0.0 : m->info->zero_point;
    }
    const unsigned zero = (unsigned)(m->info->zero_point - 2 + moec_below(rng, 5));
    const bool pairs = m->zero_form == MOEI_ZERO_PAIRS;
    unsigned char *row =
        m->zeros.data + (e * zero_rows(m) + (pairs ? n / 2 : n)) * zero_row_bytes(m);
    if (m->zero_form == MOEI_ZERO_NIBBLES) { // an odd last one leaves the high nibble as it is
        moei_set_u4(row, (size_t)group, (uint8_t)zero);
    } else if (!pairs) {
        row[group] = (unsigned char)zero;
    } else if (n % 2 == 0) {
        row[group] = (unsigned char)(0xF0u | zero); // so does an odd last row
    } else {
        row[group] = (unsigned char)((row[group] & 0x0Fu) | zero << 4);
    }
    return zero;
}

// A code that is NaN, where the type has one; infinity for half of the wide ones.
static bool special_code(moec_rng *rng, moe_dtype elem, uint32_t *code)
{
    const uint32_t pick = (uint32_t)moec_below(rng, 2);
    switch (elem) {
    case MOE_F32:
        *code = pick == 0 ? 0x7FC00000u : 0xFF800000u;
        return true;
    case MOE_BF16:
        *code = pick == 0 ? 0x7FC0u : 0x7F80u;
        return true;
    case MOE_F16:
        *code = pick == 0 ? 0x7E00u : 0xFC00u;
        return true;
    case MOE_E4M3FN:
        *code = 0x7F;
        return true;
    case MOE_E4M3FNUZ:
        *code = 0x80;
        return true;
    case MOE_E5M2:
        *code = pick == 0 ? 0x7E : 0xFC;
        return true;
    default:
        return false;
    }
}

static void set_element(moec_stack *m, int32_t e, int64_t n, int64_t k, uint32_t code, double zero)
{
    const moe_dtype elem = m->info->elem;
    unsigned char *row = m->values.data + (e * m->rows + (m->transposed ? k : n)) * m->row_stride;
    const int64_t i = m->transposed ? n : k;
    if (moe_dtype_bits(elem) <= 8) {
        moec_put_code(elem, row, i, code);
    } else if (moe_dtype_bits(elem) == 16) {
        const uint16_t half = (uint16_t)code;
        memcpy(row + 2 * i, &half, sizeof half);
    } else {
        memcpy(row + 4 * i, &code, sizeof code);
    }
    m->dense[(e * m->n + n) * m->k + k] =
        ((double)moei_load_one(elem, row, i) - zero) * scale_of(m, e, n, k);
}

static void draw_values(moec_stack *m, moec_rng *rng, const code_table *t)
{
    const moe_dtype elem = m->info->elem;
    const double amplitude = 1.5 / sqrt((double)m->k);
    for (int32_t e = 0; e < m->count; e++) {
        for (int64_t n = 0; n < m->n; n++) {
            double zero = 0.0;
            for (int64_t k = 0; k < m->k; k++) {
                uint32_t code;
                if (m->info->zero_point >= 0 && k % block_k(m) == 0) {
                    zero = draw_zero(m, rng, e, n, k / block_k(m));
                }
                if (t != NULL) {
                    code = t->code[moec_below(rng, t->count)];
                } else {
                    const float value = (float)(spread(rng) * amplitude);
                    code = elem == MOE_F32    ? moei_f32_bits(value)
                           : elem == MOE_BF16 ? moei_f32_to_bf16(value)
                                              : moei_f32_to_f16(value);
                }
                set_element(m, e, n, k, code, zero);
            }
        }
    }
}

bool moec_stack_redraw(moec_stack *m, moec_rng *rng, moec_layer_fill fill)
{
    code_table table;
    const bool wide = moe_dtype_bits(m->info->elem) > 8;
    if (!wide) {
        make_table(m, &table);
    }
    draw_scales(m, rng, wide ? 1.0 : 1.5 / (sqrt((double)m->k) * table.deviation));
    draw_values(m, rng, wide ? NULL : &table);
    uint32_t code;
    for (int32_t e = 0; fill == MOEC_LAYER_SPECIAL && e < m->count; e++) {
        if (moec_below(rng, 6) == 0 && special_code(rng, m->info->elem, &code)) {
            const int64_t k = moec_below(rng, m->k); // first, on every compiler
            set_element(m, e, moec_below(rng, m->n), k, code, 0.0);
        }
    }
    for (int64_t i = 0; m->gemm.bias != 0 && i < m->count * m->n; i++) {
        store_float(m->bias_dtype, m->bias.data, i, 0.4 * spread(rng));
        m->dense_bias[i] = (double)moei_load_one(m->bias_dtype, m->bias.data, i);
    }
    if (m->act_scale.data != NULL) {
        const bool global = moei_quant_has_global_scale(&m->gemm.act);
        const double base = global ? 400.0 : 0.006;
        store_float(MOE_F32, m->act_scale.data, 0,
                    base * (1.0 + 0.01 * (double)moec_below(rng, 100)));
    }
    return true;
}

void moec_stack_copy_expert(moec_stack *m, int32_t from, int32_t to)
{
    const int64_t slab = m->rows * m->row_stride;
    for (int64_t r = 0; r < m->rows; r++) { // the last row of all has no padding
        memcpy(m->values.data + to * slab + r * m->row_stride,
               m->values.data + from * slab + r * m->row_stride, (size_t)m->row_bytes);
    }
    const struct {
        moec_guard *guard;
        size_t bytes;
    } parts[] = {
        {&m->scales, (size_t)(m->scale_rows * m->scale_columns) * dtype_bytes(m->scale_dtype)},
        {&m->scale2, (size_t)m->scale2_parts * sizeof(float)},
        {&m->zeros, (size_t)(zero_rows(m) * zero_row_bytes(m))},
        {&m->bias, (size_t)m->n * dtype_bytes(m->bias_dtype)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i].guard->data != NULL) {
            memcpy(parts[i].guard->data + (size_t)to * parts[i].bytes,
                   parts[i].guard->data + (size_t)from * parts[i].bytes, parts[i].bytes);
        }
    }
    const size_t dense = (size_t)(m->n * m->k);
    memcpy(m->dense + (size_t)to * dense, m->dense + (size_t)from * dense, dense * sizeof(double));
    if (m->dense_bias != NULL) {
        memcpy(m->dense_bias + to * m->n, m->dense_bias + from * m->n,
               (size_t)m->n * sizeof(double));
    }
}

// ---- views --------------------------------------------------------------------------------------

static moe_tensor value_tensor(const moec_stack *m, int32_t first, int32_t count)
{
    const int bits = moe_dtype_bits(m->info->elem);
    const unsigned char *data = m->values.data + first * m->rows * m->row_stride;
    const int64_t inner =
        m->value_view == m->info->elem ? (m->transposed ? m->n : m->k) : m->row_bytes;
    const int64_t step = m->value_view == m->info->elem ? m->row_stride * 8 / bits : m->row_stride;
    if (m->blocks) {
        const int64_t shape[4] = {count, m->n, m->k / 32, 16};
        moe_tensor t = moe_tensor_make(data, MOE_U8, 4, shape);
        t.stride[1] = m->row_stride;
        t.stride[0] = m->rows * m->row_stride;
        return t;
    }
    moe_tensor t = moe_tensor_3d(data, m->value_view, count, m->rows, inner);
    t.stride[1] = step;
    t.stride[0] = m->rows * step;
    return t;
}

static moe_tensor scale_tensor(const moec_stack *m, int32_t first, int32_t count)
{
    const unsigned char *data =
        m->scales.data +
        (size_t)(first * m->scale_rows * m->scale_columns) * dtype_bytes(m->scale_dtype);
    if (m->info->block_n == 0) {
        return m->scale_parts == 1 && m->scale_by_column
                   ? moe_tensor_1d(data, m->scale_view, count)
                   : moe_tensor_2d(data, m->scale_view, count, m->scale_parts);
    }
    moe_tensor t = moe_tensor_3d(data, m->scale_view, count, m->scale_rows, m->scale_columns);
    if (m->scale_by_column) {
        t.stride[1] = 1;
        t.stride[2] = m->scale_rows;
    } else if (block_k(m) == 0 && m->n % 2 == 0) { // channel scales, [n, N]
        t.ndim = 2;
    }
    return t;
}

moe_matrix_source moec_stack_source(const moec_stack *m, int32_t first, int32_t count)
{
    moe_matrix_source s = {0};
    s.values = value_tensor(m, first, count);
    if (m->scale_dtype != 0) {
        s.scales = scale_tensor(m, first, count);
    }
    if (m->scale2_parts > 0) {
        s.scale2 = moe_tensor_2d(m->scale2.data + (size_t)(first * m->scale2_parts) * sizeof(float),
                                 MOE_F32, count, m->scale2_parts);
    }
    if (m->gemm.zero_points != 0) {
        const int64_t step = zero_row_bytes(m);
        const bool nibbles = m->zero_form == MOEI_ZERO_NIBBLES;
        s.zero_points =
            moe_tensor_3d(m->zeros.data + first * zero_rows(m) * step, nibbles ? MOE_UINT4 : MOE_U8,
                          count, zero_rows(m), groups_of(m));
        s.zero_points.stride[1] = nibbles ? 2 * step : step;
        s.zero_points.stride[0] = zero_rows(m) * s.zero_points.stride[1];
    }
    if (m->gemm.bias != 0) {
        s.bias = moe_tensor_2d(m->bias.data + (size_t)(first * m->n) * dtype_bytes(m->bias_dtype),
                               m->bias_dtype, count, m->n);
    }
    if (m->act_scale.data != NULL) {
        s.act_scale = moe_tensor_1d(m->act_scale.data, MOE_F32, 1);
    }
    return s;
}

// ---- gate and up apart --------------------------------------------------------------------------

bool moec_stack_must_split(const moec_stack *m)
{
    return (m->info->block_n == 0 && m->scale_dtype != 0 && m->scale_parts == 2) ||
           (m->scale2_parts == 2 && m->gemm.channel_scale == 0) ||
           (halves(m) && m->info->block_n > 1);
}

bool moec_stack_can_split(const moec_stack *m)
{
    return halves(m) || m->info->block_n <= 1;
}

// Row of the whole matrix that is row j of a part.
static int64_t row_of_part(const moec_stack *m, int part, int64_t j)
{
    return halves(m) ? part * (m->n / 2) + j : 2 * j + part;
}

// Memory of a part, taken from the front; each view begins at a multiple of 8.
static void *carve(unsigned char **memory, int64_t bytes)
{
    unsigned char *at = *memory;
    *memory += (bytes + 7) / 8 * 8;
    return at;
}

static moe_tensor split_values(const moec_stack *m, int part, unsigned char **memory)
{
    const int64_t inter = m->n / 2;
    const int64_t elem = moe_dtype_bits(m->info->elem) / 8; // 0: packed, never transposed
    const int64_t width = m->transposed ? inter * elem : m->row_bytes;
    const int64_t count = m->transposed ? m->k : inter;
    unsigned char *to = carve(memory, m->count * count * width);
    for (int64_t r = 0; r < m->count * count; r++) {
        const int64_t i = r % count;
        const unsigned char *from =
            m->values.data +
            (r / count * m->rows + (m->transposed ? i : row_of_part(m, part, i))) * m->row_stride;
        for (int64_t j = 0; m->transposed && j < inter; j++) {
            memcpy(to + r * width + j * elem, from + row_of_part(m, part, j) * elem, (size_t)elem);
        }
        if (!m->transposed) {
            memcpy(to + r * width, from, (size_t)width);
        }
    }
    return m->transposed ? moe_tensor_3d(to, m->info->elem, m->count, m->k, inter)
           : elem > 1    ? moe_tensor_3d(to, m->info->elem, m->count, inter, m->k)
                         : moe_tensor_3d(to, MOE_U8, m->count, inter, m->row_bytes);
}

static moe_tensor split_scales(const moec_stack *m, int part, unsigned char **memory)
{
    const int64_t bytes = (int64_t)dtype_bytes(m->scale_dtype);
    const bool tensor = m->info->block_n == 0;
    const int64_t rows = tensor ? 1 : m->info->block_n == 1 ? m->n / 2 : m->scale_rows / 2;
    unsigned char *to = carve(memory, m->count * rows * m->scale_columns * bytes);
    for (int64_t i = 0; i < m->count * rows * m->scale_columns; i++) {
        const int64_t j = i / m->scale_columns % rows;
        const int64_t row = tensor                  ? (m->scale_parts == 2 ? part : 0)
                            : m->info->block_n == 1 ? row_of_part(m, part, j)
                                                    : part * rows + j;
        const int32_t e = (int32_t)(i / m->scale_columns / rows);
        const int64_t from =
            tensor ? e * m->scale_rows + row : scale_at(m, e, row, i % m->scale_columns);
        memcpy(to + i * bytes, m->scales.data + from * bytes, (size_t)bytes);
    }
    return tensor ? moe_tensor_1d(to, m->scale_dtype, m->count)
                  : moe_tensor_3d(to, m->scale_dtype, m->count, rows, m->scale_columns);
}

static moe_tensor split_zeros(const moec_stack *m, int part, unsigned char **memory)
{
    const int64_t inter = m->n / 2;
    const int64_t groups = groups_of(m);
    unsigned char *to = carve(memory, m->count * inter * groups);
    for (int64_t i = 0; i < m->count * inter * groups; i++) {
        const int64_t row = row_of_part(m, part, i / groups % inter);
        const bool pairs = m->zero_form == MOEI_ZERO_PAIRS;
        const unsigned char *stored =
            m->zeros.data +
            (i / groups / inter * zero_rows(m) + (pairs ? row / 2 : row)) * zero_row_bytes(m);
        const unsigned char byte = stored[i % groups];
        to[i] = m->zero_form == MOEI_ZERO_NIBBLES ? moei_get_u4(stored, (size_t)(i % groups))
                : !pairs                          ? byte
                : row % 2 == 0                    ? byte & 15
                                                  : byte >> 4;
    }
    return moe_tensor_3d(to, MOE_U8, m->count, inter, groups);
}

size_t moec_stack_split_bytes(const moec_stack *m)
{
    // A part is no larger than the whole; zero points may come packed.
    return m->values.bytes + m->scales.bytes + m->scale2.bytes + 2 * m->zeros.bytes +
           m->bias.bytes + 64;
}

moe_matrix_source moec_stack_split(const moec_stack *m, int part, void *memory)
{
    moe_matrix_source s = {0};
    unsigned char *at = memory;
    const int64_t inter = m->n / 2;
    if (memory == NULL) {
        return s;
    }
    s.values = split_values(m, part, &at);
    if (m->scale_dtype != 0) {
        s.scales = split_scales(m, part, &at);
    }
    if (m->scale2_parts > 0) {
        const int64_t rows = m->gemm.channel_scale != 0 ? inter : 1;
        float *to = carve(&at, m->count * rows * (int64_t)sizeof *to);
        const float *from = (const float *)(const void *)m->scale2.data;
        for (int64_t i = 0; i < m->count * rows; i++) {
            const int64_t row = m->gemm.channel_scale != 0 ? row_of_part(m, part, i % rows)
                                : m->scale2_parts == 2     ? part
                                                           : 0;
            to[i] = from[i / rows * m->scale2_parts + row];
        }
        s.scale2 = moe_tensor_2d(to, MOE_F32, m->count, rows);
    }
    if (m->gemm.zero_points != 0) {
        s.zero_points = split_zeros(m, part, &at);
    }
    if (m->gemm.bias != 0) {
        const int64_t bytes = (int64_t)dtype_bytes(m->bias_dtype);
        unsigned char *to = carve(&at, m->count * inter * bytes);
        for (int64_t i = 0; i < m->count * inter; i++) {
            const int64_t from = i / inter * m->n + row_of_part(m, part, i % inter);
            memcpy(to + i * bytes, m->bias.data + from * bytes, (size_t)bytes);
        }
        s.bias = moe_tensor_2d(to, m->bias_dtype, m->count, inter);
    }
    return s;
}
