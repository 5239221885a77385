// SPDX-License-Identifier: Apache-2.0
// The tokenizer: ids of the tiny model's reference and of the tokenizers library, byte for byte;
// what encodes decodes; every refusal by its name; hostile texts and patterns; failing allocations.
//   test_tokenizer models/tiny-gpt-oss tests/golden/tokenizer_forms.json
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moe/io.h"
#include "test.h"
#include "model/text.h"
#include "model/tokenizer.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

// ---- Failing allocations: the linker sends the calls of this program and of moe_model here
// --------

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

static long until_failure = -1; // -1: none fails

static bool fails(void)
{
    return until_failure >= 0 && until_failure-- == 0;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    return fails() ? NULL : __real_realloc(memory, bytes);
}

// ---- Helpers ------------------------------------------------------------------------------------

static char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    moem_text text = {.bytes = NULL};
    char part[65536];
    for (size_t n = 1; f != NULL && n > 0;) {
        n = fread(part, 1, sizeof part, f);
        if (moem_text_append(&text, part, n) != MOE_OK) {
            exit(1);
        }
    }
    if (f == NULL || fclose(f) != 0 || text.size == 0) {
        (void)printf("cannot read %s\n", path);
        exit(1);
    }
    *size = text.size;
    return text.bytes;
}

static moem_tokenizer *create(const json_t *root)
{
    moem_tokenizer *t = NULL;
    char *text = json_dumps(root, 0);
    CHECK(moem_tokenizer_create(text, strlen(text), "test", &t) == MOE_OK, "%s", moe_last_error());
    free(text);
    return t;
}

static moem_ids encode(const moem_tokenizer *t, const char *text, size_t size)
{
    moem_ids ids = {.ids = NULL};
    CHECK(moem_tokenizer_encode(t, text, size, &ids) == MOE_OK, "%s", moe_last_error());
    return ids;
}

// The bytes of the ids one after another.
static moem_text decode(const moem_tokenizer *t, const int32_t *ids, size_t count)
{
    moem_text text = {.bytes = NULL};
    moe_status status = MOE_OK;
    for (size_t i = 0; i < count && status == MOE_OK; i++) {
        const char *bytes = NULL;
        size_t size = 0;
        status = moem_tokenizer_bytes(t, ids[i], &bytes, &size);
        if (status == MOE_OK) {
            status = moem_text_append(&text, bytes, size);
        }
    }
    CHECK(status == MOE_OK, "%s", moe_last_error());
    return text;
}

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)((random_state >> 33) % n);
}

static size_t put_character(uint32_t c, char *out)
{
    const size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length; i-- > 1; c >>= 6) {
        out[i] = (char)(0x80 | (c & 0x3F));
    }
    out[0] = (char)(lead[length] | c);
    return length;
}

// Characters of every length, blanks and letters more often; at most 40, 4 bytes each.
static size_t random_text(char *out)
{
    static const uint32_t ends[] = {0x80, 0x80, 0x100, 0x800, 0x3100, 0x10000, 0x110000};
    const uint32_t count = random_below(40);
    size_t size = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t c = random_below(ends[random_below(COUNT(ends))]);
        c = random_below(4) == 0 ? (uint32_t) " \n\t'"[random_below(4)] : c;
        size += put_character(c >= 0xD800 && c < 0xE000 ? 'e' : c, out + size);
    }
    return size;
}

// ---- The tiny model -----------------------------------------------------------------------------

static void check_reference(const moem_tokenizer *t, const moe_file *file, const char *name,
                            const char *text, size_t size)
{
    moe_tensor view;
    if (!CHECK(moe_file_tensor(file, name, &view) == MOE_OK, "%s", moe_last_error())) {
        return;
    }
    const int32_t *want = view.data;
    const size_t count = (size_t)view.shape[0];
    moem_text decoded = decode(t, want, count);
    if (text == NULL) {
        text = decoded.bytes;
        size = decoded.size;
    }
    moem_ids ids = encode(t, text, size);
    CHECK(view.dtype == MOE_I32 && ids.count == count &&
              memcmp(ids.ids, want, count * sizeof want[0]) == 0,
          "%s: %zu ids, expected %zu", name, ids.count, count);
    CHECK(decoded.size == size && memcmp(decoded.bytes, text, size) == 0, "%s: decoded", name);
    moem_ids_free(&ids);
    moem_text_free(&decoded);
}

