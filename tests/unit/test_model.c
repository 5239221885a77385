// SPDX-License-Identifier: Apache-2.0
// Sessions, generation and likelihood on a small checkpoint: what is refused and leaves no trace,
// and the same ids whatever runs beside.
#define _POSIX_C_SOURCE 200809L
#include <math.h>

#include "unit/small_model.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define MOST         64

static char dir[256];

static moem_model *open_model(const char *where, int64_t max_batch)
{
    const moem_options options = {.threads = 2, .max_batch = max_batch};
    moem_model *model = NULL;
    if (!CHECK(moem_model_open(where, &options, &model) == MOE_OK, "%s", moe_last_error())) {
        exit(test_summary());
    }
    return model;
}

static moem_session *open_session(const moem_model *model, int32_t sequences, int64_t capacity)
{
    moem_session *session = NULL;
    if (!CHECK(moem_session_create(model, sequences, capacity, &session) == MOE_OK, "%s",
               moe_last_error())) {
        exit(test_summary());
    }
    return session;
}

static int32_t some_id(int64_t i)
{
    return (int32_t)((i * i * 7 + i * 3 + 1) % SMALL_VOCAB);
}

// Appends tokens from, from + 1, ... of some_id to a sequence in one call; logits of each.
static moe_status feed(moem_session *session, int32_t sequence, int64_t from, int64_t count,
                       float *logits)
{
    moem_input tokens[MOST];
    for (int64_t t = 0; t < count; t++) {
        tokens[t] = (moem_input){some_id(from + t), sequence, true};
    }
    return moem_forward(session, tokens, count, logits);
}

static void feed_well(moem_session *session, int32_t sequence, int64_t from, int64_t count,
                      float *logits)
{
    CHECK(feed(session, sequence, from, count, logits) == MOE_OK, "%s", moe_last_error());
}

#define ROW (SMALL_VOCAB * sizeof(float))

// -- Sessions -------------------------------------------------------------------------------------

