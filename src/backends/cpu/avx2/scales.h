// SPDX-License-Identifier: Apache-2.0
// Scales to floats with AVX2.
#ifndef MOEI_BACKENDS_CPU_AVX2_SCALES_H
#define MOEI_BACKENDS_CPU_AVX2_SCALES_H

#include <stdbool.h>

#include "backends/cpu/avx/vector.h"
#include "backends/cpu/packed.h"
#include "quant/elements.h"

// Eight e8m0 or e4m3 codes in the low half to floats.
static inline __m256 byte_scales(moe_dtype dtype, __m128i codes)
{
    if (dtype == MOE_E4M3FN) {
        const __m256 value = _mm256_cvtph_ps(low_128(e4m3_to_f16(halfi_of_128(codes))));
        return _mm256_mul_ps(value, _mm256_set1_ps(256.0f));
    }
    const __m256i code = _mm256_cvtepu8_epi32(codes);
    const __m256i nan = _mm256_cmpeq_epi32(code, _mm256_set1_epi32(255));
    __m256i bits = _mm256_slli_epi32(code, 23);
    bits = _mm256_max_epu32(bits, _mm256_set1_epi32(0x00400000)); // 2^-127
    bits = _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi32(0x7FC00000)));
    return _mm256_castsi256_ps(bits);
}

// True if none of 16, 32, 48 or 64 e8m0 codes is 0 or 255: the others are a float's exponent.
static inline bool all_exponents(const uint8_t *codes, int64_t count)
{
    __m128i least = _mm_set1_epi8(2);
    for (int64_t n = 0; n < count; n += 16) {
        const __m128i v = load_16(codes + n);
        least = _mm_min_epu8(least, _mm_add_epi8(v, _mm_set1_epi8(1)));
    }
    return _mm_movemask_epi8(_mm_cmpeq_epi8(least, _mm_set1_epi8(2))) == 0xFFFF;
}

// Scales of the outputs of a panel side by side; `count`: a multiple of 16.
static inline void load_scale_line(moe_dtype dtype, const uint8_t *from, int64_t count,
                                   float *restrict out)
{
    switch (dtype) {
    case MOE_E8M0:
        if (all_exponents(from, count)) {
            for (int64_t n = 0; n < count; n += 8) {
                const __m128i codes = load_8(from + n);
                const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(codes), 23);
                _mm256_store_ps(out + n, _mm256_castsi256_ps(bits));
            }
            return;
        }
        for (int64_t n = 0; n < count; n += 8) {
            const __m128i codes = load_8(from + n);
            _mm256_store_ps(out + n, byte_scales(MOE_E8M0, codes));
        }
        return;
    case MOE_E4M3FN:
        for (int64_t n = 0; n < count; n += 8) {
            const __m128i codes = load_8(from + n);
            _mm256_store_ps(out + n, byte_scales(MOE_E4M3FN, codes));
        }
        return;
    case MOE_BF16:
    case MOE_F16:
        for (int64_t n = 0; n < count; n += 8) {
            const __m128i half = load_16(from + 2 * n);
            const __m256i word = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
            _mm256_store_ps(out + n,
                            dtype == MOE_BF16 ? _mm256_castsi256_ps(word) : _mm256_cvtph_ps(half));
        }
        return;
    default:
        memcpy(out, from, (size_t)count * sizeof(float));
        return;
    }
}

// All scales of a group of a packed panel: [set][output].
static inline void load_group_scales(const moei_cpu_packed *p, moe_dtype dtype, const uint8_t *head,
                                     int64_t width, float (*out)[MOEI_CPU_PANEL])
{
    for (int64_t s = 0; s < p->sets; s++) {
        const uint8_t *from = head + s * width * p->scale;
        if (width == MOEI_CPU_PANEL) { // a constant
            load_scale_line(dtype, from, MOEI_CPU_PANEL, out[s]);
        } else {
            load_scale_line(dtype, from, width, out[s]);
        }
    }
}

#endif
