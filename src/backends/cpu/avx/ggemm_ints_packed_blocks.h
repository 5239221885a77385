// SPDX-License-Identifier: Apache-2.0
// Blocks of two or four records that share their scales, classes fma_b64 and fma_b128: int8 codes
// of x with a scale per 128, and weights whose scales change no sooner than the class has it. The
// sums of all records are one integer, which becomes a float once.
//
// Sums of 4-bit weights, unsigned, keep 16 bits over a record: 16 * 15 * 128 = 30720. The zero
// point times the sum of x is subtracted at the end of the block, whose last cells have that sum of
// all of it.
//
// Per 8 outputs x 32 k, vector operations without loads: 4 bits 12 for weights and 17 for each row,
// 8 bits 24 and 32; VNNI, per 16 outputs: 12, 8; 8 bits 8 for weights of int8 (uint8: 0), 8. And 5
// for each row and block.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_BLOCKS_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_BLOCKS_H

#include "backends/cpu/avx/ggemm_ints_packed.h"

#define WIDEST 4 // strips side by side

/// Weights as they lie, or, many rows of 8 bits without VNNI, decoded to words less zero points.
typedef enum source { NIBBLES, INT8, UINT8, WORDS } source;

/// Records that share their scales. Bytes from one to the next: of weights, of the cells of x.
typedef struct block {
    int64_t records;
    const uint8_t *w;
    int64_t w_apart, x_apart;
} block;

/// What is constant wherever a block is folded. Strips side by side, and two sums of each output
/// where one row has no more, keep enough of them in flight; of 4-bit weights without VNNI, whose
/// sums take two registers, a tile of many rows is half a strip.
typedef struct block_shape {
    int64_t rows;
    source from;
    int64_t strips;
    int64_t vectors; // of a strip
    int64_t turns;   // sums of an output, which lines take in turns: 1 or 2
} block_shape;

/// [turn][strip][row][vector]
typedef struct block_sums {
    veci of[2][WIDEST][TILE][VECTORS];
} block_sums;

// Bytes of a strip of a record.
__attribute__((always_inline)) static inline int64_t strip_bytes(source from)
{
    return STRIP * RECORD / 2 * (from == NIBBLES ? 1 : from == WORDS ? 4 : 2);
}

// 8 k of a strip. begins: sums of 16 bits.
__attribute__((always_inline)) static inline void add_line_of_nibbles(block_shape shape,
                                                                      bool begins, const uint8_t *w,
                                                                      const uint8_t *x,
                                                                      veci sum[TILE][VECTORS])
{
    UNROLL
    for (int64_t v = 0; v < shape.vectors; v++) {
        veci bytes[2];
        decode_bytes(false, veci_load(w + v * VECTOR), bytes);
        UNROLL
        for (int64_t r = 0; r < shape.rows; r++) {
            sum[r][v] = add_bytes(begins, sum[r][v], bytes, x + r * (int64_t)sizeof(cell8));
        }
    }
}

__attribute__((always_inline)) static inline void add_nibbles(block_shape shape, const uint8_t *w,
                                                              const uint8_t *x, block_sums *sums)
{
    veci part[WIDEST][TILE][VECTORS]; // without VNNI: 16 bits wide
    UNROLL
    for (int64_t u = 0; u < RECORD / 8; u++) {
        UNROLL
        for (int64_t s = 0; s < shape.strips; s++) {
            const uint8_t *line = w + s * strip_bytes(NIBBLES) + u * 64;
            moei_cpu_ask_ahead(line, 64);
            add_line_of_nibbles(shape, !DOTS && u == 0, line, x + 8 * u,
                                DOTS ? sums->of[u % shape.turns][s] : part[s]);
        }
    }
    UNROLL
    for (int64_t s = 0; s < shape.strips && !DOTS; s++) {
        UNROLL
        for (int64_t r = 0; r < shape.rows; r++) {
            UNROLL
            for (int64_t v = 0; v < shape.vectors; v++) {
                veci *sum = &sums->of[0][s][r][v];
                *sum = V(add_epi32)(*sum, sum_of_rest(part[s][r][v]));
            }
        }
    }
}

