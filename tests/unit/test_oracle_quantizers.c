// SPDX-License-Identifier: Apache-2.0
// Replays the quantisers of public libraries from a file: every stored array of codes, scales and
// dequantised values must come out byte for byte.
//
//   test_oracle_quantizers FILE
//
// FILE is a safetensors file with tensors <case>/<item>. The table at the end says which libraries
// are known by the beginning of a case's name; shapes, groups and variants come from the items. A
// case that the table does not know is skipped, with its name.
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "moe/io.h"
#include "moe/quantize.h"
#include "numerics/fp4.h"
#include "test.h"

static moe_context *ctx;
static const moe_file *file;

// ------------------------------------------------------------------------------------------- items

// The item of a case, absent (data NULL) if it is not there.
static moe_tensor item(const char *name, const char *what)
{
    char key[256];
    moe_tensor t = moe_tensor_1d(NULL, MOE_U8, 0);
    (void)snprintf(key, sizeof key, "%s/%s", name, what);
    if (moe_file_tensor(file, key, &t) != MOE_OK) {
        t.data = NULL;
    }
    return t;
}

// Name of the i-th item of a case, NULL past the end.
static const char *item_name(const char *name, size_t i)
{
    const size_t length = strlen(name);
    const char *key;
    for (size_t at = 0; (key = moe_file_name(file, at)) != NULL; at++) {
        if (strncmp(key, name, length) == 0 && key[length] == '/' && i-- == 0) {
            return key + length + 1;
        }
    }
    return NULL;
}

static const uint8_t *bytes_of(const moe_tensor *t)
{
    return (const uint8_t *)t->data + t->byte_offset;
}

static size_t elements(const moe_tensor *t)
{
    size_t n = 1;
    for (int i = 0; i < t->ndim; i++) {
        n *= (size_t)t->shape[i];
    }
    return n;
}

static size_t size_of(const moe_tensor *t)
{
    return (elements(t) * (size_t)moe_dtype_bits(t->dtype) + 7) / 8;
}

static void *buffer(size_t size)
{
    void *p = calloc(size + 1, 1);
    if (p == NULL) {
        abort();
    }
    return p;
}

// Compares `count` elements of `size` bytes and prints the line of an item.
static void compare(const char *name, const char *what, const char *of, const uint8_t *have,
                    const uint8_t *want, size_t count, size_t size)
{
    size_t equal = 0;
    size_t first = count;
    for (size_t i = 0; i < count; i++) {
        const bool same = memcmp(have + i * size, want + i * size, size) == 0;
        equal += same;
        first = same || first < count ? first : i;
    }
    (void)printf("%s/%s: %zu of %zu %s\n", name, what, equal, count, of);
    CHECK(equal == count, "%s/%s: %zu %s differ, the first at %zu", name, what, count - equal, of,
          first);
}

static bool ran(moe_status status, const char *name, const char *what)
{
    return CHECK(status == MOE_OK, "%s/%s: %s", name, what, moe_last_error());
}

static bool present(const moe_tensor *t, const char *name, const char *what)
{
    return CHECK(t->data != NULL, "%s: item %s is missing", name, what);
}

// ----------------------------------------------------------------------------------- one quantiser

// A quantiser with the stored input and the arrays that it must give. Absent arrays are not
// compared. Stored codes may be packed (U8, I8) or one to a byte.
typedef struct replay {
    const char *name, *label;
    moe_quant_desc quant;
    moe_tensor x, q, scales, back;
    float given;
} replay;

static int64_t rows_of(const replay *r)
{
    return r->x.shape[0];
}

static int64_t columns_of(const replay *r)
{
    return r->x.shape[1];
}

