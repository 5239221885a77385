// SPDX-License-Identifier: Apache-2.0
// exp, log, the activations' functions, reciprocal and rounding to integers, in f32.
//
// Every function is a fixed sequence of IEEE operations without a branch: the same bits on every
// compiler and device, and loops over arrays vectorise. The polynomials are minimax fits with f32
// coefficients (Sollya's fpminimax, relative error). "Error" is the largest one over all 2^32
// arguments, measured against float64 functions, in units in the last place of the exact result;
// subnormal results count like others, with their step of 2^-149. A NaN argument gives the quiet
// NaN 0x7FC00000, and so does an argument outside the domain.
#ifndef MOEI_NUMERICS_MATH_H
#define MOEI_NUMERICS_MATH_H

#include "numerics/e8m0.h"
#include "numerics/hd.h"

#define MOEI_NAN_BITS 0x7FC00000u
#define MOEI_INF_BITS 0x7F800000u

/// y, or the canonical NaN where x is NaN.
MOE_HD float moei_nan_from(float x, float y)
{
    uint32_t abs_bits = moei_f32_bits(x) & 0x7FFFFFFFu;
    return moei_f32_from_bits(
        moei_select((int32_t)abs_bits > 0x7F800000, MOEI_NAN_BITS, moei_f32_bits(y)));
}

/// x held within [lo, hi]; NaN stays.
MOE_HD float moei_clampf(float x, float lo, float hi)
{
    float c = moei_selectf(x < lo, lo, x);
    return moei_selectf(c > hi, hi, c);
}

/// x * y * 2^k, the product rounded before the scaling, so that only a result below the normal
/// range is rounded twice. For 0.25 < |x| < 4 and |k| <= 250, or 0.01 < |x| < 4 and |k| <= 160: two
/// exact factors, x times the first one cannot leave the normal range.
MOE_HD float moei_mul_pow2(float x, float y, int32_t k)
{
    uint32_t half = (uint32_t)(k + 512) >> 1; // k / 2 + 256, rounded down
    uint32_t rest = (uint32_t)(k + 512) - half;
    float s0 = moei_f32_from_bits((half - 256u + 127u) << 23);
    float s1 = moei_f32_from_bits((rest - 256u + 127u) << 23);
    return x * s0 * y * s1;
}

/// x * 2^k with one rounding, in the range of moei_mul_pow2.
MOE_HD float moei_scale_pow2(float x, int32_t k)
{
    return moei_mul_pow2(x, 1.0f, k);
}

/// e^x = (p + lost) * 2^k with 0.7 < p < 1.42, for |x| <= 110 (no special values).
/// @param[out] k     the power of two
/// @param[out] lost  what the last rounding dropped; NULL where it is not wanted
/// @return p
MOE_HD float moei_exp_parts(float x, int32_t *k, float *lost)
{
    // k = x / ln 2 to nearest: adding 1.5 * 2^23 puts the integer into the low bits of the sum.
    float z = moei_fmaf(x, 1.44269502f, 12582912.0f);
    float n = z - 12582912.0f;
    *k = (int32_t)(moei_f32_bits(z) - 0x4B400000u);
    // r = x - n * ln 2 with ln 2 in two parts; the first has 15 bits, so its products are exact.
    float r = moei_fmaf(n, -0.693145752f, x);
    r = moei_fmaf(n, -1.42860677e-06f, r);
    float q = moei_fmaf(1.37825042e-03f, r, 8.36867467e-03f);
    q = moei_fmaf(q, r, 4.16689627e-02f);
    q = moei_fmaf(q, r, 1.66665211e-01f);
    q = moei_fmaf(q, r, 4.99999911e-01f);
    float w = moei_fmaf(q, r, 1.0f);
    float p = moei_fmaf(w, r, 1.0f);
    if (lost != NULL) {
        *lost = moei_fmaf(w, r, 1.0f - p); // 1 - p is exact
    }
    return p;
}

/// 1 / d for 1 <= d <= 16, relative error below 1e-5: a seed by subtraction of bits and two Newton
/// steps.
MOE_HD float moei_rcp_seed(float d)
{
    float y = moei_f32_from_bits(0x7EF311C7u - moei_f32_bits(d));
    y = moei_fmaf(moei_fmaf(-d, y, 1.0f), y, y);
    return moei_fmaf(moei_fmaf(-d, y, 1.0f), y, y);
}

