// SPDX-License-Identifier: Apache-2.0
// From the sums of a tile to its output: scales, bias, row weights, activation, rounding; and, of
// few rows, what follows from complete outputs: combine, or quantise.
#ifndef MOEI_CUDA_WGMMA_FINISH_CUH
#define MOEI_CUDA_WGMMA_FINISH_CUH

#include "backends/cuda/wgmma_shape.cuh"
#include "backends/gpu/combine.cuh"
#include "backends/gpu/quantize.cuh"
#include "backends/gpu/scales.cuh"
#include "numerics/activation.h"

// What belongs to the two outputs of a thread: the low one, and the high one, which lies eight
// after it or is of the other part. As it lies in memory, which is far: who asks before the
// products waits for nothing after them.
typedef struct tile_terms {
    uint32_t bias[2];
    float scale[2];  // of the whole row of the weights
    float scale2[2]; // the second level
} tile_terms;

static __device__ __forceinline__ uint32_t ask_bias(const moei_matrices *w, int64_t at)
{
    const uint8_t *bias = (const uint8_t *)w->bias;
    return w->bias_dtype == MOE_F32 ? moei_gpu_read_u32(bias + 4 * at)
                                    : moei_gpu_read_u16(bias + 2 * at);
}

// -0 where there is none: it changes no sum.
static __device__ __forceinline__ float bias_of(const moei_matrices *w, uint32_t bits)
{
    return w->bias == NULL             ? -0.0f
           : w->bias_dtype == MOE_F32  ? __uint_as_float(bits)
           : w->bias_dtype == MOE_BF16 ? moei_bf16_to_f32((uint16_t)bits)
                                       : moei_f16_to_f32((uint16_t)bits);
}

template <class S> static __device__ __forceinline__ bool scales_rows(const moei_matrices *w)
{
    return (S::SCALED || S::APART) && w->block_k == 0;
}

template <class S>
static __device__ __forceinline__ tile_terms ask_terms(const moei_mma_args *g, const moei_tile *t,
                                                       int warp)
{
    const moei_matrices *w = &g->a.w;
    const int64_t r = (int64_t)t->m * S::BM + warp * 16 + (int)threadIdx.x % 32 / 4; // as packed
    const int64_t own =
        g->paired ? (int64_t)t->m * (S::BM / 2) + warp * 8 + (int)threadIdx.x % 32 / 4 : r;
    tile_terms terms = {{0, 0}, {1.0f, 1.0f}, {1.0f, 1.0f}};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t n = i == 0 ? own * g->step : g->paired ? g->second + own * g->step : own + 8;
        const bool there = own < g->outputs && n < w->n; // else any other's: no one stores it
        if (w->bias != NULL) {
            terms.bias[i] = ask_bias(w, t->e * w->bias_e_stride + (there ? n : 0));
        }
        if (scales_rows<S>(w)) {
            terms.scale[i] = S::SCALED ? moei_gpu_w_scale(w, t->e, there ? n : 0, 0)
                                       : packed_scales<S>(w, t->e)[there ? r + 8 * i : 0];
        }
        if ((S::SCALED || S::PACKED) && w->scale2 != NULL) {
            terms.scale2[i] = moei_w_scale2(w, t->e, there ? n : 0);
        }
    }
    return terms;
}

// Sums of 32 rows, from row r of the tile on (a tile of 144 rows ends with half of them), plus what
// a thread's outputs add. Registers have no index: whoever asks for rows FROM to TO * 32 goes down
// to theirs.
template <class S, int COUNT, int FROM, int TO>
static __device__ __forceinline__ void pick(const float (&acc)[S::SUMS], int r, float low,
                                            float high, float (&v)[COUNT])
{
    constexpr int MID = (FROM + TO) / 2;
    if constexpr (MID == FROM) {
        __syncwarp(); // keeps this a branch: else all sums are read, and selected
#pragma unroll
        for (int c = 0; c < COUNT; c++) {
            const float sum = FROM * 16 + c < S::SUMS ? acc[FROM * 16 + c] : 0.0f;
            asm volatile("add.rn.f32 %0, %1, %2; // %3" // or they are added behind the branches
                         : "=f"(v[c])
                         : "f"(sum), "f"(c % 4 < 2 ? low : high), "n"(FROM));
        }
    } else if (r < MID * 32) {
        pick<S, COUNT, FROM, MID>(acc, r, low, high, v);
    } else {
        pick<S, COUNT, MID, TO>(acc, r, low, high, v);
    }
}

