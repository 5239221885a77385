// SPDX-License-Identifier: Apache-2.0
// The products of a tile, from the ring to sums in registers: one chain, a chain per block, or
// packed weights decoded on the way.
#ifndef MOEI_CUDA_WGMMA_MULTIPLY_CUH
#define MOEI_CUDA_WGMMA_MULTIPLY_CUH

#include "backends/cuda/decode.cuh"
#include "backends/cuda/wgmma_shape.cuh"
#include "backends/gpu/scales.cuh"

// A ring, as a math warpgroup goes through it.
typedef struct ring_place {
    int stage;
    uint32_t parity;
    int before; // the stage whose products may still be under way; -1: none
} ring_place;

// Gives the stage before back, to every block that brings something to it.
template <class S> static __device__ __forceinline__ void release(ring_place *r, ring_of ring)
{
    if (r->before >= 0 && threadIdx.x % 32 < ring.emptiers) {
        if (S::CLUSTER > 1) {
            hopper_barrier_arrive_at(ring.empty_at + 8 * r->before);
        } else {
            hopper_barrier_arrive(ring.empty + 8 * r->before);
        }
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

// The instruction that multiplies fewer rows than that of N.
static constexpr int fewer_rows(int n)
{
    return n > 128 ? n - 16 : n - 32;
}

// Calls f with the rows, as a constant, of the shortest instruction that suffices for `rows`.
template <class S, int N, class F>
static __device__ __forceinline__ void for_rows(int rows, const F &f)
{
    if constexpr (S::TRIMS && N > 64) {
        if (rows <= fewer_rows(N)) {
            for_rows<S, fewer_rows(N)>(rows, f);
            return;
        }
    }
    f(std::integral_constant<int, N>());
}

// The sums of the first N rows.
template <int N, int COUNT>
static __device__ __forceinline__ float (&sums_of(float (&acc)[COUNT]))[N / 2]
{
    static_assert(N / 2 <= COUNT, "no more than there are");
    return reinterpret_cast<float(&)[N / 2]>(acc);
}

// The products of a stage's block d for this warpgroup, both operands in shared memory; of N rows.
template <class S, int N = 2 * S::SUMS>
static __device__ __forceinline__ void multiply_block(uint32_t stage, int group, int d, bool fresh,
                                                      float (&acc)[N / 2])
{
    const int own = group * 64 * STAGE_K; // of the M operand
    const uint64_t w = hopper_operand(stage + d * S::BM * STAGE_K + (S::ROWS_M ? 0 : own));
    const uint64_t x =
        hopper_operand(stage + S::WEIGHTS + d * S::BN * STAGE_K + (S::ROWS_M ? own : 0));
#pragma unroll
    for (int j = 0; j < 4; j++) {
        hopper_mma<N, S::KIND>(acc, (S::ROWS_M ? x : w) + 2 * j, (S::ROWS_M ? w : x) + 2 * j,
                               !fresh || j != 0);
    }
}

// bf16 and f16: one chain over K.
template <class S, int N>
static __device__ __forceinline__ void multiply_chain(const moei_mma_args *g, int group,
                                                      int blocks_k, ring_of ring, ring_place *r,
                                                      float (&acc)[N / 2])
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
            multiply_block<S, N>(stage, group, d, kb + d == 0, acc);
            hopper_mma_commit();
            hopper_mma_wait<1>();
            release<S>(r, ring); // the stage before, once: its last products are done
        }
        advance(r, g->stages);
    }
    hopper_mma_wait<0>();
    hopper_mma_keep(acc);
    release<S>(r, ring);
}

// Scales along k of eight outputs of a warp: a lane holds the scale of every 32nd block of k, the
// others ask for it. Where blocks of outputs end inside of an eight, every lane reads its own.
typedef struct block_scales {
    int64_t at; // of this lane's output, or of the first of the eight; -1: 1 for all k
    float of_lane;
} block_scales;

static __device__ __forceinline__ float next_scale(const moei_mma_args *g, block_scales *s, int kb,
                                                   int blocks_k)
{
    const moei_matrices *w = &g->a.w;
    if (s->at < 0) {
        return 1.0f;
    }
    if (!g->scales_by_eights) {
        return load_w_scale(w, s->at, kb);
    }
    if (kb % 32 == 0) {
        const int mine = kb + (int)threadIdx.x % 32;
        s->of_lane = load_w_scale(w, s->at, mine < blocks_k ? mine : kb);
    }
    return __shfl_sync(~0u, s->of_lane, kb % 32);
}

