// SPDX-License-Identifier: Apache-2.0
// What kernels of the matrix units share: which tile a block computes, how a row is fetched, what
// follows a sum.
//
// A block of four waves computes a tile of OUTPUTS outputs x ROWS rows, a wave a quarter of the
// outputs, in squares of 16 x 16 (instructions.h). Tiles that are at work at the same time share
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

/// A tile as what it is, the same on all lanes, so that scalar registers hold it.
DEV_FN moei_tile moei_hip_uniform(const moei_tile &t)
{
    return {(int32_t)moei_first_lane((uint32_t)t.e), (int32_t)moei_first_lane((uint32_t)t.m),
            (int32_t)moei_first_lane((uint32_t)t.i0), (int32_t)moei_first_lane((uint32_t)t.i1)};
}

/// The kernel's arguments again: the compiler takes what is read here for other than what was read
/// before, and does not keep it in registers from then on.
DEV_FN const moei_hip_mfma_args *moei_hip_reload(const moei_hip_mfma_args *g)
{
#if defined(__HIP__)
    typedef const __attribute__((address_space(4))) moei_hip_mfma_args *pointer;
    pointer p = (pointer)__builtin_amdgcn_kernarg_segment_ptr();
    (void)g;
    asm volatile("" : "+s"(p));
    return (const moei_hip_mfma_args *)p;
#else
    return g;
#endif
}

/// First output of a lane's wave, in a tile of so many.
template <int OUTPUTS> DEV_FN int64_t moei_hip_first_output(const moei_tile *t)
{
    return (int64_t)t->m * OUTPUTS + dev_thread() / 64 * (OUTPUTS / 4);
}

/// Row `i` of a tile, of the expert's; past the last one, that one, whose result is dropped.
DEV_FN int64_t moei_hip_row(const moei_tile *t, int64_t i)
{
    return t->i0 + i < t->i1 ? t->i0 + i : t->i1 - 1;
}

/// Up to 16 bytes at any address, 0 from byte `count` on.
DEV_FN moei_u32x4 moei_hip_fetch_bytes(const uint8_t *p, int64_t count)
{
    moei_u32x4 v = {0, 0, 0, 0};
    if (count >= 16) {
        __builtin_memcpy(&v, p, 16);
        return v;
    }
    // Ends of rows: what matters is that this is little code.
    uint64_t low = 0;
    uint64_t high = 0;
    MOEI_GPU_ROLL
    for (int i = (int)count - 1; i >= 0; i--) {
        high = high << 8 | low >> 56;
        low = low << 8 | p[i];
    }
    v[0] = (uint32_t)low;
    v[1] = (uint32_t)(low >> 32);
    v[2] = (uint32_t)high;
    v[3] = (uint32_t)(high >> 32);
    return v;
}

/// Scale of x for row i of expert e at element k: of those that quantisers write.
DEV_FN float moei_hip_x_scale(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t k)
{
    int64_t group;
    const int64_t at = moei_x_scale_at(a, e, i, k, &group);
    const uint8_t *scales = (const uint8_t *)a->x.scales;
    if (!a->x.packed && a->x.scale_dtype == MOE_F32) {
        return ((const float *)a->x.scales)[at];
    }
    const uint8_t code = scales[a->x.packed ? 4 * at + group % 4 : at];
    return a->x.scale_dtype == MOE_E4M3FN ? moei_e4m3fn_to_f32(code) : moei_e8m0_to_f32(code);
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
            v = v * moei_hip_x_scale(a, e, i, 0);
        }
        if (p->scales == MOEI_HIP_SCALES_APART && p->groups > 0 && a->w.block_k == 0) {
            v = v * ((const float *)(const void *)(a->w.values + e * a->w.value_e_stride +
                                                   p->scales_at))[n];
        }
    }
    return moei_gpu_finish(rest, e, i, n, v); // without the two
}

/// Floats of LDS that moei_hip_store takes: as many rows at a time as those of 64 outputs would be.
template <int OUTPUTS, int ROWS> struct moei_hip_sums {
    static constexpr int PITCH = OUTPUTS + 4; // rows on other banks
    static constexpr int PART = ROWS * 64 / OUTPUTS;
    float y[PART][PITCH];
};

