// SPDX-License-Identifier: Apache-2.0
// Vector instructions: those of vector.def, and those that carry, select, scale or cross lanes.
#include "emulator/floats.h"

// ---- what rows of vector.def call
EMU_INLINE uint32_t reverse(uint32_t v)
{
    v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
    v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
    v = (v >> 4 & 0x0F0F0F0Fu) | (v & 0x0F0F0F0Fu) << 4;
    return __builtin_bswap32(v);
}

EMU_INLINE uint32_t first_other(uint32_t v)
{
    const uint32_t t = (int32_t)v < 0 ? ~v : v;
    return t ? (uint32_t)__builtin_clz(t) : UINT32_MAX;
}

EMU_INLINE uint32_t saturate(int64_t v, bool clamp, int64_t least, int64_t most)
{
    return (uint32_t)(clamp ? (v < least ? least : v > most ? most : v) : v);
}

EMU_INLINE int32_t int24(uint32_t v)
{
    return (int32_t)(v << 8) >> 8;
}

EMU_INLINE uint32_t clamp16(uint32_t v)
{
    const int32_t s = (int32_t)v;
    return (uint32_t)(s < -32768 ? -32768 : s > 32767 ? 32767 : s) & 0xFFFFu;
}

EMU_INLINE uint32_t bfe_i32(uint32_t v, uint32_t at, uint32_t width)
{
    const uint32_t part = v >> at;
    // Bits above the register are zeros.
    return (uint32_t)((int32_t)(part << (32 - width)) >> (32 - width));
}

EMU_INLINE uint32_t permute(uint32_t a, uint32_t b, uint32_t c)
{
    const uint64_t from = (uint64_t)a << 32 | b;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t sel = c >> (8 * i) & 0xFFu;
        uint32_t byte = 0;
        if (sel < 8) {
            byte = (uint32_t)(from >> (8 * sel)) & 0xFFu;
        } else if (sel < 12) {
            byte = from >> (16 * (sel - 8) + 15) & 1 ? 0xFF : 0;
        } else if (sel > 12) {
            byte = 0xFF;
        }
        r |= byte << (8 * i);
    }
    return r;
}

