// SPDX-License-Identifier: Apache-2.0
// UNROLL stands before a loop whose bounds are constants wherever the function is called: what it
// indexes by its counter then stays in registers.
#ifndef MOEI_BACKENDS_CPU_UNROLL_H
#define MOEI_BACKENDS_CPU_UNROLL_H

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
