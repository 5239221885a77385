// SPDX-License-Identifier: Apache-2.0
// Integer products of packed 4-bit weights by digits: x in signed bytes, one (int8) or two (int16:
// v = 256 high + low); weights in unsigned bytes, 2 w + 12 by a table (e2m1) or as they are
// (uint4). vpmaddubsw makes pairs, of which four add up in 16 bits: 4 * 2 * 24 * 128 = 24576;
// vpmaddwd makes them 32 bits and puts the digit in its place. VNNI's vpdpbusd does all that at
// once. 12, or the zero point, times the sum of x is subtracted: of e2m1 with int8 before the first
// product. A lane of 16 bits then holds all 16 products of a record: of what has been added it has
// the sum of w x, of the rest -12 times that of x, so 16 * 12 * 128 = 24576 at most (uint4: 16 * 15
// * 128 = 30720).
//
// Per 8 outputs x 32 k, vector operations without loads: 20 for weights and 20 for each row of
// int8 (uint4 21), 42 of int16; VNNI, per 16 outputs: 20, 11 (uint4 12), 22. Scales of e8m0 are 2
// more.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_DIGITS_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_DIGITS_H

#include <stddef.h>
#include <string.h>

#include "backends/cpu/avx/vector.h"
#include "backends/cpu/packed_walk.h"
#include "backends/cpu/unroll.h"

#define PANEL      MOEI_CPU_PANEL
#define STRIP      MOEI_CPU_STRIP
#define RECORD     MOEI_CPU_RECORD
#define VECTORS    (STRIP / LANES)         // of a strip
#define VECTOR     ((int64_t)sizeof(veci)) // bytes
#define HALVES     2                       // of a record that have scales of their own
#define DIGIT_ROWS 4                       // rows that share a load of weights
#define DIGIT_TOP  32639                   // the largest code that has two digits

#if defined(__AVX512VNNI__)
#define DOTS 1 // sums of bytes are 32 bits wide at once
#else
#define DOTS 0
#endif

/// 32 k of a row. For e2m1 the sums of x are multiplied by 12, and the scale is halved.
typedef struct cell8 {
    int8_t digit[1][RECORD];
    int32_t sum[HALVES]; // of either half, if they have scales of their own; else sum[0] of both.
                         // e2m1: with what a lane begins, see store_starts
    float scale;
    int32_t exponent; // of `scale`, as its bits have it
} cell8;

typedef struct cell16 {
    union {
        int8_t digit[2][RECORD]; // low, high
        int16_t code[RECORD];
    };
    int32_t sum[HALVES];
    float scale;
    int32_t unused;
} cell16;

/// A cell of 16 bits and a rest: 2^shift (256 high + low) + rest.
typedef struct cell16_rest {
    int8_t digit[3][RECORD]; // low, high, rest
    int32_t sum[HALVES];
    float scale;
    int32_t shift;
} cell16_rest;

/// Outputs of a panel, and what folds a record into them: [half][output].
typedef struct fold_to {
    int64_t first, last;  // strips
    int64_t sets;         // folds of this record: 1, or 2 with halves
    const uint8_t *codes; // of scales, for digit_shape.codes; else:
    const float (*scale)[PANEL];
    const int32_t (*zero)[PANEL];
    float (*acc)[PANEL]; // of each row
} fold_to;

// ---- x -----------------------------------------------------------------------------------------

// Bytes of 8 k in the order in which 4-bit codes lie: low nibbles, then high ones.
static inline __m256i in_order(__m256i bytes)
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    return _mm256_shuffle_epi8(bytes, order);
}

static inline int32_t sum_of(__m128i v)
{
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xB1)));
}

// v: lanes 0 to 3 are sums of the first half, the others of the second.
static inline void store_sums(bool e2m1, bool halves, __m256i v, int32_t sum[HALVES])
{
    const int32_t factor = e2m1 ? 12 : 1;
    const int32_t low = sum_of(_mm256_castsi256_si128(v)) * factor;
    const int32_t high = sum_of(_mm256_extracti128_si256(v, 1)) * factor;
    sum[0] = halves ? low : low + high;
    sum[1] = high;
}

