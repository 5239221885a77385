// SPDX-License-Identifier: Apache-2.0
// ggemm of codes times codes: x of i8b32 or i16b32 with packed weights of integers, or of e2m1,
// counted in halves. Integer instructions give the bits of the portable rows. One source for AVX2
// and for AVX-512 with VNNI.
//
// Why: in the chain of a block of 32 k, every sum is a multiple of 1/2 below 2^24 (docs/numerics.md
// has the worst cases), so no step of it rounds, and any order of exact operations ends in the same
// float. After it come the portable row's own steps, acc = fma(sum * s_x, s_w, acc).
//
// A vector holds 8 or 16 outputs, a lane each, as packed.h lays them: half a strip or a strip.
//
//   run         blocks of up to 32 rows; the way of x: digits, bytes or pairs
//   run_rows    x prepared a chunk of k at a time (.h), four panels side by side, what follows sums
//   loop        records of a panel (_rows.h), which are added by digits (_digits.h), or by pairs or
//               bytes (_pairs.h): those headers count operations
//
// Class i32, int8 with int8 and no scales along k: bytes or pairs again, whose sums of 32 bits go
// on over all of k, in 64 bits from chunk to chunk where k is long, and become floats at the end.
//
// Limits: one row: memory; many rows: the multiplier ports (10 of the 22 operations of digits, 8 of
// the 12 of VNNI).
#include "backends/cpu/avx/ggemm_ints_packed.h"

#include "backends/cpu/avx/ggemm_ints_packed_rows.h"

static void want_strips(job *j, int64_t panel, int64_t n0, int64_t n1)
{
    j->first = moei_i64_max(n0 - panel * PANEL, 0) / STRIP;
    j->last = moei_i64_ceil_div(moei_i64_min(n1 - panel * PANEL, PANEL), STRIP);
}

// The integers of a chunk to those of the chunks before it. Each has fewer than WHOLE_TOP k.
static void end_chunk(int64_t rows, float (*acc)[PANEL], int64_t (*total)[PANEL])
{
    for (int64_t r = 0; r < rows; r++) {
        int32_t sums[PANEL];
        memcpy(sums, acc[r], sizeof sums);
        memset(acc[r], 0, sizeof acc[r]);
        for (int64_t n = 0; n < PANEL; n++) {
            total[r][n] += sums[n];
        }
    }
}

static void finish_panel(job *j, int64_t panel, int64_t i0, int64_t i1, int64_t n0, int64_t n1,
                         float (*acc)[PANEL], int64_t (*total)[PANEL])
{
    const int64_t from = moei_i64_max(n0, panel * PANEL);
    const int64_t to = moei_i64_min(n1, (panel + 1) * PANEL);
    moei_cpu_load_columns(&j->args.w, j->e, from, to, &j->columns);
    for (int64_t i = i0; i < i1; i++) {
        float *sums = acc[i - i0];
        if (j->splits) {
            for (int64_t n = 0; n < PANEL; n++) {
                sums[n] = (float)total[i - i0][n];
            }
        } else if (j->whole) {
            for (int64_t n = 0; n < PANEL; n += LANES) {
                V(store_ps)(sums + n, V(cvtepi32_ps)(veci_load(sums + n)));
            }
        }
        moei_cpu_finish(&j->args, &j->columns, j->e, i, from, to, sums + from - panel * PANEL);
    }
}

