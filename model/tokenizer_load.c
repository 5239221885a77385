// SPDX-License-Identifier: Apache-2.0
// From tokenizer.json to a tokenizer. Every member of every object that is read is known or the
// file is refused: a setting that nobody looked at would change ids without a word.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

struct load {
    const char *label;
    moem_tokenizer *t;
    const json_t *vocab;
    const json_t *added;
    moem_text scratch;
};

// `"...", ` before each message of this file.
#define FAIL(load, code, format, ...)                                                              \
    moe_fail((code), "moem_tokenizer_create: %s: " format, (load)->label, __VA_ARGS__)
#define REQUIRE(load, condition, code, ...)                                                        \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            (void)FAIL((load), (code), __VA_ARGS__);                                               \
            return (code);                                                                         \
        }                                                                                          \
    } while (0)

// What a value is, for messages: `"abc"`, `12`, `null`, `an object`.
static struct moem_quote describe(const json_t *value)
{
    char *text = json_is_object(value)  ? NULL
                 : json_is_array(value) ? NULL
                                        : json_dumps(value, JSON_ENCODE_ANY);
    if (text == NULL) {
        const char *kind = value == NULL           ? "nothing"
                           : json_is_object(value) ? "an object"
                           : json_is_array(value)  ? "an array"
                                                   : "a value";
        return moem_quote(kind, strlen(kind));
    }
    const size_t size = strlen(text);
    const bool quoted = size >= 2 && text[0] == '"';
    const struct moem_quote quote =
        quoted ? moem_quote(text + 1, size - 2) : moem_quote(text, size);
    free(text);
    return quote;
}

static struct moem_quote quote_text(const char *text)
{
    return moem_quote(text, strlen(text));
}

// -- JSON ---------------------------------------------------------------------------------------

// What jansson does not bound: one value of a few bytes costs it up to 250.
static moe_status count_values(const struct load *l, const char *text, size_t size)
{
    size_t values = 0;
    bool in_string = false;
    for (size_t at = 0; at < size; at++) {
        const char c = text[at];
        if (in_string && c == '\\') {
            at++;
        } else if (c == '"') {
            in_string = !in_string;
        } else if (!in_string) {
            values += c == '[' || c == '{' || c == ',' || c == ':';
        }
        REQUIRE(l, c != '\0', MOE_E_MALFORMED, "byte %zu: a NUL", at);
        REQUIRE(l, values <= MOEM_MAX_JSON_VALUES, MOE_E_LIMIT,
                "byte %zu: too many values, the limit is %u", at, MOEM_MAX_JSON_VALUES);
    }
    return MOE_OK;
}

static moe_status parse(const struct load *l, const char *text, size_t size, json_t **out)
{
    REQUIRE(l, size <= MOEM_MAX_JSON, MOE_E_LIMIT, "%zu bytes, the limit is %u", size,
            MOEM_MAX_JSON);
    MOEM_TRY(count_values(l, text, size));
    json_error_t error;
    memset(&error, 0, sizeof error);
    json_t *root = json_loadb(size > 0 ? text : "", size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        return FAIL(l, error.text[0] == '\0' ? MOE_E_NO_MEMORY : MOE_E_MALFORMED, "byte %d: %s",
                    error.position,
                    error.text[0] == '\0' ? "out of memory" : quote_text(error.text).text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return FAIL(l, MOE_E_MALFORMED, "%s", "an array, expected an object");
    }
    *out = root;
    return MOE_OK;
}

// Refuses an object with members besides `known` (a list that ends in NULL); those of value null
// say nothing and may be there.
static moe_status only(const struct load *l, const char *where, const json_t *object,
                       const char *const *known)
{
    const char *key = NULL;
    json_t *value = NULL;
    REQUIRE(l, json_is_object(object), MOE_E_MALFORMED, "%s is %s, expected an object", where,
            describe(object).text);
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        size_t i = 0;
        while (known[i] != NULL && strcmp(known[i], key) != 0) {
            i++;
        }
        REQUIRE(l, known[i] != NULL || json_is_null(value), MOE_E_UNSUPPORTED,
                "%s.%s = %s is not supported", where, quote_text(key).text, describe(value).text);
    }
    return MOE_OK;
}

