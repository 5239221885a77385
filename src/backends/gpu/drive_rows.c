// SPDX-License-Identifier: Apache-2.0
// glu, combine and quantize over the shared bodies. How many rows are there is known on the device
// alone: grids are sized for all, and what lies past the end returns. Nothing of libmoe is linked;
// the rules of the quantisers come with quant/rules.h.
#include "backends/gpu/args.h"
#include "backends/gpu/drive.h"
#include "backends/gpu/tiles.h"
#include "core/safemath.h"
#include "quant/rules.h"

#define MAX_BLOCKS  (1 << 20) // bodies stride over what is left
#define AMAX_BLOCKS 1024      // each ends in one atomic per warp
#define THREADS     128

static uint32_t blocks_for(int64_t tiles, int64_t most)
{
    return (uint32_t)moei_i64_min(tiles, most);
}

moe_status moei_gpu_glu(const moei_exec *exec, const moei_kernel *kernel, const moek_glu_args *args)
{
    (void)kernel;
    const moei_gpu_tiles tiles =
        moei_gpu_tiles_of(args->rows * args->batches, args->inter, MOEI_GPU_GLU_PIECE, THREADS, 1);
    const moei_gpu_grid grid = {blocks_for(tiles.count, MAX_BLOCKS), THREADS, 0, false};
    return moei_gpu_launch(exec, MOEI_GPU_glu, grid, args);
}

moe_status moei_gpu_combine(const moei_exec *exec, const moei_kernel *kernel,
                            const moek_combine_args *args)
{
    (void)kernel;
    int32_t steps;
    const moei_gpu_tiles tiles = moei_gpu_combine_tiles(args->tokens, args->width, &steps);
    const int64_t blocks = moei_i64_ceil_div(tiles.count, THREADS / 32); // a warp takes a tile
    const moei_gpu_grid grid = {blocks_for(blocks, MAX_BLOCKS), THREADS, 0, false};
    return moei_gpu_launch(exec, MOEI_GPU_combine, grid, args);
}

// ---- quantize ----------------------------------------------------------------------------------

// Groups that divide the elements of a warp, or a scale that is there before the codes.
static bool by_warp(const moek_quantize_args *a)
{
    const int32_t group = a->quant.group;
    const bool fits = group >= MOEI_GPU_QUANTIZE_PIECE && group <= 32 * MOEI_GPU_QUANTIZE_PIECE &&
                      (group & (group - 1)) == 0;
    return a->info->grain == MOEI_GRAIN_TENSOR || (a->info->grain == MOEI_GRAIN_GROUP && fits);
}

static moei_gpu_grid rows_grid(const moek_quantize_args *a, int32_t piece, uint32_t least,
                               int64_t most)
{
    const moei_gpu_tiles tiles =
        moei_gpu_tiles_of(a->rows * a->batches, a->k, piece, THREADS, least);
    return (moei_gpu_grid){blocks_for(tiles.count, most), THREADS, 0, false};
}

static moei_gpu_grid warps_grid(const moek_quantize_args *a)
{
    const moei_gpu_tiles tiles = moei_gpu_quantize_tiles(a->rows * a->batches, a->k);
    const int64_t blocks = moei_i64_ceil_div(tiles.count, THREADS / 32); // a warp takes a tile
    return (moei_gpu_grid){blocks_for(blocks, MAX_BLOCKS), THREADS, 0, false};
}

bool moei_gpu_quantizes_by_warp(const moek_quantize_args *args)
{
    return args->stage == MOEK_QUANTIZE_CODES && !moei_quantize_is_global(args->info) &&
           by_warp(args);
}

bool moei_gpu_quantizes_parts(const moek_quantize_args *args)
{
    const moei_quant_info *info = args->info;
    return moei_gpu_quantizes_by_warp(args) &&
           (info->grain == MOEI_GRAIN_TENSOR || MOEI_GPU_QUANTIZE_GROUP % args->quant.group == 0) &&
           args->batches == 1 && args->x_dtype == MOE_F32 && args->quant.elem == MOE_E4M3FN &&
           info->rounding == MOEI_ROUND_EVEN && !args->silu_mul && !args->zero_absent_scales;
}