// v[c] = v[c] * what belongs to its row; of: that of the 32's first.
template <int COUNT>
static __device__ __forceinline__ void multiply_rows(float (&v)[COUNT], const float *of)
{
#pragma unroll
    for (int c = 0; c < COUNT; c += 4) {
        const float2 rows = *(const float2 *)(of + c * 2 + (int)threadIdx.x % 4 * 2);
        v[c] = v[c] * rows.x;
        v[c + 1] = v[c + 1] * rows.y;
        v[c + 2] = v[c + 2] * rows.x;
        v[c + 3] = v[c + 3] * rows.y;
    }
}

template <int COUNT>
static __device__ __forceinline__ void multiply_outputs(float (&v)[COUNT], const float (&of)[2])
{
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        v[c] = v[c] * of[c % 4 / 2];
    }
}

// Gates and ups of a thread to h; not more: 16 rows suffice. Few gates are far from zero: all of a
// warp are near, or all take the long way.
template <int COUNT>
static __device__ __forceinline__ void activate(const moei_mma_args *g, bool more,
                                                const float (&v)[COUNT], float (&h)[COUNT / 2])
{
    const float limit = g->limit;
    float gate[COUNT / 2];
    float up[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
        gate[i] = v[i / 2 * 4 + i % 2];
        up[i] = v[i / 2 * 4 + i % 2 + 2];
    }
    if (g->up_first) {
        __syncwarp(); // keeps this a branch
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            asm volatile("{.reg .f32 t; mov.f32 t, %0; mov.f32 %0, %1; mov.f32 %1, t;}"
                         : "+f"(gate[i]), "+f"(up[i]));
        }
    }
    if (limit < MOEI_NO_LIMIT) {
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            gate[i] = moei_clamp_above(gate[i], limit);
            up[i] = moei_clamp_both(up[i], limit);
        }
    }
    // Loops of their own: what is not wanted would be issued all the same.
    if (g->glu.act.activation == MOE_ACT_SILU) {
        bool far = false;
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            far = far | (gate[i] < MOEI_FAR);
        }
        if (!__any_sync(~0u, far)) {
#pragma unroll
            for (int i = 0; i < COUNT / 2; i++) {
                if (i == 4 && !more) { // rows from 16 on
                    return;
                }
                h[i] = moei_silu_near(gate[i]) * up[i];
            }
        } else {
#pragma unroll
            for (int i = 0; i < COUNT / 2; i++) {
                h[i] = moei_silu(gate[i]) * up[i];
            }
        }
    } else {
        const float alpha = g->glu.act.alpha;
        const float beta = g->glu.act.beta;
        bool far = !(alpha > 0.0f);
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            far = far | (moei_swigluoai_exponent(gate[i], alpha) < MOEI_FAR);
        }
        if (!__any_sync(~0u, far)) {
#pragma unroll
            for (int i = 0; i < COUNT / 2; i++) {
                if (i == 4 && !more) { // rows from 16 on
                    return;
                }
                h[i] = moei_swigluoai_near(gate[i], up[i], alpha, beta);
            }
        } else {
#pragma unroll
            for (int i = 0; i < COUNT / 2; i++) {
                h[i] = moei_swigluoai(gate[i], up[i], alpha, beta, limit);
            }
        }
    }
}

