// SPDX-License-Identifier: Apache-2.0
// One matrix in two layouts: row order, padding, cutting, transposition. Each result is compared as
// whole pieces of memory, gaps of wide strides and padding included, with an image that is written
// element by element from the definition. Then the inverse must restore the input, and the values
// that the numbers mean must not have changed.
#include <inttypes.h>

#include "unit/layout_matrix.h"

static void check_sides(const side *have, const side *want, const matrix_case *c, const char *what)
{
    for (int v = 0; v < NUM_VIEWS; v++) {
        CHECK(!have->present[v] || equal(&have->boxes[v], &want->boxes[v]),
              "%s %s, %s: orders %d -> %d, %" PRId64 " x %" PRId64 " bytes differ",
              moe_format_name(c->format), what, view_names[v], (int)have->layout.gate_up,
              (int)want->layout.gate_up, have->layout.rows, have->layout.cols);
    }
}

static void run_convert(const matrix_case *c, const moe_matrix_layout *from,
                        const moe_matrix_layout *to, spread sp)
{
    side s = make_side(c, from, sp);
    side d = make_side(c, to, sp);
    randomise(&s);
    const side image = twin_side(&d);
    draw(c, &s, &image);
    moe_matrix_source src = source_of(&s);
    moe_matrix_source dst = source_of(&d);
    CHECK(moe_layout_convert(from, &src, to, &dst) == MOE_OK, "%s: %s", moe_format_name(c->format),
          moe_last_error());
    check_sides(&d, &image, c, "converted");
    CHECK(count_changed(c, &s, &d) == 0, "%s, orders %d -> %d: %d values changed",
          moe_format_name(c->format), (int)from->gate_up, (int)to->gate_up,
          count_changed(c, &s, &d));
    if (to->rows >= from->rows && to->cols >= from->cols) {
        // The inverse restores every element; bits that no element owns become 0.
        side back = twin_side(&s);
        const side back_image = twin_side(&s);
        draw(c, &s, &back_image);
        src = source_of(&back);
        CHECK(moe_layout_convert(to, &dst, from, &src) == MOE_OK, "%s: %s",
              moe_format_name(c->format), moe_last_error());
        // draw from a layout to itself copies every element
        check_sides(&back, &back_image, c, "restored");
    }
    release_all();
}

static const matrix_case matrix_cases[] = {
    {MOE_FORMAT_F32, 0, 0, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_BF16, 0, 0, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_E4M3FN_TENSOR, 0, MOE_F32, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_E4M3FN_TENSOR, 0, MOE_F32, AS_BYTES, NO_ZEROS, 2, false},
    {MOE_FORMAT_E4M3FN_CHANNEL, 0, MOE_BF16, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_INT8_CHANNEL, 0, MOE_F32, AS_TYPE, NO_ZEROS, 1, true},
    {MOE_FORMAT_E4M3FN_BLOCK, 0, MOE_F32, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_E5M2_BLOCK, 0, MOE_E8M0, AS_BYTES, NO_ZEROS, 1, false},
    {MOE_FORMAT_INT8_GROUP, 32, MOE_F16, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_UINT8_GROUP, 0, MOE_BF16, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_UINT8_GROUP, 64, MOE_F32, AS_TYPE, BYTES, 1, false},
    {MOE_FORMAT_INT4_GROUP, 0, MOE_F16, AS_BYTES, NO_ZEROS, 1, false},
    {MOE_FORMAT_INT4_GROUP, 32, MOE_BF16, AS_TYPE, BYTES, 1, false},
    {MOE_FORMAT_INT4_GROUP, 64, MOE_BF16, AS_BYTES, PAIRS, 1, false},
    {MOE_FORMAT_INT4_GROUP, 32, MOE_F32, AS_BYTES, NIBBLES, 1, false},
    {MOE_FORMAT_MXFP4, 0, MOE_E8M0, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_MXFP4, 0, MOE_U8, AS_BYTES, NO_ZEROS, 1, false},
    {MOE_FORMAT_MXFP4, 0, MOE_U8, AS_BLOCKS, NO_ZEROS, 1, false},
    {MOE_FORMAT_MXFP6_E2M3, 0, MOE_E8M0, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_MXFP6_E3M2, 0, MOE_U8, AS_BYTES, NO_ZEROS, 1, false},
    {MOE_FORMAT_MXFP8_E4M3, 0, MOE_E8M0, AS_TYPE, NO_ZEROS, 1, false},
    {MOE_FORMAT_NVFP4, 0, MOE_E4M3FN, AS_BYTES, NO_ZEROS, 2, false},
    {MOE_FORMAT_NVFP4, 0, MOE_E4M3FN, AS_TYPE, NO_ZEROS, 1, false},
};

