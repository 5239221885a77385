// SPDX-License-Identifier: Apache-2.0
// Packed matrices: moe_ggemm over one gives the bits that it gives over the tensors, for every
// format, input and instruction set; what has been packed comes back; packed bytes are adopted;
// every refusal.
#define _DEFAULT_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "api/layer_case.h"
#include "api/refusals.h"
#include "ops/ggemm.h"
#include "quant/formats.h"
#include "unit/far_device.h"

#define ROWS         40 // of all experts
#define LAYOUT_BYTES 512

static unsigned long packed_layouts, row_layouts;

// ---- a matrix and its memory -------------------------------------------------------------------

typedef struct packed {
    moe_matrix *matrix;
    void *memory;
    size_t bytes;
} packed;

static moe_status make(const moe_context *ctx, const moe_matrix_desc *desc, packed *out)
{
    size_t align = 0;
    *out = (packed){NULL, NULL, 0};
    const moe_status status = moe_matrix_bytes(ctx, desc, &out->bytes, &align);
    if (status != MOE_OK) {
        return status;
    }
    out->memory = aligned_alloc(align, (out->bytes + align - 1) / align * align);
    if (out->memory == NULL) {
        abort();
    }
    memset(out->memory, 0xA5, out->bytes);
    return moe_matrix_create(ctx, desc, out->memory, out->bytes, &out->matrix);
}

static void drop(packed *p)
{
    moe_matrix_destroy(p->matrix);
    free(p->memory);
}

static size_t compact_bytes(const moe_tensor *t)
{
    int64_t elements = t->data != NULL ? 1 : 0;
    for (int32_t i = 0; i < t->ndim; i++) {
        elements *= t->shape[i];
    }
    return (size_t)(elements * moe_dtype_bits(t->dtype) / 8);
}

// The same views over fresh memory.
static moe_matrix_source empty_copy(const moe_matrix_source *from)
{
    moe_matrix_source s = *from;
    moe_tensor *views[] = {&s.values, &s.scales, &s.scale2, &s.zero_points, &s.bias, &s.act_scale};
    for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
        const size_t bytes = compact_bytes(views[i]);
        if (views[i]->data != NULL && (views[i]->data = malloc(bytes)) == NULL) {
            abort();
        }
    }
    return s;
}

// Frees a copy; true if it equals `want`.
static int end_copy(moe_matrix_source *have, const moe_matrix_source *want)
{
    const moe_tensor *h[] = {&have->values,      &have->scales, &have->scale2,
                             &have->zero_points, &have->bias,   &have->act_scale};
    const moe_tensor *w[] = {&want->values,      &want->scales, &want->scale2,
                             &want->zero_points, &want->bias,   &want->act_scale};
    int same = 1;
    for (size_t i = 0; i < sizeof h / sizeof h[0]; i++) {
        same = same &&
               (w[i]->data == NULL || memcmp(h[i]->data, w[i]->data, compact_bytes(w[i])) == 0);
        free(h[i]->data);
    }
    return same;
}

// ---- bits --------------------------------------------------------------------------------------

// Rows that lie sorted, scattered and weighed on their way out, over 4 experts of one product.
static moe_layer_desc layer_of(moe_format format, int n)
{
    const moei_format_info *info = moei_format(format);
    moe_layer_desc d = layer_case_base();
    layer_case_place(&d, MOE_X_SORTED);
    d.max_tokens = ROWS;
    d.hidden = n % 2 == 0 ? 144 : 200; // neither fills records of 32
    d.inter = n % 2 == 0 ? 72 : 130;   // nor panels of 64
    d.num_experts = 4;
    d.activation = MOE_ACT_RELU2_NO_MUL;
    d.gate_up = MOE_GATE_UP_UNSET;
    d.x_dtype = MOE_F32;
    d.gemm[0].weight_format = format;
    d.gemm[0].bias = n % 2;
    d.gemm[0].zero_points = info->zero_point >= 0 && n % 3 != 0;
    d.gemm[0].channel_scale = info->free_group && n % 2;
    d.transposed = n % 3 == 0 && moe_dtype_bits(info->elem) >= 8;
    d.gemm[1].weight_format = MOE_FORMAT_BF16;
    return d;
}

