// SPDX-License-Identifier: Apache-2.0
// sort: a stable counting sort by one block. Each counting warp walks a segment of the slots in
// order, 32 at a time, with a counter of its own per expert; a scan over experts and warps turns
// the counters into first positions; a second walk places the slots.
#ifndef MOEI_GPU_SORT_CUH
#define MOEI_GPU_SORT_CUH

#include "backends/gpu/ids.cuh"
#include "backends/gpu/plans.h"

#define MOEI_SORT_STEP 8 // slots of a lane whose ids are loaded together

// 8 * 32 slots of a warp: lane l has first + l, first + 32 + l, ..
struct moei_sort_step {
    int32_t expert[MOEI_SORT_STEP]; // -1: absent
    int32_t rank[MOEI_SORT_STEP];   // what its counter stood at, plus the lanes before it
};

// Local expert of a slot below `valid`, -1 where it is absent.
DEV_FN int32_t moei_sort_expert(const moek_sort_args *a, uint32_t valid, uint32_t slot)
{
    if (slot >= valid) {
        return -1;
    }
    const uint32_t k = (uint32_t)a->top_k;
    const int64_t at =
        a->id_token_stride == a->top_k ? slot : slot / k * a->id_token_stride + slot % k;
    int64_t id = moei_gpu_load_id(a->id_dtype, a->ids, at);
    if (a->expert_map != NULL) {
        id = id >= 0 && id < a->num_global ? a->expert_map[id] : -1;
    }
    return id >= 0 && id < a->num_experts ? (int32_t)id : -1;
}

DEV_FN void moei_sort_load(const moek_sort_args *a, uint32_t valid, uint32_t first, uint32_t end,
                           moei_sort_step *s)
{
    const uint32_t last = end < valid ? end : valid;
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < MOEI_SORT_STEP; i++) {
        s->expert[i] = moei_sort_expert(a, last, first + 32 * i + dev_lane());
    }
}

// Moves the counters on by the slots of a step, in order: of the lanes that hold one expert, the
// first adds for all. The additions do not wait for each other's results.
DEV_FN void moei_sort_count(int32_t *counter, uint32_t first, uint32_t end, moei_sort_step *s)
{
    const uint32_t before = (1u << dev_lane()) - 1;
    uint32_t same[MOEI_SORT_STEP];
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < MOEI_SORT_STEP; i++) {
        if (first + 32 * i < end) { // for all lanes or none
            same[i] = dev_match_u32((uint32_t)s->expert[i]);
        }
    }
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < MOEI_SORT_STEP; i++) {
        if (first + 32 * i < end) {
            const int leader = dev_ffs(same[i]) - 1;
            int32_t old = 0;
            if (s->expert[i] >= 0 && (same[i] & before) == 0) {
                old = dev_add_i32(&counter[s->expert[i]], dev_popc(same[i]));
            }
            s->rank[i] = (int32_t)dev_shfl_u32((uint32_t)old, leader) + dev_popc(same[i] & before);
            dev_sync_warp();
        }
    }
}

// `base`: NULL, or what to add to the ranks of each expert.
DEV_FN void moei_sort_place(const moek_sort_args *a, const int32_t *base, uint32_t first,
                            uint32_t end, const moei_sort_step *s)
{
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < MOEI_SORT_STEP; i++) {
        const uint32_t slot = first + 32 * i + dev_lane();
        if (slot < end) {
            const int32_t e = s->expert[i];
            const int32_t at = e < 0 ? -1 : s->rank[i] + (base != NULL ? base[e] : 0);
            if (at >= 0) {
                a->slots[at] = (int32_t)slot;
            }
            if (a->positions != NULL) {
                a->positions[slot] = at;
            }
        }
    }
}

DEV_FN int32_t moei_sort_padded(const moek_sort_args *a, int32_t count)
{
    return a->block == 0 ? count : (count / a->block + (count % a->block != 0)) * a->block;
}

// Turns counters into first positions, the warps' one after the other in each expert; stores
// counts and offsets. Returns the end of the last expert. Begins and ends between barriers.
DEV_FN int32_t moei_sort_lay_out(const moek_sort_args *a, int32_t *counters, uint32_t counting,
                                 int32_t *sums)
{
    const uint32_t experts = (uint32_t)a->num_experts;
    const uint32_t lane = dev_lane();
    int32_t done = 0; // positions of the experts before
    for (uint32_t e0 = 0; e0 < experts; e0 += dev_threads()) {
        const uint32_t e = e0 + dev_thread();
        int32_t count = 0;
        for (uint32_t w = 0; e < experts && w < counting; w++) {
            count += counters[w * experts + e];
        }
        const int32_t room = moei_sort_padded(a, count);
        const int32_t up_to = dev_warp_scan_i32(room);
        if (lane == 31) {
            sums[dev_warp()] = up_to;
        }
        dev_sync();
        const int32_t warps_up_to = dev_warp_scan_i32(lane < dev_warps() ? sums[lane] : 0);
        const int32_t before =
            dev_warp() == 0 ? 0 : (int32_t)dev_shfl_u32((uint32_t)warps_up_to, (int)dev_warp() - 1);
        if (e < experts) {
            int32_t first = done + before + up_to - room;
            if (a->counts != NULL) {
                moei_gpu_store_id(a->count_dtype, a->counts, e, count);
            }
            if (a->block == 0) {
                a->offsets[e] = first;
            }
            for (uint32_t w = 0; w < counting; w++) {
                const int32_t own = counters[w * experts + e];
                counters[w * experts + e] = first;
                first += own;
            }
        }
        done += (int32_t)dev_shfl_u32((uint32_t)warps_up_to, 31);
        sums = e0 / dev_threads() % 2 == 0 ? sums + MOEI_GPU_SORT_WARPS
                                           : sums - MOEI_GPU_SORT_WARPS; // others still read
    }
    return done;
}

