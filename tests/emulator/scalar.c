// SPDX-License-Identifier: Apache-2.0
// Scalar instructions: those of scalar.def, loads, branches, and what steers the wave.
#include "emulator/floats.h"

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

EMU_INLINE uint32_t absolute(uint32_t v)
{
    return (int32_t)v < 0 ? 0u - v : v;
}

/// `width` bits from bit `at`; what lies above the register is zero.
EMU_INLINE uint64_t bfe(uint64_t v, unsigned at, unsigned width, unsigned bits)
{
    const unsigned n = width > bits ? bits : width;
    return n == 0 ? 0 : v >> at & (~(uint64_t)0 >> (64 - n));
}

EMU_INLINE uint64_t bfe_signed(uint64_t v, unsigned at, unsigned width, unsigned bits)
{
    const unsigned room = bits - at;
    const unsigned n = width > room ? room : width;
    const uint64_t part = bfe(v, at, n, bits);
    return n == 0 ? 0 : (uint64_t)((int64_t)(part << (64 - n)) >> (64 - n));
}

EMU_INLINE uint64_t whole_quads(uint64_t v)
{
    uint64_t r = 0;
    for (int q = 0; q < 64; q += 4) {
        r |= v >> q & 15u ? (uint64_t)15 << q : 0;
    }
    return r;
}

#define KEEP w->scc
#define FINISH(scc_value)                                                                          \
    {                                                                                              \
        w->scc = (uint32_t)(scc_value);                                                            \
    }
#define RUN_S1(result, scc_value)                                                                  \
    const uint32_t a = emu_s(w, in, 1);                                                            \
    const uint32_t d = w->s[in->o[0].reg];                                                         \
    const uint32_t r = (uint32_t)(result);                                                         \
    (void)d;                                                                                       \
    w->s[in->o[0].reg] = r;                                                                        \
    FINISH(scc_value)
#define RUN_SK(result, scc_value)                                                                  \
    const uint32_t a = (uint32_t)(int32_t)(int16_t)emu_s(w, in, 1);                                \
    const uint32_t d = w->s[in->o[0].reg];                                                         \
    const uint32_t r = (uint32_t)(result);                                                         \
    (void)d;                                                                                       \
    w->s[in->o[0].reg] = r;                                                                        \
    FINISH(scc_value)
#define RUN_S2(result, scc_value)                                                                  \
    const uint32_t a = emu_s(w, in, 1);                                                            \
    const uint32_t b = emu_s(w, in, 2);                                                            \
    const uint32_t r = (uint32_t)(result);                                                         \
    const uint32_t scc = (uint32_t)(scc_value);                                                    \
    w->s[in->o[0].reg] = r;                                                                        \
    w->scc = scc;
#define RUN_L1(result, scc_value)                                                                  \
    const uint64_t a = emu_ss(w, in, 1);                                                           \
    const uint64_t d = emu_s64(w, in->o[0].reg);                                                   \
    const uint64_t r = (result);                                                                   \
    (void)d;                                                                                       \
    emu_set_s64(w, in->o[0].reg, r);                                                               \
    FINISH(scc_value)
#define RUN_L2(result, scc_value)                                                                  \
    const uint64_t a = emu_ss(w, in, 1);                                                           \
    const uint64_t b = emu_ss(w, in, 2);                                                           \
    const uint64_t r = (result);                                                                   \
    emu_set_s64(w, in->o[0].reg, r);                                                               \
    FINISH(scc_value)
#define RUN_LS1(result, scc_value)                                                                 \
    const uint64_t a = emu_ss(w, in, 1);                                                           \
    const uint32_t r = (result);                                                                   \
    w->s[in->o[0].reg] = r;                                                                        \
    FINISH(scc_value)
#define RUN_X1(result, scc_value)                                                                  \
    const uint64_t a = emu_ss(w, in, 1);                                                           \
    const uint64_t exec = emu_exec(w);                                                             \
    const uint64_t r = (result);                                                                   \
    emu_set_s64(w, in->o[0].reg, exec);                                                            \
    emu_set_s64(w, EMU_EXEC, r);                                                                   \
    FINISH(scc_value)
#define RUN_XW(result, scc_value)                                                                  \
    const uint64_t a = emu_ss(w, in, 1);                                                           \
    const uint64_t exec = emu_exec(w);                                                             \
    const uint64_t r = (result);                                                                   \
    emu_set_s64(w, in->o[0].reg, r);                                                               \
    emu_set_s64(w, EMU_EXEC, r);                                                                   \
    FINISH(scc_value)
#define RUN_C2(result, scc_value)                                                                  \
    const uint32_t a = emu_s(w, in, 0);                                                            \
    const uint32_t b = emu_s(w, in, 1);                                                            \
    w->scc = (uint32_t)(result);
