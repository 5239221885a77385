// SPDX-License-Identifier: Apache-2.0
// moe generate: prompts in, text out as it comes; several prompts run as one batch.
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"
#include "load.h"
#include "model/text.h"

#define MAX_PROMPTS 64

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

// The first Ctrl-C ends the text with a whole line; a second one ends the program.
static void catch_interrupt(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)(SA_RESETHAND | SA_RESTART);
    (void)sigaction(SIGINT, &action, NULL);
}

/// One prompt and what became of it.
struct job {
    const char *text; ///< as given; NULL: the prompt came as ids
    moem_ids prompt, out;
    moem_text written; ///< whole characters of `out`
    moem_stream stream;
};

struct generation {
    cli_decoder m;
    struct job jobs[MAX_PROMPTS];
    int32_t count;
    bool streams; ///< one prompt, not JSON: characters go out as they are whole
    bool json, heat_map;
    int64_t max_tokens;
    moem_sampling sampling;
    bool failed; ///< writing, or memory
};

static int write_error; // errno of the first write that failed

static bool write_out(const char *bytes, size_t size)
{
    const bool good = fwrite(bytes, 1, size, stdout) == size && fflush(stdout) == 0;
    write_error = good || write_error != 0 ? write_error : errno;
    return good;
}

static bool on_token(void *self, int32_t request, int32_t id)
{
    struct generation *g = self;
    struct job *job = &g->jobs[request];
    const char *bytes = NULL;
    size_t size = 0;
    const size_t before = job->written.size;
    if (moem_ids_push(&job->out, id) != MOE_OK) {
        g->failed = true;
        return false;
    }
    // An id of the model's vocabulary that the tokenizer lacks writes nothing.
    if (moem_tokenizer_bytes(g->m.tokenizer, id, &bytes, &size) == MOE_OK &&
        moem_stream_push(&job->stream, bytes, size, &job->written) != MOE_OK) {
        g->failed = true;
        return false;
    }
    if (g->streams && !write_out(job->written.bytes + before, job->written.size - before)) {
        g->failed = true;
        return false;
    }
    return interrupted == 0;
}

static void print_ids(const char *name, const moem_ids *ids)
{
    (void)printf("\"%s\": [", name);
    for (size_t i = 0; i < ids->count; i++) {
        (void)printf("%s%d", i > 0 ? ", " : "", (int)ids->ids[i]);
    }
    (void)printf("]");
}

static double rate(int64_t tokens, double seconds)
{
    return seconds > 0 ? (double)tokens / seconds : 0;
}

static void print_json(const struct generation *g, const moem_times *t, const load_table *load)
{
    (void)printf("{\"results\": [");
    for (int32_t i = 0; i < g->count; i++) {
        const struct job *job = &g->jobs[i];
        (void)printf("%s{", i > 0 ? ", " : "");
        if (job->text != NULL) {
            (void)printf("\"prompt\": ");
            cli_json_string(job->text);
            (void)printf(", ");
        }
        (void)printf("\"text\": ");
        cli_json_text(job->written.bytes, job->written.size);
        (void)printf(", ");
        print_ids("prompt_ids", &job->prompt);
        (void)printf(", ");
        print_ids("ids", &job->out);
        (void)printf("}");
    }
    (void)printf("], \"prompt_tokens\": %" PRId64 ", \"prompt_tokens_per_second\": %.6g, "
                 "\"new_tokens\": %" PRId64
                 ", \"new_tokens_per_second\": %.6g, \"activation\": \"%s\", ",
                 t->prompt_tokens, rate(t->prompt_tokens, t->prompt_seconds), t->new_tokens,
                 rate(t->new_tokens, t->decode_seconds), cli_decoder_activation(&g->m));
    load_print_json(load, stdout);
    (void)printf("}\n");
}

// The prompt, if it is to stand before the text.
static bool print_prompt(const struct generation *g, const struct job *job)
{
    bool written = true;
    for (size_t i = 0; written && i < job->prompt.count; i++) {
        const char *bytes = NULL;
        size_t size = 0;
        written =
            moem_tokenizer_bytes(g->m.tokenizer, job->prompt.ids[i], &bytes, &size) != MOE_OK ||
            write_out(bytes, size);
    }
    return written;
}