// A record into sums of 32 bits.
__attribute__((always_inline)) static inline void add_record(block_shape shape, const uint8_t *w,
                                                             const uint8_t *x, block_sums *sums)
{
    if (shape.from == NIBBLES) {
        add_nibbles(shape, w, x, sums);
    } else if (shape.from == WORDS) {
        for (int64_t step = 0; step < RECORD / 2; step++) {
            add_step_of_words(shape.rows, w, step, x, sums->of[0][0]);
        }
    } else {
        UNROLL
        for (int64_t line = 0; line < RECORD / 4; line++) {
            UNROLL
            for (int64_t s = 0; s < shape.strips; s++) {
                const uint8_t *strip = w + s * strip_bytes(shape.from);
                moei_cpu_ask_ahead(strip + line * 64, 64);
                add_line_of_bytes(shape.rows, shape.from == INT8, strip, line, x,
                                  sums->of[line % shape.turns][s]);
            }
        }
    }
}

// The sum of a block of a row, whose last cell is `cell`, into acc.
__attribute__((always_inline)) static inline void
end_block(source from, const fold_to *to, veci sum, const uint8_t *cell, int64_t n, float *acc)
{
    const bool bytes = from == NIBBLES || DOTS;
    const uint8_t *scale = cell + (bytes ? offsetof(cell8, scale) : offsetof(cell16, scale));
    const uint8_t *total = cell + (bytes ? offsetof(cell8, sum) : offsetof(cell16, sum));
    if (from != WORDS && (from != INT8 || DOTS)) {
        sum = V(sub_epi32)(sum, V(mullo_epi32)(dword_of(total), veci_load(&to->zero[0][n])));
    }
    fold_one(sum, (const float *)(const void *)scale, V(load_ps)(&to->scale[0][n]), &acc[n]);
}

// Outputs from n on, as many as the shape has.
__attribute__((always_inline)) static inline void
fold_outputs(block_shape shape, const fold_to *to, const block *b, const uint8_t *x, int64_t n)
{
    const int64_t cell = (int64_t)(shape.from == NIBBLES || DOTS ? sizeof(cell8) : sizeof(cell16));
    const uint8_t *w = b->w + n / STRIP * strip_bytes(shape.from) + n % STRIP / LANES * VECTOR;
    const uint8_t *last = x + (b->records - 1) * b->x_apart;
    block_sums sums;
    UNROLL
    for (int64_t t = 0; t < shape.turns; t++) {
        UNROLL
        for (int64_t s = 0; s < shape.strips; s++) {
            UNROLL
            for (int64_t r = 0; r < shape.rows; r++) {
                UNROLL
                for (int64_t v = 0; v < shape.vectors; v++) {
                    sums.of[t][s][r][v] = V(set1_epi32)(0);
                }
            }
        }
    }
    for (int64_t q = 0; q < b->records; q++) {
        add_record(shape, w + q * b->w_apart, x + q * b->x_apart, &sums);
    }
    UNROLL
    for (int64_t s = 0; s < shape.strips; s++) {
        UNROLL
        for (int64_t r = 0; r < shape.rows; r++) {
            UNROLL
            for (int64_t v = 0; v < shape.vectors; v++) {
                const veci sum = sums.of[0][s][r][v];
                end_block(shape.from, to,
                          shape.turns == 1 ? sum : V(add_epi32)(sum, sums.of[1][s][r][v]),
                          last + r * cell, n + s * STRIP + v * LANES, to->acc[r]);
            }
        }
    }
}

__attribute__((always_inline)) static inline block_shape shape_of(int64_t rows, source from)
{
    const bool halves = from == NIBBLES && rows > 2;
    return (block_shape){.rows = rows,
                         .from = from,
                         .strips = DOTS                           ? WIDEST
                                   : from == NIBBLES && rows == 1 ? 2
                                                                  : 1,
                         .vectors = halves && !DOTS ? 1 : VECTORS,
                         .turns = DOTS && rows == 1 ? 2 : 1};
}

