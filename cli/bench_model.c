// SPDX-License-Identifier: Apache-2.0
// How long a whole model takes: steps of one sequence, each with the logits of its last token and
// the choice of the next one, beside what the machine can do at most. docs/bench.md defines the
// figures.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "model/model.h"

#define DECODE_CONTEXT 256 // tokens before a step of one, where there is room
#define MOST_STEPS     64  // of a sequence, before it begins anew
#define SECONDS        3.0 // of measuring a row
#define LEAST          3   // sequences of it
#define MOST           400 // steps of it

typedef struct run {
    const bench_request *request;
    moem_model *model;
    moem_session *session;
    moem_input *tokens; // of the longest step
    float *logits;
    void *scratch; // of moem_sample
    int64_t *load; // before a step: [layers, experts]
    moe_layer_desc desc;
    moec_rng rng;
} run;

/// A row: `steps` of `tokens` tokens each after `context` others.
typedef struct model_row {
    int64_t tokens, context, steps;
    int repeats;
    bench_times times;
    bench_work work;
    moem_work parts;
    double experts_hit, experts; // of a layer; operations of all
    double floor_ms;
    const char *floor_kind;
    json_t *kernels;
} model_row;

static bool open_model(const bench_request *r, int64_t most, run *out, int *code)
{
    int64_t threads = 0;
    moem_options options = {.max_batch = most, .fixed_point = r->activation == NULL};
    if ((r->activation != NULL && !cli_quantiser("--activation", r->activation, &options.act)) ||
        (r->threads != NULL && !cli_number("--threads", r->threads, 1, 1024, &threads))) {
        *code = CLI_USAGE;
        return false;
    }
    options.threads = (int32_t)threads;
    if (bench_failed(moem_model_open(r->model, &options, &out->model), code)) {
        return false;
    }
    const moem_config *c = moem_model_config(out->model);
    out->request = r;
    out->rng.state = r->seed;
    out->desc = moe_layer_desc_default();
    return !bench_failed(moe_plan_desc(moem_model_plan(out->model, 0), &out->desc), code) &&
           (out->tokens = bench_take((size_t)most * sizeof *out->tokens)) != NULL &&
           (out->logits = bench_take((size_t)c->vocab * sizeof *out->logits)) != NULL &&
           (out->scratch = bench_take(moem_sample_scratch(c->vocab))) != NULL &&
           (out->load = bench_take((size_t)(c->layers * out->desc.num_experts) *
                                   sizeof *out->load)) != NULL;
}

static void close_model(run *r)
{
    moem_session_destroy(r->session);
    free(r->tokens);
    free(r->logits);
    free(r->scratch);
    free(r->load);
    moem_model_close(r->model);
}

// The next `count` tokens of the sequence, drawn from the vocabulary, and the one after them.
static moe_status step(run *r, int64_t count)
{
    const moem_sampling greedy = {.temperature = 0};
    const int64_t vocab = moem_model_config(r->model)->vocab;
    for (int64_t t = 0; t < count; t++) {
        r->tokens[t] = (moem_input){(int32_t)moec_below(&r->rng, vocab), 0, t == count - 1};
    }
    const moe_status status = moem_forward(r->session, r->tokens, count, r->logits);
    if (status == MOE_OK) {
        (void)moem_sample(&greedy, r->logits, vocab, 0, 0, r->scratch);
    }
    return status;
}

static moe_status fill_context(run *r, int64_t context)
{
    const int64_t most = moem_model_max_batch(r->model);
    moe_status status = MOE_OK;
    moem_session_reset(r->session, 0);
    for (int64_t left = context; status == MOE_OK && left > 0; left -= most) {
        status = step(r, left < most ? left : most);
    }
    return status;
}

static size_t load_cells(const run *r)
{
    return (size_t)moem_model_config(r->model)->layers * (size_t)r->desc.num_experts;
}

// Experts that got tokens since the load was kept, of a layer on average.
static double experts_since(const run *r)
{
    const int64_t *now = moem_session_load(r->session);
    int64_t hit = 0;
    for (size_t i = 0; i < load_cells(r); i++) {
        hit += now[i] != r->load[i];
    }
    return (double)hit / (double)moem_model_config(r->model)->layers;
}

static moe_status time_steps(run *r, model_row *row, double *seconds)
{
    const double begin = moem_now();
    const int64_t repeats = r->request->repeats;
    moe_status status = MOE_OK;
    for (int64_t pass = -1; status == MOE_OK; pass++) { // the first one warms up
        const bool enough = pass >= LEAST && moem_now() - begin > SECONDS;
        const bool full = row->repeats + row->steps > MOST;
        if (repeats > 0 ? row->repeats >= repeats : full || enough) {
            break;
        }
        status = fill_context(r, row->context);
        for (int64_t i = 0; status == MOE_OK && i < row->steps; i++) {
            memcpy(r->load, moem_session_load(r->session), load_cells(r) * sizeof *r->load);
            const double first = moem_now();
            status = step(r, row->tokens);
            if (pass >= 0 && (repeats == 0 || row->repeats < repeats)) {
                seconds[row->repeats++] = moem_now() - first;
                row->experts_hit += experts_since(r);
            }
        }
    }
    row->experts_hit /= row->repeats > 0 ? row->repeats : 1;
    return status;
}

