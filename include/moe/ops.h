// SPDX-License-Identifier: Apache-2.0
/// @file ops.h  The steps of the layer singly, on the caller's buffers and bit-equal to a plan
/// that is not fused: for custom activations, LoRA, MUL_MAT_ID-like use, and router products.
/// route and sort are in routing.h, quantize in quantize.h.
#ifndef MOE_OPS_H
#define MOE_OPS_H

#include "moe/matrix.h"
#include "moe/plan.h"
#include "moe/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Arguments of moe_ggemm: y[i, :] = x[row(i), :] . W[expert(i)]^T, scaled, + bias, * row weight.
/// N outputs, K inputs, both below 2^31, n experts; row i belongs to the expert with offsets[e] <=
/// i < offsets[e+1].
typedef struct moe_ggemm_args {
    size_t struct_size;
    moe_gemm_desc gemm; ///< weight format, activation quantiser of x (spec NONE: as it is)
    int32_t transposed; ///< 1: values [n, K, N]
    moe_matrix_source weights;
    moe_tensor x;         ///< [rows, K] f32, bf16, f16, or codes of gemm.act, also as packed U8
                          ///< [rows, bytes]: K is then that of the weights; where these are packed
                          ///< U8 too, what fills x's bytes
    moe_tensor x_scales;  ///< where x holds codes
    moe_tensor offsets;   ///< I32 [n + 1], ascending from 0; absent: n = 1, all rows
    moe_tensor row_index; ///< optional I32 [offsets[n]]: i reads x row row_index[i] (gather)
    moe_tensor out_index; ///< optional I32: i writes y row out_index[i] (scatter). No row twice:
                          ///< that is the caller's duty and is not checked (it would take memory);
                          ///< two threads would write the row at once
    moe_tensor
        row_weight; ///< optional f32 [rows of y]: multiplies a row of y, in f32, after the bias
    moe_tensor y;   ///< [rows, N] f32, bf16 or f16; must not overlap x
    const moe_matrix *matrix; ///< optional: packed weights of the same context, instead of gemm,
                              ///< transposed and weights, which are 0 then (but for the act_scale
                              ///< of codes that bring one); n and the type of x are the matrix's
} moe_ggemm_args;

/// Grouped product of sorted rows. With one expert and no offsets, a plain linear layer: a router
/// with bias, a latent transform. Accumulates in f32, rounds to nearest even; error bound in
/// docs/numerics.md#ggemm. Errors: SHAPE, DTYPE, OVERLAP, UNSUPPORTED, NO_KERNEL; STATE (a matrix
/// of which an expert has not been packed); on a device ALIGNMENT (its kernel needs aligned
/// weights) and DEVICE. Determinism: KERNEL on the CPU (BATCH for bf16 x by bf16 or MXFP4 where it
/// has matrix units, whose class a plan of level BATCH has, too); on a device that of the class
/// which a plan of level BATCH takes, at least BATCH; of a matrix the level that its descriptor
/// asks for, at least. Workspace: none. Thread safety: reentrant. Since 0.1. Source: Gale et al.,
/// MegaBlocks, MLSys 2023, §4 (grouped products without padding).
MOE_API moe_status moe_ggemm(const moe_context *ctx, const moe_ggemm_args *args, void *stream);

/// Arguments of moe_glu.
typedef struct moe_glu_args {
    size_t struct_size;
    moe_activation activation;
    float alpha, beta, linear_beta, limit;
    moe_gate_up gate_up;
    moe_tensor x;      ///< [rows, 2I] (NO_MUL: [rows, I]) f32, bf16 or f16; or [E, Tmax, ..]
    moe_tensor counts; ///< 3-D only: I32 [E]; rows at or past the count are untouched
    moe_tensor y;      ///< [rows, I] or [E, Tmax, I] f32, bf16 or f16
} moe_glu_args;

/// Activation times up, in f32, one rounding to y's dtype. Error: docs/numerics.md#glu.
/// Errors: UNSET, SHAPE, DTYPE, UNSUPPORTED. Determinism: KERNEL. Workspace: none. Since 0.1.
MOE_API moe_status moe_glu(const moe_context *ctx, const moe_glu_args *args, void *stream);

/// Arguments of moe_combine: out[t] = sum over j of slots[t, j] * weight, + shared.
typedef struct moe_combine_args {
    size_t struct_size;
    moe_tensor slots;   ///< [T, k, H] f32, bf16 or f16
    moe_tensor ids;     ///< optional I32 or I64 [T, k]: slots whose id is < 0 are not read
    moe_tensor weights; ///< optional f32 or bf16 [T, k]; absent: 1
    moe_tensor shared;  ///< optional [T, H] f32, bf16 or f16, added after the slots
    moe_tensor bias;    ///< optional [H], added before shared
    int32_t accumulate; ///< 1: the previous out is added last
    moe_tensor out;     ///< [T, H]
} moe_combine_args;

/// Sums in f32 from +0 in slot order and rounds once. Errors: SHAPE, DTYPE, OVERLAP.
/// Determinism: KERNEL. Workspace: none. Since 0.1.
MOE_API moe_status moe_combine(const moe_context *ctx, const moe_combine_args *args, void *stream);

#ifdef __cplusplus
}
#endif
#endif
