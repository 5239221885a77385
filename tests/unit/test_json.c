// SPDX-License-Identifier: Apache-2.0
// The JSON of configurations and indexes: what is refused, the limits, and the typed getters.
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "test.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

struct rejected {
    const char *text;
    moe_status status;
    const char *message; // after "call: file: "
};

// clang-format off
static const struct rejected rejects[] = {
    {"", MOE_E_MALFORMED, "byte 0: '[' or '{' expected near end of file"},
    {"[]", MOE_E_MALFORMED, "an array, expected an object"},
    {"1", MOE_E_MALFORMED, NULL},
    {"{} x", MOE_E_MALFORMED, "byte 4: end of file expected near 'x'"},
    {"{}{}", MOE_E_MALFORMED, NULL},
    {"{\"a\":1,}", MOE_E_MALFORMED, NULL},
    {"{'a':1}", MOE_E_MALFORMED, NULL},
    {"{\"a\":01}", MOE_E_MALFORMED, NULL},
    {"{\"a\":+1}", MOE_E_MALFORMED, NULL},
    {"{\"a\":1} // b", MOE_E_MALFORMED, NULL},
    {"\xef\xbb\xbf{}", MOE_E_MALFORMED, NULL},
    {"{\"a\":nul}", MOE_E_MALFORMED, NULL},
    {"{\"a\":tru\"", MOE_E_MALFORMED, NULL},
    {"{\"a\"", MOE_E_MALFORMED, NULL},
    {"{\"a", MOE_E_MALFORMED, NULL},
    {"{\"a\\", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\\x\"}", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\\", MOE_E_MALFORMED, NULL},
    // Duplicates at any depth, in any spelling.
    {"{\"a\":1,\"a\":1}", MOE_E_MALFORMED, "byte 10: duplicate object key near '\\\"a\\\"'"},
    {"{\"a\":1,\"\\u0061\":1}", MOE_E_MALFORMED, NULL},
    {"{\"\\u00e9\":1,\"\xc3\xa9\":1}", MOE_E_MALFORMED, NULL},
    {"{\"\\/\":1,\"/\":1}", MOE_E_MALFORMED, NULL},
    {"{\"b\":{\"a\":1,\"\\u0061\":2}}", MOE_E_MALFORMED, NULL},
    {"{\"b\":[[{\"c\":{\"a\":1,\"d\":{},\"a\":1}}]]}", MOE_E_MALFORMED, NULL},
    // Text.
    {"{\"a\":\"\\u0000\"}", MOE_E_MALFORMED, NULL},
    {"{\"a\\u0000b\":1}", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\xff\"}", MOE_E_MALFORMED, "byte 6: unable to decode byte 0xff near '\\\"'"},
    {"{\"a\":\"\xc0\x80\"}", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\xed\xa0\x80\"}", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\\ud800\"}", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\\udc00\"}", MOE_E_MALFORMED, NULL},
    {"{\"a\":\"\n\"}", MOE_E_MALFORMED, NULL},
    // Numbers.
    {"{\"a\":9223372036854775808}", MOE_E_MALFORMED, NULL},
    {"{\"a\":-9223372036854775809}", MOE_E_MALFORMED, NULL},
    {"{\"a\":1e999}", MOE_E_MALFORMED, NULL},
    {"{\"a\":NaN}", MOE_E_MALFORMED, NULL},
    {"{\"a\":-Infinity}", MOE_E_MALFORMED, NULL},
};
// clang-format on

static void check_rejects(void)
{
    for (size_t i = 0; i < COUNT(rejects); i++) {
        const struct rejected *r = &rejects[i];
        const size_t size = strlen(r->text);
        // In memory of exactly that size, so that a sanitizer sees a read past it.
        char *text = malloc(size > 0 ? size : 1);
        moei_json doc = {.root = NULL};
        if (text == NULL) {
            CHECK(false, "out of memory");
            return;
        }
        memcpy(text, r->text, size);
        const moe_status status = moei_json_parse(&doc, "call", "file", text, size, 0);
        CHECK(status == r->status, "%s: %s", r->text, moe_status_name(status));
        CHECK(doc.root == NULL, "%s: out was touched", r->text);
        CHECK(strncmp(moe_last_error(), "call: file: ", 12) == 0, "%s", moe_last_error());
        CHECK(r->message == NULL || strcmp(moe_last_error() + 12, r->message) == 0,
              "says %s, expected %s", moe_last_error(), r->message);
        free(text);
    }
    // A NUL is no space, wherever it stands.
    static const char spaces[] = " { \"a\" : [ 1 , true , \"b\" ] } ";
    moei_json doc = {.root = NULL};
    CHECK(moei_json_parse(&doc, "call", "file", spaces, sizeof spaces - 1, 0) == MOE_OK, "%s",
          moe_last_error());
    moei_json_free(&doc);
    for (size_t i = 0; i < sizeof spaces - 1; i++) {
        char text[sizeof spaces];
        memcpy(text, spaces, sizeof spaces);
        text[i] = '\0';
        CHECK(moei_json_parse(&doc, "call", "file", text, sizeof text - 1, 0) == MOE_E_MALFORMED,
              "NUL at %zu", i);
    }
    CHECK(moei_json_parse(&doc, "call", "file", NULL, 0, 0) == MOE_E_MALFORMED, "no bytes");
}

// n times `open` and n times `close` around nothing, as the value of a.
static char *nested(size_t n, char open, char close)
{
    char *text = malloc(2 * n + 8);
    if (text == NULL) {
        exit(1);
    }
    memcpy(text, "{\"a\":", 5);
    memset(text + 5, open, n);
    memset(text + 5 + n, close, n);
    memcpy(text + 5 + 2 * n, "}", 2);
    return text;
}

static void check_limits(void)
{
    moei_json doc = {.root = NULL};
    for (size_t depth = 63; depth < 66; depth++) {
        char *text = nested(depth, '[', ']');
        const moe_status status = moei_json_parse(&doc, "call", "file", text, strlen(text), 0);
        CHECK(status == (depth < 64 ? MOE_OK : MOE_E_LIMIT), "depth %zu: %s", depth,
              moe_status_name(status));
        CHECK(status == MOE_OK ||
                  strcmp(moe_last_error(),
                         "call: file: byte 68: nested too deeply, the limit is 64") == 0,
              "%s", moe_last_error());
        moei_json_free(&doc);
        free(text);
    }
    char *text = nested(5000000, '[', '[');
    CHECK(moei_json_parse(&doc, "call", "file", text, strlen(text), 0) == MOE_E_LIMIT, "deep");
    free(text);
    // Brackets in strings, also behind escaped quotes, are text.
    static const char quoted[] =
        "{\"a\":\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\\\"}";
    CHECK(moei_json_parse(&doc, "call", "file", quoted, sizeof quoted - 1, 0) == MOE_OK, "%s",
          moe_last_error());
    moei_json_free(&doc);

    const size_t size = MOEI_JSON_MAX_BYTES + 1UL;
    text = malloc(size);
    if (text == NULL) {
        CHECK(false, "out of memory");
        return;
    }
    memset(text, ' ', size);
    memcpy(text, "{}", 2);
    CHECK(moei_json_parse(&doc, "call", "file", text, size, 0) == MOE_E_LIMIT, "size");
    CHECK(moei_json_parse(&doc, "call", "file", text, size - 1, 0) == MOE_OK, "%s",
          moe_last_error());
    moei_json_free(&doc);
    memset(text, ',', size);
    CHECK(moei_json_parse(&doc, "call", "file", text, size - 1, 0) == MOE_E_LIMIT, "values");
    CHECK(strcmp(moe_last_error(),
                 "call: file: byte 4000000: too many values, the limit is 4000000") == 0,
          "%s", moe_last_error());
    free(text);
}

static void check_getters(void)
{
    static const char text[] =
        "{\"s\":\"t\\n\",\"i\":-5,\"d\":2.5,\"e\":1e3,\"t\":true,\"f\":false,"
        "\"n\":null,\"o\":{\"k\":1},\"a\":[1,2],\"u\":\"\\u001b\"}";
    moei_json doc = {.root = NULL};
    if (!CHECK(moei_json_parse(&doc, "call", "file", text, sizeof text - 1, 0) == MOE_OK, "%s",
               moe_last_error())) {
        return;
    }
    const json_t *root = doc.root;
    const char *string = "untouched";
    int64_t integer = 99;
    double real = 99;
    bool truth = false;
    const json_t *value = NULL;
    CHECK(moei_json_string(&doc, root, "s", &string) == MOE_OK && strcmp(string, "t\n") == 0, "s");
    CHECK(moei_json_int64(&doc, root, "i", &integer) == MOE_OK && integer == -5, "i");
    CHECK(moei_json_double(&doc, root, "d", &real) == MOE_OK && real == 2.5, "d");
    CHECK(moei_json_double(&doc, root, "i", &real) == MOE_OK && real == -5, "i as double");
    CHECK(moei_json_bool(&doc, root, "t", &truth) == MOE_OK && truth, "t");
    CHECK(moei_json_bool(&doc, root, "f", &truth) == MOE_OK && !truth, "f");
    CHECK(moei_json_object(&doc, root, "o", &value) == MOE_OK && json_is_object(value), "o");
    CHECK(moei_json_array(&doc, root, "a", &value) == MOE_OK && json_array_size(value) == 2, "a");
    CHECK(moei_json_has(root, "i") && !moei_json_has(root, "n") && !moei_json_has(root, "x"),
          "has");

    // Each refusal names the key and what was found, and leaves the output alone.
    string = "untouched";
    integer = 99;
    value = NULL;
#define REFUSED(call_, text_)                                                                      \
    CHECK((call_) == MOE_E_MALFORMED && strcmp(moe_last_error(), "call: file: " text_) == 0,       \
          "says %s", moe_last_error())
    REFUSED(moei_json_string(&doc, root, "i", &string), "\"i\" is -5, expected a string");
    REFUSED(moei_json_string(&doc, root, "n", &string), "\"n\" is null, expected a string");
    REFUSED(moei_json_string(&doc, root, "x", &string), "\"x\" is missing, expected a string");
    REFUSED(moei_json_int64(&doc, root, "e", &integer),
            "\"e\" is the real number 1000, expected an integer");
    REFUSED(moei_json_int64(&doc, root, "s", &integer),
            "\"s\" is the string \"t\\x0a\", expected an integer");
    REFUSED(moei_json_int64(&doc, root, "u", &integer),
            "\"u\" is the string \"\\x1b\", expected an integer");
    REFUSED(moei_json_int64(&doc, root, "t", &integer), "\"t\" is true, expected an integer");
    REFUSED(moei_json_double(&doc, root, "f", &real), "\"f\" is false, expected a number");
    REFUSED(moei_json_bool(&doc, root, "i", &truth), "\"i\" is -5, expected true or false");
    REFUSED(moei_json_object(&doc, root, "a", &value), "\"a\" is an array, expected an object");
    REFUSED(moei_json_array(&doc, root, "o", &value), "\"o\" is an object, expected an array");
    CHECK(strcmp(string, "untouched") == 0 && integer == 99 && value == NULL, "out was touched");
    CHECK(strcmp(moei_json_describe(NULL).text, "nothing") == 0, "describe");

    char keys[16] = "";
    size_t used = 0;
    struct moei_json_iter iter = {.object = root};
    while (moei_json_next(&iter)) {
        keys[used++] = iter.key[0];
        CHECK(iter.value == json_object_get(root, iter.key), "%s", iter.key);
    }
    CHECK(strcmp(keys, "sidetfnoau") == 0, "keys in file order: %s", keys);
    moei_json_free(&doc);
    CHECK(doc.root == NULL, "free");
    moei_json_free(&doc);
    CHECK(moei_json_parse(&doc, "call", "file", "{}", 2, 0) == MOE_OK, "%s", moe_last_error());
    struct moei_json_iter none = {.object = doc.root};
    CHECK(!moei_json_next(&none), "an empty object has no members");
    moei_json_free(&doc);
}

static void check_python(void)
{
    static const char text[] =
        "{\"a\":NaN,\"b\":[0.0,Infinity],\"c\":-Infinity,\"d\":\"NaN \\\" Infinity\",\"e\":-1}";
    moei_json doc = {.root = NULL};
    const char *string = "";
    int64_t integer = 0;
    CHECK(moei_json_parse(&doc, "call", "file", text, sizeof text - 1, 0) == MOE_E_MALFORMED,
          "accepted without the flag");
    if (!CHECK(moei_json_parse(&doc, "call", "file", text, sizeof text - 1, MOEI_JSON_PYTHON) ==
                   MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    CHECK(json_is_null(json_object_get(doc.root, "a")), "a");
    CHECK(json_is_null(json_array_get(json_object_get(doc.root, "b"), 1)), "b");
    CHECK(json_is_null(json_object_get(doc.root, "c")), "c");
    CHECK(moei_json_string(&doc, doc.root, "d", &string) == MOE_OK &&
              strcmp(string, "NaN \" Infinity") == 0,
          "d: %s", string);
    CHECK(moei_json_int64(&doc, doc.root, "e", &integer) == MOE_OK && integer == -1, "e");
    moei_json_free(&doc);
    static const char *const wrong[] = {"{\"a\":NaNs}", "{\"a\":1NaN}",      "{NaN:1}",
                                        "{\"a\":nan}",  "{\"a\":+Infinity}", "{\"a\":--Infinity}"};
    for (size_t i = 0; i < COUNT(wrong); i++) {
        CHECK(moei_json_parse(&doc, "call", "file", wrong[i], strlen(wrong[i]), MOEI_JSON_PYTHON) ==
                  MOE_E_MALFORMED,
              "%s is accepted", wrong[i]);
    }
}

int main(void)
{
    check_rejects();
    check_limits();
    check_getters();
    check_python();
    return test_summary();
}
