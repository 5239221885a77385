// SPDX-License-Identifier: Apache-2.0
// Compares what two descriptors compute, field by field, and names the first that differs.
#ifndef MOEC_DESC_H
#define MOEC_DESC_H

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "moe/plan.h"

/// A field that configurations and semantics both determine.
struct moec_desc_field {
    const char *name;
    size_t offset;
    enum { MOEC_FIELD_I32, MOEC_FIELD_I64, MOEC_FIELD_F32 } type;
};

/// Writes "field: a, b" for the first field that differs and returns 1, or returns 0. Shared
/// experts are compared unless `routed_only`.
static inline int moec_desc_differ(const moe_layer_desc *a, const moe_layer_desc *b,
                                   int routed_only, char *text, size_t size)
{
#define FIELD(type, name)                                                                          \
    {                                                                                              \
#name, offsetof(moe_layer_desc, name), MOEC_FIELD_##type                                   \
    }
    static const struct moec_desc_field fields[] = {
        FIELD(I64, hidden),
        FIELD(I64, inter),
        FIELD(I32, num_experts),
        FIELD(I32, top_k),
        FIELD(I64, latent),
        FIELD(I32, routing),
        FIELD(I32, route.scoring),
        FIELD(I32, route.select_on),
        FIELD(I32, route.renormalise),
        FIELD(F32, route.renorm_eps),
        FIELD(F32, route.scale),
        FIELD(I32, route.correction_bias),
        FIELD(I32, route.scale_tensor),
        FIELD(I32, route.num_groups),
        FIELD(I32, route.top_groups),
        FIELD(I32, route.group_score),
        FIELD(I32, route.group_mask_zero),
        FIELD(I32, route.zero_experts),
        FIELD(I32, route.shared_scores),
        FIELD(I32, route.renorm_shared),
        FIELD(I32, route.hash_table),
        FIELD(F32, route.jitter_eps),
        FIELD(I32, route.append_shared),
        FIELD(I32, weight_stage),
        FIELD(I32, activation),
        FIELD(F32, alpha),
        FIELD(F32, beta),
        FIELD(F32, linear_beta),
        FIELD(F32, limit),
        FIELD(I32, gate_up),
        FIELD(I32, transposed),
        FIELD(I32, gemm[0].bias),
        FIELD(I32, gemm[1].bias),
        FIELD(I32, output_bias),
        FIELD(I32, shared.count),
        FIELD(I64, shared.inter),
        FIELD(I32, shared.gate),
        FIELD(I32, shared.activation),
        FIELD(F32, shared.alpha),
        FIELD(F32, shared.beta),
        FIELD(F32, shared.linear_beta),
        FIELD(F32, shared.limit),
        FIELD(I32, shared.gate_up),
        FIELD(I32, shared.transposed),
        FIELD(I32, shared.gemm[0].bias),
        FIELD(I32, shared.gemm[1].bias),
    };
#undef FIELD
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const char *pa = (const char *)a + fields[i].offset;
        const char *pb = (const char *)b + fields[i].offset;
        const size_t bytes = fields[i].type == MOEC_FIELD_I64 ? sizeof(int64_t) : sizeof(int32_t);
        if (memcmp(pa, pb, bytes) == 0 ||
            (routed_only && strncmp(fields[i].name, "shared", 6) == 0)) {
            continue;
        }
        if (fields[i].type == MOEC_FIELD_F32) {
            float fa;
            float fb;
            memcpy(&fa, pa, sizeof fa);
            memcpy(&fb, pb, sizeof fb);
            (void)snprintf(text, size, "%s: %.9g, %.9g", fields[i].name, (double)fa, (double)fb);
        } else {
            int64_t ia = 0;
            int64_t ib = 0;
            int32_t wa;
            int32_t wb;
            if (fields[i].type == MOEC_FIELD_I64) {
                memcpy(&ia, pa, sizeof ia);
                memcpy(&ib, pb, sizeof ib);
            } else {
                memcpy(&wa, pa, sizeof wa);
                memcpy(&wb, pb, sizeof wb);
                ia = wa;
                ib = wb;
            }
            (void)snprintf(text, size, "%s: %" PRId64 ", %" PRId64, fields[i].name, ia, ib);
        }
        return 1;
    }
    return 0;
}

#endif
