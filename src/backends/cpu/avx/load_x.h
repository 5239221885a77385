// SPDX-License-Identifier: Apache-2.0
// Elements of a row of x as floats.
#ifndef MOEI_BACKENDS_CPU_AVX_LOAD_X_H
#define MOEI_BACKENDS_CPU_AVX_LOAD_X_H

#include "backends/cpu/avx/vector.h"
#include "quant/elements.h"

/// Elements k0 .. k0 + count - 1.
static inline void load_x(moe_dtype dtype, const uint8_t *row, int64_t k0, int64_t count,
                          float *out)
{
    int64_t k = 0;
    if (dtype == MOE_BF16 || dtype == MOE_F16) {
        for (; k + LANES <= count; k += LANES) {
            const halfi half = halfi_load(row + 2 * (k0 + k));
            const veci word = V(slli_epi32)(V(cvtepu16_epi32)(half), 16);
            V(storeu_ps)(out + k, dtype == MOE_BF16 ? as_floats(word) : V(cvtph_ps)(half));
        }
    }
    moei_load_f32(dtype, row, k0 + k, count - k, out + k);
}

#endif
