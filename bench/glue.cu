// SPDX-License-Identifier: Apache-2.0
// What stands around the grouped GEMMs of PyTorch in bench/peers_torch.py: top-k, sort, gather,
// SwiGLU, FP8 by row, combine, in 5 to 7 launches. So peers are measured with glue that is a little
// better than their own. Not part of the library.
//   nvcc -O3 -std=c++17 -shared -Xcompiler -fPIC -arch=sm_90a -o libglue.so glue.cu
// Every function takes device pointers and a stream, can be captured in a graph, and returns a
// cudaError_t.
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int max_experts = 512;
constexpr int warp = 32;

// ---- routing -------------------------------------------------------------------------------------

// A warp per token: the k largest logits, and softmax over those (softmax over all, renormalised).
__global__ void topk_kernel(const float *logits, int tokens, int experts, int k, float *weights,
                            int *ids)
{
    const int t = (blockIdx.x * blockDim.x + threadIdx.x) / warp;
    const int lane = threadIdx.x % warp;
    float v[max_experts / warp];
    float mine = 0.0f, largest = 0.0f, sum = 0.0f;
    int my_id = 0;
    if (t >= tokens) {
        return;
    }
#pragma unroll
    for (int i = 0; i < max_experts / warp; i++) {
        const int e = i * warp + lane;
        v[i] = e < experts ? logits[(size_t)t * experts + e] : -INFINITY;
    }
    for (int j = 0; j < k; j++) {
        float best = -INFINITY;
        int best_id = max_experts;
#pragma unroll
        for (int i = 0; i < max_experts / warp; i++) {
            if (v[i] > best) {
                best = v[i];
                best_id = i * warp + lane;
            }
        }
#pragma unroll
        for (int o = warp / 2; o > 0; o /= 2) {
            const float other = __shfl_xor_sync(~0u, best, o);
            const int other_id = __shfl_xor_sync(~0u, best_id, o);
            if (other > best || (other == best && other_id < best_id)) {
                best = other;
                best_id = other_id;
            }
        }
        largest = j == 0 ? best : largest;
        const float p = __expf(best - largest);
        sum += p;
        if (lane == j) {
            mine = p;
            my_id = best_id;
        }
#pragma unroll
        for (int i = 0; i < max_experts / warp; i++) {
            v[i] = best_id == i * warp + lane ? -INFINITY : v[i];
        }
    }
    if (lane < k) {
        weights[(size_t)t * k + lane] = mine / sum;
        ids[(size_t)t * k + lane] = my_id;
    }
}

// One block: counts, their running sum (`ends`), and, where `scatter`, the row of every slot.
template <bool scatter>
__global__ void sort_kernel(const int *ids, int slots, int experts, int *ends, int *cursor,
                            int *slot_to_row)
{
    __shared__ int count[max_experts], start[max_experts];
    for (int e = threadIdx.x; e < max_experts; e += blockDim.x) {
        count[e] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < slots; i += blockDim.x) {
        atomicAdd(&count[ids[i]], 1);
    }
    __syncthreads();
    if (threadIdx.x < warp) {
        int base = 0;
        for (int first = 0; first < experts; first += warp) {
            const int e = first + threadIdx.x;
            const int own = e < experts ? count[e] : 0;
            int sum = own;
            for (int o = 1; o < warp; o *= 2) {
                const int other = __shfl_up_sync(~0u, sum, o);
                sum += (int)threadIdx.x >= o ? other : 0;
            }
            if (e < experts) {
                start[e] = base + sum - own;
            }
            base += __shfl_sync(~0u, sum, warp - 1);
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x) {
        ends[e] = start[e] + count[e];
        if (!scatter) {
            cursor[e] = start[e];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; scatter && i < slots; i += blockDim.x) {
        slot_to_row[i] = atomicAdd(&start[ids[i]], 1);
    }
}

__global__ void scatter_kernel(const int *ids, int slots, int *cursor, int *slot_to_row)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < slots) {
        slot_to_row[i] = atomicAdd(&cursor[ids[i]], 1);
    }
}

