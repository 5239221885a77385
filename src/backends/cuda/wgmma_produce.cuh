// SPDX-License-Identifier: Apache-2.0
// The producer warp of a pipe: weights, rows of x and their scales to the ring, and a note of each
// tile.
#ifndef MOEI_CUDA_WGMMA_PRODUCE_CUH
#define MOEI_CUDA_WGMMA_PRODUCE_CUH

#include "backends/cuda/decode.cuh"
#include "backends/cuda/wgmma_shape.cuh"
#include "backends/gpu/quantize.cuh"
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

// Where the weights of a tile lie, as this lane asks for them: packed, a lane for each block of 64
// outputs; else the first lane for all.
template <class S> struct weights_of {
    const uint8_t *from; // packed: the lane's first block of k; NULL: it asks for none
    int bytes;           // that a block of k has, of all lanes
};

template <class S>
static __device__ __forceinline__ weights_of<S> find_weights(const moei_mma_args *g,
                                                             const moei_tile *t, int blocks_k)
{
    if constexpr (S::PACKED) {
        const int lane = (int)threadIdx.x % 32;
        const int blocks = packed_blocks<S>(g, t);
        const int64_t block = S::GROUPS * (int64_t)t->m + lane;
        const uint8_t *from =
            g->a.w.values + t->e * g->a.w.value_e_stride + block * blocks_k * S::BLOCK;
        return {lane < blocks ? from : NULL, blocks * S::BLOCK};
    } else {
        return {NULL, S::BM * STAGE_K};
    }
}

