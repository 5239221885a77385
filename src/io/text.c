// SPDX-License-Identifier: Apache-2.0
#include "io/text.h"

#include <stdbool.h>
#include <string.h>

#include "core/check.h"

// The longest piece that one input byte or sequence becomes: an escape "\xNN" or 4 bytes of UTF-8.
#define PIECE_BYTES 4

size_t moei_utf8_decode(const unsigned char *bytes, size_t size, uint32_t *code)
{
    if (size == 0) {
        return 0;
    }
    const unsigned char first = bytes[0];
    if (first < 0x80) {
        *code = first;
        return 1;
    }
    // 0x80..0xC1 are continuations or overlong, 0xF5.. lie past U+10FFFF.
    const size_t length = first < 0xC2   ? 0
                          : first < 0xE0 ? 2
                          : first < 0xF0 ? 3
                          : first < 0xF5 ? 4
                                         : 0;
    if (length == 0 || length > size) {
        return 0;
    }
    uint32_t value = first & (0x7FU >> length);
    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (bytes[i] & 0x3FU);
    }
    const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
    if (overlong || (value >= 0xD800 && value <= 0xDFFF) || value > 0x10FFFF) {
        return 0;
    }
    *code = value;
    return length;
}

size_t moei_utf8_encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    const size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code & 0x3F));
        code >>= 6;
    }
    const uint32_t lead = (0xF00U >> length) & 0xFF;
    out[0] = (char)(lead | code);
    return length;
}

// Control characters, and the marks that reorder or hide text on a terminal.
static bool printable(uint32_t code)
{
    return code >= 0x20 && !(code >= 0x7F && code < 0xA0) && code != 0xAD &&
           !(code >= 0x200B && code <= 0x200F) && !(code >= 0x2028 && code <= 0x202E) &&
           !(code >= 0x2060 && code <= 0x206F) && code != 0xFEFF && code < 0xE0000;
}

// Writes what stands for the character at the start of text, returns the bytes written and taken.
static size_t quote_one(const unsigned char *text, size_t size, char *out, size_t *taken)
{
    static const char hex[] = "0123456789abcdef";
    uint32_t code = 0;
    const size_t length = moei_utf8_decode(text, size, &code);
    if (length > 0 && printable(code)) {
        *taken = length;
        if (code == '"' || code == '\\') {
            out[0] = '\\';
            out[1] = (char)code;
            return 2;
        }
        memcpy(out, text, length);
        return length;
    }
    *taken = 1;
    out[0] = '\\';
    out[1] = 'x';
    out[2] = hex[text[0] >> 4];
    out[3] = hex[text[0] & 15];
    return PIECE_BYTES;
}

struct moei_quote moei_quote_head(const char *text, size_t size)
{
    const unsigned char *bytes = (const unsigned char *)text;
    struct moei_quote quote;
    size_t used = 0;
    size_t at = 0;
    while (at < size) {
        char piece[PIECE_BYTES];
        size_t taken = 0;
        const size_t length = quote_one(bytes + at, size - at, piece, &taken);
        if (used + length > sizeof quote.text - sizeof "...") {
            memcpy(quote.text + used, "...", 3);
            used += 3;
            break;
        }
        memcpy(quote.text + used, piece, length);
        used += length;
        at += taken;
    }
    MOE_ASSERT(used < sizeof quote.text);
    quote.text[used] = '\0';
    return quote;
}

struct moei_quote moei_quote_tail(const char *text, size_t size)
{
    // As many bytes as surely fit when all but a few are plain; not in the middle of a sequence.
    const size_t keep = MOEI_QUOTE_BYTES - sizeof "......";
    size_t start = size > keep ? size - keep : 0;
    while (start > 0 && start < size && ((unsigned char)text[start] & 0xC0) == 0x80) {
        start++;
    }
    struct moei_quote quote = moei_quote_head(text + start, size - start);
    if (start > 0) {
        const size_t length = strlen(quote.text);
        const size_t room = sizeof quote.text - sizeof "...";
        const size_t kept = length < room ? length : room;
        memmove(quote.text + 3, quote.text, kept);
        memcpy(quote.text, "...", 3);
        quote.text[3 + kept] = '\0';
    }
    return quote;
}
