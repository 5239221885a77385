// SPDX-License-Identifier: Apache-2.0
// What the decoder must not take: values of a wrong type in its configuration, ids that are scored
// before a step would refuse them, sampling out of its ranges; and a step that fails is repeated.
//   test_model_inputs models/tiny-gpt-oss
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/model.h"
#include "unit/test.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define STEP         4 // max_batch

static void refused(moe_status have, moe_status status, const char *part, const char *what)
{
    CHECK(have == status && strstr(moe_last_error(), part) != NULL,
          "%s: status %d, expected %d; \"%s\", expected \"%s\"", what, (int)have, (int)status,
          have == MOE_OK ? "" : moe_last_error(), part);
}

// -- Configurations -------------------------------------------------------------------------------

#define SIZES                                                                                      \
    "{\"model_type\":\"gpt_oss\",\"hidden_size\":64,\"vocab_size\":40,\"num_hidden_layers\":2,"    \
    "\"num_attention_heads\":4,\"max_position_embeddings\":48,\"sliding_window\":4"

static const struct {
    const char *more; // keys behind SIZES
    moe_status status;
    const char *message;
} configs[] = {
    {"", MOE_OK, ""},
    {",\"tie_word_embeddings\":\"true\"", MOE_E_MALFORMED, "\"tie_word_embeddings\" must be true"},
    {",\"tie_word_embeddings\":1", MOE_E_MALFORMED,
     "\"tie_word_embeddings\" must be true or false"},
    {",\"rope_scaling\":\"yarn\"", MOE_E_MALFORMED, "must be an object"},
    {",\"rope_parameters\":[4]", MOE_E_MALFORMED, "must be an object"},
    {",\"rope_scaling\":{\"rope_type\":5}", MOE_E_MALFORMED, "\"rope_type\" must be a string"},
    {",\"rope_scaling\":{\"factor\":8}", MOE_E_UNSUPPORTED, "with \"factor\" but without"},
    {",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}", MOE_E_UNSUPPORTED,
     "rotary parameters of \"full_attention\" layers"},
    {",\"rope_parameters\":{\"rope_theta\":500,\"factor\":null}", MOE_OK, ""},
    {",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"truncate\":0}", MOE_E_MALFORMED,
     "\"truncate\" must be true or false"},
    {",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":\"4\"}", MOE_E_MALFORMED,
     "\"factor\" must be a number"},
    {",\"rope_theta\":true", MOE_E_MALFORMED, "\"rope_theta\" must be a number"},
    {",\"eos_token_id\":true", MOE_E_MALFORMED, "\"eos_token_id\" must be a whole number in 0..39"},
    {",\"eos_token_id\":[1,2.0]", MOE_E_MALFORMED, "\"eos_token_id\" must be a whole number"},
    {",\"eos_token_id\":[1,null]", MOE_E_MALFORMED, "\"eos_token_id\" must be a whole number"},
};

static void test_configs(void)
{
    moem_config *c = malloc(sizeof *c);
    moem_config *before = malloc(sizeof *before);
    for (size_t i = 0; i < COUNT(configs); i++) {
        char text[1024];
        (void)snprintf(text, sizeof text, "%s%s}", SIZES, configs[i].more);
        memset(before, 0x5a, sizeof *before);
        memcpy(c, before, sizeof *c);
        const moe_status status = moem_config_parse(text, strlen(text), "label", c);
        if (configs[i].status == MOE_OK) {
            CHECK(status == MOE_OK && c->rope_factor == 1, "%s: %s", configs[i].more,
                  moe_last_error());
            continue;
        }
        refused(status, configs[i].status, configs[i].message, configs[i].more);
        CHECK(strncmp(moe_last_error(), "label: ", 7) == 0, "names no file: %s", moe_last_error());
        CHECK(memcmp(c, before, sizeof *c) == 0, "%s: the output is written", configs[i].more);
    }
    free(c);
    free(before);
}

static bool write_text(const char *dir, const char *name, const char *text)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    const bool good = file != NULL && fputs(text, file) >= 0;
    return (file == NULL || fclose(file) == 0) && good;
}

// The second file is refused after the first was read: nothing of the first is given.
static void test_second_file(void)
{
    char dir[] = "/tmp/moe-test-XXXXXX";
    char path[512];
    char *text = NULL;
    size_t size = 0;
    moem_config *c = malloc(sizeof *c);
    moem_config *before = malloc(sizeof *before);
    memset(before, 0x5a, sizeof *before);
    memcpy(c, before, sizeof *c);
    if (CHECK(mkdtemp(dir) != NULL, "no folder %s", dir)) {
        CHECK(write_text(dir, "config.json", SIZES "}") &&
                  write_text(dir, "generation_config.json", "{\"eos_token_id\":[1,40]}"),
              "cannot write to %s", dir);
        refused(moem_config_read(dir, c, &text, &size), MOE_E_MALFORMED,
                "generation_config.json: \"eos_token_id\" 40 is not in 0..39", "two files");
        CHECK(memcmp(c, before, sizeof *c) == 0 && text == NULL, "the output is written");
        (void)snprintf(path, sizeof path, "%s/config.json", dir);
        (void)unlink(path);
        (void)snprintf(path, sizeof path, "%s/generation_config.json", dir);
        (void)unlink(path);
        (void)rmdir(dir);
    }
    free(c);
    free(before);
}

