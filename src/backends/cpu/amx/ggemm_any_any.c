// SPDX-License-Identifier: Apache-2.0
// ggemm of canonical weights where AMX is, in its classes, so that a plan has the same class
// whether its weights are packed or wrapped. The work is that of the row for AVX-512, whose bits
// the class has.
#include "ops/ggemm.h"

moek_ggemm_fn moek_ggemm_any_any_any__avx512_amx;

moek_ggemm_fn moek_ggemm_any_any_any__amx;
void moek_ggemm_any_any_any__amx(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                                 int64_t n0, int64_t n1)
{
    moek_ggemm_any_any_any__avx512_amx(args, e, i0, i1, n0, n1);
}

moek_ggemm_fn moek_ggemm_any_any_any__avx512_amx_b32;

moek_ggemm_fn moek_ggemm_any_any_any__amx_b32;
void moek_ggemm_any_any_any__amx_b32(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                                     int64_t n0, int64_t n1)
{
    moek_ggemm_any_any_any__avx512_amx_b32(args, e, i0, i1, n0, n1);
}
