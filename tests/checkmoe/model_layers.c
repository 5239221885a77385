// SPDX-License-Identifier: Apache-2.0
// Replays the Mixture-of-Experts layers of a real checkpoint on recorded inputs, for tests (one
// line per layer and prompt) and for people (moec_demo). The reference holds, per prompt N and
// layer M, pN.lM.<item> for the run inside the model and pN.lM.<item>_bf16in for the layer alone.
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checkmoe/oracle.h"
#include "checkmoe/replay.h"
#include "checkmoe/report.h"
#include "moe/io.h"

#define RTOL        1e-5 // as for oracle files: rtol 1e-5, atol 1e-5 of the standard deviation
#define TEXT        512
#define MAX_LAYERS  1024
#define MAX_PROMPTS 64
#define MAX_CONFIG  (1 << 24)
#define DEMO_RUNS   5 // the time shown is their median

/// An open model with its reference.
struct model {
    const char *dir, *program;
    FILE *out;
    int verbose;
    moe_context *ctx;
    moe_checkpoint *checkpoint;
    moe_file *reference;
    char *config;
    size_t config_bytes;
    moec_heap heap;
    char reason[TEXT];
};

/// One layer, ready to run.
struct model_layer {
    int layer;
    moe_layer_desc desc;
    moe_checkpoint_layer *source;
    moe_router_tensors router;
    moec_replay replay;
};

/// The two ways in which a layer was recorded.
struct recording {
    const char *input, *suffix, *what;
};
static const struct recording recordings[] = {
    {"moe_in_bf16", "_bf16in", "alone, bf16 input"},
    {"moe_in_f32", "", "in the model, f32 input"},
};

/// What a run of one recording gave.
struct outcome {
    int64_t tokens;
    moe_tensor logits, ids, weights, y;
    int64_t wrong_ids; ///< slots with another id than recorded
    double ratio[3];   ///< largest error / bound of logits, weights, y
    int failed;
};

