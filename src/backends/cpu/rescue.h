// SPDX-License-Identifier: Apache-2.0
// The two stages of few tokens as jobs of attempts (core/pool.h): a thread that the system puts
// aside does not hold a layer up, another does its task again.
//
// Such a thread may go on after moe_run has returned. So its task reads copies: of x or h, of where
// rows lie, and of the arguments, in memory of the plan; and it writes buffers that are its
// thread's. What counts is copied from there. Only the weights are the caller's: they must not
// change or go while a late task reads them (moei_pool_drain).
#ifndef MOEI_BACKENDS_CPU_RESCUE_H
#define MOEI_BACKENDS_CPU_RESCUE_H

#include "backends/cpu/mlp.h"

/// Members of the vtable: the memory of a plan, NULL where its layers do not run so.
moe_status moei_cpu_plan_prepare(const moei_exec *exec, const moei_plan_info *plan, void **out);
void moei_cpu_plan_release(const moei_exec *exec, void *plan);

/// Runs stage 1 over the pieces of a cut, leaving h (or its codes) where the steps say; false where
/// it does not fit the plan's memory, or the pool is in use.
bool moei_cpu_rescue_first(const moei_exec *exec, const moei_cpu_mlp *mlp, const moei_cpu_cut *cut);

/// Runs stage 2 without its sums.
bool moei_cpu_rescue_second(const moei_exec *exec, const moei_cpu_mlp *mlp,
                            const moei_cpu_cut *cut);

#endif