// -- Ids and sampling -----------------------------------------------------------------------------

// The bad id is the first of a step: it is scored from the logits of the step before.
static void test_score(const moem_model *model)
{
    static const int32_t bad[] = {-1, 4096, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < COUNT(bad); i++) {
        int32_t ids[2 * STEP] = {5, 6, 7, 8, 9, 10, 11, 12};
        char message[64];
        moem_score score = {.scored = -7};
        double nll[2] = {-1, -1};
        int64_t load[4 * 32] = {0};
        ids[STEP] = bad[i];
        (void)snprintf(message, sizeof message, "token 4 has id %d (0..4095)", (int)bad[i]);
        refused(moem_model_score(model, ids, 2 * STEP, 8, nll, load, &score), MOE_E_ARGUMENT,
                message, "score");
        CHECK(score.scored == -7 && nll[0] == -1, "%d: the output is written", (int)bad[i]);
        for (size_t e = 0; e < COUNT(load); e++) {
            CHECK(load[e] == 0, "%d: load of expert %zu", (int)bad[i], e);
        }
    }
}

static bool never(void *self, int32_t request, int32_t id)
{
    (void)request;
    (void)id;
    ++*(int *)self;
    return true;
}

static void test_sampling(const moem_model *model)
{
    static const int32_t prompt[] = {5, 6, 7};
    static const struct {
        double temperature, top_p;
        bool good;
    } cases[] = {
        {0, 0, true},          {0, -3, true},           {1, 1, true},         {1, 1e-300, true},
        {-1, 1, false},        {(double)NAN, 1, false}, {1, 0, false},        {1, -0.5, false},
        {1, 1.0000001, false}, {1, (double)NAN, false}, {1, HUGE_VAL, false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        int heard = 0;
        const moem_request requests[] = {
            {prompt, 3, 1, {0, 1, 0}},
            {prompt, 3, 1, {cases[i].temperature, cases[i].top_p, 0}},
        };
        const moe_status status = moem_generate(model, requests, 2, never, &heard, NULL, NULL);
        if (cases[i].good) {
            CHECK(status == MOE_OK && heard == 2, "case %zu: %s", i, moe_last_error());
        } else {
            refused(status, MOE_E_ARGUMENT, "prompt 1 is to be drawn at temperature", "sampling");
            CHECK(heard == 0, "case %zu passes on tokens", i);
        }
    }
}

// Without room for the logits the last product fails, after every layer has run. The sequence is
// longer than a sliding layer's ring of 128 + STEP - 1 rows, so the failed step has overwritten
// some.
static void test_repeat(const moem_model *model)
{
    moem_session *with = NULL;
    moem_session *without = NULL;
    const int64_t vocab = moem_model_config(model)->vocab;
    float *a = calloc((size_t)(STEP * vocab), sizeof *a);
    float *b = calloc((size_t)(STEP * vocab), sizeof *b);
    moe_status status = moem_session_create(model, 1, 160, &with);
    status = status ? status : moem_session_create(model, 1, 160, &without);
    for (int32_t at = 0; status == MOE_OK && at < 160; at += STEP) {
        moem_input tokens[STEP];
        for (int32_t t = 0; t < STEP; t++) {
            tokens[t] = (moem_input){(at + t) * 17 % 4096, 0, true};
        }
        CHECK(at < 120 || moem_forward(with, tokens, STEP, NULL) != MOE_OK, "NULL is written to");
        CHECK(moem_session_length(with, 0) == at, "%d tokens after a failed step, expected %d",
              (int)moem_session_length(with, 0), (int)at);
        status = moem_forward(with, tokens, STEP, a);
        status = status ? status : moem_forward(without, tokens, STEP, b);
        CHECK(memcmp(a, b, (size_t)(STEP * vocab) * sizeof *a) == 0,
              "other bits at %d after a failed step", (int)at);
    }
    CHECK(status == MOE_OK, "%s", moe_last_error());
    moem_session_destroy(with);
    moem_session_destroy(without);
    free(a);
    free(b);
}

int main(int argc, char **argv)
{
    moem_model *model = NULL;
    const moem_options options = {.threads = 2, .max_batch = STEP};
    if (argc != 2) {
        (void)fprintf(stderr, "usage: test_model_inputs CHECKPOINT\n");
        return 2;
    }
    test_configs();
    test_second_file();
    if (CHECK(moem_model_open(argv[1], &options, &model) == MOE_OK, "%s", moe_last_error())) {
        test_score(model);
        test_sampling(model);
        test_repeat(model);
    }
    moem_model_close(model);
    return test_summary();
}
