// SPDX-License-Identifier: Apache-2.0
// route: one warp per token. Lane l has the rows e = l mod 32, so that sums over experts are a
// lane's partial sum and a butterfly. Up to 512 rows (and no sparse mixer) a token lives in
// registers; else values and keys lie in shared memory. Where `places` is set, place takes each
// slot from the lane that stores it.
//
// Keys are compared as unsigned numbers in the order of the floats, -0 as +0; 0 stands for what is
// not there or has been taken. A round of the selection is a maximum over the warp and, among the
// lanes that hold it, the lowest id.
#ifndef MOEI_GPU_ROUTE_CUH
#define MOEI_GPU_ROUTE_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/ids.cuh"
#include "backends/gpu/place.cuh"
#include "backends/gpu/plans.h"
#include "ops/replica.h"

#define MOEI_MINUS_INFINITY (moei_f32_from_bits(0xFF800000u))

DEV_FN bool moei_route_is_finite(float x)
{
    return (moei_f32_bits(x) & 0x7F800000u) != 0x7F800000u;
}

DEV_FN float moei_route_finite_or_zero(float x)
{
    return moei_route_is_finite(x) ? x : 0.0f;
}

DEV_FN float moei_route_ranked(float x) // NaN ranks as -inf
{
    return x == x ? x : MOEI_MINUS_INFINITY;
}

/// The order of floats that are not NaN; never 0.
DEV_FN uint32_t moei_route_order(float x)
{
    const uint32_t bits = moei_f32_bits(x + 0.0f); // +0 for -0
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

DEV_FN float moei_route_from_order(uint32_t order)
{
    return moei_f32_from_bits((order & 0x80000000u) != 0 ? order & 0x7FFFFFFFu : ~order);
}

DEV_FN float moei_route_warp_max(float x) // not NaN
{
    return moei_route_from_order(dev_warp_max_u32(moei_route_order(x)));
}

// ---- rules that both paths share ---------------------------------------------------------------

struct moei_route_sizes {
    int32_t keyed; // rows that are selected among
    int32_t rows;  // and those of shared experts
    int32_t k;
};

DEV_FN moei_route_sizes moei_route_size(const moek_route_args *a)
{
    moei_route_sizes s;
    s.keyed = a->num_experts + a->desc.zero_experts;
    s.rows = s.keyed + a->desc.shared_scores;
    s.k = a->top_k;
    return s;
}

DEV_FN const void *moei_route_logits(const moek_route_args *a, int64_t t)
{
    return a->logits + t * a->logit_token_stride;
}

DEV_FN bool moei_route_on_chosen(moe_scoring scoring) // weights come from the chosen logits
{
    return scoring == MOE_SCORING_SOFTMAX_SELECTED || scoring == MOE_SCORING_SIGMOID_SELECTED;
}

// Score of a row that needs no other row.
DEV_FN float moei_route_score(moe_scoring scoring, float logit)
{
    return moei_route_finite_or_zero(scoring == MOE_SCORING_SQRTSOFTPLUS
                                         ? moei_sqrtf(moei_softplusf(logit))
                                         : moei_sigmoidf(logit));
}

// The order of a row's key, `base` its score or logit; a bias of 0 changes nothing.
DEV_FN uint32_t moei_route_key(float base, float bias)
{
    return moei_route_order(moei_route_ranked(moei_route_ranked(base) + bias));
}

DEV_FN float moei_route_bias(const moek_route_args *a, int32_t e)
{
    return a->correction_bias != NULL ? a->correction_bias[e] : 0.0f;
}

// Keeps the two largest keys of a lane.
DEV_FN void moei_route_rank_two(uint32_t key, uint32_t *first, uint32_t *second)
{
    const uint32_t low = key < *first ? key : *first;
    *first = key > *first ? key : *first;
    *second = low > *second ? low : *second;
}

// The orders of S groups' scores from the two largest keys of each lane, -inf where there are
// fewer. Maxima of different groups stand together: none waits for another.
template <int S>
DEV_FN void moei_route_group_scores(const moek_route_args *a, const uint32_t *first,
                                    const uint32_t *second, uint32_t *score)
{
    uint32_t next[S];
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        score[i] = dev_warp_max_u32(first[i]);
    }
    if (a->desc.group_score == MOE_GROUP_SCORE_MAX) {
        return;
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        const bool twice = dev_popc(dev_ballot(first[i] == score[i])) > 1;
        next[i] = twice || first[i] != score[i] ? first[i] : second[i];
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        next[i] = dev_warp_max_u32(next[i]);
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        score[i] = moei_route_order(
            moei_route_ranked(moei_route_from_order(score[i]) + moei_route_from_order(next[i])));
    }
}

// Entry j of a token's row of the hash table; -1 where either names nothing.
DEV_FN int32_t moei_route_looked_up(const moek_route_args *a, int64_t t, int32_t j, int32_t keyed)
{
    const int64_t token = moei_gpu_load_id(a->hash_dtype, a->token_ids, t);
    if (token < 0 || token >= a->vocabulary) {
        return -1;
    }
    const int64_t id =
        moei_gpu_load_id(a->hash_dtype, a->hash_table, token * a->hash_token_stride + j);
    return id >= 0 && id < keyed ? (int32_t)id : -1;
}

