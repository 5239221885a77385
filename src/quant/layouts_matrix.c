// SPDX-License-Identifier: Apache-2.0
// Layouts of a matrix source: checks of views, and the sizes that a layout asks for.
#include "quant/layouts_matrix.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PLACE_ALIGN 64

const char *const moei_view_names[MOEI_NUM_VIEWS] = {"values",      "scales", "scale2",
                                                     "zero_points", "bias",   "act_scale"};

static bool is_interleaved(moe_gate_up order)
{
    return order == MOE_GATE_UP_INTERLEAVED || order == MOE_UP_GATE_INTERLEAVED;
}

moei_row_parts moei_row_parts_of(moe_gate_up order, int64_t rows)
{
    const int64_t half = rows / 2;
    switch (order) {
    case MOE_GATE_FIRST:
        return (moei_row_parts){2, {0, half}, 1, half};
    case MOE_UP_FIRST:
        return (moei_row_parts){2, {half, 0}, 1, half};
    case MOE_GATE_UP_INTERLEAVED:
        return (moei_row_parts){2, {0, 1}, 2, half};
    case MOE_UP_GATE_INTERLEAVED:
        return (moei_row_parts){2, {1, 0}, 2, half};
    default:
        return (moei_row_parts){1, {0, 0}, 1, rows};
    }
}

// Reads a caller's layout into one of this library's, and checks it.
static moe_status read_layout(const moe_matrix_layout *given, const char *call, const char *name,
                              moe_matrix_layout *m)
{
    MOE_REQUIRE(given != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call, name);
    MOE_TRY(moei_struct_read(given, m, sizeof *m, call, name));
    MOE_REQUIRE(m->format != MOE_FORMAT_UNSET, MOE_E_UNSET, "%s: %s->format is unset", call, name);
    const moei_format_info *info = moei_format(m->format);
    MOE_REQUIRE(info != NULL, MOE_E_ARGUMENT, "%s: %s->format = %d is not a format", call, name,
                (int)m->format);
    MOE_REQUIRE(m->group >= 0 && (m->group == 0 || info->free_group), MOE_E_ARGUMENT,
                "%s: %s->group = %d, format %s has %s of %d", call, name, (int)m->group, info->name,
                info->free_group ? "a free group, 0 meaning that" : "a fixed group",
                (int)info->block_k);
    MOE_REQUIRE(m->transposed == 0 || m->transposed == 1, MOE_E_ARGUMENT,
                "%s: %s->transposed = %d, must be 0..1", call, name, (int)m->transposed);
    MOE_REQUIRE(m->transposed == 0 || moe_dtype_bits(info->elem) >= 8, MOE_E_UNSUPPORTED,
                "%s: %s->transposed = 1 needs whole bytes, format %s has %d bits an element", call,
                name, info->name, moe_dtype_bits(info->elem));
    MOE_REQUIRE(m->gate_up >= MOE_GATE_UP_UNSET && m->gate_up <= MOE_UP_GATE_INTERLEAVED,
                MOE_E_ARGUMENT, "%s: %s->gate_up = %d, must be 0..%d", call, name, (int)m->gate_up,
                MOE_UP_GATE_INTERLEAVED);
    MOE_REQUIRE(m->count >= 0, MOE_E_ARGUMENT, "%s: %s->count = %d, must be at least 0", call, name,
                (int)m->count);
    MOE_REQUIRE(m->rows >= 0 && m->rows <= INT32_MAX && m->cols >= 0 && m->cols <= INT32_MAX,
                MOE_E_ARGUMENT,
                "%s: %s->rows = %" PRId64 " and cols = %" PRId64 ", must be 0..%" PRId32, call,
                name, m->rows, m->cols, INT32_MAX);
    MOE_REQUIRE(m->gate_up == MOE_GATE_UP_UNSET || m->rows % 2 == 0, MOE_E_SHAPE,
                "%s: %s->rows = %" PRId64 " of gate and up, must be a multiple of 2", call, name,
                m->rows);
    return MOE_OK;
}

static int64_t group_of(const moei_format_info *info, const moe_matrix_layout *m)
{
    return info->free_group && m->group > 0 ? m->group : info->block_k;
}

// Rows of block scales begin anew at the second half: gate and up were quantised apart.
static int64_t scale_rows_of(const moei_format_info *info, const moe_matrix_layout *m)
{
    const bool halves = m->gate_up == MOE_GATE_FIRST || m->gate_up == MOE_UP_FIRST;
    return halves ? 2 * moei_i64_ceil_div(m->rows / 2, info->block_n)
                  : moei_i64_ceil_div(m->rows, info->block_n);
}

