// SPDX-License-Identifier: Apache-2.0
// Random cases of the whole layer through the public API: against float64, against the composition
// of the public ops, and against itself in other batches, memory, threads and instruction sets.
#define _POSIX_C_SOURCE 200809L
#include "checkmoe/check_layer.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/plan_internal.h"

#define CASES       (MOEC_LAYERS_DRAWN + MOEC_LAYERS_PAIRS)
#define SIDE_CHECKS 16 // threads, fork and workspace: every so many cases

// Poison: 0xFF makes NaN of every float type, LARGE a finite number beyond all others.
#define LARGE 0x7B

static const moec_batch_style base_style = {true, 0xFF, 1};

// ---- guard pages -------------------------------------------------------------------------------

// An access outside of a case's memory ends the process; the last words name the case.
static char last_words[1400];
static struct sigaction usual_action;

static void speak(int signal_number)
{
    const ssize_t written = write(STDERR_FILENO, last_words, strlen(last_words));
    (void)written;
    (void)sigaction(signal_number, &usual_action, NULL); // the access is tried again
}

static void watch(const moec_layer_checks *k, const moec_layer_case *c)
{
    char command[320];
    moec_repro(&k->run, c->name, command, sizeof command);
    (void)snprintf(last_words, sizeof last_words,
                   "FAILED: %s: access outside of the memory it was given: %s\n  repeat with  %s\n",
                   c->name, c->text, command);
}

// ---- contexts -----------------------------------------------------------------------------------

static void *counted_alloc(void *self, size_t bytes, size_t align)
{
    moec_layer_checks *k = self;
    atomic_fetch_add(&k->allocations, 1);
    return aligned_alloc(align, moei_size_align(bytes == 0 ? 1 : bytes, align));
}

static void counted_free(void *self, void *memory, size_t bytes)
{
    (void)self;
    (void)bytes;
    free(memory);
}

static moe_status make_context(moec_layer_checks *k, moec_layer_context which,
                               const moe_context_desc *desc)
{
    MOE_TRY(moe_context_create(desc, &k->ctx[which]));
    if (k->run.options->spoil != NULL) {
        k->run.options->spoil(k->ctx[which]);
    }
    return MOE_OK;
}

// The device without its way to run several steps at once.
static moe_status make_steps_context(moec_layer_checks *k, const moe_context_desc *desc)
{
    k->steps = *k->ctx[MOEC_CTX_MAIN]->backend;
    if (k->steps.run_steps != NULL) {
        MOE_TRY(make_context(k, MOEC_CTX_STEPS, desc));
        k->steps.run_steps = NULL;
        k->ctx[MOEC_CTX_STEPS]->backend = &k->steps;
    }
    return MOE_OK;
}

// Other threads and instruction sets.
static moe_status make_cpu_contexts(moec_layer_checks *k)
{
    static const int32_t threads[] = {
        [MOEC_CTX_ONE] = 1, [MOEC_CTX_TWO] = 2, [MOEC_CTX_SEVEN] = 7, [MOEC_CTX_REF] = 2};
    for (int i = MOEC_CTX_ONE; i <= MOEC_CTX_REF; i++) {
        moe_context_desc desc = moe_context_desc_default();
        desc.device = i == MOEC_CTX_REF ? MOE_DEVICE_CPU : k->run.options->device;
        desc.isa = i == MOEC_CTX_REF ? "ref" : k->run.options->isa;
        desc.num_threads = threads[i];
        MOE_TRY(make_context(k, (moec_layer_context)i, &desc));
    }
    k->host = k->ctx[MOEC_CTX_MAIN];
    moe_context_desc desc = moe_context_desc_default();
    desc.device = k->run.options->device;
    desc.isa = k->run.options->isa;
    desc.num_threads = 2;
    return make_steps_context(k, &desc);
}

// One step after the other, and the CPU.
static moe_status make_device_contexts(moec_layer_checks *k, const moe_context_desc *device)
{
    MOE_TRY(make_steps_context(k, device));
    MOE_TRY(moe_context_create(NULL, &k->ctx[MOEC_CTX_HOST]));
    k->host = k->ctx[MOEC_CTX_HOST];
    return MOE_OK;
}