// The divisor of a normalisation.
DEV_FN float moei_route_divisor(const moek_route_args *a, float sum)
{
    const float eps = a->desc.renorm_eps;
    const float d = a->desc.renormalise == MOE_RENORM_SUM ? sum + eps : sum > eps ? sum : eps;
    return d > 0.0f ? d : 1.0f;
}

// `scale`: moei_route_scale.
DEV_FN float moei_route_scaled(const moek_route_args *a, float scale, float weight)
{
    weight = weight * a->desc.scale;
    return a->scale_tensor != NULL ? weight * scale : weight;
}

DEV_FN float moei_route_scale(const moek_route_args *a)
{
    return a->scale_tensor != NULL ? a->scale_tensor[0] : 1.0f;
}

// Router id to what `ids` holds; counts load. Ids of zero and appended experts stay.
DEV_FN int32_t moei_route_mapped(const moek_route_args *a, int64_t t, int32_t id)
{
    if (id < 0 || id >= a->num_experts) {
        return id;
    }
    id = moei_replica_id(a->replica_table, a->replica_stride, a->replica_slots, a->replica_count,
                         a->num_physical, t, id);
    if (id < 0) {
        return -1;
    }
    if (a->load != NULL) {
        (void)dev_add_i32(&a->load[id], 1);
    }
    if (a->expert_map != NULL) {
        id = a->expert_map[id];
        id = id >= 0 && id < a->num_physical ? id : -1;
    }
    return id;
}

// `valid`: the token is there, else id is -1 and weight 0. Returns the local id where places.
DEV_FN int32_t moei_route_store(const moei_gpu_route_args *g, int64_t t, int32_t j, bool valid,
                                int32_t id, float weight)
{
    const moek_route_args *a = &g->route;
    id = moei_route_mapped(a, t, id);
    moei_gpu_store_id(a->id_dtype, a->ids, t * a->id_token_stride + j, id);
    moei_gpu_store_weight(a->weight_dtype, a->weights, t * a->weight_token_stride + j, weight);
    return g->places // weights are f32
               ? moei_gpu_place_given(&g->place, t, j, valid, id, moei_nan_from(weight, weight))
               : -1;
}

DEV_FN void moei_route_store_shared(const moek_route_args *a, int64_t t, int32_t j, float weight)
{
    moei_gpu_store_weight(MOE_F32, a->shared_weights, t * a->shared_weight_stride + j, weight);
}

// Weight of an appended expert.
DEV_FN float moei_route_gate(const moek_route_args *a, int64_t t, int32_t j, bool valid)
{
    return !valid                   ? 0.0f
           : a->shared_gate != NULL ? a->shared_gate[t * a->shared_gate_stride + j]
                                    : 1.0f;
}

// ---- a token in registers ----------------------------------------------------------------------

// v[i] = logit of row 32 i + lane for rows below `rows`, else -inf.
template <int N>
DEV_FN void moei_route_load(const moek_route_args *a, int64_t t, int32_t rows, float *v)
{
    const void *logits = moei_route_logits(a, t);
    const int32_t lane = (int32_t)dev_lane();
    if (a->logit_dtype == MOE_F32) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            const int32_t e = 32 * i + lane;
            v[i] = e < rows ? ((const float *)logits)[e] : MOEI_MINUS_INFINITY;
        }
        return;
    }
    uint16_t bits[N];
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        const int32_t e = 32 * i + lane;
        bits[i] = e < rows ? ((const uint16_t *)logits)[e] : (uint16_t)0;
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        const float x =
            a->logit_dtype == MOE_BF16 ? moei_bf16_to_f32(bits[i]) : moei_f16_to_f32(bits[i]);
        v[i] = 32 * i + lane < rows ? x : MOEI_MINUS_INFINITY;
    }
}

// Those of 256 rows at most: registers do not suffice for more.
template <int N>
DEV_FN void moei_route_load_bias(const moek_route_args *a, int32_t keyed, float *bias)
{
    MOEI_GPU_UNROLL
    for (int i = 0; i < N && N <= 8; i++) {
        const int32_t e = 32 * i + (int32_t)dev_lane();
        bias[i] = e < keyed ? moei_route_bias(a, e) : 0.0f;
    }
}

// Over all rows, none of which is a shared one; what lies past them is -inf and adds 0.
template <int N> DEV_FN void moei_route_softmax(const float *logit, float *score)
{
    float m = MOEI_MINUS_INFINITY;
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        m = logit[i] > m ? logit[i] : m;
    }
    m = moei_route_warp_max(m);
    float sum = 0.0f;
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        score[i] = moei_expf(logit[i] - m);
        sum = sum + score[i];
    }
    sum = dev_warp_sum(sum); // at least 1, of the largest; NaN where a logit is, or +inf is one
    const bool good = sum == sum;
    const float r = moei_rcp_from_1f(sum);
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        score[i] = good ? score[i] * r : 0.0f;
    }
}

