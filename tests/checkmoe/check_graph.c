// SPDX-License-Identifier: Apache-2.0
// A run in a device graph: captured as the first thing that a context does, then replayed with
// other inputs in the same buffers. Each replay must leave what a run of these inputs leaves, byte
// for byte, so nothing of a run may be decided on the host from what lies in its inputs.
#include <stdlib.h>
#include <string.h>

#include "api/plan_internal.h"
#include "checkmoe/check_layer.h"

#define CASES 120

static const moec_batch_style style = {true, 0xFF, 1};

/// What a replay finds in the buffers.
typedef enum contents {
    CAPTURED,   // as when it was captured
    OTHERS,     // other tokens
    ONE_EXPERT, // a few experts get all tokens, the others none
    HALF_VALID, // num_valid is half of the tokens
    NONE_VALID, // or 0
    REVERSED,
    AGAIN, // what was there first
    NUM_CONTENTS
} contents;

static const char *const names[NUM_CONTENTS] = {
    "the first tokens",         "other tokens",   "all tokens to the same experts",
    "half of the tokens valid", "no token valid", "the tokens in reverse",
    "the first tokens again"};

/// A run that is being captured.
typedef struct capture {
    const moec_made *made;
    moec_batch batch;
    moec_twins twins;
    moe_run_args args;
    void *workspace;
    void *graph;
} capture;

static moe_status enqueue(void *arg, void *stream)
{
    const capture *g = arg;
    return moe_run(g->made->plan, g->made->weights, &g->args, g->workspace,
                   g->batch.workspace_bytes, stream);
}

// The items of a replay; a plan of placed rows wants them by expert. Returns their number; -1: the
// case has no such contents.
static int32_t draw_items(const moec_layer_case *c, contents what, moec_rng *rng, int32_t *items)
{
    const bool placed = c->desc.routing == MOE_ROUTING_PLACED;
    const bool valid = what == HALF_VALID || what == NONE_VALID;
    if ((valid && !c->use_valid) || (what == REVERSED && placed)) {
        return -1;
    }
    const int32_t one = c->items > 0 ? (int32_t)moec_below(rng, c->items) : 0;
    for (int32_t i = 0; i < c->items; i++) {
        switch (what) {
        case OTHERS:
            items[i] = i + c->items;
            break;
        case ONE_EXPERT:
            items[i] = one;
            break;
        case HALF_VALID:
            items[i] = moec_below(rng, 2) == 0 ? i : i + c->items;
            break;
        case REVERSED:
            items[i] = c->items - 1 - i;
            break;
        default:
            items[i] = i;
            break;
        }
    }
    return c->items;
}

// Rows of the fullest expert alone: the others get none. Room for rows stays the same.
static int32_t keep_fullest(const moec_layer_case *c, int32_t *items)
{
    int32_t best = 0;
    int32_t best_count = 0;
    for (int32_t i = 0; i < c->items; i++) {
        int32_t count = 0;
        for (int32_t j = 0; j < c->items; j++) {
            count += c->expert[j] == c->expert[i];
        }
        if (count > best_count) {
            best = c->expert[i];
            best_count = count;
        }
    }
    int32_t n = 0;
    for (int32_t i = 0; i < c->items; i++) {
        if (c->expert[i] == best) {
            items[n++] = i;
        }
    }
    return n;
}

static bool build(const moec_layer_case *c, contents what, moec_rng *rng, int32_t *items,
                  moec_batch *batch)
{
    int32_t n = draw_items(c, what, rng, items);
    if (n >= 0 && what == ONE_EXPERT && c->desc.x_layout == MOE_X_BATCHED) {
        n = keep_fullest(c, items);
    }
    if (n < 0 || !moec_batch_build(batch, c, items, n, &style)) {
        return false;
    }
    if (what == HALF_VALID || what == NONE_VALID) {
        const int32_t valid = what == HALF_VALID ? n / 2 : 0;
        memcpy(batch->num_valid.data, &valid, sizeof valid);
    }
    return true;
}

static moe_status begin(capture *g, const moec_made *made)
{
    const moe_context *ctx = made->plan->ctx;
    const moei_exec exec = moei_exec_make(ctx, NULL);
    char wrong[200] = "";
    g->made = made;
    MOE_TRY(moec_batch_up(&g->batch, &g->twins, made->plan, &g->args, &g->workspace));
    MOE_TRY(ctx->backend->graph_capture(&exec, enqueue, g, &g->graph));
    MOE_REQUIRE(moec_twins_down(&g->twins, wrong, sizeof wrong), MOE_E_DEVICE, "%s", wrong);
    return MOE_OK;
}

static void end(capture *g)
{
    if (g->graph != NULL) {
        const moe_context *ctx = g->made->plan->ctx;
        const moei_exec exec = moei_exec_make(ctx, NULL);
        ctx->backend->graph_release(&exec, g->graph);
    }
    moec_twins_end(&g->twins);
    moec_batch_free(&g->batch);
}

static moe_status replay(capture *g)
{
    const moe_context *ctx = g->made->plan->ctx;
    const moei_exec exec = moei_exec_make(ctx, NULL);
    char wrong[200] = "";
    MOE_TRY(moec_twins_up(&g->twins, style.poison));
    MOE_TRY(ctx->backend->graph_run(&exec, g->graph));
    MOE_REQUIRE(moec_twins_down(&g->twins, wrong, sizeof wrong), MOE_E_DEVICE, "%s", wrong);
    return MOE_OK;
}

