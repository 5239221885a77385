// SPDX-License-Identifier: Apache-2.0
// ggemm with AVX2, FMA and F16C: packed weights of any format, activations of any form, the bits of
// the portable rows of the same class.
//
// A vector holds eight outputs of one k, a lane each, as packed.h lays them; so each lane is one
// chain along k, and no order changes. A record (64 outputs x 32 k) comes in one of three forms,
// from which one or two operations make eight floats:
//
//   pairs   two bf16 of a lane: shift, or mask                         bf16
//   halves  eight f16 of one k side by side: convert                   f16; 8-bit floats, staged
//   bytes   four signed bytes of a lane: one to the top, convert       int8; 4 bits and uint8,
//   staged
//
// Staged: a record is rewritten in that form, 2 or 4 KiB of L1. A byte at the top of a word is 2^24
// times its value, and 8-bit floats are 2^-8 of theirs in f16; so x is multiplied by the inverse
// where it is loaded. A power of two changes no product, and no bit of a sum, as long as x times it
// is exact; where one x is not (it would be subnormal), weights are multiplied instead.
//
// Up to FEW rows: from the record to the chains of a panel, and no floats are written. More rows
// run tiles of up to 6 x 16 (rows x outputs). Chains of 64 k and more: over records of pairs or
// halves, as they lie or staged; what makes floats of them takes pipes that FMA leaves idle.
// Shorter chains, and bytes: over floats w [strip][64 k][16 outputs], 16 KiB of L1. x lies in a
// padded buffer, loaded once for SIDE panels.
//
// Limits: one row, 8 bits and more: memory; one row, 4 bits: the vector pipes, 29 operations for 64
// weights, 8 of them FMA; many rows: FMA. docs/cpu-strict.md counts.
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/packed_walk.h"
#include "backends/cpu/product.h"

#define PANEL      MOEI_CPU_PANEL
#define STRIP      MOEI_CPU_STRIP
#define RECORD     MOEI_CPU_RECORD
#define STRIPS     (PANEL / STRIP)
#define LANES      8
#define HALVES     2   // of a record that have scales of their own
#define FEW        4   // rows for which no floats are written
#define TILE       6   // rows of a tile
#define MR         48  // rows that share decoded weights
#define SIDE       4   // panels whose sums are kept at once
#define SLICE      64  // k that are decoded at once
#define CHUNK      256 // k: no chain crosses a multiple of it
#define PAD        16  // floats between rows of x, which would meet in few sets of a cache
#define X_ROW      (CHUNK + PAD)
#define X_ROOM     (2 * MR * X_ROW) // floats
#define WIDE       4                // records that become pairs or halves together
#define SLOTS      (WIDE * HALVES)
#define FINE       16                   // the fewest k that share a scale
#define STAGED     (PANEL * RECORD * 2) // bytes
#define BYTE_ZEROS 128                  // the largest zero point that leaves a code in a byte

// Loops over what is constant wherever it is called; sums then stay in registers.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

typedef enum code_form { PAIRS, HALVES_OF_K, BYTES, NIBBLES } code_form; // NIBBLES: bytes, staged

typedef struct job {
    _Alignas(64) float x[X_ROOM]; // [chunk][row][X_ROW], of what is prepared
    _Alignas(64) float w[STRIPS][SLICE][STRIP];
    _Alignas(
        64) uint8_t staged[LANES * 4 + WIDE * STAGED]; // loads begin up to three bytes before it
    _Alignas(64) float sum[MR][PANEL];
    _Alignas(64) float acc[SIDE][MR][PANEL];
    _Alignas(64) float scale[SLOTS][PANEL];      // of groups
    _Alignas(64) int32_t zero[HALVES][PANEL];    // zero points of the group, four times each
    _Alignas(64) float late_zero[HALVES][PANEL]; // times 2^24, where they do not fit in bytes
    float x_scale[X_ROOM / FINE];                // [row][chain] of it
    __m256i code_low, code_high;                 // make_tables
    moei_cpu_columns columns;
    moei_cpu_packed p;
    moek_ggemm_args args; // moei_cpu_packed_args
    const uint8_t *expert;
    int32_t e;
    moe_dtype elem;
    code_form form;
    float factor;        // of floats of `form`, or of x
    bool x_scaled;       // x has it
    bool has_zeros;      // in groups
    bool late;           // late_zero counts, not zero
    bool folds, folds_x; // scales of a chain are applied to its sum; x has some
    int64_t length;      // of a chain, a power of two
    int length_bits;
    int64_t rows;        // of x
    int64_t chains;      // of what is prepared of x
    int64_t first, last; // strips of the panel that are wanted
} job;

// ---- x -----------------------------------------------------------------------------------------

static void load_x(moe_dtype dtype, const uint8_t *row, int64_t k0, int64_t count, float *out)
{
    int64_t k = 0;
    if (dtype == MOE_BF16 || dtype == MOE_F16) {
        for (; k + 8 <= count; k += 8) {
            const __m128i half =
                _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * (k0 + k)));
            const __m256i word = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
            _mm256_storeu_ps(out + k,
                             dtype == MOE_BF16 ? _mm256_castsi256_ps(word) : _mm256_cvtph_ps(half));
        }
    }
    moei_load_f32(dtype, row, k0 + k, count - k, out + k);
}

