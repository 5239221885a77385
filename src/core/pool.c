// SPDX-License-Identifier: Apache-2.0
// The default thread pool. A job is told in one line, which workers poll; they spin a few
// microseconds for the next one, then sleep on a futex. Where there are more of them than CPUs,
// they sleep at once: who spins then keeps a CPU from one that works.
//
// Thread t of T has part t of a job's tasks; who has claimed all of its own goes on with those of
// others. So a thread mostly does what it did in the last job of this kind, whose data its caches
// may still hold, and threads that keep pace write no line that another writes: between cores whose
// caches are far apart each such line costs a quarter of a microsecond.
//
// Attempts are claimed in their order, all as part 0, so that a task may need earlier ones: those
// have been claimed.
//
// A job has ended when the counts of its tasks that threads have ended add up. A worker that sleeps
// through a job never delays it. Who comes late finds nothing to claim, for claims bear the job's
// number; only a claim makes it sure that the job, and what it points to, is still there. After
// fork the child has no workers, and every job runs on the caller.
//
// A worker that the system puts aside in the middle of a task holds it for a whole time slice. In a
// job of attempts the caller does not wait for that: it does the task again itself, and returns as
// soon as each task has been done once. The worker may still be inside then, so such a job leaves
// its slot to it and the next job takes the other one.
#define _GNU_SOURCE
#include "core/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/check.h"
#include "core/cpus.h"
#include "core/fp_env.h"
#include "core/lines.h"
#include "core/safemath.h"

#define LINE        64
#define SPINS       2000  // tens of microseconds; a futex wake costs as much
#define PATIENCE_NS 20000 // before a task is done again: so long at least
#define LOOK_EACH   64    // pauses between two looks at the clock
#define RECLAIM     32    // pauses until a worker has its tally again
#define COUNT_BITS  14    // of a word that holds a job's number, too: that lasts for decades
#define MOST_TASKS  ((1u << COUNT_BITS) - 1)

/// A job, as each thread that takes part has it.
typedef struct job {
    uint64_t number; // from 1 on
    int slot;
    int threads;      // that take part: the first ones
    size_t base, n;   // tasks base .. base + n - 1
    moe_task_fn task; // or
    moei_attempt_fn *attempt;
    void *arg;
    atomic_uint *done; // of attempts: 1 + the thread that did a task, 0 at first
} job;

/// The latest job, as the caller tells it.
typedef struct notice {
    _Alignas(LINE) _Atomic uint64_t number; // 0 while the rest is being written
    atomic_int slot, threads;
    atomic_size_t base, n;
    _Atomic(moe_task_fn) task;
    _Atomic(moei_attempt_fn *) attempt;
    _Atomic(void *) arg;
    _Atomic(atomic_uint *) done;
} notice;

/// What a thread has to do with the last job of a slot that anyone claimed tasks of. Each word is
/// the job's number and a count.
typedef struct tally {
    _Alignas(LINE) _Atomic uint64_t claimed; // tasks of its part, by whomever
    _Atomic uint64_t ended;                  // tasks of any part, by it
} tally;

/// Those who wait, and no longer spin, for what another thread writes.
typedef struct bell {
    _Alignas(LINE) atomic_uint asleep; // or about to be
    atomic_uint rings;                 // futex
} bell;

/// Where a job is that may still be going on when the next one begins.
typedef struct stage {
    _Alignas(LINE) _Atomic uint64_t number; // of its last job
    atomic_size_t n;
    bool late; // that may not have ended
    bell end;
} stage;

struct moei_pool {
    const moe_allocator *allocator;
    size_t bytes;
    int workers;
    int cores; // that they and the caller have
    int spins;
    unsigned born;        // fork generation
    atomic_uint numbered; // workers that have taken their number
    atomic_bool stop;
    tally *tallies;                  // [MOEI_POOL_SLOTS, threads]
    _Alignas(LINE) atomic_uint busy; // and of who holds it:
    uint64_t last;                   // job's number
    stage slots[MOEI_POOL_SLOTS];
    notice notice;
    bell next; // job
    pthread_t threads[];
};

