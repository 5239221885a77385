// SPDX-License-Identifier: Apache-2.0
// A few rows of bf16 times the panels of a packed matrix, in classes amx_bf16 and amx_bf16_b32: the
// bits of matrix units without them. A panel is read once for up to four rows, in the order in
// which it lies.
#ifndef MOEI_BACKENDS_CPU_AVX512_FEW_H
#define MOEI_BACKENDS_CPU_AVX512_FEW_H

#include <string.h>

#include "backends/cpu/avx/flush.h"
#include "backends/cpu/avx/load_x.h"
#include "backends/cpu/packed_panels.h"
#include "backends/cpu/unroll.h"

#define FEW_ROWS  4   // that share a panel
#define FEW_CHUNK 512 // k of x that are floats at once

/// Up to FEW_ROWS rows from i on, and one panel.
typedef struct few {
    _Alignas(64) float x[FEW_ROWS][FEW_CHUNK];
    _Alignas(64) float acc[FEW_ROWS][MOEI_CPU_PANEL];
    moei_cpu_panels p;
    int64_t i, rows;
    const uint8_t *from; // the panel
    int64_t width;       // its outputs
} few;

/// Adds the products of all k to `acc`, which is zero.
typedef void few_panel_fn(few *f);

/// x of the rows from k0 on; up to whole records, zeros. Returns how many records.
static inline int64_t few_load(few *f, int64_t k0)
{
    const int64_t count = moei_i64_min(FEW_CHUNK, f->p.args.w.k - k0);
    const int64_t end = moei_i64_round_up(count, MOEI_CPU_RECORD);
    for (int64_t r = 0; r < f->rows; r++) {
        load_x(MOE_BF16, moei_x_at(&f->p.args, f->p.e, f->i + r), k0, count, f->x[r]);
        memset(f->x[r] + count, 0, (size_t)(end - count) * sizeof f->x[r][0]);
    }
    return end / MOEI_CPU_RECORD;
}

static inline void few_panels(few *f, int64_t i0, int64_t i1, few_panel_fn *add)
{
    const moei_cpu_packed *packed = &f->p.packed;
    for (int64_t panel = f->p.n0 / MOEI_CPU_PANEL; panel * MOEI_CPU_PANEL < f->p.n1; panel++) {
        f->width = moei_cpu_panel_width(packed, panel);
        f->from = f->p.expert + moei_cpu_group_at(packed, panel, f->width, 0);
        for (f->i = i0; f->i < i1; f->i += f->rows) {
            f->rows = moei_i64_min(FEW_ROWS, i1 - f->i);
            memset(f->acc, 0, sizeof f->acc);
            add(f);
            moei_cpu_panel_finish(&f->p, panel, f->i, f->i + f->rows, f->acc);
        }
    }
}

#endif