static bool print_texts(const struct generation *g)
{
    bool written = true;
    for (int32_t i = 0; written && i < g->count; i++) {
        const struct job *job = &g->jobs[i];
        written = print_prompt(g, job) && write_out(job->written.bytes, job->written.size) &&
                  write_out(i + 1 < g->count ? "\n\n" : "\n", i + 1 < g->count ? 2 : 1);
    }
    return written;
}

static int read_prompts(struct generation *g, const char *const *prompts)
{
    int code = CLI_OK;
    for (int32_t i = 0; code == CLI_OK && i < g->count; i++) {
        struct job *job = &g->jobs[i];
        char label[32];
        (void)snprintf(label, sizeof label, "prompt %d", (int)i + 1);
        if (strcmp(prompts[i], "-") == 0) {
            code = cli_encode_file(&g->m, "-", &job->prompt);
        } else {
            job->text = prompts[i];
            code = cli_encode(&g->m, label, job->text, strlen(job->text), &job->prompt);
        }
    }
    return code;
}

// The rest of the text, after the last token.
static bool finish_texts(struct generation *g)
{
    bool good = true;
    for (int32_t i = 0; good && i < g->count; i++) {
        struct job *job = &g->jobs[i];
        const size_t before = job->written.size;
        good = moem_stream_finish(&job->stream, &job->written) == MOE_OK;
        if (good && g->streams) {
            good = write_out(job->written.bytes + before, job->written.size - before) &&
                   write_out("\n", 1);
        }
    }
    return good;
}

// A text ends where the model's context does; a prompt must leave room for one token.
static int make_requests(const struct generation *g, moem_request *requests)
{
    const int64_t context = moem_model_config(g->m.model)->context;
    for (int32_t i = 0; i < g->count; i++) {
        const moem_ids *prompt = &g->jobs[i].prompt;
        const int64_t count = (int64_t)prompt->count;
        if (count >= context) {
            (void)fprintf(stderr,
                          "moe: prompt %d has %" PRId64 " tokens; the model's context of %" PRId64
                          " must hold one more\n",
                          (int)i + 1, count, context);
            return CLI_FAILED;
        }
        requests[i] = (moem_request){
            prompt->ids, count, g->max_tokens < context - count ? g->max_tokens : context - count,
            g->sampling};
    }
    return CLI_OK;
}

// What is said on stderr once the texts are out.
static int report(const struct generation *g, const moem_request *requests, const moem_times *t,
                  const load_table *load)
{
    (void)fprintf(stderr,
                  "prompt: %" PRId64 " tokens, %.1f tokens/s; text: %" PRId64
                  " tokens, %.1f tokens/s\n",
                  t->prompt_tokens, rate(t->prompt_tokens, t->prompt_seconds), t->new_tokens,
                  rate(t->new_tokens, t->decode_seconds));
    if (g->heat_map) {
        load_print_map(load, 80, cli_colour(stderr), stderr);
    }
    if (interrupted) {
        size_t written = 0;
        for (int32_t i = 0; i < g->count; i++) {
            written += g->jobs[i].out.count;
        }
        (void)fprintf(stderr, "moe: interrupted after %zu tokens\n", written);
        return CLI_INTERRUPTED;
    }
    for (int32_t i = 0; i < g->count; i++) {
        const int64_t written = (int64_t)g->jobs[i].out.count;
        if (written == requests[i].max_tokens && written < g->max_tokens) {
            (void)fprintf(stderr,
                          "moe: prompt %d: the model's context of %" PRId64
                          " tokens is full after %" PRId64 " new ones\n",
                          (int)i + 1, moem_model_config(g->m.model)->context, written);
        }
    }
    return CLI_OK;
}