static void test_session_create(const moem_model *model)
{
    moem_session *session = NULL;
    const struct {
        int32_t sequences;
        int64_t capacity;
        moe_status status;
        const char *message;
    } cases[] = {
        {0, 5, MOE_E_ARGUMENT, "0 sequences of 5 tokens"},
        {-1, 5, MOE_E_ARGUMENT, "-1 sequences of 5 tokens"},
        {1, 0, MOE_E_ARGUMENT, "1 sequences of 0 tokens"},
        {1, SMALL_CONTEXT + 1, MOE_E_LIMIT, "49 tokens exceed the model's context of 48"},
        {1, INT64_MAX, MOE_E_LIMIT, "9223372036854775807 tokens exceed the model's context of 48"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const moe_status status =
            moem_session_create(model, cases[i].sequences, cases[i].capacity, &session);
        small_refused(status, cases[i].status, cases[i].message, "moem_session_create");
        CHECK(session == NULL, "case %zu gives a session", i);
    }
}

// Calls that fail between two that do not: nothing that lasts has changed.
static void test_forward_refusals(const moem_model *model)
{
    static const struct {
        moem_input tokens[3];
        int64_t count;
        moe_status status;
        const char *message;
    } cases[] = {
        {{{5, 0, true}, {SMALL_VOCAB, 0, true}}, 2, MOE_E_ARGUMENT, "token 1 has id 40 (0..39)"},
        {{{-1, 1, true}}, 1, MOE_E_ARGUMENT, "token 0 has id -1 (0..39)"},
        {{{5, 0, true}, {5, 2, true}}, 2, MOE_E_ARGUMENT, "sequence 2 (0..1)"},
        {{{5, -1, true}}, 1, MOE_E_ARGUMENT, "sequence -1 (0..1)"},
        {{{5, 0, true}}, 0, MOE_E_ARGUMENT, "0 tokens, must be 1..48"},
        {{{5, 0, true}}, -1, MOE_E_ARGUMENT, "-1 tokens, must be 1..48"},
        {{{5, 0, true}}, 49, MOE_E_ARGUMENT, "49 tokens, must be 1..48"},
        {{{5, 1, true}, {5, 0, true}, {5, 0, true}},
         3,
         MOE_E_LIMIT,
         "sequence 0 is full at 9 tokens"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        moem_session *with = open_session(model, 2, 9);
        moem_session *without = open_session(model, 2, 9);
        float a[8 * SMALL_VOCAB];
        float b[8 * SMALL_VOCAB];
        int64_t load[SMALL_LAYERS * SMALL_EXPERTS];
        feed_well(with, 0, 0, 8, a);
        feed_well(without, 0, 0, 8, b);
        feed_well(with, 1, 3, 2, a);
        feed_well(without, 1, 3, 2, b);
        memcpy(load, moem_session_load(with), sizeof load);
        memset(a, 0x5a, sizeof a);
        memcpy(b, a, sizeof a);
        const moe_status status = moem_forward(with, cases[i].tokens, cases[i].count, a);
        small_refused(status, cases[i].status, cases[i].message, "moem_forward");
        CHECK(memcmp(a, b, sizeof a) == 0, "case %zu: logits were written", i);
        CHECK(moem_session_length(with, 0) == 8 && moem_session_length(with, 1) == 2,
              "case %zu: lengths %d and %d", i, (int)moem_session_length(with, 0),
              (int)moem_session_length(with, 1));
        CHECK(memcmp(load, moem_session_load(with), sizeof load) == 0, "case %zu: load", i);
        feed_well(with, 1, 5, 3, a);
        feed_well(without, 1, 5, 3, b);
        feed_well(with, 0, 8, 1, a + 3 * SMALL_VOCAB); // the last that fits
        feed_well(without, 0, 8, 1, b + 3 * SMALL_VOCAB);
        CHECK(memcmp(a, b, 4 * ROW) == 0, "case %zu: other bits afterwards", i);
        small_refused(feed(with, 0, 9, 1, a), MOE_E_LIMIT, "full at 9 tokens", "a full sequence");
        moem_session_destroy(with);
        moem_session_destroy(without);
    }
}

static void test_reset(const moem_model *model)
{
    moem_session *session = open_session(model, 2, SMALL_CONTEXT);
    static float first[20 * SMALL_VOCAB];
    static float again[20 * SMALL_VOCAB];
    feed_well(session, 0, 0, 20, first);
    feed_well(session, 1, 11, 3, again);
    moem_session_reset(session, 0);
    CHECK(moem_session_length(session, 0) == 0 && moem_session_length(session, 1) == 3,
          "lengths %d and %d", (int)moem_session_length(session, 0),
          (int)moem_session_length(session, 1));
    feed_well(session, 0, 0, 20, again);
    CHECK(memcmp(first, again, sizeof first) == 0, "other bits after a reset");
    const int64_t *load = moem_session_load(session);
    for (int layer = 0; layer < SMALL_LAYERS; layer++) {
        int64_t sum = 0;
        for (int e = 0; e < SMALL_EXPERTS; e++) {
            sum += load[layer * SMALL_EXPERTS + e];
        }
        CHECK(sum == 43 * SMALL_TOP_K, "layer %d: %d choices", layer, (int)sum);
    }
    moem_session_destroy(session);
}

// Sliding layers keep window + max_batch - 1 rows: with steps of 1 and 3 tokens far fewer than the
// sequence, with steps of 48 all of it.
static void test_rings(const moem_model *wide)
{
    static float whole[SMALL_CONTEXT * SMALL_VOCAB];
    static float parts[SMALL_CONTEXT * SMALL_VOCAB];
    static const int64_t batches[] = {1, 2, 3, 5, 17, 44, 45};
    float beside[SMALL_VOCAB];
    moem_session *session = open_session(wide, 1, SMALL_CONTEXT);
    feed_well(session, 0, 0, SMALL_CONTEXT, whole);
    moem_session_destroy(session);
    for (size_t i = 0; i < COUNT(batches); i++) {
        moem_model *model = open_model(dir, batches[i]);
        CHECK(moem_model_max_batch(model) == batches[i], "%d", (int)moem_model_max_batch(model));
        session = open_session(model, 3, SMALL_CONTEXT);
        int64_t step = 1;
        for (int64_t at = 0; at < SMALL_CONTEXT; at += step) {
            // Steps of all sizes up to the largest, beside another sequence.
            step = 1 + (step + 1) % batches[i];
            step = step < SMALL_CONTEXT - at ? step : SMALL_CONTEXT - at;
            if (at % 2 == 0) {
                feed_well(session, 1, at, 1, beside);
            }
            feed_well(session, 2, at, step, parts + at * SMALL_VOCAB);
        }
        CHECK(memcmp(whole, parts, sizeof whole) == 0, "steps of up to %d have other bits",
              (int)batches[i]);
        moem_session_destroy(session);
        moem_model_close(model);
    }
}

// -- Generation -----------------------------------------------------------------------------------

struct heard {
    int32_t ids[8][MOST];
    int64_t count[8];
    int64_t total, stop_after; // 0: never
};

static bool hear(void *self, int32_t request, int32_t id)
{
    struct heard *h = self;
    h->ids[request][h->count[request]++] = id;
    return ++h->total != h->stop_after;
}

// What a request must give as number `stream` of a batch: one token at a time in a session alone.
static int64_t roll(const moem_model *model, const moem_request *r, uint64_t stream, int32_t *out)
{
    const moem_config *c = moem_model_config(model);
    float *logits = calloc((size_t)c->vocab, sizeof *logits);
    void *scratch = malloc(moem_sample_scratch(c->vocab));
    moem_session *session = open_session(model, 1, r->prompt_count + r->max_tokens);
    int64_t made = 0;
    for (int64_t t = 0; made < r->max_tokens; t++) {
        const int32_t id = t < r->prompt_count ? r->prompt[t] : out[made - 1];
        CHECK(moem_forward(session, &(moem_input){id, 0, true}, 1, logits) == MOE_OK, "%s",
              moe_last_error());
        if (t < r->prompt_count - 1) {
            continue;
        }
        const int32_t next =
            moem_sample(&r->sampling, logits, c->vocab, stream, (uint64_t)made, scratch);
        bool ends = false;
        for (int32_t e = 0; e < c->num_eos; e++) {
            ends = ends || next == c->eos[e];
        }
        if (ends) {
            break;
        }
        out[made++] = next;
    }
    moem_session_destroy(session);
    free(logits);
    free(scratch);
    return made;
}

static void check_batch(const char *what, const moem_model *model, const moem_request *requests,
                        int32_t count)
{
    struct heard heard = {.total = 0};
    moem_times times;
    const moem_config *c = moem_model_config(model);
    const int64_t choices = c->layers * moem_model_experts(model);
    int64_t *load = calloc((size_t)choices, sizeof *load);
    const moe_status status = moem_generate(model, requests, count, hear, &heard, load, &times);
    CHECK(status == MOE_OK, "%s: %s", what, moe_last_error());
    int64_t tokens = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t expected[MOST];
        const int64_t n = roll(model, &requests[i], (uint64_t)i, expected);
        CHECK(n == heard.count[i] &&
                  memcmp(expected, heard.ids[i], (size_t)n * sizeof *expected) == 0,
              "%s: request %d gives %d ids, alone %d, or others", what, (int)i, (int)heard.count[i],
              (int)n);
        tokens += requests[i].prompt_count;
    }
    CHECK(times.prompt_tokens == tokens && times.prompt_seconds >= 0 && times.decode_seconds >= 0,
          "%s: %d prompt tokens, expected %d", what, (int)times.prompt_tokens, (int)tokens);
    int64_t sum = 0;
    for (int64_t i = 0; i < choices; i++) {
        sum += load[i];
    }
    CHECK(sum >= tokens * c->layers * moem_model_top_k(model), "%s: %d choices", what, (int)sum);
    free(load);
}

static int32_t prompt[SMALL_CONTEXT];

static void requests_make(moem_request *requests, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        requests[i] = (moem_request){.prompt = prompt + i,
                                     .prompt_count = 1 + (7 * i) % 12,
                                     .max_tokens = 3 + (11 * i) % 20,
                                     .sampling = {i % 2 == 0 ? 0 : 2, 0.9, (uint64_t)i / 3}};
    }
    requests[3].max_tokens = 0;
    requests[4].max_tokens = SMALL_CONTEXT - requests[4].prompt_count; // to the end of the context
}

