// SPDX-License-Identifier: Apache-2.0
// Instructions of CDNA in which the lanes of a wave meet. Matrix instructions: 16 outputs x 16
// rows. Lane l has item r of output 4 (l / 16) + r of row l % 16; each is a chain of fma over
// ascending k, as the emulator's first order of sums is.
#include <math.h>
#include <string.h>

#include "backends/hip/cdna/instructions_sim.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"

namespace
{

enum { SIDE = 16, MAX_K = 128 };

// Operands as [k][output] and [k][row]; sums as [output][row].
struct wave {
    float a[MAX_K][SIDE], b[MAX_K][SIDE], sum[SIDE][SIDE];
};

__attribute__((always_inline)) inline void chain(wave *w, int k)
{
    for (int i = 0; i < SIDE; i++) {
        for (int x = 0; x < k; x++) {
            for (int j = 0; j < SIDE; j++) {
                w->sum[i][j] = moei_fmaf(w->a[x][i], w->b[x][j], w->sum[i][j]);
            }
        }
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void chain_avx2(wave *w, int k)
{
    chain(w, k);
}
#endif

// sum += a b over k.
void multiply(wave *w, int k)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        chain_avx2(w, k);
        return;
    }
#endif
    chain(w, k);
}

// Where the sums lie in what lanes give; the operands lie before them.
void take_sums(wave *w, const uint32_t (*given)[MOEI_SIM_GIVEN], int at)
{
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        for (int r = 0; r < 4; r++) {
            w->sum[4 * (l / SIDE) + r][l % SIDE] = moei_f32_from_bits(given[l][at + r]);
        }
    }
}

void give_sums(const wave *w, uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        for (int r = 0; r < 4; r++) {
            taken[l][r] = moei_f32_bits(w->sum[4 * (l / SIDE) + r][l % SIDE]);
        }
    }
}

float bf16_of(const uint32_t *words, int i)
{
    return moei_f32_from_bits(words[i / 2] >> 16 * (i % 2) << 16);
}

// Items `first` .. + items - 1 of each lane: k of an instruction are items of lane / 16 = 0,
// then 1...
void take_bf16(wave *w, const uint32_t (*given)[MOEI_SIM_GIVEN], int first, int items)
{
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        for (int i = 0; i < items; i++) {
            const int k = items * (l / SIDE) + i;
            w->a[k][l % SIDE] = bf16_of(given[l], first + i);
            w->b[k][l % SIDE] = bf16_of(given[l] + 4, first + i);
        }
    }
}

// Formats by their numbers in instructions.
int bits_of(uint32_t format)
{
    return format == 4 ? 4 : format >= 2 ? 6 : 8;
}

float value_of(uint32_t format, uint8_t code)
{
    switch (format) {
    case 0:
        return moei_sim_here.cdna4 ? moei_e4m3fn_to_f32(code) : moei_e4m3fnuz_to_f32(code);
    case 1:
        return moei_sim_here.cdna4 ? moei_e5m2_to_f32(code) : moei_e5m2fnuz_to_f32(code);
    case 2:
        return moei_e2m3_to_f32(code);
    case 3:
        return moei_e3m2_to_f32(code);
    default:
        return moei_e2m1_to_f32(code);
    }
}

// Code i of a lane's words.
uint8_t code_at(const uint32_t *words, int bits, int i)
{
    uint32_t code = 0;
    for (int b = 0; b < bits; b++) {
        const int at = i * bits + b;
        code |= (words[at / 32] >> at % 32 & 1u) << b;
    }
    return (uint8_t)code;
}

// Words of a lane, and where they lie in what it gives.
enum { CODES_B = 8, CODES_SUM = 16, CODES_SCALE = 20, CODES_FORMAT = 22 };

// An operand of 128 k: of eight bits in two halves of 64 k, else in one.
void take_codes(float (*to)[SIDE], const uint32_t (*given)[MOEI_SIM_GIVEN], int operand)
{
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        const uint32_t format = given[l][CODES_FORMAT + operand];
        const int bits = bits_of(format);
        for (int i = 0; i < 32; i++) {
            const int group = l / SIDE;
            const int k = bits == 8 ? i / 16 * 64 + 16 * group + i % 16 : 32 * group + i;
            to[k][l % SIDE] = value_of(format, code_at(given[l] + operand * CODES_B, bits, i));
        }
    }
}

// sum + part times both scales, 2^(a + b - 254); a code of 255 is NaN.
float add_scaled(float sum, float part, uint32_t a, uint32_t b)
{
    if ((a & 0xFF) == 0xFF || (b & 0xFF) == 0xFF) {
        return __builtin_nanf("");
    }
    return (float)((double)sum + ldexp((double)part, (int)(a & 0xFF) + (int)(b & 0xFF) - 254));
}

} // namespace

extern "C" {

void moei_sim_mfma_codes_k32(const uint32_t (*given)[MOEI_SIM_GIVEN],
                             uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    wave w;
    take_sums(&w, given, CODES_SUM);
    for (int step = 0; step < 4; step++) {
        for (int l = 0; l < MOEI_SIM_WAVE; l++) {
            for (int i = 0; i < 8; i++) {
                const int k = 8 * (l / SIDE) + i;
                w.a[k][l % SIDE] =
                    value_of(given[l][CODES_FORMAT], code_at(given[l], 8, 8 * step + i));
                w.b[k][l % SIDE] = value_of(given[l][CODES_FORMAT + 1],
                                            code_at(given[l] + CODES_B, 8, 8 * step + i));
            }
        }
        multiply(&w, 32);
    }
    give_sums(&w, taken);
}

// A chain from +0 for each 32 k that share scales.
void moei_sim_mfma_codes_k128(const uint32_t (*given)[MOEI_SIM_GIVEN],
                              uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    wave w;
    wave part;
    take_sums(&w, given, CODES_SUM);
    take_codes(w.a, given, 0);
    take_codes(w.b, given, 1);
    for (int block = 0; block < 4; block++) {
        memcpy(part.a, w.a[32 * block], 32 * sizeof w.a[0]);
        memcpy(part.b, w.b[32 * block], 32 * sizeof w.b[0]);
        memset(part.sum, 0, sizeof part.sum);
        multiply(&part, 32);
        for (int i = 0; i < SIDE; i++) {
            for (int j = 0; j < SIDE; j++) {
                w.sum[i][j] =
                    add_scaled(w.sum[i][j], part.sum[i][j], given[SIDE * block + i][CODES_SCALE],
                               given[SIDE * block + j][CODES_SCALE + 1]);
            }
        }
    }
    give_sums(&w, taken);
}

void moei_sim_first_lane(const uint32_t (*given)[MOEI_SIM_GIVEN], uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        taken[l][0] = given[0][0];
    }
}

void moei_sim_mfma_bf16_k16(const uint32_t (*given)[MOEI_SIM_GIVEN],
                            uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    wave w;
    take_sums(&w, given, 8);
    for (int half = 0; half < 2; half++) {
        take_bf16(&w, given, 4 * half, 4);
        multiply(&w, 16);
    }
    give_sums(&w, taken);
}

void moei_sim_mfma_bf16_k32(const uint32_t (*given)[MOEI_SIM_GIVEN],
                            uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    wave w;
    take_sums(&w, given, 8);
    take_bf16(&w, given, 0, 8);
    multiply(&w, 32);
    give_sums(&w, taken);
}

} // extern "C"
