// SPDX-License-Identifier: Apache-2.0
// A panel of weights for NEON: up to 64 outputs of canonical weights of any format, decoded to
// floats [k][output] a slice of k at a time, with what sums and scales belong to it.
//
//   4 rows x 16 bytes --- trn 32, 64 ---> 4 vectors, lane = output, 4 bytes of k each
//   bf16: 2 k a lane, shift and mask. 4 bits: 8 k a lane, two table look-ups make bf16 of them.
//   8 bits: 4 k a lane, shift and convert. Others: to floats row by row, then turned.
#ifndef MOEI_BACKENDS_CPU_NEON_PANEL_H
#define MOEI_BACKENDS_CPU_NEON_PANEL_H

#include <arm_neon.h>

#include "backends/cpu/canonical.h"

#define NR    MOEI_CPU_MAX_COLUMNS // outputs of a panel
#define LANES 4                    // of a vector: outputs that are turned together
#define MR    32                   // rows that share a decoded slice: eight tiles of four
#define SLICE MOEI_CPU_SLICE       // k that are decoded at once
#define CHUNK MOEI_CPU_CHUNK       // k whose scales and rows of x are decoded at once
#define STEP  16                   // bytes of a row that are turned at once
#define FINE  16                   // the fewest k that share a scale

typedef struct panel panel;

/// rows: LANES addresses, of the first k; out[k][0 .. 3] for k below `count`, or a little more of
/// no meaning. Reads whole steps.
typedef void decode_fn(const panel *p, const uint8_t *const rows[LANES], int64_t count,
                       float (*out)[NR]);

struct panel {
    _Alignas(64) float w[SLICE][NR];
    _Alignas(64) float x[MR][CHUNK];
    _Alignas(64) float sum[MR][NR];
    _Alignas(64) float acc[MR][NR];
    _Alignas(64) float scale[CHUNK / FINE][NR];
    _Alignas(64) uint8_t tail[LANES][SLICE * sizeof(float)];
    moei_cpu_canonical c;
    uint8x16_t code_low, code_high; // of 4 bits: bytes of the bf16 that a code is
    decode_fn *decode;
    int64_t width; // that chains are run for: outputs, in sixteens
};

// ---- decoders ----------------------------------------------------------------------------------

// STEP bytes of LANES rows: v[j] has bytes 4j .. 4j + 3 of row l in lane l.
static inline void turn(const uint8_t *const rows[LANES], int64_t at, uint32x4_t v[4])
{
    uint32x4_t a[4];
    for (int r = 0; r < 4; r++) {
        a[r] = vreinterpretq_u32_u8(vld1q_u8(rows[r] + at));
    }
    const uint64x2_t even01 = vreinterpretq_u64_u32(vtrn1q_u32(a[0], a[1]));
    const uint64x2_t odd01 = vreinterpretq_u64_u32(vtrn2q_u32(a[0], a[1]));
    const uint64x2_t even23 = vreinterpretq_u64_u32(vtrn1q_u32(a[2], a[3]));
    const uint64x2_t odd23 = vreinterpretq_u64_u32(vtrn2q_u32(a[2], a[3]));
    v[0] = vreinterpretq_u32_u64(vtrn1q_u64(even01, even23));
    v[1] = vreinterpretq_u32_u64(vtrn1q_u64(odd01, odd23));
    v[2] = vreinterpretq_u32_u64(vtrn2q_u64(even01, even23));
    v[3] = vreinterpretq_u32_u64(vtrn2q_u64(odd01, odd23));
}

// A lane has two bf16, of two k.
static inline void store_pair(uint32x4_t pair, float *low, float *high)
{
    vst1q_f32(low, vreinterpretq_f32_u32(vshlq_n_u32(pair, 16)));
    vst1q_f32(high, vreinterpretq_f32_u32(vandq_u32(pair, vdupq_n_u32(0xFFFF0000u))));
}

static void decode_f32(const panel *p, const uint8_t *const rows[LANES], int64_t count,
                       float (*out)[NR])
{
    (void)p;
    for (int64_t k = 0; k < count; k += 4) {
        uint32x4_t v[4];
        turn(rows, 4 * k, v);
        for (int64_t j = 0; j < 4; j++) {
            vst1q_f32(out[k + j], vreinterpretq_f32_u32(v[j]));
        }
    }
}