EMU_INLINE int32_t min_i(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

EMU_INLINE int32_t max_i(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

EMU_INLINE uint32_t min_u(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

EMU_INLINE uint32_t max_u(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

EMU_INLINE uint32_t sad8(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (int i = 0; i < 32; i += 8) {
        const uint32_t x = a >> i & 0xFFu;
        const uint32_t y = b >> i & 0xFFu;
        sum += x > y ? x - y : y - x;
    }
    return sum;
}

EMU_INLINE uint32_t dot4_i8(uint32_t a, uint32_t b)
{
    int32_t sum = 0;
    for (int i = 0; i < 32; i += 8) {
        sum += (int32_t)(int8_t)(a >> i) * (int8_t)(b >> i);
    }
    return (uint32_t)sum;
}

EMU_INLINE uint32_t dot4_u8(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (int i = 0; i < 32; i += 8) {
        sum += (a >> i & 0xFFu) * (b >> i & 0xFFu);
    }
    return sum;
}

// Bit 4 a + 2 b + c of the table is the result for these bits.
EMU_INLINE uint32_t bitop3(uint32_t a, uint32_t b, uint32_t c, unsigned table)
{
    uint32_t r = 0;
    for (unsigned i = 0; i < 8; i++) {
        const uint32_t all = 0u - (table >> i & 1u);
        r |= all & (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return r;
}

EMU_INLINE float fraction(float a)
{
    const float f = a - floorf(a);
    return f < 1 ? f : a == a && !isinf(a) ? 0x1.fffffep-1f : NAN;
}

EMU_INLINE int32_t clamp_exponent(uint32_t e)
{
    return (int32_t)e < -400 ? -400 : (int32_t)e > 400 ? 400 : (int32_t)e;
}

// f16 values in their order, as f32 has it.
EMU_INLINE uint32_t max_f16(uint32_t a, uint32_t b)
{
    const uint32_t nan_a = (a & 0x7FFFu) > 0x7C00u;
    const uint32_t nan_b = (b & 0x7FFFu) > 0x7C00u;
    const int32_t ka = a & 0x8000u ? (int32_t) ~(a & 0x7FFFu) : (int32_t)a;
    const int32_t kb = b & 0x8000u ? (int32_t) ~(b & 0x7FFFu) : (int32_t)b;
    if (nan_a && (!(a & 0x200u) || nan_b)) {
        return a | 0x200u;
    }
    if (nan_b && !(b & 0x200u)) {
        return b | 0x200u;
    }
    return nan_a ? b : nan_b ? a : ka >= kb ? a : b;
}

EMU_INLINE uint32_t min_f16(uint32_t a, uint32_t b)
{
    const uint32_t nan = (a & 0x7FFFu) > 0x7C00u || (b & 0x7FFFu) > 0x7C00u;
    return nan ? max_f16(a, b) : max_f16(a ^ 0x8000u, b ^ 0x8000u) ^ 0x8000u;
}

// ---- forms
#define SOURCES_1                                                                                  \
    emu_u32s t1;                                                                                   \
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);
#define SOURCES_2                                                                                  \
    SOURCES_1                                                                                      \
    emu_u32s t2;                                                                                   \
    const uint32_t *B = emu_lanes(w, in, 2, 0, t2);
#define SOURCES_3                                                                                  \
    SOURCES_2                                                                                      \
    emu_u32s t3;                                                                                   \
    const uint32_t *C = emu_lanes(w, in, 3, 0, t3);
#define FLOATS_1                                                                                   \
    emu_u32s t1;                                                                                   \
    const uint32_t *A = emu_floats(w, in, 1, t1);
#define FLOATS_2                                                                                   \
    FLOATS_1                                                                                       \
    emu_u32s t2;                                                                                   \
    const uint32_t *B = emu_floats(w, in, 2, t2);
#define FLOATS_3                                                                                   \
    FLOATS_2                                                                                       \
    emu_u32s t3;                                                                                   \
    const uint32_t *C = emu_floats(w, in, 3, t3);
#define NO_CLAMP                                                                                   \
    if (in->clamp) {                                                                               \
        emu_fail(w, -1, "clamp is not modelled here");                                             \
        return;                                                                                    \
    }
#define LANES(declare, result, put)                                                                \
    emu_u32s out;                                                                                  \
    EMU_EACH(l)                                                                                    \
    {                                                                                              \
        declare out[l] = (result);                                                                 \
    }                                                                                              \
    put(w, in, out);

#define RUN_U1(r) SOURCES_1 NO_CLAMP LANES(const uint32_t a = A[l];, r, emu_put)
#define RUN_U2(r) NO_CLAMP RUN_C2(r)
#define RUN_C2(r) SOURCES_2 LANES(const uint32_t a = A[l]; const uint32_t b = B[l];, r, emu_put)
#define RUN_U3(r)                                                                                  \
    SOURCES_3 NO_CLAMP LANES(const uint32_t a = A[l]; const uint32_t b = B[l];                     \
                             const uint32_t c = C[l];, r, emu_put)
#define RUN_W2(r)                                                                                  \
    SOURCES_2 NO_CLAMP LANES(const uint32_t a = A[l] & 0xFFFFu; const uint32_t b = B[l] & 0xFFFFu; \
                             , (r)&0xFFFFu, emu_put_16)
#define RUN_W3(r)                                                                                  \
    SOURCES_3 NO_CLAMP LANES(const uint32_t a = A[l] & 0xFFFFu; const uint32_t b = B[l] & 0xFFFFu; \
                             const uint32_t c = C[l] & 0xFFFFu;, (r)&0xFFFFu, emu_put_16)
#define RUN_X3(r)                                                                                  \
    SOURCES_3 NO_CLAMP LANES(const uint32_t a = A[l] & 0xFFFFu; const uint32_t b = B[l] & 0xFFFFu; \
                             const uint32_t c = C[l] & 0xFFFFu;, (r)&0xFFFFu, emu_put_half)
#define RUN_R2(r)                                                                                  \
    SOURCES_2 NO_CLAMP LANES(const uint32_t a = A[l]; const uint32_t b = B[l];, r, emu_put)
#define RUN_F1(r) FLOATS_1 LANES(const float a = emu_float(A[l]);, emu_bits(r), emu_put_floats)
#define RUN_F2(r)                                                                                  \
    FLOATS_2 const uint32_t *D = w->v[in->o[0].reg];                                               \
    LANES(const float a = emu_float(A[l]); const float b = emu_float(B[l]);                        \
          const float d = emu_float(D[l]); (void)d;, emu_bits(r), emu_put_floats)
#define RUN_F3(r)                                                                                  \
    FLOATS_3 LANES(const float a = emu_float(A[l]); const float b = emu_float(B[l]);               \
                   const float c = emu_float(C[l]);, emu_bits(r), emu_put_floats)
#define RUN_FU1(r) FLOATS_1 NO_CLAMP LANES(const float a = emu_float(A[l]);, r, emu_put)
#define RUN_UF1(r) SOURCES_1 LANES(const uint32_t a = A[l];, emu_bits(r), emu_put_floats)
#define RUN_B1(r)  FLOATS_1 LANES(const uint32_t a = A[l];, r, emu_put_floats)
#define RUN_N1(r)  FLOATS_1 NO_CLAMP LANES(const uint32_t a = A[l];, r, emu_put)
#define RUN_B2(r)                                                                                  \
    SOURCES_2 LANES(const uint32_t a = A[l]; const uint32_t b = B[l];, r, emu_put_floats)
#define RUN_B3(r)                                                                                  \
    SOURCES_3 LANES(const uint32_t a = A[l]; const uint32_t b = B[l]; const uint32_t c = C[l];     \
                    , r, emu_put_floats)
#define RUN_M1(r)                                                                                  \
    FLOATS_1 LANES(const double a = (double)emu_float(A[l]);, emu_approximate(w, r), emu_put_floats)
#define HALF(x)    (double)moei_f16_to_f32((uint16_t)(x))
#define AS_HALF(x) emu_f16_overflow(w, emu_f16_from_double(x), false)
#define RUN_H2(r)                                                                                  \
    SOURCES_2 NO_CLAMP const uint32_t *D = w->v[in->o[0].reg];                                     \
    LANES(const double a = HALF(A[l]); const double b = HALF(B[l]); const double d = HALF(D[l]);   \
          (void)d;, AS_HALF(r), emu_put_16)
#define RUN_H3(r)                                                                                  \
    SOURCES_3 NO_CLAMP LANES(const double a = HALF(A[l]); const double b = HALF(B[l]);             \
                             const double c = HALF(C[l]);, AS_HALF(r), emu_put_half)
#define LONGS_1                                                                                    \
    emu_u64s A;                                                                                    \
    emu_lanes64(w, in, 1, A);
#define LONGS_2                                                                                    \
    LONGS_1 emu_u64s B;                                                                            \
    emu_lanes64(w, in, 2, B);
#define LONGS_3                                                                                    \
    LONGS_2 emu_u64s C;                                                                            \
    emu_lanes64(w, in, 3, C);
#define LANES64(declare, result)                                                                   \
    emu_u64s out;                                                                                  \
    EMU_EACH(l)                                                                                    \
    {                                                                                              \
        declare out[l] = (result);                                                                 \
    }                                                                                              \
    emu_put64(w, in, out);
#define RUN_Q1(r) LONGS_1 LANES64(const uint64_t a = A[l];, r)
#define RUN_Q2(r) LONGS_2 LANES64(const uint64_t a = A[l]; const uint64_t b = B[l];, r)
#define RUN_Q3(r)                                                                                  \
    LONGS_3 LANES64(const uint64_t a = A[l]; const uint64_t b = B[l]; const uint64_t c = C[l];, r)
#define NO_OUTPUT_MODIFIER                                                                         \
    if (in->clamp || in->omod) {                                                                   \
        emu_fail(w, -1, "clamp and omod are not modelled here");                                   \
        return;                                                                                    \
    }
#define RUN_D1(r)                                                                                  \
    NO_OUTPUT_MODIFIER LONGS_1 LANES64(const double a = emu_double(A[l]);, emu_bits64(r))
#define RUN_D2(r)                                                                                  \
    NO_OUTPUT_MODIFIER LONGS_2 emu_u64s D;                                                         \
    emu_lanes64(w, in, 0, D);                                                                      \
    LANES64(const double a = emu_double(A[l]); const double b = emu_double(B[l]);                  \
            const double d = emu_double(D[l]); (void)d;, emu_bits64(r))
#define RUN_D3(r)                                                                                  \
    NO_OUTPUT_MODIFIER LONGS_3 LANES64(const double a = emu_double(A[l]);                          \
                                       const double b = emu_double(B[l]);                          \
                                       const double c = emu_double(C[l]);, emu_bits64(r))

/// Source k of a packed instruction: the half or word that `which` (op_sel or op_sel_hi) names.
EMU_INLINE const uint32_t *packed_floats(emu_wave *w, const emu_inst *in, int k, bool high,
                                         emu_u32s tmp)
{
    const unsigned bit = 1u << (k - 1);
    const int word = (high ? in->op_sel_hi : in->op_sel) & bit ? 1 : 0;
    const uint32_t flip = (high ? in->neg_hi : in->neg_lo) & bit ? 0x80000000u : 0;
    if (in->o[k].kind == EMU_CONST && word == 1 && in->o[k].value[0] != 0) {
        emu_fail(w, -1, "the upper word of a constant is not defined");
    }
    const uint32_t *from = emu_lanes(w, in, k, word, tmp);
    if (flip || !(w->mode & EMU_MODE_KEEP32_IN)) {
        EMU_EACH(l)
        {
            tmp[l] = (w->mode & EMU_MODE_KEEP32_IN ? from[l] : emu_flushed(from[l])) ^ flip;
        }
        return tmp;
    }
    return from;
}

/// The lower word of the result is the word of the first source that op_sel names, the upper one
/// that of the second.
static void run_v_pk_mov_b32(emu_wave *w, const emu_inst *in)
{
    emu_u32s out[2];
    for (int k = 1; k <= 2; k++) {
        const int word = in->op_sel >> (k - 1) & 1;
        emu_u32s tmp;
        if (in->o[k].kind == EMU_CONST && word == 1 && in->o[k].value[0] != 0) {
            emu_fail(w, -1, "the upper word of a constant is not defined");
            return;
        }
        memcpy(out[k - 1], emu_lanes(w, in, k, word, tmp), sizeof out[0]);
    }
    emu_put_word(w, in, 0, out[0]);
    emu_put_word(w, in, 1, out[1]);
}

#define PACKED_FLOATS(sources, declare, result)                                                    \
    emu_u32s both[2];                                                                              \
    for (int high = 0; high < 2; high++) {                                                         \
        emu_u32s t1;                                                                               \
        emu_u32s t2;                                                                               \
        const uint32_t *A = packed_floats(w, in, 1, high, t1);                                     \
        const uint32_t *B = packed_floats(w, in, 2, high, t2);                                     \
        sources;                                                                                   \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            const float a = emu_float(A[l]);                                                       \
            const float b = emu_float(B[l]);                                                       \
            declare both[high][l] = emu_bits(result);                                              \
        }                                                                                          \
        if (in->clamp || in->omod || !(w->mode & EMU_MODE_KEEP32_OUT)) {                           \
            emu_finish_floats(w, in, both[high]);                                                  \
        }                                                                                          \
    }                                                                                              \
    emu_put_word(w, in, 0, both[0]);                                                               \
    emu_put_word(w, in, 1, both[1]);
#define RUN_P2(r) PACKED_FLOATS((void)0, , r)
#define RUN_P3(r)                                                                                  \
    PACKED_FLOATS(emu_u32s t3; const uint32_t *C = packed_floats(w, in, 3, high, t3),              \
                               const float c = emu_float(C[l]);                                    \
                  , r)

EMU_INLINE uint32_t packed_half(uint32_t v, const emu_inst *in, int k, bool high)
{
    const unsigned bit = 1u << (k - 1);
    const uint32_t flip = (high ? in->neg_hi : in->neg_lo) & bit ? 0x8000u : 0;
    return (((high ? in->op_sel_hi : in->op_sel) & bit ? v >> 16 : v) & 0xFFFFu) ^ flip;
}

#define PACKED(third, declare, result)                                                             \
    emu_u32s t1;                                                                                   \
    emu_u32s t2;                                                                                   \
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);                                                \
    const uint32_t *B = emu_lanes(w, in, 2, 0, t2);                                                \
    third;                                                                                         \
    NO_CLAMP emu_u32s out;                                                                         \
    EMU_EACH(l)                                                                                    \
    {                                                                                              \
        uint32_t v = 0;                                                                            \
        for (int high = 0; high < 2; high++) {                                                     \
            declare v |= ((uint32_t)(result)&0xFFFFu) << (16 * high);                              \
        }                                                                                          \
        out[l] = v;                                                                                \
    }                                                                                              \
    emu_put(w, in, out);
#define PART(x, k) packed_half(x[l], in, k, high)
#define RUN_K2(r)  PACKED((void)0, const uint32_t a = PART(A, 1); const uint32_t b = PART(B, 2);, r)
#define RUN_K3(r)                                                                                  \
    PACKED(emu_u32s t3;                                                                            \
           const uint32_t *C = emu_lanes(w, in, 3, 0, t3), const uint32_t a = PART(A, 1);          \
           const uint32_t b = PART(B, 2); const uint32_t c = PART(C, 3);, r)
#define RUN_G2(r)                                                                                  \
    PACKED((void)0, const double a = HALF(PART(A, 1)); const double b = HALF(PART(B, 2));          \
           , AS_HALF(r))
#define RUN_G3(r)                                                                                  \
    PACKED(emu_u32s t3;                                                                            \
           const uint32_t *C = emu_lanes(w, in, 3, 0, t3), const double a = HALF(PART(A, 1));      \
           const double b = HALF(PART(B, 2)); const double c = HALF(PART(C, 3));, AS_HALF(r))

#define EMU_VALU(form, name, ...)                                                                  \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        RUN_##form((__VA_ARGS__))                                                                  \
    }
#define EMU_VALU_950 EMU_VALU
#include "emulator/vector.def"
#undef EMU_VALU
#undef EMU_VALU_950

// ---- carries
#define CARRY(name, declare, sum, carry)                                                           \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        emu_u32s t1;                                                                               \
        emu_u32s t2;                                                                               \
        emu_u32s out;                                                                              \
        const uint32_t *A = emu_lanes(w, in, 2, 0, t1);                                            \
        const uint32_t *B = emu_lanes(w, in, 3, 0, t2);                                            \
        const uint64_t carries = in->num > 4 ? emu_lane_mask(w, in, 4) : 0;                        \
        uint64_t bits = 0;                                                                         \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            const uint64_t a = A[l];                                                               \
            const uint64_t b = B[l];                                                               \
            declare out[l] = (uint32_t)(sum);                                                      \
            bits |= (uint64_t)(carry) << l;                                                        \
        }                                                                                          \
        (void)carries;                                                                             \
        NO_CLAMP emu_put(w, in, out);                                                              \
        emu_put_mask(w, in, 1, bits);                                                              \
    }