// Two results as 16-bit floats, the first in the low half. A conversion makes 0x7FFF of every NaN,
// an integer larger than the canonical ones; those of numbers are smaller.
template <moe_dtype DTYPE> static __device__ __forceinline__ uint32_t pack(float low, float high)
{
    uint32_t both;
    if (DTYPE == MOE_BF16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    }
    asm("min.s16x2 %0, %0, %1;" : "+r"(both) : "r"(DTYPE == MOE_BF16 ? 0x7FC07FC0 : 0x7E007E00));
    return both;
}

// The same for f32: arithmetic makes 0x7FFFFFFF of every NaN.
static __device__ __forceinline__ int32_t canonical(float v)
{
    return min(__float_as_int(v), 0x7FC00000);
}

// Where 16 bytes number i of a warp's turn lie: eight that are one after the other, every second
// and every fourth of their lines lie in different banks. Linear: at(i ^ j) = at(i) ^ at(j), and
// from 32 on as they come.
static constexpr __device__ __forceinline__ uint32_t turn_at(uint32_t i)
{
    return (i ^ i / 8 % 4 * 2 ^ i / 8 % 2) * 16;
}

// Where a warp's results go: y of the product, or h of glu.
typedef struct output {
    moe_dtype dtype;
    int64_t n;     // the first of its outputs
    bool whole;    // it has all of them, and they are stored 16 bytes at a time
    uint8_t *rows; // of the tile's batch; whole: the lane's 16 bytes there
    int64_t row_stride;
    int count;     // of the tile's rows
    int row;       // of the lane's first 16 bytes in the turn
    uint32_t to;   // the lane's first place in the turn: where it writes,
    uint32_t from; // and where it reads 16 bytes
} output;

static __device__ __forceinline__ uint8_t *row_at(const output *o, int32_t row)
{
    return o->rows + (uint32_t)row * o->row_stride;
}

// f32 results of 16 rows from b * 8 on, 16 outputs each, or of 32 rows with glu, 8 each, to the
// turn.
template <int COUNT>
static __device__ __forceinline__ void turn_f32(const float (&v)[COUNT], int b, uint32_t to)
{
#pragma unroll
    for (int i = 0; i < 8 && 4 * b + i < COUNT; i++) {
        *hopper_pointer<int32_t>((to ^ turn_at(i % 2 * 4 + i / 2 % 2 * 2)) + i / 4 * 512) =
            canonical(v[4 * b + i]);
    }
}

template <int COUNT>
static __device__ __forceinline__ void turn_f32_glu(const float (&h)[COUNT], uint32_t to)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        *hopper_pointer<int32_t>((to ^ turn_at(i % 2 * 2 + i / 2 % 2 * 16)) + i / 4 * 512) =
            canonical(h[i]);
    }
}

// 16-bit results of 32 rows, 16 outputs each, or 8 with glu.
template <moe_dtype DTYPE, int COUNT>
static __device__ __forceinline__ void turn_16(const float (&v)[COUNT], uint32_t to)
{
#pragma unroll
    for (int b = 0; b < (COUNT + 7) / 8; b++) {
        uint32_t p[4] = {0, 0, 0, 0};
#pragma unroll
        for (int j = 0; j < 4 && 8 * b + 2 * j < COUNT; j++) {
            p[j] = pack<DTYPE>(v[8 * b + 2 * j], v[8 * b + 2 * j + 1]);
        }
        hopper_store_transposed(to + b * 512, p[0], p[1], p[2], p[3]);
    }
}

template <moe_dtype DTYPE, int COUNT>
static __device__ __forceinline__ void turn_16_glu(const float (&h)[COUNT], uint32_t to)
{
    uint32_t p[4] = {0, 0, 0, 0};
#pragma unroll
    for (int b = 0; b < COUNT / 2; b++) {
        p[b] = pack<DTYPE>(h[2 * b], h[2 * b + 1]);
    }
    hopper_store_transposed(to, p[0], p[1], p[2], p[3]);
}

