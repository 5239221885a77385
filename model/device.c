// SPDX-License-Identifier: Apache-2.0
#include "model/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/check.h"
#include "model/decoder.h"

#define ALIGN 256 // what moe_memory_alloc gives, tensors and workspace alike

// The views of moe_run_args in their order: what a run reads, then from `out` on what it writes.
#define VIEW(name) ((offsetof(moe_run_args, name) - offsetof(moe_run_args, x)) / sizeof(moe_tensor))
#define NUM_VIEWS  ((sizeof(moe_run_args) - offsetof(moe_run_args, x)) / sizeof(moe_tensor))

static moe_tensor *view(moe_run_args *args, size_t i)
{
    return (moe_tensor *)(void *)((unsigned char *)args + offsetof(moe_run_args, x)) + i;
}

static bool is_written(size_t i)
{
    return i >= VIEW(out);
}

// Bytes from the first element of a view to its last. Sizes of host memory that is there do not
// overflow.
static size_t bytes_of(const moe_tensor *t)
{
    int64_t elements = 1;
    if (t->data == NULL) {
        return 0;
    }
    for (int32_t d = 0; d < t->ndim; d++) {
        if (t->shape[d] == 0) {
            return 0;
        }
        elements += (t->shape[d] - 1) * t->stride[d];
    }
    return ((size_t)elements * (size_t)moe_dtype_bits(t->dtype) + 7) / 8;
}

static bool is_compact(const moe_tensor *t)
{
    int64_t step = 1;
    for (int32_t d = t->ndim; t->data != NULL && d-- > 0;) {
        if (t->stride[d] != step && t->shape[d] > 1) {
            return false;
        }
        step *= t->shape[d];
    }
    return true;
}

// Whether a run writes every byte of its outputs, so that nothing of what they hold must be kept.
static bool writes_whole(const moe_layer_desc *desc, moe_run_args *args)
{
    for (size_t i = VIEW(out); i < NUM_VIEWS; i++) {
        if (!is_compact(view(args, i))) {
            return false;
        }
    }
    return desc->x_layout == MOE_X_TOKENS && desc->accumulate == 0 && args->num_valid.data == NULL;
}

// Where view i lies in the room, each at a multiple of ALIGN; returns where the workspace begins.
static size_t place(moe_run_args *args, size_t at[NUM_VIEWS])
{
    size_t end = 0;
    for (size_t i = 0; i < NUM_VIEWS; i++) {
        at[i] = end;
        end += (bytes_of(view(args, i)) + ALIGN - 1) / ALIGN * ALIGN;
    }
    return end;
}

moe_status moem_device_open(const moe_context *host, moe_device_type device, moe_context **out)
{
    *out = NULL;
    if (device == MOE_DEVICE_UNSET || device == MOE_DEVICE_CPU) {
        return MOE_OK;
    }
    const moe_thread_pool pool = moe_context_pool(host);
    moe_context_desc desc = moe_context_desc_default();
    desc.device = device;
    desc.pool = &pool;
    return moe_context_create(&desc, out);
}

static moe_status take_memory(const moe_context *device, size_t align, moem_weights *out)
{
    out->device = device;
    if (device != NULL) {
        return moe_memory_alloc(device, out->bytes, &out->memory);
    }
    out->memory = moem_allocate(out->bytes, align);
    MOEM_REQUIRE(out->memory != NULL, MOE_E_NO_MEMORY, "no memory for %zu bytes of weights",
                 out->bytes);
    return MOE_OK;
}

moe_status moem_weights_pack(const moe_context *device, const moe_checkpoint_layer *layer,
                             const moe_plan *plan, moem_weights *out)
{
    size_t align = 0;
    MOEM_TRY(moe_checkpoint_layer_bytes(layer, plan, &out->bytes, &align));
    MOEM_TRY(take_memory(device, align, out));
    return moe_checkpoint_layer_load(layer, plan, out->memory, out->bytes, &out->weights);
}

moe_status moem_weights_map(const moe_checkpoint_layer *layer, const moe_plan *plan,
                            moem_weights *out)
{
    return moe_checkpoint_layer_load(layer, plan, NULL, 0, &out->weights);
}

moe_status moem_weights_load(const moe_context *device, const moe_checkpoint_layer *layer,
                             const moe_plan *plan, moem_weights *out)
{
    int wraps = 0;
    MOEM_TRY(moe_checkpoint_layer_wraps(layer, plan, &wraps));
    return wraps != 0 ? moem_weights_map(layer, plan, out)
                      : moem_weights_pack(device, layer, plan, out);
}

