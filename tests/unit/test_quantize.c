// SPDX-License-Identifier: Apache-2.0
// Every quantiser against the independent statement of tests/float64, bit for bit: codes, scales,
// what is packed where, and what is not touched; the same buffers on 1, 2 and 7 threads and from
// both builds of the portable kernels.
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "float64/quantize.h"
#include "moe/quantize.h"
#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "quant/specs.h"
#include "test.h"

#define POISON 0xA5

static struct {
    const char *isa;
    int threads;
    moe_context *ctx;
} contexts[] = {{"ref", 1, NULL},
                {"ref", 2, NULL},
                {"ref", 7, NULL},
                {"ref_fma", 1, NULL},
                {"ref_fma", 7, NULL}};
#define NUM_CONTEXTS (sizeof contexts / sizeof contexts[0])

static uint64_t random_state = 0x9E3779B97F4A7C15u;

static uint32_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 16);
}

static int random_below(int n)
{
    return (int)(random_bits() % (uint32_t)n);
}

// In (-1, 1).
static float random_unit(void)
{
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

static void *must_alloc(size_t bytes)
{
    void *p = malloc(bytes + 1);
    if (p == NULL) {
        abort();
    }
    memset(p, POISON, bytes + 1);
    return p;
}

// ------------------------------------------------------------------------------------------ inputs

// Values of k elements in a float dtype, as bits of that dtype.
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

// amax at, just above and just below the places where a scale changes.
static uint32_t boundary(moe_dtype dtype, float max)
{
    static const float factors[] = {1.0f,   1.25f,   1.5f,       1.75f,
                                    1.875f, 1.9375f, 1.9921875f, 1.992156982421875f};
    const float base = random_below(2) ? max : factors[random_below(8)];
    const int span = dtype == MOE_F16 ? 6 : 30;
    return to_dtype(dtype, ldexpf(base, random_below(2 * span) - span)) +
           (uint32_t)random_below(3) - 1u;
}

static void fill_group(moe_dtype dtype, float max, int kind, int64_t n, uint32_t *out)
{
    const int shift = random_below(dtype == MOE_F16 ? 12 : 60) - (dtype == MOE_F16 ? 6 : 30);
    for (int64_t i = 0; i < n; i++) {
        float x = 0.0f;
        switch (kind) {
        case 0: // zeros of both signs
            x = random_below(2) ? 0.0f : -0.0f;
            break;
        case 1: // spread over binades
            x = ldexpf(random_unit(), shift - random_below(12));
            break;
        case 2: // small integers: ties
            x = ldexpf((float)(random_below(65) - 32) * 0.25f, shift);
            break;
        case 3: // subnormal and tiny
            x = random_unit() * (dtype == MOE_F16 ? 0x1p-18f : 0x1p-120f) *
                ldexpf(1.0f, -random_below(28));
            break;
        case 4: // a boundary with company
            x = ldexpf(random_unit(), -40);
            break;
        case 5: // large
            x = random_unit() * (dtype == MOE_F16 ? 65504.0f : 3.4e38f);
            break;
        default: // specials among ordinary values
            x = random_below(4) > 0 ? random_unit() : random_below(3) == 0 ? INFINITY : NAN;
            x = random_below(2) ? x : -x;
            break;
        }
        out[i] = to_dtype(dtype, x);
    }
    if (kind == 4) {
        const uint32_t sign = random_below(2) ? (dtype == MOE_F32 ? 0x80000000u : 0x8000u) : 0u;
        out[random_below((int)n)] = boundary(dtype, max) | sign;
    } else if (kind == 6 && random_below(2)) { // infinity alone, without NaN
        for (int64_t i = 0; i < n; i++) {
            out[i] = isnan(from_dtype(dtype, out[i])) ? 0u : out[i];
        }
    }
}

// --------------------------------------------------------------------------------------- a problem

typedef struct problem {
    moe_quant_desc quant; // resolved
    moe_dtype x_dtype;
    int32_t batches;
    int64_t rows, k;
    int32_t counts[8];
    bool batched, with_counts, padded, bytes, silu, round_steps;
    bool tame; // neither special values nor the largest ones
    float given;
} problem;

// Memory of one operand: base, bytes, view.
typedef struct memory {
    uint8_t *base;
    size_t bytes;
    moe_tensor view;
} memory;

static memory make_memory(moe_dtype dtype, int ndim, const int64_t *shape, const int64_t *stride,
                          int64_t skip)
{
    memory m;
    int64_t last = 0;
    bool empty = false;
    m.view = moe_tensor_make(NULL, dtype, ndim, shape);
    for (int i = 0; i < ndim; i++) {
        m.view.stride[i] = stride[i] > 0 ? stride[i] : 8; // no rows
        last += (shape[i] - 1) * stride[i];
        empty = empty || shape[i] == 0;
    }
    const int64_t elems = empty ? 0 : last + 1;
    m.view.byte_offset = (uint64_t)(skip * moe_dtype_bits(dtype) / 8);
    m.bytes = (size_t)((elems * moe_dtype_bits(dtype) + 7) / 8) + (size_t)m.view.byte_offset;
    m.base = must_alloc(m.bytes);
    m.view.data = m.base;
    return m;
}

static int64_t round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static int64_t row_bytes(moe_dtype elem, int64_t k)
{
    return (k * moe_dtype_bits(elem) + 7) / 8;
}

static memory make_x(const problem *p, int64_t width)
{
    const int64_t row = width + (p->padded ? 3 : 0);
    const int64_t shape[3] = {p->batches, p->rows, width};
    const int64_t stride[3] = {row * (p->rows + (p->padded ? 1 : 0)), row, 1};
    return p->batched ? make_memory(p->x_dtype, 3, shape, stride, p->padded ? 1 : 0)
                      : make_memory(p->x_dtype, 2, shape + 1, stride + 1, p->padded ? 1 : 0);
}

static memory make_q(const problem *p)
{
    const bool bytes = p->bytes && p->quant.elem != MOE_I16;
    const int64_t width = bytes ? row_bytes(p->quant.elem, p->k) : p->k;
    const bool whole = bytes || moe_dtype_bits(p->quant.elem) >= 8;
    const int64_t row =
        whole ? width + (p->padded ? 5 : 0) : round_up(width, 8) + (p->padded ? 8 : 0);
    const int64_t shape[3] = {p->batches, p->rows, width};
    const int64_t stride[3] = {row * (p->rows + (p->padded ? 1 : 0)), row, 1};
    const moe_dtype dtype = bytes ? MOE_U8 : p->quant.elem;
    return p->batched ? make_memory(dtype, 3, shape, stride, p->padded ? 8 : 0)
                      : make_memory(dtype, 2, shape + 1, stride + 1, p->padded ? 8 : 0);
}

static int64_t block_rows(const problem *p)
{
    return moei_quant_get(p->quant.spec)->grain == MOEI_GRAIN_BLOCK ? 128 : 1;
}

static memory make_scales(const problem *p)
{
    const moei_quant_grain grain = moei_quant_get(p->quant.spec)->grain;
    const bool packed = p->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    const moe_dtype dtype = moei_scale_dtype(p->quant.scale_type);
    const int64_t one[1] = {1};
    if (grain == MOEI_GRAIN_TENSOR) {
        return make_memory(dtype, 1, one, one, 0);
    }
    const int64_t rows = (p->rows + block_rows(p) - 1) / block_rows(p);
    int64_t groups = p->quant.group > 0 ? (p->k + p->quant.group - 1) / p->quant.group : 1;
    groups = packed ? (groups + 3) / 4 : groups;
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
    return make_memory(shown, 3 - first - (flat ? 1 : 0), shape + first, stride + first,
                       p->padded ? 1 : 0);
}

static int64_t count_of(const problem *p, int32_t b)
{
    return p->with_counts ? p->counts[b] : p->rows;
}

static uint8_t *at(const memory *m, const problem *p, int32_t b, int64_t r)
{
    const int dims = m->view.ndim;
    const int64_t element = (p->batched ? b * m->view.stride[0] : 0) + r * m->view.stride[dims - 2];
    return m->base + m->view.byte_offset + element * moe_dtype_bits(m->view.dtype) / 8;
}

// Where scale (b, row, g) lies in m.
static uint8_t *scale_at(const memory *m, const problem *p, int32_t b, int64_t row, int64_t g)
{
    const bool packed = p->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    int64_t element = p->batched && m->view.ndim > 1 ? b * m->view.stride[0] : 0;
    if (moei_quant_get(p->quant.spec)->grain == MOEI_GRAIN_TENSOR) {
        return m->base + m->view.byte_offset;
    }
    const bool flat = m->view.ndim == (p->batched ? 2 : 1);
    const int row_dim = p->batched ? 1 : 0;
    element += row * m->view.stride[row_dim];
    element += flat ? 0 : (packed ? g / 4 : g) * m->view.stride[row_dim + 1];
    return m->base + m->view.byte_offset + element * moe_dtype_bits(m->view.dtype) / 8 +
           (packed ? g % 4 : 0);
}

// --------------------------------------------------------------------------------- the expectation

static void expect_codes(const float64_quantised *f, int64_t row, uint8_t *out)
{
    const int bits = moe_dtype_bits(f->quant.elem);
    memset(out, 0, (size_t)row_bytes(f->quant.elem, f->k));
    for (int64_t i = 0; i < f->k; i++) {
        const uint32_t code = f->codes[row * f->k + i];
        for (int bit = 0; bit < bits; bit++) {
            const int64_t place = i * bits + bit;
            out[place / 8] = (uint8_t)(out[place / 8] | ((code >> bit) & 1u) << (place % 8));
        }
    }
}

static void expect_scale(const float64_quantised *f, int64_t i, int64_t g, int64_t groups,
                         uint8_t *out)
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

// The rows of batches [b0, b1) that are there, one after another: the input of the statement.
static int64_t gather(const problem *p, const float *x, int32_t b0, int32_t b1, float *out)
{
    int64_t rows = 0;
    for (int32_t b = b0; b < b1; b++) {
        for (int64_t r = 0; r < count_of(p, b); r++, rows++) {
            memcpy(out + rows * p->k, x + (b * p->rows + r) * p->k, (size_t)p->k * sizeof *x);
        }
    }
    return rows;
}

// Runs the statement on batches [b0, b1) and writes what should be in q, scales and (for the
// inverse) back into the expected memories.
static void expect(const problem *p, const float *x, int32_t b0, int32_t b1, memory *q,
                   memory *scales, memory *back, float *global)
{
    const size_t elems = (size_t)(p->batches * p->rows * p->k) + 1;
    float *gathered = must_alloc(elems * sizeof *gathered);
    float64_quantised f = {.quant = p->quant, .k = p->k, .x = gathered, .given = p->given};
    f.rows = gather(p, x, b0, b1, gathered);
    const size_t places = (size_t)((f.rows + 1) * (float64_groups(&f) + 1));
    f.codes = must_alloc(elems * sizeof *f.codes);
    f.scales = must_alloc(places * sizeof *f.scales);
    f.bytes = must_alloc(places);
    float64_quantize(&f);
    *global = f.global;
    const moei_quant_grain grain = moei_quant_get(p->quant.spec)->grain;
    const float g = p->quant.spec == MOE_QUANT_NVFP4_INVERSE ? f.global : p->given;
    int64_t row = 0;
    for (int32_t b = b0; b < b1; b++) {
        for (int64_t r = 0; r < count_of(p, b); r++, row++) {
            expect_codes(&f, row, at(q, p, b, r));
            const int64_t scale_row = grain == MOEI_GRAIN_TENSOR ? 0 : row / block_rows(p);
            for (int64_t j = 0; j < float64_groups(&f) && grain != MOEI_GRAIN_TENSOR; j++) {
                expect_scale(&f, scale_row * float64_groups(&f) + j, j, float64_groups(&f),
                             scale_at(scales, p, b, r / block_rows(p), j));
            }
            for (int64_t k = 0; k < p->k && back != NULL; k++) {
                const int64_t j = p->quant.group > 0 ? k / p->quant.group : 0;
                const float s = f.scales[scale_row * float64_groups(&f) + j];
                const uint32_t bits =
                    to_dtype(p->x_dtype, float64_dequantize(&f, f.codes[row * p->k + k], s, g));
                memcpy(at(back, p, b, r) + k * moe_dtype_bits(p->x_dtype) / 8, &bits,
                       (size_t)moe_dtype_bits(p->x_dtype) / 8);
            }
        }
    }
    if (grain == MOEI_GRAIN_TENSOR) {
        memcpy(scales->base, &f.scales[0], sizeof f.scales[0]);
    }
    free(gathered);
    free(f.codes);
    free(f.scales);
    free(f.bytes);
}

static void expect_all(const problem *p, const float *x, memory *q, memory *scales, memory *back,
                       float *global)
{
    if (block_rows(p) == 1) {
        expect(p, x, 0, p->batches, q, scales, back, global);
        return;
    }
    for (int32_t b = 0; b < p->batches; b++) { // blocks begin anew
        expect(p, x, b, b + 1, q, scales, back, global);
    }
}

// ----------------------------------------------------------------------------------------- the run

static void describe(const problem *p, char *text, size_t capacity)
{
    (void)snprintf(text, capacity, "%s %s %s %s group %d x %s [%d, %" PRId64 ", %" PRId64 "]%s%s%s",
                   moe_quant_name(p->quant.spec), moe_dtype_name(p->quant.elem),
                   moei_scale_type_name(p->quant.scale_type),
                   p->quant.scale_layout == MOE_SCALE_LAYOUT_COLUMN ? "column" : "row",
                   (int)p->quant.group, moe_dtype_name(p->x_dtype), (int)p->batches, p->rows, p->k,
                   p->padded ? " padded" : "", p->with_counts ? " counts" : "",
                   p->silu ? (p->round_steps ? " silu rounded" : " silu") : "");
}

static bool same(const memory *have, const memory *want, const char *what, const char *text,
                 const char *context)
{
    size_t at_byte = 0;
    while (at_byte < have->bytes && have->base[at_byte] == want->base[at_byte]) {
        at_byte++;
    }
    return CHECK(at_byte == have->bytes,
                 "%s: %s differ at byte %zu of %zu: %02x, expected %02x (%s)", text, what, at_byte,
                 have->bytes, have->base[at_byte], want->base[at_byte], context);
}

static void release(memory *m)
{
    free(m->base);
}

static bool needs_global(const problem *p)
{
    return p->quant.spec == MOE_QUANT_NVFP4 || p->quant.spec == MOE_QUANT_NVFP4_INVERSE;
}

static bool needs_scale(const problem *p)
{
    return p->quant.spec == MOE_QUANT_FP8_STATIC || p->quant.spec == MOE_QUANT_INT8_STATIC;
}

static moe_quantize_args make_args(const problem *p, const memory *x, const memory *q,
                                   const memory *scales, float *global)
{
    const int64_t one[1] = {1};
    const int64_t batches[1] = {p->batches};
    moe_quantize_args args = moe_quantize_args_default();
    args.quant = p->quant;
    args.x = x->view;
    args.q = q->view;
    args.scales = scales->view;
    args.counts = moe_tensor_make(p->with_counts ? p->counts : NULL, MOE_I32, 1, batches);
    args.global_scale = moe_tensor_make(needs_global(p) ? global : NULL, MOE_F32, 1, one);
    return args;
}

static moe_status silu_mul(const moe_context *ctx, const problem *p, const moe_quantize_args *args)
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

// What q, scales, the values back and the global scale should be.
typedef struct expectation {
    memory q, scales, back;
    float global;
} expectation;

// Runs the problem in one context and compares all of the memory of q, scales and, for the way
// back, x.
static bool run_in(const moe_context *ctx, const char *context, const problem *p, const memory *x,
                   const expectation *want)
{
    char text[256];
    memory q = make_q(p);
    memory scales = make_scales(p);
    memory back = make_x(p, p->k);
    float global = p->given;
    describe(p, text, sizeof text);
    if (needs_scale(p)) {
        memcpy(scales.base, &p->given, sizeof p->given);
    }
    moe_quantize_args args = make_args(p, x, &q, &scales, &global);
    moe_status status = p->silu ? silu_mul(ctx, p, &args) : moe_quantize(ctx, &args, NULL);
    bool good = CHECK(status == MOE_OK, "%s: %s", text, moe_last_error());
    good = good && same(&q, &want->q, "codes", text, context);
    good = good && same(&scales, &want->scales, "scales", text, context);
    if (good && p->quant.spec == MOE_QUANT_NVFP4_INVERSE) {
        good = CHECK(moei_f32_bits(global) == moei_f32_bits(want->global),
                     "%s: global %a, expected %a", text, (double)global, (double)want->global);
    }
    if (good && !p->silu) {
        args.x = back.view;
        status = moe_dequantize(ctx, &args, NULL);
        good = CHECK(status == MOE_OK, "%s: back: %s", text, moe_last_error());
        good = good && same(&back, &want->back, "values back", text, context);
    }
    release(&q);
    release(&scales);
    release(&back);
    return good;
}

// moe_silu_mul_quantize sets the scales of absent rows to 0.
static void expect_zero_scales(const problem *p, memory *scales)
{
    const bool packed = p->quant.scale_type == MOE_SCALE_UE8M0_PACKED;
    for (int32_t b = 0; b < p->batches; b++) {
        for (int64_t r = count_of(p, b); r < p->rows; r++) {
            for (int64_t g = 0; g * p->quant.group < p->k; g++) {
                memset(scale_at(scales, p, b, r, g), 0, packed ? 4u - (unsigned)(g % 4) : 4u);
            }
        }
    }
}

static void run_problem(const problem *p, const memory *x, const float *values)
{
    expectation want = {make_q(p), make_scales(p), make_x(p, p->k), 0.0f};
    if (needs_scale(p)) {
        memcpy(want.scales.base, &p->given, sizeof p->given);
    }
    expect_all(p, values, &want.q, &want.scales, p->silu ? NULL : &want.back, &want.global);
    if (p->silu) {
        expect_zero_scales(p, &want.scales);
    }
    for (size_t c = 0; c < NUM_CONTEXTS; c++) {
        char context[32];
        (void)snprintf(context, sizeof context, "%s, %d threads", contexts[c].isa,
                       contexts[c].threads);
        if (!run_in(contexts[c].ctx, context, p, x, &want)) {
            break;
        }
    }
    release(&want.q);
    release(&want.scales);
    release(&want.back);
}

// Infinity where no row is: what is read by mistake shows.
static void poison_x(const problem *p, memory *x)
{
    const uint32_t bits = to_dtype(p->x_dtype, INFINITY);
    const size_t size = (size_t)moe_dtype_bits(p->x_dtype) / 8;
    for (size_t i = 0; i + size <= x->bytes; i += size) {
        memcpy(x->base + i, &bits, size);
    }
}

static void run_random(problem *p)
{
    const int64_t total = p->batches * p->rows * p->k;
    float *values = must_alloc((size_t)(total + 1) * sizeof *values);
    uint32_t *bits = must_alloc((size_t)(p->k + 1) * sizeof *bits);
    memory x = make_x(p, p->k);
    const float max = moei_quant_max(moei_quant_get(p->quant.spec), p->quant.elem);
    const int64_t group = p->quant.group > 0 ? p->quant.group : p->k;
    const size_t size = (size_t)moe_dtype_bits(p->x_dtype) / 8;
    poison_x(p, &x);
    for (int32_t b = 0; b < p->batches; b++) {
        for (int64_t r = 0; r < count_of(p, b); r++) {
            for (int64_t k = 0; k < p->k; k += group) {
                fill_group(p->x_dtype, max, random_below(p->tame ? 5 : 7),
                           k + group < p->k ? group : p->k - k, bits + k);
            }
            for (int64_t k = 0; k < p->k; k++) {
                values[(b * p->rows + r) * p->k + k] = from_dtype(p->x_dtype, bits[k]);
                memcpy(at(&x, p, b, r) + (size_t)k * size, &bits[k], size);
            }
        }
    }
    run_problem(p, &x, values);
    release(&x);
    free(bits);
    free(values);
}

// Given scales: ordinary, powers of two, and the extremes, of which zero and the subnormal have no
// finite inverse.
static float random_given(void)
{
    static const float scales[] = {1.0f,   0.125f, 0.0123f, 3.7f,  448.0f,
                                   1e-30f, 1e-40f, 0.0f,    3e38f, 2688.0f};
    return scales[random_below(10)];
}

static void test_spec(const moei_quant_info *info, moe_dtype elem, moe_scale_type type)
{
    static const int64_t ks[] = {1, 5, 31, 33, 64, 127, 130, 257, 600, 1100};
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    const bool block = info->grain == MOEI_GRAIN_BLOCK;
    for (int i = 0; i < 12; i++) {
        problem p = {.quant = {.spec = info->spec,
                               .elem = elem,
                               .group = info->group,
                               .scale_type = type,
                               .scale_layout = MOE_SCALE_LAYOUT_ROW},
                     .batches = 1,
                     .given = random_given()};
        p.x_dtype = dtypes[i % 3];
        p.k = ks[random_below(10)];
        p.rows = block ? 100 + random_below(100) : random_below(6);
        p.bytes = moe_dtype_bits(elem) < 8 && p.k % 8 != 0 ? true : random_below(2) != 0;
        p.padded = random_below(2) != 0;
        p.batched = random_below(2) != 0;
        p.tame = random_below(3) == 0;
        if (info->group > 0 && i % 2 != 0) {
            p.quant.scale_layout = MOE_SCALE_LAYOUT_COLUMN;
        }
        if (info->free_group && i % 4 == 3) {
            static const int32_t groups[] = {2, 8, 24, 32, 64, 520, 1024};
            p.quant.group = groups[random_below(7)];
        }
        if (info->scale == MOEI_SCALE_TOKEN && random_below(2)) {
            p.quant.amax_bound = 0.75f;
        }
        if (p.batched) {
            p.batches = 1 + random_below(4);
            p.with_counts = random_below(4) > 0;
            for (int32_t b = 0; b < p.batches; b++) {
                p.counts[b] = b == 0 ? (int32_t)p.rows : b == 1 ? 0 : random_below((int)p.rows + 1);
            }
        }
        run_random(&p);
    }
}

static void test_specs(void)
{
    const moei_quant_info *info;
    for (size_t i = 0; (info = moei_quant_at(i)) != NULL; i++) {
        for (moe_dtype elem = 1; elem < 32; elem++) {
            for (moe_scale_type type = 1; type < 6 && (info->elems & (1u << elem)) != 0; type++) {
                if ((info->scale_types & (1u << type)) != 0) {
                    test_spec(info, elem, type);
                }
            }
        }
    }
}

// Problems large enough to be split over threads.
static void test_threads(void)
{
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_TENSOR,      MOE_QUANT_FP8_TOKEN,
                                           MOE_QUANT_FP8_GROUP_RECIP, MOE_QUANT_FP8_BLOCK_INVERSE,
                                           MOE_QUANT_MX_CEIL,         MOE_QUANT_NVFP4_INVERSE,
                                           MOE_QUANT_I16B32};
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        problem p = {.quant = {.spec = specs[i]},
                     .x_dtype = MOE_BF16,
                     .batches = 1,
                     .rows = 300,
                     .k = 520,
                     .given = 1.0f};
        moei_quant_resolve(&p.quant);
        run_random(&p);
        p.batched = true;
        p.with_counts = true;
        p.batches = 3;
        p.counts[0] = 300;
        p.counts[1] = 0;
        p.counts[2] = 131;
        run_random(&p);
    }
}