static bool make_contexts(moec_layer_checks *k, FILE *out)
{
    const moe_allocator allocator = {k, counted_alloc, counted_free};
    moe_context_desc desc = moe_context_desc_default();
    desc.device = k->run.options->device;
    desc.isa = k->run.options->isa;
    desc.num_threads = k->run.options->threads;
    desc.allocator = &allocator;
    moe_status status = make_context(k, MOEC_CTX_MAIN, &desc);
    if (status == MOE_OK) {
        k->run.ctx = k->ctx[MOEC_CTX_MAIN];
        desc.allocator = NULL;
        status = k->run.ctx->backend->host_memory ? make_cpu_contexts(k)
                                                  : make_device_contexts(k, &desc);
    }
    if (status != MOE_OK) {
        (void)fprintf(out, "%s\n", moe_last_error());
    }
    return status == MOE_OK;
}

// ---- plans --------------------------------------------------------------------------------------

static moe_status pack_all(const moec_layer_case *c, moec_rng *rng, moe_weights *weights)
{
    const int32_t experts = moec_layer_local_count(c);
    moe_weights_source rest = moec_layer_source(c);
    if (moec_below(rng, 3) == 0) {
        return moe_weights_pack(weights, 0, &rest);
    }
    memset(rest.gemm, 0, sizeof rest.gemm);
    MOE_TRY(moe_weights_pack(weights, 0, &rest));
    const int32_t begin = (int32_t)moec_below(rng, experts);
    for (int32_t i = 0; i < experts; i++) {
        const int32_t e = (begin + i) % experts;
        moe_weights_source one = moec_layer_expert_source(c, e);
        if (moec_below(rng, 3) == 0) { // the two matrices of an expert may come apart
            moe_weights_source half = one;
            memset(&half.gemm[0], 0, sizeof half.gemm[0]);
            memset(&one.gemm[1], 0, sizeof one.gemm[1]);
            MOE_TRY(moe_weights_pack(weights, e, &half));
        }
        MOE_TRY(moe_weights_pack(weights, e, &one));
    }
    return MOE_OK;
}

void moec_unmake(moec_made *made)
{
    moe_weights_destroy(made->weights);
    moe_plan_destroy(made->plan);
    moec_twins_end(&made->twins);
    moec_guard_free(&made->memory);
    memset(made, 0, sizeof *made);
}

static moe_status wrap(const moec_layer_case *c, moec_made *out)
{
    const moec_stack *stacks[] = {&c->gemm[0], &c->gemm[1], &c->shared[0], &c->shared[1]};
    const moec_linear *linears[] = {&c->shared_gate, &c->latent_in, &c->latent_out,
                                    &c->output_bias};
    for (size_t i = 0; i < 4; i++) {
        const moec_guard *guards[] = {&stacks[i]->values, &stacks[i]->scales, &stacks[i]->scale2,
                                      &stacks[i]->zeros,  &stacks[i]->bias,   &stacks[i]->act_scale,
                                      &linears[i]->values};
        for (size_t g = 0; g < sizeof guards / sizeof guards[0]; g++) {
            moec_twins_add(&out->twins, guards[g], false);
        }
    }
    MOE_TRY(moec_twins_up(&out->twins, 0xFF));
    moe_weights_source source = moec_layer_source(c);
    moec_twins_source(&out->twins, &source);
    MOE_REQUIRE(!out->twins.stray, MOE_E_STATE, "moe check: weights lie outside of the case");
    return moe_weights_wrap(out->plan, &source, &out->weights);
}

static moe_status make(moe_context *ctx, const moec_layer_case *c, moec_rng *rng, moec_made *out)
{
    MOE_TRY(moe_plan_create(ctx, &c->desc, &out->plan));
    moec_twins_begin(&out->twins, ctx);
    moec_rng own = {1};
    if (rng == NULL) {
        const moe_status status = wrap(c, out);
        if (status == MOE_OK || strstr(moe_last_error(), "use moe_weights_pack") == NULL) {
            return status;
        }
        // A kernel reads them packed, or aligned: packed here, too, in another order.
        moec_twins_end(&out->twins);
        moec_twins_begin(&out->twins, ctx);
        rng = &own;
    }
    size_t bytes = 0;
    size_t align = 0;
    MOE_TRY(moe_weights_bytes(out->plan, &bytes, &align));
    const size_t room = moei_size_align(bytes, align);
    if (!moec_guard_alloc(&out->memory, room, moec_below(rng, 2) == 0)) {
        return MOE_E_NO_MEMORY;
    }
    memset(out->memory.data, 0xFF, room);
    moec_twins_add(&out->twins, &out->memory, true);
    MOE_TRY(moec_twins_up(&out->twins, 0xFF));
    MOE_TRY(moe_weights_create(out->plan, moec_twins_at(&out->twins, out->memory.data), bytes,
                               &out->weights));
    return pack_all(c, rng, out->weights);
}

