// SPDX-License-Identifier: Apache-2.0
// Weights in a packed layout, on host memory: bits of the canonical ones, what comes back, and what
// a refusal leaves. (test_device_memory.c has the same layers on a device.)
#include <stddef.h>
#include <stdlib.h>

#include "unit/layer_forms.h"
#include "unit/packed_rows.h"
#include "unit/test.h"

static packed_rows *rows;

#define NUM_SOURCE_VIEWS                                                                           \
    ((sizeof(moe_weights_source) - offsetof(moe_weights_source, gemm)) / sizeof(moe_tensor))

static moe_tensor *source_view(moe_weights_source *s, size_t i)
{
    return (moe_tensor *)(void *)((unsigned char *)s + offsetof(moe_weights_source, gemm)) + i;
}

static size_t bytes_of(const layer_case *c, const void *data)
{
    for (int i = 0; i < c->num_blocks; i++) {
        if (c->blocks[i] == data) {
            return c->block_bytes[i];
        }
    }
    return 0;
}

/// One descriptor with the rows of "cpu" and with the packed ones.
typedef struct pair {
    moe_plan *plan[2];
    layer_case c[2]; // of the same tensors
} pair;

static bool make_pair(moe_context *host, moe_context *packed, const moe_layer_desc *d, pair *p)
{
    memset(p, 0, sizeof *p);
    return CHECK(moe_plan_create(host, d, &p->plan[0]) == MOE_OK &&
                     moe_plan_create(packed, d, &p->plan[1]) == MOE_OK &&
                     layer_case_make(&p->c[0], p->plan[0], d, 5) == MOE_OK &&
                     layer_case_make(&p->c[1], p->plan[1], d, 5) == MOE_OK,
                 "%s", moe_last_error());
}

static void free_pair(pair *p)
{
    for (int i = 0; i < 2; i++) {
        layer_case_free(&p->c[i]);
        moe_plan_destroy(p->plan[i]);
    }
}

static void check_same_outputs(pair *p, const char *what)
{
    CHECK(layer_case_run(&p->c[0]) == MOE_OK && layer_case_run(&p->c[1]) == MOE_OK, "%s: %s", what,
          moe_last_error());
    CHECK(!layer_case_untouched(&p->c[1]) &&
              layer_case_outputs(&p->c[0]) == layer_case_outputs(&p->c[1]),
          "%s: other bits than those of canonical weights", what);
}

// All that was packed comes back as it was given.
static void check_unpacked(const layer_case *c, const char *what)
{
    moe_weights_source out = c->source;
    moe_weights_source want = c->source;
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        moe_tensor *t = source_view(&out, i);
        t->data = t->data != NULL ? calloc(1, bytes_of(c, t->data) + 1) : NULL;
    }
    CHECK(moe_weights_unpack(c->weights, 0, &out) == MOE_OK, "%s: %s", what, moe_last_error());
    for (size_t i = 0; i < NUM_SOURCE_VIEWS; i++) {
        moe_tensor *t = source_view(&out, i);
        const moe_tensor *w = source_view(&want, i);
        CHECK(t->data == NULL || memcmp(t->data, w->data, bytes_of(c, w->data)) == 0,
              "%s: view %zu comes back changed", what, i);
        free(t->data);
    }
}

// The rows of packed_rows.c, not those of the CPU that read its own packed layout.
static bool is_packed_row(const char *name)
{
    static const char end[] = "_packed";
    const size_t length = strlen(name);
    return length >= sizeof end && strcmp(name + length - (sizeof end - 1), end) == 0;
}

