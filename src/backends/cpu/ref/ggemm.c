// SPDX-License-Identifier: Apache-2.0
// ggemm, portable: every weight format, every activation format, every arithmetic class.
//
// A task is MR rows x NR outputs of one expert. Per CHUNK of k, W's codes are decoded once to f32
// [CHUNK][NR] and x's rows to [MR][CHUNK]; then each row runs NR independent chains over the chunk
// (or over each block that shares a scale), ascending, side by side along n. Two rows at a time
// fill the FMA pipes (eight chains of eight lanes). Limit: the decode, which MR rows share.
#include <float.h>
#include <math.h>

#include "backends/cpu/product.h"
#include "backends/cpu/ref/lanes.h"
#include "backends/cpu/ref/ref.h"

#define MR    32
#define NR    32
#define CHUNK 256

typedef struct tile {
    float w[CHUNK][NR];
    float x[MR][CHUNK];
    float acc[MR][NR];
} tile;

// w[kk][nn] = code(n0 + nn, k0 + kk) - zero point; columns past n1 are 0.
static void decode_weights(const moei_matrices *w, int32_t e, int64_t n0, int64_t n1, int64_t k0,
                           int64_t kc, float out[CHUNK][NR])
{
    const uint8_t *base = w->values + (int64_t)e * w->value_e_stride;
    const moe_dtype elem = w->format->elem;
    const int64_t nc = n1 - n0;
    float line[CHUNK > NR ? CHUNK : NR];
    if (nc < NR) {
        memset(out, 0, (size_t)kc * sizeof out[0]);
    }
    if (w->value_k_stride == 0) { // rows of k lie packed
        for (int64_t nn = 0; nn < nc; nn++) {
            moei_load_f32(elem, base + (n0 + nn) * w->value_n_stride, k0, kc, line);
            for (int64_t kk = 0; kk < kc; kk++) {
                out[kk][nn] = line[kk];
            }
        }
    } else { // transposed: rows of n lie packed
        for (int64_t kk = 0; kk < kc; kk++) {
            moei_load_f32(elem, base + (k0 + kk) * w->value_k_stride, n0, nc, line);
            memcpy(out[kk], line, (size_t)nc * sizeof line[0]);
        }
    }
    if (w->format->zero_point >= 0) {
        for (int64_t kk = 0; kk < kc; kk++) {
            for (int64_t nn = 0; nn < nc; nn++) {
                out[kk][nn] -= moei_cpu_zero_point(w, e, n0 + nn, k0 + kk);
            }
        }
    }
}

// One chunk of one row, or of two, whose loads of w are shared: NR chains each, ascending k, from
// +0.
static inline void chain(const float *restrict x, float (*restrict w)[NR], int64_t kc,
                         float *restrict sum)
{
    lanes s0 = lanes_zero();
    lanes s1 = lanes_zero();
    lanes s2 = lanes_zero();
    lanes s3 = lanes_zero();
    for (int64_t kk = 0; kk < kc; kk++) {
        s0 = lanes_fma(x[kk], &w[kk][0], s0);
        s1 = lanes_fma(x[kk], &w[kk][8], s1);
        s2 = lanes_fma(x[kk], &w[kk][16], s2);
        s3 = lanes_fma(x[kk], &w[kk][24], s3);
    }
    lanes_store(sum, s0);
    lanes_store(sum + 8, s1);
    lanes_store(sum + 16, s2);
    lanes_store(sum + 24, s3);
}

static inline void chain2(const float *restrict x, const float *restrict y, float (*restrict w)[NR],
                          int64_t kc, float *restrict sum)
{
    lanes s0 = lanes_zero();
    lanes s1 = lanes_zero();
    lanes s2 = lanes_zero();
    lanes s3 = lanes_zero();
    lanes t0 = lanes_zero();
    lanes t1 = lanes_zero();
    lanes t2 = lanes_zero();
    lanes t3 = lanes_zero();
    for (int64_t kk = 0; kk < kc; kk++) {
        s0 = lanes_fma(x[kk], &w[kk][0], s0);
        t0 = lanes_fma(y[kk], &w[kk][0], t0);
        s1 = lanes_fma(x[kk], &w[kk][8], s1);
        t1 = lanes_fma(y[kk], &w[kk][8], t1);
        s2 = lanes_fma(x[kk], &w[kk][16], s2);
        t2 = lanes_fma(y[kk], &w[kk][16], t2);
        s3 = lanes_fma(x[kk], &w[kk][24], s3);
        t3 = lanes_fma(y[kk], &w[kk][24], t3);
    }
    lanes_store(sum, s0);
    lanes_store(sum + 8, s1);
    lanes_store(sum + 16, s2);
    lanes_store(sum + 24, s3);
    lanes_store(sum + 32, t0);
    lanes_store(sum + 40, t1);
    lanes_store(sum + 48, t2);
    lanes_store(sum + 56, t3);
}

