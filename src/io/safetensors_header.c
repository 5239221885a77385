// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file: JSON of a fixed schema, hence a parser of its own that knows
// it, not jansson. A real header of 100 MB (a million tensors) costs jansson 4 s and 1.1 GB, and
// one made to hurt ("[],[],..") 10 s and 4.5 GB. Here a value that the schema does not have is
// refused where it begins, so nothing nests deeper than header, tensor, shape; names are decoded
// into one buffer no larger than the header, and a tensor costs 80 bytes.
//
// Stricter than the format's own reader in: unknown fields of a tensor are refused, a name may not
// hold U+0000, non-zero dimensions must have a product below 2^63 even where another is zero, and
// __metadata__ has at most MAX_METADATA entries.
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/safetensors.h"
#include "io/text.h"

#define LENGTH_BYTES 8 // of the header length in front; positions in messages are the file's
#define MAX_METADATA (1U << 20) // entries; a million sort in under a second
#define VALUE_BYTES  24         // of a wrong value, shown in messages

const struct moei_st_dtype moei_st_dtypes[] = {
    {"BOOL", 8, MOE_BOOL},
    {"F4", 4, MOE_E2M1},
    {"F6_E2M3", 6, MOE_E2M3},
    {"F6_E3M2", 6, MOE_E3M2},
    {"U8", 8, MOE_U8},
    {"I8", 8, MOE_I8},
    {"F8_E5M2", 8, MOE_E5M2},
    {"F8_E4M3", 8, MOE_E4M3FN},
    {"F8_E8M0", 8, MOE_E8M0},
    {"F8_E4M3FNUZ", 8, MOE_E4M3FNUZ},
    {"F8_E5M2FNUZ", 8, MOE_E5M2FNUZ},
    {"I16", 16, MOE_I16},
    {"U16", 16, MOE_U16},
    {"F16", 16, MOE_F16},
    {"BF16", 16, MOE_BF16},
    {"I32", 32, MOE_I32},
    {"U32", 32, MOE_U32},
    {"F32", 32, MOE_F32},
    {"C64", 64, MOE_DTYPE_UNSET},
    {"F64", 64, MOE_F64},
    {"I64", 64, MOE_I64},
    {"U64", 64, MOE_U64},
    {NULL, 0, MOE_DTYPE_UNSET},
};
#define DTYPE_COUNT (sizeof moei_st_dtypes / sizeof moei_st_dtypes[0] - 1)

// The parser's state. Everything but `text` and `size` is bounded by how far it has come: `used`
// never passes `at`, since a decoded string is shorter than its literal.
struct reader {
    const char *call;
    const char *label;
    struct moei_st_header *out;
    const unsigned char *text; // the header
    size_t size;
    size_t at;
    uint64_t data_size;
    size_t used; // bytes of out->names
    size_t tensor_capacity;
    size_t metadata_capacity;
    bool has_metadata;
};

struct string {
    const char *text; // in out->names, NUL at text[size]
    size_t size;
};

static moe_status fail(const struct reader *r, moe_status code, const char *format, ...)
    MOE_PRINTF(3, 4) MOEI_COLD;

static moe_status fail(const struct reader *r, moe_status code, const char *format, ...)
{
    char detail[384];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    return moe_fail(code, "%s: %s: %s", r->call, r->label, detail);
}

static bool delimiter(unsigned char c)
{
    return c <= ' ' || c == ',' || c == ':' || c == ']' || c == '}';
}

// What stands at the parser's position, for messages.
static struct moei_quote here(const struct reader *r)
{
    static const char end[] = "the end of the header";
    if (r->at >= r->size) {
        return moei_quote_head(end, sizeof end - 1);
    }
    size_t length = 1;
    while (length < VALUE_BYTES && r->at + length < r->size && !delimiter(r->text[r->at]) &&
           !delimiter(r->text[r->at + length])) {
        length++;
    }
    return moei_quote_head((const char *)r->text + r->at, length);
}

static moe_status unexpected(const struct reader *r, const char *want)
{
    return fail(r, MOE_E_MALFORMED, "byte %zu: expected %s, found %s", LENGTH_BYTES + r->at, want,
                here(r).text);
}

static struct moei_quote shown(struct string s)
{
    return moei_quote_head(s.text, s.size);
}