static moe_status get_bool(const struct load *l, const char *where, const json_t *object,
                           const char *key, bool *out)
{
    const json_t *value = json_object_get(object, key);
    REQUIRE(l, json_is_boolean(value), MOE_E_MALFORMED, "%s.%s is %s, expected true or false",
            where, key, describe(value).text);
    *out = json_is_true(value);
    return MOE_OK;
}

// A boolean that may be left out.
static moe_status get_bool_or(const struct load *l, const char *where, const json_t *object,
                              const char *key, bool without, bool *out)
{
    *out = without;
    return json_object_get(object, key) != NULL ? get_bool(l, where, object, key, out) : MOE_OK;
}

static moe_status get_string(const struct load *l, const char *where, const json_t *object,
                             const char *key, const char **out)
{
    const json_t *value = json_object_get(object, key);
    REQUIRE(l, json_is_string(value), MOE_E_MALFORMED, "%s.%s is %s, expected a string", where, key,
            describe(value).text);
    *out = json_string_value(value);
    return MOE_OK;
}

static moe_status get_array(const struct load *l, const char *where, const json_t *object,
                            const char *key, const json_t **out)
{
    *out = json_object_get(object, key);
    REQUIRE(l, json_is_array(*out), MOE_E_MALFORMED, "%s.%s is %s, expected an array", where, key,
            describe(*out).text);
    return MOE_OK;
}

// A member that must be absent or null: what it would do is not done here.
static moe_status none(const struct load *l, const json_t *root, const char *key)
{
    const json_t *value = json_object_get(root, key);
    const json_t *type = json_object_get(value, "type");
    REQUIRE(l, value == NULL || json_is_null(value), MOE_E_UNSUPPORTED, "%s %s is not supported",
            key, describe(type != NULL ? type : value).text);
    return MOE_OK;
}

static moe_status none_or_byte_level(const struct load *l, const json_t *root, const char *key)
{
    static const char *const known[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                        NULL};
    const json_t *value = json_object_get(root, key);
    const char *type = NULL;
    if (value == NULL || json_is_null(value)) {
        return MOE_OK;
    }
    MOEM_TRY(get_string(l, key, value, "type", &type));
    REQUIRE(l, strcmp(type, "ByteLevel") == 0, MOE_E_UNSUPPORTED,
            "%s %s is not supported, ByteLevel is", key, quote_text(type).text);
    return only(l, key, value, known);
}

// -- Vocabulary ---------------------------------------------------------------------------------

static moe_status get_id(const struct load *l, const char *token, const json_t *value, int32_t *out)
{
    const json_int_t id = json_integer_value(value);
    REQUIRE(l, json_is_integer(value), MOE_E_MALFORMED,
            "the id of \"%s\" is %s, expected an integer", quote_text(token).text,
            describe(value).text);
    REQUIRE(l, id >= 0, MOE_E_MALFORMED, "the id of \"%s\" is %lld, less than 0",
            quote_text(token).text, (long long)id);
    REQUIRE(l, id <= MOEM_MAX_ID, MOE_E_LIMIT, "the id of \"%s\" is %lld, the limit is %d",
            quote_text(token).text, (long long)id, MOEM_MAX_ID);
    *out = (int32_t)id;
    return MOE_OK;
}

// The room was measured.
static struct moem_bytes keep_bytes(struct load *l, const char *bytes, size_t size)
{
    char *at = l->t->blob + l->t->blob_size;
    if (size > 0) { // a token may be empty, and bytes then NULL
        memcpy(at, bytes, size);
    }
    l->t->blob_size += size;
    return (struct moem_bytes){.text = at, .size = size};
}

