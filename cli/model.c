// SPDX-License-Identifier: Apache-2.0
// Folders with a checkpoint, as commands name them, and names from files on the terminal.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define MAX_CONFIG ((size_t)16 << 20) // no configuration is larger

bool cli_split(const char *where, char dir[CLI_PATH_BYTES], int64_t *layer)
{
    const char *colon = strrchr(where, ':');
    const size_t length = colon != NULL ? (size_t)(colon - where) : strlen(where);
    *layer = 0;
    if (length >= CLI_PATH_BYTES) {
        (void)fprintf(stderr, "moe: \"%s\" is too long a name\n", where);
        return false;
    }
    memcpy(dir, where, length);
    dir[length] = '\0';
    return colon == NULL || cli_number("layer", colon + 1, 0, INT32_MAX, layer);
}

bool cli_model_open(const char *dir, uint32_t flags, cli_model *out)
{
    char path[CLI_PATH_BYTES + 16];
    cli_model model = {NULL, NULL, 0};
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    model.config = cli_read_file(path, MAX_CONFIG, &model.config_size);
    if (model.config == NULL) {
        return false;
    }
    if (moe_checkpoint_open(dir, flags, &model.checkpoint) != MOE_OK) {
        (void)fprintf(stderr, "moe: %s\n", moe_last_error());
        cli_model_close(&model);
        return false;
    }
    *out = model;
    return true;
}

void cli_model_close(cli_model *model)
{
    moe_checkpoint_close(model->checkpoint);
    free(model->config);
}

void cli_json_string(const char *text)
{
    (void)putchar('"');
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\') {
            (void)printf("\\%c", *c);
        } else if ((unsigned char)*c < 0x20 || *c == 0x7F) {
            (void)printf("\\u%04x", (unsigned)(unsigned char)*c);
        } else {
            (void)putchar(*c);
        }
    }
    (void)putchar('"');
}

void cli_plain_string(const char *text)
{
    for (const char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7F) {
            (void)printf("\\x%02x", (unsigned)(unsigned char)*c);
        } else {
            (void)putchar(*c);
        }
    }
}