int64_t moei_scale_cols(int64_t group, const moe_matrix_layout *m)
{
    return group > 0 ? moei_i64_ceil_div(m->cols, group) : 1;
}

static bool is_as_bytes(const moei_format_info *info, const moe_tensor *values)
{
    return moe_dtype_bits(info->elem) <= 8 && values->dtype != info->elem &&
           (values->dtype == MOE_U8 || values->dtype == MOE_I8);
}

// Puts a dimension of 1 behind a view that left it out.
static void add_column(moe_tensor *t)
{
    t->shape[t->ndim] = 1;
    t->stride[t->ndim] = 1;
    t->ndim++;
}

static moe_status check_view(const moe_tensor *t, const char *call, const char *side,
                             const char *field, bool out, uint32_t dtypes, int ndim,
                             const int64_t *shape)
{
    char name[32];
    (void)snprintf(name, sizeof name, "%s.%s", side, field);
    return out ? moei_layout_check_out(t, call, name, dtypes, ndim, shape)
               : moei_layout_check_in(t, call, name, dtypes, ndim, shape);
}

static moe_status check_values(moei_matrix *m, const moe_tensor *given, const char *call,
                               const char *side, bool out)
{
    const moe_matrix_layout *l = m->layout;
    const moe_dtype elem = m->info->elem;
    const moe_tensor joined = moei_tensor_join_blocks(given);
    moe_tensor *t = &m->views[MOEI_VIEW_VALUES];
    *t = moei_tensor_with_experts(&joined, 3);
    const int64_t inner = l->transposed != 0 ? l->rows : l->cols;
    const int64_t shape[3] = {l->count, l->transposed != 0 ? l->cols : l->rows,
                              is_as_bytes(m->info, t) ? moei_elem_bytes(m->info->elem, inner)
                                                      : inner};
    const uint32_t dtypes =
        MOEI_DTYPE_BIT(elem) |
        (moe_dtype_bits(elem) <= 8 ? MOEI_DTYPE_BIT(MOE_U8) | MOEI_DTYPE_BIT(MOE_I8) : 0u);
    MOE_TRY(check_view(t, call, side, "values", out, dtypes, 3, shape));
    // Rows are copied whole: their elements lie side by side.
    MOE_REQUIRE(t->stride[2] == 1 || t->shape[2] <= 1, MOE_E_SHAPE,
                "%s: %s.values has stride %" PRId64 " in its last dimension, must be 1", call, side,
                t->stride[2]);
    return MOE_OK;
}

// One number per expert, or one for each part in row order: [n], [n, 1], [n, 2].
static moe_status check_parts(const moei_matrix *m, const moe_tensor *given, const char *call,
                              const char *side, const char *field, bool out, uint32_t dtypes,
                              moe_tensor *view)
{
    const bool gated = m->layout->gate_up != MOE_GATE_UP_UNSET;
    moe_tensor t = *given;
    if (t.ndim == 1) {
        add_column(&t);
    }
    if (t.ndim == 2) {
        add_column(&t);
    }
    const int64_t shape[3] = {m->layout->count, gated && t.shape[1] == 2 ? 2 : 1, 1};
    *view = t;
    return check_view(view, call, side, field, out, dtypes, 3, shape);
}

static moe_status check_scales(moei_matrix *m, const moe_tensor *given, const char *call,
                               const char *side, bool out)
{
    const moei_format_info *info = m->info;
    MOE_REQUIRE(info->scale_dtypes != 0, MOE_E_ARGUMENT,
                "%s: %s.scales are given, format %s has none", call, side, info->name);
    const uint32_t bytes = MOEI_DTYPE_BIT(MOE_E8M0) | MOEI_DTYPE_BIT(MOE_E4M3FN);
    const uint32_t dtypes =
        info->scale_dtypes | ((info->scale_dtypes & bytes) != 0 ? MOEI_DTYPE_BIT(MOE_U8) : 0u);
    if (info->block_n == 0) {
        return check_parts(m, given, call, side, "scales", out, dtypes,
                           &m->views[MOEI_VIEW_SCALES]);
    }
    moe_tensor t = *given;
    if (m->group == 0 && ((t.ndim == 2 && t.shape[1] == m->layout->rows) || t.ndim == 1)) {
        add_column(&t);
    }
    m->views[MOEI_VIEW_SCALES] = moei_tensor_with_experts(&t, 3);
    const int64_t shape[3] = {m->layout->count, scale_rows_of(info, m->layout),
                              moei_scale_cols(m->group, m->layout)};
    return check_view(&m->views[MOEI_VIEW_SCALES], call, side, "scales", out, dtypes, 3, shape);
}

