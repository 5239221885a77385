// SPDX-License-Identifier: Apache-2.0
// Objects and threads: four threads run one plan at once, each with a workspace of its own, while
// others create plans, ask for support, and pack different experts of one layer. Every result has
// the bits that it has alone. Meant for TSan; also a test without it.
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "unit/test.h"

#define THREADS 4
#define RUNS    12

static moe_context *ctx;

// ---- one plan, many runs -----------------------------------------------------------------------

typedef struct runner {
    layer_case *c;
    moe_run_args args;
    unsigned char *workspace, *out, *want;
    size_t out_bytes;
    int failures;
    pthread_t thread;
} runner;

static void *run_often(void *argument)
{
    runner *r = argument;
    for (int i = 0; i < RUNS; i++) {
        memset(r->out, 0xA5, r->out_bytes);
        r->failures += moe_run(r->c->plan, r->c->weights, &r->args, r->workspace,
                               r->c->workspace_bytes, NULL) != MOE_OK ||
                       memcmp(r->out, r->want, r->out_bytes) != 0;
    }
    return NULL;
}

static int count_row(void *self, const moe_support *s)
{
    *(int *)self += s->supported;
    return 0;
}

// Creates, asks and refuses meanwhile: the last refusal is each thread's own.
static void *create_often(void *argument)
{
    int *failures = argument;
    for (int i = 0; i < RUNS; i++) {
        moe_layer_desc d = layer_case_base();
        moe_plan *plan = NULL;
        int rows = 0;
        char text[4096];
        d.hidden = 16 + i;
        *failures += moe_query_support(ctx, &d, count_row, &rows) != MOE_OK || rows == 0;
        *failures += moe_plan_create(ctx, &d, &plan) != MOE_OK ||
                     moe_plan_describe(plan, text, sizeof text, NULL) != MOE_OK;
        moe_plan_destroy(plan);
        d.hidden = -i - 1;
        *failures += moe_plan_create(ctx, &d, &plan) != MOE_E_ARGUMENT ||
                     strstr(moe_last_error(), "hidden = -") == NULL;
    }
    return NULL;
}

static void *allocate(size_t bytes, size_t align)
{
    void *memory = NULL;
    if (posix_memalign(&memory, align, bytes) != 0) {
        abort();
    }
    return memory;
}

// Thread t runs tokens [t, 4 + 2t) of the case: different batches of the same tokens.
static void start_runner(runner *r, layer_case *c, int t)
{
    const size_t row = (size_t)c->desc.hidden * 2;
    r->c = c;
    r->args = c->args;
    r->args.num_tokens = 4 + t;
    r->out_bytes = (size_t)r->args.num_tokens * row;
    r->out = allocate(r->out_bytes, 64);
    r->want = allocate(r->out_bytes, 64);
    r->workspace = allocate(c->workspace_bytes, 256);
    r->failures = 0;
    memcpy(r->want, (unsigned char *)c->args.out.data + (size_t)t * row, r->out_bytes);
    moe_tensor *const views[] = {&r->args.x, &r->args.logits, &r->args.out};
    for (int i = 0; i < 3; i++) {
        views[i]->shape[0] = r->args.num_tokens;
    }
    r->args.x.byte_offset = (uint64_t)t * row;
    r->args.logits.byte_offset = (uint64_t)t * (uint64_t)c->desc.num_experts * 4;
    r->args.out.data = r->out;
    r->args.out_ids.data = r->args.out_weights.data = NULL;
    r->args.out_counts.data = r->args.load.data = NULL;
    CHECK(pthread_create(&r->thread, NULL, run_often, r) == 0, "thread %d", t);
}

