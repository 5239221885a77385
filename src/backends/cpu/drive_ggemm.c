// SPDX-License-Identifier: Apache-2.0
// ggemm on the CPU: one job of the pool, cut like the products of a whole layer (cut.c), for a
// product of one expert must be shared evenly, too.
#include <stddef.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/cut.h"
#include "backends/cpu/packed_walk.h"
#include "ops/ggemm.h"

#define BLOCK_ROWS 256 // that share a band's weights while those are in a cache

// What a task reads, so that a thread that joins can ask for all of it at once: lines that another
// core has written come from there, one after the other where each says where the next one lies.
typedef struct job {
    moek_ggemm_args args;
    moek_ggemm_fn *fn;
    moei_cpu_cut cut;
} job;

#define HEAD (offsetof(job, cut.expert) + MOEI_CPU_LINE) // bytes that most tasks read of it

static void task(void *arg, size_t index)
{
    const job *j = arg;
    moei_cpu_ask((const uint8_t *)j, HEAD);
    const moei_cpu_piece p = moei_cpu_cut_at(&j->cut, (int64_t)index);
    j->fn(j->cut.args, p.expert, p.i0, p.i1, p.n0, p.n1);
}

moe_status moei_cpu_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_ggemm_args *args)
{
    job j; // large: not zeroed
    const moei_cpu_cut_limits limits = {.unit = MOEI_CPU_PANEL,
                                        .step = kernel->mr,
                                        .block = BLOCK_ROWS,
                                        .area = INT64_MAX,
                                        .bands = INT64_MAX,
                                        .threads = exec->ctx->num_threads};
    j.fn = (moek_ggemm_fn *)kernel->fn;
    j.args = *args;
    moei_cpu_cut_begin(&j.cut, &j.args);
    moei_cpu_cut_choose(&j.cut, args->w.n, &limits);
    moei_parallel_for(&exec->ctx->pool, (size_t)j.cut.tasks, task, &j);
    return MOE_OK;
}
