// SPDX-License-Identifier: Apache-2.0
// From router ids to physical ids: which replica of an expert a token uses. Host and device.
#ifndef MOEI_OPS_REPLICA_H
#define MOEI_OPS_REPLICA_H

#include "moe/backend.h"
#include "numerics/hd.h"

/// Replica of a logical expert that a token uses: (token * 0x9E3779B9 mod 2^32) mod count.
MOE_HD uint32_t moei_replica_of(int64_t token, uint32_t count)
{
    return (uint32_t)token * 0x9E3779B9u % count;
}

/// Physical id of logical expert `id` for a token: its replica where there is a table [experts,
/// slots], else itself; -1 where there is none below num_physical.
MOE_HD int32_t moei_replica_id(const int32_t *table, int64_t stride, int32_t slots,
                               const int32_t *counts, int32_t num_physical, int64_t token,
                               int32_t id)
{
    if (table != NULL) {
        const int32_t count = counts[id];
        if (count <= 0 || count > slots) {
            return -1;
        }
        id = table[id * stride + moei_replica_of(token, (uint32_t)count)];
    }
    return id >= 0 && id < num_physical ? id : -1;
}

/// Physical id of a router id for a token; -1 where there is none.
MOE_HD int32_t moei_physical_id(const moek_place_args *a, int64_t token, int32_t id)
{
    return id >= 0 && id < a->num_experts
               ? moei_replica_id(a->replica_table, a->replica_stride, a->replica_slots,
                                 a->replica_count, a->num_physical, token, id)
               : -1;
}

#endif
