// SPDX-License-Identifier: Apache-2.0
#include "float64/quantize.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "numerics/e8m0.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"

// One rounding each: 64 bits of fraction hold a product of two f32 exactly, and a quotient or sum
// rounded to 64 bits rounds to the same f32 as the exact one (64 >= 2 * 24 + 2).
static float mul(float a, float b)
{
    return (float)((long double)a * (long double)b);
}

static float divide(float a, float b)
{
    return (float)((long double)a / (long double)b);
}

// A multiplier is at most the largest float.
static float finite(float f)
{
    return f > FLT_MAX ? FLT_MAX : f;
}

float float64_round_bf16(long double x)
{
    int e;
    if (isnan(x) || isinf(x) || x == 0.0L) {
        return (float)x;
    }
    (void)frexpl(x, &e); // 2^(e-1) <= |x| < 2^e: 8 significant bits, steps of 2^(e-8)
    if (e < -125) {
        e = -125; // subnormal
    }
    const long double y = ldexpl(rintl(ldexpl(x, 8 - e)), e - 8);
    return fabsl(y) >= 0x1p128L ? copysignf(INFINITY, (float)y) : (float)y;
}

float float64_silu_mul_bf16(float gate, float up)
{
    const long double g = (long double)gate;
    const long double silu = isinf(gate) && gate < 0 ? -0.0L : g / (1.0L + expl(-g));
    return float64_round_bf16((long double)float64_round_bf16(silu) * (long double)up);
}

// --------------------------------------------------------------------------------- element formats

float float64_code_value(moe_dtype elem, uint16_t code)
{
    switch (elem) {
    case MOE_E4M3FN:
        return moei_e4m3fn_to_f32((uint8_t)code);
    case MOE_E4M3FNUZ:
        return moei_e4m3fnuz_to_f32((uint8_t)code);
    case MOE_E5M2:
        return moei_e5m2_to_f32((uint8_t)code);
    case MOE_E2M1:
        return moei_e2m1_to_f32((uint8_t)code);
    case MOE_E2M3:
        return moei_e2m3_to_f32((uint8_t)code);
    case MOE_E3M2:
        return moei_e3m2_to_f32((uint8_t)code);
    case MOE_INT4:
        return code < 8 ? (float)code : (float)code - 16.0f;
    case MOE_I8:
        return (float)(int8_t)(uint8_t)code;
    case MOE_I16:
        return (float)(int16_t)code;
    default:
        return 0.0f;
    }
}

static bool is_integer(moe_dtype elem)
{
    return elem == MOE_INT4 || elem == MOE_I8 || elem == MOE_I16;
}

static bool has_nan(moe_dtype elem)
{
    return elem == MOE_E4M3FN || elem == MOE_E4M3FNUZ || elem == MOE_E5M2;
}

typedef enum ties { EVEN, DOWN, AWAY, TRUNCATE, DISTANCE } ties;

// Largest magnitude that codes may take, per quantiser.
static float largest(moe_quant_spec spec, moe_dtype elem)
{
    switch (elem) {
    case MOE_E4M3FN:
        return 448.0f;
    case MOE_E4M3FNUZ:
        return spec == MOE_QUANT_FP8_GROUP_BF16STEPS ? 240.0f : 224.0f;
    case MOE_E5M2:
        return 57344.0f;
    case MOE_E2M1:
        return 6.0f;
    case MOE_E2M3:
        return 7.5f;
    case MOE_E3M2:
        return 28.0f;
    case MOE_INT4:
        return 7.0f;
    case MOE_I8:
        return 127.0f;
    default:
        return 32639.0f;
    }
}

// The code nearest to v (|v| within the range). Values of non-negative codes ascend; the first one
// not below |v| and its lower neighbour are the candidates.
static uint16_t nearest(moe_dtype elem, float v, ties tie)
{
    const unsigned sign_bit = elem == MOE_E2M1                       ? 8u
                              : elem == MOE_E2M3 || elem == MOE_E3M2 ? 32u
                                                                     : 128u;
    const long double a = fabsl((long double)v);
    unsigned code = 0;
    for (unsigned bit = sign_bit / 2; bit > 0; bit /= 2) { // the largest code with value < a
        const float value = float64_code_value(elem, (uint16_t)(code + bit));
        if (!isnan(value) && (long double)value < a) {
            code += bit;
        }
    }
    if (a > 0.0L) {
        const long double below = a - (long double)float64_code_value(elem, (uint16_t)code);
        const long double above = (long double)float64_code_value(elem, (uint16_t)(code + 1)) - a;
        const bool odd = code % 2 != 0;
        if (above < below || (above == below && (tie == AWAY || (tie == EVEN && odd)))) {
            code++;
        }
    }
    if (elem == MOE_E4M3FNUZ && code == 0) {
        return 0;
    }
    return (uint16_t)(signbit(v) ? sign_bit | code : code);
}