// The largest id of all, and room for every token.
static moe_status measure(struct load *l)
{
    moem_tokenizer *t = l->t;
    int32_t largest = -1;
    int32_t id = 0;
    size_t bytes = 0;
    const char *key = NULL;
    json_t *value = NULL;
    size_t i = 0;
    json_object_foreach((json_t *)(uintptr_t)l->vocab, key, value)
    {
        MOEM_TRY(get_id(l, key, value, &id));
        largest = id > largest ? id : largest;
        bytes += strlen(key);
    }
    json_array_foreach(l->added, i, value)
    {
        MOEM_TRY(get_string(l, "added_tokens[]", value, "content", &key));
        MOEM_TRY(get_id(l, key, json_object_get(value, "id"), &id));
        largest = id > largest ? id : largest;
        bytes += strlen(key);
    }
    REQUIRE(l, largest >= 0, MOE_E_MALFORMED, "%s", "there is no token");
    t->vocab = largest + 1;
    t->blob = malloc(bytes + 1);
    t->tokens = calloc((size_t)t->vocab, sizeof t->tokens[0]);
    t->entries = calloc(json_object_size(l->vocab) + 1, sizeof t->entries[0]);
    t->pairs_of = calloc((size_t)t->vocab + 1, sizeof t->pairs_of[0]);
    t->added[0] = calloc(json_array_size(l->added) + 1, sizeof t->added[0][0]);
    t->added[1] = calloc(json_array_size(l->added) + 1, sizeof t->added[1][0]);
    REQUIRE(l,
            t->blob != NULL && t->tokens != NULL && t->entries != NULL && t->pairs_of != NULL &&
                t->added[0] != NULL && t->added[1] != NULL,
            MOE_E_NO_MEMORY, "no memory for %d tokens", t->vocab);
    return MOE_OK;
}

static int compare_entries(const void *a, const void *b)
{
    const struct moem_entry *x = a;
    const struct moem_entry *y = b;
    return x->verbatim != y->verbatim ? (int)x->verbatim - (int)y->verbatim
                                      : moem_bytes_compare(x->bytes, y->bytes);
}

static moe_status load_vocab(struct load *l)
{
    moem_tokenizer *t = l->t;
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)(uintptr_t)l->vocab, key, value)
    {
        struct moem_entry *entry = &t->entries[t->entry_count++];
        entry->id = (int32_t)json_integer_value(value);
        struct moem_token *token = &t->tokens[entry->id];
        REQUIRE(l, token->flags == 0, MOE_E_MALFORMED,
                "the id %d is that of two tokens, one is \"%s\"", entry->id, quote_text(key).text);
        // No byte is spelled by less than one.
        const size_t size = strlen(key);
        l->scratch.size = 0;
        MOEM_TRY(moem_text_append(&l->scratch, key, size));
        const ptrdiff_t length = moem_unspell(key, size, l->scratch.bytes);
        entry->verbatim = length < 0;
        entry->bytes =
            length < 0 ? keep_bytes(l, key, size) : keep_bytes(l, l->scratch.bytes, (size_t)length);
        t->spelled_count += length >= 0;
        *token = (struct moem_token){.bytes = entry->bytes, .flags = MOEM_KNOWN};
    }
    if (t->entry_count > 0) {
        qsort(t->entries, t->entry_count, sizeof t->entries[0], compare_entries);
    }
    for (int i = 0; i < 256; i++) {
        const char byte = (char)i;
        const struct moem_entry *entry =
            moem_find_entry(t, (struct moem_bytes){.text = &byte, .size = 1}, false);
        t->byte_ids[i] = entry != NULL ? entry->id : -1;
    }
    return MOE_OK;
}

// -- Merges -------------------------------------------------------------------------------------

// A pair while it is sorted.
struct ordered {
    int32_t left;
    struct moem_pair pair;
};

static int compare_ordered(const void *a, const void *b)
{
    const struct ordered *x = a;
    const struct ordered *y = b;
    const bool same = x->left == y->left;
    const int32_t p = same ? x->pair.right : x->left;
    const int32_t q = same ? y->pair.right : y->left;
    return (p > q) - (p < q);
}

static moe_status known_token(const struct load *l, size_t rank, const char *token, int32_t *out)
{
    const json_t *id = json_object_get(l->vocab, token);
    REQUIRE(l, id != NULL, MOE_E_MALFORMED,
            "merge %zu names \"%s\", which is not in the vocabulary", rank, quote_text(token).text);
    *out = (int32_t)json_integer_value(id);
    return MOE_OK;
}

