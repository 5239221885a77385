// SPDX-License-Identifier: Apache-2.0
// HIP's runtime, found when it is first asked for, and what the plugin's files share of a device.
#ifndef MOEI_HIP_RUNTIME_H
#define MOEI_HIP_RUNTIME_H

#include <stdbool.h>

#include "backends/gpu/drive.h"
#include "backends/hip/hip_api.h"
#include "backends/hip/mfma.h"
#include "backends/hip/probe.h"
#include "moe/backend.h"

/// The runtime's functions.
typedef struct moei_hip_runtime {
#define MOEI_HIP_MEMBER(result, name, parameters) result(*name) parameters;
    MOEI_HIP_FUNCTIONS(MOEI_HIP_MEMBER)
#undef MOEI_HIP_MEMBER
} moei_hip_runtime;

/// Loads the runtime once per process: the file that $MOE_HIP_LIB names, else libamdhip64 by its
/// usual names. Returns NULL, and why in `reason`, where that fails.
const moei_hip_runtime *moei_hip_load(const char **reason);

/// As moei_hip_load where a device is open already.
const moei_hip_runtime *moei_hip(void);

/// OK, or DEVICE (NO_MEMORY) with what was tried and HIP's own words. An error that HIP keeps until
/// it is asked for is taken back.
moe_status moei_hip_status(hipError_t error, const char *what);

/// Member of the vtable: the clock of the device.
moe_status moei_hip_time(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                         void *arg, int32_t repeats, double *seconds);

// ---- code objects ------------------------------------------------------------------------------

typedef enum moei_hip_source {
#define MOE_HIP_SOURCE(id, name) MOEI_HIP_##id,
#include "backends/hip/sources.def"
#undef MOE_HIP_SOURCE
    MOEI_HIP_NUM_SOURCES
} moei_hip_source;

/// The code objects of an architecture.
typedef struct moei_hip_arch {
    const char *name; // "gfx942"
    uint64_t isa;
    const unsigned char *objects[MOEI_HIP_NUM_SOURCES];
} moei_hip_arch;

enum { MOEI_HIP_NUM_ARCHS = 2 };
extern const moei_hip_arch moei_hip_archs[MOEI_HIP_NUM_ARCHS];

/// Asks the current device; `module` is its object of probes. A few launches.
void moei_hip_probe(const moei_hip_runtime *hip, const moei_hip_arch *arch, hipModule_t module,
                    moei_hip_findings *found);

/// One line: a family's name, and what was found.
const char *moei_hip_family_text(const moei_hip_findings *found, moei_hip_family family, char *text,
                                 size_t capacity);

/// Names of ISA bits, of a device with why families are off, or of a row.
const char *moei_hip_found_text(const moei_hip_findings *found, uint64_t isa, char *text,
                                size_t capacity);

// ---- devices -----------------------------------------------------------------------------------

/// What a context holds of its device (moei_exec.device).
typedef struct moei_hip_device {
    const moei_hip_arch *arch;
    int compute_units;
    int shared; // bytes of LDS that a block may have
    hipModule_t modules[MOEI_HIP_NUM_SOURCES];
    hipFunction_t bodies[MOEI_GPU_NUM_BODIES];
    hipFunction_t sort_many;
    hipFunction_t mfma[MOEI_HIP_NUM_MFMA]; // NULL: of another architecture
} moei_hip_device;

#endif
