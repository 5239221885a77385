// SPDX-License-Identifier: Apache-2.0
// A backend whose products also have rows that read a packed layout: the CPU's kernels, over blocks
// that hold an expert's bytes backwards behind a sum of them. They cost less than the others.
#ifndef MOE_TESTS_UNIT_PACKED_ROWS_H
#define MOE_TESTS_UNIT_PACKED_ROWS_H

#include "ops/backend.h"

typedef struct packed_rows {
    moei_backend backend; // the CPU's, with more rows: *_packed
    bool too_large;       // experts take more bytes than there are
    int refuse_after;     // so many experts are packed, then one is refused; below 0: none is
    unsigned long packed, unpacked;
    /// How a plugin fails; moe_fail where it is left.
    moe_status (*fail)(moe_status code, const char *format, ...) MOE_PRINTF(2, 3);
} packed_rows;

/// The one backend with packed rows over `cpu`, whose kernels it runs. E8M0 scales are kept from
/// 2^-125 to 2^125 (codes 2 to 252), others are refused.
packed_rows *packed_rows_make(const moei_backend *cpu);

/// Moves a context of backend "cpu" to `backend`, which has the table of packed rows.
void packed_rows_move(moe_context *ctx, const moei_backend *backend);

#endif
