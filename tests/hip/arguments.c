// SPDX-License-Identifier: Apache-2.0
// Prints what the host believes of each AMD kernel: name, bytes of its argument, threads of a block
// at most. objects.py compares that with the code objects.
#include "backends/hip/arguments.h"

#include <stdio.h>

#include "backends/hip/cdna/ggemm_bf16_bf16.h"

int main(void)
{
#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    (void)printf("moek_body_" #name " %zu %d\n", sizeof(moei_hip_##name##_args), threads);
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    (void)printf("moek_sort_many %zu %d\n", sizeof(moei_hip_sort_many_args),
                 MOEI_HIP_SORT_MANY_THREADS);
    (void)printf("moek_ggemm_bf16_any_bf16__cdna %zu %d\n", sizeof(moei_hip_mfma_args),
                 MOEI_HIP_GGEMM_THREADS);
    (void)printf("moek_ggemm_bf16_any_bf16__cdna4 %zu %d\n", sizeof(moei_hip_mfma_args),
                 MOEI_HIP_GGEMM_THREADS);
    return 0;
}