// v: of either half of a record. hadd leaves its lanes in one half of each 128 bits.
static inline void store_half_sums(bool e2m1, bool halves, const __m256i v[2], int32_t sum[HALVES])
{
    const __m256i both = _mm256_hadd_epi32(v[0], v[1]);
    store_sums(e2m1, halves, _mm256_permute4x64_epi64(both, 0xD8), sum);
}

// Sums of e2m1 begin with -12 times the sum of x. pairs: sums of two bytes in the order of codes,
// so that those of a lane's lower 16 bits alternate with those of its upper ones.
static inline void store_starts(bool halves, __m256i pairs, int32_t sum[HALVES])
{
    __m128i low = _mm256_castsi256_si128(pairs);
    __m128i high = _mm256_extracti128_si256(pairs, 1);
    low = halves ? low : _mm_add_epi16(low, high);
    // Lanes 0, 2 and 1, 3 of both; the end of either is in its lane 0.
    __m128i both = _mm_add_epi16(_mm_unpacklo_epi32(low, high), _mm_unpackhi_epi32(low, high));
    both = _mm_add_epi16(both, _mm_srli_si128(both, 8));
    both = _mm_mullo_epi16(both, _mm_set1_epi16(-12));
    if (DOTS) {
        both = _mm_madd_epi16(both, _mm_set1_epi16(1));
    }
    _mm_storel_epi64((__m128i *)(void *)sum, both);
}

// in_bytes: for weights of 8 bits, as they lie.
static inline void fill_digits8(bool e2m1, bool halves, bool in_bytes, const uint8_t *codes,
                                cell8 *c)
{
    const __m256i v = in_bytes ? load_32(codes) : in_order(load_32(codes));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    store_32(c->digit[0], v);
    if (e2m1) {
        store_starts(halves, pairs, c->sum);
    } else {
        store_sums(false, halves, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), c->sum);
    }
}

// v: 32 codes, none above DIGIT_TOP.
static inline void fill_digits16(bool e2m1, bool halves, const __m256i v[2],
                                 int8_t (*digit)[RECORD], int32_t sum_of_v[HALVES])
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i low[2];
    __m256i high[2];
    __m256i sum[2];
    for (int i = 0; i < 2; i++) {
        low[i] = _mm256_srai_epi16(_mm256_slli_epi16(v[i], 8), 8);
        high[i] = _mm256_srai_epi16(_mm256_sub_epi16(v[i], low[i]), 8);
        sum[i] = _mm256_madd_epi16(v[i], one);
    }
    const __m256i low_bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low[0], low[1]), 0xD8);
    const __m256i high_bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(high[0], high[1]), 0xD8);
    store_32(digit[0], in_order(low_bytes));
    store_32(digit[1], in_order(high_bytes));
    store_half_sums(e2m1, halves, sum, sum_of_v);
}

// ---- weights -----------------------------------------------------------------------------------

static inline veci dword_of(const void *from)
{
    int32_t bits;
    memcpy(&bits, from, sizeof bits);
    return V(set1_epi32)(bits);
}

