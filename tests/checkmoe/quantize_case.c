// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/quantize_case.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/twins.h"
#include "core/check.h"
#include "float64/quantize.h"
#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

#define POISON 0xA5

static int below(moec_rng *rng, int n)
{
    return (int)moec_below(rng, n);
}

// In (-1, 1).
static float unit(moec_rng *rng)
{
    return (float)(int32_t)(uint32_t)moec_next(rng) * 0x1p-31f;
}

// ---- inputs -------------------------------------------------------------------------------------

static uint32_t to_dtype(moe_dtype dtype, float x)
{
    return dtype == MOE_F32    ? moei_f32_bits(x)
           : dtype == MOE_BF16 ? moei_f32_to_bf16(x)
                               : moei_f32_to_f16(x);
}

static float from_dtype(moe_dtype dtype, uint32_t bits)
{
    return dtype == MOE_F32    ? moei_f32_from_bits(bits)
           : dtype == MOE_BF16 ? moei_bf16_to_f32((uint16_t)bits)
                               : moei_f16_to_f32((uint16_t)bits);
}

static uint32_t sign_of(moe_dtype dtype)
{
    return dtype == MOE_F32 ? 0x80000000u : 0x8000u;
}

static uint32_t largest_finite(moe_dtype dtype)
{
    return dtype == MOE_F32 ? 0x7F7FFFFFu : dtype == MOE_BF16 ? 0x7F7Fu : 0x7BFFu;
}

// amax at, just above and just below the places where a scale changes.
static uint32_t edge(moec_rng *rng, moe_dtype dtype, float max)
{
    static const float factors[] = {1.0f,   1.25f,   1.5f,       1.75f,
                                    1.875f, 1.9375f, 1.9921875f, 1.992156982421875f};
    const float half = max == 127.0f || max == 32639.0f ? 0.5f * (float)below(rng, 2) : 0.0f;
    const float base = below(rng, 2) ? max + half : factors[below(rng, 8)];
    const int span = dtype == MOE_F16 ? 6 : 30;
    return to_dtype(dtype, ldexpf(base, below(rng, 2 * span) - span)) + (uint32_t)below(rng, 3) -
           1u;
}

// M * 2^n exactly, over the dtype's normal range.
static float exact_edge(moec_rng *rng, moe_dtype dtype, float max)
{
    const float bases[] = {1.0f, 448.0f, 6.0f, max};
    int exponent;
    const float fraction = frexpf(bases[below(rng, 4)], &exponent);
    const int span = dtype == MOE_F16 ? 13 : 125;
    return ldexpf(fraction, below(rng, 2 * span) - span);
}

static float draw_ordinary(moec_rng *rng, moec_quantize_fill fill, moe_dtype dtype, int shift)
{
    const bool half = dtype == MOE_F16;
    switch (fill) {
    case MOEC_QUANTIZE_ZERO:
        return below(rng, 2) ? 0.0f : -0.0f;
    case MOEC_QUANTIZE_NORMAL:
        return (float)moec_normal(rng);
    case MOEC_QUANTIZE_HEAVY:
        return (float)moec_normal(rng) *
               (below(rng, 16) == 0 ? 100.0f * (float)(1 + below(rng, 10)) : 1.0f);
    case MOEC_QUANTIZE_TIES:
        return ldexpf((float)(below(rng, 65) - 32) * 0.25f, shift);
    case MOEC_QUANTIZE_TINY:
        return unit(rng) * (half ? 0x1p-18f : 0x1p-120f) * ldexpf(1.0f, -below(rng, 28));
    case MOEC_QUANTIZE_EDGE:
        return ldexpf(unit(rng), -40);
    case MOEC_QUANTIZE_LARGE:
        return unit(rng) * (half ? 65504.0f : 3.4e38f);
    case MOEC_QUANTIZE_SPREAD:
        return ldexpf(unit(rng), shift - below(rng, 12));
    default:
        return unit(rng);
    }
}

