// SPDX-License-Identifier: Apache-2.0
// The host's stand-in for a device (tests/sim): what dev.h promises, in every order of threads; and
// what dev.h forbids ends a launch with a message that names the body, the block and the threads.
#include <stdlib.h>
#include <string.h>

#include "backends/gpu/dev.h"
#include "sim/sim.h"
#include "unit/test.h"

moe_status moei_gpu_launch(const moei_exec *, moei_gpu_body, moei_gpu_grid, const void *)
{
    return MOE_E_DEVICE; // nothing here calls a driver
}

uint32_t moei_gpu_cluster_blocks(const moei_exec *)
{
    return 1;
}

static bool launch(void (*run)(const void *), moei_gpu_grid grid, const void *args, char *text)
{
    const moei_sim_body body = {"trial", run, sizeof(void *), 1024};
    return moei_sim_launch(&body, grid, args, 0, text, 256);
}

// ---- what dev.h promises -----------------------------------------------------------------------

enum { THREADS = 96, BLOCKS = 3 };

struct seen {
    int32_t threads[BLOCKS * THREADS];
    int32_t sum, wrong;
    uint32_t most;
    bool poisoned, cluster;
};

static void promises(const void *args)
{
    seen *s = *(seen *const *)args;
    const uint32_t lane = dev_lane();
    uint32_t *shared = (uint32_t *)dev_shared();
    if (shared[dev_thread()] != 0xA5A5A5A5u) {
        s->poisoned = false;
    }
    bool good = dev_threads() == THREADS && dev_blocks() == BLOCKS && dev_warps() == THREADS / 32;
    good = good && dev_warp() * 32 + lane == dev_thread();
    good = good && dev_shfl_u32(10 + lane, (int)(31 - lane)) == 10 + 31 - lane;
    good = good && dev_shfl_xor_u32(lane, 5) == (lane ^ 5);
    good = good && dev_ballot(lane % 3 == 0) == 0x49249249u;
    good = good && dev_warp_max_u32(lane * 7 % 32) == 31;
    good = good && dev_warp_sum((float)lane) == 496.0f;
    good = good && dev_popc(0xF0F0u) == 8 && dev_ffs(0) == 0 && dev_ffs(8) == 4;
    shared[dev_thread()] = dev_thread();
    dev_sync();
    good = good && shared[THREADS - 1 - dev_thread()] == THREADS - 1 - dev_thread();
    if (s->cluster) { // each block reads what the next one has written, then writes again
        const uint32_t next = (dev_block() + 1) % BLOCKS;
        dev_sync();
        shared[dev_thread()] = 1000 * dev_block() + dev_thread();
        dev_sync_cluster();
        const uint32_t last = THREADS - 1 - dev_thread();
        const int32_t other = dev_get_i32(next, (const int32_t *)shared + last);
        good = good && (uint32_t)other == 1000 * next + last;
        dev_sync_cluster();
        shared[dev_thread()] = 0;
    }
    (void)dev_add_i32(&s->threads[dev_block() * THREADS + dev_thread()], 1);
    (void)dev_add_i32(&s->sum, (int32_t)dev_thread());
    (void)dev_max_u32(&s->most, dev_thread());
    (void)dev_add_i32(&s->wrong, good ? 0 : 1);
}

static void check_promises(const char *order, bool cluster)
{
    static seen s;
    seen *args = &s;
    char text[256] = "";
    s = seen();
    s.poisoned = true;
    s.cluster = cluster;
    (void)setenv("MOE_SIM_ORDER", order, 1);
    CHECK(launch(promises, {BLOCKS, THREADS, 4 * THREADS, cluster}, &args, text), "%s", text);
    CHECK(s.wrong == 0 && s.poisoned, "order %s: %d threads saw something else", order,
          (int)s.wrong);
    CHECK(s.sum == BLOCKS * THREADS * (THREADS - 1) / 2 && s.most == THREADS - 1,
          "order %s: sum %d, most %u", order, (int)s.sum, (unsigned)s.most);
    for (int i = 0; i < BLOCKS * THREADS; i++) {
        CHECK(s.threads[i] == 1, "order %s: thread %d ran %d times", order, i, (int)s.threads[i]);
    }
}

// Every lane takes what the lane before it in the wave gave, and the sum of what all gave.
static void pass_on(const uint32_t (*given)[MOEI_SIM_GIVEN], uint32_t (*taken)[MOEI_SIM_TAKEN])
{
    uint32_t sum = 0;
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        sum += given[l][1];
    }
    for (int l = 0; l < MOEI_SIM_WAVE; l++) {
        taken[l][0] = given[(l + 63) % 64][0];
        taken[l][1] = sum;
    }
}

enum { WAVES = 4 };

// Waves go their own ways between barriers: each comes together another number of times.
static void waves(const void *args)
{
    seen *s = *(seen *const *)args;
    const uint32_t lane = dev_thread() % 64;
    const uint32_t wave = dev_thread() / 64;
    bool good = true;
    for (int turn = 0; turn < 2; turn++) {
        uint32_t given[2] = {1000 * wave + lane, lane};
        for (uint32_t i = 0; i <= wave; i++) {
            const uint32_t *taken = moei_sim_wave("pass_on", pass_on, given, 2);
            good =
                good && taken[0] == 1000 * wave + (lane + 63 - i) % 64 && taken[1] == 2016 + 64 * i;
            given[0] = taken[0];
            given[1]++;
        }
        dev_sync();
    }
    (void)dev_add_i32(&s->wrong, good ? 0 : 1);
}