// The layout of a case; the case is the one that runs from here on.
static moe_matrix_layout layout_of(const matrix_case *c, moe_gate_up order, int32_t count,
                                   int64_t size, int64_t cols)
{
    moe_matrix_layout l = moe_matrix_layout_default();
    info = moei_format(c->format);
    l.format = c->format;
    l.group = c->group;
    l.gate_up = order;
    l.count = count;
    l.rows = (order == MOE_GATE_UP_UNSET ? 1 : 2) * size;
    l.cols = cols;
    return l;
}

// A case as an ungated matrix: per-part scales need two parts.
static bool fits(const matrix_case *c, const moe_matrix_layout *from, const moe_matrix_layout *to)
{
    const bool block = info->block_n > 1;
    if (c->codes == AS_BLOCKS && (from->cols % 32 != 0 || to->cols % 32 != 0)) {
        return false;
    }
    if (c->parts == 2 && !gated(from)) {
        return false;
    }
    if (!block || !gated(from) || (from->gate_up == to->gate_up && from->rows == to->rows)) {
        return true;
    }
    if (interleaved(from->gate_up) || interleaved(to->gate_up)) {
        return interleaved(from->gate_up) && interleaved(to->gate_up);
    }
    return from->rows % 256 == 0 && to->rows % 256 == 0;
}

static void test_convert(void)
{
    // I, K and what they are padded (or cut) to.
    static const int64_t sizes[][4] = {
        {1, 1, 1, 1},       {3, 5, 3, 5},       {5, 33, 8, 40},     {3, 80, 64, 128},
        {80, 80, 128, 96},  {128, 32, 256, 32}, {128, 40, 128, 64}, {4, 2880, 4, 3072},
        {320, 32, 384, 32}, {7, 96, 3, 33},     {256, 64, 128, 32}, {2, 2688, 2, 2816},
        {4, 288, 4, 512},   {2, 0, 2, 32},      {0, 32, 3, 32},
    };
    for (size_t i = 0; i < sizeof matrix_cases / sizeof matrix_cases[0]; i++) {
        const matrix_case *c = &matrix_cases[i];
        for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
            const bool large = sizes[j][2] * sizes[j][3] > 4000;
            for (int orders = 0; orders < 17; orders++) {
                if (large && orders % 3 != 0 && orders != 16) {
                    continue;
                }
                const moe_gate_up a = orders == 16 ? MOE_GATE_UP_UNSET : 1 + orders / 4;
                const moe_gate_up b = orders == 16 ? MOE_GATE_UP_UNSET : 1 + orders % 4;
                const int32_t count = orders % 2 == 0 && !large ? 3 : 1;
                const moe_matrix_layout from = layout_of(c, a, count, sizes[j][0], sizes[j][1]);
                const moe_matrix_layout to = layout_of(c, b, count, sizes[j][2], sizes[j][3]);
                if (fits(c, &from, &to)) {
                    run_convert(c, &from, &to, spreads[orders % 2]);
                }
            }
        }
    }
}

// Transposed values, alone and with padding and another order.
static void test_convert_transposed(void)
{
    for (size_t i = 0; i < sizeof matrix_cases / sizeof matrix_cases[0]; i++) {
        const matrix_case *c = &matrix_cases[i];
        info = moei_format(c->format);
        for (int way = 1; code_bits() >= 8 && way < 4; way++) {
            for (int orders = 0; orders < 4; orders++) {
                static const moe_gate_up from_order[4] = {0, MOE_GATE_UP_INTERLEAVED,
                                                          MOE_GATE_FIRST, MOE_UP_FIRST};
                static const moe_gate_up to_order[4] = {0, MOE_UP_FIRST, MOE_UP_FIRST,
                                                        MOE_UP_GATE_INTERLEAVED};
                moe_matrix_layout from = layout_of(c, from_order[orders], 3, 128, 80);
                moe_matrix_layout to =
                    layout_of(c, to_order[orders], 3, orders == 0 ? 128 : 256, way == 3 ? 288 : 80);
                from.transposed = way & 1;
                to.transposed = way >> 1;
                if (fits(c, &from, &to)) {
                    run_convert(c, &from, &to, spreads[way % 2]);
                }
            }
        }
    }
}

