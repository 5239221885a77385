// SPDX-License-Identifier: Apache-2.0
// The decoder's arithmetic against formulas in double: attention, rotary embedding, norm, sampling.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/checkmoe.h"
#include "model/attention.h"
#include "unit/test.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define POOLS        3
#define ULP          0x1p-23 // of a float32 result near 1: twice what rounding may lose

static moe_context *contexts[POOLS]; // of 1, 2 and 7 threads
static moe_thread_pool pools[POOLS];
static const moem_kernels *kernels; // that are tried

static float *normals(moec_rng *rng, int64_t n, double scale)
{
    float *out = malloc((size_t)n * sizeof *out);
    for (int64_t i = 0; out != NULL && i < n; i++) {
        out[i] = (float)(scale * moec_normal(rng));
    }
    return out;
}

// -- Attention ------------------------------------------------------------------------------------

/// One sequence: every key and value in order of position, and queries at some positions.
struct problem {
    int64_t length, heads, kv_heads, dim, window, tokens;
    float *keys, *values; // [length, kv_heads, dim]
    float *q, *sinks;
    int64_t *positions; // of the queries
};

static void problem_make(struct problem *p, moec_rng *rng, double scale)
{
    p->keys = normals(rng, p->length * p->kv_heads * p->dim, scale);
    p->values = normals(rng, p->length * p->kv_heads * p->dim, 1);
    p->q = normals(rng, p->tokens * p->heads * p->dim, scale);
    p->sinks = normals(rng, p->heads, 2);
    p->positions = calloc((size_t)p->tokens, sizeof *p->positions);
    for (int64_t t = 0; t < p->tokens; t++) { // the first, the last, and others
        p->positions[t] = t == 0 ? 0 : t == 1 ? p->length - 1 : moec_below(rng, p->length);
    }
}

static void problem_free(struct problem *p)
{
    free(p->keys);
    free(p->values);
    free(p->q);
    free(p->sinks);
    free(p->positions);
}

// The cache of `rows` rows as it is when positions 0..last are written; unwritten rows are NaN.
static moem_cache cache_make(const struct problem *p, int64_t rows, int64_t last)
{
    moem_cache c = {NULL, NULL, 0};
    float *none = malloc((size_t)(p->kv_heads * p->dim) * sizeof *none);
    if (!CHECK(none != NULL && moem_cache_create(rows, p->kv_heads, p->dim, &c), "no memory")) {
        exit(test_summary());
    }
    for (int64_t i = 0; i < p->kv_heads * p->dim; i++) {
        none[i] = (float)(double)NAN;
    }
    for (int64_t row = 0; row < c.rows; row++) {
        moem_cache_put(&c, p->kv_heads, p->dim, row, none, none);
    }
    for (int64_t at = 0; at <= last; at++) {
        moem_cache_put(&c, p->kv_heads, p->dim, at, p->keys + at * p->kv_heads * p->dim,
                       p->values + at * p->kv_heads * p->dim);
    }
    free(none);
    return c;
}

static void run(const struct problem *p, const moem_cache *cache, int pool, int64_t first,
                int64_t tokens, float *out)
{
    moem_query queries[16];
    for (int64_t t = 0; t < tokens; t++) {
        queries[t] = (moem_query){cache, p->positions[first + t]};
    }
    const moem_attention_args args = {.kernels = kernels,
                                      .tokens = tokens,
                                      .heads = p->heads,
                                      .kv_heads = p->kv_heads,
                                      .head_dim = p->dim,
                                      .window = p->window,
                                      .queries = queries,
                                      .q = p->q + first * p->heads * p->dim,
                                      .q_stride = p->heads * p->dim,
                                      .sinks = p->sinks,
                                      .out = out};
    moem_attention(&pools[pool], &args);
}

