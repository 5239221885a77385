// SPDX-License-Identifier: Apache-2.0
// ggemm with AVX-512: bf16 times packed bf16, class amx_bf16, for few rows.
//
// A vector of packed weights is a pair of k of 16 outputs, just what the class multiplies apart:
//
//   load 64 bytes -- shift left --> even k of 16 outputs -- FMA with x[k]     --> even chains
//                 `- mask -------> odd k                 -- FMA with x[k + 1] --> odd chains
//
// Limit: memory.
#include <immintrin.h>

#include "backends/cpu/avx512/few.h"

#define STRIP  MOEI_CPU_STRIP
#define PANEL  MOEI_CPU_PANEL
#define RECORD MOEI_CPU_RECORD
#define PAIRS  (RECORD / 2)

// acc + (even + odd) of a record of a strip.
__attribute__((always_inline)) static inline void
add_strip(int64_t rows, const float *restrict x, const uint8_t *restrict strip, float *restrict acc)
{
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    __m512 even[FEW_ROWS];
    __m512 odd[FEW_ROWS];
    for (int64_t r = 0; r < rows; r++) {
        even[r] = _mm512_setzero_ps();
        odd[r] = _mm512_setzero_ps();
    }
    UNROLL
    for (int64_t u = 0; u < PAIRS; u++) {
        const __m512i pair = _mm512_load_si512(strip + 4 * STRIP * u);
        const __m512 w0 = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        const __m512 w1 = _mm512_castsi512_ps(_mm512_and_si512(pair, high));
        UNROLL
        for (int64_t r = 0; r < rows; r++) {
            const float *at = x + FEW_CHUNK * r + 2 * u;
            even[r] = _mm512_fmadd_ps(_mm512_set1_ps(at[0]), w0, even[r]);
            odd[r] = _mm512_fmadd_ps(_mm512_set1_ps(at[1]), w1, odd[r]);
        }
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        const __m512 sum = _mm512_load_ps(acc + PANEL * r);
        _mm512_store_ps(acc + PANEL * r, _mm512_add_ps(sum, _mm512_add_ps(even[r], odd[r])));
    }
}

__attribute__((always_inline)) static inline void add_records(few *f, int64_t rows,
                                                              const uint8_t *from, int64_t records)
{
    const uint32_t modes = moei_cpu_flush_begin();
    for (int64_t r = 0; r < records; r++) {
        for (int64_t n = 0; n < f->width; n += STRIP) {
            moei_cpu_ask_ahead(from, STRIP * 2 * RECORD);
            add_strip(rows, &f->x[0][RECORD * r], from, &f->acc[0][n]);
            from += STRIP * 2 * RECORD;
        }
    }
    moei_cpu_flush_end(modes);
}

static void add_panel(few *f)
{
    const uint8_t *from = f->from;
    for (int64_t k0 = 0; k0 < f->p.args.w.k; k0 += FEW_CHUNK) {
        const int64_t records = few_load(f, k0);
        switch (f->rows) {
        case 1:
            add_records(f, 1, from, records);
            break;
        case 2:
            add_records(f, 2, from, records);
            break;
        case 3:
            add_records(f, 3, from, records);
            break;
        default:
            add_records(f, 4, from, records);
            break;
        }
        from += 2 * f->width * FEW_CHUNK;
    }
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx;
void moek_ggemm_any_bf16_packed__avx512_amx(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                            int64_t i1, int64_t n0, int64_t n1)
{
    few f;
    moei_cpu_panels_open(&f.p, args, e, n0, n1);
    few_panels(&f, i0, i1, add_panel);
}
