// SPDX-License-Identifier: Apache-2.0
// sort, portable: one cursor an expert; slots are walked in ascending order, so the order inside an
// expert is ascending too.
#include "ops/sort.h"

#include <string.h>

#include "backends/cpu/ref/ref.h"

// Local expert of a slot, -1 where it is absent. `wide` and `mapped` are constants at each call.
static inline int32_t expert_of(const moek_sort_args *a, bool wide, bool mapped, int64_t at)
{
    int64_t id = wide ? ((const int64_t *)a->ids)[at] : ((const int32_t *)a->ids)[at];
    if (mapped) {
        id = id >= 0 && id < a->num_global ? a->expert_map[id] : -1;
    }
    return id >= 0 && id < a->num_experts ? (int32_t)id : -1;
}

static inline void count_share(const moek_sort_args *a, bool wide, bool mapped, int64_t t0,
                               int64_t t1, int32_t *cursor)
{
    for (int64_t t = t0; t < t1; t++) {
        for (int32_t j = 0; j < a->top_k; j++) {
            const int32_t e = expert_of(a, wide, mapped, t * a->id_token_stride + j);
            if (e >= 0) {
                cursor[e]++;
            }
        }
    }
}

static inline void place_share(const moek_sort_args *a, bool wide, bool mapped, int64_t t0,
                               int64_t t1, int32_t *cursor)
{
    for (int64_t t = t0; t < t1; t++) {
        for (int32_t j = 0; j < a->top_k; j++) {
            const int64_t slot = t * a->top_k + j;
            const int32_t e = expert_of(a, wide, mapped, t * a->id_token_stride + j);
            const int32_t position = e >= 0 ? cursor[e]++ : -1;
            if (position >= 0) {
                a->slots[position] = (int32_t)slot;
            }
            if (a->positions != NULL) {
                a->positions[slot] = position;
            }
        }
    }
}

static inline void sort_share(const moek_sort_args *a, moek_sort_stage stage, bool wide,
                              bool mapped, int64_t t0, int64_t t1, int32_t *cursor)
{
    if (stage == MOEK_SORT_COUNT) {
        count_share(a, wide, mapped, t0, t1, cursor);
    } else {
        place_share(a, wide, mapped, t0, t1, cursor);
    }
}

moek_sort_fn MOEI_REF(moek_sort_i32);
void MOEI_REF(moek_sort_i32)(const moek_sort_args *args, moek_sort_stage stage, int64_t t0,
                             int64_t t1, int32_t *cursor)
{
    const moek_sort_args *a = args;
    const int64_t limit = a->num_valid == NULL ? a->tokens : a->num_valid[0];
    const int64_t end = limit < t0 ? t0 : limit < t1 ? limit : t1; // of the valid ones
    const bool mapped = a->expert_map != NULL;
    if (stage == MOEK_SORT_COUNT) {
        memset(cursor, 0, (size_t)a->num_experts * sizeof *cursor);
    } else if (a->positions != NULL) {
        for (int64_t slot = end * a->top_k; slot < t1 * a->top_k; slot++) {
            a->positions[slot] = -1;
        }
    }
    if (a->id_dtype == MOE_I64) {
        sort_share(a, stage, true, mapped, t0, end, cursor);
    } else if (mapped) {
        sort_share(a, stage, false, true, t0, end, cursor);
    } else {
        sort_share(a, stage, false, false, t0, end, cursor);
    }
}
