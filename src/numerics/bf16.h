// SPDX-License-Identifier: Apache-2.0
// bfloat16: the upper half of an IEEE 754 binary32.
//
//   bit   15 | 14 ... 7 | 6 ... 0
//       sign | exponent | fraction       bias 127, subnormals, infinities and NaN as in binary32
//
// Source: Intel, BFLOAT16 - Hardware Numerics Definition (2018), section 2; the rounding here keeps
// subnormals, as PyTorch and ml_dtypes do.
#ifndef MOEI_NUMERICS_BF16_H
#define MOEI_NUMERICS_BF16_H

#include "numerics/hd.h"

/// The float of the same value. Exact; NaN keeps sign and payload, a signalling NaN stays one.
MOE_HD float moei_bf16_to_f32(uint16_t h)
{
    return moei_f32_from_bits((uint32_t)h << 16);
}

/// Round to nearest, ties to even. Beyond the range: infinity. Subnormals are rounded like other
/// values. NaN gives 0x7FC0 or 0xFFC0: quiet, sign kept, payload dropped (as ml_dtypes; PyTorch
/// gives 0x7FC0 or 0xFFFF, depending on the code path).
MOE_HD uint16_t moei_f32_to_bf16(float x)
{
    uint32_t u = moei_f32_bits(x);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return x == x ? h : (uint16_t)(((u >> 16) & 0x8000u) | 0x7FC0u);
#else
    uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    uint32_t nan = ((u >> 16) & 0x8000u) | 0x7FC0u;
    return (uint16_t)moei_select((int32_t)(u & 0x7FFFFFFFu) > 0x7F800000, nan, rounded);
#endif
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_BF16, bf16, 16, moei_bf16_to_f32)
#endif
