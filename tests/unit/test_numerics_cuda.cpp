// SPDX-License-Identifier: Apache-2.0
// The number formats of numerics/ against the host conversions of CUDA's own headers (cuda_fp8.h,
// cuda_fp6.h, cuda_fp4.h, cuda_bf16.h, cuda_fp16.h): all bfloat16 and binary16 values, the
// midpoints and limits of every format with their neighbours, and a million random floats. A
// difference must have one of the causes listed in `causes`, and each of these must occur. Needs
// CUDA's headers, no GPU and no nvcc.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "numerics/fp4.h"
#include "numerics/fp6.h"
#include "numerics/fp8.h"
#include "test.h"

namespace
{

enum cause {
    SAME,
    BF16_NAN,        // CUDA gives 7FFF for every NaN; libmoe 7FC0 with the sign
    F16_NAN,         // CUDA gives 7FFF for every NaN; libmoe keeps sign and payload
    FP8_NAN,         // CUDA gives 7F for every NaN; libmoe keeps the sign, 7F or FF
    DECODED_NAN,     // CUDA gives 7FFFFFFF or a payload of its own; libmoe 7FC00000 with the sign
    DECODED_F16_NAN, // CUDA gives another payload than libmoe, which widens the f16 payload
    OTHER,           // never allowed
    N_CAUSES
};

const char *const causes[N_CAUSES] = {
    "same",
    "bf16 of NaN: canonical 7FFF in CUDA",
    "f16 of NaN: canonical 7FFF in CUDA",
    "FP8 of -NaN: 7F in CUDA, FF here",
    "decoded FP8 NaN: other sign or payload in CUDA",
    "decoded f16 NaN: other sign or payload in CUDA",
    "not allowed",
};

unsigned long counts[N_CAUSES];

std::uint32_t bits_of(float x)
{
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof(u));
    return u;
}

float float_of(std::uint32_t u)
{
    float x;
    std::memcpy(&x, &u, sizeof(x));
    return x;
}

bool is_nan(float x)
{
    return (bits_of(x) & 0x7FFFFFFFu) > 0x7F800000u;
}

void compare(const char *what, float x, std::uint32_t ours, std::uint32_t theirs, cause allowed)
{
    cause c = ours == theirs ? SAME : is_nan(x) ? allowed : OTHER;
    counts[c]++;
    if (c == OTHER) {
        CHECK(0, "%s of %a: %02x, CUDA gives %02x", what, static_cast<double>(x), ours, theirs);
    }
}

void compare_decoded(const char *what, unsigned code, float ours, float theirs, cause nan)
{
    bool both = is_nan(ours) && is_nan(theirs);
    cause c = bits_of(ours) == bits_of(theirs) ? SAME : both ? nan : OTHER;
    counts[c]++;
    if (c == OTHER) {
        CHECK(0, "%s code %02x: %a, CUDA gives %a", what, code, static_cast<double>(ours),
              static_cast<double>(theirs));
    }
}

float from_half(__half_raw h)
{
    return __half2float(__half(h));
}

void encode(float x)
{
    for (int mode = 0; mode < 2; mode++) {
        moei_overflow o = mode != 0 ? MOEI_OVERFLOW_SATURATE : MOEI_OVERFLOW_NAN;
        __nv_saturation_t s = mode != 0 ? __NV_SATFINITE : __NV_NOSAT;
        compare("e4m3fn", x, moei_f32_to_e4m3fn(x, o), __nv_cvt_float_to_fp8(x, s, __NV_E4M3),
                FP8_NAN);
        compare("e5m2", x, moei_f32_to_e5m2(x, o), __nv_cvt_float_to_fp8(x, s, __NV_E5M2), FP8_NAN);
    }
    moei_overflow o = MOEI_OVERFLOW_SATURATE;
    compare("e2m3", x, moei_f32_to_e2m3(x, o),
            __nv_cvt_float_to_fp6(x, __NV_E2M3, cudaRoundNearest), OTHER);
    compare("e3m2", x, moei_f32_to_e3m2(x, o),
            __nv_cvt_float_to_fp6(x, __NV_E3M2, cudaRoundNearest), OTHER);
    compare("e2m1", x, moei_f32_to_e2m1(x, o),
            __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest), OTHER);
    __nv_bfloat16_raw b = __float2bfloat16_rn(x);
    compare("bf16", x, moei_f32_to_bf16(x), b.x, BF16_NAN);
    __half_raw h = __float2half_rn(x);
    compare("f16", x, moei_f32_to_f16(x), h.x, F16_NAN);
    // CUDA's E8M0 conversions round down or up; both are bit rules here. Below 2^-126 the bit rule
    // for "up" knows only zero and the smallest normal number.
    float a = std::fabs(x);
    if (a >= 1.17549435e-38f || a != a) {
        unsigned down = __nv_cvt_float_to_e8m0(x, __NV_NOSAT, cudaRoundZero);
        unsigned up = __nv_cvt_float_to_e8m0(x, __NV_NOSAT, cudaRoundPosInf);
        compare("e8m0 down", x, moei_f32_exponent_byte(x), down, OTHER);
        compare("e8m0 up", x, moei_f32_exponent_byte(moei_pow2_up(x)), up, OTHER);
    }
}

