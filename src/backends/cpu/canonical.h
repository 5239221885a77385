// SPDX-License-Identifier: Apache-2.0
// A product with canonical weights, decoded to floats [k][output] a slice of k at a time: the walk
// that instruction sets have in common. On the right is what a kernel brings.
//
//   panels of outputs, as wide as rows of weights allow     open
//     blocks of rows
//       a chunk of k                                        load      x and scales as floats
//         a slice of it                                     decode    weights
//           a chain, or what of one is in the slice         multiply
//           where a chain ends                              add       with its scales
//       results
//
// Static inline, as product.h is.
#ifndef MOEI_BACKENDS_CPU_CANONICAL_H
#define MOEI_BACKENDS_CPU_CANONICAL_H

#include "backends/cpu/product.h"

#define MOEI_CPU_SLICE 64  // k
#define MOEI_CPU_CHUNK 256 // k: no chain crosses a multiple of it

/// Outputs n0 .. n0 + outputs - 1 of an expert; rows i0 .. i0 + rows - 1.
typedef struct moei_cpu_canonical {
    const moek_ggemm_args *args;
    int32_t e;
    int64_t n0, outputs;
    int64_t i0, rows;
    bool subtracts_zeros;                     // after decoding
    const uint8_t *row[MOEI_CPU_MAX_COLUMNS]; // past the last output: that one again
    float (*acc)[MOEI_CPU_MAX_COLUMNS];       // sums of the rows
    moei_cpu_columns columns;
} moei_cpu_canonical;

/// Some elements of k: `count` from k0 + slice + k on.
typedef struct moei_cpu_part {
    int64_t k0;    // of the chunk
    int64_t slice; // from there
    int64_t k;     // from there
    int64_t count;
} moei_cpu_part;

/// What a kernel brings. All get its `panel`.
typedef struct moei_cpu_canonical_ops {
    /// The panel is another one.
    void (*open)(void *panel);
    /// x, and the scales of blocks of `chain` k if `scales`, of elements k0 .. k0 + count - 1.
    void (*load)(void *panel, int64_t k0, int64_t count, int64_t chain, bool scales);
    /// Weights of a slice.
    void (*decode)(void *panel, moei_cpu_part slice, int64_t chain);
    /// All chains go on by a part of the slice, or begin from +0.
    void (*multiply)(void *panel, moei_cpu_part part, bool begins);
    /// The sums of row r to acc: as they are, or folded with the scales of x and of block b. NULL:
    /// they are there.
    void (*add)(void *panel, int64_t r, bool fold, int64_t b, float x_scale);
} moei_cpu_canonical_ops;

/// moei_cpu_code_bytes of canonical weights, less the zero point that all of them have.
static inline void moei_cpu_canonical_bytes(const moei_cpu_canonical *c, uint8_t low[16],
                                            uint8_t high[16])
{
    const moei_format_info *format = c->args->w.format;
    const int zero = c->subtracts_zeros || format->zero_point < 0 ? 0 : format->zero_point;
    float value[16];
    for (int code = 0; code < 16; code++) {
        value[code] =
            format->elem == MOE_E2M1 ? moei_e2m1_to_f32((uint8_t)code) : (float)(code - zero);
    }
    moei_cpu_code_bytes(value, low, high);
}

static inline void moei_cpu_canonical_begin(moei_cpu_canonical *c, const moek_ggemm_args *args,
                                            int32_t e)
{
    const moei_matrices *m = &args->w;
    const bool table = moe_dtype_bits(m->format->elem) == 4 && m->value_k_stride == 0;
    c->args = args;
    c->e = e;
    c->subtracts_zeros = m->format->zero_point >= 0 && (m->zeros != NULL || !table);
}

static inline void moei_cpu_canonical_open(moei_cpu_canonical *c, int64_t n0, int64_t n1)
{
    const moei_matrices *m = &c->args->w;
    c->n0 = n0;
    c->outputs = n1 - n0;
    for (int64_t n = 0; n < MOEI_CPU_MAX_COLUMNS; n++) {
        const int64_t row = moei_i64_min(n0 + n, n1 - 1);
        c->row[n] = m->values + (int64_t)c->e * m->value_e_stride + row * m->value_n_stride;
    }
    moei_cpu_load_columns(m, c->e, n0, n1, &c->columns);
}

/// Outputs that a vector holds at most, so that they are turned together.
#define MOEI_CPU_MAX_GROUP 16

/// Turns `count` k of `group` rows that begin at the addresses given, and decodes them as outputs g
/// .. g + group - 1 of the panel. Reads whole steps.
typedef void moei_cpu_turn_fn(void *panel, const uint8_t *const *rows, int64_t g, int64_t count);

/// `count` k from k0 on, `group` rows at a time. tail: where the ends of rows lie that are no whole
/// steps of bytes, with zeros behind them.
__attribute__((always_inline)) static inline void
moei_cpu_turn_rows(const moei_cpu_canonical *c, void *panel, moei_cpu_turn_fn *turn, int64_t group,
                   int64_t step, uint8_t (*tail)[MOEI_CPU_SLICE * sizeof(float)], int64_t k0,
                   int64_t count)
{
    const moe_dtype elem = c->args->w.format->elem;
    const int64_t at = moei_elem_bytes(elem, k0);
    const int64_t bytes = moei_elem_bytes(elem, count);
    for (int64_t g = 0; g < c->outputs; g += group) {
        const uint8_t *rows[MOEI_CPU_MAX_GROUP];
        for (int64_t r = 0; r < group; r++) {
            rows[r] = c->row[g + r] + at;
            if (bytes % step != 0) { // whole steps would read past the row
                memcpy(tail[r], rows[r], (size_t)bytes);
                memset(tail[r] + bytes, 0, (size_t)(step - bytes % step));
                rows[r] = tail[r];
            }
        }
        turn(panel, rows, g, count);
    }
}

