// SPDX-License-Identifier: Apache-2.0
// Replays the Mixture-of-Experts layers of a real checkpoint on recorded inputs, one line per
// layer and prompt. The reference holds, per prompt N and
// layer M, pN.lM.<item> for the run inside the model and pN.lM.<item>_bf16in for the layer alone.
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/model_bound.h"
#include "checkmoe/oracle.h"
#include "checkmoe/replay.h"
#include "checkmoe/report.h"
#include "moe/io.h"

#define RTOL        1e-5 // as for oracle files: rtol 1e-5, atol 1e-5 of the standard deviation
#define TEXT        512
#define MAX_LAYERS  1024
#define MAX_PROMPTS 64
#define MAX_CONFIG  (1 << 24)

/// An open model with its reference.
struct model {
    const char *dir, *program;
    FILE *out;
    int verbose;
    moe_context *ctx;
    moe_context *cpu; // beside a device; NULL: ctx is the CPU's
    const moec_options *options;
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
    float64_layer exact;
    bool stated; ///< `exact` is there
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
    double ratio[3];   ///< largest error / tolerance of logits, weights, y
    double bound;      ///< largest error / float64 bound of y
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
    return ok(m, moec_context(options, &m->ctx)) && ok(m, moec_cpu_beside(m->ctx, &m->cpu)) &&
           read_config(m) && ok(m, moe_checkpoint_open(m->dir, MOE_FILE_DEFAULT, &m->checkpoint)) &&
           ok(m,
              moe_file_open(reference != NULL ? reference : path, MOE_FILE_DEFAULT, &m->reference));
}

static void close_model(struct model *m)
{
    moe_file_close(m->reference);
    moe_checkpoint_close(m->checkpoint);
    moec_twins_release(m->ctx);
    moe_context_destroy(m->cpu);
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
    out->stated = moec_model_bound_make(out->source, out->replay.plan, &m->heap, &out->exact);
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
    char device[32];
    if (!find_item(m, prompt, l->layer, item, r->suffix, &expected)) {
        return;
    }
    (void)snprintf(label, sizeof label, "layer %d prompt %d %s (%s)", l->layer, prompt, item,
                   r->what);
    (void)snprintf(repro, sizeof repro, "%s check%s --model %s", m->program,
                   moec_device_option(m->options, device, sizeof device), m->dir);
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
    if (!ok(m, moec_linear_map(m->cpu != NULL ? m->cpu : m->ctx, &m->heap, &l->router.weight,
                               &l->router.bias, &x, &o->logits))) {
        return 0;
    }
    const moe_run_args args = layer_args(l, &x, &o->logits, o);
    if (!ok(m, moec_replay_run(&l->replay, &args))) {
        return 0;
    }
    if (l->stated) {
        o->bound = moec_model_bound_ratio(&l->exact, l->desc.top_k, o->tokens, x.data, o->ids.data,
                                          o->weights.data, o->y.data);
        o->failed |= !(o->bound <= 1);
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
                          "%" PRId64 "/%" PRId64 "  weights (%.2f)  output (%.2f; %s %.1e)\n",
                          o.failed ? "FAIL" : "PASS", layer, p, recordings[r].what, o.tokens,
                          o.ratio[0], moec_count(&o.ids) - o.wrong_ids, moec_count(&o.ids),
                          o.ratio[1], o.ratio[2],
                          l.stated ? "of its float64 bound" : "no float64 statement", o.bound);
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
                      .verbose = options->verbose,
                      .options = options};
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
    close_model(&m);
    return opened ? 0 : -1;
}
