// SPDX-License-Identifier: Apache-2.0
// What the parts of ggemm_ints_packed.c share: a product under way, its x, and records in a row.
#ifndef MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_H
#define MOEI_BACKENDS_CPU_AVX_GGEMM_INTS_PACKED_H

#include "backends/cpu/avx/ggemm_ints_packed_digits.h"
#include "backends/cpu/avx/ggemm_ints_packed_pairs.h"
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/packed_ints.h"
#include "backends/cpu/packed_panels.h"

#define FEW    4          // rows for which weights are decoded in registers
#define MR     32         // rows that share a decoded record
#define SIDE   4          // panels whose sums are kept at once
#define X_ROOM (80 << 10) // bytes of prepared x
#define MIDDLE 127        // the exponent of 1
#define BLOCK  4          // records of a block, at most

#define WORD_BYTES                                                                                 \
    (PANEL * RECORD * (int64_t)sizeof(int16_t)) // of a record that is decoded to words

typedef enum way { DIGITS8, DIGITS16, BYTES, PAIRS } way;

typedef struct job job;

struct job {
    _Alignas(64) uint8_t x[X_ROOM];             // cells [record][row] of the chunk
    _Alignas(64) uint8_t w[BLOCK * WORD_BYTES]; // of a record or a block: [vector][step][lane]
    _Alignas(64) float acc[SIDE * MR][PANEL];
    _Alignas(64)
        int64_t total[SIDE * MR][PANEL]; // of chunks: class i32 where k is above MOEI_CPU_WHOLE_TOP
    _Alignas(64) float scale[HALVES][PANEL];  // of the group
    _Alignas(64) int32_t zero[HALVES][PANEL]; // zero points of the group
    moei_cpu_panels p;
    way way;
    bool e2m1;
    bool int16;    // codes of x
    bool halves;   // of a record have scales of their own
    bool whole;    // class i32: `acc` holds integers
    bool splits;   // the sums of class i32 over chunks
    bool rounds;   // a zero point of the group is above MOEI_CPU_ZERO_TOP
    bool middle;   // exponents of all scales of prepared x: MIDDLE - 63 .. MIDDLE + 63
    int64_t block; // records whose sums become a float at once: 1, 2 or 4
    int64_t cell;  // bytes
    int64_t sets;  // folds of this record: 1, or 2 with halves
};

// ---- x -----------------------------------------------------------------------------------------

// The sum of x of a record's cell becomes that of the block so far.
static inline void add_sum_before(const job *j, int64_t r, int32_t *sum)
{
    if ((r & (j->block - 1)) > 0) {
        const int64_t apart = (j->p.i1 - j->p.i0) * j->cell;
        int32_t before;
        memcpy(&before, (const uint8_t *)sum - apart, sizeof before);
        *sum += before;
    }
}

// The exponent of a cell's scale. That of zeros is as good as any and becomes 1, but for NaN: a
// block that had one is NaN times zeros.
static inline void set_exponent(job *j, cell8 *c)
{
    static const cell8 zeros;
    c->exponent = (int32_t)(moei_f32_bits(c->scale) >> 23);
    if (c->exponent >= MIDDLE - 63 && c->exponent <= MIDDLE + 63) {
        return;
    }
    if (c->exponent != 255 && memcmp(c->digit, zeros.digit, sizeof zeros.digit) == 0) {
        c->scale = 1.0f;
        c->exponent = MIDDLE;
        return;
    }
    j->middle = false;
}

// Records r0 .. r1 - 1 of the rows.
static void prepare(void *arg, int64_t r0, int64_t r1)
{
    job *j = arg;
    const int64_t i0 = j->p.i0;
    const int64_t i1 = j->p.i1;
    const moek_ggemm_args *a = &j->p.args;
    const int64_t bytes = j->int16 ? 2 * RECORD : RECORD;
    const int64_t row_bytes = a->w.k * bytes / RECORD;
    const float part = j->e2m1 ? 0.5f : 1.0f;
    j->middle = true;
    for (int64_t i = i0; i < i1; i++) {
        const uint8_t *row = moei_x_at(a, j->p.e, i);
        moei_cpu_x_scales scales = {.at = NULL};
        if (!j->whole) {
            scales = moei_cpu_x_scales_of(a, j->p.e, i, r0);
        }
        uint8_t *to = j->x + (i - i0) * j->cell;
        for (int64_t r = r0; r < r1; r++, to += (i1 - i0) * j->cell) {
            uint8_t tail[2 * RECORD];
            const uint8_t *codes = moei_cpu_x_record(row, row_bytes, r, bytes, tail);
            const float scale = j->whole ? 1.0f : moei_cpu_x_scales_next(&scales) * part;
            if (j->way == DIGITS8 || j->way == BYTES) {
                cell8 *c = (cell8 *)(void *)to;
                fill_digits8(j->e2m1, j->halves, j->way == BYTES, codes, c);
                add_sum_before(j, r, &c->sum[0]);
                c->scale = scale;
                if (j->e2m1 && j->block == 1) {
                    set_exponent(j, c);
                }
                continue;
            }
            cell16 *c = (cell16 *)(void *)to;
            if (j->way == DIGITS16) {
                const __m256i v[2] = {load_32(codes), load_32(codes + 32)};
                fill_digits16(j->e2m1, j->halves, v, c->digit, c->sum);
            } else {
                fill_pairs(j->int16, j->p.packed.unit_k == 4, j->e2m1, j->halves, codes, c);
                add_sum_before(j, r, &c->sum[0]);
            }
            c->scale = scale;
        }
    }
}

