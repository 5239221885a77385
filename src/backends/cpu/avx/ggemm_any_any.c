// SPDX-License-Identifier: Apache-2.0
// ggemm with AVX2, FMA and F16C, and once more with AVX-512: canonical weights of any format,
// activations of any form, the bits of the portable rows of the same class.
//
// A vector (vector.h) holds 8 or 16 outputs of one k, so that each lane is one chain along k and no
// order changes. Weights lie the other way round, k by k; a panel of 64 outputs is turned 64 k at a
// time:
//
//   8 or 16 rows x 16 bytes --- unpack 32, 64 ---> 4 vectors, lane = output, 4 bytes of k each
//   bf16: 2 k a lane, shift and mask. 4 bits: 8 k a lane, two table look-ups make bf16 of them.
//   8 bits: 4 k a lane, shift and convert. Others: to floats row by row, then turned.
//
// Five rows of x and more: to w [64 k][64 outputs] as floats, 16 KiB of L1, from which register
// tiles of up to 6 x 16 (rows x outputs; 6 x 64 with AVX-512) run their chains; every row reuses
// it. Up to four rows, bf16 and 4 bits: from registers to the chains of 32 or 16 outputs, and no w
// is written.
//
// A panel's 64 rows are read in slices, which no prefetcher of a CPU follows; so while one panel is
// turned, the lines of the next are asked for row after row, in one forward stream that ends in a
// second-level cache. Weights are read where they lie: turning costs 12 of some 40 instructions per
// 64 weights of 16 bits, 3 of those of 4 bits. A packed layout would save that, and the copy that
// rows of bf16 need which lie a multiple of 2 KiB apart; such weights could not be wrapped.
//
// Class amx_bf16: a chain each for the even and the odd k of 32, from w, subnormals flushed.
//
// Limits: one row, 16 bits: memory; one row, fewer bits: shuffles and conversions; many rows: FMA.
#include "backends/cpu/avx/flush.h"
#include "backends/cpu/avx/load_x.h"
#include "backends/cpu/avx/panel.h"
#include "backends/cpu/unroll.h"

// ---- chains ------------------------------------------------------------------------------------

#define MOST_ACROSS (LANES == 16 ? 4 : 2) // vectors of a tile of six rows: 32 registers, or 16

// `count` k of the chains of `rows` rows and LANES * `vectors` outputs: from +0, or on from where
// they are. Every k counts, or every other one (`apart` 2). All three are constants wherever this
// is called; with all loops over them unrolled, the sums stay in registers.
__attribute__((always_inline)) static inline void chains(int64_t rows, int64_t vectors,
                                                         int64_t apart, const float *restrict x,
                                                         const float *restrict w, int64_t count,
                                                         bool begin, float *restrict sum)
{
    vecf s[6][NR / LANES];
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            s[r][v] = begin ? V(setzero_ps)() : V(load_ps)(sum + r * NR + LANES * v);
        }
    }
    for (int64_t k = 0; k < apart * count; k += apart) {
        vecf wk[NR / LANES];
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            wk[v] = V(load_ps)(w + k * NR + LANES * v);
        }
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            const vecf xk = V(set1_ps)(x[r * CHUNK + k]);
            UNROLL
            for (int64_t v = 0; v < vectors; v++) {
                s[r][v] = V(fmadd_ps)(xk, wk[v], s[r][v]);
            }
        }
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            V(store_ps)(sum + r * NR + LANES * v, s[r][v]);
        }
    }
}

// The same for all outputs of a panel.
__attribute__((always_inline)) static inline void
chains_of(int64_t rows, int64_t vectors, int64_t apart, const float *restrict x,
          const float *restrict w, int64_t count, bool begin, int64_t width, float *restrict sum)
{
    for (int64_t n = 0; n < width; n += LANES * vectors) {
        if (begin) {
            chains(rows, vectors, apart, x, w + n, count, true, sum + n);
        } else {
            chains(rows, vectors, apart, x, w + n, count, false, sum + n);
        }
    }
}

