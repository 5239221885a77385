// SPDX-License-Identifier: Apache-2.0
// Workspace carving. One function lists the buffers and runs twice: with base NULL it measures,
// with a base it places, so that query and use cannot disagree.
#ifndef MOEI_CORE_ARENA_H
#define MOEI_CORE_ARENA_H

#include "core/safemath.h"

#define MOEI_ARENA_ALIGN 256 // GPU vector loads and CPU cache lines are both content with it

typedef struct moei_arena {
    unsigned char *base; // NULL while measuring
    size_t used;         // SIZE_MAX once a size has overflowed
} moei_arena;

static inline void *moei_arena_take(moei_arena *arena, size_t bytes)
{
    const size_t at = moei_size_align(arena->used, MOEI_ARENA_ALIGN);
    arena->used = moei_size_add(at, bytes);
    return arena->base != NULL && arena->used != SIZE_MAX ? arena->base + at : NULL;
}

static inline void *moei_arena_array(moei_arena *arena, size_t count, size_t elem_bytes)
{
    return moei_arena_take(arena, moei_size_mul(count, elem_bytes));
}

#endif
