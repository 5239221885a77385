// SPDX-License-Identifier: Apache-2.0
// What the bodies of route, place and sort share: ids and floats of any public dtype.
#ifndef MOEI_GPU_IDS_CUH
#define MOEI_GPU_IDS_CUH

#include "backends/gpu/dev.h"
#include "moe/types.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "numerics/math.h"

DEV_FN int64_t moei_gpu_load_id(moe_dtype dtype, const void *base, int64_t i)
{
    return dtype == MOE_I64 ? ((const int64_t *)base)[i] : ((const int32_t *)base)[i];
}

DEV_FN void moei_gpu_store_id(moe_dtype dtype, void *base, int64_t i, int64_t id)
{
    if (dtype == MOE_I64) {
        ((int64_t *)base)[i] = id;
    } else {
        ((int32_t *)base)[i] = (int32_t)id;
    }
}

/// What few slots are sorted by, below 2^31; absent ones, expert -1, lie behind every expert.
DEV_FN uint32_t moei_gpu_sort_key(int32_t expert, uint32_t slot)
{
    return ((uint32_t)expert & 0x7FFFu) << 16 | slot;
}

/// f32, bf16 or f16, aligned to its elements; exact.
DEV_FN float moei_gpu_load_aligned(moe_dtype dtype, const void *base, int64_t i)
{
    return dtype == MOE_F32    ? ((const float *)base)[i]
           : dtype == MOE_BF16 ? moei_bf16_to_f32(((const uint16_t *)base)[i])
                               : moei_f16_to_f32(((const uint16_t *)base)[i]);
}

/// f32 or bf16, aligned to its elements; nearest even, NaN canonical.
DEV_FN void moei_gpu_store_weight(moe_dtype dtype, void *base, int64_t i, float v)
{
    v = moei_nan_from(v, v);
    if (dtype == MOE_F32) {
        ((float *)base)[i] = v;
    } else {
        ((uint16_t *)base)[i] = moei_f32_to_bf16(v);
    }
}

#endif