static int fail(struct model *m, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int fail(struct model *m, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(m->reason, sizeof m->reason, format, args);
    va_end(args);
    return 0;
}

static int ok(struct model *m, moe_status status)
{
    return status == MOE_OK || fail(m, "%s: %s", moe_status_name(status), moe_last_error());
}

// -- The model ----------------------------------------------------------------------------------

static int read_config(struct model *m)
{
    char path[4096];
    const int length = snprintf(path, sizeof path, "%s/config.json", m->dir);
    FILE *file = length > 0 && (size_t)length < sizeof path ? fopen(path, "rb") : NULL;
    if (file == NULL) {
        return fail(m, "%s cannot be opened", path);
    }
    m->config = moec_keep(&m->heap, MAX_CONFIG, 1);
    m->config_bytes = fread(m->config, 1, MAX_CONFIG, file);
    const int whole = feof(file) && !ferror(file);
    (void)fclose(file);
    return whole || fail(m, "%s cannot be read, or has more than %d bytes", path, MAX_CONFIG);
}

static int open_model(struct model *m, const char *reference, const moec_options *options)
{
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/reference.safetensors", m->dir);
    return ok(m, moec_context(options, &m->ctx)) && read_config(m) &&
           ok(m, moe_checkpoint_open(m->dir, MOE_FILE_DEFAULT, &m->checkpoint)) &&
           ok(m,
              moe_file_open(reference != NULL ? reference : path, MOE_FILE_DEFAULT, &m->reference));
}

static void close_model(struct model *m)
{
    moe_file_close(m->reference);
    moe_checkpoint_close(m->checkpoint);
    moe_context_destroy(m->ctx);
    moec_heap_free(&m->heap);
}

// The item of a recording; 0 where it is missing.
static int find_item(const struct model *m, int prompt, int layer, const char *item,
                     const char *suffix, moe_tensor *out)
{
    char name[TEXT];
    (void)snprintf(name, sizeof name, "p%d.l%d.%s%s", prompt, layer, item, suffix);
    return moe_file_tensor(m->reference, name, out) == MOE_OK;
}

// Reads "<letter><number>." and steps past it; -1 where it is something else.
static int read_part(const char **text, char letter, int limit)
{
    char *end;
    if (**text != letter || (*text)[1] < '0' || (*text)[1] > '9') {
        return -1;
    }
    const long number = strtol(*text + 1, &end, 10);
    if (*end != '.' || number < 0 || number >= limit) {
        return -1;
    }
    *text = end + 1;
    return (int)number;
}

// Which prompts and layers the reference holds: one past the largest of each.
static void recorded(const struct model *m, int *prompts, int *layers)
{
    *prompts = *layers = 0;
    for (size_t i = 0; i < moe_file_count(m->reference); i++) {
        const char *name = moe_file_name(m->reference, i);
        const int prompt = read_part(&name, 'p', MAX_PROMPTS);
        const int layer = prompt >= 0 ? read_part(&name, 'l', MAX_LAYERS) : -1;
        if (layer >= 0) {
            *prompts = prompt >= *prompts ? prompt + 1 : *prompts;
            *layers = layer >= *layers ? layer + 1 : *layers;
        }
    }
}

// -- Layers -------------------------------------------------------------------------------------

static int make_layer(struct model *m, int layer, int64_t max_tokens, struct model_layer *out)
{
    memset(out, 0, sizeof *out);
    out->layer = layer;
    out->desc = moe_layer_desc_default();
    out->desc.x_dtype = MOE_F32;
    out->desc.max_tokens = max_tokens;
    if (!ok(m, moe_checkpoint_layer_open(m->checkpoint, m->config, m->config_bytes, layer,
                                         &out->source)) ||
        !ok(m, moe_checkpoint_layer_desc(out->source, &out->desc)) ||
        !ok(m, moe_checkpoint_layer_router(out->source, &out->router)) ||
        !ok(m, moec_replay_load(m->ctx, &out->desc, out->source, &out->replay))) {
        moe_checkpoint_layer_close(out->source);
        return 0;
    }
    return 1;
}

static void free_layer(struct model_layer *l)
{
    moec_replay_free(&l->replay);
    moe_checkpoint_layer_close(l->source);
}

static moe_run_args layer_args(const struct model_layer *l, const moe_tensor *x,
                               const moe_tensor *logits, struct outcome *o)
{
    moe_run_args args = moe_run_args_default();
    args.correction_bias = l->router.correction_bias;
    args.scale_tensor = l->router.scale_tensor;
    args.num_tokens = o->tokens;
    args.x = *x;
    args.logits = *logits;
    args.out_ids = o->ids;
    args.out_weights = o->weights;
    args.out = o->y;
    return args;
}

// Compares one output with its recorded form; missing ones are not compared.
static void compare(struct model *m, const struct model_layer *l, int prompt,
                    const struct recording *r, const char *item, const moe_tensor *actual,
                    double *ratio, int *failed)
{
    moe_tensor expected;
    moec_stats stats;
    char label[TEXT];
    char repro[2 * TEXT];
    if (!find_item(m, prompt, l->layer, item, r->suffix, &expected)) {
        return;
    }
    (void)snprintf(label, sizeof label, "layer %d prompt %d %s (%s)", l->layer, prompt, item,
                   r->what);
    (void)snprintf(repro, sizeof repro, "%s check --model %s", m->program, m->dir);
    const moec_compare c = {.label = label,
                            .actual = *actual,
                            .expected = expected,
                            .rtol = RTOL,
                            .atol = RTOL * moec_std(&expected),
                            .repro = repro,
                            .out = m->out,
                            .always = m->verbose};
    *failed |= moec_report_compare(&c, &stats) == MOEC_FAIL;
    *ratio = fmax(*ratio, stats.max_ratio);
}

// Runs and compares one recording; 0 where it could not run.
static int replay(struct model *m, struct model_layer *l, int prompt, const struct recording *r,
                  struct outcome *o)
{
    moe_tensor x;
    moe_tensor ids;
    memset(o, 0, sizeof *o);
    if (!find_item(m, prompt, l->layer, r->input, "", &x) || x.ndim != 2 ||
        x.shape[1] != l->desc.hidden) {
        return fail(m, "p%d.l%d.%s is missing, or not [T, %" PRId64 "]", prompt, l->layer, r->input,
                    l->desc.hidden);
    }
    x = moec_widen(&m->heap, &x);
    o->tokens = x.shape[0];
    o->ids = moec_new_i32(&m->heap, o->tokens, l->desc.top_k);
    o->weights = moec_new_f32(&m->heap, o->tokens, l->desc.top_k);
    o->y = moec_new_f32(&m->heap, o->tokens, l->desc.hidden);
    if (!ok(m, moec_linear(m->ctx, &m->heap, &l->router.weight, &l->router.bias, &x, &o->logits))) {
        return 0;
    }
    const moe_run_args args = layer_args(l, &x, &o->logits, o);
    if (!ok(m, moec_replay_run(&l->replay, &args))) {
        return 0;
    }
    compare(m, l, prompt, r, "router_logits", &o->logits, &o->ratio[0], &o->failed);
    if (find_item(m, prompt, l->layer, "topk_ids", r->suffix, &ids) &&
        moec_count(&ids) == moec_count(&o->ids)) {
        for (int64_t i = 0; i < moec_count(&ids); i++) {
            o->wrong_ids += (int64_t)moec_value(&ids, i) != ((const int32_t *)o->ids.data)[i];
        }
    }
    o->failed |= o->wrong_ids > 0;
    if (o->wrong_ids == 0) {
        compare(m, l, prompt, r, "topk_weights", &o->weights, &o->ratio[1], &o->failed);
        compare(m, l, prompt, r, "moe_out", &o->y, &o->ratio[2], &o->failed);
    }
    return 1;
}

// The most tokens that any prompt brings to a layer.
static int64_t most_tokens(const struct model *m, int prompts, int layer)
{
    int64_t most = 0;
    for (int p = 0; p < prompts; p++) {
        for (size_t r = 0; r < sizeof recordings / sizeof recordings[0]; r++) {
            moe_tensor x;
            if (find_item(m, p, layer, recordings[r].input, "", &x) && x.ndim == 2) {
                most = x.shape[0] > most ? x.shape[0] : most;
            }
        }
    }
    return most;
}

// -- For tests ----------------------------------------------------------------------------------

static void check_layer(struct model *m, int layer, int prompts, moec_counts *counts)
{
    struct model_layer l;
    const int64_t most = most_tokens(m, prompts, layer);
    if (most == 0) {
        return;
    }
    if (!make_layer(m, layer, most, &l)) {
        (void)fprintf(m->out, "FAIL  layer %d: %s\n", layer, m->reason);
        counts->failed++;
        return;
    }
    for (int p = 0; p < prompts; p++) {
        for (size_t r = 0; r < sizeof recordings / sizeof recordings[0]; r++) {
            struct outcome o;
            moe_tensor x;
            if (!find_item(m, p, layer, recordings[r].input, "", &x)) {
                continue;
            }
            if (!replay(m, &l, p, &recordings[r], &o)) {
                (void)fprintf(m->out, "FAIL  layer %d prompt %d: %s\n", layer, p, m->reason);
                counts->failed++;
                continue;
            }
            (void)fprintf(m->out,
                          "%s  layer %d prompt %d %s: %" PRId64 " tokens  logits (%.2f)  ids "
                          "%" PRId64 "/%" PRId64 "  weights (%.2f)  output (%.2f)\n",
                          o.failed ? "FAIL" : "PASS", layer, p, recordings[r].what, o.tokens,
                          o.ratio[0], moec_count(&o.ids) - o.wrong_ids, moec_count(&o.ids),
                          o.ratio[1], o.ratio[2]);
            counts->failed += o.failed != 0;
            counts->passed += o.failed == 0;
        }
    }
    free_layer(&l);
}

int moec_model_layers_run(const char *dir, const char *reference, const moec_options *options,
                          FILE *out, moec_counts *counts)
{
    static const moec_options defaults;
    options = options != NULL ? options : &defaults;
    struct model m = {.dir = dir,
                      .program = options->program != NULL ? options->program : "moe",
                      .out = out,
                      .verbose = options->verbose};
    int prompts = 0;
    int layers = 0;
    const int opened = open_model(&m, reference, options);
    if (!opened) {
        (void)fprintf(out, "FAIL  %s\n", m.reason);
        counts->failed++;
    } else {
        recorded(&m, &prompts, &layers);
    }
    if (opened && layers == 0) {
        (void)fprintf(out, "SKIP  %s: the reference has no item pN.lM.moe_in_bf16\n", dir);
        counts->skipped++;
    }
    for (int layer = 0; layer < layers; layer++) {
        counts->selected++;
        if (options->list) {
            (void)fprintf(out, "layer %d\n", layer);
        } else {
            check_layer(&m, layer, prompts, counts);
        }
    }
    if (!options->list) {
        (void)fprintf(out, "%lu passed, %lu failed, %lu skipped\n", counts->passed, counts->failed,
                      counts->skipped);
    }
    close_model(&m);
    return opened ? 0 : -1;
}

// -- For people ---------------------------------------------------------------------------------

static double now_us(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

// Median time of a run of the first `tokens` of a recorded input.
static double time_us(struct model *m, const struct model_layer *l, int prompt, int64_t tokens,
                      const struct outcome *of)
{
    moe_tensor x;
    double times[DEMO_RUNS];
    if (!find_item(m, prompt, l->layer, recordings[0].input, "", &x)) {
        return 0;
    }
    x = moec_widen(&m->heap, &x);
    moe_tensor logits = of->logits;
    struct outcome o = *of;
    o.tokens = x.shape[0] = logits.shape[0] = o.y.shape[0] = tokens;
    o.ids.shape[0] = o.weights.shape[0] = tokens;
    const moe_run_args args = layer_args(l, &x, &logits, &o);
    for (int i = 0; i < DEMO_RUNS; i++) {
        const double start = now_us();
        (void)moec_replay_run(&l->replay, &args);
        const double time = now_us() - start;
        int at = i;
        for (; at > 0 && times[at - 1] > time; at--) {
            times[at] = times[at - 1];
        }
        times[at] = time;
    }
    return times[DEMO_RUNS / 2];
}

static void print_load(FILE *out, const int64_t *load, int32_t experts, int64_t slots)
{
    static const char shades[] = " .:-=+*#%@";
    const double mean = (double)slots / experts;
    int64_t most = 1;
    int32_t idle = 0;
    for (int32_t e = 0; e < experts; e++) {
        most = load[e] > most ? load[e] : most;
        idle += load[e] == 0;
    }
    (void)fprintf(out, "  load       [");
    for (int32_t e = 0; e < experts; e++) {
        (void)fputc(load[e] == 0 ? ' ' : shades[1 + load[e] * 8 / most], out);
    }
    (void)fprintf(out, "]  busiest %.2f times the mean, %d of %d idle\n",
                  mean > 0 ? (double)most / mean : 0, (int)idle, (int)experts);
    (void)fprintf(out, "  top        ");
    for (int n = 0; n < 5 && n < experts; n++) {
        int32_t best = -1;
        for (int32_t e = 0; e < experts; e++) {
            int rank = 0;
            for (int32_t other = 0; other < experts; other++) {
                rank += load[other] > load[e] || (load[other] == load[e] && other < e);
            }
            best = rank == n ? e : best;
        }
        (void)fprintf(out, "%sexpert %d: %.1f %%", n > 0 ? ", " : "", (int)best,
                      slots > 0 ? 100.0 * (double)load[best] / (double)slots : 0);
    }
    (void)fprintf(out, " of the slots\n");
}

static void print_tokens(FILE *out, const struct outcome *o, int32_t top_k)
{
    for (int64_t t = 0; t<o->tokens; t += o->tokens / 3> 0 ? o->tokens / 3 : 1) {
        (void)fprintf(out, "  token %-4" PRId64, t);
        for (int32_t j = 0; j < top_k; j++) {
            (void)fprintf(out, "  %.0f %% expert %d", 100 * moec_value(&o->weights, t * top_k + j),
                          (int)moec_value(&o->ids, t * top_k + j));
        }
        (void)fprintf(out, "\n");
    }
}

// The grouped products' kernels: rows of moe_plan_explain with a star.
static void print_kernels(const struct model *m, const struct model_layer *l)
{
    char text[8192];
    char last[TEXT] = "";
    const char *rest = text;
    if (moe_plan_explain(l->replay.plan, text, sizeof text, NULL) != MOE_OK) {
        return;
    }
    while (rest != NULL) {
        char name[TEXT];
        if (sscanf(rest, " * %511s", name) == 1 && strncmp(name, "moek_ggemm", 10) == 0 &&
            strcmp(name, last) != 0) {
            (void)fprintf(m->out, "kernel %s\n", name);
            memcpy(last, name, sizeof last);
        }
        rest = strchr(rest, '\n');
        rest = rest != NULL ? rest + 1 : NULL;
    }
}

/// What a layer did over all prompts.
struct totals {
    int64_t *load; ///< [experts]
    int64_t slots, tokens, wrong;
    double ratio;
    int failed, prompt; ///< prompt: the last one, -1: none
    struct outcome last;
};

static int run_prompts(struct model *m, struct model_layer *l, int prompts, struct totals *t)
{
    memset(t, 0, sizeof *t);
    t->prompt = -1;
    t->load = moec_keep(&m->heap, (size_t)l->desc.num_experts, sizeof *t->load);
    for (int p = 0; p < prompts; p++) {
        struct outcome o;
        moe_tensor x;
        if (!find_item(m, p, l->layer, recordings[0].input, "", &x)) {
            continue;
        }
        if (!replay(m, l, p, &recordings[0], &o)) {
            return 0;
        }
        for (int64_t i = 0; i < moec_count(&o.ids); i++) {
            const int32_t id = (int32_t)moec_value(&o.ids, i);
            if (id >= 0 && id < l->desc.num_experts) {
                t->load[id]++;
            }
        }
        t->slots += moec_count(&o.ids);
        t->tokens += o.tokens;
        t->wrong += o.wrong_ids;
        t->ratio = fmax(t->ratio, fmax(o.ratio[0], fmax(o.ratio[1], o.ratio[2])));
        t->failed |= o.failed;
        t->last = o;
        t->prompt = p;
    }
    return 1;
}

static void print_layer(struct model *m, const struct model_layer *l, const struct totals *t)
{
    (void)fprintf(m->out, "\nlayer %d, %" PRId64 " tokens\n", l->layer, t->tokens);
    print_load(m->out, t->load, l->desc.num_experts, t->slots);
    if (t->prompt >= 0 && t->last.tokens > 0) {
        print_tokens(m->out, &t->last, l->desc.top_k);
        const double all = time_us(m, l, t->prompt, t->last.tokens, &t->last);
        const double one = time_us(m, l, t->prompt, 1, &t->last);
        (void)fprintf(m->out,
                      "  time       %.0f us for %" PRId64 " tokens (%.1f us each), %.0f us for "
                      "one\n",
                      all, t->last.tokens, all / (double)t->last.tokens, one);
    }
    (void)fprintf(m->out,
                  "  agreement  %s: %" PRId64 " of %" PRId64 " expert choices as the reference, "
                  "largest error %.2f of the tolerance (1e-5)\n",
                  t->failed ? "FAIL" : "PASS", t->slots - t->wrong, t->slots, t->ratio);
}

static int demo_layer(struct model *m, int layer, int prompts, int first)
{
    struct model_layer l;
    struct totals t;
    const int64_t most = most_tokens(m, prompts, layer);
    if (most == 0) {
        return 1;
    }
    if (!make_layer(m, layer, most, &l)) {
        return 0;
    }
    if (first) {
        (void)fprintf(m->out,
                      "%s: hidden %" PRId64 ", %d experts of %" PRId64 ", %d per token, %s, %s "
                      "weights, f32 activations, %d threads\n",
                      m->dir, l.desc.hidden, (int)l.desc.num_experts, l.desc.inter,
                      (int)l.desc.top_k, moe_activation_name(l.desc.activation),
                      moe_format_name(l.desc.gemm[0].weight_format),
                      moe_context_num_threads(m->ctx));
        print_kernels(m, &l);
    }
    const int ran = run_prompts(m, &l, prompts, &t);
    if (ran) {
        print_layer(m, &l, &t);
    }
    free_layer(&l);
    return ran && (!t.failed || fail(m, "layer %d differs from the reference", layer));
}

int moec_demo(const char *dir, FILE *out)
{
    static const moec_options options;
    struct model m = {.dir = dir, .program = "moe", .out = out};
    int prompts = 0;
    int layers = 0;
    int good = open_model(&m, NULL, &options);
    if (good) {
        recorded(&m, &prompts, &layers);
        good = layers > 0 || fail(&m, "the reference has no item pN.lM.moe_in_bf16");
    }
    for (int layer = 0; good && layer < layers; layer++) {
        good = demo_layer(&m, layer, prompts, layer == 0);
    }
    if (good) {
        (void)fprintf(out, "\nAll %d layers agree with the recorded reference.\n", layers);
    } else {
        (void)fprintf(out, "\nFAIL: %s\n", m.reason);
    }
    close_model(&m);
    return good ? 0 : 1;
}
