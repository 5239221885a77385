// SPDX-License-Identifier: Apache-2.0
// Many rows with AMX: a block of rows times a group of panels, some k at a time.
//
// Per step of DEPTH records of k: x of the block is copied, as tiles, once for all panels of the
// group; then per two strips of outputs, whose weights stay in a first-level cache, over pairs of
// tiles of rows:
//
//   32 rows x 32 outputs, per record:  load 2 x, 2 w; multiply 4 times     4 + 2 + 2 tiles
//
// Each operand has a tile of its own: one that is loaded again waits for the multiplications
// before. Sums go to memory and come back between steps, as f32, so that nothing is rounded by it:
// they are those of one chain over K. Limit: the multiplications; in memory, x once for each group
// of panels and w once for each block of rows come from a second-level cache.
#ifndef MOEI_BACKENDS_CPU_AMX_BLOCK_H
#define MOEI_BACKENDS_CPU_AMX_BLOCK_H

#include "backends/cpu/amx/panel.h"

#define DEPTH        16 // records
#define BLOCK_TILES  6  // of 16 rows
#define BLOCK_ROWS   (BLOCK_TILES * ROWS)
#define GROUP_PANELS 4
#define PANEL_STRIPS (PANEL / MOEI_CPU_STRIP)
#define PAIR         (2 * TILE_BYTES) // of strips

typedef struct amx_block {
    _Alignas(64) uint8_t x[BLOCK_TILES][DEPTH][ROWS][TILE_LINE];
    _Alignas(64) uint8_t w[DEPTH][PAIR]; // where weights are decoded
    _Alignas(64) float acc[GROUP_PANELS][PANEL_STRIPS][BLOCK_TILES][ROWS][MOEI_CPU_STRIP];
    moei_cpu_columns columns;
    const moek_ggemm_args *args;
    const moei_cpu_packed *packed;
    const uint8_t *expert;
    int32_t e;
} amx_block;

/// Two strips of a panel as tiles of consecutive records.
typedef struct w_tiles {
    const uint8_t *first, *second;
    int64_t step; // from record to record
} w_tiles;

/// Strips s and s + 1 of a panel `width` outputs wide, records r0 .. r1 - 1. Past the last strip
/// that one again: its sums are dropped.
typedef w_tiles weights_fn(amx_block *b, int64_t panel, int64_t width, int64_t s, int64_t r0,
                           int64_t r1);

// The sums of 16 or (two) 32 rows and two strips go on by `count` records.
__attribute__((always_inline)) static inline void advance(bool two, bool begin, const uint8_t *x0,
                                                          const uint8_t *x1, w_tiles w,
                                                          int64_t count, float *first,
                                                          float *second)
{
    if (begin) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, first, TILE_LINE);
        _tile_loadd(2, second, TILE_LINE);
        if (two) {
            _tile_loadd(1, first + TILE_BYTES / 4, TILE_LINE);
            _tile_loadd(3, second + TILE_BYTES / 4, TILE_LINE);
        }
    }
    for (int64_t r = 0; r < count; r++) {
        _tile_loadd(6, w.first + r * w.step, TILE_LINE);
        _tile_loadd(4, x0 + r * TILE_BYTES, TILE_LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w.second + r * w.step, TILE_LINE);
        _tile_dpbf16ps(2, 4, 7);
        if (two) {
            _tile_loadd(5, x1 + r * TILE_BYTES, TILE_LINE);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, first, TILE_LINE);
    _tile_stored(2, second, TILE_LINE);
    if (two) {
        _tile_stored(1, first + TILE_BYTES / 4, TILE_LINE);
        _tile_stored(3, second + TILE_BYTES / 4, TILE_LINE);
    }
}

