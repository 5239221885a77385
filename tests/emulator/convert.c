// SPDX-License-Identifier: Apache-2.0
// Conversions between formats of which one has 16 bits or fewer, or 64.
#include "emulator/small.h"

#define SOURCE_1                                                                                   \
    emu_u32s t1;                                                                                   \
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);
#define SOURCE_2                                                                                   \
    SOURCE_1                                                                                       \
    emu_u32s t2;                                                                                   \
    const uint32_t *B = emu_lanes(w, in, 2, 0, t2);
#define SOURCE_3                                                                                   \
    SOURCE_2                                                                                       \
    emu_u32s t3;                                                                                   \
    const uint32_t *C = emu_lanes(w, in, 3, 0, t3);
#define SIMPLE(name, sources, put, result)                                                         \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        sources emu_u32s out;                                                                      \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            out[l] = (uint32_t)(result);                                                           \
        }                                                                                          \
        put(w, in, out);                                                                           \
    }

/// To f16, toward zero; too large gives the largest value.
EMU_INLINE uint32_t f16_toward_zero(uint32_t u)
{
    const float f = emu_float(u);
    const uint32_t h = moei_f32_to_f16(f);
    const bool away = fabsf(moei_f16_to_f32((uint16_t)h)) > fabsf(f);
    return away ? h - 1 : h;
}

EMU_INLINE uint32_t to_f16(const emu_wave *w, uint32_t u)
{
    return emu_f16_overflow(w, moei_f32_to_f16(emu_float(u)), (u & 0x7FFFFFFFu) == 0x7F800000u);
}

SIMPLE(v_cvt_f16_f32, SOURCE_1, emu_put_16, to_f16(w, A[l]))
SIMPLE(v_cvt_f32_f16, SOURCE_1, emu_put_floats, emu_bits(moei_f16_to_f32((uint16_t)A[l])))
SIMPLE(v_cvt_f32_bf16, SOURCE_1, emu_put_floats, A[l] << 16)
SIMPLE(v_cvt_pkrtz_f16_f32, SOURCE_2, emu_put, f16_toward_zero(A[l]) | f16_toward_zero(B[l]) << 16)
SIMPLE(v_cvt_pk_bf16_f32, SOURCE_2, emu_put,
       moei_f32_to_bf16(emu_float(A[l])) | (uint32_t)moei_f32_to_bf16(emu_float(B[l])) << 16)
SIMPLE(v_cvt_f16_u16, SOURCE_1, emu_put_16,
       emu_f16_overflow(w, moei_f32_to_f16((float)(uint16_t)A[l]), false))
SIMPLE(v_cvt_f16_i16, SOURCE_1, emu_put_16, moei_f32_to_f16((float)(int16_t)A[l]))

EMU_INLINE uint32_t clamped(double f, double least, double most)
{
    return f == f ? (uint32_t)(int32_t)trunc(f < least ? least : f > most ? most : f) & 0xFFFFu : 0;
}
SIMPLE(v_cvt_u16_f16, SOURCE_1, emu_put_16,
       clamped((double)moei_f16_to_f32((uint16_t)A[l]), 0, 65535))
SIMPLE(v_cvt_i16_f16, SOURCE_1, emu_put_16,
       clamped((double)moei_f16_to_f32((uint16_t)A[l]), -32768, 32767))

#define FROM_DOUBLE(name, put, result)                                                             \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        emu_u64s A;                                                                                \
        emu_u32s out;                                                                              \
        emu_lanes64(w, in, 1, A);                                                                  \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            const double a = emu_double(A[l]);                                                     \
            out[l] = (result);                                                                     \
        }                                                                                          \
        put(w, in, out);                                                                           \
    }
#define TO_DOUBLE(name, result)                                                                    \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        SOURCE_1 emu_u64s out;                                                                     \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            out[l] = emu_bits64((double)(result));                                                 \
        }                                                                                          \
        emu_put64(w, in, out);                                                                     \
    }
FROM_DOUBLE(v_cvt_f32_f64, emu_put_floats, emu_bits((float)a))
FROM_DOUBLE(v_cvt_u32_f64, emu_put, emu_to_u32(a))
FROM_DOUBLE(v_cvt_i32_f64, emu_put, emu_to_i32(a))
TO_DOUBLE(v_cvt_f64_f32, emu_float(A[l]))
TO_DOUBLE(v_cvt_f64_u32, A[l])
TO_DOUBLE(v_cvt_f64_i32, (int32_t)A[l])

