// SPDX-License-Identifier: Apache-2.0
// Helpers of the replays, over the public API.
#include "checkmoe/replay.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

#define ALIGN 64

struct moec_block {
    struct moec_block *next;
    void *memory;
};

static void *or_die(void *memory)
{
    if (memory == NULL) {
        (void)fprintf(stderr, "out of memory\n");
        abort();
    }
    return memory;
}

static void *aligned(size_t bytes, size_t align)
{
    const size_t size = bytes == 0 ? align : (bytes + align - 1) / align * align;
    return or_die(aligned_alloc(align, size));
}

void *moec_keep(moec_heap *heap, size_t count, size_t bytes)
{
    struct moec_block *block = or_die(malloc(sizeof *block));
    size_t size;
    if (__builtin_mul_overflow(count, bytes, &size) || size > SIZE_MAX / 2) {
        size = SIZE_MAX / 2; // no machine has it
    }
    block->memory = aligned(size, ALIGN);
    memset(block->memory, 0, size);
    block->next = heap->first;
    heap->first = block;
    return block->memory;
}

void moec_heap_free(moec_heap *heap)
{
    while (heap->first != NULL) {
        struct moec_block *block = heap->first;
        heap->first = block->next;
        free(block->memory);
        free(block);
    }
}

moe_tensor moec_new_f32(moec_heap *heap, int64_t rows, int64_t columns)
{
    void *data = moec_keep(heap, (size_t)rows, (size_t)columns * sizeof(float));
    return moe_tensor_2d(data, MOE_F32, rows, columns);
}

moe_tensor moec_new_i32(moec_heap *heap, int64_t rows, int64_t columns)
{
    void *data = moec_keep(heap, (size_t)rows, (size_t)columns * sizeof(int32_t));
    return moe_tensor_2d(data, MOE_I32, rows, columns);
}

int64_t moec_count(const moe_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++) {
        n *= t->shape[i];
    }
    return n;
}

double moec_value(const moe_tensor *t, int64_t i)
{
    const char *base = (const char *)t->data + t->byte_offset;
    const size_t at = (size_t)i * (size_t)moe_dtype_bits(t->dtype) / 8;
    float f = 0;
    double d;
    uint16_t h;
    int32_t i32;
    int64_t i64;
    switch (t->dtype) {
    case MOE_F32:
        memcpy(&f, base + at, sizeof f);
        return (double)f;
    case MOE_F64:
        memcpy(&d, base + at, sizeof d);
        return d;
    case MOE_I32:
        memcpy(&i32, base + at, sizeof i32);
        return (double)i32;
    case MOE_I64:
        memcpy(&i64, base + at, sizeof i64);
        return (double)i64;
    case MOE_BF16:
        memcpy(&h, base + at, sizeof h);
        return (double)moei_bf16_to_f32(h);
    case MOE_F16:
        memcpy(&h, base + at, sizeof h);
        return (double)moei_f16_to_f32(h);
    default:
        return (double)NAN;
    }
}

moe_tensor moec_widen(moec_heap *heap, const moe_tensor *t)
{
    const int64_t n = moec_count(t);
    float *out = moec_keep(heap, (size_t)n, sizeof *out);
    for (int64_t i = 0; i < n; i++) {
        out[i] = (float)moec_value(t, i);
    }
    return moe_tensor_make(out, MOE_F32, t->ndim, t->shape);
}

double moec_std(const moe_tensor *t)
{
    const int64_t n = moec_count(t);
    double mean = 0;
    double square = 0;
    for (int64_t i = 0; i < n; i++) {
        mean += moec_value(t, i) / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        const double d = moec_value(t, i) - mean;
        square += d * d / (double)n;
    }
    return sqrt(square);
}

moe_format moec_float_format(moe_dtype dtype)
{
    return dtype == MOE_F32    ? MOE_FORMAT_F32
           : dtype == MOE_BF16 ? MOE_FORMAT_BF16
           : dtype == MOE_F16  ? MOE_FORMAT_F16
                               : MOE_FORMAT_UNSET;
}

moe_tensor moec_with_ndim(const moe_tensor *t, int32_t ndim)
{
    moe_tensor r = *t;
    while (r.ndim < ndim && r.ndim < MOE_MAX_DIMS) {
        for (int32_t i = r.ndim; i > 0; i--) {
            r.shape[i] = r.shape[i - 1];
            r.stride[i] = r.stride[i - 1];
        }
        r.shape[0] = 1;
        r.stride[0] = r.ndim > 0 ? r.shape[1] * r.stride[1] : 1;
        r.ndim++;
    }
    while (r.ndim > ndim && r.shape[0] == 1) {
        r.ndim--;
        for (int32_t i = 0; i < r.ndim; i++) {
            r.shape[i] = r.shape[i + 1];
            r.stride[i] = r.stride[i + 1];
        }
    }
    return r;
}

