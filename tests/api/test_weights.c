// SPDX-License-Identifier: Apache-2.0
// Weights in and out: what has been packed comes back byte for byte, also through narrower and
// wider views; an update changes one expert; packed, wrapped and adopted weights compute the same
// bits.
#define _DEFAULT_SOURCE
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "api/layer_case.h"
#include "numerics/int4.h"
#include "quant/formats.h"
#include "unit/test.h"

static moe_context *ctx;

// ---- views of a source -------------------------------------------------------------------------

#define NUM_SOURCE_VIEWS                                                                           \
    ((sizeof(moe_weights_source) - offsetof(moe_weights_source, gemm)) / sizeof(moe_tensor))

static moe_tensor *view_of(moe_weights_source *s, size_t i)
{
    return (moe_tensor *)(void *)((unsigned char *)s + offsetof(moe_weights_source, gemm)) + i;
}

static size_t bytes_of(const layer_case *c, const moe_tensor *t)
{
    for (int i = 0; i < c->num_blocks; i++) {
        if (c->blocks[i] == t->data) {
            return c->block_bytes[i];
        }
    }
    return 0;
}

// The same views over fresh memory, filled with a pattern.
static moe_weights_source empty_copy(const layer_case *c)
{
    moe_weights_source s = c->source;
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        moe_tensor *t = view_of(&s, i);
        if (t->data != NULL) {
            const size_t bytes = bytes_of(c, t);
            t->data = malloc(bytes);
            if (t->data == NULL) {
                abort();
            }
            memset(t->data, 0xA5, bytes);
        }
    }
    return s;
}

static void free_copy(moe_weights_source *s)
{
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        free(view_of(s, i)->data);
    }
}

static void check_same(const layer_case *c, moe_weights_source *have, const char *what)
{
    moe_weights_source want = c->source;
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        const moe_tensor *w = view_of(&want, i);
        const moe_tensor *h = view_of(have, i);
        if (w->data != NULL) {
            CHECK(memcmp(w->data, h->data, bytes_of(c, w)) == 0, "%s: view %zu comes back changed",
                  what, i);
        }
    }
}

// ---- layers ------------------------------------------------------------------------------------

static void share(moe_layer_desc *d, moe_format format)
{
    d->shared.count = 2;
    d->shared.inter = 24;
    d->shared.gate = MOE_SHARED_SIGMOID;
    d->shared.activation = MOE_ACT_SILU;
    d->shared.gate_up = MOE_UP_FIRST;
    d->shared.gemm[0].weight_format = d->shared.gemm[1].weight_format = format;
}

static moe_layer_desc layer_of(moe_format format, int n)
{
    const moei_format_info *info = moei_format(format);
    moe_layer_desc d = layer_case_base();
    d.hidden = 72; // packed rows end on bytes, groups of 32 do not fill it
    d.inter = 40;
    d.num_experts = 4;
    d.gemm[0].weight_format = d.gemm[1].weight_format = format;
    d.gemm[0].bias = n % 2;
    d.gate_up = 1 + n % 4;
    d.gemm[1].zero_points = info->zero_point >= 0;
    d.gemm[n % 2].channel_scale = info->free_group;
    d.transposed = n % 3 == 0 && moe_dtype_bits(info->elem) >= 8;
    if (n % 2 == 1) {
        d.gemm[0].act.spec = MOE_QUANT_FP8_STATIC;
        d.latent = 56;
        d.output_bias = 1;
        share(&d, format);
        d.shared.gemm[1].act.spec = MOE_QUANT_INT8_STATIC;
    }
    return d;
}

static void test_round_trip(const layer_case *c, const char *name)
{
    moe_weights *wrapped = NULL;
    moe_weights_source out = empty_copy(c);
    CHECK(moe_weights_unpack(c->weights, 0, &out) == MOE_OK, "%s: %s", name, moe_last_error());
    check_same(c, &out, name);
    free_copy(&out);
    if (CHECK(moe_weights_wrap(c->plan, &c->source, &wrapped) == MOE_OK, "%s: %s", name,
              moe_last_error())) {
        out = empty_copy(c);
        CHECK(moe_weights_unpack(wrapped, 0, &out) == MOE_OK, "%s: %s", name, moe_last_error());
        check_same(c, &out, "wrapped");
        free_copy(&out);
        moe_weights_destroy(wrapped);
    }
}

