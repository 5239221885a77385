// SPDX-License-Identifier: Apache-2.0
// The table of model classes and the vocabulary of oracle files: every case of an oracle file gives
// the same descriptor by both ways, whatever is not known is refused by name, and nothing of the
// descriptor changes on failure.
//
//   test_config [ORACLES.safetensors]
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/desc.h"
#include "moe/io.h"
#include "test.h"

// -- Oracle files -------------------------------------------------------------------------------

struct lookup {
    const moe_file *file;
    const char *prefix;
};

static moe_status shape_of(void *self, const char *name, moe_tensor *out)
{
    const struct lookup *l = self;
    char full[256];
    (void)snprintf(full, sizeof full, "%s/w.%s", l->prefix, name);
    return moe_file_tensor(l->file, full, out);
}

static void check_case(const moe_file *file, const char *name, const json_t *oracle)
{
    moe_layer_desc by_semantics = moe_layer_desc_default();
    moe_layer_desc by_config = moe_layer_desc_default();
    struct lookup lookup = {file, name};
    char *text = json_dumps(oracle, JSON_COMPACT);
    char *config = json_dumps(json_object_get(oracle, "config"), JSON_COMPACT);
    char why[160];
    if (text != NULL && config != NULL &&
        CHECK(moe_layer_desc_from_semantics(text, strlen(text), shape_of, &lookup, &by_semantics) ==
                  MOE_OK,
              "%s: %s", name, moe_last_error()) &&
        CHECK(moe_layer_desc_from_config(config, strlen(config), &by_config) == MOE_OK, "%s: %s",
              name, moe_last_error())) {
        // A block may leave the shared experts to the decoder layer, which is not in the file.
        const int routed_only = by_semantics.shared.count == 0;
        CHECK(!moec_desc_differ(&by_config, &by_semantics, routed_only, why, sizeof why),
              "%s: config and semantics differ in %s", name, why);
    }
    free(text);
    free(config);
}

static void test_oracles(const char *path)
{
    moe_file *file = NULL;
    if (!CHECK(moe_file_open(path, MOE_FILE_DEFAULT, &file) == MOE_OK, "%s", moe_last_error())) {
        return;
    }
    const char *text = moe_file_metadata(file, "cases");
    json_t *cases = text == NULL ? NULL : json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    CHECK(json_object_size(cases) > 0, "%s has no cases", path);
    const char *name;
    json_t *oracle;
    json_object_foreach(cases, name, oracle)
    {
        check_case(file, name, oracle);
    }
    json_decref(cases);
    moe_file_close(file);
}

// -- Configurations -----------------------------------------------------------------------------

#define SIZES_MOE                                                                                  \
    "\"hidden_size\":40,\"moe_intermediate_size\":24,\"intermediate_size\":100,"                   \
    "\"num_experts_per_tok\":3"
#define SIZES                                                                                      \
    "\"hidden_size\":40,\"intermediate_size\":24,\"num_experts_per_tok\":3,"                       \
    "\"num_local_experts\":12"

static moe_layer_desc accept(int line, int32_t layer, const char *json)
{
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = 5;
    d.gemm[0].weight_format = MOE_FORMAT_BF16;
    const moe_status status = layer < 0
                                  ? moe_layer_desc_from_config(json, strlen(json), &d)
                                  : moe_layer_desc_from_config_layer(json, strlen(json), layer, &d);
    if (status != MOE_OK) {
        test_fail(__FILE__, line, "%s: %s", moe_status_name(status), moe_last_error());
    } else if (d.max_tokens != 5 || d.gemm[0].weight_format != MOE_FORMAT_BF16) {
        test_fail(__FILE__, line, "a field of the caller's was changed");
    } else {
        test_pass();
    }
    return d;
}
#define ACCEPT(json)              accept(__LINE__, -1, json)
#define ACCEPT_LAYER(layer, json) accept(__LINE__, layer, json)

static void test_sizes(void)
{
    moe_layer_desc d = ACCEPT("{\"model_type\":\"mixtral\"," SIZES "}");
    CHECK(d.hidden == 40 && d.inter == 24 && d.num_experts == 12 && d.top_k == 3,
          "H %d I %d E %d k %d", (int)d.hidden, (int)d.inter, (int)d.num_experts, (int)d.top_k);
    CHECK(d.routing == MOE_ROUTING_FROM_LOGITS && d.route.scoring == MOE_SCORING_SOFTMAX &&
              d.route.renormalise == MOE_RENORM_SUM && d.weight_stage == MOE_WEIGHT_OUTPUT &&
              d.activation == MOE_ACT_SILU && d.gate_up == MOE_GATE_FIRST && d.transposed == 0 &&
              d.shared.count == 0,
          "mixtral is softmax, renormalised, silu, gate first");
    // Alternatives may both be there if they agree, also as 12 and 12.0.
    d = ACCEPT("{\"model_type\":\"mixtral\",\"num_experts\":12," SIZES "}");
    CHECK(d.num_experts == 12, "E %d", (int)d.num_experts);
    d = ACCEPT("{\"model_type\":\"mixtral\",\"hidden_act\":null,\"x\":NaN,\"y\":-Infinity," SIZES
               "}");
    CHECK(d.activation == MOE_ACT_SILU, "a null hidden_act is the default");
    d = ACCEPT("{\"model_type\":\"mixtral\",\"hidden_act\":\"gelu_pytorch_tanh\"," SIZES "}");
    CHECK(d.activation == MOE_ACT_GELU_TANH, "activation %d", (int)d.activation);
}

