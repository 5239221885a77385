// SPDX-License-Identifier: Apache-2.0
// Writes safetensors files: all is checked and the header made before the first byte goes out.
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/safetensors.h"
#include "io/text.h"
#include "io/write_whole.h"

#define CALL         "moe_file_write"
#define HEADER_ALIGN 8          // of the data's start; what is missing is filled with spaces
#define MAX_HEADER   100000000U // what readers accept

/// A growing text. After a failed allocation `failed` is set and nothing more is added.
struct text {
    char *bytes;
    size_t size, room;
    bool failed;
};

static void append(struct text *t, const char *bytes, size_t size)
{
    const size_t need = moei_size_add(t->size, size);
    if (need > t->room && !t->failed) {
        const size_t room = moei_size_add(moei_size_mul(need, 2), 256);
        char *grown = room <= SIZE_MAX / 2 ? realloc(t->bytes, room) : NULL;
        t->failed = grown == NULL;
        t->bytes = grown != NULL ? grown : t->bytes;
        t->room = grown != NULL ? room : t->room;
    }
    if (!t->failed) {
        memcpy(t->bytes + t->size, bytes, size);
        t->size = need;
    }
}

static void append_text(struct text *t, const char *text)
{
    append(t, text, strlen(text));
}

static void append_string(struct text *t, const char *string)
{
    append_text(t, "\"");
    for (const char *c = string; *c != '\0'; c++) {
        char escape[8];
        if (*c == '"' || *c == '\\') {
            (void)snprintf(escape, sizeof escape, "\\%c", *c);
            append_text(t, escape);
        } else if ((unsigned char)*c < 0x20) {
            (void)snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*c);
            append_text(t, escape);
        } else {
            append(t, c, 1);
        }
    }
    append_text(t, "\"");
}

static struct moei_quote shown(const char *name)
{
    return moei_quote_head(name, strlen(name));
}

static bool is_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    size_t left = strlen(text);
    while (left > 0) {
        uint32_t code;
        const size_t n = moei_utf8_decode(at, left, &code);
        if (n == 0) {
            return false;
        }
        at += n;
        left -= n;
    }
    return true;
}

static const char *dtype_name(moe_dtype dtype)
{
    for (size_t i = 0; moei_st_dtypes[i].name != NULL; i++) {
        if (moei_st_dtypes[i].dtype == dtype && dtype != MOE_DTYPE_UNSET) {
            return moei_st_dtypes[i].name;
        }
    }
    return NULL;
}

// ---- checks ------------------------------------------------------------------------------------

static int compare_entries(const void *a, const void *b)
{
    const moe_file_entry *const *x = a;
    const moe_file_entry *const *y = b;
    const int bits[2] = {moe_dtype_bits((*x)->tensor.dtype), moe_dtype_bits((*y)->tensor.dtype)};
    return bits[0] != bits[1] ? bits[1] - bits[0] : strcmp((*x)->name, (*y)->name);
}

static int compare_names(const void *a, const void *b)
{
    const char *const *x = a;
    const char *const *y = b;
    return strcmp(*x, *y);
}

static bool is_compact(const moe_tensor *t)
{
    int64_t step = 1;
    for (int i = t->ndim; i-- > 0;) {
        if (t->shape[i] > 1 && t->stride[i] != step) {
            return false;
        }
        step *= t->shape[i];
    }
    return true;
}