/// log(1 + f) = f + f^2 * q for -1/3 <= f <= 1/3.
/// @return q
MOE_HD float moei_log_poly(float f)
{
    float q = moei_fmaf(-1.28324240e-01f, f, 1.40027761e-01f);
    q = moei_fmaf(q, f, -1.21985942e-01f);
    q = moei_fmaf(q, f, 1.40016198e-01f);
    q = moei_fmaf(q, f, -1.66793854e-01f);
    q = moei_fmaf(q, f, 2.00107142e-01f);
    q = moei_fmaf(q, f, -2.49998242e-01f);
    q = moei_fmaf(q, f, 3.33332092e-01f);
    return moei_fmaf(q, f, -0.5f);
}

/// |x| = (1 + f) * 2^e with -1/3 <= f < 1/3, f exact, for finite x other than zero.
/// @param[out] e  the power of two, as a float
/// @return f
MOE_HD float moei_log_parts(float x, float *e)
{
    uint32_t abs_bits = moei_f32_bits(x) & 0x7FFFFFFFu;
    // A subnormal is an integer times 2^-149, and the integer converts exactly.
    uint32_t scaled = moei_f32_bits((float)(int32_t)abs_bits);
    int is_subnormal = (int32_t)abs_bits < 0x00800000;
    uint32_t normal = moei_select(is_subnormal, scaled, abs_bits);
    uint32_t above = normal - 0x3F2AAAABu; // relative to 2/3
    int32_t exponent = (int32_t)((above + 0x80000000u) >> 23) - 256;
    *e = (float)(exponent - (is_subnormal ? 149 : 0));
    return moei_f32_from_bits((above & 0x007FFFFFu) + 0x3F2AAAABu) - 1.0f;
}

/// Special values of the logarithms around y: NaN below zero, -inf for +-0, +inf for +inf.
MOE_HD float moei_log_special(float x, float y)
{
    uint32_t bits = moei_f32_bits(x);
    uint32_t r = moei_f32_bits(y);
    r = moei_select(bits == MOEI_INF_BITS, MOEI_INF_BITS, r);
    r = moei_select(bits > MOEI_INF_BITS, MOEI_NAN_BITS, r); // the sign bit, or NaN
    r = moei_select((bits & 0x7FFFFFFFu) == 0u, 0xFF800000u, r);
    return moei_f32_from_bits(r);
}

/// e^x. Error 0.892 ulp. exp(+-0) = 1. Overflow gives +inf (x >= 88.7228394); underflow passes
/// through the subnormals to +0 (x <= -103.972084).
MOE_HD float moei_expf(float x)
{
    float c = moei_clampf(x, -104.0f, 89.0f);
    int32_t k;
    float p = moei_exp_parts(c, &k, NULL);
    return moei_nan_from(x, moei_scale_pow2(p, k));
}

/// 2^x, exact for every integer x. Error 0.879 ulp. Overflow gives +inf (x >= 128); underflow
/// passes through the subnormals to +0 (x <= -150).
MOE_HD float moei_exp2f(float x)
{
    float c = moei_clampf(x, -151.0f, 129.0f);
    float z = c + 12582912.0f;
    float f = c - (z - 12582912.0f);
    int32_t k = (int32_t)(moei_f32_bits(z) - 0x4B400000u);
    float p = moei_fmaf(1.52412846e-04f, f, 1.33913022e-03f);
    p = moei_fmaf(p, f, 9.61883366e-03f);
    p = moei_fmaf(p, f, 5.55035882e-02f);
    p = moei_fmaf(p, f, 2.40226448e-01f);
    p = moei_fmaf(p, f, 6.93147182e-01f);
    p = moei_fmaf(p, f, 1.0f);
    return moei_nan_from(x, moei_scale_pow2(p, k));
}

/// Natural logarithm. Error 0.883 ulp. log(1) = +0, log(+-0) = -inf, log(+inf) = +inf, NaN below
/// zero.
MOE_HD float moei_logf(float x)
{
    float e;
    float f = moei_log_parts(x, &e);
    // e * ln 2 + f + f^2 q, the large terms first and what their sum drops put back.
    float big = e * 0.693145752f; // 15 bits times at most 8: exact
    float sum = big + f;
    float lost = f - (sum - big);
    float small = moei_fmaf(e, 1.42860677e-06f, lost);
    small = moei_fmaf(f * f, moei_log_poly(f), small);
    return moei_log_special(x, sum + small);
}

