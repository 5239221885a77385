// SPDX-License-Identifier: Apache-2.0
// The little that device code needs of its machine. The bodies of route, place, sort, quantize,
// glu, combine and the portable ggemm (gpu/<op>.cuh) are written once over these functions:
//   dev_cuda.h  NVIDIA, compiled by nvcc
//   dev_hip.h   AMD, compiled by clang
//   dev_sim.h   the host: fibers, for sanitizers and tests
// A warp is 32 lanes everywhere (on a machine with wider waves, half of one).
//
//   DEV_FN                         qualifier of every function that runs on the device
//   dev_thread() dev_threads()     index in the block, threads of a block (a multiple of 32)
//   dev_block() dev_blocks()       index in the grid, blocks of the grid; one dimension
//   dev_lane() dev_warp() dev_warps()
//   dev_shared()                   the block's shared memory, 16-byte aligned, as many bytes as the
//                                  launch asked for; holds anything at first
//   dev_sync()                     every thread of the block arrives; memory is ordered
//   dev_sync_warp()                the same for a warp
//   dev_sync_cluster()             the same for all blocks of a grid that is one cluster
//                                  (moei_gpu_grid); of one block, dev_sync
//   dev_leave_cluster()            this thread has read what it needed of the shared memory of
//   other dev_left_cluster()             blocks; waits until all threads of all blocks have. Memory
//   is not
//                                  ordered. One follows the other; of one block, nothing
//   dev_get_i32(block, p)          what lies in the shared memory of a block of it where p is in
//                                  this one's; it must have begun and not have ended: between
//                                  dev_sync_cluster and the next, or dev_leave_cluster
//   dev_follow()                   waits for the launches before this one, which it may have begun
//                                  beside, and lets the next begin. Before it nothing is read but
//                                  arguments, and nothing written but shared memory
//   dev_assume(bool)               is true; the compiler may count on it
//   dev_shfl_u32(v, lane) dev_shfl_f32, dev_shfl_xor_u32(v, mask) dev_shfl_xor_f32; lane and mask
//                                  in 0 .. 31
//   dev_warp_max_u32(v)            largest of the lanes, on every lane
//   dev_ballot(bool)               bit l: the value of lane l
//   dev_popc(u32) dev_ffs(u32)     bits set; index of the lowest set bit plus one, 0 for none
//   dev_add_i32(p, v)              relaxed atomic addition in any memory; the old value
//   dev_max_u32(p, v)              relaxed atomic maximum
// Shuffles, ballots, matches and barriers are reached by all lanes (all threads) or by none.
// Floating-point: plain operators without contraction; numerics/hd.h.
#ifndef MOEI_GPU_DEV_H
#define MOEI_GPU_DEV_H

#if defined(__CUDACC__)
#include "backends/gpu/dev_cuda.h"
#elif defined(__HIP__)
#include "backends/gpu/dev_hip.h"
#else
#include "backends/gpu/dev_sim.h"
#endif

// Before a loop whose arrays must become registers; before one that must stay a loop.
#if defined(__CUDACC__) || defined(__HIP__)
#define MOEI_GPU_UNROLL _Pragma("unroll")
#define MOEI_GPU_ROLL   _Pragma("unroll 1")
#else
#define MOEI_GPU_UNROLL
#define MOEI_GPU_ROLL
#endif

/// Sum over the warp's lanes; the order of a butterfly 16, 8, 4, 2, 1, the same on every lane.
DEV_FN float dev_warp_sum(float v)
{
    for (int mask = 16; mask > 0; mask /= 2) {
        v = v + dev_shfl_xor_f32(v, mask);
    }
    return v;
}

/// Sum over the lanes up to this one.
DEV_FN int32_t dev_warp_scan_i32(int32_t v)
{
    const int lane = (int)dev_lane();
    for (int d = 1; d < 32; d *= 2) {
        const int32_t other = (int32_t)dev_shfl_u32((uint32_t)v, lane >= d ? lane - d : lane);
        v += lane >= d ? other : 0;
    }
    return v;
}

// NVIDIA has an instruction for it.
#if !defined(__CUDACC__)
DEV_FN uint32_t dev_warp_max_u32(uint32_t v)
{
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = dev_shfl_xor_u32(v, mask);
        v = other > v ? other : v;
    }
    return v;
}

#endif

#endif
