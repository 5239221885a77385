// SPDX-License-Identifier: Apache-2.0
// route with AVX2: route_token.h with its passes over all experts in vectors.
//
// Selection of k out of n keys, without a branch that depends on one of them:
//   bound       the largest key of each of 8, 16 or 32 lanes (e mod 8 ..); the k-th largest of
//   these
//               is no larger than the k-th largest of all, and not much smaller
//   candidates  the ids whose keys reach it, in ascending order: k and some
//   rank        of each candidate, the number of candidates before it; its place in the result
// Where too many may be candidates (equal keys, k above 24), or keys are few, a heap.
//
// Some 70 vector operations for 128 experts plus 3 for each pair of a candidate and eight others;
// the exponentials of a softmax are 45 for eight experts, and the larger part. Limit: vector
// operations.
#include <immintrin.h>

#include "backends/cpu/route_token.h"

#define LANES      8
#define PARTS      4  // vectors of 32 partial sums, or maxima
#define MOST_K     24 // above, a bound from 32 lanes lets too many pass
#define FEW        31 // keys; a heap is as fast
#define CANDIDATES 64

// Lanes [0, n) of eight.
static inline __m256i first_lanes(int32_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

// x[0..n) of eight, `other` in the rest.
static inline __m256 load_first(const float *x, int32_t n, __m256 other)
{
    if (n >= LANES) {
        return _mm256_loadu_ps(x);
    }
    const __m256i mask = first_lanes(n);
    return _mm256_blendv_ps(other, _mm256_maskload_ps(x, mask), _mm256_castsi256_ps(mask));
}

static inline __m256 all_minus_infinity(void)
{
    return _mm256_set1_ps(minus_infinity());
}

// Exact sums of zeros are +0, so +0 added to a partial sum leaves it.
static float sum_lanes(const float *x, int32_t n)
{
    __m256 v[PARTS];
    for (int32_t p = 0; p < PARTS; p++) {
        v[p] = _mm256_setzero_ps();
    }
    int32_t e = 0;
    for (; e + PARTS * LANES <= n; e += PARTS * LANES) {
        for (int32_t p = 0; p < PARTS; p++) {
            v[p] = _mm256_add_ps(v[p], _mm256_loadu_ps(x + e + p * LANES));
        }
    }
    for (int32_t p = 0; e < n; e += LANES, p++) {
        v[p] = _mm256_add_ps(v[p], load_first(x + e, n - e, _mm256_setzero_ps()));
    }
    v[0] = _mm256_add_ps(_mm256_add_ps(v[0], v[2]), _mm256_add_ps(v[1], v[3]));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v[0]), _mm256_extractf128_ps(v[0], 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Largest of each lane e mod 8 parts, NaN aside: maxps gives its second operand where one is NaN.
// `parts` is a constant at each call, here and below.
static inline void lane_maxima(const float *x, int32_t n, int32_t parts, __m256 v[PARTS])
{
    const __m256 none = all_minus_infinity();
    for (int32_t p = 0; p < parts; p++) {
        v[p] = none;
    }
    int32_t e = 0;
    for (; e + parts * LANES <= n; e += parts * LANES) {
        for (int32_t p = 0; p < parts; p++) {
            v[p] = _mm256_max_ps(_mm256_loadu_ps(x + e + p * LANES), v[p]);
        }
    }
    for (int32_t p = 0; e < n; e += LANES, p++) {
        v[p] = _mm256_max_ps(load_first(x + e, n - e, none), v[p]);
    }
}

static inline float largest_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static float max_of(const float *x, int32_t n)
{
    __m256 v[PARTS];
    lane_maxima(x, n, PARTS, v);
    return largest_lane(_mm256_max_ps(_mm256_max_ps(v[0], v[1]), _mm256_max_ps(v[2], v[3])));
}

// Adds a pair of each lane, (first, second) to (*first, *second).
static inline void join_two(__m256 other_first, __m256 other_second, __m256 *first, __m256 *second)
{
    const __m256 loser = _mm256_min_ps(*first, other_first);
    *first = _mm256_max_ps(*first, other_first);
    *second = _mm256_max_ps(loser, _mm256_max_ps(*second, other_second));
}

static void two_largest(const float *key, int32_t n, float *first, float *second)
{
    const __m256 none = all_minus_infinity();
    __m256 f = none;
    __m256 s = none;
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 x = load_first(key + i, n - i, none);
        s = _mm256_max_ps(s, _mm256_min_ps(f, x));
        f = _mm256_max_ps(f, x);
    }
    join_two(_mm256_permute2f128_ps(f, f, 1), _mm256_permute2f128_ps(s, s, 1), &f, &s);
    join_two(_mm256_permute_ps(f, 0x4E), _mm256_permute_ps(s, 0x4E), &f, &s);
    join_two(_mm256_permute_ps(f, 0xB1), _mm256_permute_ps(s, 0xB1), &f, &s);
    *first = _mm256_cvtss_f32(f);
    *second = _mm256_cvtss_f32(s);
}

// The k-th largest of the lanes' maxima: the least of those that have fewer than k above.
static inline float bound_of(const float *key, int32_t n, int32_t k, int32_t parts)
{
    float lane[PARTS * LANES];
    __m256 v[PARTS];
    __m256i above[PARTS];
    lane_maxima(key, n, parts, v);
    for (int32_t p = 0; p < parts; p++) {
        _mm256_storeu_ps(lane + p * LANES, v[p]);
        above[p] = _mm256_setzero_si256();
    }
    for (int32_t j = 0; j < parts * LANES; j++) {
        const __m256 x = _mm256_broadcast_ss(lane + j);
        for (int32_t p = 0; p < parts; p++) {
            const __m256 greater = _mm256_cmp_ps(x, v[p], _CMP_GT_OQ);
            above[p] = _mm256_sub_epi32(above[p], _mm256_castps_si256(greater));
        }
    }
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 least = all_minus_infinity(); // the largest of their negatives
    for (int32_t p = 0; p < parts; p++) {
        const __m256i among = _mm256_cmpgt_epi32(_mm256_set1_epi32(k), above[p]);
        const __m256 negative = _mm256_xor_ps(v[p], sign);
        least = _mm256_max_ps(
            least, _mm256_blendv_ps(all_minus_infinity(), negative, _mm256_castsi256_ps(among)));
    }
    return -largest_lane(least);
}

// Which of the eight keys are not below the least.
static inline uint32_t reach_of(__m256 key, __m256 least)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(key, least, _CMP_GE_OQ));
}