// The definition: every score, one maximum, one sum. bound: what float32 may lose in the products
// (dim roundings), the exponentials' arguments and the two sums, in numerator and denominator.
static void expect(const struct problem *p, int64_t t, int64_t h, double *out, double *bound)
{
    const int64_t last = p->positions[t];
    const int64_t first = last >= p->window ? last - p->window + 1 : 0;
    const int64_t kv = h / (p->heads / p->kv_heads);
    const float *q = p->q + (t * p->heads + h) * p->dim;
    double score[256];
    double most = (double)p->sinks[h];
    double least = most;
    double loss = 0;
    for (int64_t at = first; at <= last; at++) {
        double sum = 0;
        double size = 0;
        for (int64_t d = 0; d < p->dim; d++) {
            const double term =
                (double)q[d] * (double)p->keys[(at * p->kv_heads + kv) * p->dim + d];
            sum += term;
            size += fabs(term);
        }
        score[at - first] = sum / sqrt((double)p->dim);
        most = fmax(most, score[at - first]);
        least = fmin(least, score[at - first]);
        loss = fmax(loss, size / sqrt((double)p->dim) * (double)(p->dim + 2) * ULP);
    }
    double total = exp((double)p->sinks[h] - most);
    for (int64_t at = first; at <= last; at++) {
        total += exp(score[at - first] - most);
    }
    const double n = (double)(last - first + 1);
    const double relative = 2 * (loss + ULP * (2 * (most - least) + n + 3 * (n / 32 + 1) + 4));
    for (int64_t d = 0; d < p->dim; d++) {
        double sum = 0;
        double size = 0;
        for (int64_t at = first; at <= last; at++) {
            const double term = exp(score[at - first] - most) / total *
                                (double)p->values[(at * p->kv_heads + kv) * p->dim + d];
            sum += term;
            size += fabs(term);
        }
        out[d] = sum;
        bound[d] = relative * size;
    }
}

static double check_against_double(const struct problem *p, const float *out)
{
    double worst = 0;
    double expected[128];
    double bound[128];
    for (int64_t i = 0; i < p->tokens * p->heads; i++) {
        expect(p, i / p->heads, i % p->heads, expected, bound);
        for (int64_t d = 0; d < p->dim; d++) {
            const double off = fabs((double)out[i * p->dim + d] - expected[d]);
            CHECK(off <= bound[d],
                  "dim %d, heads %d/%d, window %d, position %d: %.9g, expected %.9g within %.2g",
                  (int)p->dim, (int)p->heads, (int)p->kv_heads, (int)p->window,
                  (int)p->positions[i / p->heads], (double)out[i * p->dim + d], expected[d],
                  bound[d]);
            worst = fmax(worst, off / bound[d]);
        }
    }
    return worst;
}

// The same bits alone, with any threads and kernels, and from a ring that holds no more than the
// window.
static void check_same_bits(const struct problem *p, const moem_cache *full, const float *out)
{
    const size_t width = (size_t)(p->heads * p->dim);
    float *other = malloc((size_t)p->tokens * width * sizeof *other);
    for (int pool = 1; pool < POOLS; pool++) {
        run(p, full, pool, 0, p->tokens, other);
        CHECK(memcmp(out, other, (size_t)p->tokens * width * sizeof *out) == 0,
              "other bits with pool %d, dim %d", pool, (int)p->dim);
    }
    for (size_t k = 0; moem_kernels_at(k) != NULL; k++) {
        if (moem_kernels_run(moem_kernels_at(k), contexts[0])) {
            kernels = moem_kernels_at(k);
            run(p, full, 0, 0, p->tokens, other);
            CHECK(memcmp(out, other, (size_t)p->tokens * width * sizeof *out) == 0,
                  "other bits with kernels %zu, dim %d", k, (int)p->dim);
        }
    }
    kernels = moem_kernels_of(contexts[0]);
    for (int64_t t = 0; t < p->tokens; t++) {
        run(p, full, 0, t, 1, other);
        CHECK(memcmp(out + (size_t)t * width, other, width * sizeof *out) == 0,
              "query %d alone has other bits", (int)t);
        if (p->window > p->length) {
            continue;
        }
        // Whatever the ring's size, positions behind the window are overwritten or never read.
        for (int64_t rows = p->window; rows < p->window + 3; rows++) {
            moem_cache ring = cache_make(p, rows, p->positions[t]);
            run(p, &ring, 0, t, 1, other);
            CHECK(memcmp(out + (size_t)t * width, other, width * sizeof *out) == 0,
                  "a ring of %d rows has other bits: window %d, position %d", (int)rows,
                  (int)p->window, (int)p->positions[t]);
            moem_cache_free(&ring);
        }
    }
    free(other);
}

