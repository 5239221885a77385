// SPDX-License-Identifier: Apache-2.0
#ifndef MOE_CHECKMOE_CHECK_GGEMM_H
#define MOE_CHECKMOE_CHECK_GGEMM_H

#include "checkmoe/checkmoe.h"
#include "core/registry.h"

/// Checks one ggemm row over all of its formats and cases.
void moec_check_ggemm(moec_run *run, const struct moei_kernel *kernel);

#endif
