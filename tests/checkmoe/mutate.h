// SPDX-License-Identifier: Apache-2.0
// Planted mistakes: a context whose backend runs the real one with one thing wrong. The library
// knows nothing of it; a test shows that the layer checks notice each.
#ifndef MOE_CHECKMOE_MUTATE_H
#define MOE_CHECKMOE_MUTATE_H

#include "ops/backend.h"

typedef enum moec_mutation {
    MOEC_MUTATE_NOTHING,
    // Products
    MOEC_MUTATE_ELEMENT_ZEROED,
    MOEC_MUTATE_WRONG_ROW, // 16 elements of a row come from another
    MOEC_MUTATE_LAST_ROW_SCALED,
    MOEC_MUTATE_LAST_K_DROPPED,
    MOEC_MUTATE_K_TAIL,       // what K has beyond a multiple of 32 is left out
    MOEC_MUTATE_PADDING_READ, // 0 times the element past a row of x
    MOEC_MUTATE_BIAS_DROPPED,
    MOEC_MUTATE_SCALE_DOUBLED, // one scale of one expert
    MOEC_MUTATE_SCALE_ROW_OFF, // rows use the scale of the next
    MOEC_MUTATE_ZERO_POINTS_IGNORED,
    MOEC_MUTATE_SCALE2_IGNORED,
    MOEC_MUTATE_SCALE2_TWICE,
    MOEC_MUTATE_EXPERT_BOUNDARY, // a row is computed by the expert before its own
    MOEC_MUTATE_TOKEN_OFF,       // a row reads the token after its own
    MOEC_MUTATE_WEIGHT_TWICE,
    // Activation
    MOEC_MUTATE_GATE_UP_SWAPPED,
    MOEC_MUTATE_LIMIT_IGNORED,
    MOEC_MUTATE_WRONG_ACTIVATION, // GELU for SiLU
    // Routing
    MOEC_MUTATE_MAP_IGNORED,
    MOEC_MUTATE_TIES_HIGH, // of equal keys, the higher id
    MOEC_MUTATE_BIAS_IN_WEIGHT,
    MOEC_MUTATE_SCALE_TWICE,
    MOEC_MUTATE_VALID_IGNORED, // tokens past num_valid are routed
    // Quantisers
    MOEC_MUTATE_QUANT_SCALE_ONE,
    MOEC_MUTATE_QUANT_OTHER_GRID, // the lowest bit of every code is lost
    // The sum
    MOEC_MUTATE_SLOTS_REVERSED,
    MOEC_MUTATE_SHARED_DROPPED,
    MOEC_MUTATE_ACCUMULATE_IGNORED,
    MOEC_NUM_MUTATIONS
} moec_mutation;

const char *moec_mutation_name(moec_mutation mutation);

#define MOEC_MUTANT_KERNELS 256

/// A context and the backend it points to; must outlive the plans made from it. The backend has the
/// rows that read canonical matrices: those are what mistakes are made in.
typedef struct moec_mutant {
    moei_kernel kernels[MOEC_MUTANT_KERNELS];
    moei_backend backend;
    moe_context ctx;
} moec_mutant;

/// One mutant lives at a time: the mutation is kept in static memory. Runs of it are not reentrant.
void moec_mutant_make(moec_mutant *mutant, const moe_context *ctx, moec_mutation mutation);

/// To be called before each run: products count from there.
void moec_mutant_begin(void);

/// Calls since then in which the mutation had something to act on.
unsigned long moec_mutant_hits(void);

#endif
