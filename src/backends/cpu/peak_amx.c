// SPDX-License-Identifier: Apache-2.0
// What a core can do at most with AMX's bf16, for benchmarks: multiplications of tiles that stay
// where they are. They are not zero, which would be faster than any product is, and six of them
// are in use: with more, two threads of a core are slower.
#include "backends/cpu/amx/tiles.h"
#include "backends/cpu/peak.h"
#include "numerics/bf16.h"

#define CHAINS 4

double moei_cpu_peak_bf16__amx(int64_t steps, float factor, float term, float *sum)
{
    uint16_t ones[TILE_BYTES / 2];
    float sums[TILE_BYTES / 4];
    for (int i = 0; i < TILE_BYTES / 2; i++) {
        ones[i] = moei_f32_to_bf16(factor);
    }
    tiles_see(ones);
    tiles_begin();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, TILE_LINE);
    _tile_loadd(5, ones, TILE_LINE);
    for (int64_t s = 0; s < steps; s++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    *sum = term;
    for (int c = 0; c < CHAINS; c++) {
        switch (c) {
        case 0:
            _tile_stored(0, sums, TILE_LINE);
            break;
        case 1:
            _tile_stored(1, sums, TILE_LINE);
            break;
        case 2:
            _tile_stored(2, sums, TILE_LINE);
            break;
        default:
            _tile_stored(3, sums, TILE_LINE);
            break;
        }
        *sum += sums[0];
    }
    _tile_release();
    return 2.0 * 16 * 16 * 32 * CHAINS * (double)steps;
}
