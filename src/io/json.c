// SPDX-License-Identifier: Apache-2.0
// jansson decodes, checks UTF-8 and rejects duplicate keys (it compares them decoded, in every
// object). What it does not do is done here before it: refuse NUL bytes, bound the depth as we
// state it, bound the number of values (one costs it up to 250 bytes: 100 MB of "[],[],.." would
// take 4.5 GB), and admit Python's non-finite numbers on request.
#include "io/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "io/text.h"

static moe_status limit(const char *call, const char *label, size_t at, const char *what,
                        size_t max)
{
    return moe_fail(MOE_E_LIMIT, "%s: %s: byte %zu: %s, the limit is %zu", call, label, at, what,
                    max);
}

// Length of a string literal that starts with the quote at text[0], or the rest if it never ends.
static size_t skip_string(const char *text, size_t size)
{
    size_t at = 1;
    while (at < size && text[at] != '"') {
        at += text[at] == '\\' && at + 1 < size ? 2 : 1;
    }
    return at < size ? at + 1 : size;
}

// Length of NaN, Infinity or -Infinity at the start of text, else 0.
static size_t python_constant(const char *text, size_t size)
{
    static const char *const names[] = {"NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const size_t length = strlen(names[i]);
        if (size >= length && memcmp(text, names[i], length) == 0) {
            return length;
        }
    }
    return 0;
}

static moe_status scan(const char *call, const char *label, const char *text, size_t size,
                       size_t *constants)
{
    size_t depth = 0;
    size_t nodes = 0;
    for (size_t at = 0; at < size;) {
        const char c = text[at];
        if (c == '"') {
            at += skip_string(text + at, size - at);
            continue;
        }
        if (c == '[' || c == '{') {
            if (++depth > MOEI_JSON_MAX_DEPTH) {
                return limit(call, label, at, "nested too deeply", MOEI_JSON_MAX_DEPTH);
            }
            nodes++;
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        } else if (c == ',' || c == ':') {
            nodes++;
        } else if (c == 'N' || c == 'I' || c == '-') {
            const size_t length = python_constant(text + at, size - at);
            if (length > 0) {
                ++*constants;
                at += length;
                continue;
            }
        }
        if (nodes > MOEI_JSON_MAX_NODES) {
            return limit(call, label, at, "too many values", MOEI_JSON_MAX_NODES);
        }
        at++;
    }
    return MOE_OK;
}

// Copies text with each Python constant as "null", padded so that offsets in messages stay (but
// for NaN, one byte shorter). Returns the bytes written; out holds size + constants.
static size_t replace_constants(const char *text, size_t size, char *out)
{
    static const char null_text[4] = {'n', 'u', 'l', 'l'};
    size_t used = 0;
    for (size_t at = 0; at < size;) {
        size_t length = text[at] == '"' ? skip_string(text + at, size - at) : 0;
        if (length > 0) {
            memcpy(out + used, text + at, length);
            used += length;
            at += length;
            continue;
        }
        length = python_constant(text + at, size - at);
        if (length > 0) {
            const size_t width = length > sizeof null_text ? length : sizeof null_text;
            memset(out + used, ' ', width);
            memcpy(out + used, null_text, sizeof null_text);
            used += width;
            at += length;
            continue;
        }
        out[used++] = text[at++];
    }
    return used;
}

// Whether jansson failed for want of memory. Mostly it then says nothing at all. Where a string's
// buffer was what it could not get, it calls the string an invalid token: but a token that ends in
// a quote is a string that has ended, and what can be wrong with one has texts of its own.
static bool ran_out(const json_error_t *error, const char *text, size_t size)
{
    static const char *const texts[] = {"invalid token", "string or '}' expected"};
    if (error->text[0] == '\0') {
        return true;
    }
    const bool string =
        error->position > 0 && (size_t)error->position <= size && text[error->position - 1] == '"';
    for (size_t i = 0; string && i < sizeof texts / sizeof texts[0]; i++) {
        if (strncmp(error->text, texts[i], strlen(texts[i])) == 0) {
            return true;
        }
    }
    return false;
}

