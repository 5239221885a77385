// SPDX-License-Identifier: Apache-2.0
// Configuration and index files: a thin, strict wrapper over jansson. Safetensors headers have a
// reader of their own (safetensors.c says why).
#ifndef MOEI_IO_JSON_H
#define MOEI_IO_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/status.h"

#define MOEI_JSON_MAX_BYTES 100000000U ///< the limit of safetensors headers, for index files too
#define MOEI_JSON_MAX_DEPTH 64U        ///< of nested objects and arrays
#define MOEI_JSON_MAX_NODES 4000000U   ///< brackets, commas and colons; bounds memory to 1 GiB

/// A parsed text and what messages call it.
typedef struct moei_json {
    json_t *root;      ///< always an object
    const char *call;  ///< the public function, as prefix of messages
    const char *label; ///< the file, as shown in messages; must outlive the document
} moei_json;

enum {
    /// NaN, Infinity and -Infinity, which Python's json module writes, read as null, so that no
    /// getter returns them and moei_json_has denies them. Without the flag they are MALFORMED.
    MOEI_JSON_PYTHON = 1
};

/// Parses bytes[0..size), which must be one JSON object (RFC 8259) and nothing after it: UTF-8,
/// keys unique at every depth in whatever spelling, no U+0000, integers within int64.
/// @param[out] doc  untouched on failure; release with moei_json_free
/// Errors: MALFORMED (with the byte offset), LIMIT, NO_MEMORY.
moe_status moei_json_parse(moei_json *doc, const char *call, const char *label, const void *bytes,
                           size_t size, uint32_t flags);

/// Releases a document; a zeroed struct is fine.
void moei_json_free(moei_json *doc);

/// Whether the object has the key with a value other than null.
bool moei_json_has(const json_t *object, const char *key);

/// Typed getters. The key must be there and of the type; MALFORMED names the key and what was
/// found, and leaves *out alone. A number written as integer is also a double; a number with
/// fraction or exponent is no integer. Strings, objects and arrays belong to the document.
moe_status moei_json_string(const moei_json *doc, const json_t *object, const char *key,
                            const char **out);
moe_status moei_json_int64(const moei_json *doc, const json_t *object, const char *key,
                           int64_t *out);
moe_status moei_json_double(const moei_json *doc, const json_t *object, const char *key,
                            double *out);
moe_status moei_json_bool(const moei_json *doc, const json_t *object, const char *key, bool *out);
moe_status moei_json_object(const moei_json *doc, const json_t *object, const char *key,
                            const json_t **out);
moe_status moei_json_array(const moei_json *doc, const json_t *object, const char *key,
                           const json_t **out);

/// What a value is, for messages: `the string "abc"`, `12`, `null`, `an object`, `nothing` (NULL).
struct moei_json_found {
    char text[160];
};
struct moei_json_found moei_json_describe(const json_t *value);

/// Members in file order: `struct moei_json_iter it = {.object = o}; while (moei_json_next(&it))`.
struct moei_json_iter {
    const json_t *object;
    void *at; ///< NULL before the first
    const char *key;
    const json_t *value;
};
bool moei_json_next(struct moei_json_iter *iter);

#endif
