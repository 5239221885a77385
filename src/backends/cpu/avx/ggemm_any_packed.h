// SPDX-License-Identifier: Apache-2.0
// What the parts of ggemm_any_packed.c share: a product under way, its x, and pieces of its chains.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_ANY_PACKED_H

#include "backends/cpu/avx/ggemm_any_packed_exact.h"
#include "backends/cpu/avx/load_x.h"
#include "backends/cpu/avx/vector.h"
#include "backends/cpu/packed_panels.h"
#include "backends/cpu/unroll.h"

#define STRIPS  (PANEL / STRIP)
#define MR      96       // rows that share decoded weights
#define SUMS    (6 * MR) // rows times panels whose sums are kept at once
#define SLICE   64       // k that are floats at once
#define CHUNK   256      // k: no chain crosses a multiple of it
#define PAD     16       // floats between rows of x, which would meet in few sets
#define X_ROW   (CHUNK + PAD)
#define X_ROOM  (MR * X_ROW) // floats
#define X_AHEAD 8            // rows of x
#define AT_ONCE 4            // records that are staged together
#define SLOTS   (CHUNK / RECORD * HALVES)
#define FINE    16                         // the fewest k that share a scale
#define STAGED  (PANEL * RECORD * 2 + 192) // bytes; what lies 4 KiB apart is mistaken for the same
#define BEFORE  64                         // bytes before a staged record, where loads may begin

#define CODE8_FACTOR 0x1p120f // e4m3 by the floats that codes become
#define HALF8_FACTOR 0x1p8f   // by halves

#define PERMUTES (LANES == 16)          // 16 floats, as many as there are 4-bit codes
#define TILE     (LANES == 16 ? 12 : 6) // rows

/// What lies where weights are; see ggemm_any_packed_forms.h.
typedef enum code_form {
    FLOATS,
    PAIRS,
    HALVES_OF_K,
    CODES8,
    BYTES,
    BYTES_LESS, // zero points
    NIBBLES,
    NIBBLES_LESS,
    NUM_FORMS
} code_form;

typedef struct job {
    _Alignas(64) float x[X_ROOM]; // [chunk][row][X_ROW], of what is prepared
    _Alignas(64) float w[STRIPS][SLICE][STRIP];
    _Alignas(64) uint8_t staged[BEFORE + AT_ONCE * STAGED];
    _Alignas(64) float sum[MR][PANEL];
    _Alignas(64) float acc[SUMS][PANEL];
    _Alignas(64) float scale[SLOTS][PANEL];      // of groups
    _Alignas(64) int32_t zero[HALVES][PANEL];    // zero points of the group, four times each
    _Alignas(64) float late_zero[HALVES][PANEL]; // as floats of the form
    _Alignas(64) float value[16];                // of 4-bit codes
    float x_scale[X_ROOM / FINE];                // [row][chain] of it
    veci code_low, code_high;                    // make_tables
    exact_x exact;                               // where takes_exact
    moei_cpu_panels p;
    const uint8_t *next; // what many rows ask for: set_next
    int64_t next_bytes;
    int64_t next_share; // of a row and a vector
    moe_dtype elem;
    code_form form;      // but for zero points
    bool lies;           // that is what records are
    float factor;        // of floats of `form`, or of x
    bool x_scaled;       // x has it
    bool has_zeros;      // in groups
    bool late;           // late_zero counts, not zero: it is not in the form
    bool folds, folds_x; // scales of a chain are applied to its sum; x has some
    int64_t length;      // of a chain, a power of two
    int length_bits;
    int64_t rows;   // of x
    int64_t chains; // of what is prepared of x
} job;

/// k of the chains of a panel: from +0 or on from `sum`, and to `sum` or, ended, into `acc`.
typedef struct piece {
    int64_t count;
    bool begins, ends;
    const float *x;       // of row 0, at the first k
    const float *scale;   // of the outputs; NULL: sums are added as they are
    const float *x_scale; // of row 0
    const float *zero;    // of the outputs
    const uint8_t *w;     // the first record in its form, at the first k
    int64_t apart;        // the next record, in bytes
    float (*sum)[PANEL];
    float (*acc)[PANEL];
} piece;

