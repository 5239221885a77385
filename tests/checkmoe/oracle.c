// SPDX-License-Identifier: Apache-2.0
// Replays an oracle file: per case, semantics -> descriptor -> plan, tensors by role -> weights,
// then for each number of tokens the router's product, the layer, and the comparisons. Nothing here
// knows a case by name; the words of the vocabulary are src/io/semantics.c's.
#include "checkmoe/oracle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/desc.h"
#include "checkmoe/oracle_case.h"
#include "io/json.h"

#define MAX_SIZES 16 // different numbers of tokens in a case

// Vectors that the library takes as f32: flattened.
static moe_tensor flat_f32(struct moec_case *c, const char *key)
{
    const char *name = moec_json_string(c->semantics, key);
    moe_tensor t;
    memset(&t, 0, sizeof t);
    if (name != NULL && moec_case_ok(c, moec_case_weight(c, name, &t))) {
        t = moec_widen(&c->heap, &t);
        t = moe_tensor_1d(t.data, MOE_F32, moec_count(&t));
    }
    return t;
}

// -- Weights ------------------------------------------------------------------------------------

// The first `count` of a stack.
static moe_tensor first_of(const moe_tensor *t, int64_t count)
{
    moe_tensor r = *t;
    if (r.ndim > 0 && r.shape[0] > count) {
        r.shape[0] = count;
    }
    return r;
}

// [n, rows, ...] of two stacks, the rows of `a` before those of `b` in each.
static moe_tensor joined(struct moec_case *c, const moe_tensor *a, const moe_tensor *b)
{
    if (a->ndim != b->ndim || a->shape[0] != b->shape[0]) {
        moec_case_fail(c, "the shared experts' gate and up are stacks of different form");
        return *b;
    }
    moe_tensor fa = *a;
    moe_tensor fb = *b;
    if (a->dtype != b->dtype) {
        fa = moec_widen(&c->heap, a);
        fb = moec_widen(&c->heap, b);
    }
    const size_t count = (size_t)a->shape[0];
    const size_t elem = (size_t)moe_dtype_bits(fa.dtype) / 8;
    const size_t bytes_a = count > 0 ? (size_t)moec_count(a) / count * elem : 0;
    const size_t bytes_b = count > 0 ? (size_t)moec_count(b) / count * elem : 0;
    char *data = moec_keep(&c->heap, count, bytes_a + bytes_b);
    for (size_t i = 0; i < count; i++) {
        char *to = data + i * (bytes_a + bytes_b);
        memcpy(to, (const char *)fa.data + fa.byte_offset + i * bytes_a, bytes_a);
        memcpy(to + bytes_a, (const char *)fb.data + fb.byte_offset + i * bytes_b, bytes_b);
    }
    int64_t shape[MOE_MAX_DIMS];
    memcpy(shape, a->shape, sizeof shape);
    shape[1] += b->shape[1];
    return moe_tensor_make(data, fa.dtype, a->ndim, shape);
}

static void set_format(struct moec_case *c, const char *role, const moe_tensor *t,
                       moe_gemm_desc *gemm)
{
    gemm->weight_format = moec_float_format(t->dtype);
    if (gemm->weight_format == MOE_FORMAT_UNSET) {
        moec_case_fail(c, "role %s is %s, expected f32, bf16 or f16", role,
                       moe_dtype_name(t->dtype));
    }
}

static void routed_weights(struct moec_case *c)
{
    static const char *const values[2][2] = {{"gate_up", "up"}, {"down", NULL}};
    static const char *const biases[2] = {"gate_up_bias", "down_bias"};
    for (int g = 0; g < 2; g++) {
        moe_matrix_source *source = &c->source.gemm[g];
        moe_tensor t;
        if (!c->routed) {
            // The expert that no token chooses: inner size 1, all zeros.
            const int64_t h = c->desc.hidden;
            float *zeros = moec_keep(&c->heap, (size_t)(2 * h), sizeof *zeros);
            source->values = g == 0 ? moe_tensor_3d(zeros, MOE_F32, 1, 2, h)
                                    : moe_tensor_3d(zeros, MOE_F32, 1, h, 1);
            c->desc.gemm[g].weight_format = MOE_FORMAT_F32;
            continue;
        }
        const char *role = values[g][0];
        if (!moec_case_role(c, role, &t) && values[g][1] != NULL) {
            role = values[g][1];
            (void)moec_case_role(c, role, &t);
        }
        set_format(c, role, &t, &c->desc.gemm[g]);
        source->values = first_of(&t, c->desc.num_experts);
        if (moec_case_role(c, biases[g], &t)) {
            source->bias = first_of(&t, c->desc.num_experts);
        }
    }
}

