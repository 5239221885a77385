// SPDX-License-Identifier: Apache-2.0
// The AMD backend: a plugin. Its table of kernels, its devices and its vtable.
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "backends/gpu/on_device.h"
#include "backends/hip/arguments.h"
#include "backends/hip/mfma.h"
#include "backends/hip/runtime.h"
#include "core/safemath.h"

// ---- kernels -----------------------------------------------------------------------------------

static bool chain_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why)
{
    return moei_gpu_ggemm_supports(moei_hip_host, kernel, problem, why);
}

// Seconds, roughly; only their order counts.
static double chain_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    (void)kernel;
    return (double)problem->m_max * (double)problem->n * (double)problem->k / 1e12;
}

#define OP_route    MOEI_OP_ROUTE
#define OP_place    MOEI_OP_PLACE
#define OP_sort     MOEI_OP_SORT
#define OP_quantize MOEI_OP_QUANTIZE
#define OP_ggemm    MOEI_OP_GGEMM
#define OP_glu      MOEI_OP_GLU
#define OP_combine  MOEI_OP_COMBINE
#define FLAGS_PLAIN 0
#define FLAGS_REF   MOEI_KERNEL_REF

static const moei_kernel kernels[] = {
#define MOE_KERNEL(op, name, isa, isa_name, mr, nr, kr, layout, arith, flags, supports, cost)      \
    {"moek_" #op "_" #name,                                                                        \
     OP_##op,                                                                                      \
     MOEI_HIP_##isa,                                                                               \
     #isa_name,                                                                                    \
     mr,                                                                                           \
     nr,                                                                                           \
     kr,                                                                                           \
     MOEI_LAYOUT_##layout,                                                                         \
     MOEI_ARITH_##arith,                                                                           \
     FLAGS_##flags,                                                                                \
     NULL,                                                                                         \
     supports,                                                                                     \
     cost,                                                                                         \
     0},
#include "backends/hip/kernels.def"
#undef MOE_KERNEL
};

#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

static uint64_t runs[NUM_KERNELS];

// The kernels of matrix units.
static const struct {
    const char *name;
    moei_hip_source source;
    uint64_t isa;
} mfma[MOEI_HIP_NUM_MFMA] = {
#define MOE_HIP_MFMA(id, name, source, isa, ...) {#name, MOEI_HIP_##source, MOEI_HIP_##isa},
#include "backends/hip/cdna/kernels.def"
#undef MOE_HIP_MFMA
};

// ---- devices -----------------------------------------------------------------------------------

static const moei_hip_device *device_of(const moei_exec *exec)
{
    return (const moei_hip_device *)exec->device;
}

static void unload(moei_hip_device *device)
{
    for (int i = 0; i < MOEI_HIP_NUM_SOURCES; i++) {
        if (device->modules[i] != NULL) {
            (void)moei_hip()->hipModuleUnload(device->modules[i]);
            device->modules[i] = NULL;
        }
    }
}

// What is known of devices. Contexts that have one open share its kernels: loading them takes long.
enum { MAX_DEVICES = 64 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const moei_hip_arch *arch; // NULL: not looked for, or another
    moei_hip_findings found;   // of the probes
    moei_hip_device device;
    unsigned contexts; // that have it open
} known[MAX_DEVICES];

// The runtime refuses objects of another architecture: the one whose probes it takes is the
// device's, and answers them, once where there is memory for it. It names architectures in a
// structure that differs from version to version. The device is the current one, the lock is held.
static const moei_hip_arch *find_arch(const moei_hip_runtime *hip, int32_t device_id)
{
    const bool *asked = &known[device_id].found.asked[MOEI_HIP_FAMILY_ARITHMETIC];
    for (int i = MOEI_HIP_NUM_ARCHS - 1; i >= 0 && !*asked; i--) {
        hipModule_t module = NULL;
        if (hip->hipModuleLoadData(&module, moei_hip_archs[i].objects[MOEI_HIP_PROBE]) ==
            hipSuccess) {
            moei_hip_probe(hip, &moei_hip_archs[i], module, &known[device_id].found);
            (void)hip->hipModuleUnload(module);
            known[device_id].arch = &moei_hip_archs[i];
        }
        (void)hip->hipGetLastError();
    }
    return known[device_id].arch;
}

