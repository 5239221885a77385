// SPDX-License-Identifier: Apache-2.0
// Eight floats and the one operation on them that compilers of today do not vectorise reliably: a
// fused multiply-add with the sums kept in registers. Without FMA hardware, plain C with the same
// bits.
#ifndef MOEI_BACKENDS_CPU_REF_LANES_H
#define MOEI_BACKENDS_CPU_REF_LANES_H

#include "numerics/hd.h"

#if defined(__FMA__) && defined(__AVX__)
#include <immintrin.h>
typedef __m256 lanes;

static inline lanes lanes_zero(void)
{
    return _mm256_setzero_ps();
}

/// a * b[i] + c[i], one rounding.
static inline lanes lanes_fma(float a, const float *b, lanes c)
{
    return _mm256_fmadd_ps(_mm256_set1_ps(a), _mm256_loadu_ps(b), c);
}

static inline void lanes_store(float *to, lanes v)
{
    _mm256_storeu_ps(to, v);
}
#elif defined(__ARM_NEON)
#include <arm_neon.h>
typedef float32x4x2_t lanes;

static inline lanes lanes_zero(void)
{
    return (lanes){{vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}};
}

static inline lanes lanes_fma(float a, const float *b, lanes c)
{
    const float32x4_t va = vdupq_n_f32(a);
    return (lanes){
        {vfmaq_f32(c.val[0], va, vld1q_f32(b)), vfmaq_f32(c.val[1], va, vld1q_f32(b + 4))}};
}

static inline void lanes_store(float *to, lanes v)
{
    vst1q_f32(to, v.val[0]);
    vst1q_f32(to + 4, v.val[1]);
}
#else
typedef struct lanes {
    float v[8];
} lanes;

static inline lanes lanes_zero(void)
{
    return (lanes){{0.0f}};
}

static inline lanes lanes_fma(float a, const float *b, lanes c)
{
    for (int i = 0; i < 8; i++) {
        c.v[i] = moei_fmaf(a, b[i], c.v[i]);
    }
    return c;
}

static inline void lanes_store(float *to, lanes v)
{
    for (int i = 0; i < 8; i++) {
        to[i] = v.v[i];
    }
}
#endif

#endif