static void test_batches(void)
{
    static const int64_t batches[] = {1, 3, 7, 512};
    moem_request requests[8];
    requests_make(requests, 8);
    for (size_t i = 0; i < COUNT(batches); i++) {
        moem_model *model = open_model(dir, batches[i]);
        check_batch("batch", model, requests, 8);
        check_batch("alone", model, requests + 4, 1);
        moem_model_close(model);
    }
}

static int64_t generate_one(const moem_model *model, int64_t max_tokens, double temperature,
                            int64_t stop_after, int32_t *ids, moem_times *times)
{
    struct heard heard = {.stop_after = stop_after};
    const moem_request r = {prompt, 5, max_tokens, {temperature, 1, 8}};
    CHECK(moem_generate(model, &r, 1, hear, &heard, NULL, times) == MOE_OK, "%s", moe_last_error());
    memcpy(ids, heard.ids[0], sizeof heard.ids[0]);
    return heard.count[0];
}

// A token that was drawn is declared the end: generation gives what came before it.
static void test_end(const moem_model *model)
{
    int32_t all[MOST];
    int32_t some[MOST];
    moem_times times;
    CHECK(generate_one(model, 20, 2, 0, all, NULL) == 20, "an end without an end-of-text token");
    CHECK(generate_one(model, 0, 2, 0, some, NULL) == 0, "max_tokens 0");
    CHECK(generate_one(model, 1, 2, 0, some, NULL) == 1 && some[0] == all[0], "max_tokens 1");
    CHECK(generate_one(model, 6, 2, 0, some, NULL) == 6 && memcmp(all, some, 6 * 4) == 0, "6");
    CHECK(generate_one(model, 20, 2, 7, some, NULL) == 7 && memcmp(all, some, 7 * 4) == 0,
          "emit's false after 7 tokens does not stop");
    CHECK(generate_one(model, 20, 2, 1, some, NULL) == 1, "emit's false after the first");
    int at = 0; // the latest token that did not come before
    for (int i = 1; i < 20; i++) {
        bool fresh = true;
        for (int j = 0; j < i; j++) {
            fresh = fresh && all[i] != all[j];
        }
        at = fresh ? i : at;
    }
    CHECK(at > 0, "one token 20 times");
    static const char *const forms[] = {"{\"eos_token_id\":%d}", "{\"eos_token_id\":[%d]}"};
    for (int form = 0; form < 2; form++) {
        char patch[64];
        (void)snprintf(patch, sizeof patch, form == 0 ? forms[0] : forms[1], (int)all[at]);
        small_write_config(dir, small_config, patch);
        moem_model *ends = open_model(dir, 0);
        CHECK(generate_one(ends, 20, 2, 0, some, &times) == at &&
                  memcmp(all, some, (size_t)at * sizeof *all) == 0,
              "the end after %d tokens is missed", at);
        CHECK(times.new_tokens == at, "%d new tokens behind the first, expected %d",
              (int)times.new_tokens, at);
        moem_request requests[8];
        requests_make(requests, 8);
        check_batch("batch with ends", ends, requests, 8);
        moem_model_close(ends);
    }
    small_write_config(dir, small_config, "{}");
}

