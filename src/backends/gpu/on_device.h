// SPDX-License-Identifier: Apache-2.0
// What the vtables of GPU plugins have in common.
#ifndef MOEI_GPU_ON_DEVICE_H
#define MOEI_GPU_ON_DEVICE_H

#include "moe/backend.h"

/// A member of the vtable, <name>_op: `run` on the context's device. The file that uses it has
///   int enter(const moei_exec *)         makes that device the current one; the one before
///   void leave(const moei_exec *, int)   puts that one back
#define MOEI_GPU_ON_DEVICE(name, run)                                                              \
    static moe_status name##_op(const moei_exec *exec, const moei_kernel *kernel,                  \
                                const moek_##name##_args *args)                                    \
    {                                                                                              \
        const int before = enter(exec);                                                            \
        const moe_status status = run(exec, kernel, args);                                         \
        leave(exec, before);                                                                       \
        return status;                                                                             \
    }

#endif
