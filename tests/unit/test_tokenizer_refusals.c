// SPDX-License-Identifier: Apache-2.0
// Every tokenizer.json that is refused, with the name of what it holds; limits; the dialect of
// patterns.
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer.h"
#include "unit/test.h"
#include "unit/tokenizer_small.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static void accept(const json_t *root)
{
    moem_tokenizer *t = NULL;
    char *text = json_dumps(root, 0);
    CHECK(moem_tokenizer_create(text, strlen(text), "f", &t) == MOE_OK, "%s", moe_last_error());
    moem_tokenizer_destroy(t);
    free(text);
}

// ---- Refusals -----------------------------------------------------------------------------------

struct refusal {
    const char *path;  // into the tokenizer; "" is all of it
    const char *value; // NULL removes
    moe_status status;
    const char *message;
};

#define U MOE_E_UNSUPPORTED
#define M MOE_E_MALFORMED
// clang-format off
static const struct refusal refusals[] = {
    {"normalizer", "{\"type\":\"NFC\"}", U, "normalizer NFC is not supported"},
    {"normalizer", "[]", U, "normalizer an array is not supported"},
    {"truncation", "{\"max_length\":5}", U, "truncation an object is not supported"},
    {"padding", "{\"strategy\":\"BatchLongest\"}", U, "padding an object is not supported"},
    {"version", "\"2.0\"", U, "version 2.0 is not supported, 1.0 is"},
    {"more", "1", U, "tokenizer.more = 1 is not supported"},
    {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[]}", U, "post_processor TemplateProcessing is not supported, ByteLevel is"},
    {"post_processor", "{\"type\":\"ByteLevel\",\"odd\":1}", U, "post_processor.odd = 1 is not supported"},
    {"decoder", "{\"type\":\"Metaspace\"}", U, "decoder Metaspace is not supported, ByteLevel is"},
    {"decoder", "3", M, "decoder.type is nothing, expected a string"},
    {"pre_tokenizer", "null", U, "pre_tokenizer is null, ByteLevel and Sequence are supported"},
    {"pre_tokenizer", NULL, U, "pre_tokenizer is nothing"},
    {"pre_tokenizer", "{\"type\":\"Metaspace\"}", U, "pre_tokenizer Metaspace is not supported, ByteLevel and Sequence are"},
    {"pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[]}", U, "a Sequence that does not end in ByteLevel, but in \"\", is not supported"},
    {"pre_tokenizer", "{\"type\":\"Sequence\"}", M, "pre_tokenizer.pretokenizers is nothing, expected an array"},
    {"pre_tokenizer.pretokenizers.0.type", "\"Digits\"", U, "pre_tokenizer Digits is not supported in a Sequence, Split and ByteLevel are"},
    {"pre_tokenizer.pretokenizers.0.type", "\"ByteLevel\"", U, "ByteLevel as number 1 of a Sequence of 2 is not supported, as the last it is"},
    {"pre_tokenizer.pretokenizers.1.type", "\"Split\"", U, "Split.add_prefix_space = false is not supported"},
    {"pre_tokenizer.pretokenizers.1.add_prefix_space", NULL, M, "ByteLevel.add_prefix_space is nothing, expected true or false"},
    {"pre_tokenizer.pretokenizers.1.use_regex", "1", M, "ByteLevel.use_regex is 1, expected true or false"},
    {"pre_tokenizer.pretokenizers.1.odd", "\"x\"", U, "ByteLevel.odd = x is not supported"},
    {"pre_tokenizer.pretokenizers.0.behavior", "\"Merged\"", U, "Split.behavior Merged is not supported"},
    {"pre_tokenizer.pretokenizers.0.invert", NULL, M, "Split.invert is nothing, expected true or false"},
    {"pre_tokenizer.pretokenizers.0.odd", "{}", U, "Split.odd = an object is not supported"},
    {"pre_tokenizer.pretokenizers.0.pattern", "\"a\"", M, "Split.pattern is a, expected an object"},
    {"pre_tokenizer.pretokenizers.0.pattern", "{}", M, "Split.pattern has as Regex nothing and as String nothing"},
    {"pre_tokenizer.pretokenizers.0.pattern", "{\"Glob\":\"*\"}", U, "Split.pattern.Glob = * is not supported"},
    {"pre_tokenizer.pretokenizers.0.pattern", "{\"String\":\"\"}", MOE_E_LIMIT, "a pattern of 0 bytes, the limits are 1 and 4096"},
    {"model", NULL, M, "model.type is nothing, expected a string"},
    {"model.type", "\"Unigram\"", U, "model Unigram is not supported, BPE is"},
    {"model.odd", "7", U, "model.odd = 7 is not supported"},
    {"model.dropout", "0.5", U, "model.dropout = 0.5 is not supported"},
    {"model.dropout", "\"a\"", U, "model.dropout = a is not supported"},
    {"model.continuing_subword_prefix", "\"##\"", U, "model.continuing_subword_prefix = ## is not supported"},
    {"model.end_of_word_suffix", "\"</w>\"", U, "model.end_of_word_suffix = </w> is not supported"},
    {"model.byte_fallback", "true", U, "model.byte_fallback = true is not supported"},
    {"model.byte_fallback", "0", M, "model.byte_fallback is 0, expected true or false"},
    {"model.unk_token", "\"a\"", U, "model.unk_token = a is not supported where a byte is no token, as 0x00"},
    {"model.ignore_merges", "\"yes\"", M, "model.ignore_merges is yes, expected true or false"},
    {"model.vocab", "[]", M, "model.vocab is an array, expected an object"},
    {"model.vocab", "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4}", M, "merge 2 names \"abc\", which is not in the vocabulary"},
    {"model.vocab.a", "-1", M, "the id of \"a\" is -1, less than 0"},
    {"model.vocab.a", "2.0", M, "the id of \"a\" is 2.0, expected an integer"},
    {"model.vocab.a", "2097152", MOE_E_LIMIT, "the id of \"a\" is 2097152, the limit is 2097151"},
    {"model.vocab.a", "1", M, "the id 1 is that of two tokens, one is \""},
    {"model.merges", NULL, M, "model.merges is nothing, expected an array"},
    {"model.merges.0", "\"ab\"", M, "merge 0 is ab, expected two tokens as [\"a\", \"b\"] or \"a b\""},
    {"model.merges.0", "\"a b c\"", M, "merge 0 is a b c, expected two tokens"},
    {"model.merges.0", "[\"a\"]", M, "merge 0 is an array, expected two tokens"},
    {"model.merges.0", "[\"a\",\"b\",\"c\"]", M, "merge 0 is an array, expected two tokens"},
    {"model.merges.0", "[\"a\",1]", M, "merge 0 is an array, expected two tokens"},
    {"model.merges.0", "7", M, "merge 0 is 7, expected two tokens"},
    {"model.merges.0", "[\"a\",\"x\"]", M, "merge 0 names \"x\", which is not in the vocabulary"},
    {"model.merges.0", "\"\\u00e9 a\"", M, "merge 0 names \"\\xc3\\xa9\", which is not in the vocabulary"},
    {"model.merges.0", "\"a c\"", M, "merge 0 names \"ac\", which is not in the vocabulary"},
    {"model.merges.0", "\"a b\"", M, "are of the same two tokens"},
    {"added_tokens", "{}", M, "added_tokens is an object, expected an array"},
    {"added_tokens.0", "1", M, "added_tokens[].content is nothing, expected a string"},
    {"added_tokens.0.content", "\"\"", M, "the added token 6 has 0 bytes, the limits are 1 and 256"},
    {"added_tokens.0.content", "\"a\"", M, "the added token \"a\" has the id 6 and in the vocabulary 0"},
    {"added_tokens.0.content", "\"<y>\"", M, "the added token \"<y>\" is there twice"},
    {"added_tokens.0.id", "3", M, "the id 3 is that of two tokens, one is \"<x>\""},
    {"added_tokens.0.id", "7", M, "the id 7 is that of two tokens, one is \"<y>\""},
    {"added_tokens.0.id", NULL, M, "the id of \"<x>\" is nothing, expected an integer"},
    {"added_tokens.0.single_word", "true", U, "the added token \"<x>\": single_word is not supported"},
    {"added_tokens.0.lstrip", NULL, M, "added_tokens[].lstrip is nothing, expected true or false"},
    {"added_tokens.0.odd", "true", U, "added_tokens[].odd = true is not supported"},
    {"", "[1]", M, "an array, expected an object"},
    {"", "{\"a\":1", M, "byte 6: '}' expected near end of file"},
    {"", "{\"a\":1,\"a\":1}", M, "byte 10: duplicate object key near '\\\"a\\\"'"},
    {"", "{\"a\":\"\\u0000\"}", M, "byte 13: \\\\u0000 is not allowed"},
    {"", "", M, "byte 0: '[' or '{' expected near end of file"},
    {"", "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", M, "there is no token"},
};
// clang-format on

