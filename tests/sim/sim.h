// SPDX-License-Identifier: Apache-2.0
// Runs device bodies (gpu/<op>.cuh over gpu/dev_sim.h) on the host. Every thread of a block is a
// fiber; blocks run one after the other, those of a cluster from one meeting to the next. Shared
// memory is exactly as large as the launch asked for and holds poison at first.
//
// Threads of a warp run one after the other between two calls at which they meet, warps between
// two barriers. MOE_SIM_ORDER says in which order: absent or 0 ascending, 1 descending (blocks,
// too), other numbers shuffle, another way in each launch. A launch with delays (moei_exec.delay)
// shuffles, as its seed says.
#ifndef MOE_TESTS_SIM_H
#define MOE_TESTS_SIM_H

#include <stdbool.h>
#include <stddef.h>

#include "backends/gpu/drive.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MOEI_SIM_MAX_CLUSTER 8 // blocks of a cluster

typedef struct moei_sim_body {
    const char *name;
    void (*run)(const void *args); // NULL: there is none
    size_t args_bytes;
    uint32_t max_threads;
} moei_sim_body;

/// One row per body of bodies.def.
extern const moei_sim_body moei_sim_bodies[MOEI_GPU_NUM_BODIES];

/// Runs a body over a grid with a copy of its arguments. Returns false and a message where a
/// device would refuse the launch or the body does what dev.h forbids. One launch at a time.
/// `delay`: 0, or the seed of its order.
bool moei_sim_launch(const moei_sim_body *body, moei_gpu_grid grid, const void *args,
                     uint32_t delay, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
