// SPDX-License-Identifier: Apache-2.0
// Vector memory: global, flat and scratch. Memory is synchronous, so that waiting does nothing.
#include "emulator/atomic.h"
#include "emulator/floats.h"

// What a load makes of memory, or a store of a register.
enum {
    AS_U8,
    AS_I8,
    AS_U16,
    AS_I16,
    AS_WORDS, // AS_WORDS + n: n words
    AS_U8_LOW = AS_WORDS + 5,
    AS_U8_HIGH,
    AS_I8_LOW,
    AS_I8_HIGH,
    AS_16_LOW,
    AS_16_HIGH
};

typedef enum space { GLOBAL, FLAT, SCRATCH } space;

EMU_INLINE uint32_t bytes_of(unsigned as)
{
    if (as > AS_WORDS && as < AS_U8_LOW) {
        return 4 * (as - AS_WORDS);
    }
    return as <= AS_I8 || (as >= AS_U8_LOW && as <= AS_I8_HIGH) ? 1 : 2;
}

/// The memory of a lane. Flat addresses of LDS and private memory have a high half of their own.
EMU_INLINE uint8_t *at(emu_wave *w, int lane, uint64_t address, uint32_t bytes, bool write)
{
    const emu_range *r = &w->group->launch->ranges[w->last_range];
    if (__builtin_expect(
            address >= r->begin && address + bytes <= r->end && !(write && r->read_only), 1)) {
        return (uint8_t *)(uintptr_t)address;
    }
    return emu_memory(w, lane, address, bytes, write);
}

static uint8_t *in_scratch(emu_wave *w, int lane, uint64_t address, uint32_t bytes)
{
    const uint32_t size = w->group->launch->kernel->private_bytes;
    if (address + bytes > size) {
        emu_fail(w, lane, "%u bytes at %llu of private memory, which has %u", bytes,
                 (unsigned long long)address, size);
        return NULL;
    }
    return w->scratch + (size_t)lane * size + address;
}

static uint8_t *find(emu_wave *w, int lane, space s, uint64_t address, uint32_t bytes,
                     emu_access access, const void *data)
{
    if (s == SCRATCH || (s == FLAT && address >> 32 == EMU_PRIVATE_APERTURE)) {
        return in_scratch(w, lane, (uint32_t)address, bytes);
    }
    if (s == FLAT && address >> 32 == EMU_SHARED_APERTURE) {
        return emu_lds(w, lane, (uint32_t)address, bytes, access, data);
    }
    return at(w, lane, address, bytes, access != EMU_READ);
}

/// Addresses of all lanes: `vector` and `scalar` are the operands.
EMU_INLINE void addresses(emu_wave *w, const emu_inst *in, space s, int vector, int scalar,
                          emu_u64s out)
{
    const emu_operand *v = &in->o[vector];
    const uint64_t offset = (uint64_t)(int64_t)in->offset;
    if (s == SCRATCH) {
        const uint32_t base =
            (in->o[scalar].kind == EMU_NONE ? 0 : emu_s(w, in, scalar)) + (uint32_t)in->offset;
        EMU_EACH(l)
        {
            out[l] = base + (v->kind == EMU_NONE ? 0 : w->v[v->reg][l]);
        }
        return;
    }
    if (s == FLAT || in->o[scalar].kind == EMU_NONE) {
        const uint32_t *lo = w->v[v->reg];
        const uint32_t *hi = w->v[v->reg + 1];
        EMU_EACH(l)
        {
            out[l] = (lo[l] | (uint64_t)hi[l] << 32) + offset;
        }
        return;
    }
    const uint64_t base = emu_ss(w, in, scalar) + offset;
    const uint32_t *lo = w->v[v->reg];
    EMU_EACH(l)
    {
        out[l] = base + lo[l];
    }
}

