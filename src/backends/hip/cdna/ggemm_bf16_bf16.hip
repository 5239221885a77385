// SPDX-License-Identifier: Apache-2.0
// ggemm on the matrix units of CDNA: bf16 weights x bf16 rows, any sizes, strides and addresses.
//
// A block of four waves computes 64 outputs x 64 rows, a wave 32 x 32 of them in 2 x 2 MFMAs of
// 16 x 16. The weights are the operand whose index runs along a lane's registers, so that a lane
// ends with four neighbouring outputs of a row:
//
//   MFMA 16x16xS, lane l      first operand:  output l % 16, k = S / 4 * (l / 16) + 0 .. S / 4 - 1
//                             second operand: row l % 16, the same k
//                             result r:       output 4 * (l / 16) + r of row l % 16
//
// Slices of 64 k of both operands lie in LDS, rows 144 bytes apart; the next slice is fetched to
// registers while this one is multiplied. What lies past the end of a row is 0; for what lies past
// the last row or output, the last one is read, and its results are dropped.
// Each result is one chain of MFMAs over K in ascending order from +0; zeros at its end do not
// change it. So bits depend on K and the row alone: not on the tile, nor on the rows beside it.
// Limit: LDS reads, 4 of 8 or 16 bytes a lane for 4 MFMAs.
#include "backends/gpu/dev.h"
#include "backends/gpu/elements.cuh"
#include "backends/gpu/scales.cuh"
#include "backends/gpu/tiles.cuh"
#include "backends/hip/cdna/ggemm_bf16_bf16.h"

#define TILE  MOEI_HIP_GGEMM_TILE
#define SLICE MOEI_HIP_GGEMM_SLICE
#define PITCH MOEI_HIP_GGEMM_PITCH
#define PIECE 8                                               // elements that a thread fetches
#define PARTS (TILE * SLICE / PIECE / MOEI_HIP_GGEMM_THREADS) // pieces of a thread and operand

typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef uint32_t u32x4 __attribute__((ext_vector_type(4)));

/// The two instructions: elements of k a step, and how a lane holds its part of them.
struct moei_mfma_k16 {
    enum { STEP = 16 };
    typedef short operand __attribute__((ext_vector_type(4)));
    static __attribute__((device)) __attribute__((always_inline)) f32x4 multiply(operand a,
                                                                                 operand b, f32x4 c)
    {
        return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, c, 0, 0, 0);
    }
};

#if defined(__gfx950__)
struct moei_mfma_k32 {
    enum { STEP = 32 };
    typedef __bf16 operand __attribute__((ext_vector_type(8)));
    static __attribute__((device)) __attribute__((always_inline)) f32x4 multiply(operand a,
                                                                                 operand b, f32x4 c)
    {
        return __builtin_amdgcn_mfma_f32_16x16x32_bf16(a, b, c, 0, 0, 0);
    }
};
#endif

/// Elements k .. k + 7 of a row of bf16 at p, 0 past its end. `wide`: it lies at a multiple of 16
/// bytes.
DEV_FN u32x4 moei_hip_fetch(const uint8_t *p, int64_t k, int64_t end, bool wide)
{
    u32x4 v = {0, 0, 0, 0};
    p += 2 * k;
    if (wide && end - k >= PIECE) {
        return *(const u32x4 *)(const void *)p;
    }
    if (k >= end) {
        return v;
    }
    // Ends of rows, and rows at other addresses: what matters is that this is little code.
    const int n = end - k < PIECE ? (int)(end - k) : PIECE;
    uint64_t low = 0;
    uint64_t high = 0;
    MOEI_GPU_ROLL
    for (int i = n - 1; i >= 0; i--) {
        high = high << 16 | low >> 48;
        low = low << 16 | p[2 * i + 1] << 8 | p[2 * i];
    }
    v[0] = (uint32_t)low;
    v[1] = (uint32_t)(low >> 32);
    v[2] = (uint32_t)high;
    v[3] = (uint32_t)(high >> 32);
    return v;
}

