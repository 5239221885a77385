// SPDX-License-Identifier: Apache-2.0
/// @file attention.h  Grouped-query attention with sinks over a cache of keys and values.
#ifndef MOEM_ATTENTION_H
#define MOEM_ATTENTION_H

#include "model/model.h"

/// Keys and values of one layer and one sequence: [kv_heads, rows, head_dim] float32 each.
/// Position p lies in row p % rows, so that a sliding layer keeps its window alone.
typedef struct moem_cache {
    float *keys, *values;
    int64_t rows;
} moem_cache;

/// A query, its place and the keys it may see.
typedef struct moem_query {
    const moem_cache *cache;
    int64_t position; ///< sees positions max(0, position - window + 1) .. position
} moem_query;

typedef struct moem_attention_args {
    int64_t tokens, heads, kv_heads, head_dim, window;
    const moem_query *queries; ///< [tokens]
    const float *q;            ///< [tokens, heads * head_dim], rotated
    const float *sinks;        ///< [heads]: a logit that takes weight and gives nothing
    float *out;                ///< [tokens, heads * head_dim]
} moem_attention_args;

/// softmax over the keys and the sink, in float32, keys in ascending position; a running maximum
/// per block of keys counted from the first visible one, so that a query's result depends on
/// nothing but its own keys. Source: Dao et al., FlashAttention, 2022, algorithm 1 (rescaling);
/// the sinks as in OpenAI's gpt-oss model card, 2025.
void moem_attention(const moe_thread_pool *pool, const moem_attention_args *args);

/// Largest head_dim that moem_attention takes.
#define MOEM_MAX_HEAD_DIM 512

/// Turns halves (x1, x2) of each head of x [heads, head_dim] by position * frequency: cosine and
/// sine of the float32 product, times `scale`, as float32.
void moem_rotate(const float *frequencies, double scale, int64_t position, int64_t heads,
                 int64_t head_dim, float *x);

/// out = x / sqrt(mean(x^2) + eps) * weight for each of `rows` rows of `width`; the sum in double.
/// Source: Zhang and Sennrich, RMSNorm, 2019.
void moem_rms_norm(const moe_thread_pool *pool, const float *x, const float *weight, double eps,
                   int64_t rows, int64_t width, float *out);

#endif