static void check_round_trips(const moem_tokenizer *t, int texts)
{
    char text[160];
    for (int i = 0; i < texts; i++) {
        const size_t size = random_text(text);
        moem_ids ids = encode(t, text, size);
        moem_text back = decode(t, ids.ids, ids.count);
        CHECK(back.size == size && (size == 0 || memcmp(back.bytes, text, size) == 0),
              "text %d: %zu bytes came back as %zu", i, size, back.size);
        moem_ids_free(&ids);
        moem_text_free(&back);
    }
}

static void check_tiny(const char *folder)
{
    char path[512];
    size_t size = 0;
    moem_tokenizer *t = NULL;
    moe_file *file = NULL;
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    char *json = read_file(path, &size);
    CHECK(moem_tokenizer_create(json, size, path, &t) == MOE_OK, "%s", moe_last_error());
    free(json);
    (void)snprintf(path, sizeof path, "%s/reference.safetensors", folder);
    CHECK(moe_file_open(path, MOE_FILE_DEFAULT, &file) == MOE_OK, "%s", moe_last_error());
    (void)snprintf(path, sizeof path, "%s/val.txt", folder);
    char *text = read_file(path, &size);
    if (t != NULL && file != NULL) {
        check_reference(t, file, "val.ids", text, size);
        check_reference(t, file, "p0.ids", NULL, 0);
        check_reference(t, file, "p1.ids", NULL, 0);
        check_round_trips(t, 5000);
        CHECK(moem_tokenizer_vocab(t) == 4096, "%d ids", moem_tokenizer_vocab(t));
        CHECK(moem_tokenizer_id(t, "<|endoftext|>") == 0, "end of text");
        CHECK(moem_tokenizer_special(t, 0) && !moem_tokenizer_special(t, 1), "special");
        CHECK(moem_tokenizer_id(t, "\xC4\xA0t") > 0 && moem_tokenizer_id(t, " t") == -1,
              "spelling");
    }
    free(text);
    moe_file_close(file);
    moem_tokenizer_destroy(t);
}

// ---- What the tokenizers library gives ----------------------------------------------------------

static void compare_ids(const moem_tokenizer *t, const char *run, const json_t *text,
                        const json_t *want)
{
    moem_ids ids = encode(t, json_string_value(text), json_string_length(text));
    bool same = ids.count == json_array_size(want);
    for (size_t i = 0; same && i < ids.count; i++) {
        same = ids.ids[i] == json_integer_value(json_array_get(want, i));
    }
    if (!same) {
        char *shown = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        char *expected = json_dumps(want, 0);
        CHECK(same, "%s: %s: %zu ids, expected %s", run, shown, ids.count, expected);
        for (size_t i = 0; i < ids.count; i++) {
            (void)printf("%d ", ids.ids[i]);
        }
        (void)printf("\n");
        free(shown);
        free(expected);
    }
    CHECK(same, "%s", run);
    moem_ids_free(&ids);
}

// Merges as "a b".
static json_t *as_strings(const json_t *merges)
{
    json_t *list = json_array();
    size_t i = 0;
    json_t *pair = NULL;
    json_array_foreach(merges, i, pair)
    {
        json_array_append_new(list,
                              json_sprintf("%s %s", json_string_value(json_array_get(pair, 0)),
                                           json_string_value(json_array_get(pair, 1))));
    }
    return list;
}

static json_t *forms;

static json_t *load_forms(const char *path)
{
    json_error_t error;
    // Texts hold U+0000, which a tokenizer.json may not.
    json_t *root = json_load_file(path, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        (void)printf("%s: %s\n", path, error.text);
        exit(1);
    }
    return root;
}

// The tokenizer of a run, merges as pairs and as strings by turns.
static json_t *form(size_t run)
{
    json_t *root = json_deep_copy(json_object_get(forms, "base"));
    json_t *model = json_object_get(root, "model");
    const json_t *r = json_array_get(json_object_get(forms, "runs"), run);
    json_object_set(model, "ignore_merges", json_object_get(r, "ignore_merges"));
    json_object_set(root, "pre_tokenizer", json_object_get(r, "pre_tokenizer"));
    if (run % 2 == 1) {
        json_object_set_new(model, "merges", as_strings(json_object_get(model, "merges")));
    }
    return root;
}

