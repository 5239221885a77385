// SPDX-License-Identifier: Apache-2.0
// What every numerics header stands on: one function qualifier for C, C++, CUDA and HIP, bit casts,
// and the float operations that a compiler could otherwise contract or approximate.
//
// The rule of this folder: a function uses + - * / sqrt fma and integer operations in the order in
// which they are written, and nothing else. Files that include these headers are compiled with
// -ffp-contract=off (nvcc: -fmad=false, and -ftz=false, its default) and never with -ffast-math.
// The floating-point environment is the default one: round to nearest even, subnormals kept. Under
// these conditions a function gives the same bits on every compiler and every device. A conversion
// or a limit may be a device's own instruction where test_numerics_cuda.cu finds it equal for every
// argument.
#ifndef MOEI_NUMERICS_HD_H
#define MOEI_NUMERICS_HD_H

#include <stddef.h>
#include <stdint.h>

#if defined(__FAST_MATH__)
#error "libmoe's numerics need IEEE arithmetic: compile without -ffast-math"
#endif

/// Qualifier of every function of numerics/. Always inlined, so that a loop over an array
/// vectorises; callable from host and device code under CUDA and HIP (attributes instead of the
/// __host__ and __device__ macros, because HIP code is also built without AMD's headers).
#if defined(__CUDACC__) || defined(__HIP__)
#define MOE_HD                                                                                     \
    static inline __attribute__((host)) __attribute__((device)) __attribute__((always_inline))
#else
#define MOE_HD static inline __attribute__((always_inline))
#endif

/// The bits of a float, NaN payloads included.
MOE_HD uint32_t moei_f32_bits(float x)
{
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t u;
    __builtin_memcpy(&u, &x, sizeof(u));
    return u;
#endif
}

/// The float that has these bits.
MOE_HD float moei_f32_from_bits(uint32_t u)
{
#if defined(__CUDA_ARCH__)
    return __uint_as_float(u);
#else
    float x;
    __builtin_memcpy(&x, &u, sizeof(x));
    return x;
#endif
}

/// a * b + c with one rounding. The only way in which the library fuses.
MOE_HD float moei_fmaf(float a, float b, float c)
{
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

/// |x|; device compilers fold it into the instruction that reads it.
MOE_HD float moei_absf(float x)
{
#if defined(__CUDA_ARCH__)
    return fabsf(x);
#else
    return moei_f32_from_bits(moei_f32_bits(x) & 0x7FFFFFFFu);
#endif
}

/// The larger of |a| and |b|; a NaN where one of them is.
MOE_HD float moei_max_absf(float a, float b)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float m;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(fabsf(a)), "f"(fabsf(b)));
    return m;
#else
    const uint32_t x = moei_f32_bits(a) & 0x7FFFFFFFu;
    const uint32_t y = moei_f32_bits(b) & 0x7FFFFFFFu;
    return moei_f32_from_bits(x > y ? x : y);
#endif
}

/// a / b, correctly rounded, also where a device compiler's `/` may be approximate.
MOE_HD float moei_divf(float a, float b)
{
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

/// Square root, correctly rounded. -0 for -0, NaN for negative x.
MOE_HD float moei_sqrtf(float x)
{
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}

/// a / b for a >= 0 and b > 0. A device's compiler makes a function of a 64-bit division, with all
/// that a call costs; here 32 bits are divided where they suffice, else bit by bit.
MOE_HD int64_t moei_divide(int64_t a, int64_t b)
{
    if (((a | b) >> 32) == 0) {
        return (int64_t)((uint32_t)a / (uint32_t)b);
    }
    uint64_t rest = (uint64_t)a;
    uint64_t part = (uint64_t)b;
    uint64_t count = 1;
    uint64_t quotient = 0;
    while (part <= rest / 2) {
        part *= 2;
        count *= 2;
    }
    for (; count > 0; count /= 2, part /= 2) {
        if (part <= rest) {
            rest -= part;
            quotient += count;
        }
    }
    return (int64_t)quotient;
}

/// `a` where cond is 1, `b` where it is 0. In host code by masks: GCC would otherwise move the
/// float operations of one side behind a branch, and loops would not vectorise.
MOE_HD uint32_t moei_select(int cond, uint32_t a, uint32_t b)
{
#if defined(__CUDA_ARCH__) || defined(__AMDGCN__)
    return cond ? a : b;
#else
    uint32_t mask = 0u - (uint32_t)cond;
    return (a & mask) | (b & ~mask);
#endif
}

/// moei_select for floats; the bits pass unchanged.
MOE_HD float moei_selectf(int cond, float a, float b)
{
    return moei_f32_from_bits(moei_select(cond, moei_f32_bits(a), moei_f32_bits(b)));
}

/// What an encoder does with a magnitude that rounds beyond the format's largest finite value.
typedef enum moei_overflow {
    MOEI_OVERFLOW_NAN = 0, ///< the format's own answer: NaN (e4m3fn, *fnuz), inf (e5m2, f16),
                           ///< the largest value (fp6, fp4: they have neither)
    MOEI_OVERFLOW_SATURATE =
        1 ///< the largest finite value with the sign of the input, also for inf
} moei_overflow;

/// Magnitude code of |x| in a small float format with `mbits` fraction bits and exponent bias
/// `bias`: round to nearest even, subnormal codes included, exponent range unbounded above (the
/// caller compares with its largest code).
/// @param[in] abs_bits  bits of |x|; for NaN the result means nothing
MOE_HD uint32_t moei_small_from_abs(uint32_t abs_bits, int mbits, int bias)
{
    // Normal codes: round the f32 fraction to mbits bits, then rebase the exponent.
    const int cut = 23 - mbits;
    uint32_t odd = (abs_bits >> cut) & 1u;
    uint32_t normal =
        ((abs_bits + ((1u << (cut - 1)) - 1u) + odd) >> cut) - ((uint32_t)(127 - bias) << mbits);
    // Subnormal codes: adding 2^(23 + exponent of the format's step) leaves the rounded multiple
    // of the step in the low fraction bits. A carry gives the smallest normal code, as it should.
    uint32_t magic = (uint32_t)(127 + 24 - bias - mbits) << 23;
    float sum = moei_f32_from_bits(abs_bits) + moei_f32_from_bits(magic);
    uint32_t subnormal = moei_f32_bits(sum) - magic;
    return moei_select((int32_t)abs_bits < ((128 - bias) << 23), subnormal, normal);
}

/// Value of a magnitude code of a small float format, exact; no code means NaN or infinity here.
MOE_HD float moei_small_to_abs(uint32_t code, int mbits, int bias)
{
    float normal = moei_f32_from_bits((code << (23 - mbits)) + ((uint32_t)(127 - bias) << 23));
    float step = moei_f32_from_bits((uint32_t)(128 - bias - mbits) << 23);
    float subnormal = (float)(int32_t)code * step;
    return moei_selectf((int32_t)code < (1 << mbits), subnormal, normal);
}

#endif
