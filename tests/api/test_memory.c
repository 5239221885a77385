// SPDX-License-Identifier: Apache-2.0
// Memory and threads: a run and a support query allocate nothing and start nothing, from the first
// call on; creation uses the caller's allocator alone, and undoes everything when an allocation or
// a thread fails, whichever it is; the caller's pool is used, and the order of its tasks changes no
// bit.
//
// The C library's allocation functions are replaced by counting ones in this program; under a
// sanitizer, which replaces them itself, its hooks count.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api/layer_case.h"
#include "unit/test.h"

// ---- counting ----------------------------------------------------------------------------------

static atomic_bool counting;
static atomic_ulong allocations; // while counting
static atomic_int threads_until_failure = -1;
static atomic_ulong threads_started;
static atomic_ulong threads_entered;

static void count(void)
{
    if (atomic_load_explicit(&counting, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    }
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif

#ifdef SANITIZED
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));

static void on_malloc(const volatile void *memory, size_t bytes)
{
    (void)memory;
    (void)bytes;
    count();
}

static void on_free(const volatile void *memory)
{
    (void)memory;
}

static void start_counters(void)
{
    CHECK(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) != 0, "no room for hooks");
}
#else
// glibc's own functions, under the names that it keeps for this purpose.
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);

void *malloc(size_t bytes)
{
    count();
    return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
    count();
    return __libc_calloc(n, bytes);
}