static void test_gpt_oss(void)
{
    moe_layer_desc d = ACCEPT("{\"model_type\":\"gpt_oss\"," SIZES "}");
    CHECK(d.activation == MOE_ACT_SWIGLUOAI && d.alpha == 1.702f && d.beta == 1.0f &&
              d.limit == 7.0f && d.gate_up == MOE_GATE_UP_INTERLEAVED && d.transposed == 1 &&
              d.gemm[0].bias == 1 && d.gemm[1].bias == 1 &&
              d.route.scoring == MOE_SCORING_SOFTMAX_SELECTED,
          "gpt_oss: alpha %g limit %g gate_up %d", (double)d.alpha, (double)d.limit,
          (int)d.gate_up);
    d = ACCEPT("{\"model_type\":\"gpt_oss\",\"swiglu_limit\":5,"
               "\"quantization_config\":{\"quant_method\":\"mxfp4\"}," SIZES "}");
    CHECK(d.limit == 5.0f && d.transposed == 0, "an MXFP4 checkpoint is not transposed");
}

static void test_deepseek(void)
{
    moe_layer_desc d =
        ACCEPT("{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":4,"
               "\"topk_group\":2,\"routed_scaling_factor\":2.5,\"n_shared_experts\":2,"
               "\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\"," SIZES_MOE "}");
    CHECK(d.route.num_groups == 4 && d.route.top_groups == 2 &&
              d.route.group_score == MOE_GROUP_SCORE_TOP2_SUM && d.route.group_mask_zero == 0 &&
              d.route.correction_bias == 1 && d.route.scale == 2.5f &&
              d.route.renorm_eps == 1e-20f && d.shared.count == 1 && d.shared.inter == 48,
          "kimi_k2: groups %d, shared inter %d", (int)d.route.num_groups, (int)d.shared.inter);
    d = ACCEPT("{\"model_type\":\"deepseek_v2\",\"n_routed_experts\":12,\"n_group\":4,"
               "\"topk_group\":2,\"topk_method\":\"greedy\"," SIZES_MOE "}");
    CHECK(d.route.num_groups == 0 && d.shared.count == 0 && d.route.scale == 1.0f,
          "greedy does not group: %d", (int)d.route.num_groups);
    d = ACCEPT("{\"model_type\":\"deepseek_v2\",\"n_routed_experts\":12,\"n_group\":4,"
               "\"topk_group\":2,\"topk_method\":\"group_limited_greedy\"," SIZES_MOE "}");
    CHECK(d.route.num_groups == 4 && d.route.group_score == MOE_GROUP_SCORE_MAX &&
              d.route.group_mask_zero == 1,
          "group_limited_greedy: %d groups", (int)d.route.num_groups);
    static const char v4[] = "{\"model_type\":\"deepseek_v4\",\"n_routed_experts\":12,"
                             "\"routed_scaling_factor\":1.5,\"swiglu_limit\":10.0,"
                             "\"num_hash_layers\":3," SIZES_MOE "}";
    d = ACCEPT(v4);
    CHECK(d.route.scoring == MOE_SCORING_SQRTSOFTPLUS && d.limit == 10.0f &&
              d.shared.limit == 10.0f && d.route.correction_bias == 1 && d.route.hash_table == 0,
          "deepseek_v4: scoring %d limit %g", (int)d.route.scoring, (double)d.limit);
    d = ACCEPT_LAYER(2, v4);
    CHECK(d.route.hash_table == 1 && d.route.correction_bias == 0, "layer 2 of 3 is hashed");
    d = ACCEPT_LAYER(3, v4);
    CHECK(d.route.hash_table == 0 && d.route.correction_bias == 1, "layer 3 is not");
    d = ACCEPT_LAYER(1, "{\"model_type\":\"deepseek_v4\",\"n_routed_experts\":12,"
                        "\"routed_scaling_factor\":1.5,\"swiglu_limit\":10.0,"
                        "\"mlp_layer_types\":[\"moe\",\"hash_moe\"]," SIZES_MOE "}");
    CHECK(d.route.hash_table == 1, "mlp_layer_types[1] is hash_moe");
}

static void test_nested(void)
{
    moe_layer_desc d = ACCEPT("{\"model_type\":\"llama4\",\"vision_config\":{},\"text_config\":"
                              "{\"model_type\":\"llama4_text\"," SIZES "}}");
    CHECK(d.weight_stage == MOE_WEIGHT_INPUT && d.transposed == 1 &&
              d.route.scoring == MOE_SCORING_SIGMOID_SELECTED && d.shared.inter == 24,
          "llama4: weight stage %d", (int)d.weight_stage);
    d = ACCEPT("{\"model_type\":\"qwen3_omni_moe\",\"thinker_config\":{\"model_type\":\"x\","
               "\"text_config\":{\"model_type\":\"qwen3_omni_moe_text\",\"num_experts\":12,"
               "\"norm_topk_prob\":false," SIZES_MOE "}}}");
    CHECK(d.route.renormalise == MOE_RENORM_NONE, "renormalise %d", (int)d.route.renormalise);
}

