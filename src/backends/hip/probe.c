// SPDX-License-Identifier: Apache-2.0
#include "backends/hip/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/hip/runtime.h"
#include "numerics/bf16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"

enum { LANES = 64, SIDE = 16, MAX_K = 128, MAX_BLOCKS = MAX_K / 32 };

/// A device under question.
typedef struct session {
    const moei_hip_runtime *hip;
    hipModule_t module;
    bool fnuz; // FP8 of the matrix units is not OCP's
    uint64_t random;
    uint32_t *host; // operands, then results, of one question
    void *device;
    moei_hip_findings *found;
} session;

// ---- asking ------------------------------------------------------------------------------------

enum { MAX_WAVES = 40, MAX_IN = 8 + 8 + 4 + 2, MAX_OUT = MOEI_HIP_NUM_ARITHMETIC };
#define MAX_WORDS ((size_t)MAX_WAVES * LANES * (MAX_IN + MAX_OUT))

// The first reason counts.
static bool disagree(const session *s, moei_hip_family family, const char *what, const char *why)
{
    char *text = s->found->text[family];
    if (text[0] == '\0') {
        (void)snprintf(text, sizeof s->found->text[family], "%s: %s", what, why);
    }
    return false;
}

// Runs a kernel on the operands in s->host: `in` words for each lane, after them `out` results.
static bool ask(session *s, moei_hip_family family, const char *kernel, uint32_t waves, uint32_t in,
                uint32_t out)
{
    const moei_hip_runtime *hip = s->hip;
    const size_t lanes = (size_t)waves * LANES;
    uint32_t *results = s->host + lanes * in;
    moei_hip_probe_args args = {
        {MOEI_HIP_PROBE_THREADS, waves, {0, 0}}, s->device, (uint32_t *)s->device + lanes * in};
    size_t bytes = sizeof args;
    void *extra[] = {HIP_LAUNCH_PARAM_BUFFER_POINTER, &args, HIP_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     HIP_LAUNCH_PARAM_END};
    hipFunction_t function = NULL;
    hipError_t error = hip->hipModuleGetFunction(&function, s->module, kernel);
    if (error == hipSuccess) {
        error =
            hip->hipMemcpyAsync(s->device, s->host, 4 * lanes * in, hipMemcpyHostToDevice, NULL);
    }
    if (error == hipSuccess) {
        error = hip->hipModuleLaunchKernel(function, waves, 1, 1, MOEI_HIP_PROBE_THREADS, 1, 1, 0,
                                           NULL, NULL, extra);
    }
    if (error == hipSuccess) {
        error =
            hip->hipMemcpyAsync(results, args.out, 4 * lanes * out, hipMemcpyDeviceToHost, NULL);
    }
    if (error == hipSuccess) {
        error = hip->hipStreamSynchronize(NULL);
    }
    if (error == hipSuccess) {
        return true;
    }
    (void)hip->hipGetLastError();
    return disagree(s, family, kernel, hip->hipGetErrorString(error));
}