// One merge, ["a", "b"] or "a b"; its result is "ab".
static moe_status load_merge(struct load *l, size_t rank, const json_t *value)
{
    struct moem_merge *merge = &l->t->merges[rank];
    const char *left = json_string_value(json_array_get(value, 0));
    const char *right = json_string_value(json_array_get(value, 1));
    l->scratch.size = 0;
    if (json_is_string(value)) {
        MOEM_TRY(
            moem_text_append(&l->scratch, json_string_value(value), json_string_length(value) + 1));
        char *space = strchr(l->scratch.bytes, ' ');
        if (space != NULL && strchr(space + 1, ' ') == NULL) {
            *space = '\0';
            left = l->scratch.bytes;
            right = space + 1;
        }
    }
    REQUIRE(l,
            left != NULL && right != NULL && (json_is_string(value) || json_array_size(value) == 2),
            MOE_E_MALFORMED, "merge %zu is %s, expected two tokens as [\"a\", \"b\"] or \"a b\"",
            rank, describe(value).text);
    MOEM_TRY(known_token(l, rank, left, &merge->left));
    MOEM_TRY(known_token(l, rank, right, &merge->right));
    if (json_is_string(value)) {
        // Close the gap: the text is left, a NUL, right, a NUL.
        memmove(l->scratch.bytes + strlen(left), right, strlen(right) + 1);
    } else {
        MOEM_TRY(moem_text_append(&l->scratch, left, strlen(left)));
        MOEM_TRY(moem_text_append(&l->scratch, right, strlen(right) + 1));
    }
    return known_token(l, rank, l->scratch.bytes, &merge->result);
}

// Fills pairs from what was sorted.
static moe_status load_pairs(const struct load *l, const struct ordered *sorted, size_t count)
{
    moem_tokenizer *t = l->t;
    for (size_t i = 0; i < count; i++) {
        REQUIRE(l, i == 0 || compare_ordered(&sorted[i - 1], &sorted[i]) != 0, MOE_E_MALFORMED,
                "merges %u and %u are of the same two tokens", sorted[i - 1].pair.rank,
                sorted[i].pair.rank);
        t->pairs[i] = sorted[i].pair;
        t->pairs_of[sorted[i].left + 1]++;
    }
    for (int32_t i = 0; i < t->vocab; i++) {
        t->pairs_of[i + 1] += t->pairs_of[i];
    }
    return MOE_OK;
}

static moe_status load_merges(struct load *l, const json_t *list)
{
    moem_tokenizer *t = l->t;
    const size_t count = json_array_size(list);
    t->merges = calloc(count + 1, sizeof t->merges[0]);
    t->pairs = calloc(count + 1, sizeof t->pairs[0]);
    REQUIRE(l, t->merges != NULL && t->pairs != NULL, MOE_E_NO_MEMORY, "no memory for %zu merges",
            count);
    for (size_t i = 0; i < count; i++) {
        MOEM_TRY(load_merge(l, i, json_array_get(list, i)));
    }
    struct ordered *sorted = calloc(count + 1, sizeof sorted[0]);
    REQUIRE(l, sorted != NULL, MOE_E_NO_MEMORY, "no memory for %zu merges", count);
    for (size_t i = 0; i < count; i++) {
        sorted[i].left = t->merges[i].left;
        sorted[i].pair = (struct moem_pair){.right = t->merges[i].right, .rank = (uint32_t)i};
    }
    qsort(sorted, count, sizeof sorted[0], compare_ordered);
    const moe_status status = load_pairs(l, sorted, count);
    free(sorted);
    return status;
}

// -- Model --------------------------------------------------------------------------------------

// A member that may be absent, null or empty.
static moe_status no_affix(const struct load *l, const json_t *model, const char *key)
{
    const json_t *value = json_object_get(model, key);
    REQUIRE(l,
            value == NULL || json_is_null(value) ||
                (json_is_string(value) && json_string_length(value) == 0),
            MOE_E_UNSUPPORTED, "model.%s = %s is not supported", key, describe(value).text);
    return MOE_OK;
}

// Where every byte is a token nothing is unknown, and what would stand for it has no meaning.
static moe_status check_unknown(const struct load *l, const json_t *model)
{
    const json_t *value = json_object_get(model, "unk_token");
    for (int i = 0; i < 256 && value != NULL && !json_is_null(value); i++) {
        REQUIRE(l, l->t->byte_ids[i] >= 0, MOE_E_UNSUPPORTED,
                "model.unk_token = %s is not supported where a byte is no token, as 0x%02x",
                describe(value).text, (unsigned)i);
    }
    return MOE_OK;
}

