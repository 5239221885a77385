// SPDX-License-Identifier: Apache-2.0
// MFMA with one block. A is M x K, B is K x N, M = N = 16 or 32, K = 64 K_L / M:
//   A[i][k] and B[k][j]: lane i + M (k / K_L), item k mod K_L
//   D[i][j]:             lane j + N (i / 4 mod (64 / N)), item i mod 4 + 4 (i / (4 (64 / N)))
// 8-bit operands of f8f6f4 lie in two halves: items 0 .. 15 are k = 16 g .., items 16 .. 31 are
// k = K / 2 + 16 g .., where g = lane / M. EXEC is ignored. The order in which the hardware sums is
// not known: MOE_EMULATOR_SUM=0 is a chain of fma over ascending k, 1 sums four products (of
// f8f6f4: a block of 32) exactly and rounds with the accumulator, without subnormals.
// MOE_EMULATOR_FAULT (faults.def) makes another matrix unit of it.
#include "emulator/small.h"

typedef enum source { F32, F16, BF16, FP8, BF8, I8, F8F6F4 } source;

// detail: M = 32 is bit 0; then a: bits 1 .. 3, b: bits 4 .. 6; bit 7: K is twice as long (gfx950)
#define DETAIL(m, a, b, twice) (((m) == 32) | (a) << 1 | (b) << 4 | (twice) << 7)

enum { MAX_M = 32, MAX_K = 128 };

typedef struct shape {
    int m, k, blocks; // k in blocks that have a scale each
} shape;

EMU_INLINE int bits_of(emu_small format)
{
    return format == EMU_FP4 ? 4 : format == EMU_FP6 || format == EMU_BF6 ? 6 : 8;
}

/// Item `i` of `bits` bits each in the registers from `reg` on.
EMU_INLINE uint32_t item(const emu_wave *w, unsigned reg, int lane, int i, int bits)
{
    const int at = i * bits;
    const uint32_t low = w->v[reg + (unsigned)at / 32][lane] >> (at % 32);
    if (at % 32 + bits <= 32) {
        return bits == 32 ? low : low & ((1u << bits) - 1);
    }
    const uint32_t high = w->v[reg + (unsigned)at / 32 + 1][lane];
    return (low | high << (32 - at % 32)) & ((1u << bits) - 1);
}

/// Codes of 8 bits or fewer as floats.
static void fill_codes(float value[256], emu_arch arch, emu_small format)
{
    for (uint32_t c = 0; c < 1u << bits_of(format); c++) {
        value[c] = emu_small_value(arch, format, c);
    }
}

// Operands as another matrix unit has them.
static void spoil(const emu_wave *w, const emu_operand *o, const emu_inst *in, shape s, source kind,
                  float v[MAX_K][MAX_M])
{
    for (int k = 0; k < s.k; k++) {
        for (int row = 0; row < s.m; row++) {
            float *f = &v[k][row];
            const uint32_t bits = emu_bits(*f);
            if (emu_has_fault(w, EMU_FAULT_MFMA_K) && o == &in->o[1] && k % 2 != 0) {
                const float other = v[k - 1][row];
                v[k - 1][row] = *f;
                *f = other;
            } else if (emu_has_fault(w, EMU_FAULT_MFMA_FLUSH) && kind == BF16) {
                *f = emu_float(emu_flushed(bits));
            } else if (emu_has_fault(w, EMU_FAULT_MFMA_TRUNCATE) && kind == BF16) {
                *f = emu_float(bits & 0xFFFE0000u);
            } else if (emu_has_fault(w, EMU_FAULT_MFMA_NAN) && emu_is_nan(bits)) {
                *f = 0;
            }
        }
    }
}

/// An operand as [k][row].
static void unpack(const emu_wave *w, const emu_inst *in, int operand, shape s, source kind,
                   emu_small format, float out[MAX_K][MAX_M])
{
    const emu_operand *o = &in->o[operand];
    const int groups = EMU_LANES / s.m;
    const int items = s.k / groups;
    const bool halves = kind == F8F6F4 && bits_of(format) == 8 && !emu_has_fault(w, EMU_FAULT_MX_K);
    const int bits = kind == F32 ? 32 : kind == F16 || kind == BF16 ? 16 : bits_of(format);
    float value[256];
    if (bits <= 8) {
        fill_codes(value, w->group->launch->arch, format);
    }
    for (int g = 0; g < groups; g++) {
        for (int i = 0; i < items; i++) {
            const int k = halves ? (i / 16) * (s.k / 2) + 16 * g + i % 16 : items * g + i;
            const int at = i * bits % 32;
            const uint32_t *v = &w->v[o->reg + i * bits / 32][g * s.m];
            float *to = out[k];
            if (kind == F32) {
                memcpy(to, v, (size_t)s.m * sizeof *to);
            } else if (kind == BF16) {
                for (int row = 0; row < s.m; row++) {
                    to[row] = emu_float(v[row] >> at << 16);
                }
            } else if (kind == F16) {
                for (int row = 0; row < s.m; row++) {
                    to[row] = moei_f16_to_f32((uint16_t)(v[row] >> at));
                }
            } else if (bits == 8) {
                for (int row = 0; row < s.m; row++) {
                    to[row] = value[v[row] >> at & 0xFFu];
                }
            } else {
                for (int row = 0; row < s.m; row++) {
                    to[row] = value[item(w, o->reg, g * s.m + row, i, bits)];
                }
            }
        }
    }
    if (w->group->launch->fault != EMU_FAULT_NONE) {
        spoil(w, o, in, s, kind, out);
    }
}

