// SPDX-License-Identifier: Apache-2.0
// Any op of a backend on host buffers, by its number.
#ifndef MOE_CHECKMOE_OP_RUN_H
#define MOE_CHECKMOE_OP_RUN_H

#include "checkmoe/twins.h"
#include "ops/backend.h"

/// Size of the arguments of an op (moek_<op>_args).
size_t moec_op_args_size(moei_op op);

/// Calls the backend's function for the op of a kernel.
moe_status moec_op_call(const moei_exec *exec, const moei_kernel *kernel, const moei_op_args *a);

/// Runs a kernel of the context's backend. Where that has memory of its own, every pointer to data
/// in a copy of the arguments becomes that of its twin.
moe_status moec_op_run(const moe_context *ctx, moec_twins *twins, const moei_kernel *kernel,
                       const void *args);

#endif
