// SPDX-License-Identifier: Apache-2.0
// combine on the device. Neighbouring lanes sum neighbouring elements of a token over its slots, in
// slot order; what the slots are each looks up for one of them. So memory is waited for twice: for
// what the slots are, then for several rows at a time.
// Limiting resource: memory bandwidth; for few tokens these two latencies.
#ifndef MOEI_GPU_COMBINE_CUH
#define MOEI_GPU_COMBINE_CUH

#include "backends/gpu/elements.cuh"
#include "backends/gpu/ids.cuh"
#include "backends/gpu/tiles.h"
#include "moe/backend.h"

typedef struct moei_gpu_slot {
    bool there;
    bool identity; // weight * x, rounded, instead of weight * a row of slots
    float weight;
} moei_gpu_slot;

/// Everything is asked for before anything is used.
DEV_FN moei_gpu_slot moei_gpu_read_slot(const moek_combine_args *a, int64_t t, int64_t j)
{
    const int64_t routed = t * a->router_token_stride + j;
    const int32_t router_id = a->router_ids != NULL ? a->router_ids[routed] : 0;
    const float of_x =
        a->router_ids != NULL && a->identity_weights != NULL ? a->identity_weights[routed] : 1.0f;
    const int64_t id =
        a->ids != NULL ? moei_gpu_load_id(a->id_dtype, a->ids, t * a->id_token_stride + j) : 0;
    const float weight = a->weights != NULL ? moei_gpu_load_float(a->weight_dtype, a->weights,
                                                                  t * a->weight_token_stride + j)
                                            : 1.0f; // exact: a slot without a weight is itself
    moei_gpu_slot s;
    s.identity = a->router_ids != NULL && router_id >= a->identity_first &&
                 router_id - a->identity_first < a->identity_count;
    s.there = s.identity || (id >= 0 && (a->first_absent <= 0 || id < a->first_absent));
    s.weight = s.identity ? of_x : s.there ? weight : 1.0f;
    return s;
}

/// Element h of slot j of token t.
DEV_FN const uint8_t *moei_gpu_slot_at(const moek_combine_args *a, int64_t t, int64_t j, int64_t h)
{
    return a->slots + t * a->slot_token_stride + j * a->slot_stride +
           h * moei_gpu_float_bytes(a->slot_dtype);
}

/// Adds N elements of `count` slots, which are rows of this dtype and wide; several are read before
/// the first is added. Every lane of the warp calls it.
///
/// @param row     of the first slot
/// @param there   bit j: slot j is there
/// @param weight  of slot j in lane first + j, where WEIGHED; 1 where it is not there
template <int N, bool WEIGHED>
DEV_FN void moei_gpu_add_wide(const moek_combine_args *a, moe_dtype dtype, const uint8_t *row,
                              int count, uint32_t there, float weight, int first, float *sum)
{
    enum { AHEAD = N == 8 ? 4 : 8 };
    const uint32_t none = dtype == MOE_F32 ? 0x80000000u : 0x80008000u; // -0, which adds nothing
    MOEI_GPU_ROLL
    for (; count > 0; count -= AHEAD, there >>= AHEAD, first += AHEAD) {
        moei_gpu_bits<N> bits[AHEAD];
        MOEI_GPU_UNROLL
        for (int q = 0; q < AHEAD; q++) {
            MOEI_GPU_UNROLL
            for (int i = 0; i < N; i++) {
                bits[q].w[i] = none;
            }
            if ((there >> q & 1u) != 0) {
                moei_gpu_fetch<N>(dtype, row, &bits[q]);
            }
            row += a->slot_stride;
        }
        MOEI_GPU_UNROLL
        for (int q = 0; q < AHEAD; q++) {
            const float w = WEIGHED ? dev_shfl_f32(weight, first + q) : 1.0f;
            float v[N];
            moei_gpu_decode<N>(dtype, &bits[q], v);
            MOEI_GPU_UNROLL
            for (int i = 0; i < N; i++) {
                sum[i] += w * v[i];
            }
        }
    }
}

