// SPDX-License-Identifier: Apache-2.0
// Bf16 weights, as the caller has them and packed, decoded to bf16 where they are not: ggemm_mfma.cuh.
#include "backends/hip/cdna/ggemm_mfma.cuh"

MOEI_HIP_KERNELS(moek_mfma_row_bf16, false, moei_hip_row_weights)
MOEI_HIP_KERNELS(moek_mfma_bf16, true, moei_hip_packed_weights<MOEI_HIP_CODE_BF16>)
