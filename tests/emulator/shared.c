// SPDX-License-Identifier: Apache-2.0
// LDS, and what lanes exchange through its crossbar.
#include "emulator/atomic.h"
#include "emulator/floats.h"

enum {
    R_WORDS,
    R_U8 = 8,
    R_I8,
    R_U16,
    R_I16,
    R_U8_LOW,
    R_U8_HIGH,
    R_I8_LOW,
    R_I8_HIGH,
    R_16_LOW,
    R_16_HIGH
};

EMU_INLINE bool active(uint64_t exec, int l)
{
    return exec >> l & 1u;
}

// detail: words, or one of the above
static void run_read(emu_wave *w, const emu_inst *in)
{
    const unsigned as = in->row->detail;
    const uint32_t bytes = as < R_U8                                      ? 4 * as
                           : as == R_U16 || as == R_I16 || as >= R_16_LOW ? 2
                                                                          : 1;
    const uint64_t exec = emu_exec(w);
    const unsigned reg = in->o[0].reg;
    emu_u32s address;
    memcpy(address, w->v[in->o[1].reg], sizeof address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!active(exec, l)) {
            continue;
        }
        const uint8_t *from =
            emu_lds(w, l, address[l] + (uint32_t)in->offset, bytes, EMU_READ, NULL);
        if (from == NULL) {
            return;
        }
        if (as < R_U8) {
            for (unsigned i = 0; i < as; i++) {
                memcpy(&w->v[reg + i][l], from + 4 * i, 4);
            }
            continue;
        }
        const uint32_t old = w->v[reg][l];
        uint32_t v = 0;
        memcpy(&v, from, bytes);
        switch (as) {
        case R_I8:
            v = (uint32_t)(int32_t)(int8_t)v;
            break;
        case R_I16:
            v = (uint32_t)(int32_t)(int16_t)v;
            break;
        case R_I8_LOW:
        case R_I8_HIGH:
            v = (uint32_t)(int32_t)(int8_t)v & 0xFFFFu;
            break;
        default:
            break;
        }
        if (as == R_U8_LOW || as == R_I8_LOW || as == R_16_LOW) {
            v |= old & 0xFFFF0000u;
        } else if (as == R_U8_HIGH || as == R_I8_HIGH || as == R_16_HIGH) {
            v = v << 16 | (old & 0xFFFFu);
        }
        w->v[reg][l] = v;
    }
}

// detail: bytes; 16 more: from the upper half
static void run_write(emu_wave *w, const emu_inst *in)
{
    const bool high = in->row->detail > 16;
    const uint32_t bytes = in->row->detail - (high ? 16u : 0u);
    const uint64_t exec = emu_exec(w);
    const unsigned reg = in->o[1].reg;
    for (int l = 0; l < EMU_LANES; l++) {
        if (!active(exec, l)) {
            continue;
        }
        uint32_t v[4] = {w->v[reg][l] >> (high ? 16 : 0), 0, 0, 0};
        for (uint32_t i = 1; 4 * i < bytes; i++) {
            v[i] = w->v[reg + i][l];
        }
        uint8_t *to =
            emu_lds(w, l, w->v[in->o[0].reg][l] + (uint32_t)in->offset, bytes, EMU_WRITE, v);
        if (to == NULL) {
            return;
        }
        memcpy(to, v, bytes);
    }
}

// detail: words of each of the two; 16 more: offsets count 64 elements
static void run_read2(emu_wave *w, const emu_inst *in)
{
    const unsigned words = in->row->detail & 15u;
    const uint32_t step = 4 * words * (in->row->detail & 16u ? 64 : 1);
    const uint32_t offsets[2] = {(uint32_t)in->offset0 * step, (uint32_t)in->offset1 * step};
    const uint64_t exec = emu_exec(w);
    emu_u32s address;
    memcpy(address, w->v[in->o[1].reg], sizeof address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!active(exec, l)) {
            continue;
        }
        for (unsigned k = 0; k < 2; k++) {
            const uint8_t *from = emu_lds(w, l, address[l] + offsets[k], 4 * words, EMU_READ, NULL);
            if (from == NULL) {
                return;
            }
            for (unsigned i = 0; i < words; i++) {
                memcpy(&w->v[in->o[0].reg + k * words + i][l], from + 4 * i, 4);
            }
        }
    }
}

static void run_write2(emu_wave *w, const emu_inst *in)
{
    const unsigned words = in->row->detail & 15u;
    const uint32_t step = 4 * words * (in->row->detail & 16u ? 64 : 1);
    const uint32_t offsets[2] = {(uint32_t)in->offset0 * step, (uint32_t)in->offset1 * step};
    const uint64_t exec = emu_exec(w);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!active(exec, l)) {
            continue;
        }
        for (unsigned k = 0; k < 2; k++) {
            uint32_t v[2] = {0, 0};
            for (unsigned i = 0; i < words; i++) {
                v[i] = w->v[in->o[1 + k].reg + i][l];
            }
            uint8_t *to =
                emu_lds(w, l, w->v[in->o[0].reg][l] + offsets[k], 4 * words, EMU_WRITE, v);
            if (to == NULL) {
                return;
            }
            memcpy(to, v, 4 * words);
        }
    }
}

