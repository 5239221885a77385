// SPDX-License-Identifier: Apache-2.0
// The rules of quant/specs.def as arithmetic, one function each, for host and device: amax to
// scale, scale to multiplier, value to code, and where a scale lies. docs/quantisers.md states the
// formulas.
#ifndef MOEI_QUANT_RULES_H
#define MOEI_QUANT_RULES_H

#include "moe/backend.h"
#include "numerics/bf16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "numerics/math.h"

#define MOEI_ABS_MASK  0x7FFFFFFFu
#define MOEI_MAX_FLOAT 3.402823466e+38f

// ------------------------------------------------------------------------------------- per element

/// moe_fp8_quant_max.
MOE_HD float moei_fp8_quant_max(moe_dtype elem)
{
    return elem == MOE_E4M3FN     ? MOEI_E4M3FN_MAX
           : elem == MOE_E4M3FNUZ ? MOEI_E4M3FNUZ_QUANT_MAX
           : elem == MOE_E5M2     ? MOEI_E5M2_MAX
                                  : 0.0f;
}

/// The magnitude M to which the rules of a quantiser scale an element type: 448, 224 (240 for
/// BF16STEPS), 57344, 28, 7.5, 6, 127, 7; 32639 for int16.
MOE_HD float moei_quant_max(const moei_quant_info *info, moe_dtype elem)
{
    switch (elem) {
    case MOE_E4M3FNUZ:
        // The C++ kernel that BF16STEPS states takes the format's whole range.
        return info->scale == MOEI_SCALE_BF16 ? MOEI_E4M3FNUZ_MAX : MOEI_E4M3FNUZ_QUANT_MAX;
    case MOE_E2M1:
        return MOEI_E2M1_MAX;
    case MOE_E2M3:
        return MOEI_E2M3_MAX;
    case MOE_E3M2:
        return MOEI_E3M2_MAX;
    case MOE_I8:
        return 127.0f;
    case MOE_INT4:
        return 7.0f;
    case MOE_I16:
        return 32639.0f; // 127 * 256 + 127: two balanced base-256 digits
    default:
        return moei_fp8_quant_max(elem);
    }
}

/// Exponent of the largest power of two of an MX element type.
MOE_HD int moei_elem_emax(moe_dtype elem)
{
    switch (elem) {
    case MOE_E4M3FN:
        return 8;
    case MOE_E5M2:
        return 15;
    case MOE_E3M2:
        return 4;
    default: // e2m1, e2m3
        return 2;
    }
}

/// Fraction bits of an MX element type.
MOE_HD int moei_elem_fraction_bits(moe_dtype elem)
{
    switch (elem) {
    case MOE_E4M3FN:
    case MOE_E2M3:
        return 3;
    case MOE_E5M2:
    case MOE_E3M2:
        return 2;
    default: // e2m1
        return 1;
    }
}

/// True for the elements of the FP8 and MX rules that have a NaN.
MOE_HD bool moei_elem_has_nan(moe_dtype elem)
{
    return elem == MOE_E4M3FN || elem == MOE_E4M3FNUZ || elem == MOE_E5M2;
}

// ------------------------------------------------------------------------------------------ scales

typedef enum moei_scale_use {
    MOEI_USE_TIMES,
    MOEI_USE_DIVIDE,
    MOEI_USE_TIMES_BF16,
    MOEI_USE_ZERO
} moei_scale_use;

/// A scale, as it is stored and as it is applied.
typedef struct moei_scale {
    float value;  // F32 and UE8M0_F32
    uint8_t byte; // E8M0, UE8M0_PACKED, E4M3FN
    moei_scale_use use;
    float by; // factor or divisor
} moei_scale;

/// What the elements that share a scale say about it: bits of the largest magnitude, without and
/// with NaN.
typedef struct moei_magnitude {
    uint32_t amax, any;
} moei_magnitude;

