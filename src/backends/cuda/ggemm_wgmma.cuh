// SPDX-License-Identifier: Apache-2.0
// ggemm on Hopper's warpgroup matrix units. One file per kind of weights includes this one and
// lists the kernels that it has:
//   bf16 and f16, as the checkpoint has them: one chain over K;
//   e4m3 x e4m3, as the checkpoint has them: a chain per 128 k, folded by one FMA with the scales;
//   4 and 8 bits x bf16, packed (operand.h) and decoded to bf16 in registers, which is exact
//   (decode.cuh): a chain per 576 k, chunk sums added in ascending order, or, where scales change
//   along k, a chain per group, folded by one FMA with the group's scale.
// The bits of a class are the same whatever the tile.
//
// Weights are the M operand, rows of x are N: one instruction shape serves every number of rows.
// A block is persistent. It has one or more pipes, each of which walks tiles of BM outputs x BN
// rows (gpu/tiles.cuh) by itself:
//   its producer warp fills a ring of stages by the copy engine: weights, and rows of x from
//   wherever they lie;
//   its math warpgroups multiply, 64 outputs each, then finish in registers.
// Many rows: one pipe of two math warpgroups, which share the rows. Few rows: three or four pipes
// of one math warpgroup, so that an expert's outputs spread over the device and what one pipe
// waits for the others hide.
//
// With SiLU or gpt-oss's SwiGLU, the outputs of a tile are gates and ups in alternating eights (the
// copy engine brings them in this order, or they are packed so): a thread holds a gate and its up.
#ifndef MOEI_CUDA_GGEMM_WGMMA_CUH
#define MOEI_CUDA_GGEMM_WGMMA_CUH

#include "backends/cuda/decode.cuh"
#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.h"
#include "backends/cuda/operand.h"
#include "backends/gpu/combine.cuh"
#include "backends/gpu/elements.cuh"
#include "backends/gpu/scales.cuh"
#include "backends/gpu/tiles.cuh"
#include "numerics/activation.h"

#define STAGE_K    128  // bytes of k of a row in a block of k: one swizzle row
#define TURN_BYTES 1024 // of a warp: 32 rows of y, 16 outputs each
#define CHUNK      9    // blocks of k of a chain of packed weights

// Kinds of weights: types of hopper_mma, and, from PACKED on, those of operand.h.
enum { KIND_BF16 = HOPPER_BF16, KIND_F16 = HOPPER_F16, KIND_E4M3 = HOPPER_E4M3, KIND_PACKED };

