// SPDX-License-Identifier: Apache-2.0
// glu, combine and place on the CPU: bands of rows, claimed from the pool.
#include "backends/cpu/cpu.h"
#include "core/safemath.h"
#include "ops/combine.h"
#include "ops/glu.h"
#include "ops/place.h"

#define ROWS_PER_TASK 8

typedef struct glu_job {
    const moek_glu_args *args;
    moek_glu_fn *fn;
    int64_t bands; // per batch
    int64_t rows;
} glu_job;

static void glu_task(void *arg, size_t index)
{
    const glu_job *j = arg;
    const int32_t b = (int32_t)((int64_t)index / j->bands);
    const int64_t rows = j->args->counts != NULL ? j->args->counts[b] : j->rows;
    const int64_t r0 = (int64_t)index % j->bands * ROWS_PER_TASK;
    const int64_t r1 = moei_i64_min(r0 + ROWS_PER_TASK, rows);
    if (r0 < r1) {
        j->fn(j->args, b, r0, r1);
    }
}

moe_status moei_cpu_glu(const moei_exec *exec, const moei_kernel *kernel, const moek_glu_args *args)
{
    const int64_t rows = args->total != NULL ? args->total[0] : args->rows;
    glu_job j = {args, (moek_glu_fn *)kernel->fn, moei_i64_ceil_div(rows, ROWS_PER_TASK), rows};
    moei_parallel_for(&exec->ctx->pool, (size_t)(j.bands * args->batches), glu_task, &j);
    return MOE_OK;
}

typedef struct combine_job {
    const moek_combine_args *args;
    moek_combine_fn *fn;
    int64_t tokens;
} combine_job;

static void combine_task(void *arg, size_t index)
{
    const combine_job *j = arg;
    const int64_t t0 = (int64_t)index * ROWS_PER_TASK;
    j->fn(j->args, t0, moei_i64_min(t0 + ROWS_PER_TASK, j->tokens));
}

moe_status moei_cpu_combine(const moei_exec *exec, const moei_kernel *kernel,
                            const moek_combine_args *args)
{
    combine_job j = {args, (moek_combine_fn *)kernel->fn, moei_cpu_combine_tokens(args)};
    moei_parallel_for(&exec->ctx->pool, (size_t)moei_i64_ceil_div(j.tokens, ROWS_PER_TASK),
                      combine_task, &j);
    return MOE_OK;
}

typedef struct place_job {
    const moek_place_args *args;
    moek_place_fn *fn;
} place_job;

#define TOKENS_PER_TASK 64

static void place_task(void *arg, size_t index)
{
    const place_job *j = arg;
    const int64_t t0 = (int64_t)index * TOKENS_PER_TASK;
    j->fn(j->args, t0, moei_i64_min(t0 + TOKENS_PER_TASK, j->args->tokens));
}

moe_status moei_cpu_place(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_place_args *args)
{
    place_job j = {args, (moek_place_fn *)kernel->fn};
    moei_parallel_for(&exec->ctx->pool, (size_t)moei_i64_ceil_div(args->tokens, TOKENS_PER_TASK),
                      place_task, &j);
    moei_cpu_count_load(args);
    return MOE_OK;
}

void moei_cpu_count_load(const moek_place_args *args)
{
    for (int64_t slot = 0; args->load != NULL && slot < args->tokens * args->top_k; slot++) {
        const int32_t id = moei_physical_id(args, slot / args->top_k, args->router_ids[slot]);
        if (id >= 0) {
            args->load[id]++;
        }
    }
}
