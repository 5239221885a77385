// SPDX-License-Identifier: Apache-2.0
// ggemm with NEON: canonical weights of any format, activations of any form, the bits of the
// portable rows of the same class.
//
// A vector holds four outputs of one k, so that each lane is one chain along k and no order
// changes. Weights lie the other way round, k by k; a panel of 64 outputs is turned and decoded 64
// k at a time (neon/panel.h) to w [64 k][64 outputs] of floats, 16 KiB of L1, which up to 32 rows
// of x share. Over it run register tiles:
//
//   rows  outputs  chains                    x: four k of a row in one vector, a lane of which
//   1     64       16                        fmla multiplies by, so that a load of x serves
//   2     32       16                        4 k of every output of the tile
//   3, 4  16       12, 16
//
// 16 chains hide four cycles of latency on four pipes. Limits: one row: the decoder and the trip
// through w; many rows: fmla (16 of 21 instructions of a full tile and k are).
#include "backends/cpu/neon/panel.h"
#include "backends/cpu/unroll.h"

#define MOST_VECTORS 16
#define TILE         4 // rows

// The chains of `rows` rows and 4 * `vectors` outputs go on by one k, which is lane `lane` of x.
#define STEP_OF(lane)                                                                              \
    do {                                                                                           \
        UNROLL                                                                                     \
        for (int64_t v = 0; v < vectors; v++) {                                                    \
            const float32x4_t wk = vld1q_f32(w + (k + (lane)) * NR + LANES * v);                   \
            UNROLL                                                                                 \
            for (int64_t r = 0; r < rows; r++) {                                                   \
                s[r][v] = vfmaq_laneq_f32(s[r][v], wk, xk[r], lane);                               \
            }                                                                                      \
        }                                                                                          \
    } while (0)

// `count` k of a tile: from +0, or on from where its sums are. Both numbers are constants wherever
// this is called.
__attribute__((always_inline)) static inline void chains(int64_t rows, int64_t vectors,
                                                         const float *restrict x,
                                                         const float *restrict w, int64_t count,
                                                         bool begin, float *restrict sum)
{
    float32x4_t s[TILE][MOST_VECTORS];
    float32x4_t xk[TILE];
    int64_t k = 0;
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            s[r][v] = begin ? vdupq_n_f32(0.0f) : vld1q_f32(sum + r * NR + LANES * v);
        }
    }
    for (; k + 4 <= count; k += 4) {
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            xk[r] = vld1q_f32(x + r * CHUNK + k);
        }
        STEP_OF(0);
        STEP_OF(1);
        STEP_OF(2);
        STEP_OF(3);
    }
    for (; k < count; k++) {
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            xk[r] = vld1q_dup_f32(x + r * CHUNK + k);
        }
        STEP_OF(0);
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            vst1q_f32(sum + r * NR + LANES * v, s[r][v]);
        }
    }
}

__attribute__((always_inline)) static inline void
chains_of(int64_t rows, int64_t vectors, const float *restrict x, const float *restrict w,
          int64_t count, bool begin, int64_t width, float *restrict sum)
{
    for (int64_t n = 0; n < width; n += LANES * vectors) {
        chains(rows, vectors, x, w + n, count, begin, sum + n);
    }
}

// Rows r .. r + rows - 1 of the panel over k .. k + count - 1 of its slice, which begins at k0 of
// x.
static void tile(panel *p, int64_t r, int64_t rows, int64_t k0, int64_t k, int64_t count,
                 bool begin)
{
    const float *x = &p->x[r][k0 + k];
    const float *w = p->w[k];
    float *sum = p->sum[r];
    if (rows == 1 && p->width == 64) {
        chains_of(1, 16, x, w, count, begin, 64, sum);
    } else if (rows == 1) {
        chains_of(1, 4, x, w, count, begin, p->width, sum);
    } else if (rows == 2 && p->width % 32 == 0) {
        chains_of(2, 8, x, w, count, begin, p->width, sum);
    } else if (rows == 2) {
        chains_of(2, 4, x, w, count, begin, p->width, sum);
    } else if (rows == 3) {
        chains_of(3, 4, x, w, count, begin, p->width, sum);
    } else {
        chains_of(4, 4, x, w, count, begin, p->width, sum);
    }
}

