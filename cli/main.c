// SPDX-License-Identifier: Apache-2.0
// moe: dispatch to commands; the context and the files that they share.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *usage;
} commands[] = {
    {"info", cmd_info, "moe info [--kernels] [--json]\n    instruction sets, backends, kernels"},
    {"explain", cmd_explain,
     "moe explain DIR[:LAYER] [--format F] [--activation A] [--tokens T] [--det L] [--json]\n"
     "moe explain --shape NAME|H,I,E,k --format F [--activation A] [--tokens T] [--det L] "
     "[--json]\n"
     "    which kernel runs each step, and why the others do not"},
    {"inspect", cmd_inspect,
     "moe inspect DIR|FILE [--no-mmap] [--json]\n"
     "    what a checkpoint holds, whether its numbers are sane, what a plan would run; what a "
     "packed\n"
     "    file holds, whether its checksums are right"},
    {"pack", cmd_pack,
     "moe pack DIR [--out FILE] [--activation A] [--device D] [--threads N] [--no-mmap] [--json]\n"
     "    packs the experts as the kernels want them, for --packed of generate and stats"},
    {"run", cmd_run,
     "moe run DIR --layer N --input X.safetensors[:NAME] --output Y.safetensors [--logits NAME | "
     "--ids NAME --weights NAME]\n"
     "        [--device D] [--threads N] [--no-mmap] [--json]\n"
     "    one layer on given tokens; the router's logits are computed unless given"},
    {"check", cmd_check,
     "moe check [--kernel GLOB] [--format F] [--device D] [--isa NAME] [--seed N]\n"
     "          [--repeat N] [--threads N] [--delay SEED [--runs N]] [--ledger DIR [--hashes "
     "FILE]]\n"
     "          [--every N] [--apart] [--quick] [--list] [--json]\n"
     "moe check --oracle FILE [--device D] [--kernel GLOB] [--list] [--json]\n"
     "moe check --model DIR [--device D] [--reference FILE] [--quick] [--json]\n"
     "    proves the kernels on this machine; replays what other software computed"},
    {"bench", cmd_bench,
     "moe bench --shape NAME|H,I,E,k --format F [--format2 F] [--activation A[,A]] [--glu NAME]\n"
     "          [--tokens T,T...] [--routing uniform|zipf] [--x DTYPE] [--det L] [--device D]\n"
     "          [--threads N[,N...]] [--repeats N] [--sets N] [--seed N] [--error] [--no-floor]\n"
     "          [--json FILE]\n"
     "moe bench --shape NAME|H,I,E,k --routing-only [--tokens T,T...] ...\n"
     "moe bench --model DIR [--tokens T,T...] [--context N] [--activation A] [--threads N[,N...]]\n"
     "          [--repeats N] [--seed N] [--no-floor] [--json FILE]\n"
     "moe bench --compare A.json B.json\n"
     "moe bench --plot OUT.svg FILE.json...\n"
     "    how long a layer or a model takes, beside what the device can do at most"},
    {"generate", cmd_generate,
     "moe generate DIR PROMPT... [--max-tokens N] [--temperature T] [--top-p P] [--seed N]\n"
     "             [--activation A] [--device D] [--threads N] [--weights auto|packed|mapped | "
     "--packed FILE]\n"
     "             [--no-mmap] [--heat-map] [--json]\n"
     "    writes on from each prompt (\"-\": standard input), all of them as one batch"},
    {"stats", cmd_stats,
     "moe stats DIR --text FILE [--window N] [--activation A] [--device D] [--threads N]\n"
     "          [--weights auto|packed|mapped | --packed FILE] [--no-mmap] [--csv | --svg | "
     "--json]\n"
     "    which experts a text calls, layer by layer, and how evenly"},
};
#define NUM_COMMANDS (sizeof commands / sizeof commands[0])

static void usage(FILE *out)
{
    (void)fprintf(out, "moe %s: the Mixture-of-Experts layer of a language model\n\n",
                  moe_version_string());
    for (size_t i = 0; i < NUM_COMMANDS; i++) {
        (void)fprintf(out, "%s\n", commands[i].usage);
    }
    (void)fprintf(out, "\nexit codes: 0 ok, 1 failed, 2 usage, 3 unsupported, 130 interrupted\n");
}

int cli_failed(moe_status status)
{
    (void)fprintf(stderr, "moe: %s\n", moe_last_error());
    return status >= 30 && status < 40 ? CLI_UNSUPPORTED : CLI_FAILED;
}

moe_context *cli_context(const char *threads, const char *device, int *code)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *ctx = NULL;
    int64_t n = 0;
    *code = CLI_USAGE;
    if (threads != NULL && !cli_number("--threads", threads, 1, 1024, &n)) {
        return NULL;
    }
    desc.num_threads = (int32_t)n;
    if (device != NULL && !cli_device(device, &desc.device)) {
        return NULL;
    }
    const moe_status status = moe_context_create(&desc, &ctx);
    if (status != MOE_OK) {
        *code = cli_failed(status);
        return NULL;
    }
    return ctx;
}

char *cli_read_file(const char *path, size_t most, size_t *size)
{
    const bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    char *text = NULL;
    size_t capacity = 0;
    size_t count = 0;
    bool failed = file == NULL;
    const char *why = failed ? strerror(errno) : NULL; // NULL: too long
    while (!failed && !feof(file)) {
        if (capacity - count < 2) {
            char *more = realloc(text, capacity = 2 * capacity + 65536);
            failed = more == NULL;
            why = failed ? "no memory" : why;
            text = failed ? text : more;
        }
        if (!failed) {
            count += fread(text + count, 1, capacity - count - 1, file);
            failed = ferror(file) || count > most;
            why = ferror(file) ? strerror(errno) : NULL;
        }
    }
    if (file != NULL && !standard) {
        (void)fclose(file);
    }
    if (failed) {
        const char *name = standard ? "standard input" : path;
        if (why != NULL) {
            (void)fprintf(stderr, "moe: %s: cannot be read: %s\n", name, why);
        } else {
            (void)fprintf(stderr, "moe: %s: more than %zu bytes\n", name, most);
        }
        free(text);
        return NULL;
    }
    text[count] = '\0';
    *size = count;
    return text;
}

// An exit code, once all that was printed is out.
static int finish(int code)
{
    if (code == CLI_OK && (fflush(stdout) != 0 || ferror(stdout))) {
        (void)fprintf(stderr, "moe: writing to standard output: %s\n", strerror(errno));
        return CLI_FAILED;
    }
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        usage(argc < 2 ? stderr : stdout);
        return finish(argc < 2 ? CLI_USAGE : CLI_OK);
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("moe %s\n", moe_version_string());
        return finish(CLI_OK);
    }
    for (size_t i = 0; i < NUM_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            if (argc > 2 && strcmp(argv[2], "--help") == 0) {
                (void)printf("%s\n", commands[i].usage);
                return finish(CLI_OK);
            }
            const int code = commands[i].run(argc - 2, argv + 2);
            if (code == CLI_USAGE) {
                (void)fprintf(stderr, "usage: %s\n", commands[i].usage);
            }
            return finish(code);
        }
    }
    (void)fprintf(stderr, "moe: unknown command \"%s\"; moe --help lists them\n", argv[1]);
    return CLI_USAGE;
}
