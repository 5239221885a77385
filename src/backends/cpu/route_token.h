// SPDX-License-Identifier: Apache-2.0
// route, a token at a time: its logits in f32, scores, keys, the ids of the k best, weights, and
// where they go. All rows of the op share this flow; each includes it and defines what is declared
// below: the passes over all experts that are no plain loops. Plain loops the compiler keeps in
// vectors by itself.
#ifndef MOEI_BACKENDS_CPU_ROUTE_TOKEN_H
#define MOEI_BACKENDS_CPU_ROUTE_TOKEN_H

#include <string.h>

#include "numerics/math.h"
#include "ops/place.h"
#include "ops/route.h"
#include "quant/elements.h"

#define MAX_ROWS MOEI_ROUTE_MAX_ROWS
#define APART    16 // floats between arrays, so that equal indices do not share low address bits
#define VECTOR   8  // loops over all experts run to a multiple of this, at most APART

typedef struct row {
    float logit[MAX_ROWS + APART];
    float score[MAX_ROWS + APART];
    float key[MAX_ROWS + APART];
    int32_t id[MAX_ROWS + APART];
    float weight[MAX_ROWS];
} row;

// ---- what a row of the op defines ---------------------------------------------------------------

/// Sum of x[0..n): partial sum j of 32 takes elements j, j + 32, .. in this order from +0; then
/// halves are added, which gives what a butterfly 16, 8, 4, 2, 1 gives.
static float sum_lanes(const float *x, int32_t n);

/// Largest of x[0..n), NaN aside; -inf for none.
static float max_of(const float *x, int32_t n);

/// Ids of the k largest of n keys, in descending order. Keys are never NaN and no two ids rank
/// alike (equal keys: the lower id first), so every way of selecting gives the same ids.
static void select_largest(const float *key, int32_t n, int32_t k, int32_t *id);

/// The two largest of n > 0 keys; the second is -inf where there is none.
static void two_largest(const float *key, int32_t n, float *first, float *second);

// ---- the same for all ---------------------------------------------------------------------------

static inline float minus_infinity(void)
{
    return moei_f32_from_bits(0xFF800000u);
}

static inline bool is_finite(float x)
{
    return (moei_f32_bits(x) & 0x7F800000u) != 0x7F800000u;
}

static inline float finite_or_zero(float x)
{
    return moei_selectf(is_finite(x), x, 0.0f);
}

// NaN ranks as -inf.
static inline float nan_to_minus_infinity(float x)
{
    return moei_selectf(x == x, x, minus_infinity());
}

static inline int32_t whole_vectors(int32_t n)
{
    return (n + VECTOR - 1) / VECTOR * VECTOR;
}

// A NaN or +inf among the logits makes every score of the token NaN, hence 0.
static void softmax(const float *logit, int32_t n, float *score)
{
    const float m = max_of(logit, n);
    for (int32_t e = 0; e < whole_vectors(n); e++) {
        score[e] = moei_expf(logit[e] - m);
    }
    const float r = moei_rcpf(sum_lanes(score, n));
    for (int32_t e = 0; e < whole_vectors(n); e++) {
        score[e] = finite_or_zero(score[e] * r);
    }
}

static void sigmoid(const float *logit, int32_t n, float *score)
{
    for (int32_t e = 0; e < whole_vectors(n); e++) {
        score[e] = finite_or_zero(moei_sigmoidf(logit[e]));
    }
}

static void sqrtsoftplus(const float *logit, int32_t n, float *score)
{
    for (int32_t e = 0; e < whole_vectors(n); e++) {
        score[e] = finite_or_zero(moei_sqrtf(moei_softplusf(logit[e])));
    }
}

// Scores of all rows, but for the scorings that look at the selected logits only: those need the
// scores of the shared rows here.
static void compute_scores(const moek_route_args *a, row *w)
{
    const int32_t keyed = a->num_experts + a->desc.zero_experts;
    const int32_t shared = a->desc.shared_scores;
    switch (a->desc.scoring) {
    case MOE_SCORING_SOFTMAX:
        softmax(w->logit, keyed, w->score);
        break;
    case MOE_SCORING_SIGMOID:
        sigmoid(w->logit, keyed + shared, w->score);
        break;
    case MOE_SCORING_SQRTSOFTPLUS:
        sqrtsoftplus(w->logit, keyed + shared, w->score);
        break;
    default:
        sigmoid(w->logit + keyed, shared, w->score + keyed);
        break;
    }
}