/// Logarithm to base 2, exact for powers of two. Error 0.955 ulp. log2(1) = +0, log2(+-0) = -inf,
/// log2(+inf) = +inf, NaN below zero.
MOE_HD float moei_log2f(float x)
{
    float e;
    float f = moei_log_parts(x, &e);
    // log2(1 + f) = 1.5 f + u f: the product 1.5 f is exact, and u is small.
    float u = moei_fmaf(-1.92482844e-01f, f, 2.03485489e-01f);
    u = moei_fmaf(u, f, -1.74108714e-01f);
    u = moei_fmaf(u, f, 2.01637745e-01f);
    u = moei_fmaf(u, f, -2.40794808e-01f);
    u = moei_fmaf(u, f, 2.88723290e-01f);
    u = moei_fmaf(u, f, -3.60665917e-01f);
    u = moei_fmaf(u, f, 4.80895668e-01f);
    u = moei_fmaf(u, f, -7.21347570e-01f);
    u = moei_fmaf(u, f, -5.73049523e-02f);
    float main_part = 1.5f * f;
    float sum = e + main_part;
    float lost = main_part - (sum - e);
    return moei_log_special(x, sum + moei_fmaf(u, f, lost));
}

/// 1 / (1 + v) or v / (1 + v), with v = (p + p_lost) * 2^k at most 1, in one rounding from that v.
/// @param[in] negative  1: the result is the returned value times 2^k; 0: the returned value
MOE_HD float moei_sigmoid_parts(int negative, float p, float p_lost, int32_t k)
{
    int32_t k_normal = k < -126 ? -126 : k;
    float scale = moei_f32_from_bits((uint32_t)(k_normal + 127) << 23);
    float v = p * scale;
    float d = 1.0f + v;
    float d_lost = moei_fmaf(p_lost, scale, v - (d - 1.0f));
    float n = moei_selectf(negative, p, 1.0f);
    float n_lost = moei_selectf(negative, p_lost, 0.0f);
    float y = moei_rcp_seed(d);
    float q = n * y;
    float rest = moei_fmaf(-q, d, n) + moei_fmaf(-q, d_lost, n_lost);
    return moei_fmaf(rest, y, q);
}

/// 1 / (1 + e^-x). Error 0.881 ulp. sigmoid(+-0) = 0.5, +inf gives 1, -inf gives +0; underflow
/// passes through the subnormals to +0 (x <= -103.972084). No division: seed, two Newton steps, and
/// one correction by the exact remainder.
MOE_HD float moei_sigmoidf(float x)
{
    // With v = e^-|x| = p 2^k: 1 / (1 + v) for x >= 0, p / (1 + v) * 2^k below.
    float a = moei_f32_from_bits(moei_f32_bits(x) | 0x80000000u);
    a = moei_selectf(a < -104.0f, -104.0f, a);
    int32_t k;
    float p_lost;
    float p = moei_exp_parts(a, &k, &p_lost);
    int negative = (int32_t)moei_f32_bits(x) < 0;
    float q = moei_sigmoid_parts(negative, p, p_lost, k);
    return moei_nan_from(x, moei_scale_pow2(q, negative * k));
}

/// log(1 + e^x). Error 0.975 ulp. +inf gives +inf, -inf gives +0; for large x it is x, for very
/// negative x it is e^x with its underflow.
MOE_HD float moei_softplusf(float x)
{
    // max(x, 0) + log1p(v) with v = e^-|x|; above 1/2, log1p(v) = ln 2 + log1p((v - 1) / 2).
    float a = moei_f32_from_bits(moei_f32_bits(x) | 0x80000000u);
    a = moei_selectf(a < -104.0f, -104.0f, a);
    int32_t k;
    float p_lost;
    float p = moei_exp_parts(a, &k, &p_lost);
    float v = moei_scale_pow2(p, k);
    int large = v >= 0.5f;
    float f = moei_selectf(large, (v - 1.0f) * 0.5f, v); // exact
    int32_t k_f = large ? k - 1 : k;
    float f_lost = p_lost * moei_f32_from_bits((uint32_t)((k_f < -126 ? -127 : k_f) + 127) << 23);
    float q = moei_fmaf(3.85053940e-02f, f, -9.31905583e-02f);
    q = moei_fmaf(q, f, 1.18495353e-01f);
    q = moei_fmaf(q, f, -1.27490580e-01f);
    q = moei_fmaf(q, f, 1.42595857e-01f);
    q = moei_fmaf(q, f, -1.66502371e-01f);
    q = moei_fmaf(q, f, 2.00000867e-01f);
    q = moei_fmaf(q, f, -2.50003994e-01f);
    q = moei_fmaf(q, f, 3.33333373e-01f);
    q = moei_fmaf(q, f, -4.99999970e-01f);
    // The sum max(x, 0) + ln 2 + f + f^2 q, the large terms first and what they drop put back.
    float positive = moei_selectf((int32_t)moei_f32_bits(x) < 0, 0.0f, x);
    float ln2 = moei_selectf(large, 6.93147182e-01f, 0.0f);
    float base = positive + ln2;
    float sum = base + f;
    float lost = (positive - (base - ln2)) + (f - (sum - base));
    lost = lost + moei_selectf(large, -1.90465421e-09f, 0.0f); // ln 2 to twice the precision
    lost = lost + moei_fmaf(-f, f_lost, f_lost);               // d log1p(f) = df / (1 + f)
    lost = moei_selectf(base > 128.0f, 0.0f, lost); // inf - inf, where nothing is left to add
    float r = sum + moei_fmaf(f * f, q, lost);
    return moei_nan_from(x, r);
}