/// The accumulator, as [i][j] of the layout of D.
EMU_INLINE unsigned place(int m, int i, int j, int *lane)
{
    const int rows = EMU_LANES / m;
    *lane = j + m * (i / 4 % rows);
    return (unsigned)(i % 4 + 4 * (i / (4 * rows)));
}

EMU_INLINE uint32_t taken(const emu_wave *w, const emu_operand *c, int m, int i, int j)
{
    int lane;
    const unsigned at = place(m, i, j, &lane);
    return c->kind == EMU_VECTOR ? w->v[c->reg + at][lane] : emu_scalar_word(w, c, 0);
}

EMU_INLINE void given(emu_wave *w, const emu_operand *d, int m, int i, int j, uint32_t v)
{
    int lane;
    const unsigned at = place(m, i, j, &lane);
    w->v[d->reg + at][lane] = v;
}

/// Results; as another matrix unit has them, where there is a fault.
static void give(emu_wave *w, const emu_operand *d, int m, float acc[MAX_M][MAX_M])
{
    const emu_fault fault = w->group->launch->fault;
    for (int i = 0; i < m; i++) {
        const int to = fault == EMU_FAULT_MFMA_ROWS ? i / 16 * 16 + i % 4 * 4 + i % 16 / 4 : i;
        for (int j = 0; j < m; j++) {
            uint32_t v = emu_bits(acc[i][j]);
            if (fault == EMU_FAULT_MFMA_ZERO && v == 0) {
                v = 0x80000000u;
            } else if (fault == EMU_FAULT_MFMA_SHORT && !emu_is_nan(v)) {
                v &= ~0xFFu;
            } else if (fault == EMU_FAULT_MFMA_PLACES && !emu_is_nan(v) && j >= 8) {
                v &= ~1u;
            }
            given(w, d, m, to, j, v);
        }
    }
}

EMU_INLINE float flushed(float f)
{
    return emu_float(emu_flushed(emu_bits(f)));
}

EMU_INLINE void multiply_chain(int m, int k, float a[MAX_K][MAX_M], float b[MAX_K][MAX_M],
                               float acc[MAX_M][MAX_M])
{
    for (int i = 0; i < m; i++) {
        for (int x = 0; x < k; x++) {
            const float f = a[x][i];
            for (int j = 0; j < m; j++) {
                acc[i][j] = __builtin_fmaf(f, b[x][j], acc[i][j]);
            }
        }
    }
}

EMU_INLINE void multiply_fours(int m, int k, float a[MAX_K][MAX_M], float b[MAX_K][MAX_M],
                               float acc[MAX_M][MAX_M])
{
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < m; j++) {
            acc[i][j] = flushed(acc[i][j]);
        }
        for (int x = 0; x < k; x += 4) {
            double four[MAX_M] = {0};
            for (int y = x; y < x + 4 && y < k; y++) {
                const double f = (double)a[y][i];
                for (int j = 0; j < m; j++) {
                    four[j] += f * (double)b[y][j];
                }
            }
            for (int j = 0; j < m; j++) {
                acc[i][j] = flushed((float)((double)acc[i][j] + four[j]));
            }
        }
    }
}

EMU_INLINE void multiply(bool fours, int m, int k, float a[MAX_K][MAX_M], float b[MAX_K][MAX_M],
                         float acc[MAX_M][MAX_M])
{
    if (fours) {
        multiply_fours(m, k, a, b, acc);
    } else {
        multiply_chain(m, k, a, b, acc);
    }
}

