// SPDX-License-Identifier: Apache-2.0
// Layout converters. Each result is compared as a whole piece of memory, gaps of wide strides and
// padding included, with an image that is written element by element from the layout's definition:
// an index formula, or a view and a permutation of axes. Then the inverse must restore the input,
// and the values that the numbers mean must not have changed.
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "moe/layouts.h"
#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "quant/formats.h"
#include "unit/test.h"

#define POISON 0xA5

// ---- memory ---------------------------------------------------------------------------------

// A view with memory that ends where the view ends, so that sanitizers see every step beyond it.
typedef struct box {
    moe_tensor t;
    uint8_t *memory;
    size_t bytes;
} box;

static uint8_t *kept[256];
static int num_kept;

static uint8_t *keep(size_t bytes)
{
    if (num_kept == (int)(sizeof kept / sizeof kept[0])) {
        (void)printf("a case needs more than %d allocations\n", num_kept);
        exit(1);
    }
    uint8_t *p = malloc(bytes);
    if (p == NULL) {
        (void)printf("no memory for %zu bytes\n", bytes);
        exit(1);
    }
    kept[num_kept++] = p;
    return p;
}

static void release_all(void)
{
    while (num_kept > 0) {
        free(kept[--num_kept]);
    }
}

static uint64_t random_state = 0x9E3779B97F4A7C15u;

static uint32_t random32(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static int64_t up(int64_t a, int64_t multiple)
{
    return (a + multiple - 1) / multiple * multiple;
}

// How the memory of a case lies: bytes before the base, elements between rows.
typedef struct spread {
    int offset;
    int gap; // a multiple of 12: whole bytes for 4 and 6 bits
} spread;

static const spread spreads[] = {{0, 0}, {1, 12}};

static box make_box(moe_dtype dtype, int ndim, const int64_t *shape, spread sp)
{
    box b;
    const int bits = moe_dtype_bits(dtype);
    const int64_t step = bits == 4 ? 2 : bits == 6 ? 4 : 1;
    int64_t last = 0;
    b.t = moe_tensor_make(NULL, dtype, ndim, shape);
    for (int i = ndim - 2; i >= 0; i--) {
        const int64_t inner =
            i == ndim - 2 ? up(shape[i + 1], step) : b.t.stride[i + 1] * shape[i + 1];
        b.t.stride[i] = inner + sp.gap;
    }
    if (ndim == 4) {
        b.t.stride[2] = shape[3]; // blocks are compact
        b.t.stride[1] = shape[2] * shape[3] + sp.gap;
        b.t.stride[0] = shape[1] * b.t.stride[1] + sp.gap;
    }
    for (int i = 0; i < ndim; i++) {
        last += (shape[i] > 0 ? shape[i] - 1 : 0) * b.t.stride[i];
    }
    b.bytes = (size_t)(sp.offset + ((last + 1) * bits + 7) / 8);
    b.memory = keep(b.bytes);
    memset(b.memory, POISON, b.bytes);
    b.t.data = b.memory;
    b.t.byte_offset = (uint64_t)sp.offset;
    return b;
}

static void fill_random(box *b)
{
    for (size_t i = 0; i < b->bytes; i++) {
        b->memory[i] = (uint8_t)random32();
    }
}

// The same view of other memory, poisoned.
static box twin(const box *b)
{
    box r = *b;
    r.memory = keep(b->bytes);
    memset(r.memory, POISON, r.bytes);
    r.t.data = r.memory;
    return r;
}

static box copy_of(const box *b)
{
    box r = twin(b);
    memcpy(r.memory, b->memory, b->bytes);
    return r;
}

static bool equal(const box *a, const box *b)
{
    return a->bytes == b->bytes && memcmp(a->memory, b->memory, a->bytes) == 0;
}

// First byte of row [i0, i1] of a view of three dimensions (or [i0] of two).
static uint8_t *row_at(const moe_tensor *t, int64_t i0, int64_t i1)
{
    const int64_t elems = i0 * t->stride[0] + (t->ndim > 2 ? i1 * t->stride[1] : 0);
    return (uint8_t *)t->data + t->byte_offset + elems * moe_dtype_bits(t->dtype) / 8;
}

// Element c of `bits` bits of a row, lowest bits first.
static uint64_t get_bits(const uint8_t *row, int bits, int64_t c)
{
    uint64_t v = 0;
    if (bits % 8 == 0) {
        memcpy(&v, row + c * bits / 8, (size_t)bits / 8);
        return v;
    }
    const int64_t at = c * bits;
    const int shift = (int)(at % 8);
    v = (uint64_t)row[at / 8] >> shift;
    if (shift + bits > 8) {
        v |= (uint64_t)row[at / 8 + 1] << (8 - shift);
    }
    return v & ((1u << bits) - 1u);
}

static void put_bits(uint8_t *row, int bits, int64_t c, uint64_t v)
{
    if (bits % 8 == 0) {
        memcpy(row + c * bits / 8, &v, (size_t)bits / 8);
        return;
    }
    for (int i = 0; i < bits; i++) {
        const int64_t at = c * bits + i;
        const unsigned mask = 1u << (at % 8);
        row[at / 8] = (uint8_t)((row[at / 8] & ~mask) | ((v >> i & 1) != 0 ? mask : 0u));
    }
}

static uint64_t get3(const moe_tensor *t, int64_t i, int64_t j, int64_t k)
{
    return get_bits(row_at(t, i, j), moe_dtype_bits(t->dtype), k);
}

static void put3(const moe_tensor *t, int64_t i, int64_t j, int64_t k, uint64_t v)
{
    put_bits(row_at(t, i, j), moe_dtype_bits(t->dtype), k, v);
}

static bool message_has(const char *a, const char *b)
{
    return strstr(moe_last_error(), a) != NULL && strstr(moe_last_error(), b) != NULL;
}

// ---- tilings --------------------------------------------------------------------------------

// A matrix viewed in `n` axes, their extents in dims (the first left open), then permuted.
typedef struct tiling_case {
    moe_tiling tiling;
    const char *name;
    moe_dtype dtype;
    int64_t row_multiple, col_multiple;
    int n, row_axes; // axes that split the row; the others split the column
    int64_t dims[6];
    int permutation[6];
} tiling_case;

static const tiling_case tiling_cases[] = {
    // [R/32, 2, 16, C/8, 2, 4], axes 0 3 5 2 4 1
    {MOE_TILING_CDNA4_SCALES,
     "cdna4",
     MOE_E8M0,
     32,
     8,
     6,
     3,
     {0, 2, 16, 0, 2, 4},
     {0, 3, 5, 2, 4, 1}},
    {MOE_TILING_CDNA4_SCALES,
     "cdna4 u8",
     MOE_U8,
     32,
     8,
     6,
     3,
     {0, 2, 16, 0, 2, 4},
     {0, 3, 5, 2, 4, 1}},
    // [R/128, 4, 32, C/4, 4], axes 0 3 2 1 4
    {MOE_TILING_128X4_SCALES, "128x4", MOE_E4M3FN, 128, 4, 5, 3, {0, 4, 32, 0, 4}, {0, 3, 2, 1, 4}},
    // [R, C/4, 4], axes 1 0 2
    {MOE_TILING_HOPPER_SCALES, "hopper", MOE_U8, 1, 4, 3, 1, {0, 0, 4}, {1, 0, 2}},
    // [N/16, 16, K/32, 32/p, p], axes 0 2 3 1 4, p = 16 bytes
    {MOE_TILING_16X16_WEIGHTS,
     "16x16 e4m3fn",
     MOE_E4M3FN,
     16,
     32,
     5,
     2,
     {0, 16, 0, 2, 16},
     {0, 2, 3, 1, 4}},
    {MOE_TILING_16X16_WEIGHTS,
     "16x16 bf16",
     MOE_BF16,
     16,
     32,
     5,
     2,
     {0, 16, 0, 4, 8},
     {0, 2, 3, 1, 4}},
    {MOE_TILING_16X16_WEIGHTS,
     "16x16 e2m1",
     MOE_E2M1,
     16,
     64,
     5,
     2,
     {0, 16, 0, 2, 32},
     {0, 2, 3, 1, 4}},
    {MOE_TILING_16X16_WEIGHTS,
     "16x16 u8",
     MOE_U8,
     16,
     32,
     5,
     2,
     {0, 16, 0, 2, 16},
     {0, 2, 3, 1, 4}},
};

// Place of element (r, c) of a matrix of R x C in the permuted view.
static int64_t permuted_place(const tiling_case *c, int64_t rows, int64_t cols, int64_t r,
                              int64_t col)
{
    int64_t dims[6];
    int64_t index[6];
    int64_t rest_rows = rows;
    int64_t rest_cols = cols;
    memcpy(dims, c->dims, sizeof dims);
    for (int i = c->n; i-- > 0;) {
        int64_t *rest = i < c->row_axes ? &rest_rows : &rest_cols;
        int64_t *at = i < c->row_axes ? &r : &col;
        if (dims[i] == 0) {
            dims[i] = *rest; // the open axis is the last one that is reached
        }
        index[i] = *at % dims[i];
        *at /= dims[i];
        *rest /= dims[i];
    }
    int64_t place = 0;
    for (int i = 0; i < c->n; i++) {
        place = place * dims[c->permutation[i]] + index[c->permutation[i]];
    }
    return place;
}

static void run_tiling(const tiling_case *c, int64_t experts, int64_t rows, int64_t cols,
                       int64_t more, spread sp)
{
    const bool weights = c->tiling == MOE_TILING_16X16_WEIGHTS;
    int64_t want[2] = {0, 0};
    CHECK(moe_layout_tiled_shape(c->tiling, c->dtype, rows, cols, want) == MOE_OK,
          "%s: tiled_shape: %s", c->name, moe_last_error());
    CHECK(want[0] == up(rows, c->row_multiple) && want[1] == up(cols, c->col_multiple),
          "%s: %" PRId64 " x %" PRId64 " tiled is %" PRId64 " x %" PRId64, c->name, rows, cols,
          want[0], want[1]);
    if (weights && (want[0] != rows || want[1] != cols)) {
        return;
    }
    const int64_t plain_shape[3] = {experts, rows, cols};
    const int64_t tiled_shape[3] = {experts, want[0] + (weights ? 0 : more * c->row_multiple),
                                    want[1] + (weights ? 0 : more * c->col_multiple)};
    box src = make_box(c->dtype, 3, plain_shape, sp);
    box dst = make_box(c->dtype, 3, tiled_shape, (spread){sp.offset, 0});
    fill_random(&src);
    box image = twin(&dst);
    const int bits = moe_dtype_bits(c->dtype);
    for (int64_t e = 0; e < experts; e++) {
        for (int64_t r = 0; r < tiled_shape[1]; r++) {
            for (int64_t k = 0; k < tiled_shape[2]; k++) {
                const bool inside = r < rows && k < cols;
                put_bits(row_at(&image.t, e, 0), bits,
                         permuted_place(c, tiled_shape[1], tiled_shape[2], r, k),
                         inside ? get3(&src.t, e, r, k) : 0);
            }
        }
    }
    const box before = copy_of(&src);
    CHECK(moe_layout_tile(c->tiling, &src.t, &dst.t) == MOE_OK, "%s: %s", c->name,
          moe_last_error());
    CHECK(equal(&dst, &image), "%s: [%" PRId64 ", %" PRId64 ", %" PRId64 "]: bytes differ", c->name,
          experts, rows, cols);
    CHECK(equal(&src, &before), "%s: the input changed", c->name);

    box back = twin(&src);
    box back_image = twin(&src);
    for (int64_t e = 0; e < experts; e++) {
        for (int64_t r = 0; r < rows; r++) {
            memcpy(row_at(&back_image.t, e, r), row_at(&src.t, e, r), (size_t)(cols * bits / 8));
        }
    }
    CHECK(moe_layout_untile(c->tiling, &dst.t, &back.t) == MOE_OK, "%s: %s", c->name,
          moe_last_error());
    CHECK(equal(&back, &back_image), "%s: [%" PRId64 ", %" PRId64 ", %" PRId64 "]: not restored",
          c->name, experts, rows, cols);

    // The other way round: untile random memory, then tile it.
    const int64_t whole_shape[3] = {experts, tiled_shape[1], tiled_shape[2]};
    box tiled = twin(&dst);
    box plain = make_box(c->dtype, 3, whole_shape, sp);
    box again = twin(&dst);
    fill_random(&tiled);
    memset(again.memory, 0, again.bytes);
    memcpy(again.memory, tiled.memory, (size_t)sp.offset);
    CHECK(moe_layout_untile(c->tiling, &tiled.t, &plain.t) == MOE_OK &&
              moe_layout_tile(c->tiling, &plain.t, &again.t) == MOE_OK && equal(&tiled, &again),
          "%s: tile(untile) differs: %s", c->name, moe_last_error());
    release_all();
}

static void test_tilings(void)
{
    static const int64_t shapes[][2] = {{1, 1},     {16, 32},   {32, 8},   {128, 4},  {33, 9},
                                        {80, 90},   {160, 64},  {288, 10}, {320, 84}, {2880, 9},
                                        {48, 2880}, {16, 2688}, {5, 0}};
    for (size_t i = 0; i < sizeof tiling_cases / sizeof tiling_cases[0]; i++) {
        for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
            for (int k = 0; k < 4; k++) {
                run_tiling(&tiling_cases[i], k % 2 == 0 ? 1 : 3, shapes[j][0], shapes[j][1], k / 2,
                           spreads[k % 2]);
            }
        }
    }
}

