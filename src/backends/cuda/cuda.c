// SPDX-License-Identifier: Apache-2.0
// The CUDA backend: a plugin. Its table of kernels, its devices and its vtable.
#include <stdio.h>
#include <string.h>

#include "backends/cuda/graph.h"
#include "backends/cuda/measure.h"
#include "backends/cuda/mma.h"
#include "backends/cuda/operand.h"
#include "backends/cuda/ops.h"
#include "backends/gpu/args.h"
#include "backends/gpu/on_device.h"

const moei_host *moei_cuda_host;

moe_status moei_cuda_status(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) {
        return MOE_OK;
    }
    (void)cudaGetLastError(); // the next call is judged by itself
    return moei_cuda_host->fail(error == cudaErrorMemoryAllocation ? MOE_E_NO_MEMORY : MOE_E_DEVICE,
                                "cuda: %s: %s (%s)", what, cudaGetErrorString(error),
                                cudaGetErrorName(error));
}

// ---- kernels -----------------------------------------------------------------------------------

static bool chain_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why)
{
    return moei_gpu_ggemm_supports(moei_cuda_host, kernel, problem, why);
}

// Seconds, roughly; only their order counts.
static double chain_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    (void)kernel;
    return (double)problem->m_max * (double)problem->n * (double)problem->k / 1e12;
}

// What all matrix kernels ask of a problem: x of one type, weights as [n, k].
static bool mma_takes(const moei_ggemm_problem *problem, moe_dtype dtype, moei_whynot *why)
{
    if (problem->x_dtype != dtype) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_DTYPE, problem->x_dtype, dtype};
        return false;
    }
    if (problem->transposed) {
        *why = (moei_whynot){MOEI_WHYNOT_TRANSPOSED, 1, 0};
        return false;
    }
    return true;
}

static bool is_multiple(int64_t k, int64_t of, moei_whynot *why)
{
    *why = (moei_whynot){MOEI_WHYNOT_ALIGNMENT, k, of};
    return k % of == 0; // the copy engine's rows are multiples of 16 bytes
}

static bool float_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                           moei_whynot *why)
{
    const bool f16 = kernel->arith == MOEI_ARITH_WGMMA_F16;
    const moe_format format = f16 ? MOE_FORMAT_F16 : MOE_FORMAT_BF16;
    if (problem->gemm->weight_format != format) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, problem->gemm->weight_format, format};
        return false;
    }
    return mma_takes(problem, f16 ? MOE_F16 : MOE_BF16, why) && is_multiple(problem->k, 8, why);
}

// Elements of k that share a scale of x; 0: all.
static int64_t group_of(const moe_quant_desc *act)
{
    const moei_quant_info *info = moei_cuda_host->quant(act->spec);
    return act->group != 0 || info == NULL ? act->group : info->group;
}

static moe_scale_type scale_type_of(const moe_quant_desc *act)
{
    const moei_quant_info *info = moei_cuda_host->quant(act->spec);
    return act->scale_type != 0 || info == NULL ? act->scale_type : info->scale_type;
}

// Packed weights: scales that are decoded with the codes, or one for all k, go to the class of
// chunks, others to that of their group. Scales of x play no part in this.
static bool packed_takes(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                         moe_dtype x_dtype, moei_whynot *why)
{
    const moe_format format = problem->gemm->weight_format;
    const moei_format_info *info = moei_cuda_host->format(format);
    const int kind = info != NULL ? moei_operand_kind_of(info) : -1;
    if (kind < 0) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, format, MOE_FORMAT_MXFP4};
        return false;
    }
    if (!mma_takes(problem, x_dtype, why)) {
        return false;
    }
    moe_gemm_desc weights = *problem->gemm;
    moei_ggemm_problem of_weights = *problem;
    weights.act = (moe_quant_desc){0};
    of_weights.gemm = &weights;
    const int64_t fold = MOEI_OPERAND_APART(kind) ? moei_cuda_host->ggemm_fold(&of_weights) : 0;
    const int64_t chunk = kernel->arith == MOEI_ARITH_WGMMA_BF16_C576
                              ? 0
                              : moei_cuda_host->arith(kernel->arith)->chunk;
    if (fold != chunk || !moei_operand_takes(info, fold)) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, fold, chunk};
        return false;
    }
    return true;
}

