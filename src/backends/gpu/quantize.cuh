// SPDX-License-Identifier: Apache-2.0
// quantize on the device: the rules of quant/rules.h. A thread works on pieces of eight
// neighbouring elements, whose codes begin and end on a byte.
//   quantize        groups of 8 to 256 elements, a power of two, and scales that are there before
//                   the codes: a warp takes 256 elements of a row and keeps them in registers
//   quantize_rows   the same for FP8 in groups of 128, as layers have it: a warp takes a group of
//                   each of several rows, a lane four elements of each
//   quantize_spans  everything else: a block per scale, which reads its elements twice
//   quantize_amax, quantize_scale   before quantize, where one scale spans all rows
//   dequantize      back
// Limiting resource: of quantize_rows memory bandwidth, else the encoders' integer operations.
#ifndef MOEI_GPU_QUANTIZE_CUH
#define MOEI_GPU_QUANTIZE_CUH

#include "backends/gpu/args.h"
#include "backends/gpu/elements.cuh"
#include "backends/gpu/tiles.h"
#include "numerics/activation.h"
#include "quant/rules.h"

enum { MOEI_GPU_QN = MOEI_GPU_QUANTIZE_PIECE };

// ------------------------------------------------------------------------------------------ pieces

DEV_FN uint8_t *moei_gpu_x_row(const moek_quantize_args *a, int32_t b, int64_t r)
{
    return a->x + b * a->x_batch_stride + r * a->x_row_stride;
}

DEV_FN uint8_t *moei_gpu_q_row(const moek_quantize_args *a, int32_t b, int64_t r)
{
    return a->q + b * a->q_batch_stride + r * a->q_row_stride;
}

/// Elements of a row from k on that a piece holds, where they end at `end`.
DEV_FN int moei_gpu_piece_length(int64_t k, int64_t end)
{
    const int64_t left = end - k;
    return left < 0 ? 0 : left < MOEI_GPU_QN ? (int)left : (int)MOEI_GPU_QN;
}

/// The values to quantise, n of them from k on; 0 for the rest of the piece.
DEV_FN void moei_gpu_quantize_load(const moei_gpu_quantize_args *g, const uint8_t *row, int64_t k,
                                   int n, float *x)
{
    const moek_quantize_args *a = &g->a;
    const int64_t bytes = moei_gpu_float_bytes(a->x_dtype);
    moei_gpu_load_piece<MOEI_GPU_QN>(a->x_dtype, row + k * bytes, n, x);
    if (a->silu_mul) {
        const moe_dtype step = a->round_steps ? a->x_dtype : MOE_F32;
        float up[MOEI_GPU_QN];
        moei_gpu_load_piece<MOEI_GPU_QN>(a->x_dtype, row + (a->up_offset + k) * bytes, n, up);
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_GPU_QN; i++) {
            x[i] = moei_round_to(step, moei_round_to(step, moei_silu(x[i])) * up[i]);
        }
    }
    if (g->info.scale == MOEI_SCALE_BF16) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_GPU_QN; i++) {
            x[i] = moei_round_bf16(x[i]);
        }
    }
}

/// Raises m by a piece.
DEV_FN void moei_gpu_raise(moei_magnitude *m, const float *x)
{
    MOEI_GPU_UNROLL
    for (int i = 0; i < MOEI_GPU_QN; i++) {
        const uint32_t bits = moei_f32_bits(x[i]) & MOEI_ABS_MASK;
        m->any = bits > m->any ? bits : m->any;
        m->amax = bits > m->amax && bits <= MOEI_INF_BITS ? bits : m->amax;
    }
}

DEV_FN void moei_gpu_scale_piece(const moei_scale *s, float *x)
{
    // One loop per use: they stay unrolled, and the choice is made once.
#define USE(how)                                                                                   \
    case how:                                                                                      \
        one.use = how;                                                                             \
        MOEI_GPU_UNROLL                                                                            \
        for (int i = 0; i < MOEI_GPU_QN; i++) {                                                    \
            x[i] = moei_scale_use_on(&one, x[i]);                                                  \
        }                                                                                          \
        break;
    moei_scale one = *s;
    switch (s->use) {
        USE(MOEI_USE_TIMES)
        USE(MOEI_USE_DIVIDE)
        USE(MOEI_USE_TIMES_BF16)
        USE(MOEI_USE_ZERO)
    }
#undef USE
}

