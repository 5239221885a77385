// SPDX-License-Identifier: Apache-2.0
// A layer on the CPU: of the steps that it lists, those that one job of the pool can do together.
//   route, place, [quantize x]                 by tokens; few of them make no job
//   sort                                       the calling thread
//   ggemm, glu, [quantize], ggemm, [combine]   two jobs, by bands of columns (mlp.c)
// What matches nothing runs as the ops do, one after the other. docs/cpu.md
#include "backends/cpu/cpu.h"
#include "backends/cpu/mlp.h"
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

static void token_task(void *arg, size_t index)
{
    const prologue *p = arg;
    const int64_t t0 = (int64_t)index * TOKENS_PER_TASK;
    const int64_t t1 = moei_i64_min(t0 + TOKENS_PER_TASK, p->tokens);
    if (p->route != NULL) {
        ((moek_route_fn *)p->route->kernel->fn)(&p->route->args.route, t0, t1);
    }
    ((moek_place_fn *)p->place->kernel->fn)(&p->place->args.place, t0, t1);
    if (p->quantize != NULL) {
        ((moek_quantize_fn *)p->quantize->kernel->fn)(&p->quantize->args.quantize, 0, t0, t1);
    }
}

static moe_status run_prologue(const moei_exec *exec, prologue *p)
{
    moei_parallel_for(&exec->ctx->pool, (size_t)moei_i64_ceil_div(p->tokens, TOKENS_PER_TASK),
                      token_task, p);
    moei_cpu_count_load(&p->place->args.place);
    return moei_cpu_sort(exec, p->sort->kernel, &p->sort->args.sort);
}

// ---- the layer ----------------------------------------------------------------------------------

moe_status moei_cpu_run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        prologue p;
        moei_cpu_mlp mlp;
        int32_t matched = match_prologue(steps + i, count - i, &p);
        if (matched > 0) {
            MOE_TRY(run_prologue(exec, &p));
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