MOE_HD moei_scale moei_scale_make(float value, uint8_t byte, moei_scale_use use, float by)
{
    moei_scale s;
    s.value = value;
    s.byte = byte;
    s.use = use;
    s.by = by;
    return s;
}

MOE_HD bool moei_is_nan_bits(uint32_t bits)
{
    return (int32_t)(bits & MOEI_ABS_MASK) > (int32_t)MOEI_INF_BITS;
}

/// A multiplier that would be infinite turns zero into NaN; it stops at the largest float.
MOE_HD float moei_finite_factor(float f)
{
    return f > MOEI_MAX_FLOAT ? MOEI_MAX_FLOAT : f;
}

MOE_HD float moei_round_bf16(float x)
{
    return moei_bf16_to_f32(moei_f32_to_bf16(x));
}

MOE_HD moei_scale moei_scale_e8m0(int byte, float factor)
{
    return moei_scale_make(moei_e8m0_to_f32((uint8_t)byte), (uint8_t)byte, MOEI_USE_TIMES, factor);
}

/// OCP MX and fixed point: a byte, and a multiplication by the inverse power of two.
MOE_HD moei_scale moei_scale_power(const moei_quant_info *info, moe_dtype elem, float amax)
{
    const int emax = moei_elem_emax(elem);
    int byte = 0;
    switch (info->scale) {
    case MOEI_SCALE_MX_FLOOR:
        byte = moei_f32_exponent_byte(amax * moei_pow2i(-emax));
        break;
    case MOEI_SCALE_MX_CEIL:
        byte = moei_f32_exponent_byte(moei_pow2_up(moei_divf(amax, moei_quant_max(info, elem))));
        break;
    case MOEI_SCALE_MX_MAX:
        byte = moei_f32_exponent_byte(moei_divf(amax, moei_quant_max(info, elem)));
        break;
    case MOEI_SCALE_MX_EVEN: {
        // The carry of the addition rounds to the nearest float with the element's fraction.
        const uint32_t half = 1u << (22 - moei_elem_fraction_bits(elem));
        const uint32_t rounded = (moei_f32_bits(amax) + half) & MOEI_INF_BITS;
        const int e = moei_f32_exponent(moei_f32_from_bits(rounded));
        byte = e == 128 ? 254 : e - emax < -127 ? 0 : e - emax + 127;
        return moei_scale_e8m0(byte, moei_pow2i(127 - byte));
    }
    case MOEI_SCALE_MX_PLAIN:
        byte = moei_f32_exponent(amax) + 127;
        byte = byte < 0 ? 0 : byte > 254 ? 254 : byte;
        return moei_scale_e8m0(byte, moei_pow2i(127 - byte));
    default: { // MOEI_SCALE_FIXED
        // x / 2^(byte - 127) has the exponent of amax at bit 6 (int8) or 14 (int16). The addition
        // carries into the exponent from 127.5, or 32639.5, steps on, which would round too high.
        const bool wide = elem == MOE_I16;
        const uint32_t bits = moei_f32_bits(amax) + (wide ? 0x10100u : 0x10000u);
        byte = (int)(bits >> 23) - (wide ? 14 : 6);
        byte = byte < 1 ? 1 : byte;
        if ((int32_t)moei_f32_bits(amax) >= (int32_t)MOEI_INF_BITS) {
            return moei_scale_make(moei_f32_from_bits(MOEI_NAN_BITS), 255, MOEI_USE_ZERO, 0.0f);
        }
        return moei_scale_e8m0(byte, moei_pow2i(127 - byte));
    }
    }
    return moei_scale_e8m0(byte, byte == 0 ? 0.0f : moei_pow2i(127 - byte));
}

