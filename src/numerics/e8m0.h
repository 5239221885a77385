// SPDX-License-Identifier: Apache-2.0
// E8M0, the scale format of the MX formats, and powers of two in f32.
//
//   bit 7 ... 0: exponent, bias 127. Value 2^(code - 127), from 2^-127 (code 0) to 2^127 (code
//   254); code 255 is NaN. No sign, no zero, no infinity.
//
// Source: OCP Microscaling Formats (MX) 1.0, section 5.4.1.
#ifndef MOEI_NUMERICS_E8M0_H
#define MOEI_NUMERICS_E8M0_H

#include "numerics/hd.h"

/// Exact. Code 0 is 2^-127, an f32 subnormal; code 255 gives the quiet NaN 0x7FC00000.
MOE_HD float moei_e8m0_to_f32(uint8_t c)
{
    uint32_t bits = (uint32_t)c << 23;
    bits = moei_select(c == 0u, 0x00400000u, bits);
    bits = moei_select(c == 255u, 0x7FC00000u, bits);
    return moei_f32_from_bits(bits);
}

/// Exponent of |x|, plus one where the fraction is at least one half (PyTorch's rule: 1.5 * 2^e
/// goes up): 2^(code - 127) is within a factor of 1.5 of |x| in the range. Zero and what is at most
/// 2^-127 give 0; other subnormals 1. From 1.5 * 2^127 on, and for infinity and NaN: 255. The sign
/// is ignored.
MOE_HD uint8_t moei_f32_to_e8m0(float x)
{
    uint32_t abs_bits = moei_f32_bits(x) & 0x7FFFFFFFu;
    uint32_t normal = (abs_bits + 0x00400000u) >> 23;
    uint32_t subnormal = (uint32_t)((int32_t)abs_bits > 0x00400000);
    uint32_t code = moei_select((int32_t)abs_bits < 0x00800000, subnormal, normal);
    return (uint8_t)moei_select((int32_t)abs_bits >= 0x7F800000, 255u, code);
}

/// 2^e, exact for -149 <= e <= 127; 0 below and infinity above.
MOE_HD float moei_pow2i(int e)
{
    int n = e < -150 ? -150 : (e > 128 ? 128 : e);
    // Below 2^-126 the value is one fraction bit; shifting by 31 or less, whatever n is.
    uint32_t subnormal = (0x00800000u >> ((uint32_t)(-126 - n) & 31u));
    return moei_f32_from_bits(n < -126 ? subnormal : (uint32_t)(n + 127) << 23);
}

/// The smallest power of two that is not below |s|: the bits of |s|, + 0x7FFFFF, & 0x7F800000.
/// A power of two is itself and 0 gives 0; a subnormal that is not 0 gives 2^-126, also where it is
/// a power of two; above 2^127 and for infinity: infinity. NaN gives the quiet NaN 0x7FC00000 (the
/// bare bit rule would give 0, and hide it).
MOE_HD float moei_pow2_up(float s)
{
    uint32_t abs_bits = moei_f32_bits(s) & 0x7FFFFFFFu;
    uint32_t up = (abs_bits + 0x007FFFFFu) & 0x7F800000u;
    return moei_f32_from_bits(moei_select((int32_t)abs_bits > 0x7F800000, 0x7FC00000u, up));
}

/// The exponent field of x, 0 (zero and subnormals) to 255 (infinity and NaN). As an E8M0 code this
/// is |x| rounded down to a power of two, for normal x.
MOE_HD uint8_t moei_f32_exponent_byte(float x)
{
    return (uint8_t)((moei_f32_bits(x) >> 23) & 0xFFu);
}

/// floor(log2 |x|), subnormals included: -149 to 127. Zero gives -150; infinity and NaN give 128.
MOE_HD int moei_f32_exponent(float x)
{
    uint32_t abs_bits = moei_f32_bits(x) & 0x7FFFFFFFu;
    // A subnormal is its fraction times 2^-149; as an integer it converts exactly.
    uint32_t fraction_bits = moei_f32_bits((float)(int32_t)(abs_bits & 0x007FFFFFu));
    uint32_t subnormal = moei_select(abs_bits == 0u, 126u, fraction_bits >> 23);
    uint32_t normal = (abs_bits >> 23) + 149u;
    return (int)moei_select((int32_t)abs_bits < 0x00800000, subnormal, normal) - 127 - 149;
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_E8M0, e8m0, 8, moei_e8m0_to_f32)
#endif
