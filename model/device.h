// SPDX-License-Identifier: Apache-2.0
/// @file device.h  A layer of a checkpoint on the CPU or on a device with memory of its own, for
/// callers whose tensors lie in host memory: weights are copied to a device once, what a run reads
/// each time, and what it writes is copied back.
#ifndef MOEM_DEVICE_H
#define MOEM_DEVICE_H

#include "moe/io.h"
#include "moe/moe.h"

/// A context of a device that shares the threads of `host`, which must outlive it. `device` UNSET
/// or CPU needs none: NULL. Errors: those of moe_context_create.
moe_status moem_device_open(const moe_context *host, moe_device_type device, moe_context **out);

/// A layer's weights with the memory that they take where they are packed. Start from {0}.
typedef struct moem_weights {
    moe_weights *weights;
    const moe_context *device; ///< whose memory it is; NULL: the host's
    void *memory;              ///< NULL where they lie in a file
    size_t bytes;
} moem_weights;

/// Packs a layer into memory of the plan's device; on the host in huge pages, where the system has
/// them.
/// @param[in]  device  of the plan; NULL: the CPU
/// @param[out] out     to be freed, also after a failure; before the plan, the layer, the context
/// Errors: those of moe_checkpoint_layer_bytes, moe_checkpoint_layer_load and moe_memory_alloc.
moe_status moem_weights_pack(const moe_context *device, const moe_checkpoint_layer *layer,
                             const moe_plan *plan, moem_weights *out);

/// Uses a layer where it lies in the checkpoint. Errors: those of moe_checkpoint_layer_load.
moe_status moem_weights_map(const moe_checkpoint_layer *layer, const moe_plan *plan,
                            moem_weights *out);

/// Takes a layer of a packed file: where it lies, or as a copy on a device with memory of its own.
/// Errors: those of moe_packed_adopt and moe_memory_alloc.
moe_status moem_weights_adopt(const moe_context *device, const moe_packed *packed, int32_t layer,
                              const moe_plan *plan, moem_weights *out);

/// Where they lie if they can, else packed.
moe_status moem_weights_load(const moe_context *device, const moe_checkpoint_layer *layer,
                             const moe_plan *plan, moem_weights *out);
void moem_weights_free(moem_weights *weights);

/// Bytes that this process may still take without pushing others out: what /proc/meminfo calls
/// available, and what the process's cgroup (version 2) has left, the pages of files that it holds
/// counted as free. UINT64_MAX where neither is known.
uint64_t moem_memory_available(void);

/// Room on a device for one run at a time: its tensors and its workspace. Start from {0}.
typedef struct moem_room {
    const moe_context *ctx;
    unsigned char *memory;
    size_t bytes, workspace_bytes;
} moem_room;

/// @param[in] most             the largest run: sizes of its views alone are read
/// @param[in] workspace_bytes  of that run, as moe_plan_workspace said
/// Errors: NO_MEMORY, DEVICE, OVERFLOW.
moe_status moem_room_create(const moe_context *ctx, const moe_run_args *most,
                            size_t workspace_bytes, moem_room *out);
void moem_room_free(moem_room *room);

/// moe_run on the room's device with host tensors; returns when the outputs are there. Outputs that
/// a run does not write whole (padding, rows past num_valid or a count) or adds to are copied to
/// the device, too. Errors: ARGUMENT (a room too small), those of moe_run and moe_memory_copy;
/// where a copy fails, outputs may have been written.
moe_status moem_room_run(const moem_room *room, const moe_plan *plan, const moe_weights *weights,
                         const moe_run_args *args);

#endif
