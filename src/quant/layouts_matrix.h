// SPDX-License-Identifier: Apache-2.0
// A matrix source whose views have been checked against a layout, and where its rows lie.
#ifndef MOEI_QUANT_LAYOUTS_MATRIX_H
#define MOEI_QUANT_LAYOUTS_MATRIX_H

#include "quant/elements.h"
#include "quant/formats.h"
#include "quant/layouts.h"

/// Rows of gate and of up, or all rows as one part: start[p] + j * step, 0 <= j < rows.
typedef struct moei_row_parts {
    int count; // 2: gate, up; 1: all
    int64_t start[2];
    int64_t step, rows;
} moei_row_parts;

/// The parts of `rows` rows in an order; UNSET: one part.
moei_row_parts moei_row_parts_of(moe_gate_up order, int64_t rows);

enum {
    MOEI_VIEW_VALUES, // [n, N, K in elements or bytes] or [n, K, N]
    MOEI_VIEW_SCALES, // [n, scale rows, scale columns]; per part [n, 1 or 2, 1]
    MOEI_VIEW_SCALE2, // [n, 1 or 2, 1]
    MOEI_VIEW_ZEROS,  // as its form says
    MOEI_VIEW_BIAS,   // [n, N, 1]
    MOEI_VIEW_ACT,    // [1] or []
    MOEI_NUM_VIEWS
};

/// The field of moe_matrix_source that a view comes from.
extern const char *const moei_view_names[MOEI_NUM_VIEWS];

typedef struct moei_matrix {
    const moei_format_info *info;
    const moe_matrix_layout *layout;
    int64_t group;                    // elements of k per scale, 0: all
    moe_tensor views[MOEI_NUM_VIEWS]; // all dimensions stated; data NULL where absent
    moei_zero_form zero_form;
} moei_matrix;

/// Scales of a row: ceil(cols / group), or 1.
int64_t moei_scale_cols(int64_t group, const moe_matrix_layout *m);

/// Reads both layouts of a caller, of whatever version, into `from` and `to`; checks them, and that
/// one can become the other.
moe_status moei_layouts_read(const moe_matrix_layout *given_from, const moe_matrix_layout *given_to,
                             const char *call, moe_matrix_layout *from, moe_matrix_layout *to);

/// Checks the views of a source against a checked layout and fills `m`. `side` ("src") heads the
/// names in messages; out: the views are written.
moe_status moei_matrix_check(const moe_matrix_layout *layout, const moe_matrix_source *source,
                             const char *call, const char *side, bool out, moei_matrix *m);

/// The orders by which rows of block, group and channel scales are taken apart: UNSET where they
/// stay in their sequence. Refuses blocks of rows that would hold gate and up.
moe_status moei_scale_orders(const moei_matrix *s, const moe_matrix_layout *to, const char *call,
                             moe_gate_up *from_order, moe_gate_up *to_order);

#endif
