// SPDX-License-Identifier: Apache-2.0
// The CPU backend's drivers: loops over a problem, in tasks for the pool.
#ifndef MOEI_BACKENDS_CPU_CPU_H
#define MOEI_BACKENDS_CPU_CPU_H

#include "ops/backend.h"

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

/// The backend's `ceiling`: READ, F32, and as that of 8 bits that of integers.
moe_status moei_cpu_ceiling(const moei_exec *exec, moei_ceiling which, double *per_second);

#endif
