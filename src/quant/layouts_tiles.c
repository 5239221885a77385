// SPDX-License-Identifier: Apache-2.0
// Tiled orders of a matrix's bytes. A tiling is one row of the table below: the multiples that it
// needs, the run of bytes of a row that stays together, and the place of a run, which is a sum of
// what its row and what its column contribute.
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "quant/layouts.h"

// 32 rows x 8 columns become 256 bytes, from which lane 16 (c % 4) + r % 16 of a wave loads the
// four at 4 lane: rows r and r + 16 of column c, then of column c + 4.
static int64_t cdna4_row(int64_t r, int64_t row_bytes)
{
    return r / 32 * 32 * row_bytes + r % 16 * 4 + r / 16 % 2;
}

static int64_t cdna4_col(int64_t c, int64_t rows)
{
    (void)rows;
    return c / 8 * 256 + c % 4 * 64 + c / 4 % 2 * 2;
}

// 128 rows x 4 columns become 512 bytes: 16 for each of 32 rows, four for it and the three rows 32,
// 64 and 96 below.
static int64_t b128x4_row(int64_t r, int64_t row_bytes)
{
    return r / 128 * 128 * row_bytes + r % 32 * 16 + r % 128 / 32 * 4;
}

static int64_t b128x4_col(int64_t c, int64_t rows)
{
    (void)rows;
    return c / 4 * 512;
}

// Four columns at a time: all rows of the first four, all rows of the next, ...
static int64_t hopper_row(int64_t r, int64_t row_bytes)
{
    (void)row_bytes;
    return r * 4;
}

static int64_t hopper_col(int64_t c, int64_t rows)
{
    return c / 4 * 4 * rows;
}

// 16 rows x 16 bytes become 256 bytes; the tiles of 16 rows follow each other.
static int64_t w16x16_row(int64_t r, int64_t row_bytes)
{
    return r / 16 * 16 * row_bytes + r % 16 * 16;
}

static int64_t w16x16_col(int64_t c, int64_t rows)
{
    (void)rows;
    return c / 16 * 256;
}

typedef struct tiling_info {
    const char *name;
    int64_t row_multiple, col_multiple; // in rows and elements (packed: bytes)
    int64_t run;                        // bytes of a row that stay together
    int64_t (*row)(int64_t r, int64_t row_bytes);
    int64_t (*col)(int64_t c, int64_t rows); // c: byte of the row, a multiple of the run
    bool weights;                            // else scales: a byte an element, may be padded
} tiling_info;

static const tiling_info tilings[] = {
    [MOE_TILING_CDNA4_SCALES] = {"CDNA4_SCALES", 32, 8, 1, cdna4_row, cdna4_col, false},
    [MOE_TILING_128X4_SCALES] = {"128X4_SCALES", 128, 4, 4, b128x4_row, b128x4_col, false},
    [MOE_TILING_HOPPER_SCALES] = {"HOPPER_SCALES", 1, 4, 4, hopper_row, hopper_col, false},
    [MOE_TILING_16X16_WEIGHTS] = {"16X16_WEIGHTS", 16, 32, 16, w16x16_row, w16x16_col, true},
};

static moe_status find_tiling(moe_tiling tiling, const char *call, const tiling_info **out)
{
    const int32_t known = (int32_t)(sizeof tilings / sizeof tilings[0]);
    MOE_REQUIRE(tiling != MOE_TILING_UNSET, MOE_E_UNSET, "%s: tiling is unset", call);
    MOE_REQUIRE(tiling > 0 && tiling < known, MOE_E_ARGUMENT, "%s: tiling = %d, must be 1..%d",
                call, (int)tiling, (int)known - 1);
    *out = &tilings[tiling];
    return MOE_OK;
}

static uint32_t tiling_dtypes(const tiling_info *info)
{
    uint32_t mask = 0;
    for (moe_dtype d = 1; d < 32; d++) {
        const int bits = moe_dtype_bits(d);
        if (bits == 8 || (info->weights && (bits == 4 || bits == 16))) {
            mask |= MOEI_DTYPE_BIT(d);
        }
    }
    return mask;
}

