// SPDX-License-Identifier: Apache-2.0
// Configurations and checkpoints that the decoder refuses, with the name of what it does not know,
// and what it reads from those it takes.
#define _POSIX_C_SOURCE 200809L
#include <math.h>

#include "unit/small_model.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static char dir[256];

// -- Configurations -------------------------------------------------------------------------------

struct refusal {
    const char *patch;
    moe_status status;
    const char *message;
};

#define U MOE_E_UNSUPPORTED
#define M MOE_E_MALFORMED
// clang-format off
static const struct refusal refusals[] = {
    {"{\"model_type\":\"llama\"}", U, "\"model_type\" is \"llama\"; the decoder knows \"gpt_oss\""},
    {"{\"model_type\":7}", U, "\"model_type\" is no string"},
    {"{\"model_type\":null}", M, "\"model_type\""},
    {"{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", U, "\"llama3\"; the decoder knows default and yarn"},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":8}}", U, "\"linear\""},
    {"{\"rope_parameters\":{\"rope_type\":\"dynamic\"}}", U, "\"dynamic\""},
    {"{\"rope_theta\":\"big\"}", M, "\"rope_theta\""},
    {"{\"rope_theta\":0.5}", M, "\"rope_theta\" is 0.5"},
    {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":\"4\"}}", M, "\"factor\""},
    {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":0.5}}", M, "\"factor\" is 0.5"},
    {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"beta_fast\":[]}}", M, "\"beta_fast\""},
    {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":0}}", M, "\"original_max_position_embeddings\" is 0"},
    {"{\"layer_types\":[\"full_attention\",\"full_attention\"]}", M, "\"layer_types\" has 2 entries for 3 layers"},
    {"{\"layer_types\":[\"full_attention\",\"chunked_attention\",\"full_attention\"]}", U, "\"layer_types\"[1] is \"chunked_attention\""},
    {"{\"layer_types\":[\"full_attention\",\"full_attention\",3]}", U, "\"layer_types\"[2] is \"no string\""},
    {"{\"layer_types\":\"full_attention\"}", M, "\"layer_types\""},
    {"{\"sliding_window\":null}", M, "layer 0 is sliding, but \"sliding_window\" is missing"},
    {"{\"sliding_window\":0}", M, "\"sliding_window\" is 0"},
    {"{\"sliding_window\":\"4\"}", M, "\"sliding_window\""},
    {"{\"num_key_value_heads\":4}", U, "6 heads over 4 key heads"},
    {"{\"num_key_value_heads\":12}", U, "6 heads over 12 key heads"},
    {"{\"num_attention_heads\":0}", M, "\"num_attention_heads\" is 0"},
    {"{\"head_dim\":9}", U, "of 9"},
    {"{\"head_dim\":null,\"num_attention_heads\":128}", M, "\"head_dim\""},
    {"{\"head_dim\":10.0}", M, "\"head_dim\""},
    {"{\"hidden_size\":null}", M, "\"hidden_size\" is missing"},
    {"{\"hidden_size\":-64}", M, "\"hidden_size\" is -64, must be in 1..16777216"},
    {"{\"hidden_size\":16777217}", M, "\"hidden_size\" is 16777217"},
    {"{\"vocab_size\":\"40\"}", M, "\"vocab_size\""},
    {"{\"vocab_size\":[40]}", M, "\"vocab_size\""},
    {"{\"num_hidden_layers\":1025}", M, "\"num_hidden_layers\" is 1025, must be in 1..1024"},
    {"{\"max_position_embeddings\":null}", M, "\"max_position_embeddings\" is missing"},
    {"{\"rms_norm_eps\":-1}", M, "\"rms_norm_eps\" is -1"},
    {"{\"rms_norm_eps\":\"small\"}", M, "\"rms_norm_eps\""},
    {"{\"eos_token_id\":40}", M, "\"eos_token_id\" 40 is not in 0..39"},
    {"{\"eos_token_id\":-1}", M, "\"eos_token_id\" -1 is not in 0..39"},
    {"{\"eos_token_id\":[1,2,40]}", M, "\"eos_token_id\" 40 is not in 0..39"},
    {"{\"eos_token_id\":\"end\"}", M, "\"eos_token_id\""},
    {"{\"eos_token_id\":{}}", M, "\"eos_token_id\""},
    {"{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", MOE_E_LIMIT, "more than 16 end-of-text tokens"},
};
// clang-format on