// Asks for the weights of a stage, `depth` blocks of k from kb on.
template <class S>
static __device__ __forceinline__ void
fetch_weights(const moei_mma_args *g, const moei_tile *t, const weights_of<S> &weights, int kb,
              int depth, uint32_t to, uint32_t full, uint64_t policy)
{
    const int lane = (int)threadIdx.x % 32;
    if constexpr (S::PACKED) {
        if (weights.from != NULL) {
            hopper_copy_bulk(to + lane * S::DEPTH * S::BLOCK, weights.from + kb * S::BLOCK,
                             (uint32_t)(depth * S::BLOCK), full, policy);
        }
    } else if (lane == 0) {
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

// Lanes that bring scales of x, and where the scales of a lane's rows lie: of every LANES-th row;
// element of x.scales, -1: no row.
template <class S> struct row_scales {
    static constexpr int LANES = 32 * (S::SCALE_WARPS > 0 ? S::SCALE_WARPS : 1);
    static constexpr int ROWS = (S::BN + LANES - 1) / LANES;
    int64_t from[ROWS];
};

// Whether scales of x change along k.
template <class S> static __device__ __forceinline__ bool scales_move(const moei_mma_args *g)
{
    return S::SCALED && g->a.x.scales != NULL && g->a.x.group > 0;
}

// `at`: this lane, of LANES.
template <class S>
static __device__ __forceinline__ void find_scales(const moei_mma_args *g, const moei_tile *t,
                                                   int at, row_scales<S> *scales)
{
#pragma unroll
    for (int j = 0; j < scales->ROWS; j++) {
        const int r = at + j * scales->LANES;
        int64_t group;
        scales->from[j] = scales_move<S>(g) && r < S::BN && t->i0 + r < t->i1
                              ? moei_x_scale_at(&g->a, t->e, t->i0 + r, 0, &group)
                              : -1;
    }
}

// The scale of a row at block kb of k; 1 where there is none.
static __device__ __forceinline__ float load_x_scale(const moei_operand *x, int64_t from, int kb)
{
    if (from < 0) {
        return 1.0f;
    }
    return x->packed
               ? moei_e8m0_to_f32(
                     ((const uint8_t *)x->scales)[4 * (from + kb / 4 * x->scale_k_stride) + kb % 4])
           : x->scale_dtype == MOE_F32
               ? ((const float *)x->scales)[from + kb * x->scale_k_stride]
               : moei_gpu_load(x->scale_dtype, x->scales, from + kb * x->scale_k_stride);
}

// The producer's way: by copies that run on, where scales are words.
template <class S>
static __device__ __forceinline__ void
fetch_scales(const moei_mma_args *g, const row_scales<S> &scales, int kb, uint32_t to)
{
    const moei_operand *x = &g->a.x;
    const int lane = (int)threadIdx.x % 32;
    const bool words = x->packed || x->scale_dtype == MOE_F32;
    const int64_t k = (x->packed ? kb / 4 : kb) * x->scale_k_stride;
#pragma unroll
    for (int j = 0; j < scales.ROWS; j++) {
        const int r = lane + j * scales.LANES;
        const int64_t from = scales.from[j] + k;
        if (scales.from[j] < 0) {
            continue;
        }
        if (g->scale_copies) {
            hopper_copy_4(to + 4 * r, (const uint32_t *)x->scales + (words ? from : from / 4));
        } else {
            *hopper_pointer<float>(to + 4 * r) = load_x_scale(x, scales.from[j], kb);
        }
    }
}

// Who makes bf16 of codes of x: four lanes have a row's block of k, 16 codes each.
template <class S> struct code_lanes {
    static constexpr int COUNT = 32 * (S::CODE_WARPS > 0 ? S::CODE_WARPS : 1);
    static constexpr int APART = COUNT / 4;                 // from a lane's row to its next
    static constexpr int ROWS = S::BN / APART;              // of a lane
    static constexpr int BLOCKS = ROWS >= 3 ? 1 : 4 - ROWS; // of k that are read ahead
    static_assert(!S::CODES || S::BN % APART == 0, "all lanes have as many rows");
};

// Whether scales of codes change along k.
template <class S> static __device__ __forceinline__ bool codes_move(const moei_mma_args *g)
{
    return S::CODES && g->a.x.scales != NULL && g->a.x.group > 0;
}

// Arrivals that complete a stage: one that says what the copy engine brings, and the lanes'.
template <class S> static __device__ __forceinline__ int stage_arrivals(const moei_mma_args *g)
{
    const bool stores = g->x_engine == MOEI_MMA_STORES;
    return 1 + 32 * (stores || (S::SCALE_WARPS == 0 && scales_move<S>(g)) ? 1 : 0) +
           32 * S::SCALE_WARPS + (S::CODES ? code_lanes<S>::COUNT : 0);
}

// Waits until the note of two tiles before has been read, and writes tile number i's.
template <class S>
static __device__ __forceinline__ void write_note(const moei_mma_args *g, const moei_tile *t,
                                                  bool there, uint32_t i, ring_of ring)
{
    const moek_ggemm_args *a = &g->a;
    tile_note<S> *note = hopper_pointer<tile_note<S>>(ring.notes) + i % 2;
    hopper_barrier_wait(ring.notes_empty + 8 * (i % 2), (i / 2 + 1) % 2);
    constexpr int AT_ONCE = S::BN <= 32 ? 1 : 4; // rows of a lane that are looked up together
#pragma unroll 1
    for (int first = (int)threadIdx.x % 32; there && first < S::BN; first += 32 * AT_ONCE) {
        int64_t row[AT_ONCE];
        float weight[AT_ONCE];
        float scale[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int64_t own = t->i0 + first + 32 * j;
            const bool has = scales_rows_of_x<S>(g) && own < t->i1;
            row[j] = g->fused || own >= t->i1 ? own : moei_y_row(a, own);
            scale[j] = has                ? moei_gpu_x_scale(a, t->e, own, 0)
                       : codes_move<S>(g) ? 1.0f / CODES_UP
                                          : 1.0f;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const bool has = a->row_weight != NULL && t->i0 + first + 32 * j < t->i1;
            weight[j] = has ? moei_y_row_weight(a, t->e, row[j]) : 1.0f;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int r = first + 32 * j;
            if (r < note->ROWS) {
                note->row[r] = (int32_t)row[j];
                note->weight[r] = weight[j];
                if (S::ROW_SCALES) {
                    note->scale[r] = scale[j];
                }
            }
        }
    }
    if (threadIdx.x % 32 == 0) {
        note->tile = *t;
        note->tile.e = there ? t->e : -1;
        note->tile.i1 = t->m < g->m_blocks ? t->i1 : t->i0;
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        hopper_barrier_arrive(ring.notes_full + 8 * (i % 2));
    }
}

// A warp that writes the notes of all pipes, `ring` being the first one's. They say nothing that
// depends on the launch before this one, but for scales of x; where there are no rows, math warps
// may combine as soon as they know.
template <class S>
static __device__ __forceinline__ void produce_notes(const moei_mma_args *g, uint32_t prefix,
                                                     ring_of ring)
{
    uint32_t open = (1u << S::PIPES) - 1; // pipes that have tiles left
    moei_tile t = {0, 0, 0, 0};
    for (uint32_t i = 0; open != 0; i++) {
#pragma unroll 1
        for (int pipe = 0; pipe < S::PIPES; pipe++) {
            ring_of own = ring;
            own.notes += pipe * 2 * (uint32_t)sizeof(tile_note<S>);
            own.notes_full += pipe * 16;
            own.notes_empty += pipe * 16;
            if ((open >> pipe & 1) != 0) {
                const bool more = tile_of<S>(g, prefix, pipe, i, &t);
                if (i == 0 && (!more || scales_rows_of_x<S>(g))) {
                    hopper_grid_wait();
                }
                write_note<S>(g, &t, more, i, own);
                open &= ~((more ? 0u : 1u) << pipe);
            }
        }
    }
}

// Rows that boxes bring for a tile of `there` rows.
template <class S> static __device__ __forceinline__ int rows_in_boxes(int there)
{
    constexpr int ALL = S::BOX * S::CLUSTER;
    return ALL < S::BN && there < S::BN ? (there + ALL - 1) / ALL * ALL : S::BN;
}

// Rows of x of a stage, `depth` blocks of k from kb on. Where they are gathered, `there` of them,
// and this lane's first one is `row`.
template <class S>
static __device__ __forceinline__ void fetch_x(const moei_mma_args *g, const moei_tile *t,
                                               int there, int32_t row, int kb, int depth,
                                               uint32_t to, uint32_t full)
{
    const moek_ggemm_args *a = &g->a;
    const int lane = (int)threadIdx.x % 32;
    const int batch = a->offsets == NULL ? t->e : 0;
    if (g->x_engine == MOEI_MMA_BOX) {
        // A lane for each box of each block of k; of a cluster, every block has as many.
        constexpr int BOXES = S::BN / S::CLUSTER / S::BOX; // of a block of k, at most
        static_assert(S::DEPTH * BOXES <= 32, "a lane for each");
        const int k = (kb + lane / BOXES) * (STAGE_K / S::X_BYTES);
        const int share = rows_in_boxes<S>(there) / S::CLUSTER;
        const int row_at = lane % BOXES * S::BOX; // of the share
        const int first =
            row_at + (S::CLUSTER > 1 ? (int)hopper_cluster_rank() * share : 0); // of the tile
        const uint32_t at = to + (lane / BOXES * S::BN + first) * STAGE_K;
        if (lane / BOXES >= depth || row_at >= share) {
        } else if constexpr (S::CLUSTER > 1) {
            hopper_tensor_3d_all(at, &g->x, k, (int)t->i0 + first, batch, full,
                                 (1 << S::CLUSTER) - 1);
        } else {
            hopper_tensor_3d_plain(at, &g->x, k, (int)t->i0 + first, batch, full);
        }
    } else if (g->x_engine == MOEI_MMA_GATHER) {
#pragma unroll 1
        for (int r = lane; r < there; r += 32) {
            const int32_t from = r < 32 ? row : (int32_t)moei_x_row(a, t->i0 + r);
            for (int d = 0; d < depth; d++) {
                hopper_tensor_3d_plain(to + (d * S::BN + r) * STAGE_K, &g->x,
                                       (kb + d) * (STAGE_K / S::X_BYTES), from, 0, full);
            }
        }
    } else {
        store_x<S>(a, t, kb, depth, to);
    }
}

// A pipe's way around its ring, as those see it who fill it.
struct fill_place {
    int stage;
    uint32_t parity; // of "empty": a fresh ring is
};

static __device__ __forceinline__ void advance(fill_place *f, int stages)
{
    if (++f->stage == stages) {
        f->stage = 0;
        f->parity ^= 1;
    }
}

template <class S> static __device__ __forceinline__ int depth_at(int kb, int blocks_k)
{
    return S::DEPTH == 1 || blocks_k - kb >= S::DEPTH ? S::DEPTH : blocks_k - kb;
}

// Where the scales of the tile's eight outputs number `eight` begin; -1: they are 1.
template <class S>
static __device__ __forceinline__ int64_t find_w_scale(const moei_mma_args *g, const moei_tile *t,
                                                       int eight)
{
    const moei_matrices *w = &g->a.w;
    const int64_t own =
        (int64_t)t->m * (g->paired ? S::BM / 2 : S::BM) + (g->paired ? eight / 2 : eight) * 8;
    const int64_t n = own * g->step + (g->paired && eight % 2 == 1 ? g->second : 0);
    return w->block_k > 0 && own < g->outputs ? moei_w_scale_at(w, t->e, n, 0) : -1;
}

// Warps that do nothing but bring scales: of rows of x, and, ROWS_M, of outputs by eights. They are
// read a block of k ahead.
template <class S>
static __device__ __forceinline__ void produce_scales(const moei_mma_args *g, uint32_t prefix,
                                                      int at, ring_of ring)
{
    using rows = row_scales<S>;
    static_assert(!S::ROWS_M || S::BM / 8 <= rows::LANES, "a lane for each eight outputs");
    const int blocks_k = (int)((S::X_BYTES * g->a.w.k + STAGE_K - 1) / STAGE_K);
    fill_place f = {0, 1};
    moei_tile t;
    hopper_grid_wait();
    for (uint32_t i = 0; tile_of<S>(g, prefix, 0, i, &t); i++) {
        rows scales;
        find_scales<S>(g, &t, at, &scales);
        const bool has_eight = S::ROWS_M && at < S::BM / 8;
        const int64_t of_eight = has_eight ? find_w_scale<S>(g, &t, at) : -1;
        float of_x[rows::ROWS];
        float of_w = 1.0f;
#pragma unroll 1
        for (int kb = -1; kb < blocks_k; kb++) {
            if (kb >= 0) {
                stagger(g->delay, (uint32_t)kb);
                hopper_barrier_wait(ring.empty + 8 * f.stage, f.parity);
                float *to = hopper_pointer<float>(ring.scales + f.stage * S::SCALES);
#pragma unroll
                for (int j = 0; j < rows::ROWS; j++) {
                    const int r = at + j * rows::LANES;
                    if (r < S::BN) {
                        to[r] = of_x[j];
                    }
                }
                if (has_eight) {
                    to[S::BN + at] = of_w;
                }
                hopper_barrier_arrive(ring.full + 8 * f.stage);
                advance(&f, g->stages);
            }
            if (kb + 1 < blocks_k) {
#pragma unroll
                for (int j = 0; j < rows::ROWS; j++) {
                    of_x[j] = load_x_scale(&g->a.x, scales.from[j], kb + 1);
                }
                of_w = load_w_scale(&g->a.w, of_eight, kb + 1);
            }
        }
    }
}

// Rows of f32 that are quantised on their way, by halves of the warp: two neighbouring ones, or of
// a single row two blocks of k. A lane has eight elements.
struct rows_of_floats {
    const uint8_t *from; // the tile's first one
    int there;           // how many it has
    int r, kb;           // row and block of k that the lane reads next
    moei_gpu_bits<8> ahead[2];
};

// Reads what comes after the next, and moves on; 0 where there is no element.
static __device__ __forceinline__ void read_ahead(const moei_mma_args *g, rows_of_floats *rows)
{
    const int k = rows->kb * STAGE_K + (int)threadIdx.x % 16 * 8;
    moei_gpu_bits<8> *to = &rows->ahead[1];
    rows->ahead[0] = rows->ahead[1];
    *to = {};
    if (rows->r < rows->there && k < g->a.w.k) {
        moei_gpu_fetch<8>(MOE_F32, rows->from + rows->r * g->quantize.a.x_row_stride + 4 * k, to);
    }
    if (rows->there == 1) {
        rows->kb += 2;
    } else if ((rows->r += 2) / 2 * 2 >= rows->there) {
        rows->r %= 2;
        rows->kb++;
    }
}

// The codes and the scale of what the lane has read, where it has, as row r of a stage.
static __device__ __forceinline__ void quantize_next(const moei_mma_args *g, rows_of_floats *rows,
                                                     bool there, int r, uint32_t x, uint32_t scales)
{
    const int lane = (int)threadIdx.x % 16;
    const moei_gpu_quantize_args *q = &g->quantize;
    float v[8];
    uint32_t codes[2];
    moei_gpu_decode<8>(MOE_F32, &rows->ahead[0], v);
    read_ahead(g, rows);
    const moei_scale s = moei_gpu_quantize_fp8(q, v, codes);
    if (there) {
        *hopper_pointer<uint2>(x + r * STAGE_K + (lane / 2 ^ r % 8) * 16 +
                               lane % 2 * 8) = {codes[0], codes[1]};
        if (lane == 0) {
            const moe_scale_type type = q->a.quant.scale_type;
            *hopper_pointer<float>(scales + 4 * r) =
                type == MOE_SCALE_F32 || type == MOE_SCALE_UE8M0_F32
                    ? s.value
                    : moei_scale_from_byte(&q->info, type, s.byte);
        }
    }
}

// The stages of a tile whose rows are quantised. Every tile of an expert does it again: of few rows
// that costs less than a launch, and the weights are under way meanwhile.
template <class S>
static __device__ __forceinline__ void
produce_quantized(const moei_mma_args *g, const moei_tile *t, const weights_of<S> &weights,
                  int blocks_k, ring_of ring, fill_place *f, int *early, uint64_t policy)
{
    static_assert(S::DEPTH == 1, "a stage has one block of k");
    const int lane = (int)threadIdx.x % 32;
    const int half = lane / 16;
    rows_of_floats rows;
    rows.there = (int)(t->i1 - t->i0);
    rows.from = g->quantize.a.x + t->i0 * g->quantize.a.x_row_stride;
    rows.r = rows.there > 1 ? half : 0;
    rows.kb = rows.there > 1 ? 0 : half;
    read_ahead(g, &rows);
    read_ahead(g, &rows);
    const int wide = rows.there > 1 ? 1 : 2; // blocks of k at the same time
#pragma unroll 1
    for (int kb = 0; kb < blocks_k; kb += wide) {
        const int count = blocks_k - kb < wide ? 1 : wide;
        fill_place at = *f;
        int own = f->stage; // where this lane's codes go
#pragma unroll 1
        for (int i = 0; i < count; i++, advance(&at, g->stages)) {
            const uint32_t full = ring.full + 8 * at.stage;
            stagger(g->delay, (uint32_t)(kb + i));
            hopper_barrier_wait(ring.empty + 8 * at.stage, at.parity);
            if (lane == 0) {
                hopper_barrier_expect(full, (uint32_t)weights.bytes);
            }
            if (*early > 0) {
                --*early;
            } else {
                fetch_weights<S>(g, t, weights, kb + i, 1, ring.stages + at.stage * S::STAGE, full,
                                 policy);
            }
            own = i == half || wide == 1 ? at.stage : own;
        }
        const uint32_t x = ring.stages + own * S::STAGE + S::WEIGHTS;
        const uint32_t scales = ring.scales + own * S::SCALES;
#pragma unroll 1
        for (int r = 0; r < rows.there; r += 2) {
            const int mine = wide > 1 ? 0 : r + half;
            quantize_next(g, &rows, wide > 1 ? half < count : mine < rows.there, mine, x, scales);
        }
        hopper_fence_async(); // before the matrix unit reads what was stored
#pragma unroll 1
        for (int i = 0; i < count; i++, advance(f, g->stages)) {
            hopper_barrier_arrive(ring.full + 8 * f->stage);
        }
    }
}

// A tile's codes, and their scales along k; strides in bytes.
struct codes_of {
    const uint8_t *data;   // of the tile's batch
    const uint8_t *scales; // of the batch; NULL: there are none
    bool floats;           // scales are f32, else the codes of powers of two
};

template <class S>
static __device__ __forceinline__ codes_of find_codes(const moei_mma_args *g, const moei_tile *t)
{
    const moei_operand *x = &g->a.x;
    const int64_t batch = g->a.offsets == NULL ? t->e : 0;
    const int64_t bytes = x->packed || x->scale_dtype == MOE_F32 ? 4 : 1;
    const uint8_t *scales = (const uint8_t *)x->scales + batch * x->scale_batch_stride * bytes;
    return {x->data + batch * x->batch_stride, codes_move<S>(g) ? scales : NULL,
            !x->packed && x->scale_dtype == MOE_F32};
}

static __device__ __forceinline__ int64_t pitch_of_scales(const moei_operand *x)
{
    return x->scale_row_stride * (x->packed || x->scale_dtype == MOE_F32 ? 4 : 1);
}

// Where in a row the scale of element k lies, in bytes.
static __device__ __forceinline__ int64_t scale_of_k(const moei_operand *x, int k)
{
    const int group = k / x->group;
    return x->packed                   ? group / 4 * x->scale_k_stride * 4 + group % 4
           : x->scale_dtype == MOE_F32 ? group * x->scale_k_stride * 4
                                       : group * x->scale_k_stride;
}

// As memory has it.
static __device__ __forceinline__ uint32_t read_scale(const codes_of &x, const uint8_t *at)
{
    return x.floats ? *(const uint32_t *)at : *at;
}

// A pair of factors of codes. From 2^118 on it is infinity, which also a code of 0 makes NaN.
static __device__ __forceinline__ uint32_t code_factor(const codes_of &x, uint32_t scale)
{
    const float s = x.floats ? __uint_as_float(scale) : moei_e8m0_to_f32((uint8_t)scale);
    return decode_pair(s * CODES_UP, s * CODES_UP);
}

// Where a row begins. Made where it is used: kept for all rows of a lane, pointers would fill its
// registers.
static __device__ __forceinline__ const uint8_t *code_row(const uint8_t *from, uint32_t row,
                                                          int64_t pitch)
{
    hopper_here(&row);
    return from + (uint64_t)row * (uint32_t)pitch;
}

// 16 codes as bf16; `to`: the first eight of them, in the swizzled row of a stage.
static __device__ __forceinline__ void store_codes(const uint4 &codes, bool scaled, uint32_t factor,
                                                   uint32_t to)
{
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t pairs[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        decode_codes(words[i], pairs + 2 * i);
    }
    if (scaled) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            pairs[i] = decode_multiply(pairs[i], factor);
        }
    }
    *hopper_pointer<uint4>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    *hopper_pointer<uint4>(to ^ 16) = {pairs[4], pairs[5], pairs[6], pairs[7]};
}

