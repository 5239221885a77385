// SPDX-License-Identifier: Apache-2.0
// ggemm with NEON of codes times codes: x of i8b32, i8b128 or i16b32 with packed weights of
// integers, or of e2m1, counted in halves. Integer instructions give the bits of the portable rows:
// in the chain of a block (16 to 128 k that share scales) every sum is a multiple of 1/2 below 2^24
// (docs/numerics.md), so no step of it rounds, and any order of exact operations ends in the same
// float. After it come the portable row's own steps, acc = fma(sum * s_x, s_w, acc). Class i32,
// int8 with int8 and no scales along k, sums integers over all of k.
//
// A vector holds four outputs x 4 k of bytes, as packed.h lays them, and sdot adds their products
// with 4 k of x, a lane of a vector of 16 k: one instruction for 16 products. Everything is a
// signed byte:
//
//   e2m1    2 w by a table; the scale of x is halved
//   uint4   as it is; the zero point times the sum of x is subtracted at the end of the block
//   int8    as it is
//   uint8   w - 128; the zero point less 128 likewise
//   x int8  as it is
//   x int16 256 high + low + 128, low = (x mod 256) - 128: two digits, whatever x, and 128 times
//           the sum of w, which is counted once for all rows
//
// This source is compiled twice: with sdot (DOTPROD, Armv8.2), and without, where two widening
// products and three pairwise additions stand for it.
//
// A tile is up to 4 rows x 16 outputs (8 for 3 and 4 rows of int16): at most 16 sums, 4 to 8
// vectors of x, and weights that are decoded as they come. Limits: one row: memory; many: sdot, of
// which decoding adds half an instruction to each of a row, e2m1 one.
#include <arm_neon.h>

#include "backends/cpu/packed_ints.h"
#include "backends/cpu/packed_panels.h"
#include "backends/cpu/unroll.h"

#if defined(__ARM_FEATURE_DOTPROD)
#define NAME(x, variant) moek_ggemm_any_##x##_packed__neon_dotprod_##variant
#else
#define NAME(x, variant) moek_ggemm_any_##x##_packed__neon_##variant
#endif

#define PANEL  MOEI_CPU_PANEL
#define STRIP  MOEI_CPU_STRIP
#define RECORD MOEI_CPU_RECORD
#define HALVES 2 // of a record, 16 k each: they may have scales of their own
#define HALF   (RECORD / HALVES)
#define LANES  4
#define TILE   4          // rows
#define MR     32         // rows that share prepared x
#define SIDE   4          // panels whose sums are kept at once
#define X_ROOM (80 << 10) // bytes of prepared x

/// 32 k of a row. With weights of 4 bits, k lie in the order of their nibbles (packed.h).
typedef struct cell {
    int8_t digit[2][RECORD]; // int8 and low digits; high digits
    int32_t sum[HALVES];     // of x: of either half, if they have scales of their own; else of both
    float scale;
    int32_t unused;
} cell;

typedef enum codes { E2M1, UINT4, INT8, UINT8, NUM_CODES } codes;

typedef struct job {
    _Alignas(64) cell x[X_ROOM / sizeof(cell)]; // [record][row] of the chunk
    _Alignas(64) float acc[SIDE * MR][PANEL];   // class i32: int32_t
    _Alignas(64)
        int64_t total[SIDE * MR][PANEL]; // of chunks: class i32 where k is above MOEI_CPU_WHOLE_TOP
    _Alignas(64) float scale[HALVES][PANEL];  // of the group
    _Alignas(64) int32_t zero[HALVES][PANEL]; // zero points of the group
    moei_cpu_panels p;
    codes kind;    // of the weights
    bool int16;    // codes of x
    bool whole;    // class i32
    bool splits;   // its sums over chunks
    bool halves;   // of a record have scales of their own
    bool rounds;   // a zero point of the group is above MOEI_CPU_ZERO_TOP
    int64_t sets;  // folds of this record: 1, or 2 with halves
    int64_t block; // records whose sums become a float at once: 1, 2 or 4
} job;

/// Records whose sums become a float at once. Bytes from one to the next; their cells lie `rows`
/// from each other.
typedef struct block {
    int64_t records;
    const uint8_t *w;
    int64_t w_apart, rows;
} block;

