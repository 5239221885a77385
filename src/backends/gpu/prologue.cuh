// SPDX-License-Identifier: Apache-2.0
// prologue: route, place and sort of a few tokens by one block. What one hands to the next goes
// through memory, ordered by the barriers between them.
#ifndef MOEI_GPU_PROLOGUE_CUH
#define MOEI_GPU_PROLOGUE_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/place.cuh"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"

DEV_FN void moei_gpu_prologue(const moei_gpu_prologue_args *p)
{
    for (int64_t t = dev_warp(); t < p->route.tokens; t += dev_warps()) {
        moei_gpu_route_small(&p->route, t);
    }
    dev_sync();
    const int64_t slots = p->place.tokens * p->place.top_k;
    for (int64_t slot = dev_thread(); slot < slots; slot += dev_threads()) {
        moei_gpu_place_slot(&p->place, slot);
    }
    dev_sync();
    const moei_gpu_sort_plan plan = moei_gpu_plan_sort(
        p->sort.tokens * p->sort.top_k, p->sort.num_experts, 32 * MOEI_GPU_PROLOGUE_WARPS);
    moei_gpu_sort_block(&p->sort, &plan, dev_shared());
}

#endif
