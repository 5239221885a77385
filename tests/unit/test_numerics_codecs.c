// SPDX-License-Identifier: Apache-2.0
// The number formats of numerics/ against their definition: every code decoded, and encoders
// compared with a search for the nearest value in float64 that shares nothing with them.
//
//   test_numerics_codecs          all bfloat16, all binary16, 4 million floats, every midpoint and
//                                 limit with its neighbours
//   test_numerics_codecs --long   all 2^32 floats; --only NAME: one format
//   MOE_LONG=1                    the same as --long
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "numerics/int4.h"
#include "test.h"

typedef enum special { SPECIAL_NONE, SPECIAL_FN, SPECIAL_IEEE, SPECIAL_FNUZ } special;
typedef enum tie { TIE_EVEN, TIE_DOWN, TIE_AWAY } tie;

enum { MAX_CODES = 0x8000, BLOCK = 4096 };

typedef struct format {
    const char *name;
    int exponent_bits, fraction_bits, bias;
    special kind;       // which codes are not numbers
    int nan_code;       // what an encoder gives for +NaN; -1: keeps the payload (tested apart)
    int nan_keeps_sign; // whether -NaN differs
    void (*decode)(const uint16_t *c, float *x, size_t n);
    void (*encode)(const float *x, uint16_t *c, size_t n, moei_overflow overflow);
    tie rule;
    int has_saturation; // whether `overflow` matters
    uint64_t hash;      // of the codes for a fixed sweep, both overflow modes
} format;

// One loop per direction and format, so that what is tested is also the vectorised form.
#define DECODE(name, type)                                                                         \
    static void decode_##name(const uint16_t *c, float *x, size_t n)                               \
    {                                                                                              \
        for (size_t i = 0; i < n; i++) {                                                           \
            x[i] = moei_##name##_to_f32((type)c[i]);                                               \
        }                                                                                          \
    }
#define ENCODE_AS(name, call)                                                                      \
    static void encode_##name(const float *x, uint16_t *c, size_t n, moei_overflow overflow)       \
    {                                                                                              \
        (void)overflow;                                                                            \
        for (size_t i = 0; i < n; i++) {                                                           \
            c[i] = call;                                                                           \
        }                                                                                          \
    }
DECODE(bf16, uint16_t)
DECODE(f16, uint16_t)
DECODE(e4m3fn, uint8_t)
DECODE(e4m3fnuz, uint8_t)
DECODE(e5m2, uint8_t)
DECODE(e5m2fnuz, uint8_t)
DECODE(e2m3, uint8_t)
DECODE(e3m2, uint8_t)
DECODE(e2m1, uint8_t)
ENCODE_AS(bf16, moei_f32_to_bf16(x[i]))
ENCODE_AS(f16, moei_f32_to_f16(x[i]))
ENCODE_AS(e4m3fn, moei_f32_to_e4m3fn(x[i], overflow))
ENCODE_AS(e4m3fnuz, moei_f32_to_e4m3fnuz(x[i], overflow))
ENCODE_AS(e5m2, moei_f32_to_e5m2(x[i], overflow))
ENCODE_AS(e5m2fnuz, moei_f32_to_e5m2fnuz(x[i], overflow))
ENCODE_AS(e2m3, moei_f32_to_e2m3(x[i], overflow))
ENCODE_AS(e3m2, moei_f32_to_e3m2(x[i], overflow))
ENCODE_AS(e2m1, moei_f32_to_e2m1(x[i], overflow))
ENCODE_AS(e2m1_half_down, moei_f32_to_e2m1_half_down(x[i]))
ENCODE_AS(e2m1_half_away, moei_f32_to_e2m1_half_away(x[i]))

