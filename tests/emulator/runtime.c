// SPDX-License-Identifier: Apache-2.0
// A libamdhip64.so whose device executes gfx942 or gfx950 machine code on the host, so that the
// code objects that would run on AMD's hardware run in tests. Executed under emulation, not on
// silicon.
//
//   runtime.c    this file: HIP's functions, device memory, environment
//   object.c     ELF files, kernel descriptors, the disassembler
//   decode.c     its text to an array of instructions with resolved operands; the table of rows
//   machine.c    workgroups, waves, barriers, memory checks
//   vector.def vector.c compare.c convert.c scalar.def scalar.c global.c shared.c matrix.c
//                the instructions: a row each, in families; every file is built twice, the second
//                time with AVX2 and FMA, and both give the same bits
//   wave.h floats.h small.h
//                what instructions read and write a wave with
//
// Modelled: registers, EXEC, VCC, SCC, M0, MODE (subnormals of f32, IEEE, FP16_OVFL), SDWA, DPP,
// register indexing, LDS, global, flat and private memory, barriers, MFMA; poison in registers and
// LDS; races in LDS. Not modelled: time, waiting (memory answers at once), caches, rounding other
// than to nearest even, traps. An instruction without a row is an error that names it.
//
// A further instruction is a row (and a function, where no form fits), and a case in
// test_instructions.c, which fails for a row without one.
//
//   MOE_EMULATOR_ARCH   gfx942 or gfx950 (default)
//   MOE_EMULATOR_ORDER  of waves: 0 ascending, 1 descending, else the seed of random orders
//   MOE_EMULATOR_SUM    0 or 1: two orders in which MFMA may sum
//   MOE_EMULATOR_APPROX 1: v_rcp, v_rsq, v_sqrt, v_exp and v_log give the float on the other side
//                       of the exact result
//   MOE_EMULATOR_FAULT  a name of faults.def: silicon that is not as the documents were read;
//                       name@1: of device 1 alone
//   MOE_EMULATOR_DEVICES how many there are, default 1
//   MOE_EMULATOR_STEPS  instructions of a launch at most; default 2^31
//   MOE_EMULATOR_LDS    "loose": reads of LDS that nobody wrote, and races, are let pass
//   MOE_EMULATOR_BARRIER "loose": waves may end while others wait, as the hardware allows
//   MOE_EMULATOR_FAR    1: the host that touches device memory faults (but during a launch)
//   MOE_EMULATOR_QUIET  1: errors are not printed
//   MOE_EMULATOR_STATS  1: the instructions of each launch are printed; 2: how often each ran, too
//   MOE_EMULATOR_BASE   1: without AVX2 and FMA
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#pragma GCC visibility push(default)
#include "backends/hip/hip_api.h"
/// What the last error said; valid until the next.
const char *moe_emulator_error(void);
#pragma GCC visibility pop
#include "emulator/emulator.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static emu_range *ranges; // device memory, sorted
static size_t num_ranges;
static size_t room;
static pthread_mutex_t say_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_error_text[1024];
static _Thread_local hipError_t last_error;

struct ihipModule_t {
    emu_object *object;
};

struct ihipModuleSymbol_t {
    int unused; // a kernel's address is its handle
};

static hipError_t result(hipError_t e)
{
    if (e != hipSuccess) {
        last_error = e;
    }
    return e;
}

static void say(const char *text)
{
    pthread_mutex_lock(&say_lock);
    (void)snprintf(last_error_text, sizeof last_error_text, "%s", text);
    pthread_mutex_unlock(&say_lock);
    if (getenv("MOE_EMULATOR_QUIET") == NULL) {
        (void)fprintf(stderr, "emulator: %s\n", text);
    }
}

const char *moe_emulator_error(void)
{
    return last_error_text;
}

static emu_arch arch_of_device(void)
{
    const char *name = getenv("MOE_EMULATOR_ARCH");
    return name != NULL && strcmp(name, "gfx942") == 0 ? EMU_GFX942 : EMU_GFX950;
}

static uint64_t number_of(const char *name, uint64_t otherwise)
{
    const char *v = getenv(name);
    return v != NULL && *v ? strtoull(v, NULL, 0) : otherwise;
}

static emu_fault fault_of(int device)
{
    static const char *const names[] = {
#define EMU_FAULT(id, name) name,
#include "emulator/faults.def"
#undef EMU_FAULT
    };
    const char *v = getenv("MOE_EMULATOR_FAULT");
    const char *at = v != NULL ? strchr(v, '@') : NULL;
    if (v == NULL || *v == '\0' || (at != NULL && atoi(at + 1) != device)) {
        return EMU_FAULT_NONE;
    }
    const size_t length = at != NULL ? (size_t)(at - v) : strlen(v);
    int i = 0;
    while (i + 1 < EMU_FAULT_UNKNOWN &&
           (strncmp(v, names[i], length) != 0 || names[i][length] != '\0')) {
        i++;
    }
    return (emu_fault)(i + 1);
}