static moe_status load_model(struct load *l, const json_t *model)
{
    static const char *const known[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "ignore_merges",
                                        "fuse_unk",
                                        "vocab",
                                        "byte_fallback",
                                        "merges",
                                        NULL};
    const char *type = NULL;
    const json_t *merges = NULL;
    bool flag = false;
    MOEM_TRY(get_string(l, "model", model, "type", &type));
    REQUIRE(l, strcmp(type, "BPE") == 0, MOE_E_UNSUPPORTED, "model %s is not supported, BPE is",
            quote_text(type).text);
    MOEM_TRY(only(l, "model", model, known));
    const json_t *dropout = json_object_get(model, "dropout");
    REQUIRE(l,
            dropout == NULL || json_is_null(dropout) ||
                (json_is_number(dropout) && json_number_value(dropout) == 0),
            MOE_E_UNSUPPORTED, "model.dropout = %s is not supported", describe(dropout).text);
    MOEM_TRY(no_affix(l, model, "continuing_subword_prefix"));
    MOEM_TRY(no_affix(l, model, "end_of_word_suffix"));
    MOEM_TRY(get_bool_or(l, "model", model, "byte_fallback", false, &flag));
    REQUIRE(l, !flag, MOE_E_UNSUPPORTED, "model.byte_fallback = %s is not supported", "true");
    MOEM_TRY(get_bool_or(l, "model", model, "fuse_unk", false, &flag));
    MOEM_TRY(get_bool_or(l, "model", model, "ignore_merges", false, &l->t->ignore_merges));
    l->vocab = json_object_get(model, "vocab");
    REQUIRE(l, json_is_object(l->vocab), MOE_E_MALFORMED, "model.vocab is %s, expected an object",
            describe(l->vocab).text);
    MOEM_TRY(get_array(l, "model", model, "merges", &merges));
    MOEM_TRY(measure(l));
    MOEM_TRY(load_vocab(l));
    MOEM_TRY(check_unknown(l, model));
    return load_merges(l, merges);
}

// -- Added tokens -------------------------------------------------------------------------------

static int compare_added(const void *a, const void *b)
{
    const struct moem_added *x = a;
    const struct moem_added *y = b;
    return moem_bytes_compare(x->bytes, y->bytes);
}

static moe_status load_added(struct load *l, const json_t *object)
{
    static const char *const known[] = {"id",     "content",    "single_word", "lstrip",
                                        "rstrip", "normalized", "special",     NULL};
    static const char where[] = "added_tokens[]";
    moem_tokenizer *t = l->t;
    struct moem_added added = {.id = (int32_t)json_integer_value(json_object_get(object, "id"))};
    const char *content = json_string_value(json_object_get(object, "content"));
    bool single_word = false;
    bool normalized = false;
    bool special = false;
    MOEM_TRY(only(l, where, object, known));
    MOEM_TRY(get_bool(l, where, object, "single_word", &single_word));
    MOEM_TRY(get_bool(l, where, object, "lstrip", &added.lstrip));
    MOEM_TRY(get_bool(l, where, object, "rstrip", &added.rstrip));
    MOEM_TRY(get_bool(l, where, object, "normalized", &normalized));
    MOEM_TRY(get_bool(l, where, object, "special", &special));
    const size_t size = strlen(content);
    REQUIRE(l, size > 0 && size <= MOEM_MAX_ADDED_BYTES, size > 0 ? MOE_E_LIMIT : MOE_E_MALFORMED,
            "the added token %d has %zu bytes, the limits are 1 and %u", added.id, size,
            MOEM_MAX_ADDED_BYTES);
    REQUIRE(l, !single_word, MOE_E_UNSUPPORTED,
            "the added token \"%s\": single_word is not supported", quote_text(content).text);
    struct moem_token *token = &t->tokens[added.id];
    const json_t *in_vocab = json_object_get(l->vocab, content);
    REQUIRE(l, in_vocab == NULL || json_integer_value(in_vocab) == added.id, MOE_E_MALFORMED,
            "the added token \"%s\" has the id %d and in the vocabulary %lld",
            quote_text(content).text, added.id, (long long)json_integer_value(in_vocab));
    REQUIRE(l, in_vocab != NULL ? (token->flags & MOEM_ADDED) == 0 : token->flags == 0,
            MOE_E_MALFORMED, "the id %d is that of two tokens, one is \"%s\"", added.id,
            quote_text(content).text);
    added.bytes = keep_bytes(l, content, size);
    *token = (struct moem_token){.bytes = added.bytes,
                                 .flags = MOEM_KNOWN | MOEM_ADDED | (special ? MOEM_SPECIAL : 0U)};
    t->added[normalized][t->added_count[normalized]++] = added;
    t->added_first[normalized][(unsigned char)content[0]] = true;
    return MOE_OK;
}