// Adds a chunk's sums: as they are, or folded with the scales of x and W.
static inline void add_chunk(const moek_ggemm_args *a, int32_t e, int64_t i, int64_t k0, bool fold,
                             bool fold_x, const float *restrict sum, const float *restrict scale,
                             float *restrict acc)
{
    const float x_scale = fold_x ? moei_cpu_operand_scale(a, e, i, k0) : 1.0f;
    for (int nn = 0; nn < NR; nn++) {
        acc[nn] = fold ? moei_fmaf(sum[nn] * x_scale, scale[nn], acc[nn]) : acc[nn] + sum[nn];
    }
}

// chunk: elements of k per chain, a divisor of CHUNK; fold: a chunk's scale is applied to its sum.
static inline void block(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                         int64_t n1, int64_t chunk, bool fold)
{
    tile t;
    const int64_t rows = i1 - i0;
    const bool fold_w = fold && a->w.scales != NULL && a->w.block_k > 0;
    const bool fold_x = fold && a->x.scales != NULL && a->x.group > 0;
    memset(t.acc, 0, (size_t)rows * sizeof t.acc[0]);
    for (int64_t k0 = 0; k0 < a->w.k; k0 += CHUNK) {
        const int64_t kc = moei_i64_min(CHUNK, a->w.k - k0);
        decode_weights(&a->w, e, n0, n1, k0, kc, t.w);
        for (int64_t r = 0; r < rows; r++) {
            moei_load_f32(a->x.dtype, moei_x_at(a, e, i0 + r), k0, kc, t.x[r]);
        }
        for (int64_t k = 0; k < kc; k += chunk) {
            const int64_t n = moei_i64_min(chunk, kc - k);
            float scale[NR];
            for (int nn = 0; nn < NR; nn++) {
                scale[nn] = fold_w && nn < n1 - n0
                                ? moei_cpu_weight_scale(&a->w, e, n0 + nn, k0 + k)
                                : 1.0f;
            }
            for (int64_t r = 0; r < rows; r += 2) {
                float sum[2][NR];
                if (r + 1 < rows) {
                    chain2(&t.x[r][k], &t.x[r + 1][k], &t.w[k], n, sum[0]);
                } else {
                    chain(&t.x[r][k], &t.w[k], n, sum[0]);
                }
                for (int64_t h = 0; h < 2 && r + h < rows; h++) {
                    add_chunk(a, e, i0 + r + h, k0 + k, fold, fold_x, sum[h], scale, t.acc[r + h]);
                }
            }
        }
    }
    moei_cpu_columns columns;
    moei_cpu_load_columns(&a->w, e, n0, n1, &columns);
    for (int64_t r = 0; r < rows; r++) {
        moei_cpu_finish(a, &columns, e, i0 + r, n0, n1, t.acc[r]);
    }
}

static inline void blocks(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                          int64_t n1, int64_t chunk, bool fold)
{
    for (int64_t i = i0; i < i1; i += MR) {
        for (int64_t n = n0; n < n1; n += NR) {
            block(a, e, i, moei_i64_min(i + MR, i1), n, moei_i64_min(n + NR, n1), chunk, fold);
        }
    }
}

#define CHAIN_KERNEL(suffix, chunk, fold)                                                          \
    moek_ggemm_fn MOEI_REF2(moek_ggemm_any_any_any, suffix);                                       \
    void MOEI_REF2(moek_ggemm_any_any_any, suffix)(const moek_ggemm_args *args, int32_t e,         \
                                                   int64_t i0, int64_t i1, int64_t n0, int64_t n1) \
    {                                                                                              \
        blocks(args, e, i0, i1, n0, n1, chunk, fold);                                              \
    }
CHAIN_KERNEL(_c256, 256, false)
CHAIN_KERNEL(_b16, 16, true)
CHAIN_KERNEL(_b32, 32, true)
CHAIN_KERNEL(_b64, 64, true)
CHAIN_KERNEL(_b128, 128, true)

// ---- class amx_bf16 ----------------------------------------------------------------------------

static float flush(float v)
{
    return fabsf(v) < FLT_MIN ? copysignf(0.0f, v) : v;
}

// a * b + c of flushed operands, flushed. What rounds up to the smallest normal number is one only
// if it does so with the precision of normal ones.
static float flushed_fma(float a, float b, float c)
{
    const float r = moei_fmaf(a, b, c);
    if (fabsf(r) != FLT_MIN) {
        return flush(r);
    }
    const bool a_small = fabsf(a) < fabsf(b); // and so far from overflow
    const float up = moei_fmaf(a_small ? 0x1p64f * a : a, a_small ? b : 0x1p64f * b, 0x1p64f * c);
    return fabsf(up) < 0x1p64f * FLT_MIN ? copysignf(0.0f, r) : r;
}

#define PAIRED 32 // k of two chains, of the even and of the odd ones

