// SPDX-License-Identifier: Apache-2.0
// Tiles of rows x outputs, whose sums are in registers while the weights of the records pass by,
// whatever their form.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_TILES_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_TILES_H

#include "backends/cpu/avx/ggemm_any_packed_forms.h"

// Vectors of outputs side by side: chains that hide an FMA's latency, as long as there are
// registers (32, or 16) for their sums, an x, weights, and a mask that bytes need.
#if LANES == 16
#define ACROSS(form, rows) ((rows) <= 6 ? 4 : 2)
#else
#define ACROSS(form, rows)                                                                         \
    ((rows) == 1 ? 8 : (rows) <= 3 ? 4 : (rows) == 4 && (form) < BYTES ? 3 : 2)
#endif
#define MOST_ACROSS (PANEL / LANES)

/// Outputs of a tile: vectors side by side, from vector `skip` of a strip.
typedef struct tile_width {
    int64_t vectors, skip;
} tile_width;

/// Sums of a tile in registers. at: where they lie, PANEL apart.
__attribute__((always_inline)) static inline void
open_sums(bool begins, const float *at, int64_t rows, int64_t vectors, vecf s[TILE][MOST_ACROSS])
{
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            s[r][v] = V(setzero_ps)();
        }
    }
    if (begins) {
        return;
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            s[r][v] = V(load_ps)(at + r * PANEL + v * LANES);
        }
    }
}

__attribute__((always_inline)) static inline void
save_sums(float *at, int64_t rows, int64_t vectors, vecf s[TILE][MOST_ACROSS])
{
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            V(store_ps)(at + r * PANEL + v * LANES, s[r][v]);
        }
    }
}

// Ended: to acc, as they are, or folded with the scales of x, `chains` apart, and of W.
__attribute__((always_inline)) static inline void fold_sums(const float *x_scale, int64_t chains,
                                                            const float *scale, float *acc,
                                                            int64_t rows, int64_t vectors,
                                                            vecf s[TILE][MOST_ACROSS])
{
    if (x_scale != NULL) {
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            const vecf by = V(set1_ps)(x_scale[r * chains]);
            UNROLL
            for (int64_t v = 0; v < vectors; v++) {
                s[r][v] = V(mul_ps)(s[r][v], by);
            }
        }
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            const vecf was = V(load_ps)(acc + r * PANEL + v * LANES);
            s[r][v] = scale != NULL ? V(fmadd_ps)(s[r][v], V(load_ps)(scale + v * LANES), was)
                                    : V(add_ps)(was, s[r][v]);
        }
    }
    save_sums(acc, rows, vectors, s);
}

// Whether each k multiplies the sums in one order. With eight lanes FMA of two k in turns take
// longer; with sixteen short chains lose by it (docs/cpu-strict.md).
#if LANES == 8
#define IN_ORDER volatile
#else
#define IN_ORDER
#endif