static const format formats[] = {
    {"bf16", 8, 7, 127, SPECIAL_IEEE, 0x7FC0, 1, decode_bf16, encode_bf16, TIE_EVEN, 0,
     0x0CBA7BF1B8740373},
    {"f16", 5, 10, 15, SPECIAL_IEEE, -1, 1, decode_f16, encode_f16, TIE_EVEN, 0,
     0xF863E09DEC86A4D3},
    {"e4m3fn", 4, 3, 7, SPECIAL_FN, 0x7F, 1, decode_e4m3fn, encode_e4m3fn, TIE_EVEN, 1,
     0xCC54F0A5DF50DC4B},
    {"e4m3fnuz", 4, 3, 8, SPECIAL_FNUZ, 0x80, 0, decode_e4m3fnuz, encode_e4m3fnuz, TIE_EVEN, 1,
     0x8CC19C06A1814C53},
    {"e5m2", 5, 2, 15, SPECIAL_IEEE, 0x7F, 1, decode_e5m2, encode_e5m2, TIE_EVEN, 1,
     0xDFFDD37FB630AEA6},
    {"e5m2fnuz", 5, 2, 16, SPECIAL_FNUZ, 0x80, 0, decode_e5m2fnuz, encode_e5m2fnuz, TIE_EVEN, 1,
     0x31165DACB9C257A4},
    {"e2m3", 2, 3, 1, SPECIAL_NONE, 0x1F, 0, decode_e2m3, encode_e2m3, TIE_EVEN, 0,
     0x2C8FEB5C2E136582},
    {"e3m2", 3, 2, 3, SPECIAL_NONE, 0x1F, 0, decode_e3m2, encode_e3m2, TIE_EVEN, 0,
     0x05F042150EDF7C80},
    {"e2m1", 2, 1, 1, SPECIAL_NONE, 0x07, 0, decode_e2m1, encode_e2m1, TIE_EVEN, 0,
     0x016FA3524DF4EB66},
    {"e2m1_half_down", 2, 1, 1, SPECIAL_NONE, 0x07, 0, decode_e2m1, encode_e2m1_half_down, TIE_DOWN,
     0, 0xCD56804B0E866392},
    {"e2m1_half_away", 2, 1, 1, SPECIAL_NONE, 0x07, 0, decode_e2m1, encode_e2m1_half_away, TIE_AWAY,
     0, 0x40621CCD0DF98D1F},
};
enum { N_FORMATS = sizeof(formats) / sizeof(formats[0]) };

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof(u));
    return u;
}

static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof(x));
    return x;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u); // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

// The format's definition: magnitudes of the finite codes, ascending, and how many there are.
typedef struct table {
    double value[MAX_CODES];
    double middle[MAX_CODES]; // between code i and the next; the last one to where a next would be
    uint32_t count;
    uint32_t sign; // the sign bit
} table;

static void build_table(const format *f, table *t)
{
    uint32_t codes = 1u << (f->exponent_bits + f->fraction_bits);
    uint32_t per_exponent = 1u << f->fraction_bits;
    t->sign = codes;
    t->count = f->kind == SPECIAL_IEEE ? codes - per_exponent
               : f->kind == SPECIAL_FN ? codes - 1
                                       : codes;
    for (uint32_t c = 0; c <= t->count; c++) {
        int exponent = (int)(c / per_exponent);
        double fraction = (double)(c % per_exponent) / (double)per_exponent;
        double v = exponent == 0 ? ldexp(fraction, 1 - f->bias)
                                 : ldexp(1.0 + fraction, exponent - f->bias);
        if (c < t->count) {
            t->value[c] = v;
        }
        if (c > 0) {
            t->middle[c - 1] = (t->value[c - 1] + v) / 2;
        }
    }
}

static int goes_up(const format *f, uint32_t code, double a, double middle)
{
    if (a != middle) {
        return a > middle;
    }
    return f->rule == TIE_AWAY || (f->rule == TIE_EVEN && (code & 1u) != 0);
}

// The code that the definition gives; `code` is the largest one whose value is not above |x|.
static uint32_t expected_code(const format *f, const table *t, float x, uint32_t code, int saturate)
{
    uint32_t sign = (bits_of(x) >> 31) * t->sign;
    double a = fabs((double)x);
    if (x != x) {
        return (uint32_t)f->nan_code | (f->nan_keeps_sign ? sign : 0u);
    }
    if (goes_up(f, code, a, t->middle[code])) {
        code++;
    }
    if (code == t->count) { // beyond the range
        int keep = saturate || f->kind == SPECIAL_NONE;
        code = keep ? t->count - 1 : f->kind == SPECIAL_FNUZ ? t->sign : t->count;
        return f->kind == SPECIAL_FNUZ && !keep ? code : sign | code;
    }
    return f->kind == SPECIAL_FNUZ && code == 0 ? 0u : sign | code;
}

static uint32_t search(const table *t, double a)
{
    uint32_t lo = 0;
    uint32_t hi = t->count;
    while (hi - lo > 1) {
        uint32_t middle = lo + (hi - lo) / 2;
        if (t->value[middle] <= a) {
            lo = middle;
        } else {
            hi = middle;
        }
    }
    return lo;
}

