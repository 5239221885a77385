// SPDX-License-Identifier: Apache-2.0
// moe stats: which experts a text calls, layer by layer, and how evenly.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "decoder.h"
#include "load.h"

static void print_stats(const cli_decoder *m, const load_table *table, const moem_score *score,
                        int64_t tokens)
{
    const double mean = score->nll / (double)score->scored;
    (void)printf("%" PRId64
                 " tokens, %d of %d experts per token, activations %s, perplexity %.3f\n\n",
                 tokens, (int)moem_model_top_k(m->model), (int)table->experts,
                 cli_decoder_activation(m), exp(mean));
    load_print_measures(table, stdout);
    (void)printf("\n");
    load_print_map(table, 80, cli_colour(stdout), stdout);
}

int cmd_stats(int argc, char **argv)
{
    const char *dir = NULL;
    const char *file = NULL;
    const char *window = NULL;
    bool csv = false;
    bool svg = false;
    bool json = false;
    int count = 0;
    int64_t tokens = 0;
    cli_decoder_options given = {0};
    const cli_option options[] = {{"text", &file, NULL},
                                  {"window", &window, NULL},
                                  {"csv", NULL, &csv},
                                  {"svg", NULL, &svg},
                                  {"json", NULL, &json},
                                  {"device", &given.device, NULL},
                                  {"threads", &given.threads, NULL},
                                  {"no-mmap", NULL, &given.no_mmap},
                                  {"weights", &given.weights, NULL},
                                  {"packed", &given.packed, NULL},
                                  {"activation", &given.activation, NULL},
                                  {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, &dir, 1, &count)) {
        return CLI_USAGE;
    }
    if (dir == NULL || file == NULL || csv + svg + json > 1) {
        (void)fprintf(stderr, "moe: stats needs %s\n",
                      dir == NULL    ? "the folder of a model"
                      : file == NULL ? "--text FILE"
                                     : "at most one of --csv, --svg, --json");
        return CLI_USAGE;
    }
    if (window != NULL && !cli_number("--window", window, 2, INT32_MAX, &tokens)) {
        return CLI_USAGE;
    }
    cli_decoder m = {0};
    moem_ids ids = {0};
    int code = cli_decoder_open(dir, &given, &m);
    if (code != CLI_OK) {
        return code;
    }
    code = cli_encode_file(&m, file, &ids);
    const moem_config *c = moem_model_config(m.model);
    int64_t *counts = calloc((size_t)(c->layers * moem_model_experts(m.model)), sizeof *counts);
    const load_table table = {counts, c->layers, moem_model_experts(m.model)};
    if (counts == NULL) {
        (void)fprintf(stderr, "moe: no memory for the counters\n");
        code = CLI_FAILED;
    }
    if (code == CLI_OK) {
        moem_score score;
        const int64_t length = tokens > 0 && tokens < c->context ? tokens : c->context;
        const moe_status status =
            moem_model_score(m.model, ids.ids, (int64_t)ids.count, length, NULL, counts, &score);
        if (status != MOE_OK) {
            code = cli_failed(status);
        } else if (csv) {
            load_print_csv(&table, stdout);
        } else if (svg) {
            load_print_svg(&table, dir, stdout);
        } else if (json) {
            (void)printf("{\"tokens\": %zu, \"top_k\": %d, \"activation\": \"%s\", "
                         "\"mean_nll\": %.9g, ",
                         ids.count, (int)moem_model_top_k(m.model), cli_decoder_activation(&m),
                         score.nll / (double)score.scored);
            load_print_json(&table, stdout);
            (void)printf("}\n");
        } else {
            print_stats(&m, &table, &score, (int64_t)ids.count);
        }
    }
    free(counts);
    moem_ids_free(&ids);
    cli_decoder_close(&m);
    return code;
}
