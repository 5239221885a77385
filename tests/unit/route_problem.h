// SPDX-License-Identifier: Apache-2.0
// A routing problem with every buffer that moe_route can read or write, for the tests of routing.
#ifndef MOE_TESTS_UNIT_ROUTE_PROBLEM_H
#define MOE_TESTS_UNIT_ROUTE_PROBLEM_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/routing.h"

/// splitmix64.
typedef struct rng {
    uint64_t state;
} rng;

static inline uint64_t rng_next(rng *r)
{
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline int64_t rng_below(rng *r, int64_t n)
{
    return (int64_t)(rng_next(r) % (uint64_t)n);
}

/// Roughly normal: a sum of uniform numbers, times `spread`.
static inline float rng_normal(rng *r, float spread)
{
    double sum = 0.0;
    for (int i = 0; i < 12; i++) {
        sum += (double)(rng_next(r) >> 11) / 9007199254740992.0;
    }
    return (float)(sum - 6.0) * spread;
}

typedef struct problem {
    moe_route_desc desc;
    int32_t experts, top_k;
    int64_t tokens;
    int64_t rows, slots; // router rows; slots of a token, appended ones included
    float *logits;       // [tokens, rows]
    float *bias;         // [experts + zero_experts]
    float scale_tensor;
    int64_t vocabulary;
    int32_t *hash_table; // [vocabulary, top_k]
    int32_t *token_ids;  // [tokens]
    // out
    int32_t *ids;   // [tokens, slots]
    float *weights; // [tokens, slots]
    float *shared;  // [tokens, shared_scores]
} problem;

static inline void *problem_array(int64_t n, size_t size)
{
    void *p = calloc((size_t)(n > 0 ? n : 1), size);
    if (p == NULL) {
        abort();
    }
    return p;
}

static inline void problem_alloc(problem *p)
{
    const int64_t keyed = p->experts + p->desc.zero_experts;
    p->rows = keyed + p->desc.shared_scores;
    p->slots = p->top_k + p->desc.append_shared;
    p->logits = problem_array(p->tokens * p->rows, sizeof(float));
    p->bias = problem_array(keyed, sizeof(float));
    p->vocabulary = 50;
    p->hash_table = problem_array(p->vocabulary * p->top_k, sizeof(int32_t));
    p->token_ids = problem_array(p->tokens, sizeof(int32_t));
    p->ids = problem_array(p->tokens * p->slots, sizeof(int32_t));
    p->weights = problem_array(p->tokens * p->slots, sizeof(float));
    p->shared = problem_array(p->tokens * p->desc.shared_scores, sizeof(float));
}

static inline void problem_free(problem *p)
{
    free(p->logits);
    free(p->bias);
    free(p->hash_table);
    free(p->token_ids);
    free(p->ids);
    free(p->weights);
    free(p->shared);
}

/// Random inputs for whatever the descriptor asks for.
static inline void problem_fill(problem *p, rng *r, float spread)
{
    const int64_t keyed = p->experts + p->desc.zero_experts;
    for (int64_t i = 0; i < p->tokens * p->rows; i++) {
        p->logits[i] = rng_normal(r, spread);
    }
    for (int64_t i = 0; i < keyed; i++) {
        p->bias[i] = rng_normal(r, 0.25f);
    }
    for (int64_t v = 0; v < p->vocabulary; v++) { // k different ids
        const int64_t first = rng_below(r, keyed);
        for (int64_t j = 0; j < p->top_k; j++) {
            p->hash_table[v * p->top_k + j] = (int32_t)((first + j) % keyed);
        }
    }
    for (int64_t t = 0; t < p->tokens; t++) {
        p->token_ids[t] = (int32_t)rng_below(r, p->vocabulary);
    }
    p->scale_tensor = 0.75f;
}

static inline moe_route_args problem_args(const problem *p)
{
    const int64_t keyed = p->experts + p->desc.zero_experts;
    moe_route_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.desc = p->desc;
    a.num_experts = p->experts;
    a.top_k = p->top_k;
    a.logits = moe_tensor_2d(p->logits, MOE_F32, p->tokens, p->rows);
    if (p->desc.correction_bias) {
        a.correction_bias = moe_tensor_1d(p->bias, MOE_F32, keyed);
    }
    if (p->desc.scale_tensor) {
        a.scale_tensor = moe_tensor_1d(&p->scale_tensor, MOE_F32, 1);
    }
    if (p->desc.hash_table) {
        a.hash_table = moe_tensor_2d(p->hash_table, MOE_I32, p->vocabulary, p->top_k);
        a.token_ids = moe_tensor_1d(p->token_ids, MOE_I32, p->tokens);
    }
    a.ids = moe_tensor_2d(p->ids, MOE_I32, p->tokens, p->slots);
    a.weights = moe_tensor_2d(p->weights, MOE_F32, p->tokens, p->slots);
    if (p->desc.shared_scores > 0) {
        a.shared_weights = moe_tensor_2d(p->shared, MOE_F32, p->tokens, p->desc.shared_scores);
    }
    return a;
}

/// Runs into the problem's own outputs, poisoned first.
static inline moe_status problem_run(const moe_context *ctx, problem *p)
{
    const moe_route_args a = problem_args(p);
    memset(p->ids, 0xA5, (size_t)(p->tokens * p->slots) * sizeof(int32_t));
    memset(p->weights, 0xA5, (size_t)(p->tokens * p->slots) * sizeof(float));
    memset(p->shared, 0xA5, (size_t)(p->tokens * p->desc.shared_scores) * sizeof(float));
    return moe_route(ctx, &a, NULL);
}

static inline moe_context *route_context(const char *isa, int threads)
{
    moe_context_desc d = moe_context_desc_default();
    moe_context *ctx = NULL;
    d.isa = isa;
    d.num_threads = threads;
    return moe_context_create(&d, &ctx) == MOE_OK ? ctx : NULL;
}

/// A descriptor with the two fields that have no default.
static inline moe_route_desc route_desc(moe_scoring scoring, moe_renorm renormalise)
{
    moe_route_desc d;
    memset(&d, 0, sizeof d);
    d.scoring = scoring;
    d.renormalise = renormalise;
    return d;
}

#endif
