// SPDX-License-Identifier: Apache-2.0
#include "float64/ggemm.h"

#include <math.h>
#include <stdlib.h>

bool float64_ggemm_alloc(float64_ggemm *g, int64_t experts, int64_t rows, int64_t n, int64_t k)
{
    g->experts = experts;
    g->rows = rows;
    g->n = n;
    g->k = k;
    g->w = calloc((size_t)(experts * n * k), sizeof(double));
    g->bias = calloc((size_t)(experts * n), sizeof(double));
    g->x = calloc((size_t)(rows * k + 1), sizeof(double));
    g->w_scale = calloc((size_t)(experts * n), sizeof(double));
    g->x_scale = calloc((size_t)(rows + 1), sizeof(double));
    return g->w != NULL && g->bias != NULL && g->x != NULL && g->w_scale != NULL &&
           g->x_scale != NULL;
}

void float64_ggemm_free(float64_ggemm *g)
{
    free(g->w);
    free(g->bias);
    free(g->x);
    free(g->w_scale);
    free(g->x_scale);
}

double float64_ggemm_element(const float64_ggemm *g, int64_t e, int64_t row, int64_t n,
                             double weight, double *magnitude)
{
    double sum = 0.0;
    double all = 0.0;
    for (int64_t k = 0; k < g->k; k++) {
        const double product = g->x[row * g->k + k] * g->w[(e * g->n + n) * g->k + k];
        sum += product;
        all += fabs(product);
    }
    *magnitude = (all + fabs(g->bias[e * g->n + n])) * fabs(weight);
    return (sum + g->bias[e * g->n + n]) * weight;
}

double float64_ggemm_scale(const float64_ggemm *g, int64_t e, int64_t row, int64_t n)
{
    return fmax(1.0, g->w_scale[e * g->n + n]) * fmax(1.0, g->x_scale[row]);
}

double float64_half_ulp(double value, moe_dtype dtype)
{
    const int fraction = dtype == MOE_F32 ? 23 : dtype == MOE_BF16 ? 7 : 10;
    const int lowest = dtype == MOE_F16 ? -14 : -126;
    int exponent = lowest;
    if (value != 0.0 && isfinite(value)) {
        exponent = ilogb(value);
        exponent = exponent < lowest ? lowest : exponent;
    }
    return ldexp(0.5, exponent - fraction);
}

double float64_ggemm_bound(float64_model model, int64_t k, double magnitude, double scale,
                           double value, moe_dtype y_dtype)
{
    const bool exact = model.products_per_step == 0;
    const int64_t chunk = model.chunk > 0 ? model.chunk : k;
    const int64_t chain = exact ? 0 : k < chunk ? k : chunk;
    const int64_t chunks = exact ? 0 : (k + chunk - 1) / chunk;
    const double steps = exact ? 0.0 : ceil((double)chain / (double)model.products_per_step);
    const double folds = exact ? 9.0 : 2.0 * (double)chunks + 8.0;
    const double gamma =
        steps * ldexp(model.truncating ? 2.0 : 1.0, -model.fraction_bits) + folds * 0x1p-24;
    // Subnormal results round absolutely: one smallest subnormal per product and fold.
    const double lost =
        model.flushes ? ldexp(2.0 * (double)chain * (double)chunks * scale, -126) : 0.0;
    return lost + gamma * magnitude * (1.0 + gamma) + ldexp((double)chain + folds, -149) +
           float64_half_ulp(fabs(value) + gamma * magnitude, y_dtype);
}
