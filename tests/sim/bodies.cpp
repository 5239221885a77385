// SPDX-License-Identifier: Apache-2.0
// The device bodies, compiled for the host.
#include "backends/gpu/combine.cuh"
#include "backends/gpu/gather.cuh"
#include "backends/gpu/ggemm.cuh"
#include "backends/gpu/glu.cuh"
#include "backends/gpu/place.cuh"
#include "backends/gpu/prologue.cuh"
#include "backends/gpu/quantize.cuh"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"
#include "sim/sim.h"

#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    static void run_##name(const void *a)                                                          \
    {                                                                                              \
        moei_gpu_##name((const args *)a);                                                          \
    }
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY

const moei_sim_body moei_sim_bodies[MOEI_GPU_NUM_BODIES] = {
#define MOE_GPU_BODY(name, args, threads, blocks) {#name, run_##name, sizeof(args), threads},
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
};
