// SPDX-License-Identifier: Apache-2.0
/// @file context.h  The library's surroundings: device, memory, threads, instruction sets, log.
#ifndef MOE_CONTEXT_H
#define MOE_CONTEXT_H

#include "moe/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Memory for everything that a create call allocates. alloc returns memory of `bytes` bytes
/// aligned to `align` (a power of two) or NULL; free gets the same size back. Both may be called
/// from several threads at once.
typedef struct moe_allocator {
    void *self;
    void *(*alloc)(void *self, size_t bytes, size_t align);
    void (*free)(void *self, void *memory, size_t bytes);
} moe_allocator;

/// One piece of work; called once for every index in [0, n), in any order, on any thread.
typedef void (*moe_task_fn)(void *arg, size_t index);

/// The caller's threads. parallel_for returns after every index has run; it may run them all on
/// the calling thread, and should do so where it is called from one of its tasks or by two threads
/// at once. It must not fail. size is the number of threads that may work at once. A task of the
/// CPU's kernels takes up to 0.6 MiB of stack: threads need 1 MiB.
typedef struct moe_thread_pool {
    void *self;
    size_t (*size)(void *self);
    void (*parallel_for)(void *self, size_t n, moe_task_fn task, void *arg);
} moe_thread_pool;

/// Receives one line, without a newline, at level 0 (error) to 3 (debug). May be called from any
/// thread that uses the context.
typedef void (*moe_log_fn)(void *self, int level, const char *line);

/// How to make a context. Zero is a sensible value for every field but struct_size.
typedef struct moe_context_desc {
    size_t struct_size; ///< sizeof(moe_context_desc); moe_context_desc_default sets it
    moe_device_type device;
    int32_t device_id;
    int32_t num_threads; ///< 0: every CPU of the affinity mask and cgroup quota
    const char *isa;     ///< highest instruction set, e.g. "ref"; NULL: $MOE_ISA, else all
    const moe_allocator *allocator; ///< NULL: malloc
    const moe_thread_pool *pool;    ///< NULL: the library's own
    moe_log_fn log;                 ///< NULL: silent
    void *log_self;
    const char *backend;     ///< name, e.g. of a plugin's backend; NULL: the first of the device
    const char *plugin_path; ///< absolute path of a plugin, or of a folder of them; NULL: none
} moe_context_desc;

static inline moe_context_desc moe_context_desc_default(void)
{
    moe_context_desc d;
    char *p = (char *)&d;
    size_t i;
    for (i = 0; i < sizeof d; i++) {
        p[i] = 0;
    }
    d.struct_size = sizeof d;
    return d;
}

/// Opaque. Immutable after creation; any number of threads may create plans from one context.
typedef struct moe_context moe_context;

/// Probes the machine, reads the environment (once) and makes a context. Its backend is the first
/// of the device that is built in ("cpu") or that a plugin offers. Plugins are looked for in
/// desc.plugin_path, then in the colon-separated $MOE_PLUGIN_PATH (not in programs that run with
/// raised privileges), then in the folder of libmoe itself (linked into a program: in the program's
/// and in that of the installation's libraries); never in the working directory. An entry is a
/// file, or a folder of libmoe_cuda.so, libmoe_hip.so and libmoe_backend_*.so. One that cannot be
/// used is a reason in moe_context_visit_backends, and fails no context that does not ask for it. A
/// file is loaded once per process and stays.
/// @param[in]  desc  NULL: defaults
/// @param[out] out   untouched on failure
/// Errors: ARGUMENT, VERSION, UNSUPPORTED (no such device here), NO_MEMORY, THREAD. Since 0.1.
MOE_API moe_status moe_context_create(const moe_context_desc *desc, moe_context **out);

/// Releases a context; every plan made from it must be gone. NULL is fine. Since 0.1.
MOE_API void moe_context_destroy(moe_context *ctx);

/// Threads that a run of this context may use, at least 1. Since 0.1.
MOE_API int moe_context_num_threads(const moe_context *ctx);

/// The threads of a context, its own or the caller's, for work of the caller's between runs:
/// valid as long as the context. Since 0.1.
MOE_API moe_thread_pool moe_context_pool(const moe_context *ctx);

/// 1 where tensors, weights and workspace lie in memory that the host reads and writes (the CPU), 0
/// where the device has its own. Since 0.1.
MOE_API int moe_context_host_memory(const moe_context *ctx);

// ---- memory of the context's device
// -------------------------------------------------------------- For callers that have no allocator
// of their own for the device (a program that links no CUDA). Engines pass pointers of their own;
// the library itself allocates nothing on a device.

typedef enum moe_copy { MOE_COPY_TO_DEVICE = 1, MOE_COPY_FROM_DEVICE = 2 } moe_copy;

/// `bytes` bytes of the device's memory, aligned to 256; where tensors lie in host memory, of the
/// context's allocator. 0 bytes give a pointer too. Errors: ARGUMENT, NO_MEMORY, DEVICE. Since 0.1.
MOE_API moe_status moe_memory_alloc(const moe_context *ctx, size_t bytes, void **out);

/// Gives back what moe_memory_alloc gave, with the same size; work that uses it is done. NULL is
/// fine. Since 0.1.
MOE_API void moe_memory_free(const moe_context *ctx, void *memory, size_t bytes);

/// Copies between host and device memory, after everything that was enqueued on `stream` (NULL:
/// the default one); complete when it returns. Errors: ARGUMENT, DEVICE. Since 0.1.
MOE_API moe_status moe_memory_copy(const moe_context *ctx, void *to, const void *from, size_t bytes,
                                   moe_copy direction, void *stream);

/// One kernel of the library, as `moe info --kernels` prints it.
typedef struct moe_kernel_info {
    const char *name;    ///< "moek_ggemm_f32_any_mxfp4__ref"
    const char *backend; ///< "cpu"
    const char *op;      ///< "ggemm"
    const char *isa;     ///< "ref", "ref_fma", "avx2"...
    const char *arith;   ///< arithmetic class, "" for exact ops
    int available;       ///< 0: this machine or context cannot run it
    const char *why;     ///< reason when not available, else ""
    uint64_t runs;       ///< times this process ran it
} moe_kernel_info;

/// Calls `visit` for every kernel of every backend in the library, in table order, until it
/// returns non-zero; returns what the last call returned. Since 0.1.
MOE_API int moe_context_visit_kernels(const moe_context *ctx,
                                      int (*visit)(void *self, const moe_kernel_info *info),
                                      void *self);

/// One backend with its state, as `moe info` prints it.
typedef struct moe_backend_info {
    const char *name;   ///< "cpu"
    int available;      ///< 1: usable in this process
    const char *reason; ///< why not, or what was found ("AVX2 FMA F16C, 2 CPUs")
} moe_backend_info;

/// As moe_context_visit_kernels, for backends: the built-in ones, then every plugin that the
/// context's search finds, and "cuda" and "hip" where none is. Loads them. Since 0.1.
MOE_API int moe_context_visit_backends(const moe_context *ctx,
                                       int (*visit)(void *self, const moe_backend_info *info),
                                       void *self);

#ifdef __cplusplus
}
#endif
#endif
