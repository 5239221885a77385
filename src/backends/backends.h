// SPDX-License-Identifier: Apache-2.0
// The table of backends; rows of backends.def.
#ifndef MOEI_BACKENDS_BACKENDS_H
#define MOEI_BACKENDS_BACKENDS_H

#include "ops/backend.h"

/// Backend i in table order, NULL past the end.
const moei_backend *moei_backend_at(size_t i);

/// The backend for a device type, NULL if none is built in.
const moei_backend *moei_backend_for(moe_device_type device);

/// Part `part` of `parts` of packing an expert into its place, straight from a source that lies
/// anyhow (strides, form of zero points); parts may run at the same time, and none fails.
typedef void moei_pack_part_fn(const moei_matrices *from, int64_t part, int64_t parts, uint8_t *to);

/// NULL where the backend packs an expert as a whole, from canonical memory.
moei_pack_part_fn *moei_backend_pack_part(const moei_backend *backend);

#endif