static void check_refused(const char *text, size_t size, const struct refusal *r)
{
    // Memory of exactly that size, so that a sanitizer sees a read past it.
    char *copy = malloc(size > 0 ? size : 1);
    moem_tokenizer *t = NULL;
    if (copy == NULL) {
        exit(1);
    }
    memcpy(copy, text, size);
    const moe_status status = moem_tokenizer_create(copy, size, "f", &t);
    static const char head[] = "moem_tokenizer_create: f: ";
    CHECK(status == r->status && t == NULL, "%s = %s: %s", r->path, r->value,
          moe_status_name(status));
    CHECK(strncmp(moe_last_error(), head, strlen(head)) == 0 &&
              strstr(moe_last_error(), r->message) != NULL,
          "%s = %s: says %s", r->path, r->value, moe_last_error());
    moem_tokenizer_destroy(t);
    free(copy);
}

static void check_refusals(void)
{
    for (size_t i = 0; i < COUNT(refusals); i++) {
        const struct refusal *r = &refusals[i];
        if (r->path[0] == '\0') {
            check_refused(r->value, strlen(r->value), r);
            continue;
        }
        json_t *root = small_json();
        set_path(root, r->path,
                 r->value == NULL ? NULL : json_loads(r->value, JSON_DECODE_ANY, NULL));
        char *text = json_dumps(root, 0);
        check_refused(text, strlen(text), r);
        free(text);
        json_decref(root);
    }
    const struct refusal nul = {"", "a NUL", M, "byte 1: a NUL"};
    check_refused("{\0}", 3, &nul);
    moem_tokenizer *t = NULL;
    CHECK(moem_tokenizer_create(NULL, 1, "f", &t) == MOE_E_ARGUMENT, "NULL");
    CHECK(moem_tokenizer_create(small, 1, NULL, &t) == MOE_E_ARGUMENT, "NULL label");
    CHECK(moem_tokenizer_create(small, 1, "f", NULL) == MOE_E_ARGUMENT, "NULL out");
}

