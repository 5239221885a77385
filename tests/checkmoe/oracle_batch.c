// SPDX-License-Identifier: Apache-2.0
// Replays an oracle case for one number of tokens: the router's product, the layer, and then every
// comparison that the file allows, among them the outputs of submodules by single ops.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "checkmoe/oracle_case.h"
#include "checkmoe/report.h"

#define RTOL     1e-5 // README: rtol 1e-5, atol 1e-5 of the standard deviation
#define NEAR_TIE 2e-5 // margins below it may flip an id in float32

/// One number of tokens.
struct moec_batch {
    int64_t tokens;
    moe_tensor x;              // f32
    moe_tensor logits;         // ours, or the file's after a near tie
    moe_tensor ids, weights;   // [T, k], from the layer
    moe_tensor shared_weights; // [T, n], from moe_route
    moe_tensor y;
};

// -- Comparisons --------------------------------------------------------------------------------

// The same elements in the shape of `like`, where the counts agree (a leading 1 more or less).
static moe_tensor shaped_as(const moe_tensor *t, const moe_tensor *like)
{
    return moec_count(t) == moec_count(like)
               ? moe_tensor_make((const char *)t->data + t->byte_offset, t->dtype, like->ndim,
                                 like->shape)
               : *t;
}

// Within rtol and atol times the spread of what is expected. A mismatch prints a report.
static int compare(struct moec_case *c, struct moec_tally *tally, const char *what, int64_t tokens,
                   const moe_tensor *actual, const moe_tensor *expected, double atol, int decisive)
{
    char label[MOEC_TEXT];
    moec_stats stats;
    (void)snprintf(label, sizeof label, "%s %s T=%" PRId64, c->name, what, tokens);
    const moec_compare comparison = {.label = label,
                                     .actual = *actual,
                                     .expected = shaped_as(expected, actual),
                                     .atol = atol,
                                     .rtol = RTOL,
                                     .repro = c->repro,
                                     .out = decisive ? c->out : NULL,
                                     .always = c->options->verbose};
    const int good = moec_report_compare(&comparison, &stats) != MOEC_FAIL;
    tally->done++;
    if (good) {
        tally->ratio = fmax(tally->ratio, stats.max_ratio);
    } else {
        tally->failed++;
        if (decisive) {
            moec_case_fail(c, "%s differs at T=%" PRId64 " (largest error / bound %.3g)", what,
                           tokens, stats.max_ratio);
        }
    }
    return good;
}

static double y_atol(const struct moec_case *c, int64_t tokens, const moe_tensor *expected)
{
    char key[MOEC_TEXT];
    (void)snprintf(key, sizeof key, "y_std.T%" PRId64, tokens);
    const json_t *std = json_object_get(json_object_get(c->json, "stats"), key);
    return RTOL * (json_is_number(std) ? json_number_value(std) : moec_std(expected));
}

// Whether the file warns that float32 may choose another expert.
static int near_tie(const struct moec_case *c, int64_t tokens)
{
    char key[MOEC_TEXT];
    (void)snprintf(key, sizeof key, "min_margin.T%" PRId64, tokens);
    const json_t *margin = json_object_get(json_object_get(c->json, "stats"), key);
    return json_is_number(margin) && json_number_value(margin) < NEAR_TIE;
}

static void compute_logits(struct moec_case *c, struct moec_batch *b)
{
    moe_tensor router;
    moe_tensor bias;
    moe_tensor expected;
    if (!moec_case_role(c, "router", &router)) {
        return;
    }
    (void)moec_case_role(c, "router_bias", &bias);
    if (!moec_case_ok(c, moec_linear_map(c->host, &c->heap, &router, &bias, &b->x, &b->logits)) ||
        !moec_case_item(c, "logits", b->tokens, &expected)) {
        return;
    }
    // Rows that belong to shared experts may be missing in the file.
    moe_tensor ours = b->logits;
    const int64_t columns = b->tokens > 0 ? moec_count(&expected) / b->tokens : 0;
    if (columns < ours.shape[1]) {
        ours.shape[1] = columns;
    }
    (void)compare(c, &c->logits, "logits", b->tokens, &ours, &expected, RTOL * moec_std(&expected),
                  1);
}

