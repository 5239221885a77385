// SPDX-License-Identifier: Apache-2.0
// Spans of elements of any type, to f32 and back. A codec's header in numerics/ ends in its rows
// MOE_ELEMENT(dtype, name, bits: 4 6 8 16, decode to f32); nothing else lists it.
// Static inline, so that each kernel file compiles it with its own instruction set.
#ifndef MOEI_QUANT_ELEMENTS_H
#define MOEI_QUANT_ELEMENTS_H

#include <string.h>

#include "moe/types.h"
#include "numerics/elements.inc" // every header of numerics/; the build lists them
#include "numerics/fp6.h"
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
#define LOAD_6(convert)                                                                            \
    for (int64_t i = 0; i < n; i++) {                                                              \
        out[i] = convert(moei_get_u6(row, (size_t)(i0 + i)));                                      \
    }
// 4-bit codes: one look-up each, two codes a byte.
#define LOAD_4(convert)                                                                            \
    float table[16];                                                                               \
    int64_t i = 0;                                                                                 \
    for (uint8_t code = 0; code < 16; code++) {                                                    \
        table[code] = convert(code);                                                               \
    }                                                                                              \
    if ((i0 & 1) != 0 && n > 0) {                                                                  \
        out[i++] = table[row[i0 >> 1] >> 4];                                                       \
    }                                                                                              \
    for (; i + 1 < n; i += 2) {                                                                    \
        const uint8_t byte = row[(i0 + i) >> 1];                                                   \
        out[i] = table[byte & 15];                                                                 \
        out[i + 1] = table[byte >> 4];                                                             \
    }                                                                                              \
    if (i < n) {                                                                                   \
        out[i] = table[row[(i0 + i) >> 1] & 15];                                                   \
    }
    switch (dtype) {
    case MOE_F32:
        memcpy(out, row + 4 * i0, (size_t)n * sizeof *out);
        break;
    case MOE_I8:
        LOAD_8((float)(int8_t))
        break;
    case MOE_U8:
        LOAD_8((float))
        break;
    case MOE_I16:
        LOAD_16((float)(int16_t))
        break;
#define MOE_ELEMENT(dtype, name, bits, convert)                                                    \
    case dtype: {                                                                                  \
        LOAD_##bits(convert) break;                                                                \
    }
#include "numerics/elements.inc"
#undef MOE_ELEMENT
    default:
        memset(out, 0xFF, (size_t)n * sizeof *out); // NaN: callers have checked the dtype
        break;
    }
#undef LOAD_16
#undef LOAD_8
#undef LOAD_6
#undef LOAD_4
}

/// A NaN that an op computes is the quiet, positive one without payload: which operand's NaN an
/// instruction keeps is no property of the arithmetic.
MOE_HD float moei_canonical_nan(float value)
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
MOE_HD float moei_round_to(moe_dtype dtype, float value)
{
    return dtype == MOE_BF16  ? moei_bf16_to_f32(moei_f32_to_bf16(value))
           : dtype == MOE_F16 ? moei_f16_to_f32(moei_f32_to_f16(value))
                              : value;
}

#endif
