// SPDX-License-Identifier: Apache-2.0
// The ops of a GPU backend over the shared bodies: each chooses its grids and launches. Compiled
// into every GPU plugin, which implements moei_gpu_launch.
#ifndef MOEI_GPU_DRIVE_H
#define MOEI_GPU_DRIVE_H

#include "moe/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

struct moei_gpu_counters;

typedef enum moei_gpu_body {
#define MOE_GPU_BODY(name, args, threads, blocks) MOEI_GPU_##name,
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    MOEI_GPU_NUM_BODIES
} moei_gpu_body;

typedef struct moei_gpu_grid {
    uint32_t blocks;  // 0: nothing is launched
    uint32_t threads; // a multiple of 32
    uint32_t shared;  // bytes of shared memory
    bool cluster;     // the blocks are one cluster; moei_gpu_cluster_blocks at most
} moei_gpu_grid;

/// Enqueues a body with its arguments, which are copied. DEVICE where the launch fails.
moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args);

/// Blocks of a cluster at most, a power of two up to MOEI_GPU_CLUSTER: they run side by side, wait
/// for each other and read each other's shared memory. 1 where the device has no clusters.
uint32_t moei_gpu_cluster_blocks(const moei_exec *exec);

// As the members of moei_backend; their rows are the shared bodies.
moe_status moei_gpu_route(const moei_exec *, const moei_kernel *, const moek_route_args *);
moe_status moei_gpu_place(const moei_exec *, const moei_kernel *, const moek_place_args *);
moe_status moei_gpu_sort(const moei_exec *, const moei_kernel *, const moek_sort_args *);

/// The same, and counters of a later launch become 0; NULL: none.
moe_status moei_gpu_sort_and_clear(const moei_exec *, const moek_sort_args *,
                                   const struct moei_gpu_counters *counters);

/// route by the body that does not need a token to fit into registers; moei_gpu_route takes it
/// where it must.
moe_status moei_gpu_route_wide(const moei_exec *, const moek_route_args *);

/// route, place and sort: one launch where they are small, else two where place reads what route
/// stores.
/// @param quantize  in the same launch, where moei_gpu_prologue_steps counts it; NULL: none
/// @param counters  of a later launch, which become 0; NULL: none
moe_status moei_gpu_prologue(const moei_exec *, const moek_route_args *, const moek_place_args *,
                             const moek_sort_args *, const moek_quantize_args *quantize,
                             const struct moei_gpu_counters *counters);

/// How many steps at the beginning of a list moei_gpu_prologue takes: 3, 4 with a quantize, or 0.
int32_t moei_gpu_prologue_steps(const moei_exec *, const moei_step *steps, int32_t count);

moe_status moei_gpu_quantize(const moei_exec *, const moei_kernel *, const moek_quantize_args *);

/// True where quantize is one launch of warps that share nothing: any others may do it.
bool moei_gpu_quantizes_by_warp(const moek_quantize_args *);

/// True where a product that writes the rows may quantise them, 128 columns at a time.
bool moei_gpu_quantizes_parts(const moek_quantize_args *);

moe_status moei_gpu_ggemm(const moei_exec *, const moei_kernel *, const moek_ggemm_args *);
moe_status moei_gpu_glu(const moei_exec *, const moei_kernel *, const moek_glu_args *);
moe_status moei_gpu_combine(const moei_exec *, const moei_kernel *, const moek_combine_args *);

/// As moei_kernel.supports, of a row of moei_gpu_ggemm: it takes any element types; what tells such
/// rows apart is the arithmetic.
bool moei_gpu_ggemm_supports(const moei_host *host, const moei_kernel *kernel,
                             const moei_ggemm_problem *problem, moei_whynot *why);

/// Scratch memory that moei_gpu_gather may need in a run.
size_t moei_gpu_gather_bytes(const moe_layer_desc *desc, int64_t num_tokens);

/// Enqueues a copy of the rows of a product's x, in the order of their slots, to `memory`; `to` is
/// the product on the copy. False where rows are too long: nothing is done.
bool moei_gpu_gather(const moei_host *host, const moei_exec *exec, uint8_t *memory,
                     const moek_ggemm_args *from, moek_ggemm_args *to, moe_status *status);

#ifdef __cplusplus
}
#endif
#endif