// NaN wherever the query must not look changes nothing; in any key or value that it sees, it shows.
static void check_poison(const struct problem *p, int64_t t)
{
    const int64_t width = p->heads * p->dim;
    const int64_t last = p->positions[t];
    const int64_t first = last >= p->window ? last - p->window + 1 : 0;
    moem_cache c = cache_make(p, p->length, p->length - 1);
    float *clean = malloc((size_t)width * sizeof *clean);
    float *poisoned = malloc((size_t)width * sizeof *poisoned);
    run(p, &c, 0, t, 1, clean);
    float *row = malloc((size_t)(2 * width) * sizeof *row);
    for (int64_t i = 0; i < 2 * width; i++) {
        row[i] = (float)(double)NAN;
    }
    for (int64_t at = 0; at < p->length; at++) {
        if (at < first || at > last) {
            moem_cache_put(&c, p->kv_heads, p->dim, at, row, row);
        }
    }
    run(p, &c, 0, t, 1, poisoned);
    CHECK(memcmp(clean, poisoned, (size_t)width * sizeof *clean) == 0,
          "position %d, window %d: keys outside the window are read", (int)last, (int)p->window);
    for (int64_t at = first; at <= last; at++) {
        // Head 0 of the keys is that of the query heads of the first group alone.
        const float *key = p->keys + at * p->kv_heads * p->dim;
        const float *value = p->values + at * p->kv_heads * p->dim;
        memcpy(row, at % 2 == 0 ? key : value, (size_t)(p->kv_heads * p->dim) * sizeof *row);
        row[0] = (float)(double)NAN;
        moem_cache_put(&c, p->kv_heads, p->dim, at, at % 2 == 0 ? row : key,
                       at % 2 == 0 ? value : row);
        run(p, &c, 0, t, 1, poisoned);
        moem_cache_put(&c, p->kv_heads, p->dim, at, key, value);
        CHECK(isnan(poisoned[0]), "NaN at position %d of %d is lost", (int)at, (int)last);
        CHECK(p->kv_heads == 1 || !isnan(poisoned[width - 1]), "NaN of another key head shows");
    }
    moem_cache_free(&c);
    free(row);
    free(clean);
    free(poisoned);
}

static void test_attention(void)
{
    static const int64_t dims[] = {2, 6, 10, 14, 32, 46, 64, 128};
    static const int64_t groups[] = {1, 2, 3, 8};
    static const int64_t windows[] = {1, 5, 128, INT64_MAX};
    moec_rng rng = {11};
    double worst = 0;
    for (size_t i = 0; i < COUNT(dims) * COUNT(groups) * COUNT(windows); i++) {
        const int64_t kv_heads = 1 + (int64_t)i % 3;
        const int64_t window = windows[i / COUNT(dims) / COUNT(groups)];
        struct problem p = {.length = window == 128 ? 150 : 70,
                            .heads = kv_heads * groups[i / COUNT(dims) % COUNT(groups)],
                            .kv_heads = kv_heads,
                            .dim = dims[i % COUNT(dims)],
                            .window = window,
                            .tokens = 5};
        problem_make(&p, &rng, i % 2 == 0 ? 1 : 3);
        moem_cache full = cache_make(&p, p.length, p.length - 1);
        float *out = malloc((size_t)(p.tokens * p.heads * p.dim) * sizeof *out);
        run(&p, &full, 0, 0, p.tokens, out);
        worst = fmax(worst, check_against_double(&p, out));
        check_same_bits(&p, &full, out);
        if (i % 5 == 0) {
            check_poison(&p, 1);
            check_poison(&p, 2);
        }
        free(out);
        moem_cache_free(&full);
        problem_free(&p);
    }
    (void)printf("attention: at most %.3f of the bound\n", worst);
}

