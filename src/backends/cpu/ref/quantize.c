// SPDX-License-Identifier: Apache-2.0
// quantize, portable: every rule of quant/specs.def, both ways.
//
// A row is worked on in spans of whole groups: load to f32, then per group amax -> scale -> values
// to round (one multiplication, or division, per element), then the span's values -> codes ->
// packed bytes. A group longer than a span is read twice, once for amax. Nothing here depends on a
// vector width: loops over a span are element-wise, and a maximum has no order. Limiting resource:
// integer operations of the encoders, which the compiler vectorises.
#include "ops/quantize.h"

#include "backends/cpu/ref/ref.h"
#include "core/safemath.h"
#include "numerics/activation.h"
#include "quant/elements.h"

#define SPAN 512 // elements; a multiple of every fixed group and of a packed byte's codes

#define ABS_MASK  0x7FFFFFFFu
#define INF_BITS  0x7F800000
#define NAN_BITS  0x7FC00000u
#define MAX_FLOAT 3.402823466e+38f

typedef enum transform { TIMES, DIVIDE, TIMES_BF16, ZERO } transform;

// What the rows say about a group: bits of its largest magnitude, without and with NaN.
typedef struct magnitude {
    uint32_t amax, any;
} magnitude;

// A scale, as it is stored and as it is applied.
typedef struct scale {
    float value;  // F32 and UE8M0_F32
    uint8_t byte; // E8M0, UE8M0_PACKED, E4M3FN
    transform how;
    float by; // factor or divisor
} scale;

static bool is_nan_bits(uint32_t bits)
{
    return (int32_t)(bits & ABS_MASK) > INF_BITS;
}

// A multiplier that would be infinite turns zero into NaN; it stops at the largest float.
static float finite_factor(float f)
{
    return f > MAX_FLOAT ? MAX_FLOAT : f;
}

static float round_bf16(float x)
{
    return moei_bf16_to_f32(moei_f32_to_bf16(x));
}

// ------------------------------------------------------------------------------------------- input

static void load_span(const moek_quantize_args *a, const uint8_t *row, int64_t k0, int64_t n,
                      float *restrict x)
{
    moei_load_f32(a->x_dtype, row, k0, n, x);
    if (a->silu_mul) {
        const moe_dtype step = a->round_steps ? a->x_dtype : MOE_F32;
        float up[SPAN];
        moei_load_f32(a->x_dtype, row, a->up_offset + k0, n, up);
        for (int64_t i = 0; i < n; i++) {
            x[i] = moei_silu(x[i]);
        }
        if (step == MOE_BF16) {
            for (int64_t i = 0; i < n; i++) {
                x[i] = round_bf16(round_bf16(x[i]) * up[i]);
            }
        } else if (step == MOE_F16) {
            for (int64_t i = 0; i < n; i++) {
                x[i] = moei_round_to(MOE_F16, moei_round_to(MOE_F16, x[i]) * up[i]);
            }
        } else {
            for (int64_t i = 0; i < n; i++) {
                x[i] = x[i] * up[i];
            }
        }
    }
    if (a->info->scale == MOEI_SCALE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            x[i] = round_bf16(x[i]);
        }
    }
}

static magnitude magnitude_of(const float *x, int64_t n, magnitude m)
{
    int32_t amax = (int32_t)m.amax;
    int32_t any = (int32_t)m.any;
    for (int64_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)(moei_f32_bits(x[i]) & ABS_MASK);
        const int32_t kept = bits > INF_BITS ? 0 : bits;
        any = bits > any ? bits : any;
        amax = kept > amax ? kept : amax;
    }
    return (magnitude){(uint32_t)amax, (uint32_t)any};
}

// ------------------------------------------------------------------------------------------ scales

static scale e8m0_scale(uint8_t byte, float factor)
{
    return (scale){moei_e8m0_to_f32(byte), byte, TIMES, factor};
}

