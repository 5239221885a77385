// SPDX-License-Identifier: Apache-2.0
// ggemm on Hopper's warpgroup matrix units, for rows of x in 16-bit floats:
//   weights in bf16 or f16, as the checkpoint has them: classes wgmma_bf16, wgmma_f16, one chain
//   over K;
//   weights in MXFP4, packed (operand.h) and decoded to bf16 in registers, which is exact: class
//   wgmma_bf16_c576, a chain per 576 k, chunk sums added in ascending order.
// The bits of a class are the same whatever the tile.
//
// Weights are the M operand, rows of x are N: one instruction shape serves every number of rows.
// A block is persistent and walks tiles of 128 outputs x BN rows (gpu/tiles.cuh):
//   a producer warpgroup fills a ring of stages, 64 k each: weights by the copy engine, rows of x
//   by 16-byte copies from wherever they lie;
//   two math warpgroups of 64 outputs each multiply, then finish in registers.
// With SiLU or gpt-oss's SwiGLU, a tile's 128 outputs are 64 gates and 64 ups in alternating eights
// (the copy engine brings them in this order, or they are packed so): a thread holds a gate and
// its up.
#include "backends/cuda/hopper.cuh"
#include "backends/cuda/mma.h"
#include "backends/cuda/operand.h"
#include "backends/gpu/elements.cuh"
#include "backends/gpu/tiles.cuh"
#include "numerics/activation.h"

#define BM           128 // outputs of a tile
#define STAGE_K      128 // bytes of k of a row of x in a stage: one swizzle row
#define MATH_THREADS 256
#define THREADS      (MATH_THREADS + 128)
#define TURN_BYTES   1024 // of a warp: 32 rows of y, 16 outputs each
#define MAX_STAGES   16
#define SHARED_LIMIT (227 * 1024)
#define MXFP4_CHUNK  9 // stages of a chain

// Kinds of weights; the first two are types of hopper_mma.
enum { KIND_BF16 = HOPPER_BF16, KIND_F16 = HOPPER_F16, KIND_MXFP4, NUM_KINDS };

// Bytes of weights in a stage, up to where rows of x begin.
static constexpr int weight_bytes(int kind)
{
    return kind == KIND_MXFP4 ? (2 * MOEI_OPERAND_BYTES + 1023) / 1024 * 1024 : BM * STAGE_K;
}

static constexpr int stage_bytes(int kind, int bn)
{
    return weight_bytes(kind) + bn * STAGE_K;
}

typedef struct mma_args {
    CUtensorMap weights;
    moek_ggemm_args a;
    moek_glu_args glu; // where `fused`
    int32_t fused;
    int32_t paired;       // tiles hold eights of two parts in turn (always where fused)
    int32_t up_first;     // of the two parts, ups have the lower rows
    int64_t second, step; // output i of the parts: i * step, second + i * step
    int64_t outputs;      // of a part, or of all
    int32_t m_blocks;     // tiles along the outputs
    float limit;          // of the activation
    int32_t aligned;      // rows of x begin at multiples of 16 bytes
    int32_t vector;       // rows of the output do
    int32_t stages;
} mma_args;

// ---- the producer ------------------------------------------------------------------------------

// Eight elements of a row of x that need not be aligned, with those past the end as zeros.
static __device__ void copy_elements(uint8_t *to, const uint8_t *from, int64_t k0, int64_t k)
{
    uint16_t v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint8_t *p = from + 2 * (k0 + i);
        v[i] = k0 + i < k ? (uint16_t)(p[0] | p[1] << 8) : (uint16_t)0;
    }
    *(uint4 *)to = make_uint4(v[0] | (uint32_t)v[1] << 16, v[2] | (uint32_t)v[3] << 16,
                              v[4] | (uint32_t)v[5] << 16, v[6] | (uint32_t)v[7] << 16);
}

