// SPDX-License-Identifier: Apache-2.0
// quantize with AVX2: fixed point, i8b32, i8b128 and i16b32, 32 elements at a time; all else is the
// portable row's.
//
//   x [32] -> four vectors of f32 -> bits of the largest |x| of the group, in every lane -> byte of
//          the scale -> x * 2^(127 - byte), to int32 (nearest even) -> packed to 16 or 8 bits
//
// A maximum has no order and the multiplication is by a power of two, so the bits are those of
// quant/rules.h. Some 45 operations for 32 elements; a chain of 30 cycles through the maximum, of
// which several groups are in flight. A group of 128 is read twice. Limit: vector operations.
#include <immintrin.h>

#include "core/safemath.h"
#include "ops/quantize.h"
#include "quant/elements.h"

#define BLOCK   32
#define BLOCKS  4 // of a group, at most
#define LANES   8
#define VECTORS (BLOCK / LANES)

static inline __m256 load_bf16(const uint8_t *x)
{
    const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

static inline void load_block(moe_dtype dtype, const uint8_t *x, __m256 v[VECTORS])
{
    for (int i = 0; i < VECTORS; i++) {
        if (dtype == MOE_F32) {
            v[i] = _mm256_loadu_ps((const float *)(const void *)(x + 4 * LANES * i));
        } else if (dtype == MOE_BF16) {
            v[i] = load_bf16(x + 2 * LANES * i);
        } else {
            v[i] = _mm256_cvtph_ps(
                _mm_loadu_si128((const __m128i *)(const void *)(x + 2 * LANES * i)));
        }
    }
}

// Raises the bits of the largest magnitude of each lane; those of a NaN are above those of
// infinity.
static inline __m256i raise(__m256i most, const __m256 v[VECTORS])
{
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32((int)MOEI_ABS_MASK));
    for (int i = 0; i < VECTORS; i++) {
        most = _mm256_max_epi32(most, _mm256_castps_si256(_mm256_and_ps(v[i], mask)));
    }
    return most;
}

/// A group's scale, in every lane.
typedef struct fixed_scale {
    __m256i byte, finite;
    __m256 inverse;
} fixed_scale;

// See MOEI_SCALE_FIXED in quant/rules.h.
static inline fixed_scale scale_of(bool int16, __m256i most)
{
    __m256i amax = _mm256_max_epi32(most, _mm256_permute2x128_si256(most, most, 1));
    amax = _mm256_max_epi32(amax, _mm256_shuffle_epi32(amax, 0x4E));
    amax = _mm256_max_epi32(amax, _mm256_shuffle_epi32(amax, 0xB1));
    const __m256i carry = _mm256_set1_epi32(int16 ? 0x10100 : 0x10000);
    const __m256i finite = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)MOEI_INF_BITS), amax);
    __m256i byte = _mm256_srli_epi32(_mm256_add_epi32(amax, carry), 23);
    byte = _mm256_sub_epi32(byte, _mm256_set1_epi32(int16 ? 14 : 6));
    byte = _mm256_max_epi32(byte, _mm256_set1_epi32(1));
    const __m256i inverse = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(254), byte), 23);
    return (fixed_scale){byte, finite, _mm256_castsi256_ps(inverse)};
}

static inline uint8_t stored(const fixed_scale *s)
{
    const __m256i byte =
        _mm256_or_si256(s->byte, _mm256_andnot_si256(s->finite, _mm256_set1_epi32(255)));
    return (uint8_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(byte));
}

static inline void store_codes(bool int16, const __m256 v[VECTORS], const fixed_scale *s,
                               uint8_t *codes)
{
    __m256i c[VECTORS];
    for (int i = 0; i < VECTORS; i++) {
        c[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], s->inverse));
        c[i] = _mm256_and_si256(c[i], s->finite);
    }
    const __m256i low = _mm256_packs_epi32(c[0], c[1]);
    const __m256i high = _mm256_packs_epi32(c[2], c[3]);
    if (int16) {
        _mm256_storeu_si256((__m256i *)(void *)codes, _mm256_permute4x64_epi64(low, 0xD8));
        _mm256_storeu_si256((__m256i *)(void *)(codes + 32), _mm256_permute4x64_epi64(high, 0xD8));
    } else {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i packed = _mm256_packs_epi16(low, high);
        _mm256_storeu_si256((__m256i *)(void *)codes, _mm256_permutevar8x32_epi32(packed, order));
    }
}

