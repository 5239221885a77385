// SPDX-License-Identifier: Apache-2.0
// One matrix in two canonical layouts: row order, padding, transposition.
//
// Every layout places the rows of gate, and those of up, at an even distance from each other:
//   halves       start 0 or I, step 1
//   interleaved  start 0 or 1, step 2
// So a conversion is, for each part and each kind of tensor, one strided copy and one fill. A scale
// per block of rows is the same with I / 128 for I; a scale per part, with I = 1.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "numerics/fp6.h"
#include "numerics/int4.h"
#include "quant/layouts_matrix.h"

// Columns that get zero codes inside the last group of the source: there, that group's zero point.
static int64_t partial_end(const moei_matrix *s, const moe_matrix_layout *to)
{
    return s->group > 0 ? moei_i64_min(to->cols, moei_scale_cols(s->group, s->layout) * s->group)
                        : s->layout->cols;
}

static int zero_at(const moei_matrix *m, int64_t e, int64_t row, int64_t g)
{
    const moe_tensor *t = &m->views[MOEI_VIEW_ZEROS];
    const uint8_t *base = moei_tensor_data(t) + e * moei_tensor_stride_bytes(t, 0);
    switch (m->zero_form) {
    case MOEI_ZERO_PAIRS:
        return base[row / 2 * t->stride[1] + g * t->stride[2]] >> (row % 2 * 4) & 15;
    case MOEI_ZERO_NIBBLES:
        return moei_get_u4(base + row * moei_tensor_stride_bytes(t, 1), (size_t)g);
    default:
        return base[row * t->stride[1] + g * t->stride[2]];
    }
}

// A zero point of 16 or more (GPTQ has 16) is no code, so padding of its group cannot have value 0.
static moe_status check_zero_codes(const moei_matrix *s, const moe_matrix_layout *to,
                                   const char *call)
{
    const moe_matrix_layout *from = s->layout;
    if (s->views[MOEI_VIEW_ZEROS].data == NULL || s->views[MOEI_VIEW_VALUES].data == NULL ||
        s->info->elem != MOE_UINT4 || partial_end(s, to) <= from->cols) {
        return MOE_OK;
    }
    const int64_t g = from->cols / s->group;
    for (int64_t e = 0; e < from->count; e++) {
        for (int64_t r = 0; r < from->rows; r++) {
            MOE_REQUIRE(zero_at(s, e, r, g) <= 15, MOE_E_VALUE,
                        "%s: src.zero_points of expert %" PRId64 ": element [%" PRId64 ", %" PRId64
                        "] is %d, columns padded to %" PRId64 " need at most 15",
                        call, e, r, g, zero_at(s, e, r, g), to->cols);
        }
    }
    return MOE_OK;
}

// ---- copies -----------------------------------------------------------------------------------

static moei_plane part_plane(const moei_plane *plane, int64_t e, const moei_row_parts *parts, int p)
{
    const moei_plane part = {plane->data + e * plane->e_stride + parts->start[p] * plane->r_stride,
                             0, parts->step * plane->r_stride, plane->c_stride};
    return part;
}

// Scales, biases, zero points of a byte: rows by part; what is new in dst becomes bytes `pad`.
static void convert_plane(const moe_tensor *src, const moei_row_parts *sp, const moe_tensor *dst,
                          const moei_row_parts *dp, int pad)
{
    const moei_plane s = moei_layout_plane(src);
    const moei_plane d = moei_layout_plane(dst);
    const int64_t size = moe_dtype_bits(dst->dtype) / 8;
    const int64_t rows = moei_i64_min(sp->rows, dp->rows);
    const int64_t cols = moei_i64_min(src->shape[2], dst->shape[2]);
    for (int64_t e = 0; e < dst->shape[0]; e++) {
        for (int p = 0; p < dp->count; p++) {
            const moei_plane from = part_plane(&s, e, sp, p);
            const moei_plane to = part_plane(&d, e, dp, p);
            moei_layout_copy(&to, &from, rows, cols, size);
            moei_layout_fill(&to, 0, rows, cols, dst->shape[2], size, pad);
            moei_layout_fill(&to, rows, dp->rows, 0, dst->shape[2], size, pad);
        }
    }
}

static void set_code(uint8_t *row, int bits, int64_t i, int code)
{
    if (bits == 4) {
        moei_set_u4(row, (size_t)i, (uint8_t)code);
    } else {
        moei_set_u6(row, (size_t)i, (uint8_t)code);
    }
}

