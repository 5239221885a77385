// SPDX-License-Identifier: Apache-2.0
// Checks of a case beside its results: weights to and fro, the workspace's size, several threads on
// one plan, a child process after fork.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkmoe/check_layer.h"
#include "core/safemath.h"

#define BLANK 0x55

// ---- weights ------------------------------------------------------------------------------------

// An empty copy of a guard, to unpack into.
static bool blank(const moec_guard *from, moec_guard *to)
{
    if (from->data == NULL) {
        *to = (moec_guard){0};
        return true;
    }
    if (!moec_guard_alloc(to, from->bytes, true)) {
        return false;
    }
    memset(to->data, BLANK, to->bytes);
    return true;
}

static bool blank_stack(const moec_stack *from, moec_stack *to)
{
    *to = *from;
    return blank(&from->values, &to->values) && blank(&from->scales, &to->scales) &&
           blank(&from->scale2, &to->scale2) && blank(&from->zeros, &to->zeros) &&
           blank(&from->bias, &to->bias) && blank(&from->act_scale, &to->act_scale);
}

static void free_blank(moec_stack *m)
{
    m->dense = NULL; // the original's
    m->dense_bias = NULL;
    moec_stack_free(m);
}

static bool same_guard(const moec_guard *a, const moec_guard *b)
{
    return a->bytes == b->bytes && (a->bytes == 0 || memcmp(a->data, b->data, a->bytes) == 0);
}

// The stored bytes of every row; what lies between rows is untouched.
static bool same_values(const moec_stack *a, const moec_stack *b)
{
    for (int64_t r = 0; r < a->count * a->rows; r++) {
        const unsigned char *row = b->values.data + r * a->row_stride;
        if (memcmp(a->values.data + r * a->row_stride, row, (size_t)a->row_bytes) != 0) {
            return false;
        }
        for (int64_t i = a->row_bytes; i < a->row_stride && r + 1 < a->count * a->rows; i++) {
            if (row[i] != BLANK) {
                return false;
            }
        }
    }
    return true;
}

// Zero points; the high nibble of an odd last row of pairs, or of an odd last group, means nothing.
static bool same_zeros(const moec_stack *a, const moec_stack *b)
{
    const bool pairs = a->zero_form == MOEI_ZERO_PAIRS;
    const bool nibbles = a->zero_form == MOEI_ZERO_NIBBLES;
    const size_t bytes = (size_t)(nibbles ? (a->scale_columns + 1) / 2 : a->scale_columns);
    const size_t rows = (size_t)(pairs ? (a->n + 1) / 2 : a->n);
    for (size_t i = 0; i < a->zeros.bytes; i++) {
        const bool low = (pairs && a->n % 2 == 1 && i / bytes % rows == rows - 1) ||
                         (nibbles && a->scale_columns % 2 == 1 && i % bytes == bytes - 1);
        const unsigned mask = low ? 0x0F : 0xFF;
        if (((a->zeros.data[i] ^ b->zeros.data[i]) & mask) != 0) {
            return false;
        }
    }
    return true;
}

static bool same_stack(const moec_stack *a, const moec_stack *b)
{
    return same_values(a, b) && same_guard(&a->scales, &b->scales) &&
           same_guard(&a->scale2, &b->scale2) && same_zeros(a, b) &&
           same_guard(&a->bias, &b->bias) && same_guard(&a->act_scale, &b->act_scale);
}

static void free_blanks(moec_stack stacks[4])
{
    for (int i = 0; i < 4; i++) {
        free_blank(&stacks[i]);
    }
}

// Unpacks everything into `stacks`.
static bool unpack(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                   moec_stack stacks[4])
{
    const moec_stack *from[4] = {&c->gemm[0], &c->gemm[1], &c->shared[0], &c->shared[1]};
    const int n = c->desc.shared.count > 0 ? 4 : 2;
    moe_weights_source out = moe_weights_source_default();
    bool ok = true;
    memset(stacks, 0, 4 * sizeof *stacks);
    for (int i = 0; i < n; i++) {
        ok = ok && blank_stack(from[i], &stacks[i]);
        if (ok) {
            *(i < 2 ? &out.gemm[i] : &out.shared[i - 2]) =
                moec_stack_source(&stacks[i], 0, from[i]->count);
        }
    }
    ok = moec_layer_check(k, c, ok, "memory is short") &&
         moec_layer_check(k, c, moe_weights_unpack(made->weights, 0, &out) == MOE_OK,
                          moe_last_error());
    for (int i = 0; ok && i < n; i++) {
        ok = moec_layer_check(k, c, same_stack(from[i], &stacks[i]),
                              "unpacked weights are not those that were packed");
    }
    return ok;
}

