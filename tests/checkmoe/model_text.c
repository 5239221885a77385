// SPDX-License-Identifier: Apache-2.0
// A whole checkpoint against its reference: tokens of the text, logits, greedy continuation and
// likelihood; and the same bits whatever the threads, the chunks of the prompt and the batch.
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/oracle.h"
#include "checkmoe/replay.h"
#include "checkmoe/report.h"
#include "model/model.h"
#include "model/tokenizer.h"

#define TEXT          512
#define MAX_PROMPTS   16
#define COMPANIONS    4    // sequences beside the one that is watched
#define LOGIT_BOUND   1e-4 // of the position's largest logit
#define NEAR_TIE      1e-3 // margins below it may go either way
#define NLL_BOUND     2e-4 // mean per token: 0.004 at a perplexity of 20
#define MAX_TEXT_FILE ((size_t)64 << 20)

struct text_check {
    const char *dir, *program;
    const moec_options *options;
    FILE *out;
    int verbose;
    moec_counts *counts;
    moe_file *reference;
    moem_model *model;
    const char *inputs; ///< of the experts, as messages have them: "", or "i16b32: "
    moec_heap heap;
};

static void verdict(struct text_check *k, int good, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void verdict(struct text_check *k, int good, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)fprintf(k->out, "%s  ", good ? "PASS" : "FAIL");
    (void)vfprintf(k->out, format, args);
    (void)fprintf(k->out, "\n");
    va_end(args);
    k->counts->passed += good != 0;
    k->counts->failed += good == 0;
    if (!good) {
        char device[32];
        (void)fprintf(k->out, "  repeat: %s check%s --model %s\n", k->program,
                      moec_device_option(k->options, device, sizeof device), k->dir);
    }
}

static void skip(struct text_check *k, const char *what, const char *why)
{
    (void)fprintf(k->out, "SKIP  %s: %s\n", what, why);
    k->counts->skipped++;
}

// An item pN.<name> of the reference; 0 where it is missing.
static int item(const struct text_check *k, int prompt, const char *name, moe_tensor *out)
{
    char full[TEXT];
    (void)snprintf(full, sizeof full, "p%d.%s", prompt, name);
    return moe_file_tensor(k->reference, full, out) == MOE_OK;
}

// -- Logits --------------------------------------------------------------------------------------

// Runs ids[count] as one sequence, in steps of what the model takes; logits of every position.
static moe_status run_alone(const moem_model *model, const int32_t *ids, int64_t count,
                            float *logits)
{
    const int64_t most = moem_model_max_batch(model);
    const int64_t vocab = moem_model_config(model)->vocab;
    moem_session *session = NULL;
    moem_input *tokens = calloc((size_t)most, sizeof *tokens);
    moe_status status = tokens == NULL
                            ? moe_fail(MOE_E_NO_MEMORY, "no memory for %" PRId64 " tokens", most)
                            : moem_session_create(model, 1, count, &session);
    for (int64_t start = 0; status == MOE_OK && start < count; start += most) {
        const int64_t n = count - start < most ? count - start : most;
        for (int64_t t = 0; t < n; t++) {
            tokens[t] = (moem_input){ids[start + t], 0, true};
        }
        status = moem_forward(session, tokens, n, logits + start * vocab);
    }
    moem_session_destroy(session);
    free(tokens);
    return status;
}

