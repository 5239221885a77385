// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/operand.h"

#include <string.h>

#include "backends/cuda/device.h"
#include "backends/gpu/pack.h"
#include "ops/ggemm_at.h"

#define STEPS 4 // of a block

// MXFP4: codes of scales whose products with every code of a weight bf16 holds exactly, and the
// last one of which 2^126 times the scale is a bf16.
#define SCALE_LOW   2
#define SCALE_HIGH  252
#define SCALE_PLAIN 128

#define FLAG_BYTES 16 // the size of an expert is a multiple of it

// ---- formats -----------------------------------------------------------------------------------

int moei_operand_kind_of(const moei_format_info *format)
{
    switch (format->elem) {
    case MOE_E2M1:
        return format->format == MOE_FORMAT_MXFP4   ? MOEI_OPERAND_MXFP4
               : format->format == MOE_FORMAT_NVFP4 ? MOEI_OPERAND_NVFP4
                                                    : -1;
    case MOE_UINT4:
        return format->zero_point >= 0 ? MOEI_OPERAND_U4 : -1;
    case MOE_U8:
        return format->zero_point >= 0 ? MOEI_OPERAND_U8 : -1;
    case MOE_I8:
        return MOEI_OPERAND_U8;
    case MOE_E4M3FN:
        return MOEI_OPERAND_E4M3;
    default:
        return -1;
    }
}

bool moei_operand_takes(const moei_format_info *format, int64_t block_k)
{
    const int kind = moei_operand_kind_of(format);
    return kind >= 0 && (!MOEI_OPERAND_APART(kind) || block_k % 32 == 0);
}

int moei_operand_zero_point(const moei_format_info *format)
{
    return format->elem == MOE_I8 ? 128 : format->zero_point;
}

static moei_operand_kind kind_of(const moei_matrices *m)
{
    return (moei_operand_kind)moei_operand_kind_of(m->format);
}

// Bytes of a pair of codes, as canonical memory has them.
static int pair_bytes(moei_operand_kind kind)
{
    return MOEI_OPERAND_CODES(kind) / (MOEI_OPERAND_TILE * MOEI_OPERAND_TILE / 2);
}

size_t moei_operand_bytes(const moei_kernel *kernel, const moei_matrices *m)
{
    (void)kernel;
    return (size_t)moei_operand_flags_at(kind_of(m), m) + FLAG_BYTES;
}

// ---- words -------------------------------------------------------------------------------------

// Bit of a step's words for bit `bit` of its codes as canonical memory has them, pairs 0 to 3 after
// each other. Words are 32 bits, halves 16, and a rotation takes bits from one half to the other.
static int place_of(moei_operand_kind kind, int bit)
{
    static const int e2m1[4][4] = {{6, 7, 8, 15}, {3, 4, 5, 12}, {0, 1, 2, 9}, {-2, -6, -5, -3}};
    static const int u4[4] = {4, 0, 12, 8};
    if (kind == MOEI_OPERAND_U8) {
        return bit;
    }
    if (kind == MOEI_OPERAND_E4M3) {
        const int pair = bit / 16;
        const int place = (bit % 8 == 7 ? 15 : 4 + bit % 8) - 4 * pair;
        const uint32_t firsts[4] = {0xFFFF, 0, 0x0007, 0x7808}; // bits that the first word has
        const int word = (firsts[pair] >> (place & 15) & 1) != 0 ? 0 : 1;
        return word * 32 + ((place + bit / 8 % 2 * 16) & 31);
    }
    const int pair = bit / 8;
    const int place = kind == MOEI_OPERAND_U4 ? u4[pair] + bit % 4 : e2m1[pair][bit % 4];
    return (place + bit / 4 % 2 * 16) & 31;
}

// A step's words are its codes with their bits in another order: what each byte becomes, and back.
typedef struct codec {
    moei_operand_kind kind;
    int pair_bytes;
    uint64_t flip; // of words: signed codes as offset binary
    uint64_t word[8][256];
    uint64_t code[8][256];
} codec;

