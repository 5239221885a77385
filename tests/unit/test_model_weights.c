// SPDX-License-Identifier: Apache-2.0
// A model whose experts' weights lie packed in memory, in the checkpoint's file or in a packed file
// gives the same logits, bit for bit, and says where they lie.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "model/device.h"
#include "model/model.h"
#include "unit/st_image.h"

#define OUT    "experts.moepack"
#define TOKENS 4

static const char *dir;

static moem_options options_of(moem_placing placing, const char *packed, uint32_t flags)
{
    return (moem_options){.threads = 2,
                          .max_batch = TOKENS,
                          .fixed_point = true,
                          .placing = placing,
                          .packed = packed,
                          .file_flags = flags};
}

// Packs all layers but the last `without` with the plans of a model.
static void write_packed(const moem_options *options, int64_t without)
{
    moem_model *model = NULL;
    moe_checkpoint *checkpoint = NULL;
    moe_checkpoint_layer *layers[MOEM_MAX_LAYERS] = {NULL};
    moe_packed_entry entries[MOEM_MAX_LAYERS];
    char *config = NULL;
    size_t size = 0;
    moem_config *c = calloc(1, sizeof *c);
    if (c == NULL || !CHECK(moem_model_open(dir, options, &model) == MOE_OK &&
                                moe_checkpoint_open(dir, 0, &checkpoint) == MOE_OK &&
                                moem_config_read(dir, c, &config, &size) == MOE_OK,
                            "%s", moe_last_error())) {
        exit(test_summary());
    }
    for (int32_t i = 0; i < c->layers; i++) {
        CHECK(moe_checkpoint_layer_open(checkpoint, config, size, i, &layers[i]) == MOE_OK, "%s",
              moe_last_error());
        entries[i] = (moe_packed_entry){i, layers[i], moem_model_plan(model, i)};
    }
    CHECK(moe_packed_write(in_folder(OUT), checkpoint, entries, (size_t)(c->layers - without), NULL,
                           NULL) == MOE_OK,
          "%s", moe_last_error());
    for (int32_t i = 0; i < c->layers; i++) {
        moe_checkpoint_layer_close(layers[i]);
    }
    free(config);
    free(c);
    moe_checkpoint_close(checkpoint);
    moem_model_close(model);
}

static int reads_packed_bf16(void *self, const moe_kernel_info *info)
{
    (void)self;
    return info->available != 0 && strncmp(info->name, "moek_ggemm_any_any_packed__", 27) == 0;
}

// The matrices beside the experts are packed unless all is to stay in the file.
static void check_beside(const moem_model *model, const moem_options *options)
{
    const int packed = strstr(moem_model_placing(model), "beside the experts packed") != NULL;
    const int want = options->placing != MOEM_PLACE_MAPPED &&
                     moe_context_visit_kernels(moem_model_context(model), reads_packed_bf16, NULL);
    CHECK(packed == want || options->placing == MOEM_PLACE_AUTO, "\"%s\"",
          moem_model_placing(model)); // AUTO: where memory suffices
}

static void check_model(const moem_options *options, const char *says, float **logits)
{
    moem_model *model = NULL;
    moem_session *session = NULL;
    const moem_input tokens[TOKENS] = {{5, 0, false}, {70, 0, true}, {9, 0, true}, {300, 0, true}};
    if (!CHECK(moem_model_open(dir, options, &model) == MOE_OK, "%s: %s", says, moe_last_error())) {
        return;
    }
    const size_t count = 3 * (size_t)moem_model_config(model)->vocab;
    float *out = calloc(count, sizeof *out);
    CHECK(strstr(moem_model_placing(model), says) != NULL, "\"%s\", expected \"%s\"",
          moem_model_placing(model), says);
    check_beside(model, options);
    CHECK(out != NULL && moem_session_create(model, 1, 8, &session) == MOE_OK &&
              moem_forward(session, tokens, TOKENS, out) == MOE_OK,
          "%s: %s", says, moe_last_error());
    if (*logits == NULL) {
        *logits = out;
    } else {
        CHECK(memcmp(*logits, out, count * sizeof *out) == 0, "%s: other bits", says);
        free(out);
    }
    moem_session_destroy(session);
    moem_model_close(model);
}

static void test_refusals(void)
{
    moem_model *model = NULL;
    moem_options o = options_of(MOEM_PLACE_PACKED, in_folder(OUT), 0);
    CHECK(moem_model_open(dir, &o, &model) == MOE_E_ARGUMENT && model == NULL &&
              strstr(moe_last_error(), "placing = 1, must be 0") != NULL,
          "%s", moe_last_error());
    o = options_of(MOEM_PLACE_AUTO, in_folder("absent"), 0);
    CHECK(moem_model_open(dir, &o, &model) == MOE_E_IO && model == NULL, "%s", moe_last_error());
    // A layer that the file lacks.
    o = options_of(MOEM_PLACE_PACKED, NULL, 0);
    write_packed(&o, 1);
    o = options_of(MOEM_PLACE_AUTO, in_folder(OUT), 0);
    CHECK(moem_model_open(dir, &o, &model) == MOE_E_NOT_FOUND && model == NULL &&
              strstr(moe_last_error(), "layer 3: ") != NULL &&
              strstr(moe_last_error(), "no layer 3 among 3") != NULL,
          "%s", moe_last_error());
}

int main(int argc, char **argv)
{
    float *logits = NULL;
    if (argc != 2) {
        (void)printf("usage: test_model_weights DIR\n");
        return 1;
    }
    dir = argv[1];
    folder_make();
    moem_options o = options_of(MOEM_PLACE_PACKED, NULL, 0);
    write_packed(&o, 0);
    check_model(&o, "in memory, packed as asked", &logits);
    o = options_of(MOEM_PLACE_MAPPED, NULL, 0);
    check_model(&o, "in the checkpoint's file, as asked", &logits);
    o = options_of(MOEM_PLACE_AUTO, NULL, 0);
    check_model(&o, "in ", &logits);
    for (uint32_t flags = 0; flags <= MOE_FILE_NO_MMAP; flags++) {
        o = options_of(MOEM_PLACE_AUTO, in_folder(OUT), flags);
        check_model(&o, "in the pages of the packed file", &logits);
    }
    test_refusals();
    CHECK(moem_memory_available() > 0, "no memory is available");
    free(logits);
    remove_file(OUT);
    folder_remove();
    return test_summary();
}
