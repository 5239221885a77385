// SPDX-License-Identifier: Apache-2.0
// sort: a stable counting sort by the blocks of one cluster (one block, where the machine has no
// clusters or the slots are few). Each block has a share of the slots, each of its counting warps a
// segment, which it walks in order, 32 slots at a time, with a counter of its own per expert. Sums
// over the warps give the order inside the block, sums over the blocks the first position of a
// block in each expert. Slots are put in order in shared memory first: those of an expert are then
// stored side by side.
//
// A share that does not fit is sorted tile by tile, after a walk that only counts.
//
// Few slots are sorted without counters, by one block: moei_sort_few.
#ifndef MOEI_GPU_SORT_CUH
#define MOEI_GPU_SORT_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/ids.cuh"

#define MOEI_SORT_LANES 4 // that add up the counters of an expert
#define MOEI_SORT_EACH  (MOEI_GPU_SORT_WARPS / MOEI_SORT_LANES)

// What a block sorts with.
struct moei_sort_block {
    const moek_sort_args *a;
    const moei_gpu_sort_plan *p;
    uint32_t experts, pitch;
    uint32_t slots, valid; // those from `valid` on are absent
    // In shared memory
    int32_t *counters; // [counting][pitch]; laid out: first places in the order of the tile
    int32_t *count;    // [experts]: slots of this block, which the other blocks read; then the end
                       // of an expert in the order of the tile
    int32_t *shift;    // [experts]: from a place in that order to a position
    uint32_t *order;   // [tile]: expert << 16 | slot of the tile
    int32_t *sums;     // [2][warps]
};

// Keys of few slots that are read at once.
struct alignas(16) moei_sort_four {
    uint32_t key[4];
};

// S times 32 slots of a warp: lane l has first + l, first + 32 + l, ..
template <int S> struct moei_sort_step {
    int32_t expert[S]; // -1: absent
    int32_t rank[S];   // what its counter stood at, plus the lanes before it
};

// The first slot of a warp in a tile.
DEV_FN uint32_t moei_sort_first(const moei_sort_block *b, uint32_t tile)
{
    return (dev_block() * b->p->tiles + tile) * b->p->counting * b->p->segment +
           dev_warp() * b->p->segment;
}

// Local experts of the slots of a tile, -1 where they are absent. Loads of one kind stand together:
// none waits for another.
template <int S>
DEV_FN void moei_sort_load(const moei_sort_block *b, uint32_t tile, moei_sort_step<S> *s)
{
    const moek_sort_args *a = b->a;
    const uint32_t first = moei_sort_first(b, tile);
    const uint32_t end = first + b->p->segment;
    const uint32_t last = end < b->valid ? end : b->valid;
    int64_t at[S];
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < S; i++) {
        const uint32_t slot = first + 32 * i + dev_lane();
        at[i] = slot < last ? (int64_t)slot : -1;
    }
    if (a->id_token_stride != a->top_k) {
        const uint32_t k = (uint32_t)a->top_k;
        MOEI_GPU_UNROLL
        for (int i = 0; i < S; i++) {
            const uint32_t slot = at[i] < 0 ? 0 : (uint32_t)at[i];
            const int64_t strided = slot / k * a->id_token_stride + slot % k;
            at[i] = at[i] < 0 ? -1 : strided;
        }
    }
    if (a->id_dtype == MOE_I64) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < S; i++) {
            const int64_t id = at[i] < 0 ? -1 : ((const int64_t *)a->ids)[at[i]];
            s->expert[i] = id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
        }
    } else {
        MOEI_GPU_UNROLL
        for (int i = 0; i < S; i++) {
            s->expert[i] = at[i] < 0 ? -1 : ((const int32_t *)a->ids)[at[i]];
        }
    }
    if (a->expert_map != NULL) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < S; i++) {
            const int32_t id = s->expert[i];
            s->expert[i] = id >= 0 && id < a->num_global ? a->expert_map[id] : -1;
        }
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        s->expert[i] = (uint32_t)s->expert[i] < b->experts ? s->expert[i] : -1;
    }
}

