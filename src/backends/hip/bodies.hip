// SPDX-License-Identifier: Apache-2.0
// The bodies of gpu/ as AMD kernels: moek_body_<name>; and a sort for what theirs has no room for.
#include "backends/gpu/combine.cuh"
#include "backends/gpu/gather.cuh"
#include "backends/gpu/ggemm.cuh"
#include "backends/gpu/glu.cuh"
#include "backends/gpu/place.cuh"
#include "backends/gpu/prologue.cuh"
#include "backends/gpu/quantize.cuh"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"
#include "backends/hip/arguments.h"
#include "backends/hip/sort_many.cuh"

#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    extern "C" __attribute__((global))                                                             \
    __attribute__((amdgpu_flat_work_group_size(1, threads))) void moek_body_##name(                \
        const moei_hip_##name##_args l)                                                            \
    {                                                                                              \
        moei_gpu_##name(&l.a);                                                                     \
    }
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY

extern "C" __attribute__((global))
__attribute__((amdgpu_flat_work_group_size(1, MOEI_HIP_SORT_MANY_THREADS))) void
moek_sort_many(const moei_hip_sort_many_args l)
{
    moei_hip_sort_many(&l.a);
}