static void check_logits(struct text_check *k, int prompt, int64_t count, const float *logits)
{
    moe_tensor expected;
    moec_stats stats;
    char label[TEXT];
    char repro[2 * TEXT];
    char device[32];
    const int64_t vocab = moem_model_config(k->model)->vocab;
    if (!item(k, prompt, "logits_last4", &expected) || expected.ndim != 2 ||
        expected.shape[1] != vocab || expected.shape[0] > count) {
        skip(k, "logits", "the reference has no fitting pN.logits_last4");
        return;
    }
    const int64_t rows = expected.shape[0];
    double *bound = moec_keep(&k->heap, (size_t)(rows * vocab), sizeof *bound);
    for (int64_t r = 0; r < rows; r++) {
        double most = 0;
        for (int64_t v = 0; v < vocab; v++) {
            most = fmax(most, fabs(moec_value(&expected, r * vocab + v)));
        }
        for (int64_t v = 0; v < vocab; v++) {
            bound[r * vocab + v] = LOGIT_BOUND * most;
        }
    }
    (void)snprintf(label, sizeof label, "%sprompt %d logits of the last positions", k->inputs,
                   prompt);
    (void)snprintf(repro, sizeof repro, "%s check%s --model %s", k->program,
                   moec_device_option(k->options, device, sizeof device), k->dir);
    const moec_compare compare = {
        .label = label,
        .actual = moe_tensor_2d(logits + (count - rows) * vocab, MOE_F32, rows, vocab),
        .expected = expected,
        .bound = bound,
        .repro = repro,
        .out = k->out,
        .always = k->verbose};
    const int good = moec_report_compare(&compare, &stats) != MOEC_FAIL;
    verdict(k, good, "%sprompt %d: logits of %" PRId64 " positions (%.2f of 1e-4 of the largest)",
            k->inputs, prompt, rows, stats.max_ratio);
}

// -- Greedy continuation --------------------------------------------------------------------------

static bool collect(void *self, int32_t request, int32_t id)
{
    (void)request;
    return moem_ids_push(self, id) == MOE_OK;
}

static void check_greedy(struct text_check *k, int prompt, const int32_t *ids, int64_t count)
{
    moe_tensor expected;
    moe_tensor margins;
    moem_ids have = {0};
    if (!item(k, prompt, "greedy_ids", &expected) || expected.dtype != MOE_I32 ||
        !item(k, prompt, "greedy_margin", &margins) ||
        moec_count(&margins) != moec_count(&expected)) {
        skip(k, "greedy tokens", "the reference has no pN.greedy_ids with pN.greedy_margin");
        return;
    }
    const int64_t n = moec_count(&expected);
    const moem_request request = {.prompt = ids, .prompt_count = count, .max_tokens = n};
    const moe_status status = moem_generate(k->model, &request, 1, collect, &have, NULL, NULL);
    int64_t same = 0;
    while (same < n && same < (int64_t)have.count &&
           have.ids[same] == (int32_t)moec_value(&expected, same)) {
        same++;
    }
    const double margin = same < n ? moec_value(&margins, same) : 0;
    // After a near tie that went the other way the texts differ by right.
    const int good = status == MOE_OK && (same == n || margin <= NEAR_TIE);
    verdict(k, good, "%sprompt %d: %" PRId64 " of %" PRId64 " greedy tokens%s%s", k->inputs, prompt,
            same, n, same < n && good ? ", then a near tie went the other way" : "",
            status != MOE_OK ? moe_last_error() : "");
    moem_ids_free(&have);
}

// -- The same bits -------------------------------------------------------------------------------

// The logits of ids run beside companions, tokens of all sequences in turn.
static moe_status run_among(const moem_model *model, const int32_t *ids, int64_t count,
                            float *logits)
{
    const int64_t most = moem_model_max_batch(model);
    const int64_t vocab = moem_model_config(model)->vocab;
    moem_session *session = NULL;
    moem_input *tokens = calloc((size_t)most, sizeof *tokens);
    int64_t waiting = 0;
    moe_status status = tokens == NULL
                            ? moe_fail(MOE_E_NO_MEMORY, "no memory for %" PRId64 " tokens", most)
                            : moem_session_create(model, 1 + COMPANIONS, count, &session);
    int64_t rows = 0;
    for (int64_t t = 0; status == MOE_OK && t < count; t++) {
        for (int32_t s = 0; status == MOE_OK && s <= COMPANIONS; s++) {
            // The last sequence is the one that counts; the others read other tokens, some fewer.
            const int64_t other = (t * (s + 2) + 7 * s) % count;
            const bool watched = s == COMPANIONS;
            if (watched || t < count - 5 * s) {
                tokens[waiting++] = (moem_input){ids[watched ? t : other], s, watched};
            }
            if (waiting == most || (watched && t == count - 1)) {
                status = moem_forward(session, tokens, waiting, logits + rows * vocab);
                for (int64_t i = 0; i < waiting; i++) {
                    rows += tokens[i].want_logits;
                }
                waiting = 0;
            }
        }
    }
    moem_session_destroy(session);
    free(tokens);
    return status;
}