// ---- atomic
enum { ADD_F = EMU_ATOMIC_FLOATS, MIN_F, MAX_F, WIDE = 32, RETURNS = 64 };

static uint64_t combined(unsigned op, uint64_t old, uint64_t v, uint64_t v2, bool wide)
{
    switch (op) {
    case EMU_ATOMIC_COMPARE: // the first register is compared with, the second stored
        return emu_atomic_integer(op, old, v2, v, wide);
    case ADD_F:
        return emu_bits(emu_float((uint32_t)old) + emu_float((uint32_t)v));
    case MIN_F:
        return emu_min_bits((uint32_t)old, (uint32_t)v);
    case MAX_F:
        return emu_max_bits((uint32_t)old, (uint32_t)v);
    default:
        return emu_atomic_integer(op, old, v, 0, wide);
    }
}

static void run_atomic(emu_wave *w, const emu_inst *in)
{
    const unsigned detail = in->row->detail;
    const bool wide = detail & WIDE;
    const bool returns = detail & RETURNS;
    const int first = returns ? 1 : 0;
    const uint32_t bytes = wide ? 8 : 4;
    const uint64_t exec = emu_exec(w);
    emu_u32s address;
    memcpy(address, w->v[in->o[first].reg], sizeof address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!active(exec, l)) {
            continue;
        }
        uint8_t *memory = emu_lds(w, l, address[l] + (uint32_t)in->offset, bytes, EMU_ATOMIC, NULL);
        if (memory == NULL) {
            return;
        }
        uint64_t v[2] = {0, 0};
        for (int k = 0; k < 2 && first + 1 + k < in->num; k++) {
            const unsigned reg = in->o[first + 1 + k].reg;
            v[k] = w->v[reg][l] | (wide ? (uint64_t)w->v[reg + 1][l] << 32 : 0);
        }
        uint64_t old = 0;
        memcpy(&old, memory, bytes);
        const uint64_t r = combined(detail & 31u, old, v[0], v[1], wide);
        memcpy(memory, &r, bytes);
        if (returns) {
            w->v[in->o[0].reg][l] = (uint32_t)old;
            if (wide) {
                w->v[in->o[0].reg + 1][l] = (uint32_t)(old >> 32);
            }
        }
    }
}

// ---- lanes
static void run_bpermute(emu_wave *w, const emu_inst *in)
{
    const uint64_t exec = emu_exec(w);
    const uint32_t *address = w->v[in->o[1].reg];
    const uint32_t *from = w->v[in->o[2].reg];
    const uint32_t beside = emu_has_fault(w, EMU_FAULT_LANES);
    emu_u32s out;
    EMU_EACH(l)
    {
        const uint32_t at = ((address[l] + (uint32_t)in->offset) >> 2 & 63u) ^ beside;
        out[l] = active(exec, (int)at) ? from[at] : 0;
    }
    emu_put(w, in, out);
}

static void run_permute(emu_wave *w, const emu_inst *in)
{
    const uint64_t exec = emu_exec(w);
    emu_u32s out = {0};
    EMU_EACH(l)
    {
        if (active(exec, l)) {
            out[(w->v[in->o[1].reg][l] + (uint32_t)in->offset) >> 2 & 63u] = w->v[in->o[2].reg][l];
        }
    }
    emu_put(w, in, out);
}

// The offset: with bit 15, four times two bits choose within quads; else within 32 lanes
// ((lane & and) | or) ^ xor, five bits each.
static void run_swizzle(emu_wave *w, const emu_inst *in)
{
    const uint64_t exec = emu_exec(w);
    const uint32_t *from = w->v[in->o[1].reg];
    const unsigned mode = (unsigned)in->offset;
    emu_u32s out;
    EMU_EACH(l)
    {
        const unsigned lane = (unsigned)l;
        const unsigned at =
            mode & 0x8000u ? (lane & ~3u) | (mode >> (2 * (lane & 3u)) & 3u)
                           : (lane & 32u) | ((((lane & 31u) & (mode & 31u)) | (mode >> 5 & 31u)) ^
                                             (mode >> 10 & 31u));
        out[l] = active(exec, (int)at) ? from[at] : 0;
    }
    emu_put(w, in, out);
}

#define ROW(name, run, detail)                                                                     \
    {                                                                                              \
        name, run, EMU_TYPE_U32, EMU_ANY, detail                                                   \
    }
#define ATOMIC(name, rtn, type, op)                                                                \
    ROW("ds_" name type, run_atomic, op), ROW("ds_" rtn type, run_atomic, (op) | RETURNS)

