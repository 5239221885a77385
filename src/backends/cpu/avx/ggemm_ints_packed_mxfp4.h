// SPDX-License-Identifier: Apache-2.0
// Int8 times MXFP4, whole panels. Scales of both are powers of two, so their product is one,
// exactly, and acc = fma(sum, s_x s_w, acc) has the bits of fma(sum * s_x, s_w, acc): sum * s_x
// does not round either. An exponent is the sum of two, in bytes (one row) or in words: one
// multiplication less for each vector, and what ends a sum is shorter.
//
// Exponents must be in the middle of their range, 2^-63 to 2^63 or so, so that nothing is subnormal
// or overflows; records where they are not go the way of all others (_rows.h).
//
// Up to TALL rows are one loop, which decodes weights in registers. More rows are tiles, record by
// record: with VNNI such as these, else of SHORT whose weights are decoded once.
//
// Per 16 outputs x 32 k, vector operations with AVX2: of one row 82.5, of more 44 and 40 for each
// row.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_MXFP4_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_MXFP4_H

#include "backends/cpu/avx/ggemm_ints_packed.h"

#define TALL    8 // rows that share weights decoded in registers
#define SHORT   4 // of a tile of weights that are decoded
#define ABREAST 4 // vectors of outputs side by side, at most

#define CODE_BYTES (STRIP * RECORD / 2) // of a strip

/// What is constant wherever a tile is multiplied.
typedef struct mxfp4_shape {
    int64_t rows;
    bool decoded; // weights are bytes, as decode_digits leaves them
} mxfp4_shape;

/// [row][vector]
typedef struct mxfp4_sums {
    veci of[TALL][ABREAST];
} mxfp4_sums;

// Of one row, VNNI computes little for a line.
__attribute__((always_inline)) static inline void ask_mxfp4(int64_t rows, const uint8_t *from,
                                                            int64_t bytes)
{
    if (DOTS && rows == 1) {
        moei_cpu_ask_ahead_twice(from, bytes);
    } else {
        moei_cpu_ask_ahead(from, bytes);
    }
}

// Vectors side by side share loads of x: as many as registers hold sums for.
__attribute__((always_inline)) static inline int64_t abreast(int64_t rows)
{
    if (LANES == 16) {
        return rows <= 2 ? 4 : 2;
    }
    return rows == 1 ? 4 : rows <= SHORT ? 2 : 1;
}

// Bytes of 8 k of a vector of outputs.
__attribute__((always_inline)) static inline void
load_bytes(mxfp4_shape shape, const uint8_t *w, int64_t vector, int64_t line, veci bytes[2])
{
    if (shape.decoded) {
        const uint8_t *at = w + vector * LANES * RECORD + line * 2 * VECTOR;
        bytes[0] = veci_load(at);
        bytes[1] = veci_load(at + VECTOR);
        return;
    }
    const uint8_t *strip = w + vector / VECTORS * CODE_BYTES + line * MOEI_CPU_LINE;
    if (vector % VECTORS == 0) {
        ask_mxfp4(shape.rows, strip, MOEI_CPU_LINE);
    }
    decode_bytes(true, veci_load(strip + vector % VECTORS * VECTOR), bytes);
}

// Sums of pairs of bytes, one product after the other: 1 to 3 % faster so than by twos.
static inline veci add_in_turn(veci sum, const veci bytes[2], const uint8_t *x)
{
#if DOTS
    return add_bytes(false, sum, bytes, x);
#else
    sum = pinned(V(add_epi16)(sum, V(maddubs_epi16)(bytes[0], dword_of(x))));
    return pinned(V(add_epi16)(sum, V(maddubs_epi16)(bytes[1], dword_of(x + 4))));
#endif
}

// 8 k of vectors side by side. Sums begin with what is to be subtracted.
__attribute__((always_inline)) static inline void add_mxfp4(mxfp4_shape shape, const uint8_t *w,
                                                            int64_t vector, int64_t line,
                                                            const cell8 *x, mxfp4_sums *sums)
{
    veci bytes[ABREAST][2];
    UNROLL
    for (int64_t v = 0; v < abreast(shape.rows); v++) {
        load_bytes(shape, w, vector + v, line, bytes[v]);
    }
    UNROLL
    for (int64_t r = 0; r < shape.rows; r++) {
        const uint8_t *digits = (const uint8_t *)x[r].digit[0] + line * 8;
        UNROLL
        for (int64_t v = 0; v < abreast(shape.rows); v++) {
            veci *sum = &sums->of[r][v];
            *sum = add_in_turn(line == 0 ? dword_of(&x[r].sum[0]) : *sum, bytes[v], digits);
        }
    }
}