static moe_status check_zeros(moei_matrix *m, const moe_tensor *given, const char *call,
                              const char *side, bool out)
{
    const int64_t rows = m->layout->rows;
    MOE_REQUIRE(m->info->zero_point >= 0, MOE_E_ARGUMENT,
                "%s: %s.zero_points are given, format %s has none", call, side, m->info->name);
    const bool narrow = m->info->elem == MOE_UINT4;
    const int64_t pairs = moei_i64_ceil_div(rows, 2);
    moe_tensor *t = &m->views[MOEI_VIEW_ZEROS];
    *t = moei_tensor_with_experts(given, 3);
    if (t->dtype == MOE_UINT4) {
        m->zero_form = MOEI_ZERO_NIBBLES;
    } else if (narrow && t->shape[1] == pairs && t->shape[1] != rows) {
        m->zero_form = MOEI_ZERO_PAIRS;
    } else {
        m->zero_form = MOEI_ZERO_BYTES;
    }
    const int64_t shape[3] = {m->layout->count, m->zero_form == MOEI_ZERO_PAIRS ? pairs : rows,
                              moei_scale_cols(m->group, m->layout)};
    return check_view(t, call, side, "zero_points", out,
                      MOEI_DTYPE_BIT(MOE_U8) | (narrow ? MOEI_DTYPE_BIT(MOE_UINT4) : 0u), 3, shape);
}

static moe_status check_bias(moei_matrix *m, const moe_tensor *given, const char *call,
                             const char *side, bool out)
{
    moe_tensor *t = &m->views[MOEI_VIEW_BIAS];
    *t = moei_tensor_with_experts(given, 2);
    const int64_t shape[2] = {m->layout->count, m->layout->rows};
    MOE_TRY(check_view(t, call, side, "bias", out, MOEI_DTYPES_FLOAT, 2, shape));
    add_column(t);
    return MOE_OK;
}

moe_status moei_matrix_check(const moe_matrix_layout *layout, const moe_matrix_source *source,
                             const char *call, const char *side, bool out, moei_matrix *m)
{
    MOE_REQUIRE(source != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call, side);
    memset(m, 0, sizeof *m);
    m->info = moei_format(layout->format);
    m->layout = layout;
    m->group = group_of(m->info, layout);
    if (source->values.data != NULL) {
        MOE_TRY(check_values(m, &source->values, call, side, out));
    }
    if (source->scales.data != NULL) {
        MOE_TRY(check_scales(m, &source->scales, call, side, out));
    }
    if (source->scale2.data != NULL) {
        MOE_REQUIRE(m->info->scale2, MOE_E_ARGUMENT, "%s: %s.scale2 is given, format %s has none",
                    call, side, m->info->name);
        MOE_TRY(check_parts(m, &source->scale2, call, side, "scale2", out, MOEI_DTYPE_BIT(MOE_F32),
                            &m->views[MOEI_VIEW_SCALE2]));
    }
    if (source->zero_points.data != NULL) {
        MOE_TRY(check_zeros(m, &source->zero_points, call, side, out));
    }
    if (source->bias.data != NULL) {
        MOE_TRY(check_bias(m, &source->bias, call, side, out));
    }
    if (source->act_scale.data != NULL) {
        const int64_t one[1] = {1};
        moe_tensor *t = &m->views[MOEI_VIEW_ACT];
        *t = source->act_scale;
        MOE_TRY(check_view(t, call, side, "act_scale", out, MOEI_DTYPE_BIT(MOE_F32),
                           t->ndim == 0 ? 0 : 1, one));
    }
    return MOE_OK;
}

moe_status moei_layouts_read(const moe_matrix_layout *given_from, const moe_matrix_layout *given_to,
                             const char *call, moe_matrix_layout *from, moe_matrix_layout *to)
{
    MOE_TRY(read_layout(given_from, call, "from", from));
    MOE_TRY(read_layout(given_to, call, "to", to));
    MOE_REQUIRE(from->format == to->format, MOE_E_ARGUMENT,
                "%s: from->format = %s, to->format = %s", call, moe_format_name(from->format),
                moe_format_name(to->format));
    const moei_format_info *info = moei_format(from->format);
    MOE_REQUIRE(group_of(info, from) == group_of(info, to), MOE_E_ARGUMENT,
                "%s: from has groups of %d, to of %d", call, (int)group_of(info, from),
                (int)group_of(info, to));
    MOE_REQUIRE(from->count == to->count, MOE_E_ARGUMENT, "%s: from->count = %d, to->count = %d",
                call, (int)from->count, (int)to->count);
    MOE_REQUIRE((from->gate_up == MOE_GATE_UP_UNSET) == (to->gate_up == MOE_GATE_UP_UNSET),
                MOE_E_ARGUMENT, "%s: from->gate_up = %d, to->gate_up = %d: both or neither are 0",
                call, (int)from->gate_up, (int)to->gate_up);
    return MOE_OK;
}