static void load(emu_wave *w, const emu_inst *in, space s)
{
    const unsigned as = in->row->detail;
    const uint32_t bytes = bytes_of(as);
    const uint64_t exec = emu_exec(w);
    const unsigned reg = in->o[0].reg;
    emu_u64s address;
    addresses(w, in, s, 1, 2, address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!(exec >> l & 1u)) {
            continue;
        }
        const uint8_t *from = find(w, l, s, address[l], bytes, EMU_READ, NULL);
        if (from == NULL) {
            return;
        }
        uint32_t v[4] = {0, 0, 0, 0};
        memcpy(v, from, bytes);
        const uint32_t old = w->v[reg][l];
        switch (as) {
        case AS_I8:
            v[0] = (uint32_t)(int32_t)(int8_t)v[0];
            break;
        case AS_I16:
            v[0] = (uint32_t)(int32_t)(int16_t)v[0];
            break;
        case AS_I8_LOW:
            v[0] = (uint32_t)(int32_t)(int8_t)v[0] & 0xFFFFu;
            // fall through
        case AS_U8_LOW:
        case AS_16_LOW:
            v[0] |= old & 0xFFFF0000u;
            break;
        case AS_I8_HIGH:
            v[0] = (uint32_t)(int32_t)(int8_t)v[0] & 0xFFFFu;
            // fall through
        case AS_U8_HIGH:
        case AS_16_HIGH:
            v[0] = v[0] << 16 | (old & 0xFFFFu);
            break;
        default:
            break;
        }
        w->v[reg][l] = v[0];
        for (uint32_t i = 1; 4 * i < bytes; i++) {
            w->v[reg + i][l] = v[i];
        }
    }
}

static void store(emu_wave *w, const emu_inst *in, space s)
{
    const unsigned as = in->row->detail;
    const uint32_t bytes = bytes_of(as);
    const bool high = as == AS_U8_HIGH || as == AS_16_HIGH;
    const uint64_t exec = emu_exec(w);
    const unsigned reg = in->o[1].reg;
    emu_u64s address;
    addresses(w, in, s, 0, 2, address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!(exec >> l & 1u)) {
            continue;
        }
        uint32_t v[4] = {w->v[reg][l] >> (high ? 16 : 0), 0, 0, 0};
        for (uint32_t i = 1; 4 * i < bytes; i++) {
            v[i] = w->v[reg + i][l];
        }
        uint8_t *to = find(w, l, s, address[l], bytes, EMU_WRITE, v);
        if (to == NULL) {
            return;
        }
        memcpy(to, v, bytes);
    }
}

static void run_global_load(emu_wave *w, const emu_inst *in)
{
    load(w, in, GLOBAL);
}

static void run_flat_load(emu_wave *w, const emu_inst *in)
{
    load(w, in, FLAT);
}

static void run_scratch_load(emu_wave *w, const emu_inst *in)
{
    load(w, in, SCRATCH);
}

static void run_global_store(emu_wave *w, const emu_inst *in)
{
    store(w, in, GLOBAL);
}

static void run_flat_store(emu_wave *w, const emu_inst *in)
{
    store(w, in, FLAT);
}

static void run_scratch_store(emu_wave *w, const emu_inst *in)
{
    store(w, in, SCRATCH);
}

// LDS address: M0, the offset, and the lane's place.
static void run_global_load_lds(emu_wave *w, const emu_inst *in)
{
    const uint32_t bytes = 4u * in->row->detail;
    const uint64_t exec = emu_exec(w);
    emu_u64s address;
    addresses(w, in, GLOBAL, 0, 1, address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!(exec >> l & 1u)) {
            continue;
        }
        const uint8_t *from = at(w, l, address[l], bytes, false);
        if (from == NULL) {
            return;
        }
        const uint32_t to = (w->s[EMU_M0] & 0xFFFFFu) + (uint32_t)in->offset + bytes * (uint32_t)l;
        uint8_t *lds = emu_lds(w, l, to, bytes, EMU_WRITE, from);
        if (lds == NULL) {
            return;
        }
        memcpy(lds, from, bytes);
    }
}

