// SPDX-License-Identifier: Apache-2.0
// Checkpoints that are not what they should be, each with one change: refused with a status and a
// message that names the tensor and both values. Also what a layer tells of itself, and the lists
// of modules in quantization_config.
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dialects/cases.h"
#include "io/pattern.h"
#include "moe/io.h"
#include "st_image.h"
#include "test.h"

#define SINGLE "model.safetensors"
#define E      MLP "experts."

enum change {
    REMOVE,
    RENAME,  // to `with`
    COPY,    // as `with`
    NARROW,  // one less in the last dimension
    RETYPE,  // to the dtype of the same width in `value`
    REPLACE, // in the configuration, `name` by `with`
    LAYER    // opens layer `value`
};

struct refusal {
    const char *base;
    enum change change;
    const char *name, *with;
    int value;
    moe_status status;
    const char *text[2]; // both are in the message
};

static const struct refusal refusals[] = {
    // Missing tensors.
    {"qwen3_moe",
     REMOVE,
     E "2.up_proj.weight",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"expert 2 has no up projection", "experts.0.up_proj.weight"}},
    {"qwen3_moe",
     REMOVE,
     MLP "gate.weight",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"no tensor \"model.layers.0.mlp.router.weight\"", "the configuration asks for it"}},
    {"deepseek fp8",
     REMOVE,
     E "3.down_proj.weight_scale_inv",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"experts.3.down_proj.weight\" is there (weight e4m3fn)", "its weight_scale_inv is missing"}},
    {"deepseek fp8",
     REMOVE,
     MLP "gate.e_score_correction_bias",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"e_score_correction_bias", "the configuration asks for it"}},
    {"ct nvfp4",
     REMOVE,
     E "1.gate_proj.weight_global_scale",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"its weight_global_scale is missing", "compressed-tensors NVFP4 needs it"}},
    {"ct nvfp4",
     REMOVE,
     E "1.gate_proj.input_global_scale",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"has no input_global_scale", "the other experts"}},
    {"gpt-oss mxfp4",
     REMOVE,
     E "down_proj_scales",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"down_proj_blocks\" is there", "its scales is missing"}},
    {"gpt-oss mxfp4",
     REMOVE,
     E "down_proj_bias",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"down_proj_blocks\" has no bias", NULL}},
    {"ct int4 zero points",
     REMOVE,
     E "0.up_proj.weight_zero_point",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"has no weight_zero_point", NULL}},
    {"nemotron",
     REMOVE,
     "backbone.layers.0.mixer.fc2_latent_proj.weight",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"fc2_latent_proj.weight", "asks for it"}},
    {"qwen3_moe",
     LAYER,
     NULL,
     NULL,
     1,
     MOE_E_NOT_FOUND,
     {"layer 1 has no experts", "the first that has is 0"}},
    // Tensors too many.
    {"qwen3_moe",
     COPY,
     E "3.up_proj.weight",
     E "4.up_proj.weight",
     0,
     MOE_E_MALFORMED,
     {"experts.4.up_proj.weight\" is of expert 4", "has 4"}},
    {"qwen3_moe",
     COPY,
     E "3.up_proj.weight",
     E "3.up_proj.wobble",
     0,
     MOE_E_MALFORMED,
     {"experts.3.up_proj.wobble", "no meaning that is known"}},
    {"qwen3_moe",
     COPY,
     E "3.up_proj.weight",
     E "3.up_proj.bias",
     0,
     MOE_E_MALFORMED,
     {"experts.3.up_proj.weight\" has a bias", "none"}},
    {"qwen3_moe",
     COPY,
     E "0.up_proj.weight",
     E "up_proj",
     0,
     MOE_E_MALFORMED,
     {"experts.up_proj\" holds all experts", "hold one each"}},
    {"qwen3_moe",
     COPY,
     E "0.up_proj.weight",
     E "0.w3.weight",
     0,
     MOE_E_MALFORMED,
     {"are the same tensor", "experts.0.w3.weight"}},
    {"qwen3_moe",
     COPY,
     E "0.up_proj.weight",
     E "0.gate_up_proj.weight",
     0,
     MOE_E_MALFORMED,
     {"gate_up_proj.weight\" has gate and up", "gate_proj.weight\" one of them"}},
    {"qwen3_moe",
     COPY,
     E "0.up_proj.weight",
     MLP "shared_expert.up_proj.weight",
     0,
     MOE_E_MALFORMED,
     {"shared_expert.up_proj.weight", "the configuration has no shared experts"}},
    {"qwen3_moe",
     COPY,
     MLP "gate.weight",
     MLP "e_score_correction_bias",
     0,
     MOE_E_MALFORMED,
     {"e_score_correction_bias", "does not ask for it"}},
    {"qwen3_moe",
     COPY,
     E "0.up_proj.weight",
     "model.other.layers.0.mlp.experts.0.up_proj.weight",
     0,
     MOE_E_MALFORMED,
     {"has experts below \"model.layers.0.mlp.\"", "model.other.layers.0"}},
    {"nemotron",
     COPY,
     "backbone.layers.0.mixer.experts.0.up_proj.weight",
     "backbone.layers.0.mixer.experts.0.gate_proj.weight",
     0,
     MOE_E_MALFORMED,
     {"gate_proj.weight", "has no gate"}},
    // Shapes and types.
    {"qwen3_moe",
     NARROW,
     E "2.up_proj.weight",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"experts.2.up_proj.weight\" is bf16 [24, 39]", "expected [24, 40]"}},
    {"qwen3_moe",
     RETYPE,
     E "2.up_proj.weight",
     NULL,
     MOE_F16,
     MOE_E_MALFORMED,
     {"experts.2.up_proj.weight\" is f16", "other experts have bf16"}},
    {"gpt-oss mxfp4",
     NARROW,
     E "gate_up_proj_scales",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"gate_up_proj_scales\" is uint8 [4, 128, 2]", "expected [128, 3] per expert"}},
    {"gpt-oss mxfp4",
     NARROW,
     E "gate_up_proj_blocks",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"uint8 [4, 128, 3, 15]", "[128, 3, 16]"}},
    {"gpt-oss mxfp4",
     NARROW,
     E "down_proj_bias",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"bf16 [4, 95]", "[96, 1]"}},
    {"gpt-oss mxfp4",
     RETYPE,
     E "down_proj_scales",
     NULL,
     MOE_I8,
     MOE_E_MALFORMED,
     {"blocks uint8, scales int8", "not as in gpt-oss MXFP4"}},
    {"llama4",
     NARROW,
     "model.layers.0.feed_forward.experts.down_proj",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"bf16 [4, 32, 63]", "[32, 64]"}},
    {"deepseek fp8",
     NARROW,
     E "1.up_proj.weight_scale_inv",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"f32 [2, 1]", "[2, 2]"}},
    {"ct nvfp4",
     RETYPE,
     E "1.up_proj.weight_global_scale",
     NULL,
     MOE_I32,
     MOE_E_MALFORMED,
     {"weight_global_scale\" is int32", "expected f32"}},
    {"ct int4",
     NARROW,
     E "1.up_proj.weight_scale",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"bf16 [64, 2]", "[64, 3]"}},
    {"qwen3_moe",
     NARROW,
     MLP "gate.weight",
     NULL,
     0,
     MOE_E_MALFORMED,
     {"gate.weight\" is bf16 [4, 39]", "[4, 40]"}},
    // Two dialects, or none.
    {"fp8 block",
     RENAME,
     E "2.up_proj.weight_scale",
     E "2.up_proj.weight_scale_inv",
     0,
     MOE_E_MALFORMED,
     {"two dialects at once: \"model.layers.0.mlp.experts.2.up_proj.weight\" is DeepSeek FP8 block",
      "other experts compressed-tensors or Quark FP8"}},
    {"fp8 block",
     REMOVE,
     E "2.up_proj.weight_scale",
     NULL,
     0,
     MOE_E_NOT_FOUND,
     {"its weight_scale is missing", "FP8 needs it"}},
    {"modelopt nvfp4",
     COPY,
     E "2.up_proj.weight_scale_2",
     E "2.up_proj.weight_global_scale",
     0,
     MOE_E_MALFORMED,
     {"experts.2.up_proj", "is not as in ModelOpt NVFP4"}},
    // Values in place of shapes.
    {"ct int4",
     REPLACE,
     "\"group_size\":32",
     "\"group_size\":64",
     0,
     MOE_E_MALFORMED,
     {"bf16 [64, 3]", "groups of 64 in 96"}},
    {"ct int4",
     REPLACE,
     "\"num_bits\":4",
     "\"num_bits\":8",
     0,
     MOE_E_MALFORMED,
     {"num_bits 8", "compressed-tensors int4"}},
    // The configuration and the tensors disagree.
    {"qwen3_moe",
     REPLACE,
     "true",
     "true,\"quantization_config\":{\"quant_method\":\"fp8\"}",
     0,
     MOE_E_MALFORMED,
     {"says fp8", "the tensors are Hugging Face float"}},
    {"gpt-oss mxfp4",
     REPLACE,
     "\"quant_method\":\"mxfp4\"",
     "\"quant_method\":\"quark\"",
     0,
     MOE_E_MALFORMED,
     {"says quark", "gpt-oss MXFP4"}},
    {"ct nvfp4",
     REPLACE,
     "nvfp4-pack-quantized",
     "pack-quantized",
     0,
     MOE_E_MALFORMED,
     {"says compressed-tensors:pack-quantized", "compressed-tensors NVFP4"}},
    {"ct nvfp4",
     REPLACE,
     "\"lm_head\"",
     "\"re:.*experts.*\"",
     0,
     MOE_E_MALFORMED,
     {"unquantised (\"re:.*experts.*\")", "compressed-tensors NVFP4"}},
    {"modelopt nvfp4",
     REPLACE,
     "\"*.gate\"",
     "\"model.layers.0.mlp*\"",
     0,
     MOE_E_MALFORMED,
     {"unquantised (\"model.layers.0.mlp*\")", "ModelOpt NVFP4"}},
    {"deepseek fp8",
     REPLACE,
     "\"activation_scheme\":\"dynamic\"",
     "\"modules_to_not_convert\":[\"shared_experts\"]",
     0,
     MOE_E_MALFORMED,
     {"leaves the shared experts unquantised", "DeepSeek FP8 block"}},
    {"ct int8",
     REPLACE,
     "\"Linear\"",
     "\"re:.*self_attn.*\"",
     0,
     MOE_E_MALFORMED,
     {"unquantised (\"config_groups\")", "compressed-tensors int8"}},
    {"deepseek fp8",
     REPLACE,
     "[128,128]",
     "[64,128]",
     0,
     MOE_E_UNSUPPORTED,
     {"[64, 128]", "only [128, 128] is known"}},
    {"deepseek fp8",
     REPLACE,
     "[128,128]",
     "128",
     0,
     MOE_E_MALFORMED,
     {"\"weight_block_size\" is 128", "expected two integers"}},
    {"ct nvfp4",
     REPLACE,
     "\"lm_head\"",
     "\"re:(\"",
     0,
     MOE_E_UNSUPPORTED,
     {"\"re:(\"", "is no expression that is understood"}},
    {"ct nvfp4",
     REPLACE,
     "[\"lm_head\"",
     "[7",
     0,
     MOE_E_MALFORMED,
     {"\"ignore\" holds 7", "expected strings"}},
    {"fp8 stacks",
     REPLACE,
     "{\"quant_method\":\"fp8\"}",
     "\"fp8\"",
     0,
     MOE_E_MALFORMED,
     {"\"quantization_config\" is the string \"fp8\"", "expected an object"}},
    {"fp8 stacks",
     REPLACE,
     "\"quant_method\":\"fp8\"",
     "\"method\":1",
     0,
     MOE_E_MALFORMED,
     {"\"quant_method\" is nothing", "expected a string"}},
    {"qwen3_moe",
     REPLACE,
     "\"num_experts\":4",
     "\"num_experts\":5",
     0,
     MOE_E_NOT_FOUND,
     {"expert 4 has no gate projection", NULL}},
};

