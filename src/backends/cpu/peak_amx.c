// SPDX-License-Identifier: Apache-2.0
// What a core can do at most with AMX's bf16, for benchmarks: multiplications of tiles that stay
// where they are. Their elements differ, as those of products do: equal ones draw less power, and
// zeros are faster than any product is. Four tiles are in use: with more, a core whose other thread
// is busy is slower.
#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/peak.h"
#include "numerics/bf16.h"

#define ELEMENTS   (TILE_BYTES / 2)
#define OPERATIONS 4 // multiplications of a step

// Numbers of either sign, from 1/2 to 2 times `factor`.
static void fill(uint16_t *tile, uint32_t seed, float factor)
{
    for (int i = 0; i < ELEMENTS; i++) {
        seed = seed * 1664525u + 1013904223u;
        const float size = 0.5f + 1.5f * (float)(seed >> 9) * 0x1p-23f;
        tile[i] = moei_f32_to_bf16((seed >> 8 & 1) != 0 ? -size * factor : size * factor);
    }
    tiles_see(tile);
}

double moei_cpu_peak_bf16__amx(int64_t steps, float factor, float term, float *sum)
{
    uint16_t x[ELEMENTS];
    uint16_t w[ELEMENTS];
    float sums[2][TILE_BYTES / 4];
    fill(x, 1, factor);
    fill(w, 2, factor);
    tiles_begin();
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(2, x, TILE_LINE);
    _tile_loadd(3, w, TILE_LINE);
    for (int64_t s = 0; s < steps; s++) {
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 3);
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 3);
    }
    _tile_stored(0, sums[0], TILE_LINE);
    _tile_stored(1, sums[1], TILE_LINE);
    _tile_release();
    tiles_see(sums);
    *sum = term + sums[0][0] + sums[1][0];
    return 2.0 * 16 * 16 * 32 * OPERATIONS * (double)steps;
}
