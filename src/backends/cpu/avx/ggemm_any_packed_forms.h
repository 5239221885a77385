// SPDX-License-Identifier: Apache-2.0
// The forms of a record (64 outputs x 32 k) of packed weights, from which a few operations make
// floats, a vector of outputs of one k at a time:
//
//   floats   of one k side by side                                     k in the order of rows
//   pairs    two bf16 of a lane: shift, or mask                         bf16
//   halves   f16 of one k side by side: convert                         f16; 8-bit floats, staged
//   bytes    four signed bytes of a lane: one to the top, convert       int8; uint8, staged
//   nibbles  the same, in another order of k                            4 bits, staged
//
// Staged: a record is rewritten in that form, 2 or 4 KiB of L1. A byte at the top of a word is 2^24
// times its value, and 8-bit floats are 2^-8 of theirs in f16; so x is multiplied by the inverse
// where it is loaded. A power of two changes no product, and no bit of a sum, as long as x times it
// is exact; where one x is not (it would be subnormal), weights are multiplied instead.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_FORMS_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_FORMS_H

#include "backends/cpu/avx/ggemm_any_packed.h"

#define BYTE_ZEROS 128 // the largest zero point that leaves a code in a byte

static void choose_form(job *j)
{
    j->lies = j->elem == MOE_BF16 || j->elem == MOE_F16 || j->elem == MOE_I8;
    switch (j->elem) {
    case MOE_BF16:
        j->form = PAIRS;
        j->factor = 1.0f;
        break;
    case MOE_F16:
    case MOE_E5M2:
        j->form = HALVES_OF_K;
        j->factor = 1.0f;
        break;
    case MOE_E4M3FN:
        j->form = HALVES_OF_K;
        j->factor = 0x1p8f;
        break;
    case MOE_I8:
    case MOE_U8:
        j->form = BYTES;
        j->factor = 0x1p-24f;
        break;
    default:
        j->form = NIBBLES;
        j->factor = j->elem == MOE_E2M1 ? 0x1p-25f : 0x1p-24f;
        break;
    }
}

// ---- floats of a form --------------------------------------------------------------------------

// Of a strip: eight k, and one of its vectors.
__attribute__((always_inline)) static inline int64_t eight_bytes(code_form form)
{
    switch (form) {
    case FLOATS:
        return 8 * STRIP * (int64_t)sizeof(float);
    case PAIRS:
    case HALVES_OF_K:
        return 8 * STRIP * 2;
    default:
        return 8 * STRIP;
    }
}

__attribute__((always_inline)) static inline int64_t vector_bytes(code_form form)
{
    return form == HALVES_OF_K ? VECTOR / 2 : VECTOR;
}

// Of what holds all strips, from one to the next.
__attribute__((always_inline)) static inline int64_t strip_bytes(code_form form)
{
    return (form == FLOATS ? SLICE : RECORD) / 8 * eight_bytes(form);
}

// Byte b of each lane times 2^24. A staged record has bytes before it.
__attribute__((always_inline)) static inline vecf byte_of(const uint8_t *from, int64_t b,
                                                          bool staged)
{
    const veci top = V(set1_epi32)((int)0xFF000000u);
    if (staged || b == 3) {
        return V(cvtepi32_ps)(veci_and(veci_load(from + b - 3), top));
    }
    if (b == 0) {
        return V(cvtepi32_ps)(V(slli_epi32)(veci_load(from), 24));
    }
    const char at = (char)b;
    const veci order = veci_all(_mm_setr_epi8(-1, -1, -1, at, -1, -1, -1, (char)(at + 4), -1, -1,
                                              -1, (char)(at + 8), -1, -1, -1, (char)(at + 12)));
    return V(cvtepi32_ps)(V(shuffle_epi8)(veci_load(from), order));
}

