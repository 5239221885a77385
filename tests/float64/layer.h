// SPDX-License-Identifier: Apache-2.0
// One token through the whole layer in float64, from dense weights, with a bound of each element's
// error: every f32 sum, activation and rounding on the way adds what it may add at most, and what
// came before is carried through the next step. Shares with the library only its descriptors.
#ifndef MOE_FLOAT64_LAYER_H
#define MOE_FLOAT64_LAYER_H

#include <stdbool.h>

#include "float64/ggemm.h"
#include "moe/plan.h"

/// A stack of expert MLPs, dense, scales and zero points applied; rows in the order of `gate_up`.
typedef struct float64_mlp {
    int32_t count;
    int64_t width, inter;
    const double *w[2];    // [count, 2 inter or inter, width], [count, width, inter]
    const double *bias[2]; // [count, outputs]; NULL: none
    float64_model model[2];
    moe_activation activation;
    double alpha, beta, linear_beta, limit;
    moe_gate_up gate_up;
} float64_mlp;

/// Dtypes as resolved: none is 0.
typedef struct float64_layer {
    int64_t hidden, latent;
    float64_mlp routed, shared; // shared.count 0: none
    moe_shared_gate shared_gate_kind;
    const double *shared_gate;            // SIGMOID: [hidden]
    const double *latent_in, *latent_out; // [latent, hidden], [hidden, latent]
    const double *output_bias;            // [hidden]; NULL: none
    float64_model shared_gate_model, latent_in_model, latent_out_model;
    moe_weight_stage weight_stage;
    moe_dtype x_dtype, inter_dtype, partial_dtype, out_dtype;
    bool combined; // false: one result per slot
} float64_layer;

enum {
    FLOAT64_ABSENT = -1,  // the slot adds nothing
    FLOAT64_IDENTITY = -2 // a zero expert: weight * x
};

typedef struct float64_slot {
    int32_t expert; // of the stack, or one of the above
    double weight, weight_error;
} float64_slot;

typedef struct float64_token {
    const double *x; // [hidden], exact
    const float64_slot *slots;
    int32_t num_slots;
    const double *shared_weights, *shared_weight_errors; // ROUTER_WEIGHTED: [shared.count]
    const double *previous;                              // as out; NULL: not accumulated
    // Out: [hidden], or [num_slots, hidden]. A NaN value: the result must be NaN. An infinite
    // bound: f32 may have overflowed on the way, any result will do.
    double *value, *bound;
} float64_token;

/// False where memory is short.
bool float64_layer_token(const float64_layer *layer, const float64_token *token);

/// |have - value| / bound; 0 where nothing can be said, infinite where NaN or an infinity is
/// missing or out of place.
double float64_ratio(double have, double value, double bound);

#endif