static void skip_space(struct reader *r)
{
    while (r->at < r->size && (r->text[r->at] == ' ' || r->text[r->at] == '\n' ||
                               r->text[r->at] == '\r' || r->text[r->at] == '\t')) {
        r->at++;
    }
}

// The next character that is no space, '\0' at the end.
static unsigned char peek(struct reader *r)
{
    skip_space(r);
    return r->at < r->size ? r->text[r->at] : '\0';
}

static moe_status expect(struct reader *r, char c)
{
    if (peek(r) != (unsigned char)c) {
        const char want[] = {'\'', c, '\'', '\0'};
        return unexpected(r, want);
    }
    r->at++;
    return MOE_OK;
}

// After a member or element: true at ',' (and the next begins), false at the closing bracket.
static moe_status next(struct reader *r, char close, bool *more)
{
    const unsigned char c = peek(r);
    if (c != ',' && c != (unsigned char)close) {
        const char want[] = {'\'', ',', '\'', ' ', 'o', 'r', ' ', '\'', close, '\'', '\0'};
        return unexpected(r, want);
    }
    r->at++;
    *more = c == ',';
    return MOE_OK;
}

// Four hexadecimal digits at r->at.
static moe_status hex4(struct reader *r, uint32_t *code)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const unsigned char c = r->at < r->size ? r->text[r->at] : '\0';
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) {
            return unexpected(r, "four hexadecimal digits after \\u");
        }
        value = value << 4 | (uint32_t)digit;
    }
    *code = value;
    return MOE_OK;
}

// The escape whose backslash stands at r->at; appends what it means.
static moe_status escape(struct reader *r)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    const size_t start = r->at++;
    const unsigned char c = r->at < r->size ? r->text[r->at] : '\0';
    const char *plain = c != '\0' ? strchr(from, c) : NULL;
    if (plain != NULL) {
        r->at++;
        r->out->names[r->used++] = to[plain - from];
        return MOE_OK;
    }
    if (c != 'u') {
        return unexpected(r, "an escape that JSON has");
    }
    r->at++;
    uint32_t code = 0;
    MOE_TRY(hex4(r, &code));
    if (code >= 0xD800 && code <= 0xDBFF && r->size - r->at >= 2 && r->text[r->at] == '\\' &&
        r->text[r->at + 1] == 'u') {
        uint32_t low = 0;
        r->at += 2;
        MOE_TRY(hex4(r, &low));
        // A pair becomes one code point; anything else after a high half leaves it unpaired.
        if (low >= 0xDC00 && low <= 0xDFFF) {
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    if (code == 0 || (code >= 0xD800 && code <= 0xDFFF)) {
        return fail(r, MOE_E_MALFORMED, "byte %zu: a string holds %s", LENGTH_BYTES + start,
                    code == 0 ? "U+0000" : "half a surrogate pair");
    }
    r->used += moei_utf8_encode(code, r->out->names + r->used);
    return MOE_OK;
}

// Decodes the string literal that comes next to the end of out->names.
static moe_status string(struct reader *r, const char *want, struct string *out)
{
    if (peek(r) != '"') {
        return unexpected(r, want);
    }
    const size_t open = r->at++;
    const size_t start = r->used;
    for (;;) {
        const size_t run = r->at;
        unsigned char c = '\0';
        while (r->at < r->size) {
            c = r->text[r->at];
            if (c == '"' || c == '\\' || c < 0x20 || c >= 0x80) {
                break;
            }
            r->at++;
        }
        memcpy(r->out->names + r->used, r->text + run, r->at - run);
        r->used += r->at - run;
        if (r->at == r->size) {
            return fail(r, MOE_E_MALFORMED, "byte %zu: a string does not end", LENGTH_BYTES + open);
        }
        if (c == '"') {
            break;
        }
        if (c == '\\') {
            MOE_TRY(escape(r));
            continue;
        }
        uint32_t code = 0;
        const size_t length =
            c < 0x20 ? 0 : moei_utf8_decode(r->text + r->at, r->size - r->at, &code);
        if (length == 0) {
            return fail(r, MOE_E_MALFORMED, "byte %zu: byte 0x%02x in a string is %s",
                        LENGTH_BYTES + r->at, c, c < 0x20 ? "a control character" : "not UTF-8");
        }
        memcpy(r->out->names + r->used, r->text + r->at, length);
        r->used += length;
        r->at += length;
    }
    r->at++;
    *out = (struct string){.text = r->out->names + start, .size = r->used - start};
    r->out->names[r->used++] = '\0';
    return MOE_OK;
}

static bool is(struct string s, const char *name)
{
    return strcmp(s.text, name) == 0;
}

// A JSON number that is an integer in 0..max.
static moe_status integer(struct reader *r, struct string name, const char *field, uint64_t max,
                          uint64_t *out)
{
    const unsigned char first = peek(r);
    const size_t start = r->at;
    uint64_t value = 0;
    bool fits = true;
    while (r->at < r->size && r->text[r->at] >= '0' && r->text[r->at] <= '9') {
        const uint64_t digit = (uint64_t)(r->text[r->at] - '0');
        fits = fits && value <= (max - digit) / 10;
        value = fits ? value * 10 + digit : 0;
        r->at++;
    }
    const unsigned char after = r->at < r->size ? r->text[r->at] : '\0';
    const bool digits = r->at > start && !(first == '0' && r->at - start > 1);
    if (!digits || !fits || after == '.' || after == 'e' || after == 'E') {
        r->at = start;
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\": %s holds %s, not an integer in 0..%llu",
                    shown(name).text, field, here(r).text, (unsigned long long)max);
    }
    *out = value;
    return MOE_OK;
}

