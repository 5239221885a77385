// SPDX-License-Identifier: Apache-2.0
// moe generate: prompts in, text out as it comes; several prompts run as one batch.
#define _POSIX_C_SOURCE 200809L
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
    action.sa_flags = (int)SA_RESETHAND;
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
    bool failed;  ///< writing, or memory
};

static bool write_out(const char *bytes, size_t size)
{
    return fwrite(bytes, 1, size, stdout) == size && fflush(stdout) == 0;
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

static void print_string(const char *bytes, size_t size)
{
    (void)putchar('"');
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\') {
            (void)printf("\\%c", c);
        } else if (c < 0x20) {
            (void)printf("\\u%04x", c);
        } else {
            (void)putchar(c);
        }
    }
    (void)putchar('"');
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
            print_string(job->text, strlen(job->text));
            (void)printf(", ");
        }
        (void)printf("\"text\": ");
        print_string(job->written.bytes, job->written.size);
        (void)printf(", ");
        print_ids("prompt_ids", &job->prompt);
        (void)printf(", ");
        print_ids("ids", &job->out);
        (void)printf("}");
    }
    (void)printf("], \"prompt_tokens\": %" PRId64 ", \"prompt_tokens_per_second\": %.6g, "
                 "\"new_tokens\": %" PRId64 ", \"new_tokens_per_second\": %.6g, ",
                 t->prompt_tokens, rate(t->prompt_tokens, t->prompt_seconds), t->new_tokens,
                 rate(t->new_tokens, t->decode_seconds));
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

static bool read_real(const char *name, const char *text, double low, double high, double *out)
{
    char *end = NULL;
    *out = strtod(text, &end);
    if (end == text || *end != '\0' || !(*out >= low) || !(*out <= high)) {
        (void)fprintf(stderr, "moe: %s \"%s\" is not a number in %g..%g\n", name, text, low, high);
        return false;
    }
    return true;
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

static int run(struct generation *g, const moem_sampling *sampling, int64_t max_tokens, bool json,
               bool heat_map)
{
    const moem_config *c = moem_model_config(g->m.model);
    moem_request requests[MAX_PROMPTS];
    moem_times times;
    const size_t cells = (size_t)(c->layers * moem_model_experts(g->m.model));
    int64_t *counts = calloc(cells, sizeof *counts);
    const load_table load = {counts, c->layers, moem_model_experts(g->m.model)};
    if (counts == NULL) {
        (void)fprintf(stderr, "moe: no memory for %zu counters\n", cells);
        return CLI_FAILED;
    }
    for (int32_t i = 0; i < g->count; i++) {
        const moem_ids *prompt = &g->jobs[i].prompt;
        requests[i] = (moem_request){prompt->ids, (int64_t)prompt->count, max_tokens, *sampling};
    }
    catch_interrupt();
    if (g->streams && !print_prompt(g, &g->jobs[0])) {
        g->failed = true;
    }
    const moe_status status =
        g->failed ? MOE_OK
                  : moem_generate(g->m.model, requests, g->count, on_token, g, counts, &times);
    int code = status == MOE_OK ? CLI_OK : cli_failed(status);
    if (code == CLI_OK && !g->failed) {
        g->failed = !finish_texts(g);
        if (json) {
            print_json(g, &times, &load);
        } else if (!g->failed && !g->streams) {
            g->failed = !print_texts(g);
        }
        (void)fprintf(stderr,
                      "prompt: %" PRId64 " tokens, %.1f tokens/s; text: %" PRId64
                      " tokens, %.1f tokens/s\n",
                      times.prompt_tokens, rate(times.prompt_tokens, times.prompt_seconds),
                      times.new_tokens, rate(times.new_tokens, times.decode_seconds));
        if (heat_map) {
            load_print_map(&load, 80, cli_colour(stderr), stderr);
        }
    }
    if (code == CLI_OK && g->failed) {
        (void)fprintf(stderr, "moe: the text could not be written\n");
        code = CLI_FAILED;
    } else if (code == CLI_OK && interrupted) {
        (void)fprintf(stderr, "moe: interrupted after %zu tokens\n", g->jobs[0].out.count);
        code = CLI_INTERRUPTED;
    }
    free(counts);
    return code;
}

int cmd_generate(int argc, char **argv)
{
    const char *positional[1 + MAX_PROMPTS];
    const char *max_text = "100";
    const char *temperature = "0";
    const char *top_p = "1";
    const char *seed = "0";
    const char *device = NULL;
    bool json = false;
    bool heat_map = false;
    int count = 0;
    int64_t max_tokens = 0;
    int64_t seed_value = 0;
    cli_decoder_options given = {0};
    moem_sampling sampling = {0};
    const cli_option options[] = {{"max-tokens", &max_text, NULL},
                                  {"temperature", &temperature, NULL},
                                  {"top-p", &top_p, NULL},
                                  {"seed", &seed, NULL},
                                  {"device", &device, NULL},
                                  {"threads", &given.threads, NULL},
                                  {"activation", &given.activation, NULL},
                                  {"no-mmap", NULL, &given.no_mmap},
                                  {"json", NULL, &json},
                                  {"heat-map", NULL, &heat_map},
                                  {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, positional, 1 + MAX_PROMPTS, &count) || count < 2 ||
        !cli_number("--max-tokens", max_text, 1, INT32_MAX, &max_tokens) ||
        !cli_number("--seed", seed, 0, INT64_MAX, &seed_value) ||
        !read_real("--temperature", temperature, 0, 1000, &sampling.temperature) ||
        !read_real("--top-p", top_p, 1e-9, 1, &sampling.top_p)) {
        return CLI_USAGE;
    }
    int code = CLI_OK;
    if (device != NULL) { // the decoder's own steps run on the CPU
        moe_context *ctx = cli_context(NULL, device, &code);
        moe_context_destroy(ctx);
        if (ctx == NULL) {
            return code;
        }
    }
    sampling.seed = (uint64_t)seed_value;
    struct generation *g = calloc(1, sizeof *g);
    if (g == NULL) {
        return CLI_FAILED;
    }
    g->count = count - 1;
    g->streams = g->count == 1 && !json;
    code = cli_decoder_open(positional[0], &given, &g->m);
    code = code != CLI_OK ? code : read_prompts(g, positional + 1);
    if (code == CLI_OK) {
        cli_decoder_describe(positional[0], &g->m);
        code = run(g, &sampling, max_tokens, json, heat_map);
    }
    for (int32_t i = 0; i < g->count; i++) {
        moem_ids_free(&g->jobs[i].prompt);
        moem_ids_free(&g->jobs[i].out);
        moem_text_free(&g->jobs[i].written);
    }
    cli_decoder_close(&g->m);
    free(g);
    return code;
}
