// SPDX-License-Identifier: Apache-2.0
// The device of far_memory.h as a plugin, for programs: libmoe_backend_far.so, device "ext". It
// has the CPU's kernels of the static library. $MOE_FAR_BYTES: the size of its memory; 0: there is
// no such device here.
#define _GNU_SOURCE
#include "backends/backends.h"
#include "unit/far_memory.h"

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    char cpu[256];
    const bool works = far_size > 0 && far_cpu->probe(isa, cpu, sizeof cpu);
    (void)snprintf(text, capacity,
                   works ? "%zu bytes that the host may not touch"
                         : "a device of %zu bytes is none",
                   far_size);
    return works;
}

static moe_status open_far(const moe_context *ctx, int32_t device_id, void **device)
{
    (void)ctx;
    *device = NULL;
    return device_id == 0
               ? MOE_OK
               : far_fail(MOE_E_ARGUMENT, "far: device_id = %d, there is 0 only", (int)device_id);
}

// A program that ends with memory of the device in its hands has lost it.
static void close_far(const moe_context *ctx, void *device)
{
    (void)ctx;
    (void)device;
    if (far_live != 0) {
        (void)fprintf(stderr, "far: %zu bytes were not given back\n", far_live);
        abort();
    }
}

const moei_backend *moe_backend_entry(const moei_host *host, uint32_t abi)
{
    static moei_backend backend;
    const char *bytes = getenv("MOE_FAR_BYTES");
    const size_t size = bytes != NULL ? strtoull(bytes, NULL, 10) : (size_t)1 << 30;
    if (abi != MOE_BACKEND_ABI) {
        return NULL;
    }
    far_fail = host->fail;
    if (!far_make(moei_backend_for(MOE_DEVICE_CPU), size)) {
        (void)host->fail(MOE_E_NO_MEMORY, "far: no address space for %zu bytes", size);
        return NULL;
    }
    backend = far_backend();
    backend.probe = probe;
    backend.open = open_far;
    backend.close = close_far;
    return &backend;
}
