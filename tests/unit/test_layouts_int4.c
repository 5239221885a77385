// SPDX-License-Identifier: Apache-2.0
// Packings of 4-bit codes and zero points: each result is compared as a whole piece of memory with
// an image that is written nibble by nibble from the packing's definition.
#include <inttypes.h>

#include "numerics/int4.h"
#include "quant/formats.h"
#include "unit/layout_box.h"

typedef struct packing_case {
    moe_int4_packing packing;
    moe_dtype dtype;
    const char *name;
} packing_case;

static const packing_case packings[] = {
    {MOE_INT4_CANONICAL, MOE_U8, "canonical bytes"},
    {MOE_INT4_CANONICAL, MOE_UINT4, "canonical"},
    {MOE_INT4_COMPRESSED_TENSORS, MOE_I32, "compressed-tensors"},
    {MOE_INT4_GPTQ, MOE_I32, "gptq"},
    {MOE_INT4_GPTQ_V2, MOE_U32, "gptq v2"},
    {MOE_INT4_AWQ, MOE_I32, "awq"},
    {MOE_INT4_ROW_PAIRS, MOE_U8, "row pairs"},
};
enum { NUM_PACKINGS = sizeof packings / sizeof packings[0], NUM_CODE_PACKINGS = NUM_PACKINGS - 1 };

// Column of nibble i of an AWQ word.
static const int awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

static bool by_columns(moe_int4_packing p)
{
    return p == MOE_INT4_GPTQ || p == MOE_INT4_GPTQ_V2 || p == MOE_INT4_AWQ;
}

static box make_codes(const packing_case *p, int64_t e, int64_t n, int64_t k, spread sp)
{
    const int64_t canonical[3] = {e, n, p->dtype == MOE_U8 ? (k + 1) / 2 : k};
    const int64_t words[3] = {e, n, (k + 7) / 8};
    const int64_t gptq[3] = {e, k / 8, n};
    const int64_t awq[3] = {e, k, n / 8};
    return make_box(p->dtype, 3,
                    p->packing == MOE_INT4_CANONICAL            ? canonical
                    : p->packing == MOE_INT4_COMPRESSED_TENSORS ? words
                    : p->packing == MOE_INT4_AWQ                ? awq
                                                                : gptq,
                    sp);
}

// Writes codes[e][n][k] as the packing's text says, word by word.
static void pack_codes(const packing_case *p, const box *b, int64_t n, int64_t k,
                       const uint8_t *codes)
{
    const moe_tensor *t = &b->t;
    for (int64_t e = 0; e < t->shape[0]; e++) {
        const uint8_t *c = codes + e * n * k;
        for (int64_t i = 0; i < t->shape[1]; i++) {
            for (int64_t j = 0; j < t->shape[2]; j++) {
                uint32_t word = 0;
                const int nibbles = moe_dtype_bits(p->dtype) / 4;
                for (int x = 0; x < nibbles; x++) {
                    int64_t row = i;
                    int64_t col = nibbles * j + x;
                    if (p->packing == MOE_INT4_AWQ) {
                        row = 8 * j + awq_order[x];
                        col = i;
                    } else if (by_columns(p->packing)) {
                        row = j;
                        col = 8 * i + x;
                    }
                    word |= (uint32_t)(col < k ? c[row * k + col] : 0) << (4 * x);
                }
                put3(t, e, i, j, word);
            }
            if (p->dtype == MOE_UINT4 && k % 2 != 0) {
                put_bits(row_at(t, e, i), 4, k, 0);
            }
        }
    }
}

