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
    return g->w != NULL && g->bias != NULL && g->x != NULL;
}

void float64_ggemm_free(float64_ggemm *g)
{
    free(g->w);
    free(g->bias);
    free(g->x);
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

double float64_ggemm_bound(int chunk, int fraction_bits, int64_t k, double magnitude, double value,
                           moe_dtype y_dtype)
{
    const double u = ldexp(1.0, -fraction_bits);
    const double in_chain = chunk > 0 ? (double)(k < chunk ? k : chunk) : 1.0;
    const double chunks = chunk > 0 ? (double)((k + chunk - 1) / chunk) : 0.0;
    const double steps = in_chain + 2.0 * chunks + 8.0;
    // Subnormal results round absolutely: one smallest subnormal per step.
    return u * steps * magnitude * (1.0 + u * steps) + ldexp(steps, -149) +
           float64_half_ulp(fabs(value) + u * steps * magnitude, y_dtype);
}
