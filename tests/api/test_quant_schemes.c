// SPDX-License-Identifier: Apache-2.0
// vLLM's table of quantisation schemes against our support query. Its test tools derive from a test
// configuration a pair (weight key, activation key), ask the experts class whether it supports the
// pair, and skip what it does not; an unsupported pair there is silently another test. Here the
// derivation, the classes' lists and the skip rules are data and functions, and each pair becomes a
// descriptor that moe_query_support must answer.
//   Source: vllm tests/kernels/moe/modular_kernel_tools/common.py (fe_supports_quant_scheme,
//   Config.is_valid, is_nyi_config) and the experts classes' _supports_quant_scheme.
#include <stdbool.h>
#include <string.h>

#include "moe/moe.h"
#include "unit/test.h"

typedef enum quant_dtype { Q_NONE, Q_E4M3FN, Q_INT8, Q_NVFP4 } quant_dtype;

typedef struct config {
    quant_dtype dtype;
    bool block, per_out_ch, per_act_token;
} config;

typedef enum weight_key {
    W_NONE,
    W_TENSOR,  // fp8, static, one scale
    W_CHANNEL, // fp8, static, one scale per output
    W_BLOCK,   // fp8, static, 128 x 128
    W_MXFP4,
    W_NVFP4,
    W_INT8
} weight_key;

typedef enum act_key {
    A_NONE,
    A_STATIC_TENSOR,
    A_DYNAMIC_TENSOR,
    A_DYNAMIC_TOKEN,
    A_DYNAMIC_128, // 1 x 128
    A_MXFP4,
    A_NVFP4,
    A_INT8_TOKEN
} act_key;

typedef struct scheme {
    weight_key weights;
    act_key act;
} scheme;

// ---- their rules -------------------------------------------------------------------------------

static scheme derive(const config *c)
{
    if (c->block) {
        return (scheme){W_BLOCK, A_DYNAMIC_128};
    }
    if (c->per_out_ch) {
        return (scheme){W_CHANNEL, c->per_act_token ? A_DYNAMIC_TOKEN : A_STATIC_TENSOR};
    }
    // Not per token, whatever the name of the option says.
    return (scheme){W_TENSOR, c->per_act_token ? A_DYNAMIC_TENSOR : A_STATIC_TENSOR};
}

typedef struct experts {
    const char *name;
    bool batched;
    bool block;                // supports block quantisation at all
    bool needs_block;          // DeepGEMM: nothing else
    bool needs_matching_quant; // per token and per channel together, or neither
    unsigned dtypes;           // 1 << quant_dtype
    int num_schemes;           // 0: no _supports_quant_scheme: counts as supporting
    scheme schemes[8];
} experts;

#define FP8_LIST                                                                                   \
    {W_NONE, A_NONE}, {W_BLOCK, A_DYNAMIC_128}, {W_CHANNEL, A_DYNAMIC_TOKEN},                      \
        {W_TENSOR, A_DYNAMIC_TOKEN}, {W_TENSOR, A_STATIC_TENSOR},                                  \
    {                                                                                              \
        W_TENSOR, A_DYNAMIC_TENSOR                                                                 \
    }
#define ANY (1u << Q_NONE | 1u << Q_E4M3FN)