// What the members of a tensor say, before they are compared.
struct fields {
    bool has_dtype;
    bool has_shape;
    bool has_offsets;
    const struct moei_st_dtype *dtype;
    size_t shape_at; // of the array's text, for messages
    size_t shape_size;
    int32_t ndim;
    int64_t shape[MOE_MAX_DIMS];
    bool zero;        // one of the dimensions is 0
    int64_t elements; // product of the others
    uint64_t begin;
    uint64_t end;
};

static struct moei_quote shown_shape(const struct reader *r, const struct fields *f)
{
    return moei_quote_head((const char *)r->text + f->shape_at, f->shape_size);
}

static moe_status read_dtype(struct reader *r, struct string name, struct fields *f)
{
    const size_t used = r->used;
    struct string text = {"", 0};
    MOE_TRY(string(r, "the dtype, a string", &text));
    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        if (is(text, moei_st_dtypes[i].name)) {
            f->dtype = &moei_st_dtypes[i];
            r->used = used;
            return MOE_OK;
        }
    }
    return fail(r, MOE_E_MALFORMED, "tensor \"%s\": dtype \"%s\" is not known", shown(name).text,
                shown(text).text);
}

static moe_status read_shape(struct reader *r, struct string name, struct fields *f)
{
    MOE_TRY(expect(r, '['));
    f->shape_at = r->at - 1;
    f->elements = 1;
    bool more = peek(r) != ']';
    r->at += !more;
    bool fits = true;
    while (more) {
        uint64_t dim = 0;
        MOE_TRY(integer(r, name, "shape", INT64_MAX, &dim));
        if (dim == 0) {
            f->zero = true;
        } else {
            fits = fits && moei_i64_mul(f->elements, (int64_t)dim, &f->elements);
        }
        if (f->ndim == MOE_MAX_DIMS) {
            // One more than a view has: the two leading ones merge. The product is a factor of
            // `elements`, or 0; where that did not fit the tensor is refused below.
            f->shape[0] = fits ? f->shape[0] * f->shape[1] : 0;
            memmove(f->shape + 1, f->shape + 2, (MOE_MAX_DIMS - 2) * sizeof f->shape[0]);
            f->ndim--;
        }
        f->shape[f->ndim++] = (int64_t)dim;
        MOE_TRY(next(r, ']', &more));
    }
    f->shape_size = r->at - f->shape_at;
    if (!fits) {
        return fail(r, MOE_E_MALFORMED,
                    "tensor \"%s\": the product of its shape %s exceeds 2^63 - 1", shown(name).text,
                    shown_shape(r, f).text);
    }
    return MOE_OK;
}

