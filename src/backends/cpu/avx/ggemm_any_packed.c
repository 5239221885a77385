// SPDX-License-Identifier: Apache-2.0
// ggemm with AVX2, FMA and F16C, and once more with AVX-512: packed weights of any format,
// activations of any form, the bits of the portable rows of the same class.
//
// A vector (vector.h) holds 8 or 16 outputs of one k, a lane each, as packed.h lays them; so each
// lane is one chain along k, and no order changes. Weights come in forms (_forms.h), from which one
// or two operations make floats; x lies in a padded buffer, loaded once for some panels (.h); tiles
// of rows x outputs (_tiles.h) run the chains of pieces of k:
//
//   packed_panels.h: blocks of 96 rows, panels side by side, what follows the sums
//   load_x_of    some chunks of k of x, to floats
//   run_panel    those of a panel
//   run_records  its records as they lie, or staged in a form that tiles take
//   run_slice    or 32 or 64 k of them, decoded to floats: 16 KiB of L1
//   run_exact    or, one row of e2m1, those whose chains cannot round, by integers (_exact.h)
//
// Rows of one tile take records in any form. Several tiles take forms that are cheap, in chains of
// 64 k and more, as they lie or staged: what makes floats of them takes pipes that FMA leaves idle.
// Else weights become floats once for all rows.
//
// Limits: one row: memory, or with AVX2 and 4 bits the vector pipes, 29 operations for 64 weights,
// 8 of them FMA, or 16 to 21 of integers; many rows: FMA. docs/cpu-strict.md counts.
#include "backends/cpu/avx/ggemm_any_packed.h"

#include "backends/cpu/avx/ggemm_any_packed_forms.h"
#include "backends/cpu/avx/ggemm_any_packed_tiles.h"
#include "backends/cpu/avx2/scales.h"

// ---- groups ------------------------------------------------------------------------------------

// The zero point of an output. Codes less it are bytes where it is small.
static inline void set_zero(job *j, int64_t set, int64_t n, int32_t zero)
{
    j->zero[set][n] = j->late ? 0 : (int32_t)((uint32_t)zero * 0x01010101u);
    j->late_zero[set][n] = (float)(j->elem == MOE_U8 ? zero - 128 : zero) / j->factor;
}

static void load_zeros(job *j, const uint8_t *zeros, int64_t width)
{
    uint8_t top = 0;
    for (int64_t i = 0; i < j->p.packed.sets * width; i++) {
        top = zeros[i] > top ? zeros[i] : top;
    }
    j->late = j->elem == MOE_U8 || PERMUTES || top > BYTE_ZEROS;
    for (int64_t s = 0; s < j->p.packed.sets; s++) {
        for (int64_t n = 0; n < width; n++) {
            set_zero(j, s, n, zeros[s * width + n]);
        }
    }
}

// Of a group: its scales to slots from `slot`, its zero points.
static void load_head(job *j, const uint8_t *head, int64_t width, int64_t slot)
{
    const moei_cpu_packed *p = &j->p.packed;
    const uint8_t *zeros = moei_cpu_group_zeros(p, head, width);
    moei_cpu_ask_ahead(head, width * p->head);
    load_group_scales(p, j->p.args.w.scale_dtype, head, width, j->scale + slot);
    if (zeros != NULL) {
        load_zeros(j, zeros, width);
    }
}

// ---- products ----------------------------------------------------------------------------------

/// Records of a panel, one after the other.
typedef struct span {
    moei_cpu_walk walk;
    const uint8_t *head;   // of the group
    const uint8_t *loaded; // whose scales are there
    int64_t slot;          // where they are
} span;

// Scales and zero points of the next record's group are loaded, to slots from `slot` if they were
// not.
static void load_next(job *j, span *s, int64_t slot)
{
    const uint8_t *head = s->walk.left == 0 ? s->walk.at : s->head;
    if (head != s->loaded) {
        load_head(j, head, s->walk.width, slot);
        s->loaded = head;
        s->slot = slot;
    }
}

// Records from r on that have as many rests as this one, by integers. Returns how many.
__attribute__((always_inline)) static inline int64_t
exact_run(job *j, span *s, int64_t r, digit_shape shape, float (*acc)[PANEL])
{
    const exact_x *x = &j->exact;
    const int64_t first = r;
    do {
        load_next(j, s, 0);
        const fold_to to = {.first = j->p.first,
                            .last = j->p.last,
                            .sets = shape.halves ? HALVES : 1,
                            .scale = (const float(*)[PANEL])j->scale,
                            .acc = acc};
        const bool some = shape.rests > 0 && shape.rests < RECORD / 8;
        fold_digits(shape, to, moei_cpu_walk_on(&s->walk, &s->head), &x->cells[r * x->rows],
                    some ? x->order[r] : NULL);
        r++;
    } while (r < x->records && x->rests[r] == x->rests[first]);
    return r - first;
}

