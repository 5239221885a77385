// SPDX-License-Identifier: Apache-2.0
// AMX's tiles in memory, after the manual's pseudo-code, for machines without them. Modes of floats
// are those of TDPBF16PS whatever the thread's: subnormals are 0. Needs FMA.
#ifndef MOE_TESTS_EMULATED_TILES_H
#define MOE_TESTS_EMULATED_TILES_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/avx/flush.h"

typedef struct emulated_tiles {
    uint8_t rows[8];
    uint16_t line[8];
    uint8_t data[8][16][64];
    int begun, ended, faults; // counts
} emulated_tiles;

static emulated_tiles tiles;

static inline void emulated_config(const void *config)
{
    for (int t = 0; t < 8; t++) {
        memcpy(&tiles.line[t], (const uint8_t *)config + 16 + 2 * t, 2);
        tiles.rows[t] = ((const uint8_t *)config)[48 + t];
        tiles.faults += tiles.line[t] > 64 || tiles.rows[t] > 16;
    }
    tiles.faults += ((const uint8_t *)config)[0] != 1;
    memset(tiles.data, 0, sizeof tiles.data);
    tiles.begun++;
}

static inline void emulated_load(int t, const void *from, ptrdiff_t stride)
{
    memset(tiles.data[t], 0, sizeof tiles.data[t]);
    for (int r = 0; r < tiles.rows[t]; r++) {
        memcpy(tiles.data[t][r], (const uint8_t *)from + r * stride, tiles.line[t]);
    }
}

static inline void emulated_store(int t, void *to, ptrdiff_t stride)
{
    for (int r = 0; r < tiles.rows[t]; r++) {
        memcpy((uint8_t *)to + r * stride, tiles.data[t][r], tiles.line[t]);
    }
}

static inline float emulated_bf16(const uint8_t *at)
{
    uint16_t bits;
    float value;
    memcpy(&bits, at, 2);
    const uint32_t word = (uint32_t)bits << 16;
    memcpy(&value, &word, 4);
    return value;
}

static inline void emulated_multiply(int c, int a, int b)
{
    const uint32_t modes = moei_cpu_flush_begin();
    for (int m = 0; m < tiles.rows[c]; m++) {
        for (int n = 0; n < tiles.line[c] / 4; n++) {
            float sum[2] = {0.0f, 0.0f};
            float acc;
            for (int k = 0; k < tiles.line[a] / 2; k++) {
                const float x = emulated_bf16(&tiles.data[a][m][2 * k]);
                const float w = emulated_bf16(&tiles.data[b][k / 2][4 * n + k % 2 * 2]);
                sum[k % 2] = __builtin_fmaf(x, w, sum[k % 2]);
            }
            memcpy(&acc, &tiles.data[c][m][4 * n], 4);
            acc += sum[0] + sum[1];
            memcpy(&tiles.data[c][m][4 * n], &acc, 4);
        }
    }
    moei_cpu_flush_end(modes);
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config)     emulated_config(config)
#define _tile_release()              ((void)(tiles.ended++))
#define _tile_zero(t)                ((void)memset(tiles.data[t], 0, sizeof tiles.data[t]))
#define _tile_loadd(t, from, stride) emulated_load(t, from, (ptrdiff_t)(stride))
#define _tile_stored(t, to, stride)  emulated_store(t, to, (ptrdiff_t)(stride))
#define _tile_dpbf16ps(c, a, b)      emulated_multiply(c, a, b)

#endif
