// SPDX-License-Identifier: Apache-2.0
// Encoding: added tokens are cut out of the text, the rest is split (tokenizer_pattern.c), and each
// piece's bytes are merged pair by pair, the lowest rank first and the leftmost of equals.
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

moe_status moem_ids_push(moem_ids *list, int32_t id)
{
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity < 64 ? 64 : 2 * list->capacity;
        MOEM_REQUIRE(capacity <= SIZE_MAX / sizeof list->ids[0], MOE_E_NO_MEMORY,
                     "moem_ids_push: %zu ids", capacity);
        int32_t *grown = realloc(list->ids, capacity * sizeof list->ids[0]);
        MOEM_REQUIRE(grown != NULL, MOE_E_NO_MEMORY, "moem_ids_push: no memory for %zu ids",
                     capacity);
        list->ids = grown;
        list->capacity = capacity;
    }
    list->ids[list->count++] = id;
    return MOE_OK;
}

void moem_ids_free(moem_ids *list)
{
    if (list != NULL) {
        free(list->ids);
        *list = (moem_ids){.ids = NULL};
    }
}

void moem_tokenizer_destroy(moem_tokenizer *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    for (size_t i = 0; i < tokenizer->split_count; i++) {
        pcre2_code_free(tokenizer->splits[i].code);
    }
    pcre2_code_free(tokenizer->gpt2.code);
    free(tokenizer->blob);
    free(tokenizer->tokens);
    free(tokenizer->entries);
    free(tokenizer->added[0]);
    free(tokenizer->added[1]);
    free(tokenizer->merges);
    free(tokenizer->pairs);
    free(tokenizer->pairs_of);
    free(tokenizer);
}

// -- The byte-level alphabet --------------------------------------------------------------------

// Printable bytes stand for themselves, the 68 others, in order, for U+0100 and on.
int moem_byte_of(uint32_t code)
{
    if ((code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xAC) ||
        (code >= 0xAE && code <= 0xFF)) {
        return (int)code;
    }
    if (code < 0x100 || code > 0x143) {
        return -1;
    }
    const int nth = (int)code - 0x100;
    return nth < 0x21 ? nth : nth < 0x43 ? nth - 0x21 + 0x7F : 0xAD;
}

ptrdiff_t moem_unspell(const char *spelled, size_t size, char *out)
{
    ptrdiff_t used = 0;
    for (size_t at = 0; at < size;) {
        const int length = moem_utf8_next(spelled + at, size - at);
        const int byte = length > 0 ? moem_byte_of(moem_utf8_code(spelled + at, length)) : -1;
        if (byte < 0) {
            return -1;
        }
        out[used++] = (char)byte;
        at += (size_t)length;
    }
    return used;
}

// -- Look-ups -----------------------------------------------------------------------------------

int moem_bytes_compare(struct moem_bytes a, struct moem_bytes b)
{
    const size_t shorter = a.size < b.size ? a.size : b.size;
    const int order = shorter > 0 ? memcmp(a.text, b.text, shorter) : 0;
    return order != 0 ? order : a.size < b.size ? -1 : a.size > b.size;
}

