// SPDX-License-Identifier: Apache-2.0
/// @file tokenizer.h  Byte-level BPE from a tokenizer.json, as the public gpt-oss and GPT-2 style
/// checkpoints bring it: text to ids and back.
///
/// What is read:
///   model          BPE, merges as pairs or as "a b"; ignore_merges
///   pre_tokenizer  ByteLevel, or a Sequence of Splits that ends in ByteLevel; Split by a Regex or
///                  String, every behavior, invert; add_prefix_space, use_regex
///   added_tokens   special or not, lstrip, rstrip, normalized
///   decoder        none or ByteLevel
///   post_processor none or ByteLevel, which only moves offsets. A template is refused: no token is
///                  added that is not in the text, beginning and end are the caller's.
/// Whatever else is set is refused by name (UNSUPPORTED): normalizers, truncation, padding,
/// dropout, byte_fallback, prefixes and suffixes of subwords, single_word, an unk_token that could
/// occur, other pre-tokenizers, members of an object that are not known.
///
/// Patterns are written for Oniguruma and run by PCRE2: constructs that mean the same in both are
/// taken, others refused by name (tokenizer_pattern.c). Classes such as \p{L} follow the Unicode
/// version of the PCRE2 in use; a character that a later version assigned may split elsewhere.
///
/// Limits (LIMIT): 100 MB of JSON with 4,000,000 values, ids below 2^21, 16,384 added tokens of 256
/// bytes, 16 Splits, patterns of 4,096 bytes, 64 MiB of text, 256 steps of a pattern for each byte
/// of the text it splits.
///
/// Source: the tokenizer.json format as the tokenizers library (0.23) reads it; Sennrich et al.,
/// Neural Machine Translation of Rare Words with Subword Units, ACL 2016; Radford et al., Language
/// Models are Unsupervised Multitask Learners, 2019 (the byte alphabet and pattern).
///
/// Thread safety: a tokenizer is immutable; any number of threads may use it.
#ifndef MOEM_TOKENIZER_H
#define MOEM_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/status.h"

typedef struct moem_tokenizer moem_tokenizer;

/// A growable list of token ids; start from {0}.
typedef struct moem_ids {
    int32_t *ids;
    size_t count;
    size_t capacity;
} moem_ids;

/// Appends one id. On failure (NO_MEMORY) nothing changes.
moe_status moem_ids_push(moem_ids *list, int32_t id);
void moem_ids_free(moem_ids *list);

/// From the bytes of a tokenizer.json. `label` names it in messages.
/// @param[out] out  untouched on failure
/// Errors: ARGUMENT, MALFORMED, UNSUPPORTED, LIMIT, NO_MEMORY.
moe_status moem_tokenizer_create(const char *json, size_t size, const char *label,
                                 moem_tokenizer **out);
void moem_tokenizer_destroy(moem_tokenizer *tokenizer);

/// The largest id plus one; ids below it may be unused.
int32_t moem_tokenizer_vocab(const moem_tokenizer *tokenizer);

/// Id of an added token's content, or of a token as the file spells it (a space is U+0120); -1 for
/// none, and without memory.
int32_t moem_tokenizer_id(const moem_tokenizer *tokenizer, const char *token);

/// Appends the ids of text[0..size), which is UTF-8. The contents of added tokens become their ids
/// wherever they stand in it, those of special tokens too: text from a stranger that must not hold
/// them is the caller's to search.
/// @param[in,out] out  keeps what it held on failure
/// Errors: ARGUMENT; VALUE (not UTF-8, with the byte offset); NOT_FOUND (a byte without a token,
/// with its value); LIMIT (a pattern that takes too long on this text); NO_MEMORY. Cost: O(n log n)
/// in the length of each piece between splits.
moe_status moem_tokenizer_encode(const moem_tokenizer *tokenizer, const char *text, size_t size,
                                 moem_ids *out);

/// Bytes of one id, which may be a part of a UTF-8 character; added tokens are their content. They
/// live as long as the tokenizer. text.h puts them together.
/// Errors: ARGUMENT, NOT_FOUND (no token has the id).
moe_status moem_tokenizer_bytes(const moem_tokenizer *tokenizer, int32_t id, const char **bytes,
                                size_t *size);

/// Whether the id is that of an added token marked special; false for ids that no token has.
bool moem_tokenizer_special(const moem_tokenizer *tokenizer, int32_t id);

#endif
