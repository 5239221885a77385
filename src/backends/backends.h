// SPDX-License-Identifier: Apache-2.0
// The table of backends; rows of backends.def.
#ifndef MOEI_BACKENDS_BACKENDS_H
#define MOEI_BACKENDS_BACKENDS_H

#include "ops/backend.h"

/// Backend i in table order, NULL past the end.
const moei_backend *moei_backend_at(size_t i);

/// The backend for a device type, NULL if none is built in.
const moei_backend *moei_backend_for(moe_device_type device);

#endif
