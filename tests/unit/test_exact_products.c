// SPDX-License-Identifier: Apache-2.0
// Strict products of packed e2m1 whose chains cannot round, which integer products stand for
// (backends/cpu/avx/ggemm_any_packed_exact.h): every packed row of this machine against the
// portable one, bit by bit, over x at both sides of what is exact; which records are found to be;
// and planted mistakes, each of which shows in x of these tests.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/avx/ggemm_any_packed_exact.h"
#include "backends/cpu/packed.h"
#include "core/isa.h"
#include "ops/ggemm.h"
#include "quant/elements.h"
#include "unit/test.h"

extern const moei_backend moei_backend_cpu;

#define OUTPUTS 96 // a panel, and half of one
#define RECORDS 40
#define TAIL    8 // k behind the last record
#define DEPTH   (RECORDS * RECORD + TAIL)
#define ROWS    4

static uint64_t state = 1;

static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float sign(void)
{
    return draw() % 2 == 0 ? 1.0f : -1.0f;
}

// An odd number of so many bits, with a sign.
static float odd(int bits)
{
    const uint32_t top = 1u << (bits - 1);
    return sign() * (float)(top | draw() % top | 1);
}

// ---- x -----------------------------------------------------------------------------------------

typedef enum kind {
    NORMAL,     // of like size, in bf16
    TWO_DIGITS, // 15 bits from the largest to the finest
    REST,       // one of them finer
    SPREAD,     // one of them finer by 40
    TRAILING,   // small ones with zeros at their ends
    BOUND,      // sums of almost 2^24 quanta
    BEYOND,     // of more
    MINUS,      // -127, 129 .. : digits at their ends
    CANCEL,     // pairs of x that cancel
    ZEROS,      // of both signs
    TINY,       // subnormal
    HUGE_FITS,  // sums up to 2^127
    HUGE_SUM,   // sums above 2^128
    NOT_FINITE, // one NaN, one infinity
    NUM_KINDS
} kind;

static const struct {
    const char *name;
    int exact; // 1: all records are, 0: none is, -1: some are
} kinds[NUM_KINDS] = {
    [NORMAL] = {"of like size", -1},
    [TWO_DIGITS] = {"two digits", 1},
    [REST] = {"a rest", 1},
    [SPREAD] = {"too fine", 0},
    [TRAILING] = {"trailing zeros", 1},
    [BOUND] = {"at the bound of sums", 1},
    [BEYOND] = {"beyond the bound of sums", 0},
    [MINUS] = {"digits at their ends", 1},
    [CANCEL] = {"cancellation", 1},
    [ZEROS] = {"zeros", 1},
    [TINY] = {"subnormal", 0},
    [HUGE_FITS] = {"huge", 1},
    [HUGE_SUM] = {"infinite sums", 0},
    [NOT_FINITE] = {"not finite", 0},
};

static float bf16(float v)
{
    return moei_bf16_to_f32(moei_f32_to_bf16(v));
}

// 32 of them.
static void draw_x(kind of, float *x)
{
    const uint32_t one = draw() % RECORD;
    for (uint32_t k = 0; k < RECORD; k++) {
        switch (of) {
        case NORMAL:
            x[k] = bf16(sign() * (0.01f + (float)(draw() % 65536) * 0x1p-15f));
            break;
        case TRAILING:
            x[k] = k == one ? sign() : ldexpf(odd(8), (int)(draw() % 8));
            break;
        case BOUND:
            x[k] = (float)(43001 + 2 * (draw() % 300));
            break;
        case BEYOND:
            x[k] = (float)(60001 + 2 * (draw() % 30000));
            break;
        case MINUS:
            x[k] =
                (float[]){-127, 127, 128, -128, 129, -129, 32639, 32640, -32640, 255}[draw() % 10];
            break;
        case CANCEL:
            x[k] = k % 2 == 0 ? odd(8) : -x[k - 1];
            break;
        case ZEROS:
            x[k] = sign() * 0.0f;
            break;
        case TINY:
            x[k] = ldexpf(odd(8), -133);
            break;
        case HUGE_FITS:
            x[k] = ldexpf(odd(8), 110);
            break;
        case HUGE_SUM:
            x[k] = copysignf(ldexpf(odd(8), 115), k < RECORD / 2 ? 1.0f : -1.0f);
            break;
        default:
            x[k] = ldexpf(odd(8), (int)(draw() % 8) - 7);
            break;
        }
    }
    if (of == TWO_DIGITS || of == REST || of == SPREAD) {
        x[(one + 1) % RECORD] = sign() * 255.0f;
        x[one] = ldexpf(odd(8), of == TWO_DIGITS ? -7 : of == REST ? -8 : -47);
    }
    if (of == NOT_FINITE) {
        x[one] = NAN;
        x[(one + 1) % RECORD] = INFINITY;
    }
}