// ---- x -----------------------------------------------------------------------------------------

// Bytes of 16 k in the order in which 4-bit codes lie: low nibbles, then high ones, 8 k at a time.
static inline int8x16_t in_order(const job *j, int8x16_t v)
{
    static const uint8_t order[16] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
    return j->kind <= UINT4 ? vqtbl1q_s8(v, vld1q_u8(order)) : v;
}

static void fill_cell(const job *j, const uint8_t *from, cell *c)
{
    for (int h = 0; h < HALVES; h++) {
        if (!j->int16) {
            const int8x16_t v = vld1q_s8((const int8_t *)from + h * HALF);
            vst1q_s8(c->digit[0] + h * HALF, in_order(j, v));
            c->sum[h] = vaddlvq_s8(v);
            continue;
        }
        const uint8x16x2_t bytes = vld2q_u8(from + 2 * h * HALF); // low, high
        const int8x16_t low = vreinterpretq_s8_u8(veorq_u8(bytes.val[0], vdupq_n_u8(0x80)));
        const int8x16_t high = vreinterpretq_s8_u8(bytes.val[1]);
        vst1q_s8(c->digit[0] + h * HALF, in_order(j, low));
        vst1q_s8(c->digit[1] + h * HALF, in_order(j, high));
        c->sum[h] = 256 * vaddlvq_s8(high) + vaddlvq_s8(low) + 128 * HALF;
    }
    if (!j->halves) {
        c->sum[0] += c->sum[1];
    }
}

// Records r0 .. r1 - 1 of the rows.
static void prepare(void *arg, int64_t r0, int64_t r1)
{
    job *j = arg;
    const int64_t i0 = j->p.i0;
    const int64_t i1 = j->p.i1;
    const moek_ggemm_args *a = &j->p.args;
    const int64_t bytes = j->int16 ? 2 * RECORD : RECORD;
    const int64_t row_bytes = a->w.k * bytes / RECORD;
    const float part = j->kind == E2M1 ? 0.5f : 1.0f;
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, j->p.e, i);
        moei_cpu_x_scales scales = {0};
        if (!j->whole) {
            scales = moei_cpu_x_scales_of(a, j->p.e, i, r0);
        }
        cell *to = j->x + (i - i0);
        for (int64_t r = r0; r < r1; r++, to += i1 - i0) {
            uint8_t tail[2 * RECORD];
            fill_cell(j, moei_cpu_x_record(row, row_bytes, r, bytes, tail), to);
            if ((r & (j->block - 1)) > 0) { // the sum of the block so far
                to->sum[0] += to[i0 - i1].sum[0];
            }
            to->scale = j->whole ? 1.0f : moei_cpu_x_scales_next(&scales) * part;
        }
    }
}

// ---- folds -------------------------------------------------------------------------------------

#if defined(__ARM_FEATURE_DOTPROD)
#define DOT(sum, w, x, lane) vdotq_laneq_s32(sum, w, x, lane)
#else
// Four products of bytes to each lane. A pair of them may be 2^15, too much for 16 bits.
static inline int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t x)
{
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(w, x));
    return vaddq_s32(sum, vpaddq_s32(low, high));
}

#define DOT(sum, w, x, lane)                                                                       \
    dot(sum, w, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), lane)))
#endif

// Outputs 4 v .. 4 v + 3 of a strip x the 4 k of half h that meet lane `lane` of 16 k of x.
static inline int8x16_t weights(codes kind, const uint8_t *strip, int64_t h, int64_t lane,
                                int64_t v)
{
    static const int8_t table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if (kind == INT8 || kind == UINT8) {
        const uint8x16_t bytes = vld1q_u8(strip + (4 * h + lane) * 64 + 16 * v);
        return vreinterpretq_s8_u8(kind == INT8 ? bytes : veorq_u8(bytes, vdupq_n_u8(0x80)));
    }
    const uint8x16_t both = vld1q_u8(strip + (2 * h + lane / 2) * 64 + 16 * v);
    const uint8x16_t nibbles = lane % 2 == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
    return kind == E2M1 ? vqtbl1q_s8(vld1q_s8(table), nibbles) : vreinterpretq_s8_u8(nibbles);
}

