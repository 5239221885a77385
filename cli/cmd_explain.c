// SPDX-License-Identifier: Apache-2.0
// moe explain: which kernel a plan runs for each step, and why it does not run the others.
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "moe/io.h"

// DIR or DIR:LAYER to a descriptor: the configuration and the tensors say everything.
static bool read_model(const char *where, moe_layer_desc *d, int *code)
{
    cli_model model;
    int64_t index = 0;
    moe_checkpoint_layer *layer = NULL;
    char dir[CLI_PATH_BYTES];
    *code = CLI_FAILED;
    if (!cli_split(where, dir, &index)) {
        return false;
    }
    if (!cli_model_open(dir, MOE_FILE_DEFAULT, &model)) {
        return false;
    }
    moe_status status = moe_checkpoint_layer_open(model.checkpoint, model.config, model.config_size,
                                                  (int32_t)index, &layer);
    if (status == MOE_OK) {
        status = moe_checkpoint_layer_desc(layer, d);
    }
    if (status != MOE_OK) {
        *code = cli_failed(status);
    }
    moe_checkpoint_layer_close(layer);
    cli_model_close(&model);
    return status == MOE_OK;
}

static int print_plan(moe_context *ctx, const moe_layer_desc *desc, bool json)
{
    moe_plan *plan = NULL;
    const moe_status status = moe_plan_create(ctx, desc, &plan);
    if (status != MOE_OK) {
        return cli_failed(status);
    }
    size_t needed = 0;
    (void)(json ? moe_plan_describe(plan, NULL, 0, &needed)
                : moe_plan_explain(plan, NULL, 0, &needed));
    char *text = malloc(needed + 1);
    if (text != NULL) {
        (void)(json ? moe_plan_describe(plan, text, needed + 1, NULL)
                    : moe_plan_explain(plan, text, needed + 1, NULL));
        (void)printf("%s%s", text, json ? "\n" : "");
    }
    free(text);
    moe_plan_destroy(plan);
    return text != NULL ? CLI_OK : CLI_FAILED;
}

// `format` UNSET: as the checkpoint has them. What the command line names is of the routed experts.
static void set_formats(moe_layer_desc *d, moe_format format, const moe_quant_desc *act)
{
    for (int g = 0; g < 2; g++) {
        moe_gemm_desc *gemm = &d->gemm[g];
        gemm->act = *act;
        if (format != MOE_FORMAT_UNSET) {
            *gemm = (moe_gemm_desc){.weight_format = format, .bias = gemm->bias, .act = *act};
            d->transposed = 0;
        }
    }
}

int cmd_explain(int argc, char **argv)
{
    const char *shape = NULL;
    const char *format = NULL;
    const char *activation = "none";
    const char *tokens = "256";
    const char *device = NULL;
    const char *level = "batch";
    const char *model = NULL;
    bool json = false;
    int count = 0;
    int64_t max_tokens = 0;
    moe_format experts = MOE_FORMAT_UNSET;
    const cli_option options[] = {
        {"shape", &shape, NULL},   {"format", &format, NULL}, {"activation", &activation, NULL},
        {"tokens", &tokens, NULL}, {"device", &device, NULL}, {"det", &level, NULL},
        {"json", NULL, &json},     {NULL, NULL, NULL}};
    moe_layer_desc d = moe_layer_desc_default();
    if (!cli_parse(argc, argv, options, &model, 1, &count)) {
        return CLI_USAGE;
    }
    if ((shape == NULL) == (model == NULL)) {
        (void)fprintf(stderr, "moe: explain needs the folder of a model, or --shape%s\n",
                      shape != NULL ? ", not both" : "");
        return CLI_USAGE;
    }
    if (!cli_level(level, &d.determinism) ||
        !cli_number("--tokens", tokens, 0, INT32_MAX, &max_tokens)) {
        return CLI_USAGE;
    }
    int code = CLI_OK;
    if (model != NULL) {
        if (!read_model(model, &d, &code)) {
            return code;
        }
    } else if (!cli_shape(shape, &d)) {
        return CLI_USAGE;
    } else {
        cli_plain_layer(&d);
    }
    if (format != NULL) {
        if (!cli_format("--format", format, &experts)) {
            return CLI_USAGE;
        }
    } else if (model == NULL) {
        (void)fprintf(stderr, "moe: say --format: a shape does not tell it\n");
        return CLI_USAGE;
    }
    moe_quant_desc act = {0};
    if (!cli_quantiser("--activation", activation, &act)) {
        return CLI_USAGE;
    }
    d.max_tokens = max_tokens;
    d.x_dtype = MOE_BF16;
    set_formats(&d, experts, &act);
    moe_context *ctx = cli_context(NULL, device, &code);
    if (ctx != NULL) {
        code = print_plan(ctx, &d, json);
        moe_context_destroy(ctx);
    }
    return code;
}