// argmin over the magnitudes of e2m1 of the f32 distance, the first of equals.
static uint16_t least_distance(float v)
{
    const float a = fabsf(v);
    uint16_t best = 0;
    float least = INFINITY;
    for (uint16_t code = 0; code < 8; code++) {
        const long double value = (long double)float64_code_value(MOE_E2M1, code);
        const float distance = fabsf((float)((long double)a - value));
        if (distance < least) {
            best = code;
            least = distance;
        }
    }
    return (uint16_t)(signbit(v) ? best | 8u : best);
}

static uint16_t integer_code(moe_dtype elem, float v, ties tie)
{
    const long double high = elem == MOE_INT4 ? 7.0L : elem == MOE_I8 ? 127.0L : 32767.0L;
    long double r = tie == TRUNCATE ? truncl((long double)v)
                    : tie == AWAY   ? roundl((long double)v)
                                    : rintl((long double)v);
    r = fminl(fmaxl(r, -high - 1.0L), high);
    const unsigned mask = elem == MOE_INT4 ? 15u : elem == MOE_I8 ? 255u : 65535u;
    return (uint16_t)((unsigned)(int)r & mask);
}

// --------------------------------------------------------------------------------------- the rules

typedef struct group_scale {
    float value;
    uint8_t byte;
    enum { TIMES, OVER, TIMES_BF16, NOTHING } how;
    float by;
} group_scale;

// floor(log2 a) for a > 0.
static int floor_log2(long double a)
{
    int e;
    (void)frexpl(a, &e);
    return e - 1;
}

// Round a scale up to a power of two: 2^ceil(log2 s), at least 2^-126 unless 0.
static float pow2_ceil(float s)
{
    int e;
    if (s == 0.0f || isinf(s)) {
        return s;
    }
    const float m = frexpf(s, &e); // s = m * 2^e, 0.5 <= m < 1
    e = m == 0.5f ? e - 1 : e;
    return e < -126 ? 0x1p-126f : ldexpf(1.0f, e);
}

// The e8m0 byte of an f32 power of two, or of a float cut to one: its exponent field.
static uint8_t exponent_field(float s)
{
    if (isinf(s)) {
        return 255;
    }
    return s < 0x1p-126f ? 0 : (uint8_t)(floor_log2((long double)s) + 127);
}

static int emax_of(moe_dtype elem)
{
    return floor_log2((long double)(elem == MOE_E4M3FN ? 448.0f : largest(MOE_QUANT_NONE, elem)));
}

static int fraction_bits(moe_dtype elem)
{
    return elem == MOE_E2M1 ? 1 : elem == MOE_E4M3FN || elem == MOE_E2M3 ? 3 : 2;
}

static group_scale mx(const moe_quant_desc *d, float a)
{
    const float m = largest(d->spec, d->elem);
    const float p = ldexpf(1.0f, emax_of(d->elem));
    int byte = 0;
    bool zero_is_zero = true;
    switch (d->spec) {
    case MOE_QUANT_MX_FLOOR:
        byte = exponent_field(divide(a, p));
        break;
    case MOE_QUANT_MX_FLOOR_MAX:
        byte = exponent_field(divide(a, m));
        break;
    case MOE_QUANT_MX_CEIL:
    case MOE_QUANT_MX_CEIL_AWAY:
        byte = exponent_field(pow2_ceil(divide(a, m)));
        break;
    case MOE_QUANT_MX_EVEN:
        zero_is_zero = false;
        if (a >= 0x1p-126f) {
            // a to `bits` fraction bits, ties up; then its exponent.
            const int bits = fraction_bits(d->elem);
            const int e = isinf(a) ? 128 : floor_log2((long double)a);
            const long double scaled = isinf(a) ? 0 : ldexpl((long double)a, bits - e);
            const int up = isinf(a) ? 128 : e + (floorl(scaled + 0.5L) >= ldexpl(2.0L, bits));
            byte = up == 128 ? 254 : up - emax_of(d->elem) + 127;
        }
        byte = byte < 0 ? 0 : byte;
        break;
    default: // MOE_QUANT_MX_NO_EMAX
        zero_is_zero = false;
        byte = a == 0.0f ? 0 : isinf(a) ? 254 : floor_log2((long double)a) + 127;
        byte = byte < 0 ? 0 : byte;
        break;
    }
    const float by = byte == 0 && zero_is_zero ? 0.0f : (float)ldexpl(1.0L, 127 - byte);
    return (group_scale){moei_e8m0_to_f32((uint8_t)byte), (uint8_t)byte, TIMES, by};
}

