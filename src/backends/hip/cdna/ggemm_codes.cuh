// SPDX-License-Identifier: Apache-2.0
// ggemm on the matrix units of CDNA with codes on both sides: nothing is decoded. Tiles are those
// of tile.cuh, weights are packed.
//
//   FP8  scales of tensors, channels, rows or 128 k: per 128 k one sum from +0, then
//        acc = fma(sum * s_x, s_w, acc), a scale that does not change along k counting as 1
//   MX   gfx950: e8m0 scales of 32 k of the weights, and of a multiple of 32 k of x, go into the
//        instruction: one chain over K from +0. Rows of x without such scales have those of 1
//
// In packed weights the 16-byte pieces of 16 outputs follow each other as the lanes of an
// instruction want them, so that a wave reads them in one run of memory; so do their scales in the
// CDNA4 layout. Rows of x lie in LDS as they are. Weights and x are fetched a slice ahead. Past the
// end of a row of x codes are 0, weights there are finite, and scales are 1.
//
// Bits depend on K and the row alone, as those of ggemm_mfma.cuh.
// Limit: LDS reads, ROWS / 16 of up to 32 bytes a lane for OUTPUTS / 64 times as many instructions
// of 128 k.
#ifndef MOEI_HIP_GGEMM_CODES_CUH
#define MOEI_HIP_GGEMM_CODES_CUH

#include "backends/hip/cdna/tile.cuh"

/// What a kernel multiplies, and so the formats that x may have.
typedef enum moei_hip_codes {
    MOEI_HIP_CODES_FNUZ, // gfx942: e4m3fnuz
    MOEI_HIP_CODES_FP8,  // gfx950: e4m3, e5m2
    MOEI_HIP_CODES_MX    // gfx950: these, and of 6 and 4 bits
} moei_hip_codes;

/// What a block has in LDS.
template <int OUTPUTS, int ROWS, int SLICE> struct moei_hip_codes_lds {
    union {
        alignas(16) uint8_t x[ROWS * (SLICE + MOEI_HIP_CODES_PAD)];
        moei_hip_sums<OUTPUTS, ROWS> sums;
    };
    // Of each 128 k. FP8: f32. MX: for each lane of an instruction a byte for each 16 rows
    alignas(16) uint8_t x_scale[SLICE / MOEI_HIP_CODES_STEP][4 * ROWS];
    int32_t prefix[1];
};

/// 16 bytes of a row of `count` codes, from byte `at` on; past the last code 0.
template <int BITS>
DEV_FN moei_u32x4 moei_hip_fetch_row(const uint8_t *row, int32_t at, int32_t count)
{
    const int64_t bits = (int64_t)count * BITS - 8 * (int64_t)at;
    moei_u32x4 v = moei_hip_fetch_bytes(row + at, (bits + 7) / 8);
    if (BITS % 8 != 0 && bits > 0 && bits < 128) { // the last byte may hold what is no code
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            const int here = (int)bits - 32 * i;
            v[i] &= here >= 32 ? ~0u : here <= 0 ? 0u : (1u << here) - 1u;
        }
    }
    return v;
}

/// Code of the scale of row i for 32 k from k on: where there is none, that of 1.
DEV_FN uint8_t moei_hip_x_scale_code(const moek_ggemm_args *a, int32_t e, int64_t i, int32_t k)
{
    const uint8_t *scales = (const uint8_t *)a->x.scales;
    int64_t group;
    if (scales == nullptr || a->x.group == 0 || k >= a->w.k) {
        return 127;
    }
    const int64_t at = moei_x_scale_at(a, e, i, k, &group);
    return scales[a->x.packed ? 4 * at + group % 4 : at];
}

