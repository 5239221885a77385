// SPDX-License-Identifier: Apache-2.0
// Cases of the grouped product: random problems of any format, as codes for the kernel and as
// doubles for the oracle.
#ifndef MOE_CHECKMOE_CHECK_GGEMM_H
#define MOE_CHECKMOE_CHECK_GGEMM_H

#include "checkmoe/checkmoe.h"
#include "core/registry.h"

typedef enum moec_fill {
    MOEC_EXACT,   // small integers and powers of two: every partial sum is exact
    MOEC_NORMAL,  // normal values
    MOEC_HEAVY,   // a few channels 100 times larger
    MOEC_CANCEL,  // rows whose second half is minus the first
    MOEC_TINY,    // magnitudes down to subnormal results
    MOEC_SPECIAL, // NaN, infinities, -0, subnormals, zero blocks
    MOEC_NUM_FILLS
} moec_fill;

const char *moec_fill_name(moec_fill fill);

/// Checks one ggemm row over all of its formats and cases.
void moec_check_ggemm(moec_run *run, const struct moei_kernel *kernel);

#endif
