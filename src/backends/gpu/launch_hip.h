// SPDX-License-Identifier: Apache-2.0
// What every AMD kernel gets before the arguments of its body.
#ifndef MOEI_GPU_LAUNCH_HIP_H
#define MOEI_GPU_LAUNCH_HIP_H

#include <stdint.h>

/// The sizes of the launch: a kernel that asked the machine for them would have arguments that only
/// a runtime knows.
typedef struct moei_hip_launch {
    uint32_t threads; // of a block
    uint32_t blocks;  // of the grid
    uint32_t reserved[2];
} moei_hip_launch;

#endif
