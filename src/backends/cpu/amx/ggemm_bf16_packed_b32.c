// SPDX-License-Identifier: Apache-2.0
// ggemm with AMX: bf16 times packed MXFP4, class amx_bf16_b32.
//
// Codes lie so that a shift brings those of a pair of k to the low bits of two halves of a word; a
// permutation of 32 values of bf16, the 16 of a code twice, leaves them as tiles want them. They
// are multiplied by their scales as they are decoded, powers of two, and sums stay in tiles
// (block.h):
//
//   4 words of codes of 16 outputs -- 16 times: shift, permute, scale, store --> a tile of 1 KiB
//
// The bits are those of the class while nothing on the way is flushed or overflows, for a power of
// two commutes with rounding: x of 2^-77 to 2^61, or 0, and scales of 2^-40 to 2^40. Then any
// product is a multiple of 2^(-77 - 7 - 40 - 1), and so is any sum of them. Where an operand is
// beyond that, the sums of a record leave the tiles at once and are folded into those before with
// the scales, a vector of outputs at a time.
//
// Limits: decoding for few rows, the multiplications for many.
#include "backends/cpu/amx/block.h"
#include "backends/cpu/avx2/scales.h"

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx_b32;

#define CODES       (RECORD / 8) // words of an output in a record
#define CODE_BYTES  (MOEI_CPU_STRIP * RECORD / 2)
#define FOLD_TILES  2 // of rows that share a decoded record
#define X_LEAST     MOEI_CPU_TILED_LEAST
#define X_MOST      MOEI_CPU_TILED_MOST
#define SCALE_LEAST (127 - 40)
#define SCALE_MOST  (127 + 40)

typedef struct decoder {
    amx_block b;
    _Alignas(64) uint16_t scaled[32]; // of a code, as decode_scaled wants it
    _Alignas(64) uint16_t plain[32];
    uint32_t beyond; // not 0: an operand was
} decoder;

static decoder *decoder_of(amx_block *b)
{
    return (decoder *)(void *)b; // its first member
}

// ---- with scales -------------------------------------------------------------------------------

// Exponents grow by those of scales as (code + SCALE_MOST) - (SCALE_MOST - scale), where the
// difference ends at 0: so zeros stay zeros. Those of weights need no sign: no sum is ever -0.
static void fill_tables(decoder *d)
{
    for (int c = 0; c < 32; c++) {
        const uint16_t value = moei_f32_to_bf16(moei_e2m1_to_f32((uint8_t)(c % 16)));
        const int grown = value + ((SCALE_MOST - 127) << 7);
        d->plain[c] = value;
        d->scaled[c] = (value & 0x7FFF) == 0 ? 0 : (uint16_t)grown;
    }
}

static inline void look_at_x(amx_block *b, const uint8_t *x, int64_t k)
{
    const __m512i least = _mm512_set1_epi16(X_LEAST << 7);
    const __m512i span = _mm512_set1_epi16((X_MOST - X_LEAST) << 7 | 0x7F);
    __mmask32 beyond = 0;
    for (int64_t at = 0; at < k; at += RECORD) {
        const __mmask32 there = (__mmask32)(UINT32_MAX >> (RECORD - moei_i64_min(RECORD, k - at)));
        const __m512i v = _mm512_and_si512(_mm512_maskz_loadu_epi16(there, x + 2 * at),
                                           _mm512_set1_epi16(0x7FFF));
        beyond |= _mm512_mask_cmpgt_epu16_mask(_mm512_test_epi16_mask(v, v),
                                               _mm512_sub_epi16(v, least), span);
    }
    decoder_of(b)->beyond |= beyond;
}