static void test_wrapped_runs(layer_case *c, const char *name)
{
    moe_weights *const packed = c->weights;
    CHECK(layer_case_run(c) == MOE_OK, "%s: %s", name, moe_last_error());
    const uint64_t want = layer_case_outputs(c);
    if (CHECK(moe_weights_wrap(c->plan, &c->source, &c->weights) == MOE_OK, "%s: %s", name,
              moe_last_error())) {
        layer_case_poison(c);
        CHECK(layer_case_run(c) == MOE_OK && layer_case_outputs(c) == want,
              "%s: wrapped weights give other bits", name);
        moe_weights_destroy(c->weights);
    }
    c->weights = packed;
}

// Expert 1's values move to expert 2; the others stay.
static void test_update(layer_case *c, const char *name)
{
    moe_weights_source one = c->source;
    moe_weights_source all = empty_copy(c);
    for (int g = 0; g < 2; g++) {
        moe_tensor *const views[] = {&one.gemm[g].values, &one.gemm[g].scales, &one.gemm[g].scale2,
                                     &one.gemm[g].zero_points, &one.gemm[g].bias};
        for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
            if (views[i]->data != NULL) {
                views[i]->byte_offset =
                    (uint64_t)(views[i]->stride[0] * moe_dtype_bits(views[i]->dtype) / 8);
                views[i]->shape[0] = 1;
            }
        }
    }
    CHECK(moe_weights_update(c->weights, 2, &one) == MOE_OK, "%s: %s", name, moe_last_error());
    CHECK(moe_weights_unpack(c->weights, 0, &all) == MOE_OK, "%s: %s", name, moe_last_error());
    for (int g = 0; g < 2; g++) {
        const size_t bytes = bytes_of(c, &c->source.gemm[g].values) / 4;
        const unsigned char *want = c->source.gemm[g].values.data;
        const unsigned char *have = all.gemm[g].values.data;
        for (size_t e = 0; e < 4; e++) {
            CHECK(memcmp(have + e * bytes, want + (e == 2 ? 1 : e) * bytes, bytes) == 0,
                  "%s: after the update of expert 2, expert %zu is not what it should be", name, e);
        }
    }
    free_copy(&all);
    CHECK(moe_weights_pack(c->weights, 0, &c->source) == MOE_OK, "%s: %s", name, moe_last_error());
}

// ---- adopted -----------------------------------------------------------------------------------

#define LAYOUT_BYTES 2048

static const char *layout_of(const moe_plan *plan, char text[LAYOUT_BYTES])
{
    size_t needed = 0;
    CHECK(moe_weights_layout(plan, text, LAYOUT_BYTES, &needed) == MOE_OK &&
              needed == strlen(text) && needed < LAYOUT_BYTES,
          "%zu bytes: %s", needed, moe_last_error());
    return text;
}

