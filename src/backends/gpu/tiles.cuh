// SPDX-License-Identifier: Apache-2.0
// The tiles of a grouped product, found on the device: groups know their rows there alone.
//
// A tile is `bm` outputs x up to `bn` rows of one expert. Tiles count expert by expert; inside an
// expert the blocks of rows run fastest, so that blocks at work at the same time share weights.
#ifndef MOEI_GPU_TILES_CUH
#define MOEI_GPU_TILES_CUH

#include "backends/gpu/dev.h"
#include "backends/gpu/elements.cuh"
#include "ops/ggemm_at.h"

typedef struct moei_tile {
    int32_t e;
    int32_t m;  // block of outputs
    int64_t i0; // rows [i0, i1) of the expert's, as moek_ggemm_args counts them
    int64_t i1;
} moei_tile;

/// First row of expert e, and how many it has.
DEV_FN int64_t moei_group_rows(const moek_ggemm_args *a, int32_t e, int64_t *first)
{
    if (a->offsets != NULL) {
        *first = a->offsets[e];
        return (int64_t)a->offsets[e + 1] - a->offsets[e];
    }
    *first = 0;
    return a->counts != NULL ? a->counts[e] : a->rows;
}

/// Rows of N experts from `first` on, 0 past the last: all of them are asked for at the same time.
template <int N>
DEV_FN void moei_rows_of_some(const moek_ggemm_args *a, int32_t first, int32_t *rows)
{
    const int32_t count = a->w.count;
    if (a->offsets != NULL) {
        int32_t at[N + 1];
        MOEI_GPU_UNROLL
        for (int j = 0; j <= N; j++) {
            at[j] = a->offsets[first + j < count ? first + j : count];
        }
        MOEI_GPU_UNROLL
        for (int j = 0; j < N; j++) {
            rows[j] = at[j + 1] - at[j];
        }
        return;
    }
    MOEI_GPU_UNROLL
    for (int j = 0; j < N; j++) {
        rows[j] = first + j >= count  ? 0
                  : a->counts != NULL ? a->counts[first + j]
                                      : (int32_t)a->rows;
    }
}

/// Fills prefix[0 .. count]: blocks of rows before each expert. Every thread of the block calls it.
DEV_FN void moei_tiles_begin(const moek_ggemm_args *a, int32_t bn, int32_t *prefix)
{
    enum { AT_ONCE = 8 }; // experts of a lane: their rows are read at the same time
    if (dev_warp() == 0) {
        const int lane = (int)dev_lane();
        int32_t before = 0;
        for (int32_t e0 = 0; e0 < a->w.count; e0 += 32 * AT_ONCE) {
            const int32_t first = e0 + lane * AT_ONCE;
            int32_t blocks[AT_ONCE];
            int32_t sum = 0;
            moei_rows_of_some<AT_ONCE>(a, first, blocks);
            MOEI_GPU_UNROLL
            for (int j = 0; j < AT_ONCE; j++) {
                blocks[j] = (int32_t)(((uint32_t)blocks[j] + (uint32_t)bn - 1u) / (uint32_t)bn);
            }
            MOEI_GPU_UNROLL
            for (int j = 0; j < AT_ONCE; j++) {
                sum += blocks[j];
            }
            const int32_t up_to = dev_warp_scan_i32(sum);
            int32_t at = before + up_to - sum;
            MOEI_GPU_UNROLL
            for (int j = 0; j < AT_ONCE; j++) {
                at += blocks[j];
                if (first + j < a->w.count) {
                    prefix[first + j + 1] = at;
                }
            }
            before += (int32_t)dev_shfl_u32((uint32_t)up_to, 31);
        }
        if (lane == 0) {
            prefix[0] = 0;
        }
    }
    dev_sync();
}

/// Tile number `tile`; false past the last one. The blocks of rows of an expert are as few as hold
/// them, and equally long up to a multiple of `step`: 260 rows by 256, 16 are 144 and 116. step ==
/// bn: all but the last are full.
DEV_FN bool moei_tile_at(const moek_ggemm_args *a, const int32_t *prefix, int32_t bn, int32_t step,
                         int32_t m_blocks, int64_t tile, moei_tile *out)
{
    if (tile >= (int64_t)prefix[a->w.count] * m_blocks) {
        return false;
    }
    // Of rows, were they outermost. 32 bits hold as many tiles as any memory holds outputs.
    const int32_t block = (int32_t)((uint32_t)tile / (uint32_t)m_blocks);
    int32_t low = 0;
    int32_t high = a->w.count;
    while (high - low > 1) { // prefix[low] <= block < prefix[high]
        const int32_t middle = (low + high) / 2;
        if (prefix[middle] <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int32_t blocks = prefix[low + 1] - prefix[low];
    const int32_t rest = (int32_t)(tile - (int64_t)prefix[low] * m_blocks);
    int64_t first;
    const int64_t rows = moei_group_rows(a, low, &first);
    int32_t each = bn;
    if (step < bn) {
        const uint32_t mean = ((uint32_t)rows + (uint32_t)blocks - 1u) / (uint32_t)blocks;
        const int32_t even = (int32_t)((mean + (uint32_t)step - 1u) / (uint32_t)step) * step;
        each = even < bn ? even : bn;
    }
    out->e = low;
    out->m = (int32_t)((uint32_t)rest / (uint32_t)blocks);
    out->i0 = first + (int64_t)(rest - out->m * blocks) * each;
    out->i1 = first + rows < out->i0 + each ? first + rows : out->i0 + each;
    return true;
}

#endif
