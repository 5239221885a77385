// SPDX-License-Identifier: Apache-2.0
// IEEE 754 binary16.
//
//   bit   15 | 14 ... 10 | 9 ... 0
//       sign |  exponent | fraction      bias 15; largest 65504, smallest normal 2^-14, step 2^-24
//
// Source: IEEE 754-2019, section 3.6 (parameters) and 4.3.1 (rounding).
#ifndef MOEI_NUMERICS_F16_H
#define MOEI_NUMERICS_F16_H

#include "numerics/hd.h"

#define MOEI_F16_MAX 65504.0f

/// The float of the same value. Exact; NaN keeps sign and payload and becomes quiet (as F16C and
/// AArch64 do).
MOE_HD float moei_f16_to_f32(uint16_t h)
{
    uint32_t sign = ((uint32_t)h & 0x8000u) << 16;
    uint32_t code = (uint32_t)h & 0x7FFFu;
    uint32_t special = 0x7F800000u | (code << 13) | (code > 0x7C00u ? 0x00400000u : 0u);
#if defined(__CUDA_ARCH__)
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(h));
    return code > 0x7C00u ? moei_f32_from_bits(sign | special) : number;
#else
    uint32_t finite = moei_f32_bits(moei_small_to_abs(code, 10, 15));
    return moei_f32_from_bits(sign | moei_select(code < 0x7C00u, finite, special));
#endif
}

/// Round to nearest, ties to even, with subnormals. Beyond the range (from 65520): infinity. NaN
/// keeps its sign and the upper bits of its payload and becomes quiet (as F16C, AArch64, PyTorch).
MOE_HD uint16_t moei_f32_to_f16(float x)
{
    uint32_t u = moei_f32_bits(x);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t abs_bits = u & 0x7FFFFFFFu;
    uint32_t nan = 0x7E00u | ((abs_bits >> 13) & 0x3FFu);
#if defined(__CUDA_ARCH__)
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return x == x ? h : (uint16_t)(sign | nan);
#else
    uint32_t code = moei_small_from_abs(abs_bits, 10, 15);
    code = moei_select((int32_t)code > 0x7C00, 0x7C00u, code);
    code = moei_select((int32_t)abs_bits > 0x7F800000, nan, code);
    return (uint16_t)(sign | code);
#endif
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_F16, f16, 16, moei_f16_to_f32)
#endif