/// The first n of N elements of any slots, at any address.
template <int N>
DEV_FN void moei_gpu_add_any(const moek_combine_args *a, int64_t t, int64_t j0, int count,
                             int64_t h, int n, float *sum)
{
    MOEI_GPU_ROLL
    for (int64_t j = j0; j < j0 + count; j++) {
        const moei_gpu_slot s = moei_gpu_read_slot(a, t, j);
        if (s.there) {
            const moe_dtype dtype = s.identity ? a->x_dtype : a->slot_dtype;
            const uint8_t *row =
                s.identity ? a->x + t * a->x_token_stride : moei_gpu_slot_at(a, t, j, 0);
            float v[N];
            moei_gpu_load_piece<N>(dtype, row + h * moei_gpu_float_bytes(dtype), n, v);
            MOEI_GPU_UNROLL
            for (int i = 0; i < N; i++) {
                const float w = s.weight * v[i];
                sum[i] += s.identity ? moei_round_to(a->slot_dtype, w) : w;
            }
        }
    }
}

/// Rows that are added after the slots.
DEV_FN int32_t moei_gpu_rest_rows(const moek_combine_args *a)
{
    return (a->bias != NULL) + a->num_shared + a->accumulate;
}

/// Element h of row i of them for token t.
DEV_FN const uint8_t *moei_gpu_rest_at(const moek_combine_args *a, int64_t t, int32_t i, int64_t h,
                                       moe_dtype *dtype)
{
    const int32_t s = i - (a->bias != NULL);
    const uint8_t *row = a->bias;
    *dtype = a->bias_dtype;
    if (s >= a->num_shared) {
        row = a->out + t * a->out_token_stride;
        *dtype = a->out_dtype;
    } else if (s >= 0) {
        row = a->shared + t * a->shared_token_stride + s * a->shared_stride;
        *dtype = a->shared_dtype;
    }
    return row + h * moei_gpu_float_bytes(*dtype);
}

/// @param valid  what num_valid holds, where there is one
DEV_FN bool moei_gpu_combine_has(const moek_combine_args *a, int64_t t, int32_t valid)
{
    if (t >= a->tokens || (a->num_valid != NULL && t >= valid)) {
        return false;
    }
    if (a->batch_counts == NULL) {
        return true;
    }
    const int64_t b = moei_divide(t, a->batch_rows);
    return t - b * a->batch_rows < a->batch_counts[b];
}

