// SPDX-License-Identifier: Apache-2.0
// The forms of a record (64 outputs x 32 k) of packed weights, from which a few operations make
// floats, a vector of outputs of one k at a time:
//
//   floats   of one k side by side                                     k in the order of rows
//   pairs    two bf16 of a lane: shift, or mask                         bf16
//   halves   f16 of one k side by side: convert                         f16; 8-bit floats, staged
//   codes8   AVX-512: two codes of a word: to a lane, shift, mask       e4m3 for one tile of rows
//   bytes    four signed bytes of a lane: one to the top, convert       int8; uint8, staged
//   nibbles  AVX-512: eight codes of a lane: shift, permute 16 floats   4 bits
//            AVX2: bytes in another order of k                          4 bits, staged
//
// Bytes and nibbles also less zero points, where the form does not have them: one operation more.
//
// Staged: a record is rewritten in that form, 2 or 4 KiB of L1. A byte at the top of a word is 2^24
// times its value, e4m3 is 2^-8 of its own in f16 and 2^-120 in f32; so x is multiplied by the
// inverse where it is loaded. A power of two changes no product, and no bit of a sum, as long as x
// times it is exact; where one x is not (it would be subnormal), weights are multiplied instead.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_FORMS_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_FORMS_H

#include "backends/cpu/avx/ggemm_any_packed_nibbles.h"

#define BYTE_ZEROS 128 // the largest zero point that leaves a code in a byte

// Many rows take 4-bit codes as what they are, through tables, so their x is not multiplied.
static void choose_form(job *j, int64_t rows)
{
    const bool four_bits = j->elem == MOE_E2M1 || j->elem == MOE_UINT4;
    j->lies =
        j->elem == MOE_BF16 || j->elem == MOE_F16 || j->elem == MOE_I8 || (PERMUTES && four_bits);
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
        choose_e4m3(j, false); // as far as x does not say otherwise: prepare
        break;
    case MOE_I8:
    case MOE_U8:
        j->form = BYTES;
        j->factor = 0x1p-24f;
        break;
    default:
        j->form = NIBBLES;
        j->factor = PERMUTES || rows > TILE ? 1.0f : j->elem == MOE_E2M1 ? 0x1p-25f : 0x1p-24f;
        break;
    }
}

// The form of the next record.
static code_form form_of(const job *j)
{
    if (!j->late) {
        return j->form;
    }
    return j->form == BYTES ? BYTES_LESS : NIBBLES_LESS;
}

// ---- floats of a form --------------------------------------------------------------------------

// Of a strip: eight k.
__attribute__((always_inline)) static inline int64_t eight_bytes(code_form form)
{
    switch (form) {
    case FLOATS:
        return 8 * STRIP * (int64_t)sizeof(float);
    case PAIRS:
    case HALVES_OF_K:
        return 8 * STRIP * 2;
    case NIBBLES:
    case NIBBLES_LESS:
        return PERMUTES ? 8 * STRIP / 2 : 8 * STRIP;
    default:
        return 8 * STRIP;
    }
}

// Of a strip: one of its vectors.
__attribute__((always_inline)) static inline int64_t vector_bytes(code_form form)
{
    return form == HALVES_OF_K || form == CODES8 ? VECTOR / 2 : VECTOR;
}

// Of what holds all strips, from one to the next.
__attribute__((always_inline)) static inline int64_t strip_bytes(code_form form)
{
    return (form == FLOATS ? SLICE : RECORD) / 8 * eight_bytes(form);
}

__attribute__((always_inline)) static inline bool is_less_zeros(code_form form)
{
    return form == BYTES_LESS || form == NIBBLES_LESS;
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

// The 4-bit code of element k of eight, which packed.h has in nibble j for k = 2 j, in nibble j + 4
// for k = 2 j + 1. Bytes: low nibbles became one unit of them, high ones the next.
__attribute__((always_inline)) static inline vecf nibble_of(const uint8_t *from, int64_t k,
                                                            vecf values)
{
#if PERMUTES
    const int by = 4 * (int)(k / 2 + k % 2 * 4);
    return _mm512_permutexvar_ps(shift_right(veci_load(from), by), values);
#else
    (void)values;
    return byte_of(from + k / 2 % 2 * STRIP * 4, k % 2 * 2 + k / 4, true);
#endif
}

// e4m3 of element k of eight, times 2^-120: sign, exponent and fraction where a float has them. A
// NaN becomes 480.
__attribute__((always_inline)) static inline vecf code8_of(const uint8_t *from, int64_t k)
{
    const veci two = V(cvtepi16_epi32)(halfi_load(from + k / 2 * STRIP * 2));
    const veci placed = k % 2 == 0 ? V(srai_epi32)(V(slli_epi32)(two, 24), 4)
                                   : V(slli_epi32)(two, 12); // its sign stands above it
    return as_floats(veci_and(placed, V(set1_epi32)((int)0x87F00000u)));
}

// The same where one may be NaN, to which one more carries out of the exponent.
static inline vecf code8_or_nan(const uint8_t *from, int64_t k)
{
    const veci bits = as_ints(code8_of(from, k));
    const veci carry = V(add_epi32)(V(slli_epi32)(bits, 4), V(set1_epi32)(0x01000000));
    const veci nan = veci_and(V(srai_epi32)(carry, 31), V(set1_epi32)(0x7FC00000));
    return as_floats(veci_or(bits, nan));
}

// Codes that are NaN, to which one more carries into the sign: in the top bits of `seen`.
__attribute__((always_inline)) static inline veci see_nan(veci seen, const uint8_t *codes)
{
    const veci v = veci_load(codes);
    return veci_or_xor(seen, v, V(add_epi8)(v, V(set1_epi8)(1)));
}

// A vector of a strip, at element k of eight whose form begins at `from`. values: of 4-bit codes.
__attribute__((always_inline)) static inline vecf weight_of(code_form form, const uint8_t *from,
                                                            int64_t k, vecf values)
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
    case CODES8:
        return code8_of(from, k);
    case BYTES:
    case BYTES_LESS:
        return byte_of(from + k / 4 * unit, k % 4, false);
    default:
        return nibble_of(from, k, values);
    }
}

