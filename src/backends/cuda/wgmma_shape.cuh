// SPDX-License-Identifier: Apache-2.0
// What the parts of the matrix kernels (ggemm_wgmma.cuh) share: what a kernel is when it is
// compiled, the rings and notes in shared memory, and which tiles a pipe has.
#ifndef MOEI_CUDA_WGMMA_SHAPE_CUH
#define MOEI_CUDA_WGMMA_SHAPE_CUH

#include <type_traits>

#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.h"
#include "backends/cuda/operand.h"
#include "backends/gpu/scales.cuh"
#include "backends/gpu/tiles.cuh"

#define STAGE_K    128  // bytes of k of a row in a block of k: one swizzle row
#define TURN_BYTES 1024 // of a warp: 32 rows of y, 16 outputs each
#define CHUNK      MOEI_MMA_CHUNK

// Kinds of weights: types of hopper_mma, and, from PACKED on, those of operand.h.
enum { KIND_BF16 = HOPPER_BF16, KIND_F16 = HOPPER_F16, KIND_E4M3 = HOPPER_E4M3, KIND_PACKED };

// Beside packed weights: x of FP8 codes, which become bf16 on their way to shared memory.
enum { KIND_CODES = 64 };

// Where scales of codes change along k, they are multiplied in, times this: no bf16 is subnormal.
// Sums are as much too large.
#define CODES_UP 1024.0f

// What a kernel is when it is compiled. DEPTH: blocks of k in a stage. CLUSTER: blocks that
// multiply the same rows of x, each by weights of its own, and bring each other a share of the
// rows. The M operand of a math warpgroup is 64 outputs, or, where BM_ outputs are given, 64 rows
// of x.
template <int KIND_, int BN_, int PIPES_, int GROUPS_, int DEPTH_, int CLUSTER_, int BM_ = 0>
struct shape {
    static constexpr int KIND = KIND_ % KIND_CODES;
    static constexpr bool CODES = KIND_ >= KIND_CODES;
    static constexpr int BN = BN_;
    static constexpr int PIPES = PIPES_;
    static constexpr int GROUPS = GROUPS_; // math warpgroups of a pipe
    static constexpr int DEPTH = DEPTH_;
    static constexpr int CLUSTER = CLUSTER_;
    static constexpr bool PACKED = KIND >= KIND_PACKED;
    static constexpr moei_operand_kind OPERAND = (moei_operand_kind)(KIND - KIND_PACKED);
    static constexpr int BLOCK = PACKED ? MOEI_OPERAND_BYTES(OPERAND) : 0; // bytes, of 64 outputs
    static constexpr bool APART = PACKED && MOEI_OPERAND_APART(OPERAND); // scales after the blocks
    static constexpr bool SCALED = KIND == KIND_E4M3;                    // scales of x, too
    static constexpr bool ROW_SCALES = SCALED || CODES;       // a row of x may have one for all k
    static constexpr int X_BYTES = KIND == KIND_E4M3 ? 1 : 2; // of an element of x in a stage
    static constexpr bool SYNC = PACKED && PIPES > 1; // products of warps, not of warpgroups
    static constexpr bool FEW = BN <= MOEI_MMA_FEW;
    static constexpr bool SHARES = SYNC && FEW; // pipes can share a tile: moei_mma_args.share
    static constexpr bool ROWS_M = BM_ > 0;
    static constexpr int BM = ROWS_M ? BM_ : 64 * GROUPS;
    static constexpr int SUMS = ROWS_M ? BM / 2 : BN / 2; // of a math thread
    // Whether tiles of fewer rows are multiplied by shorter instructions (for_rows), and experts
    // cut into tiles of about the same length, a multiple of STEP.
    static constexpr bool TRIMS =
        X_BYTES == 2 && (PACKED ? BN == 128 || BN == 144 : BN >= 192); // 160: too few registers
    static constexpr int STEP = TRIMS ? MOEI_MMA_STEP : BN;
    // Rows that the copy engine brings by one request, of those that lie side by side. (Packed
    // weights with short boxes were slower.)
    static constexpr int BOX = TRIMS && !PACKED ? 32 : BN / CLUSTER;
    static_assert(BN % (BOX * CLUSTER) == 0, "whole boxes fill a stage");
    static constexpr int TEAM = 128 * GROUPS; // math threads of a pipe
    static constexpr int MATH = PIPES * TEAM;
    static constexpr int THREADS = MATH + 128;
    static constexpr int WEIGHTS = // bytes in a stage, up to where rows of x begin
        ((PACKED ? GROUPS * BLOCK : BM * STAGE_K) * DEPTH + 1023) / 1024 * 1024;
    static constexpr int STAGE = WEIGHTS + DEPTH * BN * STAGE_K;
    // Whether a warp beside the producers writes the notes of all pipes; where none is left, they
    // do.
    static constexpr bool NOTES_APART = PIPES < 4;
    // Warps that bring scales as f32: of the rows of x and, ROWS_M, then of every eight outputs. 0:
    // the producer brings x's as they are. And bytes that they have beside a stage.
    static constexpr int SCALE_WARPS = SCALED && PIPES == 1 ? 2 : 0;
    static constexpr int SCALES = SCALED ? (BN + (ROWS_M ? BM / 8 : 0)) * 4 : 0;
    // Warps that make bf16 of codes of x. 0: the producer does it.
    static constexpr int CODE_WARPS = CODES && PIPES == 1 ? 2 : 0;
    static_assert(!CODES || PACKED, "only packed weights are multiplied by decoded codes");
    // Registers of a thread: what the launch allots, 168, 128 or 96 for two, three or four math
    // warpgroups beside the producers', of which those give some away. Others take what they get.
    static constexpr int TEAMS = MATH / 128;
    static constexpr bool REGISTERS = PIPES == 1 || (TEAMS == 4 && !CODES);
    static constexpr int ALLOTTED = TEAMS == 2 ? 168 : TEAMS == 3 ? 128 : 96;
    static constexpr int PRODUCER_REGISTERS = CODES        ? (TEAMS == 3 ? 80 : 96)
                                              : TEAMS == 4 ? (SCALED ? 80 : 48)
                                                           : 56;
    // Whether what outputs end with is asked for after a tile's products: registers do not suffice.
    static constexpr bool TERMS_LATER =
        (APART && PIPES > 1) || (SCALED && PIPES == 1 && TEAMS == 3 && BN > 64);
    static constexpr int MATH_REGISTERS =
        ((TEAMS + 1) * ALLOTTED - PRODUCER_REGISTERS) / TEAMS / 8 * 8;
};

