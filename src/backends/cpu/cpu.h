// SPDX-License-Identifier: Apache-2.0
// The CPU backend's drivers: loops over a problem, in tasks for the pool.
#ifndef MOEI_BACKENDS_CPU_CPU_H
#define MOEI_BACKENDS_CPU_CPU_H

#include "core/safemath.h"
#include "ops/backend.h"

extern const moei_backend moei_backend_cpu;

moe_status moei_cpu_route(const moei_exec *exec, const moei_kernel *kernel,
                          const struct moek_route_args *args);
moe_status moei_cpu_place(const moei_exec *exec, const moei_kernel *kernel,
                          const struct moek_place_args *args);
moe_status moei_cpu_sort(const moei_exec *exec, const moei_kernel *kernel,
                         const struct moek_sort_args *args);
moe_status moei_cpu_quantize(const moei_exec *exec, const moei_kernel *kernel,
                             const struct moek_quantize_args *args);
moe_status moei_cpu_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                          const struct moek_ggemm_args *args);
moe_status moei_cpu_glu(const moei_exec *exec, const moei_kernel *kernel,
                        const struct moek_glu_args *args);
moe_status moei_cpu_combine(const moei_exec *exec, const moei_kernel *kernel,
                            const struct moek_combine_args *args);

/// The backend's `run_steps`.
moe_status moei_cpu_run_steps(const moei_exec *exec, const moei_step *steps, int32_t count);

/// Part `part` of `parts` of what moei_cpu_pack does, some panels of outputs; `from` may lie anyhow
/// (strides, form of zero points), and nothing fails.
void moei_cpu_pack_part(const moei_matrices *from, int64_t part, int64_t parts, uint8_t *to);

/// What place leaves out: counts load, where it is asked for. One thread: counters need no atomics,
/// and no order.
void moei_cpu_count_load(const moek_place_args *args);

/// Tokens that combine writes.
static inline int64_t moei_cpu_combine_tokens(const moek_combine_args *args)
{
    const int64_t valid = args->num_valid != NULL ? moei_i64_max(args->num_valid[0], 0) : INT64_MAX;
    return moei_i64_min(args->tokens, valid);
}

/// The backend's `ceiling`: READ, F32, BF16 where matrix units are, and as that of 8 bits that of
/// integers.
moe_status moei_cpu_ceiling(const moei_exec *exec, moei_ceiling which, double *per_second);

#endif