// What the CDNA4 layout is for: one dword per lane of a wave holds, for rows n and n + 16 and two
// steps of four scale columns, the byte that operand selector 2 step + row half picks.
static void test_cdna4_wave(void)
{
    const int64_t shape[3] = {1, 64, 16};
    box src = make_box(MOE_E8M0, 3, shape, spreads[0]);
    box dst = twin(&src);
    fill_random(&src);
    CHECK(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &src.t, &dst.t) == MOE_OK, "%s",
          moe_last_error());
    int wrong = 0;
    for (int block = 0; block < 4; block++) { // two of rows, two of columns
        const uint8_t *wave = dst.memory + 256 * block;
        for (int lane = 0; lane < 64; lane++) {
            for (int select = 0; select < 4; select++) {
                const int n = block / 2 * 32 + select % 2 * 16 + lane % 16;
                const int k = block % 2 * 8 + select / 2 * 4 + lane / 16;
                wrong += wave[4 * lane + select] != get3(&src.t, 0, n, k);
            }
        }
    }
    CHECK(wrong == 0, "%d of 1024 scales are not where a wave looks", wrong);
    release_all();
}

// ---- one matrix in two layouts --------------------------------------------------------------

enum { VALUES, SCALES, SCALE2, ZEROS, BIAS, ACT, NUM_VIEWS };

typedef enum zero_form { NO_ZEROS, BYTES, PAIRS, NIBBLES } zero_form;
typedef enum code_form { AS_TYPE, AS_BYTES, AS_BLOCKS } code_form;

typedef struct matrix_case {
    moe_format format;
    int32_t group;
    moe_dtype scale_dtype;
    code_form codes;
    zero_form zeros;
    int parts;   // of per-tensor scales and scale2
    bool vector; // channel scales [n, N] instead of [n, N, 1]
} matrix_case;

// A layout with its six tensors.
typedef struct side {
    moe_matrix_layout layout;
    box boxes[NUM_VIEWS];
    bool present[NUM_VIEWS];
} side;

static const char *const view_names[NUM_VIEWS] = {"values",      "scales", "scale2",
                                                  "zero points", "bias",   "act scale"};

static bool gated(const moe_matrix_layout *l)
{
    return l->gate_up != MOE_GATE_UP_UNSET;
}

static bool interleaved(moe_gate_up order)
{
    return order == MOE_GATE_UP_INTERLEAVED || order == MOE_UP_GATE_INTERLEAVED;
}

// Row j of part 0 (gate) or 1 (up), of I rows each; the definition of moe_gate_up.
static int64_t row_of(moe_gate_up order, int part, int64_t j, int64_t size)
{
    switch (order) {
    case MOE_GATE_FIRST:
        return part == 0 ? j : size + j;
    case MOE_UP_FIRST:
        return part == 0 ? size + j : j;
    case MOE_GATE_UP_INTERLEAVED:
        return part == 0 ? 2 * j : 2 * j + 1;
    case MOE_UP_GATE_INTERLEAVED:
        return part == 0 ? 2 * j + 1 : 2 * j;
    default:
        return j;
    }
}

static int64_t group_of(const matrix_case *c)
{
    return c->group > 0 ? c->group : moei_format(c->format)->block_k;
}

static int64_t groups_of(const matrix_case *c, int64_t cols)
{
    const int64_t group = group_of(c);
    return group > 0 ? (cols + group - 1) / group : 1;
}

static int64_t scale_rows_of(const matrix_case *c, const moe_matrix_layout *l)
{
    const int64_t block = moei_format(c->format)->block_n;
    if (block == 0) {
        return c->parts;
    }
    const bool halves = gated(l) && !interleaved(l->gate_up);
    return halves ? 2 * ((l->rows / 2 + block - 1) / block) : (l->rows + block - 1) / block;
}

