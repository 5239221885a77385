// SPDX-License-Identifier: Apache-2.0
// Checks and strided copies that all converters share, and transposition.
#include "quant/layouts.h"

#include <inttypes.h>
#include <string.h>

moe_status moei_layout_check_in(const moe_tensor *t, const char *call, const char *name,
                                uint32_t dtypes, int ndim, const int64_t *shape)
{
    if (moe_dtype_bits(t->dtype) % 8 != 0) {
        MOE_TRY(
            moei_tensor_check(t, call, name, dtypes, ndim, shape)); // packed: the last stride is 1
    } else {
        MOE_TRY(moei_tensor_check_any_order(t, call, name, dtypes, ndim, shape));
    }
    MOE_REQUIRE(t->device == MOE_DEVICE_UNSET || t->device == MOE_DEVICE_CPU, MOE_E_UNSUPPORTED,
                "%s: %s lies on device %s, must be cpu", call, name, moe_device_name(t->device));
    return MOE_OK;
}

moe_status moei_layout_check_out(const moe_tensor *t, const char *call, const char *name,
                                 uint32_t dtypes, int ndim, const int64_t *shape)
{
    MOE_TRY(moei_layout_check_in(t, call, name, dtypes, ndim, shape));
    MOE_TRY(moei_tensor_check(t, call, name, dtypes, ndim, shape));
    int64_t span = 1; // elements from an index of dimension i to the end of what it holds
    for (int i = 0; i < ndim; i++) {
        if (t->shape[i] == 0) {
            return MOE_OK; // compact strides of an empty view may be 0
        }
    }
    for (int i = ndim; i-- > 0;) {
        MOE_REQUIRE(t->shape[i] <= 1 || t->stride[i] >= span, MOE_E_SHAPE,
                    "%s: %s has stride %" PRId64 " in dimension %d, which holds %" PRId64
                    " elements: an output must be row-major",
                    call, name, t->stride[i], i, span);
        span += t->shape[i] > 1 ? (t->shape[i] - 1) * t->stride[i] : 0;
    }
    return MOE_OK;
}

static bool is_empty(const moe_tensor *t)
{
    uintptr_t begin;
    uintptr_t end;
    moei_tensor_span(t, &begin, &end);
    return begin == end;
}

moe_status moei_layout_disjoint(const moe_tensor *a, const char *a_name, const moe_tensor *b,
                                const char *b_name, const char *call)
{
    MOE_REQUIRE(a->data == NULL || b->data == NULL || is_empty(a) || is_empty(b) ||
                    !moei_tensor_overlap(a, b),
                MOE_E_OVERLAP, "%s: %s (at %p) shares memory with %s (at %p)", call, a_name,
                (const void *)moei_tensor_data(a), b_name, (const void *)moei_tensor_data(b));
    return MOE_OK;
}

moei_plane moei_layout_plane(const moe_tensor *t)
{
    const moei_plane plane = {moei_tensor_data(t), moei_tensor_stride_bytes(t, 0),
                              moei_tensor_stride_bytes(t, 1), moei_tensor_stride_bytes(t, 2)};
    return plane;
}

// A square that both the reads and the writes of a transposition keep in the first-level cache.
#define TILE 32

#define COPY_TILES(SIZE)                                                                           \
    for (int64_t r0 = 0; r0 < rows; r0 += TILE) {                                                  \
        const int64_t r1 = moei_i64_min(r0 + TILE, rows);                                          \
        for (int64_t c0 = 0; c0 < cols; c0 += TILE) {                                              \
            const int64_t c1 = moei_i64_min(c0 + TILE, cols);                                      \
            for (int64_t r = r0; r < r1; r++) {                                                    \
                for (int64_t c = c0; c < c1; c++) {                                                \
                    memcpy(d->data + r * d->r_stride + c * d->c_stride,                            \
                           s->data + r * s->r_stride + c * s->c_stride, (SIZE));                   \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

void moei_layout_copy(const moei_plane *d, const moei_plane *s, int64_t rows, int64_t cols,
                      int64_t size)
{
    if (d->c_stride == size && s->c_stride == size) {
        for (int64_t r = 0; r < rows; r++) {
            memcpy(d->data + r * d->r_stride, s->data + r * s->r_stride, (size_t)(cols * size));
        }
        return;
    }
    switch (size) {
    case 1:
        COPY_TILES(1)
        break;
    case 2:
        COPY_TILES(2)
        break;
    case 4:
        COPY_TILES(4)
        break;
    default:
        MOE_ASSERT(size == 8);
        COPY_TILES(8)
        break;
    }
}

void moei_layout_fill(const moei_plane *d, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                      int64_t size, int byte)
{
    for (int64_t r = r0; r < r1; r++) {
        uint8_t *row = d->data + r * d->r_stride;
        if (d->c_stride == size && c0 < c1) {
            memset(row + c0 * size, byte, (size_t)((c1 - c0) * size));
        } else {
            for (int64_t c = c0; c < c1; c++) {
                memset(row + c * d->c_stride, byte, (size_t)size);
            }
        }
    }
}

moe_status moe_layout_transpose(const moe_tensor *src, const moe_tensor *dst)
{
    static const char call[] = "moe_layout_transpose";
    const uint32_t packed = MOEI_DTYPE_BIT(MOE_E2M1) | MOEI_DTYPE_BIT(MOE_E2M3) |
                            MOEI_DTYPE_BIT(MOE_E3M2) | MOEI_DTYPE_BIT(MOE_INT4) |
                            MOEI_DTYPE_BIT(MOE_UINT4) | MOEI_DTYPE_BIT(MOE_DTYPE_UNSET);
    MOE_REQUIRE(src != NULL && dst != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                src == NULL ? "src" : "dst");
    const moe_tensor s = moei_tensor_with_experts(src, 3);
    const moe_tensor d = moei_tensor_with_experts(dst, 3);
    const int64_t any[3] = {-1, -1, -1};
    MOE_TRY(moei_layout_check_in(&s, call, "src", ~packed, 3, any));
    const int64_t shape[3] = {s.shape[0], s.shape[2], s.shape[1]};
    MOE_TRY(moei_layout_check_out(&d, call, "dst", MOEI_DTYPE_BIT(s.dtype), 3, shape));
    MOE_TRY(moei_layout_disjoint(&d, "dst", &s, "src", call));
    const int64_t size = moe_dtype_bits(s.dtype) / 8;
    for (int64_t e = 0; e < s.shape[0]; e++) {
        const moei_plane from = moei_layout_plane(&s);
        const moei_plane to = moei_layout_plane(&d);
        const moei_plane a = {from.data + e * from.e_stride, 0, from.c_stride, from.r_stride};
        const moei_plane b = {to.data + e * to.e_stride, 0, to.r_stride, to.c_stride};
        moei_layout_copy(&b, &a, shape[1], shape[2], size);
    }
    return MOE_OK;
}