// A strip of a record with its scales, whose exponents meet both halves of an output's word.
static inline void decode_scaled(decoder *d, const uint8_t *codes_at, const uint8_t *scales,
                                 uint8_t *to)
{
    const __m512i table = _mm512_load_si512(d->scaled);
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)scales));
    const __m512i less = _mm512_sub_epi32(_mm512_set1_epi32(SCALE_MOST), e);
    const __m512i shift = _mm512_or_si512(_mm512_slli_epi32(less, 7), _mm512_slli_epi32(less, 23));
    d->beyond |= _mm512_cmpgt_epu32_mask(less, _mm512_set1_epi32(SCALE_MOST - SCALE_LEAST));
    for (int u = 0; u < CODES; u++) {
        // A byte further on: two shifts less. No byte behind the codes is read.
        const uint8_t *at = codes_at + TILE_LINE * u;
        const __m512i codes = _mm512_loadu_si512(at);
        const __m512i next = _mm512_maskz_loadu_epi8(UINT64_MAX >> 1, at + 1);
        const __m512i pairs[4] = {codes, _mm512_srli_epi32(codes, 4), next,
                                  _mm512_srli_epi32(next, 4)};
        for (int j = 0; j < 4; j++) {
            const __m512i w = _mm512_permutexvar_epi16(pairs[j], table);
            _mm512_store_si512(to + TILE_LINE * (4 * u + j), _mm512_subs_epu16(w, shift));
        }
    }
}

static inline w_pair scaled_pair(amx_block *b, int64_t panel, int64_t s, int64_t r0)
{
    const int64_t width = moei_cpu_panel_width(&b->p.packed, panel);
    const bool two = (s + 1) * MOEI_CPU_STRIP < width;
    return (w_pair){.first = b->w[0],
                    .second = b->w[0] + (two ? TILE_BYTES : 0),
                    .step = PAIR,
                    .from = record_at(b, panel, r0),
                    .s = s,
                    .width = width};
}

static inline void decode_pair(amx_block *b, const w_pair *w, int64_t r)
{
    decoder *d = decoder_of(b);
    const uint8_t *scales = w->from + r * record_bytes(b, w->width) + w->s * MOEI_CPU_STRIP;
    const uint8_t *codes = scales + w->width + w->s * (CODE_BYTES - MOEI_CPU_STRIP);
    decode_scaled(d, codes, scales, b->w[r]);
    if (w->second != w->first) {
        decode_scaled(d, codes + CODE_BYTES, scales + MOEI_CPU_STRIP, b->w[r] + TILE_BYTES);
    }
    tiles_see(b->w);
}

// ---- folded ------------------------------------------------------------------------------------

typedef struct folding {
    _Alignas(64) uint8_t w[PANEL_STRIPS][TILE_BYTES];
    _Alignas(64) float sum[ROWS][PANEL];
    _Alignas(64) float acc[FOLD_TILES * ROWS][PANEL];
    _Alignas(64) float scale[PANEL];
} folding;

// Strips that are not there stay as they were: their sums are dropped.
static void decode_plain(const decoder *d, const uint8_t *from, int64_t strips, folding *f)
{
    const __m512i table = _mm512_load_si512(d->plain);
    for (int64_t s = 0; s < strips; s++) {
        for (int64_t u = 0; u < CODES; u++) {
            const __m512i codes = _mm512_loadu_si512(from + CODE_BYTES * s + TILE_LINE * u);
            for (int j = 0; j < 4; j++) {
                const __m512i pair = _mm512_srli_epi32(codes, (unsigned)(4 * j));
                _mm512_store_si512(f->w[s] + TILE_LINE * (4 * u + j),
                                   _mm512_permutexvar_epi16(pair, table));
            }
        }
    }
    tiles_see(f);
}

// The sums of a record, of 16 rows.
static void multiply(folding *f, const uint8_t *x)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, x, TILE_LINE);
    _tile_loadd(5, f->w[0], TILE_LINE);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(5, f->w[1], TILE_LINE);
    _tile_dpbf16ps(1, 4, 5);
    _tile_loadd(5, f->w[2], TILE_LINE);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(5, f->w[3], TILE_LINE);
    _tile_dpbf16ps(3, 4, 5);
    _tile_stored(0, &f->sum[0][0], sizeof f->sum[0]);
    _tile_stored(1, &f->sum[0][16], sizeof f->sum[0]);
    _tile_stored(2, &f->sum[0][32], sizeof f->sum[0]);
    _tile_stored(3, &f->sum[0][48], sizeof f->sum[0]);
    tiles_see(f);
}

