// SPDX-License-Identifier: Apache-2.0
// combine on the device. A thread sums eight neighbouring elements of a token over its slots, in
// slot order; what the slots are is read once per token, into shared memory. Four slots are read
// before the first is added, since a token alone cannot hide the memory's latency otherwise.
// Limiting resource: memory bandwidth.
#ifndef MOEI_GPU_COMBINE_CUH
#define MOEI_GPU_COMBINE_CUH

#include "backends/gpu/elements.cuh"
#include "backends/gpu/ids.cuh"
#include "backends/gpu/tiles.h"
#include "moe/backend.h"

typedef enum moei_gpu_slot_kind {
    MOEI_GPU_SLOT_ABSENT,
    MOEI_GPU_SLOT_ROW,     // weight * a row of slots
    MOEI_GPU_SLOT_IDENTITY // weight * x, rounded
} moei_gpu_slot_kind;

typedef struct moei_gpu_slot {
    int32_t kind; // moei_gpu_slot_kind
    float weight;
} moei_gpu_slot;

DEV_FN moei_gpu_slot moei_gpu_read_slot(const moek_combine_args *a, int64_t t, int32_t j)
{
    moei_gpu_slot s;
    s.kind = MOEI_GPU_SLOT_ROW;
    s.weight = 1.0f; // exact: a slot without a weight is itself
    if (a->router_ids != NULL) {
        const int64_t at = t * a->router_token_stride + j;
        const int32_t id = a->router_ids[at];
        if (id >= a->identity_first && id - a->identity_first < a->identity_count) {
            s.kind = MOEI_GPU_SLOT_IDENTITY;
            s.weight = a->identity_weights != NULL ? a->identity_weights[at] : 1.0f;
            return s;
        }
    }
    if (a->ids != NULL) {
        const int64_t id = moei_gpu_load_id(a->id_dtype, a->ids, t * a->id_token_stride + j);
        if (id < 0 || (a->first_absent > 0 && id >= a->first_absent)) {
            s.kind = MOEI_GPU_SLOT_ABSENT;
        }
    }
    if (a->weights != NULL && s.kind == MOEI_GPU_SLOT_ROW) {
        s.weight = moei_gpu_load_float(a->weight_dtype, a->weights, t * a->weight_token_stride + j);
    }
    return s;
}

/// Where a slot's elements [h, ..) lie.
DEV_FN const uint8_t *moei_gpu_slot_at(const moek_combine_args *a, moei_gpu_slot s, int64_t t,
                                       int32_t j, int64_t h)
{
    return s.kind == MOEI_GPU_SLOT_IDENTITY
               ? a->x + t * a->x_token_stride + h * moei_gpu_float_bytes(a->x_dtype)
               : a->slots + t * a->slot_token_stride + j * a->slot_stride +
                     h * moei_gpu_float_bytes(a->slot_dtype);
}

DEV_FN moe_dtype moei_gpu_slot_dtype(const moek_combine_args *a, moei_gpu_slot s)
{
    return s.kind == MOEI_GPU_SLOT_IDENTITY ? a->x_dtype : a->slot_dtype;
}

template <int N>
DEV_FN void moei_gpu_add_slot(const moek_combine_args *a, moei_gpu_slot s, const float *v,
                              float *sum)
{
    if (s.kind == MOEI_GPU_SLOT_IDENTITY) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            sum[i] += moei_round_to(a->slot_dtype, s.weight * v[i]);
        }
    } else {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            sum[i] += s.weight * v[i];
        }
    }
}

template <int N>
DEV_FN void moei_gpu_add_piece(moe_dtype dtype, const uint8_t *row, int64_t h, int n, float *sum)
{
    float v[N];
    moei_gpu_load_piece<N>(dtype, row + h * moei_gpu_float_bytes(dtype), n, v);
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        sum[i] += v[i];
    }
}

/// True where whole pieces of every slot of a token can be fetched from element h on.
DEV_FN bool moei_gpu_slots_are_wide(const moek_combine_args *a, int64_t t, int64_t h)
{
    enum { N = MOEI_GPU_COMBINE_PIECE };
    const uint8_t *slots =
        a->slots + t * a->slot_token_stride + h * moei_gpu_float_bytes(a->slot_dtype);
    const uint8_t *x = a->x + t * a->x_token_stride + h * moei_gpu_float_bytes(a->x_dtype);
    return moei_gpu_is_wide<N>(a->slot_dtype, slots) &&
           moei_gpu_is_wide<N>(a->slot_dtype, slots + a->slot_stride) &&
           (a->router_ids == NULL || moei_gpu_is_wide<N>(a->x_dtype, x));
}

