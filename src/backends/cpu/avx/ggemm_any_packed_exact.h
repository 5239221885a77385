// SPDX-License-Identifier: Apache-2.0
// Records of e2m1 whose chains cannot round, by integer products.
//
// Where the x of a record are multiples of a power of two q, and 12 times the sum of their
// magnitudes is below 2^24 q, every partial sum of a chain is a multiple of q / 2 below 2^24 of
// them: a float. No FMA rounds, and the integer sum times q / 2 is the chain's result, bit for bit
// (docs/numerics.md has the proof). bf16 of like size have that property; whether they do is found
// out once for all outputs. x are two digits and a rest, which only the small ones of a record
// have, if any: the lines of 8 k that hold them come first, so that the others are spared it.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_EXACT_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_EXACT_H

#include "backends/cpu/avx/ggemm_ints_packed_digits.h"
#include "core/safemath.h"

#define EXACT_ROWS  1   // for which integers are faster
#define EXACT_CELLS 512 // records times rows that are prepared at once
#define NOT_EXACT   255
#define EXACT_TRIES 8 // records of which one must be exact, else no other is looked at

/// x of records as integers, of up to EXACT_ROWS rows.
typedef struct exact_x {
    _Alignas(64) cell16_rest cells[EXACT_CELLS]; // [record][row]
    uint8_t order[EXACT_CELLS][RECORD / 8];      // of the lines of a record
    uint8_t rests[EXACT_CELLS];                  // lines that have a rest; NOT_EXACT
    int64_t rows;
    int64_t records; // that have been looked at
    bool found;      // one that is exact
} exact_x;

/// x of a row of a record: 2^exponent (2^shift v + rest), in lines of 8 k. No rest without a shift.
typedef struct exact_row {
    int exponent, shift;
    __m256i v[RECORD / 8];
    __m256i rest[RECORD / 8];
} exact_row;