// All tiles of rows over two strips.
static inline void advance_rows(amx_block *b, w_tiles w, int64_t high, bool begin, int64_t count,
                                float (*first)[ROWS][MOEI_CPU_STRIP],
                                float (*second)[ROWS][MOEI_CPU_STRIP])
{
    for (int64_t t = 0; t < high; t += 2) {
        const uint8_t *x0 = b->x[t][0][0];
        if (t + 1 < high) {
            advance(true, begin, x0, b->x[t + 1][0][0], w, count, first[t][0], second[t][0]);
        } else {
            advance(false, begin, x0, x0, w, count, first[t][0], second[t][0]);
        }
    }
}

// The sums of a row to its results. Strips lie apart.
static inline void finish_panel(amx_block *b, int64_t at, int64_t panel, int64_t i0, int64_t i1,
                                int64_t n0, int64_t n1)
{
    const int64_t first = moei_i64_max(panel * PANEL, n0);
    const int64_t end = moei_i64_min((panel + 1) * PANEL, n1);
    moei_cpu_load_columns(&b->args->w, b->e, first, end, &b->columns);
    for (int64_t i = i0; i < i1; i++) {
        _Alignas(64) float row[PANEL];
        const int64_t r = i - i0;
        for (int64_t s = 0; s < PANEL_STRIPS; s++) {
            memcpy(row + s * MOEI_CPU_STRIP, b->acc[at][s][r / ROWS][r % ROWS],
                   MOEI_CPU_STRIP * sizeof row[0]);
        }
        moei_cpu_finish(b->args, &b->columns, b->e, i, first, end, row + first - panel * PANEL);
    }
}

/// The sums of rows i0 .. i1 - 1, BLOCK_ROWS at most, and of `panels` panels from `panel` on.
static inline void block_sums(amx_block *b, int64_t i0, int64_t i1, int64_t panel, int64_t panels,
                              weights_fn *weights)
{
    const int64_t high = moei_i64_ceil_div(i1 - i0, ROWS);
    for (int64_t r0 = 0; r0 < b->packed->records; r0 += DEPTH) {
        const int64_t r1 = moei_i64_min(r0 + DEPTH, b->packed->records);
        for (int64_t t = 0; t < high; t++) {
            copy_x(b->args, b->e, b->x[t], i0 + t * ROWS, moei_i64_min(ROWS, i1 - i0 - t * ROWS),
                   r0, r1);
        }
        for (int64_t p = 0; p < panels; p++) {
            const int64_t width = moei_cpu_panel_width(b->packed, panel + p);
            for (int64_t s = 0; s * MOEI_CPU_STRIP < width; s += 2) {
                const w_tiles w = weights(b, panel + p, width, s, r0, r1);
                advance_rows(b, w, high, r0 == 0, r1 - r0, b->acc[p][s], b->acc[p][s + 1]);
            }
        }
    }
}

static inline void block_open(amx_block *b, const moek_ggemm_args *args,
                              const moei_cpu_packed *packed, int32_t e)
{
    b->args = args;
    b->packed = packed;
    b->expert = args->w.values + (int64_t)e * args->w.value_e_stride;
    b->e = e;
    tiles_begin();
}

/// Rows of a block, so that no block has few.
static inline int64_t block_rows(int64_t rows)
{
    const int64_t blocks = moei_i64_ceil_div(rows, BLOCK_ROWS);
    return moei_i64_round_up(moei_i64_ceil_div(rows, blocks), ROWS);
}

/// Panels of the group that begins with `panel`, of outputs up to n1.
static inline int64_t group_of(int64_t panel, int64_t n1)
{
    return moei_i64_min(GROUP_PANELS, moei_i64_ceil_div(n1, PANEL) - panel);
}

/// Those sums, which are all of K, to their results.
static inline void block_finish(amx_block *b, int64_t i0, int64_t i1, int64_t panel, int64_t panels,
                                int64_t n0, int64_t n1)
{
    for (int64_t p = 0; p < panels; p++) {
        finish_panel(b, p, panel + p, i0, i1, n0, n1);
    }
}

#endif
