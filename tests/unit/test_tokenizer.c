// SPDX-License-Identifier: Apache-2.0
// The tokenizer: ids of the tiny model's reference and of the tokenizers library, byte for byte;
// what encodes decodes; bad and hostile texts, hostile patterns; failing allocations.
//   test_tokenizer models/tiny-gpt-oss tests/golden/tokenizer_forms.json
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/text.h"
#include "model/tokenizer.h"
#include "moe/io.h"
#include "unit/test.h"
#include "unit/tokenizer_small.h"

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
    check_bad_text();
    check_hostile();
    check_stream();
    check_no_memory();
    json_decref(forms);
    return test_summary();
}
