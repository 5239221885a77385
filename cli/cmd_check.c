// SPDX-License-Identifier: Apache-2.0
// moe check: proves the kernels on this machine, or replays what other software computed.
#include <stdio.h>
#include <string.h>

#include "checkmoe/checkmoe.h"
#include "checkmoe/oracle.h"
#include "cli.h"

int cmd_check(int argc, char **argv)
{
    const char *kernel = NULL;
    const char *isa = NULL;
    const char *seed = "1";
    const char *threads = "0";
    const char *device = NULL;
    const char *oracle = NULL;
    const char *model = NULL;
    const char *reference = NULL;
    bool show = false;
    bool json = false;
    bool verbose = false;
    int count = 0;
    int64_t seed_value = 0;
    int64_t thread_value = 0;
    const cli_option options[] = {{"kernel", &kernel, NULL},   {"isa", &isa, NULL},
                                  {"seed", &seed, NULL},       {"threads", &threads, NULL},
                                  {"device", &device, NULL},   {"oracle", &oracle, NULL},
                                  {"model", &model, NULL},     {"reference", &reference, NULL},
                                  {"show", NULL, &show},       {"json", NULL, &json},
                                  {"verbose", NULL, &verbose}, {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, NULL, 0, &count) ||
        !cli_number("--seed", seed, 0, INT64_MAX, &seed_value) ||
        !cli_number("--threads", threads, 0, 1024, &thread_value)) {
        return CLI_USAGE;
    }
    if (device != NULL && strcmp(device, "cpu") != 0) {
        int code = CLI_OK;
        moe_context *ctx = cli_context(NULL, device, &code);
        if (ctx == NULL) {
            return code;
        }
        moe_context_destroy(ctx);
    }
    const moec_options o = {.kernel = kernel,
                            .isa = isa,
                            .seed = (uint64_t)seed_value,
                            .threads = (int32_t)thread_value,
                            .program = "moe",
                            .verbose = verbose};
    moec_counts counts = {0, 0, 0};
    FILE *out = json ? stderr : stdout;
    int result;
    if (oracle != NULL) {
        result = moec_oracle_run(oracle, &o, out, &counts);
    } else if (model != NULL && show) {
        return moec_demo(model, stdout) == 0 ? CLI_OK : CLI_FAILED;
    } else if (model != NULL) {
        result = moec_model_layers_run(model, reference, &o, out, &counts);
    } else {
        result = moec_kernels_run(&o, out, &counts);
        if (result == 0) {
            result = moec_layer_run(&o, out, &counts); // cases are named layer-N
        }
        if (result == 0) {
            (void)fprintf(out, "%lu passed, %lu failed, %lu skipped\n", counts.passed,
                          counts.failed, counts.skipped);
        }
    }
    if (json) {
        (void)printf("{\"passed\": %lu, \"failed\": %lu, \"skipped\": %lu}\n", counts.passed,
                     counts.failed, counts.skipped);
    }
    return result == 0 && counts.failed == 0 ? CLI_OK : CLI_FAILED;
}