// The first element of k of block kb that lane `at` has.
static __device__ __forceinline__ int code_k(int at, int kb)
{
    return kb * (STAGE_K / 2) + at % 4 * 16;
}

// Where the first eight of those lie in row r of the block.
static __device__ __forceinline__ uint32_t code_place(int at, int r)
{
    return (uint32_t)(r * STAGE_K + (at % 4 * 2 ^ r % 8) * 16);
}

// Codes that can be read by whole vectors, 16 at a time, as they are read ahead.
template <class S, bool SCALED> struct code_vectors {
    static constexpr int ROWS = code_lanes<S>::ROWS;
    static constexpr int BLOCKS = code_lanes<S>::BLOCKS;
    uint4 codes[BLOCKS][ROWS];
    // Scales as memory has them: of as many rows, in turn.
    static constexpr int SCALES = ROWS % 4 == 0 ? 4 : ROWS % 3 == 0 ? 3 : ROWS;
    uint32_t scale[BLOCKS][SCALED ? SCALES : 1];
    uint32_t row[ROWS]; // of x; past the tile's end its last one, so that nothing branches

    __device__ __forceinline__ void begin(const moei_mma_args *g, const moei_tile *t, int at)
    {
        const int last = (int)(t->i1 - t->i0) - 1;
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            const int r = at / 4 + j * code_lanes<S>::APART;
            row[j] = (uint32_t)moei_x_row(&g->a, t->i0 + (r < last ? r : last));
        }
    }

    // Where the lane's elements of k of a block lie, and their scale; past the end of k the first.
    struct place {
        const uint8_t *codes;
        const uint8_t *scale;
    };

    static __device__ __forceinline__ place place_of(const moei_mma_args *g, const codes_of &x,
                                                     int at, int kb)
    {
        const int k = code_k(at, kb) < g->a.w.k ? code_k(at, kb) : 0;
        return {x.data + k, SCALED ? x.scales + scale_of_k(&g->a.x, k) : NULL};
    }

    __device__ __forceinline__ void ask_codes(const moei_mma_args *g, const place &p, int i, int j)
    {
        codes[i][j] = *(const uint4 *)code_row(p.codes, row[j], g->a.x.row_stride);
    }

    __device__ __forceinline__ void ask_scale(const moei_mma_args *g, const codes_of &x,
                                              const place &p, int i, int j)
    {
        if (SCALED) {
            scale[i][j % SCALES] =
                read_scale(x, code_row(p.scale, row[j], pitch_of_scales(&g->a.x)));
        }
    }

    // Asks for what the lane has of block kb.
    __device__ __forceinline__ void ask(const moei_mma_args *g, const codes_of &x, int at, int kb,
                                        int i)
    {
        const place p = place_of(g, x, at, kb);
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            ask_codes(g, p, i, j);
            if (j < SCALES) {
                ask_scale(g, x, p, i, j);
            }
        }
    }

    // Block kb to shared memory, and asks for block `ahead` in its place.
    __device__ __forceinline__ void store(const moei_mma_args *g, const moei_tile *t,
                                          const codes_of &x, int at, int kb, int ahead, int i,
                                          uint32_t to)
    {
        const place now = place_of(g, x, at, kb);
        const place next = place_of(g, x, at, ahead);
        const uint32_t own = to + code_place(at, at / 4);
        (void)t;
        if (code_k(at, kb) >= g->a.w.k) {
#pragma unroll
            for (int j = 0; j < ROWS; j++) {
                codes[i][j] = {0, 0, 0, 0};
            }
        }
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            store_codes(codes[i][j], SCALED, SCALED ? code_factor(x, scale[i][j % SCALES]) : 0,
                        own + j * code_lanes<S>::APART * STAGE_K);
            ask_codes(g, next, i, j);
            ask_scale(g, x, j + SCALES < ROWS ? now : next, i, (j + SCALES) % ROWS);
            if (SCALED ? ROWS > 4 : ROWS > 6 && j % 4 == 3) {
                __syncwarp(); // no other row is begun before: registers would not suffice
            }
        }
    }
};