#define CARRY_IN const uint64_t c = carries >> l & 1u;
CARRY(v_add_co_u32, , a + b, (a + b) >> 32)
CARRY(v_sub_co_u32, , a - b, a < b)
CARRY(v_subrev_co_u32, , b - a, b < a)
CARRY(v_addc_co_u32, CARRY_IN, a + b + c, (a + b + c) >> 32)
CARRY(v_subb_co_u32, CARRY_IN, a - b - c, a < b + c)
CARRY(v_subbrev_co_u32, CARRY_IN, b - a - c, b < a + c)

__extension__ typedef __int128 int128;
#define MAD64(name, product)                                                                       \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        emu_u32s t1;                                                                               \
        emu_u32s t2;                                                                               \
        emu_u64s C;                                                                                \
        emu_u64s out;                                                                              \
        const uint32_t *A = emu_lanes(w, in, 2, 0, t1);                                            \
        const uint32_t *B = emu_lanes(w, in, 3, 0, t2);                                            \
        emu_lanes64(w, in, 4, C);                                                                  \
        uint64_t bits = 0;                                                                         \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            const uint32_t a = A[l];                                                               \
            const uint32_t b = B[l];                                                               \
            const int128 sum = product;                                                            \
            out[l] = (uint64_t)sum;                                                                \
            bits |= (uint64_t)(sum >> 64 & 1) << l;                                                \
        }                                                                                          \
        emu_put64(w, in, out);                                                                     \
        emu_put_mask(w, in, 1, bits);                                                              \
    }
