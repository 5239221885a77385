// SPDX-License-Identifier: Apache-2.0
// The format table, and names of element types.
#include "quant/formats.h"

#include <string.h>

#include "quant/elements.h"

static const moei_format_info formats[] = {
#define MOE_FORMAT_ROW(ID, name, elem, block_n, block_k, scales, scale2, zero, free_group, source) \
    {MOEI_FORMAT_##ID, #name,         elem, block_n,           block_k,                            \
     scales,           (scale2) != 0, zero, (free_group) != 0, source},
#include "quant/formats.def"
#undef MOE_FORMAT_ROW
};

const moei_format_info *moei_format_at(size_t i)
{
    return i < sizeof formats / sizeof formats[0] ? &formats[i] : NULL;
}

const moei_format_info *moei_format(moe_format format)
{
    const moei_format_info *info;
    for (size_t i = 0; (info = moei_format_at(i)) != NULL; i++) {
        if (info->format == format) {
            return info;
        }
    }
    return NULL;
}

moe_dtype moei_format_scale_dtype(const moei_format_info *info)
{
    if (info->scale_dtypes == 0) {
        return MOE_DTYPE_UNSET;
    }
    return (info->scale_dtypes & (1u << MOE_F32)) != 0 ? MOE_F32
                                                       : __builtin_ctz(info->scale_dtypes);
}

const char *moe_format_name(moe_format format)
{
    const moei_format_info *info = moei_format(format);
    return info != NULL ? info->name : "unknown format";
}

moe_format moe_format_from_name(const char *name)
{
    const moei_format_info *info;
    for (size_t i = 0; name != NULL && (info = moei_format_at(i)) != NULL; i++) {
        if (strcmp(info->name, name) == 0) {
            return info->format;
        }
    }
    return MOE_FORMAT_UNSET;
}