static unsigned long check_block(const format *f, const table *t, const float *x, size_t n)
{
    unsigned long differ = 0;
    uint16_t codes[2][BLOCK];
    int modes = f->has_saturation ? 2 : 1;
    for (int mode = 0; mode < modes; mode++) {
        f->encode(x, codes[mode], n, mode != 0 ? MOEI_OVERFLOW_SATURATE : MOEI_OVERFLOW_NAN);
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t below = search(t, fabs((double)x[i]));
        for (int mode = 0; mode < modes; mode++) {
            uint32_t expected = expected_code(f, t, x[i], below, mode);
            if (x[i] != x[i] && f->nan_code < 0) {
                uint32_t u = bits_of(x[i]);
                expected = ((u >> 16) & 0x8000u) | 0x7E00u | ((u >> 13) & 0x3FFu);
            }
            if (codes[mode][i] != expected && differ++ < 10) {
                CHECK(0, "%s(%a, %d) = %02x, expected %02x", f->name, (double)x[i], mode,
                      codes[mode][i], expected);
            }
        }
    }
    return differ;
}

static void check_sample(const format *f, const table *t)
{
    static float x[BLOCK];
    unsigned long differ = 0;
    for (uint32_t block = 0; block < 0x10000u; block += BLOCK) {
        for (uint32_t i = 0; i < BLOCK; i++) {
            x[i] = float_of((block + i) << 16); // bfloat16
        }
        differ += check_block(f, t, x, BLOCK);
        for (uint32_t i = 0; i < BLOCK; i++) { // binary16, by its definition
            uint32_t h = block + i;
            double m = (double)(h & 0x3FFu) / 1024.0;
            int e = (int)((h >> 10) & 31u);
            double v = e == 0 ? ldexp(m, -14) : ldexp(1.0 + m, e - 15);
            v = e == 31 ? (m == 0.0 ? (double)INFINITY : (double)NAN) : v;
            x[i] = (float)((h & 0x8000u) != 0 ? -v : v);
        }
        differ += check_block(f, t, x, BLOCK);
    }
    // Each value and midpoint with the floats around it.
    size_t n = 0;
    for (uint32_t c = 0; c < t->count; c++) {
        for (int k = 0; k < 2; k++) {
            float v = (float)(k != 0 ? t->middle[c] : t->value[c]);
            float around[6] = {v, nextafterf(v, INFINITY), nextafterf(v, 0.0f)};
            for (int j = 0; j < 6; j++) {
                around[j] = j < 3 ? around[j] : -around[j - 3];
                x[n++] = around[j];
            }
            if (n > BLOCK - 6) {
                differ += check_block(f, t, x, n);
                n = 0;
            }
        }
    }
    differ += check_block(f, t, x, n);
    // Random bits, and random values whose exponents lie in and around the format's range.
    uint64_t state = 7;
    for (int block = 0; block < 1024; block++) {
        for (size_t i = 0; i < BLOCK; i++) {
            uint64_t r = next_random(&state);
            int span = (1 << f->exponent_bits) + f->fraction_bits + 6;
            int e = 1 - f->bias - f->fraction_bits - 3 + (int)((r >> 32) % (unsigned)span) + 127;
            e = e < 0 ? 0 : (e > 255 ? 255 : e);
            x[i] = (block & 1) != 0 ? float_of((uint32_t)r)
                                    : float_of(((uint32_t)r & 0x807FFFFFu) | ((uint32_t)e << 23));
        }
        differ += check_block(f, t, x, BLOCK);
    }
    CHECK(differ == 0, "%s: %lu codes differ", f->name, differ);
}