static moe_context *ctx;
static gen_layer layer;
static gen_file file;

static const dialect_case *find_case(const char *name)
{
    for (size_t i = 0; i < NUM_DIALECT_CASES; i++) {
        if (strcmp(dialect_cases[i].name, name) == 0) {
            return &dialect_cases[i];
        }
    }
    (void)printf("no case %s\n", name);
    exit(1);
}

// The text with one piece replaced.
static void replace(char *text, size_t size, const char *piece, const char *with)
{
    char rest[4096];
    char *at = strstr(text, piece);
    if (at == NULL) {
        (void)printf("no %s in %s\n", piece, text);
        exit(1);
    }
    (void)snprintf(rest, sizeof rest, "%s", at + strlen(piece));
    (void)snprintf(at, size - (size_t)(at - text), "%s%s", with, rest);
}

static void make_config(const dialect_case *c, char *text, size_t size)
{
    (void)snprintf(text, size, "%s%s%s}", c->config,
                   c->quantization != NULL ? ",\"quantization_config\":" : "",
                   c->quantization != NULL ? c->quantization : "");
}

static void apply(const struct refusal *r, char *config, size_t size)
{
    if (r->change == REPLACE) {
        replace(config, size, r->name, r->with);
        return;
    }
    if (r->change == LAYER) {
        return;
    }
    moe_file_entry *e = gen_find(&file, r->name);
    switch (r->change) {
    case REMOVE:
        *e = file.entries[--file.count];
        break;
    case RENAME:
        e->name = r->with;
        break;
    case COPY:
        file.entries[file.count] = *e;
        file.entries[file.count++].name = r->with;
        break;
    case NARROW:
        e->tensor.shape[e->tensor.ndim - 1]--;
        break;
    default:
        e->tensor.dtype = r->value;
        break;
    }
}