static const experts classes[] = {
    {"TritonExperts",
     false,
     true,
     false,
     false,
     ANY | 1u << Q_INT8,
     7,
     {FP8_LIST, {W_INT8, A_INT8_TOKEN}}},
    {"BatchedTritonExperts", true, true, false, false, ANY, 6, {FP8_LIST}},
    {"NaiveBatchedExperts", true, true, false, false, ANY | 1u << Q_INT8, 0, {{W_NONE, A_NONE}}},
    {"DeepGemmExperts", false, true, true, false, 1u << Q_E4M3FN, 1, {{W_BLOCK, A_DYNAMIC_128}}},
    {"BatchedDeepGemmExperts",
     true,
     true,
     true,
     false,
     1u << Q_E4M3FN,
     1,
     {{W_BLOCK, A_DYNAMIC_128}}},
    {"CutlassExpertsFp8",
     false,
     false,
     false,
     true,
     1u << Q_E4M3FN,
     3,
     {{W_CHANNEL, A_DYNAMIC_TOKEN}, {W_TENSOR, A_STATIC_TENSOR}, {W_TENSOR, A_DYNAMIC_TENSOR}}},
    {"CutlassExpertsFp4", false, false, false, false, 1u << Q_NVFP4, 1, {{W_NVFP4, A_NVFP4}}},
    {"OAITritonExperts", false, false, false, false, ANY, 1, {{W_MXFP4, A_NONE}}},
    {"AiterExperts",
     false,
     true,
     false,
     false,
     ANY,
     5,
     {{W_NONE, A_NONE},
      {W_BLOCK, A_DYNAMIC_128},
      {W_TENSOR, A_STATIC_TENSOR},
      {W_TENSOR, A_DYNAMIC_TENSOR},
      {W_CHANNEL, A_DYNAMIC_TOKEN}}},
    {"AiterExperts on gfx950",
     false,
     true,
     false,
     false,
     ANY,
     7,
     {{W_NONE, A_NONE},
      {W_BLOCK, A_DYNAMIC_128},
      {W_TENSOR, A_STATIC_TENSOR},
      {W_TENSOR, A_DYNAMIC_TENSOR},
      {W_CHANNEL, A_DYNAMIC_TOKEN},
      {W_MXFP4, A_NONE},
      {W_MXFP4, A_MXFP4}}},
};
#define NUM_CLASSES (sizeof classes / sizeof classes[0])

static const experts *class_of(const char *name)
{
    for (size_t i = 0; i < NUM_CLASSES; i++) {
        if (strcmp(classes[i].name, name) == 0) {
            return &classes[i];
        }
    }
    return NULL;
}

static bool lists(const experts *e, scheme s)
{
    for (int i = 0; i < e->num_schemes; i++) {
        if (e->schemes[i].weights == s.weights && e->schemes[i].act == s.act) {
            return true;
        }
    }
    return e->num_schemes == 0;
}

static bool fe_supports_quant_scheme(const config *c, const experts *e)
{
    return c->dtype != Q_E4M3FN || lists(e, derive(c));
}

// Prepare/finalise and experts of one activation format; one granularity; dtypes and block support.
static bool is_valid(const config *c, bool prepare_batched, const experts *e)
{
    const bool per_tensor = c->dtype != Q_NONE && !c->block && !c->per_act_token;
    const int granularities = c->per_act_token + per_tensor + c->block;
    return prepare_batched == e->batched && granularities <= 1 &&
           (e->dtypes >> c->dtype & 1) != 0 && (!c->block || e->block) &&
           (!e->needs_block || c->block) && fe_supports_quant_scheme(c, e);
}

static bool is_nyi_config(const config *c, const experts *e)
{
    return e->needs_matching_quant && c->per_act_token != c->per_out_ch;
}

// aiter #2418: its block-scaled FP8 cannot apply the router weight in stage 1.
static bool is_skipped(const config *c, const experts *e, int32_t top_k)
{
    return top_k == 1 && c->block && strncmp(e->name, "Aiter", 5) == 0;
}

// ---- ours --------------------------------------------------------------------------------------

