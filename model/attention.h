// SPDX-License-Identifier: Apache-2.0
/// @file attention.h  Grouped-query attention with sinks over a cache of keys and values, and what
/// stands around it.
#ifndef MOEM_ATTENTION_H
#define MOEM_ATTENTION_H

#include "model/kernels.h"
#include "model/model.h"

/// Keys and values of one layer and one sequence, float32, as moem_attend_args has them, for each
/// of `kv_heads`. Position p lies in row p % rows, so that a sliding layer keeps its window alone.
typedef struct moem_cache {
    float *keys, *values;
    int64_t rows; ///< a multiple of MOEM_LANES
} moem_cache;

/// For at least `least` positions. False where memory is short; to be freed either way.
bool moem_cache_create(int64_t least, int64_t kv_heads, int64_t head_dim, moem_cache *out);
void moem_cache_free(moem_cache *cache);

/// Puts the key and the value of a position, [kv_heads, head_dim] each, into its row.
void moem_cache_put(const moem_cache *cache, int64_t kv_heads, int64_t head_dim, int64_t position,
                    const float *key, const float *value);

/// A query, its place and the keys it may see.
typedef struct moem_query {
    const moem_cache *cache;
    int64_t position; ///< sees positions max(0, position - window + 1) .. position
} moem_query;

typedef struct moem_attention_args {
    const moem_kernels *kernels;
    int64_t tokens, heads, kv_heads, head_dim, window;
    const moem_query *queries; ///< [tokens]
    float *q;                  ///< [tokens, heads * head_dim], turned; or see turns
    int64_t q_stride;          ///< from one token's to the next one's
    const float *sinks;        ///< [heads]: a logit that takes weight and gives nothing
    float *out;                ///< [tokens, heads * head_dim]
    /// NULL: the queries' keys and values are in their caches. Else those of a token lie behind its
    /// queries, [kv_heads, head_dim] each, and all is as products left it: queries and keys are
    /// turned in place by turns [tokens, head_dim], keys and values put into the caches.
    const float *turns;
} moem_attention_args;

/// softmax over the keys and the sink, in float32, keys in ascending position; a running maximum
/// per block of positions, so that a query's result depends on nothing but its own keys. Source:
/// Dao et al., FlashAttention, 2022, algorithm 1 (rescaling); the sinks as in OpenAI's gpt-oss
/// model card, 2025.
void moem_attention(const moe_thread_pool *pool, const moem_attention_args *args);

/// Cosines, then sines, of position * frequency: of the float32 product, times `scale`, as float32.
/// @param[out] turn  [head_dim]
void moem_turn(const float *frequencies, double scale, int64_t position, int64_t head_dim,
               float *turn);

/// Turns halves (x1, x2) of each head of x [heads, head_dim].
void moem_rotate(const float *turn, int64_t heads, int64_t head_dim, float *x);

/// Rows to be normed; what moem_kernels.norm does to each.
typedef struct moem_norm_args {
    const moem_kernels *kernels;
    float *x;            ///< [.., width], gets the sum with branch
    const float *branch; ///< as x; NULL: none
    const float *weight; ///< [width]
    double eps;
    int64_t rows, width;
    const int64_t *index; ///< [rows]: rows of x and branch; NULL: all in order
    float *out;           ///< [rows, width]
} moem_norm_args;

/// Source: Zhang and Sennrich, RMSNorm, 2019.
void moem_rms_norm(const moe_thread_pool *pool, const moem_norm_args *args);

#endif