// Scores far apart, infinite sinks: no overflow, and a sink takes all or nothing.
static void test_attention_extremes(void)
{
    static const struct {
        double q, sink, expected;
    } cases[] = {
        {0, -HUGE_VAL, 1.5},                 // the mean of 1 and 2
        {1000, 0, 2},                        // the larger score takes all
        {-1000, -HUGE_VAL, 1}, {0, 1e30, 0}, // the sink takes all
        {3e38, -1e30, 2},
    };
    static const float keys[] = {-1, 0, 1, 0};
    static const float values[] = {1, 1, 2, 2};
    moem_cache cache = {NULL, NULL, 0};
    CHECK(moem_cache_create(2, 1, 2, &cache), "no memory");
    moem_cache_put(&cache, 1, 2, 0, keys, values);
    moem_cache_put(&cache, 1, 2, 1, keys + 2, values + 2);
    for (size_t i = 0; i < COUNT(cases); i++) {
        const moem_query query = {&cache, 1};
        float q[2] = {(float)cases[i].q, 0};
        const float sink = (float)cases[i].sink;
        float out[2];
        moem_attention(&pools[0], &(moem_attention_args){.kernels = kernels,
                                                         .tokens = 1,
                                                         .heads = 1,
                                                         .kv_heads = 1,
                                                         .head_dim = 2,
                                                         .window = 8,
                                                         .queries = &query,
                                                         .q = q,
                                                         .q_stride = 2,
                                                         .sinks = &sink,
                                                         .out = out});
        CHECK((double)out[0] == cases[i].expected && out[1] == out[0],
              "case %zu gives %g, expected %g", i, (double)out[0], cases[i].expected);
    }
    moem_cache_free(&cache);
}

#define PLACED_HEADS  4
#define PLACED_KV     2
#define PLACED_DIM    24
#define PLACED_STRIDE ((PLACED_HEADS + 2 * PLACED_KV) * PLACED_DIM)
#define PLACED_ROWS   48
#define PLACED_MOST   40 // tokens: in one task of a head, in several, in several of placing

/// Tokens from 0 on, and what attention makes of them.
struct placed {
    moem_cache cache;
    float *qkv, *out;
};

static struct placed placed_make(const float *qkv, int64_t tokens)
{
    struct placed p = {.cache = {.rows = 0}};
    CHECK(moem_cache_create(PLACED_ROWS, PLACED_KV, PLACED_DIM, &p.cache), "no memory");
    memset(p.cache.keys, 0, sizeof(float) * PLACED_KV * PLACED_ROWS * PLACED_DIM);
    p.qkv = malloc((size_t)(tokens * PLACED_STRIDE) * sizeof *p.qkv);
    p.out = calloc((size_t)(tokens * PLACED_HEADS * PLACED_DIM), sizeof *p.out);
    memcpy(p.qkv, qkv, (size_t)(tokens * PLACED_STRIDE) * sizeof *qkv);
    return p;
}

static void placed_free(struct placed *p)
{
    moem_cache_free(&p->cache);
    free(p->qkv);
    free(p->out);
}

static void placed_by_hand(struct placed *p, const float *turns, int64_t tokens)
{
    for (int64_t t = 0; t < tokens; t++) {
        float *q = p->qkv + t * PLACED_STRIDE;
        const float *k = q + PLACED_HEADS * PLACED_DIM;
        moem_rotate(turns + t * PLACED_DIM, PLACED_HEADS + PLACED_KV, PLACED_DIM, q);
        moem_cache_put(&p->cache, PLACED_KV, PLACED_DIM, t, k, k + PLACED_KV * PLACED_DIM);
    }
}

static void placed_attend(struct placed *p, const float *turns, const float *sinks, int64_t tokens,
                          int pool)
{
    moem_query queries[PLACED_MOST];
    for (int64_t t = 0; t < tokens; t++) {
        queries[t] = (moem_query){&p->cache, t};
    }
    moem_attention(&pools[pool], &(moem_attention_args){.kernels = kernels,
                                                        .tokens = tokens,
                                                        .heads = PLACED_HEADS,
                                                        .kv_heads = PLACED_KV,
                                                        .head_dim = PLACED_DIM,
                                                        .window = 30,
                                                        .queries = queries,
                                                        .q = p->qkv,
                                                        .q_stride = PLACED_STRIDE,
                                                        .sinks = sinks,
                                                        .out = p->out,
                                                        .turns = turns});
}

