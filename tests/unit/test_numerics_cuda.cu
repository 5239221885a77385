// SPDX-License-Identifier: Apache-2.0
// numerics/ compiled as device code against the same headers on the host: the same bits, for every
// function and every argument. Also the largest error of the functions of math.h over all floats,
// against the device's float64 functions. Needs a GPU; run by hand (stage 4).
//
//   nvcc -std=c++17 -O3 -fmad=false -arch=native -Isrc -Xcompiler
//   -O3,-ffp-contract=off,-mavx2,-mfma
//        -o test_numerics_cuda tests/unit/test_numerics_cuda.cu
//   test_numerics_cuda            17 million arguments per function
//   test_numerics_cuda --long     all 2^32
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "numerics/math.h"
#include "test.h"

// One type per function: the result's bits for an argument's bits, and for the functions of math.h
// the float64 value.
#define FUNCTION(name, result, exact)                                                              \
    struct fn_##name {                                                                             \
        static const char *label()                                                                 \
        {                                                                                          \
            return #name;                                                                          \
        }                                                                                          \
        static __host__ __device__ inline uint32_t bits(uint32_t u)                                \
        {                                                                                          \
            float x = moei_f32_from_bits(u);                                                       \
            (void)x;                                                                               \
            return (uint32_t)(result);                                                             \
        }                                                                                          \
        static __device__ inline double reference(double x)                                        \
        {                                                                                          \
            (void)x;                                                                               \
            return exact;                                                                          \
        }                                                                                          \
    };
#define MATH(name, exact)    FUNCTION(name, moei_f32_bits(moei_##name(x)), exact)
#define ENCODE(name, result) FUNCTION(name, result, 0.0)
#define DECODE(name, bits, type)                                                                   \
    FUNCTION(name##_to_f32, moei_f32_bits(moei_##name##_to_f32((type)(u & bits))), 0.0)
#define BOTH(name)                                                                                 \
    ENCODE(f32_to_##name, moei_f32_to_##name(x, MOEI_OVERFLOW_NAN) |                               \
                              (uint32_t)moei_f32_to_##name(x, MOEI_OVERFLOW_SATURATE) << 8)

MATH(expf, exp(x))
MATH(exp2f, exp2(x))
MATH(logf, log(x))
MATH(log2f, log2(x))
MATH(sigmoidf, x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)))
MATH(softplusf, (x > 0 ? x : 0) + log1p(exp(-fabs(x))))
MATH(tanhf, tanh(x))
MATH(erff, erf(x))
MATH(erfcf, erfc(x))
MATH(rcpf, 1 / x)
BOTH(e4m3fn)
BOTH(e4m3fnuz)
BOTH(e5m2)
BOTH(e5m2fnuz)
BOTH(e2m3)
BOTH(e3m2)
BOTH(e2m1)
// Activations, as they are stored: NaN canonical.
#define ACTIVATION(name, result) ENCODE(name, moei_f32_bits(moei_nan_from(result, result)))
ACTIVATION(silu_mul, moei_silu_mul(x, 3.0f, MOEI_NO_LIMIT))
ACTIVATION(silu_mul_of_up, moei_silu_mul(3.0f, x, 7.0f))
ACTIVATION(silu_near, x < MOEI_FAR ? 0.0f : moei_silu_near(x))
ACTIVATION(swigluoai, moei_swigluoai(x, 3.0f, 1.702f, 1.0f, 7.0f))
ACTIVATION(swigluoai_near, moei_swigluoai_exponent(x, 1.702f) < MOEI_FAR
                               ? 0.0f
                               : moei_swigluoai_near(x, 3.0f, 1.702f, 1.0f))
ENCODE(e4m3fn_x4, x == x ? moei_f32_to_e4m3fn_x4(x, -x, 0.5f * x, 3.0f) : 0u)
ENCODE(max_absf, x == x ? moei_f32_bits(moei_max_absf(x, -0.5f))
                        : moei_f32_bits(moei_max_absf(-0.5f, x)) > 0x7F800000u)
ENCODE(f32_to_bf16, moei_f32_to_bf16(x))
ENCODE(f32_to_f16, moei_f32_to_f16(x))
ENCODE(f32_to_e8m0, moei_f32_to_e8m0(x))
ENCODE(f32_to_e2m1_ties, moei_f32_to_e2m1_half_down(x) | (uint32_t)moei_f32_to_e2m1_half_away(x)
                                                             << 8)