// FP8 in groups of 128 by the rules of vLLM and DeepGEMM, and addresses that lanes may read and
// write at once.
static bool by_rows(const moek_quantize_args *a)
{
    const moei_quant_info *info = a->info;
    const moe_scale_type type = a->quant.scale_type;
    const uint64_t bytes = MOEI_GPU_QUANTIZE_GROUP / 32 * (a->x_dtype == MOE_F32 ? 4 : 2);
    const uint64_t x = (uintptr_t)a->x | (uint64_t)a->x_row_stride | (uint64_t)a->x_batch_stride;
    const uint64_t q = (uintptr_t)a->q | (uint64_t)a->q_row_stride | (uint64_t)a->q_batch_stride;
    return info->grain == MOEI_GRAIN_GROUP && a->quant.elem == MOE_E4M3FN &&
           a->quant.group == MOEI_GPU_QUANTIZE_GROUP && a->k > 0 &&
           a->k % MOEI_GPU_QUANTIZE_GROUP == 0 &&
           (info->scale == MOEI_SCALE_RECIP || info->scale == MOEI_SCALE_DIV) &&
           (info->code == MOEI_CODE_DIVIDE || info->code == MOEI_CODE_TIMES_INVERSE) &&
           (type == MOE_SCALE_F32 || type == MOE_SCALE_UE8M0_F32) && !a->silu_mul &&
           !a->zero_absent_scales && (a->x_dtype == MOE_F32 || a->x_dtype == MOE_BF16) &&
           x % bytes == 0 && q % 4 == 0 && a->x_row_stride >> 31 == 0 &&
           a->q_row_stride >> 31 == 0 &&
           a->rows * a->batches <= INT32_MAX / (a->k / MOEI_GPU_QUANTIZE_GROUP);
}

static moe_status launch_rows(const moei_exec *exec, const moei_gpu_quantize_args *args)
{
    const moek_quantize_args *a = &args->a;
    const moei_gpu_bands bands = moei_gpu_quantize_bands(a->rows, a->batches, a->k);
    const moei_gpu_quantize_rows_args rows = {*args, bands};
    const int64_t tiles = (int64_t)bands.groups * bands.bands * a->batches;
    const uint32_t blocks = (uint32_t)moei_i64_ceil_div(tiles, THREADS / 32); // a warp takes one
    const moei_gpu_grid grid = {blocks, THREADS, 0, false};
    return moei_gpu_launch(exec, MOEI_GPU_quantize_rows, grid, &rows);
}

// A block per scale, as large as its elements ask for.
static moei_gpu_grid spans_grid(const moek_quantize_args *a)
{
    const bool block = a->info->grain == MOEI_GRAIN_BLOCK;
    const int64_t rows = block ? a->info->block_rows : 1;
    const int64_t spans = a->batches * moei_i64_ceil_div(a->rows, rows) * moei_quantize_groups(a);
    const int64_t width = a->quant.group > 0 ? a->quant.group : a->k;
    const uint32_t threads = rows * width > 32 * MOEI_GPU_QUANTIZE_PIECE ? 256 : 32;
    // Two words for each of the most warps there may be: compilers read ahead in wider pieces.
    return (moei_gpu_grid){blocks_for(spans, MAX_BLOCKS), threads,
                           256 / 32 * 2 * (uint32_t)sizeof(uint32_t), false};
}

// The largest magnitude of all rows, and the scale that follows. It is gathered where the result
// will lie, which is written once it has been read: so calls without a workspace need no memory,
// and nothing has to be 0 before.
static moe_status scale_all(const moei_exec *exec, const moei_gpu_quantize_args *codes)
{
    moei_gpu_quantize_args all = *codes;
    const bool global = codes->info.scale == MOEI_SCALE_NVFP4_INVERSE;
    const moei_gpu_grid one = {1, 32, 0, false};
    all.a.amax = global ? (uint32_t *)(void *)all.a.global_scale : (uint32_t *)all.a.scales;
    all.a.stage = MOEK_QUANTIZE_AMAX;
    moe_status status = moei_gpu_launch(exec, MOEI_GPU_quantize_scale, one, &all);
    if (status == MOE_OK) {
        status =
            moei_gpu_launch(exec, MOEI_GPU_quantize_amax,
                            rows_grid(&codes->a, MOEI_GPU_QUANTIZE_PIECE, 32, AMAX_BLOCKS), &all);
    }
    all.a.stage = MOEK_QUANTIZE_SCALE;
    return status == MOE_OK ? moei_gpu_launch(exec, MOEI_GPU_quantize_scale, one, &all) : status;
}

moe_status moei_gpu_quantize(const moei_exec *exec, const moei_kernel *kernel,
                             const moek_quantize_args *args)
{
    (void)kernel;
    const moei_gpu_quantize_args a = {*args, *args->info};
    if (args->stage == MOEK_QUANTIZE_INVERSE) {
        return moei_gpu_launch(exec, MOEI_GPU_dequantize, rows_grid(args, 1, 1, MAX_BLOCKS), &a);
    }
    if (moei_quantize_is_global(args->info)) {
        const moe_status status = scale_all(exec, &a);
        if (status != MOE_OK) {
            return status;
        }
    }
    if (by_rows(args)) {
        return launch_rows(exec, &a);
    }
    return by_warp(args) ? moei_gpu_launch(exec, MOEI_GPU_quantize, warps_grid(args), &a)
                         : moei_gpu_launch(exec, MOEI_GPU_quantize_spans, spans_grid(args), &a);
}