// Multiplies `count` x, which have room for whole vectors, by a power of two. False if that rounds
// one; they are then of no use.
static bool scale_x(float *x, int64_t count, float factor)
{
    const vecf by = V(set1_ps)(factor);
    const vecf back = V(set1_ps)(1.0f / factor);
    const float *end = x + count;
    for (int64_t k = count; k < moei_i64_round_up(count, LANES); k++) {
        x[k] = 0.0f;
    }
    bool same = true;
    for (; x < end; x += LANES) {
        const vecf v = V(load_ps)(x);
        const vecf scaled = V(mul_ps)(v, by);
        same = !any_differ(V(mul_ps)(scaled, back), v) && same;
        V(store_ps)(x, scaled);
    }
    return same;
}

static bool load_rows(job *j, int64_t k0, int64_t k1, bool scaled)
{
    const moek_ggemm_args *a = &j->p.args;
    const int64_t bytes = moe_dtype_bits(a->x.dtype) / 8;
    float *to = j->x;
    for (int64_t k = k0; k < k1; k += CHUNK) {
        const int64_t count = moei_i64_min(CHUNK, k1 - k);
        for (int64_t r = 0; r < j->rows; r++, to += X_ROW) {
            if (r + X_AHEAD < j->rows) { // a row lies anywhere
                moei_cpu_ask(moei_x_at(a, j->p.e, j->p.i0 + r + X_AHEAD) + k * bytes,
                             count * bytes);
            }
            load_x(a->x.dtype, moei_x_at(a, j->p.e, j->p.i0 + r), k, count, to);
            if (scaled && !scale_x(to, count, j->factor)) {
                return false;
            }
        }
    }
    return true;
}

// Whether chains that cannot round are looked for: not where a second scale follows them.
static bool takes_exact(const job *j)
{
    const int64_t chains = RECORD / j->length;
    return j->rows <= EXACT_ROWS && j->elem == MOE_E2M1 && j->x_scaled && j->folds && !j->folds_x &&
           chains >= 1 && chains == j->p.packed.sets;
}

// Which records, of k elements, have them.
static void find_exact(job *j, int64_t k)
{
    exact_begin(&j->exact, j->rows);
    const int64_t records = takes_exact(j) ? k / RECORD : 0;
    const int scale = 127 - (bits_of(j->factor) >> 23); // x are times 2 to minus this
    for (int64_t r = 0; r < records && exact_goes_on(&j->exact); r++) {
        const float *x = j->x + r * RECORD / CHUNK * j->rows * X_ROW + r * RECORD % CHUNK;
        exact_add(&j->exact, x, X_ROW, j->p.packed.sets == HALVES, scale);
    }
}

// The form of e4m3: codes where one tile takes them as they lie.
static void choose_e4m3(job *j, bool lies)
{
    j->lies = lies;
    j->form = lies ? CODES8 : HALVES_OF_K;
    j->factor = lies ? CODE8_FACTOR : HALF8_FACTOR;
}

// Elements k0 .. k1 - 1 of the rows, and their scales.
static void load_x_of(job *j, int64_t k0, int64_t k1)
{
    j->chains = moei_i64_ceil_div(k1 - k0, j->length);
    if (j->elem == MOE_E4M3FN) {
        choose_e4m3(j, LANES == 16 && j->rows <= TILE);
    }
    j->x_scaled = j->factor == 1.0f || load_rows(j, k0, k1, true);
    if (!j->x_scaled && j->form == CODES8) { // an x of 256 and more
        choose_e4m3(j, false);
        j->x_scaled = load_rows(j, k0, k1, true);
    }
    if (j->factor == 1.0f || !j->x_scaled) {
        (void)load_rows(j, k0, k1, false);
    }
    for (int64_t r = 0; j->folds_x && r < j->rows; r++) {
        for (int64_t c = 0; c < j->chains; c++) {
            j->x_scale[r * j->chains + c] =
                moei_cpu_operand_scale(&j->p.args, j->p.e, j->p.i0 + r, k0 + c * j->length);
        }
    }
    find_exact(j, k1 - k0);
}

#endif