// sum + x * w, where sum is: compilers that choose between the three orders of an FMA may move sums
// about, and spill them.
__attribute__((always_inline)) static inline void multiply_add(vecf *sum, vecf x, vecf w)
{
    __asm__ IN_ORDER("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w));
}

// What floats are made of besides the form: values of 4-bit codes, zero points of the outputs.
typedef struct decoder {
    code_form form;
    bool full; // sums leave four registers: three of x or w, one of the other, none for a mask
    vecf values;
    vecf zero[MOST_ACROSS];
} decoder;

// The second bf16 of each lane. full: the mask stays in memory.
__attribute__((always_inline)) static inline vecf second_of(const uint8_t *pair, bool full)
{
#if LANES == 8
    static const _Alignas(32)
        uint32_t mask[8] = {0xFFFF0000u, 0xFFFF0000u, 0xFFFF0000u, 0xFFFF0000u,
                            0xFFFF0000u, 0xFFFF0000u, 0xFFFF0000u, 0xFFFF0000u};
    if (full) {
        veci v = veci_load(pair);
        __asm__("vpand %1, %0, %0" : "+x"(v) : "m"(*(const veci *)(const void *)mask));
        return as_floats(v);
    }
#endif
    (void)full;
    return high_of(veci_load(pair));
}

// Vector v of a tile, whose strip begins at w.
__attribute__((always_inline)) static inline vecf decoded(const decoder *d, const uint8_t *w,
                                                          tile_width n, int64_t v, int64_t i)
{
    const int64_t strip = (n.skip + v) / VECTORS * strip_bytes(d->form);
    const int64_t vector = (n.skip + v) % VECTORS * vector_bytes(d->form);
    if (d->form == PAIRS && i % 2 == 1) {
        return second_of(w + strip + vector + i / 2 * STRIP * 4, d->full);
    }
    const vecf weight = weight_of(d->form, w + strip + vector, i, d->values);
    return is_less_zeros(d->form) ? V(sub_ps)(weight, d->zero[v]) : weight;
}

// The chains go on by one k, i of a step: what is fewer, x or weights, is held in registers.
__attribute__((always_inline)) static inline void step(const decoder *d, int64_t rows, tile_width n,
                                                       const float *x, const uint8_t *w, int64_t i,
                                                       vecf s[TILE][MOST_ACROSS])
{
    if (rows < n.vectors) {
        UNROLL
        for (int64_t v = 0; v < n.vectors; v++) {
            const vecf wk = decoded(d, w, n, v, i);
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                const vecf xk = V(set1_ps)(x[r * X_ROW + i]);
                if (d->full) { // compilers else read x again, or spill
                    multiply_add(&s[r][v], xk, wk);
                } else {
                    s[r][v] = V(fmadd_ps)(xk, wk, s[r][v]);
                }
            }
        }
        return;
    }
    vecf wk[MOST_ACROSS];
    UNROLL
    for (int64_t v = 0; v < n.vectors; v++) {
        wk[v] = decoded(d, w, n, v, i);
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        const vecf xk = V(set1_ps)(x[r * X_ROW + i]);
        UNROLL
        for (int64_t v = 0; v < n.vectors; v++) {
            multiply_add(&s[r][v], xk, wk[v]);
        }
    }
}

// k that a loop goes on by: what a unit of the form holds, or more where a tile is small.
__attribute__((always_inline)) static inline int64_t step_of(code_form form, int64_t rows)
{
    switch (form) {
    case FLOATS:
        return 1;
    case PAIRS:
    case HALVES_OF_K:
        return rows < 3 ? 8 : 2;
    case CODES8:
        return rows < 3 ? 8 : 4;
    default:
        return 8;
    }
}

// One tile of rows waits for memory: what lies where it is read is asked for on the way. Pairs are
// computed with faster than others.
__attribute__((always_inline)) static inline void ask_for_step(code_form form, int64_t by,
                                                               tile_width n, const uint8_t *w)
{
    UNROLL
    for (int64_t v = n.skip; v < n.skip + n.vectors; v++) {
        if (v % VECTORS == 0) {
            const uint8_t *strip = w + v / VECTORS * strip_bytes(form);
            if (form == PAIRS) {
                moei_cpu_ask_ahead_twice(strip, by * eight_bytes(form) / 8);
            } else {
                moei_cpu_ask_ahead(strip, by * eight_bytes(form) / 8);
            }
        }
    }
}

// Codes of a step that are NaN: see_nan.
__attribute__((always_inline)) static inline veci see_nan_of_step(veci seen, int64_t by,
                                                                  tile_width n, const uint8_t *w)
{
    UNROLL
    for (int64_t v = n.skip; v < n.skip + n.vectors; v++) {
        UNROLL
        for (int64_t b = 0; b < by * STRIP; b += VECTOR) {
            seen = see_nan(seen, w + v * strip_bytes(CODES8) + b);
        }
    }
    return seen;
}

