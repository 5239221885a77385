// SPDX-License-Identifier: Apache-2.0
// The functions of numerics/math.h against the C library in higher precision: largest error in ulp,
// special values, identities, monotony, and a hash of the result bits that is the same for every
// compiler, level of optimisation and machine.
//
//   test_numerics_math            4 million arguments per function over all exponents, and edges
//   test_numerics_math --long     every argument; --stride N: every Nth; --only NAME: one function
//   MOE_LONG=1                    the same as --long
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numerics/math.h"
#include "test.h"

// The x87 type where it exists; a quad in software would only be slow: double has 29 bits to spare.
#if LDBL_MANT_DIG == 64
typedef long double ref_t;
#define REF(name) name##l
#else
typedef double ref_t;
#define REF(name) name
#endif

enum { BLOCK = 4096 };

typedef struct function {
    const char *name;
    void (*run)(const float *x, float *y, size_t n); // a loop that the compiler may vectorise
    ref_t (*reference)(ref_t x);
    double bound;  // ulp, as math.h states it
    float lo, hi;  // where the function does its work, for a dense pass
    int direction; // 1 increasing, -1 falling at the sampled distance; 0 neither
    uint64_t hash; // of the results of the sweep
} function;

#define DEFINE(name)                                                                               \
    static void run_##name(const float *x, float *y, size_t n)                                     \
    {                                                                                              \
        for (size_t i = 0; i < n; i++) {                                                           \
            y[i] = moei_##name(x[i]);                                                              \
        }                                                                                          \
    }
DEFINE(expf)
DEFINE(exp2f)
DEFINE(logf)
DEFINE(log2f)
DEFINE(sigmoidf)
DEFINE(softplusf)
DEFINE(tanhf)
DEFINE(erff)
DEFINE(erfcf)
DEFINE(rcpf)

static ref_t ref_exp(ref_t x)
{
    return REF(exp)(x);
}

static ref_t ref_exp2(ref_t x)
{
    return REF(exp2)(x);
}

static ref_t ref_log(ref_t x)
{
    return REF(log)(x);
}

static ref_t ref_log2(ref_t x)
{
    return REF(log2)(x);
}

static ref_t ref_sigmoid(ref_t x)
{
    ref_t v = REF(exp)(-REF(fabs)(x));
    return x < 0 ? v / (1 + v) : 1 / (1 + v);
}

static ref_t ref_softplus(ref_t x)
{
    return (x > 0 ? x : 0) + REF(log1p)(REF(exp)(-REF(fabs)(x)));
}

static ref_t ref_tanh(ref_t x)
{
    return REF(tanh)(x);
}

static ref_t ref_erf(ref_t x)
{
    return REF(erf)(x);
}

static ref_t ref_erfc(ref_t x)
{
    return REF(erfc)(x);
}

static ref_t ref_rcp(ref_t x)
{
    return 1 / x;
}

// The bounds are those of docs/numerics-formats.md; the hashes pin every bit of the sweep.
static const function functions[] = {
    {"expf", run_expf, ref_exp, 1.0, -104.0f, 89.0f, 1, 0xCAC144F6AC5D0737},
    {"exp2f", run_exp2f, ref_exp2, 1.0, -150.0f, 128.0f, 1, 0xB15A85C0C22C73A7},
    {"logf", run_logf, ref_log, 1.0, 0.25f, 8.0f, 1, 0xD97AE8EA612A6B2B},
    {"log2f", run_log2f, ref_log2, 1.0, 0.25f, 8.0f, 1, 0xBEC8710E506F9383},
    {"sigmoidf", run_sigmoidf, ref_sigmoid, 1.0, -104.0f, 20.0f, 1, 0xA9069EE8D80B336D},
    {"softplusf", run_softplusf, ref_softplus, 1.0, -104.0f, 20.0f, 1, 0xFD3657562E0BD7D2},
    {"tanhf", run_tanhf, ref_tanh, 1.0, -10.0f, 10.0f, 1, 0x05040B9D73FF2CBC},
    {"erff", run_erff, ref_erf, 1.1, -4.5f, 4.5f, 1, 0x581815EF609E501A},
    {"erfcf", run_erfcf, ref_erfc, 1.3, -4.5f, 10.3f, -1, 0xA17BA4B92E618364},
    {"rcpf", run_rcpf, ref_rcp, 0.5, 0.5f, 2.0f, 0, 0xF132DCDBCF29B792},
};
enum { N_FUNCTIONS = sizeof(functions) / sizeof(functions[0]) };

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