/// Weights whose rows of n lie packed (transposed) need not be turned: `count` k from k0 on.
static inline void moei_cpu_load_transposed(const moei_cpu_canonical *c, int64_t k0, int64_t count,
                                            float (*out)[MOEI_CPU_MAX_COLUMNS])
{
    const moei_matrices *m = &c->args->w;
    const uint8_t *base = m->values + (int64_t)c->e * m->value_e_stride;
    for (int64_t k = 0; k < count; k++) {
        moei_load_f32(m->format->elem, base + (k0 + k) * m->value_k_stride, c->n0, c->outputs,
                      out[k]);
    }
}

/// Codes of a slice less their zero points.
static inline void moei_cpu_subtract_zeros(const moei_cpu_canonical *c, int64_t k0, int64_t count,
                                           float (*codes)[MOEI_CPU_MAX_COLUMNS])
{
    const moei_matrices *m = &c->args->w;
    const int64_t block =
        m->zeros != NULL ? moei_i64_min(m->block_k, MOEI_CPU_SLICE) : MOEI_CPU_SLICE;
    for (int64_t k = 0; k < count; k += block) {
        float zero[MOEI_CPU_MAX_COLUMNS];
        for (int64_t n = 0; n < c->outputs; n++) {
            zero[n] = moei_cpu_zero_point(m, c->e, c->n0 + n, k0 + k);
        }
        for (int64_t kk = k; kk < moei_i64_min(k + block, count); kk++) {
            for (int64_t n = 0; n < c->outputs; n++) {
                codes[kk][n] -= zero[n];
            }
        }
    }
}

/// The rows of the block over the outputs of the panel. chain: k of one; fold: its scales are
/// applied to its sum.
__attribute__((always_inline)) static inline void
moei_cpu_canonical_block(moei_cpu_canonical *c, const moei_cpu_canonical_ops *ops, void *panel,
                         int64_t chain, bool fold)
{
    const moek_ggemm_args *a = c->args;
    const bool fold_w = fold && a->w.scales != NULL && a->w.block_k > 0;
    const bool fold_x = fold && a->x.scales != NULL && a->x.group > 0;
    const int64_t length = chain < MOEI_CPU_SLICE ? chain : MOEI_CPU_SLICE;
    memset(c->acc, 0, (size_t)c->rows * sizeof c->acc[0]);
    for (int64_t k0 = 0; k0 < a->w.k; k0 += MOEI_CPU_CHUNK) {
        const int64_t kc = moei_i64_min(MOEI_CPU_CHUNK, a->w.k - k0);
        ops->load(panel, k0, kc, chain, fold_w);
        for (int64_t at = 0, count; at < kc; at += count) {
            const int64_t slice = at / MOEI_CPU_SLICE * MOEI_CPU_SLICE;
            if (at == slice) {
                const int64_t whole = moei_i64_min(MOEI_CPU_SLICE, kc - slice);
                ops->decode(panel, (moei_cpu_part){k0, slice, 0, whole}, chain);
            }
            count = moei_i64_min(length, kc - at);
            ops->multiply(panel, (moei_cpu_part){k0, slice, at - slice, count}, at % chain == 0);
            if ((at + count) % chain != 0 && at + count < kc) {
                continue; // the chain goes on in the next slice
            }
            const int64_t b = at / chain;
            for (int64_t r = 0; ops->add != NULL && r < c->rows; r++) {
                const float x_scale =
                    fold_x ? moei_cpu_operand_scale(a, c->e, c->i0 + r, k0 + b * chain) : 1.0f;
                ops->add(panel, r, fold, b, x_scale);
            }
        }
    }
    for (int64_t r = 0; r < c->rows; r++) {
        moei_cpu_finish(a, &c->columns, c->e, c->i0 + r, c->n0, c->n0 + c->outputs, c->acc[r]);
    }
}

/// The product of rows i0 .. i1 - 1 and outputs n0 .. n1 - 1, up to `rows` x `width` at once.
__attribute__((always_inline)) static inline void
moei_cpu_canonical_run(moei_cpu_canonical *c, const moei_cpu_canonical_ops *ops, void *panel,
                       int64_t rows, int64_t width, int64_t i0, int64_t i1, int64_t n0, int64_t n1,
                       int64_t chain, bool fold)
{
    for (int64_t n = n0; n < n1; n += width) {
        moei_cpu_canonical_open(c, n, moei_i64_min(n + width, n1));
        ops->open(panel);
        for (int64_t i = i0; i < i1; i += rows) {
            c->i0 = i;
            c->rows = moei_i64_min(rows, i1 - i);
            moei_cpu_canonical_block(c, ops, panel, chain, fold);
        }
    }
}

#endif
