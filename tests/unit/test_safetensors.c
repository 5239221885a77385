// SPDX-License-Identifier: Apache-2.0
// The safetensors reader: what it accepts, what it refuses and in which words. Images are built
// here and opened at the end of a page behind which nothing may be read.
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moe/io.h"
#include "st_image.h"
#include "test.h"

static moe_file *const untouched = (moe_file *)(uintptr_t)64;

static moe_status open_image(struct image image, moe_file **file)
{
    *file = untouched;
    const moe_status status = moe_file_open_memory(image.bytes, image.size, "t", file);
    if (status != MOE_OK) {
        CHECK(*file == untouched, "out was touched by a failing open");
        *file = NULL;
    }
    return status;
}

struct rejected {
    const char *header;
    size_t data;
    moe_status status;
    const char *message; // the whole of it after "moe_file_open_memory: t: "
};

static const struct rejected rejects[] = {
    // The header as JSON.
    {"", 0, MOE_E_MALFORMED, "byte 8: expected '{', found the end of the header"},
    {" {}", 0, MOE_E_MALFORMED, "byte 8: expected '{', found  "},
    {"[]", 0, MOE_E_MALFORMED, "byte 8: expected '{', found ["},
    {"{", 0, MOE_E_MALFORMED, "byte 9: expected a tensor's name, found the end of the header"},
    {"{}x", 0, MOE_E_MALFORMED, "byte 10: expected the end of the header, found x"},
    {"{} {}", 0, MOE_E_MALFORMED, "byte 11: expected the end of the header, found {"},
    {"{,}", 0, MOE_E_MALFORMED, "byte 9: expected a tensor's name, found ,"},
    {"{1:2}", 0, MOE_E_MALFORMED, "byte 9: expected a tensor's name, found 1"},
    {"{\"a\"}", 0, MOE_E_MALFORMED, "byte 12: expected ':', found }"},
    {"{\"a}", 0, MOE_E_MALFORMED, "byte 9: a string does not end"},
    {"{\"a\\", 0, MOE_E_MALFORMED,
     "byte 12: expected an escape that JSON has, found the end of "
     "the header"},
    {"{\"a\\x\"", 0, MOE_E_MALFORMED, "byte 12: expected an escape that JSON has, found x\\\""},
    {"{\"a\\u00g0\":1}", 0, MOE_E_MALFORMED,
     "byte 15: expected four hexadecimal digits after \\u, found g0\\\""},
    {"{" T("a", "U8", "1", 0, 1) ",}", 1, MOE_E_MALFORMED,
     "byte 61: expected a tensor's name, found }"},
    {"{" T("a", "U8", "1", 0, 1), 1, MOE_E_MALFORMED,
     "byte 60: expected ',' or '}', found the end of the header"},
    {"{" T("a", "U8", "1,", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds ], not an integer in 0..9223372036854775807"},
    {"{\"a\":{\"dtype\":\"U8\" \"shape\":[]}}", 1, MOE_E_MALFORMED,
     "byte 27: expected ',' or '}', found \\\"shape\\\""},
    // Names.
    {"{\"a\tb\":1}", 0, MOE_E_MALFORMED, "byte 11: byte 0x09 in a string is a control character"},
    {"{\"a\xff\":1}", 0, MOE_E_MALFORMED, "byte 11: byte 0xff in a string is not UTF-8"},
    {"{\"\xc0\x80\":1}", 0, MOE_E_MALFORMED, "byte 10: byte 0xc0 in a string is not UTF-8"},
    {"{\"\xed\xa0\x80\":1}", 0, MOE_E_MALFORMED, "byte 10: byte 0xed in a string is not UTF-8"},
    {"{\"\xf4\x90\x80\x80\":1}", 0, MOE_E_MALFORMED, "byte 10: byte 0xf4 in a string is not UTF-8"},
    {"{\"\xe2\x82", 0, MOE_E_MALFORMED, "byte 10: byte 0xe2 in a string is not UTF-8"},
    {"{\"a\\u0000b\":1}", 0, MOE_E_MALFORMED, "byte 11: a string holds U+0000"},
    {"{\"\\ud800\":1}", 0, MOE_E_MALFORMED, "byte 10: a string holds half a surrogate pair"},
    {"{\"\\udc00\":1}", 0, MOE_E_MALFORMED, "byte 10: a string holds half a surrogate pair"},
    {"{\"\\ud800\\u0041\":1}", 0, MOE_E_MALFORMED, "byte 10: a string holds half a surrogate pair"},
    {"{\"\\ud800\\ud800\":1}", 0, MOE_E_MALFORMED, "byte 10: a string holds half a surrogate pair"},
    // Unique keys, at every depth, in every spelling.
    {"{" T("a", "U8", "1", 0, 1) "," T("a", "U8", "1", 1, 2) "}", 2, MOE_E_MALFORMED,
     "the tensor \"a\" occurs twice"},
    {"{" T("a", "U8", "1", 0, 1) "," T("\\u0061", "U8", "1", 1, 2) "}", 2, MOE_E_MALFORMED,
     "the tensor \"a\" occurs twice"},
    {"{" T("a", "U8", "0", 0, 0) "," T("b", "U8", "1", 0, 1) "," T("a", "U8", "0", 1, 1) "}", 1,
     MOE_E_MALFORMED, "the tensor \"a\" occurs twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
     MOE_E_MALFORMED, "tensor \"a\": the field \"dtype\" occurs twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"\\u0073hape\":[],\"data_offsets\":[0,1]}}", 1,
     MOE_E_MALFORMED, "tensor \"a\": the field \"shape\" occurs twice"},
    {"{\"__metadata__\":{\"k\":\"1\",\"j\":\"2\",\"\\u006b\":\"1\"}}", 0, MOE_E_MALFORMED,
     "__metadata__: the key \"k\" occurs twice"},
    {"{\"__metadata__\":{},\"_\\u005fmetadata__\":{}}", 0, MOE_E_MALFORMED,
     "the key \"__metadata__\" occurs twice"},
    // __metadata__ maps strings to strings.
    {"{\"__metadata__\":[]}", 0, MOE_E_MALFORMED, "__metadata__ is [, not an object"},
    {"{\"__metadata__\":null}", 0, MOE_E_MALFORMED, "__metadata__ is null, not an object"},
    {"{\"__metadata__\":{\"k\":1}}", 0, MOE_E_MALFORMED,
     "__metadata__: the value of \"k\" is 1, not a string"},
    {"{\"__metadata__\":{\"k\":{\"l\":\"m\"}}}", 0, MOE_E_MALFORMED,
     "__metadata__: the value of \"k\" is {\\\"l\\\", not a string"},
    {"{\"__metadata__\":{\"k\":null}}", 0, MOE_E_MALFORMED,
     "__metadata__: the value of \"k\" is null, not a string"},
    // Fields.
    {"{\"a\":1}", 0, MOE_E_MALFORMED, "tensor \"a\" is 1, not an object"},
    {"{\"a\":[[[[[[]]]]]]}", 0, MOE_E_MALFORMED, "tensor \"a\" is [[[[[[, not an object"},
    {"{\"a\":{}}", 0, MOE_E_MALFORMED, "tensor \"a\": the field \"dtype\" is missing"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, MOE_E_MALFORMED,
     "tensor \"a\": the field \"shape\" is missing"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, MOE_E_MALFORMED,
     "tensor \"a\": the field \"data_offsets\" is missing"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":{\"y\":[]}}}", 1,
     MOE_E_MALFORMED, "tensor \"a\": the field \"x\" is not known"},
    {"{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, MOE_E_MALFORMED,
     "byte 22: expected the dtype, a string, found 8"},
    {"{" T("a", "F31", "1", 0, 4) "}", 4, MOE_E_MALFORMED,
     "tensor \"a\": dtype \"F31\" is not known"},
    {"{" T("a", "f32", "1", 0, 4) "}", 4, MOE_E_MALFORMED,
     "tensor \"a\": dtype \"f32\" is not known"},
    {"{" T("a", "", "1", 0, 4) "}", 4, MOE_E_MALFORMED, "tensor \"a\": dtype \"\" is not known"},
    // Shapes.
    {"{\"a\":{\"shape\":3,\"dtype\":\"U8\",\"data_offsets\":[0,3]}}", 3, MOE_E_MALFORMED,
     "byte 22: expected '[', found 3"},
    {"{" T("a", "U8", "-1", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds -1, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "-0", 0, 0) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\": shape holds -0, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "1.0", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds 1.0, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "1e1", 0, 10) "}", 10, MOE_E_MALFORMED,
     "tensor \"a\": shape holds 1e1, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "01", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds 01, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "\"1\"", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds \\\"1\\\", not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "null", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds null, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "1 2", 0, 2) "}", 2, MOE_E_MALFORMED,
     "byte 38: expected ',' or ']', found 2"},
    {"{" T("a", "U8", "[1]", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds [1, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "9223372036854775808", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds 9223372036854775808, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "18446744073709551617", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": shape holds 18446744073709551617, not an integer in 0..9223372036854775807"},
    {"{" T("a", "U8", "4294967296,4294967296", 0, 0) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\": the product of its shape [4294967296,4294967296] exceeds 2^63 - 1"},
    {"{" T("a", "U8", "4294967296,4294967296,0", 0, 0) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\": the product of its shape [4294967296,4294967296,0] exceeds 2^63 - 1"},
    {"{" T("a", "U8", "2,2,2,2,2,4611686018427387904", 0, 0) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\": the product of its shape [2,2,2,2,2,4611686018427387904] exceeds 2^63 - 1"},
    {"{" T("a", "F64", "4611686018427387904", 0, 0) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\" begins at 0, its shape [4611686018427387904] F64 needs more than 2^64 bytes"},
    {"{" T("a", "U8", "2", 18446744073709551615, 18446744073709551615) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\" begins at 18446744073709551615, its shape [2] U8 needs more than 2^64 bytes"},
    // Sizes.
    {"{" T("a", "F32", "4,8", 0, 124) "}", 124, MOE_E_MALFORMED,
     "tensor \"a\" ends at 124, its shape [4,8] F32 needs 128"},
    {"{" T("a", "F32", "4,8", 0, 132) "}", 132, MOE_E_MALFORMED,
     "tensor \"a\" ends at 132, its shape [4,8] F32 needs 128"},
    {"{" T("a", "F32", "", 0, 0) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\" ends at 0, its shape [] F32 needs 4"},
    {"{" T("a", "F32", "0", 0, 4) "}", 4, MOE_E_MALFORMED,
     "tensor \"a\" ends at 4, its shape [0] F32 needs 0"},
    {"{" T("a", "F4", "3", 0, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": its shape [3] F4 does not end on a byte"},
    {"{" T("a", "F4", "3", 0, 2) "}", 2, MOE_E_MALFORMED,
     "tensor \"a\": its shape [3] F4 does not end on a byte"},
    {"{" T("a", "F4", "3,3", 0, 5) "}", 5, MOE_E_MALFORMED,
     "tensor \"a\": its shape [3,3] F4 does not end on a byte"},
    {"{" T("a", "F6_E2M3", "2", 0, 2) "}", 2, MOE_E_MALFORMED,
     "tensor \"a\": its shape [2] F6_E2M3 does not end on a byte"},
    {"{" T("a", "F6_E3M2", "5", 0, 4) "}", 4, MOE_E_MALFORMED,
     "tensor \"a\": its shape [5] F6_E3M2 does not end on a byte"},
    {"{" T("a", "F6_E3M2", "4", 0, 4) "}", 4, MOE_E_MALFORMED,
     "tensor \"a\" ends at 4, its shape [4] F6_E3M2 needs 3"},
    // Offsets.
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, MOE_E_MALFORMED,
     "tensor \"a\": data_offsets has fewer than 2 numbers"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, MOE_E_MALFORMED,
     "tensor \"a\": data_offsets has more than 2 numbers"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[]}}", 1, MOE_E_MALFORMED,
     "tensor \"a\": data_offsets holds ], not an integer in 0..18446744073709551615"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{}}}", 1, MOE_E_MALFORMED,
     "byte 54: expected '[', found {"},
    {"{" T("a", "U8", "1", -1, 0) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": data_offsets holds -1, not an integer in 0..18446744073709551615"},
    {"{" T("a", "U8", "1", 0, 18446744073709551616) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\": data_offsets holds 18446744073709551616, not an integer in "
     "0..18446744073709551615"},
    {"{" T("a", "U8", "1", 1, 0) "}", 1, MOE_E_MALFORMED, "tensor \"a\" begins at 1 and ends at 0"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "4", 8, 12) "}", 12, MOE_E_MALFORMED,
     "tensor \"b\" begins at 8, tensor \"a\" ends at 4 (a hole)"},
    {"{" T("a", "U8", "4", 4, 8) "}", 8, MOE_E_MALFORMED,
     "tensor \"a\" begins at 4, the header ends at 0 (a hole)"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "4", 2, 6) "}", 6, MOE_E_MALFORMED,
     "tensor \"b\" begins at 2, tensor \"a\" ends at 4 (an overlap)"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "4", 0, 4) "}", 4, MOE_E_MALFORMED,
     "tensor \"b\" begins at 0, tensor \"a\" ends at 4 (an overlap)"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "0", 2, 2) "}", 4, MOE_E_MALFORMED,
     "tensor \"b\" begins at 2, tensor \"a\" ends at 4 (an overlap)"},
    {"{" T("a", "U8", "0", 1, 1) "}", 1, MOE_E_MALFORMED,
     "tensor \"a\" begins at 1, the header ends at 0 (a hole)"},
    {"{" T("a", "U8", "0", 9, 9) "}", 0, MOE_E_MALFORMED,
     "tensor \"a\" ends at 9, the file's data at 0"},
    {"{" T("a", "U8", "4", 0, 4) "}", 3, MOE_E_MALFORMED,
     "tensor \"a\" ends at 4, the file's data at 3"},
    {"{" T("a", "U8", "4", 0, 4) "}", 5, MOE_E_MALFORMED,
     "the last tensor ends at 4, the file's data at 5"},
    {"{}", 1, MOE_E_MALFORMED, "the last tensor ends at 0, the file's data at 1"},
    // Names in messages.
    {"{\"\\u001b[31m\\\"\\\\\xc3\xa9\xe2\x80\xae\":1}", 0, MOE_E_MALFORMED,
     "tensor \"\\x1b[31m\\\"\\\\\xc3\xa9\\xe2\\x80\\xae\" is 1, not an object"},
};