static void shared_weights(struct moec_case *c)
{
    moe_matrix_source *source = c->source.shared;
    moe_gemm_desc *gemm = c->desc.shared.gemm;
    moe_tensor t;
    moe_tensor other;
    if (moec_case_role(c, "shared_gate_up", &t)) {
        source[0].values = moec_with_ndim(&t, 3);
    } else if (moec_case_role(c, "shared_up", &t)) {
        source[0].values = moec_with_ndim(&t, 3);
        if (moec_case_role(c, "shared_gate", &other)) {
            other = moec_with_ndim(&other, 3);
            source[0].values = joined(c, &other, &source[0].values);
        }
    }
    set_format(c, "shared_up", &source[0].values, &gemm[0]);
    if (moec_case_role(c, "shared_up_bias", &t)) {
        source[0].bias = moec_with_ndim(&t, 2);
        if (moec_case_role(c, "shared_gate_bias", &other)) {
            other = moec_with_ndim(&other, 2);
            source[0].bias = joined(c, &other, &source[0].bias);
        }
    }
    if (moec_case_role(c, "shared_down", &t)) {
        source[1].values = moec_with_ndim(&t, 3);
        set_format(c, "shared_down", &t, &gemm[1]);
    }
    if (moec_case_role(c, "shared_down_bias", &t)) {
        source[1].bias = moec_with_ndim(&t, 2);
    }
    (void)moec_case_role(c, "shared_gating", &c->source.shared_gate);
}

static void build_weights(struct moec_case *c)
{
    c->source = moe_weights_source_default();
    routed_weights(c);
    if (c->desc.shared.count > 0) {
        shared_weights(c);
    }
    (void)moec_case_role(c, "latent_in", &c->source.latent_in);
    (void)moec_case_role(c, "latent_out", &c->source.latent_out);
    (void)moec_case_role(c, "output_bias", &c->source.output_bias);
    c->correction_bias = flat_f32(c, "correction_bias");
    c->scale_tensor = flat_f32(c, "scale_tensor");
}

// -- Cases --------------------------------------------------------------------------------------

// The numbers of tokens for which the case has inputs, ascending.
static int batch_sizes(const struct moec_case *c, int64_t sizes[MAX_SIZES])
{
    char prefix[MOEC_TEXT];
    int n = 0;
    const int length = snprintf(prefix, sizeof prefix, "%s/x.T", c->name);
    for (size_t i = 0; i < moe_file_count(c->file); i++) {
        const char *name = moe_file_name(c->file, i);
        char *end;
        if (length < 0 || strncmp(name, prefix, (size_t)length) != 0) {
            continue;
        }
        const long long tokens = strtoll(name + length, &end, 10);
        if (*end != '\0' || tokens < 0 || tokens > INT32_MAX || n == MAX_SIZES) {
            continue;
        }
        int at = n++;
        for (; at > 0 && sizes[at - 1] > tokens; at--) {
            sizes[at] = sizes[at - 1];
        }
        sizes[at] = tokens;
    }
    return n;
}

// The configuration must give the same layer, where the table has the class.
static void check_config(struct moec_case *c)
{
    moe_layer_desc by_config = moe_layer_desc_default();
    char *text = json_dumps(json_object_get(c->json, "config"), JSON_COMPACT | JSON_ENCODE_ANY);
    char why[MOEC_TEXT];
    if (text == NULL) {
        return;
    }
    const moe_status status = moe_layer_desc_from_config(text, strlen(text), &by_config);
    free(text);
    if (status == MOE_E_NOT_FOUND) {
        moec_case_note(c, "class not in the table");
    } else if (status == MOE_E_UNSUPPORTED) {
        moec_case_note(c, "config not supported");
    } else if (status != MOE_OK) {
        moec_case_fail(c, "%s", moe_last_error());
    } else if (moec_desc_differ(&by_config, &c->desc, c->desc.shared.count == 0, why, sizeof why)) {
        moec_case_fail(c, "config and semantics differ in %s", why);
    } else if (c->desc.shared.count == 0 && by_config.shared.count > 0) {
        moec_case_note(c, "config has shared experts beside the block");
    }
}

static int make_layer(struct moec_case *c, int64_t max_tokens)
{
    char *text = json_dumps(c->json, JSON_COMPACT);
    c->desc = moe_layer_desc_default();
    const moe_status status =
        text == NULL
            ? MOE_E_NO_MEMORY
            : moe_layer_desc_from_semantics(text, strlen(text), moec_case_weight, c, &c->desc);
    free(text);
    if (!moec_case_ok(c, status)) {
        return 0;
    }
    c->routed = c->desc.routing == MOE_ROUTING_FROM_LOGITS;
    check_config(c);
    c->desc.x_dtype = MOE_F32;
    c->desc.max_tokens = max_tokens;
    build_weights(c);
    if (c->failed || c->skipped ||
        !moec_case_ok(c, moec_replay_make(c->ctx, &c->desc, &c->source, 0, &c->packed))) {
        return 0;
    }
    const moe_status wrapped = moec_replay_make(c->ctx, &c->desc, &c->source, 1, &c->wrapped);
    c->has_wrapped = wrapped == MOE_OK;
    return wrapped == MOE_E_UNSUPPORTED || moec_case_ok(c, wrapped);
}

