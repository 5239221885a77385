// SPDX-License-Identifier: Apache-2.0
// ggemm of codes times codes: x of i8b32 or i16b32 with packed weights of integers, or of e2m1,
// counted in halves. Integer instructions give the bits of the portable rows. One source for AVX2
// and for AVX-512 with VNNI.
//
// Why: in the chain of a block of 32 k, every sum is a multiple of 1/2 below 2^24 (docs/numerics.md
// has the worst cases), so no step of it rounds, and any order of exact operations ends in the same
// float. After it come the portable row's own steps, acc = fma(sum * s_x, s_w, acc).
//
// A vector holds 8 or 16 outputs, a lane each, as packed.h lays them: half a strip or a strip.
//
//   Digits: x in signed bytes, one (int8) or two (int16: v = 256 high + low). Weights of 4 bits
//   become unsigned bytes, 2 w + 12 by a table (e2m1) or as they are (uint4). vpmaddubsw makes
//   pairs, of which four add up in 16 bits: 4 * 2 * 24 * 128 = 24576; vpmaddwd makes them 32 bits
//   and puts the digit in its place. VNNI's vpdpbusd does all that at once. Then 12, or the zero
//   point, times the sum of x is subtracted.
//
//   Bytes (VNNI): the same of int8 with weights of 8 bits, those of int8 plus 128.
//
//   Pairs: x in 16 bits, weights less their zero points in 16 bits, vpmaddwd or vpdpwssd. For
//   codes of int16 that have no two digits (32640 and more), and without VNNI for int16 and many
//   rows, and for weights of 8 bits.
//
// Class i32, int8 with int8 and no scales along k: bytes or pairs again, whose sums of 32 bits go
// on over all of k, in 64 bits from chunk to chunk where k is long, and become floats at the end.
//
// Per 8 outputs x 32 k, vector operations without loads: digits 20 for weights and 22 for each row
// of int8, 42 of int16; pairs 36 for weights of 4 bits, 36 for each row. VNNI, per 16 outputs: 20,
// 12, 22; pairs 36, 20; bytes 8 for weights of int8 (uint8: 0), 12. Up to FEW rows decode weights
// in registers, and so do all tiles of digits with VNNI; else, for more rows, a record (64 outputs
// x 32 k) is decoded to a first-level cache once.
//
// Limits: one row: memory; many rows: the multiplier ports (10 of the 22 operations, 8 of the 12).
#include <stddef.h>

#include "backends/cpu/avx/vector.h"
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/packed_walk.h"
#include "backends/cpu/product.h"
#include "backends/cpu/unroll.h"

#define PANEL     MOEI_CPU_PANEL
#define STRIP     MOEI_CPU_STRIP
#define RECORD    MOEI_CPU_RECORD
#define SIDES     (STRIP / LANES)         // vectors of a strip
#define VECTOR    ((int64_t)sizeof(veci)) // bytes
#define HALVES    2                       // of a record that have scales of their own
#define TILE      4                       // rows that share a load of weights
#define FEW       4                       // rows for which weights are decoded in registers
#define MR        32                      // rows that share a decoded record
#define SIDE      4                       // panels whose sums are kept at once
#define X_ROOM    (80 << 10)              // bytes of prepared x
#define ZERO_TOP  16 // zero points above it: a sum with int16 may round, see chain_as_written
#define DIGIT_TOP 32639
#define WHOLE_TOP (INT32_MAX / (128 * 128)) // products of int8 whose sum has 32 bits

// ---- x -----------------------------------------------------------------------------------------