// The second request of a batch stops all of it.
static void test_stop_batch(const moem_model *model)
{
    moem_request requests[8];
    requests_make(requests, 8);
    for (int64_t stop = 1; stop < 20; stop++) {
        struct heard heard = {.stop_after = stop};
        CHECK(moem_generate(model, requests, 8, hear, &heard, NULL, NULL) == MOE_OK, "%s",
              moe_last_error());
        CHECK(heard.total == stop, "%d tokens after a stop at %d", (int)heard.total, (int)stop);
    }
}

static void test_generate_refusals(const moem_model *model)
{
    static const int32_t foreign[] = {1, SMALL_VOCAB, 2};
    const struct {
        moem_request request;
        int32_t count;
        moe_status status;
        const char *message;
    } cases[] = {
        {{prompt, 5, 5, {0, 1, 0}}, 0, MOE_E_ARGUMENT, "0 requests"},
        {{prompt, 0, 5, {0, 1, 0}}, 1, MOE_E_ARGUMENT, "prompt 0 has 0 tokens, and 5"},
        {{prompt, 5, -2, {0, 1, 0}}, 1, MOE_E_ARGUMENT, "prompt 0 has 5 tokens, and -2"},
        {{prompt, 5, 44, {0, 1, 0}},
         1,
         MOE_E_LIMIT,
         "prompt 0 has 5 tokens, and 44 more are wanted: beyond the model's context of 48"},
        {{prompt, 5, INT64_MAX, {0, 1, 0}}, 1, MOE_E_LIMIT, "and 9223372036854775807 more"},
        {{prompt, INT64_MAX, 1, {0, 1, 0}}, 1, MOE_E_LIMIT, "has 9223372036854775807 tokens"},
        {{foreign, 3, 5, {0, 1, 0}}, 1, MOE_E_ARGUMENT, "token 1 has id 40 (0..39)"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct heard heard = {.total = 0};
        const moe_status status =
            moem_generate(model, &cases[i].request, cases[i].count, hear, &heard, NULL, NULL);
        small_refused(status, cases[i].status, cases[i].message, "moem_generate");
        CHECK(heard.total == 0, "case %zu passes on tokens", i);
    }
}

static void test_broken_weights(void)
{
    static const char *const names[] = {"lm_head.weight", "model.norm.weight",
                                        "model.layers.0.mlp.experts.down_proj_bias",
                                        "model.layers.2.self_attn.k_proj.weight"};
    const moem_request r = {prompt, 5, 4, {0, 1, 0}};
    for (size_t i = 0; i < COUNT(names); i++) {
        const small_change broken = {.name = names[i], .nan = true};
        struct heard heard = {.total = 0};
        small_write_tensors(dir, &broken);
        moem_model *model = open_model(dir, 0);
        small_refused(moem_generate(model, &r, 1, hear, &heard, NULL, NULL), MOE_E_VALUE,
                      "at position 5 is not a number", names[i]);
        CHECK(heard.total == 0, "%s: tokens of NaN", names[i]);
        moem_model_close(model);
    }
    // Router logits that are NaN count as -inf (moe/routing.h): the experts get no weight.
    const small_change router = {.name = "model.layers.1.mlp.router.weight", .nan = true};
    small_write_tensors(dir, &router);
    moem_model *model = open_model(dir, 0);
    check_batch("NaN in a router", model, &r, 1);
    moem_model_close(model);
    small_write_tensors(dir, NULL);
}

// -- Likelihood -----------------------------------------------------------------------------------

static void test_score(const moem_model *model)
{
    static float logits[16 * SMALL_VOCAB];
    const int64_t count = 39; // windows of 16, 16 and 7
    double nll[3];
    moem_score score;
    int64_t load[SMALL_LAYERS * SMALL_EXPERTS] = {0};
    load[0] = 1000;
    CHECK(moem_model_score(model, prompt, count, 16, nll, load, &score) == MOE_OK, "%s",
          moe_last_error());
    double whole = 0;
    for (int64_t w = 0; w < 3; w++) {
        const int64_t n = w < 2 ? 16 : 7;
        moem_session *session = open_session(model, 1, 16);
        feed_well(session, 0, 16 * w, n, logits);
        double expected = 0;
        for (int64_t t = 0; t + 1 < n; t++) {
            double sum = 0;
            for (int64_t v = 0; v < SMALL_VOCAB; v++) {
                sum += exp((double)logits[t * SMALL_VOCAB + v]);
            }
            expected += log(sum) - (double)logits[t * SMALL_VOCAB + prompt[16 * w + t + 1]];
        }
        CHECK(fabs(nll[w] - expected) <= 1e-5 * expected, "window %d: %.9g, expected %.9g", (int)w,
              nll[w], expected);
        whole += nll[w];
        moem_session_destroy(session);
    }
    CHECK(score.nll == whole && score.scored == 36 && score.seconds > 0, "%g of %d tokens",
          score.nll, (int)score.scored);
    int64_t sum = -1000;
    for (size_t i = 0; i < COUNT(load); i++) {
        sum += load[i];
    }
    CHECK(sum == count * SMALL_LAYERS * SMALL_TOP_K, "%d choices", (int)sum);
    small_refused(moem_model_score(model, prompt, count, 1, NULL, NULL, &score), MOE_E_ARGUMENT,
                  "39 tokens in windows of 1", "score");
    small_refused(moem_model_score(model, prompt, 1, 16, NULL, NULL, &score), MOE_E_ARGUMENT,
                  "1 tokens in windows of 16", "score");
    small_refused(moem_model_score(model, prompt, 2000, 49, NULL, NULL, &score), MOE_E_LIMIT,
                  "49 tokens exceed the model's context of 48", "score");
}

// A real checkpoint: a batch, one request of it to its own end-of-text token or the limit.
static void test_checkpoint(const char *checkpoint)
{
    moem_model *model = open_model(checkpoint, 8);
    const moem_request requests[] = {{prompt, 3, 6, {0, 1, 0}},
                                     {prompt + 3, 9, 4, {0.8, 0.9, 5}},
                                     {prompt + 1, 2, 5, {1.2, 1, 1}}};
    check_batch("checkpoint", model, requests, 3);
    moem_model_close(model);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        (void)fprintf(stderr, "usage: test_model CHECKPOINT\n");
        return 2;
    }
    for (int64_t i = 0; i < SMALL_CONTEXT; i++) {
        prompt[i] = some_id(i);
    }
    small_folder(dir, sizeof dir);
    small_write_config(dir, small_config, "{}");
    small_write_tensors(dir, NULL);
    moem_model *model = open_model(dir, SMALL_CONTEXT);
    test_session_create(model);
    test_forward_refusals(model);
    test_reset(model);
    test_rings(model);
    test_batches();
    test_end(model);
    test_stop_batch(model);
    test_generate_refusals(model);
    test_score(model);
    moem_model_close(model);
    test_broken_weights();
    test_checkpoint(argv[1]);
    small_remove(dir);
    return test_summary();
}