// Codes that lie anywhere, byte by byte; nothing is read ahead.
template <class S> struct code_bytes {
    static constexpr int ROWS = 0;
    static constexpr int BLOCKS = 1;

    __device__ __forceinline__ void begin(const moei_mma_args *g, const moei_tile *t, int at)
    {
    }

    __device__ __forceinline__ void ask(const moei_mma_args *g, const codes_of &x, int at, int kb,
                                        int i)
    {
    }

    __device__ __forceinline__ void store(const moei_mma_args *g, const moei_tile *t,
                                          const codes_of &x, int at, int kb, int ahead, int i,
                                          uint32_t to)
    {
        const int first = code_k(at, kb);
        const int end = (int)g->a.w.k;
#pragma unroll 1
        for (int r = at / 4; r < t->i1 - t->i0; r += code_lanes<S>::APART) {
            const int32_t row = (int32_t)moei_x_row(&g->a, t->i0 + r);
            const uint8_t *from = x.data + row * g->a.x.row_stride;
            uint32_t words[4] = {0, 0, 0, 0};
            uint32_t factor = 0x3F803F80; // ones
#pragma unroll
            for (int b = 0; b < 16; b++) {
                words[b / 4] |= first + b < end ? (uint32_t)from[first + b] << b % 4 * 8 : 0u;
            }
            if (x.scales != NULL && first < end) {
                factor = code_factor(x, read_scale(x, x.scales + row * pitch_of_scales(&g->a.x) +
                                                          scale_of_k(&g->a.x, first)));
            }
            store_codes({words[0], words[1], words[2], words[3]}, true, factor,
                        to + code_place(at, r));
        }
    }
};

