// SPDX-License-Identifier: Apache-2.0
// moem_tokenizer_create on any bytes up to a NUL, then moem_tokenizer_encode on those behind it:
// ids are of the vocabulary, encoding twice gives the same, and where no setting drops or adds text
// the ids' bytes are the text. Ids of a text are those of its merges, done one by one the slow way.
#include <jansson.h>
#include <stdbool.h>
#include <string.h>

#include "fuzz.h"
#include "model/text.h"
#include "model/tokenizer.h"

static bool is(const json_t *object, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL && strcmp(text, value) == 0;
}

// Whether the bytes of the ids are those of the text: nothing stripped, removed or put before, and
// no added token that is also spelled otherwise in the vocabulary.
static bool keeps_text(const json_t *root)
{
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    const json_t *list = json_object_get(pre, "pretokenizers");
    const size_t parts = json_array_size(list);
    const json_t *last = is(pre, "type", "ByteLevel") ? pre : json_array_get(list, parts - 1);
    bool keeps = !json_is_true(json_object_get(last, "add_prefix_space"));
    for (size_t i = 0; i + 1 < parts; i++) {
        keeps = keeps && !is(json_array_get(list, i), "behavior", "Removed");
    }
    size_t i = 0;
    json_t *added = NULL;
    json_array_foreach(json_object_get(root, "added_tokens"), i, added)
    {
        const json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab");
        const char *content = json_string_value(json_object_get(added, "content"));
        keeps = keeps && !json_is_true(json_object_get(added, "lstrip")) &&
                !json_is_true(json_object_get(added, "rstrip")) &&
                json_object_get(vocab, content) == NULL;
    }
    return keeps;
}

// Whether all text is one piece, and merges alone decide.
static bool only_merges(const json_t *root)
{
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    return is(pre, "type", "Sequence") &&
           json_array_size(json_object_get(pre, "pretokenizers")) == 1 &&
           json_is_false(json_object_get(json_array_get(json_object_get(pre, "pretokenizers"), 0),
                                         "use_regex")) &&
           json_array_size(json_object_get(root, "added_tokens")) == 0 &&
           !json_is_true(json_object_get(json_object_get(root, "model"), "ignore_merges"));
}

static bool merge_is(const json_t *merge, const moem_tokenizer *t, int32_t left, int32_t right,
                     int32_t *result)
{
    char both[512];
    const char *a = json_string_value(json_array_get(merge, 0));
    const char *b = json_string_value(json_array_get(merge, 1));
    if (a == NULL || b == NULL || strlen(a) + strlen(b) >= sizeof both ||
        moem_tokenizer_id(t, a) != left || moem_tokenizer_id(t, b) != right) {
        return false;
    }
    (void)snprintf(both, sizeof both, "%s%s", a, b);
    *result = moem_tokenizer_id(t, both);
    return true;
}

// The first merge of the list that is possible anywhere, at its leftmost place; until there is
// none.
static void check_merges(const moem_tokenizer *t, const json_t *merges, const char *text,
                         size_t size, const moem_ids *ids)
{
    int32_t slow[64];
    size_t count = 0;
    bool done = size > 64;
    for (size_t i = 0; i < size && !done; i++) {
        moem_ids one = {.ids = NULL};
        done =
            (unsigned char)text[i] >= 0x80 || moem_tokenizer_encode(t, text + i, 1, &one) != MOE_OK;
        slow[count++] = done ? 0 : one.ids[0];
        moem_ids_free(&one);
    }
    if (done) {
        return;
    }
    for (size_t m = 0; m < json_array_size(merges); m++) {
        for (size_t i = 0; i + 1 < count; i++) {
            if (merge_is(json_array_get(merges, m), t, slow[i], slow[i + 1], &slow[i])) {
                memmove(&slow[i + 1], &slow[i + 2], (count - i - 2) * sizeof slow[0]);
                count--;
                m = (size_t)-1;
                break;
            }
        }
    }
    FUZZ_REQUIRE(ids->count == count &&
                 (count == 0 || memcmp(ids->ids, slow, count * sizeof slow[0]) == 0));
}

static void check_ids(const moem_tokenizer *t, const moem_ids *ids, const char *text, size_t size,
                      bool keeps)
{
    moem_text all = {.bytes = NULL};
    moem_text shown = {.bytes = NULL};
    moem_stream stream = {.count = 0};
    for (size_t i = 0; i < ids->count; i++) {
        const char *bytes = NULL;
        size_t length = 0;
        FUZZ_REQUIRE(ids->ids[i] >= 0 && ids->ids[i] < moem_tokenizer_vocab(t));
        FUZZ_REQUIRE(moem_tokenizer_bytes(t, ids->ids[i], &bytes, &length) == MOE_OK);
        FUZZ_REQUIRE(moem_text_append(&all, bytes, length) == MOE_OK);
        FUZZ_REQUIRE(moem_stream_push(&stream, bytes, length, &shown) == MOE_OK);
    }
    FUZZ_REQUIRE(moem_stream_finish(&stream, &shown) == MOE_OK);
    if (keeps && size > 0) {
        FUZZ_REQUIRE(all.size == size && memcmp(all.bytes, text, size) == 0);
        FUZZ_REQUIRE(shown.size == size && memcmp(shown.bytes, text, size) == 0);
    }
    for (size_t at = 0; at < shown.size;) {
        const int length = moem_utf8_next(shown.bytes + at, shown.size - at);
        FUZZ_REQUIRE(length > 0);
        at += (size_t)length;
    }
    moem_text_free(&all);
    moem_text_free(&shown);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size > 0 ? memchr(data, '\0', size) : NULL;
    const size_t json_size = nul != NULL ? (size_t)(nul - data) : size;
    const char *text = (const char *)data + json_size + (nul != NULL);
    const size_t text_size = size - json_size - (nul != NULL);
    moem_tokenizer *t = NULL;
    const moe_status status = moem_tokenizer_create((const char *)data, json_size, "fuzz", &t);
    FUZZ_REQUIRE((status == MOE_OK) == (t != NULL));
    FUZZ_REQUIRE(status == MOE_OK || status == MOE_E_MALFORMED || status == MOE_E_LIMIT ||
                 status == MOE_E_UNSUPPORTED);
    if (t != NULL) {
        json_t *root = json_loadb((const char *)data, json_size, 0, NULL);
        const json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
        moem_ids ids = {.ids = NULL};
        moem_ids again = {.ids = NULL};
        const moe_status first = moem_tokenizer_encode(t, text, text_size, &ids);
        FUZZ_REQUIRE(first == MOE_OK || first == MOE_E_VALUE || first == MOE_E_NOT_FOUND ||
                     first == MOE_E_LIMIT);
        FUZZ_REQUIRE(moem_tokenizer_encode(t, text, text_size, &again) == first);
        FUZZ_REQUIRE(first == MOE_OK || ids.count == 0);
        FUZZ_REQUIRE(
            ids.count == again.count &&
            (ids.count == 0 || memcmp(ids.ids, again.ids, ids.count * sizeof ids.ids[0]) == 0));
        check_ids(t, &ids, text, first == MOE_OK ? text_size : 0, keeps_text(root));
        if (first == MOE_OK && only_merges(root) && keeps_text(root) &&
            !json_is_string(json_array_get(merges, 0))) {
            check_merges(t, merges, text, text_size, &ids);
        }
        moem_ids_free(&ids);
        moem_ids_free(&again);
        json_decref(root);
    }
    moem_tokenizer_destroy(t);
    return 0;
}