static int code_bits(const matrix_case *c)
{
    return moe_dtype_bits(moei_format(c->format)->elem);
}

static void add_box(side *s, int view, moe_dtype dtype, int ndim, const int64_t *shape, spread sp)
{
    s->boxes[view] = make_box(dtype, ndim, shape, sp);
    s->present[view] = true;
}

static side make_side(const matrix_case *c, const moe_matrix_layout *l, spread sp)
{
    side s;
    const moei_format_info *info = moei_format(c->format);
    const int64_t n = l->count;
    const int64_t groups = groups_of(c, l->cols);
    const int64_t scale_rows = scale_rows_of(c, l);
    memset(&s, 0, sizeof s);
    s.layout = *l;
    const int64_t inner = l->transposed != 0 ? l->rows : l->cols;
    const int64_t outer = l->transposed != 0 ? l->cols : l->rows;
    const int64_t type_shape[3] = {n, outer, inner};
    const int64_t byte_shape[3] = {n, outer, (inner * code_bits(c) + 7) / 8};
    const int64_t block_shape[4] = {n, outer, inner / 32, 4 * code_bits(c)};
    if (c->codes == AS_BLOCKS) {
        add_box(&s, VALUES, MOE_U8, 4, block_shape, sp);
    } else if (c->codes == AS_BYTES) {
        add_box(&s, VALUES, MOE_U8, 3, byte_shape, sp);
    } else {
        add_box(&s, VALUES, info->elem, 3, type_shape, sp);
    }
    if (info->scale_dtypes != 0 && info->block_n == 0) {
        const int64_t shape[2] = {n, c->parts};
        add_box(&s, SCALES, c->scale_dtype, c->parts == 1 ? 1 : 2, shape, sp);
    } else if (info->scale_dtypes != 0) {
        const int64_t shape[3] = {n, scale_rows, groups};
        add_box(&s, SCALES, c->scale_dtype, c->vector ? 2 : 3, shape, sp);
    }
    if (info->scale2) {
        const int64_t shape[2] = {n, c->parts};
        add_box(&s, SCALE2, MOE_F32, 2, shape, sp);
    }
    if (c->zeros != NO_ZEROS) {
        const int64_t shape[3] = {n, c->zeros == PAIRS ? (l->rows + 1) / 2 : l->rows, groups};
        add_box(&s, ZEROS, c->zeros == NIBBLES ? MOE_UINT4 : MOE_U8, 3, shape, sp);
    }
    const int64_t bias_shape[2] = {n, l->rows};
    const int64_t one[1] = {1};
    add_box(&s, BIAS, MOE_BF16, 2, bias_shape, sp);
    add_box(&s, ACT, MOE_F32, 1, one, sp);
    return s;
}

// Random codes, with finite scales and zero points that are codes.
static void randomise(side *s)
{
    for (int v = 0; v < NUM_VIEWS; v++) {
        if (!s->present[v]) {
            continue;
        }
        box *b = &s->boxes[v];
        fill_random(b);
        for (size_t i = b->t.byte_offset; v != VALUES && i < b->bytes; i++) {
            const size_t at = i - b->t.byte_offset;
            switch (b->t.dtype) {
            case MOE_F32:
                b->memory[i] &= at % 4 == 3 ? 0xBF : 0xFF; // exponents below 128
                break;
            case MOE_BF16:
            case MOE_F16:
                b->memory[i] &= at % 2 == 1 ? 0xBF : 0xFF;
                break;
            case MOE_E8M0:
            case MOE_E4M3FN:
                b->memory[i] &= 0xFE;
                break;
            default:
                if (v == ZEROS && s->layout.format == MOE_FORMAT_INT4_GROUP &&
                    b->t.dtype == MOE_U8 && b->t.shape[1] == s->layout.rows) {
                    b->memory[i] &= 15;
                }
                break;
            }
        }
    }
}

static side twin_side(const side *s)
{
    side r = *s;
    for (int v = 0; v < NUM_VIEWS; v++) {
        if (s->present[v]) {
            r.boxes[v] = twin(&s->boxes[v]);
        }
    }
    return r;
}

static moe_matrix_source source_of(const side *s)
{
    moe_matrix_source m;
    memset(&m, 0, sizeof m);
    moe_tensor *const views[NUM_VIEWS] = {&m.values,      &m.scales, &m.scale2,
                                          &m.zero_points, &m.bias,   &m.act_scale};
    for (int v = 0; v < NUM_VIEWS; v++) {
        if (s->present[v]) {
            *views[v] = s->boxes[v].t;
        }
    }
    return m;
}

// First byte of what holds code (row, col), and its place there in elements.
static uint8_t *code_row(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t col,
                         int64_t *at)
{
    const moe_tensor *t = &s->boxes[VALUES].t;
    (void)c;
    *at = s->layout.transposed != 0 ? row : col;
    return (uint8_t *)t->data + t->byte_offset +
           (e * t->stride[0] + (s->layout.transposed != 0 ? col : row) * t->stride[1]) *
               moe_dtype_bits(t->dtype) / 8;
}

static uint64_t code_at(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t col)
{
    int64_t at;
    const uint8_t *p = code_row(c, s, e, row, col, &at);
    return get_bits(p, code_bits(c), at);
}

static void put_code(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t col,
                     uint64_t code)
{
    int64_t at;
    uint8_t *p = code_row(c, s, e, row, col, &at);
    put_bits(p, code_bits(c), at, code);
}

static uint64_t scale_at(const side *s, int view, int64_t e, int64_t row, int64_t col)
{
    const moe_tensor *t = &s->boxes[view].t;
    const int64_t elem = e * t->stride[0] + (t->ndim > 1 ? row * t->stride[1] : 0) +
                         (t->ndim > 2 ? col * t->stride[2] : 0);
    return get_bits((uint8_t *)t->data + t->byte_offset, moe_dtype_bits(t->dtype), elem);
}

static void put_scale(const side *s, int view, int64_t e, int64_t row, int64_t col, uint64_t v)
{
    const moe_tensor *t = &s->boxes[view].t;
    const int64_t elem = e * t->stride[0] + (t->ndim > 1 ? row * t->stride[1] : 0) +
                         (t->ndim > 2 ? col * t->stride[2] : 0);
    put_bits((uint8_t *)t->data + t->byte_offset, moe_dtype_bits(t->dtype), elem, v);
}

static int zero_at(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t g)
{
    const moe_tensor *t = &s->boxes[ZEROS].t;
    if (c->zeros == NO_ZEROS) {
        const int32_t zero = moei_format(c->format)->zero_point;
        return zero > 0 ? zero : 0;
    }
    if (c->zeros == PAIRS) {
        return (int)(get3(t, e, row / 2, g) >> (row % 2 * 4) & 15);
    }
    return (int)get3(t, e, row, g);
}

static void put_zero(const matrix_case *c, const side *s, int64_t e, int64_t row, int64_t g, int v)
{
    const moe_tensor *t = &s->boxes[ZEROS].t;
    if (c->zeros == PAIRS) {
        put_bits(row_at(t, e, row / 2) + g, 4, row % 2, (uint64_t)v);
    } else {
        put3(t, e, row, g, (uint64_t)v);
    }
}

// Rows of zeros where the image's codes leave bits over.
static void clear_rows(const box *b)
{
    const moe_tensor *t = &b->t;
    const int64_t row_bytes =
        (t->shape[t->ndim - 1] * (t->ndim == 4 ? t->shape[2] : 1) * moe_dtype_bits(t->dtype) + 7) /
        8;
    for (int64_t e = 0; e < t->shape[0]; e++) {
        for (int64_t r = 0; r < t->shape[1]; r++) {
            memset((uint8_t *)t->data + t->byte_offset +
                       (e * t->stride[0] + r * t->stride[1]) * moe_dtype_bits(t->dtype) / 8,
                   0, (size_t)row_bytes);
        }
    }
}

