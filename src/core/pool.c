// SPDX-License-Identifier: Apache-2.0
// The default thread pool: workers claim indices from one counter, spin a few microseconds for the
// next job, then sleep on a futex.
//
// A job is open while the OPEN bit of `state` is set; the low bits count the workers inside it. A
// worker that sleeps through a job never joins it and never delays it: the caller waits only for
// workers inside. After fork the child has no workers, and every job runs on the caller.
#define _GNU_SOURCE
#include "core/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/check.h"
#include "core/safemath.h"

#define OPEN        0x80000000u
#define SPINS       2000 // about 5 microseconds; a futex wake costs more than that
#define MAX_THREADS 1024

struct moei_pool {
    const moe_allocator *allocator;
    size_t bytes;
    int workers;
    unsigned born; // fork generation
    atomic_uint busy;
    atomic_bool stop;
    // Job; written by the caller before OPEN is set, read by workers after they have joined.
    moe_task_fn task;
    void *arg;
    size_t n;
    atomic_size_t next;
    atomic_uint state;      // OPEN | workers inside
    atomic_uint generation; // futex: workers sleep on it
    pthread_t threads[];
};

static atomic_uint fork_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static _Thread_local bool inside_task;

static void after_fork_in_child(void)
{
    atomic_fetch_add(&fork_generation, 1);
}

static void register_fork_handler(void)
{
    (void)pthread_atfork(NULL, NULL, after_fork_in_child);
}

static void futex_wait(atomic_uint *word, unsigned expected)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7FFFFFFF, NULL, NULL, 0);
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void claim(moei_pool *pool)
{
    size_t i;
    inside_task = true;
    while ((i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->n) {
        pool->task(pool->arg, i);
    }
    inside_task = false;
}

static bool join_job(moei_pool *pool)
{
    unsigned state = atomic_load_explicit(&pool->state, memory_order_relaxed);
    while ((state & OPEN) != 0) {
        if (atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1,
                                                  memory_order_acq_rel, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

static void leave_job(moei_pool *pool)
{
    // The last one out of a closed job wakes the caller, who waits on `state`.
    if (atomic_fetch_sub_explicit(&pool->state, 1, memory_order_acq_rel) == 1) {
        futex_wake_all(&pool->state);
    }
}

static void *worker(void *argument)
{
    moei_pool *pool = argument;
    unsigned seen = 0;
    for (;;) {
        unsigned now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        for (int spin = 0; now == seen && spin < SPINS; spin++) {
            relax();
            now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        }
        if (now == seen) {
            futex_wait(&pool->generation, seen);
            continue;
        }
        seen = now;
        if (atomic_load_explicit(&pool->stop, memory_order_acquire)) {
            return NULL;
        }
        if (join_job(pool)) {
            claim(pool);
            leave_job(pool);
        }
    }
}

static void run_inline(size_t n, moe_task_fn task, void *arg)
{
    for (size_t i = 0; i < n; i++) {
        task(arg, i);
    }
}

static void pool_parallel_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    moei_pool *pool = self;
    if (n <= 1 || inside_task || pool->workers == 0 ||
        pool->born != atomic_load_explicit(&fork_generation, memory_order_relaxed) ||
        atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire) != 0) {
        run_inline(n, task, arg);
        return;
    }
    pool->task = task;
    pool->arg = arg;
    pool->n = n;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->state, OPEN, memory_order_release);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    futex_wake_all(&pool->generation);
    claim(pool);
    unsigned state = atomic_fetch_and_explicit(&pool->state, ~OPEN, memory_order_acq_rel) & ~OPEN;
    for (int spin = 0; state != 0; spin++) {
        if (spin >= SPINS) {
            futex_wait(&pool->state, state);
        } else {
            relax();
        }
        state = atomic_load_explicit(&pool->state, memory_order_acquire);
    }
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
}

static size_t pool_size(void *self)
{
    const moei_pool *pool = self;
    return (size_t)pool->workers + 1;
}

moe_thread_pool moei_pool_view(moei_pool *pool)
{
    const moe_thread_pool view = {pool, pool_size, pool_parallel_for};
    return view;
}

moe_status moei_pool_create(const moe_allocator *allocator, int threads, moei_pool **out)
{
    MOE_REQUIRE(threads >= 1 && threads <= MAX_THREADS, MOE_E_ARGUMENT,
                "moe_context_create: num_threads = %d, must be 1..%d", threads, MAX_THREADS);
    (void)pthread_once(&fork_once, register_fork_handler);
    const size_t bytes = sizeof(moei_pool) + (size_t)(threads - 1) * sizeof(pthread_t);
    moei_pool *pool = allocator->alloc(allocator->self, bytes, 64);
    MOE_REQUIRE(pool != NULL, MOE_E_NO_MEMORY,
                "moe_context_create: no memory for a pool of %d threads (%zu bytes)", threads,
                bytes);
    memset(pool, 0, bytes);
    pool->allocator = allocator;
    pool->bytes = bytes;
    pool->born = atomic_load_explicit(&fork_generation, memory_order_relaxed);
    for (int i = 0; i < threads - 1; i++) {
        const int error = pthread_create(&pool->threads[i], NULL, worker, pool);
        if (error != 0) {
            moei_pool_destroy(pool);
            return moe_fail(MOE_E_THREAD, "moe_context_create: thread %d of %d: %s", i + 1,
                            threads - 1, strerror(error));
        }
        pool->workers++;
    }
    *out = pool;
    return MOE_OK;
}

void moei_pool_destroy(moei_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    if (pool->born == atomic_load_explicit(&fork_generation, memory_order_relaxed)) {
        atomic_store_explicit(&pool->stop, true, memory_order_release);
        atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
        futex_wake_all(&pool->generation);
        for (int i = 0; i < pool->workers; i++) {
            (void)pthread_join(pool->threads[i], NULL);
        }
    }
    pool->allocator->free(pool->allocator->self, pool, pool->bytes);
}

// The first two whole numbers of a small file, without allocating; what is no number ("max") reads
// as -1.
static void read_numbers(const char *path, long long *first, long long *second)
{
    char text[64];
    *first = -1;
    *second = -1;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return;
    }
    const ssize_t bytes = read(file, text, sizeof text - 1);
    (void)close(file);
    text[bytes > 0 ? bytes : 0] = '\0';
    char *end = text;
    const long long number = strtoll(text, &end, 10);
    if (end != text) {
        *first = number;
        *second = strtoll(end, NULL, 10);
    }
}

// Whole CPUs that a cgroup quota allows (version 2, else 1), or `limit` if there is none.
static int quota_limit(int limit)
{
    long long quota;
    long long period;
    long long unused;
    read_numbers("/sys/fs/cgroup/cpu.max", &quota, &period);
    if (quota < 0) {
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota, &unused);
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, &unused);
    }
    if (quota <= 0 || period <= 0) {
        return limit;
    }
    const int64_t cpus = moei_i64_max(1, moei_i64_ceil_div(quota, period));
    return cpus < limit ? (int)cpus : limit;
}

int moei_cpu_count(void)
{
    cpu_set_t set;
    int count = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        count = CPU_COUNT(&set);
    } else {
        const long online = sysconf(_SC_NPROCESSORS_ONLN);
        count = online > 0 && online < MAX_THREADS ? (int)online : 1;
    }
    count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    return quota_limit(count);
}
