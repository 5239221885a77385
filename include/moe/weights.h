// SPDX-License-Identifier: Apache-2.0
/// @file weights.h  A layer's weights: from the checkpoint's tensors to the plan's own layout.
#ifndef MOE_WEIGHTS_H
#define MOE_WEIGHTS_H

#include "moe/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/// One stack of matrices in canonical layout: n experts, N outputs, K inputs.
typedef struct moe_matrix_source {
    moe_tensor values; ///< [n, N, K], transposed [n, K, N]; sub-byte formats may come as U8 [n, N,
                       ///< bytes of K] or U8 [n, N, K/32, 16] (blocks); last stride 1
    moe_tensor scales; ///< tensor: [n] or [n, 2] (gate and up; parts in row order); channel: [n, N]
                       ///< or [n, N, 1]; else [n, ceil(N/block_n), ceil(K/block_k)]; multipliers
    moe_tensor scale2; ///< NVFP4: f32 [n] or [n, 2], a multiplier (ModelOpt's weight_scale_2);
                       ///< channel_scale: f32 [n, N] or [n, N, 1], a multiplier of each output
    moe_tensor zero_points; ///< U8 [n, N, ceil(K/g)]; of 4-bit formats also UINT4 of that shape
                            ///< (rows begin on a byte: an odd count has the next even stride), or
                            ///< U8 [n, ceil(N/2), ceil(K/g)] with row 2i in the low nibble
    moe_tensor bias;        ///< [n, N] f32, bf16 or f16
    moe_tensor act_scale;   ///< static activation scale or NVFP4 global: f32 [1], one for all
                            ///< experts; where x arrives as codes, shared[0]'s equals gemm[0]'s
} moe_matrix_source;

/// A layer's tensors. A part of the descriptor that is not given here must come in another call.
typedef struct moe_weights_source {
    size_t struct_size;
    moe_matrix_source gemm[2];   ///< the routed experts: n = the experts of this call
    moe_matrix_source shared[2]; ///< n = shared.count
    moe_tensor shared_gate;      ///< SHARED_SIGMOID: [1, H] or [H]
    moe_tensor latent_in;        ///< [L, H] f32, bf16 or f16
    moe_tensor latent_out;       ///< [H, L]
    moe_tensor output_bias;      ///< [H]
} moe_weights_source;

static inline moe_weights_source moe_weights_source_default(void)
{
    moe_weights_source s;
    char *p = (char *)&s;
    size_t i;
    for (i = 0; i < sizeof s; i++) {
        p[i] = 0;
    }
    s.struct_size = sizeof s;
    return s;
}

/// Bytes and alignment of the memory that packed weights take. Since 0.1.
MOE_API moe_status moe_weights_bytes(const moe_plan *plan, size_t *bytes, size_t *align);

/// Makes empty packed weights in the caller's memory, which must outlive them and be of the
/// plan's device. Of host memory the system is asked for huge pages (madvise), best where nothing
/// has been written yet. Errors: ARGUMENT, ALIGNMENT, NO_MEMORY. Since 0.1.
MOE_API moe_status moe_weights_create(const moe_plan *plan, void *memory, size_t bytes,
                                      moe_weights **out);

/// The tensors of `source` lie in host memory, whatever the plan's device.
/// Copies experts [first, first + n) of `source` (n from the views) into the plan's layout, and
/// the layer's other tensors where given. Scales that are not finite are refused, naming
/// tensor, expert and index; a NaN among the codes stays one and shows in the output. The threads
/// of the plan's context share an expert, and on the CPU nothing of it is held besides. May be
/// called for different experts from several threads. Where a packed layout cannot keep an element
/// (VALUE, naming it), its expert stays as it was; those before it have been packed. Errors:
/// ARGUMENT, SHAPE, DTYPE, VALUE. Since 0.1.
MOE_API moe_status moe_weights_pack(moe_weights *weights, int32_t first,
                                    const moe_weights_source *source);

/// Uses the caller's tensors where they lie (an mmapped checkpoint; memory of the plan's device):
/// nothing is copied but the small per-layer vectors. They must stay, unchanged, until
/// moe_weights_destroy has returned: it waits for threads that are late with a task which another
/// has done meanwhile (docs/cpu.md). Checks as moe_weights_pack. Errors: those, UNSUPPORTED (a
/// chosen kernel needs a packed layout; pack instead). Since 0.1.
MOE_API moe_status moe_weights_wrap(const moe_plan *plan, const moe_weights_source *source,
                                    moe_weights **out);

/// Rewrites one expert of packed weights in place; no run that uses them may be in progress.
/// Errors as moe_weights_pack. Since 0.1.
MOE_API moe_status moe_weights_update(moe_weights *weights, int32_t expert,
                                      const moe_weights_source *source);

/// The inverse of pack: writes expert `first` .. into the canonical views of `out` (those with
/// data, in host memory), once all have been checked. Errors: SHAPE, DTYPE, STATE, ARGUMENT,
/// VERSION. Since 0.1.
MOE_API moe_status moe_weights_unpack(const moe_weights *weights, int32_t first,
                                      const moe_weights_source *out);

/// Names how packed weights of the plan lie in memory: words "name=value" (backend, bytes, and of
/// each matrix its shape, format, scales, order and packed layout). Equal texts mean that what was
/// packed for one plan can be adopted for the other; the text stays the same over processes,
/// machines, thread counts and token counts, unless another kernel is chosen. Packed bytes have the
/// byte order of the machine, which the text does not tell. Packs small matrices to find the name
/// of a layout: a call for start-up, not for runs. Like snprintf: at most capacity bytes with the
/// final NUL, *needed (may be NULL) is the length of the whole text. Errors: ARGUMENT, NO_MEMORY.
/// Since 0.1.
MOE_API moe_status moe_weights_layout(const moe_plan *plan, char *buffer, size_t capacity,
                                      size_t *needed);

/// Makes weights of bytes that were packed before, by this process or another one: the memory of
/// moe_weights_create once every tensor had been packed, moe_weights_bytes of it. Nothing is copied
/// or written, so the memory may be mapped read-only; it must outlive the weights and be of the
/// plan's device. They run with the bits of those that were packed, and moe_weights_unpack takes
/// them; moe_weights_pack and _update refuse them (STATE). The bytes themselves are trusted: keep a
/// checksum beside them, as packed files do (moe/io.h).
/// @param[in]  layout  what moe_weights_layout said of the plan that they were packed for
/// @param[out] out     untouched on failure
/// Errors: ARGUMENT, UNSUPPORTED (another layout; the message has the first words that differ),
/// SHAPE (another size), ALIGNMENT, VALUE (an activation scale that is no number above 0),
/// NO_MEMORY. Since 0.1.
MOE_API moe_status moe_weights_adopt(const moe_plan *plan, const void *memory, size_t bytes,
                                     const char *layout, moe_weights **out);

/// NULL is fine. The caller's memory is not touched. Since 0.1.
MOE_API void moe_weights_destroy(moe_weights *weights);

#ifdef __cplusplus
}
#endif
#endif