// The smallest power of two, 2^-126 or more, for which the rounded code of the maximum fits.
static group_scale fixed_point(const moe_quant_desc *d, float a)
{
    const long double most = (long double)largest(d->spec, d->elem);
    int byte = 1;
    if (isinf(a)) {
        return (group_scale){NAN, 255, NOTHING, 0.0f};
    }
    while (rintl(ldexpl((long double)a, 127 - byte)) > most) {
        byte++;
    }
    return (group_scale){moei_e8m0_to_f32((uint8_t)byte), (uint8_t)byte, TIMES,
                         (float)ldexpl(1.0L, 127 - byte)};
}

static group_scale nvfp4(const moe_quant_desc *d, float a, float g)
{
    float s;
    if (d->spec == MOE_QUANT_NVFP4) {
        s = mul(g, mul(a, divide(1.0f, 6.0f)));
    } else if (d->spec == MOE_QUANT_NVFP4_INVERSE) {
        s = mul(divide(a, 6.0f), g);
    } else {
        s = divide(a, 6.0f);
        g = 1.0f;
    }
    const uint8_t byte = isnan(s) ? 0x7F : (uint8_t)nearest(MOE_E4M3FN, fminf(s, 448.0f), EVEN);
    s = moei_e4m3fn_to_f32(byte);
    if (d->spec == MOE_QUANT_NVFP4_INVERSE && s < 1e-12f) {
        s = 1e-12f;
    }
    return (group_scale){s, byte, TIMES, s == 0.0f ? 0.0f : finite(divide(g, s))};
}

static float bf16_scale(const moe_quant_desc *d, float a)
{
    const float m = largest(d->spec, d->elem);
    const float eps = float64_round_bf16(1e-10L);
    const float inverse = float64_round_bf16((long double)divide(1.0f, m));
    const float amax = fmaxf(float64_round_bf16((long double)a), eps);
    const float s = float64_round_bf16((long double)amax * (long double)inverse);
    if (d->scale_type == MOE_SCALE_F32 || isinf(s)) {
        return s;
    }
    const float log = float64_round_bf16(log2l((long double)s)); // hlog2
    const float power = ceilf(log);                              // hceil
    return power > 127.0f ? INFINITY : ldexpf(1.0f, (int)power); // hexp2
}

