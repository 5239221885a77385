// SPDX-License-Identifier: Apache-2.0
// One to four rows of int8 times MXFP4, a whole panel. Scales of both are powers of two, so their
// product is one, exactly, and acc = fma(sum, s_x s_w, acc) has the bits of fma(sum * s_x, s_w,
// acc): sum * s_x does not round either. An exponent is the sum of two, taken from bytes: one
// multiplication less for each vector, and what ends a sum is shorter.
//
// Exponents must be in the middle of their range, 2^-63 to 2^63 or so, so that nothing is subnormal
// or overflows; records where they are not go the way of all others (_rows.h).
//
// Per 16 outputs x 32 k of one row, AVX2: 82.5 vector operations, of 105 instructions.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_MXFP4_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_MXFP4_H

#include "backends/cpu/avx/ggemm_ints_packed.h"

#define WIDEST_LINE 4 // vectors side by side

/// [row][vector]: sums of bytes.
typedef struct line_sums {
    veci of[FEW][WIDEST_LINE];
} line_sums;

// Vectors of outputs side by side, which share loads of x: as many as registers hold sums for.
__attribute__((always_inline)) static inline int64_t side_by_side(int64_t rows)
{
    return rows <= (LANES == 16 ? 2 : 1) ? WIDEST_LINE : WIDEST_LINE / 2;
}

// Codes less MIDDLE, plus an exponent of x, in bytes. Returns false if one of them is not in the
// middle: MIDDLE - 63 .. MIDDLE + 64.
static inline bool stage_codes(const uint8_t *codes, int32_t exponent, uint8_t staged[PANEL])
{
    const __m256i by = _mm256_set1_epi8((char)(exponent - MIDDLE));
    __m256i all = _mm256_set1_epi8(-1);
    for (int64_t n = 0; n < PANEL; n += 32) {
        const __m256i v = load_32(codes + n);
        store_32(staged + n, _mm256_add_epi8(v, by));
        all = _mm256_and_si256(all, _mm256_add_epi8(v, _mm256_set1_epi8(64)));
    }
    return _mm256_movemask_epi8(all) == -1;
}

// Staged codes to the bits of exponents; is_signed: those of many rows have none of x yet.
__attribute__((always_inline)) static inline veci exponents_of(bool is_signed, const uint8_t *from)
{
#if LANES == 16
    const __m128i codes = load_16(from);
    const veci wide = is_signed ? _mm512_cvtepi8_epi32(codes) : _mm512_cvtepu8_epi32(codes);
#else
    const __m128i codes = load_8(from);
    const veci wide = is_signed ? _mm256_cvtepi8_epi32(codes) : _mm256_cvtepu8_epi32(codes);
#endif
    return shift_left(wide, 23);
}

// 8 k of outputs side by side. begins: sums, with what is to be subtracted.
__attribute__((always_inline)) static inline void add_wide_line(int64_t rows, bool begins,
                                                                const uint8_t *from,
                                                                const cell8 *cells, int64_t u,
                                                                line_sums *sums)
{
    const int64_t vectors = side_by_side(rows);
    veci bytes[WIDEST_LINE][2];
    UNROLL
    for (int64_t v = 0; v < vectors; v++) {
        const int64_t strip = v / VECTORS * (STRIP * RECORD / 2);
        moei_cpu_ask_ahead(from + strip, v % VECTORS == 0 ? MOEI_CPU_LINE : 0);
        decode_bytes(true, veci_load(from + strip + v % VECTORS * VECTOR), bytes[v]);
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *x = (const uint8_t *)cells[r].digit[0] + u * 8;
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            veci *sum = &sums->of[r][v];
            *sum = add_bytes(false, begins ? dword_of(&cells[r].sum[0]) : *sum, bytes[v], x);
        }
    }
}

// Sums of outputs from n on into acc.
__attribute__((always_inline)) static inline void
end_wide(int64_t rows, int64_t n, const uint8_t *staged, const cell8 *cells, const line_sums *sums,
         float (*acc)[PANEL])
{
    UNROLL
    for (int64_t v = 0; v < side_by_side(rows); v++) {
        const int64_t at = n + v * LANES;
        const veci exponents = exponents_of(rows > 1, staged + at);
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            const veci bits =
                rows > 1 ? V(add_epi32)(exponents, dword_of(&cells[r].scale)) : exponents;
            const vecf sum = V(cvtepi32_ps)(sum_of_digits(1, &sums->of[r][v]));
            V(store_ps)
            (&acc[r][at], V(fmadd_ps)(sum, as_floats(bits), V(load_ps)(&acc[r][at])));
        }
    }
}

// Records of a panel, as far as scales of weights allow.
__attribute__((always_inline)) static inline void rows_of_mxfp4(const job *j, int64_t rows, span *s,
                                                                float (*acc)[PANEL])
{
    const bool whole = s->walk.width == PANEL && j->p.last - j->p.first == PANEL / STRIP;
    if (!j->middle || !whole || s->walk.group_records != 1) {
        return;
    }
    _Alignas(32) uint8_t staged[PANEL];
    const uint8_t *at = s->walk.left > 0 ? s->head : s->walk.at;
    for (; s->r < s->end; s->r++, s->x += rows * (int64_t)sizeof(cell8)) {
        const cell8 *cells = (const cell8 *)(const void *)s->x;
        if (!stage_codes(at, rows > 1 ? 0 : cells->exponent, staged)) {
            break;
        }
        __asm__("" : "+m"(staged)); // bytes are loaded again, not cut from vectors
        moei_cpu_ask_ahead(at, PANEL);
        UNROLL
        for (int64_t n = 0; n < PANEL; n += side_by_side(rows) * LANES) {
            const uint8_t *from = at + PANEL + n / STRIP * (STRIP * RECORD / 2);
            line_sums sums;
            UNROLL
            for (int64_t u = 0; u < RECORD / 8; u++) {
                add_wide_line(rows, u == 0, from + u * MOEI_CPU_LINE, cells, u, &sums);
            }
            end_wide(rows, n, staged, cells, &sums, acc);
        }
        at += PANEL * (1 + RECORD / 2);
    }
    s->walk.at = at;
    s->walk.left = 0;
}

#endif
