// SPDX-License-Identifier: Apache-2.0
// ggemm on the CPU: tasks of one expert x a band of outputs, claimed from the pool. A band runs
// over all rows of its expert, so that its weights are read once.
#include "backends/cpu/cpu.h"
#include "ops/ggemm.h"

#define BAND 128 // outputs per task: four tiles of 32

typedef struct job {
    const moek_ggemm_args *args;
    moek_ggemm_fn *fn;
    int64_t bands;
} job;

static void task(void *arg, size_t index)
{
    const job *j = arg;
    const moek_ggemm_args *a = j->args;
    const int32_t e = (int32_t)((int64_t)index / j->bands);
    const int64_t n0 = (int64_t)index % j->bands * BAND;
    const int64_t i0 = a->offsets != NULL ? a->offsets[e] : 0;
    const int64_t i1 = a->offsets != NULL  ? a->offsets[e + 1]
                       : a->counts != NULL ? a->counts[e]
                                           : a->rows;
    if (i0 < i1) {
        j->fn(a, e, i0, i1, n0, moei_i64_min(n0 + BAND, a->w.n));
    }
}

moe_status moei_cpu_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_ggemm_args *args)
{
    job j = {args, (moek_ggemm_fn *)kernel->fn, moei_i64_ceil_div(args->w.n, BAND)};
    moei_parallel_for(&exec->ctx->pool, (size_t)(args->w.count * j.bands), task, &j);
    return MOE_OK;
}