moe_status moei_json_parse(moei_json *doc, const char *call, const char *label, const void *bytes,
                           size_t size, uint32_t flags)
{
    const char *text = bytes;
    size_t constants = 0;
    if (size > MOEI_JSON_MAX_BYTES) {
        return moe_fail(MOE_E_LIMIT, "%s: %s: %zu bytes, the limit is %u", call, label, size,
                        MOEI_JSON_MAX_BYTES);
    }
    // jansson skips a NUL behind a number or a word.
    const char *nul = size > 0 ? memchr(text, '\0', size) : NULL;
    MOE_REQUIRE(nul == NULL, MOE_E_MALFORMED, "%s: %s: byte %td: a NUL", call, label, nul - text);
    MOE_TRY(scan(call, label, text, size, &constants));
    char *copy = NULL;
    if (constants > 0 && (flags & MOEI_JSON_PYTHON)) {
        copy = malloc(size + constants);
        MOE_REQUIRE(copy != NULL, MOE_E_NO_MEMORY, "%s: %s: out of memory", call, label);
        size = replace_constants(text, size, copy);
        text = copy;
    }
    json_error_t error;
    memset(&error, 0, sizeof error);
    json_t *root = json_loadb(size > 0 ? text : "", size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        if (ran_out(&error, text, size)) {
            free(copy);
            return moe_fail(MOE_E_NO_MEMORY, "%s: %s: out of memory", call, label);
        }
        free(copy);
        return moe_fail(MOE_E_MALFORMED, "%s: %s: byte %d: %s", call, label, error.position,
                        moei_quote_head(error.text, strlen(error.text)).text);
    }
    free(copy);
    if (!json_is_object(root)) {
        json_decref(root);
        return moe_fail(MOE_E_MALFORMED, "%s: %s: an array, expected an object", call, label);
    }
    *doc = (moei_json){.root = root, .call = call, .label = label};
    return MOE_OK;
}

void moei_json_free(moei_json *doc)
{
    json_decref(doc->root);
    doc->root = NULL;
}

struct moei_json_found moei_json_describe(const json_t *value)
{
    struct moei_json_found found;
    char *text = found.text;
    const size_t size = sizeof found.text;
    if (value == NULL) {
        (void)snprintf(text, size, "nothing");
    } else if (json_is_string(value)) {
        (void)snprintf(text, size, "the string \"%s\"",
                       moei_quote_head(json_string_value(value), json_string_length(value)).text);
    } else if (json_is_integer(value)) {
        (void)snprintf(text, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        // The shortest of 17 digits tells 8.0 from 8.
        (void)snprintf(text, size, "the real number %.17g", json_real_value(value));
    } else if (json_is_object(value)) {
        (void)snprintf(text, size, "an object");
    } else if (json_is_array(value)) {
        (void)snprintf(text, size, "an array");
    } else {
        (void)snprintf(text, size,
                       json_is_null(value)   ? "null"
                       : json_is_true(value) ? "true"
                                             : "false");
    }
    return found;
}

static moe_status wrong(const moei_json *doc, const char *key, const json_t *value,
                        const char *want)
{
    const struct moei_quote name = moei_quote_head(key, strlen(key));
    if (value == NULL) {
        return moe_fail(MOE_E_MALFORMED, "%s: %s: \"%s\" is missing, expected %s", doc->call,
                        doc->label, name.text, want);
    }
    return moe_fail(MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, expected %s", doc->call, doc->label,
                    name.text, moei_json_describe(value).text, want);
}

bool moei_json_has(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value != NULL && !json_is_null(value);
}

moe_status moei_json_string(const moei_json *doc, const json_t *object, const char *key,
                            const char **out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) {
        return wrong(doc, key, value, "a string");
    }
    *out = json_string_value(value);
    return MOE_OK;
}

moe_status moei_json_int64(const moei_json *doc, const json_t *object, const char *key,
                           int64_t *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value)) {
        return wrong(doc, key, value, "an integer");
    }
    *out = (int64_t)json_integer_value(value);
    return MOE_OK;
}

moe_status moei_json_double(const moei_json *doc, const json_t *object, const char *key,
                            double *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) {
        return wrong(doc, key, value, "a number");
    }
    *out = json_number_value(value);
    return MOE_OK;
}

moe_status moei_json_bool(const moei_json *doc, const json_t *object, const char *key, bool *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_boolean(value)) {
        return wrong(doc, key, value, "true or false");
    }
    *out = json_is_true(value);
    return MOE_OK;
}

moe_status moei_json_object(const moei_json *doc, const json_t *object, const char *key,
                            const json_t **out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_object(value)) {
        return wrong(doc, key, value, "an object");
    }
    *out = value;
    return MOE_OK;
}

moe_status moei_json_array(const moei_json *doc, const json_t *object, const char *key,
                           const json_t **out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_array(value)) {
        return wrong(doc, key, value, "an array");
    }
    *out = value;
    return MOE_OK;
}

bool moei_json_next(struct moei_json_iter *iter)
{
    // jansson's iterators take a mutable object though they only read it.
    json_t *object = (json_t *)(uintptr_t)iter->object;
    iter->at =
        iter->at == NULL ? json_object_iter(object) : json_object_iter_next(object, iter->at);
    if (iter->at == NULL) {
        return false;
    }
    iter->key = json_object_iter_key(iter->at);
    iter->value = json_object_iter_value(iter->at);
    return true;
}