// Codes 0 .. n-1 of a packed row; bits of the row past them become 0.
static void copy_codes(uint8_t *to, int64_t to_bytes, const uint8_t *from, int bits, int64_t n)
{
    const int64_t whole = n / 4 * 4; // four codes fill whole bytes
    const int64_t bytes = whole * bits / 8;
    memcpy(to, from, (size_t)bytes);
    memset(to + bytes, 0, (size_t)(to_bytes - bytes));
    for (int64_t i = whole; i < n; i++) {
        set_code(to, bits, i,
                 bits == 4 ? moei_get_u4(from, (size_t)i) : moei_get_u6(from, (size_t)i));
    }
}

// Values of rows by (row, column), whatever the layout; sub-byte rows have no column stride.
static moei_plane value_plane(const moei_matrix *m)
{
    const moe_tensor *t = &m->views[MOEI_VIEW_VALUES];
    const int64_t outer = moei_tensor_stride_bytes(t, 1);
    const int64_t inner = moe_dtype_bits(m->info->elem) / 8;
    const moei_plane plane = {moei_tensor_data(t), moei_tensor_stride_bytes(t, 0),
                              m->layout->transposed != 0 ? inner : outer,
                              m->layout->transposed != 0 ? outer : inner};
    return plane;
}

static void fill_codes(const moei_matrix *d, const moei_plane *part, int64_t row, int64_t c0,
                       int64_t c1, int code)
{
    const int bits = moe_dtype_bits(d->info->elem);
    if (bits >= 8) {
        moei_layout_fill(part, row, row + 1, c0, c1, bits / 8, code);
        return;
    }
    uint8_t *bytes = part->data + row * part->r_stride;
    int64_t c = c0;
    if (code == 0) {
        return; // copy_codes has cleared the row
    }
    for (; c < c1 && c % 2 != 0; c++) {
        set_code(bytes, bits, c, code);
    }
    if (bits == 4 && c < c1) {
        memset(bytes + c / 2, code * 0x11, (size_t)((c1 - c) / 2));
        c += (c1 - c) / 2 * 2;
    }
    for (; c < c1; c++) {
        set_code(bytes, bits, c, code);
    }
}

// Rows of a part: what both have is copied, then columns and rows that are new get the zero code.
static void convert_value_part(const moei_matrix *s, const moei_row_parts *sp, const moei_matrix *d,
                               const moei_row_parts *dp, int64_t e, int p)
{
    const int bits = moe_dtype_bits(d->info->elem);
    const int64_t rows = moei_i64_min(sp->rows, dp->rows);
    const int64_t s_cols = s->layout->cols;
    const int64_t d_cols = d->layout->cols;
    const int64_t cols = moei_i64_min(s_cols, d_cols);
    const moei_plane s_plane = value_plane(s);
    const moei_plane d_plane = value_plane(d);
    const moei_plane from = part_plane(&s_plane, e, sp, p);
    const moei_plane to = part_plane(&d_plane, e, dp, p);
    const int64_t row_bytes = moei_elem_bytes(d->info->elem, d_cols);
    if (bits >= 8) {
        moei_layout_copy(&to, &from, rows, cols, bits / 8);
    } else {
        for (int64_t r = 0; r < dp->rows; r++) {
            copy_codes(to.data + r * to.r_stride, row_bytes,
                       from.data + (r < rows ? r : 0) * from.r_stride, bits, r < rows ? cols : 0);
        }
    }
    const int zero = d->info->zero_point > 0 ? d->info->zero_point : 0;
    const int64_t partial =
        s->views[MOEI_VIEW_ZEROS].data != NULL ? partial_end(s, d->layout) : cols;
    for (int64_t r = 0; r < dp->rows; r++) {
        int64_t c = r < rows ? cols : 0;
        if (r < rows && c < partial) {
            const int64_t s_row = sp->start[p] + r * sp->step;
            fill_codes(d, &to, r, c, partial, zero_at(s, e, s_row, s_cols / s->group));
            c = partial;
        }
        fill_codes(d, &to, r, c, d_cols, zero);
    }
}

static void convert_values(const moei_matrix *s, const moei_matrix *d)
{
    const moei_row_parts sp = moei_row_parts_of(s->layout->gate_up, s->layout->rows);
    const moei_row_parts dp = moei_row_parts_of(d->layout->gate_up, d->layout->rows);
    for (int64_t e = 0; e < d->layout->count; e++) {
        for (int p = 0; p < dp.count; p++) {
            convert_value_part(s, &sp, d, &dp, e, p);
        }
    }
}

