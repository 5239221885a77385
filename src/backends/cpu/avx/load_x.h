// SPDX-License-Identifier: Apache-2.0
// Elements of a row of x as floats.
#ifndef MOEI_BACKENDS_CPU_AVX_LOAD_X_H
#define MOEI_BACKENDS_CPU_AVX_LOAD_X_H

#include "backends/cpu/avx/vector.h"
#include "backends/cpu/unroll.h"
#include "quant/elements.h"

#define LOAD_AT_ONCE 4 // vectors

__attribute__((always_inline)) static inline void load_half(bool bf16, const uint8_t *from,
                                                            float *out)
{
    const halfi half = halfi_load(from);
    const veci word = V(slli_epi32)(V(cvtepu16_epi32)(half), 16);
    V(storeu_ps)(out, bf16 ? as_floats(word) : V(cvtph_ps)(half));
}

// Whole vectors of 16-bit floats. Returns the elements.
__attribute__((always_inline)) static inline int64_t load_halves(bool bf16, const uint8_t *from,
                                                                 int64_t count, float *out)
{
    int64_t k = 0;
    for (; k + LOAD_AT_ONCE * LANES <= count; k += LOAD_AT_ONCE * LANES) {
        UNROLL
        for (int64_t v = 0; v < LOAD_AT_ONCE; v++) {
            load_half(bf16, from + 2 * (k + v * LANES), out + k + v * LANES);
        }
    }
    for (; k + LANES <= count; k += LANES) {
        load_half(bf16, from + 2 * k, out + k);
    }
    return k;
}

/// Elements k0 .. k0 + count - 1.
static inline void load_x(moe_dtype dtype, const uint8_t *row, int64_t k0, int64_t count,
                          float *out)
{
    int64_t k = 0;
    if (dtype == MOE_BF16) {
        k = load_halves(true, row + 2 * k0, count, out);
    } else if (dtype == MOE_F16) {
        k = load_halves(false, row + 2 * k0, count, out);
    }
    if (k < count) {
        moei_load_f32(dtype, row, k0 + k, count - k, out + k);
    }
}

#endif