static void print_tally(const struct moec_case *c, const char *name, const struct moec_tally *tally)
{
    if (tally->done > 0) {
        (void)fprintf(c->out, "  %s %d/%d", name, tally->done - tally->failed, tally->done);
        if (tally->ratio > 0) {
            (void)fprintf(c->out, " (%.2f)", tally->ratio);
        }
    }
}

static void run_case(struct moec_case *c, moec_counts *counts)
{
    int64_t sizes[MAX_SIZES];
    char device[32];
    const int num_sizes = batch_sizes(c, sizes);
    const char *config_class = moec_json_string(c->json, "config_class");
    c->semantics = json_object_get(c->json, "semantics");
    c->tensors = json_object_get(c->semantics, "tensors");
    (void)snprintf(c->repro, sizeof c->repro, "%s check%s --oracle %s --kernel %s",
                   c->options->program != NULL ? c->options->program : "moe",
                   moec_device_option(c->options, device, sizeof device), c->path, c->name);
    if (c->semantics == NULL) {
        c->skipped = 1;
        (void)snprintf(c->reason, sizeof c->reason, "the case has no semantics");
    } else if (num_sizes == 0) {
        moec_case_fail(c, "the case has no input x.T<tokens>");
    } else if (make_layer(c, sizes[num_sizes - 1])) {
        for (int i = 0; i < num_sizes && !c->skipped; i++) {
            moec_case_run(c, sizes[i]);
        }
    }
    const char *verdict = c->failed ? "FAIL" : c->skipped ? "SKIP" : "PASS";
    (void)fprintf(c->out, "%s  %s", verdict, c->name);
    if (config_class != NULL) {
        (void)fprintf(c->out, " (%s)", config_class);
    }
    if (c->failed || c->skipped) {
        (void)fprintf(c->out, ": %s", c->reason);
    } else {
        print_tally(c, "logits", &c->logits);
        print_tally(c, "ids", &c->ids);
        print_tally(c, "weights", &c->weights);
        print_tally(c, "y", &c->y);
        print_tally(c, "submodules", &c->hooks);
    }
    (void)fprintf(c->out, "%s\n", c->notes);
    counts->failed += c->failed != 0;
    counts->skipped += !c->failed && c->skipped;
    counts->passed += !c->failed && !c->skipped;
    moec_replay_free(&c->packed);
    moec_replay_free(&c->wrapped);
    moec_heap_free(&c->heap);
}

static int run_cases(const char *path, const moec_options *options, moe_context *ctx,
                     const moe_context *cpu, const moe_file *file, FILE *out, moec_counts *counts)
{
    const char *text = moe_file_metadata(file, "cases");
    moei_json cases = {NULL, NULL, NULL};
    if (text == NULL || moei_json_parse(&cases, "metadata", "cases", text, strlen(text),
                                        MOEI_JSON_PYTHON) != MOE_OK) {
        (void)fprintf(out, "FAIL  %s: %s\n", path,
                      text == NULL ? "the metadata has no \"cases\"" : moe_last_error());
        counts->failed++;
        return -1;
    }
    const char *name;
    json_t *json;
    json_object_foreach(cases.root, name, json)
    {
        if (options->kernel != NULL && !moec_glob(options->kernel, name)) {
            continue;
        }
        counts->selected++;
        if (options->list) {
            (void)fprintf(out, "%s\n", name);
            continue;
        }
        struct moec_case c = {.options = options,
                              .out = out,
                              .path = path,
                              .name = name,
                              .ctx = ctx,
                              .host = cpu != NULL ? cpu : ctx,
                              .file = file,
                              .json = json};
        run_case(&c, counts);
    }
    moei_json_free(&cases);
    return 0;
}

int moec_oracle_run(const char *path, const moec_options *options, FILE *out, moec_counts *counts)
{
    static const moec_options defaults;
    moe_context *ctx = NULL;
    moe_context *cpu = NULL;
    moe_file *file = NULL;
    int result = -1;
    options = options != NULL ? options : &defaults;
    if (moec_context(options, &ctx) != MOE_OK || moec_cpu_beside(ctx, &cpu) != MOE_OK ||
        moe_file_open(path, MOE_FILE_DEFAULT, &file) != MOE_OK) {
        (void)fprintf(out, "FAIL  %s\n", moe_last_error());
        counts->failed++;
    } else {
        result = run_cases(path, options, ctx, cpu, file, out, counts);
    }
    moe_file_close(file);
    moec_twins_release(ctx);
    moe_context_destroy(cpu);
    moe_context_destroy(ctx);
    return result;
}
