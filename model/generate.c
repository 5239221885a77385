// SPDX-License-Identifier: Apache-2.0
// Prompts in, tokens out: all prompts are read in steps of up to max_batch tokens, then every
// unfinished sequence gets one token per step. And the likelihood of a given text.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

/// A generation under way.
struct batch {
    const moem_model *model;
    const moem_request *requests;
    int32_t count;
    moem_session *session;
    moem_input *tokens; ///< [max_batch]
    float *logits;      ///< [count, vocab]
    int32_t *next;      ///< [count], the token drawn last; -1: the request is done
    int64_t *written;   ///< [count], tokens passed on
    void *scratch;      ///< of moem_sample
    moem_emit_fn emit;
    void *self;
    bool stopped;
    int64_t drawn;
};

static moe_status check(const moem_model *model, const moem_request *requests, int32_t count,
                        int64_t *capacity)
{
    const int64_t context = moem_model_config(model)->context;
    *capacity = 1;
    if (count < 1) {
        return moe_fail(MOE_E_ARGUMENT, "moem_generate: %d requests", (int)count);
    }
    for (int32_t i = 0; i < count; i++) {
        const moem_request *r = &requests[i];
        if (r->prompt_count < 1 || r->max_tokens < 0) {
            return moe_fail(MOE_E_ARGUMENT,
                            "prompt %d has %" PRId64 " tokens, and %" PRId64 " are to follow; at "
                            "least 1 and 0",
                            (int)i, r->prompt_count, r->max_tokens);
        }
        const moem_sampling *s = &r->sampling;
        if (!(s->temperature >= 0) || (s->temperature > 0 && !(s->top_p > 0 && s->top_p <= 1))) {
            return moe_fail(MOE_E_ARGUMENT,
                            "prompt %d is to be drawn at temperature %g from top_p %g: at least 0, "
                            "and above 0 up to 1",
                            (int)i, s->temperature, s->top_p);
        }
        if (r->prompt_count > context || r->max_tokens > context - r->prompt_count) {
            return moe_fail(MOE_E_LIMIT,
                            "prompt %d has %" PRId64 " tokens, and %" PRId64
                            " more are wanted: beyond the model's context of %" PRId64,
                            (int)i, r->prompt_count, r->max_tokens, context);
        }
        const int64_t whole = r->prompt_count + r->max_tokens;
        *capacity = whole > *capacity ? whole : *capacity;
    }
    return MOE_OK;
}

// The first logit that is not finite; `count` if all are. Nearly always they are, which is asked
// first, without a branch.
static int64_t first_broken(const float *logits, int64_t count)
{
    int all = 1;
    int64_t v = 0;
    for (int64_t i = 0; i < count; i++) {
        all &= isfinite(logits[i]) != 0;
    }
    if (all != 0) {
        return count;
    }
    while (isfinite(logits[v])) {
        v++;
    }
    return v;
}

// Draws a request's next token from its logits, and passes it on.
static moe_status draw(struct batch *b, int32_t i, const float *logits)
{
    const moem_config *c = moem_model_config(b->model);
    const moem_request *r = &b->requests[i];
    b->next[i] = -1;
    if (b->written[i] == r->max_tokens || b->stopped) {
        return MOE_OK;
    }
    const int64_t broken = first_broken(logits, c->vocab);
    if (broken < c->vocab) {
        return moe_fail(MOE_E_VALUE,
                        "the logit of token %" PRId64 " at position %" PRId64
                        " is not a number: the weights or a kernel are broken",
                        broken, r->prompt_count + b->written[i]);
    }
    const int32_t id = moem_sample(&r->sampling, logits, c->vocab, (uint64_t)i,
                                   (uint64_t)b->written[i], b->scratch);
    b->drawn++;
    for (int32_t e = 0; e < c->num_eos; e++) {
        if (id == c->eos[e]) {
            return MOE_OK;
        }
    }
    b->stopped = !b->emit(b->self, i, id);
    if (++b->written[i] < r->max_tokens && !b->stopped) {
        b->next[i] = id;
    }
    return MOE_OK;
}

