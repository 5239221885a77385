// SPDX-License-Identifier: Apache-2.0
// Vectors of what a file is compiled for: 8 lanes of AVX2, or 16 of AVX-512. A lane is a float or a
// 32-bit word of one output of a product, so that bits do not depend on how many there are. What
// moves bytes does so within each 128 bits, in both.
#ifndef MOEI_BACKENDS_CPU_AVX_VECTOR_H
#define MOEI_BACKENDS_CPU_AVX_VECTOR_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__AVX512F__)
#define LANES   16
#define V(name) _mm512_##name // what both have by one name
typedef __m512 vecf;
typedef __m512i veci;
typedef __m256i halfi; // of a veci
#else
#define LANES   8
#define V(name) _mm256_##name
typedef __m256 vecf;
typedef __m256i veci;
typedef __m128i halfi;
#endif

static inline __m128i load_8(const void *from) // in the low half
{
    return _mm_loadl_epi64((const __m128i *)from);
}

static inline __m128i load_16(const void *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}

static inline __m256i load_32(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

static inline void store_32(void *to, __m256i v)
{
    _mm256_storeu_si256((__m256i *)to, v);
}

static inline halfi halfi_load(const void *from)
{
#if LANES == 16
    return load_32(from);
#else
    return load_16(from);
#endif
}

static inline halfi low_half(veci v)
{
#if LANES == 16
    return _mm512_castsi512_si256(v);
#else
    return _mm256_castsi256_si128(v);
#endif
}

static inline halfi high_half(veci v)
{
#if LANES == 16
    return _mm512_extracti64x4_epi64(v, 1);
#else
    return _mm256_extracti128_si256(v, 1);
#endif
}

static inline __m128i low_128(veci v)
{
#if LANES == 16
    return _mm512_castsi512_si128(v);
#else
    return _mm256_castsi256_si128(v);
#endif
}

/// What follows v in a half has no meaning.
static inline halfi halfi_of_128(__m128i v)
{
#if LANES == 16
    return _mm256_castsi128_si256(v);
#else
    return v;
#endif
}

/// The same 16 bytes everywhere.
static inline veci veci_all(__m128i v)
{
#if LANES == 16
    return _mm512_broadcast_i32x4(v);
#else
    return _mm256_broadcastsi128_si256(v);
#endif
}

static inline veci veci_and(veci a, veci b)
{
#if LANES == 16
    return _mm512_and_si512(a, b);
#else
    return _mm256_and_si256(a, b);
#endif
}

static inline veci veci_or(veci a, veci b)
{
#if LANES == 16
    return _mm512_or_si512(a, b);
#else
    return _mm256_or_si256(a, b);
#endif
}

static inline veci veci_xor(veci a, veci b)
{
#if LANES == 16
    return _mm512_xor_si512(a, b);
#else
    return _mm256_xor_si256(a, b);
#endif
}

static inline veci shift_left(veci v, int by)
{
#if LANES == 16
    return _mm512_slli_epi32(v, (unsigned)by);
#else
    return _mm256_slli_epi32(v, by);
#endif
}

static inline veci veci_or_xor(veci a, veci b, veci c) // a | (b ^ c)
{
#if LANES == 16
    return _mm512_ternarylogic_epi32(a, b, c, 0xF6);
#else
    return veci_or(a, veci_xor(b, c));
#endif
}

static inline veci shift_right(veci v, int by)
{
#if LANES == 16
    return _mm512_srli_epi32(v, (unsigned)by);
#else
    return _mm256_srli_epi32(v, by);
#endif
}

static inline veci as_ints(vecf v)
{
#if LANES == 16
    return _mm512_castps_si512(v);
#else
    return _mm256_castps_si256(v);
#endif
}

static inline vecf as_floats(veci v)
{
#if LANES == 16
    return _mm512_castsi512_ps(v);
#else
    return _mm256_castsi256_ps(v);
#endif
}

static inline veci veci_load(const void *from)
{
#if LANES == 16
    return _mm512_loadu_si512(from);
#else
    return load_32(from);
#endif
}

static inline void veci_store(void *to, veci v)
{
#if LANES == 16
    _mm512_storeu_si512(to, v);
#else
    store_32(to, v);
#endif
}

/// A lane has two bf16, of two k.
static inline vecf low_of(veci pair)
{
    return as_floats(V(slli_epi32)(pair, 16));
}

static inline vecf high_of(veci pair)
{
    return as_floats(veci_and(pair, V(set1_epi32)((int)0xFFFF0000u)));
}

/// True if numbers of a lane differ. NaN does not.
static inline bool any_differ(vecf a, vecf b)
{
#if LANES == 16
    return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_OQ) != 0;
#else
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_OQ)) != 0;
#endif
}

/// True if the top bit of a byte is set.
static inline bool any_top_bit(veci v)
{
#if LANES == 16
    return _mm512_movepi8_mask(v) != 0;
#else
    return _mm256_movemask_epi8(v) != 0;
#endif
}

/// True if a byte is FF.
static inline bool any_byte_full(veci v)
{
#if LANES == 16
    return _mm512_cmpeq_epi8_mask(v, _mm512_set1_epi8(-1)) != 0;
#else
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(-1))) != 0;
#endif
}

/// 16 bytes each of rows 0, 4 and so on.
static inline veci load_each_fourth(const uint8_t *const *rows, int64_t at)
{
    __m256i v = _mm256_castsi128_si256(load_16(rows[0] + at));
    v = _mm256_inserti128_si256(v, load_16(rows[4] + at), 1);
#if LANES == 16
    __m256i w = _mm256_castsi128_si256(load_16(rows[8] + at));
    w = _mm256_inserti128_si256(w, load_16(rows[12] + at), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(v), w, 1);
#else
    return v;
#endif
}

/// Words 0 of all 128 bits side by side, then words 1, 2 and 3.
static inline veci gather_words(veci v)
{
#if LANES == 16
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
#else
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}

/// s eeee mmm in the upper byte of a word to s 0eeee mmm0000000, an f16 of 2^-8 of the value,
/// subnormals included. nans: the code of one, 7F, becomes one; else there is none.
__attribute__((always_inline)) static inline veci f16_of_e4m3(veci upper, bool nans)
{
    const veci half = veci_and(V(srai_epi16)(upper, 1), V(set1_epi16)((short)0xBF80));
    if (!nans) {
        return half;
    }
    const veci magnitude = veci_and(half, V(set1_epi16)(0x3F80)); // 3F80 is NaN's
    const veci carry = V(add_epi16)(magnitude, V(set1_epi16)(0x0080));
    return veci_or(half, veci_and(carry, V(set1_epi16)(0x4000)));
}

/// The same of codes side by side.
static inline veci e4m3_to_f16(halfi codes)
{
    return f16_of_e4m3(V(slli_epi16)(V(cvtepu8_epi16)(codes), 8), true);
}

#endif