MAD64(v_mad_u64_u32, (int128)((uint64_t)a *b) + C[l])
MAD64(v_mad_i64_i32, (int128)((int64_t)(int32_t)a *(int32_t)b) + (int64_t)C[l])

// ---- selection and lanes
static void run_v_cndmask_b32(emu_wave *w, const emu_inst *in)
{
    const uint64_t select = emu_lane_mask(w, in, 3);
    emu_u32s t1;
    emu_u32s t2;
    emu_u32s out;
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);
    const uint32_t *B = emu_lanes(w, in, 2, 0, t2);
    EMU_EACH(l)
    {
        const uint32_t m = 0u - (uint32_t)(select >> l & 1u);
        out[l] = (B[l] & m) | (A[l] & ~m);
    }
    emu_put(w, in, out);
}

static void run_v_readlane_b32(emu_wave *w, const emu_inst *in)
{
    const unsigned lane = emu_s(w, in, 2) & 63u;
    w->s[in->o[0].reg] = w->v[in->o[1].reg][lane];
}

static void run_v_writelane_b32(emu_wave *w, const emu_inst *in)
{
    const unsigned lane = emu_s(w, in, 2) & 63u;
    w->v[in->o[0].reg][lane] = emu_s(w, in, 1);
}

static void run_v_readfirstlane_b32(emu_wave *w, const emu_inst *in)
{
    const uint64_t exec = emu_exec(w);
    const int lane = exec ? __builtin_ctzll(exec) : 0;
    w->s[in->o[0].reg] = in->o[1].kind == EMU_VECTOR ? w->v[in->o[1].reg][lane] : emu_s(w, in, 1);
}

