// SPDX-License-Identifier: Apache-2.0
// gpu/dev.h on the host, for sanitizers and tests: tests/sim/sim.h runs the threads of a block as
// fibers. What a device would leave undefined ends the launch with a message: a shuffle, ballot,
// match, barrier or matrix instruction that some lanes do not reach, a lane out of range. C++17.
#ifndef MOEI_GPU_DEV_SIM_H
#define MOEI_GPU_DEV_SIM_H

#include <stdint.h>

#define DEV_FN static inline

extern "C" {

/// What the thread in hand knows of its place.
struct moei_sim_place {
    uint32_t thread, threads, block, blocks;
    void *shared;
    bool cdna4; // of AMD's machines the one that matrix instructions are of: gfx950, else gfx942
};
extern struct moei_sim_place moei_sim_here;

/// Waits for all lanes of the warp in `call`. Returns what each lane gave, valid until the next.
const uint32_t *moei_sim_exchange(const char *call, uint32_t v);

/// What a matrix instruction makes of what the 64 lanes of a wave gave, for each to take.
enum { MOEI_SIM_WAVE = 64, MOEI_SIM_GIVEN = 24, MOEI_SIM_TAKEN = 16 }; // lanes; words of a lane
typedef void moei_sim_wave_fn(const uint32_t (*given)[MOEI_SIM_GIVEN],
                              uint32_t (*taken)[MOEI_SIM_TAKEN]);

/// Waits for all lanes of the wave, which are two warps, in `call`; the last of them computes.
/// Returns what this lane takes, valid until the next.
const uint32_t *moei_sim_wave(const char *call, moei_sim_wave_fn *compute, const uint32_t *given,
                              uint32_t words);

/// Waits for all threads of the block, or of all blocks of the cluster.
void moei_sim_sync(void);
void moei_sim_sync_cluster(void);

/// Shared memory of a block of the cluster.
void *moei_sim_shared_of(uint32_t block);

/// Ends the launch.
[[noreturn]] void moei_sim_fail(const char *call, const char *what, int64_t value);

} // extern "C"

DEV_FN uint32_t dev_thread(void)
{
    return moei_sim_here.thread;
}

DEV_FN uint32_t dev_threads(void)
{
    return moei_sim_here.threads;
}

DEV_FN uint32_t dev_block(void)
{
    return moei_sim_here.block;
}

DEV_FN uint32_t dev_blocks(void)
{
    return moei_sim_here.blocks;
}

DEV_FN uint32_t dev_lane(void)
{
    return moei_sim_here.thread % 32;
}

DEV_FN uint32_t dev_warp(void)
{
    return moei_sim_here.thread / 32;
}

DEV_FN uint32_t dev_warps(void)
{
    return moei_sim_here.threads / 32;
}

DEV_FN void *dev_shared(void)
{
    return moei_sim_here.shared;
}

DEV_FN void dev_sync(void)
{
    moei_sim_sync();
}

DEV_FN void dev_sync_cluster(void)
{
    moei_sim_sync_cluster();
}

DEV_FN void dev_leave_cluster(void) // all leave in dev_left_cluster
{
}

DEV_FN void dev_left_cluster(void)
{
    if (dev_blocks() > 1) {
        moei_sim_sync_cluster();
    }
}

DEV_FN int32_t dev_get_i32(uint32_t block, const int32_t *p)
{
    return ((const int32_t *)moei_sim_shared_of(block))[p - (const int32_t *)dev_shared()];
}

DEV_FN void dev_follow(void) // launches end before the next begins
{
}

DEV_FN void dev_sync_warp(void)
{
    (void)moei_sim_exchange("dev_sync_warp", 0);
}

DEV_FN void dev_assume(bool v)
{
    if (!v) {
        moei_sim_fail("dev_assume", "condition", 0);
    }
}

DEV_FN uint32_t dev_shfl_u32(uint32_t v, int lane)
{
    if (lane < 0 || lane > 31) {
        moei_sim_fail("dev_shfl", "lane", lane);
    }
    return moei_sim_exchange("dev_shfl", v)[lane];
}

DEV_FN uint32_t dev_shfl_xor_u32(uint32_t v, int mask)
{
    if (mask < 0 || mask > 31) {
        moei_sim_fail("dev_shfl_xor", "mask", mask);
    }
    return moei_sim_exchange("dev_shfl_xor", v)[dev_lane() ^ (uint32_t)mask];
}

DEV_FN uint32_t moei_sim_bits(float v)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits;
}

DEV_FN float moei_sim_float(uint32_t bits)
{
    float v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
}

DEV_FN float dev_shfl_f32(float v, int lane)
{
    return moei_sim_float(dev_shfl_u32(moei_sim_bits(v), lane));
}

DEV_FN float dev_shfl_xor_f32(float v, int mask)
{
    return moei_sim_float(dev_shfl_xor_u32(moei_sim_bits(v), mask));
}

DEV_FN uint32_t dev_ballot(bool v)
{
    const uint32_t *all = moei_sim_exchange("dev_ballot", v);
    uint32_t bits = 0;
    for (int lane = 0; lane < 32; lane++) {
        bits |= all[lane] << lane;
    }
    return bits;
}

DEV_FN int dev_popc(uint32_t v)
{
    return __builtin_popcount(v);
}

DEV_FN int dev_ffs(uint32_t v)
{
    return __builtin_ffs((int)v);
}

DEV_FN int32_t dev_add_i32(int32_t *p, int32_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

DEV_FN uint32_t dev_max_u32(uint32_t *p, uint32_t v)
{
    uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < v &&
           !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

#endif