static void run_floats(emu_wave *w, const emu_inst *in)
{
    const unsigned detail = in->row->detail;
    const int m = detail & 1u ? 32 : 16;
    const source a = (source)(detail >> 1 & 7u);
    const source b = (source)(detail >> 4 & 7u);
    const int items = a == F32 ? 1 : (a == F16 || a == BF16 ? 4 : 8) * (detail & 128u ? 2 : 1);
    const shape s = {m, items * EMU_LANES / m, 1};
    float A[MAX_K][MAX_M];
    float B[MAX_K][MAX_M];
    float acc[MAX_M][MAX_M];
    if (in->cbsz || in->blgp || in->abid) {
        emu_fail(w, -1, "cbsz, abid and blgp are not modelled here");
        return;
    }
    unpack(w, in, 1, s, a, a == BF8 ? EMU_BF8 : EMU_FP8, A);
    unpack(w, in, 2, s, b, b == BF8 ? EMU_BF8 : EMU_FP8, B);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < m; j++) {
            acc[i][j] = emu_float(taken(w, &in->o[3], m, i, j));
        }
    }
    if (m == 16) {
        multiply(w->group->launch->sum != 0, 16, s.k, A, B, acc);
    } else {
        multiply(w->group->launch->sum != 0, 32, s.k, A, B, acc);
    }
    give(w, &in->o[0], m, acc);
}

static void run_i8(emu_wave *w, const emu_inst *in)
{
    const unsigned detail = in->row->detail;
    const int m = detail & 1u ? 32 : 16;
    const int items = detail & 128u ? 16 : 8;
    const int k = items * EMU_LANES / m;
    static _Thread_local int32_t A[MAX_K][MAX_M];
    static _Thread_local int32_t B[MAX_K][MAX_M];
    if (in->cbsz || in->blgp || in->abid) {
        emu_fail(w, -1, "cbsz, abid and blgp are not modelled here");
        return;
    }
    for (int l = 0; l < EMU_LANES; l++) {
        for (int i = 0; i < items; i++) {
            const int x = items * (l / m) + i;
            A[x][l % m] = (int8_t)item(w, in->o[1].reg, l, i, 8);
            B[x][l % m] = (int8_t)item(w, in->o[2].reg, l, i, 8);
        }
    }
    uint32_t acc[MAX_M][MAX_M];
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < m; j++) {
            acc[i][j] = taken(w, &in->o[3], m, i, j);
        }
    }
    for (int i = 0; i < m; i++) {
        for (int x = 0; x < k; x++) {
            for (int j = 0; j < m; j++) {
                acc[i][j] += (uint32_t)(A[x][i] * B[x][j]);
            }
        }
    }
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < m; j++) {
            given(w, &in->o[0], m, i, j, acc[i][j]);
        }
    }
}

/// Codes of the scales: lane row + M block has the one of that row and block of 32.
static void scales(emu_wave *w, const emu_inst *in, int operand, int m, int blocks,
                   int out[MAX_M][4])
{
    emu_u32s tmp;
    const unsigned bit = (unsigned)operand - 4;
    const unsigned byte = emu_has_fault(w, EMU_FAULT_SCALE_OPSEL)
                              ? 0
                              : (in->op_sel >> bit & 1u) | (in->op_sel_hi >> bit & 1u) << 1;
    const bool has = in->num > 4;
    const uint32_t *from = has ? emu_lanes(w, in, operand, 0, tmp) : tmp;
    for (int block = 0; block < blocks; block++) {
        for (int i = 0; i < m; i++) {
            const int lane = emu_has_fault(w, EMU_FAULT_SCALE_LANES)
                                 ? m * (block * 2 % blocks + block * 2 / blocks) + i
                                 : m * block + i;
            out[i][block] = has ? (int)(from[lane] >> (8 * byte) & 0xFFu) : 127;
        }
    }
}

static void run_f8f6f4(emu_wave *w, const emu_inst *in)
{
    const int m = in->row->detail & 1u ? 32 : 16;
    const shape s = {m, 2048 / m, 64 / m};
    float A[MAX_K][MAX_M];
    float B[MAX_K][MAX_M];
    int sa[MAX_M][4];
    int sb[MAX_M][4];
    if (in->cbsz > EMU_FP4 || in->blgp > EMU_FP4 || in->abid) {
        emu_fail(w, -1, "no such format");
        return;
    }
    unpack(w, in, 1, s, F8F6F4, (emu_small)in->cbsz, A);
    unpack(w, in, 2, s, F8F6F4, (emu_small)in->blgp, B);
    scales(w, in, 4, m, s.blocks, sa);
    scales(w, in, 5, m, s.blocks, sb);
    const bool exact = w->group->launch->sum != 0;
    float acc[MAX_M][MAX_M];
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < m; j++) {
            acc[i][j] = emu_float(taken(w, &in->o[3], m, i, j));
        }
    }
    for (int block = 0; block < s.blocks; block++) {
        for (int i = 0; i < m; i++) {
            float dot[MAX_M] = {0};
            double sum[MAX_M] = {0};
            for (int x = 32 * block; x < 32 * block + 32; x++) {
                const float f = A[x][i];
                if (exact) {
                    for (int j = 0; j < m; j++) {
                        sum[j] += (double)f * (double)B[x][j];
                    }
                } else {
                    for (int j = 0; j < m; j++) {
                        dot[j] = __builtin_fmaf(f, B[x][j], dot[j]);
                    }
                }
            }
            for (int j = 0; j < m; j++) {
                const int e = sa[i][block] + sb[j][block] - 254;
                const bool nan = sa[i][block] == 255 || sb[j][block] == 255;
                const double part = ldexp(exact ? sum[j] : (double)dot[j], e);
                acc[i][j] = nan ? NAN : (float)((double)acc[i][j] + part);
                acc[i][j] = exact ? flushed(acc[i][j]) : acc[i][j];
            }
        }
    }
    give(w, &in->o[0], m, acc);
}