static moem_config *read_config(moe_status expected)
{
    moem_config *c = malloc(sizeof *c);
    const moe_status status = moem_config_read(dir, c, NULL, NULL);
    CHECK(status == expected, "status %d: %s", (int)status, moe_last_error());
    return c;
}

static void test_config_refusals(void)
{
    moem_config *c = malloc(sizeof *c);
    for (size_t i = 0; i < COUNT(refusals); i++) {
        char *text = NULL;
        size_t size = 0;
        small_write_config(dir, small_config, refusals[i].patch);
        const moe_status status = moem_config_read(dir, c, &text, &size);
        small_refused(status, refusals[i].status, refusals[i].message, refusals[i].patch);
        CHECK(strstr(moe_last_error(), dir) != NULL, "%s: names no file: %s", refusals[i].patch,
              moe_last_error());
        CHECK(text == NULL, "%s: gives the text", refusals[i].patch);
    }
    small_text(dir, "config.json", "{\"model_type\":");
    small_refused(moem_config_read(dir, c, NULL, NULL), M, "config.json", "half a file");
    small_text(dir, "config.json", "{\"a\":1,\"a\":2}");
    small_refused(moem_config_read(dir, c, NULL, NULL), M, "duplicate object key", "a key twice");
    small_text(dir, "config.json", "[1]");
    small_refused(moem_config_read(dir, c, NULL, NULL), M, "not a JSON object", "an array");
    small_text(dir, "config.json", "");
    small_refused(moem_config_read(dir, c, NULL, NULL), M, "config.json", "an empty file");
    small_refused(moem_config_read("/nowhere/at all", c, NULL, NULL), MOE_E_IO,
                  "/nowhere/at all/config.json", "no folder");
    char *path = malloc(5000);
    memset(path, 'a', 4999);
    path[4999] = '\0';
    small_refused(moem_config_read(path, c, NULL, NULL), MOE_E_ARGUMENT, "path of 5011 bytes",
                  "a long path");
    free(path);
    free(c);
}

static void test_generation_config(void)
{
    small_write_config(dir, small_config, "{\"eos_token_id\":[3,5,3]}");
    moem_config *c = read_config(MOE_OK);
    CHECK(c->num_eos == 2 && c->eos[0] == 3 && c->eos[1] == 5, "%d ends", (int)c->num_eos);
    free(c);
    small_text(dir, "generation_config.json", "{\"eos_token_id\":[5,7],\"top_k\":3}");
    c = read_config(MOE_OK);
    CHECK(c->num_eos == 3 && c->eos[0] == 3 && c->eos[1] == 5 && c->eos[2] == 7, "%d ends merged",
          (int)c->num_eos);
    free(c);
    small_text(dir, "generation_config.json", "{}");
    c = read_config(MOE_OK);
    CHECK(c->num_eos == 2, "%d ends", (int)c->num_eos);
    free(c);
    small_text(dir, "generation_config.json", "{\"eos_token_id\":40}");
    c = read_config(M);
    CHECK(strstr(moe_last_error(), "generation_config.json: \"eos_token_id\" 40") != NULL, "%s",
          moe_last_error());
    free(c);
    small_text(dir, "generation_config.json", "{");
    free(read_config(M));
    char path[512];
    small_path(path, sizeof path, dir, "generation_config.json");
    CHECK(unlink(path) == 0, "%s", path);
}