static void test_architectures(void)
{
#define LING                                                                                       \
    "\"model_type\":\"bailing_moe\",\"num_experts\":12,\"norm_topk_prob\":true,\"n_group\":4,"     \
    "\"topk_group\":2,\"routed_scaling_factor\":2.5,\"num_shared_experts\":1," SIZES_MOE
    moe_layer_desc d = ACCEPT("{\"architectures\":[\"BailingMoeForCausalLM\"]," LING "}");
    CHECK(d.route.scoring == MOE_SCORING_SOFTMAX && d.route.num_groups == 0 &&
              d.route.scale == 1.0f,
          "scoring %d", (int)d.route.scoring);
    d = ACCEPT("{\"architectures\":[\"x\",\"BailingMoeV2ForCausalLM\"]," LING "}");
    CHECK(d.route.scoring == MOE_SCORING_SIGMOID && d.route.num_groups == 4 &&
              d.route.correction_bias == 0,
          "scoring %d", (int)d.route.scoring);
}

static void test_layers(void)
{
    static const char step[] =
        "{\"model_type\":\"step3p5\",\"n_routed_experts\":12,\"moe_router_scaling_factor\":3.0,"
        "\"share_expert_dim\":32,\"swiglu_limits\":[0.0,7.0,null]," SIZES_MOE "}";
    moe_layer_desc d = ACCEPT_LAYER(0, step);
    CHECK(d.activation == MOE_ACT_SILU && d.limit == 0.0f && d.shared.inter == 32,
          "layer 0: activation %d", (int)d.activation);
    d = ACCEPT_LAYER(1, step);
    CHECK(d.activation == MOE_ACT_SWIGLUSTEP && d.limit == 7.0f &&
              d.shared.activation == MOE_ACT_SILU,
          "layer 1: activation %d limit %g", (int)d.activation, (double)d.limit);
    d = ACCEPT_LAYER(2, step);
    CHECK(d.activation == MOE_ACT_SILU, "layer 2: activation %d", (int)d.activation);
    d = ACCEPT("{\"model_type\":\"hunyuan_v1_moe\",\"num_experts\":12,\"hidden_size\":40,"
               "\"intermediate_size\":24,\"moe_intermediate_size\":[24,24],\"moe_topk\":[3,3],"
               "\"num_shared_expert\":[1,1]}");
    CHECK(d.inter == 24 && d.top_k == 3 && d.shared.inter == 24, "k %d", (int)d.top_k);
}

static void test_others(void)
{
    moe_layer_desc d =
        ACCEPT("{\"model_type\":\"inkling_text\",\"n_routed_experts\":12,\"n_shared_experts\":2,"
               "\"route_scale\":8," SIZES_MOE "}");
    CHECK(d.shared.count == 2 && d.shared.inter == 24 && d.route.shared_scores == 2 &&
              d.route.renorm_shared == 1 && d.route.scale_tensor == 1 &&
              d.shared.gate == MOE_SHARED_ROUTER_WEIGHTED,
          "inkling: %d shared", (int)d.shared.count);
    d = ACCEPT("{\"model_type\":\"minimax_m3_vl_text\",\"routed_scaling_factor\":2,"
               "\"swiglu_alpha\":1.702,\"swiglu_limit\":7,\"shared_intermediate_size\":36," SIZES
               "}");
    CHECK(d.activation == MOE_ACT_SWIGLUOAI && d.gate_up == MOE_GATE_FIRST &&
              d.shared.activation == MOE_ACT_SWIGLUOAI && d.shared.alpha == 1.702f &&
              d.shared.beta == 1.0f && d.shared.limit == 7.0f && d.shared.inter == 36,
          "minimax_m3: shared limit %g", (double)d.shared.limit);
    d = ACCEPT("{\"model_type\":\"granitemoeshared\",\"shared_intermediate_size\":0," SIZES "}");
    CHECK(d.shared.count == 0, "a shared size of 0 is none");
    d = ACCEPT("{\"model_type\":\"cohere2_moe\",\"num_experts\":12,"
               "\"expert_selection_fn\":\"sigmoid\"," SIZES "}");
    CHECK(d.route.scoring == MOE_SCORING_SIGMOID_SELECTED && d.route.renormalise == MOE_RENORM_SUM,
          "cohere2: scoring %d", (int)d.route.scoring);
    d = ACCEPT("{\"model_type\":\"cohere2_moe\",\"num_experts\":12,\"num_shared_experts\":2,"
               "\"shared_expert_combination_strategy\":\"sum\"," SIZES "}");
    CHECK(d.route.scoring == MOE_SCORING_SOFTMAX_SELECTED && d.shared.inter == 48,
          "cohere2: shared inter %d", (int)d.shared.inter);
    d = ACCEPT("{\"model_type\":\"nemotron_h\",\"n_routed_experts\":12,\"moe_latent_size\":16,"
               "\"mlp_hidden_act\":\"relu2\",\"moe_shared_expert_intermediate_size\":36," SIZES_MOE
               "}");
    CHECK(d.latent == 16 && d.activation == MOE_ACT_RELU2_NO_MUL &&
              d.gate_up == MOE_GATE_UP_UNSET && d.shared.activation == MOE_ACT_RELU2_NO_MUL,
          "nemotron_h: latent %d", (int)d.latent);
}