static void write_single(void)
{
    if (moe_file_write(in_folder(SINGLE), file.entries, file.count, NULL, 0) != MOE_OK) {
        (void)printf("writing: %s\n", moe_last_error());
        exit(1);
    }
}

static void check_refusal(const struct refusal *r)
{
    char config[4096];
    moe_checkpoint *checkpoint = NULL;
    moe_checkpoint_layer *const untouched = (moe_checkpoint_layer *)(uintptr_t)64;
    moe_checkpoint_layer *out = untouched;
    const dialect_case *c = find_case(r->base);
    gen_make(&layer, &c->shape, 3);
    gen_write(&layer, GEN_RIGHT, &file);
    make_config(c, config, sizeof config);
    apply(r, config, sizeof config);
    write_single();
    CHECK(moe_checkpoint_open(folder, 0, &checkpoint) == MOE_OK, "%s", moe_last_error());
    const moe_status status = moe_checkpoint_layer_open(checkpoint, config, strlen(config),
                                                        r->change == LAYER ? r->value : 0, &out);
    const char *what = r->name != NULL ? r->name : "layer";
    if (CHECK(status == r->status, "%s: %s: status %s: %s", r->base, what, moe_status_name(status),
              status == MOE_OK ? "" : moe_last_error())) {
        for (int i = 0; i < 2; i++) {
            CHECK(r->text[i] == NULL || strstr(moe_last_error(), r->text[i]) != NULL,
                  "%s: %s: \"%s\" lacks \"%s\"", r->base, what, moe_last_error(), r->text[i]);
        }
        CHECK(out == untouched, "%s: %s: out was touched", r->base, what);
    } else if (status == MOE_OK) {
        moe_checkpoint_layer_close(out);
    }
    moe_checkpoint_close(checkpoint);
    remove_file(SINGLE);
    gen_free(&layer);
}

