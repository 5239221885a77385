// SPDX-License-Identifier: Apache-2.0
// Scales of both operands of a grouped product, and what follows its sum, in the order that
// ops/ggemm.h states.
#ifndef MOEI_GPU_SCALES_CUH
#define MOEI_GPU_SCALES_CUH

#include "backends/gpu/elements.cuh"
#include "backends/gpu/tiles.cuh"
#include "numerics/e8m0.h"
#include "numerics/int4.h"

/// Part (gate or up) of row n of the matrix, where scales differ between the two.
DEV_FN int64_t moei_gpu_part(const moei_matrices *w, int32_t parts, int64_t n)
{
    return parts < 2 ? 0 : w->interleaved_parts ? n & 1 : n >= w->part_rows;
}

DEV_FN float moei_gpu_w_scale(const moei_matrices *w, int32_t e, int64_t n, int64_t k)
{
    int64_t row = moei_gpu_part(w, w->scale_parts, n);
    if (w->block_n > 0) {
        // Blocks of rows begin anew at the second part: gate and up were quantised apart.
        const int64_t blocks = (w->part_rows + w->block_n - 1) / w->block_n;
        row = n / w->part_rows * blocks + n % w->part_rows / w->block_n;
    }
    const int64_t column = w->block_k > 0 ? k / w->block_k : 0;
    return moei_gpu_load(w->scale_dtype, (const uint8_t *)w->scales,
                         (int64_t)e * w->scale_e_stride + row * w->scale_n_stride +
                             column * w->scale_k_stride);
}

DEV_FN float moei_gpu_zero_point(const moei_matrices *w, int32_t usual, int32_t e, int64_t n,
                                 int64_t k)
{
    if (w->zeros == NULL) {
        return (float)usual;
    }
    const uint8_t *expert = w->zeros + e * w->zero_e_stride;
    const int64_t group = k / w->block_k;
    if (w->zero_form == MOEI_ZERO_PAIRS) {
        const uint8_t byte = expert[n / 2 * w->zero_n_stride + group];
        return (float)(n % 2 == 0 ? byte & 15 : byte >> 4);
    }
    const uint8_t *row = expert + n * w->zero_n_stride;
    return (float)(w->zero_form == MOEI_ZERO_NIBBLES ? moei_get_u4(row, (size_t)group)
                                                     : row[group]);
}

/// Scale of x for row i of expert e at element k.
DEV_FN float moei_gpu_x_scale(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t k)
{
    const moei_operand *x = &a->x;
    const int64_t group = x->group > 0 ? k / x->group : 0;
    const int64_t at = (a->offsets == NULL ? e * x->scale_batch_stride : 0) +
                       moei_x_row(a, i) * x->scale_row_stride;
    if (x->packed) {
        const uint8_t *word = (const uint8_t *)x->scales + 4 * (at + group / 4 * x->scale_k_stride);
        return moei_e8m0_to_f32(word[group % 4]);
    }
    return moei_gpu_load(x->scale_dtype, (const uint8_t *)x->scales,
                         at + group * x->scale_k_stride);
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
        const int64_t at = w->scale2_per_row ? n : moei_gpu_part(w, w->scale2_parts, n);
        v = v * w->scale2[(int64_t)e * w->scale2_e_stride + at];
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