// OCP MX and fixed point: a byte, and a multiplication by the inverse power of two.
static scale power_scale(const moek_quantize_args *a, float amax)
{
    const moe_dtype elem = a->quant.elem;
    const int emax = moei_elem_emax(elem);
    int byte = 0;
    switch (a->info->scale) {
    case MOEI_SCALE_MX_FLOOR:
        byte = moei_f32_exponent_byte(amax * moei_pow2i(-emax));
        break;
    case MOEI_SCALE_MX_CEIL:
        byte = moei_f32_exponent_byte(moei_pow2_up(amax / moei_quant_max(a->info, elem)));
        break;
    case MOEI_SCALE_MX_MAX:
        byte = moei_f32_exponent_byte(amax / moei_quant_max(a->info, elem));
        break;
    case MOEI_SCALE_MX_EVEN: {
        // The carry of the addition rounds to the nearest float with the element's fraction.
        const uint32_t half = 1u << (22 - moei_elem_fraction_bits(elem));
        const uint32_t rounded = (moei_f32_bits(amax) + half) & (uint32_t)INF_BITS;
        const int e = moei_f32_exponent(moei_f32_from_bits(rounded));
        byte = e == 128 ? 254 : e - emax < -127 ? 0 : e - emax + 127;
        return e8m0_scale((uint8_t)byte, moei_pow2i(127 - byte));
    }
    case MOEI_SCALE_MX_PLAIN:
        byte = moei_f32_exponent(amax) + 127;
        byte = byte < 0 ? 0 : byte > 254 ? 254 : byte;
        return e8m0_scale((uint8_t)byte, moei_pow2i(127 - byte));
    default: { // MOEI_SCALE_FIXED
        // x / 2^(byte - 127) has the exponent of amax at bit 6 (int8) or 14 (int16). The addition
        // carries into the exponent from 127.5, or 32639.5, steps on, which would round too high.
        const bool wide = elem == MOE_I16;
        const uint32_t bits = moei_f32_bits(amax) + (wide ? 0x10100u : 0x10000u);
        byte = (int)(bits >> 23) - (wide ? 14 : 6);
        byte = byte < 1 ? 1 : byte;
        if ((int32_t)moei_f32_bits(amax) >= INF_BITS) {
            return (scale){moei_f32_from_bits(NAN_BITS), 255, ZERO, 0.0f};
        }
        return e8m0_scale((uint8_t)byte, moei_pow2i(127 - byte));
    }
    }
    return e8m0_scale((uint8_t)byte, byte == 0 ? 0.0f : moei_pow2i(127 - byte));
}

static scale nvfp4_scale(const moek_quantize_args *a, float amax)
{
    const float max = moei_quant_max(a->info, a->quant.elem);
    float g = 1.0f;
    float s;
    if (a->info->scale == MOEI_SCALE_NVFP4) {
        g = a->global_scale[0];
        s = g * (amax * (1.0f / max));
    } else if (a->info->scale == MOEI_SCALE_NVFP4_INVERSE) {
        g = a->global_scale[0];
        s = (amax / max) * g;
    } else {
        s = amax / max;
    }
    // NaN (a global scale of NaN or 0 times infinity) is 7F, whatever its sign.
    const uint8_t byte =
        is_nan_bits(moei_f32_bits(s)) ? 0x7Fu : moei_f32_to_e4m3fn(s, MOEI_OVERFLOW_SATURATE);
    s = moei_e4m3fn_to_f32(byte);
    s = s < a->info->floor ? a->info->floor : s;
    return (scale){s, byte, TIMES, s == 0.0f ? 0.0f : finite_factor(g / s)};
}

// hexp2(hceil(hlog2(s))) for a positive bf16 value s.
static float bf16_pow2_up(float s)
{
    if (s > MAX_FLOAT) {
        return s;
    }
    const float log = round_bf16(moei_log2f(s));
    const int32_t cut = moei_f32_trunc_i32(log);
    return moei_pow2i(cut + ((float)cut < log));
}

// The scale of FP8 and integers as a float, before it is rounded up to a power of two.
static float float_scale(const moek_quantize_args *a, float amax)
{
    const float max = moei_quant_max(a->info, a->quant.elem);
    const float floor = a->info->floor;
    float s;
    switch (a->info->scale) {
    case MOEI_SCALE_RECIP:
        return (amax < floor ? floor : amax) * (1.0f / max);
    case MOEI_SCALE_DIV_FLOOR:
        s = amax / max;
        return s < floor ? floor : s;
    case MOEI_SCALE_TOKEN:
        if (a->quant.amax_bound > 0.0f && amax > a->quant.amax_bound) {
            amax = a->quant.amax_bound;
        }
        s = amax / max;
        return s < 1.0f / (512.0f * max) ? 1.0f / (512.0f * max) : s;
    case MOEI_SCALE_BF16:
        amax = amax < round_bf16(floor) ? round_bf16(floor) : amax;
        return round_bf16(amax * round_bf16(1.0f / max));
    default: // MOEI_SCALE_DIV
        return (amax < floor ? floor : amax) / max;
    }
}

