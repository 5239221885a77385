// SPDX-License-Identifier: Apache-2.0
// From the sums of a tile to its output, as wgmma_finish.cuh, where rows of x are the M operand: a
// warp has 16 rows, a thread two of them and two of each eight outputs.
#ifndef MOEI_CUDA_WGMMA_FINISH_ROWS_CUH
#define MOEI_CUDA_WGMMA_FINISH_ROWS_CUH

#include "backends/cuda/wgmma_finish.cuh"

// Where 16 bytes number `piece` of row r lie in a warp's turn, ACROSS to a row: those of eight rows
// lie in different banks.
template <int ACROSS>
static __device__ __forceinline__ uint32_t rows_turn_at(uint32_t turn, int r, int piece)
{
    return turn + (r * ACROSS + (piece ^ r * ACROSS / 8 % ACROSS)) * 16;
}

// 16-bit results of 16 rows x ACROSS eights, eight by eight four of a thread, to the output.
template <class S, moe_dtype DTYPE, int ACROSS>
static __device__ __forceinline__ void store_eights(const tile_note<S> *note, uint8_t *to,
                                                    int64_t row_stride, int warp, int count,
                                                    const float *v, uint32_t turn)
{
    const int lane = (int)threadIdx.x % 32;
    uint32_t p[2][ACROSS]; // of the thread's two rows
#pragma unroll
    for (int e = 0; e < ACROSS; e++) {
        p[0][e] = pack<DTYPE>(v[4 * e], v[4 * e + 1]);
        p[1][e] = pack<DTYPE>(v[4 * e + 2], v[4 * e + 3]);
    }
    __syncwarp();
    if constexpr (ACROSS == 4) {
        hopper_store_matrices(rows_turn_at<4>(turn, lane % 8, lane / 8), p[0][0], p[0][1], p[0][2],
                              p[0][3]);
        hopper_store_matrices(rows_turn_at<4>(turn, lane % 8 + 8, lane / 8), p[1][0], p[1][1],
                              p[1][2], p[1][3]);
    } else {
        hopper_store_matrices(rows_turn_at<2>(turn, lane / 16 * 8 + lane % 8, lane / 8 % 2),
                              p[0][0], p[0][1], p[1][0], p[1][1]);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * ACROSS; i += 32) {
        const int r = i / ACROSS;
        if (warp * 16 + r < count) {
            *(uint4 *)(to + note->row[warp * 16 + r] * row_stride + i % ACROSS * 16) =
                *hopper_pointer<const uint4>(rows_turn_at<ACROSS>(turn, r, i % ACROSS));
        }
    }
}

typedef struct rows_output {
    moe_dtype dtype;
    uint8_t *rows;
    int64_t row_stride;
    int64_t width;
} rows_output;

// Results of 16 rows x 16 outputs from n on, one by one: to the end of a row, or to any address.
template <class S>
static __device__ __forceinline__ void scatter_eights(const tile_note<S> *note,
                                                      const rows_output *o, int64_t n, int warp,
                                                      int count, const float *v, uint32_t turn)
{
    const int lane = (int)threadIdx.x % 32;
    float *all = hopper_pointer<float>(turn);
    __syncwarp();
#pragma unroll
    for (int c = 0; c < 8; c++) {
        all[(lane / 4 + c % 4 / 2 * 8) * 16 + c / 4 * 8 + lane % 4 * 2 + c % 2] = v[c];
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < 256; i += 32) {
        const int r = warp * 16 + i / 16;
        if (r < count && n + i % 16 < o->width) {
            moei_gpu_store(o->dtype, o->rows + note->row[r] * o->row_stride, n + i % 16, all[i]);
        }
    }
}

// What outputs add and are multiplied by, to 16 sums of a thread: a lane looks up one of the 32, as
// row n of the weights.
static __device__ __forceinline__ void apply_terms(const moei_mma_args *g, int32_t e, int64_t n,
                                                   float (&v)[16])
{
    const moei_matrices *w = &g->a.w;
    const int64_t at = n < w->n ? n : 0; // else no one stores it
    const float scale = w->block_k == 0 ? moei_gpu_w_scale(w, e, at, 0) : 1.0f;
    const float scale2 = w->scale2 != NULL ? moei_w_scale2(w, e, at) : 1.0f;
    const float bias = w->bias != NULL ? moei_gpu_load_float(w->bias_dtype, w->bias,
                                                             e * w->bias_e_stride + at)
                                       : -0.0f; // changes no sum
#pragma unroll
    for (int c = 0; c < 16; c++) {
        const int of = c / 4 * 8 + (int)threadIdx.x % 4 * 2 + c % 2;
        v[c] = v[c] * __shfl_sync(~0u, scale, of) * __shfl_sync(~0u, scale2, of) +
               __shfl_sync(~0u, bias, of);
    }
}