// Waits for the next stage and begins its products, a chain of their own.
template <class S>
static __device__ __forceinline__ void begin_chain(const moei_mma_args *g, int group, int kb,
                                                   ring_of ring, const ring_place *r,
                                                   float (&acc)[S::SUMS])
{
    stagger(g->delay, (uint32_t)kb);
    hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
    hopper_mma_begin();
    multiply_block<S>(ring.stages + r->stage * S::STAGE, group, 0, true, acc);
    hopper_mma_commit();
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
template <class S, bool CODES>
static __device__ __forceinline__ void multiply_folds(const moei_mma_args *g, const moei_tile *t,
                                                      int warp, int blocks_k, ring_of ring,
                                                      ring_place *r, float (&total)[S::SUMS])
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
#pragma unroll
    for (int i = 0; i < S::SUMS; i++) {
        total[i] = 0.0f;
    }
#pragma unroll 1
    for (int kb = 0; kb < blocks_k; kb++) {
        float acc[S::SUMS];
        const float s_low = next_scale(g, &low, kb, blocks_k);
        const float s_high = next_scale(g, &high, kb, blocks_k);
        begin_chain<S>(g, warp / 4, kb, ring, r, acc);
        const float *of_x =
            hopper_pointer<const float>(ring.scales + r->stage * S::SCALES) + lane % 4 * 2;
        hopper_mma_wait<0>();
        hopper_mma_keep(acc);
        fold<S, CODES>(acc, of_x, kb, s_low, s_high, total);
        advance(r, g->stages);
        release<S>(r, ring); // its scales have been read, too
    }
}

// The same where rows of x are the M operand: a thread has two of them, and two of each eight
// outputs. Scales take a sixth of the shared memory's time that they take the other way round,
// which bounds the products of many rows: operands come at 128 bytes a cycle, and FP8 needs them
// twice as fast as bf16.
template <class S>
static __device__ __forceinline__ void multiply_rows_first(const moei_mma_args *g, int warp,
                                                           int rows, int blocks_k, ring_of ring,
                                                           ring_place *r, float (&total)[S::SUMS])
{
    if (warp / 4 * 64 >= rows) { // the warpgroup has none
#pragma unroll 1
        for (int kb = 0; kb < blocks_k; kb++) {
            hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
            advance(r, g->stages);
            release<S>(r, ring);
        }
        return;
    }
    const int row = warp * 16 + (int)threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < S::SUMS; i++) {
        total[i] = 0.0f;
    }
#pragma unroll 1
    for (int kb = 0; kb < blocks_k; kb++) {
        const float *scales = hopper_pointer<const float>(ring.scales + r->stage * S::SCALES);
        float acc[S::SUMS];
        begin_chain<S>(g, warp / 4, kb, ring, r, acc);
        const float x0 = scales[row];
        const float x1 = scales[row + 8];
        hopper_mma_wait<0>();
        hopper_mma_keep(acc);
#pragma unroll
        for (int b = 0; b < S::BM / 8; b += 4) {
            const float4 four = *(const float4 *)(scales + S::BN + b);
            const float s_w[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int i = 4 * b; i < 4 * b + 16; i++) {
                total[i] = __fmaf_rn(acc[i] * (i % 4 < 2 ? x0 : x1), s_w[i / 4 - b], total[i]);
            }
        }
        advance(r, g->stages);
        release<S>(r, ring);
    }
}

// A thread's codes of a block, and for each step what decodes them; where rows of x lie.
template <class S> struct packed_block {
    static constexpr int WORDS = MOEI_OPERAND_CODES(S::OPERAND) / (128 * 4 * 4); // of a step
    uint32_t words[4 * WORDS];
    uint32_t with[4]; // factors, scales or zero points: decode.cuh
    uint64_t x;       // as the matrix unit reads them; SYNC: the lane's of the first eight
};