static moe_matrix_desc matrix_of(const moe_layer_desc *d)
{
    moe_matrix_desc m = moe_matrix_desc_default();
    m.outputs = d->inter;
    m.inputs = d->hidden;
    m.count = d->num_experts;
    m.transposed = d->transposed;
    m.gemm = d->gemm[0];
    m.x_dtype = d->x_dtype;
    return m;
}

static moe_ggemm_args args_of(const layer_case *c, const int32_t *scattered, const float *weights,
                              const void *y, moe_dtype y_dtype)
{
    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.x = c->args.x;
    a.x_scales = c->args.x_scales;
    a.offsets = c->args.offsets;
    a.out_index = moe_tensor_1d(scattered, MOE_I32, ROWS);
    a.row_weight = moe_tensor_1d(weights, MOE_F32, ROWS);
    a.y = moe_tensor_2d(y, y_dtype, ROWS, c->desc.inter);
    return a;
}

static void count_layout(const moe_context *ctx, const moe_matrix_desc *desc)
{
    char text[LAYOUT_BYTES];
    size_t needed = 0;
    CHECK(moe_matrix_layout_name(ctx, desc, text, sizeof text, &needed) == MOE_OK &&
              needed == strlen(text) && needed < sizeof text,
          "%zu: %s", needed, moe_last_error());
    if (strstr(text, " matrix.layout=packed-") != NULL) {
        packed_layouts++;
    } else {
        CHECK(strstr(text, " matrix.layout=rows ") != NULL, "%s", text);
        row_layouts++;
    }
}

// One case on one context: packed against canonical.
static void check_bits(const moe_context *ctx, const layer_case *c, const char *name)
{
    static float weights[ROWS];
    static int32_t scattered[ROWS];
    static float want[ROWS * 256], have[ROWS * 256];
    const moe_matrix_desc desc = matrix_of(&c->desc);
    const moe_matrix_source *source = &c->source.gemm[0];
    packed p;
    for (int32_t i = 0; i < ROWS; i++) {
        weights[i] = 0.5f + (float)i / 64.0f;
        scattered[i] = (i * 7 + 3) % ROWS;
    }
    if (!CHECK(make(ctx, &desc, &p) == MOE_OK && moe_matrix_pack(p.matrix, 0, source) == MOE_OK,
               "%s: %s", name, moe_last_error())) {
        drop(&p);
        return;
    }
    count_layout(ctx, &desc);
    for (int b = 0; b < 2; b++) {
        const moe_dtype y_dtype = b == 0 ? MOE_F32 : MOE_BF16;
        memset(want, 0xA5, sizeof want);
        memset(have, 0xA5, sizeof have);
        moe_ggemm_args a = args_of(c, scattered, weights, want, y_dtype);
        a.gemm = desc.gemm;
        a.transposed = desc.transposed;
        a.weights = *source;
        CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s: %s", name, moe_last_error());
        a = args_of(c, scattered, weights, have, y_dtype);
        a.matrix = p.matrix;
        CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s: %s", name, moe_last_error());
        CHECK(memcmp(want, have, sizeof have) == 0, "%s: kernel %s gives other bits", name,
              moe_matrix_kernel(p.matrix));
    }
    moe_matrix_source out = empty_copy(source);
    CHECK(moe_matrix_unpack(p.matrix, 0, &out) == MOE_OK, "%s: %s", name, moe_last_error());
    CHECK(end_copy(&out, source), "%s comes back changed", name);
    drop(&p);
}

