// SPDX-License-Identifier: Apache-2.0
// What the multipliers of a core can do at most, for benchmarks: chains of multiply-adds that never
// leave the registers. Twelve chains are more than latency x ports of any core that we know (4 x 2
// to 4 x 4, of which the latter has 32 registers), and leave room in sixteen.
#include "backends/cpu/peak.h"

#include <math.h>

#include "backends/cpu/ref/ref.h"

#if defined(__AVX512F__)
#define LANES     16
#define PEAK_NAME moei_cpu_peak__avx512
#elif defined(__AVX__)
#define LANES     8
#define PEAK_NAME MOEI_REF(moei_cpu_peak)
#else
#define LANES     4
#define PEAK_NAME MOEI_REF(moei_cpu_peak)
#endif
#define CHAINS 12

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

// Where a fused operation is a library call, the multiplier and the adder by turns.
static inline lanes multiply_add(lanes a, float factor, float term)
{
#if defined(__FMA__) || defined(__aarch64__)
    lanes r = a;
    for (int l = 0; l < LANES; l++) {
        r[l] = fmaf(a[l], factor, term);
    }
    return r;
#else
    return a * factor + term;
#endif
}

double PEAK_NAME(int64_t steps, float factor, float term, float *sum)
{
    lanes a[CHAINS];
    for (int c = 0; c < CHAINS; c++) {
        for (int l = 0; l < LANES; l++) {
            a[c][l] = (float)(c + l);
        }
    }
    for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) {
            a[c] = multiply_add(a[c], factor, term);
        }
    }
    *sum = 0.0f;
    for (int c = 0; c < CHAINS; c++) {
        for (int l = 0; l < LANES; l++) {
            *sum += a[c][l];
        }
    }
    return 2.0 * CHAINS * LANES * (double)steps;
}