static void test_config_values(const char *checkpoint)
{
    moem_config *c = malloc(sizeof *c);
    char *text = NULL;
    size_t size = 0;
    CHECK(moem_config_read(checkpoint, c, &text, &size) == MOE_OK, "%s", moe_last_error());
    CHECK(c->hidden == 288 && c->vocab == 4096 && c->layers == 4 && c->heads == 8 &&
              c->kv_heads == 2 && c->head_dim == 32 && c->context == 512 && c->window == 128,
          "sizes of %s", checkpoint);
    CHECK(c->rope_theta == 150000 && c->rope_factor == 4 && c->rope_original == 128 &&
              c->rope_fast == 32 && c->rope_slow == 1 && !c->rope_truncate && !c->tied,
          "rotary embedding of %s", checkpoint);
    CHECK(fabs(c->rope_attention - (0.1 * log(4) + 1)) < 1e-15, "%.17g", c->rope_attention);
    CHECK(c->norm_eps == 1e-5 && c->num_eos == 1 && c->eos[0] == 0, "eps, end");
    CHECK(c->sliding[0] && !c->sliding[1] && c->sliding[2] && !c->sliding[3], "layer types");
    CHECK(text != NULL && size > 0 && text[0] == '{', "the text is not given");
    free(text);
    free(c);
}

static void test_config_defaults(void)
{
    small_write_config(dir, small_config,
                       "{\"head_dim\":null,\"num_attention_heads\":8,\"num_key_value_heads\":null,"
                       "\"rms_norm_eps\":null,\"rope_theta\":null,\"tie_word_embeddings\":true}");
    moem_config *c = read_config(MOE_OK);
    CHECK(c->head_dim == 8 && c->kv_heads == 8 && c->norm_eps == 1e-5 && c->rope_theta == 10000 &&
              c->rope_factor == 1 && c->rope_attention == 1 && c->tied && c->num_eos == 0,
          "defaults: %d %d %g %g", (int)c->head_dim, (int)c->kv_heads, c->norm_eps, c->rope_theta);
    CHECK(c->sliding[0] && !c->sliding[1] && c->sliding[2], "layers in turn");
    free(c);
    // No sliding layer needs no window.
    small_write_config(dir, small_config,
                       "{\"sliding_window\":null,\"layer_types\":[\"full_attention\","
                       "\"full_attention\",\"full_attention\"]}");
    c = read_config(MOE_OK);
    CHECK(!c->sliding[0] && !c->sliding[1] && !c->sliding[2], "all full");
    free(c);
}

static void test_config_rope(void)
{
    // As transformers 5 writes it; and what it has overrides the older keys.
    small_write_config(dir, small_config,
                       "{\"rope_theta\":7,\"rope_scaling\":{\"rope_type\":\"linear\"},"
                       "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":5000,"
                       "\"factor\":3.0,\"original_max_position_embeddings\":16,\"beta_fast\":20,"
                       "\"beta_slow\":2,\"truncate\":true,\"attention_factor\":1.25}}");
    moem_config *c = read_config(MOE_OK);
    CHECK(c->rope_theta == 5000 && c->rope_factor == 3 && c->rope_original == 16 &&
              c->rope_fast == 20 && c->rope_slow == 2 && c->rope_truncate &&
              c->rope_attention == 1.25,
          "%g %g %g", c->rope_theta, c->rope_factor, c->rope_attention);
    free(c);
    small_write_config(dir, small_config,
                       "{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":600}}");
    c = read_config(MOE_OK);
    CHECK(c->rope_theta == 600 && c->rope_factor == 1, "%g %g", c->rope_theta, c->rope_factor);
    free(c);
    small_write_config(dir, small_config,
                       "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
                       "\"original_max_position_embeddings\":12,\"mscale\":1.5,"
                       "\"mscale_all_dim\":0.5}}");
    c = read_config(MOE_OK);
    const double expected = (0.15 * log(4) + 1) / (0.05 * log(4) + 1);
    CHECK(fabs(c->rope_attention - expected) < 1e-15 && c->rope_truncate, "%.17g, expected %.17g",
          c->rope_attention, expected);
    free(c);
}

// -- Checkpoints ----------------------------------------------------------------------------------

#define AT0 "model.layers.0."
#define AT2 "model.layers.2."

