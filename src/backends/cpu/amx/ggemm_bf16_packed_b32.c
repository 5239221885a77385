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
// flushed by it. Limits: up to 16 rows decoding; many rows, that detour of the sums.
#include "backends/cpu/amx/panel.h"
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
    for (int c = 0; c < 32; c++) {
        d.table[c] = moei_f32_to_bf16(moei_e2m1_to_f32((uint8_t)(c % 16)));
    }
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

moek_ggemm_fn moek_ggemm_any_bf16_packed__amx_b32;
void moek_ggemm_any_bf16_packed__amx_b32(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                         int64_t i1, int64_t n0, int64_t n1)
{
    if (i1 - i0 <= FEW) {
        moek_ggemm_any_bf16_packed__avx512_amx_b32(args, e, i0, i1, n0, n1);
        return;
    }
    each_panel(args, e, i0, i1, n0, n1, products);
}