// Attention that turns and puts, and the same done before it: results and keys byte for byte.
static void test_placing(void)
{
    static const int64_t counts[] = {1, 4, 5, PLACED_MOST};
    moec_rng rng = {11};
    float *sinks = normals(&rng, PLACED_HEADS, 1);
    float *turns = normals(&rng, PLACED_MOST * PLACED_DIM, 1);
    float *qkv = normals(&rng, PLACED_MOST * PLACED_STRIDE, 1);
    for (size_t i = 0; i < COUNT(counts) * POOLS; i++) {
        const int64_t tokens = counts[i / POOLS];
        struct placed one = placed_make(qkv, tokens);
        struct placed two = placed_make(qkv, tokens);
        placed_by_hand(&one, turns, tokens);
        placed_attend(&one, NULL, sinks, tokens, (int)(i % POOLS));
        placed_attend(&two, turns, sinks, tokens, (int)(i % POOLS));
        CHECK(memcmp(one.out, two.out,
                     (size_t)tokens * PLACED_HEADS * PLACED_DIM * sizeof(float)) == 0,
              "%d tokens: other results", (int)tokens);
        CHECK(memcmp(one.cache.keys, two.cache.keys,
                     sizeof(float) * PLACED_KV * PLACED_ROWS * PLACED_DIM) == 0,
              "%d tokens: other keys", (int)tokens);
        placed_free(&one);
        placed_free(&two);
    }
    free(qkv);
    free(sinks);
    free(turns);
}

// -- Rotary embedding -----------------------------------------------------------------------------

// The two formulas of the paper, apart from config.c: where a frequency turns fewer than `slow`
// times over the original context it is divided by the factor, above `fast` it stays, and between
// the two a straight line over the dimensions leads.
static double frequency(const moem_config *c, int64_t i)
{
    const double turns = 2 * 3.14159265358979323846;
    const double dim = (double)c->head_dim;
    const double plain = 1 / pow(c->rope_theta, (double)(2 * i) / dim);
    if (c->rope_factor == 1) {
        return plain;
    }
    double edge[2] = {c->rope_fast, c->rope_slow};
    for (int e = 0; e < 2; e++) {
        edge[e] = dim / 2 * log(c->rope_original / turns / edge[e]) / log(c->rope_theta);
    }
    if (c->rope_truncate) {
        edge[0] = floor(edge[0]);
        edge[1] = ceil(edge[1]);
    }
    edge[0] = edge[0] < 0 ? 0 : edge[0];
    edge[1] = edge[1] > dim - 1 ? dim - 1 : edge[1];
    edge[1] = edge[1] == edge[0] ? edge[1] + 0.001 : edge[1];
    const double along = ((double)i - edge[0]) / (edge[1] - edge[0]);
    const double divided = along < 0 ? 0 : along > 1 ? 1 : along;
    return plain * (1 - divided) + plain / c->rope_factor * divided;
}

static void test_frequencies(void)
{
    moem_config *c = calloc(1, sizeof *c);
    static const int64_t dims[] = {2, 6, 32, 64, 128};
    for (int i = 0; i < (int)COUNT(dims) * 12; i++) {
        float out[64];
        c->head_dim = dims[i / 12];
        c->rope_theta = i % 2 == 0 ? 10000 : 150000;
        c->rope_factor = i % 3 == 0 ? 1 : i % 3 == 1 ? 4 : 32;
        c->rope_original = i % 4 == 0 ? 128 : 4096;
        c->rope_fast = 32;
        c->rope_slow = 1;
        c->rope_truncate = i % 12 < 6;
        moem_rope_frequencies(c, out);
        for (int64_t d = 0; d < c->head_dim / 2; d++) {
            const double expected = frequency(c, d);
            CHECK(fabs((double)out[d] - expected) <= expected * 0x1p-23,
                  "case %d: frequency %d is %.9g, expected %.9g", i, (int)d, (double)out[d],
                  expected);
        }
    }
    // By hand: theta 100 over 4 dimensions is 1 and 1/10. An original context of 20 pi turns 10
    // times: fast 10 lies at dimension 0, slow 1 at 1, so the second is divided by the factor 4.
    float two[2];
    *c = (moem_config){.head_dim = 4,
                       .rope_theta = 100,
                       .rope_factor = 4,
                       .rope_original = 62.831853071795864769,
                       .rope_fast = 10,
                       .rope_slow = 1};
    moem_rope_frequencies(c, two);
    CHECK(two[0] == 1 && fabs((double)two[1] - 0.025) < 1e-8, "%.9g %.9g", (double)two[0],
          (double)two[1]);
    free(c);
}