static const emu_row table[] = {
    ROW("ds_read_b32", run_read, 1),
    ROW("ds_read_b64", run_read, 2),
    ROW("ds_read_b96", run_read, 3),
    ROW("ds_read_b128", run_read, 4),
    ROW("ds_read_u8", run_read, R_U8),
    ROW("ds_read_i8", run_read, R_I8),
    ROW("ds_read_u16", run_read, R_U16),
    ROW("ds_read_i16", run_read, R_I16),
    ROW("ds_read_u8_d16", run_read, R_U8_LOW),
    ROW("ds_read_u8_d16_hi", run_read, R_U8_HIGH),
    ROW("ds_read_i8_d16", run_read, R_I8_LOW),
    ROW("ds_read_i8_d16_hi", run_read, R_I8_HIGH),
    ROW("ds_read_u16_d16", run_read, R_16_LOW),
    ROW("ds_read_u16_d16_hi", run_read, R_16_HIGH),
    ROW("ds_read2_b32", run_read2, 1),
    ROW("ds_read2_b64", run_read2, 2),
    ROW("ds_read2st64_b32", run_read2, 1 + 16),
    ROW("ds_read2st64_b64", run_read2, 2 + 16),
    ROW("ds_write_b8", run_write, 1),
    ROW("ds_write_b16", run_write, 2),
    ROW("ds_write_b8_d16_hi", run_write, 1 + 16),
    ROW("ds_write_b16_d16_hi", run_write, 2 + 16),
    ROW("ds_write_b32", run_write, 4),
    ROW("ds_write_b64", run_write, 8),
    ROW("ds_write_b96", run_write, 12),
    ROW("ds_write_b128", run_write, 16),
    ROW("ds_write2_b32", run_write2, 1),
    ROW("ds_write2_b64", run_write2, 2),
    ROW("ds_write2st64_b32", run_write2, 1 + 16),
    ROW("ds_write2st64_b64", run_write2, 2 + 16),
    ATOMIC("add_", "add_rtn_", "u32", EMU_ATOMIC_ADD),
    ATOMIC("sub_", "sub_rtn_", "u32", EMU_ATOMIC_SUB),
    ATOMIC("min_", "min_rtn_", "i32", EMU_ATOMIC_MIN_I),
    ATOMIC("min_", "min_rtn_", "u32", EMU_ATOMIC_MIN_U),
    ATOMIC("max_", "max_rtn_", "i32", EMU_ATOMIC_MAX_I),
    ATOMIC("max_", "max_rtn_", "u32", EMU_ATOMIC_MAX_U),
    ATOMIC("and_", "and_rtn_", "b32", EMU_ATOMIC_AND),
    ATOMIC("or_", "or_rtn_", "b32", EMU_ATOMIC_OR),
    ATOMIC("xor_", "xor_rtn_", "b32", EMU_ATOMIC_XOR),
    ATOMIC("inc_", "inc_rtn_", "u32", EMU_ATOMIC_INC),
    ATOMIC("dec_", "dec_rtn_", "u32", EMU_ATOMIC_DEC),
    ATOMIC("add_", "add_rtn_", "f32", ADD_F),
    ATOMIC("min_", "min_rtn_", "f32", MIN_F),
    ATOMIC("max_", "max_rtn_", "f32", MAX_F),
    ATOMIC("cmpst_", "cmpst_rtn_", "b32", EMU_ATOMIC_COMPARE),
    ROW("ds_wrxchg_rtn_b32", run_atomic, EMU_ATOMIC_SWAP | RETURNS),
    ATOMIC("add_", "add_rtn_", "u64", EMU_ATOMIC_ADD | WIDE),
    ATOMIC("sub_", "sub_rtn_", "u64", EMU_ATOMIC_SUB | WIDE),
    ATOMIC("min_", "min_rtn_", "i64", EMU_ATOMIC_MIN_I | WIDE),
    ATOMIC("min_", "min_rtn_", "u64", EMU_ATOMIC_MIN_U | WIDE),
    ATOMIC("max_", "max_rtn_", "i64", EMU_ATOMIC_MAX_I | WIDE),
    ATOMIC("max_", "max_rtn_", "u64", EMU_ATOMIC_MAX_U | WIDE),
    ATOMIC("and_", "and_rtn_", "b64", EMU_ATOMIC_AND | WIDE),
    ATOMIC("or_", "or_rtn_", "b64", EMU_ATOMIC_OR | WIDE),
    ATOMIC("xor_", "xor_rtn_", "b64", EMU_ATOMIC_XOR | WIDE),
    ATOMIC("cmpst_", "cmpst_rtn_", "b64", EMU_ATOMIC_COMPARE | WIDE),
    ROW("ds_wrxchg_rtn_b64", run_atomic, EMU_ATOMIC_SWAP | RETURNS | WIDE),
    ROW("ds_bpermute_b32", run_bpermute, 0),
    ROW("ds_permute_b32", run_permute, 0),
    ROW("ds_swizzle_b32", run_swizzle, 0),
};

const emu_rows EMU_ROWS_OF(shared) = {table, sizeof table / sizeof table[0]};