// False where nothing runs on the device, and why.
static bool is_usable(int32_t device_id, char *why, size_t capacity)
{
    const moei_hip_findings *found = &known[device_id].found;
    const bool asked = found->asked[MOEI_HIP_FAMILY_ARITHMETIC];
    (void)snprintf(why, capacity, "%s%s",
                   known[device_id].arch == NULL ? "is neither gfx942 nor gfx950"
                   : asked                       ? "does not compute as the kernels need: "
                                                 : "cannot be asked how it computes: ",
                   found->text[MOEI_HIP_FAMILY_ARITHMETIC]);
    return (found->isa & MOEI_HIP_ANY) != 0;
}

// Further lines of what the probes found, one per family.
static void describe_families(const moei_hip_findings *found, char *text, size_t capacity)
{
    char line[256];
    for (int f = 0; f < MOEI_HIP_NUM_FAMILIES; f++) {
        const size_t used = strlen(text);
        if (found->asked[f]) {
            (void)snprintf(text + used, capacity - used, "\n  %s",
                           moei_hip_family_text(found, (moei_hip_family)f, line, sizeof line));
        }
    }
}

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    const char *reason;
    const moei_hip_runtime *hip = moei_hip_load(&reason);
    *isa = 0;
    if (hip == NULL) {
        (void)snprintf(text, capacity, "%s", reason);
        return false;
    }
    int count = 0;
    const hipError_t error = hip->hipGetDeviceCount(&count);
    if (error != hipSuccess || count == 0) {
        (void)hip->hipGetLastError();
        (void)snprintf(text, capacity, "no HIP device: %s",
                       error != hipSuccess ? hip->hipGetErrorString(error) : "none found");
        return false;
    }
    enum { LINES = 1024 }; // a capacity for more than one (moei_backend.probe)
    char name[64] = "";
    char why[256];
    int before = 0;
    int units = 0;
    int version = 0;
    (void)pthread_mutex_lock(&lock);
    (void)hip->hipGetDevice(&before);
    (void)hip->hipSetDevice(0);
    const moei_hip_arch *arch = find_arch(hip, 0);
    (void)hip->hipDeviceGetName(name, (int)sizeof name, 0);
    (void)hip->hipDeviceGetAttribute(&units, hipDeviceAttributeMultiprocessorCount, 0);
    (void)hip->hipDriverGetVersion(&version);
    (void)hip->hipSetDevice(before);
    const bool works = is_usable(0, why, sizeof why);
    if (!works) {
        (void)snprintf(text, capacity, "%s %s", name, why);
    } else {
        *isa = known[0].found.isa;
        (void)snprintf(text, capacity,
                       "%d device%s, 0: %s, %s, %d compute units; HIP %d.%d; kernels executed "
                       "under emulation, not verified on silicon",
                       count, count == 1 ? "" : "s", name, arch->name, units, version / 10000000,
                       version / 100000 % 100);
    }
    if (works && capacity >= LINES) {
        describe_families(&known[0].found, text, capacity);
    }
    (void)pthread_mutex_unlock(&lock);
    return works;
}

static const char *isa_text(uint64_t isa, char *text, size_t capacity)
{
    // A context's bits are those of the first device: another one has no fewer, or is refused.
    return moei_hip_found_text(&known[0].found, isa, text, capacity);
}

// Loads every kernel: a run looks nothing up.
static hipError_t load_kernels(const moei_hip_runtime *hip, moei_hip_device *device)
{
    static const char *const names[MOEI_GPU_NUM_BODIES] = {
#define MOE_GPU_BODY(name, args, threads, blocks) "moek_body_" #name,
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    };
    for (int i = 0; i < MOEI_HIP_NUM_SOURCES; i++) {
        const hipError_t error =
            i == MOEI_HIP_PROBE // has been asked
                ? hipSuccess
                : hip->hipModuleLoadData(&device->modules[i], device->arch->objects[i]);
        if (error != hipSuccess) {
            return error;
        }
    }
    for (int body = 0; body < MOEI_GPU_NUM_BODIES; body++) {
        const hipError_t error = hip->hipModuleGetFunction(
            &device->bodies[body], device->modules[MOEI_HIP_BODIES], names[body]);
        if (error != hipSuccess) {
            return error;
        }
    }
    for (int i = 0; i < MOEI_HIP_NUM_MFMA; i++) {
        if ((mfma[i].isa & device->arch->isa) == 0) {
            continue;
        }
        const hipError_t error = hip->hipModuleGetFunction(
            &device->mfma[i], device->modules[mfma[i].source], mfma[i].name);
        if (error != hipSuccess) {
            return error;
        }
    }
    return hip->hipModuleGetFunction(&device->sort_many, device->modules[MOEI_HIP_BODIES],
                                     "moek_sort_many");
}