// Bytes to the bits of exponents; is_signed: they are yet to meet those of x.
__attribute__((always_inline)) static inline veci exponents_of(bool is_signed, const uint8_t *from)
{
#if LANES == 16
    const __m128i codes = load_16(from);
    const veci wide = is_signed ? _mm512_cvtepi8_epi32(codes) : _mm512_cvtepu8_epi32(codes);
#else
    const __m128i codes = load_8(from);
    const veci wide = is_signed ? _mm256_cvtepi8_epi32(codes) : _mm256_cvtepu8_epi32(codes);
#endif
    return shift_left(wide, 23);
}

__attribute__((always_inline)) static inline void
end_mxfp4(mxfp4_shape shape, const uint8_t *exponents, int64_t vector, const cell8 *x,
          const mxfp4_sums *sums, float (*acc)[PANEL])
{
    UNROLL
    for (int64_t v = 0; v < abreast(shape.rows); v++) {
        const int64_t n = (vector + v) * LANES;
        const veci of_w = exponents_of(shape.rows > 1, exponents + n);
        UNROLL
        for (int64_t r = 0; r < shape.rows; r++) {
            const veci scale = shape.rows > 1 ? V(add_epi32)(of_w, dword_of(&x[r].scale)) : of_w;
            const vecf sum = V(cvtepi32_ps)(sum_of_digits(1, &sums->of[r][v]));
            const vecf before = V(load_ps)(&acc[r][n]);
            V(store_ps)(&acc[r][n], V(fmadd_ps)(sum, as_floats(scale), before));
        }
    }
}

// A record times some rows. exponents: see stage_exponents.
__attribute__((always_inline)) static inline void fold_mxfp4(mxfp4_shape shape, const uint8_t *w,
                                                             const uint8_t *exponents,
                                                             const cell8 *x, float (*acc)[PANEL])
{
    UNROLL
    for (int64_t vector = 0; vector < PANEL / LANES; vector += abreast(shape.rows)) {
        mxfp4_sums sums;
        UNROLL
        for (int64_t line = 0; line < RECORD / 8; line++) {
            add_mxfp4(shape, w, vector, line, x, &sums);
        }
        end_mxfp4(shape, exponents, vector, x, &sums, acc);
    }
}

typedef void mxfp4_fn(const uint8_t *w, const uint8_t *exponents, const cell8 *x,
                      float (*acc)[PANEL]);

#define MXFP4_FN(rows, decoded)                                                                    \
    static void mxfp4_##rows##_##decoded(const uint8_t *w, const uint8_t *exponents,               \
                                         const cell8 *x, float(*acc)[PANEL])                       \
    {                                                                                              \
        fold_mxfp4((mxfp4_shape){rows, decoded}, w, exponents, x, acc);                            \
    }
#if DOTS
MXFP4_FN(4, 0)
MXFP4_FN(5, 0)
MXFP4_FN(6, 0)
MXFP4_FN(7, 0)
MXFP4_FN(8, 0)
static mxfp4_fn *const mxfp4_tiles[TALL + 1] = {
    [4] = mxfp4_4_0, mxfp4_5_0, mxfp4_6_0, mxfp4_7_0, mxfp4_8_0};
#else
MXFP4_FN(3, 1)
MXFP4_FN(4, 1)
static mxfp4_fn *const mxfp4_tiles[SHORT + 1] = {[3] = mxfp4_3_1, mxfp4_4_1};
#endif

// Codes of scales less MIDDLE, plus an exponent of x, in bytes. Returns false if one of them is not
// in the middle: MIDDLE - 63 .. MIDDLE + 64.
static inline bool stage_exponents(const uint8_t *codes, int32_t of_x, uint8_t exponents[PANEL])
{
    const __m256i by = _mm256_set1_epi8((char)(of_x - MIDDLE));
    __m256i all = _mm256_set1_epi8(-1);
    for (int64_t n = 0; n < PANEL; n += 32) {
        const __m256i v = load_32(codes + n);
        store_32(exponents + n, _mm256_add_epi8(v, by));
        all = _mm256_and_si256(all, _mm256_add_epi8(v, _mm256_set1_epi8(64)));
    }
    return _mm256_movemask_epi8(all) == -1;
}

