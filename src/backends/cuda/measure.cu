// SPDX-License-Identifier: Apache-2.0
// Times as the device sees them, and what the device can do at most: each ceiling is a loop of one
// kind of work, with data that switches bits, as real data does (zeros would run cooler and
// faster).
#include <stdio.h>

#include "backends/cuda/hopper.cuh"
#include "backends/cuda/measure.h"

#define RETURN_IF(error, what)                                                                     \
    do {                                                                                           \
        const moe_status status_ = moei_cuda_status(error, what);                                  \
        if (status_ != MOE_OK) {                                                                   \
            return status_;                                                                        \
        }                                                                                          \
    } while (0)

// ---- times -------------------------------------------------------------------------------------

typedef struct timer {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    cudaGraph_t graph;
    cudaGraphExec_t replay;
} timer;

static moe_status timer_run(timer *t, moe_status (*enqueue)(void *, void *), void *arg,
                            int32_t repeats, double *seconds)
{
    RETURN_IF(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking), "a stream");
    RETURN_IF(cudaEventCreate(&t->begin), "an event");
    RETURN_IF(cudaEventCreate(&t->end), "an event");
    RETURN_IF(cudaStreamBeginCapture(t->stream, cudaStreamCaptureModeThreadLocal), "a capture");
    const moe_status status = enqueue(arg, t->stream);
    const cudaError_t ended = cudaStreamEndCapture(t->stream, &t->graph);
    if (status != MOE_OK) {
        (void)cudaGetLastError();
        return status;
    }
    RETURN_IF(ended, "the end of a capture");
    RETURN_IF(cudaGraphInstantiate(&t->replay, t->graph, 0), "a graph");
    for (int32_t r = -1; r < repeats; r++) { // the first one warms up
        float ms = 0.0f;
        RETURN_IF(cudaEventRecord(t->begin, t->stream), "an event");
        RETURN_IF(cudaGraphLaunch(t->replay, t->stream), "a graph launch");
        RETURN_IF(cudaEventRecord(t->end, t->stream), "an event");
        RETURN_IF(cudaEventSynchronize(t->end), "a graph");
        RETURN_IF(cudaEventElapsedTime(&ms, t->begin, t->end), "elapsed time");
        if (r >= 0) {
            seconds[r] = (double)ms / 1e3;
        }
    }
    return MOE_OK;
}

moe_status moei_cuda_time(const moei_exec *exec, moe_status (*enqueue)(void *arg, void *stream),
                          void *arg, int32_t repeats, double *seconds)
{
    timer t = {};
    int before = 0;
    (void)cudaGetDevice(&before);
    RETURN_IF(cudaSetDevice(exec->device_id), "cudaSetDevice");
    const moe_status status = timer_run(&t, enqueue, arg, repeats, seconds);
    if (t.replay != NULL) {
        (void)cudaGraphExecDestroy(t.replay);
    }
    if (t.graph != NULL) {
        (void)cudaGraphDestroy(t.graph);
    }
    if (t.begin != NULL) {
        (void)cudaEventDestroy(t.begin);
    }
    if (t.end != NULL) {
        (void)cudaEventDestroy(t.end);
    }
    if (t.stream != NULL) {
        (void)cudaStreamDestroy(t.stream);
    }
    (void)cudaSetDevice(before);
    return status;
}

// ---- ceilings ----------------------------------------------------------------------------------

#define READ_BYTES  ((size_t)4 << 30) // far beyond any L2
#define MMA_ROUNDS  4096
#define FMA_ROUNDS  16384
#define MMA_THREADS 256

static __device__ uint32_t hash(uint32_t i)
{
    i = (i ^ i >> 16) * 0x7FEB352Du;
    i = (i ^ i >> 15) * 0x846CA68Bu;
    return i ^ i >> 16;
}

static __global__ void fill(uint32_t *p, size_t words)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < words;
         i += (size_t)gridDim.x * blockDim.x) {
        p[i] = hash((uint32_t)i);
    }
}

static __global__ void __launch_bounds__(512) read_all(const uint4 *p, size_t count, uint32_t *sink)
{
    uint32_t seen = 0;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i + 3 * step < count; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[j] = __ldcs(p + i + j * step);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            seen ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
        }
    }
    if (seen == 0x12345678u) {
        *sink = seen;
    }
}

static __global__ void __launch_bounds__(1024) multiply_add(float *sink)
{
    float v[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        v[i] = (float)(threadIdx.x + i) * 1e-3f;
    }
    for (int r = 0; r < FMA_ROUNDS; r++) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            v[i] = __fmaf_rn(v[i], 0.999f, 0.001f);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        sum += v[i];
    }
    if (sum == 12345.0f) {
        *sink = sum;
    }
}