DEV_FN void moei_gpu_clamp_piece(const moei_gpu_quantize_args *g, float *x)
{
    const moei_quant_range r = moei_quant_range_of(&g->info, g->a.quant.elem);
    if (r.clamps) {
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_GPU_QN; i++) {
            x[i] = moei_quant_clamp(x[i], r.low, r.high, r.nan);
        }
    }
}

/// Packs the codes of eight clamped values, `bits` each, into words.
DEV_FN void moei_gpu_encode_piece(const moei_gpu_quantize_args *g, const float *x, uint32_t *w)
{
    uint32_t code[MOEI_GPU_QN];
#define ENCODE(elem, rounding)                                                                     \
    MOEI_GPU_UNROLL                                                                                \
    for (int i = 0; i < MOEI_GPU_QN; i++) {                                                        \
        code[i] = moei_quant_code(elem, rounding, x[i]);                                           \
    }                                                                                              \
    break
    MOEI_QUANT_CHOOSE_CODE(g->a.quant.elem, g->info.rounding, ENCODE)
#undef ENCODE
    switch (g->a.quant.elem) {
    case MOE_I16:
        MOEI_GPU_UNROLL
        for (int i = 0; i < 4; i++) {
            w[i] = (code[2 * i] & 0xFFFFu) | code[2 * i + 1] << 16;
        }
        break;
    case MOE_E2M1:
    case MOE_INT4:
        w[0] = 0;
        MOEI_GPU_UNROLL
        for (int i = 0; i < 8; i++) {
            w[0] |= (code[i] & 0xFu) << (4 * i);
        }
        break;
    case MOE_E2M3:
    case MOE_E3M2:
        w[0] =
            code[0] | code[1] << 6 | code[2] << 12 | code[3] << 18 | code[4] << 24 | code[5] << 30;
        w[1] = code[5] >> 2 | code[6] << 4 | code[7] << 10;
        break;
    default:
        MOEI_GPU_UNROLL
        for (int i = 0; i < 2; i++) {
            w[i] = (code[4 * i] & 0xFFu) | (code[4 * i + 1] & 0xFFu) << 8 |
                   (code[4 * i + 2] & 0xFFu) << 16 | code[4 * i + 3] << 24;
        }
        break;
    }
}

/// Bits of an element that a quantiser makes.
DEV_FN int moei_gpu_code_bits(moe_dtype elem)
{
    switch (elem) {
    case MOE_I16:
        return 16;
    case MOE_E2M1:
    case MOE_INT4:
        return 4;
    case MOE_E2M3:
    case MOE_E3M2:
        return 6;
    default:
        return 8;
    }
}