static bool packed_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                            moei_whynot *why)
{
    return packed_takes(kernel, problem, MOE_BF16, why);
}

// The same for e4m3 codes of x: scales along k that are powers of two are decoded with them, where
// 16 codes have one, and the class is that of chunks.
static bool packed_fp8_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                                moei_whynot *why)
{
    enum { MULTIPLE = 16, USUAL = 32 }; // elements of k
    if (!packed_takes(kernel, problem, MOE_E4M3FN, why)) {
        return false;
    }
    const moe_quant_desc *act = &problem->gemm->act;
    const int64_t group = group_of(act);
    if (group == 0) {
        return true;
    }
    if (kernel->arith != MOEI_ARITH_WGMMA_BF16_C576) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, group, 0};
        return false;
    }
    const moe_scale_type scale = scale_type_of(act);
    if (scale != MOE_SCALE_E8M0 && scale != MOE_SCALE_UE8M0_PACKED &&
        scale != MOE_SCALE_UE8M0_F32) {
        *why = (moei_whynot){MOEI_WHYNOT_ACT_QUANT, act->spec, MOE_QUANT_MX_FLOOR};
        return false;
    }
    if (group % MULTIPLE != 0 || moei_cuda_host->ggemm_fold(problem) < 0) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, group, USUAL};
        return false;
    }
    return true;
}

// FP8 codes on both sides, scales per tensor, row or 128 k. Scales of x of 256 k, say, fit weights
// of 128 x 128, but not the kernel, which takes a scale of both a step of 128.
static bool fp8_supports(const moei_kernel *kernel, const moei_ggemm_problem *problem,
                         moei_whynot *why)
{
    (void)kernel;
    const moe_format format = problem->gemm->weight_format;
    const moei_format_info *info = moei_cuda_host->format(format);
    if (info == NULL || info->elem != MOE_E4M3FN) {
        *why = (moei_whynot){MOEI_WHYNOT_WGT_FORMAT, format, MOE_FORMAT_E4M3FN_BLOCK};
        return false;
    }
    const int64_t fold = moei_cuda_host->ggemm_fold(problem);
    const int64_t group = group_of(&problem->gemm->act);
    if ((fold != 0 && fold != 128) || (group != 0 && group != 128)) {
        *why = (moei_whynot){MOEI_WHYNOT_FOLD, fold != 128 ? fold : group, 128};
        return false;
    }
    return mma_takes(problem, MOE_E4M3FN, why) && is_multiple(problem->k, 16, why);
}

static double mma_cost(const moei_kernel *kernel, const moei_ggemm_problem *problem)
{
    return chain_cost(kernel, problem) / 16.0;
}

#define OP_route        MOEI_OP_ROUTE
#define OP_place        MOEI_OP_PLACE
#define OP_sort         MOEI_OP_SORT
#define OP_quantize     MOEI_OP_QUANTIZE
#define OP_ggemm        MOEI_OP_GGEMM
#define OP_glu          MOEI_OP_GLU
#define OP_combine      MOEI_OP_COMBINE
#define FLAGS_GRAPH     MOEI_KERNEL_GRAPH_SAFE
#define FLAGS_GRAPH_REF (MOEI_KERNEL_GRAPH_SAFE | MOEI_KERNEL_REF)