// Multiplies `count` x, which have room for a multiple of 8, by a power of two. False if that
// rounds one; they are then of no use.
static bool scale_x(float *x, int64_t count, float factor)
{
    const __m256 by = _mm256_set1_ps(factor);
    const __m256 back = _mm256_set1_ps(1.0f / factor);
    __m256 differs = _mm256_setzero_ps();
    for (int64_t k = count; k < moei_i64_round_up(count, LANES); k++) {
        x[k] = 0.0f;
    }
    for (int64_t k = 0; k < count; k += LANES) {
        const __m256 v = _mm256_load_ps(x + k);
        const __m256 scaled = _mm256_mul_ps(v, by);
        const __m256 again = _mm256_mul_ps(scaled, back);
        differs = _mm256_or_ps(differs, _mm256_cmp_ps(again, v, _CMP_NEQ_OQ));
        _mm256_store_ps(x + k, scaled);
    }
    return _mm256_movemask_ps(differs) == 0;
}

static bool load_rows(job *j, int64_t i0, int64_t k0, int64_t k1, bool scaled)
{
    const moek_ggemm_args *a = &j->args;
    float *to = j->x;
    for (int64_t k = k0; k < k1; k += CHUNK) {
        const int64_t count = moei_i64_min(CHUNK, k1 - k);
        for (int64_t r = 0; r < j->rows; r++, to += X_ROW) {
            load_x(a->x.dtype, moei_x_at(a, j->e, i0 + r), k, count, to);
            if (scaled && !scale_x(to, count, j->factor)) {
                return false;
            }
        }
    }
    return true;
}

// Elements k0 .. k1 - 1 of the rows from i0, and their scales.
static void prepare(job *j, int64_t i0, int64_t k0, int64_t k1)
{
    j->chains = moei_i64_ceil_div(k1 - k0, j->length);
    j->x_scaled = j->factor == 1.0f || load_rows(j, i0, k0, k1, true);
    if (j->factor == 1.0f || !j->x_scaled) {
        (void)load_rows(j, i0, k0, k1, false);
    }
    for (int64_t r = 0; j->folds_x && r < j->rows; r++) {
        for (int64_t c = 0; c < j->chains; c++) {
            j->x_scale[r * j->chains + c] =
                moei_cpu_operand_scale(&j->args, j->e, i0 + r, k0 + c * j->length);
        }
    }
}

// ---- chains ------------------------------------------------------------------------------------

/// k of the chains of a panel: from +0 or on from `sum`, and to `sum` or, ended, into `acc`.
typedef struct piece {
    int64_t count;
    bool begins, ends;
    const float *x;       // of row 0, at the first k
    const float *scale;   // of the outputs; NULL: sums are added as they are
    const float *x_scale; // of row 0
    const uint8_t *w;     // of wide_tile: the first record, from the first k
    int64_t apart;        // the next one, in bytes
    float (*sum)[PANEL];
    float (*acc)[PANEL];
} piece;

__attribute__((always_inline)) static inline void
open_sums(const piece *p, int64_t r0, int64_t rows, int64_t n, int64_t vectors, __m256 s[TILE][8])
{
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            s[r][v] = _mm256_setzero_ps();
        }
    }
    if (p->begins) {
        return;
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            s[r][v] = _mm256_load_ps(&p->sum[r0 + r][n + LANES * v]);
        }
    }
}

// Into acc: as they are, or folded with the scales of x and W.
__attribute__((always_inline)) static inline void close_sums(const job *j, const piece *p,
                                                             int64_t r0, int64_t rows, int64_t n,
                                                             int64_t vectors, __m256 s[TILE][8])
{
    float(*to)[PANEL] = p->ends ? p->acc : p->sum;
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        if (p->ends && j->folds_x) {
            const __m256 x_scale = _mm256_broadcast_ss(p->x_scale + (r0 + r) * j->chains);
            UNROLL
            for (int64_t v = 0; v < vectors; v++) {
                s[r][v] = _mm256_mul_ps(s[r][v], x_scale);
            }
        }
        UNROLL
        for (int64_t v = 0; v < vectors; v++) {
            float *at = &to[r0 + r][n + LANES * v];
            if (p->ends && p->scale != NULL) {
                const __m256 scale = _mm256_load_ps(p->scale + n + LANES * v);
                s[r][v] = _mm256_fmadd_ps(s[r][v], scale, _mm256_load_ps(at));
            } else if (p->ends) {
                s[r][v] = _mm256_add_ps(_mm256_load_ps(at), s[r][v]);
            }
            _mm256_store_ps(at, s[r][v]);
        }
    }
}

// ---- few rows ----------------------------------------------------------------------------------

static inline __m256i load(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

static inline void store(void *to, __m256i v)
{
    _mm256_storeu_si256((__m256i *)to, v);
}

// A lane has two bf16, of two k.
static inline __m256 low_of(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
}

static inline __m256 high_of(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xFFFF0000u)));
}

static inline __m256 half_of(const uint8_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

// Byte b of each lane times 2^24. A staged record has bytes before it.
__attribute__((always_inline)) static inline __m256 byte_of(const uint8_t *from, int64_t b,
                                                            bool staged)
{
    const __m256i top = _mm256_set1_epi32((int)0xFF000000u);
    if (staged || b == 3) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(load(from + b - 3), top));
    }
    if (b == 0) {
        return _mm256_cvtepi32_ps(_mm256_slli_epi32(load(from), 24));
    }
    const char at = (char)b;
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, -1, -1, at, -1, -1, -1, (char)(at + 4), -1, -1, -1, (char)(at + 8), -1,
                      -1, -1, (char)(at + 12)));
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(load(from), order));
}

