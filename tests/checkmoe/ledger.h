// SPDX-License-Identifier: Apache-2.0
// The ledger: records of kernel rows that passed on a machine that has their device, for machines
// that have not (tests/ledger).
#ifndef MOE_CHECKMOE_LEDGER_H
#define MOE_CHECKMOE_LEDGER_H

#include "checkmoe/checkmoe.h"

/// Writes <options.ledger>/<row>.json about a row that has just passed `passed` checks in
/// run->cases cases. A row without a hash in options.hashes gets none, with a line that says so;
/// what cannot be written counts as a failure.
void moec_ledger_write(moec_run *run, const struct moei_kernel *kernel, unsigned long passed);

#endif