static uint32_t draw(session *s) // splitmix64
{
    uint64_t z = (s->random += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(z >> 32);
}

static uint32_t draw_below(session *s, uint32_t n)
{
    return (uint32_t)(((uint64_t)draw(s) * n) >> 32);
}

// Equal bits; a NaN of any kind for a NaN.
static bool same(uint32_t came, uint32_t expected)
{
    const bool nan = (expected & 0x7FFFFFFFu) > 0x7F800000u;
    return nan ? (came & 0x7FFFFFFFu) > 0x7F800000u : came == expected;
}

// ---- arithmetic --------------------------------------------------------------------------------

// What the bodies of gpu/ stand on: the same operators on the host.
static uint32_t arithmetic_of(moei_hip_arithmetic what, const uint32_t in[3],
                              const uint32_t *lane_0)
{
    const float a = moei_f32_from_bits(in[0]);
    const float b = moei_f32_from_bits(in[1]);
    const float c = moei_f32_from_bits(in[2]);
    switch (what) {
    case MOEI_HIP_ARITHMETIC_DIVIDE:
        return moei_f32_bits(moei_divf(a, b));
    case MOEI_HIP_ARITHMETIC_SQRT:
        return moei_f32_bits(moei_sqrtf(a));
    case MOEI_HIP_ARITHMETIC_FMA:
        return moei_f32_bits(moei_fmaf(a, b, c));
    case MOEI_HIP_ARITHMETIC_PAIR_LOW:
        return moei_f32_bits(moei_fmaf(a, c, b));
    case MOEI_HIP_ARITHMETIC_PAIR_HIGH:
        return moei_f32_bits(moei_fmaf(b, c, a));
    case MOEI_HIP_ARITHMETIC_MULTIPLY:
        return moei_f32_bits(a * b);
    case MOEI_HIP_ARITHMETIC_ADD:
        return moei_f32_bits(a + b);
    case MOEI_HIP_ARITHMETIC_SUM:
        return moei_f32_bits(a + b + c);
    case MOEI_HIP_ARITHMETIC_FROM_INT:
        return moei_f32_bits((float)(int32_t)in[0]);
    case MOEI_HIP_ARITHMETIC_FROM_UNSIGNED:
        return moei_f32_bits((float)in[0]);
    case MOEI_HIP_ARITHMETIC_FROM_BYTE:
        return moei_f32_bits((float)(in[0] & 0xFF));
    case MOEI_HIP_ARITHMETIC_TO_INT:
        return moei_absf(c) < 0x1p31f ? (uint32_t)(int32_t)c : 0u;
    case MOEI_HIP_ARITHMETIC_QUOTIENT:
        return in[1] != 0 ? in[0] / in[1] : 0u;
    case MOEI_HIP_ARITHMETIC_LONG_QUOTIENT:
        return MOEI_HIP_PROBE_LONG(in);
    case MOEI_HIP_ARITHMETIC_FROM_LONG:
        return moei_f32_bits((float)(int64_t)((uint64_t)in[0] << 32 | in[1]));
    case MOEI_HIP_ARITHMETIC_TO_LONG:
        return MOEI_HIP_PROBE_TO_LONG(c);
    default: { // of the same half of the wave
        const uint32_t lane = (uint32_t)((in - lane_0) / 3);
        return lane_0[3 * (lane / 32 * 32 + MOEI_HIP_PROBE_LANE(lane % 32))];
    }
    }
}

// Values where a sequence of steps or a mode of rounding would show.
static const uint32_t special[] = {
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x00000003, 0x007FFFFF, 0x807FFFFF,
    0x00800000, 0x80800000, 0x00800001, 0x01000000, 0x1A000001, 0x33800000, 0x33800001,
    0x3EAAAAAB, 0x3F7FFFFF, 0x3F800000, 0xBF800000, 0x3F800001, 0x3FFFFFFF, 0x40400000,
    0x40490FDB, 0x4B000001, 0x4B800000, 0x4B800001, 0xCB800002, 0x5F000000, 0x7E800001,
    0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000};

static bool probe_arithmetic(session *s)
{
    static const char *const texts[MOEI_HIP_NUM_ARITHMETIC] = {
#define MOEI_HIP_TEXT(id, text) text,
        MOEI_HIP_ARITHMETIC(MOEI_HIP_TEXT)
#undef MOEI_HIP_TEXT
    };
    enum { SPECIAL = sizeof special / sizeof special[0], WAVES = 24 };
    for (uint32_t i = 0; i < WAVES * LANES; i++) {
        const uint32_t pair[2] = {i % SPECIAL, i / SPECIAL};
        for (uint32_t j = 0; j < 3; j++) {
            s->host[3 * i + j] = i >= SPECIAL * SPECIAL ? draw(s)
                                 : j < 2                ? special[pair[j]]
                                                        : special[draw_below(s, SPECIAL)];
        }
    }
    if (!ask(s, MOEI_HIP_FAMILY_ARITHMETIC, "moek_probe_arithmetic", WAVES, 3,
             MOEI_HIP_NUM_ARITHMETIC)) {
        return false;
    }
    const uint32_t *results = s->host + 3 * WAVES * LANES;
    for (uint32_t i = 0; i < WAVES * LANES * MOEI_HIP_NUM_ARITHMETIC; i++) {
        const uint32_t lane = i / MOEI_HIP_NUM_ARITHMETIC;
        const moei_hip_arithmetic what = (moei_hip_arithmetic)(i % MOEI_HIP_NUM_ARITHMETIC);
        const uint32_t *in = s->host + 3 * lane;
        const uint32_t expected = arithmetic_of(what, in, s->host + 3 * (lane / LANES * LANES));
        const bool integer = what >= MOEI_HIP_ARITHMETIC_TO_INT;
        if (integer ? results[i] != expected : !same(results[i], expected)) {
            char why[112];
            (void)snprintf(why, sizeof why, "of %08x, %08x, %08x: expected %08x, came %08x", in[0],
                           in[1], in[2], expected, results[i]);
            return disagree(s, MOEI_HIP_FAMILY_ARITHMETIC, texts[what], why);
        }
    }
    return true;
}

// ---- codes to bf16 -----------------------------------------------------------------------------

typedef struct codes {
    const char *name, *kernel;
    moei_hip_code code;
} codes;

static const codes code_rows[] = {
#define MOE_HIP_PROBE_CODES(name, code) {#name, "moek_probe_codes_" #name, MOEI_HIP_CODE_##code},
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_CODES
};

static float code_value(moei_hip_code code, uint32_t c, float zero)
{
    switch (code) {
    case MOEI_HIP_CODE_MXFP4:
    case MOEI_HIP_CODE_NVFP4:
        return moei_e2m1_to_f32((uint8_t)c);
    case MOEI_HIP_CODE_E4M3:
        return moei_e4m3fn_to_f32((uint8_t)c);
    case MOEI_HIP_CODE_E4M3FNUZ:
        return moei_e4m3fnuz_to_f32((uint8_t)c);
    case MOEI_HIP_CODE_E5M2:
        return moei_e5m2_to_f32((uint8_t)c);
    default:
        return (float)c - zero;
    }
}

// A scale as kernels have it for packed weights.
static float draw_scale(session *s, moei_hip_code code)
{
    uint8_t low;
    uint8_t high;
    switch (code) {
    case MOEI_HIP_CODE_MXFP4:
    case MOEI_HIP_CODE_E4M3:
    case MOEI_HIP_CODE_E5M2:
        moei_hip_scale_range(code, &low, &high);
        return moei_f32_from_bits((low + draw_below(s, high - low + 1u)) << 23);
    case MOEI_HIP_CODE_NVFP4: // e4m3
        return moei_e4m3fn_to_f32((uint8_t)(draw_below(s, 127) | (draw(s) & 0x80u)));
    default:
        return 1.0f;
    }
}

// Each code in each place of its word, with scales of all kinds.
static bool probe_codes(session *s, const codes *row)
{
    enum { WAVES = 16, PLACES = 8 }; // codes of a lane
    const moei_hip_code code = row->code;
    const bool offset = code == MOEI_HIP_CODE_U4 || code == MOEI_HIP_CODE_U8;
    const bool nibbles =
        code == MOEI_HIP_CODE_MXFP4 || code == MOEI_HIP_CODE_NVFP4 || code == MOEI_HIP_CODE_U4;
    const uint32_t bits = nibbles ? 4 : 8;
    const uint32_t words = nibbles ? 1 : 2;
    for (uint32_t i = 0; i < WAVES * LANES; i++) {
        uint32_t *in = s->host + i * (words + 2);
        memset(in, 0, 4 * words);
        for (uint32_t p = 0; p < PLACES; p++) {
            const uint32_t c = (i + 31 * p) & ((1u << bits) - 1);
            in[p * bits / 32] |= c << (p * bits % 32);
        }
        in[words] = moei_f32_bits(draw_scale(s, code));
        in[words + 1] = moei_f32_bits(offset ? (float)draw_below(s, 1u << bits) : 0.0f);
    }
    if (!ask(s, MOEI_HIP_FAMILY_CODES, row->kernel, WAVES, words + 2, 4)) {
        return false;
    }
    const uint32_t *results = s->host + WAVES * LANES * (words + 2);
    for (uint32_t i = 0; i < WAVES * LANES * PLACES; i++) {
        const uint32_t p = i % PLACES;
        const uint32_t *in = s->host + i / PLACES * (words + 2);
        const uint32_t c = in[p * bits / 32] >> (p * bits % 32) & ((1u << bits) - 1);
        const float scale = moei_f32_from_bits(in[words]);
        const float expected = code_value(code, c, moei_f32_from_bits(in[words + 1])) * scale;
        const float came =
            moei_bf16_to_f32((uint16_t)(results[i / PLACES * 4 + p / 2] >> (p % 2 * 16)));
        if (came != expected && (came == came || expected == expected)) {
            char why[112];
            (void)snprintf(why, sizeof why, "code %02x in place %u, scale %g: expected %g, came %g",
                           c, p, (double)scale, isnan(expected) ? (double)NAN : (double)expected,
                           (double)came);
            return disagree(s, MOEI_HIP_FAMILY_CODES, row->name, why);
        }
    }
    return true;
}

// ---- matrix instructions -----------------------------------------------------------------------

typedef enum format { BF16, E4M3, E5M2, E2M3, E3M2, E2M1 } format; // gfx942: E4M3 is fnuz

/// A row of cdna/probes.def.
typedef struct matrix {
    const char *name, *kernel;
    uint64_t isa;
    moei_hip_family family;
    moei_arith arith;
    int k;
    struct {
        format format;
        uint32_t words;
    } operand[2];
    int byte[2]; // of a register that has the scale of 32 k; -1: there are none
} matrix;

static const matrix matrix_rows[] = {
#define MOE_HIP_PROBE_MATRIX(name, isa, family, arith, k, format_a, words_a, format_b, words_b,    \
                             byte_a, byte_b, call)                                                 \
    {#name,                                                                                        \
     "moek_probe_matrix_" #name,                                                                   \
     MOEI_HIP_##isa,                                                                               \
     MOEI_HIP_FAMILY_##family,                                                                     \
     MOEI_ARITH_##arith,                                                                           \
     k,                                                                                            \
     {{format_a, words_a}, {format_b, words_b}},                                                   \
     {byte_a, byte_b}},
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_MATRIX
};

