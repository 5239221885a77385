// SPDX-License-Identifier: Apache-2.0
// The activations of the expert MLP, one function each: f32 in, f32 out, every rounding stated by
// the order of the operations. g gate, u up. Error against the exact value of the clamped inputs:
// docs/numerics.md#glu. NaN in a gate or up gives NaN, also through a clamp.
#ifndef MOEI_NUMERICS_ACTIVATION_H
#define MOEI_NUMERICS_ACTIVATION_H

#include "numerics/hd.h"
#include "numerics/math.h"

/// A limit that limits nothing: larger than every finite float.
#define MOEI_NO_LIMIT (moei_f32_from_bits(0x7F800000u))

/// min(x, limit), NaN kept.
MOE_HD float moei_clamp_above(float x, float limit)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 860
    float y; // one instruction instead of two
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));
    return y;
#else
    return x > limit ? limit : x;
#endif
}

/// x limited to [-limit, limit] for a positive limit, NaN kept.
MOE_HD float moei_clamp_both(float x, float limit)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 860
    float y; // the smaller magnitude with the sign of x
    asm("min.NaN.xorsign.abs.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));
    return y;
#else
    return x > limit ? limit : (x < -limit ? -limit : x);
#endif
}

/// g sigmoid(z + z_lost), where z_lost is what the rounding of z dropped: the sigmoid multiplies
/// the error of its argument by |z|. The product comes before the scaling by a power of two, so
/// that only a subnormal result is rounded as one. Below z = -110 zero with the sign of g, so -0
/// where both are -inf; z_lost has no effect for |z| > 110.
MOE_HD float moei_swish(float g, float z, float z_lost)
{
    const uint32_t sign = moei_f32_bits(z) & 0x80000000u;
    const int32_t negative = (int32_t)(sign >> 31);
    float a = moei_f32_from_bits(moei_f32_bits(z) | 0x80000000u);
    float a_lost = moei_f32_from_bits(moei_f32_bits(z_lost) ^ sign);
    const int beyond = a < -110.0f;
    a = moei_selectf(beyond, -110.0f, a);
    a_lost = moei_selectf(beyond, 0.0f, a_lost);
    const float zero = moei_f32_from_bits(moei_f32_bits(g) & 0x80000000u);
    const float factor = moei_selectf(beyond & negative, zero, g);
    int32_t k;
    float p_lost;
    const float p = moei_exp_parts(a, &k, &p_lost);
    // e^-|z + z_lost| = e^a (1 - a_lost), a_lost being z_lost sgn z.
    const float q = moei_sigmoid_parts(negative, p, moei_fmaf(-a_lost, p, p_lost), k);
    return moei_mul_pow2(q, factor, negative * k);
}

/// moei_swish near zero, where nothing has to be kept from underflow: e^-|z| = (p + p_lost) 2^k
/// with k >= -47, so the scaling, which is exact, comes first. The same bits in two thirds of the
/// operations.
MOE_HD float moei_swish_near(float g, int negative, float p, float p_lost, int32_t k)
{
    const float scale = moei_f32_from_bits(((uint32_t)k + 127u) << 23); // k of a NaN is any
    const float v = p * scale;
    const float v_lost = p_lost * scale;
    const float d = 1.0f + v;
    const float d_lost = v_lost + (v - (d - 1.0f));
    const float n = moei_selectf(negative, v, 1.0f);
    const float n_lost = moei_selectf(negative, v_lost, 0.0f);
    const float y = moei_rcp_seed(d);
    const float q = n * y;
    const float rest = moei_fmaf(-q, d, n) + moei_fmaf(-q, d_lost, n_lost);
    return moei_fmaf(rest, y, q) * g;
}

/// Where the functions for arguments near zero begin.
#define MOEI_FAR (-32.0f)

/// g sigmoid(g).
MOE_HD float moei_silu(float g)
{
    return moei_swish(g, g, 0.0f);
}

/// moei_silu for g >= MOEI_FAR, and for NaN.
MOE_HD float moei_silu_near(float g)
{
    const float a = -moei_clamp_above(moei_absf(g), -MOEI_FAR); // beyond, the sigmoid is 1
    int32_t k;
    float p_lost;
    const float p = moei_exp_parts(a, &k, &p_lost);
    return moei_swish_near(g, g < 0.0f, p, p_lost, k);
}

/// SiLU with the clamp before it (limit MOEI_NO_LIMIT: none).
MOE_HD float moei_silu_mul(float g, float u, float limit)
{
    return moei_silu(moei_clamp_above(g, limit)) * moei_clamp_both(u, limit);
}