// ---- what a layer tells ------------------------------------------------------------------------

/// An open layer of a case as it should be.
struct opened {
    moe_checkpoint *checkpoint;
    moe_checkpoint_layer *layer;
};

static struct opened open_case(const char *name)
{
    struct opened o = {NULL, NULL};
    char config[4096];
    const dialect_case *c = find_case(name);
    gen_make(&layer, &c->shape, 3);
    gen_write(&layer, GEN_RIGHT, &file);
    make_config(c, config, sizeof config);
    write_single();
    CHECK(moe_checkpoint_open(folder, 0, &o.checkpoint) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_checkpoint_layer_open(o.checkpoint, config, strlen(config), 0, &o.layer) == MOE_OK,
          "%s: %s", name, moe_last_error());
    return o;
}

static void close_case(struct opened *o)
{
    moe_checkpoint_layer_close(o->layer);
    moe_checkpoint_close(o->checkpoint);
    remove_file(SINGLE);
    gen_free(&layer);
}

static int count_roles(void *self, const moe_layer_tensor *t)
{
    int *counts = self;
    counts[t->role]++;
    return 0;
}

static void check_visit(void)
{
    int counts[16] = {0};
    struct opened o = open_case("deepseek fp8");
    moe_router_tensors router;
    CHECK(moe_checkpoint_layers(o.checkpoint) == 1, "%d layers",
          (int)moe_checkpoint_layers(o.checkpoint));
    CHECK(moe_checkpoint_has_experts(o.checkpoint, 0) == 1 &&
              moe_checkpoint_has_experts(o.checkpoint, 1) == 0,
          "layers with experts");
    CHECK(strcmp(moe_checkpoint_layer_class(o.layer), "deepseek_v3") == 0, "class %s",
          moe_checkpoint_layer_class(o.layer));
    CHECK(moe_checkpoint_layer_visit(o.layer, count_roles, counts) == MOE_OK, "%s",
          moe_last_error());
    CHECK(counts[MOE_ROLE_VALUES] == 15 && counts[MOE_ROLE_SCALES] == 15 &&
              counts[MOE_ROLE_ROUTER] == 2,
          "%d values, %d scales, %d of the router", counts[MOE_ROLE_VALUES],
          counts[MOE_ROLE_SCALES], counts[MOE_ROLE_ROUTER]);
    size_t all = 0;
    for (size_t i = 0; i < COUNT(counts); i++) {
        all += (size_t)counts[i];
    }
    CHECK(all == file.count, "%zu of %zu tensors visited", all, file.count);
    CHECK(moe_checkpoint_layer_router(o.layer, &router) == MOE_OK, "%s", moe_last_error());
    CHECK(router.weight.dtype == MOE_BF16 && router.weight.shape[0] == 4 &&
              router.bias.data == NULL && router.correction_bias.dtype == MOE_F32 &&
              memcmp(router.correction_bias.data, layer.correction, 16) == 0,
          "the router's tensors");
    CHECK(moe_checkpoint_layer_router(o.layer, NULL) == MOE_E_ARGUMENT, "NULL");
    CHECK(moe_checkpoint_layer_desc(o.layer, NULL) == MOE_E_ARGUMENT, "NULL");
    moe_layer_desc old = moe_layer_desc_default();
    old.struct_size--;
    CHECK(moe_checkpoint_layer_desc(o.layer, &old) == MOE_E_VERSION, "struct_size");
    close_case(&o);
    moe_checkpoint_layer_close(NULL);
}

