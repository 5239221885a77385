// SPDX-License-Identifier: Apache-2.0
// Row moek_glu_any_any__avx512: the portable source, which compilers turn into vectors of 512 bits.
// Half of the time of its AVX2 form; the bits are the same.
#define MOEI_REF(name) name##__avx512
#include "backends/cpu/ref/glu.c" // NOLINT