// All floats: |x| ascends, so the place in the table moves along instead of being searched.
static void check_all(const format *f, const table *t)
{
    static float x[2][BLOCK];
    static uint16_t codes[2][2][BLOCK];
    unsigned long differ = 0;
    uint32_t below = 0;
    int modes = f->has_saturation ? 2 : 1;
    for (uint32_t u = 0; u < 0x80000000u; u += BLOCK) {
        for (uint32_t i = 0; i < BLOCK; i++) {
            x[0][i] = float_of(u + i);
            x[1][i] = float_of(0x80000000u | (u + i));
        }
        for (int s = 0; s < 2; s++) {
            for (int mode = 0; mode < modes; mode++) {
                f->encode(x[s], codes[s][mode], BLOCK,
                          mode != 0 ? MOEI_OVERFLOW_SATURATE : MOEI_OVERFLOW_NAN);
            }
        }
        if (u >= 0x7F800000u && f->nan_code < 0) {
            differ += check_block(f, t, x[0], BLOCK) + check_block(f, t, x[1], BLOCK);
            continue;
        }
        for (uint32_t i = 0; i < BLOCK; i++) {
            while (below + 1 < t->count && t->value[below + 1] <= (double)x[0][i]) {
                below++;
            }
            for (int s = 0; s < 2; s++) {
                for (int mode = 0; mode < modes; mode++) {
                    differ += codes[s][mode][i] != expected_code(f, t, x[s][i], below, mode);
                }
            }
        }
    }
    CHECK(differ == 0, "%s: %lu of 2^32 codes differ", f->name, differ);
}

static void check_decode(const format *f, const table *t)
{
    uint32_t total = 2 * t->sign;
    for (uint32_t c = 0; c < total; c++) {
        uint16_t code = (uint16_t)c;
        float x;
        f->decode(&code, &x, 1);
        uint32_t magnitude = c & (t->sign - 1);
        int is_nan = f->kind == SPECIAL_FNUZ   ? c == t->sign
                     : f->kind == SPECIAL_NONE ? 0
                     : f->kind == SPECIAL_FN   ? magnitude == t->count
                                               : magnitude > t->count;
        uint32_t expected;
        if (is_nan) {
            uint32_t payload =
                t->sign == 0x8000u ? magnitude << (23 - f->fraction_bits) : 0x00400000u;
            uint32_t quiet = strcmp(f->name, "bf16") == 0 ? 0u : 0x00400000u;
            expected = 0x7F800000u | (payload & 0x007FFFFFu) | quiet;
        } else if (f->kind == SPECIAL_IEEE && magnitude == t->count) {
            expected = 0x7F800000u;
        } else {
            expected = bits_of((float)t->value[magnitude]);
        }
        expected |= (c & t->sign) != 0 ? 0x80000000u : 0u;
        CHECK(bits_of(x) == expected, "%s: code %02x is %08x, expected %08x", f->name, c,
              bits_of(x), expected);
        // A number survives the way there and back.
        if (!is_nan) {
            uint16_t back;
            f->encode(&x, &back, 1, MOEI_OVERFLOW_NAN);
            CHECK(back == c, "%s: code %02x comes back as %02x", f->name, c, back);
        }
    }
    // Bits above a narrow code are ignored.
    if (total < 256) {
        for (uint32_t c = 0; c < 256; c++) {
            uint16_t pair[2] = {(uint16_t)c, (uint16_t)(c & (total - 1))};
            float x[2];
            f->decode(pair, x, 2);
            CHECK(bits_of(x[0]) == bits_of(x[1]), "%s: byte %02x", f->name, c);
        }
    }
}

static uint64_t sweep_hash(const format *f)
{
    static float x[BLOCK];
    static uint16_t c[BLOCK];
    uint64_t hash = 0xCBF29CE484222325u;
    uint64_t state = 99;
    for (int block = 0; block < 32; block++) {
        for (size_t i = 0; i < BLOCK; i++) {
            uint32_t u = (uint32_t)next_random(&state);
            uint32_t inside = (u & 0x87FFFFFFu) + 0x3C000000u; // exponents that all formats have
            uint32_t pick[4] = {u, inside, inside, inside & 0xFFF00000u}; // the last: with ties
            x[i] = float_of(pick[i & 3]);
        }
        f->encode(x, c, BLOCK, (block & 1) != 0 ? MOEI_OVERFLOW_SATURATE : MOEI_OVERFLOW_NAN);
        for (size_t i = 0; i < BLOCK; i++) {
            hash = (hash ^ (c[i] & 0xFFu)) * 0x100000001B3u;
            hash = (hash ^ (c[i] >> 8)) * 0x100000001B3u;
        }
    }
    return hash;
}

static uint32_t expected_e8m0(float x)
{
    double a = fabs((double)x);
    if (!(a < 0x1.8p127)) {
        return 255; // NaN, infinity, and what rounds up beyond 2^127
    }
    if (a <= 0x1p-127) {
        return 0;
    }
    if (a < 0x1p-126) {
        return 1;
    }
    int e;
    double m = frexp(a, &e); // a = m 2^e, 1/2 <= m < 1
    return (uint32_t)(e - 1 + 127 + (m >= 0.75 ? 1 : 0));
}

