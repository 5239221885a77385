// SPDX-License-Identifier: Apache-2.0
// Floating point as the vector unit has it, one value at a time. Codecs are numerics/'s.
#ifndef MOE_EMULATOR_FLOATS_H
#define MOE_EMULATOR_FLOATS_H

#include <math.h>

#include "emulator/wave.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

EMU_INLINE bool emu_is_nan(uint32_t u)
{
    return (u & 0x7FFFFFFFu) > 0x7F800000u;
}

EMU_INLINE bool emu_is_signalling(uint32_t u)
{
    return emu_is_nan(u) && !(u & 0x00400000u);
}

/// IEEE mode: a signalling NaN comes out quiet; one NaN gives the other operand; -0 is below +0.
EMU_INLINE uint32_t emu_max_bits(uint32_t a, uint32_t b)
{
    const uint32_t ka = a & 0x80000000u ? ~a : a | 0x80000000u; // ascending with the value
    const uint32_t kb = b & 0x80000000u ? ~b : b | 0x80000000u;
    uint32_t r = ka >= kb ? a : b;
    r = emu_is_nan(b) ? a : r;
    r = emu_is_nan(a) ? b : r;
    r = emu_is_signalling(b) ? b | 0x00400000u : r;
    r = emu_is_signalling(a) ? a | 0x00400000u : r;
    return emu_is_nan(r) ? r | 0x00400000u : r;
}

EMU_INLINE uint32_t emu_min_bits(uint32_t a, uint32_t b)
{
    const uint32_t ka = a & 0x80000000u ? ~a : a | 0x80000000u;
    const uint32_t kb = b & 0x80000000u ? ~b : b | 0x80000000u;
    uint32_t r = ka < kb ? a : b;
    r = emu_is_nan(b) ? a : r;
    r = emu_is_nan(a) ? b : r;
    r = emu_is_signalling(b) ? b | 0x00400000u : r;
    r = emu_is_signalling(a) ? a | 0x00400000u : r;
    return emu_is_nan(r) ? r | 0x00400000u : r;
}

/// The middle one; with a NaN among them the least of the others.
EMU_INLINE uint32_t emu_med3_bits(uint32_t a, uint32_t b, uint32_t c)
{
    if (emu_is_nan(a) || emu_is_nan(b) || emu_is_nan(c)) {
        return emu_min_bits(emu_min_bits(a, b), c);
    }
    return emu_max_bits(emu_min_bits(a, b), emu_min_bits(emu_max_bits(a, b), c));
}

/// Toward zero, to the range of the result; NaN gives 0.
EMU_INLINE uint32_t emu_to_u32(double f)
{
    return f >= 4294967296.0 ? UINT32_MAX : f > 0 ? (uint32_t)f : 0;
}

EMU_INLINE uint32_t emu_to_i32(double f)
{
    return f >= 2147483648.0    ? (uint32_t)INT32_MAX
           : f <= -2147483648.0 ? (uint32_t)INT32_MIN
           : f == f             ? (uint32_t)(int32_t)f
                                : 0;
}

/// x to the nearest f16, ties to even, from a double that was rounded to odd.
EMU_INLINE uint32_t emu_f16_from_double(double x)
{
    // A float rounded to odd has every bit that decides.
    float f = (float)x;
    if ((double)f != x && x == x && !isinf(f)) {
        uint32_t u = emu_bits(f);
        if (((double)f > x) == (x > 0)) {
            u -= 1; // toward zero
        }
        f = emu_float(u | 1u);
    } else if (isinf(f) && !isinf(x)) {
        f = x > 0 ? 3.0e38f : -3.0e38f;
    }
    return moei_f32_to_f16(f);
}

/// a b + c rounded to odd at 53 bits: a further rounding to fewer than 51 bits is the only one.
EMU_INLINE double emu_fma_to_odd(double a, double b, double c)
{
    const double product = a * b; // of f16 or f32 values: exact
    const double sum = product + c;
    if (!isfinite(sum)) {
        return sum;
    }
    const double back = sum - product;
    const double error = (product - (sum - back)) + (c - back);
    uint64_t u = emu_bits64(sum);
    if (error != 0 && !(u & 1)) {
        u = (error > 0) == (sum > 0) ? u | 1 : u - 1;
    }
    return emu_double(u);
}

/// Half precision results that are too large: infinity, or the largest value with FP16_OVFL.
EMU_INLINE uint32_t emu_f16_overflow(const emu_wave *w, uint32_t h, bool infinite_source)
{
    const bool clamp = (w->mode & EMU_MODE_FP16_OVFL) && !infinite_source;
    return clamp && (h & 0x7FFFu) == 0x7C00u ? h - 1 : h;
}

