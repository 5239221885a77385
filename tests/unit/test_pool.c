// SPDX-License-Identifier: Apache-2.0
// The thread pool: every index once, for many sizes and thread counts; nested calls, several
// callers at once, and a child process after fork. Jobs of attempts return though workers stop
// inside them, and leave those behind safely.
#define _DEFAULT_SOURCE // usleep
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cpus.h"
#include "core/pool.h"
#include "unit/test.h"

static void *test_alloc(void *self, size_t bytes, size_t align)
{
    (void)self;
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}

static void test_free(void *self, void *memory, size_t bytes)
{
    (void)self;
    (void)bytes;
    free(memory);
}

static const moe_allocator allocator = {NULL, test_alloc, test_free};

#define MAX_N 1000

typedef struct job {
    atomic_int hits[MAX_N];
    const moe_thread_pool *pool;
    atomic_int nested;
} job;

static void hit(void *arg, size_t i)
{
    job *j = arg;
    atomic_fetch_add(&j->hits[i], 1);
}

static void hit_nested(void *arg, size_t i)
{
    (void)i;
    job *j = arg;
    atomic_fetch_add(&j->nested, 1);
}

static void outer(void *arg, size_t i)
{
    job *j = arg;
    atomic_fetch_add(&j->hits[i], 1);
    moei_parallel_for(j->pool, 3, hit_nested, j);
}

static void check_hits(job *j, size_t n, const char *what)
{
    for (size_t i = 0; i < MAX_N; i++) {
        const int want = i < n ? 1 : 0;
        const int have = atomic_load(&j->hits[i]);
        CHECK(have == want, "%s: index %zu of %zu ran %d times, want %d", what, i, n, have, want);
    }
}

static void test_every_index_once(const moe_thread_pool *pool, job *j)
{
    static const size_t sizes[] = {0, 1, 2, 3, 7, 64, 999};
    for (int repeat = 0; repeat < 50; repeat++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            memset(j->hits, 0, sizeof j->hits);
            moei_parallel_for(pool, sizes[s], hit, j);
            check_hits(j, sizes[s], "flat");
        }
    }
}

#define LARGE_N 40000 // tasks: more than a job of the pool takes at once

static void count_one(void *arg, size_t i)
{
    atomic_uchar *hits = arg;
    atomic_fetch_add(&hits[i], 1);
}

static void test_large_job(const moe_thread_pool *pool)
{
    atomic_uchar *hits = calloc(LARGE_N, sizeof *hits);
    size_t once = 0;
    if (CHECK(hits != NULL, "memory is short")) {
        moei_parallel_for(pool, LARGE_N, count_one, hits);
        for (size_t i = 0; i < LARGE_N; i++) {
            once += atomic_load(&hits[i]) == 1;
        }
        CHECK(once == LARGE_N, "%zu of %d indices ran once", once, LARGE_N);
    }
    free(hits);
}

static void *caller(void *arg)
{
    const moe_thread_pool *pool = arg;
    job *j = calloc(1, sizeof *j);
    for (int repeat = 0; j != NULL && repeat < 100; repeat++) {
        memset(j->hits, 0, sizeof j->hits);
        moei_parallel_for(pool, 100, hit, j);
        for (size_t i = 0; i < 100; i++) {
            if (atomic_load(&j->hits[i]) != 1) {
                free(j);
                return (void *)1;
            }
        }
    }
    free(j);
    return NULL;
}

static void test_many_callers(moe_thread_pool *pool)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, caller, pool) == 0, "thread %d", i);
    }
    for (int i = 0; i < 4; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        CHECK(result == NULL, "caller %d saw an index run twice or never", i);
    }
}

static void test_fork(const moe_thread_pool *pool, job *j)
{
    const pid_t child = fork();
    if (child == 0) {
        memset(j->hits, 0, sizeof j->hits);
        moei_parallel_for(pool, 200, hit, j);
        int wrong = 0;
        for (size_t i = 0; i < 200; i++) {
            wrong += atomic_load(&j->hits[i]) != 1;
        }
        _exit(wrong != 0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child, "waitpid");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child's job failed: status %d",
          status);
}