// Vectors of `width` outputs that are side by side in a tile: no more than leave its weights and
// its x in registers.
#define ACROSS(width, most) ((width) / LANES < (most) ? (width) / LANES : (most))

#define TILES(rows, most)                                                                          \
    case (rows)*NR + 64:                                                                           \
        chains_of(rows, ACROSS(64, most), apart, x, w, count, begin, 64, sum);                     \
        break;                                                                                     \
    case (rows)*NR + 32:                                                                           \
        chains_of(rows, ACROSS(32, most), apart, x, w, count, begin, 32, sum);                     \
        break;                                                                                     \
    case (rows)*NR + 16:                                                                           \
        chains_of(rows, ACROSS(16, most), apart, x, w, count, begin, 16, sum);                     \
        break;

// Rows whose x and sums begin at the addresses given. Eight chains at least hide an FMA's latency
// where there are as many.
__attribute__((always_inline)) static inline void tile_of(int64_t rows, int64_t width,
                                                          int64_t apart, const float *restrict x,
                                                          const float *restrict w, int64_t count,
                                                          bool begin, float *restrict sum)
{
    switch (rows * NR + width) {
        TILES(1, 8)
        TILES(2, 4)
        TILES(3, 4)
        TILES(4, MOST_ACROSS)
        TILES(5, MOST_ACROSS)
        TILES(6, MOST_ACROSS)
    default:
        break; // there is no other
    }
}

// Rows r .. r + rows - 1 of the panel over k .. k + count - 1 of its slice, which begins at k0 of
// x.
static void tile(panel *p, int64_t r, int64_t rows, int64_t k0, int64_t k, int64_t count,
                 bool begin)
{
    tile_of(rows, p->width, 1, &p->x[r][k0 + k], p->w[k], count, begin, p->sum[r]);
}

// As many rows in every tile, but for one.
static void all_rows(panel *p, int64_t k0, int64_t k, int64_t count, bool begin)
{
    const int64_t rows = p->c.rows;
    const int64_t tiles = moei_i64_ceil_div(rows, 6);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t r = rows * t / tiles;
        tile(p, r, rows * (t + 1) / tiles - r, k0, k, count, begin);
    }
}

// ---- class amx_bf16 ----------------------------------------------------------------------------

#define PAIRS 16 // of k, whose products make a chain for each half

// The even or the odd k of a block of the slice, from +0.
static void half_tile(const panel *p, int64_t r, int64_t rows, int64_t k0, int64_t k,
                      float (*sum)[NR])
{
    tile_of(rows, p->width, 2, &p->x[r][k0 + k], p->w[k], PAIRS, true, sum[r]);
}

// Sums of 32 k, even + odd, to `sum`; or added to acc.
static void add_pairs(panel *p, int64_t k0, int64_t k, bool add)
{
    const int64_t rows = p->c.rows;
    const int64_t tiles = moei_i64_ceil_div(rows, 6);
    const uint32_t modes = moei_cpu_flush_begin();
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t r = rows * t / tiles;
        const int64_t count = rows * (t + 1) / tiles - r;
        half_tile(p, r, count, k0, k, p->sum);
        half_tile(p, r, count, k0, k + 1, p->odd);
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t n = 0; n < p->width; n += LANES) {
            const vecf both = V(add_ps)(V(load_ps)(&p->sum[r][n]), V(load_ps)(&p->odd[r][n]));
            if (add) {
                V(store_ps)(&p->acc[r][n], V(add_ps)(V(load_ps)(&p->acc[r][n]), both));
            } else {
                V(store_ps)(&p->sum[r][n], both);
            }
        }
    }
    moei_cpu_flush_end(modes);
}

// Blocks are whole: what lies past K is 0, and its products count.
static void pad_block(panel *p, int64_t k0, int64_t count)
{
    const int64_t end = moei_i64_round_up(count, 2 * PAIRS);
    for (int64_t r = 0; r < p->c.rows; r++) {
        memset(&p->x[r][k0 + count], 0, (size_t)(end - count) * sizeof p->x[0][0]);
    }
    memset(p->w[count], 0, (size_t)(end - count) * sizeof p->w[0]);
}