static int run(struct generation *g)
{
    const moem_config *c = moem_model_config(g->m.model);
    moem_request requests[MAX_PROMPTS];
    moem_times times = {0};
    const size_t cells = (size_t)(c->layers * moem_model_experts(g->m.model));
    int64_t *counts = calloc(cells, sizeof *counts);
    const load_table load = {counts, c->layers, moem_model_experts(g->m.model)};
    int code = make_requests(g, requests);
    if (counts == NULL) {
        (void)fprintf(stderr, "moe: no memory for %zu counters\n", cells);
        code = CLI_FAILED;
    }
    if (code == CLI_OK) {
        catch_interrupt();
        g->failed = g->streams && !print_prompt(g, &g->jobs[0]);
        const moe_status status =
            g->failed ? MOE_OK
                      : moem_generate(g->m.model, requests, g->count, on_token, g, counts, &times);
        g->failed = g->failed || !finish_texts(g);
        code = status == MOE_OK ? CLI_OK : cli_failed(status);
    }
    if (code == CLI_OK && !g->failed) {
        if (g->json) {
            print_json(g, &times, &load);
        } else if (!g->streams) {
            g->failed = !print_texts(g);
        }
    }
    if (code == CLI_OK && g->failed) {
        (void)fprintf(stderr, "moe: the text could not be written: %s\n",
                      write_error != 0 ? strerror(write_error) : "no memory");
        code = CLI_FAILED;
    } else if (code == CLI_OK) {
        code = report(g, requests, &times, &load);
    }
    free(counts);
    return code;
}

static bool parse(int argc, char **argv, struct generation *g, const char **positional, int *count,
                  cli_decoder_options *given)
{
    const char *max_tokens = "100";
    const char *temperature = "0";
    const char *top_p = "1";
    const char *seed = "0";
    int64_t seed_value = 0;
    const cli_option options[] = {{"max-tokens", &max_tokens, NULL},
                                  {"temperature", &temperature, NULL},
                                  {"top-p", &top_p, NULL},
                                  {"seed", &seed, NULL},
                                  {"device", &given->device, NULL},
                                  {"threads", &given->threads, NULL},
                                  {"activation", &given->activation, NULL},
                                  {"no-mmap", NULL, &given->no_mmap},
                                  {"weights", &given->weights, NULL},
                                  {"packed", &given->packed, NULL},
                                  {"json", NULL, &g->json},
                                  {"heat-map", NULL, &g->heat_map},
                                  {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, positional, 1 + MAX_PROMPTS, count)) {
        return false;
    }
    if (*count < 2) {
        (void)fprintf(stderr, "moe: generate needs %s\n",
                      *count == 0 ? "the folder of a model" : "a prompt (\"-\": standard input)");
        return false;
    }
    const bool good = cli_number("--max-tokens", max_tokens, 1, INT32_MAX, &g->max_tokens) &&
                      cli_number("--seed", seed, 0, INT64_MAX, &seed_value) &&
                      cli_real("--temperature", temperature, 0, 1000, &g->sampling.temperature) &&
                      cli_real("--top-p", top_p, 1e-9, 1, &g->sampling.top_p);
    g->sampling.seed = (uint64_t)seed_value;
    g->count = *count - 1;
    g->streams = g->count == 1 && !g->json;
    return good;
}

int cmd_generate(int argc, char **argv)
{
    const char *positional[1 + MAX_PROMPTS];
    cli_decoder_options given = {0};
    int count = 0;
    struct generation *g = calloc(1, sizeof *g);
    int code = g == NULL                                          ? CLI_FAILED
               : parse(argc, argv, g, positional, &count, &given) ? CLI_OK
                                                                  : CLI_USAGE;
    if (code == CLI_OK) {
        code = cli_decoder_open(positional[0], &given, &g->m);
        code = code != CLI_OK ? code : read_prompts(g, positional + 1);
        if (code == CLI_OK) {
            cli_decoder_describe(positional[0], &given, &g->m);
            code = run(g);
        }
        for (int32_t i = 0; i < g->count; i++) {
            moem_ids_free(&g->jobs[i].prompt);
            moem_ids_free(&g->jobs[i].out);
            moem_text_free(&g->jobs[i].written);
        }
        cli_decoder_close(&g->m);
    }
    free(g);
    return code;
}
