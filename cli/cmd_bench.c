// SPDX-License-Identifier: Apache-2.0
// moe bench: how long a layer or a whole model takes, beside what the device can do at most.
// docs/bench.md says how each figure is made.
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "quant/formats.h"

#define MAX_TOKENS ((int64_t)1 << 20)
#define MAX_FILES  16

/// Arguments as they were given; NULL where not.
typedef struct given {
    const char *shape, *format, *format2, *activation, *glu, *tokens, *routing, *device, *x, *level;
    const char *repeats, *sets, *seed, *json, *threads, *plot, *model, *context;
    bool routing_only, error, no_floor, compare;
} given;

static bool refuse(const char *text)
{
    (void)fprintf(stderr, "moe: %s\n", text);
    return false;
}

// "1,8,64"
static bool read_tokens(const char *text, bench_request *r)
{
    char number[32];
    for (const char *at = text; at != NULL;) {
        const char *comma = strchr(at, ',');
        const size_t length = comma != NULL ? (size_t)(comma - at) : strlen(at);
        if (r->num_rows == BENCH_MAX_ROWS) {
            (void)fprintf(stderr, "moe: --tokens \"%s\" has more than %d numbers\n", text,
                          BENCH_MAX_ROWS);
            return false;
        }
        if (length >= sizeof number) {
            (void)fprintf(stderr, "moe: --tokens \"%s\" is not a list of whole numbers\n", text);
            return false;
        }
        memcpy(number, at, length);
        number[length] = '\0';
        if (!cli_number("--tokens", number, 1, MAX_TOKENS, &r->tokens[r->num_rows++])) {
            return false;
        }
        at = comma != NULL ? comma + 1 : NULL;
    }
    return true;
}

static bool read_glu(const char *text, moe_activation *out)
{
    for (*out = MOE_ACT_SILU; *out <= MOE_ACT_RELU2_NO_MUL; (*out)++) {
        if (strcmp(text, moe_activation_name(*out)) == 0) {
            return true;
        }
    }
    (void)fprintf(stderr, "moe: --glu \"%s\" is not an activation; silu and swigluoai are\n", text);
    return false;
}

static bool read_x(const char *text, moe_dtype *out)
{
    const moe_dtype types[] = {MOE_F32, MOE_BF16, MOE_F16};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(text, moe_dtype_name(types[i])) == 0) {
            *out = types[i];
            return true;
        }
    }
    (void)fprintf(stderr, "moe: --x \"%s\" is not one of f32, bf16, f16\n", text);
    return false;
}

// The parameters that an activation needs, and what goes with gpt-oss's in its checkpoints.
static void set_activation(moe_layer_desc *d, moe_activation activation)
{
    d->activation = activation;
    if (activation == MOE_ACT_SWIGLUOAI) {
        d->alpha = 1.702f;
        d->beta = 1.0f;
        d->limit = 7.0f;
        d->gate_up = MOE_GATE_UP_INTERLEAVED;
        d->gemm[0].bias = 1;
        d->gemm[1].bias = 1;
        d->route.scoring = MOE_SCORING_SOFTMAX_SELECTED;
        d->route.renormalise = MOE_RENORM_NONE;
    } else if (activation == MOE_ACT_SWIGLUSTEP) {
        d->limit = 7.0f;
    } else if (activation == MOE_ACT_SITU) {
        d->beta = 1.0f;
    }
    if (moe_activation_gated(activation) == 0) {
        d->gate_up = MOE_GATE_UP_UNSET;
    }
}

// "A", or "A,B" for the two products. Without: what checkpoints of the format are run with.
static bool read_quantisers(const char *text, moe_layer_desc *d)
{
    char first[64];
    if (text == NULL) {
        for (int g = 0; g < 2; g++) {
            d->gemm[g].act.spec = d->gemm[g].weight_format == MOE_FORMAT_E4M3FN_BLOCK
                                      ? MOE_QUANT_FP8_GROUP_DIV
                                      : MOE_QUANT_NONE;
        }
        return true;
    }
    const size_t length = strcspn(text, ",");
    (void)snprintf(first, sizeof first, "%.*s", (int)(length < 63 ? length : 63), text);
    return cli_quantiser("--activation", first, &d->gemm[0].act) &&
           cli_quantiser("--activation", text[length] == ',' ? text + length + 1 : first,
                         &d->gemm[1].act);
}