#define RUN_CL2(result, scc_value)                                                                 \
    const uint64_t a = emu_ss(w, in, 0);                                                           \
    const uint64_t b = emu_ss(w, in, 1);                                                           \
    w->scc = (uint32_t)(result);
#define RUN_CI(result, scc_value)                                                                  \
    const uint32_t a = emu_s(w, in, 0);                                                            \
    const uint32_t b = (uint32_t)(int32_t)(int16_t)emu_s(w, in, 1);                                \
    w->scc = (uint32_t)(result);
#define RUN_CU(result, scc_value)                                                                  \
    const uint32_t a = emu_s(w, in, 0);                                                            \
    const uint32_t b = (uint16_t)emu_s(w, in, 1);                                                  \
    w->scc = (uint32_t)(result);

#define EMU_SALU(form, name, result, scc_value)                                                    \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        RUN_##form(result, scc_value)                                                              \
    }
#include "emulator/scalar.def"
#undef EMU_SALU

// ---- loads
static void run_s_load(emu_wave *w, const emu_inst *in)
{
    const unsigned words = in->row->detail;
    uint64_t address = emu_ss(w, in, 1) + (uint64_t)(int64_t)in->offset;
    if (in->num > 2) {
        address += in->o[2].kind == EMU_CONST ? emu_ss(w, in, 2) : emu_s(w, in, 2);
    }
    address &= ~(uint64_t)3;
    const void *from = emu_memory(w, -1, address, 4 * words, false);
    if (from != NULL) {
        memcpy(&w->s[in->o[0].reg], from, 4 * (size_t)words);
    }
}

// ---- branches
#define BRANCH(name, condition)                                                                    \
    static void run_##name(emu_wave *w, const emu_inst *in)                                        \
    {                                                                                              \
        if (condition) {                                                                           \
            w->pc = in->target;                                                                    \
        }                                                                                          \
    }
BRANCH(s_branch, true)
BRANCH(s_cbranch_scc0, w->scc == 0)
BRANCH(s_cbranch_scc1, w->scc != 0)
BRANCH(s_cbranch_vccz, emu_s64(w, EMU_VCC) == 0)
BRANCH(s_cbranch_vccnz, emu_s64(w, EMU_VCC) != 0)
BRANCH(s_cbranch_execz, emu_exec(w) == 0)
BRANCH(s_cbranch_execnz, emu_exec(w) != 0)

// ---- the wave
static void run_nothing(emu_wave *w, const emu_inst *in)
{
    (void)w;
    (void)in;
}

static void run_s_barrier(emu_wave *w, const emu_inst *in)
{
    (void)in;
    if (w->group->num_waves > 1) {
        w->stop = EMU_AT_BARRIER;
    }
}

static void run_s_sleep(emu_wave *w, const emu_inst *in)
{
    (void)in;
    w->stop = EMU_YIELDS;
}

static void run_s_endpgm(emu_wave *w, const emu_inst *in)
{
    (void)in;
    w->stop = EMU_ENDED;
}

static void run_s_trap(emu_wave *w, const emu_inst *in)
{
    (void)in;
    emu_fail(w, -1, "a trap");
}

static void run_s_getpc_b64(emu_wave *w, const emu_inst *in)
{
    const uint64_t base = (uint64_t)(uintptr_t)w->group->launch->kernel->object->image;
    emu_set_s64(w, in->o[0].reg, base + in->address + 4);
}

static void run_s_memtime(emu_wave *w, const emu_inst *in)
{
    emu_set_s64(w, in->o[0].reg, w->group->launch->steps);
}

static void run_s_set_gpr_idx_on(emu_wave *w, const emu_inst *in)
{
    w->index_mode = (uint32_t)in->offset0 & 15u;
    w->s[EMU_M0] = (w->s[EMU_M0] & ~0xF0FFu) | (emu_s(w, in, 0) & 0xFFu) | w->index_mode << 12;
}

static void run_s_set_gpr_idx_off(emu_wave *w, const emu_inst *in)
{
    (void)in;
    w->index_mode = 0;
}

static void run_s_set_gpr_idx_idx(emu_wave *w, const emu_inst *in)
{
    w->s[EMU_M0] = (w->s[EMU_M0] & ~0xFFu) | (emu_s(w, in, 0) & 0xFFu);
}

// The register that M0 is away from the named one, as a source or as the result.
static void run_s_movrel(emu_wave *w, const emu_inst *in)
{
    const unsigned words = in->row->detail & 3u;
    const bool result = in->row->detail & 4u;
    const uint64_t away = w->s[EMU_M0];
    const uint64_t from = in->o[1].reg + (result ? 0 : away);
    const uint64_t to = in->o[0].reg + (result ? away : 0);
    if (from + words > EMU_VCC || to + words > EMU_VCC) {
        emu_fail(w, -1, "M0 is %u: no such register", w->s[EMU_M0]);
        return;
    }
    memmove(&w->s[to], &w->s[from], words * sizeof w->s[0]);
}

