// SPDX-License-Identifier: Apache-2.0
// prologue: route, place and sort of a few tokens by the blocks of one cluster. What the first two
// hand to the third goes through memory, ordered by the barrier between them.
#ifndef MOEI_GPU_PROLOGUE_CUH
#define MOEI_GPU_PROLOGUE_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/quantize.cuh"
#include "backends/gpu/route.cuh"
#include "backends/gpu/sort.cuh"

DEV_FN void moei_gpu_prologue(const moei_gpu_prologue_args *p)
{
    const int64_t warps = (int64_t)dev_blocks() * dev_warps();
    moei_sort_prepare(&p->sort);
    dev_follow();
    for (int64_t t = moei_route_token_of_warp(); t < p->route.route.tokens; t += warps) {
        moei_gpu_route_small<0, false>(&p->route, t);
    }
    dev_sync_cluster();
    moei_sort_all(&p->sort);
}

/// The same of few slots, by one block: route leaves the keys of the sort in shared memory.
DEV_FN void moei_gpu_prologue_few(const moei_gpu_prologue_args *p)
{
    const uint32_t slots = (uint32_t)(p->sort.a.tokens * p->sort.a.top_k);
    uint32_t *keys = (uint32_t *)dev_shared();
    const int64_t tokens = p->route.route.tokens;
    int64_t t = -1; // first a rehearsal, while the launch before this one ends: code is near then
    MOEI_GPU_ROLL
    do {
        if (dev_warp() < tokens) {
            moei_gpu_route_small<0, true>(&p->route, t);
        }
        if (t < 0) {
            dev_follow();
        }
        t = t < 0 ? dev_warp() : t + dev_warps();
    } while (t < tokens);
    if (dev_thread() < moei_gpu_few_keys(slots) - slots) {
        keys[slots + dev_thread()] = moei_gpu_sort_key(-1, slots + dev_thread());
    }
    dev_sync();
    moei_sort_few(&p->sort);
}

/// The first block does that, the others quantise.
DEV_FN void moei_gpu_prologue_quantize(const moei_gpu_prologue_quantize_args *p)
{
    if (dev_block() == 0) {
        moei_gpu_prologue_few(&p->prologue);
        return;
    }
    dev_follow();
    moei_gpu_quantize_share(&p->quantize, (dev_block() - 1) * dev_warps() + dev_warp(),
                            (dev_blocks() - 1) * dev_warps());
}

#endif
