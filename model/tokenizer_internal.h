// SPDX-License-Identifier: Apache-2.0
// A tokenizer as its three parts share it: tokenizer_load.c fills it from JSON, tokenizer_pattern.c
// splits text, tokenizer.c encodes.
#ifndef MOEM_TOKENIZER_INTERNAL_H
#define MOEM_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>

#include "model/check.h"
#include "model/text.h"
#include "model/tokenizer.h"

#define MOEM_MAX_JSON          100000000U
#define MOEM_MAX_JSON_VALUES   4000000U // brackets, commas and colons; bounds memory to 1 GiB
#define MOEM_MAX_ID            ((1 << 21) - 1)
#define MOEM_MAX_ADDED         16384U
#define MOEM_MAX_ADDED_BYTES   256U
#define MOEM_MAX_SPLITS        16U
#define MOEM_MAX_PATTERN       4096U
#define MOEM_MAX_TEXT          (64U << 20)
#define MOEM_MAX_PATTERN_STEPS 256U // of a pattern, for each byte of text

// A token's bytes in the tokenizer's blob.
struct moem_bytes {
    const char *text;
    size_t size;
};

enum { MOEM_KNOWN = 1, MOEM_ADDED = 2, MOEM_SPECIAL = 4 };

struct moem_token {
    struct moem_bytes bytes;
    uint32_t flags;
};

// An entry of the model's vocabulary. Verbatim: its spelling holds characters that stand for no
// byte, so that no text becomes it and its bytes are its spelling.
struct moem_entry {
    struct moem_bytes bytes;
    int32_t id;
    bool verbatim;
};

struct moem_added {
    struct moem_bytes bytes;
    int32_t id;
    bool lstrip;
    bool rstrip;
};

struct moem_merge {
    int32_t left;
    int32_t right;
    int32_t result;
};

// How a merge is found: from its left token, by its right one.
struct moem_pair {
    int32_t right;
    uint32_t rank;
};

// What becomes of the parts that match and of those between: BEHAVIOR of Split, where "match" is
// turned round by invert.
enum moem_behaviour {
    MOEM_REMOVED,
    MOEM_ISOLATED,
    MOEM_CONTIGUOUS,
    MOEM_MERGED_WITH_PREVIOUS,
    MOEM_MERGED_WITH_NEXT
};

struct moem_split {
    pcre2_code *code;
    enum moem_behaviour behaviour;
    bool invert;
};

struct moem_tokenizer {
    char *blob; // the bytes of all tokens
    size_t blob_size;
    struct moem_token *tokens; // by id
    int32_t vocab;
    struct moem_entry *entries; // ascending by (verbatim, bytes)
    size_t entry_count;
    size_t spelled_count; // those before the verbatim ones
    // Ascending bytes within each of two groups: those looked for in the text as it is, then
    // ("normalized") those looked for in what is left.
    struct moem_added *added[2];
    size_t added_count[2];
    bool added_first[2][256];  // the bytes that added tokens of a group begin with
    struct moem_merge *merges; // by rank
    struct moem_pair *pairs;   // ascending by (left, right)
    uint32_t *pairs_of;        // [vocab + 1]: pairs of a left token begin there
    int32_t byte_ids[256];     // -1: no token
    struct moem_split splits[MOEM_MAX_SPLITS];
    size_t split_count;
    struct moem_split gpt2; // code NULL: no split
    bool prefix_space;
    bool ignore_merges;
};

/// The byte that a character of the byte-level alphabet stands for, -1 for other characters.
int moem_byte_of(uint32_t code);

/// Bytes of a token as the file spells it, to out, which holds size bytes; the number of bytes, or
/// -1 where a character stands for none.
ptrdiff_t moem_unspell(const char *spelled, size_t size, char *out);

/// The order of entries and of added tokens: bytes, a beginning first.
int moem_bytes_compare(struct moem_bytes a, struct moem_bytes b);

/// The entry of these bytes, NULL for none.
const struct moem_entry *moem_find_entry(const moem_tokenizer *tokenizer, struct moem_bytes bytes,
                                         bool verbatim);

/// The added token of these bytes, NULL for none.
const struct moem_added *moem_find_added(const moem_tokenizer *tokenizer, int group,
                                         struct moem_bytes bytes);

// -- tokenizer_pattern.c ------------------------------------------------------------------------

/// The pattern of GPT-2, which ByteLevel uses where use_regex is set.
#define MOEM_GPT2_PATTERN                                                                          \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/// Compiles an Oniguruma pattern, or a literal text, for PCRE2. `label` as in
/// moem_tokenizer_create. Errors: UNSUPPORTED (a construct, by name), MALFORMED, LIMIT, NO_MEMORY.
moe_status moem_pattern_compile(const char *label, const char *pattern, size_t size, bool literal,
                                pcre2_code **out);

/// What a call needs to run patterns; start from {0}.
struct moem_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    size_t at; // the position and steps of the search that runs
    size_t steps;
    size_t limit;
};
moe_status moem_matcher_init(struct moem_matcher *matcher);
void moem_matcher_free(struct moem_matcher *matcher);

/// Hands the pieces of text[0..size), none of them empty, to sink one after another.
typedef moe_status (*moem_sink)(void *self, const char *text, size_t size);
moe_status moem_split_run(const struct moem_split *split, struct moem_matcher *matcher,
                          const char *text, size_t size, moem_sink sink, void *self);

#endif