/// 32 k of a row. The sums of x are multiplied by 12 for e2m1; the scale is halved for it.
typedef struct cell8 {
    int8_t digit[1][RECORD];
    int32_t sum[HALVES]; // of either half, if they have scales of their own; else sum[0] of both
    float scale;
    int32_t unused;
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

typedef enum way { DIGITS8, DIGITS16, BYTES, PAIRS } way;

typedef struct job job;

struct job {
    _Alignas(64) uint8_t x[X_ROOM];                           // cells [record][row] of the chunk
    _Alignas(64) uint8_t w[PANEL * RECORD * sizeof(int16_t)]; // [vector][step][lane]
    _Alignas(64) float acc[SIDE][MR][PANEL];
    _Alignas(64) int64_t total[SIDE][MR][PANEL]; // of chunks: class i32 where k is above WHOLE_TOP
    _Alignas(64) float scale[HALVES][PANEL];     // of the group
    _Alignas(64) int32_t zero[HALVES][PANEL];    // zero points of the group
    moei_cpu_columns columns;
    moei_cpu_packed p;
    moek_ggemm_args args; // moei_cpu_packed_args
    const uint8_t *expert;
    int32_t e;
    way way;
    bool e2m1;
    bool int16;          // codes of x
    bool halves;         // of a record have scales of their own
    bool whole;          // class i32: `acc` holds integers
    bool splits;         // the sums of class i32 over chunks
    bool rounds;         // a zero point of the group is above ZERO_TOP
    int64_t cell;        // bytes
    int64_t first, last; // strips of the panel that are wanted
    int64_t sets;        // folds of this record: 1, or 2 with halves
};

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
static inline void store_sums(const job *j, __m256i v, int32_t sum[HALVES])
{
    const int32_t factor = j->e2m1 ? 12 : 1;
    const int32_t low = sum_of(_mm256_castsi256_si128(v)) * factor;
    const int32_t high = sum_of(_mm256_extracti128_si256(v, 1)) * factor;
    sum[0] = j->halves ? low : low + high;
    sum[1] = high;
}

// v: of either half of a record. hadd leaves its lanes in one half of each 128 bits.
static inline void store_half_sums(const job *j, const __m256i v[2], int32_t sum[HALVES])
{
    const __m256i both = _mm256_hadd_epi32(v[0], v[1]);
    store_sums(j, _mm256_permute4x64_epi64(both, 0xD8), sum);
}

static inline __m256i load_x(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

static inline void store_x(void *to, __m256i v)
{
    _mm256_storeu_si256((__m256i *)to, v);
}

static inline void fill_digits8(const job *j, const uint8_t *codes, cell8 *c)
{
    const __m256i v = load_x(codes);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    store_x(c->digit[0], j->way == BYTES ? v : in_order(v));
    store_sums(j, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), c->sum);
}

static inline void fill_digits16(const job *j, const uint8_t *codes, cell16 *c)
{
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i v[2] = {load_x(codes), load_x(codes + 32)};
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
    store_x(c->digit[0], in_order(low_bytes));
    store_x(c->digit[1], in_order(high_bytes));
    store_half_sums(j, sum, c->sum);
}

// Weights of 8 bits come as k, k + 2 and k + 1, k + 3, those of 4 bits as k, k + 1.
static inline void fill_pairs(const job *j, const uint8_t *codes, cell16 *c)
{
    const __m256i even_first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m256i sum[2];
    for (int i = 0; i < 2; i++) {
        const __m128i narrow = _mm_loadu_si128((const __m128i *)(const void *)(codes + 16 * i));
        const __m256i v = j->int16 ? load_x(codes + 32 * i) : _mm256_cvtepi8_epi16(narrow);
        store_x(c->code + 16 * i, j->p.unit_k == 4 ? _mm256_shuffle_epi8(v, even_first) : v);
        sum[i] = _mm256_madd_epi16(v, _mm256_set1_epi16(1));
    }
    store_half_sums(j, sum, c->sum);
}

/// Scales of a row, group after group of 32 k.
typedef struct x_scales {
    const uint8_t *at;
    int64_t group, stride;
    bool packed;
} x_scales;

static inline x_scales scales_of(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t k)
{
    int64_t group;
    const int64_t at = moei_x_scale_at(a, e, i, k, &group);
    const uint8_t *base = a->x.scales;
    return (x_scales){base + (a->x.packed ? 4 * at : at), group,
                      a->x.scale_k_stride * (a->x.packed ? 4 : 1), a->x.packed};
}

static inline float next_scale(x_scales *s)
{
    const uint8_t code = s->packed ? s->at[s->group % 4] : *s->at;
    s->group++;
    s->at += !s->packed || s->group % 4 == 0 ? s->stride : 0;
    return moei_e8m0_to_f32(code);
}

// Records r0 .. r1 - 1 of rows i0 .. i1 - 1.
static void prepare(job *j, int64_t i0, int64_t i1, int64_t r0, int64_t r1)
{
    const moek_ggemm_args *a = &j->args;
    const int64_t bytes = j->int16 ? 2 * RECORD : RECORD;
    const int64_t row_bytes = a->w.k * bytes / RECORD;
    const float part = j->e2m1 ? 0.5f : 1.0f;
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, j->e, i);
        x_scales scales = {.at = NULL};
        if (!j->whole) {
            scales = scales_of(a, j->e, i, r0 * RECORD);
        }
        uint8_t *to = j->x + (i - i0) * j->cell;
        for (int64_t r = r0; r < r1; r++, to += (i1 - i0) * j->cell) {
            uint8_t tail[2 * RECORD] = {0};
            const uint8_t *codes = row + r * bytes;
            if ((r + 1) * bytes > row_bytes) {
                memcpy(tail, codes, (size_t)(row_bytes - r * bytes));
                codes = tail;
            }
            const float scale = j->whole ? 1.0f : next_scale(&scales) * part;
            if (j->way == DIGITS8 || j->way == BYTES) {
                cell8 *c = (cell8 *)(void *)to;
                fill_digits8(j, codes, c);
                c->scale = scale;
                continue;
            }
            cell16 *c = (cell16 *)(void *)to;
            if (j->way == DIGITS16) {
                fill_digits16(j, codes, c);
            } else {
                fill_pairs(j, codes, c);
            }
            c->scale = scale;
        }
    }
}

// True if every code of the rows has two digits.
static bool have_digits(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1)
{
    const __m256i top = _mm256_set1_epi16(DIGIT_TOP);
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, e, i);
        __m256i above = _mm256_setzero_si256();
        int64_t k = 0;
        for (; k + 16 <= a->w.k; k += 16) {
            above = _mm256_or_si256(above, _mm256_cmpgt_epi16(load_x(row + 2 * k), top));
        }
        bool found = _mm256_testz_si256(above, above) == 0;
        for (; k < a->w.k; k++) {
            int16_t code;
            memcpy(&code, row + 2 * k, sizeof code);
            found = found || code > DIGIT_TOP;
        }
        if (found) {
            return false;
        }
    }
    return true;
}

// ---- folds -------------------------------------------------------------------------------------

static inline veci load(const void *from)
{
#if LANES == 16
    return _mm512_loadu_si512(from);
#else
    return load_x(from);
#endif
}

static inline void store(void *to, veci v)
{
#if LANES == 16
    _mm512_storeu_si512(to, v);
#else
    store_x(to, v);
#endif
}

// acc = fma(sum * s_x, s_w, acc) of a vector of outputs.
static inline void fold_one(veci sum, const float *x_scale, const float *scale, float *acc)
{
    const vecf scaled = V(mul_ps)(V(cvtepi32_ps)(sum), V(set1_ps)(*x_scale));
    V(store_ps)(acc, V(fmadd_ps)(scaled, V(load_ps)(scale), V(load_ps)(acc)));
}

// The same where sums go on as integers.
static inline void add_one(veci sum, float *acc)
{
    store(acc, V(add_epi32)(load(acc), sum));
}

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

// 4 k of each output to words: k and k + 2, k + 1 and k + 3.
static inline void words_of_bytes(bool is_signed, veci codes, veci out[2])
{
    const veci low = V(slli_epi16)(codes, 8);
    out[0] = is_signed ? V(srai_epi16)(low, 8) : V(srli_epi16)(low, 8);
    out[1] = is_signed ? V(srai_epi16)(codes, 8) : V(srli_epi16)(codes, 8);
}

