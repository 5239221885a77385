// SPDX-License-Identifier: Apache-2.0
// The one argument of each kernel of bodies.hip, as device and host see it.
#ifndef MOEI_HIP_ARGUMENTS_H
#define MOEI_HIP_ARGUMENTS_H

#include "backends/gpu/args.h"
#include "backends/gpu/launch_hip.h"

#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    typedef struct moei_hip_##name##_args {                                                        \
        moei_hip_launch launch;                                                                    \
        args a;                                                                                    \
    } moei_hip_##name##_args;
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY

#define MOEI_HIP_SORT_MANY_THREADS 512

typedef struct moei_hip_sort_many_args {
    moei_hip_launch launch;
    moek_sort_args a;
} moei_hip_sort_many_args;

#endif