static const moei_kernel kernels[] = {
#define MOE_KERNEL(op, name, isa, isa_name, mr, nr, kr, layout, arith, flags, supports, cost)      \
    {"moek_" #op "_" #name,                                                                        \
     OP_##op,                                                                                      \
     MOEI_CUDA_##isa,                                                                              \
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
     MOEI_CUDA_##isa == MOEI_CUDA_SM90A ? 16 : 0}, /* the copy engine's rows */
#include "backends/cuda/kernels.def"
#undef MOE_KERNEL
};

#define NUM_KERNELS (sizeof kernels / sizeof kernels[0])

static uint64_t runs[NUM_KERNELS];

// ---- devices -----------------------------------------------------------------------------------

static bool has_matrix_kernels(const struct cudaDeviceProp *p)
{
    return p->major == 9 && p->minor == 0;
}

static bool probe(uint64_t *isa, char *text, size_t capacity)
{
    int count = 0;
    int driver = 0;
    struct cudaDeviceProp p;
    *isa = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) {
        error = cudaGetDeviceProperties(&p, 0);
    }
    (void)cudaDriverGetVersion(&driver);
    if (error != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        (void)snprintf(text, capacity, "no CUDA device: %s",
                       error != cudaSuccess ? cudaGetErrorString(error) : "none found");
        return false;
    }
    if (p.major < 8) {
        (void)snprintf(text, capacity, "%s is sm_%d%d; sm_80 and later work", p.name, p.major,
                       p.minor);
        return false;
    }
    *isa = MOEI_CUDA_SM80 | (has_matrix_kernels(&p) ? MOEI_CUDA_SM90A : 0);
    (void)snprintf(text, capacity,
                   "%d device%s, 0: %s, sm_%d%d%s, %d multiprocessors, %zu MiB; CUDA %d.%d, driver "
                   "for %d.%d",
                   count, count == 1 ? "" : "s", p.name, p.major, p.minor,
                   has_matrix_kernels(&p) ? "a" : "", p.multiProcessorCount, p.totalGlobalMem >> 20,
                   CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100, driver / 1000,
                   driver / 10 % 100);
    return true;
}

static const char *isa_text(uint64_t isa, char *text, size_t capacity)
{
    (void)snprintf(text, capacity, "%s%s%s", (isa & MOEI_CUDA_SM80) != 0 ? "sm_80" : "",
                   isa == (MOEI_CUDA_SM80 | MOEI_CUDA_SM90A) ? " " : "",
                   (isa & MOEI_CUDA_SM90A) != 0 ? "sm_90a" : "");
    return text;
}

// Loads and configures every kernel: the first run of a process may be captured in a graph.
static cudaError_t load_kernels(const moei_cuda_device *device)
{
    struct cudaFuncAttributes attributes;
    for (int body = 0; body < MOEI_GPU_NUM_BODIES; body++) {
        const void *kernel = moei_cuda_body((moei_gpu_body)body);
        cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
        if (error == cudaSuccess) {
            error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         device->shared - (int)attributes.sharedSizeBytes);
        }
        if (error != cudaSuccess) {
            return error;
        }
    }
    return device->encode != NULL ? moei_cuda_mma_load() : cudaSuccess;
}

// Blocks of the largest cluster of the largest sort that the device can hold: 16 where there are as
// many multiprocessors side by side, else 8 or fewer; 1 before sm_90.
static uint32_t find_cluster(const moei_cuda_device *device)
{
    const void *sort = moei_cuda_body(MOEI_GPU_sort);
    const void *prologue = moei_cuda_body(MOEI_GPU_prologue);
    const enum cudaFuncAttribute beyond_8 = cudaFuncAttributeNonPortableClusterSizeAllowed;
    const bool beyond = device->overlaps &&
                        cudaFuncSetAttribute(sort, beyond_8, 1) == cudaSuccess &&
                        cudaFuncSetAttribute(prologue, beyond_8, 1) == cudaSuccess;
    uint32_t blocks = !device->overlaps ? 1 : beyond ? MOEI_GPU_CLUSTER : 8;
    for (; blocks > 1; blocks /= 2) {
        const moei_gpu_sort_plan plan =
            moei_gpu_plan_sort(INT32_MAX, 512, 32 * MOEI_GPU_SORT_WARPS, blocks);
        cudaLaunchAttribute size = {.id = cudaLaunchAttributeClusterDimension};
        size.val.clusterDim.x = blocks;
        size.val.clusterDim.y = 1;
        size.val.clusterDim.z = 1;
        const cudaLaunchConfig_t config = {.gridDim = {blocks, 1, 1},
                                           .blockDim = {plan.threads, 1, 1},
                                           .dynamicSmemBytes = plan.shared,
                                           .attrs = &size,
                                           .numAttrs = 1};
        int clusters = 0;
        if (cudaOccupancyMaxActiveClusters(&clusters, sort, &config) == cudaSuccess &&
            clusters > 0) {
            break;
        }
    }
    (void)cudaGetLastError();
    return blocks;
}

