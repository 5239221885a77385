// SPDX-License-Identifier: Apache-2.0
// Element types and checks of tensor views.
#include "core/tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "numerics/elements.inc" // every header of numerics/; the build lists them

static const struct {
    const char *name;
    int bits;
} dtype_rows[] = {
    [MOE_DTYPE_UNSET] = {"unset", 0}, [MOE_F32] = {"f32", 32},    [MOE_F64] = {"f64", 64},
    [MOE_I8] = {"int8", 8},           [MOE_U8] = {"uint8", 8},    [MOE_I16] = {"int16", 16},
    [MOE_U16] = {"uint16", 16},       [MOE_I32] = {"int32", 32},  [MOE_U32] = {"uint32", 32},
    [MOE_I64] = {"int64", 64},        [MOE_U64] = {"uint64", 64}, [MOE_BOOL] = {"bool", 8},
#define MOE_ELEMENT(dtype, name, bits, convert) [dtype] = {#name, bits},
#include "numerics/elements.inc"
#undef MOE_ELEMENT
};

static bool dtype_known(moe_dtype dtype)
{
    return dtype >= 0 && (size_t)dtype < sizeof dtype_rows / sizeof dtype_rows[0];
}

const char *moe_dtype_name(moe_dtype dtype)
{
    return dtype_known(dtype) ? dtype_rows[dtype].name : "unknown dtype";
}

int moe_dtype_bits(moe_dtype dtype)
{
    return dtype_known(dtype) ? dtype_rows[dtype].bits : 0;
}

const char *moe_device_name(moe_device_type type)
{
    switch (type) {
    case MOE_DEVICE_UNSET:
        return "unset";
    case MOE_DEVICE_CPU:
        return "cpu";
    case MOE_DEVICE_CUDA:
        return "cuda";
    case MOE_DEVICE_HIP:
        return "hip";
    case MOE_DEVICE_EXT:
        return "ext";
    default:
        return "unknown device";
    }
}

const char *moei_tensor_text(const moe_tensor *t, char *buffer, size_t capacity)
{
    int at = snprintf(buffer, capacity, "%s [", moe_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim && i < MOE_MAX_DIMS && at > 0 && (size_t)at < capacity; i++) {
        at += snprintf(buffer + at, capacity - (size_t)at, "%s%" PRId64, i > 0 ? ", " : "",
                       t->shape[i]);
    }
    if (at > 0 && (size_t)at + 1 < capacity) {
        buffer[at] = ']';
        buffer[at + 1] = '\0';
    }
    return buffer;
}

moe_tensor moei_tensor_with_experts(const moe_tensor *t, int ndim)
{
    moe_tensor r = *t;
    if (t->ndim == ndim - 1) {
        for (int i = ndim - 1; i > 0; i--) {
            r.shape[i] = t->shape[i - 1];
            r.stride[i] = t->stride[i - 1];
        }
        r.shape[0] = 1;
        r.stride[0] = 1;
        r.ndim = ndim;
    }
    return r;
}

moe_tensor moei_tensor_join_blocks(const moe_tensor *t)
{
    moe_tensor r = *t;
    if (t->ndim == 4 && t->dtype == MOE_U8 && t->stride[3] == 1 && t->stride[2] == t->shape[3]) {
        r.ndim = 3;
        r.shape[2] = t->shape[2] * t->shape[3];
        r.stride[2] = 1;
    }
    return r;
}

// "any of f32, bf16, f16"
static void dtype_mask_text(uint32_t dtypes, char *buffer, size_t capacity)
{
    size_t at = 0;
    buffer[0] = '\0';
    for (moe_dtype d = 1; dtype_known(d); d++) {
        if ((dtypes & MOEI_DTYPE_BIT(d)) != 0 && at < capacity) {
            const int n = snprintf(buffer + at, capacity - at, "%s%s", at > 0 ? " or " : "",
                                   moe_dtype_name(d));
            at += n > 0 ? (size_t)n : 0;
        }
    }
}