static void test_int4_values(void)
{
    static const int64_t shapes[][3] = {{1, 8, 8},   {3, 16, 40},  {1, 5, 16},   {3, 9, 7},
                                        {1, 24, 33}, {1, 320, 80}, {2, 8, 2880}, {1, 16, 9}};
    for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
        const int64_t experts = shapes[j][0];
        const int64_t n = shapes[j][1];
        const int64_t k = shapes[j][2];
        for (int pair = 0; pair < NUM_CODE_PACKINGS * NUM_CODE_PACKINGS; pair++) {
            const packing_case *p = &packings[pair / NUM_CODE_PACKINGS];
            const packing_case *q = &packings[pair % NUM_CODE_PACKINGS];
            const bool words = by_columns(p->packing) || by_columns(q->packing);
            const bool awq = p->packing == MOE_INT4_AWQ || q->packing == MOE_INT4_AWQ;
            const bool gptq = (words && !awq) || p->packing == MOE_INT4_GPTQ ||
                              q->packing == MOE_INT4_GPTQ || p->packing == MOE_INT4_GPTQ_V2 ||
                              q->packing == MOE_INT4_GPTQ_V2;
            const bool exact = words || p->dtype == MOE_UINT4 || q->dtype == MOE_UINT4;
            if ((awq && n % 8 != 0) || (gptq && k % 8 != 0) || (!exact && k % 2 != 0)) {
                continue;
            }
            uint8_t *codes = keep((size_t)(experts * n * k));
            for (int64_t i = 0; i < experts * n * k; i++) {
                codes[i] = (uint8_t)(random32() & 15);
            }
            const spread sp = spreads[pair % 2];
            box src = make_codes(p, experts, n, k, sp);
            box dst = make_codes(q, experts, n, k, sp);
            const box image = twin(&dst);
            pack_codes(p, &src, n, k, codes);
            pack_codes(q, &image, n, k, codes);
            const box before = copy_of(&src);
            CHECK(moe_layout_int4_values(p->packing, &src.t, q->packing, &dst.t) == MOE_OK,
                  "%s -> %s: %s", p->name, q->name, moe_last_error());
            CHECK(equal(&dst, &image) && equal(&src, &before),
                  "%s -> %s: [%" PRId64 ", %" PRId64 "] bytes differ", p->name, q->name, n, k);
            box back = twin(&src);
            CHECK(moe_layout_int4_values(q->packing, &dst.t, p->packing, &back.t) == MOE_OK &&
                      equal(&back, &src),
                  "%s -> %s: not restored: %s", p->name, q->name, moe_last_error());
            release_all();
        }
    }
}

// compressed-tensors words are canonical bytes already where K % 8 = 0: byte b of a word holds its
// nibbles 2b and 2b + 1, which are columns 8w + 2b and 8w + 2b + 1, low nibble first.
static void test_int4_reinterpretation(void)
{
    enum { N = 6, K = 64 };
    uint32_t words[N][K / 8];
    uint8_t bytes[N][K / 2] = {{0}};
    for (int n = 0; n < N; n++) {
        for (int w = 0; w < K / 8; w++) {
            words[n][w] = random32();
        }
    }
    const moe_tensor src = moe_tensor_2d(words, MOE_I32, N, K / 8);
    const moe_tensor dst = moe_tensor_2d(bytes, MOE_U8, N, K / 2);
    CHECK(moe_layout_int4_values(MOE_INT4_COMPRESSED_TENSORS, &src, MOE_INT4_CANONICAL, &dst) ==
              MOE_OK,
          "%s", moe_last_error());
    CHECK(memcmp(words, bytes, sizeof bytes) == 0, "byte %d differs from word %d", 0, 0);
    int wrong = 0;
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            wrong += (words[n][k / 8] >> (4 * (k % 8)) & 15) !=
                     (uint32_t)(bytes[n][k / 2] >> (4 * (k % 2)) & 15);
        }
    }
    CHECK(wrong == 0, "%d of %d codes differ", wrong, N * K);
    // Offset binary with the format's zero point 8: the nibble of value v is v + 8.
    CHECK(moei_format(MOE_FORMAT_INT4_GROUP)->zero_point == 8, "zero point is %d",
          (int)moei_format(MOE_FORMAT_INT4_GROUP)->zero_point);
}

// Nibbles past the last code are not read, and written as 0.
static void test_int4_tails(void)
{
    uint32_t word = 0xFEDCBA98u;
    uint8_t codes[3] = {POISON, POISON, POISON};
    uint32_t back = 0xFFFFFFFFu;
    const moe_tensor ct = moe_tensor_2d(&word, MOE_I32, 1, 1);
    const moe_tensor odd = moe_tensor_2d(codes, MOE_UINT4, 1, 5);
    const moe_tensor again = moe_tensor_2d(&back, MOE_I32, 1, 1);
    CHECK(moe_layout_int4_values(MOE_INT4_COMPRESSED_TENSORS, &ct, MOE_INT4_CANONICAL, &odd) ==
              MOE_OK,
          "%s", moe_last_error());
    CHECK(codes[0] == 0x98 && codes[1] == 0xBA && codes[2] == 0x0C, "bytes %02x %02x %02x",
          codes[0], codes[1], codes[2]);
    codes[2] = 0xFC;
    CHECK(moe_layout_int4_values(MOE_INT4_CANONICAL, &odd, MOE_INT4_COMPRESSED_TENSORS, &again) ==
                  MOE_OK &&
              back == 0x000CBA98u,
          "word %08" PRIx32 ": %s", back, moe_last_error());
}