// Writes what dst must hold, part by part, from the definitions.
static void draw(const matrix_case *c, const side *s, const side *d)
{
    const moei_format_info *info = moei_format(c->format);
    const int parts = gated(&s->layout) ? 2 : 1;
    const int64_t si = s->layout.rows / parts;
    const int64_t di = d->layout.rows / parts;
    const moe_gate_up from = s->layout.gate_up;
    const moe_gate_up to = d->layout.gate_up;
    const int64_t sg = groups_of(c, s->layout.cols);
    const int64_t dg = groups_of(c, d->layout.cols);
    const int default_zero = info->zero_point > 0 ? info->zero_point : 0;
    clear_rows(&d->boxes[VALUES]);
    if (c->zeros != NO_ZEROS) {
        clear_rows(&d->boxes[ZEROS]);
    }
    for (int64_t e = 0; e < d->layout.count; e++) {
        for (int p = 0; p < parts; p++) {
            for (int64_t j = 0; j < di; j++) {
                const int64_t dr = row_of(to, p, j, di);
                const int64_t sr = row_of(from, p, j, si);
                for (int64_t k = 0; k < d->layout.cols; k++) {
                    const int64_t g = group_of(c) > 0 ? k / group_of(c) : 0;
                    put_code(c, d, e, dr, k,
                             j < si && k < s->layout.cols ? code_at(c, s, e, sr, k)
                             : j < si && g < sg           ? (uint64_t)zero_at(c, s, e, sr, g)
                                                          : (uint64_t)default_zero);
                }
                for (int64_t g = 0; c->zeros != NO_ZEROS && g < dg; g++) {
                    put_zero(c, d, e, dr, g,
                             j < si && g < sg ? zero_at(c, s, e, sr, g) : default_zero);
                }
                for (int64_t g = 0; info->block_n == 1 && g < dg; g++) {
                    put_scale(d, SCALES, e, dr, g,
                              j < si && g < sg ? scale_at(s, SCALES, e, sr, g) : 0);
                }
                put_scale(d, BIAS, e, dr, 0, j < si ? scale_at(s, BIAS, e, sr, 0) : 0);
            }
            if (c->parts == 2 && info->scale2) {
                put_scale(d, SCALE2, e, row_of(to, p, 0, 1), 0,
                          scale_at(s, SCALE2, e, row_of(from, p, 0, 1), 0));
            }
            if (c->parts == 2 && info->scale_dtypes != 0 && info->block_n == 0) {
                put_scale(d, SCALES, e, row_of(to, p, 0, 1), 0,
                          scale_at(s, SCALES, e, row_of(from, p, 0, 1), 0));
            }
        }
        if (c->parts == 1 && info->scale2) {
            put_scale(d, SCALE2, e, 0, 0, scale_at(s, SCALE2, e, 0, 0));
        }
        if (c->parts == 1 && info->scale_dtypes != 0 && info->block_n == 0) {
            put_scale(d, SCALES, e, 0, 0, scale_at(s, SCALES, e, 0, 0));
        }
        // 128-row blocks: block by block of a part in halves, else in sequence.
        const int64_t s_rows = scale_rows_of(c, &s->layout);
        const int64_t d_rows = scale_rows_of(c, &d->layout);
        for (int64_t r = 0; info->block_n > 1 && r < d_rows; r++) {
            const bool swap = from != to && !interleaved(to);
            const bool halves = gated(&s->layout) && !interleaved(to);
            const int64_t part = halves ? r / (d_rows / 2) : 0;
            const int64_t j = halves ? r % (d_rows / 2) : r;
            const int64_t have = halves ? s_rows / 2 : s_rows;
            const int64_t sr = (swap ? 1 - part : part) * have + j;
            for (int64_t g = 0; g < dg; g++) {
                put_scale(d, SCALES, e, r, g,
                          j < have && g < sg ? scale_at(s, SCALES, e, sr, g) : 0);
            }
        }
    }
    put_scale(d, ACT, 0, 0, 0, scale_at(s, ACT, 0, 0, 0));
}

static float decode(moe_dtype dtype, uint64_t code)
{
    switch (dtype) {
    case MOE_F32:
        return moei_f32_from_bits((uint32_t)code);
    case MOE_BF16:
        return moei_bf16_to_f32((uint16_t)code);
    case MOE_F16:
        return moei_f16_to_f32((uint16_t)code);
    case MOE_E4M3FN:
        return moei_e4m3fn_to_f32((uint8_t)code);
    case MOE_E5M2:
        return moei_e5m2_to_f32((uint8_t)code);
    case MOE_E8M0:
        return moei_e8m0_to_f32((uint8_t)code);
    case MOE_E2M1:
        return moei_e2m1_to_f32((uint8_t)code);
    case MOE_E2M3:
        return moei_e2m3_to_f32((uint8_t)code);
    case MOE_E3M2:
        return moei_e3m2_to_f32((uint8_t)code);
    case MOE_I8:
        return (float)(int8_t)(uint8_t)code;
    default:
        return (float)code;
    }
}

// The number that row j of a part means at column k.
static float meaning(const matrix_case *c, const side *s, int64_t e, int part, int64_t j, int64_t k)
{
    const moei_format_info *info = moei_format(c->format);
    const int64_t size = gated(&s->layout) ? s->layout.rows / 2 : s->layout.rows;
    const int64_t row = row_of(s->layout.gate_up, part, j, size);
    const int64_t g = group_of(c) > 0 ? k / group_of(c) : 0;
    const int64_t number = row_of(s->layout.gate_up, part, 0, 1);
    float v = decode(info->elem, code_at(c, s, e, row, k));
    if (info->scale_dtypes == 0) {
        return v;
    }
    v -= (float)zero_at(c, s, e, row, g);
    const bool halves = gated(&s->layout) && !interleaved(s->layout.gate_up);
    const int64_t half = scale_rows_of(c, &s->layout) / 2;
    const int64_t scale_row = info->block_n == 0   ? (c->parts == 2 ? number : 0)
                              : info->block_n == 1 ? row
                              : halves             ? row / size * half + row % size / info->block_n
                                                   : row / info->block_n;
    v *= decode(c->scale_dtype == MOE_U8 ? MOE_E8M0 : c->scale_dtype,
                scale_at(s, SCALES, e, scale_row, g));
    return info->scale2 ? v * decode(MOE_F32, scale_at(s, SCALE2, e, c->parts == 2 ? number : 0, 0))
                        : v;
}

static int count_changed(const matrix_case *c, const side *s, const side *d)
{
    const int parts = gated(&s->layout) ? 2 : 1;
    int changed = 0;
    for (int64_t e = 0; e < d->layout.count; e++) {
        for (int p = 0; p < parts; p++) {
            for (int64_t j = 0; j < d->layout.rows / parts; j++) {
                for (int64_t k = 0; k < d->layout.cols; k++) {
                    const float is = meaning(c, d, e, p, j, k);
                    if (j < s->layout.rows / parts && k < s->layout.cols) {
                        const float was = meaning(c, s, e, p, j, k);
                        changed += memcmp(&is, &was, sizeof is) != 0;
                    } else {
                        changed += is != 0.0f;
                    }
                }
            }
        }
    }
    return changed;
}

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

