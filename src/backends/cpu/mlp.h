// SPDX-License-Identifier: Apache-2.0
// A stack of expert MLPs on the CPU, run by bands instead of op by op: one thread computes a band
// of h, its gate and up columns, the activation and the codes, while they are in its caches.
// Kernels are those of the ops, on ranges of columns; so no bit depends on how the work is cut.
#ifndef MOEI_BACKENDS_CPU_MLP_H
#define MOEI_BACKENDS_CPU_MLP_H

#include "ops/backend.h"

/// Steps of a layer that work on the same rows: ggemm, glu, [quantize], ggemm, [combine]...
typedef struct moei_cpu_mlp {
    const moei_step *first, *glu;
    const moei_step *quantize; // of h; NULL: none
    const moei_step *second;
    const moei_step *tail; // `tails` sums over the columns of the second product
    int32_t tails;
    int64_t unit; // columns of h that a band is a multiple of; 0: h is quantised apart, by rows
} moei_cpu_mlp;

/// How many of the steps are a stack of MLPs that can run by bands: 0 or at least 3.
int32_t moei_cpu_mlp_match(const moei_step *steps, int32_t count, moei_cpu_mlp *out);

/// Runs them.
moe_status moei_cpu_mlp_run(const moei_exec *exec, const moei_cpu_mlp *mlp);

#endif
