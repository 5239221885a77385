// SPDX-License-Identifier: Apache-2.0
// Packed weights of the CUDA matrix kernels (cuda/operand.h), read as the kernels read them: the
// decoders of cuda/decode.cuh give the canonical values whatever the format, padding is harmless,
// every byte comes back, what cannot be kept is refused. It needs no GPU.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cuda/decode.cuh"
#include "backends/cuda/device.h"
#include "backends/cuda/operand.h"
#include "backends/plugins.h"
#include "ops/ggemm_at.h"
#include "quant/elements.h"
#include "quant/formats.h"
#include "unit/test.h"

const moei_host *moei_cuda_host; // of the plugin, elsewhere

static uint64_t state = 1;

static uint32_t draw(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

// ---- matrices ----------------------------------------------------------------------------------

typedef struct form {
    moe_format format;
    moe_dtype scale_dtype;
    int32_t block_k; // 0: the format's
    bool zeros;
    moei_zero_form zero_form;
} form;

static const form forms[] = {
    {MOE_FORMAT_MXFP4, MOE_E8M0, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_NVFP4, MOE_E4M3FN, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT4_GROUP, MOE_F32, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT4_GROUP, MOE_BF16, 32, true, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT4_GROUP, MOE_F16, 64, true, MOEI_ZERO_PAIRS},
    {MOE_FORMAT_INT4_GROUP, MOE_F16, 96, true, MOEI_ZERO_NIBBLES},
    {MOE_FORMAT_UINT8_GROUP, MOE_F32, 32, true, MOEI_ZERO_BYTES},
    {MOE_FORMAT_UINT8_GROUP, MOE_BF16, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT8_TENSOR, MOE_F32, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT8_CHANNEL, MOE_BF16, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT8_BLOCK, MOE_F16, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_INT8_GROUP, MOE_F32, 64, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_E4M3FN_TENSOR, MOE_BF16, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_E4M3FN_CHANNEL, MOE_F32, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_E4M3FN_BLOCK, MOE_E8M0, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_E4M3FN_BLOCK, MOE_F32, 0, false, MOEI_ZERO_BYTES},
    {MOE_FORMAT_MXFP8_E4M3, MOE_E8M0, 0, false, MOEI_ZERO_BYTES},
};
#define NUM_FORMS (sizeof forms / sizeof forms[0])

typedef struct matrix {
    moei_matrices m;
    moei_operand_kind kind;
    bool parts;
    size_t value_bytes, scale_bytes, zero_bytes;
    uint8_t *values, *scales, *zeros; // canonical and compact, one block of memory
    uint8_t *packed;
    size_t bytes;
    char what[96];
} matrix;

enum { WHOLE, HALVES, INTERLEAVED, NUM_PARTS };

// A finite scale of any magnitude that the kernels take; both signs where there are.
static void draw_scale(moe_dtype dtype, uint8_t *to)
{
    const float value =
        ldexpf(draw(2) != 0 ? 1.0f : -1.0f, (int)draw(30) - 24) * (1.0f + (float)draw(128) / 128);
    const uint32_t bits = moei_f32_bits(value) | draw(1u << 16);
    const uint16_t half = dtype == MOE_BF16
                              ? (uint16_t)(bits >> 16)
                              : (uint16_t)(draw(2) << 15 | draw(31) << 10 | draw(1u << 10));
    switch (dtype) {
    case MOE_F32:
        memcpy(to, &bits, sizeof bits);
        break;
    case MOE_E8M0:
        to[0] = (uint8_t)(2 + draw(251));
        break;
    case MOE_E4M3FN:
        to[0] = (uint8_t)(draw(2) << 7 | draw(127));
        break;
    default:
        memcpy(to, &half, sizeof half);
        break;
    }
}

static void fill(matrix *x)
{
    const size_t each = (size_t)moe_dtype_bits(x->m.scale_dtype) / 8;
    for (size_t i = 0; i < x->value_bytes; i++) {
        x->values[i] = (uint8_t)draw(256);
    }
    for (size_t i = 0; i < x->scale_bytes; i += each) {
        draw_scale(x->m.scale_dtype, x->scales + i);
    }
    for (size_t i = 0; i < x->zero_bytes; i++) {
        x->zeros[i] = (uint8_t)draw(256);
    }
}

// False where there is no memory.
static bool make(const form *f, int64_t n, int64_t k, int parts, matrix *x)
{
    const moei_format_info *info = moei_format(f->format);
    memset(x, 0, sizeof *x);
    x->kind = (moei_operand_kind)moei_operand_kind_of(info);
    x->parts = parts != WHOLE;
    moei_matrices *m = &x->m;
    m->format = info;
    m->n = n;
    m->k = k;
    m->count = 1;
    m->interleaved_parts = parts == INTERLEAVED;
    m->part_rows = parts == HALVES ? n / 2 : n;
    m->value_n_stride = moei_elem_bytes(info->elem, k);
    m->scale_dtype = f->scale_dtype;
    m->block_n = info->block_n;
    m->block_k = f->block_k != 0 ? f->block_k : info->block_k;
    m->scale_parts = x->parts ? 2 : 1;
    const int64_t groups = m->block_k > 0 ? (k + m->block_k - 1) / m->block_k : 1;
    const int64_t rows = m->block_n == 0
                             ? m->scale_parts
                             : n / m->part_rows * ((m->part_rows + m->block_n - 1) / m->block_n);
    m->scale_n_stride = groups;
    m->scale_k_stride = 1;
    m->scale_e_stride = rows * groups;
    if (f->zeros) {
        m->zero_form = f->zero_form;
        m->zero_n_stride = f->zero_form == MOEI_ZERO_NIBBLES ? (groups + 1) / 2 : groups;
        m->zero_e_stride = (f->zero_form == MOEI_ZERO_PAIRS ? (n + 1) / 2 : n) * m->zero_n_stride;
    }
    x->value_bytes = (size_t)(n * m->value_n_stride);
    x->scale_bytes = (size_t)(m->scale_e_stride * moe_dtype_bits(f->scale_dtype) / 8);
    x->zero_bytes = (size_t)m->zero_e_stride;
    x->bytes = moei_operand_bytes(NULL, m);
    x->values = calloc(1, x->value_bytes + x->scale_bytes + x->zero_bytes);
    x->packed = malloc(x->bytes);
    if (x->values == NULL || x->packed == NULL) {
        return false;
    }
    x->scales = x->values + x->value_bytes;
    x->zeros = x->scales + x->scale_bytes;
    m->values = x->values;
    m->scales = x->scales;
    m->zeros = f->zeros ? x->zeros : NULL;
    (void)snprintf(x->what, sizeof x->what, "%s, scales %s per %d, zero points %d, [%lld, %lld]%s",
                   info->name, moe_dtype_name(f->scale_dtype), (int)m->block_k,
                   f->zeros ? (int)f->zero_form : -1, (long long)n, (long long)k,
                   parts == INTERLEAVED ? " interleaved"
                   : parts == HALVES    ? " halves"
                                        : "");
    return true;
}

static void drop(matrix *x)
{
    free(x->values);
    free(x->packed);
}

// Output of packed output r, as the header says it.
static int64_t output_of(const matrix *x, int64_t r)
{
    const int64_t half = x->m.n / 2;
    const int64_t i = r / 16 * 8 + r % 8;
    const int64_t up = r / 8 % 2;
    return !x->parts                ? (r < x->m.n ? r : -1)
           : i >= half              ? -1
           : x->m.interleaved_parts ? 2 * i + up
                                    : up * half + i;
}

// ---- what a kernel reads -----------------------------------------------------------------------

// Operands of a thread's step, by the decoder for plain codes or the one for any.
static void decode_step(moei_operand_kind kind, bool plain, const uint8_t *block, int thread,
                        int step, uint32_t zeros, uint32_t a[4])
{
    const int words_each = kind >= MOEI_OPERAND_U8 ? 2 : 1;
    uint32_t words[2] = {0, 0};
    uint32_t bytes[2];
    uint32_t scales[4];
    const uint8_t *of_scales =
        block + MOEI_OPERAND_CODES(kind) + thread / 4 * (MOEI_OPERAND_SCALES(kind) / 32);
    memcpy(words, block + (thread * 4 + step) * words_each * 4, (size_t)words_each * 4);
    switch (kind) {
    case MOEI_OPERAND_MXFP4:
        memcpy(bytes, of_scales, 4);
        if (plain) {
            decode_mxfp4_factors(bytes[0], scales);
            decode_e2m1(words[0], scales[step / 2], a);
        } else {
            decode_mxfp4_scales(bytes[0], scales);
            decode_e2m1_twice(words[0], scales[step / 2], a);
        }
        break;
    case MOEI_OPERAND_NVFP4:
        memcpy(bytes, of_scales, 8);
        decode_nvfp4_factors(bytes[0], bytes[1], scales);
        decode_e2m1(words[0], scales[step], a);
        break;
    case MOEI_OPERAND_U4:
        decode_u4(words[0], zeros, a);
        break;
    case MOEI_OPERAND_U8:
        decode_u8(words[0], words[1], zeros, a);
        break;
    default:
        if (plain) {
            decode_e4m3(words[0], words[1], a);
        } else {
            decode_e4m3_nan(words[0], words[1], a);
        }
        break;
    }
}

static double value_of(moei_operand_kind kind, uint32_t pair, int half)
{
    return (double)moei_bf16_to_f32((uint16_t)(pair >> 16 * half)) * (double)MOEI_OPERAND_UP(kind);
}

static bool same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

static uint8_t zero_of(const matrix *x, int64_t r, int64_t group)
{
    return x->m.zeros != NULL ? x->packed[moei_operand_zeros_at(x->kind, &x->m) +
                                          group * moei_operand_pitch(&x->m) + r]
                              : (uint8_t)moei_operand_zero_point(x->m.format);
}

// What weight [n, k] decodes to: without its scale where scales lie apart.
static double weight_of(const matrix *x, int64_t n, int64_t k)
{
    const moei_matrices *m = &x->m;
    const double code =
        (double)moei_load_one(m->format->elem, m->values + n * m->value_n_stride, k);
    if (MOEI_OPERAND_APART(x->kind)) {
        const int zero = m->zeros != NULL             ? moei_zero_point(m, 0, n, k / m->block_k)
                         : m->format->zero_point >= 0 ? m->format->zero_point
                                                      : 0;
        return x->kind == MOEI_OPERAND_E4M3 ? code : code - zero;
    }
    return code * (double)moei_load_one(m->scale_dtype, m->scales, moei_w_scale_at(m, 0, n, k));
}

// Flags as the matrix must have them.
static uint32_t flags_of(const matrix *x)
{
    bool plain = true;
    for (size_t i = 0; x->kind == MOEI_OPERAND_MXFP4 && i < x->scale_bytes; i++) {
        plain = plain && x->scales[i] <= 128;
    }
    for (size_t i = 0; x->kind == MOEI_OPERAND_E4M3 && i < x->value_bytes; i++) {
        plain = plain && (x->values[i] & 0x7F) != 0x7F;
    }
    return plain ? MOEI_OPERAND_PLAIN : 0;
}

// Where the packed form does not say what the matrix does; "" where it does.
static void find_wrong(const matrix *x, bool plain, char *text, size_t capacity)
{
    const moei_matrices *m = &x->m;
    const int64_t blocks_k = (m->k + 63) / 64;
    const int64_t pitch = ((x->parts ? (m->n / 2 + 7) / 8 * 16 : m->n) + 63) / 64 * 64;
    const int64_t groups = m->block_k > 0 ? (m->k + m->block_k - 1) / m->block_k : 1;
    text[0] = 0;
    for (int64_t i = 0; i < pitch / 64 * blocks_k * 128 * 4; i++) { // block, thread, step
        const int64_t b = i / (128 * 4);
        const int thread = (int)(i / 4 % 128);
        const int step = (int)(i % 4);
        const int64_t k0 = b % blocks_k * 64 + 16 * step;
        const int64_t group = m->block_k > 0 && k0 < m->k ? k0 / m->block_k : 0;
        const int64_t r0 = b / blocks_k * 64 + 16 * (thread / 32) + thread % 32 / 4;
        const uint32_t zeros = decode_zeros(zero_of(x, r0, group), zero_of(x, r0 + 8, group));
        uint32_t a[4];
        decode_step(x->kind, plain, x->packed + b * MOEI_OPERAND_BYTES(x->kind), thread, step,
                    zeros, a);
        for (int p = 0; p < 4; p++) {
            for (int h = 0; h < 2; h++) {
                const int64_t n = output_of(x, r0 + 8 * (p % 2));
                const int64_t k = k0 + thread % 4 * 2 + p / 2 * 8 + h;
                const double have = value_of(x->kind, a[p], h);
                const bool there = n >= 0 && k < m->k;
                if (there ? !same(have, weight_of(x, n, k)) : !isfinite(have)) {
                    (void)snprintf(text, capacity, "output %lld, k %lld: %g, expected %g",
                                   (long long)n, (long long)k, have,
                                   there ? weight_of(x, n, k) : 0.0);
                    return;
                }
            }
        }
    }
    const uint8_t *scales = x->packed + moei_operand_scales_at(x->kind, m);
    for (int64_t r = 0; MOEI_OPERAND_APART(x->kind) && r < pitch; r++) {
        const int64_t n = output_of(x, r);
        for (int64_t g = 0; g < groups; g++) {
            float have;
            memcpy(&have, scales + 4 * (g * pitch + r), sizeof have);
            const float want =
                n >= 0
                    ? moei_load_one(m->scale_dtype, m->scales,
                                    moei_w_scale_at(m, 0, n, m->block_k > 0 ? g * m->block_k : 0))
                    : 0.0f;
            if (moei_f32_bits(have) != moei_f32_bits(want)) {
                (void)snprintf(text, capacity, "scale of output %lld, group %lld: %g, expected %g",
                               (long long)n, (long long)g, (double)have, (double)want);
                return;
            }
        }
    }
    uint32_t flags;
    memcpy(&flags, x->packed + moei_operand_flags_at(x->kind, m), sizeof flags);
    if (flags != flags_of(x)) {
        (void)snprintf(text, capacity, "flags %u, expected %u", flags, flags_of(x));
    }
}

static void check_values(const matrix *x)
{
    char text[128];
    find_wrong(x, false, text, sizeof text);
    CHECK(text[0] == 0, "%s: %s", x->what, text);
    if ((flags_of(x) & MOEI_OPERAND_PLAIN) != 0) {
        find_wrong(x, true, text, sizeof text);
        CHECK(text[0] == 0, "%s, plain: %s", x->what, text);
    }
}

static void check_back(const matrix *x)
{
    const size_t bytes = x->value_bytes + x->scale_bytes + x->zero_bytes;
    uint8_t *back = calloc(1, bytes);
    if (CHECK(back != NULL, "no memory")) {
        moei_matrices to = x->m;
        to.values = back;
        to.scales = back + x->value_bytes;
        to.zeros = x->m.zeros != NULL ? back + x->value_bytes + x->scale_bytes : NULL;
        moei_operand_unpack(NULL, x->packed, &to);
        // Zero points of a nibble that has none are nobody's.
        const bool spare = (x->m.zero_form == MOEI_ZERO_PAIRS && x->m.n % 2 != 0) ||
                           (x->m.zero_form == MOEI_ZERO_NIBBLES &&
                            (x->m.k + x->m.block_k - 1) / x->m.block_k % 2 != 0);
        CHECK(memcmp(back, x->values, bytes - (spare ? x->zero_bytes : 0)) == 0,
              "%s: comes back changed", x->what);
        for (int64_t n = 0; spare && n < x->m.n; n++) {
            for (int64_t g = 0; g * x->m.block_k < x->m.k; g++) {
                CHECK(moei_zero_point(&to, 0, n, g) == moei_zero_point(&x->m, 0, n, g),
                      "%s: zero point [%lld, %lld] comes back changed", x->what, (long long)n,
                      (long long)g);
            }
        }
    }
    free(back);
}

static void test_matrix(const form *f, int64_t n, int64_t k, int parts)
{
    matrix x;
    if (CHECK(make(f, n, k, parts, &x), "no memory")) {
        CHECK(x.bytes % 16 == 0, "%s: %zu bytes", x.what, x.bytes);
        fill(&x);
        for (int pass = 0; pass < 2; pass++) {
            CHECK(moei_operand_pack(NULL, &x.m, x.packed) == MOE_OK, "%s: %s", x.what,
                  moe_last_error());
            check_values(&x);
            check_back(&x);
            // The second pass: only what the decoders of plain codes take.
            for (size_t i = 0; x.kind == MOEI_OPERAND_MXFP4 && i < x.scale_bytes; i++) {
                x.scales[i] = (uint8_t)(2 + draw(127));
            }
            for (size_t i = 0; x.kind == MOEI_OPERAND_E4M3 && i < x.value_bytes; i++) {
                x.values[i] = (uint8_t)(draw(2) << 7 | draw(127));
            }
        }
    }
    drop(&x);
}

// ---- the test's own sharpness ------------------------------------------------------------------

// Every bit of a step's words changes exactly one of its weights, so every code has its own place.
static void test_bits(const form *f)
{
    matrix x;
    if (CHECK(make(f, 64, 64, WHOLE, &x), "no memory")) {
        const int bytes = MOEI_OPERAND_CODES(x.kind) / (128 * 4);
        fill(&x);
        if (!MOEI_OPERAND_APART(x.kind)) {
            memset(x.scales, 0x38, x.scale_bytes); // not 0, which makes all codes equal
        }
        CHECK(moei_operand_pack(NULL, &x.m, x.packed) == MOE_OK, "%s", moe_last_error());
        for (int i = 0; i < 128 * 4; i++) {
            uint32_t before[4];
            uint32_t after[4];
            const uint32_t zeros = decode_zeros(1, 2);
            decode_step(x.kind, false, x.packed, i / 4, i % 4, zeros, before);
            for (int bit = 0; bit < 8 * bytes; bit++) {
                int changed = 0;
                x.packed[i * bytes + bit / 8] ^= (uint8_t)(1 << bit % 8);
                decode_step(x.kind, false, x.packed, i / 4, i % 4, zeros, after);
                x.packed[i * bytes + bit / 8] ^= (uint8_t)(1 << bit % 8);
                for (int c = 0; c < 8; c++) {
                    changed += (before[c / 2] ^ after[c / 2]) >> 16 * (c % 2) << 16 != 0;
                }
                CHECK(changed == 1, "%s: bit %d of step %d changes %d weights", x.what, bit, i,
                      changed);
            }
        }
    }
    drop(&x);
}

// Mistakes that a layout could have, each of which the checks above must see.
static void test_mistakes(const form *f)
{
    matrix x;
    char text[128];
    if (CHECK(make(f, 80, 200, WHOLE, &x), "no memory")) {
        fill(&x);
        CHECK(moei_operand_pack(NULL, &x.m, x.packed) == MOE_OK, "%s", moe_last_error());
        find_wrong(&x, false, text, sizeof text);
        CHECK(text[0] == 0, "%s: %s", x.what, text);
        const int64_t at[] = {
            0,                                        // a code
            MOEI_OPERAND_CODES(x.kind),               // a scale in a block, or a code of the next
            moei_operand_scales_at(x.kind, &x.m) + 3, // a scale, or the flags
            moei_operand_zeros_at(x.kind, &x.m),      // a zero point, or the flags
            moei_operand_flags_at(x.kind, &x.m)};
        for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
            x.packed[at[i]] ^= 1;
            find_wrong(&x, false, text, sizeof text);
            CHECK(text[0] != 0, "%s: a wrong byte %lld is not seen", x.what, (long long)at[i]);
            x.packed[at[i]] ^= 1;
        }
        // Blocks in another order.
        uint8_t *other = malloc((size_t)MOEI_OPERAND_BYTES(x.kind));
        if (CHECK(other != NULL, "no memory")) {
            uint8_t *second = x.packed + MOEI_OPERAND_BYTES(x.kind);
            memcpy(other, x.packed, (size_t)MOEI_OPERAND_BYTES(x.kind));
            memcpy(x.packed, second, (size_t)MOEI_OPERAND_BYTES(x.kind));
            memcpy(second, other, (size_t)MOEI_OPERAND_BYTES(x.kind));
            find_wrong(&x, false, text, sizeof text);
            CHECK(text[0] != 0, "%s: exchanged blocks are not seen", x.what);
        }
        free(other);
    }
    drop(&x);
}