static moe_matrix_layout layout_of(const matrix_case *c, moe_gate_up order, int32_t count,
                                   int64_t size, int64_t cols)
{
    moe_matrix_layout l = moe_matrix_layout_default();
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
    const bool block = moei_format(c->format)->block_n > 1;
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
        {1, 1, 1, 1},       {3, 5, 3, 5},         {5, 33, 8, 40},      {3, 80, 64, 128},
        {80, 80, 128, 256}, {128, 288, 256, 288}, {128, 32, 128, 256}, {4, 2880, 4, 3072},
        {320, 64, 384, 64}, {7, 96, 3, 33},       {256, 160, 128, 64}, {2, 2688, 2, 2816},
        {2, 0, 2, 32},      {0, 32, 3, 32},
    };
    for (size_t i = 0; i < sizeof matrix_cases / sizeof matrix_cases[0]; i++) {
        const matrix_case *c = &matrix_cases[i];
        for (size_t j = 0; j < sizeof sizes / sizeof sizes[0]; j++) {
            const bool large = sizes[j][2] * sizes[j][3] > 4000;
            for (int orders = 0; orders < 17; orders += large ? 3 : 1) {
                const moe_gate_up a = orders == 16 ? MOE_GATE_UP_UNSET : 1 + orders / 4;
                const moe_gate_up b = orders == 16 ? MOE_GATE_UP_UNSET : 1 + orders % 4;
                const int32_t count = orders % 3 == 0 ? 3 : 1;
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
        for (int way = 1; code_bits(c) >= 8 && way < 4; way++) {
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

// ---- transposition --------------------------------------------------------------------------

static void test_transpose(void)
{
    static const moe_dtype dtypes[] = {MOE_U8, MOE_BF16, MOE_F32, MOE_I64};
    static const int64_t shapes[][3] = {{1, 1, 1},   {3, 5, 33},  {1, 33, 64}, {3, 80, 31},
                                        {1, 288, 7}, {1, 7, 320}, {3, 0, 4},   {0, 3, 4}};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
            for (size_t w = 0; w < 2; w++) {
                const int64_t *n = shapes[j];
                const int64_t turned[3] = {n[0], n[2], n[1]};
                box src = make_box(dtypes[i], 3, n, spreads[w]);
                box dst = make_box(dtypes[i], 3, turned, spreads[w]);
                fill_random(&src);
                const box image = twin(&dst);
                box back = twin(&src);
                const box back_image = twin(&src);
                for (int64_t e = 0; e < n[0]; e++) {
                    for (int64_t r = 0; r < n[1]; r++) {
                        for (int64_t c = 0; c < n[2]; c++) {
                            put3(&image.t, e, c, r, get3(&src.t, e, r, c));
                            put3(&back_image.t, e, r, c, get3(&src.t, e, r, c));
                        }
                    }
                }
                CHECK(moe_layout_transpose(&src.t, &dst.t) == MOE_OK && equal(&dst, &image),
                      "%s: transposed bytes differ", moe_dtype_name(dtypes[i]));
                CHECK(moe_layout_transpose(&dst.t, &back.t) == MOE_OK && equal(&back, &back_image),
                      "%s: not restored", moe_dtype_name(dtypes[i]));
                release_all();
            }
        }
    }
}

// ---- FP8 dialects ---------------------------------------------------------------------------

enum { FP8_ROWS = 4, FP8_COLS = 260 };

typedef struct fp8_case {
    uint8_t codes[3 * FP8_ROWS * FP8_COLS];
    uint8_t scales[3 * FP8_ROWS * 4];
    float act;
    uint16_t bias[3 * FP8_ROWS];
} fp8_case;

static moe_matrix_source fp8_source(const fp8_case *c, moe_dtype values, moe_dtype scales)
{
    moe_matrix_source m;
    memset(&m, 0, sizeof m);
    m.values = moe_tensor_3d(c->codes, values, 3, FP8_ROWS, FP8_COLS);
    m.scales = moe_tensor_3d(c->scales, scales, 3, FP8_ROWS, 1);
    m.act_scale = moe_tensor_1d(&c->act, MOE_F32, 1);
    m.bias = moe_tensor_2d(c->bias, MOE_BF16, 3, FP8_ROWS);
    return m;
}

static void store_scale(moe_dtype dtype, uint8_t *p, int i, float v)
{
    const uint16_t half = dtype == MOE_BF16 ? moei_f32_to_bf16(v) : moei_f32_to_f16(v);
    switch (dtype) {
    case MOE_F32:
        memcpy(p + 4 * i, &v, sizeof v);
        break;
    case MOE_BF16:
    case MOE_F16:
        memcpy(p + 2 * i, &half, sizeof half);
        break;
    default:
        p[i] = moei_f32_to_e8m0(v);
        break;
    }
}

// Every code but the NaN ones, each expert and row with a scale of its own.
static void fill_fp8(fp8_case *c, moe_dtype scales)
{
    memset(c, 0, sizeof *c);
    for (int i = 0; i < 3 * FP8_ROWS; i++) {
        for (int k = 0; k < FP8_COLS; k++) {
            const uint8_t code = (uint8_t)(k + 7 * i);
            c->codes[i * FP8_COLS + k] = (code & 0x7F) == 0x7F ? 0x80 : code;
        }
        store_scale(scales, c->scales, i, ldexpf(1.0f + (float)i / 16.0f, i - 6));
        c->bias[i] = (uint16_t)(0x3F80 + i);
    }
    c->act = 0.75f;
}

static void test_fnuz(void)
{
    static const moe_dtype scale_types[] = {MOE_F32, MOE_BF16, MOE_F16, MOE_E8M0, MOE_U8};
    for (size_t t = 0; t < sizeof scale_types / sizeof scale_types[0]; t++) {
        const moe_dtype type = scale_types[t];
        const moe_dtype meaning_type = type == MOE_U8 ? MOE_E8M0 : type;
        fp8_case a;
        fp8_case b;
        fp8_case back;
        fill_fp8(&a, type);
        memset(&b, POISON, sizeof b);
        memset(&back, 0, sizeof back);
        moe_matrix_source src = fp8_source(&a, MOE_E4M3FN, type);
        const moe_matrix_source dst = fp8_source(&b, MOE_E4M3FNUZ, type);
        CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_OK, "%s", moe_last_error());
        int changed = 0;
        int codes = 0;
        for (int64_t i = 0; i < 3 * FP8_ROWS * FP8_COLS; i++) {
            const int bits = moe_dtype_bits(type);
            const float was = decode(MOE_E4M3FN, a.codes[i]) *
                              decode(meaning_type, get_bits(a.scales, bits, i / FP8_COLS));
            const float is = moei_e4m3fnuz_to_f32(b.codes[i]) *
                             decode(meaning_type, get_bits(b.scales, bits, i / FP8_COLS));
            changed += was != is;
            codes += b.codes[i] != (a.codes[i] == 0x80 ? 0 : a.codes[i]);
        }
        CHECK(changed == 0 && codes == 0, "%s: %d values and %d codes changed",
              moe_dtype_name(type), changed, codes);
        CHECK(b.act == 1.5f, "activation scale 0.75 became %g", (double)b.act);
        CHECK(memcmp(a.bias, b.bias, sizeof a.bias) == 0, "bias[0] is %#x, was %#x", b.bias[0],
              a.bias[0]);

        const moe_matrix_source restored = fp8_source(&back, MOE_E4M3FN, type);
        CHECK(moe_layout_from_fnuz(&dst, &restored) == MOE_OK, "%s", moe_last_error());
        for (size_t i = 0; i < sizeof a.codes; i++) {
            a.codes[i] = a.codes[i] == 0x80 ? 0 : a.codes[i]; // the sign of zero is lost
        }
        CHECK(memcmp(&a, &back, sizeof a) == 0, "%s: not restored", moe_dtype_name(type));

        // In place, as U8.
        src = fp8_source(&a, MOE_U8, type);
        CHECK(moe_layout_to_fnuz(&src, &src) == MOE_OK, "%s", moe_last_error());
        CHECK(memcmp(a.codes, b.codes, sizeof a.codes) == 0 &&
                  memcmp(a.scales, b.scales, sizeof a.scales) == 0 && a.act == b.act,
              "%s: in place differs", moe_dtype_name(type));
    }
}

// One bad element: the message names it, and nothing is written.
static void refuse_fp8(bool to, int code_at_i, uint8_t code, moe_dtype type, int scale_i,
                       uint32_t scale, float act, const char *a, const char *b)
{
    fp8_case s;
    fp8_case d;
    fp8_case before;
    fill_fp8(&s, type);
    for (int i = 0; !to && i < (int)sizeof s.codes; i++) {
        s.codes[i] = (uint8_t)(i % 100);
    }
    memset(&d, POISON, sizeof d);
    before = d;
    if (code_at_i >= 0) {
        s.codes[code_at_i] = code;
    }
    if (scale_i >= 0) {
        put_bits(s.scales, moe_dtype_bits(type), scale_i, scale);
    }
    s.act = act;
    const moe_matrix_source src = fp8_source(&s, MOE_U8, type);
    const moe_matrix_source dst = fp8_source(&d, MOE_U8, type);
    const moe_status status =
        to ? moe_layout_to_fnuz(&src, &dst) : moe_layout_from_fnuz(&src, &dst);
    CHECK(status == MOE_E_VALUE && message_has(a, b), "%s: %s (wanted '%s' and '%s')",
          moe_status_name(status), moe_last_error(), a, b);
    CHECK(memcmp(&d, &before, sizeof d) == 0, "a refused call wrote: %s", moe_last_error());
}

static void test_fnuz_refusals(void)
{
    const int at = (2 * FP8_ROWS + 3) * FP8_COLS + 259;
    refuse_fp8(true, at, 0x7F, MOE_F32, -1, 0, 1.0f, "values of expert 2: element [3, 259]",
               "0x7F");
    refuse_fp8(true, 5, 0xFF, MOE_F32, -1, 0, 1.0f, "values of expert 0: element [0, 5]", "0xFF");
    refuse_fp8(true, -1, 0, MOE_E8M0, 6, 254, 1.0f, "scales of expert 1: element [2, 0]", "0xFE");
    refuse_fp8(true, -1, 0, MOE_E8M0, 11, 255, 1.0f, "scales of expert 2: element [3, 0]", "0xFF");
    refuse_fp8(true, -1, 0, MOE_F32, 0, 0x7F000000, 1.0f, "element [0, 0]", "0x7F000000");
    refuse_fp8(true, -1, 0, MOE_F32, 0, 0x7FC00000, 1.0f, "0x7FC00000", "NaN");
    refuse_fp8(true, -1, 0, MOE_BF16, 1, 0x7F00, 1.0f, "element [1, 0]", "0x7F00");
    refuse_fp8(true, -1, 0, MOE_F16, 1, 0x7800, 1.0f, "element [1, 0]", "0x7800");
    refuse_fp8(true, -1, 0, MOE_F32, -1, 0, INFINITY, "act_scale", "infinite");
    refuse_fp8(false, at, 0x80, MOE_F32, -1, 0, 1.0f, "values of expert 2: element [3, 259]",
               "0x80");
    refuse_fp8(false, 7, 0x7F, MOE_F32, -1, 0, 1.0f, "element [0, 7]", "0x7F");
    refuse_fp8(false, 7, 0xFF, MOE_F32, -1, 0, 1.0f, "element [0, 7]", "0xFF");
    refuse_fp8(false, -1, 0, MOE_E8M0, 0, 0, 1.0f, "element [0, 0]", "0x00");
    refuse_fp8(false, -1, 0, MOE_F32, 0, 1, 1.0f, "element [0, 0]", "0x00000001");

    fp8_case a;
    fp8_case b;
    fill_fp8(&a, MOE_F32);
    fill_fp8(&b, MOE_F32);
    moe_matrix_source src = fp8_source(&a, MOE_U8, MOE_F32);
    moe_matrix_source dst = fp8_source(&b, MOE_U8, MOE_F32);
    dst.values.data = a.codes + 1;
    CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_E_OVERLAP &&
              message_has("dst.values", "src.values"),
          "one byte beside: %s", moe_last_error());
    dst = fp8_source(&b, MOE_U8, MOE_F32);
    dst.scales = dst.values;
    CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_E_DTYPE && message_has("dst.scales", "f32"), "%s",
          moe_last_error());
    dst = fp8_source(&b, MOE_U8, MOE_F32);
    dst.act_scale.data = NULL;
    CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_E_ARGUMENT &&
              message_has("src.act_scale is given", "dst.act_scale is absent"),
          "%s", moe_last_error());
    src.scale2 = src.act_scale;
    CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_E_ARGUMENT && message_has("scale2", "e4m3fn"), "%s",
          moe_last_error());
    src = fp8_source(&a, MOE_E4M3FNUZ, MOE_F32);
    CHECK(moe_layout_to_fnuz(&src, &src) == MOE_E_DTYPE && message_has("e4m3fnuz", "e4m3fn or"),
          "%s", moe_last_error());
}

