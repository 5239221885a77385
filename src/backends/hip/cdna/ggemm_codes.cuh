// SPDX-License-Identifier: Apache-2.0
// ggemm on the matrix units of CDNA with codes on both sides: nothing is decoded. Tiles are those
// of tile.cuh, weights are packed.
//
//   FP8  scales of tensors, channels, rows or 128 k: per 128 k one sum from +0, then
//        acc = fma(sum * s_x, s_w, acc), a scale that does not change along k counting as 1
//   MX   gfx950: e8m0 scales of 32 k of the weights, and of any multiple of them of x, go into the
//        instruction: one chain over K from +0. Rows of x without such a scale have 1
//
// In packed weights the 16-byte pieces of 16 outputs follow each other as the lanes of an
// instruction read them: a piece of all outputs is one read of 1024 bytes, and so is it of codes of
// four bits. Rows of x lie in LDS as they are. Both are fetched a slice of 128 k ahead. Past the
// end of a row of x codes are 0, weights there are finite, and scales are 1.
//
// Bits depend on K and the row alone, as those of ggemm_mfma.cuh.
// Limit: LDS reads, 32 bytes a lane (of 8 bits) for an instruction of 128 k.
#ifndef MOEI_HIP_GGEMM_CODES_CUH
#define MOEI_HIP_GGEMM_CODES_CUH

#include "backends/hip/cdna/tile.cuh"

/// 16 bytes of a row of codes at p from byte `at` on, what is past the last of `count` codes 0.
template <int BITS>
DEV_FN moei_u32x4 moei_hip_fetch_row(const uint8_t *p, int64_t at, int64_t count)
{
    moei_u32x4 v = moei_hip_fetch_bytes(p + at, (count * BITS + 7) / 8 - at);
    const int64_t bits = count * BITS - 8 * at;
    if (BITS % 8 != 0 && bits > 0 && bits < 128) { // the last byte may hold others, which count not
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            const int here = (int)bits - 32 * i;
            v[i] &= here >= 32 ? ~0u : here <= 0 ? 0u : (1u << here) - 1u;
        }
    }
    return v;
}

/// Code of the scale of row `i` of a tile for 32 k from k on: where there is none, that of 1.
DEV_FN uint8_t moei_hip_x_scale_code(const moei_hip_mfma_args *g, const moei_tile *t, int64_t i,
                                     int64_t k)
{
    const moek_ggemm_args *a = &g->a;
    const uint8_t *scales = (const uint8_t *)a->x.scales;
    int64_t group;
    if (scales == nullptr || a->x.group == 0 || k >= a->w.k) {
        return 127;
    }
    const int64_t at = moei_x_scale_at(a, t->e, moei_hip_row(t, i), k, &group);
    return scales[a->x.packed ? 4 * at + group % 4 : at];
}

/// What a block has in LDS.
template <int OUTPUTS, int ROWS> struct moei_hip_codes_lds {
    union {
        alignas(16) uint8_t x[ROWS * MOEI_HIP_CODES_PITCH];
        moei_hip_sums<OUTPUTS, ROWS> sums;
    };
    // FP8: f32, of the slice. MX: for each lane of an instruction a byte for each result
    alignas(16) uint8_t x_scale[4 * ROWS];
    int32_t prefix[1];
};

