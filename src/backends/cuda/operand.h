// SPDX-License-Identifier: Apache-2.0
// Packed weights of 4 bits, in the order in which a warpgroup's threads hold the M operand of a
// matrix instruction. An expert is blocks of 64 outputs x 64 k, the blocks of k of one block of
// outputs after each other.
//
// A block: 16 bytes for each of 128 threads (warp q, lane 4 g + t), one word per step of 16 k: four
// pairs of codes, pair p for output 16 q + g + 8 (p & 1) and k = 2 t + 8 (p >> 1), + 1; then 4
// bytes for each (q, g): scales of outputs g and g + 8, of the first and second 32 k each.
//
// The bits of a code lie where bf16 wants its sign, exponent and fraction after one shift that
// serves both halves of a word: e2m1 as a bf16 that is 2^126 too small. A scale is its E8M0 code,
// which is the exponent field of a bf16 of its value; 2 to 252 keep every product of code and scale
// a normal number.
//
// Where a matrix has gates and ups, its outputs alternate in eights, so that a thread holds a gate
// and its up. Outputs and k past the end are zeros.
#ifndef MOEI_CUDA_OPERAND_H
#define MOEI_CUDA_OPERAND_H

#include "moe/backend.h"
#include "numerics/hd.h"

#define MOEI_OPERAND_TILE  64 // outputs, and k, of a block
#define MOEI_OPERAND_CODES (MOEI_OPERAND_TILE * MOEI_OPERAND_TILE / 2)
#define MOEI_OPERAND_BYTES (MOEI_OPERAND_CODES + 128)

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

#if !defined(__CUDACC__)
/// As the members of moei_backend, for MXFP4.
size_t moei_operand_bytes(const moei_kernel *kernel, const moei_matrices *m);
moe_status moei_operand_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to);
void moei_operand_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to);
#endif

#endif
