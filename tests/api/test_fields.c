// SPDX-License-Identifier: Apache-2.0
// No field of a descriptor is ignored. Every field of moe_layer_desc is set, in every context, to
// values that mean nothing (which must be refused, by name) and to values that mean something
// somewhere: then the plan is refused, or what it computes changes, or the value is listed here as
// saying what holds anyway.
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "quant/formats.h"
#include "quant/specs.h"
#include "unit/test.h"

#define TOKENS     5
#define MAX_VALUES 8

typedef enum kind { KIND_I32, KIND_I64, KIND_F32, KIND_SIZE } kind;

typedef struct field {
    const char *name;
    size_t offset;
    kind kind;
    int num_values;
    double values[MAX_VALUES]; // what may mean something
} field;

#define COUNT(...) (int)(sizeof((double[]){__VA_ARGS__}) / sizeof(double))
#define FIELD(member, kind, ...)                                                                   \
    {                                                                                              \
#member, offsetof(moe_layer_desc, member), KIND_##kind, COUNT(__VA_ARGS__),                \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

#define QUANT_FIELDS(at)                                                                           \
    FIELD(at.spec, I32, MOE_QUANT_FP8_TOKEN, MOE_QUANT_FP8_STATIC, MOE_QUANT_I8B32,                \
          MOE_QUANT_FP8_GROUP_DIV, MOE_QUANT_NVFP4, MOE_QUANT_INT8_TOKEN, MOE_QUANT_MX_FLOOR),     \
        FIELD(at.elem, I32, MOE_E4M3FN, MOE_E5M2, MOE_I8, MOE_E2M1),                               \
        FIELD(at.group, I32, 16, 32, 64, 128),                                                     \
        FIELD(at.scale_type, I32, MOE_SCALE_F32, MOE_SCALE_UE8M0_F32, MOE_SCALE_E8M0,              \
              MOE_SCALE_UE8M0_PACKED, MOE_SCALE_E4M3FN),                                           \
        FIELD(at.scale_layout, I32, MOE_SCALE_LAYOUT_ROW, MOE_SCALE_LAYOUT_COLUMN),                \
        FIELD(at.amax_bound, F32, 0.5)

#define GEMM_FIELDS(at)                                                                            \
    FIELD(at.weight_format, I32, MOE_FORMAT_F32, MOE_FORMAT_E4M3FN_BLOCK, MOE_FORMAT_MXFP4,        \
          MOE_FORMAT_INT4_GROUP, MOE_FORMAT_NVFP4, MOE_FORMAT_E4M3FN_CHANNEL),                     \
        FIELD(at.weight_scale_dtype, I32, MOE_F32, MOE_BF16, MOE_E8M0, MOE_I32),                   \
        FIELD(at.weight_group, I32, 16, 32, 64, 128), FIELD(at.zero_points, I32, 1),               \
        FIELD(at.channel_scale, I32, 1), FIELD(at.bias, I32, 1), QUANT_FIELDS(at.act)

static const field fields[] = {
    FIELD(max_tokens, I64, 5, 100),
    FIELD(hidden, I64, 32, 96),
    FIELD(inter, I64, 16, 64),
    FIELD(num_experts, I32, 6, 12),
    FIELD(num_local_experts, I32, 4, 8, 9),
    FIELD(top_k, I32, 1, 3),
    FIELD(latent, I64, 16, 32),
    FIELD(routing, I32, 1, 2, 3),
    FIELD(route.scoring, I32, 1, 2, 3, 4, 5, 6),
    FIELD(route.select_on, I32, 1, 2),
    FIELD(route.renormalise, I32, 1, 2, 3),
    FIELD(route.renorm_eps, F32, 0.5),
    FIELD(route.scale, F32, 1.0, 2.5),
    FIELD(route.correction_bias, I32, 1),
    FIELD(route.scale_tensor, I32, 1),
    FIELD(route.num_groups, I32, 1, 2, 4),
    FIELD(route.top_groups, I32, 1, 2),
    FIELD(route.group_score, I32, 1, 2),
    FIELD(route.group_mask_zero, I32, 1),
    FIELD(route.zero_experts, I32, 1, 4),
    FIELD(route.shared_scores, I32, 1, 2),
    FIELD(route.renorm_shared, I32, 1),
    FIELD(route.hash_table, I32, 1),
    FIELD(route.jitter_eps, F32, 0.2),
    FIELD(route.append_shared, I32, 1, 2),
    FIELD(expert_map, I32, 1),
    FIELD(replicas, I32, 12, 16),
    FIELD(logits_dtype, I32, MOE_F32, MOE_BF16, MOE_F16),
    FIELD(ids_dtype, I32, MOE_I32, MOE_I64),
    FIELD(weights_dtype, I32, MOE_F32, MOE_BF16),
    FIELD(weight_stage, I32, 1, 2, 3),
    FIELD(activation, I32, 1, 2, 4, 5, 6, 7, 10),
    FIELD(alpha, F32, 1.702),
    FIELD(beta, F32, 1.0),
    FIELD(linear_beta, F32, 2.0),
    FIELD(limit, F32, 0.25),
    FIELD(gate_up, I32, 1, 2, 3, 4),
    FIELD(transposed, I32, 1),
    GEMM_FIELDS(gemm[0]),
    GEMM_FIELDS(gemm[1]),
    FIELD(shared.count, I32, 1, 2, 3),
    FIELD(shared.inter, I64, 16, 48),
    FIELD(shared.gate, I32, 1, 2),
    FIELD(shared.activation, I32, 1, 2, 4, 5, 6, 7, 10),
    FIELD(shared.alpha, F32, 1.702),
    FIELD(shared.beta, F32, 1.0),
    FIELD(shared.linear_beta, F32, 2.0),
    FIELD(shared.limit, F32, 0.25),
    FIELD(shared.gate_up, I32, 1, 2, 3, 4),
    FIELD(shared.transposed, I32, 1),
    GEMM_FIELDS(shared.gemm[0]),
    GEMM_FIELDS(shared.gemm[1]),
    FIELD(output_bias, I32, 1),
    FIELD(x_dtype, I32, MOE_F32, MOE_BF16, MOE_F16, MOE_E4M3FN),
    FIELD(inter_dtype, I32, MOE_F32, MOE_BF16, MOE_F16),
    FIELD(partial_dtype, I32, MOE_F32, MOE_BF16, MOE_F16),
    FIELD(out_dtype, I32, MOE_F32, MOE_BF16, MOE_F16),
    FIELD(x_layout, I32, 0, 1, 2),
    FIELD(out_mode, I32, 1, 2, 3),
    FIELD(accumulate, I32, 1),
    FIELD(determinism, I32, 1, 2, 3, 4),
    FIELD(workspace_cap, SIZE, 1e9),
};
#define NUM_FIELDS (sizeof fields / sizeof fields[0])

static size_t kind_bytes(kind k)
{
    return k == KIND_I32 || k == KIND_F32 ? 4 : 8;
}

static void set(moe_layer_desc *d, const field *f, double value)
{
    unsigned char *at = (unsigned char *)d + f->offset;
    const int32_t i32 = (int32_t)value;
    const int64_t i64 = (int64_t)value;
    const float f32 = (float)value;
    memcpy(at,
           f->kind == KIND_I32   ? (const void *)&i32
           : f->kind == KIND_F32 ? (const void *)&f32
                                 : (const void *)&i64,
           kind_bytes(f->kind));
}

static double get(const moe_layer_desc *d, const field *f)
{
    const unsigned char *at = (const unsigned char *)d + f->offset;
    int32_t i32;
    int64_t i64;
    float f32;
    switch (f->kind) {
    case KIND_I32:
        memcpy(&i32, at, sizeof i32);
        return i32;
    case KIND_F32:
        memcpy(&f32, at, sizeof f32);
        return (double)f32;
    default:
        memcpy(&i64, at, sizeof i64);
        return (double)i64;
    }
}

// ---- contexts ----------------------------------------------------------------------------------

static void give(moe_layer_desc *d)
{
    d->routing = MOE_ROUTING_GIVEN;
    memset(&d->route, 0, sizeof d->route);
}

static void place(moe_layer_desc *d, moe_x_layout layout)
{
    give(d);
    d->routing = MOE_ROUTING_PLACED;
    d->x_layout = layout;
    d->top_k = 0;
}

static void quantize_both(moe_layer_desc *d)
{
    d->gemm[0].weight_format = d->gemm[1].weight_format = MOE_FORMAT_E4M3FN_BLOCK;
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_FP8_GROUP_DIV;
}

static void share(moe_layer_desc *d, moe_shared_gate gate)
{
    d->shared.count = 2;
    d->shared.inter = 24;
    d->shared.gate = gate;
    d->shared.activation = MOE_ACT_SILU;
    d->shared.gate_up = MOE_GATE_FIRST;
    d->shared.gemm[0].weight_format = d->shared.gemm[1].weight_format = MOE_FORMAT_BF16;
}

static const char *const contexts[] = {
    "base",
    "given",
    "given, no weight",
    "batched",
    "sorted",
    "quantised",
    "x as codes",
    "shared",
    "shared gate",
    "router-weighted",
    "latent",
    "groups",
    "no gate",
    "slots",
    "hash table",
    "sparsemixer",
    "swigluoai",
    "int4",
    "zero experts",
    "replicas",
    "weigh input",
    "append shared",
    "f32 out",
    "situ",
    "swiglustep",
    "given, shared",
    "sigmoid, bias",
    "batched, codes",
    "some local",
    "mxfp4, quantised",
    "batched, f32",
    "sorted, unweighed",
    "softmax selected",
    "nvfp4",
    "int8 token",
};
#define NUM_CONTEXTS (int)(sizeof contexts / sizeof contexts[0])

static moe_layer_desc context(const char *name)
{
    moe_layer_desc d = layer_case_base();
#define IS(text) (strcmp(name, text) == 0)
    if (IS("given") || IS("given, no weight") || IS("given, shared")) {
        give(&d);
        d.weight_stage = IS("given, no weight") ? MOE_WEIGHT_NONE : MOE_WEIGHT_OUTPUT;
        if (IS("given, shared")) {
            share(&d, MOE_SHARED_ROUTER_WEIGHTED);
        }
    } else if (IS("batched") || IS("batched, codes") || IS("batched, f32")) {
        place(&d, MOE_X_BATCHED);
        d.x_dtype = IS("batched, f32") ? MOE_F32 : MOE_BF16;
    } else if (IS("sorted") || IS("sorted, unweighed")) {
        place(&d, MOE_X_SORTED);
        d.weight_stage = IS("sorted") ? MOE_WEIGHT_OUTPUT : MOE_WEIGHT_NONE;
    } else if (IS("quantised") || IS("x as codes")) {
        quantize_both(&d);
    } else if (IS("shared")) {
        share(&d, MOE_SHARED_PLAIN);
    } else if (IS("shared gate")) {
        share(&d, MOE_SHARED_SIGMOID);
        d.output_bias = 1;
    } else if (IS("router-weighted")) {
        share(&d, MOE_SHARED_ROUTER_WEIGHTED);
        d.route.scoring = MOE_SCORING_SIGMOID;
        d.route.shared_scores = 2;
    } else if (IS("latent")) {
        d.latent = 48;
    } else if (IS("groups")) {
        d.num_experts = 16;
        d.top_k = 7;
        d.route.scoring = MOE_SCORING_SIGMOID;
        d.route.correction_bias = 1;
        d.route.num_groups = 4;
        d.route.top_groups = 2;
        d.route.group_score = MOE_GROUP_SCORE_MAX;
    } else if (IS("no gate")) {
        d.activation = MOE_ACT_RELU2_NO_MUL;
        d.gate_up = MOE_GATE_UP_UNSET;
    } else if (IS("slots")) {
        d.out_mode = MOE_OUT_SLOTS;
    } else if (IS("hash table")) {
        d.route.scoring = MOE_SCORING_SQRTSOFTPLUS;
        d.route.hash_table = 1;
    } else if (IS("sparsemixer")) {
        d.route.scoring = MOE_SCORING_SPARSEMIXER;
        d.route.renormalise = MOE_RENORM_NONE;
        d.route.jitter_eps = 0.1f;
    } else if (IS("swigluoai")) {
        d.activation = MOE_ACT_SWIGLUOAI;
        d.alpha = 1.5f;
        d.beta = 0.5f;
        d.limit = 7.0f;
        d.gate_up = MOE_GATE_UP_INTERLEAVED;
        d.gemm[0].bias = d.gemm[1].bias = 1;
    } else if (IS("int4")) {
        d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_INT4_GROUP;
        d.gemm[0].weight_group = d.gemm[1].weight_group = 32;
        d.gemm[0].zero_points = 1;
    } else if (IS("zero experts")) {
        d.route.zero_experts = 2;
    } else if (IS("replicas")) {
        d.replicas = 12;
        d.expert_map = 1;
        d.num_local_experts = 6;
    } else if (IS("weigh input")) {
        d.weight_stage = MOE_WEIGHT_INPUT;
    } else if (IS("append shared")) {
        d.route.append_shared = 1;
    } else if (IS("f32 out")) {
        d.x_dtype = MOE_F32;
        d.inter_dtype = d.partial_dtype = MOE_BF16;
        d.accumulate = 1;
    } else if (IS("situ")) {
        d.activation = MOE_ACT_SITU;
        d.beta = 3.0f;
    } else if (IS("swiglustep")) {
        d.activation = MOE_ACT_SWIGLUSTEP;
        d.limit = 0.5f;
    } else if (IS("sigmoid, bias")) {
        d.route.scoring = MOE_SCORING_SIGMOID;
        d.route.correction_bias = 1;
        d.route.scale = 2.0f;
    } else if (IS("some local")) {
        d.num_local_experts = 6;
        d.expert_map = 1;
    } else if (IS("mxfp4, quantised")) {
        d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_MXFP4;
        d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_MX_FLOOR;
        d.gemm[0].act.elem = MOE_E4M3FN;
    } else if (IS("softmax selected")) {
        d.route.scoring = MOE_SCORING_SOFTMAX_SELECTED;
        d.route.renormalise = MOE_RENORM_NONE;
    } else if (IS("nvfp4")) {
        d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_NVFP4;
        d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_NVFP4;
    } else if (IS("int8 token")) {
        d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_INT8_CHANNEL;
        d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_INT8_TOKEN;
    }
    if (IS("x as codes") || IS("batched, codes")) {
        quantize_both(&d);
        d.x_dtype = MOE_E4M3FN;
        d.partial_dtype = d.out_dtype = MOE_BF16;
        d.inter_dtype = MOE_F32;
    }
#undef IS
    return d;
}

// ---- the test ----------------------------------------------------------------------------------

// What a descriptor computes, as a number; 0: refused. Text: the plan as JSON.
static uint64_t outcome(moe_context *ctx, const moe_layer_desc *d, char *text, size_t capacity)
{
    moe_plan *plan = NULL;
    layer_case c;
    text[0] = '\0';
    if (moe_plan_create(ctx, d, &plan) != MOE_OK) {
        return 0;
    }
    size_t needed = 0;
    CHECK(moe_plan_describe(plan, text, capacity, &needed) == MOE_OK, "%s", moe_last_error());
    CHECK(needed < capacity, "the description takes %zu bytes", needed);
    uint64_t hash = 1;
    moe_status status = layer_case_make(&c, plan, d, TOKENS);
    CHECK(status == MOE_OK, "an accepted plan takes no weights: %s", moe_last_error());
    if (status == MOE_OK) {
        status = layer_case_run(&c);
        CHECK(status == MOE_OK, "an accepted plan does not run: %s", moe_last_error());
        hash = (layer_case_outputs(&c) ^ layer_case_forms(&c)) | 1;
    }
    layer_case_free(&c);
    moe_plan_destroy(plan);
    return hash;
}

static void test_table_is_whole(void)
{
    unsigned char seen[sizeof(moe_layer_desc)] = {0};
    memset(seen, 1, sizeof(size_t)); // struct_size
    for (size_t i = 0; i < NUM_FIELDS; i++) {
        memset(seen + fields[i].offset, 1, kind_bytes(fields[i].kind));
    }
    for (size_t i = 0; i < sizeof seen; i++) {
        // Padding is four bytes before something of eight.
        const size_t end = (i / 8 + 1) * 8;
        const int padding = i % 8 >= 4 && seen[i / 8 * 8] && (end == sizeof seen || seen[end]);
        CHECK(seen[i] || padding, "byte %zu of moe_layer_desc is in no field of the table", i);
    }
}

// A message names the field, or the struct that is refused as a whole.
static int names(const char *message, const field *f)
{
    char group[64];
    const char *dot = strrchr(f->name, '.');
    (void)snprintf(group, sizeof group, "desc.%.*s ", (int)strcspn(f->name, ".["), f->name);
    return strstr(message, dot != NULL ? dot + 1 : f->name) != NULL ||
           (dot != NULL && strstr(message, group) != NULL);
}

static void test_nonsense(moe_context *ctx, const char *name)
{
    static const double ints[] = {-7, 1000003};
    static const double floats[] = {-1.5, (double)NAN, (double)INFINITY};
    for (size_t i = 0; i < NUM_FIELDS; i++) {
        const field *f = &fields[i];
        const double *values = f->kind == KIND_F32 ? floats : ints;
        int n = f->kind == KIND_F32 ? 3 : f->kind == KIND_SIZE ? 0 : 2;
        if (strcmp(f->name, "max_tokens") == 0 || strcmp(f->name, "hidden") == 0 ||
            strcmp(f->name, "inter") == 0 || strcmp(f->name, "latent") == 0 ||
            strcmp(f->name, "shared.inter") == 0) {
            n = 1; // a large one is a size
        }
        for (int v = 0; v < n; v++) {
            moe_layer_desc d = context(name);
            moe_plan *plan = NULL;
            set(&d, f, values[v]);
            const moe_status status = moe_plan_create(ctx, &d, &plan);
            CHECK(status != MOE_OK && plan == NULL, "%s: %s = %g is ignored", name, f->name,
                  values[v]);
            CHECK(status == MOE_OK || names(moe_last_error(), f),
                  "%s: %s = %g: the message does not name it: %s", name, f->name, values[v],
                  moe_last_error());
            moe_plan_destroy(plan);
        }
    }
}

static int is(const field *f, const char *name)
{
    return strcmp(f->name, name) == 0;
}

static int ends(const field *f, const char *tail)
{
    const size_t n = strlen(f->name);
    const size_t t = strlen(tail);
    return n >= t && strcmp(f->name + n - t, tail) == 0;
}

// The value of a field that means what 0 means, in a descriptor; -1: none.
static double default_of(const moe_layer_desc *d, const field *f)
{
    const moe_gemm_desc *gemm = strncmp(f->name, "gemm[0]", 7) == 0           ? &d->gemm[0]
                                : strncmp(f->name, "gemm[1]", 7) == 0         ? &d->gemm[1]
                                : strncmp(f->name, "shared.gemm[0]", 14) == 0 ? &d->shared.gemm[0]
                                                                              : &d->shared.gemm[1];
    moe_quant_desc act = gemm->act;
    moei_quant_resolve(&act);
    const int physical = d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
    const int logits = d->route.scoring >= MOE_SCORING_SOFTMAX_SELECTED;
    const moei_format_info *format = moei_format(gemm->weight_format);
    return is(f, "num_local_experts")      ? physical
           : is(f, "route.select_on")      ? (logits ? MOE_SELECT_LOGITS : MOE_SELECT_SCORES)
           : is(f, "route.scale")          ? 1
           : is(f, "route.num_groups")     ? 1
           : is(f, "logits_dtype")         ? MOE_F32
           : is(f, "ids_dtype")            ? MOE_I32
           : is(f, "weights_dtype")        ? MOE_F32
           : is(f, "determinism")          ? MOE_DET_BATCH
           : is(f, "inter_dtype")          ? (d->gemm[1].act.spec != 0 ? MOE_F32 : d->x_dtype)
           : is(f, "partial_dtype")        ? d->x_dtype
           : is(f, "out_dtype")            ? d->x_dtype
           : is(f, "out_mode")             ? (d->x_layout == 0 ? MOE_OUT_COMBINED : MOE_OUT_LAYOUT)
           : ends(f, "weight_scale_dtype") ? moei_format_scale_dtype(format)
           : ends(f, "weight_group")       ? format->block_k
           : ends(f, "act.elem")           ? act.elem
           : ends(f, "act.group")          ? act.group
           : ends(f, "act.scale_type")     ? act.scale_type
           : ends(f, "act.scale_layout")   ? MOE_SCALE_LAYOUT_ROW
                                           : -1;
}

// Values that state a size or a wish, or a rounding that takes place anyway; they may change
// nothing.
static const char *why_neutral(const moe_layer_desc *d, const field *f, double value)
{
    if (is(f, "max_tokens") || is(f, "workspace_cap")) {
        return "room, not arithmetic";
    }
    if (is(f, "determinism")) {
        return "the plan holds the level anyway";
    }
    if (get(d, f) == 0 && value == default_of(d, f)) {
        return "the default";
    }
    if (is(f, "route.renormalise") && d->route.renorm_eps == 0.0f && value != MOE_RENORM_NONE) {
        return "without an epsilon both divide by the sum";
    }
    if (is(f, "route.select_on") && d->route.correction_bias == 0) {
        return "scores rise with logits";
    }
    if (is(f, "route.scoring") && d->route.scoring == MOE_SCORING_SIGMOID &&
        value == MOE_SCORING_SIGMOID_SELECTED && d->route.correction_bias == 0) {
        return "scores rise with logits";
    }
    if (is(f, "route.scoring") && d->route.scoring == MOE_SCORING_SOFTMAX &&
        value == MOE_SCORING_SOFTMAX_SELECTED && d->route.renormalise == MOE_RENORM_SUM) {
        return "the same weights, but for their last bits";
    }
    if (is(f, "partial_dtype") && d->out_mode != MOE_OUT_COMBINED && value == MOE_F32 &&
        (d->out_mode == MOE_OUT_SLOTS || d->x_layout != MOE_X_TOKENS)) {
        return "nothing is summed; out rounds once";
    }
    if (ends(f, "act.scale_type") && d->x_dtype == MOE_E4M3FN && value == MOE_SCALE_UE8M0_F32) {
        return "x arrives with its scales";
    }
    return NULL;
}

static void test_values(moe_context *ctx, const char *name)
{
    static char before[8192];
    static char after[8192];
    const moe_layer_desc base = context(name);
    const uint64_t want = outcome(ctx, &base, before, sizeof before);
    CHECK(want != 0, "%s: %s", name, moe_last_error());
    for (size_t i = 0; i < NUM_FIELDS; i++) {
        const field *f = &fields[i];
        for (int v = 0; v < f->num_values; v++) {
            const double value = f->values[v];
            moe_layer_desc d = base;
            if ((float)get(&base, f) == (float)value) {
                continue;
            }
            set(&d, f, value);
            const uint64_t have = outcome(ctx, &d, after, sizeof after);
            if (have == 0) {
                continue;
            }
            CHECK(have != want || why_neutral(&base, f, value) != NULL,
                  "%s: %s = %g changes nothing", name, f->name, value);
            CHECK(have == want || strcmp(before, after) != 0,
                  "%s: %s = %g changes the result, not moe_plan_describe", name, f->name, value);
        }
    }
}

int main(void)
{
    moe_context *ctx = NULL;
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    test_table_is_whole();
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        test_nonsense(ctx, contexts[i]);
        test_values(ctx, contexts[i]);
    }
    moe_context_destroy(ctx);
    return test_summary();
}