static void compare(moec_layer_checks *k, const moec_layer_case *c, capture *g, contents what,
                    moec_batch *batch)
{
    char text[300];
    const char *wrong = "";
    if (!moec_batch_take(&g->batch, batch)) {
        return; // rows by expert: the captured run has no room for these
    }
    moe_status status = replay(g);
    (void)snprintf(text, sizeof text, "replay, %s: %s", names[what], moe_last_error());
    if (!moec_layer_check(k, c, status == MOE_OK, text)) {
        return;
    }
    status = moec_batch_execute(batch, g->made->plan, g->made->weights);
    (void)snprintf(text, sizeof text, "run, %s: %s", names[what], moe_last_error());
    if (!moec_layer_check(k, c, status == MOE_OK, text)) {
        return;
    }
    const bool same = moec_batch_same_outputs(&g->batch, batch, &wrong);
    (void)snprintf(text, sizeof text, "a replayed graph differs from a run, %s: %s", names[what],
                   wrong);
    moec_layer_check(k, c, same, text);
}

static void check_made(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                       moec_rng *rng)
{
    capture g = {0};
    char text[300];
    const char *wrong = "";
    int32_t *items = calloc(2 * (size_t)c->items + 1, sizeof *items);
    int32_t *first = items != NULL ? items + c->items : NULL;
    if (!moec_layer_check(k, c, items != NULL && build(c, CAPTURED, rng, first, &g.batch),
                          "memory is short")) {
        free(items);
        return;
    }
    const moe_status status = begin(&g, made);
    (void)snprintf(text, sizeof text, "capturing the first run: %s", moe_last_error());
    bool ok = moec_layer_check(k, c, status == MOE_OK, text);
    for (contents what = CAPTURED; ok && what < NUM_CONTENTS; what++) {
        moec_batch batch = {0};
        if (build(c, what, rng, items, &batch)) {
            if (what == CAPTURED) {
                ok = moec_layer_check(k, c, moec_batch_same_outputs(&g.batch, &batch, &wrong),
                                      "capturing a run ran it");
            }
            compare(k, c, &g, what, &batch);
        }
        moec_batch_free(&batch);
    }
    end(&g);
    free(items);
}

static void check_case(moec_layer_checks *k, int number)
{
    moec_layer_case c;
    moec_made made;
    moe_context *ctx = NULL;
    char text[300] = "";
    moec_rng rng = {k->run.options->seed * 1000003u + (uint64_t)number};
    if (!moec_layer_case_make(k, &c, number)) {
        moec_layer_free(&c);
        return;
    }
    (void)snprintf(c.name, sizeof c.name, "graph-%d", number);
    c.use_valid = c.desc.x_layout == MOE_X_TOKENS && (c.use_valid || number % 2 == 0);
    k->cases++;
    bool ok = moec_context(k->run.options, &ctx) == MOE_OK && moec_make(ctx, &c, &rng, &made);
    if (!ok) {
        (void)snprintf(text, sizeof text, "refused: %s", moe_last_error());
    }
    if (moec_layer_check(k, &c, ok, text)) {
        check_made(k, &c, &made, &rng);
        moec_layer_fetch(k, &c, &made);
        moec_unmake(&made);
    }
    moec_twins_release(ctx);
    moe_context_destroy(ctx);
    moec_layer_free(&c);
}

static void walk(moec_layer_checks *k, bool graphs)
{
    const moec_options *o = k->run.options;
    for (int number = 0; number < CASES; number++) {
        char name[32];
        (void)snprintf(name, sizeof name, "graph-%d", number);
        if (!moec_glob(o->kernel, name)) {
            continue;
        }
        k->run.counts->selected++;
        if (!graphs) {
            moec_skip(&k->run, "graph-*: backend %s has no device graphs",
                      k->run.ctx->backend->name);
            return;
        }
        if (o->list) {
            (void)fprintf(k->run.out, "%s\n", name);
        } else {
            check_case(k, number);
        }
    }
}

int moec_graph_run(const moec_options *options, FILE *out, moec_counts *counts)
{
    moec_options resolved = *options;
    resolved.seed = options->seed != 0 ? options->seed : 1;
    moec_layer_checks k = {.run = {.options = &resolved, .out = out, .counts = counts}};
    const unsigned long passed = counts->passed;
    const unsigned long failed = counts->failed;
    moe_context *ctx = NULL;
    const bool ok =
        moec_context(&resolved, &ctx) == MOE_OK && moe_context_create(NULL, &k.host) == MOE_OK;
    if (ok) {
        k.run.ctx = ctx;
        const bool graphs = ctx->backend->graph_capture != NULL;
        // A CPU has none, and nobody expects any.
        if (graphs || (!options->list &&
                       (ctx->backend->device != MOE_DEVICE_CPU || options->kernel != NULL))) {
            walk(&k, graphs);
        }
    } else {
        (void)fprintf(out, "%s\n", moe_last_error());
    }
    moe_context_destroy(k.host);
    moe_context_destroy(ctx);
    if (k.cases > 0) {
        (void)fprintf(out, "%-44s %lu passed, %lu failed, %lu cases\n", "graph",
                      counts->passed - passed, counts->failed - failed, k.cases);
    }
    return ok ? 0 : -1;
}