static bool loose(const char *name)
{
    const char *v = getenv(name);
    return v != NULL && strcmp(v, "loose") == 0;
}

// ---- the device
// They share their memory, and differ in what is wrong with them.
static _Thread_local int current;

static int devices(void)
{
    return (int)number_of("MOE_EMULATOR_DEVICES", 1);
}

hipError_t hipInit(unsigned int flags)
{
    return result(flags == 0 ? hipSuccess : hipErrorInvalidValue);
}

hipError_t hipDriverGetVersion(int *version)
{
    *version = 60000000;
    return hipSuccess;
}

hipError_t hipGetDeviceCount(int *count)
{
    *count = devices();
    return hipSuccess;
}

hipError_t hipGetDevice(int *device)
{
    *device = current;
    return hipSuccess;
}

hipError_t hipSetDevice(int device)
{
    if (device < 0 || device >= devices()) {
        return result(hipErrorInvalidDevice);
    }
    current = device;
    return hipSuccess;
}

hipError_t hipDeviceGetName(char *name, int bytes, hipDevice_t device)
{
    if (device < 0 || device >= devices() || name == NULL || bytes <= 0) {
        return result(hipErrorInvalidValue);
    }
    (void)snprintf(name, (size_t)bytes, "%s (emulated)",
                   arch_of_device() == EMU_GFX942 ? "gfx942" : "gfx950");
    return hipSuccess;
}

hipError_t hipDeviceGetAttribute(int *value, hipDeviceAttribute_t attribute, int device)
{
    const bool older = arch_of_device() == EMU_GFX942;
    if (device < 0 || device >= devices() || value == NULL) {
        return result(hipErrorInvalidValue);
    }
    switch (attribute) {
    case hipDeviceAttributeClockRate:
        *value = older ? 2100000 : 2400000;
        return hipSuccess;
    case hipDeviceAttributeMaxThreadsPerBlock:
        *value = EMU_MAX_WAVES * EMU_LANES;
        return hipSuccess;
    case hipDeviceAttributeMultiprocessorCount:
        *value = older ? 304 : 256;
        return hipSuccess;
    case hipDeviceAttributeMaxSharedMemoryPerBlock:
        *value = older ? 65536 : 163840;
        return hipSuccess;
    case hipDeviceAttributeWarpSize:
        *value = EMU_LANES;
        return hipSuccess;
    default:
        return result(hipErrorInvalidValue);
    }
}

// ---- memory
/// The index of the first range that begins behind `address`.
static size_t behind(const emu_range *r, size_t n, uint64_t address)
{
    size_t low = 0;
    while (low < n) {
        const size_t middle = (low + n) / 2;
        if (r[middle].begin <= address) {
            low = middle + 1;
        } else {
            n = middle;
        }
    }
    return low;
}

