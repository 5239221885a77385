// SPDX-License-Identifier: Apache-2.0
// Command lines: arguments end with NUL bytes; all go through the parser of options, and each on
// its own through those of numbers, shapes, devices and DIR:LAYER.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "fuzz.h"

#define MAX_ARGUMENTS 16

static void check_one(const char *text)
{
    int64_t number = 0;
    double real = 0;
    char dir[CLI_PATH_BYTES];
    moe_layer_desc desc = moe_layer_desc_default();
    moe_device_type device = MOE_DEVICE_UNSET;
    moe_determinism level = MOE_DET_DEFAULT;
    moe_format format = MOE_FORMAT_UNSET;
    moe_quant_desc quantiser = {0};
    if (cli_number("--n", text, -5, 1000, &number)) {
        FUZZ_REQUIRE(number >= -5 && number <= 1000 && strtoll(text, NULL, 10) == number);
    }
    if (cli_real("--r", text, 0, 2, &real)) {
        FUZZ_REQUIRE(real >= 0 && real <= 2);
    }
    if (cli_shape(text, &desc)) {
        FUZZ_REQUIRE(desc.hidden >= 0 && desc.inter >= 0 && desc.num_experts >= 0 &&
                     desc.top_k >= 0);
    }
    if (cli_split(text, dir, &number)) {
        FUZZ_REQUIRE(strlen(dir) <= strlen(text) && number >= 0);
    }
    if (cli_device(text, &device)) {
        FUZZ_REQUIRE(strcmp(moe_device_name(device), text) == 0);
    }
    if (cli_level(text, &level)) {
        FUZZ_REQUIRE(strcmp(cli_level_name(level), text) == 0);
    }
    if (cli_format("--f", text, &format)) {
        FUZZ_REQUIRE(strcmp(moe_format_name(format), text) == 0);
    }
    if (cli_quantiser("--q", text, &quantiser) && quantiser.spec != MOE_QUANT_NONE) {
        const char *name = moe_quant_name(quantiser.spec);
        const size_t length = strlen(name);
        FUZZ_REQUIRE(strncmp(name, text, length) == 0);
        FUZZ_REQUIRE(quantiser.elem == 0
                         ? text[length] == '\0'
                         : text[length] == ':' &&
                               strcmp(moe_dtype_name(quantiser.elem), text + length + 1) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *arguments[MAX_ARGUMENTS];
    const char *positional[4] = {NULL, NULL, NULL, NULL};
    const char *value = NULL;
    bool flag = false;
    int count = 0;
    int found = 0;
    const cli_option options[] = {
        {"value", &value, NULL}, {"flag", NULL, &flag}, {NULL, NULL, NULL}};
    static FILE *silent;
    if (silent == NULL) { // every refusal is a line; sanitizers write to the descriptor itself
        silent = fopen("/dev/null", "w");
        FUZZ_REQUIRE(silent != NULL);
        stderr = silent;
    }
    char *text = malloc(size + 1);
    FUZZ_REQUIRE(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    for (size_t at = 0; at < size && count < MAX_ARGUMENTS; at += strlen(text + at) + 1) {
        arguments[count++] = text + at;
        check_one(text + at);
    }
    if (cli_parse(count, arguments, options, positional, 4, &found)) {
        FUZZ_REQUIRE(found >= 0 && found <= 4 && (found == 0 || positional[found - 1] != NULL));
    }
    free(text);
    return 0;
}