// Of the middle step: those before have fewer keys to look at, those after have more.
static void set_work(const run *r, const bench_ceilings *ceilings, model_row *row)
{
    const moe_layer_desc *d = &r->desc;
    const double layers = (double)moem_model_config(r->model)->layers;
    const int matrices = moe_activation_gated(d->activation) != 0 ? 3 : 2;
    const moei_ceiling peak = bench_peak_of(ceilings, d, 0, true);
    moem_work *w = &row->parts;
    moem_model_work(r->model, row->context + row->steps / 2 * row->tokens, row->tokens, 1, w);
    row->experts = layers * matrices * 2 * (double)row->tokens * d->top_k * (double)d->hidden *
                   (double)d->inter;
    row->work.bytes = w->bytes + layers * row->experts_hit * bench_expert_bytes(d);
    row->work.flops[0] = row->experts;
    row->work.flops[1] = w->projections + w->attention + w->router + w->output;
    row->work.read = ceilings->per_second[MOEI_CEILING_READ];
    row->work.peak[0] = peak < MOEI_NUM_CEILINGS ? ceilings->per_second[peak] : 0;
    row->work.peak[1] = ceilings->per_second[MOEI_CEILING_F32];
    row->floor_ms = bench_floor(&row->work, &row->floor_kind);
}

static double flops_of(const model_row *row)
{
    return row->work.flops[0] + row->work.flops[1];
}

// All operations at the rate of float32 multiply-adds; all bytes at that of reading memory.
static double percent_of_f32(const model_row *row)
{
    return row->work.peak[1] > 0
               ? bench_percent(1e3 * flops_of(row) / row->work.peak[1], row->times.median)
               : 0;
}

static double percent_of_read(const model_row *row)
{
    return row->work.read > 0
               ? bench_percent(1e3 * row->work.bytes / row->work.read, row->times.median)
               : 0;
}

// ---- reports -----------------------------------------------------------------------------------

static const char *activation_of(const run *r)
{
    const moe_quant_spec spec = r->desc.gemm[0].act.spec;
    return spec == MOE_QUANT_NONE ? "none" : moe_quant_name(spec);
}

static void print_head(const run *r)
{
    const moem_config *c = moem_model_config(r->model);
    (void)printf("%s: %" PRId64 " layers, H %" PRId64 ", I %" PRId64
                 ", E %d, k %d, vocabulary %" PRId64 ", %s x %s, %d threads\n",
                 r->request->model, c->layers, c->hidden, r->desc.inter, (int)r->desc.num_experts,
                 (int)r->desc.top_k, c->vocab, moe_format_name(r->desc.gemm[0].weight_format),
                 activation_of(r), moe_context_num_threads(moem_model_context(r->model)));
    (void)printf("%7s %7s %10s %21s %10s %9s %9s %8s %8s\n", "tokens", "context", "ms", "q1 .. q3",
                 "tokens/s", "MFLOP", "MB read", "of f32", "of read");
}

static void print_percent(bool known, double percent)
{
    if (known) {
        (void)printf(" %7.1f%%", percent);
    } else {
        (void)printf(" %8s", "-");
    }
}

static void print_row(const model_row *row)
{
    const double ms = row->times.median;
    (void)printf("%7" PRId64 " %7" PRId64 " %10.4g %9.4g .. %8.4g %10.5g %9.4g %9.4g", row->tokens,
                 row->context, ms, row->times.q1, row->times.q3, 1e3 * (double)row->tokens / ms,
                 1e-6 * flops_of(row), 1e-6 * row->work.bytes);
    print_percent(row->work.peak[1] > 0, percent_of_f32(row));
    print_percent(row->work.read > 0, percent_of_read(row));
    (void)printf("\n");
    (void)fflush(stdout);
}

static json_t *parts_json(const model_row *row)
{
    const moem_work *w = &row->parts;
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "projections", w->projections, "attention",
                     w->attention, "router", w->router, "experts", row->experts, "output",
                     w->output);
}