// ---- from registers ----------------------------------------------------------------------------

#define MOST_DIRECT 4 // rows
#define HELD        4 // steps that make a line
#define SIDE        4 // groups of outputs side by side, which hide an FMA's latency

// The chains of a vector of outputs go on by one k.
__attribute__((always_inline)) static inline void step(int64_t rows, const float *x, vecf w,
                                                       vecf sum[MOST_DIRECT])
{
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        sum[r] = V(fmadd_ps)(V(set1_ps)(x[r * CHUNK]), w, sum[r]);
    }
}

// Few rows of x, whole steps of k: weights go from registers to their chains, and no w is written.
__attribute__((always_inline)) static inline void direct(panel *p, bool four_bits, int64_t rows,
                                                         int64_t side, int64_t k0, int64_t count,
                                                         int64_t x0, bool begin)
{
    const int64_t at = (four_bits ? k0 / 2 : 2 * k0) - p->near_at;
    const int64_t bytes = four_bits ? count / 2 : 2 * count;
    // A line that is turned whole may be gone from a first-level cache afterwards.
    const int64_t held = four_bits ? 1 : HELD;
    for (int64_t n = 0; n < p->width; n += side * GROUP) {
        const float *x = &p->x[0][x0];
        vecf sum[SIDE][MOST_DIRECT];
        UNROLL
        for (int64_t g = 0; g < side; g++) {
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                sum[g][r] = begin ? V(setzero_ps)() : V(load_ps)(&p->sum[r][n + GROUP * g]);
            }
        }
        for (int64_t b = 0; b < bytes; b += held * STEP) {
            veci v[SIDE][HELD][4];
            ask_ahead(p, side * GROUP * held * STEP / LINE);
            UNROLL
            for (int64_t g = 0; g < side; g++) {
                UNROLL
                for (int64_t h = 0; h < held; h++) {
                    turn(&p->near_row[n + GROUP * g], at + b + h * STEP, v[g][h]);
                }
            }
            for (int64_t h = 0; h < held; h++) {
                UNROLL
                for (int64_t j = 0; j < 4; j++) {
                    UNROLL
                    for (int64_t g = 0; g < side; g++) {
                        if (!four_bits) {
                            step(rows, x, low_of(v[g][h][j]), sum[g]);
                            step(rows, x + 1, high_of(v[g][h][j]), sum[g]);
                            continue;
                        }
                        veci w[4];
                        look_up(p, v[g][h][j], w);
                        UNROLL
                        for (int64_t half = 0; half < 2; half++) {
                            step(rows, x + 4 * half, low_of(w[2 * half]), sum[g]);
                            step(rows, x + 4 * half + 1, low_of(w[2 * half + 1]), sum[g]);
                            step(rows, x + 4 * half + 2, high_of(w[2 * half]), sum[g]);
                            step(rows, x + 4 * half + 3, high_of(w[2 * half + 1]), sum[g]);
                        }
                    }
                    x += four_bits ? 8 : 2;
                }
            }
        }
        UNROLL
        for (int64_t g = 0; g < side; g++) {
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                V(store_ps)(&p->sum[r][n + GROUP * g], sum[g][r]);
            }
        }
    }
}

// Where rows are some KiB apart, their lines meet in few sets of a first-level cache. So a chunk of
// each is copied, whole lines one after the other, to where they do not.
static void bring_near(panel *p, int64_t k0, int64_t count)
{
    const int64_t at = moei_elem_bytes(p->c.args->w.format->elem, k0);
    const int64_t bytes = moei_elem_bytes(p->c.args->w.format->elem, count);
    p->near_at = 0;
    memcpy(p->near_row, p->c.row, sizeof p->c.row);
    if (p->c.args->w.value_n_stride % MEETING != 0 || p->width > NEAR_ROWS ||
        p->decode != decode_bf16) {
        return;
    }
    for (int64_t r = 0; r < p->width; r++) {
        memcpy(p->near[r], p->c.row[r] + at, (size_t)bytes);
        p->near_row[r] = p->near[r];
    }
    p->near_at = at;
}