/// Hyperbolic tangent. Error 0.872 ulp. Odd to the bit: tanh(-x) = -tanh(x), the sign of zero kept.
/// +-1 for +-inf; subnormal x gives x.
MOE_HD float moei_tanhf(float x)
{
    uint32_t bits = moei_f32_bits(x);
    float a = moei_f32_from_bits(bits & 0x7FFFFFFFu);
    // Small: a + a^3 P(a^2).
    float s = a * a;
    float p = moei_fmaf(-6.26335898e-03f, s, 2.10630037e-02f);
    p = moei_fmaf(p, s, -5.38498610e-02f);
    p = moei_fmaf(p, s, 1.33325577e-01f);
    p = moei_fmaf(p, s, -3.33333164e-01f);
    float near = moei_fmaf(p * s, a, a);
    // Large: 1 - 2 v / (1 + v) with v = e^-2a, which is below 2^-25 from 10 on.
    float c = moei_selectf(a > 10.0f, 10.0f, a);
    int32_t k;
    float p_lost;
    float v = moei_exp_parts(-2.0f * c, &k, &p_lost);
    float scale = moei_f32_from_bits((uint32_t)(k + 127) << 23);
    v = v * scale;
    float v_lost = p_lost * scale;
    float d = 1.0f + v;
    float d_lost = v_lost + (v - (d - 1.0f));
    float y = moei_rcp_seed(d);
    float q = v * y;
    float rest = moei_fmaf(-q, d, v) + moei_fmaf(-q, d_lost, v_lost);
    q = moei_fmaf(rest, y, q);
    float far = moei_fmaf(-2.0f, q, 1.0f);
    uint32_t r = moei_f32_bits(moei_selectf(a < 0.55f, near, far)) | (bits & 0x80000000u);
    return moei_nan_from(x, moei_f32_from_bits(r));
}

/// Error function. Error 1.096 ulp, close above |x| = 1. Odd to the bit, the sign of zero kept. +-1
/// for +-inf; subnormal x gives a subnormal within 0.51 ulp.
MOE_HD float moei_erff(float x)
{
    uint32_t bits = moei_f32_bits(x);
    float a = moei_f32_from_bits(bits & 0x7FFFFFFFu);
    // Below 1: a + a P(a^2).
    float s = a * a;
    float p = moei_fmaf(7.92413048e-05f, s, -8.03183590e-04f);
    p = moei_fmaf(p, s, 5.19084465e-03f);
    p = moei_fmaf(p, s, -2.68551745e-02f);
    p = moei_fmaf(p, s, 1.12836190e-01f);
    p = moei_fmaf(p, s, -3.76126289e-01f);
    p = moei_fmaf(p, s, 1.28379166e-01f);
    float near = moei_fmaf(p, a, a);
    // From 1: 1 - e^-Q(a), Q = -log(erfc a); 1 - erf(4) is below 2^-25.
    float c = moei_selectf(a > 4.0f, 4.0f, a);
    float q = moei_fmaf(-1.64347807e-06f, c, 4.61708878e-05f);
    q = moei_fmaf(q, c, -5.97644248e-04f);
    q = moei_fmaf(q, c, 4.76295408e-03f);
    q = moei_fmaf(q, c, -2.64289416e-02f);
    q = moei_fmaf(q, c, 1.10090606e-01f);
    q = moei_fmaf(q, c, 6.31818414e-01f);
    q = moei_fmaf(q, c, 1.13023579e+00f);
    q = moei_fmaf(q, c, -3.20196123e-04f);
    int32_t k;
    float erfc = moei_exp_parts(-q, &k, NULL);
    erfc = erfc * moei_f32_from_bits((uint32_t)(k + 127) << 23);
    float far = 1.0f - erfc;
    uint32_t r = moei_f32_bits(moei_selectf(a < 1.0f, near, far)) | (bits & 0x80000000u);
    return moei_nan_from(x, moei_f32_from_bits(r));
}

