// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"
#include "moe/layouts.h"
#include "quant/elements.h"

#define SPAN 256 // elements that pass through registers at once

static void convert_row(moe_dtype from, const uint8_t *src, moe_dtype to, uint8_t *dst, int64_t n)
{
    const int64_t bytes = moe_dtype_bits(to) / 8;
    for (int64_t i = 0; i < n; i += SPAN) {
        float values[SPAN];
        const int64_t count = n - i < SPAN ? n - i : SPAN;
        moei_load_f32(from, src, i, count, values);
        moei_store_f32(to, dst + i * bytes, count, values);
    }
}

moe_status moe_convert(const moe_tensor *src, const moe_tensor *dst)
{
    static const char call[] = "moe_convert";
    const uint32_t sources =
        MOEI_DTYPES_FLOAT | MOEI_DTYPE_BIT(MOE_E4M3FN) | MOEI_DTYPE_BIT(MOE_E4M3FNUZ) |
        MOEI_DTYPE_BIT(MOE_E5M2) | MOEI_DTYPE_BIT(MOE_E5M2FNUZ) | MOEI_DTYPE_BIT(MOE_E8M0) |
        MOEI_DTYPE_BIT(MOE_E2M1) | MOEI_DTYPE_BIT(MOE_E2M3) | MOEI_DTYPE_BIT(MOE_E3M2);
    const int64_t any[MOE_MAX_DIMS] = {-1, -1, -1, -1};
    MOE_REQUIRE(src != NULL && dst != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                src == NULL ? "src" : "dst");
    MOE_REQUIRE(src->ndim >= 1 && src->ndim <= MOE_MAX_DIMS, MOE_E_SHAPE,
                "%s: src has %d dimensions, must have 1..%d", call, (int)src->ndim, MOE_MAX_DIMS);
    MOE_TRY(moei_tensor_check(src, call, "src", sources, src->ndim, any));
    MOE_TRY(moei_tensor_check(dst, call, "dst", MOEI_DTYPES_FLOAT, src->ndim, src->shape));
    MOE_TRY(moei_tensor_check_unfolded(dst, call, "dst"));
    const moei_view views[] = {{src, "src", false}, {dst, "dst", true}};
    MOE_TRY(moei_views_check_device(views, 2, MOE_DEVICE_CPU, call));
    MOE_TRY(moei_views_check_overlap(views, 2, call));
    const int last = src->ndim - 1;
    int64_t index[MOE_MAX_DIMS] = {0};
    int64_t rows = 1;
    for (int d = 0; d < last; d++) {
        rows *= src->shape[d];
    }
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *from = moei_tensor_data(src);
        uint8_t *to = moei_tensor_data(dst);
        for (int d = 0; d < last; d++) {
            from += index[d] * moei_tensor_stride_bytes(src, d);
            to += index[d] * moei_tensor_stride_bytes(dst, d);
        }
        convert_row(src->dtype, from, dst->dtype, to, src->shape[last]);
        for (int d = last - 1; d >= 0 && ++index[d] == src->shape[d]; d--) {
            index[d] = 0;
        }
    }
    return MOE_OK;
}
