// SPDX-License-Identifier: Apache-2.0
// What a refusal must be: the code, and a message that contains the call, the field and both
// values. Records which codes a program has reached.
#ifndef MOE_TESTS_API_REFUSALS_H
#define MOE_TESTS_API_REFUSALS_H

#include <string.h>

#include "moe/status.h"
#include "unit/test.h"

static unsigned char refusal_reached[128];

/// `words` end with NULL; each must occur in the message.
static inline int refusal_check(const char *file, int line, moe_status have, moe_status want,
                                const char *const *words)
{
    const char *message = moe_last_error();
    if (have >= 0 && have < (moe_status)sizeof refusal_reached) {
        refusal_reached[have] = 1;
    }
    if (have != want) {
        return test_fail(file, line, "%s, must be %s: %s", moe_status_name(have),
                         moe_status_name(want), have != MOE_OK ? message : "accepted");
    }
    for (; *words != NULL; words++) {
        if (strstr(message, *words) == NULL) {
            return test_fail(file, line, "\"%s\" lacks \"%s\"", message, *words);
        }
    }
    return test_pass();
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

/// REFUSED(what the call returned, code, words of its message...)
#define REFUSED(status, code, ...)                                                                 \
    refusal_check(__FILE__, __LINE__, status, code, WORDS(__VA_ARGS__))

/// REACHED(codes...): the program has been refused with each of them.
#define REACHED(...)                                                                               \
    do {                                                                                           \
        static const moe_status codes[] = {__VA_ARGS__};                                           \
        for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {                              \
            CHECK(refusal_reached[codes[i]], "%s has not been reached",                            \
                  moe_status_name(codes[i]));                                                      \
        }                                                                                          \
    } while (0)

#endif
