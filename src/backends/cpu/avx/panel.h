// SPDX-License-Identifier: Apache-2.0
// A panel of weights: 64 outputs of canonical weights of any format, turned 64 k at a time
// and decoded to floats, and their scales.
#ifndef MOEI_BACKENDS_CPU_AVX_PANEL_H
#define MOEI_BACKENDS_CPU_AVX_PANEL_H

#include "backends/cpu/avx/vector.h"
#include "backends/cpu/avx2/scales.h"
#include "backends/cpu/canonical.h"

#define NR          MOEI_CPU_MAX_COLUMNS // outputs of a panel
#define GROUP       LANES                // outputs that are turned together
#define MR          36                   // rows that share a turned panel: six tiles of six
#define SLICE       MOEI_CPU_SLICE       // k that are turned at once
#define CHUNK       MOEI_CPU_CHUNK       // k whose scales and rows of x are decoded at once
#define BYTES       8                    // outputs whose scales are turned together
#define STEP        16                   // bytes of a row that are turned at once
#define LINE        64
#define PANEL_BYTES (192 << 10) // of two panels next to each other in a second-level cache
#define MEETING     2048        // bytes between rows whose lines meet in few sets of a cache
#define NEAR_ROWS   32          // of a panel that is copied
#define FINE        16          // the fewest k that share a scale

typedef struct panel panel;

/// rows: GROUP addresses, of k0; out[k][0 .. GROUP - 1] for k below `count`, or a little more of no
/// meaning.
typedef void decode_fn(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                       float (*out)[NR]);

struct panel {
    union { // a slice is turned from one or decoded to the other
        _Alignas(64) float w[SLICE][NR];
        _Alignas(64) uint8_t near[NEAR_ROWS][CHUNK * 2 + LINE];
    };
    _Alignas(64) float x[MR][CHUNK];
    _Alignas(64) float sum[MR][NR];
    _Alignas(64) float odd[MR][NR]; // sums of odd k, where they are apart
    _Alignas(64) float acc[MR][NR];
    _Alignas(64) float scale[CHUNK / FINE][NR];
    _Alignas(64) uint8_t tail[GROUP][SLICE * sizeof(float)];
    moei_cpu_canonical c;
    const uint8_t *near_row[NR]; // c.row, or copies that begin at byte near_at
    int64_t near_at;
    int64_t scale_row[NR];    // element of w.scales at k = 0; past the last output: its again
    veci code_low, code_high; // of 4 bits: bytes of the bf16 that a code is
    decode_fn *decode;
    int64_t width; // that chains are run for: 16, 32 or 64
    int64_t row_bytes;
    const uint8_t *ask_row, *ask_end; // see ask_ahead
    int64_t ask_at, ask_each;
    int64_t end; // of all outputs
    bool paired; // class amx_bf16
    bool direct; // the slice is not decoded: weights go from registers to their chains
};

// ---- weights -----------------------------------------------------------------------------------

// STEP bytes of GROUP rows: v[j] has bytes 4j .. 4j + 3 of row l in lane l.
static inline void turn(const uint8_t *const rows[GROUP], int64_t at, veci v[4])
{
    const veci a0 = load_each_fourth(rows, at);
    const veci a1 = load_each_fourth(rows + 1, at);
    const veci a2 = load_each_fourth(rows + 2, at);
    const veci a3 = load_each_fourth(rows + 3, at);
    const veci b0 = V(unpacklo_epi32)(a0, a1);
    const veci b1 = V(unpackhi_epi32)(a0, a1);
    const veci b2 = V(unpacklo_epi32)(a2, a3);
    const veci b3 = V(unpackhi_epi32)(a2, a3);
    v[0] = V(unpacklo_epi64)(b0, b2);
    v[1] = V(unpackhi_epi64)(b0, b2);
    v[2] = V(unpacklo_epi64)(b1, b3);
    v[3] = V(unpackhi_epi64)(b1, b3);
}

static inline void store_pair(veci pair, float *low, float *high)
{
    V(store_ps)(low, low_of(pair));
    V(store_ps)(high, high_of(pair));
}

static void decode_bf16(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                        float (*out)[NR])
{
    (void)p;
    for (int64_t k = 0; k < count; k += 8) {
        veci v[4];
        turn(rows, 2 * k, v);
        for (int64_t j = 0; j < 4; j++) {
            store_pair(v[j], out[k + 2 * j], out[k + 2 * j + 1]);
        }
    }
}