// A vector of a strip, at element k of eight whose form begins at `from`. 4-bit codes lie as
// packed.h has them: k + 2 j in nibble j, k + 2 j + 1 in nibble j + 4; low nibbles became one unit
// of bytes, high ones the next.
__attribute__((always_inline)) static inline vecf weight_of(code_form form, const uint8_t *from,
                                                            int64_t k)
{
    const int64_t unit = STRIP * 4;
    switch (form) {
    case FLOATS:
        return V(load_ps)((const float *)(const void *)(from + k * STRIP * 4));
    case PAIRS:
        return k % 2 == 0 ? low_of(veci_load(from + k / 2 * unit))
                          : high_of(veci_load(from + k / 2 * unit));
    case HALVES_OF_K:
        return V(cvtph_ps)(halfi_load(from + k * STRIP * 2));
    case BYTES:
        return byte_of(from + k / 4 * unit, k % 4, false);
    default:
        return byte_of(from + k / 2 % 2 * unit, k % 2 * 2 + k / 4, true);
    }
}

// ---- staging -----------------------------------------------------------------------------------

// 4-bit codes to signed bytes: twice the value of e2m1; others less their zero points.
__attribute__((always_inline)) static inline void stage_nibbles(const job *j, bool e2m1,
                                                                const uint8_t *record, uint8_t *to)
{
    const veci table =
        veci_all(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const veci nibble = V(set1_epi8)(15);
    const int64_t lines = RECORD / 8;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * lines * 64;
        uint8_t *at = to + strip * lines * 128;
        moei_cpu_ask_ahead(from, lines * 64);
        for (int64_t line = 0; line < lines; line++) {
            const int64_t set = j->p.sets == 2 && line >= lines / HALVES ? 1 : 0;
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

// Unsigned bytes to signed ones, less 128. Staged bytes of one k lie as 4-bit codes' do.
static void stage_u8(const job *j, const uint8_t *record, uint8_t *to)
{
    const veci top = V(set1_epi8)((char)0x80);
    const int64_t bytes = STRIP * RECORD;
    for (int64_t b = j->first * bytes; b < j->last * bytes; b += VECTOR) {
        veci_store(to + b, veci_xor(veci_load(record + b), top));
    }
}

// Even k and odd k of two, or of four, from units of two.
static inline void store_units(uint8_t *to, veci even, veci odd)
{
#if LANES == 16
    _mm256_storeu_si256((__m256i *)(void *)to, low_half(even));
    _mm256_storeu_si256((__m256i *)(void *)(to + 32), low_half(odd));
    _mm256_storeu_si256((__m256i *)(void *)(to + 64), high_half(even));
    _mm256_storeu_si256((__m256i *)(void *)(to + 96), high_half(odd));
#else
    veci_store(to, even);
    veci_store(to + VECTOR, odd);
#endif
}

// 8-bit floats to f16. False if there was a NaN of e4m3 that is none any more.
__attribute__((always_inline)) static inline bool stage_floats(const job *j, bool e5m2, bool nans,
                                                               const uint8_t *record, uint8_t *to)
{
    const veci sign = V(set1_epi8)((char)0x80);
    const veci upper = V(set1_epi16)((short)0xFF00);
    veci top = sign;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD;
        uint8_t *at = to + strip * STRIP * RECORD * 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD);
        for (int64_t b = 0; b < STRIP * RECORD; b += VECTOR) { // units of two k
            const veci two = veci_load(from + b);
            const veci low = V(slli_epi16)(two, 8);
            if (e5m2) {
                store_units(at + 2 * b, low, veci_and(two, upper));
                continue;
            }
            top = V(max_epu8)(top, veci_or(two, sign));
            store_units(at + 2 * b, f16_of_e4m3(low, nans), f16_of_e4m3(two, nans));
        }
    }
    return nans || !any_byte_full(top);
}

// The record in its form, which lies `to` or is that of the record itself.
static const uint8_t *stage(const job *j, const uint8_t *record, uint8_t *to)
{
    switch (j->elem) {
    case MOE_E2M1:
        stage_nibbles(j, true, record, to);
        return to;
    case MOE_UINT4:
        stage_nibbles(j, false, record, to);
        return to;
    case MOE_U8:
        stage_u8(j, record, to);
        break;
    case MOE_E4M3FN:
        if (!stage_floats(j, false, false, record, to)) {
            (void)stage_floats(j, false, true, record, to);
        }
        return to;
    case MOE_E5M2:
        (void)stage_floats(j, true, true, record, to);
        return to;
    default:
        to = NULL;
        break;
    }
    if (j->rows > FEW) { // few ask for themselves
        const int64_t bytes = STRIP * j->p.record;
        moei_cpu_ask_ahead(record + j->first * bytes, (j->last - j->first) * bytes);
    }
    return to != NULL ? to : record;
}

// The form of a record to floats at k .. k + RECORD - 1 of the slice. late: zero points are
// subtracted here; times: floats are multiplied by what x was not.
__attribute__((always_inline)) static inline void
decode_form(job *j, code_form form, bool late, bool times, const uint8_t *record, int64_t k)
{
    const vecf factor = V(set1_ps)(j->factor);
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * strip_bytes(form);
        float(*to)[STRIP] = &j->w[strip][k];
        for (int64_t line = 0; line < RECORD / 8; line++) {
            const int64_t set = j->p.sets == 2 && line >= RECORD / 8 / HALVES ? 1 : 0;
            UNROLL
            for (int64_t i = 0; i < 8; i++) {
                UNROLL
                for (int64_t v = 0; v < VECTORS; v++) {
                    vecf w = weight_of(form, from + v * vector_bytes(form), i);
                    if (late) {
                        const float *zero = &j->late_zero[set][strip * STRIP + v * LANES];
                        w = V(sub_ps)(w, V(load_ps)(zero));
                    }
                    V(store_ps)(&to[8 * line + i][v * LANES], times ? V(mul_ps)(w, factor) : w);
                }
            }
            from += eight_bytes(form);
        }
    }
}

