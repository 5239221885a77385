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

} // extern "C"

/// What a lane takes of sum + the products of a and b.
template <class Operand, class Sum>
DEV_FN Sum moei_sim_products(const char *call, moei_sim_wave_fn *compute, Operand a, Operand b,
                             Sum sum)
{
    uint32_t given[MOEI_SIM_GIVEN];
    static_assert(2 * sizeof a + sizeof sum <= sizeof given && sizeof sum <= 4 * MOEI_SIM_TAKEN,
                  "words of a lane");
    __builtin_memcpy(given, &a, sizeof a);
    __builtin_memcpy(given + sizeof a / 4, &b, sizeof b);
    __builtin_memcpy(given + 2 * sizeof a / 4, &sum, sizeof sum);
    const uint32_t words = (2 * sizeof a + sizeof sum) / 4;
    __builtin_memcpy(&sum, moei_sim_wave(call, compute, given, words), sizeof sum);
    return sum;
}

#endif