// clang-format off
#define FLOATS(name, archs, m, a, b, twice) {"v_mfma_f32_" name, run_floats, EMU_TYPE_F32, archs, DETAIL(m, a, b, twice)}
static const emu_row table[] = {
    FLOATS("16x16x4_f32",   EMU_ANY, 16, F32, F32, 0),
    FLOATS("32x32x2_f32",   EMU_ANY, 32, F32, F32, 0),
    FLOATS("16x16x16_f16",  EMU_ANY, 16, F16, F16, 0),
    FLOATS("32x32x8_f16",   EMU_ANY, 32, F16, F16, 0),
    FLOATS("16x16x16_bf16", EMU_ANY, 16, BF16, BF16, 0),
    FLOATS("32x32x8_bf16",  EMU_ANY, 32, BF16, BF16, 0),
    FLOATS("16x16x32_f16",  EMU_GFX950, 16, F16, F16, 1),
    FLOATS("32x32x16_f16",  EMU_GFX950, 32, F16, F16, 1),
    FLOATS("16x16x32_bf16", EMU_GFX950, 16, BF16, BF16, 1),
    FLOATS("32x32x16_bf16", EMU_GFX950, 32, BF16, BF16, 1),
    FLOATS("16x16x32_fp8_fp8", EMU_ANY, 16, FP8, FP8, 0),
    FLOATS("16x16x32_fp8_bf8", EMU_ANY, 16, FP8, BF8, 0),
    FLOATS("16x16x32_bf8_fp8", EMU_ANY, 16, BF8, FP8, 0),
    FLOATS("16x16x32_bf8_bf8", EMU_ANY, 16, BF8, BF8, 0),
    FLOATS("32x32x16_fp8_fp8", EMU_ANY, 32, FP8, FP8, 0),
    FLOATS("32x32x16_fp8_bf8", EMU_ANY, 32, FP8, BF8, 0),
    FLOATS("32x32x16_bf8_fp8", EMU_ANY, 32, BF8, FP8, 0),
    FLOATS("32x32x16_bf8_bf8", EMU_ANY, 32, BF8, BF8, 0),
    {"v_mfma_i32_16x16x32_i8", run_i8, EMU_TYPE_U32, EMU_ANY, DETAIL(16, I8, I8, 0)},
    {"v_mfma_i32_32x32x16_i8", run_i8, EMU_TYPE_U32, EMU_ANY, DETAIL(32, I8, I8, 0)},
    {"v_mfma_i32_16x16x64_i8", run_i8, EMU_TYPE_U32, EMU_GFX950, DETAIL(16, I8, I8, 1)},
    {"v_mfma_i32_32x32x32_i8", run_i8, EMU_TYPE_U32, EMU_GFX950, DETAIL(32, I8, I8, 1)},
    {"v_mfma_f32_16x16x128_f8f6f4", run_f8f6f4, EMU_TYPE_F32, EMU_GFX950, DETAIL(16, F8F6F4, 0, 0)},
    {"v_mfma_f32_32x32x64_f8f6f4", run_f8f6f4, EMU_TYPE_F32, EMU_GFX950, DETAIL(32, F8F6F4, 0, 0)},
    {"v_mfma_scale_f32_16x16x128_f8f6f4", run_f8f6f4, EMU_TYPE_F32, EMU_GFX950, DETAIL(16, F8F6F4, 0, 0)},
    {"v_mfma_scale_f32_32x32x64_f8f6f4", run_f8f6f4, EMU_TYPE_F32, EMU_GFX950, DETAIL(32, F8F6F4, 0, 0)},
};
// clang-format on

const emu_rows EMU_ROWS_OF(matrix) = {table, sizeof table / sizeof table[0]};