// Value `at` of all rows, from the lane that has it.
template <int N> DEV_FN float moei_route_gather(const float *value, int32_t at)
{
    float v = 0.0f;
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        const float other = dev_shfl_f32(value[i], at & 31);
        v = at >> 5 == i ? other : v;
    }
    return v;
}

// Ids of the k largest keys, in descending order: lane j gets the j-th. A lane's rows are sorted
// first, up to eight of them in a run, by exchanges of neighbours, so that equal keys stay in
// order; a round looks at the first of each run.
template <int N> DEV_FN int32_t moei_route_select(uint32_t *key, int32_t k)
{
    constexpr uint32_t RUN = N < 8 ? N : 8;
    constexpr uint32_t RUNS = N / RUN;
    const uint32_t lane = dev_lane();
    uint32_t rows[RUNS]; // i of row 32 i + lane, four bits each, those of the first in front
    MOEI_GPU_UNROLL
    for (uint32_t r = 0; r < RUNS; r++) {
        uint32_t *run = key + r * RUN;
        uint32_t row[RUN];
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < RUN; i++) {
            row[i] = r * RUN + i;
        }
        MOEI_GPU_UNROLL
        for (uint32_t pass = 0; pass < RUN; pass++) {
            MOEI_GPU_UNROLL
            for (uint32_t i = pass % 2; i + 1 < RUN; i += 2) {
                const bool up = run[i] < run[i + 1];
                const uint32_t low = up ? run[i] : run[i + 1];
                const uint32_t last = up ? row[i] : row[i + 1];
                run[i] = up ? run[i + 1] : run[i];
                row[i] = up ? row[i + 1] : row[i];
                run[i + 1] = low;
                row[i + 1] = last;
            }
        }
        rows[r] = 0;
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < RUN; i++) {
            rows[r] |= row[i] << 4 * i;
        }
    }
    uint32_t id = 0; // complements, of which the largest is the lowest id
    MOEI_GPU_ROLL    // a round waits for the one before: more code would only have to be fetched
        for (int32_t j = 0; j < k; j++)
    {
        uint32_t best = key[0];
        uint32_t own = ~(32 * (rows[0] & 15) + lane);
        MOEI_GPU_UNROLL
        for (uint32_t r = 1; r < RUNS; r++) {
            const bool up = key[r * RUN] > best;
            best = up ? key[r * RUN] : best;
            own = up ? ~(32 * (rows[r] & 15) + lane) : own;
        }
        const uint32_t most = dev_warp_max_u32(best);
        const uint32_t e = dev_warp_max_u32(best == most ? own : 0);
        MOEI_GPU_UNROLL
        for (uint32_t r = 0; r < RUNS; r++) {
            const bool taken = e == ~(32 * (rows[r] & 15) + lane);
            MOEI_GPU_UNROLL
            for (uint32_t i = 0; i < RUN; i++) {
                const uint32_t next = i + 1 < RUN ? key[r * RUN + i + 1] : 0;
                key[r * RUN + i] = taken ? next : key[r * RUN + i];
            }
            rows[r] = taken ? rows[r] >> 4 : rows[r];
        }
        id = (int32_t)lane == j ? e : id;
    }
    return (int32_t)~id;
}

// Masks the keys of all but the best groups, at most 32 in all. False if there are not top_groups
// groups with a score above -inf.
template <int N>
DEV_FN bool moei_route_choose_groups(const moek_route_args *a, const float *logit, float *value,
                                     uint32_t *key)
{
    const uint32_t experts = (uint32_t)a->num_experts;
    const uint32_t groups = (uint32_t)a->desc.num_groups;
    const uint32_t size = experts / groups;
    const uint32_t lane = dev_lane();
    const uint32_t none = moei_route_order(MOEI_MINUS_INFINITY);
    const uint32_t masked = a->desc.group_mask_zero ? moei_route_order(0.0f) : none;
    const uint32_t inverse = (1u << 20) / size + 1; // e / size = e * inverse >> 20: e <= 512
    uint32_t order = 0;                             // of group `lane`
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < N; i++) {
        if (32 * i + lane < experts && !moei_route_is_finite(logit[i])) {
            value[i] = 0.0f;
            key[i] = none;
        }
    }
    if (size % 32 == 0) {                                 // groups of whole registers
        constexpr uint32_t S = N > 8 ? 1 : N < 4 ? N : 4; // groups at once, as registers allow
        uint32_t first[S];
        uint32_t second[S];
        uint32_t score[S]; // of the rows of a group so far
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < N; i++) {
            const bool begins = i == 0 || 32 * i * inverse >> 20 != (32 * i - 32) * inverse >> 20;
            first[i % S] = begins ? none : first[(i + S - 1) % S];
            second[i % S] = begins ? none : second[(i + S - 1) % S];
            moei_route_rank_two(key[i], &first[i % S], &second[i % S]);
            if (i % S + 1 < S) {
                continue;
            }
            moei_route_group_scores<S>(a, first, second, score);
            MOEI_GPU_UNROLL
            for (uint32_t j = 0; j < S; j++) {
                const uint32_t e = 32 * (i - i % S + j);
                order = e < experts && lane == e * inverse >> 20 ? score[j] : order;
            }
        }
    } else {
        for (uint32_t g = 0; g < groups; g++) {
            uint32_t first = none;
            uint32_t second = none;
            MOEI_GPU_UNROLL
            for (uint32_t i = 0; i < N; i++) {
                const bool has = 32 * i + lane - g * size < size;
                moei_route_rank_two(has ? key[i] : none, &first, &second);
            }
            uint32_t score;
            moei_route_group_scores<1>(a, &first, &second, &score);
            order = lane == g ? score : order;
        }
    }
    uint32_t kept = 0;
    uint32_t least = none;
    MOEI_GPU_ROLL
    for (int32_t i = 0; i < a->desc.top_groups; i++) {
        least = dev_warp_max_u32(order);
        const uint32_t group = (uint32_t)dev_ffs(dev_ballot(order == least)) - 1;
        kept |= 1u << group;
        order = lane == group ? 0 : order;
    }
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t e = 32 * i + lane;
        if (e < experts && (kept >> (e * inverse >> 20) & 1) == 0) {
            key[i] = moei_route_is_finite(logit[i]) ? masked : none;
        }
    }
    return least != none;
}