// The view that a stored array of scales describes: [rows, G], or [G, rows] of a column layout.
static moe_tensor scale_view(const replay *r, void *data)
{
    moe_tensor t = moe_tensor_make(data, r->scales.dtype, r->scales.ndim, r->scales.shape);
    if (r->quant.scale_layout == MOE_SCALE_LAYOUT_COLUMN) {
        t.shape[0] = r->scales.shape[1];
        t.shape[1] = r->scales.shape[0];
        t.stride[0] = 1;
        t.stride[1] = t.shape[0];
    }
    return t;
}

// Codes of 4 bits, one to a byte, sign extended, as libraries without packing store them.
static void unpack_int4(const uint8_t *packed, size_t count, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = (uint8_t)(int8_t)moei_int4_to_i32(moei_get_u4(packed, i));
    }
}

static void replay_back(const replay *r, moe_quantize_args args)
{
    if (r->back.data == NULL) {
        return;
    }
    uint8_t *out = buffer(size_of(&r->back));
    args.x = moe_tensor_2d(out, r->back.dtype, rows_of(r), columns_of(r));
    if (ran(moe_dequantize(ctx, &args, NULL), r->name, r->label)) {
        compare(r->name, r->label, "values back", out, bytes_of(&r->back), elements(&r->back),
                (size_t)moe_dtype_bits(r->back.dtype) / 8);
    }
    free(out);
}

static void run_replay(const replay *r, float *global)
{
    const int bits = moe_dtype_bits(r->quant.elem);
    const int64_t width = (columns_of(r) * bits + 7) / 8;
    const size_t code_bytes = (size_t)(rows_of(r) * width);
    uint8_t *codes = buffer(code_bytes);
    uint8_t *scales = buffer(r->scales.data != NULL ? size_of(&r->scales) : sizeof r->given);
    const int64_t one[1] = {1};
    moe_quantize_args args = moe_quantize_args_default();
    args.quant = r->quant;
    args.x = r->x;
    args.q = moe_tensor_2d(codes, MOE_U8, rows_of(r), width);
    args.scales = moe_tensor_make(&r->given, MOE_F32, 1, one);
    if (r->scales.data != NULL) {
        args.scales = scale_view(r, scales);
    } else if (r->quant.spec == MOE_QUANT_NVFP4_INVERSE) {
        free(scales);
        scales = buffer((size_t)(rows_of(r) * (columns_of(r) / 16 + 1)));
        args.scales = moe_tensor_2d(scales, MOE_U8, rows_of(r), (columns_of(r) + 15) / 16);
    }
    args.global_scale = moe_tensor_make(global, MOE_F32, 1, one);
    if (ran(moe_quantize(ctx, &args, NULL), r->name, r->label)) {
        if (r->q.data != NULL && size_of(&r->q) != code_bytes) {
            uint8_t *unpacked = buffer(elements(&r->q));
            unpack_int4(codes, elements(&r->q), unpacked);
            compare(r->name, r->label, "codes", unpacked, bytes_of(&r->q), elements(&r->q), 1);
            free(unpacked);
        } else if (r->q.data != NULL) {
            compare(r->name, r->label, bits == 4 ? "bytes of two codes" : "codes", codes,
                    bytes_of(&r->q), code_bytes, 1);
        }
        if (r->scales.data != NULL) {
            compare(r->name, r->label, "scales", scales, bytes_of(&r->scales), elements(&r->scales),
                    (size_t)moe_dtype_bits(r->scales.dtype) / 8);
        }
        replay_back(r, args);
    }
    free(codes);
    free(scales);
}

// ----------------------------------------------------------------------------------- the libraries