static bool read_layer(const given *a, bench_request *r)
{
    moe_layer_desc *d = &r->desc;
    moe_activation activation = MOE_ACT_SILU;
    if (a->shape == NULL) {
        return refuse("bench needs --shape, or --model, or --compare and two files");
    }
    if (!cli_shape(a->shape, d)) {
        return false;
    }
    cli_plain_layer(d);
    if (a->routing_only) {
        return true;
    }
    if (a->format == NULL) {
        return refuse("say --format: a shape does not tell it");
    }
    if (!cli_format("--format", a->format, &d->gemm[0].weight_format) ||
        !cli_format("--format2", a->format2 != NULL ? a->format2 : a->format,
                    &d->gemm[1].weight_format) ||
        !read_quantisers(a->activation, d) || !read_x(a->x != NULL ? a->x : "bf16", &d->x_dtype) ||
        !cli_level(a->level != NULL ? a->level : "batch", &d->determinism)) {
        return false;
    }
    if (a->glu == NULL) {
        activation = cli_shape_activation(a->shape, d->gemm[0].weight_format);
    } else if (!read_glu(a->glu, &activation)) {
        return false;
    }
    set_activation(d, activation);
    return true;
}

// What would have no effect is refused.
static bool check_idle(const given *a, int files)
{
    const bool form = a->format != NULL || a->format2 != NULL || a->glu != NULL || a->x != NULL ||
                      a->level != NULL || a->error;
    const bool layer = form || a->activation != NULL || a->no_floor;
    const bool draws = a->shape != NULL || a->routing != NULL || a->device != NULL ||
                       a->sets != NULL || a->routing_only;
    const bool measures = layer || draws || a->model != NULL || a->context != NULL ||
                          a->tokens != NULL || a->repeats != NULL || a->seed != NULL ||
                          a->json != NULL || a->threads != NULL;
    if (a->compare && (measures || files != 2)) {
        return refuse("--compare takes two files that --json wrote, and no other option");
    }
    if (a->plot != NULL && (measures || a->compare || files == 0)) {
        return refuse("--plot takes files that --json wrote, and no other option");
    }
    if (!a->compare && a->plot == NULL && files > 0) {
        return refuse("files are for --compare and --plot");
    }
    if (a->model != NULL && (form || draws)) {
        return refuse("--model takes --tokens, --context, --activation, --threads, --repeats, "
                      "--seed, --no-floor, --json, and no other option");
    }
    if (a->model == NULL && a->context != NULL) {
        return refuse("--context is for --model: a layer has none");
    }
    if (a->routing_only && layer) {
        return refuse("--routing-only runs no product: --format, --format2, --activation, --glu, "
                      "--x, --det, --error and --no-floor have no effect");
    }
    return true;
}

// The next number of a list, as text; moves on behind it, to NULL after the last.
static void next_of(const char **list, char out[16])
{
    const size_t length = strcspn(*list, ",");
    (void)snprintf(out, 16, "%.*s", (int)(length < 15 ? length : 15), *list);
    *list = (*list)[length] == ',' ? *list + length + 1 : NULL;
}

// Before anything is measured: a mistake at the list's end would else cost what came before.
static bool check_threads(const char *list)
{
    bool good = true;
    while (list != NULL && good) {
        char one[16];
        int64_t n;
        next_of(&list, one);
        good = cli_number("--threads", one, 1, 1024, &n);
    }
    return good;
}

static bool read_request(const given *a, bench_request *r)
{
    const char *routing = a->routing != NULL ? a->routing : "uniform";
    int64_t seed = 0;
    r->shape = a->shape;
    r->device = a->device;
    r->threads = a->threads;
    r->model = a->model;
    r->activation = a->activation;
    r->context = -1;
    r->json = a->json;
    r->routing_only = a->routing_only;
    r->error = a->error;
    r->ceilings = !a->routing_only && !a->no_floor;
    r->both_activations = a->activation == NULL && !a->routing_only;
    r->zipf = strcmp(routing, "zipf") == 0;
    if (!r->zipf && strcmp(routing, "uniform") != 0) {
        (void)fprintf(stderr, "moe: --routing \"%s\" is not one of uniform, zipf\n", routing);
        return false;
    }
    if ((a->model == NULL && !read_layer(a, r)) || !check_threads(a->threads) ||
        !read_tokens(a->tokens != NULL ? a->tokens : "1,8,64", r) ||
        (a->context != NULL && !cli_number("--context", a->context, 0, MAX_TOKENS, &r->context)) ||
        (a->repeats != NULL && !cli_number("--repeats", a->repeats, 1, 100000, &r->repeats)) ||
        (a->sets != NULL && !cli_number("--sets", a->sets, 1, 100000, &r->sets)) ||
        !cli_number("--seed", a->seed != NULL ? a->seed : "1", 0, INT64_MAX - MAX_TOKENS, &seed)) {
        return false;
    }
    r->seed = (uint64_t)seed;
    return true;
}

