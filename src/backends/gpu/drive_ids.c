// SPDX-License-Identifier: Apache-2.0
// route, place and sort over the shared bodies.
#include "backends/gpu/args.h"
#include "backends/gpu/drive.h"
#include "backends/gpu/plans.h"
#include "backends/gpu/tiles.h"

#define QUANTIZE_BLOCKS 256 // beside the one that routes; warps stride over what is left

// Blocks for n items, `per_block` in each; more than any device has where they do not fit.
static uint32_t blocks_for(int64_t n, int64_t per_block)
{
    const int64_t blocks = n / per_block + (n % per_block != 0);
    return blocks < UINT32_MAX ? (uint32_t)blocks : UINT32_MAX;
}

static moe_status launch_wide(const moei_exec *exec, const moei_gpu_route_args *args)
{
    const uint32_t bytes = 4 * moei_gpu_route_words(&args->route);
    const uint32_t room = MOEI_GPU_SHARED_PLAIN / bytes;
    const uint32_t warps = room < 1 ? 1 : room < MOEI_GPU_ROUTE_WARPS ? room : MOEI_GPU_ROUTE_WARPS;
    const moei_gpu_grid grid = {
        .blocks = blocks_for(args->route.tokens, warps),
        .threads = 32 * warps,
        .shared = warps * bytes,
    };
    return moei_gpu_launch(exec, MOEI_GPU_route_wide, grid, args);
}

static moe_status launch_route(const moei_exec *exec, const moei_gpu_route_args *args)
{
    if (!moei_gpu_route_in_registers(&args->route)) {
        return launch_wide(exec, args);
    }
    const uint32_t warps =
        args->route.tokens <= MOEI_GPU_ROUTE_FEW ? MOEI_GPU_ROUTE_WARPS / 2 : MOEI_GPU_ROUTE_WARPS;
    const moei_gpu_grid grid = {
        .blocks = blocks_for(args->route.tokens, warps),
        .threads = 32 * warps,
    };
    const int32_t rows = moei_gpu_route_rows(&args->route);
    const bool plain = moei_gpu_route_is_plain(&args->route);
    const moei_gpu_body body = plain && rows <= 128   ? MOEI_GPU_route_plain_128
                               : plain && rows <= 256 ? MOEI_GPU_route_plain_256
                               : rows <= 64           ? MOEI_GPU_route_64
                               : rows <= 128          ? MOEI_GPU_route_128
                               : rows <= 256          ? MOEI_GPU_route_256
                                                      : MOEI_GPU_route_512;
    return moei_gpu_launch(exec, body, grid, args);
}

moe_status moei_gpu_route_wide(const moei_exec *exec, const moek_route_args *args)
{
    const moei_gpu_route_args alone = {.route = *args};
    return launch_wide(exec, &alone);
}

moe_status moei_gpu_route(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_route_args *args)
{
    const moei_gpu_route_args alone = {.route = *args};
    (void)kernel;
    return launch_route(exec, &alone);
}

moe_status moei_gpu_place(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_place_args *args)
{
    enum { THREADS = 256 };
    (void)kernel;
    const moei_gpu_grid grid = {
        .blocks = blocks_for(args->tokens * args->top_k, THREADS),
        .threads = THREADS,
    };
    return moei_gpu_launch(exec, MOEI_GPU_place, grid, args);
}

static moei_gpu_counters counters_of(const moei_gpu_counters *counters)
{
    return counters != NULL ? *counters : (moei_gpu_counters){NULL, 0};
}

moe_status moei_gpu_sort_and_clear(const moei_exec *exec, const moek_sort_args *args,
                                   const moei_gpu_counters *counters)
{
    const int64_t slots = args->tokens * args->top_k;
    if (moei_gpu_sorts_few(args)) {
        const moei_gpu_sort_args few = {*args, moei_gpu_plan_few(slots, args->num_experts),
                                        counters_of(counters)};
        const moei_gpu_grid grid = {1, few.plan.threads, few.plan.shared, false};
        return moei_gpu_launch(exec, MOEI_GPU_sort_few, grid, &few);
    }
    const uint32_t blocks =
        slots <= MOEI_GPU_SORT_ONE
            ? 1
            : moei_gpu_blocks_of_cluster(slots, MOEI_GPU_SORT_SHARE, moei_gpu_cluster_blocks(exec));
    const moei_gpu_sort_args sort = {
        *args, moei_gpu_plan_sort(slots, args->num_experts, 32 * MOEI_GPU_SORT_WARPS, blocks),
        counters_of(counters)};
    const moei_gpu_grid grid = {blocks, sort.plan.threads, sort.plan.shared, blocks > 1};
    return moei_gpu_launch(exec, MOEI_GPU_sort, grid, &sort);
}

moe_status moei_gpu_sort(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_sort_args *args)
{
    (void)kernel;
    return moei_gpu_sort_and_clear(exec, args, NULL);
}