/// 0.5 g erfc(-g / sqrt 2) = g Phi(g), the error relative also for negative g, where Phi falls to
/// nothing. NaN gives NaN, -inf gives -0.
MOE_HD float moei_gelu(float g)
{
    // |g| from 14.5 on: Phi is 1, or the product below half the smallest float.
    const float a = moei_clampf(g, -14.5f, 14.5f);
    const float s = a * a;
    // |g| < 1: Phi = 0.5 + 0.375 g + g P(g^2), with what the first sum drops put back.
    float p = moei_fmaf(-7.68315567e-06f, s, 1.13566464e-04f);
    p = moei_fmaf(p, s, -1.18641125e-03f);
    p = moei_fmaf(p, s, 9.97336023e-03f);
    p = moei_fmaf(p, s, -6.64903671e-02f);
    p = moei_fmaf(p, s, 2.39422806e-02f);
    const float m = 0.375f * a;
    const float sum = 0.5f + m;
    const float lost = moei_fmaf(0.375f, a, -m) + (m - (sum - 0.5f));
    const float near = sum + moei_fmaf(p, a, lost);
    // From 1: 0.5 erfc(b) = Q with b = |g| / sqrt 2, b^2 = g^2 / 2, or 1 - Q for positive g.
    const float abs_a = moei_f32_from_bits(moei_f32_bits(a) & 0x7FFFFFFFu);
    const float b = abs_a * 0.707106769f;
    const float b_lost = moei_fmaf(abs_a, 1.21016175e-08f, moei_fmaf(abs_a, 0.707106769f, -b));
    int32_t k;
    const float q = moei_erfc_parts(b, b_lost, 0.5f * s, 0.5f * moei_fmaf(a, a, -s), &k);
    const int32_t k_normal = k < -60 ? -60 : k;
    const float above = moei_fmaf(-q, moei_f32_from_bits((uint32_t)(k_normal + 126) << 23), 1.0f);
    const int tail = a <= -1.0f;
    const float phi = moei_selectf(abs_a < 1.0f, near, moei_selectf(tail, q, above));
    // The tail is scaled after the product: a subnormal result is rounded as one.
    return moei_mul_pow2(phi, moei_selectf(tail, a, g), tail * (k - 1));
}

/// 0.5 g (1 + tanh z) = g sigmoid(2 z), z = sqrt(2/pi) (g + 0.044715 g^3). NaN gives NaN, -inf
/// gives -0.
MOE_HD float moei_gelu_tanh(float g)
{
    // The sigmoid multiplies the error of its argument by |2 z|, so 2 z and what it drops.
    const float a = moei_clampf(g, -11.0f, 11.0f); // 2 z is 112 there, the sigmoid 0 or 1
    const float s = a * a;
    const float s_lost = moei_fmaf(a, a, -s);
    // 2 sqrt(2/pi) and 0.044715 times that, in two parts; 1.59576893 is a multiple of 2^-20, so its
    // difference to sum is exact.
    const float sum = moei_fmaf(7.13548139e-02f, s, 1.59576893f);
    float lost = moei_fmaf(7.13548139e-02f, s, 1.59576893f - sum);
    lost = moei_fmaf(7.13548139e-02f, s_lost, lost + 1.93077895e-07f);
    lost = moei_fmaf(2.39883247e-09f, s, lost);
    const float z = a * sum;
    const float z_lost = moei_fmaf(a, lost, moei_fmaf(a, sum, -z));
    return moei_swish(moei_selectf(g < -11.0f, -11.0f, g), z, z_lost);
}

/// gpt-oss: gate clamped above only, up on both sides; g sigmoid(alpha g) (u + beta).
MOE_HD float moei_swigluoai(float g, float u, float alpha, float beta, float limit)
{
    const float gate = moei_clamp_above(g, limit);
    const float up = moei_clamp_both(u, limit);
    const float z = alpha * gate;
    const float glu = moei_swish(gate, z, moei_fmaf(alpha, gate, -z));
    return glu * (up + beta);
}

/// The argument of moei_swigluoai's exponential, -|alpha g|, for alpha > 0 and a clamped gate.
MOE_HD float moei_swigluoai_exponent(float gate, float alpha)
{
    return alpha * -moei_absf(gate);
}

/// moei_swigluoai for alpha > 0, a gate and an up that are clamped, and an exponent that is not
/// below MOEI_FAR (or NaN).
MOE_HD float moei_swigluoai_near(float gate, float up, float alpha, float beta)
{
    const float a = moei_swigluoai_exponent(gate, alpha);
    const float a_lost = moei_fmaf(alpha, -moei_absf(gate), -a);
    int32_t k;
    float p_lost;
    const float p = moei_exp_parts(a, &k, &p_lost);
    const float glu = moei_swish_near(gate, gate < 0.0f, p, moei_fmaf(a_lost, p, p_lost), k);
    return glu * (up + beta);
}

/// The clamp after SiLU: min(silu(g), limit) clamp(u, +-limit).
MOE_HD float moei_swiglustep(float g, float u, float limit)
{
    return moei_clamp_above(moei_silu(g), limit) * moei_clamp_both(u, limit);
}

/// Kimi-K3: beta tanh(g / beta) sigmoid(g), times linear_beta tanh(u / linear_beta), or u where
/// linear_beta is 0.
MOE_HD float moei_situ(float g, float u, float beta, float linear_beta)
{
    const float gate = moei_swish(beta * moei_tanhf(moei_divf(g, beta)), g, 0.0f);
    const float soft = linear_beta * moei_tanhf(moei_divf(u, linear_beta)); // unused for 0
    const float up = moei_selectf(linear_beta > 0.0f, soft, u);
    return gate * up;
}

/// max(x, 0)^2, NaN kept.
MOE_HD float moei_relu2(float x)
{
    const float positive = x < 0.0f ? 0.0f : x;
    return positive * positive;
}

#endif
