// SPDX-License-Identifier: Apache-2.0
// ggemm on the matrix units of CDNA: weights that bf16 holds exactly x rows that it holds exactly,
// any sizes and strides.
//
// A block of four waves computes 64 outputs x ROWS rows, a wave 16 outputs of them in ROWS / 16
// matrix instructions a step (instructions.h). Weights go from memory to the registers of the one
// wave that multiplies them, a slice of 128 k ahead, and are decoded there (decode.cuh); rows of x
// lie in LDS, 272 bytes a slice, and are fetched a slice ahead, too, decoded where they are codes.
// What lies past the end of a row of x is 0, and weights there are finite; for what lies past the
// last row or output, another is read, and its results are dropped.
//
// Each result is one chain of matrix instructions over K in ascending order from +0; where scales
// change every `fold` k, one chain for those k, and acc = fma(sum * s_x, s_w, acc) at its end.
// So bits depend on K and the row alone: not on the tile, nor on the rows beside it.
//
// Tiles that are at work at the same time share weights, and on these devices an L2: workgroups go
// to the dies in turn, so a die takes a run of tiles (moei_hip_next_tile).
// Limit: LDS reads, ROWS / 16 of 16 bytes a lane for as many matrix instructions.
#ifndef MOEI_HIP_GGEMM_MFMA_CUH
#define MOEI_HIP_GGEMM_MFMA_CUH

#include "backends/gpu/scales.cuh"
#include "backends/gpu/tiles.cuh"
#include "backends/hip/cdna/decode.cuh"
#include "backends/hip/mfma.h"

#define MOEI_HIP_PIECE 8 // elements of x that a thread fetches

/// What a block has in LDS.
template <int ROWS> struct moei_hip_lds {
    alignas(16) uint16_t x[ROWS * MOEI_HIP_MFMA_PITCH];
    float x_scale[MOEI_HIP_MFMA_STEPS][ROWS]; // of the slice's steps
    int32_t prefix[1];                        // of tiles; as many as there are experts and one
};

// ------------------------------------------------------------------------------------------- tiles

/// The tile that a block takes in its round `i`; -1 past the last.
DEV_FN int64_t moei_hip_next_tile(int64_t tiles, int64_t i)
{
    const int64_t each = (tiles + MOEI_HIP_DIES - 1) / MOEI_HIP_DIES; // of a die
    const int64_t die = dev_block() % MOEI_HIP_DIES;
    const int64_t at = dev_block() / MOEI_HIP_DIES + i * (dev_blocks() / MOEI_HIP_DIES);
    const int64_t tile = die * each + at;
    return at < each && tile < tiles ? tile : -1;
}

// ------------------------------------------------------------------------------------------ bf16

/// Elements k .. k + 7 of a row of bf16 at p, 0 past its end. `wide`: it lies at a multiple of 16
/// bytes.
DEV_FN moei_u32x4 moei_hip_fetch(const uint8_t *p, int64_t k, int64_t end, bool wide)
{
    moei_u32x4 v = {0, 0, 0, 0};
    p += 2 * k;
    if (wide && end - k >= MOEI_HIP_PIECE) {
        return *(const moei_u32x4 *)(const void *)p;
    }
    if (k >= end) {
        return v;
    }
    // Ends of rows, and rows at other addresses: what matters is that this is little code.
    const int n = end - k < MOEI_HIP_PIECE ? (int)(end - k) : MOEI_HIP_PIECE;
    uint64_t low = 0;
    uint64_t high = 0;
    MOEI_GPU_ROLL
    for (int i = n - 1; i >= 0; i--) {
        high = high << 16 | low >> 48;
        low = low << 16 | (uint32_t)p[2 * i + 1] << 8 | p[2 * i];
    }
    v[0] = (uint32_t)low;
    v[1] = (uint32_t)(low >> 32);
    v[2] = (uint32_t)high;
    v[3] = (uint32_t)(high >> 32);
    return v;
}

// --------------------------------------------------------------------------------------- weights

/// The weights of the 16 outputs of a wave, as a lane reads them: canonical bf16.
struct moei_hip_row_weights {
    const uint8_t *row;
    int64_t k_end;
    bool wide;

    struct slice {
        moei_u32x4 v[MOEI_HIP_MFMA_STEPS];
    };

    MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, int32_t e, int64_t n0, uint32_t lane)
    {
        const moei_matrices *w = &g->a.w;
        const int64_t n = n0 + lane % 16 < w->n ? n0 + lane % 16 : w->n - 1;
        row = w->values + e * w->value_e_stride + n * w->value_n_stride + lane / 16 * 16;
        k_end = w->k - lane / 16 * 8;
        wide = ((uintptr_t)w->values | (uint64_t)w->value_e_stride | (uint64_t)w->value_n_stride) %
                   16 ==
               0;
    }

    MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, int64_t k0, slice *s) const
    {
        (void)g;
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_HIP_MFMA_STEPS; i++) {
            s->v[i] = moei_hip_fetch(row, k0 + i * MOEI_HIP_MFMA_STEP, k_end, wide);
        }
    }

    MOEI_HIP_MEMBER moei_u32x4 operand(const moei_hip_mfma_args *g, const slice *s, int i) const
    {
        (void)g;
        return s->v[i];
    }
};

/// The same of packed weights.
template <int CODE> struct moei_hip_packed_weights {
    static constexpr int WORDS = moei_hip_code_of<CODE>::WORDS;
    static constexpr bool SCALED = CODE >= MOEI_HIP_CODE_E4M3 || moei_hip_code_of<CODE>::E2M1;
    static constexpr bool OFFSET = CODE == MOEI_HIP_CODE_U4 || CODE == MOEI_HIP_CODE_U8;

    const uint8_t *codes;
    const uint8_t *scales; // in the codes' units; else NULL
    const uint8_t *zeros;  // of groups; NULL: one for all
    uint32_t lane;
    uint32_t shift; // CDNA4 layout: of the byte of 16 outputs, in its pair

    struct slice {
        uint32_t words[MOEI_HIP_MFMA_STEPS][WORDS];
        uint32_t scales[MOEI_HIP_MFMA_STEPS];
        uint32_t zeros[MOEI_HIP_MFMA_STEPS];
        uint32_t shift;
    };

    MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, int32_t e, int64_t n0, uint32_t l)
    {
        const moei_hip_packed *p = &g->packed;
        const uint8_t *expert = g->a.w.values + e * g->a.w.value_e_stride;
        // Waves past the last output read it: theirs are dropped.
        const int64_t tile = (n0 < p->outputs ? n0 : p->outputs - 16) / 16;
        const uint32_t octet = l / 16;
        lane = l;
        codes = expert + tile * 16 * p->row_bytes + l % 16 * 16 +
                (WORDS == 4   ? octet * 256
                 : WORDS == 2 ? octet / 2 * 256 + octet % 2 * 8
                              : octet * 4);
        shift = 0;
        scales = nullptr;
        zeros = nullptr;
        if (SCALED && p->scales != MOEI_HIP_SCALES_APART) {
            scales = expert + p->scales_at;
            if (p->cdna4) {
                scales += tile / 2 * 32 * p->groups + l % 16 * 4;
                shift = (uint32_t)(tile % 2) * 8;
            } else {
                scales +=
                    tile * 16 * p->groups + l % 16 * (p->scales == MOEI_HIP_SCALES_E8M0 ? 4 : 8);
            }
        }
        if (OFFSET && p->zeros_at != p->bytes) {
            zeros = expert + p->zeros_at + tile * 16 + l % 16;
        }
    }

    MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, int64_t k0, slice *s) const
    {
        const moei_hip_packed *p = &g->packed;
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_HIP_MFMA_STEPS; i++) {
            const int64_t k = k0 + i * MOEI_HIP_MFMA_STEP;
            // bf16 is padded to 32 k alone.
            const uint32_t *from =
                (const uint32_t *)(const void *)(codes + (CODE != MOEI_HIP_CODE_BF16 || k < g->a.w.k
                                                              ? k / 32 * (256 * WORDS)
                                                              : 0));
            MOEI_GPU_UNROLL
            for (int j = 0; j < WORDS; j++) {
                s->words[i][j] = from[j];
            }
            if (OFFSET) {
                s->zeros[i] = zeros != nullptr && k < g->a.w.k
                                  ? zeros[(k >> g->group_shift) * p->outputs]
                                  : (uint32_t)g->zero_point;
            }
        }
        if (!SCALED || scales == nullptr) {
            return;
        }
        const int64_t part = k0 / MOEI_HIP_MFMA_SLICE;
        if (p->cdna4) {
            s->shift = shift + (uint32_t)(part % 2) * 16;
            MOEI_GPU_UNROLL
            for (int i = 0; i < MOEI_HIP_MFMA_STEPS; i++) {
                s->scales[i] = *(const uint32_t *)(const void *)(scales + part / 2 * 256 + i * 64);
            }
        } else if (p->scales == MOEI_HIP_SCALES_E8M0) {
            s->scales[0] = *(const uint32_t *)(const void *)(scales + part * 64);
        } else {
            const uint32_t *two = (const uint32_t *)(const void *)(scales + part * 128);
            s->scales[0] = two[0];
            s->scales[1] = two[1];
        }
    }

    MOEI_HIP_MEMBER float scale(const moei_hip_mfma_args *g, const slice *s, int i) const
    {
        if (!SCALED || scales == nullptr) {
            return 1.0f;
        }
        if (g->packed.cdna4) {
            return moei_f32_from_bits((s->scales[i] >> s->shift & 0xFF) << 23);
        }
        return g->packed.scales == MOEI_HIP_SCALES_E8M0
                   ? moei_f32_from_bits((s->scales[0] >> 8 * i & 0xFF) << 23)
                   : moei_e4m3fn_to_f32(
                         (uint8_t)(s->scales[i / 2] >> (i % 2 * 16 + lane / 32 * 8)));
    }

    MOEI_HIP_MEMBER moei_u32x4 operand(const moei_hip_mfma_args *g, const slice *s, int i) const
    {
        return moei_hip_decode<CODE>(s->words[i], scale(g, s, i),
                                     OFFSET ? (float)s->zeros[i] : 0.0f);
    }
};