/// erfc(a + a_lost) = q * 2^k with 0.03 < q < 0.9, for 0.7 <= a <= 10.35; below, q means nothing.
/// @param[in]  a_lost  what the rounding of a dropped
/// @param[in]  s       (a + a_lost)^2, rounded
/// @param[in]  s_lost  what the rounding of s dropped
/// @param[out] k       the power of two
/// @return q
MOE_HD float moei_erfc_parts(float a, float a_lost, float s, float s_lost, int32_t *k)
{
    // e^-s f(t) t with t = 1 / (1 + a): f = (1 + a) e^(a^2) erfc(a) falls from 0.86 to 0.61.
    float p_lost;
    float p = moei_exp_parts(-s, k, &p_lost);
    p_lost = moei_fmaf(-s_lost, p, p_lost);
    float d = 1.0f + a;
    float d_lost = (a - (d - 1.0f)) + a_lost;
    float t = moei_rcp_seed(d);
    t = moei_fmaf(moei_fmaf(-d, t, 1.0f), t, t);
    float u = t - 0.3125f;
    float f = moei_fmaf(-2.53761673e+00f, u, 1.59708917e+00f);
    f = moei_fmaf(f, u, 6.37097776e-01f);
    f = moei_fmaf(f, u, -1.15976322e+00f);
    f = moei_fmaf(f, u, 3.37091863e-01f);
    f = moei_fmaf(f, u, 4.92049813e-01f);
    f = moei_fmaf(f, u, -4.84908044e-01f);
    f = moei_fmaf(f, u, -2.18279660e-01f);
    f = moei_fmaf(f, u, 5.94651699e-01f);
    float w = moei_fmaf(f, u, 7.53897488e-01f);
    float w_lost = moei_fmaf(f, u, 7.53897488e-01f - w);
    // The product, and the quotient by the exact remainder as in the sigmoid.
    float n = p * w;
    float n_lost = moei_fmaf(p, w, -n) + moei_fmaf(p, w_lost, p_lost * w);
    float q = n * t;
    float rest = moei_fmaf(-q, d, n) + moei_fmaf(-q, d_lost, n_lost);
    return moei_fmaf(rest, t, q);
}

/// Complementary error function 1 - erf(x). Error 1.250 ulp, also in the tail. erfc(+-0) = 1, -inf
/// gives 2, +inf gives +0; underflow passes through the subnormals to +0 (x >= 10.0541954).
MOE_HD float moei_erfcf(float x)
{
    float a = moei_f32_from_bits(moei_f32_bits(x) & 0x7FFFFFFFu);
    a = moei_selectf(a > 10.25f, 10.25f, a);
    float s = a * a;
    // Below 0.75: 1 - x - x P(x^2), with what the first sum drops put back.
    float p = moei_fmaf(-6.78096898e-04f, s, 5.11895446e-03f);
    p = moei_fmaf(p, s, -2.68370248e-02f);
    p = moei_fmaf(p, s, 1.12834290e-01f);
    p = moei_fmaf(p, s, -3.76126230e-01f);
    p = moei_fmaf(p, s, 1.28379166e-01f);
    float sum = 1.0f - x;
    float near = sum + moei_fmaf(-p, x, (1.0f - sum) - x);
    // From 0.75: q 2^k for positive x, 2 - q 2^k for negative x, where 2^-126 stands for less.
    int32_t k;
    float q = moei_erfc_parts(a, 0.0f, s, moei_fmaf(a, a, -s), &k);
    int32_t k_normal = k < -126 ? -126 : k;
    float below = moei_fmaf(-q, moei_f32_from_bits((uint32_t)(k_normal + 127) << 23), 2.0f);
    int tail = x >= 0.75f;
    float y = moei_selectf(a < 0.75f, near, moei_selectf(tail, q, below));
    return moei_nan_from(x, moei_scale_pow2(y, tail * k));
}