// Whether that is how the rows and `count` k meet, in chains of `chain`.
static inline bool is_direct(const panel *p, int64_t count, int64_t chain)
{
    return !p->paired && p->c.rows <= MOST_DIRECT && count % 32 == 0 && chain % 32 == 0 &&
           p->width >= 32 && p->c.args->w.value_k_stride == 0 && !p->c.subtracts_zeros &&
           (p->decode == decode_bf16 || p->decode == decode_4bits);
}

__attribute__((always_inline)) static inline void direct_rows_of(panel *p, bool four_bits,
                                                                 int64_t rows, int64_t k0,
                                                                 int64_t count, int64_t x0,
                                                                 bool begin)
{
    switch (p->width < SIDE * GROUP && rows < 3 ? -rows : rows) {
    case 1:
        direct(p, four_bits, 1, SIDE, k0, count, x0, begin);
        break;
    case 2:
        direct(p, four_bits, 2, SIDE, k0, count, x0, begin);
        break;
#if SIDE * GROUP > 32
    case -1:
        direct(p, four_bits, 1, 2, k0, count, x0, begin);
        break;
    case -2:
        direct(p, four_bits, 2, 2, k0, count, x0, begin);
        break;
#endif
    case 3:
        direct(p, four_bits, 3, 2, k0, count, x0, begin);
        break;
    default:
        direct(p, four_bits, 4, 2, k0, count, x0, begin);
        break;
    }
}

static void direct_rows(panel *p, int64_t k0, int64_t count, int64_t x0, bool begin)
{
    if (p->decode == decode_bf16) {
        direct_rows_of(p, false, p->c.rows, k0, count, x0, begin);
    } else {
        direct_rows_of(p, true, p->c.rows, k0, count, x0, begin);
    }
}

// ---- the walk of canonical.h -------------------------------------------------------------------

static void open_panel(void *arg)
{
    panel *p = arg;
    const moei_matrices *m = &p->c.args->w;
    const int64_t end = p->c.n0 + p->c.outputs;
    for (int64_t n = 0; m->scales != NULL && n < NR; n++) {
        p->scale_row[n] = moei_w_scale_at(m, p->c.e, moei_i64_min(p->c.n0 + n, end - 1), 0);
    }
    if (p->c.outputs < p->width) { // sums of what is not there are run, and dropped
        memset(p->w, 0, sizeof p->w);
    }
    ask_for(p, p->c.n0 + p->width, moei_i64_min(p->c.n0 + 2 * p->width, p->end));
}

static void load_chunk(void *arg, int64_t k0, int64_t count, int64_t chain, bool scales)
{
    panel *p = arg;
    const moek_ggemm_args *a = p->c.args;
    for (int64_t r = 0; r < p->c.rows; r++) {
        load_x(a->x.dtype, moei_x_at(a, p->c.e, p->c.i0 + r), k0, count, p->x[r]);
    }
    if (is_direct(p, SLICE, chain)) {
        bring_near(p, k0, count);
    }
    if (scales) {
        load_scales(p, k0, count, chain);
    }
}

static void decode_slice(void *arg, moei_cpu_part slice, int64_t chain)
{
    panel *p = arg;
    const int64_t k0 = slice.k0 + slice.slice;
    p->direct = is_direct(p, slice.count, chain);
    if (p->direct) {
        return;
    }
    if (p->c.args->w.value_k_stride == 0) {
        decode_rows(p, k0, slice.count);
    } else {
        moei_cpu_load_transposed(&p->c, k0, slice.count, p->w);
    }
    if (p->c.subtracts_zeros) {
        moei_cpu_subtract_zeros(&p->c, k0, slice.count, p->w);
    }
    if (p->paired) {
        pad_block(p, slice.slice, slice.count);
    }
}