static void run_v_ldexp_f64(emu_wave *w, const emu_inst *in)
{
    emu_u64s A;
    emu_u64s out;
    emu_u32s t2;
    emu_lanes64(w, in, 1, A);
    const uint32_t *B = emu_lanes(w, in, 2, 0, t2);
    EMU_EACH(l)
    {
        const int e = (int32_t)B[l] < -3000 ? -3000 : (int32_t)B[l] > 3000 ? 3000 : (int32_t)B[l];
        out[l] = emu_bits64(ldexp(emu_double(A[l]), e));
    }
    emu_put64(w, in, out);
}

// ---- 8 bits
/// A code's value, as this device has it.
EMU_INLINE float small_value(const emu_wave *w, emu_small format, uint32_t code)
{
    const float f = emu_small_value(w->group->launch->arch, format, code);
    return emu_has_fault(w, EMU_FAULT_CVT_NAN) && f != f ? 0.0f : f;
}

/// The place of codes in a source.
EMU_INLINE unsigned place_of(const emu_wave *w, unsigned shift)
{
    return emu_has_fault(w, EMU_FAULT_CVT_SELECT) ? 0 : shift;
}

// Two floats to a half of the result's register, which op_sel's last bit names.
static void run_to_small_pair(emu_wave *w, const emu_inst *in)
{
    const emu_small format = (emu_small)in->row->detail;
    const bool upper = in->op_sel >> (in->num - 1) & 1u;
    const uint32_t *old = w->v[in->o[0].reg];
    SOURCE_2 emu_u32s out;
    EMU_EACH(l)
    {
        const uint32_t pair = emu_small_code(w, format, emu_float(A[l])) |
                              emu_small_code(w, format, emu_float(B[l])) << 8;
        out[l] = upper ? (old[l] & 0xFFFFu) | pair << 16 : (old[l] & 0xFFFF0000u) | pair;
    }
    emu_put(w, in, out);
}

static void run_from_small(emu_wave *w, const emu_inst *in)
{
    SOURCE_1 emu_u32s out;
    EMU_EACH(l)
    {
        out[l] = emu_bits(small_value(w, (emu_small)in->row->detail, A[l] & 0xFFu));
    }
    emu_put(w, in, out);
}

static void run_from_small_pair(emu_wave *w, const emu_inst *in)
{
    SOURCE_1 emu_u32s out[2];
    EMU_EACH(l)
    {
        out[0][l] = emu_bits(small_value(w, (emu_small)in->row->detail, A[l] & 0xFFu));
        out[1][l] = emu_bits(small_value(w, (emu_small)in->row->detail, A[l] >> 8 & 0xFFu));
    }
    emu_put_word(w, in, 0, out[0]);
    emu_put_word(w, in, 1, out[1]);
}

// ---- with a scale: the exponent of a float
// detail: format | what the other side is << 4
enum { WIDE_F32 = 0, WIDE_BF16 = 16, WIDE_F16 = 32 };

EMU_INLINE int exponent_of(uint32_t scale)
{
    return (int)(scale >> 23 & 0xFFu) - 127;
}

EMU_INLINE float wide_value(unsigned wide, uint32_t v)
{
    return wide == WIDE_BF16  ? moei_bf16_to_f32((uint16_t)v)
           : wide == WIDE_F16 ? moei_f16_to_f32((uint16_t)v)
                              : emu_float(v);
}

/// A code times 2^e, in the wide format. Exponent 255 gives NaN.
EMU_INLINE uint32_t wide_code(const emu_wave *w, unsigned detail, uint32_t code, uint32_t scale)
{
    const int more = emu_has_fault(w, EMU_FAULT_CVT_SCALE);
    const double v =
        ldexp((double)small_value(w, (emu_small)(detail & 15), code), exponent_of(scale) + more);
    const double r = exponent_of(scale) == 128 ? (double)NAN : v;
    switch (detail & 48) {
    case WIDE_BF16: {
        // Codes have at most four bits: what float rounds is below bf16's least, too.
        return moei_f32_to_bf16((float)r);
    }
    case WIDE_F16:
        return emu_f16_from_double(r);
    default:
        return emu_bits((float)r);
    }
}

