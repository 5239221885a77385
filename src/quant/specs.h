// SPDX-License-Identifier: Apache-2.0
// The named quantisers as data; rows of specs.def. docs/quantisers.md has the formulas.
#ifndef MOEI_QUANT_SPECS_H
#define MOEI_QUANT_SPECS_H

#include <stdbool.h>

#include "moe/plan.h"

/// What shares a scale.
typedef enum moei_quant_grain {
    MOEI_GRAIN_TENSOR, // all rows
    MOEI_GRAIN_TOKEN,  // a row
    MOEI_GRAIN_GROUP,  // `group` elements of a row
    MOEI_GRAIN_BLOCK   // `group` elements of `block_rows` rows
} moei_quant_grain;

/// How the scale s follows from a = amax. M is the element's largest value, P the power of two
/// below it, both as moei_quant_max and moei_elem_emax give them.
typedef enum moei_scale_rule {
    MOEI_SCALE_GIVEN,     // an argument
    MOEI_SCALE_DIV,       // max(a, floor) / M
    MOEI_SCALE_RECIP,     // max(a, floor) * (1 / M)
    MOEI_SCALE_DIV_FLOOR, // max(a / M, floor)
    MOEI_SCALE_TOKEN,     // max(min(a, bound) / M, 1 / (512 M))
    MOEI_SCALE_BF16,      // bf16(max(a, bf16 floor) * bf16(1 / M)); UE8M0: hexp2(hceil(hlog2 s))
    MOEI_SCALE_INVERSE,   // 1 / ((1 / a) * M); 1 where a is 0
    MOEI_SCALE_MX_FLOOR,  // e8m0: exponent of a / P
    MOEI_SCALE_MX_EVEN,   // e8m0: exponent of a rounded to the element's fraction, - log2 P
    MOEI_SCALE_MX_CEIL,   // e8m0: exponent of the power of two not below a / M
    MOEI_SCALE_MX_MAX,    // e8m0: exponent of a / M
    MOEI_SCALE_MX_PLAIN,  // e8m0: exponent of a
    MOEI_SCALE_NVFP4,     // e4m3fn: g * (a * (1 / M)), g given
    MOEI_SCALE_NVFP4_INVERSE, // e4m3fn: (a / M) * g, g = (1 / amax of the tensor) * 2688
    MOEI_SCALE_NVFP4_SINGLE,  // e4m3fn: a / M
    MOEI_SCALE_FIXED          // e8m0: the smallest for which every rounded code fits
} moei_scale_rule;

/// How a value v to round follows from x and s.
typedef enum moei_code_rule {
    MOEI_CODE_TIMES_INVERSE, // x * (1 / s)
    MOEI_CODE_DIVIDE,        // x / s
    MOEI_CODE_BF16,          // bf16(bf16(x) * bf16(1 / s))
    MOEI_CODE_TIMES_FACTOR,  // x * r, r as the scale rule left it: (1 / a) * M, or 127 / a
    MOEI_CODE_POWER,         // x * 2^-e, exact
    MOEI_CODE_GLOBAL         // x * (g / s)
} moei_code_rule;

/// How v becomes a code. Floats beyond the range saturate; integers clamp.
typedef enum moei_code_rounding {
    MOEI_ROUND_EVEN,
    MOEI_ROUND_HALF_DOWN, // ties to the smaller magnitude; what rounds to zero is +0
    MOEI_ROUND_DISTANCE,  // e2m1: the first magnitude whose f32 distance from |v| is smallest, so
                          // ties as HALF_DOWN; far beyond the range, all distances are equal: 0
    MOEI_ROUND_HALF_AWAY,
    MOEI_ROUND_TRUNCATE
} moei_code_rounding;

/// What a NaN does. amax ignores it in every case.
typedef enum moei_quant_nan {
    MOEI_NAN_CODE, // becomes the element's NaN (7F; 80 in fnuz), or 0 if it has none
    MOEI_NAN_LOW,  // becomes the lowest code, as max(NaN, low) does
    MOEI_NAN_SCALE // where the element has no NaN: the scale becomes NaN; else as NAN_CODE
} moei_quant_nan;

typedef struct moei_quant_info {
    moe_quant_spec spec;
    const char *name;
    moe_dtype elem; // default
    uint32_t elems; // bit 1 << moe_dtype
    moei_quant_grain grain;
    int32_t group;             // default elements of k per scale; 0: the whole row
    int32_t block_rows;        // rows per scale; 0: all
    bool free_group;           // desc.group may replace it
    moe_scale_type scale_type; // default
    uint32_t scale_types;      // bit 1 << moe_scale_type
    float floor;               // of amax, or of the scale (MOEI_SCALE_DIV_FLOOR)
    moei_scale_rule scale;
    moei_code_rule code;
    moei_code_rounding rounding;
    moei_quant_nan nan;
    moe_determinism level; // KERNEL, or RUN where a scale spans rows
    const char *source;
} moei_quant_info;

/// NULL for MOE_QUANT_NONE and unknown values.
const moei_quant_info *moei_quant_get(moe_quant_spec spec);

/// Rows in table order; NULL past the end.
const moei_quant_info *moei_quant_at(size_t i);

/// Refuses descriptors that mean nothing or whose fields do not go together, naming both values
/// and what works. MOE_QUANT_NONE passes where all other fields are 0. `call` heads the message.
moe_status moei_quant_check(const moe_quant_desc *desc, const char *call);

/// Refuses, beyond moei_quant_check, quantisers that cannot quantise the rows of x of a product
/// (128 x 128 blocks). `name` names the product.
moe_status moei_quant_check_act(const moe_quant_desc *desc, const char *call, const char *name);

/// Fills the defaults of a checked descriptor: elem, group, scale_type, scale_layout. A group of 0
/// remains where a scale serves a whole row or tensor. Idempotent.
void moei_quant_resolve(moe_quant_desc *desc);

/// True if the quantiser reads a scale that the caller gives: f32 [1] (STATIC specs: the scale;
/// NVFP4: the global scale).
bool moei_quant_needs_given_scale(const moe_quant_desc *desc);

/// True if there is a second-level f32 scale (NVFP4, given; NVFP4_INVERSE, computed).
bool moei_quant_has_global_scale(const moe_quant_desc *desc);

/// The level that the bits of one row hold: KERNEL, or RUN where a scale depends on other rows.
moe_determinism moei_quant_level(const moe_quant_desc *desc);

/// Element type in which scales of a resolved type are stored: F32, E8M0, E4M3FN, or I32 (packed).
moe_dtype moei_scale_dtype(moe_scale_type type);

/// Name of a scale type ("f32", "ue8m0_f32", ..).
const char *moei_scale_type_name(moe_scale_type type);

/// The magnitude M to which the rules of a quantiser scale an element type: 448, 224 (240 for
/// BF16STEPS), 57344, 28, 7.5, 6, 127, 7; 32639 for int16.
float moei_quant_max(const moei_quant_info *info, moe_dtype elem);

/// Exponent of the largest power of two of an MX element type; its fraction bits.
int moei_elem_emax(moe_dtype elem);
int moei_elem_fraction_bits(moe_dtype elem);

#endif
