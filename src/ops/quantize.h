// SPDX-License-Identifier: Apache-2.0
// quantize: rows to codes and scales, and back. Contract between the layer and its kernels. The
// rules are those of quant/specs.def; docs/quantisers.md states each.
#ifndef MOEI_OPS_QUANTIZE_H
#define MOEI_OPS_QUANTIZE_H

#include <stdatomic.h>

#include "core/check.h"
#include "ops/backend.h"
#include "quant/specs.h"

/// What a kernel call does. A driver runs CODES alone, or, for quantisers whose scale spans all
/// rows (moei_quantize_is_global), AMAX over all rows, then SCALE once, then CODES.
typedef enum moek_quantize_stage {
    MOEK_QUANTIZE_CODES,  // scales (where the rows decide them) and codes
    MOEK_QUANTIZE_AMAX,   // raises *amax to the largest |x| of the rows
    MOEK_QUANTIZE_SCALE,  // writes the scale (or the global scale) that *amax gives
    MOEK_QUANTIZE_INVERSE // x = code * scale
} moek_quantize_stage;

/// Set all of it to 0, then quant = the resolved descriptor and info = its row.
typedef struct moek_quantize_args {
    moe_quant_desc quant; // resolved
    const moei_quant_info *info;
    moek_quantize_stage stage; // CODES or INVERSE; the driver sets the others in a copy
    // Rows: `batches` times `rows` rows in memory, of which counts[b] (or total[0]) are there.
    int64_t rows, k;
    int32_t batches;       // 1 without counts
    const int32_t *counts; // [batches]; NULL: all rows
    const int32_t *total; // rows to do = min(total[0] * total_rows, rows) where given (device-side)
    int32_t total_rows;   // 0: 1
    uint8_t *x;           // f32, bf16, f16; written by INVERSE alone
    moe_dtype x_dtype;
    int64_t x_row_stride, x_batch_stride; // bytes
    uint8_t *q;                           // codes of quant.elem
    int64_t q_row_stride, q_batch_stride; // bytes
    // Scales: element (batch, row / rows per scale, k / group), in elements of
    // moei_scale_dtype(quant.scale_type); packed: (batch, row, group / 4) in int32. Given scales
    // (STATIC) are read, others written.
    void *scales;
    int64_t scale_batch_stride, scale_row_stride, scale_k_stride;
    float *global_scale; // NVFP4: read; NVFP4_INVERSE: written
    // Where set, row element j is silu(x[j]) * x[up_offset + j]; k counts outputs.
    bool silu_mul;
    bool round_steps;        // silu, and the product, are rounded to x's dtype
    int64_t up_offset;       // elements
    bool zero_absent_scales; // rows past the count: scales are set to 0
    _Atomic uint32_t *amax;  // AMAX, SCALE: bits of a float, 0 at first
} moek_quantize_args;

/// Rows [r0, r1) of batch b; r0 is a multiple of the rows that share a scale, and r1 too or the
/// end. SCALE ignores the rows. Rows at or past counts[b] (or total[0]) may be in the range; no
/// code or value of theirs is read or written.
typedef void moek_quantize_fn(const moek_quantize_args *args, int32_t b, int64_t r0, int64_t r1);

/// True if a scale depends on all rows, so that a driver must run AMAX and SCALE first.
bool moei_quantize_is_global(const moei_quant_info *info);

/// Rows that are there in batch b.
static inline int64_t moei_quantize_count(const moek_quantize_args *args, int32_t b)
{
    int64_t n = args->rows;
    if (args->counts != NULL) {
        n = args->counts[b] < n ? args->counts[b] : n;
    }
    if (args->total != NULL) {
        const int64_t total =
            (int64_t)args->total[0] * (args->total_rows > 0 ? args->total_rows : 1);
        n = total < n ? total : n;
    }
    return n > 0 ? n : 0;
}

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