// A special value now and then, as the fill has it; 0 else.
static float draw_special(moec_rng *rng, moec_quantize_fill fill)
{
    const int one_in = fill == MOEC_QUANTIZE_SPECIAL ? 4 : 24;
    if (fill < MOEC_QUANTIZE_INFINITE || below(rng, one_in) != 0) {
        return 0.0f;
    }
    const float x = fill == MOEC_QUANTIZE_INFINITE ? INFINITY
                    : fill == MOEC_QUANTIZE_NAN    ? NAN
                    : below(rng, 3) == 0           ? INFINITY
                                                   : NAN;
    return below(rng, 2) ? x : -x;
}

static void fill_group(moec_rng *rng, moec_quantize_fill fill, moe_dtype dtype, float max,
                       int64_t n, uint32_t *out)
{
    const int shift = below(rng, dtype == MOE_F16 ? 12 : 60) - (dtype == MOE_F16 ? 6 : 30);
    const uint32_t sign = below(rng, 2) ? sign_of(dtype) : 0u;
    const float amax = exact_edge(rng, dtype, max);
    for (int64_t i = 0; i < n; i++) {
        const float special = draw_special(rng, fill);
        float x = draw_ordinary(rng, fill, dtype, shift);
        x = fill == MOEC_QUANTIZE_POWER ? x * amax : x;
        out[i] = to_dtype(dtype, special != 0.0f ? special : x);
        if (fill == MOEC_QUANTIZE_SUBNORMAL) {
            const uint32_t fraction = dtype == MOE_F32    ? 0x7FFFFFu
                                      : dtype == MOE_BF16 ? 0x7Fu
                                                          : 0x3FFu;
            out[i] = (((uint32_t)moec_next(rng) & fraction) >> (shift & 3)) |
                     (below(rng, 2) ? sign_of(dtype) : 0u);
        }
    }
    uint32_t *one = &out[below(rng, (int)n)];
    if (fill == MOEC_QUANTIZE_EDGE) {
        *one = edge(rng, dtype, max) | sign;
    } else if (fill == MOEC_QUANTIZE_POWER) {
        *one = to_dtype(dtype, amax) | sign;
    } else if (fill == MOEC_QUANTIZE_MAX_FINITE) {
        *one = largest_finite(dtype) | sign;
    } else if (fill == MOEC_QUANTIZE_INFINITE) {
        *one = to_dtype(dtype, INFINITY) | sign;
    } else if (fill == MOEC_QUANTIZE_NAN) {
        *one = to_dtype(dtype, NAN) | sign;
    }
}

void moec_quantize_draw_counts(moec_quantize_problem *p, moec_rng *rng)
{
    for (int32_t b = 0; b < p->batches; b++) {
        p->counts[b] = b == 0 ? (int32_t)p->rows : b == 1 ? 0 : below(rng, (int)p->rows + 1);
    }
}

float moec_quantize_draw_given(moec_rng *rng)
{
    static const float scales[] = {1.0f,   0.125f, 0.0123f, 3.7f,  448.0f,
                                   1e-30f, 1e-40f, 0.0f,    3e38f, 2688.0f};
    return scales[below(rng, 10)];
}

// ---- memory -------------------------------------------------------------------------------------

static bool make_memory(const moec_quantize_problem *p, moe_dtype dtype, int ndim,
                        const int64_t *shape, const int64_t *stride, int64_t skip,
                        moec_quantize_memory *m)
{
    int64_t last = 0;
    bool empty = false;
    m->view = moe_tensor_make(NULL, dtype, ndim, shape);
    for (int i = 0; i < ndim; i++) {
        m->view.stride[i] = stride[i] > 0 ? stride[i] : 8; // no rows
        last += (shape[i] - 1) * stride[i];
        empty = empty || shape[i] == 0;
    }
    const int64_t elems = empty ? 0 : last + 1;
    m->view.byte_offset = (uint64_t)(skip * moe_dtype_bits(dtype) / 8);
    const size_t bytes =
        (size_t)((elems * moe_dtype_bits(dtype) + 7) / 8) + (size_t)m->view.byte_offset;
    if (!moec_guard_alloc(&m->guard, bytes, p->at_end)) {
        return false;
    }
    memset(m->guard.data, POISON, bytes);
    m->view.data = m->guard.data;
    return true;
}

