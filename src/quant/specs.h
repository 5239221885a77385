// SPDX-License-Identifier: Apache-2.0
// The named quantisers as data; rows of specs.def. docs/quantisers.md has the formulas.
#ifndef MOEI_QUANT_SPECS_H
#define MOEI_QUANT_SPECS_H

#include "quant/rules.h"

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

#endif
