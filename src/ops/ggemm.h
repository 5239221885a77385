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
#include "ops/backend.h"
#include "ops/ggemm_at.h"
#include "quant/formats.h"

/// Computes columns [n0, n1) of rows [i0, i1) of expert e; i counts as in moek_ggemm_args.
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

/// The row of the class `arith` that runs a problem on canonical weights and costs least; NULL:
/// none does.
const moei_kernel *moei_ggemm_canonical(const moe_context *ctx, const moei_ggemm_problem *problem,
                                        moei_arith arith);

#endif