moe_status moei_scale_orders(const moei_matrix *s, const moe_matrix_layout *to, const char *call,
                             moe_gate_up *from_order, moe_gate_up *to_order)
{
    const moe_matrix_layout *from = s->layout;
    *from_order = from->gate_up;
    *to_order = to->gate_up;
    if (s->info->block_n <= 1 || s->views[MOEI_VIEW_SCALES].data == NULL) {
        return MOE_OK;
    }
    const int64_t block = s->info->block_n;
    const bool same = from->gate_up == to->gate_up && from->rows == to->rows;
    if (same || (is_interleaved(from->gate_up) && is_interleaved(to->gate_up))) {
        // Blocks of an even number of rows hold whole pairs; which comes first does not matter.
        *from_order = MOE_GATE_UP_UNSET;
        *to_order = MOE_GATE_UP_UNSET;
        return MOE_OK;
    }
    MOE_REQUIRE(from->gate_up == MOE_GATE_UP_UNSET ||
                    (!is_interleaved(from->gate_up) && !is_interleaved(to->gate_up)),
                MOE_E_UNSUPPORTED,
                "%s: gate and up of I = %" PRId64 " rows each share scales per block of %" PRId64
                " rows when interleaved, and not in halves",
                call, from->rows / 2, block);
    if (from->gate_up != MOE_GATE_UP_UNSET) {
        const int64_t i_from = from->rows / 2;
        const int64_t i_bad = i_from % block != 0 ? i_from : to->rows / 2;
        MOE_REQUIRE(i_bad % block == 0, MOE_E_UNSUPPORTED,
                    "%s: I = %" PRId64
                    " rows of gate and of up, format %s needs a multiple of %" PRId64
                    " in each: a block of scales must not hold both",
                    call, i_bad, s->info->name, block);
    }
    return MOE_OK;
}

// ---- sizes ------------------------------------------------------------------------------------

moe_status moe_layout_round_up(const moe_matrix_layout *from, int64_t row_multiple,
                               int64_t col_multiple, moe_matrix_layout *to)
{
    static const char call[] = "moe_layout_round_up";
    moe_matrix_layout known;
    MOE_TRY(read_layout(from, call, "from", &known));
    MOE_REQUIRE(to != NULL, MOE_E_ARGUMENT, "%s: to is NULL", call);
    MOE_REQUIRE(row_multiple > 0 && row_multiple <= INT32_MAX && col_multiple > 0 &&
                    col_multiple <= INT32_MAX,
                MOE_E_ARGUMENT,
                "%s: multiples of %" PRId64 " rows and %" PRId64 " columns, must be 1..%" PRId32,
                call, row_multiple, col_multiple, INT32_MAX);
    const int64_t parts = known.gate_up == MOE_GATE_UP_UNSET ? 1 : 2;
    const int64_t rows = parts * moei_i64_round_up(known.rows / parts, row_multiple);
    const int64_t cols = moei_i64_round_up(known.cols, col_multiple);
    MOE_REQUIRE(rows <= INT32_MAX && cols <= INT32_MAX, MOE_E_OVERFLOW,
                "%s: %" PRId64 " rows and %" PRId64 " columns, at most %" PRId32, call, rows, cols,
                INT32_MAX);
    // Both are of the caller's version: `to` gets as many bytes as `from` has.
    known.rows = rows;
    known.cols = cols;
    memmove(to, from, from->struct_size);
    return moei_struct_write(&known, sizeof known, to, call, "from");
}

// [n, rows, cols] with the least strides that let rows begin on a byte.
static moe_tensor packed_rows(moe_dtype dtype, int64_t n, int64_t rows, int64_t cols)
{
    const int bits = moe_dtype_bits(dtype);
    const int64_t step = bits == 4 ? 2 : bits == 6 ? 4 : 1;
    moe_tensor t = moe_tensor_3d(NULL, dtype, n, rows, moei_i64_round_up(cols, step));
    t.shape[2] = cols;
    return t;
}