typedef int64_t exact_fn(job *j, span *s, int64_t r, float (*acc)[PANEL]);

// As many vectors side by side as registers hold sums for.
#define EXACT_FN(num, with, by_half)                                                               \
    static int64_t exact_##num##_##with##_##by_half(job *j, span *s, int64_t r,                    \
                                                    float(*acc)[PANEL])                            \
    {                                                                                              \
        const digit_shape shape = {.rows = num,                                                    \
                                   .vectors = (num) == 1 ? VECTORS : 1,                            \
                                   .digits = 2,                                                    \
                                   .rests = with,                                                  \
                                   .cell = sizeof(cell16_rest),                                    \
                                   .e2m1 = true,                                                   \
                                   .halves = by_half};                                             \
        return exact_run(j, s, r, shape, acc);                                                     \
    }
#define EXACT_FNS(num)                                                                             \
    EXACT_FN(num, 0, 0)                                                                            \
    EXACT_FN(num, 1, 0)                                                                            \
    EXACT_FN(num, 2, 0)                                                                            \
    EXACT_FN(num, 3, 0)                                                                            \
    EXACT_FN(num, 4, 0)                                                                            \
    EXACT_FN(num, 0, 1)                                                                            \
    EXACT_FN(num, 4, 1)
#define EXACT_NAMES(num)                                                                           \
    {                                                                                              \
        {exact_##num##_0_0, exact_##num##_1_0, exact_##num##_2_0, exact_##num##_3_0,               \
         exact_##num##_4_0},                                                                       \
        {                                                                                          \
            exact_##num##_0_1, NULL, NULL, NULL, exact_##num##_4_1                                 \
        }                                                                                          \
    }
EXACT_FNS(1)
static exact_fn *const exact_fns[EXACT_ROWS][HALVES][RECORD / 8 + 1] = {EXACT_NAMES(1)};

static int64_t run_exact(job *j, span *s, int64_t r, float (*acc)[PANEL])
{
    return exact_fns[j->rows - 1][j->p.packed.sets == HALVES][j->exact.rests[r]](j, s, r, acc);
}

// Elements k0 + k .. of the chunk that begins at k0: a piece of chains, with the scales of a slot.
static inline void set_piece(piece *p, job *j, int64_t k0, int64_t k, int64_t count, int64_t slot,
                             float (*acc)[PANEL])
{
    const int64_t within = j->length - 1;
    p->count = count;
    p->begins = (k & within) == 0;
    p->ends = ((k + count) & within) == 0 || k0 + k + count == j->p.args.w.k;
    p->x = j->x + k / CHUNK * j->rows * X_ROW + k % CHUNK;
    p->scale = j->folds ? j->scale[slot] : NULL;
    p->x_scale = j->x_scale + (k >> j->length_bits);
    p->sum = j->sum;
    p->acc = acc;
}

// Forms that several tiles make floats of again: that runs on pipes that FMA leaves idle. A
// conversion of sixteen halves does not.
static bool is_cheap(code_form form)
{
    return form == PAIRS || form == NIBBLES || (form == HALVES_OF_K && LANES == 8);
}

// Whether tiles take records, in a form of more than floats: where there is one tile of rows.
// Several: not where chains are short, which a tile begins and ends often.
static bool takes_records(const job *j)
{
    if (!j->x_scaled || j->rows <= TILE) {
        return j->x_scaled;
    }
    return j->length >= SLICE && is_cheap(j->form) && !j->has_zeros;
}

// Elements of k, of `left` from k, whose records are run at once. Zero points are those of a group.
static int64_t records_at_once(const job *j, const span *s, int64_t k, int64_t left)
{
    int64_t most = CHUNK - k % CHUNK;
    if (!j->lies) {
        most = moei_i64_min(most, AT_ONCE * RECORD);
    }
    if (j->has_zeros) {
        const int64_t records = s->walk.left > 0 ? s->walk.left : s->walk.group_records;
        most = moei_i64_min(most, records * RECORD);
    }
    return moei_i64_min(most, left / RECORD * RECORD);
}

// Elements from k, of `count`, until a record that is exact.
static int64_t until_exact(const job *j, int64_t k, int64_t count)
{
    int64_t at = 0;
    while (at < count && !exact_at(&j->exact, (k + at) / RECORD)) {
        at += RECORD;
    }
    return at;
}

// The next records, of `count` elements of k.
static void run_records(job *j, span *s, int64_t k0, int64_t k, int64_t count, float (*acc)[PANEL])
{
    const bool pairs = !PERMUTES && j->form == NIBBLES && j->rows > TILE;
    const code_form form = pairs ? PAIRS : form_of(j);
    const uint8_t *at[CHUNK / RECORD];
    int64_t slot[CHUNK / RECORD];
    piece pieces[CHUNK / FINE];
    int64_t num = 0;
    for (int64_t r = 0; r * RECORD < count; r++) {
        uint8_t *to = j->staged + BEFORE + r * STAGED;
        load_next(j, s, r == 0 ? 0 : s->slot + j->p.packed.sets);
        slot[r] = s->slot;
        const uint8_t *record = moei_cpu_walk_on(&s->walk, &s->head);
        at[r] = pairs ? pair_nibbles(j, record, to) : stage(j, record, to);
    }
    const int64_t length = j->length;
    const int64_t apart = j->lies ? s->walk.width * j->p.packed.record : STAGED;
    for (int64_t i = 0, part; i < count; i += part) {
        const int64_t r = i / RECORD;
        const int64_t set = j->p.packed.sets == 2 ? i % RECORD / (RECORD / HALVES) : 0;
        part = moei_i64_min(length - ((k + i) & (length - 1)), count - i);
        piece *const p = &pieces[num++];
        set_piece(p, j, k0, k + i, part, slot[r] + set, acc);
        p->zero = j->late_zero[set];
        p->w = at[r] + i % RECORD / 8 * eight_bytes(form);
        p->apart = apart;
    }
    s->loaded = s->slot == 0 ? s->loaded : NULL; // what follows looks for scales in slot 0
    all_rows(j, pieces, num, form);
}

// Up to a slice of k, decoded to floats.
static void run_slice(job *j, span *s, int64_t k0, int64_t k, int64_t count, float (*acc)[PANEL])
{
    int64_t slot[SLICE / RECORD];
    piece pieces[SLICE / FINE];
    int64_t num = 0;
    for (int64_t r = 0; r * RECORD < count; r++) {
        load_next(j, s, r == 0 ? 0 : s->slot + j->p.packed.sets);
        slot[r] = s->slot;
        decode(j, moei_cpu_walk_on(&s->walk, &s->head), r * RECORD);
    }
    for (int64_t i = 0; i < count; i += pieces[num++].count) {
        const int64_t set = j->p.packed.sets == 2 ? i % RECORD / (RECORD / HALVES) : 0;
        const int64_t left = j->length - ((k + i) & (j->length - 1));
        set_piece(&pieces[num], j, k0, k + i, moei_i64_min(left, count - i), slot[i / RECORD] + set,
                  acc);
        pieces[num].w = (const uint8_t *)j->w[0][i];
        pieces[num].apart = 0;
    }
    s->loaded = s->slot == 0 ? s->loaded : NULL; // what follows looks for scales in slot 0
    all_rows(j, pieces, num, FLOATS);
}

// What many rows ask for while they multiply the next records, of `count` elements: as many that
// follow, or, where these are the last ones, what is read then. Staged records are asked for as
// they are read.
static void set_next(job *j, const span *s, int64_t count, bool last)
{
    const int64_t bytes = s->walk.width * (count / RECORD) * j->p.packed.record;
    j->next = last ? j->p.next : s->walk.at + bytes;
    j->next_bytes = j->lies && j->rows > TILE && j->next != NULL ? bytes : 0;
    j->next_share = moei_i64_ceil_div(bytes, j->rows * STRIPS * VECTORS);
}

// Elements k0 .. k1 - 1 of k into the sums of a panel.
static void run_panel(job *j, int64_t panel, int64_t k0, int64_t k1, float (*acc)[PANEL])
{
    span s = {.loaded = NULL};
    s.head = moei_cpu_walk_to(&s.walk, &j->p.packed, j->p.expert, panel, k0 / RECORD);
    int64_t count;
    for (int64_t k = 0; k < k1 - k0; k += count) {
        const int64_t left = k1 - k0 - k;
        load_next(j, &s, 0);
        if (exact_at(&j->exact, k / RECORD)) {
            count = RECORD * run_exact(j, &s, k / RECORD, acc);
        } else if (takes_records(j) && left >= RECORD) {
            count = until_exact(j, k, records_at_once(j, &s, k, left));
            set_next(j, &s, count, left - count < RECORD);
            run_records(j, &s, k0, k, count, acc);
        } else {
            count = moei_i64_min(SLICE, left);
            j->next_bytes = 0;
            run_slice(j, &s, k0, k, count, acc);
        }
    }
}

// ---- panels ------------------------------------------------------------------------------------

// As many panels side by side each time.
static void begin(void *arg)
{
    job *j = arg;
    const int64_t panels = moei_i64_ceil_div(j->p.n1, PANEL) - j->p.n0 / PANEL;
    j->rows = j->p.i1 - j->p.i0;
    j->p.side = SUMS / j->rows;
    j->p.side = moei_i64_ceil_div(panels, moei_i64_ceil_div(panels, j->p.side));
    j->p.depth = X_ROOM / (j->rows * X_ROW) * (CHUNK / RECORD);
    j->p.acc = j->acc;
}

static void prepare(void *arg, int64_t r0, int64_t r1)
{
    job *j = arg;
    load_x_of(j, r0 * RECORD, moei_i64_min(r1 * RECORD, j->p.args.w.k));
}

static void multiply(void *arg, int64_t panel, int64_t r0, int64_t r1, int64_t at)
{
    job *j = arg;
    run_panel(j, panel, r0 * RECORD, moei_i64_min(r1 * RECORD, j->p.args.w.k), j->acc + at);
}

static const moei_cpu_panels_ops ops = {MR, begin, prepare, multiply, NULL};

static void run(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                int64_t n1, int64_t length, bool folds)
{
    job j;
    const moei_format_info *format = args->w.format;
    moei_cpu_panels_open(&j.p, args, e, n0, n1);
    j.elem = format->elem;
    j.length = length;
    j.length_bits = __builtin_ctzll((uint64_t)length);
    j.folds = folds;
    j.folds_x = folds && args->x.scales != NULL && args->x.group > 0;
    choose_form(&j, i1 - i0);
    const int32_t zero = format->zero_point > 0 ? format->zero_point : 0;
    j.has_zeros = j.p.packed.head > j.p.packed.sets * j.p.packed.scale;
    j.late = j.elem == MOE_U8;
    for (uint8_t code = 0; code < 16; code++) {
        j.value[code] =
            j.elem == MOE_E2M1 ? moei_e2m1_to_f32(code) : (float)(code - (j.has_zeros ? 0 : zero));
    }
    if (!PERMUTES && j.form == NIBBLES) {
        make_tables(&j);
    }
    for (int64_t s = 0; s < HALVES; s++) { // where a group says nothing else
        for (int64_t n = 0; n < PANEL; n++) {
            j.scale[s][n] = 1.0f;
            set_zero(&j, s, n, zero);
        }
    }
    moei_cpu_panels_run(&j.p, &ops, &j, i0, i1);
}

// Sixteen halves are converted in more than twice the time of eight, on Zen 4: what one or two rows
// wait for.
#define FEW_HALVES 2

static bool is_for_avx2(const moek_ggemm_args *args, int64_t rows)
{
    const moe_dtype elem = args->w.format->elem;
    const bool halves = elem == MOE_F16 || elem == MOE_E5M2;
    return LANES == 16 && halves && rows <= FEW_HALVES;
}

#define CHAIN_KERNEL(name, avx2, length, folds)                                                    \
    moek_ggemm_fn moek_ggemm_##name, moek_ggemm_##avx2;                                            \
    void moek_ggemm_##name(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1,         \
                           int64_t n0, int64_t n1)                                                 \
    {                                                                                              \
        if (is_for_avx2(args, i1 - i0)) {                                                          \
            moek_ggemm_##avx2(args, e, i0, i1, n0, n1);                                            \
        } else {                                                                                   \
            run(args, e, i0, i1, n0, n1, length, folds);                                           \
        }                                                                                          \
    }
#if LANES == 16
CHAIN_KERNEL(any_any_packed__avx512_c256, any_any_packed__avx2_c256, 256, false)
CHAIN_KERNEL(any_any_packed__avx512_b16, any_any_packed__avx2_b16, 16, true)
CHAIN_KERNEL(any_any_packed__avx512_b32, any_any_packed__avx2_b32, 32, true)
CHAIN_KERNEL(any_any_packed__avx512_b64, any_any_packed__avx2_b64, 64, true)
CHAIN_KERNEL(any_any_packed__avx512_b128, any_any_packed__avx2_b128, 128, true)
#else
CHAIN_KERNEL(any_any_packed__avx2_c256, any_any_packed__avx2_c256, 256, false)
CHAIN_KERNEL(any_any_packed__avx2_b16, any_any_packed__avx2_b16, 16, true)
CHAIN_KERNEL(any_any_packed__avx2_b32, any_any_packed__avx2_b32, 32, true)
CHAIN_KERNEL(any_any_packed__avx2_b64, any_any_packed__avx2_b64, 64, true)
CHAIN_KERNEL(any_any_packed__avx2_b128, any_any_packed__avx2_b128, 128, true)
#endif