static void test_open_refusals(void)
{
    static const struct {
        small_change change;
        moe_status status;
        const char *message;
    } cases[] = {
        {{.name = "model.embed_tokens.weight", .drop = true},
         MOE_E_NOT_FOUND,
         "no tensor \"model.embed_tokens.weight\""},
        {{.name = "lm_head.weight", .drop = true}, MOE_E_NOT_FOUND, "\"lm_head.weight\""},
        {{.name = "model.norm.weight", .drop = true}, MOE_E_NOT_FOUND, "\"model.norm.weight\""},
        {{.name = AT2 "self_attn.sinks", .drop = true},
         MOE_E_NOT_FOUND,
         "\"" AT2 "self_attn.sinks\""},
        {{.name = AT2 "self_attn.o_proj.weight", .drop = true},
         MOE_E_NOT_FOUND,
         "\"" AT2 "self_attn.o_proj.weight\""},
        {{.name = AT2 "post_attention_layernorm.weight", .drop = true},
         MOE_E_NOT_FOUND,
         "post_attention_layernorm.weight\""},
        {{.name = AT2 "mlp.router.weight", .drop = true}, MOE_E_NOT_FOUND, "router"},
        {{.name = AT2 "mlp.experts.down_proj_scales", .drop = true},
         MOE_E_NOT_FOUND,
         "its scales is missing; gpt-oss MXFP4 needs it"},
        {{.name = "model.embed_tokens.weight", .dtype = MOE_BF16, .ndim = 2, .shape = {41, 64}},
         MOE_E_SHAPE,
         "model.embed_tokens.weight has shape [41, 64], must be [40, 64]"},
        {{.name = "model.norm.weight", .dtype = MOE_BF16, .ndim = 2, .shape = {1, 64}},
         MOE_E_SHAPE,
         "model.norm.weight has shape [1, 64], must be [64]"},
        {{.name = "lm_head.weight", .dtype = MOE_BF16, .ndim = 3, .shape = {40, 64, 1}},
         MOE_E_SHAPE,
         "lm_head.weight has shape [40, 64, 1], must be [40, 64]"},
        {{.name = "lm_head.weight", .dtype = MOE_BF16, .ndim = 1, .shape = {40}},
         MOE_E_SHAPE,
         "lm_head.weight has shape [40], must be [40, 64]"},
        {{.name = AT0 "self_attn.k_proj.weight", .dtype = MOE_BF16, .ndim = 2, .shape = {60, 64}},
         MOE_E_SHAPE,
         AT0 "self_attn.k_proj.weight has shape [60, 64], must be [20, 64]"},
        {{.name = AT0 "self_attn.q_proj.bias", .dtype = MOE_BF16, .ndim = 1, .shape = {20}},
         MOE_E_SHAPE,
         AT0 "self_attn.q_proj.bias has shape [20], must be [60]"},
        {{.name = AT2 "self_attn.sinks", .dtype = MOE_BF16, .ndim = 1, .shape = {2}},
         MOE_E_SHAPE,
         AT2 "self_attn.sinks has shape [2], must be [6]"},
        {{.name = AT2 "self_attn.v_proj.weight", .dtype = MOE_U8, .ndim = 2, .shape = {20, 64}},
         MOE_E_DTYPE,
         AT2 "self_attn.v_proj.weight is uint8, must be bf16, f16 or f32"},
        {{.name = AT0 "input_layernorm.weight", .dtype = MOE_I32, .ndim = 1, .shape = {64}},
         MOE_E_DTYPE,
         AT0 "input_layernorm.weight is int32, must be bf16, f16 or f32"},
    };
    small_write_config(dir, small_config, "{}");
    for (size_t i = 0; i < COUNT(cases); i++) {
        moem_model *model = NULL;
        small_write_tensors(dir, &cases[i].change);
        const moe_status status = moem_model_open(dir, &(moem_options){.threads = 1}, &model);
        small_refused(status, cases[i].status, cases[i].message, cases[i].change.name);
        CHECK(model == NULL, "%s: gives a model", cases[i].change.name);
        moem_model_close(model);
    }
    small_write_tensors(dir, NULL);
}