// Items q<kind>.g<group>.<f32|ue8m0>[.colmajor] with x<kind>.g<group> and s<the same>.
static void replay_group_fp8(const char *name)
{
    const char *label;
    for (size_t i = 0; (label = item_name(name, i)) != NULL; i++) {
        char part[128];
        const char *dot = strchr(label, '.');
        if (label[0] != 'q' || dot == NULL || dot[1] != 'g') {
            continue;
        }
        char *end;
        const long group = strtol(dot + 2, &end, 10);
        if (!CHECK(group > 0 && group < 65536, "%s/%s: no group in the name", name, label)) {
            continue;
        }
        replay r = {.name = name, .label = label, .q = item(name, label)};
        (void)snprintf(part, sizeof part, "x%.*s", (int)(end - label) - 1, label + 1);
        r.x = item(name, part);
        (void)snprintf(part, sizeof part, "s%s", label + 1);
        r.scales = item(name, part);
        r.quant.spec = MOE_QUANT_FP8_GROUP_RECIP;
        r.quant.elem = MOE_E4M3FN;
        r.quant.group = (int32_t)group;
        r.quant.scale_type = strstr(label, ".ue8m0") != NULL ? MOE_SCALE_UE8M0_F32 : MOE_SCALE_F32;
        r.quant.scale_layout =
            strstr(label, ".colmajor") != NULL ? MOE_SCALE_LAYOUT_COLUMN : MOE_SCALE_LAYOUT_ROW;
        if (present(&r.x, name, label) && present(&r.scales, name, part)) {
            run_replay(&r, NULL);
        }
    }
}

// x [rows, 2I]; q.<type> and s.<type>, the latter [I/group, rows].
static void replay_silu_mul_fp8(const char *name)
{
    static const struct {
        const char *q, *s;
        moe_scale_type type;
    } forms[] = {{"q.f32", "s.f32", MOE_SCALE_F32}, {"q.ue8m0", "s.ue8m0", MOE_SCALE_UE8M0_F32}};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        const moe_tensor x = item(name, "x");
        const moe_tensor q = item(name, forms[i].q);
        const moe_tensor s = item(name, forms[i].s);
        if (!present(&x, name, "x") || !present(&q, name, forms[i].q) ||
            !present(&s, name, forms[i].s)) {
            continue;
        }
        uint8_t *codes = buffer(size_of(&q));
        uint8_t *scales = buffer(size_of(&s));
        moe_silu_mul_quantize_args args = moe_silu_mul_quantize_args_default();
        args.quant.spec = MOE_QUANT_FP8_GROUP_RECIP;
        args.quant.group = (int32_t)(q.shape[1] / s.shape[0]);
        args.quant.scale_type = forms[i].type;
        args.quant.scale_layout = MOE_SCALE_LAYOUT_COLUMN;
        args.round_steps = 1;
        args.y = x;
        args.q = moe_tensor_2d(codes, MOE_E4M3FN, q.shape[0], q.shape[1]);
        args.scales = moe_tensor_2d(scales, MOE_F32, s.shape[1], s.shape[0]);
        args.scales.stride[0] = 1;
        args.scales.stride[1] = s.shape[1];
        if (ran(moe_silu_mul_quantize(ctx, &args, NULL), name, forms[i].q)) {
            compare(name, forms[i].q, "codes", codes, bytes_of(&q), elements(&q), 1);
            compare(name, forms[i].s, "scales", scales, bytes_of(&s), elements(&s), 4);
        }
        free(codes);
        free(scales);
    }
}

