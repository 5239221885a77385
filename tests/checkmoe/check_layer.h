// SPDX-License-Identifier: Apache-2.0
// The layer checks (moec_layer_run in checkmoe.h): what check_layer.c and layer_edges.c share.
#ifndef MOE_CHECKMOE_CHECK_LAYER_H
#define MOE_CHECKMOE_CHECK_LAYER_H

#include <stdatomic.h>

#include "checkmoe/layer_case.h"
#include "checkmoe/twins.h"
#include "ops/backend.h"

/// Contexts of the same machine whose results must agree.
typedef enum moec_layer_context {
    MOEC_CTX_MAIN, // the number of threads that the options ask for; or the device
    MOEC_CTX_ONE,  // 1 thread
    MOEC_CTX_TWO,
    MOEC_CTX_SEVEN,
    MOEC_CTX_REF,   // the lowest instruction set
    MOEC_CTX_STEPS, // of a device that fuses the steps of a run: one after the other
    MOEC_CTX_HOST,  // beside a device: the CPU
    MOEC_NUM_CTX
} moec_layer_context;

typedef struct moec_layer_checks {
    moec_run run;
    moe_context *ctx[MOEC_NUM_CTX]; // NULL: not on this backend
    moe_context *host;              // what works on host memory: MAIN, or HOST
    moei_backend steps;             // of MOEC_CTX_STEPS
    atomic_ulong allocations;       // of MOEC_CTX_MAIN
    unsigned long cases, judged, elements, unsure, marginal;
    unsigned long unlike; // cases whose ops have other classes than the plan
    double worst;         // error / bound
    char worst_case[32];
} moec_layer_checks;

/// Where no memory of a device lies: a run whose x is there faults.
#define MOEC_FAULT_ADDRESS 0x100000

/// A plan with packed weights, or wrapped ones.
typedef struct moec_made {
    moe_plan *plan;
    moe_weights *weights;
    moec_guard memory;
    moec_twins twins; // of the memory, or of the wrapped tensors
} moec_made;

/// Plans and packs expert by expert, in an order drawn from rng (NULL: wraps). On failure nothing
/// is left and moe_last_error says why.
bool moec_make(moe_context *ctx, const moec_layer_case *c, moec_rng *rng, moec_made *out);
void moec_unmake(moec_made *made);

/// Brings the memory of the weights back from a device, and counts a check that runs wrote nothing
/// beside it.
void moec_layer_fetch(moec_layer_checks *k, const moec_layer_case *c, moec_made *made);

/// Draws and builds case `number`; false: memory is short, which counts as a failure.
bool moec_layer_case_make(moec_layer_checks *k, moec_layer_case *c, int number);

/// Counts a check of a case; a failure prints it with its description.
bool moec_layer_check(moec_layer_checks *k, const moec_layer_case *c, bool ok, const char *what);

/// Compares the results of n items bit for bit and counts; a failure prints a report.
bool moec_layer_same(moec_layer_checks *k, const moec_layer_case *c, const unsigned char *want,
                     const unsigned char *have, int32_t n, const char *what);

/// Runs n items and returns their results in memory to free; NULL after a failure, which is counted
/// under `what`.
unsigned char *moec_layer_results(moec_layer_checks *k, const moec_layer_case *c,
                                  const moec_made *made, const int32_t *items, int32_t n,
                                  const moec_batch_style *style, const char *what);

/// Checks that need no reference: threads on one plan, a child after fork, weights to and fro.
void moec_layer_threads(moec_layer_checks *k, const moec_layer_case *c);
void moec_layer_fork(moec_layer_checks *k, const moec_layer_case *c);
void moec_layer_weights(moec_layer_checks *k, moec_layer_case *c, moec_rng *rng);
void moec_layer_workspace(moec_layer_checks *k, const moec_layer_case *c);

#endif
