// SPDX-License-Identifier: Apache-2.0
// gpu/dev.h on AMD, compiled by clang alone: no header and no library of ROCm. A wave has 64 lanes;
// a warp is the lower or the upper half of one, and may go another way than the other half.
//
// A kernel takes one struct by value: a moei_hip_launch, then the arguments of its body. The sizes
// of the launch are read there, so that no kernel needs an argument that only a runtime knows.
#ifndef MOEI_GPU_DEV_HIP_H
#define MOEI_GPU_DEV_HIP_H

#include <stdint.h>

#include "backends/gpu/launch_hip.h"

#define DEV_FN static __attribute__((device)) __attribute__((always_inline)) inline

DEV_FN uint32_t dev_thread(void)
{
    return __builtin_amdgcn_workitem_id_x();
}

DEV_FN const __attribute__((address_space(4))) struct moei_hip_launch *moei_hip_launch_of(void)
{
    return (const __attribute__((
        address_space(4))) struct moei_hip_launch *)__builtin_amdgcn_kernarg_segment_ptr();
}

DEV_FN uint32_t dev_threads(void)
{
    return moei_hip_launch_of()->threads;
}

DEV_FN uint32_t dev_block(void)
{
    return __builtin_amdgcn_workgroup_id_x();
}

DEV_FN uint32_t dev_blocks(void)
{
    return moei_hip_launch_of()->blocks;
}

DEV_FN uint32_t dev_lane(void)
{
    return dev_thread() % 32;
}

DEV_FN uint32_t dev_warp(void)
{
    return dev_thread() / 32;
}

DEV_FN uint32_t dev_warps(void)
{
    return dev_threads() / 32;
}

extern __attribute__((shared)) __attribute__((aligned(16))) unsigned char moei_dev_shared[];

DEV_FN void *dev_shared(void)
{
    return moei_dev_shared;
}

DEV_FN void dev_sync(void)
{
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// Lanes of a wave are in step; what is ordered is memory.
DEV_FN void dev_sync_warp(void)
{
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

// There are no clusters: such a grid has one block.
DEV_FN void dev_sync_cluster(void)
{
    dev_sync();
}

DEV_FN void dev_leave_cluster(void)
{
}

DEV_FN void dev_left_cluster(void)
{
}

DEV_FN int32_t dev_get_i32(uint32_t block, const int32_t *p)
{
    (void)block;
    return *p;
}

DEV_FN void dev_follow(void) // launches end before the next begins
{
}

DEV_FN void dev_assume(bool v)
{
    __builtin_assume(v);
}

DEV_FN uint32_t dev_shfl_u32(uint32_t v, int lane)
{
    const uint32_t in_wave = (dev_thread() & 32u) | (uint32_t)lane;
    return (uint32_t)__builtin_amdgcn_ds_bpermute((int)(4 * in_wave), (int)v);
}

DEV_FN float dev_shfl_f32(float v, int lane)
{
    return __builtin_bit_cast(float, dev_shfl_u32(__builtin_bit_cast(uint32_t, v), lane));
}

DEV_FN uint32_t dev_shfl_xor_u32(uint32_t v, int mask)
{
    const uint32_t in_wave = (dev_thread() % 64) ^ (uint32_t)mask;
    return (uint32_t)__builtin_amdgcn_ds_bpermute((int)(4 * in_wave), (int)v);
}

DEV_FN float dev_shfl_xor_f32(float v, int mask)
{
    return __builtin_bit_cast(float, dev_shfl_xor_u32(__builtin_bit_cast(uint32_t, v), mask));
}

DEV_FN uint32_t dev_ballot(bool v)
{
    const uint64_t wave = __builtin_amdgcn_ballot_w64(v);
    return (uint32_t)(wave >> (dev_thread() & 32u));
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
    return __hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

DEV_FN uint32_t dev_max_u32(uint32_t *p, uint32_t v)
{
    return __hip_atomic_fetch_max(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

#endif