static void test_adopt_refusals(const layer_case *c, const void *memory, size_t bytes,
                                const char *layout, const char *name)
{
    const struct {
        const void *memory;
        size_t bytes;
        const char *layout, *says;
        moe_status status;
    } cases[] = {
        {NULL, bytes, layout, "memory is NULL", MOE_E_ARGUMENT},
        {memory, bytes, NULL, "layout is NULL", MOE_E_ARGUMENT},
        {memory, bytes - 1, layout, "packed bytes, the plan's weights take", MOE_E_SHAPE},
        {memory, bytes + 1, layout, "packed bytes, the plan's weights take", MOE_E_SHAPE},
        {(const char *)memory + 64, bytes, layout, "not aligned to 256", MOE_E_ALIGNMENT},
        {memory, bytes, "", "have no more, the plan's weights have version=", MOE_E_UNSUPPORTED},
        {memory, bytes, "version=0 backend=cpu",
         "have version=0, the plan's weights have version=", MOE_E_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        moe_weights *none = NULL;
        CHECK(moe_weights_adopt(c->plan, cases[i].memory, cases[i].bytes, cases[i].layout, &none) ==
                      cases[i].status &&
                  strstr(moe_last_error(), cases[i].says) != NULL && none == NULL,
              "%s: refusal %zu: %s", name, i, moe_last_error());
    }
    // One word more, one less, one other.
    char other[LAYOUT_BYTES + 8];
    moe_weights *none = NULL;
    (void)snprintf(other, sizeof other, "%s more=1", layout);
    CHECK(moe_weights_adopt(c->plan, memory, bytes, other, &none) == MOE_E_UNSUPPORTED &&
              strstr(moe_last_error(), "have more=1, the plan's weights have no more") != NULL,
          "%s: %s", name, moe_last_error());
    (void)snprintf(other, sizeof other, "%s", layout);
    *strrchr(other, ' ') = '\0';
    CHECK(moe_weights_adopt(c->plan, memory, bytes, other, &none) == MOE_E_UNSUPPORTED, "%s: %s",
          name, moe_last_error());
    (void)snprintf(other, sizeof other, "%s", layout);
    char *format = strstr(other, "down.format=") + strlen("down.format=");
    *format = '?';
    CHECK(moe_weights_adopt(c->plan, memory, bytes, other, &none) == MOE_E_UNSUPPORTED &&
              strstr(moe_last_error(), "have down.format=?") != NULL,
          "%s: %s", name, moe_last_error());
}

static bool has_given_scale(const moe_layer_desc *d)
{
    return d->gemm[0].act.spec == MOE_QUANT_FP8_STATIC;
}

// Packed bytes that nobody may write any more give the same outputs and come back unchanged.
static void test_adopt(layer_case *c, const char *name)
{
    char layout[LAYOUT_BYTES];
    size_t bytes = 0;
    size_t align = 0;
    moe_weights *const packed = c->weights;
    moe_weights *first = NULL;
    (void)layout_of(c->plan, layout);
    CHECK(moe_weights_bytes(c->plan, &bytes, &align) == MOE_OK, "%s", moe_last_error());
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    layer_case_poison(c); // some outputs are added to
    CHECK(layer_case_run(c) == MOE_OK, "%s: %s", name, moe_last_error());
    const uint64_t want = layer_case_outputs(c);
    layer_case_poison(c);
    CHECK(memory != MAP_FAILED && moe_weights_create(c->plan, memory, bytes, &first) == MOE_OK &&
              moe_weights_pack(first, 0, &c->source) == MOE_OK,
          "%s: %s", name, moe_last_error());
    moe_weights_destroy(first);
    CHECK(mprotect(memory, bytes, PROT_READ) == 0, "mprotect");
    if (CHECK(moe_weights_adopt(c->plan, memory, bytes, layout, &c->weights) == MOE_OK, "%s: %s",
              name, moe_last_error())) {
        moe_weights_source out = empty_copy(c);
        CHECK(layer_case_run(c) == MOE_OK && layer_case_outputs(c) == want,
              "%s: adopted weights give other bits: %s", name, moe_last_error());
        CHECK(moe_weights_unpack(c->weights, 0, &out) == MOE_OK, "%s: %s", name, moe_last_error());
        check_same(c, &out, name);
        free_copy(&out);
        CHECK(moe_weights_pack(c->weights, 0, &c->source) == MOE_E_STATE &&
                  strstr(moe_last_error(), "adopted") != NULL,
              "%s: adopted weights are packed: %s", name, moe_last_error());
        CHECK(moe_weights_update(c->weights, 0, &c->source) == MOE_E_STATE, "%s: %s", name,
              moe_last_error());
        moe_weights_destroy(c->weights);
    }
    c->weights = packed;
    test_adopt_refusals(c, memory, bytes, layout, name);
    if (has_given_scale(&c->desc)) {
        moe_weights *none = NULL;
        CHECK(mprotect(memory, bytes, PROT_READ | PROT_WRITE) == 0, "mprotect");
        memset(memory, 0xFF, bytes);
        CHECK(moe_weights_adopt(c->plan, memory, bytes, layout, &none) == MOE_E_VALUE &&
                  strstr(moe_last_error(), "gate_up activation scale is") != NULL,
              "%s: %s", name, moe_last_error());
    }
    CHECK(munmap(memory, bytes) == 0, "munmap");
}

// What lies otherwise has another name; what lies the same has the same.
static void test_layout_names(void)
{
    const moe_layer_desc base = layer_of(MOE_FORMAT_MXFP4, 0);
    moe_layer_desc other[8];
    char text[2][LAYOUT_BYTES];
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        other[i] = base;
    }
    other[1].hidden = 104;
    other[2].inter = 72;
    other[3].num_experts = 5;
    other[4].gate_up = base.gate_up == MOE_GATE_FIRST ? MOE_UP_FIRST : MOE_GATE_FIRST;
    other[5].gemm[1].weight_format = MOE_FORMAT_NVFP4;
    other[6].gemm[1].bias = 1;
    other[7].output_bias = 1;
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        moe_plan *plan = NULL;
        other[i].max_tokens = i == 0 ? base.max_tokens + 1 : base.max_tokens;
        if (i == 0) {
            CHECK(moe_plan_create(ctx, &base, &plan) == MOE_OK, "%s", moe_last_error());
            (void)layout_of(plan, text[0]);
            moe_plan_destroy(plan);
        }
        CHECK(moe_plan_create(ctx, &other[i], &plan) == MOE_OK, "%s", moe_last_error());
        CHECK(moe_plan_context(plan) == ctx && moe_context_host_memory(ctx) == 1, "context");
        CHECK((strcmp(layout_of(plan, text[1]), text[0]) == 0) == (i == 0), "descriptor %zu: %s", i,
              text[1]);
        char few[8];
        size_t needed = 0;
        CHECK(moe_weights_layout(plan, few, sizeof few, &needed) == MOE_OK &&
                  needed == strlen(text[1]) && strcmp(few, "version") == 0,
              "%zu of %zu bytes: \"%s\"", sizeof few, needed, few);
        moe_plan_destroy(plan);
    }
    CHECK(moe_weights_layout(NULL, text[0], LAYOUT_BYTES, NULL) == MOE_E_ARGUMENT, "a NULL plan");
}

