// SPDX-License-Identifier: Apache-2.0
// Threads: the caller's pool, or a small one of our own (OpenMP can neither be TSan-clean nor
// yield). Kernels never thread; the drivers of a backend do, through moei_parallel_for.
#ifndef MOEI_CORE_POOL_H
#define MOEI_CORE_POOL_H

#include <stdatomic.h>

#include "moe/context.h"

typedef struct moei_pool moei_pool;

/// A pool of `threads` threads, the calling one included. Errors: NO_MEMORY, THREAD.
moe_status moei_pool_create(const moe_allocator *allocator, int threads, moei_pool **out);
void moei_pool_destroy(moei_pool *pool);

/// The pool as the public struct; valid as long as the pool.
moe_thread_pool moei_pool_view(moei_pool *pool);

// ---- jobs that wait for nobody -----------------------------------------------------------------

/// A job may be left before its last task ends, because another thread did it again. So a task
/// touches only memory that outlives it: until the pool is drained, and until the next job of the
/// same slot, which begins when nobody is left in this one.
#define MOEI_POOL_SLOTS 2

/// Does task i, which another thread may be doing at the same time: writes only what belongs to
/// `thread` (0: the caller; workers 1 ..).
typedef void moei_attempt_fn(void *arg, size_t i, int thread);

/// Tasks, claimed in their order.
typedef struct moei_attempts {
    size_t n; // 1 .. 16383
    moei_attempt_fn *fn;
    moei_attempt_fn
        *keep; // the caller, once for each task, in order: the result of `thread` counts
    void *arg;
    atomic_uint *done; // [n], the job's own: 0, then 1 + the thread whose result counts
} moei_attempts;

/// Takes the pool: the slot of a job, or -1 where the caller must do with moei_parallel_for.
int moei_pool_take(moei_pool *pool);

/// Runs a job in the slot that was taken.
void moei_pool_attempts(moei_pool *pool, int slot, const moei_attempts *job);

/// Called by an attempt at a task behind these: returns when tasks [first, end) have results that
/// count, which it may then read. Does those again that are late.
void moei_pool_need(size_t first, size_t end);

/// After moei_pool_take, and after results have been read.
void moei_pool_give_back(moei_pool *pool);

/// Returns when no task of a job that has returned still runs; a task may call it. NULL is fine.
void moei_pool_drain(moei_pool *pool);

// ---- any pool ----------------------------------------------------------------------------------

/// Runs task(arg, i) for i in [0, n) and returns when all have run, each in the floating-point
/// environment of fp_env.h, whatever that of its thread. Nested calls run inline, and so does a
/// call while another run holds the pool, or in a child process after fork.
void moei_parallel_for(const moe_thread_pool *pool, size_t n, moe_task_fn task, void *arg);

/// The same by one thread a core at most, where threads of a pool of our own share cores: for tasks
/// of a unit that a core has one of.
void moei_parallel_for_cores(const moe_thread_pool *pool, size_t n, moe_task_fn task, void *arg);

#endif