// --------------------------------------------------------------------------------------------- x

/// Elements k .. k + 7 of a row of codes at p as bf16, 0 past its end. NVFP4: times their scales.
DEV_FN moei_u32x4 moei_hip_fetch_codes(const moei_hip_mfma_args *g, int32_t e, int64_t i,
                                       const uint8_t *p, int64_t k, int64_t end)
{
    moei_u32x4 v = {0, 0, 0, 0};
    const moek_ggemm_args *a = &g->a;
    if (k >= end) {
        return v;
    }
    const float scale = a->x.group == 16 ? moei_gpu_x_scale(a, e, i, k) : 1.0f; // 8 k have one
    const int n = end - k < MOEI_HIP_PIECE ? (int)(end - k) : MOEI_HIP_PIECE;
    uint64_t low = 0;
    uint64_t high = 0;
    MOEI_GPU_ROLL
    for (int j = n - 1; j >= 0; j--) {
        const uint32_t bits = moei_f32_bits(moei_gpu_load(a->x.dtype, p, k + j) * scale) >> 16;
        high = high << 16 | low >> 48;
        low = low << 16 | bits;
    }
    v[0] = (uint32_t)low;
    v[1] = (uint32_t)(low >> 32);
    v[2] = (uint32_t)high;
    v[3] = (uint32_t)(high >> 32);
    return v;
}

// ----------------------------------------------------------------------------------------- a tile

/// The scale of a row of x for 32 k from k on.
DEV_FN float moei_hip_x_scale(const moei_hip_mfma_args *g, const moei_tile *t, int64_t i, int64_t k)
{
    const int64_t row = t->i0 + i < t->i1 ? t->i0 + i : t->i1 - 1;
    return k < g->a.w.k ? moei_gpu_x_scale(&g->a, t->e, row, k) : 0.0f;
}

/// From a sum to y before its rounding, in the order of ops/ggemm.h.
template <bool PACKED>
DEV_FN float moei_hip_finish(const moei_hip_mfma_args *g, const moek_ggemm_args *rest, int32_t e,
                             int64_t i, int64_t n, float v)
{
    const moek_ggemm_args *a = &g->a;
    if (PACKED) {
        const moei_hip_packed *p = &g->packed;
        if (a->x.scales != nullptr && a->x.group == 0) {
            v = v * moei_gpu_x_scale(a, e, i, 0);
        }
        if (p->scales == MOEI_HIP_SCALES_APART && p->groups > 0 && a->w.block_k == 0) {
            v = v * ((const float *)(const void *)(a->w.values + e * a->w.value_e_stride +
                                                   p->scales_at))[n];
        }
    }
    return moei_gpu_finish(rest, e, i, n, v); // without the two
}