// Fills the rows' part of a stage. A thread copies the same 16 bytes of k of every 16th row; where
// its rows lie stays in registers for the whole tile, so that copies follow each other closely.
template <int BN> struct row_copies {
    static constexpr int COUNT = (BN + 15) / 16;
    uint32_t from[COUNT]; // sixteenths of bytes from x; half the registers of addresses
    uint32_t there;       // bit j: row j exists
    bool far;             // a row lies 64 GiB or more from x: `from` does not hold it
};

template <int BN>
static __device__ __forceinline__ void find_rows(const moek_ggemm_args *a, const moei_tile *t,
                                                 int tid, row_copies<BN> *rows)
{
    rows->there = 0;
    rows->far = false;
#pragma unroll
    for (int j = 0; j < row_copies<BN>::COUNT; j++) {
        const int r = tid / 8 + 16 * j;
        const bool there = r < BN && t->i0 + r < t->i1;
        const int64_t at = there ? (moei_x_at(a, t->e, t->i0 + r) - a->x.data) / 16 : 0;
        rows->from[j] = (uint32_t)at;
        rows->far = rows->far || at >> 32 != 0;
        rows->there |= there ? 1u << j : 0u;
    }
}

// Asks for the weights of a stage.
template <int KIND>
static __device__ __forceinline__ void fetch_weights(const mma_args *g, const moei_tile *t, int kb,
                                                     int blocks_k, uint8_t *to, uint64_t *full,
                                                     uint64_t policy)
{
    if constexpr (KIND == KIND_MXFP4) {
        const moei_matrices *w = &g->a.w;
        const int64_t block = 2 * (int64_t)t->m; // of 64 outputs
        const uint8_t *from =
            w->values + t->e * w->value_e_stride + (block * blocks_k + kb) * MOEI_OPERAND_BYTES;
        const int there = block + 1 < moei_operand_blocks_n(w) ? 2 : 1;
        hopper_barrier_expect(full, (uint32_t)(there * MOEI_OPERAND_BYTES));
        for (int i = 0; i < there; i++) {
            hopper_copy_bulk(to + i * MOEI_OPERAND_BYTES,
                             from + (int64_t)i * blocks_k * MOEI_OPERAND_BYTES, MOEI_OPERAND_BYTES,
                             full, policy);
        }
    } else {
        hopper_barrier_expect(full, BM * STAGE_K);
        if (g->fused) {
            hopper_tensor_5d(to, &g->weights, kb * (STAGE_K / 2), t->m * (BM / 16), t->e, full,
                             policy);
        } else {
            hopper_tensor_3d(to, &g->weights, kb * (STAGE_K / 2), t->m * BM, t->e, full, policy);
        }
    }
}