static int64_t round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static int64_t row_bytes(moe_dtype elem, int64_t k)
{
    return (k * moe_dtype_bits(elem) + 7) / 8;
}

static bool make_x(const moec_quantize_problem *p, int64_t width, moec_quantize_memory *m)
{
    const int first = p->batched ? 0 : 1;
    const int64_t row = width + (p->padded ? 3 : 0);
    const int64_t shape[3] = {p->batches, p->rows, width};
    const int64_t stride[3] = {row * (p->rows + (p->padded ? 1 : 0)), row, 1};
    return make_memory(p, p->x_dtype, 3 - first, shape + first, stride + first, p->padded ? 1 : 0,
                       m);
}

static bool make_q(const moec_quantize_problem *p, moec_quantize_memory *m)
{
    const int first = p->batched ? 0 : 1;
    const bool bytes = p->bytes && p->quant.elem != MOE_I16;
    const int64_t width = bytes ? row_bytes(p->quant.elem, p->k) : p->k;
    const bool whole = bytes || moe_dtype_bits(p->quant.elem) >= 8;
    const int64_t row =
        whole ? width + (p->padded ? 5 : 0) : round_up(width, 8) + (p->padded ? 8 : 0);
    const int64_t shape[3] = {p->batches, p->rows, width};
    const int64_t stride[3] = {row * (p->rows + (p->padded ? 1 : 0)), row, 1};
    return make_memory(p, bytes ? MOE_U8 : p->quant.elem, 3 - first, shape + first, stride + first,
                       p->padded ? 8 : 0, m);
}

int64_t moec_quantize_block_rows(const moec_quantize_problem *p)
{
    return moei_quant_get(p->quant.spec)->grain == MOEI_GRAIN_BLOCK ? 128 : 1;
}

int64_t moec_quantize_groups(const moec_quantize_problem *p)
{
    return p->quant.group > 0 ? (p->k + p->quant.group - 1) / p->quant.group : 1;
}

static bool make_scales(const moec_quantize_problem *p, moec_quantize_memory *m)
{
    const moei_quant_grain grain = moei_quant_get(p->quant.spec)->grain;
    const bool packed = p->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    const moe_dtype dtype = moei_scale_dtype(p->quant.scale_type);
    const int64_t one[1] = {1};
    if (grain == MOEI_GRAIN_TENSOR) {
        return make_memory(p, dtype, 1, one, one, 0, m);
    }
    const int64_t rows = (p->rows + moec_quantize_block_rows(p) - 1) / moec_quantize_block_rows(p);
    const int64_t groups = packed ? (moec_quantize_groups(p) + 3) / 4 : moec_quantize_groups(p);
    const int64_t pad = p->padded ? 2 : 0;
    const int64_t shape[3] = {p->batches, rows, groups};
    int64_t stride[3] = {(rows + pad) * (groups + pad), groups + pad, 1};
    if (p->quant.scale_layout == MOE_SCALE_LAYOUT_COLUMN) {
        stride[1] = 1;
        stride[2] = packed ? round_up(rows, 4) + pad : rows + pad;
        stride[0] = stride[2] * (groups + pad);
    }
    const bool flat = grain == MOEI_GRAIN_TOKEN && !p->padded; // [rows] instead of [rows, 1]
    const moe_dtype shown = moe_dtype_bits(dtype) == 8 && p->bytes ? MOE_U8 : dtype;
    const int first = p->batched ? 0 : 1;
    return make_memory(p, shown, 3 - first - (flat ? 1 : 0), shape + first, stride + first,
                       p->padded ? 1 : 0, m);
}

static bool needs_global(const moec_quantize_problem *p)
{
    return p->quant.spec == MOE_QUANT_NVFP4 || p->quant.spec == MOE_QUANT_NVFP4_INVERSE;
}

static bool needs_scale(const moec_quantize_problem *p)
{
    return p->quant.spec == MOE_QUANT_FP8_STATIC || p->quant.spec == MOE_QUANT_INT8_STATIC;
}