static int64_t col_multiple(const tiling_info *info, moe_dtype dtype)
{
    return moe_dtype_bits(dtype) == 4 ? 2 * info->col_multiple : info->col_multiple;
}

moe_status moe_layout_tiled_shape(moe_tiling tiling, moe_dtype dtype, int64_t rows, int64_t cols,
                                  int64_t tiled[2])
{
    static const char call[] = "moe_layout_tiled_shape";
    const tiling_info *info = NULL;
    MOE_TRY(find_tiling(tiling, call, &info));
    MOE_REQUIRE(tiled != NULL, MOE_E_ARGUMENT, "%s: tiled is NULL", call);
    MOE_REQUIRE(dtype >= 0 && dtype < 32 && (tiling_dtypes(info) & MOEI_DTYPE_BIT(dtype)) != 0,
                MOE_E_DTYPE, "%s: dtype = %s, tiling %s takes elements of %s bits", call,
                moe_dtype_name(dtype), info->name, info->weights ? "4, 8 or 16" : "8");
    MOE_REQUIRE(rows >= 0 && cols >= 0, MOE_E_ARGUMENT,
                "%s: rows = %" PRId64 " and cols = %" PRId64 ", must be at least 0", call, rows,
                cols);
    MOE_REQUIRE(rows <= INT32_MAX && cols <= INT32_MAX, MOE_E_OVERFLOW,
                "%s: rows = %" PRId64 " and cols = %" PRId64 ", at most %" PRId32, call, rows, cols,
                INT32_MAX);
    tiled[0] = moei_i64_round_up(rows, info->row_multiple);
    tiled[1] = moei_i64_round_up(cols, col_multiple(info, dtype));
    return MOE_OK;
}

// ---- views --------------------------------------------------------------------------------------

// Both sides with all dimensions; columns as bytes.
typedef struct tile_views {
    moe_tensor plain, tiled;
    int64_t plain_bytes, tiled_bytes; // of a row
} tile_views;

static moe_status check_tiles(const tiling_info *info, const moe_tensor *plain,
                              const moe_tensor *tiled, bool forward, const char *call,
                              tile_views *out)
{
    const char *plain_name = forward ? "src" : "dst";
    const char *tiled_name = forward ? "dst" : "src";
    const int64_t any[3] = {-1, -1, -1};
    MOE_REQUIRE(plain != NULL && tiled != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                (plain == NULL) == forward ? "src" : "dst");
    const moe_tensor p = moei_tensor_with_experts(plain, 3);
    const moe_tensor t = moei_tensor_with_experts(tiled, 3);
    MOE_TRY(forward ? moei_layout_check_in(&p, call, plain_name, tiling_dtypes(info), 3, any)
                    : moei_layout_check_out(&p, call, plain_name, tiling_dtypes(info), 3, any));
    MOE_REQUIRE(p.stride[2] == 1 || p.shape[2] <= 1, MOE_E_SHAPE,
                "%s: %s has stride %" PRId64 " in its last dimension, must be 1", call, plain_name,
                p.stride[2]);
    const int64_t shape[3] = {p.shape[0], info->weights ? p.shape[1] : -1,
                              info->weights ? p.shape[2] : -1};
    MOE_TRY(moei_layout_check_out(&t, call, tiled_name, MOEI_DTYPE_BIT(p.dtype), 3, shape));
    MOE_REQUIRE(t.shape[1] >= p.shape[1] && t.shape[2] >= p.shape[2], MOE_E_SHAPE,
                "%s: %s is %" PRId64 " x %" PRId64 ", %s %" PRId64 " x %" PRId64
                " tiled, too small",
                call, plain_name, p.shape[1], p.shape[2], tiled_name, t.shape[1], t.shape[2]);
    MOE_REQUIRE(t.shape[1] % info->row_multiple == 0, MOE_E_SHAPE,
                "%s: %s has %" PRId64 " rows, tiling %s needs a multiple of %" PRId64, call,
                tiled_name, t.shape[1], info->name, info->row_multiple);
    const int64_t multiple = col_multiple(info, t.dtype);
    MOE_REQUIRE(t.shape[2] % multiple == 0, MOE_E_SHAPE,
                "%s: %s has %" PRId64 " columns, tiling %s needs a multiple of %" PRId64, call,
                tiled_name, t.shape[2], info->name, multiple);
    MOE_REQUIRE(t.shape[1] <= 1 || t.stride[1] == t.shape[2], MOE_E_SHAPE,
                "%s: %s has stride %" PRId64 " between rows of %" PRId64 ", must be compact", call,
                tiled_name, t.stride[1], t.shape[2]);
    MOE_TRY(moei_layout_disjoint(&p, plain_name, &t, tiled_name, call));
    out->plain = p;
    out->tiled = t;
    out->plain_bytes = p.shape[2] * moe_dtype_bits(p.dtype) / 8;
    out->tiled_bytes = t.shape[2] * moe_dtype_bits(t.dtype) / 8;
    return MOE_OK;
}

