// SPDX-License-Identifier: Apache-2.0
// Replays the number formats of ml_dtypes and PyTorch from a file: decode tables, and casts of
// floats and bfloat16 values to every small format. Every byte is reproduced, but for the causes in
// `causes`, each counted; a difference without a cause fails, and so does a cause that never
// occurs.
//
//   test_oracle_numeric_formats FILE
//
// FILE is a safetensors file with tensors decode/<library>.<format> (f32, one entry per code) and,
// for <source> f32 or bf16, <source>/in (bit patterns) and <source>/<library>.<raw|sat>.<format>
// (codes; sat: the input clamped to the format's finite range, then cast).
#include <stdint.h>
#include <string.h>

#include "moe/io.h"
#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "test.h"

typedef enum cause {
    SAME,
    NAN_TO_SMALL, // fp6 and fp4 have no NaN: ml_dtypes gives a zero of the opposite sign, libmoe
                  // the positive largest value, as NVIDIA's conversions do
    NAN_E5M2,     // ml_dtypes gives 7E, libmoe 7F as PyTorch, both with the sign
    NAN_BF16,     // PyTorch's vectorised cast gives FFFF for every NaN, libmoe 7FC0 with the sign
    NAN_SIGN,     // PyTorch's clamp of a bf16 NaN loses its sign, libmoe keeps it
    E8M0_SIGN,    // ml_dtypes gives NaN for zero and below, libmoe (as PyTorch) ignores the sign
    OTHER,
    N_CAUSES
} cause;

static const char *const causes[N_CAUSES] = {
    "the same",
    "NaN to fp6 or fp4: a zero in ml_dtypes, the largest value here",
    "NaN to e5m2: 7E in ml_dtypes, 7F here",
    "NaN to bf16: FFFF in PyTorch, 7FC0 with the sign here",
    "NaN from bf16, clamped: the sign is lost in PyTorch, kept here",
    "zero or negative to e8m0: NaN in ml_dtypes, as |x| here",
    "without a cause",
};

static unsigned long counts[N_CAUSES];

static float decode_bf16(uint32_t c)
{
    return moei_bf16_to_f32((uint16_t)c);
}

#define BYTE_FORMAT(name)                                                                          \
    static float decode_##name(uint32_t c)                                                         \
    {                                                                                              \
        return moei_##name##_to_f32((uint8_t)c);                                                   \
    }                                                                                              \
    static uint32_t encode_##name(float x, moei_overflow overflow)                                 \
    {                                                                                              \
        return moei_f32_to_##name(x, overflow);                                                    \
    }
BYTE_FORMAT(e4m3fn)
BYTE_FORMAT(e4m3fnuz)
BYTE_FORMAT(e5m2)
BYTE_FORMAT(e5m2fnuz)
BYTE_FORMAT(e2m3)
BYTE_FORMAT(e3m2)
BYTE_FORMAT(e2m1)

static float decode_e8m0(uint32_t c)
{
    return moei_e8m0_to_f32((uint8_t)c);
}

static uint32_t encode_e8m0(float x, moei_overflow overflow)
{
    if (overflow == MOEI_OVERFLOW_SATURATE) {
        // The clamp of the file; the conversion itself has no saturating form.
        x = x > 0x1p127f ? 0x1p127f : (x < 0x1p-127f ? 0x1p-127f : x);
    }
    return moei_f32_to_e8m0(x);
}

static uint32_t encode_bf16(float x, moei_overflow overflow)
{
    (void)overflow;
    return moei_f32_to_bf16(x);
}

static uint32_t encode_f16(float x, moei_overflow overflow)
{
    (void)overflow;
    return moei_f32_to_f16(x);
}

static const struct format {
    const char *name; // in the file
    int code_bits;
    float (*decode)(uint32_t c);
    uint32_t (*encode)(float x, moei_overflow overflow);
} formats[] = {
    {"float8_e4m3fn", 8, decode_e4m3fn, encode_e4m3fn},
    {"float8_e4m3fnuz", 8, decode_e4m3fnuz, encode_e4m3fnuz},
    {"float8_e5m2", 8, decode_e5m2, encode_e5m2},
    {"float8_e5m2fnuz", 8, decode_e5m2fnuz, encode_e5m2fnuz},
    {"float8_e8m0fnu", 8, decode_e8m0, encode_e8m0},
    {"float6_e2m3fn", 6, decode_e2m3, encode_e2m3},
    {"float6_e3m2fn", 6, decode_e3m2, encode_e3m2},
    {"float4_e2m1fn", 4, decode_e2m1, encode_e2m1},
    {"bfloat16", 16, decode_bf16, encode_bf16},
    {"float16", 16, NULL, encode_f16},
};

static const struct format *find_format(const char *name)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (strcmp(formats[i].name, name) == 0) {
            return &formats[i];
        }
    }
    return NULL;
}

static const uint8_t *data_of(const moe_tensor *t)
{
    return (const uint8_t *)t->data + t->byte_offset;
}

static size_t elements_of(const moe_tensor *t)
{
    size_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++) {
        n *= (size_t)t->shape[i];
    }
    return n;
}