static void fold(const folding *f, int64_t width, float (*acc)[PANEL])
{
    for (int64_t n = 0; n < width; n += MOEI_CPU_STRIP) {
        const __m512 scale = _mm512_load_ps(f->scale + n);
        for (int64_t r = 0; r < ROWS; r++) {
            const __m512 sum = _mm512_load_ps(&f->sum[r][n]);
            _mm512_store_ps(&acc[r][n], _mm512_fmadd_ps(sum, scale, _mm512_load_ps(&acc[r][n])));
        }
    }
}

// Rows i0 .. i1 - 1, FOLD_TILES tiles at most, times a panel, to f->acc.
static void folded_sums(decoder *d, int64_t i0, int64_t i1, int64_t panel, folding *f)
{
    static const block_ops ops = {NULL, NULL, NULL};
    amx_block *b = &d->b;
    const int64_t width = moei_cpu_panel_width(&b->p.packed, panel);
    const int64_t high = moei_i64_ceil_div(i1 - i0, ROWS);
    memset(f->w, 0, sizeof f->w);
    memset(f->acc, 0, sizeof f->acc);
    for (int64_t r0 = 0; r0 < b->p.packed.records; r0 += b->depth) {
        const int64_t r1 = moei_i64_min(r0 + b->depth, b->p.packed.records);
        bring_x(b, &ops, i0, i1, r0, r1);
        for (int64_t r = r0; r < r1; r++) {
            const uint8_t *record = record_at(b, panel, r);
            load_scale_line(MOE_E8M0, record, width, f->scale);
            decode_plain(d, record + width, width / MOEI_CPU_STRIP, f);
            for (int64_t t = 0; t < high; t++) {
                multiply(f, x_tile(b, t) + (r - r0) * TILE_BYTES);
                fold(f, width, f->acc + t * ROWS);
            }
        }
    }
}

static void folded_panel(decoder *d, int64_t i0, int64_t i1, int64_t panel)
{
    folding f;
    for (int64_t i = i0; i < i1; i += FOLD_TILES * ROWS) {
        const int64_t next = moei_i64_min(i + FOLD_TILES * ROWS, i1);
        folded_sums(d, i, next, panel, &f);
        moei_cpu_panel_finish(&d->b.p, panel, i, next, f.acc);
    }
}

// ---- the row -----------------------------------------------------------------------------------

static void coded_group(amx_block *b, int64_t i0, int64_t i1, int64_t panel, int64_t panels)
{
    static const block_ops ops = {scaled_pair, decode_pair, look_at_x};
    decoder *d = decoder_of(b);
    d->beyond = 0;
    for (int64_t i = i0; b->tiles != NULL && i < i1; i += ROWS) {
        d->beyond |=
            moei_cpu_x_tiles_beyond(b->tiles + (i - b->p.i0) / ROWS * b->x_step, b->p.args.w.k);
    }
    block_sums(b, &ops, i0, i1, panel, panels);
    if (d->beyond == 0) {
        block_finish(b, i0, i1, panel, panels);
        return;
    }
    for (int64_t p = panel; p < panel + panels; p++) {
        folded_panel(d, i0, i1, p);
    }
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__amx_b32;
void moek_ggemm_any_bf16_packed__amx_b32(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                         int64_t i1, int64_t n0, int64_t n1)
{
    if (i1 - i0 <= FEW && args->x.row_stride != MOEI_CPU_TILED) {
        moek_ggemm_any_bf16_packed__avx512_amx_b32(args, e, i0, i1, n0, n1);
        return;
    }
    decoder d;
    fill_tables(&d);
    each_group(&d.b, args, e, i0, i1, n0, n1, coded_group);
}