static bool output_make(const moec_quantize_problem *p, moec_quantize_output *o)
{
    memset(o, 0, sizeof *o);
    o->global = p->given;
    if (!make_q(p, &o->q) || !make_scales(p, &o->scales) || !make_x(p, p->k, &o->back)) {
        return false;
    }
    if (needs_scale(p)) {
        memcpy(o->scales.guard.data, &p->given, sizeof p->given);
    }
    return true;
}

void moec_quantize_output_free(moec_quantize_output *o)
{
    moec_guard_free(&o->q.guard);
    moec_guard_free(&o->scales.guard);
    moec_guard_free(&o->back.guard);
}

int64_t moec_quantize_count(const moec_quantize_problem *p, int32_t b)
{
    return p->with_counts ? p->counts[b] : p->rows;
}

unsigned char *moec_quantize_row(const moec_quantize_memory *m, const moec_quantize_problem *p,
                                 int32_t b, int64_t r)
{
    const int dims = m->view.ndim;
    const int64_t element = (p->batched ? b * m->view.stride[0] : 0) + r * m->view.stride[dims - 2];
    return m->guard.data + m->view.byte_offset + element * moe_dtype_bits(m->view.dtype) / 8;
}

unsigned char *moec_quantize_scale(const moec_quantize_memory *m, const moec_quantize_problem *p,
                                   int32_t b, int64_t row, int64_t g)
{
    const bool packed = p->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    int64_t element = p->batched && m->view.ndim > 1 ? b * m->view.stride[0] : 0;
    if (moei_quant_get(p->quant.spec)->grain == MOEI_GRAIN_TENSOR) {
        return m->guard.data + m->view.byte_offset;
    }
    const bool flat = m->view.ndim == (p->batched ? 2 : 1);
    const int row_dim = p->batched ? 1 : 0;
    element += row * m->view.stride[row_dim];
    element += flat ? 0 : (packed ? g / 4 : g) * m->view.stride[row_dim + 1];
    return m->guard.data + m->view.byte_offset + element * moe_dtype_bits(m->view.dtype) / 8 +
           (packed ? g % 4 : 0);
}

// ---- what must come out -------------------------------------------------------------------------

static void expect_codes(const float64_quantised *f, int64_t row, unsigned char *out)
{
    const int bits = moe_dtype_bits(f->quant.elem);
    memset(out, 0, (size_t)row_bytes(f->quant.elem, f->k));
    for (int64_t i = 0; i < f->k; i++) {
        const uint32_t code = f->codes[row * f->k + i];
        for (int bit = 0; bit < bits; bit++) {
            const int64_t place = i * bits + bit;
            out[place / 8] = (unsigned char)(out[place / 8] | ((code >> bit) & 1u) << (place % 8));
        }
    }
}

static void expect_scale(const float64_quantised *f, int64_t i, int64_t g, int64_t groups,
                         unsigned char *out)
{
    switch (f->quant.scale_type) {
    case MOE_SCALE_F32:
    case MOE_SCALE_UE8M0_F32:
        memcpy(out, &f->scales[i], sizeof f->scales[i]);
        break;
    case MOE_SCALE_UE8M0_PACKED:
        if (g == groups - 1) {
            memset(out, 0, (size_t)(4 - g % 4));
        }
        out[0] = f->bytes[i];
        break;
    default:
        out[0] = f->bytes[i];
        break;
    }
}

// The values that row `row` of the statement means, in x's dtype.
static void expect_back(const moec_quantize_case *c, const float64_quantised *f, int64_t row,
                        int64_t scale_row, unsigned char *out)
{
    const moec_quantize_problem *p = &c->p;
    const float global = p->quant.spec == MOE_QUANT_NVFP4_INVERSE ? f->global : p->given;
    for (int64_t k = 0; k < p->k; k++) {
        const int64_t g = p->quant.group > 0 ? k / p->quant.group : 0;
        const float scale = f->scales[scale_row * float64_groups(f) + g];
        const uint32_t bits =
            to_dtype(p->x_dtype, float64_dequantize(f, f->codes[row * p->k + k], scale, global));
        memcpy(out + k * moe_dtype_bits(p->x_dtype) / 8, &bits,
               (size_t)moe_dtype_bits(p->x_dtype) / 8);
    }
}