static moe_status describe(const moei_hip_runtime *hip, int32_t device_id, moei_hip_device *device)
{
    int wave = 0;
    moe_status status = moei_hip_status(
        hip->hipDeviceGetAttribute(&device->compute_units, hipDeviceAttributeMultiprocessorCount,
                                   device_id),
        "compute units of the device");
    if (status == MOE_OK) {
        status = moei_hip_status(
            hip->hipDeviceGetAttribute(&device->shared, hipDeviceAttributeMaxSharedMemoryPerBlock,
                                       device_id),
            "LDS of the device");
    }
    if (status == MOE_OK) {
        status = moei_hip_status(
            hip->hipDeviceGetAttribute(&wave, hipDeviceAttributeWarpSize, device_id),
            "wave size of the device");
    }
    if (status == MOE_OK && wave != 64) {
        status = moei_hip_host->fail(
            MOE_E_DEVICE, "hip: waves of the device have %d lanes, the kernels' 64", wave);
    }
    return status;
}

// Rows are chosen by the bits of the first device.
static moe_status check_device(int32_t device_id)
{
    char text[256];
    if (!is_usable(device_id, text, sizeof text)) {
        return moei_hip_host->fail(MOE_E_DEVICE, "hip: device %d %s", (int)device_id, text);
    }
    if ((known[0].found.isa & ~known[device_id].found.isa) != 0) {
        return moei_hip_host->fail(
            MOE_E_DEVICE, "hip: device %d lacks what device 0 has: %s", (int)device_id,
            moei_hip_found_text(&known[device_id].found, known[device_id].found.isa, text,
                                sizeof text));
    }
    return MOE_OK;
}

// Loads a device; it is the current one.
static moe_status load_device(const moei_hip_runtime *hip, int32_t device_id,
                              moei_hip_device *device)
{
    moe_status status = describe(hip, device_id, device);
    if (status == MOE_OK) {
        device->arch = find_arch(hip, device_id);
        status = check_device(device_id);
    }
    if (status == MOE_OK) {
        status = moei_hip_status(load_kernels(hip, device), "loading kernels");
    }
    if (status != MOE_OK) {
        unload(device);
    }
    return status;
}

// What is off makes rows slower: a context says so.
static void warn(const moe_context *ctx, const moei_hip_findings *found)
{
    char line[256];
    for (int f = 0; f < MOEI_HIP_NUM_FAMILIES; f++) {
        if (found->text[f][0] != '\0') {
            moei_hip_host->log(ctx, 1,
                               moei_hip_family_text(found, (moei_hip_family)f, line, sizeof line));
        }
    }
}

static moe_status open_device(const moe_context *ctx, int32_t device_id, void **out)
{
    const char *reason;
    const moei_hip_runtime *hip = moei_hip_load(&reason);
    if (hip == NULL) {
        return moei_hip_host->fail(MOE_E_DEVICE, "hip: %s", reason);
    }
    int count = 0;
    moe_status status = moei_hip_status(hip->hipGetDeviceCount(&count), "devices");
    if (status != MOE_OK) {
        return status;
    }
    count = count < MAX_DEVICES ? count : MAX_DEVICES;
    if (device_id >= count) {
        return moei_hip_host->fail(MOE_E_ARGUMENT,
                                   "moe_context_create: desc.device_id = %d, there are %d devices",
                                   (int)device_id, count);
    }
    int before = 0;
    (void)pthread_mutex_lock(&lock);
    if (known[device_id].contexts == 0) {
        moei_hip_device device = {0};
        (void)hip->hipGetDevice(&before);
        status = moei_hip_status(hip->hipSetDevice(device_id), "hipSetDevice");
        if (status == MOE_OK) {
            status = load_device(hip, device_id, &device);
        }
        (void)hip->hipSetDevice(before);
        known[device_id].device = device;
    }
    if (status == MOE_OK) {
        known[device_id].contexts++;
        *out = &known[device_id].device;
    }
    (void)pthread_mutex_unlock(&lock);
    if (status == MOE_OK) {
        warn(ctx, &known[device_id].found);
    }
    return status;
}

static void close_device(const moe_context *ctx, void *device)
{
    (void)ctx;
    (void)pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_DEVICES; i++) {
        if (&known[i].device == device && --known[i].contexts == 0) {
            unload(device);
        }
    }
    (void)pthread_mutex_unlock(&lock);
}