// The sums of a tile that has met one, once more.
__attribute__((noinline)) static void sums_with_nan(const piece *p, int64_t r0, int64_t rows,
                                                    int64_t strip, int64_t vectors,
                                                    float (*sums)[MOST_ACROSS][LANES])
{
    const int64_t n0 = strip * STRIP;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = p->x + (r0 + r) * X_ROW;
        for (int64_t v = 0; v < vectors; v++) {
            vecf sum = p->begins ? V(setzero_ps)() : V(load_ps)(&p->sum[r0 + r][n0 + v * LANES]);
            for (int64_t k = 0; k < p->count; k++) {
                const uint8_t *w = p->w + k / RECORD * p->apart +
                                   (strip + v) * strip_bytes(CODES8) + k % RECORD / 8 * 8 * STRIP;
                multiply_add(&sum, V(set1_ps)(x[k]), code8_or_nan(w, k % 8));
            }
            V(store_ps)(sums[r][v], sum);
        }
    }
}

// Rows r0 .. r0 + rows - 1.
__attribute__((always_inline)) static inline void tile(const job *j, const piece *at,
                                                       code_form form, int64_t r0, int64_t rows,
                                                       int64_t strip, tile_width n)
{
    const piece p = *at; // what is stored might alias it
    const int64_t by = step_of(form, rows);
    const int64_t part = form == FLOATS ? p.count : moei_i64_min(p.count, RECORD);
    const int64_t n0 = strip * STRIP + n.skip * LANES;
    const float *x = p.x + r0 * X_ROW;
    const uint8_t *record = p.w + strip * strip_bytes(form);
    const bool asks = j->rows <= TILE && form != FLOATS && j->lies;
    decoder d = {.form = form, .full = LANES == 8 && n.vectors > 2 && rows * n.vectors == 12};
    if (form == NIBBLES || form == NIBBLES_LESS) {
        d.values = V(load_ps)(j->value);
    }
    if (is_less_zeros(form)) {
        UNROLL
        for (int64_t v = 0; v < n.vectors; v++) {
            d.zero[v] = V(load_ps)(p.zero + n0 + v * LANES);
        }
    }
    vecf s[TILE][MOST_ACROSS];
    veci seen = V(set1_epi32)(0);
    open_sums(p.begins, &p.sum[r0][n0], rows, n.vectors, s);
    for (int64_t left = p.count; left > 0; left -= part, record += p.apart) {
        const uint8_t *w = record;
        for (const float *end = x + part; x < end; x += by, w += by * eight_bytes(form) / 8) {
            if (asks) {
                ask_for_step(form, by, n, w);
            }
            if (form == CODES8) {
                seen = see_nan_of_step(seen, by, n, w);
            }
            UNROLL
            for (int64_t i = 0; i < by; i++) {
                step(&d, rows, n, x, w, i, s);
            }
        }
    }
    if (form == CODES8 && any_top_bit(seen)) {
        _Alignas(64) float again[TILE][MOST_ACROSS][LANES];
        sums_with_nan(&p, r0, rows, strip, n.vectors, again);
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            UNROLL
            for (int64_t v = 0; v < n.vectors; v++) {
                s[r][v] = V(load_ps)(again[r][v]);
            }
        }
    }
    if (!p.ends) {
        save_sums(&p.sum[r0][n0], rows, n.vectors, s);
        return;
    }
    const float *x_scale = j->folds_x ? p.x_scale + r0 * j->chains : NULL;
    float *acc = &p.acc[r0][n0];
    if (p.scale != NULL) {
        fold_sums(x_scale, j->chains, p.scale + n0, acc, rows, n.vectors, s);
    } else {
        fold_sums(x_scale, j->chains, NULL, acc, rows, n.vectors, s);
    }
}

// Many rows ask, tile by tile, for their share of what is read next.
static inline void ask_for_next(const job *j, int64_t r0, int64_t rows, int64_t strip, tile_width n)
{
    const int64_t at = r0 * STRIPS * VECTORS + (strip * VECTORS + n.skip) * rows;
    const int64_t from = at * j->next_share;
    const int64_t end = moei_i64_min(from + n.vectors * rows * j->next_share, j->next_bytes);
    moei_cpu_ask(j->next + from, end - from);
}

