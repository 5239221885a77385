// SPDX-License-Identifier: Apache-2.0
// Loads and stores of elements on the device, at any address: a codec's header in numerics/ ends in
// its rows MOE_ELEMENT(dtype, name, bits: 4 6 8 16, decode to f32), and nothing else lists it.
#ifndef MOEI_GPU_ELEMENTS_CUH
#define MOEI_GPU_ELEMENTS_CUH

#include "backends/gpu/dev.h"
#include "moe/types.h"
#include "quant/elements.h" // moei_canonical_nan, moei_round_to, and every header of numerics/

struct alignas(8) moei_gpu_words2 {
    uint32_t w[2];
};

struct alignas(16) moei_gpu_words4 {
    uint32_t w[4];
};

DEV_FN bool moei_gpu_is_aligned(const void *p, uint32_t bytes)
{
    return ((uintptr_t)p & (bytes - 1u)) == 0;
}

// ------------------------------------------------------------------------------------ one element

DEV_FN uint32_t moei_gpu_read_u16(const uint8_t *p)
{
    return moei_gpu_is_aligned(p, 2) ? *(const uint16_t *)(const void *)p
                                     : p[0] | (uint32_t)p[1] << 8;
}

DEV_FN uint32_t moei_gpu_read_u32(const uint8_t *p)
{
    return moei_gpu_is_aligned(p, 4) ? *(const uint32_t *)(const void *)p
                                     : moei_gpu_read_u16(p) | moei_gpu_read_u16(p + 2) << 16;
}

DEV_FN void moei_gpu_write_u16(uint8_t *p, uint32_t v)
{
    if (moei_gpu_is_aligned(p, 2)) {
        *(uint16_t *)(void *)p = (uint16_t)v;
    } else {
        p[0] = (uint8_t)v;
        p[1] = (uint8_t)(v >> 8);
    }
}

DEV_FN void moei_gpu_write_u32(uint8_t *p, uint32_t v)
{
    if (moei_gpu_is_aligned(p, 4)) {
        *(uint32_t *)(void *)p = v;
    } else {
        moei_gpu_write_u16(p, v);
        moei_gpu_write_u16(p + 2, v >> 16);
    }
}

/// Element i of a packed row of f32, bf16 or f16.
DEV_FN float moei_gpu_load_float(moe_dtype dtype, const void *row, int64_t i)
{
    const uint8_t *p = (const uint8_t *)row;
    if (dtype == MOE_F32) {
        return moei_f32_from_bits(moei_gpu_read_u32(p + 4 * i));
    }
    const uint16_t bits = (uint16_t)moei_gpu_read_u16(p + 2 * i);
    return dtype == MOE_BF16 ? moei_bf16_to_f32(bits) : moei_f16_to_f32(bits);
}

/// Element i of a packed row of any type, as moei_load_f32 gives it: integer codes as they are.
DEV_FN float moei_gpu_load(moe_dtype dtype, const void *row, int64_t i)
{
    const uint8_t *p = (const uint8_t *)row;
#define LOAD_16(convert) convert((uint16_t)moei_gpu_read_u16(p + 2 * i))
#define LOAD_8(convert)  convert(p[i])
#define LOAD_6(convert)  convert(moei_get_u6(p, (size_t)i))
#define LOAD_4(convert)  convert(moei_get_u4(p, (size_t)i))
    switch (dtype) {
    case MOE_F32:
        return moei_f32_from_bits(moei_gpu_read_u32(p + 4 * i));
    case MOE_I8:
        return LOAD_8((float)(int8_t));
    case MOE_U8:
        return LOAD_8((float));
    case MOE_I16:
        return LOAD_16((float)(int16_t));
#define MOE_ELEMENT(dtype, name, bits, convert)                                                    \
    case dtype:                                                                                    \
        return LOAD_##bits(convert);
#include "numerics/elements.inc"
#undef MOE_ELEMENT
    default:
        return moei_f32_from_bits(MOEI_NAN_BITS); // callers have checked the dtype
    }
#undef LOAD_16
#undef LOAD_8
#undef LOAD_6
#undef LOAD_4
}

/// The 16 bits of a result rounded to bf16 or f16, as moei_store_f32 stores it.
DEV_FN uint32_t moei_gpu_round_16(moe_dtype dtype, float value)
{
    const float v = moei_canonical_nan(value);
    return dtype == MOE_BF16 ? moei_f32_to_bf16(v) : moei_f32_to_f16(v);
}