// Formats that the CPU has a packed layout of, where it has instructions for it.
static void test_packed_layouts(void)
{
    static const moe_format formats[] = {MOE_FORMAT_MXFP4, MOE_FORMAT_INT4_GROUP,
                                         MOE_FORMAT_INT8_CHANNEL};
    int packed = 0;
    for (int i = 0; i < 3; i++) {
        moe_layer_desc d = layer_of(formats[i], 2);
        char layout[LAYOUT_BYTES];
        moe_plan *plan = NULL;
        layer_case c;
        d.hidden = 328; // two panels and more, and a tail
        d.gemm[0].act.spec = d.gemm[1].act.spec = MOE_QUANT_I8B32;
        d.gemm[0].channel_scale = d.gemm[1].channel_scale = 0;
        if (CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                      layer_case_make(&c, plan, &d, 5) == MOE_OK,
                  "%s: %s", moe_format_name(formats[i]), moe_last_error())) {
            packed += strstr(layout_of(plan, layout), "gate_up.layout=packed-") != NULL;
            test_adopt(&c, moe_format_name(formats[i]));
            layer_case_free(&c);
        }
        moe_plan_destroy(plan);
    }
    (void)printf("%d of 3 layers in a packed layout of the CPU\n", packed);
}

// One scale for gate and up, or one each.
static void test_parts(void)
{
    moe_layer_desc d = layer_of(MOE_FORMAT_E4M3FN_TENSOR, 0);
    moe_plan *plan = NULL;
    layer_case c;
    float two[8];
    float out[8];
    if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, 3) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    const float *one = c.source.gemm[0].scales.data;
    moe_weights_source to = c.source;
    to.gemm[1].values.data = NULL;
    to.gemm[1].scales.data = NULL;
    void *values = to.gemm[0].values.data;
    to.gemm[0].scales = moe_tensor_2d(out, MOE_F32, 4, 2);
    CHECK(moe_weights_unpack(c.weights, 0, &to) == MOE_OK, "%s", moe_last_error());
    for (int e = 0; e < 4; e++) {
        CHECK(out[2 * e] == one[e] && out[2 * e + 1] == one[e], "expert %d: scales %g, %g of %g", e,
              (double)out[2 * e], (double)out[2 * e + 1], (double)one[e]);
        two[2 * e] = one[e];
        two[2 * e + 1] = 2.0f * one[e];
    }
    moe_weights_source from = c.source;
    from.gemm[0].values.data = values;
    from.gemm[0].scales = moe_tensor_2d(two, MOE_F32, 4, 2);
    CHECK(moe_weights_pack(c.weights, 0, &from) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_weights_unpack(c.weights, 0, &to) == MOE_OK && memcmp(out, two, sizeof two) == 0,
          "two scales come back changed: %s", moe_last_error());
    to.gemm[0].scales = moe_tensor_1d(out, MOE_F32, 4);
    CHECK(moe_weights_unpack(c.weights, 0, &to) == MOE_E_SHAPE &&
              strstr(moe_last_error(), "[n, 2] works") != NULL,
          "two scales into one: %s", moe_last_error());
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