/// N elements of token t from h on, and as many `stride` further on, and so on: `steps` pieces.
/// Every lane of the warp calls it; 2^lanes_log2 neighbouring ones, 8 at least, work at the same
/// token.
///
/// @param WEIGHED  slots with weights are read ahead, too
template <int N, bool WEIGHED>
DEV_FN void moei_gpu_combine_pieces(const moek_combine_args *a, uint32_t lanes_log2, int64_t t,
                                    int64_t h, int64_t stride, int32_t steps)
{
    const int lanes = 1 << lanes_log2;
    const int own = (int)dev_lane() & (lanes - 1);
    const int first = (int)dev_lane() - own;
    const int32_t all = a->slots_per_token;
    const int32_t rest = moei_gpu_rest_rows(a);
    moei_gpu_slot mine = {};
    bool known = false;
    bool here = t < a->tokens;
    MOEI_GPU_ROLL
    for (; steps > 0; steps--, h += stride) {
        const int64_t left = a->width - h;
        int n = 0;
        float sum[N];
        // The first row after the slots, before anything that is waited for; small pieces alone,
        // whose registers suffice.
        moe_dtype dtype = MOE_F32;
        const uint8_t *row = rest > 0 ? moei_gpu_rest_at(a, t, 0, h, &dtype) : NULL;
        const bool ahead =
            N < 8 && rest > 0 && t < a->tokens && left >= N && moei_gpu_is_wide<N>(dtype, row);
        moei_gpu_bits<N> bits = {};
        if (ahead) {
            moei_gpu_fetch<N>(dtype, row, &bits);
        }
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            sum[i] = 0.0f;
        }
        int32_t j0 = 0;
        MOEI_GPU_ROLL
        do { // once where there are no slots
            const int count = all - j0 < lanes ? all - j0 : lanes;
            if (!known) {
                const int32_t valid = a->num_valid != NULL ? a->num_valid[0] : 0;
                mine = {false, false, 1.0f};
                if (here && own < count) {
                    mine = moei_gpu_read_slot(a, t, j0 + own);
                }
                here = here && moei_gpu_combine_has(a, t, valid);
                mine.there = here && mine.there;
                known = all <= lanes; // a lane has its only slot
            }
            n = left <= 0 || !here ? 0 : left < N ? (int)left : N;
            const uint32_t there = dev_ballot(mine.there) >> first;
            if (a->convert && (there & 1u) != 0) { // the only slot: -0 changes no term
                MOEI_GPU_UNROLL
                for (int i = 0; i < N; i++) {
                    sum[i] = -0.0f;
                }
            }
            const uint8_t *slot = moei_gpu_slot_at(a, t, j0, h);
            const bool wide = (WEIGHED || a->weights == NULL) && n == N &&
                              moei_gpu_is_wide<N>(a->slot_dtype, slot) &&
                              moei_gpu_is_wide<N>(a->slot_dtype, slot + a->slot_stride);
            const uint32_t read = n > 0 ? there : 0;
            if (dev_ballot((n > 0 && !wide) || (mine.there && mine.identity)) != 0) {
                moei_gpu_add_any<N>(a, t, j0, n > 0 ? count : 0, h, n, sum);
            } else if (a->slot_dtype == MOE_F32) {
                moei_gpu_add_wide<N, WEIGHED>(a, MOE_F32, slot, count, read, mine.weight, first,
                                              sum);
            } else if (a->slot_dtype == MOE_BF16) {
                moei_gpu_add_wide<N, WEIGHED>(a, MOE_BF16, slot, count, read, mine.weight, first,
                                              sum);
            } else {
                moei_gpu_add_wide<N, WEIGHED>(a, MOE_F16, slot, count, read, mine.weight, first,
                                              sum);
            }
            j0 += lanes;
        } while (j0 < all);
        MOEI_GPU_ROLL
        for (int32_t i = 0; i < rest && n > 0; i++) {
            float after[N];
            if (i == 0 && ahead) {
                moei_gpu_decode<N>(dtype, &bits, after);
            } else {
                row = moei_gpu_rest_at(a, t, i, h, &dtype);
                moei_gpu_load_piece<N>(dtype, row, n, after);
            }
            MOEI_GPU_UNROLL
            for (int q = 0; q < N; q++) {
                sum[q] += after[q];
            }
        }
        if (n > 0) {
            moei_gpu_store_piece<N>(
                a->out_dtype,
                a->out + t * a->out_token_stride + h * moei_gpu_float_bytes(a->out_dtype), n, sum);
        }
    }
}

DEV_FN void moei_gpu_combine(const moek_combine_args *a)
{
    enum { N = MOEI_GPU_COMBINE_PIECE };
    int32_t steps;
    const moei_gpu_tiles tiles = moei_gpu_combine_tiles(a->tokens, a->width, &steps);
    const int64_t stride = ((int64_t)tiles.parts << tiles.lanes_log2) * N;
    for (int64_t first = (int64_t)dev_block() * dev_warps(); first < tiles.count;
         first += (int64_t)dev_blocks() * dev_warps()) {
        int64_t t;
        int64_t h;
        moei_gpu_tile_at(&tiles, first + dev_warp(), N, dev_lane(), &t, &h);
        moei_gpu_combine_pieces<N, true>(a, tiles.lanes_log2, t, h, stride, steps);
    }
}

#endif