// Distance of y from r in ulp of r; a result that should be NaN or infinite must be exactly that.
static double ulp_error(float y, ref_t r)
{
    const ref_t overflow = (ref_t)FLT_MAX + REF(ldexp)(1, 103); // from here on, nearest is infinity
    if (r != r || y != y) {
        return r != r && y != y ? 0.0 : (double)INFINITY;
    }
    if (REF(fabs)(r) >= overflow) {
        // An infinite result is right; the largest number is an ulp and more away.
        if (isinf(y)) {
            return (y > 0) == (r > 0) ? 0.0 : (double)INFINITY;
        }
        return isinf(r) ? (double)INFINITY : (double)REF(fabs)((r - (ref_t)y) / REF(ldexp)(1, 104));
    }
    int e = r == 0 ? -126 : (int)REF(logb)(r);
    e = e < -126 ? -126 : e;
    ref_t value = isinf(y) ? REF(ldexp)(y > 0 ? 1 : -1, 128) : (ref_t)y;
    return (double)REF(fabs)(REF(ldexp)(value - r, 23 - e));
}

typedef struct worst {
    double error;
    float at;
} worst;

static void measure(const function *f, const float *x, size_t n, worst *w)
{
    float y[BLOCK];
    f->run(x, y, n);
    for (size_t i = 0; i < n; i++) {
        ref_t r = f->reference((ref_t)x[i]);
        double error = ulp_error(y[i], r);
        if (!(error <= w->error)) {
            w->error = error;
            w->at = x[i];
        }
        if (y[i] != y[i] && bits_of(y[i]) != MOEI_NAN_BITS) {
            CHECK(0, "%s(%a): NaN bits %08x", f->name, (double)x[i], bits_of(y[i]));
        }
    }
}

// Every exponent of both signs with random fractions, and a dense pass over the working range.
static void measure_sample(const function *f, worst *w)
{
    static float x[BLOCK];
    uint64_t state = 1;
    for (uint32_t top = 0; top < 512; top++) {
        for (int block = 0; block < 2; block++) {
            for (size_t i = 0; i < BLOCK; i++) {
                x[i] = float_of((top << 23) | (uint32_t)(next_random(&state) >> 41));
            }
            x[0] = float_of(top << 23); // powers of two and their neighbours
            x[1] = float_of((top << 23) | 1u);
            x[2] = float_of((top << 23) | 0x7FFFFFu);
            measure(f, x, BLOCK, w);
        }
    }
    for (int block = 0; block < 128; block++) {
        for (size_t i = 0; i < BLOCK; i++) {
            double unit = (double)(next_random(&state) >> 11) * 0x1p-53;
            x[i] = (float)((double)f->lo + ((double)f->hi - (double)f->lo) * unit);
        }
        measure(f, x, BLOCK, w);
    }
}

static void measure_all(const function *f, uint64_t stride, worst *w)
{
    static float x[BLOCK];
    size_t n = 0;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += stride) {
        x[n++] = float_of((uint32_t)u);
        if (n == BLOCK) {
            measure(f, x, n, w);
            n = 0;
        }
    }
    measure(f, x, n, w);
}

// Arguments around which something changes: overflow, underflow, thresholds, ties.
static const float edges[] = {
    0.0f,
    -0.0f,
    1.0f,
    -1.0f,
    0.5f,
    -0.5f,
    2.0f,
    -2.0f,
    0.55f,
    1.0f / 3.0f,
    2.0f / 3.0f,
    4.0f / 3.0f,
    88.7228394f,
    88.7228317f,
    -87.3365402f,
    -103.972084f,
    -103.972076f,
    -103.278930f,
    -104.0f,
    89.0f,
    -149.0f,
    -149.5f,
    -150.0f,
    127.999992f,
    128.0f,
    9.0f,
    10.0f,
    -10.0f,
    4.0f,
    3.91999984f,
    0.75f,
    -0.75f,
    9.19454956f,
    10.0541954f,
    10.25f,
    16.6355324f,
    17.3286819f,
    -16.6355324f,
    0.693147182f,
    -0.693147182f,
    0.346573591f,
    1.17549435e-38f,
    1.17549421e-38f,
    1.40129846e-45f,
    3.40282347e+38f,
    8.50705917e+37f,
    1.70141183e+38f,
    2.93873588e-39f,
    2.93873607e-39f,
    5.87747175e-39f,
    INFINITY,
    -INFINITY,
    NAN,
};

static void measure_edges(const function *f, worst *w)
{
    float x[3];
    for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
        x[0] = edges[i];
        x[1] = nextafterf(edges[i], INFINITY);
        x[2] = nextafterf(edges[i], -INFINITY);
        measure(f, x, 3, w);
    }
}

