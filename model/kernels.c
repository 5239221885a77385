// SPDX-License-Identifier: Apache-2.0
// Vectors of 16 lanes, which a compiler lays into registers of any width.
//
// Attention: a tile of up to 8 queries of one key head, so that what is read of keys and values
// serves all of them. Scores: lane = key, the tile's rows and one vector of keys at a time.
// Weighted values: lane = dimension. Keys that one row sees and another does not are left to each
// alone.
#include "model/kernels.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#if defined(__AVX512F__)
#define NAME      moem_kernels__avx512
#define ISA       "avx512"
#define TILE_ROWS 8 // of 32 registers
#elif defined(__AVX2__)
#define NAME      moem_kernels__avx2
#define ISA       "avx2"
#define TILE_ROWS 4 // of 16, two to a vector
#else
#define NAME      moem_kernels__portable
#define ISA       NULL
#define TILE_ROWS 4
#endif

#define LANES MOEM_LANES
#define BLOCK MOEM_BLOCK
#define PARTS (BLOCK / LANES)
#define MOST  MOEM_ATTEND_ROWS

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef double dvec __attribute__((vector_size(LANES * sizeof(double))));

// Functions whose loops over rows are of constant length, so that sums stay in registers.
#define INLINE __attribute__((always_inline)) static inline
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

INLINE vec load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

INLINE vec all(float x)
{
    return x - (vec){0};
}

INLINE vec select(ivec mask, vec yes, vec no)
{
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

// Lanes as a tree: 8, 4, 2, 1 apart.
INLINE float sum_of(vec v)
{
    v = v + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v = v + __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v = v + __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
}

// A NaN of `a` is not greater: b stays.
INLINE vec larger(vec a, vec b)
{
    return select(a > b, a, b);
}

INLINE float largest_of(vec v)
{
    v = larger(v,
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = larger(v,
               __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = larger(v,
               __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return v[0] > v[1] ? v[0] : v[1];
}

// e^x for x <= 0: 2^n times a polynomial in what is left of x, |r| <= ln 2 / 2; 0 below -87, where
// results leave the normal range; NaN stays. Error: 1.5 units in the last place.
INLINE vec exp_of(vec x)
{
    const vec low = all(-87.0f);
    const ivec tiny = x < low;
    const vec c = select(tiny, low, x);
    const vec z = c * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the integer lies in the low bits
    const vec n = z - 12582912.0f;
    vec r = c - n * 0.693145752f; // 15 bits: the product is exact
    r = r - n * 1.42860677e-06f;
    vec p = r * 1.37825042e-03f + 8.36867467e-03f;
    p = p * r + 4.16689627e-02f;
    p = p * r + 1.66665211e-01f;
    p = p * r + 4.99999911e-01f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const ivec power = (((ivec)z - 0x4B400000) + 127) << 23;
    return select(tiny, all(0), p * (vec)power);
}

// ---- attention ---------------------------------------------------------------------------------

/// What becomes of the rows of a tile.
typedef struct state {
    float most[MOST]; // the largest score so far
    float rest[MOST]; // the sink's share
    vec total[MOST];  // the keys' shares, by position
    float acc[MOST][MOEM_MAX_HEAD_DIM];
    float share[MOST][BLOCK]; // of the block at hand; first its scores
} state;

/// Keys of a block, by the first one's position: those that a row sees, [low, high).
typedef struct range {
    int64_t low, high;
} range;

static range range_of(const moem_attend_row *row, int64_t begin)
{
    const int64_t low = row->first > begin ? row->first - begin : 0;
    const int64_t high = row->last - begin + 1 < BLOCK ? row->last - begin + 1 : BLOCK;
    return (range){low, high > low ? high : low};
}

// Scores of 16 keys for `rows` rows of the tile from row r.
INLINE void score(const moem_attend_args *a, const moem_attend_row *row, int64_t rows,
                  const float *keys, float (*out)[BLOCK])
{
    vec sum[MOST];
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        sum[r] = all(0);
    }
    for (int64_t d = 0; d < a->dim; d++) {
        const vec key = load(keys + d * LANES);
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            sum[r] += row[r].q[d] * key;
        }
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        store(out[r], sum[r] * a->scale);
    }
}

// Adds shares times values of keys [low, high) of a block to the sums of `rows` rows.
INLINE void add_values(const moem_attend_args *a, int64_t rows, const float *const *values,
                       range keys, float (*share)[BLOCK], float (*acc)[MOEM_MAX_HEAD_DIM])
{
    for (int64_t d = 0; d < a->width; d += LANES) {
        vec sum[MOST];
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            sum[r] = load(&acc[r][d]);
        }
        for (int64_t i = keys.low; i < keys.high; i++) {
            const vec value = load(values[i / LANES] + i % LANES * a->width + d);
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                sum[r] += share[r][i] * value;
            }
        }
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            store(&acc[r][d], sum[r]);
        }
    }
}