// Random waits of a role, to test that every role waits for what it needs.
static __device__ __forceinline__ void stagger(uint32_t delay, uint32_t step)
{
    if (delay != 0) {
        uint32_t h =
            (delay + step) * 0x9E3779B1u ^ (blockIdx.x * 16 + threadIdx.x / 32) * 0x85EBCA6Bu;
        h = (h ^ h >> 15) * 0x2C1B3C6Du;
        h ^= h >> 13;
        if (h % 8 == 0) {
            __nanosleep(h >> 20);
        }
    }
}

// What the math warps need of a tile, as another warp leaves it for them: memory is far, and they
// have nothing else to do while they wait for it.
template <class S> struct tile_note {
    static constexpr int ROWS = (S::BN + 31) / 32 * 32; // as many as are read
    moei_tile tile;                                     // e -1: there is none, nor any after it
    int32_t row[ROWS];                                  // of the output
    float weight[ROWS];                                 // of each row; 1: none
    float scale[S::ROW_SCALES ? ROWS : 2];              // of each row of x, where it has one
};

// The ring of a pipe, as addresses of shared memory.
struct ring_of {
    uint32_t stages;
    uint32_t scales; // of rows of x, BN a stage
    uint32_t full;   // barriers, one a stage
    uint32_t empty;
    uint32_t empty_at;   // those of the block of the cluster that this lane tells
    int emptiers;        // lanes that tell that a stage is empty
    uint32_t notes;      // of two tiles
    uint32_t notes_full; // barriers, one a note
    uint32_t notes_empty;
};

