// SPDX-License-Identifier: Apache-2.0
// A sort in shares of the tokens: each is counted, all are laid out, each is placed. The shares'
// slots of an expert lie in the order of the shares, so that the result is that of one share.
#ifndef MOEI_BACKENDS_CPU_SORT_H
#define MOEI_BACKENDS_CPU_SORT_H

#include "backends/cpu/cpu.h"
#include "ops/sort.h"

#define MOEI_CPU_SORT_CURSORS (2 * MOEI_SORT_MAX_EXPERTS) // of all shares: 64 KiB
#define MOEI_CPU_SORT_SHARES  128

typedef struct moei_cpu_sort_job {
    const moek_sort_args *args;
    moek_sort_fn *fn;
    int64_t shares;
    int64_t tokens; // of a share but the last
    int32_t cursor[MOEI_CPU_SORT_CURSORS];
} moei_cpu_sort_job;

/// Chooses shares of whole multiples of `step` tokens: one for few slots.
void moei_cpu_sort_begin(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_sort_args *args, int64_t step, moei_cpu_sort_job *out);

/// Counts a share. Any thread, any order.
void moei_cpu_sort_count(moei_cpu_sort_job *job, int64_t share);

/// Lays out and places, when all shares have been counted: a job of the pool if there are several.
void moei_cpu_sort_end(const moei_exec *exec, moei_cpu_sort_job *job);

#endif
