// SPDX-License-Identifier: Apache-2.0
// Lines that another core has: asked for all at once, they take as long to come as one.
#ifndef MOEI_CORE_LINES_H
#define MOEI_CORE_LINES_H

#include <stddef.h>

#define MOEI_LINE 64

static inline void moei_ask_to_read(const void *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += MOEI_LINE) {
        __builtin_prefetch((const char *)from + at);
    }
}

/// Stores leave a core one after the other, and each waits for its line.
static inline void moei_ask_to_write(const void *to, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += MOEI_LINE) {
#if defined(__x86_64__) // compilers take the builtin for a read unless told what the CPU is
        __asm__ volatile("prefetchw %0" : : "m"(((const char *)to)[at]));
#else
        __builtin_prefetch((const char *)to + at, 1);
#endif
    }
}

#endif
