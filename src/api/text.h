// SPDX-License-Identifier: Apache-2.0
// Text into a caller's buffer, as snprintf writes it: what does not fit is counted.
#ifndef MOEI_API_TEXT_H
#define MOEI_API_TEXT_H

#include <stdarg.h>
#include <stdio.h>

#include "core/check.h"

typedef struct moei_text {
    char *buffer;
    size_t capacity, length;
} moei_text;

static inline void moei_put(moei_text *t, const char *format, ...) MOE_PRINTF(2, 3);
static inline void moei_put(moei_text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const size_t left = t->length < t->capacity ? t->capacity - t->length : 0;
    const int n = vsnprintf(left > 0 ? t->buffer + t->length : NULL, left, format, args);
    va_end(args);
    t->length += n > 0 ? (size_t)n : 0;
}

/// What calls that write a text about a plan demand. The buffer holds "" then.
static inline moe_status moei_text_check(const void *plan, char *buffer, size_t capacity,
                                         const char *call)
{
    MOE_REQUIRE(plan != NULL, MOE_E_ARGUMENT, "%s: plan is NULL", call);
    MOE_REQUIRE(buffer != NULL || capacity == 0, MOE_E_ARGUMENT,
                "%s: buffer is NULL with a capacity of %zu", call, capacity);
    if (capacity > 0) {
        buffer[0] = '\0';
    }
    return MOE_OK;
}

#endif
