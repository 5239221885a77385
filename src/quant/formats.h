// SPDX-License-Identifier: Apache-2.0
// The weight formats as data; rows of formats.def.
#ifndef MOEI_QUANT_FORMATS_H
#define MOEI_QUANT_FORMATS_H

#include <stdbool.h>

#include "moe/plan.h"

typedef struct moei_format_info {
    moe_format format;
    const char *name;
    moe_dtype elem;
    int32_t block_n, block_k; // 0: the whole extent
    uint32_t scale_dtypes;    // bit 1 << moe_dtype; 0: no scales
    bool scale2;
    int32_t zero_point; // -1: none
    bool free_group;
    const char *source;
} moei_format_info;

/// How the zero points of n matrices lie: G groups of k in each of N rows.
typedef enum moei_zero_form {
    MOEI_ZERO_BYTES,  // U8 [n, N, G]
    MOEI_ZERO_PAIRS,  // U8 [n, ceil(N/2), G], row 2i in the low nibble
    MOEI_ZERO_NIBBLES // UINT4 [n, N, G]
} moei_zero_form;

/// NULL for MOE_FORMAT_UNSET and unknown values.
const moei_format_info *moei_format(moe_format format);

/// Rows in table order; NULL past the end.
const moei_format_info *moei_format_at(size_t i);

/// The default scale dtype of a format: F32 where allowed, else the only one; 0 without scales.
moe_dtype moei_format_scale_dtype(const moei_format_info *info);

/// Elements of k that share a scale in this product, 0: all of them.
static inline int32_t moei_gemm_block_k(const moei_format_info *info, const moe_gemm_desc *gemm)
{
    return info->free_group && gemm->weight_group > 0 ? gemm->weight_group : info->block_k;
}

#endif
