// SPDX-License-Identifier: Apache-2.0
// sort, portable: count, prefix sums, place. One cursor an expert; slots are walked in ascending
// order, so the order inside an expert is ascending too.
#include "ops/sort.h"

#include "backends/cpu/ref/ref.h"

// Local expert of a slot, -1 where it is absent.
static int32_t expert_of(const moek_sort_args *a, int64_t t, int32_t j)
{
    const int64_t at = t * a->id_token_stride + j;
    int64_t id =
        a->id_dtype == MOE_I64 ? ((const int64_t *)a->ids)[at] : ((const int32_t *)a->ids)[at];
    if (a->expert_map != NULL) {
        id = id >= 0 && id < a->num_global ? a->expert_map[id] : -1;
    }
    return id >= 0 && id < a->num_experts ? (int32_t)id : -1;
}

static void store_count(const moek_sort_args *a, int32_t e, int32_t count)
{
    if (a->counts != NULL && a->count_dtype == MOE_I64) {
        ((int64_t *)a->counts)[e] = count;
    } else if (a->counts != NULL) {
        ((int32_t *)a->counts)[e] = count;
    }
}

// Turns counts into the first position of each expert and writes what the form has besides slots.
// Returns the end of the last expert.
static int32_t lay_out(const moek_sort_args *a, int32_t *cursor)
{
    int32_t at = 0;
    int64_t block = 0;
    for (int32_t e = 0; e < a->num_experts; e++) {
        const int32_t count = cursor[e];
        const int32_t first = at;
        store_count(a, e, count);
        cursor[e] = first;
        if (a->block == 0) {
            a->offsets[e] = first;
            at += count;
            continue;
        }
        const int32_t blocks = count / a->block + (count % a->block != 0);
        for (int32_t i = 0; i < blocks; i++) {
            a->block_experts[block++] = e;
        }
        at += blocks * a->block;
    }
    if (a->block == 0) {
        a->offsets[a->num_experts] = at;
    } else {
        const int64_t total = a->padded / a->block + (a->padded % a->block != 0);
        for (; block < total; block++) {
            a->block_experts[block] = -1;
        }
        a->num_padded[0] = at;
    }
    return at;
}

moek_sort_fn MOEI_REF(moek_sort_i32);
void MOEI_REF(moek_sort_i32)(const moek_sort_args *args)
{
    const moek_sort_args *a = args;
    const int64_t num_slots = a->tokens * a->top_k;
    const int64_t limit = a->num_valid == NULL ? a->tokens : a->num_valid[0];
    const int64_t valid = limit < a->tokens ? limit : a->tokens; // negative: none
    int32_t cursor[MOEI_SORT_MAX_EXPERTS];
    for (int32_t e = 0; e < a->num_experts; e++) {
        cursor[e] = 0;
    }
    for (int64_t t = 0; t < valid; t++) {
        for (int32_t j = 0; j < a->top_k; j++) {
            const int32_t e = expert_of(a, t, j);
            if (e >= 0) {
                cursor[e]++;
            }
        }
    }
    const int32_t end = lay_out(a, cursor);
    // Padding inside the blocks of an expert lies before `end`, so that all of it is filled first.
    for (int64_t i = a->block == 0 ? end : 0; i < (a->block == 0 ? num_slots : a->padded); i++) {
        a->slots[i] = (int32_t)num_slots;
    }
    for (int64_t t = 0; t < a->tokens; t++) {
        for (int32_t j = 0; j < a->top_k; j++) {
            const int64_t slot = t * a->top_k + j;
            const int32_t e = t < valid ? expert_of(a, t, j) : -1;
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
