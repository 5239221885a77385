// SPDX-License-Identifier: Apache-2.0
// ggemm on the matrix units of CDNA: weights that bf16 holds exactly x rows that it holds exactly,
// any sizes and strides.
//
// Tiles are those of tile.cuh. Weights go from memory to the registers of the one wave that
// multiplies them, a slice of k ahead, and are decoded there (decode.cuh); rows of x lie in LDS by
// slices, and are fetched a slice ahead, too; codes become bf16 on their way there, by a table.
// What lies past the end of a row of x is 0, and weights there are finite; for what lies past the
// last row or output, another is read, and its results are dropped.
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

/// What a block has in LDS. SLICE: elements of k that lie there at a time.
template <int OUTPUTS, int ROWS, int SLICE> struct moei_hip_lds {
    static constexpr int PITCH = SLICE + 8; // 16 bytes more: rows on other banks
    union {
        alignas(16) uint16_t x[ROWS][PITCH];
        moei_hip_sums<OUTPUTS, ROWS> sums;
    };
    float x_scale[SLICE / MOEI_HIP_MFMA_STEP][ROWS];
    uint16_t decoded[MOEI_HIP_MFMA_CODES]; // bf16 of each code of x
    int32_t prefix[1];                     // of tiles; as many as there are experts and one
};

// --------------------------------------------------------------------------------------- weights

/// The weights of 16 outputs, as a lane reads them: canonical bf16.
struct moei_hip_row_weights {
    const uint8_t *row;
    int64_t bytes; // of the row from there on

    /// What a lane holds of 32 k.
    struct step {
        moei_u32x4 v;
    };

    MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, int32_t e, int64_t n0, uint32_t lane)
    {
        const moei_matrices *w = &g->a.w;
        const int64_t n = n0 + lane % 16 < w->n ? n0 + lane % 16 : w->n - 1;
        row = w->values + e * w->value_e_stride + n * w->value_n_stride + lane / 16 * 16;
        bytes = 2 * w->k - lane / 16 * 16;
    }

    /// at: number of the 32 k.
    MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, uint32_t at, step *s) const
    {
        const int64_t byte = (int64_t)at * (2 * MOEI_HIP_MFMA_STEP);
        (void)g;
        s->v = moei_hip_fetch_bytes(row + byte, bytes - byte);
    }

    MOEI_HIP_MEMBER moei_u32x4 operand(const moei_hip_mfma_args *g, const step *s) const
    {
        (void)g;
        return s->v;
    }
};

