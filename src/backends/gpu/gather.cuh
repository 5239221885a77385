// SPDX-License-Identifier: Apache-2.0
// Rows of x, in the order of the slots that take them: from then on they lie side by side. A warp
// copies a row. Limiting resource: memory bandwidth.
#ifndef MOEI_GPU_GATHER_CUH
#define MOEI_GPU_GATHER_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/elements.cuh"
#include "ops/ggemm_at.h"

// `bytes` bytes by the lanes of a warp; of both ends, `from` may lie anywhere.
DEV_FN void moei_gpu_copy_row(uint8_t *to, const uint8_t *from, int32_t bytes)
{
    int32_t done = 0;
    if (moei_gpu_is_aligned(from, 16) && moei_gpu_is_aligned(to, 16)) {
        MOEI_GPU_ROLL
        for (int32_t i = (int32_t)dev_lane(); i < bytes / 16; i += 32) {
            ((moei_gpu_words4 *)(void *)to)[i] = ((const moei_gpu_words4 *)(const void *)from)[i];
        }
        done = bytes / 16 * 16;
    }
    MOEI_GPU_ROLL
    for (int32_t i = done + (int32_t)dev_lane(); i < bytes; i += 32) {
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
        MOEI_GPU_ROLL
        for (int32_t j = (int32_t)dev_lane(); j < g->scale_count; j += 32) {
            const int64_t from = row * a->x.scale_row_stride + j * a->x.scale_k_stride;
            const uint8_t *scale = (const uint8_t *)a->x.scales + from * g->scale_size;
            uint8_t *to = g->scales + (j * a->rows + i) * g->scale_size;
            if (g->scale_size == 4) {
                moei_gpu_write_u32(to, moei_gpu_read_u32(scale));
            } else if (g->scale_size == 2) {
                moei_gpu_write_u16(to, moei_gpu_read_u16(scale));
            } else {
                to[0] = scale[0];
            }
        }
    }
}

#endif