static void check_rejects(void)
{
    static const char prefix[] = "moe_file_open_memory: t: ";
    for (size_t i = 0; i < COUNT(rejects); i++) {
        const struct rejected *r = &rejects[i];
        struct image image = image_make(r->header, strlen(r->header), r->data);
        moe_file *file = NULL;
        const moe_status status = open_image(image, &file);
        const char *message = moe_last_error();
        CHECK(status == r->status, "%s: %s", r->header, moe_status_name(status));
        const bool same = strncmp(message, prefix, sizeof prefix - 1) == 0 &&
                          strcmp(message + sizeof prefix - 1, r->message) == 0;
        CHECK(same, "%s:\n  says    %s\n  expected %s%s", r->header, message, prefix, r->message);
        moe_file_close(file);
        image_free(image);
    }
}

struct accepted {
    const char *header;
    size_t data;
    size_t count;
    const char *first; // name in file order, NULL: none
};

static const struct accepted accepts[] = {
    {"{}", 0, 0, NULL},
    {"{}      ", 0, 0, NULL},
    {"{ \n\r\t}\n", 0, 0, NULL},
    {"{\"__metadata__\":{}}", 0, 0, NULL},
    {"{" T("a", "U8", "4", 0, 4) "}   ", 4, 1, "a"},
    {"{ " T("a", "U8", " 2 , 2 ", 0, 4) " } ", 4, 1, "a"},
    {"{" T("", "U8", "4", 0, 4) "}", 4, 1, ""},
    {"{" T("a", "F32", "", 0, 4) "}", 4, 1, "a"},
    // Zero sizes, wherever they stand.
    {"{" T("a", "F32", "0", 0, 0) "}", 0, 1, "a"},
    {"{" T("a", "F32", "5,0,3", 0, 0) "}", 0, 1, "a"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "0", 0, 0) "}", 4, 2, "b"},
    {"{" T("a", "U8", "4", 0, 4) "," T("b", "U8", "0", 4, 4) "}", 4, 2, "a"},
    {"{" T("c", "U8", "0", 0, 0) "," T("b", "F4", "0,3", 0, 0) "}", 0, 2, "b"},
    {"{" T("a", "U8", "0,4294967296", 0, 0) "}", 0, 1, "a"},
    // Any order in the header.
    {"{" T("a", "U8", "4", 4, 8) "," T("b", "U8", "4", 0, 4) "}", 8, 2, "b"},
    {"{\"a\":{\"data_offsets\":[0,4],\"shape\":[4],\"dtype\":\"U8\"}}", 4, 1, "a"},
    // Escapes mean what they mean.
    {"{\"\\u0061\":{\"\\u0064type\":\"\\u00558\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 1,
     "a"},
    {"{" T("\\\"\\\\\\/\\b\\f\\n\\r\\t", "U8", "1", 0, 1) "}", 1, 1, "\"\\/\b\f\n\r\t"},
    {"{" T("\\u00e9\\u20ac\\ud83d\\uDE00", "U8", "1", 0, 1) "}", 1, 1,
     "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
    {"{" T("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "U8", "1", 0, 1) "}", 1, 1,
     "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
    // Names that only look like others.
    {"{" T("__metadata", "U8", "1", 0, 1) "," T("dtype", "U8", "1", 1, 2) "}", 2, 2, "__metadata"},
    // Tensor starts need no alignment.
    {"{" T("a", "U8", "1", 0, 1) "," T("b", "F64", "1", 1, 9) "}", 9, 2, "a"},
};

static void check_accepts(void)
{
    for (size_t i = 0; i < COUNT(accepts); i++) {
        const struct accepted *a = &accepts[i];
        struct image image = image_make(a->header, strlen(a->header), a->data);
        moe_file *file = NULL;
        const moe_status status = open_image(image, &file);
        if (CHECK(status == MOE_OK, "%s: %s", a->header, moe_last_error())) {
            const char *name = moe_file_name(file, 0);
            CHECK(moe_file_count(file) == a->count, "%s: %zu", a->header, moe_file_count(file));
            CHECK(a->first == NULL ? name == NULL : strcmp(name, a->first) == 0,
                  "%s: the first name is %s", a->header, name);
            CHECK(moe_file_name(file, a->count) == NULL, "%s: a name past the end", a->header);
            for (size_t t = 0; t < a->count; t++) {
                moe_tensor view;
                CHECK(moe_file_tensor(file, moe_file_name(file, t), &view) == MOE_OK, "%s: %s",
                      a->header, moe_last_error());
            }
        }
        moe_file_close(file);
        image_free(image);
    }
}

struct dtype_case {
    const char *name;
    const char *shape;
    size_t bytes;
    moe_dtype dtype;
};

static const struct dtype_case dtype_cases[] = {
    {"BOOL", "3", 3, MOE_BOOL},
    {"F4", "6", 3, MOE_E2M1},
    {"F4", "3,2", 3, MOE_E2M1},
    {"F4", "2,3", 3, MOE_E2M1},
    {"F6_E2M3", "4", 3, MOE_E2M3},
    {"F6_E3M2", "2,6", 9, MOE_E3M2},
    {"U8", "3", 3, MOE_U8},
    {"I8", "3", 3, MOE_I8},
    {"F8_E5M2", "3", 3, MOE_E5M2},
    {"F8_E4M3", "3", 3, MOE_E4M3FN},
    {"F8_E8M0", "3", 3, MOE_E8M0},
    {"F8_E4M3FNUZ", "3", 3, MOE_E4M3FNUZ},
    {"F8_E5M2FNUZ", "3", 3, MOE_E5M2FNUZ},
    {"I16", "3", 6, MOE_I16},
    {"U16", "3", 6, MOE_U16},
    {"F16", "3", 6, MOE_F16},
    {"BF16", "3", 6, MOE_BF16},
    {"I32", "3", 12, MOE_I32},
    {"U32", "3", 12, MOE_U32},
    {"F32", "3", 12, MOE_F32},
    {"F64", "3", 24, MOE_F64},
    {"I64", "3", 24, MOE_I64},
    {"U64", "3", 24, MOE_U64},
    {"C64", "3", 24, MOE_DTYPE_UNSET},
};

static void check_dtypes(void)
{
    for (size_t i = 0; i < COUNT(dtype_cases); i++) {
        const struct dtype_case *d = &dtype_cases[i];
        char header[256];
        (void)snprintf(header, sizeof header,
                       "{\"a\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[0,%zu]}}",
                       d->name, d->shape, d->bytes);
        struct image image = image_make(header, strlen(header), d->bytes);
        moe_file *file = NULL;
        moe_tensor view;
        memset(&view, 0x55, sizeof view);
        const moe_tensor before = view;
        CHECK(open_image(image, &file) == MOE_OK, "%s: %s", header, moe_last_error());
        const moe_status status = file == NULL ? MOE_E_STATE : moe_file_tensor(file, "a", &view);
        if (d->dtype == MOE_DTYPE_UNSET) {
            CHECK(status == MOE_E_DTYPE, "%s: %s", d->name, moe_status_name(status));
            CHECK(memcmp(&view, &before, sizeof view) == 0, "%s: out was touched", d->name);
            CHECK(strcmp(moe_last_error(),
                         "moe_file_tensor: t: tensor \"a\" is C64, which has no moe_dtype") == 0,
                  "%s", moe_last_error());
        } else {
            CHECK(status == MOE_OK, "%s: %s", d->name, moe_last_error());
            CHECK(view.dtype == d->dtype, "%s: %d", d->name, view.dtype);
            CHECK(view.data == image.bytes + 8 + strlen(header), "%s: data", d->name);
            CHECK(view.byte_offset == 0 && view.device == MOE_DEVICE_CPU, "%s: place", d->name);
        }
        moe_file_close(file);
        image_free(image);
    }
}

static void check_views(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\",\"a\":\"\",\"z\":\"\\u00e9\"},"
        "" T("scalar", "U8", "", 0, 1) "," T("odd", "F32", "2,3", 1,
                                             25) ","
                                                 "" T("six", "U8", "2,3,1,2,1,2", 25, 49) "," T(
                                                     "empty", "BF16", "3,0,2,7,9", 49, 49) "}";
    struct image image = image_make(header, sizeof header - 1, 49);
    moe_file *file = NULL;
    moe_tensor v;
    if (!CHECK(open_image(image, &file) == MOE_OK, "%s", moe_last_error())) {
        return;
    }
    const unsigned char *data = image.bytes + 8 + sizeof header - 1;
    CHECK(moe_file_tensor(file, "scalar", &v) == MOE_OK, "scalar");
    CHECK(v.ndim == 0 && v.data == data && v.shape[0] == 1, "scalar");
    CHECK(moe_file_tensor(file, "odd", &v) == MOE_OK, "odd");
    CHECK(v.ndim == 2 && v.shape[0] == 2 && v.shape[1] == 3 && v.stride[0] == 3 && v.stride[1] == 1,
          "odd: shape");
    CHECK(v.data == data + 1, "odd: unaligned start");
    CHECK(moe_file_tensor(file, "six", &v) == MOE_OK, "six");
    CHECK(v.ndim == 4 && v.shape[0] == 6 && v.shape[1] == 2 && v.shape[2] == 1 && v.shape[3] == 2,
          "six: leading dimensions merge");
    CHECK(v.stride[0] == 4 && v.stride[1] == 2 && v.stride[2] == 2 && v.stride[3] == 1,
          "six: strides");
    CHECK(moe_file_tensor(file, "empty", &v) == MOE_OK, "empty");
    CHECK(v.ndim == 4 && v.shape[0] == 0 && v.shape[1] == 2 && v.shape[2] == 7 && v.shape[3] == 9,
          "empty: leading dimensions merge");

    CHECK(moe_file_tensor(file, "none", &v) == MOE_E_NOT_FOUND, "none");
    CHECK(strcmp(moe_last_error(), "moe_file_tensor: t: no tensor \"none\"") == 0, "%s",
          moe_last_error());
    CHECK(moe_file_tensor(file, "", &v) == MOE_E_NOT_FOUND, "empty name");
    CHECK(moe_file_tensor(file, "__metadata__", &v) == MOE_E_NOT_FOUND, "metadata is no tensor");
    CHECK(strcmp(moe_file_metadata(file, "format"), "pt") == 0, "format");
    CHECK(strcmp(moe_file_metadata(file, "a"), "") == 0, "a");
    CHECK(strcmp(moe_file_metadata(file, "z"), "\xc3\xa9") == 0, "z");
    CHECK(moe_file_metadata(file, "b") == NULL, "absent key");

    // Arguments.
    moe_file *out = untouched;
    CHECK(moe_file_tensor(NULL, "a", &v) == MOE_E_ARGUMENT, "file NULL");
    CHECK(moe_file_tensor(file, NULL, &v) == MOE_E_ARGUMENT, "name NULL");
    CHECK(moe_file_tensor(file, "odd", NULL) == MOE_E_ARGUMENT, "out NULL");
    CHECK(moe_file_count(NULL) == 0 && moe_file_name(NULL, 0) == NULL, "NULL file");
    CHECK(moe_file_metadata(NULL, "a") == NULL && moe_file_metadata(file, NULL) == NULL, "NULL");
    CHECK(moe_file_open(NULL, 0, &out) == MOE_E_ARGUMENT, "path NULL");
    CHECK(moe_file_open("x", 0, NULL) == MOE_E_ARGUMENT, "out NULL");
    CHECK(moe_file_open("x", 2, &out) == MOE_E_ARGUMENT, "unknown flag");
    CHECK(moe_file_open_memory(NULL, 1, "x", &out) == MOE_E_ARGUMENT, "bytes NULL");
    CHECK(moe_file_open_memory(image.bytes, image.size, "x", NULL) == MOE_E_ARGUMENT, "out NULL");
    CHECK(moe_file_open_memory(NULL, 0, NULL, &out) == MOE_E_MALFORMED, "no bytes");
    CHECK(strcmp(moe_last_error(),
                 "moe_file_open_memory: memory: 0 bytes, the header length alone takes 8") == 0,
          "%s", moe_last_error());
    CHECK(out == untouched, "out was touched");
    moe_file_close(NULL);
    moe_file_close(file);
    image_free(image);
}

// Every prefix and every longer image is refused; no change of one byte is read out of bounds.
static void check_damage(void)
{
    static const char header[] = "{\"__metadata__\":{\"k\":\"v\"}," T("a", "F4", "2,3", 0, 3) "," T(
        "b\\u00e9\xc3\xa9", "I16", "2", 3, 7) "}  ";
    struct image whole = image_make(header, sizeof header - 1, 7);
    moe_file *file = NULL;
    for (size_t size = 0; size < whole.size; size++) {
        struct image part = image_alloc(size);
        memcpy(part.bytes, whole.bytes, size);
        CHECK(open_image(part, &file) == MOE_E_MALFORMED, "a prefix of %zu bytes opens", size);
        moe_file_close(file);
        image_free(part);
    }
    CHECK(open_image(whole, &file) == MOE_OK, "%s", moe_last_error());
    moe_file_close(file);
    long opened = 0;
    for (size_t i = 0; i < whole.size - 7; i++) {
        const unsigned char was = whole.bytes[i];
        for (int value = 0; value < 256; value++) {
            whole.bytes[i] = (unsigned char)value;
            opened += open_image(whole, &file) == MOE_OK;
            moe_file_close(file);
        }
        whole.bytes[i] = was;
    }
    CHECK(opened > 0, "no changed image opens");
    image_free(whole);
}

static void check_lengths(void)
{
    static const struct {
        uint64_t length;
        moe_status status;
        const char *message;
    } cases[] = {
        {3, MOE_E_MALFORMED, "a header of 3 bytes, the file has 2 after its length"},
        {100000000, MOE_E_MALFORMED,
         "a header of 100000000 bytes, the file has 2 after its length"},
        {100000001, MOE_E_LIMIT, "a header of 100000001 bytes, the limit is 100000000"},
        {UINT64_MAX, MOE_E_LIMIT, "a header of 18446744073709551615 bytes, the limit is 100000000"},
        {UINT64_MAX - 7, MOE_E_LIMIT,
         "a header of 18446744073709551608 bytes, the limit is 100000000"},
        {1, MOE_E_MALFORMED, "byte 9: expected a tensor's name, found the end of the header"},
        {0, MOE_E_MALFORMED, "byte 8: expected '{', found the end of the header"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct image image = image_make("{}", 2, 0);
        moe_file *file = NULL;
        for (size_t b = 0; b < 8; b++) {
            image.bytes[b] = (unsigned char)(cases[i].length >> 8 * b);
        }
        const moe_status status = open_image(image, &file);
        CHECK(status == cases[i].status, "%zu: %s", i, moe_status_name(status));
        CHECK(strcmp(strrchr(moe_last_error(), ':') + 2,
                     strrchr(cases[i].message, ':') == NULL
                         ? cases[i].message
                         : strrchr(cases[i].message, ':') + 2) == 0,
              "%s", moe_last_error());
        image_free(image);
    }
    // A NUL inside the header is no end of it.
    static const char nul[] = "{\"a\0b\":1}";
    static const char nul_after[] = "{}\0";
    static const char *const messages[] = {
        "moe_file_open_memory: t: byte 11: byte 0x00 in a string is a control character",
        "moe_file_open_memory: t: byte 10: expected the end of the header, found \\x00"};
    struct image images[] = {image_make(nul, sizeof nul - 1, 0),
                             image_make(nul_after, sizeof nul_after - 1, 0)};
    for (size_t i = 0; i < COUNT(images); i++) {
        moe_file *file = NULL;
        CHECK(open_image(images[i], &file) == MOE_E_MALFORMED, "NUL");
        CHECK(strcmp(moe_last_error(), messages[i]) == 0, "%s", moe_last_error());
        image_free(images[i]);
    }
}

// Large headers that a careless reader answers with deep recursion or quadratic time.
static void check_hostile(void)
{
    const size_t size = 4000000;
    char *header = malloc(size);
    moe_file *file = NULL;
    if (header == NULL) {
        CHECK(false, "out of memory");
        return;
    }
    memset(header, '[', size);
    memcpy(header, "{\"a\":", 5);
    struct image image = image_make(header, size, 0);
    CHECK(open_image(image, &file) == MOE_E_MALFORMED, "deep nesting");
    image_free(image);

    // A name as long as the header, in a message of fewer than 512 bytes.
    memset(header, '\xe9', size);
    memcpy(header, "{\"", 2);
    for (size_t i = 2; i + 2 < size; i += 2) {
        memcpy(header + i, "\xc3\xa9", 2);
    }
    memcpy(header + size - 4, "\":1}", 4);
    image = image_make(header, size, 0);
    CHECK(open_image(image, &file) == MOE_E_MALFORMED, "long name");
    CHECK(strlen(moe_last_error()) < 512 && strstr(moe_last_error(), "...\" is 1") != NULL, "%s",
          moe_last_error());
    image_free(image);

    // Rank without limit.
    memset(header, ' ', size);
    size_t used = (size_t)snprintf(header, size, "{\"a\":{\"dtype\":\"U8\",\"shape\":[");
    for (size_t i = 0; i < 1000000; i++) {
        memcpy(header + used, "1,", 2);
        used += 2;
    }
    used += (size_t)snprintf(header + used, size - used, "2,3],\"data_offsets\":[0,6]}}");
    header[used] = ' ';
    image = image_make(header, size, 6);
    if (CHECK(open_image(image, &file) == MOE_OK, "%s", moe_last_error())) {
        moe_tensor v;
        CHECK(moe_file_tensor(file, "a", &v) == MOE_OK, "rank");
        CHECK(v.ndim == 4 && v.shape[0] == 1 && v.shape[2] == 2 && v.shape[3] == 3, "rank: shape");
    }
    moe_file_close(file);
    image_free(image);

    // 30,000 tensors, in the order that sorts worst and with common prefixes.
    used = 1;
    header[0] = '{';
    const size_t tensors = 30000;
    for (size_t i = tensors; i-- > 0;) {
        used += (size_t)snprintf(header + used, size - used,
                                 "\"model.layers.0.mlp.experts.%05zu\":{\"dtype\":\"U8\",\"shape\":"
                                 "[1],\"data_offsets\":[%zu,%zu]}%s",
                                 i, i, i + 1, i > 0 ? "," : "}");
    }
    image = image_make(header, used, tensors);
    if (CHECK(open_image(image, &file) == MOE_OK, "%s", moe_last_error())) {
        size_t right = 0;
        CHECK(moe_file_count(file) == tensors, "%zu tensors", moe_file_count(file));
        for (size_t i = 0; i < tensors; i++) {
            moe_tensor v;
            right += moe_file_tensor(file, moe_file_name(file, i), &v) == MOE_OK &&
                     *(const unsigned char *)v.data == (unsigned char)i;
        }
        CHECK(right == tensors, "%zu of %zu views are right", right, tensors);
    }
    moe_file_close(file);
    image_free(image);
    free(header);
}

static void check_files(void)
{
    static const uint32_t modes[] = {MOE_FILE_DEFAULT, MOE_FILE_NO_MMAP};
    static const char header[] =
        "{" T("a", "U8", "1", 0, 1) "," T("b", "I32", "2,1000", 1, 8001) "}";
    write_shard("good.safetensors", header, 8001);
    write_file("empty", "", 0);
    write_file("seven", "1234567", 7);
    CHECK(mkfifo(in_folder("pipe"), 0600) == 0, "mkfifo");
    CHECK(symlink("good.safetensors", in_folder("link")) == 0, "symlink");
    moe_tensor views[2];
    moe_file *files[2] = {NULL, NULL};
    for (size_t m = 0; m < 2; m++) {
        moe_file *out = untouched;
        CHECK(moe_file_open(in_folder("good.safetensors"), modes[m], &files[m]) == MOE_OK, "%s",
              moe_last_error());
        CHECK(moe_file_tensor(files[m], "b", &views[m]) == MOE_OK, "%s", moe_last_error());
        CHECK(moe_file_open(in_folder("absent"), modes[m], &out) == MOE_E_IO, "absent");
        check_message(in_folder("absent"), ": No such file or directory");
        CHECK(moe_file_open(folder, modes[m], &out) == MOE_E_IO, "folder");
        check_message(folder, ": Is a directory");
        CHECK(moe_file_open(in_folder("pipe"), modes[m], &out) == MOE_E_IO, "pipe");
        check_message(in_folder("pipe"), ": not a regular file");
        CHECK(moe_file_open("/dev/null", modes[m], &out) == MOE_E_IO, "device");
        CHECK(moe_file_open("", modes[m], &out) == MOE_E_IO, "empty path");
        CHECK(moe_file_open(in_folder("empty"), modes[m], &out) == MOE_E_MALFORMED, "empty");
        check_message(in_folder("empty"), ": 0 bytes, the header length alone takes 8");
        CHECK(moe_file_open(in_folder("seven"), modes[m], &out) == MOE_E_MALFORMED, "seven");
        check_message(in_folder("seven"), ": 7 bytes, the header length alone takes 8");
        CHECK(out == untouched, "out was touched");
        CHECK(moe_file_open(in_folder("link"), modes[m], &out) == MOE_OK, "%s", moe_last_error());
        moe_file_close(out);
    }
    CHECK(memcmp(views[0].data, views[1].data, 8000) == 0, "mapped and read bytes differ");
    CHECK(((uintptr_t)views[1].data - 9 - (sizeof header - 1)) % 64 == 0,
          "the image that was read is not aligned to 64");
    views[0].data = views[1].data = NULL;
    CHECK(memcmp(&views[0], &views[1], sizeof views[0]) == 0, "mapped and read views differ");
    moe_file_close(files[0]);
    moe_file_close(files[1]);
    // A path too long for a message keeps its end.
    char path[700];
    memset(path, 'p', sizeof path);
    memcpy(path + sizeof path - 5, "/end", 5);
    moe_file *out = untouched;
    CHECK(moe_file_open(path, 0, &out) == MOE_E_IO, "long path");
    CHECK(strstr(moe_last_error(), "...ppp") != NULL && strstr(moe_last_error(), "/end: ") != NULL,
          "%s", moe_last_error());
    remove_file("good.safetensors");
    remove_file("empty");
    remove_file("seven");
    remove_file("pipe");
    remove_file("link");
}

int main(void)
{
    check_rejects();
    check_accepts();
    check_dtypes();
    check_views();
    check_damage();
    check_lengths();
    check_hostile();
    folder_make();
    check_files();
    folder_remove();
    return test_summary();
}
