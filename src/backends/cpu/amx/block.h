// SPDX-License-Identifier: Apache-2.0
// Products with AMX: a block of rows times a group of panels, some k at a time.
//
// Per step of up to DEPTH records of k: x of the block is copied, as tiles, once for all panels of
// the group; then per two strips of outputs, over pairs of tiles of rows:
//
//   32 rows x 32 outputs, per record:  load 2 x, 2 w; multiply 4 times     4 + 4 tiles
//
// A tile of zeros seems to take no register, and a core whose other thread is busy to have few
// to spare: so operands are zeroed after their last use, which lets later loads begin (a
// multiplication then takes 30 to 32 cycles instead of 40). Sums go to memory and come back between
// steps, as f32, so that nothing is rounded by it: they are those of one chain over K.
//
// The weights of the next panel are asked for while this one is multiplied, the first ones while x
// is copied. Limits: multiplications and, of all operands, the second-level cache; for few rows,
// memory.
#ifndef MOEI_BACKENDS_CPU_AMX_BLOCK_H
#define MOEI_BACKENDS_CPU_AMX_BLOCK_H

#include <string.h>

#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/packed_panels.h"
#include "backends/cpu/x_tiles.h"

#define PANEL        MOEI_CPU_PANEL
#define RECORD       MOEI_CPU_RECORD
#define ROWS         TILE_ROWS
#define FEW          2  // rows for which vectors do as well as tiles, without their set-up
#define DEPTH        16 // records of a step, at most
#define BLOCK_TILES  16 // of rows
#define BLOCK_ROWS   (BLOCK_TILES * ROWS)
#define GROUP_PANELS 4
#define PANEL_STRIPS (PANEL / MOEI_CPU_STRIP)
#define PAIR         (2 * TILE_BYTES) // of strips
#define ROWS_AHEAD   4                // whose x or y is asked for

typedef struct amx_block {
    _Alignas(64) uint8_t x[BLOCK_TILES][DEPTH][ROWS][TILE_LINE];
    _Alignas(64) uint8_t w[DEPTH][PAIR]; // where weights are decoded
    _Alignas(64) float acc[GROUP_PANELS][PANEL_STRIPS][BLOCK_TILES][ROWS][MOEI_CPU_STRIP];
    moei_cpu_columns columns[GROUP_PANELS];
    moei_cpu_panels p;
    const uint8_t *tiles;         // x of the call as tiles; NULL: x is copied
    const uint8_t *x_at;          // tiles of a step
    int64_t x_step;               // from 16 rows of them to the next, in bytes
    int64_t depth;                // records of a step
    const uint8_t *ask, *ask_end; // weights that come next
    int64_t ask_each;             // bytes
} amx_block;

/// Two strips of a panel. Past the last strip that one again: its sums are dropped.
typedef struct w_pair {
    const uint8_t *first, *second; // as tiles of consecutive records
    int64_t step;                  // from record to record, in bytes
    const uint8_t *from;           // records of the panel
    int64_t s, width;              // strip; outputs of the panel
} w_pair;

/// What a kernel does with weights and x on the way.
typedef struct block_ops {
    /// Strips s and s + 1 of a panel, from record r0 on.
    w_pair (*pair)(amx_block *b, int64_t panel, int64_t s, int64_t r0);
    /// Makes the tiles of record r, counted from r0; NULL: they are there.
    void (*decode)(amx_block *b, const w_pair *w, int64_t r);
    /// Looks at `k` elements of a row of x; NULL: there is nothing to look at.
    void (*look)(amx_block *b, const uint8_t *x, int64_t k);
} block_ops;

// ---- weights -----------------------------------------------------------------------------------

static inline int64_t record_bytes(const amx_block *b, int64_t width)
{
    return width * (b->p.packed.head + b->p.packed.record);
}