static void run_v_swap_b32(emu_wave *w, const emu_inst *in)
{
    const uint64_t exec = emu_exec(w);
    uint32_t *a = w->v[in->o[0].reg];
    uint32_t *b = w->v[in->o[1].reg];
    EMU_EACH(l)
    {
        if (exec >> l & 1u) {
            const uint32_t t = a[l];
            a[l] = b[l];
            b[l] = t;
        }
    }
}

// Lanes of the odd rows of the first register and of the even rows of the second change places.
static void run_v_permlane_swap(emu_wave *w, const emu_inst *in)
{
    const int row = in->row->detail;
    const uint64_t exec = emu_exec(w);
    uint32_t *a = w->v[in->o[0].reg];
    uint32_t *b = w->v[in->o[1].reg];
    if (exec != ~(uint64_t)0) {
        emu_fail(w, -1, "modelled with all lanes active");
        return;
    }
    for (int at = 0; at < EMU_LANES; at += 2 * row) {
        for (int i = at; i < at + row; i++) {
            const uint32_t t = a[i + row];
            a[i + row] = b[i];
            b[i] = t;
        }
    }
}

// ---- sums of products and mixed precision
/// a.x b.x + a.y b.y + c in one of two orders.
EMU_INLINE float dot2(const emu_wave *w, float ax, float bx, float ay, float by, float c)
{
    if (w->group->launch->sum) {
        return (float)((double)ax * (double)bx + (double)ay * (double)by) + c;
    }
    return __builtin_fmaf(ay, by, __builtin_fmaf(ax, bx, c));
}

