// SPDX-License-Identifier: Apache-2.0
// Cases of a device as a whole: "memory", which it refuses and goes on; "big", weights beyond
// 32-bit offsets; and, where it is asked for by that name, "fault", after which the process has no
// device.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkmoe/check_big.h"
#include "checkmoe/check_layer.h"

static const moec_batch_style style = {true, 0xFF, 1};

// Whether the options ask for a case by its own name.
static bool is_asked(const moec_options *o, const char *name)
{
    return o->kernel != NULL && strcmp(o->kernel, name) == 0;
}

// The first layer case of tokens that go to experts, under another name.
static bool make_case(moec_layer_checks *k, moec_layer_case *c, const char *name)
{
    for (int number = MOEC_LAYER_EDGES;; number++) {
        if (!moec_layer_case_make(k, c, number)) {
            moec_layer_free(c);
            return false;
        }
        if (c->desc.x_layout == MOE_X_TOKENS && c->items > 1 && !c->all_absent) {
            (void)snprintf(c->name, sizeof c->name, "%s", name);
            return true;
        }
        moec_layer_free(c);
    }
}

/// A case with its plan and weights.
typedef struct ready {
    moec_layer_case c;
    moec_made made;
    int32_t *items;
} ready;

static void unmake(ready *r)
{
    moec_unmake(&r->made);
    moec_layer_free(&r->c);
    free(r->items);
}

static bool make(moec_layer_checks *k, const char *name, ready *r)
{
    char text[300] = "";
    moec_rng rng = {k->run.options->seed};
    memset(r, 0, sizeof *r);
    if (!make_case(k, &r->c, name)) {
        return false;
    }
    r->items = calloc((size_t)r->c.items, sizeof *r->items);
    for (int32_t i = 0; r->items != NULL && i < r->c.items; i++) {
        r->items[i] = i;
    }
    const bool ok = r->items != NULL && moec_make(k->ctx[MOEC_CTX_MAIN], &r->c, &rng, &r->made);
    if (!ok) {
        (void)snprintf(text, sizeof text, "refused: %s", moe_last_error());
    }
    if (!moec_layer_check(k, &r->c, ok, text)) {
        unmake(r);
        return false;
    }
    return true;
}

// ---- memory -------------------------------------------------------------------------------------

// More than any device has is NO_MEMORY, and the next run gives what the one before gave.
static void check_memory(moec_layer_checks *k)
{
    static const int shifts[] = {44, 60};
    const moe_context *ctx = k->ctx[MOEC_CTX_MAIN];
    ready r;
    char text[300];
    if (!make(k, "memory", &r)) {
        return;
    }
    unsigned char *first =
        moec_layer_results(k, &r.c, &r.made, r.items, r.c.items, &style, "a run");
    for (size_t i = 0; first != NULL && i < sizeof shifts / sizeof shifts[0]; i++) {
        void *memory = NULL;
        const size_t bytes = (size_t)1 << shifts[i];
        const moe_status status = moe_memory_alloc(ctx, bytes, &memory);
        (void)snprintf(text, sizeof text, "%zu bytes of memory: %s: %s", bytes,
                       moe_status_name(status), status != MOE_OK ? moe_last_error() : "");
        moec_layer_check(k, &r.c, status == MOE_E_NO_MEMORY, text);
        moe_memory_free(ctx, status == MOE_OK ? memory : NULL, bytes);
        unsigned char *again = moec_layer_results(k, &r.c, &r.made, r.items, r.c.items, &style,
                                                  "a run after memory was refused");
        if (again != NULL) {
            moec_layer_same(k, &r.c, first, again, r.c.items,
                            "memory that was refused changes the next run");
        }
        free(again);
    }
    free(first);
    unmake(&r);
}

// ---- big ----------------------------------------------------------------------------------------

static void check_big(moec_layer_checks *k)
{
    const moec_options *o = k->run.options;
    moe_context *ctx = k->ctx[MOEC_CTX_MAIN];
    const double bytes = (double)moec_big_bytes(&moec_big_full);
    if (ctx->backend->host_memory) {
        const double room =
            (double)sysconf(_SC_AVPHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) - 0.5e9;
        if (!is_asked(o, "big")) {
            moec_skip(&k->run, "big: %.1f GB of weights in host memory; --kernel big runs it",
                      bytes * 1e-9);
            return;
        }
        if (room < bytes) {
            moec_skip(&k->run, "big: %.1f GB of weights, %.1f GB of host memory are free",
                      bytes * 1e-9, room * 1e-9);
            return;
        }
    }
    if (o->quick && !is_asked(o, "big")) {
        moec_skip(&k->run, "big: %.1f GB of weights; not with --quick", bytes * 1e-9);
    } else if (moec_big_check(&k->run, ctx, &moec_big_full) != MOE_OK) {
        moec_skip(&k->run, "big: %s", moe_last_error());
    }
}

// ---- fault --------------------------------------------------------------------------------------

// A failure is the device's, in words.
static void check_lost(moec_layer_checks *k, const moec_layer_case *c, moe_status status,
                       const char *what)
{
    char text[400];
    (void)snprintf(text, sizeof text, "after a fault, %s: %s: %s", what, moe_status_name(status),
                   status != MOE_OK ? moe_last_error() : "");
    moec_layer_check(k, c, status == MOE_E_DEVICE && moe_last_error()[0] != '\0', text);
}