/// result[i][j] = sum[i][j] + the products of 16 outputs i and 16 rows j over k.
typedef struct problem {
    uint16_t code[2][SIDE][MAX_K];
    uint8_t scale[2][SIDE][MAX_BLOCKS]; // e8m0
    float sum[SIDE][SIDE];
    uint8_t of[2][SIDE]; // permuted: the row that was in its place
    float result[SIDE][SIDE];
} problem;

static bool has_scales(const matrix *m)
{
    return m->byte[0] >= 0;
}

static int bits_of(format f)
{
    return f == BF16 ? 16 : f <= E5M2 ? 8 : f <= E3M2 ? 6 : 4;
}

static float value_of(const session *s, format f, uint32_t c)
{
    switch (f) {
    case BF16:
        return moei_bf16_to_f32((uint16_t)c);
    case E4M3:
        return s->fnuz ? moei_e4m3fnuz_to_f32((uint8_t)c) : moei_e4m3fn_to_f32((uint8_t)c);
    case E5M2:
        return moei_e5m2_to_f32((uint8_t)c);
    case E2M3:
        return moei_e2m3_to_f32((uint8_t)c);
    case E3M2:
        return moei_e3m2_to_f32((uint8_t)c);
    default:
        return moei_e2m1_to_f32((uint8_t)c);
    }
}

