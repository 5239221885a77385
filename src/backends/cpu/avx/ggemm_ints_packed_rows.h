// SPDX-License-Identifier: Apache-2.0
// Loops over the records of a panel. Up to FEW rows decode weights in registers, and so do all
// tiles of digits with VNNI; else, for more rows, a record is decoded to a first-level cache once.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_ROWS_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_ROWS_H

#include "backends/cpu/avx/ggemm_ints_packed.h"

__attribute__((always_inline)) static inline int64_t cell_bytes(int64_t digits)
{
    return (int64_t)(digits == 1 ? sizeof(cell8) : sizeof(cell16));
}

// A record whose scales are e8m0 becomes floats where they are used, if they are exponents. Returns
// false if they are not.
__attribute__((always_inline)) static inline bool fold_codes(job *j, digit_shape shape, span *s,
                                                             float (*acc)[PANEL])
{
    const uint8_t *head = s->walk.left > 0 ? s->head : s->walk.at;
    const int64_t width = s->walk.width;
    const bool fits = width == PANEL ? all_exponents(head, PANEL) : all_exponents(head, width);
    if (!fits) {
        return false;
    }
    const uint8_t *w = moei_cpu_walk_on(&s->walk, &s->head);
    moei_cpu_ask_ahead(head, width);
    fold_to to = fold_to_of(j, acc);
    to.sets = 1;
    to.codes = head;
    shape.codes = true;
    fold_digits(shape, to, w, s->x, NULL);
    return true;
}

// Few rows: weights are decoded in registers. As many vectors side by side as registers hold sums
// for: loads of x are shared by them.
__attribute__((always_inline)) static inline void
few_rows(job *j, span s, int64_t rows, int64_t digits, bool e2m1, bool halves, float (*acc)[PANEL])
{
    const digit_shape shape = {.rows = rows,
                               .vectors = digits == 1 || rows == 1 ? VECTORS : 1,
                               .digits = digits,
                               .cell = cell_bytes(digits),
                               .e2m1 = e2m1,
                               .halves = halves};
    const bool codes =
        e2m1 && !halves && j->p.args.w.scale_dtype == MOE_E8M0 && j->p.packed.sets > 0;
    for (; s.r < s.end; s.r++, s.x += rows * shape.cell) {
        if (codes && fold_codes(j, shape, &s, acc)) {
            continue;
        }
        const uint8_t *w = next_record(j, &s, halves);
        if (digits == 2 && !e2m1 && j->rounds) {
            chain_as_written(j, w, &s, acc);
        } else {
            fold_digits(shape, fold_to_of(j, acc), w, s.x, NULL);
        }
    }
}

__attribute__((always_inline)) static inline void few_rows_of_bytes(job *j, span s, int64_t rows,
                                                                    bool is_signed, bool halves,
                                                                    bool whole, float (*acc)[PANEL])
{
    for (; s.r < s.end; s.r++, s.x += rows * j->cell) {
        const uint8_t *w = next_record(j, &s, halves);
        fold_bytes(rows, is_signed, halves, whole, fold_to_of(j, acc), w, s.x);
    }
}

#define FEW_FN(rows, digits, e2m1, halves)                                                         \
    static void few_##rows##_##digits##_##e2m1##_##halves(job *j, span s, float(*acc)[PANEL])      \
    {                                                                                              \
        few_rows(j, s, rows, digits, e2m1, halves, acc);                                           \
    }
#define FEW_ROWS(digits, e2m1, halves)                                                             \
    FEW_FN(1, digits, e2m1, halves)                                                                \
    FEW_FN(2, digits, e2m1, halves)                                                                \
    FEW_FN(3, digits, e2m1, halves)                                                                \
    FEW_FN(4, digits, e2m1, halves)
#define FEW_NAMES(digits, e2m1, halves)                                                            \
    {                                                                                              \
        few_1_##digits##_##e2m1##_##halves, few_2_##digits##_##e2m1##_##halves,                    \
            few_3_##digits##_##e2m1##_##halves, few_4_##digits##_##e2m1##_##halves                 \
    }
FEW_ROWS(1, 0, 0)
FEW_ROWS(1, 0, 1)
FEW_ROWS(1, 1, 0)
FEW_ROWS(1, 1, 1)
FEW_ROWS(2, 0, 0)
FEW_ROWS(2, 0, 1)
FEW_ROWS(2, 1, 0)
FEW_ROWS(2, 1, 1)
static loop_fn *const few_digits[2][2][2][FEW] = {
    {{FEW_NAMES(1, 0, 0), FEW_NAMES(1, 0, 1)}, {FEW_NAMES(1, 1, 0), FEW_NAMES(1, 1, 1)}},
    {{FEW_NAMES(2, 0, 0), FEW_NAMES(2, 0, 1)}, {FEW_NAMES(2, 1, 0), FEW_NAMES(2, 1, 1)}}};

