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
#include "backends/cpu/amx/panel.h"

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx;

// ---- products ----------------------------------------------------------------------------------

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
static inline int64_t products(amx_panel *p, int64_t i, int64_t rows)
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
    each_panel(args, e, i0, i1, n0, n1, products);
}