moe_status moei_tensor_check_any_order(const moe_tensor *t, const char *call, const char *name,
                                       uint32_t dtypes, int ndim, const int64_t *shape)
{
    char have[96];
    char want[96];
    bool empty = false; // then nothing is read, whatever the strides, and data may be NULL
    for (int i = 0; i < t->ndim && i < MOE_MAX_DIMS; i++) {
        empty = empty || t->shape[i] == 0;
    }
    MOE_REQUIRE(t->data != NULL || empty, MOE_E_ARGUMENT, "%s: %s is absent (data NULL)", call,
                name);
    if (!dtype_known(t->dtype) || (dtypes & MOEI_DTYPE_BIT(t->dtype)) == 0) {
        dtype_mask_text(dtypes, want, sizeof want);
        return moe_fail(MOE_E_DTYPE, "%s: %s is %s, must be %s", call, name,
                        moe_dtype_name(t->dtype), want);
    }
    MOE_REQUIRE(t->ndim == ndim, MOE_E_SHAPE, "%s: %s has %d dimensions, must have %d", call, name,
                (int)t->ndim, ndim);
    int64_t span = 0;
    for (int i = 0; i < ndim; i++) {
        if (t->shape[i] < 0 || (shape[i] >= 0 && t->shape[i] != shape[i])) {
            moe_tensor wanted = *t;
            memcpy(wanted.shape, shape, (size_t)ndim * sizeof *shape);
            return moe_fail(MOE_E_SHAPE, "%s: %s is %s, must be %s", call, name,
                            moei_tensor_text(t, have, sizeof have),
                            moei_tensor_text(&wanted, want, sizeof want));
        }
        MOE_REQUIRE(t->stride[i] >= 0 && (t->stride[i] > 0 || t->shape[i] <= 1 || empty),
                    MOE_E_SHAPE,
                    "%s: %s has stride %" PRId64 " in dimension %d, must be at least 1", call, name,
                    t->stride[i], i);
        int64_t step;
        const int64_t last = t->shape[i] > 0 ? t->shape[i] - 1 : 0;
        MOE_REQUIRE(moei_i64_mul(last, t->stride[i], &step) &&
                        !__builtin_add_overflow(span, step, &span) && span < INT64_MAX / 64,
                    MOE_E_OVERFLOW, "%s: %s spans more than 2^57 elements", call, name);
    }
    return MOE_OK;
}

moe_status moei_tensor_check(const moe_tensor *t, const char *call, const char *name,
                             uint32_t dtypes, int ndim, const int64_t *shape)
{
    MOE_TRY(moei_tensor_check_any_order(t, call, name, dtypes, ndim, shape));
    MOE_REQUIRE(ndim == 0 || t->stride[ndim - 1] == 1 || t->shape[ndim - 1] <= 1, MOE_E_SHAPE,
                "%s: %s has stride %" PRId64 " in its last dimension, must be 1", call, name,
                t->stride[ndim - 1]);
    for (int i = 0; i + 1 < ndim; i++) {
        const int bits = moe_dtype_bits(t->dtype);
        MOE_REQUIRE(bits % 8 == 0 || t->shape[i] <= 1 || t->stride[i] * bits % 8 == 0, MOE_E_SHAPE,
                    "%s: %s has stride %" PRId64
                    " in dimension %d, rows of %s must begin on a byte",
                    call, name, t->stride[i], i, moe_dtype_name(t->dtype));
    }
    return MOE_OK;
}

moe_status moei_counts_check(const int32_t *counts, int64_t batches, int64_t rows, const char *call)
{
    for (int64_t e = 0; e < batches; e++) {
        MOE_REQUIRE(counts[e] >= 0 && counts[e] <= rows, MOE_E_VALUE,
                    "%s: counts[%" PRId64 "] = %d, must be 0..%" PRId64, call, e, (int)counts[e],
                    rows);
    }
    return MOE_OK;
}