// True if there is such a layer; its bits are checked on every context.
static int try_layer(moe_context *const *contexts, int count, const moe_layer_desc *d)
{
    moe_plan *plan = NULL;
    layer_case c;
    char name[128];
    (void)snprintf(name, sizeof name, "%s x %s (%s)", moe_dtype_name(d->x_dtype),
                   moe_format_name(d->gemm[0].weight_format), moe_quant_name(d->gemm[0].act.spec));
    if (moe_plan_create(contexts[0], d, &plan) != MOE_OK) {
        return 0;
    }
    if (CHECK(layer_case_make(&c, plan, d, ROWS) == MOE_OK, "%s: %s", name, moe_last_error())) {
        for (int i = 0; i < count; i++) {
            check_bits(contexts[i], &c, name);
        }
    }
    layer_case_free(&c);
    moe_plan_destroy(plan);
    return 1;
}

static void test_formats(moe_context *const *contexts, int count)
{
    static const moe_dtype types[] = {MOE_F32, MOE_BF16, MOE_F16};
    int n = 0;
    for (moe_format f = 1; moei_format(f) != NULL; f++, n++) {
        moe_layer_desc d = layer_of(f, n);
        d.x_dtype = types[n % 3];
        CHECK(try_layer(contexts, count, &d), "%s: %s", moe_format_name(f), moe_last_error());
        d.x_dtype = MOE_F32;
        CHECK(try_layer(contexts, count, &d), "%s: %s", moe_format_name(f), moe_last_error());
    }
    CHECK(n == 24, "%d formats", n);
}

// Codes of x, of every quantiser that goes with the format.
static void test_codes(moe_context *const *contexts, int count)
{
    static const moe_format formats[] = {MOE_FORMAT_MXFP4, MOE_FORMAT_INT8_CHANNEL,
                                         MOE_FORMAT_E4M3FN_BLOCK, MOE_FORMAT_INT4_GROUP};
    int ran = 0;
    int given = 0;
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        for (moe_quant_spec spec = 1; spec <= MOE_QUANT_I16B32; spec++) {
            moe_layer_desc d = layer_of(formats[f], (int)f);
            d.gemm[0].act.spec = spec;
            d.x_dtype = moei_gemm_operand_dtype(&d.gemm[0], MOE_DTYPE_UNSET);
            d.inter_dtype = d.partial_dtype = d.out_dtype = MOE_F32;
            if (d.x_dtype != MOE_DTYPE_UNSET && try_layer(contexts, count, &d)) {
                ran++;
                given += spec == MOE_QUANT_FP8_STATIC || spec == MOE_QUANT_NVFP4;
            }
        }
    }
    CHECK(ran >= 40 && given >= 4, "%d cases of codes, %d with a given scale", ran, given);
}

// ---- sizes -------------------------------------------------------------------------------------

static uint32_t state = 1;

static float draw(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-23f - 1.0f;
}

// A plain layer without offsets: [n, k] in f32 or bf16, m rows.
static void check_size(const moe_context *ctx, moe_format format, int64_t m, int64_t n, int64_t k)
{
    const moe_dtype type = format == MOE_FORMAT_BF16 ? MOE_BF16 : MOE_F32;
    float *values = malloc((size_t)(n * k) * sizeof(float));
    float *x = malloc((size_t)(m * k) * sizeof(float));
    float *y = malloc((size_t)(2 * m * n) * sizeof(float));
    packed p = {NULL, NULL, 0};
    moe_matrix_desc desc = moe_matrix_desc_default();
    desc.outputs = n;
    desc.inputs = k;
    desc.gemm.weight_format = format;
    desc.x_dtype = MOE_F32;
    if (values == NULL || x == NULL || y == NULL) {
        abort();
    }
    for (int64_t i = 0; i < n * k; i++) {
        values[i] = draw();
        if (type == MOE_BF16) { // bits that are a number of ordinary size
            ((uint16_t *)(void *)values)[i] = (uint16_t)(0x3C00 + (state >> 16 & 0x81FF));
        }
    }
    for (int64_t i = 0; i < m * k; i++) {
        x[i] = draw();
    }
    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.gemm = desc.gemm;
    a.weights.values = moe_tensor_2d(values, type, n, k);
    a.x = moe_tensor_2d(x, MOE_F32, m, k);
    a.y = moe_tensor_2d(y, MOE_F32, m, n);
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s", moe_last_error());
    CHECK(make(ctx, &desc, &p) == MOE_OK && moe_matrix_pack(p.matrix, 0, &a.weights) == MOE_OK,
          "%s", moe_last_error());
    memset(&a.weights, 0, sizeof a.weights);
    memset(&a.gemm, 0, sizeof a.gemm);
    a.matrix = p.matrix;
    a.y = moe_tensor_2d(y + m * n, MOE_F32, m, n);
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s", moe_last_error());
    CHECK(memcmp(y, y + m * n, (size_t)(m * n) * sizeof(float)) == 0,
          "%s: %d x %d x %d has other bits", moe_matrix_kernel(p.matrix), (int)m, (int)n, (int)k);
    drop(&p);
    free(values);
    free(x);
    free(y);
}

