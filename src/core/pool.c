// SPDX-License-Identifier: Apache-2.0
// The default thread pool: workers claim indices from one counter, spin a few microseconds for the
// next job, then sleep on a futex. Where there are more of them than CPUs, they sleep at once: who
// spins then keeps a CPU from one that works.
//
// A job is open while the OPEN bit of its slot's `state` is set; the low bits count the workers
// inside it. A worker that sleeps through a job never joins it and never delays it: the caller
// waits only for workers inside. After fork the child has no workers, and every job runs on the
// caller.
//
// A worker that the system puts aside in the middle of a task holds it for a whole time slice. In a
// job of attempts the caller does not wait for that: it does the task again itself, and returns as
// soon as each task has been done once. The worker may still be inside then, so such a job leaves
// its slot to it and the next job takes the other one. A task may need earlier ones of its job:
// those have been claimed, so it waits, or does them again, too.
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
#include <time.h>
#include <unistd.h>

#include "core/check.h"
#include "core/fp_env.h"
#include "core/safemath.h"

#define OPEN        0x80000000u
#define SPINS       2000 // tens of microseconds; a futex wake costs as much
#define MAX_THREADS 1024
#define PATIENCE_NS 20000 // before a task is done again: so long at least
#define LOOK_EACH   64    // pauses between two looks at the clock

// Written by the caller before OPEN is set, read by workers after they have joined.
typedef struct job {
    _Alignas(64) atomic_uint state; // OPEN | workers inside
    moe_task_fn task;               // NULL: attempts
    void *arg;
    size_t n;
    moei_attempts attempts;
    int64_t begun;      // of attempts: when
    atomic_uint asleep; // callers that wait for workers to leave
    _Alignas(64) atomic_size_t next;
} job;

struct moei_pool {
    const moe_allocator *allocator;
    size_t bytes;
    int workers;
    int spins;
    unsigned born;        // fork generation
    atomic_uint numbered; // workers that have taken their number
    atomic_uint busy;
    atomic_bool stop;
    atomic_uint generation; // futex: workers sleep on it
    atomic_uint asleep;     // workers that do, or are about to
    atomic_uint current;    // slot of the job of this generation
    job jobs[MOEI_POOL_SLOTS];
    pthread_t threads[];
};

static atomic_uint fork_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static _Thread_local const struct job *inside; // the job of the task that this thread does
static _Thread_local int64_t claimed;          // its tasks that this thread has done

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

// Sleeps while *word is `expected`, and is counted meanwhile, for waking nobody costs a system
// call. Who changes the word and then finds no sleeper counted has changed it before the sleeper
// looks: all four accesses are sequentially consistent.
static void sleep_on(atomic_uint *sleepers, atomic_uint *word, unsigned expected)
{
    atomic_fetch_add(sleepers, 1);
    futex_wait(word, expected);
    atomic_fetch_sub(sleepers, 1);
}