template <class S>
static __device__ __forceinline__ void finish_rows(const moei_mma_args *g, const tile_note<S> *note,
                                                   int warp, const float (&acc)[S::SUMS],
                                                   uint32_t turn)
{
    const moei_tile *t = &note->tile;
    const moek_ggemm_args *a = &g->a;
    const moei_matrices *w = &a->w;
    const int lane = (int)threadIdx.x % 32;
    const int count = (int)(t->i1 - t->i0);
    const int r0 = warp * 16 + lane / 4; // and eight rows after it
    const bool batched = a->offsets == NULL;
    const moe_dtype dtype = g->fused ? g->glu.y_dtype : a->y_dtype;
    const int64_t row_stride = g->fused ? g->glu.y_row_stride : a->y_row_stride;
    uint8_t *y = g->fused ? g->glu.y + (batched ? t->e * g->glu.y_batch_stride : 0)
                          : a->y + (batched ? t->e * a->y_batch_stride : 0);
    if (warp * 16 >= count) {
        return;
    }
    const bool x_scale = a->x.scales != NULL && a->x.group == 0;
    const bool terms = w->bias != NULL || w->scale2 != NULL || w->block_k == 0;
    const float weight[2] = {note->weight[r0], note->weight[r0 + 8]};
    uint8_t *const rows[2] = {y + note->row[r0] * row_stride, y + note->row[r0 + 8] * row_stride};
#pragma unroll 1
    for (int b = 0; b < S::BM / 8; b += 4) { // not unrolled: the code of all would fill no cache
        const int64_t n = g->fused ? (int64_t)t->m * (S::BM / 2) + b * 4
                                   : (int64_t)t->m * S::BM + b * 8; // first output
        const int across = g->fused ? 2 : 4;                        // eights of outputs
        float v[16];
        pick<S, 16, 0, S::SUMS / 16>(acc, b * 8, -0.0f, -0.0f, v);
        if (n >= g->outputs) {
            return;
        }
        if (x_scale) {
            const float of_x[2] = {note->scale[r0], note->scale[r0 + 8]};
#pragma unroll
            for (int c = 0; c < 16; c++) {
                v[c] = v[c] * of_x[c % 4 / 2];
            }
        }
        if (terms) {
            const int64_t own = n + (g->fused ? lane / 16 * 8 + lane % 8 : lane);
            apply_terms(g, t->e, own * g->step + (g->fused && lane / 8 % 2 == 1 ? g->second : 0),
                        v);
        }
        if (a->row_weight != NULL) {
#pragma unroll
            for (int c = 0; c < 16; c++) {
                v[c] = v[c] * weight[c % 4 / 2];
            }
        }
        if (g->fused) { // gates and ups are eights in turn: to pairs in turn, as activate takes
                        // them
            float pairs[16];
            float h[8];
#pragma unroll
            for (int c = 0; c < 16; c++) {
                pairs[c] = v[c / 8 * 8 + c % 4 / 2 * 4 + c / 4 % 2 * 2 + c % 2];
            }
            activate<16>(g, true, pairs, h);
#pragma unroll
            for (int c = 0; c < 8; c++) {
                v[c] = h[c];
            }
        }
        const bool whole = g->vector && n + 8 * across <= g->outputs;
        if (whole && dtype == MOE_BF16 && g->fused) {
            store_eights<S, MOE_BF16, 2>(note, y + 2 * n, row_stride, warp, count, v, turn);
        } else if (whole && dtype == MOE_BF16) {
            store_eights<S, MOE_BF16, 4>(note, y + 2 * n, row_stride, warp, count, v, turn);
        } else if (whole && dtype == MOE_F32) {
#pragma unroll
            for (int c = 0; c < 16; c += 2) { // the lanes of a row store whole sectors
                if (c < 4 * across && r0 + c % 4 * 4 < count) {
                    *(int2 *)(rows[c % 4 / 2] + 4 * (n + c / 4 * 8 + lane % 4 * 2)) = {
                        canonical(v[c]), canonical(v[c + 1])};
                }
            }
        } else {
            const rows_output o = {dtype, y, row_stride, g->outputs};
            scatter_eights<S>(note, &o, n, warp, count, v, turn);
            if (!g->fused) {
                scatter_eights<S>(note, &o, n + 16, warp, count, v + 8, turn);
            }
        }
    }
}

#endif
