// SPDX-License-Identifier: Apache-2.0
// How the bodies that work row by row cut a matrix; drivers size their grids by the same functions.
#ifndef MOEI_GPU_TILES_H
#define MOEI_GPU_TILES_H

#include "numerics/hd.h"

#define MOEI_GPU_GLU_PIECE      8 // elements of a row per thread
#define MOEI_GPU_COMBINE_PIECE  8
#define MOEI_GPU_QUANTIZE_PIECE 8

// What quantize_rows takes at a time.
#define MOEI_GPU_QUANTIZE_GROUP 128 // elements of a row
#define MOEI_GPU_QUANTIZE_ROWS  8   // rows, where they are many

// A token's lanes of combine at least.
#define MOEI_GPU_COMBINE_LANES 8

/// Each thread takes a piece of a row, neighbours take neighbouring ones. A tile is what a block
/// does at a time: pieces of `rows` whole rows, or of a part of one.
typedef struct moei_gpu_tiles {
    uint32_t lanes_log2; // threads per row
    uint32_t rows_log2;  // of a tile
    uint32_t parts;      // tiles side by side
    int64_t count;
} moei_gpu_tiles;

/// @param[in] threads  of a block, a power of two
/// @param[in] least    of them per row, a power of two
MOE_HD moei_gpu_tiles moei_gpu_tiles_of(int64_t rows, int64_t width, int32_t piece,
                                        uint32_t threads, uint32_t least)
{
    const int64_t pieces = (width + piece - 1) / piece;
    moei_gpu_tiles t;
    t.lanes_log2 = 0;
    while ((1u << t.lanes_log2) < threads &&
           ((1u << t.lanes_log2) < least || (int64_t)(1u << t.lanes_log2) < pieces)) {
        t.lanes_log2++;
    }
    t.rows_log2 = 0;
    while ((1u << (t.lanes_log2 + t.rows_log2)) < threads) {
        t.rows_log2++;
    }
    t.parts = (uint32_t)((pieces + (1u << t.lanes_log2) - 1) >> t.lanes_log2);
    t.count = ((rows + (1 << t.rows_log2) - 1) >> t.rows_log2) * t.parts;
    return t;
}

/// The tiles of quantize, which warps take.
MOE_HD moei_gpu_tiles moei_gpu_quantize_tiles(int64_t rows, int64_t width)
{
    return moei_gpu_tiles_of(rows, width, MOEI_GPU_QUANTIZE_PIECE, 32, 32);
}

/// The tiles of combine, which warps take. Where there are many, lanes have several pieces of a
/// token each, a tile's width apart: what its slots are is looked up once.
///
/// @param[out] steps  pieces of a lane
MOE_HD moei_gpu_tiles moei_gpu_combine_tiles(int64_t tokens, int64_t width, int32_t *steps)
{
    enum { MOST = 4, ENOUGH = 8192 }; // pieces of a lane; warps
    moei_gpu_tiles t =
        moei_gpu_tiles_of(tokens, width, MOEI_GPU_COMBINE_PIECE, 32, MOEI_GPU_COMBINE_LANES);
    const int64_t over = t.count / ENOUGH;
    *steps = over < 1 ? 1 : over < MOST ? (int32_t)over : MOST;
    t.parts = (t.parts + (uint32_t)*steps - 1) / (uint32_t)*steps;
    t.count = ((tokens + (1 << t.rows_log2) - 1) >> t.rows_log2) * t.parts;
    return t;
}

/// The tiles of quantize_rows, which warps take: a group of 128 columns of neighbouring rows of a
/// batch, one group after the other.
typedef struct moei_gpu_bands {
    uint32_t rows;   // of a tile, MOEI_GPU_QUANTIZE_ROWS or 1
    uint32_t groups; // of a row
    uint32_t bands;  // of a batch: tiles one below the other
} moei_gpu_bands;

/// @param[in] rows  of a batch; they, times batches and groups, are fewer than 2^31
MOE_HD moei_gpu_bands moei_gpu_quantize_bands(int64_t rows, int32_t batches, int64_t width)
{
    enum { ENOUGH = 512 }; // warps that have several rows: about one for each scheduler
    moei_gpu_bands t;
    t.groups = (uint32_t)(width / MOEI_GPU_QUANTIZE_GROUP);
    t.rows =
        rows * batches * t.groups < ENOUGH * MOEI_GPU_QUANTIZE_ROWS ? 1 : MOEI_GPU_QUANTIZE_ROWS;
    t.bands = (uint32_t)((rows + t.rows - 1) / t.rows);
    return t;
}

/// The row and the first element of a thread's piece in a tile; either may lie past the end.
MOE_HD void moei_gpu_tile_at(const moei_gpu_tiles *t, int64_t tile, int32_t piece, uint32_t thread,
                             int64_t *row, int64_t *element)
{
    const int64_t over = moei_divide(tile, t->parts);
    const uint32_t lane = thread & ((1u << t->lanes_log2) - 1u);
    *row = (over << t->rows_log2) + (thread >> t->lanes_log2);
    *element = (((tile - over * t->parts) << t->lanes_log2) + lane) * piece;
}

#endif