// Scores to shares; what came before is scaled to the new maximum.
static void soften(state *s, int64_t r, int64_t width, range keys)
{
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vec score[PARTS];
    vec top = all(s->most[r]);
    for (int part = 0; part < PARTS; part++) {
        const ivec at = lane + part * LANES;
        const ivec seen = (at >= (int32_t)keys.low) & (at < (int32_t)keys.high);
        score[part] = select(seen, load(&s->share[r][part * LANES]), all(-HUGE_VALF));
        top = larger(score[part], top);
    }
    const float most = largest_of(top);
    if (most > s->most[r]) {
        const float shrink = exp_of(all(s->most[r] - most))[0];
        s->rest[r] *= shrink;
        s->total[r] *= shrink;
        for (int64_t d = 0; d < width; d += LANES) {
            store(&s->acc[r][d], load(&s->acc[r][d]) * shrink);
        }
        s->most[r] = most;
    }
    for (int part = 0; part < PARTS; part++) {
        const ivec at = lane + part * LANES;
        const ivec seen = (at >= (int32_t)keys.low) & (at < (int32_t)keys.high);
        const vec share = select(seen, exp_of(score[part] - s->most[r]), all(0));
        s->total[r] += share;
        store(&s->share[r][part * LANES], share);
    }
}

// A block for `rows` rows of the tile from row r on.
INLINE void block(const moem_attend_args *a, state *s, const moem_attend_row *row, int64_t r,
                  int64_t rows, int64_t begin)
{
    range seen[MOST];
    range some = {BLOCK, 0}; // that any row sees
    range both = {0, BLOCK}; // that all see
    for (int64_t i = 0; i < rows; i++) {
        seen[i] = range_of(&row[r + i], begin);
        const bool none = seen[i].low == seen[i].high;
        some.low = !none && seen[i].low < some.low ? seen[i].low : some.low;
        some.high = !none && seen[i].high > some.high ? seen[i].high : some.high;
        both.low = seen[i].low > both.low ? seen[i].low : both.low;
        both.high = seen[i].high < both.high ? seen[i].high : both.high;
    }
    const float *values[PARTS];
    for (int64_t part = some.low / LANES; part * LANES < some.high; part++) {
        const int64_t at = (begin + part * LANES) % a->rows;
        values[part] = a->values + at * a->width;
        score(a, row + r, rows, a->keys + at * a->dim,
              (float(*)[BLOCK])(void *)&s->share[r][part * LANES]);
    }
    for (int64_t i = 0; i < rows; i++) {
        if (seen[i].low < seen[i].high) {
            soften(s, r + i, a->width, seen[i]);
        }
    }
    if (both.low >= both.high) {
        both = (range){BLOCK, BLOCK};
    }
    for (int64_t i = 0; i < rows; i++) { // before those that all see
        const int64_t end = seen[i].high < both.low ? seen[i].high : both.low;
        add_values(a, 1, values, (range){seen[i].low, end}, &s->share[r + i], &s->acc[r + i]);
    }
    add_values(a, rows, values, both, &s->share[r], &s->acc[r]);
    for (int64_t i = 0; i < rows && both.high < BLOCK; i++) {
        add_values(a, 1, values, (range){both.high, seen[i].high}, &s->share[r + i],
                   &s->acc[r + i]);
    }
}

static void attend(const moem_attend_args *a, const moem_attend_row *row, int64_t count)
{
    state s;
    int64_t first = row[0].first;
    int64_t last = row[0].last;
    for (int64_t r = 0; r < count; r++) {
        s.most[r] = row[r].sink;
        s.rest[r] = 1;
        s.total[r] = all(0);
        memset(s.acc[r], 0, (size_t)a->width * sizeof s.acc[0][0]);
        first = row[r].first < first ? row[r].first : first;
        last = row[r].last > last ? row[r].last : last;
    }
    for (int64_t begin = first / BLOCK * BLOCK; begin <= last; begin += BLOCK) {
        for (int64_t r = 0; r < count;) {
            const int64_t left = count - r;
            if (TILE_ROWS == 8 && left >= 8) {
                block(a, &s, row, r, 8, begin);
                r += 8;
            } else if (left >= 4) {
                block(a, &s, row, r, 4, begin);
                r += 4;
            } else if (left >= 2) {
                block(a, &s, row, r, 2, begin);
                r += 2;
            } else {
                block(a, &s, row, r, 1, begin);
                r += 1;
            }
        }
    }
    for (int64_t r = 0; r < count; r++) {
        const float total = sum_of(s.total[r]) + s.rest[r];
        for (int64_t d = 0; d < a->dim; d++) {
            row[r].out[d] = s.acc[r][d] / total;
        }
    }
}

// ---- norm --------------------------------------------------------------------------------------

static void norm(float *x, const float *branch, const float *weight, double eps, int64_t width,
                 float *out)
{
    const int64_t whole = width / LANES * LANES;
    dvec sum = {0};
    double lanes[LANES];
    for (int64_t i = 0; branch != NULL && i < whole; i += LANES) {
        store(x + i, load(x + i) + load(branch + i));
    }
    for (int64_t i = whole; branch != NULL && i < width; i++) {
        x[i] += branch[i];
    }
    for (int64_t i = 0; i < whole; i += LANES) {
        const dvec wide = __builtin_convertvector(load(x + i), dvec);
        sum += wide * wide;
    }
    memcpy(lanes, &sum, sizeof sum);
    for (int64_t i = whole; i < width; i++) {
        lanes[i - whole] += (double)x[i] * (double)x[i];
    }
    for (int apart = LANES / 2; apart > 0; apart /= 2) {
        for (int l = 0; l < apart; l++) {
            lanes[l] += lanes[l + apart];
        }
    }
    const float factor = (float)(1 / sqrt(lanes[0] / (double)width + eps));
    for (int64_t i = 0; i < whole; i += LANES) {
        store(out + i, load(x + i) * factor * load(weight + i));
    }
    for (int64_t i = whole; i < width; i++) {
        out[i] = x[i] * factor * weight[i];
    }
}

extern const moem_kernels NAME;
const moem_kernels NAME = {ISA, attend, norm};