// Eight outputs, of vector v of a strip, at element k of eight whose form begins at `from`.
// 4-bit codes lie as packed.h has them: k + 2 j in nibble j, k + 2 j + 1 in nibble j + 4; low
// nibbles became one unit of bytes, high ones the next.
__attribute__((always_inline)) static inline __m256 weight_of(code_form form, const uint8_t *from,
                                                              int64_t k)
{
    const int64_t unit = 2 * LANES * 4;
    switch (form) {
    case PAIRS:
        return k % 2 == 0 ? low_of(load(from + k / 2 * unit)) : high_of(load(from + k / 2 * unit));
    case HALVES_OF_K:
        return half_of(from + k * STRIP * 2);
    case BYTES:
        return byte_of(from + k / 4 * unit, k % 4, false);
    default:
        return byte_of(from + k / 2 % 2 * unit, k % 2 * 2 + k / 4, true);
    }
}

// Of a strip: eight k, and one of its vectors.
__attribute__((always_inline)) static inline int64_t eight_bytes(code_form form)
{
    return 8 * STRIP * (form == PAIRS || form == HALVES_OF_K ? 2 : 1);
}

__attribute__((always_inline)) static inline int64_t vector_bytes(code_form form)
{
    return form == HALVES_OF_K ? LANES * 2 : LANES * 4;
}

// `strips` strips from the record, whose form lies at `w` for the first of them.
__attribute__((always_inline)) static inline void few(const job *j, const piece *p, code_form form,
                                                      int64_t rows, int64_t strips,
                                                      const uint8_t *w, int64_t n)
{
    const int64_t strip_bytes = RECORD / 8 * eight_bytes(form);
    __m256 s[TILE][8];
    open_sums(p, 0, rows, n, 2 * strips, s);
    const float *x = p->x;
    for (int64_t k = 0; k < p->count; k += 8, x += 8, w += eight_bytes(form)) {
        UNROLL
        for (int64_t i = 0; i < 8; i++) {
            UNROLL
            for (int64_t v = 0; v < 2 * strips; v++) {
                const uint8_t *from = w + v / 2 * strip_bytes + v % 2 * vector_bytes(form);
                const __m256 wk = weight_of(form, from, i);
                UNROLL
                for (int64_t r = 0; r < rows; r++) {
                    s[r][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(x + r * X_ROW + i), wk, s[r][v]);
                }
            }
        }
    }
    close_sums(j, p, 0, rows, n, 2 * strips, s);
}

// All strips that are wanted: as many side by side as hide an FMA's latency.
__attribute__((always_inline)) static inline void few_rows(const job *j, const piece *p,
                                                           code_form form, int64_t rows,
                                                           int64_t across, const uint8_t *record)
{
    const int64_t strip_bytes = RECORD / 8 * eight_bytes(form);
    int64_t strip = j->first;
    for (; strip + across <= j->last; strip += across) {
        few(j, p, form, rows, across, record + strip * strip_bytes, strip * STRIP);
    }
    for (; across > 1 && strip < j->last; strip++) {
        few(j, p, form, rows, 1, record + strip * strip_bytes, strip * STRIP);
    }
}

typedef void few_fn(const job *j, const piece *p, const uint8_t *record);

#define FEW_FN(form, rows, across)                                                                 \
    static void few_##form##_##rows(const job *j, const piece *p, const uint8_t *record)           \
    {                                                                                              \
        few_rows(j, p, form, rows, across, record);                                                \
    }
#define FEW_FNS(form)                                                                              \
    FEW_FN(form, 1, 4)                                                                             \
    FEW_FN(form, 2, 2)                                                                             \
    FEW_FN(form, 3, 1)                                                                             \
    FEW_FN(form, 4, 1)
FEW_FNS(PAIRS)
FEW_FNS(HALVES_OF_K)
FEW_FNS(BYTES)
FEW_FNS(NIBBLES)
#define FEW_NAMES(form)                                                                            \
    {                                                                                              \
        few_##form##_1, few_##form##_2, few_##form##_3, few_##form##_4                             \
    }
static few_fn *const few_fns[][FEW] = {[PAIRS] = FEW_NAMES(PAIRS),
                                       [HALVES_OF_K] = FEW_NAMES(HALVES_OF_K),
                                       [BYTES] = FEW_NAMES(BYTES),
                                       [NIBBLES] = FEW_NAMES(NIBBLES)};

// ---- many rows ---------------------------------------------------------------------------------

// The chains of a tile go on by one k.
__attribute__((always_inline)) static inline void
tile_step(int64_t rows, int64_t strips, const float *x, const float *w, __m256 s[TILE][8])
{
    __m256 wk[8];
    UNROLL
    for (int64_t v = 0; v < 2 * strips; v++) {
        wk[v] = _mm256_load_ps(w + v / 2 * SLICE * STRIP + v % 2 * LANES);
    }
    UNROLL
    for (int64_t r = 0; r < rows; r++) {
        const __m256 xk = _mm256_broadcast_ss(x + r * X_ROW);
        UNROLL
        for (int64_t v = 0; v < 2 * strips; v++) {
            s[r][v] = _mm256_fmadd_ps(xk, wk[v], s[r][v]);
        }
    }
}

// Rows r0 .. r0 + rows - 1 of `strips` strips, from k0 of the slice.
__attribute__((always_inline)) static inline void tile(const job *j, const piece *p, int64_t k0,
                                                       int64_t r0, int64_t rows, int64_t strips,
                                                       int64_t strip)
{
    const float *x = p->x + r0 * X_ROW;
    const float *w = j->w[strip][k0];
    __m256 s[TILE][8];
    open_sums(p, r0, rows, strip * STRIP, 2 * strips, s);
    for (const float *end = x + p->count; x < end; x++, w += STRIP) {
        tile_step(rows, strips, x, w, s);
    }
    close_sums(j, p, r0, rows, strip * STRIP, 2 * strips, s);
}

