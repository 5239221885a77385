// SPDX-License-Identifier: Apache-2.0
// How a grouped product is cut into tasks for the pool: experts, bands of columns, blocks of rows.
#ifndef MOEI_BACKENDS_CPU_CUT_H
#define MOEI_BACKENDS_CPU_CUT_H

#include "backends/cpu/packed.h"
#include "ops/sort.h"

/// Rows of expert e: [*i0, the result).
static inline int64_t moei_cpu_rows_of(const moek_ggemm_args *a, int32_t e, int64_t *i0)
{
    *i0 = a->offsets != NULL ? a->offsets[e] : 0;
    return a->offsets != NULL ? a->offsets[e + 1] : a->counts != NULL ? a->counts[e] : a->rows;
}

/// Tasks lie expert by expert, in an expert band by band, in a band block by block.
typedef struct moei_cpu_cut {
    const moek_ggemm_args *args; // whose rows these are
    int64_t columns, band, bands;
    int64_t block; // rows of a task, at most
    int64_t step;  // rows that a block is a multiple of
    int64_t tasks;
    int64_t most_rows;                     // of an expert
    int32_t busy;                          // experts that have rows
    int32_t expert[MOEI_SORT_MAX_EXPERTS]; // those
    int64_t first[MOEI_SORT_MAX_EXPERTS];  // task of each
} moei_cpu_cut;

/// A task: columns [n0, n1) of rows [i0, i1) of an expert.
typedef struct moei_cpu_piece {
    int32_t expert;
    int64_t i0, i1, n0, n1;
} moei_cpu_piece;

/// What limits a cut.
typedef struct moei_cpu_cut_limits {
    int64_t unit;    // columns of a band: a multiple
    int64_t step;    // rows of a block: a multiple
    int64_t block;   // rows of a block, at most
    int64_t area;    // rows times columns of a task, at most, but for one unit
    int64_t bands;   // at most
    int64_t threads; // that are to have an even share
    bool joined; // with another cut in one job, so that nobody waits for the last task of this one
} moei_cpu_cut_limits;

/// Lists the experts that have rows, at most MOEI_SORT_MAX_EXPERTS.
void moei_cpu_cut_begin(moei_cpu_cut *cut, const moek_ggemm_args *args);

/// Chooses bands and blocks.
void moei_cpu_cut_choose(moei_cpu_cut *cut, int64_t columns, const moei_cpu_cut_limits *limits);

moei_cpu_piece moei_cpu_cut_at(const moei_cpu_cut *cut, int64_t task);

#endif
