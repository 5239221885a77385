// SPDX-License-Identifier: Apache-2.0
// MXFP4 and NVFP4 weights, decoded to bf16 with their scales: ggemm_mfma.cuh.
#include "backends/hip/cdna/ggemm_mfma.cuh"

MOEI_HIP_KERNELS(moek_mfma_mxfp4, true, moei_hip_packed_weights<MOEI_HIP_CODE_MXFP4>)
MOEI_HIP_KERNELS(moek_mfma_nvfp4, true, moei_hip_packed_weights<MOEI_HIP_CODE_NVFP4>)