static void run_rows(job *j, int64_t i0, int64_t i1, int64_t n0, int64_t n1)
{
    const int64_t rows = i1 - i0;
    const int64_t chunk = moei_i64_min(X_ROOM / (rows * j->cell), j->p.records);
    const int64_t end = moei_i64_ceil_div(n1, PANEL);
    loop_fn *loop = loop_of(j, rows);
    int64_t prepared = -1;
    for (int64_t panel0 = n0 / PANEL; panel0 < end; panel0 += SIDE) {
        const int64_t panel1 = moei_i64_min(panel0 + SIDE, end);
        for (int64_t panel = panel0; panel < panel1; panel++) {
            memset(j->acc[panel - panel0], 0, (size_t)rows * sizeof j->acc[0][0]);
            if (j->splits) {
                memset(j->total[panel - panel0], 0, (size_t)rows * sizeof j->total[0][0]);
            }
        }
        for (int64_t r = 0; r < j->p.records; r += chunk) {
            const int64_t r1 = moei_i64_min(r + chunk, j->p.records);
            if (prepared != r) {
                prepare(j, i0, i1, r, r1);
                prepared = r;
            }
            for (int64_t panel = panel0; panel < panel1; panel++) {
                want_strips(j, panel, n0, n1);
                loop(j, span_of(j, panel, i0, i1, r, r1), j->acc[panel - panel0]);
                if (j->splits) {
                    end_chunk(rows, j->acc[panel - panel0], j->total[panel - panel0]);
                }
            }
        }
        for (int64_t panel = panel0; panel < panel1; panel++) {
            finish_panel(j, panel, i0, i1, n0, n1, j->acc[panel - panel0],
                         j->total[panel - panel0]);
        }
    }
}

static way way_of(const job *j, int64_t i0, int64_t i1)
{
    if (j->p.unit_k == 4) {
        return DOTS ? BYTES : PAIRS;
    }
    if (!j->int16) {
        return DIGITS8;
    }
    return (DOTS || i1 - i0 <= FEW) && have_digits(&j->args, j->e, i0, i1) ? DIGITS16 : PAIRS;
}

static void run(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                int64_t n1, bool halves, bool whole)
{
    job j;
    const moei_format_info *format = args->w.format;
    j.p = moei_cpu_packed_of(&args->w);
    j.args = moei_cpu_packed_args(args, &j.p, e);
    j.expert = args->w.values + (int64_t)e * args->w.value_e_stride;
    j.e = e;
    j.e2m1 = format->elem == MOE_E2M1;
    j.int16 = args->x.dtype == MOE_I16;
    j.halves = halves;
    j.whole = whole;
    j.splits = whole && args->w.k > WHOLE_TOP;
    j.rounds = false;
    for (int64_t s = 0; s < HALVES; s++) {
        for (int64_t n = 0; n < PANEL; n++) {
            j.scale[s][n] = 1.0f;
            j.zero[s][n] = format->zero_point > 0           ? format->zero_point
                           : DOTS && format->elem == MOE_I8 ? 128 // see fold_bytes
                                                            : 0;
        }
    }
    const int64_t blocks = moei_i64_ceil_div(i1 - i0, MR);
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = i0 + (i1 - i0) * b / blocks;
        const int64_t last = i0 + (i1 - i0) * (b + 1) / blocks;
        j.way = way_of(&j, first, last);
        j.cell =
            j.way == DIGITS8 || j.way == BYTES ? (int64_t)sizeof(cell8) : (int64_t)sizeof(cell16);
        run_rows(&j, first, last, n0, n1);
    }
}

#define INTS_KERNEL(name, halves, whole)                                                           \
    moek_ggemm_fn moek_ggemm_##name;                                                               \
    void moek_ggemm_##name(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,         \
                           int64_t n0, int64_t n1)                                                 \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, halves, whole);                                               \
    }
#if LANES == 16
INTS_KERNEL(any_i8_packed__avx512_b16, true, false)
INTS_KERNEL(any_i8_packed__avx512_b32, false, false)
INTS_KERNEL(any_i8_packed__avx512_i32, false, true)
INTS_KERNEL(any_i16_packed__avx512_b16, true, false)
INTS_KERNEL(any_i16_packed__avx512_b32, false, false)
#else
INTS_KERNEL(any_i8_packed__avx2_b16, true, false)
INTS_KERNEL(any_i8_packed__avx2_b32, false, false)
INTS_KERNEL(any_i8_packed__avx2_i32, false, true)
INTS_KERNEL(any_i16_packed__avx2_b16, true, false)
INTS_KERNEL(any_i16_packed__avx2_b32, false, false)
#endif
