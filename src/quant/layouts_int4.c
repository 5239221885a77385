// SPDX-License-Identifier: Apache-2.0
// 4-bit integers of other software. Codes move in squares of 8 rows x 8 columns of k: in a register
// each row is a word, its nibble i the code of column i, which is a word of compressed-tensors,
// four bytes of a canonical row, and a word of GPTQ's column. Only AWQ shuffles nibbles.
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "numerics/int4.h"
#include "quant/layouts.h"

#define WORDS (MOEI_DTYPE_BIT(MOE_I32) | MOEI_DTYPE_BIT(MOE_U32))

// Column of nibble i of an AWQ word, and the nibble of column i.
static const int awq_column[8] = {0, 2, 4, 6, 1, 3, 5, 7};
static const int awq_nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static moe_status check_packing(moe_int4_packing packing, const char *call, const char *name)
{
    MOE_REQUIRE(packing != MOE_INT4_UNSET, MOE_E_UNSET, "%s: %s is unset", call, name);
    MOE_REQUIRE(packing > 0 && packing <= MOE_INT4_AWQ, MOE_E_ARGUMENT,
                "%s: %s = %d, must be 1..%d", call, name, (int)packing, MOE_INT4_AWQ);
    return MOE_OK;
}

static bool is_gptq(moe_int4_packing packing)
{
    return packing == MOE_INT4_GPTQ || packing == MOE_INT4_GPTQ_V2;
}

