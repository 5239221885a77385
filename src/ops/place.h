// SPDX-License-Identifier: Apache-2.0
// place: where a slot's expert lives. Reads ids and weights in any public dtype, as given or as
// route computed them; writes them in the layer's own form, and counts load.
//   router id -> physical id (replicas) -> local id (expert_map); what lies outside is -1
#ifndef MOEI_OPS_PLACE_H
#define MOEI_OPS_PLACE_H

#include "core/check.h"
#include "ops/backend.h"
#include "ops/replica.h"

/// Tokens [t0, t1); leaves `load` alone.
typedef void moek_place_fn(const moek_place_args *args, int64_t t0, int64_t t1);

#endif
