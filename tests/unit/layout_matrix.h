// SPDX-License-Identifier: Apache-2.0
// A matrix in a layout, element by element: where each code, scale and zero point lies by the
// layout's definition, what it means, and the image of one layout written from another.
#ifndef MOE_TESTS_UNIT_LAYOUT_MATRIX_H
#define MOE_TESTS_UNIT_LAYOUT_MATRIX_H

#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "quant/formats.h"
#include "unit/layout_box.h"

enum { VALUES, SCALES, SCALE2, ZEROS, BIAS, ACT, NUM_VIEWS };

typedef enum zero_form { NO_ZEROS, BYTES, PAIRS, NIBBLES } zero_form;
typedef enum code_form { AS_TYPE, AS_BYTES, AS_BLOCKS } code_form;

typedef struct matrix_case {
    moe_format format;
    int32_t group;
    moe_dtype scale_dtype;
    code_form codes;
    zero_form zeros;
    int parts;   // of per-tensor scales and scale2
    bool vector; // channel scales [n, N] instead of [n, N, 1]
} matrix_case;

// The format of the case that runs.
static const moei_format_info *info;

// A layout with its six tensors.
typedef struct side {
    moe_matrix_layout layout;
    box boxes[NUM_VIEWS];
    bool present[NUM_VIEWS];
} side;

static const char *const view_names[NUM_VIEWS] = {"values",      "scales", "scale2",
                                                  "zero points", "bias",   "act scale"};

static inline bool gated(const moe_matrix_layout *l)
{
    return l->gate_up != MOE_GATE_UP_UNSET;
}

static inline bool interleaved(moe_gate_up order)
{
    return order == MOE_GATE_UP_INTERLEAVED || order == MOE_UP_GATE_INTERLEAVED;
}

// Row j of part 0 (gate) or 1 (up), of I rows each; the definition of moe_gate_up.
static inline int64_t row_of(moe_gate_up order, int part, int64_t j, int64_t size)
{
    switch (order) {
    case MOE_GATE_FIRST:
        return part == 0 ? j : size + j;
    case MOE_UP_FIRST:
        return part == 0 ? size + j : j;
    case MOE_GATE_UP_INTERLEAVED:
        return part == 0 ? 2 * j : 2 * j + 1;
    case MOE_UP_GATE_INTERLEAVED:
        return part == 0 ? 2 * j + 1 : 2 * j;
    default:
        return j;
    }
}

static inline int64_t group_of(const matrix_case *c)
{
    return c->group > 0 ? c->group : info->block_k;
}

static inline int64_t groups_of(const matrix_case *c, int64_t cols)
{
    const int64_t group = group_of(c);
    return group > 0 ? (cols + group - 1) / group : 1;
}

static inline int64_t scale_rows_of(const matrix_case *c, const moe_matrix_layout *l)
{
    const int64_t block = info->block_n;
    if (block == 0) {
        return c->parts;
    }
    const bool halves = gated(l) && !interleaved(l->gate_up);
    return halves ? 2 * ((l->rows / 2 + block - 1) / block) : (l->rows + block - 1) / block;
}

static inline int code_bits(void)
{
    return moe_dtype_bits(info->elem);
}

static inline void add_box(side *s, int view, moe_dtype dtype, int ndim, const int64_t *shape,
                           spread sp)
{
    s->boxes[view] = make_box(dtype, ndim, shape, sp);
    s->present[view] = true;
}

static inline side make_side(const matrix_case *c, const moe_matrix_layout *l, spread sp)
{
    side s;
    const int64_t n = l->count;
    const int64_t groups = groups_of(c, l->cols);
    const int64_t scale_rows = scale_rows_of(c, l);
    memset(&s, 0, sizeof s);
    s.layout = *l;
    const int64_t inner = l->transposed != 0 ? l->rows : l->cols;
    const int64_t outer = l->transposed != 0 ? l->cols : l->rows;
    const int64_t type_shape[3] = {n, outer, inner};
    const int64_t byte_shape[3] = {n, outer, (inner * code_bits() + 7) / 8};
    const int64_t block_shape[4] = {n, outer, inner / 32, 4 * code_bits()};
    if (c->codes == AS_BLOCKS) {
        add_box(&s, VALUES, MOE_U8, 4, block_shape, sp);
    } else if (c->codes == AS_BYTES) {
        add_box(&s, VALUES, MOE_U8, 3, byte_shape, sp);
    } else {
        add_box(&s, VALUES, info->elem, 3, type_shape, sp);
    }
    if (info->scale_dtypes != 0 && info->block_n == 0) {
        const int64_t shape[2] = {n, c->parts};
        add_box(&s, SCALES, c->scale_dtype, c->parts == 1 ? 1 : 2, shape, sp);
    } else if (info->scale_dtypes != 0) {
        const int64_t shape[3] = {n, scale_rows, groups};
        add_box(&s, SCALES, c->scale_dtype, c->vector ? 2 : 3, shape, sp);
    }
    if (info->scale2) {
        const int64_t shape[2] = {n, c->parts};
        add_box(&s, SCALE2, MOE_F32, 2, shape, sp);
    }
    if (c->zeros != NO_ZEROS) {
        const int64_t shape[3] = {n, c->zeros == PAIRS ? (l->rows + 1) / 2 : l->rows, groups};
        add_box(&s, ZEROS, c->zeros == NIBBLES ? MOE_UINT4 : MOE_U8, 3, shape, sp);
    }
    const int64_t bias_shape[2] = {n, l->rows};
    const int64_t one[1] = {1};
    add_box(&s, BIAS, MOE_BF16, 2, bias_shape, sp);
    add_box(&s, ACT, MOE_F32, 1, one, sp);
    return s;
}

