// SPDX-License-Identifier: Apache-2.0
// What a packed matrix holds: api/matrix.c makes it, ggemm.c multiplies by it.
#ifndef MOEI_OPS_MATRIX_H
#define MOEI_OPS_MATRIX_H

#include "moe/matrix.h"
#include "ops/backend.h"

struct moe_matrix {
    const moe_context *ctx;
    size_t self_bytes;
    moe_matrix_desc desc; // defaults resolved
    const moei_kernel *kernel;
    const void *memory; // the caller's
    size_t bytes;
    bool adopted; // it is not written
    moei_matrices m;
    float *act_scale; // in it; NULL: the quantiser has no given scale
    uint32_t agreed;  // bits of that scale; 0: not given yet
    bool has_expert[];
};

#endif