static void check_bits(struct text_check *k, const int32_t *ids, int64_t count, const float *logits,
                       const moec_options *options)
{
    static const struct {
        const char *what;
        moe_status (*run)(const moem_model *model, const int32_t *ids, int64_t count,
                          float *logits);
        int32_t threads;
        int64_t max_batch;
    } ways[] = {
        {"1 thread", run_alone, 1, 512},
        {"2 threads", run_alone, 2, 512},
        {"3 threads, steps of 7 tokens", run_alone, 3, 7},
        {"one token at a time", run_alone, 2, 1},
        {"in a batch of 5", run_among, 2, 512},
        {"in a batch of 5, steps of 11 tokens, 1 thread", run_among, 1, 11},
    };
    const size_t size = (size_t)(count * moem_model_config(k->model)->vocab);
    float *other = moec_keep(&k->heap, size, sizeof *other);
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        const moem_options o = {.device = options->device,
                                .threads = ways[w].threads,
                                .isa = options->isa,
                                .max_batch = ways[w].max_batch};
        moem_model *model = NULL;
        moe_status status = moem_model_open(k->dir, &o, &model);
        status = status ? status : ways[w].run(model, ids, count, other);
        const int same = status == MOE_OK && memcmp(other, logits, size * sizeof *other) == 0;
        verdict(k, same, "same bits with %s%s%s", ways[w].what, status != MOE_OK ? ": " : "",
                status != MOE_OK ? moe_last_error() : "");
        moem_model_close(model);
    }
}

// -- A text --------------------------------------------------------------------------------------

static char *read_whole(struct text_check *k, const char *name, size_t *size)
{
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/%s", k->dir, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return NULL;
    }
    char *text = moec_keep(&k->heap, MAX_TEXT_FILE, 1);
    *size = fread(text, 1, MAX_TEXT_FILE, file);
    (void)fclose(file);
    return text;
}

static void check_tokens(struct text_check *k, const moe_tensor *expected)
{
    size_t size = 0;
    size_t text_size = 0;
    const char *json = read_whole(k, "tokenizer.json", &size);
    const char *text = read_whole(k, "val.txt", &text_size);
    moem_tokenizer *tokenizer = NULL;
    moem_ids ids = {0};
    if (json == NULL || text == NULL) {
        skip(k, "tokens of the text", "the folder has no tokenizer.json with val.txt");
        return;
    }
    moe_status status = moem_tokenizer_create(json, size, "tokenizer.json", &tokenizer);
    status = status ? status : moem_tokenizer_encode(tokenizer, text, text_size, &ids);
    const size_t want = (size_t)moec_count(expected);
    const int same = status == MOE_OK && ids.count == want &&
                     memcmp(ids.ids, expected->data, want * sizeof *ids.ids) == 0;
    verdict(k, same, "%zu bytes of text are the %zu tokens of the reference%s%s", text_size, want,
            status != MOE_OK ? ": " : "", status != MOE_OK ? moe_last_error() : "");
    moem_ids_free(&ids);
    moem_tokenizer_destroy(tokenizer);
}

