// SPDX-License-Identifier: Apache-2.0
/// @file layouts.h  Weights between the layouts of public software: row order, padding,
/// transposition, tiles of accelerators, foreign 4-bit packings, FP8 dialects.
///
/// A converter writes nothing but whole results into the caller's views: everything is checked
/// first, and a call that fails has written nothing. Nothing is allocated. Memory is the host's;
/// bases may be misaligned, strides wider than compact. docs/layouts.md has the index formula of
/// each layout, who uses it, and the source.
///
/// All calls: thread safety: reentrant. Determinism: KERNEL. Workspace: none. A view given with one
/// dimension less than stated has no expert dimension, and means one expert. Outputs must be
/// row-major, without overlap within a view, with another output or with an input.
#ifndef MOE_LAYOUTS_H
#define MOE_LAYOUTS_H

#include "moe/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- one matrix, two canonical layouts ----------------------------------------------------------

/// What a matrix source (weights.h) is: a stack of `count` matrices of `rows` outputs and `cols`
/// inputs. Zero-initialised fields are UNSET.
typedef struct moe_matrix_layout {
    size_t struct_size;
    moe_format format;
    int32_t group;       ///< elements of k per scale, for *_GROUP formats; 0: the format's
    int32_t transposed;  ///< 1: values are [n, K, N]; scales, biases, zero points stay by rows
    moe_gate_up gate_up; ///< UNSET: the rows are not gate and up; else rows = 2I
    int32_t count;       ///< n
    int64_t rows, cols;  ///< N, K
} moe_matrix_layout;

static inline moe_matrix_layout moe_matrix_layout_default(void)
{
    moe_matrix_layout m;
    char *p = (char *)&m;
    size_t i;
    for (i = 0; i < sizeof m; i++) {
        p[i] = 0;
    }
    m.struct_size = sizeof m;
    return m;
}

/// Writes into `dst`, laid out as `to` says, the matrix that `src` holds as `from` says. The
/// layouts may differ in gate_up, transposed, rows and cols; the inverse is the call with both
/// pairs exchanged.
///   gate_up     the same permutation of rows for values, scales, zero points and biases; per-part
///               scales [n, 2] follow. Both layouts are gated, or neither
///   rows, cols  larger: padded at the end, gate and up each by itself. Values are 0 (with a zero
///               point: its code), scale bytes 0 (a finite scale: 0, E8M0 2^-127), zero points the
///               format's, biases 0. Smaller: cut, whatever the part that goes holds
/// Views that are absent in both `src` and `dst` are left out; act_scale is copied. Sub-byte
/// formats cannot be transposed. Where blocks of 128 rows share a scale, changing the order or the
/// number of rows of gate and up halves needs I % 128 = 0 on both sides, and halves do not become
/// interleaved rows, whose blocks hold both.
/// Errors: ARGUMENT, UNSET, SHAPE, DTYPE, OVERLAP, OVERFLOW, VERSION, UNSUPPORTED; VALUE: columns
/// are added to a group whose zero point is not a code. Since 0.1.
MOE_API moe_status moe_layout_convert(const moe_matrix_layout *from, const moe_matrix_source *src,
                                      const moe_matrix_layout *to, const moe_matrix_source *dst);

/// *to = *from with columns, and rows (of gate and of up each), rounded up to multiples.
/// Errors: ARGUMENT, UNSET, OVERFLOW, VERSION. Since 0.1.
MOE_API moe_status moe_layout_round_up(const moe_matrix_layout *from, int64_t row_multiple,
                                       int64_t col_multiple, moe_matrix_layout *to);

/// Compact views for the result of moe_layout_convert, in one buffer, each a multiple of 64 bytes
/// from its start: every view of `src`, in its dtype and form (blocks, packed zero points).
/// @param[in]  memory  the buffer; NULL: only measures, `out` then has absent views
/// @param[out] bytes   size of the buffer; may be NULL
/// @param[out] out     may be NULL
/// Errors as moe_layout_convert. Since 0.1.
MOE_API moe_status moe_layout_place(const moe_matrix_layout *from, const moe_matrix_source *src,
                                    const moe_matrix_layout *to, void *memory, size_t *bytes,
                                    moe_matrix_source *out);

/// dst[e, j, i] = src[e, i, j] for elements of whole bytes; its own inverse.
/// @param[in]  src  [n, R, C], any dtype of 8 bits and more
/// @param[out] dst  [n, C, R], the same dtype
/// Errors: ARGUMENT, SHAPE, DTYPE, OVERLAP, OVERFLOW. Since 0.1.
MOE_API moe_status moe_layout_transpose(const moe_tensor *src, const moe_tensor *dst);

/// dst = src element by element, to nearest even; NaN becomes the canonical one. Host memory.
/// @param[in]  src  1 to 4 dimensions of f32, bf16, f16, an FP8, FP6 or FP4 type or E8M0; last
///                  stride 1
/// @param[out] dst  the same shape: f32, bf16 or f16
/// Errors: ARGUMENT, SHAPE, DTYPE, OVERLAP, OVERFLOW. Determinism: KERNEL. Since 0.1.
MOE_API moe_status moe_convert(const moe_tensor *src, const moe_tensor *dst);

// ---- tiles of accelerators ----------------------------------------------------------------------