bool moec_make(moe_context *ctx, const moec_layer_case *c, moec_rng *rng, moec_made *out)
{
    memset(out, 0, sizeof *out);
    if (make(ctx, c, rng, out) != MOE_OK) {
        moec_unmake(out);
        return false;
    }
    return true;
}

// ---- checks -------------------------------------------------------------------------------------

bool moec_layer_check(moec_layer_checks *k, const moec_layer_case *c, bool ok, const char *what)
{
    return moec_check(&k->run, ok, c->name, "%s: %s: %s", c->name, what, c->text);
}

void moec_layer_fetch(moec_layer_checks *k, const moec_layer_case *c, moec_made *made)
{
    char wrong[200] = "";
    const bool ok = moec_twins_down(&made->twins, wrong, sizeof wrong);
    if (!made->plan->ctx->backend->host_memory) {
        moec_check(&k->run, ok, c->name, "%s: the weights: %s: %s", c->name, wrong, c->text);
    }
}

// Runs a batch and checks that it wrote what it should and nothing else.
static bool execute(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                    moec_batch *batch, const char *what)
{
    char text[256];
    const char *wrong = "";
    const unsigned long allocations = atomic_load(&k->allocations);
    const moe_status status = moec_batch_execute(batch, made->plan, made->weights);
    (void)snprintf(text, sizeof text, "%s: %s", what, moe_last_error());
    if (!moec_layer_check(k, c, status == MOE_OK, text)) {
        return false;
    }
    const bool intact = moec_batch_intact(batch, &wrong);
    (void)snprintf(text, sizeof text, "%s: %s", what, wrong);
    moec_layer_check(k, c, intact, text);
    (void)snprintf(text, sizeof text, "%s: the run allocated", what);
    moec_layer_check(k, c, atomic_load(&k->allocations) == allocations, text);
    return true;
}

unsigned char *moec_layer_results(moec_layer_checks *k, const moec_layer_case *c,
                                  const moec_made *made, const int32_t *items, int32_t n,
                                  const moec_batch_style *style, const char *what)
{
    moec_batch batch = {0};
    unsigned char *results = malloc(moec_layer_result_bytes(c, n) + 1);
    bool ok = results != NULL && moec_batch_build(&batch, c, items, n, style);
    ok = moec_layer_check(k, c, ok, "memory is short") && execute(k, c, made, &batch, what);
    if (ok) {
        moec_batch_collect(&batch, results);
    } else {
        free(results);
        results = NULL;
    }
    moec_batch_free(&batch);
    return results;
}

bool moec_layer_same(moec_layer_checks *k, const moec_layer_case *c, const unsigned char *want,
                     const unsigned char *have, int32_t n, const char *what)
{
    return moec_check_same(&k->run, moec_layer_out_dtype(c), n, (int64_t)c->out_row_elems, have,
                           want, c->name, "%s: %s: %s", c->name, what, c->text);
}

// Judges once more, for the values and bounds of every element, and reports.
static void report_judged(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                          const int32_t *items, const moec_routing *routing,
                          const unsigned char *results)
{
    const int64_t columns = (int64_t)c->out_row_elems;
    const size_t elements = (size_t)c->items * c->out_row_elems;
    double *values = calloc(2 * elements + 1, sizeof *values);
    moec_layer_stats stats = {.values = values, .bounds = values + elements};
    const bool ok = values != NULL &&
                    moec_layer_judge(c, made->plan, items, c->items, routing, results, &stats);
    if (moec_layer_check(k, c, ok, "beyond its bound; memory is short")) {
        const moec_compare compare = {
            .actual = moe_tensor_2d(results, moec_layer_out_dtype(c), c->items, columns),
            .expected = moe_tensor_2d(values, MOE_F64, c->items, columns),
            .bound = stats.bounds,
            .nan_matches = 1};
        moec_fail_compare(&k->run, &compare, c->name, "%s: against float64: %s", c->name, c->text);
    }
    free(values);
}

