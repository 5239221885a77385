// SPDX-License-Identifier: Apache-2.0
// A device for tests: the CPU's kernels over pages that the host may not touch outside of them.
// Whatever reads or writes through a device pointer elsewhere ends with a signal, and so does a
// copy in the wrong direction.
#ifndef MOE_TESTS_UNIT_FAR_DEVICE_H
#define MOE_TESTS_UNIT_FAR_DEVICE_H

#include "ops/backend.h"

typedef struct far_device {
    moei_backend backend;     // of MOE_DEVICE_EXT, named "far"
    const moei_backend *cpu;  // whose kernels run
    size_t bytes, used, live; // of its memory: all, handed out, and not given back since
    unsigned long calls;      // of ops
    uint32_t delay;           // moei_exec.delay of the op in hand
    /// Called when an op has run, with its arguments and the pages open; the op returns what this
    /// does. NULL: nothing.
    moe_status (*after)(moei_op op, const void *args);
    /// How a plugin fails; moe_fail where it is left.
    moe_status (*fail)(moe_status code, const char *format, ...) MOE_PRINTF(2, 3);
} far_device;

/// The one such device, of `bytes` bytes; NULL: no address space. Its memory is handed out
/// ascending, and again from the beginning once all pieces are back.
far_device *far_device_make(const moei_backend *cpu, size_t bytes);

/// Gives its memory back to the system.
void far_device_free(void);

/// Frees all pieces of memory at once.
void far_device_reset(void);

/// True where p points into its memory.
bool far_device_holds(const void *p);

#endif