/// @param[in] global  NVFP4's second level; read by the rules that have one
MOE_HD moei_scale moei_scale_nvfp4(const moei_quant_info *info, moe_dtype elem, float global,
                                   float amax)
{
    const float max = moei_quant_max(info, elem);
    float g = global;
    float s;
    if (info->scale == MOEI_SCALE_NVFP4) {
        s = g * (amax * moei_divf(1.0f, max));
    } else if (info->scale == MOEI_SCALE_NVFP4_INVERSE) {
        s = moei_divf(amax, max) * g;
    } else {
        g = 1.0f;
        s = moei_divf(amax, max);
    }
    // NaN (a global scale of NaN or 0 times infinity) is 7F, whatever its sign.
    const uint8_t byte = moei_is_nan_bits(moei_f32_bits(s))
                             ? (uint8_t)0x7F
                             : moei_f32_to_e4m3fn(s, MOEI_OVERFLOW_SATURATE);
    s = moei_e4m3fn_to_f32(byte);
    s = s < info->floor ? info->floor : s;
    return moei_scale_make(s, byte, MOEI_USE_TIMES,
                           s == 0.0f ? 0.0f : moei_finite_factor(moei_divf(g, s)));
}

/// hexp2(hceil(hlog2(s))) for a positive bf16 value s.
MOE_HD float moei_bf16_pow2_up(float s)
{
    if (s > MOEI_MAX_FLOAT) {
        return s;
    }
    const float log = moei_round_bf16(moei_log2f(s));
    const int32_t cut = moei_f32_trunc_i32(log);
    return moei_pow2i(cut + ((float)cut < log));
}

/// The scale of FP8 and integers as a float, before it is rounded up to a power of two.
MOE_HD float moei_scale_float(const moei_quant_info *info, const moe_quant_desc *quant, float amax)
{
    const float max = moei_quant_max(info, quant->elem);
    const float floor = info->floor;
    float s;
    switch (info->scale) {
    case MOEI_SCALE_RECIP:
        return (amax < floor ? floor : amax) * moei_divf(1.0f, max);
    case MOEI_SCALE_DIV_FLOOR:
        s = moei_divf(amax, max);
        return s < floor ? floor : s;
    case MOEI_SCALE_TOKEN: {
        const float least = moei_divf(1.0f, 512.0f * max);
        if (quant->amax_bound > 0.0f && amax > quant->amax_bound) {
            amax = quant->amax_bound;
        }
        s = moei_divf(amax, max);
        return s < least ? least : s;
    }
    case MOEI_SCALE_BF16:
        amax = amax < moei_round_bf16(floor) ? moei_round_bf16(floor) : amax;
        return moei_round_bf16(amax * moei_round_bf16(moei_divf(1.0f, max)));
    default: // MOEI_SCALE_DIV
        return moei_divf(amax < floor ? floor : amax, max);
    }
}

/// How a float scale s is applied.
MOE_HD moei_scale moei_scale_apply(const moei_quant_info *info, moe_dtype elem, float s, float amax)
{
    moei_scale r = moei_scale_make(s, moei_f32_exponent_byte(s), MOEI_USE_TIMES, 0.0f);
    switch (info->code) {
    case MOEI_CODE_DIVIDE:
        r.use = MOEI_USE_DIVIDE;
        r.by = s;
        break;
    case MOEI_CODE_BF16:
        r.use = MOEI_USE_TIMES_BF16;
        r.by = moei_round_bf16(moei_divf(1.0f, s));
        break;
    case MOEI_CODE_TIMES_FACTOR:
        r.by = moei_divf(moei_quant_max(info, elem), amax < info->floor ? info->floor : amax);
        break;
    default:
        r.by = moei_finite_factor(moei_divf(1.0f, s));
        break;
    }
    return r;
}

/// The scale of FP8 and integers.
MOE_HD moei_scale moei_scale_by_float(const moei_quant_info *info, const moe_quant_desc *quant,
                                      float amax)
{
    float s = moei_scale_float(info, quant, amax);
    if (quant->scale_type != MOE_SCALE_F32) {
        s = info->scale == MOEI_SCALE_BF16 ? moei_bf16_pow2_up(s) : moei_pow2_up(s);
    }
    return moei_scale_apply(info, quant->elem, s, amax);
}

