// SPDX-License-Identifier: Apache-2.0
// A backend with memory of its own: the CPU's kernels over pages that the host may not touch
// outside of them. Whatever reads or writes through a device pointer ends with a signal. It can be
// told to make mistakes, which checks must notice.
#ifndef MOE_TESTS_UNIT_TOY_DEVICE_H
#define MOE_TESTS_UNIT_TOY_DEVICE_H

#include "ops/backend.h"

typedef enum toy_mistake {
    TOY_NONE,
    TOY_WRITES_BEFORE, // a byte before what sort and the second product write
    TOY_WRITES_AFTER,  // a byte after what glu and combine write
    TOY_WRITES_INPUT,  // a byte of the input of combine and of a product
    TOY_WRONG_BIT,     // the lowest bit of the first output of route, glu and combine
    TOY_UNSTEADY,      // the same, in every other run
    TOY_FAILS          // every op
} toy_mistake;

typedef struct toy_device {
    moei_backend backend; // of MOE_DEVICE_EXT, named "device"
    unsigned char *region;
    size_t bytes, used;
    int live;               // pieces of memory
    int misuses;            // copies in the wrong direction, states of other plans
    int prepared, released; // plans
    int refuse;             // 1: plan_check refuses, 2: plan_prepare does
    int scratch_seen;       // products that saw the plan's state and scratch
    toy_mistake mistake;
    unsigned long calls; // of ops
} toy_device;

/// The one toy device, of `bytes` bytes; NULL: no memory. `cpu`: the backend whose kernels it runs.
toy_device *toy_device_make(const moei_backend *cpu, size_t bytes);

/// Gives its memory back to the system.
void toy_device_free(void);

/// Frees all pieces of memory at once.
void toy_device_reset(void);

#endif
