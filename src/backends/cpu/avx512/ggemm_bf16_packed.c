// SPDX-License-Identifier: Apache-2.0
// ggemm with AVX-512: bf16 times packed bf16 or MXFP4, classes amx_bf16 and amx_bf16_b32, for few
// rows: the bits of matrix units without them.
//
// A vector of packed weights is a pair of k of 16 outputs, just what the class multiplies apart:
//
//   load 64 bytes -- shift left --> even k of 16 outputs -- FMA with x[k]     --> even chains
//                 `- mask -------> odd k                 -- FMA with x[k + 1] --> odd chains
//
// Codes of 4 bits lie so that a shift leaves that of an even k, or of an odd one, in the lowest
// bits of each output; a permutation of 16 floats looks at no others. Sums of 32 k are kept for a
// chunk, and then meet their scales: nothing is flushed there.
//
// A panel is read once for up to four rows, in the order in which it lies. Limit: memory.
#include <immintrin.h>
#include <string.h>

#include "backends/cpu/avx/flush.h"
#include "backends/cpu/avx/load_x.h"
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/packed_panels.h"
#include "backends/cpu/unroll.h"

#define MR     4   // rows that share a panel
#define CHUNK  512 // k of x that are floats at once
#define STRIP  MOEI_CPU_STRIP
#define PANEL  MOEI_CPU_PANEL
#define RECORD MOEI_CPU_RECORD
#define PAIRS  (RECORD / 2)

typedef struct few {
    _Alignas(64) float x[MR][CHUNK];
    _Alignas(64) float acc[MR][PANEL];
    _Alignas(64) float sum[CHUNK / RECORD][MR][PANEL]; // of blocks that a scale is for
    _Alignas(64) float scale[PANEL];
    moei_cpu_panels p;
} few;

// `count` k from k0 on; up to whole records, zeros.
static void load_padded(const uint8_t *row, int64_t k0, int64_t count, float *out)
{
    const int64_t end = moei_i64_round_up(count, RECORD);
    load_x(MOE_BF16, row, k0, count, out);
    memset(out + count, 0, (size_t)(end - count) * sizeof *out);
}

// acc + (even + odd) of a record of a strip.
__attribute__((always_inline)) static inline void
add_strip(int64_t rows, const float *restrict x, const uint8_t *restrict strip, float *restrict acc)
{
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    __m512 even[MR];
    __m512 odd[MR];
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
            even[r] = _mm512_fmadd_ps(_mm512_set1_ps(x[CHUNK * r + 2 * u]), w0, even[r]);
            odd[r] = _mm512_fmadd_ps(_mm512_set1_ps(x[CHUNK * r + 2 * u + 1]), w1, odd[r]);
        }
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        const __m512 sum = _mm512_load_ps(acc + PANEL * r);
        _mm512_store_ps(acc + PANEL * r, _mm512_add_ps(sum, _mm512_add_ps(even[r], odd[r])));
    }
}

__attribute__((always_inline)) static inline void
add_records(few *f, int64_t rows, const uint8_t *from, int64_t width, int64_t records)
{
    const uint32_t modes = moei_cpu_flush_begin();
    for (int64_t r = 0; r < records; r++) {
        for (int64_t n = 0; n < width; n += STRIP) {
            moei_cpu_ask_ahead(from, STRIP * 2 * RECORD);
            add_strip(rows, &f->x[0][RECORD * r], from, &f->acc[0][n]);
            from += STRIP * 2 * RECORD;
        }
    }
    moei_cpu_flush_end(modes);
}

static void add_chunk(few *f, int64_t rows, const uint8_t *from, int64_t width, int64_t records)
{
    switch (rows) {
    case 1:
        add_records(f, 1, from, width, records);
        break;
    case 2:
        add_records(f, 2, from, width, records);
        break;
    case 3:
        add_records(f, 3, from, width, records);
        break;
    default:
        add_records(f, 4, from, width, records);
        break;
    }
}

// ---- 4 bits ------------------------------------------------------------------------------------

#define CODES      (RECORD / 8) // words of an output in a record
#define CODE_BYTES (STRIP * RECORD / 2)