// What the configuration says of the checkpoint must hold too.
static void test_open_configurations(void)
{
    static const struct refusal cases[] = {
        {"{\"num_hidden_layers\":4}", MOE_E_NOT_FOUND, "model.layers.3."},
        {"{\"vocab_size\":39}", MOE_E_SHAPE, "has shape [40, 64], must be [39, 64]"},
        {"{\"head_dim\":514}", MOE_E_LIMIT, "heads of 514, at most 512"},
        {"{\"num_attention_heads\":4}", MOE_E_SHAPE, "sinks has shape [6], must be [4]"},
        {"{\"model_type\":\"mixtral\"}", MOE_E_UNSUPPORTED, "\"mixtral\""},
    };
    moem_model *model = NULL;
    for (size_t i = 0; i < COUNT(cases); i++) {
        small_write_config(dir, small_config, cases[i].patch);
        small_refused(moem_model_open(dir, NULL, &model), cases[i].status, cases[i].message,
                      cases[i].patch);
        CHECK(model == NULL, "%s: gives a model", cases[i].patch);
    }
    small_write_config(dir, small_config, "{}");
    small_refused(moem_model_open(dir, &(moem_options){.max_batch = -1}, &model), MOE_E_ARGUMENT,
                  "max_batch = -1, must be at least 0", "max_batch");
    small_refused(moem_model_open(dir, &(moem_options){.max_batch = INT64_MAX}, &model),
                  MOE_E_ARGUMENT, "9223372036854775807", "max_batch");
    small_refused(moem_model_open(dir, &(moem_options){.isa = "abacus"}, &model), MOE_E_ARGUMENT,
                  "abacus", "isa");
    CHECK(model == NULL, "an option that is refused gives a model");
}

static void logits_of(const char *patch, const small_change *change, float *logits)
{
    moem_model *model = NULL;
    moem_session *session = NULL;
    small_write_config(dir, small_config, patch);
    small_write_tensors(dir, change);
    moe_status status = moem_model_open(dir, NULL, &model);
    status = status ? status : moem_session_create(model, 1, 4, &session);
    status = status ? status : moem_forward(session, &(moem_input){5, 0, true}, 1, logits);
    CHECK(status == MOE_OK, "%s: %s", patch, moe_last_error());
    moem_session_destroy(session);
    moem_model_close(model);
}

static void test_optional_tensors(void)
{
    static const small_change no_head = {.name = "lm_head.weight", .drop = true};
    static const small_change same_head = {.name = "lm_head.weight",
                                           .alias = "model.embed_tokens.weight",
                                           .dtype = MOE_F32,
                                           .ndim = 2,
                                           .shape = {SMALL_VOCAB, SMALL_HIDDEN}};
    static const small_change no_bias = {.name = AT0 "self_attn.q_proj.bias", .drop = true};
    static const small_change zero_bias = {.name = AT0 "self_attn.q_proj.bias", .zero = true};
    float plain[SMALL_VOCAB] = {0};
    float one[SMALL_VOCAB] = {0};
    float two[SMALL_VOCAB] = {0};
    logits_of("{}", NULL, plain);
    // Tied: the output matrix is the embedding, whether or not the file has a lm_head.
    logits_of("{\"tie_word_embeddings\":true}", &no_head, one);
    logits_of("{}", &same_head, two);
    CHECK(memcmp(one, two, sizeof one) == 0, "tied: other bits than with a copy of the embedding");
    logits_of("{\"tie_word_embeddings\":true}", NULL, two);
    CHECK(memcmp(one, two, sizeof one) == 0, "tied: lm_head is read");
    CHECK(memcmp(one, plain, sizeof one) != 0, "not tied: lm_head is not read");
    // A projection without bias is one with a bias of zero.
    logits_of("{}", &no_bias, one);
    logits_of("{}", &zero_bias, two);
    CHECK(memcmp(one, two, sizeof one) == 0, "no bias: other bits than with zeros");
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: test_model_files CHECKPOINT\n");
        return 2;
    }
    small_folder(dir, sizeof dir);
    test_config_refusals();
    test_generation_config();
    test_config_values(argv[1]);
    test_config_defaults();
    test_config_rope();
    test_open_refusals();
    test_open_configurations();
    test_optional_tensors();
    small_remove(dir);
    return test_summary();
}