static moe_status load_all_added(struct load *l)
{
    moem_tokenizer *t = l->t;
    for (size_t i = 0; i < json_array_size(l->added); i++) {
        MOEM_TRY(load_added(l, json_array_get(l->added, i)));
    }
    for (int group = 0; group < 2; group++) {
        const size_t count = t->added_count[group];
        if (count > 0) {
            qsort(t->added[group], count, sizeof t->added[group][0], compare_added);
        }
        for (size_t i = 0; i < count; i++) {
            const struct moem_bytes bytes = t->added[group][i].bytes;
            const bool twice =
                i > 0 && moem_bytes_compare(t->added[group][i - 1].bytes, bytes) == 0;
            REQUIRE(l, !twice && (group == 0 || moem_find_added(t, 0, bytes) == NULL),
                    MOE_E_MALFORMED, "the added token \"%s\" is there twice",
                    moem_quote(bytes.text, bytes.size).text);
        }
    }
    return MOE_OK;
}

// -- Pre-tokenisers -----------------------------------------------------------------------------

static moe_status load_behaviour(const struct load *l, const char *name, enum moem_behaviour *out)
{
    static const char *const names[] = {"Removed", "Isolated", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    for (int i = 0; i < (int)(sizeof names / sizeof names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum moem_behaviour)i;
            return MOE_OK;
        }
    }
    return FAIL(l, MOE_E_UNSUPPORTED, "Split.behavior %s is not supported", quote_text(name).text);
}

static moe_status load_split(struct load *l, const json_t *object)
{
    static const char *const known[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const kinds[] = {"Regex", "String", NULL};
    const char *behaviour = NULL;
    const json_t *pattern = json_object_get(object, "pattern");
    MOEM_TRY(only(l, "Split", object, known));
    MOEM_TRY(get_string(l, "Split", object, "behavior", &behaviour));
    MOEM_TRY(only(l, "Split.pattern", pattern, kinds));
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *text = json_object_get(pattern, "String");
    REQUIRE(l, json_is_string(regex) != json_is_string(text), MOE_E_MALFORMED,
            "Split.pattern has as Regex %s and as String %s, expected one string",
            describe(regex).text, describe(text).text);
    REQUIRE(l, l->t->split_count < MOEM_MAX_SPLITS, MOE_E_LIMIT, "more Splits than %u",
            MOEM_MAX_SPLITS);
    struct moem_split *split = &l->t->splits[l->t->split_count];
    MOEM_TRY(load_behaviour(l, behaviour, &split->behaviour));
    MOEM_TRY(get_bool(l, "Split", object, "invert", &split->invert));
    const bool literal = json_is_string(text);
    const json_t *chosen = literal ? text : regex;
    MOEM_TRY(moem_pattern_compile(l->label, json_string_value(chosen), json_string_length(chosen),
                                  literal, &split->code));
    l->t->split_count++;
    return MOE_OK;
}

static moe_status load_byte_level(struct load *l, const json_t *object)
{
    static const char *const known[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                        NULL};
    moem_tokenizer *t = l->t;
    bool use_regex = false;
    MOEM_TRY(only(l, "ByteLevel", object, known));
    MOEM_TRY(get_bool(l, "ByteLevel", object, "add_prefix_space", &t->prefix_space));
    MOEM_TRY(get_bool_or(l, "ByteLevel", object, "use_regex", true, &use_regex));
    t->gpt2.behaviour = MOEM_ISOLATED;
    return use_regex ? moem_pattern_compile(l->label, MOEM_GPT2_PATTERN,
                                            sizeof MOEM_GPT2_PATTERN - 1, false, &t->gpt2.code)
                     : MOE_OK;
}

static moe_status load_pre_tokenizer(struct load *l, const json_t *object)
{
    static const char *const known[] = {"type", "pretokenizers", NULL};
    const json_t *list = NULL;
    const char *type = NULL;
    REQUIRE(l, json_is_object(object), MOE_E_UNSUPPORTED,
            "pre_tokenizer is %s, ByteLevel and Sequence are supported", describe(object).text);
    MOEM_TRY(get_string(l, "pre_tokenizer", object, "type", &type));
    if (strcmp(type, "ByteLevel") == 0) {
        return load_byte_level(l, object);
    }
    REQUIRE(l, strcmp(type, "Sequence") == 0, MOE_E_UNSUPPORTED,
            "pre_tokenizer %s is not supported, ByteLevel and Sequence are", quote_text(type).text);
    MOEM_TRY(only(l, "pre_tokenizer", object, known));
    MOEM_TRY(get_array(l, "pre_tokenizer", object, "pretokenizers", &list));
    const size_t count = json_array_size(list);
    type = "";
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_array_get(list, i);
        MOEM_TRY(get_string(l, "pretokenizers[]", one, "type", &type));
        if (strcmp(type, "Split") == 0) {
            MOEM_TRY(load_split(l, one));
            continue;
        }
        REQUIRE(l, strcmp(type, "ByteLevel") == 0, MOE_E_UNSUPPORTED,
                "pre_tokenizer %s is not supported in a Sequence, Split and ByteLevel are",
                quote_text(type).text);
        REQUIRE(l, i + 1 == count, MOE_E_UNSUPPORTED,
                "ByteLevel as number %zu of a Sequence of %zu is not supported, as the last it is",
                i + 1, count);
        MOEM_TRY(load_byte_level(l, one));
    }
    REQUIRE(l, strcmp(type, "ByteLevel") == 0, MOE_E_UNSUPPORTED,
            "a Sequence that does not end in ByteLevel, but in \"%s\", is not supported",
            quote_text(type).text);
    return MOE_OK;
}