// Runs the tokens gathered so far; those that want logits get their request's next token.
static moe_status step(struct batch *b, int64_t count)
{
    moe_status status = moem_forward(b->session, b->tokens, count, b->logits);
    int64_t row = 0;
    for (int64_t t = 0; status == MOE_OK && t < count; t++) {
        if (b->tokens[t].want_logits) {
            status = draw(b, b->tokens[t].sequence,
                          b->logits + row++ * moem_model_config(b->model)->vocab);
        }
    }
    return status;
}

static moe_status read_prompts(struct batch *b)
{
    const int64_t most = moem_model_max_batch(b->model);
    int64_t count = 0;
    moe_status status = MOE_OK;
    for (int32_t i = 0; i < b->count; i++) {
        const moem_request *r = &b->requests[i];
        for (int64_t p = 0; p < r->prompt_count && !b->stopped; p++) {
            const bool last = p == r->prompt_count - 1;
            b->tokens[count++] = (moem_input){r->prompt[p], i, last};
            if (count == most || (last && i == b->count - 1)) {
                status = step(b, count);
                count = 0;
            }
            if (status != MOE_OK) {
                return status;
            }
        }
    }
    return status;
}

static moe_status decode(struct batch *b)
{
    const int64_t most = moem_model_max_batch(b->model);
    moe_status status = MOE_OK;
    for (bool busy = true; busy && status == MOE_OK && !b->stopped;) {
        int64_t count = 0;
        busy = false;
        for (int32_t i = 0; i < b->count && status == MOE_OK && !b->stopped; i++) {
            if (b->next[i] >= 0) {
                busy = true;
                b->tokens[count++] = (moem_input){b->next[i], i, true};
            }
            if (count == most || (count > 0 && i == b->count - 1)) {
                status = step(b, count);
                count = 0;
            }
        }
    }
    return status;
}

static void add_load(const moem_model *model, const moem_session *session, int64_t *load)
{
    const int64_t n = moem_model_config(model)->layers * moem_model_experts(model);
    for (int64_t i = 0; load != NULL && i < n; i++) {
        load[i] += moem_session_load(session)[i];
    }
}

moe_status moem_generate(const moem_model *model, const moem_request *requests, int32_t count,
                         moem_emit_fn emit, void *self, int64_t *load, moem_times *times)
{
    struct batch b = {
        .model = model, .requests = requests, .count = count, .emit = emit, .self = self};
    int64_t capacity = 0;
    moem_times t = {0};
    moe_status status = check(model, requests, count, &capacity);
    status = status ? status : moem_session_create(model, count, capacity, &b.session);
    if (status != MOE_OK) {
        return status;
    }
    const size_t vocab = (size_t)moem_model_config(model)->vocab;
    b.tokens = calloc((size_t)moem_model_max_batch(model), sizeof *b.tokens);
    b.logits = calloc((size_t)count * vocab, sizeof *b.logits);
    b.next = calloc((size_t)count, sizeof *b.next);
    b.written = calloc((size_t)count, sizeof *b.written);
    b.scratch = malloc(moem_sample_scratch((int64_t)vocab));
    if (b.tokens == NULL || b.logits == NULL || b.next == NULL || b.written == NULL ||
        b.scratch == NULL) {
        status = moe_fail(MOE_E_NO_MEMORY, "no memory for %d prompts", (int)count);
    }
    const double start = moem_now();
    status = status ? status : read_prompts(&b);
    const double read = moem_now();
    const int64_t first = b.drawn; // tokens that the prompts' own steps gave
    status = status ? status : decode(&b);
    t.prompt_seconds = read - start;
    t.decode_seconds = moem_now() - read;
    t.new_tokens = b.drawn - first;
    for (int32_t i = 0; i < count; i++) {
        t.prompt_tokens += requests[i].prompt_count;
    }
    if (times != NULL) {
        *times = t;
    }
    add_load(model, b.session, load);
    moem_session_destroy(b.session);
    free(b.tokens);
    free(b.logits);
    free(b.next);
    free(b.written);
    free(b.scratch);
    return status;
}

