// SPDX-License-Identifier: Apache-2.0
/// @file linear.h  The linear layers beside the experts: attention's, the router, the output.
#ifndef MOEM_LINEAR_H
#define MOEM_LINEAR_H

#include <stdbool.h>

#include "moe/moe.h"

/// weight [outputs, inputs] and bias [outputs] where the checkpoint has them; once packed, their
/// shapes alone are read. Start from {0}.
typedef struct moem_linear {
    moe_tensor weight, bias; ///< bias of no dimensions: none
    moe_matrix *matrix;      ///< packed; NULL: products read weight and bias
    void *memory;            ///< of the matrix, or of joined tensors; NULL: the checkpoint's
} moem_linear;

/// Bytes of the packed layer; 0 where its kernel reads the tensors as they are. Errors: those of
/// moe_matrix_bytes.
moe_status moem_linear_bytes(const moe_context *ctx, const moem_linear *l, size_t *bytes);

/// Makes one layer, the first, of layers with the same input, by a copy of up to `most` bytes.
/// *count becomes 1, or stays where types differ, one has no bias, or they are larger. Errors:
/// NO_MEMORY.
moe_status moem_linear_join(moem_linear *layers, int32_t *count, size_t most);

/// Packs a layer where its kernel reads a packed layout. Errors: NO_MEMORY, those of
/// moe_matrix_create and moe_matrix_pack.
moe_status moem_linear_pack(const moe_context *ctx, moem_linear *l);

/// y [rows, outputs] = x [rows, inputs] . W^T + bias in float32; rows of y are `stride` floats
/// apart. The bits are the same whether or not the layer is packed. Errors: those of moe_ggemm.
moe_status moem_linear_run(const moe_context *ctx, const moem_linear *l, const float *x,
                           int64_t rows, float *y, int64_t stride);

void moem_linear_free(moem_linear *l);

#endif
