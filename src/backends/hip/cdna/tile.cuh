// SPDX-License-Identifier: Apache-2.0
// What kernels of the matrix units share: which tile a block computes, how a row is fetched, what
// follows a sum.
//
// A block of four waves computes 64 outputs x ROWS rows, a wave 16 outputs of them in ROWS / 16
// results of matrix instructions (instructions.h). Tiles that are at work at the same time share
// weights, and on these devices an L2: workgroups go to the dies in turn, so a die takes a run of
// tiles (moei_hip_next_tile).
#ifndef MOEI_HIP_TILE_CUH
#define MOEI_HIP_TILE_CUH

#include "backends/gpu/scales.cuh"
#include "backends/gpu/tiles.cuh"
#include "backends/hip/cdna/instructions.h"
#include "backends/hip/mfma.h"

/// The tile that a block takes in its round `i`; -1 past the last.
DEV_FN int64_t moei_hip_next_tile(int64_t tiles, int64_t i)
{
    const int64_t each = (tiles + MOEI_HIP_DIES - 1) / MOEI_HIP_DIES; // of a die
    const int64_t die = dev_block() % MOEI_HIP_DIES;
    const int64_t at = dev_block() / MOEI_HIP_DIES + i * (dev_blocks() / MOEI_HIP_DIES);
    const int64_t tile = die * each + at;
    return at < each && tile < tiles ? tile : -1;
}

/// First output of a lane's wave.
DEV_FN int64_t moei_hip_first_output(const moei_tile *t)
{
    return (int64_t)t->m * MOEI_HIP_MFMA_OUTPUTS + dev_thread() / 64 * 16;
}

/// Row `i` of a tile, of the expert's; past the last one, that one, whose result is dropped.
DEV_FN int64_t moei_hip_row(const moei_tile *t, int64_t i)
{
    return t->i0 + i < t->i1 ? t->i0 + i : t->i1 - 1;
}

/// Whether every row of x lies at a multiple of 16 bytes.
DEV_FN bool moei_hip_is_wide(const moei_operand *x)
{
    return ((uintptr_t)x->data | (uint64_t)x->batch_stride | (uint64_t)x->row_stride) % 16 == 0;
}

/// 16 bytes of a row at p from element `at` on, of BYTES bytes each; 0 from `end` on. `wide`: they
/// lie at a multiple of 16 bytes.
template <int BYTES>
DEV_FN moei_u32x4 moei_hip_fetch(const uint8_t *p, int64_t at, int64_t end, bool wide)
{
    constexpr int COUNT = 16 / BYTES;
    moei_u32x4 v = {0, 0, 0, 0};
    p += BYTES * at;
    if (wide && end - at >= COUNT) {
        return *(const moei_u32x4 *)(const void *)p;
    }
    if (at >= end) {
        return v;
    }
    // Ends of rows, and rows at other addresses: what matters is that this is little code.
    const int n = end - at < COUNT ? (int)(end - at) : COUNT;
    uint64_t low = 0;
    uint64_t high = 0;
    MOEI_GPU_ROLL
    for (int i = n - 1; i >= 0; i--) {
        high = high << 8 * BYTES | low >> (64 - 8 * BYTES);
        low = low << 8 * BYTES | (BYTES == 2 ? (uint32_t)p[2 * i + 1] << 8 : 0u) | p[BYTES * i];
    }
    v[0] = (uint32_t)low;
    v[1] = (uint32_t)(low >> 32);
    v[2] = (uint32_t)high;
    v[3] = (uint32_t)(high >> 32);
    return v;
}

/// The scale of row `i` of a tile for 32 k from k on.
DEV_FN float moei_hip_x_scale(const moei_hip_mfma_args *g, const moei_tile *t, int64_t i, int64_t k)
{
    return k < g->a.w.k ? moei_gpu_x_scale(&g->a, t->e, moei_hip_row(t, i), k) : 0.0f;
}

/// Scales of packed weights that lie apart and change along k, f32 [groups][outputs]; else NULL.
DEV_FN const float *moei_hip_w_scales(const moei_hip_mfma_args *g, int32_t e)
{
    const moek_ggemm_args *a = &g->a;
    return g->packed.scales == MOEI_HIP_SCALES_APART && g->packed.groups > 0 && a->w.block_k > 0
               ? (const float *)(const void *)(a->w.values + e * a->w.value_e_stride +
                                               g->packed.scales_at)
               : nullptr;
}