/// The sums of a tile to y, by way of LDS, so that neighbouring lanes have neighbouring outputs.
/// sums: of the wave's squares, those of 16 outputs after each other. All threads of the block call
/// it.
template <bool PACKED, int OUTPUTS, int ROWS>
DEV_FN void moei_hip_store(const moei_hip_mfma_args *g, const moei_tile *t,
                           moei_hip_sums<OUTPUTS, ROWS> *lds,
                           const moei_f32x4 (&sums)[OUTPUTS / 64][ROWS / 16])
{
    constexpr int PART = moei_hip_sums<OUTPUTS, ROWS>::PART;
    g = moei_hip_reload(g);
    const moek_ggemm_args *a = &g->a;
    const uint32_t lane = dev_thread() % 64;
    const uint32_t column = dev_thread() % OUTPUTS;
    const int64_t n = (int64_t)t->m * OUTPUTS + column;
    moek_ggemm_args rest = *a;
    if (PACKED) { // moei_hip_finish applies them
        rest.x.scales = nullptr;
        rest.w.scales = nullptr;
    } else {
        dev_assume(a->x.scales == nullptr && a->x.scale2 == nullptr && a->w.scales == nullptr &&
                   a->w.scale2 == nullptr);
    }
    MOEI_GPU_UNROLL
    for (int first = 0; first < ROWS; first += PART) {
        dev_sync(); // all have read what LDS had
        MOEI_GPU_UNROLL
        for (int q = 0; q < OUTPUTS / 64; q++) {
            MOEI_GPU_UNROLL
            for (int p = 0; p < PART / 16; p++) {
                *(moei_f32x4 *)(void *)(lds->y[16 * p + lane % 16] +
                                        dev_thread() / 64 * (OUTPUTS / 4) + 16 * q +
                                        lane / 16 * 4) = sums[q][first / 16 + p];
            }
        }
        dev_sync();
        if (n >= a->w.n) {
            continue;
        }
        MOEI_GPU_ROLL
        for (int i = (int)(dev_thread() / OUTPUTS); i < PART && t->i0 + first + i < t->i1;
             i += MOEI_HIP_MFMA_THREADS / OUTPUTS) {
            const int64_t row = t->i0 + first + i;
            moei_gpu_store(a->y_dtype, moei_y_at(a, t->e, row), n,
                           moei_hip_finish<PACKED>(g, &rest, t->e, row, n, lds->y[i][column]));
        }
    }
}

/// The tiles of a block. TILE has OUTPUTS, ROWS, a type `lds` with an array `prefix` at its end,
/// begin(arguments, lds) and run(arguments, tile, lds).
template <class TILE> DEV_FN void moei_hip_tiles(const moei_hip_mfma_args *g)
{
    typename TILE::lds *lds = (typename TILE::lds *)dev_shared();
    const moek_ggemm_args *a = &g->a;
    const int32_t m_blocks = (int32_t)((a->w.n + TILE::OUTPUTS - 1) / TILE::OUTPUTS);
    TILE::begin(g, lds);
    moei_tiles_begin(a, TILE::ROWS, lds->prefix);
    const int64_t tiles = (int64_t)lds->prefix[a->w.count] * m_blocks;
    int64_t tile;
    for (int64_t i = 0; (tile = moei_hip_next_tile(tiles, i)) >= 0; i++) {
        moei_tile t;
        (void)moei_tile_at(a, lds->prefix, TILE::ROWS, TILE::ROWS, m_blocks, tile, &t);
        t = moei_hip_uniform(t);
        TILE::run(moei_hip_reload(g), &t, lds);
    }
}

/// A kernel whose body sees its arguments as `g`.
#define MOEI_HIP_KERNEL(name, ...)                                                                 \
    MOEI_HIP_GLOBAL(MOEI_HIP_MFMA_THREADS) name(const moei_hip_mfma_args arguments)                \
    {                                                                                              \
        const moei_hip_mfma_args *g = &arguments;                                                  \
        __VA_ARGS__;                                                                               \
    }

#endif