// 8 k of each output to words, pair after pair.
static inline void words_of_nibbles(bool e2m1, veci codes, veci out[4])
{
    const veci table =
        veci_all(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const veci nibble = V(set1_epi8)(15);
    veci low = veci_and(codes, nibble);                    // k, k + 4, k + 1, k + 5
    veci high = veci_and(V(srli_epi16)(codes, 4), nibble); // the same from k + 2
    if (e2m1) {
        low = V(shuffle_epi8)(table, low);
        high = V(shuffle_epi8)(table, high);
    }
    veci words[2];
    words_of_bytes(true, low, words);
    out[0] = words[0];
    out[2] = words[1];
    words_of_bytes(true, high, words);
    out[1] = words[0];
    out[3] = words[1];
}

#if LANES == 16
// Sums of bytes are 32 bits wide at once: both digits of x add up apart, over all k that share
// scales.
#define WIDE 1

static inline veci add_bytes(bool first, veci sum, const veci bytes[2], veci low, veci high)
{
    sum = first ? _mm512_setzero_si512() : sum;
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, bytes[0], low), bytes[1], high);
}

static inline veci sum_of_digits(int64_t digits, const veci sums[2])
{
    return digits == 2 ? _mm512_add_epi32(sums[0], _mm512_slli_epi32(sums[1], 8)) : sums[0];
}

static inline veci add_words(veci sum, veci words, veci x)
{
    return _mm512_dpwssd_epi32(sum, words, x);
}
#else
#define WIDE 0

// Keeps a sum where it is in the order of the source. Compilers may add integers in any order, and
// gcc then holds more products than there are registers.
static inline veci pinned(veci sum)
{
    __asm__("" : "+x"(sum));
    return sum;
}

// Sums of pairs of bytes, 16 bits wide.
static inline veci add_bytes(bool first, veci sum, const veci bytes[2], veci low, veci high)
{
    const veci a = _mm256_maddubs_epi16(bytes[0], low);
    const veci b = _mm256_maddubs_epi16(bytes[1], high);
    const veci ab = _mm256_add_epi16(a, b);
    return pinned(first ? ab : _mm256_add_epi16(sum, ab));
}

static inline veci sum_of_digits(int64_t digits, const veci sums[2])
{
    const veci low = _mm256_madd_epi16(sums[0], _mm256_set1_epi16(1));
    return digits == 2 ? _mm256_add_epi32(low, _mm256_madd_epi16(sums[1], _mm256_set1_epi16(256)))
                       : low;
}

static inline veci add_words(veci sum, veci words, veci x)
{
    return pinned(_mm256_add_epi32(sum, _mm256_madd_epi16(words, x)));
}
#endif

// Numbers that are constant wherever this is called: rows, vectors (side by side), digits of x,
// and whether weights are decoded already.
__attribute__((always_inline)) static inline void
fold_digits(const job *j, int64_t rows, int64_t vectors, int64_t digits, bool e2m1, bool halves,
            bool decoded, const uint8_t *w, const void *x, float (*acc)[PANEL])
{
    const int64_t cell = digits == 1 ? (int64_t)sizeof(cell8) : (int64_t)sizeof(cell16);
    const int64_t sum_at =
        digits == 1 ? (int64_t)offsetof(cell8, sum) : (int64_t)offsetof(cell16, sum);
    const int64_t scale_at =
        digits == 1 ? (int64_t)offsetof(cell8, scale) : (int64_t)offsetof(cell16, scale);
    const uint8_t *cells = x;
    const int64_t lines = RECORD / 8;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = w + strip * STRIP * (decoded ? RECORD : RECORD / 2);
        if (!decoded) {
            moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        }
        for (int64_t v0 = 0; v0 < SIDES; v0 += vectors) {
            const int64_t n = strip * STRIP + v0 * LANES;
            veci total[TILE][SIDES];
            veci sums[TILE][SIDES][2]; // of digits
            UNROLL
            for (int64_t h = 0; h < HALVES; h++) {
                if (halves && h >= j->sets) {
                    break;
                }
                UNROLL
                for (int64_t u = 0; u < lines / 2; u++) {
                    const int64_t line = h * lines / 2 + u;
                    const bool first = u == 0 && (halves || h == 0 || !WIDE);
                    veci bytes[SIDES][2];
                    UNROLL
                    for (int64_t v = 0; v < vectors; v++) {
                        if (decoded) {
                            const uint8_t *at = from + ((v0 + v) * lines + line) * 2 * VECTOR;
                            bytes[v][0] = load(at);
                            bytes[v][1] = load(at + VECTOR);
                        } else {
                            decode_bytes(e2m1, load(from + line * 64 + (v0 + v) * VECTOR),
                                         bytes[v]);
                        }
                    }
                    UNROLL
                    for (int64_t r = 0; r < rows; r++) {
                        UNROLL
                        for (int64_t d = 0; d < digits; d++) {
                            const uint8_t *digit = cells + r * cell + d * RECORD + line * 8;
                            const veci low = dword_of(digit);
                            const veci high = dword_of(digit + 4);
                            UNROLL
                            for (int64_t v = 0; v < vectors; v++) {
                                sums[r][v][d] =
                                    add_bytes(first, sums[r][v][d], bytes[v], low, high);
                            }
                        }
                    }
                }
                if (!halves && h == 0 && WIDE) {
                    continue;
                }
                UNROLL
                for (int64_t r = 0; r < rows; r++) {
                    UNROLL
                    for (int64_t v = 0; v < vectors; v++) {
                        const veci sum = sum_of_digits(digits, sums[r][v]);
                        total[r][v] =
                            halves || h == 0 || WIDE ? sum : V(add_epi32)(total[r][v], sum);
                        if (!halves && h == 0) {
                            continue;
                        }
                        const int64_t set = halves ? h : 0;
                        const uint8_t *c = cells + r * cell;
                        const int64_t at = n + v * LANES;
                        veci excess = dword_of(c + sum_at + set * 4);
                        if (!e2m1) {
                            excess = V(mullo_epi32)(excess, load(&j->zero[set][at]));
                        }
                        fold_one(V(sub_epi32)(total[r][v], excess),
                                 (const float *)(const void *)(c + scale_at), &j->scale[set][at],
                                 &acc[r][at]);
                    }
                }
            }
        }
    }
}