static void test_rotate(void)
{
    static const int64_t dims[] = {2, 6, 64, 128};
    static const int64_t positions[] = {0, 1, 127, 4095, 131071, 16777215};
    moec_rng rng = {5};
    for (size_t i = 0; i < COUNT(dims) * COUNT(positions); i++) {
        const int64_t dim = dims[i % COUNT(dims)];
        const int64_t at = positions[i / COUNT(dims)];
        const int64_t half = dim / 2;
        const double scale = i % 2 == 0 ? 1 : 1.3465735902799727;
        float *x = normals(&rng, 3 * dim, 1);
        float *turned = malloc((size_t)(3 * dim) * sizeof *turned);
        float frequencies[64];
        memcpy(turned, x, (size_t)(3 * dim) * sizeof *x);
        for (int64_t d = 0; d < half; d++) {
            frequencies[d] = (float)pow(150000, -2.0 * (double)d / (double)dim);
        }
        float turn[128];
        moem_turn(frequencies, scale, at, dim, turn);
        moem_rotate(turn, 3, dim, turned);
        for (int64_t d = 0; d < 3 * half; d++) {
            const int64_t one = d / half * dim + d % half;
            const double a = (double)x[one];
            const double b = (double)x[one + half];
            const double angle = (double)((float)at * frequencies[d % half]);
            const double expected[] = {scale * (a * cos(angle) - b * sin(angle)),
                                       scale * (b * cos(angle) + a * sin(angle))};
            const double bound = 2 * ULP * scale * (fabs(a) + fabs(b));
            for (int64_t k = 0; k < 2; k++) {
                CHECK(fabs((double)turned[one + k * half] - expected[k]) <= bound,
                      "dim %d, position %d: %.9g, expected %.9g", (int)dim, (int)at,
                      (double)turned[one + k * half], expected[k]);
            }
        }
        CHECK(at != 0 || scale != 1 || memcmp(x, turned, (size_t)(3 * dim) * sizeof *x) == 0,
              "position 0 turns");
        free(x);
        free(turned);
    }
}

static void norm_rows(const moem_kernels *k, int pool, float *x, const float *branch,
                      const float *weight, int64_t rows, int64_t width, const int64_t *index,
                      float *out)
{
    moem_rms_norm(&pools[pool], &(moem_norm_args){.kernels = k,
                                                  .x = x,
                                                  .branch = branch,
                                                  .weight = weight,
                                                  .eps = 1e-5,
                                                  .rows = rows,
                                                  .width = width,
                                                  .index = index,
                                                  .out = out});
}

#define NORM_ROWS 9

static void check_norm(const float *x, const float *weight, int64_t width, const float *out)
{
    for (int64_t r = 0; r < NORM_ROWS; r++) {
        double sum = 0;
        for (int64_t d = 0; d < width; d++) {
            sum += pow((double)x[r * width + d], 2) / (double)width;
        }
        for (int64_t d = 0; d < width; d++) {
            const double expected = (double)x[r * width + d] / sqrt(sum + 1e-5) * (double)weight[d];
            CHECK(
                fabs((double)out[r * width + d] - expected) <= 2 * ULP * fabs(expected) + 0x1p-149,
                "width %d: %.9g, expected %.9g", (int)width, (double)out[r * width + d], expected);
        }
    }
}