static moe_gemm_desc gemm_of(scheme s)
{
    static const moe_format formats[] = {
        [W_NONE] = MOE_FORMAT_BF16,
        [W_TENSOR] = MOE_FORMAT_E4M3FN_TENSOR,
        [W_CHANNEL] = MOE_FORMAT_E4M3FN_CHANNEL,
        [W_BLOCK] = MOE_FORMAT_E4M3FN_BLOCK,
        [W_MXFP4] = MOE_FORMAT_MXFP4,
        [W_NVFP4] = MOE_FORMAT_NVFP4,
        [W_INT8] = MOE_FORMAT_INT8_CHANNEL,
    };
    static const moe_quant_spec specs[] = {
        [A_NONE] = MOE_QUANT_NONE,
        [A_STATIC_TENSOR] = MOE_QUANT_FP8_STATIC,
        [A_DYNAMIC_TENSOR] = MOE_QUANT_FP8_TENSOR,
        [A_DYNAMIC_TOKEN] = MOE_QUANT_FP8_TOKEN,
        [A_DYNAMIC_128] = MOE_QUANT_FP8_GROUP_DIV,
        [A_MXFP4] = MOE_QUANT_MX_EVEN,
        [A_NVFP4] = MOE_QUANT_NVFP4,
        [A_INT8_TOKEN] = MOE_QUANT_INT8_TOKEN,
    };
    moe_gemm_desc gemm;
    memset(&gemm, 0, sizeof gemm);
    gemm.weight_format = formats[s.weights];
    gemm.act.spec = specs[s.act];
    return gemm;
}

// Sizes of the modular-kernel tests.
static moe_layer_desc layer_of(scheme s, bool batched)
{
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = 64;
    d.hidden = 2048;
    d.inter = 1024;
    d.num_experts = 32;
    d.x_dtype = MOE_BF16;
    d.gemm[0] = d.gemm[1] = gemm_of(s);
    d.activation = MOE_ACT_SILU;
    d.gate_up = MOE_GATE_FIRST;
    if (batched) {
        d.routing = MOE_ROUTING_PLACED;
        d.x_layout = MOE_X_BATCHED;
        d.weight_stage = MOE_WEIGHT_NONE;
    } else {
        d.routing = MOE_ROUTING_GIVEN;
        d.top_k = 4;
        d.weight_stage = MOE_WEIGHT_OUTPUT;
    }
    return d;
}

static int count_chosen(void *self, const moe_support *s)
{
    const bool product = strcmp(s->step, "gate_up") == 0 || strcmp(s->step, "down") == 0;
    *(int *)self += product && s->chosen;
    return 0;
}

static moe_context *ctx;

// Answers a descriptor with both products chosen, or a refusal.
static moe_status ask(const moe_layer_desc *d)
{
    int chosen = 0;
    const moe_status status = moe_query_support(ctx, d, count_chosen, &chosen);
    CHECK(chosen == (status == MOE_OK ? 2 : 0), "%s with %d products chosen",
          moe_status_name(status), chosen);
    return status;
}

// Dynamic scales of a whole tensor span its tokens: level RUN, refused at BATCH with what works.
static void test_scheme(const char *what, scheme s, bool batched)
{
    moe_layer_desc d = layer_of(s, batched);
    const bool spans = s.act == A_DYNAMIC_TENSOR;
    d.determinism = MOE_DET_BATCH;
    const moe_status at_batch = ask(&d);
    CHECK(at_batch == (spans ? MOE_E_LEVEL : MOE_OK), "%s at BATCH: %s: %s", what,
          moe_status_name(at_batch), moe_last_error());
    CHECK(!spans || (strstr(moe_last_error(), "fp8_tensor") != NULL &&
                     strstr(moe_last_error(), "RUN") != NULL &&
                     strstr(moe_last_error(), "works") != NULL),
          "%s at BATCH: \"%s\"", what, moe_last_error());
    d.determinism = MOE_DET_RUN;
    const moe_status at_run = ask(&d);
    CHECK(at_run == MOE_OK, "%s at RUN: %s", what, moe_last_error());
}