// Ids whose keys are not below the bound, ascending, and their keys; returns how many there are,
// which may be more than were stored. 32 at a time: a mask without any is one branch.
static inline int32_t find_candidates(const float *key, int32_t n, float bound, int32_t *id,
                                      float *candidate)
{
    const __m256 least = _mm256_set1_ps(bound);
    int32_t count = 0;
    for (int32_t e0 = 0; e0 < n; e0 += PARTS * LANES) {
        const float *x = key + e0;
        const int32_t left = n - e0;
        uint32_t reach = 0;
        if (left >= PARTS * LANES) {
            for (int32_t p = 0; p < PARTS; p++) {
                reach |= reach_of(_mm256_loadu_ps(x + p * LANES), least) << (p * LANES);
            }
        } else {
            for (int32_t e = 0; e < left; e += LANES) {
                reach |= reach_of(load_first(x + e, left - e, least), least) << e;
            }
            reach &= (1u << left) - 1u;
        }
        for (; reach != 0 && count < CANDIDATES; reach &= reach - 1, count++) {
            id[count] = e0 + __builtin_ctz(reach);
            candidate[count] = key[id[count]];
        }
        count += __builtin_popcount(reach);
    }
    return count;
}

// rank[i]: how many of n keys, n <= 64, come before key i: larger ones, and equal ones before it.
// `key` and `rank` have room up to a multiple of 8.
static inline void rank_all(const float *key, int32_t n, int32_t *rank)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 x = _mm256_loadu_ps(key + i);
        __m256i before = _mm256_setzero_si256();
        for (int32_t j = 0; j < i; j++) {
            const __m256 y = _mm256_broadcast_ss(key + j);
            before = _mm256_sub_epi32(before, _mm256_castps_si256(_mm256_cmp_ps(y, x, _CMP_GE_OQ)));
        }
        for (int32_t j = i; j < n && j < i + LANES; j++) {
            const __m256 y = _mm256_broadcast_ss(key + j);
            const __m256 later =
                _mm256_castsi256_ps(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(j - i)));
            const __m256 equal = _mm256_and_ps(_mm256_cmp_ps(y, x, _CMP_EQ_OQ), later);
            const __m256 greater = _mm256_cmp_ps(y, x, _CMP_GT_OQ);
            before = _mm256_sub_epi32(before, _mm256_castps_si256(_mm256_or_ps(greater, equal)));
        }
        for (int32_t j = i + LANES; j < n; j++) {
            const __m256 y = _mm256_broadcast_ss(key + j);
            before = _mm256_sub_epi32(before, _mm256_castps_si256(_mm256_cmp_ps(y, x, _CMP_GT_OQ)));
        }
        _mm256_storeu_si256((__m256i *)(void *)(rank + i), before);
    }
}

static void select_largest(const float *key, int32_t n, int32_t k, int32_t *id)
{
    int32_t from[CANDIDATES];
    float candidate[CANDIDATES + LANES];
    int32_t rank[CANDIDATES];
    int32_t sorted[CANDIDATES];
    if (n <= FEW || k > MOST_K) {
        select_by_heap(key, n, k, id);
        return;
    }
    const float bound = k <= 4    ? bound_of(key, n, k, 1)
                        : k <= 10 ? bound_of(key, n, k, 2)
                                  : bound_of(key, n, k, PARTS);
    const int32_t count = find_candidates(key, n, bound, from, candidate);
    if (count > CANDIDATES) {
        select_by_heap(key, n, k, id);
        return;
    }
    _mm256_storeu_ps(candidate + count, _mm256_setzero_ps()); // up to whole vectors
    rank_all(candidate, count, rank);
    for (int32_t i = 0; i < count; i++) {
        sorted[rank[i]] = from[i];
    }
    memcpy(id, sorted, (size_t)k * sizeof *id);
}

moek_route_fn moek_route_f32_any__avx2;

void moek_route_f32_any__avx2(const moek_route_args *args, int64_t t0, int64_t t1)
{
    route_tokens(args, t0, t1);
}