static box make_zeros(const packing_case *p, int64_t e, int64_t n, int64_t g, spread sp)
{
    const int64_t rows = p->packing == MOE_INT4_ROW_PAIRS            ? (n + 1) / 2
                         : p->packing == MOE_INT4_COMPRESSED_TENSORS ? (n + 7) / 8
                                                                     : n;
    const int64_t by_row[3] = {e, rows, g};
    const int64_t by_group[3] = {e, g, n / 8};
    return make_box(p->dtype, 3, by_columns(p->packing) ? by_group : by_row, sp);
}

static void pack_zeros(const packing_case *p, const box *b, int64_t n, int64_t g,
                       const uint8_t *zeros)
{
    const moe_tensor *t = &b->t;
    const int minus = p->packing == MOE_INT4_GPTQ ? 1 : 0;
    for (int64_t e = 0; e < t->shape[0]; e++) {
        for (int64_t i = 0; i < t->shape[1]; i++) {
            for (int64_t j = 0; j < t->shape[2]; j++) {
                uint32_t v = 0;
                const int nibbles =
                    p->packing == MOE_INT4_CANONICAL ? 1 : moe_dtype_bits(p->dtype) / 4;
                for (int x = 0; x < nibbles; x++) {
                    const int64_t row = p->packing == MOE_INT4_AWQ ? 8 * j + awq_order[x]
                                        : by_columns(p->packing)   ? 8 * j + x
                                                                   : nibbles * i + x;
                    const int64_t group = by_columns(p->packing) ? i : j;
                    const int zero = row < n ? zeros[(e * n + row) * g + group] - minus : 0;
                    v |= (uint32_t)zero << (4 * x);
                }
                put3(t, e, i, j, v);
            }
            if (p->dtype == MOE_UINT4 && g % 2 != 0) {
                put_bits(row_at(t, e, i), 4, g, 0);
            }
        }
    }
}

static void test_int4_zero_points(void)
{
    static const int64_t shapes[][3] = {{1, 8, 1}, {3, 16, 5}, {3, 9, 3}, {1, 320, 2}, {1, 5, 23}};
    for (size_t j = 0; j < sizeof shapes / sizeof shapes[0]; j++) {
        const int64_t experts = shapes[j][0];
        const int64_t n = shapes[j][1];
        const int64_t g = shapes[j][2];
        for (int pair = 0; pair < NUM_PACKINGS * NUM_PACKINGS; pair++) {
            const packing_case *p = &packings[pair / NUM_PACKINGS];
            const packing_case *q = &packings[pair % NUM_PACKINGS];
            if ((by_columns(p->packing) || by_columns(q->packing)) && n % 8 != 0) {
                continue;
            }
            uint8_t *zeros = keep((size_t)(experts * n * g));
            const bool v1 = p->packing == MOE_INT4_GPTQ || q->packing == MOE_INT4_GPTQ;
            for (int64_t i = 0; i < experts * n * g; i++) {
                zeros[i] = (uint8_t)(v1 ? 1 + random32() % 15 : random32() % 16);
            }
            const spread sp = spreads[pair % 2];
            box src = make_zeros(p, experts, n, g, sp);
            box dst = make_zeros(q, experts, n, g, sp);
            const box image = twin(&dst);
            pack_zeros(p, &src, n, g, zeros);
            pack_zeros(q, &image, n, g, zeros);
            CHECK(moe_layout_int4_zero_points(n, p->packing, &src.t, q->packing, &dst.t) == MOE_OK,
                  "%s -> %s: %s", p->name, q->name, moe_last_error());
            CHECK(equal(&dst, &image), "%s -> %s: [%" PRId64 ", %" PRId64 "] bytes differ", p->name,
                  q->name, n, g);
            box back = twin(&src);
            CHECK(moe_layout_int4_zero_points(n, q->packing, &dst.t, p->packing, &back.t) ==
                          MOE_OK &&
                      equal(&back, &src),
                  "%s -> %s: not restored: %s", p->name, q->name, moe_last_error());
            release_all();
        }
    }
}

