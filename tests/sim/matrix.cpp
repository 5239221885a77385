// SPDX-License-Identifier: Apache-2.0
// Matrix instructions of CDNA, a wave's at once: 16 outputs x 16 rows. Lane l has item r of output
// 4 (l / 16) + r of row l % 16; each is a chain of fma over ascending k, as the emulator's first
// order of sums is.
#include <math.h>

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

// ---- codes -------------------------------------------------------------------------------------

enum { E4M3, E5M2, E2M3, E3M2, E2M1, E4M3FNUZ, FORMATS }; // the first ones as instructions count
enum { LANE = 32 };                                       // codes of a lane
enum { AT_B = 8, AT_SUM = 16, AT_FORMATS = 20, AT_SCALES = 21 }; // words of what a lane gives

int bits_of(int format)
{
    return format == E2M1 ? 4 : format == E2M3 || format == E3M2 ? 6 : 8;
}

struct values {
    float of[FORMATS][256];

    values()
    {
        for (int c = 0; c < 256; c++) {
            const uint8_t code = (uint8_t)c;
            of[E4M3][c] = moei_e4m3fn_to_f32(code);
            of[E5M2][c] = moei_e5m2_to_f32(code);
            of[E2M3][c] = moei_e2m3_to_f32(code & 63);
            of[E3M2][c] = moei_e3m2_to_f32(code & 63);
            of[E2M1][c] = moei_e2m1_to_f32(code & 15);
            of[E4M3FNUZ][c] = moei_e4m3fnuz_to_f32(code);
        }
    }
};
const values value;

float code_of(const uint32_t *words, int format, int i)
{
    const int bits = bits_of(format);
    uint32_t code = 0;
    for (int b = 0; b < bits; b += 2) { // neither crosses a word
        const int at = i * bits + b;
        code |= (words[at / 32] >> at % 32 & 3) << b;
    }
    return value.of[format][code];
}

// The 128 k of an operand, as [k][output] or [k][row].
void take_codes(const uint32_t (*given)[MOEI_SIM_GIVEN], int at, int format, float (*to)[SIDE])
{
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        for (int i = 0; i < LANE; i++) {
            const int group = l / SIDE;
            const int k = bits_of(format) == 8 ? i / 16 * 64 + 16 * group + i % 16 : 32 * group + i;
            to[k][l % SIDE] = code_of(given[l] + at, format, i);
        }
    }
}

// Products of 32 k are summed from 0, scaled, and added, one block after the other.
void multiply_blocks(wave *w, const uint32_t (*given)[MOEI_SIM_GIVEN], bool scaled)
{
    for (int block = 0; block < 4; block++) {
        for (int i = 0; i < SIDE; i++) {
            for (int j = 0; j < SIDE; j++) {
                float dot = 0.0f;
                for (int k = 32 * block; k < 32 * block + 32; k++) {
                    dot = moei_fmaf(w->a[k][i], w->b[k][j], dot);
                }
                const uint32_t s_a = scaled ? given[16 * block + i][AT_SCALES] : 127;
                const uint32_t s_b = scaled ? given[16 * block + j][AT_SCALES + 1] : 127;
                const double part = ldexp((double)dot, (int)(s_a + s_b) - 254);
                w->sum[i][j] =
                    s_a == 255 || s_b == 255 ? NAN : (float)((double)w->sum[i][j] + part);
            }
        }
    }
}

void multiply_codes(const uint32_t (*given)[MOEI_SIM_GIVEN], uint32_t (*taken)[MOEI_SIM_TAKEN],
                    bool scaled)
{
    wave w;
    take_sums(&w, given, AT_SUM);
    take_codes(given, 0, (int)(given[0][AT_FORMATS] & 15), w.a);
    take_codes(given, AT_B, (int)(given[0][AT_FORMATS] >> 4), w.b);
    multiply_blocks(&w, given, scaled);
    give_sums(&w, taken);
}

} // namespace

extern "C" {

void moei_sim_mfma_codes(const uint32_t (*given)[MOEI_SIM_GIVEN], uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    multiply_codes(given, taken, false);
}

void moei_sim_mfma_mx(const uint32_t (*given)[MOEI_SIM_GIVEN], uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    multiply_codes(given, taken, true);
}

void moei_sim_mfma_fnuz(const uint32_t (*given)[MOEI_SIM_GIVEN], uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    wave w;
    take_sums(&w, given, AT_SUM);
    for (int step = 0; step < 4; step++) {
        for (int l = 0; l < MOEI_SIM_WAVE; l++) {
            for (int i = 0; i < 8; i++) {
                const int k = 8 * (l / SIDE) + i;
                w.a[k][l % SIDE] = code_of(given[l] + 2 * step, E4M3FNUZ, i);
                w.b[k][l % SIDE] = code_of(given[l] + AT_B + 2 * step, E4M3FNUZ, i);
            }
        }
        multiply(&w, 32);
    }
    give_sums(&w, taken);
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