// One expert gets other weights in place. Packing that expert's new and the others' old ones (out
// of `old`) gives the same memory.
static void check_update(moec_layer_checks *k, moec_layer_case *c, moec_rng *rng, moec_made *made,
                         const moec_stack old[2])
{
    moec_made anew;
    const int32_t experts = moec_layer_local_count(c);
    const int32_t e = (int32_t)moec_below(rng, experts);
    if (!moec_layer_check(k, c, moec_layer_redraw_experts(c, rng), "memory is short")) {
        return;
    }
    const moe_weights_source one = moec_layer_expert_source(c, e);
    if (!moec_layer_check(k, c, moe_weights_update(made->weights, e, &one) == MOE_OK,
                          moe_last_error()) ||
        !moec_layer_check(k, c, moec_make(k->ctx[MOEC_CTX_MAIN], c, rng, &anew),
                          "packing failed")) {
        return;
    }
    bool ok = true;
    for (int32_t i = 0; ok && i < experts; i++) {
        moe_weights_source other = moe_weights_source_default();
        other.gemm[0] = moec_stack_source(&old[0], i, 1);
        other.gemm[1] = moec_stack_source(&old[1], i, 1);
        ok = i == e || moe_weights_pack(anew.weights, i, &other) == MOE_OK;
    }
    moec_layer_check(k, c, ok, moe_last_error());
    moec_layer_fetch(k, c, made);
    moec_layer_fetch(k, c, &anew);
    moec_layer_check(k, c, same_guard(&made->memory, &anew.memory),
                     "an updated expert differs from packing anew");
    moec_unmake(&anew);
}

void moec_layer_weights(moec_layer_checks *k, moec_layer_case *c, moec_rng *rng)
{
    moec_made made;
    moec_stack old[4];
    if (!moec_layer_check(k, c, moec_make(k->ctx[MOEC_CTX_MAIN], c, rng, &made),
                          "packing failed")) {
        return;
    }
    if (unpack(k, c, &made, old)) {
        check_update(k, c, rng, &made, old);
    }
    free_blanks(old);
    moec_unmake(&made);
}

// ---- workspace ----------------------------------------------------------------------------------

// A byte less is refused and nothing written; a cap of exactly what is needed is accepted.
void moec_layer_workspace(moec_layer_checks *k, const moec_layer_case *c)
{
    moec_made made;
    moec_batch batch = {0};
    moe_plan *plan = NULL;
    const moec_batch_style style = {true, 0xFF, 1};
    int32_t *items = calloc((size_t)c->items + 1, sizeof *items);
    for (int32_t i = 0; items != NULL && i < c->items; i++) {
        items[i] = i;
    }
    if (!moec_layer_check(k, c, items != NULL && moec_make(k->ctx[MOEC_CTX_MAIN], c, NULL, &made),
                          "no plan")) {
        free(items);
        return;
    }
    size_t bytes = 0;
    size_t align = 0;
    size_t before = 0;
    for (int64_t t = 0; t <= c->desc.max_tokens; t++) {
        moec_layer_check(k, c, moe_plan_workspace(made.plan, t, &bytes, &align) == MOE_OK,
                         "workspace");
        moec_layer_check(k, c, bytes >= before, "the workspace shrinks where tokens are added");
        before = bytes;
    }
    moe_layer_desc capped = c->desc;
    capped.workspace_cap = bytes;
    bool ok = moe_plan_create(k->ctx[MOEC_CTX_MAIN], &capped, &plan) == MOE_OK;
    moec_layer_check(k, c, ok, "a cap of what is needed is refused");
    moe_plan_destroy(plan);
    capped.workspace_cap = bytes - 1;
    plan = NULL;
    ok = bytes < 2 || moe_plan_create(k->ctx[MOEC_CTX_MAIN], &capped, &plan) == MOE_E_WORKSPACE;
    moec_layer_check(k, c, ok && plan == NULL, "a cap of less than is needed is accepted");
    ok = moec_batch_build(&batch, c, items, c->items, &style) &&
         moec_batch_execute(&batch, made.plan, made.weights) == MOE_OK;
    if (moec_layer_check(k, c, ok, "run") && batch.workspace_bytes > 0) {
        const char *wrong = "";
        const moe_status status = moe_run(made.plan, made.weights, &batch.args,
                                          batch.workspace.data, batch.workspace_bytes - 1, NULL);
        moec_layer_check(k, c, status == MOE_E_WORKSPACE, "a short workspace is accepted");
        moec_layer_check(k, c, moec_batch_intact(&batch, &wrong), wrong);
    }
    moec_batch_free(&batch);
    moec_unmake(&made);
    free(items);
}

