// SPDX-License-Identifier: Apache-2.0
// The bodies of gpu/ as CUDA kernels.
#include "backends/cuda/ops.h"
#include "backends/gpu/combine.cuh"
#include "backends/gpu/gather.cuh"
#include "backends/gpu/ggemm.cuh"
#include "backends/gpu/glu.cuh"
#include "backends/gpu/place.cuh"
#include "backends/gpu/prologue.cuh"
#include "backends/gpu/quantize.cuh"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"

// Bodies that have something to do before.
static constexpr bool follows_itself(moei_gpu_body body)
{
    return body == MOEI_GPU_sort || body == MOEI_GPU_prologue || body == MOEI_GPU_prologue_few ||
           body == MOEI_GPU_prologue_quantize;
}

#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    static __global__ void __launch_bounds__(threads, blocks)                                      \
        run_##name(const __grid_constant__ args a)                                                 \
    {                                                                                              \
        if (!follows_itself(MOEI_GPU_##name)) {                                                    \
            dev_follow();                                                                          \
        }                                                                                          \
        moei_gpu_##name(&a);                                                                       \
    }
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY

static const void *const bodies[MOEI_GPU_NUM_BODIES] = {
#define MOE_GPU_BODY(name, args, threads, blocks) (const void *)run_##name,
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
};

const void *moei_cuda_body(moei_gpu_body body)
{
    return bodies[body];
}