// How a float scale s is applied.
static scale apply_scale(const moek_quantize_args *a, float s, float amax)
{
    scale r = {s, moei_f32_exponent_byte(s), TIMES, 0.0f};
    switch (a->info->code) {
    case MOEI_CODE_DIVIDE:
        r.how = DIVIDE;
        r.by = s;
        break;
    case MOEI_CODE_BF16:
        r.how = TIMES_BF16;
        r.by = round_bf16(1.0f / s);
        break;
    case MOEI_CODE_TIMES_FACTOR: {
        const float max = moei_quant_max(a->info, a->quant.elem);
        r.by = max / (amax < a->info->floor ? a->info->floor : amax);
        break;
    }
    default:
        r.by = finite_factor(1.0f / s);
        break;
    }
    return r;
}

static scale inverse_scale(const moek_quantize_args *a, float amax)
{
    const float max = moei_quant_max(a->info, a->quant.elem);
    const float r = amax == 0.0f ? 1.0f : finite_factor(1.0f / amax * max);
    return (scale){1.0f / r, 0, TIMES, r};
}

static bool elem_has_nan(moe_dtype elem)
{
    return elem == MOE_E4M3FN || elem == MOE_E4M3FNUZ || elem == MOE_E5M2;
}

static scale scale_of(const moek_quantize_args *a, magnitude m)
{
    const float amax = moei_f32_from_bits(m.amax);
    if (a->info->nan == MOEI_NAN_SCALE && is_nan_bits(m.any) && !elem_has_nan(a->quant.elem)) {
        const uint8_t byte = a->quant.scale_type == MOE_SCALE_E4M3FN ? 0x7Fu : 0xFFu;
        return (scale){moei_f32_from_bits(NAN_BITS), byte, ZERO, 0.0f};
    }
    switch (a->info->code) {
    case MOEI_CODE_POWER:
        return power_scale(a, amax);
    case MOEI_CODE_GLOBAL:
        return nvfp4_scale(a, amax);
    default:
        break;
    }
    if (a->info->scale == MOEI_SCALE_NVFP4_SINGLE) {
        return nvfp4_scale(a, amax);
    }
    if (a->info->scale == MOEI_SCALE_INVERSE) {
        return inverse_scale(a, amax);
    }
    float s = float_scale(a, amax);
    if (a->quant.scale_type != MOE_SCALE_F32) {
        s = a->info->scale == MOEI_SCALE_BF16 ? bf16_pow2_up(s) : moei_pow2_up(s);
    }
    return apply_scale(a, s, amax);
}

static int64_t groups_of(const moek_quantize_args *a)
{
    return a->quant.group > 0 ? moei_i64_ceil_div(a->k, a->quant.group) : 1;
}

// Address of the scale of block of rows `row` and group g.
static uint8_t *scale_at(const moek_quantize_args *a, int32_t b, int64_t row, int64_t g)
{
    const bool packed = a->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    const int64_t i = b * a->scale_batch_stride + row * a->scale_row_stride +
                      (packed ? g / 4 : g) * a->scale_k_stride;
    uint8_t *base = a->scales;
    switch (a->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        return base + 4 * i;
    case MOE_SCALE_UE8M0_PACKED:
        return base + 4 * i + g % 4;
    default:
        return base + i;
    }
}

static void store_scale(const moek_quantize_args *a, int32_t b, int64_t row, int64_t g,
                        const scale *s)
{
    uint8_t *at = scale_at(a, b, row, g);
    switch (a->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        memcpy(at, &s->value, sizeof s->value);
        return;
    case MOE_SCALE_UE8M0_PACKED:
        if (g + 1 == groups_of(a)) {
            memset(at, 0, (size_t)(4 - g % 4)); // the bytes past the last group
        }
        *at = s->byte;
        return;
    default:
        *at = s->byte;
        return;
    }
}

static float load_scale(const moek_quantize_args *a, int32_t b, int64_t row, int64_t g)
{
    const uint8_t *at = scale_at(a, b, row, g);
    float s;
    switch (a->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        memcpy(&s, at, sizeof s);
        return s;
    case MOE_SCALE_E4M3FN:
        s = moei_e4m3fn_to_f32(*at);
        return a->info->scale == MOEI_SCALE_NVFP4_INVERSE && s < a->info->floor ? a->info->floor
                                                                                : s;
    default:
        return moei_e8m0_to_f32(*at);
    }
}

// ------------------------------------------------------------------------------------------- codes