// ---- 4-bit codes by tables ---------------------------------------------------------------------

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
    for (int64_t strip = j->first; strip < j->last; strip++) {
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
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD / 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        for (int64_t i = 0; i < VECTORS * RECORD / 8; i++) { // a vector of eight k each
            const int64_t line = i / VECTORS;
            const int64_t set = j->p.sets == 2 && line >= RECORD / 8 / HALVES ? 1 : 0;
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

// Bytes of the bf16 that a 4-bit code is in `form`, less the zero point that all of them have.
static void make_tables(job *j, int32_t zero)
{
    _Alignas(16) uint8_t low[16];
    _Alignas(16) uint8_t high[16];
    for (uint8_t code = 0; code < 16; code++) {
        const bool e2m1 = j->elem == MOE_E2M1;
        const float value = e2m1 ? moei_e2m1_to_f32(code) : (float)(code - zero);
        const uint16_t bits = moei_f32_to_bf16(value * (e2m1 ? 0x1p25f : 0x1p24f));
        low[code] = (uint8_t)bits;
        high[code] = (uint8_t)(bits >> 8);
    }
    j->code_low = veci_all(_mm_load_si128((const __m128i *)(const void *)low));
    j->code_high = veci_all(_mm_load_si128((const __m128i *)(const void *)high));
}

// A record to floats at k .. of the slice.
static void decode(job *j, const uint8_t *record, int64_t k)
{
    const bool times = !j->x_scaled;
    if (j->form == NIBBLES && !times) {
        if (j->has_zeros) {
            decode_nibbles(j, true, record, k);
        } else {
            decode_nibbles(j, false, record, k);
        }
        return;
    }
    const uint8_t *formed = stage(j, record, j->staged + BEFORE);
    switch (j->form) {
    case PAIRS:
        decode_form(j, PAIRS, false, false, formed, k);
        break;
    case HALVES_OF_K:
        decode_form(j, HALVES_OF_K, false, times, formed, k);
        break;
    case BYTES:
        decode_form(j, BYTES, j->late, times, formed, k);
        break;
    default:
        decode_form(j, NIBBLES, j->late, true, formed, k);
        break;
    }
}

#endif