static void compute_keys(const moek_route_args *a, row *w)
{
    const int32_t keyed = a->num_experts + a->desc.zero_experts;
    const float *base = a->desc.select_on == MOE_SELECT_LOGITS ? w->logit : w->score;
    for (int32_t e = 0; e < whole_vectors(keyed); e++) {
        w->key[e] = nan_to_minus_infinity(base[e]);
    }
    if (a->correction_bias != NULL) {
        for (int32_t e = 0; e < keyed; e++) {
            w->key[e] = nan_to_minus_infinity(w->key[e] + a->correction_bias[e]);
        }
    }
}

// True if id a is taken before id b.
static bool better(const float *key, int32_t a, int32_t b)
{
    return key[a] > key[b] || (key[a] == key[b] && a < b);
}

// Lets `id` sink from `at` in a heap of n ids whose worst is on top.
static void sink(const float *key, int32_t *heap, int32_t n, int32_t at, int32_t id)
{
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && better(key, heap[child], heap[child + 1])) {
            child++;
        }
        if (!better(key, id, heap[child])) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

// select_largest by a heap of the k best: O(n log k) whatever the order of the keys.
static void select_by_heap(const float *key, int32_t n, int32_t k, int32_t *id)
{
    for (int32_t e = 0; e < k; e++) {
        id[e] = e;
    }
    for (int32_t i = k / 2; i-- > 0;) {
        sink(key, id, k, i, id[i]);
    }
    float least = key[id[0]];
    for (int32_t e = k; e < n; e++) {
        if (key[e] > least) { // an equal key has the higher id
            sink(key, id, k, 0, e);
            least = key[id[0]];
        }
    }
    for (int32_t left = k - 1; left > 0; left--) {
        const int32_t worst = id[0];
        sink(key, id, left, 0, id[left]);
        id[left] = worst;
    }
}

static float group_score(const moek_route_args *a, const float *key, int32_t size)
{
    float first;
    float second;
    two_largest(key, size, &first, &second);
    return a->desc.group_score == MOE_GROUP_SCORE_MAX ? first
                                                      : nan_to_minus_infinity(first + second);
}

// Leaves the keys of the best groups as they are and masks those of the others. False if there are
// not top_groups groups with a score above -inf.
static bool mask_groups(const moek_route_args *a, row *w)
{
    const int32_t groups = a->desc.num_groups;
    const int32_t size = a->num_experts / groups;
    const float masked = a->desc.group_mask_zero ? 0.0f : minus_infinity();
    float *score = w->weight; // free until weights are known
    for (int32_t e = 0; e < a->num_experts; e++) {
        const bool usual = is_finite(w->logit[e]);
        w->score[e] = moei_selectf(usual, w->score[e], 0.0f);
        w->key[e] = moei_selectf(usual, w->key[e], minus_infinity());
    }
    for (int32_t g = 0; g < groups; g++) {
        score[g] = group_score(a, w->key + (ptrdiff_t)g * size, size);
    }
    select_largest(score, groups, a->desc.top_groups, w->id);
    if (score[w->id[a->desc.top_groups - 1]] == minus_infinity()) {
        return false;
    }
    for (int32_t i = 0; i < a->desc.top_groups; i++) {
        score[w->id[i]] = moei_f32_from_bits(MOEI_NAN_BITS); // kept
    }
    for (int32_t g = 0; g < groups; g++) {
        if (score[g] != score[g]) {
            continue;
        }
        for (int32_t e = g * size; e < (g + 1) * size; e++) {
            w->key[e] = moei_selectf(is_finite(w->logit[e]), masked, minus_infinity());
        }
    }
    return true;
}

static int64_t load_id(moe_dtype dtype, const void *base, int64_t i)
{
    return dtype == MOE_I64 ? ((const int64_t *)base)[i] : ((const int32_t *)base)[i];
}

