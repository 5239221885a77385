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
                x[i] = moei_round_bf16(moei_round_bf16(x[i]) * up[i]);
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
            x[i] = moei_round_bf16(x[i]);
        }
    }
}

static moei_magnitude magnitude_of(const float *x, int64_t n, moei_magnitude m)
{
    int32_t amax = (int32_t)m.amax;
    int32_t any = (int32_t)m.any;
    for (int64_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)(moei_f32_bits(x[i]) & MOEI_ABS_MASK);
        const int32_t kept = bits > (int32_t)MOEI_INF_BITS ? 0 : bits;
        any = bits > any ? bits : any;
        amax = kept > amax ? kept : amax;
    }
    return (moei_magnitude){(uint32_t)amax, (uint32_t)any};
}

// ------------------------------------------------------------------------------------------ scales

static moei_scale scale_of(const moek_quantize_args *a, moei_magnitude m)
{
    const float global = a->info->code == MOEI_CODE_GLOBAL ? a->global_scale[0] : 1.0f;
    return moei_scale_of(a->info, &a->quant, global, m);
}

static void store_scale(const moek_quantize_args *a, int32_t b, int64_t row, int64_t g,
                        const moei_scale *s)
{
    uint8_t *at = moei_quantize_scale_at(a, b, row, g);
    switch (a->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        memcpy(at, &s->value, sizeof s->value);
        return;
    case MOE_SCALE_UE8M0_PACKED:
        if (g + 1 == moei_quantize_groups(a)) {
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
    const uint8_t *at = moei_quantize_scale_at(a, b, row, g);
    float s;
    switch (a->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        memcpy(&s, at, sizeof s);
        return s;
    default:
        return moei_scale_from_byte(a->info, a->quant.scale_type, *at);
    }
}

// ------------------------------------------------------------------------------------------- codes

static void transform_span(float *restrict x, int64_t n, const moei_scale *scale)
{
#define TRANSFORM(how)                                                                             \
    case how:                                                                                      \
        s.use = how;                                                                               \
        for (int64_t i = 0; i < n; i++) {                                                          \
            x[i] = moei_scale_use_on(&s, x[i]);                                                    \
        }                                                                                          \
        break;
    moei_scale s = *scale;
    switch (scale->use) {
        TRANSFORM(MOEI_USE_TIMES)
        TRANSFORM(MOEI_USE_DIVIDE)
        TRANSFORM(MOEI_USE_TIMES_BF16)
        TRANSFORM(MOEI_USE_ZERO)
    }
#undef TRANSFORM
}

static void clamp_span(const moek_quantize_args *a, float *restrict x, int64_t n)
{
    const moei_quant_range r = moei_quant_range_of(a->info, a->quant.elem);
    for (int64_t i = 0; r.clamps && i < n; i++) {
        x[i] = moei_quant_clamp(x[i], r.low, r.high, r.nan);
    }
}

// Clamped values to codes, one byte each. Element and rounding are constants within a loop.
static void encode_span(const moek_quantize_args *a, const float *restrict x, int64_t n,
                        uint8_t *restrict codes)
{
#define ENCODE(elem, rounding)                                                                     \
    for (int64_t i = 0; i < n; i++) {                                                              \
        codes[i] = (uint8_t)moei_quant_code(elem, rounding, x[i]);                                 \
    }                                                                                              \
    break
    MOEI_QUANT_CHOOSE_CODE(a->quant.elem, a->info->rounding, ENCODE)
#undef ENCODE
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
            const int16_t code = (int16_t)moei_quant_code(MOE_I16, MOEI_ROUND_EVEN, x[i]);
            memcpy(row + 2 * (k0 + i), &code, sizeof code);
        }
        return;
    }
    uint8_t codes[SPAN];
    clamp_span(a, x, n);
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
            const moei_scale s = scale_of(a, magnitude_of(x + i, len, (moei_magnitude){0, 0}));
            store_scale(a, b, r, (k0 + i) / group, &s);
            transform_span(x + i, len, &s);
        }
        store_span(a, x, n, q_row(a, b, r), k0);
    }
}

static moei_magnitude rows_magnitude(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1,
                                     int64_t k0, int64_t k1)
{
    moei_magnitude m = {0, 0};
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
                       int64_t k1, const moei_scale *s)
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
    for (int64_t g = 0; g < moei_quantize_groups(a); g++) {
        const int64_t k1 = moei_i64_min((g + 1) * group, a->k);
        const moei_scale s = scale_of(a, rows_magnitude(a, b, r0, r1, g * group, k1));
        store_scale(a, b, block, g, &s);
        rows_codes(a, b, r0, r1, g * group, k1, &s);
    }
}

static void quantize_rows(const moek_quantize_args *a, int32_t b, int64_t r0, int64_t r1)
{
    const moei_quant_grain grain = a->info->grain;
    if (grain == MOEI_GRAIN_TENSOR) {
        const moei_scale s = moei_scale_apply(a->info, a->quant.elem, load_scale(a, b, 0, 0), 0.0f);
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
    const moei_scale zero = {0.0f, 0, MOEI_USE_TIMES, 0.0f};
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t g = 0; g < moei_quantize_groups(a); g++) {
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
    const uint32_t bits = __atomic_load_n(a->amax, __ATOMIC_RELAXED) & MOEI_ABS_MASK;
    const float value = moei_scale_of_all(a->info, &a->quant, moei_f32_from_bits(bits));
    if (a->info->scale == MOEI_SCALE_NVFP4_INVERSE) {
        a->global_scale[0] = value;
    } else {
        const moei_scale s = {value, 0, MOEI_USE_TIMES, 0.0f};
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
