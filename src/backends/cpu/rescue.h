// SPDX-License-Identifier: Apache-2.0
// The two stages of few tokens as one job of attempts (core/pool.h): a thread that the system puts
// aside does not hold a layer up, another does its task again. And nobody waits between the stages:
// a task of stage 2 needs h of its expert alone, which was made first.
//
// A thread that was put aside may go on after moe_run has returned. So its task reads copies: of x,
// of where rows lie, and of the arguments, in memory of the plan; and it writes buffers that are
// its thread's. What counts is copied from there. Only the weights are the caller's: they must not
// change or go while a late task reads them (moei_pool_drain).
#ifndef MOEI_BACKENDS_CPU_RESCUE_H
#define MOEI_BACKENDS_CPU_RESCUE_H

#include "backends/cpu/mlp.h"

/// Members of the vtable: the memory of a plan, NULL where its layers do not run so.
moe_status moei_cpu_plan_prepare(const moei_exec *exec, const moei_plan_info *plan, void **out);
void moei_cpu_plan_release(const moei_exec *exec, void *plan);

/// Runs both stages, without the sums; `cut` has been begun. False, and nothing done, where they do
/// not fit the plan's memory, or the pool is in use.
bool moei_cpu_rescue_run(const moei_exec *exec, const moei_cpu_mlp *mlp, moei_cpu_cut *cut,
                         moei_cpu_cut_limits first, moei_cpu_cut_limits second);

#endif