#define STEP_OF(lane)                                                                              \
    do {                                                                                           \
        UNROLL                                                                                     \
        for (int64_t v = 0; v < vectors; v++) {                                                    \
            const int8x16_t w = weights(kind, strip, h, lane, v0 + v);                             \
            if (digits == 2) {                                                                     \
                ones[v] = DOT(ones[v], w, vdupq_n_s8(1), lane);                                    \
            }                                                                                      \
            UNROLL                                                                                 \
            for (int64_t r = 0; r < rows; r++) {                                                   \
                UNROLL                                                                             \
                for (int64_t d = 0; d < digits; d++) {                                             \
                    sum[r][d][v] = DOT(sum[r][d][v], w, xh[r][d], lane);                           \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    } while (0)

// acc = fma(sum * s_x, s_w, acc) of four outputs.
static inline void fold_one(int32x4_t sum, float x_scale, const float *scale, float *acc)
{
    const float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(sum), x_scale);
    vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), scaled, vld1q_f32(scale)));
}

static inline void add_one(int32x4_t sum, float *acc)
{
    int32_t *to = (int32_t *)(void *)acc;
    vst1q_s32(to, vaddq_s32(vld1q_s32(to), sum));
}

// Half h of a record into sums of a strip, vectors v0 and after it.
__attribute__((always_inline)) static inline void
add_half(int64_t rows, int64_t digits, codes kind, int64_t vectors, const uint8_t *strip,
         int64_t v0, int64_t h, const cell *x, int32x4_t sum[TILE][2][4], int32x4_t ones[4])
{
    int8x16_t xh[TILE][2];
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t d = 0; d < digits; d++) {
            xh[r][d] = vld1q_s8(x[r].digit[d] + h * HALF);
        }
    }
    STEP_OF(0);
    STEP_OF(1);
    STEP_OF(2);
    STEP_OF(3);
}

__attribute__((always_inline)) static inline void
begin_sums(int64_t rows, int64_t vectors, int32x4_t sum[TILE][2][4], int32x4_t ones[4])
{
    UNROLL
    for (int64_t v = 0; v < vectors; v++) {
        ones[v] = vdupq_n_s32(0);
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            sum[r][0][v] = vdupq_n_s32(0);
            sum[r][1][v] = vdupq_n_s32(0);
        }
    }
}

// Sums of outputs from n on, with the scales and sums of x of a set, into acc.
__attribute__((always_inline)) static inline void end_sums(const job *j, int64_t rows,
                                                           int64_t digits, codes kind, bool whole,
                                                           int64_t vectors, int64_t set, int64_t n0,
                                                           const cell *x, int32x4_t sum[TILE][2][4],
                                                           int32x4_t ones[4], float (*acc)[PANEL])
{
    UNROLL
    for (int64_t v = 0; v < vectors; v++) {
        const int64_t n = n0 + LANES * v;
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            int32x4_t total = sum[r][0][v];
            if (digits == 2) {
                total = vaddq_s32(total, vshlq_n_s32(sum[r][1][v], 8));
                total = vaddq_s32(total, vshlq_n_s32(ones[v], 7));
            }
            if (kind == UINT4 || kind == UINT8) {
                total = vmlsq_n_s32(total, vld1q_s32(&j->zero[set][n]), x[r].sum[set]);
            }
            if (whole) {
                add_one(total, &acc[r][n]);
            } else {
                fold_one(total, x[r].scale, &j->scale[set][n], &acc[r][n]);
            }
        }
    }
}