// Static activation scales: the largest of all experts' multipliers, or of divisors the least.
static void check_act_scales(void)
{
    static const struct {
        const char *name;
        moe_quant_spec spec;
        moe_status status;
    } cases[] = {
        {"ct nvfp4", MOE_QUANT_NVFP4, MOE_OK},
        {"modelopt nvfp4", MOE_QUANT_NVFP4, MOE_OK},
        {"fp8 tensor", MOE_QUANT_FP8_STATIC, MOE_OK},
        {"ct mxfp4", MOE_QUANT_FP8_STATIC, MOE_E_NOT_FOUND},
        {"ct nvfp4", MOE_QUANT_FP8_STATIC, MOE_E_UNSUPPORTED},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct opened o = open_case(cases[i].name);
        moe_layer_desc d = moe_layer_desc_default();
        moe_plan *plan = NULL;
        moe_weights *weights = NULL;
        size_t bytes = 0;
        size_t align = 0;
        d.x_dtype = MOE_F32;
        d.max_tokens = 4;
        CHECK(moe_checkpoint_layer_desc(o.layer, &d) == MOE_OK, "%s", moe_last_error());
        d.gemm[0].act.spec = d.gemm[1].act.spec = cases[i].spec;
        CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK, "%s: %s", cases[i].name, moe_last_error());
        const moe_status status = moe_checkpoint_layer_bytes(o.layer, plan, &bytes, &align);
        CHECK(status == cases[i].status, "%s: %s", cases[i].name, moe_last_error());
        void *memory = status == MOE_OK ? aligned_alloc(4096, (bytes + 4095) / 4096 * 4096) : NULL;
        if (memory != NULL &&
            CHECK(moe_checkpoint_layer_load(o.layer, plan, memory, bytes, &weights) == MOE_OK,
                  "%s: %s", cases[i].name, moe_last_error())) {
            float most[2] = {0, 0};
            for (int e = 0; e < 4; e++) {
                for (int p = 0; p < 3; p++) {
                    const float input = layer.m[e][p].input;
                    most[p == 2] = input > most[p == 2] ? input : most[p == 2];
                }
            }
            for (int g = 0; g < 2; g++) {
                float value = 0;
                moe_weights_source out = moe_weights_source_default();
                out.gemm[g].values =
                    moe_tensor_3d(NULL, MOE_U8, 1, g == 0 ? 128 : 96, g == 0 ? 48 : 32);
                out.gemm[g].act_scale = moe_tensor_1d(&value, MOE_F32, 1);
                const int bits = cases[i].spec == MOE_QUANT_NVFP4 ? 4 : 8;
                out.gemm[g].values.shape[2] = (g == 0 ? 96 : 64) * bits / 8;
                out.gemm[g].values.stride[1] = out.gemm[g].values.shape[2];
                out.gemm[g].values.data = calloc(128, 96);
                out.gemm[g].scales = cases[i].spec == MOE_QUANT_NVFP4
                                         ? moe_tensor_3d(calloc(128, 6), MOE_E4M3FN, 1,
                                                         g == 0 ? 128 : 96, g == 0 ? 6 : 4)
                                         : moe_tensor_2d(calloc(8, 1), MOE_F32, 1, g == 0 ? 2 : 1);
                if (cases[i].spec == MOE_QUANT_NVFP4) {
                    out.gemm[g].scale2 = moe_tensor_2d(calloc(8, 1), MOE_F32, 1, g == 0 ? 2 : 1);
                }
                CHECK(moe_weights_unpack(weights, 0, &out) == MOE_OK, "%s", moe_last_error());
                const float want = cases[i].spec == MOE_QUANT_NVFP4 ? 1.0f / most[g] : most[g];
                CHECK(fabsf(value - want) <= 0.0f, "%s: product %d: %.9g, expected %.9g",
                      cases[i].name, g, (double)value, (double)want);
                free(out.gemm[g].values.data);
                free(out.gemm[g].scales.data);
                free(out.gemm[g].scale2.data);
            }
        }
        moe_weights_destroy(weights);
        moe_plan_destroy(plan);
        free(memory);
        close_case(&o);
    }
}

