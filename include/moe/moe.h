// SPDX-License-Identifier: Apache-2.0
/// @file moe.h  libmoe: the Mixture-of-Experts layer of a language model.
///
/// One call of the layer takes tokens x [T, H] and router logits [T, E], sends every token to its
/// k best experts, and returns the weighted sum of their outputs [T, H]:
///
///   moe_context_create     probe the machine once
///   moe_plan_create        a descriptor becomes a plan, or is refused with the reason
///   moe_weights_pack       (or _wrap) once per layer
///   moe_plan_workspace     how much memory a run needs
///   moe_run                no allocation, no lock, no print; any number of threads
///
/// Who has a mind of their own about the order of the steps takes them singly from ops.h. Linear
/// layers beside the experts are packed with matrix.h for its product.
/// Everything is in bits what docs/numerics.md says, on every machine.
#ifndef MOE_MOE_H
#define MOE_MOE_H

#include "moe/context.h"
#include "moe/layouts.h"
#include "moe/matrix.h"
#include "moe/ops.h"
#include "moe/plan.h"
#include "moe/quantize.h"
#include "moe/routing.h"
#include "moe/status.h"
#include "moe/types.h"
#include "moe/version.h"
#include "moe/weights.h"

#endif
