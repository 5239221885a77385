// SPDX-License-Identifier: Apache-2.0
// Results do not depend on the floating-point environment of the threads that ask for them, or that
// the caller's pool has: rounding and flushing of subnormals; and it is theirs again afterwards.
#include <fenv.h>
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "api/layer_edits.h"
#include "core/fp_env.h"
#include "unit/test.h"

#define FEW  3 // tokens: attempts of the library's own pool
#define MANY 80

enum { USUAL, ROUNDING, FOREIGN }; // contexts

// ---- environments ------------------------------------------------------------------------------

#if defined(__x86_64__)
static const uint64_t environments[] = {
    0x9FC0, // subnormal operands and results are zero, as -ffast-math has it
    0x5F80, // to plus infinity
    0x7F80, // to zero
};

static void set_env(uint64_t env)
{
    _mm_setcsr((uint32_t)env);
}

static uint64_t get_env(void)
{
    return _mm_getcsr() & ~MOEI_FP_FLAGS;
}
#elif defined(__aarch64__)
static const uint64_t environments[] = {1ul << 24, 1ul << 22, 3ul << 22};

static void set_env(uint64_t env)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(env) : "memory");
}

static uint64_t get_env(void)
{
    uint64_t env;
    __asm__ volatile("mrs %0, fpcr" : "=r"(env));
    return env;
}
#endif

// A pool whose only thread is the caller, in an environment of its own.
static uint64_t pool_env;

static size_t pool_size(void *self)
{
    (void)self;
    return 3;
}

static void pool_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    (void)self;
    const uint64_t was = get_env();
    for (size_t i = 0; i < n; i++) {
        set_env(pool_env);
        task(arg, i);
        CHECK(get_env() == pool_env, "task %d of %d: %llx, not %llx", (int)i, (int)n,
              (unsigned long long)get_env(), (unsigned long long)pool_env);
    }
    set_env(was);
}

// ---- layers whose results show it --------------------------------------------------------------

static void plain(moe_layer_desc *d)
{
    (void)d;
}

static void codes8(moe_layer_desc *d)
{
    d->gemm[0].weight_format = d->gemm[1].weight_format = MOE_FORMAT_E4M3FN_BLOCK;
}

static void codes4(moe_layer_desc *d)
{
    d->gemm[0].weight_format = d->gemm[1].weight_format = MOE_FORMAT_MXFP4;
}

static void fixed(moe_layer_desc *d)
{
    codes4(d);
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_I16B32;
}

static const struct {
    const char *name;
    void (*edit)(moe_layer_desc *d);
} layers[] = {{"bf16", plain},
              {"e4m3", codes8},
              {"e4m3 x e4m3", quantise},
              {"mxfp4", codes4},
              {"mxfp4 x i16b32", fixed}};

static uint64_t run_layer(moe_context *ctx, const moe_layer_desc *d, int64_t tokens, uint64_t env,
                          const char *name)
{
    moe_plan *plan = NULL;
    layer_case c;
    uint64_t outputs = 0;
    if (!CHECK(moe_plan_create(ctx, d, &plan) == MOE_OK, "%s: %s", name, moe_last_error())) {
        return 0;
    }
    if (CHECK(layer_case_make(&c, plan, d, tokens) == MOE_OK, "%s: %s", name, moe_last_error())) {
        const uint64_t was = get_env();
        set_env(env);
        const moe_status status = layer_case_run(&c);
        const uint64_t after = get_env();
        set_env(was);
        CHECK(status == MOE_OK, "%s: %s", name, moe_last_error());
        CHECK(after == env, "%s: the caller's environment was %llx, is %llx", name,
              (unsigned long long)env, (unsigned long long)after);
        outputs = layer_case_outputs(&c);
    }
    layer_case_free(&c);
    moe_plan_destroy(plan);
    return outputs;
}

static void test_layer(moe_context *const ctx[3], size_t l, int64_t tokens)
{
    const uint64_t usual = get_env();
    const char *name = layers[l].name;
    moe_layer_desc d = layer_case_base();
    d.hidden = 320;
    d.inter = 192;
    d.inter_dtype = d.partial_dtype = d.out_dtype = MOE_F32; // which show the last bit
    d.max_tokens = tokens;
    layers[l].edit(&d);
    const uint64_t want = run_layer(ctx[USUAL], &d, tokens, usual, name);
    for (size_t e = 0; e < sizeof environments / sizeof environments[0]; e++) {
        const uint64_t env = environments[e];
        pool_env = env;
        CHECK(run_layer(ctx[USUAL], &d, tokens, env, name) == want,
              "%s, %d tokens, caller in %llx: other results", name, (int)tokens,
              (unsigned long long)env);
        CHECK(run_layer(ctx[FOREIGN], &d, tokens, usual, name) == want,
              "%s, %d tokens, the caller's pool in %llx: other results", name, (int)tokens,
              (unsigned long long)env);
    }
    CHECK(run_layer(ctx[ROUNDING], &d, tokens, usual, name) == want,
          "%s, %d tokens, threads made by one that rounds up: other results", name, (int)tokens);
}

// Workers begin with the environment of who creates the context.
static moe_context *context_in(uint64_t env, const moe_thread_pool *pool)
{
    moe_context *ctx = NULL;
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = pool != NULL ? 0 : 3;
    desc.pool = pool;
    const uint64_t was = get_env();
    set_env(env);
    const moe_status status = moe_context_create(&desc, &ctx);
    set_env(was);
    CHECK(status == MOE_OK, "%s", moe_last_error());
    return ctx;
}

int main(void)
{
    const moe_thread_pool pool = {NULL, pool_size, pool_for};
    moe_context *ctx[3] = {[USUAL] = context_in(get_env(), NULL),
                           [ROUNDING] = context_in(environments[1], NULL),
                           [FOREIGN] = context_in(get_env(), &pool)};
    if (ctx[USUAL] != NULL && ctx[ROUNDING] != NULL && ctx[FOREIGN] != NULL) {
        for (size_t l = 0; l < sizeof layers / sizeof layers[0]; l++) {
            test_layer(ctx, l, FEW);
            test_layer(ctx, l, MANY);
        }
    }
    for (int i = 0; i < 3; i++) {
        moe_context_destroy(ctx[i]);
    }
    return test_summary();
}
