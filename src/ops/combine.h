// SPDX-License-Identifier: Apache-2.0
// combine: a token's slots to its output. Contract between the layer and its kernels.
//   out[t] = round(((0 + slot 0 + slot 1 + ..) + identity + bias + shared) + previous out), f32
//   convert: out[t] = round(slot 0), +0 where it is absent
#ifndef MOEI_OPS_COMBINE_H
#define MOEI_OPS_COMBINE_H

#include "core/check.h"
#include "moe/ops.h"
#include "ops/backend.h"

/// Tokens [t0, t1).
typedef void moek_combine_fn(const moek_combine_args *args, int64_t t0, int64_t t1);

#endif