// ---- 4-bit integers -------------------------------------------------------------------------

typedef struct packing_case {
    moe_int4_packing packing;
    moe_dtype dtype;
    const char *name;
} packing_case;

static const packing_case packings[] = {
    {MOE_INT4_CANONICAL, MOE_U8, "canonical bytes"},
    {MOE_INT4_CANONICAL, MOE_UINT4, "canonical"},
    {MOE_INT4_COMPRESSED_TENSORS, MOE_I32, "compressed-tensors"},
    {MOE_INT4_GPTQ, MOE_I32, "gptq"},
    {MOE_INT4_GPTQ_V2, MOE_U32, "gptq v2"},
    {MOE_INT4_AWQ, MOE_I32, "awq"},
    {MOE_INT4_ROW_PAIRS, MOE_U8, "row pairs"},
};
enum { NUM_PACKINGS = sizeof packings / sizeof packings[0], NUM_CODE_PACKINGS = NUM_PACKINGS - 1 };

// Column of nibble i of an AWQ word.
static const int awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

static bool by_columns(moe_int4_packing p)
{
    return p == MOE_INT4_GPTQ || p == MOE_INT4_GPTQ_V2 || p == MOE_INT4_AWQ;
}

static box make_codes(const packing_case *p, int64_t e, int64_t n, int64_t k, spread sp)
{
    const int64_t canonical[3] = {e, n, p->dtype == MOE_U8 ? (k + 1) / 2 : k};
    const int64_t words[3] = {e, n, (k + 7) / 8};
    const int64_t gptq[3] = {e, k / 8, n};
    const int64_t awq[3] = {e, k, n / 8};
    return make_box(p->dtype, 3,
                    p->packing == MOE_INT4_CANONICAL            ? canonical
                    : p->packing == MOE_INT4_COMPRESSED_TENSORS ? words
                    : p->packing == MOE_INT4_AWQ                ? awq
                                                                : gptq,
                    sp);
}

// Writes codes[e][n][k] as the packing's text says, word by word.
static void pack_codes(const packing_case *p, const box *b, int64_t n, int64_t k,
                       const uint8_t *codes)
{
    const moe_tensor *t = &b->t;
    for (int64_t e = 0; e < t->shape[0]; e++) {
        const uint8_t *c = codes + e * n * k;
        for (int64_t i = 0; i < t->shape[1]; i++) {
            for (int64_t j = 0; j < t->shape[2]; j++) {
                uint32_t word = 0;
                const int nibbles = moe_dtype_bits(p->dtype) / 4;
                for (int x = 0; x < nibbles; x++) {
                    int64_t row = i;
                    int64_t col = nibbles * j + x;
                    if (p->packing == MOE_INT4_AWQ) {
                        row = 8 * j + awq_order[x];
                        col = i;
                    } else if (by_columns(p->packing)) {
                        row = j;
                        col = 8 * i + x;
                    }
                    word |= (uint32_t)(col < k ? c[row * k + col] : 0) << (4 * x);
                }
                put3(t, e, i, j, word);
            }
            if (p->dtype == MOE_UINT4 && k % 2 != 0) {
                put_bits(row_at(t, e, i), 4, k, 0);
            }
        }
    }
}

static void test_int4_values(void)
{
    static const int64_t shapes[][3] = {{1, 8, 8},   {3, 16, 40},  {1, 5, 16},   {3, 9, 7},
                                        {1, 24, 33}, {1, 320, 80}, {2, 8, 2880}, {1, 16, 9}};
    for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
        const int64_t experts = shapes[j][0];
        const int64_t n = shapes[j][1];
        const int64_t k = shapes[j][2];
        for (int pair = 0; pair < NUM_CODE_PACKINGS * NUM_CODE_PACKINGS; pair++) {
            const packing_case *p = &packings[pair / NUM_CODE_PACKINGS];
            const packing_case *q = &packings[pair % NUM_CODE_PACKINGS];
            const bool words = by_columns(p->packing) || by_columns(q->packing);
            const bool awq = p->packing == MOE_INT4_AWQ || q->packing == MOE_INT4_AWQ;
            const bool gptq = (words && !awq) || p->packing == MOE_INT4_GPTQ ||
                              q->packing == MOE_INT4_GPTQ || p->packing == MOE_INT4_GPTQ_V2 ||
                              q->packing == MOE_INT4_GPTQ_V2;
            const bool exact = words || p->dtype == MOE_UINT4 || q->dtype == MOE_UINT4;
            if ((awq && n % 8 != 0) || (gptq && k % 8 != 0) || (!exact && k % 2 != 0)) {
                continue;
            }
            uint8_t *codes = keep((size_t)(experts * n * k));
            for (int64_t i = 0; i < experts * n * k; i++) {
                codes[i] = (uint8_t)(random32() & 15);
            }
            const spread sp = spreads[pair % 2];
            box src = make_codes(p, experts, n, k, sp);
            box dst = make_codes(q, experts, n, k, sp);
            const box image = twin(&dst);
            pack_codes(p, &src, n, k, codes);
            pack_codes(q, &image, n, k, codes);
            const box before = copy_of(&src);
            CHECK(moe_layout_int4_values(p->packing, &src.t, q->packing, &dst.t) == MOE_OK,
                  "%s -> %s: %s", p->name, q->name, moe_last_error());
            CHECK(equal(&dst, &image) && equal(&src, &before),
                  "%s -> %s: [%" PRId64 ", %" PRId64 "] bytes differ", p->name, q->name, n, k);
            box back = twin(&src);
            CHECK(moe_layout_int4_values(q->packing, &dst.t, p->packing, &back.t) == MOE_OK &&
                      equal(&back, &src),
                  "%s -> %s: not restored: %s", p->name, q->name, moe_last_error());
            release_all();
        }
    }
}

