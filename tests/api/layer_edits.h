// SPDX-License-Identifier: Apache-2.0
// Changes that turn layer_case_base into another valid layer.
#ifndef MOE_TESTS_API_LAYER_EDITS_H
#define MOE_TESTS_API_LAYER_EDITS_H

#include <string.h>

#include "moe/moe.h"

static inline void give(moe_layer_desc *d)
{
    d->routing = MOE_ROUTING_GIVEN;
    memset(&d->route, 0, sizeof d->route);
}

static inline void place(moe_layer_desc *d, moe_x_layout layout)
{
    give(d);
    d->routing = MOE_ROUTING_PLACED;
    d->x_layout = layout;
    d->top_k = 0;
}

static inline void quantise(moe_layer_desc *d)
{
    d->gemm[0].weight_format = d->gemm[1].weight_format = MOE_FORMAT_E4M3FN_BLOCK;
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_FP8_GROUP_DIV;
}

static inline void arrive_as_codes(moe_layer_desc *d)
{
    quantise(d);
    d->x_dtype = MOE_E4M3FN;
    d->partial_dtype = d->out_dtype = MOE_BF16;
}

static inline void share(moe_layer_desc *d)
{
    d->shared.count = 2;
    d->shared.inter = 24;
    d->shared.activation = MOE_ACT_SILU;
    d->shared.gate_up = MOE_GATE_FIRST;
    d->shared.gemm[0].weight_format = d->shared.gemm[1].weight_format = MOE_FORMAT_BF16;
}

#endif