// ---- a run -------------------------------------------------------------------------------------

static void set_work(const bench_layer *layer, const bench_ceilings *ceilings, bench_row *row)
{
    const bool host = layer->ctx->backend->host_memory;
    const moe_layer_desc *d = &layer->desc;
    const double slots = (double)row->tokens * d->top_k;
    const int gated = moe_activation_gated(d->activation) != 0 ? 2 : 1;
    const double product = 2 * slots * (double)d->hidden * (double)d->inter;
    const int bits = moe_dtype_bits(d->x_dtype) + moe_dtype_bits(d->out_dtype);
    row->work.flops[0] = gated * product;
    row->work.flops[1] = product;
    row->work.bytes = row->experts_hit * layer->bytes_per_expert +
                      (double)row->tokens * (double)d->hidden * bits / 8;
    row->work.read = ceilings->per_second[MOEI_CEILING_READ];
    for (int g = 0; g < 2; g++) {
        const moei_ceiling peak = bench_peak_of(ceilings, d, g, host);
        row->work.peak[g] = peak < MOEI_NUM_CEILINGS ? ceilings->per_second[peak] : 0;
    }
    row->floor_ms = bench_floor(&row->work, &row->floor_kind);
    row->percent = bench_percent(row->floor_ms, row->times.median);
}

static bool run_row(const bench_request *r, bench_layer *layer, bench_ceilings *last,
                    int64_t tokens, json_t *rows, int *code)
{
    const moei_backend *backend = layer->ctx->backend;
    bench_ceilings ceilings;
    bench_row row = {.tokens = tokens, .error = -1};
    bench_sets sets = {0};
    double *seconds = NULL;
    uint64_t *before = NULL;
    bool good = bench_sets_make(r, layer, tokens, &sets, code) &&
                (before = bench_runs(backend)) != NULL &&
                bench_time(&sets, r->repeats, &seconds, &row.repeats, code);
    ceilings = *last;
    good = good && (!r->ceilings || bench_raise_ceilings(layer->ctx, last, &ceilings, code));
    if (good) {
        row.sets = sets.count;
        row.experts_hit = sets.experts_hit;
        row.times = bench_quartiles(seconds, row.repeats, row.sets);
        row.kernels = bench_kernels_since(backend, before);
        if (!r->routing_only) {
            set_work(layer, &ceilings, &row);
        }
        if (r->error && tokens <= BENCH_ERROR_TOKENS) {
            good = bench_error(&sets, &row.error, code);
        }
    }
    if (good) {
        json_t *object = bench_row_json(r, layer, &ceilings, &row);
        good = object != NULL && json_array_append_new(rows, object) == 0;
        if (r->json == NULL || strcmp(r->json, "-") != 0) {
            bench_print_row(&row);
        }
    }
    json_decref(row.kernels);
    free(seconds);
    free(before);
    bench_sets_free(&sets);
    return good;
}

static bool run_layer(const bench_request *r, json_t *rows, int *code)
{
    bench_layer layer;
    bench_ceilings ceilings = {{0}};
    int64_t most = 1;
    for (int i = 0; i < r->num_rows; i++) {
        most = r->tokens[i] > most ? r->tokens[i] : most;
    }
    bool good = bench_layer_open(r, most, &layer, code) &&
                (!r->ceilings || bench_measure_ceilings(layer.ctx, &ceilings, code));
    if (good && (r->json == NULL || strcmp(r->json, "-") != 0)) {
        bench_print_head(r, &layer, &ceilings);
    }
    for (int i = 0; i < r->num_rows && good; i++) {
        good = run_row(r, &layer, &ceilings, r->tokens[i], rows, code);
    }
    bench_layer_close(&layer);
    return good;
}

