// SPDX-License-Identifier: Apache-2.0
// The instructions of CDNA's matrix units by what they compute. A wave of 64 lanes; lane l has
//   first operand   output l % 16 of 16
//   second operand  row l % 16 of 16
//   k               of both, of 32 k in bf16: 8 * (l / 16) .. + 7
//                   of 128 k in codes of 8 bits: 16 * (l / 16) .. + 15, then 64 more than these
//                   of 128 k in codes of 6 and 4 bits: 32 * (l / 16) .. + 31
//   scales          of both, e8m0: of output or row l % 16, for k 32 * (l / 16) .. + 31 of 128
//   result r        output 4 * (l / 16) + r of row l % 16
// so that a lane ends with four neighbouring outputs of a row. All lanes reach them.
#ifndef MOEI_HIP_INSTRUCTIONS_H
#define MOEI_HIP_INSTRUCTIONS_H

#include "backends/gpu/dev.h"
#if !defined(__HIP__)
#include "backends/hip/cdna/instructions_sim.h"
#endif

// Qualifiers of a member that runs on the device, and of a kernel whose blocks have so many
// threads.
#if defined(__HIP__)
#define MOEI_HIP_MEMBER __attribute__((device)) __attribute__((always_inline)) inline
#define MOEI_HIP_GLOBAL(threads)                                                                   \
    extern "C" __attribute__((global))                                                             \
    __attribute__((amdgpu_flat_work_group_size(threads, threads))) void
#else
#define MOEI_HIP_MEMBER          inline
#define MOEI_HIP_GLOBAL(threads) extern "C" void
#endif

typedef float moei_f32x2 __attribute__((vector_size(8)));
typedef float moei_f32x4 __attribute__((vector_size(16)));
typedef uint32_t moei_u32x2 __attribute__((vector_size(8)));
typedef uint32_t moei_u32x4 __attribute__((vector_size(16)));
typedef uint32_t moei_u32x8 __attribute__((vector_size(32)));

/// sum + the products of 32 k of bf16. gfx950: one step of 32. gfx942: two of 16, whose k are 0 ..
/// 3 of every lane, then 4 .. 7.
DEV_FN moei_f32x4 moei_mfma_bf16(moei_u32x4 a, moei_u32x4 b, moei_f32x4 sum)
{
#if !defined(__HIP__)
    return moei_sim_here.cdna4
               ? moei_sim_products("mfma_16x16x32_bf16", moei_sim_mfma_bf16_k32, a, b, sum)
               : moei_sim_products("two mfma_16x16x16_bf16", moei_sim_mfma_bf16_k16, a, b, sum);
#elif defined(__gfx950__)
    typedef __bf16 operand __attribute__((ext_vector_type(8)));
    return __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(operand, a),
                                                   __builtin_bit_cast(operand, b), sum, 0, 0, 0);
#else
    typedef short operand __attribute__((ext_vector_type(4)));
    const moei_u32x2 low[2] = {{a[0], a[1]}, {b[0], b[1]}};
    const moei_u32x2 high[2] = {{a[2], a[3]}, {b[2], b[3]}};
    sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(
        __builtin_bit_cast(operand, low[0]), __builtin_bit_cast(operand, low[1]), sum, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(
        __builtin_bit_cast(operand, high[0]), __builtin_bit_cast(operand, high[1]), sum, 0, 0, 0);
#endif
}

/// Formats of codes by their numbers in instructions. gfx942's e4m3 is fnuz, gfx950's OCP's.
typedef enum moei_hip_float {
    MOEI_HIP_E4M3,
    MOEI_HIP_E5M2,
    MOEI_HIP_E2M3,
    MOEI_HIP_E3M2,
    MOEI_HIP_E2M1
} moei_hip_float;

/// Bits of a code, and so words of 32 of them.
constexpr int moei_hip_float_bits(int format)
{
    return format == MOEI_HIP_E2M1 ? 4 : format == MOEI_HIP_E2M3 || format == MOEI_HIP_E3M2 ? 6 : 8;
}

