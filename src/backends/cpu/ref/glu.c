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

// Gate j or up j of a row as contiguous f32: where they lie, if they are, or gathered to `to`.
static const float *load_strided(const moek_glu_args *a, const uint8_t *row, int64_t offset,
                                 int64_t j0, int64_t n, float *to)
{
    if (a->step == 1) {
        const uint8_t *from = row + 4 * (offset + j0);
        if (a->x_dtype == MOE_F32 && (uintptr_t)from % sizeof(float) == 0) {
            return (const float *)(const void *)from;
        }
        moei_load_f32(a->x_dtype, row, offset + j0, n, to);
        return to;
    }
    float pair[2 * SPAN];
    moei_load_f32(a->x_dtype, row, 2 * j0, 2 * n, pair);
    for (int64_t j = 0; j < n; j++) {
        to[j] = pair[2 * j + offset];
    }
    return to;
}

#define FOR_EACH(expression)                                                                       \
    for (int64_t j = 0; j < n; j++) {                                                              \
        h[j] = (expression);                                                                       \
    }                                                                                              \
    break

/// e^a of a span: (p + lost) 2^k.
typedef struct span_exp {
    float p[SPAN];
    float lost[SPAN];
    int32_t k[SPAN];
} span_exp;

// moei_silu_mul of a span. False where a gate is far below zero.
static bool silu_near(int64_t n, float limit, const float *restrict g, const float *restrict u,
                      float *restrict h)
{
    span_exp e;
    int far = 0;
    for (int64_t j = 0; j < n; j++) {
        h[j] = moei_clamp_above(g[j], limit);
        far |= h[j] < MOEI_FAR;
    }
    if (far) {
        return false;
    }
    for (int64_t j = 0; j < n; j++) {
        e.p[j] = moei_exp_parts(-moei_clamp_above(moei_absf(h[j]), -MOEI_FAR), &e.k[j], &e.lost[j]);
    }
    for (int64_t j = 0; j < n; j++) {
        const float glu = moei_swish_near(h[j], h[j] < 0.0f, e.p[j], e.lost[j], e.k[j]);
        h[j] = glu * moei_clamp_both(u[j], limit);
    }
    return true;
}

// moei_swigluoai of a span, likewise, for alpha > 0.
static bool swigluoai_near(int64_t n, const moei_activation_params *act, float limit,
                           const float *restrict g, const float *restrict u, float *restrict h)
{
    const float alpha = act->alpha;
    const float beta = act->beta;
    span_exp e;
    int far = 0;
    for (int64_t j = 0; j < n; j++) {
        h[j] = moei_clamp_above(g[j], limit);
        far |= moei_swigluoai_exponent(h[j], alpha) < MOEI_FAR;
    }
    if (far) {
        return false;
    }
    for (int64_t j = 0; j < n; j++) {
        const float a = moei_swigluoai_exponent(h[j], alpha);
        const float a_lost = moei_fmaf(alpha, -moei_absf(h[j]), -a);
        float lost;
        e.p[j] = moei_exp_parts(a, &e.k[j], &lost);
        e.lost[j] = moei_fmaf(a_lost, e.p[j], lost);
    }
    for (int64_t j = 0; j < n; j++) {
        const float glu = moei_swish_near(h[j], h[j] < 0.0f, e.p[j], e.lost[j], e.k[j]);
        h[j] = glu * (moei_clamp_both(u[j], limit) + beta);
    }
    return true;
}

static void apply(const moei_activation_params *p, int64_t n, const float *restrict g,
                  const float *restrict u, float *restrict h)
{
    const float alpha = p->alpha;
    const float beta = p->beta;
    const float linear_beta = p->linear_beta;
    const float limit = p->limit > 0.0f ? p->limit : MOEI_NO_LIMIT;
    switch (p->activation) {
    case MOE_ACT_SILU:
        if (silu_near(n, limit, g, u, h)) {
            break;
        }
        FOR_EACH(moei_silu_mul(g[j], u[j], limit));
    case MOE_ACT_GELU:
        FOR_EACH(moei_gelu(g[j]) * u[j]);
    case MOE_ACT_GELU_TANH:
        FOR_EACH(moei_gelu_tanh(g[j]) * u[j]);
    case MOE_ACT_SWIGLUOAI:
        if (alpha > 0.0f && swigluoai_near(n, p, limit, g, u, h)) {
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
            float gate[SPAN];
            float up[SPAN];
            float h[SPAN];
            const float *g = load_strided(args, x, args->gate_offset, j, n, gate);
            const float *u = gated ? load_strided(args, x, args->up_offset, j, n, up) : up;
            apply(&args->act, n, g, u, h);
            moei_store_f32(args->y_dtype, y + j * moe_dtype_bits(args->y_dtype) / 8, n, h);
        }
    }
}