// -- What is refused ----------------------------------------------------------------------------

static int same_bytes(const void *a, const void *b, size_t size)
{
    return memcmp(a, b, size) == 0;
}

struct refused {
    const char *json;
    moe_status status;
    const char *message; // part of it
};

#define MIXTRAL "{\"model_type\":\"mixtral\"," SIZES ","

static const struct refused refusals[] = {
    {"", MOE_E_MALFORMED, "config: byte 0"},
    {"[1]", MOE_E_MALFORMED, "an array, expected an object"},
    {"{\"model_type\":\"mixtral\"", MOE_E_MALFORMED, "config: byte"},
    {"{\"a\":1,\"a\":2}", MOE_E_MALFORMED, "duplicate"},
    {"{}", MOE_E_MALFORMED, "\"model_type\" is nothing, expected a string"},
    {"{\"model_type\":3}", MOE_E_MALFORMED, "\"model_type\" is 3, expected a string"},
    {"{\"model_type\":\"qwen3_moez\"}", MOE_E_NOT_FOUND,
     "model class \"qwen3_moez\" is not known; known are qwen3_moe, "},
    {"{\"model_type\":\"a\\u001bb\"}", MOE_E_NOT_FOUND, "\"a\\x1bb\""},
    {"{\"model_type\":\"bailing_moe\"}", MOE_E_NOT_FOUND, "\"BailingMoeForCausalLM\" is one"},
    {"{\"model_type\":\"x\",\"text_config\":{\"model_type\":\"y\"}}", MOE_E_NOT_FOUND, "\"y\""},
    {"{\"model_type\":\"mixtral\"}", MOE_E_MALFORMED,
     "\"hidden_size\" is missing, model class \"mixtral\" needs it"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":null}", MOE_E_MALFORMED,
     "\"hidden_size\" is missing"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":8,\"intermediate_size\":8}", MOE_E_MALFORMED,
     "\"num_local_experts|num_experts\" is missing"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":\"8\"}", MOE_E_MALFORMED,
     "\"hidden_size\" is the string \"8\", expected an integer"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":8.5}", MOE_E_MALFORMED, "the real number 8.5"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":[]}", MOE_E_MALFORMED, "is an empty list"},
    {MIXTRAL "\"num_experts\":13}", MOE_E_MALFORMED,
     "\"num_local_experts\" is 12, but \"num_experts\" is 13"},
    {MIXTRAL "\"norm_topk_prob\":false}", MOE_E_UNSUPPORTED,
     "\"norm_topk_prob\" is false; for model class \"mixtral\" only true is known"},
    {MIXTRAL "\"hidden_act\":\"relu\"}", MOE_E_UNSUPPORTED,
     "\"hidden_act\" is \"relu\", known are silu, "},
    {MIXTRAL "\"hidden_act\":\"relu2\"}", MOE_E_UNSUPPORTED, "have a gate"},
    {MIXTRAL "\"hidden_act\":1}", MOE_E_MALFORMED, "\"hidden_act\" is 1, expected a string"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":0,\"intermediate_size\":8,"
     "\"num_experts_per_tok\":1,\"num_local_experts\":2}",
     MOE_E_MALFORMED, "the hidden size is 0, must be at least 1"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":1048577,\"intermediate_size\":8,"
     "\"num_experts_per_tok\":1,\"num_local_experts\":2}",
     MOE_E_LIMIT, "the hidden size is 1048577, the limit is 1048576"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":8,\"intermediate_size\":-8,"
     "\"num_experts_per_tok\":1,\"num_local_experts\":2}",
     MOE_E_MALFORMED, "inner size is -8"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":8,\"intermediate_size\":8,"
     "\"num_experts_per_tok\":3,\"num_local_experts\":2}",
     MOE_E_MALFORMED, "3 experts per token exceed the 2"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":8,\"intermediate_size\":8,"
     "\"num_experts_per_tok\":3,\"num_local_experts\":5000}",
     MOE_E_LIMIT, "the number of experts is 5000, the limit is 4096"},
    {"{\"model_type\":\"mixtral\",\"hidden_size\":99999999999999999999}", MOE_E_MALFORMED, "byte"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":5,\"topk_group\":2,"
     "\"routed_scaling_factor\":1,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_MALFORMED, "12 experts do not split into 5 equal groups"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":4,\"topk_group\":5,"
     "\"routed_scaling_factor\":1,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_MALFORMED, "5 groups of 4 cannot be kept"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":6,\"topk_group\":1,"
     "\"routed_scaling_factor\":1,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_MALFORMED, "1 groups of 2 experts hold fewer than the 3"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,"
     "\"routed_scaling_factor\":0,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_UNSUPPORTED, "the scale is 0"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,"
     "\"routed_scaling_factor\":1e300,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_UNSUPPORTED, "the scale is 1e+300"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,"
     "\"routed_scaling_factor\":true,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_MALFORMED, "\"routed_scaling_factor\" is true, expected a number"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,\"norm_topk_prob\":1,"
     "\"routed_scaling_factor\":1,\"n_shared_experts\":1," SIZES_MOE "}",
     MOE_E_MALFORMED, "\"norm_topk_prob\" is 1, expected true or false"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,"
     "\"routed_scaling_factor\":1,\"n_shared_experts\":9223372036854775807," SIZES_MOE "}",
     MOE_E_LIMIT, "shared experts of inner size 24"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,"
     "\"routed_scaling_factor\":1,\"n_shared_experts\":-1," SIZES_MOE "}",
     MOE_E_MALFORMED, "number of shared experts is -1"},
    {"{\"model_type\":\"kimi_k2\",\"n_routed_experts\":12,\"n_group\":1,"
     "\"scoring_func\":\"softmax\"," SIZES_MOE "}",
     MOE_E_UNSUPPORTED, "\"scoring_func\" is the string \"softmax\""},
    {"{\"model_type\":\"deepseek_v2\",\"n_routed_experts\":12,\"norm_topk_prob\":true," SIZES_MOE
     "}",
     MOE_E_UNSUPPORTED, "\"norm_topk_prob\" is true"},
    {"{\"model_type\":\"gpt_oss\",\"swiglu_limit\":0," SIZES "}", MOE_E_UNSUPPORTED,
     "\"swiglu_limit\" is 0, which would clamp everything"},
    {"{\"model_type\":\"phimoe\",\"router_jitter_noise\":0.01," SIZES "}", MOE_E_UNSUPPORTED,
     "sparsemixer takes 2 experts per token, not 3"},
    {"{\"model_type\":\"laguna\",\"moe_router_logit_softcapping\":30.0," SIZES_MOE "}",
     MOE_E_UNSUPPORTED, "only 0 is known"},
    {"{\"model_type\":\"cohere2_moe\",\"num_experts\":12,\"num_shared_experts\":2," SIZES "}",
     MOE_E_UNSUPPORTED, "\"shared_expert_combination_strategy\" is nothing; for model class"},
    {"{\"model_type\":\"step3p5\",\"n_routed_experts\":12,\"moe_router_scaling_factor\":3.0,"
     "\"share_expert_dim\":32,\"swiglu_limits\":[0.0,7.0]," SIZES_MOE "}",
     MOE_E_UNSUPPORTED, "\"swiglu_limits\" differs by layer: the real number 0 in layer 0"},
};