// 8 k of each output to unsigned bytes: low nibbles, high nibbles.
static inline void decode_bytes(bool e2m1, veci codes, veci out[2])
{
    const veci table =
        veci_all(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const veci nibble = V(set1_epi8)(15);
    out[0] = veci_and(codes, nibble);
    out[1] = veci_and(V(srli_epi16)(codes, 4), nibble);
    if (e2m1) {
        out[0] = V(shuffle_epi8)(table, out[0]);
        out[1] = V(shuffle_epi8)(table, out[1]);
    }
}

// ---- sums --------------------------------------------------------------------------------------

#if DOTS
// The digits of x add up apart, over all k that share scales.
static inline veci add_bytes(bool first, veci sum, const veci bytes[2], const uint8_t *x)
{
    sum = _mm512_dpbusd_epi32(first ? _mm512_setzero_si512() : sum, bytes[0], dword_of(x));
    return _mm512_dpbusd_epi32(sum, bytes[1], dword_of(x + 4));
}

static inline veci sum_of_digits(int64_t digits, const veci sums[2])
{
    return digits == 2 ? V(add_epi32)(sums[0], shift_left(sums[1], 8)) : sums[0];
}

static inline veci sum_of_rest(veci sum)
{
    return sum;
}
#else
// Keeps a sum where it is in the order of the source. Compilers may add integers in any order, and
// gcc then holds more products than there are registers.
static inline veci pinned(veci sum)
{
    __asm__("" : "+v"(sum));
    return sum;
}

// Sums of pairs of bytes, 16 bits wide.
static inline veci add_bytes(bool first, veci sum, const veci bytes[2], const uint8_t *x)
{
    const veci a = V(maddubs_epi16)(bytes[0], dword_of(x));
    const veci b = V(maddubs_epi16)(bytes[1], dword_of(x + 4));
    const veci ab = V(add_epi16)(a, b);
    return pinned(first ? ab : V(add_epi16)(sum, ab));
}

static inline veci sum_of_digits(int64_t digits, const veci sums[2])
{
    const veci low = V(madd_epi16)(sums[0], V(set1_epi16)(1));
    return digits == 2 ? V(add_epi32)(low, V(madd_epi16)(sums[1], V(set1_epi16)(256))) : low;
}

static inline veci sum_of_rest(veci sum)
{
    return V(madd_epi16)(sum, V(set1_epi16)(1));
}
#endif

// acc = fma(sum * s_x, s_w, acc) of a vector of outputs.
static inline void fold_one(veci sum, const float *x_scale, vecf scale, float *acc)
{
    const vecf scaled = V(mul_ps)(V(cvtepi32_ps)(sum), V(set1_ps)(*x_scale));
    V(store_ps)(acc, V(fmadd_ps)(scaled, scale, V(load_ps)(acc)));
}

/// What is constant wherever sums of digits are called.
typedef struct digit_shape {
    int64_t rows;
    int64_t vectors; // side by side
    int64_t digits;  // of x, but for a rest
    int64_t rests;   // lines that have a rest, of cells that have room for one: the first ones
    int64_t cell;    // bytes
    bool e2m1, halves;
    bool codes;   // of scales, e8m0 that are exponents of floats: all_exponents
    bool decoded; // weights are bytes: [vector][line][low, high nibbles][lane]
} digit_shape;

/// Sums of the digits of x, which become a total per half of a record, or per record.
typedef struct digit_sums {
    veci total[DIGIT_ROWS][VECTORS];
    veci sums[DIGIT_ROWS][VECTORS][2];
    veci rest[DIGIT_ROWS][VECTORS];
} digit_sums;

__attribute__((always_inline)) static inline int64_t sum_at(digit_shape shape)
{
    return shape.cell - (int64_t)(sizeof(cell8) - offsetof(cell8, sum));
}

__attribute__((always_inline)) static inline int64_t scale_at(digit_shape shape)
{
    return shape.cell - (int64_t)(sizeof(cell8) - offsetof(cell8, scale));
}

// Sums begin with what is to be subtracted.
__attribute__((always_inline)) static inline bool starts(digit_shape shape)
{
    return shape.e2m1 && shape.cell == (int64_t)sizeof(cell8);
}

// Sums end with every half of a record, not with the record.
__attribute__((always_inline)) static inline bool by_halves(digit_shape shape)
{
    return shape.halves || !(DOTS || shape.cell == (int64_t)sizeof(cell8));
}

__attribute__((always_inline)) static inline vecf scales_of(digit_shape shape, fold_to to,
                                                            int64_t set, int64_t n)
{
    if (!shape.codes) {
        return V(load_ps)(&to.scale[set][n]);
    }
#if LANES == 16
    const veci codes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(to.codes + n)));
#else
    const veci codes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(to.codes + n)));
#endif
    return as_floats(shift_left(codes, 23));
}