// Where the lane writes and reads, for all groups of the tile.
static __device__ __forceinline__ void place_lane(output *o, bool glu, uint32_t turn)
{
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t across = (glu ? 8 : 16) * (o->dtype == MOE_F32 || !o->whole ? 4 : 2) / 16;
    o->row = (int)(lane / across);
    o->from = turn + turn_at(lane);
    if (o->dtype == MOE_F32 || !o->whole) {
        o->to = turn + (turn_at(lane % 4 * (glu ? 4 : 8) + lane / 16) | lane / 4 % 4 * 4);
    } else {
        o->to = turn + turn_at(glu ? lane : lane / 16 * 16 + lane % 8 * 2 + lane / 8 % 2);
    }
    asm volatile("" : "+r"(o->row), "+r"(o->to), "+r"(o->from)); // stay, not made again and again
    if (o->whole) {
        o->rows += o->n * (o->dtype == MOE_F32 ? 4 : 2) + lane % across * 16;
    }
}

// The turn's pieces of 16 bytes, ACROSS to a row, to rows of the output from `first` of the tile
// on.
template <class S, int ACROSS, int ROWS>
static __device__ __forceinline__ void store_turn(const tile_note<S> *note, const output *o,
                                                  int first)
{
    constexpr int PIECES = (ROWS * ACROSS + 31) / 32; // of a lane
    uint4 pieces[PIECES];
    int32_t to[PIECES];
    __syncwarp();
#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        pieces[j] = *hopper_pointer<const uint4>(o->from + j * 512);
        to[j] = note->row[first + o->row + 32 / ACROSS * j];
    }
    __syncwarp(); // what comes next may be written already
#pragma unroll
    for (int j = 0; j < PIECES; j++) {
        if (first + o->row + 32 / ACROSS * j < o->count) {
            *(uint4 *)row_at(o, to[j]) = pieces[j];
        }
    }
}

// f32 results in the turn, `across` to a row, one by one: to the end of a row, to any address, or
// to two parts.
template <class S>
static __device__ __forceinline__ void scatter_turn(const moei_mma_args *g,
                                                    const tile_note<S> *note, const output *o,
                                                    int first, uint32_t across, uint32_t turn)
{
    const bool parts = g->paired && !g->fused;
    __syncwarp();
#pragma unroll 1
    for (uint32_t i = threadIdx.x % 32; i < TURN_BYTES / 4; i += 32) {
        const int r = first + (int)(i / across);
        const int64_t own = parts ? o->n / 2 + i % 8 : o->n + i % across;
        if (r < o->count && own < g->outputs) {
            const float v = *hopper_pointer<const float>(turn + (turn_at(i / 4) | i % 4 * 4));
            moei_gpu_store(o->dtype, row_at(o, note->row[r]),
                           parts ? own * g->step + (i % 16 < 8 ? 0 : g->second) : own, v);
        }
    }
    __syncwarp();
}

// Results of 32 rows (or the BN that there are) x 16 outputs of this warp.
template <class S, int COUNT>
static __device__ __forceinline__ void store_rows(const moei_mma_args *g, const tile_note<S> *note,
                                                  const output *o, int first,
                                                  const float (&v)[COUNT], uint32_t turn)
{
    if (o->whole && o->dtype == MOE_BF16) {
        turn_16<MOE_BF16>(v, o->to);
        store_turn<S, 2, COUNT * 2>(note, o, first);
    } else if (o->whole && o->dtype == MOE_F16) {
        turn_16<MOE_F16>(v, o->to);
        store_turn<S, 2, COUNT * 2>(note, o, first);
    } else {
        constexpr int ROWS = COUNT < 8 ? COUNT * 2 : 16;
#pragma unroll
        for (int b = 0; b < COUNT / 4; b += 2) {
            turn_f32(v, b, o->to);
            if (o->whole) {
                store_turn<S, 4, ROWS>(note, o, first + 8 * b);
            } else {
                scatter_turn<S>(g, note, o, first + 8 * b, 16, turn);
            }
        }
    }
}

