// SPDX-License-Identifier: Apache-2.0
// What every product of the CPU has in common: scales, zero points, and what follows the sum, in
// the order that ops/ggemm.h states. Static inline, so that each kernel file compiles it with its
// own instruction set.
#ifndef MOEI_BACKENDS_CPU_PRODUCT_H
#define MOEI_BACKENDS_CPU_PRODUCT_H

#include "numerics/hd.h"
#include "ops/ggemm.h"
#include "quant/elements.h"

#define MOEI_CPU_MAX_COLUMNS 64 // outputs of a kernel's tile, at most

static inline float moei_cpu_weight_scale(const moei_matrices *w, int32_t e, int64_t n, int64_t k)
{
    return moei_load_one(w->scale_dtype, w->scales, moei_w_scale_at(w, e, n, k));
}

static inline float moei_cpu_zero_point(const moei_matrices *w, int32_t e, int64_t n, int64_t k)
{
    if (w->zeros == NULL) {
        return (float)w->format->zero_point;
    }
    return (float)moei_zero_point(w, e, n, k / w->block_k);
}

/// The value of each 4-bit code, in bytes of bf16, which two look-ups make of it.
static inline void moei_cpu_code_bytes(const float value[16], uint8_t low[16], uint8_t high[16])
{
    for (int code = 0; code < 16; code++) {
        const uint16_t bits = moei_f32_to_bf16(value[code]);
        low[code] = (uint8_t)bits;
        high[code] = (uint8_t)(bits >> 8);
    }
}

/// Scale of x for row i of expert e at element k.
static inline float moei_cpu_operand_scale(const moek_ggemm_args *a, int32_t e, int64_t i,
                                           int64_t k)
{
    int64_t group;
    const int64_t at = moei_x_scale_at(a, e, i, k, &group);
    return a->x.packed ? moei_e8m0_to_f32(((const uint8_t *)a->x.scales)[4 * at + group % 4])
                       : moei_load_one(a->x.scale_dtype, a->x.scales, at);
}

/// What the sums of outputs n0 .. n1 - 1 meet whatever the row; members whose operand is absent are
/// not filled.
typedef struct moei_cpu_columns {
    float scale[MOEI_CPU_MAX_COLUMNS]; // of the channel, or the tensor
    float scale2[MOEI_CPU_MAX_COLUMNS];
    float bias[MOEI_CPU_MAX_COLUMNS];
} moei_cpu_columns;

static inline void moei_cpu_load_columns(const moei_matrices *w, int32_t e, int64_t n0, int64_t n1,
                                         moei_cpu_columns *out)
{
    if (w->scales != NULL && w->block_k == 0) {
        for (int64_t n = n0; n < n1; n++) {
            out->scale[n - n0] = moei_cpu_weight_scale(w, e, n, 0);
        }
    }
    if (w->scale2 != NULL) {
        for (int64_t n = n0; n < n1; n++) {
            out->scale2[n - n0] = moei_w_scale2(w, e, n);
        }
    }
    if (w->bias != NULL) {
        moei_load_f32(w->bias_dtype, w->bias, (int64_t)e * w->bias_e_stride + n0, n1 - n0,
                      out->bias);
    }
}

/// The sums of row i to its results.
static inline void moei_cpu_finish(const moek_ggemm_args *a, const moei_cpu_columns *columns,
                                   int32_t e, int64_t i, int64_t n0, int64_t n1,
                                   float *restrict acc)
{
    const moei_matrices *w = &a->w;
    const int64_t count = n1 - n0;
    if (a->x.scales != NULL && a->x.group == 0) {
        const float scale = moei_cpu_operand_scale(a, e, i, 0);
        for (int64_t n = 0; n < count; n++) {
            acc[n] *= scale;
        }
    }
    if (w->scales != NULL && w->block_k == 0) {
        for (int64_t n = 0; n < count; n++) {
            acc[n] *= columns->scale[n];
        }
    }
    if (w->scale2 != NULL) {
        for (int64_t n = 0; n < count; n++) {
            acc[n] *= columns->scale2[n];
        }
    }
    if (a->x.scale2 != NULL) {
        for (int64_t n = 0; n < count; n++) {
            acc[n] = moei_divf(acc[n], a->x.scale2[0]);
        }
    }
    if (w->bias != NULL) {
        for (int64_t n = 0; n < count; n++) {
            acc[n] += columns->bias[n];
        }
    }
    if (a->row_weight != NULL) {
        const float weight = moei_row_weight(a, e, i);
        for (int64_t n = 0; n < count; n++) {
            acc[n] *= weight;
        }
    }
    uint8_t *y = moei_y_at(a, e, i) + n0 * moe_dtype_bits(a->y_dtype) / 8;
    if (a->y_dtype == MOE_F32) { // in vectors, where compilers know that y and acc do not overlap
        for (int64_t n = 0; n < count; n++) {
            acc[n] = moei_canonical_nan(acc[n]);
        }
        memcpy(y, acc, (size_t)count * sizeof *acc);
        return;
    }
    moei_store_f32(a->y_dtype, y, count, acc);
}

#endif
