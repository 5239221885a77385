// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/operand.h"

#include <string.h>

#include "backends/cuda/device.h"
#include "numerics/int4.h"

// Codes of scales whose products with every code of a weight bf16 holds exactly.
#define SCALE_LOW  2
#define SCALE_HIGH 252

size_t moei_operand_bytes(const moei_kernel *kernel, const moei_matrices *m)
{
    (void)kernel;
    return (size_t)(moei_operand_blocks_n(m) * moei_operand_blocks_k(m)) * MOEI_OPERAND_BYTES;
}

// Bits of a code in the half of a word, for pair p.
static uint32_t place(int pair, uint32_t code)
{
    const uint32_t sign = code >> 3;
    const uint32_t magnitude = code & 7;
    switch (pair) {
    case 0:
        return sign << 15 | magnitude << 6;
    case 1:
        return sign << 12 | magnitude << 3;
    case 2:
        return sign << 9 | magnitude;
    default:
        return sign << 14 | magnitude >> 2 << 13 | (magnitude & 3) << 10;
    }
}

static uint32_t code_at(int pair, uint32_t half)
{
    switch (pair) {
    case 0:
        return (half >> 15 & 1) << 3 | (half >> 6 & 7);
    case 1:
        return (half >> 12 & 1) << 3 | (half >> 3 & 7);
    case 2:
        return (half >> 9 & 1) << 3 | (half & 7);
    default:
        return (half >> 14 & 1) << 3 | (half >> 13 & 1) << 2 | (half >> 10 & 3);
    }
}

static uint8_t scale_at(const moei_matrices *m, int64_t n, int64_t k)
{
    return ((const uint8_t *)m->scales)[n * m->scale_n_stride + k / 32 * m->scale_k_stride];
}

static moe_status check_scales(const moei_matrices *m)
{
    for (int64_t n = 0; n < m->n; n++) {
        for (int64_t k = 0; k < m->k; k += 32) {
            const uint8_t scale = scale_at(m, n, k);
            if (scale < SCALE_LOW || scale > SCALE_HIGH) {
                return moei_cuda_host->fail(
                    MOE_E_VALUE,
                    "cuda: scale [%lld, %lld] has code %d, the matrix kernels take %d..%d; a plan "
                    "at level KERNEL takes any",
                    (long long)n, (long long)k / 32, (int)scale, SCALE_LOW, SCALE_HIGH);
            }
        }
    }
    return MOE_OK;
}

moe_status moei_operand_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to)
{
    static const uint8_t zeros[MOEI_OPERAND_TILE / 2];
    uint32_t table[4][256]; // both codes of a byte
    (void)kernel;
    const moe_status status = check_scales(from);
    if (status != MOE_OK) {
        return status;
    }
    for (int p = 0; p < 4; p++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            table[p][byte] = place(p, byte & 15) | place(p, byte >> 4) << 16;
        }
    }
    uint8_t *block = to;
    for (int64_t bn = 0; bn < moei_operand_blocks_n(from); bn++) {
        int64_t output[MOEI_OPERAND_TILE];
        for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
            output[r] = moei_operand_output(from, bn * MOEI_OPERAND_TILE + r);
        }
        for (int64_t bk = 0; bk < moei_operand_blocks_k(from); bk++) {
            // Rows of the block, whole: those cut by the end of k in a copy. What shares a byte
            // with the last code comes along: x is 0 there.
            uint8_t cut[MOEI_OPERAND_TILE][MOEI_OPERAND_TILE / 2];
            const uint8_t *row[MOEI_OPERAND_TILE];
            const int64_t k0 = bk * MOEI_OPERAND_TILE;
            const int64_t left = from->k - k0;
            for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
                row[r] = output[r] < 0 ? zeros
                                       : from->values + output[r] * from->value_n_stride + k0 / 2;
                if (output[r] >= 0 && left < MOEI_OPERAND_TILE) {
                    memset(cut[r], 0, sizeof cut[r]);
                    memcpy(cut[r], row[r], (size_t)(left + 1) / 2);
                    row[r] = cut[r];
                }
            }
            for (int thread = 0; thread < 128; thread++) {
                const int low = thread / 32 * 16 + thread % 32 / 4;
                for (int j = 0; j < 4; j++) {
                    const int at = 8 * j + thread % 4;
                    const uint32_t word = table[0][row[low][at]] | table[1][row[low + 8][at]] |
                                          table[2][row[low][at + 4]] |
                                          table[3][row[low + 8][at + 4]];
                    memcpy(block + 16 * thread + 4 * j, &word, sizeof word);
                }
            }
            for (int i = 0; i < 128; i++) {
                const int r = i / 32 * 16 + i % 32 / 4 + i % 4 / 2 * 8;
                const int64_t k = k0 + i % 2 * 32;
                block[MOEI_OPERAND_CODES + i] =
                    output[r] >= 0 && k < from->k ? scale_at(from, output[r], k) : SCALE_LOW;
            }
            block += MOEI_OPERAND_BYTES;
        }
    }
    return MOE_OK;
}

void moei_operand_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    (void)kernel;
    const int64_t blocks_k = moei_operand_blocks_k(to);
    for (int64_t r = 0; r < moei_operand_blocks_n(to) * MOEI_OPERAND_TILE; r++) {
        const int64_t n = moei_operand_output(to, r);
        const int q = (int)(r % MOEI_OPERAND_TILE) / 16;
        const int g = (int)(r % 8);
        const int high = (int)(r / 8 % 2);
        for (int64_t k = 0; n >= 0 && k < (to->k + 1) / 2 * 2; k++) {
            const uint8_t *block =
                from +
                (r / MOEI_OPERAND_TILE * blocks_k + k / MOEI_OPERAND_TILE) * MOEI_OPERAND_BYTES;
            const int j = (int)(k % MOEI_OPERAND_TILE) / 16;
            const int pair = (int)(k % 16) / 8 * 2 + high;
            const int thread = q * 32 + g * 4 + (int)(k % 8) / 2;
            uint32_t word;
            memcpy(&word, block + 16 * thread + 4 * j, sizeof word);
            const uint32_t code = code_at(pair, word >> 16 * (k % 2) & 0xFFFF);
            moei_set_u4((uint8_t *)(uintptr_t)to->values + n * to->value_n_stride, (size_t)k,
                        (uint8_t)code);
            if (k % 32 == 0) {
                uint8_t *scales = (uint8_t *)(uintptr_t)to->scales;
                scales[n * to->scale_n_stride + k / 32 * to->scale_k_stride] =
                    block[MOEI_OPERAND_CODES + q * 32 + g * 4 + high * 2 +
                          k % MOEI_OPERAND_TILE / 32];
            }
        }
    }
}