/// The sums of a tile over K. W, X: formats of codes (moei_hip_float).
template <int W, int X, bool MX, int OUTPUTS, int ROWS> struct moei_hip_codes_sum {
    static constexpr int SQUARES = OUTPUTS / 64; // of a wave, side by side
    static constexpr int COLUMNS = ROWS / 16;    // one below the other
    static constexpr int W_BITS = moei_hip_float_bits(W);
    static constexpr int X_BITS = moei_hip_float_bits(X);
    static constexpr int PITCH = 16 * X_BITS + 16; // bytes: rows on other banks
    static constexpr int PIECES = ROWS * X_BITS;   // of 16 bytes, of a slice of x
    static constexpr int ROUNDS =
        (PIECES + MOEI_HIP_MFMA_THREADS - 1) / MOEI_HIP_MFMA_THREADS; // in which they are fetched
    typedef moei_hip_codes_lds<OUTPUTS, ROWS> lds;

    /// What a wave has of the weights of 16 outputs for 128 k.
    struct slice {
        moei_u32x4 codes[W_BITS / 4];
        uint32_t scale; // MX: in the lowest byte
        moei_f32x4 s_w; // of the four outputs of a lane's results, where they change along k
    };

    static MOEI_HIP_MEMBER moei_u32x8 operand_w(const slice *s)
    {
        const moei_u32x4 low = s->codes[0];
        const moei_u32x4 high = s->codes[W_BITS / 4 - 1]; // of four bits: not looked at
        const moei_u32x8 v = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
        return v;
    }

    static MOEI_HIP_MEMBER moei_u32x8 operand_x(const lds *l, uint32_t row, uint32_t part)
    {
        const uint8_t *from = l->x + row * PITCH;
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

    /// The weights of 16 outputs.
    struct source {
        const uint8_t *codes, *e8m0;
        const float *w_scales; // NULL: they do not change along k
        uint32_t shift;        // of its byte of a scale

        MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, int32_t e, int64_t n0)
        {
            const moei_hip_packed *packed = &g->packed;
            const uint32_t lane = dev_thread() % 64;
            // Waves past the last output read it: theirs are dropped.
            const int64_t tile = (n0 < packed->outputs ? n0 : packed->outputs - 16) / 16;
            const uint8_t *expert = g->a.w.values + e * g->a.w.value_e_stride;
            codes = expert + tile * 16 * packed->row_bytes + lane * 16;
            e8m0 = expert + packed->scales_at + tile / 2 * 32 * packed->groups + lane * 4;
            shift = (uint32_t)(tile % 2) * 8;
            w_scales = MX ? nullptr : moei_hip_w_scales(g, e);
            if (w_scales != nullptr) { // past the padded outputs, any
                const int64_t n = n0 + lane / 16 * 4;
                w_scales += n < packed->outputs ? n : 0;
            }
        }

        MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, int32_t k, slice *s) const
        {
            MOEI_GPU_UNROLL
            for (int i = 0; i < W_BITS / 4; i++) {
                s->codes[i] = *(
                    const moei_u32x4 *)(const void *)(codes + (int64_t)k * (2 * W_BITS) + i * 1024);
            }
            if (MX) { // a byte for each half of 256 k and each 16 of 32 outputs
                const int32_t number = k / MOEI_HIP_CODES_SLICE;
                s->scale = *(const uint32_t *)(const void *)(e8m0 + number / 2 * 256) >>
                           (number % 2 * 16 + shift);
            } else if (w_scales != nullptr) {
                s->s_w =
                    *(const moei_f32x4 *)(const void *)(w_scales + (int64_t)(k >> g->group_shift) *
                                                                       g->packed.outputs);
            }
        }
    };

    static MOEI_HIP_MEMBER void run(const moei_hip_mfma_args *g, const moei_tile *t, lds *l,
                                    moei_f32x4 (&sum)[SQUARES][COLUMNS])
    {
        const moek_ggemm_args *a = &g->a;
        const int32_t k_end = (int32_t)a->w.k; // scalar comparisons have 32 bits
        const uint32_t thread = dev_thread();
        const uint32_t lane = thread % 64;
        const bool fold_x = !MX && a->x.scales != nullptr && a->x.group != 0;
        const bool scales = MX ? thread < 4 * ROWS : fold_x && thread < ROWS; // this thread's part
        const int64_t n0 = moei_hip_first_output<OUTPUTS>(t);
        const uint8_t *from[ROUNDS];
        MOEI_GPU_UNROLL
        for (int i = 0; i < ROUNDS; i++) {
            from[i] =
                moei_x_at(a, t->e, moei_hip_row(t, (thread + MOEI_HIP_MFMA_THREADS * i) / X_BITS));
        }
        source weights[SQUARES];
        slice next[SQUARES] = {};
        MOEI_GPU_UNROLL
        for (int q = 0; q < SQUARES; q++) {
            weights[q].begin(g, t->e, n0 + 16 * q);
            next[q].s_w = moei_f32x4{1.0f, 1.0f, 1.0f, 1.0f};
        }
        moei_u32x4 next_x[ROUNDS] = {};
        float next_scale = 1.0f;
        uint8_t next_code = 0;
        for (int32_t k0 = -MOEI_HIP_CODES_SLICE; k0 < k_end; k0 += MOEI_HIP_CODES_SLICE) {
            const int32_t k = k0 + MOEI_HIP_CODES_SLICE; // of the next slice
            dev_sync();                                  // all have read the slice before
            MOEI_GPU_UNROLL
            for (int i = 0; i < ROUNDS; i++) {
                const uint32_t piece = thread + MOEI_HIP_MFMA_THREADS * i;
                if (piece < PIECES) {
                    *(moei_u32x4 *)(void *)(l->x + piece / X_BITS * PITCH + piece % X_BITS * 16) =
                        next_x[i];
                }
            }
            if (scales && MX) {
                l->x_scale[(thread / ROWS * 16 + thread % 16) * COLUMNS + thread % ROWS / 16] =
                    next_code;
            } else if (scales) {
                ((float *)(void *)l->x_scale)[thread] = next_scale;
            }
            dev_sync();
            slice now[SQUARES];
            MOEI_GPU_UNROLL
            for (int q = 0; q < SQUARES; q++) {
                now[q] = next[q];
            }
            if (k < k_end) {
                MOEI_GPU_UNROLL
                for (int q = 0; q < SQUARES; q++) {
                    weights[q].read(g, k, &next[q]);
                }
                MOEI_GPU_UNROLL
                for (int i = 0; i < ROUNDS; i++) {
                    const uint32_t piece = thread + MOEI_HIP_MFMA_THREADS * i;
                    if (piece < PIECES) {
                        next_x[i] = moei_hip_fetch_row<X_BITS>(
                            from[i], k / 8 * X_BITS + (int32_t)(piece % X_BITS) * 16, k_end);
                    }
                }
                if (scales && MX) {
                    next_code = moei_hip_x_scale_code(g, t, thread % ROWS,
                                                      k + (int32_t)(thread / ROWS) * 32);
                } else if (scales) {
                    next_scale = moei_hip_x_scale(a, t->e, moei_hip_row(t, thread), k);
                }
            }
            if (k0 < 0) { // there is no slice yet
                continue;
            }
            uint32_t s_x = 0;
            if (MX) {
                const uint8_t *at = l->x_scale + lane * COLUMNS;
                s_x = COLUMNS == 4 ? *(const uint32_t *)(const void *)at : *at;
            }
            MOEI_GPU_UNROLL
            for (int p = 0; p < COLUMNS; p++) {
                const uint32_t row = 16 * p + lane % 16;
                const moei_u32x8 x = operand_x(l, row, lane / 16);
                const float scale = fold_x ? ((const float *)(const void *)l->x_scale)[row] : 1.0f;
                MOEI_GPU_UNROLL
                for (int q = 0; q < SQUARES; q++) {
                    const moei_u32x8 w = operand_w(&now[q]);
                    if constexpr (MX) {
                        sum[q][p] = moei_mfma_mx<W, X>(w, x, sum[q][p], now[q].scale, s_x, p);
                    } else {
                        const moei_f32x4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
                        const moei_f32x4 v = moei_mfma_codes<W, X>(w, x, zero);
                        MOEI_GPU_UNROLL
                        for (int r = 0; r < 4; r++) {
                            sum[q][p][r] = moei_fmaf(v[r] * scale, now[q].s_w[r], sum[q][p][r]);
                        }
                    }
                }
            }
        }
    }
};