static inline int32_t bits_of(float v)
{
    int32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline float power_of_two(int exponent)
{
    const int32_t bits = (exponent + 127) << 23;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline float sum_of_floats(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// The bits, and the largest, of eight integers that are not negative.
static inline void join(__m256i bits, __m256i most, uint32_t *all, int32_t *top)
{
    __m128i b = _mm_or_si128(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    b = _mm_or_si128(b, _mm_shuffle_epi32(b, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    b = _mm_or_si128(b, _mm_shuffle_epi32(b, 0xB1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    *all = (uint32_t)_mm_cvtsi128_si32(b);
    *top = _mm_cvtsi128_si32(m);
}

// The finest q that sums allow; x must be multiples of it. Sums are chains of e2m1 times 2^scale.
static inline bool exact_row_of(const float *x, int scale, exact_row *row)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 v[4];
    __m256 sum = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        sum = _mm256_add_ps(sum, _mm256_andnot_ps(sign, v[i]));
    }
    // A little more than 12, for what the sum has lost.
    const int top = (bits_of(sum_of_floats(sum) * 12.001f) >> 23 & 255) - 126;
    int exponent = top - 24 > -100 ? top - 24 : -100; // what is finer is no float's business here
    const __m256 inverse = _mm256_set1_ps(power_of_two(-exponent));
    const __m256 back = _mm256_set1_ps(power_of_two(exponent));
    __m256 differs = _mm256_setzero_ps(); // NaN and infinity do
    __m256i bits = _mm256_setzero_si256();
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        row->v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        const __m256 again = _mm256_mul_ps(_mm256_cvtepi32_ps(row->v[i]), back);
        differs = _mm256_or_ps(differs, _mm256_cmp_ps(again, v[i], _CMP_NEQ_UQ));
        const __m256i magnitude = _mm256_abs_epi32(row->v[i]);
        bits = _mm256_or_si256(bits, magnitude);
        most = _mm256_max_epi32(most, magnitude);
    }
    // Sums that may not be finite.
    if (_mm256_movemask_ps(differs) != 0 || top + scale > 128) {
        return false;
    }
    uint32_t all;
    int32_t largest;
    join(bits, most, &all, &largest);
    const int zeros = __builtin_ctz(all | 1u << 30);
    const int bits_more = 32 - 15 - __builtin_clz((unsigned)(largest >> zeros) | 1);
    row->exponent = exponent + zeros;
    row->shift = bits_more > 0 ? bits_more : 0;
    row->shift += largest >> zeros > DIGIT_TOP << row->shift;
    for (int i = 0; i < RECORD / 8; i++) {
        row->v[i] = _mm256_sra_epi32(row->v[i], _mm_cvtsi32_si128(zeros));
    }
    return true;
}

// What does not fit in two digits becomes the rest. The sum is that of x before it.
static inline void split_row(exact_row *row)
{
    const __m128i shift = _mm_cvtsi32_si128(row->shift);
    const __m256i half = _mm256_set1_epi32(1 << row->shift >> 1);
    for (int i = 0; i < RECORD / 8; i++) {
        const __m256i v = row->v[i];
        row->v[i] = _mm256_sra_epi32(_mm256_add_epi32(v, half), shift);
        row->rest[i] = _mm256_sub_epi32(v, _mm256_sll_epi32(row->v[i], shift));
    }
}

// Lines of which an x has a rest, a bit each.
static inline unsigned lines_with_rest(const exact_row *row)
{
    unsigned lines = 0;
    for (int i = 0; i < 4; i++) {
        lines |= _mm256_testz_si256(row->rest[i], row->rest[i]) == 0 ? 1u << i : 0;
    }
    return lines;
}

// 32 integers of 16 bits.
static inline void words_of(const __m256i v[4], __m256i words[2])
{
    for (int i = 0; i < 2; i++) {
        const __m256i packed = _mm256_packs_epi32(v[2 * i], v[2 * i + 1]);
        words[i] = _mm256_permute4x64_epi64(packed, 0xD8);
    }
}

static inline void fill_exact(const exact_row *row, bool halves, int scale, cell16_rest *c)
{
    __m256i words[2];
    words_of(row->v, words);
    fill_digits16(true, halves, words, c->digit, c->sum);
    c->scale = power_of_two(row->exponent + scale - 1); // halves are counted
}

// The same with a rest, and lines in order.
static inline void fill_with_rest(const exact_row *row, bool halves, int scale,
                                  const uint8_t *order, cell16_rest *c)
{
    const __m128i shift = _mm_cvtsi32_si128(row->shift);
    exact_row to = {.exponent = row->exponent};
    __m256i all[RECORD / 8];
    __m256i words[2];
    for (int i = 0; i < RECORD / 8; i++) {
        to.v[i] = row->v[order[i]];
        to.rest[i] = row->rest[order[i]];
        all[i] = _mm256_add_epi32(_mm256_sll_epi32(to.v[i], shift), to.rest[i]);
    }
    fill_exact(&to, halves, scale, c);
    words_of(to.rest, words);
    const __m256i bytes = _mm256_packs_epi16(words[0], words[1]);
    store_32(c->digit[2], in_order(_mm256_permute4x64_epi64(bytes, 0xD8)));
    const __m256i sum[2] = {_mm256_add_epi32(all[0], all[1]), _mm256_add_epi32(all[2], all[3])};
    store_half_sums(true, halves, sum, c->sum);
    c->shift = row->shift;
}

static inline void exact_begin(exact_x *x, int64_t rows)
{
    x->rows = rows;
    x->records = 0;
    x->found = false;
}

/// Whether there is room for the next record, and it is worth a look.
static inline bool exact_goes_on(const exact_x *x)
{
    return (x->records + 1) * x->rows <= EXACT_CELLS && (x->found || x->records < EXACT_TRIES);
}

/// The next record of the rows, x of the first, `apart` floats between rows.
static void exact_add(exact_x *to, const float *x, int64_t apart, bool halves, int scale)
{
    const int64_t record = to->records++;
    cell16_rest *cells = &to->cells[record * to->rows];
    exact_row rows[EXACT_ROWS];
    unsigned lines = 0;
    to->rests[record] = NOT_EXACT;
    for (int64_t r = 0; r < to->rows; r++) {
        if (!exact_row_of(x + r * apart, scale, &rows[r])) {
            return;
        }
        if (rows[r].shift > 0) {
            split_row(&rows[r]);
            lines |= lines_with_rest(&rows[r]);
        }
    }
    to->found = true;
    to->rests[record] = 0;
    for (int64_t r = 0; lines == 0 && r < to->rows; r++) {
        fill_exact(&rows[r], halves, scale, &cells[r]);
    }
    if (lines == 0) {
        return;
    }
    lines = halves ? 15 : lines; // a line stays in its half
    uint8_t *order = to->order[record];
    uint8_t with = 0;
    uint8_t without = (uint8_t)__builtin_popcount(lines);
    to->rests[record] = without;
    for (uint8_t line = 0; line < RECORD / 8; line++) {
        order[(lines >> line & 1) != 0 ? with++ : without++] = line;
    }
    for (int64_t r = 0; r < to->rows; r++) {
        if (rows[r].shift == 0) { // others have a rest
            split_row(&rows[r]);
        }
        fill_with_rest(&rows[r], halves, scale, order, &cells[r]);
    }
}

/// Whether the chains of record r cannot round.
static inline bool exact_at(const exact_x *x, int64_t r)
{
    return r < x->records && x->rests[r] != NOT_EXACT;
}

#endif