/// How more than TALL rows are cut: as many in each tile, but for one.
typedef struct mxfp4_cut {
    int64_t tiles;
    int64_t begin[MR / SHORT + 1];
} mxfp4_cut;

static mxfp4_cut cut_rows(int64_t rows)
{
    mxfp4_cut cut = {.tiles = moei_i64_ceil_div(rows, DOTS ? TALL : SHORT)};
    for (int64_t t = 0; t <= cut.tiles; t++) {
        cut.begin[t] = rows * t / cut.tiles;
    }
    return cut;
}

static void multiply_tiles(job *j, const mxfp4_cut *cut, const uint8_t *w, const uint8_t *exponents,
                           const cell8 *x, float (*acc)[PANEL])
{
    if (!DOTS) {
        decode_digits(j, w);
        w = j->w;
    }
    for (int64_t t = 0; t < cut->tiles; t++) {
        const int64_t begin = cut->begin[t];
        mxfp4_tiles[cut->begin[t + 1] - begin](w, exponents, x + begin, acc + begin);
    }
}

// True where rows_of_mxfp4 takes the panel.
static bool is_mxfp4(const job *j, const span *s)
{
    const bool codes = j->way == DIGITS8 && j->e2m1 && !j->halves && j->block == 1;
    return codes && j->middle && j->p.args.w.scale_dtype == MOE_E8M0 &&
           s->walk.group_records == 1 && s->walk.width == PANEL &&
           j->p.last - j->p.first == PANEL / STRIP;
}

// Records of a panel, up to one whose scales are not in the middle, or to the end. few: a constant
// number of rows, TALL at most; 0: more.
__attribute__((always_inline)) static inline void records_of_mxfp4(job *j, int64_t few, span *s,
                                                                   float (*acc)[PANEL])
{
    _Alignas(32) uint8_t exponents[PANEL];
    const int64_t rows = few > 0 ? few : j->p.i1 - j->p.i0;
    const mxfp4_cut cut = cut_rows(rows);
    const uint8_t *at = s->walk.left > 0 ? s->head : s->walk.at;
    for (; s->r < s->end; s->r++, s->x += rows * (int64_t)sizeof(cell8)) {
        const cell8 *x = (const cell8 *)(const void *)s->x;
        if (!stage_exponents(at, few == 1 ? x->exponent : 0, exponents)) {
            break;
        }
        __asm__("" : "+m"(exponents)); // loaded again, not cut from vectors
        ask_mxfp4(few, at, PANEL);
        if (few > 0) {
            fold_mxfp4((mxfp4_shape){few, false}, at + PANEL, exponents, x, acc);
        } else {
            multiply_tiles(j, &cut, at + PANEL, exponents, x, acc);
        }
        at += PANEL + PANEL * RECORD / 2;
    }
    s->walk.at = at;
    s->walk.left = 0;
}

typedef void mxfp4_records_fn(job *j, span *s, float (*acc)[PANEL]);

#define MXFP4_RECORDS_FN(few)                                                                      \
    static void mxfp4_records_##few(job *j, span *s, float(*acc)[PANEL])                           \
    {                                                                                              \
        records_of_mxfp4(j, few, s, acc);                                                          \
    }
MXFP4_RECORDS_FN(0)
MXFP4_RECORDS_FN(1)
MXFP4_RECORDS_FN(2)
MXFP4_RECORDS_FN(3)
MXFP4_RECORDS_FN(4)
MXFP4_RECORDS_FN(5)
MXFP4_RECORDS_FN(6)
MXFP4_RECORDS_FN(7)
MXFP4_RECORDS_FN(8)
static mxfp4_records_fn *const mxfp4_records[TALL + 1] = {
    mxfp4_records_0, mxfp4_records_1, mxfp4_records_2, mxfp4_records_3, mxfp4_records_4,
    mxfp4_records_5, mxfp4_records_6, mxfp4_records_7, mxfp4_records_8};

// `loop` takes what scales do not allow.
static void rows_of_mxfp4(job *j, loop_fn *loop, span s, float (*acc)[PANEL])
{
    const int64_t rows = j->p.i1 - j->p.i0;
    while (s.r < s.end) {
        mxfp4_records[rows > TALL ? 0 : rows](j, &s, acc);
        if (s.r < s.end) {
            span one = s;
            one.end = ++s.r;
            loop(j, one, acc);
            s.x += rows * j->cell;
            (void)moei_cpu_walk_on(&s.walk, &s.head);
        }
    }
}

#endif