#define BYTES_FN(rows, is_signed, halves, whole)                                                   \
    static void bytes_##rows##_##is_signed##_##halves##_##whole(job *j, span s,                    \
                                                                float(*acc)[PANEL])                \
    {                                                                                              \
        few_rows_of_bytes(j, s, rows, is_signed, halves, whole, acc);                              \
    }
#define BYTES_ROWS(is_signed, halves, whole)                                                       \
    BYTES_FN(1, is_signed, halves, whole)                                                          \
    BYTES_FN(2, is_signed, halves, whole)                                                          \
    BYTES_FN(3, is_signed, halves, whole)                                                          \
    BYTES_FN(4, is_signed, halves, whole)
#define BYTES_NAMES(is_signed, halves, whole)                                                      \
    {                                                                                              \
        bytes_1_##is_signed##_##halves##_##whole, bytes_2_##is_signed##_##halves##_##whole,        \
            bytes_3_##is_signed##_##halves##_##whole, bytes_4_##is_signed##_##halves##_##whole     \
    }
BYTES_ROWS(0, 0, 0)
BYTES_ROWS(0, 1, 0)
BYTES_ROWS(1, 0, 0)
BYTES_ROWS(1, 1, 0)
BYTES_ROWS(1, 0, 1)
static loop_fn *const few_bytes[2][2][FEW] = {{BYTES_NAMES(0, 0, 0), BYTES_NAMES(0, 1, 0)},
                                              {BYTES_NAMES(1, 0, 0), BYTES_NAMES(1, 1, 0)}};
static loop_fn *const few_bytes_whole[FEW] = BYTES_NAMES(1, 0, 1);

/// Folds a record, decoded or BYTES, into the sums of so many rows.
typedef void fold_fn(const job *j, const uint8_t *w, const void *x, float (*acc)[PANEL]);

// Decoding is cheaper than a way through memory where a vector holds a strip.
__attribute__((always_inline)) static inline void tile_of_digits(const job *j, int64_t rows,
                                                                 int64_t digits, bool e2m1,
                                                                 bool halves, const uint8_t *w,
                                                                 const void *x, float (*acc)[PANEL])
{
    const digit_shape shape = {.rows = rows,
                               .vectors = VECTORS,
                               .digits = digits,
                               .cell = cell_bytes(digits),
                               .e2m1 = e2m1,
                               .halves = halves,
                               .decoded = !DOTS};
    fold_digits(shape, fold_to_of(j, acc), w, x, NULL);
}

#define TILE_FN(rows, digits, e2m1, halves)                                                        \
    static void tile_##rows##_##digits##_##e2m1##_##halves(const job *j, const uint8_t *w,         \
                                                           const void *x, float(*acc)[PANEL])      \
    {                                                                                              \
        tile_of_digits(j, rows, digits, e2m1, halves, w, x, acc);                                  \
    }
#define TILE_ROWS(digits, e2m1, halves)                                                            \
    TILE_FN(1, digits, e2m1, halves)                                                               \
    TILE_FN(2, digits, e2m1, halves)                                                               \
    TILE_FN(3, digits, e2m1, halves)                                                               \
    TILE_FN(4, digits, e2m1, halves)
#define TILE_NAMES(digits, e2m1, halves)                                                           \
    {                                                                                              \
        tile_1_##digits##_##e2m1##_##halves, tile_2_##digits##_##e2m1##_##halves,                  \
            tile_3_##digits##_##e2m1##_##halves, tile_4_##digits##_##e2m1##_##halves               \
    }
TILE_ROWS(1, 0, 0)
TILE_ROWS(1, 0, 1)
TILE_ROWS(1, 1, 0)
TILE_ROWS(1, 1, 1)
static fold_fn *const digits8_tiles[2][2][TILE] = {{TILE_NAMES(1, 0, 0), TILE_NAMES(1, 0, 1)},
                                                   {TILE_NAMES(1, 1, 0), TILE_NAMES(1, 1, 1)}};

#define PAIRS_FN(rows, halves, whole)                                                              \
    static void pairs_##rows##_##halves##_##whole(const job *j, const uint8_t *w, const void *x,   \
                                                  float(*acc)[PANEL])                              \
    {                                                                                              \
        fold_pairs(rows, halves, whole, fold_to_of(j, acc), w, x);                                 \
    }
#define PAIRS_ROWS(halves, whole)                                                                  \
    PAIRS_FN(1, halves, whole)                                                                     \
    PAIRS_FN(2, halves, whole)                                                                     \
    PAIRS_FN(3, halves, whole)                                                                     \
    PAIRS_FN(4, halves, whole)
#define PAIRS_NAMES(halves, whole)                                                                 \
    {                                                                                              \
        pairs_1_##halves##_##whole, pairs_2_##halves##_##whole, pairs_3_##halves##_##whole,        \
            pairs_4_##halves##_##whole                                                             \
    }