// ---------------------------------------------------------------------------------------- silu-mul

static void run_silu(problem *p)
{
    const int64_t total = p->batches * p->rows * p->k;
    float *values = must_alloc((size_t)(total + 1) * sizeof *values);
    memory x = make_x(p, 2 * p->k);
    poison_x(p, &x);
    for (int32_t b = 0; b < p->batches; b++) {
        for (int64_t r = 0; r < count_of(p, b); r++) {
            const float bound = ldexpf(1.0f, 1 + random_below(19));
            for (int64_t k = 0; k < p->k; k++) {
                const uint16_t gate = moei_f32_to_bf16(random_unit() * bound);
                const uint16_t up = moei_f32_to_bf16(random_unit() * bound);
                const float g = moei_bf16_to_f32(gate);
                const float u = moei_bf16_to_f32(up);
                memcpy(at(&x, p, b, r) + 2 * k, &gate, sizeof gate);
                memcpy(at(&x, p, b, r) + 2 * (p->k + k), &up, sizeof up);
                values[(b * p->rows + r) * p->k + k] =
                    p->round_steps ? float64_silu_mul_bf16(g, u) : moei_silu(g) * u;
            }
        }
    }
    run_problem(p, &x, values);
    release(&x);
    free(values);
}

// The grid of vLLM's masked SiLU-mul-quantise test, without its largest members.
static void test_silu(void)
{
    static const int64_t grid[][3] = {{1, 1, 128},  {1, 4, 128},  {2, 4, 256},   {1, 4, 384},
                                      {8, 16, 512}, {8, 16, 640}, {8, 16, 1152}, {8, 2, 7168},
                                      {8, 4, 4224}, {1, 4, 1280}, {8, 31, 768}};
    static const struct {
        moe_quant_spec spec;
        moe_dtype elem;
        int32_t round_steps;
    } forms[] = {{MOE_QUANT_FP8_GROUP_BF16STEPS, MOE_E4M3FN, 1},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_E4M3FN, 0},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_E4M3FN, 1},
                 {MOE_QUANT_FP8_GROUP_BF16STEPS, MOE_E4M3FNUZ, 1},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_E4M3FNUZ, 0}};
    static const moe_scale_type types[] = {MOE_SCALE_F32, MOE_SCALE_UE8M0_F32,
                                           MOE_SCALE_UE8M0_PACKED};
    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++) {
        for (size_t i = 0; i < sizeof grid / sizeof grid[0]; i++) {
            if (forms[f].elem == MOE_E4M3FNUZ && grid[i][2] > 640) {
                continue;
            }
            problem p = {.quant = {.spec = forms[f].spec,
                                   .elem = forms[f].elem,
                                   .group = 128,
                                   .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
                         .x_dtype = MOE_BF16,
                         .batches = (int32_t)grid[i][0],
                         .rows = grid[i][1],
                         .k = grid[i][2],
                         .batched = true,
                         .with_counts = true,
                         .silu = true,
                         .round_steps = forms[f].round_steps != 0,
                         .padded = i % 2 != 0};
            p.quant.scale_type = types[(i + f) % 3];
            for (int32_t b = 0; b < p.batches; b++) {
                p.counts[b] = b == 0 ? (int32_t)p.rows : b == 1 ? 0 : random_below((int)p.rows + 1);
            }
            run_silu(&p);
        }
    }
}

int main(void)
{
    for (size_t c = 0; c < NUM_CONTEXTS; c++) {
        moe_context_desc desc = moe_context_desc_default();
        desc.isa = contexts[c].isa;
        desc.num_threads = contexts[c].threads;
        if (!CHECK(moe_context_create(&desc, &contexts[c].ctx) == MOE_OK, "%s", moe_last_error())) {
            return test_summary();
        }
    }
    test_specs();
    test_threads();
    test_silu();
    for (size_t c = 0; c < NUM_CONTEXTS; c++) {
        moe_context_destroy(contexts[c].ctx);
    }
    return test_summary();
}