// True if every code of the rows has two digits.
static bool have_digits(const moei_cpu_panels *p)
{
    const moek_ggemm_args *a = &p->args;
    const __m256i top = _mm256_set1_epi16(DIGIT_TOP);
    for (int64_t i = p->i0; i < p->i1; i++) {
        const uint8_t *row = moei_x_at(a, p->e, i);
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

// Scales and zero points of a group, and whether these let sums round.
static void load_head(job *j, const uint8_t *head, int64_t width)
{
    const moei_cpu_packed *p = &j->p.packed;
    const uint8_t *zeros = moei_cpu_group_zeros(p, head, width);
    moei_cpu_ask_ahead(head, width * p->head);
    load_group_scales(p, j->p.args.w.scale_dtype, head, width, j->scale);
    if (zeros != NULL) {
        const uint8_t top = moei_cpu_load_zeros(p, zeros, width, 0, j->zero);
        j->rounds = j->int16 && top > MOEI_CPU_ZERO_TOP;
    }
}

// ---- records -----------------------------------------------------------------------------------

/// Records r .. end - 1 of a panel, whose cells of x begin at `x`.
typedef struct span {
    int64_t r, end;
    const uint8_t *x;
    moei_cpu_walk walk;
    const uint8_t *head;   // of the group
    const uint8_t *loaded; // whose scales are there
} span;

static span span_of(const job *j, int64_t panel, int64_t r0, int64_t r1)
{
    span s = {.r = r0, .end = r1, .x = j->x};
    s.head = moei_cpu_walk_to(&s.walk, &j->p.packed, j->p.expert, panel, r0);
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
    j->sets = halves && j->p.args.w.k - s->r * RECORD > RECORD / HALVES ? HALVES : 1;
    return record;
}

// Where the record goes: outputs that are wanted, sums of a row and those after it.
static inline fold_to fold_to_of(const job *j, float (*acc)[PANEL])
{
    return (fold_to){.first = j->p.first,
                     .last = j->p.last,
                     .sets = j->sets,
                     .codes = NULL,
                     .scale = j->scale,
                     .zero = j->zero,
                     .acc = acc};
}

// A record whose sums may round, so that their order counts: the chain of the class.
static void chain_as_written(job *j, const uint8_t *record, const span *s, float (*acc)[PANEL])
{
    moei_cpu_chain_record(&j->p.args, j->p.e, j->p.i0, j->p.i1, record, s->r,
                          j->halves ? RECORD / HALVES : RECORD, j->p.first * STRIP,
                          j->p.last * STRIP, j->zero, j->scale, acc);
}

// To unsigned bytes [vector][line][low, high nibbles][lane].
static void decode_digits(job *j, const uint8_t *record)
{
    const int64_t lines = RECORD / 8;
    for (int64_t v = VECTORS * j->p.first; v < VECTORS * j->p.last; v++) {
        const uint8_t *from = record + v / VECTORS * (STRIP * RECORD / 2) + v % VECTORS * VECTOR;
        uint8_t *to = j->w + v * LANES * RECORD;
        if (v % VECTORS == 0) {
            moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        }
        for (int64_t line = 0; line < lines; line++) {
            veci bytes[2];
            decode_bytes(j->e2m1, veci_load(from + line * 64), bytes);
            veci_store(to + line * 2 * VECTOR, bytes[0]);
            veci_store(to + line * 2 * VECTOR + VECTOR, bytes[1]);
        }
    }
}

/// Folds records into the sums of the rows.
typedef void loop_fn(job *j, span s, float (*acc)[PANEL]);

#endif
