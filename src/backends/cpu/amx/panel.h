// SPDX-License-Identifier: Apache-2.0
// What kernels with AMX have in common: rows of x as tiles, a panel of packed weights, and what is
// asked for ahead.
#ifndef MOEI_BACKENDS_CPU_AMX_PANEL_H
#define MOEI_BACKENDS_CPU_AMX_PANEL_H

#include <string.h>

#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/packed_walk.h"
#include "backends/cpu/product.h"

#define PANEL  MOEI_CPU_PANEL
#define RECORD MOEI_CPU_RECORD
#define ROWS   TILE_ROWS
#define TALL   (2 * ROWS)
#define FEW    2    // rows for which vectors do as well as tiles, without their set-up
#define CHUNK  8    // records of x that are copied at once
#define CLASH  1024 // bytes between rows whose lines meet in few sets of a first-level cache

/// Rows of a tile, as they are loaded.
typedef struct x_tiles {
    const uint8_t *from;
    int64_t stride; // from row to row, in bytes
    int64_t step;   // from record to record
} x_tiles;

typedef struct amx_panel {
    _Alignas(64) uint8_t x[2][CHUNK][ROWS][TILE_LINE];
    _Alignas(64) float acc[TALL][PANEL];
    moei_cpu_columns columns;
    const moek_ggemm_args *args;
    const uint8_t *from; // the panel
    int64_t strips;      // that there are
    int64_t record;      // bytes of all of them, and of what stands before
    int64_t records;
    int32_t e;
    const uint8_t *ask, *ask_end; // what comes next
    int64_t ask_each;             // bytes
} amx_panel;

// ---- x -----------------------------------------------------------------------------------------

static bool lies_well(const moek_ggemm_args *a)
{
    return a->row_index == NULL && a->x.row_stride % CLASH != 0;
}

// Records r0 .. r1 - 1 of `rows` rows from i on.
static x_tiles bring_x(amx_panel *p, uint8_t (*buffer)[ROWS][TILE_LINE], int64_t i, int64_t rows,
                       int64_t r0, int64_t r1)
{
    const moek_ggemm_args *a = p->args;
    const int64_t at = r0 * TILE_LINE;
    const int64_t end = moei_i64_min(r1 * TILE_LINE, 2 * a->w.k);
    if (rows == ROWS && end == r1 * TILE_LINE && lies_well(a)) {
        return (x_tiles){moei_x_at(a, p->e, i) + at, a->x.row_stride, TILE_LINE};
    }
    for (int64_t r = 0; r < ROWS; r++) {
        const uint8_t *row = r < rows ? moei_x_at(a, p->e, i + r) : NULL;
        for (int64_t b = at; b < r1 * TILE_LINE; b += TILE_LINE) {
            uint8_t *to = buffer[(b - at) / TILE_LINE][r];
            if (row != NULL && b + TILE_LINE <= end) {
                memcpy(to, row + b, TILE_LINE);
                continue;
            }
            memset(to, 0, TILE_LINE);
            if (row != NULL) {
                memcpy(to, row + b, (size_t)(end - b));
            }
        }
    }
    tiles_see(buffer);
    return (x_tiles){buffer[0][0], TILE_LINE, TILE_BYTES};
}

// ---- panels ------------------------------------------------------------------------------------

static inline void ask(amx_panel *p)
{
    const uint8_t *end = p->ask + p->ask_each;
    for (; p->ask < end && p->ask < p->ask_end; p->ask += MOEI_CPU_LINE) {
        __builtin_prefetch(p->ask, 0, 2);
    }
}

/// The sums of rows from i on, at most `rows`, of the panel, to p->acc. Returns how many rows.
typedef int64_t products_fn(amx_panel *p, int64_t i, int64_t rows);

static inline void each_panel(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                              int64_t n0, int64_t n1, products_fn *products)
{
    amx_panel p;
    const moei_matrices *w = &args->w;
    const moei_cpu_packed packed = moei_cpu_packed_of(w);
    const uint8_t *expert = w->values + (int64_t)e * w->value_e_stride;
    const int64_t passes = moei_i64_ceil_div(i1 - i0, ROWS);
    p.args = args;
    p.e = e;
    p.records = packed.records;
    tiles_begin();
    for (int64_t panel = n0 / PANEL; panel * PANEL < n1; panel++) {
        const int64_t width = moei_cpu_panel_width(&packed, panel);
        const int64_t first = moei_i64_max(panel * PANEL, n0);
        const int64_t end = moei_i64_min(panel * PANEL + width, n1);
        p.from = expert + moei_cpu_group_at(&packed, panel, width, 0);
        p.strips = width / MOEI_CPU_STRIP;
        p.record = width * (packed.head + packed.record);
        p.ask = p.from + p.record * p.records;
        p.ask_end = end < n1 ? p.ask + p.record * p.records : p.ask;
        p.ask_each = moei_i64_round_up(moei_i64_ceil_div(p.record, passes), MOEI_CPU_LINE);
        moei_cpu_load_columns(w, e, first, end, &p.columns);
        for (int64_t i = i0; i < i1;) {
            const int64_t rows = products(&p, i, i1 - i);
            for (int64_t r = 0; r < rows; r++) {
                moei_cpu_finish(args, &p.columns, e, i + r, first, end,
                                &p.acc[r][first - panel * PANEL]);
            }
            i += rows;
        }
    }
    _tile_release();
}

#endif