// -- Likelihood ----------------------------------------------------------------------------------

// -log softmax(logits)[id], the sum in double.
static double surprise(const float *logits, int64_t vocab, int32_t id)
{
    float most = logits[0];
    double sum = 0;
    for (int64_t v = 1; v < vocab; v++) {
        most = logits[v] > most ? logits[v] : most;
    }
    for (int64_t v = 0; v < vocab; v++) {
        sum += (double)expf(logits[v] - most);
    }
    return log(sum) - ((double)logits[id] - (double)most);
}

static moe_status score_window(moem_session *session, const moem_model *model, const int32_t *ids,
                               int64_t count, moem_input *tokens, float *logits, double *nll)
{
    const int64_t most = moem_model_max_batch(model);
    const int64_t vocab = moem_model_config(model)->vocab;
    *nll = 0;
    moem_session_reset(session, 0);
    for (int64_t start = 0; start < count; start += most) {
        const int64_t n = count - start < most ? count - start : most;
        for (int64_t t = 0; t < n; t++) {
            tokens[t] = (moem_input){ids[start + t], 0, start + t + 1 < count};
        }
        const moe_status status = moem_forward(session, tokens, n, logits);
        if (status != MOE_OK) {
            return status;
        }
        for (int64_t t = 0; t < n && start + t + 1 < count; t++) {
            *nll += surprise(logits + t * vocab, vocab, ids[start + t + 1]);
        }
    }
    return MOE_OK;
}

// A step reads its own tokens' ids alone, and the token behind it is scored from its logits.
static moe_status check_ids(const moem_model *model, const int32_t *ids, int64_t count)
{
    const int64_t vocab = moem_model_config(model)->vocab;
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= vocab) {
            return moe_fail(MOE_E_ARGUMENT,
                            "moem_model_score: token %" PRId64 " has id %d (0..%" PRId64 ")", i,
                            (int)ids[i], vocab - 1);
        }
    }
    return MOE_OK;
}

moe_status moem_model_score(const moem_model *model, const int32_t *ids, int64_t count,
                            int64_t window, double *window_nll, int64_t *load, moem_score *out)
{
    const double begin = moem_now();
    const size_t most = (size_t)moem_model_max_batch(model);
    moem_session *session = NULL;
    if (window < 2 || count < 2) {
        return moe_fail(MOE_E_ARGUMENT,
                        "moem_model_score: %" PRId64 " tokens in windows of %" PRId64
                        ", at least 2 and 2",
                        count, window);
    }
    moe_status status = moem_session_create(model, 1, window < count ? window : count, &session);
    status = status ? status : check_ids(model, ids, count);
    if (status != MOE_OK) {
        moem_session_destroy(session);
        return status;
    }
    memset(out, 0, sizeof *out);
    moem_input *tokens = calloc(most, sizeof *tokens);
    float *logits = calloc(most * (size_t)moem_model_config(model)->vocab, sizeof *logits);
    if (tokens == NULL || logits == NULL) {
        status = moe_fail(MOE_E_NO_MEMORY, "moem_model_score: no memory for the logits");
    }
    for (int64_t start = 0; status == MOE_OK && start < count; start += window) {
        const int64_t n = count - start < window ? count - start : window;
        double nll = 0;
        status = score_window(session, model, ids + start, n, tokens, logits, &nll);
        out->nll += nll;
        out->scored += n - 1;
        if (window_nll != NULL) {
            window_nll[start / window] = nll;
        }
    }
    add_load(model, session, load);
    out->seconds = moem_now() - begin;
    moem_session_destroy(session);
    free(tokens);
    free(logits);
    return status;
}
