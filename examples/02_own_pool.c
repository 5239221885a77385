// SPDX-License-Identifier: Apache-2.0
// The caller's threads and the caller's memory: libmoe starts no thread and calls no malloc.
#include <moe/moe.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 4, T = 32, H = 128, I = 64, E = 8, K = 2 };

static void check(moe_status status)
{
    if (status != MOE_OK) {
        (void)fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        exit(1);
    }
}

// ---- a pool that starts its threads anew for every loop; a real program has one that stays

typedef struct loop {
    moe_task_fn task;
    void *arg;
    size_t first, end;
} loop;

static void *work(void *arg)
{
    const loop *l = arg;
    for (size_t i = l->first; i < l->end; i++) {
        l->task(l->arg, i);
    }
    return NULL;
}

static size_t pool_size(void *self)
{
    (void)self;
    return THREADS;
}

// Returns when every index in [0, n) has run. It must not fail: what no thread takes runs here.
static void pool_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    size_t *loops = self;
    pthread_t threads[THREADS];
    loop parts[THREADS];
    int started[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        parts[i] = (loop){task, arg, n * i / THREADS, n * (i + 1) / THREADS};
        started[i] = i > 0 && pthread_create(&threads[i], NULL, work, &parts[i]) == 0;
    }
    for (size_t i = 0; i < THREADS; i++) {
        if (started[i]) {
            (void)pthread_join(threads[i], NULL);
        } else {
            (void)work(&parts[i]);
        }
    }
    ++*loops;
}

// ---- an arena: objects are created once and released together

typedef struct arena {
    _Alignas(64) unsigned char memory[1 << 16];
    size_t used;
} arena;

static void *arena_alloc(void *self, size_t bytes, size_t align)
{
    arena *a = self;
    const size_t at = (a->used + align - 1) / align * align;
    if (at > sizeof a->memory || bytes > sizeof a->memory - at) {
        return NULL; // the call that asked fails with MOE_E_NO_MEMORY
    }
    a->used = at + bytes;
    return a->memory + at;
}

static void arena_free(void *self, void *memory, size_t bytes)
{
    (void)self, (void)memory, (void)bytes;
}

static float x[T * H], out[T * H], logits[T * E], gate_up[E * 2 * I * H], down[E * H * I];

int main(void)
{
    static arena objects;
    static _Alignas(256) unsigned char workspace[1 << 18];
    size_t loops = 0;
    const moe_thread_pool pool = {&loops, pool_size, pool_for};
    const moe_allocator allocator = {&objects, arena_alloc, arena_free};
    moe_context_desc c = moe_context_desc_default();
    c.pool = &pool;
    c.allocator = &allocator;
    moe_context *ctx;
    check(moe_context_create(&c, &ctx));

    for (int i = 0; i < T * H; i++) {
        x[i] = (float)(i % 7 - 3);
    }
    for (int i = 0; i < E * 2 * I * H; i++) {
        gate_up[i] = (float)(i % 5 - 2) / 16;
    }
    for (int i = 0; i < E * H * I; i++) {
        down[i] = (float)(i % 3 - 1) / 16;
    }
    for (int i = 0; i < T * E; i++) {
        logits[i] = (float)(i % 11);
    }
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = T, d.hidden = H, d.inter = I, d.num_experts = E, d.top_k = K;
    d.x_dtype = MOE_F32;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_F32;
    d.routing = MOE_ROUTING_FROM_LOGITS;
    d.route.scoring = MOE_SCORING_SOFTMAX, d.route.renormalise = MOE_RENORM_SUM;
    d.activation = MOE_ACT_SILU, d.gate_up = MOE_GATE_FIRST, d.weight_stage = MOE_WEIGHT_OUTPUT;
    d.workspace_cap = sizeof workspace; // a plan that needs more is refused, not the run
    moe_plan *plan;
    moe_weights *weights;
    check(moe_plan_create(ctx, &d, &plan));
    moe_weights_source w = moe_weights_source_default();
    w.gemm[0].values = moe_tensor_3d(gate_up, MOE_F32, E, 2 * I, H);
    w.gemm[1].values = moe_tensor_3d(down, MOE_F32, E, H, I);
    check(moe_weights_wrap(plan, &w, &weights));

    moe_run_args a = moe_run_args_default();
    a.num_tokens = T;
    a.x = moe_tensor_2d(x, MOE_F32, T, H);
    a.logits = moe_tensor_2d(logits, MOE_F32, T, E);
    a.out = moe_tensor_2d(out, MOE_F32, T, H);
    const size_t before = objects.used;
    check(moe_run(plan, weights, &a, workspace, sizeof workspace, NULL));
    printf("out[0] = %g on %d threads, %zu loops; objects take %zu bytes, a run %zu\n",
           (double)out[0], moe_context_num_threads(ctx), loops, before, objects.used - before);

    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    moe_context_destroy(ctx);
    return objects.used != before || loops == 0;
}
