// SPDX-License-Identifier: Apache-2.0
#include "model/text.h"

#include <stdlib.h>
#include <string.h>

#include "model/check.h"

moe_status moem_text_append(moem_text *text, const char *bytes, size_t size)
{
    if (size == 0) {
        return MOE_OK;
    }
    MOEM_REQUIRE(size <= SIZE_MAX / 4 - text->size, MOE_E_NO_MEMORY, "text: %zu bytes more", size);
    if (text->size + size > text->capacity) {
        const size_t capacity = 2 * (text->size + size);
        char *grown = realloc(text->bytes, capacity);
        MOEM_REQUIRE(grown != NULL, MOE_E_NO_MEMORY, "text: no memory for %zu bytes", capacity);
        text->bytes = grown;
        text->capacity = capacity;
    }
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
    return MOE_OK;
}

void moem_text_free(moem_text *text)
{
    if (text != NULL) {
        free(text->bytes);
        *text = (moem_text){.bytes = NULL};
    }
}

int moem_utf8_next(const char *bytes, size_t size)
{
    if (size == 0) {
        return 0;
    }
    const unsigned first = (unsigned char)bytes[0];
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xC2 || first > 0xF4) {
        return -1;
    }
    const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    // The second byte is what keeps overlong forms, surrogates and values past U+10FFFF out.
    const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < length && i < size; i++) {
        const unsigned byte = (unsigned char)bytes[i];
        if (byte < (i == 1 ? low : 0x80) || byte > (i == 1 ? high : 0xBF)) {
            return -1;
        }
    }
    return size < length ? 0 : (int)length;
}

uint32_t moem_utf8_code(const char *bytes, int length)
{
    const uint32_t first = (unsigned char)bytes[0];
    uint32_t code = length == 1 ? first : first & (0x7FU >> length);
    for (int i = 1; i < length; i++) {
        code = code << 6 | ((unsigned char)bytes[i] & 0x3FU);
    }
    return code;
}

static const char replacement[] = "\xEF\xBF\xBD";

moe_status moem_stream_push(moem_stream *stream, const char *bytes, size_t size, moem_text *out)
{
    for (size_t i = 0; i < size; i++) {
        stream->held[stream->count++] = bytes[i];
        int length = moem_utf8_next(stream->held, stream->count);
        if (length < 0 && stream->count > 1) {
            // What was held never becomes a character; this byte may begin one.
            stream->held[0] = bytes[i];
            stream->count = 1;
            MOEM_TRY(moem_text_append(out, replacement, 3));
            length = moem_utf8_next(stream->held, 1);
        }
        if (length != 0) {
            stream->count = 0;
            MOEM_TRY(length > 0 ? moem_text_append(out, stream->held, (size_t)length)
                                : moem_text_append(out, replacement, 3));
        }
    }
    return MOE_OK;
}

moe_status moem_stream_finish(moem_stream *stream, moem_text *out)
{
    const size_t held = stream->count;
    stream->count = 0;
    return held > 0 ? moem_text_append(out, replacement, 3) : MOE_OK;
}

struct moem_quote moem_quote(const char *bytes, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    struct moem_quote quote;
    size_t used = 0;
    for (size_t i = 0; i < size; i++) {
        const unsigned byte = (unsigned char)bytes[i];
        if (used + 4 > sizeof quote.text - sizeof "...") {
            memcpy(quote.text + used, "...", 3);
            used += 3;
            break;
        }
        if (byte < 0x20 || byte > 0x7E) {
            quote.text[used++] = '\\';
            quote.text[used++] = 'x';
            quote.text[used++] = hex[byte >> 4];
            quote.text[used++] = hex[byte & 15];
            continue;
        }
        if (byte == '"' || byte == '\\') {
            quote.text[used++] = '\\';
        }
        quote.text[used++] = (char)byte;
    }
    quote.text[used] = '\0';
    return quote;
}
