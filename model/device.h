// SPDX-License-Identifier: Apache-2.0
/// @file device.h  A layer on a device with memory of its own, for callers whose tensors lie in
/// host memory: what a run reads is copied there, what it writes is copied back.
#ifndef MOEM_DEVICE_H
#define MOEM_DEVICE_H

#include "moe/moe.h"

/// A context of a device that shares the threads of `host`, which must outlive it. `device` UNSET
/// or CPU needs none: NULL. Errors: those of moe_context_create.
moe_status moem_device_open(const moe_context *host, moe_device_type device, moe_context **out);

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

/// moe_run on the room's device with host tensors; returns when the outputs are there. Outputs are
/// copied back whole: no num_valid, no descriptor that accumulates. On failure outputs may have
/// been written. Errors: ARGUMENT (num_valid; a room too small), those of moe_run and
/// moe_memory_copy.
moe_status moem_room_run(const moem_room *room, const moe_plan *plan, const moe_weights *weights,
                         const moe_run_args *args);

#endif
