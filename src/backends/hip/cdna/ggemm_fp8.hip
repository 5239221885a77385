// SPDX-License-Identifier: Apache-2.0
// Floats of 8 bits, and of 6, which are packed as such, decoded to bf16 where they are not: ggemm_mfma.cuh.
#include "backends/hip/cdna/ggemm_mfma.cuh"

MOEI_HIP_KERNELS(moek_mfma_e4m3, true, moei_hip_packed_weights<MOEI_HIP_CODE_E4M3>)
MOEI_HIP_KERNELS(moek_mfma_e4m3fnuz, true, moei_hip_packed_weights<MOEI_HIP_CODE_E4M3FNUZ>)
MOEI_HIP_KERNELS(moek_mfma_e5m2, true, moei_hip_packed_weights<MOEI_HIP_CODE_E5M2>)