static void decode_bf16(const panel *p, const uint8_t *const rows[LANES], int64_t count,
                        float (*out)[NR])
{
    (void)p;
    for (int64_t k = 0; k < count; k += 8) {
        uint32x4_t v[4];
        turn(rows, 2 * k, v);
        for (int64_t j = 0; j < 4; j++) {
            store_pair(v[j], out[k + 2 * j], out[k + 2 * j + 1]);
        }
    }
}

static inline float32x4_t float_of_f16(uint16x4_t half)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(half));
}

static void decode_f16(const panel *p, const uint8_t *const rows[LANES], int64_t count,
                       float (*out)[NR])
{
    (void)p;
    for (int64_t k = 0; k < count; k += 8) {
        uint32x4_t v[4];
        turn(rows, 2 * k, v);
        for (int64_t j = 0; j < 4; j++) {
            vst1q_f32(out[k + 2 * j], float_of_f16(vmovn_u32(v[j])));
            vst1q_f32(out[k + 2 * j + 1], float_of_f16(vshrn_n_u32(v[j], 16)));
        }
    }
}

// Lane l holds k 0 .. 7 of row l, low nibbles first: byte b has k 2b and 2b + 1. Bytes 0, 1 of all
// rows are brought together, and bytes 2, 3, so that interleaving the two bytes of a number leaves
// each row in its lane.
static void decode_4bits(const panel *p, const uint8_t *const rows[LANES], int64_t count,
                         float (*out)[NR])
{
    static const uint8_t order[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
    for (int64_t k = 0; k < count; k += 32) {
        uint32x4_t v[4];
        turn(rows, k / 2, v);
        for (int64_t j = 0; j < 4; j++) {
            float(*to)[NR] = &out[k + 8 * j];
            const uint8x16_t bytes = vqtbl1q_u8(vreinterpretq_u8_u32(v[j]), vld1q_u8(order));
            const uint8x16_t even = vandq_u8(bytes, vdupq_n_u8(15));
            const uint8x16_t odd = vshrq_n_u8(bytes, 4);
            const uint8x16_t even_low = vqtbl1q_u8(p->code_low, even);
            const uint8x16_t even_high = vqtbl1q_u8(p->code_high, even);
            const uint8x16_t odd_low = vqtbl1q_u8(p->code_low, odd);
            const uint8x16_t odd_high = vqtbl1q_u8(p->code_high, odd);
            store_pair(vreinterpretq_u32_u8(vzip1q_u8(even_low, even_high)), to[0], to[2]);
            store_pair(vreinterpretq_u32_u8(vzip1q_u8(odd_low, odd_high)), to[1], to[3]);
            store_pair(vreinterpretq_u32_u8(vzip2q_u8(even_low, even_high)), to[4], to[6]);
            store_pair(vreinterpretq_u32_u8(vzip2q_u8(odd_low, odd_high)), to[5], to[7]);
        }
    }
}

// Byte b of each lane, in its upper eight bits.
static inline uint32x4_t top_byte(uint32x4_t v, int b)
{
    return vshlq_u32(v, vdupq_n_s32(24 - 8 * b));
}

static inline float32x4_t value_of_i8(uint32x4_t top)
{
    return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(top), 24));
}

static inline float32x4_t value_of_u8(uint32x4_t top)
{
    return vcvtq_f32_u32(vshrq_n_u32(top, 24));
}

// s eeee mmm to s 0000eeee mmm0.., a float of 2^-120 of the value, subnormals included.
static inline float32x4_t value_of_e4m3(uint32x4_t top)
{
    const int32x4_t moved = vshrq_n_s32(vreinterpretq_s32_u32(top), 4);
    const uint32x4_t bits = vandq_u32(vreinterpretq_u32_s32(moved), vdupq_n_u32(0x87F00000u));
    const uint32x4_t nan_code = vdupq_n_u32(0x07F00000u);
    const uint32x4_t is_nan = vceqq_u32(vandq_u32(bits, nan_code), nan_code);
    const float32x4_t value = vmulq_n_f32(vreinterpretq_f32_u32(bits), 0x1p120f);
    return vbslq_f32(is_nan, vdupq_n_f32(__builtin_nanf("")), value);
}

