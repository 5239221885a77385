// SPDX-License-Identifier: Apache-2.0
// The quantisers once more, as plain statements of docs/quantisers.md: loops over one group at a
// time, operations in long double followed by an explicit rounding, codes found by trying them all.
// Shares with the library only the codecs of numerics/.
#ifndef MOE_TESTS_FLOAT64_QUANTIZE_H
#define MOE_TESTS_FLOAT64_QUANTIZE_H

#include <stdint.h>

#include "moe/quantize.h"

typedef struct float64_quantised {
    // In. quant states elem, group (0: the whole row) and scale_type.
    moe_quant_desc quant;
    int64_t rows, k;
    const float *x; // [rows, k]
    float given;    // the scale (STATIC), or the global scale (NVFP4)
    // Out. codes [rows, k], unpacked; integers as their low bits. Scales [scale rows, groups]: the
    // value, and the e8m0 or e4m3fn byte where the type has one.
    uint16_t *codes;
    float *scales;
    uint8_t *bytes;
    float global; // NVFP4_INVERSE
} float64_quantised;

/// Rows of scales and scales per row.
int64_t float64_scale_rows(const float64_quantised *q);
int64_t float64_groups(const float64_quantised *q);

void float64_quantize(float64_quantised *q);

/// Value of a code: exact, 0 for what is no element type of a quantiser.
float float64_code_value(moe_dtype elem, uint16_t code);

/// code * scale (/ global), a rounding to f32 per operation; NaN is 7FC00000.
float float64_dequantize(const float64_quantised *q, uint16_t code, float scale, float global);

/// What a masked SiLU-mul-quantise kernel in bf16 quantises: bf16(bf16(silu(gate)) * up).
float float64_silu_mul_bf16(float gate, float up);

/// x rounded once to bf16, ties to even.
float float64_round_bf16(long double x);

#endif