static void transform_span(float *restrict x, int64_t n, const scale *s)
{
    const float by = s->by;
    switch (s->how) {
    case TIMES:
        for (int64_t i = 0; i < n; i++) {
            x[i] = x[i] * by;
        }
        break;
    case DIVIDE:
        for (int64_t i = 0; i < n; i++) {
            x[i] = x[i] / by;
        }
        break;
    case TIMES_BF16:
        for (int64_t i = 0; i < n; i++) {
            x[i] = round_bf16(x[i] * by);
        }
        break;
    case ZERO:
        for (int64_t i = 0; i < n; i++) {
            x[i] = 0.0f;
        }
        break;
    }
}

// Clamps to [low, high]; NaN becomes `nan`: one of the bounds, or the NaN without a sign (which a
// processor's own NaN may have).
static void clamp_span(float *restrict x, int64_t n, float low, float high, float nan)
{
    for (int64_t i = 0; i < n; i++) {
        float v = moei_selectf(x[i] < low, low, x[i]);
        v = moei_selectf(v > high, high, v);
        x[i] = moei_selectf((int32_t)(moei_f32_bits(v) & ABS_MASK) > INF_BITS, nan, v);
    }
}

#define ENCODE(expression)                                                                         \
    for (int64_t i = 0; i < n; i++) {                                                              \
        const float v = x[i];                                                                      \
        codes[i] = (uint8_t)(expression);                                                          \
    }                                                                                              \
    break

// The first of the eight magnitudes whose f32 distance from |v| is smallest.
static uint8_t nearest_e2m1(float v)
{
    const uint32_t bits = moei_f32_bits(v);
    const float a = moei_f32_from_bits(bits & ABS_MASK);
    float least = a;
    uint32_t code = 0;
    for (uint32_t c = 1; c < 8; c++) {
        const float d = a - moei_e2m1_to_f32((uint8_t)c);
        const float distance = moei_f32_from_bits(moei_f32_bits(d) & ABS_MASK);
        const int nearer = distance < least;
        code = moei_select(nearer, c, code);
        least = moei_selectf(nearer, distance, least);
    }
    return moei_e2m1_join(bits, code);
}

static void encode_e2m1(moei_code_rounding rounding, const float *restrict x, int64_t n,
                        uint8_t *restrict codes)
{
    switch (rounding) {
    case MOEI_ROUND_DISTANCE:
        ENCODE(nearest_e2m1(v));
    case MOEI_ROUND_HALF_DOWN:
        for (int64_t i = 0; i < n; i++) {
            const uint8_t code = moei_f32_to_e2m1_half_down(x[i]);
            codes[i] = (uint8_t)(code == 8u ? 0u : code);
        }
        break;
    case MOEI_ROUND_HALF_AWAY:
        ENCODE(moei_f32_to_e2m1_half_away(v));
    default:
        ENCODE(moei_f32_to_e2m1(v, MOEI_OVERFLOW_SATURATE));
    }
}

static void encode_int(moei_code_rounding rounding, const float *restrict x, int64_t n,
                       uint8_t *restrict codes)
{
    switch (rounding) {
    case MOEI_ROUND_TRUNCATE:
        ENCODE(moei_f32_trunc_i32(v));
    case MOEI_ROUND_HALF_AWAY:
        ENCODE(moei_f32_round_half_away_i32(v));
    default:
        ENCODE(moei_f32_round_half_even_i32(v));
    }
}

// Clamped values to codes, one byte each.
static void encode_span(const moek_quantize_args *a, float *restrict x, int64_t n,
                        uint8_t *restrict codes)
{
    const moe_dtype elem = a->quant.elem;
    const float max = moei_quant_max(a->info, elem);
    const float nan = a->info->nan == MOEI_NAN_LOW ? -max : moei_f32_from_bits(NAN_BITS);
    switch (elem) {
    case MOE_E4M3FN:
        clamp_span(x, n, -max, max, nan);
        ENCODE(moei_f32_to_e4m3fn(v, MOEI_OVERFLOW_SATURATE));
    case MOE_E4M3FNUZ:
        clamp_span(x, n, -max, max, nan);
        ENCODE(moei_f32_to_e4m3fnuz(v, MOEI_OVERFLOW_SATURATE));
    case MOE_E5M2:
        clamp_span(x, n, -max, max, nan);
        ENCODE(moei_f32_to_e5m2(v, MOEI_OVERFLOW_SATURATE));
    case MOE_E2M3:
        ENCODE(moei_f32_to_e2m3(v, MOEI_OVERFLOW_SATURATE));
    case MOE_E3M2:
        ENCODE(moei_f32_to_e3m2(v, MOEI_OVERFLOW_SATURATE));
    case MOE_E2M1:
        encode_e2m1(a->info->rounding, x, n, codes);
        break;
    default: // int8, int4
        clamp_span(x, n, -max - 1.0f, max, a->info->nan == MOEI_NAN_LOW ? -max - 1.0f : 0.0f);
        encode_int(a->info->rounding, x, n, codes);
        break;
    }
}