// Scale and application of a group with largest magnitude a.
static group_scale rule(const moe_quant_desc *d, float a, float given)
{
    const float m = largest(d->spec, d->elem);
    const bool pow2 = d->scale_type != MOE_SCALE_F32;
    float s = 0.0f;
    switch (d->spec) {
    case MOE_QUANT_FP8_STATIC:
    case MOE_QUANT_INT8_STATIC:
        return (group_scale){given, 0, TIMES, finite(divide(1.0f, given))};
    case MOE_QUANT_FP8_TENSOR:
        s = divide(a, m);
        return (group_scale){s, 0, TIMES, finite(divide(1.0f, s))};
    case MOE_QUANT_FP8_TOKEN:
        a = d->amax_bound > 0.0f ? fminf(a, d->amax_bound) : a;
        s = fmaxf(divide(a, m), divide(1.0f, 512.0f * m));
        return (group_scale){s, 0, OVER, s};
    case MOE_QUANT_FP8_GROUP_DIV:
        s = divide(fmaxf(a, 1e-10f), m);
        s = pow2 ? pow2_ceil(s) : s;
        return (group_scale){s, exponent_field(s), OVER, s};
    case MOE_QUANT_FP8_GROUP_RECIP:
        s = mul(fmaxf(a, 1e-10f), divide(1.0f, m));
        s = pow2 ? pow2_ceil(s) : s;
        return (group_scale){s, exponent_field(s), OVER, s};
    case MOE_QUANT_FP8_GROUP_BF16STEPS:
        s = bf16_scale(d, a);
        return (group_scale){s, exponent_field(s), TIMES_BF16,
                             float64_round_bf16((long double)divide(1.0f, s))};
    case MOE_QUANT_FP8_GROUP_DEEPGEMM:
    case MOE_QUANT_FP8_BLOCK_DEEPGEMM:
    case MOE_QUANT_FP4_GROUP_DEEPGEMM:
        s = mul(fmaxf(a, 1e-4f), divide(1.0f, m));
        s = pow2 ? pow2_ceil(s) : s;
        return (group_scale){s, exponent_field(s), TIMES, divide(1.0f, s)};
    case MOE_QUANT_FP8_BLOCK_INVERSE: {
        const float r = a == 0.0f ? 1.0f : finite(mul(divide(1.0f, a), m));
        return (group_scale){divide(1.0f, r), 0, TIMES, r};
    }
    case MOE_QUANT_INT8_TOKEN:
        a = fmaxf(a, 1e-10f);
        return (group_scale){divide(a, 127.0f), 0, TIMES, divide(127.0f, a)};
    case MOE_QUANT_INT8_GROUP_TRUNC:
        s = divide(fmaxf(a, 1e-10f), 127.0f);
        return (group_scale){s, 0, OVER, s};
    case MOE_QUANT_INT8_GROUP_RECIP:
    case MOE_QUANT_INT8_TOKEN_RECIP:
    case MOE_QUANT_INT4_GROUP_RECIP:
        s = fmaxf(divide(a, m), 1e-10f);
        return (group_scale){s, 0, TIMES, divide(1.0f, s)};
    case MOE_QUANT_NVFP4:
    case MOE_QUANT_NVFP4_INVERSE:
    case MOE_QUANT_NVFP4_SINGLE:
        return nvfp4(d, a, given);
    case MOE_QUANT_I8B32:
    case MOE_QUANT_I16B32:
    case MOE_QUANT_I8B128:
        return fixed_point(d, a);
    default:
        return mx(d, a);
    }
}

static ties tie_of(moe_quant_spec spec)
{
    switch (spec) {
    case MOE_QUANT_INT8_TOKEN:
    case MOE_QUANT_MX_CEIL_AWAY:
    case MOE_QUANT_MX_FLOOR_MAX:
        return AWAY;
    case MOE_QUANT_FP4_GROUP_DEEPGEMM:
        return DOWN;
    case MOE_QUANT_NVFP4_INVERSE:
        return DISTANCE;
    case MOE_QUANT_INT8_GROUP_TRUNC:
        return TRUNCATE;
    default:
        return EVEN;
    }
}

// NaN reaches the lowest code where the public kernels compute max(NaN, low).
static bool nan_is_lowest(moe_quant_spec spec)
{
    return spec == MOE_QUANT_FP8_GROUP_DIV || spec == MOE_QUANT_FP8_GROUP_RECIP ||
           spec == MOE_QUANT_FP8_GROUP_BF16STEPS || spec == MOE_QUANT_INT8_GROUP_TRUNC;
}

static uint16_t code_of(const moe_quant_desc *d, float x, const group_scale *s)
{
    const float m = largest(d->spec, d->elem);
    float v = 0.0f;
    if (s->how == TIMES) {
        v = mul(x, s->by);
    } else if (s->how == OVER) {
        v = divide(x, s->by);
    } else if (s->how == TIMES_BF16) {
        v = float64_round_bf16((long double)x * (long double)s->by);
    }
    if (is_integer(d->elem)) {
        v = isnan(v) ? (nan_is_lowest(d->spec) ? -128.0f : 0.0f) : v;
        return integer_code(d->elem, v, tie_of(d->spec));
    }
    if (isnan(v)) {
        v = -m;
        if (!nan_is_lowest(d->spec)) {
            return d->elem == MOE_E4M3FNUZ ? 0x80
                   : d->elem == MOE_E2M1   ? 7
                   : has_nan(d->elem)      ? 0x7F
                                           : 0x1F;
        }
    }
    if (tie_of(d->spec) == DISTANCE) {
        return least_distance(v);
    }
    v = v > m ? m : v < -m ? -m : v;
    // Only 4-bit codes have other ties than even.
    const ties tie = d->elem == MOE_E2M1 ? tie_of(d->spec) : EVEN;
    const uint16_t code = nearest(d->elem, v, tie);
    return d->spec == MOE_QUANT_FP4_GROUP_DEEPGEMM && code == 8 ? 0 : code;
}

