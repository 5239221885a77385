// SPDX-License-Identifier: Apache-2.0
// What a device is asked before its rows are used. Layouts of matrix operands, conversions and
// roundings are a reading of documents: a few kernels of one wave run each of them on operands that
// the host chooses, and a family of rows (cdna/probes.def) is on where every result is as expected.
// Where one is not, what the reading missed becomes a slower row, not a wrong answer; where the
// portable bodies could not be right either, the device is refused.
#ifndef MOEI_HIP_PROBE_H
#define MOEI_HIP_PROBE_H

#include <stdbool.h>

#include "backends/gpu/launch_hip.h"

/// The argument of every probe. A wave takes what follows its predecessors' in `in`, a lane what
/// follows the lane before; the same of results.
typedef struct moei_hip_probe_args {
    moei_hip_launch launch;
    const uint32_t *in;
    uint32_t *out;
} moei_hip_probe_args;

#define MOEI_HIP_PROBE_THREADS 64 // one wave

/// Results of the probe of arithmetic, of floats a, b and c.
#define MOEI_HIP_ARITHMETIC(X)                                                                     \
    X(DIVIDE, "a / b")                                                                             \
    X(SQRT, "sqrt(a)")                                                                             \
    X(FMA, "fma(a, b, c)")                                                                         \
    X(PAIR_LOW, "fma(a, c, b) of a pair")                                                          \
    X(PAIR_HIGH, "fma(b, c, a) of a pair")                                                         \
    X(MULTIPLY, "a * b")                                                                           \
    X(ADD, "a + b")                                                                                \
    X(SUM, "a + b + c")                                                                            \
    X(FROM_INT, "bits of a, an integer, as a float")                                               \
    X(FROM_UNSIGNED, "bits of a, unsigned, as a float")                                            \
    X(FROM_BYTE, "lowest byte of a as a float")                                                    \
    X(FROM_LONG, "bits of a and b, an integer, as a float")                                        \
    X(TO_INT, "c as an integer")                                                                   \
    X(QUOTIENT, "bits of a / bits of b")                                                           \
    X(LONG_QUOTIENT, "bits of a and b / bits of c and 1")                                          \
    X(TO_LONG, "c as an integer of 64 bits")                                                       \
    X(LANE, "a of another lane")
typedef enum moei_hip_arithmetic {
#define MOEI_HIP_RESULT(id, text) MOEI_HIP_ARITHMETIC_##id,
    MOEI_HIP_ARITHMETIC(MOEI_HIP_RESULT)
#undef MOEI_HIP_RESULT
        MOEI_HIP_NUM_ARITHMETIC
} moei_hip_arithmetic;

/// Quotient and remainder of 64 bits, in a word.
#define MOEI_HIP_PROBE_LONG(in)                                                                    \
    (uint32_t)((((uint64_t)(in)[0] << 32 | (in)[1]) / ((uint64_t)(in)[2] << 16 | 1)) ^             \
               (((uint64_t)(in)[0] << 32 | (in)[1]) % ((uint64_t)(in)[2] << 16 | 1)))

/// A float of at most 2^62 as an integer of 64 bits, in a word.
#define MOEI_HIP_PROBE_TO_LONG(c)                                                                  \
    (moei_absf(c) < 0x1p62f ? (uint32_t)((uint64_t)(int64_t)(c) ^ (uint64_t)(int64_t)(c) >> 32)    \
                            : 0u)

/// The lane of a warp that LANE reads.
#define MOEI_HIP_PROBE_LANE(lane) (((lane)*5 + 3) % 32)

typedef enum moei_hip_family {
#define MOE_HIP_FAMILY(id, bit, name) MOEI_HIP_FAMILY_##id,
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_FAMILY
    MOEI_HIP_NUM_FAMILIES
} moei_hip_family;

/// What a device answered.
typedef struct moei_hip_findings {
    uint64_t isa; // bits of its architecture, and of families that are as expected
    bool asked[MOEI_HIP_NUM_FAMILIES];
    char text[MOEI_HIP_NUM_FAMILIES][176];        // why a family is off; "": it is not
    unsigned long tiny[MOEI_HIP_NUM_FAMILIES][2]; // subnormal sums that were kept, that became 0
} moei_hip_findings;

#endif
