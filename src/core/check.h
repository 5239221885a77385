// SPDX-License-Identifier: Apache-2.0
// The four macros with which calls fail, and the assertion forms. No others exist.
#ifndef MOEI_CORE_CHECK_H
#define MOEI_CORE_CHECK_H

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "moe/status.h"

#if defined(__GNUC__)
#define MOEI_COLD __attribute__((cold))
#else
#define MOEI_COLD
#endif

// moe_fail (moe/status.h) records the thread's message and returns its code: `return
// moe_fail(MOE_E_SHAPE, "moe_run: ...")`. Messages name the call, the field and both values. It is
// exported, so that libmoe_io and plugins write into the same place.

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

/// Copies a caller's struct, whose first member is its struct_size, into one of `known` bytes. From
/// older headers it is shorter: what it lacks is 0. From newer ones it is longer: what this library
/// does not know must be 0. VERSION otherwise; `call` and `name` head the message. (Inline:
/// libmoe_io uses it too, and libmoe does not export it.)
static inline moe_status moei_struct_read(const void *from, void *to, size_t known,
                                          const char *call, const char *name)
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

/// The way back, after moei_struct_read of the same struct: writes what the caller's has room for
/// and leaves its struct_size. VERSION, and nothing written, where it lacks a field that is set.
static inline moe_status moei_struct_write(const void *from, size_t known, void *to,
                                           const char *call, const char *name)
{
    size_t given;
    memcpy(&given, to, sizeof given);
    for (size_t i = given; i < known; i++) {
        MOE_REQUIRE(((const unsigned char *)from)[i] == 0, MOE_E_VERSION,
                    "%s: %s.struct_size = %zu, the result needs %zu: byte %zu is set", call, name,
                    given, known, i);
    }
    memcpy(to, from, given < known ? given : known);
    memcpy(to, &given, sizeof given);
    return MOE_OK;
}

#endif
