// SPDX-License-Identifier: Apache-2.0
// Memory in huge pages, where the system has them to give: long reads look up fewer addresses, and
// a prefetcher of the CPU stops at fewer ends of pages. Whoever includes this defines
// _DEFAULT_SOURCE or _GNU_SOURCE.
#ifndef MOEI_CORE_HUGE_H
#define MOEI_CORE_HUGE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define MOEI_HUGE_PAGE ((uintptr_t)2 << 20)

/// Asks for huge pages in what of [memory, memory + bytes) can be such: best before it is written
/// or, of a mapped file, read. Where the system refuses, small pages do.
static inline void moei_ask_huge_pages(const void *memory, size_t bytes)
{
    const uintptr_t begin = ((uintptr_t)memory + MOEI_HUGE_PAGE - 1) & ~(MOEI_HUGE_PAGE - 1);
    const uintptr_t end = ((uintptr_t)memory + bytes) & ~(MOEI_HUGE_PAGE - 1);
    if (begin < end) {
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    }
}

#endif