void decode_all()
{
    for (unsigned c = 0; c < 256; c++) {
        std::uint8_t code = static_cast<std::uint8_t>(c);
        compare_decoded("e4m3fn", c, moei_e4m3fn_to_f32(code),
                        from_half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)), DECODED_NAN);
        compare_decoded("e5m2", c, moei_e5m2_to_f32(code),
                        from_half(__nv_cvt_fp8_to_halfraw(code, __NV_E5M2)), DECODED_NAN);
        compare_decoded("e8m0", c, moei_e8m0_to_f32(code),
                        __bfloat162float(__nv_bfloat16(__nv_cvt_e8m0_to_bf16raw(code))),
                        DECODED_NAN);
        if (c < 64) {
            compare_decoded("e2m3", c, moei_e2m3_to_f32(code),
                            from_half(__nv_cvt_fp6_to_halfraw(code, __NV_E2M3)), OTHER);
            compare_decoded("e3m2", c, moei_e3m2_to_f32(code),
                            from_half(__nv_cvt_fp6_to_halfraw(code, __NV_E3M2)), OTHER);
        }
        if (c < 16) {
            compare_decoded("e2m1", c, moei_e2m1_to_f32(code),
                            from_half(__nv_cvt_fp4_to_halfraw(code, __NV_E2M1)), OTHER);
        }
    }
    for (unsigned c = 0; c < 0x10000u; c++) {
        std::uint16_t code = static_cast<std::uint16_t>(c);
        __nv_bfloat16_raw b;
        b.x = code;
        compare_decoded("bf16", c, moei_bf16_to_f32(code), __bfloat162float(__nv_bfloat16(b)),
                        OTHER);
        __half_raw h;
        h.x = code;
        compare_decoded("f16", c, moei_f16_to_f32(code), from_half(h), DECODED_F16_NAN);
    }
}

void encode_around(float v)
{
    float sides[3] = {v, std::nextafter(v, INFINITY), std::nextafter(v, -INFINITY)};
    for (float x : sides) {
        encode(x);
        encode(-x);
    }
}

// Values and midpoints of a format, and what would follow its largest value.
void encode_edges(float (*decode)(std::uint8_t), unsigned codes)
{
    float last = 0.0f;
    float before = 0.0f;
    for (unsigned c = 0; c < codes; c++) {
        float v = decode(static_cast<std::uint8_t>(c));
        if (!(v - v == 0.0f)) { // infinity or NaN
            continue;
        }
        encode_around(v);
        encode_around((v + last) / 2.0f);
        before = last;
        last = v;
    }
    encode_around(last + (last - before) / 2.0f);
    encode_around(last + (last - before));
}

} // namespace

int main()
{
    decode_all();
    for (std::uint32_t u = 0; u < 0x10000u; u++) {
        encode(float_of(u << 16));
        encode(moei_f16_to_f32(static_cast<std::uint16_t>(u)));
    }
    encode_edges(moei_e4m3fn_to_f32, 0x80);
    encode_edges(moei_e5m2_to_f32, 0x80);
    encode_edges(moei_e2m3_to_f32, 0x20);
    encode_edges(moei_e3m2_to_f32, 0x20);
    encode_edges(moei_e2m1_to_f32, 0x08);
    for (std::uint32_t c = 0; c < 0x7C00u; c++) {
        float v = moei_f16_to_f32(static_cast<std::uint16_t>(c));
        encode_around((v + moei_f16_to_f32(static_cast<std::uint16_t>(c + 1))) / 2.0f);
    }
    encode_around(65520.0f);
    encode_around(float_of(0x7F7F8000u));
    std::uint64_t state = 3;
    for (int i = 0; i < 1 << 20; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::uint32_t u = static_cast<std::uint32_t>(state >> 32);
        // Every second one with an exponent that the small formats have.
        encode(float_of((i & 1) != 0 ? u : (u & 0x87FFFFFFu) + 0x3B000000u));
    }
    for (int c = 0; c < N_CAUSES; c++) {
        std::printf("%9lu  %s\n", counts[c], causes[c]);
        CHECK(c == OTHER ? counts[c] == 0 : counts[c] != 0, "%s: %lu times", causes[c], counts[c]);
    }
    return test_summary();
}