/// The sums of a tile over K. W, X: formats of codes (moei_hip_float).
template <int W, int X, bool MX, int OUTPUTS, int ROWS, int SLICE> struct moei_hip_codes_sum {
    static constexpr int SQUARES = OUTPUTS / 64; // of a wave, side by side
    static constexpr int COLUMNS = ROWS / 16;    // one below the other
    static constexpr int STEPS = SLICE / MOEI_HIP_CODES_STEP;
    static constexpr int W_BITS = moei_hip_float_bits(W);
    static constexpr int X_BITS = moei_hip_float_bits(X);
    static constexpr int ACROSS = STEPS * X_BITS;                  // 16-byte pieces of a row of x
    static constexpr int PITCH = 16 * ACROSS + MOEI_HIP_CODES_PAD; // rows on other banks
    static constexpr int ROUNDS = // in which all pieces are fetched
        (ROWS * ACROSS + MOEI_HIP_MFMA_THREADS - 1) / MOEI_HIP_MFMA_THREADS;
    typedef moei_hip_codes_lds<OUTPUTS, ROWS, SLICE> lds;

    /// The weights of a wave's 32 or 16 outputs, as a lane reads them.
    struct weights {
        const uint8_t *codes; // of the first 16
        const uint8_t *e8m0;  // MX: of 32, a dword of 256 k
        const float *f32;     // FP8: of the lane's results; NULL: none along k
        int64_t next_square;  // bytes of codes to the next 16
        int32_t next_f32;     // FP8: elements of f32 to the next 16
        uint32_t shift;       // MX: of the first 16 outputs' byte of a scale, of 32
    };

    /// What a lane holds of 128 k.
    struct step {
        moei_u32x4 codes[SQUARES][W_BITS / 4];
        moei_f32x4 f32[SQUARES];
        uint32_t e8m0;
    };

    static MOEI_HIP_MEMBER weights begin(const moei_hip_mfma_args *g, const moei_tile *t)
    {
        const moei_hip_packed *packed = &g->packed;
        const uint32_t lane = dev_thread() % 64;
        const int64_t n0 = moei_hip_first_output<OUTPUTS>(t);
        // What lies past the last output reads it: its results are dropped.
        const int64_t last = packed->outputs / 16 - 1;
        const int64_t square = n0 / 16 < last ? n0 / 16 : last;
        const uint8_t *expert = g->a.w.values + t->e * g->a.w.value_e_stride;
        weights w;
        w.codes = expert + square * 16 * packed->row_bytes + lane * 16;
        w.next_square = square < last ? 16 * (int64_t)packed->row_bytes : 0;
        w.e8m0 = expert + packed->scales_at + square / 2 * 32 * packed->groups + lane * 4;
        w.shift = SQUARES == 1 ? (uint32_t)(square % 2) * 8 : 0;
        w.f32 = MX ? nullptr : moei_hip_w_scales(g, t->e);
        w.next_f32 = square < last ? 16 : 0;
        if (w.f32 != nullptr) {
            w.f32 += square * 16 + lane / 16 * 4;
        }
        return w;
    }

    /// at: number of the 128 k.
    static MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, const weights *w, int32_t at,
                                     step *s)
    {
        MOEI_GPU_UNROLL
        for (int q = 0; q < SQUARES; q++) {
            const uint8_t *from = w->codes + q * w->next_square + (int64_t)at * (256 * W_BITS);
            MOEI_GPU_UNROLL
            for (int i = 0; i < W_BITS / 4; i++) {
                s->codes[q][i] = *(const moei_u32x4 *)(const void *)(from + 1024 * i);
            }
            if (!MX && w->f32 != nullptr) {
                const int64_t group = at * MOEI_HIP_CODES_STEP >> g->group_shift;
                s->f32[q] = *(const moei_f32x4 *)(const void *)(w->f32 + q * w->next_f32 +
                                                                group * g->packed.outputs);
            }
        }
        if (MX) {
            s->e8m0 = *(const uint32_t *)(const void *)(w->e8m0 + (int64_t)(at / 2) * 256);
        }
    }

    static MOEI_HIP_MEMBER moei_u32x8 operand_w(const step *s, int q)
    {
        const moei_u32x4 low = s->codes[q][0];
        const moei_u32x4 high = s->codes[q][W_BITS / 4 - 1]; // of four bits: not looked at
        const moei_u32x8 v = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
        return v;
    }

    /// Of a lane, whose row begins at `from`.
    static MOEI_HIP_MEMBER moei_u32x8 operand_x(const uint8_t *from)
    {
        const uint32_t part = dev_thread() % 64 / 16;
        moei_u32x8 v = {0, 0, 0, 0, 0, 0, 0, 0};
        MOEI_GPU_UNROLL
        for (int i = 0; i < X_BITS / 2; i++) { // of 8 bytes
            const uint32_t at =
                X_BITS == 8 ? i / 2 * 64 + part * 16 + i % 2 * 8 : part * (4 * X_BITS) + i * 8;
            const moei_u32x2 two = *(const moei_u32x2 *)(const void *)(from + at);
            v[2 * i] = two[0];
            v[2 * i + 1] = two[1];
        }
        return v;
    }

    /// Of the slice from k on, this thread's part of the scales of x. FP8: the bits of a float.
    static MOEI_HIP_MEMBER uint32_t fetch_scale(const moek_ggemm_args *a, const moei_tile *t,
                                                int32_t k)
    {
        const int64_t row = moei_hip_row(t, dev_thread() % ROWS);
        const int32_t at =
            k + (int32_t)(dev_thread() / ROWS) * (MX ? MOEI_HIP_MFMA_STEP : MOEI_HIP_CODES_STEP);
        if constexpr (MX) {
            return moei_hip_x_scale_code(a, t->e, row, at);
        } else {
            const int32_t last = (int32_t)a->w.k - 1;
            return moei_f32_bits(moei_hip_x_scale(a, t->e, row, at < last ? at : last));
        }
    }

    static MOEI_HIP_MEMBER void put_scale(lds *l, uint32_t v)
    {
        const uint32_t thread = dev_thread();
        uint8_t *scales = l->x_scale[0];
        if constexpr (MX) {
            scales[(thread / ROWS * 16 + thread % 16) * COLUMNS + thread % ROWS / 16] = (uint8_t)v;
        } else {
            ((uint32_t *)(void *)scales)[thread] = v;
        }
    }

    static MOEI_HIP_MEMBER void run(const moei_hip_mfma_args *g, const moei_tile *t, lds *l,
                                    moei_f32x4 (&sum)[SQUARES][COLUMNS])
    {
        const moek_ggemm_args *a = &g->a;
        const int32_t k_end = (int32_t)a->w.k;
        const int32_t last = (k_end - 1) / MOEI_HIP_CODES_STEP;
        const uint32_t thread = dev_thread();
        const uint32_t lane = thread % 64;
        const bool fold_x = !MX && a->x.scales != nullptr && a->x.group != 0;
        const bool scales = MX ? thread < 4 * ROWS * STEPS : fold_x && thread < ROWS * STEPS;
        const uint8_t *from[ROUNDS];
        MOEI_GPU_UNROLL
        for (int i = 0; i < ROUNDS; i++) {
            from[i] =
                moei_x_at(a, t->e, moei_hip_row(t, (thread + MOEI_HIP_MFMA_THREADS * i) / ACROSS));
        }
        const weights w = begin(g, t);
        step next[STEPS]; // of the slice that comes
        MOEI_GPU_UNROLL
        for (int i = 0; i < STEPS; i++) {
            MOEI_GPU_UNROLL
            for (int q = 0; q < SQUARES; q++) {
                next[i].f32[q] = moei_f32x4{1.0f, 1.0f, 1.0f, 1.0f};
            }
            read(g, &w, i < last ? i : last, &next[i]);
        }
        moei_u32x4 next_x[ROUNDS] = {};
        uint32_t next_scale = 0;
        for (int32_t k0 = -SLICE; k0 < k_end; k0 += SLICE) {
            dev_sync(); // all have read the slice before
            MOEI_GPU_UNROLL
            for (int i = 0; i < ROUNDS; i++) {
                const uint32_t piece = thread + MOEI_HIP_MFMA_THREADS * i;
                if (piece < ROWS * ACROSS) {
                    *(moei_u32x4 *)(void *)(l->x + piece / ACROSS * PITCH + piece % ACROSS * 16) =
                        next_x[i];
                }
            }
            if (scales) {
                put_scale(l, next_scale);
            }
            dev_sync();
            const int32_t k = k0 + SLICE;
            if (k < k_end) {
                MOEI_GPU_UNROLL
                for (int i = 0; i < ROUNDS; i++) {
                    const uint32_t piece = thread + MOEI_HIP_MFMA_THREADS * i;
                    if (piece < ROWS * ACROSS) {
                        next_x[i] = moei_hip_fetch_row<X_BITS>(
                            from[i], k / 8 * X_BITS + (int32_t)(piece % ACROSS) * 16, k_end);
                    }
                }
                if (scales) {
                    next_scale = fetch_scale(a, t, k);
                }
            }
            if (k0 < 0) { // there is no slice yet
                continue;
            }
            MOEI_GPU_UNROLL
            for (int i = 0; i < STEPS; i++) {
                const int32_t at = k0 / MOEI_HIP_CODES_STEP + i;
                if (at > last) {
                    break;
                }
                const step now = next[i];
                read(g, &w, at + STEPS < last ? at + STEPS : last, &next[i]);
                multiply(l, &now, i, w.shift + (STEPS == 1 ? (uint32_t)(at % 2) * 16 : 0), fold_x,
                         lane, sum);
            }
        }
    }

    /// Adds the products of the 128 k number i of a slice.
    static MOEI_HIP_MEMBER void multiply(const lds *l, const step *now, int i, uint32_t shift,
                                         bool fold_x, uint32_t lane,
                                         moei_f32x4 (&sum)[SQUARES][COLUMNS])
    {
        const uint8_t *scales = l->x_scale[i];
        uint32_t s_x = 0;
        if (MX) {
            const uint8_t *at = scales + lane * COLUMNS;
            s_x = COLUMNS == 4 ? *(const uint32_t *)(const void *)at : *at;
        }
        moei_u32x8 w[SQUARES];
        MOEI_GPU_UNROLL
        for (int q = 0; q < SQUARES; q++) {
            w[q] = operand_w(now, q);
        }
        MOEI_GPU_UNROLL
        for (int p = 0; p < COLUMNS; p++) {
            const uint32_t row = 16 * p + lane % 16;
            const moei_u32x8 x = operand_x(l->x + row * PITCH + i * (16 * X_BITS));
            const float scale = fold_x ? ((const float *)(const void *)scales)[row] : 1.0f;
            MOEI_GPU_UNROLL
            for (int q = 0; q < SQUARES; q++) {
                if constexpr (MX) {
                    // A byte by the half of 256 k, then by the half of 32 outputs.
                    const uint32_t byte = shift + 8 * ((STEPS == 2 ? 2 * i : 0) + q);
                    sum[q][p] = moei_mfma_mx<W, X>(w[q], x, sum[q][p], now->e8m0 >> byte, s_x, p);
                } else {
                    const moei_f32x4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
                    const moei_f32x4 v = moei_mfma_codes<W, X>(w[q], x, zero);
                    MOEI_GPU_UNROLL
                    for (int r = 0; r < 4; r++) {
                        sum[q][p][r] = moei_fmaf(v[r] * scale, now->f32[q][r], sum[q][p][r]);
                    }
                }
            }
        }
    }
};