// Sum of v over lanes [0, n), in this order, on top of `sum`.
DEV_FN float moei_route_sum_slots(float sum, float v, int32_t n)
{
    for (int32_t j = 0; j < n; j++) {
        sum = sum + dev_shfl_f32(v, j);
    }
    return sum;
}

// Weight of a lane's slot from its logit: softmax over the k slots, or a sigmoid.
DEV_FN float moei_route_weigh_logit(moe_scoring scoring, float logit, int32_t id, int32_t k)
{
    if (scoring == MOE_SCORING_SIGMOID_SELECTED) {
        return id < 0 ? 0.0f : moei_route_finite_or_zero(moei_sigmoidf(logit));
    }
    const float l = id < 0 ? MOEI_MINUS_INFINITY : moei_route_ranked(logit);
    const float w = moei_expf(l - moei_route_warp_max(l)); // lanes past the slots have id -1
    return moei_route_finite_or_zero(moei_divf(w, moei_route_sum_slots(0.0f, w, k)));
}

// Of which weights are made: scores; where those come from the chosen logits, these, but the scores
// of shared rows.
template <int N>
DEV_FN void moei_route_values(const moek_route_args *a, const moei_route_sizes *n,
                              const float *logit, float *value)
{
    const moe_scoring scoring = a->desc.scoring;
    if (scoring == MOE_SCORING_SOFTMAX) {
        moei_route_softmax<N>(logit, value);
        return;
    }
    const bool on_chosen = moei_route_on_chosen(scoring);
    if (scoring == MOE_SCORING_SQRTSOFTPLUS) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            value[i] = moei_route_score(MOE_SCORING_SQRTSOFTPLUS, logit[i]);
        }
    } else if (!on_chosen || n->rows > n->keyed) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            value[i] = moei_route_score(MOE_SCORING_SIGMOID, logit[i]);
        }
    }
    if (on_chosen) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            const bool chosen = 32 * i + (int32_t)dev_lane() < n->keyed;
            value[i] = chosen || n->rows == n->keyed ? logit[i] : value[i];
        }
    }
}

// The id of a lane's slot. False where too few groups have anything to choose.
template <int N>
DEV_FN bool moei_route_choose_id(const moek_route_args *a, int64_t t, const moei_route_sizes *n,
                                 const float *logit, const float *bias, float *value, int32_t *id)
{
    const int32_t lane = (int32_t)dev_lane();
    if (a->hash_table != NULL && t >= 0) {
        *id = lane < n->k ? moei_route_looked_up(a, t, lane, n->keyed) : -1;
        return true;
    }
    uint32_t key[N];
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        const int32_t e = 32 * i + lane;
        const float base = a->desc.select_on == MOE_SELECT_LOGITS ? logit[i] : value[i];
        const float b = N <= 8 ? bias[i] : e < n->keyed ? moei_route_bias(a, e) : 0.0f;
        key[i] = moei_route_key(base, b) & (e < n->keyed ? ~0u : 0); // no branch
    }
    if (a->desc.num_groups > 1 && !moei_route_choose_groups<N>(a, logit, value, key)) {
        *id = lane < n->k ? lane : -1;
        return false;
    }
    *id = moei_route_select<N>(key, n->k);
    return true;
}

// A lane's slot, and its shared row.
struct moei_route_slot {
    int32_t id;
    float weight;
    float shared;
    bool usual; // there were enough groups
};