// What a kernel is when it is compiled. DEPTH: blocks of k in a stage.
template <int KIND_, int BN_, int PIPES_, int GROUPS_, int DEPTH_> struct shape {
    static constexpr int KIND = KIND_;
    static constexpr int BN = BN_;
    static constexpr int PIPES = PIPES_;
    static constexpr int GROUPS = GROUPS_; // math warpgroups of a pipe
    static constexpr int DEPTH = DEPTH_;
    static constexpr bool PACKED = KIND >= KIND_PACKED;
    static constexpr moei_operand_kind OPERAND = (moei_operand_kind)(KIND - KIND_PACKED);
    static constexpr int BLOCK = PACKED ? MOEI_OPERAND_BYTES(OPERAND) : 0; // bytes, of 64 outputs
    static constexpr bool APART = PACKED && MOEI_OPERAND_APART(OPERAND); // scales after the blocks
    static constexpr bool SCALED = KIND == KIND_E4M3;                    // scales of x, too
    static constexpr int X_BYTES = KIND == KIND_E4M3 ? 1 : 2;            // of an element of x
    static constexpr int BM = 64 * GROUPS;
    static constexpr int TEAM = 128 * GROUPS; // math threads of a pipe
    static constexpr int MATH = PIPES * TEAM;
    static constexpr int THREADS = MATH + 128;
    static constexpr int WEIGHTS = // bytes in a stage, up to where rows of x begin
        ((PACKED ? GROUPS * BLOCK : BM * STAGE_K) * DEPTH + 1023) / 1024 * 1024;
    static constexpr int STAGE = WEIGHTS + DEPTH * BN * STAGE_K;
    static constexpr int SCALES = SCALED ? BN * 4 : 0; // bytes beside a stage
    // Registers of a thread. One pipe: two math warpgroups and the producer's share 3 * 168, what
    // the launch allots; four: four and the producers' 5 * 96. Others take what they get.
    static constexpr bool REGISTERS = PIPES == 1 || PIPES == 4;
    static constexpr int PRODUCER_REGISTERS = PIPES == 4 ? 48 : SCALED ? 104 : BN > 192 ? 56 : 72;
    static constexpr int MATH_REGISTERS = PIPES == 4 ? 104 : (3 * 168 - PRODUCER_REGISTERS) / 2;
    static constexpr int LANE_ROWS = (BN + 31) / 32; // rows of x of a lane
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

// What the math warps need of a tile, as the producer leaves it for them: memory is far, and they
// have nothing else to do while they wait for it.
template <class S> struct tile_note {
    moei_tile tile;      // e -1: there is none, nor any after it
    int32_t row[S::BN];  // of the output
    float weight[S::BN]; // of each row; 1: none
};

// The ring of a pipe, as addresses of shared memory.
struct ring_of {
    uint32_t stages;
    uint32_t scales; // f32 of rows of x, BN a stage
    uint32_t full;   // barriers, one a stage
    uint32_t empty;
    uint32_t notes;      // of two tiles
    uint32_t notes_full; // barriers, one a note
    uint32_t notes_empty;
};

// Blocks of 64 packed outputs that a tile has.
template <class S>
static __device__ __forceinline__ int packed_blocks(const moei_mma_args *g, const moei_tile *t)
{
    const int64_t left = moei_operand_blocks_n(&g->a.w) - S::GROUPS * (int64_t)t->m;
    return left < S::GROUPS ? (int)left : S::GROUPS;
}

// Bytes of a block of k of the tile's weights.
template <class S>
static __device__ __forceinline__ int weight_bytes(const moei_mma_args *g, const moei_tile *t)
{
    return S::PACKED ? packed_blocks<S>(g, t) * S::BLOCK : S::BM * STAGE_K;
}

// Tile number i of a pipe; false past its last one. Blocks take neighbouring tiles, their first
// pipes before the others: few tiles spread over all multiprocessors.
template <class S>
static __device__ __forceinline__ bool tile_of(const moei_mma_args *g, uint32_t prefix, int pipe,
                                               uint32_t i, moei_tile *t)
{
    const int64_t tile = blockIdx.x + (int64_t)gridDim.x * (i * S::PIPES + (uint32_t)pipe);
    return moei_tile_at(&g->a, hopper_pointer<const int32_t>(prefix), S::BN, g->m_blocks, tile, t);
}

// ---- the producers -----------------------------------------------------------------------------

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

// ---- math --------------------------------------------------------------------------------------

// Two results as 16-bit floats, the first in the low half; NaN canonical.
static __device__ __forceinline__ uint32_t pack(moe_dtype dtype, float low, float high)
{
    uint32_t both;
    if (dtype == MOE_BF16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
        both = low == low ? both : (both & 0xFFFF0000u) | 0x7FC0u;
        return high == high ? both : (both & 0xFFFFu) | 0x7FC00000u;
    }
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    both = low == low ? both : (both & 0xFFFF0000u) | 0x7E00u;
    return high == high ? both : (both & 0xFFFFu) | 0x7E000000u;
}

// Where rows of the output go: y of the product, or h of glu.
typedef struct output {
    moe_dtype dtype;
    int64_t width;
} output;

static __device__ __forceinline__ uint8_t *output_at(const moei_mma_args *g, int32_t e, int32_t row)
{
    const bool batched = g->a.offsets == NULL;
    return g->fused
               ? g->glu.y + (batched ? e * g->glu.y_batch_stride : 0) + row * g->glu.y_row_stride
               : g->a.y + (batched ? e * g->a.y_batch_stride : 0) + row * g->a.y_row_stride;
}

// Rows of the output may lie anywhere.
static __device__ __forceinline__ void store_f32(uint8_t *to, float v)
{
    const uint32_t bits = v == v ? __float_as_uint(v) : 0x7FC00000u;
    if ((uintptr_t)to % 4 == 0) {
        *(uint32_t *)to = bits;
    } else {
        for (int i = 0; i < 4; i++) {
            to[i] = (uint8_t)(bits >> 8 * i);
        }
    }
}

// Results of 32 rows (or the BN that there are) x 16 outputs of this warp, or 8 with glu.
template <class S, int COUNT>
static __device__ __forceinline__ void store_rows(const moei_mma_args *g, const tile_note<S> *note,
                                                  const output *o, int first, int64_t n,
                                                  const float (&v)[COUNT], uint32_t turn)
{
    const int lane = (int)threadIdx.x % 32;
    const int span = g->fused ? 8 : 16; // outputs
    const int32_t e = note->tile.e;
    const int rows = (int)(note->tile.i1 - note->tile.i0);
    const bool there = lane < COUNT * 2 && first + lane < rows;
    if (g->paired && !g->fused) {
        const int64_t own = n / 2 + lane / 4;
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int r = first + c / 4 * 8 + lane % 4 * 2 + c % 2;
            if (r < rows && own < g->outputs) {
                moei_gpu_store(o->dtype, output_at(g, e, note->row[r]),
                               own * g->step + (c % 4 < 2 ? 0 : g->second), v[c]);
            }
        }
        return;
    }
    if (o->dtype == MOE_F32) {
        // Eight lanes hold eight outputs of a row: whole sectors as they are.
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int r = first + c / 4 * 8 + lane % 4 * 2 + c % 2;
            const int64_t at = n + lane / 4 + c % 4 / 2 * 8;
            if (r < rows && at < o->width && (!g->fused || c % 4 < 2)) {
                store_f32(output_at(g, e, note->row[r]) + 4 * at, v[c]);
            }
        }
        return;
    }
    __syncwarp();
    if (g->fused) {
        uint32_t p[4] = {0, 0, 0, 0};
#pragma unroll
        for (int b = 0; b < COUNT / 4; b++) {
            p[b] = pack(o->dtype, v[4 * b], v[4 * b + 1]);
        }
        hopper_store_transposed(turn + lane * 16, p[0], p[1], p[2], p[3]);
    } else {
#pragma unroll
        for (int b = 0; b < (COUNT + 7) / 8; b++) {
            uint32_t p[4] = {0, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < 4 && 8 * b + 2 * j < COUNT; j++) {
                p[j] = pack(o->dtype, v[8 * b + 2 * j], v[8 * b + 2 * j + 1]);
            }
            const int row = (2 * b + lane / 16) * 8 + lane % 8;
            hopper_store_transposed(turn + row * 32 + lane / 8 % 2 * 16, p[0], p[1], p[2], p[3]);
        }
    }
    __syncwarp();
    if (!there) {
        return;
    }
    uint8_t *to = output_at(g, e, note->row[first + lane]) + 2 * n;
    const uint8_t *from = hopper_pointer<const uint8_t>(turn + lane * 2 * span);
    if (g->vector && n + span <= o->width) {
        *(uint4 *)to = *(const uint4 *)from;
        if (span == 16) {
            *(uint4 *)(to + 16) = *(const uint4 *)(from + 16);
        }
    } else {
        for (int j = 0; j < span && n + j < o->width; j++) {
            const uint16_t bits = ((const uint16_t *)from)[j];
            to[2 * j] = (uint8_t)bits;
            to[2 * j + 1] = (uint8_t)(bits >> 8);
        }
    }
}