__attribute__((always_inline)) static inline void tiles_of(const job *j, const piece *p, int64_t k,
                                                           int64_t r0, int64_t rows, int64_t across)
{
    int64_t strip = j->first;
    for (; strip + across <= j->last; strip += across) {
        tile(j, p, k, r0, rows, across, strip);
    }
    for (; across > 1 && strip < j->last; strip++) {
        tile(j, p, k, r0, rows, 1, strip);
    }
}

// From k of the slice; as many rows in every tile, but for one.
static void all_rows(const job *j, const piece *p, int64_t rows, int64_t k)
{
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t r = rows * t / tiles;
        switch (rows * (t + 1) / tiles - r) {
        case 1:
            tiles_of(j, p, k, r, 1, 4);
            break;
        case 2:
            tiles_of(j, p, k, r, 2, 2);
            break;
        case 3:
            tiles_of(j, p, k, r, 3, 1);
            break;
        case 4:
            tiles_of(j, p, k, r, 4, 1);
            break;
        case 5:
            tiles_of(j, p, k, r, 5, 1);
            break;
        default:
            tiles_of(j, p, k, r, 6, 1);
            break;
        }
    }
}

// The same of records of pairs or halves, `apart` bytes from each other, as they lie: what makes
// floats of them takes pipes that FMA leaves idle.
__attribute__((always_inline)) static inline void
wide_tile(const job *j, const piece *p, code_form form, int64_t r0, int64_t rows, int64_t strip)
{
    const float *x = p->x + r0 * X_ROW;
    const uint8_t *record = p->w + strip * STRIP * RECORD * 2;
    const int64_t part = moei_i64_min(p->count, RECORD);
    __m256 s[TILE][8];
    open_sums(p, r0, rows, strip * STRIP, 2, s);
    for (int64_t k = 0; k < p->count; k += RECORD, record += p->apart) {
        const uint8_t *w = record;
        for (const float *end = x + part; x < end; x += 2, w += 4 * STRIP) {
            UNROLL
            for (int64_t i = 0; i < 2; i++) {
                const __m256 w0 = weight_of(form, w, i);
                const __m256 w1 = weight_of(form, w + vector_bytes(form), i);
                UNROLL
                for (int64_t r = 0; r < rows; r++) {
                    const __m256 xk = _mm256_broadcast_ss(x + r * X_ROW + i);
                    s[r][0] = _mm256_fmadd_ps(xk, w0, s[r][0]);
                    s[r][1] = _mm256_fmadd_ps(xk, w1, s[r][1]);
                }
            }
        }
    }
    close_sums(j, p, r0, rows, strip * STRIP, 2, s);
}

typedef void wide_fn(const job *j, const piece *p, int64_t r0, int64_t strip);

#define WIDE_FN(form, rows)                                                                        \
    static void wide_##form##_##rows(const job *j, const piece *p, int64_t r0, int64_t strip)      \
    {                                                                                              \
        wide_tile(j, p, form, r0, rows, strip);                                                    \
    }
#define WIDE_FNS(form)                                                                             \
    WIDE_FN(form, 1)                                                                               \
    WIDE_FN(form, 2)                                                                               \
    WIDE_FN(form, 3)                                                                               \
    WIDE_FN(form, 4)                                                                               \
    WIDE_FN(form, 5)                                                                               \
    WIDE_FN(form, 6)
#define WIDE_NAMES(form)                                                                           \
    {                                                                                              \
        wide_##form##_1, wide_##form##_2, wide_##form##_3, wide_##form##_4, wide_##form##_5,       \
            wide_##form##_6                                                                        \
    }
WIDE_FNS(PAIRS)
WIDE_FNS(HALVES_OF_K)
static wide_fn *const wide_fns[][TILE] = {
    [PAIRS] = WIDE_NAMES(PAIRS), [HALVES_OF_K] = WIDE_NAMES(HALVES_OF_K)};

// ---- weights -----------------------------------------------------------------------------------

// 4-bit codes to signed bytes: twice the value of e2m1; others less their zero points.
__attribute__((always_inline)) static inline void stage_nibbles(job *j, bool e2m1,
                                                                const uint8_t *record, uint8_t *to)
{
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m256i nibble = _mm256_set1_epi8(15);
    const int64_t lines = RECORD / 8;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * lines * 64;
        uint8_t *at = to + strip * lines * 128;
        moei_cpu_ask_ahead(from, lines * 64);
        for (int64_t line = 0; line < lines; line++) {
            const int64_t set = j->p.sets == 2 && line >= lines / HALVES ? 1 : 0;
            UNROLL
            for (int64_t v = 0; v < 2; v++) {
                const __m256i codes = load(from + line * 64 + v * 32);
                __m256i low = _mm256_and_si256(codes, nibble);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
                if (e2m1) {
                    low = _mm256_shuffle_epi8(table, low);
                    high = _mm256_shuffle_epi8(table, high);
                } else {
                    const __m256i zero = load(&j->zero[set][strip * STRIP + v * LANES]);
                    low = _mm256_sub_epi8(low, zero);
                    high = _mm256_sub_epi8(high, zero);
                }
                store(at + line * 128 + v * 32, low);
                store(at + line * 128 + 64 + v * 32, high);
            }
        }
    }
}

// Unsigned bytes to signed ones, less 128. Staged bytes of one k lie as 4-bit codes' do.
static void stage_u8(job *j, const uint8_t *record, uint8_t *to)
{
    const __m256i top = _mm256_set1_epi8((char)0x80);
    const int64_t bytes = STRIP * RECORD;
    for (int64_t b = j->first * bytes; b < j->last * bytes; b += 32) {
        store(to + b, _mm256_xor_si256(load(record + b), top));
    }
}

