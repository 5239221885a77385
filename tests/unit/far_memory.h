// SPDX-License-Identifier: Apache-2.0
// A device for tests: the CPU's kernels over pages that the host may not touch outside of them.
// Whatever reads or writes through a device pointer elsewhere ends with a signal. The including
// file defines _GNU_SOURCE.
#ifndef MOE_TESTS_FAR_MEMORY_H
#define MOE_TESTS_FAR_MEMORY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ops/backend.h"

static unsigned char *far_region;
static size_t far_size;             // of the region
static size_t far_used;             // bytes given out; what is given back is not given again
static size_t far_live;             // less what was given back
static const moei_backend *far_cpu; // whose kernels run
static moe_status (*far_fail)(moe_status code, const char *format, ...) MOE_PRINTF(2, 3) = moe_fail;

static inline bool far_make(const moei_backend *cpu, size_t bytes)
{
    far_cpu = cpu;
    far_size = bytes;
    if (bytes > 0) {
        far_region =
            mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    return far_region != MAP_FAILED;
}

// A device waits for its stream where a test ends; this one is done when an op returns.
static inline void far_open(bool open)
{
    if (mprotect(far_region, far_size, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
        abort();
    }
}

static inline bool far_holds(const void *p)
{
    return (const unsigned char *)p >= far_region &&
           (const unsigned char *)p < far_region + far_size;
}

static inline size_t far_rounded(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static inline moe_status far_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    (void)exec;
    const size_t size = far_rounded(bytes);
    if (size > far_size - far_used) {
        return far_fail(MOE_E_NO_MEMORY, "far: no memory for %zu bytes, %zu of %zu are left", bytes,
                        far_size - far_used, far_size);
    }
    *out = far_region + far_used;
    far_used += size;
    far_live += size;
    return MOE_OK;
}

static inline void far_free(const moei_exec *exec, void *memory, size_t bytes)
{
    (void)exec;
    (void)memory;
    far_live -= far_rounded(bytes);
}

static inline moe_status far_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                                  moe_copy direction)
{
    (void)exec;
    const bool up = direction == MOE_COPY_TO_DEVICE;
    if (far_holds(to) != up || far_holds(from) == up) {
        (void)fprintf(stderr, "far: a copy in the wrong direction\n");
        abort();
    }
    far_open(true);
    memcpy(to, from, bytes);
    far_open(false);
    return MOE_OK;
}

#define FAR_OP(op)                                                                                 \
    static inline moe_status far_##op(const moei_exec *exec, const moei_kernel *kernel,            \
                                      const moek_##op##_args *args)                                \
    {                                                                                              \
        far_open(true);                                                                            \
        const moe_status status = far_cpu->op(exec, kernel, args);                                 \
        far_open(false);                                                                           \
        return status;                                                                             \
    }
FAR_OP(route)
FAR_OP(place)
FAR_OP(sort)
FAR_OP(quantize)
FAR_OP(ggemm)
FAR_OP(glu)
FAR_OP(combine)

static inline moei_backend far_backend(void)
{
    moei_backend device = *far_cpu;
    device.name = "far";
    device.device = MOE_DEVICE_EXT;
    device.host_memory = false;
    device.memory_alloc = far_alloc;
    device.memory_free = far_free;
    device.memory_copy = far_copy;
    device.route = far_route;
    device.place = far_place;
    device.sort = far_sort;
    device.quantize = far_quantize;
    device.ggemm = far_ggemm;
    device.glu = far_glu;
    device.combine = far_combine;
    return device;
}

#endif
