// SPDX-License-Identifier: Apache-2.0
// Tiles of cdna/ggemm_bf16_bf16.hip, which the host sizes its grids by.
#ifndef MOEI_HIP_GGEMM_BF16_BF16_H
#define MOEI_HIP_GGEMM_BF16_BF16_H

#include "backends/gpu/launch_hip.h"
#include "moe/backend.h"

#define MOEI_HIP_GGEMM_THREADS 256
#define MOEI_HIP_GGEMM_TILE    64                         // outputs, and rows, of a block
#define MOEI_HIP_GGEMM_SLICE   64                         // elements of k in LDS at a time
#define MOEI_HIP_GGEMM_PITCH   (MOEI_HIP_GGEMM_SLICE + 8) // 16 bytes more: rows on other banks

/// Bytes of LDS: slices of both operands, and the tiles' prefix.
#define MOEI_HIP_GGEMM_SHARED(experts)                                                             \
    (2u * 2u * MOEI_HIP_GGEMM_TILE * MOEI_HIP_GGEMM_PITCH + 4u * ((uint32_t)(experts) + 1u))

typedef struct moei_hip_mfma_args {
    moei_hip_launch launch;
    moek_ggemm_args a;
} moei_hip_mfma_args;

#endif