static void decode_f32(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                       float (*out)[NR])
{
    (void)p;
    for (int64_t k = 0; k < count; k += 4) {
        veci v[4];
        turn(rows, 4 * k, v);
        for (int64_t j = 0; j < 4; j++) {
            V(store_ps)(out[k + j], as_floats(v[j]));
        }
    }
}

// Lane l of a vector holds k 0 .. 7 of row l, low nibbles first: byte b has k 2b and 2b + 1. Bytes
// 0, 1 of four rows are brought together, and bytes 2, 3, so that unpacking the two bytes of a
// number leaves each row in its lane. pairs[i] has k: 0 and 2, 1 and 3, 4 and 6, 5 and 7.
static inline void look_up(const panel *p, veci codes, veci pairs[4])
{
    const veci nibble = V(set1_epi8)(15);
    const veci order =
        veci_all(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    const veci bytes = V(shuffle_epi8)(codes, order);
    const veci even = veci_and(bytes, nibble);
    const veci odd = veci_and(V(srli_epi16)(bytes, 4), nibble);
    const veci even_low = V(shuffle_epi8)(p->code_low, even);
    const veci even_high = V(shuffle_epi8)(p->code_high, even);
    const veci odd_low = V(shuffle_epi8)(p->code_low, odd);
    const veci odd_high = V(shuffle_epi8)(p->code_high, odd);
    pairs[0] = V(unpacklo_epi8)(even_low, even_high);
    pairs[1] = V(unpacklo_epi8)(odd_low, odd_high);
    pairs[2] = V(unpackhi_epi8)(even_low, even_high);
    pairs[3] = V(unpackhi_epi8)(odd_low, odd_high);
}

static void decode_4bits(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                         float (*out)[NR])
{
    for (int64_t k = 0; k < count; k += 32) {
        veci v[4];
        turn(rows, k / 2, v);
        for (int64_t j = 0; j < 4; j++) {
            float(*to)[NR] = &out[k + 8 * j];
            veci pairs[4];
            look_up(p, v[j], pairs);
            store_pair(pairs[0], to[0], to[2]);
            store_pair(pairs[1], to[1], to[3]);
            store_pair(pairs[2], to[4], to[6]);
            store_pair(pairs[3], to[5], to[7]);
        }
    }
}

static void decode_i8(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                      float (*out)[NR])
{
    (void)p;
    for (int64_t k = 0; k < count; k += 16) {
        veci v[4];
        turn(rows, k, v);
        for (int64_t j = 0; j < 4; j++) {
            float(*to)[NR] = &out[k + 4 * j];
            for (int b = 0; b < 4; b++) {
                const veci top = shift_left(v[j], 24 - 8 * b);
                V(store_ps)(to[b], V(cvtepi32_ps)(V(srai_epi32)(top, 24)));
            }
        }
    }
}

static void decode_u8(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                      float (*out)[NR])
{
    const veci byte = V(set1_epi32)(255);
    (void)p;
    for (int64_t k = 0; k < count; k += 16) {
        veci v[4];
        turn(rows, k, v);
        for (int64_t j = 0; j < 4; j++) {
            float(*to)[NR] = &out[k + 4 * j];
            for (int b = 0; b < 4; b++) {
                const veci code = veci_and(shift_right(v[j], 8 * b), byte);
                V(store_ps)(to[b], V(cvtepi32_ps)(code));
            }
        }
    }
}

// All outputs of one k are brought side by side, and two such make a vector of f16. e5m2 is the
// upper byte of one.
__attribute__((always_inline)) static inline void
decode_8bit_floats(const uint8_t *const rows[GROUP], int64_t count, bool e5m2, float (*out)[NR])
{
    const veci gather =
        veci_all(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const vecf scale = V(set1_ps)(e5m2 ? 1.0f : 256.0f);
    for (int64_t k = 0; k < count; k += 16) {
        veci v[4];
        turn(rows, k, v);
        for (int64_t j = 0; j < 4; j++) {
            const veci codes = gather_words(V(shuffle_epi8)(v[j], gather));
            for (int64_t pair = 0; pair < 2; pair++) {
                float(*to)[NR] = &out[k + 4 * j + 2 * pair];
                const halfi two = pair == 0 ? low_half(codes) : high_half(codes);
                const veci half = e5m2 ? V(slli_epi16)(V(cvtepu8_epi16)(two), 8) : e4m3_to_f16(two);
                V(store_ps)(to[0], V(mul_ps)(V(cvtph_ps)(low_half(half)), scale));
                V(store_ps)(to[1], V(mul_ps)(V(cvtph_ps)(high_half(half)), scale));
            }
        }
    }
}

static void decode_e4m3(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                        float (*out)[NR])
{
    (void)p;
    decode_8bit_floats(rows, count, false, out);
}

static void decode_e5m2(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                        float (*out)[NR])
{
    (void)p;
    decode_8bit_floats(rows, count, true, out);
}

// Row by row to floats, and these are turned.
static void decode_f16(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                       float (*out)[NR])
{
    for (int64_t k = 0; k < count; k += 8) {
        _Alignas(32) float line[GROUP][8];
        const uint8_t *lines[GROUP];
        for (int r = 0; r < GROUP; r++) {
            const __m128i half = load_16(rows[r] + 2 * k);
            _mm256_store_ps(line[r], _mm256_cvtph_ps(half));
            lines[r] = (const uint8_t *)line[r];
        }
        decode_f32(p, lines, 8, &out[k]);
    }
}

static void decode_any(const panel *p, const uint8_t *const rows[GROUP], int64_t count,
                       float (*out)[NR])
{
    _Alignas(32) float line[GROUP][SLICE];
    const uint8_t *lines[GROUP];
    for (int r = 0; r < GROUP; r++) {
        moei_load_f32(p->c.args->w.format->elem, rows[r], 0, count, line[r]);
        for (int64_t k = count; k < moei_i64_round_up(count, 4); k++) {
            line[r][k] = 0.0f;
        }
        lines[r] = (const uint8_t *)line[r];
    }
    decode_f32(p, lines, count, out);
}

static decode_fn *decoder(moe_dtype elem)
{
    static decode_fn *const of[] = {
        [MOE_F32] = decode_f32,     [MOE_BF16] = decode_bf16,  [MOE_F16] = decode_f16,
        [MOE_E4M3FN] = decode_e4m3, [MOE_E5M2] = decode_e5m2,  [MOE_I8] = decode_i8,
        [MOE_U8] = decode_u8,       [MOE_E2M1] = decode_4bits, [MOE_UINT4] = decode_4bits};
    const bool known = (size_t)elem < sizeof of / sizeof of[0] && of[elem] != NULL;
    return known ? of[elem] : decode_any;
}

static void make_tables(panel *p)
{
    uint8_t low[16];
    uint8_t high[16];
    moei_cpu_canonical_bytes(&p->c, low, high);
    p->code_low = veci_all(load_16(low));
    p->code_high = veci_all(load_16(high));
}

// Asks for as many lines of the next panel as a group reads of this one, row after row: memory is
// read in one forward stream, whatever the order in which a panel is turned.
static inline void ask_ahead(panel *p, int64_t lines)
{
    for (int64_t asked = 0; asked < lines && p->ask_row < p->ask_end; asked++) {
        _mm_prefetch((const char *)p->ask_row + p->ask_at, _MM_HINT_T1);
        p->ask_at += LINE;
        if (p->ask_at >= p->row_bytes) {
            p->ask_at = 0;
            p->ask_row += p->c.args->w.value_n_stride;
        }
    }
}

// From now on, lines of outputs n0 .. n1 - 1 are asked for.
static void ask_for(panel *p, int64_t n0, int64_t n1)
{
    const uint8_t *base = p->c.args->w.values + (int64_t)p->c.e * p->c.args->w.value_e_stride;
    p->ask_at = 0;
    p->ask_row = base + n0 * p->c.args->w.value_n_stride;
    p->ask_end = base + moei_i64_max(n1, n0) * p->c.args->w.value_n_stride;
}

static void turn_rows(void *arg, const uint8_t *const *rows, int64_t g, int64_t count)
{
    panel *p = arg;
    ask_ahead(p, p->ask_each);
    p->decode(p, rows, count, (float(*)[NR])(void *)&p->w[0][g]);
}

static void decode_rows(panel *p, int64_t k0, int64_t count)
{
    moei_cpu_turn_rows(&p->c, p, turn_rows, GROUP, STEP, p->tail, k0, count);
}

// ---- scales ------------------------------------------------------------------------------------

// Up to eight scales of a byte each along k, of BYTES outputs: turned, and to floats.
static inline void load_byte_scales(const panel *p, int64_t g, int64_t at, int64_t count,
                                    float (*out)[NR])
{
    __m128i a[BYTES];
    for (int r = 0; r < BYTES; r++) {
        const uint8_t *from = (const uint8_t *)p->c.args->w.scales + p->scale_row[g + r] + at;
        uint64_t bytes = 0;
        if (count == 8) {
            memcpy(&bytes, from, 8);
        } else {
            memcpy(&bytes, from, (size_t)count);
        }
        a[r] = _mm_cvtsi64_si128((long long)bytes);
    }
    const __m128i b0 = _mm_unpacklo_epi8(a[0], a[1]);
    const __m128i b1 = _mm_unpacklo_epi8(a[2], a[3]);
    const __m128i b2 = _mm_unpacklo_epi8(a[4], a[5]);
    const __m128i b3 = _mm_unpacklo_epi8(a[6], a[7]);
    const __m128i c0 = _mm_unpacklo_epi16(b0, b1);
    const __m128i c1 = _mm_unpackhi_epi16(b0, b1);
    const __m128i c2 = _mm_unpacklo_epi16(b2, b3);
    const __m128i c3 = _mm_unpackhi_epi16(b2, b3);
    const __m128i d[4] = {_mm_unpacklo_epi32(c0, c2), _mm_unpackhi_epi32(c0, c2),
                          _mm_unpacklo_epi32(c1, c3), _mm_unpackhi_epi32(c1, c3)};
    for (int64_t b = 0; b < count; b++) {
        const __m128i codes = b % 2 == 0 ? d[b / 2] : _mm_srli_si128(d[b / 2], 8);
        _mm256_store_ps(&out[b][g], byte_scales(p->c.args->w.scale_dtype, codes));
    }
}

// scale[b][n] of the blocks of `chunk` k in [k0, k0 + count).
static void load_scales(panel *p, int64_t k0, int64_t count, int64_t chunk)
{
    const moei_matrices *m = &p->c.args->w;
    const int64_t blocks = moei_i64_ceil_div(count, chunk);
    const int64_t bits = moe_dtype_bits(m->scale_dtype);
    const bool along_k = m->block_k == chunk && m->scale_k_stride == 1;
    if (along_k && (m->scale_dtype == MOE_E8M0 || m->scale_dtype == MOE_E4M3FN)) {
        for (int64_t g = 0; g < p->c.outputs; g += BYTES) {
            for (int64_t b = 0; b < blocks; b += 8) {
                load_byte_scales(p, g, k0 / chunk + b, moei_i64_min(blocks - b, 8), &p->scale[b]);
            }
        }
        return;
    }
    for (int64_t n = 0; n < p->c.outputs; n++) {
        if (n > 0 && p->scale_row[n] == p->scale_row[n - 1]) {
            for (int64_t b = 0; b < blocks; b++) {
                p->scale[b][n] = p->scale[b][n - 1];
            }
            continue;
        }
        float line[CHUNK / FINE];
        if (along_k) {
            const uint8_t *from = (const uint8_t *)m->scales + p->scale_row[n] * bits / 8;
            moei_load_f32(m->scale_dtype, from, k0 / chunk, blocks, line);
        }
        for (int64_t b = 0; b < blocks; b++) {
            p->scale[b][n] = along_k
                                 ? line[b]
                                 : moei_load_one(m->scale_dtype, m->scales,
                                                 p->scale_row[n] + (k0 + b * chunk) / m->block_k *
                                                                       m->scale_k_stride);
        }
    }
}

// Outputs go on to n1.
static void begin_panels(panel *p, const moek_ggemm_args *args, int32_t e, int64_t n1)
{
    const moe_dtype elem = args->w.format->elem;
    moei_cpu_canonical_begin(&p->c, args, e);
    p->c.acc = p->acc;
    p->end = n1;
    p->decode = decoder(elem);
    p->row_bytes = moei_elem_bytes(elem, args->w.k);
    p->width = p->row_bytes * 64 <= PANEL_BYTES ? 64 : p->row_bytes * 32 <= PANEL_BYTES ? 32 : 16;
    p->ask_each = moei_i64_ceil_div(moei_elem_bytes(elem, SLICE) * GROUP, LINE);
    make_tables(p);
    // Where x alone has scales, or an output is not there.
    for (int64_t b = 0; b < CHUNK / FINE; b++) {
        for (int64_t n = 0; n < NR; n++) {
            p->scale[b][n] = 1.0f;
        }
    }
}

#endif
