// SPDX-License-Identifier: Apache-2.0
// route, portable. Selection is a heap of the k best ids; sums and maxima over experts run as 32
// partial ones, which the compiler keeps in vectors.
#include "backends/cpu/ref/ref.h"
#include "backends/cpu/route_token.h"

#define LANES 32

static float sum_lanes(const float *x, int32_t n)
{
    float lane[LANES] = {0};
    int32_t e = 0;
    for (; e + LANES <= n; e += LANES) {
        for (int32_t j = 0; j < LANES; j++) {
            lane[j] += x[e + j];
        }
    }
    for (int32_t j = 0; e + j < n; j++) {
        lane[j] += x[e + j];
    }
    for (int32_t half = LANES / 2; half > 0; half /= 2) {
        for (int32_t j = 0; j < half; j++) {
            lane[j] += lane[j + half];
        }
    }
    return lane[0];
}

static float max_of(const float *x, int32_t n)
{
    float lane[LANES];
    int32_t e = 0;
    for (int32_t j = 0; j < LANES; j++) {
        lane[j] = minus_infinity();
    }
    for (; e + LANES <= n; e += LANES) {
        for (int32_t j = 0; j < LANES; j++) {
            lane[j] = x[e + j] > lane[j] ? x[e + j] : lane[j];
        }
    }
    for (int32_t j = 0; e + j < n; j++) {
        lane[j] = x[e + j] > lane[j] ? x[e + j] : lane[j];
    }
    float best = lane[0];
    for (int32_t j = 1; j < LANES; j++) {
        best = lane[j] > best ? lane[j] : best;
    }
    return best;
}

static void two_largest(const float *key, int32_t n, float *first, float *second)
{
    *first = minus_infinity();
    *second = minus_infinity();
    for (int32_t i = 0; i < n; i++) {
        if (key[i] > *first) {
            *second = *first;
            *first = key[i];
        } else if (key[i] > *second) {
            *second = key[i];
        }
    }
}

static void select_largest(const float *key, int32_t n, int32_t k, int32_t *id)
{
    select_by_heap(key, n, k, id);
}

moek_route_fn MOEI_REF(moek_route_f32_any);
void MOEI_REF(moek_route_f32_any)(const moek_route_args *args, int64_t t0, int64_t t1)
{
    route_tokens(args, t0, t1);
}
