// SPDX-License-Identifier: Apache-2.0
// A few rows of bf16 times the panels of a packed matrix, in classes amx_bf16 and amx_bf16_b32: the
// bits of matrix units without them. A panel is read once for up to four rows, in the order in
// which it lies.
#ifndef MOEI_BACKENDS_CPU_AVX512_FEW_H
#define MOEI_BACKENDS_CPU_AVX512_FEW_H

#include <string.h>

#include "backends/cpu/avx/flush.h"
#include "backends/cpu/avx/load_x.h"
#include "backends/cpu/packed_walk.h"
#include "backends/cpu/product.h"
#include "backends/cpu/unroll.h"

#define FEW_ROWS  4   // that share a panel
#define FEW_CHUNK 512 // k of x that are floats at once

/// Rows i .. i + rows - 1 of an expert, and one panel.
typedef struct few {
    _Alignas(64) float x[FEW_ROWS][FEW_CHUNK];
    _Alignas(64) float acc[FEW_ROWS][MOEI_CPU_PANEL];
    moei_cpu_columns columns;
    const moek_ggemm_args *args;
    moei_cpu_packed packed;
    const uint8_t *expert;
    int32_t e;
    int64_t i, rows;
    const uint8_t *from; // the panel
    int64_t width;       // its outputs
} few;

/// Adds the products of all k to `acc`, which is zero.
typedef void few_panel_fn(few *f);

/// x of the rows from k0 on; up to whole records, zeros. Returns how many records.
static inline int64_t few_load(few *f, int64_t k0)
{
    const int64_t count = moei_i64_min(FEW_CHUNK, f->args->w.k - k0);
    const int64_t end = moei_i64_round_up(count, MOEI_CPU_RECORD);
    for (int64_t r = 0; r < f->rows; r++) {
        load_x(MOE_BF16, moei_x_at(f->args, f->e, f->i + r), k0, count, f->x[r]);
        memset(f->x[r] + count, 0, (size_t)(end - count) * sizeof f->x[r][0]);
    }
    return end / MOEI_CPU_RECORD;
}

static inline void few_begin(few *f, const moek_ggemm_args *args, int32_t e)
{
    f->args = args;
    f->packed = moei_cpu_packed_of(&args->w);
    f->expert = args->w.values + (int64_t)e * args->w.value_e_stride;
    f->e = e;
}

static inline void few_panels(few *f, int64_t i0, int64_t i1, int64_t n0, int64_t n1,
                              few_panel_fn *add)
{
    for (int64_t panel = n0 / MOEI_CPU_PANEL; panel * MOEI_CPU_PANEL < n1; panel++) {
        const int64_t at = panel * MOEI_CPU_PANEL;
        f->width = moei_cpu_panel_width(&f->packed, panel);
        f->from = f->expert + moei_cpu_group_at(&f->packed, panel, f->width, 0);
        const int64_t first = moei_i64_max(at, n0);
        const int64_t end = moei_i64_min(at + f->width, n1);
        moei_cpu_load_columns(&f->args->w, f->e, first, end, &f->columns);
        for (f->i = i0; f->i < i1; f->i += f->rows) {
            f->rows = moei_i64_min(FEW_ROWS, i1 - f->i);
            memset(f->acc, 0, sizeof f->acc);
            add(f);
            for (int64_t r = 0; r < f->rows; r++) {
                moei_cpu_finish(f->args, &f->columns, f->e, f->i + r, first, end,
                                &f->acc[r][first - at]);
            }
        }
    }
}

#endif
