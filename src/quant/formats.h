// SPDX-License-Identifier: Apache-2.0
// The weight formats as data; rows of formats.def.
#ifndef MOEI_QUANT_FORMATS_H
#define MOEI_QUANT_FORMATS_H

#include "moe/backend.h"

/// A format's number is its place in the table, from 1; types.h has the public names.
enum {
    MOEI_FORMAT_UNSET = MOE_FORMAT_UNSET,
#define MOE_FORMAT_ROW(ID, ...) MOEI_FORMAT_##ID,
#include "quant/formats.def"
#undef MOE_FORMAT_ROW
    MOEI_FORMAT_END
};

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