// A block into the sums of a tile. Rows, digits of x, the kind and `whole` are constant wherever
// this is called.
__attribute__((always_inline)) static inline void fold(const job *j, int64_t rows, int64_t digits,
                                                       codes kind, bool whole, const block *b,
                                                       const cell *x, float (*acc)[PANEL])
{
    const int64_t vectors = rows * digits <= 4 ? 4 : 2;
    const int64_t strip_bytes = STRIP * (kind <= UINT4 ? RECORD / 2 : RECORD);
    for (int64_t at = j->p.first * 4; at < j->p.last * 4; at += vectors) { // vectors of the panel
        const uint8_t *strip = b->w + at / 4 * strip_bytes;
        const int64_t v0 = at % 4;
        int32x4_t sum[TILE][2][4];
        int32x4_t ones[4];
        if (j->halves) {
            UNROLL
            for (int64_t h = 0; h < HALVES; h++) {
                if (h == j->sets) {
                    break;
                }
                begin_sums(rows, vectors, sum, ones);
                add_half(rows, digits, kind, vectors, strip, v0, h, x, sum, ones);
                end_sums(j, rows, digits, kind, whole, vectors, h, LANES * at, x, sum, ones, acc);
            }
            continue;
        }
        begin_sums(rows, vectors, sum, ones);
        for (int64_t q = 0; q < b->records; q++) {
            UNROLL
            for (int64_t h = 0; h < HALVES; h++) {
                add_half(rows, digits, kind, vectors, strip + q * b->w_apart, v0, h,
                         x + q * b->rows, sum, ones);
            }
        }
        end_sums(j, rows, digits, kind, whole, vectors, 0, LANES * at,
                 x + (b->records - 1) * b->rows, sum, ones, acc);
    }
}

typedef void fold_fn(const job *j, const block *b, const cell *x, float (*acc)[PANEL]);

#define FOLD_FN(rows, digits, kind, whole)                                                         \
    static void fold_##rows##_##digits##_##kind##_##whole(const job *j, const block *b,            \
                                                          const cell *x, float(*acc)[PANEL])       \
    {                                                                                              \
        fold(j, rows, digits, kind, whole, b, x, acc);                                             \
    }
#define FOLD_FNS(digits, kind, whole)                                                              \
    FOLD_FN(1, digits, kind, whole)                                                                \
    FOLD_FN(2, digits, kind, whole)                                                                \
    FOLD_FN(3, digits, kind, whole)                                                                \
    FOLD_FN(4, digits, kind, whole)
#define FOLD_NAMES(digits, kind, whole)                                                            \
    {                                                                                              \
        fold_1_##digits##_##kind##_##whole, fold_2_##digits##_##kind##_##whole,                    \
            fold_3_##digits##_##kind##_##whole, fold_4_##digits##_##kind##_##whole                 \
    }
FOLD_FNS(1, E2M1, 0)
FOLD_FNS(1, UINT4, 0)
FOLD_FNS(1, INT8, 0)
FOLD_FNS(1, UINT8, 0)
FOLD_FNS(2, E2M1, 0)
FOLD_FNS(2, UINT4, 0)
FOLD_FNS(1, INT8, 1)
static fold_fn *const folds8[NUM_CODES][TILE] = {FOLD_NAMES(1, E2M1, 0), FOLD_NAMES(1, UINT4, 0),
                                                 FOLD_NAMES(1, INT8, 0), FOLD_NAMES(1, UINT8, 0)};
static fold_fn *const folds16[][TILE] = {FOLD_NAMES(2, E2M1, 0), FOLD_NAMES(2, UINT4, 0)};
static fold_fn *const folds_whole[TILE] = FOLD_NAMES(1, INT8, 1);

// ---- records -----------------------------------------------------------------------------------

// Scales of a group, what is subtracted from its codes as they are multiplied, and whether sums may
// round.
static void load_head(job *j, const uint8_t *head, int64_t width)
{
    const moei_cpu_packed *p = &j->p.packed;
    const uint8_t *zeros = moei_cpu_group_zeros(p, head, width);
    for (int64_t s = 0; s < p->sets; s++) {
        moei_load_f32(j->p.args.w.scale_dtype, head + s * width * p->scale, 0, width, j->scale[s]);
    }
    if (zeros != NULL) {
        const int32_t less = j->kind == UINT8 ? 128 : 0;
        const uint8_t top = moei_cpu_load_zeros(p, zeros, width, less, j->zero);
        j->rounds = j->int16 && top > MOEI_CPU_ZERO_TOP;
    }
}

