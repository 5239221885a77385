// SPDX-License-Identifier: Apache-2.0
// place: where a slot's expert lives. Reads ids and weights in any public dtype, as given or as
// route computed them; writes them in the layer's own form, and counts load.
//   router id -> physical id (replicas) -> local id (expert_map); what lies outside is -1
#ifndef MOEI_OPS_PLACE_H
#define MOEI_OPS_PLACE_H

#include "core/check.h"
#include "ops/backend.h"

typedef struct moek_place_args {
    int64_t tokens;
    int32_t top_k;
    int32_t num_experts;      // router ids in [0, num_experts) name an expert
    int32_t num_identity;     // ids in [num_experts, num_experts + num_identity): zero experts
    int32_t num_physical;     // bound of physical ids: replicas, else num_experts
    int32_t num_local;        // bound of local ids
    const int32_t *num_valid; // NULL: all tokens; the others get id -1, weight 0
    const void *ids;          // [tokens, top_k] int32 or int64
    moe_dtype id_dtype;
    int64_t id_token_stride; // elements
    const void *weights;     // f32 or bf16; NULL: 1
    moe_dtype weight_dtype;
    int64_t weight_token_stride;
    const int32_t *replica_table; // [num_experts, replica_slots]; NULL: logical = physical
    int64_t replica_stride;
    int32_t replica_slots;
    const int32_t *replica_count; // [num_experts]
    const int32_t *expert_map;    // [num_physical]; NULL: physical = local
    int32_t *router_ids;          // out [tokens, top_k]; an id that names nothing becomes -1
    int32_t *local_ids;           // out [tokens, top_k]
    float *local_weights;         // out [tokens, top_k]
    void *out_ids;                // optional, of out_id_dtype
    moe_dtype out_id_dtype;
    int64_t out_id_stride;
    void *out_weights; // optional, of out_weight_dtype
    moe_dtype out_weight_dtype;
    int64_t out_weight_stride;
    int32_t *load; // optional [num_physical], incremented by the driver
} moek_place_args;

/// Tokens [t0, t1); leaves `load` alone.
typedef void moek_place_fn(const moek_place_args *args, int64_t t0, int64_t t1);

/// Replica of a logical expert that a token uses: (token * 0x9E3779B9 mod 2^32) mod count.
static inline uint32_t moei_replica_of(int64_t token, uint32_t count)
{
    return (uint32_t)token * 0x9E3779B9u % count;
}

/// Physical id of a router id for a token; -1 where there is none.
static inline int32_t moei_physical_id(const moek_place_args *a, int64_t token, int32_t id)
{
    if (id < 0 || id >= a->num_experts) {
        return -1;
    }
    if (a->replica_table != NULL) {
        const int32_t count = a->replica_count[id];
        if (count <= 0 || count > a->replica_slots) {
            return -1;
        }
        id = a->replica_table[id * a->replica_stride + moei_replica_of(token, (uint32_t)count)];
    }
    return id >= 0 && id < a->num_physical ? id : -1;
}

#endif
