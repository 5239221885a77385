// SPDX-License-Identifier: Apache-2.0
// Prints what the host believes of each AMD kernel: name, bytes of its argument, threads of a block
// at most, its architecture. objects.py compares that with the code objects.
#include "backends/hip/arguments.h"

#include <stdio.h>

#include "backends/hip/mfma.h"
#include "backends/hip/probe.h"

int main(void)
{
#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    (void)printf("moek_body_" #name " %zu %d ANY\n", sizeof(moei_hip_##name##_args), threads);
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    (void)printf("moek_sort_many %zu %d ANY\n", sizeof(moei_hip_sort_many_args),
                 MOEI_HIP_SORT_MANY_THREADS);
#define ARCH_ANY   "ANY"
#define ARCH_CDNA3 "gfx942"
#define ARCH_CDNA4 "gfx950"
#define MOE_HIP_MFMA(id, name, source, isa, ...)                                                   \
    (void)printf(#name " %zu %d %s\n", sizeof(moei_hip_mfma_args), MOEI_HIP_MFMA_THREADS,          \
                 ARCH_##isa);
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA
#define PROBE(name, arch)                                                                          \
    (void)printf("moek_probe_" name " %zu %d %s\n", sizeof(moei_hip_probe_args),                   \
                 MOEI_HIP_PROBE_THREADS, arch)
    PROBE("arithmetic", "ANY");
#define MOE_HIP_PROBE_MATRIX(name, isa, ...) PROBE("matrix_" #name, ARCH_##isa);
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_MATRIX
#define MOE_HIP_PROBE_CODES(name, code) PROBE("codes_" #name, "ANY");
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_CODES
    return 0;
}