// Where nothing is said of activations, a CPU's integer products are measured beside the strict
// ones: weights of 4 bits take fixed point of 8 and of 16 bits, those of 8 bits the former.
static int activations_of(const bench_request *r, moe_quant_spec out[3])
{
    const bool cpu = r->device == NULL || strcmp(r->device, "cpu") == 0;
    int bits = 0;
    int n = 0;
    for (int g = 0; g < 2 && cpu && r->both_activations; g++) {
        const moe_dtype elem = moei_format(r->desc.gemm[g].weight_format)->elem;
        const int mine = elem == MOE_E2M1 || elem == MOE_UINT4 ? 4
                         : elem == MOE_I8 || elem == MOE_U8    ? 8
                                                               : 16;
        bits = mine > bits ? mine : bits;
    }
    out[n++] = r->desc.gemm[0].act.spec;
    if (bits == 4) {
        out[n++] = MOE_QUANT_I16B32;
    }
    if (bits == 4 || bits == 8) {
        out[n++] = MOE_QUANT_I8B32;
    }
    return n;
}

static bool run_activations(const bench_request *request, json_t *rows, int *code)
{
    moe_quant_spec activations[3];
    const int n = activations_of(request, activations);
    bool good = true;
    for (int i = 0; i < n && good; i++) {
        bench_request r = *request;
        for (int g = 0; g < 2 && i > 0; g++) {
            r.desc.gemm[g].act.spec = activations[i];
        }
        good = run_layer(&r, rows, code);
    }
    return good;
}

static int run_rows(const bench_request *request)
{
    json_t *rows = json_array();
    const char *list = request->threads;
    int code = CLI_FAILED;
    bool good = true;
    do { // each number of threads of the list
        bench_request r = *request;
        char one[16];
        if (list != NULL) {
            next_of(&list, one);
            r.threads = one;
        }
        good = r.model != NULL ? bench_model(&r, rows, &code) : run_activations(&r, rows, &code);
    } while (good && list != NULL);
    if (good) {
        code = request->json != NULL ? bench_write_json(request->json, rows) : CLI_OK;
    }
    json_decref(rows);
    return code;
}

// The command as it can be given again.
static char *join(int argc, char **argv)
{
    size_t size = sizeof "moe bench";
    for (int i = 0; i < argc; i++) {
        size += strlen(argv[i]) + 1;
    }
    char *text = malloc(size);
    if (text == NULL) {
        (void)fprintf(stderr, "moe: no memory for %zu bytes\n", size);
        return NULL;
    }
    char *at = stpcpy(text, "moe bench");
    for (int i = 0; i < argc; i++) {
        *at++ = ' ';
        at = stpcpy(at, argv[i]);
    }
    return text;
}

int cmd_bench(int argc, char **argv)
{
    given a = {0};
    const char *files[MAX_FILES] = {NULL};
    int count = 0;
    const cli_option options[] = {{"shape", &a.shape, NULL},
                                  {"format", &a.format, NULL},
                                  {"format2", &a.format2, NULL},
                                  {"activation", &a.activation, NULL},
                                  {"glu", &a.glu, NULL},
                                  {"tokens", &a.tokens, NULL},
                                  {"routing", &a.routing, NULL},
                                  {"device", &a.device, NULL},
                                  {"x", &a.x, NULL},
                                  {"det", &a.level, NULL},
                                  {"repeats", &a.repeats, NULL},
                                  {"sets", &a.sets, NULL},
                                  {"seed", &a.seed, NULL},
                                  {"json", &a.json, NULL},
                                  {"threads", &a.threads, NULL},
                                  {"plot", &a.plot, NULL},
                                  {"model", &a.model, NULL},
                                  {"context", &a.context, NULL},
                                  {"routing-only", NULL, &a.routing_only},
                                  {"error", NULL, &a.error},
                                  {"no-floor", NULL, &a.no_floor},
                                  {"compare", NULL, &a.compare},
                                  {NULL, NULL, NULL}};
    bench_request r = {.desc = moe_layer_desc_default()};
    if (!cli_parse(argc, argv, options, files, MAX_FILES, &count) || !check_idle(&a, count)) {
        return CLI_USAGE;
    }
    if (a.compare) {
        return bench_compare(files[0], files[1]);
    }
    if (a.plot != NULL) {
        return bench_plot(a.plot, files, count);
    }
    if (!read_request(&a, &r)) {
        return CLI_USAGE;
    }
    char *command = join(argc, argv);
    r.command = command;
    const int code = command != NULL ? run_rows(&r) : CLI_FAILED;
    free(command);
    return code;
}