ENCODE(round_half_even, moei_f32_round_half_even_i32(x))
ENCODE(round_half_away, moei_f32_round_half_away_i32(x))
ENCODE(trunc, moei_f32_trunc_i32(x))
ENCODE(exponent, moei_f32_exponent(x))
ENCODE(pow2_up, moei_f32_bits(moei_pow2_up(x)))
ENCODE(pow2i, moei_f32_bits(moei_pow2i((int)u)))
ENCODE(sqrtf, x >= 0.0f ? moei_f32_bits(moei_sqrtf(x)) : 0u)
DECODE(bf16, 0xFFFFu, uint16_t)
DECODE(f16, 0xFFFFu, uint16_t)
DECODE(e4m3fn, 0xFFu, uint8_t)
DECODE(e4m3fnuz, 0xFFu, uint8_t)
DECODE(e5m2, 0xFFu, uint8_t)
DECODE(e5m2fnuz, 0xFFu, uint8_t)
DECODE(e2m3, 0xFFu, uint8_t)
DECODE(e3m2, 0xFFu, uint8_t)
DECODE(e2m1, 0xFFu, uint8_t)
DECODE(e8m0, 0xFFu, uint8_t)

enum { CHUNK = 1 << 24 };

template <class F> __global__ void evaluate(uint32_t *out, uint64_t first, uint64_t stride)
{
    uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x;
    out[i] = F::bits((uint32_t)(first + i * stride));
}

// The largest error in ulp of the exact value: its float bits above the argument's.
template <class F>
__global__ void measure(const uint32_t *out, uint64_t first, uint64_t stride,
                        unsigned long long *worst)
{
    uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x;
    uint32_t u = (uint32_t)(first + i * stride);
    double r = F::reference((double)moei_f32_from_bits(u));
    float y = moei_f32_from_bits(out[i]);
    float error = 0.0f;
    if (isnan(r) || isnan(y)) {
        error = isnan(r) && isnan(y) ? 0.0f : INFINITY;
    } else if (fabs(r) >= 3.4028235677973366e+38) { // rounds to infinity
        error = isinf(y) && (y > 0) == (r > 0) ? 0.0f : INFINITY;
    } else {
        int e = r == 0.0 ? -126 : ilogb(r);
        e = e < -126 ? -126 : e;
        double value = isinf(y) ? copysign(ldexp(1.0, 128), (double)y) : (double)y;
        error = (float)fabs(ldexp(value - r, 23 - e));
    }
    unsigned long long key = (unsigned long long)moei_f32_bits(error) << 32 | u;
    for (int lane = 16; lane > 0; lane /= 2) {
        unsigned long long other = __shfl_xor_sync(0xFFFFFFFFu, key, lane);
        key = other > key ? other : key;
    }
    if (threadIdx.x % 32 == 0) {
        atomicMax(worst, key);
    }
}

static uint32_t *device_out;
static uint32_t *host_out;
static unsigned long long *device_worst;

// max_ulp: bound of the error of a function of math.h (docs/numerics-formats.md); 0: bits alone.
template <class F> static void compare(uint64_t stride, float max_ulp)
{
    uint64_t differ = 0;
    uint32_t example = 0;
    cudaMemset(device_worst, 0, sizeof(*device_worst));
    for (uint64_t first = 0; first < (uint64_t)1 << 32; first += CHUNK * stride) {
        evaluate<F><<<CHUNK / 256, 256>>>(device_out, first, stride);
        if (max_ulp > 0.0f) {
            measure<F><<<CHUNK / 256, 256>>>(device_out, first, stride, device_worst);
        }
        cudaError_t status =
            cudaMemcpy(host_out, device_out, CHUNK * sizeof(uint32_t), cudaMemcpyDeviceToHost);
        if (!CHECK(status == cudaSuccess, "%s: %s", F::label(), cudaGetErrorString(status))) {
            return;
        }
        unsigned n = std::thread::hardware_concurrency();
        n = n == 0 ? 1 : n > 32 ? 32 : n;
        std::vector<std::thread> threads;
        std::vector<uint64_t> bad(n, 0);
        std::vector<uint32_t> at(n, 0);
        for (unsigned t = 0; t < n; t++) {
            threads.emplace_back([&, t] {
                for (uint64_t i = (uint64_t)CHUNK * t / n; i < (uint64_t)CHUNK * (t + 1) / n; i++) {
                    uint32_t u = (uint32_t)(first + i * stride);
                    if (F::bits(u) != host_out[i]) {
                        bad[t]++;
                        at[t] = u;
                    }
                }
            });
        }
        for (unsigned t = 0; t < n; t++) {
            threads[t].join();
            differ += bad[t];
            example = bad[t] != 0 ? at[t] : example;
        }
    }
    CHECK(differ == 0, "%s: %llu results differ, one at %08x", F::label(),
          (unsigned long long)differ, example);
    if (max_ulp > 0.0f) {
        unsigned long long worst = 0;
        cudaMemcpy(&worst, device_worst, sizeof(worst), cudaMemcpyDeviceToHost);
        float error = moei_f32_from_bits((uint32_t)(worst >> 32));
        std::printf("%-10s worst %.4f ulp at %a\n", F::label(), (double)error,
                    (double)moei_f32_from_bits((uint32_t)worst));
        CHECK(error <= max_ulp, "%s: %.4f ulp", F::label(), (double)error);
    }
}