#if LANES == 16
// The same of weights of 8 bits, as they lie but for `flip`, which makes int8 unsigned.
__attribute__((always_inline)) static inline void fold_bytes(const job *j, int64_t rows,
                                                             bool is_signed, bool halves,
                                                             bool whole, const uint8_t *w,
                                                             const void *x, float (*acc)[PANEL])
{
    const cell8 *cells = x;
    const veci flip = _mm512_set1_epi8(is_signed ? -128 : 0);
    const int64_t lines = RECORD / 4;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = w + strip * STRIP * RECORD;
        const int64_t n = strip * STRIP;
        moei_cpu_ask_ahead(from, STRIP * RECORD);
        for (int64_t h = 0; h < (halves ? j->sets : 1); h++) {
            const int64_t count = halves ? lines / HALVES : lines;
            veci sum[TILE];
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                sum[r] = _mm512_setzero_si512();
            }
            UNROLL
            for (int64_t u = 0; u < count; u++) {
                const int64_t line = h * count + u;
                const veci bytes = _mm512_xor_si512(load(from + line * VECTOR), flip);
                UNROLL
                for (int64_t r = 0; r < rows; r++) {
                    sum[r] =
                        _mm512_dpbusd_epi32(sum[r], bytes, dword_of(&cells[r].digit[0][4 * line]));
                }
            }
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                const veci excess =
                    _mm512_mullo_epi32(_mm512_set1_epi32(cells[r].sum[h]), load(&j->zero[h][n]));
                if (whole) {
                    add_one(_mm512_sub_epi32(sum[r], excess), &acc[r][n]);
                    continue;
                }
                fold_one(_mm512_sub_epi32(sum[r], excess), &cells[r].scale, &j->scale[h][n],
                         &acc[r][n]);
            }
        }
    }
}
#else
// The same of weights of 8 bits, as they lie, and x in pairs.
__attribute__((always_inline)) static inline void fold_bytes(const job *j, int64_t rows,
                                                             bool is_signed, bool halves,
                                                             bool whole, const uint8_t *w,
                                                             const void *x, float (*acc)[PANEL])
{
    const cell16 *cells = x;
    const int64_t lines = RECORD / 4;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = w + strip * STRIP * RECORD;
        moei_cpu_ask_ahead(from, STRIP * RECORD);
        for (int64_t h = 0; h < (halves ? j->sets : 1); h++) {
            const int64_t count = halves ? lines / HALVES : lines;
            veci sum[TILE][SIDES];
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                sum[r][0] = sum[r][1] = _mm256_setzero_si256();
            }
            for (int64_t line = h * count; line < (h + 1) * count; line++) {
                UNROLL
                for (int64_t v = 0; v < 2; v++) {
                    veci words[2];
                    words_of_bytes(is_signed, load(from + line * 64 + v * 32), words);
                    UNROLL
                    for (int64_t r = 0; r < rows; r++) {
                        const veci even = dword_of(&cells[r].code[4 * line]);
                        const veci odd = dword_of(&cells[r].code[4 * line + 2]);
                        const veci both = _mm256_add_epi32(_mm256_madd_epi16(words[0], even),
                                                           _mm256_madd_epi16(words[1], odd));
                        sum[r][v] = pinned(_mm256_add_epi32(sum[r][v], both));
                    }
                }
            }
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                UNROLL
                for (int64_t v = 0; v < 2; v++) {
                    const int64_t n = strip * STRIP + v * LANES;
                    if (whole) {
                        add_one(sum[r][v], &acc[r][n]);
                        continue;
                    }
                    const veci excess = _mm256_mullo_epi32(_mm256_set1_epi32(cells[r].sum[h]),
                                                           load(&j->zero[h][n]));
                    fold_one(is_signed ? sum[r][v] : _mm256_sub_epi32(sum[r][v], excess),
                             &cells[r].scale, &j->scale[h][n], &acc[r][n]);
                }
            }
        }
    }
}
#endif

// The same of weights in 16 bits, decoded.
__attribute__((always_inline)) static inline void fold_pairs(const job *j, int64_t rows,
                                                             bool halves, bool whole,
                                                             const uint8_t *w, const void *x,
                                                             float (*acc)[PANEL])
{
    const cell16 *cells = x;
    const int64_t steps = RECORD / 2;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = w + strip * STRIP * RECORD * (int64_t)sizeof(int16_t);
        veci sum[TILE][SIDES];
        for (int64_t h = 0; h < (halves ? j->sets : 1); h++) {
            const int64_t count = halves ? steps / HALVES : steps;
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                UNROLL
                for (int64_t v = 0; v < SIDES; v++) {
                    sum[r][v] = V(set1_epi32)(0);
                }
            }
            for (int64_t s = h * count; s < (h + 1) * count; s++) {
                veci words[SIDES];
                UNROLL
                for (int64_t v = 0; v < SIDES; v++) {
                    words[v] = load(from + (v * steps + s) * VECTOR);
                }
                UNROLL
                for (int64_t r = 0; r < rows; r++) {
                    const veci xs = dword_of(&cells[r].code[2 * s]);
                    UNROLL
                    for (int64_t v = 0; v < SIDES; v++) {
                        sum[r][v] = add_words(sum[r][v], words[v], xs);
                    }
                }
            }
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                UNROLL
                for (int64_t v = 0; v < SIDES; v++) {
                    const int64_t n = strip * STRIP + v * LANES;
                    if (whole) {
                        add_one(sum[r][v], &acc[r][n]);
                        continue;
                    }
                    fold_one(sum[r][v], &cells[r].scale, &j->scale[h][n], &acc[r][n]);
                }
            }
        }
    }
}

// ---- weights -----------------------------------------------------------------------------------

// To unsigned bytes [vector][line][low, high nibbles][lane].
static void decode_digits(job *j, const uint8_t *record)
{
    const int64_t lines = RECORD / 8;
    for (int64_t v = SIDES * j->first; v < SIDES * j->last; v++) {
        const uint8_t *from = record + v / SIDES * (STRIP * RECORD / 2) + v % SIDES * VECTOR;
        uint8_t *to = j->w + v * LANES * RECORD;
        if (v % SIDES == 0) {
            moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        }
        for (int64_t line = 0; line < lines; line++) {
            veci bytes[2];
            decode_bytes(j->e2m1, load(from + line * 64), bytes);
            store(to + line * 2 * VECTOR, bytes[0]);
            store(to + line * 2 * VECTOR + VECTOR, bytes[1]);
        }
    }
}

