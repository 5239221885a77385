// SPDX-License-Identifier: Apache-2.0
// Codes, names, and the per-thread message.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/check.h"
#include "moe/version.h"

#define MESSAGE_BYTES 512

static _Thread_local char last_message[MESSAGE_BYTES];

moe_status moe_fail(moe_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(last_message, sizeof last_message, format, args);
    va_end(args);
    return code;
}

moe_status moei_struct_read(const void *from, void *to, size_t known, const char *call,
                            const char *name)
{
    size_t given;
    memcpy(&given, from, sizeof given);
    // Every such struct begins with a size_t, so that its size is a multiple of one.
    MOE_REQUIRE(given >= sizeof given && given % sizeof given == 0, MOE_E_VERSION,
                "%s: %s.struct_size = %zu, must be the size of the struct, here %zu", call, name,
                given, known);
    for (size_t i = known; i < given; i++) {
        MOE_REQUIRE(((const unsigned char *)from)[i] == 0, MOE_E_VERSION,
                    "%s: %s.struct_size = %zu, this library knows %zu, and byte %zu is set", call,
                    name, given, known, i);
    }
    memset(to, 0, known);
    memcpy(to, from, given < known ? given : known);
    memcpy(to, &known, sizeof known);
    return MOE_OK;
}

const char *moe_last_error(void)
{
    return last_message;
}

const char *moe_status_name(moe_status status)
{
#define NAME(code)                                                                                 \
    case code:                                                                                     \
        return #code
    switch (status) {
        NAME(MOE_OK);
        NAME(MOE_E_ARGUMENT);
        NAME(MOE_E_UNSET);
        NAME(MOE_E_SHAPE);
        NAME(MOE_E_DTYPE);
        NAME(MOE_E_OVERLAP);
        NAME(MOE_E_OVERFLOW);
        NAME(MOE_E_VERSION);
        NAME(MOE_E_ALIGNMENT);
        NAME(MOE_E_STATE);
        NAME(MOE_E_VALUE);
        NAME(MOE_E_UNSUPPORTED);
        NAME(MOE_E_NO_KERNEL);
        NAME(MOE_E_LEVEL);
        NAME(MOE_E_NO_MEMORY);
        NAME(MOE_E_WORKSPACE);
        NAME(MOE_E_THREAD);
        NAME(MOE_E_IO);
        NAME(MOE_E_MALFORMED);
        NAME(MOE_E_NOT_FOUND);
        NAME(MOE_E_LIMIT);
        NAME(MOE_E_DEVICE);
    default:
        return "unknown status";
    }
#undef NAME
}

int moe_version(void)
{
    return MOE_VERSION_NUMBER;
}

const char *moe_version_string(void)
{
#define STRING(x)        #x
#define VERSION(a, b, c) STRING(a) "." STRING(b) "." STRING(c)
    return VERSION(MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH);
#undef VERSION
#undef STRING
}
