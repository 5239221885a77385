// SPDX-License-Identifier: Apache-2.0
// route, place and sort over the shared bodies.
#include "backends/gpu/drive.h"
#include "backends/gpu/plans.h"

#define MAX_BLOCKS 65536 // bodies stride over what is left

// Blocks for n items, `per_block` in each.
static uint32_t blocks_for(int64_t n, int64_t per_block)
{
    const int64_t blocks = n / per_block + (n % per_block != 0);
    return (uint32_t)(blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
}

moe_status moei_gpu_route(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_route_args *args)
{
    uint32_t warps = MOEI_GPU_ROUTE_WARPS;
    uint32_t bytes = 0; // of a warp
    (void)kernel;
    if (!moei_gpu_route_in_registers(args)) {
        bytes = 4 * moei_gpu_route_words(args);
        const uint32_t room = MOEI_GPU_SHARED_PLAIN / bytes;
        warps = room < 1 ? 1 : room < warps ? room : warps;
    }
    const moei_gpu_grid grid = {blocks_for(args->tokens, warps), 32 * warps, warps * bytes};
    return moei_gpu_launch(exec, MOEI_GPU_route, grid, args);
}

moe_status moei_gpu_place(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_place_args *args)
{
    enum { THREADS = 256 };
    (void)kernel;
    const moei_gpu_grid grid = {blocks_for(args->tokens * args->top_k, THREADS), THREADS, 0};
    return moei_gpu_launch(exec, MOEI_GPU_place, grid, args);
}

moe_status moei_gpu_sort(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_sort_args *args)
{
    const moei_gpu_sort_plan plan =
        moei_gpu_plan_sort(args->tokens * args->top_k, args->num_experts, 32 * MOEI_GPU_SORT_WARPS);
    const moei_gpu_grid grid = {1, plan.threads, plan.shared};
    (void)kernel;
    return moei_gpu_launch(exec, MOEI_GPU_sort, grid, args);
}