// Products of experts run packed rows; linear maps, in canonical floats, never do.
static int see_row(void *self, const moe_support *s)
{
    int *seen = self;
    const bool packed = is_packed_row(s->kernel);
    const bool expert = strstr(s->step, "gate_up") != NULL || strstr(s->step, "down") != NULL;
    CHECK(!s->chosen || strncmp(s->kernel, "moek_ggemm", 10) != 0 || packed == expert, "%s runs %s",
          s->step, s->kernel);
    CHECK(expert || !packed || strcmp(s->step, "ggemm") == 0 || s->code == MOEI_WHYNOT_ISA ||
              strcmp(s->text, "weights lie canonical, the kernel reads them packed") == 0,
          "%s: %s: %s", s->step, s->kernel, s->text);
    *seen += s->chosen && packed;
    return 0;
}

static void test_layer(moe_context *host, moe_context *packed, const moe_layer_desc *d,
                       const char *name)
{
    pair p;
    int seen = 0;
    moe_weights *wrapped = NULL;
    const int products = d->shared.count > 0 ? 4 : 2;
    CHECK(moe_query_support(packed, d, see_row, &seen) == MOE_OK && seen == products,
          "%s: %d of %d products in packed rows", name, seen, products);
    if (make_pair(host, packed, d, &p)) {
        check_same_outputs(&p, name);
        check_unpacked(&p.c[1], name);
        // Canonical weights of the same plan run the canonical row of the class.
        if (CHECK(moe_weights_wrap(p.plan[1], &p.c[1].source, &wrapped) == MOE_OK, "%s: %s", name,
                  moe_last_error())) {
            moe_weights_destroy(p.c[1].weights);
            p.c[1].weights = wrapped;
            check_same_outputs(&p, name);
        }
    }
    free_pair(&p);
}

// A packed layout has a name of its own, and what it packed can be adopted.
static void test_layout_name(moe_context *host, moe_context *packed, const moe_layer_desc *d)
{
    char text[2][2048] = {"", ""};
    pair p;
    moe_weights *adopted = NULL;
    if (make_pair(host, packed, d, &p)) {
        CHECK(moe_weights_layout(p.plan[0], text[0], sizeof text[0], NULL) == MOE_OK &&
                  moe_weights_layout(p.plan[1], text[1], sizeof text[1], NULL) == MOE_OK,
              "%s", moe_last_error());
        CHECK(strstr(text[1], "gate_up.layout=packed-") != NULL && strcmp(text[0], text[1]) != 0,
              "%s and %s", text[0], text[1]);
        void *memory = NULL;
        for (int i = 0; i < p.c[1].num_blocks; i++) { // the last block of its size
            memory = p.c[1].block_bytes[i] == p.c[1].weights_bytes ? p.c[1].blocks[i] : memory;
        }
        CHECK(moe_weights_adopt(p.plan[1], memory, p.c[1].weights_bytes, text[0], &adopted) ==
                      MOE_E_UNSUPPORTED &&
                  adopted == NULL,
              "canonical rows for packed ones: %s", moe_last_error());
        if (CHECK(moe_weights_adopt(p.plan[1], memory, p.c[1].weights_bytes, text[1], &adopted) ==
                      MOE_OK,
                  "%s", moe_last_error())) {
            moe_weights_destroy(p.c[1].weights);
            p.c[1].weights = adopted;
            check_same_outputs(&p, "adopted");
            check_unpacked(&p.c[1], "adopted");
        }
    }
    free_pair(&p);
}

// ---- refusals ----------------------------------------------------------------------------------

static void test_too_large(moe_context *packed)
{
    const moe_layer_desc d = layer_form(MOE_FORMAT_MXFP4, 1);
    moe_plan *plan = NULL;
    size_t bytes = 7;
    size_t align;
    CHECK(moe_plan_create(packed, &d, &plan) == MOE_OK, "%s", moe_last_error());
    rows->too_large = true;
    CHECK(moe_weights_bytes(plan, &bytes, &align) == MOE_E_OVERFLOW && bytes == 7, "%s: %zu",
          moe_last_error(), bytes);
    rows->too_large = false;
    moe_plan_destroy(plan);
}