void *realloc(void *memory, size_t bytes)
{
    count();
    return __libc_realloc(memory, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    count();
    return __libc_memalign(align, bytes);
}

int posix_memalign(void **out, size_t align, size_t bytes)
{
    count();
    *out = __libc_memalign(align, bytes);
    return *out != NULL ? 0 : ENOMEM;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
{
    count();
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}

static void start_counters(void)
{
}
#endif

#define MAX_BEGINNINGS 256

typedef struct beginning {
    void *(*start)(void *);
    void *argument;
} beginning;

static beginning beginnings[MAX_BEGINNINGS];

static void *enter(void *argument)
{
    const beginning b = *(const beginning *)argument;
    atomic_fetch_add(&threads_entered, 1);
    return b.start(b.argument);
}

typedef int create_fn(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    static create_fn *real;
    if (real == NULL) {
        void *found = dlsym(RTLD_NEXT, "pthread_create");
        memcpy(&real, &found, sizeof real);
    }
    count();
    if (atomic_load(&threads_until_failure) >= 0 &&
        atomic_fetch_sub(&threads_until_failure, 1) == 0) {
        return EAGAIN;
    }
    beginning *b = &beginnings[atomic_fetch_add(&threads_started, 1) % MAX_BEGINNINGS];
    *b = (beginning){start, argument};
    return real(thread, attributes, enter, b);
}

// A sanitizer allocates on the first steps of a thread; those are not the library's.
static void wait_for_threads(void)
{
    while (atomic_load(&threads_entered) < atomic_load(&threads_started)) {
        (void)sched_yield();
    }
}

static void begin(void)
{
    atomic_store(&allocations, 0);
    atomic_store(&counting, true);
}

static unsigned long end(void)
{
    atomic_store(&counting, false);
    return atomic_load(&allocations);
}

static void test_counters(void)
{
    begin();
    void *volatile memory = malloc(10);
    CHECK(end() == 1, "the counters do not count: %lu", atomic_load(&allocations));
    free(memory);
}

// ---- the caller's allocator --------------------------------------------------------------------

#define MAX_LIVE 64

typedef struct ledger {
    pthread_mutex_t lock;
    void *live[MAX_LIVE];
    size_t bytes[MAX_LIVE];
    int num_live;
    int calls;
    int fails_at; // call that returns NULL, from 1; 0: none
} ledger;

static void *ledger_alloc(void *self, size_t bytes, size_t align)
{
    ledger *l = self;
    void *memory = NULL;
    (void)pthread_mutex_lock(&l->lock);
    CHECK(bytes > 0 && align > 0 && (align & (align - 1)) == 0,
          "asked for %zu bytes aligned to %zu", bytes, align);
    if (++l->calls != l->fails_at && l->num_live < MAX_LIVE &&
        posix_memalign(&memory, align < sizeof(void *) ? sizeof(void *) : align, bytes) == 0) {
        l->live[l->num_live] = memory;
        l->bytes[l->num_live++] = bytes;
    }
    (void)pthread_mutex_unlock(&l->lock);
    return memory;
}

static void ledger_free(void *self, void *memory, size_t bytes)
{
    ledger *l = self;
    (void)pthread_mutex_lock(&l->lock);
    int at = 0;
    while (at < l->num_live && l->live[at] != memory) {
        at++;
    }
    if (CHECK(at < l->num_live, "freed what was not allocated")) {
        CHECK(l->bytes[at] == bytes, "allocated with %zu bytes, freed with %zu", l->bytes[at],
              bytes);
        l->live[at] = l->live[--l->num_live];
        l->bytes[at] = l->bytes[l->num_live];
        free(memory);
    }
    (void)pthread_mutex_unlock(&l->lock);
}

static ledger the_ledger = {.lock = PTHREAD_MUTEX_INITIALIZER};
static const moe_allocator ledger_allocator = {&the_ledger, ledger_alloc, ledger_free};

typedef struct objects {
    moe_context *ctx;
    moe_plan *plan;
    layer_case c; // sources for the weights
    moe_weights *weights;
} objects;

static moe_status make_context(objects *o)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 3;
    desc.allocator = &ledger_allocator;
    return moe_context_create(&desc, &o->ctx);
}

static moe_status make_plan(objects *o)
{
    const moe_layer_desc d = layer_case_base();
    return moe_plan_create(o->ctx, &d, &o->plan);
}

static moe_status make_weights(objects *o)
{
    void *memory = o->c.blocks[0]; // any aligned memory that is large enough
    for (int i = 1; i < o->c.num_blocks; i++) {
        memory = o->c.block_bytes[i] == o->c.weights_bytes ? o->c.blocks[i] : memory;
    }
    return moe_weights_create(o->plan, memory, o->c.weights_bytes, &o->weights);
}

static moe_status wrap_weights(objects *o)
{
    return moe_weights_wrap(o->plan, &o->c.source, &o->weights);
}

// Fails the first allocation, then the second.. until the call succeeds. Nothing may be left
// behind, or be written to the call's result.
static void fail_each(const char *name, objects *o, moe_status (*make)(objects *), void **result)
{
    const int before = the_ledger.num_live;
    int failures = 0;
    for (int n = 1; n < 50; n++) {
        *result = NULL;
        the_ledger.calls = 0;
        the_ledger.fails_at = n;
        const moe_status status = make(o);
        the_ledger.fails_at = 0;
        if (status == MOE_OK) {
            CHECK(the_ledger.calls == n - 1, "%s: %d allocations, %d failed in turn", name,
                  the_ledger.calls, n - 1);
            CHECK(failures > 0, "%s allocates nothing through the caller's allocator", name);
            return;
        }
        failures++;
        CHECK(status == MOE_E_NO_MEMORY && strstr(moe_last_error(), name) != NULL,
              "%s, allocation %d fails: %s: %s", name, n, moe_status_name(status),
              moe_last_error());
        CHECK(*result == NULL, "%s, allocation %d fails: the result is written", name, n);
        CHECK(the_ledger.num_live == before, "%s, allocation %d fails: %d blocks are lost", name, n,
              the_ledger.num_live - before);
    }
    CHECK(0, "%s never succeeds", name);
}

static void test_failing_allocations(void)
{
    static objects o;
    fail_each("moe_context_create", &o, make_context, (void **)(void *)&o.ctx);
    fail_each("moe_plan_create", &o, make_plan, (void **)(void *)&o.plan);
    const moe_layer_desc d = layer_case_base();
    if (CHECK(layer_case_make(&o.c, o.plan, &d, 4) == MOE_OK, "%s", moe_last_error())) {
        fail_each("moe_weights_create", &o, make_weights, (void **)(void *)&o.weights);
        moe_weights_destroy(o.weights);
        fail_each("moe_weights_wrap", &o, wrap_weights, (void **)(void *)&o.weights);
        moe_weights_destroy(o.weights);
    }
    layer_case_free(&o.c);
    moe_plan_destroy(o.plan);
    moe_context_destroy(o.ctx);
    CHECK(the_ledger.num_live == 0, "%d blocks are lost", the_ledger.num_live);
}

// A refused call after its first allocation gives that back too.
static void test_refusal_after_allocation(void)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    desc.allocator = &ledger_allocator;
    desc.isa = "none such";
    CHECK(moe_context_create(&desc, &ctx) == MOE_E_ARGUMENT && ctx == NULL, "isa: %s",
          moe_last_error());
    CHECK(the_ledger.num_live == 0, "%d blocks are lost", the_ledger.num_live);
}

