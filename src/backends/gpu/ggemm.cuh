// SPDX-License-Identifier: Apache-2.0
// ggemm on a GPU's plain f32 units: every weight format, every activation format, and the chains of
// the portable CPU kernels, bit for bit. For what the matrix kernels do not take.
//
// A block of 256 threads computes 64 rows x 64 outputs. Slices of SLICE k are decoded to f32 in
// shared memory; a thread runs 4 x 4 chains. Limit: shared-memory reads (8 per 16 multiply-adds).
#ifndef MOEI_GPU_GGEMM_CUH
#define MOEI_GPU_GGEMM_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/dev.h"
#include "backends/gpu/elements.cuh"
#include "backends/gpu/plans.h"
#include "backends/gpu/scales.cuh"
#include "backends/gpu/tiles.cuh"

/// Decodes k0 .. k0 + kc - 1 of 64 outputs and of 64 rows to w[k][n] and x[k][row].
DEV_FN void moei_ggemm_load(const moei_gpu_ggemm_args *g, const moei_tile *t, int64_t n0,
                            int64_t k0, int32_t kc, float *w, float *x)
{
    const moek_ggemm_args *a = &g->a;
    const moei_matrices *m = &a->w;
    for (int32_t i = (int32_t)dev_thread(); i < MOEI_GGEMM_TILE * kc; i += (int32_t)dev_threads()) {
        const bool by_row = m->value_k_stride == 0;
        const int32_t kk = by_row ? i % kc : i / MOEI_GGEMM_TILE;
        const int32_t nn = by_row ? i / kc : i % MOEI_GGEMM_TILE;
        const int64_t n = n0 + nn;
        const int64_t k = k0 + kk;
        float v = 0.0f;
        if (n < m->n) {
            const uint8_t *base = m->values + t->e * m->value_e_stride;
            v = by_row ? moei_gpu_load(g->elem, base + n * m->value_n_stride, k)
                       : moei_gpu_load(g->elem, base + k * m->value_k_stride, n);
            if (g->zero_point >= 0) {
                v = v - (m->zeros != NULL ? (float)moei_zero_point(m, t->e, n, k / m->block_k)
                                          : (float)g->zero_point);
            }
        }
        w[kk * MOEI_GGEMM_PITCH + nn] = v;
    }
    for (int32_t i = (int32_t)dev_thread(); i < MOEI_GGEMM_TILE * kc; i += (int32_t)dev_threads()) {
        const int32_t kk = i % kc;
        const int32_t r = i / kc;
        const int64_t row = t->i0 + r;
        x[kk * MOEI_GGEMM_PITCH + r] =
            row < t->i1 ? moei_gpu_load(a->x.dtype, moei_x_at(a, t->e, row), k0 + kk) : 0.0f;
    }
}

DEV_FN void moei_ggemm_tile(const moei_gpu_ggemm_args *g, const moei_tile *t, int64_t n0, float *w,
                            float *x)
{
    const moek_ggemm_args *a = &g->a;
    const int32_t r0 = (int32_t)dev_thread() / 16 * 4; // rows and outputs of this thread
    const int32_t c0 = (int32_t)dev_thread() % 16 * 4;
    const bool whole = g->chunk == 0;
    const int64_t chunk = whole ? 256 : g->chunk;
    const bool fold_w = g->fold != 0 && a->w.scales != NULL && a->w.block_k > 0;
    const bool fold_x = g->fold != 0 && a->x.scales != NULL && a->x.group > 0;
    float acc[4][4] = {{0.0f}};
    int64_t total[4][4] = {{0}};
    for (int64_t k0 = 0; k0 < a->w.k; k0 += chunk) {
        const int64_t k1 = k0 + chunk < a->w.k ? k0 + chunk : a->w.k;
        float sum[4][4] = {{0.0f}};
        for (int64_t k = k0; k < k1; k += MOEI_GGEMM_SLICE) {
            const int32_t kc = (int32_t)(k1 - k < MOEI_GGEMM_SLICE ? k1 - k : MOEI_GGEMM_SLICE);
            dev_sync();
            moei_ggemm_load(g, t, n0, k, kc, w, x);
            dev_sync();
            for (int32_t kk = 0; kk < kc; kk++) {
                MOEI_GPU_UNROLL
                for (int i = 0; i < 4; i++) {
                    MOEI_GPU_UNROLL
                    for (int j = 0; j < 4; j++) {
                        sum[i][j] = moei_fmaf(x[kk * MOEI_GGEMM_PITCH + r0 + i],
                                              w[kk * MOEI_GGEMM_PITCH + c0 + j], sum[i][j]);
                    }
                }
            }
        }
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            const int64_t row = t->i0 + r0 + i;
            const float s_x = fold_x && row < t->i1 ? moei_gpu_x_scale(a, t->e, row, k0) : 1.0f;
            MOEI_GPU_UNROLL
            for (int j = 0; j < 4; j++) {
                if (whole) {
                    total[i][j] += (int64_t)sum[i][j];
                } else if (g->fold != 0) {
                    const int64_t n = n0 + c0 + j;
                    const float s_w =
                        fold_w && n < a->w.n ? moei_gpu_w_scale(&a->w, t->e, n, k0) : 1.0f;
                    acc[i][j] = moei_fmaf(sum[i][j] * s_x, s_w, acc[i][j]);
                } else {
                    acc[i][j] = acc[i][j] + sum[i][j];
                }
            }
        }
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < 4; i++) {
        const int64_t row = t->i0 + r0 + i;
        MOEI_GPU_UNROLL
        for (int j = 0; j < 4; j++) {
            const int64_t n = n0 + c0 + j;
            if (row < t->i1 && n < a->w.n) {
                const float v = whole ? (float)total[i][j] : acc[i][j];
                moei_gpu_store(a->y_dtype, moei_y_at(a, t->e, row), n,
                               moei_gpu_finish(a, t->e, row, n, v));
            }
        }
    }
}

DEV_FN void moei_gpu_ggemm(const moei_gpu_ggemm_args *g)
{
    float *w = (float *)dev_shared();
    float *x = w + MOEI_GGEMM_SLICE * MOEI_GGEMM_PITCH;
    int32_t *prefix = (int32_t *)(x + MOEI_GGEMM_SLICE * MOEI_GGEMM_PITCH);
    const int32_t m_blocks = (int32_t)((g->a.w.n + MOEI_GGEMM_TILE - 1) / MOEI_GGEMM_TILE);
    moei_tile t;
    moei_tiles_begin(&g->a, MOEI_GGEMM_TILE, prefix);
    for (int64_t tile = dev_block();
         moei_tile_at(&g->a, prefix, MOEI_GGEMM_TILE, MOEI_GGEMM_TILE, m_blocks, tile, &t);
         tile += dev_blocks()) {
        moei_ggemm_tile(g, &t, (int64_t)t.m * MOEI_GGEMM_TILE, w, x);
    }
}

#endif