// Puts the statement's rows, those of batches [b0, b1) one after another, where they belong.
static void place_rows(moec_quantize_case *c, const float64_quantised *f, int32_t b0, int32_t b1)
{
    const moec_quantize_problem *p = &c->p;
    const bool tensor = moei_quant_get(p->quant.spec)->grain == MOEI_GRAIN_TENSOR;
    const int64_t block = moec_quantize_block_rows(p);
    const int64_t groups = float64_groups(f);
    int64_t row = 0;
    for (int32_t b = b0; b < b1; b++) {
        for (int64_t r = 0; r < moec_quantize_count(p, b); r++, row++) {
            const int64_t scale_row = tensor ? 0 : row / block;
            expect_codes(f, row, moec_quantize_row(&c->want.q, p, b, r));
            for (int64_t g = 0; g < groups && !tensor; g++) {
                expect_scale(f, scale_row * groups + g, g, groups,
                             moec_quantize_scale(&c->want.scales, p, b, r / block, g));
            }
            if (!p->silu) {
                expect_back(c, f, row, scale_row, moec_quantize_row(&c->want.back, p, b, r));
            }
        }
    }
    if (tensor) {
        memcpy(c->want.scales.guard.data, &f->scales[0], sizeof f->scales[0]);
    }
}

// Runs the statement on the rows of batches [b0, b1) that are there.
static bool expect(moec_quantize_case *c, int32_t b0, int32_t b1)
{
    const moec_quantize_problem *p = &c->p;
    const size_t elems = (size_t)(p->batches * p->rows * p->k) + 1;
    float *gathered = malloc(elems * sizeof *gathered);
    float64_quantised f = {.quant = p->quant, .k = p->k, .x = gathered, .given = p->given};
    for (int32_t b = b0; b < b1 && gathered != NULL; b++) {
        const int64_t n = moec_quantize_count(p, b);
        memcpy(gathered + f.rows * p->k, c->values + b * p->rows * p->k,
               (size_t)(n * p->k) * sizeof *gathered);
        f.rows += n;
    }
    const size_t places = (size_t)((f.rows + 1) * (float64_groups(&f) + 1));
    f.codes = malloc(elems * sizeof *f.codes);
    f.scales = malloc(places * sizeof *f.scales);
    f.bytes = malloc(places);
    const bool ok = gathered != NULL && f.codes != NULL && f.scales != NULL && f.bytes != NULL;
    if (ok) {
        float64_quantize(&f);
        if (p->quant.spec == MOE_QUANT_NVFP4_INVERSE) {
            c->want.global = f.global;
        }
        place_rows(c, &f, b0, b1);
    }
    free(gathered);
    free(f.codes);
    free(f.scales);
    free(f.bytes);
    return ok;
}

// moe_silu_mul_quantize sets the scales of absent rows to 0.
static void expect_zero_scales(moec_quantize_case *c)
{
    const moec_quantize_problem *p = &c->p;
    const bool packed = p->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    const size_t bytes = (size_t)moe_dtype_bits(moei_scale_dtype(p->quant.scale_type)) / 8;
    for (int32_t b = 0; b < p->batches; b++) {
        for (int64_t r = moec_quantize_count(p, b); r < p->rows; r++) {
            for (int64_t g = 0; g < moec_quantize_groups(p); g++) {
                memset(moec_quantize_scale(&c->want.scales, p, b, r, g), 0,
                       packed ? 4u - (unsigned)(g % 4) : bytes);
            }
        }
    }
}

// ---- building -----------------------------------------------------------------------------------

static void describe(moec_quantize_case *c)
{
    static const char *const fills[] = {"zero", "normal",     "heavy",    "spread",  "ties",
                                        "tiny", "subnormal",  "edge",     "power",   "large",
                                        "max",  "infinities", "with nan", "special", "mixed"};
    const moec_quantize_problem *p = &c->p;
    (void)snprintf(c->text, sizeof c->text,
                   "%s %s %s %s group %d x %s [%d, %" PRId64 ", %" PRId64 "] %s%s%s%s",
                   moe_quant_name(p->quant.spec), moe_dtype_name(p->quant.elem),
                   moei_scale_type_name(p->quant.scale_type),
                   p->quant.scale_layout == MOE_SCALE_LAYOUT_COLUMN ? "column" : "row",
                   (int)p->quant.group, moe_dtype_name(p->x_dtype), (int)p->batches, p->rows, p->k,
                   p->silu ? "" : fills[p->fill], p->padded ? " padded" : "",
                   p->with_counts ? " counts" : "",
                   p->silu ? (p->round_steps ? " silu rounded" : " silu") : "");
}