static void check_direction(const function *f)
{
    // All floats from the least to the greatest, in steps that change x by 2^-11 relative.
    float x[2] = {-INFINITY, -INFINITY};
    float y[2];
    for (int64_t i = -0x7F800000; i <= 0x7F800000; i += 4096) {
        x[0] = x[1];
        x[1] = i < 0 ? -float_of((uint32_t)-i) : float_of((uint32_t)i);
        f->run(x, y, 2);
        if (f->direction > 0 ? y[0] > y[1] : y[0] < y[1]) {
            CHECK(0, "%s turns back between %a and %a", f->name, (double)x[0], (double)x[1]);
            return;
        }
    }
    CHECK(1, "%s", f->name);
}

// FNV-1a over the results for 2^18 arguments of all kinds.
static uint64_t sweep_hash(const function *f)
{
    static float x[BLOCK];
    static float y[BLOCK];
    uint64_t hash = 0xCBF29CE484222325u;
    uint32_t u = 0;
    for (int block = 0; block < 64; block++) {
        for (size_t i = 0; i < BLOCK; i++) {
            // Both all over f32 and, every second time, where functions are not constant.
            x[i] = (i & 1) != 0 ? float_of(u) : float_of((u & 0x83FFFFFFu) + 0x3E000000u);
            u += 0x4001u * 40503u / 2503u;
            u = u * 5u + 1u;
        }
        f->run(x, y, BLOCK);
        for (size_t i = 0; i < BLOCK; i++) {
            uint32_t r = bits_of(y[i]);
            for (int byte = 0; byte < 4; byte++) {
                hash = (hash ^ ((r >> (8 * byte)) & 0xFFu)) * 0x100000001B3u;
            }
        }
    }
    return hash;
}

static int same(float a, float b)
{
    return bits_of(a) == bits_of(b);
}

static void check_values(void)
{
    const float inf = INFINITY;
    const float nan = float_of(MOEI_NAN_BITS);
    const float tiny = float_of(1);
    CHECK(same(moei_expf(0.0f), 1.0f) && same(moei_expf(-0.0f), 1.0f), "exp(+-0)");
    CHECK(same(moei_expf(-inf), 0.0f) && same(moei_expf(inf), inf), "exp(+-inf)");
    CHECK(moei_expf(88.7228317f) < inf && same(moei_expf(88.7228394f), inf), "exp at overflow");
    CHECK(same(moei_expf(-103.972076f), tiny) && same(moei_expf(-103.972084f), 0.0f),
          "exp around underflow: %a %a", (double)moei_expf(-103.972076f),
          (double)moei_expf(-103.972084f));
    for (int e = -160; e <= 140; e++) {
        CHECK(same(moei_exp2f((float)e), (float)ldexp(1.0, e)), "exp2(%d)", e);
        CHECK(same(moei_pow2i(e), (float)ldexp(1.0, e)), "pow2i(%d)", e);
        if (e >= -149 && e <= 127) {
            CHECK(same(moei_log2f((float)ldexp(1.0, e)), (float)e), "log2(2^%d)", e);
        }
    }
    CHECK(same(moei_logf(1.0f), 0.0f) && same(moei_log2f(1.0f), 0.0f), "log(1) = +0");
    CHECK(same(moei_logf(0.0f), -inf) && same(moei_logf(-0.0f), -inf), "log(+-0)");
    CHECK(same(moei_logf(inf), inf) && same(moei_log2f(inf), inf), "log(inf)");
    CHECK(same(moei_logf(-tiny), nan) && same(moei_logf(-inf), nan), "log below 0");
    CHECK(same(moei_log2f(-1.0f), nan) && same(moei_log2f(-0.0f), -inf), "log2 below 0");
    CHECK(same(moei_sigmoidf(0.0f), 0.5f) && same(moei_sigmoidf(-0.0f), 0.5f), "sigmoid(+-0)");
    CHECK(same(moei_sigmoidf(inf), 1.0f) && same(moei_sigmoidf(-inf), 0.0f), "sigmoid(+-inf)");
    CHECK(same(moei_softplusf(inf), inf) && same(moei_softplusf(-inf), 0.0f), "softplus(+-inf)");
    CHECK(same(moei_softplusf(3.40282347e+38f), 3.40282347e+38f), "softplus of the largest");
    CHECK(same(moei_tanhf(-0.0f), -0.0f) && same(moei_erff(-0.0f), -0.0f), "odd functions of -0");
    CHECK(same(moei_tanhf(inf), 1.0f) && same(moei_tanhf(-inf), -1.0f), "tanh(+-inf)");
    CHECK(same(moei_erff(inf), 1.0f) && same(moei_erff(-inf), -1.0f), "erf(+-inf)");
    CHECK(same(moei_erfcf(0.0f), 1.0f) && same(moei_erfcf(-0.0f), 1.0f), "erfc(+-0)");
    CHECK(same(moei_erfcf(inf), 0.0f) && same(moei_erfcf(-inf), 2.0f), "erfc(+-inf)");
    CHECK(same(moei_erfcf(10.0541945f), tiny) && same(moei_erfcf(10.0541954f), 0.0f),
          "erfc around underflow: %a %a", (double)moei_erfcf(10.0541945f),
          (double)moei_erfcf(10.0541954f));
    CHECK(same(moei_tanhf(tiny), tiny) && same(moei_erff(tiny), tiny), "subnormal arguments");
    CHECK(same(moei_rcpf(0.0f), inf) && same(moei_rcpf(-0.0f), -inf), "1 / +-0");
    CHECK(same(moei_rcpf(inf), 0.0f) && same(moei_rcpf(-inf), -0.0f), "1 / +-inf");
    for (size_t i = 0; i < N_FUNCTIONS; i++) {
        float x[4] = {float_of(0x7F800001u), float_of(0x7FFFFFFFu), float_of(0xFF800001u),
                      float_of(0xFFC12345u)};
        float y[4];
        functions[i].run(x, y, 4);
        for (size_t j = 0; j < 4; j++) {
            CHECK(same(y[j], nan), "%s(NaN) = %08x", functions[i].name, bits_of(y[j]));
        }
    }
    for (uint32_t u = 0; u <= 0x7F800000u; u += 10007) {
        float x = float_of(u);
        CHECK(same(moei_tanhf(-x), -moei_tanhf(x)), "tanh is odd at %a", (double)x);
        CHECK(same(moei_erff(-x), -moei_erff(x)), "erf is odd at %a", (double)x);
    }
}