static moe_status open_device(const moe_context *ctx, int32_t device_id, void **out)
{
    int count = 0;
    struct cudaDeviceProp p;
    moei_cuda_device device = {.ordinal = device_id};
    moe_status status = moei_cuda_status(cudaGetDeviceCount(&count), "devices");
    if (status != MOE_OK) {
        return status;
    }
    if (device_id >= count) {
        return moei_cuda_host->fail(MOE_E_ARGUMENT,
                                    "moe_context_create: desc.device_id = %d, there are %d devices",
                                    (int)device_id, count);
    }
    int before = 0;
    (void)cudaGetDevice(&before);
    status = moei_cuda_status(cudaSetDevice(device_id), "cudaSetDevice");
    if (status == MOE_OK) {
        status = moei_cuda_status(cudaGetDeviceProperties(&p, device_id), "device properties");
    }
    if (status == MOE_OK) {
        device.sms = p.multiProcessorCount;
        device.shared = (int)p.sharedMemPerBlockOptin;
        device.overlaps = p.major >= 9;
        if (has_matrix_kernels(&p)) {
            enum cudaDriverEntryPointQueryResult found;
            void *encode = NULL;
            status =
                moei_cuda_status(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode,
                                                                  12000, cudaEnableDefault, &found),
                                 "cuTensorMapEncodeTiled");
            memcpy(&device.encode, &encode, sizeof encode);
        }
    }
    if (status == MOE_OK) {
        status = moei_cuda_status(load_kernels(&device), "loading kernels");
        device.cluster = find_cluster(&device);
    }
    (void)cudaSetDevice(before);
    if (status != MOE_OK) {
        return status;
    }
    moei_cuda_device *kept = moei_cuda_host->alloc(ctx, sizeof *kept, 64);
    if (kept == NULL) {
        return moei_cuda_host->fail(MOE_E_NO_MEMORY, "cuda: no memory for %zu bytes", sizeof *kept);
    }
    *kept = device;
    *out = kept;
    return MOE_OK;
}

static void close_device(const moe_context *ctx, void *device)
{
    moei_cuda_host->free(ctx, device, sizeof(moei_cuda_device));
}

// The caller's current device, put back by leave.
static int enter(const moei_exec *exec)
{
    int before = 0;
    (void)cudaGetDevice(&before);
    if (before != exec->device_id) {
        (void)cudaSetDevice(exec->device_id);
    }
    return before;
}

static void leave(const moei_exec *exec, int before)
{
    if (before != exec->device_id) {
        (void)cudaSetDevice(before);
    }
}

static moe_status memory_alloc(const moei_exec *exec, size_t bytes, void **out)
{
    char what[64];
    const int before = enter(exec);
    (void)snprintf(what, sizeof what, "allocating %zu bytes", bytes);
    const moe_status status = moei_cuda_status(cudaMalloc(out, bytes), what);
    leave(exec, before);
    return status;
}

static void memory_free(const moei_exec *exec, void *memory, size_t bytes)
{
    const int before = enter(exec);
    (void)bytes;
    (void)cudaFree(memory);
    (void)cudaGetLastError();
    leave(exec, before);
}

static moe_status memory_copy(const moei_exec *exec, void *to, const void *from, size_t bytes,
                              moe_copy direction)
{
    const int before = enter(exec);
    cudaError_t error = cudaMemcpyAsync(to, from, bytes,
                                        direction == MOE_COPY_TO_DEVICE ? cudaMemcpyHostToDevice
                                                                        : cudaMemcpyDeviceToHost,
                                        (cudaStream_t)exec->stream);
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize((cudaStream_t)exec->stream);
    }
    const moe_status status = moei_cuda_status(error, "copying memory");
    leave(exec, before);
    return status;
}