#define AS_BF16(x) moei_bf16_to_f32((uint16_t)(x))
#define AS_F16(x)  moei_f16_to_f32((uint16_t)(x))
#define DOT2(name, convert, third)                                                                 \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        NO_CLAMP emu_u32s t1;                                                                      \
        emu_u32s t2;                                                                               \
        emu_u32s t3;                                                                               \
        emu_u32s out;                                                                              \
        const uint32_t *A = emu_lanes(w, in, 1, 0, t1);                                            \
        const uint32_t *B = emu_lanes(w, in, 2, 0, t2);                                            \
        const uint32_t *C = emu_lanes(w, in, third, 0, t3);                                        \
        EMU_EACH(l)                                                                                \
        {                                                                                          \
            out[l] = emu_bits(dot2(w, convert(A[l]), convert(B[l]), convert(A[l] >> 16),           \
                                   convert(B[l] >> 16), emu_float(C[l])));                         \
        }                                                                                          \
        emu_put_floats(w, in, out);                                                                \
    }
DOT2(v_dot2_f32_bf16, AS_BF16, 3)
DOT2(v_dot2c_f32_bf16, AS_BF16, 0)
DOT2(v_dot2_f32_f16, AS_F16, 3)
DOT2(v_dot2c_f32_f16, AS_F16, 0)

