// SPDX-License-Identifier: Apache-2.0
// How calls of model/ fail: a status, and a message that names the call, the field and both values.
#ifndef MOEM_CHECK_H
#define MOEM_CHECK_H

#include "moe/status.h"

/// A caller's or a file's mistake: always checked, returns.
#define MOEM_REQUIRE(condition, code, ...)                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            (void)moe_fail((code), __VA_ARGS__);                                                   \
            return (code);                                                                         \
        }                                                                                          \
    } while (0)

/// Forwards a failure.
#define MOEM_TRY(expression)                                                                       \
    do {                                                                                           \
        const moe_status moem_try_status = (expression);                                           \
        if (moem_try_status != MOE_OK) {                                                           \
            return moem_try_status;                                                                \
        }                                                                                          \
    } while (0)

#endif