// GPTQ's first form stores zp - 1: 15 means 16, which a byte holds and a nibble does not.
static void test_int4_zero_point_limits(void)
{
    uint32_t words[2] = {0x77F77777u, 0x77777777u};
    uint32_t back[2] = {0, 0};
    uint8_t bytes[16] = {0};
    uint8_t pairs[8];
    memset(pairs, POISON, sizeof pairs);
    const moe_tensor gptq = moe_tensor_2d(words, MOE_I32, 1, 2);
    const moe_tensor again = moe_tensor_2d(back, MOE_I32, 1, 2);
    const moe_tensor byte = moe_tensor_2d(bytes, MOE_U8, 16, 1);
    const moe_tensor pair = moe_tensor_2d(pairs, MOE_U8, 8, 1);
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_GPTQ, &gptq, MOE_INT4_CANONICAL, &byte) ==
              MOE_OK,
          "%s", moe_last_error());
    CHECK(bytes[5] == 16 && bytes[0] == 8, "zero points %d and %d, must be 16 and 8", bytes[5],
          bytes[0]);
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_CANONICAL, &byte, MOE_INT4_GPTQ, &again) ==
                  MOE_OK &&
              memcmp(words, back, sizeof words) == 0,
          "words %08" PRIx32 " and %08" PRIx32, back[0], back[1]);
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_GPTQ, &gptq, MOE_INT4_ROW_PAIRS, &pair) ==
                  MOE_E_VALUE &&
              message_has("row 5, group 0 is 16", "0..15") && pairs[0] == POISON,
          "%s", moe_last_error());
    bytes[3] = 0;
    CHECK(moe_layout_int4_zero_points(16, MOE_INT4_CANONICAL, &byte, MOE_INT4_GPTQ, &again) ==
                  MOE_E_VALUE &&
              message_has("row 3, group 0 is 0", "1..16") && back[0] == words[0],
          "%s", moe_last_error());
}

// A GPTQ layer becomes a canonical matrix: codes, zero points, and scales by transposition. The
// numbers are (code - zp) * scale, computed from GPTQ's own words.
static void test_gptq_layer(void)
{
    enum { N = 16, K = 64, G = 2 };
    uint32_t qweight[K / 8][N];
    uint32_t qzeros[G][N / 8];
    float qscales[G][N];
    uint8_t codes[N][K / 2] = {{0}};
    uint8_t zeros[N][G] = {{0}};
    float scales[N][G] = {{0}};
    for (int i = 0; i < K / 8 * N; i++) {
        qweight[i / N][i % N] = random32();
    }
    for (int i = 0; i < G * N / 8; i++) {
        qzeros[i / (N / 8)][i % (N / 8)] = random32();
    }
    for (int i = 0; i < G * N; i++) {
        qscales[i / N][i % N] = 1.0f + (float)(random32() % 64) / 64.0f;
    }
    const moe_tensor w = moe_tensor_2d(qweight, MOE_I32, K / 8, N);
    const moe_tensor z = moe_tensor_2d(qzeros, MOE_I32, G, N / 8);
    const moe_tensor f = moe_tensor_2d(qscales, MOE_F32, G, N);
    const moe_tensor to_w = moe_tensor_2d(codes, MOE_U8, N, K / 2);
    const moe_tensor to_z = moe_tensor_2d(zeros, MOE_U8, N, G);
    const moe_tensor to_f = moe_tensor_2d(scales, MOE_F32, N, G);
    CHECK(moe_layout_int4_values(MOE_INT4_GPTQ, &w, MOE_INT4_CANONICAL, &to_w) == MOE_OK &&
              moe_layout_int4_zero_points(N, MOE_INT4_GPTQ, &z, MOE_INT4_CANONICAL, &to_z) ==
                  MOE_OK &&
              moe_layout_transpose(&f, &to_f) == MOE_OK,
          "%s", moe_last_error());
    int wrong = 0;
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            const int g = k / 32;
            const int code = (int)(qweight[k / 8][n] >> (4 * (k % 8)) & 15);
            const int zero = (int)(qzeros[g][n / 8] >> (4 * (n % 8)) & 15) + 1;
            const int ours = moei_get_u4(codes[n], (size_t)k) - zeros[n][g];
            wrong += (float)ours * scales[n][g] != (float)(code - zero) * qscales[g][n];
        }
    }
    CHECK(wrong == 0, "%d of %d values differ", wrong, N * K);
}