// Zero points as bytes and as nibbles (an odd number of groups, so that rows end in half a byte):
// the same bits, packed, wrapped and back.
static void test_zero_points(void)
{
    enum { EXPERTS = 4, ROWS = 72, GROUPS = 5, BYTES = 3 }; // of down: N = hidden, K = 160
    static uint8_t nibbles[EXPERTS * ROWS * BYTES];
    static uint8_t back[sizeof nibbles];
    moe_layer_desc d = layer_of(MOE_FORMAT_INT4_GROUP, 0);
    moe_plan *plan = NULL;
    layer_case c;
    d.inter = 32 * GROUPS;
    d.gemm[1].weight_group = 32;
    if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, 5) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    uint8_t *bytes = c.source.gemm[1].zero_points.data;
    for (int r = 0; r < EXPERTS * ROWS; r++) {
        nibbles[BYTES * r + BYTES - 1] = 0xF0; // belongs to no zero point
        for (int g = 0; g < GROUPS; g++) {
            moei_set_u4(&nibbles[BYTES * r], (size_t)g, bytes[GROUPS * r + g]);
        }
    }
    CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
    const uint64_t want = layer_case_outputs(&c);
    moe_weights_source s = c.source;
    s.gemm[1].zero_points = moe_tensor_3d(nibbles, MOE_UINT4, EXPERTS, ROWS, GROUPS);
    CHECK(moe_weights_pack(c.weights, 0, &s) == MOE_E_SHAPE &&
              strstr(moe_last_error(), "must begin on a byte") != NULL,
          "rows of 5 nibbles: %s", moe_last_error());
    s.gemm[1].zero_points.stride[1] = 2 * BYTES;
    s.gemm[1].zero_points.stride[0] = (int64_t)2 * BYTES * ROWS;
    memset(bytes, 7, (size_t)EXPERTS * ROWS * GROUPS);
    CHECK(moe_weights_pack(c.weights, 0, &c.source) == MOE_OK, "%s", moe_last_error());
    layer_case_poison(&c);
    CHECK(layer_case_run(&c) == MOE_OK && layer_case_outputs(&c) != want,
          "zero points do not matter: %s", moe_last_error());
    CHECK(moe_weights_pack(c.weights, 0, &s) == MOE_OK, "%s", moe_last_error());
    layer_case_poison(&c);
    CHECK(layer_case_run(&c) == MOE_OK && layer_case_outputs(&c) == want,
          "nibbles give other bits than bytes: %s", moe_last_error());
    moe_weights *const packed = c.weights;
    layer_case_poison(&c);
    if (CHECK(moe_weights_wrap(plan, &s, &c.weights) == MOE_OK, "%s", moe_last_error())) {
        CHECK(layer_case_run(&c) == MOE_OK && layer_case_outputs(&c) == want,
              "wrapped nibbles give other bits than bytes: %s", moe_last_error());
        moe_weights_destroy(c.weights);
    }
    c.weights = packed;
    moe_weights_source out = empty_copy(&c);
    free(out.gemm[1].zero_points.data);
    out.gemm[1].zero_points = s.gemm[1].zero_points;
    out.gemm[1].zero_points.data = back;
    memset(back, 0xFF, sizeof back);
    CHECK(moe_weights_unpack(packed, 0, &out) == MOE_OK && memcmp(back, nibbles, sizeof back) == 0,
          "nibbles come back changed: %s", moe_last_error());
    // A byte may hold what a nibble cannot.
    bytes[GROUPS + 4] = 16;
    CHECK(moe_weights_pack(c.weights, 0, &c.source) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_weights_unpack(packed, 0, &out) == MOE_E_VALUE &&
              strstr(moe_last_error(), "down zero point [1, 4] is 16") != NULL,
          "a zero point of 16: %s", moe_last_error());
    out.gemm[1].zero_points.data = NULL;
    free_copy(&out);
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

int main(void)
{
    const moei_format_info *info;
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    int n = 0;
    for (size_t i = 0; (info = moei_format_at(i)) != NULL; i++) {
        for (int variant = 0; variant < 2; variant++, n++) {
            moe_layer_desc d = layer_of(info->format, n);
            moe_plan *plan = NULL;
            layer_case c;
            if (moe_plan_create(ctx, &d, &plan) == MOE_E_NO_KERNEL) { // a static int8 scale of h
                d.shared.gemm[1].act.spec = MOE_QUANT_NONE;
                CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK, "%s: %s", info->name,
                      moe_last_error());
            }
            if (CHECK(plan != NULL && layer_case_make(&c, plan, &d, 5) == MOE_OK, "%s: %s",
                      info->name, moe_last_error())) {
                test_round_trip(&c, info->name);
                test_wrapped_runs(&c, info->name);
                test_update(&c, info->name);
                test_adopt(&c, info->name);
                layer_case_free(&c);
            }
            moe_plan_destroy(plan);
        }
    }
    test_layout_names();
    test_packed_layouts();
    test_parts();
    test_zero_points();
    moe_context_destroy(ctx);
    return test_summary();
}
