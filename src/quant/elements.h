// SPDX-License-Identifier: Apache-2.0
// Spans of elements of any type, to f32 and back; the one place that maps a dtype to its codec.
// Static inline, so that each kernel file compiles it with its own instruction set.
#ifndef MOEI_QUANT_ELEMENTS_H
#define MOEI_QUANT_ELEMENTS_H

#include <string.h>

#include "moe/types.h"
#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "numerics/int4.h"

/// Bytes of n packed elements.
static inline int64_t moei_elem_bytes(moe_dtype dtype, int64_t n)
{
    return (n * moe_dtype_bits(dtype) + 7) / 8;
}

/// out[i] = value of element i0 + i of a packed row, i in [0, n). Integer codes are taken as they
/// are (uint4 0..15, uint8 0..255).
static inline void moei_load_f32(moe_dtype dtype, const uint8_t *row, int64_t i0, int64_t n,
                                 float *out)
{
#define LOAD_16(convert)                                                                           \
    for (int64_t i = 0; i < n; i++) {                                                              \
        uint16_t bits;                                                                             \
        memcpy(&bits, row + 2 * (i0 + i), sizeof bits);                                            \
        out[i] = convert(bits);                                                                    \
    }
#define LOAD_8(convert)                                                                            \
    for (int64_t i = 0; i < n; i++) {                                                              \
        out[i] = convert(row[i0 + i]);                                                             \
    }
// 4-bit codes: one look-up each, two codes a byte.
#define LOAD_U4(table)                                                                             \
    int64_t i = 0;                                                                                 \
    if ((i0 & 1) != 0 && n > 0) {                                                                  \
        out[i++] = (table)[row[i0 >> 1] >> 4];                                                     \
    }                                                                                              \
    for (; i + 1 < n; i += 2) {                                                                    \
        const uint8_t byte = row[(i0 + i) >> 1];                                                   \
        out[i] = (table)[byte & 15];                                                               \
        out[i + 1] = (table)[byte >> 4];                                                           \
    }                                                                                              \
    if (i < n) {                                                                                   \
        out[i] = (table)[row[(i0 + i) >> 1] & 15];                                                 \
    }
#define LOAD_PACKED(get, convert)                                                                  \
    for (int64_t i = 0; i < n; i++) {                                                              \
        out[i] = convert(get(row, (size_t)(i0 + i)));                                              \
    }
    static const float e2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    switch (dtype) {
    case MOE_F32:
        memcpy(out, row + 4 * i0, (size_t)n * sizeof *out);
        break;
    case MOE_BF16:
        LOAD_16(moei_bf16_to_f32)
        break;
    case MOE_F16:
        LOAD_16(moei_f16_to_f32)
        break;
    case MOE_E4M3FN:
        LOAD_8(moei_e4m3fn_to_f32)
        break;
    case MOE_E4M3FNUZ:
        LOAD_8(moei_e4m3fnuz_to_f32)
        break;
    case MOE_E5M2:
        LOAD_8(moei_e5m2_to_f32)
        break;
    case MOE_E5M2FNUZ:
        LOAD_8(moei_e5m2fnuz_to_f32)
        break;
    case MOE_E8M0:
        LOAD_8(moei_e8m0_to_f32)
        break;
    case MOE_I8:
        LOAD_8((float)(int8_t))
        break;
    case MOE_U8:
        LOAD_8((float))
        break;
    case MOE_E2M1: {
        LOAD_U4(e2m1)
        break;
    }
    case MOE_E2M3:
        LOAD_PACKED(moei_get_u6, moei_e2m3_to_f32)
        break;
    case MOE_E3M2:
        LOAD_PACKED(moei_get_u6, moei_e3m2_to_f32)
        break;
    case MOE_UINT4:
        LOAD_PACKED(moei_get_u4, (float))
        break;
    case MOE_INT4:
        LOAD_PACKED(moei_get_u4, (float)moei_int4_to_i32)
        break;
    case MOE_I16:
        LOAD_16((float)(int16_t))
        break;
    default:
        memset(out, 0xFF, (size_t)n * sizeof *out); // NaN: callers have checked the dtype
        break;
    }
#undef LOAD_16
#undef LOAD_8
#undef LOAD_U4
#undef LOAD_PACKED
}

/// A NaN that an op computes is the quiet, positive one without payload: which operand's NaN an
/// instruction keeps is no property of the arithmetic.
static inline float moei_canonical_nan(float value)
{
    return value == value ? value : moei_f32_from_bits(0x7FC00000u);
}

/// Rounds n results to f32, bf16 or f16 (nearest even, NaN canonical) at byte address `row`.
static inline void moei_store_f32(moe_dtype dtype, uint8_t *row, int64_t n, const float *in)
{
#define STORE(type, convert)                                                                       \
    for (int64_t i = 0; i < n; i++) {                                                              \
        const type bits = convert(moei_canonical_nan(in[i]));                                      \
        memcpy(row + (int64_t)sizeof bits * i, &bits, sizeof bits);                                \
    }
    if (dtype == MOE_F32) {
        STORE(float, )
    } else if (dtype == MOE_BF16) {
        STORE(uint16_t, moei_f32_to_bf16)
    } else {
        STORE(uint16_t, moei_f32_to_f16)
    }
#undef STORE
}

/// One element of a whole-byte or packed type.
static inline float moei_load_one(moe_dtype dtype, const void *base, int64_t i)
{
    float value;
    moei_load_f32(dtype, (const uint8_t *)base, i, 1, &value);
    return value;
}

/// Rounds a value to a float type and back: what a store followed by a load gives.
static inline float moei_round_to(moe_dtype dtype, float value)
{
    return dtype == MOE_BF16  ? moei_bf16_to_f32(moei_f32_to_bf16(value))
           : dtype == MOE_F16 ? moei_f16_to_f32(moei_f32_to_f16(value))
                              : value;
}

#endif
