// SPDX-License-Identifier: Apache-2.0
// ggemm with AVX-512 and VNNI: bf16 times packed MXFP4, class amx_bf16_b32, for few rows.
//
// Codes of 4 bits lie so that a shift leaves that of an even k, or of an odd one, in the lowest
// bits of each output; a permutation of 16 floats looks at no others. Sums of 32 k are kept for a
// chunk, and then meet their scales: nothing is flushed there.
//
// One row: records whose chains cannot round have the same sum in any order, so they run by
// integers, a third of the operations (../avx/ggemm_any_packed_exact.h). Neither can anything be
// flushed there: products are multiples of 2^-101.
//
// Limit: one row, memory; more, the vector pipes.
#include <immintrin.h>

#include "backends/cpu/avx/ggemm_any_packed_exact.h"
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/avx512/few.h"

#define CHUNK_RECORDS (FEW_CHUNK / RECORD)
#define CODES         (RECORD / 8) // words of an output in a record
#define CODE_BYTES    (STRIP * RECORD / 2)

typedef struct job {
    few f;                                                  // first: few_panel_fn has its address
    _Alignas(64) float sum[CHUNK_RECORDS][FEW_ROWS][PANEL]; // of records
    _Alignas(64) float scale[1][PANEL];
    _Alignas(64) float value[16];
    exact_x exact; // one row
} job;

// even + odd of a record of a strip.
__attribute__((always_inline)) static inline void sum_codes(int64_t rows, __m512 table,
                                                            const float *restrict x,
                                                            const uint8_t *restrict strip,
                                                            float *restrict sum)
{
    __m512 even[FEW_ROWS];
    __m512 odd[FEW_ROWS];
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
                const float *at = x + FEW_CHUNK * r + 8 * u + 2 * j;
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

static inline int64_t group_bytes(const few *f)
{
    return f->width + f->width * RECORD / 2;
}

// Records from the chunk's record `first` on, whose group begins at `from`.
__attribute__((always_inline)) static inline void
chain_records(job *j, int64_t rows, int64_t first, const uint8_t *from, int64_t records)
{
    few *f = &j->f;
    const int64_t step = group_bytes(f);
    const uint32_t modes = moei_cpu_flush_begin();
    const __m512 table = _mm512_load_ps(j->value);
    for (int64_t r = 0; r < records; r++) {
        const uint8_t *strip = from + r * step + f->width;
        moei_cpu_ask_ahead(from + r * step, step);
        for (int64_t n = 0; n < f->width; n += STRIP) {
            sum_codes(rows, table, &f->x[0][RECORD * (first + r)], strip, &j->sum[r][0][n]);
            strip += CODE_BYTES;
        }
    }
    moei_cpu_flush_end(modes);
    for (int64_t r = 0; r < records; r++) {
        load_scale_line(MOE_E8M0, from + r * step, f->width, j->scale[0]);
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t n = 0; n < f->width; n += STRIP) {
                float *acc = &f->acc[row][n];
                _mm512_store_ps(acc, _mm512_fmadd_ps(_mm512_load_ps(&j->sum[r][row][n]),
                                                     _mm512_load_ps(&j->scale[0][n]),
                                                     _mm512_load_ps(acc)));
            }
        }
    }
}

static void add_panel(few *f)
{
    job *j = (job *)(void *)f;
    const uint8_t *from = f->from;
    for (int64_t k0 = 0; k0 < f->p.args.w.k; k0 += FEW_CHUNK) {
        const int64_t records = few_load(f, k0);
        switch (f->rows) {
        case 1:
            chain_records(j, 1, 0, from, records);
            break;
        case 2:
            chain_records(j, 2, 0, from, records);
            break;
        case 3:
            chain_records(j, 3, 0, from, records);
            break;
        default:
            chain_records(j, 4, 0, from, records);
            break;
        }
        from += CHUNK_RECORDS * group_bytes(f);
    }
}

// ---- one row -----------------------------------------------------------------------------------