// compressed-tensors words are canonical bytes already where K % 8 = 0: byte b of a word holds its
// nibbles 2b and 2b + 1, which are columns 8w + 2b and 8w + 2b + 1, low nibble first.
static void test_int4_reinterpretation(void)
{
    enum { N = 6, K = 64 };
    uint32_t words[N][K / 8];
    uint8_t bytes[N][K / 2] = {{0}};
    for (int n = 0; n < N; n++) {
        for (int w = 0; w < K / 8; w++) {
            words[n][w] = random32();
        }
    }
    const moe_tensor src = moe_tensor_2d(words, MOE_I32, N, K / 8);
    const moe_tensor dst = moe_tensor_2d(bytes, MOE_U8, N, K / 2);
    CHECK(moe_layout_int4_values(MOE_INT4_COMPRESSED_TENSORS, &src, MOE_INT4_CANONICAL, &dst) ==
              MOE_OK,
          "%s", moe_last_error());
    CHECK(memcmp(words, bytes, sizeof bytes) == 0, "byte %d differs from word %d", 0, 0);
    int wrong = 0;
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            wrong += (words[n][k / 8] >> (4 * (k % 8)) & 15) !=
                     (uint32_t)(bytes[n][k / 2] >> (4 * (k % 2)) & 15);
        }
    }
    CHECK(wrong == 0, "%d of %d codes differ", wrong, N * K);
    // Offset binary with the format's zero point 8: the nibble of value v is v + 8.
    CHECK(moei_format(MOE_FORMAT_INT4_GROUP)->zero_point == 8, "zero point is %d",
          (int)moei_format(MOE_FORMAT_INT4_GROUP)->zero_point);
}

static box make_zeros(const packing_case *p, int64_t e, int64_t n, int64_t g, spread sp)
{
    const int64_t rows = p->packing == MOE_INT4_ROW_PAIRS            ? (n + 1) / 2
                         : p->packing == MOE_INT4_COMPRESSED_TENSORS ? (n + 7) / 8
                                                                     : n;
    const int64_t by_row[3] = {e, rows, g};
    const int64_t by_group[3] = {e, g, n / 8};
    return make_box(p->dtype, 3, by_columns(p->packing) ? by_group : by_row, sp);
}

static void pack_zeros(const packing_case *p, const box *b, int64_t n, int64_t g,
                       const uint8_t *zeros)
{
    const moe_tensor *t = &b->t;
    const int minus = p->packing == MOE_INT4_GPTQ ? 1 : 0;
    for (int64_t e = 0; e < t->shape[0]; e++) {
        for (int64_t i = 0; i < t->shape[1]; i++) {
            for (int64_t j = 0; j < t->shape[2]; j++) {
                uint32_t v = 0;
                const int nibbles =
                    p->packing == MOE_INT4_CANONICAL ? 1 : moe_dtype_bits(p->dtype) / 4;
                for (int x = 0; x < nibbles; x++) {
                    const int64_t row = p->packing == MOE_INT4_AWQ ? 8 * j + awq_order[x]
                                        : by_columns(p->packing)   ? 8 * j + x
                                                                   : nibbles * i + x;
                    const int64_t group = by_columns(p->packing) ? i : j;
                    const int zero = row < n ? zeros[(e * n + row) * g + group] - minus : 0;
                    v |= (uint32_t)zero << (4 * x);
                }
                put3(t, e, i, j, v);
            }
            if (p->dtype == MOE_UINT4 && g % 2 != 0) {
                put_bits(row_at(t, e, i), 4, g, 0);
            }
        }
    }
}

static void test_int4_zero_points(void)
{
    static const int64_t shapes[][3] = {{1, 8, 1}, {3, 16, 5}, {3, 9, 3}, {1, 320, 2}, {1, 5, 23}};
    for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
        const int64_t experts = shapes[j][0];
        const int64_t n = shapes[j][1];
        const int64_t g = shapes[j][2];
        for (int pair = 0; pair < NUM_PACKINGS * NUM_PACKINGS; pair++) {
            const packing_case *p = &packings[pair / NUM_PACKINGS];
            const packing_case *q = &packings[pair % NUM_PACKINGS];
            if ((by_columns(p->packing) || by_columns(q->packing)) && n % 8 != 0) {
                continue;
            }
            uint8_t *zeros = keep((size_t)(experts * n * g));
            const bool v1 = p->packing == MOE_INT4_GPTQ || q->packing == MOE_INT4_GPTQ;
            for (int64_t i = 0; i < experts * n * g; i++) {
                zeros[i] = (uint8_t)(v1 ? 1 + random32() % 15 : random32() % 16);
            }
            const spread sp = spreads[pair % 2];
            box src = make_zeros(p, experts, n, g, sp);
            box dst = make_zeros(q, experts, n, g, sp);
            const box image = twin(&dst);
            pack_zeros(p, &src, n, g, zeros);
            pack_zeros(q, &image, n, g, zeros);
            CHECK(moe_layout_int4_zero_points(n, p->packing, &src.t, q->packing, &dst.t) == MOE_OK,
                  "%s -> %s: %s", p->name, q->name, moe_last_error());
            CHECK(equal(&dst, &image), "%s -> %s: [%" PRId64 ", %" PRId64 "] bytes differ", p->name,
                  q->name, n, g);
            box back = twin(&src);
            CHECK(moe_layout_int4_zero_points(n, q->packing, &dst.t, p->packing, &back.t) ==
                          MOE_OK &&
                      equal(&back, &src),
                  "%s -> %s: not restored: %s", p->name, q->name, moe_last_error());
            release_all();
        }
    }
}

// GPTQ's first form stores zp - 1: 15 means 16, which a byte holds and a nibble does not.
static void test_int4_zero_point_limits(void)
{
    uint32_t words[2] = {0x77F77777u, 0x77777777u};
    uint32_t back[2] = {0, 0};
    uint8_t bytes[16] = {0};
    uint8_t pairs[8];
    memset(pairs, POISON, sizeof pairs);
    const moe_tensor gptq = moe_tensor_2d(words, MOE_I32, 1, 2);
    const moe_tensor again = moe_tensor_2d(back, MOE_I32, 1, 2);
    const moe_tensor byte = moe_tensor_2d(bytes, MOE_U8, 16, 1);
    const moe_tensor pair = moe_tensor_2d(pairs, MOE_U8, 8, 1);
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_GPTQ, &gptq, MOE_INT4_CANONICAL, &byte) ==
              MOE_OK,
          "%s", moe_last_error());
    CHECK(bytes[5] == 16 && bytes[0] == 8, "zero points %d and %d, must be 16 and 8", bytes[5],
          bytes[0]);
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_CANONICAL, &byte, MOE_INT4_GPTQ, &again) ==
                  MOE_OK &&
              memcmp(words, back, sizeof words) == 0,
          "words %08" PRIx32 " and %08" PRIx32, back[0], back[1]);
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_GPTQ, &gptq, MOE_INT4_ROW_PAIRS, &pair) ==
                  MOE_E_VALUE &&
              message_has("row 5, group 0 is 16", "0..15") && pairs[0] == POISON,
          "%s", moe_last_error());
    bytes[3] = 0;
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_CANONICAL, &byte, MOE_INT4_GPTQ, &again) ==
                  MOE_E_VALUE &&
              message_has("row 3, group 0 is 0", "1..16") && back[0] == words[0],
          "%s", moe_last_error());
}

// A GPTQ layer becomes a canonical matrix: codes, zero points, and scales by transposition. The
// numbers are (code - zp) * scale, computed from GPTQ's own words.
static void test_gptq_layer(void)
{
    enum { N = 16, K = 64, G = 2 };
    uint32_t qweight[K / 8][N];
    uint32_t qzeros[G][N / 8];
    float scales[G][N];
    for (int i = 0; i < K / 8 * N; i++) {
        qweight[i / N][i % N] = random32();
    }
    for (int i = 0; i < G * N / 8; i++) {
        qzeros[i / (N / 8)][i % (N / 8)] = random32() & 0x77777777u;
    }
    for (int i = 0; i < G * N; i++) {
        scales[i / N][i % N] = 1.0f + (float)(random32() % 64) / 64.0f;
    }
    matrix_case c = {MOE_FORMAT_INT4_GROUP, 32, MOE_F32, AS_BYTES, BYTES, 1, false};
    const moe_matrix_layout l = layout_of(&c, MOE_GATE_UP_UNSET, 1, N, K);
    side s = make_side(&c, &l, spreads[0]);
    const moe_tensor w = moe_tensor_2d(qweight, MOE_I32, K / 8, N);
    const moe_tensor z = moe_tensor_2d(qzeros, MOE_I32, G, N / 8);
    const moe_tensor f = moe_tensor_3d(scales, MOE_F32, 1, G, N);
    CHECK(moe_layout_int4_values(MOE_INT4_GPTQ, &w, MOE_INT4_CANONICAL, &s.boxes[VALUES].t) ==
                  MOE_OK &&
              moe_layout_int4_zero_points(N, MOE_INT4_GPTQ, &z, MOE_INT4_CANONICAL,
                                          &s.boxes[ZEROS].t) == MOE_OK &&
              moe_layout_transpose(&f, &s.boxes[SCALES].t) == MOE_OK,
          "%s", moe_last_error());
    int wrong = 0;
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            const int g = k / 32;
            const int code = (int)(qweight[k / 8][n] >> (4 * (k % 8)) & 15);
            const int zero = (int)(qzeros[g][n / 8] >> (4 * (n % 8)) & 15) + 1;
            wrong += meaning(&c, &s, 0, 0, n, k) != (float)(code - zero) * scales[g][n];
        }
    }
    CHECK(wrong == 0, "%d of %d values differ", wrong, N * K);
    release_all();
}