// ---- atomic
enum {
    ADD_F32 = EMU_ATOMIC_FLOATS,
    PK_ADD_F16,
    PK_ADD_BF16,
    ADD_F64,
    MIN_F64,
    MAX_F64,
    WIDE = 32 // 64 bits
};

static uint32_t atomic32(unsigned op, uint32_t old, uint32_t v, uint32_t compare)
{
    if (op < EMU_ATOMIC_FLOATS) {
        return (uint32_t)emu_atomic_integer(op, old, v, compare, false);
    }
    if (op == ADD_F32) {
        return emu_bits(emu_float(old) + emu_float(v));
    }
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 16) {
        const uint16_t a = (uint16_t)(old >> i);
        const uint16_t b = (uint16_t)(v >> i);
        r |= (uint32_t)(op == PK_ADD_F16
                            ? moei_f32_to_f16(moei_f16_to_f32(a) + moei_f16_to_f32(b))
                            : moei_f32_to_bf16(moei_bf16_to_f32(a) + moei_bf16_to_f32(b)))
             << i;
    }
    return r;
}

static uint64_t atomic64(unsigned op, uint64_t old, uint64_t v, uint64_t compare)
{
    if (op < EMU_ATOMIC_FLOATS) {
        return emu_atomic_integer(op, old, v, compare, true);
    }
    const double a = emu_double(old);
    const double b = emu_double(v);
    return emu_bits64(op == ADD_F64 ? a + b : op == MIN_F64 ? fmin(a, b) : fmax(a, b));
}

/// One lane after the other, in ascending order.
static void atomic(emu_wave *w, const emu_inst *in, space s)
{
    const unsigned op = in->row->detail & (WIDE - 1u);
    const bool wide = in->row->detail & WIDE;
    const int first = in->sc0 ? 1 : 0; // the old value goes to operand 0
    const unsigned from = in->o[first + 1].reg;
    const uint64_t exec = emu_exec(w);
    emu_u64s address;
    addresses(w, in, s, first, first + 2, address);
    for (int l = 0; l < EMU_LANES; l++) {
        if (!(exec >> l & 1u)) {
            continue;
        }
        uint8_t *memory = find(w, l, s, address[l], wide ? 8 : 4, EMU_ATOMIC, NULL);
        if (memory == NULL) {
            return;
        }
        if (wide) {
            uint64_t old;
            memcpy(&old, memory, 8);
            const uint64_t v = w->v[from][l] | (uint64_t)w->v[from + 1][l] << 32;
            const uint64_t compare = op == EMU_ATOMIC_COMPARE
                                         ? w->v[from + 2][l] | (uint64_t)w->v[from + 3][l] << 32
                                         : 0;
            const uint64_t r = atomic64(op, old, v, compare);
            memcpy(memory, &r, 8);
            if (in->sc0) {
                w->v[in->o[0].reg][l] = (uint32_t)old;
                w->v[in->o[0].reg + 1][l] = (uint32_t)(old >> 32);
            }
        } else {
            uint32_t old;
            memcpy(&old, memory, 4);
            const uint32_t r =
                atomic32(op, old, w->v[from][l], op == EMU_ATOMIC_COMPARE ? w->v[from + 1][l] : 0);
            memcpy(memory, &r, 4);
            if (in->sc0) {
                w->v[in->o[0].reg][l] = old;
            }
        }
    }
}

static void run_global_atomic(emu_wave *w, const emu_inst *in)
{
    atomic(w, in, GLOBAL);
}

static void run_flat_atomic(emu_wave *w, const emu_inst *in)
{
    atomic(w, in, FLAT);
}

#define ROW(name, run, detail)                                                                     \
    {                                                                                              \
        name, run, EMU_TYPE_U64, EMU_ANY, detail                                                   \
    }
#define SPACES_LOAD(name, as)                                                                      \
    ROW("global_load_" name, run_global_load, as), ROW("flat_load_" name, run_flat_load, as),      \
        ROW("scratch_load_" name, run_scratch_load, as)
#define SPACES_STORE(name, as)                                                                     \
    ROW("global_store_" name, run_global_store, as), ROW("flat_store_" name, run_flat_store, as),  \
        ROW("scratch_store_" name, run_scratch_store, as)
