// SPDX-License-Identifier: Apache-2.0
// Small layers that together have every tensor of weights, in any format.
#ifndef MOE_TESTS_UNIT_LAYER_FORMS_H
#define MOE_TESTS_UNIT_LAYER_FORMS_H

#include <string.h>

#include "api/layer_case.h"
#include "quant/formats.h"

/// Form 0 to 3 of four experts: a latent layer, one with shared experts, batched rows, sorted rows.
static inline moe_layer_desc layer_form(moe_format format, int n)
{
    const moei_format_info *info = moei_format(format);
    moe_layer_desc d = layer_case_base();
    d.hidden = 72;
    d.inter = 40;
    d.num_experts = 4;
    d.gemm[0].weight_format = d.gemm[1].weight_format = format;
    d.gemm[0].bias = 1;
    d.gate_up = 1 + n % 4;
    d.gemm[1].zero_points = info->zero_point >= 0;
    d.gemm[n % 2].channel_scale = info->free_group;
    d.transposed = n % 2 == 0 && moe_dtype_bits(info->elem) >= 8;
    switch (n % 4) {
    case 0:
        d.latent = 56;
        d.output_bias = 1;
        break;
    case 1:
        layer_case_add_shared(&d);
        d.shared.gemm[0].weight_format = d.shared.gemm[1].weight_format = format;
        d.gemm[0].act.spec = MOE_QUANT_FP8_STATIC;
        break;
    default:
        layer_case_place(&d, n % 4 == 2 ? MOE_X_BATCHED : MOE_X_SORTED);
        break;
    }
    return d;
}

#endif
