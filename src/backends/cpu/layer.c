// SPDX-License-Identifier: Apache-2.0
// A layer on the CPU: of the steps that it lists, those that one job of the pool can do together.
//   route, place, [quantize x]       by tokens; few of them on the calling thread, without a job
//   sort                             the calling thread
//   ggemm, glu, [quantize], ggemm, [combine]   two jobs, by bands of columns (mlp.c)
// What matches nothing runs as the ops do one after the other. docs/cpu.md#how-a-layer-is-scheduled
#include "backends/cpu/cpu.h"
#include "backends/cpu/mlp.h"

moe_status moei_cpu_run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        moei_cpu_mlp mlp;
        const int32_t matched = moei_cpu_mlp_match(steps + i, count - i, &mlp);
        if (matched > 0) {
            MOE_TRY(moei_cpu_mlp_run(exec, &mlp));
            i += matched;
        } else {
            MOE_TRY(moei_step_run(&moei_backend_cpu, exec, &steps[i++]));
        }
    }
    return MOE_OK;
}