// ---- refusals ----------------------------------------------------------------------------------

static void test_refused_scales(void)
{
    static const uint8_t beyond[] = {0, 1, 253, 254, 255};
    matrix x;
    if (CHECK(make(&forms[0], 33, 130, WHOLE, &x), "no memory")) {
        fill(&x);
        for (size_t i = 0; i < sizeof beyond; i++) {
            x.scales[x.scale_bytes - 1] = beyond[i];
            CHECK(moei_operand_pack(NULL, &x.m, x.packed) == MOE_E_VALUE &&
                      strstr(moe_last_error(), "[32, 4]") != NULL &&
                      strstr(moe_last_error(), "2..252") != NULL,
                  "scale %d: %s", beyond[i], moe_last_error());
        }
    }
    drop(&x);
    if (CHECK(make(&forms[1], 33, 130, WHOLE, &x), "no memory")) {
        for (int sign = 0; sign < 2; sign++) {
            fill(&x);
            x.scales[x.scale_bytes - 2] = (uint8_t)(sign << 7 | 0x7F);
            CHECK(moei_operand_pack(NULL, &x.m, x.packed) == MOE_E_VALUE &&
                      strstr(moe_last_error(), "scale [32, 7] is NaN") != NULL,
                  "%s", moe_last_error());
        }
    }
    drop(&x);
}

