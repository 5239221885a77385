// SPDX-License-Identifier: Apache-2.0
// Instruction sets of this machine, as the CPU and the operating system together offer them: a
// register file counts only where XCR0 says that the system saves it, AMX only with permission.
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "core/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XCR0_AVX            0x6u     // XMM, YMM
#define XCR0_AVX512         0xE6u    // and opmask, ZMM
#define XCR0_AMX            0x60000u // TILECFG, TILEDATA
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

static uint64_t read_xcr0(void)
{
    uint32_t low;
    uint32_t high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

uint64_t moei_isa_detect(void)
{
    uint32_t a;
    uint32_t b;
    uint32_t c;
    uint32_t d;
    uint64_t isa = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) {
        return 0;
    }
    const uint64_t xcr0 = read_xcr0();
    const int fma_f16c = (c & bit_FMA) != 0 && (c & bit_F16C) != 0 && (c & bit_AVX) != 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return 0;
    }
    if (fma_f16c && (b & bit_AVX2) != 0 && (xcr0 & XCR0_AVX) == XCR0_AVX) {
        isa |= MOEI_ISA_AVX2_FMA;
    }
    const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if (isa != 0 && (b & avx512) == avx512 && (xcr0 & XCR0_AVX512) == XCR0_AVX512) {
        isa |= MOEI_ISA_AVX512;
        isa |= (c & bit_AVX512VNNI) != 0 ? MOEI_ISA_AVX512_VNNI : 0;
        uint32_t a1;
        uint32_t unused;
        if (__get_cpuid_count(7, 1, &a1, &unused, &unused, &unused) != 0 && (a1 & (1u << 5)) != 0) {
            isa |= MOEI_ISA_AVX512_BF16;
        }
    }
    const uint32_t amx_tile = 1u << 24;
    if ((d & amx_tile) != 0 && (xcr0 & XCR0_AMX) == XCR0_AMX &&
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) {
        isa |= (d & (1u << 22)) != 0 ? MOEI_ISA_AMX_BF16 : 0;
        isa |= (d & (1u << 25)) != 0 ? MOEI_ISA_AMX_INT8 : 0;
    }
    return isa;
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

#define HWCAP_ASIMD_BIT   (1ul << 1)
#define HWCAP_ASIMDDP_BIT (1ul << 20)

uint64_t moei_isa_detect(void)
{
    const unsigned long caps = getauxval(AT_HWCAP);
    uint64_t isa = (caps & HWCAP_ASIMD_BIT) != 0 ? MOEI_ISA_NEON : 0;
    isa |= (caps & HWCAP_ASIMDDP_BIT) != 0 ? MOEI_ISA_NEON_DOTPROD : 0;
    return isa;
}
#else
uint64_t moei_isa_detect(void)
{
    return 0;
}
#endif

int moei_isa_ceiling(const char *name, uint64_t *mask)
{
    const uint64_t avx2 = MOEI_ISA_AVX2_FMA;
    const uint64_t avx512 = avx2 | MOEI_ISA_AVX512 | MOEI_ISA_AVX512_VNNI | MOEI_ISA_AVX512_BF16;
    const struct {
        const char *name;
        uint64_t mask;
    } rows[] = {
        {"ref", 0},
        {"ref_fma", avx2},
        {"avx2", avx2},
        {"avx512", avx512},
        {"amx", avx512 | MOEI_ISA_AMX_BF16 | MOEI_ISA_AMX_INT8},
        {"neon", MOEI_ISA_NEON | MOEI_ISA_NEON_DOTPROD},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(name, rows[i].name) == 0) {
            *mask = rows[i].mask;
            return 1;
        }
    }
    return 0;
}

const char *moei_isa_text(uint64_t isa, char *buffer, size_t capacity)
{
    static const struct {
        uint64_t bit;
        const char *name;
    } rows[] = {
        {MOEI_ISA_AVX2_FMA, "AVX2+FMA+F16C"},
        {MOEI_ISA_AVX512, "AVX512"},
        {MOEI_ISA_AVX512_VNNI, "VNNI"},
        {MOEI_ISA_AVX512_BF16, "AVX512-BF16"},
        {MOEI_ISA_AMX_BF16, "AMX-BF16"},
        {MOEI_ISA_AMX_INT8, "AMX-INT8"},
        {MOEI_ISA_NEON, "NEON"},
        {MOEI_ISA_NEON_DOTPROD, "DOTPROD"},
    };
    size_t at = 0;
    (void)snprintf(buffer, capacity, "baseline");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if ((isa & rows[i].bit) != 0 && at < capacity) {
            const int n =
                snprintf(buffer + at, capacity - at, "%s%s", at > 0 ? " " : "", rows[i].name);
            at += n > 0 ? (size_t)n : 0;
        }
    }
    return buffer;
}
