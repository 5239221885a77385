// SPDX-License-Identifier: Apache-2.0
// Threads: the caller's pool, or a small one of our own (OpenMP can neither be TSan-clean nor
// yield). Kernels never thread; the drivers of a backend do, through moei_parallel_for.
#ifndef MOEI_CORE_POOL_H
#define MOEI_CORE_POOL_H

#include "moe/context.h"

typedef struct moei_pool moei_pool;

/// Number of CPUs that this process may use: affinity mask, limited by the cgroup's CPU quota.
int moei_cpu_count(void);

/// A pool of `threads` threads, the calling one included. Errors: NO_MEMORY, THREAD.
moe_status moei_pool_create(const moe_allocator *allocator, int threads, moei_pool **out);
void moei_pool_destroy(moei_pool *pool);

/// The pool as the public struct; valid as long as the pool.
moe_thread_pool moei_pool_view(moei_pool *pool);

/// Runs task(arg, i) for i in [0, n) and returns when all have run. Nested calls run inline, and
/// so does a call while another run holds the pool, or in a child process after fork.
static inline void moei_parallel_for(const moe_thread_pool *pool, size_t n, moe_task_fn task,
                                     void *arg)
{
    if (n == 1) {
        task(arg, 0);
    } else if (n > 1) {
        pool->parallel_for(pool->self, n, task, arg);
    }
}

#endif
