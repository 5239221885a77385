// SPDX-License-Identifier: Apache-2.0
// What the parts of ggemm_ints_packed.c share: a product under way, its x, and records in a row.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_H

#include "backends/cpu/avx/ggemm_ints_packed_digits.h"
#include "backends/cpu/avx/ggemm_ints_packed_pairs.h"
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/packed_ints.h"

#define FEW       4                         // rows for which weights are decoded in registers
#define MR        32                        // rows that share a decoded record
#define SIDE      4                         // panels whose sums are kept at once
#define X_ROOM    (80 << 10)                // bytes of prepared x
#define WHOLE_TOP (INT32_MAX / (128 * 128)) // products of int8 whose sum has 32 bits

typedef enum way { DIGITS8, DIGITS16, BYTES, PAIRS } way;

typedef struct job job;

struct job {
    _Alignas(64) uint8_t x[X_ROOM];                           // cells [record][row] of the chunk
    _Alignas(64) uint8_t w[PANEL * RECORD * sizeof(int16_t)]; // [vector][step][lane]
    _Alignas(64) float acc[SIDE][MR][PANEL];
    _Alignas(64) int64_t total[SIDE][MR][PANEL]; // of chunks: class i32 where k is above WHOLE_TOP
    _Alignas(64) float scale[HALVES][PANEL];     // of the group
    _Alignas(64) int32_t zero[HALVES][PANEL];    // zero points of the group
    moei_cpu_columns columns;
    moei_cpu_packed p;
    moek_ggemm_args args; // moei_cpu_packed_args
    const uint8_t *expert;
    int32_t e;
    way way;
    bool e2m1;
    bool int16;          // codes of x
    bool halves;         // of a record have scales of their own
    bool whole;          // class i32: `acc` holds integers
    bool splits;         // the sums of class i32 over chunks
    bool rounds;         // a zero point of the group is above MOEI_CPU_ZERO_TOP
    int64_t cell;        // bytes
    int64_t first, last; // strips of the panel that are wanted
    int64_t sets;        // folds of this record: 1, or 2 with halves
};

// ---- x -----------------------------------------------------------------------------------------

// Records r0 .. r1 - 1 of rows i0 .. i1 - 1.
static void prepare(job *j, int64_t i0, int64_t i1, int64_t r0, int64_t r1)
{
    const moek_ggemm_args *a = &j->args;
    const int64_t bytes = j->int16 ? 2 * RECORD : RECORD;
    const int64_t row_bytes = a->w.k * bytes / RECORD;
    const float part = j->e2m1 ? 0.5f : 1.0f;
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, j->e, i);
        moei_cpu_x_scales scales = {.at = NULL};
        if (!j->whole) {
            scales = moei_cpu_x_scales_of(a, j->e, i, r0);
        }
        uint8_t *to = j->x + (i - i0) * j->cell;
        for (int64_t r = r0; r < r1; r++, to += (i1 - i0) * j->cell) {
            uint8_t tail[2 * RECORD] = {0};
            const uint8_t *codes = row + r * bytes;
            if ((r + 1) * bytes > row_bytes) {
                memcpy(tail, codes, (size_t)(row_bytes - r * bytes));
                codes = tail;
            }
            const float scale = j->whole ? 1.0f : moei_cpu_x_scales_next(&scales) * part;
            if (j->way == DIGITS8 || j->way == BYTES) {
                cell8 *c = (cell8 *)(void *)to;
                fill_digits8(j->e2m1, j->halves, j->way == BYTES, codes, c);
                c->scale = scale;
                continue;
            }
            cell16 *c = (cell16 *)(void *)to;
            if (j->way == DIGITS16) {
                const __m256i v[2] = {load_32(codes), load_32(codes + 32)};
                fill_digits16(j->e2m1, j->halves, v, c->digit, c->sum);
            } else {
                fill_pairs(j->int16, j->p.unit_k == 4, j->e2m1, j->halves, codes, c);
            }
            c->scale = scale;
        }
    }
}

