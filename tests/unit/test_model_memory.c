// SPDX-License-Identifier: Apache-2.0
// Allocations that fail, one after another, while a model is opened, a session made, a text written
// or scored: each ends in NO_MEMORY with nothing given and nothing lost, and what was open before
// goes on as if nothing had happened. The linker sends the allocations of this program, of
// moe_model and of the static libraries here; those of the JSON library are its own.
#define _POSIX_C_SOURCE 200809L
#include <stdatomic.h>

#include "unit/small_model.h"

#define TOKENS 6

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
char *__wrap_strdup(const char *text);

static atomic_long until_failure = -1; // below 0: none fails

static bool fails(void)
{
    return atomic_load(&until_failure) >= 0 && atomic_fetch_sub(&until_failure, 1) == 0;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    return fails() ? NULL : __real_realloc(memory, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(align, bytes);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

struct state {
    const char *dir;
    moem_model *model;  // open before, NULL while opening is tried
    moem_model *opened; // what a call gave
    moem_session *session;
    int32_t ids[TOKENS];
    int32_t heard;
    moem_score score;
};

static bool hear(void *self, int32_t request, int32_t id)
{
    struct state *s = self;
    (void)request;
    s->ids[s->heard++] = id;
    return true;
}

static moe_status open_model(struct state *s)
{
    return moem_model_open(s->dir, &(moem_options){.threads = 2, .max_batch = 4}, &s->opened);
}

static moe_status create_session(struct state *s)
{
    return moem_session_create(s->model, 2, SMALL_CONTEXT, &s->session);
}

static moe_status generate(struct state *s)
{
    static const int32_t prompt[] = {3, 1, 4, 1, 5};
    const moem_request request = {prompt, 5, TOKENS, {1.5, 0.9, 2}};
    s->heard = 0;
    return moem_generate(s->model, &request, 1, hear, s, NULL, NULL);
}

static moe_status score(struct state *s)
{
    static const int32_t text[] = {3, 1, 4, 1, 5, 9, 2, 6};
    return moem_model_score(s->model, text, 8, 5, NULL, NULL, &s->score);
}

// Lets the first allocation fail, then the second and so on, until the call succeeds.
static void exhaust(const char *name, struct state *s, moe_status (*call)(struct state *))
{
    moe_status status = MOE_E_NO_MEMORY;
    long n = -1;
    while (status != MOE_OK && n < 100000) {
        atomic_store(&until_failure, ++n);
        status = call(s);
        const bool used = atomic_exchange(&until_failure, -1) < 0;
        if (status == MOE_OK) {
            CHECK(!used, "%s: allocation %ld fails and is not missed", name, n);
            break;
        }
        if (!CHECK(status == MOE_E_NO_MEMORY && moe_last_error()[0] != '\0',
                   "%s, allocation %ld: status %d, \"%s\"", name, n, (int)status,
                   moe_last_error())) {
            break;
        }
        CHECK(s->opened == NULL && s->session == NULL && s->heard == 0,
              "%s, allocation %ld: something is given", name, n);
    }
    CHECK(status == MOE_OK && n > 0, "%s: %ld allocations", name, n);
    (void)printf("%s: %ld allocations, each failed once\n", name, n);
}

int main(void)
{
    char dir[256];
    struct state s = {.dir = dir};
    small_folder(dir, sizeof dir);
    small_write_config(dir, small_config, "{\"eos_token_id\":39}");
    small_text(dir, "generation_config.json", "{\"eos_token_id\":[38,39]}");
    small_write_tensors(dir, NULL);
    exhaust("open", &s, open_model);
    s.model = s.opened;
    s.opened = NULL;
    if (s.model != NULL) {
        exhaust("session", &s, create_session);
        moem_session_destroy(s.session);
        s.session = NULL;
        CHECK(generate(&s) == MOE_OK, "%s", moe_last_error());
        int32_t before[TOKENS];
        const int32_t count = s.heard;
        memcpy(before, s.ids, sizeof before);
        exhaust("generate", &s, generate);
        CHECK(s.heard == count && memcmp(before, s.ids, (size_t)count * sizeof *before) == 0,
              "other ids after failures");
        s.heard = 0;
        CHECK(score(&s) == MOE_OK, "%s", moe_last_error());
        const double nll = s.score.nll;
        exhaust("score", &s, score);
        CHECK(s.score.nll == nll && nll > 0, "%g after failures, before %g", s.score.nll, nll);
    }
    moem_model_close(s.model);
    small_remove(dir);
    return test_summary();
}