static atomic_uint fork_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

/// What a thread is doing.
static _Thread_local struct {
    const stage *stage; // of the job, or NULL
    const job *job;
    unsigned thread;
    size_t ended;  // tasks of the job that it has done
    int64_t begun; // attempts: when it began with the job
} inside;

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

// Who is going to sleep counts itself, looks again, and sleeps if what it waits for has not come.
// Who writes that rings: waking nobody costs a system call. All of these accesses are sequentially
// consistent, so that one of the two sees what the other has written.
static unsigned bell_begin(bell *b)
{
    const unsigned rings = atomic_load(&b->rings);
    atomic_fetch_add(&b->asleep, 1);
    return rings;
}

static void bell_end(bell *b)
{
    atomic_fetch_sub(&b->asleep, 1);
}

static void bell_ring(bell *b)
{
    if (atomic_load(&b->asleep) > 0) {
        atomic_fetch_add(&b->rings, 1);
        futex_wake_all(&b->rings);
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

// ---- tasks -------------------------------------------------------------------------------------

static uint64_t word_of(uint64_t number, size_t count)
{
    return number << COUNT_BITS | count;
}

static size_t count_in(uint64_t word, uint64_t number)
{
    return word >> COUNT_BITS == number ? (size_t)(word & MOST_TASKS) : 0;
}

static tally *tally_of(const moei_pool *pool, int slot, size_t thread)
{
    return &pool->tallies[(size_t)slot * ((size_t)pool->workers + 1) + thread];
}

// Claims a task of the part of thread t. The word may be of another job: of an older one, then the
// part is whole; of a newer one, then this job has ended.
static bool claim(const moei_pool *pool, const job *j, size_t t, size_t *i)
{
    const size_t threads = (size_t)j->threads;
    const bool ordered = j->attempt != NULL;
    const size_t first = ordered ? 0 : j->n * t / threads;
    const size_t end = !ordered ? j->n * (t + 1) / threads : t == 0 ? j->n : 0;
    _Atomic uint64_t *claimed = &tally_of(pool, j->slot, t)->claimed;
    uint64_t word = atomic_load_explicit(claimed, memory_order_relaxed);
    for (;;) {
        const size_t before = count_in(word, j->number);
        if (first + before >= end || word >> COUNT_BITS > j->number) {
            return false;
        }
        if (atomic_compare_exchange_weak_explicit(claimed, &word, word_of(j->number, before + 1),
                                                  memory_order_acq_rel, memory_order_relaxed)) {
            *i = j->base + first + before;
            return true;
        }
    }
}

// Does a task that nobody has done yet. What it wrote is seen by whoever reads the number of the
// thread that counts.
static void attempt(const job *j, size_t i, unsigned thread)
{
    unsigned none = 0;
    if (atomic_load_explicit(&j->done[i], memory_order_relaxed) == 0) {
        j->attempt(j->arg, i, (int)thread);
        (void)atomic_compare_exchange_strong_explicit(&j->done[i], &none, thread + 1,
                                                      memory_order_release, memory_order_relaxed);
    }
}

static void do_task(const job *j, size_t i, unsigned thread)
{
    if (j->task != NULL) {
        j->task(j->arg, i);
    } else {
        attempt(j, i, thread);
    }
}

static void enter(const moei_pool *pool, const job *j, unsigned thread)
{
    inside.stage = &pool->slots[j->slot];
    inside.job = j;
    inside.thread = thread;
    inside.ended = 0;
    inside.begun = j->attempt != NULL ? now_ns() : 0;
}

static void leave(void)
{
    inside.stage = NULL;
}

// Does what is left of the part of thread t; false if that is nothing.
static bool take_part_of(moei_pool *pool, const job *j, size_t t, unsigned thread)
{
    const size_t before = inside.ended;
    size_t i;
    while (claim(pool, j, t, &i)) {
        do_task(j, i, thread);
        inside.ended++;
    }
    return inside.ended > before;
}

// Does the thread's own part of a job, then what is left of others. Others wait for what it has
// ended: so it says that before it looks for more, which takes as long as a line from another core.
// The thread is inside until it leaves.
static void take_part(moei_pool *pool, const job *j, unsigned thread)
{
    const size_t threads = (size_t)j->threads;
    tally *own = tally_of(pool, j->slot, thread);
    enter(pool, j, thread);
    for (size_t t = thread; t < thread + threads; t++) {
        if (take_part_of(pool, j, t < threads ? t : t - threads, thread)) {
            atomic_store(&own->ended, word_of(j->number, inside.ended));
            bell_ring(&pool->slots[j->slot].end);
        }
    }
}

// 1 + the thread whose result of task i counts. If that takes too long, does it again: a task that
// is being done takes as long as those that this thread did. *since: when waiting began, 0 before.
static unsigned wait_done(const job *j, size_t i, int64_t *since)
{
    unsigned done = atomic_load_explicit(&j->done[i], memory_order_acquire);
    while (done == 0) {
        const int64_t now = now_ns();
        *since = *since == 0 ? now : *since;
        const int64_t each = (*since - inside.begun) / (int64_t)(inside.ended + 1);
        if (now - *since >= moei_i64_max(2 * each, PATIENCE_NS)) {
            attempt(j, i, inside.thread);
        }
        done = atomic_load_explicit(&j->done[i], memory_order_acquire);
        for (int spin = 0; done == 0 && spin < LOOK_EACH; spin++) {
            relax();
            done = atomic_load_explicit(&j->done[i], memory_order_acquire);
        }
    }
    return done;
}

void moei_pool_need(size_t first, size_t end)
{
    int64_t since = 0;
    for (size_t i = first; i < end; i++) {
        (void)wait_done(inside.job, i, &since);
    }
}

// ---- the end of a job --------------------------------------------------------------------------

// Whether all tasks of the job of a slot have ended that had this number: where the slot has the
// next one, they have.
static bool has_ended(const moei_pool *pool, int s, uint64_t number)
{
    const stage *at = &pool->slots[s];
    const size_t n = atomic_load_explicit(&at->n, memory_order_relaxed);
    size_t ended = 0;
    for (size_t t = 0; t <= (size_t)pool->workers; t++) {
        ended += count_in(atomic_load(&tally_of(pool, s, t)->ended), number);
    }
    return ended == n || atomic_load_explicit(&at->number, memory_order_acquire) != number;
}

static void wait_end(moei_pool *pool, int s)
{
    stage *at = &pool->slots[s];
    const uint64_t number = atomic_load_explicit(&at->number, memory_order_acquire);
    for (int spin = 0; !has_ended(pool, s, number); spin++) {
        if (spin < SPINS) {
            relax();
            continue;
        }
        const unsigned rings = bell_begin(&at->end);
        if (!has_ended(pool, s, number)) {
            futex_wait(&at->end.rings, rings);
        }
        bell_end(&at->end);
    }
}

// ---- workers -----------------------------------------------------------------------------------

// The job that has this number; false where the notice is already another one's.
static bool read_notice(const notice *from, uint64_t number, job *to)
{
    to->number = number;
    to->slot = atomic_load_explicit(&from->slot, memory_order_acquire);
    to->threads = atomic_load_explicit(&from->threads, memory_order_acquire);
    to->base = atomic_load_explicit(&from->base, memory_order_acquire);
    to->n = atomic_load_explicit(&from->n, memory_order_acquire);
    to->task = atomic_load_explicit(&from->task, memory_order_acquire);
    to->attempt = atomic_load_explicit(&from->attempt, memory_order_acquire);
    to->arg = atomic_load_explicit(&from->arg, memory_order_acquire);
    to->done = atomic_load_explicit(&from->done, memory_order_acquire);
    return atomic_load_explicit(&from->number, memory_order_relaxed) == number;
}

// The number of a job that is not `seen`; 0: none came while it slept.
static uint64_t next_number(moei_pool *pool, uint64_t seen, unsigned thread)
{
    _Atomic uint64_t *number = &pool->notice.number;
    uint64_t now = atomic_load_explicit(number, memory_order_acquire);
    for (int spin = 0; (now == seen || now == 0) && spin < pool->spins; spin++) {
        relax();
        if (spin % RECLAIM == RECLAIM - 1) { // what others have looked at, for the next claim
            moei_ask_to_write(tally_of(pool, 0, thread), sizeof(tally));
        }
        now = atomic_load_explicit(number, memory_order_acquire);
    }
    if (now != seen) {
        return now;
    }
    const unsigned rings = bell_begin(&pool->next);
    if (atomic_load(number) == seen) {
        futex_wait(&pool->next.rings, rings);
    }
    bell_end(&pool->next);
    return 0;
}

static void *worker(void *argument)
{
    moei_pool *pool = argument;
    const unsigned thread = 1 + atomic_fetch_add_explicit(&pool->numbered, 1, memory_order_relaxed);
    uint64_t seen = 0;
    for (;;) {
        const uint64_t number = next_number(pool, seen, thread);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire)) {
            return NULL;
        }
        job j;
        if (number == 0 || !read_notice(&pool->notice, number, &j)) {
            continue;
        }
        seen = number;
        (void)moei_fp_begin(); // a thread begins with its creator's, and a task may change it
        if ((int)thread < j.threads) {
            take_part(pool, &j, thread);
            leave();
        }
    }
}