// Scales that lie after the blocks of an expert: [groups of k][packed outputs].
template <class S>
static __device__ __forceinline__ const float *packed_scales(const moei_matrices *w, int32_t e)
{
    return (const float *)(w->values + e * w->value_e_stride +
                           moei_operand_scales_at(S::OPERAND, w));
}

// What belongs to an output: the low one of a thread, or the high one, which lies eight after it or
// is of the other part.
typedef struct output_terms {
    float scale;  // of the whole row of the weights; 1: none
    float scale2; // the second level
    float bias;   // -0: none; it changes no sum
} output_terms;

// Of output n; r: the same as it is packed.
template <class S>
static __device__ __forceinline__ output_terms terms_of(const moek_ggemm_args *a, int32_t e,
                                                        int64_t n, int64_t r)
{
    const moei_matrices *w = &a->w;
    output_terms o = {1.0f, 1.0f, -0.0f};
    if (n < w->n) {
        o.bias = w->bias != NULL
                     ? moei_gpu_load_float(w->bias_dtype, w->bias, e * w->bias_e_stride + n)
                     : -0.0f;
        if (S::SCALED || S::PACKED) {
            o.scale2 = w->scale2 != NULL ? moei_w_scale2(w, e, n) : 1.0f;
        }
        if ((S::SCALED || S::APART) && w->block_k == 0) {
            o.scale = S::SCALED ? moei_gpu_w_scale(w, e, n, 0) : packed_scales<S>(w, e)[r];
        }
    }
    return o;
}

// v[c] = v[c] * what a lane holds for row c of the 32.
template <int COUNT>
static __device__ __forceinline__ void multiply_rows(float (&v)[COUNT], float of_lane)
{
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        v[c] = v[c] * __shfl_sync(~0u, of_lane, c / 4 * 8 + (int)threadIdx.x % 4 * 2 + c % 2);
    }
}

// Gates and ups of a thread to h, in the gates' places.
template <int COUNT>
static __device__ __forceinline__ void activate(const moei_mma_args *g, float (&v)[COUNT])
{
    const float limit = g->limit;
    if (g->up_first) {
#pragma unroll
        for (int c = 0; c < COUNT; c += 4) {
            const float up0 = v[c];
            const float up1 = v[c + 1];
            v[c] = v[c + 2];
            v[c + 1] = v[c + 3];
            v[c + 2] = up0;
            v[c + 3] = up1;
        }
    }
    if (g->glu.act.activation == MOE_ACT_SILU) { // a loop of its own each: both at once cost twice
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            v[c] = c % 4 < 2 ? moei_silu_mul(v[c], v[c + 2], limit) : v[c];
        }
    } else {
        const float alpha = g->glu.act.alpha;
        const float beta = g->glu.act.beta;
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            v[c] = c % 4 < 2 ? moei_swigluoai(v[c], v[c + 2], alpha, beta, limit) : v[c];
        }
    }
}

