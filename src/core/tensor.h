// SPDX-License-Identifier: Apache-2.0
// Checks of tensor views: what the public calls share before they touch memory.
#ifndef MOEI_CORE_TENSOR_H
#define MOEI_CORE_TENSOR_H

#include <stdbool.h>

#include "core/check.h"
#include "core/safemath.h"
#include "moe/types.h"

/// First byte of a view.
static inline unsigned char *moei_tensor_data(const moe_tensor *t)
{
    return t->data != NULL ? (unsigned char *)t->data + t->byte_offset : NULL;
}

static inline bool moei_tensor_present(const moe_tensor *t)
{
    return t->data != NULL;
}

/// Bytes from one index to the next along a dimension (whole-byte dtypes, or the packed bytes of a
/// row for an outer dimension of a sub-byte dtype).
static inline int64_t moei_tensor_stride_bytes(const moe_tensor *t, int dim)
{
    return t->stride[dim] * moe_dtype_bits(t->dtype) / 8;
}

/// The view with an expert dimension: one dimension less than `ndim` means one expert.
moe_tensor moei_tensor_with_experts(const moe_tensor *t, int ndim);

/// Blocks of packed codes, [n, N, groups, bytes] U8, as rows [n, N, groups * bytes] where they are
/// compact; any other view as it is.
moe_tensor moei_tensor_join_blocks(const moe_tensor *t);

/// Checks rank, dtype, shape and strides of a view: -1 in `shape` accepts any extent; `dtypes` is
/// a mask of 1 << moe_dtype; the last stride must be 1 and no stride negative or, where its extent
/// exceeds 1, zero; products fit in 63 bits. `call` and `name` head the message.
moe_status moei_tensor_check(const moe_tensor *t, const char *call, const char *name,
                             uint32_t dtypes, int ndim, const int64_t *shape);

/// As moei_tensor_check for a view whose strides may lie in any order (column-major scales).
moe_status moei_tensor_check_any_order(const moe_tensor *t, const char *call, const char *name,
                                       uint32_t dtypes, int ndim, const int64_t *shape);

/// Half-open byte range that a checked view spans, as integers. Empty views span nothing.
void moei_tensor_span(const moe_tensor *t, uintptr_t *begin, uintptr_t *end);

/// ALIGNMENT unless the view's first byte lies at a multiple of its element's bytes.
moe_status moei_tensor_check_aligned(const moe_tensor *t, const char *call, const char *name);

/// SHAPE if two indices of a checked view lie in the same place: what is written must not.
moe_status moei_tensor_check_unfolded(const moe_tensor *t, const char *call, const char *name);

/// A view of a call, for the checks that concern all of them.
typedef struct moei_view {
    const moe_tensor *tensor;
    const char *name;
    bool written;
} moei_view;

/// ARGUMENT unless every present view lies on `device`, or leaves that open. Reads nothing else.
moe_status moei_views_check_device(const moei_view *views, size_t count, moe_device_type device,
                                   const char *call);

/// OVERLAP if a written view shares a byte with another; all have been checked.
moe_status moei_views_check_overlap(const moei_view *views, size_t count, const char *call);

/// True if the spans of two checked views share a byte.
bool moei_tensor_overlap(const moe_tensor *a, const moe_tensor *b);

/// Checks the values of host counts: 0 <= counts[e] <= rows.
moe_status moei_counts_check(const int32_t *counts, int64_t batches, int64_t rows,
                             const char *call);

/// Writes "bf16 [7, 64]" into buffer; returns it.
const char *moei_tensor_text(const moe_tensor *t, char *buffer, size_t capacity);

#define MOEI_DTYPE_BIT(dtype) (1u << (dtype))
#define MOEI_DTYPES_FLOAT                                                                          \
    (MOEI_DTYPE_BIT(MOE_F32) | MOEI_DTYPE_BIT(MOE_BF16) | MOEI_DTYPE_BIT(MOE_F16))
#define MOEI_DTYPES_ID     (MOEI_DTYPE_BIT(MOE_I32) | MOEI_DTYPE_BIT(MOE_I64))
#define MOEI_DTYPES_WEIGHT (MOEI_DTYPE_BIT(MOE_F32) | MOEI_DTYPE_BIT(MOE_BF16))

#endif