// What depends on the number of rows: the id, and the values at it and at the shared row.
template <int N>
DEV_FN moei_route_slot moei_route_rows(const moek_route_args *a, int64_t t,
                                       const moei_route_sizes *n)
{
    const int32_t shared_rows = n->rows - n->keyed;
    const int32_t lane = (int32_t)dev_lane();
    float logit[N];
    float bias[N];
    float value[N];
    moei_route_slot s;
    moei_route_load_bias<N>(a, t < 0 ? 0 : n->keyed, bias); // neither load waits for the other
    moei_route_load<N>(a, t, t < 0 ? 0 : n->rows, logit);
    moei_route_values<N>(a, n, logit, value);
    s.usual = moei_route_choose_id<N>(a, t, n, logit, bias, value, &s.id);
    s.weight = moei_route_gather<N>(value, s.id < 0 ? 0 : s.id);
    s.shared = 0.0f;
    if (shared_rows > 0) {
        s.shared = moei_route_gather<N>(value, lane < shared_rows ? n->keyed + lane : 0);
    }
    return s;
}

// N: rows of a lane; 0: 2, 4, 8 or 16, as many as it takes.
template <int N>
DEV_FN moei_route_slot moei_route_any_rows(const moek_route_args *a, int64_t t,
                                           const moei_route_sizes *n)
{
    if constexpr (N > 0) {
        return moei_route_rows<N>(a, t, n);
    } else {
        return n->rows <= 64    ? moei_route_rows<2>(a, t, n)
               : n->rows <= 128 ? moei_route_rows<4>(a, t, n)
               : n->rows <= 256 ? moei_route_rows<8>(a, t, n)
                                : moei_route_rows<16>(a, t, n);
    }
}

template <int N>
DEV_FN moei_route_slot moei_route_registers(const moek_route_args *a, int64_t t,
                                            const moei_route_sizes *n)
{
    moei_route_slot s = moei_route_any_rows<N>(a, t, n);
    const float scale = t < 0 ? 1.0f : moei_route_scale(a);
    s.weight = moei_route_on_chosen(a->desc.scoring)
                   ? moei_route_weigh_logit(a->desc.scoring, s.weight, s.id, n->k)
               : s.id < 0 ? 0.0f
                          : s.weight;
    if (s.usual && a->desc.renormalise != MOE_RENORM_NONE) {
        const int32_t joined = a->desc.renorm_shared ? n->rows - n->keyed : 0;
        float sum = moei_route_sum_slots(0.0f, s.weight, n->k);
        sum = moei_route_sum_slots(sum, s.shared, joined);
        const float d = moei_route_divisor(a, sum);
        s.weight = moei_divf(s.weight, d);
        s.shared = joined > 0 ? moei_divf(s.shared, d) : s.shared;
    }
    // Too few groups: equal weights, not scaled.
    s.weight = s.usual ? moei_route_scaled(a, scale, s.weight) : moei_divf(1.0f, (float)n->k);
    s.shared = moei_route_scaled(a, scale, s.shared);
    return s;
}

// ---- a token in shared memory ------------------------------------------------------------------

struct moei_route_token {
    float *value;  // [rows]
    uint32_t *key; // [rows]
    int32_t *id;   // [k]
    float *weight; // [k]; before weights are known, the order of groups
};

// Takes the largest of n keys, equal ones to the lower index; the key becomes `taken`.
DEV_FN int32_t moei_route_take(uint32_t *key, int32_t n, uint32_t taken)
{
    const int32_t lane = (int32_t)dev_lane();
    uint32_t best = 0;
    int32_t at = 0;
    for (int32_t e = lane; e < n; e += 32) {
        at = key[e] > best ? e : at;
        best = key[e] > best ? key[e] : best;
    }
    const uint32_t most = dev_warp_max_u32(best);
    const int32_t e = (int32_t)~dev_warp_max_u32(best == most ? ~(uint32_t)at : 0);
    if (e % 32 == lane) { // only this lane reads the key
        key[e] = taken;
    }
    return e;
}

// Ids of the k largest of n keys, in descending order.
DEV_FN void moei_route_take_all(uint32_t *key, int32_t n, int32_t k, uint32_t taken, int32_t *id)
{
    for (int32_t j = 0; j < k; j++) {
        const int32_t e = moei_route_take(key, n, taken);
        if (dev_lane() == 0) {
            id[j] = e;
        }
    }
    dev_sync_warp();
}

DEV_FN float moei_route_logit(const moek_route_args *a, int64_t t, int32_t e)
{
    return moei_gpu_load_aligned(a->logit_dtype, moei_route_logits(a, t), e);
}

DEV_FN void moei_route_score_all(const moek_route_args *a, int64_t t, const moei_route_sizes *n,
                                 float *value)
{
    const moe_scoring scoring = a->desc.scoring;
    const int32_t lane = (int32_t)dev_lane();
    if (scoring != MOE_SCORING_SOFTMAX) {
        for (int32_t e = lane; e < n->rows; e += 32) {
            const float l = moei_route_logit(a, t, e);
            value[e] =
                moei_route_on_chosen(scoring) && e < n->keyed ? l : moei_route_score(scoring, l);
        }
        return;
    }
    float m = MOEI_MINUS_INFINITY;
    for (int32_t e = lane; e < n->keyed; e += 32) {
        value[e] = moei_route_logit(a, t, e);
        m = value[e] > m ? value[e] : m;
    }
    m = moei_route_warp_max(m);
    float sum = 0.0f;
    for (int32_t e = lane; e < n->keyed; e += 32) {
        value[e] = moei_expf(value[e] - m);
        sum = sum + value[e];
    }
    const float r = moei_rcpf(dev_warp_sum(sum));
    for (int32_t e = lane; e < n->keyed; e += 32) {
        value[e] = moei_route_finite_or_zero(value[e] * r);
    }
}