// A caller's descriptor may be longer, or lack fields that the configuration does not set.
static void test_other_versions(void)
{
    static const char json[] = "{\"model_type\":\"mixtral\",\"num_local_experts\":8,"
                               "\"num_experts_per_tok\":2,\"hidden_size\":64,"
                               "\"intermediate_size\":96,\"hidden_act\":\"silu\"}";
    const size_t shorter = offsetof(moe_layer_desc, workspace_cap);
    struct {
        moe_layer_desc known;
        int64_t unknown;
    } newer = {moe_layer_desc_default(), 0};
    moe_layer_desc want = moe_layer_desc_default();
    moe_layer_desc older = moe_layer_desc_default();
    CHECK(moe_layer_desc_from_config(json, sizeof json - 1, &want) == MOE_OK, "%s",
          moe_last_error());
    newer.known.struct_size = sizeof newer;
    CHECK(moe_layer_desc_from_config(json, sizeof json - 1, &newer.known) == MOE_OK &&
              newer.known.struct_size == sizeof newer && newer.known.num_experts == 8,
          "longer: %s", moe_last_error());
    newer.unknown = 1;
    CHECK(moe_layer_desc_from_config(json, sizeof json - 1, &newer.known) == MOE_E_VERSION,
          "a longer one with an unknown field set");
    older.struct_size = shorter;
    older.workspace_cap = 77; // not theirs: neither read nor written
    CHECK(moe_layer_desc_from_config(json, sizeof json - 1, &older) == MOE_OK &&
              older.struct_size == shorter && older.workspace_cap == 77,
          "shorter: %s", moe_last_error());
    older.struct_size = want.struct_size;
    older.workspace_cap = 0;
    CHECK(same_bytes(&older, &want, sizeof want), "a shorter descriptor is filled otherwise");
    older = moe_layer_desc_default();
    older.struct_size = offsetof(moe_layer_desc, activation);
    CHECK(moe_layer_desc_from_config(json, sizeof json - 1, &older) == MOE_E_VERSION &&
              strstr(moe_last_error(), "the result needs") != NULL && older.num_experts == 0,
          "one that lacks the activation: %s", moe_last_error());
}

