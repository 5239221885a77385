// SPDX-License-Identifier: Apache-2.0
/// @file replay.h  What replaying recorded layers needs: memory of a case, tensors widened to f32,
/// linear maps and layers through the public API.
#ifndef MOEC_REPLAY_H
#define MOEC_REPLAY_H

#include <stddef.h>

#include "checkmoe/twins.h"
#include "moe/io.h"
#include "moe/moe.h"

/// Memory that lives as long as a case; zero-initialise, free with moec_heap_free.
typedef struct moec_heap {
    struct moec_block *first;
} moec_heap;

/// Zeroed memory aligned to 64 bytes; aborts the program when there is none (tests only).
void *moec_keep(moec_heap *heap, size_t count, size_t bytes);
void moec_heap_free(moec_heap *heap);

/// New zeroed [rows, columns] tensors from the heap.
moe_tensor moec_new_f32(moec_heap *heap, int64_t rows, int64_t columns);
moe_tensor moec_new_i32(moec_heap *heap, int64_t rows, int64_t columns);

/// Elements of a tensor.
int64_t moec_count(const moe_tensor *t);

/// The elements of a compact f32, bf16, f16, f64, i32, i64 tensor as doubles: element i.
double moec_value(const moe_tensor *t, int64_t i);

/// A compact f32 copy with the same shape, row-major, from the heap.
moe_tensor moec_widen(moec_heap *heap, const moe_tensor *t);

/// Standard deviation over all elements (population).
double moec_std(const moe_tensor *t);

/// The format of unquantised weights of a dtype: F32, BF16, F16, else UNSET.
moe_format moec_float_format(moe_dtype dtype);

/// The same memory seen as [1, ...] or without its leading dimensions of 1, down to `ndim`.
moe_tensor moec_with_ndim(const moe_tensor *t, int32_t ndim);

/// y[T, N] = x[T, K] W[N, K]^T (+ bias [N]) in f32 by moe_ggemm; y comes from the heap.
/// @param[in] bias  NULL or absent: none
moe_status moec_linear_map(const moe_context *ctx, moec_heap *heap, const moe_tensor *weight,
                           const moe_tensor *bias, const moe_tensor *x, moe_tensor *y);

/// A plan with weights and workspace, on the context's device.
typedef struct moec_replay {
    const moe_context *ctx;
    moe_plan *plan;
    moe_weights *weights;
    void *memory, *workspace;
    size_t memory_bytes, workspace_bytes;
    moec_twins wrapped; // of tensors that are used in place
} moec_replay;

/// Plans, and packs (or with `wrap` uses in place) the weights. On failure nothing is left.
moe_status moec_replay_make(moe_context *ctx, const moe_layer_desc *desc,
                            const moe_weights_source *source, int wrap, moec_replay *out);

/// The same with a checkpoint's layer, in place where it can be.
moe_status moec_replay_load(moe_context *ctx, const moe_layer_desc *desc,
                            const moe_checkpoint_layer *source, moec_replay *out);
void moec_replay_free(moec_replay *layer);

/// moe_run in the layer's workspace; the views are of host memory.
moe_status moec_replay_run(const moec_replay *layer, const moe_run_args *args);

#endif