static void zero_put(const moei_matrix *m, int64_t e, int64_t row, int64_t g, int value)
{
    const moe_tensor *t = &m->views[MOEI_VIEW_ZEROS];
    uint8_t *base = moei_tensor_data(t) + e * moei_tensor_stride_bytes(t, 0);
    if (m->zero_form == MOEI_ZERO_PAIRS) {
        moei_set_u4(base + row / 2 * t->stride[1] + g * t->stride[2], (size_t)(row % 2),
                    (uint8_t)value);
    } else {
        moei_set_u4(base + row * moei_tensor_stride_bytes(t, 1), (size_t)g, (uint8_t)value);
    }
}

// Zero points of a nibble: the unused half of a last byte becomes 0.
static void convert_packed_zeros(const moei_matrix *s, const moei_matrix *d)
{
    const moei_row_parts sp = moei_row_parts_of(s->layout->gate_up, s->layout->rows);
    const moei_row_parts dp = moei_row_parts_of(d->layout->gate_up, d->layout->rows);
    const int64_t s_groups = moei_scale_cols(s->group, s->layout);
    const int64_t d_groups = moei_scale_cols(d->group, d->layout);
    const int64_t bytes = d->zero_form == MOEI_ZERO_PAIRS ? d_groups : (d_groups + 1) / 2;
    uint8_t *data = moei_tensor_data(&d->views[MOEI_VIEW_ZEROS]);
    for (int64_t e = 0; e < d->layout->count; e++) {
        for (int64_t i = 0; i < d->views[MOEI_VIEW_ZEROS].shape[1]; i++) {
            memset(data + e * moei_tensor_stride_bytes(&d->views[MOEI_VIEW_ZEROS], 0) +
                       i * moei_tensor_stride_bytes(&d->views[MOEI_VIEW_ZEROS], 1),
                   0, (size_t)bytes);
        }
        for (int p = 0; p < dp.count; p++) {
            for (int64_t r = 0; r < dp.rows; r++) {
                for (int64_t g = 0; g < d_groups; g++) {
                    const bool old = r < sp.rows && g < s_groups;
                    zero_put(d, e, dp.start[p] + r * dp.step, g,
                             old ? zero_at(s, e, sp.start[p] + r * sp.step, g)
                                 : d->info->zero_point);
                }
            }
        }
    }
}

// Numbers per part: [n, 2] follow the order; one for both stays.
static void convert_part_scales(const moe_tensor *s, moe_gate_up from, const moe_tensor *d,
                                moe_gate_up to)
{
    const bool two = s->shape[1] == 2;
    const moei_row_parts sp = moei_row_parts_of(two ? from : MOE_GATE_UP_UNSET, s->shape[1]);
    const moei_row_parts dp = moei_row_parts_of(two ? to : MOE_GATE_UP_UNSET, d->shape[1]);
    convert_plane(s, &sp, d, &dp, 0);
}

// ---- the call ----------------------------------------------------------------------------------

static moe_status check_same_field(const moei_matrix *s, const moei_matrix *d, int i,
                                   const char *call)
{
    const moe_tensor *a = &s->views[i];
    const moe_tensor *b = &d->views[i];
    const char *field = moei_view_names[i];
    MOE_REQUIRE((a->data == NULL) == (b->data == NULL), MOE_E_ARGUMENT,
                "%s: src.%s is %s, dst.%s is %s", call, field, a->data == NULL ? "absent" : "given",
                field, b->data == NULL ? "absent" : "given");
    if (a->data == NULL || i == MOEI_VIEW_VALUES) {
        return MOE_OK; // codes may come as bytes on one side
    }
    MOE_REQUIRE(a->dtype == b->dtype, MOE_E_DTYPE, "%s: src.%s is %s, dst.%s is %s", call, field,
                moe_dtype_name(a->dtype), field, moe_dtype_name(b->dtype));
    const bool per_part = i == MOEI_VIEW_SCALE2 || (i == MOEI_VIEW_SCALES && s->info->block_n == 0);
    MOE_REQUIRE(!per_part || a->shape[1] == b->shape[1], MOE_E_SHAPE,
                "%s: src.%s has %" PRId64 " parts, dst.%s %" PRId64, call, field, a->shape[1],
                field, b->shape[1]);
    MOE_REQUIRE(i != MOEI_VIEW_ZEROS || s->zero_form == d->zero_form, MOE_E_SHAPE,
                "%s: src.%s has %" PRId64 " rows for %" PRId64 ", dst.%s %" PRId64 " for %" PRId64
                ": pairs on one side only",
                call, field, a->shape[1], s->layout->rows, field, b->shape[1], d->layout->rows);
    return MOE_OK;
}

