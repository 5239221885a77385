// SPDX-License-Identifier: Apache-2.0
// ggemm with AMX: bf16 times packed MXFP4, class amx_bf16_b32.
//
// Codes lie so that a shift brings those of a pair of k to the low bits of two halves of a word; a
// permutation of 32 values of bf16, the 16 of a code twice, leaves them as tiles want them:
//
//   4 words of codes of 16 outputs -- 16 times: shift, permute, store --> a tile of 1 KiB
//
// Up to 32 rows share the decoded record. Its sums leave the tiles at once and are folded into
// those before with the scales, a vector of outputs at a time: any scale is exact, and nothing is
// flushed by it. Limit: decoding.
//
// For more rows that detour of the sums would be the limit. There codes are multiplied by their
// scales as they are decoded, powers of two, and sums stay in tiles (block.h). The bits are the
// same while nothing on the way is flushed or overflows, for a power of two commutes with rounding:
// x of 2^-60 to 2^61, or 0, and scales of 2^-40 to 2^40. Then any product is a multiple of
// 2^(-60 - 7 - 40 - 1), far from 2^-126, and so is any sum of them. Where an operand is beyond
// that, rows and panels are done again the first way.
#include "backends/cpu/amx/block.h"
#include "backends/cpu/avx2/scales.h"

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx_b32;

#define CODES      (RECORD / 8) // words of an output in a record
#define CODE_BYTES (MOEI_CPU_STRIP * RECORD / 2)

typedef struct decoded {
    _Alignas(64) uint8_t w[PANEL / MOEI_CPU_STRIP][TILE_BYTES];
    _Alignas(64) float sum[2][ROWS][PANEL];
    _Alignas(64) float scale[PANEL];
    _Alignas(64) uint16_t table[32];
} decoded;

static void fill_table(uint16_t table[32])
{
    for (int c = 0; c < 32; c++) {
        table[c] = moei_f32_to_bf16(moei_e2m1_to_f32((uint8_t)(c % 16)));
    }
}

// Strips that are not there stay as they were: their sums are dropped.
static void decode(decoded *d, const uint8_t *from, int64_t strips)
{
    const __m512i table = _mm512_load_si512(d->table);
    for (int64_t s = 0; s < strips; s++) {
        for (int64_t u = 0; u < CODES; u++) {
            const __m512i codes = _mm512_loadu_si512(from + CODE_BYTES * s + TILE_LINE * u);
            uint8_t *to = d->w[s] + 4 * TILE_LINE * u;
            _mm512_store_si512(to, _mm512_permutexvar_epi16(codes, table));
            _mm512_store_si512(to + TILE_LINE,
                               _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 4), table));
            _mm512_store_si512(to + 2 * TILE_LINE,
                               _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 8), table));
            _mm512_store_si512(to + 3 * TILE_LINE,
                               _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 12), table));
        }
    }
    tiles_see(d);
}

// The sums of a record, of 16 rows.
static inline void multiply(const decoded *d, const uint8_t *x, int64_t stride, float (*sum)[PANEL])
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, x, stride);
    _tile_loadd(5, d->w[0], TILE_LINE);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(5, d->w[1], TILE_LINE);
    _tile_dpbf16ps(1, 4, 5);
    _tile_loadd(5, d->w[2], TILE_LINE);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(5, d->w[3], TILE_LINE);
    _tile_dpbf16ps(3, 4, 5);
    _tile_stored(0, &sum[0][0], sizeof sum[0]);
    _tile_stored(1, &sum[0][16], sizeof sum[0]);
    _tile_stored(2, &sum[0][32], sizeof sum[0]);
    _tile_stored(3, &sum[0][48], sizeof sum[0]);
}

static inline void fold(const decoded *d, float (*sum)[PANEL], int64_t rows, int64_t width,
                        float (*acc)[PANEL])
{
    for (int64_t n = 0; n < width; n += MOEI_CPU_STRIP) {
        const __m512 scale = _mm512_load_ps(d->scale + n);
        for (int64_t r = 0; r < rows; r++) {
            const __m512 s = _mm512_load_ps(&sum[r][n]);
            _mm512_store_ps(&acc[r][n], _mm512_fmadd_ps(s, scale, _mm512_load_ps(&acc[r][n])));
        }
    }
}

static inline int64_t products(amx_panel *p, int64_t i, int64_t most)
{
    const int64_t rows = moei_i64_min(most, TALL);
    const int64_t low = moei_i64_min(rows, ROWS);
    const int64_t width = p->strips * MOEI_CPU_STRIP;
    decoded d;
    memset(d.w, 0, sizeof d.w);
    fill_table(d.table);
    memset(p->acc, 0, (size_t)rows * sizeof p->acc[0]);
    for (int64_t r0 = 0; r0 < p->records; r0 += CHUNK) {
        const int64_t r1 = moei_i64_min(r0 + CHUNK, p->records);
        const x_tiles x0 = bring_x(p, p->x[0], i, low, r0, r1);
        const x_tiles x1 = rows > ROWS ? bring_x(p, p->x[1], i + ROWS, rows - ROWS, r0, r1) : x0;
        for (int64_t r = r0; r < r1; r++) {
            const uint8_t *record = p->from + r * p->record;
            ask(p);
            load_scale_line(MOE_E8M0, record, width, d.scale);
            decode(&d, record + width, p->strips);
            multiply(&d, x0.from + (r - r0) * x0.step, x0.stride, d.sum[0]);
            if (rows > ROWS) {
                multiply(&d, x1.from + (r - r0) * x1.step, x1.stride, d.sum[1]);
                fold(&d, d.sum[1], rows - ROWS, width, p->acc + ROWS);
            }
            fold(&d, d.sum[0], low, width, p->acc);
        }
    }
    return rows;
}

