// SPDX-License-Identifier: Apache-2.0
// The packed layout of MXFP4 (cuda/operand.h), read as the kernel reads it: every thread's words
// give the canonical values, padding is zero, every byte comes back, other scales are refused. It
// needs no GPU.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cuda/device.h"
#include "backends/cuda/operand.h"
#include "backends/plugins.h"
#include "numerics/bf16.h"
#include "numerics/fp4.h"
#include "numerics/int4.h"
#include "quant/formats.h"
#include "unit/test.h"

const moei_host *moei_cuda_host; // of the plugin, elsewhere

static uint64_t state = 1;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

// The bf16 of half h of pair p, by the shifts and the mask of the kernel's decoder.
static double code_of(uint32_t word, int pair, int h)
{
    const uint32_t mask = 0x81C081C0u;
    const uint32_t bits[4] = {word & mask, word << 3 & mask, word << 6 & mask,
                              (word << 1 & 0x80008000u) | (word >> 5 & 0x01000100u) |
                                  (word >> 4 & 0x00C000C0u)};
    return ldexp((double)moei_bf16_to_f32((uint16_t)(bits[pair] >> 16 * h)), 126);
}

// Output of packed output r, as the header says it.
static int64_t output_of(const moei_matrices *m, bool parts, int64_t r)
{
    const int64_t half = m->n / 2;
    const int64_t i = r / 16 * 8 + r % 8;
    const int64_t up = r / 8 % 2;
    return !parts                 ? (r < m->n ? r : -1)
           : i >= half            ? -1
           : m->interleaved_parts ? 2 * i + up
                                  : up * half + i;
}

static void check_words(const moei_matrices *m, bool parts, const uint8_t *packed, const char *what)
{
    const int64_t blocks_k = (m->k + 63) / 64;
    const int64_t outputs = parts ? (m->n / 2 + 7) / 8 * 16 : m->n;
    for (int64_t b = 0; b < (outputs + 63) / 64 * blocks_k; b++) {
        const uint8_t *block = packed + b * MOEI_OPERAND_BYTES;
        for (int i = 0; i < 128 * 4 * 4 * 2; i++) { // thread, step, pair, half
            const int thread = i / 32;
            const int j = i / 8 % 4;
            const int pair = i / 2 % 4;
            const int q = thread / 32;
            const int g = thread % 32 / 4;
            const int64_t r = b / blocks_k * 64 + 16 * q + g + pair % 2 * 8;
            const int64_t k = b % blocks_k * 64 + 16 * j + thread % 4 * 2 + pair / 2 * 8 + i % 2;
            const int64_t n = output_of(m, parts, r);
            uint32_t word;
            memcpy(&word, block + 16 * thread + 4 * j, sizeof word);
            const uint8_t scale = block[2048 + 4 * (8 * q + g) + pair % 2 * 2 + j / 2];
            const double have = ldexp(code_of(word, pair, i % 2), scale - 127);
            double want = 0.0;
            if (n >= 0 && k < m->k) {
                const uint8_t *s = (const uint8_t *)m->scales + n * m->scale_n_stride + k / 32;
                want = ldexp((double)moei_e2m1_to_f32(
                                 moei_get_u4(m->values + n * m->value_n_stride, (size_t)k)),
                             s[0] - 127);
            } else if (n >= 0) {
                continue; // what shares a byte with the last code; x is 0 there
            }
            if (!CHECK(have == want && signbit(have) == signbit(want),
                       "%s: output %lld, k %lld: %g, expected %g", what, (long long)n, (long long)k,
                       have, want)) {
                return;
            }
        }
    }
}

static void test_matrix(int64_t n, int64_t k, bool gated, bool interleaved)
{
    char what[80];
    const int64_t row = (k + 1) / 2;
    const int64_t groups = (k + 31) / 32;
    uint8_t *values = malloc((size_t)(n * row));
    uint8_t *scales = malloc((size_t)(n * groups));
    uint8_t *back = calloc(1, (size_t)(n * (row + groups)));
    moei_matrices m = {.format = moei_format(MOE_FORMAT_MXFP4),
                       .n = n,
                       .k = k,
                       .count = 1,
                       .values = values,
                       .value_n_stride = row,
                       .scales = scales,
                       .scale_dtype = MOE_E8M0,
                       .block_n = 1,
                       .block_k = 32,
                       .scale_n_stride = groups,
                       .scale_k_stride = 1,
                       .interleaved_parts = interleaved,
                       .part_rows = gated && !interleaved ? n / 2 : n};
    const size_t bytes = moei_operand_bytes(NULL, &m);
    uint8_t *packed = malloc(bytes);
    (void)snprintf(what, sizeof what, "[%lld, %lld]%s", (long long)n, (long long)k,
                   interleaved ? " interleaved"
                   : gated     ? " halves"
                               : "");
    if (CHECK(values != NULL && scales != NULL && back != NULL && packed != NULL, "no memory")) {
        for (int64_t i = 0; i < n * row; i++) {
            values[i] = (uint8_t)draw(256);
        }
        for (int64_t i = 0; i < n * groups; i++) {
            scales[i] = (uint8_t)(2 + draw(251));
        }
        scales[0] = 2;
        scales[n * groups - 1] = 252;
        CHECK(moei_operand_pack(NULL, &m, packed) == MOE_OK, "%s: %s", what, moe_last_error());
        check_words(&m, gated, packed, what);
        moei_matrices to = m;
        to.values = back;
        to.scales = back + n * row;
        moei_operand_unpack(NULL, packed, &to);
        CHECK(memcmp(back, values, (size_t)(n * row)) == 0 &&
                  memcmp(back + n * row, scales, (size_t)(n * groups)) == 0,
              "%s: comes back changed", what);
        for (int i = 0; i < 5; i++) {
            static const uint8_t beyond[] = {0, 1, 253, 254, 255};
            scales[n * groups - 1] = beyond[i];
            CHECK(moei_operand_pack(NULL, &m, packed) == MOE_E_VALUE &&
                      strstr(moe_last_error(), "2..252") != NULL,
                  "%s: scale %d: %s", what, beyond[i], moe_last_error());
        }
    }
    free(values);
    free(scales);
    free(back);
    free(packed);
}

int main(void)
{
    static const int64_t sizes[] = {1, 2, 7, 8, 15, 16, 33, 63, 64, 65, 130};
    moei_cuda_host = moei_host_table();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
            test_matrix(sizes[i], sizes[j], false, false);
            test_matrix(2 * sizes[i], sizes[j], true, false);
            test_matrix(2 * sizes[i], sizes[j], true, true);
        }
    }
    return test_summary();
}
