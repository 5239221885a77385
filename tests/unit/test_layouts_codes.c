// SPDX-License-Identifier: Apache-2.0
// Layout converters of single tensors: tilings, transposition, FP8 dialects. Each
// result is compared as a whole piece of memory with an image that is written element by element
// from the layout's definition: a view and a permutation of axes, or words and nibbles.
#include <inttypes.h>
#include <math.h>

#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp8.h"
#include "numerics/int4.h"
#include "unit/layout_box.h"

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
    static const int64_t shapes[][2] = {{1, 1},    {16, 32},  {32, 8},    {128, 4},
                                        {33, 9},   {80, 90},  {160, 64},  {288, 10},
                                        {320, 84}, {2880, 9}, {48, 2880}, {16, 2688}};
    for (size_t i = 0; i < sizeof tiling_cases / sizeof tiling_cases[0]; i++) {
        for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
            for (int k = 0; k < 4; k++) {
                run_tiling(&tiling_cases[i], k % 2 == 0 ? 1 : 3, shapes[j][0], shapes[j][1], k / 2,
                           spreads[k % 2]);
            }
        }
    }
}

// Reads an MXFP4 matrix as kernels do, and compares with its canonical numbers. On gfx950 a lane of
// a wave of 64 holds, for 16 rows and 128 columns, 32 codes of row lane % 16 from column
// 32 (lane / 16) on: 16 bytes of the shuffled weights at 16 lane. Its scales lie in one dword, at 4
// lane of the tiled scales, for 32 rows and 256 columns; selector 2 (step of 128) + (half of the
// rows) picks the byte.
static void test_mx_consumers(void)
{
    enum { N = 128, K = 512, C = K / 32 };
    static uint8_t codes[N][K / 2];
    static uint8_t shuffled[N * K / 2];
    static uint8_t scales[N][C];
    static uint8_t cdna4[N * C];
    static uint8_t blackwell[N * C];
    static uint8_t hopper[N * C];
    for (int i = 0; i < N * K / 2; i++) {
        codes[i / (K / 2)][i % (K / 2)] = (uint8_t)random32();
    }
    for (int i = 0; i < N * C; i++) {
        scales[i / C][i % C] = (uint8_t)(100 + random32() % 50);
    }
    const moe_tensor w = moe_tensor_2d(codes, MOE_E2M1, N, K);
    const moe_tensor to_w = moe_tensor_2d(shuffled, MOE_E2M1, N, K);
    const moe_tensor s = moe_tensor_2d(scales, MOE_E8M0, N, C);
    const moe_tensor to_cdna4 = moe_tensor_2d(cdna4, MOE_E8M0, N, C);
    const moe_tensor to_blackwell = moe_tensor_2d(blackwell, MOE_E8M0, N, C);
    const moe_tensor to_hopper = moe_tensor_2d(hopper, MOE_E8M0, N, C);
    CHECK(moe_layout_tile(MOE_TILING_16X16_WEIGHTS, &w, &to_w) == MOE_OK &&
              moe_layout_tile(MOE_TILING_CDNA4_SCALES, &s, &to_cdna4) == MOE_OK &&
              moe_layout_tile(MOE_TILING_128X4_SCALES, &s, &to_blackwell) == MOE_OK &&
              moe_layout_tile(MOE_TILING_HOPPER_SCALES, &s, &to_hopper) == MOE_OK,
          "%s", moe_last_error());
    int wrong = 0;
    for (int tile = 0; tile < N / 16 * (K / 128); tile++) {
        const int rows = tile / (K / 128);
        const int step = tile % (K / 128);
        const uint8_t *wave = shuffled + rows * 16 * (K / 2) + step * 1024;
        const uint8_t *dwords = cdna4 + rows / 2 * 32 * C + step / 2 * 256;
        for (int lane = 0; lane < 64; lane++) {
            const float scale = moei_e8m0_to_f32(dwords[4 * lane + 2 * (step % 2) + rows % 2]);
            for (int i = 0; i < 32; i++) {
                const int n = 16 * rows + lane % 16;
                const int k = 128 * step + 32 * (lane / 16) + i;
                const float is = moei_e2m1_to_f32(moei_get_u4(wave + 16 * lane, (size_t)i)) * scale;
                const float was = moei_e2m1_to_f32(moei_get_u4(codes[n], (size_t)k)) *
                                  moei_e8m0_to_f32(scales[n][k / 32]);
                wrong += memcmp(&is, &was, sizeof is) != 0;
            }
        }
    }
    CHECK(wrong == 0, "gfx950: %d of %d values differ", wrong, N * K);
    wrong = 0;
    for (int n = 0; n < N; n++) {
        for (int c = 0; c < C; c++) {
            // 512 bytes hold 128 rows of four scales: [r % 32][r / 32][c % 4]
            wrong += blackwell[c / 4 * 512 + n % 32 * 16 + n / 32 * 4 + c % 4] != scales[n][c];
            // [C/4][R][4]
            wrong += hopper[(c / 4 * N + n) * 4 + c % 4] != scales[n][c];
        }
    }
    CHECK(wrong == 0, "%d of %d scales are not where their kernel looks", wrong, 2 * N * C);
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

static float load_scale(moe_dtype dtype, const uint8_t *p, int64_t i)
{
    const uint64_t bits = get_bits(p, moe_dtype_bits(dtype), i);
    switch (dtype) {
    case MOE_F32:
        return moei_f32_from_bits((uint32_t)bits);
    case MOE_BF16:
        return moei_bf16_to_f32((uint16_t)bits);
    case MOE_F16:
        return moei_f16_to_f32((uint16_t)bits);
    default:
        return moei_e8m0_to_f32((uint8_t)bits);
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
            const float was =
                moei_e4m3fn_to_f32(a.codes[i]) * load_scale(type, a.scales, i / FP8_COLS);
            const float is =
                moei_e4m3fnuz_to_f32(b.codes[i]) * load_scale(type, b.scales, i / FP8_COLS);
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
                  memcmp(a.scales, b.scales, 3 * FP8_ROWS * (size_t)moe_dtype_bits(type) / 8) ==
                      0 &&
                  a.act == b.act,
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
    dst.scales.data = a.codes;
    CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_E_OVERLAP &&
              message_has("dst.scales", "src.values"),
          "scales over values: %s", moe_last_error());
    dst = fp8_source(&b, MOE_U8, MOE_F32);
    dst.scales.data = b.codes;
    CHECK(moe_layout_to_fnuz(&src, &dst) == MOE_E_OVERLAP &&
              message_has("dst.scales", "dst.values"),
          "scales over values: %s", moe_last_error());
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
    CHECK(moe_layout_to_fnuz(&src, &src) == MOE_E_DTYPE && message_has("is e4m3fnuz", "or e4m3fn"),
          "%s", moe_last_error());
}

// ---- refusals -------------------------------------------------------------------------------

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

int main(void)
{
    test_tilings();
    test_mx_consumers();
    test_transpose();
    test_fnuz();
    test_fnuz_refusals();
    test_tile_refusals();
    return test_summary();
}
