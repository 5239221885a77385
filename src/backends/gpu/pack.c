// SPDX-License-Identifier: Apache-2.0
#include "backends/gpu/pack.h"

#include <string.h>

#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "ops/ggemm_at.h"

// Bits of a scale as f32, and back; both without loss.
static uint32_t scale_bits(const moei_matrices *m, int64_t i)
{
    const uint8_t *p = m->scales;
    uint16_t half;
    uint32_t word;
    switch (m->scale_dtype) {
    case MOE_BF16:
        memcpy(&half, p + 2 * i, sizeof half);
        return (uint32_t)half << 16;
    case MOE_F16:
        memcpy(&half, p + 2 * i, sizeof half);
        return moei_f32_bits(moei_f16_to_f32(half));
    case MOE_E8M0:
        return moei_f32_bits(moei_e8m0_to_f32(p[i]));
    default:
        memcpy(&word, p + 4 * i, sizeof word);
        return word;
    }
}

static void set_scale_bits(const moei_matrices *m, int64_t i, uint32_t bits)
{
    uint8_t *p = (uint8_t *)(uintptr_t)m->scales;
    const float value = moei_f32_from_bits(bits);
    uint16_t half = (uint16_t)(bits >> 16);
    switch (m->scale_dtype) {
    case MOE_F16:
        half = moei_f32_to_f16(value);
        memcpy(p + 2 * i, &half, sizeof half);
        break;
    case MOE_BF16:
        memcpy(p + 2 * i, &half, sizeof half);
        break;
    case MOE_E8M0:
        p[i] = moei_f32_exponent_byte(value);
        break;
    default:
        memcpy(p + 4 * i, &bits, sizeof bits);
        break;
    }
}

void moei_gpu_pack_apart(const moei_matrices *from, moei_gpu_output_fn *output, int64_t outputs,
                         int64_t groups, uint8_t *scales, uint8_t *zeros)
{
    for (int64_t r = 0; r < outputs; r++) {
        const int64_t n = output(from, r);
        const int64_t first = n >= 0 ? moei_w_scale_at(from, 0, n, 0) : 0;
        for (int64_t g = 0; g < groups; g++) {
            const uint32_t bits = n >= 0 ? scale_bits(from, first + g * from->scale_k_stride) : 0;
            memcpy(scales + 4 * (g * outputs + r), &bits, sizeof bits);
            if (zeros != NULL) {
                zeros[g * outputs + r] = n >= 0 ? moei_zero_point(from, 0, n, g) : 0;
            }
        }
    }
}

static void set_zero_point(const moei_matrices *m, int64_t n, int64_t group, uint8_t zero)
{
    uint8_t *zeros = (uint8_t *)(uintptr_t)m->zeros;
    switch (m->zero_form) {
    case MOEI_ZERO_PAIRS: {
        uint8_t *byte = zeros + n / 2 * m->zero_n_stride + group;
        *byte = (uint8_t)(n % 2 == 0 ? (*byte & 0xF0) | (zero & 15) : (*byte & 15) | zero << 4);
        break;
    }
    case MOEI_ZERO_NIBBLES:
        moei_set_u4(zeros + n * m->zero_n_stride, (size_t)group, zero);
        break;
    default:
        zeros[n * m->zero_n_stride + group] = zero;
        break;
    }
}

void moei_gpu_unpack_apart(const uint8_t *scales, const uint8_t *zeros, moei_gpu_output_fn *output,
                           int64_t outputs, int64_t groups, const moei_matrices *to)
{
    for (int64_t r = 0; r < outputs; r++) {
        const int64_t n = output(to, r);
        const int64_t first = n >= 0 ? moei_w_scale_at(to, 0, n, 0) : 0;
        for (int64_t g = 0; n >= 0 && g < groups; g++) {
            uint32_t bits;
            memcpy(&bits, scales + 4 * (g * outputs + r), sizeof bits);
            set_scale_bits(to, first + g * to->scale_k_stride, bits);
            if (zeros != NULL) {
                set_zero_point(to, n, g, zeros[g * outputs + r]);
            }
        }
    }
}
