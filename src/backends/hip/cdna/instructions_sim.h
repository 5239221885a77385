// SPDX-License-Identifier: Apache-2.0
// Matrix instructions on the host: a wave of fibers gives its operands to what tests/sim/matrix.cpp
// computes. The layouts are the machine's, the order of sums that of the emulator's first.
#ifndef MOEI_HIP_INSTRUCTIONS_SIM_H
#define MOEI_HIP_INSTRUCTIONS_SIM_H

#include "backends/gpu/dev.h"

extern "C" {

moei_sim_wave_fn moei_sim_first_lane; // a word

/// Words of a lane: of the first operand, as many of the second, four of the sum.
moei_sim_wave_fn moei_sim_mfma_bf16_k16; // two instructions of 16 k: halves of four words
moei_sim_wave_fn moei_sim_mfma_bf16_k32;
/// After the sum: e8m0 codes of both operands in the lowest byte, the numbers of their formats.
moei_sim_wave_fn moei_sim_mfma_codes_k32; // four instructions of 32 k: pairs of eight words
moei_sim_wave_fn moei_sim_mfma_codes_k128;

} // extern "C"

/// What a lane takes of sum + the products of a and b.
template <class Operand, class Sum, class... More>
DEV_FN Sum moei_sim_products(const char *call, moei_sim_wave_fn *compute, const Operand &a,
                             const Operand &b, Sum sum, More... more)
{
    struct {
        Operand a, b;
        Sum sum;
        uint32_t more[sizeof...(more) + 1];
    } all = {a, b, sum, {more..., 0}};
    static_assert(sizeof a % sizeof sum == 0 &&
                      2 * sizeof a + sizeof sum + 4 * sizeof...(more) <= 4 * MOEI_SIM_GIVEN,
                  "words of a lane");
    const uint32_t words = (2 * sizeof a + sizeof sum) / 4 + sizeof...(more);
    uint32_t given[MOEI_SIM_GIVEN];
    __builtin_memcpy(given, &all, 4 * words);
    __builtin_memcpy(&sum, moei_sim_wave(call, compute, given, words), sizeof sum);
    return sum;
}

#endif