/// Rounds a result to f32, bf16 or f16 (nearest even, NaN canonical) as element i of a packed row.
DEV_FN void moei_gpu_store(moe_dtype dtype, void *row, int64_t i, float value)
{
    uint8_t *p = (uint8_t *)row;
    if (dtype == MOE_F32) {
        moei_gpu_write_u32(p + 4 * i, moei_f32_bits(moei_canonical_nan(value)));
    } else {
        moei_gpu_write_u16(p + 2 * i, moei_gpu_round_16(dtype, value));
    }
}

// ----------------------------------------------------------------------- pieces of 4, 8 or 16

/// Bytes of an element of f32, bf16 or f16.
DEV_FN int64_t moei_gpu_float_bytes(moe_dtype dtype)
{
    return dtype == MOE_F32 ? 4 : 2;
}

/// True where moei_gpu_fetch may read N elements at p.
template <int N> DEV_FN bool moei_gpu_is_wide(moe_dtype dtype, const void *p)
{
    return moei_gpu_is_aligned(p, dtype == MOE_F32 || N >= 8 ? 16 : 8);
}

/// The bits of N elements of f32, bf16 or f16; those of 16 bits lie in the first half.
template <int N> struct moei_gpu_bits {
    uint32_t w[N];
};

/// Reads N elements. Kept apart from the conversion, so that several reads can be under way.
template <int N> DEV_FN void moei_gpu_fetch(moe_dtype dtype, const void *p, moei_gpu_bits<N> *out)
{
    if (dtype == MOE_F32 || N >= 8) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N / 4; i++) {
            if (i < N / 8 || dtype == MOE_F32) {
                const moei_gpu_words4 q = ((const moei_gpu_words4 *)p)[i];
                MOEI_GPU_UNROLL
                for (int j = 0; j < 4; j++) {
                    out->w[4 * i + j] = q.w[j];
                }
            }
        }
    } else {
        const moei_gpu_words2 q = *(const moei_gpu_words2 *)p;
        out->w[0] = q.w[0];
        out->w[1] = q.w[1];
    }
}

template <int N> DEV_FN void moei_gpu_decode(moe_dtype dtype, const moei_gpu_bits<N> *in, float *v)
{
#define HALF(i) ((uint16_t)(in->w[(i) / 2] >> (16 * ((i) % 2))))
    if (dtype == MOE_BF16) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            v[i] = moei_bf16_to_f32(HALF(i));
        }
    } else if (dtype == MOE_F32) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            v[i] = moei_f32_from_bits(in->w[i]);
        }
    } else {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            v[i] = moei_f16_to_f32(HALF(i));
        }
    }
#undef HALF
}

/// v[i] = element i of f32, bf16 or f16 at p for i < n; 0 for the rest of N.
template <int N> DEV_FN void moei_gpu_load_piece(moe_dtype dtype, const void *p, int n, float *v)
{
    if (n == N && moei_gpu_is_wide<N>(dtype, p)) {
        moei_gpu_bits<N> bits;
        moei_gpu_fetch<N>(dtype, p, &bits);
        moei_gpu_decode<N>(dtype, &bits, v);
        return;
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < N; i++) {
        v[i] = i < n ? moei_gpu_load_float(dtype, p, i) : 0.0f;
    }
}

/// Rounds the first n of N results, as moei_gpu_store does.
template <int N> DEV_FN void moei_gpu_store_piece(moe_dtype dtype, void *p, int n, const float *v)
{
    if (n < N || !moei_gpu_is_wide<N>(dtype, p)) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N; i++) {
            if (i < n) {
                moei_gpu_store(dtype, p, i, v[i]);
            }
        }
    } else if (dtype == MOE_F32) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < N / 4; i++) {
            moei_gpu_words4 q;
            MOEI_GPU_UNROLL
            for (int j = 0; j < 4; j++) {
                q.w[j] = moei_f32_bits(moei_canonical_nan(v[4 * i + j]));
            }
            ((moei_gpu_words4 *)p)[i] = q;
        }
    } else {
        uint32_t w[N / 2];
        MOEI_GPU_UNROLL
        for (int i = 0; i < N / 2; i++) {
            w[i] = moei_gpu_round_16(dtype, v[2 * i]) | moei_gpu_round_16(dtype, v[2 * i + 1])
                                                            << 16;
        }
        if constexpr (N == 4) {
            const moei_gpu_words2 q = {{w[0], w[1]}};
            *(moei_gpu_words2 *)p = q;
        } else {
            MOEI_GPU_UNROLL
            for (int i = 0; i < N / 8; i++) {
                const moei_gpu_words4 q = {{w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]}};
                ((moei_gpu_words4 *)p)[i] = q;
            }
        }
    }
}

#endif
