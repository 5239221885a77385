// SPDX-License-Identifier: Apache-2.0
// sort on the CPU: counting and placing in shares of the tokens, from some thousand slots on by all
// threads; between them the calling thread adds up.
#include "backends/cpu/sort.h"
#include "core/safemath.h"

#define SLOTS_MIN 4096 // fewer slots are one share: ten microseconds are not worth a wait
#define SHARES    4    // per thread

void moei_cpu_sort_begin(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_sort_args *args, int64_t step, moei_cpu_sort_job *out)
{
    const int64_t room = MOEI_CPU_SORT_CURSORS / moei_i64_max(args->num_experts, 1);
    const int64_t most =
        moei_i64_min(moei_i64_min(SHARES * exec->ctx->num_threads, room), MOEI_CPU_SORT_SHARES);
    const bool many = exec->ctx->num_threads > 1 && args->tokens * args->top_k >= SLOTS_MIN;
    const int64_t each = moei_i64_ceil_div(args->tokens, many ? most : 1);
    out->args = args;
    out->fn = (moek_sort_fn *)kernel->fn;
    out->tokens = moei_i64_round_up(moei_i64_max(each, 1), step);
    out->shares = moei_i64_max(moei_i64_ceil_div(args->tokens, out->tokens), 1);
}

static void run_share(moei_cpu_sort_job *job, moek_sort_stage stage, int64_t share)
{
    const int64_t t0 = share * job->tokens;
    const int64_t t1 = moei_i64_min(t0 + job->tokens, job->args->tokens);
    job->fn(job->args, stage, t0, t1, job->cursor + share * job->args->num_experts);
}

void moei_cpu_sort_count(moei_cpu_sort_job *job, int64_t share)
{
    run_share(job, MOEK_SORT_COUNT, share);
}

// Turns the counts of expert e into the first position of each share; returns their sum.
static int32_t add_up(moei_cpu_sort_job *job, int32_t e, int32_t at)
{
    const int32_t first = at;
    for (int64_t s = 0; s < job->shares; s++) {
        int32_t *cursor = &job->cursor[s * job->args->num_experts + e];
        const int32_t count = *cursor;
        *cursor = at;
        at += count;
    }
    return at - first;
}

static void store_count(const moek_sort_args *a, int32_t e, int32_t count)
{
    if (a->counts != NULL && a->count_dtype == MOE_I64) {
        ((int64_t *)a->counts)[e] = count;
    } else if (a->counts != NULL) {
        ((int32_t *)a->counts)[e] = count;
    }
}

static void fill_slots(const moek_sort_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        a->slots[i] = (int32_t)(a->tokens * a->top_k);
    }
}

static void lay_out_contiguous(moei_cpu_sort_job *job)
{
    const moek_sort_args *a = job->args;
    int32_t at = 0;
    for (int32_t e = 0; e < a->num_experts; e++) {
        const int32_t count = add_up(job, e, at);
        store_count(a, e, count);
        a->offsets[e] = at;
        at += count;
    }
    a->offsets[a->num_experts] = at;
    fill_slots(a, at, a->tokens * a->top_k);
}

static void lay_out_blocks(moei_cpu_sort_job *job)
{
    const moek_sort_args *a = job->args;
    const int64_t total = moei_i64_ceil_div(a->padded, a->block);
    int64_t block = 0;
    for (int32_t e = 0; e < a->num_experts; e++) {
        const int64_t at = block * a->block;
        const int32_t count = add_up(job, e, (int32_t)at);
        const int64_t next = block + moei_i64_ceil_div(count, a->block);
        store_count(a, e, count);
        for (; block < next; block++) {
            a->block_experts[block] = e;
        }
        fill_slots(a, at + count, block * a->block);
    }
    a->num_padded[0] = (int32_t)(block * a->block);
    fill_slots(a, block * a->block, a->padded);
    for (; block < total; block++) {
        a->block_experts[block] = -1;
    }
}

static void count_task(void *arg, size_t index)
{
    moei_cpu_sort_count(arg, (int64_t)index);
}

static void place_task(void *arg, size_t index)
{
    run_share(arg, MOEK_SORT_PLACE, (int64_t)index);
}

void moei_cpu_sort_end(const moei_exec *exec, moei_cpu_sort_job *job)
{
    if (job->args->block == 0) {
        lay_out_contiguous(job);
    } else {
        lay_out_blocks(job);
    }
    moei_parallel_for(&exec->ctx->pool, (size_t)job->shares, place_task, job);
}

moe_status moei_cpu_sort(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_sort_args *args)
{
    moei_cpu_sort_job job;
    moei_cpu_sort_begin(exec, kernel, args, 1, &job);
    moei_parallel_for(&exec->ctx->pool, (size_t)job.shares, count_task, &job);
    moei_cpu_sort_end(exec, &job);
    return MOE_OK;
}