// Sums of a tile to the output, 32 rows at a time; `warp` counts in the pipe.
template <class S>
static __device__ __forceinline__ void finish_tile(const moei_mma_args *g, const tile_note<S> *note,
                                                   int warp, const float (&acc)[S::BN / 2],
                                                   uint32_t turn)
{
    const moei_tile *t = &note->tile;
    const moek_ggemm_args *a = &g->a;
    const int lane = (int)threadIdx.x % 32;
    const output o = g->fused ? output{g->glu.y_dtype, g->glu.inter} : output{a->y_dtype, a->w.n};
    const int64_t n = (int64_t)t->m * (g->fused ? S::BM / 2 : S::BM) + warp * (g->fused ? 8 : 16);
    const int64_t own =
        g->paired ? (int64_t)t->m * (S::BM / 2) + warp * 8 + lane / 4 : n + lane / 4;
    const int64_t r0 = (int64_t)t->m * S::BM + warp * 16 + lane / 4;
    const int64_t none = a->w.n;
    const bool inside = own < g->outputs;
    const output_terms low = terms_of<S>(a, t->e, inside ? own * g->step : none, r0);
    const output_terms high = terms_of<S>(a, t->e,
                                          !inside     ? none
                                          : g->paired ? g->second + own * g->step
                                                      : own + 8,
                                          r0 + 8);
    const bool x_scale = S::SCALED && a->x.scales != NULL && a->x.group == 0;
#pragma unroll 1
    for (int r = 0; r < S::BN; r += 32) { // not unrolled: the code of all groups fills no cache
        constexpr int COUNT = S::BN < 32 ? S::BN / 2 : 16; // sums of a thread for 32 rows
        if (t->i0 + r >= t->i1) {
            return;
        }
        float v[COUNT];
#pragma unroll
        for (int q = 0; q < S::BN; q += 32) {
            if (q == r) { // the sums stay in registers, which have no index
#pragma unroll
                for (int c = 0; c < COUNT; c++) { // a tile of 144 rows ends with half of the 32
                    v[c] = q / 2 + c < S::BN / 2 ? acc[q / 2 + c] : 0.0f;
                }
            }
        }
        if (x_scale) {
            const int64_t i = t->i0 + r + lane;
            multiply_rows<COUNT>(v, i < t->i1 ? moei_gpu_x_scale(a, t->e, i, 0) : 1.0f);
        }
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const output_terms *of = c % 4 < 2 ? &low : &high;
            if (S::SCALED || S::PACKED) {
                v[c] = v[c] * of->scale * of->scale2;
            }
            v[c] = v[c] + of->bias;
        }
        if (a->row_weight != NULL) {
#pragma unroll
            for (int c = 0; c < COUNT; c++) {
                v[c] = v[c] * note->weight[r + c / 4 * 8 + lane % 4 * 2 + c % 2];
            }
        }
        if (g->fused) {
            activate<COUNT>(g, v);
        }
        store_rows<S, COUNT>(g, note, &o, r, n, v, turn);
    }
}

// A ring, as a math warpgroup goes through it.
typedef struct ring_place {
    int stage;
    uint32_t parity;
    int before; // the stage whose products may still be under way; -1: none
} ring_place;

static __device__ __forceinline__ void release(ring_place *r, uint32_t empty)
{
    if (r->before >= 0 && threadIdx.x % 32 == 0) {
        hopper_barrier_arrive(empty + 8 * r->before);
    }
    r->before = -1;
}

static __device__ __forceinline__ void advance(ring_place *r, int stages)
{
    r->before = r->stage;
    if (++r->stage == stages) {
        r->stage = 0;
        r->parity ^= 1;
    }
}

// The products of a stage's block d for this warpgroup, both operands in shared memory.
template <class S>
static __device__ __forceinline__ void multiply_block(uint32_t stage, int group, int d, bool fresh,
                                                      float (&acc)[S::BN / 2])
{
    const uint64_t w = hopper_operand(stage + (d * S::BM + group * 64) * STAGE_K);
    const uint64_t x = hopper_operand(stage + S::WEIGHTS + d * S::BN * STAGE_K);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        hopper_mma<S::BN, S::KIND>(acc, w + 2 * j, x + 2 * j, !fresh || j != 0);
    }
}

// bf16 and f16: one chain over K.
template <class S>
static __device__ __forceinline__ void multiply_chain(const moei_mma_args *g, int group,
                                                      int blocks_k, ring_of ring, ring_place *r,
                                                      float (&acc)[S::BN / 2])
{
#pragma unroll 1
    for (int kb = 0; kb < blocks_k; kb += S::DEPTH) {
        const uint32_t stage = ring.stages + r->stage * S::STAGE;
        stagger(g->delay, (uint32_t)kb);
        hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
        const int depth = S::DEPTH == 1 || blocks_k - kb >= S::DEPTH ? S::DEPTH : blocks_k - kb;
#pragma unroll 1
        for (int d = 0; d < depth; d++) {
            hopper_mma_begin();
            multiply_block<S>(stage, group, d, kb + d == 0, acc);
            hopper_mma_commit();
            hopper_mma_wait<1>();
            release(r, ring.empty); // the stage before, once: its last products are done
        }
        advance(r, g->stages);
    }
    hopper_mma_wait<0>();
    hopper_mma_keep(acc);
    release(r, ring.empty);
}

// Scales along k of eight outputs of a warp: a lane holds the scale of every 32nd block of k, the
// others ask for it. Where blocks of outputs end inside of an eight, every lane reads its own.
typedef struct block_scales {
    int64_t at; // of this lane's output, or of the first of the eight; -1: 1 for all k
    float of_lane;
} block_scales;

static __device__ __forceinline__ float load_scale(const moei_matrices *w, int64_t at)
{
    return w->scale_dtype == MOE_F32 ? ((const float *)w->scales)[at]
                                     : moei_gpu_load(w->scale_dtype, w->scales, at);
}

static __device__ __forceinline__ float next_scale(const moei_mma_args *g, block_scales *s, int kb,
                                                   int blocks_k)
{
    const moei_matrices *w = &g->a.w;
    if (s->at < 0) {
        return 1.0f;
    }
    if (!g->scales_by_eights) {
        return load_scale(w, s->at + kb * w->scale_k_stride);
    }
    if (kb % 32 == 0) {
        const int mine = kb + (int)threadIdx.x % 32;
        s->of_lane = load_scale(w, s->at + (mine < blocks_k ? mine : kb) * w->scale_k_stride);
    }
    return __shfl_sync(~0u, s->of_lane, kb % 32);
}

