// SPDX-License-Identifier: Apache-2.0
// Atomic operations on integers, which memory and LDS share. Their floats differ.
#ifndef MOE_TESTS_EMULATOR_ATOMIC_H
#define MOE_TESTS_EMULATOR_ATOMIC_H

#include <stdbool.h>
#include <stdint.h>

/// In the low bits of a row's detail.
enum {
    EMU_ATOMIC_ADD,
    EMU_ATOMIC_SUB,
    EMU_ATOMIC_MIN_I,
    EMU_ATOMIC_MIN_U,
    EMU_ATOMIC_MAX_I,
    EMU_ATOMIC_MAX_U,
    EMU_ATOMIC_AND,
    EMU_ATOMIC_OR,
    EMU_ATOMIC_XOR,
    EMU_ATOMIC_SWAP,
    EMU_ATOMIC_COMPARE, // stores v where memory holds `compare`
    EMU_ATOMIC_INC,
    EMU_ATOMIC_DEC,
    EMU_ATOMIC_FLOATS // from here on: those of a kind of memory
};

/// What memory holds afterwards; of 32 bits, unless `wide`, the low half counts.
static inline uint64_t emu_atomic_integer(unsigned op, uint64_t old, uint64_t v, uint64_t compare,
                                          bool wide)
{
    const int64_t so = wide ? (int64_t)old : (int32_t)old;
    const int64_t sv = wide ? (int64_t)v : (int32_t)v;
    switch (op) {
    case EMU_ATOMIC_ADD:
        return old + v;
    case EMU_ATOMIC_SUB:
        return old - v;
    case EMU_ATOMIC_MIN_I:
        return sv < so ? v : old;
    case EMU_ATOMIC_MIN_U:
        return v < old ? v : old;
    case EMU_ATOMIC_MAX_I:
        return sv > so ? v : old;
    case EMU_ATOMIC_MAX_U:
        return v > old ? v : old;
    case EMU_ATOMIC_AND:
        return old & v;
    case EMU_ATOMIC_OR:
        return old | v;
    case EMU_ATOMIC_XOR:
        return old ^ v;
    case EMU_ATOMIC_SWAP:
        return v;
    case EMU_ATOMIC_COMPARE:
        return old == compare ? v : old;
    case EMU_ATOMIC_INC:
        return old >= v ? 0 : old + 1;
    default: // EMU_ATOMIC_DEC
        return old == 0 || old > v ? v : old - 1;
    }
}

#endif