static void wake_sleepers(atomic_uint *sleepers, atomic_uint *word)
{
    if (atomic_load(sleepers) > 0) {
        futex_wake_all(word);
    }
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t = {0, 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Does a task that nobody has done yet. What it wrote is seen by whoever reads the number of the
// thread that counts.
static void attempt(job *j, size_t i, unsigned thread)
{
    const moei_attempts *a = &j->attempts;
    unsigned none = 0;
    if (atomic_load_explicit(&a->done[i], memory_order_relaxed) == 0) {
        a->fn(a->arg, i, (int)thread);
        (void)atomic_compare_exchange_strong_explicit(&a->done[i], &none, thread + 1,
                                                      memory_order_release, memory_order_relaxed);
    }
}

static void claim(job *j, unsigned thread)
{
    size_t i;
    inside = j;
    claimed = 0;
    while ((i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->n) {
        if (j->task != NULL) {
            j->task(j->arg, i);
        } else {
            attempt(j, i, thread);
        }
        claimed++;
    }
    inside = NULL;
}

// 1 + the thread whose result of task i counts. If that takes too long, does it again: a task that
// is being done takes as long as those that this thread did. *since: when waiting began, 0 before.
static unsigned wait_done(job *j, size_t i, unsigned thread, int64_t *since)
{
    atomic_uint *word = &j->attempts.done[i];
    unsigned done = atomic_load_explicit(word, memory_order_acquire);
    while (done == 0) {
        const int64_t now = now_ns();
        *since = *since == 0 ? now : *since;
        const int64_t each = (*since - j->begun) / moei_i64_max(claimed, 1);
        if (now - *since >= moei_i64_max(2 * each, PATIENCE_NS)) {
            attempt(j, i, thread);
        }
        done = atomic_load_explicit(word, memory_order_acquire);
        for (int spin = 0; done == 0 && spin < LOOK_EACH; spin++) {
            relax();
            done = atomic_load_explicit(word, memory_order_acquire);
        }
    }
    return done;
}

static bool join_job(job *j)
{
    unsigned state = atomic_load_explicit(&j->state, memory_order_relaxed);
    while ((state & OPEN) != 0) {
        if (atomic_compare_exchange_weak_explicit(&j->state, &state, state + 1,
                                                  memory_order_acq_rel, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

static void leave_job(job *j)
{
    // The last one out of a closed job wakes those who wait on `state`.
    if (atomic_fetch_sub(&j->state, 1) == 1) {
        wake_sleepers(&j->asleep, &j->state);
    }
}

static void *worker(void *argument)
{
    moei_pool *pool = argument;
    (void)moei_fp_begin(); // a thread begins with its creator's
    const unsigned thread = 1 + atomic_fetch_add_explicit(&pool->numbered, 1, memory_order_relaxed);
    unsigned seen = 0;
    for (;;) {
        unsigned now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        for (int spin = 0; now == seen && spin < pool->spins; spin++) {
            relax();
            now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        }
        if (now == seen) {
            sleep_on(&pool->asleep, &pool->generation, seen);
            continue;
        }
        seen = now;
        if (atomic_load_explicit(&pool->stop, memory_order_acquire)) {
            return NULL;
        }
        job *j = &pool->jobs[atomic_load_explicit(&pool->current, memory_order_relaxed)];
        if (join_job(j)) {
            claim(j, thread);
            leave_job(j);
        }
    }
}

// Waits until no worker is inside a job that is closed.
static void wait_empty(job *j)
{
    unsigned state = atomic_load_explicit(&j->state, memory_order_acquire);
    for (int spin = 0; state != 0 && (state & OPEN) == 0; spin++) {
        if (spin >= SPINS) {
            sleep_on(&j->asleep, &j->state, state);
        } else {
            relax();
        }
        state = atomic_load_explicit(&j->state, memory_order_acquire);
    }
}

static void run_inline(size_t n, moe_task_fn task, void *arg)
{
    for (size_t i = 0; i < n; i++) {
        task(arg, i);
    }
}

static bool has_forked(const moei_pool *pool)
{
    return pool->born != atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

// Takes the pool for a job; false where this thread must do without.
static bool take(moei_pool *pool)
{
    return inside == NULL && pool->workers > 0 && !has_forked(pool) &&
           atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire) == 0;
}

static void give_back(moei_pool *pool)
{
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
}

// A slot without workers; -1: each has a late one.
static int free_slot(moei_pool *pool)
{
    for (int s = 0; s < MOEI_POOL_SLOTS; s++) {
        if (atomic_load_explicit(&pool->jobs[s].state, memory_order_acquire) == 0) {
            return s;
        }
    }
    return -1;
}

static void open_job(moei_pool *pool, int slot, size_t n)
{
    job *j = &pool->jobs[slot];
    j->n = n;
    atomic_store_explicit(&j->next, 0, memory_order_relaxed);
    atomic_store_explicit(&j->state, OPEN, memory_order_release);
    atomic_store_explicit(&pool->current, (unsigned)slot, memory_order_relaxed);
    atomic_fetch_add(&pool->generation, 1);
    wake_sleepers(&pool->asleep, &pool->generation);
}

static void close_job(job *j)
{
    (void)atomic_fetch_and_explicit(&j->state, ~OPEN, memory_order_acq_rel);
}

static void pool_parallel_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    moei_pool *pool = self;
    if (n <= 1 || !take(pool)) {
        run_inline(n, task, arg);
        return;
    }
    int slot = free_slot(pool);
    if (slot < 0) {
        slot = 0;
        wait_empty(&pool->jobs[slot]);
    }
    job *j = &pool->jobs[slot];
    j->task = task;
    j->arg = arg;
    open_job(pool, slot, n);
    claim(j, 0);
    close_job(j);
    wait_empty(j);
    give_back(pool);
}

typedef struct call {
    moe_task_fn task;
    void *arg;
} call;

static void task_in_env(void *self, size_t index)
{
    const call *c = self;
    const uint64_t env = moei_fp_begin();
    c->task(c->arg, index);
    moei_fp_end(env);
}

void moei_parallel_for(const moe_thread_pool *pool, size_t n, moe_task_fn task, void *arg)
{
    call c = {task, arg};
    if (n == 1) {
        task_in_env(&c, 0);
    } else if (n > 1) {
        pool->parallel_for(pool->self, n, task_in_env, &c);
    }
}

int moei_pool_take(moei_pool *pool)
{
    if (!take(pool)) {
        return -1;
    }
    const int slot = free_slot(pool);
    if (slot < 0) {
        give_back(pool);
    }
    return slot;
}

void moei_pool_attempts(moei_pool *pool, int slot, const moei_attempts *attempts)
{
    job *j = &pool->jobs[slot];
    j->task = NULL;
    j->attempts = *attempts;
    j->begun = now_ns();
    for (size_t i = 0; i < attempts->n; i++) {
        atomic_store_explicit(&attempts->done[i], 0, memory_order_relaxed);
    }
    open_job(pool, slot, attempts->n);
    claim(j, 0);
    int64_t since = 0;
    inside = j;
    for (size_t i = 0; i < attempts->n; i++) {
        attempts->keep(attempts->arg, i, (int)wait_done(j, i, 0, &since) - 1);
    }
    inside = NULL;
    close_job(j);
}

void moei_pool_need(moei_pool *pool, int slot, size_t first, size_t end, int thread)
{
    int64_t since = 0;
    for (size_t i = first; i < end; i++) {
        (void)wait_done(&pool->jobs[slot], i, (unsigned)thread, &since);
    }
}

void moei_pool_give_back(moei_pool *pool)
{
    give_back(pool);
}

void moei_pool_drain(moei_pool *pool)
{
    for (int s = 0; pool != NULL && !has_forked(pool) && s < MOEI_POOL_SLOTS; s++) {
        if (&pool->jobs[s] != inside) { // a task would wait for itself
            wait_empty(&pool->jobs[s]);
        }
    }
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
    const size_t bytes = moei_size_align(
        sizeof(moei_pool) + (size_t)(threads - 1) * sizeof(pthread_t), _Alignof(moei_pool));
    moei_pool *pool = allocator->alloc(allocator->self, bytes, 64);
    MOE_REQUIRE(pool != NULL, MOE_E_NO_MEMORY,
                "moe_context_create: no memory for a pool of %d threads (%zu bytes)", threads,
                bytes);
    memset(pool, 0, bytes);
    pool->allocator = allocator;
    pool->bytes = bytes;
    pool->spins = threads <= moei_cpu_count() ? SPINS : 0;
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
    if (!has_forked(pool)) {
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
