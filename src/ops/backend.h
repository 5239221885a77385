// SPDX-License-Identifier: Apache-2.0
// What the layer asks of a backend: a table of kernels, and one function per op that runs a kernel
// over a whole problem (loops over the pool on a CPU, launches on a stream on a GPU).
#ifndef MOEI_OPS_BACKEND_H
#define MOEI_OPS_BACKEND_H

#include <stdatomic.h>

#include "core/check.h"
#include "core/pool.h"
#include "core/registry.h"

struct moek_route_args;
struct moek_place_args;
struct moek_sort_args;
struct moek_quantize_args;
struct moek_ggemm_args;
struct moek_glu_args;
struct moek_combine_args;

/// Where a call runs: threads and stream.
typedef struct moei_exec {
    const moe_context *ctx;
    void *stream;
} moei_exec;

typedef struct moei_backend {
    const char *name;
    moe_device_type device;
    const moei_kernel *kernels;
    size_t num_kernels;
    atomic_ullong *runs; // one per kernel: how often it ran, for `moe info` and tests

    /// True if the backend can work in this process; fills the ISA bits and a line of text either
    /// way.
    bool (*probe)(uint64_t *isa, char *text, size_t capacity);

    // All arguments have been checked; errors are the device's alone.
    moe_status (*route)(const moei_exec *, const moei_kernel *, const struct moek_route_args *);
    moe_status (*place)(const moei_exec *, const moei_kernel *, const struct moek_place_args *);
    moe_status (*sort)(const moei_exec *, const moei_kernel *, const struct moek_sort_args *);
    moe_status (*quantize)(const moei_exec *, const moei_kernel *,
                           const struct moek_quantize_args *);
    moe_status (*ggemm)(const moei_exec *, const moei_kernel *, const struct moek_ggemm_args *);
    moe_status (*glu)(const moei_exec *, const moei_kernel *, const struct moek_glu_args *);
    moe_status (*combine)(const moei_exec *, const moei_kernel *, const struct moek_combine_args *);
} moei_backend;

struct moe_context {
    moe_allocator allocator;
    moei_pool *own_pool; // NULL with the caller's
    moe_thread_pool pool;
    moe_log_fn log;
    void *log_self;
    int num_threads;
    uint64_t isa; // of the machine, below the ceiling
    const moei_backend *backend;
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

/// Counts a run of a kernel, for moe_kernel_info.runs.
static inline void moei_count_run(const moe_context *ctx, const moei_kernel *kernel)
{
    atomic_fetch_add_explicit(&ctx->backend->runs[kernel - ctx->backend->kernels], 1,
                              memory_order_relaxed);
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