// ---- threads ------------------------------------------------------------------------------------

#define THREADS 4
#define ROUNDS  3

typedef struct runner {
    const moec_layer_case *c;
    const moec_made *made;
    const unsigned char *want;
    int32_t *items;
    int index;
    bool ok, differs;       // differs: results, of the last round, are not those wanted
    unsigned char *results; // to be freed
} runner;

// The same plan and weights, a batch and a workspace of its own.
static void *run_rounds(void *argument)
{
    runner *r = argument;
    const moec_layer_case *c = r->c;
    const size_t bytes = moec_layer_result_bytes(c, c->items);
    const moec_batch_style style = {r->index % 2 == 0, (unsigned char)r->index, r->index % 3};
    moec_batch batch = {0};
    const char *wrong = "";
    r->results = calloc(bytes + 1, 1);
    r->ok = r->results != NULL && moec_batch_build(&batch, c, r->items, c->items, &style);
    for (int i = 0; r->ok && i < ROUNDS; i++) {
        r->ok = moec_batch_execute(&batch, r->made->plan, r->made->weights) == MOE_OK &&
                moec_batch_intact(&batch, &wrong);
        if (r->ok) {
            moec_batch_collect(&batch, r->results);
            r->ok = memcmp(r->results, r->want, bytes) == 0;
            r->differs = !r->ok;
        }
    }
    moec_batch_free(&batch);
    return NULL;
}

// Counts what a runner found; results that differ are reported.
static bool settle(moec_layer_checks *k, runner *r, const char *what)
{
    bool ok = r->ok;
    if (r->differs) {
        ok = moec_layer_same(k, r->c, r->want, r->results, r->c->items, what);
    } else {
        moec_layer_check(k, r->c, ok, what);
    }
    free(r->results);
    r->results = NULL;
    return ok;
}

// What one run gives, to compare others with; NULL after a failure.
static unsigned char *expected(moec_layer_checks *k, const moec_layer_case *c,
                               const moec_made *made, int32_t **items)
{
    const moec_batch_style style = {true, 0xFF, 0};
    *items = calloc((size_t)c->items + 1, sizeof **items);
    for (int32_t i = 0; *items != NULL && i < c->items; i++) {
        (*items)[i] = i;
    }
    return *items == NULL ? NULL : moec_layer_results(k, c, made, *items, c->items, &style, "run");
}

void moec_layer_threads(moec_layer_checks *k, const moec_layer_case *c)
{
    moec_made made;
    moec_rng rng = {c->seed};
    int32_t *items = NULL;
    if (!moec_layer_check(k, c, moec_make(k->ctx[MOEC_CTX_MAIN], c, &rng, &made), "no plan")) {
        return;
    }
    unsigned char *want = expected(k, c, &made, &items);
    runner runners[THREADS];
    pthread_t threads[THREADS];
    int started = 0;
    for (; want != NULL && started < THREADS; started++) {
        runners[started] = (runner){c, &made, want, items, started, false, false, NULL};
        if (pthread_create(&threads[started], NULL, run_rounds, &runners[started]) != 0) {
            break;
        }
    }
    moec_layer_check(k, c, want == NULL || started == THREADS, "a thread could not be made");
    for (int i = 0; i < started; i++) {
        (void)pthread_join(threads[i], NULL);
        settle(k, &runners[i], "a run beside others on one plan differs");
    }
    free(want);
    free(items);
    moec_unmake(&made);
}

// ---- fork ---------------------------------------------------------------------------------------

// The child has the plan, and of the pool's threads none.
void moec_layer_fork(moec_layer_checks *k, const moec_layer_case *c)
{
    moec_made made;
    int32_t *items = NULL;
    int status = -1;
    if (!moec_layer_check(k, c, moec_make(k->ctx[MOEC_CTX_SEVEN], c, NULL, &made), "no plan")) {
        return;
    }
    unsigned char *want = expected(k, c, &made, &items);
    runner r = {c, &made, want, items, 1, false, false, NULL};
    if (want != NULL) {
        (void)fflush(NULL);
        const pid_t child = fork();
        if (child == 0) {
            (void)run_rounds(&r);
            const bool ok = settle(k, &r, "a run in a child after fork differs");
            (void)fflush(k->run.out);
            _exit(ok ? 0 : 1);
        }
        moec_layer_check(k, c, child > 0 && waitpid(child, &status, 0) == child, "fork");
        moec_layer_check(k, c, WIFEXITED(status) && WEXITSTATUS(status) == 0,
                         "a child after fork failed");
        (void)run_rounds(&r);
        settle(k, &r, "a run in the parent after fork differs");
    }
    free(want);
    free(items);
    moec_unmake(&made);
}