// Words lie little-endian, as in files.
static uint32_t load_word(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void store_word(uint8_t *p, uint32_t w)
{
    for (int i = 0; i < 4; i++) {
        p[i] = (uint8_t)(w >> (8 * i));
    }
}

// ---- codes --------------------------------------------------------------------------------------

// A side of the call; columns of the plane are bytes of canonical rows, words elsewhere.
typedef struct code_view {
    moe_int4_packing packing;
    moei_plane plane;
} code_view;

static moe_status check_codes(const moe_tensor *given, moe_int4_packing packing, const char *call,
                              const char *name, bool out, moe_tensor *t)
{
    const int64_t any[3] = {-1, -1, -1};
    const bool canonical = packing == MOE_INT4_CANONICAL;
    MOE_REQUIRE(given != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call, name);
    MOE_REQUIRE(packing != MOE_INT4_ROW_PAIRS, MOE_E_UNSUPPORTED,
                "%s: %s is in packing %d, which holds zero points only", call, name,
                MOE_INT4_ROW_PAIRS);
    *t = moei_tensor_with_experts(given, 3);
    const uint32_t dtypes = canonical ? MOEI_DTYPE_BIT(MOE_U8) | MOEI_DTYPE_BIT(MOE_UINT4) : WORDS;
    return out ? moei_layout_check_out(t, call, name, dtypes, 3, any)
               : moei_layout_check_in(t, call, name, dtypes, 3, any);
}

static int64_t code_rows(const moe_tensor *t, moe_int4_packing packing)
{
    return packing == MOE_INT4_AWQ ? 8 * t->shape[2] : t->shape[is_gptq(packing) ? 2 : 1];
}

// Columns that a view can hold, and whether that is their exact number.
static int64_t code_columns(const moe_tensor *t, moe_int4_packing packing, bool *exact)
{
    *exact = packing != MOE_INT4_COMPRESSED_TENSORS && t->dtype != MOE_U8;
    if (packing == MOE_INT4_CANONICAL) {
        return t->dtype == MOE_UINT4 ? t->shape[2] : 2 * t->shape[2];
    }
    return packing == MOE_INT4_AWQ ? t->shape[1] : 8 * t->shape[is_gptq(packing) ? 1 : 2];
}

// K: the exact number where a side has one, else the smaller capacity. Each side must be as large
// as K asks for, and no larger.
static moe_status agree_columns(const moe_tensor *s, moe_int4_packing from, const moe_tensor *d,
                                moe_int4_packing to, const char *call, int64_t *k)
{
    bool s_exact;
    bool d_exact;
    const int64_t s_k = code_columns(s, from, &s_exact);
    const int64_t d_k = code_columns(d, to, &d_exact);
    *k = s_exact ? s_k : d_exact ? d_k : moei_i64_min(s_k, d_k);
    const int64_t s_unit = s_exact ? 1 : from == MOE_INT4_CANONICAL ? 2 : 8;
    const int64_t d_unit = d_exact ? 1 : to == MOE_INT4_CANONICAL ? 2 : 8;
    MOE_REQUIRE(s_k == moei_i64_round_up(*k, s_unit) && d_k == moei_i64_round_up(*k, d_unit),
                MOE_E_SHAPE, "%s: src holds %" PRId64 " columns, dst %" PRId64, call, s_k, d_k);
    return MOE_OK;
}

static code_view view_of(const moe_tensor *t, moe_int4_packing packing)
{
    code_view v = {packing, {NULL, 0, 0, 0}};
    v.plane.data = moei_tensor_data(t);
    v.plane.e_stride = moei_tensor_stride_bytes(t, 0);
    v.plane.r_stride = moei_tensor_stride_bytes(t, 1);
    v.plane.c_stride =
        packing == MOE_INT4_CANONICAL && t->dtype == MOE_UINT4 ? 1 : moei_tensor_stride_bytes(t, 2);
    return v;
}

// Codes of rows n .. n+7 and columns k .. k+7, of which `rows` and `cols` exist; others give 0.
static void load_square(const code_view *v, int64_t e, int64_t n, int64_t k, int rows, int cols,
                        uint32_t square[8])
{
    const moei_plane *p = &v->plane;
    const uint8_t *base = p->data + e * p->e_stride;
    const uint32_t mask = cols == 8 ? 0xFFFFFFFFu : (1u << (4 * cols)) - 1u;
    memset(square, 0, 8 * sizeof *square);
    if (v->packing == MOE_INT4_AWQ) {
        for (int c = 0; c < cols; c++) {
            const uint32_t word = load_word(base + (k + c) * p->r_stride + n / 8 * p->c_stride);
            for (int i = 0; i < 8; i++) {
                square[awq_column[i]] |= (word >> (4 * i) & 15u) << (4 * c);
            }
        }
        return;
    }
    for (int r = 0; r < rows; r++) {
        if (v->packing == MOE_INT4_CANONICAL) {
            for (int b = 0; b < (cols + 1) / 2; b++) {
                square[r] |= (uint32_t)base[(n + r) * p->r_stride + (k / 2 + b) * p->c_stride]
                             << (8 * b);
            }
        } else if (is_gptq(v->packing)) {
            square[r] = load_word(base + k / 8 * p->r_stride + (n + r) * p->c_stride);
        } else {
            square[r] = load_word(base + (n + r) * p->r_stride + k / 8 * p->c_stride);
        }
        square[r] &= mask;
    }
}

static void store_square(const code_view *v, int64_t e, int64_t n, int64_t k, int rows, int cols,
                         const uint32_t square[8])
{
    const moei_plane *p = &v->plane;
    uint8_t *base = p->data + e * p->e_stride;
    if (v->packing == MOE_INT4_AWQ) {
        for (int c = 0; c < cols; c++) {
            uint32_t word = 0;
            for (int i = 0; i < 8; i++) {
                word |= (square[awq_column[i]] >> (4 * c) & 15u) << (4 * i);
            }
            store_word(base + (k + c) * p->r_stride + n / 8 * p->c_stride, word);
        }
        return;
    }
    for (int r = 0; r < rows; r++) {
        if (v->packing == MOE_INT4_CANONICAL) {
            for (int b = 0; b < (cols + 1) / 2; b++) {
                base[(n + r) * p->r_stride + (k / 2 + b) * p->c_stride] =
                    (uint8_t)(square[r] >> (8 * b));
            }
        } else if (is_gptq(v->packing)) {
            store_word(base + k / 8 * p->r_stride + (n + r) * p->c_stride, square[r]);
        } else {
            store_word(base + (n + r) * p->r_stride + k / 8 * p->c_stride, square[r]);
        }
    }
}

moe_status moe_layout_int4_values(moe_int4_packing from, const moe_tensor *src, moe_int4_packing to,
                                  const moe_tensor *dst)
{
    static const char call[] = "moe_layout_int4_values";
    moe_tensor s;
    moe_tensor d;
    int64_t k;
    MOE_TRY(check_packing(from, call, "from"));
    MOE_TRY(check_packing(to, call, "to"));
    MOE_TRY(check_codes(src, from, call, "src", false, &s));
    MOE_TRY(check_codes(dst, to, call, "dst", true, &d));
    MOE_REQUIRE(s.shape[0] == d.shape[0], MOE_E_SHAPE,
                "%s: src holds %" PRId64 " experts, dst %" PRId64, call, s.shape[0], d.shape[0]);
    const int64_t rows = code_rows(&s, from);
    MOE_REQUIRE(rows == code_rows(&d, to), MOE_E_SHAPE,
                "%s: src holds %" PRId64 " rows, dst %" PRId64, call, rows, code_rows(&d, to));
    MOE_TRY(agree_columns(&s, from, &d, to, call, &k));
    MOE_TRY(moei_layout_disjoint(&d, "dst", &s, "src", call));
    const code_view a = view_of(&s, from);
    const code_view b = view_of(&d, to);
    for (int64_t e = 0; e < s.shape[0]; e++) {
        for (int64_t n = 0; n < rows; n += 8) {
            const int r = (int)moei_i64_min(8, rows - n);
            for (int64_t i = 0; i < k; i += 8) {
                const int c = (int)moei_i64_min(8, k - i);
                uint32_t square[8];
                load_square(&a, e, n, i, r, c, square);
                store_square(&b, e, n, i, r, c, square);
            }
        }
    }
    return MOE_OK;
}

// ---- zero points --------------------------------------------------------------------------------

typedef struct zero_view {
    moe_int4_packing packing;
    bool nibbles; // canonical UINT4
    moei_plane plane;
} zero_view;

static moe_status check_zeros(const moe_tensor *given, moe_int4_packing packing, int64_t rows,
                              const char *call, const char *name, bool out, moe_tensor *t)
{
    const bool words = packing == MOE_INT4_COMPRESSED_TENSORS;
    const bool columns = is_gptq(packing) || packing == MOE_INT4_AWQ;
    MOE_REQUIRE(given != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call, name);
    MOE_REQUIRE(!columns || rows % 8 == 0, MOE_E_SHAPE,
                "%s: rows = %" PRId64 ", %s needs a multiple of %d", call, rows, name, 8);
    *t = moei_tensor_with_experts(given, 3);
    const int64_t eights = moei_i64_ceil_div(rows, 8);
    const int64_t shape[3] = {-1,
                              columns                         ? -1
                              : words                         ? eights
                              : packing == MOE_INT4_ROW_PAIRS ? moei_i64_ceil_div(rows, 2)
                                                              : rows,
                              columns ? eights : -1};
    const uint32_t dtypes = words || columns ? WORDS
                            : packing == MOE_INT4_ROW_PAIRS
                                ? MOEI_DTYPE_BIT(MOE_U8)
                                : MOEI_DTYPE_BIT(MOE_U8) | MOEI_DTYPE_BIT(MOE_UINT4);
    return out ? moei_layout_check_out(t, call, name, dtypes, 3, shape)
               : moei_layout_check_in(t, call, name, dtypes, 3, shape);
}

static int64_t zero_groups(const moe_tensor *t, moe_int4_packing packing)
{
    return t->shape[is_gptq(packing) || packing == MOE_INT4_AWQ ? 1 : 2];
}

static zero_view zero_view_of(const moe_tensor *t, moe_int4_packing packing)
{
    zero_view v = {packing, t->dtype == MOE_UINT4, {NULL, 0, 0, 0}};
    v.plane.data = moei_tensor_data(t);
    v.plane.e_stride = moei_tensor_stride_bytes(t, 0);
    v.plane.r_stride = moei_tensor_stride_bytes(t, 1);
    v.plane.c_stride = v.nibbles ? 0 : moei_tensor_stride_bytes(t, 2);
    return v;
}

// First byte of what holds the zero point of row n and group g, and the nibble in it; -1: a byte.
static uint8_t *zero_place(const zero_view *v, int64_t e, int64_t n, int64_t g, int *nibble)
{
    const moei_plane *p = &v->plane;
    uint8_t *base = p->data + e * p->e_stride;
    switch (v->packing) {
    case MOE_INT4_CANONICAL:
        *nibble = v->nibbles ? (int)(g % 2) : -1;
        return base + n * p->r_stride + (v->nibbles ? g / 2 : g * p->c_stride);
    case MOE_INT4_ROW_PAIRS:
        *nibble = (int)(n % 2);
        return base + n / 2 * p->r_stride + g * p->c_stride;
    case MOE_INT4_COMPRESSED_TENSORS:
        *nibble = (int)(n % 8);
        return base + n / 8 * p->r_stride + g * p->c_stride;
    case MOE_INT4_AWQ:
        *nibble = awq_nibble[n % 8];
        return base + g * p->r_stride + n / 8 * p->c_stride;
    default:
        *nibble = (int)(n % 8);
        return base + g * p->r_stride + n / 8 * p->c_stride;
    }
}

static int zero_load(const zero_view *v, int64_t e, int64_t n, int64_t g)
{
    int nibble;
    const uint8_t *p = zero_place(v, e, n, g, &nibble);
    const int stored = nibble < 0 ? *p : moei_get_u4(p, (size_t)nibble);
    return v->packing == MOE_INT4_GPTQ ? stored + 1 : stored;
}

static void zero_store(const zero_view *v, int64_t e, int64_t n, int64_t g, int zero)
{
    int nibble;
    uint8_t *p = zero_place(v, e, n, g, &nibble);
    const int stored = v->packing == MOE_INT4_GPTQ ? zero - 1 : zero;
    if (nibble < 0) {
        *p = (uint8_t)stored;
    } else {
        moei_set_u4(p, (size_t)nibble, (uint8_t)stored);
    }
}

moe_status moe_layout_int4_zero_points(int64_t rows, moe_int4_packing from, const moe_tensor *src,
                                       moe_int4_packing to, const moe_tensor *dst)
{
    static const char call[] = "moe_layout_int4_zero_points";
    moe_tensor s;
    moe_tensor d;
    MOE_TRY(check_packing(from, call, "from"));
    MOE_TRY(check_packing(to, call, "to"));
    MOE_REQUIRE(rows >= 0 && rows <= INT32_MAX, MOE_E_ARGUMENT,
                "%s: rows = %" PRId64 ", must be 0..%" PRId32, call, rows, INT32_MAX);
    MOE_TRY(check_zeros(src, from, rows, call, "src", false, &s));
    MOE_TRY(check_zeros(dst, to, rows, call, "dst", true, &d));
    const int64_t groups = zero_groups(&s, from);
    MOE_REQUIRE(s.shape[0] == d.shape[0] && groups == zero_groups(&d, to), MOE_E_SHAPE,
                "%s: src holds %" PRId64 " experts and %" PRId64 " groups, dst %" PRId64
                " and %" PRId64,
                call, s.shape[0], groups, d.shape[0], zero_groups(&d, to));
    MOE_TRY(moei_layout_disjoint(&d, "dst", &s, "src", call));
    const zero_view a = zero_view_of(&s, from);
    const zero_view b = zero_view_of(&d, to);
    const bool byte = to == MOE_INT4_CANONICAL && !b.nibbles;
    const int low = to == MOE_INT4_GPTQ ? 1 : 0;
    const int high = byte ? 16 : to == MOE_INT4_GPTQ ? 16 : 15;
    for (int64_t e = 0; e < s.shape[0]; e++) {
        for (int64_t n = 0; n < rows; n++) {
            for (int64_t g = 0; g < groups; g++) {
                const int zero = zero_load(&a, e, n, g);
                MOE_REQUIRE(zero >= low && zero <= high, MOE_E_VALUE,
                            "%s: src of expert %" PRId64 ": row %" PRId64 ", group %" PRId64
                            " is %d, dst holds %d..%d",
                            call, e, n, g, zero, low, high);
            }
        }
    }
    const int64_t size = moe_dtype_bits(d.dtype);
    for (int64_t e = 0; e < d.shape[0]; e++) {
        for (int64_t r = 0; r < d.shape[1]; r++) {
            memset(b.plane.data + e * b.plane.e_stride + r * b.plane.r_stride, 0,
                   (size_t)((d.shape[2] * size + 7) / 8));
        }
        for (int64_t n = 0; n < rows; n++) {
            for (int64_t g = 0; g < groups; g++) {
                zero_store(&b, e, n, g, zero_load(&a, e, n, g));
            }
        }
    }
    return MOE_OK;
}