static void judge(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                  const int32_t *items, const moec_routing *routing, const unsigned char *results)
{
    moec_layer_stats stats = {0};
    if (!moec_layer_judged(c)) {
        return;
    }
    if (!moec_layer_check(
            k, c, moec_layer_judge(c, made->plan, items, c->items, routing, results, &stats),
            "memory is short")) {
        return;
    }
    k->judged++;
    k->elements += stats.elements;
    k->unsure += stats.unsure;
    k->marginal += stats.marginal;
    if (stats.ratio > k->worst) {
        k->worst = stats.ratio;
        (void)snprintf(k->worst_case, sizeof k->worst_case, "%s", c->name);
    }
    if (stats.ratio <= 1.0) {
        k->run.counts->passed++;
    } else {
        report_judged(k, c, made, items, routing, results);
    }
}

// The outputs of the routing; weights that are wrong are reported in full.
static void check_routing(moec_layer_checks *k, const moec_layer_case *c, const moec_batch *batch,
                          const moec_routing *routing)
{
    moec_routing_verdict v = {.text = "outputs of the routing: memory is short"};
    const bool ok = moec_layer_check_routing(batch, routing, &v);
    const int32_t slots = moec_layer_slots(c);
    const size_t elements = (size_t)batch->n * (size_t)slots;
    double *values = ok || !v.weights ? NULL : calloc(2 * elements, sizeof *values);
    if (values == NULL) {
        moec_layer_check(k, c, ok, v.text);
        return;
    }
    moec_routing_verdict all = {.values = values, .bounds = values + elements};
    (void)moec_layer_check_routing(batch, routing, &all);
    moec_compare compare = {.actual = batch->args.out_weights,
                            .expected = moe_tensor_2d(values, MOE_F64, batch->n, slots),
                            .bound = all.bounds,
                            .nan_matches = 1};
    compare.actual.shape[0] = batch->n;
    moec_fail_compare(&k->run, &compare, c->name, "%s: %s: %s", c->name, v.text, c->text);
    free(values);
}

// Weights of a step of the plan as an op has them, which knows the type of those of a linear map.
static moe_format op_format(const moec_layer_case *c, const moei_plan_step *step)
{
    if (step->slot < 4) {
        return step->problem.gemm->weight_format;
    }
    const moec_linear *const maps[] = {[MOEI_LINEAR_LATENT_IN] = &c->latent_in,
                                       [MOEI_LINEAR_LATENT_OUT] = &c->latent_out,
                                       [MOEI_LINEAR_SHARED_GATE] = &c->shared_gate};
    const moe_dtype dtype = maps[step->slot - 4]->dtype;
    return dtype == MOE_F32 ? MOE_FORMAT_F32 : dtype == MOE_BF16 ? MOE_FORMAT_BF16 : MOE_FORMAT_F16;
}

// Ops by themselves have weights as the caller does, and level BATCH: what a plan has in a class
// that rows of packed layouts alone have, or in a strict one where the CPU has matrix units (at
// level KERNEL, or because the type of a linear map is not known before the run), ops sum
// otherwise.
static bool ops_sum_alike(const moe_plan *plan, const moec_layer_case *c)
{
    moei_plan_step steps[MOEI_PLAN_STEPS];
    const int count = moei_plan_steps(plan, steps);
    for (int i = 0; i < count; i++) {
        const moei_arith arith = moei_plan_kernel(plan, &steps[i])->arith;
        moe_gemm_desc gemm = *steps[i].problem.gemm;
        moei_ggemm_problem problem = steps[i].problem;
        const moei_kernel *op;
        gemm.weight_format = op_format(c, &steps[i]);
        problem.gemm = &gemm;
        problem.level = MOE_DET_DEFAULT;
        problem.canonical = true;
        if (!moei_arith_get(arith)->consistent ||
            moei_ggemm_select(plan->ctx, &problem, "moe check", steps[i].name, &op) != MOE_OK ||
            op->arith != arith) {
            return false;
        }
    }
    return true;
}

// On a device, its own steps one by one and the CPU's plan of the same class take this place.
static void compare_composition(moec_layer_checks *k, const moec_layer_case *c,
                                const int32_t *items, const unsigned char *results,
                                unsigned char *other)
{
    char text[256];
    const moe_status status = moec_layer_compose(k->host, c, items, c->items, other);
    (void)snprintf(text, sizeof text, "composition: %s", moe_last_error());
    if (moec_layer_check(k, c, status == MOE_OK, text)) {
        moec_layer_same(k, c, other, results, c->items, "differs from the composition of the ops");
    }
}