static void check_e8m0(uint64_t stride)
{
    for (int c = 0; c < 255; c++) {
        float x = moei_e8m0_to_f32((uint8_t)c);
        CHECK((double)x == ldexp(1.0, c - 127), "e8m0 %d is %a", c, (double)x);
        CHECK(moei_f32_to_e8m0(x) == c, "e8m0 %d comes back as %d", c, moei_f32_to_e8m0(x));
        CHECK(moei_f32_to_e8m0(-x) == c, "e8m0 ignores the sign of %a", (double)x);
    }
    CHECK(bits_of(moei_e8m0_to_f32(255)) == 0x7FC00000u, "e8m0 255 is NaN");
    unsigned long differ = 0;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += stride) {
        float x = float_of((uint32_t)u);
        differ += moei_f32_to_e8m0(x) != expected_e8m0(x);
    }
    for (uint32_t e = 0; e < 256; e++) {
        static const uint32_t fractions[] = {0u, 1u, 0x3FFFFFu, 0x400000u, 0x400001u, 0x7FFFFFu};
        for (int i = 0; i < 6; i++) {
            float x = float_of((e << 23) | fractions[i]);
            differ += moei_f32_to_e8m0(x) != expected_e8m0(x);
        }
    }
    CHECK(differ == 0, "%lu e8m0 codes differ", differ);
}

