// SPDX-License-Identifier: Apache-2.0
// The floating-point environment of the calling thread: rounding to nearest, nothing flushed to
// zero, while the library computes. A process that was linked with -ffast-math begins with another,
// as do threads for which a framework has set it; results must not depend on which thread ran them.
#ifndef MOEI_CORE_FP_ENV_H
#define MOEI_CORE_FP_ENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

#define MOEI_FP_DEFAULT 0x1F80u // every exception masked
#define MOEI_FP_FLAGS   0x3Fu   // exceptions that were seen, which change nothing

/// Returns what moei_fp_end puts back.
static inline uint64_t moei_fp_begin(void)
{
    const uint32_t was = _mm_getcsr();
    if ((was & ~MOEI_FP_FLAGS) != MOEI_FP_DEFAULT) {
        _mm_setcsr(MOEI_FP_DEFAULT);
    }
    return was;
}

static inline void moei_fp_end(uint64_t was)
{
    if (((uint32_t)was & ~MOEI_FP_FLAGS) != MOEI_FP_DEFAULT) {
        _mm_setcsr((uint32_t)was);
    }
}
#elif defined(__aarch64__)
static inline uint64_t moei_fp_begin(void)
{
    uint64_t was;
    __asm__ volatile("mrs %0, fpcr" : "=r"(was));
    if (was != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    }
    return was;
}

static inline void moei_fp_end(uint64_t was)
{
    if (was != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"(was) : "memory");
    }
}
#else
static inline uint64_t moei_fp_begin(void)
{
    return 0;
}

static inline void moei_fp_end(uint64_t was)
{
    (void)was;
}
#endif

#endif