// As many rows in every tile, but for one.
static void all_rows(panel *p, int64_t rows, int64_t k0, int64_t k, int64_t count, bool begin)
{
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t r = rows * t / tiles;
        tile(p, r, rows * (t + 1) / tiles - r, k0, k, count, begin);
    }
}

// Adds the sums of a chunk: as they are, or folded with the scales of x and W.
static inline void add_sums(float *restrict acc, const float *restrict sum, bool fold,
                            const float *restrict scale, float x_scale, int64_t width)
{
    for (int64_t n = 0; n < width; n += LANES) {
        const float32x4_t s = vld1q_f32(sum + n);
        const float32x4_t a = vld1q_f32(acc + n);
        vst1q_f32(acc + n, fold ? vfmaq_f32(a, vmulq_n_f32(s, x_scale), vld1q_f32(scale + n))
                                : vaddq_f32(a, s));
    }
}

// Rows i0 .. i1 - 1 over the outputs of the panel. chunk: k of a chain; fold: a chunk's scales are
// applied to its sum.
static inline void block(panel *p, const moek_ggemm_args *a, int64_t i0, int64_t i1, int64_t chunk,
                         bool fold)
{
    const moei_matrices *m = p->m;
    const int64_t rows = i1 - i0;
    const bool fold_w = fold && m->scales != NULL && m->block_k > 0;
    const bool fold_x = fold && a->x.scales != NULL && a->x.group > 0;
    const int64_t length = chunk < SLICE ? chunk : SLICE;
    memset(p->acc, 0, (size_t)rows * sizeof p->acc[0]);
    for (int64_t k0 = 0; k0 < m->k; k0 += CHUNK) {
        const int64_t kc = moei_i64_min(CHUNK, m->k - k0);
        for (int64_t r = 0; r < rows; r++) {
            moei_load_f32(a->x.dtype, moei_x_at(a, p->e, i0 + r), k0, kc, p->x[r]);
        }
        if (fold_w) {
            load_scales(p, k0, kc, chunk);
        }
        for (int64_t at = 0; at < kc; at += length) {
            const int64_t s = at / SLICE * SLICE;
            const int64_t count = moei_i64_min(length, kc - at);
            if (at == s) {
                decode_slice(p, k0 + s, moei_i64_min(SLICE, kc - s));
            }
            all_rows(p, rows, s, at - s, count, at % chunk == 0);
            if ((at + count) % chunk != 0 && at + count < kc) {
                continue; // the chain goes on in the next slice
            }
            const int64_t first = at / chunk * chunk;
            for (int64_t r = 0; r < rows; r++) {
                const float x_scale =
                    fold_x ? moei_cpu_operand_scale(a, p->e, i0 + r, k0 + first) : 1.0f;
                add_sums(p->acc[r], p->sum[r], fold, p->scale[first / chunk], x_scale, p->width);
            }
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        moei_cpu_finish(a, &p->columns, p->e, i0 + r, p->n0, p->n0 + p->outputs, p->acc[r]);
    }
}

static inline void blocks(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                          int64_t n1, int64_t chunk, bool fold)
{
    panel p;
    begin_panels(&p, &a->w, e);
    for (int64_t n = n0; n < n1; n += NR) {
        open_panel(&p, n, moei_i64_min(n + NR, n1));
        for (int64_t i = i0; i < i1; i += MR) {
            block(&p, a, i, moei_i64_min(i + MR, i1), chunk, fold);
        }
    }
}

#define CHAIN_KERNEL(variant, chunk, fold)                                                         \
    moek_ggemm_fn moek_ggemm_any_any_any__neon_##variant;                                          \
    void moek_ggemm_any_any_any__neon_##variant(const moek_ggemm_args *args, int32_t e,            \
                                                int64_t i0, int64_t i1, int64_t n0, int64_t n1)    \
    {                                                                                              \
        blocks(args, e, i0, i1, n0, n1, chunk, fold);                                              \
    }
CHAIN_KERNEL(c256, 256, false)
CHAIN_KERNEL(b16, 16, true)
CHAIN_KERNEL(b32, 32, true)
CHAIN_KERNEL(b64, 64, true)
CHAIN_KERNEL(b128, 128, true)