// x: the cells of the first record of the block.
__attribute__((always_inline)) static inline void
fold_block(int64_t rows, source from, const fold_to *to, const block *b, const uint8_t *x)
{
    const block_shape wide = shape_of(rows, from);
    block_shape narrow = wide;
    narrow.strips = 1;
    const int64_t end = to->last * STRIP;
    int64_t n = to->first * STRIP;
    for (; wide.strips > 1 && n + wide.strips * STRIP <= end; n += wide.strips * STRIP) {
        fold_outputs(wide, to, b, x, n);
    }
    for (; n < end; n += narrow.vectors * LANES) {
        fold_outputs(narrow, to, b, x, n);
    }
}

typedef void fold_block_fn(const fold_to *to, const block *b, const uint8_t *x);

#define BLOCK_FN(rows, from)                                                                       \
    static void block_##rows##_##from(const fold_to *to, const block *b, const uint8_t *x)         \
    {                                                                                              \
        fold_block(rows, from, to, b, x);                                                          \
    }
#define BLOCK_FNS(from) BLOCK_FN(1, from) BLOCK_FN(2, from) BLOCK_FN(3, from) BLOCK_FN(4, from)
#define BLOCK_NAMES(from)                                                                          \
    {                                                                                              \
        block_1_##from, block_2_##from, block_3_##from, block_4_##from                             \
    }
BLOCK_FNS(NIBBLES)
BLOCK_FNS(INT8)
BLOCK_FNS(UINT8)
#if DOTS
static fold_block_fn *const block_fns[][TILE] = {BLOCK_NAMES(NIBBLES), BLOCK_NAMES(INT8),
                                                 BLOCK_NAMES(UINT8)};
#else
BLOCK_FNS(WORDS)
static fold_block_fn *const block_fns[][TILE] = {BLOCK_NAMES(NIBBLES), BLOCK_NAMES(INT8),
                                                 BLOCK_NAMES(UINT8), BLOCK_NAMES(WORDS)};
#endif

static source source_of(const job *j, int64_t rows)
{
    switch (j->p.args.w.format->elem) {
    case MOE_I8:
        return DOTS || rows <= FEW ? INT8 : WORDS;
    case MOE_U8:
        return DOTS || rows <= FEW ? UINT8 : WORDS;
    default:
        return NIBBLES;
    }
}

// The next block. Where it is decoded, it is so in j->w.
static inline block next_block(job *j, span *s, source from, int64_t rows)
{
    block b = {.records = moei_i64_min(j->block, s->end - s->r), .x_apart = rows * j->cell};
    b.w = next_record(j, s, false);
    b.w_apart = s->walk.width * s->walk.record;
    s->walk.at += (b.records - 1) * b.w_apart; // the others are of the same group
    s->walk.left -= b.records - 1;
    s->r += b.records;
    s->x += b.records * b.x_apart;
    if (from == WORDS) {
        for (int64_t q = 0; q < b.records; q++) {
            decode_words(j->p.args.w.format->elem, false, fold_to_of(j, NULL), b.w + q * b.w_apart,
                         j->w + q * WORD_BYTES);
        }
        b.w = j->w;
        b.w_apart = WORD_BYTES;
    }
    return b;
}

// Folds blocks into the sums of any number of rows, tile by tile.
static void rows_of_blocks(job *j, span s, float (*acc)[PANEL])
{
    const int64_t rows = j->p.i1 - j->p.i0;
    const source from = source_of(j, rows);
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    while (s.r < s.end) {
        const uint8_t *x = s.x;
        const block b = next_block(j, &s, from, rows);
        for (int64_t t = 0; t < tiles; t++) { // as many rows in every tile, but for one
            const int64_t row = rows * t / tiles;
            const int64_t count = rows * (t + 1) / tiles - row;
            const fold_to to = fold_to_of(j, acc + row);
            block_fns[from][count - 1](&to, &b, x + row * j->cell);
        }
    }
}

#endif