static void check_waves(const char *order)
{
    static seen s;
    seen *args = &s;
    char text[256] = "";
    s = seen();
    (void)setenv("MOE_SIM_ORDER", order, 1);
    CHECK(launch(waves, {2, 64 * WAVES, 0, false}, &args, text), "%s", text);
    CHECK(s.wrong == 0, "order %s: %d threads took something else", order, (int)s.wrong);
}

// ---- what it forbids ---------------------------------------------------------------------------

static void some_lanes_shuffle(const void *)
{
    if (dev_block() == 1 && dev_lane() != 7) {
        (void)dev_shfl_u32(1, 0);
    }
}

static void some_lanes_sync(const void *)
{
    if (dev_lane() < 16) {
        dev_sync();
    } else {
        dev_sync_warp();
    }
}

static void some_warps_sync(const void *)
{
    if (dev_warp() == 0) {
        dev_sync();
    }
}

static void lane_32(const void *)
{
    (void)dev_shfl_u32(1, (int)dev_lane() + 1);
}

static void no_cluster(const void *)
{
    dev_sync_cluster();
}

static void too_early(const void *)
{
    (void)dev_get_i32(1 - dev_block(), (const int32_t *)dev_shared());
    dev_sync_cluster();
}

static void too_late(const void *)
{
    dev_sync_cluster();
    (void)dev_get_i32(1 - dev_block(), (const int32_t *)dev_shared());
}

static void some_blocks_sync(const void *)
{
    if (dev_block() == 0) {
        dev_sync_cluster();
    }
}

// Instructions of a wave that some of its lanes do not reach.
static void give_to(const char *call)
{
    uint32_t given[2] = {};
    (void)moei_sim_wave(call, pass_on, given, 2);
}

static void one_lane_leaves(const void *)
{
    if (dev_thread() != 70) {
        give_to("mfma");
    }
}

static void half_a_wave(const void *)
{
    if (dev_thread() < 32) {
        give_to("mfma");
    } else {
        dev_sync();
    }
}

static void halves_differ(const void *)
{
    give_to(dev_thread() % 64 < 32 ? "mfma" : "another");
}

static void lanes_differ(const void *)
{
    give_to(dev_lane() < 16 ? "mfma" : "another");
}

static void check_refusal(void (*run)(const void *), moei_gpu_grid grid, const char *order,
                          const char *want)
{
    char text[256] = "nothing";
    const void *args = NULL;
    (void)setenv("MOE_SIM_ORDER", order, 1);
    CHECK(!launch(run, grid, &args, text) && strcmp(text, want) == 0,
          "order %s: \"%s\", not \"%s\"", order, text, want);
}

int main(void)
{
    static const char *const orders[] = {"0", "1", "2", "3"};
    for (const char *order : orders) {
        check_promises(order, false);
        check_promises(order, true);
        check_refusal(some_lanes_shuffle, {2, 32, 0, false}, order,
                      "body trial, block 1: thread 0 is in dev_shfl, thread 7 in its end");
        check_refusal(some_lanes_sync, {1, 32, 0, false}, order,
                      "body trial, block 0: thread 0 is in dev_sync, thread 16 in dev_sync_warp");
        check_refusal(some_warps_sync, {1, 64, 0, false}, order,
                      "body trial, block 0: thread 0 is in dev_sync, thread 32 in its end");
        check_refusal(lane_32, {1, 32, 0, false}, order,
                      "body trial, block 0: thread 31: dev_shfl: lane 32 is out of range");
        check_refusal(lane_32, {1, 33, 0, false}, order,
                      "body trial: grid of 1 blocks, 33 threads (at most 1024), 0 bytes of shared "
                      "memory (at most 232448)");
        check_refusal(lane_32, {1, 32, 232449, false}, order,
                      "body trial: grid of 1 blocks, 32 threads (at most 1024), 232449 bytes of "
                      "shared memory (at most 232448)");
        check_refusal(NULL, {1, 32, 0, false}, order, "body trial: there is no such body");
        check_refusal(no_cluster, {2, 32, 0, false}, "0",
                      "body trial, block 0: thread 0: dev_sync_cluster without a cluster: block 0 "
                      "is out of range");
        check_refusal(too_early, {2, 32, 0, true}, "0",
                      "body trial, block 0: thread 0: dev_get_i32 before its beginning or after "
                      "its end: block 1 is out of range");
        check_refusal(too_late, {2, 32, 0, true}, "0",
                      "body trial, block 1: thread 0: dev_get_i32 before its beginning or after "
                      "its end: block 0 is out of range");
        check_refusal(some_blocks_sync, {2, 32, 0, true}, "1",
                      "body trial, block 0: thread 0 is in dev_sync_cluster, thread 0 in its end");
        check_waves(order);
        check_refusal(one_lane_leaves, {1, 128, 0, false}, order,
                      "body trial, block 0: thread 64 is in mfma, thread 70 in its end");
        check_refusal(half_a_wave, {1, 64, 0, false}, "0",
                      "body trial, block 0: thread 0 is in mfma, thread 32 in dev_sync");
        check_refusal(halves_differ, {1, 64, 0, false}, "0",
                      "body trial, block 0: thread 0 is in mfma, thread 32 in another");
        check_refusal(lanes_differ, {1, 64, 0, false}, "0",
                      "body trial, block 0: thread 0 is in mfma, thread 16 in another");
        check_refusal(halves_differ, {1, 32, 0, false}, order,
                      "body trial, block 0: thread 0 is in mfma, its wave has 32 lanes");
        check_refusal(lane_32, {9, 32, 0, true}, order,
                      "body trial: cluster of 9 blocks (at most 8)");
        check_promises(order, true); // nothing is left of a failed launch
    }
    return test_summary();
}