PAIRS_ROWS(0, 0)
PAIRS_ROWS(1, 0)
static fold_fn *const pairs_tiles[2][TILE] = {PAIRS_NAMES(0, 0), PAIRS_NAMES(1, 0)};

#if LANES == 16
#define BYTES_TILE_FN(rows, is_signed, halves, whole)                                              \
    static void bytes_tile_##rows##_##is_signed##_##halves##_##whole(                              \
        const job *j, const uint8_t *w, const void *x, float(*acc)[PANEL])                         \
    {                                                                                              \
        fold_bytes(rows, is_signed, halves, whole, fold_to_of(j, acc), w, x);                      \
    }
#define BYTES_TILES(is_signed, halves, whole)                                                      \
    BYTES_TILE_FN(1, is_signed, halves, whole)                                                     \
    BYTES_TILE_FN(2, is_signed, halves, whole)                                                     \
    BYTES_TILE_FN(3, is_signed, halves, whole)                                                     \
    BYTES_TILE_FN(4, is_signed, halves, whole)
#define BYTES_TILE_NAMES(is_signed, halves, whole)                                                 \
    {                                                                                              \
        bytes_tile_1_##is_signed##_##halves##_##whole,                                             \
            bytes_tile_2_##is_signed##_##halves##_##whole,                                         \
            bytes_tile_3_##is_signed##_##halves##_##whole,                                         \
            bytes_tile_4_##is_signed##_##halves##_##whole                                          \
    }
TILE_ROWS(2, 0, 0)
TILE_ROWS(2, 0, 1)
TILE_ROWS(2, 1, 0)
TILE_ROWS(2, 1, 1)
static fold_fn *const digits16_tiles[2][2][TILE] = {{TILE_NAMES(2, 0, 0), TILE_NAMES(2, 0, 1)},
                                                    {TILE_NAMES(2, 1, 0), TILE_NAMES(2, 1, 1)}};

BYTES_TILES(0, 0, 0)
BYTES_TILES(0, 1, 0)
BYTES_TILES(1, 0, 0)
BYTES_TILES(1, 1, 0)
BYTES_TILES(1, 0, 1)
static fold_fn *const bytes_tiles[2][2][TILE] = {
    {BYTES_TILE_NAMES(0, 0, 0), BYTES_TILE_NAMES(0, 1, 0)},
    {BYTES_TILE_NAMES(1, 0, 0), BYTES_TILE_NAMES(1, 1, 0)}};
static fold_fn *const whole_tiles[TILE] = BYTES_TILE_NAMES(1, 0, 1);
#else
PAIRS_ROWS(0, 1)
static fold_fn *const whole_tiles[TILE] = PAIRS_NAMES(0, 1);
#endif

static fold_fn *const *tiles_of(const job *j)
{
    if (j->whole) {
        return whole_tiles;
    }
#if LANES == 16
    if (j->way == BYTES) {
        return bytes_tiles[j->p.args.w.format->elem == MOE_I8][j->halves];
    }
    if (j->way == DIGITS16) {
        return digits16_tiles[j->e2m1][j->halves];
    }
#endif
    return j->way == PAIRS ? pairs_tiles[j->halves] : digits8_tiles[j->e2m1][j->halves];
}

// What tiles read of a record.
static const uint8_t *decode(job *j, const uint8_t *record)
{
    if (j->way == PAIRS) {
        decode_words(j->p.args.w.format->elem, j->halves, fold_to_of(j, NULL), record, j->w);
        return j->w;
    }
    if (!DOTS) {
        decode_digits(j, record);
        return j->w;
    }
    return record;
}

// Many rows: a record is decoded once, then multiplied tile by tile.
static void many_rows(job *j, span s, float (*acc)[PANEL])
{
    fold_fn *const *folds = tiles_of(j);
    const int64_t rows = j->p.i1 - j->p.i0;
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    int64_t begin[MR / TILE + 1]; // as many rows in every tile, but for one
    for (int64_t t = 0; t <= tiles; t++) {
        begin[t] = rows * t / tiles;
    }
    for (; s.r < s.end; s.r++, s.x += rows * j->cell) {
        const uint8_t *w = next_record(j, &s, j->halves);
        if (j->rounds) {
            chain_as_written(j, w, &s, acc);
            continue;
        }
        w = decode(j, w);
        for (int64_t t = 0; t < tiles; t++) {
            folds[begin[t + 1] - begin[t] - 1](j, w, s.x + begin[t] * j->cell, acc + begin[t]);
        }
    }
}

static loop_fn *loop_of(const job *j, int64_t rows)
{
    if (rows > FEW) {
        return many_rows;
    }
    if (j->whole) {
        return few_bytes_whole[rows - 1];
    }
    if (j->p.packed.unit_k == 4) {
        return few_bytes[j->p.args.w.format->elem == MOE_I8][j->halves][rows - 1];
    }
    if (j->way == PAIRS) {
        return many_rows;
    }
    return few_digits[j->way == DIGITS16][j->e2m1][j->halves][rows - 1];
}

#endif