/// Scales, encodes and stores n values as elements k.. of a row of codes; bits past the last code
/// of the last byte become 0.
DEV_FN void moei_gpu_quantize_store(const moei_gpu_quantize_args *g, const moei_scale *s,
                                    uint8_t *row, int64_t k, int n, float *x)
{
    const int bits = moei_gpu_code_bits(g->a.quant.elem);
    uint8_t *out = row + k * bits / 8; // a piece begins on a byte
    uint32_t w[4] = {0, 0, 0, 0};
    moei_gpu_scale_piece(s, x);
    moei_gpu_clamp_piece(g, x);
    moei_gpu_encode_piece(g, x, w);
    if (n == MOEI_GPU_QN && bits == 8 && moei_gpu_is_aligned(out, 8)) {
        const moei_gpu_words2 q = {{w[0], w[1]}};
        *(moei_gpu_words2 *)(void *)out = q;
    } else if (n == MOEI_GPU_QN && bits == 4 && moei_gpu_is_aligned(out, 4)) {
        *(uint32_t *)(void *)out = w[0];
    } else if (n == MOEI_GPU_QN && bits == 16 && moei_gpu_is_aligned(out, 16)) {
        const moei_gpu_words4 q = {{w[0], w[1], w[2], w[3]}};
        *(moei_gpu_words4 *)(void *)out = q;
    } else {
        MOEI_GPU_UNROLL
        for (int i = 0; i < 16; i++) {
            const int left = n * bits - 8 * i;
            if (left > 0) {
                const uint32_t mask = left < 8 ? (1u << left) - 1u : 0xFFu;
                out[i] = (uint8_t)(w[i / 4] >> (8 * (i % 4)) & mask);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------ scales

DEV_FN moei_scale moei_gpu_scale_of(const moei_gpu_quantize_args *g, moei_magnitude m)
{
    const float global = g->info.code == MOEI_CODE_GLOBAL ? g->a.global_scale[0] : 1.0f;
    return moei_scale_of(&g->info, &g->a.quant, global, m);
}

DEV_FN void moei_gpu_store_scale(const moek_quantize_args *a, int32_t b, int64_t row, int64_t group,
                                 const moei_scale *s)
{
    uint8_t *at = moei_quantize_scale_at(a, b, row, group);
    const moe_scale_type type = a->quant.scale_type;
    if (type == MOE_SCALE_F32 || type == MOE_SCALE_UE8M0_F32) {
        moei_gpu_write_u32(at, moei_f32_bits(s->value));
        return;
    }
    at[0] = s->byte;
    if (type == MOE_SCALE_UE8M0_PACKED && group + 1 == moei_quantize_groups(a)) {
        for (int64_t i = group % 4 + 1; i < 4; i++) {
            *++at = 0; // the bytes past the last group
        }
    }
}

DEV_FN void moei_gpu_store_no_scale(const moek_quantize_args *a, int32_t b, int64_t row,
                                    int64_t group)
{
    const moei_scale zero = moei_scale_make(0.0f, 0, MOEI_USE_ZERO, 0.0f);
    moei_gpu_store_scale(a, b, row, group, &zero);
}

DEV_FN float moei_gpu_load_scale(const moei_gpu_quantize_args *g, int32_t b, int64_t row,
                                 int64_t group)
{
    const uint8_t *at = moei_quantize_scale_at(&g->a, b, row, group);
    const moe_scale_type type = g->a.quant.scale_type;
    return type == MOE_SCALE_F32 || type == MOE_SCALE_UE8M0_F32
               ? moei_f32_from_bits(moei_gpu_read_u32(at))
               : moei_scale_from_byte(&g->info, type, at[0]);
}

// ------------------------------------------------------------------------ a warp per 256 elements

/// Maximum over the `lanes` neighbours (a power of two) among which this lane is.
DEV_FN uint32_t moei_gpu_max_of_lanes(uint32_t v, uint32_t lanes)
{
    for (int mask = (int)lanes / 2; mask > 0; mask /= 2) {
        const uint32_t other = dev_shfl_xor_u32(v, mask);
        v = other > v ? other : v;
    }
    return v;
}

/// The magnitude of a group whose pieces `lanes` neighbours hold.
DEV_FN moei_magnitude moei_gpu_group_magnitude(const float *x, uint32_t lanes)
{
    moei_magnitude m = {0, 0};
    MOEI_GPU_UNROLL
    for (int i = 0; i < MOEI_GPU_QN; i++) {
        const uint32_t bits = moei_f32_bits(x[i]) & MOEI_ABS_MASK;
        m.any = bits > m.any ? bits : m.any;
    }
    m.any = moei_gpu_max_of_lanes(m.any, lanes);
    m.amax = m.any;
    if (dev_ballot(m.any > MOEI_INF_BITS) != 0) { // a NaN: once more, without
        moei_magnitude own = {0, 0};
        moei_gpu_raise(&own, x);
        m.amax = moei_gpu_max_of_lanes(own.amax, lanes);
    }
    return m;
}

/// The codes of eight of 128 values that share a scale, which 16 neighbouring lanes have, where
/// moei_gpu_is_fp8_group: as the functions above make them, of which little is left.
DEV_FN moei_scale moei_gpu_quantize_fp8(const moei_gpu_quantize_args *g, float *x, uint32_t *codes)
{
    moei_gpu_quantize_args q = *g;
    uint32_t w[4];
    q.a.quant.elem = MOE_E4M3FN;
    q.info.scale = q.info.scale == MOEI_SCALE_DIV ? MOEI_SCALE_DIV : MOEI_SCALE_RECIP;
    q.info.code = q.info.code == MOEI_CODE_DIVIDE ? MOEI_CODE_DIVIDE : MOEI_CODE_TIMES_INVERSE;
    const moei_magnitude m = moei_gpu_group_magnitude(x, 128 / MOEI_GPU_QN);
    const moei_scale s = moei_scale_by_float(&q.info, &q.a.quant, moei_f32_from_bits(m.amax));
    if (s.use == MOEI_USE_DIVIDE && moei_is_plain_divisor(s.by)) {
        const float inverse = moei_divf(1.0f, s.by);
        MOEI_GPU_UNROLL
        for (int i = 0; i < MOEI_GPU_QN; i++) {
            x[i] = moei_divide_many(x[i], s.by, inverse);
        }
    } else {
        moei_gpu_scale_piece(&s, x);
    }
    moei_gpu_clamp_piece(&q, x);
    moei_gpu_encode_piece(&q, x, w);
    codes[0] = w[0];
    codes[1] = w[1];
    return s;
}

/// The codes of 256 elements of a row, of which this lane has those from k on.
DEV_FN void moei_gpu_quantize_warp(const moei_gpu_quantize_args *g, int32_t b, int64_t r, int64_t k)
{
    const moek_quantize_args *a = &g->a;
    const bool given = g->info.grain == MOEI_GRAIN_TENSOR;
    const int n = moei_gpu_piece_length(k, a->k);
    float x[MOEI_GPU_QN];
    moei_scale s;
    moei_gpu_quantize_load(g, moei_gpu_x_row(a, b, r), k, n, x);
    if (given) {
        s = moei_scale_apply(&g->info, a->quant.elem, moei_gpu_load_scale(g, 0, 0, 0), 0.0f);
    } else {
        const uint32_t lanes = (uint32_t)a->quant.group / MOEI_GPU_QN;
        s = moei_gpu_scale_of(g, moei_gpu_group_magnitude(x, lanes));
        if (n > 0 && (dev_lane() & (lanes - 1u)) == 0) {
            moei_gpu_store_scale(a, b, r, moei_divide(k, a->quant.group), &s);
        }
    }
    if (n > 0) {
        moei_gpu_quantize_store(g, &s, moei_gpu_q_row(a, b, r), k, n, x);
    }
}

/// What warp number `warp` of `warps` has of it.
DEV_FN void moei_gpu_quantize_share(const moei_gpu_quantize_args *g, uint32_t warp, uint32_t warps)
{
    const moek_quantize_args *a = &g->a;
    const moei_gpu_tiles tiles = moei_gpu_quantize_tiles(a->rows * a->batches, a->k);
    for (int64_t tile = warp; tile < tiles.count; tile += warps) {
        int64_t row;
        int64_t k;
        moei_gpu_tile_at(&tiles, tile, MOEI_GPU_QN, dev_lane(), &row, &k);
        const int32_t b = a->batches > 1 ? (int32_t)moei_divide(row, a->rows) : 0;
        const int64_t r = row - b * a->rows;
        if (b >= a->batches || r >= a->rows) {
            continue;
        }
        if (r < moei_quantize_count(a, b)) {
            moei_gpu_quantize_warp(g, b, r, k);
        } else if (a->zero_absent_scales && k < a->k && (k & (a->quant.group - 1)) == 0) {
            moei_gpu_store_no_scale(a, b, r, moei_divide(k, a->quant.group));
        }
    }
}

/// Columns from k0 on, MOEI_GPU_QUANTIZE_GROUP of them, of two rows, r and the next (where that is
/// before r1), which a product has written: moei_gpu_quantizes_parts.
DEV_FN void moei_gpu_quantize_part(const moei_gpu_quantize_args *args, int32_t r, int32_t r1,
                                   int64_t k0)
{
    enum { LANES = MOEI_GPU_QUANTIZE_GROUP / MOEI_GPU_QN }; // of a row
    moei_gpu_quantize_args part = *args; // with what the driver has seen to: little code is left
    part.a.x_dtype = MOE_F32;
    part.a.quant.elem = MOE_E4M3FN;
    part.a.silu_mul = false;
    part.info.rounding = MOEI_ROUND_EVEN;
    const int32_t own = r + (int32_t)dev_lane() / LANES;
    const int64_t k = k0 + dev_lane() % LANES * MOEI_GPU_QN;
    moei_gpu_quantize_warp(&part, 0, own < r1 ? own : r, own < r1 ? k : part.a.k);
}

DEV_FN void moei_gpu_quantize(const moei_gpu_quantize_args *g)
{
    moei_gpu_quantize_share(g, dev_block() * dev_warps() + dev_warp(), dev_blocks() * dev_warps());
}

// ------------------------------------------------------------ FP8 in groups of 128, row after row

enum { MOEI_GPU_QR = MOEI_GPU_QUANTIZE_GROUP / 32 }; // elements of a lane

/// The arguments, with what the driver has seen to as constants: the rules fold to what is left.
DEV_FN moei_gpu_quantize_args moei_gpu_quantize_rows_rules(const moei_gpu_quantize_args *g)
{
    moei_gpu_quantize_args one = *g;
    const bool f32 = g->a.quant.scale_type == MOE_SCALE_F32;
    one.a.silu_mul = false;
    one.a.quant.elem = MOE_E4M3FN;
    one.a.quant.group = MOEI_GPU_QUANTIZE_GROUP;
    one.a.quant.scale_type = f32 ? MOE_SCALE_F32 : MOE_SCALE_UE8M0_F32;
    one.info.grain = MOEI_GRAIN_GROUP;
    one.info.rounding = MOEI_ROUND_EVEN;
    one.info.scale = g->info.scale == MOEI_SCALE_RECIP ? MOEI_SCALE_RECIP : MOEI_SCALE_DIV;
    one.info.code = g->info.code == MOEI_CODE_DIVIDE ? MOEI_CODE_DIVIDE : MOEI_CODE_TIMES_INVERSE;
    return one;
}

/// The codes of a lane's elements of R rows; lane i has what scales row i.
template <moe_dtype X, int R, bool DIVIDES>
DEV_FN void moei_gpu_quantize_rows_codes(const moei_gpu_bits<MOEI_GPU_QR> *in, float by,
                                         uint32_t *codes)
{
    const float inverse = DIVIDES ? moei_divf(1.0f, by) : 0.0f;
    MOEI_GPU_UNROLL
    for (int i = 0; i < R; i++) {
        const float row_by = dev_shfl_f32(by, i);
        const float row_inverse = DIVIDES ? dev_shfl_f32(inverse, i) : 0.0f;
        float x[MOEI_GPU_QR];
        moei_gpu_decode<MOEI_GPU_QR>(X, &in[i], x);
        MOEI_GPU_UNROLL
        for (int j = 0; j < MOEI_GPU_QR; j++) {
            x[j] = DIVIDES ? moei_divide_many(x[j], row_by, row_inverse) : x[j] * row_by;
        }
        codes[i] = moei_f32_to_e4m3fn_x4(x[0], x[1], x[2], x[3]);
    }
}

/// A group of n rows (1 to R) from r on. The reads of all rows are under way at once; a lane
/// computes the scale of one row. Returns the rows with a NaN, an infinity or a scale that is no
/// plain divisor, as bits: they are left.
template <moe_dtype X, int R>
DEV_FN uint32_t moei_gpu_quantize_rows_tile(const moei_gpu_quantize_args *args, int32_t b,
                                            int64_t r, int n, uint32_t group)
{
    const moei_gpu_quantize_args g = moei_gpu_quantize_rows_rules(args);
    const moek_quantize_args *a = &g.a;
    const int64_t k = (int64_t)group * MOEI_GPU_QUANTIZE_GROUP + dev_lane() * MOEI_GPU_QR;
    const uint8_t *x = moei_gpu_x_row(a, b, r) + k * moei_gpu_float_bytes(X);
    const uint32_t own = dev_lane() % R; // the row whose scale is this lane's
    const uint32_t last = (uint32_t)n - 1u;
    const uint32_t all = (1u << n) - 1u;
    moei_gpu_bits<MOEI_GPU_QR> in[R];
    uint32_t codes[R];
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < R; i++) { // rows past the last repeat it
        moei_gpu_fetch<MOEI_GPU_QR>(
            X, x + (uint64_t)(i < last ? i : last) * (uint32_t)a->x_row_stride, &in[i]);
    }
    moei_magnitude m = {0, 0};
    MOEI_GPU_UNROLL
    for (uint32_t i = 0; i < R; i++) {
        float v[MOEI_GPU_QR];
        moei_gpu_decode<MOEI_GPU_QR>(X, &in[i], v);
        const float most = moei_max_absf(moei_max_absf(v[0], v[1]), moei_max_absf(v[2], v[3]));
        const uint32_t bits = dev_warp_max_u32(moei_f32_bits(most));
        m.amax = own == i ? bits : m.amax;
    }
    m.any = m.amax;
    const moei_scale s = moei_gpu_scale_of(&g, m);
    const uint32_t rows = dev_ballot(moei_is_plain_divisor(s.by)) & all;
    if ((rows >> dev_lane() & 1u) != 0) {
        moei_gpu_store_scale(a, b, r + dev_lane(), group, &s);
    }
    if (g.info.code == MOEI_CODE_DIVIDE) {
        moei_gpu_quantize_rows_codes<X, R, true>(in, s.by, codes);
    } else {
        moei_gpu_quantize_rows_codes<X, R, false>(in, s.by, codes);
    }
    uint8_t *q = moei_gpu_q_row(a, b, r) + k;
    const uint32_t stride = (uint32_t)a->q_row_stride;
    if (rows == (1u << R) - 1u) {
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < R; i++) {
            *(uint32_t *)(void *)(q + (uint64_t)i * stride) = codes[i];
        }
    } else {
        MOEI_GPU_UNROLL
        for (uint32_t i = 0; i < R; i++) {
            if ((rows >> i & 1u) != 0) {
                *(uint32_t *)(void *)(q + (uint64_t)i * stride) = codes[i];
            }
        }
    }
    return all & ~rows;
}

template <int R>
DEV_FN uint32_t moei_gpu_quantize_rows_any(const moei_gpu_quantize_args *g, int32_t b, int64_t r,
                                           int n, uint32_t group)
{
    return g->a.x_dtype == MOE_F32 ? moei_gpu_quantize_rows_tile<MOE_F32, R>(g, b, r, n, group)
                                   : moei_gpu_quantize_rows_tile<MOE_BF16, R>(g, b, r, n, group);
}

/// A tile per warp: the grid has as many. What is left of it is done by quantize's rules, which
/// read it again.
DEV_FN void moei_gpu_quantize_rows(const moei_gpu_quantize_rows_args *p)
{
    enum { R = MOEI_GPU_QUANTIZE_ROWS };
    const moei_gpu_quantize_args *g = &p->quantize;
    const moek_quantize_args *a = &g->a;
    const moei_gpu_bands t = p->bands;
    const uint32_t tile = dev_block() * dev_warps() + dev_warp();
    const uint32_t band = tile / t.groups;
    const uint32_t group = tile - band * t.groups;
    const uint32_t b = a->batches > 1 ? band / t.bands : 0;
    const int32_t r = (int32_t)((band - b * t.bands) * t.rows);
    if (band >= t.bands * (uint32_t)a->batches) {
        return;
    }
    const int32_t most = (int32_t)t.rows;
    const int32_t rows = (int32_t)a->rows - r < most ? (int32_t)a->rows - r : most;
    const int32_t count = (int32_t)moei_quantize_count(a, (int32_t)b) - r;
    const int32_t n = count < 0 ? 0 : count < rows ? count : rows;
    if (n == 0) {
        return;
    }
    uint32_t left = t.rows > 1 ? moei_gpu_quantize_rows_any<R>(g, (int32_t)b, r, n, group)
                               : moei_gpu_quantize_rows_any<1>(g, (int32_t)b, r, n, group);
    moei_gpu_quantize_args rest = moei_gpu_quantize_rows_rules(g);
    const int64_t k = (int64_t)group * MOEI_GPU_QUANTIZE_GROUP;
    rest.a.k = k + MOEI_GPU_QUANTIZE_GROUP; // where its rows end
    for (; left != 0; left &= left - 1u) {
        moei_gpu_quantize_warp(&rest, (int32_t)b, r + dev_ffs(left) - 1,
                               k + (int64_t)dev_lane() * MOEI_GPU_QN);
    }
}

// ------------------------------------------------------------------------------ a block per scale

/// The elements that share a scale: columns [k0, k1) of rows [r0, r1) of a batch.
typedef struct moei_gpu_span {
    int32_t b;
    int64_t r0, r1, k0, k1;
} moei_gpu_span;

DEV_FN int64_t moei_gpu_span_pieces(const moei_gpu_span *s)
{
    return (s->r1 - s->r0) * ((s->k1 - s->k0 + MOEI_GPU_QN - 1) / MOEI_GPU_QN);
}

DEV_FN void moei_gpu_span_piece(const moei_gpu_span *s, int64_t piece, int64_t *r, int64_t *k)
{
    const int64_t columns = (s->k1 - s->k0 + MOEI_GPU_QN - 1) / MOEI_GPU_QN;
    const int64_t over = moei_divide(piece, columns);
    *r = s->r0 + over;
    *k = s->k0 + (piece - over * columns) * MOEI_GPU_QN;
}

/// The magnitude of a span, the same in every thread. Shared memory: two words per warp.
DEV_FN moei_magnitude moei_gpu_span_magnitude(const moei_gpu_quantize_args *g,
                                              const moei_gpu_span *span)
{
    uint32_t *shared = (uint32_t *)dev_shared();
    const int64_t pieces = moei_gpu_span_pieces(span);
    moei_magnitude m = {0, 0};
    for (int64_t piece = dev_thread(); piece < pieces; piece += dev_threads()) {
        float x[MOEI_GPU_QN];
        int64_t r;
        int64_t k;
        moei_gpu_span_piece(span, piece, &r, &k);
        moei_gpu_quantize_load(g, moei_gpu_x_row(&g->a, span->b, r), k,
                               moei_gpu_piece_length(k, span->k1), x);
        moei_gpu_raise(&m, x);
    }
    m.amax = dev_warp_max_u32(m.amax);
    m.any = dev_warp_max_u32(m.any);
    dev_sync(); // the span before has been read
    if (dev_lane() == 0) {
        shared[2 * dev_warp()] = m.amax;
        shared[2 * dev_warp() + 1] = m.any;
    }
    dev_sync();
    for (uint32_t w = 0; w < dev_warps(); w++) {
        m.amax = shared[2 * w] > m.amax ? shared[2 * w] : m.amax;
        m.any = shared[2 * w + 1] > m.any ? shared[2 * w + 1] : m.any;
    }
    return m;
}

DEV_FN void moei_gpu_quantize_spans(const moei_gpu_quantize_args *g)
{
    const moek_quantize_args *a = &g->a;
    const int64_t block_rows = g->info.grain == MOEI_GRAIN_BLOCK ? g->info.block_rows : 1;
    const int64_t groups = moei_quantize_groups(a);
    const int64_t group = a->quant.group > 0 ? a->quant.group : a->k;
    const int64_t bands = moei_divide(a->rows + block_rows - 1, block_rows); // per batch
    const int64_t spans = a->batches * bands * groups;
    for (int64_t i = dev_block(); i < spans; i += dev_blocks()) {
        const int64_t band = moei_divide(i, groups);
        const int64_t at = i - band * groups;
        moei_gpu_span span;
        span.b = (int32_t)moei_divide(band, bands);
        const int64_t scale_row = band - span.b * bands;
        span.r0 = scale_row * block_rows;
        span.k0 = at * group;
        span.k1 = span.k0 + group < a->k ? span.k0 + group : a->k;
        const int64_t count = moei_quantize_count(a, span.b);
        const int64_t end = span.r0 + block_rows;
        if (span.r0 >= count) {
            if (a->zero_absent_scales && dev_thread() == 0) {
                moei_gpu_store_no_scale(a, span.b, scale_row, at);
            }
            continue;
        }
        span.r1 = end < count ? end : count;
        const moei_scale s = moei_gpu_scale_of(g, moei_gpu_span_magnitude(g, &span));
        if (dev_thread() == 0) {
            moei_gpu_store_scale(a, span.b, scale_row, at, &s);
        }
        const int64_t pieces = moei_gpu_span_pieces(&span);
        for (int64_t piece = dev_thread(); piece < pieces; piece += dev_threads()) {
            float x[MOEI_GPU_QN];
            int64_t r;
            int64_t k;
            moei_gpu_span_piece(&span, piece, &r, &k);
            const int n = moei_gpu_piece_length(k, span.k1);
            moei_gpu_quantize_load(g, moei_gpu_x_row(a, span.b, r), k, n, x);
            moei_gpu_quantize_store(g, &s, moei_gpu_q_row(a, span.b, r), k, n, x);
        }
    }
}

// ------------------------------------------------------------------------ one scale for all rows

/// Raises a.amax to the largest magnitude of all rows.
DEV_FN void moei_gpu_quantize_amax(const moei_gpu_quantize_args *g)
{
    const moek_quantize_args *a = &g->a;
    const moei_gpu_tiles tiles =
        moei_gpu_tiles_of(a->rows * a->batches, a->k, MOEI_GPU_QN, dev_threads(), 32);
    moei_magnitude m = {0, 0};
    for (int64_t tile = dev_block(); tile < tiles.count; tile += dev_blocks()) {
        int64_t row;
        int64_t k;
        moei_gpu_tile_at(&tiles, tile, MOEI_GPU_QN, dev_thread(), &row, &k);
        const int32_t b = a->batches > 1 ? (int32_t)moei_divide(row, a->rows) : 0;
        const int64_t r = row - b * a->rows;
        if (b < a->batches && r < moei_quantize_count(a, b)) {
            float x[MOEI_GPU_QN];
            moei_gpu_quantize_load(g, moei_gpu_x_row(a, b, r), k, moei_gpu_piece_length(k, a->k),
                                   x);
            moei_gpu_raise(&m, x);
        }
    }
    m.amax = dev_warp_max_u32(m.amax);
    if (dev_lane() == 0 && m.amax != 0) {
        (void)dev_max_u32(a->amax, m.amax);
    }
}

/// Before quantize_amax (stage AMAX) 0, where it raises; after it (stage SCALE) what follows.
DEV_FN void moei_gpu_quantize_scale(const moei_gpu_quantize_args *g)
{
    const moek_quantize_args *a = &g->a;
    if (dev_thread() != 0) {
        return;
    }
    if (a->stage == MOEK_QUANTIZE_AMAX) {
        *a->amax = 0;
        return;
    }
    const float value = moei_scale_of_all(&g->info, &a->quant, moei_f32_from_bits(*a->amax));
    if (g->info.scale == MOEI_SCALE_NVFP4_INVERSE) {
        a->global_scale[0] = value;
    } else {
        const moei_scale s = moei_scale_make(value, 0, MOEI_USE_TIMES, 0.0f);
        moei_gpu_store_scale(a, 0, 0, 0, &s);
    }
}

// -------------------------------------------------------------------------------------------- back

DEV_FN void moei_gpu_dequantize(const moei_gpu_quantize_args *g)
{
    const moek_quantize_args *a = &g->a;
    const moei_quant_grain grain = g->info.grain;
    const int64_t block_rows = grain == MOEI_GRAIN_BLOCK ? g->info.block_rows : 1;
    const moei_gpu_tiles tiles = moei_gpu_tiles_of(a->rows * a->batches, a->k, 1, dev_threads(), 1);
    for (int64_t tile = dev_block(); tile < tiles.count; tile += dev_blocks()) {
        int64_t row;
        int64_t k;
        moei_gpu_tile_at(&tiles, tile, 1, dev_thread(), &row, &k);
        const int32_t b = a->batches > 1 ? (int32_t)moei_divide(row, a->rows) : 0;
        const int64_t r = row - b * a->rows;
        if (b >= a->batches || r >= moei_quantize_count(a, b) || k >= a->k) {
            continue;
        }
        const int64_t band = grain == MOEI_GRAIN_TENSOR ? 0 : moei_divide(r, block_rows);
        const int64_t group = a->quant.group > 0 ? moei_divide(k, a->quant.group) : 0;
        float x = moei_gpu_load(a->quant.elem, moei_gpu_q_row(a, b, r), k) *
                  moei_gpu_load_scale(g, b, band, group);
        if (g->info.code == MOEI_CODE_GLOBAL) {
            x = moei_divf(x, a->global_scale[0]);
        }
        moei_gpu_store(a->x_dtype, moei_gpu_x_row(a, b, r), k, x);
    }
}

#endif
