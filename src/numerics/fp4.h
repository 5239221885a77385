// SPDX-License-Identifier: Apache-2.0
// E2M1, the 4-bit element format of MXFP4 and NVFP4.
//
//   bit 3 | 2 ... 1  | 0
//    sign | exponent | fraction      bias 1; codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6
//
// No infinity, no NaN; code 8 is -0. A code lies in the low nibble of a byte; the functions ignore
// the upper one and return it as zero. Packing: numerics/int4.h, moei_get_u4.
// Source: OCP Microscaling Formats (MX) 1.0, section 5.3.3.
#ifndef MOEI_NUMERICS_FP4_H
#define MOEI_NUMERICS_FP4_H

#include "numerics/hd.h"
#include "numerics/int4.h"

#define MOEI_E2M1_MAX 6.0f

/// Shared by the encoders: sign joined, 7 for NaN of either sign.
MOE_HD uint8_t moei_e2m1_join(uint32_t bits, uint32_t code)
{
    uint32_t r = ((bits >> 28) & 8u) | code;
    return (uint8_t)moei_select((int32_t)(bits & 0x7FFFFFFFu) > 0x7F800000, 7u, r);
}

/// Exact.
MOE_HD float moei_e2m1_to_f32(uint8_t c)
{
    uint32_t value = moei_f32_bits(moei_small_to_abs((uint32_t)c & 7u, 1, 1));
    return moei_f32_from_bits((((uint32_t)c & 8u) << 28) | value);
}

/// Round to nearest, ties to the even code: 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5 give 0, 1, 1, 2, 2,
/// 4, 4. Beyond the range and for infinity: 6 with the sign of x, whatever `overflow` says. The
/// sign of zero is kept. NaN gives 7, +6 (the format has no NaN; as NVIDIA's conversions): a
/// quantiser reports NaN in its scale.
MOE_HD uint8_t moei_f32_to_e2m1(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    uint32_t code = moei_small_from_abs(u & 0x7FFFFFFFu, 1, 1);
    (void)overflow;
    return moei_e2m1_join(u, moei_select((int32_t)code > 7, 7u, code));
}

/// Round to nearest, ties to the smaller magnitude: 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5 give 0,
/// 0.5, 1, 1.5, 2, 3, 4. Range, zero and NaN as moei_f32_to_e2m1: the sign stays on what rounds to
/// zero (code 8), and a quantiser that stores 0 instead says so itself.
MOE_HD uint8_t moei_f32_to_e2m1_half_down(float x)
{
    uint32_t u = moei_f32_bits(x);
    int32_t a = (int32_t)(u & 0x7FFFFFFFu);
    // The seven midpoints, as f32 bits.
    int32_t code = (a > 0x3E800000) + (a > 0x3F400000) + (a > 0x3FA00000) + (a > 0x3FE00000) +
                   (a > 0x40200000) + (a > 0x40600000) + (a > 0x40A00000);
    return moei_e2m1_join(u, (uint32_t)code);
}

/// Round to nearest, ties away from zero: 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5 give 0.5, 1, 1.5, 2,
/// 3, 4, 6. Range, zero and NaN as moei_f32_to_e2m1.
MOE_HD uint8_t moei_f32_to_e2m1_half_away(float x)
{
    uint32_t u = moei_f32_bits(x);
    int32_t a = (int32_t)(u & 0x7FFFFFFFu);
    int32_t code = (a >= 0x3E800000) + (a >= 0x3F400000) + (a >= 0x3FA00000) + (a >= 0x3FE00000) +
                   (a >= 0x40200000) + (a >= 0x40600000) + (a >= 0x40A00000);
    return moei_e2m1_join(u, (uint32_t)code);
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_E2M1, e2m1, 4, moei_e2m1_to_f32)
#endif
