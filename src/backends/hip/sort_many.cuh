// SPDX-License-Identifier: Apache-2.0
// sort of so many experts that a block of gfx942 does not hold what gpu/sort.cuh keeps of them:
// one block with one word an expert. All warps count; then one places the slots, 32 at a time.
#ifndef MOEI_HIP_SORT_MANY_CUH
#define MOEI_HIP_SORT_MANY_CUH

#include "backends/gpu/sort.cuh"

/// Turns counts into the first position of each expert, and stores what the sort gives besides
/// slots. Begins and ends with a barrier. Returns the end of the last expert.
DEV_FN int32_t moei_hip_sort_join(const moei_sort_block *b, int32_t *cursor)
{
    const moek_sort_args *a = b->a;
    int32_t *sums = b->sums;
    int32_t done = 0; // positions of the experts before
    dev_sync();
    for (uint32_t e0 = 0; e0 < b->experts; e0 += dev_threads()) {
        const uint32_t e = e0 + dev_thread();
        int32_t all = 0;
        const int32_t count = e < b->experts ? cursor[e] : 0;
        const int32_t room = moei_sort_padded(a, count);
        const int32_t up_to = dev_warp_scan_i32(room);
        const int32_t total = (int32_t)dev_shfl_u32((uint32_t)up_to, 31);
        const int32_t first = done + moei_sort_warps_before(total, sums, &all) + up_to - room;
        done += all;
        sums = moei_sort_other_sums(b, sums);
        if (e < b->experts) {
            cursor[e] = first;
            if (a->counts != NULL) {
                moei_gpu_store_id(a->count_dtype, a->counts, e, count);
            }
            if (a->block == 0) {
                a->offsets[e] = first;
            }
        }
        if (a->block != 0) {
            moei_sort_name_blocks(a, e, first, room);
        }
    }
    if (dev_thread() == 0) {
        *(a->block == 0 ? &a->offsets[b->experts] : a->num_padded) = done;
    }
    dev_sync();
    return done;
}

DEV_FN void moei_hip_sort_many(const moek_sort_args *a)
{
    // A tile is what a warp takes at a time.
    const moei_gpu_sort_plan plan = {
        .threads = 0, .counting = 1, .segment = 32, .tiles = 0, .shared = 0};
    moei_sort_block b = {};
    b.a = a;
    b.p = &plan;
    b.experts = (uint32_t)a->num_experts;
    b.slots = (uint32_t)(a->tokens * a->top_k);
    b.valid = moei_sort_valid(a);
    b.sums = (int32_t *)dev_shared();
    int32_t *cursor = b.sums + MOEI_GPU_SORT_SUMS;
    const uint32_t tiles = (b.slots + 31) / 32;
    moei_sort_step<1> step;
    for (uint32_t e = dev_thread(); e < b.experts; e += dev_threads()) {
        cursor[e] = 0;
    }
    if (a->block != 0) { // padding lies between the slots, too
        moei_sort_fill(a, 0, (int32_t)a->padded);
    }
    dev_sync();
    for (uint32_t tile = dev_warp(); tile < tiles; tile += dev_warps()) {
        moei_sort_load<1>(&b, tile - dev_warp(), &step);
        moei_sort_count<1>(cursor, &step);
    }
    const int32_t done = moei_hip_sort_join(&b, cursor);
    if (a->block == 0) {
        moei_sort_fill(a, done, (int32_t)b.slots);
    } else {
        const int32_t named = (int32_t)(a->padded / a->block + (a->padded % a->block != 0));
        for (int32_t i = done / a->block + moei_sort_thread(); i < named;
             i += moei_sort_threads()) {
            a->block_experts[i] = -1;
        }
    }
    for (uint32_t tile = 0; dev_warp() == 0 && tile < tiles; tile++) {
        const uint32_t slot = 32 * tile + dev_lane();
        moei_sort_load<1>(&b, tile, &step);
        moei_sort_rank<1>(cursor, b.experts, &step);
        const int32_t position = step.expert[0] < 0 ? -1 : step.rank[0];
        if (position >= 0) {
            a->slots[position] = (int32_t)slot;
        }
        if (a->positions != NULL && slot < b.slots) {
            a->positions[slot] = position;
        }
    }
}

#endif