static void codec_of(const moei_format_info *format, codec *c)
{
    memset(c, 0, sizeof *c);
    c->kind = (moei_operand_kind)moei_operand_kind_of(format);
    c->pair_bytes = pair_bytes(c->kind);
    c->flip = format->elem == MOE_I8 ? 0x8080808080808080u : 0;
    for (int bit = 0; bit < 32 * c->pair_bytes; bit++) {
        const int place = place_of(c->kind, bit);
        for (int byte = 0; byte < 256; byte++) {
            c->word[bit / 8][byte] |= (uint64_t)(byte >> bit % 8 & 1) << place;
            c->code[place / 8][byte] |= (uint64_t)(byte >> place % 8 & 1) << bit;
        }
    }
}

// ---- a block -----------------------------------------------------------------------------------

// Byte j of a step's codes, in the rows of outputs g and g + 8.
#define CODE_BYTE(j)                                                                               \
    ((j) / bytes % 2 == 0 ? low : high)[at + (j) % bytes + (j) / (2 * bytes) * 4 * bytes]

// The steps of the four threads of outputs g and g + 8; `bytes` of a pair, a constant where this is
// inlined.
static inline void pack_steps(const codec *c, int bytes, const uint8_t *low, const uint8_t *high,
                              uint8_t *to)
{
    for (int i = 0; i < 4 * STEPS; i++) { // thread, step
        const int at = (i % STEPS * 8 + i / STEPS) * bytes;
        uint64_t words = c->flip;
        for (int j = 0; j < 4 * bytes; j++) {
            words ^= c->word[j][CODE_BYTE(j)];
        }
        memcpy(to + i * 4 * bytes, &words, (size_t)(4 * bytes));
    }
}

static inline void unpack_steps(const codec *c, int bytes, const uint8_t *from, uint8_t *low,
                                uint8_t *high)
{
    for (int i = 0; i < 4 * STEPS; i++) {
        const int at = (i % STEPS * 8 + i / STEPS) * bytes;
        uint64_t words = 0;
        uint64_t codes = 0;
        memcpy(&words, from + i * 4 * bytes, (size_t)(4 * bytes));
        words ^= c->flip;
        for (int j = 0; j < 4 * bytes; j++) {
            codes |= c->code[j][words >> 8 * j & 0xFF];
        }
        for (int j = 0; j < 4 * bytes; j++) {
            CODE_BYTE(j) = (uint8_t)(codes >> 8 * j);
        }
    }
}

// First row of the i-th pair of rows g and g + 8 of a block.
static int low_row(int i)
{
    return i / 8 * 16 + i % 8;
}

static void pack_codes(const codec *c, uint8_t *const row[MOEI_OPERAND_TILE], uint8_t *to)
{
    for (int i = 0; i < MOEI_OPERAND_TILE / 2; i++) {
        const uint8_t *low = row[low_row(i)];
        const uint8_t *high = row[low_row(i) + 8];
        if (c->pair_bytes == 1) {
            pack_steps(c, 1, low, high, to + i * 64);
        } else {
            pack_steps(c, 2, low, high, to + i * 128);
        }
    }
}

static void unpack_codes(const codec *c, const uint8_t *from, uint8_t *const row[MOEI_OPERAND_TILE])
{
    for (int i = 0; i < MOEI_OPERAND_TILE / 2; i++) {
        uint8_t *low = row[low_row(i)];
        uint8_t *high = row[low_row(i) + 8];
        if (c->pair_bytes == 1) {
            unpack_steps(c, 1, from + i * 64, low, high);
        } else {
            unpack_steps(c, 2, from + i * 128, low, high);
        }
    }
}

// Outputs of a block: where their scales begin, too.
typedef struct outputs {
    int64_t n[MOEI_OPERAND_TILE]; // -1: padding
    int64_t scale[MOEI_OPERAND_TILE];
} outputs;

static void outputs_of(const moei_matrices *m, int64_t block, outputs *o)
{
    for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
        o->n[r] = moei_operand_output(m, block * MOEI_OPERAND_TILE + r);
        o->scale[r] = o->n[r] >= 0 ? moei_w_scale_at(m, 0, o->n[r], 0) : 0;
    }
}

// Bytes of the first codes of a row. What shares a byte with the last one comes along: x is 0
// there.
static int64_t row_bytes(const codec *c, int64_t codes)
{
    return c->pair_bytes == 2 ? codes : (codes + 1) / 2;
}

