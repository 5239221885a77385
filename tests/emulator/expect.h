// SPDX-License-Identifier: Apache-2.0
// What cases of test_instructions.c say their expectations with. Nothing here is the emulator's.
#ifndef MOE_EMULATOR_EXPECT_H
#define MOE_EMULATOR_EXPECT_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct test_case;

typedef struct lane_of {
    const uint32_t *in; // the records of the wave
    int lane;
    uint64_t exec;
    int in_mask; // the lane's bit of vcc and s[22:23]
    uint64_t mask;
    int scc;
    int arch;
    const struct test_case *the_case;
} lane_of;

typedef void (*expectation)(const uint32_t *a, const uint32_t *b, const uint32_t *c,
                            const uint32_t *d, const lane_of *e, uint32_t *r, int *bit);

// A word of the record of another lane, of lane 0.
#define E_WORD(lane, word) (e->in[16 * (lane) + (word)])
#define E_LANE0(word)      (e->in[word])

// Lane 0's record, which scalar registers hold.
#define SA  (e->in[0])
#define SB  (e->in[4])
#define SBH (e->in[5])
#define SD  (e->in[12])
#define QA  Q(e->in)
#define QB  Q(e->in + 4)
#define QD  Q(e->in + 12)

static inline float F(const uint32_t *v)
{
    float f;
    memcpy(&f, v, 4);
    return f;
}

static inline uint32_t U(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline double D(const uint32_t *v)
{
    double x;
    memcpy(&x, v, 8);
    return x;
}

static inline void set_d(uint32_t *r, double x)
{
    memcpy(r, &x, 8);
}

static inline uint64_t Q(const uint32_t *v)
{
    uint64_t x;
    memcpy(&x, v, 8);
    return x;
}

static inline void set_q(uint32_t *r, uint64_t x)
{
    memcpy(r, &x, 8);
}

static inline uint8_t *byte_of(uint32_t *r)
{
    return (uint8_t *)r;
}

static inline uint8_t byte_at(const uint32_t *v, unsigned i)
{
    return ((const uint8_t *)v)[i];
}

static inline uint32_t reversed(uint32_t v, int bits)
{
    uint32_t r = 0;
    for (int i = 0; i < bits; i++) {
        r = r * 2 + v % 2;
        v /= 2;
    }
    return r;
}

static inline uint32_t ones(uint32_t v)
{
    uint32_t n = 0;
    for (; v != 0; v &= v - 1) {
        n++;
    }
    return n;
}

/// Place of the lowest bit, or zeros above the highest one; all ones for 0.
static inline uint32_t lowest(uint64_t v, int bits)
{
    for (int i = 0; i < bits; i++) {
        if (v >> i & 1) {
            return (uint32_t)i;
        }
    }
    return UINT32_MAX;
}

static inline uint32_t highest(uint64_t v, int bits)
{
    for (int i = bits - 1; i >= 0; i--) {
        if (v >> i & 1) {
            return (uint32_t)(bits - 1 - i);
        }
    }
    return UINT32_MAX;
}

/// `width` bits of v from bit `at`, of a register of `bits`; bit by bit.
static inline uint64_t field(uint64_t v, unsigned at, unsigned width, unsigned bits, int sign)
{
    uint64_t r = 0;
    const unsigned inside = at + width > bits ? bits - at : width;
    for (unsigned i = 0; i < inside; i++) {
        r |= (v >> (at + i) & 1) << i;
    }
    if (sign && inside > 0 && (v >> (at + inside - 1) & 1)) {
        for (unsigned i = inside; i < 64; i++) {
            r |= 1ull << i;
        }
    }
    return r;
}

/// The product, by long multiplication.
static inline uint64_t wide(uint32_t x, uint32_t y)
{
    uint64_t sum = 0;
    for (int i = 0; i < 32; i++) {
        sum += y >> i & 1 ? (uint64_t)x << i : 0;
    }
    return sum;
}

static inline int64_t i24(uint32_t v)
{
    const int64_t low = v % 0x1000000;
    return low >= 0x800000 ? low - 0x1000000 : low;
}

static inline int32_t nth_i(uint32_t a, uint32_t b, uint32_t c, int n)
{
    int32_t v[3] = {(int32_t)a, (int32_t)b, (int32_t)c};
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < 2; j++) {
            if (v[j] > v[j + 1]) {
                const int32_t t = v[j];
                v[j] = v[j + 1];
                v[j + 1] = t;
            }
        }
    }
    return v[n];
}

