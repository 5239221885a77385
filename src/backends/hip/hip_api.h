// SPDX-License-Identifier: Apache-2.0
// What the plugin uses of HIP's runtime (libamdhip64), declared from its public documentation, so
// that neither its headers nor the library are needed to build. C17 and C++.
#ifndef MOEI_HIP_API_H
#define MOEI_HIP_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hipError_t {
    hipSuccess = 0,
    hipErrorInvalidValue = 1,
    hipErrorOutOfMemory = 2,
    hipErrorNotInitialized = 3,
    hipErrorNoDevice = 100,
    hipErrorInvalidDevice = 101,
    hipErrorInvalidImage = 200,
    hipErrorNoBinaryForGpu = 209,
    hipErrorInvalidHandle = 400,
    hipErrorNotFound = 500,
    hipErrorIllegalAddress = 700,
    hipErrorLaunchOutOfResources = 701,
    hipErrorLaunchFailure = 719,
    hipErrorUnknown = 999
} hipError_t;

typedef enum hipDeviceAttribute_t {
    hipDeviceAttributeClockRate = 5, // kHz
    hipDeviceAttributeMaxThreadsPerBlock = 56,
    hipDeviceAttributeMultiprocessorCount = 63,     // compute units
    hipDeviceAttributeMaxSharedMemoryPerBlock = 74, // bytes of LDS
    hipDeviceAttributeWarpSize = 87                 // lanes of a wave: 64
} hipDeviceAttribute_t;

typedef enum hipMemcpyKind {
    hipMemcpyHostToHost = 0,
    hipMemcpyHostToDevice = 1,
    hipMemcpyDeviceToHost = 2,
    hipMemcpyDeviceToDevice = 3,
    hipMemcpyDefault = 4
} hipMemcpyKind;

typedef int hipDevice_t;
typedef struct ihipStream_t *hipStream_t;
typedef struct ihipEvent_t *hipEvent_t;
typedef struct ihipModule_t *hipModule_t;
typedef struct ihipModuleSymbol_t *hipFunction_t;

// `extra` of hipModuleLaunchKernel: a list of a word and its value, up to END.
#define HIP_LAUNCH_PARAM_BUFFER_POINTER ((void *)0x01)
#define HIP_LAUNCH_PARAM_BUFFER_SIZE    ((void *)0x02)
#define HIP_LAUNCH_PARAM_END            ((void *)0x03)

// Every function that is looked up: MOEI_HIP_FUNCTION(result, name, parameters).
#define MOEI_HIP_FUNCTIONS(MOEI_HIP_FUNCTION)                                                      \
    MOEI_HIP_FUNCTION(hipError_t, hipInit, (unsigned int flags))                                   \
    MOEI_HIP_FUNCTION(hipError_t, hipDriverGetVersion, (int *version))                             \
    MOEI_HIP_FUNCTION(hipError_t, hipGetDeviceCount, (int *count))                                 \
    MOEI_HIP_FUNCTION(hipError_t, hipGetDevice, (int *device))                                     \
    MOEI_HIP_FUNCTION(hipError_t, hipSetDevice, (int device))                                      \
    MOEI_HIP_FUNCTION(hipError_t, hipDeviceGetName, (char *name, int bytes, hipDevice_t device))   \
    MOEI_HIP_FUNCTION(hipError_t, hipDeviceGetAttribute,                                           \
                      (int *value, hipDeviceAttribute_t attribute, int device))                    \
    MOEI_HIP_FUNCTION(hipError_t, hipMalloc, (void **memory, size_t bytes))                        \
    MOEI_HIP_FUNCTION(hipError_t, hipFree, (void *memory))                                         \
    MOEI_HIP_FUNCTION(                                                                             \
        hipError_t, hipMemcpyAsync,                                                                \
        (void *to, const void *from, size_t bytes, hipMemcpyKind kind, hipStream_t stream))        \
    MOEI_HIP_FUNCTION(hipError_t, hipMemsetAsync,                                                  \
                      (void *to, int value, size_t bytes, hipStream_t stream))                     \
    MOEI_HIP_FUNCTION(hipError_t, hipModuleLoadData, (hipModule_t * module, const void *image))    \
    MOEI_HIP_FUNCTION(hipError_t, hipModuleUnload, (hipModule_t module))                           \
    MOEI_HIP_FUNCTION(hipError_t, hipModuleGetFunction,                                            \
                      (hipFunction_t * function, hipModule_t module, const char *name))            \
    MOEI_HIP_FUNCTION(hipError_t, hipModuleLaunchKernel,                                           \
                      (hipFunction_t function, unsigned int grid_x, unsigned int grid_y,           \
                       unsigned int grid_z, unsigned int block_x, unsigned int block_y,            \
                       unsigned int block_z, unsigned int shared_bytes, hipStream_t stream,        \
                       void **params, void **extra))                                               \
    MOEI_HIP_FUNCTION(hipError_t, hipStreamSynchronize, (hipStream_t stream))                      \
    MOEI_HIP_FUNCTION(hipError_t, hipEventCreate, (hipEvent_t * event))                            \
    MOEI_HIP_FUNCTION(hipError_t, hipEventDestroy, (hipEvent_t event))                             \
    MOEI_HIP_FUNCTION(hipError_t, hipEventRecord, (hipEvent_t event, hipStream_t stream))          \
    MOEI_HIP_FUNCTION(hipError_t, hipEventSynchronize, (hipEvent_t event))                         \
    MOEI_HIP_FUNCTION(hipError_t, hipEventElapsedTime,                                             \
                      (float *milliseconds, hipEvent_t from, hipEvent_t to))                       \
    MOEI_HIP_FUNCTION(hipError_t, hipDeviceSynchronize, (void))                                    \
    MOEI_HIP_FUNCTION(const char *, hipGetErrorString, (hipError_t error))                         \
    MOEI_HIP_FUNCTION(hipError_t, hipGetLastError, (void))

#define MOEI_HIP_PROTOTYPE(result, name, parameters) result name parameters;
MOEI_HIP_FUNCTIONS(MOEI_HIP_PROTOTYPE)
#undef MOEI_HIP_PROTOTYPE

#ifdef __cplusplus
}
#endif
#endif
