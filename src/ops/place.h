// SPDX-License-Identifier: Apache-2.0
// place: where a slot's expert lives. Reads ids and weights in any public dtype, as given or as
// route computed them; writes them in the layer's own form, and counts load.
//   router id -> physical id (replicas) -> local id (expert_map); what lies outside is -1
#ifndef MOEI_OPS_PLACE_H
#define MOEI_OPS_PLACE_H

#include "core/check.h"
#include "ops/backend.h"

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
