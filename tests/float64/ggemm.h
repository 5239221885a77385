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
    // Of an output and of a row: the largest |scale| that one of its groups has. 0: not stated
    double *w_scale; // [experts, n]
    double *x_scale; // [rows]
} float64_ggemm;

bool float64_ggemm_alloc(float64_ggemm *g, int64_t experts, int64_t rows, int64_t n, int64_t k);
void float64_ggemm_free(float64_ggemm *g);

/// ((x[row] . w[e, n]) + bias[e, n]) * weight; *magnitude is the same sum over |.|.
double float64_ggemm_element(const float64_ggemm *g, int64_t e, int64_t row, int64_t n,
                             double weight, double *magnitude);

/// |What scales multiply a sum of codes by| at most, and at least 1: some are decoded with the
/// codes.
double float64_ggemm_scale(const float64_ggemm *g, int64_t e, int64_t row, int64_t n);

/// Half a unit in the last place of `value` in a float type (of the smallest subnormal at least).
double float64_half_ulp(double value, moe_dtype dtype);

/// How a product sums: the columns of its arithmetic class (moe/arith.def).
typedef struct float64_model {
    int chunk; // elements of k per chain; 0: all of K
    int fraction_bits;
    bool truncating;
    int products_per_step; // 0: integers, summed exactly
    bool flushes;          // sums below 2^-126 may become 0
} float64_model;

/// Bound of |computed - exact|: gamma * magnitude + half an ulp of the output. gamma counts the
/// roundings on the way of one product. Those of its chain, one per step, are each
/// 2^-fraction_bits, and twice that where the accumulator truncates; one addition per chunk, and
/// the scales, bias and weight after it, are f32's, 2^-24. Where sums may become 0, each product
/// and each sum may be lost.
/// @param[in] scale  |what the sum is multiplied by afterwards|
double float64_ggemm_bound(float64_model model, int64_t k, double magnitude, double scale,
                           double value, moe_dtype y_dtype);

#endif
