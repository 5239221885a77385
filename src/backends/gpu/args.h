// SPDX-License-Identifier: Apache-2.0
// Arguments of the shared bodies where an op's own do not suffice: rows of host tables that they
// point to, how the work is divided, several ops at once.
#ifndef MOEI_GPU_ARGS_H
#define MOEI_GPU_ARGS_H

#include "backends/gpu/plans.h"
#include "backends/gpu/tiles.h"
#include "moe/backend.h"

typedef struct moei_gpu_quantize_args {
    moek_quantize_args a;
    moei_quant_info info; // what a.info points to on the host
} moei_gpu_quantize_args;

typedef struct moei_gpu_quantize_rows_args {
    moei_gpu_quantize_args quantize;
    moei_gpu_bands bands;
} moei_gpu_quantize_rows_args;

typedef struct moei_gpu_route_args {
    moek_route_args route;
    moek_place_args place; // where places: of the slots that route stores
    bool places;
} moei_gpu_route_args;

/// Counters by which a later launch of the run joins its blocks. Sort sets them to 0: it runs
/// alone.
typedef struct moei_gpu_counters {
    int32_t *first; // NULL: there are none
    uint32_t count;
} moei_gpu_counters;

typedef struct moei_gpu_sort_args {
    moek_sort_args a;
    moei_gpu_sort_plan plan;
    moei_gpu_counters counters;
} moei_gpu_sort_args;

typedef struct moei_gpu_prologue_args {
    moei_gpu_route_args route;
    moei_gpu_sort_args sort;
} moei_gpu_prologue_args;

typedef struct moei_gpu_prologue_quantize_args {
    moei_gpu_prologue_args prologue;
    moei_gpu_quantize_args quantize;
} moei_gpu_prologue_quantize_args;

typedef struct moei_gpu_ggemm_args {
    moek_ggemm_args a;
    moe_dtype elem;     // of a.w.format
    int32_t zero_point; // of a.w.format
    int32_t chunk;      // elements of k per chain; 0: integers, summed exactly
    int32_t fold;       // 1: a chain's sum is scaled before it is added
} moei_gpu_ggemm_args;

/// Copies rows of a.x, and their scales, to `rows` and `scales`.
typedef struct moei_gpu_gather_args {
    moek_ggemm_args a;
    uint8_t *rows; // [a.rows], `pitch` bytes apart
    int64_t pitch;
    int32_t row_bytes;
    uint8_t *scales;     // [scale_count][a.rows]
    int32_t scale_count; // of a row; 0: they are not copied
    int32_t scale_size;  // bytes of what a.x.scale_row_stride counts, 1, 2 or 4
} moei_gpu_gather_args;

#endif