/// From a sum to y before its rounding, in the order of ops/ggemm.h.
template <bool PACKED>
DEV_FN float moei_hip_finish(const moei_hip_mfma_args *g, const moek_ggemm_args *rest, int32_t e,
                             int64_t i, int64_t n, float v)
{
    const moek_ggemm_args *a = &g->a;
    if (PACKED) {
        const moei_hip_packed *p = &g->packed;
        if (a->x.scales != nullptr && a->x.group == 0) {
            v = v * moei_gpu_x_scale(a, e, i, 0);
        }
        if (p->scales == MOEI_HIP_SCALES_APART && p->groups > 0 && a->w.block_k == 0) {
            v = v * ((const float *)(const void *)(a->w.values + e * a->w.value_e_stride +
                                                   p->scales_at))[n];
        }
    }
    return moei_gpu_finish(rest, e, i, n, v); // without the two
}

/// Sums of a tile to y.
template <bool PACKED, int COLUMNS>
DEV_FN void moei_hip_store(const moei_hip_mfma_args *g, const moei_tile *t,
                           const moei_f32x4 (&sums)[COLUMNS])
{
    const moek_ggemm_args *a = &g->a;
    const uint32_t lane = dev_thread() % 64;
    const int64_t n = moei_hip_first_output(t) + lane / 16 * 4;
    moek_ggemm_args rest = *a;
    if (PACKED) { // moei_hip_finish applies them
        rest.x.scales = nullptr;
        rest.w.scales = nullptr;
    } else {
        dev_assume(a->x.scales == nullptr && a->x.scale2 == nullptr && a->w.scales == nullptr &&
                   a->w.scale2 == nullptr);
    }
    MOEI_GPU_UNROLL
    for (int p = 0; p < COLUMNS; p++) {
        const int64_t row = t->i0 + 16 * p + lane % 16;
        if (row >= t->i1 || n >= a->w.n) {
            continue;
        }
        float v[4];
        MOEI_GPU_UNROLL
        for (int r = 0; r < 4; r++) {
            v[r] = n + r < a->w.n ? moei_hip_finish<PACKED>(g, &rest, t->e, row, n + r, sums[p][r])
                                  : 0.0f;
        }
        const int left = a->w.n - n < 4 ? (int)(a->w.n - n) : 4;
        uint8_t *y = moei_y_at(a, t->e, row) + n * moei_gpu_float_bytes(a->y_dtype);
        moei_gpu_store_piece<4>(a->y_dtype, y, left, v);
    }
}

/// The tiles of a block. TILE has ROWS, a type `lds` with an array `prefix` at its end, and
/// run(arguments, tile, lds).
template <class TILE> DEV_FN void moei_hip_tiles(const moei_hip_mfma_args *g)
{
    typename TILE::lds *lds = (typename TILE::lds *)dev_shared();
    const moek_ggemm_args *a = &g->a;
    const int32_t m_blocks =
        (int32_t)((a->w.n + MOEI_HIP_MFMA_OUTPUTS - 1) / MOEI_HIP_MFMA_OUTPUTS);
    moei_tiles_begin(a, TILE::ROWS, lds->prefix);
    const int64_t tiles = (int64_t)lds->prefix[a->w.count] * m_blocks;
    int64_t tile;
    for (int64_t i = 0; (tile = moei_hip_next_tile(tiles, i)) >= 0; i++) {
        moei_tile t;
        (void)moei_tile_at(a, lds->prefix, TILE::ROWS, TILE::ROWS, m_blocks, tile, &t);
        TILE::run(g, &t, lds);
    }
}

/// A kernel whose body sees its arguments as `g`.
#define MOEI_HIP_KERNEL(name, ...)                                                                 \
    extern "C" __attribute__((global)) __attribute__((                                             \
        amdgpu_flat_work_group_size(MOEI_HIP_MFMA_THREADS, MOEI_HIP_MFMA_THREADS))) void           \
    name(const moei_hip_mfma_args arguments)                                                       \
    {                                                                                              \
        const moei_hip_mfma_args *g = &arguments;                                                  \
        __VA_ARGS__;                                                                               \
    }

#endif