// ---- staging -----------------------------------------------------------------------------------

// Unsigned bytes to signed ones, less 128. Staged bytes of one k lie as 4-bit codes' do.
static void stage_u8(const job *j, const uint8_t *record, uint8_t *to)
{
    const veci top = V(set1_epi8)((char)0x80);
    const int64_t bytes = STRIP * RECORD;
    for (int64_t b = j->p.first * bytes; b < j->p.last * bytes; b += VECTOR) {
        veci_store(to + b, veci_xor(veci_load(record + b), top));
    }
}

// Even k and odd k of two, or of four, from units of two.
static inline void store_units(uint8_t *to, veci even, veci odd)
{
#if LANES == 16
    veci_store(to, _mm512_shuffle_i64x2(even, odd, 0x44)); // low halves
    veci_store(to + VECTOR, _mm512_shuffle_i64x2(even, odd, 0xEE));
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
    for (int64_t strip = j->p.first; strip < j->p.last; strip++) {
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
    if (j->lies) {
        if (j->rows > TILE && j->next_bytes == 0) { // one tile asks for itself, others for `next`
            const int64_t bytes = STRIP * j->p.packed.record;
            moei_cpu_ask_ahead(record + j->p.first * bytes, (j->p.last - j->p.first) * bytes);
        }
        return record;
    }
    switch (j->elem) {
    case MOE_E2M1:
        stage_nibbles(j, true, record, to);
        break;
    case MOE_UINT4:
        stage_nibbles(j, false, record, to);
        break;
    case MOE_U8:
        stage_u8(j, record, to);
        break;
    case MOE_E4M3FN:
        if (!stage_floats(j, false, false, record, to)) {
            (void)stage_floats(j, false, true, record, to);
        }
        break;
    default:
        (void)stage_floats(j, true, true, record, to);
        break;
    }
    return to;
}

// The form of a record to floats at k .. k + RECORD - 1 of the slice. times: they are multiplied by
// what x was not.
__attribute__((always_inline)) static inline void
decode_form(job *j, code_form form, bool times, float by, const uint8_t *record, int64_t k)
{
    const vecf factor = V(set1_ps)(by);
    const vecf values = V(load_ps)(j->value);
    for (int64_t strip = j->p.first; strip < j->p.last; strip++) {
        const uint8_t *from = record + strip * strip_bytes(form);
        float(*to)[STRIP] = &j->w[strip][k];
        for (int64_t line = 0; line < RECORD / 8; line++) {
            const int64_t set = j->p.packed.sets == 2 && line >= RECORD / 8 / HALVES ? 1 : 0;
            UNROLL
            for (int64_t i = 0; i < 8; i++) {
                UNROLL
                for (int64_t v = 0; v < VECTORS; v++) {
                    vecf w = weight_of(form, from + v * vector_bytes(form), i, values);
                    if (is_less_zeros(form)) {
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

// A record to floats at k .. of the slice.
static void decode(job *j, const uint8_t *record, int64_t k)
{
    const bool times = !j->x_scaled;
    if (!PERMUTES && j->form == NIBBLES && !times) {
        if (j->has_zeros) {
            decode_nibbles(j, true, record, k);
        } else {
            decode_nibbles(j, false, record, k);
        }
        return;
    }
    if (j->form == CODES8) { // the end of K
        (void)stage_floats(j, false, true, record, j->staged + BEFORE);
        decode_form(j, HALVES_OF_K, true, HALF8_FACTOR / CODE8_FACTOR, j->staged + BEFORE, k);
        return;
    }
    const uint8_t *formed = stage(j, record, j->staged + BEFORE);
    switch (form_of(j)) {
    case PAIRS:
        decode_form(j, PAIRS, false, j->factor, formed, k);
        break;
    case HALVES_OF_K:
        decode_form(j, HALVES_OF_K, times, j->factor, formed, k);
        break;
    case BYTES:
        decode_form(j, BYTES, times, j->factor, formed, k);
        break;
    case BYTES_LESS:
        decode_form(j, BYTES_LESS, times, j->factor, formed, k);
        break;
    case NIBBLES:
        decode_form(j, NIBBLES, !PERMUTES, j->factor, formed, k);
        break;
    default:
        decode_form(j, NIBBLES_LESS, !PERMUTES, j->factor, formed, k);
        break;
    }
}

#endif
