// SPDX-License-Identifier: Apache-2.0
// ggemm: the grouped product. Contract between the layer and its kernels.
//   y[i, :] = (x[row(i), :] . W[e]^T) scaled, + bias, * row weight,  offsets[e] <= i < offsets[e+1]
// Arithmetic (docs/numerics.md#ggemm): products and sums in f32 in the order of the kernel's
// arithmetic class; then, where they exist, in this order:
//   fma classes with a scale per block of k:  acc = fma(chain * s_x, s_w, acc) at each block's end
//   acc = acc * row scale of x;  acc = acc * scale of W's row or tensor;
//   acc = acc * scale2 of W (second-level, or the channel scale of a *_GROUP format)
//   acc = acc / scale2 of x;  acc = acc + bias;  acc = acc * row weight;  one rounding to y's dtype
#ifndef MOEI_OPS_GGEMM_H
#define MOEI_OPS_GGEMM_H

#include "core/check.h"
#include "core/safemath.h"
#include "moe/weights.h"
#include "numerics/int4.h"
#include "ops/backend.h"
#include "quant/formats.h"

/// A stack of n canonical matrices [N, K] with scales, as kernels of layout "row" read it. Strides
/// are in bytes for values, in elements for everything else.
typedef struct moei_matrices {
    const moei_format_info *format;
    int64_t n, k;
    int32_t count;
    const uint8_t *values;
    int64_t value_e_stride, value_n_stride; // bytes
    int64_t value_k_stride;                 // bytes; sub-byte types are packed along k: 0
    const void *scales;                     // NULL: none
    moe_dtype scale_dtype;
    int32_t block_n, block_k; // 0: the whole extent
    int64_t scale_e_stride, scale_n_stride, scale_k_stride;
    int32_t scale_parts; // tensor scales and scale2: 1, or 2 = one each for gate and up rows
    const float *scale2; // NULL: none
    int64_t scale2_e_stride;
    int32_t scale2_parts;
    bool scale2_per_row; // a channel scale: scale2_parts is n
    // Gate and up rows: part of row r is r & 1 if interleaved, else r / part_rows. part_rows is n
    // where there are no parts, or blocks of rows run through both.
    bool interleaved_parts;
    int64_t part_rows;
    const uint8_t *zeros; // NULL: the format's zero point
    moei_zero_form zero_form;
    int64_t zero_e_stride, zero_n_stride; // bytes; of pairs: from pair to pair
    const void *bias;                     // NULL: none
    moe_dtype bias_dtype;
    int64_t bias_e_stride;
    const float *act_scale; // static scale of the activations, NULL: none
} moei_matrices;

/// Zero point of row n's group; `zeros` must not be NULL.
static inline uint8_t moei_zero_point(const moei_matrices *w, int64_t e, int64_t n, int64_t group)
{
    const uint8_t *expert = w->zeros + e * w->zero_e_stride;
    switch (w->zero_form) {
    case MOEI_ZERO_PAIRS: {
        const uint8_t byte = expert[n / 2 * w->zero_n_stride + group];
        return n % 2 == 0 ? byte & 15 : byte >> 4;
    }
    case MOEI_ZERO_NIBBLES:
        return moei_get_u4(expert + n * w->zero_n_stride, (size_t)group);
    default:
        return expert[n * w->zero_n_stride + group];
    }
}

/// The rows of x: floats, or codes with scales.
typedef struct moei_operand {
    const uint8_t *data;
    moe_dtype dtype;
    int64_t row_stride; // bytes
    const void *scales; // NULL: floats
    moe_dtype scale_dtype;
    int32_t group;            // elements of k per scale; 0: one per row (stride 0: one for all)
    bool packed;              // four e8m0 bytes per int32
    int64_t scale_row_stride; // elements of scale_dtype (packed: of int32)
    int64_t scale_k_stride;
    int64_t batch_stride, scale_batch_stride; // between groups of equal room (no offsets)
    const float *scale2; // NVFP4's global scale, a divisor: acc / scale2[0]; NULL: none
} moei_operand;

/// Rows come sorted (offsets: group e has rows offsets[e] .. offsets[e + 1] - 1), or in groups of
/// equal room (offsets NULL: row i of group e is row i of x's and y's batch e, for i < counts[e],
/// or i < rows without counts).
typedef struct moek_ggemm_args {
    moei_matrices w;
    moei_operand x;
    const int32_t *offsets;   // [count + 1], or NULL
    const int32_t *counts;    // [count], or NULL
    int64_t rows;             // rows of a group (offsets NULL), else the most that all may have
    const int32_t *row_index; // sorted rows only: x row = row_index[i] / row_divisor; NULL: i
    int32_t row_divisor;      // slot to token; at least 1
    const int32_t *out_index; // sorted rows only: y row; NULL: i
    const float *row_weight;  // NULL: 1; of y row i (sorted), or at e * batch + i * row stride
    int64_t weight_batch_stride, weight_row_stride;
    uint8_t *y;
    moe_dtype y_dtype;
    int64_t y_row_stride, y_batch_stride; // bytes
} moek_ggemm_args;

/// Computes columns [n0, n1) of rows [i0, i1) of expert e; i counts as in the struct above.
typedef void moek_ggemm_fn(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                           int64_t n0, int64_t n1);

/// Shape rule: elements of k after which a block scale changes (of weights or activations, the
/// finer of the two); 0: none does. -1 if one does not divide the other.
int64_t moei_ggemm_fold(const moei_ggemm_problem *problem);

/// The arithmetic class of the portable kernels for a problem (fma_c256, fma_b<fold>, i32).
/// MOEI_NUM_ARITH when there is none for this fold.
moei_arith moei_ggemm_arith(const moei_ggemm_problem *problem);

/// Checks the views of a matrix stack against its descriptor and fills `out`. `count` -1: from the
/// views. Errors name `call` and `name`.
moe_status moei_matrices_from_source(const moe_matrix_source *source, const moe_gemm_desc *gemm,
                                     int32_t count, int64_t n, int64_t k, bool transposed,
                                     moe_gate_up gate_up, const char *call, const char *name,
                                     moei_matrices *out);

/// ALIGNMENT unless what kernels read as whole floats is aligned. (Everything else may lie
/// anywhere.)
moe_status moei_matrices_check_aligned(const moei_matrices *m, const char *call, const char *name);

/// Element type in which a product reads its input: x_dtype, or the code type of the quantiser.
moe_dtype moei_gemm_operand_dtype(const moe_gemm_desc *gemm, moe_dtype x_dtype);

/// Checks one product's descriptor by itself: unset fields, fields that its format does not have.
moe_status moei_gemm_desc_check(const moe_gemm_desc *gemm, const char *call, const char *name);

/// The kernel that runs a problem in this context; NO_KERNEL with the nearest refusal otherwise.
moe_status moei_ggemm_select(const moe_context *ctx, const moei_ggemm_problem *problem,
                             const char *call, const char *name, const moei_kernel **out);

#endif