// total = fma(acc * s_x, s_w, total); CODES: scales of x are four e8m0 in a word.
template <class S, bool CODES>
static __device__ __forceinline__ void fold(const float (&acc)[S::BN / 2], const float *of_x,
                                            int kb, float s_low, float s_high,
                                            float (&total)[S::BN / 2])
{
#pragma unroll
    for (int b = 0; b < S::BN / 8; b++) {
        float2 s_x = *(const float2 *)(of_x + 8 * b);
        if (CODES) {
            s_x.x = moei_e8m0_to_f32((uint8_t)(__float_as_uint(s_x.x) >> kb % 4 * 8));
            s_x.y = moei_e8m0_to_f32((uint8_t)(__float_as_uint(s_x.y) >> kb % 4 * 8));
        }
        total[4 * b] = __fmaf_rn(acc[4 * b] * s_x.x, s_low, total[4 * b]);
        total[4 * b + 1] = __fmaf_rn(acc[4 * b + 1] * s_x.y, s_low, total[4 * b + 1]);
        total[4 * b + 2] = __fmaf_rn(acc[4 * b + 2] * s_x.x, s_high, total[4 * b + 2]);
        total[4 * b + 3] = __fmaf_rn(acc[4 * b + 3] * s_x.y, s_high, total[4 * b + 3]);
    }
}

// FP8: a chain per block of 128 k, total = fma(chain * s_x, s_w, total).
template <class S>
static __device__ __forceinline__ void multiply_folds(const moei_mma_args *g, const moei_tile *t,
                                                      int warp, int blocks_k, ring_of ring,
                                                      ring_place *r, float (&total)[S::BN / 2])
{
    const moei_matrices *w = &g->a.w;
    const int lane = (int)threadIdx.x % 32;
    const int eight = g->scales_by_eights ? 0 : lane / 4; // of eight outputs
    const int64_t own = g->paired ? (int64_t)t->m * (S::BM / 2) + warp * 8 + eight
                                  : (int64_t)t->m * S::BM + warp * 16 + eight;
    const int64_t n_low = own * g->step;
    const int64_t n_high = g->paired ? g->second + own * g->step : own + 8;
    const bool scaled = w->block_k > 0 && own < g->outputs;
    block_scales low = {scaled ? moei_w_scale_at(w, t->e, n_low, 0) : -1, 1.0f};
    block_scales high = {scaled && n_high < w->n ? moei_w_scale_at(w, t->e, n_high, 0) : -1, 1.0f};
    const bool codes = g->scale_copies && g->a.x.scale_dtype == MOE_E8M0; // four in a word
#pragma unroll
    for (int i = 0; i < S::BN / 2; i++) {
        total[i] = 0.0f;
    }
#pragma unroll 1
    for (int kb = 0; kb < blocks_k; kb++) {
        const uint32_t stage = ring.stages + r->stage * S::STAGE;
        float acc[S::BN / 2];
        const float s_low = next_scale(g, &low, kb, blocks_k);
        const float s_high = next_scale(g, &high, kb, blocks_k);
        stagger(g->delay, (uint32_t)kb);
        hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
        hopper_mma_begin();
        multiply_block<S>(stage, warp / 4, 0, true, acc);
        hopper_mma_commit();
        const float *of_x =
            hopper_pointer<const float>(ring.scales + r->stage * S::SCALES) + lane % 4 * 2;
        hopper_mma_wait<0>();
        hopper_mma_keep(acc);
        if (codes) { // a loop of its own: what is not wanted would be issued all the same
            fold<S, true>(acc, of_x, kb, s_low, s_high, total);
        } else {
            fold<S, false>(acc, of_x, kb, s_low, s_high, total);
        }
        advance(r, g->stages);
        release(r, ring.empty); // its scales have been read, too
    }
}

// A thread's codes of a block, and for each step what decodes them.
template <class S> struct packed_block {
    static constexpr int WORDS = MOEI_OPERAND_CODES(S::OPERAND) / (128 * 4 * 4); // of a step
    uint32_t words[4 * WORDS];
    uint32_t with[4]; // factors, scales or zero points: decode.cuh
};

// @param plain  the expert's flag
// @param zeros  U4, U8: the pair of addends
template <class S>
static __device__ __forceinline__ void load_block(uint32_t at, bool plain, uint32_t zeros,
                                                  packed_block<S> *b)
{
    const int thread = (int)threadIdx.x % 128;
    const uint32_t codes = at + thread * 16 * packed_block<S>::WORDS;
    const uint32_t scales = at + MOEI_OPERAND_CODES(S::OPERAND);
#pragma unroll
    for (int i = 0; i < packed_block<S>::WORDS; i++) {
        const uint4 words = hopper_pointer<const uint4>(codes)[i];
        b->words[4 * i] = words.x;
        b->words[4 * i + 1] = words.y;
        b->words[4 * i + 2] = words.z;
        b->words[4 * i + 3] = words.w;
    }
    if constexpr (S::OPERAND == MOEI_OPERAND_MXFP4) {
        const uint32_t bytes = hopper_pointer<const uint32_t>(scales)[thread / 4];
        uint32_t halves[2];
        if (plain) {
            decode_mxfp4_factors(bytes, halves);
        } else {
            decode_mxfp4_scales(bytes, halves);
        }
        b->with[0] = b->with[1] = halves[0];
        b->with[2] = b->with[3] = halves[1];
    } else if constexpr (S::OPERAND == MOEI_OPERAND_NVFP4) {
        const uint2 bytes = hopper_pointer<const uint2>(scales)[thread / 4];
        decode_nvfp4_factors(bytes.x, bytes.y, b->with);
    } else {
        b->with[0] = b->with[1] = b->with[2] = b->with[3] = zeros;
    }
}