static void test_refusals(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refused *r = &refusals[i];
        moe_layer_desc d;
        moe_layer_desc before;
        memset(&d, 0x5A, sizeof d);
        d.struct_size = sizeof d;
        memcpy(&before, &d, sizeof d);
        const moe_status status = moe_layer_desc_from_config(r->json, strlen(r->json), &d);
        CHECK(status == r->status, "%s: %s, expected %s (%s)", r->json, moe_status_name(status),
              moe_status_name(r->status), moe_last_error());
        CHECK(status == MOE_OK || strstr(moe_last_error(), r->message) != NULL,
              "%s: \"%s\" lacks \"%s\"", r->json, moe_last_error(), r->message);
        CHECK(strstr(moe_last_error(), "moe_layer_desc_from_config: ") == moe_last_error(),
              "the message does not begin with the call: %s", moe_last_error());
        CHECK(same_bytes(&d, &before, sizeof d), "%s changed the descriptor", r->json);
    }
    moe_layer_desc d = moe_layer_desc_default();
    CHECK(moe_layer_desc_from_config(NULL, 0, &d) == MOE_E_ARGUMENT, "json NULL");
    CHECK(moe_layer_desc_from_config("{}", 2, NULL) == MOE_E_ARGUMENT, "desc NULL");
    d.struct_size = 7;
    CHECK(moe_layer_desc_from_config("{}", 2, &d) == MOE_E_VERSION, "struct_size 7");
    test_other_versions();
    d = moe_layer_desc_default();
    CHECK(moe_layer_desc_from_config_layer("{}", 2, -1, &d) == MOE_E_ARGUMENT, "layer -1");
    static const char step[] =
        "{\"model_type\":\"step3p5\",\"n_routed_experts\":12,\"moe_router_scaling_factor\":3.0,"
        "\"share_expert_dim\":32,\"swiglu_limits\":[0.0,7.0]," SIZES_MOE "}";
    CHECK(moe_layer_desc_from_config_layer(step, strlen(step), 2, &d) == MOE_E_MALFORMED &&
              strstr(moe_last_error(), "has 2 entries, layer 2 needs more") != NULL,
          "%s", moe_last_error());
}

// Every class of the table is reachable by its name: with nothing but the name, the first key that
// the row needs is missing.
static void test_classes(void)
{
    size_t n = 0;
    for (const char *name; (name = moe_config_class(n)) != NULL; n++) {
        char json[160];
        moe_layer_desc d = moe_layer_desc_default();
        (void)snprintf(json, sizeof json,
                       "{\"model_type\":\"%s\",\"architectures\":[\"BailingMoeForCausalLM\","
                       "\"BailingMoeV2ForCausalLM\"]}",
                       name);
        CHECK(moe_layer_desc_from_config(json, strlen(json), &d) == MOE_E_MALFORMED &&
                  strstr(moe_last_error(), "is missing") != NULL,
              "%s: %s", name, moe_last_error());
        for (size_t i = 0; i < n; i++) {
            CHECK(strcmp(moe_config_class(i), name) != 0, "%s is listed twice", name);
        }
    }
    CHECK(n > 30, "%zu classes", n);
}

// -- The vocabulary -----------------------------------------------------------------------------

static moe_status small_shape(void *self, const char *name, moe_tensor *out)
{
    (void)self;
    if (strcmp(name, "stack") == 0) {
        const int64_t shape[3] = {2, 28, 40};
        *out = moe_tensor_make(NULL, MOE_BF16, 3, shape);
        return MOE_OK;
    }
    *out = moe_tensor_2d(NULL, MOE_BF16, strcmp(name, "odd") == 0 ? 27 : 28, 40);
    return MOE_OK;
}

// A case with some keys of its semantics replaced (`patch`, a JSON object; null removes a key).
static moe_status from_patch(const char *patch, moe_layer_desc *d)
{
    json_t *root =
        json_pack("{s:i,s:i,s:i,s:i,s:i}", "H", 40, "I", 24, "E", 12, "k", 3, "zero_experts", 0);
    json_t *semantics =
        json_loads("{\"scoring\":\"softmax\",\"scoring_over\":\"all\",\"select_on\":\"scores\","
                   "\"correction_bias\":null,\"groups\":null,\"renormalise\":true,"
                   "\"renorm_over\":\"selected\",\"scale\":1.5,\"scale_tensor\":null,"
                   "\"weights_from\":\"scores\",\"weight_on\":\"output\",\"act\":\"silu_glu\","
                   "\"layout\":\"out_in\",\"gate_up\":\"split\",\"shared\":null,"
                   "\"shared_act\":null,\"latent\":null,\"zero_experts\":null,"
                   "\"tensors\":{\"router\":\"r\",\"gate_up\":\"g\",\"down\":\"d\"}}",
                   0, NULL);
    json_t *changes = json_loads(patch, 0, NULL);
    CHECK(root != NULL && semantics != NULL && changes != NULL, "bad patch %s", patch);
    const char *key;
    json_t *value;
    json_object_foreach(changes, key, value)
    {
        if (strcmp(key, "tensors") == 0) {
            json_object_update(json_object_get(semantics, "tensors"), value);
        } else if (strcmp(key, "case") == 0) {
            json_object_update(root, value);
        } else if (json_is_string(value) && strcmp(json_string_value(value), "(none)") == 0) {
            json_object_del(semantics, key);
        } else {
            json_object_set(semantics, key, value);
        }
    }
    json_object_set_new(root, "semantics", semantics);
    char *text = json_dumps(root, JSON_COMPACT);
    const moe_status status =
        moe_layer_desc_from_semantics(text, strlen(text), small_shape, NULL, d);
    free(text);
    json_decref(changes);
    json_decref(root);
    return status;
}