// Rows of a block: in the matrix, or, where the end of k cuts them or they are padding, apart.
typedef struct rows {
    uint8_t *at[MOEI_OPERAND_TILE];
    uint8_t *cut[MOEI_OPERAND_TILE]; // what the matrix has of a row that is apart; NULL: none
    size_t cut_bytes;
    uint8_t apart[MOEI_OPERAND_TILE][MOEI_OPERAND_TILE];
} rows;

static void rows_at(const codec *c, const moei_matrices *m, const outputs *o, int64_t k0, rows *out)
{
    const int64_t left = m->k - k0;
    out->cut_bytes = (size_t)row_bytes(c, left);
    for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
        uint8_t *row = NULL;
        if (o->n[r] >= 0) {
            row = (uint8_t *)(uintptr_t)m->values + o->n[r] * m->value_n_stride + row_bytes(c, k0);
        }
        const bool whole = row != NULL && left >= MOEI_OPERAND_TILE;
        out->at[r] = whole ? row : out->apart[r];
        out->cut[r] = whole ? NULL : row;
    }
}

// Scales of a block, in both directions.
static uint8_t *block_scale(const codec *c, uint8_t *block, int r, int i)
{
    const int each = MOEI_OPERAND_SCALES(c->kind) / MOEI_OPERAND_TILE;
    const int place = (r / 16 * 8 + r % 8) * 2 + r / 8 % 2;
    return block + MOEI_OPERAND_CODES(c->kind) + place * each + i;
}

static void pack_scales(const codec *c, const moei_matrices *m, const outputs *o, int64_t k0,
                        uint8_t *block)
{
    const uint8_t *scales = m->scales;
    const int each = MOEI_OPERAND_SCALES(c->kind) / MOEI_OPERAND_TILE;
    for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
        const int64_t first = o->scale[r] + k0 / m->block_k * m->scale_k_stride;
        for (int i = 0; i < each; i++) {
            const bool there = o->n[r] >= 0 && k0 + (int64_t)i * m->block_k < m->k;
            *block_scale(c, block, r, i) = there ? scales[first + i * m->scale_k_stride]
                                           : c->kind == MOEI_OPERAND_MXFP4 ? SCALE_LOW
                                                                           : 0;
        }
    }
}

static void unpack_scales(const codec *c, const moei_matrices *m, const outputs *o, int64_t k0,
                          const uint8_t *block)
{
    uint8_t *scales = (uint8_t *)(uintptr_t)m->scales;
    const int each = MOEI_OPERAND_SCALES(c->kind) / MOEI_OPERAND_TILE;
    for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
        const int64_t first = o->scale[r] + k0 / m->block_k * m->scale_k_stride;
        for (int i = 0; i < each && o->n[r] >= 0 && k0 + (int64_t)i * m->block_k < m->k; i++) {
            scales[first + i * m->scale_k_stride] =
                *block_scale(c, (uint8_t *)(uintptr_t)block, r, i);
        }
    }
}

// ---- an expert ---------------------------------------------------------------------------------

static int64_t output_of(const moei_matrices *m, int64_t r)
{
    return moei_operand_output(m, r);
}

static moe_status refuse_scale(bool nvfp4, int64_t n, int64_t group, uint8_t scale)
{
    if (nvfp4) {
        return moei_cuda_host->fail(MOE_E_VALUE, "cuda: scale [%lld, %lld] is NaN", (long long)n,
                                    (long long)group);
    }
    return moei_cuda_host->fail(
        MOE_E_VALUE,
        "cuda: scale [%lld, %lld] has code %d, the matrix kernels take %d..%d; a plan at level "
        "KERNEL takes any",
        (long long)n, (long long)group, (int)scale, SCALE_LOW, SCALE_HIGH);
}