// <form>_q.<type> and <form>_s.<type> for the forms per_token, per_block (of w) and per_token_fp4.
static void replay_deepgemm(const char *name)
{
    static const struct {
        const char *form, *x;
        moe_quant_spec spec;
        moe_dtype elem;
    } forms[] = {{"per_token", "x", MOE_QUANT_FP8_GROUP_DEEPGEMM, MOE_E4M3FN},
                 {"per_block", "w", MOE_QUANT_FP8_BLOCK_DEEPGEMM, MOE_E4M3FN},
                 {"per_token_fp4", "x", MOE_QUANT_FP4_GROUP_DEEPGEMM, MOE_E2M1}};
    static const char *types[] = {"f32", "ue8m0"};
    for (size_t i = 0; i < 2 * sizeof forms / sizeof forms[0]; i++) {
        char q[64];
        char s[64];
        const char *type = types[i % 2];
        (void)snprintf(q, sizeof q, "%s_q.%s", forms[i / 2].form, type);
        (void)snprintf(s, sizeof s, "%s_s.%s", forms[i / 2].form, type);
        replay r = {.name = name, .label = q, .x = item(name, forms[i / 2].x)};
        r.q = item(name, q);
        r.scales = item(name, s);
        if (!present(&r.x, name, forms[i / 2].x) || !present(&r.q, name, q) ||
            !present(&r.scales, name, s)) {
            continue;
        }
        r.quant.spec = forms[i / 2].spec;
        r.quant.elem = forms[i / 2].elem;
        r.quant.scale_type = i % 2 == 0 ? MOE_SCALE_F32 : MOE_SCALE_UE8M0_F32;
        if (r.quant.spec != MOE_QUANT_FP8_BLOCK_DEEPGEMM) {
            r.quant.group = (int32_t)(r.x.shape[1] / r.scales.shape[1]);
        }
        run_replay(&r, NULL);
    }
}

// blocks [.., R, G, 16] of packed e2m1 and scales [.., R, G] to out.<dtype> [.., G * 32, R]; lut is
// the table of the 16 codes.
static void replay_mxfp4_decode(const char *name)
{
    static const char *outs[] = {"out.float32", "out.bfloat16"};
    const moe_tensor blocks = item(name, "blocks");
    const moe_tensor scales = item(name, "scales");
    const moe_tensor lut = item(name, "lut");
    if (!present(&blocks, name, "blocks") || !present(&scales, name, "scales")) {
        return;
    }
    float table[16];
    for (size_t i = 0; i < 16; i++) {
        table[i] = moei_e2m1_to_f32((uint8_t)i);
    }
    if (lut.data != NULL) {
        compare(name, "lut", "values", (const uint8_t *)table, bytes_of(&lut), 16, 4);
    }
    const int64_t groups = blocks.shape[blocks.ndim - 2];
    const int64_t n = blocks.shape[blocks.ndim - 3];
    const int64_t rows = (int64_t)elements(&blocks) / (groups * 16);
    for (size_t i = 0; i < sizeof outs / sizeof outs[0]; i++) {
        const moe_tensor out = item(name, outs[i]);
        if (!present(&out, name, outs[i])) {
            continue;
        }
        const size_t size = (size_t)moe_dtype_bits(out.dtype) / 8;
        uint8_t *x = buffer(size_of(&out));
        uint8_t *transposed = buffer(size_of(&out));
        moe_quantize_args args = moe_quantize_args_default();
        args.quant.spec = MOE_QUANT_MX_FLOOR;
        args.x = moe_tensor_2d(x, out.dtype, rows, groups * 32);
        args.q = moe_tensor_2d(bytes_of(&blocks), MOE_U8, rows, groups * 16);
        args.scales = moe_tensor_2d(bytes_of(&scales), MOE_U8, rows, groups);
        if (ran(moe_dequantize(ctx, &args, NULL), name, outs[i])) {
            for (int64_t r = 0; r < rows; r++) {
                for (int64_t k = 0; k < groups * 32; k++) {
                    const int64_t to = (r / n * groups * 32 + k) * n + r % n;
                    memcpy(transposed + (size_t)to * size, x + (size_t)(r * groups * 32 + k) * size,
                           size);
                }
            }
            compare(name, outs[i], "values", transposed, bytes_of(&out), elements(&out), size);
        }
        free(x);
        free(transposed);
    }
}

// w, w_q and w_s of 128 x 128 blocks.
static void replay_hf_fp8(const char *name)
{
    replay r = {.name = name, .label = "w_q", .x = item(name, "w"), .q = item(name, "w_q")};
    r.scales = item(name, "w_s");
    r.quant.spec = MOE_QUANT_FP8_BLOCK_INVERSE;
    r.quant.elem = MOE_E4M3FN;
    if (present(&r.x, name, "w") && present(&r.q, name, "w_q") && present(&r.scales, name, "w_s")) {
        run_replay(&r, NULL);
    }
}