// A plan of another layer, and memory that does not suffice.
static void check_plans(void)
{
    struct opened o = open_case("ct int4");
    moe_layer_desc d = moe_layer_desc_default();
    moe_weights *weights = NULL;
    size_t bytes = 0;
    size_t align = 0;
    d.x_dtype = MOE_F32;
    d.max_tokens = 4;
    CHECK(moe_checkpoint_layer_desc(o.layer, &d) == MOE_OK, "%s", moe_last_error());
    static const struct {
        int what;
        const char *text;
    } cases[] = {{0, "hidden = 128, the checkpoint's layer 96"},
                 {1, "gemm[1] in bf16, the checkpoint's layer in int4_group"},
                 {2, "num_local_experts = 2, the checkpoint's layer 4"},
                 {3, NULL}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        moe_layer_desc other = d;
        moe_plan *plan = NULL;
        other.hidden = cases[i].what == 0 ? 128 : other.hidden;
        if (cases[i].what == 1) {
            other.gemm[1] = (moe_gemm_desc){.weight_format = MOE_FORMAT_BF16};
        }
        other.num_local_experts = cases[i].what == 2 ? 2 : 0;
        other.expert_map = cases[i].what == 2;
        CHECK(moe_plan_create(ctx, &other, &plan) == MOE_OK, "%s", moe_last_error());
        const moe_status status = moe_checkpoint_layer_bytes(o.layer, plan, &bytes, &align);
        CHECK(status == (cases[i].text != NULL ? MOE_E_SHAPE : MOE_OK), "%zu: %s", i,
              moe_last_error());
        int wraps = 7;
        CHECK(moe_checkpoint_layer_wraps(o.layer, plan, &wraps) == status &&
                  wraps == (status == MOE_OK ? 0 : 7),
              "%zu: %d, %s", i, wraps, moe_last_error());
        CHECK(moe_checkpoint_layer_wraps(o.layer, plan, NULL) == MOE_E_ARGUMENT, "NULL");
        CHECK(moe_checkpoint_layer_bytes(o.layer, plan, &bytes, &align) == status, "%zu", i);
        if (cases[i].text != NULL) {
            CHECK(strstr(moe_last_error(), cases[i].text) != NULL, "%s", moe_last_error());
        } else {
            char few[64];
            CHECK(moe_checkpoint_layer_load(o.layer, plan, few, sizeof few, &weights) ==
                      MOE_E_ARGUMENT,
                  "little memory");
            CHECK(moe_checkpoint_layer_load(o.layer, plan, NULL, 0, &weights) == MOE_E_UNSUPPORTED,
                  "in place");
            CHECK(strstr(moe_last_error(), "give memory") != NULL, "%s", moe_last_error());
            CHECK(weights == NULL, "out was touched");
            CHECK(moe_plan_desc(NULL, &other) == MOE_E_ARGUMENT, "NULL");
            CHECK(moe_plan_desc(plan, NULL) == MOE_E_ARGUMENT, "NULL");
            other.struct_size--;
            CHECK(moe_plan_desc(plan, &other) == MOE_E_VERSION, "struct_size");
        }
        moe_plan_destroy(plan);
    }
    close_case(&o);
}