// ---- many rows ---------------------------------------------------------------------------------

#define X_LEAST     (127 - 60) // exponents of x, as bf16 has them
#define X_MOST      (127 + 60)
#define SCALE_LEAST (127 - 40)
#define SCALE_MOST  (127 + 40)

/// What is decoded, and whether all operands so far are moderate.
typedef struct scaled_block {
    amx_block b;
    _Alignas(64) uint16_t table[32];
    bool moderate;
} scaled_block;

static bool x_is_moderate(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1)
{
    const __m512i least = _mm512_set1_epi16(X_LEAST << 7);
    const __m512i span = _mm512_set1_epi16((X_MOST - X_LEAST) << 7 | 0x7F);
    __mmask32 beyond = 0;
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *x = moei_x_at(a, e, i);
        for (int64_t k = 0; k < a->w.k; k += RECORD) {
            const __mmask32 there =
                (__mmask32)(UINT32_MAX >> (RECORD - moei_i64_min(RECORD, a->w.k - k)));
            const __m512i v = _mm512_and_si512(_mm512_maskz_loadu_epi16(there, x + 2 * k),
                                               _mm512_set1_epi16(0x7FFF));
            beyond |= _mm512_mask_cmpgt_epu16_mask(_mm512_test_epi16_mask(v, v),
                                                   _mm512_sub_epi16(v, least), span);
        }
    }
    return beyond == 0;
}

// A strip of a record with its scales, whose exponents go to both halves of an output's word.
static inline void decode_scaled(scaled_block *d, const uint8_t *codes_at, const uint8_t *scales,
                                 uint8_t *to)
{
    const __m512i table = _mm512_load_si512(d->table);
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)scales));
    const __m512i moved = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(127)), 23);
    const __m512i shift = _mm512_or_si512(moved, _mm512_srli_epi32(moved, 16));
    d->moderate &= _mm512_cmpgt_epu32_mask(_mm512_sub_epi32(e, _mm512_set1_epi32(SCALE_LEAST)),
                                           _mm512_set1_epi32(SCALE_MOST - SCALE_LEAST)) == 0;
    for (int u = 0; u < CODES; u++) {
        const __m512i codes = _mm512_loadu_si512(codes_at + TILE_LINE * u);
        for (int j = 0; j < 4; j++) {
            const __m512i w =
                _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, (unsigned)(4 * j)), table);
            const __mmask32 some = _mm512_test_epi16_mask(w, _mm512_set1_epi16(0x7FFF));
            _mm512_store_si512(to + TILE_LINE * (4 * u + j),
                               _mm512_mask_add_epi16(w, some, w, shift));
        }
    }
}

static inline w_tiles scaled_weights(amx_block *b, int64_t panel, int64_t width, int64_t s,
                                     int64_t r0, int64_t r1)
{
    scaled_block *d = (scaled_block *)(void *)b; // its first member
    const int64_t record = width * (b->packed->head + b->packed->record);
    const uint8_t *from = b->expert + moei_cpu_group_at(b->packed, panel, width, 0);
    const int64_t strips = width / MOEI_CPU_STRIP;
    for (int64_t r = r0; r < r1; r++) {
        const uint8_t *at = from + r * record;
        for (int64_t j = 0; j < 2 && s + j < strips; j++) {
            decode_scaled(d, at + width + (s + j) * CODE_BYTES, at + (s + j) * MOEI_CPU_STRIP,
                          b->w[r - r0] + j * TILE_BYTES);
        }
    }
    tiles_see(b->w);
    return (w_tiles){b->w[0], b->w[0] + (s + 1 < strips ? TILE_BYTES : 0), PAIR};
}

static void many(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                 int64_t n1)
{
    scaled_block d;
    const moei_cpu_packed packed = moei_cpu_packed_of(&args->w);
    const int64_t step = block_rows(i1 - i0);
    fill_table(d.table);
    block_open(&d.b, args, &packed, e);
    for (int64_t i = i0; i < i1; i += step) {
        const int64_t end = moei_i64_min(i + step, i1);
        const bool moderate = x_is_moderate(args, e, i, end);
        for (int64_t panel = n0 / PANEL; panel * PANEL < n1; panel += GROUP_PANELS) {
            const int64_t panels = group_of(panel, n1);
            d.moderate = moderate;
            if (moderate) {
                block_sums(&d.b, i, end, panel, panels, scaled_weights);
            }
            if (d.moderate) {
                block_finish(&d.b, i, end, panel, panels, n0, n1);
            } else {
                _tile_release();
                each_panel(args, e, i, end, moei_i64_max(panel * PANEL, n0),
                           moei_i64_min((panel + panels) * PANEL, n1), products);
                tiles_begin();
            }
        }
    }
    _tile_release();
}

// ---- the row -----------------------------------------------------------------------------------

moek_ggemm_fn moek_ggemm_any_bf16_packed__amx_b32;
void moek_ggemm_any_bf16_packed__amx_b32(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                         int64_t i1, int64_t n0, int64_t n1)
{
    if (i1 - i0 <= FEW) {
        moek_ggemm_any_bf16_packed__avx512_amx_b32(args, e, i0, i1, n0, n1);
        return;
    }
    if (i1 - i0 > TALL) {
        many(args, e, i0, i1, n0, n1);
        return;
    }
    each_panel(args, e, i0, i1, n0, n1, products);
}
