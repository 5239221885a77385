// SPDX-License-Identifier: Apache-2.0
// Where rows, scales and zero points of a grouped product lie: indices alone, for host and device.
// Row i of expert e counts as in moek_ggemm_args.
#ifndef MOEI_OPS_GGEMM_AT_H
#define MOEI_OPS_GGEMM_AT_H

#include "moe/backend.h"
#include "numerics/int4.h"

MOE_HD int64_t moei_x_row(const moek_ggemm_args *a, int64_t i)
{
    return a->row_index != NULL ? a->row_index[i] / a->row_divisor : i;
}

MOE_HD const uint8_t *moei_x_at(const moek_ggemm_args *a, int32_t e, int64_t i)
{
    const int64_t batch = a->offsets == NULL ? e * a->x.batch_stride : 0;
    return a->x.data + batch + moei_x_row(a, i) * a->x.row_stride;
}

MOE_HD int64_t moei_y_row(const moek_ggemm_args *a, int64_t i)
{
    return a->out_index != NULL ? a->out_index[i] : i;
}

MOE_HD uint8_t *moei_y_at(const moek_ggemm_args *a, int32_t e, int64_t i)
{
    const int64_t batch = a->offsets == NULL ? e * a->y_batch_stride : 0;
    return a->y + batch + moei_y_row(a, i) * a->y_row_stride;
}

/// Of row `row` of y.
MOE_HD float moei_y_row_weight(const moek_ggemm_args *a, int32_t e, int64_t row)
{
    const int64_t batch = a->offsets == NULL ? e * a->weight_batch_stride : 0;
    return a->row_weight[batch + row * a->weight_row_stride];
}

MOE_HD float moei_row_weight(const moek_ggemm_args *a, int32_t e, int64_t i)
{
    return moei_y_row_weight(a, e, moei_y_row(a, i));
}

/// Part (gate or up) of row n of the matrix, where scales differ between the two.
MOE_HD int64_t moei_part_of(const moei_matrices *w, int32_t parts, int64_t n)
{
    return parts < 2 ? 0 : w->interleaved_parts ? n & 1 : n >= w->part_rows;
}

/// Element of w.scales for row n at element k. Neither reaches 2^31, and devices divide 32 bits
/// several times as fast.
MOE_HD int64_t moei_w_scale_at(const moei_matrices *w, int32_t e, int64_t n, int64_t k)
{
    int64_t row = moei_part_of(w, w->scale_parts, n);
    if (w->block_n > 0) {
        // Blocks of rows begin anew at the second part: gate and up were quantised apart.
        const uint32_t block = (uint32_t)w->block_n;
        const uint32_t part_rows = (uint32_t)w->part_rows;
        const uint32_t part = (uint32_t)n / part_rows;
        row = part * ((part_rows + block - 1) / block) + ((uint32_t)n - part * part_rows) / block;
    }
    const uint32_t column = w->block_k > 0 ? (uint32_t)k / (uint32_t)w->block_k : 0;
    return (int64_t)e * w->scale_e_stride + row * w->scale_n_stride + column * w->scale_k_stride;
}

/// Second-level scale of row n.
MOE_HD float moei_w_scale2(const moei_matrices *w, int32_t e, int64_t n)
{
    const int64_t at = w->scale2_per_row ? n : moei_part_of(w, w->scale2_parts, n);
    return w->scale2[(int64_t)e * w->scale2_e_stride + at];
}

/// Zero point of row n's group; `zeros` must not be NULL.
MOE_HD uint8_t moei_zero_point(const moei_matrices *w, int64_t e, int64_t n, int64_t group)
{
    const uint8_t *expert = w->zeros + e * w->zero_e_stride;
    switch (w->zero_form) {
    case MOEI_ZERO_PAIRS: {
        const uint8_t byte = expert[n / 2 * w->zero_n_stride + group];
        return n % 2 == 0 ? byte & 15 : byte >> 4;
    }
    case MOEI_ZERO_NIBBLES:
        return moei_get_u4(expert + n * w->zero_n_stride, (size_t)group);
    default:
        return expert[n * w->zero_n_stride + group];
    }
}

/// Element of x.scales for row i of expert e at element k: of x.scale_dtype, or, where packed, the
/// int32 whose byte group % 4 it is.
MOE_HD int64_t moei_x_scale_at(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t k,
                               int64_t *group)
{
    const moei_operand *x = &a->x;
    *group = x->group > 0 ? (uint32_t)k / (uint32_t)x->group : 0;
    return (a->offsets == NULL ? e * x->scale_batch_stride : 0) +
           moei_x_row(a, i) * x->scale_row_stride +
           (x->packed ? *group / 4 : *group) * x->scale_k_stride;
}

#endif
