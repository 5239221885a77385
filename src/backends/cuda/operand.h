// SPDX-License-Identifier: Apache-2.0
// Packed weights, in the order in which a warpgroup's threads hold the M operand of a matrix
// instruction. An expert is
//   blocks of 64 outputs x 64 k, the blocks of k of one block of outputs after each other;
//   where scales are not in the blocks: f32 scales [groups of k][packed outputs, padded], then,
//   where there are zero points, their bytes [groups of k][packed outputs, padded]; 16 bytes of
//   flags.
// decode.cuh makes bf16 of what is here.
//
// A block: for each of 128 threads (warp q, lane 4 g + t) and each of four steps of 16 k, a word of
// codes of 4 bits or two words of codes of 8. A step is four pairs of codes: pair p for output
// 16 q + g + 8 (p & 1) and k = 2 t + 8 (p >> 1), + 1. Words of a thread follow each other. Then,
// 4 bits:
//   MXFP4  4 bytes for each (q, g): E8M0 of output g for the first and second 32 k, then of g + 8
//   NVFP4  8 bytes for each (q, g): E4M3 of output g for the four steps, then of g + 8
//
// Where the bits of a code lie:
//   MXFP4, NVFP4  so that a shift or rotation serves both halves of a word and a mask leaves a bf16
//                 that is 2^126 too small: bits 15 and 8 to 6. Three pairs find room for that; the
//                 bits left over are the fourth's, and one multiplication moves them
//   U4            pairs 0 to 3 in bits 7 to 4, 3 to 0, 15 to 12, 11 to 8 of a half
//   U8            pairs 0 and 1 in the bytes of the first word, 2 and 3 in those of the second;
//                 int8 as offset binary: code ^ 0x80 with zero point 128
//   E4M3          as E2M1, bits 15 and 10 to 4: two pairs find room, bits left over in both words
//                 together are the other two
//
// Where a matrix has gates and ups, its outputs alternate in eights, so that a thread holds a gate
// and its up. Outputs and k past the end have code 0, and scales of 0 (E8M0: the smallest).
#ifndef MOEI_CUDA_OPERAND_H
#define MOEI_CUDA_OPERAND_H

#include "moe/backend.h"
#include "numerics/hd.h"

/// How weights are packed and decoded.
typedef enum moei_operand_kind {
    MOEI_OPERAND_MXFP4,
    MOEI_OPERAND_NVFP4,
    MOEI_OPERAND_U4,
    MOEI_OPERAND_U8, // int8 too
    MOEI_OPERAND_E4M3,
    MOEI_OPERAND_NUM_KINDS
} moei_operand_kind;

#define MOEI_OPERAND_TILE 64 // outputs, and k, of a block

// Bytes of a block, constant expressions: of codes, of scales, of both.
#define MOEI_OPERAND_CODES(kind)                                                                   \
    ((kind) >= MOEI_OPERAND_U8 ? MOEI_OPERAND_TILE * MOEI_OPERAND_TILE                             \
                               : MOEI_OPERAND_TILE * MOEI_OPERAND_TILE / 2)
#define MOEI_OPERAND_SCALES(kind)                                                                  \
    ((kind) == MOEI_OPERAND_MXFP4 ? 128 : (kind) == MOEI_OPERAND_NVFP4 ? 256 : 0)
#define MOEI_OPERAND_BYTES(kind) (MOEI_OPERAND_CODES(kind) + MOEI_OPERAND_SCALES(kind))

/// True where scales, and zero points, lie after the blocks.
#define MOEI_OPERAND_APART(kind) (MOEI_OPERAND_SCALES(kind) == 0)

/// What decoded values are too small by, a power of two: whoever uses their sums multiplies by it.
#define MOEI_OPERAND_UP(kind)                                                                      \
    ((kind) == MOEI_OPERAND_NVFP4                             ? 256.0f                             \
     : (kind) == MOEI_OPERAND_U4 || (kind) == MOEI_OPERAND_U8 ? 64.0f                              \
                                                              : 1.0f)

