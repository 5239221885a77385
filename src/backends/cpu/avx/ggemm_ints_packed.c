// SPDX-License-Identifier: Apache-2.0
// ggemm of codes times codes: x of i8b32, i8b128 or i16b32 with packed weights of integers, or
// of e2m1, counted in halves. Integer instructions give the bits of the portable rows. One source
// for AVX2 and for AVX-512 with VNNI.
//
// Why: in the chain of a block (16 to 128 k that share scales) every sum is a multiple of 1/2 below
// 2^24 (docs/numerics.md has the worst cases), so no step of it rounds, and any order of exact
// operations ends in the same float. After it come the portable row's own steps, acc = fma(sum *
// s_x, s_w, acc).
//
// A vector holds 8 or 16 outputs, a lane each, as packed.h lays them: half a strip or a strip.
//
//   packed_panels.h: blocks of up to 32 rows, four panels side by side, what follows the sums
//   begin       the way of x: digits, bytes or pairs
//   prepare     some records of x that way (.h)
//   loop        records of a panel (_rows.h), which are added by digits (_digits.h), or by pairs or
//               bytes (_pairs.h): those headers count operations
//   rows_of_blocks   the same where blocks are several records (_blocks.h)
//   rows_of_mxfp4    the same of int8 with MXFP4, whose scales are powers of two (_mxfp4.h)
//
// Class i32, int8 with int8 and no scales along k: bytes or pairs again, whose sums of 32 bits go
// on over all of k, in 64 bits from chunk to chunk where k is long, and become floats at the end.
//
// Limits: one row: memory; many rows: the multiplier ports (10 of the 22 operations of digits, 8 of
// the 12 of VNNI).
#include "backends/cpu/avx/ggemm_ints_packed.h"

#include "backends/cpu/avx/ggemm_ints_packed_blocks.h"
#include "backends/cpu/avx/ggemm_ints_packed_mxfp4.h"
#include "backends/cpu/avx/ggemm_ints_packed_rows.h"

static way way_of(const job *j)
{
    if (j->p.packed.unit_k == 4) {
        return DOTS ? BYTES : PAIRS;
    }
    if (!j->int16) {
        return DIGITS8;
    }
    return (DOTS || j->p.i1 - j->p.i0 <= FEW) && have_digits(&j->p) ? DIGITS16 : PAIRS;
}

// ---- panels ------------------------------------------------------------------------------------

static void begin(void *arg)
{
    job *j = arg;
    const int64_t rows = j->p.i1 - j->p.i0;
    j->way = way_of(j);
    j->cell =
        j->way == DIGITS8 || j->way == BYTES ? (int64_t)sizeof(cell8) : (int64_t)sizeof(cell16);
    j->p.side = SIDE;
    j->p.depth = moei_i64_min(X_ROOM / (rows * j->cell) / j->block * j->block, j->p.packed.records);
    j->p.acc = j->acc;
    // Nothing else asks for what is read first; x is prepared meanwhile.
    moei_cpu_ask(moei_cpu_panel_record(&j->p, j->p.n0 / PANEL, 0), MOEI_CPU_AHEAD);
}

static void multiply(void *arg, int64_t panel, int64_t r0, int64_t r1, int64_t at)
{
    job *j = arg;
    const int64_t rows = j->p.i1 - j->p.i0;
    loop_fn *loop = j->block > 1 ? rows_of_blocks : loop_of(j, rows);
    const span s = span_of(j, panel, r0, r1);
    if (is_mxfp4(j, &s)) {
        rows_of_mxfp4(j, loop, s, j->acc + at);
    } else {
        loop(j, s, j->acc + at);
    }
    if (j->splits) {
        moei_cpu_whole_part(rows, r0 == 0, j->acc + at, j->total + at);
    }
}

static void end(void *arg, int64_t at)
{
    job *j = arg;
    if (j->whole) {
        moei_cpu_whole_end(j->p.i1 - j->p.i0, j->acc + at, j->splits ? j->total + at : NULL);
    }
}

static const moei_cpu_panels_ops ops = {MR, begin, prepare, multiply, end};

// length: k of a block of the class; 0: all, as integers.
static void run(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                int64_t n1, int64_t length)
{
    job j;
    const moei_format_info *format = args->w.format;
    moei_cpu_panels_open(&j.p, args, e, n0, n1);
    j.e2m1 = format->elem == MOE_E2M1;
    j.int16 = args->x.dtype == MOE_I16;
    j.halves = length == RECORD / HALVES;
    j.block = moei_i64_max(length / RECORD, 1);
    j.whole = length == 0;
    j.splits = j.whole && args->w.k > MOEI_CPU_WHOLE_TOP;
    j.rounds = false;
    for (int64_t s = 0; s < HALVES; s++) {
        for (int64_t n = 0; n < PANEL; n++) {
            j.scale[s][n] = 1.0f;
            j.zero[s][n] = format->zero_point > 0           ? format->zero_point
                           : DOTS && format->elem == MOE_I8 ? 128 // see fold_bytes
                                                            : 0;
        }
    }
    moei_cpu_panels_run(&j.p, &ops, &j, i0, i1);
}

#define INTS_KERNEL(name, length)                                                                  \
    moek_ggemm_fn moek_ggemm_##name;                                                               \
    void moek_ggemm_##name(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,         \
                           int64_t n0, int64_t n1)                                                 \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, length);                                                      \
    }
#if LANES == 16
INTS_KERNEL(any_i8_packed__avx512_b16, 16)
INTS_KERNEL(any_i8_packed__avx512_b32, 32)
INTS_KERNEL(any_i8_packed__avx512_b64, 64)
INTS_KERNEL(any_i8_packed__avx512_b128, 128)
INTS_KERNEL(any_i8_packed__avx512_i32, 0)
INTS_KERNEL(any_i16_packed__avx512_b16, 16)
INTS_KERNEL(any_i16_packed__avx512_b32, 32)
#else
INTS_KERNEL(any_i8_packed__avx2_b16, 16)
INTS_KERNEL(any_i8_packed__avx2_b32, 32)
INTS_KERNEL(any_i8_packed__avx2_b64, 64)
INTS_KERNEL(any_i8_packed__avx2_b128, 128)
INTS_KERNEL(any_i8_packed__avx2_i32, 0)
INTS_KERNEL(any_i16_packed__avx2_b16, 16)
INTS_KERNEL(any_i16_packed__avx2_b32, 32)
#endif