// ---- a thread a core ---------------------------------------------------------------------------

typedef struct by_core {
    job *hits;
    pthread_t caller;
    atomic_int workers; // that did tasks
} by_core;

static _Thread_local const by_core *counted; // where this thread has been

static void hit_by_core(void *arg, size_t i)
{
    by_core *c = arg;
    hit(c->hits, i);
    if (!pthread_equal(pthread_self(), c->caller) && counted != c) {
        counted = c;
        atomic_fetch_add(&c->workers, 1);
    }
    for (int spin = 0; spin < 100; spin++) { // so that others come, too
        sched_yield();
    }
}

static void test_cores(const moe_thread_pool *pool, job *j)
{
    static by_core rounds[20]; // each its own address
    for (int r = 0; r < 20; r++) {
        by_core *c = &rounds[r];
        *c = (by_core){.hits = j, .caller = pthread_self()};
        counted = NULL;
        memset(j->hits, 0, sizeof j->hits);
        moei_parallel_for_cores(pool, 40, hit_by_core, c);
        check_hits(j, 40, "a thread a core");
        CHECK(atomic_load(&c->workers) < moei_core_count(),
              "%d workers beside the caller, %d cores", atomic_load(&c->workers),
              moei_core_count());
    }
}

// ---- attempts ----------------------------------------------------------------------------------

#define ATTEMPTS    24
#define MAX_THREADS 7

// A job whose workers stop inside their first task, until they are let go.
typedef struct attempts {
    atomic_int hits[ATTEMPTS];
    atomic_uint done[ATTEMPTS];
    int result[MAX_THREADS][ATTEMPTS]; // of each thread, as its attempts leave it
    int kept[ATTEMPTS];                // what the caller was given of each
    atomic_int stopped;                // workers that have
    atomic_bool go;
    int stop; // workers that are to
} attempts;

static void try_one(void *arg, size_t i, int thread)
{
    attempts *a = arg;
    atomic_fetch_add(&a->hits[i], 1);
    if (thread > 0 && !atomic_load(&a->go)) {
        atomic_fetch_add(&a->stopped, 1);
        while (!atomic_load(&a->go)) {
            sched_yield();
        }
    }
    while (thread == 0 && atomic_load(&a->stopped) < a->stop) { // so that each holds a task
        sched_yield();
    }
    a->result[thread][i] = (int)i + 1;
}

static void keep_one(void *arg, size_t i, int thread)
{
    attempts *a = arg;
    a->kept[i] += a->result[thread][i];
}

static void run_attempts(moei_pool *pool, int slot, attempts *a)
{
    const moei_attempts run = {ATTEMPTS, try_one, keep_one, a, a->done};
    moei_pool_attempts(pool, slot, &run);
}

static void begin_attempts(attempts *a, int stop)
{
    memset(a, 0, sizeof *a);
    a->stop = stop;
    atomic_store(&a->go, stop == 0);
}

// What each task gave, from the thread whose result counts.
static void check_attempts(const attempts *a, const char *what)
{
    for (size_t i = 0; i < ATTEMPTS; i++) {
        const unsigned done = atomic_load(&a->done[i]);
        CHECK(done >= 1 && done <= MAX_THREADS && a->result[done - 1][i] == (int)i + 1,
              "%s: task %zu counts as done by %u", what, i, done);
        CHECK(a->kept[i] == (int)i + 1, "%s: of task %zu, %d was kept", what, i, a->kept[i]);
    }
}

static int hits_of(const attempts *a)
{
    int hits = 0;
    for (size_t i = 0; i < ATTEMPTS; i++) {
        hits += atomic_load(&a->hits[i]);
    }
    return hits;
}

