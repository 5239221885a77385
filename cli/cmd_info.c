// SPDX-License-Identifier: Apache-2.0
// moe info: what this machine offers and which kernels the library has.
#include <stdio.h>

#include "cli.h"

typedef struct printer {
    bool json;
    int index;
} printer;

// Reasons hold paths and messages of the system, which may hold anything.
static int print_backend(void *self, const moe_backend_info *info)
{
    printer *p = self;
    if (p->json) {
        (void)printf("%s{\"name\": ", p->index++ > 0 ? ", " : "");
        cli_json_string(info->name);
        (void)printf(", \"available\": %s, \"reason\": ", info->available ? "true" : "false");
        cli_json_string(info->reason);
        (void)printf("}");
    } else {
        (void)printf("backend %-6s %s: %s\n", info->name, info->available ? "ready" : "absent",
                     info->reason);
    }
    return 0;
}

static int print_kernel(void *self, const moe_kernel_info *info)
{
    printer *p = self;
    if (p->json) {
        (void)printf("%s{\"name\": \"%s\", \"backend\": \"%s\", \"op\": \"%s\", \"isa\": \"%s\", "
                     "\"arith\": \"%s\", \"available\": %s, \"why\": ",
                     p->index++ > 0 ? ", " : "", info->name, info->backend, info->op, info->isa,
                     info->arith, info->available ? "true" : "false");
        cli_json_string(info->why);
        (void)printf("}");
    } else {
        (void)printf("%-44s %-8s %-9s %s%s\n", info->name, info->isa, info->arith,
                     info->available ? "ready" : "no: ", info->why);
    }
    return 0;
}

int cmd_info(int argc, char **argv)
{
    bool kernels = false;
    printer p = {false, 0};
    int count = 0;
    int code = CLI_OK;
    const cli_option options[] = {
        {"kernels", NULL, &kernels}, {"json", NULL, &p.json}, {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, NULL, 0, &count)) {
        return CLI_USAGE;
    }
    moe_context *ctx = cli_context(NULL, NULL, &code);
    if (ctx == NULL) {
        return code;
    }
    if (p.json) {
        (void)printf("{\"version\": \"%s\", \"threads\": %d, \"backends\": [", moe_version_string(),
                     moe_context_num_threads(ctx));
    } else {
        (void)printf("moe %s, %d threads\n", moe_version_string(), moe_context_num_threads(ctx));
    }
    (void)moe_context_visit_backends(ctx, print_backend, &p);
    if (p.json) {
        (void)printf("]");
    }
    if (kernels) {
        p.index = 0;
        (void)printf("%s", p.json ? ", \"kernels\": [" : "");
        (void)moe_context_visit_kernels(ctx, print_kernel, &p);
        (void)printf("%s", p.json ? "]" : "");
    }
    (void)printf("%s", p.json ? "}\n" : "");
    moe_context_destroy(ctx);
    return CLI_OK;
}
