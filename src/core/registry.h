// SPDX-License-Identifier: Apache-2.0
// Kernels as data: the descriptor of a row, what a step asks of one, and the selection over a
// table of rows. Nothing registers itself; a backend's kernels.def is the list.
#ifndef MOEI_CORE_REGISTRY_H
#define MOEI_CORE_REGISTRY_H

#include "moe/backend.h"

const char *moei_op_name(moei_op op);

const moei_arith_info *moei_arith_get(moei_arith arith);

/// Writes the text of a refusal by a row of `backend`, e.g. "input is f16, the kernel takes bf16".
const char *moei_whynot_text(const moei_backend *backend, const moei_whynot *why, char *buffer,
                             size_t capacity);

/// First kernel of least cost of `op` that runs with `isa` and supports the problem (NULL: none
/// needed). Returns its index, or -1 and the last refusal.
int moei_registry_select(const moei_kernel *kernels, size_t count, moei_op op, uint64_t isa,
                         const moei_ggemm_problem *problem, moei_whynot *why);

/// The verdict on one row: true, or false and the refusal.
bool moei_registry_supports(const moei_kernel *kernel, uint64_t isa,
                            const moei_ggemm_problem *problem, moei_whynot *why);

#endif
