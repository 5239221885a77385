// SPDX-License-Identifier: Apache-2.0
// The activations' short ways for arguments near zero (numerics/activation.h) against the functions
// themselves: the same bits, or NaN from both.
//
//   test_numerics_activation            16 million gates, and edges
//   test_numerics_activation --long     every gate
#include <stdlib.h>
#include <string.h>

#include "numerics/activation.h"
#include "test.h"

enum { BLOCK = 4096 };

static int is_same(float a, float b)
{
    return a != a ? b != b : moei_f32_bits(a) == moei_f32_bits(b);
}

static const float ups[] = {0.75f, -3.0f, 0.0f, 1e30f};
#define NUM_UPS (sizeof ups / sizeof ups[0])

static void check_silu(uint64_t first, uint64_t stride)
{
    static float g[BLOCK], want[BLOCK], have[BLOCK];
    for (size_t i = 0; i < BLOCK; i++) {
        g[i] = moei_f32_from_bits((uint32_t)(first + i * stride));
    }
    for (size_t i = 0; i < BLOCK; i++) {
        want[i] = moei_silu(g[i]);
    }
    for (size_t i = 0; i < BLOCK; i++) {
        have[i] = moei_silu_near(g[i]);
    }
    size_t bad = BLOCK;
    for (size_t i = 0; i < BLOCK; i++) {
        bad = g[i] < MOEI_FAR || is_same(want[i], have[i]) ? bad : i;
    }
    CHECK(bad == BLOCK, "silu(%a): %a, near %a", (double)g[bad], (double)want[bad],
          (double)have[bad]);
}

static void check_swigluoai(uint64_t first, uint64_t stride, float alpha, float limit)
{
    static float g[BLOCK], want[BLOCK], have[BLOCK];
    const float beta = 1.0f;
    const float up = ups[first / stride / BLOCK % NUM_UPS];
    for (size_t i = 0; i < BLOCK; i++) {
        g[i] = moei_f32_from_bits((uint32_t)(first + i * stride));
    }
    for (size_t i = 0; i < BLOCK; i++) {
        want[i] = moei_swigluoai(g[i], up, alpha, beta, limit);
    }
    for (size_t i = 0; i < BLOCK; i++) {
        have[i] = moei_swigluoai_near(moei_clamp_above(g[i], limit), moei_clamp_both(up, limit),
                                      alpha, beta);
    }
    size_t bad = BLOCK;
    for (size_t i = 0; i < BLOCK; i++) {
        const float a = moei_swigluoai_exponent(moei_clamp_above(g[i], limit), alpha);
        bad = a < MOEI_FAR || is_same(want[i], have[i]) ? bad : i;
    }
    CHECK(bad == BLOCK, "swigluoai(%a, alpha %a): %a, near %a", (double)g[bad], (double)alpha,
          (double)want[bad], (double)have[bad]);
}

int main(int argc, char **argv)
{
    const char *env = getenv("MOE_LONG");
    const int all = (argc > 1 && strcmp(argv[1], "--long") == 0) || (env != NULL && *env == '1');
    const uint64_t stride = all ? 1 : 255;
    static const float alphas[] = {1.702f, 1.0f, 0.3f, 3.1415927f, 1e-3f, 1e20f, 1e-40f};
    for (uint64_t u = 0; u < (uint64_t)1 << 32; u += BLOCK * stride) {
        check_silu(u, stride);
    }
    for (size_t j = 0; j < sizeof alphas / sizeof alphas[0]; j++) {
        const uint64_t step = stride * (j == 0 ? 1 : 17);
        for (uint64_t u = 0; u < (uint64_t)1 << 32; u += BLOCK * step) {
            check_swigluoai(u, step, alphas[j], j % 2 == 0 ? 7.0f : MOEI_NO_LIMIT);
        }
    }
    // Both sides of where the short ways end, and zeros.
    check_silu(moei_f32_bits(MOEI_FAR) - BLOCK / 2, 1);
    check_silu(0, 1);
    check_silu(0x80000000u, 1);
    check_swigluoai(moei_f32_bits(32.0f / 1.702f) - BLOCK / 2, 1, 1.702f, MOEI_NO_LIMIT);
    check_swigluoai(moei_f32_bits(-32.0f / 1.702f) - BLOCK / 2, 1, 1.702f, MOEI_NO_LIMIT);
    check_swigluoai(0, 1, 1.702f, 7.0f);
    check_swigluoai(0x80000000u, 1, 1.702f, 7.0f);
    return test_summary();
}