// To words [vector][pair of k][lane], less their zero points; e2m1 and int8 have none.
__attribute__((always_inline)) static inline void decode_words(job *j, moe_dtype elem,
                                                               const uint8_t *record)
{
    const bool bytes = elem == MOE_I8 || elem == MOE_U8;
    const bool zeros = elem == MOE_U8 || elem == MOE_UINT4;
    const int64_t lines = bytes ? RECORD / 4 : RECORD / 8;
    const int64_t line_bytes = 2 * LANES * (bytes ? 4 : 8); // decoded
    for (int64_t v = SIDES * j->first; v < SIDES * j->last; v++) {
        const uint8_t *from = record + v / SIDES * lines * 64 + v % SIDES * VECTOR;
        uint8_t *to = j->w + v * lines * line_bytes;
        veci zero[HALVES];
        for (int64_t s = 0; zeros && s < HALVES; s++) {
            const veci wide = load(&j->zero[s][v * LANES]);
            zero[s] = veci_or(wide, shift_left(wide, 16));
        }
        if (v % SIDES == 0) {
            moei_cpu_ask_ahead(from, lines * 64);
        }
        for (int64_t line = 0; line < lines; line++) {
            const int64_t set = j->halves && line >= lines / HALVES ? 1 : 0;
            veci words[4];
            if (bytes) {
                words_of_bytes(elem == MOE_I8, load(from + line * 64), words);
            } else {
                words_of_nibbles(elem == MOE_E2M1, load(from + line * 64), words);
            }
            for (int64_t i = 0; i < (bytes ? 2 : 4); i++) {
                store(to + line * line_bytes + i * VECTOR,
                      zeros ? V(sub_epi16)(words[i], zero[set]) : words[i]);
            }
        }
    }
}

static void decode_pairs(job *j, const uint8_t *record)
{
    switch (j->args.w.format->elem) {
    case MOE_I8:
        decode_words(j, MOE_I8, record);
        return;
    case MOE_U8:
        decode_words(j, MOE_U8, record);
        return;
    case MOE_E2M1:
        decode_words(j, MOE_E2M1, record);
        return;
    default:
        decode_words(j, MOE_UINT4, record);
        return;
    }
}

// Zero points of a group, and whether one of them lets sums round.
static void load_zeros(job *j, const uint8_t *zeros, int64_t width)
{
    uint8_t top = 0;
    for (int64_t s = 0; s < j->p.sets; s++) {
        for (int64_t n = 0; n < width; n++) {
            const uint8_t zero = zeros[s * width + n];
            j->zero[s][n] = zero;
            top = zero > top ? zero : top;
        }
    }
    j->rounds = j->int16 && top > ZERO_TOP;
}

static void load_head(job *j, const uint8_t *head, int64_t width)
{
    const int64_t scales = width * j->p.scale;
    moei_cpu_ask_ahead(head, width * j->p.head);
    for (int64_t s = 0; s < j->p.sets; s++) {
        if (width == PANEL) { // a constant
            load_scale_line(j->args.w.scale_dtype, head + s * scales, PANEL, j->scale[s]);
        } else {
            load_scale_line(j->args.w.scale_dtype, head + s * scales, width, j->scale[s]);
        }
    }
    if (j->p.head > j->p.sets * j->p.scale) {
        load_zeros(j, head + j->p.sets * scales, width);
    }
}

static uint8_t code_of(const uint8_t *record, int64_t n, int64_t k)
{
    const uint8_t *line = record + n / STRIP * (STRIP * RECORD / 2) + k / 8 * 64 + n % STRIP * 4;
    const int64_t nibble = k % 8 / 2 + 4 * (k % 2);
    return nibble % 2 == 0 ? line[nibble / 2] & 15 : line[nibble / 2] >> 4;
}

// A record whose sums may round, so that their order counts: the chain of the class.
static void chain_as_written(job *j, const uint8_t *record, int64_t r, int64_t i0, int64_t i1,
                             float (*acc)[PANEL])
{
    const moek_ggemm_args *a = &j->args;
    const int64_t length = j->halves ? RECORD / HALVES : RECORD;
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, j->e, i);
        for (int64_t h = 0; h < j->sets; h++) {
            const int64_t k0 = r * RECORD + h * length;
            const int64_t k1 = moei_i64_min(k0 + length, a->w.k);
            const float x_scale = moei_cpu_operand_scale(a, j->e, i, k0);
            for (int64_t n = j->first * STRIP; n < j->last * STRIP; n++) {
                float sum = 0.0f;
                for (int64_t k = k0; k < k1; k++) {
                    const float w = (float)(code_of(record, n, k - r * RECORD) - j->zero[h][n]);
                    sum = moei_fmaf(moei_load_one(a->x.dtype, row, k), w, sum);
                }
                acc[i - i0][n] = moei_fmaf(sum * x_scale, j->scale[h][n], acc[i - i0][n]);
            }
        }
    }
}

// ---- loops over records ------------------------------------------------------------------------

/// Records r .. end - 1 of a panel, whose cells of x begin at `x`.
typedef struct span {
    int64_t r, end;
    const uint8_t *x;
    int64_t i0, i1;
    moei_cpu_walk walk;
    const uint8_t *head;   // of the group
    const uint8_t *loaded; // whose scales are there
} span;

static span span_of(const job *j, int64_t panel, int64_t i0, int64_t i1, int64_t r0, int64_t r1)
{
    span s = {.r = r0, .end = r1, .x = j->x, .i0 = i0, .i1 = i1};
    s.head = moei_cpu_walk_to(&s.walk, &j->p, j->expert, panel, r0);
    return s;
}

// The next record; its scales and zero points are loaded.
static inline const uint8_t *next_record(job *j, span *s, bool halves)
{
    const uint8_t *record = moei_cpu_walk_on(&s->walk, &s->head);
    if (s->head != s->loaded) {
        load_head(j, s->head, s->walk.width);
        s->loaded = s->head;
    }
    j->sets = halves && j->args.w.k - s->r * RECORD > RECORD / HALVES ? HALVES : 1;
    return record;
}

/// Folds records into the sums of rows i0 .. i1 - 1.
typedef void loop_fn(job *j, span s, float (*acc)[PANEL]);