// The last scale that the decoder of plain codes takes, and the first that it does not.
static void test_plain_scales(void)
{
    matrix x;
    if (CHECK(make(&forms[0], 33, 130, WHOLE, &x), "no memory")) {
        fill(&x);
        for (int scale = 128; scale <= 129; scale++) {
            memset(x.scales, 128, x.scale_bytes);
            x.scales[x.scale_bytes - 1] = (uint8_t)scale;
            CHECK(moei_operand_pack(NULL, &x.m, x.packed) == MOE_OK, "%s", moe_last_error());
            CHECK(flags_of(&x) == (scale == 128 ? MOEI_OPERAND_PLAIN : 0), "scale %d", scale);
            check_values(&x);
        }
    }
    drop(&x);
}

static void test_kinds(void)
{
    static const struct {
        moe_format format;
        int kind;
    } kinds[] = {{MOE_FORMAT_MXFP4, MOEI_OPERAND_MXFP4},
                 {MOE_FORMAT_NVFP4, MOEI_OPERAND_NVFP4},
                 {MOE_FORMAT_INT4_GROUP, MOEI_OPERAND_U4},
                 {MOE_FORMAT_UINT8_GROUP, MOEI_OPERAND_U8},
                 {MOE_FORMAT_INT8_TENSOR, MOEI_OPERAND_U8},
                 {MOE_FORMAT_INT8_CHANNEL, MOEI_OPERAND_U8},
                 {MOE_FORMAT_INT8_BLOCK, MOEI_OPERAND_U8},
                 {MOE_FORMAT_INT8_GROUP, MOEI_OPERAND_U8},
                 {MOE_FORMAT_E4M3FN_TENSOR, MOEI_OPERAND_E4M3},
                 {MOE_FORMAT_E4M3FN_CHANNEL, MOEI_OPERAND_E4M3},
                 {MOE_FORMAT_E4M3FN_BLOCK, MOEI_OPERAND_E4M3},
                 {MOE_FORMAT_MXFP8_E4M3, MOEI_OPERAND_E4M3}};
    for (int format = 0; moei_format((moe_format)format) != NULL || format == 0; format++) {
        const moei_format_info *info = moei_format((moe_format)format);
        int want = -1;
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            want = kinds[i].format == (moe_format)format ? kinds[i].kind : want;
        }
        if (info != NULL) {
            CHECK(moei_operand_kind_of(info) == want, "%s: kind %d, expected %d", info->name,
                  moei_operand_kind_of(info), want);
            CHECK(moei_operand_takes(info, info->block_k) == (want >= 0), "%s", info->name);
        }
    }
    const moei_format_info *int4 = moei_format(MOE_FORMAT_INT4_GROUP);
    CHECK(moei_operand_takes(int4, 32) && moei_operand_takes(int4, 96) &&
              !moei_operand_takes(int4, 16) && !moei_operand_takes(int4, 48),
          "groups of int4");
    CHECK(moei_operand_zero_point(int4) == 8 &&
              moei_operand_zero_point(moei_format(MOE_FORMAT_UINT8_GROUP)) == 128 &&
              moei_operand_zero_point(moei_format(MOE_FORMAT_INT8_TENSOR)) == 128,
          "zero points");
}

