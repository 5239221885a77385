// SPDX-License-Identifier: Apache-2.0
// The activations on the device; glu, and the fused products' last step.
#ifndef MOEI_GPU_ACTIVATE_CUH
#define MOEI_GPU_ACTIVATE_CUH

#include "backends/gpu/elements.cuh"
#include "moe/backend.h"
#include "numerics/activation.h"

/// g[i] = act(g[i], u[i]) for N pairs; u is not read where there is no gate.
template <int N>
DEV_FN void moei_gpu_activate_piece(const moei_activation_params *p, float *g, const float *u)
{
    const float alpha = p->alpha;
    const float beta = p->beta;
    const float linear_beta = p->linear_beta;
    const float limit = p->limit > 0.0f ? p->limit : MOEI_NO_LIMIT;
    // One loop per activation: they stay unrolled, and the choice is made once.
#define FOR_EACH(expression)                                                                       \
    MOEI_GPU_UNROLL                                                                                \
    for (int i = 0; i < N; i++) {                                                                  \
        g[i] = (expression);                                                                       \
    }                                                                                              \
    break
    switch (p->activation) {
    case MOE_ACT_SILU:
        FOR_EACH(moei_silu_mul(g[i], u[i], limit));
    case MOE_ACT_GELU:
        FOR_EACH(moei_gelu(g[i]) * u[i]);
    case MOE_ACT_GELU_TANH:
        FOR_EACH(moei_gelu_tanh(g[i]) * u[i]);
    case MOE_ACT_SWIGLUOAI:
        FOR_EACH(moei_swigluoai(g[i], u[i], alpha, beta, limit));
    case MOE_ACT_SWIGLUSTEP:
        FOR_EACH(moei_swiglustep(g[i], u[i], limit));
    case MOE_ACT_SITU:
        FOR_EACH(moei_situ(g[i], u[i], beta, linear_beta));
    case MOE_ACT_SILU_NO_MUL:
        FOR_EACH(moei_silu(g[i]));
    case MOE_ACT_GELU_NO_MUL:
        FOR_EACH(moei_gelu(g[i]));
    case MOE_ACT_GELU_TANH_NO_MUL:
        FOR_EACH(moei_gelu_tanh(g[i]));
    case MOE_ACT_RELU2_NO_MUL:
        FOR_EACH(moei_relu2(g[i]));
    default: // MOEI_ACT_SIGMOID
        FOR_EACH(moei_sigmoidf(g[i]));
    }
#undef FOR_EACH
}

DEV_FN float moei_gpu_activate(const moei_activation_params *p, float g, float u)
{
    moei_gpu_activate_piece<1>(p, &g, &u);
    return g;
}

#endif