/// A tile, of whichever format x has.
template <int W, bool MX, int WIDTH, int HEIGHT> struct moei_hip_codes_tile {
    static constexpr int OUTPUTS = WIDTH;
    static constexpr int ROWS = HEIGHT;
    typedef moei_hip_codes_lds<OUTPUTS, ROWS> lds;

    static MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, lds *l)
    {
        (void)g;
        (void)l;
    }

    static MOEI_HIP_MEMBER void run(const moei_hip_mfma_args *g, const moei_tile *t, lds *l)
    {
        moei_f32x4 sum[OUTPUTS / 64][ROWS / 16] = {};
        switch (g->a.x.dtype) {
#if !defined(__gfx942__)
        case MOE_E5M2:
            moei_hip_codes_sum<W, MOEI_HIP_E5M2, MX, OUTPUTS, ROWS>::run(g, t, l, sum);
            break;
        case MOE_E2M3:
            if constexpr (MX) {
                moei_hip_codes_sum<W, MOEI_HIP_E2M3, MX, OUTPUTS, ROWS>::run(g, t, l, sum);
            }
            break;
        case MOE_E3M2:
            if constexpr (MX) {
                moei_hip_codes_sum<W, MOEI_HIP_E3M2, MX, OUTPUTS, ROWS>::run(g, t, l, sum);
            }
            break;
        case MOE_E2M1:
            if constexpr (MX) {
                moei_hip_codes_sum<W, MOEI_HIP_E2M1, MX, OUTPUTS, ROWS>::run(g, t, l, sum);
            }
            break;
#endif
        default:
            moei_hip_codes_sum<W, MOEI_HIP_E4M3, MX, OUTPUTS, ROWS>::run(g, t, l, sum);
            break;
        }
        moei_hip_store<true, OUTPUTS, ROWS>(g, t, &l->sums, sum);
    }
};

/// A pair of kernels, for few and for many rows of an expert.
#define MOEI_HIP_CODES(name, w, mx)                                                                \
    MOEI_HIP_KERNEL(name, moei_hip_tiles<moei_hip_codes_tile<w, mx, 64, 16>>(g))                   \
    MOEI_HIP_KERNEL(name##_many, moei_hip_tiles<moei_hip_codes_tile<w, mx, 128, 64>>(g))

#endif
