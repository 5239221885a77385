// SPDX-License-Identifier: Apache-2.0
// How kernels walk a packed expert: record after record of one panel, in one forward stream.
#ifndef MOEI_BACKENDS_CPU_PACKED_WALK_H
#define MOEI_BACKENDS_CPU_PACKED_WALK_H

#include "backends/cpu/packed.h"

/// Bytes ahead of what is read that lines are asked for, into the second-level cache. A loop that
/// computes is not far enough ahead of itself to hide the latency of memory, and a prefetcher of
/// the CPU stops at every page. Lines that are asked for into the first-level cache keep its few
/// miss buffers for as long as memory takes: docs/cpu.md has figures.
#define MOEI_CPU_AHEAD 8192
#define MOEI_CPU_LINE  64
/// A loop that computes little asks for many lines at once, more than the core can remember: what
/// was lost it asks for again here.
#define MOEI_CPU_AHEAD_AGAIN 3072

/// A panel, and the record that comes next.
typedef struct moei_cpu_walk {
    const uint8_t *at;
    int64_t width; // outputs
    int64_t left;  // records of the group
    int64_t group_records;
    int32_t head, record; // bytes of one output
} moei_cpu_walk;

/// At record r of a panel. Returns the head of the group that holds it.
static inline const uint8_t *moei_cpu_walk_to(moei_cpu_walk *w, const moei_cpu_packed *p,
                                              const uint8_t *expert, int64_t panel, int64_t r)
{
    const int64_t g = r == 0 ? 0 : r / p->group_records; // most walks begin at 0
    const int64_t skip = r - g * p->group_records;
    w->width = moei_cpu_panel_width(p, panel);
    w->head = p->head;
    w->record = p->record;
    w->group_records = p->group_records;
    w->left = p->group_records - skip;
    const uint8_t *head = expert + moei_cpu_group_at(p, panel, w->width, g);
    w->at = head + w->width * (p->head + skip * p->record);
    return head;
}

/// The next record. Where it begins a group, *head is that group's, else it is left.
static inline const uint8_t *moei_cpu_walk_on(moei_cpu_walk *w, const uint8_t **head)
{
    if (w->left == 0) {
        *head = w->at;
        w->at += w->width * w->head;
        w->left = w->group_records;
    }
    const uint8_t *record = w->at;
    w->at += w->width * w->record;
    w->left--;
    return record;
}

static inline void moei_cpu_ask(const uint8_t *from, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += MOEI_CPU_LINE) {
        __builtin_prefetch(from + at, 0, 2);
    }
}

static inline void moei_cpu_ask_ahead(const uint8_t *from, int64_t bytes)
{
    moei_cpu_ask(from + MOEI_CPU_AHEAD, bytes);
}

static inline void moei_cpu_ask_ahead_twice(const uint8_t *from, int64_t bytes)
{
    moei_cpu_ask_ahead(from, bytes);
    moei_cpu_ask(from + MOEI_CPU_AHEAD_AGAIN, bytes);
}

#endif
