// SPDX-License-Identifier: Apache-2.0
// glu on the device. Each thread takes eight outputs of a row; reads and writes are of 16 bytes
// where the addresses allow. Limiting resource: memory bandwidth; arithmetic from bf16 to bf16.
#ifndef MOEI_GPU_GLU_CUH
#define MOEI_GPU_GLU_CUH

#include "backends/gpu/activate.cuh"
#include "backends/gpu/tiles.h"

DEV_FN int64_t moei_gpu_glu_rows(const moek_glu_args *a, int32_t b)
{
    int64_t n = a->rows;
    if (a->counts != NULL) {
        n = a->counts[b] < n ? a->counts[b] : n;
    }
    if (a->total != NULL) {
        n = a->total[0] < n ? a->total[0] : n;
    }
    return n;
}

/// Outputs [j, j + n) of a row, n at most a piece.
DEV_FN void moei_gpu_glu_piece(const moek_glu_args *a, const uint8_t *x, uint8_t *y, int64_t j,
                               int n)
{
    enum { N = MOEI_GPU_GLU_PIECE };
    const int64_t x_bytes = moei_gpu_float_bytes(a->x_dtype);
    float g[N];
    float u[N] = {0.0f};
    if (a->step == 1) {
        moei_gpu_load_piece<N>(a->x_dtype, x + (a->gate_offset + j) * x_bytes, n, g);
        if (a->up_offset != a->gate_offset) { // else there is no up
            moei_gpu_load_piece<N>(a->x_dtype, x + (a->up_offset + j) * x_bytes, n, u);
        }
    } else { // pairs
        float pairs[2 * N];
        moei_gpu_load_piece<2 * N>(a->x_dtype, x + 2 * j * x_bytes, 2 * n, pairs);
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            g[i] = a->gate_offset == 0 ? pairs[2 * i] : pairs[2 * i + 1];
            u[i] = a->gate_offset == 0 ? pairs[2 * i + 1] : pairs[2 * i];
        }
    }
    moei_gpu_activate_piece<N>(&a->act, g, u);
    moei_gpu_store_piece<N>(a->y_dtype, y + j * moei_gpu_float_bytes(a->y_dtype), n, g);
}

DEV_FN void moei_gpu_glu(const moek_glu_args *a)
{
    const moei_gpu_tiles tiles =
        moei_gpu_tiles_of(a->rows * a->batches, a->inter, MOEI_GPU_GLU_PIECE, dev_threads(), 1);
    for (int64_t tile = dev_block(); tile < tiles.count; tile += dev_blocks()) {
        int64_t row;
        int64_t j;
        moei_gpu_tile_at(&tiles, tile, MOEI_GPU_GLU_PIECE, dev_thread(), &row, &j);
        const int32_t b = a->batches > 1 ? (int32_t)moei_divide(row, a->rows) : 0;
        const int64_t r = row - b * a->rows;
        if (b < a->batches && r < moei_gpu_glu_rows(a, b) && j < a->inter) {
            const int64_t left = a->inter - j;
            moei_gpu_glu_piece(a, a->x + b * a->x_batch_stride + r * a->x_row_stride,
                               a->y + b * a->y_batch_stride + r * a->y_row_stride, j,
                               left < MOEI_GPU_GLU_PIECE ? (int)left : MOEI_GPU_GLU_PIECE);
        }
    }
}

#endif