static void test_failing_threads(void)
{
    for (int n = 0; n < 4; n++) {
        objects o = {.ctx = NULL};
        atomic_store(&threads_until_failure, n);
        const moe_status status = make_context(&o); // two threads besides the caller's
        atomic_store(&threads_until_failure, -1);
        if (n < 2) {
            CHECK(status == MOE_E_THREAD && o.ctx == NULL &&
                      strstr(moe_last_error(), "moe_context_create") != NULL,
                  "thread %d fails: %s: %s", n + 1, moe_status_name(status), moe_last_error());
        } else {
            CHECK(status == MOE_OK, "%s", moe_last_error());
        }
        moe_context_destroy(o.ctx);
        CHECK(the_ledger.num_live == 0, "thread %d fails: %d blocks are lost", n + 1,
              the_ledger.num_live);
    }
}

// With an allocator of the caller's, creation calls no other.
static void test_allocator_alone(void)
{
    static objects o;
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    desc.allocator = &ledger_allocator;
    the_ledger.calls = 0;
    begin();
    moe_status status = moe_context_create(&desc, &o.ctx);
    status = status == MOE_OK ? make_plan(&o) : status;
    const unsigned long seen = end();
    CHECK(status == MOE_OK, "%s", moe_last_error());
    CHECK(seen <= (unsigned long)the_ledger.calls && the_ledger.calls > 0,
          "%lu allocations, of which %d through the caller's allocator", seen, the_ledger.calls);
    moe_plan_destroy(o.plan);
    moe_context_destroy(o.ctx);
    CHECK(the_ledger.num_live == 0, "%d blocks are lost", the_ledger.num_live);
}

// ---- runs --------------------------------------------------------------------------------------

static int visit_nothing(void *self, const moe_support *s)
{
    (void)self;
    (void)s;
    return 0;
}

static moe_layer_desc variant(int n)
{
    moe_layer_desc d = layer_case_base();
    switch (n) {
    case 1: // quantised, shared experts, a latent width
        d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_E4M3FN_BLOCK;
        d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_FP8_GROUP_DIV;
        d.latent = 96;
        d.shared.count = 2;
        d.shared.inter = 40;
        d.shared.gate = MOE_SHARED_SIGMOID;
        d.shared.activation = MOE_ACT_RELU2_NO_MUL;
        d.shared.gemm[0].weight_format = d.shared.gemm[1].weight_format = MOE_FORMAT_F32;
        break;
    case 2: // a scale over all tokens
        d.determinism = MOE_DET_RUN;
        d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_E4M3FN_TENSOR;
        d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_FP8_TENSOR;
        d.route.scoring = MOE_SCORING_SQRTSOFTPLUS;
        d.route.zero_experts = 2;
        break;
    case 3: // rows per expert
        memset(&d.route, 0, sizeof d.route);
        d.routing = MOE_ROUTING_PLACED;
        d.x_layout = MOE_X_BATCHED;
        d.top_k = 0;
        d.accumulate = 1;
        d.gemm[0].weight_format = MOE_FORMAT_MXFP4;
        break;
    case 4: // weight on the input, slots
        d.weight_stage = MOE_WEIGHT_INPUT;
        d.out_mode = MOE_OUT_SLOTS;
        d.gemm[0].weight_format = MOE_FORMAT_INT4_GROUP;
        d.gemm[1].weight_format = MOE_FORMAT_NVFP4;
        break;
    default:
        break;
    }
    return d;
}
#define VARIANTS 5