// Scales in column-major order are read where they lie.
static void test_convert_column_scales(void)
{
    enum { ROWS = 6, COLS = 4 };
    uint8_t values[ROWS][COLS * 16];
    uint8_t out_values[ROWS][COLS * 16] = {{0}};
    uint8_t scales[COLS][ROWS];
    uint8_t out[ROWS][COLS] = {{0}};
    for (int r = 0; r < ROWS; r++) {
        for (int g = 0; g < COLS; g++) {
            scales[g][r] = (uint8_t)(16 * r + g);
        }
    }
    memset(values, 0, sizeof values);
    moe_matrix_layout from = moe_matrix_layout_default();
    from.format = MOE_FORMAT_MXFP4;
    from.gate_up = MOE_GATE_UP_INTERLEAVED;
    from.count = 1;
    from.rows = ROWS;
    from.cols = 32 * COLS;
    moe_matrix_layout to = from;
    to.gate_up = MOE_GATE_FIRST;
    moe_matrix_source src;
    moe_matrix_source dst;
    memset(&src, 0, sizeof src);
    memset(&dst, 0, sizeof dst);
    src.values = moe_tensor_2d(values, MOE_U8, ROWS, COLS * 16);
    src.scales = moe_tensor_2d(scales, MOE_E8M0, ROWS, COLS);
    src.scales.stride[0] = 1;
    src.scales.stride[1] = ROWS;
    dst.values = moe_tensor_2d(out_values, MOE_U8, ROWS, COLS * 16);
    dst.scales = moe_tensor_2d(out, MOE_E8M0, ROWS, COLS);
    CHECK(moe_layout_convert(&from, &src, &to, &dst) == MOE_OK, "%s", moe_last_error());
    int wrong = 0;
    for (int r = 0; r < ROWS; r++) {
        for (int g = 0; g < COLS; g++) {
            wrong += out[r][g] != 16 * (r < 3 ? 2 * r : 2 * (r - 3) + 1) + g;
        }
    }
    CHECK(wrong == 0, "%d of %d scales are wrong", wrong, ROWS * COLS);
    // An output must be row-major.
    CHECK(moe_layout_convert(&to, &dst, &from, &src) == MOE_E_SHAPE &&
              message_has("dst.scales", "1"),
          "column-major output: %s", moe_last_error());
}

static void test_sizes(void)
{
    for (size_t i = 0; i < sizeof matrix_cases / sizeof matrix_cases[0]; i++) {
        const matrix_case *c = &matrix_cases[i];
        const moe_matrix_layout from = layout_of(c, MOE_UP_FIRST, 3, 128, 288);
        moe_matrix_layout to = moe_matrix_layout_default();
        CHECK(moe_layout_round_up(&from, 256, 160, &to) == MOE_OK, "%s", moe_last_error());
        CHECK(to.rows == 512 && to.cols == 320 && to.gate_up == MOE_UP_FIRST && to.count == 3,
              "256 rows and 288 columns round up to %" PRId64 " and %" PRId64, to.rows, to.cols);
        side s = make_side(c, &from, spreads[1]);
        side d = make_side(c, &to, spreads[0]);
        randomise(&s);
        draw(c, &s, &d);
        const moe_matrix_source src = source_of(&s);
        moe_matrix_source dst;
        size_t bytes = 0;
        CHECK(moe_layout_place(&from, &src, &to, NULL, &bytes, &dst) == MOE_OK, "%s",
              moe_last_error());
        CHECK(bytes > 0 && dst.values.data == NULL, "measured %zu bytes", bytes);
        uint8_t *memory = keep(bytes);
        memset(memory, POISON, bytes);
        CHECK(moe_layout_place(&from, &src, &to, memory, NULL, &dst) == MOE_OK &&
                  moe_layout_convert(&from, &src, &to, &dst) == MOE_OK,
              "%s: %s", moe_format_name(c->format), moe_last_error());
        const moe_tensor *const views[NUM_VIEWS] = {&dst.values,      &dst.scales, &dst.scale2,
                                                    &dst.zero_points, &dst.bias,   &dst.act_scale};
        for (int v = 0; v < NUM_VIEWS; v++) {
            CHECK((views[v]->data != NULL) == s.present[v] && views[v]->byte_offset % 64 == 0,
                  "%s: view at %" PRIu64, view_names[v], views[v]->byte_offset);
            CHECK(!s.present[v] || (views[v]->byte_offset + d.boxes[v].bytes <= bytes &&
                                    memcmp(memory + views[v]->byte_offset, d.boxes[v].memory,
                                           d.boxes[v].bytes) == 0),
                  "%s: placed %s differ", moe_format_name(c->format), view_names[v]);
        }
        release_all();
    }
}

