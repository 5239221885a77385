// SPDX-License-Identifier: Apache-2.0
// Routing of one token in float64, as a plain statement of docs/routing.md: loops over experts, one
// arg-max per slot. Shares nothing with the library but the descriptor.
#ifndef MOE_TESTS_FLOAT64_ROUTE_H
#define MOE_TESTS_FLOAT64_ROUTE_H

#include <stdbool.h>
#include <stdint.h>

#include "moe/routing.h"

#define FLOAT64_ROUTE_ROWS 8192

typedef struct float64_route {
    // In
    const moe_route_desc *desc;
    int32_t num_experts, top_k;
    const float *logits; // [E + zero_experts + shared_scores]
    const float *bias;   // [E + zero_experts]; NULL: none
    double scale_tensor; // read with desc.scale_tensor
    const int64_t *hash; // [top_k]; NULL: the token names no row of the table
    // Out
    int32_t ids[FLOAT64_ROUTE_ROWS];
    double weights[FLOAT64_ROUTE_ROWS];
    double bounds[FLOAT64_ROUTE_ROWS]; // |f32 weight - weight| at most, where the ids agree
    double shared[FLOAT64_ROUTE_ROWS];
    double shared_bounds[FLOAT64_ROUTE_ROWS];
    /// Smallest relative distance between two unequal values that a choice compared: where it is
    /// above FLOAT64_ROUTE_MARGIN, f32 arithmetic must choose the same ids in the same order.
    double margin;
} float64_route;

#define FLOAT64_ROUTE_MARGIN 4e-6

/// Fills ids [top_k], weights, bounds, shared and margin; append_shared is left to the caller.
void float64_route_token(float64_route *r);

/// Physical id of a logical expert for a token, -1 where there is none; the rule of
/// docs/routing.md, written out. Row id of the table begins at id * stride.
int32_t float64_replica(const int32_t *table, int64_t stride, int64_t slots, const int32_t *count,
                        int64_t token, int32_t id);

#endif
