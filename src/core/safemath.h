// SPDX-License-Identifier: Apache-2.0
// Sizes that cannot overflow silently: products and sums of dimensions saturate to SIZE_MAX, which
// every later comparison and allocation refuses.
#ifndef MOEI_CORE_SAFEMATH_H
#define MOEI_CORE_SAFEMATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t moei_size_mul(size_t a, size_t b)
{
    size_t r;
    return __builtin_mul_overflow(a, b, &r) ? SIZE_MAX : r;
}

static inline size_t moei_size_add(size_t a, size_t b)
{
    size_t r;
    return __builtin_add_overflow(a, b, &r) ? SIZE_MAX : r;
}

/// Rounds up to a multiple of a power of two.
static inline size_t moei_size_align(size_t a, size_t align)
{
    return a > SIZE_MAX - (align - 1) ? SIZE_MAX : (a + align - 1) & ~(align - 1);
}

static inline bool moei_i64_mul(int64_t a, int64_t b, int64_t *r)
{
    return !__builtin_mul_overflow(a, b, r);
}

static inline int64_t moei_i64_ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

static inline int64_t moei_i64_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t moei_i64_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t moei_i64_round_up(int64_t a, int64_t multiple)
{
    return moei_i64_ceil_div(a, multiple) * multiple;
}

#endif