static uint16_t code_of(const session *s, format f, float x)
{
    switch (f) {
    case BF16:
        return moei_f32_to_bf16(x);
    case E4M3:
        return s->fnuz ? moei_f32_to_e4m3fnuz(x, MOEI_OVERFLOW_NAN)
                       : moei_f32_to_e4m3fn(x, MOEI_OVERFLOW_NAN);
    case E5M2:
        return moei_f32_to_e5m2(x, MOEI_OVERFLOW_NAN);
    case E2M3:
        return moei_f32_to_e2m3(x, MOEI_OVERFLOW_NAN);
    case E3M2:
        return moei_f32_to_e3m2(x, MOEI_OVERFLOW_NAN);
    default:
        return moei_f32_to_e2m1(x, MOEI_OVERFLOW_NAN);
    }
}

// A finite code that is not 0; of bf16 with an exponent of -9 to 8.
static uint16_t draw_code(session *s, format f)
{
    for (;;) {
        const uint32_t r = draw(s);
        const uint32_t c =
            f == BF16 ? (r & 0x807Fu) | (118 + (r >> 16) % 18) << 7 : r & ((1u << bits_of(f)) - 1);
        const float v = value_of(s, f, c);
        if (isfinite(v) && v != 0) {
            return (uint16_t)c;
        }
    }
}

// The lane and the item in its registers that have k of a row: instructions.h. Operands of 128 k of
// eight bits lie in two halves.
static void place(const matrix *m, int operand, int row, int k, int *lane, int *item)
{
    const bool halves = m->k == 128 && bits_of(m->operand[operand].format) == 8;
    const int items = halves ? 16 : m->k / 4;
    *lane = row + SIDE * (k / items % 4);
    *item = k % items + (halves ? k / 64 * 16 : 0);
}

// ---- what is asked of a matrix instruction

typedef enum judgement {
    EXACT, // the sum is a float: its bits
    BOUND, // within what the arithmetic class allows; NaN and infinities as they are
    SAME,  // the bits of the wave before, permuted
    TINY   // subnormal sums: kept or 0, both allowed; which is noted
} judgement;