// Random codes, with finite scales and zero points that are codes.
static inline void randomise(side *s)
{
    for (int v = 0; v < NUM_VIEWS; v++) {
        if (!s->present[v]) {
            continue;
        }
        box *b = &s->boxes[v];
        fill_random(b);
        for (size_t i = b->t.byte_offset; v != VALUES && i < b->bytes; i++) {
            const size_t at = i - b->t.byte_offset;
            switch (b->t.dtype) {
            case MOE_F32:
                b->memory[i] &= at % 4 == 3 ? 0xBF : 0xFF; // exponents below 128
                break;
            case MOE_BF16:
            case MOE_F16:
                b->memory[i] &= at % 2 == 1 ? 0xBF : 0xFF;
                break;
            case MOE_E8M0:
            case MOE_E4M3FN:
                b->memory[i] &= 0xFE;
                break;
            default:
                b->memory[i] &= v == SCALES ? 0xFE : 0xFF;
                if (v == ZEROS && s->layout.format == MOE_FORMAT_INT4_GROUP &&
                    b->t.dtype == MOE_U8 && b->t.shape[1] == s->layout.rows) {
                    b->memory[i] &= 15;
                }
                break;
            }
        }
    }
}

static inline side twin_side(const side *s)
{
    side r = *s;
    for (int v = 0; v < NUM_VIEWS; v++) {
        if (s->present[v]) {
            r.boxes[v] = twin(&s->boxes[v]);
        }
    }
    return r;
}

static inline moe_matrix_source source_of(const side *s)
{
    moe_matrix_source m;
    memset(&m, 0, sizeof m);
    moe_tensor *const views[NUM_VIEWS] = {&m.values,      &m.scales, &m.scale2,
                                          &m.zero_points, &m.bias,   &m.act_scale};
    for (int v = 0; v < NUM_VIEWS; v++) {
        if (s->present[v]) {
            *views[v] = s->boxes[v].t;
        }
    }
    return m;
}

// First byte of what holds code (row, col), and its place there in elements.
static inline uint8_t *code_row(const side *s, int64_t e, int64_t row, int64_t col, int64_t *at)
{
    const moe_tensor *t = &s->boxes[VALUES].t;
    *at = s->layout.transposed != 0 ? row : col;
    return (uint8_t *)t->data + t->byte_offset +
           (e * t->stride[0] + (s->layout.transposed != 0 ? col : row) * t->stride[1]) *
               moe_dtype_bits(t->dtype) / 8;
}

static inline uint64_t code_at(const side *s, int64_t e, int64_t row, int64_t col)
{
    int64_t at;
    const uint8_t *p = code_row(s, e, row, col, &at);
    return get_bits(p, code_bits(), at);
}

static inline void put_code(const side *s, int64_t e, int64_t row, int64_t col, uint64_t code)
{
    int64_t at;
    uint8_t *p = code_row(s, e, row, col, &at);
    put_bits(p, code_bits(), at, code);
}

static inline uint64_t scale_at(const side *s, int view, int64_t e, int64_t row, int64_t col)
{
    const moe_tensor *t = &s->boxes[view].t;
    const int64_t elem = e * t->stride[0] + (t->ndim > 1 ? row * t->stride[1] : 0) +
                         (t->ndim > 2 ? col * t->stride[2] : 0);
    return get_bits((uint8_t *)t->data + t->byte_offset, moe_dtype_bits(t->dtype), elem);
}