// Infinity where no row is: what is read by mistake shows.
static void poison_x(const moec_quantize_problem *p, moec_quantize_memory *x)
{
    const uint32_t bits = to_dtype(p->x_dtype, INFINITY);
    const size_t size = (size_t)moe_dtype_bits(p->x_dtype) / 8;
    for (size_t i = 0; i + size <= x->guard.bytes; i += size) {
        memcpy(x->guard.data + i, &bits, size);
    }
}

// One row, a fill for each group that shares a scale.
static void draw_row(const moec_quantize_problem *p, moec_rng *rng, uint32_t *bits, float *values,
                     unsigned char *x)
{
    const float max = moei_quant_max(moei_quant_get(p->quant.spec), p->quant.elem);
    const int64_t group = p->quant.group > 0 ? p->quant.group : p->k;
    const size_t size = (size_t)moe_dtype_bits(p->x_dtype) / 8;
    for (int64_t k = 0; k < p->k; k += group) {
        const int fills = p->tame ? MOEC_QUANTIZE_TAME : MOEC_QUANTIZE_NUM_FILLS;
        const moec_quantize_fill fill =
            p->fill == MOEC_QUANTIZE_MIXED ? (moec_quantize_fill)below(rng, fills) : p->fill;
        fill_group(rng, fill, p->x_dtype, max, k + group < p->k ? group : p->k - k, bits + k);
    }
    for (int64_t k = 0; k < p->k; k++) {
        values[k] = from_dtype(p->x_dtype, bits[k]);
        memcpy(x + (size_t)k * size, &bits[k], size);
    }
}

// One row of gates and ups in bf16, and their product.
static void draw_silu_row(const moec_quantize_problem *p, moec_rng *rng, float *values,
                          unsigned char *x)
{
    const float bound = ldexpf(1.0f, 1 + below(rng, 19));
    for (int64_t k = 0; k < p->k; k++) {
        const uint16_t gate = moei_f32_to_bf16(unit(rng) * bound);
        const uint16_t up = moei_f32_to_bf16(unit(rng) * bound);
        const float g = moei_bf16_to_f32(gate);
        const float u = moei_bf16_to_f32(up);
        memcpy(x + 2 * k, &gate, sizeof gate);
        memcpy(x + 2 * (p->k + k), &up, sizeof up);
        values[k] = p->round_steps ? float64_silu_mul_bf16(g, u) : moei_silu(g) * u;
    }
}

bool moec_quantize_build(moec_quantize_case *c, const moec_quantize_problem *p, moec_rng *rng)
{
    uint32_t *bits = malloc((size_t)(p->k + 1) * sizeof *bits);
    memset(c, 0, sizeof *c);
    c->p = *p;
    describe(c);
    c->values = malloc((size_t)(p->batches * p->rows * p->k + 1) * sizeof *c->values);
    bool ok = bits != NULL && c->values != NULL && make_x(p, p->silu ? 2 * p->k : p->k, &c->x) &&
              output_make(p, &c->want);
    if (ok) {
        poison_x(p, &c->x);
    }
    for (int32_t b = 0; ok && b < p->batches; b++) {
        for (int64_t r = 0; r < moec_quantize_count(p, b); r++) {
            float *values = c->values + (b * p->rows + r) * p->k;
            unsigned char *x = moec_quantize_row(&c->x, p, b, r);
            if (p->silu) {
                draw_silu_row(p, rng, values, x);
            } else {
                draw_row(p, rng, bits, values, x);
            }
        }
    }
    const int32_t step = moec_quantize_block_rows(p) == 1 ? p->batches : 1; // blocks begin anew
    for (int32_t b = 0; ok && b < p->batches; b += step) {
        ok = expect(c, b, b + step);
    }
    if (ok && p->silu) {
        expect_zero_scales(c);
    }
    free(bits);
    return ok;
}