/// Adds `count` slots of a token from j0 on, four of them read before the first is added: a token
/// alone cannot hide the memory's latency otherwise.
DEV_FN void moei_gpu_add_wide_slots(const moek_combine_args *a, const moei_gpu_slot *slots,
                                    int64_t t, int32_t j0, int32_t count, int64_t h, float *sum)
{
    enum { N = MOEI_GPU_COMBINE_PIECE, AHEAD = 4 };
    for (int32_t first = 0; first < count; first += AHEAD) {
        moei_gpu_slot s[AHEAD];
        moei_gpu_bits<N> bits[AHEAD];
        MOEI_GPU_UNROLL
        for (int q = 0; q < AHEAD; q++) {
            s[q].kind = MOEI_GPU_SLOT_ABSENT;
            if (first + q < count) {
                s[q] = slots[first + q];
            }
            if (s[q].kind != MOEI_GPU_SLOT_ABSENT) {
                moei_gpu_fetch<N>(moei_gpu_slot_dtype(a, s[q]),
                                  moei_gpu_slot_at(a, s[q], t, j0 + first + q, h), &bits[q]);
            }
        }
        MOEI_GPU_UNROLL
        for (int q = 0; q < AHEAD; q++) {
            if (s[q].kind != MOEI_GPU_SLOT_ABSENT) {
                float v[N];
                moei_gpu_decode<N>(moei_gpu_slot_dtype(a, s[q]), &bits[q], v);
                moei_gpu_add_slot<N>(a, s[q], v, sum);
            }
        }
    }
}

/// The same for the first n elements of a piece, at any address.
DEV_FN void moei_gpu_add_slots(const moek_combine_args *a, const moei_gpu_slot *slots, int64_t t,
                               int32_t j0, int32_t count, int64_t h, int n, float *sum)
{
    enum { N = MOEI_GPU_COMBINE_PIECE };
    for (int32_t j = 0; j < count; j++) {
        const moei_gpu_slot s = slots[j];
        if (s.kind != MOEI_GPU_SLOT_ABSENT) {
            const uint8_t *p = moei_gpu_slot_at(a, s, t, j0 + j, h);
            float v[N];
            MOEI_GPU_UNROLL
            for (int i = 0; i < N; i++) {
                v[i] = i < n ? moei_gpu_load_float(moei_gpu_slot_dtype(a, s), p, i) : 0.0f;
            }
            moei_gpu_add_slot<N>(a, s, v, sum);
        }
    }
}

/// True where one of the slots is there.
DEV_FN bool moei_gpu_any_slot(const moei_gpu_slot *slots, int32_t count)
{
    bool any = false;
    for (int32_t j = 0; j < count; j++) {
        any = any || slots[j].kind != MOEI_GPU_SLOT_ABSENT;
    }
    return any;
}

/// Elements [h, h + n) of token t after its slots.
template <int N>
DEV_FN void moei_gpu_combine_rest(const moek_combine_args *a, int64_t t, int64_t h, int n,
                                  float *sum)
{
    if (a->bias != NULL) {
        moei_gpu_add_piece<N>(a->bias_dtype, a->bias, h, n, sum);
    }
    for (int32_t s = 0; s < a->num_shared; s++) {
        moei_gpu_add_piece<N>(a->shared_dtype,
                           a->shared + t * a->shared_token_stride + s * a->shared_stride, h, n,
                           sum);
    }
    uint8_t *out = a->out + t * a->out_token_stride;
    if (a->accumulate) {
        moei_gpu_add_piece<N>(a->out_dtype, out, h, n, sum);
    }
    moei_gpu_store_piece<N>(
        a->out_dtype, out + h * moei_gpu_float_bytes(a->out_dtype), n, sum);
}

DEV_FN bool moei_gpu_combine_has(const moek_combine_args *a, int64_t t)
{
    if (t >= a->tokens || (a->num_valid != NULL && t >= a->num_valid[0])) {
        return false;
    }
    if (a->batch_counts == NULL) {
        return true;
    }
    const int64_t b = moei_divide(t, a->batch_rows);
    return t - b * a->batch_rows < a->batch_counts[b];
}