template <class S>
static __device__ __forceinline__ void decode_step(const packed_block<S> &b, int j, bool plain,
                                                   uint32_t (&a)[4])
{
    if constexpr (S::OPERAND == MOEI_OPERAND_MXFP4) {
        if (plain) {
            decode_e2m1(b.words[j], b.with[j], a);
        } else {
            decode_e2m1_twice(b.words[j], b.with[j], a);
        }
    } else if constexpr (S::OPERAND == MOEI_OPERAND_NVFP4) {
        decode_e2m1(b.words[j], b.with[j], a);
    } else if constexpr (S::OPERAND == MOEI_OPERAND_U4) {
        decode_u4(b.words[j], b.with[j], a);
    } else if constexpr (S::OPERAND == MOEI_OPERAND_U8) {
        decode_u8(b.words[2 * j], b.words[2 * j + 1], b.with[j], a);
    } else if (plain) {
        decode_e4m3(b.words[2 * j], b.words[2 * j + 1], a);
    } else {
        decode_e4m3_nan(b.words[2 * j], b.words[2 * j + 1], a);
    }
}

// Half a block, 32 k. Where products may stay under way (PENDING 1), registers of the halves take
// turns: a product reads one while the other is decoded.
template <class S, int PENDING>
static __device__ __forceinline__ void multiply_half(const packed_block<S> &b, int half, bool plain,
                                                     bool fresh, uint64_t x, uint32_t (&a)[2][4],
                                                     float (&acc)[S::BN / 2])
{
    decode_step<S>(b, 2 * half, plain, a[0]);
    decode_step<S>(b, 2 * half + 1, plain, a[1]);
    hopper_mma_begin();
    hopper_mma_registers<S::BN>(acc, a[0], x + 4 * half, !fresh);
    hopper_mma_registers<S::BN>(acc, a[1], x + 4 * half + 2, 1);
    hopper_mma_commit();
    hopper_mma_wait<PENDING>();
}

// Flags of an expert's packed weights.
template <class S>
static __device__ __forceinline__ bool is_plain(const moei_matrices *w, int32_t e)
{
    const uint8_t *expert = w->values + e * w->value_e_stride;
    const uint32_t flags = *(const uint32_t *)(expert + moei_operand_flags_at(S::OPERAND, w));
    return (flags & MOEI_OPERAND_PLAIN) != 0;
}

// Packed weights whose scales are in the blocks, or hold for all of k: a chain per chunk.
template <class S>
static __device__ __forceinline__ void multiply_chunks(const moei_mma_args *g, bool plain,
                                                       int group, int blocks_k, ring_of ring,
                                                       ring_place *r, float (&total)[S::BN / 2])
{
    static_assert(CHUNK % S::DEPTH == 0, "a stage lies in one chunk");
    const uint32_t zero = (uint32_t)g->zero_point;
    const uint32_t zeros = S::APART ? decode_zeros(zero, zero) : 0;
    uint32_t a[2][2][4];
#pragma unroll
    for (int i = 0; i < S::BN / 2; i++) {
        total[i] = -0.0f; // changes no sum
    }
#pragma unroll 1
    for (int k0 = 0; k0 < blocks_k; k0 += CHUNK) {
        const int k1 = k0 + CHUNK < blocks_k ? k0 + CHUNK : blocks_k;
        float acc[S::BN / 2];
#pragma unroll
        for (int i = 0; i < S::BN / 2; i++) {
            acc[i] = 0.0f;
        }
#pragma unroll 1
        for (int kb = k0; kb < k1; kb += S::DEPTH) {
            const uint32_t stage = ring.stages + r->stage * S::STAGE;
            stagger(g->delay, (uint32_t)kb);
            hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
#pragma unroll 1
            for (int d = 0; d < S::DEPTH; d++) {
                if (d > 0 && kb + d >= k1) {
                    break;
                }
                packed_block<S> b;
                load_block<S>(stage + (group * S::DEPTH + d) * S::BLOCK, plain, zeros, &b);
                const uint64_t x = hopper_operand(stage + S::WEIGHTS + d * S::BN * STAGE_K);
                multiply_half<S, 1>(b, 0, plain, false, x, a[0], acc);
                if (d == 0) {
                    release(r, ring.empty); // the stage before: its last products are done
                }
                multiply_half<S, 1>(b, 1, plain, false, x, a[1], acc);
            }
            advance(r, g->stages);
        }
        hopper_mma_wait<0>();
        hopper_mma_keep(acc);
        release(r, ring.empty);
#pragma unroll
        for (int i = 0; i < S::BN / 2; i++) {
            total[i] = total[i] + acc[i];
        }
    }
#pragma unroll
    for (int i = 0; i < S::BN / 2; i++) {
        total[i] = total[i] * MOEI_OPERAND_UP(S::OPERAND);
    }
}

// What belongs to a group of k, for this thread's two outputs.
typedef struct group_terms {
    float low, high; // scales
    uint32_t zeros;  // the pair of addends
} group_terms;