// Codes [k0, k0 + n) of a row, k0 on a byte; bits past the last code of the last byte are 0.
static void pack_span(moe_dtype elem, const uint8_t *codes, int64_t n, uint8_t *row, int64_t k0)
{
    const int bits = moe_dtype_bits(elem);
    uint8_t *out = row + k0 * bits / 8;
    if (bits == 8) {
        memcpy(out, codes, (size_t)n);
    } else if (bits == 4) {
        for (int64_t i = 0; i < n / 2; i++) {
            out[i] = (uint8_t)((codes[2 * i] & 15u) | ((unsigned)codes[2 * i + 1] << 4));
        }
        if (n % 2 != 0) {
            out[n / 2] = codes[n - 1] & 15u;
        }
    } else {
        memset(out, 0, (size_t)((n * bits + 7) / 8));
        for (int64_t i = 0; i < n; i++) {
            moei_set_u6(out, (size_t)i, codes[i]);
        }
    }
}

static void store_span(const moek_quantize_args *a, float *x, int64_t n, uint8_t *row, int64_t k0)
{
    if (a->quant.elem == MOE_I16) {
        for (int64_t i = 0; i < n; i++) {
            const int16_t code = (int16_t)moei_f32_round_half_even_i32(x[i]);
            memcpy(row + 2 * (k0 + i), &code, sizeof code);
        }
        return;
    }
    uint8_t codes[SPAN];
    encode_span(a, x, n, codes);
    pack_span(a->quant.elem, codes, n, row, k0);
}

// -------------------------------------------------------------------------------------------- rows

static uint8_t *x_row(const moek_quantize_args *a, int32_t b, int64_t r)
{
    return a->x + b * a->x_batch_stride + r * a->x_row_stride;
}

static uint8_t *q_row(const moek_quantize_args *a, int32_t b, int64_t r)
{
    return a->q + b * a->q_batch_stride + r * a->q_row_stride;
}

// A row whose groups fit in a span: loaded once.
static void short_groups(const moek_quantize_args *a, int32_t b, int64_t r)
{
    const int64_t group = a->quant.group;
    const int64_t step = SPAN / group * group;
    const uint8_t *row = x_row(a, b, r);
    float x[SPAN];
    for (int64_t k0 = 0; k0 < a->k; k0 += step) {
        const int64_t n = moei_i64_min(step, a->k - k0);
        load_span(a, row, k0, n, x);
        for (int64_t i = 0; i < n; i += group) {
            const int64_t len = moei_i64_min(group, n - i);
            const scale s = scale_of(a, magnitude_of(x + i, len, (magnitude){0, 0}));
            store_scale(a, b, r, (k0 + i) / group, &s);
            transform_span(x + i, len, &s);
        }
        store_span(a, x, n, q_row(a, b, r), k0);
    }
}

static magnitude rows_magnitude(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1,
                                int64_t k0, int64_t k1)
{
    magnitude m = {0, 0};
    float x[SPAN];
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t k = k0; k < k1; k += SPAN) {
            const int64_t n = moei_i64_min(SPAN, k1 - k);
            load_span(a, x_row(a, b, r), k, n, x);
            m = magnitude_of(x, n, m);
        }
    }
    return m;
}

static void rows_codes(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1, int64_t k0,
                       int64_t k1, const scale *s)
{
    float x[SPAN];
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t k = k0; k < k1; k += SPAN) {
            const int64_t n = moei_i64_min(SPAN, k1 - k);
            load_span(a, x_row(a, b, r), k, n, x);
            transform_span(x, n, s);
            store_span(a, x, n, q_row(a, b, r), k);
        }
    }
}

// Rows that share scales: one, or the rows of a block.
static void long_groups(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1,
                        int64_t block)
{
    const int64_t group = a->quant.group > 0 ? a->quant.group : a->k;
    for (int64_t g = 0; g < groups_of(a); g++) {
        const int64_t k1 = moei_i64_min((g + 1) * group, a->k);
        const scale s = scale_of(a, rows_magnitude(a, b, r0, r1, g * group, k1));
        store_scale(a, b, block, g, &s);
        rows_codes(a, b, r0, r1, g * group, k1, &s);
    }
}

