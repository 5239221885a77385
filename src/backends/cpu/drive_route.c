// SPDX-License-Identifier: Apache-2.0
// route on the CPU: bands of tokens, claimed from the pool.
#include "backends/cpu/cpu.h"
#include "core/safemath.h"
#include "ops/route.h"

#define TOKENS_PER_TASK 8

typedef struct route_job {
    const moek_route_args *args;
    moek_route_fn *fn;
} route_job;

static void route_task(void *arg, size_t index)
{
    const route_job *j = arg;
    const int64_t t0 = (int64_t)index * TOKENS_PER_TASK;
    j->fn(j->args, t0, moei_i64_min(t0 + TOKENS_PER_TASK, j->args->tokens));
}

moe_status moei_cpu_route(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_route_args *args)
{
    route_job j = {args, (moek_route_fn *)kernel->fn};
    moei_parallel_for(&exec->ctx->pool, (size_t)moei_i64_ceil_div(args->tokens, TOKENS_PER_TASK),
                      route_task, &j);
    return MOE_OK;
}