static void multiply(void *arg, moei_cpu_part part, bool begins)
{
    panel *p = arg;
    if (p->direct) {
        const int64_t at = part.slice + part.k;
        direct_rows(p, part.k0 + at, part.count, at, begins);
    } else {
        all_rows(p, part.slice, part.k, part.count, begins);
    }
}

static void add_sums(void *arg, int64_t r, bool fold, int64_t b, float x_scale)
{
    panel *p = arg;
    for (int64_t n = 0; n < p->width; n += LANES) {
        const vecf s = V(load_ps)(&p->sum[r][n]);
        const vecf a = V(load_ps)(&p->acc[r][n]);
        const vecf scaled = V(mul_ps)(s, V(set1_ps)(x_scale));
        const vecf scale = V(load_ps)(&p->scale[b][n]);
        V(store_ps)(&p->acc[r][n], fold ? V(fmadd_ps)(scaled, scale, a) : V(add_ps)(a, s));
    }
}

// Class amx_bf16: a chain is a block of pairs, which ends as it begins.
static void multiply_pairs(void *arg, moei_cpu_part part, bool begins)
{
    (void)begins;
    add_pairs(arg, part.slice, part.k, false);
}

// The same where sums are added as they are: flushed, as the pairs are.
static void multiply_and_add_pairs(void *arg, moei_cpu_part part, bool begins)
{
    (void)begins;
    add_pairs(arg, part.slice, part.k, true);
}

static const moei_cpu_canonical_ops plain = {open_panel, load_chunk, decode_slice, multiply,
                                             add_sums};
static const moei_cpu_canonical_ops paired = {open_panel, load_chunk, decode_slice,
                                              multiply_and_add_pairs, NULL};
static const moei_cpu_canonical_ops paired_folded = {open_panel, load_chunk, decode_slice,
                                                     multiply_pairs, add_sums};

__attribute__((always_inline)) static inline void run(const moek_ggemm_args *args, int32_t e,
                                                      int64_t i0, int64_t i1, int64_t n0,
                                                      int64_t n1, const moei_cpu_canonical_ops *ops,
                                                      int64_t chain, bool fold)
{
    panel p;
    begin_panels(&p, args, e, n1);
    p.paired = ops != &plain;
    if (args->w.value_k_stride == 0) { // the first panel comes late
        ask_for(&p, n0, moei_i64_min(n0 + p.width, n1));
        ask_ahead(&p, INT64_MAX);
    }
    moei_cpu_canonical_run(&p.c, ops, &p, MR, p.width, i0, i1, n0, n1, chain, fold);
}

#define CHAIN_KERNEL(name, ops, chain, fold)                                                       \
    moek_ggemm_fn moek_ggemm_##name;                                                               \
    void moek_ggemm_##name(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,         \
                           int64_t n0, int64_t n1)                                                 \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, &(ops), chain, fold);                                         \
    }
#if LANES == 16
CHAIN_KERNEL(any_any_any__avx512_c256, plain, 256, false)
CHAIN_KERNEL(any_any_any__avx512_b16, plain, 16, true)
CHAIN_KERNEL(any_any_any__avx512_b32, plain, 32, true)
CHAIN_KERNEL(any_any_any__avx512_b64, plain, 64, true)
CHAIN_KERNEL(any_any_any__avx512_b128, plain, 128, true)
CHAIN_KERNEL(any_any_any__avx512_amx, paired, 32, false)
CHAIN_KERNEL(any_any_any__avx512_amx_b32, paired_folded, 32, true)
#else
CHAIN_KERNEL(any_any_any__avx2_c256, plain, 256, false)
CHAIN_KERNEL(any_any_any__avx2_b16, plain, 16, true)
CHAIN_KERNEL(any_any_any__avx2_b32, plain, 32, true)
CHAIN_KERNEL(any_any_any__avx2_b64, plain, 64, true)
CHAIN_KERNEL(any_any_any__avx2_b128, plain, 128, true)
CHAIN_KERNEL(any_any_any__avx2_amx, paired, 32, false)
CHAIN_KERNEL(any_any_any__avx2_amx_b32, paired_folded, 32, true)
#endif