// The same for h, 8 outputs.
template <class S, int COUNT>
static __device__ __forceinline__ void
store_rows_glu(const moei_mma_args *g, const tile_note<S> *note, const output *o, int first,
               const float (&h)[COUNT], uint32_t turn)
{
    if (o->whole && o->dtype == MOE_BF16) {
        turn_16_glu<MOE_BF16>(h, o->to);
        store_turn<S, 1, COUNT * 4>(note, o, first);
    } else if (o->whole && o->dtype == MOE_F16) {
        turn_16_glu<MOE_F16>(h, o->to);
        store_turn<S, 1, COUNT * 4>(note, o, first);
    } else {
        turn_f32_glu(h, o->to);
        if (o->whole) {
            store_turn<S, 2, COUNT * 4>(note, o, first);
        } else {
            scatter_turn<S>(g, note, o, first, 8, turn);
        }
    }
}

template <class S>
static __device__ __forceinline__ output output_of(const moei_mma_args *g, const moei_tile *t,
                                                   int warp, uint32_t turn)
{
    const bool batched = g->a.offsets == NULL;
    const int64_t n = (int64_t)t->m * S::BM + warp * 16;
    output o;
    if (g->fused) {
        o.dtype = g->glu.y_dtype;
        o.n = n / 2;
        o.rows = g->glu.y + (batched ? t->e * g->glu.y_batch_stride : 0);
        o.row_stride = g->glu.y_row_stride;
    } else {
        o.dtype = g->a.y_dtype;
        o.n = n;
        o.rows = g->a.y + (batched ? t->e * g->a.y_batch_stride : 0);
        o.row_stride = g->a.y_row_stride;
    }
    o.count = (int)(t->i1 - t->i0);
    o.whole = g->vector && g->fused == g->paired && o.n + (g->fused ? 8 : 16) <= g->outputs;
    place_lane(&o, g->fused, turn);
    return o;
}

// Sums of a tile to the output, 32 rows at a time; `warp` counts in the pipe.
template <class S>
static __device__ __forceinline__ void finish_tile(const moei_mma_args *g, const tile_note<S> *note,
                                                   const tile_terms &terms, int warp,
                                                   const float (&acc)[S::SUMS], uint32_t turn)
{
    const moek_ggemm_args *a = &g->a;
    const moei_tile t = note->tile;
    const output o = output_of<S>(g, &t, warp, turn);
    const float low = bias_of(&a->w, terms.bias[0]);
    const float high = bias_of(&a->w, terms.bias[1]);
    const bool x_scale = S::CODES ? a->x.scales != NULL : scales_rows_of_x<S>(g);
    const bool scale = scales_rows<S>(&a->w);
    const bool scale2 = (S::SCALED || S::PACKED) && a->w.scale2 != NULL;
    const bool scaled = x_scale || scale || scale2; // before the bias
    if ((g->paired && !g->fused ? o.n / 2 : o.n) >= g->outputs) {
        return;
    }
#pragma unroll 1
    for (int r = 0; r < o.count; r += 32) { // not unrolled: the code of all groups fills no cache
        constexpr int COUNT = S::BN < 32 ? S::BN / 2 : 16; // sums of a thread for 32 rows
        float v[COUNT];
        pick<S, COUNT, 0, (S::BN + 31) / 32>(acc, r, scaled ? -0.0f : low, scaled ? -0.0f : high,
                                             v);
        if (scaled) {
            if constexpr (S::ROW_SCALES) {
                if (x_scale) {
                    multiply_rows(v, note->scale + r);
                }
            }
            if (scale) {
                multiply_outputs(v, terms.scale);
            }
            if (scale2) {
                multiply_outputs(v, terms.scale2);
            }
#pragma unroll
            for (int c = 0; c < COUNT; c++) {
                v[c] = v[c] + (c % 4 < 2 ? low : high);
            }
        }
        if (a->row_weight != NULL) {
            multiply_rows(v, note->weight + r);
        }
        if (g->fused) {
            float h[COUNT / 2] = {};
            activate<COUNT>(g, S::BN % 32 == 0 || r + 16 < o.count, v, h);
            store_rows_glu<S>(g, note, &o, r, h, turn);
        } else {
            store_rows<S>(g, note, &o, r, v, turn);
        }
    }
}