void moei_tensor_span(const moe_tensor *t, uintptr_t *begin, uintptr_t *end)
{
    int64_t last = 0;
    *begin = (uintptr_t)moei_tensor_data(t);
    *end = *begin;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] <= 0) {
            return;
        }
        last += (t->shape[i] - 1) * t->stride[i];
    }
    *end = *begin + (uintptr_t)(((last + 1) * moe_dtype_bits(t->dtype) + 7) / 8);
}

bool moei_tensor_overlap(const moe_tensor *a, const moe_tensor *b)
{
    uintptr_t a0;
    uintptr_t a1;
    uintptr_t b0;
    uintptr_t b1;
    if (a->data == NULL || b->data == NULL) {
        return false;
    }
    moei_tensor_span(a, &a0, &a1);
    moei_tensor_span(b, &b0, &b1);
    return a0 < a1 && b0 < b1 && a0 < b1 && b0 < a1; // an empty one shares nothing
}

moe_status moei_tensor_check_aligned(const moe_tensor *t, const char *call, const char *name)
{
    const int bits = moe_dtype_bits(t->dtype);
    const uintptr_t bytes = bits > 8 ? (uintptr_t)bits / 8 : 1;
    const uintptr_t at = (uintptr_t)moei_tensor_data(t);
    MOE_REQUIRE(at % bytes == 0, MOE_E_ALIGNMENT,
                "%s: %s begins %d bytes past a multiple of its %d-byte elements", call, name,
                (int)(at % bytes), (int)bytes);
    return MOE_OK;
}

moe_status moei_tensor_check_unfolded(const moe_tensor *t, const char *call, const char *name)
{
    bool done[MOE_MAX_DIMS] = {false};
    int64_t inner = 1;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] == 0) {
            return MOE_OK;
        }
    }
    // From the dimension with the smallest stride on, each stride covers all that lies inside.
    for (int n = 0; n < t->ndim; n++) {
        int at = -1;
        for (int i = 0; i < t->ndim; i++) {
            if (!done[i] && (at < 0 || t->stride[i] < t->stride[at] ||
                             (t->stride[i] == t->stride[at] && t->shape[i] <= 1))) {
                at = i;
            }
        }
        done[at] = true;
        if (t->shape[at] > 1) {
            MOE_REQUIRE(t->stride[at] >= inner, MOE_E_SHAPE,
                        "%s: %s has stride %" PRId64 " in dimension %d, must be at least %" PRId64,
                        call, name, t->stride[at], at, inner);
            inner += (t->shape[at] - 1) * t->stride[at];
        }
    }
    return MOE_OK;
}

moe_status moei_views_check_device(const moei_view *views, size_t count, moe_device_type device,
                                   const char *call)
{
    for (size_t i = 0; i < count; i++) {
        const moe_tensor *t = views[i].tensor;
        if (t->data == NULL) {
            continue;
        }
        MOE_REQUIRE(t->device == MOE_DEVICE_UNSET || t->device == device, MOE_E_ARGUMENT,
                    "%s: %s lies on device \"%s\", the context's is \"%s\"", call, views[i].name,
                    moe_device_name(t->device), moe_device_name(device));
        MOE_REQUIRE(device != MOE_DEVICE_CPU || t->device_id == 0, MOE_E_ARGUMENT,
                    "%s: %s has device_id = %d, device \"cpu\" has 0 only", call, views[i].name,
                    (int)t->device_id);
    }
    return MOE_OK;
}

moe_status moei_views_check_overlap(const moei_view *views, size_t count, const char *call)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; views[i].written && j < count; j++) {
            MOE_REQUIRE(i == j || !moei_tensor_overlap(views[i].tensor, views[j].tensor),
                        MOE_E_OVERLAP, "%s: %s overlaps %s", call, views[i].name, views[j].name);
        }
    }
    return MOE_OK;
}