int main(int argc, char **argv)
{
    uint64_t stride = argc > 1 && std::strcmp(argv[1], "--long") == 0 ? 1 : 255;
    cudaError_t status = cudaMalloc(&device_out, CHUNK * sizeof(uint32_t));
    if (status != cudaSuccess) {
        std::printf("no device: %s\n", cudaGetErrorString(status));
        return 77;
    }
    cudaMalloc(&device_worst, sizeof(*device_worst));
    cudaMallocHost(&host_out, CHUNK * sizeof(uint32_t));
    compare<fn_expf>(stride, 1.1f);
    compare<fn_exp2f>(stride, 1.1f);
    compare<fn_logf>(stride, 1.1f);
    compare<fn_log2f>(stride, 1.1f);
    compare<fn_sigmoidf>(stride, 1.1f);
    compare<fn_softplusf>(stride, 1.1f);
    compare<fn_tanhf>(stride, 1.1f);
    compare<fn_erff>(stride, 1.1f);
    compare<fn_erfcf>(stride, 1.3f);
    compare<fn_rcpf>(stride, 1.1f);
    compare<fn_silu_mul>(stride, 0.0f);
    compare<fn_silu_mul_of_up>(stride, 0.0f);
    compare<fn_silu_near>(stride, 0.0f);
    compare<fn_swigluoai>(stride, 0.0f);
    compare<fn_swigluoai_near>(stride, 0.0f);
    compare<fn_f32_to_e4m3fn>(stride, 0.0f);
    compare<fn_f32_to_e4m3fnuz>(stride, 0.0f);
    compare<fn_f32_to_e5m2>(stride, 0.0f);
    compare<fn_f32_to_e5m2fnuz>(stride, 0.0f);
    compare<fn_f32_to_e2m3>(stride, 0.0f);
    compare<fn_f32_to_e3m2>(stride, 0.0f);
    compare<fn_f32_to_e2m1>(stride, 0.0f);
    compare<fn_e4m3fn_x4>(stride, 0.0f);
    compare<fn_max_absf>(stride, 0.0f);
    compare<fn_f32_to_bf16>(stride, 0.0f);
    compare<fn_f32_to_f16>(stride, 0.0f);
    compare<fn_f32_to_e8m0>(stride, 0.0f);
    compare<fn_f32_to_e2m1_ties>(stride, 0.0f);
    compare<fn_round_half_even>(stride, 0.0f);
    compare<fn_round_half_away>(stride, 0.0f);
    compare<fn_trunc>(stride, 0.0f);
    compare<fn_exponent>(stride, 0.0f);
    compare<fn_pow2_up>(stride, 0.0f);
    compare<fn_pow2i>(stride, 0.0f);
    compare<fn_sqrtf>(stride, 0.0f);
    compare<fn_bf16_to_f32>(255, 0.0f); // few codes: the short pass meets each of them
    compare<fn_f16_to_f32>(255, 0.0f);
    compare<fn_e4m3fn_to_f32>(255, 0.0f);
    compare<fn_e4m3fnuz_to_f32>(255, 0.0f);
    compare<fn_e5m2_to_f32>(255, 0.0f);
    compare<fn_e5m2fnuz_to_f32>(255, 0.0f);
    compare<fn_e2m3_to_f32>(255, 0.0f);
    compare<fn_e3m2_to_f32>(255, 0.0f);
    compare<fn_e2m1_to_f32>(255, 0.0f);
    compare<fn_e8m0_to_f32>(255, 0.0f);
    return test_summary();
}
