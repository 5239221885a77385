// SPDX-License-Identifier: Apache-2.0
// What the converters of moe/layouts.h share: checks of views, and copies between strided planes.
#ifndef MOEI_QUANT_LAYOUTS_H
#define MOEI_QUANT_LAYOUTS_H

#include "core/tensor.h"
#include "moe/layouts.h"

/// Elements (e, r, c) of `size` bytes at data + e * e_stride + r * r_stride + c * c_stride, in
/// bytes.
typedef struct moei_plane {
    uint8_t *data;
    int64_t e_stride, r_stride, c_stride;
} moei_plane;

/// Checks a view that is read: moei_tensor_check, strides in any order, in host memory.
moe_status moei_layout_check_in(const moe_tensor *t, const char *call, const char *name,
                                uint32_t dtypes, int ndim, const int64_t *shape);

/// Checks a view that is written: also row-major, and no two elements share memory.
moe_status moei_layout_check_out(const moe_tensor *t, const char *call, const char *name,
                                 uint32_t dtypes, int ndim, const int64_t *shape);

/// Refuses views that share memory; absent and empty ones share none.
moe_status moei_layout_disjoint(const moe_tensor *a, const char *a_name, const moe_tensor *b,
                                const char *b_name, const char *call);

/// The plane of a checked view of three dimensions and whole bytes.
moei_plane moei_layout_plane(const moe_tensor *t);

/// d(r, c) = s(r, c) for one expert's plane, both data pointers at the expert. size: 1, 2, 4 or 8.
void moei_layout_copy(const moei_plane *d, const moei_plane *s, int64_t rows, int64_t cols,
                      int64_t size);

/// Every byte of r in [r0, r1), c in [c0, c1) becomes `byte`.
void moei_layout_fill(const moei_plane *d, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                      int64_t size, int byte);

#endif