static moe_status check_both(const moei_matrix *s, const moei_matrix *d, const char *call)
{
    for (int i = 0; i < MOEI_NUM_VIEWS; i++) {
        MOE_TRY(check_same_field(s, d, i, call));
    }
    for (int i = 0; i < MOEI_NUM_VIEWS; i++) {
        char name[32];
        char other[32];
        (void)snprintf(name, sizeof name, "dst.%s", moei_view_names[i]);
        for (int j = 0; j < MOEI_NUM_VIEWS; j++) {
            (void)snprintf(other, sizeof other, "src.%s", moei_view_names[j]);
            MOE_TRY(moei_layout_disjoint(&d->views[i], name, &s->views[j], other, call));
        }
        for (int j = 0; j < i; j++) {
            (void)snprintf(other, sizeof other, "dst.%s", moei_view_names[j]);
            MOE_TRY(moei_layout_disjoint(&d->views[i], name, &d->views[j], other, call));
        }
    }
    return MOE_OK;
}

// One row has the same shape in pairs and in bytes: it takes the form of the other side.
static void agree_zero_forms(moei_matrix *s, moei_matrix *d)
{
    if (s->zero_form == MOEI_ZERO_BYTES && s->layout->rows <= 1 &&
        d->zero_form == MOEI_ZERO_PAIRS) {
        s->zero_form = MOEI_ZERO_PAIRS;
    }
    if (d->zero_form == MOEI_ZERO_BYTES && d->layout->rows <= 1 &&
        s->zero_form == MOEI_ZERO_PAIRS) {
        d->zero_form = MOEI_ZERO_PAIRS;
    }
}

static void convert_scales(const moei_matrix *s, moe_gate_up from_order, const moei_matrix *d,
                           moe_gate_up to_order)
{
    const moe_tensor *from = &s->views[MOEI_VIEW_SCALES];
    const moe_tensor *to = &d->views[MOEI_VIEW_SCALES];
    if (s->info->block_n == 0) {
        convert_part_scales(from, s->layout->gate_up, to, d->layout->gate_up);
    } else {
        const moei_row_parts sp = moei_row_parts_of(from_order, from->shape[1]);
        const moei_row_parts dp = moei_row_parts_of(to_order, to->shape[1]);
        convert_plane(from, &sp, to, &dp, 0);
    }
}

moe_status moe_layout_convert(const moe_matrix_layout *from, const moe_matrix_source *src,
                              const moe_matrix_layout *to, const moe_matrix_source *dst)
{
    static const char call[] = "moe_layout_convert";
    moe_matrix_layout known[2];
    moei_matrix s;
    moei_matrix d;
    moe_gate_up from_order;
    moe_gate_up to_order;
    MOE_TRY(moei_layouts_read(from, to, call, &known[0], &known[1]));
    from = &known[0];
    to = &known[1];
    MOE_TRY(moei_matrix_check(from, src, call, "src", false, &s));
    MOE_TRY(moei_scale_orders(&s, to, call, &from_order, &to_order));
    MOE_TRY(moei_matrix_check(to, dst, call, "dst", true, &d));
    agree_zero_forms(&s, &d);
    MOE_TRY(check_both(&s, &d, call));
    MOE_TRY(check_zero_codes(&s, to, call));

    const moei_row_parts sp = moei_row_parts_of(from->gate_up, from->rows);
    const moei_row_parts dp = moei_row_parts_of(to->gate_up, to->rows);
    for (int i = 0; i < MOEI_NUM_VIEWS; i++) {
        if (s.views[i].data == NULL) {
            continue;
        }
        switch (i) {
        case MOEI_VIEW_VALUES:
            convert_values(&s, &d);
            break;
        case MOEI_VIEW_SCALES:
            convert_scales(&s, from_order, &d, to_order);
            break;
        case MOEI_VIEW_SCALE2:
            convert_part_scales(&s.views[i], from->gate_up, &d.views[i], to->gate_up);
            break;
        case MOEI_VIEW_ZEROS:
            if (s.zero_form == MOEI_ZERO_BYTES) {
                convert_plane(&s.views[i], &sp, &d.views[i], &dp, s.info->zero_point);
            } else {
                convert_packed_zeros(&s, &d);
            }
            break;
        case MOEI_VIEW_BIAS:
            convert_plane(&s.views[i], &sp, &d.views[i], &dp, 0);
            break;
        default:
            memcpy(moei_tensor_data(&d.views[i]), moei_tensor_data(&s.views[i]), sizeof(float));
            break;
        }
    }
    return MOE_OK;
}
