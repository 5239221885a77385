// SPDX-License-Identifier: Apache-2.0
// Canonical weights as floats [k][output], where no instruction set has a better way.
#ifndef MOEI_BACKENDS_CPU_CANONICAL_H
#define MOEI_BACKENDS_CPU_CANONICAL_H

#include "backends/cpu/product.h"

/// Weights whose rows of n lie packed (transposed) need not be turned. out: k0 .. k0 + count - 1
/// of `outputs` outputs from n0 on.
static inline void moei_cpu_load_transposed(const moei_matrices *m, int32_t e, int64_t n0,
                                            int64_t outputs, int64_t k0, int64_t count,
                                            float (*out)[MOEI_CPU_MAX_COLUMNS])
{
    const uint8_t *base = m->values + (int64_t)e * m->value_e_stride;
    for (int64_t k = 0; k < count; k++) {
        moei_load_f32(m->format->elem, base + (k0 + k) * m->value_k_stride, n0, outputs, out[k]);
    }
}

/// Codes less their zero points, of which `block` k (a divisor of k0) have the same.
static inline void moei_cpu_subtract_zeros(const moei_matrices *m, int32_t e, int64_t n0,
                                           int64_t outputs, int64_t k0, int64_t count,
                                           int64_t block, float (*codes)[MOEI_CPU_MAX_COLUMNS])
{
    for (int64_t k = 0; k < count; k += block) {
        float zero[MOEI_CPU_MAX_COLUMNS];
        for (int64_t n = 0; n < outputs; n++) {
            zero[n] = moei_cpu_zero_point(m, e, n0 + n, k0 + k);
        }
        for (int64_t kk = k; kk < moei_i64_min(k + block, count); kk++) {
            for (int64_t n = 0; n < outputs; n++) {
                codes[kk][n] -= zero[n];
            }
        }
    }
}

#endif