// Delays in the kernels must change nothing. The first run that differs ends it.
static void check_delays(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                         moec_batch *batch, const unsigned char *results, unsigned char *other)
{
    moe_context *ctx = k->ctx[MOEC_CTX_MAIN];
    char text[64];
    bool ok = true;
    for (int32_t i = 0; ok && i < k->run.options->delay_runs; i++) {
        (void)snprintf(text, sizeof text, "delays in the kernels change the result (run %d)",
                       (int)i);
        ctx->delay = moec_delay(k->run.options, i);
        ok = execute(k, c, made, batch, text);
        ctx->delay = 0;
        if (ok) {
            moec_batch_collect(batch, other);
            ok = moec_layer_same(k, c, results, other, c->items, text);
        }
    }
}

// The base run: its results go to `results`. Against float64, the composition, and a second time.
static bool check_base(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                       const int32_t *items, unsigned char *results)
{
    moec_batch batch = {0};
    moec_routing routing = {0};
    const size_t bytes = moec_layer_result_bytes(c, c->items);
    unsigned char *other = calloc(bytes + 1, 1);
    bool ok = other != NULL && moec_batch_build(&batch, c, items, c->items, &base_style) &&
              moec_layer_route(k->host, c, items, c->items, &routing) == MOE_OK;
    ok =
        moec_layer_check(k, c, ok, "no memory or no routing") && execute(k, c, made, &batch, "run");
    if (ok) {
        moec_batch_collect(&batch, results);
        moec_list_bits(&k->run, c->name, moec_hash(results, bytes), c->text);
        check_routing(k, c, &batch, &routing);
        judge(k, c, made, items, &routing, results);
        if (k->host == k->ctx[MOEC_CTX_MAIN]) {
            if (ops_sum_alike(made->plan, c)) {
                compare_composition(k, c, items, results, other);
            } else {
                k->unlike++;
            }
        }
        ok = execute(k, c, made, &batch, "second run");
    }
    if (ok) {
        moec_batch_collect(&batch, other);
        moec_layer_same(k, c, results, other, c->items, "two runs differ");
        check_delays(k, c, made, &batch, results, other);
    }
    moec_routing_free(&routing);
    moec_batch_free(&batch);
    free(other);
    return ok;
}

// The results of other items, or of these in another order, against those of the base run.
static void check_variant(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                          const int32_t *items, int32_t n, const moec_batch_style *style,
                          const unsigned char *base, const char *what)
{
    const size_t row = moec_layer_result_bytes(c, 1);
    unsigned char *results = moec_layer_results(k, c, made, items, n, style, what);
    char text[128];
    for (int32_t p = 0; results != NULL && p < n; p++) {
        if (items[p] < c->items) {
            (void)snprintf(text, sizeof text, "%s (item %d)", what, (int)items[p]);
            if (!moec_layer_same(k, c, base + (size_t)items[p] * row, results + (size_t)p * row, 1,
                                 text)) {
                break;
            }
        }
    }
    free(results);
}

// A permutation; where rows lie by expert, one within each expert's.
static void permute(const moec_layer_case *c, moec_rng *rng, int32_t *items)
{
    const bool placed = c->desc.routing == MOE_ROUTING_PLACED;
    for (int32_t i = c->items - 1; i > 0; i--) {
        const int32_t j = (int32_t)moec_below(rng, i + 1);
        if (!placed || c->expert[items[i]] == c->expert[items[j]]) {
            const int32_t t = items[i];
            items[i] = items[j];
            items[j] = t;
        }
    }
}

static void check_batches(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                          moec_rng *rng, const unsigned char *base)
{
    const moec_batch_style style = {false, LARGE, 2};
    int32_t *items = calloc((size_t)c->items + 1, sizeof *items);
    if (items == NULL || moec_layer_spans_tokens(c)) {
        free(items);
        return;
    }
    for (int32_t i = 0; i < c->items; i++) {
        items[i] = moec_below(rng, 2) == 0 ? i : i + c->items;
    }
    check_variant(k, c, made, items, c->items, &style, base, "other companions change a token");
    for (int32_t i = 0; i < c->items; i++) {
        items[i] = i;
    }
    if (!moec_layer_by_index(c)) {
        const int32_t half = (int32_t)moec_below(rng, c->items + 1);
        check_variant(k, c, made, items, half, &style, base, "a split batch differs");
        check_variant(k, c, made, items + half, c->items - half, &style, base,
                      "a split batch differs");
        permute(c, rng, items);
        check_variant(k, c, made, items, c->items, &style, base, "a permuted batch differs");
    }
    free(items);
}

