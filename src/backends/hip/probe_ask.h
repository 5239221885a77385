// SPDX-License-Identifier: Apache-2.0
// How a device is asked, for whoever has a question (probe.h). Not for other files.
#ifndef MOEI_HIP_PROBE_ASK_H
#define MOEI_HIP_PROBE_ASK_H

#include "backends/hip/probe.h"
#include "backends/hip/runtime.h"

enum { MOEI_HIP_PROBE_WAVES = 40 }; // of a question, at most

/// A device under question.
typedef struct moei_hip_session {
    const moei_hip_runtime *hip;
    hipModule_t module;
    bool fnuz; // FP8 of the matrix units is not OCP's
    uint64_t random;
    uint32_t *host; // operands, then results, of one question
    void *device;
    moei_hip_findings *found;
} moei_hip_session;

/// Notes why a family is off: `what` was asked, `why` it is not as expected; the first reason
/// counts. Returns false.
bool moei_hip_disagree(const moei_hip_session *s, moei_hip_family family, const char *what,
                       const char *why);

/// Runs a kernel on the operands in s->host: `in` words for each lane, after them `out` results. A
/// launch that fails is a reason.
bool moei_hip_ask(moei_hip_session *s, moei_hip_family family, const char *kernel, uint32_t waves,
                  uint32_t in, uint32_t out);

/// Asks each matrix instruction of the architectures `isa` until one of its family disagrees.
/// Sets good[family] for families of which every one is as expected. False: memory is short, and
/// nothing was asked.
bool moei_hip_probe_matrices(moei_hip_session *s, uint64_t isa, bool good[MOEI_HIP_NUM_FAMILIES]);

static inline uint32_t moei_hip_draw(moei_hip_session *s) // splitmix64
{
    uint64_t z = (s->random += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(z >> 32);
}

static inline uint32_t moei_hip_draw_below(moei_hip_session *s, uint32_t n)
{
    return (uint32_t)(((uint64_t)moei_hip_draw(s) * n) >> 32);
}

/// Equal bits; a NaN of any kind for a NaN.
static inline bool moei_hip_same(uint32_t came, uint32_t expected)
{
    const bool nan = (expected & 0x7FFFFFFFu) > 0x7F800000u;
    return nan ? (came & 0x7FFFFFFFu) > 0x7F800000u : came == expected;
}

#endif