/// The same of packed weights.
template <int CODE> struct moei_hip_packed_weights {
    static constexpr int WORDS = moei_hip_code_of<CODE>::WORDS;
    static constexpr bool SCALED = CODE >= MOEI_HIP_CODE_E4M3 || moei_hip_code_of<CODE>::E2M1;
    static constexpr bool OFFSET = CODE == MOEI_HIP_CODE_U4 || CODE == MOEI_HIP_CODE_U8;

    const uint8_t *expert;
    uint32_t codes;  // byte of the expert where the lane's begin
    uint32_t scales; // where scales are in the codes' units: that of the first one
    uint32_t zeros;  // where groups have zero points: likewise

    struct step {
        uint32_t words[WORDS];
        uint32_t scale; // or zero point
    };

    /// How scales lie that are decoded with the codes; of formats that have them so or apart, asked
    /// for.
    static MOEI_HIP_MEMBER moei_hip_scales kind(const moei_hip_packed *p)
    {
        return CODE == MOEI_HIP_CODE_MXFP4   ? MOEI_HIP_SCALES_E8M0
               : CODE == MOEI_HIP_CODE_NVFP4 ? MOEI_HIP_SCALES_E4M3
               : SCALED                      ? p->scales
                                             : MOEI_HIP_SCALES_APART;
    }

    static MOEI_HIP_MEMBER bool is_cdna4(const moei_hip_packed *p)
    {
#if defined(__gfx950__)
        (void)p;
        return true;
#elif defined(__gfx942__)
        (void)p;
        return false;
#else
        return p->cdna4;
#endif
    }

    MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, int32_t e, int64_t n0, uint32_t lane)
    {
        const moei_hip_packed *p = &g->packed;
        // Waves past the last output read it: theirs are dropped.
        const uint32_t tile = (uint32_t)(n0 < p->outputs ? n0 : p->outputs - 16) / 16;
        const uint32_t octet = lane / 16;
        expert = g->a.w.values + e * g->a.w.value_e_stride;
        codes = tile * 16 * (uint32_t)p->row_bytes + lane % 16 * 16 +
                (WORDS == 4   ? octet * 256
                 : WORDS == 2 ? octet / 2 * 256 + octet % 2 * 8
                              : octet * 4);
        scales = (uint32_t)p->scales_at;
        if (kind(p) == MOEI_HIP_SCALES_E8M0) {
            scales += is_cdna4(p) ? tile / 2 * 32 * (uint32_t)p->groups + lane % 16 * 4 + tile % 2
                                  : tile * 16 * (uint32_t)p->groups + lane % 16 * 4;
        } else if (kind(p) == MOEI_HIP_SCALES_E4M3) {
            scales += tile * 16 * (uint32_t)p->groups + lane % 16 * 8 + lane / 32;
        }
        zeros = (uint32_t)p->zeros_at + tile * 16 + lane % 16;
    }

    /// at: number of the 32 k.
    MOEI_HIP_MEMBER void read(const moei_hip_mfma_args *g, uint32_t at, step *s) const
    {
        const moei_hip_packed *p = &g->packed;
        const uint32_t *from =
            (const uint32_t *)(const void *)(expert + (codes + at * (256 * WORDS)));
        MOEI_GPU_UNROLL
        for (int j = 0; j < WORDS; j++) {
            s->words[j] = from[j];
        }
        if (OFFSET) {
            s->scale = p->zeros_at != p->bytes
                           ? expert[zeros + ((at * MOEI_HIP_MFMA_STEP) >> g->group_shift) *
                                                (uint32_t)p->outputs]
                           : (uint32_t)g->zero_point;
        } else if (kind(p) == MOEI_HIP_SCALES_E8M0) {
            s->scale = expert[scales + (is_cdna4(p) ? at / 8 * 256 + at % 4 * 64 + at / 4 % 2 * 2
                                                    : at / 4 * 64 + at % 4)];
        } else if (kind(p) == MOEI_HIP_SCALES_E4M3) {
            s->scale = expert[scales + at / 4 * 128 + at % 4 * 2];
        }
    }

    MOEI_HIP_MEMBER moei_u32x4 operand(const moei_hip_mfma_args *g, const step *s) const
    {
        const moei_hip_scales of = kind(&g->packed);
        const float scale = of == MOEI_HIP_SCALES_E8M0   ? moei_f32_from_bits(s->scale << 23)
                            : of == MOEI_HIP_SCALES_E4M3 ? moei_e4m3fn_to_f32((uint8_t)s->scale)
                                                         : 1.0f;
        return moei_hip_decode<CODE>(s->words, scale, OFFSET ? (float)s->scale : 0.0f);
    }
};

// ------------------------------------------------------------------------------------ codes of x

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