// What is packed of a new handle when expert n + 1 of those that are packed is refused.
static void test_refused(pair *p, int n, const char *text)
{
    layer_case *c = &p->c[1];
    moe_weights *weights = NULL;
    unsigned char *memory = aligned_alloc(256, (c->weights_bytes + 255) / 256 * 256);
    moe_weights_source one = moe_weights_source_default();
    if (!CHECK(memory != NULL &&
                   moe_weights_create(p->plan[1], memory, c->weights_bytes, &weights) == MOE_OK,
               "%s", moe_last_error())) {
        free(memory);
        return;
    }
    rows->refuse_after = n;
    CHECK(moe_weights_pack(weights, 0, &c->source) == MOE_E_VALUE &&
              strstr(moe_last_error(), text) != NULL,
          "%s, want %s", moe_last_error(), text);
    rows->refuse_after = -1;
    // Experts whose both products were packed are there, no other.
    for (int32_t e = 0; e < c->desc.num_experts; e++) {
        one.gemm[0].values = c->source.gemm[0].values;
        one.gemm[0].values.shape[0] = 1;
        one.gemm[0].scales = c->source.gemm[0].scales;
        one.gemm[0].scales.shape[0] = 1;
        one.gemm[0].bias = c->source.gemm[0].bias;
        one.gemm[0].bias.shape[0] = 1;
        void *out[3] = {calloc(1, bytes_of(c, one.gemm[0].values.data)),
                        calloc(1, bytes_of(c, one.gemm[0].scales.data)),
                        calloc(1, bytes_of(c, one.gemm[0].bias.data))};
        one.gemm[0].values.data = out[0];
        one.gemm[0].scales.data = out[1];
        one.gemm[0].bias.data = out[2];
        const moe_status status = moe_weights_unpack(weights, e, &one);
        CHECK(status == (e < n / 2 ? MOE_OK : MOE_E_STATE), "expert %d of %d packed: %s", (int)e,
              n / 2, moe_last_error());
        for (int i = 0; i < 3; i++) {
            free(out[i]);
        }
    }
    // A second try completes it.
    moe_weights *kept = c->weights;
    CHECK(moe_weights_pack(weights, 0, &c->source) == MOE_OK, "%s", moe_last_error());
    c->weights = weights;
    check_same_outputs(p, text);
    check_unpacked(c, text);
    c->weights = kept;
    moe_weights_destroy(weights);
    free(memory);
}

static void test_refusals(moe_context *host, moe_context *packed)
{
    static const struct {
        int after;
        const char *text;
    } cases[] = {
        {0, "moe_weights_pack: gate_up of expert 0: packed: told to refuse"},
        {1, "moe_weights_pack: down of expert 0: packed: told to refuse"},
        {4, "moe_weights_pack: gate_up of expert 2: packed: told to refuse"},
        {7, "moe_weights_pack: down of expert 3: packed: told to refuse"},
        {9, "moe_weights_pack: shared down of expert 0: packed: told to refuse"},
        {10, "moe_weights_pack: shared gate_up of expert 1: packed: told to refuse"},
    };
    moe_layer_desc d = layer_form(MOE_FORMAT_MXFP4, 1);
    pair p;
    d.gemm[0].act.spec = MOE_QUANT_NONE;
    if (make_pair(host, packed, &d, &p)) {
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            test_refused(&p, cases[i].after, cases[i].text);
        }
    }
    free_pair(&p);
}

// Expert e of a source, all of its tensors.
static moe_weights_source expert_of(const moe_weights_source *all, int64_t e)
{
    moe_weights_source one = moe_weights_source_default();
    for (int g = 0; g < 2; g++) {
        one.gemm[g] = all->gemm[g];
        moe_tensor *views[] = {&one.gemm[g].values, &one.gemm[g].scales, &one.gemm[g].bias};
        for (int v = 0; v < 3; v++) {
            moe_tensor *t = views[v];
            int64_t inner = 1;
            for (int i = 1; i < t->ndim; i++) {
                inner *= t->shape[i];
            }
            if (t->data != NULL) {
                t->byte_offset += (size_t)(e * inner * moe_dtype_bits(t->dtype) / 8);
                t->shape[0] = 1;
            }
        }
    }
    return one;
}