static inline uint32_t nth_u(uint32_t a, uint32_t b, uint32_t c, int n)
{
    return (uint32_t)nth_i(a ^ 0x80000000u, b ^ 0x80000000u, c ^ 0x80000000u, n) ^ 0x80000000u;
}

/// The larger (sign 1) or smaller (-1) of two floats: a NaN gives the other, a signalling one
/// itself.
static inline uint32_t max_of(uint32_t x, uint32_t y, int sign)
{
    const float p = F(&x);
    const float q = F(&y);
    const bool signals_x = isnan(p) && !(x & 0x400000);
    const bool signals_y = isnan(q) && !(y & 0x400000);
    if (signals_x || signals_y || (isnan(p) && isnan(q))) {
        return 0x7FC00000;
    }
    if (isnan(p) || isnan(q)) {
        return isnan(p) ? y : x;
    }
    if (p == q) { // zeros of either sign
        return sign > 0 ? x & y : x | y;
    }
    return (p > q) == (sign > 0) ? x : y;
}

static inline uint32_t median(uint32_t a, uint32_t b, uint32_t c)
{
    // By rank in an order of all bits that numbers follow.
    const uint32_t v[3] = {a, b, c};
    uint32_t key[3];
    for (int i = 0; i < 3; i++) {
        key[i] = v[i] >> 31 ? 0x80000000u - (v[i] & 0x7FFFFFFFu) - 1 : 0x80000000u + v[i];
    }
    const uint32_t k = nth_u(key[0], key[1], key[2], 1);
    return v[key[0] == k ? 0 : key[1] == k ? 1 : 2];
}

static inline float emulated_inverse_2pi(void)
{
    return (float)(0.5 / M_PI);
}

/// v_div_scale: x is the numerator or the denominator. Scaled by 2^64 up or down, so that neither
/// the quotient nor the reciprocal leave the normal numbers; *bit where v_div_fmas has to undo it.
static inline uint32_t division_operand(const uint32_t *x, const uint32_t *denominator,
                                        const uint32_t *numerator, int *bit)
{
    const long double d = fabsl((long double)F(denominator));
    const long double n = fabsl((long double)F(numerator));
    const bool finite_d = isfinite(F(denominator));
    const int exponent_d = finite_d ? (d >= 0x1p-126L ? ilogbl(d) : -127) : 128;
    const int exponent_n = isfinite(F(numerator)) ? (n >= 0x1p-126L ? ilogbl(n) : -127) : 128;
    const bool is_d = x[0] == denominator[0];
    const bool is_n = x[0] == numerator[0];
    int by = 0;
    *bit = 0;
    if (n == 0 || d == 0) {
        return 0x7FC00000;
    }
    const bool small_inverse = d > 0x1p126L;
    const bool small_quotient = n / d < 0x1p-126L;
    if (exponent_n >= exponent_d + 96) {
        *bit = 1;
        by = is_d ? 64 : 0;
    } else if (exponent_d == -127) {
        by = 64;
    } else if (small_inverse) {
        *bit = small_quotient;
        by = small_quotient && !is_d ? 0 : -64;
    } else if (small_quotient) {
        *bit = 1;
        by = is_n ? 64 : 0;
    } else if (exponent_n <= 23 - 127) {
        by = 64;
    }
    return by == 0 ? x[0] : U((float)((double)F(x) * (by > 0 ? 0x1p64 : 0x1p-64)));
}

