// SPDX-License-Identifier: Apache-2.0
/// @file matrix.h  Packed matrices for moe_ggemm: the linear layers beside the experts (attention,
/// router, output), or a stack of experts that an engine runs step by step.
///
/// moe_ggemm multiplies by tensors where they lie, in rows. Kernels of a CPU read a layout of their
/// own faster, most of all for few tokens: at the speed of memory. A matrix is packed once, then it
/// is an argument of moe_ggemm. At the default level of determinism its products have the bits that
/// the same call has over the tensors.
#ifndef MOE_MATRIX_H
#define MOE_MATRIX_H

#include "moe/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/// A stack of `count` matrices W of N outputs and K inputs, and what products by it read. Zero is
/// unset: x_dtype and gemm.weight_format are then refused, the others have the stated default.
typedef struct moe_matrix_desc {
    size_t struct_size;      ///< sizeof(moe_matrix_desc); moe_matrix_desc_default sets it
    int64_t outputs, inputs; ///< N and K, each 1 .. 2^31 - 1, together at most 2^48 elements
    int32_t count;           ///< experts, up to 4096; 0: 1
    int32_t transposed;      ///< 1: sources are [n, K, N]
    moe_gemm_desc gemm;      ///< as in moe_ggemm_args
    moe_dtype x_dtype;       ///< of moe_ggemm's x: f32, bf16 or f16; with gemm.act 0 or its codes
    moe_determinism determinism; ///< the least that products must hold; 0: BATCH
} moe_matrix_desc;

static inline moe_matrix_desc moe_matrix_desc_default(void)
{
    moe_matrix_desc d;
    char *p = (char *)&d;
    size_t i;
    for (i = 0; i < sizeof d; i++) {
        p[i] = 0;
    }
    d.struct_size = sizeof d;
    return d;
}

/// Opaque. Any number of threads may multiply by one at once; its context must outlive it.
typedef struct moe_matrix moe_matrix;

/// Bytes and alignment of the memory that the packed matrices take: about those of the tensors,
/// outputs rounded up to 16 and inputs to 32, biases in f32. Errors: as moe_matrix_create. Since
/// 0.1.
MOE_API moe_status moe_matrix_bytes(const moe_context *ctx, const moe_matrix_desc *desc,
                                    size_t *bytes, size_t *align);

/// Chooses a kernel and makes empty matrices in the caller's memory, which must outlive them. The
/// system is asked for huge pages (madvise), best where nothing has been written yet.
/// @param[out] out  untouched on failure
/// Errors: ARGUMENT, UNSET, SHAPE, DTYPE, OVERFLOW, VERSION, UNSUPPORTED (a context whose tensors
/// are not in host memory: its kernels read tensors where they lie), NO_KERNEL, LEVEL, ALIGNMENT,
/// NO_MEMORY. Since 0.1.
MOE_API moe_status moe_matrix_create(const moe_context *ctx, const moe_matrix_desc *desc,
                                     void *memory, size_t bytes, moe_matrix **out);

/// Copies experts [first, first + n) of `source` (n from its views) into their place, on all
/// threads of the context. Scales that are not finite are refused, naming expert and index. Calls
/// for different experts may come from several threads; packing again replaces, while no product
/// runs. Errors: ARGUMENT, SHAPE, DTYPE, VALUE, STATE (adopted), NO_MEMORY. Since 0.1.
MOE_API moe_status moe_matrix_pack(moe_matrix *matrix, int32_t first,
                                   const moe_matrix_source *source);

/// The inverse: writes experts `first` .. into the canonical views of `out`, once all have been
/// checked. Errors: ARGUMENT, SHAPE, DTYPE, VALUE, STATE, NO_MEMORY. Since 0.1.
MOE_API moe_status moe_matrix_unpack(const moe_matrix *matrix, int32_t first,
                                     const moe_matrix_source *out);

/// Names how the packed bytes lie, as moe_weights_layout does: bytes that were packed for one
/// descriptor can be adopted for another where the texts are equal. "matrix.layout=rows" says that
/// the chosen kernel reads rows: packing then gains nothing over the tensors themselves. Errors: as
/// moe_matrix_create. Since 0.1.
MOE_API moe_status moe_matrix_layout_name(const moe_context *ctx, const moe_matrix_desc *desc,
                                          char *buffer, size_t capacity, size_t *needed);

/// Makes matrices of bytes that were packed before, by this process or another one: the memory of
/// moe_matrix_create once every expert had been packed, moe_matrix_bytes of it. Nothing is copied
/// or written, so the memory may be mapped read-only. The bytes themselves are trusted: keep a
/// checksum beside them.
/// @param[in]  layout  what moe_matrix_layout_name said of the descriptor that they were packed for
/// Errors: those of moe_matrix_create, UNSUPPORTED (another layout; the message has the first words
/// that differ), SHAPE (another size), VALUE (an activation scale that is no number above 0). Since
/// 0.1.
MOE_API moe_status moe_matrix_adopt(const moe_context *ctx, const moe_matrix_desc *desc,
                                    const void *memory, size_t bytes, const char *layout,
                                    moe_matrix **out);

/// Name of the kernel that multiplies by it (moe_context_visit_kernels has its class). Since 0.1.
MOE_API const char *moe_matrix_kernel(const moe_matrix *matrix);

/// NULL is fine. The caller's memory is not touched. Since 0.1.
MOE_API void moe_matrix_destroy(moe_matrix *matrix);

#ifdef __cplusplus
}
#endif
#endif
