// SPDX-License-Identifier: Apache-2.0
// Memory that the tasks of a job have in turns: as many slots as threads, so that a thread finds
// free the one that it gave back, whose lines are still in its caches.
#ifndef MOEI_BACKENDS_CPU_SLOTS_H
#define MOEI_BACKENDS_CPU_SLOTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MOEI_CPU_MOST_SLOTS 512

typedef struct moei_cpu_slots {
    int32_t count;
    int64_t bytes; // of a slot
    uint8_t *at;   // the first one
    atomic_bool taken[MOEI_CPU_MOST_SLOTS];
} moei_cpu_slots;

static inline void moei_cpu_slots_begin(moei_cpu_slots *s, int32_t count, int64_t bytes,
                                        uint8_t *at)
{
    s->count = count;
    s->bytes = bytes;
    s->at = at;
    for (int32_t i = 0; i < count; i++) {
        atomic_init(&s->taken[i], false);
    }
}

/// Waits where a pool has more threads than it says: whoever has a slot is at work, and gives it
/// back.
static inline int32_t moei_cpu_slot_take(moei_cpu_slots *s)
{
    for (int32_t i = 0;; i = (i + 1) % s->count) {
        if (!atomic_load_explicit(&s->taken[i], memory_order_relaxed) &&
            !atomic_exchange_explicit(&s->taken[i], true, memory_order_acquire)) {
            return i;
        }
    }
}

static inline void moei_cpu_slot_give(moei_cpu_slots *s, int32_t slot)
{
    atomic_store_explicit(&s->taken[slot], false, memory_order_release);
}

#endif