/// A half from its fields.
static inline long double half_of(uint32_t h)
{
    const int exponent = (int)(h >> 10 & 31);
    const long double fraction = (long double)(h & 1023) / 1024;
    long double v = exponent == 0    ? ldexpl(fraction, -14)
                    : exponent == 31 ? (fraction != 0 ? (long double)NAN : (long double)INFINITY)
                                     : ldexpl(1 + fraction, exponent - 15);
    return h & 0x8000 ? -v : v;
}

static inline long double half(const uint32_t *v)
{
    return half_of(v[0] & 0xFFFFu);
}

/// The code whose value is nearest, by search; ties to the even code.
static inline uint32_t to_half(long double x)
{
    const uint32_t sign = signbit(x) ? 0x8000u : 0;
    const long double size = fabsl(x);
    if (isnan(x)) {
        return 0x7E00;
    }
    if (size >= 65520) {
        return sign | 0x7C00;
    }
    uint32_t low = 0;
    uint32_t high = 0x7C00;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (half_of(middle) <= size) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const long double above = low == 0x7BFF ? 65536 : half_of(low + 1);
    const long double down = size - half_of(low);
    const long double up = above - size;
    return sign | (down < up || (down == up && !(low & 1)) ? low : low + 1);
}

static inline uint32_t max_half(uint32_t x, uint32_t y, int sign)
{
    x &= 0xFFFFu;
    y &= 0xFFFFu;
    const float p = (float)half_of(x);
    const float q = (float)half_of(y);
    const bool signals_x = isnan(p) && !(x & 0x200);
    const bool signals_y = isnan(q) && !(y & 0x200);
    if (signals_x || signals_y || (isnan(p) && isnan(q))) {
        return 0x7E00;
    }
    if (isnan(p) || isnan(q)) {
        return isnan(p) ? y : x;
    }
    if (p == q) {
        return sign > 0 ? x & y : x | y;
    }
    return (p > q) == (sign > 0) ? x : y;
}

static inline uint32_t half_toward_zero(float x)
{
    const long double size = fabsl((long double)x);
    uint32_t code = 0x7BFF;
    if (isnan(x) || isinf(x)) {
        return to_half((long double)x);
    }
    while (half_of(code) > size) {
        code--;
    }
    return code | (signbit(x) ? 0x8000u : 0);
}

/// Nearest, ties to even, as a search among the two bf16 values around x.
static inline uint32_t to_bf16(float x)
{
    const uint32_t u = U(x);
    const uint32_t low = u / 65536;
    const uint32_t rest = u % 65536;
    if (isnan(x)) {
        return (low & 0x8000u) | 0x7FC0;
    }
    return low + (rest > 32768 || (rest == 32768 && low % 2));
}

// The small formats, from their fields. FP8 and BF8 have one bias more on gfx942, and there code
// 0x80 is the only one that is not a number.
enum { FP8, BF8, FP6, BF6, FP4 };

static inline float small_value(int arch, int format, uint32_t code)
{
    static const int fractions[] = {3, 2, 3, 2, 1};
    static const int all_bits[] = {8, 8, 6, 6, 4};
    static const int biases[] = {7, 15, 1, 3, 1};
    const bool fnuz = arch == 1 && format <= BF8;
    const int m = fractions[format];
    const uint32_t sign = code >> (all_bits[format] - 1) & 1;
    const uint32_t size = code & ((1u << (all_bits[format] - 1)) - 1);
    const int exponent = (int)(size >> m);
    const double fraction = (double)(size & ((1u << m) - 1)) / (1 << m);
    const int bias = biases[format] + fnuz;
    if (fnuz ? size == 0 && sign : format == FP8 ? size == 0x7F : format == BF8 && size > 0x7C) {
        return NAN;
    }
    if (!fnuz && format == BF8 && size == 0x7C) {
        return sign ? -INFINITY : INFINITY;
    }
    const double v = exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias);
    return (float)(sign ? -v : v);
}

