// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/x_tiles.h"

#include <string.h>

#define ROWS_AHEAD 4

int64_t moei_cpu_x_tiles_first(const moei_cpu_cut *cut, int64_t first[MOEI_SORT_MAX_EXPERTS])
{
    int64_t tiles = 0;
    for (int32_t b = 0; b < cut->busy; b++) {
        int64_t i0;
        first[cut->expert[b]] = tiles;
        tiles += moei_i64_ceil_div(moei_cpu_rows_of(cut->args, cut->expert[b], &i0) - i0,
                                   MOEI_CPU_TILE_ROWS);
    }
    return tiles;
}

static atomic_uint *line_of(const moei_cpu_x_tiles *to, int64_t tile)
{
    return (atomic_uint *)(void *)(to->at + (tile + 1) * to->bytes - MOEI_CPU_TILE_LINE);
}

void moei_cpu_x_tiles_begin(const moei_cpu_x_tiles *to, int64_t tile)
{
    atomic_init(line_of(to, tile), 0);
}

// True where an element that is not 0 has an exponent beyond. In 16-bit halves without branches,
// for compilers to make vectors of: as signed numbers, sizes are never negative.
static bool is_beyond(const uint8_t *row, int64_t k)
{
    uint16_t beyond = 0;
    for (int64_t i = 0; i < k; i++) {
        uint16_t bits;
        memcpy(&bits, row + 2 * i, sizeof bits);
        const int16_t size = (int16_t)(bits & 0x7FFF);
        const bool small = size < MOEI_CPU_TILED_LEAST << 7;
        const bool large = size > (MOEI_CPU_TILED_MOST << 7 | 0x7F);
        beyond |= (uint16_t)((small & (size > 0)) | large);
    }
    return beyond != 0;
}

static void fill_row(uint8_t *to, const uint8_t *row, int64_t k)
{
    const int64_t whole = k / MOEI_CPU_RECORD;
    for (int64_t r = 0; r < whole; r++) {
        memcpy(to + r * MOEI_CPU_TILE_BYTES, row + r * MOEI_CPU_TILE_LINE, MOEI_CPU_TILE_LINE);
    }
    if (k > whole * MOEI_CPU_RECORD) {
        to += whole * MOEI_CPU_TILE_BYTES;
        memset(to, 0, MOEI_CPU_TILE_LINE);
        memcpy(to, row + whole * MOEI_CPU_TILE_LINE, (size_t)(2 * (k - whole * MOEI_CPU_RECORD)));
    }
}

static void clear_row(uint8_t *to, int64_t k)
{
    for (int64_t r = 0; r < moei_i64_ceil_div(k, MOEI_CPU_RECORD); r++) {
        memset(to + r * MOEI_CPU_TILE_BYTES, 0, MOEI_CPU_TILE_LINE);
    }
}

void moei_cpu_x_tiles_fill(const moei_cpu_x_tiles *to, int64_t tile, const moek_ggemm_args *from,
                           int32_t e, int64_t i0, int64_t i1, int64_t k0, int64_t k1)
{
    const int64_t skip = k0 / MOEI_CPU_RECORD * MOEI_CPU_TILE_BYTES;
    for (int64_t i = 0; i < moei_i64_round_up(i1 - i0, MOEI_CPU_TILE_ROWS); i++) {
        const int64_t t = tile + i / MOEI_CPU_TILE_ROWS;
        uint8_t *at = to->at + t * to->bytes + skip + i % MOEI_CPU_TILE_ROWS * MOEI_CPU_TILE_LINE;
        if (i0 + i >= i1) {
            clear_row(at, k1 - k0);
            continue;
        }
        if (i0 + i + ROWS_AHEAD < i1) {
            const uint8_t *ahead = moei_x_at(from, e, i0 + i + ROWS_AHEAD) + 2 * k0;
            for (int64_t b = 0; b < 2 * (k1 - k0); b += MOEI_CPU_TILE_LINE) {
                __builtin_prefetch(ahead + b);
            }
        }
        const uint8_t *row = moei_x_at(from, e, i0 + i) + 2 * k0;
        fill_row(at, row, k1 - k0);
        if (is_beyond(row, k1 - k0)) {
            atomic_store_explicit(line_of(to, t), 1, memory_order_relaxed);
        }
    }
}