// All workers stop in a task each: the job returns all the same, and so do jobs beside them.
static void test_late_tasks(moei_pool *pool, job *j, attempts a[2])
{
    moe_thread_pool view = moei_pool_view(pool);
    const int workers = (int)view.size(view.self) - 1;
    begin_attempts(&a[0], workers);
    const int slot = moei_pool_take(pool);
    if (workers == 0) {
        CHECK(slot == -1, "a pool of one thread has slot %d", slot);
        return;
    }
    CHECK(slot >= 0, "the pool is not free");
    CHECK(moei_pool_take(pool) == -1, "the pool is taken twice");
    run_attempts(pool, slot, &a[0]);
    check_attempts(&a[0], "workers that stop");
    moei_pool_give_back(pool);
    CHECK(atomic_load(&a[0].stopped) == workers, "%d workers stopped", atomic_load(&a[0].stopped));
    CHECK(hits_of(&a[0]) == ATTEMPTS + workers, "%d attempts at %d tasks, %d of which were held",
          hits_of(&a[0]), ATTEMPTS, workers);

    begin_attempts(&a[1], 0);
    const int other = moei_pool_take(pool);
    CHECK(other >= 0 && other != slot, "slot %d is given out while workers are in it", other);
    run_attempts(pool, other, &a[1]);
    check_attempts(&a[1], "no worker left");
    moei_pool_give_back(pool);
    memset(j->hits, 0, sizeof j->hits);
    moei_parallel_for(&view, 100, hit, j);
    check_hits(j, 100, "beside late tasks");

    atomic_store(&a[0].go, true);
    moei_pool_drain(pool);
    check_attempts(&a[0], "late results do not count");
    memset(a, 0xA5, 2 * sizeof *a); // nobody looks any more
    memset(j->hits, 0, sizeof j->hits);
    moei_parallel_for(&view, 100, hit, j);
    check_hits(j, 100, "after late tasks");
}

static void test_attempts(moei_pool *pool, job *j)
{
    attempts *a = calloc(2, sizeof *a);
    for (int repeat = 0; CHECK(a != NULL, "memory is short") && repeat < 20; repeat++) {
        test_late_tasks(pool, j, a);
        begin_attempts(&a[0], 0);
        const int slot = moei_pool_take(pool);
        if (slot >= 0) {
            run_attempts(pool, slot, &a[0]);
            check_attempts(&a[0], "nobody stops");
            moei_pool_give_back(pool);
            moei_pool_drain(pool);
        }
    }
    free(a);
}

// ---- attempts that need others -----------------------------------------------------------------

#define MAKERS (ATTEMPTS / 2)

// The first half of the tasks make a number each, the others add up some of those. Each worker
// stops in the first task that it is given.
typedef struct needs {
    moei_pool *pool;
    int slot;
    atomic_uint done[ATTEMPTS];
    int made[MAX_THREADS][ATTEMPTS];
    int kept[ATTEMPTS];
    bool has_stopped[MAX_THREADS];
    atomic_int stopped;
    atomic_bool go;
    int stop;
} needs;

static int number_of(size_t i)
{
    return (int)(i * i) + 1;
}

static void need_others(void *arg, size_t i, int thread)
{
    needs *a = arg;
    if (thread > 0 && !a->has_stopped[thread] && a->stop > 0) {
        a->has_stopped[thread] = true;
        atomic_fetch_add(&a->stopped, 1);
        while (!atomic_load(&a->go)) {
            sched_yield();
        }
    }
    while (thread == 0 && atomic_load(&a->stopped) < a->stop) {
        sched_yield();
    }
    if (i < MAKERS) {
        a->made[thread][i] = number_of(i);
        return;
    }
    const size_t end = i - MAKERS + 1;
    int sum = 0;
    moei_pool_need(end / 2, end);
    for (size_t m = end / 2; m < end; m++) {
        sum += a->made[atomic_load(&a->done[m]) - 1][m];
    }
    a->made[thread][i] = sum;
}

