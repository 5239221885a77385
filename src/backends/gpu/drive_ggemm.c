// SPDX-License-Identifier: Apache-2.0
// The portable grouped product on a GPU.
#include "backends/gpu/args.h"
#include "backends/gpu/drive.h"
#include "backends/gpu/plans.h"
#include "core/safemath.h"

#define MAX_BLOCKS (1 << 16) // blocks walk further tiles

// Elements of a chain of each class; 0: integers.
static int32_t chunk_of(moei_arith arith)
{
    switch (arith) {
    case MOEI_ARITH_FMA_B16:
        return 16;
    case MOEI_ARITH_FMA_B32:
        return 32;
    case MOEI_ARITH_FMA_B64:
        return 64;
    case MOEI_ARITH_FMA_B128:
        return 128;
    case MOEI_ARITH_I32:
        return 0;
    default:
        return 256;
    }
}

bool moei_gpu_ggemm_supports(const moei_host *host, const moei_kernel *kernel,
                             const moei_ggemm_problem *problem, moei_whynot *why)
{
    const moei_arith need = host->ggemm_arith(problem);
    if (need == kernel->arith) {
        return true;
    }
    *why = need == MOEI_NUM_ARITH
               ? (moei_whynot){MOEI_WHYNOT_FOLD, host->ggemm_fold(problem),
                               host->arith(kernel->arith)->chunk}
               : (moei_whynot){MOEI_WHYNOT_ARITH, (int64_t)need, (int64_t)kernel->arith};
    return false;
}

moe_status moei_gpu_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_ggemm_args *args)
{
    const moei_gpu_ggemm_args g = {
        .a = *args,
        .elem = args->w.format->elem,
        .zero_point = args->w.format->zero_point,
        .chunk = chunk_of(kernel->arith),
        .fold = kernel->arith != MOEI_ARITH_FMA_C256 && kernel->arith != MOEI_ARITH_I32,
    };
    // Rows of an expert are known to the device alone: at most one block of rows each is not full.
    const int64_t row_blocks = args->offsets != NULL
                                   ? args->rows / MOEI_GGEMM_TILE + args->w.count
                                   : moei_i64_ceil_div(args->rows, MOEI_GGEMM_TILE) * args->w.count;
    const int64_t tiles = row_blocks * moei_i64_ceil_div(args->w.n, MOEI_GGEMM_TILE);
    const moei_gpu_grid grid = {(uint32_t)moei_i64_min(tiles, MAX_BLOCKS), 256,
                                moei_gpu_ggemm_shared(args->w.count), false};
    return moei_gpu_launch(exec, MOEI_GPU_ggemm, grid, &g);
}
