// SPDX-License-Identifier: Apache-2.0
// The activations in float64, and the error that f32 arithmetic in the stated order may make.
#ifndef MOE_FLOAT64_GLU_H
#define MOE_FLOAT64_GLU_H

#include "moe/plan.h"

typedef struct float64_act {
    moe_activation activation;
    double alpha, beta, linear_beta, limit;
} float64_act;

/// The exact value, from the formula of plan.h; `*error` bounds |f32 result before its last
/// rounding - exact|.
double float64_glu(const float64_act *act, double gate, double up, double *error);

#endif