// ---- ops ---------------------------------------------------------------------------------------

uint32_t moei_gpu_cluster_blocks(const moei_exec *exec)
{
    return moei_cuda_device_of(exec)->cluster;
}

moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args)
{
    static const char *const names[MOEI_GPU_NUM_BODIES] = {
#define MOE_GPU_BODY(name, args, threads, blocks) #name,
#include "backends/gpu/bodies.def"
#undef MOE_GPU_BODY
    };
    if (grid.blocks == 0) {
        return MOE_OK;
    }
    void *arguments[] = {(void *)(uintptr_t)args};
    cudaLaunchAttribute attributes[] = {// of devices that have both, or neither
                                        {.id = cudaLaunchAttributeProgrammaticStreamSerialization},
                                        {.id = cudaLaunchAttributeClusterDimension}};
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].val.clusterDim.x = grid.blocks;
    attributes[1].val.clusterDim.y = 1;
    attributes[1].val.clusterDim.z = 1;
    const cudaLaunchConfig_t config = {.gridDim = {grid.blocks, 1, 1},
                                       .blockDim = {grid.threads, 1, 1},
                                       .dynamicSmemBytes = grid.shared,
                                       .stream = (cudaStream_t)exec->stream,
                                       .attrs = attributes,
                                       .numAttrs = grid.cluster                          ? 2
                                                   : moei_cuda_device_of(exec)->overlaps ? 1
                                                                                         : 0};
    return moei_cuda_status(cudaLaunchKernelExC(&config, moei_cuda_body(body), arguments),
                            names[body]);
}

// Kernels of the tensor copy engine: moe_weights_wrap has checked this, moe_ggemm has not.
static moe_status run_mma(const moei_exec *exec, const moei_kernel *kernel,
                          const moek_ggemm_args *args, const moei_mma_extra *extra)
{
    const moei_matrices *w = &args->w;
    const uintptr_t at = (uintptr_t)w->values | (uintptr_t)w->value_n_stride |
                         (w->count > 1 ? (uintptr_t)w->value_e_stride : 0);
    if (w->layout == MOEI_LAYOUT_ROW && at % kernel->weight_align != 0) {
        return moei_cuda_host->fail(MOE_E_ALIGNMENT,
                                    "cuda: rows of the weights lie at multiples of %zu bytes, "
                                    "kernel %s needs %u",
                                    (size_t)(at & (0 - at)), kernel->name,
                                    (unsigned)kernel->weight_align);
    }
    return moei_cuda_mma(exec, kernel, args, extra);
}

// Scratch memory of a run: counters of what follows products, then gathered rows.
enum { MAX_COUNTERS = 1 << 14, COUNTER_BYTES = 4 * MAX_COUNTERS };

static const moei_mma_extra nothing;

static moe_status run_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                            const moek_ggemm_args *args)
{
    return (kernel->isa & MOEI_CUDA_SM90A) != 0 ? run_mma(exec, kernel, args, &nothing)
                                                : moei_gpu_ggemm(exec, kernel, args);
}

// The members of the vtable.
MOEI_GPU_ON_DEVICE(route, moei_gpu_route)
MOEI_GPU_ON_DEVICE(place, moei_gpu_place)
MOEI_GPU_ON_DEVICE(sort, moei_gpu_sort)
MOEI_GPU_ON_DEVICE(quantize, moei_gpu_quantize)
MOEI_GPU_ON_DEVICE(ggemm, run_ggemm)
MOEI_GPU_ON_DEVICE(glu, moei_gpu_glu)
MOEI_GPU_ON_DEVICE(combine, moei_gpu_combine)

static const moei_backend backend;

