// SPDX-License-Identifier: Apache-2.0
// glu, portable: every activation, in f32, one rounding. Limiting resource: the exp and erf
// polynomials; loops over spans of a row let the compiler vectorise them. Where no argument of a
// span is far from zero, SiLU and that of gpt-oss take the functions for such, in two passes: a
// core holds several chains of half the length, but hardly two of the whole.
#include "ops/glu.h"

#include "backends/cpu/ref/ref.h"
#include "core/safemath.h"
#include "numerics/activation.h"
#include "quant/elements.h"

#define SPAN 256

// Gathers gate j and up j of a row into contiguous f32.
static void load_strided(const moek_glu_args *a, const uint8_t *row, int64_t offset, int64_t j0,
                         int64_t n, float *out)
{
    if (a->step == 1) {
        moei_load_f32(a->x_dtype, row, offset + j0, n, out);
        return;
    }
    float pair[2 * SPAN];
    moei_load_f32(a->x_dtype, row, 2 * j0, 2 * n, pair);
    for (int64_t j = 0; j < n; j++) {
        out[j] = pair[2 * j + offset];
    }
}

#define FOR_EACH(expression)                                                                       \
    for (int64_t j = 0; j < n; j++) {                                                              \
        g[j] = (expression);                                                                       \
    }                                                                                              \
    break

/// e^a of a span: (p + lost) 2^k.
typedef struct span_exp {
    float p[SPAN];
    float lost[SPAN];
    int32_t k[SPAN];
} span_exp;

// moei_silu_mul of a span, g to its results. False where a gate is far from zero.
static bool silu_near(int64_t n, float limit, float *restrict g, const float *restrict u)
{
    span_exp e;
    int far = 0;
    for (int64_t j = 0; j < n; j++) {
        g[j] = moei_clamp_above(g[j], limit);
        far |= g[j] < MOEI_FAR;
    }
    if (far) {
        return false;
    }
    for (int64_t j = 0; j < n; j++) {
        e.p[j] = moei_exp_parts(-moei_clamp_above(moei_absf(g[j]), -MOEI_FAR), &e.k[j], &e.lost[j]);
    }
    for (int64_t j = 0; j < n; j++) {
        const float glu = moei_swish_near(g[j], g[j] < 0.0f, e.p[j], e.lost[j], e.k[j]);
        g[j] = glu * moei_clamp_both(u[j], limit);
    }
    return true;
}

// moei_swigluoai of a span, likewise, for alpha > 0.
static bool swigluoai_near(int64_t n, const moei_activation_params *act, float limit,
                           float *restrict g, const float *restrict u)
{
    const float alpha = act->alpha;
    const float beta = act->beta;
    span_exp e;
    int far = 0;
    for (int64_t j = 0; j < n; j++) {
        g[j] = moei_clamp_above(g[j], limit);
        far |= moei_swigluoai_exponent(g[j], alpha) < MOEI_FAR;
    }
    if (far) {
        return false;
    }
    for (int64_t j = 0; j < n; j++) {
        const float a = moei_swigluoai_exponent(g[j], alpha);
        const float a_lost = moei_fmaf(alpha, -moei_absf(g[j]), -a);
        float lost;
        e.p[j] = moei_exp_parts(a, &e.k[j], &lost);
        e.lost[j] = moei_fmaf(a_lost, e.p[j], lost);
    }
    for (int64_t j = 0; j < n; j++) {
        const float glu = moei_swish_near(g[j], g[j] < 0.0f, e.p[j], e.lost[j], e.k[j]);
        g[j] = glu * (moei_clamp_both(u[j], limit) + beta);
    }
    return true;
}

static void apply(const moei_activation_params *p, int64_t n, float *restrict g,
                  const float *restrict u)
{
    const float alpha = p->alpha;
    const float beta = p->beta;
    const float linear_beta = p->linear_beta;
    const float limit = p->limit > 0.0f ? p->limit : MOEI_NO_LIMIT;
    switch (p->activation) {
    case MOE_ACT_SILU:
        if (silu_near(n, limit, g, u)) {
            break;
        }
        FOR_EACH(moei_silu_mul(g[j], u[j], limit));
    case MOE_ACT_GELU:
        FOR_EACH(moei_gelu(g[j]) * u[j]);
    case MOE_ACT_GELU_TANH:
        FOR_EACH(moei_gelu_tanh(g[j]) * u[j]);
    case MOE_ACT_SWIGLUOAI:
        if (alpha > 0.0f && swigluoai_near(n, p, limit, g, u)) {
            break;
        }
        FOR_EACH(moei_swigluoai(g[j], u[j], alpha, beta, limit));
    case MOE_ACT_SWIGLUSTEP:
        FOR_EACH(moei_swiglustep(g[j], u[j], limit));
    case MOE_ACT_SITU:
        FOR_EACH(moei_situ(g[j], u[j], beta, linear_beta));
    case MOE_ACT_SILU_NO_MUL:
        FOR_EACH(moei_silu(g[j]));
    case MOE_ACT_GELU_NO_MUL:
        FOR_EACH(moei_gelu(g[j]));
    case MOE_ACT_GELU_TANH_NO_MUL:
        FOR_EACH(moei_gelu_tanh(g[j]));
    case MOE_ACT_RELU2_NO_MUL:
        FOR_EACH(moei_relu2(g[j]));
    case MOEI_ACT_SIGMOID:
        FOR_EACH(moei_sigmoidf(g[j]));
    default:
        MOE_ASSERT(false);
        break;
    }
}

moek_glu_fn MOEI_REF(moek_glu_any_any);
void MOEI_REF(moek_glu_any_any)(const moek_glu_args *args, int32_t b, int64_t r0, int64_t r1)
{
    const bool gated = moe_activation_gated(args->act.activation) != 0;
    for (int64_t r = r0; r < r1; r++) {
        const uint8_t *x = args->x + b * args->x_batch_stride + r * args->x_row_stride;
        uint8_t *y = args->y + b * args->y_batch_stride + r * args->y_row_stride;
        for (int64_t j = 0; j < args->inter; j += SPAN) {
            const int64_t n = moei_i64_min(SPAN, args->inter - j);
            float g[SPAN];
            float u[SPAN];
            load_strided(args, x, args->gate_offset, j, n, g);
            if (gated) {
                load_strided(args, x, args->up_offset, j, n, u);
            }
            apply(&args->act, n, g, u);
            moei_store_f32(args->y_dtype, y + j * moe_dtype_bits(args->y_dtype) / 8, n, g);
        }
    }
}