// ---- jobs --------------------------------------------------------------------------------------

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
    return inside.stage == NULL && pool->workers > 0 && !has_forked(pool) &&
           atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire) == 0;
}

static void give_back(moei_pool *pool)
{
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
}

// A slot whose job has ended; -1: each has a late worker.
static int free_slot(moei_pool *pool)
{
    for (int s = 0; s < MOEI_POOL_SLOTS; s++) {
        stage *at = &pool->slots[s];
        const uint64_t number = atomic_load_explicit(&at->number, memory_order_relaxed);
        if (!at->late || has_ended(pool, s, number)) {
            return s;
        }
    }
    return -1;
}

// Tells the workers. Each store is a release, so that none overtakes that of 0.
static void open_job(moei_pool *pool, job *j)
{
    stage *at = &pool->slots[j->slot];
    notice *to = &pool->notice;
    moei_ask_to_write(tally_of(pool, j->slot, 0), sizeof(tally));
    j->number = ++pool->last;
    at->late = true;
    atomic_store_explicit(&at->n, j->n, memory_order_relaxed);
    atomic_store_explicit(&at->number, j->number, memory_order_release);
    atomic_store_explicit(&to->number, 0, memory_order_relaxed);
    atomic_store_explicit(&to->slot, j->slot, memory_order_release);
    atomic_store_explicit(&to->threads, j->threads, memory_order_release);
    atomic_store_explicit(&to->base, j->base, memory_order_release);
    atomic_store_explicit(&to->n, j->n, memory_order_release);
    atomic_store_explicit(&to->task, j->task, memory_order_release);
    atomic_store_explicit(&to->attempt, j->attempt, memory_order_release);
    atomic_store_explicit(&to->arg, j->arg, memory_order_release);
    atomic_store_explicit(&to->done, j->done, memory_order_release);
    atomic_store(&to->number, j->number);
    bell_ring(&pool->next);
}

