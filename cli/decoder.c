// SPDX-License-Identifier: Apache-2.0
#include "decoder.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENIZER ((size_t)100 << 20)
#define MAX_TEXT      ((size_t)64 << 20)

static int open_tokenizer(const char *dir, moem_tokenizer **out)
{
    char path[4096];
    size_t size = 0;
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    char *text = cli_read_file(path, MAX_TOKENIZER, &size);
    if (text == NULL) {
        return CLI_FAILED;
    }
    const moe_status status = moem_tokenizer_create(text, size, path, out);
    free(text);
    return status == MOE_OK ? CLI_OK : cli_failed(status);
}

static bool settle_placing(const cli_decoder_options *options, moem_placing *out)
{
    static const char *const names[] = {"auto", "packed", "mapped"};
    *out = MOEM_PLACE_AUTO;
    if (options->weights == NULL) {
        return true;
    }
    if (options->packed != NULL) {
        (void)fprintf(stderr, "moe: give --weights or --packed, not both\n");
        return false;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(options->weights, names[i]) == 0) {
            *out = (moem_placing)i;
            return true;
        }
    }
    (void)fprintf(stderr, "moe: --weights \"%s\" is not one of auto, packed, mapped\n",
                  options->weights);
    return false;
}

int cli_decoder_settle(const cli_decoder_options *options, moem_options *out)
{
    int64_t threads = 0;
    *out = (moem_options){.packed = options->packed};
    if (options->device != NULL && !cli_device(options->device, &out->device)) {
        return CLI_USAGE;
    }
    if (options->threads != NULL && !cli_number("--threads", options->threads, 1, 1024, &threads)) {
        return CLI_USAGE;
    }
    out->fixed_point = options->activation == NULL;
    if (!out->fixed_point && !cli_quantiser("--activation", options->activation, &out->act)) {
        return CLI_USAGE;
    }
    out->threads = (int32_t)threads;
    out->file_flags = options->no_mmap ? MOE_FILE_NO_MMAP : MOE_FILE_DEFAULT;
    return settle_placing(options, &out->placing) ? CLI_OK : CLI_USAGE;
}

int cli_decoder_open(const char *dir, const cli_decoder_options *options, cli_decoder *out)
{
    moem_options o;
    if (cli_decoder_settle(options, &o) != CLI_OK) {
        return CLI_USAGE;
    }
    memset(out, 0, sizeof *out);
    moe_status status = moem_model_open(dir, &o, &out->model);
    int code = status == MOE_OK ? CLI_OK : cli_failed(status);
    code = code != CLI_OK ? code : open_tokenizer(dir, &out->tokenizer);
    const int64_t vocab = code == CLI_OK ? moem_model_config(out->model)->vocab : 0;
    if (code == CLI_OK && moem_tokenizer_vocab(out->tokenizer) > vocab) {
        (void)fprintf(stderr,
                      "moe: %s: the tokenizer has %d ids, the model a vocabulary of %" PRId64 "\n",
                      dir, (int)moem_tokenizer_vocab(out->tokenizer), vocab);
        code = CLI_FAILED;
    }
    if (code != CLI_OK) {
        cli_decoder_close(out);
    }
    return code;
}

void cli_decoder_close(cli_decoder *m)
{
    moem_tokenizer_destroy(m->tokenizer);
    moem_model_close(m->model);
    memset(m, 0, sizeof *m);
}

const char *cli_decoder_activation(const cli_decoder *m)
{
    moe_layer_desc d = moe_layer_desc_default();
    (void)moe_plan_desc(moem_model_plan(m->model, 0), &d);
    return d.gemm[0].act.spec == MOE_QUANT_NONE ? "none" : moe_quant_name(d.gemm[0].act.spec);
}

void cli_decoder_describe(const char *dir, const cli_decoder_options *options, const cli_decoder *m)
{
    const char *device = options->device != NULL ? options->device : "cpu";
    const moem_config *c = moem_model_config(m->model);
    moe_layer_desc d = moe_layer_desc_default();
    (void)moe_plan_desc(moem_model_plan(m->model, 0), &d);
    (void)fprintf(stderr,
                  "%s: %" PRId64 " layers, hidden %" PRId64 ", %d experts of %" PRId64
                  ", %d per token; %s, activations %s; %d threads%s%s\n",
                  dir, c->layers, c->hidden, (int)d.num_experts, d.inter, (int)d.top_k,
                  moem_model_dialect(m->model), cli_decoder_activation(m),
                  moe_context_num_threads(moem_model_context(m->model)),
                  strcmp(device, "cpu") != 0 ? ", experts on " : "",
                  strcmp(device, "cpu") != 0 ? device : "");
    (void)fprintf(stderr, "weights %s\n", moem_model_placing(m->model));
}

int cli_encode(const cli_decoder *m, const char *label, const char *text, size_t size,
               moem_ids *out)
{
    const size_t before = out->count;
    if (moem_tokenizer_encode(m->tokenizer, text, size, out) != MOE_OK) {
        (void)fprintf(stderr, "moe: %s: %s\n", label, moe_last_error());
        return CLI_FAILED;
    }
    if (out->count == before) {
        (void)fprintf(stderr, "moe: %s: empty: there is no token to begin from\n", label);
        return CLI_FAILED;
    }
    return CLI_OK;
}

int cli_encode_file(const cli_decoder *m, const char *path, moem_ids *out)
{
    size_t size = 0;
    char *text = cli_read_file(path, MAX_TEXT, &size);
    const int code = text != NULL ? cli_encode(m, strcmp(path, "-") == 0 ? "standard input" : path,
                                               text, size, out)
                                  : CLI_FAILED;
    free(text);
    return code;
}