static void run_v_dot4c_i32_i8(emu_wave *w, const emu_inst *in)
{
    SOURCES_2 const uint32_t *D = w->v[in->o[0].reg];
    LANES(, dot4_i8(A[l], B[l]) + D[l], emu_put)
}

/// Source k of v_fma_mix: a float, or where op_sel_hi says so the half of a register that op_sel
/// names.
EMU_INLINE void mixed(emu_wave *w, const emu_inst *in, int k, float out[EMU_LANES])
{
    const unsigned bit = 1u << (k - 1);
    const emu_operand *o = &in->o[k];
    emu_operand bare = *o;
    emu_u32s tmp;
    bare.plain = o->kind == EMU_VECTOR;
    EMU_EACH(l)
    {
        tmp[l] = bare.plain ? w->v[o->reg][l] : emu_scalar_word(w, o, 0);
    }
    EMU_EACH(l)
    {
        const float f = in->op_sel_hi & bit ? AS_F16(in->op_sel & bit ? tmp[l] >> 16 : tmp[l])
                                            : emu_float(tmp[l]);
        out[l] = emu_float(emu_changed(emu_bits(f), o));
    }
}

static void run_v_fma_mix(emu_wave *w, const emu_inst *in)
{
    float a[EMU_LANES];
    float b[EMU_LANES];
    float c[EMU_LANES];
    const uint32_t *D = w->v[in->o[0].reg];
    mixed(w, in, 1, a);
    mixed(w, in, 2, b);
    mixed(w, in, 3, c);
    NO_CLAMP emu_u32s out;
    EMU_EACH(l)
    {
        const float r = __builtin_fmaf(a[l], b[l], c[l]);
        const uint32_t h = moei_f32_to_f16(r);
        out[l] = in->row->detail == 0   ? emu_bits(r)
                 : in->row->detail == 1 ? (D[l] & 0xFFFF0000u) | h
                                        : (D[l] & 0xFFFFu) | h << 16;
    }
    emu_put(w, in, out);
}

// ---- division
static void run_v_div_scale_f32(emu_wave *w, const emu_inst *in)
{
    emu_u32s t1;
    emu_u32s t2;
    emu_u32s t3;
    emu_u32s out;
    const uint32_t *A = emu_lanes(w, in, 2, 0, t1);
    const uint32_t *B = emu_lanes(w, in, 3, 0, t2);
    const uint32_t *C = emu_lanes(w, in, 4, 0, t3);
    uint64_t bits = 0;
    EMU_EACH(l)
    {
        bool scaled;
        out[l] = emu_div_scale(A[l], B[l], C[l], &scaled);
        bits |= (uint64_t)scaled << l;
    }
    emu_put(w, in, out);
    emu_put_mask(w, in, 1, bits);
}

static void run_v_div_fmas_f32(emu_wave *w, const emu_inst *in)
{
    const uint64_t vcc = emu_s64(w, EMU_VCC);
    SOURCES_3
    LANES(, emu_div_fmas(emu_float(A[l]), emu_float(B[l]), emu_float(C[l]), vcc >> l & 1u),
          emu_put_floats)
}

static void run_v_div_fixup_f32(emu_wave *w, const emu_inst *in)
{
    SOURCES_3
    LANES(, emu_div_fixup(A[l], B[l], C[l]), emu_put_floats)
}

