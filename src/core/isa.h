// SPDX-License-Identifier: Apache-2.0
// Instruction sets of CPU kernels, as bits; a context has those of the machine up to its ceiling.
#ifndef MOEI_CORE_ISA_H
#define MOEI_CORE_ISA_H

#include <stddef.h>
#include <stdint.h>

enum {
    MOEI_ISA_AVX2_FMA = 1 << 0, // AVX2, FMA and F16C
    MOEI_ISA_AVX512 = 1 << 1,   // F, BW, DQ, VL
    MOEI_ISA_AVX512_VNNI = 1 << 2,
    MOEI_ISA_AVX512_BF16 = 1 << 3,
    MOEI_ISA_AMX_BF16 = 1 << 4,
    MOEI_ISA_AMX_INT8 = 1 << 5,
    MOEI_ISA_NEON = 1 << 6,
    MOEI_ISA_NEON_DOTPROD = 1 << 7
};

/// What this machine and its operating system offer (CPUID, XCR0, AMX permission asked for).
uint64_t moei_isa_detect(void);

/// Bits allowed under a ceiling name: "ref" (none), "ref_fma", "avx2", "avx512", "amx", "neon".
/// Returns 0 for an unknown name, else 1.
int moei_isa_ceiling(const char *name, uint64_t *mask);

/// "AVX2+FMA+F16C AVX512" and the like into buffer; "baseline" for 0.
const char *moei_isa_text(uint64_t isa, char *buffer, size_t capacity);

#endif