static void keep_need(void *arg, size_t i, int thread)
{
    needs *a = arg;
    a->kept[i] = a->made[thread][i];
}

static void check_needs(const needs *a)
{
    for (size_t i = MAKERS; i < ATTEMPTS; i++) {
        int want = 0;
        for (size_t m = (i - MAKERS + 1) / 2; m < i - MAKERS + 1; m++) {
            want += number_of(m);
        }
        CHECK(a->kept[i] == want, "task %zu of %d that stop: sum %d, want %d", i, a->stop,
              a->kept[i], want);
    }
}

// Whoever needs a task that a stopped worker holds does it again; also where nobody stops.
static void test_needs(moei_pool *pool, int workers)
{
    for (int repeat = 0; workers > 0 && repeat < 40; repeat++) {
        needs *a = calloc(1, sizeof *a);
        if (!CHECK(a != NULL, "memory is short")) {
            return;
        }
        a->pool = pool;
        a->slot = moei_pool_take(pool);
        a->stop = repeat % 2 == 0 ? workers : 0;
        if (CHECK(a->slot >= 0, "the pool is not free")) {
            const moei_attempts run = {ATTEMPTS, need_others, keep_need, a, a->done};
            moei_pool_attempts(pool, a->slot, &run);
            check_needs(a);
            moei_pool_give_back(pool);
            atomic_store(&a->go, true);
            moei_pool_drain(pool);
        }
        free(a);
    }
}

/// A job whose workers drain the pool after its caller has nothing left to do.
typedef struct draining {
    moei_pool *pool;
    pthread_t caller;
    atomic_int begun;
} draining;

static void drain_late(void *arg, size_t i)
{
    draining *d = arg;
    (void)i;
    if (!pthread_equal(pthread_self(), d->caller)) {
        atomic_fetch_add(&d->begun, 1);
        (void)usleep(2000);
        moei_pool_drain(d->pool);
        return;
    }
    for (int wait = 0; wait < 1000 && atomic_load(&d->begun) == 0; wait++) { // for a worker
        (void)usleep(100);
    }
}

// Weights are packed in tasks, and packing drains the pool: no task waits for itself.
static void test_drain_inside(moei_pool *pool, const moe_thread_pool *view)
{
    for (int round = 0; round < 20; round++) {
        draining d = {.pool = pool, .caller = pthread_self()};
        moei_parallel_for(view, view->size(view->self), drain_late, &d);
    }
}

int main(void)
{
    static const int threads[] = {1, 2, 7};
    job *j = calloc(1, sizeof *j);
    if (j == NULL) {
        return 1;
    }
    CHECK(moei_cpu_count() >= 1, "moei_cpu_count() = %d", moei_cpu_count());
    for (size_t t = 0; t < sizeof threads / sizeof threads[0]; t++) {
        moei_pool *pool = NULL;
        CHECK(moei_pool_create(&allocator, threads[t], &pool) == MOE_OK, "%s", moe_last_error());
        moe_thread_pool view = moei_pool_view(pool);
        CHECK(view.size(view.self) == (size_t)threads[t], "size %zu, want %d", view.size(view.self),
              threads[t]);
        j->pool = &view;
        test_every_index_once(&view, j);
        test_large_job(&view);
        memset(j->hits, 0, sizeof j->hits);
        atomic_store(&j->nested, 0);
        moei_parallel_for(&view, 20, outer, j);
        check_hits(j, 20, "nested");
        CHECK(atomic_load(&j->nested) == 60, "%d nested runs, want 60", atomic_load(&j->nested));
        test_many_callers(&view);
        test_cores(&view, j);
        test_attempts(pool, j);
        test_needs(pool, threads[t] - 1);
        test_drain_inside(pool, &view);
        test_fork(&view, j);
        moei_pool_destroy(pool);
    }
    moei_pool *pool = NULL;
    CHECK(moei_pool_create(&allocator, 0, &pool) == MOE_E_ARGUMENT, "0 threads must be refused");
    free(j);
    return test_summary();
}