// Moves the counters on by the slots of a step, in order: of the lanes that hold one expert, the
// first adds for all. Those lanes are found bit by bit of the expert, a ballot each; what is absent
// differs from every expert in one of the bits.
template <int S>
DEV_FN void moei_sort_rank(int32_t *counter, uint32_t experts, moei_sort_step<S> *s)
{
    const uint32_t before = (1u << dev_lane()) - 1;
    uint32_t same[S];
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        same[i] = ~0u;
    }
    for (uint32_t bit = 0; experts >> bit != 0; bit++) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < S; i++) {
            const bool one = ((uint32_t)s->expert[i] >> bit & 1) != 0;
            const uint32_t ones = dev_ballot(one);
            same[i] &= one ? ones : ~ones;
        }
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) { // the additions do not wait for each other's results
        s->rank[i] = 0;
        if (s->expert[i] >= 0 && (same[i] & before) == 0) {
            s->rank[i] = dev_add_i32(&counter[s->expert[i]], dev_popc(same[i]));
        }
        dev_sync_warp();
    }
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        const uint32_t old = dev_shfl_u32((uint32_t)s->rank[i], dev_ffs(same[i]) - 1);
        s->rank[i] = (int32_t)old + dev_popc(same[i] & before);
    }
}

// The same counters, without ranks.
template <int S> DEV_FN void moei_sort_count(int32_t *counter, const moei_sort_step<S> *s)
{
    MOEI_GPU_UNROLL
    for (int i = 0; i < S; i++) {
        if (s->expert[i] >= 0) {
            (void)dev_add_i32(&counter[s->expert[i]], 1);
        }
    }
}

DEV_FN void moei_sort_clear(const moei_sort_block *b, bool counts)
{
    for (uint32_t e = dev_thread(); counts && e < b->experts; e += dev_threads()) {
        b->count[e] = 0;
    }
    for (uint32_t i = dev_thread(); i < b->p->counting * b->pitch; i += dev_threads()) {
        b->counters[i] = 0;
    }
}

// Sum of v over the warps before this one, and over all. All lanes of a warp give the same v. One
// barrier; `sums` is another piece of memory than that of the call before.
DEV_FN int32_t moei_sort_warps_before(int32_t v, int32_t *sums, int32_t *all)
{
    const uint32_t lane = dev_lane();
    if (lane == 0) {
        sums[dev_warp()] = v;
    }
    dev_sync();
    const int32_t up_to = dev_warp_scan_i32(lane < dev_warps() ? sums[lane] : 0);
    *all = (int32_t)dev_shfl_u32((uint32_t)up_to, 31);
    return (int32_t)dev_shfl_u32((uint32_t)up_to, (int)dev_warp()) - v;
}

DEV_FN int32_t *moei_sort_other_sums(const moei_sort_block *b, const int32_t *sums)
{
    return sums == b->sums ? b->sums + MOEI_GPU_SORT_WARPS : b->sums;
}

// Sum over the lanes up to this one, `step` apart, within groups of `width`.
DEV_FN int32_t moei_sort_scan(int32_t v, uint32_t step, uint32_t width)
{
    const uint32_t lane = dev_lane();
    for (uint32_t d = step; d < width; d *= 2) {
        const bool has = lane % width >= d;
        const int32_t other = (int32_t)dev_shfl_u32((uint32_t)v, (int)(has ? lane - d : lane));
        v += has ? other : 0;
    }
    return v;
}

// Turns counters into first places in the block's order, the warps' one after the other in each
// expert. Four lanes have an expert, each a quarter of the warps. `first`: of the block, else of a
// tile after others. Returns the end of the last expert. Begins after a barrier.
DEV_FN int32_t moei_sort_lay_out(const moei_sort_block *b, bool first)
{
    const uint32_t lane = dev_lane();
    const uint32_t width = 32 / MOEI_SORT_LANES; // experts of a warp
    const uint32_t each = (b->p->counting + MOEI_SORT_LANES - 1) / MOEI_SORT_LANES;
    const uint32_t row = lane / width * each;
    int32_t *sums = b->sums;
    int32_t done = 0; // places of the experts before
    for (uint32_t e0 = 0; e0 < b->experts; e0 += width * dev_warps()) {
        const uint32_t e = e0 + width * dev_warp() + lane % width;
        int32_t own[MOEI_SORT_EACH] = {0};
        int32_t sum = 0;
        int32_t up_to = 0; // sum over the lanes of an expert
        int32_t count = 0;
        int32_t end = 0; // sum over the experts of the warp
        int32_t total = 0;
        int32_t all = 0;
        if (e - lane % width < b->experts) { // for all lanes or none
            MOEI_GPU_UNROLL
            for (uint32_t i = 0; i < MOEI_SORT_EACH; i++) {
                const bool there = i < each && row + i < b->p->counting && e < b->experts;
                own[i] = there ? b->counters[(row + i) * b->pitch + e] : 0;
                sum += own[i];
            }
            up_to = moei_sort_scan(sum, width, 32);
            count = (int32_t)dev_shfl_u32((uint32_t)up_to, (int)(32 - width + lane % width));
            end = moei_sort_scan(count, 1, width);
            total = (int32_t)dev_shfl_u32((uint32_t)end, (int)width - 1);
        }
        end += done + moei_sort_warps_before(total, sums, &all);
        done += all;
        sums = moei_sort_other_sums(b, sums);
        if (e < b->experts && lane < width) {
            const int32_t position = first ? 0 : b->shift[e] + b->count[e];
            b->shift[e] = first ? end - count : position - (end - count);
            b->count[e] = first ? count : end;
        }
        int32_t at = end - count + up_to - sum;
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < MOEI_SORT_EACH; i++) {
            if (i < each && row + i < b->p->counting && e < b->experts) {
                b->counters[(row + i) * b->pitch + e] = at;
                at += own[i];
            }
        }
    }
    return done;
}

