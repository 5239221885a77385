// SPDX-License-Identifier: Apache-2.0
// The two 6-bit element formats of MXFP6 and their packing.
//
//            bit 5 | exponent | fraction | bias | largest | smallest
//   e2m3     sign  |  4 ... 3 |  2 ... 0 |    1 |     7.5 | 0.125
//   e3m2     sign  |  4 ... 2 |  1 ... 0 |    3 |      28 | 0.0625
//
// No infinity, no NaN. A code lies in the low 6 bits of a byte; the functions ignore the upper two
// and return them as zero. Packed: 4 codes in 3 bytes, element i at bits 6i..6i+5 of the
// little-endian bit string.
// Source: OCP Microscaling Formats (MX) 1.0, section 5.3.2.
#ifndef MOEI_NUMERICS_FP6_H
#define MOEI_NUMERICS_FP6_H

#include "numerics/hd.h"

#define MOEI_E2M3_MAX 7.5f
#define MOEI_E3M2_MAX 28.0f

/// Shared by the encoders: the largest code beyond the range, 1F for NaN of either sign.
MOE_HD uint8_t moei_fp6_join(uint32_t bits, uint32_t code)
{
    uint32_t r = ((bits >> 26) & 0x20u) | moei_select((int32_t)code > 0x1F, 0x1Fu, code);
    return (uint8_t)moei_select((int32_t)(bits & 0x7FFFFFFFu) > 0x7F800000, 0x1Fu, r);
}

/// Exact; code 20 is -0.
MOE_HD float moei_e2m3_to_f32(uint8_t c)
{
    uint32_t value = moei_f32_bits(moei_small_to_abs((uint32_t)c & 0x1Fu, 3, 1));
    return moei_f32_from_bits((((uint32_t)c & 0x20u) << 26) | value);
}

/// Round to nearest, ties to even. Beyond the range and for infinity: the largest value with the
/// sign of x, whatever `overflow` says. The sign of zero is kept. NaN gives 1F, +7.5 (the format
/// has no NaN; as NVIDIA's conversions): a quantiser reports NaN in its scale.
MOE_HD uint8_t moei_f32_to_e2m3(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    (void)overflow;
    return moei_fp6_join(u, moei_small_from_abs(u & 0x7FFFFFFFu, 3, 1));
}

/// Exact; code 20 is -0.
MOE_HD float moei_e3m2_to_f32(uint8_t c)
{
    uint32_t value = moei_f32_bits(moei_small_to_abs((uint32_t)c & 0x1Fu, 2, 3));
    return moei_f32_from_bits((((uint32_t)c & 0x20u) << 26) | value);
}

/// As moei_f32_to_e2m3; NaN gives 1F, +28.
MOE_HD uint8_t moei_f32_to_e3m2(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    (void)overflow;
    return moei_fp6_join(u, moei_small_from_abs(u & 0x7FFFFFFFu, 2, 3));
}

/// Code i of a packed array. Reads only the one or two bytes that hold it.
MOE_HD uint8_t moei_get_u6(const uint8_t *p, size_t i)
{
    const uint8_t *group = p + i / 4 * 3;
    unsigned bit = (unsigned)(i % 4) * 6u;
    unsigned shift = bit % 8u;
    unsigned word = group[bit / 8u];
    if (shift > 2u) {
        word |= (unsigned)group[bit / 8u + 1u] << 8;
    }
    return (uint8_t)((word >> shift) & 0x3Fu);
}

/// Sets code i of a packed array to the low 6 bits of `code`; other codes keep their bits.
MOE_HD void moei_set_u6(uint8_t *p, size_t i, uint8_t code)
{
    uint8_t *group = p + i / 4 * 3;
    unsigned bit = (unsigned)(i % 4) * 6u;
    unsigned shift = bit % 8u;
    unsigned mask = 0x3Fu << shift;
    unsigned value = ((unsigned)code & 0x3Fu) << shift;
    uint8_t *q = group + bit / 8u;
    q[0] = (uint8_t)((q[0] & ~mask) | value);
    if (shift > 2u) {
        q[1] = (uint8_t)((q[1] & ~(mask >> 8)) | (value >> 8));
    }
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_E2M3, e2m3, 6, moei_e2m3_to_f32)
MOE_ELEMENT(MOE_E3M2, e3m2, 6, moei_e3m2_to_f32)
#endif
