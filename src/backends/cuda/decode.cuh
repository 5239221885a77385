// SPDX-License-Identifier: Apache-2.0
// Words of packed weights (operand.h) to bf16, exactly: the four registers that a thread holds of
// the M operand of a step. Compiled for the device, and as C for the host, where instructions are
// emulated and tests run the same code.
//
// The limiting resources are issue slots, and integer instructions, which run at half rate. So a
// code's bits are placed, by shifts and masks that serve both halves of a register, as a bf16 that
// is too small by a power of two, and a multiplication makes up for it: bf16's subnormals are what
// e2m1's and e4m3's are, and a bf16 whose upper 8 bits are 0 is its lower 8 bits times 2^-133.
// Scales and zero points come as pairs: the low half for output g (pairs of codes 0 and 2), the
// high half for output g + 8 (pairs 1 and 3). That an instruction takes one half twice is free.
#ifndef MOEI_CUDA_DECODE_CUH
#define MOEI_CUDA_DECODE_CUH

#include "numerics/bf16.h"
#include "numerics/fp8.h"

#if defined(__CUDACC__)
#define DECODE_FN static __device__ __forceinline__
#else
#define DECODE_FN static inline
#endif

// ---- instructions ------------------------------------------------------------------------------

#if !defined(__CUDA_ARCH__)
// The bf16 of half h.
DECODE_FN float decode_half(uint32_t pair, int h)
{
    return moei_bf16_to_f32((uint16_t)(pair >> 16 * h));
}
#endif

/// a * b + c of both halves, rounded once.
DECODE_FN uint32_t decode_fma(uint32_t a, uint32_t b, uint32_t c)
{
#if defined(__CUDA_ARCH__)
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
#else
    // Exact where the result is a bf16, as it is here; else rounded twice.
    uint32_t sum = 0;
    for (int h = 0; h < 2; h++) {
        const float v = moei_fmaf(decode_half(a, h), decode_half(b, h), decode_half(c, h));
        sum |= (uint32_t)moei_f32_to_bf16(v) << 16 * h;
    }
    return sum;
#endif
}

DECODE_FN uint32_t decode_multiply(uint32_t a, uint32_t b)
{
#if defined(__CUDA_ARCH__)
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
#else
    return decode_fma(a, b, 0x80008000u);
#endif
}

/// One half of a pair twice.
DECODE_FN uint32_t decode_low(uint32_t pair)
{
#if defined(__CUDA_ARCH__)
    uint32_t both;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {l, l};}" : "=r"(both) : "r"(pair));
    return both;
#else
    return (pair & 0xFFFFu) * 0x10001u;
#endif
}

DECODE_FN uint32_t decode_high(uint32_t pair)
{
#if defined(__CUDA_ARCH__)
    uint32_t both;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {h, h};}" : "=r"(both) : "r"(pair));
    return both;
#else
    return (pair >> 16) * 0x10001u;
#endif
}

/// Bytes of the eight of (b, a) that the nibbles of `select` name; with bit 3 the byte's sign,
/// eight times.
DECODE_FN uint32_t decode_bytes(uint32_t a, uint32_t b, uint32_t select)
{
#if defined(__CUDA_ARCH__)
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(select));
    return bytes;
#else
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t which = select >> 4 * i & 15;
        const uint32_t byte = ((which & 4) != 0 ? b : a) >> 8 * (which & 3) & 0xFF;
        bytes |= ((which & 8) == 0 ? byte : (byte & 0x80) != 0 ? 0xFFu : 0u) << 8 * i;
    }
    return bytes;
#endif
}

DECODE_FN uint32_t decode_rotate(uint32_t w, int left)
{
#if defined(__CUDA_ARCH__)
    return __funnelshift_l(w, w, left);
#else
    return w << left | w >> (32 - left);
#endif
}

/// Bits of `a` where `mask` has ones, else of `b`. One instruction: a compiler that knows which
/// bits are used later makes two of it.
DECODE_FN uint32_t decode_select(uint32_t a, uint32_t b, uint32_t mask)
{
#if defined(__CUDA_ARCH__)
    uint32_t bits;
    asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(bits) : "r"(a), "r"(b), "r"(mask));
    return bits;
