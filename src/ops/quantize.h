// SPDX-License-Identifier: Apache-2.0
// quantize: rows to codes and scales, and back. Contract between the layer and its kernels. The
// rules are those of quant/specs.def; docs/quantisers.md states each.
#ifndef MOEI_OPS_QUANTIZE_H
#define MOEI_OPS_QUANTIZE_H

#include "core/check.h"
#include "ops/backend.h"
#include "quant/specs.h"

/// Rows [r0, r1) of batch b; r0 is a multiple of the rows that share a scale, and r1 too or the
/// end. SCALE ignores the rows. Rows at or past counts[b] (or total[0]) may be in the range; no
/// code or value of theirs is read or written.
typedef void moek_quantize_fn(const moek_quantize_args *args, int32_t b, int64_t r0, int64_t r1);

/// Arguments that hold a descriptor: resolved, its row looked up, the rest 0 but batches = 1.
moek_quantize_args moei_quantize_args_make(const moe_quant_desc *desc);

/// The scale tensor of a quantiser.
typedef struct moei_scale_shape {
    moe_dtype dtype;
    int64_t rows;    // per batch: 1 (one scale for all), rows, or blocks of rows
    int64_t groups;  // scales of a row
    int64_t columns; // elements of dtype of a row: groups, or ceil(groups / 4) where packed
    int64_t batch_stride, row_stride, k_stride; // elements; of a scale for all rows: 0
    size_t elems;                               // span of all batches, SIZE_MAX on overflow
} moei_scale_shape;

/// Shape of the scales of `batches` times [rows, k] and the strides of a fresh buffer in the
/// descriptor's layout: row (columns, 1) or column (1, rows; packed: rows rounded up to 4).
/// Resolves the descriptor itself.
moei_scale_shape moei_quant_scale_shape(const moe_quant_desc *desc, int64_t batches, int64_t rows,
                                        int64_t k);

/// Bytes of a row of k codes.
int64_t moei_quant_row_bytes(moe_dtype elem, int64_t k);

#endif
