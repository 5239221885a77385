// SPDX-License-Identifier: Apache-2.0
// quantize on the CPU: bands of rows, claimed from the pool. A quantiser whose scale spans all rows
// runs twice over them: the largest magnitude first (a maximum has no order, so threads cannot
// change it), then the codes.
#include "backends/cpu/cpu.h"
#include "core/fp_env.h"
#include "core/safemath.h"
#include "ops/quantize.h"

#define ELEMS_PER_TASK 32768 // 128 KiB of f32: some 20 us of work

typedef struct job {
    const moek_quantize_args *args;
    moek_quantize_fn *fn;
    int64_t band;  // rows per task, a multiple of the rows that share a scale
    int64_t bands; // per batch
} job;

static void task(void *arg, size_t index)
{
    const job *j = arg;
    const int32_t b = (int32_t)((int64_t)index / j->bands);
    const int64_t r0 = (int64_t)index % j->bands * j->band;
    const int64_t count = moei_quantize_count(j->args, b);
    if (r0 < count || j->args->zero_absent_scales) {
        j->fn(j->args, b, r0, moei_i64_min(r0 + j->band, j->args->rows));
    }
}

static void run(const moei_exec *exec, moek_quantize_fn *fn, const moek_quantize_args *args)
{
    const int64_t block = args->info->grain == MOEI_GRAIN_BLOCK ? args->info->block_rows : 1;
    const int64_t rows = moei_i64_max(ELEMS_PER_TASK / moei_i64_max(args->k, 1), 1);
    job j = {args, fn, moei_i64_round_up(rows, block), 0};
    j.bands = moei_i64_ceil_div(args->rows, j.band);
    moei_parallel_for(&exec->ctx->pool, (size_t)(j.bands * args->batches), task, &j);
}

moe_status moei_cpu_quantize(const moei_exec *exec, const moei_kernel *kernel,
                             const moek_quantize_args *args)
{
    moek_quantize_fn *fn = (moek_quantize_fn *)kernel->fn;
    if (args->stage == MOEK_QUANTIZE_CODES && moei_quantize_is_global(args->info)) {
        uint32_t amax = 0;
        moek_quantize_args first = *args;
        first.amax = &amax;
        first.zero_absent_scales = false;
        first.stage = MOEK_QUANTIZE_AMAX;
        run(exec, fn, &first);
        first.stage = MOEK_QUANTIZE_SCALE;
        const uint64_t env = moei_fp_begin();
        fn(&first, 0, 0, 0);
        moei_fp_end(env);
    }
    run(exec, fn, args);
    return MOE_OK;
}