// Few rows: weights are decoded in registers. As many vectors side by side as registers hold sums
// for: loads of x are shared by them.
__attribute__((always_inline)) static inline void
few_rows(job *j, span s, int64_t rows, int64_t digits, bool e2m1, bool halves, float (*acc)[PANEL])
{
    const int64_t cell = digits == 1 ? (int64_t)sizeof(cell8) : (int64_t)sizeof(cell16);
    for (; s.r < s.end; s.r++, s.x += rows * cell) {
        const uint8_t *w = next_record(j, &s, halves);
        if (digits == 2 && !e2m1 && j->rounds) {
            chain_as_written(j, w, s.r, s.i0, s.i1, acc);
        } else {
            fold_digits(j, rows, rows * digits <= 2 ? SIDES : 1, digits, e2m1, halves, false, w,
                        s.x, acc);
        }
    }
}

__attribute__((always_inline)) static inline void few_rows_of_bytes(job *j, span s, int64_t rows,
                                                                    bool is_signed, bool halves,
                                                                    bool whole, float (*acc)[PANEL])
{
    for (; s.r < s.end; s.r++, s.x += rows * j->cell) {
        const uint8_t *w = next_record(j, &s, halves);
        fold_bytes(j, rows, is_signed, halves, whole, w, s.x, acc);
    }
}

#define FEW_FN(rows, digits, e2m1, halves)                                                         \
    static void few_##rows##_##digits##_##e2m1##_##halves(job *j, span s, float(*acc)[PANEL])      \
    {                                                                                              \
        few_rows(j, s, rows, digits, e2m1, halves, acc);                                           \
    }
#define FEW_ROWS(digits, e2m1, halves)                                                             \
    FEW_FN(1, digits, e2m1, halves)                                                                \
    FEW_FN(2, digits, e2m1, halves)                                                                \
    FEW_FN(3, digits, e2m1, halves)                                                                \
    FEW_FN(4, digits, e2m1, halves)
#define FEW_NAMES(digits, e2m1, halves)                                                            \
    {                                                                                              \
        few_1_##digits##_##e2m1##_##halves, few_2_##digits##_##e2m1##_##halves,                    \
            few_3_##digits##_##e2m1##_##halves, few_4_##digits##_##e2m1##_##halves                 \
    }
FEW_ROWS(1, 0, 0)
FEW_ROWS(1, 0, 1)
FEW_ROWS(1, 1, 0)
FEW_ROWS(1, 1, 1)
FEW_ROWS(2, 0, 0)
FEW_ROWS(2, 0, 1)
FEW_ROWS(2, 1, 0)
FEW_ROWS(2, 1, 1)
static loop_fn *const few_digits[2][2][2][FEW] = {
    {{FEW_NAMES(1, 0, 0), FEW_NAMES(1, 0, 1)}, {FEW_NAMES(1, 1, 0), FEW_NAMES(1, 1, 1)}},
    {{FEW_NAMES(2, 0, 0), FEW_NAMES(2, 0, 1)}, {FEW_NAMES(2, 1, 0), FEW_NAMES(2, 1, 1)}}};

#define BYTES_FN(rows, is_signed, halves, whole)                                                   \
    static void bytes_##rows##_##is_signed##_##halves##_##whole(job *j, span s,                    \
                                                                float(*acc)[PANEL])                \
    {                                                                                              \
        few_rows_of_bytes(j, s, rows, is_signed, halves, whole, acc);                              \
    }
#define BYTES_ROWS(is_signed, halves, whole)                                                       \
    BYTES_FN(1, is_signed, halves, whole)                                                          \
    BYTES_FN(2, is_signed, halves, whole)                                                          \
    BYTES_FN(3, is_signed, halves, whole)                                                          \
    BYTES_FN(4, is_signed, halves, whole)
#define BYTES_NAMES(is_signed, halves, whole)                                                      \
    {                                                                                              \
        bytes_1_##is_signed##_##halves##_##whole, bytes_2_##is_signed##_##halves##_##whole,        \
            bytes_3_##is_signed##_##halves##_##whole, bytes_4_##is_signed##_##halves##_##whole     \
    }
BYTES_ROWS(0, 0, 0)
BYTES_ROWS(0, 1, 0)
BYTES_ROWS(1, 0, 0)
BYTES_ROWS(1, 1, 0)
BYTES_ROWS(1, 0, 1)
static loop_fn *const few_bytes[2][2][FEW] = {{BYTES_NAMES(0, 0, 0), BYTES_NAMES(0, 1, 0)},
                                              {BYTES_NAMES(1, 0, 0), BYTES_NAMES(1, 1, 0)}};
static loop_fn *const few_bytes_whole[FEW] = BYTES_NAMES(1, 0, 1);

/// Folds a record, decoded or BYTES, into the sums of so many rows.
typedef void fold_fn(const job *j, const uint8_t *w, const void *x, float (*acc)[PANEL]);

// Decoding is cheaper than a way through memory where a vector holds a strip.
#define TILE_FN(rows, digits, e2m1, halves)                                                        \
    static void tile_##rows##_##digits##_##e2m1##_##halves(const job *j, const uint8_t *w,         \
                                                           const void *x, float(*acc)[PANEL])      \
    {                                                                                              \
        fold_digits(j, rows, SIDES, digits, e2m1, halves, !WIDE, w, x, acc);                       \
    }
#define TILE_ROWS(digits, e2m1, halves)                                                            \
    TILE_FN(1, digits, e2m1, halves)                                                               \
    TILE_FN(2, digits, e2m1, halves)                                                               \
    TILE_FN(3, digits, e2m1, halves)                                                               \
    TILE_FN(4, digits, e2m1, halves)
#define TILE_NAMES(digits, e2m1, halves)                                                           \
    {                                                                                              \
        tile_1_##digits##_##e2m1##_##halves, tile_2_##digits##_##e2m1##_##halves,                  \
            tile_3_##digits##_##e2m1##_##halves, tile_4_##digits##_##e2m1##_##halves               \
    }
TILE_ROWS(1, 0, 0)
TILE_ROWS(1, 0, 1)
TILE_ROWS(1, 1, 0)
TILE_ROWS(1, 1, 1)
static fold_fn *const digits8_tiles[2][2][TILE] = {{TILE_NAMES(1, 0, 0), TILE_NAMES(1, 0, 1)},
                                                   {TILE_NAMES(1, 1, 0), TILE_NAMES(1, 1, 1)}};