/// Elements [h, h + N) of token t by one thread alone, two slots read before the first is added.
template <int N>
DEV_FN void moei_gpu_combine_piece(const moek_combine_args *a, int64_t t, int64_t h)
{
    enum { AHEAD = 2 };
    const int64_t left = a->width - h;
    const int n = left <= 0 || !moei_gpu_combine_has(a, t) ? 0 : left < N ? (int)left : N;
    if (n == 0) {
        return;
    }
    float sum[N];
    bool any = false;
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        sum[i] = a->convert ? -0.0f : 0.0f; // -0 changes no term, itself -0 or not
    }
    for (int32_t j0 = 0; j0 < a->slots_per_token; j0 += AHEAD) {
        moei_gpu_slot s[AHEAD];
        float v[AHEAD][N];
        MOEI_GPU_UNROLL
        for (int q = 0; q < AHEAD; q++) {
            s[q].kind = MOEI_GPU_SLOT_ABSENT;
            if (j0 + q < a->slots_per_token) {
                s[q] = moei_gpu_read_slot(a, t, j0 + q);
            }
            if (s[q].kind != MOEI_GPU_SLOT_ABSENT) {
                moei_gpu_load_piece<N>(moei_gpu_slot_dtype(a, s[q]),
                                       moei_gpu_slot_at(a, s[q], t, j0 + q, h), n, v[q]);
            }
        }
        MOEI_GPU_UNROLL
        for (int q = 0; q < AHEAD; q++) {
            if (s[q].kind != MOEI_GPU_SLOT_ABSENT) {
                moei_gpu_add_slot<N>(a, s[q], v[q], sum);
                any = true;
            }
        }
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        sum[i] = any ? sum[i] : 0.0f;
    }
    moei_gpu_combine_rest<N>(a, t, h, n, sum);
}

/// Shared memory: moei_gpu_slot [tokens of a tile][MOEI_GPU_COMBINE_SLOTS].
DEV_FN void moei_gpu_combine(const moek_combine_args *a)
{
    enum { N = MOEI_GPU_COMBINE_PIECE, SLOTS = MOEI_GPU_COMBINE_SLOTS };
    moei_gpu_slot *staged = (moei_gpu_slot *)dev_shared();
    const moei_gpu_tiles tiles =
        moei_gpu_tiles_of(a->tokens, a->width, N, dev_threads(), MOEI_GPU_COMBINE_LANES);
    const int32_t all = a->slots_per_token;
    for (int64_t tile = dev_block(); tile < tiles.count; tile += dev_blocks()) {
        int64_t t0; // first token of the tile
        int64_t t;
        int64_t h;
        moei_gpu_tile_at(&tiles, tile, N, 0, &t0, &h);
        moei_gpu_tile_at(&tiles, tile, N, dev_thread(), &t, &h);
        const int64_t left = a->width - h;
        const int n = left <= 0 || !moei_gpu_combine_has(a, t) ? 0 : left < N ? (int)left : (int)N;
        float sum[N];
        bool any = false;
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            sum[i] = a->convert ? -0.0f : 0.0f; // -0 changes no term, itself -0 or not
        }
        for (int32_t j0 = 0; j0 < all; j0 += SLOTS) {
            const int32_t count = all - j0 < SLOTS ? all - j0 : (int32_t)SLOTS;
            dev_sync(); // the slots before have been read
            for (uint32_t i = dev_thread(); i < (uint32_t)count << tiles.rows_log2;
                 i += dev_threads()) {
                const uint32_t row = i / (uint32_t)count;
                const uint32_t j = i - row * (uint32_t)count;
                if (moei_gpu_combine_has(a, t0 + row)) {
                    staged[row * SLOTS + j] = moei_gpu_read_slot(a, t0 + row, j0 + (int32_t)j);
                }
            }
            dev_sync();
            const moei_gpu_slot *slots = staged + (t - t0) * SLOTS;
            if (n > 0) {
                any = any || moei_gpu_any_slot(slots, count);
            }
            if (n == N && moei_gpu_slots_are_wide(a, t, h)) {
                moei_gpu_add_wide_slots(a, slots, t, j0, count, h, sum);
            } else if (n > 0) {
                moei_gpu_add_slots(a, slots, t, j0, count, h, n, sum);
            }
        }
        if (n > 0) {
            MOEI_GPU_UNROLL
            for (int i = 0; i < N; i++) {
                sum[i] = any ? sum[i] : 0.0f;
            }
            moei_gpu_combine_rest<N>(a, t, h, n, sum);
        }
    }
}

#endif