// The sum with a branch, some rows alone, with any threads and kernels: the bits of the norm of
// what was added before.
static void check_norm_bits(const float *x, const float *weight, int64_t width, const float *out,
                            moec_rng *rng)
{
    static const int64_t some[] = {8, 0, 5};
    const size_t size = (size_t)(NORM_ROWS * width) * sizeof(float);
    float *branch = normals(rng, NORM_ROWS * width, 1);
    float *sum = malloc(size);
    float *plain = malloc(size);
    float *other = malloc(size);
    for (int64_t i = 0; i < NORM_ROWS * width; i++) {
        sum[i] = x[i] + branch[i];
    }
    norm_rows(kernels, 0, sum, NULL, weight, NORM_ROWS, width, NULL, plain);
    for (size_t k = 0; moem_kernels_at(k) != NULL; k++) {
        const moem_kernels *one = moem_kernels_at(k);
        for (int pool = 0; pool < POOLS && moem_kernels_run(one, contexts[0]); pool++) {
            memcpy(other, x, size);
            norm_rows(one, pool, other, NULL, weight, NORM_ROWS, width, NULL, sum);
            CHECK(memcmp(out, sum, size) == 0 && memcmp(x, other, size) == 0,
                  "pool %d, kernels %zu: other bits", pool, k);
            norm_rows(one, pool, other, branch, weight, NORM_ROWS, width, NULL, sum);
            CHECK(memcmp(plain, sum, size) == 0, "pool %d, kernels %zu: other bits of a sum", pool,
                  k);
            norm_rows(one, pool, other, NULL, weight, 3, width, some, sum);
            for (int64_t r = 0; r < 3; r++) {
                CHECK(memcmp(plain + some[r] * width, sum + r * width,
                             (size_t)width * sizeof *sum) == 0,
                      "pool %d, kernels %zu: row %d is not row %d", pool, k, (int)r, (int)some[r]);
            }
        }
    }
    free(branch);
    free(sum);
    free(plain);
    free(other);
}

static void test_norm(void)
{
    static const int64_t widths[] = {1, 2, 31, 288, 2880};
    moec_rng rng = {6};
    for (size_t i = 0; i < COUNT(widths); i++) {
        const int64_t width = widths[i];
        float *x =
            normals(&rng, NORM_ROWS * width, i % 2 == 0 ? 1 : 1e18); // squares beyond float32
        float *weight = normals(&rng, width, 1);
        float *out = malloc((size_t)(NORM_ROWS * width) * sizeof *out);
        norm_rows(kernels, 0, x, NULL, weight, NORM_ROWS, width, NULL, out);
        check_norm(x, weight, width, out);
        check_norm_bits(x, weight, width, out, &rng);
        free(out);
        free(x);
        free(weight);
    }
    // A row of zeros stays zero, without eps too where there is any.
    float zeros[4] = {0};
    const float ones[4] = {1, 1, 1, 1};
    float out[4] = {5, 5, 5, 5};
    norm_rows(kernels, 0, zeros, NULL, ones, 1, 4, NULL, out);
    CHECK(memcmp(out, zeros, sizeof out) == 0, "zeros become %g", (double)out[0]);
}

// -- Sampling -------------------------------------------------------------------------------------

#define DRAWS 40000

static int32_t sample(double temperature, double top_p, const float *logits, int64_t vocab,
                      uint64_t stream, uint64_t position)
{
    const moem_sampling s = {temperature, top_p, 42};
    void *scratch = malloc(moem_sample_scratch(vocab));
    const int32_t id = moem_sample(&s, logits, vocab, stream, position, scratch);
    free(scratch);
    return id;
}

static void test_sample_largest(void)
{
    const float ties[] = {-1, 3, 2, 3, 3};
    const float one = -7;
    CHECK(sample(0, 1, ties, 5, 0, 0) == 1, "of equal logits not the lower id");
    CHECK(sample(0, 1, ties + 2, 3, 0, 0) == 1, "of two equal logits not the lower id");
    CHECK(sample(0, 1, &one, 1, 0, 0) == 0 && sample(2, 0.5, &one, 1, 3, 4) == 0, "of one token");
    const float low[] = {-HUGE_VALF, -HUGE_VALF, -3, -4};
    CHECK(sample(0, 1, low, 4, 0, 0) == 2, "an infinite logit is chosen");
    for (uint64_t at = 0; at < 2000; at++) {
        CHECK(sample(1, 1e-9, ties, 5, 1, at) == 1, "a tiny top_p is not the largest");
        CHECK(sample(1e-6, 1, ties + 1, 2, 1, at) == 0, "a tiny temperature is not the largest");
        const int32_t id = sample(1, 1, low, 4, 1, at);
        CHECK(id >= 2, "token %d has probability 0", (int)id);
    }
}