// ---- planted mistakes --------------------------------------------------------------------------

typedef enum mistake {
    NONE,
    FINENESS_IGNORED, // x that are no multiples are rounded to one
    SUMS_IGNORED,     // q is as fine as x are
    HUGE_IGNORED,     // sums that are not finite
    REST_DROPPED,
    HALVES_OFF, // q for q / 2
    NUM_MISTAKES
} mistake;

static const char *const mistake_names[] = {"none",        "x are rounded",       "sums above 2^24",
                                            "no infinity", "the rest is dropped", "twice the sum"};

static float chain(const float *x, const float *w)
{
    float sum = 0.0f;
    for (int k = 0; k < RECORD; k++) {
        sum = fmaf(x[k], w[k], sum);
    }
    return sum;
}

// The sum of a record in integers; NaN where it is not known to be the chain's.
static float by_integers(const float *x, const float *w, mistake with)
{
    double magnitudes = 0;
    double largest = 0;
    int finest = 200;
    for (int k = 0; k < RECORD; k++) {
        int exponent;
        const double fraction = frexp(fabs((double)x[k]), &exponent);
        if (!isfinite(x[k])) {
            return NAN;
        }
        magnitudes += fabs((double)x[k]);
        largest = fmax(largest, fabs((double)x[k]));
        for (int bits = 0; fraction != 0 && bits <= 24; bits++) {
            if (ldexp(fraction, bits) == floor(ldexp(fraction, bits))) {
                finest = exponent - bits < finest ? exponent - bits : finest;
                break;
            }
        }
    }
    int q = finest;
    if (with != SUMS_IGNORED && 12 * magnitudes > ldexp(1, finest + 24)) {
        if (with != FINENESS_IGNORED) {
            return NAN;
        }
        while (12 * magnitudes > ldexp(1, q + 24)) {
            q++;
        }
    }
    if (with != HUGE_IGNORED && 6 * magnitudes > 0x1p127) {
        return NAN;
    }
    if (finest == 200 || largest > ldexp(1, q + 40)) {
        return finest == 200 ? 0.0f : NAN;
    }
    int64_t sum = 0;
    for (int k = 0; k < RECORD; k++) {
        int64_t v = llrint(ldexp((double)x[k], -q));
        if (with == REST_DROPPED && largest > ldexp(DIGIT_TOP, q)) {
            v = v / 4 * 4;
        }
        sum += v * (int64_t)(2 * w[k]);
    }
    return (float)ldexp((double)(float)sum, with == HALVES_OFF ? q : q - 1);
}

static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

// Integers give the chain's bits where they are taken, and each mistake is seen.
static void test_mistakes(void)
{
    int taken = 0;
    int seen[NUM_MISTAKES] = {0};
    for (int round = 0; round < 40 * NUM_KINDS; round++) {
        float x[RECORD];
        float w[RECORD];
        draw_x((kind)(round / 2 % NUM_KINDS), x);
        for (int k = 0; k < RECORD; k++) {
            const uint8_t codes[] = {1, 6, 7, 7}; // half of the time sums that grow
            w[k] = moei_e2m1_to_f32(round % 2 == 0 ? (uint8_t)(draw() % 16) : codes[draw() % 4]);
        }
        const float want = chain(x, w);
        for (int m = 0; m < NUM_MISTAKES; m++) {
            const float got = by_integers(x, w, (mistake)m);
            taken += m == NONE && !isnan(got);
            seen[m] += !isnan(got) && !same(got, want);
        }
    }
    CHECK(taken > 200, "%d records are taken as integers", taken);
    for (int m = 0; m < NUM_MISTAKES; m++) {
        CHECK((seen[m] > 0) == (m != NONE), "%s: %d sums differ", mistake_names[m], seen[m]);
    }
}