static void look_up(const moek_route_args *a, int64_t t, row *w)
{
    const int32_t keyed = a->num_experts + a->desc.zero_experts;
    const int64_t token = load_id(a->hash_dtype, a->token_ids, t);
    for (int32_t j = 0; j < a->top_k; j++) {
        int64_t id = -1;
        if (token >= 0 && token < a->vocabulary) {
            id = load_id(a->hash_dtype, a->hash_table, token * a->hash_token_stride + j);
        }
        w->id[j] = id >= 0 && id < keyed ? (int32_t)id : -1;
    }
}

// Softmax over the chosen logits, sums in slot order. An absent slot counts as -inf.
static void softmax_selected(int32_t k, row *w)
{
    float m = minus_infinity();
    float sum = 0.0f;
    for (int32_t j = 0; j < k; j++) {
        const int32_t id = w->id[j];
        w->weight[j] = id >= 0 ? nan_to_minus_infinity(w->logit[id]) : minus_infinity();
        m = w->weight[j] > m ? w->weight[j] : m;
    }
    for (int32_t j = 0; j < k; j++) {
        w->weight[j] = moei_expf(w->weight[j] - m);
        sum += w->weight[j];
    }
    for (int32_t j = 0; j < k; j++) {
        w->weight[j] = finite_or_zero(moei_divf(w->weight[j], sum));
    }
}

static void weigh(const moek_route_args *a, row *w)
{
    if (a->desc.scoring == MOE_SCORING_SOFTMAX_SELECTED) {
        softmax_selected(a->top_k, w);
        return;
    }
    for (int32_t j = 0; j < a->top_k; j++) {
        const int32_t id = w->id[j];
        w->weight[j] = id < 0 ? 0.0f
                       : a->desc.scoring == MOE_SCORING_SIGMOID_SELECTED
                           ? finite_or_zero(moei_sigmoidf(w->logit[id]))
                           : w->score[id];
    }
}

// One choice of the sparse mixer: the largest of `key`, weighed by a softmax over the logits within
// the jitter band below it.
static void sparsemixer_choice(const moek_route_args *a, row *w, int32_t slot)
{
    const int32_t n = a->num_experts;
    const float band = 2.0f * a->desc.jitter_eps;
    int32_t best = 0;
    for (int32_t e = 1; e < n; e++) {
        best = w->key[e] > w->key[best] ? e : best;
    }
    if (slot == 1 && best == w->id[0]) { // every logit left is -inf
        best = w->id[0] == 0 ? 1 : 0;
    }
    const float m = w->key[best];
    for (int32_t e = 0; e < n; e++) {
        const float l = w->key[e];
        const float size = l < 0.0f ? -l : l;
        const bool drop = moei_divf(m - l, size > m ? size : m) > band;
        w->score[e] = drop ? 0.0f : moei_expf(l - m);
    }
    w->id[slot] = best;
    w->weight[slot] = finite_or_zero(moei_divf(w->score[best], sum_lanes(w->score, n)));
    w->key[best] = minus_infinity();
}

// Divides by the sum over the selected (and shared) weights, in slot order.
static void renormalise(const moek_route_args *a, float *weight, int32_t k, float *shared)
{
    const int32_t joined = a->desc.renorm_shared ? a->desc.shared_scores : 0;
    float sum = 0.0f;
    for (int32_t j = 0; j < k; j++) {
        sum += weight[j];
    }
    for (int32_t j = 0; j < joined; j++) {
        sum += shared[j];
    }
    float d = a->desc.renormalise == MOE_RENORM_SUM ? sum + a->desc.renorm_eps
              : sum > a->desc.renorm_eps            ? sum
                                                    : a->desc.renorm_eps;
    d = d > 0.0f ? d : 1.0f;
    for (int32_t j = 0; j < k; j++) {
        weight[j] = moei_divf(weight[j], d);
    }
    for (int32_t j = 0; j < joined; j++) {
        shared[j] = moei_divf(shared[j], d);
    }
}

static void scale_weights(const moek_route_args *a, float *weight, int32_t n)
{
    for (int32_t j = 0; j < n; j++) {
        weight[j] *= a->desc.scale;
    }
    for (int32_t j = 0; a->scale_tensor != NULL && j < n; j++) {
        weight[j] *= a->scale_tensor[0];
    }
}

