// SPDX-License-Identifier: Apache-2.0
// ggemm with AMX: bf16 times packed bf16, class amx_bf16.
//
// A strip of a packed record (16 outputs x 32 k, pairs of k side by side) is a tile as the second
// operand wants it; 16 rows of x x 32 k, as they lie, are the first. Per record of a panel:
//
//   16 rows x 64 outputs:  load x; 4 times: load w, multiply    4 + 1 + 1 tiles, 5 loads
//   32 rows x 32 outputs:  load 2 x; 2 times: load w, 2 multiply   4 + 2 + 1 tiles, 4 loads
//
// The sums stay in tiles over all of K. Two threads of a core share its tile registers: with eight
// in use each multiplication takes longer than with six, and sums hide no latency, as they join a
// multiplication at its end. So there is one tile for weights, loaded again and again.
//
// x is loaded from where it lies where its rows follow each other, or else copied by chunks of k
// to a buffer in a first-level cache; rows and k that are not there are zeros. While the rows pass
// over a panel, the lines of the next are asked for, evenly.
//
// Limits: up to 16 rows memory; many rows the multiplications, and copies of x between them.
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

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx;

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
    int64_t record;      // bytes of all of them
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
    return (x_tiles){buffer[0][0], TILE_LINE, TILE_BYTES};
}

// ---- products ----------------------------------------------------------------------------------

static inline void ask(amx_panel *p)
{
    const uint8_t *end = p->ask + p->ask_each;
    for (; p->ask < end && p->ask < p->ask_end; p->ask += MOEI_CPU_LINE) {
        __builtin_prefetch(p->ask, 0, 2);
    }
}

// Strip s of a record; past the last one that one again, whose sums are dropped.
static inline const uint8_t *strip_at(const amx_panel *p, const uint8_t *record, int64_t s)
{
    return record + moei_i64_min(s, p->strips - 1) * TILE_BYTES;
}

// Up to 16 rows from i on, times all outputs of the panel.
static void wide(amx_panel *p, int64_t i, int64_t rows, float (*acc)[PANEL])
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t r0 = 0; r0 < p->records; r0 += CHUNK) {
        const int64_t r1 = moei_i64_min(r0 + CHUNK, p->records);
        const x_tiles x = bring_x(p, p->x[0], i, rows, r0, r1);
        for (int64_t r = r0; r < r1; r++) {
            const uint8_t *w = p->from + r * p->record;
            ask(p);
            _tile_loadd(4, x.from + (r - r0) * x.step, x.stride);
            _tile_loadd(5, w, TILE_LINE);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(5, strip_at(p, w, 1), TILE_LINE);
            _tile_dpbf16ps(1, 4, 5);
            _tile_loadd(5, strip_at(p, w, 2), TILE_LINE);
            _tile_dpbf16ps(2, 4, 5);
            _tile_loadd(5, strip_at(p, w, 3), TILE_LINE);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, &acc[0][0], sizeof acc[0]);
    _tile_stored(1, &acc[0][16], sizeof acc[0]);
    _tile_stored(2, &acc[0][32], sizeof acc[0]);
    _tile_stored(3, &acc[0][48], sizeof acc[0]);
}

// 17 to 32 rows from i on, times strips s and s + 1.
static void tall(amx_panel *p, int64_t i, int64_t rows, int64_t s, float (*acc)[PANEL])
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t r0 = 0; r0 < p->records; r0 += CHUNK) {
        const int64_t r1 = moei_i64_min(r0 + CHUNK, p->records);
        const x_tiles x0 = bring_x(p, p->x[0], i, ROWS, r0, r1);
        const x_tiles x1 = bring_x(p, p->x[1], i + ROWS, rows - ROWS, r0, r1);
        for (int64_t r = r0; r < r1; r++) {
            const uint8_t *w = p->from + r * p->record;
            ask(p);
            _tile_loadd(4, x0.from + (r - r0) * x0.step, x0.stride);
            _tile_loadd(5, x1.from + (r - r0) * x1.step, x1.stride);
            _tile_loadd(6, strip_at(p, w, s), TILE_LINE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            _tile_loadd(6, strip_at(p, w, s + 1), TILE_LINE);
            _tile_dpbf16ps(2, 4, 6);
            _tile_dpbf16ps(3, 5, 6);
        }
    }
    _tile_stored(0, &acc[0][16 * s], sizeof acc[0]);
    _tile_stored(1, &acc[ROWS][16 * s], sizeof acc[0]);
    _tile_stored(2, &acc[0][16 * s + 16], sizeof acc[0]);
    _tile_stored(3, &acc[ROWS][16 * s + 16], sizeof acc[0]);
}

// Copies of x would be made for each two strips: so only rows that need none are 32 together.
static int64_t products(amx_panel *p, int64_t i, int64_t rows)
{
    if (rows <= ROWS || !lies_well(p->args)) {
        wide(p, i, moei_i64_min(rows, ROWS), p->acc);
        return moei_i64_min(rows, ROWS);
    }
    for (int64_t s = 0; s < p->strips; s += 2) {
        tall(p, i, moei_i64_min(rows, TALL), s, p->acc);
    }
    return moei_i64_min(rows, TALL);
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__amx;
void moek_ggemm_any_bf16_packed__amx(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                                     int64_t n0, int64_t n1)
{
    if (i1 - i0 <= FEW) {
        moek_ggemm_any_bf16_packed__avx512_amx(args, e, i0, i1, n0, n1);
        return;
    }
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
        p.record = width * packed.record;
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