DEV_FN int32_t moei_sort_padded(const moek_sort_args *a, int32_t count)
{
    return a->block == 0 ? count : (count / a->block + (count % a->block != 0)) * a->block;
}

// Thread i of all blocks has i, i + threads of all, ..
DEV_FN int32_t moei_sort_thread(void)
{
    return (int32_t)(dev_block() * dev_threads() + dev_thread());
}

DEV_FN int32_t moei_sort_threads(void)
{
    return (int32_t)(dev_blocks() * dev_threads());
}

DEV_FN void moei_sort_fill(const moek_sort_args *a, int32_t from, int32_t to)
{
    const int32_t absent = (int32_t)(a->tokens * a->top_k);
    for (int32_t i = from + moei_sort_thread(); i < to; i += moei_sort_threads()) {
        a->slots[i] = absent;
    }
}

// The blocks of positions of a warp's experts: lane l knows those of one.
DEV_FN void moei_sort_name_blocks(const moek_sort_args *a, uint32_t e, int32_t first, int32_t room)
{
    const uint32_t block = (uint32_t)first / (uint32_t)a->block;
    const uint32_t blocks = (uint32_t)room / (uint32_t)a->block;
    for (int l = 0; l < 32; l++) {
        const int32_t begin = (int32_t)dev_shfl_u32(block, l);
        const int32_t count = (int32_t)dev_shfl_u32(blocks, l);
        for (int32_t i = (int32_t)(dev_block() * 32 + dev_lane()); i < count;
             i += (int32_t)(dev_blocks() * 32)) {
            a->block_experts[begin + i] = (int32_t)(e - dev_lane()) + l;
        }
    }
}

// What all blocks have of an expert, and those before this one. No load waits for another, and no
// two blocks ask the same one at a time.
DEV_FN int32_t moei_sort_gather(const moei_sort_block *b, uint32_t e, int32_t *before)
{
    int32_t sum = 0;
    *before = 0;
    if (dev_blocks() == 1) {
        return b->count[e];
    }
    int32_t count[MOEI_GPU_CLUSTER];
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < MOEI_GPU_CLUSTER; i++) {
        count[i] = i < dev_blocks() ? dev_get_i32(i ^ dev_block(), b->count + e) : 0;
    }
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < MOEI_GPU_CLUSTER; i++) {
        *before += (i ^ dev_block()) < dev_block() ? count[i] : 0;
        sum += count[i];
    }
    return sum;
}

// First positions from the counts of all blocks, of which the first stores what the sort gives
// besides slots. Begins with a barrier of the cluster; dev_left_cluster comes before counts change.
DEV_FN void moei_sort_join(const moei_sort_block *b)
{
    const moek_sort_args *a = b->a;
    const bool stores = dev_block() == 0;
    int32_t *sums = b->sums;
    int32_t done = 0; // positions of the experts before
    dev_sync_cluster();
    for (uint32_t e0 = 0; e0 < b->experts; e0 += dev_threads()) {
        const uint32_t e = e0 + dev_thread();
        int32_t before = 0;
        int32_t all = 0;
        const int32_t count = e < b->experts ? moei_sort_gather(b, e, &before) : 0;
        const int32_t room = moei_sort_padded(a, count);
        const int32_t up_to = dev_warp_scan_i32(room);
        const int32_t total = (int32_t)dev_shfl_u32((uint32_t)up_to, 31);
        const int32_t first = done + moei_sort_warps_before(total, sums, &all) + up_to - room;
        done += all;
        sums = moei_sort_other_sums(b, sums);
        if (e < b->experts) {
            b->shift[e] = first + before - (b->p->tiles == 1 ? b->shift[e] : 0);
        }
        if (e < b->experts && stores && a->counts != NULL) {
            moei_gpu_store_id(a->count_dtype, a->counts, e, count);
        }
        if (e < b->experts && stores && a->block == 0) {
            a->offsets[e] = first;
        }
        if (a->block != 0) {
            moei_sort_name_blocks(a, e, first, room);
        }
    }
    dev_leave_cluster();
    if (a->block == 0) {
        moei_sort_fill(a, done, (int32_t)b->slots);
    } else {
        const int32_t named = (int32_t)(a->padded / a->block + (a->padded % a->block != 0));
        for (int32_t i = done / a->block + moei_sort_thread(); i < named;
             i += moei_sort_threads()) {
            a->block_experts[i] = -1;
        }
    }
    if (stores && dev_thread() == 0) {
        *(a->block == 0 ? &a->offsets[b->experts] : a->num_padded) = done;
    }
    dev_sync();
}