// Bytes of a tensor when compact.
static moe_status measure(const moe_file_entry *e, uint64_t *bytes)
{
    const moe_tensor *t = &e->tensor;
    size_t count = 1;
    MOE_REQUIRE(dtype_name(t->dtype) != NULL, MOE_E_DTYPE,
                CALL ": \"%s\" is %s, which the format lacks", shown(e->name).text,
                moe_dtype_name(t->dtype));
    MOE_REQUIRE(t->ndim >= 0 && t->ndim <= MOE_MAX_DIMS, MOE_E_SHAPE,
                CALL ": \"%s\" has %" PRId32 " dimensions, at most %d", shown(e->name).text,
                t->ndim, MOE_MAX_DIMS);
    for (int i = 0; i < t->ndim; i++) {
        MOE_REQUIRE(t->shape[i] >= 0 && t->stride[i] >= 0, MOE_E_SHAPE,
                    CALL ": \"%s\": dimension %d has size %" PRId64 " and stride %" PRId64
                         ", must be 0 or more",
                    shown(e->name).text, i, t->shape[i], t->stride[i]);
        count = moei_size_mul(count, (size_t)t->shape[i]);
    }
    const size_t bits = moei_size_mul(count, (size_t)moe_dtype_bits(t->dtype));
    MOE_REQUIRE(bits < SIZE_MAX / 4, MOE_E_OVERFLOW, CALL ": \"%s\" exceeds %zu bits",
                shown(e->name).text, SIZE_MAX / 4);
    MOE_REQUIRE(bits % 8 == 0 && (moe_dtype_bits(t->dtype) >= 8 || is_compact(t)), MOE_E_SHAPE,
                CALL ": \"%s\" has %zu bits, elements of %d must be compact and end on a byte",
                shown(e->name).text, bits, moe_dtype_bits(t->dtype));
    MOE_REQUIRE(t->data != NULL || bits == 0, MOE_E_ARGUMENT, CALL ": \"%s\" has no data",
                shown(e->name).text);
    *bytes = bits / 8;
    return MOE_OK;
}

static moe_status check_strings(const char *const *strings, size_t count, const char *what)
{
    for (size_t i = 0; i < count; i++) {
        MOE_REQUIRE(is_utf8(strings[i]), MOE_E_ARGUMENT, CALL ": %s \"%s\" is not UTF-8", what,
                    shown(strings[i]).text);
        MOE_REQUIRE(i == 0 || strcmp(strings[i - 1], strings[i]) != 0, MOE_E_ARGUMENT,
                    CALL ": %s \"%s\" occurs twice", what, shown(strings[i]).text);
    }
    return MOE_OK;
}

static moe_status check_names(const moe_file_entry *entries, size_t count,
                              const moe_file_pair *metadata, size_t metadata_count)
{
    const size_t most = count > metadata_count ? count : metadata_count;
    const char **strings = malloc(moei_size_mul(most + 1, sizeof strings[0]));
    MOE_REQUIRE(strings != NULL, MOE_E_NO_MEMORY, CALL ": out of memory");
    moe_status status = MOE_OK;
    for (size_t i = 0; i < metadata_count && status == MOE_OK; i++) {
        strings[i] = metadata[i].key;
        if (metadata[i].key == NULL || metadata[i].value == NULL || !is_utf8(metadata[i].value)) {
            status = moe_fail(MOE_E_ARGUMENT, CALL ": metadata %zu is NULL or not UTF-8", i);
        }
    }
    if (status == MOE_OK) {
        qsort(strings, metadata_count, sizeof strings[0], compare_names);
        status = check_strings(strings, metadata_count, "metadata key");
    }
    for (size_t i = 0; i < count && status == MOE_OK; i++) {
        strings[i] = entries[i].name;
        if (entries[i].name == NULL || strcmp(entries[i].name, "__metadata__") == 0) {
            status = moe_fail(MOE_E_ARGUMENT, CALL ": entry %zu is named %s", i,
                              entries[i].name == NULL ? "NULL" : entries[i].name);
        }
    }
    if (status == MOE_OK) {
        qsort(strings, count, sizeof strings[0], compare_names);
        status = check_strings(strings, count, "tensor");
    }
    free(strings);
    return status;
}

// ---- the header --------------------------------------------------------------------------------

static void append_tensor(struct text *t, const moe_file_entry *e, uint64_t begin, uint64_t end)
{
    char number[64];
    append_string(t, e->name);
    append_text(t, ":{\"dtype\":\"");
    append_text(t, dtype_name(e->tensor.dtype));
    append_text(t, "\",\"shape\":[");
    for (int i = 0; i < e->tensor.ndim; i++) {
        (void)snprintf(number, sizeof number, "%s%" PRId64, i > 0 ? "," : "", e->tensor.shape[i]);
        append_text(t, number);
    }
    (void)snprintf(number, sizeof number, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin,
                   end);
    append_text(t, number);
}