static bool same_arithmetic(const moe_plan *a, const moe_plan *b)
{
    for (int g = 0; g < 2; g++) {
        if (a->routed.kernel[g]->arith != b->routed.kernel[g]->arith ||
            (a->shared.count > 0 && a->shared.kernel[g]->arith != b->shared.kernel[g]->arith)) {
            return false;
        }
    }
    for (int i = 0; i < MOEI_NUM_LINEAR; i++) {
        if (a->linear[i] != NULL && a->linear[i]->arith != b->linear[i]->arith) {
            return false;
        }
    }
    return true;
}

// A batch of the items and their companions many times over: kernels for many rows, which the base
// run has too few for, give each the same bits.
static void check_many(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                       moec_rng *rng, const unsigned char *base)
{
    enum { MANY = 400 };
    const moec_batch_style style = {false, LARGE, 2};
    moec_layer_case many = *c;
    moec_made other;
    int32_t items[MANY];
    char text[256] = "";
    if (c->items == 0 || c->desc.x_layout != MOE_X_TOKENS || moec_layer_spans_tokens(c) ||
        moec_layer_by_index(c)) {
        return;
    }
    for (int32_t i = 0; i < MANY; i++) {
        items[i] = (int32_t)moec_below(rng, 2 * (int64_t)c->items);
    }
    many.desc.max_tokens = MANY + 8; // with rows past them
    const bool ok = moec_make(k->ctx[MOEC_CTX_MAIN], &many, NULL, &other);
    if (!ok) {
        (void)snprintf(text, sizeof text, "many tokens: %s", moe_last_error());
    }
    if (moec_layer_check(k, c, ok, text)) {
        if (same_arithmetic(made->plan, other.plan)) {
            check_variant(k, c, &other, items, MANY, &style, base, "a large batch differs");
        }
        moec_layer_fetch(k, c, &other);
        moec_unmake(&other);
    }
}

static void check_contexts(moec_layer_checks *k, const moec_layer_case *c, const moec_made *made,
                           const int32_t *items, const unsigned char *base)
{
    static const struct {
        moec_layer_context ctx;
        moec_batch_style style;
        const char *what;
    } others[] = {
        {MOEC_CTX_MAIN, {false, 0x00, 3}, "wrapped weights, memory or poison change the result"},
        {MOEC_CTX_ONE, {true, LARGE, 2}, "1 thread changes the result"},
        {MOEC_CTX_TWO, {false, 0xFF, 1}, "2 threads change the result"},
        {MOEC_CTX_SEVEN, {true, 0x01, 0}, "7 threads change the result"},
        {MOEC_CTX_REF, {false, 0xFF, 0}, "another instruction set changes the result"},
        {MOEC_CTX_STEPS, {true, LARGE, 2}, "running the steps at once changes the result"},
        {MOEC_CTX_HOST, {false, 0xFF, 1}, "the CPU gives another result in the same class"},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        moec_made other;
        char text[256] = "";
        if (k->ctx[others[i].ctx] == NULL) {
            continue;
        }
        const bool ok = moec_make(k->ctx[others[i].ctx], c, NULL, &other);
        if (!ok) {
            (void)snprintf(text, sizeof text, "wrap: %s", moe_last_error());
        }
        if (moec_layer_check(k, c, ok, text)) {
            if (same_arithmetic(made->plan, other.plan)) {
                check_variant(k, c, &other, items, c->items, &others[i].style, base,
                              others[i].what);
            }
            moec_layer_fetch(k, c, &other);
            moec_unmake(&other);
        }
    }
}

// States that follow each other would give streams that are shifts of each other.
static moec_rng case_rng(uint64_t seed, uint64_t stream)
{
    moec_rng rng = {seed * 0xD1342543DE82EF95u + stream};
    rng.state = moec_next(&rng);
    return rng;
}

