// SPDX-License-Identifier: Apache-2.0
// Folders with a checkpoint, as commands name them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define MAX_CONFIG ((size_t)16 << 20) // no configuration is larger

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