// ---- which records are exact -------------------------------------------------------------------

static void test_found(void)
{
    static exact_x found;
    for (int k = 0; k < NUM_KINDS; k++) {
        int exact = 0;
        for (int record = 0; record < 200; record++) {
            float x[RECORD];
            draw_x((kind)k, x);
            for (int i = 0; i < RECORD; i++) {
                x[i] = ldexpf(x[i], -25);
            }
            exact_begin(&found, 1);
            exact_add(&found, x, 0, record % 2 == 0, 25);
            exact += exact_at(&found, 0);
        }
        const bool right = kinds[k].exact > 0    ? exact == 200
                           : kinds[k].exact == 0 ? exact == 0
                                                 : exact > 120;
        CHECK(right || k == TINY, // of which find_exact is not asked
              "%s: %d of 200 records are exact", kinds[k].name, exact);
    }
}

// ---- products ----------------------------------------------------------------------------------

static void *take(int64_t bytes)
{
    void *memory = aligned_alloc(64, (size_t)moei_i64_round_up(bytes, 64));
    if (memory == NULL) {
        abort();
    }
    return memory;
}

typedef struct product {
    moek_ggemm_args args;
    void *values, *scales;
    float *x, *y[2];
} product;

static void make(product *p, moe_format format, moe_dtype x_dtype)
{
    const moei_format_info *info = moei_format(format);
    moei_matrices *m = &p->args.w;
    memset(p, 0, sizeof *p);
    *m = (moei_matrices){.format = info, .n = OUTPUTS, .k = DEPTH, .count = 1};
    m->part_rows = OUTPUTS;
    m->value_n_stride = DEPTH / 2;
    m->value_e_stride = OUTPUTS * DEPTH / 2;
    m->scale_dtype = moei_format_scale_dtype(info);
    m->block_n = 1;
    m->block_k = info->block_k;
    m->scale_n_stride = moei_i64_ceil_div(DEPTH, info->block_k);
    m->scale_e_stride = OUTPUTS * m->scale_n_stride;
    m->scale_k_stride = 1;
    m->scale_parts = 1;
    uint8_t *values = take(m->value_e_stride);
    uint8_t *scales = take(m->scale_e_stride);
    for (int64_t i = 0; i < m->value_e_stride; i++) { // an output of zeros, and one of 1/2 and 6
        const int64_t n = i / m->value_n_stride;
        values[i] = n == 3 ? (uint8_t)(draw() & 0x88) : n == 70 ? 0x71 : (uint8_t)draw();
    }
    for (int64_t i = 0; i < m->scale_e_stride; i++) {
        scales[i] = (uint8_t)(m->scale_dtype == MOE_E8M0 ? 110 + draw() % 20 : draw() % 0x7F);
    }
    p->values = values;
    p->scales = scales;
    m->values = values;
    m->scales = scales;
    p->x = take(ROWS * DEPTH * (int64_t)sizeof(float));
    p->args.x = (moei_operand){.data = (const uint8_t *)p->x, .dtype = x_dtype};
    p->args.x.row_stride = DEPTH * moe_dtype_bits(x_dtype) / 8;
    p->args.row_divisor = 1;
    p->args.y_dtype = MOE_F32;
    p->args.y_row_stride = OUTPUTS * (int64_t)sizeof(float);
    for (int i = 0; i < 2; i++) {
        p->y[i] = take(ROWS * OUTPUTS * (int64_t)sizeof(float));
    }
}

static void drop(product *p)
{
    free(p->values);
    free(p->scales);
    free(p->x);
    free(p->y[0]);
    free(p->y[1]);
}

// Records of one kind; at NUM_KINDS of all but those from TINY on, which keep a whole call from
// being multiplied by a power of two; after it of those, too.
static void fill_x(product *p, kind of)
{
    for (int64_t i = 0; i < ROWS * DEPTH; i += RECORD) {
        float x[RECORD];
        const uint32_t below = of == NUM_KINDS ? TINY : HUGE_FITS;
        draw_x(of >= NUM_KINDS ? (kind)(draw() % below) : of, x);
        for (int64_t k = 0; k < RECORD && i + k < ROWS * DEPTH; k++) {
            const uint16_t half = moei_f32_to_bf16(x[k]);
            if (p->args.x.dtype == MOE_F32) {
                p->x[i + k] = x[k];
            } else {
                memcpy((uint8_t *)p->x + 2 * (i + k), &half, sizeof half);
            }
        }
    }
}

