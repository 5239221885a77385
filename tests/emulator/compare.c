// SPDX-License-Identifier: Apache-2.0
// v_cmp_* writes a mask of lanes, v_cmpx_* the lanes that stay active as well.
#include "emulator/floats.h"

// What a row compares: bits 0 .. 3 say when it is true.
enum { LESS = 1, EQUAL = 2, GREATER = 4, UNORDERED = 8, TO_EXEC = 16 };

static void finish(emu_wave *w, const emu_inst *in, uint64_t bits)
{
    const uint64_t active = bits & emu_writes(w, in);
    if (in->o[0].kind == EMU_SCALAR) {
        emu_put_mask(w, in, 0, bits);
    }
    if (in->row->detail & TO_EXEC) {
        emu_set_s64(w, EMU_EXEC, active);
    }
}

#define COMPARE(type, fetch, declare)                                                              \
    static void run_##type(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        const uint32_t when = in->row->detail;                                                     \
        emu_u32s truth;                                                                            \
        fetch EMU_EACH(l)                                                                          \
        {                                                                                          \
            declare const uint32_t less = a < b;                                                   \
            const uint32_t equal = a == b;                                                         \
            const uint32_t greater = a > b;                                                        \
            const uint32_t none = 1u ^ (less | equal | greater);                                   \
            truth[l] =                                                                             \
                (less & when) | (equal & when >> 1) | (greater & when >> 2) | (none & when >> 3);  \
        }                                                                                          \
        finish(w, in, emu_pack_mask(truth));                                                       \
    }
#define WORDS                                                                                      \
    emu_u32s t1;                                                                                   \
    emu_u32s t2;                                                                                   \
    const uint32_t *A = emu_lanes(w, in, 1, 0, t1);                                                \
    const uint32_t *B = emu_lanes(w, in, 2, 0, t2);
#define FLOATS                                                                                     \
    emu_u32s t1;                                                                                   \
    emu_u32s t2;                                                                                   \
    const uint32_t *A = emu_floats(w, in, 1, t1);                                                  \
    const uint32_t *B = emu_floats(w, in, 2, t2);
#define LONGS                                                                                      \
    emu_u64s A;                                                                                    \
    emu_u64s B;                                                                                    \
    emu_lanes64(w, in, 1, A);                                                                      \
    emu_lanes64(w, in, 2, B);
#define PAIR(type, convert)                                                                        \
    const type a = convert(A[l]);                                                                  \
    const type b = convert(B[l]);
#define HALF(x) moei_f16_to_f32((uint16_t)(x))
COMPARE(u32, WORDS, PAIR(uint32_t, (uint32_t)))
COMPARE(i32, WORDS, PAIR(int32_t, (int32_t)))
COMPARE(u16, WORDS, PAIR(uint16_t, (uint16_t)))
COMPARE(i16, WORDS, PAIR(int16_t, (int16_t)))
COMPARE(u64, LONGS, PAIR(uint64_t, (uint64_t)))
COMPARE(i64, LONGS, PAIR(int64_t, (int64_t)))
COMPARE(f32, FLOATS, PAIR(float, emu_float))
COMPARE(f16, WORDS, PAIR(float, HALF))
COMPARE(f64, LONGS, PAIR(double, emu_double))

// Bits: signalling NaN, quiet NaN, -inf, -normal, -subnormal, -0, +0, +subnormal, +normal, +inf.
EMU_INLINE uint32_t class_of(uint32_t sign, uint32_t exponent, uint32_t top, uint64_t fraction,
                             uint32_t quiet)
{
    if (exponent == top && fraction) {
        return quiet ? 2 : 1;
    }
    const uint32_t kind = exponent == top ? 0 : exponent ? 1 : fraction ? 2 : 3;
    return 1u << (sign ? 2 + kind : 9 - kind);
}

static void run_class_f32(emu_wave *w, const emu_inst *in)
{
    emu_u32s truth;
    WORDS
    EMU_EACH(l)
    {
        const uint32_t u = A[l];
        truth[l] =
            (class_of(u >> 31, u >> 23 & 0xFFu, 0xFF, u & 0x7FFFFFu, u >> 22 & 1) & B[l]) != 0;
    }
    finish(w, in, emu_pack_mask(truth));
}