static inline void put_scale(const side *s, int view, int64_t e, int64_t row, int64_t col,
                             uint64_t v)
{
    const moe_tensor *t = &s->boxes[view].t;
    const int64_t elem = e * t->stride[0] + (t->ndim > 1 ? row * t->stride[1] : 0) +
                         (t->ndim > 2 ? col * t->stride[2] : 0);
    put_bits((uint8_t *)t->data + t->byte_offset, moe_dtype_bits(t->dtype), elem, v);
}

static inline int zero_at(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t g)
{
    const moe_tensor *t = &s->boxes[ZEROS].t;
    if (c->zeros == NO_ZEROS) {
        const int32_t zero = info->zero_point;
        return zero > 0 ? zero : 0;
    }
    if (c->zeros == PAIRS) {
        return (int)(get3(t, e, row / 2, g) >> (row % 2 * 4) & 15);
    }
    return (int)get3(t, e, row, g);
}

static inline void put_zero(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t g,
                            int v)
{
    const moe_tensor *t = &s->boxes[ZEROS].t;
    if (c->zeros == PAIRS) {
        put_bits(row_at(t, e, row / 2) + g, 4, row % 2, (uint64_t)v);
    } else {
        put3(t, e, row, g, (uint64_t)v);
    }
}

// Rows of zeros where the image's codes leave bits over.
static inline void clear_rows(const box *b)
{
    const moe_tensor *t = &b->t;
    const int64_t row_bytes =
        (t->shape[t->ndim - 1] * (t->ndim == 4 ? t->shape[2] : 1) * moe_dtype_bits(t->dtype) + 7) /
        8;
    for (int64_t e = 0; e < t->shape[0]; e++) {
        for (int64_t r = 0; r < t->shape[1]; r++) {
            memset((uint8_t *)t->data + t->byte_offset +
                       (e * t->stride[0] + r * t->stride[1]) * moe_dtype_bits(t->dtype) / 8,
                   0, (size_t)row_bytes);
        }
    }
}

// Writes what dst must hold, part by part, from the definitions.
static inline void draw(const matrix_case *c, const side *s, const side *d)
{
    const int parts = gated(&s->layout) ? 2 : 1;
    const int64_t si = s->layout.rows / parts;
    const int64_t di = d->layout.rows / parts;
    const moe_gate_up from = s->layout.gate_up;
    const moe_gate_up to = d->layout.gate_up;
    const int64_t sg = groups_of(c, s->layout.cols);
    const int64_t dg = groups_of(c, d->layout.cols);
    const int default_zero = info->zero_point > 0 ? info->zero_point : 0;
    clear_rows(&d->boxes[VALUES]);
    if (c->zeros != NO_ZEROS) {
        clear_rows(&d->boxes[ZEROS]);
    }
    for (int64_t e = 0; e < d->layout.count; e++) {
        for (int p = 0; p < parts; p++) {
            for (int64_t j = 0; j < di; j++) {
                const int64_t dr = row_of(to, p, j, di);
                const int64_t sr = row_of(from, p, j, si);
                for (int64_t k = 0; k < d->layout.cols; k++) {
                    const int64_t g = group_of(c) > 0 ? k / group_of(c) : 0;
                    put_code(d, e, dr, k,
                             j < si && k < s->layout.cols ? code_at(s, e, sr, k)
                             : j < si && g < sg           ? (uint64_t)zero_at(c, s, e, sr, g)
                                                          : (uint64_t)default_zero);
                }
                for (int64_t g = 0; c->zeros != NO_ZEROS && g < dg; g++) {
                    put_zero(c, d, e, dr, g,
                             j < si && g < sg ? zero_at(c, s, e, sr, g) : default_zero);
                }
                for (int64_t g = 0; info->block_n == 1 && g < dg; g++) {
                    put_scale(d, SCALES, e, dr, g,
                              j < si && g < sg ? scale_at(s, SCALES, e, sr, g) : 0);
                }
                put_scale(d, BIAS, e, dr, 0, j < si ? scale_at(s, BIAS, e, sr, 0) : 0);
            }
            if (c->parts == 2 && info->scale2) {
                put_scale(d, SCALE2, e, row_of(to, p, 0, 1), 0,
                          scale_at(s, SCALE2, e, row_of(from, p, 0, 1), 0));
            }
            if (c->parts == 2 && info->scale_dtypes != 0 && info->block_n == 0) {
                put_scale(d, SCALES, e, row_of(to, p, 0, 1), 0,
                          scale_at(s, SCALES, e, row_of(from, p, 0, 1), 0));
            }
        }
        if (c->parts == 1 && info->scale2) {
            put_scale(d, SCALE2, e, 0, 0, scale_at(s, SCALE2, e, 0, 0));
        }
        if (c->parts == 1 && info->scale_dtypes != 0 && info->block_n == 0) {
            put_scale(d, SCALES, e, 0, 0, scale_at(s, SCALES, e, 0, 0));
        }
        // 128-row blocks: block by block of a part in halves, else in sequence.
        const int64_t s_rows = scale_rows_of(c, &s->layout);
        const int64_t d_rows = scale_rows_of(c, &d->layout);
        for (int64_t r = 0; info->block_n > 1 && r < d_rows; r++) {
            const bool swap = from != to && !interleaved(to);
            const bool halves = gated(&s->layout) && !interleaved(to);
            const int64_t part = halves ? r / (d_rows / 2) : 0;
            const int64_t j = halves ? r % (d_rows / 2) : r;
            const int64_t have = halves ? s_rows / 2 : s_rows;
            const int64_t sr = (swap ? 1 - part : part) * have + j;
            for (int64_t g = 0; g < dg; g++) {
                put_scale(d, SCALES, e, r, g,
                          j < have && g < sg ? scale_at(s, SCALES, e, sr, g) : 0);
            }
        }
    }
    put_scale(d, ACT, 0, 0, 0, scale_at(s, ACT, 0, 0, 0));
}