static moe_status make_header(const moe_file_entry *const *sorted, size_t count,
                              const moe_file_pair *metadata, size_t metadata_count, struct text *t)
{
    uint64_t at = 0;
    append_text(t, "{");
    for (size_t i = 0; i < metadata_count; i++) {
        append_text(t, i == 0 ? "\"__metadata__\":{" : ",");
        append_string(t, metadata[i].key);
        append_text(t, ":");
        append_string(t, metadata[i].value);
    }
    append_text(t, metadata_count > 0 ? "}" : "");
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = 0;
        MOE_TRY(measure(sorted[i], &bytes));
        MOE_REQUIRE(bytes <= (uint64_t)INT64_MAX - at, MOE_E_OVERFLOW,
                    CALL ": the tensors exceed %" PRId64 " bytes", INT64_MAX);
        append_text(t, i > 0 || metadata_count > 0 ? "," : "");
        append_tensor(t, sorted[i], at, at + bytes);
        at += bytes;
    }
    append_text(t, "}");
    while (!t->failed && t->size % HEADER_ALIGN != 0) {
        append_text(t, " ");
    }
    MOE_REQUIRE(!t->failed, MOE_E_NO_MEMORY, CALL ": out of memory");
    MOE_REQUIRE(t->size <= MAX_HEADER, MOE_E_LIMIT, CALL ": a header of %zu bytes, the limit is %u",
                t->size, MAX_HEADER);
    return MOE_OK;
}

// ---- the file ----------------------------------------------------------------------------------

// Element by element only where the last dimension is not compact.
static bool put_tensor(FILE *file, const moe_tensor *t)
{
    int64_t index[MOE_MAX_DIMS] = {0};
    size_t row = (size_t)moe_dtype_bits(t->dtype);
    int outer = t->ndim;
    if (is_compact(t)) {
        outer = 0;
    } else if (t->stride[t->ndim - 1] == 1) {
        outer = t->ndim - 1;
    }
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] == 0) {
            return true;
        }
        row *= i >= outer ? (size_t)t->shape[i] : 1;
    }
    row /= 8;
    const unsigned char *base = (const unsigned char *)t->data + t->byte_offset;
    for (;;) {
        int64_t offset = 0;
        for (int i = 0; i < outer; i++) {
            offset += index[i] * t->stride[i];
        }
        if (fwrite(base + offset * moe_dtype_bits(t->dtype) / 8, 1, row, file) != row) {
            return false;
        }
        int i = outer;
        while (i > 0 && ++index[i - 1] == t->shape[i - 1]) {
            index[--i] = 0;
        }
        if (i == 0) {
            return true;
        }
    }
}

/// What goes into the file, for put_all.
struct contents {
    const struct text *header;
    const moe_file_entry *const *sorted;
    size_t count;
};

static bool put_all(FILE *file, void *arg)
{
    const struct contents *c = arg;
    unsigned char length[8];
    for (unsigned i = 0; i < sizeof length; i++) {
        length[i] = (unsigned char)((uint64_t)c->header->size >> 8 * i);
    }
    bool good = fwrite(length, 1, sizeof length, file) == sizeof length &&
                fwrite(c->header->bytes, 1, c->header->size, file) == c->header->size;
    for (size_t i = 0; i < c->count && good; i++) {
        good = put_tensor(file, &c->sorted[i]->tensor);
    }
    return good;
}

moe_status moe_file_write(const char *path, const moe_file_entry *entries, size_t count,
                          const moe_file_pair *metadata, size_t metadata_count)
{
    struct text header = {.bytes = NULL};
    MOE_REQUIRE(path != NULL, MOE_E_ARGUMENT, CALL ": path is NULL");
    MOE_REQUIRE(entries != NULL || count == 0, MOE_E_ARGUMENT, CALL ": entries is NULL");
    MOE_REQUIRE(metadata != NULL || metadata_count == 0, MOE_E_ARGUMENT, CALL ": metadata is NULL");
    MOE_TRY(check_names(entries, count, metadata, metadata_count));
    const moe_file_entry **sorted = malloc(moei_size_mul(count + 1, sizeof(void *)));
    MOE_REQUIRE(sorted != NULL, MOE_E_NO_MEMORY, CALL ": out of memory");
    for (size_t i = 0; i < count; i++) {
        sorted[i] = &entries[i];
    }
    qsort(sorted, count, sizeof(void *), compare_entries);
    moe_status status = make_header(sorted, count, metadata, metadata_count, &header);
    if (status == MOE_OK) {
        struct contents contents = {&header, sorted, count};
        status = moei_write_whole(CALL, path, put_all, &contents);
    }
    free(header.bytes);
    free(sorted);
    return status;
}