static void run_scaled_to_small(emu_wave *w, const emu_inst *in)
{
    const unsigned detail = in->row->detail;
    const emu_small format = (emu_small)(detail & 15);
    const unsigned wide = detail & 48;
    const int scale_at = wide == WIDE_F32 ? 3 : 2;
    emu_u32s t1;
    emu_u32s t2;
    emu_u32s t3;
    emu_u32s out;
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);
    const uint32_t *B = wide == WIDE_F32 ? emu_lanes(w, in, 2, 0, t2) : A;
    const uint32_t *S = emu_lanes(w, in, scale_at, 0, t3);
    const uint32_t *old = w->v[in->o[0].reg];
    // The place of the result: a byte for FP4 (bits 2 and 3 of op_sel), else a half (the last bit).
    const bool fp4 = format == EMU_FP4;
    const unsigned shift =
        fp4 ? 8u * (in->op_sel >> 2 & 3u) : 16u * (in->op_sel >> (wide == WIDE_F32 ? 3 : 2) & 1u);
    const uint32_t field = fp4 ? 0xFFu : 0xFFFFu;
    EMU_EACH(l)
    {
        const int e = exponent_of(S[l]);
        const float x = wide_value(wide, A[l]);
        const float y = wide_value(wide, wide == WIDE_F32 ? B[l] : A[l] >> 16);
        const bool nan = e == 128;
        const uint32_t low = emu_small_code(w, format, nan ? NAN : emu_scaled(x, -e));
        const uint32_t high = emu_small_code(w, format, nan ? NAN : emu_scaled(y, -e));
        const uint32_t pair = low | high << (fp4 ? 4 : 8);
        out[l] = (old[l] & ~(field << shift)) | pair << shift;
    }
    emu_put(w, in, out);
}

static void run_scaled_from_small_pair(emu_wave *w, const emu_inst *in)
{
    const unsigned detail = in->row->detail;
    const bool fp4 = (detail & 15) == EMU_FP4;
    const unsigned shift = place_of(w, fp4 ? 8u * (in->op_sel & 3u) : 16u * (in->op_sel & 1u));
    const unsigned bits = fp4 ? 4 : 8;
    emu_u32s t1;
    emu_u32s t2;
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);
    const uint32_t *S = emu_lanes(w, in, 2, 0, t2);
    emu_u32s out[2];
    EMU_EACH(l)
    {
        out[0][l] = wide_code(w, detail, A[l] >> shift & (fp4 ? 15u : 255u), S[l]);
        out[1][l] = wide_code(w, detail, A[l] >> (shift + bits) & (fp4 ? 15u : 255u), S[l]);
        if ((detail & 48) != WIDE_F32) {
            out[0][l] |= out[1][l] << 16;
        }
    }
    emu_put_word(w, in, 0, out[0]);
    if ((detail & 48) == WIDE_F32) {
        emu_put_word(w, in, 1, out[1]);
    }
}

static void run_scaled_from_small(emu_wave *w, const emu_inst *in)
{
    const unsigned shift = place_of(w, 8u * (in->op_sel & 3u));
    emu_u32s t1;
    emu_u32s t2;
    emu_u32s out;
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);
    const uint32_t *S = emu_lanes(w, in, 2, 0, t2);
    EMU_EACH(l)
    {
        out[l] = wide_code(w, in->row->detail, A[l] >> shift & 255u, S[l]);
    }
    emu_put(w, in, out);
}