/// 1 / m to nearest for 1 <= m < 2, `fraction` the low 23 bits of m.
MOE_HD float moei_rcp_fraction(uint32_t fraction)
{
    float m = moei_f32_from_bits(fraction | 0x3F800000u);
    float y = moei_rcp_seed(m);
    y = moei_fmaf(moei_fmaf(-m, y, 1.0f), y, y);
    y = moei_fmaf(moei_fmaf(-m, y, 1.0f), y, y);
    // Nearest for every m but the last one below 2, which this step rounds the wrong way.
    return moei_selectf(fraction == 0x007FFFFFu, 0.50000006f, y);
}

/// 1 / x without a division, as moei_rcpf, for 1 <= x < 2^126; anything for other x.
MOE_HD float moei_rcp_from_1f(float x)
{
    uint32_t bits = moei_f32_bits(x);
    uint32_t y = moei_f32_bits(moei_rcp_fraction(bits & 0x007FFFFFu));
    return moei_f32_from_bits(y - (bits & 0x7F800000u) + 0x3F800000u);
}

/// 1 / x without a division: the bits of the IEEE quotient for every x (NaN gives 0x7FC00000), so
/// +-0 and +-inf, subnormal arguments and results included.
MOE_HD float moei_rcpf(float x)
{
    uint32_t bits = moei_f32_bits(x);
    uint32_t abs_bits = bits & 0x7FFFFFFFu;
    uint32_t scaled = moei_f32_bits((float)(int32_t)abs_bits);
    int is_subnormal = (int32_t)abs_bits < 0x00800000;
    uint32_t normal = moei_select(is_subnormal, scaled, abs_bits);
    int32_t e = (int32_t)(normal >> 23) - (is_subnormal ? 127 + 149 : 127);
    float m = moei_f32_from_bits((normal & 0x007FFFFFu) | 0x3F800000u);
    float y = moei_rcp_fraction(normal & 0x007FFFFFu);
    // A subnormal result drops one or two bits more. Where those make a tie, y goes to the side on
    // which the quotient lies.
    float rest = moei_fmaf(-m, y, 1.0f);
    uint32_t yb = moei_f32_bits(y);
    uint32_t half = e == 127 ? 2u : 1u;
    int tie = ((yb & (2u * half - 1u)) == half) & (e >= 126);
    uint32_t side = (uint32_t)((rest > 0.0f) - (rest < 0.0f));
    y = moei_f32_from_bits(moei_select(tie, yb + side, yb));
    int32_t k = e < -140 ? 140 : -e; // beyond 2^128 all the same, and within the scaling's range
    uint32_t r = moei_f32_bits(moei_scale_pow2(y, k));
    r = moei_select(abs_bits == 0u, MOEI_INF_BITS, r);
    r = moei_select(abs_bits == MOEI_INF_BITS, 0u, r);
    return moei_nan_from(x, moei_f32_from_bits(r | (bits & 0x80000000u)));
}

/// x toward zero; saturates to int32, NaN gives 0.
MOE_HD int32_t moei_f32_trunc_i32(float x)
{
    float c = moei_selectf(x == x, x, 0.0f);
    c = moei_clampf(c, -2147483648.0f, 2147483520.0f); // up to the largest float below 2^31
    return (int32_t)moei_select(x >= 2147483648.0f, 0x7FFFFFFFu, (uint32_t)(int32_t)c);
}

/// x to the nearest integer, ties to even; saturates to int32, NaN gives 0.
MOE_HD int32_t moei_f32_round_half_even_i32(float x)
{
    uint32_t bits = moei_f32_bits(x);
    float a = moei_f32_from_bits(bits & 0x7FFFFFFFu);
    float rounded = (a + 8388608.0f) - 8388608.0f; // 2^23: the sum has no fraction
    a = moei_selectf(a < 8388608.0f, rounded, a);
    return moei_f32_trunc_i32(moei_f32_from_bits(moei_f32_bits(a) | (bits & 0x80000000u)));
}

/// x to the nearest integer, ties away from zero; saturates to int32, NaN gives 0.
MOE_HD int32_t moei_f32_round_half_away_i32(float x)
{
    int32_t whole = moei_f32_trunc_i32(x);
    // |x| < 2^23 where a fraction exists, so whole + 1 cannot overflow then.
    float fraction = x - (float)whole;
    int32_t up = (fraction >= 0.5f) & (x < 8388608.0f);
    int32_t down = (fraction <= -0.5f) & (x > -8388608.0f);
    return whole + up - down;
}

#endif