static moe_status find_part(const moe_packed *packed, int32_t layer, moe_packed_part *out)
{
    for (size_t i = 0; i < moe_packed_count(packed); i++) {
        MOEM_TRY(moe_packed_part_at(packed, i, out));
        if (out->layer == layer) {
            return MOE_OK;
        }
    }
    return moe_packed_verify(packed, layer); // says that it is not there
}

moe_status moem_weights_adopt(const moe_context *device, const moe_packed *packed, int32_t layer,
                              const moe_plan *plan, moem_weights *out)
{
    moe_packed_part part;
    if (device == NULL || moe_context_host_memory(device) != 0) {
        return moe_packed_adopt(packed, layer, plan, &out->weights);
    }
    MOEM_TRY(moe_packed_verify(packed, layer));
    MOEM_TRY(find_part(packed, layer, &part));
    out->bytes = part.bytes;
    MOEM_TRY(take_memory(device, ALIGN, out));
    MOEM_TRY(moe_memory_copy(device, out->memory, part.data, part.bytes, MOE_COPY_TO_DEVICE, NULL));
    return moe_weights_adopt(plan, out->memory, part.bytes, part.layout, &out->weights);
}

void moem_weights_free(moem_weights *w)
{
    moe_weights_destroy(w->weights);
    if (w->device != NULL) {
        moe_memory_free(w->device, w->memory, w->bytes);
    } else {
        free(w->memory);
    }
    *w = (moem_weights){.weights = NULL};
}

moe_status moem_room_create(const moe_context *ctx, const moe_run_args *most,
                            size_t workspace_bytes, moem_room *out)
{
    size_t at[NUM_VIEWS];
    moe_run_args args = *most;
    const size_t tensors = place(&args, at);
    MOEM_REQUIRE(workspace_bytes <= SIZE_MAX - tensors, MOE_E_OVERFLOW,
                 "a run on the device: %zu bytes of tensors, %zu of workspace", tensors,
                 workspace_bytes);
    void *memory = NULL;
    MOEM_TRY(moe_memory_alloc(ctx, tensors + workspace_bytes, &memory));
    *out = (moem_room){ctx, memory, tensors + workspace_bytes, workspace_bytes};
    return MOE_OK;
}

void moem_room_free(moem_room *room)
{
    if (room->memory != NULL) {
        moe_memory_free(room->ctx, room->memory, room->bytes);
    }
    *room = (moem_room){.memory = NULL};
}

moe_status moem_room_run(const moem_room *room, const moe_plan *plan, const moe_weights *weights,
                         const moe_run_args *args)
{
    moe_layer_desc desc = moe_layer_desc_default();
    size_t at[NUM_VIEWS];
    moe_run_args there = *args;
    const size_t tensors = place(&there, at);
    MOEM_REQUIRE(tensors <= room->bytes - room->workspace_bytes, MOE_E_ARGUMENT,
                 "a run on the device: %zu bytes of tensors, room for %zu", tensors,
                 room->bytes - room->workspace_bytes);
    MOEM_TRY(moe_plan_desc(plan, &desc));
    const bool whole = writes_whole(&desc, &there);
    for (size_t i = 0; i < NUM_VIEWS; i++) {
        moe_tensor *t = view(&there, i);
        if (t->data == NULL) {
            continue;
        }
        if (!is_written(i) || i == VIEW(load) || !whole) {
            MOEM_TRY(moe_memory_copy(room->ctx, room->memory + at[i],
                                     (const char *)t->data + t->byte_offset, bytes_of(t),
                                     MOE_COPY_TO_DEVICE, NULL));
        }
        t->data = room->memory + at[i];
        t->byte_offset = 0;
        t->device = MOE_DEVICE_UNSET;
    }
    MOEM_TRY(moe_run(plan, weights, &there, room->memory + tensors, room->workspace_bytes, NULL));
    moe_run_args back = *args;
    for (size_t i = 0; i < NUM_VIEWS; i++) {
        const moe_tensor *to = view(&back, i);
        if (to->data != NULL && is_written(i)) {
            MOEM_TRY(moe_memory_copy(room->ctx, (char *)to->data + to->byte_offset,
                                     room->memory + at[i], bytes_of(to), MOE_COPY_FROM_DEVICE,
                                     NULL));
        }
    }
    return MOE_OK;
}