static void run(moei_pool *pool, int threads, size_t n, moe_task_fn task, void *arg)
{
    if (n <= 1 || !take(pool)) {
        run_inline(n, task, arg);
        return;
    }
    for (size_t base = 0; base < n; base += MOST_TASKS) {
        job j = {.slot = free_slot(pool),
                 .threads = threads,
                 .base = base,
                 .n = n - base < MOST_TASKS ? n - base : MOST_TASKS,
                 .task = task,
                 .arg = arg};
        if (j.slot < 0) {
            j.slot = 0;
            wait_end(pool, 0);
        }
        open_job(pool, &j);
        take_part(pool, &j, 0);
        leave();
        wait_end(pool, j.slot);
        pool->slots[j.slot].late = false;
    }
    give_back(pool);
}

static size_t pool_size(void *self)
{
    const moei_pool *pool = self;
    return (size_t)pool->workers + 1;
}

static void pool_parallel_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    run(self, (int)pool_size(self), n, task, arg);
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

// Workers of our own have the environment; those of others get it task by task.
void moei_parallel_for(const moe_thread_pool *pool, size_t n, moe_task_fn task, void *arg)
{
    call c = {task, arg};
    if (n > 1 && pool->parallel_for != pool_parallel_for) {
        pool->parallel_for(pool->self, n, task_in_env, &c);
        return;
    }
    const uint64_t env = moei_fp_begin();
    if (n > 1) {
        pool_parallel_for(pool->self, n, task, arg);
    } else {
        run_inline(n, task, arg);
    }
    moei_fp_end(env);
}