// ---- after the tiles of few rows --------------------------------------------------------------

// A block of outputs of all tokens.
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

// What is complete: outputs of unit m of the rows from i0 to i1, or a block m of all.
typedef struct complete_part {
    int32_t m, i0, i1;
} complete_part;

// h of them to codes: warps take pairs of rows of any part.
template <class S>
static __device__ __forceinline__ void quantize_parts(const moei_mma_args *g,
                                                      const complete_part *parts, int32_t count)
{
    uint32_t turn = threadIdx.x % S::TEAM / 32; // 0: this warp's
#pragma unroll 1
    for (int32_t i = 0; i < count; i++) {
        const complete_part part = parts[i];
#pragma unroll 1
        for (int32_t r = part.i0; r < part.i1; r += 2, turn = (turn + 1) % (S::TEAM / 32)) {
            if (turn == 0) {
                moei_gpu_quantize_part(&g->quantize, r, part.i1,
                                       (int64_t)part.m * MOEI_GPU_QUANTIZE_GROUP);
            }
        }
    }
}

// After a pipe's last tile: its `tiles` are told of, and what they complete is done. Once: a
// fence costs a microsecond, and the last parts are complete at the end anyway.
template <class S>
static __device__ __forceinline__ void follow_tiles(const moei_mma_args *g, uint32_t prefix,
                                                    uint32_t tiles)
{
    const int pipe = (int)threadIdx.x / S::TEAM; // found again: no register keeps it meanwhile
    constexpr int UNIT = 2 * MOEI_GPU_QUANTIZE_GROUP / S::BM; // tiles side by side of a part of h
    __shared__ int32_t count_of[S::PIPES];
    __shared__ complete_part complete[S::PIPES][32];
    const bool combines = !S::ROW_SCALES || g->after == MOEI_MMA_COMBINE;
    const int32_t blocks = hopper_pointer<const int32_t>(prefix)[g->a.w.count]; // of rows
    const int thread = (int)threadIdx.x % S::TEAM;
    const bool none = combines && blocks == 0; // no expert has a row: all blocks share
    __threadfence();
    for (uint32_t first = 0; none ? first == 0 && pipe == 0 : first < tiles; first += 32) {
        hopper_sync(1 + pipe, S::TEAM);
        if (thread < 32) {
            moei_tile t = {0, 0, 0, 0};
            bool told =
                first + thread < tiles && tile_of<S>(g, prefix, pipe, first + (uint32_t)thread, &t);
            const int32_t unit = combines ? t.m : t.m / UNIT;
            if (told) {
                const int32_t left = combines ? blocks : g->m_blocks - unit * UNIT;
                const int32_t all = combines || left < UNIT ? left : UNIT;
                const int64_t at = combines ? unit : t.i0 * g->units + unit;
                told = atomicAdd(&g->arrived[at], 1) + 1 == all;
            }
            const uint32_t mine = __ballot_sync(~0u, told);
            if (told) {
                complete[pipe][__popc(mine & ((1u << thread) - 1))] = {unit, (int32_t)t.i0,
                                                                       (int32_t)t.i1};
            }
            count_of[pipe] = __popc(mine);
        }
        hopper_sync(1 + pipe, S::TEAM);
        const int32_t count = count_of[pipe];
        if (count > 0) {
            __threadfence();
        }
        if constexpr (S::ROW_SCALES) {
            if (!combines) {
                quantize_parts<S>(g, complete[pipe], count);
                continue;
            }
        }
        // The code stands here once: it is long, and runs where no cache has it.
        int32_t i = none ? (int32_t)blockIdx.x : 0;
#pragma unroll 1
        for (const int32_t end = none ? g->m_blocks : count; i < end;
             i += none ? (int32_t)gridDim.x : 1) {
            combine_block<S>(&g->combine, none ? i : complete[pipe][i].m, thread);
        }
    }
}

#endif
