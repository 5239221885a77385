// SPDX-License-Identifier: Apache-2.0
// Checks of the ops that work row by row: glu, combine, quantize.
#ifndef MOE_CHECKMOE_CHECK_ROWS_H
#define MOE_CHECKMOE_CHECK_ROWS_H

#include "checkmoe/checkmoe.h"
#include "core/registry.h"

void moec_check_glu(moec_run *run, const struct moei_kernel *kernel);
void moec_check_combine(moec_run *run, const struct moei_kernel *kernel);
void moec_check_quantize(moec_run *run, const struct moei_kernel *kernel);

#endif
