// SPDX-License-Identifier: Apache-2.0
// The portable grouped product on a GPU, and the rows of x in the order of their slots.
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

// ---- gather ------------------------------------------------------------------------------------

// Bytes of a row as it is gathered: the copy engines of matrix kernels want multiples of 16.
static int64_t padded(int64_t bytes)
{
    return moei_i64_ceil_div(bytes, 16) * 16;
}

// Rows of 2-byte floats, or of codes with their scales, which are not more.
#define MAX_ROW_BYTES(k) (2 * (k) + 64)

size_t moei_gpu_gather_bytes(const moe_layer_desc *desc, int64_t num_tokens)
{
    if (desc->x_layout != MOE_X_TOKENS) {
        return 0;
    }
    const int64_t width = moei_i64_max(desc->hidden, desc->latent);
    const size_t rows =
        moei_size_mul((size_t)num_tokens, (size_t)(desc->top_k + desc->route.append_shared));
    return moei_size_mul(rows, (size_t)padded(MAX_ROW_BYTES(width)));
}

bool moei_gpu_gather(const moei_host *host, const moei_exec *exec, uint8_t *memory,
                     const moek_ggemm_args *from, moek_ggemm_args *to, moe_status *status)
{
    enum { THREADS = 256 };
    const moei_operand *x = &from->x;
    const int64_t k = from->w.k;
    const int64_t scales = x->scales == NULL || x->scale_row_stride == 0 ? 0
                           : x->group == 0                               ? 1
                           : x->packed ? moei_i64_ceil_div(k, 4 * x->group)
                                       : moei_i64_ceil_div(k, x->group);
    const int32_t scale_size = x->packed ? 4 : host->dtype_bits(x->scale_dtype) / 8;
    moei_gpu_gather_args g = {
        .a = *from,
        .rows = memory,
        .row_bytes = (int32_t)(k * host->dtype_bits(x->dtype) / 8),
        .scale_count = (int32_t)scales,
        .scale_size = scale_size,
    };
    g.pitch = padded(g.row_bytes);
    if (from->offsets == NULL || from->row_index == NULL ||
        g.pitch + scales * scale_size > padded(MAX_ROW_BYTES(k))) {
        return false;
    }
    g.scales = g.rows + from->rows * g.pitch;
    *to = *from;
    to->row_index = NULL;
    to->row_divisor = 1;
    to->x.data = g.rows;
    to->x.row_stride = g.pitch;
    if (scales > 0) {
        to->x.scales = g.scales;
        to->x.scale_row_stride = 1;
        to->x.scale_k_stride = from->rows;
    }
    const int64_t blocks = moei_i64_min(moei_i64_ceil_div(from->rows, THREADS / 32), MAX_BLOCKS);
    const moei_gpu_grid grid = {(uint32_t)blocks, THREADS, 0, false};
    *status = moei_gpu_launch(exec, MOEI_GPU_gather, grid, &g);
    return true;
}