#define PAIRS_FN(rows, halves, whole)                                                              \
    static void pairs_##rows##_##halves##_##whole(const job *j, const uint8_t *w, const void *x,   \
                                                  float(*acc)[PANEL])                              \
    {                                                                                              \
        fold_pairs(j, rows, halves, whole, w, x, acc);                                             \
    }
#define PAIRS_ROWS(halves, whole)                                                                  \
    PAIRS_FN(1, halves, whole)                                                                     \
    PAIRS_FN(2, halves, whole)                                                                     \
    PAIRS_FN(3, halves, whole)                                                                     \
    PAIRS_FN(4, halves, whole)
#define PAIRS_NAMES(halves, whole)                                                                 \
    {                                                                                              \
        pairs_1_##halves##_##whole, pairs_2_##halves##_##whole, pairs_3_##halves##_##whole,        \
            pairs_4_##halves##_##whole                                                             \
    }
PAIRS_ROWS(0, 0)
PAIRS_ROWS(1, 0)
static fold_fn *const pairs_tiles[2][TILE] = {PAIRS_NAMES(0, 0), PAIRS_NAMES(1, 0)};

#if LANES == 16
#define BYTES_TILE_FN(rows, is_signed, halves, whole)                                              \
    static void bytes_tile_##rows##_##is_signed##_##halves##_##whole(                              \
        const job *j, const uint8_t *w, const void *x, float(*acc)[PANEL])                         \
    {                                                                                              \
        fold_bytes(j, rows, is_signed, halves, whole, w, x, acc);                                  \
    }
#define BYTES_TILES(is_signed, halves, whole)                                                      \
    BYTES_TILE_FN(1, is_signed, halves, whole)                                                     \
    BYTES_TILE_FN(2, is_signed, halves, whole)                                                     \
    BYTES_TILE_FN(3, is_signed, halves, whole)                                                     \
    BYTES_TILE_FN(4, is_signed, halves, whole)
#define BYTES_TILE_NAMES(is_signed, halves, whole)                                                 \
    {                                                                                              \
        bytes_tile_1_##is_signed##_##halves##_##whole,                                             \
            bytes_tile_2_##is_signed##_##halves##_##whole,                                         \
            bytes_tile_3_##is_signed##_##halves##_##whole,                                         \
            bytes_tile_4_##is_signed##_##halves##_##whole                                          \
    }
TILE_ROWS(2, 0, 0)
TILE_ROWS(2, 0, 1)
TILE_ROWS(2, 1, 0)
TILE_ROWS(2, 1, 1)
static fold_fn *const digits16_tiles[2][2][TILE] = {{TILE_NAMES(2, 0, 0), TILE_NAMES(2, 0, 1)},
                                                    {TILE_NAMES(2, 1, 0), TILE_NAMES(2, 1, 1)}};

BYTES_TILES(0, 0, 0)
BYTES_TILES(0, 1, 0)
BYTES_TILES(1, 0, 0)
BYTES_TILES(1, 1, 0)
BYTES_TILES(1, 0, 1)
static fold_fn *const bytes_tiles[2][2][TILE] = {
    {BYTES_TILE_NAMES(0, 0, 0), BYTES_TILE_NAMES(0, 1, 0)},
    {BYTES_TILE_NAMES(1, 0, 0), BYTES_TILE_NAMES(1, 1, 0)}};
static fold_fn *const whole_tiles[TILE] = BYTES_TILE_NAMES(1, 0, 1);
#else
PAIRS_ROWS(0, 1)
static fold_fn *const whole_tiles[TILE] = PAIRS_NAMES(0, 1);
#endif

static fold_fn *const *tiles_of(const job *j)
{
    if (j->whole) {
        return whole_tiles;
    }
#if LANES == 16
    if (j->way == BYTES) {
        return bytes_tiles[j->args.w.format->elem == MOE_I8][j->halves];
    }
    if (j->way == DIGITS16) {
        return digits16_tiles[j->e2m1][j->halves];
    }
#endif
    return j->way == PAIRS ? pairs_tiles[j->halves] : digits8_tiles[j->e2m1][j->halves];
}

// What tiles read of a record.
static const uint8_t *decode(job *j, const uint8_t *record)
{
    if (j->way == PAIRS) {
        decode_pairs(j, record);
        return j->w;
    }
    if (!WIDE) {
        decode_digits(j, record);
        return j->w;
    }
    return record;
}

// Many rows: a record is decoded once, then multiplied tile by tile.
static void many_rows(job *j, span s, float (*acc)[PANEL])
{
    fold_fn *const *folds = tiles_of(j);
    const int64_t rows = s.i1 - s.i0;
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    int64_t begin[MR / TILE + 1]; // as many rows in every tile, but for one
    for (int64_t t = 0; t <= tiles; t++) {
        begin[t] = rows * t / tiles;
    }
    for (; s.r < s.end; s.r++, s.x += rows * j->cell) {
        const uint8_t *w = next_record(j, &s, j->halves);
        if (j->rounds) {
            chain_as_written(j, w, s.r, s.i0, s.i1, acc);
            continue;
        }
        w = decode(j, w);
        for (int64_t t = 0; t < tiles; t++) {
            folds[begin[t + 1] - begin[t] - 1](j, w, s.x + begin[t] * j->cell, acc + begin[t]);
        }
    }
}

// ---- products ----------------------------------------------------------------------------------

static loop_fn *loop_of(const job *j, int64_t rows)
{
    if (rows > FEW) {
        return many_rows;
    }
    if (j->whole) {
        return few_bytes_whole[rows - 1];
    }
    if (j->p.unit_k == 4) {
        return few_bytes[j->args.w.format->elem == MOE_I8][j->halves][rows - 1];
    }
    if (j->way == PAIRS) {
        return many_rows;
    }
    return few_digits[j->way == DIGITS16][j->e2m1][j->halves][rows - 1];
}

static void want_strips(job *j, int64_t panel, int64_t n0, int64_t n1)
{
    j->first = moei_i64_max(n0 - panel * PANEL, 0) / STRIP;
    j->last = moei_i64_ceil_div(moei_i64_min(n1 - panel * PANEL, PANEL), STRIP);
}