bool moec_layer_case_make(moec_layer_checks *k, moec_layer_case *c, int number)
{
    memset(c, 0, sizeof *c);
    c->seed = k->run.options->seed * 1000003u + (uint64_t)number;
    (void)snprintf(c->name, sizeof c->name, "layer-%d", number);
    moec_rng rng = case_rng(c->seed, 1);
    moec_layer_draw(c, &rng, number);
    return moec_layer_check(k, c, moec_layer_build(c, k->host, &rng),
                            "the case could not be built");
}

static void check_case(moec_layer_checks *k, int number)
{
    moec_layer_case c;
    moec_made made;
    char text[600] = "";
    moec_rng rng = case_rng(k->run.options->seed * 1000003u + (uint64_t)number, 2);
    int32_t *items = NULL;
    unsigned char *base = NULL;
    if (!moec_layer_case_make(k, &c, number)) {
        moec_layer_free(&c);
        return;
    }
    k->cases++;
    watch(k, &c);
    if (k->run.options->verbose) {
        (void)fprintf(k->run.out, "%s: %s\n", c.name, c.text);
    }
    const bool ok = moec_make(k->ctx[MOEC_CTX_MAIN], &c, &rng, &made);
    if (!ok) {
        (void)snprintf(text, sizeof text, "refused: %s", moe_last_error());
    }
    if (moec_layer_check(k, &c, ok, text)) {
        const uint64_t hash = moec_layer_hash(&c);
        items = calloc((size_t)c.items + 1, sizeof *items);
        base = calloc(moec_layer_result_bytes(&c, c.items) + 1, 1);
        for (int32_t i = 0; items != NULL && i < c.items; i++) {
            items[i] = i;
        }
        if (moec_layer_check(k, &c, items != NULL && base != NULL, "memory is short") &&
            check_base(k, &c, &made, items, base)) {
            check_contexts(k, &c, &made, items, base);
            check_batches(k, &c, &made, &rng, base);
            check_many(k, &c, &made, &rng, base);
        }
        moec_layer_check(k, &c, moec_layer_hash(&c) == hash, "the weights were written");
        moec_layer_fetch(k, &c, &made);
        moec_unmake(&made);
        if (number % SIDE_CHECKS == 0) {
            moec_layer_threads(k, &c);
        }
        if (number % SIDE_CHECKS == 0 &&
            k->ctx[MOEC_CTX_SEVEN] != NULL) { // devices do not survive it
            moec_layer_fork(k, &c);
        }
        if (number % SIDE_CHECKS == 1) {
            moec_layer_workspace(k, &c);
        }
        moec_layer_weights(k, &c, &rng); // redraws the experts: last
    }
    free(items);
    free(base);
    moec_layer_free(&c);
}

int moec_layer_run(const moec_options *options, FILE *out, moec_counts *counts)
{
    moec_options resolved = *options;
    resolved.seed = options->seed != 0 ? options->seed : 1;
    moec_layer_checks k = {.run = {.options = &resolved, .out = out, .counts = counts}};
    const unsigned long passed = counts->passed;
    const unsigned long failed = counts->failed;
    int result = -1;
    struct sigaction action = {.sa_handler = speak};
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGSEGV, &action, &usual_action);
    if (make_contexts(&k, out)) {
        for (int number = 0; number < CASES; number++) {
            char name[32];
            (void)snprintf(name, sizeof name, "layer-%d", number);
            if (!moec_glob(options->kernel, name)) {
                continue;
            }
            counts->selected++;
            if (options->list) {
                (void)fprintf(out, "%s\n", name);
            } else {
                check_case(&k, number);
            }
        }
        result = 0;
    }
    for (int i = 0; i < MOEC_NUM_CTX; i++) {
        moec_twins_release(k.ctx[i]);
        moe_context_destroy(k.ctx[i]);
    }
    (void)sigaction(SIGSEGV, &usual_action, NULL);
    if (k.cases > 0) {
        (void)fprintf(
            out,
            "layer: %lu cases, %lu against float64: %lu elements, %lu MARGINAL, %lu beyond "
            "what float64 can say, worst error / bound %.3f (%s)\n",
            k.cases, k.judged, k.elements, k.marginal, k.unsure, k.worst, k.worst_case);
        if (k.unlike > 0) {
            (void)fprintf(out,
                          "layer: %lu times not compared with the ops, which are of other classes "
                          "here: docs/determinism.md\n",
                          k.unlike);
        }
        (void)fprintf(out, "%-44s %lu passed, %lu failed\n", "layer", counts->passed - passed,
                      counts->failed - failed);
    }
    return result;
}