template <class Mfma>
DEV_FN void moei_hip_ggemm_tile(const moek_ggemm_args *a, const moei_tile *t, uint16_t *w,
                                uint16_t *x)
{
    const int64_t n0 = (int64_t)t->m * TILE;
    const int64_t k_end = a->w.k;
    const uint32_t thread = dev_thread();
    // What this thread fetches: piece `column` of rows `line`, line + 32 of each operand.
    const uint32_t line = thread / (SLICE / PIECE);
    const uint32_t column = thread % (SLICE / PIECE) * PIECE;
    const bool wide_w =
        ((uintptr_t)a->w.values | (uint64_t)a->w.value_e_stride | (uint64_t)a->w.value_n_stride) %
            16 ==
        0;
    const bool wide_x =
        ((uintptr_t)a->x.data | (uint64_t)a->x.batch_stride | (uint64_t)a->x.row_stride) % 16 == 0;
    const uint8_t *from_w[PARTS];
    const uint8_t *from_x[PARTS];
    u32x4 next_w[PARTS];
    u32x4 next_x[PARTS];
    MOEI_GPU_UNROLL
    for (uint32_t p = 0; p < PARTS; p++) {
        const uint32_t i = line + p * (TILE / PARTS);
        const int64_t n = n0 + i < a->w.n ? n0 + i : a->w.n - 1;
        const int64_t row = t->i0 + i < t->i1 ? t->i0 + i : t->i1 - 1;
        from_w[p] = a->w.values + t->e * a->w.value_e_stride + n * a->w.value_n_stride;
        from_x[p] = moei_x_at(a, t->e, row);
        next_w[p] = moei_hip_fetch(from_w[p], column, k_end, wide_w);
        next_x[p] = moei_hip_fetch(from_x[p], column, k_end, wide_x);
    }
    const uint32_t lane = thread % 64;
    const uint32_t wave = thread / 64;
    const uint32_t out0 = wave % 2 * 32; // outputs and rows of this wave
    const uint32_t row0 = wave / 2 * 32;
    f32x4 sum[2][2] = {};
    for (int64_t k0 = 0; k0 < k_end; k0 += SLICE) {
        dev_sync(); // all have read the slice before
        MOEI_GPU_UNROLL
        for (uint32_t p = 0; p < PARTS; p++) {
            const uint32_t at = (line + p * (TILE / PARTS)) * PITCH + column;
            *(u32x4 *)(void *)(w + at) = next_w[p];
            *(u32x4 *)(void *)(x + at) = next_x[p];
        }
        dev_sync();
        MOEI_GPU_UNROLL
        for (uint32_t p = 0; p < PARTS; p++) {
            next_w[p] = moei_hip_fetch(from_w[p], k0 + SLICE + column, k_end, wide_w);
            next_x[p] = moei_hip_fetch(from_x[p], k0 + SLICE + column, k_end, wide_x);
        }
        MOEI_GPU_UNROLL
        for (uint32_t k = 0; k < SLICE; k += Mfma::STEP) {
            typename Mfma::operand wv[2];
            typename Mfma::operand xv[2];
            const uint32_t at = lane % 16 * PITCH + k + lane / 16 * (Mfma::STEP / 4);
            MOEI_GPU_UNROLL
            for (uint32_t i = 0; i < 2; i++) {
                wv[i] = *(const typename Mfma::operand *)(void *)(w + (out0 + 16 * i) * PITCH + at);
                xv[i] = *(const typename Mfma::operand *)(void *)(x + (row0 + 16 * i) * PITCH + at);
            }
            MOEI_GPU_UNROLL
            for (uint32_t i = 0; i < 2; i++) {
                MOEI_GPU_UNROLL
                for (uint32_t j = 0; j < 2; j++) {
                    sum[i][j] = Mfma::multiply(wv[i], xv[j], sum[i][j]);
                }
            }
        }
    }
    // Floats on both sides: what follows the sum is bias and weight.
    dev_assume(a->x.scales == nullptr && a->x.scale2 == nullptr && a->w.scales == nullptr &&
               a->w.scale2 == nullptr);
    MOEI_GPU_UNROLL
    for (uint32_t j = 0; j < 2; j++) {
        const int64_t row = t->i0 + row0 + 16 * j + lane % 16;
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < 2; i++) {
            const int64_t n = n0 + out0 + 16 * i + lane / 16 * 4;
            if (row >= t->i1 || n >= a->w.n) {
                continue;
            }
            float v[4];
            MOEI_GPU_UNROLL
            for (int r = 0; r < 4; r++) {
                v[r] = n + r < a->w.n ? moei_gpu_finish(a, t->e, row, n + r, sum[i][j][r]) : 0.0f;
            }
            const int left = a->w.n - n < 4 ? (int)(a->w.n - n) : 4;
            uint8_t *y = moei_y_at(a, t->e, row) + n * moei_gpu_float_bytes(a->y_dtype);
            moei_gpu_store_piece<4>(a->y_dtype, y, left, v);
        }
    }
}

template <class Mfma> DEV_FN void moei_hip_ggemm(const moek_ggemm_args *a)
{
    uint16_t *w = (uint16_t *)dev_shared();
    uint16_t *x = w + TILE * PITCH;
    int32_t *prefix = (int32_t *)(void *)(x + TILE * PITCH);
    const int32_t m_blocks = (int32_t)((a->w.n + TILE - 1) / TILE);
    moei_tile t;
    moei_tiles_begin(a, TILE, prefix);
    for (int64_t tile = dev_block(); moei_tile_at(a, prefix, TILE, TILE, m_blocks, tile, &t);
         tile += dev_blocks()) {
        moei_hip_ggemm_tile<Mfma>(a, &t, w, x);
    }
}

#define KERNEL(name, mfma)                                                                         \
    extern "C" __attribute__((global)) __attribute__((                                             \
        amdgpu_flat_work_group_size(MOEI_HIP_GGEMM_THREADS, MOEI_HIP_GGEMM_THREADS))) void         \
    name(const moei_hip_mfma_args g)                                                               \
    {                                                                                              \
        moei_hip_ggemm<mfma>(&g.a);                                                                \
    }

KERNEL(moek_ggemm_bf16_any_bf16__cdna, moei_mfma_k16)
#if defined(__gfx950__)
KERNEL(moek_ggemm_bf16_any_bf16__cdna4, moei_mfma_k32)
#endif