/// What approximate instructions give: the nearest float, or with MOE_EMULATOR_APPROX=1 the one on
/// the other side of the exact result, which their precision of one unit allows.
EMU_INLINE uint32_t emu_approximate(const emu_wave *w, double exact)
{
    const uint32_t u = emu_bits((float)exact);
    const uint32_t abs = u & 0x7FFFFFFFu;
    const double value = (double)emu_float(u);
    const bool finite = abs >= 0x00800000u && abs < 0x7F7FFFFFu;
    if (emu_has_fault(w, EMU_FAULT_DIV) && finite) {
        return u & ~0xFFFu;
    }
    if (!w->group->launch->approx || !finite || value == exact) {
        return u;
    }
    const uint32_t other = fabs(value) < fabs(exact) ? u + 1 : u - 1;
    const double apart = fabs((double)emu_float(other) - exact) - fabs(value - exact);
    return apart < fabs(exact) * 0x1p-40 ? u : other;
}

EMU_INLINE uint32_t emu_frexp_mant(uint32_t u)
{
    const float f = emu_float(u);
    int e;
    return f == 0 || !isfinite(f) ? (emu_is_nan(u) ? u | 0x00400000u : u) : emu_bits(frexpf(f, &e));
}

EMU_INLINE uint32_t emu_frexp_exp(uint32_t u)
{
    const float f = emu_float(u);
    int e = 0;
    if (f == 0 || !isfinite(f)) {
        return 0;
    }
    (void)frexpf(f, &e);
    return (uint32_t)e;
}

/// The first and the second operand of a division, brought to where the steps that follow neither
/// overflow nor lose bits. `vcc`: v_div_fmas has to undo it.
EMU_INLINE uint32_t emu_div_scale(uint32_t s0, uint32_t denominator, uint32_t numerator, bool *vcc)
{
    const float d = emu_float(denominator);
    const float n = emu_float(numerator);
    const int ed = (int)(denominator >> 23 & 0xFFu);
    const int en = (int)(numerator >> 23 & 0xFFu);
    const float up = ldexpf(emu_float(s0), 64);
    const double quotient = fabs((double)n / (double)d);
    const double inverse = fabs(1.0 / (double)d);
    const double least = 0x1p-126;
    *vcc = false;
    if (n == 0 || d == 0) {
        return 0x7FC00000u;
    }
    if (en - ed >= 96) {
        *vcc = true;
        return s0 == denominator ? emu_bits(up) : s0;
    }
    if (ed == 0) {
        return emu_bits(up);
    }
    if (inverse < least && quotient < least) {
        *vcc = true;
        return s0 == denominator ? emu_bits(ldexpf(emu_float(s0), -64)) : s0;
    }
    if (inverse < least) {
        return emu_bits(ldexpf(emu_float(s0), -64));
    }
    if (quotient < least) {
        *vcc = true;
        return s0 == numerator ? emu_bits(up) : s0;
    }
    return en <= 23 ? emu_bits(up) : s0;
}

/// One rounding, also where the result is scaled into the subnormals: division is correctly
/// rounded.
EMU_INLINE uint32_t emu_div_fmas(float a, float b, float c, bool scaled)
{
    if (!scaled) {
        return emu_bits(__builtin_fmaf(a, b, c));
    }
    const int e = (emu_bits(c) >> 23 & 0xFFu) > 127 ? 64 : -64;
    return emu_bits((float)ldexp(emu_fma_to_odd((double)a, (double)b, (double)c), e));
}

EMU_INLINE uint32_t emu_div_fixup(uint32_t q, uint32_t denominator, uint32_t numerator)
{
    const uint32_t sign = (denominator ^ numerator) & 0x80000000u;
    const uint32_t d = denominator & 0x7FFFFFFFu;
    const uint32_t n = numerator & 0x7FFFFFFFu;
    if (n > 0x7F800000u) {
        return numerator | 0x00400000u;
    }
    if (d > 0x7F800000u) {
        return denominator | 0x00400000u;
    }
    if ((d == 0 && n == 0) || (d == 0x7F800000u && n == 0x7F800000u)) {
        return 0xFFC00000u;
    }
    if (d == 0 || n == 0x7F800000u) {
        return sign | 0x7F800000u;
    }
    if (d == 0x7F800000u || n == 0) {
        return sign;
    }
    if ((int)(n >> 23) - (int)(d >> 23) < -150) {
        return sign;
    }
    return emu_is_nan(q) ? sign | 0x7F800000u : sign | (q & 0x7FFFFFFFu);
}

#endif