static void test_sizes(const moe_context *ctx)
{
    static const int64_t rows[] = {1, 2, 5, 13, 50};
    static const int64_t outputs[] = {1, 15, 16, 33, 64, 65, 130};
    static const int64_t inputs[] = {1, 2, 31, 32, 33, 255, 257, 601};
    for (size_t m = 0; m < sizeof rows / sizeof rows[0]; m++) {
        for (size_t n = 0; n < sizeof outputs / sizeof outputs[0]; n++) {
            for (size_t k = 0; k < sizeof inputs / sizeof inputs[0]; k++) {
                check_size(ctx, MOE_FORMAT_BF16, rows[m], outputs[n], inputs[k]);
            }
            check_size(ctx, MOE_FORMAT_F32, rows[m], outputs[n], inputs[n]);
        }
    }
}

// ---- packed bytes ------------------------------------------------------------------------------

// Bytes that nobody may write any more multiply as those that were packed.
static void test_adopt(const moe_context *ctx, const moe_layer_desc *d)
{
    char layout[LAYOUT_BYTES];
    char other[LAYOUT_BYTES + 8];
    size_t bytes = 0;
    size_t align = 0;
    moe_plan *plan = NULL;
    moe_matrix *first = NULL;
    moe_matrix *adopted = NULL;
    moe_matrix *none = NULL;
    layer_case c;
    moe_matrix_desc desc = matrix_of(d);
    const bool given_scale = desc.gemm.act.spec != MOE_QUANT_NONE;
    CHECK(moe_plan_create((moe_context *)(uintptr_t)ctx, d, &plan) == MOE_OK &&
              layer_case_make(&c, plan, d, ROWS) == MOE_OK &&
              moe_matrix_bytes(ctx, &desc, &bytes, &align) == MOE_OK &&
              moe_matrix_layout_name(ctx, &desc, layout, sizeof layout, NULL) == MOE_OK,
          "%s", moe_last_error());
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && moe_matrix_create(ctx, &desc, memory, bytes, &first) == MOE_OK &&
              moe_matrix_pack(first, 0, &c.source.gemm[0]) == MOE_OK,
          "%s", moe_last_error());
    moe_matrix_destroy(first);
    CHECK(mprotect(memory, bytes, PROT_READ) == 0, "mprotect");
    if (CHECK(moe_matrix_adopt(ctx, &desc, memory, bytes, layout, &adopted) == MOE_OK, "%s",
              moe_last_error())) {
        moe_matrix_source out = empty_copy(&c.source.gemm[0]);
        CHECK(moe_matrix_unpack(adopted, 0, &out) == MOE_OK, "%s", moe_last_error());
        CHECK(end_copy(&out, &c.source.gemm[0]), "adopted bytes come back changed");
        REFUSED(moe_matrix_pack(adopted, 0, &c.source.gemm[0]), MOE_E_STATE, "moe_matrix_pack",
                "adopted");
        moe_matrix_destroy(adopted);
    }
    REFUSED(moe_matrix_adopt(ctx, &desc, memory, bytes - 1, layout, &none), MOE_E_SHAPE,
            "packed bytes, the matrices take");
    REFUSED(moe_matrix_adopt(ctx, &desc, (char *)memory + 64, bytes, layout, &none),
            MOE_E_ALIGNMENT, "not aligned to 256");
    REFUSED(moe_matrix_adopt(ctx, &desc, NULL, bytes, layout, &none), MOE_E_ARGUMENT,
            "memory is NULL");
    REFUSED(moe_matrix_adopt(ctx, &desc, memory, bytes, NULL, &none), MOE_E_ARGUMENT,
            "layout is NULL");
    (void)snprintf(other, sizeof other, "%s more=1", layout);
    REFUSED(moe_matrix_adopt(ctx, &desc, memory, bytes, other, &none), MOE_E_UNSUPPORTED,
            "have more=1, the descriptor's have no more");
    desc.outputs++;
    REFUSED(moe_matrix_adopt(ctx, &desc, memory, bytes, layout, &none), MOE_E_UNSUPPORTED,
            "have matrix.n=", "the descriptor's have matrix.n=", "pack again");
    desc.outputs--;
    if (given_scale) {
        CHECK(mprotect(memory, bytes, PROT_READ | PROT_WRITE) == 0, "mprotect");
        memset(memory, 0xFF, bytes);
        REFUSED(moe_matrix_adopt(ctx, &desc, memory, bytes, layout, &none), MOE_E_VALUE,
                "matrix activation scale is", "above 0");
    }
    CHECK(none == NULL, "a refused call left a matrix");
    CHECK(munmap(memory, bytes) == 0, "munmap");
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