static void check_alloc(moec_layer_checks *k, const moec_layer_case *c, const moe_context *ctx,
                        const char *what)
{
    void *memory = NULL;
    const moe_status status = moe_memory_alloc(ctx, 4096, &memory);
    check_lost(k, c, status, what);
    moe_memory_free(ctx, status == MOE_OK ? memory : NULL, 4096);
}

// Every call after a kernel has read what it may not.
static void check_calls(moec_layer_checks *k, const ready *r, moec_batch *batch,
                        const moec_twins *twins, const moe_run_args *args, void *workspace)
{
    moe_context *ctx = k->ctx[MOEC_CTX_MAIN];
    char bytes[16] = {0};
    for (int again = 0; again < 2; again++) {
        check_lost(
            k, &r->c,
            moe_memory_copy(ctx, bytes, twins->memory, sizeof bytes, MOE_COPY_FROM_DEVICE, NULL),
            "a copy to the host");
        check_lost(
            k, &r->c,
            moe_memory_copy(ctx, twins->memory, bytes, sizeof bytes, MOE_COPY_TO_DEVICE, NULL),
            "a copy to the device");
        check_alloc(k, &r->c, ctx, "memory");
        check_lost(
            k, &r->c,
            moe_run(r->made.plan, r->made.weights, args, workspace, batch->workspace_bytes, NULL),
            "a run");
    }
    moe_context *other = NULL;
    const moe_status status = moec_context(k->run.options, &other);
    if (status == MOE_OK) {
        check_alloc(k, &r->c, other, "memory of a new context");
    } else {
        moec_layer_check(k, &r->c, status == MOE_E_DEVICE || status == MOE_E_UNSUPPORTED,
                         "after a fault, a new context fails otherwise");
    }
    moe_context_destroy(other);
}

static void check_fault(moec_layer_checks *k)
{
    ready r;
    moec_batch batch = {0};
    moec_twins twins = {0};
    moe_run_args args;
    void *workspace = NULL;
    if (!make(k, "fault", &r)) {
        return;
    }
    moe_status status = moec_batch_build(&batch, &r.c, r.items, r.c.items, &style)
                            ? moec_batch_up(&batch, &twins, r.made.plan, &args, &workspace)
                            : MOE_E_NO_MEMORY;
    if (moec_layer_check(k, &r.c, status == MOE_OK, "the case could not be built")) {
        moe_run_args wild = args;
        wild.x.data = (void *)(uintptr_t)MOEC_FAULT_ADDRESS;
        // It may end before the kernel does.
        status =
            moe_run(r.made.plan, r.made.weights, &wild, workspace, batch.workspace_bytes, NULL);
        if (status != MOE_OK) {
            check_lost(k, &r.c, status, "the run itself");
        }
        check_calls(k, &r, &batch, &twins, &args, workspace);
    }
    moec_twins_end(&twins);
    moec_batch_free(&batch);
    unmake(&r);
}

// ---- all ----------------------------------------------------------------------------------------

static void walk(moec_layer_checks *k)
{
    static const struct {
        const char *name;
        bool host;  // on host memory, too
        bool asked; // by its name alone
        void (*check)(moec_layer_checks *k);
    } cases[] = {{"memory", false, false, check_memory},
                 {"big", true, false, check_big},
                 {"fault", false, true, check_fault}};
    const moec_options *o = k->run.options;
    const bool host = k->ctx[MOEC_CTX_MAIN]->backend->host_memory;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const bool asked = is_asked(o, cases[i].name);
        if (!moec_glob(o->kernel, cases[i].name) || (cases[i].asked && !asked) ||
            (host && !cases[i].host && !asked)) {
            continue;
        }
        k->run.counts->selected++;
        if (o->list) {
            if (!host || asked) {
                (void)fprintf(k->run.out, "%s\n", cases[i].name);
            }
        } else if (host && !cases[i].host) {
            moec_skip(&k->run, "%s: the backend has no memory of its own", cases[i].name);
        } else {
            const unsigned long passed = k->run.counts->passed;
            const unsigned long failed = k->run.counts->failed;
            const unsigned long skipped = k->run.counts->skipped;
            cases[i].check(k);
            if (k->run.counts->skipped == skipped) {
                (void)fprintf(k->run.out, "%-44s %lu passed, %lu failed\n", cases[i].name,
                              k->run.counts->passed - passed, k->run.counts->failed - failed);
            }
        }
    }
}

int moec_device_run(const moec_options *options, FILE *out, moec_counts *counts)
{
    moec_options resolved = *options;
    resolved.seed = options->seed != 0 ? options->seed : 1;
    moec_layer_checks k = {.run = {.options = &resolved, .out = out, .counts = counts}};
    const bool ok = moec_context(&resolved, &k.ctx[MOEC_CTX_MAIN]) == MOE_OK &&
                    moe_context_create(NULL, &k.host) == MOE_OK;
    if (ok) {
        k.run.ctx = k.ctx[MOEC_CTX_MAIN];
        walk(&k);
    } else {
        (void)fprintf(out, "%s\n", moe_last_error());
    }
    moec_twins_release(k.ctx[MOEC_CTX_MAIN]);
    moe_context_destroy(k.host);
    moe_context_destroy(k.ctx[MOEC_CTX_MAIN]);
    return ok ? 0 : -1;
}