// The block of k after kb that a pipe has.
template <class S>
static __device__ __forceinline__ int next_block(const chunk_share &share, int kb)
{
    const int next = kb + 1;
    return S::SHARES && share.step > 1 && next % CHUNK == 0 ? next + (share.step - 1) * CHUNK
                                                            : next;
}

// The stages of a tile whose rows are codes, block by block of k; without CODE_WARPS the weights,
// too. What a lane has read is decoded as late as possible, and its registers ask for more at once.
// @param at  this lane, of code_lanes
template <class S, class CODES>
static __device__ __forceinline__ void
produce_decoded(const moei_mma_args *g, const moei_tile *t, const codes_of &x,
                const weights_of<S> &weights, int blocks_k, const chunk_share &share, int at,
                ring_of ring, fill_place *f, int *early, uint64_t policy)
{
    CODES codes;
    int kb = share.first * CHUNK;
    int ahead = kb; // the block of k that is asked for next
    codes.begin(g, t, at);
#pragma unroll
    for (int i = 0; i < CODES::BLOCKS; i++, ahead = next_block<S>(share, ahead)) {
        codes.ask(g, x, at, ahead, i);
    }
#pragma unroll 1
    while (kb < blocks_k) {
#pragma unroll
        for (int i = 0; i < CODES::BLOCKS; i++) { // registers have no index
            if (kb >= blocks_k) {
                break;
            }
            const uint32_t stage = ring.stages + f->stage * S::STAGE;
            const uint32_t full = ring.full + 8 * f->stage;
            const int d = kb % S::DEPTH;
            if (d == 0) {
                stagger(g->delay, (uint32_t)kb);
                hopper_barrier_wait(ring.empty + 8 * f->stage, f->parity);
                if constexpr (S::CODE_WARPS == 0) {
                    const int depth = depth_at<S>(kb, blocks_k);
                    if (at == 0) {
                        hopper_barrier_expect(full, (uint32_t)(depth * weights.bytes));
                    }
                    if (*early > 0) {
                        --*early;
                    } else {
                        fetch_weights<S>(g, t, weights, kb, depth, stage, full, policy);
                    }
                }
            }
            codes.store(g, t, x, at, kb, ahead, i, stage + S::WEIGHTS + d * S::BN * STAGE_K);
            if (d == S::DEPTH - 1 || kb + 1 == blocks_k) {
                if (!S::SYNC) {
                    hopper_fence_async(); // before the matrix unit reads what was stored
                }
                hopper_barrier_arrive(full);
                advance(f, g->stages);
            }
            kb = next_block<S>(share, kb);
            ahead = next_block<S>(share, ahead);
        }
    }
}