/// A tile, of whichever format x has.
template <int W, moei_hip_codes CODES, int WIDTH, int HEIGHT, int SLICE>
struct moei_hip_codes_tile {
    static constexpr int OUTPUTS = WIDTH;
    static constexpr int ROWS = HEIGHT;
    static constexpr bool MX = CODES == MOEI_HIP_CODES_MX;
    typedef moei_hip_codes_lds<OUTPUTS, ROWS, SLICE> lds;

    static MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, lds *l)
    {
        (void)g;
        (void)l;
    }

    template <int X>
    static MOEI_HIP_MEMBER void add(const moei_hip_mfma_args *g, const moei_tile *t, lds *l,
                                    moei_f32x4 (&sum)[OUTPUTS / 64][ROWS / 16])
    {
        moei_hip_codes_sum<W, X, MX, OUTPUTS, ROWS, SLICE>::run(g, t, l, sum);
    }

    static MOEI_HIP_MEMBER void run(const moei_hip_mfma_args *g, const moei_tile *t, lds *l)
    {
        moei_f32x4 sum[OUTPUTS / 64][ROWS / 16] = {};
        const moe_dtype x = g->a.x.dtype;
        if (CODES != MOEI_HIP_CODES_FNUZ && x == MOE_E5M2) {
            if constexpr (CODES != MOEI_HIP_CODES_FNUZ) {
                add<MOEI_HIP_E5M2>(g, t, l, sum);
            }
        } else if (MX && x == MOE_E2M3) {
            if constexpr (MX) {
                add<MOEI_HIP_E2M3>(g, t, l, sum);
            }
        } else if (MX && x == MOE_E3M2) {
            if constexpr (MX) {
                add<MOEI_HIP_E3M2>(g, t, l, sum);
            }
        } else if (MX && x == MOE_E2M1) {
            if constexpr (MX) {
                add<MOEI_HIP_E2M1>(g, t, l, sum);
            }
        } else {
            add<MOEI_HIP_E4M3>(g, t, l, sum);
        }
        moei_hip_store<true, OUTPUTS, ROWS>(g, t, &l->sums, sum);
    }
};

/// A pair of kernels, for few and for many rows of an expert.
#define MOEI_HIP_CODES(name, w, codes)                                                             \
    MOEI_HIP_KERNEL(name, moei_hip_tiles<moei_hip_codes_tile<w, codes, 64, 16, 256>>(g))           \
    MOEI_HIP_KERNEL(name##_many, moei_hip_tiles<moei_hip_codes_tile<w, codes, 128, 64, 128>>(g))

#endif
