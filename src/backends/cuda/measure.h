// SPDX-License-Identifier: Apache-2.0
// For benchmarks: times of what is enqueued, and ceilings of the device (measure.cu).
#ifndef MOEI_CUDA_MEASURE_H
#define MOEI_CUDA_MEASURE_H

#include "backends/cuda/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/// As moei_backend.time: captured in a graph, which is replayed.
moe_status moei_cuda_time(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                          void *arg, int32_t repeats, double *seconds);

/// As moei_backend.ceiling.
moe_status moei_cuda_ceiling(const moei_exec *exec, moei_ceiling which, double *per_second);

#ifdef __cplusplus
}
#endif
#endif