// s eeee mmm in the upper byte of a word to s 0eeee mmm0000000, an f16 of 2^-8 of the value,
// subnormals included. nans: the code of one, 7F, becomes one; else there is none.
__attribute__((always_inline)) static inline __m256i f16_of_e4m3(__m256i upper, bool nans)
{
    const __m256i half =
        _mm256_and_si256(_mm256_srai_epi16(upper, 1), _mm256_set1_epi16((short)0xBF80));
    if (!nans) {
        return half;
    }
    const __m256i magnitude = _mm256_and_si256(half, _mm256_set1_epi16(0x3F80));
    const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3F80));
    return _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7E00)));
}

// 8-bit floats to f16. False if there was a NaN of e4m3 that is none any more.
__attribute__((always_inline)) static inline bool stage_floats(job *j, bool e5m2, bool nans,
                                                               const uint8_t *record, uint8_t *to)
{
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    __m256i top = _mm256_setzero_si256();
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD;
        uint8_t *at = to + strip * STRIP * RECORD * 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD);
        for (int64_t k = 0; k < RECORD; k += 2) {
            const __m256i two = load(from + k * STRIP);
            const __m256i low = _mm256_slli_epi16(two, 8);
            if (e5m2) {
                const __m256i upper = _mm256_set1_epi16((short)0xFF00);
                store(at + k * STRIP * 2, low);
                store(at + (k + 1) * STRIP * 2, _mm256_and_si256(two, upper));
                continue;
            }
            top = _mm256_max_epu8(top, _mm256_or_si256(two, sign));
            store(at + k * STRIP * 2, f16_of_e4m3(low, nans));
            store(at + (k + 1) * STRIP * 2, f16_of_e4m3(two, nans));
        }
    }
    return nans || _mm256_movemask_epi8(_mm256_cmpeq_epi8(top, _mm256_set1_epi8(-1))) == 0;
}

// The record in its form.
static const uint8_t *stage(job *j, const uint8_t *record, uint8_t *to)
{
    switch (j->elem) {
    case MOE_E2M1:
        stage_nibbles(j, true, record, to);
        return to;
    case MOE_UINT4:
        stage_nibbles(j, false, record, to);
        return to;
    case MOE_U8:
        stage_u8(j, record, to);
        break;
    case MOE_E4M3FN:
        if (!stage_floats(j, false, false, record, to)) {
            (void)stage_floats(j, false, true, record, to);
        }
        return to;
    case MOE_E5M2:
        (void)stage_floats(j, true, true, record, to);
        return to;
    default:
        to = NULL;
        break;
    }
    const int64_t bytes = STRIP * j->p.record;
    moei_cpu_ask_ahead(record + j->first * bytes, (j->last - j->first) * bytes);
    return to != NULL ? to : record;
}

// The form of a record to floats at k .. k + RECORD - 1 of the slice. late: zero points are
// subtracted here; times: floats are multiplied by what x was not.
__attribute__((always_inline)) static inline void
decode_form(job *j, code_form form, bool late, bool times, const uint8_t *record, int64_t k)
{
    const __m256 factor = _mm256_set1_ps(j->factor);
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * (RECORD / 8) * eight_bytes(form);
        float(*to)[STRIP] = &j->w[strip][k];
        for (int64_t line = 0; line < RECORD / 8; line++) {
            const int64_t set = j->p.sets == 2 && line >= RECORD / 8 / HALVES ? 1 : 0;
            UNROLL
            for (int64_t i = 0; i < 8; i++) {
                UNROLL
                for (int64_t v = 0; v < 2; v++) {
                    __m256 w = weight_of(form, from + v * vector_bytes(form), i);
                    if (late) {
                        const float *zero = &j->late_zero[set][strip * STRIP + v * LANES];
                        w = _mm256_sub_ps(w, _mm256_load_ps(zero));
                    }
                    _mm256_store_ps(&to[8 * line + i][v * LANES],
                                    times ? _mm256_mul_ps(w, factor) : w);
                }
            }
            from += eight_bytes(form);
        }
    }
}

// Eight k of a vector of 4-bit codes to pairs of bf16, by two tables.
__attribute__((always_inline)) static inline void look_up(__m256i codes, __m256i table_low,
                                                          __m256i table_high, __m256i pairs[4])
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const __m256i bytes = _mm256_shuffle_epi8(codes, order); // k, k + 1, then k + 4, k + 5
    const __m256i low = _mm256_and_si256(bytes, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
    const __m256i low_low = _mm256_shuffle_epi8(table_low, low);
    const __m256i low_high = _mm256_shuffle_epi8(table_high, low);
    const __m256i high_low = _mm256_shuffle_epi8(table_low, high);
    const __m256i high_high = _mm256_shuffle_epi8(table_high, high);
    pairs[0] = _mm256_unpacklo_epi8(low_low, low_high);
    pairs[1] = _mm256_unpacklo_epi8(high_low, high_high);
    pairs[2] = _mm256_unpackhi_epi8(low_low, low_high);
    pairs[3] = _mm256_unpackhi_epi8(high_low, high_high);
}

