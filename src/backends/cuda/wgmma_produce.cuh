// SPDX-License-Identifier: Apache-2.0
// The producer warp of a pipe: weights, rows of x and their scales to the ring, and a note of each
// tile.
#ifndef MOEI_CUDA_WGMMA_PRODUCE_CUH
#define MOEI_CUDA_WGMMA_PRODUCE_CUH

#include "backends/cuda/wgmma_shape.cuh"
#include "backends/gpu/scales.cuh"

// 16 bytes of a row of x that need not be aligned, with those past the end as zeros.
static __device__ __forceinline__ void copy_bytes(uint32_t *to, const uint8_t *from, int byte,
                                                  int end)
{
#pragma unroll 1
    for (int i = byte; i < byte + 16; i += 4) {
        uint32_t v = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v |= i + j < end ? (uint32_t)from[i + j] << 8 * j : 0u;
        }
        *to++ = v;
    }
}

// Rows of x from anywhere, `depth` blocks of k, by the warp's own loads and stores.
template <class S>
static __device__ __forceinline__ void store_x(const moek_ggemm_args *a, const moei_tile *t, int kb,
                                               int depth, uint32_t to)
{
    const int row_bytes = (int)(S::X_BYTES * a->w.k);
    const int piece = (int)threadIdx.x % 8; // of 16 bytes, of a row's block of k
#pragma unroll 1
    for (int i = (int)threadIdx.x % 32 / 8; i < depth * S::BN; i += 4) {
        const int r = i % S::BN;
        const bool there = t->i0 + r < t->i1;
        copy_bytes(hopper_pointer<uint32_t>(to + i * STAGE_K + (piece ^ r % 8) * 16),
                   there ? moei_x_at(a, t->e, t->i0 + r) : a->x.data,
                   (kb + i / S::BN) * STAGE_K + piece * 16, there ? row_bytes : 0);
    }
}

// Asks for the weights of a stage, from block kb of k on.
template <class S>
static __device__ __forceinline__ void fetch_weights(const moei_mma_args *g, const moei_tile *t,
                                                     int kb, int blocks_k, uint32_t to,
                                                     uint32_t full, uint64_t policy)
{
    const int depth = S::DEPTH == 1 || blocks_k - kb >= S::DEPTH ? S::DEPTH : blocks_k - kb;
    if constexpr (S::PACKED) {
        const moei_matrices *w = &g->a.w;
        const int64_t block = S::GROUPS * (int64_t)t->m; // of 64 outputs
        const int64_t pitch = (int64_t)blocks_k * S::BLOCK;
        const uint8_t *from =
            w->values + t->e * w->value_e_stride + block * pitch + (int64_t)kb * S::BLOCK;
        for (int i = 0; i < packed_blocks<S>(g, t); i++) {
            hopper_copy_bulk(to + i * S::DEPTH * S::BLOCK, from + i * pitch,
                             (uint32_t)(depth * S::BLOCK), full, policy);
        }
    } else {
        for (int d = 0; d < depth; d++, to += S::BM * STAGE_K) {
            const int k = (kb + d) * (STAGE_K / S::X_BYTES);
            if (g->fused) {
                hopper_tensor_5d(to, &g->weights, k, t->m * (S::BM / 16), t->e, full, policy);
            } else {
                hopper_tensor_3d(to, &g->weights, k, t->m * S::BM, t->e, full, policy);
            }
        }
    }
}

// Where the scales of the tile's rows lie, of every 32nd row; element of x.scales, -1: no row.
template <class S> struct row_scales {
    int64_t from[S::LANE_ROWS];
};

template <class S>
static __device__ __forceinline__ void find_scales(const moek_ggemm_args *a, const moei_tile *t,
                                                   row_scales<S> *scales)
{
#pragma unroll
    for (int j = 0; j < S::LANE_ROWS; j++) {
        const int r = (int)threadIdx.x % 32 + j * 32;
        int64_t group;
        scales->from[j] =
            r < S::BN && t->i0 + r < t->i1 ? moei_x_scale_at(a, t->e, t->i0 + r, 0, &group) : -1;
    }
}

// The scales of block kb of k. Those that are no words are loaded and stored by the lanes.
template <class S>
static __device__ __forceinline__ void
fetch_scales(const moei_mma_args *g, const row_scales<S> &scales, int kb, uint32_t to)
{
    const moei_operand *x = &g->a.x;
    const bool words = x->packed || x->scale_dtype == MOE_F32;
    const int64_t k = (x->packed ? kb / 4 : kb) * x->scale_k_stride;
#pragma unroll
    for (int j = 0; j < S::LANE_ROWS; j++) {
        const int r = (int)threadIdx.x % 32 + j * 32;
        const int64_t at = scales.from[j] + k;
        if (scales.from[j] < 0) {
            continue;
        }
        if (g->scale_copies) {
            hopper_copy_4(to + 4 * r, (const uint32_t *)x->scales + (words ? at : at / 4));
        } else {
            *hopper_pointer<float>(to + 4 * r) =
                x->packed ? moei_e8m0_to_f32(((const uint8_t *)x->scales)[4 * at + kb % 4])
                          : moei_gpu_load(x->scale_dtype, x->scales, at);
        }
    }
}

// Whether the lanes move anything themselves, beside what they ask the copy engine for.
template <class S> static __device__ __forceinline__ bool scales_move(const moei_mma_args *g)
{
    return S::SCALED && g->a.x.scales != NULL && g->a.x.group > 0;
}

template <class S> static __device__ __forceinline__ bool lanes_move(const moei_mma_args *g)
{
    return g->x_engine == MOEI_MMA_STORES || scales_move<S>(g);
}