static void test_table(void)
{
    static const struct {
        const char *name;
        config config;
        scheme want;
    } rows[] = {
        {"block", {Q_E4M3FN, true, false, false}, {W_BLOCK, A_DYNAMIC_128}},
        {"channel, token", {Q_E4M3FN, false, true, true}, {W_CHANNEL, A_DYNAMIC_TOKEN}},
        {"channel, tensor", {Q_E4M3FN, false, true, false}, {W_CHANNEL, A_STATIC_TENSOR}},
        {"tensor, token", {Q_E4M3FN, false, false, true}, {W_TENSOR, A_DYNAMIC_TENSOR}},
        {"tensor, tensor", {Q_E4M3FN, false, false, false}, {W_TENSOR, A_STATIC_TENSOR}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const scheme s = derive(&rows[i].config);
        CHECK(s.weights == rows[i].want.weights && s.act == rows[i].want.act,
              "%s: derived (%d, %d), must be (%d, %d)", rows[i].name, (int)s.weights, (int)s.act,
              (int)rows[i].want.weights, (int)rows[i].want.act);
        test_scheme(rows[i].name, s, false);
        test_scheme(rows[i].name, s, true);
    }
    // Whatever is not e4m3fn counts as supported there; here it is asked.
    static const config others[] = {
        {Q_NONE, false, false, false}, {Q_NVFP4, false, false, false}, {Q_INT8, false, true, true}};
    static const scheme theirs[] = {{W_NONE, A_NONE}, {W_NVFP4, A_NVFP4}, {W_INT8, A_INT8_TOKEN}};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        for (size_t e = 0; e < NUM_CLASSES; e++) {
            CHECK(fe_supports_quant_scheme(&others[i], &classes[e]), "%s", classes[e].name);
        }
        test_scheme("not e4m3fn", theirs[i], false);
        test_scheme("not e4m3fn", theirs[i], true);
    }
}

// What any class there supports, a plan here computes.
static void test_classes(void)
{
    for (size_t e = 0; e < NUM_CLASSES; e++) {
        for (int i = 0; i < classes[e].num_schemes; i++) {
            test_scheme(classes[e].name, classes[e].schemes[i], classes[e].batched);
        }
    }
}

static void test_rules(void)
{
    const experts *aiter = class_of("AiterExperts");
    const experts *deep_gemm = class_of("DeepGemmExperts");
    const experts *cutlass = class_of("CutlassExpertsFp8");
    const experts *triton = class_of("TritonExperts");
    const config channel_tensor = {Q_E4M3FN, false, true, false};
    const config channel_token = {Q_E4M3FN, false, true, true};
    const config tensor_token = {Q_E4M3FN, false, false, true};
    const config block = {Q_E4M3FN, true, false, false};
    const config block_token = {Q_E4M3FN, true, false, true};
    const config int8 = {Q_INT8, false, true, true};
    // aiter #2419: static per-tensor activations with per-channel weights are filtered.
    CHECK(!fe_supports_quant_scheme(&channel_tensor, aiter), "aiter has (channel, static tensor)");
    CHECK(fe_supports_quant_scheme(&channel_token, aiter), "aiter lacks (channel, token)");
    CHECK(is_valid(&block, false, aiter) && !is_valid(&block, true, aiter),
          "formats of both halves must be equal");
    CHECK(!is_valid(&block_token, false, triton), "two granularities");
    CHECK(is_valid(&block, false, deep_gemm) && !is_valid(&channel_token, false, deep_gemm),
          "DeepGEMM takes blocks only");
    CHECK(!is_valid(&block, false, cutlass), "CUTLASS takes no blocks");
    CHECK(!is_valid(&int8, false, aiter) && is_valid(&int8, false, triton), "dtypes");
    CHECK(is_nyi_config(&tensor_token, cutlass) && is_nyi_config(&channel_tensor, cutlass) &&
              !is_nyi_config(&channel_token, cutlass) && !is_nyi_config(&tensor_token, triton),
          "classes that need matching quantisation");
    CHECK(is_skipped(&block, aiter, 1) && !is_skipped(&block, aiter, 4) &&
              !is_skipped(&block, triton, 1),
          "top-1 with the weight on the input");
    // Here the pair that AITER lacks works, and so does the case that its tests skip.
    test_scheme("channel, static tensor", derive(&channel_tensor), false);
    moe_layer_desc d = layer_of(derive(&block), false);
    d.top_k = 1;
    d.weight_stage = MOE_WEIGHT_INPUT;
    CHECK(ask(&d) == MOE_OK, "block FP8, top-1, weight on the input: %s", moe_last_error());
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        test_table();
        test_classes();
        test_rules();
        moe_context_destroy(ctx);
    }
    return test_summary();
}
