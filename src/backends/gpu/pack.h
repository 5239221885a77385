// SPDX-License-Identifier: Apache-2.0
// What packed layouts of GPUs have in common: scales and zero points that lie apart from the codes,
// f32 [groups of k][packed outputs] and a byte [groups of k][packed outputs]. Host code.
#ifndef MOEI_GPU_PACK_H
#define MOEI_GPU_PACK_H

#include "moe/backend.h"

/// Canonical output of packed output r; -1: padding.
typedef int64_t moei_gpu_output_fn(const moei_matrices *m, int64_t r);

/// Fills scales, and zero points where `zeros` is not NULL, from one expert. Padding becomes 0.
void moei_gpu_pack_apart(const moei_matrices *from, moei_gpu_output_fn *output, int64_t outputs,
                         int64_t groups, uint8_t *scales, uint8_t *zeros);

/// The inverse.
void moei_gpu_unpack_apart(const uint8_t *scales, const uint8_t *zeros, moei_gpu_output_fn *output,
                           int64_t outputs, int64_t groups, const moei_matrices *to);

#endif