// Which records cannot round, before all panels.
static void find_exact(job *j, int64_t i)
{
    few *f = &j->f;
    f->i = i;
    f->rows = 1;
    exact_begin(&j->exact, 1);
    for (int64_t k0 = 0; k0 < f->p.args.w.k; k0 += FEW_CHUNK) {
        const int64_t records = few_load(f, k0);
        for (int64_t r = 0; r < records; r++) {
            if (!exact_goes_on(&j->exact)) {
                return;
            }
            exact_add(&j->exact, &f->x[0][RECORD * r], FEW_CHUNK, false, 0);
        }
    }
}

// Records r .. end - 1, the first of which is at `from`, that have so many lines with a rest.
__attribute__((always_inline)) static inline void fold_exact(job *j, int64_t r, int64_t end,
                                                             const uint8_t *from, int64_t rests)
{
    few *f = &j->f;
    const bool some = rests > 0 && rests < RECORD / 8;
    const digit_shape shape = {.rows = 1,
                               .vectors = VECTORS,
                               .digits = 2,
                               .rests = rests,
                               .cell = sizeof(cell16_rest),
                               .e2m1 = true};
    const fold_to to = {.first = 0,
                        .last = f->width / STRIP,
                        .sets = 1,
                        .scale = (const float(*)[PANEL])j->scale,
                        .acc = f->acc};
    for (; r < end; r++, from += group_bytes(f)) {
        moei_cpu_ask_ahead(from, f->width);
        load_scale_line(MOE_E8M0, from, f->width, j->scale[0]);
        fold_digits(shape, to, from + f->width, &j->exact.cells[r],
                    some ? j->exact.order[r] : NULL);
    }
}

static void exact_records(job *j, int64_t r, int64_t end, const uint8_t *from)
{
    switch (j->exact.rests[r]) {
    case 0:
        fold_exact(j, r, end, from, 0);
        break;
    case 1:
        fold_exact(j, r, end, from, 1);
        break;
    case 2:
        fold_exact(j, r, end, from, 2);
        break;
    case 3:
        fold_exact(j, r, end, from, 3);
        break;
    default:
        fold_exact(j, r, end, from, 4);
        break;
    }
}

// Records r .. end - 1 that follow one another and go one way: as r does.
static int64_t run_end(const exact_x *x, int64_t r, int64_t end)
{
    const bool exact = exact_at(x, r);
    int64_t to = r + 1;
    while (to < end && exact_at(x, to) == exact && (!exact || x->rests[to] == x->rests[r])) {
        to++;
    }
    return to;
}

static void add_row_panel(few *f)
{
    job *j = (job *)(void *)f;
    const int64_t records = f->p.packed.records;
    int64_t loaded = -1; // chunk of x
    for (int64_t r = 0, end; r < records; r = end) {
        const int64_t chunk = r / CHUNK_RECORDS;
        const uint8_t *from = f->from + r * group_bytes(f);
        end = run_end(&j->exact, r, moei_i64_min(records, (chunk + 1) * CHUNK_RECORDS));
        if (exact_at(&j->exact, r)) {
            exact_records(j, r, end, from);
            continue;
        }
        if (loaded != chunk) {
            (void)few_load(f, chunk * FEW_CHUNK);
            loaded = chunk;
        }
        chain_records(j, 1, r % CHUNK_RECORDS, from, end - r);
    }
}

moek_ggemm_fn moek_ggemm_any_bf16_packed__avx512_amx_b32;
void moek_ggemm_any_bf16_packed__avx512_amx_b32(const moek_ggemm_args *args, int32_t e, int64_t i0,
                                                int64_t i1, int64_t n0, int64_t n1)
{
    job j;
    moei_cpu_panels_open(&j.f.p, args, e, n0, n1);
    for (uint8_t code = 0; code < 16; code++) {
        j.value[code] = moei_e2m1_to_f32(code);
    }
    if (i1 - i0 == 1) {
        find_exact(&j, i0);
        few_panels(&j.f, i0, i1, j.exact.found ? add_row_panel : add_panel);
    } else {
        few_panels(&j.f, i0, i1, add_panel);
    }
}