// ---- refusals ----------------------------------------------------------------------------------

static float w[3 * 8 * 16], x[6 * 16], y[6 * 8];

static moe_matrix_desc desc_valid(void)
{
    moe_matrix_desc d = moe_matrix_desc_default();
    d.outputs = 8;
    d.inputs = 16;
    d.count = 2;
    d.gemm.weight_format = MOE_FORMAT_F32;
    d.x_dtype = MOE_F32;
    return d;
}

static void test_desc_refusals(const moe_context *ctx)
{
    size_t bytes = 0;
    size_t align = 0;
    moe_matrix *none = NULL;
    static _Alignas(256) unsigned char memory[4096];
#define REFUSE(edit, ...)                                                                          \
    do {                                                                                           \
        moe_matrix_desc d = desc_valid();                                                          \
        (void)(edit);                                                                              \
        REFUSED(moe_matrix_bytes(ctx, &d, &bytes, &align), __VA_ARGS__);                           \
        REFUSED(moe_matrix_create(ctx, &d, memory, sizeof memory, &none), __VA_ARGS__);            \
    } while (0)
    REFUSE(d.struct_size = 4, MOE_E_VERSION, "desc.struct_size = 4");
    REFUSE(d.outputs = 0, MOE_E_ARGUMENT, "desc.outputs = 0", "1..2147483647");
    REFUSE(d.inputs = (int64_t)1 << 31, MOE_E_ARGUMENT, "desc.inputs = 2147483648", "2147483647");
    REFUSE(d.count = 4097, MOE_E_ARGUMENT, "desc.count = 4097", "4096");
    REFUSE(d.count = -1, MOE_E_ARGUMENT, "desc.count = -1");
    REFUSE(d.transposed = 2, MOE_E_ARGUMENT, "desc.transposed = 2", "0..1");
    REFUSE(d.determinism = 9, MOE_E_ARGUMENT, "desc.determinism = 9");
    REFUSE((d.outputs = INT32_MAX, d.inputs = INT32_MAX), MOE_E_OVERFLOW,
           "desc.outputs = 2147483647", "desc.inputs = 2147483647", "281474976710656");
    REFUSE(d.gemm.weight_format = 0, MOE_E_UNSET, "desc.gemm.weight_format is unset");
    REFUSE(d.gemm.bias = 2, MOE_E_ARGUMENT, "desc.gemm.bias = 2");
    REFUSE(d.x_dtype = 0, MOE_E_UNSET, "desc.x_dtype is unset");
    REFUSE(d.x_dtype = MOE_I8, MOE_E_DTYPE, "desc.x_dtype = int8", "f32, bf16 or f16");
    REFUSE((d.gemm.act.spec = MOE_QUANT_I8B32, d.gemm.weight_format = MOE_FORMAT_MXFP4),
           MOE_E_DTYPE, "desc.x_dtype = f32", "i8b32 gives int8");
    REFUSE((d.transposed = 1, d.gemm.weight_format = MOE_FORMAT_MXFP4), MOE_E_UNSUPPORTED,
           "desc.transposed = 1", "mxfp4, 4 bits");
    REFUSE((d.gemm.weight_format = MOE_FORMAT_E4M3FN_BLOCK,
            d.gemm.act.spec = MOE_QUANT_FP8_GROUP_DIV, d.gemm.act.group = 48, d.x_dtype = 0),
           MOE_E_NO_KERNEL, "every 128", "every 48");
#undef REFUSE
    moe_matrix_desc d = desc_valid();
    CHECK(moe_matrix_bytes(ctx, &d, &bytes, &align) == MOE_OK && align == 256 && bytes >= 1024,
          "%zu bytes aligned to %zu: %s", bytes, align, moe_last_error());
    REFUSED(moe_matrix_bytes(NULL, &d, &bytes, &align), MOE_E_ARGUMENT, "ctx is NULL");
    REFUSED(moe_matrix_bytes(ctx, NULL, &bytes, &align), MOE_E_ARGUMENT, "desc is NULL");
    REFUSED(moe_matrix_bytes(ctx, &d, NULL, &align), MOE_E_ARGUMENT, "bytes is NULL");
    REFUSED(moe_matrix_create(ctx, &d, memory, 1023, &none), MOE_E_ARGUMENT, "memory of 1023 bytes",
            "needs");
    REFUSED(moe_matrix_create(ctx, &d, NULL, bytes, &none), MOE_E_ARGUMENT, "memory of 0 bytes");
    REFUSED(moe_matrix_create(ctx, &d, memory + 64, sizeof memory - 64, &none), MOE_E_ALIGNMENT,
            "not aligned to 256");
    REFUSED(moe_matrix_create(ctx, &d, memory, sizeof memory, NULL), MOE_E_ARGUMENT, "out is NULL");
    REFUSED(moe_matrix_layout_name(ctx, &d, NULL, 1, NULL), MOE_E_ARGUMENT, "buffer is NULL");
    CHECK(none == NULL, "a refused call left a matrix");
    moe_matrix_destroy(NULL);
}