// 4-bit codes, whose zero point is in the tables, to a record of pairs.
static void pair_nibbles(const job *j, const uint8_t *record, uint8_t *to)
{
    const __m256i table_low = j->code_low;
    const __m256i table_high = j->code_high;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD / 2;
        uint8_t *at = to + strip * STRIP * RECORD * 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        for (int64_t line = 0; line < RECORD / 8; line++, from += 64, at += 256) {
            UNROLL
            for (int64_t v = 0; v < 2; v++) {
                __m256i pairs[4];
                look_up(load(from + 32 * v), table_low, table_high, pairs);
                UNROLL
                for (int64_t i = 0; i < 4; i++) {
                    store(at + 64 * i + 32 * v, pairs[i]);
                }
            }
        }
    }
}

// The same to floats at k .. of the slice. zeros: less zero points that differ.
__attribute__((always_inline)) static inline void decode_nibbles(job *j, bool zeros,
                                                                 const uint8_t *record, int64_t k)
{
    const __m256i table_low = j->code_low;
    const __m256i table_high = j->code_high;
    for (int64_t strip = j->first; strip < j->last; strip++) {
        const uint8_t *from = record + strip * STRIP * RECORD / 2;
        moei_cpu_ask_ahead(from, STRIP * RECORD / 2);
        for (int64_t i = 0; i < 2 * RECORD / 8; i++) { // a vector of eight k each
            const int64_t set = j->p.sets == 2 && i >= RECORD / 8 ? 1 : 0;
            const int64_t n = i % 2 * LANES;
            const __m256 zero = _mm256_load_ps(&j->late_zero[set][strip * STRIP + n]);
            float(*to)[STRIP] = &j->w[strip][k + i / 2 * 8];
            __m256i pairs[4];
            look_up(load(from + i * 32), table_low, table_high, pairs);
            UNROLL
            for (int64_t h = 0; h < 4; h++) {
                const __m256 even = low_of(pairs[h]);
                const __m256 odd = high_of(pairs[h]);
                _mm256_store_ps(&to[2 * h][n], zeros ? _mm256_sub_ps(even, zero) : even);
                _mm256_store_ps(&to[2 * h + 1][n], zeros ? _mm256_sub_ps(odd, zero) : odd);
            }
        }
    }
}

// Bytes of the bf16 that a 4-bit code is in `form`, less the zero point that all of them have.
static void make_tables(job *j, int32_t zero)
{
    _Alignas(16) uint8_t low[16];
    _Alignas(16) uint8_t high[16];
    for (uint8_t code = 0; code < 16; code++) {
        const bool e2m1 = j->elem == MOE_E2M1;
        const float value = e2m1 ? moei_e2m1_to_f32(code) : (float)(code - zero);
        const uint16_t bits = moei_f32_to_bf16(value * (e2m1 ? 0x1p25f : 0x1p24f));
        low[code] = (uint8_t)bits;
        high[code] = (uint8_t)(bits >> 8);
    }
    j->code_low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(const void *)low));
    j->code_high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(const void *)high));
}

// A record to floats at k .. of the slice.
static void decode(job *j, const uint8_t *record, int64_t k)
{
    const bool times = !j->x_scaled;
    if (j->form == NIBBLES && !times) {
        if (j->has_zeros) {
            decode_nibbles(j, true, record, k);
        } else {
            decode_nibbles(j, false, record, k);
        }
        return;
    }
    const uint8_t *formed = stage(j, record, j->staged + LANES * 4);
    switch (j->form) {
    case PAIRS:
        decode_form(j, PAIRS, false, false, formed, k);
        break;
    case HALVES_OF_K:
        decode_form(j, HALVES_OF_K, false, times, formed, k);
        break;
    case BYTES:
        decode_form(j, BYTES, j->late, times, formed, k);
        break;
    default:
        decode_form(j, NIBBLES, j->late, true, formed, k);
        break;
    }
}

// The zero point of an output. Codes less it are bytes where it is small.
static inline void set_zero(job *j, int64_t set, int64_t n, int32_t zero)
{
    j->zero[set][n] = j->late ? 0 : (int32_t)((uint32_t)zero * 0x01010101u);
    j->late_zero[set][n] = (float)(j->elem == MOE_U8 ? zero - 128 : zero) * 0x1p24f;
}

static void load_zeros(job *j, const uint8_t *zeros, int64_t width)
{
    uint8_t top = 0;
    for (int64_t i = 0; i < j->p.sets * width; i++) {
        top = zeros[i] > top ? zeros[i] : top;
    }
    j->late = j->elem == MOE_U8 || top > BYTE_ZEROS;
    for (int64_t s = 0; s < j->p.sets; s++) {
        for (int64_t n = 0; n < width; n++) {
            set_zero(j, s, n, zeros[s * width + n]);
        }
    }
}

// Of a group: its scales to slots from `slot`, its zero points.
static void load_head(job *j, const uint8_t *head, int64_t width, int64_t slot)
{
    const int64_t scales = width * j->p.scale;
    moei_cpu_ask_ahead(head, width * j->p.head);
    for (int64_t s = 0; s < j->p.sets; s++) {
        load_scale_line(j->args.w.scale_dtype, head + s * scales, width, j->scale[slot + s]);
    }
    if (j->has_zeros) {
        load_zeros(j, head + j->p.sets * scales, width);
    }
}

// ---- products ----------------------------------------------------------------------------------

/// Records of a panel, one after the other.
typedef struct span {
    moei_cpu_walk walk;
    const uint8_t *head;   // of the group
    const uint8_t *loaded; // whose scales are there
} span;

// The next record; its scales and zero points are loaded.
static const uint8_t *next_record(job *j, span *s)
{
    const uint8_t *record = moei_cpu_walk_on(&s->walk, &s->head);
    if (s->head != s->loaded) {
        load_head(j, s->head, s->walk.width, 0);
        s->loaded = s->head;
    }
    return record;
}