moe_status moec_linear_map(const moe_context *ctx, moec_heap *heap, const moe_tensor *weight,
                           const moe_tensor *bias, const moe_tensor *x, moe_tensor *y)
{
    moe_ggemm_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.gemm.weight_format = moec_float_format(weight->dtype);
    args.weights.values = moec_with_ndim(weight, 3);
    if (bias != NULL && bias->data != NULL) {
        args.gemm.bias = 1;
        args.weights.bias = moec_with_ndim(bias, 2);
    }
    args.x = *x;
    const int64_t rows = x->shape[0];
    const int64_t outputs = args.weights.values.shape[1];
    *y = moec_new_f32(heap, rows, outputs);
    args.y = *y;
    return moe_ggemm(ctx, &args, NULL);
}

static moe_status take_workspace(moec_replay *layer, int64_t max_tokens)
{
    size_t align = 0;
    MOE_TRY(moe_plan_workspace(layer->plan, max_tokens, &layer->workspace_bytes, &align));
    return moe_memory_alloc(layer->ctx, layer->workspace_bytes, &layer->workspace);
}

// What failed is undone.
static moe_status finish(moec_replay *layer, moe_status status, moec_replay *out)
{
    if (status == MOE_OK) {
        *out = *layer;
    } else {
        moec_replay_free(layer);
    }
    return status;
}

static moe_status wrap(moec_replay *layer, const moe_weights_source *source)
{
    moe_weights_source twins = *source;
    moec_twins_add_source(&layer->wrapped, source);
    MOE_TRY(moec_twins_up(&layer->wrapped, 0xFF));
    moec_twins_source(&layer->wrapped, &twins);
    return moe_weights_wrap(layer->plan, &twins, &layer->weights);
}

static moe_status pack(moec_replay *layer, const moe_weights_source *source)
{
    size_t align = 0;
    MOE_TRY(moe_weights_bytes(layer->plan, &layer->memory_bytes, &align));
    MOE_TRY(moe_memory_alloc(layer->ctx, layer->memory_bytes, &layer->memory));
    MOE_TRY(moe_weights_create(layer->plan, layer->memory, layer->memory_bytes, &layer->weights));
    return moe_weights_pack(layer->weights, 0, source);
}

moe_status moec_replay_make(moe_context *ctx, const moe_layer_desc *desc,
                            const moe_weights_source *source, int use_in_place, moec_replay *out)
{
    moec_replay layer = {.ctx = ctx};
    moec_twins_begin(&layer.wrapped, ctx);
    moe_status status = moe_plan_create(ctx, desc, &layer.plan);
    if (status == MOE_OK) {
        status = use_in_place ? wrap(&layer, source) : pack(&layer, source);
    }
    if (status == MOE_OK) {
        status = take_workspace(&layer, desc->max_tokens);
    }
    return finish(&layer, status, out);
}

static moe_status load(moec_replay *layer, const moe_checkpoint_layer *source)
{
    size_t align = 0;
    int wraps = 0;
    MOE_TRY(moe_checkpoint_layer_wraps(source, layer->plan, &wraps));
    if (wraps == 0) {
        MOE_TRY(moe_checkpoint_layer_bytes(source, layer->plan, &layer->memory_bytes, &align));
        MOE_TRY(moe_memory_alloc(layer->ctx, layer->memory_bytes, &layer->memory));
    }
    return moe_checkpoint_layer_load(source, layer->plan, layer->memory, layer->memory_bytes,
                                     &layer->weights);
}

moe_status moec_replay_load(moe_context *ctx, const moe_layer_desc *desc,
                            const moe_checkpoint_layer *source, moec_replay *out)
{
    moec_replay layer = {.ctx = ctx};
    moe_status status = moe_plan_create(ctx, desc, &layer.plan);
    if (status == MOE_OK) {
        status = load(&layer, source);
    }
    if (status == MOE_OK) {
        status = take_workspace(&layer, desc->max_tokens);
    }
    return finish(&layer, status, out);
}

void moec_replay_free(moec_replay *layer)
{
    moe_weights_destroy(layer->weights);
    moe_plan_destroy(layer->plan);
    moec_twins_end(&layer->wrapped);
    if (layer->ctx != NULL) {
        moe_memory_free(layer->ctx, layer->memory, layer->memory_bytes);
        moe_memory_free(layer->ctx, layer->workspace, layer->workspace_bytes);
    }
    memset(layer, 0, sizeof *layer);
}

static moe_status run_on_twins(const moec_replay *layer, moec_twins *twins,
                               const moe_run_args *args)
{
    char wrong[200] = "";
    moe_run_args a = *args;
    moec_twins_add_run_args(twins, args);
    MOE_TRY(moec_twins_up(twins, 0xFF));
    moec_twins_run_args(twins, &a);
    MOE_TRY(
        moe_run(layer->plan, layer->weights, &a, layer->workspace, layer->workspace_bytes, NULL));
    MOE_REQUIRE(moec_twins_down(twins, wrong, sizeof wrong), MOE_E_DEVICE, "%s", wrong);
    return MOE_OK;
}

moe_status moec_replay_run(const moec_replay *layer, const moe_run_args *args)
{
    moec_twins twins;
    moec_twins_begin(&twins, layer->ctx);
    const moe_status status = run_on_twins(layer, &twins, args);
    moec_twins_end(&twins);
    return status;
}
