// SPDX-License-Identifier: Apache-2.0
// From the sums of a tile to its output: scales, bias, row weights, activation, rounding; and
// combine after the last tile of a block of outputs.
#ifndef MOEI_CUDA_WGMMA_FINISH_CUH
#define MOEI_CUDA_WGMMA_FINISH_CUH

#include "backends/cuda/wgmma_shape.cuh"
#include "backends/gpu/combine.cuh"
#include "backends/gpu/scales.cuh"
#include "numerics/activation.h"

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

// ---- combine ----------------------------------------------------------------------------------

// A block of outputs is complete when all its tiles are: the pipe that finishes the last of them
// combines.
template <class S>
static __device__ __forceinline__ void combine_block(const moek_combine_args *c, int32_t m,
                                                     int thread)
{
    constexpr int PIECE = 4;
    constexpr int LANES_LOG2 = S::GROUPS == 1 ? 4 : 5;
    constexpr int LANES = S::BM / PIECE; // of a token
    static_assert(LANES == 1 << LANES_LOG2, "a warp has whole tokens");
    asm volatile("" : "+r"(thread)); // nothing of this is computed before the loop over tiles
    const int h = m * S::BM + thread % LANES * PIECE;
    for (int t = thread / LANES; t - thread % 32 / LANES < c->tokens; t += S::TEAM / LANES) {
        moei_gpu_combine_pieces<PIECE, false>(c, LANES_LOG2, t, h, 0, 1);
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

// True where what was told completed its block of outputs; then all of the block can be read.
template <class S> static __device__ __forceinline__ bool is_last(int pipe, const int32_t *last)
{
    hopper_sync(1 + pipe, S::TEAM);
    if (*last == 0) {
        return false;
    }
    __threadfence();
    return true;
}

#endif