static json_t *row_json(const run *r, const bench_ceilings *ceilings, const model_row *row)
{
    const moe_layer_desc *d = &r->desc;
    const bool known = row->floor_kind != NULL;
    json_t *object = json_pack(
        "{s:o, s:I, s:I, s:I, s:i, s:i, s:I, s:[s], s:[s]}", "shape",
        bench_text_json(r->request->model), "layers",
        (json_int_t)moem_model_config(r->model)->layers, "hidden", (json_int_t)d->hidden, "inter",
        (json_int_t)d->inter, "experts", (int)d->num_experts, "top_k", (int)d->top_k, "vocabulary",
        (json_int_t)moem_model_config(r->model)->vocab, "format",
        moe_format_name(d->gemm[0].weight_format), "activation", activation_of(r));
    json_t *measured = json_pack(
        "{s:I, s:I, s:i, s:f, s:f, s:f, s:f, s:f, s:o, s:s?, s:o, s:o, s:o, s:f, s:f, s:f, s:o, "
        "s:O}",
        "tokens", (json_int_t)row->tokens, "context", (json_int_t)row->context, "repeats",
        row->repeats, "ms", row->times.median, "ms_q1", row->times.q1, "ms_q3", row->times.q3,
        "ms_mean", row->times.mean, "tokens_per_second",
        1e3 * (double)row->tokens / row->times.median, "floor_ms",
        bench_real_or_null(known, row->floor_ms), "floor_kind", row->floor_kind, "percent_of_floor",
        bench_real_or_null(known, bench_percent(row->floor_ms, row->times.median)),
        "percent_of_f32", bench_real_or_null(row->work.peak[1] > 0, percent_of_f32(row)),
        "percent_of_read", bench_real_or_null(row->work.read > 0, percent_of_read(row)),
        "experts_hit", row->experts_hit, "bytes", row->work.bytes, "flops", flops_of(row), "parts",
        parts_json(row), "kernels", row->kernels);
    return bench_whole_row(object, measured, r->request, moem_model_context(r->model), ceilings);
}

// ---- rows --------------------------------------------------------------------------------------

static bool run_row(run *r, bench_ceilings *last, model_row *row, json_t *rows, int *code)
{
    const moe_context *ctx = moem_model_context(r->model);
    const bool shown = r->request->json == NULL || strcmp(r->request->json, "-") != 0;
    const int64_t most = r->request->repeats > MOST ? r->request->repeats : MOST + MOST_STEPS;
    bench_ceilings ceilings = *last;
    double *seconds = bench_take((size_t)most * sizeof *seconds);
    uint64_t *before = bench_runs(ctx->backend);
    bool good = seconds != NULL && before != NULL &&
                !bench_failed(time_steps(r, row, seconds), code) &&
                (!r->request->ceilings || bench_raise_ceilings(ctx, last, &ceilings, code));
    if (good) {
        row->times = bench_quartiles(seconds, row->repeats, 1);
        row->kernels = bench_kernels_since(ctx->backend, before);
        set_work(r, &ceilings, row);
        json_t *object = row_json(r, &ceilings, row);
        good = object != NULL && json_array_append_new(rows, object) == 0;
        if (shown) {
            print_row(row);
        }
    }
    json_decref(row->kernels);
    free(seconds);
    free(before);
    return good;
}

// What comes before a row's tokens, and how often these follow.
static bool place_row(const run *r, int64_t tokens, model_row *row, int *code)
{
    const int64_t room = moem_model_config(r->model)->context;
    const int64_t half = room / 2 < DECODE_CONTEXT ? room / 2 : DECODE_CONTEXT;
    *row = (model_row){.tokens = tokens};
    row->context = r->request->context >= 0 ? r->request->context : tokens == 1 ? half : 0;
    if (tokens > room || row->context > room - tokens) {
        (void)fprintf(stderr,
                      "moe: %" PRId64 " tokens after %" PRId64
                      " others: the model's context is %" PRId64 "\n",
                      tokens, row->context, room);
        *code = CLI_USAGE;
        return false;
    }
    const int64_t steps = (room - row->context) / tokens;
    row->steps = steps < MOST_STEPS ? steps : MOST_STEPS;
    return true;
}

bool bench_model(const bench_request *request, json_t *rows, int *code)
{
    run r = {.request = request};
    bench_ceilings last = {{0}};
    int64_t most = 1;
    for (int i = 0; i < request->num_rows; i++) {
        most = request->tokens[i] > most ? request->tokens[i] : most;
    }
    bool good = open_model(request, most, &r, code);
    int64_t longest = 1;
    model_row row;
    for (int i = 0; good && i < request->num_rows; i++) { // before anything is measured
        good = place_row(&r, request->tokens[i], &row, code);
        const int64_t length = row.context + row.steps * row.tokens;
        longest = length > longest ? length : longest;
    }
    good = good && !bench_failed(moem_session_create(r.model, 1, longest, &r.session), code) &&
           (!request->ceilings || bench_measure_ceilings(moem_model_context(r.model), &last, code));
    if (good && (request->json == NULL || strcmp(request->json, "-") != 0)) {
        print_head(&r);
    }
    for (int i = 0; good && i < request->num_rows; i++) {
        good =
            place_row(&r, request->tokens[i], &row, code) && run_row(&r, &last, &row, rows, code);
    }
    close_model(&r);
    return good;
}