static moe_status read_offsets(struct reader *r, struct string name, struct fields *f)
{
    uint64_t *const offset[2] = {&f->begin, &f->end};
    MOE_TRY(expect(r, '['));
    for (int i = 0; i < 2; i++) {
        bool more = false;
        MOE_TRY(integer(r, name, "data_offsets", UINT64_MAX, offset[i]));
        MOE_TRY(next(r, ']', &more));
        if (more != (i == 0)) {
            return fail(r, MOE_E_MALFORMED, "tensor \"%s\": data_offsets has %s than 2 numbers",
                        shown(name).text, more ? "more" : "fewer");
        }
    }
    return MOE_OK;
}

static moe_status read_field(struct reader *r, struct string name, struct fields *f)
{
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    static moe_status (*const readers[])(struct reader *, struct string,
                                         struct fields *) = {read_dtype, read_shape, read_offsets};
    bool *const seen[] = {&f->has_dtype, &f->has_shape, &f->has_offsets};
    const size_t used = r->used;
    struct string key = {"", 0};
    MOE_TRY(string(r, "a field's name", &key));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!is(key, names[i])) {
            continue;
        }
        r->used = used;
        if (*seen[i]) {
            return fail(r, MOE_E_MALFORMED, "tensor \"%s\": the field \"%s\" occurs twice",
                        shown(name).text, names[i]);
        }
        *seen[i] = true;
        MOE_TRY(expect(r, ':'));
        return readers[i](r, name, f);
    }
    return fail(r, MOE_E_MALFORMED, "tensor \"%s\": the field \"%s\" is not known",
                shown(name).text, shown(key).text);
}

// The three fields against each other and against the size of the file.
static moe_status check_fields(const struct reader *r, struct string name, const struct fields *f)
{
    if (!f->has_dtype || !f->has_shape || !f->has_offsets) {
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\": the field \"%s\" is missing",
                    shown(name).text,
                    !f->has_dtype   ? "dtype"
                    : !f->has_shape ? "shape"
                                    : "data_offsets");
    }
    if (f->begin > f->end) {
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\" begins at %llu and ends at %llu",
                    shown(name).text, (unsigned long long)f->begin, (unsigned long long)f->end);
    }
    const uint64_t elements = f->zero ? 0 : (uint64_t)f->elements;
    const uint64_t bits = f->dtype->bits;
    uint64_t needed;
    uint64_t end;
    // Whole groups of 8 elements take `bits` bytes; the rest must fill bytes too.
    if (elements % 8 * bits % 8 != 0) {
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\": its shape %s %s does not end on a byte",
                    shown(name).text, shown_shape(r, f).text, f->dtype->name);
    }
    if (__builtin_mul_overflow(elements / 8, bits, &needed) ||
        __builtin_add_overflow(needed, elements % 8 * bits / 8, &needed) ||
        __builtin_add_overflow(needed, f->begin, &end)) {
        return fail(r, MOE_E_MALFORMED,
                    "tensor \"%s\" begins at %llu, its shape %s %s needs more than 2^64 bytes",
                    shown(name).text, (unsigned long long)f->begin, shown_shape(r, f).text,
                    f->dtype->name);
    }
    if (f->end != end) {
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\" ends at %llu, its shape %s %s needs %llu",
                    shown(name).text, (unsigned long long)f->end, shown_shape(r, f).text,
                    f->dtype->name, (unsigned long long)end);
    }
    if (f->end > r->data_size) {
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\" ends at %llu, the file's data at %llu",
                    shown(name).text, (unsigned long long)f->end, (unsigned long long)r->data_size);
    }
    return MOE_OK;
}

// Makes room for one more element of an array of `count` that has room for *capacity.
static moe_status grow(const struct reader *r, void **array, size_t element, size_t count,
                       size_t *capacity)
{
    if (count < *capacity) {
        return MOE_OK;
    }
    const size_t more = *capacity == 0 ? 64 : moei_size_mul(*capacity, 2);
    void *larger = realloc(*array, moei_size_mul(more, element));
    if (larger == NULL) {
        return fail(r, MOE_E_NO_MEMORY, "out of memory at %zu entries", count);
    }
    *array = larger;
    *capacity = more;
    return MOE_OK;
}