// The upper byte of an f16.
static inline float32x4_t value_of_e5m2(uint32x4_t top)
{
    return float_of_f16(vshrn_n_u32(vandq_u32(top, vdupq_n_u32(0xFF000000u)), 16));
}

#define DECODE_8BITS(name)                                                                         \
    static void decode_##name(const panel *p, const uint8_t *const rows[LANES], int64_t count,     \
                              float(*out)[NR])                                                     \
    {                                                                                              \
        (void)p;                                                                                   \
        for (int64_t k = 0; k < count; k += 16) {                                                  \
            uint32x4_t v[4];                                                                       \
            turn(rows, k, v);                                                                      \
            for (int64_t j = 0; j < 4; j++) {                                                      \
                for (int b = 0; b < 4; b++) {                                                      \
                    vst1q_f32(out[k + 4 * j + b], value_of_##name(top_byte(v[j], b)));             \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }
DECODE_8BITS(i8)
DECODE_8BITS(u8)
DECODE_8BITS(e4m3)
DECODE_8BITS(e5m2)

static void decode_any(const panel *p, const uint8_t *const rows[LANES], int64_t count,
                       float (*out)[NR])
{
    float line[LANES][SLICE] = {{0.0f}};
    const uint8_t *lines[LANES];
    for (int r = 0; r < LANES; r++) {
        moei_load_f32(p->c.args->w.format->elem, rows[r], 0, count, line[r]);
        lines[r] = (const uint8_t *)line[r];
    }
    decode_f32(p, lines, count, out);
}

static decode_fn *decoder(moe_dtype elem)
{
    static decode_fn *const of[] = {
        [MOE_F32] = decode_f32,     [MOE_BF16] = decode_bf16,  [MOE_F16] = decode_f16,
        [MOE_E4M3FN] = decode_e4m3, [MOE_E5M2] = decode_e5m2,  [MOE_I8] = decode_i8,
        [MOE_U8] = decode_u8,       [MOE_E2M1] = decode_4bits, [MOE_UINT4] = decode_4bits};
    const bool known = (size_t)elem < sizeof of / sizeof of[0] && of[elem] != NULL;
    return known ? of[elem] : decode_any;
}

static void make_tables(panel *p)
{
    uint8_t low[16];
    uint8_t high[16];
    moei_cpu_canonical_bytes(&p->c, low, high);
    p->code_low = vld1q_u8(low);
    p->code_high = vld1q_u8(high);
}

// ---- a panel -----------------------------------------------------------------------------------

static void turn_rows(void *arg, const uint8_t *const *rows, int64_t g, int64_t count)
{
    panel *p = arg;
    p->decode(p, rows, count, (float(*)[NR])(void *)&p->w[0][g]);
}

static void decode_rows(panel *p, int64_t k0, int64_t count)
{
    moei_cpu_turn_rows(&p->c, p, turn_rows, LANES, STEP, p->tail, k0, count);
}

// scale[b][n] of the blocks of `chunk` k in [k0, k0 + count).
static void load_scales(panel *p, int64_t k0, int64_t count, int64_t chunk)
{
    for (int64_t n = 0; n < p->c.outputs; n++) {
        for (int64_t b = 0; b * chunk < count; b++) {
            p->scale[b][n] =
                moei_cpu_weight_scale(&p->c.args->w, p->c.e, p->c.n0 + n, k0 + b * chunk);
        }
    }
}

static void begin_panels(panel *p, const moek_ggemm_args *args, int32_t e)
{
    moei_cpu_canonical_begin(&p->c, args, e);
    p->c.acc = p->acc;
    p->decode = decoder(args->w.format->elem);
    make_tables(p);
    for (int64_t b = 0; b < CHUNK / FINE; b++) { // where x alone has scales
        for (int64_t n = 0; n < NR; n++) {
            p->scale[b][n] = 1.0f;
        }
    }
}

#endif