const struct moem_entry *moem_find_entry(const moem_tokenizer *t, struct moem_bytes bytes,
                                         bool verbatim)
{
    // Those that are verbatim come last.
    size_t low = verbatim ? t->spelled_count : 0;
    size_t high = verbatim ? t->entry_count : t->spelled_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = moem_bytes_compare(t->entries[middle].bytes, bytes);
        if (order == 0) {
            return &t->entries[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

const struct moem_added *moem_find_added(const moem_tokenizer *t, int group,
                                         struct moem_bytes bytes)
{
    size_t low = 0;
    size_t high = t->added_count[group];
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = moem_bytes_compare(t->added[group][middle].bytes, bytes);
        if (order == 0) {
            return &t->added[group][middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

int32_t moem_tokenizer_vocab(const moem_tokenizer *tokenizer)
{
    return tokenizer != NULL ? tokenizer->vocab : 0;
}

int32_t moem_tokenizer_id(const moem_tokenizer *tokenizer, const char *token)
{
    if (tokenizer == NULL || token == NULL) {
        return -1;
    }
    const struct moem_bytes spelled = {.text = token, .size = strlen(token)};
    for (int group = 0; group < 2; group++) {
        const struct moem_added *added = moem_find_added(tokenizer, group, spelled);
        if (added != NULL) {
            return added->id;
        }
    }
    char *bytes = malloc(spelled.size + 1);
    if (bytes == NULL) {
        return -1;
    }
    const ptrdiff_t length = moem_unspell(token, spelled.size, bytes);
    const struct moem_bytes plain = {.text = bytes, .size = length < 0 ? 0 : (size_t)length};
    const struct moem_entry *entry =
        moem_find_entry(tokenizer, length < 0 ? spelled : plain, length < 0);
    free(bytes);
    return entry != NULL ? entry->id : -1;
}

moe_status moem_tokenizer_bytes(const moem_tokenizer *tokenizer, int32_t id, const char **bytes,
                                size_t *size)
{
    MOEM_REQUIRE(tokenizer != NULL && bytes != NULL && size != NULL, MOE_E_ARGUMENT,
                 "moem_tokenizer_bytes: an argument is NULL");
    MOEM_REQUIRE(
        id >= 0 && id < tokenizer->vocab && tokenizer->tokens[id].flags != 0, MOE_E_NOT_FOUND,
        "moem_tokenizer_bytes: no token has the id %d of a vocabulary of %d", id, tokenizer->vocab);
    *bytes = tokenizer->tokens[id].bytes.text;
    *size = tokenizer->tokens[id].bytes.size;
    return MOE_OK;
}

bool moem_tokenizer_special(const moem_tokenizer *tokenizer, int32_t id)
{
    return tokenizer != NULL && id >= 0 && id < tokenizer->vocab &&
           (tokenizer->tokens[id].flags & MOEM_SPECIAL) != 0;
}

// -- Merging ------------------------------------------------------------------------------------

// A symbol of the piece: a list in the order of the text. A symbol that went into its left
// neighbour has id -1.
struct symbol {
    int32_t id;
    uint32_t before;
    uint32_t behind;
};

#define NONE UINT32_MAX

// A merge that is possible at a symbol, unless one of its two has changed since: the rank above,
// the symbol below, so that the least comes first.
typedef uint64_t candidate;

struct span {
    const char *text;
    size_t size;
};

struct spans {
    struct span *spans;
    size_t count;
    size_t capacity;
};

struct work {
    const moem_tokenizer *t;
    moem_ids *out;
    struct moem_matcher matcher;
    struct spans pieces[2]; // before and behind a Split
    moem_text prefixed;     // a piece with a space before it
    struct symbol *symbols;
    candidate *heap; // the least first
    size_t heap_size;
    size_t capacity; // of symbols; of the heap twice that
};

static void heap_push(struct work *w, candidate c)
{
    size_t i = w->heap_size++;
    while (i > 0 && c < w->heap[(i - 1) / 2]) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
}

static candidate heap_pop(struct work *w)
{
    const candidate top = w->heap[0];
    const candidate last = w->heap[--w->heap_size];
    size_t i = 0;
    for (size_t child = 1; child < w->heap_size; child = 2 * i + 1) {
        child += child + 1 < w->heap_size && w->heap[child + 1] < w->heap[child];
        if (w->heap[child] >= last) {
            break;
        }
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

static const struct moem_pair *find_pair(const moem_tokenizer *t, int32_t left, int32_t right)
{
    uint32_t low = t->pairs_of[left];
    uint32_t high = t->pairs_of[left + 1];
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (t->pairs[middle].right == right) {
            return &t->pairs[middle];
        }
        if (t->pairs[middle].right < right) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

// Each merge takes one candidate and adds at most two, so that twice the symbols is room enough.
static void consider(struct work *w, uint32_t at)
{
    const uint32_t behind = w->symbols[at].behind;
    if (behind == NONE) {
        return;
    }
    const struct moem_pair *pair = find_pair(w->t, w->symbols[at].id, w->symbols[behind].id);
    if (pair != NULL) {
        heap_push(w, (candidate)pair->rank << 32 | at);
    }
}

static moe_status reserve(struct work *w, size_t size)
{
    if (size <= w->capacity) {
        return MOE_OK;
    }
    const size_t capacity = size < 1024 ? 1024 : size;
    free(w->symbols);
    free(w->heap);
    w->symbols = malloc(capacity * sizeof w->symbols[0]);
    w->heap = malloc(2 * capacity * sizeof w->heap[0]);
    w->capacity = w->symbols != NULL && w->heap != NULL ? capacity : 0;
    MOEM_REQUIRE(w->capacity > 0, MOE_E_NO_MEMORY,
                 "moem_tokenizer_encode: no memory for a piece of %zu bytes", size);
    return MOE_OK;
}

static void apply(struct work *w, candidate c)
{
    const uint32_t at = (uint32_t)c;
    const struct moem_merge *merge = &w->t->merges[c >> 32];
    struct symbol *left = &w->symbols[at];
    const uint32_t taken = left->behind;
    if (left->id != merge->left || taken == NONE || w->symbols[taken].id != merge->right) {
        return;
    }
    left->id = merge->result;
    left->behind = w->symbols[taken].behind;
    w->symbols[taken].id = -1;
    if (left->behind != NONE) {
        w->symbols[left->behind].before = at;
    }
    if (left->before != NONE) {
        consider(w, left->before);
    }
    consider(w, at);
}

static moe_status merge_piece(void *self, const char *text, size_t size)
{
    struct work *w = self;
    if (w->t->ignore_merges) {
        const struct moem_entry *whole =
            moem_find_entry(w->t, (struct moem_bytes){.text = text, .size = size}, false);
        if (whole != NULL) {
            return moem_ids_push(w->out, whole->id);
        }
    }
    MOEM_TRY(reserve(w, size));
    for (size_t i = 0; i < size; i++) {
        const unsigned char byte = (unsigned char)text[i];
        MOEM_REQUIRE(w->t->byte_ids[byte] >= 0, MOE_E_NOT_FOUND,
                     "moem_tokenizer_encode: the text holds the byte 0x%02x, for which the "
                     "vocabulary has no token",
                     byte);
        w->symbols[i] = (struct symbol){.id = w->t->byte_ids[byte],
                                        .before = i > 0 ? (uint32_t)(i - 1) : NONE,
                                        .behind = i + 1 < size ? (uint32_t)(i + 1) : NONE};
    }
    w->heap_size = 0;
    for (uint32_t i = 0; i < size; i++) {
        consider(w, i);
    }
    while (w->heap_size > 0) {
        apply(w, heap_pop(w));
    }
    for (uint32_t i = 0; i != NONE; i = w->symbols[i].behind) {
        MOEM_TRY(moem_ids_push(w->out, w->symbols[i].id));
    }
    return MOE_OK;
}

// -- Splitting ----------------------------------------------------------------------------------

static moe_status keep_piece(void *self, const char *text, size_t size)
{
    struct spans *list = self;
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity < 64 ? 64 : 2 * list->capacity;
        struct span *grown = realloc(list->spans, capacity * sizeof list->spans[0]);
        MOEM_REQUIRE(grown != NULL, MOE_E_NO_MEMORY,
                     "moem_tokenizer_encode: no memory for %zu pieces", capacity);
        list->spans = grown;
        list->capacity = capacity;
    }
    list->spans[list->count++] = (struct span){.text = text, .size = size};
    return MOE_OK;
}

// ByteLevel, the last pre-tokeniser.
static moe_status byte_level(struct work *w, const char *text, size_t size)
{
    if (w->t->prefix_space && text[0] != ' ') {
        w->prefixed.size = 0;
        MOEM_TRY(moem_text_append(&w->prefixed, " ", 1));
        MOEM_TRY(moem_text_append(&w->prefixed, text, size));
        text = w->prefixed.bytes;
        size++;
    }
    if (w->t->gpt2.code == NULL) {
        return merge_piece(w, text, size);
    }
    return moem_split_run(&w->t->gpt2, &w->matcher, text, size, merge_piece, w);
}

// Text without added tokens.
static moe_status encode_plain(struct work *w, const char *text, size_t size)
{
    struct spans *now = &w->pieces[0];
    struct spans *next = &w->pieces[1];
    now->count = 0;
    MOEM_TRY(keep_piece(now, text, size));
    for (size_t i = 0; i < w->t->split_count; i++) {
        next->count = 0;
        for (size_t j = 0; j < now->count; j++) {
            MOEM_TRY(moem_split_run(&w->t->splits[i], &w->matcher, now->spans[j].text,
                                    now->spans[j].size, keep_piece, next));
        }
        struct spans *swapped = now;
        now = next;
        next = swapped;
    }
    for (size_t j = 0; j < now->count; j++) {
        MOEM_TRY(byte_level(w, now->spans[j].text, now->spans[j].size));
    }
    return MOE_OK;
}

// -- Added tokens -------------------------------------------------------------------------------

// The byte of a content at a depth; -1, less than any, behind its end.
static int content_byte(const struct moem_added *added, size_t depth)
{
    return added->bytes.size > depth ? (unsigned char)added->bytes.text[depth] : -1;
}

// Of the contents [low, high), which are equal before `depth`: the first whose byte there is at
// least `byte`. Steps double from the low end: a walk that loses one content at each depth costs
// its length and not its length times a logarithm.
static size_t first_with(const struct moem_added *added, size_t low, size_t high, size_t depth,
                         int byte)
{
    for (size_t step = 1; low < high;) {
        const size_t probe = high - low > step ? low + step - 1 : low + (high - low) / 2;
        if (content_byte(&added[probe], depth) < byte) {
            low = probe + 1;
            step *= 2;
        } else {
            high = probe;
            step = 1;
        }
    }
    return low;
}

// The end of those whose byte is at most `byte`; steps double from the high end.
static size_t end_with(const struct moem_added *added, size_t low, size_t high, size_t depth,
                       int byte)
{
    for (size_t step = 1; low < high;) {
        const size_t probe = high - low > step ? high - step : low + (high - low) / 2;
        if (content_byte(&added[probe], depth) > byte) {
            high = probe;
            step *= 2;
        } else {
            low = probe + 1;
            step = 1;
        }
    }
    return high;
}

// The longest content of the group that text begins with, NULL for none.
static const struct moem_added *longest_added(const moem_tokenizer *t, int group, const char *text,
                                              size_t size)
{
    const struct moem_added *added = t->added[group];
    const struct moem_added *found = NULL;
    size_t low = 0;
    size_t high = t->added_count[group];
    if (!t->added_first[group][(unsigned char)text[0]]) {
        return NULL;
    }
    for (size_t depth = 0; depth < size && low < high; depth++) {
        const int byte = (unsigned char)text[depth];
        low = first_with(added, low, high, depth, byte);
        high = end_with(added, low, high, depth, byte);
        // The shortest comes first.
        if (low < high && added[low].bytes.size == depth + 1) {
            found = &added[low];
        }
    }
    return found;
}

// Length of the White_Space character at the start of text, 0 for others.
static size_t space_at(const char *text, size_t size)
{
    const int length = moem_utf8_next(text, size);
    if (length <= 0) {
        return 0;
    }
    const uint32_t c = moem_utf8_code(text, length);
    const bool space = (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 ||
                       c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                       c == 0x202F || c == 0x205F || c == 0x3000;
    return space ? (size_t)length : 0;
}

static size_t strip_left(const char *text, size_t from, size_t at)
{
    while (at > from) {
        size_t lead = at - 1;
        while (lead > from && ((unsigned char)text[lead] & 0xC0) == 0x80) {
            lead--;
        }
        if (space_at(text + lead, at - lead) == 0) {
            break;
        }
        at = lead;
    }
    return at;
}

static size_t strip_right(const char *text, size_t at, size_t size)
{
    for (size_t length = 1; at < size && length > 0;) {
        length = space_at(text + at, size - at);
        at += length;
    }
    return at;
}

// Cuts the added tokens of a group out of text. The search goes on behind a content as such, even
// where its rstrip took more: a token that begins with spaces is still found in those.
static moe_status cut_added(struct work *w, int group, const char *text, size_t size,
                            moe_status (*rest)(struct work *, const char *, size_t))
{
    size_t done = 0;
    for (size_t at = 0; at < size;) {
        const struct moem_added *added = longest_added(w->t, group, text + at, size - at);
        if (added == NULL) {
            at++;
            continue;
        }
        const size_t begin = added->lstrip && at > done ? strip_left(text, done, at) : at;
        at += added->bytes.size;
        if (done < begin) {
            MOEM_TRY(rest(w, text + done, begin - done));
        }
        MOEM_TRY(moem_ids_push(w->out, added->id));
        done = added->rstrip ? strip_right(text, at, size) : at;
    }
    return done < size ? rest(w, text + done, size - done) : MOE_OK;
}

static moe_status encode_normalized(struct work *w, const char *text, size_t size)
{
    return cut_added(w, 1, text, size, encode_plain);
}

moe_status moem_tokenizer_encode(const moem_tokenizer *tokenizer, const char *text, size_t size,
                                 moem_ids *out)
{
    MOEM_REQUIRE(tokenizer != NULL && out != NULL && (text != NULL || size == 0), MOE_E_ARGUMENT,
                 "moem_tokenizer_encode: an argument is NULL");
    MOEM_REQUIRE(size <= MOEM_MAX_TEXT, MOE_E_LIMIT,
                 "moem_tokenizer_encode: a text of %zu bytes, the limit is %u", size,
                 MOEM_MAX_TEXT);
    for (size_t at = 0; at < size;) {
        const int length = moem_utf8_next(text + at, size - at);
        MOEM_REQUIRE(length > 0, MOE_E_VALUE,
                     "moem_tokenizer_encode: the text is not UTF-8 at byte %zu (0x%02x)", at,
                     (unsigned)(unsigned char)text[at]);
        at += (size_t)length;
    }
    const size_t before = out->count;
    struct work w = {.t = tokenizer, .out = out};
    moe_status status = moem_matcher_init(&w.matcher);
    if (status == MOE_OK) {
        status = cut_added(&w, 0, text, size, encode_normalized);
    }
    if (status != MOE_OK) {
        out->count = before;
    }
    moem_matcher_free(&w.matcher);
    free(w.pieces[0].spans);
    free(w.pieces[1].spans);
    moem_text_free(&w.prefixed);
    free(w.symbols);
    free(w.heap);
    return status;
}