/// sum + the products of 128 k of codes of formats A and B, in the first words of each.
template <int A, int B>
DEV_FN moei_f32x4 moei_mfma_codes(moei_u32x8 a, moei_u32x8 b, moei_f32x4 sum)
{
#if !defined(__HIP__)
    return moei_sim_here.cdna4
               ? moei_sim_products("mfma_16x16x128_f8f6f4", moei_sim_mfma_codes_k128, a, b, sum,
                                   127u, 127u, (uint32_t)A, (uint32_t)B)
               : moei_sim_products("four mfma_16x16x32_fp8_fp8", moei_sim_mfma_codes_k32, a, b, sum,
                                   127u, 127u, (uint32_t)A, (uint32_t)B);
#elif defined(__gfx950__)
    // Two scales of 0 are how the compiler is asked for the instruction without any.
    return __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(a, b, sum, A, B, 0, 0, 0, 0);
#else
    static_assert(A == MOEI_HIP_E4M3 && B == MOEI_HIP_E4M3, "gfx942 has a format of each kind");
    // Four steps of 32 k. Which of the 128 a step takes does not matter, as long as both operands
    // agree: 8 neighbours of every lane.
    MOEI_GPU_UNROLL
    for (int i = 0; i < 8; i += 2) {
        const uint64_t of_a = a[i] | (uint64_t)a[i + 1] << 32;
        const uint64_t of_b = b[i] | (uint64_t)b[i + 1] << 32;
        sum = __builtin_amdgcn_mfma_f32_16x16x32_fp8_fp8((long)of_a, (long)of_b, sum, 0, 0, 0);
    }
    return sum;
#endif
}

/// gfx950: the same times scales: code 127 is 1, 255 makes NaN. The lowest byte of scale_a counts,
/// and byte `byte` of scale_b, which is known where loops are unrolled.
template <int A, int B>
DEV_FN moei_f32x4 moei_mfma_mx(moei_u32x8 a, moei_u32x8 b, moei_f32x4 sum, uint32_t scale_a,
                               uint32_t scale_b, int byte);

#if !defined(__gfx942__)
template <int A, int B>
DEV_FN moei_f32x4 moei_mfma_mx(moei_u32x8 a, moei_u32x8 b, moei_f32x4 sum, uint32_t scale_a,
                               uint32_t scale_b, int byte)
{
#if defined(__HIP__)
#define MX(byte)                                                                                   \
    __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(a, b, sum, A, B, 0, (int)scale_a, byte,       \
                                                     (int)scale_b)
    return byte == 0 ? MX(0) : byte == 1 ? MX(1) : byte == 2 ? MX(2) : MX(3);
#undef MX
#else
    return moei_sim_products("mfma_scale_16x16x128_f8f6f4", moei_sim_mfma_codes_k128, a, b, sum,
                             scale_a, scale_b >> 8 * byte, (uint32_t)A, (uint32_t)B);
#endif
}
#endif

/// A value that is the same on all lanes.
DEV_FN uint32_t moei_first_lane(uint32_t v)
{
#if defined(__HIP__)
    return (uint32_t)__builtin_amdgcn_readfirstlane((int)v);
#else
    return *moei_sim_wave("readfirstlane", moei_sim_first_lane, &v, 1);
#endif
}

// ---- conversions -------------------------------------------------------------------------------

#define MOEI_PERM_ZERO 12u // a byte of 0

/// Bytes of (low, high), 0 .. 7, that the bytes of `select` name.
DEV_FN uint32_t moei_perm(uint32_t high, uint32_t low, uint32_t select)
{
#if defined(__HIP__)
    return __builtin_amdgcn_perm(high, low, select);
#else
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t which = select >> 8 * i & 0xFF;
        const uint32_t byte = which < 4   ? low >> 8 * which
                              : which < 8 ? high >> 8 * (which - 4)
                                          : 0;
        v |= (byte & 0xFF) << 8 * i;
    }
    return v;
#endif
}

#if defined(__gfx950__)
/// Codes 2 I and 2 I + 1 of a word of e2m1, times the power of two of a scale, as bf16.
template <int I> DEV_FN uint32_t moei_cvt_e2m1_bf16(uint32_t word, float scale)
{
    typedef __bf16 pair __attribute__((ext_vector_type(2)));
    const pair v = __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, scale, I);
    return __builtin_bit_cast(uint32_t, v);
}

/// The low or the high two codes of a word of e4m3fn or e5m2, likewise.
template <bool E5M2, bool HIGH> DEV_FN uint32_t moei_cvt_f8_bf16(uint32_t word, float scale)
{
    typedef __bf16 pair __attribute__((ext_vector_type(2)));
    pair v;
    if constexpr (E5M2) {
        v = __builtin_amdgcn_cvt_scalef32_pk_bf16_bf8(word, scale, HIGH);
    } else {
        v = __builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(word, scale, HIGH);
    }
    return __builtin_bit_cast(uint32_t, v);
}
#endif

#if defined(__gfx942__)
/// The low or the high two codes of a word of e4m3fnuz.
template <bool HIGH> DEV_FN moei_f32x2 moei_cvt_fnuz_f32(uint32_t word)
{
    typedef float two __attribute__((ext_vector_type(2)));
    const two v = __builtin_amdgcn_cvt_pk_f32_fp8((int)word, HIGH);
    return __builtin_bit_cast(moei_f32x2, v);
}
#endif

#endif
