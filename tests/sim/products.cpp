// SPDX-License-Identifier: Apache-2.0
// The kernels of AMD's matrix units, compiled for the host: the very files of the plugin.
#include "sim/products.h"

#include "backends/hip/cdna/ggemm_bf16.hip"
#include "backends/hip/cdna/ggemm_codes.hip"
#include "backends/hip/cdna/ggemm_fp4.hip"
#include "backends/hip/cdna/ggemm_fp8.hip"
#include "backends/hip/cdna/ggemm_int.hip"

#define MOE_HIP_MFMA(id, name, ...)                                                                \
    static void run_##name(const void *args)                                                       \
    {                                                                                              \
        name(*(const moei_hip_mfma_args *)args);                                                   \
    }
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA

const moei_sim_body moei_sim_mfma[MOEI_HIP_NUM_MFMA] = {
#define MOE_HIP_MFMA(id, name, ...)                                                                \
    {#name, run_##name, sizeof(moei_hip_mfma_args), MOEI_HIP_MFMA_THREADS},
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA
};