// A tile over all pieces.
__attribute__((always_inline)) static inline void pieces_of(const job *j, const piece *p,
                                                            int64_t num, code_form form, int64_t r0,
                                                            int64_t rows, int64_t strip,
                                                            tile_width n)
{
    if (j->next_bytes > 0) {
        ask_for_next(j, r0, rows, strip, n);
    }
    for (int64_t i = 0; i < num; i++) {
        tile(j, &p[i], form, r0, rows, strip, n);
    }
}

// All strips that are wanted, over all pieces.
__attribute__((always_inline)) static inline void tiles(const job *j, const piece *p, int64_t num,
                                                        code_form form, int64_t r0, int64_t rows)
{
    const int64_t across = ACROSS(form, rows);
    int64_t strip = j->p.first;
    if (across % VECTORS == 0) {
        for (; strip + across / VECTORS <= j->p.last; strip += across / VECTORS) {
            pieces_of(j, p, num, form, r0, rows, strip, (tile_width){across, 0});
        }
    } else { // three strips to two tiles
        for (; strip + across <= j->p.last; strip += across) {
            pieces_of(j, p, num, form, r0, rows, strip, (tile_width){across, 0});
            pieces_of(j, p, num, form, r0, rows, strip + across / VECTORS,
                      (tile_width){across, across % VECTORS});
        }
    }
    for (; across > VECTORS && strip < j->p.last; strip++) {
        pieces_of(j, p, num, form, r0, rows, strip, (tile_width){VECTORS, 0});
    }
}

typedef void tiles_fn(const job *j, const piece *p, int64_t num, int64_t r0);

#define TILES(form, rows)                                                                          \
    static void form##_##rows(const job *j, const piece *p, int64_t num, int64_t r0)               \
    {                                                                                              \
        tiles(j, p, num, form, r0, rows);                                                          \
    }
#if LANES == 16
#define EACH_ROWS(what, form)                                                                      \
    what(form, 1) what(form, 2) what(form, 3) what(form, 4) what(form, 5) what(form, 6)            \
        what(form, 7) what(form, 8) what(form, 9) what(form, 10) what(form, 11) what(form, 12)
#else
#define EACH_ROWS(what, form)                                                                      \
    what(form, 1) what(form, 2) what(form, 3) what(form, 4) what(form, 5) what(form, 6)
#endif
#if LANES == 16
#define IF_CODES8(what) what(CODES8)
#else
#define IF_CODES8(what)
#endif
#define EACH_FORM(what)                                                                            \
    what(FLOATS) what(PAIRS) what(HALVES_OF_K) IF_CODES8(what) what(BYTES) what(BYTES_LESS)        \
        what(NIBBLES) what(NIBBLES_LESS)
#define ALL_TILES(form)       EACH_ROWS(TILES, form)
#define TILE_NAME(form, rows) form##_##rows,
#define TILE_NAMES(form)      [form] = {EACH_ROWS(TILE_NAME, form)},
EACH_FORM(ALL_TILES)
static tiles_fn *const tile_fns[NUM_FORMS][TILE] = {EACH_FORM(TILE_NAMES)};

// Rows of the next tile, of those that are left. Eight lanes: six if what remains then is none or
// three at least; with sixteen as many rows in every tile, but for one.
static inline int64_t rows_of_tile(int64_t left)
{
    if (LANES == 16) {
        return left / moei_i64_ceil_div(left, TILE);
    }
    return left <= TILE ? left : left < TILE + 3 ? left / 2 : TILE;
}

// All rows over all pieces.
static void all_rows(const job *j, const piece *p, int64_t num, code_form form)
{
    for (int64_t r0 = 0, rows; r0 < j->rows; r0 += rows) {
        rows = rows_of_tile(j->rows - r0);
        tile_fns[form][rows - 1](j, p, num, r0);
    }
}

#endif
