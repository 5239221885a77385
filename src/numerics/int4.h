// SPDX-License-Identifier: Apache-2.0
// 4-bit integers, and the packing of 4-bit codes of any kind.
//
//   int4     two's complement, -8 ... 7
//   uint4b8  offset binary: value = code - 8, -8 ... 7 (the common zero point of int4 checkpoints)
//
// A code lies in the low nibble of a byte; the functions ignore the upper one and return it as
// zero. Packed: two codes in a byte, the even element in the low nibble.
#ifndef MOEI_NUMERICS_INT4_H
#define MOEI_NUMERICS_INT4_H

#include "numerics/hd.h"

/// Code i of a packed array.
MOE_HD uint8_t moei_get_u4(const uint8_t *p, size_t i)
{
    return (uint8_t)(((unsigned)p[i / 2] >> (i % 2 * 4)) & 0xFu);
}

/// Sets code i of a packed array to the low nibble of `code`; its neighbour keeps its bits.
MOE_HD void moei_set_u4(uint8_t *p, size_t i, uint8_t code)
{
    unsigned shift = (unsigned)(i % 2) * 4u;
    unsigned kept = (unsigned)p[i / 2] & ~(0xFu << shift);
    p[i / 2] = (uint8_t)(kept | (((unsigned)code & 0xFu) << shift));
}

/// Value of a two's complement nibble.
MOE_HD int32_t moei_int4_to_i32(uint8_t c)
{
    return (int32_t)(((uint32_t)c & 0xFu) ^ 8u) - 8;
}

/// Two's complement nibble of v, saturating to -8 ... 7.
MOE_HD uint8_t moei_i32_to_int4(int32_t v)
{
    int32_t s = v < -8 ? -8 : (v > 7 ? 7 : v);
    return (uint8_t)((uint32_t)s & 0xFu);
}

/// Value of an offset binary nibble.
MOE_HD int32_t moei_uint4b8_to_i32(uint8_t c)
{
    return (int32_t)((uint32_t)c & 0xFu) - 8;
}

/// Offset binary nibble of v, saturating to -8 ... 7.
MOE_HD uint8_t moei_i32_to_uint4b8(int32_t v)
{
    int32_t s = v < -8 ? -8 : (v > 7 ? 7 : v);
    return (uint8_t)(s + 8);
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOE_INT4, int4, 4, (float)moei_int4_to_i32)
MOE_ELEMENT(MOE_UINT4, uint4, 4, (float))
#endif