static void test_one_plan(const moe_layer_desc *d, const char *name)
{
    runner runners[THREADS];
    pthread_t creator;
    int failures = 0;
    moe_plan *plan = NULL;
    layer_case c;
    if (!CHECK(moe_plan_create(ctx, d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, d, 16) == MOE_OK && layer_case_run(&c) == MOE_OK,
               "%s: %s", name, moe_last_error())) {
        return;
    }
    for (int t = 0; t < THREADS; t++) {
        start_runner(&runners[t], &c, t);
    }
    CHECK(pthread_create(&creator, NULL, create_often, &failures) == 0, "a thread");
    for (int t = 0; t < THREADS; t++) {
        (void)pthread_join(runners[t].thread, NULL);
        CHECK(runners[t].failures == 0, "%s: thread %d: %d of %d runs differ from the whole batch",
              name, t, runners[t].failures, RUNS);
        free(runners[t].out);
        free(runners[t].want);
        free(runners[t].workspace);
    }
    (void)pthread_join(creator, NULL);
    CHECK(failures == 0, "%s: %d calls beside the runs failed", name, failures);
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

// ---- packing -----------------------------------------------------------------------------------

typedef struct packer {
    layer_case *c;
    moe_weights *weights;
    int32_t first, failures;
    pthread_t thread;
} packer;

static void keep_one(moe_tensor *t, int32_t expert)
{
    if (t->data != NULL) {
        t->byte_offset += (uint64_t)(expert * t->stride[0] * moe_dtype_bits(t->dtype) / 8);
        t->shape[0] = 1;
    }
}

static void *pack_two(void *argument)
{
    packer *p = argument;
    for (int32_t e = p->first; e < p->first + 2; e++) {
        moe_weights_source s = p->c->source;
        for (int g = 0; g < 2; g++) {
            keep_one(&s.gemm[g].values, e);
            keep_one(&s.gemm[g].scales, e);
        }
        p->failures += moe_weights_pack(p->weights, e, &s) != MOE_OK;
    }
    return NULL;
}

static void test_packing(void)
{
    moe_layer_desc d = layer_case_base();
    moe_plan *plan = NULL;
    layer_case c;
    packer packers[4];
    moe_weights *together = NULL;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_E4M3FN_TENSOR;
    d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_FP8_STATIC; // one scale, which all bring
    if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, 9) == MOE_OK && layer_case_run(&c) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    const uint64_t want = layer_case_outputs(&c);
    void *memory = allocate(c.weights_bytes, 256);
    CHECK(moe_weights_create(plan, memory, c.weights_bytes, &together) == MOE_OK, "%s",
          moe_last_error());
    for (int i = 0; i < 4; i++) {
        packers[i] = (packer){.c = &c, .weights = together, .first = 2 * i};
        CHECK(pthread_create(&packers[i].thread, NULL, pack_two, &packers[i]) == 0, "thread %d", i);
    }
    for (int i = 0; i < 4; i++) {
        (void)pthread_join(packers[i].thread, NULL);
        CHECK(packers[i].failures == 0, "thread %d: %d experts are refused", i,
              (int)packers[i].failures);
    }
    moe_weights *const alone = c.weights;
    c.weights = together;
    layer_case_poison(&c);
    CHECK(layer_case_run(&c) == MOE_OK && layer_case_outputs(&c) == want,
          "weights packed by four threads differ");
    c.weights = alone;
    moe_weights_destroy(together);
    free(memory);
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 3;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    moe_layer_desc d = layer_case_base();
    test_one_plan(&d, "bf16");
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_MXFP4;
    d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_I8B32;
    d.shared.count = 1;
    d.shared.inter = 40;
    d.shared.gate = MOE_SHARED_SIGMOID;
    d.shared.activation = MOE_ACT_SILU;
    d.shared.gate_up = MOE_GATE_UP_INTERLEAVED;
    d.shared.gemm[0].weight_format = d.shared.gemm[1].weight_format = MOE_FORMAT_E4M3FN_CHANNEL;
    d.inter_dtype = MOE_BF16;
    test_one_plan(&d, "mxfp4, i8b32, shared");
    test_packing();
    moe_context_destroy(ctx);
    return test_summary();
}
