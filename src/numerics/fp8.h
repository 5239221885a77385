// SPDX-License-Identifier: Apache-2.0
// The four 8-bit float formats of public checkpoints and accelerators.
//
//              bit 7 | exponent | fraction | bias | largest | smallest | inf       | NaN
//   e4m3fn     sign  |  6 ... 3 |  2 ... 0 |    7 |     448 | 2^-9     | none      | 7F FF
//   e5m2       sign  |  6 ... 2 |  1 ... 0 |   15 |   57344 | 2^-16    | 7C FC     | 7D..7F FD..FF
//   e4m3fnuz   sign  |  6 ... 3 |  2 ... 0 |    8 |     240 | 2^-10    | none      | 80
//   e5m2fnuz   sign  |  6 ... 2 |  1 ... 0 |   16 |   57344 | 2^-17    | none      | 80
//
// The fnuz formats have no negative zero: what rounds to zero is 00.
// Source: OCP 8-bit Floating Point Specification (OFP8) 1.0, section 5 (E4M3 and E5M2); the fnuz
// formats as in AMD's CDNA 3 instruction set and Noune et al., 8-bit Numerical Formats for Deep
// Neural Networks, arXiv:2206.02915.
#ifndef MOEI_NUMERICS_FP8_H
#define MOEI_NUMERICS_FP8_H

#include "numerics/hd.h"

#define MOEI_E4M3FN_MAX         448.0f
#define MOEI_E4M3FNUZ_MAX       240.0f
#define MOEI_E4M3FNUZ_QUANT_MAX 224.0f // what quantisers aim at on gfx942 instead of 240
#define MOEI_E5M2_MAX           57344.0f
#define MOEI_E5M2FNUZ_MAX       57344.0f

/// Shared by the fnuz encoders: sign and code joined, no negative zero, 80 for NaN and, unless
/// saturating, beyond the largest code 7F.
MOE_HD uint8_t moei_fnuz_join(uint32_t bits, uint32_t code, moei_overflow overflow)
{
    uint32_t sign = (bits >> 24) & 0x80u;
    uint32_t beyond = overflow == MOEI_OVERFLOW_SATURATE ? sign | 0x7Fu : 0x80u;
    uint32_t r = moei_select(code == 0u, 0u, sign | code);
    r = moei_select((int32_t)code > 0x7F, beyond, r);
    return (uint8_t)moei_select((int32_t)(bits & 0x7FFFFFFFu) > 0x7F800000, 0x80u, r);
}

/// Exact. NaN codes give the quiet NaN 0x7FC00000 with the sign of the code.
MOE_HD float moei_e4m3fn_to_f32(uint8_t c)
{
    uint32_t code = (uint32_t)c & 0x7Fu;
    uint32_t value = moei_f32_bits(moei_small_to_abs(code, 3, 7));
    value = moei_select(code == 0x7Fu, 0x7FC00000u, value);
    return moei_f32_from_bits((((uint32_t)c & 0x80u) << 24) | value);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
/// moei_f32_to_e4m3fn, saturating, by the device's instruction.
MOE_HD uint8_t moei_e4m3fn_satfinite(float x)
{
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return (uint8_t)(x == x ? (uint32_t)pair : ((moei_f32_bits(x) >> 24) & 0x80u) | 0x7Fu);
}
#endif

/// Round to nearest, ties to even; beyond 464 (the tie 464 itself gives 448) as `overflow` says.
/// Infinity counts as beyond the range. NaN gives 7F or FF, keeping the sign.
MOE_HD uint8_t moei_f32_to_e4m3fn(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    uint32_t abs_bits = u & 0x7FFFFFFFu;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    if (overflow == MOEI_OVERFLOW_SATURATE) {
        return moei_e4m3fn_satfinite(x);
    }
#endif
    uint32_t code = moei_small_from_abs(abs_bits, 3, 7);
    uint32_t beyond = overflow == MOEI_OVERFLOW_SATURATE ? 0x7Eu : 0x7Fu;
    code = moei_select((int32_t)code > 0x7E, beyond, code);
    code = moei_select((int32_t)abs_bits > 0x7F800000, 0x7Fu, code);
    return (uint8_t)(((u >> 24) & 0x80u) | code);
}

/// moei_f32_to_e4m3fn, saturating, of four values without NaN: a word, the first in its low byte.
MOE_HD uint32_t moei_f32_to_e4m3fn_x4(float x0, float x1, float x2, float x3)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t low;
    uint16_t high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x1), "f"(x0));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x3), "f"(x2));
    return low | (uint32_t)high << 16;
#else
    return moei_f32_to_e4m3fn(x0, MOEI_OVERFLOW_SATURATE) |
           (uint32_t)moei_f32_to_e4m3fn(x1, MOEI_OVERFLOW_SATURATE) << 8 |
           (uint32_t)moei_f32_to_e4m3fn(x2, MOEI_OVERFLOW_SATURATE) << 16 |
           (uint32_t)moei_f32_to_e4m3fn(x3, MOEI_OVERFLOW_SATURATE) << 24;
