// SPDX-License-Identifier: Apache-2.0
// The thread pool: every index once, for many sizes and thread counts; nested calls, several
// callers at once, and a child process after fork.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
        memset(j->hits, 0, sizeof j->hits);
        atomic_store(&j->nested, 0);
        moei_parallel_for(&view, 20, outer, j);
        check_hits(j, 20, "nested");
        CHECK(atomic_load(&j->nested) == 60, "%d nested runs, want 60", atomic_load(&j->nested));
        test_many_callers(&view);
        test_fork(&view, j);
        moei_pool_destroy(pool);
    }
    moei_pool *pool = NULL;
    CHECK(moei_pool_create(&allocator, 0, &pool) == MOE_E_ARGUMENT, "0 threads must be refused");
    free(j);
    return test_summary();
}
