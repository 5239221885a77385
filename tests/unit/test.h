// SPDX-License-Identifier: Apache-2.0
// Assertions of the unit tests. A test program is one file: it calls CHECK, and main returns
// test_summary(), which prints the line "N passed, N failed" that CTest and people read.
#ifndef MOE_TESTS_UNIT_TEST_H
#define MOE_TESTS_UNIT_TEST_H

#include <stdarg.h>
#include <stdio.h>

#if defined(__GNUC__)
#define TEST_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define TEST_PRINTF(fmt, args)
#endif

static unsigned long test_passed;
static unsigned long test_failed;

static inline int test_pass(void)
{
    test_passed++;
    return 1;
}

/// Counts a failure and prints its place and message (the first 50 of a program).
static inline int test_fail(const char *file, int line, const char *fmt, ...) TEST_PRINTF(3, 4);

static inline int test_fail(const char *file, int line, const char *fmt, ...)
{
    test_failed++;
    if (test_failed <= 50) {
        va_list args;
        va_start(args, fmt);
        (void)printf("%s:%d: FAILED: ", file, line);
        (void)vprintf(fmt, args);
        (void)printf("\n");
        va_end(args);
    }
    return 0;
}

/// CHECK(condition, "format", ...): the message says what was found, with both values; its
/// arguments are evaluated on failure only. Yields whether the condition held.
#define CHECK(cond, ...) ((cond) ? test_pass() : test_fail(__FILE__, __LINE__, __VA_ARGS__))

/// Prints the summary line; the exit status of main.
static inline int test_summary(void)
{
    (void)printf("%lu passed, %lu failed\n", test_passed, test_failed);
    return test_failed != 0;
}

#endif