// moei_rcpf gives the bits of the division: all fractions, and all arguments whose exponent makes
// the argument or the result subnormal. Under --long the largest error proves the rest.
static void check_reciprocal(uint32_t step)
{
    unsigned long differ = 0;
    for (uint32_t u = 0; u < 0x01800000u; u += step) {
        uint32_t at[3] = {u, 0x3F000000u + u, 0x7E000000u + u};
        for (size_t i = 0; i < 3; i++) {
            float x = float_of(at[i]);
            if (x == x) {
                differ += !same(moei_rcpf(x), 1.0f / x) || !same(moei_rcpf(-x), -1.0f / x);
            }
            if (x >= 1.0f && x < 0x1p126f) {
                differ += !same(moei_rcp_from_1f(x), 1.0f / x);
            }
        }
    }
    CHECK(differ == 0, "%lu reciprocals differ from the quotient", differ);
}

static void check_integers(void)
{
    struct {
        float x;
        int32_t even, away, cut;
    } cases[] = {
        {0.0f, 0, 0, 0},
        {-0.0f, 0, 0, 0},
        {0.5f, 0, 1, 0},
        {-0.5f, 0, -1, 0},
        {1.5f, 2, 2, 1},
        {2.5f, 2, 3, 2},
        {-2.5f, -2, -3, -2},
        {0.49999997f, 0, 0, 0},
        {-0.49999997f, 0, 0, 0},
        {126.5f, 126, 127, 126},
        {-127.5f, -128, -128, -127},
        {1e-45f, 0, 0, 0},
        {4194303.5f, 4194304, 4194304, 4194303},
        {8388607.5f, 8388608, 8388608, 8388607},
        {8388608.0f, 8388608, 8388608, 8388608},
        {-8388607.5f, -8388608, -8388608, -8388607},
        {16777216.0f, 16777216, 16777216, 16777216},
        {2147483520.0f, 2147483520, 2147483520, 2147483520},
        {2147483648.0f, INT32_MAX, INT32_MAX, INT32_MAX},
        {-2147483648.0f, INT32_MIN, INT32_MIN, INT32_MIN},
        {-2147483904.0f, INT32_MIN, INT32_MIN, INT32_MIN},
        {3e38f, INT32_MAX, INT32_MAX, INT32_MAX},
        {INFINITY, INT32_MAX, INT32_MAX, INT32_MAX},
        {-INFINITY, INT32_MIN, INT32_MIN, INT32_MIN},
        {NAN, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        float x = cases[i].x;
        CHECK(moei_f32_round_half_even_i32(x) == cases[i].even, "half even of %a: %d", (double)x,
              moei_f32_round_half_even_i32(x));
        CHECK(moei_f32_round_half_away_i32(x) == cases[i].away, "half away of %a: %d", (double)x,
              moei_f32_round_half_away_i32(x));
        CHECK(moei_f32_trunc_i32(x) == cases[i].cut, "trunc of %a: %d", (double)x,
              moei_f32_trunc_i32(x));
    }
    unsigned long differ = 0;
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += 1021) {
        float x = float_of((uint32_t)u);
        if (!(fabsf(x) < 2147483648.0f)) {
            continue;
        }
        double whole = trunc((double)x);
        double away = round((double)x);
        double even = away;
        if (fabs((double)x - whole) == 0.5 && fmod(away, 2.0) != 0.0) {
            even = whole;
        }
        differ += moei_f32_round_half_even_i32(x) != (int32_t)even;
        differ += moei_f32_round_half_away_i32(x) != (int32_t)away;
        differ += moei_f32_trunc_i32(x) != (int32_t)whole;
    }
    CHECK(differ == 0, "%lu roundings to int32 differ", differ);
}