/// Orders of the bytes of a matrix in which a kernel reads tiles. r, c: row and column; R, C: the
/// padded extents; in bytes, but for the conditions.
typedef int32_t moe_tiling;
enum {
    MOE_TILING_UNSET = 0,
    MOE_TILING_CDNA4_SCALES = 1,  ///< MX scales of gfx950 (Triton's GFX950MXScaleLayout): R % 32,
                                  ///< C % 8 = 0
    MOE_TILING_128X4_SCALES = 2,  ///< MX and NVFP4 scales of Blackwell: R % 128, C % 4 = 0
    MOE_TILING_HOPPER_SCALES = 3, ///< MXFP4 scales of CUTLASS on Hopper, (C/4, R, 4): C % 4 = 0
    MOE_TILING_16X16_WEIGHTS = 4  ///< AITER's shuffle (16, 16): R % 16 = 0, elements of a row
                                  ///< % 32 = 0, 4-bit ones % 64
};

/// Extents of a tiled matrix: rows and cols (in elements of dtype) rounded up. Errors: ARGUMENT,
/// UNSET, DTYPE, OVERFLOW. Since 0.1.
MOE_API moe_status moe_layout_tiled_shape(moe_tiling tiling, moe_dtype dtype, int64_t rows,
                                          int64_t cols, int64_t tiled[2]);

/// @param[in]  src  [n, R, C] with any strides of rows. Scales: an 8-bit dtype. Weights: 8 bits, 16
///                  bits, or 4 bits (as U8 [n, R, bytes] too)
/// @param[out] dst  [n, R', C'], the same dtype, each matrix compact, R' and C' multiples as the
///                  tiling says. Scales: R' >= R, C' >= C, what is new is 0. Weights: R' = R and
///                  C' = C (moe_layout_convert pads them)
/// Errors: ARGUMENT, UNSET, SHAPE, DTYPE, OVERLAP, OVERFLOW. Since 0.1.
MOE_API moe_status moe_layout_tile(moe_tiling tiling, const moe_tensor *src, const moe_tensor *dst);

/// The inverse: src [n, R', C'] tiled, dst [n, R, C], what is padding is not read.
/// Errors as moe_layout_tile. Since 0.1.
MOE_API moe_status moe_layout_untile(moe_tiling tiling, const moe_tensor *src,
                                     const moe_tensor *dst);

// ---- FP8 dialects -------------------------------------------------------------------------------

/// OCP e4m3fn weights as e4m3fnuz (gfx942), exactly: code 0x80 (-0) becomes 0, other codes stay and
/// mean half, scales double (E8M0: code + 1), static activation scales (f32) too; a bias is copied.
///   values     [N, K], or with more dimensions, experts first; E4M3FN in src and E4M3FNUZ in dst,
///              or U8
///   scales     f32, bf16, f16 or E8M0, any shape; U8 means E8M0
/// The views of dst have the shapes of src's; each may be the very view of src (in place). scale2
/// and zero_points must be absent: no format of this element has them.
/// Errors: ARGUMENT, SHAPE, DTYPE, OVERLAP, OVERFLOW; VALUE: a NaN code, a scale that is not finite
/// or cannot double (E8M0 254), with tensor, expert and index. Since 0.1.
MOE_API moe_status moe_layout_to_fnuz(const moe_matrix_source *src, const moe_matrix_source *dst);

/// The inverse: scales are halved. VALUE: the code 0x80 (NaN), 0x7F or 0xFF (240 twice is beyond
/// e4m3fn), a scale that does not halve exactly. Since 0.1.
MOE_API moe_status moe_layout_from_fnuz(const moe_matrix_source *src, const moe_matrix_source *dst);

// ---- 4-bit integers of other software -----------------------------------------------------------

/// Where the nibbles of codes and of zero points lie. Words are I32 (or U32), low nibble first
/// unless stated. G: groups of k.
typedef int32_t moe_int4_packing;
enum {
    MOE_INT4_UNSET = 0,
    MOE_INT4_CANONICAL = 1, ///< codes U8 [n, N, ceil(K/2)] or UINT4 [n, N, K]; zero points U8
                            ///< [n, N, G], one a byte, or UINT4 [n, N, G]
    MOE_INT4_ROW_PAIRS = 2, ///< zero points only: U8 [n, ceil(N/2), G], row 2i in the low nibble
    MOE_INT4_COMPRESSED_TENSORS = 3, ///< codes [n, N, ceil(K/8)]; zero points [n, ceil(N/8), G]
    MOE_INT4_GPTQ = 4,               ///< codes [n, K/8, N]; zero points [n, G, N/8], minus 1
    MOE_INT4_GPTQ_V2 = 5,            ///< the same with zero points as they are
    MOE_INT4_AWQ = 6 ///< codes [n, K, N/8], zero points [n, G, N/8]; nibble i of a word is column
                     ///< 0, 2, 4, 6, 1, 3, 5, 7 of its eight
};

/// Repacks codes 0..15; the inverse is the call with both pairs exchanged. Nibbles that no code
/// fills are written as 0 and never read. Columns whose order g_idx changes are the caller's.
/// Errors: ARGUMENT, UNSET, SHAPE, DTYPE, OVERLAP, OVERFLOW, UNSUPPORTED. Since 0.1.
MOE_API moe_status moe_layout_int4_values(moe_int4_packing from, const moe_tensor *src,
                                          moe_int4_packing to, const moe_tensor *dst);

/// Repacks zero points. `rows` is N, which packed shapes do not tell. A GPTQ zero point that is
/// stored as 15 means 16, which only the byte form holds; 0 cannot be stored in GPTQ's form.
/// Errors: those; VALUE: a zero point that the packing cannot hold, and where. Since 0.1.
MOE_API moe_status moe_layout_int4_zero_points(int64_t rows, moe_int4_packing from,
                                               const moe_tensor *src, moe_int4_packing to,
                                               const moe_tensor *dst);

#ifdef __cplusplus
}
#endif
#endif