// even + odd of PAIRED k, added or folded with a scale, which flushes nothing.
static void add_paired(const float *x, float (*w)[NR], const float *scale, float *acc)
{
    for (int nn = 0; nn < NR; nn++) {
        float sum[2] = {0.0f, 0.0f};
        for (int64_t kk = 0; kk < PAIRED; kk++) {
            sum[kk % 2] = flushed_fma(x[kk], w[kk][nn], sum[kk % 2]);
        }
        const float both = flush(sum[0] + sum[1]);
        acc[nn] = scale != NULL ? moei_fmaf(both, scale[nn], acc[nn]) : flush(acc[nn] + both);
    }
}

static void flush_all(float *v, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        v[i] = flush(v[i]);
    }
}

static inline void block_amx(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1,
                             int64_t n0, int64_t n1, bool fold)
{
    tile t;
    float scale[CHUNK / PAIRED][NR];
    const int64_t rows = i1 - i0;
    memset(t.acc, 0, (size_t)rows * sizeof t.acc[0]);
    for (int64_t k0 = 0; k0 < a->w.k; k0 += CHUNK) {
        const int64_t kc = moei_i64_min(CHUNK, a->w.k - k0);
        memset(t.w, 0, sizeof t.w); // blocks are whole: past K there are zeros
        memset(t.x, 0, (size_t)rows * sizeof t.x[0]);
        decode_weights(&a->w, e, n0, n1, k0, kc, t.w);
        flush_all(t.w[0], CHUNK * NR);
        for (int64_t k = 0; fold && k < kc; k += PAIRED) {
            for (int nn = 0; nn < NR; nn++) {
                scale[k / PAIRED][nn] =
                    nn < n1 - n0 ? moei_cpu_weight_scale(&a->w, e, n0 + nn, k0 + k) : 1.0f;
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            moei_load_f32(a->x.dtype, moei_x_at(a, e, i0 + r), k0, kc, t.x[r]);
            flush_all(t.x[r], CHUNK);
            for (int64_t k = 0; k < kc; k += PAIRED) {
                add_paired(&t.x[r][k], &t.w[k], fold ? scale[k / PAIRED] : NULL, t.acc[r]);
            }
        }
    }
    moei_cpu_columns columns;
    moei_cpu_load_columns(&a->w, e, n0, n1, &columns);
    for (int64_t r = 0; r < rows; r++) {
        moei_cpu_finish(a, &columns, e, i0 + r, n0, n1, t.acc[r]);
    }
}

#define PAIRED_KERNEL(suffix, fold)                                                                \
    moek_ggemm_fn MOEI_REF2(moek_ggemm_any_any_any, suffix);                                       \
    void MOEI_REF2(moek_ggemm_any_any_any, suffix)(const moek_ggemm_args *args, int32_t e,         \
                                                   int64_t i0, int64_t i1, int64_t n0, int64_t n1) \
    {                                                                                              \
        for (int64_t i = i0; i < i1; i += MR) {                                                    \
            for (int64_t n = n0; n < n1; n += NR) {                                                \
                block_amx(args, e, i, moei_i64_min(i + MR, i1), n, moei_i64_min(n + NR, n1),       \
                          fold);                                                                   \
            }                                                                                      \
        }                                                                                          \
    }
PAIRED_KERNEL(_amx, false)
PAIRED_KERNEL(_amx_b32, true)

// ---- class i32 ---------------------------------------------------------------------------------

// Codes of both operands are integers of at most 8 bits: a chunk's sum is exact in f32 (256 *
// 128 * 255 < 2^23), and the chunks add up in 64-bit integers.
static void block_i32(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                      int64_t n1)
{
    tile t;
    int64_t total[MR][NR];
    const int64_t rows = i1 - i0;
    memset(total, 0, (size_t)rows * sizeof total[0]);
    for (int64_t k0 = 0; k0 < a->w.k; k0 += CHUNK) {
        const int64_t kc = moei_i64_min(CHUNK, a->w.k - k0);
        decode_weights(&a->w, e, n0, n1, k0, kc, t.w);
        for (int64_t r = 0; r < rows; r++) {
            float sum[NR];
            moei_load_f32(a->x.dtype, moei_x_at(a, e, i0 + r), k0, kc, t.x[r]);
            chain(t.x[r], t.w, kc, sum);
            for (int nn = 0; nn < NR; nn++) {
                total[r][nn] += (int64_t)sum[nn];
            }
        }
    }
    moei_cpu_columns columns;
    moei_cpu_load_columns(&a->w, e, n0, n1, &columns);
    for (int64_t r = 0; r < rows; r++) {
        float acc[NR];
        for (int nn = 0; nn < NR; nn++) {
            acc[nn] = (float)total[r][nn];
        }
        moei_cpu_finish(a, &columns, e, i0 + r, n0, n1, acc);
    }
}

moek_ggemm_fn MOEI_REF2(moek_ggemm_any_any_any, _i32);
void MOEI_REF2(moek_ggemm_any_any_any, _i32)(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                             int64_t i1, int64_t n0, int64_t n1)
{
    for (int64_t i = i0; i < i1; i += MR) {
        for (int64_t n = n0; n < n1; n += NR) {
            block_i32(args, e, i, moei_i64_min(i + MR, i1), n, moei_i64_min(n + NR, n1));
        }
    }
}
