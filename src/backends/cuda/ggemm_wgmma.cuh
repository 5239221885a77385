// SPDX-License-Identifier: Apache-2.0
// ggemm on Hopper's warpgroup matrix units. One file per kind of weights includes this one and
// lists the kernels that it has:
//   bf16 and f16, as the checkpoint has them: one chain over K;
//   e4m3 x e4m3, as the checkpoint has them: a chain per 128 k, folded by one FMA with the scales;
//   4 and 8 bits x bf16, packed (operand.h) and decoded to bf16 in registers, which is exact
//   (decode.cuh): a chain per 576 k, chunk sums added in ascending order, or, where scales change
//   along k, a chain per group, folded by one FMA with the group's scale;
//   4 and 8 bits x e4m3: the same, since codes of x become bf16 on their way to shared memory, and
//   their scales along k, powers of two, with them; exactly.
// The bits of a class are the same whatever the tile.
//
// Weights are the M operand, rows of x are N: one instruction shape serves every number of rows.
// FP8 and many rows take them the other way round, since scales then need less of shared memory's
// time. Packed weights and few rows are multiplied by instructions of a warp: for few rows one of a
// warpgroup takes as long as for many, and its decoded operand waits for it, fence by fence. The
// bits are the same.
//
// A block is persistent. It has one or more pipes, each of which walks tiles of BM outputs x BN
// rows (gpu/tiles.cuh) by itself:
//   its producer warp fills a ring of stages by the copy engine: weights, and rows of x from
//   wherever they lie;
//   its math warpgroups multiply, 64 outputs (or rows) each, then finish in registers.
//
// Beside them, a warp writes notes of what tiles end with (rows of the output, row weights), and
// where rows are many, two bring scales of FP8, or FP8 codes of x that become bf16.
//
// Many rows: one pipe of two math warpgroups, which share the rows, or of three where registers
// suffice for their sums. Few rows: three or four pipes of one math warpgroup, so that an expert's
// outputs spread over the device and what one pipe waits for the others hide; packed weights and up
// to 32 rows: two pipes of two, as L2 would not bring the rows for each 64 outputs. Where tiles are
// fewer than pipes, neighbouring pipes share one, chunk by chunk of packed weights.
//
// With SiLU or gpt-oss's SwiGLU, the outputs of a tile are gates and ups in alternating eights (the
// copy engine brings them in this order, or they are packed so): a thread holds a gate and its up.
#ifndef MOEI_CUDA_GGEMM_WGMMA_CUH
#define MOEI_CUDA_GGEMM_WGMMA_CUH

#include "backends/cuda/wgmma_finish_rows.cuh"
#include "backends/cuda/wgmma_multiply.cuh"
#include "backends/cuda/wgmma_produce.cuh"

// The products of a tile, by the kind of its weights.
template <class S>
static __device__ __forceinline__ void
multiply_tile(const moei_mma_args *g, const moei_tile *t, int warp, int blocks_k,
              const chunk_share &share, ring_of ring, ring_place *r, float (&sums)[S::SUMS])
{
    const int rows = (int)(t->i1 - t->i0);
    if constexpr (S::PACKED) {
        const bool plain = is_plain<S>(&g->a.w, t->e);
        if (!S::APART || g->a.w.block_k == 0) {
            if constexpr (S::SYNC) {
                multiply_chunks<S>(g, plain, warp / 4, blocks_k, share, ring, r, sums);
            } else if (plain) {
                for_rows<S, S::BN>(rows, [&](auto n) {
                    multiply_ahead<S, n.value, true>(g, warp / 4, blocks_k, ring, r,
                                                     sums_of<n.value>(sums));
                });
            } else {
                multiply_ahead<S, S::BN, false>(g, warp / 4, blocks_k, ring, r, sums);
            }
        } else if (S::SYNC && plain) { // a loop of its own: no branch at each step
            multiply_groups<S>(g, t, true, warp, blocks_k, ring, r, sums);
        } else {
            multiply_groups<S>(g, t, plain, warp, blocks_k, ring, r, sums);
        }
    } else if constexpr (S::ROWS_M) {
        multiply_rows_first<S>(g, warp, rows, blocks_k, ring, r, sums);
    } else if constexpr (S::KIND == KIND_E4M3) {
        if (S::SCALE_WARPS == 0 && g->scale_copies && g->a.x.scale_dtype == MOE_E8M0) {
            multiply_folds<S, true>(g, t, warp, blocks_k, ring, r, sums);
        } else {
            multiply_folds<S, false>(g, t, warp, blocks_k, ring, r, sums);
        }
    } else {
        for_rows<S, S::BN>(rows, [&](auto n) {
            multiply_chain<S, n.value>(g, warp / 4, blocks_k, ring, r, sums_of<n.value>(sums));
        });
    }
}

