// SPDX-License-Identifier: Apache-2.0
// ggemm on the CPU: tasks of one expert x a band of outputs, claimed from the pool. A band runs
// over all rows of its expert, so that its weights are read once. It is as wide as leaves several
// tasks to each thread: a kernel reads ahead within its band.
#include "backends/cpu/cpu.h"
#include "backends/cpu/cut.h"
#include "ops/ggemm.h"

#define BAND             128 // outputs per task, or a multiple: whole tiles of every kernel
#define MOST_BANDS       8   // of a task
#define TASKS_PER_THREAD 8   // at least

typedef struct job {
    const moek_ggemm_args *args;
    moek_ggemm_fn *fn;
    int64_t band;
    int64_t bands;
} job;

static void task(void *arg, size_t index)
{
    const job *j = arg;
    const moek_ggemm_args *a = j->args;
    const int32_t e = (int32_t)((int64_t)index / j->bands);
    const int64_t n0 = (int64_t)index % j->bands * j->band;
    int64_t i0;
    const int64_t i1 = moei_cpu_rows_of(a, e, &i0);
    if (i0 < i1) {
        j->fn(a, e, i0, i1, n0, moei_i64_min(n0 + j->band, a->w.n));
    }
}

moe_status moei_cpu_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_ggemm_args *args)
{
    int64_t busy = 0;
    for (int32_t e = 0; e < args->w.count; e++) {
        int64_t i0;
        busy += moei_cpu_rows_of(args, e, &i0) > i0;
    }
    const int64_t tasks = TASKS_PER_THREAD * (int64_t)exec->ctx->num_threads;
    const int64_t bands = moei_i64_ceil_div(args->w.n, BAND) * busy / tasks; // that are to spare
    job j = {args, (moek_ggemm_fn *)kernel->fn, 0, 0};
    j.band = BAND * moei_i64_min(moei_i64_max(bands, 1), MOST_BANDS);
    j.bands = moei_i64_ceil_div(args->w.n, j.band);
    moei_parallel_for(&exec->ctx->pool, (size_t)(args->w.count * j.bands), task, &j);
    return MOE_OK;
}
