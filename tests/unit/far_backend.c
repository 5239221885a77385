// SPDX-License-Identifier: Apache-2.0
// The device of far_device.h as a plugin, for programs: libmoe_backend_far.so, device "ext". It
// has the CPU's kernels of the static library. $MOE_FAR_BYTES: the size of its memory; 0: there is
// no such device here. With $MOE_FAR_PACKED its products read weights in a packed layout,
// which it does not know how to unpack where that is "half". With
// $MOE_FAR_CLOCK it can time, and then knows no ceilings. $MOE_FAR_DIES: so many ops run; the next
// one, and every call after it, fails.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backends.h"
#include "unit/far_device.h"
#include "unit/packed_rows.h"

static far_device *far;

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    char cpu[256];
    const bool works = far->bytes > 0 && far->cpu->probe(isa, cpu, sizeof cpu);
    (void)snprintf(text, capacity,
                   works ? "%zu bytes that the host may not touch"
                         : "a device of %zu bytes is none",
                   far->bytes);
    return works;
}

static moe_status open_far(const moe_context *ctx, int32_t device_id, void **device)
{
    (void)ctx;
    *device = NULL;
    return device_id == 0
               ? MOE_OK
               : far->fail(MOE_E_ARGUMENT, "far: device_id = %d, there is 0 only", (int)device_id);
}

// A program that ends with memory of the device in its hands has lost it.
static void close_far(const moe_context *ctx, void *device)
{
    (void)ctx;
    (void)device;
    if (far->live != 0) {
        (void)fprintf(stderr, "far: %zu bytes were not given back\n", far->live);
        abort();
    }
}

// Every repeat takes one second more than the one before.
static moe_status far_time(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                           void *arg, int32_t repeats, double *seconds)
{
    (void)exec;
    for (int32_t i = -1; i < repeats; i++) {
        MOE_TRY(enqueue(arg, NULL));
        if (i >= 0) {
            seconds[i] = i + 1;
        }
    }
    return MOE_OK;
}

static unsigned long dies_at;
static moei_backend sound; // as the device was made

static moe_status alive(void)
{
    return far->calls >= dies_at ? far->fail(MOE_E_DEVICE, "far: the device is lost") : MOE_OK;
}

static moe_status after(moei_op op, const void *args)
{
    (void)op;
    (void)args;
    return alive();
}

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    MOE_TRY(alive());
    return sound.memory_alloc(exec, bytes, out);
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    MOE_TRY(alive());
    return sound.memory_copy(exec, to, from, bytes, direction);
}

const moei_backend *moe_backend_entry(const moei_host *host, uint32_t abi)
{
    const char *bytes = getenv("MOE_FAR_BYTES");
    const size_t size = bytes != NULL ? strtoull(bytes, NULL, 10) : (size_t)1 << 30;
    if (abi != MOE_BACKEND_ABI) {
        return NULL;
    }
    const moei_backend *cpu = moei_backend_for(MOE_DEVICE_CPU);
    const char *packed = getenv("MOE_FAR_PACKED");
    if (packed != NULL) {
        packed_rows *rows = packed_rows_make(cpu);
        rows->fail = host->fail;
        if (strcmp(packed, "half") == 0) {
            rows->backend.unpack = NULL;
        }
        cpu = &rows->backend;
    }
    far = far_device_make(cpu, size);
    if (far == NULL) {
        (void)host->fail(MOE_E_NO_MEMORY, "far: no address space for %zu bytes", size);
        return NULL;
    }
    far->fail = host->fail;
    far->backend.probe = probe;
    far->backend.open = open_far;
    far->backend.close = close_far;
    if (getenv("MOE_FAR_CLOCK") != NULL) {
        far->backend.time = far_time;
        far->backend.ceiling = NULL;
    }
    const char *dies = getenv("MOE_FAR_DIES");
    if (dies != NULL) {
        dies_at = strtoul(dies, NULL, 10) + 1;
        sound = far->backend;
        far->after = after;
        far->backend.memory_alloc = memory_alloc;
        far->backend.memory_copy = memory_copy;
    }
    return &far->backend;
}