// A product may ask for its weights, and look up where its rows go and what they weigh, before the
// launch before it is complete, if that one has not written where groups begin: then its blocks
// have waited for the one that has. Nor does the launch before a product write weights of its rows:
// only second products have them, and the first one lies between.
static bool may_begin_early(const moei_step *before)
{
    return before != NULL && before->op != MOEI_OP_ROUTE && before->op != MOEI_OP_PLACE &&
           before->op != MOEI_OP_SORT;
}

static bool is_matrix_product(const moei_step *step)
{
    return step->op == MOEI_OP_GGEMM && (step->kernel->isa & MOEI_CUDA_SM90A) != 0;
}

// A run as it is enqueued.
typedef struct run_state {
    const moei_step *before; // the last step of the launch before; NULL at first
    moei_gpu_counters zeros; // what sort has cleared and no product has taken yet
} run_state;

// True where the first two steps are a quantize and a product that one launch does.
static bool quantizes_x(const moei_step *steps, int32_t count)
{
    return count >= 2 && steps[0].op == MOEI_OP_QUANTIZE && is_matrix_product(&steps[1]) &&
           moei_cuda_mma_quantizes_x(&steps[1].args.ggemm, &steps[0].args.quantize);
}

// What the launch of a product, the first step, does after it.
// @param[out] extra     glu, of_h and combine
// @param[out] counters  that they need; 0: none
// Returns how many steps.
static int32_t steps_of_product(const moei_exec *exec, const moei_step *steps, int32_t count,
                                moei_mma_extra *extra, uint32_t *counters)
{
    const moek_ggemm_args *ggemm = &steps[0].args.ggemm;
    const bool counts = exec->scratch != NULL; // there is room for counters
    int32_t most = 0;
    extra->glu = NULL;
    extra->of_h = NULL;
    extra->combine = NULL;
    *counters = 0;
    if (count >= 2 && steps[1].op == MOEI_OP_GLU &&
        moei_cuda_mma_fuses(ggemm, &steps[1].args.glu)) {
        extra->glu = &steps[1].args.glu;
    }
    if (extra->glu != NULL && extra->to_x == NULL && counts && count >= 3 &&
        steps[2].op == MOEI_OP_QUANTIZE && !quantizes_x(steps + 2, count - 2)) {
        most = moei_cuda_mma_quantizes_h(ggemm, extra->glu, &steps[2].args.quantize);
        extra->of_h = most > 0 && most <= MAX_COUNTERS ? &steps[2].args.quantize : NULL;
    } else if (counts && count >= 2 && steps[1].op == MOEI_OP_COMBINE) {
        most = moei_cuda_mma_combines(ggemm, &steps[1].args.combine);
        extra->combine = most > 0 && most <= MAX_COUNTERS ? &steps[1].args.combine : NULL;
    }
    if (extra->of_h != NULL || extra->combine != NULL) {
        *counters = (uint32_t)most;
    }
    return 1 + (extra->glu != NULL) + (extra->of_h != NULL) + (extra->combine != NULL);
}

// What sort clears for the products after it, as many as there is room for.
static moei_gpu_counters count_ahead(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    moei_gpu_counters all = {exec->scratch, 0};
    for (int32_t i = 0; i < count && steps[i].op != MOEI_OP_SORT; i++) {
        moei_mma_extra extra = {NULL};
        uint32_t counters = 0;
        if (is_matrix_product(&steps[i])) {
            (void)steps_of_product(exec, steps + i, count - i, &extra, &counters);
        }
        all.count += all.count + counters <= MAX_COUNTERS ? counters : 0;
    }
    return all;
}