#else
    return (a & mask) | (b & ~mask);
#endif
}

/// a * b + c. One instruction: a compiler that sees the numbers takes them apart.
DECODE_FN uint32_t decode_mad(uint32_t a, uint32_t b, uint32_t c)
{
#if defined(__CUDA_ARCH__)
    uint32_t sum;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
#else
    return a * b + c;
#endif
}

// ---- MXFP4 and NVFP4 ---------------------------------------------------------------------------

// Codes of a word as bf16 that are 2^126 too small. In the rotated word, the bits of pair 3 are
// fraction, upper and lower exponent, sign at 4, 1, 0, 3; the factor has a copy of them for each of
// the three ways that they go, and no two copies meet.
DECODE_FN void decode_e2m1_place(uint32_t word, uint32_t a[4])
{
    const uint32_t mask = 0x81C081C0u;
    const uint32_t turned = decode_rotate(word, 6);
    a[0] = word & mask;
    a[1] = word << 3 & mask;
    a[2] = turned & mask;
    a[3] = decode_mad(turned & 0x001B001Bu, 0x1084u, 0) & mask;
}

/// Codes times 2^-126 times a pair of factors.
DECODE_FN void decode_e2m1(uint32_t word, uint32_t factors, uint32_t a[4])
{
    decode_e2m1_place(word, a);
    for (int p = 0; p < 4; p++) {
        a[p] = decode_multiply(a[p], p % 2 == 0 ? decode_low(factors) : decode_high(factors));
    }
}

/// Codes times a pair of scales, where those times 2^126 need not be a bf16.
DECODE_FN void decode_e2m1_twice(uint32_t word, uint32_t scales, uint32_t a[4])
{
    decode_e2m1_place(word, a);
    for (int p = 0; p < 4; p++) {
        a[p] = decode_multiply(decode_multiply(a[p], 0x7E807E80u),
                               p % 2 == 0 ? decode_low(scales) : decode_high(scales));
    }
}

/// Scales of a block of MXFP4: pairs for its first and its second 32 k.
DECODE_FN void decode_mxfp4_scales(uint32_t bytes, uint32_t scales[2])
{
    scales[0] = (bytes & 0x00FF00FFu) << 7; // the code is the exponent field
    scales[1] = (bytes >> 8 & 0x00FF00FFu) << 7;
}

/// The same times 2^126, for codes up to 128: factors of decode_e2m1.
DECODE_FN void decode_mxfp4_factors(uint32_t bytes, uint32_t factors[2])
{
    factors[0] = decode_mad(bytes & 0x00FF00FFu, 0x80u, 0x3F003F00u);
    factors[1] = decode_mad(decode_bytes(bytes, 0, 0x4341u), 0x80u, 0x3F003F00u);
}

/// Scales of a block of NVFP4, for the outputs g and g + 8: factors of decode_e2m1, a pair for each
/// step. Products are 2^8 too small: a scale of 448 times 2^126 is no bf16.
DECODE_FN void decode_nvfp4_factors(uint32_t low, uint32_t high, uint32_t factors[4])
{
    for (int j = 0; j < 4; j++) {
        const uint32_t bytes = decode_bytes(low, high, 0xC480u + 0x1111u * (uint32_t)j);
        const uint32_t placed = bytes << 4 & 0x87F087F0u; // 2^120 too small
        factors[j] = decode_multiply(decode_multiply(placed, 0x7B807B80u), 0x7A807A80u);
    }
}

// ---- integers ----------------------------------------------------------------------------------

/// The pair of addends of the zero points of outputs g and g + 8: each times -1/64.
DECODE_FN uint32_t decode_zeros(uint32_t low, uint32_t high)
{
    return decode_multiply(high << 16 | low, 0xFF00FF00u);
}

