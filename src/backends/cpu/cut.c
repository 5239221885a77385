// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/cut.h"

#define SHARES      4         // tasks per thread, at least; more would read ahead less well
#define MANY        8         // threads, of which some always have a slower core than others
#define MANY_SHARES 16        // of such a thread, so that nobody waits long for the last task
#define FEW_SHARES  2         // of a thread that is done within some microseconds: claiming counts
#define JOINED      2         // of a thread that finds others next: preparing x for a task counts
#define FEW         (1 << 22) // multiply-adds that it has then
#define ROWS_MIN    8         // fewer rows cost as much as these: reading the weights

void moei_cpu_cut_begin(moei_cpu_cut *cut, const moek_ggemm_args *args)
{
    cut->args = args;
    cut->busy = 0;
    cut->most_rows = 0;
    for (int32_t e = 0; e < args->w.count; e++) {
        int64_t i0;
        const int64_t rows = moei_cpu_rows_of(args, e, &i0) - i0;
        if (rows > 0) {
            cut->expert[cut->busy++] = e;
            cut->most_rows = moei_i64_max(cut->most_rows, rows);
        }
    }
}

static int64_t rows_at(const moei_cpu_cut *cut, int32_t at, int64_t *i0)
{
    return moei_cpu_rows_of(cut->args, cut->expert[at], i0) - *i0;
}

// Blocks of an expert's rows are of one size, but for the last.
static int64_t block_of(const moei_cpu_cut *cut, int64_t rows)
{
    const int64_t blocks = moei_i64_ceil_div(rows, cut->block);
    return moei_i64_round_up(moei_i64_ceil_div(rows, blocks), cut->step);
}

// Tasks that all threads together are to get.
static int64_t shares_of(const moei_cpu_cut *cut, int64_t rows, int64_t columns,
                         const moei_cpu_cut_limits *limits)
{
    const int64_t threads = limits->threads;
    if (threads == 1 || limits->joined) {
        return threads == 1 ? 1 : threads * JOINED;
    }
    const bool few = rows * columns / threads < FEW / moei_i64_max(cut->args->w.k, 1);
    // Each task prepares x for itself, which counts where experts have a row each.
    const int64_t many = threads < MANY || cut->most_rows == 1 ? SHARES : MANY_SHARES;
    return threads * (few ? FEW_SHARES : many);
}

// The largest task is to be a small part of a thread's share: else bands are narrower, down to what
// is allowed, and then blocks shorter.
void moei_cpu_cut_choose(moei_cpu_cut *cut, int64_t columns, const moei_cpu_cut_limits *limits)
{
    const int64_t units = moei_i64_ceil_div(columns, limits->unit);
    const int64_t fewest = moei_i64_ceil_div(units, limits->bands); // units of a band
    const int64_t rows = moei_i64_max(moei_i64_min(cut->most_rows, limits->block), ROWS_MIN);
    int64_t total = 0; // rows that the experts cost
    for (int32_t b = 0; b < cut->busy; b++) {
        int64_t i0;
        total += moei_i64_max(rows_at(cut, b, &i0), ROWS_MIN);
    }
    const int64_t shares = shares_of(cut, total, columns, limits);
    const int64_t fair = total * units / shares; // rows times units of a task
    const int64_t held = limits->area / limits->unit / rows;
    const int64_t band = moei_i64_max(moei_i64_min(moei_i64_min(fair / rows, held), units), fewest);
    const int64_t block = moei_i64_max(fair / fewest, 1); // where the narrowest band is too much
    cut->columns = columns;
    cut->step = limits->step;
    cut->block = moei_i64_min(limits->block, moei_i64_round_up(block, limits->step));
    cut->band = moei_i64_ceil_div(units, moei_i64_ceil_div(units, band)) * limits->unit;
    cut->bands = moei_i64_ceil_div(columns, cut->band);
    cut->tasks = 0;
    for (int32_t b = 0; b < cut->busy; b++) {
        int64_t i0;
        const int64_t count = rows_at(cut, b, &i0);
        cut->first[b] = cut->tasks;
        cut->tasks += cut->bands * moei_i64_ceil_div(count, block_of(cut, count));
    }
}

moei_cpu_piece moei_cpu_cut_at(const moei_cpu_cut *cut, int64_t task)
{
    int32_t low = 0;
    int32_t high = cut->busy - 1;
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (cut->first[middle] <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    int64_t i0;
    const int64_t rows = rows_at(cut, low, &i0);
    const int64_t block = block_of(cut, rows);
    const int64_t blocks = moei_i64_ceil_div(rows, block);
    const int64_t at = task - cut->first[low];
    const int64_t n0 = at / blocks * cut->band;
    const int64_t r0 = at % blocks * block;
    return (moei_cpu_piece){cut->expert[low], i0 + r0, i0 + moei_i64_min(r0 + block, rows), n0,
                            moei_i64_min(n0 + cut->band, cut->columns)};
}