static bool insert(emu_range **list, size_t *n, size_t *capacity, emu_range r)
{
    if (*n == *capacity) {
        const size_t more = *capacity ? 2 * *capacity : 64;
        emu_range *grown = realloc(*list, more * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        *list = grown;
        *capacity = more;
    }
    const size_t at = behind(*list, *n, r.begin);
    memmove(*list + at + 1, *list + at, (*n - at) * sizeof r);
    (*list)[at] = r;
    ++*n;
    return true;
}

static bool on_device(const void *p, size_t bytes)
{
    const uint64_t address = (uint64_t)(uintptr_t)p;
    const size_t at = behind(ranges, num_ranges, address);
    return at > 0 && address + bytes <= ranges[at - 1].end;
}

// With MOE_EMULATOR_FAR device memory lies in pages that nobody may touch, except while a function
// of this file or a kernel does.
static bool is_far(void)
{
    static int far = -1;
    if (far < 0) {
        far = number_of("MOE_EMULATOR_FAR", 0) != 0;
    }
    return far != 0;
}

static size_t in_pages(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

static void *take_memory(size_t bytes)
{
    // A gap behind each allocation: none ends where another begins.
    if (!is_far()) {
        return aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    }
    void *p =
        mmap(NULL, in_pages(bytes + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void give_memory(void *p, size_t bytes)
{
    if (is_far()) {
        (void)munmap(p, in_pages(bytes + 1));
    } else {
        free(p);
    }
}

/// Lets device memory be touched, or not; the lock is held.
static void open_memory(bool open)
{
    for (size_t i = 0; is_far() && i < num_ranges; i++) {
        (void)mprotect((void *)(uintptr_t)ranges[i].begin,
                       in_pages((size_t)(ranges[i].end - ranges[i].begin)),
                       open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}

hipError_t hipMalloc(void **memory, size_t bytes)
{
    if (memory == NULL) {
        return result(hipErrorInvalidValue);
    }
    *memory = NULL;
    if (bytes == 0) {
        return hipSuccess;
    }
    if (bytes > SIZE_MAX / 2) {
        return result(hipErrorOutOfMemory);
    }
    void *p = take_memory(bytes);
    if (p == NULL) {
        return result(hipErrorOutOfMemory);
    }
    memset(p, 0xA5, bytes);
    const uint64_t begin = (uint64_t)(uintptr_t)p;
    pthread_mutex_lock(&lock);
    const bool ok = insert(&ranges, &num_ranges, &room,
                           (emu_range){begin, begin + bytes, false, "an allocation"});
    open_memory(false);
    pthread_mutex_unlock(&lock);
    if (!ok) {
        give_memory(p, bytes);
        return result(hipErrorOutOfMemory);
    }
    *memory = p;
    return hipSuccess;
}

hipError_t hipFree(void *memory)
{
    if (memory == NULL) {
        return hipSuccess;
    }
    pthread_mutex_lock(&lock);
    const size_t at = behind(ranges, num_ranges, (uint64_t)(uintptr_t)memory);
    const bool found = at > 0 && ranges[at - 1].begin == (uint64_t)(uintptr_t)memory;
    const size_t bytes = found ? (size_t)(ranges[at - 1].end - ranges[at - 1].begin) : 0;
    if (found) {
        memmove(ranges + at - 1, ranges + at, (num_ranges - at) * sizeof *ranges);
        num_ranges--;
    }
    pthread_mutex_unlock(&lock);
    if (!found) {
        say("hipFree of what hipMalloc did not give");
        return result(hipErrorInvalidValue);
    }
    give_memory(memory, bytes);
    return hipSuccess;
}

hipError_t hipMemcpyAsync(void *to, const void *from, size_t bytes, hipMemcpyKind kind,
                          hipStream_t stream)
{
    (void)stream;
    if (bytes == 0) {
        return hipSuccess;
    }
    pthread_mutex_lock(&lock);
    const bool to_device = kind == hipMemcpyHostToDevice || kind == hipMemcpyDeviceToDevice;
    const bool from_device = kind == hipMemcpyDeviceToHost || kind == hipMemcpyDeviceToDevice;
    const bool ok = to != NULL && from != NULL && (!to_device || on_device(to, bytes)) &&
                    (!from_device || on_device(from, bytes));
    if (ok) {
        open_memory(true);
        memmove(to, from, bytes);
        open_memory(false);
    }
    pthread_mutex_unlock(&lock);
    if (!ok) {
        say("hipMemcpyAsync outside of device memory");
    }
    return result(ok ? hipSuccess : hipErrorInvalidValue);
}

hipError_t hipMemsetAsync(void *to, int value, size_t bytes, hipStream_t stream)
{
    (void)stream;
    if (bytes == 0) {
        return hipSuccess;
    }
    pthread_mutex_lock(&lock);
    const bool ok = on_device(to, bytes);
    if (ok) {
        open_memory(true);
        memset(to, value, bytes);
        open_memory(false);
    }
    pthread_mutex_unlock(&lock);
    if (!ok) {
        say("hipMemsetAsync outside of device memory");
    }
    return result(ok ? hipSuccess : hipErrorInvalidValue);
}

// ---- modules
hipError_t hipModuleLoadData(hipModule_t *module, const void *image)
{
    char error[256];
    if (module == NULL || image == NULL) {
        return result(hipErrorInvalidValue);
    }
    const size_t bytes = emu_elf_bytes(image);
    if (bytes == 0) {
        return result(hipErrorInvalidImage);
    }
    if (emu_elf_arch(image) != arch_of_device()) {
        return result(hipErrorNoBinaryForGpu);
    }
    hipModule_t m = calloc(1, sizeof *m);
    if (m == NULL) {
        return result(hipErrorOutOfMemory);
    }
    m->object = emu_object_load(image, bytes, error, sizeof error);
    if (m->object == NULL) {
        say(error);
        free(m);
        return result(hipErrorInvalidImage);
    }
    *module = m;
    return hipSuccess;
}

hipError_t hipModuleUnload(hipModule_t module)
{
    if (module != NULL) {
        emu_object_free(module->object);
        free(module);
    }
    return hipSuccess;
}

hipError_t hipModuleGetFunction(hipFunction_t *function, hipModule_t module, const char *name)
{
    if (function == NULL || module == NULL || name == NULL) {
        return result(hipErrorInvalidValue);
    }
    for (size_t i = 0; i < module->object->num_kernels; i++) {
        if (strcmp(module->object->kernels[i].name, name) == 0) {
            *function = (hipFunction_t)(void *)&module->object->kernels[i];
            return hipSuccess;
        }
    }
    return result(hipErrorNotFound);
}

/// What a kernel may read of its dispatch.
typedef struct dispatch_packet {
    uint16_t header, setup, block[3], reserved0;
    uint32_t grid[3], private_bytes, group_bytes;
    uint64_t kernel, kernarg, reserved1, signal;
} dispatch_packet;

static bool arguments(void **extra, const void **buffer, size_t *bytes)
{
    *buffer = NULL;
    *bytes = 0;
    for (size_t i = 0; extra != NULL && extra[i] != HIP_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == HIP_LAUNCH_PARAM_BUFFER_POINTER) {
            *buffer = extra[i + 1];
        } else if (extra[i] == HIP_LAUNCH_PARAM_BUFFER_SIZE) {
            *bytes = *(const size_t *)extra[i + 1];
        } else {
            return false;
        }
    }
    return *buffer != NULL || *bytes == 0;
}

// How often waves ran each kind of instruction.
static void print_runs(const emu_launch *l)
{
    const emu_code *code = l->kernel->code;
    for (size_t i = 0; l->runs != NULL && i < code->num; i++) {
        uint64_t all = 0;
        for (size_t j = i; l->runs[i] != 0 && j < code->num; j++) {
            if (code->inst[j].row == code->inst[i].row) {
                all += l->runs[j];
                l->runs[j] = j == i ? l->runs[j] : 0;
            }
        }
        if (all != 0) {
            (void)fprintf(stderr, "emulator: %s %llu\n", code->inst[i].row->name,
                          (unsigned long long)all);
        }
    }
}

static hipError_t launch(emu_launch *l, emu_kernel *k, unsigned shared_bytes, const void *buffer,
                         size_t bytes)
{
    char error[768] = "";
    l->error = error;
    l->error_bytes = sizeof error;
    if (!emu_kernel_decode(k, error, sizeof error)) {
        say(error);
        return hipErrorLaunchFailure;
    }
    if (bytes > k->kernarg_bytes || k->kernarg_bytes - bytes >= 8) {
        (void)snprintf(error, sizeof error, "kernel %s: %zu bytes of arguments, it has %u", k->name,
                       bytes, k->kernarg_bytes);
        say(error);
        return hipErrorInvalidValue;
    }
    uint8_t *kernarg = aligned_alloc(64, (k->kernarg_bytes + 127u) / 64 * 64);
    emu_range *all = malloc((num_ranges + 3) * sizeof *all);
    size_t capacity = num_ranges + 3;
    hipError_t e = hipErrorOutOfMemory;
    if (kernarg != NULL && all != NULL) {
        dispatch_packet packet = {0};
        memset(kernarg, 0xA5, k->kernarg_bytes);
        if (bytes > 0) {
            memcpy(kernarg, buffer, bytes);
        }
        for (int i = 0; i < 3; i++) {
            packet.block[i] = (uint16_t)l->block[i];
            packet.grid[i] = l->grid[i] * l->block[i];
        }
        packet.kernarg = (uint64_t)(uintptr_t)kernarg;
        packet.group_bytes = k->lds_bytes + shared_bytes;
        packet.private_bytes = k->private_bytes;
        if (num_ranges > 0) {
            memcpy(all, ranges, num_ranges * sizeof *all);
        }
        size_t n = num_ranges;
        const emu_range more[3] = {
            {packet.kernarg, packet.kernarg + k->kernarg_bytes, true, "the arguments"},
            {(uint64_t)(uintptr_t)&packet, (uint64_t)(uintptr_t)(&packet + 1), true,
             "the dispatch"},
            {(uint64_t)(uintptr_t)k->object->image,
             (uint64_t)(uintptr_t)(k->object->image + k->object->image_bytes), true,
             "the code object"}};
        for (int i = 0; i < 3; i++) {
            (void)insert(&all, &n, &capacity, more[i]); // there is room
        }
        l->ranges = all;
        l->num_ranges = n;
        l->runs =
            number_of("MOE_EMULATOR_STATS", 0) > 1 ? calloc(k->code->num, sizeof *l->runs) : NULL;
        const bool ok = emu_run(l, shared_bytes, kernarg, &packet);
        e = ok ? hipSuccess : hipErrorLaunchFailure;
        if (!ok) {
            say(error);
        } else if (getenv("MOE_EMULATOR_STATS") != NULL) {
            (void)fprintf(stderr, "emulator: kernel %s: %llu instructions of waves\n", k->name,
                          (unsigned long long)l->steps);
            print_runs(l);
        }
        free(l->runs);
    }
    free(kernarg);
    free(all);
    return e;
}

hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int grid_x, unsigned int grid_y,
                                 unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                 unsigned int block_z, unsigned int shared_bytes,
                                 hipStream_t stream, void **params, void **extra)
{
    const void *buffer;
    size_t bytes;
    (void)stream;
    if (function == NULL || params != NULL || !arguments(extra, &buffer, &bytes)) {
        say("hipModuleLaunchKernel: arguments come by `extra`");
        return result(hipErrorInvalidValue);
    }
    emu_kernel *k = (emu_kernel *)(void *)function;
    emu_launch l = {.kernel = k,
                    .arch = k->object->arch,
                    .grid = {grid_x, grid_y, grid_z},
                    .block = {block_x, block_y, block_z},
                    .max_steps = number_of("MOE_EMULATOR_STEPS", (uint64_t)1 << 31),
                    .order = number_of("MOE_EMULATOR_ORDER", 0),
                    .sum = (int)number_of("MOE_EMULATOR_SUM", 0),
                    .approx = (int)number_of("MOE_EMULATOR_APPROX", 0),
                    .fault = fault_of(current),
                    .lds_races = !loose("MOE_EMULATOR_LDS"),
                    .lds_unwritten = !loose("MOE_EMULATOR_LDS"),
                    .strict_barriers = !loose("MOE_EMULATOR_BARRIER")};
    if (l.fault == EMU_FAULT_UNKNOWN) {
        say("MOE_EMULATOR_FAULT names no fault");
        return result(hipErrorInvalidValue);
    }
    if (l.fault == EMU_FAULT_LAUNCH && strstr(k->name, "probe_matrix") != NULL) {
        return result(hipErrorLaunchFailure);
    }
    pthread_mutex_lock(&lock);
    open_memory(true);
    const hipError_t e = launch(&l, k, shared_bytes, buffer, bytes);
    open_memory(false);
    pthread_mutex_unlock(&lock);
    return result(e);
}

// A launch is over when it returns: an event is the time at which it was recorded.
struct ihipEvent_t {
    struct timespec at;
    bool recorded;
};

hipError_t hipEventCreate(hipEvent_t *event)
{
    *event = calloc(1, sizeof **event);
    return result(*event != NULL ? hipSuccess : hipErrorOutOfMemory);
}

hipError_t hipEventDestroy(hipEvent_t event)
{
    free(event);
    return hipSuccess;
}

hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream)
{
    (void)stream;
    event->recorded = true;
    (void)clock_gettime(CLOCK_MONOTONIC, &event->at);
    return hipSuccess;
}

hipError_t hipEventSynchronize(hipEvent_t event)
{
    return result(event->recorded ? hipSuccess : hipErrorInvalidHandle);
}

hipError_t hipEventElapsedTime(float *milliseconds, hipEvent_t from, hipEvent_t to)
{
    if (!from->recorded || !to->recorded) {
        return result(hipErrorInvalidHandle);
    }
    *milliseconds = (float)(to->at.tv_sec - from->at.tv_sec) * 1e3f +
                    (float)(to->at.tv_nsec - from->at.tv_nsec) * 1e-6f;
    return hipSuccess;
}

hipError_t hipStreamSynchronize(hipStream_t stream)
{
    (void)stream;
    return hipSuccess;
}

hipError_t hipDeviceSynchronize(void)
{
    return hipSuccess;
}

const char *hipGetErrorString(hipError_t error)
{
    switch (error) {
    case hipSuccess:
        return "no error";
    case hipErrorInvalidValue:
        return "invalid argument";
    case hipErrorOutOfMemory:
        return "out of memory";
    case hipErrorInvalidDevice:
        return "invalid device ordinal";
    case hipErrorInvalidImage:
        return "device kernel image is invalid";
    case hipErrorNoBinaryForGpu:
        return "no kernel image is available for execution on the device";
    case hipErrorNotFound:
        return "named symbol not found";
    case hipErrorLaunchFailure:
        return last_error_text[0] ? last_error_text : "unspecified launch failure";
    default:
        return "an error";
    }
}

hipError_t hipGetLastError(void)
{
    const hipError_t e = last_error;
    last_error = hipSuccess;
    return e;
}
