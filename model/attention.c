// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/decoder.h"

static int64_t round_up(int64_t n)
{
    return (n + MOEM_LANES - 1) / MOEM_LANES * MOEM_LANES;
}

// ---- the cache ---------------------------------------------------------------------------------

static float *floats(int64_t count)
{
    return moem_allocate((size_t)count * sizeof(float), 0);
}

bool moem_cache_create(int64_t least, int64_t kv_heads, int64_t head_dim, moem_cache *out)
{
    out->rows = round_up(least);
    out->keys = floats(kv_heads * out->rows * head_dim);
    out->values = floats(kv_heads * out->rows * round_up(head_dim));
    return out->keys != NULL && out->values != NULL;
}

void moem_cache_free(moem_cache *cache)
{
    free(cache->keys);
    free(cache->values);
    *cache = (moem_cache){.rows = 0};
}

static void put_head(const moem_cache *cache, int64_t h, int64_t head_dim, int64_t position,
                     const float *key, const float *value)
{
    const int64_t row = position % cache->rows;
    float *to = cache->keys + (h * cache->rows + row / MOEM_LANES * MOEM_LANES) * head_dim +
                row % MOEM_LANES;
    for (int64_t d = 0; d < head_dim; d++) {
        to[d * MOEM_LANES] = key[d];
    }
    memcpy(cache->values + (h * cache->rows + row) * round_up(head_dim), value,
           (size_t)head_dim * sizeof *value);
}

void moem_cache_put(const moem_cache *cache, int64_t kv_heads, int64_t head_dim, int64_t position,
                    const float *key, const float *value)
{
    for (int64_t h = 0; h < kv_heads; h++) {
        put_head(cache, h, head_dim, position, key + h * head_dim, value + h * head_dim);
    }
}

// ---- attention ---------------------------------------------------------------------------------

/// Tasks: a few tokens and one key head, whose keys all query heads of the group read while hot.
typedef struct attention {
    moem_attention_args args;
    int64_t group; // query heads of a key head
    int64_t each;  // tokens of a task
    bool places;   // as well
} attention;

#define PLACE_TOKENS 16 // of a task

// Turns and puts what belongs to key head kv of tokens t0 .. t1 - 1.
static void place(const attention *s, int64_t t0, int64_t t1, int64_t kv)
{
    const moem_attention_args *a = &s->args;
    const int64_t dim = a->head_dim;
    for (int64_t t = t0; t < t1; t++) {
        float *q = a->q + t * a->q_stride;
        float *k = q + (a->heads + kv) * dim;
        moem_rotate(a->turns + t * dim, s->group, dim, q + kv * s->group * dim);
        moem_rotate(a->turns + t * dim, 1, dim, k);
        put_head(a->queries[t].cache, kv, dim, a->queries[t].position, k, k + a->kv_heads * dim);
    }
}

static void place_task(void *arg, size_t index)
{
    const attention *s = arg;
    const int64_t begin = (int64_t)index * PLACE_TOKENS;
    const int64_t end =
        begin + PLACE_TOKENS < s->args.tokens ? begin + PLACE_TOKENS : s->args.tokens;
    for (int64_t kv = 0; kv < s->args.kv_heads; kv++) {
        place(s, begin, end, kv);
    }
}

// Query heads kv * group + h0 .. + heads - 1 of tokens t0 .. t1 - 1, which share a cache.
static void attend(const attention *s, int64_t t0, int64_t t1, int64_t kv, int64_t h0,
                   int64_t heads)
{
    const moem_attention_args *a = &s->args;
    const moem_cache *cache = a->queries[t0].cache;
    const int64_t width = round_up(a->head_dim);
    const moem_attend_args keys = {.keys = cache->keys + kv * cache->rows * a->head_dim,
                                   .values = cache->values + kv * cache->rows * width,
                                   .rows = cache->rows,
                                   .dim = a->head_dim,
                                   .width = width,
                                   .scale = (float)(1 / sqrt((double)a->head_dim))};
    moem_attend_row rows[MOEM_ATTEND_ROWS];
    int64_t count = 0;
    for (int64_t t = t0; t < t1; t++) {
        const int64_t at = a->queries[t].position;
        for (int64_t h = kv * s->group + h0; h < kv * s->group + h0 + heads; h++) {
            rows[count++] = (moem_attend_row){.q = a->q + t * a->q_stride + h * a->head_dim,
                                              .out = a->out + (t * a->heads + h) * a->head_dim,
                                              .first = at >= a->window ? at - a->window + 1 : 0,
                                              .last = at,
                                              .sink = a->sinks[h]};
        }
    }
    a->kernels->attend(&keys, rows, count);
}