static moe_status read_tensor(struct reader *r, struct string name)
{
    struct moei_st_header *out = r->out;
    struct fields f;
    memset(&f, 0, sizeof f);
    if (peek(r) != '{') {
        return fail(r, MOE_E_MALFORMED, "tensor \"%s\" is %s, not an object", shown(name).text,
                    here(r).text);
    }
    r->at++;
    bool more = peek(r) != '}';
    r->at += !more;
    while (more) {
        MOE_TRY(read_field(r, name, &f));
        MOE_TRY(next(r, '}', &more));
    }
    MOE_TRY(check_fields(r, name, &f));
    void *array = out->tensors;
    const moe_status status =
        grow(r, &array, sizeof *out->tensors, out->count, &r->tensor_capacity);
    out->tensors = array;
    MOE_TRY(status);
    struct moei_st_tensor *tensor = &out->tensors[out->count++];
    *tensor = (struct moei_st_tensor){.name = name.text,
                                      .begin = f.begin,
                                      .end = f.end,
                                      .dtype = (uint8_t)(f.dtype - moei_st_dtypes),
                                      .ndim = (uint8_t)f.ndim};
    memcpy(tensor->shape, f.shape, sizeof tensor->shape);
    return MOE_OK;
}

static moe_status read_metadata(struct reader *r)
{
    struct moei_st_header *out = r->out;
    if (r->has_metadata) {
        return fail(r, MOE_E_MALFORMED, "the key \"__metadata__\" occurs twice");
    }
    r->has_metadata = true;
    if (peek(r) != '{') {
        return fail(r, MOE_E_MALFORMED, "__metadata__ is %s, not an object", here(r).text);
    }
    r->at++;
    bool more = peek(r) != '}';
    r->at += !more;
    while (more) {
        struct string key = {"", 0};
        struct string value = {"", 0};
        MOE_TRY(string(r, "a key of __metadata__", &key));
        MOE_TRY(expect(r, ':'));
        if (peek(r) != '"') {
            return fail(r, MOE_E_MALFORMED, "__metadata__: the value of \"%s\" is %s, not a string",
                        shown(key).text, here(r).text);
        }
        MOE_TRY(string(r, "a string", &value));
        if (out->metadata_count == MAX_METADATA) {
            return fail(r, MOE_E_LIMIT, "__metadata__ has more entries than the limit, %u",
                        MAX_METADATA);
        }
        void *array = out->metadata;
        const moe_status status =
            grow(r, &array, sizeof *out->metadata, out->metadata_count, &r->metadata_capacity);
        out->metadata = array;
        MOE_TRY(status);
        out->metadata[out->metadata_count++] =
            (struct moei_st_pair){.key = key.text, .value = value.text};
        MOE_TRY(next(r, '}', &more));
    }
    return MOE_OK;
}

static moe_status read_header(struct reader *r)
{
    // The format has no space before the brace, so that a file can be told by its ninth byte.
    if (r->size == 0 || r->text[0] != '{') {
        return unexpected(r, "'{'");
    }
    r->at = 1;
    bool more = peek(r) != '}';
    r->at += !more;
    while (more) {
        struct string name = {"", 0};
        const size_t used = r->used;
        MOE_TRY(string(r, "a tensor's name", &name));
        MOE_TRY(expect(r, ':'));
        if (is(name, "__metadata__")) {
            r->used = used;
            MOE_TRY(read_metadata(r));
        } else {
            MOE_TRY(read_tensor(r, name));
        }
        MOE_TRY(next(r, '}', &more));
    }
    skip_space(r);
    return r->at == r->size ? MOE_OK : unexpected(r, "the end of the header");
}

moe_status moei_st_header_read(const char *call, const char *label, const unsigned char *text,
                               size_t size, uint64_t data_size, struct moei_st_header *out)
{
    struct reader r = {.call = call,
                       .label = label,
                       .out = out,
                       .text = text,
                       .size = size,
                       .data_size = data_size};
    // Every string takes less room decoded than as a literal, its NUL included; pages that are
    // never written cost nothing.
    out->names = malloc(moei_size_add(size, 1));
    if (out->names == NULL) {
        return fail(&r, MOE_E_NO_MEMORY, "out of memory for a header of %zu bytes", size);
    }
    return read_header(&r);
}

void moei_st_header_free(struct moei_st_header *header)
{
    free(header->tensors);
    free(header->metadata);
    free(header->names);
    memset(header, 0, sizeof *header);
}
