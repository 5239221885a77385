// SPDX-License-Identifier: Apache-2.0
// place, portable.
#include "ops/place.h"

#include "backends/cpu/ref/ref.h"
#include "quant/elements.h"

static int64_t load_id(moe_dtype dtype, const void *base, int64_t i)
{
    if (dtype == MOE_I64) {
        int64_t wide;
        memcpy(&wide, (const uint8_t *)base + 8 * i, sizeof wide);
        return wide;
    }
    int32_t narrow;
    memcpy(&narrow, (const uint8_t *)base + 4 * i, sizeof narrow);
    return narrow;
}

static void store_id(moe_dtype dtype, void *base, int64_t i, int32_t id)
{
    const int64_t wide = id;
    memcpy((uint8_t *)base + (dtype == MOE_I64 ? 8 : 4) * i,
           dtype == MOE_I64 ? (const void *)&wide : &id, dtype == MOE_I64 ? 8 : 4);
}

moek_place_fn MOEI_REF(moek_place_any);
void MOEI_REF(moek_place_any)(const moek_place_args *args, int64_t t0, int64_t t1)
{
    const moek_place_args *a = args;
    for (int64_t t = t0; t < t1; t++) {
        const bool valid = a->num_valid == NULL || t < a->num_valid[0];
        for (int32_t j = 0; j < a->top_k; j++) {
            const int64_t slot = t * a->top_k + j;
            const int64_t given =
                valid ? load_id(a->id_dtype, a->ids, t * a->id_token_stride + j) : -1;
            const bool named = given >= 0 && given < (int64_t)a->num_experts + a->num_identity;
            const int32_t id = named ? (int32_t)given : -1;
            int32_t local = moei_physical_id(a, t, id);
            if (local >= 0 && a->expert_map != NULL) {
                local = a->expert_map[local];
            }
            const float weight =
                !named ? 0.0f
                : a->weights == NULL
                    ? 1.0f
                    : moei_load_one(a->weight_dtype, a->weights, t * a->weight_token_stride + j);
            a->router_ids[slot] = id;
            a->local_ids[slot] = local >= 0 && local < a->num_local ? local : -1;
            a->local_weights[slot] = weight;
            if (valid && a->out_ids != NULL) {
                store_id(a->out_id_dtype, a->out_ids, t * a->out_id_stride + j, id);
            }
            if (valid && a->out_weights != NULL) {
                const int bytes = moe_dtype_bits(a->out_weight_dtype) / 8;
                moei_store_f32(a->out_weight_dtype,
                               (uint8_t *)a->out_weights + (t * a->out_weight_stride + j) * bytes,
                               1, &weight);
            }
        }
    }
}