#endif
}

/// Exact. NaN codes give the quiet NaN 0x7FC00000 with the sign of the code, whatever the fraction.
MOE_HD float moei_e5m2_to_f32(uint8_t c)
{
    uint32_t code = (uint32_t)c & 0x7Fu;
    uint32_t value = moei_f32_bits(moei_small_to_abs(code, 2, 15));
    value = moei_select(code == 0x7Cu, 0x7F800000u, value);
    value = moei_select(code > 0x7Cu, 0x7FC00000u, value);
    return moei_f32_from_bits((((uint32_t)c & 0x80u) << 24) | value);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
/// moei_f32_to_e5m2, saturating, by the device's instruction.
MOE_HD uint8_t moei_e5m2_satfinite(float x)
{
    uint16_t pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return (uint8_t)(x == x ? (uint32_t)pair : ((moei_f32_bits(x) >> 24) & 0x80u) | 0x7Fu);
}
#endif

/// Round to nearest, ties to even; from 61440 on as `overflow` says (infinity 7C or 57344).
/// Infinity counts as beyond the range. NaN gives 7F or FF, keeping the sign (as PyTorch).
MOE_HD uint8_t moei_f32_to_e5m2(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    uint32_t abs_bits = u & 0x7FFFFFFFu;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    if (overflow == MOEI_OVERFLOW_SATURATE) {
        return moei_e5m2_satfinite(x);
    }
#endif
    uint32_t code = moei_small_from_abs(abs_bits, 2, 15);
    uint32_t beyond = overflow == MOEI_OVERFLOW_SATURATE ? 0x7Bu : 0x7Cu;
    code = moei_select((int32_t)code > 0x7B, beyond, code);
    code = moei_select((int32_t)abs_bits > 0x7F800000, 0x7Fu, code);
    return (uint8_t)(((u >> 24) & 0x80u) | code);
}

/// Exact. Code 80 gives the quiet NaN 0xFFC00000: its sign bit is set, as ml_dtypes and PyTorch
/// have it.
MOE_HD float moei_e4m3fnuz_to_f32(uint8_t c)
{
    uint32_t code = (uint32_t)c & 0x7Fu;
    uint32_t value = moei_f32_bits(moei_small_to_abs(code, 3, 8));
    value = moei_select(c == 0x80u, 0x7FC00000u, value);
    return moei_f32_from_bits((((uint32_t)c & 0x80u) << 24) | value);
}

/// Round to nearest, ties to even; from 248 on as `overflow` says (NaN 80 or 240). Infinity counts
/// as beyond the range. What rounds to zero is 00; NaN gives 80.
MOE_HD uint8_t moei_f32_to_e4m3fnuz(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    return moei_fnuz_join(u, moei_small_from_abs(u & 0x7FFFFFFFu, 3, 8), overflow);
}

/// Exact. Code 80 gives the quiet NaN 0xFFC00000: its sign bit is set, as ml_dtypes and PyTorch
/// have it.
MOE_HD float moei_e5m2fnuz_to_f32(uint8_t c)
{
    uint32_t code = (uint32_t)c & 0x7Fu;
    uint32_t value = moei_f32_bits(moei_small_to_abs(code, 2, 16));
    value = moei_select(c == 0x80u, 0x7FC00000u, value);
    return moei_f32_from_bits((((uint32_t)c & 0x80u) << 24) | value);
}

/// Round to nearest, ties to even; from 61440 on as `overflow` says (NaN 80 or 57344). Infinity
/// counts as beyond the range. What rounds to zero is 00; NaN gives 80.
MOE_HD uint8_t moei_f32_to_e5m2fnuz(float x, moei_overflow overflow)
{
    uint32_t u = moei_f32_bits(x);
    return moei_fnuz_join(u, moei_small_from_abs(u & 0x7FFFFFFFu, 2, 16), overflow);
}

/// The e4m3fnuz code that means half the value of an e4m3fn code, so that a tensor converts exactly
/// when its scale doubles: the code itself, but 00 for 80 (negative zero). The two NaN codes 7F and
/// FF give 80, NaN in e4m3fnuz.
/// @param[out] is_nan  1 if `code` is NaN in e4m3fn, else 0; never NULL
MOE_HD uint8_t moei_e4m3fn_to_e4m3fnuz_code(uint8_t code, int *is_nan)
{
    int nan = (code & 0x7Fu) == 0x7Fu;
    *is_nan = nan;
    return (uint8_t)(nan ? 0x80u : code == 0x80u ? 0u : code);
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_E4M3FN, e4m3fn, 8, moei_e4m3fn_to_f32)
MOE_ELEMENT(MOE_E4M3FNUZ, e4m3fnuz, 8, moei_e4m3fnuz_to_f32)
MOE_ELEMENT(MOE_E5M2, e5m2, 8, moei_e5m2_to_f32)
MOE_ELEMENT(MOE_E5M2FNUZ, e5m2fnuz, 8, moei_e5m2fnuz_to_f32)
#endif