// What routing keeps of a token beside its registers must fit into a block's LDS.
static moe_status plan_check(const moei_exec *exec, const moei_plan_info *plan)
{
    const moe_layer_desc *d = plan->desc;
    const moek_route_args route = {
        .desc = d->route, .num_experts = d->num_experts, .top_k = d->top_k};
    if (d->routing != MOE_ROUTING_FROM_LOGITS || moei_gpu_route_in_registers(&route)) {
        return MOE_OK;
    }
    const uint32_t bytes = 4 * moei_gpu_route_words(&route);
    if (bytes <= (uint32_t)device_of(exec)->shared) {
        return MOE_OK;
    }
    return moei_hip_host->fail(MOE_E_UNSUPPORTED,
                               "hip: routing of %d logits to %d slots takes %u bytes of LDS, the "
                               "device has %d; fewer slots, or ids from the caller, work",
                               (int)moei_gpu_route_rows(&route), (int)d->top_k, bytes,
                               device_of(exec)->shared);
}

// The caller's current device, put back by leave.
static int enter(const moei_exec *exec)
{
    int before = 0;
    (void)moei_hip()->hipGetDevice(&before);
    if (before != exec->device_id) {
        (void)moei_hip()->hipSetDevice(exec->device_id);
    }
    return before;
}

static void leave(const moei_exec *exec, int before)
{
    if (before != exec->device_id) {
        (void)moei_hip()->hipSetDevice(before);
    }
}

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    char what[64];
    const int before = enter(exec);
    (void)snprintf(what, sizeof what, "allocating %zu bytes", bytes);
    const moe_status status = moei_hip_status(moei_hip()->hipMalloc(out, bytes), what);
    leave(exec, before);
    return status;
}

static void memory_free(const moei_exec *exec, void *memory, size_t bytes)
{
    const int before = enter(exec);
    (void)bytes;
    (void)moei_hip()->hipFree(memory);
    (void)moei_hip()->hipGetLastError();
    leave(exec, before);
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    const moei_hip_runtime *hip = moei_hip();
    const int before = enter(exec);
    hipError_t error = hip->hipMemcpyAsync(to, from, bytes,
                                           direction == MOE_COPY_TO_DEVICE ? hipMemcpyHostToDevice
                                                                           : hipMemcpyDeviceToHost,
                                           (hipStream_t)exec->stream);
    if (error == hipSuccess) {
        error = hip->hipStreamSynchronize((hipStream_t)exec->stream);
    }
    const moe_status status = moei_hip_status(error, "copying memory");
    leave(exec, before);
    return status;
}

// ---- ops ---------------------------------------------------------------------------------------

uint32_t moei_gpu_cluster_blocks(const moei_exec *exec)
{
    (void)exec;
    return 1; // no machine of AMD's has clusters
}

// `args`: a moei_hip_launch, filled here, and what the kernel wants after it.
static moe_status launch(const moei_exec *exec, hipFunction_t kernel, const char *name,
                         moei_gpu_grid grid, void *args, size_t bytes)
{
    // The runtime counts threads, in 32 bits.
    if ((uint64_t)grid.blocks * grid.threads > UINT32_MAX) {
        return moei_hip_host->fail(MOE_E_DEVICE,
                                   "hip: %s: %u blocks of %u threads are more than a launch can be",
                                   name, grid.blocks, grid.threads);
    }
    if (grid.shared > (uint32_t)device_of(exec)->shared) {
        return moei_hip_host->fail(MOE_E_DEVICE, "hip: %s: %u bytes of LDS, the device has %d",
                                   name, grid.shared, device_of(exec)->shared);
    }
    const moei_hip_launch sizes = {grid.threads, grid.blocks, {0, 0}};
    memcpy(args, &sizes, sizeof sizes);
    void *extra[] = {HIP_LAUNCH_PARAM_BUFFER_POINTER, args, HIP_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     HIP_LAUNCH_PARAM_END};
    return moei_hip_status(
        moei_hip()->hipModuleLaunchKernel(kernel, grid.blocks, 1, 1, grid.threads, 1, 1,
                                          grid.shared, (hipStream_t)exec->stream, NULL, extra),
        name);
}

moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args)
{
    static const struct {
        const char *name;
        size_t at, bytes, whole; // of the body's arguments in the kernel's
    } bodies[MOEI_GPU_NUM_BODIES] = {
#define MOE_GPU_BODY(name, args, threads, blocks)                                                  \
    {#name, offsetof(moei_hip_##name##_args, a), sizeof(args), sizeof(moei_hip_##name##_args)},
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    };
    union { // the largest
#define MOE_GPU_BODY(name, args, threads, blocks) moei_hip_##name##_args name;
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    } all;
    if (grid.blocks == 0) {
        return MOE_OK;
    }
    memcpy((char *)&all + bodies[body].at, args, bodies[body].bytes);
    return launch(exec, device_of(exec)->bodies[body], bodies[body].name, grid, &all,
                  bodies[body].whole);
}

// What the shared sort keeps for one warp at least, beside what lies in registers.
static bool sort_fits(const moek_sort_args *args)
{
    const uint32_t experts = (uint32_t)args->num_experts;
    return 4 * (moei_gpu_sort_pitch(args->num_experts) + MOEI_GPU_SORT_SEGMENT + 2 * experts +
                MOEI_GPU_SORT_SUMS) <=
           MOEI_GPU_SHARED_MAX;
}

static moe_status run_sort(const moei_exec *exec, const moei_kernel *kernel,
                           const moek_sort_args *args)
{
    if (sort_fits(args) || moei_gpu_sorts_few(args)) {
        return moei_gpu_sort(exec, kernel, args);
    }
    const moei_gpu_grid grid = {1, MOEI_HIP_SORT_MANY_THREADS,
                                4 * (MOEI_GPU_SORT_SUMS + (uint32_t)args->num_experts), false};
    moei_hip_sort_many_args all = {.a = *args};
    return launch(exec, device_of(exec)->sort_many, "sort_many", grid, &all, sizeof all);
}

moe_status moei_hip_launch_mfma(const moei_exec *exec, moei_hip_mfma_kernel kernel,
                                moei_gpu_grid grid, moei_hip_mfma_args *args)
{
    return launch(exec, device_of(exec)->mfma[kernel], mfma[kernel].name, grid, args, sizeof *args);
}

static moe_status run_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                            const moek_ggemm_args *args)
{
    return moei_hip_is_mfma(kernel) ? moei_hip_mfma(exec, kernel, args)
                                    : moei_gpu_ggemm(exec, kernel, args);
}

// The members of the vtable.
MOEI_GPU_ON_DEVICE(route, moei_gpu_route)
MOEI_GPU_ON_DEVICE(place, moei_gpu_place)
MOEI_GPU_ON_DEVICE(sort, run_sort)
MOEI_GPU_ON_DEVICE(quantize, moei_gpu_quantize)
MOEI_GPU_ON_DEVICE(ggemm, run_ggemm)
MOEI_GPU_ON_DEVICE(glu, moei_gpu_glu)
MOEI_GPU_ON_DEVICE(combine, moei_gpu_combine)

static const moei_backend backend;

static moe_status run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    const int before = enter(exec);
    moe_status status = MOE_OK;
    for (int32_t i = 0; i < count && status == MOE_OK;) {
        const moei_step *s = &steps[i];
        int32_t prologue = moei_gpu_prologue_steps(exec, s, count - i);
        if (prologue > 0 && !sort_fits(&s[2].args.sort)) {
            prologue = 0;
        }
        if (prologue > 0) {
            status = moei_gpu_prologue(exec, &s[0].args.route, &s[1].args.place, &s[2].args.sort,
                                       prologue > 3 ? &s[3].args.quantize : NULL, NULL);
            i += prologue;
        } else {
            status = moei_step_run(&backend, exec, s);
            i++;
        }
    }
    leave(exec, before);
    return status;
}

static const moei_backend backend = {
    .abi = MOE_BACKEND_ABI,
    .name = "hip",
    .device = MOE_DEVICE_HIP,
    .host_memory = false,
    .kernels = kernels,
    .num_kernels = NUM_KERNELS,
    .runs = runs,
    .probe = probe,
    .isa_text = isa_text,
    .open = open_device,
    .close = close_device,
    .memory_alloc = memory_alloc,
    .memory_free = memory_free,
    .memory_copy = memory_copy,
    .plan_check = plan_check,
    .packed_bytes = moei_hip_packed_bytes,
    .pack = moei_hip_pack,
    .unpack = moei_hip_unpack,
    .route = route_op,
    .place = place_op,
    .sort = sort_op,
    .quantize = quantize_op,
    .ggemm = ggemm_op,
    .glu = glu_op,
    .combine = combine_op,
    .run_steps = run_steps,
    .time = moei_hip_time,
};

const moei_backend *moe_backend_entry(const moei_host *host, uint32_t abi)
{
    if (abi == MOE_BACKEND_ABI) { // else the table may be another one: it is not read
        moei_hip_host = host;
    }
    return &backend;
}