// ---- rows ----------------------------------------------------------------------------------------
// A block per row, eight elements of bf16 (a uint4) per thread and step; widths are multiples of 8.

__device__ inline void unpack(uint4 packed, float *values)
{
    const __nv_bfloat162 *pairs = reinterpret_cast<const __nv_bfloat162 *>(&packed);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __bfloat1622float2(pairs[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

__device__ inline uint4 pack(const float *values)
{
    uint4 packed;
    __nv_bfloat162 *pairs = reinterpret_cast<__nv_bfloat162 *>(&packed);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pairs[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
    }
    return packed;
}

__device__ inline uint2 pack_fp8(const float *values, float factor)
{
    uint2 packed;
    __nv_fp8x2_storage_t *pairs = reinterpret_cast<__nv_fp8x2_storage_t *>(&packed);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pairs[i] = __nv_cvt_float2_to_fp8x2(
            make_float2(values[2 * i] * factor, values[2 * i + 1] * factor), __NV_SATFINITE,
            __NV_E4M3);
    }
    return packed;
}

// Eight elements of a row, or of silu(gate) * up of a row that holds both halves.
template <bool glu> __device__ inline void load(const uint4 *row, int c, int width8, float *values)
{
    unpack(row[c], values);
    if (glu) {
        float up[8];
        unpack(row[c + width8], up);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            values[i] = values[i] / (1.0f + __expf(-values[i])) * up[i];
        }
    }
}

__global__ void gather_kernel(const uint4 *x, const int *slot_to_row, int k, int width8, uint4 *out)
{
    const uint4 *from = x + (size_t)(blockIdx.x / k) * width8;
    uint4 *to = out + (size_t)slot_to_row[blockIdx.x] * width8;
    for (int c = threadIdx.x; c < width8; c += blockDim.x) {
        to[c] = from[c];
    }
}

__global__ void glu_kernel(const uint4 *x, int width8, uint4 *out)
{
    const size_t row = blockIdx.x;
    for (int c = threadIdx.x; c < width8; c += blockDim.x) {
        float values[8];
        load<true>(x + row * 2 * width8, c, width8, values);
        out[row * width8 + c] = pack(values);
    }
}

// e4m3 with a scale per row, amax / 448. With slot_to_row, slot s of token s / k becomes row
// slot_to_row[s]; else rows stay where they are.
template <bool glu>
__global__ void quantize_kernel(const uint4 *x, const int *slot_to_row, int k, int width8,
                                uint2 *codes, float *scales)
{
    __shared__ float partial[warp];
    const size_t row = slot_to_row != nullptr ? slot_to_row[blockIdx.x] : blockIdx.x;
    const uint4 *from = x + (glu ? row * 2 * width8 : (size_t)(blockIdx.x / k) * width8);
    float amax = 0.0f;
    float values[8];
    for (int c = threadIdx.x; c < width8; c += blockDim.x) {
        load<glu>(from, c, width8, values);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            amax = fmaxf(amax, fabsf(values[i]));
        }
    }
#pragma unroll
    for (int o = warp / 2; o > 0; o /= 2) {
        amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
    }
    if (threadIdx.x % warp == 0) {
        partial[threadIdx.x / warp] = amax;
    }
    __syncthreads();
    amax = 0.0f;
    for (int i = 0; i < (int)blockDim.x / warp; i++) {
        amax = fmaxf(amax, partial[i]);
    }
    const float scale = fmaxf(amax, 1e-8f) / 448.0f;
    if (threadIdx.x == 0) {
        scales[row] = scale;
    }
    for (int c = threadIdx.x; c < width8; c += blockDim.x) {
        load<glu>(from, c, width8, values);
        codes[row * width8 + c] = pack_fp8(values, 1.0f / scale);
    }
}

