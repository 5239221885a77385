// SPDX-License-Identifier: Apache-2.0
// The four macros with which calls fail, and the assertion forms. No others exist.
#ifndef MOEI_CORE_CHECK_H
#define MOEI_CORE_CHECK_H

#include <assert.h>
#include <stddef.h>

#include "moe/status.h"

#if defined(__GNUC__)
#define MOEI_COLD __attribute__((cold))
#else
#define MOEI_COLD
#endif

// moe_fail (moe/status.h) records the thread's message and returns its code: `return
// moe_fail(MOE_E_SHAPE, "moe_run: ...")`. Messages name the call, the field and both values. It is
// exported, so that libmoe_io and plugins write into the same place.

/// Copies a caller's struct, whose first member is its struct_size, into one of `known` bytes. From
/// older headers it is shorter: what it lacks is 0. From newer ones it is longer: what this library
/// does not know must be 0. VERSION otherwise; `call` and `name` head the message.
moe_status moei_struct_read(const void *from, void *to, size_t known, const char *call,
                            const char *name);

/// A caller's mistake: always checked, returns.
#define MOE_REQUIRE(condition, code, ...)                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            (void)moe_fail((code), __VA_ARGS__);                                                   \
            return (code); /* seen by static analysers, unlike moe_fail's body */                  \
        }                                                                                          \
    } while (0)

/// Our own invariant: checked in builds without NDEBUG.
#define MOE_ASSERT(condition) assert(condition)

/// What `supports` or a check has already proved: asserted with assertions on, a hint without.
#ifdef NDEBUG
#define MOE_ASSUME(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            __builtin_unreachable();                                                               \
        }                                                                                          \
    } while (0)
#else
#define MOE_ASSUME(condition) assert(condition)
#endif

/// Forwards a failure.
#define MOE_TRY(expression)                                                                        \
    do {                                                                                           \
        const moe_status moei_try_status = (expression);                                           \
        if (moei_try_status != MOE_OK) {                                                           \
            return moei_try_status;                                                                \
        }                                                                                          \
    } while (0)

#endif