// The sizes of whole runs as constants: calls of memcpy would cost more than the copies.
static void copy_run(uint8_t *to, const uint8_t *from, int64_t bytes)
{
    switch (bytes) {
    case 1:
        *to = *from;
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    case 16:
        memcpy(to, from, 16);
        break;
    default:
        memcpy(to, from, (size_t)bytes);
        break;
    }
}

static uint8_t *expert_of(const moe_tensor *t, int64_t e)
{
    return moei_tensor_data(t) + e * moei_tensor_stride_bytes(t, 0);
}

// ---- the calls ----------------------------------------------------------------------------------

moe_status moe_layout_tile(moe_tiling tiling, const moe_tensor *src, const moe_tensor *dst)
{
    static const char call[] = "moe_layout_tile";
    const tiling_info *info = NULL;
    tile_views v;
    MOE_TRY(find_tiling(tiling, call, &info));
    MOE_TRY(check_tiles(info, src, dst, true, call, &v));
    const int64_t step = moei_tensor_stride_bytes(&v.plain, 1);
    for (int64_t e = 0; e < v.plain.shape[0]; e++) {
        const uint8_t *from = expert_of(&v.plain, e);
        uint8_t *to = expert_of(&v.tiled, e);
        for (int64_t r = 0; r < v.tiled.shape[1]; r++) {
            const int64_t have = r < v.plain.shape[1] ? v.plain_bytes : 0;
            uint8_t *row = to + info->row(r, v.tiled_bytes);
            for (int64_t c = 0; c < v.tiled_bytes; c += info->run) {
                uint8_t *run = row + info->col(c, v.tiled.shape[1]);
                const int64_t old = moei_i64_max(0, moei_i64_min(info->run, have - c));
                if (old > 0) {
                    copy_run(run, from + r * step + c, old);
                }
                if (old < info->run) {
                    memset(run + old, 0, (size_t)(info->run - old));
                }
            }
        }
    }
    return MOE_OK;
}

moe_status moe_layout_untile(moe_tiling tiling, const moe_tensor *src, const moe_tensor *dst)
{
    static const char call[] = "moe_layout_untile";
    const tiling_info *info = NULL;
    tile_views v;
    MOE_TRY(find_tiling(tiling, call, &info));
    MOE_TRY(check_tiles(info, dst, src, false, call, &v));
    const int64_t step = moei_tensor_stride_bytes(&v.plain, 1);
    for (int64_t e = 0; e < v.plain.shape[0]; e++) {
        const uint8_t *from = expert_of(&v.tiled, e);
        uint8_t *to = expert_of(&v.plain, e);
        for (int64_t r = 0; r < v.plain.shape[1]; r++) {
            const uint8_t *row = from + info->row(r, v.tiled_bytes);
            for (int64_t c = 0; c < v.plain_bytes; c += info->run) {
                copy_run(to + r * step + c, row + info->col(c, v.tiled.shape[1]),
                         moei_i64_min(info->run, v.plain_bytes - c));
            }
        }
    }
    return MOE_OK;
}
