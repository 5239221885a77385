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
static void all_rows(panel *p, int64_t k0, int64_t k, int64_t count, bool begin)
{
    const int64_t rows = p->c.rows;
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t r = rows * t / tiles;
        tile(p, r, rows * (t + 1) / tiles - r, k0, k, count, begin);
    }
}

// ---- the walk of canonical.h -------------------------------------------------------------------

static void open_panel(void *arg)
{
    panel *p = arg;
    p->width = moei_i64_round_up(p->c.outputs, 16);
    if (p->c.outputs < p->width) { // sums of what is not there are run, and dropped
        memset(p->w, 0, sizeof p->w);
    }
}

static void load_chunk(void *arg, int64_t k0, int64_t count, int64_t chain, bool scales)
{
    panel *p = arg;
    const moek_ggemm_args *a = p->c.args;
    for (int64_t r = 0; r < p->c.rows; r++) {
        moei_load_f32(a->x.dtype, moei_x_at(a, p->c.e, p->c.i0 + r), k0, count, p->x[r]);
    }
    if (scales) {
        load_scales(p, k0, count, chain);
    }
}

static void decode_slice(void *arg, moei_cpu_part slice, int64_t chain)
{
    panel *p = arg;
    (void)chain;
    const int64_t k0 = slice.k0 + slice.slice;
    if (p->c.args->w.value_k_stride == 0) {
        decode_rows(p, k0, slice.count);
    } else {
        moei_cpu_load_transposed(&p->c, k0, slice.count, p->w);
    }
    if (p->c.subtracts_zeros) {
        moei_cpu_subtract_zeros(&p->c, k0, slice.count, p->w);
    }
}

static void multiply(void *arg, moei_cpu_part part, bool begins)
{
    all_rows(arg, part.slice, part.k, part.count, begins);
}

static void add_sums(void *arg, int64_t r, bool fold, int64_t b, float x_scale)
{
    panel *p = arg;
    for (int64_t n = 0; n < p->width; n += LANES) {
        const float32x4_t s = vld1q_f32(&p->sum[r][n]);
        const float32x4_t a = vld1q_f32(&p->acc[r][n]);
        const float32x4_t scale = vld1q_f32(&p->scale[b][n]);
        vst1q_f32(&p->acc[r][n],
                  fold ? vfmaq_f32(a, vmulq_n_f32(s, x_scale), scale) : vaddq_f32(a, s));
    }
}

static const moei_cpu_canonical_ops ops = {open_panel, load_chunk, decode_slice, multiply,
                                           add_sums};

__attribute__((always_inline)) static inline void run(const moek_ggemm_args *args, int32_t e,
                                                      int64_t i0, int64_t i1, int64_t n0,
                                                      int64_t n1, int64_t chain, bool fold)
{
    panel p;
    begin_panels(&p, args, e);
    moei_cpu_canonical_run(&p.c, &ops, &p, MR, NR, i0, i1, n0, n1, chain, fold);
}

#define CHAIN_KERNEL(variant, chain, fold)                                                         \
    moek_ggemm_fn moek_ggemm_any_any_any__neon_##variant;                                          \
    void moek_ggemm_any_any_any__neon_##variant(const moek_ggemm_args *args, int32_t e,            \
                                                int64_t i0, int64_t i1, int64_t n0, int64_t n1)    \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, chain, fold);                                                 \
    }
CHAIN_KERNEL(c256, 256, false)
CHAIN_KERNEL(b16, 16, true)
CHAIN_KERNEL(b32, 32, true)
CHAIN_KERNEL(b64, 64, true)
CHAIN_KERNEL(b128, 128, true)
