// SPDX-License-Identifier: Apache-2.0
// A CUDA device of a context, and what the plugin's files share.
#ifndef MOEI_CUDA_DEVICE_H
#define MOEI_CUDA_DEVICE_H

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "moe/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Makes a tensor map; a driver function that the runtime finds, so that nothing links libcuda.
typedef CUresult(CUDAAPI *moei_cuda_encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t,
                                               void *, const cuuint64_t *, const cuuint64_t *,
                                               const cuuint32_t *, const cuuint32_t *,
                                               CUtensorMapInterleave, CUtensorMapSwizzle,
                                               CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// What a context holds of its device (moei_exec.device).
typedef struct moei_cuda_device {
    int ordinal;
    int sms;
    int shared;                 // bytes of shared memory that a block may have
    bool overlaps;              // a launch may begin while the one before it ends
    uint32_t cluster;           // blocks of a cluster at most, a power of two; 1: there are none
    moei_cuda_encode_fn encode; // NULL where there are no matrix kernels
} moei_cuda_device;

static inline const moei_cuda_device *moei_cuda_device_of(const moei_exec *exec)
{
    return (const moei_cuda_device *)exec->device;
}

/// The library's functions.
extern const moei_host *moei_cuda_host;

/// OK, or DEVICE with what was tried and CUDA's own words. An error that CUDA keeps until it is
/// asked for is taken back, so that the next call begins clean.
moe_status moei_cuda_status(cudaError_t error, const char *what);

// Instruction-set bits of rows (moei_kernel.isa).
enum { MOEI_CUDA_SM80 = 1, MOEI_CUDA_SM90A = 2 };

#ifdef __cplusplus
}
#endif
#endif