static moe_matrix_source source_of(int64_t experts)
{
    moe_matrix_source s;
    const int64_t shape[3] = {experts, 8, 16};
    memset(&s, 0, sizeof s);
    s.values = moe_tensor_make(w, MOE_F32, 3, shape);
    return s;
}

static moe_ggemm_args ggemm_of(const moe_matrix *matrix, const int32_t *offsets)
{
    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.matrix = matrix;
    a.x = moe_tensor_2d(x, MOE_F32, 6, 16);
    a.y = moe_tensor_2d(y, MOE_F32, 6, 8);
    a.offsets = moe_tensor_1d(offsets, MOE_I32, 3);
    return a;
}

static void test_call_refusals(const moe_context *ctx, const moe_context *another)
{
    static const int32_t offsets[4] = {0, 2, 6, 6};
    const moe_matrix_desc desc = desc_valid();
    const moe_matrix_source three = source_of(3);
    const moe_matrix_source one = source_of(1);
    moe_matrix_source s = one;
    moe_ggemm_args a;
    packed p;
    CHECK(make(ctx, &desc, &p) == MOE_OK, "%s", moe_last_error());
    REFUSED(moe_matrix_pack(NULL, 0, &one), MOE_E_ARGUMENT, "matrix is NULL");
    REFUSED(moe_matrix_pack(p.matrix, 0, NULL), MOE_E_ARGUMENT, "source is NULL");
    REFUSED(moe_matrix_unpack(p.matrix, 0, NULL), MOE_E_ARGUMENT, "out is NULL");
    REFUSED(moe_matrix_pack(p.matrix, 0, &three), MOE_E_SHAPE, "experts 0 .. 2", "has 2");
    REFUSED(moe_matrix_pack(p.matrix, 2, &one), MOE_E_SHAPE, "experts 2 .. 2", "has 2");
    REFUSED(moe_matrix_pack(p.matrix, -1, &one), MOE_E_SHAPE, "experts -1 .. -1");
    s.values.dtype = MOE_BF16;
    REFUSED(moe_matrix_pack(p.matrix, 0, &s), MOE_E_DTYPE, "matrix is bf16", "f32");
    s = one;
    s.values.device = MOE_DEVICE_CUDA;
    REFUSED(moe_matrix_pack(p.matrix, 0, &s), MOE_E_ARGUMENT, "\"cuda\"", "\"cpu\"");
    s = one;
    s.bias = s.values;
    REFUSED(moe_matrix_pack(p.matrix, 0, &s), MOE_E_ARGUMENT, "matrix bias is given", "bias = 0");
    CHECK(moe_matrix_pack(p.matrix, 0, &one) == MOE_OK, "%s", moe_last_error());
    REFUSED(moe_matrix_unpack(p.matrix, 1, &one), MOE_E_STATE, "expert 1", "has not been packed");
    a = ggemm_of(p.matrix, offsets);
    REFUSED(moe_ggemm(ctx, &a, NULL), MOE_E_STATE, "moe_ggemm: expert 1 of args.matrix");
    CHECK(moe_matrix_pack(p.matrix, 1, &one) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s", moe_last_error());
#define REFUSE(edit, ...)                                                                          \
    do {                                                                                           \
        a = ggemm_of(p.matrix, offsets);                                                           \
        (void)(edit);                                                                              \
        memset(y, 0x5A, sizeof y);                                                                 \
        REFUSED(moe_ggemm(ctx, &a, NULL), __VA_ARGS__);                                            \
        CHECK(y[0] == y[47] && y[0] > 1e15f, "a refused call wrote");                              \
    } while (0)
    REFUSED(moe_ggemm(another, &a, NULL), MOE_E_ARGUMENT, "args.matrix", "another context");
    REFUSE(a.gemm.weight_format = MOE_FORMAT_F32, MOE_E_ARGUMENT, "args.gemm is set beside");
    REFUSE(a.transposed = 1, MOE_E_ARGUMENT, "args.transposed is set beside");
    REFUSE(a.weights.values = one.values, MOE_E_ARGUMENT, "weights.values is given beside");
    REFUSE(a.weights.act_scale = one.values, MOE_E_ARGUMENT, "weights.act_scale is given beside");
    REFUSE(a.x.dtype = MOE_BF16, MOE_E_DTYPE, "x is bf16", "made for f32");
    REFUSE(a.x.shape[1] = 15, MOE_E_SHAPE, "15 elements a row", "16 inputs");
    REFUSE(a.y.shape[1] = 7, MOE_E_SHAPE, "7 elements a row", "8 outputs");
    REFUSE(a.offsets = moe_tensor_1d(offsets, MOE_I32, 4), MOE_E_SHAPE, "say 3 experts", "has 2");
    REFUSE(a.offsets.data = NULL, MOE_E_SHAPE, "absent: 1", "has 2");
    REFUSE(a.y.data = p.memory, MOE_E_OVERLAP, "y overlaps matrix");
#undef REFUSE
    drop(&p);
}

// A second activation scale, scales that are no numbers.
static void test_value_refusals(const moe_context *ctx)
{
    static unsigned char codes[8 * 16];
    static float scale[8];
    float static_scale = 0.5f;
    moe_matrix_desc desc = desc_valid();
    moe_matrix_source s;
    packed p;
    desc.gemm.weight_format = MOE_FORMAT_E4M3FN_CHANNEL;
    desc.gemm.act.spec = MOE_QUANT_FP8_STATIC;
    desc.x_dtype = 0;
    memset(&s, 0, sizeof s);
    s.values = moe_tensor_2d(codes, MOE_E4M3FN, 8, 16);
    s.scales = moe_tensor_2d(scale, MOE_F32, 1, 8);
    s.act_scale = moe_tensor_1d(&static_scale, MOE_F32, 1);
    CHECK(make(ctx, &desc, &p) == MOE_OK && moe_matrix_pack(p.matrix, 0, &s) == MOE_OK, "%s",
          moe_last_error());
    scale[5] = -1.0f / 0.0f;
    REFUSED(moe_matrix_pack(p.matrix, 1, &s), MOE_E_VALUE, "matrix scales of expert 1",
            "element [5, 0] is infinite");
    scale[5] = 1.0f;
    static_scale = 0.25f;
    REFUSED(moe_matrix_pack(p.matrix, 1, &s), MOE_E_VALUE, "activation scale is 0.25",
            "gave 0.5; a matrix has one");
    static_scale = 0.0f;
    REFUSED(moe_matrix_pack(p.matrix, 1, &s), MOE_E_VALUE, "activation scale is 0", "above 0");
    drop(&p);
}

// A device's tensors are read where they lie.
static void test_device(const moe_context *host)
{
    far_device *far = far_device_make(host->backend, (size_t)1 << 20);
    const moe_context ctx = {.backend = &far->backend, .num_threads = 1};
    const moe_matrix_desc desc = desc_valid();
    size_t bytes = 0;
    size_t align = 0;
    REFUSED(moe_matrix_bytes(&ctx, &desc, &bytes, &align), MOE_E_UNSUPPORTED, "backend far",
            "not in host memory");
    far_device_free();
}

int main(void)
{
    static const char *const isas[] = {NULL, "avx2", "ref"};
    moe_context *contexts[3] = {NULL, NULL, NULL};
    int count = 0;
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        moe_context_desc desc = moe_context_desc_default();
        desc.isa = isas[i];
        desc.num_threads = i == 0 ? 2 : 1;
        count += moe_context_create(&desc, &contexts[count]) == MOE_OK;
    }
    if (!CHECK(count >= 2, "%s", moe_last_error())) {
        return test_summary();
    }
    test_formats(contexts, count);
    test_codes(contexts, count - 1); // the portable rows read rows alone, and take long
    test_sizes(contexts[0]);
    moe_layer_desc d = layer_of(MOE_FORMAT_MXFP4, 1);
    test_adopt(contexts[0], &d);
    d.gemm[0].act.spec = MOE_QUANT_FP8_STATIC;
    d.x_dtype = MOE_E4M3FN;
    d.inter_dtype = d.partial_dtype = d.out_dtype = MOE_F32;
    test_adopt(contexts[0], &d);
    test_desc_refusals(contexts[0]);
    test_call_refusals(contexts[0], contexts[1]);
    test_value_refusals(contexts[0]);
    test_device(contexts[0]);
    REACHED(MOE_E_ARGUMENT, MOE_E_UNSET, MOE_E_SHAPE, MOE_E_DTYPE, MOE_E_OVERFLOW, MOE_E_VERSION,
            MOE_E_UNSUPPORTED, MOE_E_NO_KERNEL, MOE_E_ALIGNMENT, MOE_E_STATE, MOE_E_VALUE,
            MOE_E_OVERLAP);
    (void)printf("%lu packed layouts, %lu in rows\n", packed_layouts, row_layouts);
    for (int i = 0; i < count; i++) {
        moe_context_destroy(contexts[i]);
    }
    return test_summary();
}
