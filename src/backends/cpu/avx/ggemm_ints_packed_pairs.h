// SPDX-License-Identifier: Apache-2.0
// Integer products of packed weights by words and bytes.
//
//   Pairs: x in 16 bits, weights less their zero points in 16 bits, vpmaddwd or vpdpwssd. For codes
//   of int16 that have no two digits, and without VNNI for int16 and many rows, and for weights of
//   8 bits.
//
//   Bytes (VNNI): int8 with weights of 8 bits, those of int8 plus 128.
//
// Per 8 outputs x 32 k, vector operations without loads: 36 for weights of 4 bits, 36 for each row.
// VNNI, per 16 outputs: 36, 20; bytes 8 for weights of int8 (uint8: 0), 12 for each row.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_PAIRS_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_PAIRS_H

#include "backends/cpu/avx/ggemm_ints_packed_digits.h"
#include "moe/types.h"

#define TILE 4 // rows that share a load of weights

// ---- x -----------------------------------------------------------------------------------------

// Weights of 8 bits come as k, k + 2 and k + 1, k + 3, those of 4 bits as k, k + 1.
static inline void fill_pairs(bool int16, bool for_bytes, bool e2m1, bool halves,
                              const uint8_t *codes, cell16 *c)
{
    const __m256i even_first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m256i sum[2];
    for (int i = 0; i < 2; i++) {
        const __m128i narrow = load_16(codes + 16 * i);
        const __m256i v = int16 ? load_32(codes + 32 * i) : _mm256_cvtepi8_epi16(narrow);
        store_32(c->code + 16 * i, for_bytes ? _mm256_shuffle_epi8(v, even_first) : v);
        sum[i] = _mm256_madd_epi16(v, _mm256_set1_epi16(1));
    }
    store_half_sums(e2m1, halves, sum, c->sum);
}

// ---- weights -----------------------------------------------------------------------------------

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

// To words [vector][pair of k][lane], less their zero points; e2m1 and int8 have none.
__attribute__((always_inline)) static inline void
words_of(moe_dtype elem, bool halves, fold_to from, const uint8_t *record, uint8_t *words_to)
{
    const bool bytes = elem == MOE_I8 || elem == MOE_U8;
    const bool zeros = elem == MOE_U8 || elem == MOE_UINT4;
    const int64_t lines = bytes ? RECORD / 4 : RECORD / 8;
    const int64_t line_bytes = 2 * LANES * (bytes ? 4 : 8); // decoded
    for (int64_t v = VECTORS * from.first; v < VECTORS * from.last; v++) {
        const uint8_t *codes = record + v / VECTORS * lines * 64 + v % VECTORS * VECTOR;
        uint8_t *to = words_to + v * lines * line_bytes;
        veci zero[HALVES];
        for (int64_t s = 0; zeros && s < HALVES; s++) {
            const veci wide = veci_load(&from.zero[s][v * LANES]);
            zero[s] = veci_or(wide, shift_left(wide, 16));
        }
        if (v % VECTORS == 0) {
            moei_cpu_ask_ahead(codes, lines * 64);
        }
        for (int64_t line = 0; line < lines; line++) {
            const int64_t set = halves && line >= lines / HALVES ? 1 : 0;
            veci words[4];
            if (bytes) {
                words_of_bytes(elem == MOE_I8, veci_load(codes + line * 64), words);
            } else {
                words_of_nibbles(elem == MOE_E2M1, veci_load(codes + line * 64), words);
            }
            for (int64_t i = 0; i < (bytes ? 2 : 4); i++) {
                veci_store(to + line * line_bytes + i * VECTOR,
                           zeros ? V(sub_epi16)(words[i], zero[set]) : words[i]);
            }
        }
    }
}

static void decode_words(moe_dtype elem, bool halves, fold_to from, const uint8_t *record,
                         uint8_t *to)
{
    switch (elem) {
    case MOE_I8:
        words_of(MOE_I8, halves, from, record, to);
        return;
    case MOE_U8:
        words_of(MOE_U8, halves, from, record, to);
        return;
    case MOE_E2M1:
        words_of(MOE_E2M1, halves, from, record, to);
        return;
    default:
        words_of(MOE_UINT4, halves, from, record, to);
        return;
    }
}

// ---- sums --------------------------------------------------------------------------------------

static inline veci add_words(veci sum, veci words, veci x)
{
#if LANES == 16
    return _mm512_dpwssd_epi32(sum, words, x);
#else
    return pinned(_mm256_add_epi32(sum, _mm256_madd_epi16(words, x)));
#endif
}

// Into acc; or, where sums go on as integers, `whole`, added to the integers there.
static inline void end_sum(bool whole, veci sum, const float *x_scale, const float *scale,
                           float *acc)
{
    if (whole) {
        veci_store(acc, V(add_epi32)(veci_load(acc), sum));
    } else {
        fold_one(sum, x_scale, V(load_ps)(scale), acc);
    }
}

#if LANES == 16
// A line of a strip is 4 k of weights of 8 bits, as they lie but for `flip`, which makes int8
// unsigned. x: cells of 8 bits.
__attribute__((always_inline)) static inline void add_line_of_bytes(int64_t rows, bool is_signed,
                                                                    const uint8_t *strip,
                                                                    int64_t line, const void *x,
                                                                    veci sum[TILE][VECTORS])
{
    const cell8 *cells = x;
    const veci flip = _mm512_set1_epi8(is_signed ? -128 : 0);
    const veci bytes = _mm512_xor_si512(veci_load(strip + line * VECTOR), flip);
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], bytes, dword_of(&cells[r].digit[0][4 * line]));
    }
}

