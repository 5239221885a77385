// SPDX-License-Identifier: Apache-2.0
// prologue: route, place and sort of a few tokens by the blocks of one cluster. What the first two
// hand to the third goes through memory, ordered by the barrier between them.
#ifndef MOEI_GPU_PROLOGUE_CUH
#define MOEI_GPU_PROLOGUE_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"

DEV_FN void moei_gpu_prologue(const moei_gpu_prologue_args *p)
{
    const int64_t warps = (int64_t)dev_blocks() * dev_warps();
    for (int64_t t = moei_route_token_of_warp(); t < p->route.route.tokens; t += warps) {
        moei_gpu_route_small(&p->route, t);
    }
    dev_sync_cluster();
    moei_gpu_sort(&p->sort);
}

#endif
