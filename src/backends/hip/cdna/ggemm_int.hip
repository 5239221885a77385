// SPDX-License-Identifier: Apache-2.0
// Int4, int8 and uint8, with their zero points, decoded to bf16 where they are not: ggemm_mfma.cuh.
#include "backends/hip/cdna/ggemm_mfma.cuh"

MOEI_HIP_KERNELS(moek_mfma_u4, true, moei_hip_packed_weights<MOEI_HIP_CODE_U4>)
MOEI_HIP_KERNELS(moek_mfma_u8, true, moei_hip_packed_weights<MOEI_HIP_CODE_U8>)
