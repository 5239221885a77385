// SPDX-License-Identifier: Apache-2.0
// moe check: proves the kernels on this machine, or replays what other software computed.
#define _POSIX_C_SOURCE 200809L
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkmoe/checkmoe.h"
#include "checkmoe/ledger.h"
#include "checkmoe/oracle.h"
#include "cli.h"

typedef struct request {
    moec_options options;
    const char *device, *format, *oracle, *model, *reference;
    int64_t repeat;
    bool json;
    char hashes[PATH_MAX + 32]; // where the build left them
} request;

// A ledger's folder and the hashes of the sources are there; else one line on stderr.
static bool find_ledger(request *r)
{
    struct stat folder;
    moec_options *o = &r->options;
    if (o->ledger == NULL) {
        return true;
    }
    if (stat(o->ledger, &folder) != 0 || !S_ISDIR(folder.st_mode)) {
        (void)fprintf(stderr, "moe: --ledger %s is not a folder\n", o->ledger);
        return false;
    }
    if (o->hashes == NULL) { // beside the program, in the folder of its build
        const ssize_t length = readlink("/proc/self/exe", r->hashes, PATH_MAX);
        char *name = length > 0 ? strrchr(r->hashes, '/') : NULL;
        if (name != NULL) {
            (void)strcpy(name, "/generated/row_hashes.txt");
        }
        o->hashes = r->hashes;
    }
    if (access(o->hashes, R_OK) != 0) {
        (void)fprintf(stderr,
                      "moe: --ledger needs the hashes of the sources, and %s cannot be read; "
                      "--hashes FILE names another one (tools/source_hash.py)\n",
                      o->hashes);
        return false;
    }
    return true;
}

static bool parse(int argc, char **argv, request *r)
{
    const char *seed = NULL;
    const char *threads = "0";
    const char *repeat = "1";
    const char *delay = NULL;
    const char *runs = NULL;
    const char *every = NULL;
    int count = 0;
    int64_t seed_value = 0;
    int64_t thread_value = 0;
    int64_t delay_value = 0;
    int64_t run_value = 0;
    int64_t every_value = 0;
    moec_options *o = &r->options;
    const cli_option options[] = {{"kernel", &o->kernel, NULL},
                                  {"isa", &o->isa, NULL},
                                  {"seed", &seed, NULL},
                                  {"threads", &threads, NULL},
                                  {"repeat", &repeat, NULL},
                                  {"delay", &delay, NULL},
                                  {"runs", &runs, NULL},
                                  {"every", &every, NULL},
                                  {"device", &r->device, NULL},
                                  {"format", &r->format, NULL},
                                  {"oracle", &r->oracle, NULL},
                                  {"model", &r->model, NULL},
                                  {"reference", &r->reference, NULL},
                                  {"ledger", &o->ledger, NULL},
                                  {"hashes", &o->hashes, NULL},
                                  {"apart", NULL, &o->apart},
                                  {"quick", NULL, &o->quick},
                                  {"json", NULL, &r->json},
                                  {"list", NULL, &o->list},
                                  {"verbose", NULL, &o->verbose},
                                  {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, NULL, 0, &count) ||
        !cli_number("--seed", seed != NULL ? seed : "1", 0, INT64_MAX - 1000000, &seed_value) ||
        !cli_number("--repeat", repeat, 1, 1000000, &r->repeat) ||
        !cli_number("--threads", threads, 0, 1024, &thread_value) ||
        (delay != NULL && !cli_number("--delay", delay, 1, INT64_MAX, &delay_value)) ||
        (every != NULL && !cli_number("--every", every, 1, 1000000, &every_value)) ||
        !cli_number("--runs", runs != NULL ? runs : "100", 1, 1000000, &run_value)) {
        return false;
    }
    // What would have no effect is refused.
    const bool recorded = r->oracle != NULL || r->model != NULL;
    const bool cpu = r->device == NULL || strcmp(r->device, "cpu") == 0;
    const struct {
        bool given;
        const char *why;
    } idle[] = {
        {recorded && r->repeat > 1, "--repeat draws other problems; a recorded one has no seed"},
        {recorded && seed != NULL, "--seed draws other problems; a recorded one has no seed"},
        {recorded && r->format != NULL,
         "--format chooses among kernel rows, not recorded problems"},
        {r->oracle != NULL && r->model != NULL, "--oracle and --model are two checks; give one"},
        {r->model != NULL && o->kernel != NULL, "--kernel chooses no part of a model"},
        {o->ledger != NULL && (recorded || o->list || o->quick || r->format != NULL ||
                               r->repeat > 1 || delay != NULL || every != NULL),
         "--ledger records one whole check of kernel rows: without --oracle, --model, --list, "
         "--quick, --format, --every, --repeat and --delay"},
        {recorded && every != NULL, "--every leaves out cases of kernel rows, not recorded ones"},
        {recorded && delay != NULL, "--delay runs kernel rows and layers, not recorded problems"},
        {runs != NULL && delay == NULL, "--runs needs --delay"},
        {o->ledger == NULL && o->hashes != NULL, "--hashes needs --ledger"},
        {r->model == NULL && r->reference != NULL, "--reference needs --model"},
        {o->apart && (recorded || cpu), "--apart needs kernels of a --device"},
        {o->quick && r->model == NULL && (cpu || r->oracle != NULL),
         "--quick needs --model, or kernels of a --device"},
    };
    for (size_t i = 0; i < sizeof idle / sizeof idle[0]; i++) {
        if (idle[i].given) {
            (void)fprintf(stderr, "moe: %s\n", idle[i].why);
            return false;
        }
    }
    o->format = r->format != NULL ? moe_format_from_name(r->format) : MOE_FORMAT_UNSET;
    if (r->format != NULL && o->format == MOE_FORMAT_UNSET) {
        (void)fprintf(stderr, "moe: --format \"%s\" is not a format\n", r->format);
        return false;
    }
    if (r->device != NULL && !cli_device(r->device, &o->device)) {
        return false;
    }
    if (!find_ledger(r)) {
        return false;
    }
    o->record = o->ledger != NULL ? moec_ledger_write : NULL;
    o->seed = (uint64_t)seed_value;
    o->threads = (int32_t)thread_value;
    o->delay = (uint64_t)delay_value;
    o->every = (int32_t)every_value;
    o->delay_runs = delay != NULL ? (int32_t)run_value : 0;
    o->program = "moe";
    return true;
}