static int is_id(moe_dtype dtype)
{
    return dtype == MOE_I32 || dtype == MOE_I64;
}

// Ids and weights of the file as [T, k], whatever order its library works in.
static void expected_routing(struct moec_case *c, const struct moec_batch *b, moe_tensor *ids,
                             moe_tensor *weights)
{
    const int64_t k = c->desc.top_k;
    const char *ids_item = moec_json_string(c->json, "ids_item");
    const char *slot_item = moec_json_string(c->json, "weights_slot_item");
    moe_tensor slots;
    memset(ids, 0, sizeof *ids);
    memset(weights, 0, sizeof *weights);
    if (!moec_case_item(c, ids_item != NULL ? ids_item : "ids", b->tokens, ids) ||
        !is_id(ids->dtype) || moec_count(ids) != b->tokens * k) {
        memset(ids, 0, sizeof *ids);
        return;
    }
    if (!moec_case_item(c, "weights", b->tokens, weights) ||
        moec_float_format(weights->dtype) == MOE_FORMAT_UNSET) {
        memset(weights, 0, sizeof *weights);
        return;
    }
    if (slot_item == NULL) {
        return;
    }
    // Element i belongs at place slots[i] of the [T, k] array.
    moe_tensor placed = moec_new_f32(&c->heap, b->tokens, k);
    if (!moec_case_item(c, slot_item, b->tokens, &slots) || !is_id(slots.dtype) ||
        moec_count(&slots) != b->tokens * k || moec_count(weights) != b->tokens * k) {
        memset(weights, 0, sizeof *weights);
        return;
    }
    for (int64_t i = 0; i < b->tokens * k; i++) {
        const int64_t at = (int64_t)moec_value(&slots, i);
        if (at >= 0 && at < b->tokens * k) {
            ((float *)placed.data)[at] = (float)moec_value(weights, i);
        }
    }
    *weights = placed;
}

// Place of an id among the k of a token, -1: not there.
static int64_t place_of(const moe_tensor *ids, int64_t token, int64_t k, int64_t id)
{
    for (int64_t j = 0; j < k; j++) {
        if ((int64_t)moec_value(ids, token * k + j) == id) {
            return j;
        }
    }
    return -1;
}

// The first token whose set of ids differs, -1: none.
static int64_t different_ids(const moe_tensor *a, const moe_tensor *b, int64_t tokens, int64_t k)
{
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t j = 0; j < k; j++) {
            if (place_of(a, t, k, (int64_t)moec_value(b, t * k + j)) < 0) {
                return t;
            }
        }
    }
    return -1;
}

static void print_ids(const struct moec_case *c, const char *who, const moe_tensor *ids,
                      int64_t token)
{
    const int64_t k = c->desc.top_k;
    (void)fprintf(c->out, "  %-12s", who);
    for (int64_t j = 0; j < k; j++) {
        (void)fprintf(c->out, " %" PRId64, (int64_t)moec_value(ids, token * k + j));
    }
    (void)fprintf(c->out, "\n");
}

// Our weights in the order of the file's ids, then (where the file has them) the shared experts'.
static void compare_weights(struct moec_case *c, const struct moec_batch *b, const moe_tensor *ids,
                            const moe_tensor *weights)
{
    const int64_t k = c->desc.top_k;
    const int64_t columns = moec_count(weights) / b->tokens;
    const int64_t shared = b->shared_weights.data != NULL ? b->shared_weights.shape[1] : 0;
    if (columns != k && columns != k + shared) {
        moec_case_note(c, "weights in a form of their own");
        return;
    }
    moe_tensor ours = moec_new_f32(&c->heap, b->tokens, columns);
    float *out = ours.data;
    for (int64_t t = 0; t < b->tokens; t++) {
        for (int64_t j = 0; j < columns; j++) {
            const int64_t place =
                j < k ? place_of(&b->ids, t, k, (int64_t)moec_value(ids, t * k + j)) : j - k;
            const moe_tensor *from = j < k ? &b->weights : &b->shared_weights;
            out[t * columns + j] = (float)moec_value(from, t * (j < k ? k : shared) + place);
        }
    }
    (void)compare(c, &c->weights, "weights", b->tokens, &ours, weights, 0, 1);
}

