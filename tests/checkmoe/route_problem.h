// SPDX-License-Identifier: Apache-2.0
// A routing problem with every buffer that moe_route can read or write; a numbered grid of them,
// and the verdict of float64 on a token. The tests of routing and `moe check` draw from the same
// grid.
#ifndef MOE_CHECKMOE_ROUTE_PROBLEM_H
#define MOE_CHECKMOE_ROUTE_PROBLEM_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/checkmoe.h"

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

/// Gives `count` elements of 4 bytes; never NULL.
typedef void *problem_alloc_fn(void *self, int64_t count);

static inline void *problem_calloc(void *self, int64_t count)
{
    (void)self;
    return problem_array(count, sizeof(float));
}

/// Sizes from the descriptor, and what a call reads.
static inline void problem_alloc_inputs(problem *p, problem_alloc_fn *alloc, void *self)
{
    const int64_t keyed = p->experts + p->desc.zero_experts;
    p->rows = keyed + p->desc.shared_scores;
    p->slots = p->top_k + p->desc.append_shared;
    p->vocabulary = 50;
    p->logits = alloc(self, p->tokens * p->rows);
    p->bias = alloc(self, keyed);
    p->hash_table = alloc(self, p->vocabulary * p->top_k);
    p->token_ids = alloc(self, p->tokens);
}

/// What a call writes.
static inline void problem_alloc_outputs(problem *p, problem_alloc_fn *alloc, void *self)
{
    p->ids = alloc(self, p->tokens * p->slots);
    p->weights = alloc(self, p->tokens * p->slots);
    p->shared = alloc(self, p->tokens * p->desc.shared_scores);
}

static inline void problem_alloc(problem *p)
{
    problem_alloc_inputs(p, problem_calloc, NULL);
    problem_alloc_outputs(p, problem_calloc, NULL);
}

/// The same problem with outputs of its own, which problem_free_outputs frees.
static inline problem problem_beside(const problem *p)
{
    problem q = *p;
    problem_alloc_outputs(&q, problem_calloc, NULL);
    return q;
}

static inline void problem_free_outputs(problem *p)
{
    free(p->ids);
    free(p->weights);
    free(p->shared);
}

static inline void problem_free(problem *p)
{
    free(p->logits);
    free(p->bias);
    free(p->hash_table);
    free(p->token_ids);
    problem_free_outputs(p);
}

/// True if the outputs of n tokens have the same bits: from token t of p, from token u of q.
static inline bool problem_same(const problem *p, int64_t t, const problem *q, int64_t u, int64_t n)
{
    const size_t row = (size_t)p->slots * sizeof(float);
    const int64_t shared = p->desc.shared_scores;
    return n <= 0 ||
           (memcmp(p->ids + t * p->slots, q->ids + u * p->slots, (size_t)n * row) == 0 &&
            memcmp(p->weights + t * p->slots, q->weights + u * p->slots, (size_t)n * row) == 0 &&
            (shared == 0 || memcmp(p->shared + t * shared, q->shared + u * shared,
                                   (size_t)(n * shared) * sizeof(float)) == 0));
}

/// Random inputs for whatever the descriptor asks for.
static inline void problem_fill(problem *p, moec_rng *r, float spread)
{
    const int64_t keyed = p->experts + p->desc.zero_experts;
    for (int64_t i = 0; i < p->tokens * p->rows; i++) {
        p->logits[i] = (float)moec_normal(r) * spread;
    }
    for (int64_t i = 0; i < keyed; i++) {
        p->bias[i] = (float)moec_normal(r) * 0.25f;
    }
    for (int64_t v = 0; v < p->vocabulary; v++) { // k different ids
        const int64_t first = moec_below(r, keyed);
        for (int64_t j = 0; j < p->top_k; j++) {
            p->hash_table[v * p->top_k + j] = (int32_t)((first + j) % keyed);
        }
    }
    for (int64_t t = 0; t < p->tokens; t++) {
        p->token_ids[t] = (int32_t)moec_below(r, p->vocabulary);
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

/// Contexts of the tests of routing: both portable builds, and threads.
typedef struct route_contexts {
    moe_context *ref;     // baseline, 1 thread
    moe_context *fma;     // with FMA where the machine has it, 2 threads
    moe_context *threads; // 7 threads
} route_contexts;

static inline bool route_contexts_make(route_contexts *c)
{
    c->ref = route_context("ref", 1);
    c->fma = route_context("ref_fma", 2);
    c->threads = route_context("ref_fma", 7);
    return c->ref != NULL && c->fma != NULL && c->threads != NULL;
}

static inline void route_contexts_destroy(route_contexts *c)
{
    moe_context_destroy(c->ref);
    moe_context_destroy(c->fma);
    moe_context_destroy(c->threads);
}

// ---- The grid -----------------------------------------------------------------------------------

enum { PROBLEM_GRID = 810 };

/// Problem `number` of the grid: every scoring with the options that go with it, over sizes from
/// E = 1 to 4096, groups, sparse mixer, zero and shared experts, hash tables. Nothing is allocated.
/// Returns the spread of its logits; `what` gets its name.
float problem_draw(problem *p, int number, char *what, size_t size);

/// Logits that random numbers do not give.
typedef enum problem_edge {
    PROBLEM_TIES,     // few values, many of each
    PROBLEM_SPECIALS, // NaN, infinities, zeros of both signs, the largest numbers
    PROBLEM_MASKED,   // most or all of a token's experts at -inf
    PROBLEM_EDGES
} problem_edge;

void problem_fill_edge(problem *p, moec_rng *r, problem_edge edge);

typedef enum problem_verdict {
    PROBLEM_HOLDS,
    PROBLEM_CLOSE, // two keys are too close for f32 to tell which is larger
    PROBLEM_DIFFERS
} problem_verdict;

/// A token's ids, weights and shared weights against float64; appended shared experts aside. Where
/// keys are too close, ids must still be different ones in range, weights finite and not negative.
/// `text` says what differs.
problem_verdict problem_judge(const problem *p, int64_t token, char *text, size_t size);

#endif