// -- The file -----------------------------------------------------------------------------------

static moe_status load_root(struct load *l, const json_t *root)
{
    static const char *const known[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    MOEM_TRY(only(l, "tokenizer", root, known));
    const json_t *version = json_object_get(root, "version");
    REQUIRE(l,
            version == NULL ||
                (json_is_string(version) && strcmp(json_string_value(version), "1.0") == 0),
            MOE_E_UNSUPPORTED, "version %s is not supported, 1.0 is", describe(version).text);
    MOEM_TRY(none(l, root, "truncation"));
    MOEM_TRY(none(l, root, "padding"));
    MOEM_TRY(none(l, root, "normalizer"));
    MOEM_TRY(none_or_byte_level(l, root, "post_processor"));
    MOEM_TRY(none_or_byte_level(l, root, "decoder"));
    l->added = json_object_get(root, "added_tokens");
    REQUIRE(l, l->added == NULL || json_is_array(l->added), MOE_E_MALFORMED,
            "added_tokens is %s, expected an array", describe(l->added).text);
    REQUIRE(l, json_array_size(l->added) <= MOEM_MAX_ADDED, MOE_E_LIMIT,
            "%zu added tokens, the limit is %u", json_array_size(l->added), MOEM_MAX_ADDED);
    MOEM_TRY(load_pre_tokenizer(l, json_object_get(root, "pre_tokenizer")));
    MOEM_TRY(load_model(l, json_object_get(root, "model")));
    return load_all_added(l);
}

moe_status moem_tokenizer_create(const char *json, size_t size, const char *label,
                                 moem_tokenizer **out)
{
    MOEM_REQUIRE(label != NULL && out != NULL && (json != NULL || size == 0), MOE_E_ARGUMENT,
                 "moem_tokenizer_create: an argument is NULL");
    struct load l = {.label = label};
    json_t *root = NULL;
    MOEM_TRY(parse(&l, json, size, &root));
    l.t = calloc(1, sizeof *l.t);
    moe_status status =
        l.t != NULL ? load_root(&l, root) : FAIL(&l, MOE_E_NO_MEMORY, "%s", "no memory");
    json_decref(root);
    moem_text_free(&l.scratch);
    if (status != MOE_OK) {
        moem_tokenizer_destroy(l.t);
        return status;
    }
    *out = l.t;
    return MOE_OK;
}