#define SPACES_ATOMIC(name, op)                                                                    \
    ROW("global_atomic_" name, run_global_atomic, op), ROW("flat_atomic_" name, run_flat_atomic, op)
#define WIDTHS_ATOMIC(name, op) SPACES_ATOMIC(name, op), SPACES_ATOMIC(name "_x2", (op) | WIDE)

static const emu_row table[] = {
    SPACES_LOAD("ubyte", AS_U8),
    SPACES_LOAD("sbyte", AS_I8),
    SPACES_LOAD("ushort", AS_U16),
    SPACES_LOAD("sshort", AS_I16),
    SPACES_LOAD("dword", AS_WORDS + 1),
    SPACES_LOAD("dwordx2", AS_WORDS + 2),
    SPACES_LOAD("dwordx3", AS_WORDS + 3),
    SPACES_LOAD("dwordx4", AS_WORDS + 4),
    SPACES_LOAD("ubyte_d16", AS_U8_LOW),
    SPACES_LOAD("ubyte_d16_hi", AS_U8_HIGH),
    SPACES_LOAD("sbyte_d16", AS_I8_LOW),
    SPACES_LOAD("sbyte_d16_hi", AS_I8_HIGH),
    SPACES_LOAD("short_d16", AS_16_LOW),
    SPACES_LOAD("short_d16_hi", AS_16_HIGH),
    SPACES_STORE("byte", AS_U8),
    SPACES_STORE("short", AS_U16),
    SPACES_STORE("dword", AS_WORDS + 1),
    SPACES_STORE("dwordx2", AS_WORDS + 2),
    SPACES_STORE("dwordx3", AS_WORDS + 3),
    SPACES_STORE("dwordx4", AS_WORDS + 4),
    SPACES_STORE("byte_d16_hi", AS_U8_HIGH),
    SPACES_STORE("short_d16_hi", AS_16_HIGH),
    ROW("global_load_lds_dword", run_global_load_lds, 1),
    {"global_load_lds_dwordx3", run_global_load_lds, EMU_TYPE_U64, EMU_GFX950, 3},
    {"global_load_lds_dwordx4", run_global_load_lds, EMU_TYPE_U64, EMU_GFX950, 4},
    WIDTHS_ATOMIC("add", EMU_ATOMIC_ADD),
    WIDTHS_ATOMIC("sub", EMU_ATOMIC_SUB),
    WIDTHS_ATOMIC("smin", EMU_ATOMIC_MIN_I),
    WIDTHS_ATOMIC("umin", EMU_ATOMIC_MIN_U),
    WIDTHS_ATOMIC("smax", EMU_ATOMIC_MAX_I),
    WIDTHS_ATOMIC("umax", EMU_ATOMIC_MAX_U),
    WIDTHS_ATOMIC("and", EMU_ATOMIC_AND),
    WIDTHS_ATOMIC("or", EMU_ATOMIC_OR),
    WIDTHS_ATOMIC("xor", EMU_ATOMIC_XOR),
    WIDTHS_ATOMIC("swap", EMU_ATOMIC_SWAP),
    WIDTHS_ATOMIC("cmpswap", EMU_ATOMIC_COMPARE),
    WIDTHS_ATOMIC("inc", EMU_ATOMIC_INC),
    WIDTHS_ATOMIC("dec", EMU_ATOMIC_DEC),
    SPACES_ATOMIC("add_f32", ADD_F32),
    SPACES_ATOMIC("pk_add_f16", PK_ADD_F16),
    SPACES_ATOMIC("pk_add_bf16", PK_ADD_BF16),
    SPACES_ATOMIC("add_f64", ADD_F64 | WIDE),
    SPACES_ATOMIC("min_f64", MIN_F64 | WIDE),
    SPACES_ATOMIC("max_f64", MAX_F64 | WIDE),
};

const emu_rows EMU_ROWS_OF(global) = {table, sizeof table / sizeof table[0]};