// w to the global scale and the values after quantisation and back.
static void replay_nvfp4_reference(const char *name)
{
    const moe_tensor want = item(name, "global_scale");
    replay r = {.name = name, .label = "qdq_f32", .x = item(name, "w")};
    r.back = item(name, "qdq_f32");
    r.quant.spec = MOE_QUANT_NVFP4_INVERSE;
    r.quant.elem = MOE_E2M1;
    if (present(&r.x, name, "w") && present(&r.back, name, "qdq_f32") &&
        present(&want, name, "global_scale")) {
        float global = 0.0f;
        run_replay(&r, &global);
        compare(name, "global_scale", "scales", (const uint8_t *)&global, bytes_of(&want), 1, 4);
    }
}

// One scale, given, for all rows; and one per row.
static void replay_torch_int8(const char *name)
{
    const moe_tensor given = item(name, "per_tensor_s");
    replay r = {.name = name, .label = "per_tensor_q", .x = item(name, "w")};
    r.q = item(name, "per_tensor_q");
    r.quant.spec = MOE_QUANT_INT8_STATIC;
    r.quant.elem = MOE_I8;
    if (present(&r.x, name, "w") && present(&r.q, name, "per_tensor_q") &&
        present(&given, name, "per_tensor_s")) {
        memcpy(&r.given, bytes_of(&given), sizeof r.given);
        run_replay(&r, NULL);
    }
    r.label = "per_channel_q";
    r.q = item(name, r.label);
    r.scales = item(name, "per_channel_s");
    r.back = item(name, "per_channel_deq");
    r.quant.spec = MOE_QUANT_INT8_TOKEN_RECIP;
    if (present(&r.q, name, r.label) && present(&r.scales, name, "per_channel_s")) {
        run_replay(&r, NULL);
    }
}

// x, q and s, a scale per row or group.
static void replay_x_q_s(const char *name, moe_quant_spec spec, moe_dtype elem, bool grouped,
                         const char *back)
{
    replay r = {.name = name, .label = "q", .x = item(name, "x"), .q = item(name, "q")};
    r.scales = item(name, "s");
    r.back = item(name, back);
    r.quant.spec = spec;
    r.quant.elem = elem;
    if (present(&r.x, name, "x") && present(&r.q, name, "q") && present(&r.scales, name, "s")) {
        r.quant.group = grouped ? (int32_t)(r.x.shape[1] / r.scales.shape[1]) : 0;
        run_replay(&r, NULL);
    }
}

static void replay_int8_token(const char *name)
{
    replay_x_q_s(name, MOE_QUANT_INT8_TOKEN_RECIP, MOE_I8, false, "deq");
}

static void replay_int4_group(const char *name)
{
    replay_x_q_s(name, MOE_QUANT_INT4_GROUP_RECIP, MOE_INT4, true, "deq");
}

static void replay_nvfp4(const char *name)
{
    replay_x_q_s(name, MOE_QUANT_NVFP4_SINGLE, MOE_E2M1, true, "deq_f32");
}

// <format>.<ROUND_UP|ROUND_DOWN>.<q|s|deq_bf16> with x.
static void replay_mx(const char *name, moe_quant_spec up, moe_quant_spec down)
{
    static const struct {
        const char *name;
        moe_dtype elem;
    } formats[] = {{"mxfp4", MOE_E2M1}, {"mxfp8_e4m3", MOE_E4M3FN}, {"mxfp8_e5m2", MOE_E5M2}};
    for (size_t i = 0; i < 2 * sizeof formats / sizeof formats[0]; i++) {
        char label[64];
        const char *format = formats[i / 2].name;
        const char *mode = i % 2 == 0 ? "ROUND_UP" : "ROUND_DOWN";
        replay r = {.name = name, .label = label, .x = item(name, "x")};
        (void)snprintf(label, sizeof label, "%s.%s.s", format, mode);
        r.scales = item(name, label);
        (void)snprintf(label, sizeof label, "%s.%s.deq_bf16", format, mode);
        r.back = item(name, label);
        (void)snprintf(label, sizeof label, "%s.%s.q", format, mode);
        r.q = item(name, label);
        r.quant.spec = i % 2 == 0 ? up : down;
        r.quant.elem = formats[i / 2].elem;
        if (present(&r.x, name, "x") && present(&r.q, name, label) &&
            present(&r.scales, name, label)) {
            run_replay(&r, NULL);
        }
    }
}