static void check_golden(void)
{
    const json_t *texts = json_object_get(forms, "texts");
    const json_t *runs = json_object_get(forms, "runs");
    for (size_t r = 0; r < json_array_size(runs); r++) {
        const json_t *run = json_array_get(runs, r);
        const json_t *ids = json_object_get(run, "ids");
        const size_t step = (size_t)json_integer_value(json_object_get(run, "step"));
        json_t *root = form(r);
        moem_tokenizer *t = create(root);
        CHECK(json_array_size(ids) >= 40, "%zu texts", json_array_size(ids));
        for (size_t i = 0; t != NULL && i < json_array_size(ids); i++) {
            compare_ids(t, json_string_value(json_object_get(run, "name")),
                        json_array_get(texts, i * step), json_array_get(ids, i));
        }
        moem_tokenizer_destroy(t);
        json_decref(root);
    }
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

static const char small[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    "{\"id\":6,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true},"
    "{\"id\":7,\"content\":\"<y>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":true,\"special\":false}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s\"},\"behavior\":\"Isolated\",\"invert\":"
    "false},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]"
    "},"
    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
    "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":null,\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"ignore_merges\":false,"
    "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5},"
    "\"merges\":[[\"b\",\"c\"],[\"a\",\"b\"],[\"ab\",\"c\"]]}}";

static json_t *small_json(void)
{
    return json_loads(small, 0, NULL);
}

// Sets the value at a path such as "model.vocab.a"; NULL removes it.
static void set_path(json_t *root, const char *path, json_t *value)
{
    char key[64];
    json_t *at = root;
    for (const char *dot = strchr(path, '.'); dot != NULL; dot = strchr(path, '.')) {
        (void)snprintf(key, sizeof key, "%.*s", (int)(dot - path), path);
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
        path = dot + 1;
    }
    const int rc = value == NULL       ? json_object_del(at, path)
                   : json_is_array(at) ? json_array_set_new(at, (size_t)atoi(path), value)
                                       : json_object_set_new(at, path, value);
    CHECK(rc == 0, "no such path: %s", path);
}

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
    moem_tokenizer_destroy(create(root));
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
    moem_tokenizer_destroy(create(root));
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

// ---- Encoding: bad texts, hostile texts ---------------------------------------------------------

static void check_bad_text(void)
{
    static const struct {
        const char *text;
        size_t size;
        moe_status status;
        const char *message;
    } bad[] = {
        {"ab\xFF", 3, MOE_E_VALUE, "the text is not UTF-8 at byte 2 (0xff)"},
        {"a\xC0\x80", 3, MOE_E_VALUE, "byte 1 (0xc0)"},
        {"\xED\xA0\x80", 3, MOE_E_VALUE, "byte 0 (0xed)"},
        {"\xE0\x80\x80", 3, MOE_E_VALUE, "byte 0 (0xe0)"},
        {"\xF0\x80\x80\x80", 4, MOE_E_VALUE, "byte 0 (0xf0)"},
        {"\xF4\x90\x80\x80", 4, MOE_E_VALUE, "byte 0 (0xf4)"},
        {"\xF5\x80\x80\x80", 4, MOE_E_VALUE, "byte 0 (0xf5)"},
        {"c\xE2\x82", 3, MOE_E_VALUE, "byte 1 (0xe2)"},
        {"abd", 3, MOE_E_NOT_FOUND, "the byte 0x64, for which the vocabulary has no token"},
        {"<x>a\0", 5, MOE_E_NOT_FOUND, "the byte 0x00"},
        {"", (64U << 20) + 1, MOE_E_LIMIT, "a text of 67108865 bytes, the limit is 67108864"},
    };
    json_t *root = small_json();
    moem_tokenizer *t = create(root);
    moem_ids ids = {.ids = NULL};
    CHECK(moem_tokenizer_encode(t, "abc<x>bc<y>", 11, &ids) == MOE_OK, "%s", moe_last_error());
    static const int32_t want[] = {0, 4, 6, 4, 7};
    for (size_t i = 0; i < COUNT(bad); i++) {
        CHECK(moem_tokenizer_encode(t, bad[i].text, bad[i].size, &ids) == bad[i].status, "%zu: %s",
              i, moe_last_error());
        CHECK(strstr(moe_last_error(), bad[i].message) != NULL, "%zu: %s", i, moe_last_error());
        CHECK(ids.count == COUNT(want) && memcmp(ids.ids, want, sizeof want) == 0, "%zu: touched",
              i);
    }
    const char *bytes = NULL;
    size_t size = 0;
    CHECK(moem_tokenizer_bytes(t, 8, &bytes, &size) == MOE_E_NOT_FOUND &&
              moem_tokenizer_bytes(t, -1, &bytes, &size) == MOE_E_NOT_FOUND,
          "ids outside");
    CHECK(moem_tokenizer_encode(NULL, "", 0, &ids) == MOE_E_ARGUMENT, "NULL");
    CHECK(moem_tokenizer_encode(t, NULL, 0, &ids) == MOE_OK, "no text");
    CHECK(!moem_tokenizer_special(t, 8) && !moem_tokenizer_special(t, 7), "special");
    moem_tokenizer_destroy(t);

    // An id that no token has, tokens whose spelling stands for no bytes.
    set_path(root, "model.vocab.\xE2\x82\xAC", json_integer(20));
    t = create(root);
    CHECK(moem_tokenizer_vocab(t) == 21 && moem_tokenizer_id(t, "\xE2\x82\xAC") == 20, "verbatim");
    CHECK(moem_tokenizer_bytes(t, 20, &bytes, &size) == MOE_OK && size == 3, "its bytes");
    CHECK(moem_tokenizer_bytes(t, 19, &bytes, &size) == MOE_E_NOT_FOUND, "unused id");
    CHECK(moem_tokenizer_encode(t, "\xE2\x82\xAC", 3, &ids) == MOE_E_NOT_FOUND,
          "no text becomes it");
    moem_tokenizer_destroy(t);
    moem_ids_free(&ids);
    json_decref(root);
}

// A megabyte of one unit: time and room grow with n log n. What is quadratic takes hours.
static void check_hostile_text(const moem_tokenizer *t, const char *unit)
{
    const size_t size = 1U << 20;
    const size_t length = strlen(unit);
    char *text = malloc(size);
    if (text == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < size; i++) {
        text[i] = i < size - size % length ? unit[i % length] : 'a';
    }
    const clock_t start = clock();
    moem_ids ids = encode(t, text, size);
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    moem_text back = decode(t, ids.ids, ids.count);
    CHECK(back.size == size && memcmp(back.bytes, text, size) == 0, "came back otherwise");
    CHECK(seconds < 20, "%.1f s", seconds);
    (void)printf("1 MiB of \"%s\": %.3f s, %zu ids\n", strcmp(unit, "\n") == 0 ? "\\n" : unit,
                 seconds, ids.count);
    moem_ids_free(&ids);
    moem_text_free(&back);
    free(text);
}

// a, aa, aaaa, ... 2^15 of them: a megabyte without a split is merged over and over.
static void check_hostile_merges(void)
{
    static char run[(1U << 15) + 1];
    json_t *root = small_json();
    json_t *vocab = json_object();
    json_t *merges = json_array();
    memset(run, 'a', sizeof run - 1);
    for (size_t n = 0; n <= 15; n++) {
        json_object_set_new(vocab, run + sizeof run - 1 - (1U << n), json_integer((json_int_t)n));
        if (n > 0) {
            json_t *half = json_string(run + sizeof run - 1 - (1U << (n - 1)));
            json_array_append_new(merges, json_pack("[O, o]", half, half));
        }
    }
    set_path(root, "model.vocab", vocab);
    set_path(root, "model.merges", merges);
    set_path(root, "added_tokens", json_array());
    moem_tokenizer *t = create(root);
    check_hostile_text(t, "a");
    moem_ids ids = encode(t, run, sizeof run - 2);
    CHECK(ids.count == 15 && ids.ids[0] == 14 && ids.ids[14] == 0, "%zu ids", ids.count);
    moem_ids_free(&ids);
    moem_tokenizer_destroy(t);
    json_decref(root);
}

static void check_hostile(void)
{
    static const char *const units[] = {"a", "A",  "the",          " ",    "\n",  "!",
                                        "7", "a1", "\xE4\xB8\xAD", "<|en", "xX'S"};
    json_t *root = form(0);
    moem_tokenizer *t = create(root);
    for (size_t i = 0; i < COUNT(units); i++) {
        check_hostile_text(t, units[i]);
    }
    moem_tokenizer_destroy(t);
    check_hostile_merges();

    // Patterns that are quadratic or worse end with a message.
    static const char *const slow[] = {"a+b",  "(a+)+b",   "(?:a|aa)+b",
                                       "a+?b", "(?=a+b)a", "a{1,64}a{1,64}a{1,64}b"};
    char *text = malloc(1U << 18);
    if (text == NULL) {
        exit(1);
    }
    // Ends in a b that no match reaches, lest PCRE2 see at once that there is none.
    memset(text, 'a', 1U << 18);
    memcpy(text + (1U << 18) - 2, "cb", 2);
    for (size_t i = 0; i < COUNT(slow); i++) {
        moem_ids ids = {.ids = NULL};
        set_path(root, "pre_tokenizer.pretokenizers.0.pattern.Regex", json_string(slow[i]));
        t = create(root);
        const clock_t start = clock();
        CHECK(moem_tokenizer_encode(t, text, 1U << 18, &ids) == MOE_E_LIMIT, "%s", slow[i]);
        const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        CHECK(seconds < 20, "%s: %.1f s", slow[i], seconds);
        (void)printf("%s: %.3f s: %s\n", slow[i], seconds, moe_last_error());
        CHECK(ids.count == 0, "%s: %zu ids", slow[i], ids.count);
        moem_ids_free(&ids);
        moem_tokenizer_destroy(t);
    }
    free(text);
    json_decref(root);
}

// ---- Streams ------------------------------------------------------------------------------------

static void check_stream(void)
{
    static const struct {
        const char *in;
        const char *out;
    } cases[] = {
        {"", ""},
        {"abc", "abc"},
        {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z"},
        {"\x80"
         "a",
         "\xEF\xBF\xBD"
         "a"},
        {"\xFF\xFE", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xE2\x82", "\xEF\xBF\xBD"},
        {"\xE2\x82"
         "a",
         "\xEF\xBF\xBD"
         "a"},
        {"\xF0\x9F\x98\xC3\xA9", "\xEF\xBF\xBD\xC3\xA9"},
        {"\xE2\xE2\x82\xAC", "\xEF\xBF\xBD\xE2\x82\xAC"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xC3\xFF", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xF0\x9F\x98", "\xEF\xBF\xBD"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const size_t size = strlen(cases[i].in);
        for (size_t part = 1; part <= size + 1; part++) {
            moem_stream stream = {.count = 0};
            moem_text out = {.bytes = NULL};
            for (size_t at = 0; at < size; at += part) {
                const size_t n = size - at < part ? size - at : part;
                CHECK(moem_stream_push(&stream, cases[i].in + at, n, &out) == MOE_OK, "push");
            }
            CHECK(moem_stream_finish(&stream, &out) == MOE_OK && stream.count == 0, "finish");
            CHECK(out.size == strlen(cases[i].out) &&
                      (out.size == 0 || memcmp(out.bytes, cases[i].out, out.size) == 0),
                  "case %zu in parts of %zu: %zu bytes", i, part, out.size);
            moem_text_free(&out);
        }
    }
    // Nothing incomplete is shown, nothing complete is held.
    moem_stream stream = {.count = 0};
    moem_text out = {.bytes = NULL};
    CHECK(moem_stream_push(&stream, "a\xF0\x9F", 3, &out) == MOE_OK && out.size == 1, "%zu",
          out.size);
    CHECK(moem_stream_push(&stream, "\x98", 1, &out) == MOE_OK && out.size == 1, "%zu", out.size);
    CHECK(moem_stream_push(&stream, "\x80", 1, &out) == MOE_OK && out.size == 5, "%zu", out.size);
    moem_text_free(&out);
}

// ---- Memory -------------------------------------------------------------------------------------

static void check_no_memory(void)
{
    json_t *root = form(5);
    char *text = json_dumps(root, 0);
    moem_tokenizer *t = NULL;
    long created = 0;
    moe_status status = MOE_E_NO_MEMORY;
    for (; status == MOE_E_NO_MEMORY && created < 100000; created++) {
        until_failure = created;
        status = moem_tokenizer_create(text, strlen(text), "f", &t);
        CHECK((status == MOE_OK) == (t != NULL), "allocation %ld", created);
    }
    until_failure = -1;
    CHECK(status == MOE_OK && created > 5, "%s after %ld", moe_last_error(), created);
    moem_ids ids = {.ids = NULL};
    CHECK(moem_ids_push(&ids, 7) == MOE_OK, "push");
    static const char prompt[] =
        "The quick <|start|> brown zebra 12345 and the other one, of them; "
        "all the others were there too, as they said in those days.";
    long encoded = 0;
    for (status = MOE_E_NO_MEMORY; t != NULL && status == MOE_E_NO_MEMORY && encoded < 1000;
         encoded++) {
        until_failure = encoded;
        status = moem_tokenizer_encode(t, prompt, sizeof prompt - 1, &ids);
        until_failure = -1;
        CHECK(status == MOE_OK || (ids.count == 1 && ids.ids[0] == 7), "allocation %ld", encoded);
    }
    CHECK(status == MOE_OK && encoded > 3, "%s after %ld", moe_last_error(), encoded);
    (void)printf("creation makes %ld allocations of its own, encoding %ld\n", created - 1,
                 encoded - 1);
    moem_ids_free(&ids);
    moem_tokenizer_destroy(t);
    free(text);
    json_decref(root);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        (void)printf("usage: test_tokenizer MODEL_FOLDER FORMS_JSON\n");
        return 2;
    }
    forms = load_forms(argv[2]);
    check_tiny(argv[1]);
    check_golden();
    check_refusals();
    check_limits();
    check_patterns();
    check_bad_text();
    check_hostile();
    check_stream();
    check_no_memory();
    json_decref(forms);
    return test_summary();
}