// ---- refusals -------------------------------------------------------------------------------

#define REFUSED(call, status, a, b)                                                                \
    do {                                                                                           \
        const moe_status got = (call);                                                             \
        CHECK(got == (status) && message_has(a, b), "%s, wanted %s: '%s' lacks '%s' or '%s'",      \
              moe_status_name(got), moe_status_name(status), moe_last_error(), a, b);              \
    } while (0)

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
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_ARGUMENT, "src.scales is given",
            "dst.scales is absent");
    src.scales.data = NULL;
    dst = src;
    REFUSED(moe_layout_convert(&from, &src, &to, &dst), MOE_E_OVERLAP, "dst.values", "src.values");
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
    bad.struct_size = 8;
    REFUSED(moe_layout_convert(&bad, &src, &good, &src), MOE_E_VERSION, "= 8", "knows");
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

static void test_tile_refusals(void)
{
    static uint8_t a[64 * 64];
    static uint8_t b[64 * 64];
    int64_t shape[2];
    const moe_tensor plain = moe_tensor_2d(a, MOE_U8, 33, 9);
    moe_tensor tiled = moe_tensor_2d(b, MOE_U8, 64, 16);
    CHECK(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled) == MOE_OK, "%s",
          moe_last_error());
    REFUSED(moe_layout_tile(MOE_TILING_UNSET, &plain, &tiled), MOE_E_UNSET, "tiling", "unset");
    REFUSED(moe_layout_tile(9, &plain, &tiled), MOE_E_ARGUMENT, "9", "1..4");
    REFUSED(moe_layout_untile(MOE_TILING_CDNA4_SCALES, NULL, &plain), MOE_E_ARGUMENT, "src",
            "NULL");
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, NULL), MOE_E_ARGUMENT, "dst", "NULL");
    tiled = moe_tensor_2d(b, MOE_U8, 33, 16);
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled), MOE_E_SHAPE, "33 rows", "32");
    tiled = moe_tensor_2d(b, MOE_U8, 64, 12);
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled), MOE_E_SHAPE, "12 columns",
            "of 8");
    tiled = moe_tensor_2d(b, MOE_U8, 32, 16);
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled), MOE_E_SHAPE, "33 x 9",
            "32 x 16");
    tiled = moe_tensor_2d(b, MOE_U8, 64, 16);
    tiled.stride[0] = 17;
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled), MOE_E_SHAPE, "17", "16");
    tiled = moe_tensor_2d(b, MOE_E8M0, 64, 16);
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled), MOE_E_DTYPE, "e8m0", "uint8");
    tiled = moe_tensor_2d(a + 100, MOE_U8, 64, 16);
    REFUSED(moe_layout_tile(MOE_TILING_CDNA4_SCALES, &plain, &tiled), MOE_E_OVERLAP, "src", "dst");
    const moe_tensor weights = moe_tensor_2d(a, MOE_E2M1, 16, 96);
    const moe_tensor shuffled = moe_tensor_2d(b, MOE_E2M1, 16, 96);
    REFUSED(moe_layout_tile(MOE_TILING_16X16_WEIGHTS, &weights, &shuffled), MOE_E_SHAPE,
            "96 columns", "of 64");
    REFUSED(moe_layout_tiled_shape(MOE_TILING_128X4_SCALES, MOE_F32, 1, 1, shape), MOE_E_DTYPE,
            "f32", "8 bits");
    REFUSED(moe_layout_tiled_shape(MOE_TILING_128X4_SCALES, 77, 1, 1, shape), MOE_E_DTYPE,
            "unknown", "8 bits");
    REFUSED(moe_layout_tiled_shape(MOE_TILING_128X4_SCALES, MOE_U8, -1, 1, shape), MOE_E_ARGUMENT,
            "-1", "0");
    REFUSED(moe_layout_tiled_shape(MOE_TILING_128X4_SCALES, MOE_U8, INT64_MAX, 1, shape),
            MOE_E_OVERFLOW, "9223372036854775807", "2147483647");
    REFUSED(moe_layout_tiled_shape(MOE_TILING_128X4_SCALES, MOE_U8, 1, 1, NULL), MOE_E_ARGUMENT,
            "tiled", "NULL");
}

static void test_int4_refusals(void)
{
    static uint8_t a[1024];
    static uint8_t b[1024];
    const moe_tensor words = moe_tensor_2d(a, MOE_I32, 4, 2); // 4 rows, 16 columns
    const moe_tensor bytes = moe_tensor_2d(b, MOE_U8, 4, 8);
    const moe_tensor few = moe_tensor_2d(b, MOE_U8, 4, 3);
    const moe_tensor rows = moe_tensor_2d(b, MOE_U8, 5, 8);
    const moe_int4_packing ct = MOE_INT4_COMPRESSED_TENSORS;
    const moe_int4_packing us = MOE_INT4_CANONICAL;
    REFUSED(moe_layout_int4_values(0, &words, us, &bytes), MOE_E_UNSET, "from", "unset");
    REFUSED(moe_layout_int4_values(ct, &words, 7, &bytes), MOE_E_ARGUMENT, "to = 7", "1..6");
    REFUSED(moe_layout_int4_values(ct, NULL, us, &bytes), MOE_E_ARGUMENT, "src", "NULL");
    REFUSED(moe_layout_int4_values(ct, &words, MOE_INT4_ROW_PAIRS, &bytes), MOE_E_UNSUPPORTED, "2",
            "zero points");
    REFUSED(moe_layout_int4_values(ct, &words, us, &few), MOE_E_SHAPE, "16 columns", "dst 6");
    REFUSED(moe_layout_int4_values(ct, &words, us, &rows), MOE_E_SHAPE, "4 rows", "dst 5");
    REFUSED(moe_layout_int4_values(ct, &bytes, us, &rows), MOE_E_DTYPE, "uint8", "int32");
    const moe_tensor same = moe_tensor_2d(a + 4, MOE_U8, 4, 8);
    REFUSED(moe_layout_int4_values(ct, &words, us, &same), MOE_E_OVERLAP, "dst", "src");
    const moe_tensor zeros = moe_tensor_2d(a, MOE_I32, 3, 1); // 3 groups, 8 rows
    const moe_tensor out = moe_tensor_2d(b, MOE_U8, 8, 2);
    REFUSED(moe_layout_int4_zero_points(8, MOE_INT4_AWQ, &zeros, us, &out), MOE_E_SHAPE, "3 groups",
            "and 2");
    REFUSED(moe_layout_int4_zero_points(9, MOE_INT4_AWQ, &zeros, us, &out), MOE_E_SHAPE, "9", "8");
    REFUSED(moe_layout_int4_zero_points(-1, MOE_INT4_AWQ, &zeros, us, &out), MOE_E_ARGUMENT, "-1",
            "0..");
    const moe_tensor packed = moe_tensor_2d(a, MOE_UINT4, 8, 4);
    const moe_tensor also = moe_tensor_2d(b, MOE_UINT4, 4, 8);
    REFUSED(moe_layout_transpose(&packed, &also), MOE_E_DTYPE, "uint4", "f32");
    REFUSED(moe_layout_transpose(NULL, &also), MOE_E_ARGUMENT, "src", "NULL");
    const moe_tensor wide = moe_tensor_2d(a, MOE_BF16, 8, 4);
    const moe_tensor flat = moe_tensor_2d(b, MOE_BF16, 8, 4);
    REFUSED(moe_layout_transpose(&wide, &flat), MOE_E_SHAPE, "[1, 8, 4]", "[1, 4, 8]");
}

int main(void)
{
    test_tilings();
    test_cdna4_wave();
    test_convert();
    test_convert_transposed();
    test_convert_column_scales();
    test_sizes();
    test_transpose();
    test_fnuz();
    test_fnuz_refusals();
    test_int4_values();
    test_int4_reinterpretation();
    test_int4_zero_points();
    test_int4_zero_point_limits();
    test_gptq_layer();
    test_convert_refusals();
    test_layout_refusals();
    test_padding_refusal();
    test_tile_refusals();
    test_int4_refusals();
    return test_summary();
}
