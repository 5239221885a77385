// SPDX-License-Identifier: Apache-2.0
// ggemm on the matrix units of CDNA: weights that bf16 holds exactly x rows that it holds exactly,
// any sizes and strides.
//
// Tiles are those of tile.cuh. Weights go from memory to the registers of the one wave that
// multiplies them, a slice of 128 k ahead, and are decoded there (decode.cuh); rows of x lie in
// LDS, 272 bytes a slice, and are fetched a slice ahead, too; codes become bf16 on their way there,
// by a table. What lies past the end of a row of x is 0, and weights there are finite; for what
// lies past the last row or output, another is read, and its results are dropped.
//
// Each result is one chain of matrix instructions over K in ascending order from +0; where scales
// change every `fold` k, one chain for those k, and acc = fma(sum * s_x, s_w, acc) at its end.
// So bits depend on K and the row alone: not on the tile, nor on the rows beside it.
//
// Limit: LDS reads, ROWS / 16 of 16 bytes a lane for OUTPUTS / 64 times as many matrix
// instructions; of few rows, the instructions that decode (docs/hip-cost.md).
#ifndef MOEI_HIP_GGEMM_MFMA_CUH
#define MOEI_HIP_GGEMM_MFMA_CUH

#include "backends/hip/cdna/decode.cuh"
#include "backends/hip/cdna/tile.cuh"

#define MOEI_HIP_PIECE 8 // elements of x that a thread fetches

/// What a block has in LDS.
template <int OUTPUTS, int ROWS> struct moei_hip_lds {
    union {
        alignas(16) uint16_t x[ROWS * MOEI_HIP_MFMA_PITCH]; // a slice of x
        moei_hip_sums<OUTPUTS, ROWS> sums;
    };
    float x_scale[MOEI_HIP_MFMA_STEPS][ROWS]; // of the slice's steps
    uint16_t decoded[MOEI_HIP_MFMA_CODES];    // bf16 of each code of x
    int32_t prefix[1];                        // of tiles; as many as there are experts and one
};

// --------------------------------------------------------------------------------------- weights

/// The weights of the 16 outputs of a wave, as a lane reads them: canonical bf16.
struct moei_hip_row_weights {
    const uint8_t *row;
    int64_t bytes; // of the row from there on

    struct slice {
        moei_u32x4 v[MOEI_HIP_MFMA_STEPS];
    };

    MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, int32_t e, int64_t n0, uint32_t lane)
    {
        const moei_matrices *w = &g->a.w;
        const int64_t n = n0 + lane % 16 < w->n ? n0 + lane % 16 : w->n - 1;
        row = w->values + e * w->value_e_stride + n * w->value_n_stride + lane / 16 * 16;
        bytes = 2 * w->k - lane / 16 * 16;
    }

    MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, int64_t k0, slice *s) const
    {
        (void)g;
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_HIP_MFMA_STEPS; i++) {
            const int64_t at = 2 * (k0 + i * MOEI_HIP_MFMA_STEP);
            s->v[i] = moei_hip_fetch_bytes(row + at, bytes - at);
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

// --------------------------------------------------------------------------------------- codes of
// x

/// The value of a code of 4, 6 or 8 bits.
DEV_FN float moei_hip_value_of(moe_dtype dtype, uint8_t code)
{
#define VALUE_16(convert) 0.0f // no codes of this kernel's
#define VALUE_8(convert)  convert(code)
#define VALUE_6(convert)  convert((uint8_t)(code & 63))
#define VALUE_4(convert)  convert((uint8_t)(code & 15))
    switch (dtype) {
    case MOE_I8:
        return VALUE_8((float)(int8_t));
    case MOE_U8:
        return VALUE_8((float));
#define MOE_ELEMENT(dtype, name, bits, convert)                                                    \
    case dtype:                                                                                    \
        return VALUE_##bits(convert);
#include "numerics/elements.inc"
#undef MOE_ELEMENT
    default:
        return 0.0f;
    }
#undef VALUE_16
#undef VALUE_8
#undef VALUE_6
#undef VALUE_4
}

/// Fills the table; every thread of the block calls it.
DEV_FN void moei_hip_decode_codes(moe_dtype dtype, uint16_t *decoded)
{
    static_assert(MOEI_HIP_MFMA_CODES == MOEI_HIP_MFMA_THREADS, "a thread has a code");
    const uint32_t code = dev_thread();
    decoded[code] = (uint16_t)(moei_f32_bits(moei_hip_value_of(dtype, (uint8_t)code)) >> 16);
}

/// Codes k .. k + 7 of the row of x at p as they lie, zeros past its end; in the last word the
/// scale that NVFP4's codes have.
DEV_FN moei_u32x4 moei_hip_fetch_codes(const moei_hip_mfma_args *g, int32_t e, int64_t i,
                                       const uint8_t *p, int64_t k)
{
    const int64_t bits = g->x_bits * (g->a.w.k - k); // that are left of the row
    const int64_t most = g->x_bits * MOEI_HIP_PIECE;
    const int64_t some = bits < most ? bits : most;
    moei_u32x4 v = {0, 0, 0, 0};
    if (some > 0) {
        v = moei_hip_fetch_bytes(p + k * g->x_bits / 8, (some + 7) / 8);
        if (some % 8 != 0) { // of the last byte, others have the rest
            const uint64_t mask = ((uint64_t)1 << some) - 1;
            v[0] &= (uint32_t)mask;
            v[1] &= (uint32_t)(mask >> 32);
        }
        if (g->a.x.group == 16) {
            v[3] = moei_f32_bits(moei_hip_x_scale(&g->a, e, i, k));
        }
    }
    return v;
}

/// What moei_hip_fetch_codes fetched as bf16.
DEV_FN moei_u32x4 moei_hip_decode_x(const moei_hip_mfma_args *g, const uint16_t *decoded,
                                    moei_u32x4 v)
{
    const uint64_t codes = v[0] | (uint64_t)v[1] << 32;
    const uint32_t mask = (1u << g->x_bits) - 1u;
    moei_u32x4 pairs;
    MOEI_GPU_UNROLL
    for (int j = 0; j < 4; j++) {
        const uint32_t low = decoded[(uint32_t)(codes >> (2 * j * g->x_bits)) & mask];
        const uint32_t high = decoded[(uint32_t)(codes >> ((2 * j + 1) * g->x_bits)) & mask];
        pairs[j] = low | high << 16;
        if (g->a.x.group == 16) {
            const float scale = moei_f32_from_bits(v[3]);
            pairs[j] = moei_hip_pair(moei_f32_from_bits(low << 16) * scale,
                                     moei_f32_from_bits(high << 16) * scale);
        }
    }
    return pairs;
}

// ----------------------------------------------------------------------------------------- a tile

template <class Weights, bool PACKED, int WIDTH, int HEIGHT> struct moei_hip_mfma_tile {
    static constexpr int OUTPUTS = WIDTH;
    static constexpr int ROWS = HEIGHT;
    static constexpr int SQUARES = OUTPUTS / 64; // of a wave, side by side
    static constexpr int COLUMNS = ROWS / 16;    // one below the other
    typedef moei_hip_lds<OUTPUTS, ROWS> lds;

    static MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, lds *l)
    {
        if (PACKED && g->x_bits != 16) {
            moei_hip_decode_codes(g->a.x.dtype, l->decoded);
        }
    }

    static MOEI_HIP_MEMBER void run(const moei_hip_mfma_args *g, const moei_tile *t, lds *l)
    {
        const moek_ggemm_args *a = &g->a;
        const int64_t k_end = a->w.k;
        const uint32_t thread = dev_thread();
        const uint32_t lane = thread % 64;
        const int64_t n0 = moei_hip_first_output<OUTPUTS>(t);
        // What this thread fetches of x: piece `column` of rows `line`, line + 16...
        const uint32_t line = thread / 16;
        const uint32_t column = thread % 16 * MOEI_HIP_PIECE;
        const bool codes = PACKED && g->x_bits != 16;
        const bool fold = PACKED && g->fold != 0;
        const bool fold_x = fold && a->x.scales != nullptr && a->x.group > 16;
        const float *w_scales = fold ? moei_hip_w_scales(g, t->e) : nullptr;
        const uint8_t *from[COLUMNS];
        moei_u32x4 next_x[COLUMNS] = {};
        float next_scale = 0.0f;
        MOEI_GPU_UNROLL
        for (int p = 0; p < COLUMNS; p++) {
            from[p] = moei_x_at(a, t->e, moei_hip_row(t, line + 16 * p));
        }
        Weights weights[SQUARES];
        typename Weights::slice now[SQUARES];
        typename Weights::slice next[SQUARES] = {};
        MOEI_GPU_UNROLL
        for (int q = 0; q < SQUARES; q++) {
            weights[q].begin(g, t->e, n0 + 16 * q, lane);
        }
        moei_f32x4 sum[SQUARES][COLUMNS] = {};
        moei_f32x4 acc[SQUARES][COLUMNS] = {};
        for (int64_t k0 = -MOEI_HIP_MFMA_SLICE; k0 < k_end; k0 += MOEI_HIP_MFMA_SLICE) {
            const int64_t k_next = k0 + MOEI_HIP_MFMA_SLICE;
            dev_sync(); // all have read the slice before
            MOEI_GPU_UNROLL
            for (int p = 0; p < COLUMNS; p++) {
                *(moei_u32x4 *)(void *)(l->x + (line + 16 * p) * MOEI_HIP_MFMA_PITCH + column) =
                    codes ? moei_hip_decode_x(g, l->decoded, next_x[p]) : next_x[p];
            }
            if (fold_x && thread < MOEI_HIP_MFMA_STEPS * ROWS) {
                l->x_scale[thread / ROWS][thread % ROWS] = next_scale;
            }
            dev_sync();
            MOEI_GPU_UNROLL
            for (int q = 0; q < SQUARES; q++) {
                now[q] = next[q];
            }
            if (k_next < k_end) {
                MOEI_GPU_UNROLL
                for (int q = 0; q < SQUARES; q++) {
                    weights[q].read(g, k_next, &next[q]);
                }
                const int64_t k = k_next + column;
                MOEI_GPU_UNROLL
                for (int p = 0; p < COLUMNS; p++) {
                    next_x[p] = codes ? moei_hip_fetch_codes(
                                            g, t->e, moei_hip_row(t, line + 16 * p), from[p], k)
                                      : moei_hip_fetch_bytes(from[p] + 2 * k, 2 * (k_end - k));
                }
                if (fold_x && thread < MOEI_HIP_MFMA_STEPS * ROWS) {
                    const int64_t at = k_next + thread / ROWS * MOEI_HIP_MFMA_STEP;
                    next_scale = moei_hip_x_scale(a, t->e, moei_hip_row(t, thread % ROWS),
                                                  at < k_end ? at : k_end - 1);
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
                moei_u32x4 w[SQUARES];
                MOEI_GPU_UNROLL
                for (int q = 0; q < SQUARES; q++) {
                    w[q] = weights[q].operand(g, &now[q], i);
                }
                MOEI_GPU_UNROLL
                for (int p = 0; p < COLUMNS; p++) {
                    const moei_u32x4 x =
                        *(const moei_u32x4 *)(const void *)(l->x +
                                                            (16 * p + lane % 16) *
                                                                MOEI_HIP_MFMA_PITCH +
                                                            i * MOEI_HIP_MFMA_STEP + lane / 16 * 8);
                    MOEI_GPU_UNROLL
                    for (int q = 0; q < SQUARES; q++) {
                        sum[q][p] = moei_mfma_bf16(w[q], x, sum[q][p]);
                    }
                }
                const int64_t end = k + MOEI_HIP_MFMA_STEP;
                if (fold && (end >= k_end || (end & (g->fold - 1)) == 0)) {
                    fold_sums(g, w_scales, k, n0 + lane / 16 * 4, fold_x ? l->x_scale[i] : nullptr,
                              sum, acc);
                }
            }
        }
        moei_hip_store<PACKED, OUTPUTS, ROWS>(g, t, &l->sums, fold ? acc : sum);
    }

    /// acc = fma(sum * s_x, s_w, acc), and sums of 0. n: the first of a lane's four outputs.
    static MOEI_HIP_MEMBER void fold_sums(const moei_hip_mfma_args *g, const float *w_scales,
                                          int64_t k, int64_t n, const float *x_scale,
                                          moei_f32x4 (&sum)[SQUARES][COLUMNS],
                                          moei_f32x4 (&acc)[SQUARES][COLUMNS])
    {
        const float *of_k =
            w_scales != nullptr ? w_scales + (k >> g->group_shift) * g->packed.outputs : nullptr;
        MOEI_GPU_UNROLL
        for (int q = 0; q < SQUARES; q++) {
            moei_f32x4 s_w = {1.0f, 1.0f, 1.0f, 1.0f};
            if (of_k != nullptr) { // past the padded outputs, any
                const int64_t at = n + 16 * q < g->packed.outputs ? n + 16 * q : 0;
                s_w = *(const moei_f32x4 *)(const void *)(of_k + at);
            }
            MOEI_GPU_UNROLL
            for (int p = 0; p < COLUMNS; p++) {
                const float s_x = x_scale != nullptr ? x_scale[16 * p + dev_thread() % 16] : 1.0f;
                MOEI_GPU_UNROLL
                for (int r = 0; r < 4; r++) {
                    acc[q][p][r] = moei_fmaf(sum[q][p][r] * s_x, s_w[r], acc[q][p][r]);
                    sum[q][p][r] = 0.0f;
                }
            }
        }
    }
};

/// A pair of kernels, for few and for many rows of an expert.
#define MOEI_HIP_KERNELS(name, packed, ...)                                                        \
    MOEI_HIP_KERNEL(name, moei_hip_tiles<moei_hip_mfma_tile<__VA_ARGS__, packed, 64, 16>>(g))      \
    MOEI_HIP_KERNEL(name##_many,                                                                   \
                    moei_hip_tiles<moei_hip_mfma_tile<__VA_ARGS__, packed, 128, 64>>(g))

#endif