void moei_parallel_for_cores(const moe_thread_pool *pool, size_t n, moe_task_fn task, void *arg)
{
    if (pool->parallel_for != pool_parallel_for) {
        moei_parallel_for(pool, n, task, arg);
        return;
    }
    moei_pool *own = pool->self;
    const uint64_t env = moei_fp_begin();
    run(own, own->cores, n, task, arg);
    moei_fp_end(env);
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
    job j = {.slot = slot,
             .threads = pool->workers + 1,
             .n = attempts->n,
             .attempt = attempts->fn,
             .arg = attempts->arg,
             .done = attempts->done};
    int64_t since = 0;
    for (size_t i = 0; i < j.n; i++) {
        atomic_store_explicit(&j.done[i], 0, memory_order_relaxed);
    }
    open_job(pool, &j);
    take_part(pool, &j, 0);
    for (size_t i = 0; i < j.n; i++) {
        attempts->keep(j.arg, i, (int)wait_done(&j, i, &since) - 1);
    }
    leave();
    pool->slots[slot].late = !has_ended(pool, slot, j.number);
}

void moei_pool_give_back(moei_pool *pool)
{
    give_back(pool);
}

void moei_pool_drain(moei_pool *pool)
{
    for (int s = 0; pool != NULL && !has_forked(pool) && s < MOEI_POOL_SLOTS; s++) {
        if (&pool->slots[s] != inside.stage) { // a task would wait for itself
            wait_end(pool, s);
        }
    }
}

moe_thread_pool moei_pool_view(moei_pool *pool)
{
    const moe_thread_pool view = {pool, pool_size, pool_parallel_for};
    return view;
}

moe_status moei_pool_create(const moe_allocator *allocator, int threads, moei_pool **out)
{
    MOE_REQUIRE(threads >= 1 && threads <= MOEI_MOST_CPUS, MOE_E_ARGUMENT,
                "moe_context_create: num_threads = %d, must be 1..%d", threads, MOEI_MOST_CPUS);
    (void)pthread_once(&fork_once, register_fork_handler);
    const size_t head = moei_size_align(
        sizeof(moei_pool) + (size_t)(threads - 1) * sizeof(pthread_t), _Alignof(moei_pool));
    const size_t bytes = head + MOEI_POOL_SLOTS * (size_t)threads * sizeof(tally);
    moei_pool *pool = allocator->alloc(allocator->self, bytes, _Alignof(moei_pool));
    MOE_REQUIRE(pool != NULL, MOE_E_NO_MEMORY,
                "moe_context_create: no memory for a pool of %d threads (%zu bytes)", threads,
                bytes);
    memset(pool, 0, bytes);
    pool->allocator = allocator;
    pool->bytes = bytes;
    pool->tallies = (tally *)(void *)((unsigned char *)pool + head);
    pool->cores = (int)moei_i64_min(moei_core_count(), threads);
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
        atomic_store(&pool->notice.number, ++pool->last);
        bell_ring(&pool->next);
        for (int i = 0; i < pool->workers; i++) {
            (void)pthread_join(pool->threads[i], NULL);
        }
    }
    pool->allocator->free(pool->allocator->self, pool, pool->bytes);
}