// ---- refusals -------------------------------------------------------------------------------

static void test_convert_refusals(void)
{
    const matrix_case block = {MOE_FORMAT_E4M3FN_BLOCK, 0, MOE_F32, AS_TYPE, NO_ZEROS, 1, false};
    const moe_matrix_layout from = layout_of(&block, MOE_GATE_FIRST, 1, 320, 64);
    moe_matrix_layout to = layout_of(&block, MOE_UP_FIRST, 1, 320, 64);
    side s = make_side(&block, &from, spreads[0]);
    side d = make_side(&block, &to, spreads[0]);
    moe_matrix_source src = source_of(&s);
    moe_matrix_source dst = source_of(&d);
    const box before = copy_of(&d.boxes[VALUES]);
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_UNSUPPORTED, "I = 320", "128");
    to.gate_up = MOE_GATE_UP_INTERLEAVED;
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_UNSUPPORTED, "I = 320", "128");
    CHECK(equal(&d.boxes[VALUES], &before), "a refused call wrote: %s", moe_last_error());
    to = layout_of(&block, MOE_GATE_FIRST, 1, 384, 64);
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_UNSUPPORTED, "I = 320", "128");
    REFUSED(moe_layout_place(&from, &src, &to, NULL, NULL, NULL), MOE_E_UNSUPPORTED, "320", "128");
    // The same change without scales is a matter of rows alone.
    src.scales.data = NULL;
    dst.scales.data = NULL;
    to = layout_of(&block, MOE_UP_FIRST, 1, 320, 64);
    CHECK(moe_layout_convert(&from, &src, &to, &dst) == MOE_OK, "%s", moe_last_error());

    src = source_of(&s);
    REFUSED(moe_layout_convert(&from, &src, &from, &dst), MOE_E_ARGUMENT, "src.scales is given",
            "dst.scales is absent");
    src.scales.data = NULL;
    dst = src;
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_OVERLAP, "dst.values", "src.values");
    dst = source_of(&d);
    dst.scales.data = NULL;
    dst.act_scale.data = dst.bias.data;
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_OVERLAP, "dst.act_scale", "dst.bias");
    dst = source_of(&d);
    dst.scales.data = NULL;
    dst.values.stride[1] = 60;
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_SHAPE, "60", "64");
    dst.values = moe_tensor_3d(d.boxes[VALUES].memory, MOE_E4M3FN, 1, 640, 63);
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_SHAPE, "[1, 640, 63]",
            "[1, 640, 64]");
    dst.values = moe_tensor_3d(d.boxes[VALUES].memory, MOE_E5M2, 1, 640, 64);
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_DTYPE, "e5m2", "e4m3fn");
    dst = source_of(&d);
    dst.scales.data = NULL;
    dst.values.device = MOE_DEVICE_CUDA;
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_UNSUPPORTED, "cuda", "cpu");
    release_all();
}

// As newer headers would have it: the same fields, then one that this library does not know.
static void test_newer_layout(const moe_matrix_layout *good)
{
    struct {
        moe_matrix_layout known;
        int64_t unknown;
    } newer = {*good, 0}, out = {*good, 5};
    newer.known.struct_size = sizeof newer;
    CHECK(moe_layout_round_up(&newer.known, 32, 1, &out.known) == MOE_OK &&
              out.known.struct_size == sizeof newer && out.known.rows == 64 && out.unknown == 0,
          "a longer layout: %s", moe_last_error());
    newer.unknown = 1;
    REFUSED(moe_layout_round_up(&newer.known, 32, 1, &out.known), MOE_E_VERSION,
            "this library knows", "is set");
}