// A tile whose counters are laid out: its order, then what it gives. `end`: of its last expert.
template <int S>
DEV_FN void moei_sort_store(const moei_sort_block *b, uint32_t tile, int32_t end,
                            const moei_sort_step<S> *s)
{
    const uint32_t first = moei_sort_first(b, tile);
    const uint32_t begin = first - dev_warp() * b->p->segment; // of the tile
    if (dev_warp() < b->p->counting) {
        const int32_t *own = b->counters + dev_warp() * b->pitch;
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < S; i++) {
            const uint32_t slot = first + 32 * i + dev_lane();
            const int32_t e = s->expert[i];
            const int32_t at = e < 0 ? -1 : own[e] + s->rank[i];
            if (at >= 0) {
                b->order[at] = (uint32_t)e << 16 | (slot - begin);
            }
            if (b->a->positions != NULL && 32 * i < b->p->segment && slot < b->slots) {
                b->a->positions[slot] = at < 0 ? -1 : b->shift[e] + at;
            }
        }
    }
    dev_sync();
    uint32_t word[S]; // a warp has S times 32 slots at most
    int32_t shift[S];
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < S; i++) {
        const int32_t at = (int32_t)(i * dev_threads() + dev_thread());
        word[i] = at < end ? b->order[at] : 0;
    }
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < S; i++) {
        shift[i] = b->shift[word[i] >> 16];
    }
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < S; i++) {
        const int32_t at = (int32_t)(i * dev_threads() + dev_thread());
        if (at < end) {
            b->a->slots[shift[i] + at] = (int32_t)(begin + (word[i] & 0xFFFF));
        }
    }
}

// Walks the tiles; before several, all of them for the counts of the block. Counters are zero.
template <int S> DEV_FN void moei_sort_tiles(const moei_sort_block *b)
{
    const bool counts = dev_warp() < b->p->counting;
    const int32_t tiles = (int32_t)b->p->tiles;
    const int32_t begin = tiles == 1 ? 0 : -1;
    int32_t *own = b->counters + (counts ? dev_warp() * b->pitch : 0);
    moei_sort_step<S> step;
    for (int32_t tile = begin; tile < tiles; tile++) {
        if (counts && tile >= 0) {
            moei_sort_load<S>(b, (uint32_t)tile, &step);
        }
        if (tile > begin) {
            moei_sort_clear(b, tile == 0);
        }
        dev_sync(); // of the tile before, too
        if (counts && tile >= 0) {
            moei_sort_rank<S>(own, b->experts, &step);
        }
        for (int32_t t = 0; counts && tile < 0 && t < tiles; t++) {
            moei_sort_load<S>(b, (uint32_t)t, &step);
            moei_sort_count<S>(own, &step);
        }
        dev_sync();
        const int32_t end = moei_sort_lay_out(b, tile == begin);
        if (tile == begin) {
            moei_sort_join(b);
        } else {
            dev_sync();
        }
        if (tile >= 0) {
            moei_sort_store<S>(b, (uint32_t)tile, end, &step);
        }
        if (tile == begin) {
            dev_left_cluster();
        }
    }
}

// Without `valid`.
DEV_FN moei_sort_block moei_sort_begin(const moei_gpu_sort_args *s)
{
    const moek_sort_args *a = &s->a;
    const moei_gpu_sort_plan *p = &s->plan;
    moei_sort_block b = {};
    b.a = a;
    b.p = p;
    b.experts = (uint32_t)a->num_experts;
    b.pitch = moei_gpu_sort_pitch(a->num_experts);
    b.slots = (uint32_t)(a->tokens * a->top_k);
    b.counters = (int32_t *)dev_shared();
    b.count = b.counters + p->counting * b.pitch;
    b.shift = b.count + b.experts;
    b.order = (uint32_t *)(b.shift + b.experts);
    b.sums = (int32_t *)(b.order + p->counting * p->segment);
    return b;
}

