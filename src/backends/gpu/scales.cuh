// SPDX-License-Identifier: Apache-2.0
// Scales of both operands of a grouped product, and what follows its sum, in the order that
// ops/ggemm.h states.
#ifndef MOEI_GPU_SCALES_CUH
#define MOEI_GPU_SCALES_CUH

#include "backends/gpu/elements.cuh"
#include "numerics/e8m0.h"
#include "ops/ggemm_at.h"

DEV_FN float moei_gpu_w_scale(const moei_matrices *w, int32_t e, int64_t n, int64_t k)
{
    return moei_gpu_load(w->scale_dtype, w->scales, moei_w_scale_at(w, e, n, k));
}

/// Scale of x for row i of expert e at element k.
DEV_FN float moei_gpu_x_scale(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t k)
{
    int64_t group;
    const int64_t at = moei_x_scale_at(a, e, i, k, &group);
    return a->x.packed ? moei_e8m0_to_f32(((const uint8_t *)a->x.scales)[4 * at + group % 4])
                       : moei_gpu_load(a->x.scale_dtype, a->x.scales, at);
}

/// From the sum of products to y before its rounding.
DEV_FN float moei_gpu_finish(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t n, float v)
{
    const moei_matrices *w = &a->w;
    if (a->x.scales != NULL && a->x.group == 0) {
        v = v * moei_gpu_x_scale(a, e, i, 0);
    }
    if (w->scales != NULL && w->block_k == 0) {
        v = v * moei_gpu_w_scale(w, e, n, 0);
    }
    if (w->scale2 != NULL) {
        v = v * moei_w_scale2(w, e, n);
    }
    if (a->x.scale2 != NULL) {
        v = moei_divf(v, a->x.scale2[0]);
    }
    if (w->bias != NULL) {
        v = v + moei_gpu_load(w->bias_dtype, (const uint8_t *)w->bias,
                              (int64_t)e * w->bias_e_stride + n);
    }
    if (a->row_weight != NULL) {
        v = v * moei_row_weight(a, e, i);
    }
    return v;
}

#endif