static void quantize_rows(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1)
{
    const moei_quant_grain grain = a->info->grain;
    if (grain == MOEI_GRAIN_TENSOR) {
        const scale s = apply_scale(a, load_scale(a, b, 0, 0), 0.0f);
        rows_codes(a, b, r0, r1, 0, a->k, &s);
    } else if (grain == MOEI_GRAIN_BLOCK) {
        const int64_t block = a->info->block_rows;
        for (int64_t r = r0; r < r1; r += block) {
            long_groups(a, b, r, moei_i64_min(r + block, r1), r / block);
        }
    } else {
        for (int64_t r = r0; r < r1; r++) {
            if (grain == MOEI_GRAIN_GROUP && a->quant.group <= SPAN) {
                short_groups(a, b, r);
            } else {
                long_groups(a, b, r, r + 1, r);
            }
        }
    }
}

static void zero_scales(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1)
{
    const scale zero = {0.0f, 0, TIMES, 0.0f};
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t g = 0; g < groups_of(a); g++) {
            store_scale(a, b, r, g, &zero);
        }
    }
}

static void dequantize_rows(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1)
{
    const moei_quant_grain grain = a->info->grain;
    const int64_t rows = grain == MOEI_GRAIN_BLOCK ? a->info->block_rows : 1;
    const int64_t group = a->quant.group > 0 ? a->quant.group : a->k;
    const bool global = a->info->code == MOEI_CODE_GLOBAL;
    const float g = global ? a->global_scale[0] : 1.0f;
    const int x_bytes = moe_dtype_bits(a->x_dtype) / 8;
    float x[SPAN];
    for (int64_t r = r0; r < r1; r++) {
        int64_t n;
        for (int64_t k = 0; k < a->k; k += n) {
            n = moei_i64_min(moei_i64_min(SPAN, group - k % group), a->k - k);
            const int64_t block = grain == MOEI_GRAIN_TENSOR ? 0 : r / rows;
            const float s = load_scale(a, b, block, k / group);
            moei_load_f32(a->quant.elem, q_row(a, b, r), k, n, x);
            for (int64_t i = 0; i < n; i++) {
                x[i] = x[i] * s;
            }
            for (int64_t i = 0; global && i < n; i++) {
                x[i] = x[i] / g;
            }
            clamp_span(x, n, -moei_f32_from_bits(INF_BITS), moei_f32_from_bits(INF_BITS),
                       moei_f32_from_bits(NAN_BITS));
            moei_store_f32(a->x_dtype, x_row(a, b, r) + k * x_bytes, n, x);
        }
    }
}

static void raise_amax(uint32_t *amax, uint32_t bits)
{
    uint32_t seen = __atomic_load_n(amax, __ATOMIC_RELAXED);
    while (seen < bits && !__atomic_compare_exchange_n(amax, &seen, bits, true, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
}

static void write_global(const moek_quantize_args *a)
{
    const float amax = moei_f32_from_bits(__atomic_load_n(a->amax, __ATOMIC_RELAXED) & ABS_MASK);
    if (a->info->scale == MOEI_SCALE_NVFP4_INVERSE) {
        const float g = finite_factor(finite_factor(1.0f / amax) * 2688.0f); // 448 * 6
        a->global_scale[0] = amax == 0.0f ? 1.0f : g;
    } else {
        const scale s = {float_scale(a, amax), 0, TIMES, 0.0f};
        store_scale(a, 0, 0, 0, &s);
    }
}

moek_quantize_fn MOEI_REF(moek_quantize_any_any);
void MOEI_REF(moek_quantize_any_any)(const moek_quantize_args *args, int32_t b, int64_t r0,
                                     int64_t r1)
{
    const int64_t end = moei_i64_min(r1, moei_quantize_count(args, b));
    switch (args->stage) {
    case MOEK_QUANTIZE_CODES:
        quantize_rows(args, b, r0, end);
        if (args->zero_absent_scales) {
            zero_scales(args, b, moei_i64_max(r0, end), r1);
        }
        break;
    case MOEK_QUANTIZE_AMAX:
        raise_amax(args->amax, rows_magnitude(args, b, r0, end, 0, args->k).amax);
        break;
    case MOEK_QUANTIZE_SCALE:
        write_global(args);
        break;
    case MOEK_QUANTIZE_INVERSE:
        dequantize_rows(args, b, r0, end);
        break;
    }
}