// The expert of each block: the last one whose first position is not beyond it.
DEV_FN void moei_sort_name_blocks(const moek_sort_args *a, const int32_t *first, int32_t end)
{
    const int32_t total = (int32_t)(a->padded / a->block + (a->padded % a->block != 0));
    for (int32_t b = (int32_t)dev_thread(); b < total; b += (int32_t)dev_threads()) {
        int32_t low = -1;
        if (b < end / a->block) {
            int32_t high = a->num_experts;
            low = 0; // first[low] <= b * block < first[high]
            while (high - low > 1) {
                const int32_t middle = (low + high) / 2;
                const bool up = first[middle] <= b * a->block;
                low = up ? middle : low;
                high = up ? high : middle;
            }
        }
        a->block_experts[b] = low;
    }
}

DEV_FN void moei_sort_fill(const moek_sort_args *a, int32_t from, int32_t to)
{
    const int32_t absent = (int32_t)(a->tokens * a->top_k);
    for (int32_t i = from + (int32_t)dev_thread(); i < to; i += (int32_t)dev_threads()) {
        a->slots[i] = absent;
    }
}

/// By the threads of one block, as `p` says; p.shared bytes of shared memory.
DEV_FN void moei_gpu_sort_block(const moek_sort_args *a, const moei_gpu_sort_plan *p, void *shared)
{
    int32_t *counters = (int32_t *)shared;
    const uint32_t experts = (uint32_t)a->num_experts;
    const uint32_t slots = (uint32_t)(a->tokens * a->top_k);
    const int64_t limit = a->num_valid == NULL ? a->tokens : a->num_valid[0];
    const int64_t tokens = limit < a->tokens ? limit : a->tokens;
    const uint32_t valid = tokens > 0 ? (uint32_t)(tokens * a->top_k) : 0;
    const bool counts = dev_warp() < p->counting;
    const uint32_t begin = dev_warp() * p->segment;
    const uint32_t end =
        slots - (counts && begin < slots ? begin : slots) < p->segment ? slots : begin + p->segment;
    const bool walks = counts && begin < slots;
    int32_t *own = counters + (counts ? dev_warp() * experts : 0);
    moei_sort_step step;

    for (uint32_t i = dev_thread(); i < p->counting * experts; i += dev_threads()) {
        counters[i] = 0;
    }
    if (a->block != 0) { // padding lies between the slots, too
        moei_sort_fill(a, 0, (int32_t)a->padded);
    }
    dev_sync();
    for (uint32_t s = begin; walks && s < end; s += 32 * MOEI_SORT_STEP) {
        moei_sort_load(a, valid, s, end, &step);
        moei_sort_count(own, s, end, &step);
    }
    dev_sync();
    const int32_t last =
        moei_sort_lay_out(a, counters, p->counting, counters + p->counting * experts);
    dev_sync();
    if (a->block == 0) {
        moei_sort_fill(a, last, (int32_t)slots);
        if (dev_thread() == 0) {
            a->offsets[experts] = last;
        }
    } else {
        moei_sort_name_blocks(a, counters, last);
        if (dev_thread() == 0) {
            a->num_padded[0] = last;
        }
        dev_sync(); // the walk moves the counters
    }
    if (walks && end - begin <= 32 * MOEI_SORT_STEP) {
        moei_sort_place(a, own, begin, end, &step);
        return;
    }
    for (uint32_t s = begin; walks && s < end; s += 32 * MOEI_SORT_STEP) {
        moei_sort_load(a, valid, s, end, &step);
        moei_sort_count(own, s, end, &step);
        moei_sort_place(a, NULL, s, end, &step);
    }
}

DEV_FN void moei_gpu_sort(const moek_sort_args *a)
{
    const moei_gpu_sort_plan plan =
        moei_gpu_plan_sort(a->tokens * a->top_k, a->num_experts, 32 * MOEI_GPU_SORT_WARPS);
    moei_gpu_sort_block(a, &plan, dev_shared());
}

#endif