/// (code - zero point) / 64, codes of 4 bits.
DECODE_FN void decode_u4(uint32_t word, uint32_t zeros, uint32_t a[4])
{
    const uint32_t low = decode_low(zeros);
    const uint32_t high = decode_high(zeros);
    const uint32_t upper = word >> 8;
    a[0] = decode_fma(word & 0x00F000F0u, 0x7D007D00u, low);
    a[1] = decode_fma(word & 0x000F000Fu, 0x7F007F00u, high);
    a[2] = decode_fma(upper & 0x00F000F0u, 0x7D007D00u, low);
    a[3] = decode_fma(upper & 0x000F000Fu, 0x7F007F00u, high);
}

/// (code - zero point) / 64, codes of 8 bits.
DECODE_FN void decode_u8(uint32_t first, uint32_t second, uint32_t zeros, uint32_t a[4])
{
    const uint32_t low = decode_low(zeros);
    const uint32_t high = decode_high(zeros);
    a[0] = decode_fma(decode_bytes(first, 0, 0x4140u), 0x7F007F00u, low);
    a[1] = decode_fma(decode_bytes(first, 0, 0x4342u), 0x7F007F00u, high);
    a[2] = decode_fma(decode_bytes(second, 0, 0x4140u), 0x7F007F00u, low);
    a[3] = decode_fma(decode_bytes(second, 0, 0x4342u), 0x7F007F00u, high);
}

// ---- E4M3 --------------------------------------------------------------------------------------

// Codes as bf16 that are 2^120 too small.
DECODE_FN void decode_e4m3_place(uint32_t first, uint32_t second, uint32_t a[4])
{
    const uint32_t mask = 0x87F087F0u;
    const uint32_t from2 = 0x00070007u; // bits of pairs 2 and 3 that the first word has
    const uint32_t from3 = 0x78087808u;
    a[0] = first & mask;
    a[1] = second << 4 & mask;
    a[2] = decode_rotate(decode_select(first, second, from2), 8) & mask;
    a[3] = decode_rotate(decode_select(first, second, from3), 12) & mask;
}

/// Codes that are not NaN.
DECODE_FN void decode_e4m3(uint32_t first, uint32_t second, uint32_t a[4])
{
    decode_e4m3_place(first, second, a);
    for (int p = 0; p < 4; p++) {
        a[p] = decode_multiply(a[p], 0x7B807B80u);
    }
}

/// Any codes.
DECODE_FN void decode_e4m3_nan(uint32_t first, uint32_t second, uint32_t a[4])
{
    decode_e4m3_place(first, second, a);
    for (int p = 0; p < 4; p++) {
        // A carry out of the magnitude: all of it was ones.
        const uint32_t nan = ((a[p] & 0x07F007F0u) + 0x00100010u) >> 11 & 0x00010001u;
        a[p] = decode_multiply(a[p], 0x7B807B80u) | nan * 0x7FC0u;
    }
}

// ---- x -----------------------------------------------------------------------------------------

/// Two f32 that are bf16 as a pair.
DECODE_FN uint32_t decode_pair(float low, float high)
{
#if defined(__CUDA_ARCH__)
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return (uint32_t)moei_f32_to_bf16(high) << 16 | moei_f32_to_bf16(low);
#endif
}

/// Four e4m3 codes, in the order in which they lie in memory; NaN stays NaN. Nine instructions.
DECODE_FN void decode_codes(uint32_t word, uint32_t pairs[2])
{
    for (int p = 0; p < 2; p++) {
        float low;
        float high;
#if defined(__CUDA_ARCH__)
        asm("{.reg .b16 l, h;\n"
            ".reg .b32 halves;\n"
            "cvt.rn.f16x2.e4m3x2 halves, %2;\n"
            "mov.b32 {l, h}, halves;\n"
            "cvt.f32.f16 %0, l;\n"
            "cvt.f32.f16 %1, h;}"
            : "=f"(low), "=f"(high)
            : "h"((uint16_t)(word >> 16 * p)));
#else
        low = moei_e4m3fn_to_f32((uint8_t)(word >> 16 * p));
        high = moei_e4m3fn_to_f32((uint8_t)(word >> (16 * p + 8)));
#endif
        pairs[p] = decode_pair(low, high);
    }
}

#endif