// Elements k0 + k .. of the chunk that begins at k0: a piece of chains.
static piece piece_of(job *j, int64_t k0, int64_t k, int64_t count, int64_t slot,
                      float (*acc)[PANEL])
{
    const int64_t within = j->length - 1;
    return (piece){.count = count,
                   .begins = (k & within) == 0,
                   .ends = ((k + count) & within) == 0 || k0 + k + count == j->args.w.k,
                   .x = j->x + k / CHUNK * j->rows * X_ROW + k % CHUNK,
                   .scale = j->folds ? j->scale[slot] : NULL,
                   .x_scale = j->x_scale + (k >> j->length_bits),
                   .sum = j->sum,
                   .acc = acc};
}

// Whether many rows take records as pairs or halves: not where chains are short, which a tile
// begins and ends often, nor where zero points differ.
static bool is_wide(const job *j)
{
    return j->length >= SLICE &&
           (j->elem == MOE_BF16 || j->elem == MOE_F16 || j->elem == MOE_E4M3FN ||
            j->elem == MOE_E5M2 || (j->form == NIBBLES && !j->has_zeros));
}

// The next records, of `count` elements, as pairs or halves, and the slots of their scales. Returns
// the first; the next one is *apart bytes on.
static const uint8_t *gather_wide(job *j, span *s, int64_t count, int64_t *slot, int64_t *apart)
{
    const bool lie = j->p.record == 2 * RECORD; // that is what they are
    const uint8_t *first = j->staged + LANES * 4;
    for (int64_t r = 0; r * RECORD < count; r++) {
        const uint8_t *record = moei_cpu_walk_on(&s->walk, &s->head);
        uint8_t *to = j->staged + LANES * 4 + r * STAGED;
        slot[r] = r == 0 ? 0 : slot[r - 1];
        if (s->head != s->loaded) {
            slot[r] += r == 0 ? 0 : j->p.sets;
            load_head(j, s->head, s->walk.width, slot[r]);
            s->loaded = s->head;
        }
        if (j->form == NIBBLES) {
            pair_nibbles(j, record, to);
            continue;
        }
        const uint8_t *at = stage(j, record, to);
        first = lie && r == 0 ? at : first;
    }
    s->loaded = NULL; // what follows looks for scales in slot 0
    *apart = lie ? s->walk.width * j->p.record : STAGED;
    return first;
}

// Whole records of many rows, up to a chunk of them as they lie, or some as pairs or halves.
// Returns how many elements of k, from k, those were.
static int64_t run_wide(job *j, span *s, int64_t rows, int64_t k0, int64_t k, int64_t k1,
                        float (*acc)[PANEL])
{
    const code_form form = j->form == HALVES_OF_K ? HALVES_OF_K : PAIRS;
    const int64_t most = j->p.record == 2 * RECORD ? CHUNK - k % CHUNK : WIDE * RECORD;
    const int64_t count = moei_i64_min(most, (k1 - k0 - k) / RECORD * RECORD);
    int64_t slot[CHUNK / RECORD];
    int64_t apart;
    const uint8_t *first = gather_wide(j, s, count, slot, &apart);
    piece pieces[CHUNK / SLICE + 1];
    int64_t num = 0;
    for (int64_t at = 0; at < count; at += pieces[num++].count) {
        const int64_t left = j->length - ((k + at) & (j->length - 1));
        const int64_t part = moei_i64_min(left, count - at);
        pieces[num] = piece_of(j, k0, k + at, part, slot[at / RECORD], acc);
        pieces[num].w = first + at / RECORD * apart;
        pieces[num].apart = apart;
    }
    const int64_t tiles = moei_i64_ceil_div(rows, TILE);
    for (int64_t t = 0; t < tiles; t++) { // as many rows in every tile, but for one
        const int64_t r = rows * t / tiles;
        wide_fn *const fn = wide_fns[form][rows * (t + 1) / tiles - r - 1];
        for (int64_t strip = j->first; strip < j->last; strip++) {
            for (int64_t i = 0; i < num; i++) {
                fn(j, &pieces[i], r, strip);
            }
        }
    }
    return count;
}

// Records of the chunk, of k0 .. k1 - 1, into the sums of a panel.
static void run_panel(job *j, int64_t panel, int64_t rows, int64_t k0, int64_t k1,
                      float (*acc)[PANEL])
{
    span s = {.loaded = NULL};
    s.head = moei_cpu_walk_to(&s.walk, &j->p, j->expert, panel, k0 / RECORD);
    const int64_t slice = rows > FEW && j->length >= SLICE ? SLICE : RECORD;
    const int64_t part = moei_i64_min(j->length, slice);
    int64_t k = 0;
    while (rows > FEW && is_wide(j) && j->x_scaled && k + RECORD <= k1 - k0) {
        k += run_wide(j, &s, rows, k0, k, k1, acc);
    }
    for (; k < k1 - k0; k += slice) {
        const int64_t count = moei_i64_min(slice, k1 - k0 - k);
        const uint8_t *record = next_record(j, &s);
        const bool at_once = rows <= FEW && count == RECORD && j->x_scaled && !j->late;
        if (at_once) {
            record = stage(j, record, j->staged + LANES * 4);
        }
        for (int64_t r = 0; !at_once && r < count; r += RECORD) {
            decode(j, r == 0 ? record : next_record(j, &s), r);
        }
        for (int64_t h = 0; h < count; h += part) {
            const int64_t set = j->p.sets == 2 ? h / (RECORD / HALVES) : 0;
            const piece p = piece_of(j, k0, k + h, moei_i64_min(part, count - h), set, acc);
            if (at_once) {
                few_fns[j->form][rows - 1](j, &p, record + h / 8 * eight_bytes(j->form));
            } else {
                all_rows(j, &p, rows, h);
            }
        }
    }
}