template <class S>
static __device__ __forceinline__ void multiply(const moei_mma_args *g, uint32_t prefix, int pipe,
                                                const chunk_share &share, int warp, ring_of ring,
                                                uint32_t turn)
{
    const int blocks_k = (int)((S::X_BYTES * g->a.w.k + STAGE_K - 1) / STAGE_K);
    if constexpr (S::PACKED) {
        ring.full = hopper_fixed(ring.full);
        ring.empty = hopper_fixed(ring.empty);
    }
    ring_place r = {0, 0, -1};
    float sums[S::SUMS];
    for (uint32_t i = 0;; i++) {
        const tile_note<S> *note = hopper_pointer<const tile_note<S>>(ring.notes) + i % 2;
        hopper_barrier_wait(ring.notes_full + 8 * (i % 2), i / 2 % 2);
        const moei_tile t = note->tile;
        if (t.e < 0) {
            if constexpr (S::FEW) {
                if (g->after != MOEI_MMA_NOTHING) {
                    follow_tiles<S>(g, prefix, share.first == 0 ? i : 0);
                }
            }
            return;
        }
        tile_terms terms;
        if constexpr (!S::TERMS_LATER && !S::ROWS_M) {
            terms = ask_terms<S>(g, &t, warp);
        }
        multiply_tile<S>(g, &t, warp, blocks_k, share, ring, &r, sums);
        if constexpr (S::TERMS_LATER) {
            terms = ask_terms<S>(g, &t, warp);
        }
        stagger(g->delay, 0x10000);
        if constexpr (S::ROWS_M) {
            finish_rows<S>(g, note, warp, sums, turn);
        } else if (share.first == 0) {
            finish_tile<S>(g, note, terms, warp, sums, turn);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            hopper_barrier_arrive(ring.notes_empty + 8 * (i % 2));
        }
    }
}

