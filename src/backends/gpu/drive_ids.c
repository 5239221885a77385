// SPDX-License-Identifier: Apache-2.0
// route, place and sort over the shared bodies.
#include "backends/gpu/args.h"
#include "backends/gpu/drive.h"
#include "backends/gpu/plans.h"

// Blocks for n items, `per_block` in each; more than any device has where they do not fit.
static uint32_t blocks_for(int64_t n, int64_t per_block)
{
    const int64_t blocks = n / per_block + (n % per_block != 0);
    return blocks < UINT32_MAX ? (uint32_t)blocks : UINT32_MAX;
}

moe_status moei_gpu_route_wide(const moei_exec *exec, const moek_route_args *args)
{
    const uint32_t bytes = 4 * moei_gpu_route_words(args);
    const uint32_t room = MOEI_GPU_SHARED_PLAIN / bytes;
    const uint32_t warps = room < 1 ? 1 : room < MOEI_GPU_ROUTE_WARPS ? room : MOEI_GPU_ROUTE_WARPS;
    const moei_gpu_grid grid = {blocks_for(args->tokens, warps), 32 * warps, warps * bytes};
    return moei_gpu_launch(exec, MOEI_GPU_route_wide, grid, args);
}

moe_status moei_gpu_route(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_route_args *args)
{
    (void)kernel;
    if (!moei_gpu_route_in_registers(args)) {
        return moei_gpu_route_wide(exec, args);
    }
    const moei_gpu_grid grid = {blocks_for(args->tokens, MOEI_GPU_ROUTE_WARPS),
                                32 * MOEI_GPU_ROUTE_WARPS, 0};
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

moe_status moei_gpu_prologue(const moei_exec *exec, const moek_route_args *route,
                             const moek_place_args *place, const moek_sort_args *sort)
{
    if (!moei_gpu_is_small(route, place, sort)) {
        moe_status status = moei_gpu_route(exec, NULL, route);
        status = status == MOE_OK ? moei_gpu_place(exec, NULL, place) : status;
        return status == MOE_OK ? moei_gpu_sort(exec, NULL, sort) : status;
    }
    const moei_gpu_prologue_args args = {*route, *place, *sort};
    const moei_gpu_sort_plan plan = moei_gpu_plan_sort(
        sort->tokens * sort->top_k, sort->num_experts, 32 * MOEI_GPU_PROLOGUE_WARPS);
    const uint32_t tokens = (uint32_t)route->tokens; // a warp each
    const uint32_t warps = tokens < MOEI_GPU_PROLOGUE_WARPS ? tokens : MOEI_GPU_PROLOGUE_WARPS;
    const uint32_t threads = 32 * warps > plan.threads ? 32 * warps : plan.threads;
    const moei_gpu_grid grid = {1, threads, plan.shared};
    return moei_gpu_launch(exec, MOEI_GPU_prologue, grid, &args);
}
