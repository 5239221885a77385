// SPDX-License-Identifier: Apache-2.0
// moe_file_open_memory on any bytes: it opens a file exactly if a second reader, written plainly
// over jansson and below, accepts it; and every view of a file that opens lies in the file.
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <string.h>

#include "fuzz.h"
#include "moe/io.h"

static const struct {
    const char *name;
    uint64_t bits;
} dtypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
};

struct span {
    uint64_t begin;
    uint64_t end;
};

static int compare_spans(const void *a, const void *b)
{
    const struct span *x = a;
    const struct span *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return x->end < y->end ? -1 : x->end > y->end;
}

static bool natural(const json_t *value, uint64_t *out)
{
    *out = json_is_integer(value) ? (uint64_t)json_integer_value(value) : 0;
    return json_is_integer(value) && json_integer_value(value) >= 0;
}

static bool plain_metadata(json_t *metadata)
{
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return false;
        }
    }
    return json_is_object(metadata);
}

static bool plain_tensor(const json_t *tensor, struct span *span)
{
    const json_t *shape = json_object_get(tensor, "shape");
    const json_t *offsets = json_object_get(tensor, "data_offsets");
    const char *dtype = json_string_value(json_object_get(tensor, "dtype"));
    uint64_t bits = 0;
    if (json_object_size(tensor) != 3 || dtype == NULL || !json_is_array(shape) ||
        json_array_size(offsets) != 2 || !natural(json_array_get(offsets, 0), &span->begin) ||
        !natural(json_array_get(offsets, 1), &span->end) || span->begin > span->end) {
        return false;
    }
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        bits = strcmp(dtype, dtypes[i].name) == 0 ? dtypes[i].bits : bits;
    }
    int64_t product = 1;
    bool zero = false;
    for (size_t i = 0; i < json_array_size(shape); i++) {
        uint64_t dim;
        if (!natural(json_array_get(shape, i), &dim)) {
            return false;
        }
        zero = zero || dim == 0;
        if (dim != 0 && __builtin_mul_overflow(product, (int64_t)dim, &product)) {
            return false;
        }
    }
    // More bytes than any input has, so that the product below is exact.
    if (bits == 0 || (!zero && product > INT64_C(1) << 40)) {
        return false;
    }
    const uint64_t total = zero ? 0 : (uint64_t)product * bits;
    return total % 8 == 0 && span->end - span->begin == total / 8;
}

// Whether the tensors' spans, in order, cover 0..size.
static bool covers(struct span *spans, size_t count, uint64_t size)
{
    uint64_t end = 0;
    if (count > 0) {
        qsort(spans, count, sizeof spans[0], compare_spans);
    }
    for (size_t i = 0; i < count; i++) {
        if (spans[i].begin != end) {
            return false;
        }
        end = spans[i].end;
    }
    return end == size;
}

static bool plain_header(json_t *header, uint64_t data_size)
{
    struct span *spans = malloc((json_object_size(header) + 1) * sizeof spans[0]);
    size_t count = 0;
    bool good = json_is_object(header) && spans != NULL;
    const char *name;
    json_t *value;
    json_object_foreach(header, name, value)
    {
        if (strcmp(name, "__metadata__") == 0) {
            good = good && plain_metadata(value);
        } else {
            good = good && plain_tensor(value, &spans[count++]);
        }
    }
    good = good && covers(spans, count, data_size);
    free(spans);
    return good;
}

// The bytes of needle in the first size bytes of text, which may hold NULs.
static bool holds(const uint8_t *text, size_t size, const char *needle)
{
    const size_t length = strlen(needle);
    for (size_t i = 0; i + length <= size; i++) {
        if (memcmp(text + i, needle, length) == 0) {
            return true;
        }
    }
    return false;
}

static void check_verdict(const uint8_t *data, size_t size, bool opened)
{
    uint64_t length = 0;
    for (size_t i = 0; i < 8 && size >= 8; i++) {
        length |= (uint64_t)data[i] << 8 * i;
    }
    bool good = size >= 8 && length <= size - 8 && length > 0 && data[8] == '{';
    // jansson skips NULs behind a number or a word, and reads -0 as the integer 0.
    good = good && memchr(data + 8, '\0', (size_t)length) == NULL;
    const bool differs = good && holds(data + 8, (size_t)length, "-0");
    if (good && !differs) {
        json_t *header =
            json_loadb((const char *)data + 8, (size_t)length, JSON_REJECT_DUPLICATES, NULL);
        good = header != NULL && plain_header(header, size - 8 - length);
        json_decref(header);
    }
    FUZZ_REQUIRE(differs || good == opened);
}

static void check_view(const moe_file *file, const char *name, const uint8_t *data, size_t size)
{
    moe_tensor view;
    const moe_status status = moe_file_tensor(file, name, &view);
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_DTYPE);
    if (status != MOE_OK) {
        return;
    }
    const uintptr_t at = (uintptr_t)view.data - (uintptr_t)data;
    uint64_t elements = 1;
    FUZZ_REQUIRE(view.ndim >= 0 && view.ndim <= MOE_MAX_DIMS && view.byte_offset == 0);
    for (int32_t i = 0; i < view.ndim; i++) {
        FUZZ_REQUIRE(view.shape[i] >= 0);
        elements = view.shape[i] == 0 ? 0 : elements * (uint64_t)view.shape[i];
    }
    // The narrowest dtype has 4 bits.
    FUZZ_REQUIRE(at >= 8 && at <= size && elements / 2 <= size - at);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    moe_file *file = NULL;
    const moe_status status = moe_file_open_memory(data, size, "fuzz", &file);
    FUZZ_REQUIRE((status == MOE_OK) == (file != NULL));
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_MALFORMED || status == MOE_E_LIMIT);
    check_verdict(data, size, status == MOE_OK);
    for (size_t i = 0; i < moe_file_count(file); i++) {
        const char *name = moe_file_name(file, i);
        FUZZ_REQUIRE(name != NULL);
        check_view(file, name, data, size);
        (void)moe_file_metadata(file, name);
    }
    moe_file_close(file);
    return 0;
}