// What a backend that asked its device before it used it has found.
static int print_findings(void *self, const moe_backend_info *info)
{
    const moe_device_type *device = self;
    if (strcmp(info->name, moe_device_name(*device)) == 0 && strchr(info->reason, '\n') != NULL) {
        (void)printf("%s\n", info->reason);
    }
    return 0;
}

// Whether the device and the instruction set are there; else one line on stderr and the exit code.
static int available(const request *r)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    desc.device = r->options.device;
    desc.isa = r->options.isa;
    desc.num_threads = 1;
    const moe_status status = moe_context_create(&desc, &ctx);
    if (status != MOE_OK) {
        const int code = cli_failed(status);
        return status == MOE_E_ARGUMENT && r->options.isa != NULL ? CLI_USAGE : code;
    }
    if (!r->json && !r->options.list) {
        (void)moe_context_visit_backends(ctx, print_findings, &desc.device);
    }
    moe_context_destroy(ctx);
    return CLI_OK;
}

// Kernel rows and layers, with one seed after another.
static int run_seeds(const request *r, FILE *out, moec_counts *counts)
{
    moec_options o = r->options;
    const bool layers = o.format == MOE_FORMAT_UNSET;
    int result = 0;
    for (int64_t i = 0; i < r->repeat && result == 0; i++, o.seed++) {
        if (r->repeat > 1 && !o.list) {
            (void)fprintf(out, "seed %llu\n", (unsigned long long)o.seed);
        }
        // Graphs first: what is captured is then the first run of the process.
        result = layers ? moec_graph_run(&o, out, counts) : 0;
        if (result == 0) {
            result = moec_kernels_run(&o, out, counts);
        }
        if (result == 0 && layers) {
            result = moec_layer_run(&o, out, counts); // cases are named layer-N
        }
        if (result == 0 && layers &&
            (i == r->repeat - 1 || o.list)) { // last: a fault ends the device
            result = moec_device_run(&o, out, counts);
        }
        if (o.list) {
            return result; // the same names for every seed
        }
    }
    return result;
}

static int run_checks(const request *r, FILE *out, moec_counts *counts)
{
    const moec_options *o = &r->options;
    int result;
    if (r->oracle != NULL) {
        result = moec_oracle_run(r->oracle, o, out, counts);
    } else if (r->model != NULL) {
        result = moec_model_layers_run(r->model, r->reference, o, out, counts);
        if (result == 0 && !o->list) {
            result = moec_model_text_run(r->model, r->reference, o, out, counts);
        }
    } else {
        result = run_seeds(r, out, counts);
    }
    if (!o->list) {
        (void)fprintf(out, "%lu passed, %lu failed, %lu skipped\n", counts->passed, counts->failed,
                      counts->skipped);
    }
    return result;
}

// ---- JSON ---------------------------------------------------------------------------------------

static size_t line_length(const char *text)
{
    const char *end = strchr(text, '\n');
    return end != NULL ? (size_t)(end - text) + 1 : strlen(text);
}

// The blocks of text that checks print for failures: a line that begins with FAIL and the indented
// ones after it. With `names`, every line.
static void print_blocks(const char *text, bool names)
{
    const char *separator = "";
    while (*text != '\0') {
        size_t length = line_length(text);
        if (names || strncmp(text, "FAIL", 4) == 0) {
            while (!names && strncmp(text + length, "  ", 2) == 0) {
                length += line_length(text + length);
            }
            (void)printf("%s", separator);
            cli_json_text(text, text[length - 1] == '\n' ? length - 1 : length);
            separator = ", ";
        }
        text += length;
    }
}

static int run_json(const request *r, moec_counts *counts)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        (void)fprintf(stderr, "moe: memory is short\n");
        return -1;
    }
    const int result = run_checks(r, out, counts);
    (void)fclose(out);
    if (r->options.list) {
        (void)printf("{\"names\": [");
    } else {
        (void)printf("{\"passed\": %lu, \"failed\": %lu, \"skipped\": %lu, \"failures\": [",
                     counts->passed, counts->failed, counts->skipped);
    }
    print_blocks(text, r->options.list);
    (void)printf("]}\n");
    free(text);
    return result;
}

int cmd_check(int argc, char **argv)
{
    request r = {.device = NULL};
    moec_counts counts = {0, 0, 0, 0};
    if (!parse(argc, argv, &r)) {
        return CLI_USAGE;
    }
    const int code = available(&r);
    if (code != CLI_OK) {
        return code;
    }
    const int result = r.json ? run_json(&r, &counts) : run_checks(&r, stdout, &counts);
    if (result != 0 || counts.failed > 0) {
        return CLI_FAILED;
    }
    if (counts.selected == 0 && r.options.kernel != NULL) {
        (void)fprintf(stderr, "moe: --kernel \"%s\" names no row and no case\n", r.options.kernel);
        return CLI_USAGE;
    }
    return counts.passed == 0 && counts.skipped > 0 ? CLI_UNSUPPORTED : CLI_OK;
}