/// Record r of a panel.
static inline const uint8_t *record_at(const amx_block *b, int64_t panel, int64_t r)
{
    const int64_t width = moei_cpu_panel_width(&b->p.packed, panel);
    return b->p.expert + moei_cpu_group_at(&b->p.packed, panel, width, 0) +
           r * record_bytes(b, width);
}

/// From now on ask_next asks for a step's records of a panel, in `times` parts.
static inline void ask_for(amx_block *b, int64_t panel, int64_t r0, int64_t times)
{
    b->ask = record_at(b, panel, r0);
    b->ask_end = record_at(b, panel, moei_i64_min(r0 + b->depth, b->p.packed.records));
    b->ask_each = moei_i64_round_up(moei_i64_ceil_div(b->ask_end - b->ask, times), MOEI_CPU_LINE);
}

static inline void ask_next(amx_block *b)
{
    const uint8_t *end = b->ask_each < b->ask_end - b->ask ? b->ask + b->ask_each : b->ask_end;
    for (; b->ask < end; b->ask += MOEI_CPU_LINE) {
        __builtin_prefetch(b->ask, 0, 2);
    }
}

// ---- x -----------------------------------------------------------------------------------------

// One row's part of a tile of each record from r0 on. Past k there are zeros.
static inline void copy_row(const amx_block *b, const uint8_t *row, int64_t r0, int64_t r1,
                            uint8_t *to)
{
    const int64_t k = b->p.args.w.k;
    const int64_t whole = moei_i64_min(r1, k / RECORD);
    for (int64_t r = r0; r < whole; r++, to += TILE_BYTES) {
        memcpy(to, row + r * TILE_LINE, TILE_LINE);
    }
    if (whole < r1) {
        memset(to, 0, TILE_LINE);
        memcpy(to, row + whole * TILE_LINE, (size_t)(2 * (k - whole * RECORD)));
    }
}

// Records r0 .. r1 - 1 of rows i0 .. i1 - 1, as tiles. Rows that would fill the last tile are zero.
__attribute__((always_inline)) static inline void
copy_x(amx_block *b, const block_ops *ops, int64_t i0, int64_t i1, int64_t r0, int64_t r1)
{
    const int64_t k = moei_i64_min(r1 * RECORD, b->p.args.w.k) - r0 * RECORD;
    const int64_t rows = moei_i64_round_up(i1 - i0, ROWS);
    for (int64_t i = 0; i < rows; i++) {
        uint8_t *to = b->x[i / ROWS][0][0] + i % ROWS * TILE_LINE;
        if (i0 + i >= i1) {
            for (int64_t r = r0; r < r1; r++, to += TILE_BYTES) {
                memset(to, 0, TILE_LINE);
            }
            continue;
        }
        if (i0 + i + ROWS_AHEAD < i1) {
            const uint8_t *ahead =
                moei_x_at(&b->p.args, b->p.e, i0 + i + ROWS_AHEAD) + r0 * TILE_LINE;
            for (int64_t at = 0; at < 2 * k; at += TILE_LINE) {
                __builtin_prefetch(ahead + at);
            }
        }
        const uint8_t *row = moei_x_at(&b->p.args, b->p.e, i0 + i);
        ask_next(b);
        copy_row(b, row, r0, r1, to);
        if (ops->look != NULL) {
            ops->look(b, row + r0 * TILE_LINE, k);
        }
    }
    tiles_see(b->x);
}

static inline const uint8_t *x_tile(const amx_block *b, int64_t t)
{
    return b->x_at + t * b->x_step;
}

// x of rows i0 .. i1 - 1, records r0 .. r1 - 1, to x_tile.
__attribute__((always_inline)) static inline void
bring_x(amx_block *b, const block_ops *ops, int64_t i0, int64_t i1, int64_t r0, int64_t r1)
{
    if (b->tiles == NULL) {
        copy_x(b, ops, i0, i1, r0, r1);
        return;
    }
    b->x_at = b->tiles + (i0 - b->p.i0) / ROWS * b->x_step + r0 * TILE_BYTES;
}

// ---- products ----------------------------------------------------------------------------------