DEV_FN uint32_t moei_sort_valid(const moek_sort_args *a)
{
    const int64_t limit = a->num_valid == NULL ? a->tokens : a->num_valid[0];
    const int64_t tokens = limit < a->tokens ? limit : a->tokens;
    return tokens > 0 ? (uint32_t)(tokens * a->top_k) : 0;
}

// After the launches before this one: those of a run before may still count.
DEV_FN void moei_sort_clear_counters(const moei_gpu_counters *c)
{
    for (uint32_t i = dev_thread(); dev_block() == 0 && i < c->count; i += dev_threads()) {
        c->first[i] = 0;
    }
}

/// What may be done before ids are there. The grid is one cluster; plan.shared bytes of shared
/// memory.
DEV_FN void moei_sort_prepare(const moei_gpu_sort_args *s)
{
    const moei_sort_block b = moei_sort_begin(s);
    moei_sort_clear(&b, false);
}

/// The rest.
DEV_FN void moei_sort_all(const moei_gpu_sort_args *s)
{
    const moek_sort_args *a = &s->a;
    const moei_gpu_sort_plan *p = &s->plan;
    moei_sort_block b = moei_sort_begin(s);
    moei_sort_clear_counters(&s->counters);
    b.valid = moei_sort_valid(a);
    if (a->block != 0) { // padding lies between the slots, too
        moei_sort_fill(a, 0, (int32_t)a->padded);
    }
    if (p->segment <= 64) {
        moei_sort_tiles<2>(&b);
    } else {
        moei_sort_tiles<MOEI_GPU_SORT_SEGMENT / 32>(&b);
    }
}

DEV_FN void moei_gpu_sort(const moei_gpu_sort_args *s)
{
    moei_sort_prepare(s);
    dev_follow();
    moei_sort_all(s);
}

// ---- few slots ---------------------------------------------------------------------------------

// Keys below `bound`.
DEV_FN int32_t moei_sort_below(uint32_t slots, uint32_t bound)
{
    const moei_sort_four *keys = (const moei_sort_four *)dev_shared();
    uint32_t count[4] = {0};
    for (uint32_t i = 0; i < slots; i += 4) {
        const moei_sort_four four = keys[i / 4];
        MOEI_GPU_UNROLL
        for (int j = 0; j < 4; j++) {
            count[j] += (four.key[j] - bound) >> 31;
        }
    }
    return (int32_t)(count[0] + count[1] + count[2] + count[3]);
}

/// Each thread has a slot or an expert: the place of either is the number of keys below its own,
/// absent slots after the others. Begins after a barrier, the keys in shared memory.
DEV_FN void moei_sort_few(const moei_gpu_sort_args *s)
{
    const moek_sort_args *a = &s->a;
    const uint32_t *keys = (const uint32_t *)dev_shared();
    const uint32_t slots = (uint32_t)(a->tokens * a->top_k);
    const uint32_t experts = (uint32_t)a->num_experts;
    moei_sort_clear_counters(&s->counters);
    for (uint32_t i = dev_thread(); i <= slots + experts; i += dev_threads()) {
        const uint32_t e = i - slots;
        const uint32_t key = i < slots ? keys[i] : moei_gpu_sort_key((int32_t)e, 0);
        const int32_t at = moei_sort_below(slots, key);
        if (i < slots) {
            const bool absent = key >= moei_gpu_sort_key(-1, 0);
            a->slots[at] = (int32_t)(absent ? slots : i);
            if (a->positions != NULL) {
                a->positions[i] = absent ? -1 : at;
            }
            continue;
        }
        a->offsets[e] = at;
        if (a->counts != NULL && e < experts) {
            const uint32_t next = moei_gpu_sort_key((int32_t)e + 1, 0);
            moei_gpu_store_id(a->count_dtype, a->counts, e, moei_sort_below(slots, next) - at);
        }
    }
}

/// A thread for each key.
DEV_FN void moei_gpu_sort_few(const moei_gpu_sort_args *s)
{
    moei_sort_block b = moei_sort_begin(s);
    uint32_t *keys = (uint32_t *)dev_shared();
    b.valid = moei_sort_valid(b.a);
    moei_sort_step<1> step = {{-1}, {0}};
    if (dev_warp() < b.p->counting) {
        moei_sort_load<1>(&b, 0, &step);
    }
    if (dev_thread() < moei_gpu_few_keys(b.slots)) {
        keys[dev_thread()] = moei_gpu_sort_key(step.expert[0], dev_thread());
    }
    dev_sync();
    moei_sort_few(s);
}

#endif