// Records r0 .. r1 - 1 of a panel into the sums of the rows.
static void run_records(job *j, int64_t panel, int64_t r0, int64_t r1, float (*acc)[PANEL])
{
    fold_fn *const *fns = j->whole ? folds_whole : j->int16 ? folds16[j->kind] : folds8[j->kind];
    const int64_t rows = j->p.i1 - j->p.i0;
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    const cell *x = j->x;
    const uint8_t *loaded = NULL; // the head whose scales are there
    moei_cpu_walk walk;
    const uint8_t *head = moei_cpu_walk_to(&walk, &j->p.packed, j->p.expert, panel, r0);
    for (int64_t r = r0; r < r1; r += j->block, x += j->block * rows) {
        const uint8_t *record = moei_cpu_walk_on(&walk, &head);
        const int64_t apart = walk.width * walk.record;
        const block b = {moei_i64_min(j->block, r1 - r), record, apart, rows};
        for (int64_t q = 1; q < b.records; q++) {
            (void)moei_cpu_walk_on(&walk, &head); // of the same group
        }
        moei_cpu_ask_ahead(record, b.records * apart);
        if (head != loaded) {
            load_head(j, head, walk.width);
            loaded = head;
        }
        j->sets = j->halves && j->p.args.w.k - r * RECORD > HALF ? HALVES : 1;
        if (j->rounds) {
            moei_cpu_chain_record(&j->p.args, j->p.e, j->p.i0, j->p.i1, record, r,
                                  j->halves ? HALF : RECORD, j->p.first * STRIP, j->p.last * STRIP,
                                  j->zero, j->scale, acc);
            continue;
        }
        for (int64_t t = 0; t < tiles; t++) { // as many rows in every tile, but for one
            const int64_t from = rows * t / tiles;
            fns[rows * (t + 1) / tiles - from - 1](j, &b, x + from, acc + from);
        }
    }
}

// ---- products ----------------------------------------------------------------------------------

static void begin(void *arg)
{
    job *j = arg;
    const int64_t cells = X_ROOM / (int64_t)sizeof(cell);
    j->p.side = SIDE;
    const int64_t depth = cells / (j->p.i1 - j->p.i0) / j->block * j->block; // whole blocks
    j->p.depth = moei_i64_min(depth, j->p.packed.records);
    j->p.acc = j->acc;
}

static void multiply(void *arg, int64_t panel, int64_t r0, int64_t r1, int64_t at)
{
    job *j = arg;
    run_records(j, panel, r0, r1, j->acc + at);
    if (j->splits) {
        moei_cpu_whole_part(j->p.i1 - j->p.i0, r0 == 0, j->acc + at, j->total + at);
    }
}

static void end(void *arg, int64_t at)
{
    job *j = arg;
    if (j->whole) {
        moei_cpu_whole_end(j->p.i1 - j->p.i0, j->acc + at, j->splits ? j->total + at : NULL);
    }
}

static const moei_cpu_panels_ops ops = {MR, begin, prepare, multiply, end};

static codes kind_of(moe_dtype elem)
{
    switch (elem) {
    case MOE_E2M1:
        return E2M1;
    case MOE_UINT4:
        return UINT4;
    case MOE_I8:
        return INT8;
    default:
        return UINT8;
    }
}

// length: k of a block of the class; 0: all, as integers.
static void run(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                int64_t n1, int64_t length)
{
    job j;
    const moei_format_info *format = args->w.format;
    moei_cpu_panels_open(&j.p, args, e, n0, n1);
    j.kind = kind_of(format->elem);
    j.int16 = args->x.dtype == MOE_I16;
    j.whole = length == 0;
    j.splits = j.whole && args->w.k > MOEI_CPU_WHOLE_TOP;
    j.halves = length == HALF;
    j.block = moei_i64_max(length / RECORD, 1);
    j.rounds = false;
    for (int64_t s = 0; s < HALVES; s++) {
        for (int64_t n = 0; n < PANEL; n++) {
            j.scale[s][n] = 1.0f;
            j.zero[s][n] = format->zero_point - (j.kind == UINT8 ? 128 : 0);
        }
    }
    moei_cpu_panels_run(&j.p, &ops, &j, i0, i1);
}

#define INTS_KERNEL(x, variant, length)                                                            \
    moek_ggemm_fn NAME(x, variant);                                                                \
    void NAME(x, variant)(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,          \
                          int64_t n0, int64_t n1)                                                  \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, length);                                                      \
    }
INTS_KERNEL(i8, b16, 16)
INTS_KERNEL(i8, b32, 32)
INTS_KERNEL(i8, b64, 64)
INTS_KERNEL(i8, b128, 128)
INTS_KERNEL(i8, i32, 0)
INTS_KERNEL(i16, b16, 16)
INTS_KERNEL(i16, b32, 32)
