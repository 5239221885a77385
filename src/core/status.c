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