// The integers of a chunk to those of the chunks before it. Each has fewer than WHOLE_TOP k.
static void end_chunk(int64_t rows, float (*acc)[PANEL], int64_t (*total)[PANEL])
{
    for (int64_t r = 0; r < rows; r++) {
        int32_t sums[PANEL];
        memcpy(sums, acc[r], sizeof sums);
        memset(acc[r], 0, sizeof acc[r]);
        for (int64_t n = 0; n < PANEL; n++) {
            total[r][n] += sums[n];
        }
    }
}

static void finish_panel(job *j, int64_t panel, int64_t i0, int64_t i1, int64_t n0, int64_t n1,
                         float (*acc)[PANEL], int64_t (*total)[PANEL])
{
    const int64_t from = moei_i64_max(n0, panel * PANEL);
    const int64_t to = moei_i64_min(n1, (panel + 1) * PANEL);
    moei_cpu_load_columns(&j->args.w, j->e, from, to, &j->columns);
    for (int64_t i = i0; i < i1; i++) {
        float *sums = acc[i - i0];
        if (j->splits) {
            for (int64_t n = 0; n < PANEL; n++) {
                sums[n] = (float)total[i - i0][n];
            }
        } else if (j->whole) {
            for (int64_t n = 0; n < PANEL; n += LANES) {
                V(store_ps)(sums + n, V(cvtepi32_ps)(load(sums + n)));
            }
        }
        moei_cpu_finish(&j->args, &j->columns, j->e, i, from, to, sums + from - panel * PANEL);
    }
}

static void run_rows(job *j, int64_t i0, int64_t i1, int64_t n0, int64_t n1)
{
    const int64_t rows = i1 - i0;
    const int64_t chunk = moei_i64_min(X_ROOM / (rows * j->cell), j->p.records);
    const int64_t end = moei_i64_ceil_div(n1, PANEL);
    loop_fn *loop = loop_of(j, rows);
    int64_t prepared = -1;
    for (int64_t panel0 = n0 / PANEL; panel0 < end; panel0 += SIDE) {
        const int64_t panel1 = moei_i64_min(panel0 + SIDE, end);
        for (int64_t panel = panel0; panel < panel1; panel++) {
            memset(j->acc[panel - panel0], 0, (size_t)rows * sizeof j->acc[0][0]);
            if (j->splits) {
                memset(j->total[panel - panel0], 0, (size_t)rows * sizeof j->total[0][0]);
            }
        }
        for (int64_t r = 0; r < j->p.records; r += chunk) {
            const int64_t r1 = moei_i64_min(r + chunk, j->p.records);
            if (prepared != r) {
                prepare(j, i0, i1, r, r1);
                prepared = r;
            }
            for (int64_t panel = panel0; panel < panel1; panel++) {
                want_strips(j, panel, n0, n1);
                loop(j, span_of(j, panel, i0, i1, r, r1), j->acc[panel - panel0]);
                if (j->splits) {
                    end_chunk(rows, j->acc[panel - panel0], j->total[panel - panel0]);
                }
            }
        }
        for (int64_t panel = panel0; panel < panel1; panel++) {
            finish_panel(j, panel, i0, i1, n0, n1, j->acc[panel - panel0],
                         j->total[panel - panel0]);
        }
    }
}

static way way_of(const job *j, int64_t i0, int64_t i1)
{
    if (j->p.unit_k == 4) {
        return WIDE ? BYTES : PAIRS;
    }
    if (!j->int16) {
        return DIGITS8;
    }
    return (WIDE || i1 - i0 <= FEW) && have_digits(&j->args, j->e, i0, i1) ? DIGITS16 : PAIRS;
}

static void run(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                int64_t n1, bool halves, bool whole)
{
    job j;
    const moei_format_info *format = args->w.format;
    j.p = moei_cpu_packed_of(&args->w);
    j.args = moei_cpu_packed_args(args, &j.p, e);
    j.expert = args->w.values + (int64_t)e * args->w.value_e_stride;
    j.e = e;
    j.e2m1 = format->elem == MOE_E2M1;
    j.int16 = args->x.dtype == MOE_I16;
    j.halves = halves;
    j.whole = whole;
    j.splits = whole && args->w.k > WHOLE_TOP;
    j.rounds = false;
    for (int64_t s = 0; s < HALVES; s++) {
        for (int64_t n = 0; n < PANEL; n++) {
            j.scale[s][n] = 1.0f;
            j.zero[s][n] = format->zero_point > 0           ? format->zero_point
                           : WIDE && format->elem == MOE_I8 ? 128 // see fold_bytes
                                                            : 0;
        }
    }
    const int64_t blocks = moei_i64_ceil_div(i1 - i0, MR);
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = i0 + (i1 - i0) * b / blocks;
        const int64_t last = i0 + (i1 - i0) * (b + 1) / blocks;
        j.way = way_of(&j, first, last);
        j.cell =
            j.way == DIGITS8 || j.way == BYTES ? (int64_t)sizeof(cell8) : (int64_t)sizeof(cell16);
        run_rows(&j, first, last, n0, n1);
    }
}

#define INTS_KERNEL(name, halves, whole)                                                           \
    moek_ggemm_fn moek_ggemm_##name;                                                               \
    void moek_ggemm_##name(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,         \
                           int64_t n0, int64_t n1)                                                 \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, halves, whole);                                               \
    }
#if LANES == 16
INTS_KERNEL(any_i8_packed__avx512_b16, true, false)
INTS_KERNEL(any_i8_packed__avx512_b32, false, false)
INTS_KERNEL(any_i8_packed__avx512_i32, false, true)
INTS_KERNEL(any_i16_packed__avx512_b16, true, false)
INTS_KERNEL(any_i16_packed__avx512_b32, false, false)
#else
INTS_KERNEL(any_i8_packed__avx2_b16, true, false)
INTS_KERNEL(any_i8_packed__avx2_b32, false, false)
INTS_KERNEL(any_i8_packed__avx2_i32, false, true)
INTS_KERNEL(any_i16_packed__avx2_b16, true, false)
INTS_KERNEL(any_i16_packed__avx2_b32, false, false)
#endif
