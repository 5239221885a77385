// SPDX-License-Identifier: Apache-2.0
// Codes of packed weights (packed.h) to bf16, exactly: the eight neighbouring k of an output that a
// lane holds for 32 k. Where an architecture has an instruction for it, by that; else by a table of
// bytes (e2m1) or by numerics/.
#ifndef MOEI_HIP_DECODE_H
#define MOEI_HIP_DECODE_H

#include "backends/hip/cdna/instructions.h"
#include "backends/hip/packed.h"
#include "numerics/fp8.h"

/// Two floats that are bf16 as a pair, the first in the low half.
DEV_FN uint32_t moei_hip_pair(float low, float high)
{
    return moei_perm(moei_f32_bits(high), moei_f32_bits(low), 0x07060302u);
}

/// Bytes of codes of a lane for 32 k.
template <int CODE> struct moei_hip_code_of {
    static constexpr bool E2M1 = CODE == MOEI_HIP_CODE_MXFP4 || CODE == MOEI_HIP_CODE_NVFP4;
    static constexpr int WORDS = CODE == MOEI_HIP_CODE_BF16         ? 4
                                 : E2M1 || CODE == MOEI_HIP_CODE_U4 ? 1
                                                                    : 2;
};

/// Eight codes of a word times scale.
template <int CODE> DEV_FN moei_u32x4 moei_hip_e2m1(uint32_t word, float scale)
{
    moei_u32x4 v;
#if defined(__gfx950__)
    if constexpr (CODE == MOEI_HIP_CODE_MXFP4) { // of the scale the instruction has the exponent
        v[0] = moei_cvt_e2m1_bf16<0>(word, scale);
        v[1] = moei_cvt_e2m1_bf16<1>(word, scale);
        v[2] = moei_cvt_e2m1_bf16<2>(word, scale);
        v[3] = moei_cvt_e2m1_bf16<3>(word, scale);
        return v;
    }
#endif
    // Bytes of the upper half of a float by the code's magnitude, signs beside them; codes with
    // even numbers, then those with odd.
    const uint32_t even = word & 0x07070707u;
    const uint32_t odd = word >> 4 & 0x07070707u;
    const uint32_t high[2] = {moei_perm(0x40404040u, 0x3F3F3F00u, even) | (word & 0x08080808u) << 4,
                              moei_perm(0x40404040u, 0x3F3F3F00u, odd) | (word & 0x80808080u)};
    const uint32_t low[2] = {moei_perm(0xC0804000u, 0xC0800000u, even),
                             moei_perm(0xC0804000u, 0xC0800000u, odd)};
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t bytes = (i + 4) << 24 | i << 16 | MOEI_PERM_ZERO << 8 | MOEI_PERM_ZERO;
        v[i] = moei_hip_pair(moei_f32_from_bits(moei_perm(high[0], low[0], bytes)) * scale,
                             moei_f32_from_bits(moei_perm(high[1], low[1], bytes)) * scale);
    }
    return v;
}

/// Codes of 8 bits that are floats.
template <int CODE> DEV_FN float moei_hip_f8(uint32_t byte)
{
    if constexpr (CODE == MOEI_HIP_CODE_E4M3) {
        return moei_e4m3fn_to_f32((uint8_t)byte);
    } else if constexpr (CODE == MOEI_HIP_CODE_E4M3FNUZ) {
        return moei_e4m3fnuz_to_f32((uint8_t)byte);
    } else {
        return moei_e5m2_to_f32((uint8_t)byte);
    }
}

/// Codes of e4m3fn as the codes of e4m3fnuz that are half of them: what those have as NaN is here a
/// zero, and what is NaN here they have nowhere else.
DEV_FN uint32_t moei_hip_fnuz_of(uint32_t codes)
{
    const uint32_t magnitude = codes & 0x7F7F7F7Fu;
    const uint32_t nonzero = magnitude + 0x7F7F7F7Fu;             // bit 7 of a byte
    const uint32_t nan = (magnitude + 0x01010101u) & 0x80808080u; // likewise
    const uint32_t mask = (nan - (nan >> 7)) | nan;               // all of such a byte
    return (((codes & nonzero & 0x80808080u) | magnitude) & ~mask) | nan;
}

/// Four codes of a word times scale.
template <int CODE> DEV_FN void moei_hip_f8(uint32_t word, float scale, uint32_t pairs[2])
{
#if defined(__gfx950__)
    if constexpr (CODE != MOEI_HIP_CODE_E4M3FNUZ) {
        pairs[0] = moei_cvt_f8_bf16<CODE == MOEI_HIP_CODE_E5M2, false>(word, scale);
        pairs[1] = moei_cvt_f8_bf16<CODE == MOEI_HIP_CODE_E5M2, true>(word, scale);
        return;
    }
#elif defined(__gfx942__)
    if constexpr (CODE != MOEI_HIP_CODE_E5M2) {
        const bool ocp = CODE == MOEI_HIP_CODE_E4M3;
        const uint32_t codes = ocp ? moei_hip_fnuz_of(word) : word;
        const float by = ocp ? 2.0f * scale : scale;
        const moei_f32x2 low = moei_cvt_fnuz_f32<false>(codes);
        const moei_f32x2 high = moei_cvt_fnuz_f32<true>(codes);
        pairs[0] = moei_hip_pair(low[0] * by, low[1] * by);
        pairs[1] = moei_hip_pair(high[0] * by, high[1] * by);
        return;
    }
#endif
    MOEI_GPU_UNROLL
    for (int i = 0; i < 2; i++) {
        pairs[i] = moei_hip_pair(moei_hip_f8<CODE>(word >> 16 * i & 0xFF) * scale,
                                 moei_hip_f8<CODE>(word >> (16 * i + 8) & 0xFF) * scale);
    }
}

/// scale: of formats that have it in the codes' units, else 1. zero: the zero point of U4 and U8.
template <int CODE>
DEV_FN moei_u32x4 moei_hip_decode(const uint32_t (&words)[moei_hip_code_of<CODE>::WORDS],
                                  float scale, float zero)
{
    moei_u32x4 v;
    if constexpr (CODE == MOEI_HIP_CODE_BF16) {
        v[0] = words[0];
        v[1] = words[1];
        v[2] = words[2];
        v[3] = words[3];
    } else if constexpr (moei_hip_code_of<CODE>::E2M1) {
        v = moei_hip_e2m1<CODE>(words[0], scale);
    } else if constexpr (CODE == MOEI_HIP_CODE_U4) {
        const uint32_t even = words[0] & 0x0F0F0F0Fu;
        const uint32_t odd = words[0] >> 4 & 0x0F0F0F0Fu;
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            v[i] = moei_hip_pair((float)(even >> 8 * i & 0xFF) - zero,
                                 (float)(odd >> 8 * i & 0xFF) - zero);
        }
    } else if constexpr (CODE == MOEI_HIP_CODE_U8) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint32_t two = words[i / 2] >> 16 * (i % 2);
            v[i] = moei_hip_pair((float)(two & 0xFF) - zero, (float)(two >> 8 & 0xFF) - zero);
        }
    } else {
        uint32_t pairs[4];
        moei_hip_f8<CODE>(words[0], scale, pairs);
        moei_hip_f8<CODE>(words[1], scale, pairs + 2);
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            v[i] = pairs[i];
        }
    }
    return v;
}

#endif