// Shape of view i of the result, in the form that `given` has.
static moe_status result_shape(const moei_matrix *s, const moe_matrix_layout *to, int i,
                               const moe_tensor *given, const char *call, moe_tensor *out)
{
    const int64_t n = to->count;
    const int64_t groups = moei_scale_cols(s->group, to);
    switch (i) {
    case 0:
        if (given->ndim == 4) {
            const int64_t codes = given->shape[3] * 8 / moe_dtype_bits(s->info->elem);
            MOE_REQUIRE(codes > 0 && to->cols % codes == 0, MOE_E_SHAPE,
                        "%s: src.values comes in blocks of %" PRId64 " codes, to->cols = %" PRId64,
                        call, codes, to->cols);
            const int64_t shape[4] = {n, to->rows, to->cols / codes, given->shape[3]};
            *out = moe_tensor_make(NULL, given->dtype, 4, shape);
        } else {
            const int64_t inner = to->transposed != 0 ? to->rows : to->cols;
            *out = packed_rows(given->dtype, n, to->transposed != 0 ? to->cols : to->rows,
                               is_as_bytes(s->info, given) ? moei_elem_bytes(s->info->elem, inner)
                                                           : inner);
        }
        break;
    case 1:
        if (s->info->block_n == 0) {
            *out = given->ndim == 1 ? moe_tensor_1d(NULL, given->dtype, n)
                                    : moe_tensor_2d(NULL, given->dtype, n, given->shape[1]);
        } else if (s->group == 0 && given->ndim == 2 && given->shape[1] == s->layout->rows) {
            *out = moe_tensor_2d(NULL, given->dtype, n, to->rows);
        } else {
            *out = moe_tensor_3d(NULL, given->dtype, n, scale_rows_of(s->info, to), groups);
        }
        break;
    case 2:
        *out = given->ndim == 1 ? moe_tensor_1d(NULL, given->dtype, n)
                                : moe_tensor_2d(NULL, given->dtype, n, given->shape[1]);
        break;
    case 3:
        *out = packed_rows(
            given->dtype, n,
            s->zero_form == MOEI_ZERO_PAIRS ? moei_i64_ceil_div(to->rows, 2) : to->rows, groups);
        break;
    case 4:
        *out = moe_tensor_2d(NULL, given->dtype, n, to->rows);
        break;
    default:
        *out = moe_tensor_1d(NULL, given->dtype, 1);
        break;
    }
    return MOE_OK;
}

// Bytes that a view of non-negative strides spans; SIZE_MAX where they are too many.
static size_t span_bytes(const moe_tensor *t)
{
    size_t elems = 1;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] == 0) {
            return 0;
        }
        elems =
            moei_size_add(elems, moei_size_mul((size_t)(t->shape[i] - 1), (size_t)t->stride[i]));
    }
    const size_t bits = moei_size_mul(elems, (size_t)moe_dtype_bits(t->dtype));
    return bits == SIZE_MAX ? bits : bits / 8 + (bits % 8 != 0);
}

moe_status moe_layout_place(const moe_matrix_layout *from, const moe_matrix_source *src,
                            const moe_matrix_layout *to, void *memory, size_t *bytes,
                            moe_matrix_source *out)
{
    static const char call[] = "moe_layout_place";
    moe_matrix_layout known[2];
    moei_matrix s;
    moe_gate_up order[2];
    MOE_TRY(moei_layouts_read(from, to, call, &known[0], &known[1]));
    from = &known[0];
    to = &known[1];
    MOE_TRY(moei_matrix_check(from, src, call, "src", false, &s));
    MOE_TRY(moei_scale_orders(&s, to, call, &order[0], &order[1]));
    moe_matrix_source r;
    memset(&r, 0, sizeof r);
    const moe_tensor *const given[MOEI_NUM_VIEWS] = {
        &src->values, &src->scales, &src->scale2, &src->zero_points, &src->bias, &src->act_scale};
    moe_tensor *const placed[MOEI_NUM_VIEWS] = {&r.values,      &r.scales, &r.scale2,
                                                &r.zero_points, &r.bias,   &r.act_scale};
    size_t used = 0;
    for (int i = 0; i < MOEI_NUM_VIEWS; i++) {
        if (given[i]->data == NULL) {
            continue;
        }
        MOE_TRY(result_shape(&s, to, i, given[i], call, placed[i]));
        used = moei_size_align(used, PLACE_ALIGN);
        placed[i]->data = memory;
        placed[i]->byte_offset = used;
        used = moei_size_add(used, span_bytes(placed[i]));
    }
    MOE_REQUIRE(used < SIZE_MAX / 2, MOE_E_OVERFLOW,
                "%s: %d matrices of %" PRId64 " x %" PRId64 " exceed %zu bytes", call,
                (int)to->count, to->rows, to->cols, SIZE_MAX / 2);
    if (bytes != NULL) {
        *bytes = used;
    }
    if (out != NULL) {
        *out = r;
    }
    return MOE_OK;
}