static void test_layout_refusals(void)
{
    const matrix_case c = {MOE_FORMAT_MXFP4, 0, MOE_E8M0, AS_TYPE, NO_ZEROS, 1, false};
    const moe_matrix_layout good = layout_of(&c, MOE_GATE_FIRST, 1, 4, 64);
    moe_matrix_layout bad = good;
    moe_matrix_layout out;
    side s = make_side(&c, &good, spreads[0]);
    const moe_matrix_source src = source_of(&s);
    REFUSED(moe_layout_convert(NULL, &src, &good, &src), MOE_E_ARGUMENT, "from", "NULL");
    REFUSED(moe_layout_convert(&good, NULL, &good, &src), MOE_E_ARGUMENT, "src", "NULL");
    bad.struct_size = 7;
    REFUSED(moe_layout_convert(&bad, &src, &good, &src), MOE_E_VERSION, "from.struct_size = 7",
            "must be the size");
    bad.struct_size = 8; // a caller who knows no field
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_UNSET, "to->format", "unset");
    test_newer_layout(&good);
    bad = good;
    bad.format = MOE_FORMAT_UNSET;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_UNSET, "to->format", "unset");
    bad.format = MOE_FORMAT_NVFP4;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_ARGUMENT, "mxfp4", "nvfp4");
    bad = good;
    bad.group = 64;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_ARGUMENT, "64", "32");
    bad = good;
    bad.transposed = 1;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_UNSUPPORTED, "transposed = 1",
            "4 bits");
    bad = good;
    bad.gate_up = 5;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_ARGUMENT, "5", "0..4");
    bad.gate_up = MOE_GATE_UP_UNSET;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_ARGUMENT, "from->gate_up = 1",
            "to->gate_up = 0");
    bad = good;
    bad.rows = 7;
    REFUSED(moe_layout_round_up(&bad, 1, 1, &out), MOE_E_SHAPE, "7", "2");
    bad.rows = -2;
    REFUSED(moe_layout_round_up(&bad, 1, 1, &out), MOE_E_ARGUMENT, "-2", "2147483647");
    bad = good;
    bad.count = 2;
    REFUSED(moe_layout_convert(&good, &src, &bad, &src), MOE_E_ARGUMENT, "from->count = 1",
            "to->count = 2");
    REFUSED(moe_layout_round_up(&good, 0, 1, &out), MOE_E_ARGUMENT, "0 rows", "1..2147483647");
    REFUSED(moe_layout_round_up(&good, INT32_MAX, 1, &out), MOE_E_OVERFLOW, "4294967294",
            "2147483647");
    REFUSED(moe_layout_round_up(&good, 1, 1, NULL), MOE_E_ARGUMENT, "to", "NULL");
    moe_matrix_source blocks = src;
    const int64_t shape[4] = {1, 8, 2, 16};
    blocks.values = moe_tensor_make(s.boxes[VALUES].memory, MOE_U8, 4, shape);
    bad = good;
    bad.cols = 80;
    REFUSED(moe_layout_place(&good, &blocks, &bad, NULL, NULL, NULL), MOE_E_SHAPE, "32 codes",
            "= 80");
    moe_matrix_source odd = src;
    odd.zero_points = src.scales;
    REFUSED(moe_layout_place(&good, &odd, &good, NULL, NULL, NULL), MOE_E_ARGUMENT, "zero_points",
            "mxfp4");
    odd = src;
    odd.scale2 = src.act_scale;
    REFUSED(moe_layout_place(&good, &odd, &good, NULL, NULL, NULL), MOE_E_ARGUMENT, "scale2",
            "mxfp4");
    release_all();
}

// A zero point of 16 cannot be padded with a code that means 0.
static void test_padding_refusal(void)
{
    const matrix_case c = {MOE_FORMAT_INT4_GROUP, 32, MOE_F32, AS_BYTES, BYTES, 1, false};
    const moe_matrix_layout from = layout_of(&c, MOE_GATE_UP_UNSET, 1, 3, 40);
    const moe_matrix_layout to = layout_of(&c, MOE_GATE_UP_UNSET, 1, 3, 64);
    side s = make_side(&c, &from, spreads[0]);
    side d = make_side(&c, &to, spreads[0]);
    randomise(&s);
    put_zero(&c, &s, 0, 2, 1, 16);
    moe_matrix_source src = source_of(&s);
    const moe_matrix_source dst = source_of(&d);
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_VALUE, "element [2, 1] is 16", "15");
    put_zero(&c, &s, 0, 2, 1, 15);
    put_zero(&c, &s, 0, 2, 0, 16); // a group that is full needs no padding
    CHECK(moe_layout_convert(&from, &src, &to, &dst) == MOE_OK, "%s", moe_last_error());
    release_all();
}

int main(void)
{
    test_convert();
    test_convert_transposed();
    test_convert_column_scales();
    test_sizes();
    test_convert_refusals();
    test_layout_refusals();
    test_padding_refusal();
    return test_summary();
}