// in->offset0, offset1: first bit and number of bits of the MODE register.
static void run_s_getreg_b32(emu_wave *w, const emu_inst *in)
{
    w->s[in->o[0].reg] = (uint32_t)bfe(w->mode, (unsigned)in->offset0, (unsigned)in->offset1, 32);
}

static void run_s_setreg_b32(emu_wave *w, const emu_inst *in)
{
    const uint32_t field = (uint32_t)(~(uint64_t)0 >> (64 - in->offset1)) << in->offset0;
    w->mode = (w->mode & ~field) | (emu_s(w, in, 0) << in->offset0 & field);
    if (w->mode & 0xFu) {
        emu_fail(w, -1, "rounding other than to nearest even is not modelled");
    }
}

static const emu_row table[] = {
#define TYPE_S1                                 EMU_TYPE_U32
#define TYPE_S2                                 EMU_TYPE_U32
#define TYPE_SK                                 EMU_TYPE_U32
#define TYPE_C2                                 EMU_TYPE_U32
#define TYPE_CI                                 EMU_TYPE_U32
#define TYPE_CU                                 EMU_TYPE_U32
#define TYPE_L1                                 EMU_TYPE_U64
#define TYPE_L2                                 EMU_TYPE_U64
#define TYPE_LS1                                EMU_TYPE_U64
#define TYPE_X1                                 EMU_TYPE_U64
#define TYPE_XW                                 EMU_TYPE_U64
#define TYPE_CL2                                EMU_TYPE_U64
#define EMU_SALU(form, name, result, scc_value) {#name, run_##name, TYPE_##form, EMU_ANY, 0},
#include "emulator/scalar.def"
#undef EMU_SALU
    {"s_load_dword", run_s_load, EMU_TYPE_U64, EMU_ANY, 1},
    {"s_load_dwordx2", run_s_load, EMU_TYPE_U64, EMU_ANY, 2},
    {"s_load_dwordx4", run_s_load, EMU_TYPE_U64, EMU_ANY, 4},
    {"s_load_dwordx8", run_s_load, EMU_TYPE_U64, EMU_ANY, 8},
    {"s_load_dwordx16", run_s_load, EMU_TYPE_U64, EMU_ANY, 16},
    {"s_branch", run_s_branch, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_cbranch_scc0", run_s_cbranch_scc0, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_cbranch_scc1", run_s_cbranch_scc1, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_cbranch_vccz", run_s_cbranch_vccz, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_cbranch_vccnz", run_s_cbranch_vccnz, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_cbranch_execz", run_s_cbranch_execz, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_cbranch_execnz", run_s_cbranch_execnz, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_nop", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_waitcnt", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_setprio", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_dcache_inv", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_dcache_wb", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_icache_inv", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"buffer_wbl2", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"buffer_inv", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_barrier", run_s_barrier, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_sleep", run_s_sleep, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_endpgm", run_s_endpgm, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_trap", run_s_trap, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_getpc_b64", run_s_getpc_b64, EMU_TYPE_U64, EMU_ANY, 0},
    {"s_memtime", run_s_memtime, EMU_TYPE_U64, EMU_ANY, 0},
    {"s_memrealtime", run_s_memtime, EMU_TYPE_U64, EMU_ANY, 0},
    {"s_set_gpr_idx_on", run_s_set_gpr_idx_on, EMU_TYPE_U32, EMU_ANY, 0},
    {"s_set_gpr_idx_off", run_s_set_gpr_idx_off, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_set_gpr_idx_idx", run_s_set_gpr_idx_idx, EMU_TYPE_U32, EMU_ANY, 0},
    {"s_movrels_b32", run_s_movrel, EMU_TYPE_U32, EMU_ANY, 1},
    {"s_movrels_b64", run_s_movrel, EMU_TYPE_U64, EMU_ANY, 2},
    {"s_movreld_b32", run_s_movrel, EMU_TYPE_U32, EMU_ANY, 1 + 4},
    {"s_movreld_b64", run_s_movrel, EMU_TYPE_U64, EMU_ANY, 2 + 4},
    {"v_nop", run_nothing, EMU_TYPE_TEXT, EMU_ANY, 0},
    {"s_getreg_b32", run_s_getreg_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"s_setreg_b32", run_s_setreg_b32, EMU_TYPE_U32, EMU_ANY, 0},
    {"s_setreg_imm32_b32", run_s_setreg_b32, EMU_TYPE_U32, EMU_ANY, 0},
};

const emu_rows EMU_ROWS_OF(scalar) = {table, sizeof table / sizeof table[0]};
