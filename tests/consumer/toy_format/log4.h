// SPDX-License-Identifier: Apache-2.0
// LOG4, a 4-bit element of powers of two: the example of docs/howto-format.md.
//
//   bit 3 | 2 ... 0
//    sign | e           0 for e = 0, else 2^(e - 4): 0, 0.125, 0.25, 0.5, 1, 2, 4, 8
//
// No infinity, no NaN; code 8 is -0.
#ifndef MOEI_NUMERICS_LOG4_H
#define MOEI_NUMERICS_LOG4_H

#include "numerics/hd.h"

/// Its moe_dtype: the next number that types.h leaves free.
#define MOEI_LOG4 24

/// Exact. The upper nibble is ignored.
MOE_HD float moei_log4_to_f32(uint8_t c)
{
    const uint32_t e = (uint32_t)c & 7u;
    const uint32_t magnitude = moei_select(e != 0u, (e + 123u) << 23, 0u);
    return moei_f32_from_bits((((uint32_t)c & 8u) << 28) | magnitude);
}

#endif

#ifdef MOE_ELEMENT // rows for quant/elements.h and core/tensor.c
MOE_ELEMENT(MOEI_LOG4, log4, 4, moei_log4_to_f32)
#endif
