// SPDX-License-Identifier: Apache-2.0
// The small float formats of an architecture: numerics/'s codecs by the names that instructions
// use. FP8 and BF8 are the fnuz formats on gfx942 and OCP's on gfx950.
#ifndef MOE_EMULATOR_SMALL_H
#define MOE_EMULATOR_SMALL_H

#include "emulator/floats.h"
#include "numerics/e8m0.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"

/// As cbsz and blgp number the formats of f8f6f4.
typedef enum emu_small { EMU_FP8, EMU_BF8, EMU_FP6, EMU_BF6, EMU_FP4 } emu_small;

EMU_INLINE float emu_small_value(emu_arch arch, emu_small format, uint32_t code)
{
    const uint8_t c = (uint8_t)code;
    switch (format) {
    case EMU_FP8:
        return arch == EMU_GFX942 ? moei_e4m3fnuz_to_f32(c) : moei_e4m3fn_to_f32(c);
    case EMU_BF8:
        return arch == EMU_GFX942 ? moei_e5m2fnuz_to_f32(c) : moei_e5m2_to_f32(c);
    case EMU_FP6:
        return moei_e2m3_to_f32(c & 0x3Fu);
    case EMU_BF6:
        return moei_e3m2_to_f32(c & 0x3Fu);
    default:
        return moei_e2m1_to_f32(c & 0xFu);
    }
}

/// FP16_OVFL saturates; otherwise what is too large becomes NaN or infinity.
EMU_INLINE uint32_t emu_small_code(const emu_wave *w, emu_small format, float x)
{
    const moei_overflow overflow =
        w->mode & EMU_MODE_FP16_OVFL ? MOEI_OVERFLOW_SATURATE : MOEI_OVERFLOW_NAN;
    const bool fnuz = w->group->launch->arch == EMU_GFX942;
    switch (format) {
    case EMU_FP8:
        return fnuz ? moei_f32_to_e4m3fnuz(x, overflow) : moei_f32_to_e4m3fn(x, overflow);
    case EMU_BF8:
        return fnuz ? moei_f32_to_e5m2fnuz(x, overflow) : moei_f32_to_e5m2(x, overflow);
    default:
        return moei_f32_to_e2m1(x, MOEI_OVERFLOW_SATURATE);
    }
}

/// x 2^e as a float for a code of at most 8 bits: what float cannot hold is far beyond the format.
EMU_INLINE float emu_scaled(float x, int e)
{
    const double v = ldexp((double)x, e);
    if (x == 0 || !isfinite(x)) {
        return x;
    }
    const double a = fabs(v);
    return a > 1e30 ? copysignf(1e30f, x) : a < 1e-30 ? copysignf(1e-30f, x) : (float)v;
}

#endif
