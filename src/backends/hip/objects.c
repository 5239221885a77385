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
#define MOE_HIP_SOURCE(id, name)                                                                   \
    OBJECT(name, gfx942);                                                                          \
    OBJECT(name, gfx950);
#include "backends/hip/sources.def"
#undef MOE_HIP_SOURCE

const moei_hip_arch moei_hip_archs[MOEI_HIP_NUM_ARCHS] = {
#define MOE_HIP_SOURCE(id, name) moei_hip_##name##_gfx942,
    {"gfx942",
     MOEI_HIP_ANY | MOEI_HIP_CDNA3,
     {
#include "backends/hip/sources.def"
     }},
#undef MOE_HIP_SOURCE
#define MOE_HIP_SOURCE(id, name) moei_hip_##name##_gfx950,
    {"gfx950",
     MOEI_HIP_ANY | MOEI_HIP_CDNA4,
     {
#include "backends/hip/sources.def"
     }},
#undef MOE_HIP_SOURCE
};