// One k of each output has a value, another of each, so that a result is one product and shows
// which: where an element went that is not where it is expected. (fill_integers sees all places.)
static void fill_layout(session *s, const matrix *m, int n, problem *p)
{
    const format a = m->operand[0].format;
    const format b = m->operand[1].format;
    for (int i = 0; i < SIDE; i++) {
        p->code[0][i][(i + n * m->k / SIDE) % m->k] = draw_code(s, a);
        for (int k = 0; k < m->k; k++) {
            p->code[1][i][k] = draw_code(s, b);
        }
        for (int block = 0; block < m->k / 32; block++) { // of all sizes, which cancel
            const uint32_t about = ((uint32_t)n * 64 + (uint32_t)block * 80) % 249;
            p->scale[0][i][block] = (uint8_t)(about + draw_below(s, 6));
            p->scale[1][i][block] = (uint8_t)(254 - about - draw_below(s, 6));
        }
    }
}

static void fill_integers(session *s, const matrix *m, int n, problem *p)
{
    (void)n;
    for (int i = 0; i < SIDE; i++) {
        for (int o = 0; o < 2; o++) {
            for (int k = 0; k < m->k; k++) {
                const float v = (float)((int)draw_below(s, 7) - 3);
                p->code[o][i][k] = code_of(s, m->operand[o].format, v);
            }
            for (int block = 0; block < m->k / 32; block++) {
                p->scale[o][i][block] = (uint8_t)(125 + draw_below(s, 5));
            }
        }
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = (float)((int)draw_below(s, 257) - 128);
        }
    }
}

static void fill_zeros(session *s, const matrix *m, int n, problem *p)
{
    (void)n;
    for (int i = 0; i < SIDE; i++) {
        for (int k = 0; k < m->k; k++) {
            const float zero = draw_below(s, 2) != 0 ? -0.0f : 0.0f;
            p->code[0][i][k] = code_of(s, m->operand[0].format, zero);
            p->code[1][i][k] = draw_code(s, m->operand[1].format);
        }
    }
}

// Values with all their bits.
static void fill_rounding(session *s, const matrix *m, int n, problem *p)
{
    (void)n;
    for (int i = 0; i < SIDE; i++) {
        for (int o = 0; o < 2; o++) {
            for (int k = 0; k < m->k; k++) {
                p->code[o][i][k] = draw_code(s, m->operand[o].format);
            }
            for (int block = 0; block < m->k / 32; block++) {
                p->scale[o][i][block] = (uint8_t)(122 + draw_below(s, 11));
            }
        }
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = (float)(int32_t)draw(s) * 0x1p-24f;
        }
    }
}

// Two large products of each sum cancel, before, among and after small ones.
static void fill_cancelling(session *s, const matrix *m, int n, problem *p)
{
    fill_rounding(s, m, n, p);
    for (int i = 0; i < SIDE; i++) {
        for (int o = 0; o < 2; o++) {
            const format f = m->operand[o].format;
            const float large = f == BF16 ? 0x1p12f : bits_of(f) == 8 ? 128.0f : 6.0f;
            p->code[o][i][n] = code_of(s, f, large);
            p->code[o][i][m->k - 1 - 9 * n] = code_of(s, f, o == 0 ? -large : large);
        }
    }
}

// The wave before, outputs and rows in other places.
static void fill_permuted(session *s, const matrix *m, int n, problem *p)
{
    const problem *before = p - 1;
    (void)n;
    for (int o = 0; o < 2; o++) {
        for (int i = 0; i < SIDE; i++) {
            p->of[o][i] = (uint8_t)i;
        }
        for (uint32_t i = SIDE - 1; i > 0; i--) {
            const uint32_t j = draw_below(s, i + 1);
            const uint8_t other = p->of[o][i];
            p->of[o][i] = p->of[o][j];
            p->of[o][j] = other;
        }
        for (int i = 0; i < SIDE; i++) {
            memcpy(p->code[o][i], before->code[o][p->of[o][i]], sizeof p->code[o][i]);
            memcpy(p->scale[o][i], before->scale[o][p->of[o][i]], sizeof p->scale[o][i]);
        }
    }
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = before->sum[p->of[0][i]][p->of[1][j]];
        }
    }
    (void)m;
}

