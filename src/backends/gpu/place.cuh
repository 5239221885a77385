// SPDX-License-Identifier: Apache-2.0
// place: one thread per slot; also from within route (route.cuh), which has ids and weights in
// hand.
#ifndef MOEI_GPU_PLACE_CUH
#define MOEI_GPU_PLACE_CUH

#include "backends/gpu/ids.cuh"
#include "ops/replica.h"

/// Slot j of token t, its id and weight as `ids` and `weights` hold them; `valid`: the token is
/// there, else the id is -1. Returns the local id.
DEV_FN int32_t moei_gpu_place_given(const moek_place_args *a, int64_t t, int32_t j, bool valid,
                                    int64_t given, float weight)
{
    const int64_t slot = t * a->top_k + j;
    const bool named = given >= 0 && given < (int64_t)a->num_experts + a->num_identity;
    const int32_t id = named ? (int32_t)given : -1;
    const int32_t physical = moei_physical_id(a, t, id);
    int32_t local = physical;
    if (local >= 0 && a->expert_map != NULL) {
        local = a->expert_map[local];
    }
    local = local >= 0 && local < a->num_local ? local : -1;
    weight = named ? weight : 0.0f;
    a->router_ids[slot] = id;
    a->local_ids[slot] = local;
    a->local_weights[slot] = weight;
    if (valid && a->out_ids != NULL) {
        moei_gpu_store_id(a->out_id_dtype, a->out_ids, t * a->out_id_stride + j, id);
    }
    if (valid && a->out_weights != NULL) {
        moei_gpu_store_weight(a->out_weight_dtype, a->out_weights, t * a->out_weight_stride + j,
                              weight);
    }
    if (physical >= 0 && a->load != NULL) {
        (void)dev_add_i32(&a->load[physical], 1);
    }
    return local;
}

DEV_FN void moei_gpu_place(const moek_place_args *a)
{
    const int64_t slot = (int64_t)dev_block() * dev_threads() + dev_thread();
    if (slot >= a->tokens * a->top_k) {
        return;
    }
    const int64_t t = moei_divide(slot, a->top_k);
    const int32_t j = (int32_t)(slot - t * a->top_k);
    const bool valid = a->num_valid == NULL || t < a->num_valid[0];
    const int64_t id =
        valid ? moei_gpu_load_id(a->id_dtype, a->ids, t * a->id_token_stride + j) : -1;
    const float weight =
        id < 0 || a->weights == NULL
            ? 1.0f
            : moei_gpu_load_aligned(a->weight_dtype, a->weights, t * a->weight_token_stride + j);
    (void)moei_gpu_place_given(a, t, j, valid, id, weight);
}

#endif