static void check_powers(void)
{
    CHECK(same(moei_pow2_up(0.0f), 0.0f) && same(moei_pow2_up(-0.0f), 0.0f), "pow2_up(+-0)");
    CHECK(same(moei_pow2_up(float_of(1)), 1.17549435e-38f), "pow2_up of a subnormal");
    CHECK(same(moei_pow2_up(1.0f), 1.0f) && same(moei_pow2_up(1.00000012f), 2.0f),
          "pow2_up near 1");
    CHECK(same(moei_pow2_up(-3.0f), 4.0f), "pow2_up ignores the sign");
    CHECK(same(moei_pow2_up(1.70141183e+38f), 1.70141183e+38f), "pow2_up(2^127)");
    CHECK(same(moei_pow2_up(3e38f), INFINITY) && same(moei_pow2_up(INFINITY), INFINITY),
          "pow2_up overflow");
    CHECK(same(moei_pow2_up(NAN), float_of(MOEI_NAN_BITS)), "pow2_up(NaN)");
    CHECK(moei_f32_exponent(0.0f) == -150 && moei_f32_exponent(-0.0f) == -150, "exponent of 0");
    CHECK(moei_f32_exponent(INFINITY) == 128 && moei_f32_exponent(NAN) == 128, "exponent of inf");
    unsigned long differ = 0;
    for (uint32_t u = 1; u < 0x7F800000u; u += 997) {
        float x = float_of(u);
        int e;
        double m = frexp((double)x, &e);
        differ += moei_f32_exponent(x) != e - 1 || moei_f32_exponent(-x) != e - 1;
        differ += moei_f32_exponent_byte(-x) != (u >> 23);
        if (u >= 0x00800000u) {
            differ += !same(moei_pow2_up(x), (float)ldexp(1.0, m == 0.5 ? e - 1 : e));
        }
    }
    CHECK(differ == 0, "%lu exponents or powers differ", differ);
}

int main(int argc, char **argv)
{
    const char *env = getenv("MOE_LONG");
    uint64_t stride = env != NULL && strcmp(env, "1") == 0 ? 1 : 0;
    const char *only = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--long") == 0) {
            stride = stride == 0 ? 1 : stride;
        } else if (strcmp(argv[i], "--stride") == 0 && i + 1 < argc) {
            stride = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else {
            (void)fprintf(stderr, "usage: %s [--long] [--stride N] [--only NAME]\n", argv[0]);
            return 2;
        }
    }
    for (size_t i = 0; i < N_FUNCTIONS; i++) {
        const function *f = &functions[i];
        if (only != NULL && strcmp(only, f->name) != 0) {
            continue;
        }
        worst w = {0.0, 0.0f};
        measure_edges(f, &w);
        if (stride != 0) {
            measure_all(f, stride, &w);
        } else {
            measure_sample(f, &w);
        }
        uint64_t hash = sweep_hash(f);
        (void)printf("%-10s worst %.4f ulp at %a (bound %.1f), bits %016llx\n", f->name, w.error,
                     (double)w.at, f->bound, (unsigned long long)hash);
        CHECK(w.error <= f->bound, "%s: %.4f ulp at %a", f->name, w.error, (double)w.at);
        CHECK(hash == f->hash, "%s: the bits of the sweep changed", f->name);
        if (f->direction != 0) {
            check_direction(f);
        }
    }
    check_values();
    check_reciprocal(stride == 1 ? 1 : 5);
    check_integers();
    check_powers();
    return test_summary();
}
