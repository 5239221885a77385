// SPDX-License-Identifier: Apache-2.0
// The code objects, as the build leaves them beside the plugin.
#include "backends/hip/runtime.h"

// The assembler finds the files where the build tells it to look.
#define OBJECT(source, arch)                                                                       \
    __asm__(".pushsection .rodata\n"                                                               \
            ".balign 4096\n"                                                                       \
            ".hidden moei_hip_" #source "_" #arch "\n"                                             \
            ".globl moei_hip_" #source "_" #arch "\n"                                              \
            "moei_hip_" #source "_" #arch ":\n"                                                    \
            ".incbin \"" #source "." #arch ".hsaco\"\n"                                            \
            ".popsection\n");                                                                      \
    __attribute__((visibility("hidden"))) extern const unsigned char moei_hip_##source##_##arch[]
OBJECT(bodies, gfx942);
OBJECT(bodies, gfx950);
OBJECT(ggemm_bf16_bf16, gfx942);
OBJECT(ggemm_bf16_bf16, gfx950);

const moei_hip_arch moei_hip_archs[MOEI_HIP_NUM_ARCHS] = {
    {"gfx942", MOEI_HIP_CDNA3, {moei_hip_bodies_gfx942, moei_hip_ggemm_bf16_bf16_gfx942}},
    {"gfx950",
     MOEI_HIP_CDNA3 | MOEI_HIP_CDNA4,
     {moei_hip_bodies_gfx950, moei_hip_ggemm_bf16_bf16_gfx950}},
};