// Sizes: one too many of each is refused, and the limit itself is not.
static void check_limits(void)
{
    json_t *root = small_json();
    json_t *list = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    for (int i = 0; i < 15; i++) {
        json_array_insert(list, 0, json_array_get(list, 0));
    }
    accept(root);
    json_array_insert(list, 0, json_array_get(list, 0));
    const struct refusal splits = {"splits", "17", MOE_E_LIMIT, "more Splits than 16"};
    char *text = json_dumps(root, 0);
    check_refused(text, strlen(text), &splits);
    free(text);
    json_decref(root);

    char content[258];
    memset(content, 'x', sizeof content);
    content[257] = '\0';
    root = small_json();
    set_path(root, "added_tokens.0.content", json_string(content + 1));
    accept(root);
    set_path(root, "added_tokens.0.content", json_string(content));
    const struct refusal bytes = {"content", "257", MOE_E_LIMIT,
                                  "the added token 6 has 257 bytes, the limits are 1 and 256"};
    text = json_dumps(root, 0);
    check_refused(text, strlen(text), &bytes);
    free(text);
    json_decref(root);

    root = small_json();
    list = json_object_get(root, "added_tokens");
    while (json_array_size(list) <= 16384) {
        json_array_append_new(list, json_null());
    }
    const struct refusal added = {"added", "16385", MOE_E_LIMIT,
                                  "16385 added tokens, the limit is 16384"};
    text = json_dumps(root, 0);
    check_refused(text, strlen(text), &added);
    free(text);
    json_decref(root);

    const struct refusal values = {"values", "4000001", MOE_E_LIMIT,
                                   "too many values, the limit is 4000000"};
    text = malloc(4000001);
    if (text == NULL) {
        exit(1);
    }
    memset(text, '[', 4000001);
    check_refused(text, 4000001, &values);
    free(text);
}