static void check_likelihood(struct text_check *k)
{
    moe_tensor ids;
    moe_tensor windows;
    moem_score score = {0};
    if (moe_file_tensor(k->reference, "val.ids", &ids) != MOE_OK || ids.dtype != MOE_I32 ||
        moe_file_tensor(k->reference, "val.window_nll", &windows) != MOE_OK) {
        skip(k, "likelihood of a text", "the reference has no val.ids with val.window_nll");
        return;
    }
    check_tokens(k, &ids);
    const int64_t count = moec_count(&ids);
    const int64_t n = moec_count(&windows);
    const int64_t length = moem_model_config(k->model)->context;
    if (n != (count + length - 1) / length) {
        skip(k, "likelihood of a text", "the reference's windows are not the model's context");
        return;
    }
    double *nll = moec_keep(&k->heap, (size_t)n, sizeof *nll);
    const moe_status status = moem_model_score(
        k->model, (const int32_t *)(const void *)((const char *)ids.data + ids.byte_offset), count,
        length, nll, NULL, &score);
    double sum = 0;
    double worst = 0;
    for (int64_t w = 0; w < n; w++) {
        const int64_t scored = (w < n - 1 ? length : count - w * length) - 1;
        const double expected = moec_value(&windows, w);
        sum += expected;
        worst = scored > 0 ? fmax(worst, fabs(nll[w] - expected) / (double)scored) : worst;
    }
    const double scored = (double)score.scored;
    verdict(k, status == MOE_OK && worst <= NLL_BOUND,
            "perplexity %.4f, reference %.4f; worst window off by %.1e of %.0e nats a token; "
            "%.0f tokens/s%s%s",
            exp(score.nll / scored), exp(sum / scored), worst, NLL_BOUND,
            (double)count / score.seconds, status != MOE_OK ? ": " : "",
            status != MOE_OK ? moe_last_error() : "");
}

// -- All -----------------------------------------------------------------------------------------

static void check_prompt(struct text_check *k, int prompt, const moec_options *options, bool bits)
{
    moe_tensor tensor;
    if (!item(k, prompt, "ids", &tensor) || tensor.dtype != MOE_I32) {
        return;
    }
    const int64_t count = moec_count(&tensor);
    const int32_t *ids =
        (const int32_t *)(const void *)((const char *)tensor.data + tensor.byte_offset);
    float *logits =
        moec_keep(&k->heap, (size_t)(count * moem_model_config(k->model)->vocab), sizeof *logits);
    const moe_status status = run_alone(k->model, ids, count, logits);
    if (status != MOE_OK) {
        verdict(k, 0, "%sprompt %d: %s", k->inputs, prompt, moe_last_error());
        return;
    }
    check_logits(k, prompt, count, logits);
    check_greedy(k, prompt, ids, count);
    if (prompt == 0 && bits) {
        check_bits(k, ids, count, logits, options);
    }
}

static bool has_fixed_point(const moem_model *model)
{
    moe_layer_desc d = moe_layer_desc_default();
    return moe_plan_desc(moem_model_plan(model, 0), &d) == MOE_OK &&
           d.gemm[0].act.spec == MOE_QUANT_I16B32;
}

// The model as options and `fixed_point` open it; `whole`: its bits and a text, too.
static moe_status check_text(struct text_check *k, const moec_options *options, bool fixed_point,
                             bool whole)
{
    const moem_options o = {.device = options->device,
                            .threads = options->threads,
                            .isa = options->isa,
                            .fixed_point = fixed_point};
    k->inputs = fixed_point ? "i16b32: " : "";
    const moe_status status = moem_model_open(k->dir, &o, &k->model);
    const bool there = status == MOE_OK && (!fixed_point || has_fixed_point(k->model));
    for (int prompt = 0; prompt < MAX_PROMPTS && there; prompt++) {
        check_prompt(k, prompt, options, whole);
    }
    if (whole && status == MOE_OK) {
        check_likelihood(k);
    }
    moem_model_close(k->model);
    k->model = NULL;
    return status;
}

int moec_model_text_run(const char *dir, const char *reference, const moec_options *options,
                        FILE *out, moec_counts *counts)
{
    static const moec_options defaults;
    char path[4096];
    options = options != NULL ? options : &defaults;
    struct text_check k = {.dir = dir,
                           .options = options,
                           .program = options->program != NULL ? options->program : "moe",
                           .out = out,
                           .verbose = options->verbose,
                           .counts = counts};
    const bool cpu = options->device == MOE_DEVICE_UNSET || options->device == MOE_DEVICE_CPU;
    (void)snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    moe_status status =
        moe_file_open(reference != NULL ? reference : path, MOE_FILE_DEFAULT, &k.reference);
    status = status ? status : check_text(&k, options, false, !options->quick);
    status = status || !cpu ? status : check_text(&k, options, true, false);
    if (status != MOE_OK) {
        verdict(&k, 0, "%s", moe_last_error());
    }
    moe_file_close(k.reference);
    moec_heap_free(&k.heap);
    return status == MOE_OK ? 0 : -1;
}