static const emu_row table[] = {
    {"v_cvt_f16_f32", run_v_cvt_f16_f32, EMU_TYPE_F32, EMU_ANY, 0},
    {"v_cvt_f32_f16", run_v_cvt_f32_f16, EMU_TYPE_F16, EMU_ANY, 0},
    {"v_cvt_f32_bf16", run_v_cvt_f32_bf16, EMU_TYPE_U32, EMU_GFX950, 0},
    {"v_cvt_pkrtz_f16_f32", run_v_cvt_pkrtz_f16_f32, EMU_TYPE_F32, EMU_ANY, 0},
    {"v_cvt_pk_bf16_f32", run_v_cvt_pk_bf16_f32, EMU_TYPE_F32, EMU_GFX950, 0},
    {"v_cvt_f16_u16", run_v_cvt_f16_u16, EMU_TYPE_U16, EMU_ANY, 0},
    {"v_cvt_f16_i16", run_v_cvt_f16_i16, EMU_TYPE_U16, EMU_ANY, 0},
    {"v_cvt_u16_f16", run_v_cvt_u16_f16, EMU_TYPE_F16, EMU_ANY, 0},
    {"v_cvt_i16_f16", run_v_cvt_i16_f16, EMU_TYPE_F16, EMU_ANY, 0},
    {"v_cvt_f32_f64", run_v_cvt_f32_f64, EMU_TYPE_F64, EMU_ANY, 0},
    {"v_cvt_u32_f64", run_v_cvt_u32_f64, EMU_TYPE_F64, EMU_ANY, 0},
    {"v_cvt_i32_f64", run_v_cvt_i32_f64, EMU_TYPE_F64, EMU_ANY, 0},
    {"v_cvt_f64_f32", run_v_cvt_f64_f32, EMU_TYPE_F32, EMU_ANY, 0},
    {"v_cvt_f64_u32", run_v_cvt_f64_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_cvt_f64_i32", run_v_cvt_f64_i32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_ldexp_f64", run_v_ldexp_f64, EMU_TYPE_F64, EMU_ANY, 0},
    {"v_cvt_pk_fp8_f32", run_to_small_pair, EMU_TYPE_F32, EMU_ANY, EMU_FP8},
    {"v_cvt_pk_bf8_f32", run_to_small_pair, EMU_TYPE_F32, EMU_ANY, EMU_BF8},
    {"v_cvt_f32_fp8", run_from_small, EMU_TYPE_U32, EMU_ANY, EMU_FP8},
    {"v_cvt_f32_bf8", run_from_small, EMU_TYPE_U32, EMU_ANY, EMU_BF8},
    {"v_cvt_pk_f32_fp8", run_from_small_pair, EMU_TYPE_U32, EMU_ANY, EMU_FP8},
    {"v_cvt_pk_f32_bf8", run_from_small_pair, EMU_TYPE_U32, EMU_ANY, EMU_BF8},
#define SCALED(name, run, format, wide)                                                            \
    {                                                                                              \
        name, run, EMU_TYPE_F32, EMU_GFX950, (format) | (wide)                                     \
    }
    SCALED("v_cvt_scalef32_pk_fp4_f32", run_scaled_to_small, EMU_FP4, WIDE_F32),
    SCALED("v_cvt_scalef32_pk_fp4_bf16", run_scaled_to_small, EMU_FP4, WIDE_BF16),
    SCALED("v_cvt_scalef32_pk_fp4_f16", run_scaled_to_small, EMU_FP4, WIDE_F16),
    SCALED("v_cvt_scalef32_pk_fp8_f32", run_scaled_to_small, EMU_FP8, WIDE_F32),
    SCALED("v_cvt_scalef32_pk_fp8_bf16", run_scaled_to_small, EMU_FP8, WIDE_BF16),
    SCALED("v_cvt_scalef32_pk_fp8_f16", run_scaled_to_small, EMU_FP8, WIDE_F16),
    SCALED("v_cvt_scalef32_pk_bf8_f32", run_scaled_to_small, EMU_BF8, WIDE_F32),
    SCALED("v_cvt_scalef32_pk_bf8_bf16", run_scaled_to_small, EMU_BF8, WIDE_BF16),
    SCALED("v_cvt_scalef32_pk_bf8_f16", run_scaled_to_small, EMU_BF8, WIDE_F16),
    SCALED("v_cvt_scalef32_pk_f32_fp4", run_scaled_from_small_pair, EMU_FP4, WIDE_F32),
    SCALED("v_cvt_scalef32_pk_bf16_fp4", run_scaled_from_small_pair, EMU_FP4, WIDE_BF16),
    SCALED("v_cvt_scalef32_pk_f16_fp4", run_scaled_from_small_pair, EMU_FP4, WIDE_F16),
    SCALED("v_cvt_scalef32_pk_f32_fp8", run_scaled_from_small_pair, EMU_FP8, WIDE_F32),
    SCALED("v_cvt_scalef32_pk_bf16_fp8", run_scaled_from_small_pair, EMU_FP8, WIDE_BF16),
    SCALED("v_cvt_scalef32_pk_f16_fp8", run_scaled_from_small_pair, EMU_FP8, WIDE_F16),
    SCALED("v_cvt_scalef32_pk_f32_bf8", run_scaled_from_small_pair, EMU_BF8, WIDE_F32),
    SCALED("v_cvt_scalef32_pk_bf16_bf8", run_scaled_from_small_pair, EMU_BF8, WIDE_BF16),
    SCALED("v_cvt_scalef32_pk_f16_bf8", run_scaled_from_small_pair, EMU_BF8, WIDE_F16),
    SCALED("v_cvt_scalef32_f32_fp8", run_scaled_from_small, EMU_FP8, WIDE_F32),
    SCALED("v_cvt_scalef32_f32_bf8", run_scaled_from_small, EMU_BF8, WIDE_F32),
};

const emu_rows EMU_ROWS_OF(convert) = {table, sizeof table / sizeof table[0]};
