// SPDX-License-Identifier: Apache-2.0
/// @file model_bound.h  A checkpoint's layer against its float64 statement.
#ifndef MOEC_MODEL_BOUND_H
#define MOEC_MODEL_BOUND_H

#include "checkmoe/replay.h"
#include "float64/layer.h"
#include "moe/io.h"

/// The layer in float64, dense, from the tensors as stored. False where this statement does not
/// cover the dialect or the plan: stacked experts with rows of k scaled in groups, no shared or
/// latent experts, activations as they are.
bool moec_model_bound_make(const moe_checkpoint_layer *source, const moe_plan *plan,
                           moec_heap *heap, float64_layer *out);

/// Largest error / bound of y [tokens, hidden], given what the router chose.
double moec_model_bound_ratio(const float64_layer *layer, int32_t top_k, int64_t tokens,
                              const float *x, const int32_t *ids, const float *weights,
                              const float *y);

#endif
