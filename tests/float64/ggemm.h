// SPDX-License-Identifier: Apache-2.0
// The grouped product in float64: dense matrices, loops as in the paper, and the error bound of a
// result that was summed in f32.
#ifndef MOE_FLOAT64_GGEMM_H
#define MOE_FLOAT64_GGEMM_H

#include <stdbool.h>

#include "moe/types.h"

typedef struct float64_ggemm {
    int64_t experts, rows, n, k;
    double *w;    // [experts, n, k], scales applied
    double *bias; // [experts, n]
    double *x;    // [rows, k], scales applied
} float64_ggemm;

bool float64_ggemm_alloc(float64_ggemm *g, int64_t experts, int64_t rows, int64_t n, int64_t k);
void float64_ggemm_free(float64_ggemm *g);

/// ((x[row] . w[e, n]) + bias[e, n]) * weight; *magnitude is the same sum over |.|.
double float64_ggemm_element(const float64_ggemm *g, int64_t e, int64_t row, int64_t n,
                             double weight, double *magnitude);

/// Half a unit in the last place of `value` in a float type (of the smallest subnormal at least).
double float64_half_ulp(double value, moe_dtype dtype);

/// Bound of |computed - exact|: gamma * magnitude + half an ulp of the output. gamma counts the
/// roundings on the way of one product: its chain (chunk, 0: exact integers), one addition per
/// chunk, and the scales, bias and weight after it, each u = 2^-fraction_bits.
double float64_ggemm_bound(int chunk, int fraction_bits, int64_t k, double magnitude, double value,
                           moe_dtype y_dtype);

#endif
