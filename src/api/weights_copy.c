// SPDX-License-Identifier: Apache-2.0
// Copies of matrices between two stacks of one format that may differ in strides, in the number of
// scales and in how zero points are packed: pack one way, unpack the other.
#include "api/weights_internal.h"
#include "quant/elements.h"

static void copy_values(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de,
                        int64_t part, int64_t parts)
{
    const bool transposed = s->value_k_stride != 0;
    const int64_t rows = transposed ? s->k : s->n;
    const size_t bytes = (size_t)moei_elem_bytes(s->format->elem, transposed ? s->n : s->k);
    const int64_t s_step = transposed ? s->value_k_stride : s->value_n_stride;
    const int64_t d_step = transposed ? d->value_k_stride : d->value_n_stride;
    const uint8_t *from = s->values + se * s->value_e_stride;
    uint8_t *to = (uint8_t *)(uintptr_t)d->values + de * d->value_e_stride;
    for (int64_t r = part * rows / parts; r < (part + 1) * rows / parts; r++) {
        memcpy(to + r * d_step, from + r * s_step, bytes);
    }
}

static void copy_scales(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const int64_t bytes = moe_dtype_bits(s->scale_dtype) / 8;
    const uint8_t *from = (const uint8_t *)s->scales + se * s->scale_e_stride * bytes;
    uint8_t *to = (uint8_t *)(uintptr_t)d->scales + de * d->scale_e_stride * bytes;
    const int64_t columns = moei_scale_columns(d);
    const bool rows = s->scale_k_stride == 1 && d->scale_k_stride == 1;
    for (int64_t r = 0; r < moei_scale_rows(d); r++) {
        const int64_t s_row = s->block_n == 0 && s->scale_parts == 1 ? 0 : r;
        if (rows) {
            memcpy(to + r * d->scale_n_stride * bytes, from + s_row * s->scale_n_stride * bytes,
                   (size_t)(columns * bytes));
            continue;
        }
        for (int64_t c = 0; c < columns; c++) {
            memcpy(to + (r * d->scale_n_stride + c * d->scale_k_stride) * bytes,
                   from + (s_row * s->scale_n_stride + c * s->scale_k_stride) * bytes,
                   (size_t)bytes);
        }
    }
}

// Writes one zero point; what shares its byte stays.
static void put_zero(const moei_matrices *d, int32_t e, int64_t n, int64_t group, uint8_t zero)
{
    uint8_t *expert = (uint8_t *)(uintptr_t)d->zeros + e * d->zero_e_stride;
    uint8_t *at;
    switch (d->zero_form) {
    case MOEI_ZERO_PAIRS:
        at = &expert[n / 2 * d->zero_n_stride + group];
        *at = (uint8_t)(n % 2 == 0 ? (*at & 0xF0) | zero : (*at & 0x0F) | zero << 4);
        break;
    case MOEI_ZERO_NIBBLES:
        moei_set_u4(expert + n * d->zero_n_stride, (size_t)group, zero);
        break;
    default:
        expert[n * d->zero_n_stride + group] = zero;
        break;
    }
}

static void copy_zeros(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const int64_t groups = moei_i64_ceil_div(s->k, s->block_k);
    for (int64_t n = 0; n < s->n; n++) {
        for (int64_t g = 0; g < groups; g++) {
            put_zero(d, de, n, g, moei_zero_point(s, se, n, g));
        }
    }
}

static void copy_bias(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    const int64_t s_bytes = moe_dtype_bits(s->bias_dtype) / 8;
    const int64_t d_bytes = moe_dtype_bits(d->bias_dtype) / 8;
    const uint8_t *from = (const uint8_t *)s->bias + se * s->bias_e_stride * s_bytes;
    uint8_t *to = (uint8_t *)(uintptr_t)d->bias + de * d->bias_e_stride * d_bytes;
    if (s->bias_dtype == d->bias_dtype) {
        memcpy(to, from, (size_t)(s->n * s_bytes));
        return;
    }
    for (int64_t n = 0; n < s->n; n++) {
        const float value = moei_load_one(s->bias_dtype, from, n);
        moei_store_f32(d->bias_dtype, to + n * d_bytes, 1, &value);
    }
}

void moei_copy_beside(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    if (s->scale2 != NULL) {
        for (int32_t p = 0; p < d->scale2_parts; p++) {
            const int32_t from = s->scale2_parts == 1 ? 0 : p;
            uint8_t *to = (uint8_t *)(uintptr_t)(d->scale2 + de * d->scale2_e_stride + p);
            memcpy(to, s->scale2 + se * s->scale2_e_stride + from, sizeof(float));
        }
    }
    if (s->bias != NULL) {
        copy_bias(s, se, d, de);
    }
}

void moei_copy_part(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de,
                    int64_t part, int64_t parts)
{
    copy_values(s, se, d, de, part, parts);
    if (part > 0) {
        return;
    }
    if (s->scales != NULL) {
        copy_scales(s, se, d, de);
    }
    if (s->zeros != NULL) {
        copy_zeros(s, se, d, de);
    }
    moei_copy_beside(s, se, d, de);
}

void moei_copy_expert(const moei_matrices *s, int32_t se, const moei_matrices *d, int32_t de)
{
    moei_copy_part(s, se, d, de, 0, 1);
}

// Rounds to nearest even where the target is narrower.
static void copy_floats(moe_dtype from_type, const void *from, moe_dtype to_type, uint8_t *to,
                        int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float value = moei_load_one(from_type, from, i);
        moei_store_f32(to_type, to + i * moe_dtype_bits(to_type) / 8, 1, &value);
    }
}

void moei_copy_linear(const moei_matrices *from, const moei_matrices *to)
{
    for (int64_t n = 0; to->values != NULL && n < to->n; n++) {
        copy_floats(from->format->elem, from->values + n * from->value_n_stride, to->format->elem,
                    (uint8_t *)(uintptr_t)to->values + n * to->value_n_stride, to->k);
    }
}