/// The scale of elements that share one.
/// @param[in] global  NVFP4's second level; read by the rules that have one
MOE_HD moei_scale moei_scale_of(const moei_quant_info *info, const moe_quant_desc *quant,
                                float global, moei_magnitude m)
{
    const float amax = moei_f32_from_bits(m.amax);
    if (info->nan == MOEI_NAN_SCALE && moei_is_nan_bits(m.any) && !moei_elem_has_nan(quant->elem)) {
        const uint8_t byte = quant->scale_type == MOE_SCALE_E4M3FN ? 0x7Fu : 0xFFu;
        return moei_scale_make(moei_f32_from_bits(MOEI_NAN_BITS), byte, MOEI_USE_ZERO, 0.0f);
    }
    if (info->code == MOEI_CODE_POWER) {
        return moei_scale_power(info, quant->elem, amax);
    }
    if (info->code == MOEI_CODE_GLOBAL || info->scale == MOEI_SCALE_NVFP4_SINGLE) {
        return moei_scale_nvfp4(info, quant->elem, global, amax);
    }
    if (info->scale == MOEI_SCALE_INVERSE) {
        const float max = moei_quant_max(info, quant->elem);
        const float r = amax == 0.0f ? 1.0f : moei_finite_factor(moei_divf(1.0f, amax) * max);
        return moei_scale_make(moei_divf(1.0f, r), 0, MOEI_USE_TIMES, r);
    }
    return moei_scale_by_float(info, quant, amax);
}

/// What a quantiser whose scale spans all rows derives from their amax: the global scale of
/// NVFP4_INVERSE, else the scale.
MOE_HD float moei_scale_of_all(const moei_quant_info *info, const moe_quant_desc *quant, float amax)
{
    if (info->scale != MOEI_SCALE_NVFP4_INVERSE) {
        return moei_scale_float(info, quant, amax);
    }
    const float g =
        moei_finite_factor(moei_finite_factor(moei_divf(1.0f, amax)) * 2688.0f); // 448 * 6
    return amax == 0.0f ? 1.0f : g;
}

/// The value of a stored scale byte.
MOE_HD float moei_scale_from_byte(const moei_quant_info *info, moe_scale_type type, uint8_t byte)
{
    if (type != MOE_SCALE_E4M3FN) {
        return moei_e8m0_to_f32(byte);
    }
    const float s = moei_e4m3fn_to_f32(byte);
    return info->scale == MOEI_SCALE_NVFP4_INVERSE && s < info->floor ? info->floor : s;
}

// ------------------------------------------------------------------------------------------- codes

/// The value to round.
MOE_HD float moei_scale_use_on(const moei_scale *s, float x)
{
    switch (s->use) {
    case MOEI_USE_TIMES:
        return x * s->by;
    case MOEI_USE_DIVIDE:
        return moei_divf(x, s->by);
    case MOEI_USE_TIMES_BF16:
        return moei_round_bf16(x * s->by);
    default: // MOEI_USE_ZERO
        return 0.0f;
    }
}

/// True for scales by which moei_divide_many divides. Not for NaN.
MOE_HD bool moei_is_plain_divisor(float s)
{
    return s >= 0x1p-80f && s <= 0x1p80f;
}

/// x / s for a plain divisor, without the branches of a division. Quotients from 2^-20 to 2^20 are
/// those of a division; smaller ones stay below 2^-19, and have the sign of x: codes of eight bits
/// are the same. The first quotient is at most two units in the last place off, the second less
/// than one, and the correction of that one is Markstein's, which is right. The rests are exact,
/// and those of a zero +0: they leave a quotient of -0 alone.
/// @param[in] inverse  1 / s, rounded
MOE_HD float moei_divide_many(float x, float s, float inverse)
{
    float q = x * inverse;
    q = moei_fmaf(-inverse, moei_fmaf(s, q, -x), q);
    return moei_fmaf(-inverse, moei_fmaf(s, q, -x), q);
}