static const struct refused unknown_words[] = {
    {"{\"temperature\":1}", MOE_E_UNSUPPORTED, "key of semantics \"temperature\" (1) is not known"},
    {"{\"scoring\":\"tanh\"}", MOE_E_UNSUPPORTED, "\"scoring\" is \"tanh\", known are softmax"},
    {"{\"scoring\":\"(none)\"}", MOE_E_MALFORMED, "\"scoring\" is missing"},
    {"{\"select_on\":\"(none)\"}", MOE_E_MALFORMED, "\"select_on\" is missing"},
    {"{\"scoring_over\":\"selected logits\"}", MOE_E_UNSUPPORTED, "cannot select"},
    {"{\"groups\":{\"n\":4,\"top\":2,\"score\":\"max\",\"masked_value\":1.0}}", MOE_E_UNSUPPORTED,
     "\"masked_value\" is the real number 1"},
    {"{\"groups\":{\"n\":4,\"top\":2,\"score\":\"mean\",\"masked_value\":0.0}}", MOE_E_UNSUPPORTED,
     "\"score\" is \"mean\""},
    {"{\"groups\":{\"n\":4,\"top\":2,\"score\":\"max\",\"masked_value\":0.0,\"x\":null}}",
     MOE_E_UNSUPPORTED, "key of groups \"x\" (null)"},
    {"{\"groups\":{\"n\":12,\"top\":4,\"score\":\"top2sum\",\"masked_value\":\"-inf\"}}",
     MOE_E_UNSUPPORTED, "a group of one expert"},
    {"{\"renormalise\":\"softly\"}", MOE_E_UNSUPPORTED, "\"renormalise\" is \"softly\""},
    {"{\"renormalise\":null}", MOE_E_MALFORMED, "\"renormalise\" is null"},
    {"{\"renorm_min\":1e-12}", MOE_E_UNSUPPORTED, "\"renorm_min\" means nothing"},
    {"{\"renorm_over\":\"selected+shared\"}", MOE_E_UNSUPPORTED, "nothing is shared"},
    {"{\"tensors\":{\"shared_up\":\"a\"}}", MOE_E_MALFORMED,
     "a role \"shared_up\", but nothing is shared"},
    {"{\"weights_from\":\"logits\"}", MOE_E_UNSUPPORTED, "\"weights_from\" is \"logits\""},
    {"{\"act\":\"relu2\"}", MOE_E_UNSUPPORTED, "\"act\" the string \"relu2\" with \"gate_up\""},
    {"{\"act\":\"mish\"}", MOE_E_UNSUPPORTED, "\"act\" is \"mish\""},
    {"{\"alpha\":2}", MOE_E_UNSUPPORTED, "has no alpha"},
    {"{\"limit\":0}", MOE_E_UNSUPPORTED, "\"limit\" is 0"},
    {"{\"act\":\"gpt_oss_swiglu\"}", MOE_E_MALFORMED, "needs an alpha"},
    {"{\"layout\":\"diagonal\"}", MOE_E_UNSUPPORTED, "\"layout\" is \"diagonal\""},
    {"{\"latent\":16}", MOE_E_MALFORMED, "\"latent\" is 16, the roles say otherwise"},
    {"{\"latent\":0}", MOE_E_MALFORMED, "latent size is 0"},
    {"{\"tensors\":{\"latent_in\":\"a\",\"latent_out\":\"b\"}}", MOE_E_MALFORMED,
     "\"latent\" is 0"},
    {"{\"tensors\":{\"adapter\":\"a\"}}", MOE_E_UNSUPPORTED, "role \"adapter\""},
    {"{\"tensors\":{\"up\":\"a\"}}", MOE_E_UNSUPPORTED, "the role \"up\" means nothing"},
    {"{\"tensors\":{\"down\":null}}", MOE_E_MALFORMED, "lacks the role \"down\""},
    {"{\"zero_experts\":{\"n\":2,\"kind\":\"copy\"}}", MOE_E_UNSUPPORTED, "\"kind\" is \"copy\""},
    {"{\"zero_experts\":{\"n\":2,\"kind\":\"identity\"}}", MOE_E_MALFORMED, "0 zero experts"},
    {"{\"scoring\":\"sparsemixer\"}", MOE_E_UNSUPPORTED, "sparsemixer has no bias"},
    {"{\"scoring\":\"none\"}", MOE_E_MALFORMED, "neither routed nor shared"},
    {"{\"shared\":\"plain\"}", MOE_E_MALFORMED, "\"shared_act\" is null"},
    {"{\"shared\":\"plain\",\"shared_act\":\"relu2\"}", MOE_E_MALFORMED, "\"shared_up\""},
    {"{\"shared\":\"plain\",\"shared_act\":\"silu_glu\"}", MOE_E_MALFORMED, "roles of the shared"},
    {"{\"shared\":\"plain\",\"shared_act\":\"relu2\",\"tensors\":{\"shared_up\":\"stack\","
     "\"shared_down\":\"d\"}}",
     MOE_E_MALFORMED, "has 3 dimensions, expected 2"},
    {"{\"shared\":\"plain\",\"shared_act\":\"silu_glu\",\"tensors\":{\"shared_gate_up\":\"odd\","
     "\"shared_down\":\"d\"}}",
     MOE_E_MALFORMED, "has 27 rows, expected an even number"},
    {"{\"shared\":\"router_weighted\",\"shared_act\":\"relu2\",\"tensors\":{\"shared_up\":"
     "\"stack\",\"shared_down\":\"d\"}}",
     MOE_E_UNSUPPORTED, "\"shared\" the string \"router_weighted\" with \"renorm_over\""},
    {"{\"case\":{\"E\":null}}", MOE_E_MALFORMED, "\"E\" is null, expected an integer"},
    {"{\"case\":{\"k\":13}}", MOE_E_MALFORMED, "13 experts per token exceed the 12"},
    {"{\"scale\":\"2\"}", MOE_E_MALFORMED, "\"scale\" is the string \"2\""},
};

