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
    return x > limit ? limit : x;
}

/// x limited to [-limit, limit], NaN kept.
MOE_HD float moei_clamp_both(float x, float limit)
{
    return x > limit ? limit : (x < -limit ? -limit : x);
}

MOE_HD float moei_silu(float g)
{
    // At g = -inf the product would be -inf * 0; the limit is -0.
    return g == -MOEI_NO_LIMIT ? -0.0f : g * moei_sigmoidf(g);
}

/// SiLU with the clamp before it (limit MOEI_NO_LIMIT: none).
MOE_HD float moei_silu_mul(float g, float u, float limit)
{
    return moei_silu(moei_clamp_above(g, limit)) * moei_clamp_both(u, limit);
}

/// 0.5 g (1 + erf(g / sqrt 2)).
MOE_HD float moei_gelu(float g)
{
    const float half = 0.5f * (1.0f + moei_erff(g * 0.70710678118654752f));
    return g == -MOEI_NO_LIMIT ? -0.0f : g * half;
}

/// 0.5 g (1 + tanh z) = g sigmoid(2 z), z = sqrt(2/pi) (g + 0.044715 g^3).
MOE_HD float moei_gelu_tanh(float g)
{
    const float inner = g * moei_fmaf(0.044715f * g, g, 1.0f);
    return g == -MOEI_NO_LIMIT ? -0.0f : g * moei_sigmoidf(1.5957691216057308f * inner);
}

/// gpt-oss: gate clamped above only, up on both sides; g sigmoid(alpha g) (u + beta).
MOE_HD float moei_swigluoai(float g, float u, float alpha, float beta, float limit)
{
    const float gate = moei_clamp_above(g, limit);
    const float up = moei_clamp_both(u, limit);
    const float glu = gate == -MOEI_NO_LIMIT ? -0.0f : gate * moei_sigmoidf(alpha * gate);
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
    const float gate = beta * moei_tanhf(moei_divf(g, beta)) * moei_sigmoidf(g);
    const float up =
        linear_beta > 0.0f ? linear_beta * moei_tanhf(moei_divf(u, linear_beta)) : u;
    return gate * up;
}

/// max(x, 0)^2, NaN kept.
MOE_HD float moei_relu2(float x)
{
    const float positive = x < 0.0f ? 0.0f : x;
    return positive * positive;
}

#endif