static void replay_mx_sparse(const char *name)
{
    replay_mx(name, MOE_QUANT_MX_CEIL, MOE_QUANT_MX_FLOOR);
}

static void replay_mx_tuple(const char *name)
{
    replay_mx(name, MOE_QUANT_MX_CEIL_AWAY, MOE_QUANT_MX_FLOOR_MAX);
}

// Cases by the beginning of their names; the first that fits. NULL: not a quantiser.
static const struct {
    const char *prefix;
    void (*run)(const char *name);
    const char *why_not;
} libraries[] = {
    {"vllm_group_fp8", replay_group_fp8, NULL},
    {"vllm_silu_mul_fp8", replay_silu_mul_fp8, NULL},
    {"deepgemm_fp8", replay_deepgemm, NULL},
    {"hf_mxfp4_decode", replay_mxfp4_decode, NULL},
    {"hf_fp8", replay_hf_fp8, NULL},
    {"hf_nvfp4_reference", replay_nvfp4_reference, NULL},
    {"torch_int8_token", replay_int8_token, NULL},
    {"torch_int8", replay_torch_int8, NULL},
    {"torch_int4_group", replay_int4_group, NULL},
    {"tk_sparse_mxfp", replay_mx_sparse, NULL},
    {"tk_tuple_mxfp", replay_mx_tuple, NULL},
    {"tk_sparse_nvfp4", replay_nvfp4, NULL},
    {"decode", NULL, "number formats: test_oracle_numeric_formats"},
    {"f32", NULL, "number formats: test_oracle_numeric_formats"},
    {"bf16", NULL, "number formats: test_oracle_numeric_formats"},
};

static void run_case(const char *name)
{
    for (size_t i = 0; i < sizeof libraries / sizeof libraries[0]; i++) {
        if (strncmp(name, libraries[i].prefix, strlen(libraries[i].prefix)) == 0) {
            if (libraries[i].run != NULL) {
                libraries[i].run(name);
            } else {
                (void)printf("%s: skipped, %s\n", name, libraries[i].why_not);
            }
            return;
        }
    }
    (void)printf("%s: skipped, not in the table of libraries\n", name);
}

int main(int argc, char **argv)
{
    moe_file *opened = NULL;
    if (argc != 2) {
        (void)fprintf(stderr, "usage: test_oracle_quantizers FILE\n");
        return 2;
    }
    if (!CHECK(moe_file_open(argv[1], MOE_FILE_DEFAULT, &opened) == MOE_OK &&
                   moe_context_create(NULL, &ctx) == MOE_OK,
               "%s: %s", argv[1], moe_last_error())) {
        return test_summary();
    }
    file = opened;
    const char *key;
    char done[4096] = "/"; // "/case/case/"
    for (size_t i = 0; (key = moe_file_name(file, i)) != NULL; i++) {
        char name[128];
        char marked[132];
        (void)snprintf(name, sizeof name, "%.*s", (int)strcspn(key, "/"), key);
        (void)snprintf(marked, sizeof marked, "/%s/", name);
        if (strstr(done, marked) == NULL) {
            (void)strncat(done, marked + 1, sizeof done - strlen(done) - 1);
            run_case(name);
        }
    }
    moe_context_destroy(ctx);
    moe_file_close(opened);
    return test_summary();
}