// A line is 8 k of a strip, whose bytes of x are at 8 u. begins: the sums of digits; with u == 0
// those of the rest do.
__attribute__((always_inline)) static inline void add_line(digit_shape shape, bool begins,
                                                           const uint8_t *from, int64_t v0,
                                                           int64_t line, int64_t u,
                                                           const uint8_t *cells, digit_sums *s)
{
    veci bytes[VECTORS][2];
    UNROLL
    for (int64_t v = 0; v < shape.vectors; v++) {
        if (shape.decoded) {
            const uint8_t *at = from + ((v0 + v) * (RECORD / 8) + line) * 2 * VECTOR;
            bytes[v][0] = veci_load(at);
            bytes[v][1] = veci_load(at + VECTOR);
        } else {
            decode_bytes(shape.e2m1, veci_load(from + line * 64 + (v0 + v) * VECTOR), bytes[v]);
        }
    }
    UNROLL
    for (int64_t r = 0; r < shape.rows; r++) {
        const uint8_t *c = cells + r * shape.cell;
        const uint8_t *digits = c + u * 8;
        const int64_t set = shape.halves ? u / (RECORD / 8 / HALVES) : 0;
        UNROLL
        for (int64_t d = 0; d < shape.digits; d++) {
            UNROLL
            for (int64_t v = 0; v < shape.vectors; v++) {
                veci *sum = &s->sums[r][v][d];
                if (begins && starts(shape)) {
                    *sum = dword_of(c + sum_at(shape) + set * 4);
                }
                *sum = add_bytes(begins && !starts(shape), *sum, bytes[v], digits + d * RECORD);
            }
        }
        if (u >= shape.rests) {
            continue;
        }
        const bool first = u == 0 || (shape.halves && begins);
        UNROLL
        for (int64_t v = 0; v < shape.vectors; v++) {
            s->rest[r][v] =
                add_bytes(first, s->rest[r][v], bytes[v], digits + shape.digits * RECORD);
        }
    }
}

// Sums of half h become 32 bits wide, and, where its scales end, go into acc.
__attribute__((always_inline)) static inline void
end_half(digit_shape shape, fold_to to, int64_t h, int64_t n, const uint8_t *cells, digit_sums *s)
{
    const int64_t set = shape.halves ? h : 0;
    UNROLL
    for (int64_t r = 0; r < shape.rows; r++) {
        const uint8_t *c = cells + r * shape.cell;
        UNROLL
        for (int64_t v = 0; v < shape.vectors; v++) {
            const int64_t at = n + v * LANES;
            const veci sum = sum_of_digits(shape.digits, s->sums[r][v]);
            const bool begins = shape.halves || h == 0 || !by_halves(shape);
            s->total[r][v] = begins ? sum : V(add_epi32)(s->total[r][v], sum);
            if (!shape.halves && h == 0) {
                continue;
            }
            if (shape.rests > 0) {
                const __m128i shift = _mm_loadu_si32(c + scale_at(shape) + sizeof(float));
                s->total[r][v] =
                    V(add_epi32)(V(sll_epi32)(s->total[r][v], shift), sum_of_rest(s->rest[r][v]));
            }
            if (!starts(shape)) {
                veci excess = dword_of(c + sum_at(shape) + set * 4);
                if (!shape.e2m1) {
                    excess = V(mullo_epi32)(excess, veci_load(&to.zero[set][at]));
                }
                s->total[r][v] = V(sub_epi32)(s->total[r][v], excess);
            }
            fold_one(s->total[r][v], (const float *)(const void *)(c + scale_at(shape)),
                     scales_of(shape, to, set, at), &to.acc[r][at]);
        }
    }
}

/// A record into the sums of rows, whose cells of x lie side by side. order: of the lines of it in
/// the cells; NULL: as they lie.
__attribute__((always_inline)) static inline void fold_digits(digit_shape shape, fold_to to,
                                                              const uint8_t *w, const void *cells,
                                                              const uint8_t *order)
{
    const int64_t lines = RECORD / 8 / HALVES;
    int64_t line[RECORD / 8];
    UNROLL
    for (int64_t u = 0; u < RECORD / 8; u++) {
        line[u] = order != NULL ? order[u] : u;
    }
    for (int64_t strip = to.first; strip < to.last; strip++) {
        const uint8_t *from = w + strip * STRIP * (shape.decoded ? RECORD : RECORD / 2);
        if (!shape.decoded) {
            moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        }
        for (int64_t v0 = 0; v0 < VECTORS; v0 += shape.vectors) {
            digit_sums s;
            UNROLL
            for (int64_t h = 0; h < HALVES; h++) {
                if (shape.halves && h >= to.sets) {
                    break;
                }
                UNROLL
                for (int64_t i = 0; i < lines; i++) {
                    const int64_t u = h * lines + i;
                    const bool begins = i == 0 && (h == 0 || by_halves(shape));
                    add_line(shape, begins, from, v0, line[u], u, cells, &s);
                }
                if (h > 0 || by_halves(shape)) {
                    end_half(shape, to, h, strip * STRIP + v0 * LANES, cells, &s);
                }
            }
        }
    }
}

#endif