/// The code of the nearest value, ties to the even code; beyond the last one NaN or infinity, or
/// with `saturates` the last.
static inline uint32_t small_code_of(int arch, int format, double x, int saturates)
{
    const bool fnuz = arch == 1 && format <= BF8;
    const uint32_t top = format == FP4 ? 7 : fnuz ? 0x7F : format == FP8 ? 0x7E : 0x7B;
    const uint32_t sign = signbit(x) ? (format == FP4 ? 8 : 0x80) : 0;
    const double size = fabs(x);
    if (isnan(x)) {
        return format == FP4 ? 7 : fnuz ? 0x80 : sign | 0x7F;
    }
    uint32_t best = 0;
    for (uint32_t code = 1; code <= top + 1; code++) {
        // The code behind the last stands for what it would be with one exponent more.
        const double last = (double)small_value(arch, format, top);
        const double step = last - (double)small_value(arch, format, top - 1);
        const double v = code <= top ? (double)small_value(arch, format, code) : last + step;
        const double below = code - 1 <= top ? (double)small_value(arch, format, code - 1) : last;
        const double middle = (v + below) / 2;
        if (size > middle || (size == middle && code % 2 == 0)) {
            best = code;
        }
    }
    if (best > top) {
        if (saturates || format == FP4) {
            best = top;
        } else {
            return fnuz ? 0x80 : sign | (format == FP8 ? 0x7F : 0x7C);
        }
    }
    return fnuz && best == 0 ? 0 : sign | best;
}

static inline uint32_t small_code(int arch, int format, float x, int saturates)
{
    return small_code_of(arch, format, (double)x, saturates);
}

/// Only the exponent of a scale counts; 255 is not a number.
static inline double scale_of(uint32_t scale)
{
    const int e = (int)(scale / 0x800000 % 256);
    return e == 255 ? (double)NAN : exp2(e - 127);
}

static inline uint32_t scaled_code(int arch, int format, float x, uint32_t scale)
{
    const double s = scale_of(scale);
    return small_code_of(arch, format, isnan(s) ? (double)NAN : (double)x / s, 0);
}

static inline long double scaled_value(int arch, int format, uint32_t code, uint32_t scale)
{
    return (long double)small_value(arch, format, code) * (long double)scale_of(scale);
}

/// The lower or the upper half of a register replaced.
static inline uint32_t replaced(uint32_t old, int upper, uint32_t half_word)
{
    return upper ? old % 65536 + half_word * 65536 : old / 65536 * 65536 + half_word;
}

static inline float bf(uint32_t code)
{
    const uint32_t u = code * 65536u;
    return F(&u);
}

// Both halves of a packed result, as an expression of the sources' halves.
#define PAIRS(expression)                                                                          \
    r[0] = 0;                                                                                      \
    for (int i = 0; i < 2; i++) {                                                                  \
        r[0] |= ((uint32_t)(expression)&0xFFFFu) << (16 * i);                                      \
    }
#define HALF_A (a[0] >> (16 * i) & 0xFFFFu)
#define HALF_B (b[0] >> (16 * i) & 0xFFFFu)
#define HALF_C (c[0] >> (16 * i) & 0xFFFFu)

static inline void expect_compare_modified(const uint32_t *a, const uint32_t *b, const uint32_t *c,
                                           const uint32_t *d, const lane_of *e, uint32_t *r,
                                           int *bit)
{
    (void)c, (void)d, (void)e, (void)r;
    *bit = fabsf(F(a)) < -F(b);
}

static inline void expect_compare_selected(const uint32_t *a, const uint32_t *b, const uint32_t *c,
                                           const uint32_t *d, const lane_of *e, uint32_t *r,
                                           int *bit)
{
    (void)c, (void)d, (void)e, (void)r;
    *bit = (int)(a[0] / 65536) > byte_at(b, 2);
}

#endif
