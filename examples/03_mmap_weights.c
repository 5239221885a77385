// SPDX-License-Identifier: Apache-2.0
// A layer of a checkpoint runs on the weights where they lie in the mapped file: nothing is copied.
// Its input is a recorded one, its output is compared with the recorded one.
//   03_mmap_weights models/tiny-gpt-oss
#include <math.h>
#include <moe/io.h>
#include <moe/moe.h>
#include <stdio.h>
#include <stdlib.h>

static void check(moe_status status)
{
    if (status != MOE_OK) {
        (void)fprintf(stderr, "%s: %s\n", moe_status_name(status), moe_last_error());
        exit(1);
    }
}

static void *allocate(size_t bytes, size_t align)
{
    void *memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (memory == NULL) {
        (void)fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return memory;
}

// A tensor of layer 0, as the checkpoint's dialect names it.
static moe_tensor tensor(const moe_checkpoint *checkpoint, const char *name)
{
    char full[128];
    moe_tensor t;
    (void)snprintf(full, sizeof full, "model.layers.0.mlp.%s", name);
    check(moe_checkpoint_tensor(checkpoint, full, &t));
    return t;
}

// The layer as the model's configuration describes it.
static moe_layer_desc read_config(const char *dir)
{
    static char json[1 << 16];
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *file = fopen(path, "rb");
    const size_t size = file != NULL ? fread(json, 1, sizeof json, file) : 0;
    moe_layer_desc d = moe_layer_desc_default();
    check(moe_layer_desc_from_config(json, size, &d));
    (void)fclose(file);
    return d;
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "models/tiny-gpt-oss";
    char path[4096];
    moe_checkpoint *checkpoint;
    moe_file *recording;
    moe_context *ctx;
    moe_plan *plan;
    moe_weights *weights;
    check(moe_checkpoint_open(dir, MOE_FILE_DEFAULT, &checkpoint));
    (void)snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    check(moe_file_open(path, MOE_FILE_DEFAULT, &recording));
    moe_tensor x, expected;
    check(moe_file_tensor(recording, "p0.l0.moe_in_f32", &x));
    check(moe_file_tensor(recording, "p0.l0.moe_out", &expected));
    const int64_t tokens = x.shape[0];

    moe_layer_desc d = read_config(dir);
    d.max_tokens = tokens;
    d.x_dtype = MOE_F32;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_MXFP4;
    check(moe_context_create(NULL, &ctx));
    check(moe_plan_create(ctx, &d, &plan));

    // The views of the checkpoint are the source; the file stays open as long as the weights.
    moe_weights_source w = moe_weights_source_default();
    w.gemm[0].values = tensor(checkpoint, "experts.gate_up_proj_blocks");
    w.gemm[0].scales = tensor(checkpoint, "experts.gate_up_proj_scales");
    w.gemm[0].bias = tensor(checkpoint, "experts.gate_up_proj_bias");
    w.gemm[1].values = tensor(checkpoint, "experts.down_proj_blocks");
    w.gemm[1].scales = tensor(checkpoint, "experts.down_proj_scales");
    w.gemm[1].bias = tensor(checkpoint, "experts.down_proj_bias");
    check(moe_weights_wrap(plan, &w, &weights));

    // The router is a product with one group.
    moe_ggemm_args router = {.struct_size = sizeof router};
    const moe_tensor router_weight = tensor(checkpoint, "router.weight");
    float *logits = allocate((size_t)(tokens * d.num_experts) * sizeof *logits, 64);
    router.gemm.weight_format = router_weight.dtype == MOE_BF16 ? MOE_FORMAT_BF16 : MOE_FORMAT_F32;
    router.gemm.bias = 1;
    router.weights.values = router_weight;
    router.weights.bias = tensor(checkpoint, "router.bias");
    router.x = x;
    router.y = moe_tensor_2d(logits, MOE_F32, tokens, d.num_experts);
    check(moe_ggemm(ctx, &router, NULL));

    size_t bytes, align;
    check(moe_plan_workspace(plan, tokens, &bytes, &align));
    void *workspace = allocate(bytes, align);
    float *out = allocate((size_t)(tokens * d.hidden) * sizeof *out, 64);
    moe_run_args a = moe_run_args_default();
    a.num_tokens = tokens;
    a.x = x;
    a.logits = router.y;
    a.out = moe_tensor_2d(out, MOE_F32, tokens, d.hidden);
    check(moe_run(plan, weights, &a, workspace, bytes, NULL));

    // The recording is of f32 sums in another order: 1e-5 of a value and of the deviation.
    const float *want = (const float *)((const char *)expected.data + expected.byte_offset);
    const int64_t count = tokens * d.hidden;
    double square = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        square += (double)want[i] * (double)want[i];
    }
    const double deviation = sqrt(square / (double)count);
    for (int64_t i = 0; i < count; i++) {
        const double bound = 1e-5 * (fabs((double)want[i]) + deviation);
        worst = fmax(worst, fabs((double)out[i] - (double)want[i]) / bound);
    }
    printf("%lld tokens, %d experts of %lld: largest difference %.2f of the bound\n",
           (long long)tokens, (int)d.num_experts, (long long)d.inter, worst);
    free(out);
    free(workspace);
    free(logits);
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    moe_context_destroy(ctx);
    moe_file_close(recording);
    moe_checkpoint_close(checkpoint);
    return !(worst <= 1);
}