static void compare_dense(struct moec_case *c, const struct moec_batch *b)
{
    moe_tensor expected;
    const int64_t k = c->desc.top_k;
    if (!moec_case_item(c, "weights_dense", b->tokens, &expected)) {
        return;
    }
    const int64_t columns = moec_count(&expected) / b->tokens;
    moe_tensor ours = moec_new_f32(&c->heap, b->tokens, columns);
    for (int64_t i = 0; i < b->tokens * k; i++) {
        const int64_t id = (int64_t)moec_value(&b->ids, i);
        if (id >= 0 && id < columns) {
            ((float *)ours.data)[i / k * columns + id] = (float)moec_value(&b->weights, i);
        }
    }
    (void)compare(c, &c->weights, "weights_dense", b->tokens, &ours, &expected, 0, 1);
}

// -- Running ------------------------------------------------------------------------------------

static moe_run_args run_args(const struct moec_case *c, const struct moec_batch *b)
{
    moe_run_args args = moe_run_args_default();
    args.num_tokens = b->tokens;
    args.x = b->x;
    if (c->routed) {
        args.logits = b->logits;
        args.correction_bias = c->correction_bias;
        args.scale_tensor = c->scale_tensor;
        args.out_ids = b->ids;
        args.out_weights = b->weights;
    } else {
        args.ids = b->ids;
        args.weights = b->weights;
    }
    args.out = b->y;
    return args;
}

static int run_layer(struct moec_case *c, struct moec_batch *b)
{
    if (!c->routed) {
        for (int64_t t = 0; t < b->tokens; t++) {
            ((int32_t *)b->ids.data)[t] = -1;
        }
    }
    const moe_run_args args = run_args(c, b);
    return moec_case_ok(c, moec_replay_run(&c->packed, &args));
}

// The weights of shared experts are an output of moe_route only; ids and weights must be the
// layer's, bit for bit.
static void run_route(struct moec_case *c, struct moec_batch *b)
{
    moe_route_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.desc = c->desc.route;
    args.num_experts = c->desc.num_experts;
    args.top_k = c->desc.top_k;
    args.logits = b->logits;
    args.correction_bias = c->correction_bias;
    args.scale_tensor = c->scale_tensor;
    args.ids = moec_new_i32(&c->heap, b->tokens, c->desc.top_k);
    args.weights = moec_new_f32(&c->heap, b->tokens, c->desc.top_k);
    if (c->desc.route.shared_scores > 0) {
        b->shared_weights = moec_new_f32(&c->heap, b->tokens, c->desc.route.shared_scores);
        args.shared_weights = b->shared_weights;
    }
    if (!moec_case_ok(c, moe_route(c->host, &args, NULL))) {
        return;
    }
    const size_t bytes = (size_t)(b->tokens * c->desc.top_k) * sizeof(float);
    if (memcmp(args.ids.data, b->ids.data, bytes) != 0 ||
        memcmp(args.weights.data, b->weights.data, bytes) != 0) {
        moec_case_fail(c, "moe_route and moe_run route differently at T=%" PRId64, b->tokens);
    }
}

static void check_routing(struct moec_case *c, struct moec_batch *b)
{
    moe_tensor ids;
    moe_tensor weights;
    moe_tensor logits;
    const int64_t k = c->desc.top_k;
    expected_routing(c, b, &ids, &weights);
    if (ids.data != NULL) {
        int64_t token = different_ids(&b->ids, &ids, b->tokens, k);
        if (token >= 0 && near_tie(c, b->tokens) &&
            moec_case_item(c, "logits", b->tokens, &logits) &&
            moec_count(&logits) == moec_count(&b->logits)) {
            moec_case_note(c, "a near tie: the file's logits were used");
            b->logits = shaped_as(&logits, &b->logits);
            if (!run_layer(c, b)) {
                return;
            }
            token = different_ids(&b->ids, &ids, b->tokens, k);
        }
        c->ids.done++;
        if (token >= 0) {
            c->ids.failed++;
            (void)fprintf(c->out, "FAIL  %s ids T=%" PRId64 "  token %" PRId64 "\n", c->name,
                          b->tokens, token);
            print_ids(c, "actual", &b->ids, token);
            print_ids(c, "expected", &ids, token);
            (void)fprintf(c->out, "  repeat with  %s\n", c->repro);
            moec_case_fail(c, "ids differ at T=%" PRId64 ", token %" PRId64, b->tokens, token);
            return;
        }
    }
    run_route(c, b);
    if (ids.data != NULL && weights.data != NULL) {
        compare_weights(c, b, &ids, &weights);
    } else {
        moec_case_note(c, ids.data == NULL ? "no ids in the file" : "no weights in the file");
    }
    compare_dense(c, b);
}

