// SPDX-License-Identifier: Apache-2.0
// Cases of the quantisers: random problems of any named rule, layout and fill in guarded memory,
// and what tests/float64 says must come out, byte for byte. Shared by `moe check` and the unit
// tests.
#ifndef MOE_CHECKMOE_QUANTIZE_CASE_H
#define MOE_CHECKMOE_QUANTIZE_CASE_H

#include "checkmoe/checkmoe.h"
#include "moe/quantize.h"
#include "quant/specs.h"

#define MOEC_QUANTIZE_BATCHES 8

/// What a group of elements that share a scale holds. MIXED: every group draws one of the others.
typedef enum moec_quantize_fill {
    MOEC_QUANTIZE_ZERO,      // zeros of both signs
    MOEC_QUANTIZE_NORMAL,    // normal values
    MOEC_QUANTIZE_HEAVY,     // one in 16 is 100 to 1000 times larger
    MOEC_QUANTIZE_SPREAD,    // spread over binades
    MOEC_QUANTIZE_TIES,      // small integers
    MOEC_QUANTIZE_TINY,      // down to subnormal
    MOEC_QUANTIZE_SUBNORMAL, // nothing but subnormals and zeros
    MOEC_QUANTIZE_EDGE,      // amax at, just above or just below a place where a scale changes
    MOEC_QUANTIZE_POWER,     // amax is 2^n, 448 * 2^n, 6 * 2^n or MAX * 2^n
    MOEC_QUANTIZE_TAME,      // above here: neither special values nor the largest ones
    MOEC_QUANTIZE_LARGE = MOEC_QUANTIZE_TAME,
    MOEC_QUANTIZE_MAX_FINITE, // the largest finite number among ordinary ones
    MOEC_QUANTIZE_INFINITE,   // infinities without NaN
    MOEC_QUANTIZE_NAN,        // NaN among ordinary values
    MOEC_QUANTIZE_SPECIAL,    // NaN and infinities
    MOEC_QUANTIZE_NUM_FILLS,
    MOEC_QUANTIZE_MIXED = MOEC_QUANTIZE_NUM_FILLS
} moec_quantize_fill;

typedef struct moec_quantize_problem {
    moe_quant_desc quant; // resolved
    moe_dtype x_dtype;
    int32_t batches;
    int64_t rows, k;
    int32_t counts[MOEC_QUANTIZE_BATCHES];
    bool batched, with_counts;
    bool padded;            // rows, batches and the beginning of each view are apart
    bool bytes;             // codes, and scales of one byte, as views of U8
    bool silu, round_steps; // moe_silu_mul_quantize
    bool at_end;            // guard page after the data, else before
    bool tame;              // MIXED: none of the fills from TAME on
    moec_quantize_fill fill;
    float given; // scale (STATIC), or global scale (NVFP4)
} moec_quantize_problem;

/// Memory of one operand: exactly what its view spans, all of it compared.
typedef struct moec_quantize_memory {
    moec_guard guard;
    moe_tensor view;
} moec_quantize_memory;

/// What a run writes. `back`: the values that moe_dequantize gives; not for silu.
typedef struct moec_quantize_output {
    moec_quantize_memory q, scales, back;
    float global;
} moec_quantize_output;

/// A built problem.
typedef struct moec_quantize_case {
    moec_quantize_problem p;
    moec_quantize_memory x;
    moec_quantize_output want;
    float *values; // [batches, rows, k]: x, or its SiLU product
    char text[256];
} moec_quantize_case;

/// Rows of batch b that are there.
int64_t moec_quantize_count(const moec_quantize_problem *p, int32_t b);

/// Draws counts: batch 0 full, batch 1 empty, the others anything.
void moec_quantize_draw_counts(moec_quantize_problem *p, moec_rng *rng);

/// A given scale: ordinary, a power of two, or an extreme that has no finite inverse.
float moec_quantize_draw_given(moec_rng *rng);

/// Draws x and states what must come out. False: memory is short.
bool moec_quantize_build(moec_quantize_case *c, const moec_quantize_problem *p, moec_rng *rng);
void moec_quantize_free(moec_quantize_case *c);

/// Runs the public calls into poisoned memory of `have`'s own; moe_last_error says what failed.
moe_status moec_quantize_run(const moe_context *ctx, const moec_quantize_case *c,
                             moec_quantize_output *have);
void moec_quantize_output_free(moec_quantize_output *o);

/// Compares all bytes, those between rows and past counts included. Names what differs ("codes",
/// "scales", "global scale", "values back"), or returns NULL.
const char *moec_quantize_differs(const moec_quantize_output *have,
                                  const moec_quantize_output *want);

/// Where row r of batch b begins in q or back, and scale (b, row, g), in bytes.
unsigned char *moec_quantize_row(const moec_quantize_memory *m, const moec_quantize_problem *p,
                                 int32_t b, int64_t r);
unsigned char *moec_quantize_scale(const moec_quantize_memory *m, const moec_quantize_problem *p,
                                   int32_t b, int64_t row, int64_t g);

/// Rows that share a scale: 128 in blocks, else 1. Scales of a row.
int64_t moec_quantize_block_rows(const moec_quantize_problem *p);
int64_t moec_quantize_groups(const moec_quantize_problem *p);

#endif
