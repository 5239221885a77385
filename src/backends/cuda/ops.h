// SPDX-License-Identifier: Apache-2.0
#ifndef MOEI_CUDA_OPS_H
#define MOEI_CUDA_OPS_H

#include "backends/gpu/args.h"
#include "backends/gpu/drive.h"

#ifdef __cplusplus
extern "C" {
#endif

/// The kernel of a shared body, for the runtime's calls.
const void *moei_cuda_body(moei_gpu_body body);

#ifdef __cplusplus
}
#endif
#endif
