// SPDX-License-Identifier: Apache-2.0
// Codes on both sides: ggemm_codes.cuh.
#include "backends/hip/cdna/ggemm_codes.cuh"

#if !defined(__gfx950__)
MOEI_HIP_CODES(moek_mfma_fp8_e4m3fnuz, MOEI_HIP_E4M3, MOEI_HIP_CODES_FNUZ)
#endif

#if !defined(__gfx942__)
MOEI_HIP_CODES(moek_mfma_fp8_e4m3, MOEI_HIP_E4M3, MOEI_HIP_CODES_FP8)
MOEI_HIP_CODES(moek_mfma_fp8_e5m2, MOEI_HIP_E5M2, MOEI_HIP_CODES_FP8)
MOEI_HIP_CODES(moek_mfma_mx_mxfp4, MOEI_HIP_E2M1, MOEI_HIP_CODES_MX)
MOEI_HIP_CODES(moek_mfma_mx_e4m3, MOEI_HIP_E4M3, MOEI_HIP_CODES_MX)
MOEI_HIP_CODES(moek_mfma_mx_e5m2, MOEI_HIP_E5M2, MOEI_HIP_CODES_MX)
#endif