template <class Weights, bool PACKED, int WIDTH, int HEIGHT, int SLICE> struct moei_hip_mfma_tile {
    static constexpr int OUTPUTS = WIDTH;
    static constexpr int ROWS = HEIGHT;
    static constexpr int SQUARES = OUTPUTS / 64; // of a wave, side by side
    static constexpr int COLUMNS = ROWS / 16;    // one below the other
    static constexpr int STEPS = SLICE / MOEI_HIP_MFMA_STEP;
    static constexpr int ACROSS = SLICE / MOEI_HIP_PIECE; // threads that fetch a row of x together
    static constexpr int DOWN = MOEI_HIP_MFMA_THREADS / ACROSS;
    static constexpr int PIECES = ROWS / DOWN; // of a thread
    static_assert(STEPS * ROWS <= MOEI_HIP_MFMA_THREADS && PIECES > 0, "work for all threads");
    typedef moei_hip_lds<OUTPUTS, ROWS, SLICE> lds;

    static MOEI_HIP_MEMBER void begin(const moei_hip_mfma_args *g, lds *l)
    {
        if (PACKED && g->x_bits != 16) {
            moei_hip_decode_codes(g->a.x.dtype, l->decoded);
        }
    }

    static MOEI_HIP_MEMBER void run(const moei_hip_mfma_args *g, const moei_tile *t, lds *l)
    {
        const moek_ggemm_args *a = &g->a;
        const int32_t k_end = (int32_t)a->w.k; // scalar comparisons have 32 bits
        const uint32_t thread = dev_thread();
        const uint32_t lane = thread % 64;
        const int64_t n0 = moei_hip_first_output<OUTPUTS>(t);
        // What this thread fetches of x: piece `column` of rows `line`, line + DOWN...
        const uint32_t line = thread / ACROSS;
        const uint32_t column = thread % ACROSS * MOEI_HIP_PIECE;
        const bool codes = PACKED && g->x_bits != 16;
        const bool fold = PACKED && g->fold != 0;
        const bool fold_x = fold && a->x.scales != nullptr && a->x.group > 16;
        const float *w_scales = fold ? moei_hip_w_scales(g, t->e) : nullptr;
        const uint8_t *from[PIECES];
        moei_u32x4 next_x[PIECES] = {};
        float next_scale = 0.0f;
        MOEI_GPU_UNROLL
        for (int p = 0; p < PIECES; p++) {
            from[p] = moei_x_at(a, t->e, moei_hip_row(t, line + DOWN * p));
        }
        Weights weights[SQUARES];
        typename Weights::step next[STEPS][SQUARES]; // of the slice that comes
        // Past the last 32 k, those are read again, and not used.
        const uint32_t last = (uint32_t)(k_end - 1) / MOEI_HIP_MFMA_STEP;
        MOEI_GPU_UNROLL
        for (int q = 0; q < SQUARES; q++) {
            weights[q].begin(g, t->e, n0 + 16 * q, lane);
            MOEI_GPU_UNROLL
            for (uint32_t i = 0; i < STEPS; i++) {
                weights[q].read(g, i < last ? i : last, &next[i][q]);
            }
        }
        moei_f32x4 sum[SQUARES][COLUMNS] = {};
        moei_f32x4 acc[SQUARES][COLUMNS] = {};
        for (int32_t k0 = -SLICE; k0 < k_end; k0 += SLICE) {
            dev_sync(); // all have read the slice before
            MOEI_GPU_UNROLL
            for (int p = 0; p < PIECES; p++) {
                *(moei_u32x4 *)(void *)(l->x[line + DOWN * p] + column) =
                    codes ? moei_hip_decode_x(g, l->decoded, next_x[p]) : next_x[p];
            }
            if (fold_x && thread < STEPS * ROWS) {
                l->x_scale[thread / ROWS][thread % ROWS] = next_scale;
            }
            dev_sync();
            if (k0 + SLICE < k_end) {
                const int32_t k = k0 + SLICE + (int32_t)column;
                MOEI_GPU_UNROLL
                for (int p = 0; p < PIECES; p++) {
                    next_x[p] = codes ? moei_hip_fetch_codes(
                                            g, t->e, moei_hip_row(t, line + DOWN * p), from[p], k)
                                      : moei_hip_fetch_bytes(from[p] + 2 * (int64_t)k,
                                                             2 * (int64_t)(k_end - k));
                }
                if (fold_x && thread < STEPS * ROWS) {
                    const int32_t at = k0 + SLICE + (int32_t)(thread / ROWS) * MOEI_HIP_MFMA_STEP;
                    next_scale = moei_hip_x_scale(a, t->e, moei_hip_row(t, thread % ROWS),
                                                  at < k_end ? at : k_end - 1);
                }
            }
            if (k0 < 0) { // there is no slice yet
                continue;
            }
            MOEI_GPU_UNROLL
            for (int i = 0; i < STEPS; i++) {
                const int32_t k = k0 + i * MOEI_HIP_MFMA_STEP;
                if (k >= k_end) {
                    break;
                }
                moei_u32x4 w[SQUARES];
                MOEI_GPU_UNROLL
                for (int q = 0; q < SQUARES; q++) {
                    w[q] = weights[q].operand(g, &next[i][q]);
                    const uint32_t at = (uint32_t)(k0 / SLICE + 1) * STEPS + i;
                    weights[q].read(g, at < last ? at : last, &next[i][q]);
                }
                MOEI_GPU_UNROLL
                for (int p = 0; p < COLUMNS; p++) {
                    const moei_u32x4 x =
                        *(const moei_u32x4 *)(const void *)(l->x[16 * p + lane % 16] +
                                                            i * MOEI_HIP_MFMA_STEP + lane / 16 * 8);
                    MOEI_GPU_UNROLL
                    for (int q = 0; q < SQUARES; q++) {
                        sum[q][p] = moei_mfma_bf16(w[q], x, sum[q][p]);
                    }
                }
                const int32_t end = k + MOEI_HIP_MFMA_STEP;
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
                                          int32_t k, int64_t n, const float *x_scale,
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

/// A pair of kernels. For few rows of an expert, memory decides: more of k is under way. For many,
/// LDS: more outputs share a row.
#define MOEI_HIP_KERNELS(name, packed, ...)                                                        \
    MOEI_HIP_KERNEL(name, moei_hip_tiles<moei_hip_mfma_tile<__VA_ARGS__, packed, 64, 16, 256>>(g)) \
    MOEI_HIP_KERNEL(name##_many,                                                                   \
                    moei_hip_tiles<moei_hip_mfma_tile<__VA_ARGS__, packed, 128, 64, 128>>(g))

#endif