// Masks the keys of all but the best groups. False if there are not top_groups groups with a score
// above -inf.
DEV_FN bool moei_route_mask_groups(const moek_route_args *a, int64_t t, moei_route_token *w)
{
    const int32_t groups = a->desc.num_groups;
    const int32_t size = a->num_experts / groups;
    const int32_t lane = (int32_t)dev_lane();
    const uint32_t none = moei_route_order(MOEI_MINUS_INFINITY);
    const uint32_t masked = a->desc.group_mask_zero ? moei_route_order(0.0f) : none;
    const uint32_t kept = 1; // below every key
    uint32_t *order = (uint32_t *)w->weight;
    uint32_t least = none;
    for (int32_t e = lane; e < a->num_experts; e += 32) {
        if (!moei_route_is_finite(moei_route_logit(a, t, e))) {
            w->value[e] = 0.0f;
            w->key[e] = none;
        }
    }
    dev_sync_warp();
    for (int32_t g = 0; g < groups; g++) {
        uint32_t first = none;
        uint32_t second = none;
        for (int32_t i = lane; i < size; i += 32) {
            moei_route_rank_two(w->key[(ptrdiff_t)g * size + i], &first, &second);
        }
        uint32_t score;
        moei_route_group_scores<1>(a, &first, &second, &score);
        if (g % 32 == lane) {
            order[g] = score;
        }
    }
    for (int32_t i = 0; i < a->desc.top_groups; i++) {
        uint32_t best = 0;
        for (int32_t g = lane; g < groups; g += 32) {
            best = order[g] > best ? order[g] : best;
        }
        least = dev_warp_max_u32(best);
        (void)moei_route_take(order, groups, kept);
    }
    if (least == none) {
        return false;
    }
    dev_sync_warp();
    for (int32_t e = lane; e < a->num_experts; e += 32) {
        if (order[e / size] != kept) {
            w->key[e] = moei_route_is_finite(moei_route_logit(a, t, e)) ? masked : none;
        }
    }
    dev_sync_warp();
    return true;
}

// Ids of the slots. False where too few groups have anything to choose.
DEV_FN bool moei_route_choose(const moek_route_args *a, int64_t t, const moei_route_sizes *n,
                              moei_route_token *w)
{
    const int32_t lane = (int32_t)dev_lane();
    if (a->hash_table != NULL) {
        for (int32_t j = lane; j < n->k; j += 32) {
            w->id[j] = moei_route_looked_up(a, t, j, n->keyed);
        }
        return true;
    }
    for (int32_t e = lane; e < n->keyed; e += 32) {
        const float base =
            a->desc.select_on == MOE_SELECT_LOGITS ? moei_route_logit(a, t, e) : w->value[e];
        w->key[e] = moei_route_key(base, moei_route_bias(a, e));
    }
    if (a->desc.num_groups > 1 && !moei_route_mask_groups(a, t, w)) {
        return false;
    }
    moei_route_take_all(w->key, n->keyed, n->k, 0, w->id);
    return true;
}

// Weights of the slots, neither normalised nor scaled.
DEV_FN void moei_route_weigh(const moek_route_args *a, const moei_route_sizes *n,
                             moei_route_token *w)
{
    const int32_t lane = (int32_t)dev_lane();
    if (a->desc.scoring != MOE_SCORING_SOFTMAX_SELECTED) {
        for (int32_t j = lane; j < n->k; j += 32) {
            const float v = w->id[j] < 0 ? 0.0f : w->value[w->id[j]];
            w->weight[j] = a->desc.scoring == MOE_SCORING_SIGMOID_SELECTED && w->id[j] >= 0
                               ? moei_route_finite_or_zero(moei_sigmoidf(v))
                               : v;
        }
        return;
    }
    float m = MOEI_MINUS_INFINITY;
    for (int32_t j = lane; j < n->k; j += 32) {
        w->weight[j] = w->id[j] < 0 ? MOEI_MINUS_INFINITY : moei_route_ranked(w->value[w->id[j]]);
        m = w->weight[j] > m ? w->weight[j] : m;
    }
    m = moei_route_warp_max(m);
    for (int32_t j = lane; j < n->k; j += 32) {
        w->weight[j] = moei_expf(w->weight[j] - m);
    }
    dev_sync_warp();
    float sum = 0.0f;
    for (int32_t j = 0; j < n->k; j++) {
        sum = sum + w->weight[j];
    }
    dev_sync_warp();
    for (int32_t j = lane; j < n->k; j += 32) {
        w->weight[j] = moei_route_finite_or_zero(moei_divf(w->weight[j], sum));
    }
}

