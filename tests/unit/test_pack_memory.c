// SPDX-License-Identifier: Apache-2.0
// What packing a layer holds besides the weights: nothing where tensors lie ready, else at most one
// expert, whatever the number of threads; and the packed bytes do not depend on that number. The
// linker sends the allocations of this program and of the static libraries here.
#define _GNU_SOURCE
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "dialects/gen.h"
#include "moe/io.h"
#include "st_image.h"
#include "test.h"

#define SMALL (16 << 10) // handles, messages

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void __real_free(void *memory);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void __wrap_free(void *memory);

static atomic_llong held; // bytes
static atomic_llong peak;

static void *took(void *memory)
{
    const long long now = atomic_fetch_add(&held, (long long)malloc_usable_size(memory)) +
                          (long long)malloc_usable_size(memory);
    long long most = atomic_load(&peak);
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
    }
    return memory;
}

void *__wrap_malloc(size_t bytes)
{
    return took(__real_malloc(bytes));
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return took(__real_calloc(n, bytes));
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    atomic_fetch_sub(&held, (long long)malloc_usable_size(memory));
    return took(__real_realloc(memory, bytes));
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return took(__real_aligned_alloc(align, bytes));
}

void __wrap_free(void *memory)
{
    atomic_fetch_sub(&held, (long long)malloc_usable_size(memory));
    __real_free(memory);
}

// ---- layers ------------------------------------------------------------------------------------

#define H       256
#define I       192
#define EXPERTS 4

typedef struct pack_case {
    const char *name, *config;
    gen_shape shape;
    long long expert; // bytes of one as it is stored, or as codes
    bool ready;
} pack_case;

#define QWEN                                                                                       \
    "{\"model_type\":\"qwen3_moe\",\"hidden_size\":256,\"moe_intermediate_size\":192,"             \
    "\"num_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\",\"norm_topk_prob\":true"
#define PER_EXPERT                                                                                 \
    .experts = EXPERTS, .hidden = H, .inter = I, .gated = true, .prefix = "model.layers.0.mlp.",   \
    .names = {"gate_proj", "up_proj", "down_proj"}, .router = "gate.weight"

static const pack_case cases[] = {
    {"bf16, gate and up apart",
     QWEN "}",
     {PER_EXPERT, .format = MOE_FORMAT_BF16, .style = GEN_FLOAT},
     3LL * H *I * 2,
     false},
    {"int4 in words",
     QWEN ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":"
          "\"pack-quantized\",\"ignore\":[\"lm_head\",\"re:.*mlp.gate$\"],\"config_groups\":{"
          "\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":4,\"type\":\"int\","
          "\"symmetric\":false,\"strategy\":\"group\",\"group_size\":32}}}}}",
     {PER_EXPERT, .format = MOE_FORMAT_INT4_GROUP, .group = 32, .scale_dtype = MOE_BF16,
      .zeros = true, .style = GEN_CT_INT4},
     3LL * H *I / 2 + 3LL * H *I / 32 * 3,
     false},
    {"mxfp4 in stacks",
     "{\"model_type\":\"gpt_oss\",\"hidden_size\":256,\"intermediate_size\":192,"
     "\"num_local_experts\":4,\"num_experts_per_tok\":2,\"hidden_act\":\"silu\","
     "\"quantization_config\":{\"quant_method\":\"mxfp4\"}}",
     {.experts = EXPERTS,
      .hidden = H,
      .inter = I,
      .gated = true,
      .prefix = "model.layers.0.mlp.",
      .router = "router.weight",
      .router_bias = true,
      .bias = true,
      .format = MOE_FORMAT_MXFP4,
      .scale_dtype = MOE_E8M0,
      .style = GEN_GPT_OSS},
     3LL * H *I / 2 + 3LL * H *I / 32,
     true},
};

static moe_plan *plan_of(moe_context *ctx, const moe_checkpoint_layer *layer, const char *name)
{
    moe_layer_desc d = moe_layer_desc_default();
    moe_plan *plan = NULL;
    CHECK(moe_checkpoint_layer_desc(layer, &d) == MOE_OK, "%s: %s", name, moe_last_error());
    d.x_dtype = MOE_BF16;
    d.max_tokens = 1;
    CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK, "%s: %s", name, moe_last_error());
    return plan;
}

// Loads the layer with so many threads and gives its packed bytes.
static unsigned char *load(const pack_case *c, const moe_checkpoint_layer *layer, int threads,
                           size_t *bytes)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    moe_weights *weights = NULL;
    unsigned char *memory = NULL;
    size_t align = 0;
    desc.num_threads = threads;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return NULL;
    }
    moe_plan *plan = plan_of(ctx, layer, c->name);
    if (plan != NULL && moe_checkpoint_layer_bytes(layer, plan, bytes, &align) == MOE_OK) {
        memory = aligned_alloc(align, (*bytes + align - 1) / align * align);
    }
    if (memory != NULL) {
        memset(memory, 0xA5, *bytes);
        const long long before = atomic_load(&held);
        atomic_store(&peak, before);
        const moe_status status = moe_checkpoint_layer_load(layer, plan, memory, *bytes, &weights);
        const long long extra = atomic_load(&peak) - before;
        const long long most = (c->ready ? 0 : c->expert) + SMALL;
        CHECK(status == MOE_OK, "%s: %s", c->name, moe_last_error());
        CHECK(extra <= most, "%s, %d threads: %lld bytes besides the weights, at most %lld",
              c->name, threads, extra, most);
        (void)printf("%s, %d threads: %lld bytes besides the weights, an expert has %lld\n",
                     c->name, threads, extra, c->expert);
    }
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    moe_context_destroy(ctx);
    return memory;
}

static void check_case(const pack_case *c)
{
    static const int threads[] = {1, 2, 7};
    static gen_layer layer;
    static gen_file file;
    unsigned char *packed[COUNT(threads)] = {NULL};
    size_t bytes[COUNT(threads)] = {0};
    moe_checkpoint *checkpoint = NULL;
    moe_checkpoint_layer *source = NULL;
    gen_make(&layer, &c->shape, 7);
    gen_write(&layer, GEN_RIGHT, &file);
    bool good =
        moe_file_write(in_folder("model.safetensors"), file.entries, file.count, NULL, 0) ==
            MOE_OK &&
        moe_checkpoint_open(folder, MOE_FILE_DEFAULT, &checkpoint) == MOE_OK &&
        moe_checkpoint_layer_open(checkpoint, c->config, strlen(c->config), 0, &source) == MOE_OK;
    if (CHECK(good, "%s: %s", c->name, moe_last_error())) {
        for (size_t i = 0; i < COUNT(threads); i++) {
            packed[i] = load(c, source, threads[i], &bytes[i]);
            good = packed[i] != NULL && packed[0] != NULL && bytes[i] == bytes[0] &&
                   memcmp(packed[i], packed[0], bytes[0]) == 0;
            CHECK(good, "%s: %d threads pack other bytes than one", c->name, threads[i]);
        }
    }
    for (size_t i = 0; i < COUNT(threads); i++) {
        free(packed[i]);
    }
    moe_checkpoint_layer_close(source);
    moe_checkpoint_close(checkpoint);
    remove_file("model.safetensors");
    gen_free(&layer);
}

int main(void)
{
    folder_make();
    for (size_t i = 0; i < COUNT(cases); i++) {
        check_case(&cases[i]);
    }
    folder_remove();
    return test_summary();
}