static void test_runs_allocate_nothing(void)
{
    moe_context *ctx = NULL;
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 4;
    CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error());
    wait_for_threads();
    for (int v = 0; v < VARIANTS; v++) {
        const moe_layer_desc d = variant(v);
        moe_plan *plan = NULL;
        layer_case c;
        char text[4096];
        begin();
        moe_status status = moe_query_support(ctx, &d, visit_nothing, NULL);
        CHECK(end() == 0 && status == MOE_OK, "a support query allocates %lu times",
              atomic_load(&allocations));
        if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                       layer_case_make(&c, plan, &d, 13) == MOE_OK,
                   "%s", moe_last_error())) {
            moe_plan_destroy(plan);
            continue;
        }
        for (int run = 0; run < 3; run++) {
            begin();
            status = layer_case_run(&c);
            CHECK(end() == 0, "variant %d, run %d allocates %lu times", v, run,
                  atomic_load(&allocations));
            CHECK(status == MOE_OK, "%s", moe_last_error());
        }
        begin();
        c.args.num_tokens = 17;
        status = layer_case_run(&c);
        (void)moe_plan_explain(plan, text, sizeof text, NULL);
        (void)moe_plan_describe(plan, text, sizeof text, NULL);
        CHECK(end() == 0 && status == MOE_E_ARGUMENT, "a refused run or a text allocates %lu times",
              atomic_load(&allocations));
        layer_case_free(&c);
        moe_plan_destroy(plan);
    }
    moe_context_destroy(ctx);
}

// ---- the caller's pool -------------------------------------------------------------------------

typedef struct pool {
    size_t size;
    unsigned long calls, tasks;
    int order; // 0: ascending, 1: descending, 2: two threads, each descending
} pool;

typedef struct half {
    moe_task_fn task;
    void *arg;
    size_t first, n;
} half;

static size_t pool_size(void *self)
{
    return ((pool *)self)->size;
}

static void *run_half(void *argument)
{
    const half *h = argument;
    for (size_t i = h->n; i-- > h->first;) {
        h->task(h->arg, i);
    }
    return NULL;
}

static void pool_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    pool *p = self;
    p->calls++;
    p->tasks += n;
    if (p->order == 0) {
        for (size_t i = 0; i < n; i++) {
            task(arg, i);
        }
        return;
    }
    half upper = {task, arg, p->order == 2 ? n / 2 : 0, n};
    half lower = {task, arg, 0, n / 2};
    pthread_t thread;
    if (p->order == 2 && pthread_create(&thread, NULL, run_half, &lower) == 0) {
        (void)run_half(&upper);
        (void)pthread_join(thread, NULL);
    } else {
        upper.first = 0;
        (void)run_half(&upper);
    }
}

static void test_pool(void)
{
    for (int v = 0; v < VARIANTS; v++) {
        uint64_t want = 0;
        for (int order = 0; order < 3; order++) {
            const moe_layer_desc d = variant(v);
            pool p = {.size = 5, .order = order};
            const moe_thread_pool view = {&p, pool_size, pool_for};
            moe_context_desc desc = moe_context_desc_default();
            moe_context *ctx = NULL;
            moe_plan *plan = NULL;
            layer_case c;
            desc.pool = &view;
            const unsigned long threads = atomic_load(&threads_started);
            CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error());
            CHECK(atomic_load(&threads_started) == threads,
                  "threads are started beside the caller's pool");
            CHECK(moe_context_num_threads(ctx) == 5, "%d threads, the pool has 5",
                  moe_context_num_threads(ctx));
            if (CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                          layer_case_make(&c, plan, &d, 13) == MOE_OK,
                      "%s", moe_last_error())) {
                CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
                CHECK(p.calls > 0 && p.tasks > p.calls,
                      "%lu tasks in %lu jobs of the caller's pool", p.tasks, p.calls);
                const uint64_t have = layer_case_outputs(&c);
                want = order == 0 ? have : want;
                CHECK(have == want, "variant %d: other bits when tasks run in order %d", v, order);
                layer_case_free(&c);
            }
            moe_plan_destroy(plan);
            moe_context_destroy(ctx);
        }
    }
}

int main(void)
{
    start_counters();
    test_counters();
    test_runs_allocate_nothing(); // first, so that its first run is the program's
    test_failing_allocations();
    test_refusal_after_allocation();
    test_failing_threads();
    test_allocator_alone();
    test_pool();
    return test_summary();
}