template <class Weights, bool PACKED, int ROWS>
DEV_FN void moei_hip_tile(const moei_hip_mfma_args *g, const moei_tile *t, moei_hip_lds<ROWS> *lds)
{
    constexpr int COLUMNS = ROWS / 16;
    const moek_ggemm_args *a = &g->a;
    const int64_t k_end = a->w.k;
    const uint32_t thread = dev_thread();
    const uint32_t lane = thread % 64;
    const int64_t n0 = (int64_t)t->m * MOEI_HIP_MFMA_OUTPUTS + thread / 64 * 16; // of the wave
    Weights weights;
    typename Weights::slice now;
    typename Weights::slice next = {};
    weights.begin(g, t->e, n0, lane);
    // What this thread fetches of x: piece `column` of rows `line`, line + 16...
    const uint32_t line = thread / 16;
    const uint32_t column = thread % 16 * MOEI_HIP_PIECE;
    const bool codes = PACKED && g->x_codes;
    const bool wide =
        ((uintptr_t)a->x.data | (uint64_t)a->x.batch_stride | (uint64_t)a->x.row_stride) % 16 == 0;
    const bool fold_x = PACKED && g->fold != 0 && a->x.scales != nullptr && a->x.group > 16;
    const bool fold_w = PACKED && g->fold != 0 && g->packed.scales == MOEI_HIP_SCALES_APART &&
                        g->packed.groups > 0 && a->w.block_k > 0;
    const uint8_t *from[COLUMNS];
    int64_t rows[COLUMNS];
    moei_u32x4 next_x[COLUMNS] = {};
    float next_scale = 0.0f;
    MOEI_GPU_UNROLL
    for (int p = 0; p < COLUMNS; p++) {
        rows[p] = t->i0 + line + 16 * p < t->i1 ? t->i0 + line + 16 * p : t->i1 - 1;
        from[p] = moei_x_at(a, t->e, rows[p]);
    }
    const float *w_scales =
        fold_w ? (const float *)(const void *)(a->w.values + t->e * a->w.value_e_stride +
                                               g->packed.scales_at)
               : nullptr;
    // The four outputs of a lane's results; past the padded ones, any.
    const int64_t n = n0 + lane / 16 * 4;
    const int64_t n_scale = n < g->packed.outputs ? n : 0;
    moei_f32x4 sum[COLUMNS] = {};
    moei_f32x4 acc[COLUMNS] = {};
    for (int64_t k0 = -MOEI_HIP_MFMA_SLICE; k0 < k_end; k0 += MOEI_HIP_MFMA_SLICE) {
        const int64_t k_next = k0 + MOEI_HIP_MFMA_SLICE;
        dev_sync(); // all have read the slice before
        MOEI_GPU_UNROLL
        for (int p = 0; p < COLUMNS; p++) {
            *(moei_u32x4 *)(void *)(lds->x + (line + 16 * p) * MOEI_HIP_MFMA_PITCH + column) =
                next_x[p];
        }
        if (fold_x && thread < MOEI_HIP_MFMA_STEPS * ROWS) {
            lds->x_scale[thread / ROWS][thread % ROWS] = next_scale;
        }
        dev_sync();
        now = next;
        if (k_next < k_end) {
            weights.read(g, k_next, &next);
            MOEI_GPU_UNROLL
            for (int p = 0; p < COLUMNS; p++) {
                next_x[p] =
                    codes ? moei_hip_fetch_codes(g, t->e, rows[p], from[p], k_next + column, k_end)
                          : moei_hip_fetch(from[p], k_next + column, k_end, wide);
            }
            if (fold_x && thread < MOEI_HIP_MFMA_STEPS * ROWS) {
                next_scale = moei_hip_x_scale(g, t, thread % ROWS,
                                              k_next + thread / ROWS * MOEI_HIP_MFMA_STEP);
            }
        }
        if (k0 < 0) { // there is no slice yet
            continue;
        }
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_HIP_MFMA_STEPS; i++) {
            const int64_t k = k0 + i * MOEI_HIP_MFMA_STEP;
            if (k >= k_end) {
                break;
            }
            const moei_u32x4 w = weights.operand(g, &now, i);
            MOEI_GPU_UNROLL
            for (int p = 0; p < COLUMNS; p++) {
                const moei_u32x4 x =
                    *(const moei_u32x4 *)(const void *)(lds->x +
                                                        (16 * p + lane % 16) * MOEI_HIP_MFMA_PITCH +
                                                        i * MOEI_HIP_MFMA_STEP + lane / 16 * 8);
                sum[p] = moei_mfma_bf16(w, x, sum[p]);
            }
            const int64_t end = k + MOEI_HIP_MFMA_STEP;
            if (PACKED && g->fold != 0 && (end >= k_end || (end & (g->fold - 1)) == 0)) {
                moei_f32x4 s_w = {1.0f, 1.0f, 1.0f, 1.0f};
                if (fold_w) {
                    s_w = *(const moei_f32x4 *)(const void *)(w_scales +
                                                              (k >> g->group_shift) *
                                                                  g->packed.outputs +
                                                              n_scale);
                }
                MOEI_GPU_UNROLL
                for (int p = 0; p < COLUMNS; p++) {
                    const float s_x = fold_x ? lds->x_scale[i][16 * p + lane % 16] : 1.0f;
                    MOEI_GPU_UNROLL
                    for (int r = 0; r < 4; r++) {
                        acc[p][r] = moei_fmaf(sum[p][r] * s_x, s_w[r], acc[p][r]);
                        sum[p][r] = 0.0f;
                    }
                }
            }
        }
    }
    moek_ggemm_args rest = *a;
    if (PACKED) { // moei_hip_finish applies them
        rest.x.scales = nullptr;
        rest.w.scales = nullptr;
    } else {
        dev_assume(a->x.scales == nullptr && a->x.scale2 == nullptr && a->w.scales == nullptr &&
                   a->w.scale2 == nullptr);
    }
    MOEI_GPU_UNROLL
    for (int p = 0; p < COLUMNS; p++) {
        const int64_t row = t->i0 + 16 * p + lane % 16;
        if (row >= t->i1 || n >= a->w.n) {
            continue;
        }
        float v[4];
        MOEI_GPU_UNROLL
        for (int r = 0; r < 4; r++) {
            const float total = PACKED && g->fold != 0 ? acc[p][r] : sum[p][r];
            v[r] =
                n + r < a->w.n ? moei_hip_finish<PACKED>(g, &rest, t->e, row, n + r, total) : 0.0f;
        }
        const int left = a->w.n - n < 4 ? (int)(a->w.n - n) : 4;
        uint8_t *y = moei_y_at(a, t->e, row) + n * moei_gpu_float_bytes(a->y_dtype);
        moei_gpu_store_piece<4>(a->y_dtype, y, left, v);
    }
}

