// SPDX-License-Identifier: Apache-2.0
// Counts of what should not be among scales and weights.
#include <math.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "moe/io.h"
#include "quant/elements.h"

#define CALL  "moe_tensor_survey"
#define CHUNK 1024 // elements widened at once

static const uint32_t known = 1u << MOE_F32 | 1u << MOE_BF16 | 1u << MOE_F16 | 1u << MOE_E4M3FN |
                              1u << MOE_E4M3FNUZ | 1u << MOE_E5M2 | 1u << MOE_E5M2FNUZ |
                              1u << MOE_E8M0;

static void count_one(float value, bool power, float low, float high, moe_tensor_stats *out)
{
    const float magnitude = fabsf(value);
    // Of E8M0, the smallest code is what a block of zeros gets.
    const bool zero = magnitude <= (power ? 0x1p-127f : 0.0f);
    out->nan += isnan(value) != 0;
    out->infinite += isinf(value) != 0;
    out->negative += value < 0.0f;
    out->zero += zero;
    out->outside += isfinite(value) && !zero && (magnitude < low || magnitude > high);
}

moe_status moe_tensor_survey(const moe_tensor *tensor, moe_dtype element, float low, float high,
                             moe_tensor_stats *out)
{
    float values[CHUNK];
    int64_t count = 1;
    MOE_REQUIRE(tensor != NULL && out != NULL, MOE_E_ARGUMENT, CALL ": %s is NULL",
                tensor == NULL ? "tensor" : "out");
    element = element == MOE_DTYPE_UNSET ? tensor->dtype : element;
    MOE_REQUIRE(element > 0 && element < 32 && (known >> element & 1) != 0 &&
                    moe_dtype_bits(element) == moe_dtype_bits(tensor->dtype),
                MOE_E_DTYPE, CALL ": elements %s in a tensor of %s", moe_dtype_name(element),
                moe_dtype_name(tensor->dtype));
    for (int i = tensor->ndim; i-- > 0;) {
        MOE_REQUIRE(tensor->shape[i] <= 1 || tensor->stride[i] == count, MOE_E_ARGUMENT,
                    CALL ": dimension %d has stride %lld, a compact tensor %lld", i,
                    (long long)tensor->stride[i], (long long)count);
        count *= tensor->shape[i];
    }
    const uint8_t *base = (const uint8_t *)tensor->data + tensor->byte_offset;
    for (int64_t at = 0; at < count; at += CHUNK) {
        const int64_t n = moei_i64_min(CHUNK, count - at);
        moei_load_f32(element, base, at, n, values);
        for (int64_t i = 0; i < n; i++) {
            count_one(values[i], element == MOE_E8M0, low, high, out);
        }
    }
    out->count += count;
    return MOE_OK;
}
