// SPDX-License-Identifier: Apache-2.0
// Text from files: UTF-8, and names made fit for a message.
#ifndef MOEI_IO_TEXT_H
#define MOEI_IO_TEXT_H

#include <stddef.h>
#include <stdint.h>

#define MOEI_QUOTE_BYTES 104

/// A name as messages show it. Returned by value, so that a call can stand among the arguments of
/// a format: `moei_quote_head(name, size).text`.
struct moei_quote {
    char text[MOEI_QUOTE_BYTES];
};

/// Escapes quotes, backslashes, control and invisible formatting characters and whatever is not
/// UTF-8; a long text keeps its beginning and ends in "...".
struct moei_quote moei_quote_head(const char *text, size_t size);

/// The same for paths: a long text keeps its end and begins with "...".
struct moei_quote moei_quote_tail(const char *text, size_t size);

/// Length of the well-formed UTF-8 sequence at the start of bytes[0..size), 0 when there is none;
/// its code point goes to *code. Source: The Unicode Standard 15.0, table 3-7.
size_t moei_utf8_decode(const unsigned char *bytes, size_t size, uint32_t *code);

/// Writes a code point's UTF-8 (1 to 4 bytes) and returns its length; surrogates and values past
/// U+10FFFF are the caller's to refuse.
size_t moei_utf8_encode(uint32_t code, char *out);

#endif
