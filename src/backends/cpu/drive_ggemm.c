// SPDX-License-Identifier: Apache-2.0
// ggemm on the CPU: one job of the pool, cut like the products of a whole layer (cut.c), for a
// product of one expert must be shared evenly, too.
#include <stddef.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/cut.h"
#include "core/lines.h"
#include "ops/ggemm_at.h"
#include "quant/elements.h"

#define BLOCK_ROWS 256 // that share a band's weights while those are in a cache
#define ASK_ROWS   2   // of a task, at most, that it asks for at once
#define ASK_BYTES  2048

// What a task reads, so that a thread that joins can ask for all of it at once: lines that another
// core has written come from there, one after the other where each says where the next one lies.
typedef struct job {
    moek_ggemm_args args;
    moek_ggemm_fn *fn;
    moei_cpu_cut cut;
} job;

#define HEAD (offsetof(job, cut.expert) + MOEI_LINE) // bytes that most tasks read of it

// Few rows are read and written in less time than a line takes from another core.
static void ask_for_rows(const moek_ggemm_args *a, const moei_cpu_piece *p)
{
    const int64_t x = moei_i64_min(moei_elem_bytes(a->x.dtype, a->w.k), ASK_BYTES);
    const int64_t at = moei_elem_bytes(a->y_dtype, p->n0);
    const int64_t y = moei_i64_min(moei_elem_bytes(a->y_dtype, p->n1) - at, ASK_BYTES);
    for (int64_t i = p->i0; i < p->i1; i++) {
        moei_ask_to_read(moei_x_at(a, p->expert, i), (size_t)x);
        moei_ask_to_write(moei_y_at(a, p->expert, i) + at, (size_t)y);
    }
}

static void task(void *arg, size_t index)
{
    const job *j = arg;
    moei_ask_to_read(j, HEAD);
    const moei_cpu_piece p = moei_cpu_cut_at(&j->cut, (int64_t)index);
    if (p.i1 - p.i0 <= ASK_ROWS) {
        ask_for_rows(j->cut.args, &p);
    }
    j->fn(j->cut.args, p.expert, p.i0, p.i1, p.n0, p.n1);
}

moe_status moei_cpu_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_ggemm_args *args)
{
    job j; // large: not zeroed
    moei_ask_to_write(&j, HEAD);
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