void moec_quantize_free(moec_quantize_case *c)
{
    moec_guard_free(&c->x.guard);
    moec_quantize_output_free(&c->want);
    free(c->values);
    c->values = NULL;
}

// ---- running ------------------------------------------------------------------------------------

static moe_status silu_mul(const moe_context *ctx, const moec_quantize_problem *p,
                           const moe_quantize_args *args)
{
    moe_silu_mul_quantize_args silu = moe_silu_mul_quantize_args_default();
    silu.quant = args->quant;
    silu.round_steps = p->round_steps;
    silu.y = args->x;
    silu.q = args->q;
    silu.scales = args->scales;
    silu.counts = args->counts;
    return moe_silu_mul_quantize(ctx, &silu, NULL);
}

// There and, but for silu, back.
static moe_status there_and_back(const moe_context *ctx, const moec_quantize_problem *p,
                                 moe_quantize_args *args, const moe_tensor *back)
{
    if (p->silu) {
        return silu_mul(ctx, p, args);
    }
    MOE_TRY(moe_quantize(ctx, args, NULL));
    args->x = *back;
    return moe_dequantize(ctx, args, NULL);
}

static moe_status run_on_twins(moec_twins *twins, const moec_quantize_case *c,
                               moec_quantize_output *have)
{
    const moec_quantize_problem *p = &c->p;
    const int64_t one[1] = {1};
    const int64_t batches[1] = {p->batches};
    moec_guard x = c->x.guard;
    moec_guard global = {.data = (unsigned char *)&have->global, .bytes = sizeof have->global};
    moec_guard counts = {.data = (unsigned char *)(uintptr_t)p->counts, .bytes = sizeof p->counts};
    char wrong[200] = "";
    moec_twins_add(twins, &x, false);
    moec_twins_add(twins, &counts, false);
    moec_twins_add(twins, &have->q.guard, true);
    moec_twins_add(twins, &have->scales.guard, true);
    moec_twins_add(twins, &have->back.guard, true);
    moec_twins_add(twins, &global, true);
    MOE_TRY(moec_twins_up(twins, 0xFF));
    moe_quantize_args args = moe_quantize_args_default();
    moe_tensor back = have->back.view;
    args.quant = p->quant;
    args.x = c->x.view;
    args.q = have->q.view;
    args.scales = have->scales.view;
    args.counts = moe_tensor_make(p->with_counts ? (void *)counts.data : NULL, MOE_I32, 1, batches);
    args.global_scale = moe_tensor_make(needs_global(p) ? &have->global : NULL, MOE_F32, 1, one);
    moe_tensor *views[] = {&args.x, &args.q, &args.scales, &args.counts, &args.global_scale, &back};
    for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
        moec_twins_views(twins, views[i], 1);
    }
    MOE_TRY(there_and_back(twins->ctx, p, &args, &back));
    MOE_REQUIRE(moec_twins_down(twins, wrong, sizeof wrong), MOE_E_DEVICE, "%s", wrong);
    return MOE_OK;
}

moe_status moec_quantize_run(const moe_context *ctx, const moec_quantize_case *c,
                             moec_quantize_output *have)
{
    moec_twins twins;
    if (!output_make(&c->p, have)) {
        return MOE_E_NO_MEMORY;
    }
    moec_twins_begin(&twins, ctx);
    const moe_status status = run_on_twins(&twins, c, have);
    moec_twins_end(&twins);
    return status;
}

static bool same(const moec_quantize_memory *a, const moec_quantize_memory *b)
{
    return a->guard.bytes == b->guard.bytes &&
           memcmp(a->guard.data, b->guard.data, a->guard.bytes) == 0;
}

const char *moec_quantize_differs(const moec_quantize_output *have,
                                  const moec_quantize_output *want)
{
    return !same(&have->q, &want->q)                                        ? "codes"
           : !same(&have->scales, &want->scales)                            ? "scales"
           : memcmp(&have->global, &want->global, sizeof have->global) != 0 ? "global scale"
           : !same(&have->back, &want->back)                                ? "values back"
                                                                            : NULL;
}
