// SPDX-License-Identifier: Apache-2.0
#include "float64/glu.h"

#include <math.h>

#include "moe/backend.h"

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

static double finite_abs(double x)
{
    return isfinite(x) ? fabs(x) : 0.0;
}

double float64_glu(const float64_act *a, double gate, double up, double *error)
{
    // The result is left x right. The error: roundings that act relatively, and of each factor what
    // rounding as a subnormal may cost, in steps of 2^-149.
    double left = (double)NAN;
    double right = 1.0;
    double steps = 2.5; // a product with a function whose argument is not rounded
    double left_lost = 1.0;
    double right_lost = 0.0;
    switch (a->activation) {
    case MOE_ACT_SILU:
    case MOE_ACT_SILU_NO_MUL: {
        const double g = clamp_above(gate, a->limit);
        left = swish(g, g);
        right = a->activation == MOE_ACT_SILU ? clamp_both(up, a->limit) : 1.0;
        steps += a->activation == MOE_ACT_SILU ? 1.0 : 0.0;
        break;
    }
    case MOE_ACT_GELU:
    case MOE_ACT_GELU_NO_MUL:
        left = gate == -HUGE_VAL ? -0.0 : 0.5 * gate * erfc(-gate / sqrt(2.0));
        right = a->activation == MOE_ACT_GELU ? up : 1.0;
        steps += a->activation == MOE_ACT_GELU ? 1.0 : 0.0;
        break;
    case MOE_ACT_GELU_TANH:
    case MOE_ACT_GELU_TANH_NO_MUL: {
        const double z = 2.0 * sqrt(2.0 / acos(-1.0)) * (gate + 0.044715 * gate * gate * gate);
        left = swish(gate, z);
        right = a->activation == MOE_ACT_GELU_TANH ? up : 1.0;
        steps += a->activation == MOE_ACT_GELU_TANH ? 1.0 : 0.0;
        break;
    }
    case MOE_ACT_SWIGLUOAI: {
        const double g = clamp_above(gate, a->limit);
        left = swish(g, a->alpha * g);
        right = clamp_both(up, a->limit) + a->beta;
        steps += 2.0;
        left_lost += 0x1p-9 * finite_abs(g); // zero where alpha g is below -110, e^-110 < 2^-158
        break;
    }
    case MOE_ACT_SWIGLUSTEP:
        left = clamp_above(swish(gate, gate), a->limit);
        right = clamp_both(up, a->limit);
        steps += 1.0;
        break;
    case MOE_ACT_SITU: {
        const double lb = a->linear_beta;
        left = a->beta * tanh(gate / a->beta) * sigmoid(gate);
        right = lb > 0.0 ? lb * tanh(up / lb) : up;
        // A quotient, a tanh and a product for the gate, and for up where it has them.
        steps += 1.0 + (lb > 0.0 ? 7.5 : 3.75);
        left_lost += a->beta;
        right_lost = lb > 0.0 ? 1.0 + lb : 0.0;
        break;
    }
    case MOE_ACT_RELU2_NO_MUL:
        left = gate < 0.0 ? 0.0 : gate * gate;
        steps = 1.0;
        break;
    case MOEI_ACT_SIGMOID:
        left = sigmoid(gate);
        break;
    default:
        break;
    }
    const double y = left * right;
    *error = U * steps * fabs(y) * 1.001 +
             0x1p-149 * (left_lost * finite_abs(right) + right_lost * finite_abs(left) + 1.0);
    return y;
}