/// Clamps to [low, high]; NaN becomes `nan`: one of the bounds, or the NaN without a sign (which a
/// processor's own NaN may have).
MOE_HD float moei_quant_clamp(float x, float low, float high, float nan)
{
    const float v = moei_clampf(x, low, high);
    return moei_selectf(moei_is_nan_bits(moei_f32_bits(v)), nan, v);
}

/// What a value to round is clamped to first.
typedef struct moei_quant_range {
    bool clamps; // false: the encoder saturates, or the scale has left nothing out of range
    float low, high, nan;
} moei_quant_range;

MOE_HD moei_quant_range moei_quant_range_of(const moei_quant_info *info, moe_dtype elem)
{
    const float max = moei_quant_max(info, elem);
    const bool integer = elem == MOE_I8 || elem == MOE_INT4;
    moei_quant_range r;
    r.clamps = integer || moei_elem_has_nan(elem);
    r.low = integer ? -max - 1.0f : -max;
    r.high = max;
    r.nan = info->nan == MOEI_NAN_LOW ? r.low : integer ? 0.0f : moei_f32_from_bits(MOEI_NAN_BITS);
    return r;
}

/// The first of the eight magnitudes whose f32 distance from |v| is smallest.
MOE_HD uint8_t moei_f32_to_e2m1_nearest(float v)
{
    const uint32_t bits = moei_f32_bits(v);
    const float a = moei_f32_from_bits(bits & MOEI_ABS_MASK);
    float least = a;
    uint32_t code = 0;
    for (uint32_t c = 1; c < 8; c++) {
        const float d = a - moei_e2m1_to_f32((uint8_t)c);
        const float distance = moei_f32_from_bits(moei_f32_bits(d) & MOEI_ABS_MASK);
        const int nearer = distance < least;
        code = moei_select(nearer, c, code);
        least = moei_selectf(nearer, distance, least);
    }
    return moei_e2m1_join(bits, code);
}

MOE_HD uint32_t moei_f32_to_e2m1_by(moei_code_rounding rounding, float v)
{
    switch (rounding) {
    case MOEI_ROUND_DISTANCE:
        return moei_f32_to_e2m1_nearest(v);
    case MOEI_ROUND_HALF_DOWN: {
        const uint32_t code = moei_f32_to_e2m1_half_down(v);
        return moei_select(code == 8u, 0u, code);
    }
    case MOEI_ROUND_HALF_AWAY:
        return moei_f32_to_e2m1_half_away(v);
    default:
        return moei_f32_to_e2m1(v, MOEI_OVERFLOW_SATURATE);
    }
}

/// The code of a clamped value; bits above the element's own may be set.
MOE_HD uint32_t moei_quant_code(moe_dtype elem, moei_code_rounding rounding, float v)
{
    switch (elem) {
    case MOE_E4M3FN:
        return moei_f32_to_e4m3fn(v, MOEI_OVERFLOW_SATURATE);
    case MOE_E4M3FNUZ:
        return moei_f32_to_e4m3fnuz(v, MOEI_OVERFLOW_SATURATE);
    case MOE_E5M2:
        return moei_f32_to_e5m2(v, MOEI_OVERFLOW_SATURATE);
    case MOE_E2M3:
        return moei_f32_to_e2m3(v, MOEI_OVERFLOW_SATURATE);
    case MOE_E3M2:
        return moei_f32_to_e3m2(v, MOEI_OVERFLOW_SATURATE);
    case MOE_E2M1:
        return moei_f32_to_e2m1_by(rounding, v);
    default: // integers
        return (uint32_t)(rounding == MOEI_ROUND_TRUNCATE    ? moei_f32_trunc_i32(v)
                          : rounding == MOEI_ROUND_HALF_AWAY ? moei_f32_round_half_away_i32(v)
                                                             : moei_f32_round_half_even_i32(v));
    }
}