// True if every code of the rows has two digits.
static bool have_digits(const moek_ggemm_args *a, int32_t e, int64_t i0, int64_t i1)
{
    const __m256i top = _mm256_set1_epi16(DIGIT_TOP);
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, e, i);
        __m256i above = _mm256_setzero_si256();
        int64_t k = 0;
        for (; k + 16 <= a->w.k; k += 16) {
            above = _mm256_or_si256(above, _mm256_cmpgt_epi16(load_32(row + 2 * k), top));
        }
        bool found = _mm256_testz_si256(above, above) == 0;
        for (; k < a->w.k; k++) {
            int16_t code;
            memcpy(&code, row + 2 * k, sizeof code);
            found = found || code > DIGIT_TOP;
        }
        if (found) {
            return false;
        }
    }
    return true;
}

// ---- groups ------------------------------------------------------------------------------------

// Zero points of a group, and whether one of them lets sums round.
static void load_zeros(job *j, const uint8_t *zeros, int64_t width)
{
    uint8_t top = 0;
    for (int64_t s = 0; s < j->p.sets; s++) {
        for (int64_t n = 0; n < width; n++) {
            const uint8_t zero = zeros[s * width + n];
            j->zero[s][n] = zero;
            top = zero > top ? zero : top;
        }
    }
    j->rounds = j->int16 && top > MOEI_CPU_ZERO_TOP;
}

static void load_head(job *j, const uint8_t *head, int64_t width)
{
    const int64_t scales = width * j->p.scale;
    moei_cpu_ask_ahead(head, width * j->p.head);
    for (int64_t s = 0; s < j->p.sets; s++) {
        if (width == PANEL) { // a constant
            load_scale_line(j->args.w.scale_dtype, head + s * scales, PANEL, j->scale[s]);
        } else {
            load_scale_line(j->args.w.scale_dtype, head + s * scales, width, j->scale[s]);
        }
    }
    if (j->p.head > j->p.sets * j->p.scale) {
        load_zeros(j, head + j->p.sets * scales, width);
    }
}

// ---- records -----------------------------------------------------------------------------------

/// Records r .. end - 1 of a panel, whose cells of x begin at `x`.
typedef struct span {
    int64_t r, end;
    const uint8_t *x;
    int64_t i0, i1;
    moei_cpu_walk walk;
    const uint8_t *head;   // of the group
    const uint8_t *loaded; // whose scales are there
} span;

static span span_of(const job *j, int64_t panel, int64_t i0, int64_t i1, int64_t r0, int64_t r1)
{
    span s = {.r = r0, .end = r1, .x = j->x, .i0 = i0, .i1 = i1};
    s.head = moei_cpu_walk_to(&s.walk, &j->p, j->expert, panel, r0);
    return s;
}

// The next record; its scales and zero points are loaded.
static inline const uint8_t *next_record(job *j, span *s, bool halves)
{
    const uint8_t *record = moei_cpu_walk_on(&s->walk, &s->head);
    if (s->head != s->loaded) {
        load_head(j, s->head, s->walk.width);
        s->loaded = s->head;
    }
    j->sets = halves && j->args.w.k - s->r * RECORD > RECORD / HALVES ? HALVES : 1;
    return record;
}

// Where the record goes: outputs that are wanted, sums of a row and those after it.
static inline fold_to fold_to_of(const job *j, float (*acc)[PANEL])
{
    return (fold_to){.first = j->first,
                     .last = j->last,
                     .sets = j->sets,
                     .scale = j->scale,
                     .zero = j->zero,
                     .acc = acc};
}

// A record whose sums may round, so that their order counts: the chain of the class.
static void chain_as_written(job *j, const uint8_t *record, const span *s, float (*acc)[PANEL])
{
    moei_cpu_chain_record(&j->args, j->e, s->i0, s->i1, record, s->r,
                          j->halves ? RECORD / HALVES : RECORD, j->first * STRIP, j->last * STRIP,
                          j->zero, j->scale, acc);
}

#endif
