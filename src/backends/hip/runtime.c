// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // secure_getenv
#include "backends/hip/runtime.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const moei_host *moei_hip_host;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static moei_hip_runtime runtime;
static bool loaded;
static char failure[256];

static void *open_library(void)
{
    static const char *const names[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5",
                                        "libamdhip64.so"};
    const char *given = secure_getenv("MOE_HIP_LIB");
    if (given != NULL && given[0] != '\0') {
        void *library = dlopen(given, RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) {
            (void)snprintf(failure, sizeof failure, "$MOE_HIP_LIB: %s", dlerror());
        }
        return library;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library != NULL) {
            return library;
        }
    }
    (void)snprintf(failure, sizeof failure,
                   "no HIP runtime: libamdhip64.so (.so.7, .so.6, .so.5) is not found, "
                   "$MOE_HIP_LIB is not set");
    return NULL;
}

static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) {
        (void)snprintf(failure, sizeof failure, "the HIP runtime lacks %s", name);
        return false;
    }
    memcpy(function, &symbol, sizeof symbol); // ISO C has no cast from an object to a function
    return true;
}

static void load(void)
{
    void *library = open_library();
    if (library == NULL) {
        return;
    }
#define MOEI_HIP_FIND(result, name, parameters)                                                    \
    if (!find(library, #name, &runtime.name)) {                                                    \
        (void)dlclose(library);                                                                    \
        return;                                                                                    \
    }
    MOEI_HIP_FUNCTIONS(MOEI_HIP_FIND)
#undef MOEI_HIP_FIND
    const hipError_t error = runtime.hipInit(0);
    loaded = error == hipSuccess;
    if (!loaded) { // the library stays: its error may be cured by nothing that this process does
        (void)snprintf(failure, sizeof failure, "no HIP device: %s",
                       runtime.hipGetErrorString(error));
    }
}

const moei_hip_runtime *moei_hip_load(const char **reason)
{
    (void)pthread_once(&once, load);
    *reason = failure;
    return loaded ? &runtime : NULL;
}

const moei_hip_runtime *moei_hip(void)
{
    return &runtime;
}

moe_status moei_hip_status(hipError_t error, const char *what)
{
    if (error == hipSuccess) {
        return MOE_OK;
    }
    (void)runtime.hipGetLastError(); // the next call is judged by itself
    return moei_hip_host->fail(error == hipErrorOutOfMemory ? MOE_E_NO_MEMORY : MOE_E_DEVICE,
                               "hip: %s: %s (%d)", what, runtime.hipGetErrorString(error),
                               (int)error);
}
