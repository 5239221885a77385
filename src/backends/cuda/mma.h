// SPDX-License-Identifier: Apache-2.0
// Grouped products on Hopper's matrix units (ggemm_wgmma.cu), as the plugin's host code calls them.
#ifndef MOEI_CUDA_MMA_H
#define MOEI_CUDA_MMA_H

#include "backends/cuda/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/// True where glu's rows come straight out of the product's registers: gate and up rows of eight
/// outputs each lie in the same threads.
bool moei_cuda_mma_fuses(const moek_ggemm_args *ggemm, const moek_glu_args *glu);

/// Enqueues a product; with `glu`, h = glu of its result, and ggemm->y is not written.
moe_status moei_cuda_mma(const moei_exec *exec, const moei_kernel *kernel,
                         const moek_ggemm_args *ggemm, const moek_glu_args *glu);

/// Loads and configures every variant of the kernel. For a device that has it.
cudaError_t moei_cuda_mma_load(void);

#ifdef __cplusplus
}
#endif
#endif