// Weights used where the file has them give the bits of the packed ones.
static void check_wrapped(struct moec_case *c, const struct moec_batch *b)
{
    if (!c->has_wrapped) {
        return;
    }
    struct moec_batch other = *b;
    other.y = moec_new_f32(&c->heap, b->tokens, c->desc.hidden);
    const moe_run_args args = run_args(c, &other);
    if (moec_case_ok(c, moec_replay_run(&c->wrapped, &args)) &&
        memcmp(other.y.data, b->y.data, (size_t)moec_count(&b->y) * sizeof(float)) != 0) {
        moec_case_fail(c, "wrapped weights give other bits than packed ones at T=%" PRId64,
                       b->tokens);
    }
}

// The same ids and weights given, instead of computed, give the same bits.
static void check_given(struct moec_case *c, const struct moec_batch *b)
{
    if (!c->routed) {
        return;
    }
    moe_layer_desc desc = c->desc;
    moec_replay layer;
    memset(&desc.route, 0, sizeof desc.route);
    desc.routing = MOE_ROUTING_GIVEN;
    desc.route.zero_experts = c->desc.route.zero_experts;
    if (!moec_case_ok(c, moec_replay_make(c->ctx, &desc, &c->source, 0, &layer))) {
        return;
    }
    moe_run_args args = moe_run_args_default();
    args.num_tokens = b->tokens;
    args.x = b->x;
    args.ids = b->ids;
    args.weights = b->weights;
    args.shared_weights = b->shared_weights;
    args.out = moec_new_f32(&c->heap, b->tokens, desc.hidden);
    if (moec_case_ok(c, moec_replay_run(&layer, &args)) &&
        memcmp(args.out.data, b->y.data, (size_t)moec_count(&b->y) * sizeof(float)) != 0) {
        moec_case_fail(c, "given ids and weights give other bits than routed ones at T=%" PRId64,
                       b->tokens);
    }
    moec_replay_free(&layer);
}

// -- Outputs of submodules ----------------------------------------------------------------------

// Output of the module of a role's tensor (a linear one, of which it is the weight), or with
// `parent` of the module that holds it.
static int hook_of_role(const struct moec_case *c, const char *role, int parent, int64_t tokens,
                        moe_tensor *out)
{
    const char *name = moec_json_string(c->tensors, role);
    char stem[MOEC_TEXT];
    if (name == NULL) {
        return 0;
    }
    const int length = snprintf(stem, sizeof stem, "hook.%s", name);
    if (length < 0 || (size_t)length >= sizeof stem - sizeof ".out0") {
        return 0;
    }
    char *dot = strrchr(stem + 5, '.');
    const int is_linear = dot != NULL && strcmp(dot, ".weight") == 0;
    if (is_linear) {
        *dot = '\0';
        dot = strrchr(stem + 5, '.');
    }
    if (!parent && !is_linear) {
        return 0;
    }
    if (parent) {
        if (dot == NULL) {
            return 0;
        }
        *dot = '\0';
    }
    const size_t used = strlen(stem);
    (void)snprintf(stem + used, sizeof stem - used, ".out0");
    return moec_case_item(c, stem, tokens, out);
}

static void check_linear_hook(struct moec_case *c, const struct moec_batch *b, const char *role,
                              const moe_tensor *input)
{
    moe_tensor weight;
    moe_tensor expected;
    moe_tensor y;
    if (hook_of_role(c, role, 0, b->tokens, &expected) && moec_case_role(c, role, &weight) &&
        moec_case_ok(c, moec_linear_map(c->host, &c->heap, &weight, NULL, input, &y)) &&
        moec_count(&y) == moec_count(&expected)) {
        (void)compare(c, &c->hooks, role, b->tokens, &y, &expected, RTOL * moec_std(&expected), 1);
    }
}