// Draws against probabilities p[n]: none where p is 0, else within 5 binomial deviations.
static void check_frequencies(const char *what, double temperature, double top_p,
                              const float *logits, const double *p, int n)
{
    int64_t seen[8] = {0};
    for (uint64_t at = 0; at < DRAWS; at++) {
        seen[sample(temperature, top_p, logits, n, at % 7, at / 7)]++;
    }
    for (int i = 0; i < n; i++) {
        const double mean = DRAWS * p[i];
        CHECK(fabs((double)seen[i] - mean) <= 5 * sqrt(mean * (1 - p[i])),
              "%s: token %d was drawn %d times, expected %.1f", what, i, (int)seen[i], mean);
    }
}

static void test_sample_frequencies(void)
{
    // Probabilities 0.1, 0.4, 0.2, 0.3.
    float logits[4];
    const double shares[] = {0.1, 0.4, 0.2, 0.3};
    for (int i = 0; i < 4; i++) {
        logits[i] = (float)(log(shares[i]) + 20);
    }
    check_frequencies("all", 1, 1, logits, shares, 4);
    check_frequencies("0.95 needs all", 1, 0.95, logits, shares, 4);
    check_frequencies("0.85 needs three", 1, 0.85, logits, (double[]){0, 4. / 9, 2. / 9, 3. / 9},
                      4);
    check_frequencies("0.65 needs two", 1, 0.65, logits, (double[]){0, 4. / 7, 0, 3. / 7}, 4);
    check_frequencies("0.45 needs two", 1, 0.45, logits, (double[]){0, 4. / 7, 0, 3. / 7}, 4);
    check_frequencies("0.35 needs one", 1, 0.35, logits, (double[]){0, 1, 0, 0}, 4);
    // Squares at half the temperature: 1, 16, 4, 9 of 30. The set is of the heated probabilities:
    // 16 + 9 of 30 reach 0.8, where without heat 0.7 would not.
    check_frequencies("half", 0.5, 1, logits, (double[]){1. / 30, 16. / 30, 4. / 30, 9. / 30}, 4);
    check_frequencies("half, 0.8", 0.5, 0.8, logits, (double[]){0, 16. / 25, 0, 9. / 25}, 4);
    // Of equal tokens the lower ids are kept.
    const float equal[] = {1, 1, 1, 1, 1};
    check_frequencies("equal, 0.5", 3, 0.5, equal, (double[]){1. / 3, 1. / 3, 1. / 3, 0, 0}, 5);
}

static void test_sample_repeats(void)
{
    float logits[64];
    int differ[3] = {0};
    moec_rng rng = {9};
    void *scratch = malloc(moem_sample_scratch(64));
    for (int i = 0; i < 64; i++) {
        logits[i] = (float)moec_normal(&rng);
    }
    for (uint64_t at = 0; at < 500; at++) {
        const moem_sampling s = {1, 0.9, 1};
        const moem_sampling other = {1, 0.9, 2};
        const int32_t id = moem_sample(&s, logits, 64, 3, at, scratch);
        memset(scratch, (int)at, moem_sample_scratch(64));
        CHECK(moem_sample(&s, logits, 64, 3, at, scratch) == id, "another id the second time");
        differ[0] += moem_sample(&other, logits, 64, 3, at, scratch) != id;
        differ[1] += moem_sample(&s, logits, 64, 4, at, scratch) != id;
        differ[2] += moem_sample(&s, logits, 64, 3, at + 1, scratch) != id;
    }
    for (int i = 0; i < 3; i++) { // two independent draws of 64 tokens are seldom the same
        CHECK(differ[i] > 400, "%d of 500 draws differ with another seed, stream or position",
              differ[i]);
    }
    free(scratch);
}

int main(void)
{
    static const int32_t threads[POOLS] = {1, 2, 7};
    for (int i = 0; i < POOLS; i++) {
        moe_context_desc desc = moe_context_desc_default();
        desc.num_threads = threads[i];
        if (!CHECK(moe_context_create(&desc, &contexts[i]) == MOE_OK, "%s", moe_last_error())) {
            return test_summary();
        }
        pools[i] = moe_context_pool(contexts[i]);
    }
    kernels = moem_kernels_of(contexts[0]);
    test_attention();
    test_attention_extremes();
    test_placing();
    test_frequencies();
    test_rotate();
    test_norm();
    test_sample_largest();
    test_sample_frequencies();
    test_sample_repeats();
    for (int i = 0; i < POOLS; i++) {
        moe_context_destroy(contexts[i]);
    }
    return test_summary();
}