template <class S>
static __global__ void __launch_bounds__(S::THREADS, 1)
    ggemm_wgmma(const __grid_constant__ moei_mma_args g)
{
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t full[S::PIPES][MOEI_MMA_MAX_STAGES];
    __shared__ uint64_t empty[S::PIPES][MOEI_MMA_MAX_STAGES];
    __shared__ uint64_t notes_full[S::PIPES][2];
    __shared__ uint64_t notes_empty[S::PIPES][2];
    __shared__ tile_note<S> notes[S::PIPES][2];
    const uint32_t rings = (hopper_smem(shared) + 1023) / 1024 * 1024;
    const uint32_t turns = rings + S::PIPES * g.stages * S::STAGE;
    const uint32_t scales = turns + S::MATH / 32 * TURN_BYTES;
    const uint32_t prefix = scales + S::PIPES * g.stages * S::SCALES;
    const uint32_t sums = (prefix + (g.a.w.count + 1) * 4 + 15) / 16 * 16;
    const int thread = (int)threadIdx.x;
    if (thread < S::PIPES * g.stages) {
        const int pipe = thread / g.stages;
        const int stage = thread % g.stages;
        hopper_barrier_init(hopper_smem(&full[pipe][stage]), stage_arrivals<S>(&g));
        hopper_barrier_init(hopper_smem(&empty[pipe][stage]),
                            S::TEAM / 32 * (shares_x<S>(&g) ? S::CLUSTER : 1));
        if (stage < 2) {
            hopper_barrier_init(hopper_smem(&notes_full[pipe][stage]), 1);
            hopper_barrier_init(hopper_smem(&notes_empty[pipe][stage]), S::TEAM / 32);
        }
        hopper_barrier_init_done();
    }
    if (thread == 0) {
        if (!S::CODES) {
            hopper_tensor_prefetch(&g.x);
        }
        if (!S::PACKED) {
            hopper_tensor_prefetch(&g.weights);
        }
    }
    const int ones = S::SCALE_WARPS > 0 ? 0 : S::PIPES * g.stages * (S::SCALES / 4);
    for (int i = thread; i < ones; i += S::THREADS) {
        hopper_pointer<float>(scales)[i] = 1.0f; // stays where scales of x do not change along k
    }
    if (!g.early) {
        hopper_grid_wait();
        hopper_grid_launch();
    }
    moei_tiles_begin(&g.a, S::BN, hopper_pointer<int32_t>(prefix)); // ends in a barrier
    if constexpr (S::CLUSTER > 1) {
        hopper_cluster_sync(); // nothing comes before barriers are there
    }
    const int warp =
        __shfl_sync(~0u, thread / 32, 0); // the same in all lanes, as the compiler sees
    const int role = warp - S::MATH / 32; // of those that do not multiply
    const int pipe = S::PIPES == 1 || role >= S::PIPES ? 0
                     : role >= 0                       ? role
                                                       : warp / (S::TEAM / 32);
    ring_of ring = {rings + pipe * g.stages * S::STAGE,
                    scales + pipe * g.stages * S::SCALES,
                    hopper_smem(full[pipe]),
                    hopper_smem(empty[pipe]),
                    0,
                    1,
                    hopper_smem(notes[pipe]),
                    hopper_smem(notes_full[pipe]),
                    hopper_smem(notes_empty[pipe])};
    if constexpr (S::CLUSTER > 1) {
        const uint32_t lane = (uint32_t)thread % 32;
        ring.emptiers = shares_x<S>(&g) ? S::CLUSTER : 1;
        ring.empty_at = hopper_of_block(ring.empty, !shares_x<S>(&g)    ? hopper_cluster_rank()
                                                    : lane < S::CLUSTER ? lane
                                                                        : 0);
    }
    if (role >= 0) {
        if constexpr (S::REGISTERS) {
            hopper_registers_shrink<S::PRODUCER_REGISTERS>();
        }
        if (role < S::PIPES) {
            produce<S>(&g, prefix, pipe, ring);
        } else if (role == S::PIPES) {
            produce_notes<S>(&g, prefix, ring);
        } else if constexpr (S::SCALE_WARPS > 0) {
            produce_scales<S>(&g, prefix, thread - S::MATH - 32 * (S::PIPES + 1), ring);
        } else if constexpr (S::CODE_WARPS > 0) {
            produce_codes<S>(&g, prefix, thread - S::MATH - 32 * (S::PIPES + 1), ring);
        }
    } else {
        if constexpr (S::REGISTERS) {
            hopper_registers_grow<S::MATH_REGISTERS>();
        }
        multiply<S>(&g, prefix, pipe, share_of<S>(&g, pipe, sums), warp % (S::TEAM / 32), ring,
                    turns + warp * TURN_BYTES);
    }
    if constexpr (S::CLUSTER > 1) {
        __syncwarp();
        hopper_cluster_sync(); // others may still tell this block's barriers
    }
}

template <class S> static moei_mma_variant variant_of(void)
{
    return {S::BM,
            S::BN,
            S::ROWS_M,
            S::PIPES,
            S::CLUSTER,
            S::THREADS,
            S::BOX,
            S::TRIMS,
            S::STAGE,
            S::SCALES,
            S::MATH / 32 * TURN_BYTES,
            (const void *)ggemm_wgmma<S>};
}

// Pipes of one math warpgroup each, or of GROUPS.
template <int KIND, int BN, int PIPES, int DEPTH, int GROUPS = 1>
static moei_mma_variant few_rows(void)
{
    return variant_of<shape<KIND, BN, PIPES, GROUPS, DEPTH, 1>>();
}

// One pipe of two, or of GROUPS. From 128 rows of 16 bits on blocks share them: L2 would be the
// limit. (Others were 2 to 3 % slower with it.)
template <int KIND, int BN, int DEPTH, int GROUPS = 2> static moei_mma_variant many_rows(void)
{
    constexpr bool shares = BN >= 128 && (KIND == KIND_BF16 || KIND == KIND_F16);
    return variant_of<shape<KIND, BN, 1, GROUPS, DEPTH, shares ? 2 : 1>>();
}

// 128 rows, which are the M operand, and BM outputs.
template <int KIND, int BM> static moei_mma_variant rows_first(void)
{
    return variant_of<shape<KIND, 128, 1, 2, 1, 1, BM>>();
}

#endif