static void run_class_f64(emu_wave *w, const emu_inst *in)
{
    emu_u32s truth;
    LONGS
    EMU_EACH(l)
    {
        const uint64_t u = A[l];
        truth[l] = (class_of((uint32_t)(u >> 63), (uint32_t)(u >> 52 & 0x7FFu), 0x7FF,
                             u & 0xFFFFFFFFFFFFFu, (uint32_t)(u >> 51 & 1)) &
                    (uint32_t)B[l]) != 0;
    }
    finish(w, in, emu_pack_mask(truth));
}

static void run_class_f16(emu_wave *w, const emu_inst *in)
{
    emu_u32s truth;
    WORDS
    EMU_EACH(l)
    {
        const uint32_t u = A[l];
        truth[l] =
            (class_of(u >> 15 & 1, u >> 10 & 0x1Fu, 0x1F, u & 0x3FFu, u >> 9 & 1) & B[l]) != 0;
    }
    finish(w, in, emu_pack_mask(truth));
}

// clang-format off
#define BOTH(name, run, type, when)                                                                \
    {"v_cmp_" name, run, type, EMU_ANY, (when)}, {"v_cmpx_" name, run, type, EMU_ANY, (when) | TO_EXEC}
#define INTEGER(t, run, type)                                                                      \
    BOTH("f_" t, run, type, 0), BOTH("lt_" t, run, type, LESS), BOTH("eq_" t, run, type, EQUAL),   \
    BOTH("le_" t, run, type, LESS | EQUAL), BOTH("gt_" t, run, type, GREATER),                     \
    BOTH("ne_" t, run, type, LESS | GREATER), BOTH("ge_" t, run, type, GREATER | EQUAL),           \
    BOTH("t_" t, run, type, LESS | EQUAL | GREATER)
#define FLOATING(t, run, type)                                                                     \
    BOTH("f_" t, run, type, 0), BOTH("lt_" t, run, type, LESS), BOTH("eq_" t, run, type, EQUAL),   \
    BOTH("le_" t, run, type, LESS | EQUAL), BOTH("gt_" t, run, type, GREATER),                     \
    BOTH("lg_" t, run, type, LESS | GREATER), BOTH("ge_" t, run, type, GREATER | EQUAL),           \
    BOTH("o_" t, run, type, LESS | EQUAL | GREATER), BOTH("u_" t, run, type, UNORDERED),           \
    BOTH("nge_" t, run, type, LESS | UNORDERED), BOTH("nlg_" t, run, type, EQUAL | UNORDERED),     \
    BOTH("ngt_" t, run, type, LESS | EQUAL | UNORDERED),                                           \
    BOTH("nle_" t, run, type, GREATER | UNORDERED),                                                \
    BOTH("neq_" t, run, type, LESS | GREATER | UNORDERED),                                         \
    BOTH("nlt_" t, run, type, GREATER | EQUAL | UNORDERED),                                        \
    BOTH("tru_" t, run, type, LESS | EQUAL | GREATER | UNORDERED)

static const emu_row table[] = {
    INTEGER("u32", run_u32, EMU_TYPE_U32), INTEGER("i32", run_i32, EMU_TYPE_U32),
    INTEGER("u16", run_u16, EMU_TYPE_U16), INTEGER("i16", run_i16, EMU_TYPE_U16),
    INTEGER("u64", run_u64, EMU_TYPE_U64), INTEGER("i64", run_i64, EMU_TYPE_I64),
    FLOATING("f32", run_f32, EMU_TYPE_F32), FLOATING("f16", run_f16, EMU_TYPE_F16),
    FLOATING("f64", run_f64, EMU_TYPE_F64),
    BOTH("class_f32", run_class_f32, EMU_TYPE_F32, 0),
    BOTH("class_f16", run_class_f16, EMU_TYPE_F16, 0),
    BOTH("class_f64", run_class_f64, EMU_TYPE_F64, 0),
};
// clang-format on

const emu_rows EMU_ROWS_OF(compare) = {table, sizeof table / sizeof table[0]};
