// SPDX-License-Identifier: Apache-2.0
// Tiles of AMX, all 16 rows of 64 bytes. Numbers of tiles are constants. A test may bring tiles of
// its own (MOEI_TILES), for machines that have none.
#ifndef MOEI_BACKENDS_CPU_AMX_TILES_H
#define MOEI_BACKENDS_CPU_AMX_TILES_H

#include <stdint.h>

#ifdef MOEI_TILES
#include MOEI_TILES
#else
#include <immintrin.h>
#endif

#define TILE_ROWS  16
#define TILE_LINE  64 // bytes of a row
#define TILE_BYTES (TILE_ROWS * TILE_LINE)

/// As LDTILECFG reads it.
typedef struct tile_config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t line[16];
    uint8_t rows[16];
} tile_config;

/// To be called between writing what tiles are loaded from and loading them: compilers do not know
/// that instructions on tiles read memory.
static inline void tiles_see(const void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

/// To be followed by _tile_release: tiles in use slow down the other thread of a core.
static inline void tiles_begin(void)
{
    tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.line[t] = TILE_LINE;
        c.rows[t] = TILE_ROWS;
    }
    tiles_see(&c);
    _tile_loadconfig(&c);
}

#endif