/// What is constant wherever a row is quantised.
typedef struct form {
    moe_dtype dtype; // of x
    bool int16;
    int64_t blocks; // of a group
} form;

// A group's codes; returns its scale's byte. Where it is one block, x is read once.
static inline uint8_t quantize_group(form f, const uint8_t *x, uint8_t *codes)
{
    const int64_t x_bytes = BLOCK * (f.dtype == MOE_F32 ? 4 : 2);
    const int64_t q_bytes = BLOCK * (f.int16 ? 2 : 1);
    __m256 v[VECTORS];
    __m256i most = _mm256_setzero_si256();
    for (int64_t b = 0; b < f.blocks; b++) {
        load_block(f.dtype, x + b * x_bytes, v);
        most = raise(most, v);
    }
    const fixed_scale s = scale_of(f.int16, most);
    for (int64_t b = 0; b < f.blocks; b++) {
        load_block(f.dtype, x + b * x_bytes, v);
        store_codes(f.int16, v, &s, codes + b * q_bytes);
    }
    return stored(&s);
}

// The last group of a row, n elements of it: zeros are added, which raise no maximum.
static void quantize_tail(form f, const uint8_t *x, int64_t n, uint8_t *codes, uint8_t *scale)
{
    float padded[BLOCKS * BLOCK] = {0.0f};
    uint8_t wide[BLOCKS * BLOCK * sizeof(int16_t)];
    moei_load_f32(f.dtype, x, 0, n, padded);
    f.dtype = MOE_F32;
    *scale = quantize_group(f, (const uint8_t *)padded, wide);
    memcpy(codes, wide, (size_t)(f.int16 ? 2 * n : n));
}

static inline void quantize_row(form f, const moek_quantize_args *a, const uint8_t *x, uint8_t *q,
                                uint8_t *scales)
{
    const int64_t group = f.blocks * BLOCK;
    const int64_t x_bytes = group * (f.dtype == MOE_F32 ? 4 : 2);
    const int64_t q_bytes = group * (f.int16 ? 2 : 1);
    const int64_t step = a->scale_k_stride; // of bytes
    const int64_t whole = a->k / group;
    for (int64_t g = 0; g < whole; g++) {
        scales[g * step] = quantize_group(f, x + g * x_bytes, q + g * q_bytes);
    }
    if (a->k % group != 0) {
        quantize_tail(f, x + whole * x_bytes, a->k % group, q + whole * q_bytes,
                      &scales[whole * step]);
    }
}

static bool is_fixed(const moek_quantize_args *a)
{
    return a->stage == MOEK_QUANTIZE_CODES && a->info->scale == MOEI_SCALE_FIXED &&
           a->quant.scale_type == MOE_SCALE_E8M0 &&
           (a->quant.group == BLOCK || a->quant.group == BLOCKS * BLOCK) && !a->silu_mul &&
           !a->zero_absent_scales;
}

moek_quantize_fn moek_quantize_any_any__ref_fma, moek_quantize_any_any__avx2;

void moek_quantize_any_any__avx2(const moek_quantize_args *args, int32_t b, int64_t r0, int64_t r1)
{
    if (!is_fixed(args)) {
        moek_quantize_any_any__ref_fma(args, b, r0, r1);
        return;
    }
    const int64_t end = moei_i64_min(r1, moei_quantize_count(args, b));
    const bool int16 = args->quant.elem == MOE_I16;
    for (int64_t r = r0; r < end; r++) {
        const uint8_t *x = args->x + b * args->x_batch_stride + r * args->x_row_stride;
        uint8_t *q = args->q + b * args->q_batch_stride + r * args->q_row_stride;
        uint8_t *scales = moei_quantize_scale_at(args, b, r, 0);
#define ROW(dtype)                                                                                 \
    case dtype:                                                                                    \
        if (int16) {                                                                               \
            quantize_row((form){dtype, true, 1}, args, x, q, scales);                              \
        } else if (args->quant.group == BLOCK) {                                                   \
            quantize_row((form){dtype, false, 1}, args, x, q, scales);                             \
        } else {                                                                                   \
            quantize_row((form){dtype, false, BLOCKS}, args, x, q, scales);                        \
        }                                                                                          \
        break;
        switch (args->x_dtype) {
            ROW(MOE_F32)
            ROW(MOE_BF16)
            ROW(MOE_F16)
        default:
            break; // not a float: refused before
        }
#undef ROW
    }
}