// The sums of 16 or (two) 32 rows and two strips go on by `count` records. Strips that are to be
// decoded are so one record ahead, beside the multiplications.
__attribute__((always_inline)) static inline void
advance(amx_block *b, const block_ops *ops, bool decode, bool two, bool begin, const w_pair *w,
        const uint8_t *x, int64_t count, float *first, float *second)
{
    if (decode) {
        ops->decode(b, w, 0);
    }
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
        ask_next(b);
        if (decode && r + 1 < count) {
            ops->decode(b, w, r + 1);
        }
        _tile_loadd(6, w->first + r * w->step, TILE_LINE);
        _tile_loadd(4, x + r * TILE_BYTES, TILE_LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w->second + r * w->step, TILE_LINE);
        _tile_dpbf16ps(2, 4, 7);
        _tile_zero(4);
        if (two) {
            _tile_loadd(5, x + b->x_step + r * TILE_BYTES, TILE_LINE);
            _tile_dpbf16ps(1, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            _tile_zero(5);
        }
        _tile_zero(6);
        _tile_zero(7);
    }
    _tile_stored(0, first, TILE_LINE);
    _tile_stored(2, second, TILE_LINE);
    if (two) {
        _tile_stored(1, first + TILE_BYTES / 4, TILE_LINE);
        _tile_stored(3, second + TILE_BYTES / 4, TILE_LINE);
    }
}

// All tiles of rows over two strips.
__attribute__((always_inline)) static inline void
advance_rows(amx_block *b, const block_ops *ops, const w_pair *w, int64_t high, bool begin,
             int64_t count, float (*first)[ROWS][MOEI_CPU_STRIP],
             float (*second)[ROWS][MOEI_CPU_STRIP])
{
    const bool decode = ops->decode != NULL;
    int64_t t = 2;
    if (high == 1) {
        advance(b, ops, decode, false, begin, w, x_tile(b, 0), count, first[0][0], second[0][0]);
    } else {
        advance(b, ops, decode, true, begin, w, x_tile(b, 0), count, first[0][0], second[0][0]);
    }
    for (; t + 1 < high; t += 2) {
        advance(b, ops, false, true, begin, w, x_tile(b, t), count, first[t][0], second[t][0]);
    }
    if (t < high) {
        advance(b, ops, false, false, begin, w, x_tile(b, t), count, first[t][0], second[t][0]);
    }
}

/// The sums of rows i0 .. i1 - 1, BLOCK_ROWS at most, and of `panels` panels from `panel` on.
__attribute__((always_inline)) static inline void block_sums(amx_block *b, const block_ops *ops,
                                                             int64_t i0, int64_t i1, int64_t panel,
                                                             int64_t panels)
{
    const int64_t end = moei_i64_ceil_div(b->p.n1, PANEL);
    const int64_t records = b->p.packed.records;
    const int64_t high = moei_i64_ceil_div(i1 - i0, ROWS);
    for (int64_t r0 = 0; r0 < records; r0 += b->depth) {
        const int64_t r1 = moei_i64_min(r0 + b->depth, records);
        bring_x(b, ops, i0, i1, r0, r1);
        for (int64_t p = 0; p < panels; p++) {
            const int64_t strips = moei_cpu_panel_width(&b->p.packed, panel + p) / MOEI_CPU_STRIP;
            const int64_t times = (r1 - r0) * ((high + 1) / 2) * ((strips + 1) / 2);
            if (p + 1 < panels) {
                ask_for(b, panel + p + 1, r0, times);
            } else if (r1 < records) {
                ask_for(b, panel, r1, times);
            } else if (panel + panels < end) {
                ask_for(b, panel + panels, 0, times);
            }
            for (int64_t s = 0; s < strips; s += 2) {
                const w_pair w = ops->pair(b, panel + p, s, r0);
                advance_rows(b, ops, &w, high, r0 == 0, r1 - r0, b->acc[p][s], b->acc[p][s + 1]);
            }
        }
    }
}