// ---- lists of modules --------------------------------------------------------------------------

static void check_patterns(void)
{
    static const struct {
        const char *entry, *module;
        int matches; // -1: refused
    } cases[] = {
        {"lm_head", "lm_head", 1},
        {"mlp.gate", "model.layers.0.mlp.gate", 1},
        {"mlp.gate", "model.layers.0.mlp.gate_proj", 0},
        {"mlp.experts", "model.layers.0.mlp.experts.1.w1", 1},
        {"lp.experts", "model.layers.0.mlp.experts", 0},
        {"", "a", 0},
        {"*.gate", "model.layers.0.mlp.gate", 1},
        {"*.gate", "model.layers.0.mlp.gate.x", 0},
        {"model.layers.?.mlp*", "model.layers.3.mlp.experts", 1},
        {"model.layers.?.mlp*", "model.layers.13.mlp.experts", 0},
        {"*a*b*c", "xaxbxbxc", 1},
        {"*a*b*c", "xaxbxbx", 0},
        {"re:.*mlp.gate$", "model.layers.0.mlp.gate", 1},
        {"re:.*mlp.gate$", "model.layers.0.mlp.gate_proj", 0},
        {"re:mlp", "model.mlp", 0},
        {"re:model", "model.mlp", 1},
        {"re:model\\.layers\\.\\d+\\.mlp", "model.layers.12.mlp.x", 1},
        {"re:model\\.layers\\.\\d+\\.mlp", "model.layers.x.mlp.x", 0},
        {"re:.*(q|k|v)_proj", "a.k_proj", 1},
        {"re:.*(q|k|v)_proj", "a.o_proj", 0},
        {"re:.*(?:a|bc)+d", "xbcabcd", 1},
        {"re:.*layers\\.([0-2]|7)\\.", "layers.2.x", 1},
        {"re:.*layers\\.([0-2]|7)\\.", "layers.3.x", 0},
        {"re:[^a-c]b?$", "d", 1},
        {"re:[^a-c]b?$", "a", 0},
        {"re:[a-roj]$", "b", 1},
        {"re:[\\dxy]$", "x", 1},
        {"re:a|", "zzz", 1},
        {"re:(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", 0},
        {"re:((((a*)*)*)*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", 0},
        {"re:x?y\\w+$", "y_1", 1},
        {"re:.*?z", "xyz", 1},
        {"re:(", "a", -1},
        {"re:a)", "a", -1},
        {"re:[a", "a", -1},
        {"re:*", "a", -1},
        {"re:a{2}", "aa", -1},
        {"re:(?=a)", "a", -1},
        {"re:\\bx", "x", -1},
        {"re:((((((((((((((((((a))))))))))))))))))", "a", -1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        int matches = -1;
        const moe_status status =
            moei_pattern_match("test", cases[i].entry, cases[i].module, &matches);
        matches = status == MOE_OK ? matches : -1;
        CHECK(matches == cases[i].matches, "%s on %s: %d", cases[i].entry, cases[i].module,
              matches);
    }
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (moe_context_create(&desc, &ctx) != MOE_OK) {
        (void)printf("%s\n", moe_last_error());
        return 1;
    }
    folder_make();
    for (size_t i = 0; i < COUNT(refusals); i++) {
        check_refusal(&refusals[i]);
    }
    check_visit();
    check_act_scales();
    check_plans();
    check_patterns();
    folder_remove();
    moe_context_destroy(ctx);
    return test_summary();
}