static void attention_task(void *arg, size_t index)
{
    const attention *s = arg;
    const moem_attention_args *a = &s->args;
    const int64_t kv = (int64_t)index % a->kv_heads;
    const int64_t begin = (int64_t)index / a->kv_heads * s->each;
    const int64_t end = begin + s->each < a->tokens ? begin + s->each : a->tokens;
    if (s->places) {
        place(s, begin, end, kv);
    }
    for (int64_t t0 = begin, t1; t0 < end; t0 = t1) {
        for (t1 = t0 + 1; t1 < end && a->queries[t1].cache == a->queries[t0].cache;) {
            t1++;
        }
        for (int64_t h = 0; h < s->group; h += MOEM_ATTEND_ROWS) {
            const int64_t left = s->group - h;
            attend(s, t0, t1, kv, h, left < MOEM_ATTEND_ROWS ? left : MOEM_ATTEND_ROWS);
        }
    }
}

void moem_attention(const moe_thread_pool *pool, const moem_attention_args *args)
{
    attention s = {.args = *args, .group = args->heads / args->kv_heads};
    s.each = s.group < MOEM_ATTEND_ROWS ? MOEM_ATTEND_ROWS / s.group : 1;
    const int64_t tasks = (args->tokens + s.each - 1) / s.each * args->kv_heads;
    // A task of all tokens needs nothing of another one: a thread that has a head each step keeps
    // that head's cache in its own.
    s.places = args->turns != NULL && args->tokens <= s.each;
    if (args->turns != NULL && !s.places) {
        pool->parallel_for(pool->self, (size_t)((args->tokens + PLACE_TOKENS - 1) / PLACE_TOKENS),
                           place_task, &s);
    }
    pool->parallel_for(pool->self, (size_t)tasks, attention_task, &s);
}

// ---- around it ---------------------------------------------------------------------------------

void moem_turn(const float *frequencies, double scale, int64_t position, int64_t head_dim,
               float *turn)
{
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        const float angle = (float)position * frequencies[i];
        turn[i] = (float)(cos((double)angle) * scale);
        turn[half + i] = (float)(sin((double)angle) * scale);
    }
}

void moem_rotate(const float *turn, int64_t heads, int64_t head_dim, float *x)
{
    const int64_t half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++) {
        float *restrict one = x + h * head_dim;
        float *restrict two = one + half;
        for (int64_t i = 0; i < half; i++) {
            const float a = one[i];
            const float b = two[i];
            one[i] = a * turn[i] - b * turn[half + i];
            two[i] = b * turn[i] + a * turn[half + i];
        }
    }
}

#define NORM_ROWS 8 // of a task

static void norm_task(void *arg, size_t index)
{
    const moem_norm_args *a = arg;
    const int64_t begin = (int64_t)index * NORM_ROWS;
    for (int64_t r = begin; r < a->rows && r < begin + NORM_ROWS; r++) {
        const int64_t at = (a->index != NULL ? a->index[r] : r) * a->width;
        a->kernels->norm(a->x + at, a->branch != NULL ? a->branch + at : NULL, a->weight, a->eps,
                         a->width, a->out + r * a->width);
    }
}

void moem_rms_norm(const moe_thread_pool *pool, const moem_norm_args *args)
{
    moem_norm_args a = *args;
    pool->parallel_for(pool->self, (size_t)((a.rows + NORM_ROWS - 1) / NORM_ROWS), norm_task, &a);
}

// ---- which kernels -----------------------------------------------------------------------------

extern const moem_kernels moem_kernels__portable;
#ifdef MOEM_HAVE_AVX
extern const moem_kernels moem_kernels__avx2, moem_kernels__avx512;
#endif

static const moem_kernels *const all_kernels[] = {
#ifdef MOEM_HAVE_AVX
    &moem_kernels__avx512, &moem_kernels__avx2,
#endif
    &moem_kernels__portable};

const moem_kernels *moem_kernels_at(size_t i)
{
    return i < sizeof all_kernels / sizeof all_kernels[0] ? all_kernels[i] : NULL;
}

static int is_of_isa(void *self, const moe_kernel_info *info)
{
    return info->available != 0 && strcmp(info->isa, self) == 0;
}

int moem_kernels_run(const moem_kernels *kernels, const moe_context *ctx)
{
    char isa[16] = "";
    if (kernels->isa == NULL) {
        return 1;
    }
    memcpy(isa, kernels->isa, strlen(kernels->isa));
    return moe_context_visit_kernels(ctx, is_of_isa, isa) != 0;
}

const moem_kernels *moem_kernels_of(const moe_context *ctx)
{
    size_t i = 0;
    while (!moem_kernels_run(all_kernels[i], ctx)) {
        i++;
    }
    return all_kernels[i];
}