// Block d of a stage.
// @param plain  the expert's flag
// @param zeros  U4, U8: the pair of addends
template <class S>
static __device__ __forceinline__ void load_block(uint32_t stage, int group, int d, bool plain,
                                                  uint32_t zeros, packed_block<S> *b)
{
    const int thread = (int)threadIdx.x % 128;
    const uint32_t at = stage + (group * S::DEPTH + d) * S::BLOCK;
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
    const uint32_t x = stage + S::WEIGHTS + d * S::BN * STAGE_K;
    const int row = thread % 8;
    const int piece = thread % 32 / 8 ^ row; // of 16 bytes, as they are swizzled
    b->x = S::SYNC ? x + row * STAGE_K + piece * 16 : hopper_operand(x);
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

// Half a block, 32 k. Where products may stay under way (PENDING 1; -1: whoever calls waits),
// registers of the halves take turns: a product reads one while the other is decoded. SYNC: fresh
// sums are 0.
template <class S, int PENDING, int N = S::BN>
static __device__ __forceinline__ void multiply_half(const packed_block<S> &b, int half, bool plain,
                                                     bool fresh, uint32_t (&a)[2][4],
                                                     float (&acc)[N / 2])
{
    if constexpr (S::SYNC) {
        uint32_t rows[S::BN / 8][4]; // of each eight of them, two for each step
#pragma unroll
        for (int i = 0; i < S::BN / 8; i++) {
            hopper_load_matrices(((uint32_t)b.x ^ 64 * half) + i * 8 * STAGE_K, rows[i]);
        }
        decode_step<S>(b, 2 * half, plain, a[0]);
#pragma unroll
        for (int i = 0; i < S::BN / 8; i++) {
            hopper_mma_sync(acc + 4 * i, a[0], rows[i]);
        }
        decode_step<S>(b, 2 * half + 1, plain, a[1]);
#pragma unroll
        for (int i = 0; i < S::BN / 8; i++) {
            hopper_mma_sync(acc + 4 * i, a[1], rows[i] + 2);
        }
    } else {
        decode_step<S>(b, 2 * half, plain, a[0]);
        decode_step<S>(b, 2 * half + 1, plain, a[1]);
        hopper_mma_begin();
        hopper_mma_registers<N>(acc, a[0], b.x + 4 * half, !fresh);
        hopper_mma_registers<N>(acc, a[1], b.x + 4 * half + 2, 1);
        hopper_mma_commit();
        if constexpr (PENDING >= 0) {
            hopper_mma_wait<PENDING>();
        }
    }
}

// A whole stage of plain codes, without branches: a block is loaded and decoded while the products
// of the one before are under way.
template <class S>
static __device__ __forceinline__ void multiply_stage(uint32_t stage, int group, uint32_t zeros,
                                                      float (&acc)[S::BN / 2])
{
#pragma unroll
    for (int d = 0; d < S::DEPTH; d++) {
        packed_block<S> b;
        uint32_t a[2][4];
        load_block<S>(stage, group, d, true, zeros, &b);
        multiply_half<S, 0>(b, 0, true, false, a, acc);
        multiply_half<S, 0>(b, 1, true, false, a, acc);
    }
}

// Flags of an expert's packed weights.
template <class S>
static __device__ __forceinline__ bool is_plain(const moei_matrices *w, int32_t e)
{
    if (S::OPERAND != MOEI_OPERAND_MXFP4 && S::OPERAND != MOEI_OPERAND_E4M3) {
        return true;
    }
    const uint8_t *expert = w->values + e * w->value_e_stride;
    const uint32_t flags = *(const uint32_t *)(expert + moei_operand_flags_at(S::OPERAND, w));
    return (flags & MOEI_OPERAND_PLAIN) != 0;
}

// total += the chunks' sums, those of all pipes that share a tile, by the first of them.
template <class S>
static __device__ __forceinline__ void add_shared(const chunk_share &share, int blocks_k,
                                                  float (&total)[S::BN / 2])
{
    const float4 *sums = hopper_pointer<const float4>(share.sums) + threadIdx.x % S::TEAM;
    hopper_sync(1 + S::PIPES + share.team, share.step * S::TEAM);
#pragma unroll 1
    for (int k0 = 0; k0 < blocks_k && share.first == 0; k0 += CHUNK) {
#pragma unroll
        for (int i = 0; i < S::BN / 2; i += 4) {
            const float4 four = *sums;
            total[i] = total[i] + four.x;
            total[i + 1] = total[i + 1] + four.y;
            total[i + 2] = total[i + 2] + four.z;
            total[i + 3] = total[i + 3] + four.w;
            sums += S::TEAM;
        }
    }
    hopper_sync(1 + S::PIPES + share.team, share.step * S::TEAM); // the next tile's may come
}

// Packed weights whose scales are in the blocks, or hold for all of k: a chain per chunk. By
// warpgroups: codes of the next block are asked for while products of this one are under way.
template <class S, int N, bool PLAIN>
static __device__ __forceinline__ void multiply_ahead(const moei_mma_args *g, int group,
                                                      int blocks_k, ring_of ring, ring_place *r,
                                                      float (&total)[N / 2])
{
    const uint32_t zero = (uint32_t)g->zero_point;
    const uint32_t zeros = S::APART ? decode_zeros(zero, zero) : 0;
    uint32_t a[2][2][4];
    packed_block<S> b;
    int d = 0; // of the blocks of a stage
    stagger(g->delay, 0);
    hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
    load_block<S>(ring.stages + r->stage * S::STAGE, group, 0, PLAIN, zeros, &b);
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        total[i] = -0.0f; // changes no sum
    }
#pragma unroll 1
    for (int k0 = 0; k0 < blocks_k; k0 += CHUNK) {
        const int k1 = k0 + CHUNK < blocks_k ? k0 + CHUNK : blocks_k;
        float acc[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            acc[i] = 0.0f;
        }
#pragma unroll 1
        for (int kb = k0; kb < k1; kb++) {
            multiply_half<S, 1, N>(b, 0, PLAIN, false, a[0], acc);
            release<S>(r, ring); // the stage before, once: its last products are done
            multiply_half<S, -1, N>(b, 1, PLAIN, false, a[1], acc);
            if (++d == S::DEPTH || kb + 1 == blocks_k) {
                advance(r, g->stages);
                d = 0;
                if (kb + 1 < blocks_k) {
                    stagger(g->delay, (uint32_t)kb);
                    hopper_barrier_wait(ring.full + 8 * r->stage, r->parity);
                }
            }
            if (kb + 1 < blocks_k) {
                load_block<S>(ring.stages + r->stage * S::STAGE, group, d, PLAIN, zeros, &b);
            }
            hopper_mma_wait<1>();
        }
        hopper_mma_wait<0>();
        hopper_mma_keep(acc);
        release<S>(r, ring);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            total[i] = total[i] + acc[i];
        }
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        total[i] = total[i] * MOEI_OPERAND_UP(S::OPERAND);
    }
}