// Ids and weights of a token; the scores of shared rows become their weights in place.
static void route_token(const moek_route_args *a, int64_t t, row *w)
{
    const moe_route_desc *d = &a->desc;
    const int32_t keyed = a->num_experts + d->zero_experts;
    const int32_t rows = keyed + d->shared_scores;
    float *shared = w->score + keyed;
    const uint8_t *logits = a->logits + t * a->logit_token_stride;
    moei_load_f32(a->logit_dtype, logits, 0, rows, w->logit);
    memset(w->logit + rows, 0, VECTOR * sizeof w->logit[0]);
    bool usual = true;
    if (d->scoring == MOE_SCORING_SPARSEMIXER) {
        for (int32_t e = 0; e < keyed; e++) {
            w->key[e] = nan_to_minus_infinity(w->logit[e]);
        }
        sparsemixer_choice(a, w, 0);
        sparsemixer_choice(a, w, 1);
    } else {
        compute_scores(a, w);
        if (a->hash_table != NULL) {
            look_up(a, t, w);
        } else {
            compute_keys(a, w);
            usual = !moei_route_grouped(d) || mask_groups(a, w);
            if (usual) {
                select_largest(w->key, keyed, a->top_k, w->id);
            }
        }
    }
    if (!usual) { // too few groups have anything to choose: equal weights, not scaled
        for (int32_t j = 0; j < a->top_k; j++) {
            w->id[j] = j;
            w->weight[j] = moei_divf(1.0f, (float)a->top_k);
        }
    } else {
        if (d->scoring != MOE_SCORING_SPARSEMIXER) {
            weigh(a, w);
        }
        if (d->renormalise != MOE_RENORM_NONE) {
            renormalise(a, w->weight, a->top_k, shared);
        }
        scale_weights(a, w->weight, a->top_k);
    }
    scale_weights(a, shared, d->shared_scores);
    for (int32_t j = 0; j < d->append_shared; j++) {
        w->id[a->top_k + j] = keyed + j;
        w->weight[a->top_k + j] =
            a->shared_gate != NULL ? a->shared_gate[t * a->shared_gate_stride + j] : 1.0f;
    }
}

// Router id to what `ids` holds; counts load. Ids of zero and appended experts stay.
static int32_t map_id(const moek_route_args *a, int64_t t, int32_t id)
{
    if (id < 0 || id >= a->num_experts) {
        return id;
    }
    id = moei_replica_id(a->replica_table, a->replica_stride, a->replica_slots, a->replica_count,
                         a->num_physical, t, id);
    if (id < 0) {
        return -1;
    }
    if (a->load != NULL) { // integer additions: any order gives the same counts
        (void)__atomic_fetch_add(&a->load[id], 1, __ATOMIC_RELAXED);
    }
    if (a->expert_map != NULL) {
        id = a->expert_map[id];
        id = id >= 0 && id < a->num_physical ? id : -1;
    }
    return id;
}

// Where a token is not valid: ids -1, weights 0.
static void store_token(const moek_route_args *a, int64_t t, row *w, bool valid)
{
    const int32_t slots = a->top_k + a->desc.append_shared;
    const int64_t at = t * a->id_token_stride;
    for (int32_t j = 0; j < slots; j++) {
        const int32_t id = valid ? map_id(a, t, w->id[j]) : -1;
        if (a->id_dtype == MOE_I64) {
            ((int64_t *)a->ids)[at + j] = id;
        } else {
            ((int32_t *)a->ids)[at + j] = id;
        }
    }
    for (int32_t j = 0; !valid && j < slots; j++) {
        w->weight[j] = 0.0f;
    }
    const int64_t bytes = t * a->weight_token_stride * moe_dtype_bits(a->weight_dtype) / 8;
    moei_store_f32(a->weight_dtype, (uint8_t *)a->weights + bytes, slots, w->weight);
    const float *shared = w->score + a->num_experts + a->desc.zero_experts;
    for (int32_t j = 0; j < a->desc.shared_scores; j++) {
        a->shared_weights[t * a->shared_weight_stride + j] = valid ? shared[j] : 0.0f;
    }
}

// Tokens [t0, t1).
static void route_tokens(const moek_route_args *a, int64_t t0, int64_t t1)
{
    row w;
    for (int64_t t = t0; t < t1; t++) {
        const bool valid = a->num_valid == NULL || t < a->num_valid[0];
        if (valid) {
            route_token(a, t, &w);
        }
        store_token(a, t, &w, valid);
    }
}

#endif
