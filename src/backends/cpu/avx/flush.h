// SPDX-License-Identifier: Apache-2.0
// The modes of class amx_bf16: subnormal operands and results of this thread's vectors are 0.
#ifndef MOEI_BACKENDS_CPU_AVX_FLUSH_H
#define MOEI_BACKENDS_CPU_AVX_FLUSH_H

#include <stdint.h>

#define MOEI_CPU_FLUSH 0x8040u // flush to zero, denormals are zero

// What reads its operands from memory after the beginning, and has written its results before the
// end, is done in between: no compiler moves a load or a store past either.
static inline uint32_t moei_cpu_flush_begin(void)
{
    uint32_t was;
    __asm__ volatile("stmxcsr %0" : "=m"(was));
    const uint32_t modes = was | MOEI_CPU_FLUSH;
    __asm__ volatile("ldmxcsr %0" : : "m"(modes) : "memory");
    return was;
}

static inline void moei_cpu_flush_end(uint32_t was)
{
    __asm__ volatile("ldmxcsr %0" : : "m"(was) : "memory");
}

#endif
