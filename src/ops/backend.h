// SPDX-License-Identifier: Apache-2.0
// The context, and what the public calls share before they ask its backend (moe/backend.h) to run a
// kernel over a whole problem: loops over the pool on a CPU, launches on a stream on a GPU.
#ifndef MOEI_OPS_BACKEND_H
#define MOEI_OPS_BACKEND_H

#include "core/check.h"
#include "core/pool.h"
#include "core/registry.h"
#include "moe/backend.h"

struct moe_context {
    moe_allocator allocator;
    moei_pool *own_pool; // NULL with the caller's
    moe_thread_pool pool;
    moe_log_fn log;
    void *log_self;
    int num_threads;
    uint64_t isa; // of the machine, below the ceiling
    const moei_backend *backend;
    int32_t device_id;
    void *device; // what the backend's open made
    bool opened;
    uint32_t delay; // moei_exec.delay of every call; set by checks alone
    char *plugins;  // "desc.plugin_path\0$MOE_PLUGIN_PATH\0" as they were; NULL: both empty
    size_t plugins_bytes;
    const moei_kernel *op_kernel[MOEI_NUM_OPS]; // ops but ggemm have one kernel per context
};

/// Begins a public call of an op: its pointers, its stream, and a copy of its arguments.
static inline moe_status moei_op_begin(const moe_context *ctx, const void *args, void *copy,
                                       size_t known, const void *stream, const char *call)
{
    MOE_REQUIRE(ctx != NULL && args != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                ctx == NULL ? "ctx" : "args");
    MOE_REQUIRE(stream == NULL || ctx->backend->device != MOE_DEVICE_CPU, MOE_E_ARGUMENT,
                "%s: stream is given, device \"cpu\" has none; it must be NULL", call);
    return moei_struct_read(args, copy, known, call, "args");
}

/// Where a call of a context runs.
static inline moei_exec moei_exec_make(const moe_context *ctx, void *stream)
{
    return (moei_exec){.ctx = ctx,
                       .stream = stream,
                       .device_id = ctx->device_id,
                       .device = ctx->device,
                       .delay = ctx->delay};
}

/// Counts a run of a kernel, for moe_kernel_info.runs.
static inline void moei_count_run(const moe_context *ctx, const moei_kernel *kernel)
{
    (void)__atomic_fetch_add(&ctx->backend->runs[kernel - ctx->backend->kernels], 1,
                             __ATOMIC_RELAXED);
}

static inline void *moei_alloc(const moe_context *ctx, size_t bytes, size_t align)
{
    return bytes == SIZE_MAX ? NULL : ctx->allocator.alloc(ctx->allocator.self, bytes, align);
}

static inline void moei_free(const moe_context *ctx, void *memory, size_t bytes)
{
    if (memory != NULL) {
        ctx->allocator.free(ctx->allocator.self, memory, bytes);
    }
}

#endif