/// The sums of rows to their results. Strips lie apart.
static inline void block_finish(amx_block *b, int64_t i0, int64_t i1, int64_t panel, int64_t panels)
{
    int64_t first;
    for (int64_t p = 0; p < panels; p++) {
        const int64_t end = moei_cpu_panel_outputs(&b->p, panel + p, &first);
        moei_cpu_load_columns(&b->p.args.w, b->p.e, first, end, &b->columns[p]);
    }
    const int64_t bytes = moe_dtype_bits(b->p.args.y_dtype) / 8;
    const int64_t at = moei_i64_max(panel * PANEL, b->p.n0) * bytes;
    for (int64_t i = i0; i < i1; i++) {
        const int64_t t = (i - i0) / ROWS;
        if (i + ROWS_AHEAD < i1) {
            const uint8_t *y = moei_y_at(&b->p.args, b->p.e, i + ROWS_AHEAD) + at;
            for (int64_t p = 0; p < panels * PANEL * bytes; p += MOEI_CPU_LINE) {
                __builtin_prefetch(y + p, 1);
            }
        }
        for (int64_t p = 0; p < panels; p++) {
            _Alignas(64) float row[PANEL];
            const int64_t end = moei_cpu_panel_outputs(&b->p, panel + p, &first);
            for (int64_t s = 0; s < PANEL_STRIPS; s++) {
                memcpy(row + s * MOEI_CPU_STRIP, b->acc[p][s][t][(i - i0) % ROWS],
                       MOEI_CPU_STRIP * sizeof row[0]);
            }
            moei_cpu_finish(&b->p.args, &b->columns[p], b->p.e, i, first, end,
                            row + first - (panel + p) * PANEL);
        }
    }
}

static inline void block_open(amx_block *b, const moek_ggemm_args *args, int32_t e, int64_t i0,
                              int64_t n0, int64_t n1)
{
    moei_cpu_panels_open(&b->p, args, e, n0, n1);
    const bool tiled = args->x.row_stride == MOEI_CPU_TILED;
    const int64_t steps = moei_i64_ceil_div(b->p.packed.records, DEPTH);
    b->p.i0 = i0;
    b->tiles = tiled ? args->x.data : NULL;
    b->x_at = b->x[0][0][0];
    b->x_step = tiled ? moei_cpu_x_tiles_bytes(args->w.k) : (int64_t)sizeof b->x[0];
    b->depth = moei_i64_ceil_div(b->p.packed.records, steps);
    tiles_begin();
}

/// The sums of rows i0 .. i1 - 1 and of `panels` panels from `panel` on, to their results.
typedef void group_fn(amx_block *b, int64_t i0, int64_t i1, int64_t panel, int64_t panels);

/// Rows of a block, so that no block has few.
static inline int64_t block_rows(int64_t rows)
{
    const int64_t blocks = moei_i64_ceil_div(rows, BLOCK_ROWS);
    return moei_i64_round_up(moei_i64_ceil_div(rows, blocks), ROWS);
}

__attribute__((always_inline)) static inline void each_group(amx_block *b,
                                                             const moek_ggemm_args *args, int32_t e,
                                                             int64_t i0, int64_t i1, int64_t n0,
                                                             int64_t n1, group_fn *group)
{
    const int64_t step = block_rows(i1 - i0);
    const int64_t end = moei_i64_ceil_div(n1, PANEL);
    block_open(b, args, e, i0, n0, n1);
    ask_for(b, n0 / PANEL, 0, b->tiles != NULL ? 1 : moei_i64_min(step, i1 - i0));
    ask_next(b);
    for (int64_t i = i0; i < i1; i += step) {
        for (int64_t panel = n0 / PANEL; panel < end; panel += GROUP_PANELS) {
            const int64_t panels = moei_i64_min(GROUP_PANELS, end - panel);
            group(b, i, moei_i64_min(i + step, i1), panel, panels);
        }
    }
    _tile_release();
}

#endif