static void test_int4_refusals(void)
{
    static uint8_t a[1024];
    static uint8_t b[1024];
    const moe_tensor words = moe_tensor_2d(a, MOE_I32, 4, 2); // 4 rows, 16 columns
    const moe_tensor bytes = moe_tensor_2d(b, MOE_U8, 4, 8);
    const moe_tensor few = moe_tensor_2d(b, MOE_U8, 4, 3);
    const moe_tensor rows = moe_tensor_2d(b, MOE_U8, 5, 8);
    const moe_int4_packing ct = MOE_INT4_COMPRESSED_TENSORS;
    const moe_int4_packing us = MOE_INT4_CANONICAL;
    REFUSED(moe_layout_int4_values(0, &words, us, &bytes), MOE_E_UNSET, "from", "unset");
    REFUSED(moe_layout_int4_values(ct, &words, 7, &bytes), MOE_E_ARGUMENT, "to = 7", "1..6");
    REFUSED(moe_layout_int4_values(ct, NULL, us, &bytes), MOE_E_ARGUMENT, "src", "NULL");
    REFUSED(moe_layout_int4_values(ct, &words, MOE_INT4_ROW_PAIRS, &bytes), MOE_E_UNSUPPORTED, "2",
            "zero points");
    REFUSED(moe_layout_int4_values(ct, &words, us, &few), MOE_E_SHAPE, "16 columns", "dst 6");
    REFUSED(moe_layout_int4_values(ct, &words, us, &rows), MOE_E_SHAPE, "4 rows", "dst 5");
    REFUSED(moe_layout_int4_values(ct, &bytes, us, &rows), MOE_E_DTYPE, "uint8", "int32");
    const moe_tensor same = moe_tensor_2d(a + 4, MOE_U8, 4, 8);
    REFUSED(moe_layout_int4_values(ct, &words, us, &same), MOE_E_OVERLAP, "dst", "src");
    const moe_tensor zeros = moe_tensor_2d(a, MOE_I32, 3, 1); // 3 groups, 8 rows
    const moe_tensor out = moe_tensor_2d(b, MOE_U8, 8, 2);
    REFUSED(moe_layout_int4_zero_points(8, MOE_INT4_AWQ, &zeros, us, &out), MOE_E_SHAPE, "3 groups",
            "and 2");
    REFUSED(moe_layout_int4_zero_points(9, MOE_INT4_AWQ, &zeros, us, &out), MOE_E_SHAPE, "9", "8");
    REFUSED(moe_layout_int4_zero_points(-1, MOE_INT4_AWQ, &zeros, us, &out), MOE_E_ARGUMENT, "-1",
            "0..");
    const moe_tensor packed = moe_tensor_2d(a, MOE_UINT4, 8, 4);
    const moe_tensor also = moe_tensor_2d(b, MOE_UINT4, 4, 8);
    REFUSED(moe_layout_transpose(&packed, &also), MOE_E_DTYPE, "uint4", "f32");
    REFUSED(moe_layout_transpose(NULL, &also), MOE_E_ARGUMENT, "src", "NULL");
    const moe_tensor wide = moe_tensor_2d(a, MOE_BF16, 8, 4);
    const moe_tensor flat = moe_tensor_2d(b, MOE_BF16, 8, 4);
    REFUSED(moe_layout_transpose(&wide, &flat), MOE_E_SHAPE, "[1, 8, 4]", "[1, 4, 8]");
}

int main(void)
{
    test_int4_values();
    test_int4_reinterpretation();
    test_int4_tails();
    test_int4_zero_points();
    test_int4_zero_point_limits();
    test_gptq_layer();
    test_int4_refusals();
    return test_summary();
}