// Waits until the note of two tiles before has been read, and writes tile number i's.
template <class S>
static __device__ __forceinline__ void write_note(const moei_mma_args *g, const moei_tile *t,
                                                  bool there, uint32_t i, ring_of ring)
{
    const moek_ggemm_args *a = &g->a;
    tile_note<S> *note = hopper_pointer<tile_note<S>>(ring.notes) + i % 2;
    hopper_barrier_wait(ring.notes_empty + 8 * (i % 2), (i / 2 + 1) % 2);
#pragma unroll 1
    for (int r = (int)threadIdx.x % 32; there && r < S::BN && t->i0 + r < t->i1; r += 32) {
        const int64_t row = t->i0 + r;
        note->row[r] = (int32_t)(g->fused ? row : moei_y_row(a, row));
        note->weight[r] = a->row_weight != NULL ? moei_row_weight(a, t->e, row) : 1.0f;
        if (S::SCALED && a->x.scales != NULL && a->x.group == 0) {
            note->scale[r] = moei_gpu_x_scale(a, t->e, row, 0);
        }
    }
    if (threadIdx.x % 32 == 0) {
        note->tile = *t;
        note->tile.e = there ? t->e : -1;
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        hopper_barrier_arrive(ring.notes_full + 8 * (i % 2));
    }
}

template <class S>
static __device__ __forceinline__ void produce(const moei_mma_args *g, uint32_t prefix, int pipe,
                                               ring_of ring)
{
    const moek_ggemm_args *a = &g->a;
    const int lane = (int)threadIdx.x % 32;
    const int blocks_k = (int)((S::X_BYTES * a->w.k + STAGE_K - 1) / STAGE_K);
    const int stages = g->stages;
    const uint64_t policy =
        g->weights_stay ? hopper_policy_evict_last() : hopper_policy_evict_first();
    int stage = 0;
    uint32_t parity = 1; // of "empty": a fresh ring is
    int early = 0;       // stages whose weights have been asked for
    moei_tile t;
    if (g->early) {
        if (lane == 0 && tile_of<S>(g, prefix, pipe, 0, &t)) {
            // Neither weights nor offsets depend on the launch before this one.
            for (int kb = 0; kb < blocks_k && early < stages; kb += S::DEPTH, early++) {
                fetch_weights<S>(g, &t, kb, blocks_k, ring.stages + early * S::STAGE,
                                 ring.full + 8 * early, policy);
            }
        }
        hopper_grid_wait();
        hopper_grid_launch();
    }
    for (uint32_t i = 0;; i++) {
        const bool more = tile_of<S>(g, prefix, pipe, i, &t);
        write_note<S>(g, &t, more, i, ring);
        if (!more) {
            return;
        }
        const int there = t.i1 - t.i0 < S::BN ? (int)(t.i1 - t.i0) : S::BN;
        row_scales<S> scales;
        int32_t rows[S::LANE_ROWS]; // of x
        if (scales_move<S>(g)) {
            find_scales<S>(a, &t, &scales);
        }
        if (g->x_engine == MOEI_MMA_GATHER) {
#pragma unroll
            for (int j = 0; j < S::LANE_ROWS; j++) {
                const int r = lane + 32 * j;
                rows[j] = r < there ? (int32_t)moei_x_row(a, t.i0 + r) : 0;
            }
        }
#pragma unroll 1
        for (int kb = 0; kb < blocks_k; kb += S::DEPTH) {
            const int depth = S::DEPTH == 1 || blocks_k - kb >= S::DEPTH ? S::DEPTH : blocks_k - kb;
            const uint32_t x = ring.stages + stage * S::STAGE + S::WEIGHTS;
            const uint32_t full = ring.full + 8 * stage;
            stagger(g->delay, (uint32_t)kb);
            hopper_barrier_wait(ring.empty + 8 * stage, parity);
            if (lane == 0) {
                const int rows_of_x = g->x_engine == MOEI_MMA_BOX      ? S::BN
                                      : g->x_engine == MOEI_MMA_GATHER ? there
                                                                       : 0;
                hopper_barrier_expect(
                    full, (uint32_t)(depth * (weight_bytes<S>(g, &t) + rows_of_x * STAGE_K)));
                if (early > 0) {
                    early--;
                } else {
                    fetch_weights<S>(g, &t, kb, blocks_k, ring.stages + stage * S::STAGE, full,
                                     policy);
                }
            }
            if (g->x_engine == MOEI_MMA_BOX) {
                for (int d = 0; d < depth && lane == 0; d++) {
                    hopper_tensor_3d_plain(x + d * S::BN * STAGE_K, &g->x,
                                           (kb + d) * (STAGE_K / S::X_BYTES), (int)t.i0,
                                           a->offsets == NULL ? t.e : 0, full);
                }
            } else if (g->x_engine == MOEI_MMA_GATHER) {
#pragma unroll
                for (int j = 0; j < S::LANE_ROWS; j++) {
                    const int r = lane + 32 * j;
                    for (int d = 0; d < depth && r < there; d++) {
                        hopper_tensor_3d_plain(x + (d * S::BN + r) * STAGE_K, &g->x,
                                               (kb + d) * (STAGE_K / S::X_BYTES), rows[j], 0, full);
                    }
                }
            } else {
                store_x<S>(a, &t, kb, depth, x);
            }
            if (scales_move<S>(g)) {
                fetch_scales<S>(g, scales, kb, ring.scales + stage * S::SCALES);
            }
            if (g->x_engine == MOEI_MMA_STORES || (scales_move<S>(g) && !g->scale_copies)) {
                hopper_copies_wait();
                hopper_fence_async(); // before the matrix unit reads what was stored
                hopper_barrier_arrive(full);
            } else if (scales_move<S>(g)) {
                hopper_barrier_arrive_copies(full);
            }
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

#endif
