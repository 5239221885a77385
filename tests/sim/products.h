// SPDX-License-Identifier: Apache-2.0
// The kernels of AMD's matrix units as bodies.
#ifndef MOE_TESTS_SIM_PRODUCTS_H
#define MOE_TESTS_SIM_PRODUCTS_H

#include "backends/hip/mfma.h"
#include "sim/sim.h"

#ifdef __cplusplus
extern "C" {
#endif

/// One row per kernel of hip/cdna/kernels.def.
extern const moei_sim_body moei_sim_mfma[MOEI_HIP_NUM_MFMA];

#ifdef __cplusplus
}
#endif
#endif
