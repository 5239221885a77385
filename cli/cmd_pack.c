// SPDX-License-Identifier: Apache-2.0
// moe pack: the experts of a checkpoint as the kernels want them, in a file that later starts map.
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "decoder.h"

#define DEFAULT_NAME "experts.moepack" // in the model's folder

/// What is packed.
struct packing {
    cli_model model;
    moe_context *ctx;
    moe_packed_entry *entries;
    size_t count;
    char out[CLI_PATH_BYTES + 32];
    bool tell; // on a terminal: how far it is
};

static void close_packing(struct packing *p)
{
    for (size_t i = 0; i < p->count; i++) {
        moe_plan_destroy((moe_plan *)(uintptr_t)p->entries[i].plan);
        moe_checkpoint_layer_close((moe_checkpoint_layer *)(uintptr_t)p->entries[i].source);
    }
    free(p->entries);
    moe_context_destroy(p->ctx);
    cli_model_close(&p->model);
}

static moe_status add_layer(struct packing *p, int32_t index, const moem_options *options)
{
    moe_layer_desc desc = moe_layer_desc_default();
    moe_checkpoint_layer *layer = NULL;
    moe_plan *plan = NULL;
    const bool on_cpu = options->device == MOE_DEVICE_UNSET || options->device == MOE_DEVICE_CPU;
    moe_status status = moe_checkpoint_layer_open(p->model.checkpoint, p->model.config,
                                                  p->model.config_size, index, &layer);
    status = status != MOE_OK ? status : moe_checkpoint_layer_desc(layer, &desc);
    if (status == MOE_OK) {
        moem_experts_desc(options, on_cpu, &desc);
        status = moe_plan_create(p->ctx, &desc, &plan);
    }
    if (status != MOE_OK) {
        moe_checkpoint_layer_close(layer);
        return status;
    }
    p->entries[p->count++] = (moe_packed_entry){index, layer, plan};
    return MOE_OK;
}

static int add_layers(struct packing *p, const char *dir, const moem_options *options)
{
    const int32_t layers = moe_checkpoint_layers(p->model.checkpoint);
    p->entries = calloc((size_t)layers + 1, sizeof p->entries[0]);
    if (p->entries == NULL) {
        (void)fprintf(stderr, "moe: no memory for %d layers\n", (int)layers);
        return CLI_FAILED;
    }
    for (int32_t i = 0; i < layers; i++) {
        if (moe_checkpoint_has_experts(p->model.checkpoint, i) == 0) {
            continue;
        }
        const moe_status status = add_layer(p, i, options);
        if (status != MOE_OK) {
            (void)fprintf(stderr, "moe: %s: layer %d\n", dir, (int)i);
            return cli_failed(status);
        }
    }
    if (p->count == 0) {
        (void)fprintf(stderr, "moe: %s: no layer of %d has experts\n", dir, (int)layers);
        return CLI_FAILED;
    }
    return CLI_OK;
}

static void tell(void *self, size_t i)
{
    const struct packing *p = self;
    if (p->tell) {
        (void)fprintf(stderr, "\rlayer %zu of %zu%s", i + 1, p->count,
                      i + 1 == p->count ? "\n" : "");
    }
}

static int report(const struct packing *p, double seconds, bool json)
{
    moe_packed *file = NULL;
    moe_packed_part part;
    struct stat info;
    char text[32];
    moe_status status = moe_packed_open(p->out, p->model.checkpoint, MOE_FILE_DEFAULT, &file);
    status = status != MOE_OK ? status : moe_packed_part_at(file, 0, &part);
    if (status != MOE_OK || stat(p->out, &info) != 0) {
        moe_packed_close(file);
        return cli_failed(status);
    }
    const uint64_t bytes = (uint64_t)info.st_size;
    if (json) {
        (void)printf("{\"file\": ");
        cli_json_string(p->out);
        (void)printf(", \"layers\": %zu, \"bytes\": %" PRIu64 ", \"seconds\": %.3f, \"layout\": ",
                     p->count, bytes, seconds);
        cli_json_string(part.layout);
        (void)printf("}\n");
    } else {
        cli_plain_string(p->out);
        (void)printf(": %zu layers, %s in %.2f s\nlayout of layer %d: %s\n", p->count,
                     cli_size_text(bytes, text), seconds, (int)part.layer, part.layout);
    }
    moe_packed_close(file);
    return CLI_OK;
}

static int pack(struct packing *p, const char *dir, const cli_decoder_options *given,
                const moem_options *options, bool json)
{
    int code = CLI_FAILED;
    if (!cli_model_open(dir, options->file_flags, &p->model)) {
        return code;
    }
    p->ctx = cli_context(given->threads, given->device, &code);
    if (p->ctx == NULL) {
        return code;
    }
    code = add_layers(p, dir, options);
    if (code != CLI_OK) {
        return code;
    }
    const double start = moem_now();
    const moe_status status =
        moe_packed_write(p->out, p->model.checkpoint, p->entries, p->count, tell, p);
    return status == MOE_OK ? report(p, moem_now() - start, json) : cli_failed(status);
}

int cmd_pack(int argc, char **argv)
{
    const char *dir = NULL;
    const char *out = NULL;
    bool json = false;
    int count = 0;
    cli_decoder_options given = {0};
    moem_options settled;
    struct packing p = {.count = 0};
    const cli_option options[] = {{"out", &out, NULL},
                                  {"activation", &given.activation, NULL},
                                  {"device", &given.device, NULL},
                                  {"threads", &given.threads, NULL},
                                  {"no-mmap", NULL, &given.no_mmap},
                                  {"json", NULL, &json},
                                  {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, &dir, 1, &count)) {
        return CLI_USAGE;
    }
    if (dir == NULL || strlen(out != NULL ? out : dir) >= CLI_PATH_BYTES) {
        (void)fprintf(stderr, "moe: pack needs %s\n",
                      dir == NULL ? "the folder of a model" : "a shorter name");
        return CLI_USAGE;
    }
    if (cli_decoder_settle(&given, &settled) != CLI_OK) {
        return CLI_USAGE;
    }
    (void)snprintf(p.out, sizeof p.out, "%s%s", out != NULL ? out : dir,
                   out != NULL ? "" : "/" DEFAULT_NAME);
    p.tell = isatty(STDERR_FILENO) != 0;
    const int code = pack(&p, dir, &given, &settled, json);
    close_packing(&p);
    return code;
}