static void test_vocabulary(void)
{
    for (size_t i = 0; i < sizeof unknown_words / sizeof unknown_words[0]; i++) {
        const struct refused *r = &unknown_words[i];
        moe_layer_desc d = moe_layer_desc_default();
        moe_layer_desc before;
        memcpy(&before, &d, sizeof d);
        const moe_status status = from_patch(r->json, &d);
        CHECK(status == r->status, "%s: %s, expected %s (%s)", r->json, moe_status_name(status),
              moe_status_name(r->status), moe_last_error());
        CHECK(status == MOE_OK || strstr(moe_last_error(), r->message) != NULL,
              "%s: \"%s\" lacks \"%s\"", r->json, moe_last_error(), r->message);
        CHECK(same_bytes(&d, &before, sizeof d), "%s changed the descriptor", r->json);
    }
}

// What the vocabulary has and the cases at hand may not use.
static void test_rare_words(void)
{
    moe_layer_desc d = moe_layer_desc_default();
    CHECK(from_patch("{}", &d) == MOE_OK && d.route.scale == 1.5f, "%s", moe_last_error());
    CHECK(from_patch("{\"limit\":3,\"note\":\"x\",\"scale_tensor\":\"s\"}", &d) == MOE_OK &&
              d.limit == 3.0f && d.route.scale_tensor == 1,
          "%s", moe_last_error());
    CHECK(from_patch("{\"renormalise\":\"clamped\",\"renorm_min\":0.25}", &d) == MOE_OK &&
              d.route.renormalise == MOE_RENORM_CLAMPED && d.route.renorm_eps == 0.25f,
          "%s", moe_last_error());
    CHECK(from_patch("{\"select_on\":\"logits\",\"correction_bias\":\"b\"}", &d) == MOE_OK &&
              d.route.select_on == MOE_SELECT_LOGITS && d.route.correction_bias == 1,
          "%s", moe_last_error());
    CHECK(from_patch("{\"scoring\":\"sigmoid\",\"shared\":\"router_weighted\","
                     "\"shared_act\":\"silu_glu\",\"renorm_over\":\"selected+shared\","
                     "\"tensors\":{\"shared_gate\":\"stack\",\"shared_up\":\"stack\","
                     "\"shared_down\":\"d\"}}",
                     &d) == MOE_OK &&
              d.shared.count == 2 && d.shared.inter == 28 && d.route.shared_scores == 2 &&
              d.route.renorm_shared == 1,
          "%s", moe_last_error());
    CHECK(from_patch("{\"scoring\":\"none\",\"shared\":\"plain\",\"shared_act\":\"silu_glu\","
                     "\"tensors\":{\"shared_gate_up\":\"x\",\"shared_down\":\"d\"},"
                     "\"case\":{\"E\":null,\"k\":null,\"I\":null}}",
                     &d) == MOE_OK &&
              d.routing == MOE_ROUTING_GIVEN && d.num_experts == 1 && d.shared.inter == 14,
          "%s", moe_last_error());
    CHECK(from_patch("{\"zero_experts\":{\"n\":4,\"kind\":\"identity\"},\"case\":"
                     "{\"zero_experts\":4,\"k\":14}}",
                     &d) == MOE_OK &&
              d.route.zero_experts == 4 && d.top_k == 14,
          "%s", moe_last_error());
}

int main(int argc, char **argv)
{
    test_sizes();
    test_gpt_oss();
    test_deepseek();
    test_nested();
    test_architectures();
    test_layers();
    test_others();
    test_refusals();
    test_classes();
    test_vocabulary();
    test_rare_words();
    for (int i = 1; i < argc; i++) {
        test_oracles(argv[i]);
    }
    return test_summary();
}