static void want_strips(job *j, int64_t panel, int64_t n0, int64_t n1)
{
    j->first = moei_i64_max(n0 - panel * PANEL, 0) / STRIP;
    j->last = moei_i64_ceil_div(moei_i64_min(n1 - panel * PANEL, PANEL), STRIP);
}

static void finish_panel(job *j, int64_t panel, int64_t i0, int64_t i1, int64_t n0, int64_t n1,
                         float (*acc)[PANEL])
{
    const int64_t from = moei_i64_max(n0, panel * PANEL);
    const int64_t to = moei_i64_min(n1, (panel + 1) * PANEL);
    moei_cpu_load_columns(&j->args.w, j->e, from, to, &j->columns);
    for (int64_t i = i0; i < i1; i++) {
        moei_cpu_finish(&j->args, &j->columns, j->e, i, from, to,
                        &acc[i - i0][from - panel * PANEL]);
    }
}

static void run_rows(job *j, int64_t i0, int64_t i1, int64_t n0, int64_t n1)
{
    const int64_t rows = i1 - i0;
    const int64_t k = j->args.w.k;
    const int64_t room = X_ROOM / (rows * X_ROW) * CHUNK;
    const int64_t end = moei_i64_ceil_div(n1, PANEL);
    int64_t prepared = -1;
    j->rows = rows;
    for (int64_t panel0 = n0 / PANEL; panel0 < end; panel0 += SIDE) {
        const int64_t panel1 = moei_i64_min(panel0 + SIDE, end);
        for (int64_t panel = panel0; panel < panel1; panel++) {
            memset(j->acc[panel - panel0], 0, (size_t)rows * sizeof j->acc[0][0]);
        }
        for (int64_t k0 = 0; k0 < k; k0 += room) {
            const int64_t k1 = moei_i64_min(k0 + room, k);
            if (prepared != k0) {
                prepare(j, i0, k0, k1);
                prepared = k0;
            }
            for (int64_t panel = panel0; panel < panel1; panel++) {
                want_strips(j, panel, n0, n1);
                run_panel(j, panel, rows, k0, k1, j->acc[panel - panel0]);
            }
        }
        for (int64_t panel = panel0; panel < panel1; panel++) {
            finish_panel(j, panel, i0, i1, n0, n1, j->acc[panel - panel0]);
        }
    }
}

static void choose_form(job *j)
{
    switch (j->elem) {
    case MOE_BF16:
        j->form = PAIRS;
        j->factor = 1.0f;
        break;
    case MOE_F16:
    case MOE_E5M2:
        j->form = HALVES_OF_K;
        j->factor = 1.0f;
        break;
    case MOE_E4M3FN:
        j->form = HALVES_OF_K;
        j->factor = 0x1p8f;
        break;
    case MOE_I8:
    case MOE_U8:
        j->form = BYTES;
        j->factor = 0x1p-24f;
        break;
    default:
        j->form = NIBBLES;
        j->factor = j->elem == MOE_E2M1 ? 0x1p-25f : 0x1p-24f;
        break;
    }
}

static void run(const moek_ggemm_args *args, int32_t e, int64_t i0, int64_t i1, int64_t n0,
                int64_t n1, int64_t length, bool folds)
{
    job j;
    const moei_format_info *format = args->w.format;
    j.p = moei_cpu_packed_of(&args->w);
    j.args = moei_cpu_packed_args(args, &j.p, e);
    j.expert = args->w.values + (int64_t)e * args->w.value_e_stride;
    j.e = e;
    j.elem = format->elem;
    j.length = length;
    j.length_bits = __builtin_ctzll((uint64_t)length);
    j.folds = folds;
    j.folds_x = folds && args->x.scales != NULL && args->x.group > 0;
    choose_form(&j);
    const int32_t zero = format->zero_point > 0 ? format->zero_point : 0;
    j.has_zeros = j.p.head > j.p.sets * j.p.scale;
    j.late = j.elem == MOE_U8;
    if (j.form == NIBBLES) {
        make_tables(&j, j.has_zeros ? 0 : zero);
    }
    for (int64_t s = 0; s < HALVES; s++) { // where a group says nothing else
        for (int64_t n = 0; n < PANEL; n++) {
            j.scale[s][n] = 1.0f;
            set_zero(&j, s, n, zero);
        }
    }
    const int64_t blocks = moei_i64_ceil_div(i1 - i0, MR);
    for (int64_t b = 0; b < blocks; b++) {
        run_rows(&j, i0 + (i1 - i0) * b / blocks, i0 + (i1 - i0) * (b + 1) / blocks, n0, n1);
    }
}

#define CHAIN_KERNEL(variant, length, folds)                                                       \
    moek_ggemm_fn moek_ggemm_any_any_packed__avx2_##variant;                                       \
    void moek_ggemm_any_any_packed__avx2_##variant(const moek_ggemm_args *args, int32_t e,         \
                                                   int64_t i0, int64_t i1, int64_t n0, int64_t n1) \
    {                                                                                              \
        run(args, e, i0, i1, n0, n1, length, folds);                                               \
    }
CHAIN_KERNEL(c256, 256, false)
CHAIN_KERNEL(b16, 16, true)
CHAIN_KERNEL(b32, 32, true)
CHAIN_KERNEL(b64, 64, true)
CHAIN_KERNEL(b128, 128, true)
