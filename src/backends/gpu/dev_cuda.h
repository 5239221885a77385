// SPDX-License-Identifier: Apache-2.0
// gpu/dev.h on NVIDIA.
#ifndef MOEI_GPU_DEV_CUDA_H
#define MOEI_GPU_DEV_CUDA_H

#include <stdint.h>

#define DEV_FN static __device__ __forceinline__

DEV_FN uint32_t dev_thread(void)
{
    return threadIdx.x;
}

DEV_FN uint32_t dev_threads(void)
{
    return blockDim.x;
}

DEV_FN uint32_t dev_block(void)
{
    return blockIdx.x;
}

DEV_FN uint32_t dev_blocks(void)
{
    return gridDim.x;
}

DEV_FN uint32_t dev_lane(void)
{
    return threadIdx.x % 32;
}

DEV_FN uint32_t dev_warp(void)
{
    return threadIdx.x / 32;
}

DEV_FN uint32_t dev_warps(void)
{
    return blockDim.x / 32;
}

DEV_FN void *dev_shared(void)
{
    extern __shared__ __align__(16) unsigned char moei_dev_shared[];
    return moei_dev_shared;
}

DEV_FN void dev_sync(void)
{
    __syncthreads();
}

DEV_FN void dev_sync_warp(void)
{
    __syncwarp();
}

// Clusters: sm_90. Elsewhere such a grid has one block.
DEV_FN void dev_sync_cluster(void)
{
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        asm volatile("barrier.cluster.arrive.aligned;\n"
                     "barrier.cluster.wait.aligned;" ::
                         : "memory");
        return;
    }
#endif
    __syncthreads();
}

DEV_FN void dev_leave_cluster(void)
{
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
#endif
}

DEV_FN void dev_left_cluster(void)
{
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
        asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    }
#endif
}

DEV_FN int32_t dev_get_i32(uint32_t block, const int32_t *p)
{
#if __CUDA_ARCH__ >= 900
    uint32_t at = (uint32_t)__cvta_generic_to_shared(p);
    int32_t v;
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(block));
    asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
#else
    (void)block;
    return *p;
#endif
}

DEV_FN void dev_follow(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEV_FN void dev_assume(bool v)
{
    __builtin_assume(v);
}

DEV_FN uint32_t dev_shfl_u32(uint32_t v, int lane)
{
    return __shfl_sync(~0u, v, lane);
}

DEV_FN float dev_shfl_f32(float v, int lane)
{
    return __shfl_sync(~0u, v, lane);
}

DEV_FN uint32_t dev_shfl_xor_u32(uint32_t v, int mask)
{
    return __shfl_xor_sync(~0u, v, mask);
}

DEV_FN float dev_shfl_xor_f32(float v, int mask)
{
    return __shfl_xor_sync(~0u, v, mask);
}

DEV_FN uint32_t dev_warp_max_u32(uint32_t v)
{
    return __reduce_max_sync(~0u, v); // sm_80
}

DEV_FN uint32_t dev_ballot(bool v)
{
    return __ballot_sync(~0u, v);
}

DEV_FN int dev_popc(uint32_t v)
{
    return __popc(v);
}

DEV_FN int dev_ffs(uint32_t v)
{
    return __ffs((int)v);
}

DEV_FN int32_t dev_add_i32(int32_t *p, int32_t v)
{
    return atomicAdd(p, v);
}

DEV_FN uint32_t dev_max_u32(uint32_t *p, uint32_t v)
{
    return atomicMax(p, v);
}

#endif