template <class S>
static __device__ __forceinline__ group_terms terms_of_group(const moei_mma_args *g, int32_t e,
                                                             int64_t row, int64_t group)
{
    const moei_matrices *w = &g->a.w;
    const int64_t at = group * moei_operand_pitch(w) + row;
    const float *scales = packed_scales<S>(w, e) + at;
    uint32_t low = (uint32_t)g->zero_point;
    uint32_t high = low;
    if (w->zero_e_stride > 0) {
        const uint8_t *zeros =
            w->values + e * w->value_e_stride + moei_operand_zeros_at(S::OPERAND, w) + at;
        low = zeros[0];
        high = zeros[8];
    }
    return {scales[0], scales[8], decode_zeros(low, high)};
}

// Packed weights whose scales change along k: a chain per group, total = fma(chain, s_w, total).
template <class S>
static __device__ __forceinline__ void
multiply_groups(const moei_mma_args *g, const moei_tile *t, bool plain, int warp, int blocks_k,
                ring_of ring, ring_place *r, float (&total)[S::BN / 2])
{
    constexpr bool AHEAD = S::BN <= 64;     // registers for the next group's terms, too
    const int halves = g->a.w.block_k / 32; // of a group
    const int64_t row = (int64_t)t->m * S::BM + warp * 16 + (int)threadIdx.x % 32 / 4;
    const int all = (int)((g->a.w.k + 31) / 32);
    int done = 0; // halves of the group
    int64_t group = 0;
    group_terms now = terms_of_group<S>(g, t->e, row, 0);
    group_terms next = now;
    uint32_t a[2][4];
    float acc[S::BN / 2];
#pragma unroll
    for (int i = 0; i < S::BN / 2; i++) {
        total[i] = 0.0f;
        acc[i] = 0.0f;
    }
#pragma unroll 1
    for (int kb = 0; kb < blocks_k; kb += S::DEPTH) {
        const uint32_t stage = ring.stages + r->stage * S::STAGE;
        stagger(g->delay, (uint32_t)kb);
        hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
#pragma unroll
        for (int d = 0; d < S::DEPTH; d++) {
            if (d > 0 && kb + d >= blocks_k) {
                break;
            }
            packed_block<S> b;
            load_block<S>(stage + ((warp / 4) * S::DEPTH + d) * S::BLOCK, plain, 0, &b);
            const uint64_t x = hopper_operand(stage + S::WEIGHTS + d * S::BN * STAGE_K);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int h = 2 * (kb + d) + half;
                if (h >= all) {
                    break;
                }
                if (AHEAD && done == 0 && h + halves < all) { // nobody waits for it
                    next = terms_of_group<S>(g, t->e, row, group + 1);
                }
                b.with[2 * half] = b.with[2 * half + 1] = now.zeros;
                multiply_half<S, 0>(b, half, plain, done == 0, x, a, acc);
                hopper_mma_keep(acc);
                if (++done == halves || h + 1 == all) {
#pragma unroll
                    for (int i = 0; i < S::BN / 2; i++) {
                        total[i] = __fmaf_rn(acc[i] * MOEI_OPERAND_UP(S::OPERAND),
                                             i % 4 < 2 ? now.low : now.high, total[i]);
                    }
                    done = 0;
                    group++;
                    if (AHEAD) {
                        now = next;
                    } else if (h + 1 < all) {
                        now = terms_of_group<S>(g, t->e, row, group);
                    }
                }
            }
        }
        advance(r, g->stages);
        release(r, ring.empty);
    }
}

// A block of outputs is complete when all its tiles are: the pipe that finishes the last of them
// combines.
template <class S>
static __device__ __forceinline__ void combine_block(const moek_combine_args *c, int32_t m,
                                                     int thread)
{
    constexpr int PIECE = 4;
    constexpr int PIECES = S::BM / PIECE;
    for (int64_t i = thread; i < c->tokens * PIECES; i += S::TEAM) {
        moei_gpu_combine_piece<PIECE>(c, i / PIECES, (int64_t)m * S::BM + i % PIECES * PIECE);
    }
}

// What a pipe has finished last and not told yet: telling waits for its stores, which are complete
// when the next tile's products are.
template <class S>
static __device__ __forceinline__ void tell(const moei_mma_args *g, uint32_t prefix, int32_t m,
                                            int pipe, int32_t *last)
{
    __threadfence();
    hopper_sync(1 + pipe, S::TEAM);
    if (threadIdx.x % S::TEAM == 0) {
        const int32_t tiles = hopper_pointer<const int32_t>(prefix)[g->a.w.count];
        *last = atomicAdd(&g->arrived[m], 1) + 1 == tiles;
    }
}

template <class S>
static __device__ __forceinline__ void combine_if_last(const moei_mma_args *g, int32_t m, int pipe,
                                                       const int32_t *last)
{
    hopper_sync(1 + pipe, S::TEAM);
    if (*last) {
        __threadfence();
        combine_block<S>(&g->combine, m, (int)threadIdx.x % S::TEAM);
    }
}