template <class S>
static __device__ __forceinline__ void
produce_any_codes(const moei_mma_args *g, const moei_tile *t, const weights_of<S> &weights,
                  int blocks_k, const chunk_share &share, int at, ring_of ring, fill_place *f,
                  int *early, uint64_t policy)
{
    const codes_of x = find_codes<S>(g, t);
    const uint64_t pitch = (uint64_t)g->a.x.row_stride;
    const bool vectors = ((uintptr_t)x.data | pitch | (uint64_t)g->a.w.k) % 16 == 0 &&
                         pitch <= UINT32_MAX && (uint64_t)pitch_of_scales(&g->a.x) <= UINT32_MAX;
    if (!vectors) {
        produce_decoded<S, code_bytes<S>>(g, t, x, weights, blocks_k, share, at, ring, f, early,
                                          policy);
    } else if (x.scales != NULL) {
        produce_decoded<S, code_vectors<S, true>>(g, t, x, weights, blocks_k, share, at, ring, f,
                                                  early, policy);
    } else {
        produce_decoded<S, code_vectors<S, false>>(g, t, x, weights, blocks_k, share, at, ring, f,
                                                   early, policy);
    }
}

// Warps that do nothing but bring codes of x.
template <class S>
static __device__ __forceinline__ void produce_codes(const moei_mma_args *g, uint32_t prefix,
                                                     int at, ring_of ring)
{
    const int blocks_k = (int)((S::X_BYTES * g->a.w.k + STAGE_K - 1) / STAGE_K);
    fill_place f = {0, 1};
    moei_tile t;
    hopper_grid_wait();
    for (uint32_t i = 0; tile_of<S>(g, prefix, 0, i, &t); i++) {
        produce_any_codes<S>(g, &t, {NULL, 0}, blocks_k, share_of<S>(g, 0, 0), at, ring, &f, NULL,
                             0);
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
    const bool brings_scales = S::SCALE_WARPS == 0 && scales_move<S>(g);
    const chunk_share share = share_of<S>(g, pipe, 0);
    const uint64_t policy =
        g->weights_stay ? hopper_policy_evict_last() : hopper_policy_evict_first();
    fill_place f = {0, 1};
    int early = 0; // stages whose weights have been asked for
    moei_tile t = {0, 0, 0, 0};
    for (uint32_t i = 0;; i++) {
        const bool more = tile_of<S>(g, prefix, pipe, i, &t);
        const bool ahead = i == 0 && g->early; // of the end of the launch before this one
        const weights_of<S> weights = find_weights<S>(g, &t, blocks_k);
        if (ahead && more) {
            // Neither weights nor what a note says, but for scales of x, depend on that launch.
            for (int kb = share.first * CHUNK; kb < blocks_k && early < stages;
                 kb = next_stage<S>(share, kb), early++) {
                fetch_weights<S>(g, &t, weights, kb, depth_at<S>(kb, blocks_k),
                                 ring.stages + early * S::STAGE, ring.full + 8 * early, policy);
            }
        }
        if constexpr (!S::NOTES_APART) {
            if (ahead && (!more || scales_rows_of_x<S>(g))) {
                hopper_grid_wait();
            }
            write_note<S>(g, &t, more, i, ring);
        }
        if (ahead) {
            hopper_grid_wait();
            hopper_grid_launch();
        }
        if (!more) {
            return;
        }
        if constexpr (S::SCALED && S::SCALE_WARPS == 0) {
            if (g->x_engine == MOEI_MMA_QUANTIZE) {
                produce_quantized<S>(g, &t, weights, blocks_k, ring, &f, &early, policy);
                continue;
            }
        }
        if constexpr (S::CODES && S::CODE_WARPS == 0) {
            produce_any_codes<S>(g, &t, weights, blocks_k, share, lane, ring, &f, &early, policy);
            continue;
        }
        const int there = t.i1 - t.i0 < S::BN ? (int)(t.i1 - t.i0) : S::BN;
        const int rows_of_x = g->x_engine == MOEI_MMA_BOX      ? rows_in_boxes<S>(there)
                              : g->x_engine == MOEI_MMA_GATHER ? there
                                                               : 0;
        const int bytes =
            weights.bytes + rows_of_x * STAGE_K; // that the engine brings a block of k
        row_scales<S> scales;
        if (brings_scales) {
            find_scales<S>(g, &t, lane, &scales);
        }
        const int32_t row = g->x_engine == MOEI_MMA_GATHER && lane < there
                                ? (int32_t)moei_x_row(a, t.i0 + lane)
                                : 0;
#pragma unroll 1
        for (int kb = share.first * CHUNK; kb < blocks_k; kb = next_stage<S>(share, kb)) {
            const int depth = depth_at<S>(kb, blocks_k);
            const uint32_t stage = ring.stages + f.stage * S::STAGE;
            const uint32_t full = ring.full + 8 * f.stage;
            stagger(g->delay, (uint32_t)kb);
            hopper_barrier_wait(ring.empty + 8 * f.stage, f.parity);
            if (lane == 0) {
                hopper_barrier_expect(full, (uint32_t)(depth * bytes));
            }
            if (early > 0) {
                early--;
            } else {
                fetch_weights<S>(g, &t, weights, kb, depth, stage, full, policy);
            }
            if constexpr (!S::CODES) {
                fetch_x<S>(g, &t, there, row, kb, depth, stage + S::WEIGHTS, full);
            }
            if (brings_scales) {
                fetch_scales<S>(g, scales, kb, ring.scales + f.stage * S::SCALES);
            }
            if (g->x_engine == MOEI_MMA_STORES || (brings_scales && !g->scale_copies)) {
                hopper_copies_wait();
                hopper_fence_async(); // before the matrix unit reads what was stored
                hopper_barrier_arrive(full);
            } else if (brings_scales) {
                hopper_barrier_arrive_copies(full);
            }
            advance(&f, stages);
        }
    }
}

#endif