// Normalises the slots' weights and, where they join, the scores of shared rows.
DEV_FN void moei_route_normalise(const moek_route_args *a, const moei_route_sizes *n,
                                 moei_route_token *w)
{
    float *shared = w->value + n->keyed;
    const int32_t joined = a->desc.renorm_shared ? n->rows - n->keyed : 0;
    float sum = 0.0f;
    for (int32_t j = 0; j < n->k; j++) {
        sum = sum + w->weight[j];
    }
    for (int32_t j = 0; j < joined; j++) {
        sum = sum + shared[j];
    }
    const float d = moei_route_divisor(a, sum);
    dev_sync_warp();
    for (int32_t j = (int32_t)dev_lane(); j < n->k; j += 32) {
        w->weight[j] = moei_divf(w->weight[j], d);
    }
    for (int32_t j = (int32_t)dev_lane(); j < joined; j += 32) {
        shared[j] = moei_divf(shared[j], d);
    }
}

// One choice of the sparse mixer: the largest key, weighed by a softmax over the logits within the
// jitter band below it. `key` holds the bits of floats.
DEV_FN void moei_route_mix(const moek_route_args *a, moei_route_token *w, int32_t slot)
{
    const int32_t n = a->num_experts;
    const int32_t lane = (int32_t)dev_lane();
    const float band = 2.0f * a->desc.jitter_eps;
    uint32_t most = 0;
    int32_t at = 0;
    for (int32_t e = lane; e < n; e += 32) {
        const uint32_t order = moei_route_order(moei_f32_from_bits(w->key[e]));
        at = order > most ? e : at;
        most = order > most ? order : most;
    }
    const uint32_t top = dev_warp_max_u32(most);
    int32_t best = (int32_t)~dev_warp_max_u32(most == top ? ~(uint32_t)at : 0);
    if (slot == 1 && best == w->id[0]) { // every logit left is -inf
        best = w->id[0] == 0 ? 1 : 0;
    }
    const float m = moei_f32_from_bits(w->key[best]);
    float sum = 0.0f;
    float own = 0.0f;
    for (int32_t e = lane; e < n; e += 32) {
        const float l = moei_f32_from_bits(w->key[e]);
        const float size = l < 0.0f ? -l : l;
        const bool drop = moei_divf(m - l, size > m ? size : m) > band;
        const float score = drop ? 0.0f : moei_expf(l - m);
        own = e == best ? score : own;
        sum = sum + score;
    }
    sum = dev_warp_sum(sum);
    if (best % 32 == lane) {
        w->id[slot] = best;
        w->weight[slot] = moei_route_finite_or_zero(moei_divf(own, sum));
        w->key[best] = moei_f32_bits(MOEI_MINUS_INFINITY);
    }
    dev_sync_warp();
}

DEV_FN void moei_route_shared(const moei_gpu_route_args *g, int64_t t, void *memory)
{
    const moek_route_args *a = &g->route;
    const moei_route_sizes n = moei_route_size(a);
    const int32_t lane = (int32_t)dev_lane();
    const int32_t slots = n.k > a->desc.num_groups ? n.k : a->desc.num_groups;
    const float scale = moei_route_scale(a);
    moei_route_token w;
    w.value = (float *)memory;
    w.key = (uint32_t *)memory + n.rows;
    w.id = (int32_t *)memory + 2 * n.rows;
    w.weight = (float *)memory + 2 * n.rows + slots;
    bool usual = true;
    if (a->desc.scoring == MOE_SCORING_SPARSEMIXER) {
        for (int32_t e = lane; e < n.keyed; e += 32) {
            w.key[e] = moei_f32_bits(moei_route_ranked(moei_route_logit(a, t, e)));
        }
        dev_sync_warp();
        moei_route_mix(a, &w, 0);
        moei_route_mix(a, &w, 1);
    } else {
        moei_route_score_all(a, t, &n, w.value);
        usual = moei_route_choose(a, t, &n, &w);
        dev_sync_warp(); // values of all lanes
        if (usual) {
            moei_route_weigh(a, &n, &w);
        }
    }
    dev_sync_warp();
    if (usual && a->desc.renormalise != MOE_RENORM_NONE) {
        moei_route_normalise(a, &n, &w);
    }
    for (int32_t j = lane; j < n.k; j += 32) { // too few groups: equal weights, not scaled
        (void)moei_route_store(g, t, j, true, usual ? w.id[j] : j,
                               usual ? moei_route_scaled(a, scale, w.weight[j])
                                     : moei_divf(1.0f, (float)n.k));
    }
    for (int32_t j = lane; j < a->desc.append_shared; j += 32) {
        (void)moei_route_store(g, t, n.k + j, true, n.keyed + j, moei_route_gate(a, t, j, true));
    }
    for (int32_t j = lane; j < n.rows - n.keyed; j += 32) {
        moei_route_store_shared(a, t, j, moei_route_scaled(a, scale, w.value[n.keyed + j]));
    }
}

// ---- the body ----------------------------------------------------------------------------------

DEV_FN bool moei_route_is_absent(const moek_route_args *a, int64_t t)
{
    return a->num_valid != NULL && t >= a->num_valid[0];
}