static void check_listed(void)
{
    const float nan = NAN;
    const float inf = INFINITY;
    struct {
        uint8_t got, expected;
        const char *what;
    } cases[] = {
        {moei_f32_to_e4m3fn(464.0f, MOEI_OVERFLOW_NAN), 0x7E, "e4m3fn 464, a tie to even"},
        {moei_f32_to_e4m3fn(464.000031f, MOEI_OVERFLOW_NAN), 0x7F, "e4m3fn above 464"},
        {moei_f32_to_e4m3fn(-1e30f, MOEI_OVERFLOW_SATURATE), 0xFE, "e4m3fn -1e30 saturates"},
        {moei_f32_to_e4m3fn(-inf, MOEI_OVERFLOW_NAN), 0xFF, "e4m3fn -inf"},
        {moei_f32_to_e4m3fn(inf, MOEI_OVERFLOW_SATURATE), 0x7E, "e4m3fn inf saturates"},
        {moei_f32_to_e4m3fn(-nan, MOEI_OVERFLOW_SATURATE), 0xFF, "e4m3fn -NaN"},
        {moei_f32_to_e4m3fn(-0.0f, MOEI_OVERFLOW_NAN), 0x80, "e4m3fn -0"},
        {moei_f32_to_e4m3fn(0x1p-10f, MOEI_OVERFLOW_NAN), 0x00, "e4m3fn half a step"},
        {moei_f32_to_e4m3fn(0x1.000002p-10f, MOEI_OVERFLOW_NAN), 0x01, "e4m3fn above half a step"},
        {moei_f32_to_e4m3fnuz(248.0f, MOEI_OVERFLOW_NAN), 0x80, "e4m3fnuz 248"},
        {moei_f32_to_e4m3fnuz(247.999985f, MOEI_OVERFLOW_NAN), 0x7F, "e4m3fnuz below 248"},
        {moei_f32_to_e4m3fnuz(-inf, MOEI_OVERFLOW_SATURATE), 0xFF, "e4m3fnuz -inf saturates"},
        {moei_f32_to_e4m3fnuz(-0.0f, MOEI_OVERFLOW_NAN), 0x00, "e4m3fnuz -0"},
        {moei_f32_to_e4m3fnuz(-0x1p-11f, MOEI_OVERFLOW_NAN), 0x00, "e4m3fnuz -half a step"},
        {moei_f32_to_e5m2(61440.0f, MOEI_OVERFLOW_NAN), 0x7C, "e5m2 61440 is inf"},
        {moei_f32_to_e5m2(-61440.0f, MOEI_OVERFLOW_SATURATE), 0xFB, "e5m2 -61440 saturates"},
        {moei_f32_to_e5m2(-inf, MOEI_OVERFLOW_NAN), 0xFC, "e5m2 -inf"},
        {moei_f32_to_e5m2(nan, MOEI_OVERFLOW_NAN), 0x7F, "e5m2 NaN"},
        {moei_f32_to_e5m2fnuz(61440.0f, MOEI_OVERFLOW_NAN), 0x80, "e5m2fnuz 61440"},
        {moei_f32_to_e5m2fnuz(nan, MOEI_OVERFLOW_SATURATE), 0x80, "e5m2fnuz NaN"},
        {moei_f32_to_e2m3(-inf, MOEI_OVERFLOW_NAN), 0x3F, "e2m3 -inf"},
        {moei_f32_to_e3m2(-nan, MOEI_OVERFLOW_NAN), 0x1F, "e3m2 -NaN"},
        {moei_f32_to_e2m1(-inf, MOEI_OVERFLOW_NAN), 0x0F, "e2m1 -inf"},
        {moei_f32_to_e2m1(-nan, MOEI_OVERFLOW_NAN), 0x07, "e2m1 -NaN"},
        {moei_f32_to_e2m1(-0.25f, MOEI_OVERFLOW_NAN), 0x08, "e2m1 -0.25"},
        {moei_f32_to_e2m1(2.5f, MOEI_OVERFLOW_NAN), 0x04, "e2m1 2.5"},
        {moei_f32_to_e2m1_half_down(3.5f), 0x05, "e2m1 half down 3.5"},
        {moei_f32_to_e2m1_half_away(-5.0f), 0x0F, "e2m1 half away -5"},
        {moei_f32_to_e2m1_half_away(0.25f), 0x01, "e2m1 half away 0.25"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK(cases[i].got == cases[i].expected, "%s: %02x, expected %02x", cases[i].what,
              cases[i].got, cases[i].expected);
    }
    CHECK(moei_f32_to_f16(65519.996f) == 0x7BFF && moei_f32_to_f16(65520.0f) == 0x7C00,
          "f16 limit");
    CHECK(moei_f32_to_f16(0x1p-25f) == 0 && moei_f32_to_f16(0x1.8p-24f) == 2, "f16 subnormal ties");
    CHECK(moei_f32_to_bf16(float_of(0x7F7F8000u)) == 0x7F80, "bf16 overflow, a tie");
    CHECK(moei_f32_to_bf16(float_of(0x7F7F7FFFu)) == 0x7F7F, "bf16 below overflow");
    CHECK(moei_f32_to_bf16(float_of(0xFF800001u)) == 0xFFC0, "bf16 of a signalling NaN");
    CHECK(moei_f32_to_bf16(float_of(0x00008000u)) == 0, "bf16 subnormal tie");
    // The constants are the largest values.
    CHECK(moei_e4m3fn_to_f32(0x7E) == MOEI_E4M3FN_MAX, "e4m3fn");
    CHECK(moei_e4m3fnuz_to_f32(0x7F) == MOEI_E4M3FNUZ_MAX, "e4m3fnuz");
    CHECK(moei_e4m3fnuz_to_f32(0x7E) == MOEI_E4M3FNUZ_QUANT_MAX, "e4m3fnuz for quantisers");
    CHECK(moei_e5m2_to_f32(0x7B) == MOEI_E5M2_MAX, "e5m2");
    CHECK(moei_e5m2fnuz_to_f32(0x7F) == MOEI_E5M2FNUZ_MAX, "e5m2fnuz");
    CHECK(moei_e2m3_to_f32(0x1F) == MOEI_E2M3_MAX, "e2m3");
    CHECK(moei_e3m2_to_f32(0x1F) == MOEI_E3M2_MAX, "e3m2");
    CHECK(moei_e2m1_to_f32(0x07) == MOEI_E2M1_MAX, "e2m1");
    CHECK(moei_f16_to_f32(0x7BFF) == MOEI_F16_MAX, "f16");
}

static void check_fn_to_fnuz(void)
{
    for (uint32_t c = 0; c < 256; c++) {
        int is_nan = -1;
        uint8_t out = moei_e4m3fn_to_e4m3fnuz_code((uint8_t)c, &is_nan);
        float from = moei_e4m3fn_to_f32((uint8_t)c);
        float to = moei_e4m3fnuz_to_f32(out);
        if (from != from) {
            CHECK(is_nan == 1 && to != to, "NaN code %02x", c);
        } else {
            CHECK(is_nan == 0 && to * 2.0f == from, "code %02x: %a from %a", c, (double)to,
                  (double)from);
        }
    }
}

// Packing against a plain bit string, each element written over other bits.
static void check_packing(void)
{
    enum { N = 64 };
    uint8_t packed[N], bits[N * 8];
    uint64_t state = 5;
    for (unsigned width = 4; width <= 6; width += 2) {
        size_t bytes = N * width / 8;
        for (int fill = 0; fill < 2; fill++) {
            memset(packed, fill != 0 ? 0xFF : 0, sizeof(packed));
            memset(bits, fill, sizeof(bits));
            for (int step = 0; step < 500; step++) {
                uint64_t r = next_random(&state);
                size_t i = r % N;
                uint8_t code = (uint8_t)(r >> 32); // upper bits set too: they must be ignored
                for (unsigned b = 0; b < width; b++) {
                    bits[i * width + b] = (uint8_t)(((unsigned)code >> b) & 1u);
                }
                if (width == 4) {
                    moei_set_u4(packed, i, code);
                } else {
                    moei_set_u6(packed, i, code);
                }
            }
            int same = 1;
            for (size_t j = 0; j < bytes * 8; j++) {
                same = same && (((unsigned)packed[j / 8] >> (j % 8)) & 1u) == bits[j];
            }
            CHECK(same, "packing of %u bits", width);
            for (size_t j = bytes; j < sizeof(packed); j++) {
                CHECK(packed[j] == (fill != 0 ? 0xFF : 0), "a byte past the end was written");
            }
            for (size_t i = 0; i < N; i++) {
                unsigned expected = 0;
                for (unsigned b = 0; b < width; b++) {
                    expected |= (unsigned)bits[i * width + b] << b;
                }
                unsigned got = width == 4 ? moei_get_u4(packed, i) : moei_get_u6(packed, i);
                CHECK(got == expected, "element %zu of %u bits", i, width);
            }
        }
    }
    for (int v = -20; v <= 20; v++) {
        int held = v < -8 ? -8 : (v > 7 ? 7 : v);
        CHECK(moei_int4_to_i32(moei_i32_to_int4(v)) == held, "int4 %d", v);
        CHECK(moei_uint4b8_to_i32(moei_i32_to_uint4b8(v)) == held, "uint4b8 %d", v);
        CHECK(moei_i32_to_int4(v) < 16 && moei_i32_to_uint4b8(v) < 16, "a nibble for %d", v);
    }
    CHECK(moei_i32_to_int4(INT32_MIN) == 8 && moei_i32_to_int4(INT32_MAX) == 7, "int4 limits");
    CHECK(moei_int4_to_i32(0xF8) == -8 && moei_uint4b8_to_i32(0xF0) == -8, "upper nibble ignored");
}

static void check_divide(void)
{
    uint64_t state = 9;
    for (int i = 0; i < 100000; i++) {
        const int64_t a = (int64_t)(next_random(&state) >> (1 + next_random(&state) % 63));
        const int64_t b = (int64_t)(next_random(&state) >> (1 + next_random(&state) % 62)) + 1;
        CHECK(moei_divide(a, b) == a / b, "%lld / %lld gives %lld", (long long)a, (long long)b,
              (long long)moei_divide(a, b));
    }
    CHECK(moei_divide(INT64_MAX, 1) == INT64_MAX && moei_divide(INT64_MAX, INT64_MAX) == 1 &&
              moei_divide(0, INT64_MAX) == 0 && moei_divide(1LL << 32, 1LL << 31) == 2,
          "divisions at the limits");
}

int main(int argc, char **argv)
{
    static table t;
    const char *env = getenv("MOE_LONG");
    int all = env != NULL && strcmp(env, "1") == 0;
    const char *only = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--long") == 0) {
            all = 1;
        } else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else {
            (void)fprintf(stderr, "usage: %s [--long] [--only NAME]\n", argv[0]);
            return 2;
        }
    }
    for (size_t i = 0; i < N_FORMATS; i++) {
        const format *f = &formats[i];
        if (only != NULL && strcmp(only, f->name) != 0) {
            continue;
        }
        build_table(f, &t);
        if (f->rule == TIE_EVEN) {
            check_decode(f, &t);
        }
        check_sample(f, &t);
        if (all) {
            check_all(f, &t);
        }
        uint64_t hash = sweep_hash(f);
        CHECK(hash == f->hash, "%s: the bits of the sweep changed: %016llx", f->name,
              (unsigned long long)hash);
    }
    check_e8m0(all ? 1 : 1021);
    check_listed();
    check_fn_to_fnuz();
    check_packing();
    check_divide();
    return test_summary();
}
