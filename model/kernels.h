// SPDX-License-Identifier: Apache-2.0
/// @file kernels.h  Inner loops of the decoder, one source (kernels.c) compiled for each
/// instruction set. Every lane is one chain of additions and multiplications in a stated order,
/// none of them fused, so all builds give the same bits.
#ifndef MOEM_KERNELS_H
#define MOEM_KERNELS_H

#include "moe/moe.h"

#define MOEM_LANES 16 // of a vector, whatever the registers

/// Keys of a step of the running maximum: blocks of positions from a multiple of this.
#define MOEM_BLOCK 64

/// Largest head_dim that attention takes.
#define MOEM_MAX_HEAD_DIM 512

/// Query heads that share a key head, and the keys in memory. Position p lies in row p % rows.
typedef struct moem_attend_args {
    const float *keys;   ///< [rows / 16, dim, 16]: of 16 positions, dimension by dimension
    const float *values; ///< [rows, width]
    int64_t rows;        ///< a multiple of 16
    int64_t dim,
        width;   ///< width: dim rounded up to a multiple of 16; what is there counts for nothing
    float scale; ///< of the scores
} moem_attend_args;

/// One query of one head.
typedef struct moem_attend_row {
    const float *q;      ///< [dim]
    float *out;          ///< [dim]
    int64_t first, last; ///< the positions that it sees
    float sink;
} moem_attend_row;

typedef struct moem_kernels {
    const char *isa; ///< of the library's rows that run where this does; NULL: everywhere
    /// softmax(scale * q . keys, sink) . values for each row, at most MOEM_ATTEND_ROWS of them:
    ///   score = the products of dimensions ascending, one chain; times scale
    ///   per block: the maximum so far; shares e^(score - maximum), summed in 16 lanes by position;
    ///   out = the shares times values, keys ascending, one chain; divided by the sum of all lanes,
    ///   as a tree, and the sink's share
    void (*attend)(const moem_attend_args *args, const moem_attend_row *rows, int64_t count);
    /// x += branch (NULL: nothing), out = x * (1 / sqrt(mean(x^2) + eps)) * weight: squares in
    /// double, in 16 lanes, added as a tree.
    void (*norm)(float *x, const float *branch, const float *weight, double eps, int64_t width,
                 float *out);
} moem_kernels;

#define MOEM_ATTEND_ROWS 8

/// The fastest that the context may use.
const moem_kernels *moem_kernels_of(const moe_context *ctx);

/// All that this program has, the portable one last; NULL past the end.
const moem_kernels *moem_kernels_at(size_t i);

/// Whether the context may use them.
int moem_kernels_run(const moem_kernels *kernels, const moe_context *ctx);

#endif
