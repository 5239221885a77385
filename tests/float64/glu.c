// SPDX-License-Identifier: Apache-2.0
#include "float64/glu.h"

#include <math.h>

#define U 0x1p-24 // half an ulp of f32, relative

static double clamp_above(double x, double limit)
{
    return limit > 0.0 && x > limit ? limit : x;
}

static double clamp_both(double x, double limit)
{
    return limit > 0.0 && x > limit ? limit : limit > 0.0 && x < -limit ? -limit : x;
}

// 1 / (1 + exp(-z)) keeps its relative accuracy in both tails.
static double sigmoid(double z)
{
    return z >= 0.0 ? 1.0 / (1.0 + exp(-z)) : exp(z) / (1.0 + exp(z));
}

// g sigmoid(z); at -inf the limit is 0.
static double swish(double g, double z)
{
    return g == -HUGE_VAL ? -0.0 : g * sigmoid(z);
}

double float64_glu(const float64_act *a, double gate, double up, double *error)
{
    double y = 0.0;
    double steps = 8.0;    // roundings that act relatively on the result
    double absolute = 0.0; // error that does not shrink with it
    switch (a->activation) {
    case MOE_ACT_SILU:
    case MOE_ACT_SILU_NO_MUL: {
        const double g = clamp_above(gate, a->limit);
        y = swish(g, g);
        y *= a->activation == MOE_ACT_SILU ? clamp_both(up, a->limit) : 1.0;
        break;
    }
    case MOE_ACT_GELU:
    case MOE_ACT_GELU_NO_MUL: {
        const double u = a->activation == MOE_ACT_GELU ? up : 1.0;
        y = (gate == -HUGE_VAL ? -0.0 : 0.5 * gate * erfc(-gate / sqrt(2.0))) * u;
        // g / sqrt 2 carries two roundings, which exp(-g^2 / 2) amplifies by g^2.
        steps += 4.0 * (isfinite(gate) ? fmin(gate * gate, 200.0) : 0.0);
        absolute = isfinite(gate) ? 4.0 * U * fabs(gate * u) : 0.0;
        break;
    }
    case MOE_ACT_GELU_TANH:
    case MOE_ACT_GELU_TANH_NO_MUL: {
        const double z = 2.0 * sqrt(2.0 / acos(-1.0)) * (gate + 0.044715 * gate * gate * gate);
        y = swish(gate, z) * (a->activation == MOE_ACT_GELU_TANH ? up : 1.0);
        steps += z < 0.0 ? 6.0 * fmin(fabs(z), 200.0) : 0.0;
        break;
    }
    case MOE_ACT_SWIGLUOAI: {
        const double g = clamp_above(gate, a->limit);
        const double u = clamp_both(up, a->limit);
        y = swish(g, a->alpha * g) * (u + a->beta);
        steps += 2.0 * fmin(fabs(a->alpha * g), 200.0);
        break;
    }
    case MOE_ACT_SWIGLUSTEP:
        y = clamp_above(swish(gate, gate), a->limit) * clamp_both(up, a->limit);
        break;
    case MOE_ACT_SITU: {
        const double lb = a->linear_beta;
        y = a->beta * tanh(gate / a->beta) * sigmoid(gate) * (lb > 0.0 ? lb * tanh(up / lb) : up);
        steps += 12.0;
        break;
    }
    case MOE_ACT_RELU2_NO_MUL:
        y = gate < 0.0 ? 0.0 : gate * gate;
        break;
    default:
        y = (double)NAN;
        break;
    }
    // A subnormal sigmoid or tanh rounds absolutely, and is then multiplied by gate and up.
    const double scale = (1.0 + (isfinite(gate) ? fabs(gate) : 0.0)) *
                         (1.0 + (isfinite(up) ? fabs(up) : 0.0) + a->beta);
    *error = U * steps * fabs(y) * 1.001 + absolute + 0x1p-148 * scale;
    return y;
}