// A record of weights of 8 bits.
__attribute__((always_inline)) static inline void fold_bytes(int64_t rows, bool is_signed,
                                                             bool halves, bool whole, fold_to to,
                                                             const uint8_t *w, const void *x)
{
    const cell8 *cells = x;
    const int64_t lines = RECORD / 4;
    for (int64_t strip = to.first; strip < to.last; strip++) {
        const uint8_t *from = w + strip * STRIP * RECORD;
        const int64_t n = strip * STRIP;
        moei_cpu_ask_ahead(from, STRIP * RECORD);
        for (int64_t h = 0; h < (halves ? to.sets : 1); h++) {
            const int64_t count = halves ? lines / HALVES : lines;
            veci sum[TILE][VECTORS];
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                sum[r][0] = _mm512_setzero_si512();
            }
            UNROLL
            for (int64_t u = 0; u < count; u++) {
                add_line_of_bytes(rows, is_signed, from, h * count + u, x, sum);
            }
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                const veci excess = _mm512_mullo_epi32(_mm512_set1_epi32(cells[r].sum[h]),
                                                       veci_load(&to.zero[h][n]));
                end_sum(whole, _mm512_sub_epi32(sum[r][0], excess), &cells[r].scale,
                        &to.scale[h][n], &to.acc[r][n]);
            }
        }
    }
}
#else
// A line of a strip is 4 k of weights of 8 bits, as they lie. x: cells of pairs.
__attribute__((always_inline)) static inline void add_line_of_bytes(int64_t rows, bool is_signed,
                                                                    const uint8_t *strip,
                                                                    int64_t line, const void *x,
                                                                    veci sum[TILE][VECTORS])
{
    const cell16 *cells = x;
    UNROLL
    for (int64_t v = 0; v < VECTORS; v++) {
        veci words[2];
        words_of_bytes(is_signed, veci_load(strip + line * 64 + v * VECTOR), words);
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

// A record of weights of 8 bits.
__attribute__((always_inline)) static inline void fold_bytes(int64_t rows, bool is_signed,
                                                             bool halves, bool whole, fold_to to,
                                                             const uint8_t *w, const void *x)
{
    const cell16 *cells = x;
    const int64_t lines = RECORD / 4;
    for (int64_t strip = to.first; strip < to.last; strip++) {
        const uint8_t *from = w + strip * STRIP * RECORD;
        moei_cpu_ask_ahead(from, STRIP * RECORD);
        for (int64_t h = 0; h < (halves ? to.sets : 1); h++) {
            const int64_t count = halves ? lines / HALVES : lines;
            veci sum[TILE][VECTORS];
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                sum[r][0] = sum[r][1] = _mm256_setzero_si256();
            }
            for (int64_t line = h * count; line < (h + 1) * count; line++) {
                add_line_of_bytes(rows, is_signed, from, line, x, sum);
            }
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                UNROLL
                for (int64_t v = 0; v < 2; v++) {
                    const int64_t n = strip * STRIP + v * LANES;
                    const veci excess = _mm256_mullo_epi32(_mm256_set1_epi32(cells[r].sum[h]),
                                                           veci_load(&to.zero[h][n]));
                    end_sum(whole, is_signed ? sum[r][v] : _mm256_sub_epi32(sum[r][v], excess),
                            &cells[r].scale, &to.scale[h][n], &to.acc[r][n]);
                }
            }
        }
    }
}
#endif

// A step of a strip is 2 k of weights in 16 bits, decoded.
__attribute__((always_inline)) static inline void add_step_of_words(int64_t rows,
                                                                    const uint8_t *strip,
                                                                    int64_t step, const void *x,
                                                                    veci sum[TILE][VECTORS])
{
    const cell16 *cells = x;
    veci words[VECTORS];
    UNROLL
    for (int64_t v = 0; v < VECTORS; v++) {
        words[v] = veci_load(strip + (v * (RECORD / 2) + step) * VECTOR);
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        const veci xs = dword_of(&cells[r].code[2 * step]);
        UNROLL
        for (int64_t v = 0; v < VECTORS; v++) {
            sum[r][v] = add_words(sum[r][v], words[v], xs);
        }
    }
}

// A record of them.
__attribute__((always_inline)) static inline void
fold_pairs(int64_t rows, bool halves, bool whole, fold_to to, const uint8_t *w, const void *x)
{
    const cell16 *cells = x;
    const int64_t steps = RECORD / 2;
    for (int64_t strip = to.first; strip < to.last; strip++) {
        const uint8_t *from = w + strip * STRIP * RECORD * (int64_t)sizeof(int16_t);
        veci sum[TILE][VECTORS];
        for (int64_t h = 0; h < (halves ? to.sets : 1); h++) {
            const int64_t count = halves ? steps / HALVES : steps;
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                UNROLL
                for (int64_t v = 0; v < VECTORS; v++) {
                    sum[r][v] = V(set1_epi32)(0);
                }
            }
            for (int64_t s = h * count; s < (h + 1) * count; s++) {
                add_step_of_words(rows, from, s, x, sum);
            }
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                UNROLL
                for (int64_t v = 0; v < VECTORS; v++) {
                    const int64_t n = strip * STRIP + v * LANES;
                    end_sum(whole, sum[r][v], &cells[r].scale, &to.scale[h][n], &to.acc[r][n]);
                }
            }
        }
    }
}

#endif
