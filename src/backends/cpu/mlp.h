// SPDX-License-Identifier: Apache-2.0
// A stack of expert MLPs on the CPU, run by bands instead of op by op: one thread computes a band
// of h, its gate and up columns, the activation and the codes, while they are in its caches.
// Kernels are those of the ops, on ranges of columns; so no bit depends on how the work is cut.
#ifndef MOEI_BACKENDS_CPU_MLP_H
#define MOEI_BACKENDS_CPU_MLP_H

#include "backends/cpu/cut.h"

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

/// A piece of h: gate and up, activation, codes. Columns are those of h.
void moei_cpu_mlp_first(const moei_cpu_mlp *mlp, const moei_cpu_piece *piece);

/// A piece of the second product.
void moei_cpu_mlp_second(const moei_cpu_mlp *mlp, const moei_cpu_piece *piece);

/// The sums over some of its columns.
void moei_cpu_mlp_sum(const moei_cpu_mlp *mlp, int64_t n0, int64_t n1);

/// Runs the steps.
moe_status moei_cpu_mlp_run(const moei_exec *exec, const moei_cpu_mlp *mlp);

#endif