// A product on the matrix units, the first step, and what its launch does besides it.
// @param to_x  the step before, where the launch does that, too; NULL: none
// Returns how many steps from the product on.
static int32_t run_product(const moei_exec *exec, const moek_quantize_args *to_x,
                           const moei_step *steps, int32_t count, run_state *run,
                           moe_status *status)
{
    const moek_ggemm_args *ggemm = &steps[0].args.ggemm;
    moek_ggemm_args gathered;
    moei_mma_extra extra = {
        .to_x = to_x, .early = may_begin_early(run->before), .arrived = run->zeros.first};
    uint32_t counters;
    int32_t done = steps_of_product(exec, steps, count, &extra, &counters);
    if (counters > run->zeros.count) { // nobody has cleared them
        extra.of_h = NULL;
        extra.combine = NULL;
        counters = 0;
        done = 1 + (extra.glu != NULL);
    }
    if (moei_cuda_mma_wants_rows(exec, ggemm) && exec->scratch != NULL &&
        moei_gpu_gather(moei_cuda_host, exec, (uint8_t *)exec->scratch + COUNTER_BYTES, ggemm,
                        &gathered, status)) {
        ggemm = &gathered;
        extra.early = true;
    }
    if (*status == MOE_OK) {
        *status = run_mma(exec, steps[0].kernel, ggemm, &extra);
    }
    if (counters > 0) {
        run->zeros.first += counters;
        run->zeros.count -= counters;
    }
    return done;
}

// How many of the steps the first launch covers, which this enqueues.
static int32_t run_first(const moei_exec *exec, const moei_step *steps, int32_t count,
                         run_state *run, moe_status *status)
{
    const int32_t prologue = moei_gpu_prologue_steps(exec, steps, count);
    int32_t done = 1;
    if (prologue > 0) {
        run->zeros = count_ahead(exec, steps + prologue, count - prologue);
        *status =
            moei_gpu_prologue(exec, &steps[0].args.route, &steps[1].args.place, &steps[2].args.sort,
                              prologue > 3 ? &steps[3].args.quantize : NULL, &run->zeros);
        run->before = &steps[2]; // it may have quantised, too
        return prologue;
    }
    if (quantizes_x(steps, count)) {
        done += run_product(exec, &steps[0].args.quantize, steps + 1, count - 1, run, status);
    } else if (is_matrix_product(&steps[0])) {
        done = run_product(exec, NULL, steps, count, run, status);
    } else if (steps[0].op == MOEI_OP_SORT) {
        run->zeros = count_ahead(exec, steps + 1, count - 1);
        *status = moei_gpu_sort_and_clear(exec, &steps[0].args.sort, &run->zeros);
    } else {
        *status = moei_step_run(&backend, exec, &steps[0]);
    }
    run->before = &steps[done - 1];
    return done;
}

static size_t scratch_bytes(const moei_exec *exec, const moe_layer_desc *desc, int64_t num_tokens)
{
    const size_t rows = moei_gpu_gather_bytes(desc, num_tokens);
    return moei_cuda_device_of(exec)->encode == NULL ? 0
           : rows > SIZE_MAX - COUNTER_BYTES         ? SIZE_MAX
                                                     : rows + COUNTER_BYTES;
}

static moe_status run_steps(const moei_exec *exec, const moei_step *steps, int32_t count)
{
    const int before = enter(exec);
    moe_status status = MOE_OK;
    run_state run = {NULL, {NULL, 0}};
    for (int32_t i = 0; i < count && status == MOE_OK;) {
        i += run_first(exec, steps + i, count - i, &run, &status);
    }
    leave(exec, before);
    return status;
}

static const moei_backend backend = {
    .abi = MOE_BACKEND_ABI,
    .name = "cuda",
    .device = MOE_DEVICE_CUDA,
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
    .scratch_bytes = scratch_bytes,
    .packed_bytes = moei_operand_bytes,
    .pack = moei_operand_pack,
    .unpack = moei_operand_unpack,
    .route = route_op,
    .place = place_op,
    .sort = sort_op,
    .quantize = quantize_op,
    .ggemm = ggemm_op,
    .glu = glu_op,
    .combine = combine_op,
    .run_steps = run_steps,
    .graph_capture = moei_cuda_graph_capture,
    .graph_run = moei_cuda_graph_run,
    .graph_release = moei_cuda_graph_release,
    .time = moei_cuda_time,
    .ceiling = moei_cuda_ceiling,
};

const moei_backend *moe_backend_entry(const moei_host *host, uint32_t abi)
{
    if (abi == MOE_BACKEND_ABI) { // else the table may be another one: it is not read
        moei_cuda_host = host;
    }
    return &backend;
}