// ------------------------------------------------------------------------------------------- loops

static bool one_scale(moe_quant_spec spec)
{
    return spec == MOE_QUANT_FP8_STATIC || spec == MOE_QUANT_FP8_TENSOR ||
           spec == MOE_QUANT_INT8_STATIC;
}

static int64_t rows_per_scale(const float64_quantised *q)
{
    if (one_scale(q->quant.spec)) {
        return q->rows;
    }
    return q->quant.spec == MOE_QUANT_FP8_BLOCK_INVERSE ||
                   q->quant.spec == MOE_QUANT_FP8_BLOCK_DEEPGEMM
               ? 128
               : 1;
}

int64_t float64_scale_rows(const float64_quantised *q)
{
    const int64_t n = rows_per_scale(q);
    return one_scale(q->quant.spec) ? 1 : (q->rows + n - 1) / n;
}

int64_t float64_groups(const float64_quantised *q)
{
    return q->quant.group == 0 ? 1 : (q->k + q->quant.group - 1) / q->quant.group;
}

static float amax_of(const float64_quantised *q, int64_t r0, int64_t r1, int64_t k0, int64_t k1,
                     bool *nan)
{
    float a = 0.0f;
    *nan = false;
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t k = k0; k < k1; k++) {
            const float x = q->x[r * q->k + k];
            *nan = *nan || isnan(x);
            a = isnan(x) ? a : fmaxf(a, fabsf(x));
        }
    }
    return a;
}

// NaN of the group goes into the scale where neither the code can hold it nor the public kernel's
// code is known.
static bool nan_goes_to_scale(const moe_quant_desc *d)
{
    return !has_nan(d->elem) && !nan_is_lowest(d->spec) && d->spec != MOE_QUANT_INT8_STATIC;
}

void float64_quantize(float64_quantised *q)
{
    const int64_t step = q->quant.group == 0 ? q->k : q->quant.group;
    const int64_t block = rows_per_scale(q);
    bool nan;
    float given = q->given;
    if (q->quant.spec == MOE_QUANT_NVFP4_INVERSE) {
        const float a = amax_of(q, 0, q->rows, 0, q->k, &nan);
        given = a == 0.0f ? 1.0f : finite(mul(finite(divide(1.0f, a)), 2688.0f));
        q->global = given;
    }
    for (int64_t b = 0; b < float64_scale_rows(q); b++) {
        const int64_t r1 = (b + 1) * block < q->rows ? (b + 1) * block : q->rows;
        for (int64_t g = 0; g < float64_groups(q); g++) {
            const int64_t k1 = (g + 1) * step < q->k ? (g + 1) * step : q->k;
            const float a = amax_of(q, b * block, r1, g * step, k1, &nan);
            group_scale s = rule(&q->quant, a, given);
            if (nan && nan_goes_to_scale(&q->quant)) {
                const uint8_t byte = q->quant.scale_type == MOE_SCALE_E4M3FN ? 0x7F : 0xFF;
                s = (group_scale){NAN, byte, NOTHING, 0.0f};
            }
            const bool byte_alone = q->quant.scale_type == MOE_SCALE_E8M0 ||
                                    q->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
            q->scales[b * float64_groups(q) + g] = byte_alone ? moei_e8m0_to_f32(s.byte) : s.value;
            q->bytes[b * float64_groups(q) + g] = s.byte;
            for (int64_t r = b * block; r < r1; r++) {
                for (int64_t k = g * step; k < k1; k++) {
                    const float x = q->quant.spec == MOE_QUANT_FP8_GROUP_BF16STEPS
                                        ? float64_round_bf16((long double)q->x[r * q->k + k])
                                        : q->x[r * q->k + k];
                    q->codes[r * q->k + k] = code_of(&q->quant, x, &s);
                }
            }
        }
    }
}

float float64_dequantize(const float64_quantised *q, uint16_t code, float scale, float global)
{
    float v = mul(float64_code_value(q->quant.elem, code), scale);
    if (q->quant.spec == MOE_QUANT_NVFP4 || q->quant.spec == MOE_QUANT_NVFP4_INVERSE) {
        v = divide(v, global);
    }
    return isnan(v) ? NAN : v;
}
