// SPDX-License-Identifier: Apache-2.0
// The JSON of configurations on any bytes: every getter on every member, at every depth. The first
// byte chooses the flags.
#include <stdbool.h>
#include <string.h>

#include "fuzz.h"
#include "io/json.h"

static void walk(const moei_json *doc, const json_t *value, unsigned depth)
{
    FUZZ_REQUIRE(depth <= MOEI_JSON_MAX_DEPTH || !(json_is_object(value) || json_is_array(value)));
    FUZZ_REQUIRE(moei_json_describe(value).text[0] != '\0');
    for (size_t i = 0; i < json_array_size(value); i++) {
        walk(doc, json_array_get(value, i), depth + 1);
    }
    if (!json_is_object(value)) {
        return;
    }
    size_t members = 0;
    struct moei_json_iter iter = {.object = value};
    while (moei_json_next(&iter)) {
        const char *string = NULL;
        int64_t integer = 0;
        double real = 0;
        bool truth = false;
        const json_t *object = NULL;
        const json_t *array = NULL;
        const bool is_integer = moei_json_int64(doc, value, iter.key, &integer) == MOE_OK;
        const bool is_number = moei_json_double(doc, value, iter.key, &real) == MOE_OK;
        const int kinds = (moei_json_string(doc, value, iter.key, &string) == MOE_OK) + is_number +
                          (moei_json_bool(doc, value, iter.key, &truth) == MOE_OK) +
                          (moei_json_object(doc, value, iter.key, &object) == MOE_OK) +
                          (moei_json_array(doc, value, iter.key, &array) == MOE_OK);
        FUZZ_REQUIRE(kinds == (moei_json_has(value, iter.key) ? 1 : 0));
        FUZZ_REQUIRE(!is_integer || is_number);
        FUZZ_REQUIRE(string == NULL || strlen(string) == json_string_length(iter.value));
        members++;
        walk(doc, iter.value, depth + 1);
    }
    FUZZ_REQUIRE(members == json_object_size(value));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint32_t flags = size > 0 && (data[0] & 1) ? MOEI_JSON_PYTHON : 0;
    const size_t skipped = size > 0;
    moei_json doc = {.root = NULL};
    const moe_status status =
        moei_json_parse(&doc, "fuzz", "input", data + skipped, size - skipped, flags);
    FUZZ_REQUIRE((status == MOE_OK) == (doc.root != NULL));
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_MALFORMED || status == MOE_E_LIMIT);
    if (status == MOE_OK) {
        walk(&doc, doc.root, 1);
    }
    moei_json_free(&doc);
    return 0;
}
