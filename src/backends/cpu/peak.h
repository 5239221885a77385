// SPDX-License-Identifier: Apache-2.0
// Loops of multiply-adds, one source for every width of registers.
#ifndef MOEI_BACKENDS_CPU_PEAK_H
#define MOEI_BACKENDS_CPU_PEAK_H

#include <stdint.h>

/// Runs `steps` rounds of a = a * factor + term over all chains; the floating-point operations that
/// this was. The sum of the chains goes to *sum, so that nothing is left out.
typedef double moei_cpu_peak_fn(int64_t steps, float factor, float term, float *sum);

moei_cpu_peak_fn moei_cpu_peak__ref, moei_cpu_peak__ref_fma, moei_cpu_peak__avx512;

/// The same with 8-bit integers.
moei_cpu_peak_fn moei_cpu_peak_i8__avx2, moei_cpu_peak_i8__avx512_vnni;

/// The same with bf16 matrices of `factor`; `term` is only added to the sum.
moei_cpu_peak_fn moei_cpu_peak_bf16__amx;

#endif