template <class Weights, bool PACKED, int ROWS>
DEV_FN void moei_hip_mfma(const moei_hip_mfma_args *g)
{
    moei_hip_lds<ROWS> *lds = (moei_hip_lds<ROWS> *)dev_shared();
    const moek_ggemm_args *a = &g->a;
    const int32_t m_blocks =
        (int32_t)((a->w.n + MOEI_HIP_MFMA_OUTPUTS - 1) / MOEI_HIP_MFMA_OUTPUTS);
    moei_tiles_begin(a, ROWS, lds->prefix);
    const int64_t tiles = (int64_t)lds->prefix[a->w.count] * m_blocks;
    int64_t tile;
    for (int64_t i = 0; (tile = moei_hip_next_tile(tiles, i)) >= 0; i++) {
        moei_tile t;
        (void)moei_tile_at(a, lds->prefix, ROWS, ROWS, m_blocks, tile, &t);
        moei_hip_tile<Weights, PACKED, ROWS>(g, &t, lds);
    }
}

/// A pair of kernels, for few and for many rows of an expert.
#define MOEI_HIP_KERNEL(name, rows, packed, ...)                                                   \
    MOEI_HIP_GLOBAL(MOEI_HIP_MFMA_THREADS) name(const moei_hip_mfma_args g)                        \
    {                                                                                              \
        moei_hip_mfma<__VA_ARGS__, packed, rows>(&g);                                              \
    }
#define MOEI_HIP_KERNELS(name, packed, ...)                                                        \
    MOEI_HIP_KERNEL(name, MOEI_HIP_MFMA_FEW, packed, __VA_ARGS__)                                  \
    MOEI_HIP_KERNEL(name##_many, MOEI_HIP_MFMA_MANY, packed, __VA_ARGS__)

#endif