// All three by one block, without counters; the others, where there are any, quantise.
static moe_status launch_few(const moei_exec *exec, const moei_gpu_route_args *route,
                             const moek_sort_args *sort, const moek_quantize_args *quantize,
                             const moei_gpu_counters *counters)
{
    const moei_gpu_sort_plan plan =
        moei_gpu_plan_few(sort->tokens * sort->top_k, sort->num_experts);
    const moei_gpu_prologue_args args = {*route, {*sort, plan, counters_of(counters)}};
    const uint32_t warps = // one for each token, where there are so many
        sort->tokens < MOEI_GPU_FEW_WARPS ? (uint32_t)sort->tokens : MOEI_GPU_FEW_WARPS;
    const uint32_t threads = 32 * warps > plan.threads ? 32 * warps : plan.threads;
    moei_gpu_grid grid = {1, threads, plan.shared, false};
    if (quantize == NULL) {
        return moei_gpu_launch(exec, MOEI_GPU_prologue_few, grid, &args);
    }
    const moei_gpu_prologue_quantize_args both = {args, {*quantize, *quantize->info}};
    const moei_gpu_tiles tiles =
        moei_gpu_quantize_tiles(quantize->rows * quantize->batches, quantize->k);
    const uint32_t blocks = blocks_for(tiles.count, threads / 32);
    grid.blocks += blocks < QUANTIZE_BLOCKS ? blocks : QUANTIZE_BLOCKS;
    return moei_gpu_launch(exec, MOEI_GPU_prologue_quantize, grid, &both);
}

// All three by one cluster: a warp for each token that a block has, and those of the sort.
static moe_status launch_prologue(const moei_exec *exec, const moei_gpu_route_args *route,
                                  const moek_sort_args *sort, const moei_gpu_counters *counters)
{
    const int64_t tokens = route->route.tokens;
    const uint32_t blocks =
        moei_gpu_blocks_of_cluster(tokens, MOEI_GPU_PROLOGUE_TOKENS, moei_gpu_cluster_blocks(exec));
    const moei_gpu_sort_plan plan = moei_gpu_plan_sort(
        sort->tokens * sort->top_k, sort->num_experts, 32 * MOEI_GPU_PROLOGUE_WARPS, blocks);
    const moei_gpu_prologue_args args = {*route, {*sort, plan, counters_of(counters)}};
    const uint32_t share = blocks_for(tokens, blocks);
    const uint32_t warps = share < MOEI_GPU_PROLOGUE_WARPS ? share : MOEI_GPU_PROLOGUE_WARPS;
    const uint32_t threads = 32 * warps > plan.threads ? 32 * warps : plan.threads;
    const moei_gpu_grid grid = {blocks, threads, plan.shared, blocks > 1};
    return moei_gpu_launch(exec, MOEI_GPU_prologue, grid, &args);
}

// True where one block does all three.
static bool is_few(const moei_exec *exec, const moek_route_args *route,
                   const moek_place_args *place, const moek_sort_args *sort)
{
    return moei_gpu_is_small(route, place, moei_gpu_cluster_blocks(exec)) &&
           moei_gpu_is_few(place, sort);
}

int32_t moei_gpu_prologue_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    if (count < 3 || steps[0].op != MOEI_OP_ROUTE || steps[1].op != MOEI_OP_PLACE ||
        steps[2].op != MOEI_OP_SORT) {
        return 0;
    }
    if (count == 3 || steps[3].op != MOEI_OP_QUANTIZE) {
        return 3;
    }
    // Rows of tokens, as many as routing is told of too: nothing of it waits for routing.
    const moek_route_args *route = &steps[0].args.route;
    const moek_quantize_args *quantize = &steps[3].args.quantize;
    const bool apart = quantize->counts == NULL &&
                       (quantize->total == NULL || quantize->total == route->num_valid);
    return apart && moei_gpu_quantizes_by_warp(quantize) &&
                   is_few(exec, route, &steps[1].args.place, &steps[2].args.sort)
               ? 4
               : 3;
}

moe_status moei_gpu_prologue(const moei_exec *exec, const moek_route_args *route,
                             const moek_place_args *place, const moek_sort_args *sort,
                             const moek_quantize_args *quantize, const moei_gpu_counters *counters)
{
    const moei_gpu_route_args both = {*route, *place, moei_gpu_hands_over(route, place)};
    if (is_few(exec, route, place, sort)) {
        return launch_few(exec, &both, sort, quantize, counters);
    }
    if (moei_gpu_is_small(route, place, moei_gpu_cluster_blocks(exec))) {
        return launch_prologue(exec, &both, sort, counters);
    }
    moe_status status = launch_route(exec, &both);
    if (status == MOE_OK && !both.places) {
        status = moei_gpu_place(exec, NULL, place);
    }
    return status == MOE_OK ? moei_gpu_sort_and_clear(exec, sort, counters) : status;
}