// 64 x 256 products of two warpgroups from shared memory, four steps of 32 bytes of k a round.
template <int TYPE>
static __global__ void __launch_bounds__(MMA_THREADS, 1) matrix_multiply(float *sink)
{
    extern __shared__ uint8_t raw[];
    uint8_t *shared = (uint8_t *)(((uintptr_t)raw + 1023) / 1024 * 1024);
    for (int i = (int)threadIdx.x; i < (128 + 256) * 32; i += MMA_THREADS) {
        // Exponents near 1: bf16 pairs 3Fxx or BFxx; e4m3 bytes of moderate size.
        const uint32_t bits = hash((uint32_t)i + blockIdx.x * 65536u);
        ((uint32_t *)shared)[i] = TYPE == HOPPER_BF16 ? (bits & 0x80FF80FFu) | 0x3F003F00u
                                                      : (bits & 0x8F8F8F8Fu) | 0x30303030u;
    }
    hopper_fence_async();
    __syncthreads();
    float acc[128];
#pragma unroll
    for (int i = 0; i < 128; i++) {
        acc[i] = 0.0f;
    }
    const uint64_t a = hopper_operand(hopper_smem(shared + threadIdx.x / 128 * 8192));
    const uint64_t b = hopper_operand(hopper_smem(shared + 16384));
#pragma unroll 1 // a round takes hundreds of cycles; ptxas takes ten seconds for four of them
    for (int r = 0; r < MMA_ROUNDS; r++) {
        hopper_mma_begin();
#pragma unroll
        for (int j = 0; j < 4; j++) {
            hopper_mma<256, TYPE>(acc, a + 2 * j, b + 2 * j, 1);
        }
        hopper_mma_commit();
        hopper_mma_wait<0>();
    }
    hopper_mma_keep(acc);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 128; i++) {
        sum += acc[i];
    }
    if (sum == 12345.0f) {
        *sink = sum;
    }
}

typedef struct ceiling_work {
    moei_ceiling which;
    int sms;
    uint8_t *memory;
    size_t bytes;
} ceiling_work;

static moe_status enqueue_ceiling(void *arg, void *stream)
{
    const ceiling_work *w = (const ceiling_work *)arg;
    const cudaStream_t s = (cudaStream_t)stream;
    const int shared = (128 + 256) * 128 + 1024;
    float *sink = (float *)w->memory;
    switch (w->which) {
    case MOEI_CEILING_READ:
        read_all<<<w->sms * 4, 512, 0, s>>>((const uint4 *)w->memory, w->bytes / 16,
                                            (uint32_t *)w->memory);
        break;
    case MOEI_CEILING_F32:
        multiply_add<<<w->sms * 2, 1024, 0, s>>>(sink);
        break;
    case MOEI_CEILING_BF16:
        matrix_multiply<HOPPER_BF16><<<w->sms, MMA_THREADS, shared, s>>>(sink);
        break;
    default:
        matrix_multiply<HOPPER_E4M3><<<w->sms, MMA_THREADS, shared, s>>>(sink);
        break;
    }
    return moei_cuda_status(cudaPeekAtLastError(), "a ceiling");
}

// Bytes or operations of one enqueue.
static double work_of(const ceiling_work *w)
{
    switch (w->which) {
    case MOEI_CEILING_READ:
        return (double)w->bytes;
    case MOEI_CEILING_F32:
        return (double)w->sms * 2 * 1024 * 16 * FMA_ROUNDS * 2;
    case MOEI_CEILING_BF16:
        return (double)w->sms * 2 * MMA_ROUNDS * 4 * (2.0 * 64 * 256 * 16);
    default:
        return (double)w->sms * 2 * MMA_ROUNDS * 4 * (2.0 * 64 * 256 * 32);
    }
}

static moe_status measure(const moei_exec *exec, ceiling_work *w, double *per_second)
{
    double seconds[9];
    RETURN_IF(cudaSetDevice(exec->device_id), "cudaSetDevice");
    fill<<<w->sms * 4, 512>>>((uint32_t *)w->memory, w->bytes / 4);
    RETURN_IF(cudaDeviceSynchronize(), "filling memory");
    const int shared = (128 + 256) * 128 + 1024;
    if (w->which == MOEI_CEILING_BF16) {
        RETURN_IF(cudaFuncSetAttribute(matrix_multiply<HOPPER_BF16>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                  "a ceiling");
    } else if (w->which == MOEI_CEILING_FP8) {
        RETURN_IF(cudaFuncSetAttribute(matrix_multiply<HOPPER_E4M3>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                  "a ceiling");
    }
    const moe_status status = moei_cuda_time(exec, enqueue_ceiling, w, 9, seconds);
    if (status == MOE_OK) {
        double best = seconds[0];
        for (int i = 1; i < 9; i++) {
            best = seconds[i] < best ? seconds[i] : best;
        }
        *per_second = work_of(w) / best;
    }
    return status;
}

moe_status moei_cuda_ceiling(const moei_exec *exec, moei_ceiling which, double *per_second)
{
    const moei_cuda_device *device = moei_cuda_device_of(exec);
    const bool matrix = which == MOEI_CEILING_BF16 || which == MOEI_CEILING_FP8;
    if (matrix && device->encode == NULL) {
        return moei_cuda_host->fail(MOE_E_UNSUPPORTED,
                                    "cuda: the ceiling of matrix instructions is measured on "
                                    "sm_90a alone");
    }
    ceiling_work w = {which, device->sms, NULL, which == MOEI_CEILING_READ ? READ_BYTES : 4096};
    int before = 0;
    (void)cudaGetDevice(&before);
    RETURN_IF(cudaSetDevice(exec->device_id), "cudaSetDevice");
    moe_status status =
        moei_cuda_status(cudaMalloc((void **)&w.memory, w.bytes), "memory of a ceiling");
    if (status == MOE_OK) {
        status = measure(exec, &w, per_second);
        (void)cudaFree(w.memory);
    }
    (void)cudaSetDevice(before);
    return status;
}