template <int BN, int KIND>
static __device__ __forceinline__ void produce(const mma_args *g, const int32_t *prefix,
                                               uint8_t *ring, uint64_t *full, uint64_t *empty)
{
    constexpr int PITCH = stage_bytes(KIND, BN);
    const moek_ggemm_args *a = &g->a;
    const int tid = (int)threadIdx.x - MATH_THREADS;
    const int64_t row_bytes = 2 * a->w.k;
    const int blocks_k = (int)((row_bytes + STAGE_K - 1) / STAGE_K);
    const int stages = g->stages;
    const bool aligned = g->aligned != 0;
    const uint32_t to0 = (uint32_t)(weight_bytes(KIND) + tid / 8 * STAGE_K +
                                    (tid % 8 ^ tid / 8 % 8) * 16); // in a stage; swizzled
    const bool writes = tid / 8 < BN;
    const uint64_t policy = hopper_policy_evict_first();
    int stage = 0;
    uint32_t parity = 1; // of "empty": a fresh ring is
    moei_tile t;
    for (int64_t tile = blockIdx.x; moei_tile_at(a, prefix, BN, g->m_blocks, tile, &t);
         tile += gridDim.x) {
        row_copies<BN> rows;
        find_rows<BN>(a, &t, tid, &rows);
        for (int kb = 0; kb < blocks_k; kb++) {
            uint8_t *weights = ring + stage * PITCH;
            hopper_barrier_wait(&empty[stage], parity);
            if (tid == 0) {
                fetch_weights<KIND>(g, &t, kb, blocks_k, weights, &full[stage], policy);
            }
            const int64_t byte = (int64_t)kb * STAGE_K;
            const bool inside = byte + tid % 8 * 16 < row_bytes;
            if (aligned && !rows.far) {
                const uint32_t to = hopper_smem(weights) + to0;
                const uint8_t *x = a->x.data + (inside ? byte + tid % 8 * 16 : 0);
                if (writes) {
#pragma unroll
                    for (int j = 0; j < row_copies<BN>::COUNT; j++) {
                        const bool there = inside && (rows.there >> j & 1) != 0;
                        hopper_copy_16(to + j * 16 * STAGE_K, x + (uint64_t)rows.from[j] * 16,
                                       there);
                    }
                }
                hopper_barrier_arrive_copies(&full[stage]);
            } else {
#pragma unroll 1
                for (int j = 0; writes && j < row_copies<BN>::COUNT; j++) {
                    const int r = tid / 8 + 16 * j;
                    const bool there = inside && t.i0 + r < t.i1;
                    const uint8_t *from = there ? moei_x_at(a, t.e, t.i0 + r) : a->x.data;
                    copy_elements(weights + to0 + j * 16 * STAGE_K, from, byte / 2 + tid % 8 * 8,
                                  there ? a->w.k : 0);
                }
                hopper_barrier_arrive(&full[stage]);
            }
            if (++stage == stages) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

// ---- math --------------------------------------------------------------------------------------

// Bias of output n; -0 where there is none: it changes no sum.
static __device__ __forceinline__ float bias_of(const moek_ggemm_args *a, int32_t e, int64_t n)
{
    return a->w.bias != NULL && n < a->w.n
               ? moei_gpu_load_float(a->w.bias_dtype, a->w.bias, e * a->w.bias_e_stride + n)
               : -0.0f;
}

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

static __device__ __forceinline__ uint8_t *output_at(const mma_args *g, const moei_tile *t,
                                                     int64_t i)
{
    if (g->fused) {
        const int64_t batch = g->a.offsets == NULL ? t->e * g->glu.y_batch_stride : 0;
        return g->glu.y + batch + i * g->glu.y_row_stride;
    }
    return moei_y_at(&g->a, t->e, i);
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
template <int COUNT>
static __device__ __forceinline__ void store_rows(const mma_args *g, const moei_tile *t,
                                                  const output *o, int64_t first, int64_t n,
                                                  const float (&v)[COUNT], uint8_t *turn)
{
    const int lane = (int)threadIdx.x % 32;
    const int span = g->fused ? 8 : 16; // outputs
    const int64_t i = first + lane;
    const bool there = lane < COUNT * 2 && i < t->i1;
    if (g->paired && !g->fused) {
        const int64_t own = n / 2 + lane / 4;
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int64_t row = first + c / 4 * 8 + lane % 4 * 2 + c % 2;
            if (row < t->i1 && own < g->outputs) {
                moei_gpu_store(o->dtype, output_at(g, t, row),
                               own * g->step + (c % 4 < 2 ? 0 : g->second), v[c]);
            }
        }
        return;
    }
    if (o->dtype == MOE_F32) {
        // Eight lanes hold eight outputs of a row: whole sectors as they are.
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int64_t row = first + c / 4 * 8 + lane % 4 * 2 + c % 2;
            const int64_t at = n + lane / 4 + c % 4 / 2 * 8;
            if (row < t->i1 && at < o->width && (!g->fused || c % 4 < 2)) {
                store_f32(output_at(g, t, row) + 4 * at, v[c]);
            }
        }
        return;
    }
    const uint32_t base = hopper_smem(turn);
    __syncwarp();
    if (g->fused) {
        uint32_t p[4] = {0, 0, 0, 0};
#pragma unroll
        for (int b = 0; b < COUNT / 4; b++) {
            p[b] = pack(o->dtype, v[4 * b], v[4 * b + 1]);
        }
        hopper_store_transposed(base + lane * 16, p[0], p[1], p[2], p[3]);
    } else {
#pragma unroll
        for (int b = 0; b < (COUNT + 7) / 8; b++) {
            uint32_t p[4] = {0, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < 4 && 8 * b + 2 * j < COUNT; j++) {
                p[j] = pack(o->dtype, v[8 * b + 2 * j], v[8 * b + 2 * j + 1]);
            }
            const int row = (2 * b + lane / 16) * 8 + lane % 8;
            hopper_store_transposed(base + row * 32 + lane / 8 % 2 * 16, p[0], p[1], p[2], p[3]);
        }
    }
    __syncwarp();
    if (!there) {
        return;
    }
    uint8_t *to = output_at(g, t, i) + 2 * n;
    const uint8_t *from = turn + lane * 2 * span;
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

// Sums of a tile to the output: 32 rows at a time.
template <int BN, int KIND>
static __device__ __forceinline__ void finish_tile(const mma_args *g, const moei_tile *t,
                                                   const float (&acc)[BN / 2], uint8_t *turn)
{
    constexpr int COUNT = BN < 32 ? BN / 2 : 16; // sums of a thread for 32 rows
    const moek_ggemm_args *a = &g->a;
    const int lane = (int)threadIdx.x % 32;
    const int warp = (int)threadIdx.x / 32; // 16 outputs each
    const output o = g->fused ? output{g->glu.y_dtype, g->glu.inter} : output{a->y_dtype, a->w.n};
    const int64_t n = (int64_t)t->m * (g->fused ? BM / 2 : BM) + warp * (g->fused ? 8 : 16);
    const int64_t own = g->paired ? (int64_t)t->m * (BM / 2) + warp * 8 + lane / 4 : n + lane / 4;
    const bool inside = own < g->outputs;
    const float low = inside ? bias_of(a, t->e, own * g->step) : 0.0f;
    const float high =
        inside ? bias_of(a, t->e, g->paired ? g->second + own * g->step : own + 8) : 0.0f;
#pragma unroll
    for (int r = 0; r < BN; r += 32) {
        const int64_t first = t->i0 + r;
        if (first >= t->i1) {
            return;
        }
        // A lane reads what belongs to one row, the others ask for it.
        const int64_t i = first + lane;
        const bool there = lane < BN && i < t->i1;
        const float weight_of_lane =
            there && a->row_weight != NULL ? moei_row_weight(a, t->e, i) : 1.0f;
        float v[COUNT];
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const int from = c / 4 * 8 + lane % 4 * 2 + c % 2;
            v[c] = acc[r / 2 + c] + (c % 4 < 2 ? low : high);
            v[c] = v[c] * __shfl_sync(~0u, weight_of_lane, from);
        }
        if (g->fused) {
#pragma unroll
            for (int c = 0; c < COUNT; c++) {
                if (c % 4 < 2) {
                    const float gate = g->up_first ? v[c + 2] : v[c];
                    const float up = g->up_first ? v[c] : v[c + 2];
                    v[c] =
                        g->glu.act.activation == MOE_ACT_SILU
                            ? moei_silu_mul(gate, up, g->limit)
                            : moei_swigluoai(gate, up, g->glu.act.alpha, g->glu.act.beta, g->limit);
                }
            }
        }
        store_rows<COUNT>(g, t, &o, first, n, v, turn + warp * TURN_BYTES);
    }
}

// The ring, as a math warpgroup goes through it.
typedef struct ring_place {
    int stage;
    uint32_t parity;
    int before; // the stage whose products may still be under way; -1: none
} ring_place;

static __device__ __forceinline__ void release(ring_place *r, uint64_t *empty)
{
    if (r->before >= 0 && threadIdx.x % 32 == 0) {
        hopper_barrier_arrive(&empty[r->before]);
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

static __device__ __forceinline__ uint32_t multiply_pair(uint32_t a, uint32_t b)
{
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// A word of operand.h to the registers of one step; scales of the low and the high output. In two
// multiplications: one factor for both would leave bf16's range.
static __device__ __forceinline__ void decode_word(uint32_t w, uint32_t low, uint32_t high,
                                                   uint32_t (&a)[4])
{
    const uint32_t mask = 0x81C081C0u;
    const uint32_t up = 0x7E807E80u; // 2^126
    a[0] = multiply_pair(multiply_pair(w & mask, up), low);
    a[1] = multiply_pair(multiply_pair(w << 3 & mask, up), high);
    a[2] = multiply_pair(multiply_pair(w << 6 & mask, up), low);
    a[3] = multiply_pair(
        multiply_pair((w << 1 & 0x80008000u) | (w >> 5 & 0x01000100u) | (w >> 4 & 0x00C000C0u), up),
        high);
}

template <int BN, int KIND>
static __device__ __forceinline__ void
multiply_tile(const mma_args *g, int blocks_k, const uint8_t *ring, uint64_t *full, uint64_t *empty,
              ring_place *r, float (&acc)[BN / 2])
{
    constexpr int PITCH = stage_bytes(KIND, BN);
    for (int kb = 0; kb < blocks_k; kb++) {
        const uint8_t *weights = ring + r->stage * PITCH;
        hopper_barrier_wait(&full[r->stage], r->parity);
        hopper_fence_async(); // rows of x came by ordinary copies
        const uint64_t wd = hopper_operand(weights + threadIdx.x / 128 * (BM / 2 * STAGE_K));
        const uint64_t xd = hopper_operand(weights + weight_bytes(KIND));
        hopper_mma_begin();
#pragma unroll
        for (int j = 0; j < 4; j++) {
            hopper_mma<BN, KIND>(acc, wd + 2 * j, xd + 2 * j, kb + j != 0);
        }
        hopper_mma_commit();
        hopper_mma_wait<1>();
        release(r, empty);
        advance(r, g->stages);
    }
    hopper_mma_wait<0>();
    hopper_mma_keep(acc);
    release(r, empty);
}

// Half a stage of MXFP4, 32 k: one word of scales covers it. Registers of the halves take turns: a
// product may read one while the other is decoded.
template <int BN>
static __device__ __forceinline__ void multiply_half(uint32_t word0, uint32_t word1, uint32_t low,
                                                     uint32_t high, uint64_t x, uint32_t (&a)[2][4],
                                                     float (&acc)[BN / 2])
{
    decode_word(word0, low, high, a[0]);
    decode_word(word1, low, high, a[1]);
    hopper_mma_begin();
    hopper_mma_registers<BN>(acc, a[0], x, 1);
    hopper_mma_registers<BN>(acc, a[1], x + 2, 1);
    hopper_mma_commit();
    hopper_mma_wait<1>();
}

template <int BN>
static __device__ __forceinline__ void
multiply_tile_mxfp4(const mma_args *g, int blocks_k, const uint8_t *ring, uint64_t *full,
                    uint64_t *empty, ring_place *r, float (&total)[BN / 2])
{
    constexpr int PITCH = stage_bytes(KIND_MXFP4, BN);
    const int thread = (int)threadIdx.x % 128;
    const int block = (int)threadIdx.x / 128 * MOEI_OPERAND_BYTES;
    uint32_t a[2][2][4];
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        total[i] = -0.0f; // changes no sum
    }
#pragma unroll 1
    for (int k0 = 0; k0 < blocks_k; k0 += MXFP4_CHUNK) {
        const int k1 = k0 + MXFP4_CHUNK < blocks_k ? k0 + MXFP4_CHUNK : blocks_k;
        float acc[BN / 2];
#pragma unroll
        for (int i = 0; i < BN / 2; i++) {
            acc[i] = 0.0f;
        }
#pragma unroll 1
        for (int kb = k0; kb < k1; kb++) {
            const uint8_t *weights = ring + r->stage * PITCH;
            hopper_barrier_wait(&full[r->stage], r->parity);
            hopper_fence_async(); // rows of x came by ordinary copies
            const uint4 words = *(const uint4 *)(weights + block + thread * 16);
            const uint32_t scales =
                *(const uint32_t *)(weights + block + MOEI_OPERAND_CODES + thread / 4 * 4);
            const uint64_t x = hopper_operand(weights + weight_bytes(KIND_MXFP4));
            // A scale's exponent field in both halves of a register.
            multiply_half<BN>(words.x, words.y, (scales & 0xFF) * 0x00800080u,
                              (scales >> 16 & 0xFF) * 0x00800080u, x, a[0], acc);
            release(r, empty); // the stage before: its last products are done
            multiply_half<BN>(words.z, words.w, (scales >> 8 & 0xFF) * 0x00800080u,
                              (scales >> 24) * 0x00800080u, x + 4, a[1], acc);
            advance(r, g->stages);
        }
        hopper_mma_wait<0>();
        hopper_mma_keep(acc);
        release(r, empty);
#pragma unroll
        for (int i = 0; i < BN / 2; i++) {
            total[i] = total[i] + acc[i];
        }
    }
}

template <int BN, int KIND>
static __device__ __forceinline__ void multiply(const mma_args *g, const int32_t *prefix,
                                                const uint8_t *ring, uint64_t *full,
                                                uint64_t *empty, uint8_t *turn)
{
    const int blocks_k = (int)((2 * g->a.w.k + STAGE_K - 1) / STAGE_K);
    ring_place r = {0, 0, -1};
    float sums[BN / 2];
    moei_tile t;
    for (int64_t tile = blockIdx.x; moei_tile_at(&g->a, prefix, BN, g->m_blocks, tile, &t);
         tile += gridDim.x) {
        if constexpr (KIND == KIND_MXFP4) {
            multiply_tile_mxfp4<BN>(g, blocks_k, ring, full, empty, &r, sums);
        } else {
            multiply_tile<BN, KIND>(g, blocks_k, ring, full, empty, &r, sums);
        }
        finish_tile<BN, KIND>(g, &t, sums, turn);
    }
}

template <int BN, int KIND>
__global__ void __launch_bounds__(THREADS, 1) ggemm_wgmma(const __grid_constant__ mma_args g)
{
    extern __shared__ uint8_t shared[];
    __shared__ uint64_t full[MAX_STAGES];
    __shared__ uint64_t empty[MAX_STAGES];
    uint8_t *ring = (uint8_t *)(((uintptr_t)shared + 1023) / 1024 * 1024);
    uint8_t *turn = ring + g.stages * stage_bytes(KIND, BN);
    int32_t *prefix = (int32_t *)(turn + MATH_THREADS / 32 * TURN_BYTES);
    if (threadIdx.x == 0) {
        for (int s = 0; s < g.stages; s++) {
            hopper_barrier_init(&full[s], 128 + 1); // the producer's threads, and the weights
            hopper_barrier_init(&empty[s], MATH_THREADS / 32);
        }
        hopper_barrier_init_done();
        if (KIND != KIND_MXFP4) {
            hopper_tensor_prefetch(&g.weights);
        }
    }
    hopper_grid_wait();
    hopper_grid_launch();
    moei_tiles_begin(&g.a, BN, prefix); // ends in a barrier
    if (threadIdx.x >= MATH_THREADS) {
        hopper_registers_shrink<104>();
        produce<BN, KIND>(&g, prefix, ring, full, empty);
    } else {
        hopper_registers_grow<200>(); // 2 * 200 + 104 = 3 * 168, what the launch allots
        multiply<BN, KIND>(&g, prefix, ring, full, empty, turn);
    }
}

// ---- the host ----------------------------------------------------------------------------------

typedef void (*mma_kernel)(mma_args);

typedef struct variant {
    int bn;
    mma_kernel kernel[NUM_KINDS]; // NULL: too many registers
} variant;

#define FLOATS(bn) ggemm_wgmma<bn, KIND_BF16>, ggemm_wgmma<bn, KIND_F16>
static const variant variants[] = {
    {8, {FLOATS(8), ggemm_wgmma<8, KIND_MXFP4>}},
    {16, {FLOATS(16), ggemm_wgmma<16, KIND_MXFP4>}},
    {32, {FLOATS(32), ggemm_wgmma<32, KIND_MXFP4>}},
    {64, {FLOATS(64), ggemm_wgmma<64, KIND_MXFP4>}},
    {128, {FLOATS(128), ggemm_wgmma<128, KIND_MXFP4>}},
    {192, {FLOATS(192), NULL}},
    {256, {FLOATS(256), NULL}},
};
#define NUM_VARIANTS (sizeof variants / sizeof variants[0])

cudaError_t moei_cuda_mma_load(void)
{
    for (size_t v = 0; v < NUM_VARIANTS; v++) {
        for (int kind = 0; kind < NUM_KINDS; kind++) {
            const void *kernel = (const void *)variants[v].kernel[kind];
            const cudaError_t error =
                kernel == NULL
                    ? cudaSuccess
                    : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           SHARED_LIMIT - 1024); // the barriers are static
            if (error != cudaSuccess) {
                return error;
            }
        }
    }
    return cudaSuccess;
}

static int kind_of(const moek_ggemm_args *a)
{
    return a->w.layout == MOEI_LAYOUT_PACKED ? KIND_MXFP4
           : a->w.format->elem == MOE_F16    ? KIND_F16
                                             : KIND_BF16;
}

// Rows of an expert to expect, with room for uneven routing: the smallest tile that takes them
// reads the weights once.
static const variant *variant_for(const moek_ggemm_args *a, int kind)
{
    const int64_t groups = a->w.count > 0 ? a->w.count : 1;
    const int64_t mean = a->offsets != NULL ? (a->rows + groups - 1) / groups : a->rows;
    const int64_t most = a->offsets != NULL ? (mean * 3 + 1) / 2 : mean;
    const variant *best = NULL;
    for (size_t v = 0; v < NUM_VARIANTS && (best == NULL || best->bn < most); v++) {
        best = variants[v].kernel[kind] != NULL ? &variants[v] : best;
    }
    return best;
}

// The weights as boxes of 128 outputs x 128 bytes of k. With glu: eights of gates and ups in turn.
static CUresult encode(const moei_cuda_device *device, const moek_ggemm_args *a,
                       const moek_glu_args *glu, CUtensorMap *out)
{
    const moei_matrices *w = &a->w;
    const CUtensorMapDataType type = w->format->elem == MOE_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    const cuuint64_t row = (cuuint64_t)w->value_n_stride;
    const cuuint64_t expert = w->count > 1 ? (cuuint64_t)w->value_e_stride : row * (cuuint64_t)w->n;
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    void *values = (void *)(uintptr_t)w->values;
    if (glu == NULL) {
        const cuuint64_t dims[3] = {(cuuint64_t)w->k, (cuuint64_t)w->n, (cuuint64_t)w->count};
        const cuuint64_t strides[2] = {row, expert};
        const cuuint32_t box[3] = {STAGE_K / 2, BM, 1};
        return device->encode(out, type, 3, values, dims, strides, box, ones,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
    const int64_t first = glu->gate_offset < glu->up_offset ? glu->gate_offset : glu->up_offset;
    const int64_t second = glu->gate_offset + glu->up_offset - first;
    const cuuint64_t step = (cuuint64_t)glu->step * row;
    const cuuint64_t apart = (cuuint64_t)(second - first) * row;
    const cuuint64_t dims[5] = {(cuuint64_t)w->k, 8, 2, (cuuint64_t)glu->inter / 8,
                                (cuuint64_t)w->count};
    const cuuint64_t strides[4] = {step, apart, 8 * step, expert};
    const cuuint32_t box[5] = {STAGE_K / 2, 8, 2, BM / 16, 1};
    return device->encode(out, type, 5, (uint8_t *)values + first * w->value_n_stride, dims,
                          strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                          CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

bool moei_cuda_mma_fuses(const moek_ggemm_args *ggemm, const moek_glu_args *glu)
{
    const moe_activation act = glu->act.activation;
    return (glu->step == 2) == ggemm->w.interleaved_parts &&
           (act == MOE_ACT_SILU || act == MOE_ACT_SWIGLUOAI) && glu->inter % 8 == 0 &&
           ggemm->w.n == 2 * glu->inter && glu->x == ggemm->y && ggemm->y_dtype == MOE_F32 &&
           ggemm->out_index == NULL && ggemm->row_weight == NULL;
}

moe_status moei_cuda_mma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm, const moek_glu_args *glu)
{
    const moei_cuda_device *device = moei_cuda_device_of(exec);
    const int kind = kind_of(ggemm);
    const variant *v = variant_for(ggemm, kind);
    const moei_matrices *w = &ggemm->w;
    mma_args g;
    memset(&g, 0, sizeof g);
    g.a = *ggemm;
    g.fused = glu != NULL;
    if (glu != NULL) {
        g.glu = *glu;
        g.up_first = glu->up_offset < glu->gate_offset;
        g.limit = glu->act.limit > 0.0f ? glu->act.limit : MOEI_NO_LIMIT;
    }
    g.paired = glu != NULL || (kind == KIND_MXFP4 && moei_operand_parts(w) == 2);
    g.second = w->interleaved_parts ? 1 : w->n / 2;
    g.step = g.paired && w->interleaved_parts ? 2 : 1;
    g.outputs = g.paired ? w->n / 2 : w->n;
    g.m_blocks = (int32_t)(((g.paired ? (g.outputs + 7) / 8 * 16 : w->n) + BM - 1) / BM);
    const CUresult made =
        kind == KIND_MXFP4 ? CUDA_SUCCESS : encode(device, ggemm, glu, &g.weights);
    if (made != CUDA_SUCCESS) {
        return moei_cuda_host->fail(MOE_E_DEVICE, "cuda: tensor map of [%d, %lld, %lld]: error %d",
                                    (int)ggemm->w.count, (long long)ggemm->w.n,
                                    (long long)ggemm->w.k, (int)made);
    }
    const uint8_t *out = glu != NULL ? glu->y : ggemm->y;
    const int64_t out_stride = glu != NULL ? glu->y_row_stride : ggemm->y_row_stride;
    const int64_t out_batch = glu != NULL ? glu->y_batch_stride : ggemm->y_batch_stride;
    const uintptr_t x_at = (uintptr_t)ggemm->x.data | (uintptr_t)ggemm->x.row_stride |
                           (ggemm->offsets == NULL ? (uintptr_t)ggemm->x.batch_stride : 0);
    g.aligned = x_at % 16 == 0;
    g.vector = ((uintptr_t)out | (uintptr_t)out_stride |
                (ggemm->offsets == NULL ? (uintptr_t)out_batch : 0)) %
                   16 ==
               0;
    const size_t pitch = (size_t)stage_bytes(kind, v->bn);
    const size_t rest =
        1024 + MATH_THREADS / 32 * TURN_BYTES + ((size_t)ggemm->w.count + 1) * sizeof(int32_t);
    const size_t stages = (SHARED_LIMIT - 1024 - rest) / pitch;
    g.stages = (int32_t)(stages < MAX_STAGES ? stages : MAX_STAGES);
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)device->sms);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = g.stages * pitch + rest;
    config.stream = (cudaStream_t)exec->stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    void *arguments[] = {&g};
    return moei_cuda_status(cudaLaunchKernelExC(&config, (const void *)v->kernel[kind], arguments),
                            kernel->name);
}
