// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <math.h>
#include <string.h>

#define BLOCK 32 // keys per step of the running maximum
#define WIDTH 16 // values of a key that are summed in registers
#define LANES 8  // partial sums of a product, added in a fixed tree

static float dot(const float *a, const float *b, int64_t n)
{
    float sum[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            sum[l] += a[i + l] * b[i + l];
        }
    }
    for (int l = 0; i + l < n; l++) {
        sum[l] += a[i + l] * b[i + l];
    }
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// acc[j] += share of a key * its value [d + j], keys ascending; acc stays in registers.
static inline void add_values(const float *share, const float *const *value, int64_t n, int64_t d,
                              float *acc)
{
    float sum[WIDTH];
    memcpy(sum, acc, sizeof sum);
    for (int64_t i = 0; i < n; i++) {
        const float *v = value[i] + d;
        for (int j = 0; j < WIDTH; j++) {
            sum[j] += share[i] * v[j];
        }
    }
    memcpy(acc, sum, sizeof sum);
}

// One head of one query.
static void attend(const moem_attention_args *a, const moem_query *query, const float *q,
                   const float *keys, const float *values, float sink, float *out)
{
    const int64_t dim = a->head_dim;
    const int64_t rows = query->cache->rows;
    const int64_t first = query->position >= a->window ? query->position - a->window + 1 : 0;
    const float scale = (float)(1 / sqrt((double)dim));
    float acc[MOEM_MAX_HEAD_DIM] = {0};
    float most = sink;
    float total = 1; // the sink's share, exp(sink - most)
    int64_t row = first % rows;
    for (int64_t p0 = first; p0 <= query->position; p0 += BLOCK) {
        const int64_t n = query->position - p0 + 1 < BLOCK ? query->position - p0 + 1 : BLOCK;
        float score[BLOCK];
        const float *value[BLOCK];
        float top = most;
        for (int64_t i = 0; i < n; i++) {
            score[i] = dot(q, keys + row * dim, dim) * scale;
            value[i] = values + row * dim;
            row = row + 1 < rows ? row + 1 : 0;
            top = score[i] > top ? score[i] : top;
        }
        if (top > most) {
            const float shrink = expf(most - top);
            total *= shrink;
            for (int64_t d = 0; d < dim; d++) {
                acc[d] *= shrink;
            }
            most = top;
        }
        float share[BLOCK];
        for (int64_t i = 0; i < n; i++) {
            share[i] = expf(score[i] - most);
            total += share[i];
        }
        int64_t d = 0;
        for (; d + WIDTH <= dim; d += WIDTH) {
            add_values(share, value, n, d, acc + d);
        }
        for (; d < dim; d++) {
            for (int64_t i = 0; i < n; i++) {
                acc[d] += share[i] * value[i][d];
            }
        }
    }
    for (int64_t d = 0; d < dim; d++) {
        out[d] = acc[d] / total;
    }
}

// Task: one token and one key head, whose keys all query heads of the group read while hot.
static void attend_group(void *arg, size_t index)
{
    const moem_attention_args *a = arg;
    const int64_t t = (int64_t)index / a->kv_heads;
    const int64_t kv = (int64_t)index % a->kv_heads;
    const int64_t group = a->heads / a->kv_heads;
    const moem_query *query = &a->queries[t];
    const int64_t at = kv * query->cache->rows * a->head_dim;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        const int64_t offset = (t * a->heads + h) * a->head_dim;
        attend(a, query, a->q + offset, query->cache->keys + at, query->cache->values + at,
               a->sinks[h], a->out + offset);
    }
}

void moem_attention(const moe_thread_pool *pool, const moem_attention_args *args)
{
    moem_attention_args a = *args;
    pool->parallel_for(pool->self, (size_t)(a.tokens * a.kv_heads), attend_group, &a);
}

void moem_rotate(const float *frequencies, double scale, int64_t position, int64_t heads,
                 int64_t head_dim, float *x)
{
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        const float angle = (float)position * frequencies[i];
        const float c = (float)(cos((double)angle) * scale);
        const float s = (float)(sin((double)angle) * scale);
        for (int64_t h = 0; h < heads; h++) {
            float *one = &x[h * head_dim + i];
            float *two = one + half;
            const float a = *one;
            const float b = *two;
            *one = a * c - b * s;
            *two = b * c + a * s;
        }
    }
}

struct norm {
    const float *x, *weight;
    double eps;
    int64_t width;
    float *out;
};

static void norm_row(void *arg, size_t row)
{
    const struct norm *n = arg;
    const float *x = n->x + (int64_t)row * n->width;
    float *out = n->out + (int64_t)row * n->width;
    double sum = 0;
    for (int64_t i = 0; i < n->width; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    const float factor = (float)(1 / sqrt(sum / (double)n->width + n->eps));
    for (int64_t i = 0; i < n->width; i++) {
        out[i] = x[i] * factor * n->weight[i];
    }
}

void moem_rms_norm(const moe_thread_pool *pool, const float *x, const float *weight, double eps,
                   int64_t rows, int64_t width, float *out)
{
    struct norm n = {.x = x, .weight = weight, .eps = eps, .width = width};
    n.out = out;
    pool->parallel_for(pool->self, (size_t)rows, norm_row, &n);
}
