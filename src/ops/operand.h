// SPDX-License-Identifier: Apache-2.0
// The input of a grouped product as a kernel reads it: floats, or codes with their scales.
#ifndef MOEI_OPS_OPERAND_H
#define MOEI_OPS_OPERAND_H

#include "ops/ggemm.h"
#include "ops/quantize.h"

/// Checks x ([rows, k], or batched [E, rows, k]) and, where `act` names a quantiser, its scales
/// and the given scale, against the descriptor; fills `out`, rows (of a batch) and k. `*k` on entry
/// is the k that is expected, or -1: packed bytes then hold as many elements as fit.
moe_status moei_operand_from_tensors(const moe_tensor *x, const moe_tensor *x_scales,
                                     const moe_tensor *act_scale, const moe_quant_desc *act,
                                     const char *call, moei_operand *out, int64_t *rows,
                                     int64_t *k);

/// The operand that a quantiser's own output is. `act_scale`: the given scale, where it reads one.
moei_operand moei_operand_from_quantize(const moek_quantize_args *quantize);

#endif