static inline float decode(moe_dtype dtype, uint64_t code)
{
    switch (dtype) {
    case MOE_F32:
        return moei_f32_from_bits((uint32_t)code);
    case MOE_BF16:
        return moei_bf16_to_f32((uint16_t)code);
    case MOE_F16:
        return moei_f16_to_f32((uint16_t)code);
    case MOE_E4M3FN:
        return moei_e4m3fn_to_f32((uint8_t)code);
    case MOE_E5M2:
        return moei_e5m2_to_f32((uint8_t)code);
    case MOE_E8M0:
        return moei_e8m0_to_f32((uint8_t)code);
    case MOE_E2M1:
        return moei_e2m1_to_f32((uint8_t)code);
    case MOE_E2M3:
        return moei_e2m3_to_f32((uint8_t)code);
    case MOE_E3M2:
        return moei_e3m2_to_f32((uint8_t)code);
    case MOE_I8:
        return (float)(int8_t)(uint8_t)code;
    default:
        return (float)code;
    }
}

// The number that row j of a part means at column k.
static inline float meaning(const matrix_case *c, const side *s, int64_t e, int part, int64_t j,
                            int64_t k)
{
    const int64_t size = gated(&s->layout) ? s->layout.rows / 2 : s->layout.rows;
    const int64_t row = row_of(s->layout.gate_up, part, j, size);
    const int64_t g = group_of(c) > 0 ? k / group_of(c) : 0;
    const int64_t number = row_of(s->layout.gate_up, part, 0, 1);
    float v = decode(info->elem, code_at(s, e, row, k));
    if (info->scale_dtypes == 0) {
        return v;
    }
    v -= (float)zero_at(c, s, e, row, g);
    const bool halves = gated(&s->layout) && !interleaved(s->layout.gate_up);
    const int64_t half = scale_rows_of(c, &s->layout) / 2;
    const int64_t scale_row = info->block_n == 0   ? (c->parts == 2 ? number : 0)
                              : info->block_n == 1 ? row
                              : halves             ? row / size * half + row % size / info->block_n
                                                   : row / info->block_n;
    v *= decode(c->scale_dtype == MOE_U8 ? MOE_E8M0 : c->scale_dtype,
                scale_at(s, SCALES, e, scale_row, g));
    return info->scale2 ? v * decode(MOE_F32, scale_at(s, SCALE2, e, c->parts == 2 ? number : 0, 0))
                        : v;
}

static inline int count_changed(const matrix_case *c, const side *s, const side *d)
{
    const int parts = gated(&s->layout) ? 2 : 1;
    int changed = 0;
    for (int64_t e = 0; e < d->layout.count; e++) {
        for (int p = 0; p < parts; p++) {
            for (int64_t j = 0; j < d->layout.rows / parts; j++) {
                for (int64_t k = 0; k < d->layout.cols; k++) {
                    const float is = meaning(c, d, e, p, j, k);
                    if (j < s->layout.rows / parts && k < s->layout.cols) {
                        const float was = meaning(c, s, e, p, j, k);
                        changed += memcmp(&is, &was, sizeof is) != 0;
                    } else {
                        changed += is != 0.0f;
                    }
                }
            }
        }
    }
    return changed;
}

#endif
