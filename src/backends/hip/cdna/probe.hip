// SPDX-License-Identifier: Apache-2.0
// Probes (probe.h): each does what kernels do, by the functions that they do it with, and nothing
// else: operands come from the host, results go back to it.
#include "backends/hip/cdna/decode.cuh"
#include "backends/hip/probe.h"

#define MOEI_HIP_PROBE(name)                                                                       \
    MOEI_HIP_GLOBAL(MOEI_HIP_PROBE_THREADS) moek_probe_##name(const moei_hip_probe_args g)

// The lane in all waves.
DEV_FN uint32_t moei_hip_probe_at(void)
{
    return dev_block() * MOEI_HIP_PROBE_THREADS + dev_thread();
}

// Operands by their words.
template <int WORDS> struct moei_hip_probe_operand;
template <> struct moei_hip_probe_operand<2> {
    typedef moei_u32x2 type;
};
template <> struct moei_hip_probe_operand<4> {
    typedef moei_u32x4 type;
};
template <> struct moei_hip_probe_operand<8> {
    typedef moei_u32x8 type;
};

template <int WORDS>
DEV_FN typename moei_hip_probe_operand<WORDS>::type moei_hip_probe_read(const uint32_t *from)
{
    typename moei_hip_probe_operand<WORDS>::type v;
    MOEI_GPU_UNROLL
    for (int i = 0; i < WORDS; i++) {
        v[i] = from[i];
    }
    return v;
}

// Kernels of one architecture alone.
#define MOEI_HIP_ON_ANY(...) __VA_ARGS__
#if defined(__gfx950__)
#define MOEI_HIP_ON_CDNA3(...)
#define MOEI_HIP_ON_CDNA4(...) __VA_ARGS__
#else
#define MOEI_HIP_ON_CDNA3(...) __VA_ARGS__
#define MOEI_HIP_ON_CDNA4(...)
#endif

#define MOE_HIP_PROBE_MATRIX(name, isa, family, arith, k, format_a, words_a, format_b, words_b,    \
                             byte_a, byte_b, call)                                                 \
    MOEI_HIP_ON_##isa(MOEI_HIP_PROBE(matrix_##name) {                                              \
        const uint32_t at = moei_hip_probe_at();                                                   \
        const uint32_t *in = g.in + at * (words_a + words_b + 4 + (byte_a < 0 ? 0 : 2));           \
        const auto a = moei_hip_probe_read<words_a>(in);                                           \
        const auto b = moei_hip_probe_read<words_b>(in + words_a);                                 \
        const moei_f32x4 c =                                                                       \
            __builtin_bit_cast(moei_f32x4, moei_hip_probe_read<4>(in + words_a + words_b));        \
        const uint32_t scale_a = byte_a >= 0 ? in[words_a + words_b + 4] : 0;                      \
        const uint32_t scale_b = byte_a >= 0 ? in[words_a + words_b + 5] : 0;                      \
        (void)scale_a;                                                                             \
        (void)scale_b;                                                                             \
        *(moei_f32x4 *)(void *)(g.out + 4 * at) = call;                                            \
    })
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_MATRIX

#define MOE_HIP_PROBE_CODES(name, code)                                                            \
    MOEI_HIP_PROBE(codes_##name)                                                                   \
    {                                                                                              \
        constexpr int WORDS = moei_hip_code_of<MOEI_HIP_CODE_##code>::WORDS;                       \
        const uint32_t at = moei_hip_probe_at();                                                   \
        const uint32_t *in = g.in + at * (WORDS + 2);                                              \
        uint32_t words[WORDS];                                                                     \
        MOEI_GPU_UNROLL                                                                            \
        for (int i = 0; i < WORDS; i++) {                                                          \
            words[i] = in[i];                                                                      \
        }                                                                                          \
        *(moei_u32x4 *)(void *)(g.out + 4 * at) = moei_hip_decode<MOEI_HIP_CODE_##code>(           \
            words, moei_f32_from_bits(in[WORDS]), moei_f32_from_bits(in[WORDS + 1]));              \
    }
#include "backends/hip/cdna/probes.def"
#undef MOE_HIP_PROBE_CODES

MOEI_HIP_PROBE(arithmetic)
{
    const uint32_t at = moei_hip_probe_at();
    const uint32_t *in = g.in + 3 * at;
    uint32_t *out = g.out + MOEI_HIP_NUM_ARITHMETIC * at;
    const float a = moei_f32_from_bits(in[0]);
    const float b = moei_f32_from_bits(in[1]);
    const float c = moei_f32_from_bits(in[2]);
    out[MOEI_HIP_ARITHMETIC_DIVIDE] = moei_f32_bits(moei_divf(a, b));
    out[MOEI_HIP_ARITHMETIC_SQRT] = moei_f32_bits(moei_sqrtf(a));
    out[MOEI_HIP_ARITHMETIC_FMA] = moei_f32_bits(moei_fmaf(a, b, c));
    const moei_f32x2 x = {a, b};
    const moei_f32x2 y = {c, c};
    const moei_f32x2 z = {b, a};
    const moei_f32x2 pair = __builtin_elementwise_fma(x, y, z);
    out[MOEI_HIP_ARITHMETIC_PAIR_LOW] = moei_f32_bits(pair[0]);
    out[MOEI_HIP_ARITHMETIC_PAIR_HIGH] = moei_f32_bits(pair[1]);
    out[MOEI_HIP_ARITHMETIC_MULTIPLY] = moei_f32_bits(a * b);
    out[MOEI_HIP_ARITHMETIC_ADD] = moei_f32_bits(a + b);
    out[MOEI_HIP_ARITHMETIC_SUM] = moei_f32_bits(a + b + c);
    out[MOEI_HIP_ARITHMETIC_FROM_INT] = moei_f32_bits((float)(int32_t)in[0]);
    out[MOEI_HIP_ARITHMETIC_FROM_UNSIGNED] = moei_f32_bits((float)in[0]);
    out[MOEI_HIP_ARITHMETIC_FROM_BYTE] = moei_f32_bits((float)(in[0] & 0xFF));
    out[MOEI_HIP_ARITHMETIC_TO_INT] =
        moei_absf(c) < 0x1p31f ? (uint32_t)(int32_t)c : 0u; // beyond it, C has no answer
    out[MOEI_HIP_ARITHMETIC_QUOTIENT] = in[1] != 0 ? in[0] / in[1] : 0u;
    out[MOEI_HIP_ARITHMETIC_LONG_QUOTIENT] = MOEI_HIP_PROBE_LONG(in);
    out[MOEI_HIP_ARITHMETIC_FROM_LONG] =
        moei_f32_bits((float)(int64_t)((uint64_t)in[0] << 32 | in[1]));
    out[MOEI_HIP_ARITHMETIC_TO_LONG] = MOEI_HIP_PROBE_TO_LONG(c);
    out[MOEI_HIP_ARITHMETIC_LANE] =
        dev_shfl_u32(in[0], (int)MOEI_HIP_PROBE_LANE(dev_lane()));
}