// The same by warps.
template <class S>
static __device__ __forceinline__ void
multiply_chunks(const moei_mma_args *g, bool plain, int group, int blocks_k,
                const chunk_share &share, ring_of ring, ring_place *r, float (&total)[S::BN / 2])
{
    static_assert(CHUNK % S::DEPTH == 0, "a stage lies in one chunk");
    const uint32_t zero = (uint32_t)g->zero_point;
    const uint32_t zeros = S::APART ? decode_zeros(zero, zero) : 0;
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < S::BN / 2; i++) {
        total[i] = -0.0f; // changes no sum
    }
#pragma unroll 1
    for (int k0 = share.first * CHUNK; k0 < blocks_k; k0 += share.step * CHUNK) {
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
            const bool whole = plain && k1 - kb >= S::DEPTH;
            if (whole) {
                multiply_stage<S>(stage, group, zeros, acc);
            }
#pragma unroll 1
            for (int d = 0; d < S::DEPTH && !whole; d++) {
                if (d > 0 && kb + d >= k1) {
                    break;
                }
                packed_block<S> b;
                load_block<S>(stage, group, d, plain, zeros, &b);
                multiply_half<S, 0>(b, 0, plain, false, a, acc);
                multiply_half<S, 0>(b, 1, plain, false, a, acc);
            }
            advance(r, g->stages);
            __syncwarp();
            release<S>(r, ring); // all lanes have read it
        }
        if (S::SHARES && share.step > 1) {
            float4 *sums = hopper_pointer<float4>(share.sums) + threadIdx.x % S::TEAM +
                           k0 / CHUNK * (S::BN / 8 * S::TEAM);
#pragma unroll
            for (int i = 0; i < S::BN / 2; i += 4) {
                sums[i / 4 * S::TEAM] = {acc[i], acc[i + 1], acc[i + 2], acc[i + 3]};
            }
            continue;
        }