// ---- rows
#define TYPE_U1  EMU_TYPE_U32
#define TYPE_U2  EMU_TYPE_U32
#define TYPE_C2  EMU_TYPE_U32
#define TYPE_U3  EMU_TYPE_U32
#define TYPE_W2  EMU_TYPE_U16
#define TYPE_W3  EMU_TYPE_U16
#define TYPE_X3  EMU_TYPE_U16
#define TYPE_R2  EMU_TYPE_F16
#define TYPE_F1  EMU_TYPE_F32
#define TYPE_F2  EMU_TYPE_F32
#define TYPE_F3  EMU_TYPE_F32
#define TYPE_FU1 EMU_TYPE_F32
#define TYPE_UF1 EMU_TYPE_U32
#define TYPE_B1  EMU_TYPE_F32
#define TYPE_B2  EMU_TYPE_F32
#define TYPE_B3  EMU_TYPE_F32
#define TYPE_N1  EMU_TYPE_F32
#define TYPE_M1  EMU_TYPE_F32
#define TYPE_H2  EMU_TYPE_F16
#define TYPE_H3  EMU_TYPE_F16
#define TYPE_D1  EMU_TYPE_F64
#define TYPE_D2  EMU_TYPE_F64
#define TYPE_D3  EMU_TYPE_F64
#define TYPE_Q1  EMU_TYPE_U64
#define TYPE_Q2  EMU_TYPE_U64
#define TYPE_Q3  EMU_TYPE_U64
#define TYPE_P2  EMU_TYPE_F32
#define TYPE_P3  EMU_TYPE_F32
#define TYPE_K2  EMU_TYPE_P16
#define TYPE_K3  EMU_TYPE_P16
#define TYPE_G2  EMU_TYPE_P16
#define TYPE_G3  EMU_TYPE_P16

static const emu_row table[] = {
#define EMU_VALU(form, name, ...)     {#name, run_##name, TYPE_##form, EMU_ANY, 0},
#define EMU_VALU_950(form, name, ...) {#name, run_##name, TYPE_##form, EMU_GFX950, 0},
#include "emulator/vector.def"
#undef EMU_VALU
#undef EMU_VALU_950
    {"v_add_co_u32", run_v_add_co_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_sub_co_u32", run_v_sub_co_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_subrev_co_u32", run_v_subrev_co_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_addc_co_u32", run_v_addc_co_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_subb_co_u32", run_v_subb_co_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_subbrev_co_u32", run_v_subbrev_co_u32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_mad_u64_u32", run_v_mad_u64_u32, EMU_TYPE_U64, EMU_ANY, 0},
    {"v_mad_i64_i32", run_v_mad_i64_i32, EMU_TYPE_I64, EMU_ANY, 0},
    {"v_pk_mov_b32", run_v_pk_mov_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_cndmask_b32", run_v_cndmask_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_readlane_b32", run_v_readlane_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_writelane_b32", run_v_writelane_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_readfirstlane_b32", run_v_readfirstlane_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_swap_b32", run_v_swap_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_permlane16_swap_b32", run_v_permlane_swap, EMU_TYPE_U32, EMU_GFX950, 16},
    {"v_permlane32_swap_b32", run_v_permlane_swap, EMU_TYPE_U32, EMU_GFX950, 32},
    {"v_dot2_f32_bf16", run_v_dot2_f32_bf16, EMU_TYPE_U32, EMU_GFX950, 0},
    {"v_dot2c_f32_bf16", run_v_dot2c_f32_bf16, EMU_TYPE_U32, EMU_GFX950, 0},
    {"v_dot2_f32_f16", run_v_dot2_f32_f16, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_dot2c_f32_f16", run_v_dot2c_f32_f16, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_dot4c_i32_i8", run_v_dot4c_i32_i8, EMU_TYPE_U32, EMU_ANY, 0},
    {"v_fma_mix_f32", run_v_fma_mix, EMU_TYPE_F32, EMU_ANY, 0},
    {"v_fma_mixlo_f16", run_v_fma_mix, EMU_TYPE_F32, EMU_ANY, 1},
    {"v_fma_mixhi_f16", run_v_fma_mix, EMU_TYPE_F32, EMU_ANY, 2},
    {"v_div_scale_f32", run_v_div_scale_f32, EMU_TYPE_F32, EMU_ANY, 0},
    {"v_div_fmas_f32", run_v_div_fmas_f32, EMU_TYPE_F32, EMU_ANY, 0},
    {"v_div_fixup_f32", run_v_div_fixup_f32, EMU_TYPE_F32, EMU_ANY, 0},
};

const emu_rows EMU_ROWS_OF(vector) = {table, sizeof table / sizeof table[0]};
