// SPDX-License-Identifier: Apache-2.0
// Instructions of CDNA in which the lanes of a wave meet. Matrix instructions: 16 outputs x 16
// rows. Lane l has item r of output 4 (l / 16) + r of row l % 16; each is a chain of fma over
// ascending k, as the emulator's first order of sums is.
#include "backends/hip/cdna/instructions_sim.h"
#include "numerics/hd.h"

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

} // namespace

extern "C" {

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