// A scale of the weights from element `at` on at block kb of k; -1: 1 for all k.
static __device__ __forceinline__ float load_w_scale(const moei_matrices *w, int64_t at, int kb)
{
    const int64_t i = at + kb * w->scale_k_stride;
    return at < 0                      ? 1.0f
           : w->scale_dtype == MOE_F32 ? ((const float *)w->scales)[i]
                                       : moei_gpu_load(w->scale_dtype, w->scales, i);
}

// Blocks of 64 packed outputs that a tile has.
template <class S>
static __device__ __forceinline__ int packed_blocks(const moei_mma_args *g, const moei_tile *t)
{
    const int64_t left = moei_operand_blocks_n(&g->a.w) - S::GROUPS * (int64_t)t->m;
    return left >= S::GROUPS ? S::GROUPS : left > 0 ? (int)left : 0;
}

// Scales that lie after the blocks of an expert: [groups of k][packed outputs].
template <class S>
static __device__ __forceinline__ const float *packed_scales(const moei_matrices *w, int32_t e)
{
    return (const float *)(w->values + e * w->value_e_stride +
                           moei_operand_scales_at(S::OPERAND, w));
}

// Whether the blocks of a cluster bring each other rows of x.
template <class S> static __device__ __forceinline__ bool shares_x(const moei_mma_args *g)
{
    return S::CLUSTER > 1 && g->x_engine == MOEI_MMA_BOX;
}

// Whether a row of x has one scale for all of k.
template <class S> static __device__ __forceinline__ bool scales_rows_of_x(const moei_mma_args *g)
{
    return S::ROW_SCALES && g->a.x.scales != NULL && g->a.x.group == 0;
}

// Which chunks of a tile a pipe has, where those of a team share it: first, first + step and so on.
// The first of these pipes adds their sums in order, and finishes.
typedef struct chunk_share {
    int first, step;
    int team;      // of pipes
    uint32_t sums; // in shared memory: [chunk][four of a thread][math thread]
} chunk_share;

template <class S>
static __device__ __forceinline__ chunk_share share_of(const moei_mma_args *g, int pipe,
                                                       uint32_t sums)
{
    if constexpr (S::SHARES) {
        const int team = (int)((uint32_t)(pipe * g->teams) / S::PIPES);
        return {pipe - team * g->share, g->share, team, sums + team * g->share_bytes};
    }
    return {0, 1, pipe, 0};
}

// The block of k where the stage begins that follows the one at kb.
template <class S>
static __device__ __forceinline__ int next_stage(const chunk_share &share, int kb)
{
    const int next = kb + S::DEPTH;
    return S::SHARES && share.step > 1 && next % CHUNK == 0 ? next + (share.step - 1) * CHUNK
                                                            : next;
}

// Tile number i of a pipe; false past its last one. Blocks take neighbouring tiles, their first
// pipes before the others: few tiles spread over all multiprocessors. Blocks of a cluster take
// neighbouring outputs of the same rows; where there are none left, the block only brings its rows.
template <class S>
static __device__ __forceinline__ bool tile_of(const moei_mma_args *g, uint32_t prefix, int pipe,
                                               uint32_t i, moei_tile *t)
{
    const int32_t *before = hopper_pointer<const int32_t>(prefix);
    if constexpr (S::CLUSTER == 1) {
        const uint32_t teams = S::SHARES ? (uint32_t)g->teams : S::PIPES;
        const uint32_t team = (uint32_t)share_of<S>(g, pipe, 0).team;
        const int64_t tile = blockIdx.x + (int64_t)gridDim.x * (i * teams + team);
        return moei_tile_at(&g->a, before, S::BN, S::STEP, g->m_blocks, tile, t);
    } else {
        static_assert(S::PIPES == 1, "pipes do not share rows");
        const int64_t tile = blockIdx.x / S::CLUSTER + (int64_t)(gridDim.x / S::CLUSTER) * i;
        const int32_t m_clusters = (g->m_blocks + S::CLUSTER - 1) / S::CLUSTER;
        const bool there = moei_tile_at(&g->a, before, S::BN, S::STEP, m_clusters, tile, t);
        t->m = t->m * S::CLUSTER + (int32_t)hopper_cluster_rank();
        return there;
    }
}

#endif