// Every code and zero point, and every scale of NVFP4: exact.
static void test_decoders(void)
{
    uint32_t a[4];
    for (uint32_t scale = 0; scale < 256; scale++) {
        uint32_t factors[4];
        const uint32_t other = scale ^ 0x80;
        const double want = (double)moei_e4m3fn_to_f32((uint8_t)scale);
        for (int j = 0; (scale & 0x7F) != 0x7F && j < 4; j++) {
            decode_nvfp4_factors(scale << 8 * j, other << 8 * j, factors);
            CHECK(same(ldexp((double)decode_half(factors[j], 0), -118), want) &&
                      same(ldexp((double)decode_half(factors[j], 1), -118), -want),
                  "scale %u of step %d", scale, j);
        }
    }
    for (uint32_t i = 0; i < 256 * 256; i++) { // x: four codes, all of them at each place
        const uint8_t codes[4] = {(uint8_t)i, (uint8_t)(i / 256), (uint8_t)(i + 85),
                                  (uint8_t)(i / 256 + 170)};
        const uint32_t word = (uint32_t)codes[3] << 24 | (uint32_t)codes[2] << 16 |
                              (uint32_t)codes[1] << 8 | codes[0];
        uint32_t pairs[2];
        decode_codes(word, pairs);
        for (int k = 0; k < 4; k++) {
            const double have = (double)decode_half(pairs[k / 2], k % 2);
            const double want = (double)moei_e4m3fn_to_f32(codes[k]);
            CHECK(isnan(want) ? isnan(have) : same(have, want), "codes %08x, %d", word, k);
        }
    }
    for (uint32_t i = 0; i < 256 * 256; i++) {
        const uint32_t code = i % 256;
        const uint32_t zeros = decode_zeros(i / 256, 255 - i / 256);
        decode_u8(code * 0x01010101u, code * 0x01010101u, zeros, a);
        for (int p = 0; p < 4; p++) {
            const double zero = p % 2 == 0 ? i / 256 : 255 - i / 256;
            CHECK(same(value_of(MOEI_OPERAND_U8, a[p], p / 2), code - zero), "%u - %g", code, zero);
        }
        decode_u4(code % 16 * 0x11111111u, zeros, a);
        for (int p = 0; p < 4; p++) {
            const double zero = p % 2 == 0 ? i / 256 : 255 - i / 256;
            CHECK(same(value_of(MOEI_OPERAND_U4, a[p], p / 2), code % 16 - zero), "%u - %g",
                  code % 16, zero);
        }
    }
}

int main(void)
{
    static const int64_t rows[] = {1, 2, 7, 8, 16, 33, 64, 130};
    static const int64_t columns[] = {1, 2, 15, 31, 33, 64, 65, 130, 257};
    moei_cuda_host = moei_host_table();
    test_kinds();
    test_decoders();
    test_refused_scales();
    test_plain_scales();
    for (size_t f = 0; f < NUM_FORMS; f++) {
        test_bits(&forms[f]);
        test_mistakes(&forms[f]);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            for (size_t j = 0; j < sizeof columns / sizeof columns[0]; j++) {
                test_matrix(&forms[f], rows[i], columns[j], WHOLE);
                test_matrix(&forms[f], 2 * rows[i], columns[j], HALVES);
                test_matrix(&forms[f], 2 * rows[i], columns[j], INTERLEAVED);
            }
        }
    }
    return test_summary();
}