static void test_update(moe_context *host, moe_context *packed)
{
    const moe_layer_desc d = layer_form(MOE_FORMAT_MXFP4, 3);
    pair p;
    if (!make_pair(host, packed, &d, &p)) {
        free_pair(&p);
        return;
    }
    for (int i = 0; i < 2; i++) {
        unsigned char *values = p.c[i].source.gemm[1].values.data;
        const size_t bytes = bytes_of(&p.c[i], values) / (size_t)d.num_experts;
        for (size_t b = 0; b < bytes; b++) {
            values[2 * bytes + b] ^= 0x35;
        }
        const moe_weights_source changed = expert_of(&p.c[i].source, 2);
        CHECK(moe_weights_update(p.c[i].weights, 2, &changed) == MOE_OK, "%s", moe_last_error());
    }
    check_same_outputs(&p, "updated");
    check_unpacked(&p.c[1], "updated");
    // A refused update leaves every byte as it was.
    layer_case *c = &p.c[1];
    unsigned char *scales = c->source.gemm[1].scales.data;
    const size_t per_expert = bytes_of(c, scales) / (size_t)d.num_experts;
    const uint64_t before = layer_case_forms(c);
    const unsigned char was = scales[2 * per_expert + 3];
    scales[2 * per_expert + 3] = 1;
    const moe_weights_source beyond = expert_of(&c->source, 2);
    CHECK(moe_weights_update(c->weights, 2, &beyond) == MOE_E_VALUE &&
              strstr(moe_last_error(), "moe_weights_update: down of expert 2: packed: scale [3] "
                                       "has code 1, 2..252 are kept") != NULL,
          "%s", moe_last_error());
    CHECK(layer_case_forms(c) == before, "a refused update wrote packed weights");
    scales[2 * per_expert + 3] = was;
    check_same_outputs(&p, "after a refused update");
    free_pair(&p);
}

// The single op takes the caller's weights as they lie.
static void test_op(const moe_context *packed)
{
    static const float w[6] = {1, 2, 3, 4, 5, 6};
    static const float x[3] = {1, 1, 2};
    float y[2] = {0, 0};
    moe_ggemm_args a = {.struct_size = sizeof a};
    a.gemm.weight_format = MOE_FORMAT_F32;
    a.weights.values = moe_tensor_2d(w, MOE_F32, 2, 3);
    a.x = moe_tensor_2d(x, MOE_F32, 1, 3);
    a.y = moe_tensor_2d(y, MOE_F32, 1, 2);
    CHECK(moe_ggemm(packed, &a, NULL) == MOE_OK && y[0] == 9.0f && y[1] == 21.0f, "%g %g: %s",
          (double)y[0], (double)y[1], moe_last_error());
}

int main(void)
{
    moe_context *host = NULL;
    const moei_format_info *info;
    if (!CHECK(moe_context_create(NULL, &host) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    rows = packed_rows_make(host->backend);
    moe_context packed = *host;
    packed_rows_move(&packed, &rows->backend);
    for (size_t i = 0; (info = moei_format_at(i)) != NULL; i++) {
        for (int form = 0; form < 4; form++) {
            const moe_layer_desc d = layer_form(info->format, form);
            test_layer(host, &packed, &d, info->name);
            if (form == 0) {
                test_layout_name(host, &packed, &d);
            }
        }
    }
    CHECK(rows->packed > 500 && rows->unpacked > 500, "%lu experts packed, %lu unpacked",
          rows->packed, rows->unpacked);
    test_too_large(&packed);
    test_refusals(host, &packed);
    test_update(host, &packed);
    test_op(&packed);
    moe_context_destroy(host);
    return test_summary();
}