/// A token that fits into registers, by the warp in hand. N: moei_route_any_rows. FEW: of few
/// slots, which place; the keys that they are sorted by begin the shared memory. Such a token does
/// not wait for num_valid, and t < 0 is a rehearsal, which computes as for any token, but reads and
/// writes no memory.
template <int N, bool FEW> DEV_FN void moei_gpu_route_small(const moei_gpu_route_args *g, int64_t t)
{
    const moek_route_args *a = &g->route;
    const moei_route_sizes n = moei_route_size(a);
    const int32_t lane = (int32_t)dev_lane();
    const bool rehearses = FEW && t < 0;
    const int32_t end = !FEW || t < 0 || a->num_valid == NULL ? INT32_MAX : a->num_valid[0];
    bool valid = FEW || !moei_route_is_absent(a, t);
    moei_route_slot s = {-1, 0.0f, 0.0f, true};
    if (valid) {
        s = moei_route_registers<N>(a, t, &n);
    }
    if (rehearses) {
        return;
    }
    if (FEW && (int32_t)t >= end) {
        valid = false;
        s = {-1, 0.0f, 0.0f, true};
    }
    for (int32_t j = lane; j < n.k + a->desc.append_shared; j += 32) { // n.k <= 32
        const bool appended = j >= n.k;
        const int32_t id = appended && valid ? n.keyed + j - n.k : appended ? -1 : s.id;
        const int32_t local = moei_route_store(
            g, t, j, valid, id, appended ? moei_route_gate(a, t, j - n.k, valid) : s.weight);
        if (FEW) {
            const uint32_t slot = (uint32_t)(t * g->place.top_k) + (uint32_t)j;
            ((uint32_t *)dev_shared())[slot] = moei_gpu_sort_key(local, slot);
        }
    }
    if (lane < n.rows - n.keyed) {
        moei_route_store_shared(a, t, lane, s.shared);
    }
}

DEV_FN int64_t moei_route_token_of_warp(void)
{
    return (int64_t)dev_block() * dev_warps() + dev_warp();
}

template <int N> DEV_FN void moei_route_body(const moei_gpu_route_args *g)
{
    const int64_t t = moei_route_token_of_warp();
    if (t >= 0 && t < g->route.tokens) { // for all lanes or none; no rehearsal
        moei_gpu_route_small<N, false>(g, t);
    }
}

// Where moei_gpu_route_is_plain, told bit by bit: compilers find little in a long condition.
template <int N> DEV_FN void moei_route_plain_body(const moei_gpu_route_args *g)
{
    const moek_route_args *a = &g->route;
    dev_assume(a->num_valid == NULL);
    dev_assume(a->scale_tensor == NULL);
    dev_assume(a->hash_table == NULL);
    dev_assume(a->replica_table == NULL);
    dev_assume(a->expert_map == NULL);
    dev_assume(a->load == NULL);
    dev_assume(a->desc.zero_experts == 0);
    dev_assume(a->desc.shared_scores == 0);
    dev_assume(a->desc.append_shared == 0);
    moei_route_body<N>(g);
}

DEV_FN void moei_gpu_route_plain_128(const moei_gpu_route_args *g)
{
    moei_route_plain_body<4>(g);
}

DEV_FN void moei_gpu_route_plain_256(const moei_gpu_route_args *g)
{
    moei_route_plain_body<8>(g);
}

/// Up to so many rows: what fewer rows need leaves registers for more warps.
DEV_FN void moei_gpu_route_64(const moei_gpu_route_args *g)
{
    moei_route_body<2>(g);
}

DEV_FN void moei_gpu_route_128(const moei_gpu_route_args *g)
{
    moei_route_body<4>(g);
}

DEV_FN void moei_gpu_route_256(const moei_gpu_route_args *g)
{
    moei_route_body<8>(g);
}

DEV_FN void moei_gpu_route_512(const moei_gpu_route_args *g)
{
    moei_route_body<16>(g);
}

// A token at or past num_valid.
DEV_FN void moei_route_absent(const moei_gpu_route_args *g, int64_t t)
{
    const moek_route_args *a = &g->route;
    for (int32_t j = (int32_t)dev_lane(); j < a->top_k + a->desc.append_shared; j += 32) {
        (void)moei_route_store(g, t, j, false, -1, 0.0f);
    }
    for (int32_t j = (int32_t)dev_lane(); j < a->desc.shared_scores; j += 32) {
        moei_route_store_shared(a, t, j, 0.0f);
    }
}

/// What does not fit into registers; moei_gpu_route_words of shared memory for each warp.
DEV_FN void moei_gpu_route_wide(const moei_gpu_route_args *g)
{
    const int64_t t = moei_route_token_of_warp();
    if (t >= g->route.tokens) {
        return;
    }
    if (moei_route_is_absent(&g->route, t)) {
        moei_route_absent(g, t);
    } else {
        moei_route_shared(g, t,
                          (uint32_t *)dev_shared() + dev_warp() * moei_gpu_route_words(&g->route));
    }
}

#endif
