// SPDX-License-Identifier: Apache-2.0
// A layer on the CPU: of the steps that it lists, those that one job of the pool can do together.
//   route, place, [quantize x], sort           by tokens; few of them make no job, many two
//   ggemm, glu, [quantize], ggemm, [combine]   two jobs, by bands of columns (mlp.c)
// What matches nothing runs as the ops do, one after the other. docs/cpu.md
#include <stdatomic.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/mlp.h"
#include "backends/cpu/sort.h"
#include "core/fp_env.h"
#include "ops/place.h"
#include "ops/quantize.h"
#include "ops/route.h"

#define TOKENS_PER_TASK 8

// ---- before the products ------------------------------------------------------------------------

// Steps of which each works on every token by itself.
typedef struct prologue {
    const moei_step *route, *place, *quantize; // NULL: not there
    const moei_step *sort;                     // after route and place
    int64_t tokens;
} prologue;

// Rows of x are tokens, and no scale spans several of them.
static bool quantizes_tokens(const moei_step *step, int64_t tokens)
{
    const moek_quantize_args *q = &step->args.quantize;
    return step->op == MOEI_OP_QUANTIZE && q->stage == MOEK_QUANTIZE_CODES && q->batches == 1 &&
           q->counts == NULL && q->rows == tokens && !moei_quantize_is_global(q->info) &&
           q->info->grain != MOEI_GRAIN_BLOCK;
}

// How many of the steps: 0, or at least two.
static int32_t match_prologue(const moei_step *steps, int32_t count, prologue *out)
{
    int32_t next = 0;
    *out = (prologue){.route = NULL};
    if (steps[0].op == MOEI_OP_ROUTE) {
        out->route = &steps[next++];
    }
    if (count < next + 2 || steps[next].op != MOEI_OP_PLACE || steps[next + 1].op != MOEI_OP_SORT) {
        return 0;
    }
    out->place = &steps[next];
    out->tokens = out->place->args.place.tokens;
    out->sort = &steps[next + 1];
    next += 2;
    if (next < count && quantizes_tokens(&steps[next], out->tokens)) {
        out->quantize = &steps[next++];
    }
    return next;
}

typedef struct prologue_job {
    const prologue *steps;
    moei_cpu_sort_job sort;
    atomic_int left[MOEI_CPU_SORT_SHARES]; // tasks of each share that have not ended
} prologue_job;

// The task that ends a share of the sort counts it.
static void token_task(void *arg, size_t index)
{
    prologue_job *job = arg;
    const prologue *p = job->steps;
    const int64_t t0 = (int64_t)index * TOKENS_PER_TASK;
    const int64_t t1 = moei_i64_min(t0 + TOKENS_PER_TASK, p->tokens);
    if (p->route != NULL) {
        ((moek_route_fn *)p->route->kernel->fn)(&p->route->args.route, t0, t1);
    }
    ((moek_place_fn *)p->place->kernel->fn)(&p->place->args.place, t0, t1);
    if (p->quantize != NULL) {
        ((moek_quantize_fn *)p->quantize->kernel->fn)(&p->quantize->args.quantize, 0, t0, t1);
    }
    const int64_t share = t0 / job->sort.tokens;
    if (atomic_fetch_sub_explicit(&job->left[share], 1, memory_order_acq_rel) == 1) {
        moei_cpu_sort_count(&job->sort, share);
    }
}

static void run_prologue(const moei_exec *exec, const prologue *p)
{
    prologue_job job;
    job.steps = p;
    moei_cpu_sort_begin(exec, p->sort->kernel, &p->sort->args.sort, TOKENS_PER_TASK, &job.sort);
    for (int64_t s = 0; s < job.sort.shares; s++) {
        const int64_t tokens = moei_i64_min(job.sort.tokens, p->tokens - s * job.sort.tokens);
        atomic_init(&job.left[s], (int)moei_i64_ceil_div(tokens, TOKENS_PER_TASK));
    }
    moei_parallel_for(&exec->ctx->pool, (size_t)moei_i64_ceil_div(p->tokens, TOKENS_PER_TASK),
                      token_task, &job);
    if (p->tokens == 0) { // no task did
        moei_cpu_sort_count(&job.sort, 0);
    }
    moei_cpu_count_load(&p->place->args.place);
    moei_cpu_sort_end(exec, &job.sort);
}

// ---- the layer ----------------------------------------------------------------------------------

static moe_status run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        prologue p;
        moei_cpu_mlp mlp;
        int32_t matched = match_prologue(steps + i, count - i, &p);
        if (matched > 0) {
            run_prologue(exec, &p);
        } else if ((matched = moei_cpu_mlp_match(steps + i, count - i, &mlp)) > 0) {
            MOE_TRY(moei_cpu_mlp_run(exec, &mlp));
        } else {
            matched = 1;
            MOE_TRY(moei_step_run(&moei_backend_cpu, exec, &steps[i]));
        }
        i += matched;
    }
    return MOE_OK;
}

// Some parts are done by the caller, outside of tasks.
moe_status moei_cpu_run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    const uint64_t env = moei_fp_begin();
    const moe_status status = run_steps(exec, steps, count);
    moei_fp_end(env);
    return status;
}
