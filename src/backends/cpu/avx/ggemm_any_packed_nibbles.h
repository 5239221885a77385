// SPDX-License-Identifier: Apache-2.0
// 4-bit codes without a permutation of 16 floats: rewritten as bytes for few rows, as pairs of bf16
// or as floats for many.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_NIBBLES_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_NIBBLES_H

#include "backends/cpu/avx/ggemm_any_packed.h"

// 4-bit codes to signed bytes: twice the value of e2m1; others less their zero points.
__attribute__((always_inline)) static inline void stage_nibbles(const job *j, bool e2m1,
                                                                const uint8_t *record, uint8_t *to)
{
    const veci table =
        veci_all(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const veci nibble = V(set1_epi8)(15);
    const int64_t lines = RECORD / 8;
    for (int64_t strip = j->p.first; strip < j->p.last; strip++) {
        const uint8_t *from = record + strip * lines * 64;
        uint8_t *at = to + strip * lines * 128;
        moei_cpu_ask_ahead(from, lines * 64);
        for (int64_t line = 0; line < lines; line++) {
            const int64_t set = j->p.packed.sets == 2 && line >= lines / HALVES ? 1 : 0;
            UNROLL
            for (int64_t v = 0; v < VECTORS; v++) {
                const veci codes = veci_load(from + line * 64 + v * VECTOR);
                veci low = veci_and(codes, nibble);
                veci high = veci_and(V(srli_epi16)(codes, 4), nibble);
                if (e2m1) {
                    low = V(shuffle_epi8)(table, low);
                    high = V(shuffle_epi8)(table, high);
                } else {
                    const veci zero = veci_load(&j->zero[set][strip * STRIP + v * LANES]);
                    low = V(sub_epi8)(low, zero);
                    high = V(sub_epi8)(high, zero);
                }
                veci_store(at + line * 128 + v * VECTOR, low);
                veci_store(at + line * 128 + 64 + v * VECTOR, high);
            }
        }
    }
}

// Eight k of a vector of 4-bit codes to pairs of bf16, by two tables.
__attribute__((always_inline)) static inline void look_up(veci codes, veci table_low,
                                                          veci table_high, veci pairs[4])
{
    const veci nibble = V(set1_epi8)(15);
    const veci order =
        veci_all(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const veci bytes = V(shuffle_epi8)(codes, order); // k, k + 1, then k + 4, k + 5
    const veci low = veci_and(bytes, nibble);
    const veci high = veci_and(V(srli_epi16)(bytes, 4), nibble);
    const veci low_low = V(shuffle_epi8)(table_low, low);
    const veci low_high = V(shuffle_epi8)(table_high, low);
    const veci high_low = V(shuffle_epi8)(table_low, high);
    const veci high_high = V(shuffle_epi8)(table_high, high);
    pairs[0] = V(unpacklo_epi8)(low_low, low_high);
    pairs[1] = V(unpacklo_epi8)(high_low, high_high);
    pairs[2] = V(unpackhi_epi8)(low_low, low_high);
    pairs[3] = V(unpackhi_epi8)(high_low, high_high);
}

// 4-bit codes, whose zero point is in the tables, to a record of pairs.
static const uint8_t *pair_nibbles(const job *j, const uint8_t *record, uint8_t *to)
{
    const veci table_low = j->code_low;
    const veci table_high = j->code_high;
    for (int64_t strip = j->p.first; strip < j->p.last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD / 2;
        uint8_t *at = to + strip * STRIP * RECORD * 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        for (int64_t line = 0; line < RECORD / 8; line++, from += 64, at += 256) {
            UNROLL
            for (int64_t v = 0; v < VECTORS; v++) {
                veci pairs[4];
                look_up(veci_load(from + VECTOR * v), table_low, table_high, pairs);
                UNROLL
                for (int64_t i = 0; i < 4; i++) {
                    veci_store(at + 64 * i + VECTOR * v, pairs[i]);
                }
            }
        }
    }
    return to;
}

// The same to floats at k .. of the slice. zeros: less zero points that differ.
__attribute__((always_inline)) static inline void decode_nibbles(job *j, bool zeros,
                                                                 const uint8_t *record, int64_t k)
{
    const veci table_low = j->code_low;
    const veci table_high = j->code_high;
    for (int64_t strip = j->p.first; strip < j->p.last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD / 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        for (int64_t i = 0; i < VECTORS * RECORD / 8; i++) { // a vector of eight k each
            const int64_t line = i / VECTORS;
            const int64_t set = j->p.packed.sets == 2 && line >= RECORD / 8 / HALVES ? 1 : 0;
            const int64_t n = i % VECTORS * LANES;
            const vecf zero = V(load_ps)(&j->late_zero[set][strip * STRIP + n]);
            float(*to)[STRIP] = &j->w[strip][k + line * 8];
            veci pairs[4];
            look_up(veci_load(from + i * VECTOR), table_low, table_high, pairs);
            UNROLL
            for (int64_t h = 0; h < 4; h++) {
                const vecf even = low_of(pairs[h]);
                const vecf odd = high_of(pairs[h]);
                V(store_ps)(&to[2 * h][n], zeros ? V(sub_ps)(even, zero) : even);
                V(store_ps)(&to[2 * h + 1][n], zeros ? V(sub_ps)(odd, zero) : odd);
            }
        }
    }
}

// Bytes of the bf16 that a 4-bit code is in `form`.
static void make_tables(job *j)
{
    float value[16];
    uint8_t low[16];
    uint8_t high[16];
    for (int code = 0; code < 16; code++) {
        value[code] = j->value[code] / j->factor;
    }
    moei_cpu_code_bytes(value, low, high);
    j->code_low = veci_all(load_16(low));
    j->code_high = veci_all(load_16(high));
}

#endif