// NaN and infinity in operands, sums and scales.
static void fill_special(session *s, const matrix *m, int n, problem *p)
{
    const format a = m->operand[0].format;
    const format b = m->operand[1].format;
    fill_rounding(s, m, n, p);
    if (bits_of(a) >= 8) {
        p->code[0][0][5] = code_of(s, a, NAN);
    }
    if (bits_of(b) >= 8) {
        p->code[1][3][9] = code_of(s, b, NAN);
    }
    if (a == BF16 && b == BF16) {
        p->code[0][1][7] = code_of(s, a, INFINITY);
        p->code[0][2][11] = code_of(s, a, INFINITY);
        p->code[1][5][11] = 0;
        p->code[1][7][13] = code_of(s, b, -INFINITY);
    }
    if (has_scales(m)) {
        p->scale[0][8][1] = 255;
        p->scale[1][9][2] = 255;
    }
    p->sum[4][4] = NAN;
    p->sum[6][6] = -INFINITY;
}

// Subnormal operands, of one side and of the other, whose products are not.
static void fill_subnormal(session *s, const matrix *m, int n, problem *p)
{
    fill_layout(s, m, n, p);
    for (int i = 0; i < SIDE; i++) {
        uint16_t *a = &p->code[0][i][(i + n * m->k / SIDE) % m->k];
        for (int k = 0; k < m->k; k++) {
            uint16_t *b = &p->code[1][i][k];
            *b = (uint16_t)((*b & 0x807F) | (n == 0 ? 190 << 7 : 1)); // 2^63 and more, or tiny
        }
        *a = (uint16_t)((*a & 0x807F) | (n == 0 ? 1 : 190 << 7));
    }
}

// Products whose sum is subnormal, then sums that already are.
static void fill_tiny(session *s, const matrix *m, int n, problem *p)
{
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = n == 1 ? moei_f32_from_bits(1 + draw_below(s, 0x7FFFFF)) : 0.0f;
        }
        for (int o = 0; o < 2; o++) {
            const format f = m->operand[o].format;
            const float one = f == BF16 ? 0x1p-70f : 1.0f;
            for (int k = 0; n == 0 && (f == BF16 || has_scales(m)) && k < (o == 0 ? i + 1 : m->k);
                 k += 3) {
                p->code[o][i][k] = code_of(s, f, one);
            }
            memset(p->scale[o][i], f == BF16 ? 127 : 127 - 70, sizeof p->scale[o][i]);
        }
    }
}

typedef struct question {
    const char *name;
    void (*fill)(session *s, const matrix *m, int n, problem *p);
    judgement judge;
    int waves;
    bool of_bf16; // other formats have no such values
} question;

static const question questions[] = {
    {"layout", fill_layout, EXACT, SIDE, false},
    {"integers", fill_integers, EXACT, 4, false},
    {"zeros", fill_zeros, EXACT, 1, false},
    {"subnormal operands", fill_subnormal, EXACT, 2, true},
    {"NaN and infinity", fill_special, BOUND, 1, false},
    {"rounding", fill_rounding, BOUND, 2, false},
    {"other places", fill_permuted, SAME, 1, false},
    {"cancelling sums", fill_cancelling, BOUND, 2, false},
    {"other places", fill_permuted, SAME, 1, false},
    {"subnormal sums", fill_tiny, TINY, 2, false},
};

// Operands as the lanes of a wave have them.
static void lay(const matrix *m, const problem *p, uint32_t *in)
{
    const uint32_t first = m->operand[0].words;
    const uint32_t both = first + m->operand[1].words;
    const uint32_t each = both + 4 + (has_scales(m) ? 2 : 0);
    memset(in, 0, (size_t)4 * LANES * each);
    for (int o = 0; o < 2; o++) {
        const int bits = bits_of(m->operand[o].format);
        for (int row = 0; row < SIDE; row++) {
            for (int k = 0; k < m->k; k++) {
                int lane;
                int item;
                place(m, o, row, k, &lane, &item);
                const uint64_t code = (uint64_t)p->code[o][row][k] << (item * bits % 32);
                uint32_t *to = in + (uint32_t)lane * each + (o == 0 ? 0 : first) + item * bits / 32;
                to[0] |= (uint32_t)code;
                if (code >> 32 != 0) { // six bits in two words
                    to[1] |= (uint32_t)(code >> 32);
                }
            }
            for (int block = 0; has_scales(m) && block < m->k / 32; block++) {
                const int at = 8 * m->byte[o]; // other bytes hold anything
                const uint32_t any = 0x9E3779B9u * (uint32_t)(8 * row + 2 * block + o + 1);
                in[(uint32_t)(row + SIDE * block) * each + both + 4 + (uint32_t)o] =
                    (any & ~(0xFFu << at)) | (uint32_t)p->scale[o][row][block] << at;
            }
        }
    }
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            in[(uint32_t)(j + SIDE * (i / 4)) * each + both + (uint32_t)i % 4] =
                moei_f32_bits(p->sum[i][j]);
        }
    }
}

