// SPDX-License-Identifier: Apache-2.0
// What a core can do at most with 8-bit integers, for benchmarks: products of codes of up to 4 bits
// with 8-bit ones, summed in 32 bits, from registers alone. Without dot-product instructions that
// is four multiplications, whose sums of 16 bits are widened once.
#include <immintrin.h>

#include "backends/cpu/peak.h"

#if defined(__AVX512VNNI__)
#define CHAINS 12
double moei_cpu_peak_i8__avx512_vnni(int64_t steps, float factor, float term, float *sum)
{
    __m512i acc[CHAINS];
    __m512i w = _mm512_set1_epi8((char)factor);
    const __m512i x = _mm512_set1_epi8((char)term);
    for (int c = 0; c < CHAINS; c++) {
        acc[c] = _mm512_set1_epi32(c);
    }
    for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) {
            acc[c] = _mm512_dpbusd_epi32(acc[c], w, x);
        }
    }
    *sum = 0.0f;
    for (int c = 0; c < CHAINS; c++) {
        *sum += (float)_mm512_reduce_add_epi32(acc[c]);
    }
    return 2.0 * 64 * CHAINS * (double)steps;
}
#else
#define CHAINS 6
double moei_cpu_peak_i8__avx2(int64_t steps, float factor, float term, float *sum)
{
    __m256i acc[CHAINS];
    __m256i w = _mm256_set1_epi8((char)factor);
    __m256i x = _mm256_set1_epi8((char)term);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int c = 0; c < CHAINS; c++) {
        acc[c] = _mm256_set1_epi32(c);
    }
    for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 6
        for (int c = 0; c < CHAINS; c++) {
            __m256i wide = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __asm__ volatile("" : "+x"(w), "+x"(x)); // else one product would serve all
                const __m256i products = _mm256_maddubs_epi16(w, x);
                wide = i == 0 ? products : _mm256_add_epi16(wide, products);
            }
            acc[c] = _mm256_add_epi32(acc[c], _mm256_madd_epi16(wide, ones));
        }
    }
    int32_t lanes[8];
    *sum = 0.0f;
    for (int c = 0; c < CHAINS; c++) {
        _mm256_storeu_si256((__m256i *)(void *)lanes, acc[c]);
        for (int l = 0; l < 8; l++) {
            *sum += (float)lanes[l];
        }
    }
    return 2.0 * 4 * 32 * CHAINS * (double)steps;
}
#endif