// Scales in blocks: all can be kept. Clears MOEI_OPERAND_PLAIN where one is beyond it.
static moe_status check_scales(const moei_matrices *m, uint32_t *flags)
{
    const bool nvfp4 = kind_of(m) == MOEI_OPERAND_NVFP4;
    const uint8_t *scales = m->scales;
    for (int64_t n = 0; n < m->n; n++) {
        const int64_t first = moei_w_scale_at(m, 0, n, 0);
        for (int64_t g = 0; g < moei_operand_groups(m); g++) {
            const uint8_t scale = scales[first + g * m->scale_k_stride];
            if (nvfp4 ? (scale & 0x7F) == 0x7F : scale < SCALE_LOW || scale > SCALE_HIGH) {
                return refuse_scale(nvfp4, n, g, scale);
            }
            if (!nvfp4 && scale > SCALE_PLAIN) {
                *flags &= ~MOEI_OPERAND_PLAIN;
            }
        }
    }
    return MOE_OK;
}

static bool has_nan(const moei_matrices *m)
{
    for (int64_t n = 0; n < m->n; n++) {
        const uint8_t *row = m->values + n * m->value_n_stride;
        uint8_t found = 0;
        for (int64_t k = 0; k < m->k; k++) {
            found |= (uint8_t)((row[k] & 0x7F) == 0x7F);
        }
        if (found != 0) {
            return true;
        }
    }
    return false;
}

moe_status moei_operand_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to)
{
    uint32_t flags[FLAG_BYTES / sizeof(uint32_t)] = {MOEI_OPERAND_PLAIN};
    outputs o;
    rows row;
    codec c;
    (void)kernel;
    codec_of(from->format, &c);
    const bool apart = MOEI_OPERAND_APART(c.kind);
    if (!apart) {
        const moe_status status = check_scales(from, flags);
        if (status != MOE_OK) {
            return status;
        }
    }
    if (c.kind == MOEI_OPERAND_E4M3 && has_nan(from)) {
        flags[0] &= ~MOEI_OPERAND_PLAIN;
    }
    uint8_t *block = to;
    for (int64_t bn = 0; bn < moei_operand_blocks_n(from); bn++) {
        outputs_of(from, bn, &o);
        for (int64_t k0 = 0; k0 < from->k; k0 += MOEI_OPERAND_TILE) {
            rows_at(&c, from, &o, k0, &row);
            for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
                if (row.at[r] == row.apart[r]) {
                    memset(row.at[r], 0, sizeof row.apart[r]);
                }
                if (row.cut[r] != NULL) {
                    memcpy(row.at[r], row.cut[r], row.cut_bytes);
                }
            }
            pack_codes(&c, row.at, block);
            if (!apart) {
                pack_scales(&c, from, &o, k0, block);
            }
            block += MOEI_OPERAND_BYTES(c.kind);
        }
    }
    if (apart) {
        uint8_t *zeros = from->zeros != NULL ? to + moei_operand_zeros_at(c.kind, from) : NULL;
        moei_gpu_pack_apart(from, output_of, moei_operand_pitch(from), moei_operand_groups(from),
                            to + moei_operand_scales_at(c.kind, from), zeros);
    }
    memcpy(to + moei_operand_flags_at(c.kind, from), flags, sizeof flags);
    return MOE_OK;
}

void moei_operand_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    outputs o;
    rows row;
    codec c;
    (void)kernel;
    codec_of(to->format, &c);
    const bool apart = MOEI_OPERAND_APART(c.kind);
    const uint8_t *block = from;
    for (int64_t bn = 0; bn < moei_operand_blocks_n(to); bn++) {
        outputs_of(to, bn, &o);
        for (int64_t k0 = 0; k0 < to->k; k0 += MOEI_OPERAND_TILE) {
            rows_at(&c, to, &o, k0, &row);
            unpack_codes(&c, block, row.at);
            for (int r = 0; r < MOEI_OPERAND_TILE; r++) {
                if (row.cut[r] != NULL) {
                    memcpy(row.cut[r], row.at[r], row.cut_bytes);
                }
            }
            if (!apart) {
                unpack_scales(&c, to, &o, k0, block);
            }
            block += MOEI_OPERAND_BYTES(c.kind);
        }
    }
    if (apart) {
        const uint8_t *zeros = to->zeros != NULL ? from + moei_operand_zeros_at(c.kind, to) : NULL;
        moei_gpu_unpack_apart(from + moei_operand_scales_at(c.kind, to), zeros, output_of,
                              moei_operand_pitch(to), moei_operand_groups(to), to);
    }
}