// even + odd of a record of a strip.
__attribute__((always_inline)) static inline void sum_codes(int64_t rows, __m512 table,
                                                            const float *restrict x,
                                                            const uint8_t *restrict strip,
                                                            float *restrict sum)
{
    __m512 even[MR];
    __m512 odd[MR];
    for (int64_t r = 0; r < rows; r++) {
        even[r] = _mm512_setzero_ps();
        odd[r] = _mm512_setzero_ps();
    }
    UNROLL
    for (int64_t u = 0; u < CODES; u++) {
        const __m512i codes = _mm512_loadu_si512(strip + 4 * STRIP * u);
        UNROLL
        for (unsigned j = 0; j < 4; j++) {
            const __m512i low = _mm512_srli_epi32(codes, 4 * j);
            const __m512 w0 = _mm512_permutexvar_ps(low, table);
            const __m512 w1 = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 16 + 4 * j), table);
            UNROLL
            for (int64_t r = 0; r < rows; r++) {
                const float *at = x + CHUNK * r + 8 * u + 2 * j;
                even[r] = _mm512_fmadd_ps(_mm512_set1_ps(at[0]), w0, even[r]);
                odd[r] = _mm512_fmadd_ps(_mm512_set1_ps(at[1]), w1, odd[r]);
            }
        }
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        _mm512_store_ps(sum + PANEL * r, _mm512_add_ps(even[r], odd[r]));
    }
}

// `from`: at the head of a group, which is a record.
__attribute__((always_inline)) static inline void
fold_records(few *f, int64_t rows, const uint8_t *from, int64_t width, int64_t records)
{
    const int64_t step = width + width * RECORD / 2;
    _Alignas(64) float values[16];
    for (uint8_t code = 0; code < 16; code++) {
        values[code] = moei_e2m1_to_f32(code);
    }
    const uint32_t modes = moei_cpu_flush_begin();
    const __m512 table = _mm512_load_ps(values);
    for (int64_t r = 0; r < records; r++) {
        const uint8_t *strip = from + r * step + width;
        moei_cpu_ask_ahead(from + r * step, step);
        for (int64_t n = 0; n < width; n += STRIP) {
            sum_codes(rows, table, &f->x[0][RECORD * r], strip, &f->sum[r][0][n]);
            strip += CODE_BYTES;
        }
    }
    moei_cpu_flush_end(modes);
    for (int64_t r = 0; r < records; r++) {
        load_scale_line(MOE_E8M0, from + r * step, width, f->scale);
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t n = 0; n < width; n += STRIP) {
                float *acc = &f->acc[row][n];
                _mm512_store_ps(acc,
                                _mm512_fmadd_ps(_mm512_load_ps(&f->sum[r][row][n]),
                                                _mm512_load_ps(&f->scale[n]), _mm512_load_ps(acc)));
            }
        }
    }
}

static void fold_chunk(few *f, int64_t rows, const uint8_t *from, int64_t width, int64_t records)
{
    switch (rows) {
    case 1:
        fold_records(f, 1, from, width, records);
        break;
    case 2:
        fold_records(f, 2, from, width, records);
        break;
    case 3:
        fold_records(f, 3, from, width, records);
        break;
    default:
        fold_records(f, 4, from, width, records);
        break;
    }
}

// ---- panels ------------------------------------------------------------------------------------

// Rows i0 .. i1 - 1, MR at most, of a panel.
__attribute__((always_inline)) static inline void panel_of(few *f, int64_t i0, int64_t i1,
                                                           int64_t panel, bool four_bits)
{
    const moei_cpu_packed *p = &f->p.packed;
    const int64_t rows = i1 - i0;
    const int64_t width = moei_cpu_panel_width(p, panel);
    const int64_t record = width * (p->head + p->record);
    const uint8_t *from = f->p.expert + moei_cpu_group_at(p, panel, width, 0);
    memset(f->acc, 0, sizeof f->acc);
    for (int64_t k0 = 0; k0 < f->p.args.w.k; k0 += CHUNK) {
        const int64_t count = moei_i64_min(CHUNK, f->p.args.w.k - k0);
        const int64_t records = moei_i64_ceil_div(count, RECORD);
        for (int64_t r = 0; r < rows; r++) {
            load_padded(moei_x_at(&f->p.args, f->p.e, i0 + r), k0, count, f->x[r]);
        }
        if (four_bits) {
            fold_chunk(f, rows, from + k0 / RECORD * record, width, records);
        } else {
            add_chunk(f, rows, from + k0 / RECORD * record, width, records);
        }
    }
    moei_cpu_panel_finish(&f->p, panel, i0, i1, f->acc);
}

static inline void panels(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,
                          int64_t n0, int64_t n1, bool four_bits)
{
    few f;
    moei_cpu_panels_open(&f.p, args, e, n0, n1);
    for (int64_t panel = n0 / PANEL; panel * PANEL < n1; panel++) {
        for (int64_t i = i0; i < i1; i += MR) {
            panel_of(&f, i, moei_i64_min(i + MR, i1), panel, four_bits);
        }
    }
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx;
void moek_ggemm_any_bf16_packed__avx512_amx(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                            int64_t i1, int64_t n0, int64_t n1)
{
    panels(args, e, i0, i1, n0, n1, false);
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx_b32;
void moek_ggemm_any_bf16_packed__avx512_amx_b32(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                                int64_t i1, int64_t n0, int64_t n1)
{
    panels(args, e, i0, i1, n0, n1, true);
}