// The sum, and that of magnitudes.
static double sum_of(const matrix *m, const problem *p, double value[2][SIDE][MAX_K], int i, int j,
                     double *magnitude)
{
    double sum = (double)p->sum[i][j];
    *magnitude = fabs(sum);
    for (int k = 0; k < m->k; k++) {
        const double product = value[0][i][k] * value[1][j][k];
        sum += product;
        *magnitude += fabs(product);
    }
    return sum;
}

static bool judge_one(const session *s, const matrix *m, const question *q, const problem *p, int i,
                      int j, double exact, double magnitude)
{
    const float came = p->result[i][j];
    float expected = (float)exact;
    bool good;
    switch (q->judge) {
    case EXACT:
        good = moei_f32_bits(came) == moei_f32_bits(expected);
        break;
    case SAME:
        expected = p[-1].result[p->of[0][i]][p->of[1][j]];
        good = same(moei_f32_bits(came), moei_f32_bits(expected));
        break;
    case TINY:
        good = came == expected || came == 0;
        s->found->tiny[m->family][came == expected ? 0 : 1] += expected != 0;
        break;
    default: {
        const moei_arith_info *info = moei_hip_host->arith(m->arith);
        const double steps = (double)m->k + 1;
        const double bound =
            magnitude * steps * ldexp(2.0, -info->fraction_bits) + 2 * steps * 0x1p-126;
        good = isfinite(exact) ? isfinite(came) && fabs((double)came - exact) <= bound
                               : same(moei_f32_bits(came), moei_f32_bits(expected));
    }
    }
    if (!good) {
        char what[56];
        char why[112];
        (void)snprintf(what, sizeof what, "%s, %s", m->name, q->name);
        (void)snprintf(why, sizeof why, "output %d, row %d: expected %.9g, came %.9g (%08x)", i, j,
                       isnan(expected) ? (double)NAN : (double)expected, (double)came,
                       moei_f32_bits(came));
        return disagree(s, m->family, what, why);
    }
    return true;
}

static bool judge(const session *s, const matrix *m, const question *q, const problem *p)
{
    double value[2][SIDE][MAX_K];
    for (int o = 0; o < 2; o++) {
        for (int i = 0; i < SIDE; i++) {
            double scale = 1.0;
            for (int k = 0; k < m->k; k++) {
                if (has_scales(m) && k % 32 == 0) {
                    const uint8_t c = p->scale[o][i][k / 32];
                    scale = c == 255 ? (double)NAN : ldexp(1.0, c - 127);
                }
                value[o][i][k] =
                    (double)value_of(s, m->operand[o].format, p->code[o][i][k]) * scale;
            }
        }
    }
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            double magnitude;
            const double exact = sum_of(m, p, value, i, j, &magnitude);
            if (!judge_one(s, m, q, p, i, j, exact, magnitude)) {
                return false;
            }
        }
    }
    return true;
}

static bool probe_matrix(session *s, const matrix *m, problem *problems)
{
    enum { QUESTIONS = sizeof questions / sizeof questions[0] };
    const question *of[MAX_WAVES];
    const bool bf16 = m->operand[0].format == BF16 && m->operand[1].format == BF16;
    const uint32_t in = m->operand[0].words + m->operand[1].words + 4 + (has_scales(m) ? 2 : 0);
    uint32_t waves = 0;
    memset(problems, 0, MAX_WAVES * sizeof *problems);
    for (int q = 0; q < QUESTIONS; q++) {
        for (int n = 0; n < questions[q].waves && (bf16 || !questions[q].of_bf16); n++, waves++) {
            if (waves == MAX_WAVES) {
                return disagree(s, m->family, m->name, "more questions than there is room for");
            }
            of[waves] = &questions[q];
            memset(problems[waves].scale, 127, sizeof problems[waves].scale);
            questions[q].fill(s, m, n, &problems[waves]);
            lay(m, &problems[waves], s->host + (size_t)waves * LANES * in);
        }
    }
    if (!ask(s, m->family, m->kernel, waves, in, 4)) {
        return false;
    }
    const uint32_t *results = s->host + (size_t)waves * LANES * in;
    for (uint32_t w = 0; w < waves; w++) {
        for (uint32_t lane = 0; lane < LANES; lane++) { // of row lane % 16, four outputs
            for (uint32_t r = 0; r < 4; r++) {
                problems[w].result[4 * (lane / SIDE) + r][lane % SIDE] =
                    moei_f32_from_bits(results[(w * LANES + lane) * 4 + r]);
            }
        }
    }
    for (uint32_t w = 0; w < waves; w++) {
        if (!judge(s, m, of[w], &problems[w])) {
            return false;
        }
    }
    return true;
}