// gate_up, glu and down of the shared experts as single ops; their outputs combined.
static moe_status shared_by_ops(struct moec_case *c, const struct moec_batch *b, moe_tensor *out)
{
    const moe_shared_desc *s = &c->desc.shared;
    const int64_t rows1 = moe_activation_gated(s->activation) ? 2 * s->inter : s->inter;
    moe_tensor gate_up = moec_new_f32(&c->heap, b->tokens, rows1);
    moe_tensor h = moec_new_f32(&c->heap, b->tokens, s->inter);
    moe_tensor slots = moec_new_f32(&c->heap, b->tokens * s->count, c->desc.hidden);
    slots = moe_tensor_3d(slots.data, MOE_F32, b->tokens, s->count, c->desc.hidden);
    moe_status status = MOE_OK;
    for (int32_t i = 0; i < s->count && status == MOE_OK; i++) {
        moe_ggemm_args product;
        moe_glu_args glu;
        for (int g = 0; g < 2 && status == MOE_OK; g++) {
            memset(&product, 0, sizeof product);
            product.struct_size = sizeof product;
            product.gemm = s->gemm[g];
            product.weights.values = c->source.shared[g].values;
            product.weights.values.shape[0] = 1;
            product.weights.values.data = (char *)product.weights.values.data +
                                          i * product.weights.values.stride[0] *
                                              (moe_dtype_bits(product.weights.values.dtype) / 8);
            if (s->gemm[g].bias) {
                product.weights.bias = c->source.shared[g].bias;
            }
            product.x = g == 0 ? b->x : h;
            product.y = gate_up;
            if (g == 1) {
                product.y = moe_tensor_2d((float *)slots.data + i * c->desc.hidden, MOE_F32,
                                          b->tokens, c->desc.hidden);
                product.y.stride[0] = s->count * c->desc.hidden;
            }
            status = moe_ggemm(c->host, &product, NULL);
            if (g == 0 && status == MOE_OK) {
                memset(&glu, 0, sizeof glu);
                glu.struct_size = sizeof glu;
                glu.activation = s->activation;
                glu.alpha = s->alpha;
                glu.beta = s->beta;
                glu.linear_beta = s->linear_beta;
                glu.limit = s->limit;
                glu.gate_up = s->gate_up;
                glu.x = gate_up;
                glu.y = h;
                status = moe_glu(c->host, &glu, NULL);
            }
        }
    }
    moe_combine_args combine;
    memset(&combine, 0, sizeof combine);
    combine.struct_size = sizeof combine;
    combine.slots = slots;
    if (s->gate == MOE_SHARED_ROUTER_WEIGHTED) {
        combine.weights = b->shared_weights;
    }
    *out = moec_new_f32(&c->heap, b->tokens, c->desc.hidden);
    combine.out = *out;
    return status == MOE_OK ? moe_combine(c->host, &combine, NULL) : status;
}

static void check_shared_hook(struct moec_case *c, const struct moec_batch *b)
{
    moe_tensor expected;
    moe_tensor y;
    if (c->desc.shared.count == 0) {
        return;
    }
    if (!hook_of_role(c, "shared_down", 1, b->tokens, &expected) ||
        moec_count(&expected) != b->tokens * c->desc.hidden ||
        !moec_case_ok(c, shared_by_ops(c, b, &y))) {
        return;
    }
    // Beyond a plain expert, the file does not say whether the module applies the gate.
    const int decisive = c->desc.shared.gate == MOE_SHARED_PLAIN;
    if (!compare(c, &c->hooks, "shared experts", b->tokens, &y, &expected,
                 RTOL * moec_std(&expected), decisive) &&
        !decisive) {
        moec_case_note(c, "the shared module computes something else");
    }
}