/// Flags of an expert, a uint32: the decoder of plain codes is exact. MXFP4: no scale is above
/// code 128. E4M3: no code is NaN. Others: always.
#define MOEI_OPERAND_PLAIN 1u

MOE_HD int64_t moei_operand_parts(const moei_matrices *m)
{
    return m->interleaved_parts || m->part_rows < m->n ? 2 : 1;
}

/// Outputs of an expert as they are packed, before padding to whole blocks.
MOE_HD int64_t moei_operand_rows(const moei_matrices *m)
{
    return moei_operand_parts(m) == 2 ? (m->n / 2 + 7) / 8 * 16 : m->n;
}

/// Blocks along the outputs, and along k.
MOE_HD int64_t moei_operand_blocks_n(const moei_matrices *m)
{
    return (moei_operand_rows(m) + MOEI_OPERAND_TILE - 1) / MOEI_OPERAND_TILE;
}

MOE_HD int64_t moei_operand_blocks_k(const moei_matrices *m)
{
    return (m->k + MOEI_OPERAND_TILE - 1) / MOEI_OPERAND_TILE;
}

/// Packed outputs with their padding: from one group of k to the next, in scales and zero points.
MOE_HD int64_t moei_operand_pitch(const moei_matrices *m)
{
    return moei_operand_blocks_n(m) * MOEI_OPERAND_TILE;
}

/// Groups of k that have a scale each.
MOE_HD int64_t moei_operand_groups(const moei_matrices *m)
{
    return m->block_k > 0 ? moei_divide(m->k + m->block_k - 1, m->block_k) : 1;
}

/// Where an expert's scales, zero points and flags begin, in bytes from its first block.
MOE_HD int64_t moei_operand_scales_at(moei_operand_kind kind, const moei_matrices *m)
{
    return moei_operand_blocks_n(m) * moei_operand_blocks_k(m) * MOEI_OPERAND_BYTES(kind);
}

MOE_HD int64_t moei_operand_zeros_at(moei_operand_kind kind, const moei_matrices *m)
{
    const int64_t scales = moei_operand_groups(m) * moei_operand_pitch(m);
    return moei_operand_scales_at(kind, m) +
           (MOEI_OPERAND_APART(kind) ? scales * (int64_t)sizeof(float) : 0);
}

MOE_HD int64_t moei_operand_flags_at(moei_operand_kind kind, const moei_matrices *m)
{
    const int64_t zeros = m->zero_e_stride > 0 ? moei_operand_groups(m) * moei_operand_pitch(m) : 0;
    return moei_operand_zeros_at(kind, m) + zeros;
}

/// Canonical output of packed output r; -1 for padding.
MOE_HD int64_t moei_operand_output(const moei_matrices *m, int64_t r)
{
    if (moei_operand_parts(m) == 1) {
        return r < m->n ? r : -1;
    }
    const int64_t i = r / 16 * 8 + r % 8;
    const int64_t part = r / 8 % 2;
    if (i >= m->n / 2) {
        return -1;
    }
    return m->interleaved_parts ? 2 * i + part : part * (m->n / 2) + i;
}

#if defined(__cplusplus)
extern "C" {
#endif

/// Kind of a format; -1: none.
int moei_operand_kind_of(const moei_format_info *format);

/// True if weights of the format whose scales span `block_k` (0: all k) can be packed: a scale must
/// hold for whole steps of two.
bool moei_operand_takes(const moei_format_info *format, int64_t block_k);

/// Zero point of the packed codes of a format without its own per group.
int moei_operand_zero_point(const moei_format_info *format);

/// As the members of moei_backend.
size_t moei_operand_bytes(const moei_kernel *kernel, const moei_matrices *m);
moe_status moei_operand_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to);
void moei_operand_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to);

#if defined(__cplusplus)
}
#endif

#endif