// ---- all of it ---------------------------------------------------------------------------------

static const struct {
    const char *name;
    uint64_t bit;
} families[MOEI_HIP_NUM_FAMILIES] = {
#define MOE_HIP_FAMILY(id, bit, name) {name, MOEI_HIP_##bit},
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_FAMILY
};

static void probe_all(session *s, const moei_hip_arch *arch, problem *problems)
{
    bool good[MOEI_HIP_NUM_FAMILIES] = {false};
    moei_hip_findings *found = s->found;
    good[MOEI_HIP_FAMILY_ARITHMETIC] = probe_arithmetic(s);
    good[MOEI_HIP_FAMILY_CODES] = true;
    for (size_t i = 0; i < sizeof code_rows / sizeof code_rows[0]; i++) {
        good[MOEI_HIP_FAMILY_CODES] = good[MOEI_HIP_FAMILY_CODES] && probe_codes(s, &code_rows[i]);
    }
    for (size_t i = 0; i < sizeof matrix_rows / sizeof matrix_rows[0]; i++) {
        const matrix *m = &matrix_rows[i];
        if ((m->isa & arch->isa) != 0 && found->text[m->family][0] == '\0') {
            good[m->family] = probe_matrix(s, m, problems);
        }
    }
    for (int f = 0; f < MOEI_HIP_NUM_FAMILIES; f++) {
        found->isa |= good[f] ? families[f].bit : 0;
        found->asked[f] = good[f] || found->text[f][0] != '\0';
    }
}

const char *moei_hip_family_text(const moei_hip_findings *found, moei_hip_family family, char *text,
                                 size_t capacity)
{
    const unsigned long *tiny = found->tiny[family];
    if (found->text[family][0] != '\0') {
        (void)snprintf(text, capacity, "%s off: %s", families[family].name, found->text[family]);
    } else {
        (void)snprintf(text, capacity, "%s: as expected%s", families[family].name,
                       tiny[0] + tiny[1] == 0 ? ""
                       : tiny[1] == 0         ? "; subnormal sums are kept"
                       : tiny[0] == 0         ? "; subnormal sums become 0"
                                              : "; some subnormal sums become 0");
    }
    return text;
}

const char *moei_hip_found_text(const moei_hip_findings *found, uint64_t isa, char *text,
                                size_t capacity)
{
    const bool device = (isa & MOEI_HIP_ANY) != 0; // else what a row needs
    size_t used = strlen(moei_hip_isa_text(isa, text, capacity));
    for (int f = 0; f < MOEI_HIP_NUM_FAMILIES; f++) {
        const bool has = (isa & families[f].bit) != 0;
        const bool off = device && !has && found->text[f][0] != '\0';
        if (used < capacity && (off || (has && !device))) {
            used += (size_t)snprintf(text + used, capacity - used, off ? " (%s off: %s)" : ", %s",
                                     families[f].name, found->text[f]);
        }
    }
    return text;
}

void moei_hip_probe(const moei_hip_runtime *hip, const moei_hip_arch *arch, hipModule_t module,
                    moei_hip_findings *found)
{
    session s = {.hip = hip,
                 .module = module,
                 .fnuz = (arch->isa & MOEI_HIP_CDNA3) != 0,
                 .host = malloc(4 * MAX_WORDS),
                 .found = found};
    problem *problems = malloc(MAX_WAVES * sizeof *problems);
    memset(found, 0, sizeof *found);
    found->isa = arch->isa & ~(uint64_t)MOEI_HIP_ANY;
    if (s.host == NULL || problems == NULL) {
        (void)disagree(&s, MOEI_HIP_FAMILY_ARITHMETIC, "memory", "there is none left");
    } else {
        const hipError_t error = hip->hipMalloc(&s.device, 4 * MAX_WORDS);
        if (error == hipSuccess) {
            probe_all(&s, arch, problems);
            (void)hip->hipFree(s.device);
        } else {
            (void)disagree(&s, MOEI_HIP_FAMILY_ARITHMETIC, "memory", hip->hipGetErrorString(error));
        }
        (void)hip->hipGetLastError();
    }
    free(problems);
    free(s.host);
}