#pragma unroll
        for (int i = 0; i < S::BN / 2; i++) {
            total[i] = total[i] + acc[i];
        }
    }
    if (S::SHARES && share.step > 1) {
        add_shared<S>(share, blocks_k, total);
    }
#pragma unroll
    for (int i = 0; i < S::BN / 2; i++) {
        total[i] = total[i] * MOEI_OPERAND_UP(S::OPERAND);
    }
}

// What belongs to a group of k, for this thread's two outputs.
typedef struct group_terms {
    float low, high; // scales
    uint32_t zero_low, zero_high;
} group_terms;

// Where those of the next group lie.
typedef struct group_place {
    const float *scales;
    const uint8_t *zeros; // NULL: all the same
    int64_t pitch;
    uint32_t zero_point;
} group_place;

template <class S>
static __device__ __forceinline__ group_place first_group(const moei_mma_args *g, int32_t e,
                                                          int64_t row)
{
    const moei_matrices *w = &g->a.w;
    const uint8_t *expert = w->values + e * w->value_e_stride;
    return {packed_scales<S>(w, e) + row,
            w->zero_e_stride > 0 ? expert + moei_operand_zeros_at(S::OPERAND, w) + row : NULL,
            moei_operand_pitch(w), (uint32_t)g->zero_point};
}

static __device__ __forceinline__ group_terms next_group(group_place *p)
{
    group_terms terms = {p->scales[0], p->scales[8], p->zero_point, p->zero_point};
    p->scales += p->pitch;
    if (p->zeros != NULL) {
        terms.zero_low = p->zeros[0];
        terms.zero_high = p->zeros[8];
        p->zeros += p->pitch;
    }
    return terms;
}

// Packed weights whose scales change along k: a chain per group, total = fma(chain, s_w, total).
template <class S>
static __device__ __forceinline__ void
multiply_groups(const moei_mma_args *g, const moei_tile *t, bool plain, int warp, int blocks_k,
                ring_of ring, ring_place *r, float (&total)[S::BN / 2])
{
    constexpr bool AHEAD = S::BN <= 64;     // registers for the next group's terms, too
    const int halves = g->a.w.block_k / 32; // of a group
    const int64_t block = S::GROUPS * (int64_t)t->m + warp / 4; // of 64 outputs, or where it ends
    const int64_t row = (block < moei_operand_blocks_n(&g->a.w) ? block : 0) * 64 + warp % 4 * 16 +
                        (int)threadIdx.x % 32 / 4;
    const int all = (int)((g->a.w.k + 31) / 32);
    int done = 0; // halves of the group
    group_place place = first_group<S>(g, t->e, row);
    group_terms now = next_group(&place);
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
            load_block<S>(stage, warp / 4, d, plain, 0, &b);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int h = 2 * (kb + d) + half;
                if (h >= all) {
                    break;
                }
                if (AHEAD && done == 0 && h + halves < all) { // nobody waits for them
                    next = next_group(&place);
                }
                b.with[2 * half] = b.with[2 * half + 1] = decode_zeros(now.zero_low, now.zero_high);
                multiply_half<S, 0>(b, half, plain, done == 0, a, acc);
                hopper_mma_keep(acc);
                if (++done == halves || h + 1 == all) {
#pragma unroll
                    for (int i = 0; i < S::BN / 2; i++) {
                        total[i] = __fmaf_rn(acc[i] * MOEI_OPERAND_UP(S::OPERAND),
                                             i % 4 < 2 ? now.low : now.high, total[i]);
                        acc[i] = S::SYNC ? 0.0f : acc[i]; // fresh
                    }
                    done = 0;
                    if (AHEAD) {
                        now = next;
                    } else if (h + 1 < all) {
                        now = next_group(&place);
                    }
                }
            }
        }
        advance(r, g->stages);
        __syncwarp();
        release<S>(r, ring);
    }
}

#endif