__global__ void combine_kernel(const uint4 *y, const int *slot_to_row, const float *weights, int k,
                               int width8, uint4 *out)
{
    const int t = blockIdx.x;
    for (int c = threadIdx.x; c < width8; c += blockDim.x) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int j = 0; j < k; j++) {
            const int slot = t * k + j;
            float values[8];
            unpack(y[(size_t)slot_to_row[slot] * width8 + c], values);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sum[i] += weights[slot] * values[i];
            }
        }
        out[(size_t)t * width8 + c] = pack(sum);
    }
}

int threads_for(int width8)
{
    return width8 >= 512 ? 512 : width8 >= 256 ? 256 : 128;
}

// ---- a ceiling -----------------------------------------------------------------------------------

__global__ void __launch_bounds__(512) read_kernel(const uint4 *x, size_t n, unsigned *sink)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (; i + 7 * step < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[j] = __ldcs(x + i + j * step);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
        }
    }
    for (; i < n; i += step) {
        sum ^= x[i].x;
    }
    if (sum == 0x12345u) { // so that nothing is left out
        *sink = sum;
    }
}

} // namespace

extern "C" {

int glue_topk(const float *logits, int tokens, int experts, int k, float *weights, int *ids,
              cudaStream_t stream)
{
    if (experts > max_experts || k > warp) {
        return cudaErrorInvalidValue;
    }
    topk_kernel<<<(tokens + 3) / 4, 4 * warp, 0, stream>>>(logits, tokens, experts, k, weights,
                                                           ids);
    return cudaGetLastError();
}

// `cursor` [experts] is scratch.
int glue_sort(const int *ids, int slots, int experts, int *ends, int *cursor, int *slot_to_row,
              cudaStream_t stream)
{
    if (slots <= 1024) {
        sort_kernel<true><<<1, 1024, 0, stream>>>(ids, slots, experts, ends, cursor, slot_to_row);
    } else {
        sort_kernel<false><<<1, 1024, 0, stream>>>(ids, slots, experts, ends, cursor, slot_to_row);
        scatter_kernel<<<(slots + 255) / 256, 256, 0, stream>>>(ids, slots, cursor, slot_to_row);
    }
    return cudaGetLastError();
}

int glue_gather(const void *x, const int *slot_to_row, int slots, int k, int width, void *out,
                cudaStream_t stream)
{
    gather_kernel<<<slots, threads_for(width / 8), 0, stream>>>((const uint4 *)x, slot_to_row, k,
                                                                width / 8, (uint4 *)out);
    return cudaGetLastError();
}

int glue_glu(const void *x, int rows, int width, void *out, cudaStream_t stream)
{
    glu_kernel<<<rows, threads_for(width / 8), 0, stream>>>((const uint4 *)x, width / 8,
                                                            (uint4 *)out);
    return cudaGetLastError();
}

int glue_quantize(const void *x, const int *slot_to_row, int rows, int k, int width, int glu,
                  void *codes, float *scales, cudaStream_t stream)
{
    const int threads = threads_for(width / 8);
    if (glu) {
        quantize_kernel<true><<<rows, threads, 0, stream>>>((const uint4 *)x, slot_to_row, k,
                                                            width / 8, (uint2 *)codes, scales);
    } else {
        quantize_kernel<false><<<rows, threads, 0, stream>>>((const uint4 *)x, slot_to_row, k,
                                                             width / 8, (uint2 *)codes, scales);
    }
    return cudaGetLastError();
}

int glue_combine(const void *y, const int *slot_to_row, const float *weights, int tokens, int k,
                 int width, void *out, cudaStream_t stream)
{
    combine_kernel<<<tokens, threads_for(width / 8), 0, stream>>>(
        (const uint4 *)y, slot_to_row, weights, k, width / 8, (uint4 *)out);
    return cudaGetLastError();
}

int glue_read(const void *x, int64_t bytes, int blocks, void *sink, cudaStream_t stream)
{
    read_kernel<<<blocks, 512, 0, stream>>>((const uint4 *)x, (size_t)bytes / sizeof(uint4),
                                            (unsigned *)sink);
    return cudaGetLastError();
}
}
