// SPDX-License-Identifier: Apache-2.0
// Runs one layer on backend "cpu" and on another one, and compares the bits; creates contexts from
// eight threads first.   toy_layer BACKEND [PLUGIN_PATH]
#include <moe/moe.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 9, H = 300, I = 70, E = 6, K = 3, THREADS = 8 };
static float x[T * H], logits[T * E], out[2][T * H];
static uint16_t gate_up[E * 2 * I * H], down[E * H * I]; // bf16
static float bias[E * H];
static const char *backend, *plugin_path;

static void check(moe_status status)
{
    if (status != MOE_OK) {
        (void)fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        exit(1);
    }
}

static moe_context *make_context(const char *name)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    desc.num_threads = 2;
    desc.backend = name;
    desc.plugin_path = plugin_path;
    check(moe_context_create(&desc, &ctx));
    return ctx;
}

static void *one_context(void *unused)
{
    moe_context_destroy(make_context(backend));
    return unused;
}

static float noise(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-23f - 1.0f;
}

static uint16_t bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static void fill(void)
{
    for (int i = 0; i < T * H; i++) {
        x[i] = noise();
    }
    for (int i = 0; i < T * E; i++) {
        logits[i] = noise();
    }
    for (int i = 0; i < E * 2 * I * H; i++) {
        gate_up[i] = bf16(noise() * 0.1f);
    }
    for (int i = 0; i < E * H * I; i++) {
        down[i] = bf16(noise() * 0.1f);
    }
    for (int i = 0; i < E * H; i++) {
        bias[i] = noise();
    }
}

static void print_refusal(moe_context *ctx, const moe_layer_desc *desc)
{
    moe_plan *plan = NULL;
    const int taken = moe_plan_create(ctx, desc, &plan) == MOE_OK;
    printf("%s\n", taken ? "taken" : moe_last_error());
    moe_plan_destroy(plan);
}

static void run(const char *name, float *y)
{
    moe_context *ctx = make_context(name);
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = T, d.hidden = H, d.inter = I, d.num_experts = E, d.top_k = K;
    d.x_dtype = MOE_F32;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_BF16;
    d.gemm[1].bias = 1;
    d.routing = MOE_ROUTING_FROM_LOGITS;
    d.route.scoring = MOE_SCORING_SOFTMAX, d.route.renormalise = MOE_RENORM_SUM;
    d.activation = MOE_ACT_SILU, d.gate_up = MOE_GATE_FIRST, d.weight_stage = MOE_WEIGHT_OUTPUT;
    moe_plan *plan = NULL;
    moe_weights *weights = NULL;
    check(moe_plan_create(ctx, &d, &plan));
    moe_weights_source w = moe_weights_source_default();
    w.gemm[0].values = moe_tensor_3d(gate_up, MOE_BF16, E, 2 * I, H);
    w.gemm[1].values = moe_tensor_3d(down, MOE_BF16, E, H, I);
    w.gemm[1].bias = moe_tensor_2d(bias, MOE_F32, E, H);
    check(moe_weights_wrap(plan, &w, &weights));
    size_t bytes = 0;
    size_t align = 0;
    check(moe_plan_workspace(plan, T, &bytes, &align));
    void *workspace = aligned_alloc(align, (bytes + align - 1) / align * align);
    moe_run_args a = moe_run_args_default();
    a.num_tokens = T;
    a.x = moe_tensor_2d(x, MOE_F32, T, H);
    a.logits = moe_tensor_2d(logits, MOE_F32, T, E);
    a.out = moe_tensor_2d(y, MOE_F32, T, H);
    check(moe_run(plan, weights, &a, workspace, bytes, NULL));
    free(workspace);
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    // The refusals of a plugin's rows and of its plan_check come with their values.
    if (strcmp(name, "cpu") != 0) {
        d.gemm[0].weight_format = MOE_FORMAT_MXFP4;
        print_refusal(ctx, &d);
        d.gemm[0].weight_format = MOE_FORMAT_BF16;
        d.latent = 64;
        print_refusal(ctx, &d);
    }
    moe_context_destroy(ctx);
}

static int print_runs(void *unused, const moe_kernel_info *info)
{
    (void)unused;
    if (strcmp(info->backend, backend) == 0) {
        printf("%s ran %llu times\n", info->name, (unsigned long long)info->runs);
    }
    return 0;
}

static int print_backend(void *unused, const moe_backend_info *info)
{
    (void)unused;
    printf("backend %s %s: %s\n", info->name, info->available ? "ready" : "absent", info->reason);
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    if (argc < 2) {
        (void)fprintf(stderr, "usage: toy_layer BACKEND [PLUGIN_PATH]\n");
        return 2;
    }
    backend = argv[1];
    plugin_path = argc > 2 ? argv[2] : NULL;
    // A context that asks for nothing of the kind is not troubled by a plugin that cannot be used.
    moe_context *ctx = make_context(NULL);
    (void)moe_context_visit_backends(ctx, print_backend, NULL);
    for (int i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, one_context, NULL) != 0) {
            return 1;
        }
    }
    for (int i = 0; i < THREADS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    fill();
    run("cpu", out[0]);
    run(backend, out[1]);
    (void)moe_context_visit_kernels(ctx, print_runs, NULL);
    moe_context_destroy(ctx);
    const int equal = memcmp(out[0], out[1], sizeof out[0]) == 0;
    printf("out[0] = %.9g, %s\n", (double)out[0][0],
           equal ? "the same bits on both" : "other bits");
    return equal && out[0][0] != 0.0f ? 0 : 1;
}
