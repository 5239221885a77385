// SPDX-License-Identifier: Apache-2.0
// How instructions read and write a wave. A function of an instruction takes each source as 64
// lanes (emu_lanes), computes all of them, and hands the result to emu_put, which writes the lanes
// that are active. Modifiers, constants, SDWA, DPP and register indexing live here alone.
#ifndef MOE_EMULATOR_WAVE_H
#define MOE_EMULATOR_WAVE_H

#include <string.h>

#include "emulator/emulator.h"

#define EMU_EACH(l)  for (int l = 0; l < EMU_LANES; l++)
#define EMU_INLINE   static inline __attribute__((always_inline))
#define EMU_OUTLINED static __attribute__((noinline, unused))

typedef uint32_t emu_u32s[EMU_LANES];
typedef uint64_t emu_u64s[EMU_LANES];

EMU_INLINE float emu_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

EMU_INLINE uint32_t emu_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

EMU_INLINE double emu_double(uint64_t u)
{
    double f;
    memcpy(&f, &u, sizeof f);
    return f;
}

EMU_INLINE uint64_t emu_bits64(double f)
{
    uint64_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

EMU_INLINE bool emu_has_fault(const emu_wave *w, emu_fault fault)
{
    return __builtin_expect(w->group->launch->fault == fault, 0);
}

EMU_INLINE uint64_t emu_s64(const emu_wave *w, unsigned reg)
{
    return w->s[reg] | (uint64_t)w->s[reg + 1] << 32;
}

EMU_INLINE void emu_set_s64(emu_wave *w, unsigned reg, uint64_t v)
{
    w->s[reg] = (uint32_t)v;
    w->s[reg + 1] = (uint32_t)(v >> 32);
}

EMU_INLINE uint64_t emu_exec(const emu_wave *w)
{
    return emu_s64(w, EMU_EXEC);
}

/// A word of an operand that is the same on all lanes.
EMU_INLINE uint32_t emu_scalar_word(const emu_wave *w, const emu_operand *o, int word)
{
    switch (o->kind) {
    case EMU_SCALAR:
        return word < o->words ? w->s[o->reg + word] : 0;
    case EMU_CONST:
        return o->value[word];
    case EMU_SCC:
        return word == 0 ? w->scc : 0;
    default:
        return 0;
    }
}

EMU_INLINE uint32_t emu_changed(uint32_t v, const emu_operand *o)
{
    return (v & o->keep) ^ o->flip;
}

EMU_INLINE uint32_t emu_selected(uint32_t v, unsigned sel, bool sign)
{
    switch (sel) {
    case EMU_BYTE_0:
    case EMU_BYTE_1:
    case EMU_BYTE_2:
    case EMU_BYTE_3: {
        const uint32_t byte = v >> (8 * (sel - EMU_BYTE_0)) & 0xFFu;
        return sign ? (uint32_t)(int32_t)(int8_t)byte : byte;
    }
    case EMU_WORD_0:
    case EMU_WORD_1: {
        const uint32_t word = v >> (16 * (sel - EMU_WORD_0)) & 0xFFFFu;
        return sign ? (uint32_t)(int32_t)(int16_t)word : word;
    }
    default:
        return v;
    }
}

/// The register of a vector operand; `bit` of s_set_gpr_idx_on is 0 .. 2 for sources, 3 for
/// results.
EMU_INLINE unsigned emu_register(emu_wave *w, const emu_operand *o, int word, int bit)
{
    unsigned reg = o->reg + (unsigned)word;
    if (w->index_mode & 1u << bit) {
        reg = (reg & EMU_AGPR0) + ((reg + (w->s[EMU_M0] & 0xFFu)) & 0xFFu);
    }
    return reg;
}

EMU_OUTLINED const uint32_t *emu_lanes_changed(emu_wave *w, const emu_inst *in, int k, int word,
                                               emu_u32s tmp)
{
    const emu_operand *o = &in->o[k];
    const bool last = word == o->words - 1;
    const bool half = (in->row->type == EMU_TYPE_F16 || in->row->type == EMU_TYPE_U16) &&
                      !in->sdwa && (in->op_sel >> (k - 1) & 1u);
    if (o->kind != EMU_VECTOR) {
        uint32_t v = emu_selected(emu_scalar_word(w, o, word), o->sel, o->sext);
        v = half ? v >> 16 : v;
        v = last || o->kind == EMU_CONST ? emu_changed(v, o) : v;
        EMU_EACH(l)
        {
            tmp[l] = v;
        }
        return tmp;
    }
    const uint32_t *from = w->v[emu_register(w, o, word, k > 0 && k < 4 ? k - 1 : 0)];
    if (in->dpp && k == 1) {
        const uint64_t exec = emu_exec(w);
        EMU_EACH(l)
        {
            const unsigned at = in->dpp_from[l];
            tmp[l] = at < EMU_LANES && exec >> at & 1u ? from[at] : 0;
        }
    } else {
        EMU_EACH(l)
        {
            tmp[l] = from[l];
        }
    }
    if (o->sel != EMU_DWORD) {
        EMU_EACH(l)
        {
            tmp[l] = emu_selected(tmp[l], o->sel, o->sext);
        }
    }
    if (half) {
        EMU_EACH(l)
        {
            tmp[l] >>= 16;
        }
    }
    if (last) {
        EMU_EACH(l)
        {
            tmp[l] = emu_changed(tmp[l], o);
        }
    }
    return tmp;
}

/// Source k (1 is the first) on all lanes. `tmp` holds what is not a register as it is.
EMU_INLINE const uint32_t *emu_lanes(emu_wave *w, const emu_inst *in, int k, int word, emu_u32s tmp)
{
    const emu_operand *o = &in->o[k];
    if (o->plain && w->index_mode == 0) {
        return w->v[o->reg + word];
    }
    return emu_lanes_changed(w, in, k, word, tmp);
}

/// The same as 64 bits; an operand of one register has zeros above.
EMU_INLINE void emu_lanes64(emu_wave *w, const emu_inst *in, int k, emu_u64s out)
{
    emu_u32s low;
    emu_u32s high;
    const uint32_t *lo = emu_lanes(w, in, k, 0, low);
    if (in->o[k].words < 2 && in->o[k].kind != EMU_CONST) {
        EMU_EACH(l)
        {
            out[l] = lo[l];
        }
        return;
    }
    const uint32_t *hi = emu_lanes(w, in, k, 1, high);
    EMU_EACH(l)
    {
        out[l] = lo[l] | (uint64_t)hi[l] << 32;
    }
}

EMU_INLINE const uint32_t *emu_mask(emu_wave *w, uint64_t exec)
{
    if (w->mask_exec != exec) {
        w->mask_exec = exec;
        EMU_EACH(l)
        {
            w->mask[l] = 0u - (uint32_t)(exec >> l & 1u);
        }
    }
    return w->mask;
}

/// Lanes that a vector instruction writes.
EMU_INLINE uint64_t emu_writes(emu_wave *w, const emu_inst *in)
{
    uint64_t exec = emu_exec(w);
    if (in->dpp) {
        uint64_t allowed = 0;
        EMU_EACH(l)
        {
            const unsigned from = in->dpp_from[l];
            const bool found = from < EMU_LANES && exec >> from & 1u;
            const bool masked =
                (unsigned)in->row_mask >> (l / 16) & (unsigned)in->bank_mask >> (l % 16 / 4) & 1u;
            allowed |= (uint64_t)(masked && (found || in->bound_ctrl)) << l;
        }
        exec &= allowed;
    }
    return exec;
}

EMU_OUTLINED void emu_put_special(emu_wave *w, const emu_inst *in, uint32_t *to,
                                  const uint32_t *out, uint64_t exec)
{
    EMU_EACH(l)
    {
        if (!(exec >> l & 1u)) {
            continue;
        }
        uint32_t v = out[l];
        if (in->sdwa && in->dst_sel != EMU_DWORD) {
            const unsigned byte = in->dst_sel <= EMU_BYTE_3;
            const unsigned shift =
                byte ? 8u * (in->dst_sel - EMU_BYTE_0) : 16u * (in->dst_sel - EMU_WORD_0);
            const uint32_t field = byte ? 0xFFu : 0xFFFFu;
            v = (v & field) << shift;
            if (in->dst_unused == EMU_PRESERVE) {
                v |= to[l] & ~(field << shift);
            } else if (in->dst_unused == EMU_SEXT && (out[l] & (field ^ field >> 1))) {
                v |= shift + (byte ? 8 : 16) < 32 ? ~0u << (shift + (byte ? 8 : 16)) : 0;
            }
        }
        to[l] = v;
    }
    (void)w;
}

/// Writes a word of the result where lanes are active.
EMU_INLINE void emu_put_word(emu_wave *w, const emu_inst *in, int word, const emu_u32s out)
{
    uint32_t *to = w->v[w->index_mode ? emu_register(w, &in->o[0], word, 3)
                                      : (unsigned)in->o[0].reg + (unsigned)word];
    const uint64_t exec = emu_exec(w);
    if (__builtin_expect(in->special, 0)) {
        emu_put_special(w, in, to, out, emu_writes(w, in));
        return;
    }
    if (exec == ~(uint64_t)0) {
        memcpy(to, out, sizeof(emu_u32s));
        return;
    }
    const uint32_t *mask = emu_mask(w, exec);
    EMU_EACH(l)
    {
        to[l] = (out[l] & mask[l]) | (to[l] & ~mask[l]);
    }
}

EMU_INLINE void emu_put(emu_wave *w, const emu_inst *in, const emu_u32s out)
{
    emu_put_word(w, in, 0, out);
}

EMU_INLINE void emu_put64(emu_wave *w, const emu_inst *in, const emu_u64s out)
{
    emu_u32s half;
    EMU_EACH(l)
    {
        half[l] = (uint32_t)out[l];
    }
    emu_put_word(w, in, 0, half);
    EMU_EACH(l)
    {
        half[l] = (uint32_t)(out[l] >> 32);
    }
    emu_put_word(w, in, 1, half);
}

/// A result of 16 bits beside what the register held.
EMU_INLINE void emu_put_half(emu_wave *w, const emu_inst *in, emu_u32s out)
{
    const uint32_t *old = w->v[in->o[0].reg];
    const bool upper = in->op_sel >> (in->num - 1) & 1u;
    EMU_EACH(l)
    {
        out[l] = upper ? (old[l] & 0xFFFFu) | out[l] << 16 : (old[l] & 0xFFFF0000u) | out[l];
    }
    emu_put(w, in, out);
}

/// A result of 16 bits with zeros above; op_sel writes the upper half and keeps the lower one.
EMU_INLINE void emu_put_16(emu_wave *w, const emu_inst *in, emu_u32s out)
{
    if (__builtin_expect(in->op_sel != 0, 0)) {
        emu_put_half(w, in, out);
        return;
    }
    emu_put(w, in, out);
}

/// A mask of lanes as a result: operand k is a pair of scalar registers. Inactive lanes give 0.
EMU_INLINE void emu_put_mask(emu_wave *w, const emu_inst *in, int k, uint64_t bits)
{
    emu_set_s64(w, in->o[k].reg, bits & emu_writes(w, in));
}

EMU_INLINE uint64_t emu_pack_mask(const emu_u32s truth)
{
    uint64_t bits = 0;
    EMU_EACH(l)
    {
        bits |= (uint64_t)(truth[l] & 1u) << l;
    }
    return bits;
}

/// A mask of lanes as a source.
EMU_INLINE uint64_t emu_lane_mask(const emu_wave *w, const emu_inst *in, int k)
{
    const emu_operand *o = &in->o[k];
    return emu_scalar_word(w, o, 0) | (uint64_t)emu_scalar_word(w, o, 1) << 32;
}

/// A scalar source with its modifiers.
EMU_INLINE uint32_t emu_s(const emu_wave *w, const emu_inst *in, int k)
{
    return emu_scalar_word(w, &in->o[k], 0);
}

EMU_INLINE uint64_t emu_ss(const emu_wave *w, const emu_inst *in, int k)
{
    return emu_scalar_word(w, &in->o[k], 0) | (uint64_t)emu_scalar_word(w, &in->o[k], 1) << 32;
}

// MODE: bits 4 and 5 keep subnormals of f32 as sources and as results, 6 and 7 those of f16 and
// f64.
enum {
    EMU_MODE_KEEP32_IN = 1 << 4,
    EMU_MODE_KEEP32_OUT = 1 << 5,
    EMU_MODE_IEEE = 1 << 9,
    EMU_MODE_FP16_OVFL = 1 << 23
};

EMU_INLINE uint32_t emu_flushed(uint32_t u)
{
    return (u & 0x7F800000u) == 0 ? u & 0x80000000u : u;
}

/// Sources of an instruction on f32 where MODE flushes their subnormals.
EMU_INLINE const uint32_t *emu_floats(emu_wave *w, const emu_inst *in, int k, emu_u32s tmp)
{
    const uint32_t *from = emu_lanes(w, in, k, 0, tmp);
    if (__builtin_expect(!(w->mode & EMU_MODE_KEEP32_IN), 0)) {
        EMU_EACH(l)
        {
            tmp[l] = emu_flushed(from[l]);
        }
        return tmp;
    }
    return from;
}

EMU_OUTLINED void emu_finish_floats(emu_wave *w, const emu_inst *in, emu_u32s out)
{
    static const float factor[4] = {1, 2, 4, 0.5f};
    EMU_EACH(l)
    {
        float f = emu_float(out[l]);
        if (in->omod) {
            f *= factor[in->omod];
        }
        if (in->clamp) {
            f = f > 0 ? (f < 1 ? f : 1.0f) : 0.0f; // NaN gives 0 (DX10_CLAMP)
        }
        out[l] = in->omod || in->clamp ? emu_bits(f) : out[l];
        if (!(w->mode & EMU_MODE_KEEP32_OUT)) {
            out[l] = emu_flushed(out[l]);
        }
    }
}

/// The result of an instruction on f32: multiplied, clamped, subnormals flushed, as asked.
EMU_INLINE void emu_put_floats(emu_wave *w, const emu_inst *in, emu_u32s out)
{
    if (__builtin_expect(in->omod || in->clamp || !(w->mode & EMU_MODE_KEEP32_OUT), 0)) {
        emu_finish_floats(w, in, out);
    }
    emu_put(w, in, out);
}

#endif