static uint32_t load(const uint8_t *p, size_t i, size_t width)
{
    uint32_t u = 0;
    memcpy(&u, p + i * width, width); // the file is little-endian, as is every target
    return u;
}

static void replay_decode(const char *name, const struct format *f, const moe_tensor *t)
{
    size_t n = elements_of(t);
    if (!CHECK(t->dtype == MOE_F32 && n == (size_t)1 << f->code_bits && f->decode != NULL,
               "%s: %zu entries", name, n)) {
        return;
    }
    for (size_t c = 0; c < n; c++) {
        uint32_t expected = load(data_of(t), c, 4);
        uint32_t got = moei_f32_bits(f->decode((uint32_t)c));
        counts[got == expected ? SAME : OTHER]++;
        CHECK(got == expected, "%s: code %02zx is %08x, not %08x", name, c, got, expected);
    }
}

static cause explain(const struct format *f, int from_bf16, int from_torch, int saturate, float x,
                     uint32_t ours, uint32_t theirs)
{
    uint32_t u = moei_f32_bits(x);
    int is_nan = x != x;
    uint32_t sign = u >> 31;
    if (ours == theirs) {
        return SAME;
    }
    if (f->encode == encode_e8m0 && !from_torch && !saturate && theirs == 255 && !(x > 0.0f)) {
        return E8M0_SIGN;
    }
    if (!is_nan) {
        return OTHER;
    }
    if (!from_torch && f->code_bits < 8) {
        return theirs == (1u - sign) << (f->code_bits - 1) ? NAN_TO_SMALL : OTHER;
    }
    if (!from_torch && f->encode == encode_e5m2) {
        return theirs == (sign << 7 | 0x7Eu) ? NAN_E5M2 : OTHER;
    }
    if (from_torch && f->encode == encode_bf16) {
        return theirs == 0xFFFFu ? NAN_BF16 : OTHER;
    }
    if (from_torch && from_bf16 && saturate) {
        return (theirs & 0x7Fu) == 0x7Fu && (ours ^ theirs) == 0x80u ? NAN_SIGN : OTHER;
    }
    return OTHER;
}

static void replay_encode(const char *name, const char *library, const struct format *f,
                          const moe_tensor *in, const moe_tensor *codes)
{
    size_t n = elements_of(in);
    size_t in_width = in->dtype == MOE_I32 ? 4 : 2;
    size_t code_width = f->code_bits == 16 ? 2 : 1;
    int saturate = strstr(name, ".sat.") != NULL;
    int from_torch = strncmp(library, "torch", 5) == 0;
    if (!CHECK(elements_of(codes) == n, "%s: %zu codes for %zu inputs", name, elements_of(codes),
               n)) {
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t u = load(data_of(in), i, in_width);
        float x = moei_f32_from_bits(in_width == 4 ? u : u << 16);
        uint32_t ours = f->encode(x, saturate ? MOEI_OVERFLOW_SATURATE : MOEI_OVERFLOW_NAN);
        uint32_t theirs = load(data_of(codes), i, code_width);
        cause c = explain(f, in_width == 2, from_torch, saturate, x, ours, theirs);
        counts[c]++;
        CHECK(c != OTHER, "%s: %a gives %02x, not %02x", name, (double)x, ours, theirs);
    }
}

int main(int argc, char **argv)
{
    moe_file *file = NULL;
    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FILE\n", argv[0]);
        return 2;
    }
    if (!CHECK(moe_file_open(argv[1], MOE_FILE_DEFAULT, &file) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    unsigned tables = 0;
    unsigned arrays = 0;
    for (size_t i = 0; i < moe_file_count(file); i++) {
        const char *name = moe_file_name(file, i);
        const char *library = strchr(name, '/');
        const char *last_dot = strrchr(name, '.');
        moe_tensor t, in;
        int decode = strncmp(name, "decode/", 7) == 0;
        int encode = strncmp(name, "f32/", 4) == 0 || strncmp(name, "bf16/", 5) == 0;
        if ((!decode && !encode) || library == NULL || strcmp(library, "/in") == 0) {
            continue;
        }
        library++;
        const struct format *f = last_dot == NULL ? NULL : find_format(last_dot + 1);
        CHECK(f != NULL, "%s: a format that this test does not know", name);
        moe_status status = moe_file_tensor(file, name, &t);
        CHECK(status == MOE_OK, "%s", moe_last_error());
        if (f == NULL || status != MOE_OK) {
            continue;
        }
        if (decode) {
            replay_decode(name, f, &t);
            tables++;
        } else if (CHECK(moe_file_tensor(file, name[0] == 'f' ? "f32/in" : "bf16/in", &in) ==
                             MOE_OK,
                         "%s", moe_last_error())) {
            replay_encode(name, library, f, &in, &t);
            arrays++;
        }
    }
    moe_file_close(file);
    (void)printf("%u decode tables, %u arrays of codes\n", tables, arrays);
    CHECK(tables != 0 && arrays != 0, "nothing to replay in %s", argv[1]);
    for (int c = 0; c < N_CAUSES; c++) {
        (void)printf("%9lu  %s\n", counts[c], causes[c]);
        CHECK(c == OTHER ? counts[c] == 0 : counts[c] != 0, "%s: %lu times", causes[c], counts[c]);
    }
    return test_summary();
}