/// Runs CASE(element, rounding), which ends in break, with both as constants: loops over codes
/// stay free of choices.
#define MOEI_QUANT_CHOOSE_CODE(elem, rounding, CASE)                                               \
    switch (elem) {                                                                                \
    case MOE_E4M3FN:                                                                               \
        CASE(MOE_E4M3FN, MOEI_ROUND_EVEN);                                                         \
    case MOE_E4M3FNUZ:                                                                             \
        CASE(MOE_E4M3FNUZ, MOEI_ROUND_EVEN);                                                       \
    case MOE_E5M2:                                                                                 \
        CASE(MOE_E5M2, MOEI_ROUND_EVEN);                                                           \
    case MOE_E2M3:                                                                                 \
        CASE(MOE_E2M3, MOEI_ROUND_EVEN);                                                           \
    case MOE_E3M2:                                                                                 \
        CASE(MOE_E3M2, MOEI_ROUND_EVEN);                                                           \
    case MOE_E2M1:                                                                                 \
        MOEI_QUANT_CHOOSE_ROUNDING(MOE_E2M1, rounding, CASE)                                       \
        break;                                                                                     \
    default: /* integers */                                                                        \
        MOEI_QUANT_CHOOSE_ROUNDING(MOE_I8, rounding, CASE)                                         \
        break;                                                                                     \
    }
#define MOEI_QUANT_CHOOSE_ROUNDING(elem, rounding, CASE)                                           \
    switch (rounding) {                                                                            \
    case MOEI_ROUND_HALF_DOWN:                                                                     \
        CASE(elem, MOEI_ROUND_HALF_DOWN);                                                          \
    case MOEI_ROUND_DISTANCE:                                                                      \
        CASE(elem, MOEI_ROUND_DISTANCE);                                                           \
    case MOEI_ROUND_HALF_AWAY:                                                                     \
        CASE(elem, MOEI_ROUND_HALF_AWAY);                                                          \
    case MOEI_ROUND_TRUNCATE:                                                                      \
        CASE(elem, MOEI_ROUND_TRUNCATE);                                                           \
    default:                                                                                       \
        CASE(elem, MOEI_ROUND_EVEN);                                                               \
    }

// -------------------------------------------------------------------------------------- the tensor

/// True if a scale depends on all rows, so that a driver must run AMAX and SCALE first.
MOE_HD bool moei_quantize_is_global(const moei_quant_info *info)
{
    return info->level == MOE_DET_RUN;
}

/// Rows that are there in batch b.
MOE_HD int64_t moei_quantize_count(const moek_quantize_args *args, int32_t b)
{
    int64_t n = args->rows;
    if (args->counts != NULL) {
        n = args->counts[b] < n ? args->counts[b] : n;
    }
    if (args->total != NULL) {
        const int64_t total =
            (int64_t)args->total[0] * (args->total_rows > 0 ? args->total_rows : 1);
        n = total < n ? total : n;
    }
    return n > 0 ? n : 0;
}

/// Scales of a row.
MOE_HD int64_t moei_quantize_groups(const moek_quantize_args *args)
{
    const int64_t group = args->quant.group;
    return group > 0 ? moei_divide(args->k + group - 1, group) : 1;
}

/// Address of the scale of block of rows `row` and group g.
MOE_HD uint8_t *moei_quantize_scale_at(const moek_quantize_args *args, int32_t b, int64_t row,
                                       int64_t g)
{
    const bool packed = args->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    const int64_t i = b * args->scale_batch_stride + row * args->scale_row_stride +
                      (packed ? g / 4 : g) * args->scale_k_stride;
    uint8_t *base = (uint8_t *)args->scales;
    switch (args->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        return base + 4 * i;
    case MOE_SCALE_UE8M0_PACKED:
        return base + 4 * i + g % 4;
    default:
        return base + i;
    }
}

#endif
