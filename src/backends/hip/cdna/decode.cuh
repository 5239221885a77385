// SPDX-License-Identifier: Apache-2.0
// Codes of packed weights (packed.h) to bf16, exactly: the eight neighbouring k of an output that a
// lane holds for 32 k. Where an architecture has an instruction for it, by that; else, and on the
// host, by a multiplication of what the code's bits are in another place.
#ifndef MOEI_HIP_DECODE_H
#define MOEI_HIP_DECODE_H

#include "backends/hip/cdna/instructions.h"
#include "backends/hip/packed.h"
#include "numerics/fp8.h"

/// Two floats that are bf16 as a pair, the first in the low half.
DEV_FN uint32_t moei_hip_pair(float low, float high)
{
    return moei_f32_bits(low) >> 16 | (moei_f32_bits(high) & 0xFFFF0000u);
}

/// Bytes of codes of a lane for 32 k.
template <int CODE> struct moei_hip_code_of {
    static constexpr bool E2M1 = CODE == MOEI_HIP_CODE_MXFP4 || CODE == MOEI_HIP_CODE_NVFP4;
    static constexpr int WORDS = CODE == MOEI_HIP_CODE_BF16         ? 4
                                 : E2M1 || CODE == MOEI_HIP_CODE_U4 ? 1
                                                                    : 2;
};

// Codes 2 I and 2 I + 1 of a word times scale.
template <int CODE, int I> DEV_FN uint32_t moei_hip_e2m1_pair(uint32_t word, float scale)
{
#if defined(__gfx950__)
    if constexpr (CODE == MOEI_HIP_CODE_MXFP4) { // of the scale the instruction has the exponent
        typedef __bf16 pair __attribute__((ext_vector_type(2)));
        const pair v = __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, scale, I);
        return __builtin_bit_cast(uint32_t, v);
    }
    typedef float two __attribute__((ext_vector_type(2)));
    const two v = __builtin_amdgcn_cvt_scalef32_pk_f32_fp4(word, 1.0f, I);
    return moei_hip_pair(v[0] * scale, v[1] * scale);
#else
    float v[2];
    MOEI_GPU_UNROLL
    for (int h = 0; h < 2; h++) {
        const int at = 8 * I + 4 * h;
        // Sign, exponent and fraction in their places: a float that is 2^126 too small.
        const uint32_t sign = (at <= 28 ? word << (28 - at) : word >> (at - 28)) & 0x80000000u;
        const uint32_t rest = (at <= 22 ? word << (22 - at) : word >> (at - 22)) & 0x01C00000u;
        v[h] = moei_f32_from_bits(sign | rest) * 0x1p126f * scale;
    }
    return moei_hip_pair(v[0], v[1]);
#endif
}

/// Codes of 8 bits that are floats.
template <int CODE> DEV_FN float moei_hip_f8(uint32_t byte)
{
    return CODE == MOEI_HIP_CODE_E4M3       ? moei_e4m3fn_to_f32((uint8_t)byte)
           : CODE == MOEI_HIP_CODE_E4M3FNUZ ? moei_e4m3fnuz_to_f32((uint8_t)byte)
                                            : moei_e5m2_to_f32((uint8_t)byte);
}

// Codes 2 I and 2 I + 1 of a word times scale.
template <int CODE, int I> DEV_FN uint32_t moei_hip_f8_pair(uint32_t word, float scale)
{
#if defined(__gfx950__)
    typedef __bf16 pair __attribute__((ext_vector_type(2)));
    if constexpr (CODE == MOEI_HIP_CODE_E4M3) {
        const pair v = __builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(word, scale, I != 0);
        return __builtin_bit_cast(uint32_t, v);
    } else if constexpr (CODE == MOEI_HIP_CODE_E5M2) {
        const pair v = __builtin_amdgcn_cvt_scalef32_pk_bf16_bf8(word, scale, I != 0);
        return __builtin_bit_cast(uint32_t, v);
    }
#elif defined(__gfx942__)
    if constexpr (CODE == MOEI_HIP_CODE_E4M3FNUZ) { // never scaled
        typedef float two __attribute__((ext_vector_type(2)));
        const two v = __builtin_amdgcn_cvt_pk_f32_fp8((int)word, I != 0);
        return moei_hip_pair(v[0], v[1]);
    }
#endif
    return moei_hip_pair(moei_hip_f8<CODE>(word >> 16 * I & 0xFF) * scale,
                         moei_hip_f8<CODE>(word >> (16 * I + 8) & 0xFF) * scale);
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
        v[0] = moei_hip_e2m1_pair<CODE, 0>(words[0], scale);
        v[1] = moei_hip_e2m1_pair<CODE, 1>(words[0], scale);
        v[2] = moei_hip_e2m1_pair<CODE, 2>(words[0], scale);
        v[3] = moei_hip_e2m1_pair<CODE, 3>(words[0], scale);
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
        v[0] = moei_hip_f8_pair<CODE, 0>(words[0], scale);
        v[1] = moei_hip_f8_pair<CODE, 1>(words[0], scale);
        v[2] = moei_hip_f8_pair<CODE, 0>(words[1], scale);
        v[3] = moei_hip_f8_pair<CODE, 1>(words[1], scale);
    }
    return v;
}

#endif
