// SPDX-License-Identifier: Apache-2.0
/// @file text.h  UTF-8 for the decoder: growable text, whole characters out of a stream of tokens,
/// and names made fit for messages. Thread safety of everything here: one thread per object.
#ifndef MOEM_TEXT_H
#define MOEM_TEXT_H

#include <stddef.h>
#include <stdint.h>

#include "moe/status.h"

/// Growable bytes; start from {0}. Not NUL-terminated.
typedef struct moem_text {
    char *bytes;
    size_t size;
    size_t capacity;
} moem_text;

/// Appends size bytes. On failure (NO_MEMORY) nothing changes.
moe_status moem_text_append(moem_text *text, const char *bytes, size_t size);
void moem_text_free(moem_text *text);

/// What stands at the start of bytes[0..size): the length (1..4) of a well-formed character,
/// 0 where all of it is the beginning of one, -1 where no character begins so.
/// Source: The Unicode Standard 15.0, table 3-7.
int moem_utf8_next(const char *bytes, size_t size);

/// Code point of the well-formed character of the given length at the start of bytes.
uint32_t moem_utf8_code(const char *bytes, int length);

/// Holds back the beginning of a character until a later token completes it; start from {0}.
typedef struct moem_stream {
    char held[4];
    size_t count;
} moem_stream;

/// Appends the whole characters of what was held back and size bytes more. What is not UTF-8
/// becomes U+FFFD, one for each longest beginning of a character (Unicode 15.0, section 3.9). On
/// failure (NO_MEMORY) out holds what came before the character that found no memory.
moe_status moem_stream_push(moem_stream *stream, const char *bytes, size_t size, moem_text *out);

/// The end of the text: U+FFFD for what is still held back. The stream can be used again.
moe_status moem_stream_finish(moem_stream *stream, moem_text *out);

/// A name as messages show it: quotes, backslashes and what is not printable ASCII escaped, a long
/// one cut and ended by "...". Returned by value, so that a call can stand among the arguments of a
/// format: `moem_quote(name, size).text`.
struct moem_quote {
    char text[104];
};
struct moem_quote moem_quote(const char *bytes, size_t size);

#endif
