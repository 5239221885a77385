// SPDX-License-Identifier: Apache-2.0
// Cases of the grouped product: random problems of any format in guarded memory, as codes for the
// kernel and as doubles for the oracle.
#ifndef MOE_CHECKMOE_GGEMM_CASE_H
#define MOE_CHECKMOE_GGEMM_CASE_H

#include "checkmoe/check_rows.h"
#include "checkmoe/checkmoe.h"
#include "checkmoe/layer_case.h"
#include "moe/ops.h"
#include "ops/ggemm.h"

#define MOEC_GGEMM_EXPERTS 5 // at most

/// The E8M0 codes that every packed layout keeps: with them every code of a weight but 0 is a
/// normal bf16.
static inline uint8_t moec_first_kept(const moei_format_info *info)
{
    return info->elem == MOE_E2M1 ? 2 : 17; // the smallest weight: 2^-1, of e5m2 2^-16
}

static inline uint8_t moec_last_kept(const moei_format_info *info)
{
    return info->elem == MOE_E2M1 ? 252 : 239; // weights below 2^3, of e5m2 below 2^16
}

typedef enum moec_fill {
    MOEC_EXACT,   // small integers and powers of two: every partial sum is exact
    MOEC_NORMAL,  // normal values
    MOEC_HEAVY,   // a few channels 100 times larger
    MOEC_CANCEL,  // rows whose second half is minus the first
    MOEC_TINY,    // magnitudes down to subnormal results
    MOEC_SPECIAL, // NaN, infinities, -0, subnormals, zero blocks
    MOEC_NUM_FILLS
} moec_fill;

const char *moec_fill_name(moec_fill fill);

/// Shapes of a case. Rows that refuse what is PLAIN get the ROUND one in its place.
typedef enum moec_ggemm_shape {
    MOEC_SHAPE_PLAIN,       // anything
    MOEC_SHAPE_ROUND,       // multiples of 128
    MOEC_SHAPE_LARGE,       // several tiles of any kernel, and more of k than one chunk
    MOEC_SHAPE_LARGE_ROUND, // both
    MOEC_NUM_SHAPES
} moec_ggemm_shape;

typedef struct moec_ggemm_case {
    // shape
    moe_gemm_desc gemm;
    const moei_format_info *info;
    moe_quant_desc act; // resolved; spec NONE: floats
    moec_fill fill;
    int32_t experts;
    int64_t n, k, rows;
    int32_t offsets[MOEC_GGEMM_EXPERTS + 1];
    bool at_end; // guard pages after the buffers, else before
    bool transposed, scatter, row_weights;
    bool moderate;       // E8M0 scales are those that every packed layout keeps
    moe_gate_up gate_up; // parts for tensor scales
    moe_dtype x_dtype, y_dtype;
    // data
    moec_buffers buffers;
    unsigned char *values, *scales, *zeros, *bias, *x, *x_scales, *y;
    unsigned char *packed; // the experts as a row of a packed layout reads them
    float *scale2, *act_scale, *weights;
    int32_t *index, *out_index;
    int32_t *steps;   // offsets, then experts + 1 zeros, then as many ones
    int64_t y_stride; // elements
    float64_ggemm oracle;
    char text[256];
} moec_ggemm_case;

/// Stores the code of element i of a packed row; codes of 4, 6, 8, 16 or 32 bits.
void moec_put_code(moe_dtype dtype, unsigned char *row, int64_t i, uint32_t code);

/// A buffer of the case. All lie on the same side of their guard pages.
void *moec_ggemm_take(moec_ggemm_case *c, bool output, int64_t count, size_t size, bool at_end);

/// What a case is about; the rest of it is 0.
void moec_ggemm_begin(moec_ggemm_case *c, const moe_gemm_desc *gemm, moe_dtype x_dtype,
                      moec_fill fill, bool moderate);

/// Draws sizes, row counts and the types that the class leaves open.
void moec_ggemm_draw(moec_ggemm_case *c, moec_rng *rng, moec_ggemm_shape kind);

/// Fills a drawn case: codes for the kernel, doubles for the oracle. False where memory is short.
bool moec_ggemm_build(moec_ggemm_case *c, moec_rng *rng);

void moec_ggemm_free(moec_ggemm_case *c);

/// The kernel's arguments, by the library's own reading of the case's views.
moe_status moec_ggemm_args(const moec_ggemm_case *c, moek_ggemm_args *a);

/// Offsets of a group with one row of expert e.
const int32_t *moec_ggemm_one_row(const moec_ggemm_case *c, int32_t e);

/// How a row sums; NULL: a plan has no such product.
float64_model moec_model_of(const moei_kernel *kernel);

#endif