// Patterns: NULL means supported.
static const struct {
    const char *pattern;
    const char *message;
} patterns[] = {
    {"a|b*c(?:d)(?=e)(?!f)(?>g)(?<=h)(?<!i)(j)", NULL},
    {"[^\\s\\S\\d\\D\\p{Lu}\\P{N}\\r\\n\\t\\f\\x41\\x{1F600}\\-\\]a-z\xC3\xA9-\xC3\xBF]+", NULL},
    {"a{1}b{2,}c{3,4}d?e+?f*+.\\.", NULL},
    {"(?i:[sdmt]|ll|ve|re)", NULL},
    {"\\w+", "byte 0: \"\\\\w\" is not supported: an escape whose meanings differ"},
    {"a\\b", "byte 1: \"\\\\b\" is not supported"},
    {"\\h", "\"\\\\h\""},
    {"a\\Kb", "\"\\\\K\""},
    {"(a)\\1", "\"\\\\1\""},
    {"\\u0041", "\"\\\\u\""},
    {"a\\", "byte 1: \"\\\\\" is not supported"},
    {"\\p{Han}", "\"\\\\p{Han}\" is not supported: properties are general categories"},
    {"\\p{^L}", "properties are general categories"},
    {"\\pL", "properties are general categories"},
    {"\\xE9", "characters by number are"},
    {"\\x{}", "characters by number are"},
    {"\\x{41", "characters by number are"},
    {"^a", "byte 0: \"^\" is not supported: an anchor of lines"},
    {"a$", "byte 1: \"$\" is not supported"},
    {"[a[b]]", "byte 2: \"[b]]\" is not supported: a class within a class"},
    {"[[:alpha:]]", "a class within a class"},
    {"[a-z&&b]", "\"&&\" is not supported: an intersection of classes"},
    {"[]a]", "first in a class"},
    {"[^]a]", "first in a class"},
    {"[a", "missing terminating ]"},
    {"(?i)a", "\"(?i)\" is not supported: a group of that kind"},
    {"(?x:a)", "a group of that kind"},
    {"(?<n>a)", "a group of that kind"},
    {"(?P<n>a)", "a group of that kind"},
    {"(?#a)", "a group of that kind"},
    {"(?R)", "a group of that kind"},
    {"(*UTF)a", "a group of that kind"},
    {"(?i:a(b))", "a group within a group (?i:"},
    {"(?i:\\p{L})", "an escape in a group (?i:"},
    {"(?i:\xC3\xA9)", "a character that is not ASCII in a group (?i:"},
    {"(?i:ss)", "byte 5: \"s\" is not supported: in a group (?i: it makes a pair"},
    {"(?i:xFi)", "it makes a pair"},
    {"a{,3}", "a brace that is no repetition"},
    {"a{", "a brace that is no repetition"},
    {"a{3", "a brace that is no repetition"},
    {"a{x}", "a brace that is no repetition"},
    {"a{65}", "repetitions are counted up to 64"},
    {"a{1,065}", "repetitions are counted up to 64"},
    {"a{2}+", "a repetition of a repetition"},
    {"a{2}?", "a repetition of a repetition"},
    {"a*", "can match no characters at all"},
    {"(?=a)", "can match no characters at all"},
    {"(a", "missing closing parenthesis"},
    {"a)", "unmatched closing parenthesis"},
    {"*a", "quantifier does not follow a repeatable item"},
    {"[z-a]", "range out of order"},
    {"(?<=a+)b", "lookbehind assertion is not fixed length"},
};

static void check_patterns(void)
{
    static char long_pattern[4098];
    for (size_t i = 0; i <= COUNT(patterns) + 1; i++) {
        const char *pattern = i < COUNT(patterns) ? patterns[i].pattern : long_pattern;
        const char *message = i < COUNT(patterns) ? patterns[i].message
                              : i == COUNT(patterns)
                                  ? "groups nested 101 deep, the limit is 100"
                                  : "a pattern of 4097 bytes, the limits are 1 and 4096";
        if (i >= COUNT(patterns)) {
            memset(long_pattern, '(', i == COUNT(patterns) ? 101 : 4097);
        }
        json_t *root = small_json();
        set_path(root, "pre_tokenizer.pretokenizers.0.pattern.Regex", json_string(pattern));
        char *text = json_dumps(root, 0);
        moem_tokenizer *t = NULL;
        const moe_status status = moem_tokenizer_create(text, strlen(text), "f", &t);
        CHECK((status == MOE_OK) == (message == NULL), "%s: %s", pattern, moe_last_error());
        CHECK(message == NULL || strstr(moe_last_error(), message) != NULL, "%s: says %s", pattern,
              moe_last_error());
        moem_tokenizer_destroy(t);
        free(text);
        json_decref(root);
    }
}

int main(void)
{
    check_refusals();
    check_limits();
    check_patterns();
    return test_summary();
}
