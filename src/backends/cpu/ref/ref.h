// SPDX-License-Identifier: Apache-2.0
// The portable kernels are compiled twice from one source: for the baseline instruction set, and
// (x86-64) with -mavx2 -mfma, since a libm fmaf costs 22 times an instruction. Both give the same
// bits: nothing contracts, every fused operation is written as such. A row of another instruction
// set may be such a source as well: it names it (MOEI_REF).
#ifndef MOEI_BACKENDS_CPU_REF_REF_H
#define MOEI_BACKENDS_CPU_REF_REF_H

#if defined(MOEI_REF)
#elif defined(MOEI_REF_FMA)
#define MOEI_REF(name)           name##__ref_fma
#define MOEI_REF2(name, variant) name##__ref_fma##variant
#else
#define MOEI_REF(name)           name##__ref
#define MOEI_REF2(name, variant) name##__ref##variant
#endif

#endif