// The routed experts alone, with ids and weights given, in their own (latent) width.
static void check_experts_hook(struct moec_case *c, const struct moec_batch *b,
                               const moe_tensor *latent_x)
{
    moe_tensor expected;
    moe_layer_desc desc = c->desc;
    moe_weights_source source = c->source;
    moec_replay layer;
    if (!c->routed || !hook_of_role(c, "down", 1, b->tokens, &expected)) {
        return;
    }
    memset(&desc.route, 0, sizeof desc.route);
    memset(&desc.shared, 0, sizeof desc.shared);
    desc.routing = MOE_ROUTING_GIVEN;
    desc.route.zero_experts = c->desc.route.zero_experts;
    desc.hidden = desc.latent > 0 ? desc.latent : desc.hidden;
    desc.latent = 0;
    desc.output_bias = 0;
    memset(source.shared, 0, sizeof source.shared);
    memset(&source.shared_gate, 0, sizeof source.shared_gate);
    memset(&source.latent_in, 0, sizeof source.latent_in);
    memset(&source.latent_out, 0, sizeof source.latent_out);
    memset(&source.output_bias, 0, sizeof source.output_bias);
    if (moec_count(&expected) != b->tokens * desc.hidden ||
        !moec_case_ok(c, moec_replay_make(c->ctx, &desc, &source, 0, &layer))) {
        return;
    }
    moe_run_args args = moe_run_args_default();
    args.num_tokens = b->tokens;
    args.x = *latent_x;
    args.ids = b->ids;
    args.weights = b->weights;
    args.out = moec_new_f32(&c->heap, b->tokens, desc.hidden);
    // Some blocks scale the sum after this module, so that it is not the layer's part of y.
    if (moec_case_ok(c, moec_replay_run(&layer, &args)) &&
        !compare(c, &c->hooks, "experts", b->tokens, &args.out, &expected,
                 RTOL * moec_std(&expected), 0)) {
        moec_case_note(c, "the experts module computes something else");
    }
    moec_replay_free(&layer);
}

static void check_hooks(struct moec_case *c, const struct moec_batch *b)
{
    moe_tensor latent_x = b->x;
    moe_tensor t;
    if (c->desc.latent > 0 &&
        !moec_case_ok(
            c, moec_linear_map(c->host, &c->heap, &c->source.latent_in, NULL, &b->x, &latent_x))) {
        return;
    }
    check_linear_hook(c, b, "latent_in", &b->x);
    check_linear_hook(c, b, "shared_gating", &b->x);
    check_shared_hook(c, b);
    check_experts_hook(c, b, &latent_x);
    if (c->desc.latent > 0 && hook_of_role(c, "down", 1, b->tokens, &t) &&
        moec_count(&t) == moec_count(&latent_x)) {
        const moe_tensor input = shaped_as(&t, &latent_x);
        check_linear_hook(c, b, "latent_out", &input);
    }
}

void moec_case_run(struct moec_case *c, int64_t tokens)
{
    struct moec_batch b;
    moe_tensor x;
    moe_tensor y;
    memset(&b, 0, sizeof b);
    b.tokens = tokens;
    if (!moec_case_item(c, "x", tokens, &x) || !moec_case_item(c, "y", tokens, &y)) {
        moec_case_fail(c, "x.T%" PRId64 " or y.T%" PRId64 " is missing", tokens, tokens);
        return;
    }
    if (moec_count(&x) != tokens * c->desc.hidden) {
        moec_case_fail(c, "x.T%" PRId64 " has %" PRId64 " elements, expected %" PRId64 " times H",
                       tokens, moec_count(&x), tokens);
        return;
    }
    x = moec_widen(&c->heap, &x);
    b.x = moe_tensor_2d(x.data, MOE_F32, tokens, c->desc.hidden);
    b.ids = moec_new_i32(&c->heap, tokens, c->desc.top_k);
    b.weights = moec_new_f32(&c->heap, tokens, c->desc.top_k);
    b.y = moec_new_f32(&c->heap, tokens, c->desc.hidden);
    if (c->routed) {
        compute_logits(c, &b);
    }
    if (c->failed || c->skipped || !run_layer(c, &b)) {
        return;
    }
    if (tokens == 0) {
        return;
    }
    if (c->routed) {
        check_routing(c, &b);
    }
    if (c->skipped) {
        return;
    }
    (void)compare(c, &c->y, "y", tokens, &b.y, &y, y_atol(c, tokens, &y), 1);
    check_wrapped(c, &b);
    check_given(c, &b);
    check_hooks(c, &b);
}