template <class S>
static __device__ __forceinline__ void multiply(const moei_mma_args *g, uint32_t prefix, int pipe,
                                                int warp, ring_of ring, uint32_t turn)
{
    const int blocks_k = (int)((S::X_BYTES * g->a.w.k + STAGE_K - 1) / STAGE_K);
    __shared__ int32_t last[S::PIPES];
    const bool combines = S::PIPES > 1 && g->combines;
    ring_place r = {0, 0, -1};
    float sums[S::BN / 2];
    int32_t told = -1; // block of outputs of the tile before, which is told of a tile later
    for (uint32_t i = 0;; i++) {
        const tile_note<S> *note = hopper_pointer<const tile_note<S>>(ring.notes) + i % 2;
        hopper_barrier_wait(ring.notes_full + 8 * (i % 2), i / 2 % 2);
        const moei_tile t = note->tile;
        if (t.e < 0) {
            break;
        }
        if constexpr (S::PACKED) {
            const bool plain = is_plain<S>(&g->a.w, t.e);
            if (S::APART && g->a.w.block_k > 0) {
                multiply_groups<S>(g, &t, plain, warp, blocks_k, ring, &r, sums);
            } else {
                multiply_chunks<S>(g, plain, warp / 4, blocks_k, ring, &r, sums);
            }
        } else if constexpr (S::KIND == KIND_E4M3) {
            multiply_folds<S>(g, &t, warp, blocks_k, ring, &r, sums);
        } else {
            multiply_chain<S>(g, warp / 4, blocks_k, ring, &r, sums);
        }
        stagger(g->delay, 0x10000);
        if (combines && told >= 0) {
            tell<S>(g, prefix, told, pipe, &last[pipe]);
        }
        finish_tile<S>(g, note, warp, sums, turn);
        if (combines && told >= 0) {
            combine_if_last<S>(g, told, pipe, &last[pipe]);
        }
        told = note->tile.m;
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            hopper_barrier_arrive(ring.notes_empty + 8 * (i % 2));
        }
    }
    if (combines && told >= 0) {
        tell<S>(g, prefix, told, pipe, &last[pipe]);
        combine_if_last<S>(g, told, pipe, &last[pipe]);
    }
    if (combines && pipe == 0 && hopper_pointer<const int32_t>(prefix)[g->a.w.count] == 0) {
        for (int32_t m = (int32_t)blockIdx.x; m < g->m_blocks; m += (int32_t)gridDim.x) {
            combine_block<S>(&g->combine, m, (int)threadIdx.x); // no expert has a row
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
    const int thread = (int)threadIdx.x;
    if (thread < S::PIPES * g.stages) {
        const int pipe = thread / g.stages;
        const int stage = thread % g.stages;
        // One arrival that says what the copy engine brings, and the lanes'.
        hopper_barrier_init(hopper_smem(&full[pipe][stage]), lanes_move<S>(&g) ? 1 + 32 : 1);
        hopper_barrier_init(hopper_smem(&empty[pipe][stage]), S::TEAM / 32);
        if (stage < 2) {
            hopper_barrier_init(hopper_smem(&notes_full[pipe][stage]), 1);
            hopper_barrier_init(hopper_smem(&notes_empty[pipe][stage]), S::TEAM / 32);
        }
        hopper_barrier_init_done();
    }
    if (thread == 0) {
        hopper_tensor_prefetch(&g.x);
        if (!S::PACKED) {
            hopper_tensor_prefetch(&g.weights);
        }
    }
    for (int i = thread; i < S::PIPES * g.stages * (S::SCALES / 4); i += S::THREADS) {
        hopper_pointer<float>(scales)[i] = 1.0f; // stays where scales of x do not change along k
    }
    if (!g.early) {
        hopper_grid_wait();
        hopper_grid_launch();
    }
    for (int i = thread; i < g.clears && blockIdx.x == 0; i += S::THREADS) {
        g.clear[i] = 0;
    }
    moei_tiles_begin(&g.a, S::BN, hopper_pointer<int32_t>(prefix)); // ends in a barrier
    const int warp =
        __shfl_sync(~0u, thread / 32, 0); // the same in all lanes, as the compiler sees
    const bool produces = warp >= S::MATH / 32;
    const int pipe = S::PIPES == 1 ? 0 : produces ? warp - S::MATH / 32 : warp / (S::TEAM / 32);
    const ring_of ring = {rings + pipe * g.stages * S::STAGE,
                          scales + pipe * g.stages * S::SCALES,
                          hopper_smem(full[pipe]),
                          hopper_smem(empty[pipe]),
                          hopper_smem(notes[pipe]),
                          hopper_smem(notes_full[pipe]),
                          hopper_smem(notes_empty[pipe])};
    if (produces) {
        if constexpr (S::REGISTERS) {
            hopper_registers_shrink<S::PRODUCER_REGISTERS>();
        }
        if (warp - S::MATH / 32 < S::PIPES) {
            produce<S>(&g, prefix, pipe, ring);
        }
    } else {
        if constexpr (S::REGISTERS) {
            hopper_registers_grow<S::MATH_REGISTERS>();
        }
        multiply<S>(&g, prefix, pipe, warp % (S::TEAM / 32), ring, turns + warp * TURN_BYTES);
    }
}

template <class S> static moei_mma_variant variant_of(void)
{
    return {S::BM,
            S::BN,
            S::PIPES,
            S::THREADS,
            S::STAGE,
            S::SCALES,
            S::MATH / 32 * TURN_BYTES,
            (const void *)ggemm_wgmma<S>};
}

// Pipes of one math warpgroup each.
template <int KIND, int BN, int PIPES, int DEPTH> static moei_mma_variant few_rows(void)
{
    return variant_of<shape<KIND, BN, PIPES, 1, DEPTH>>();
}

// One pipe of two.
template <int KIND, int BN, int DEPTH> static moei_mma_variant many_rows(void)
{
    return variant_of<shape<KIND, BN, 1, 2, DEPTH>>();
}

#endif