static void run(const moei_kernel *kernel, const moek_ggemm_args *args, int64_t rows, float *y)
{
    moek_ggemm_args a = *args;
    a.rows = rows;
    a.y = (uint8_t *)y;
    ((moek_ggemm_fn *)kernel->fn)(&a, 0, 0, rows, 0, OUTPUTS);
}

static const moei_kernel *portable_row(moei_arith arith)
{
    for (size_t i = 0; i < moei_backend_cpu.num_kernels; i++) {
        const moei_kernel *kernel = &moei_backend_cpu.kernels[i];
        if (kernel->op == MOEI_OP_GGEMM && kernel->arith == arith &&
            strcmp(kernel->isa_name, "ref_fma") == 0) {
            return kernel;
        }
    }
    return NULL;
}

static void compare(const product *p, const moei_kernel *kernel, const moek_ggemm_args *packed,
                    const moei_kernel *portable, const char *what)
{
    for (int64_t rows = 1; rows <= ROWS; rows++) {
        run(portable, &p->args, rows, p->y[0]);
        run(kernel, packed, rows, p->y[1]);
        for (int64_t i = 0; i < rows * OUTPUTS; i++) {
            if (!CHECK(same(p->y[0][i], p->y[1][i]), "%s, %s, %d rows, output %d: %a, not %a",
                       kernel->name, what, (int)rows, (int)i, (double)p->y[1][i],
                       (double)p->y[0][i])) {
                return;
            }
        }
    }
}

// Others take x in fixed point.
static bool is_strict(const moei_kernel *kernel)
{
    return strstr(kernel->name, "_any_any_") != NULL || strstr(kernel->name, "_any_bf16_") != NULL;
}

static void test_rows(moe_format format, moei_arith arith, moe_dtype x_dtype)
{
    const uint64_t isa = moei_isa_detect();
    const moei_kernel *portable = portable_row(arith);
    product p;
    make(&p, format, x_dtype);
    for (size_t i = 0; i < moei_backend_cpu.num_kernels; i++) {
        const moei_kernel *kernel = &moei_backend_cpu.kernels[i];
        if (kernel->op != MOEI_OP_GGEMM || kernel->arith != arith ||
            kernel->layout != MOEI_LAYOUT_PACKED || !is_strict(kernel)) {
            continue;
        }
        if ((kernel->isa & ~isa) != 0) {
            (void)printf("skipped: %s, which this machine cannot run\n", kernel->name);
            continue;
        }
        uint8_t *bytes = take((int64_t)moei_cpu_packed_bytes(kernel, &p.args.w));
        moek_ggemm_args packed = p.args;
        CHECK(moei_cpu_pack(kernel, &p.args.w, bytes) == MOE_OK, "packing");
        packed.w.layout = MOEI_LAYOUT_PACKED;
        packed.w.values = bytes;
        packed.w.value_e_stride = (int64_t)moei_cpu_packed_bytes(kernel, &p.args.w);
        packed.w.scales = NULL;
        for (int k = 0; k <= NUM_KINDS + 1; k++) {
            fill_x(&p, (kind)k);
            compare(&p, kernel, &packed, portable, k < NUM_KINDS ? kinds[k].name : "all kinds");
        }
        free(bytes);
    }
    drop(&p);
}

int main(void)
{
    if ((moei_isa_detect() & MOEI_ISA_AVX2_FMA) == 0) {
        (void)printf("skipped: this machine has no AVX2\n");
        return 0;
    }
    test_mistakes();
    test_found();
    const moe_dtype dtypes[] = {MOE_BF16, MOE_F32};
    for (int d = 0; d < 2; d++) {
        test_rows(MOE_FORMAT_MXFP4, MOEI_ARITH_FMA_B32, dtypes[d]);
        test_rows(MOE_FORMAT_NVFP4, MOEI_ARITH_FMA_B16, dtypes[d]);
    }
    test_rows(MOE_FORMAT_MXFP4, MOEI_ARITH_AMX_BF16_B32, MOE_BF16);
    return test_summary();
}
