// SPDX-License-Identifier: Apache-2.0
// Rows of x, in the order of the slots that take them: from then on they lie side by side. A warp
// copies a row. Limiting resource: memory bandwidth.
#ifndef MOEI_GPU_GATHER_CUH
#define MOEI_GPU_GATHER_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/elements.cuh"
#include "ops/ggemm_at.h"

// `bytes` bytes by the lanes of a warp; of both ends, `from` may lie anywhere.
DEV_FN void moei_gpu_copy_row(uint8_t *to, const uint8_t *from, int64_t bytes)
{
    int64_t done = 0;
    if (moei_gpu_is_aligned(from, 16) && moei_gpu_is_aligned(to, 16)) {
        for (int64_t i = dev_lane(); i < bytes / 16; i += 32) {
            ((moei_gpu_words4 *)(void *)to)[i] = ((const moei_gpu_words4 *)(const void *)from)[i];
        }
        done = bytes / 16 * 16;
    }
    for (int64_t i = done + dev_lane(); i < bytes; i += 32) {
        to[i] = from[i];
    }
}

DEV_FN void moei_gpu_gather(const moei_gpu_gather_args *g)
{
    const moek_ggemm_args *a = &g->a;
    const int64_t rows = a->offsets[a->w.count];
    for (int64_t i = (int64_t)dev_block() * dev_warps() + dev_warp(); i < rows;
         i += (int64_t)dev_blocks() * dev_warps()) {
        const int64_t row = moei_x_row(a, i);
        moei_gpu_copy_row(g->rows + i * g->pitch, a->x.data + row * a->x.row_stride, g->row_bytes);
        if (g->scale_bytes > 0) {
            const int64_t stride = a->x.scale_row_stride * g->scale_size;
            moei_gpu_copy_row(g->scales + i * g->scale_pitch,
                              (const uint8_t *)a->x.scales + row * stride, g->scale_bytes);
        }
    }
}

#endif
