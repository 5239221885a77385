// SPDX-License-Identifier: Apache-2.0
// What is asked of each matrix instruction: which operands lie where, and what their sums are.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/hip/probe_ask.h"
#include "numerics/bf16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"

enum { LANES = MOEI_HIP_PROBE_THREADS, SIDE = 16, MAX_K = 128, MAX_BLOCKS = MAX_K / 32 };

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

static float value_of(const moei_hip_session *s, format f, uint32_t c)
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

static uint16_t code_of(const moei_hip_session *s, format f, float x)
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
static uint16_t draw_code(moei_hip_session *s, format f)
{
    for (;;) {
        const uint32_t r = moei_hip_draw(s);
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
static void fill_layout(moei_hip_session *s, const matrix *m, int n, problem *p)
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
            p->scale[0][i][block] = (uint8_t)(about + moei_hip_draw_below(s, 6));
            p->scale[1][i][block] = (uint8_t)(254 - about - moei_hip_draw_below(s, 6));
        }
    }
}

static void fill_integers(moei_hip_session *s, const matrix *m, int n, problem *p)
{
    (void)n;
    for (int i = 0; i < SIDE; i++) {
        for (int o = 0; o < 2; o++) {
            for (int k = 0; k < m->k; k++) {
                const float v = (float)((int)moei_hip_draw_below(s, 7) - 3);
                p->code[o][i][k] = code_of(s, m->operand[o].format, v);
            }
            for (int block = 0; block < m->k / 32; block++) {
                p->scale[o][i][block] = (uint8_t)(125 + moei_hip_draw_below(s, 5));
            }
        }
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = (float)((int)moei_hip_draw_below(s, 257) - 128);
        }
    }
}

static void fill_zeros(moei_hip_session *s, const matrix *m, int n, problem *p)
{
    (void)n;
    for (int i = 0; i < SIDE; i++) {
        for (int k = 0; k < m->k; k++) {
            const float zero = moei_hip_draw_below(s, 2) != 0 ? -0.0f : 0.0f;
            p->code[0][i][k] = code_of(s, m->operand[0].format, zero);
            p->code[1][i][k] = draw_code(s, m->operand[1].format);
        }
    }
}

// Values with all their bits.
static void fill_rounding(moei_hip_session *s, const matrix *m, int n, problem *p)
{
    (void)n;
    for (int i = 0; i < SIDE; i++) {
        for (int o = 0; o < 2; o++) {
            for (int k = 0; k < m->k; k++) {
                p->code[o][i][k] = draw_code(s, m->operand[o].format);
            }
            for (int block = 0; block < m->k / 32; block++) {
                p->scale[o][i][block] = (uint8_t)(122 + moei_hip_draw_below(s, 11));
            }
        }
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = (float)(int32_t)moei_hip_draw(s) * 0x1p-24f;
        }
    }
}

// Two large products of each sum cancel, before, among and after small ones.
static void fill_cancelling(moei_hip_session *s, const matrix *m, int n, problem *p)
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
static void fill_permuted(moei_hip_session *s, const matrix *m, int n, problem *p)
{
    const problem *before = p - 1;
    (void)n;
    for (int o = 0; o < 2; o++) {
        for (int i = 0; i < SIDE; i++) {
            p->of[o][i] = (uint8_t)i;
        }
        for (uint32_t i = SIDE - 1; i > 0; i--) {
            const uint32_t j = moei_hip_draw_below(s, i + 1);
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
static void fill_special(moei_hip_session *s, const matrix *m, int n, problem *p)
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
static void fill_subnormal(moei_hip_session *s, const matrix *m, int n, problem *p)
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
static void fill_tiny(moei_hip_session *s, const matrix *m, int n, problem *p)
{
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < SIDE; j++) {
            p->sum[i][j] = n == 1 ? moei_f32_from_bits(1 + moei_hip_draw_below(s, 0x7FFFFF)) : 0.0f;
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
    void (*fill)(moei_hip_session *s, const matrix *m, int n, problem *p);
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

static bool judge_one(const moei_hip_session *s, const matrix *m, const question *q,
                      const problem *p, int i, int j, double exact, double magnitude)
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
        good = moei_hip_same(moei_f32_bits(came), moei_f32_bits(expected));
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
                               : moei_hip_same(moei_f32_bits(came), moei_f32_bits(expected));
    }
    }
    if (!good) {
        char what[56];
        char why[112];
        (void)snprintf(what, sizeof what, "%s, %s", m->name, q->name);
        (void)snprintf(why, sizeof why, "output %d, row %d: expected %.9g, came %.9g (%08x)", i, j,
                       isnan(expected) ? (double)NAN : (double)expected, (double)came,
                       moei_f32_bits(came));
        return moei_hip_disagree(s, m->family, what, why);
    }
    return true;
}

static bool judge(const moei_hip_session *s, const matrix *m, const question *q, const problem *p)
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

static bool probe_matrix(moei_hip_session *s, const matrix *m, problem *problems)
{
    enum { QUESTIONS = sizeof questions / sizeof questions[0] };
    const question *of[MOEI_HIP_PROBE_WAVES];
    const bool bf16 = m->operand[0].format == BF16 && m->operand[1].format == BF16;
    const uint32_t in = m->operand[0].words + m->operand[1].words + 4 + (has_scales(m) ? 2 : 0);
    uint32_t waves = 0;
    memset(problems, 0, MOEI_HIP_PROBE_WAVES * sizeof *problems);
    for (int q = 0; q < QUESTIONS; q++) {
        for (int n = 0; n < questions[q].waves && (bf16 || !questions[q].of_bf16); n++, waves++) {
            if (waves == MOEI_HIP_PROBE_WAVES) {
                return moei_hip_disagree(s, m->family, m->name,
                                         "more questions than there is room for");
            }
            of[waves] = &questions[q];
            memset(problems[waves].scale, 127, sizeof problems[waves].scale);
            questions[q].fill(s, m, n, &problems[waves]);
            lay(m, &problems[waves], s->host + (size_t)waves * LANES * in);
        }
    }
    if (!moei_hip_ask(s, m->family, m->kernel, waves, in, 4)) {
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

bool moei_hip_probe_matrices(moei_hip_session *s, uint64_t isa, bool good[MOEI_HIP_NUM_FAMILIES])
{
    problem *problems = malloc(MOEI_HIP_PROBE_WAVES * sizeof *problems);
    if (problems == NULL) {
        return false;
    }
    for (size_t i = 0; i < sizeof matrix_rows / sizeof matrix_rows[0]; i++) {
        const matrix *m = &matrix_rows[i];
        if ((m->isa & isa) != 0 && s->found->text[m->family][0] == '\0') {
            good[m->family] = probe_matrix(s, m, problems);
        }
    }
    free(problems);
    return true;
}
