// SPDX-License-Identifier: Apache-2.0
// The token sort in both forms against a naive statement, the batched layout, and the bit matrix
// form of a routing result.
#include <stdbool.h>

#include "checkmoe/route_problem.h"
#include "float64/sort.h"
#include "numerics/bf16.h"
#include "unit/test.h"

static moe_context *contexts[2]; // both builds of the portable kernels

// ---- A sort problem ---------------------------------------------------------------------------

typedef struct sorting {
    int64_t tokens, top_k, experts, globals; // globals 0: no map
    int64_t num_slots, padded, blocks;
    int32_t block, num_valid; // num_valid -100: absent
    int32_t *ids, *map;
    int32_t *offsets, *slots, *positions, *block_experts, *counts;
    int32_t num_padded;
} sorting;

static void sorting_alloc(sorting *s)
{
    s->num_slots = s->tokens * s->top_k;
    s->padded = s->block == 0 ? s->num_slots
                              : moe_sort_padded_size(s->num_slots, (int32_t)s->experts, s->block);
    s->blocks = s->block == 0 ? 0 : (s->padded + s->block - 1) / s->block;
    s->ids = problem_array(s->num_slots, sizeof(int32_t));
    s->map = problem_array(s->globals, sizeof(int32_t));
    s->offsets = problem_array(s->experts + 1, sizeof(int32_t));
    s->slots = problem_array(s->padded, sizeof(int32_t));
    s->positions = problem_array(s->num_slots, sizeof(int32_t));
    s->block_experts = problem_array(s->blocks, sizeof(int32_t));
    s->counts = problem_array(s->experts, sizeof(int32_t));
}

static void sorting_free(sorting *s)
{
    free(s->ids);
    free(s->map);
    free(s->offsets);
    free(s->slots);
    free(s->positions);
    free(s->block_experts);
    free(s->counts);
}

static moe_sort_args sorting_args(const sorting *s)
{
    moe_sort_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.num_experts = (int32_t)s->experts;
    a.block = s->block;
    a.ids = moe_tensor_2d(s->ids, MOE_I32, s->tokens, s->top_k);
    if (s->num_valid != -100) {
        a.num_valid = moe_tensor_1d(&s->num_valid, MOE_I32, 1);
    }
    if (s->globals > 0) {
        a.expert_map = moe_tensor_1d(s->map, MOE_I32, s->globals);
    }
    if (s->block == 0) {
        a.offsets = moe_tensor_1d(s->offsets, MOE_I32, s->experts + 1);
    } else {
        a.block_experts = moe_tensor_1d(s->block_experts, MOE_I32, s->blocks);
        a.num_padded = moe_tensor_1d(&s->num_padded, MOE_I32, 1);
    }
    a.slots = moe_tensor_1d(s->slots, MOE_I32, s->padded);
    a.positions = moe_tensor_1d(s->positions, MOE_I32, s->num_slots);
    a.counts = moe_tensor_1d(s->counts, MOE_I32, s->experts);
    return a;
}

// Expert of a slot by the rules, -1 absent.
static int64_t expert_of(const sorting *s, int64_t slot)
{
    int64_t id = s->ids[slot];
    if (s->num_valid != -100 && slot / s->top_k >= s->num_valid) {
        return -1;
    }
    if (s->globals > 0) {
        id = id >= 0 && id < s->globals ? s->map[id] : -1;
    }
    return id >= 0 && id < s->experts ? id : -1;
}

static void check_same(const char *what, const char *name, const int32_t *have, const int32_t *want,
                       int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        CHECK(have[i] == want[i], "%s: %s[%d] = %d, expected %d", what, name, (int)i, (int)have[i],
              (int)want[i]);
    }
}

// Both forms, as the plain statement sorts.
static void check_sorted(const sorting *s, const char *what)
{
    int64_t *experts = problem_array(s->num_slots, sizeof *experts);
    plain_sort w = {.experts = experts,
                    .num_slots = s->num_slots,
                    .num_experts = (int32_t)s->experts,
                    .block = s->block,
                    .padded = s->padded,
                    .slots = problem_array(s->padded, sizeof(int32_t)),
                    .positions = problem_array(s->num_slots, sizeof(int32_t)),
                    .counts = problem_array(s->experts, sizeof(int32_t)),
                    .offsets = problem_array(s->experts + 1, sizeof(int32_t)),
                    .block_experts = problem_array(s->blocks, sizeof(int32_t))};
    for (int64_t i = 0; i < s->num_slots; i++) {
        experts[i] = expert_of(s, i);
    }
    plain_sort_run(&w);
    check_same(what, "slots", s->slots, w.slots, s->padded);
    check_same(what, "positions", s->positions, w.positions, s->num_slots);
    check_same(what, "counts", s->counts, w.counts, s->experts);
    if (s->block == 0) {
        check_same(what, "offsets", s->offsets, w.offsets, s->experts + 1);
    } else {
        check_same(what, "block_experts", s->block_experts, w.block_experts, s->blocks);
        check_same(what, "num_padded", &s->num_padded, &w.num_padded, 1);
    }
    free(experts);
    free(w.slots);
    free(w.positions);
    free(w.counts);
    free(w.offsets);
    free(w.block_experts);
}

static void test_random_sorts(void)
{
    static const struct {
        int64_t tokens, top_k, experts;
    } shapes[] = {{0, 4, 8},   {1, 1, 1},    {1, 4, 128},   {7, 2, 8},
                  {33, 8, 64}, {64, 6, 60},  {128, 4, 32},  {50, 22, 512},
                  {9, 3, 1},   {300, 4, 17}, {5, 10, 8192}, {16, 0, 4}};
    static const int32_t blocks[] = {0, 1, 2, 16, 64, 0, 7, 128};
    for (int i = 0; i < 12 * 8 * 4; i++) {
        sorting s = {.tokens = shapes[i % 12].tokens,
                     .top_k = shapes[i % 12].top_k,
                     .experts = shapes[i % 12].experts,
                     .block = blocks[i / 12 % 8],
                     .num_valid = -100};
        const int mode = i / 96;
        moec_rng r = {(uint64_t)i};
        char what[96];
        s.globals = mode >= 2 ? s.experts * 2 + 1 : 0;
        s.num_valid = mode % 2 == 1 ? (int32_t)moec_below(&r, s.tokens + 3) - 1 : -100;
        (void)snprintf(what, sizeof what, "T %d k %d E %d block %d mode %d", (int)s.tokens,
                       (int)s.top_k, (int)s.experts, (int)s.block, mode);
        sorting_alloc(&s);
        for (int64_t j = 0; j < s.num_slots; j++) { // some absent, some far out
            const int64_t span = (s.globals > 0 ? s.globals : s.experts) + 3;
            s.ids[j] = moec_below(&r, 50) == 0 ? (moec_next(&r) & 1 ? INT32_MAX : INT32_MIN)
                                               : (int32_t)(moec_below(&r, span) - 1);
        }
        for (int64_t g = 0; g < s.globals; g++) {
            s.map[g] = moec_next(&r) & 1 ? -1 : (int32_t)moec_below(&r, s.experts + 1);
        }
        for (int c = 0; c < 2; c++) {
            const moe_sort_args a = sorting_args(&s);
            memset(s.slots, 0x55, (size_t)s.padded * 4);
            memset(s.positions, 0x55, (size_t)s.num_slots * 4);
            memset(s.block_experts, 0x55, (size_t)s.blocks * 4);
            if (CHECK(moe_sort(contexts[c], &a, NULL) == MOE_OK, "%s: %s", what,
                      moe_last_error())) {
                check_sorted(&s, what);
            }
        }
        sorting_free(&s);
    }
}

static void test_dtypes(void)
{
    sorting s = {.tokens = 11, .top_k = 3, .experts = 9, .num_valid = -100};
    int64_t wide[11 * 5];
    int64_t counts[9];
    moec_rng r = {5};
    sorting_alloc(&s);
    memset(wide, 0x01, sizeof wide);
    for (int64_t i = 0; i < 33; i++) {
        s.ids[i] = (int32_t)moec_below(&r, 11) - 1;
        wide[i / 3 * 5 + i % 3] = s.ids[i];
    }
    wide[0] = (int64_t)3 << 32 | 2; // absent, though its low half is not
    s.ids[0] = -1;
    moe_sort_args a = sorting_args(&s);
    a.ids = moe_tensor_2d(wide, MOE_I64, 11, 3);
    a.ids.stride[0] = 5;
    a.counts = moe_tensor_1d(counts, MOE_I64, 9);
    CHECK(moe_sort(contexts[0], &a, NULL) == MOE_OK, "%s", moe_last_error());
    for (int e = 0; e < 9; e++) {
        s.counts[e] = (int32_t)counts[e];
    }
    check_sorted(&s, "int64 with stride");
    a.positions.data = NULL;
    a.counts.data = NULL;
    CHECK(moe_sort(contexts[1], &a, NULL) == MOE_OK, "without optional outputs: %s",
          moe_last_error());
    check_sorted(&s, "without optional outputs");
    sorting_free(&s);
}

// The example in the documentation of vLLM's moe_align_block_size; experts are 1 to 4.
static void test_documented_example(void)
{
    int32_t ids[12] = {2, 3, 4, 1, 2, 4, 1, 3, 4, 1, 2, 3};
    const int32_t expected[16] = {3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12};
    int32_t slots[28];
    int32_t experts[7];
    int32_t padded = 0;
    moe_sort_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.num_experts = 5;
    a.block = 4;
    a.ids = moe_tensor_2d(ids, MOE_I32, 4, 3);
    CHECK(moe_sort_padded_size(12, 5, 4) == 28, "P = %lld",
          (long long)moe_sort_padded_size(12, 5, 4));
    a.slots = moe_tensor_1d(slots, MOE_I32, 28);
    a.block_experts = moe_tensor_1d(experts, MOE_I32, 7);
    a.num_padded = moe_tensor_1d(&padded, MOE_I32, 1);
    CHECK(moe_sort(contexts[0], &a, NULL) == MOE_OK, "%s", moe_last_error());
    CHECK(padded == 16, "num_padded %d", (int)padded);
    for (int i = 0; i < 28; i++) {
        CHECK(slots[i] == (i < 16 ? expected[i] : 12), "slot at %d: %d", i, (int)slots[i]);
    }
    for (int i = 0; i < 7; i++) {
        CHECK(experts[i] == (i < 4 ? i + 1 : -1), "block %d: expert %d", i, (int)experts[i]);
    }
}

static void test_padded_size(void)
{
    CHECK(moe_sort_padded_size(0, 8, 16) == 0, "no slots");
    CHECK(moe_sort_padded_size(100, 8, 16) == 224, "100 + 8 * 15 = 220, rounded up");
    CHECK(moe_sort_padded_size(4, 64, 16) == 64, "4 slots: 4 blocks");
    CHECK(moe_sort_padded_size(64, 64, 16) == 64 + 64 * 15, "as many slots as experts");
    CHECK(moe_sort_padded_size(7, 3, 1) == 7, "blocks of one");
    CHECK(moe_sort_padded_size(-1, 3, 1) == -1 && moe_sort_padded_size(1, 0, 1) == -1 &&
              moe_sort_padded_size(1, 1, 0) == -1,
          "out of range");
    CHECK(moe_sort_padded_size(INT64_MAX - 5, 4, 64) == -1, "beyond 63 bits");
}

static void expect_refused(moe_sort_args *a, const char *what, moe_status code, const char *says)
{
    const moe_status s = moe_sort(contexts[0], a, NULL);
    CHECK(s == code && strstr(moe_last_error(), says) != NULL, "%s: %s, \"%s\"", what,
          moe_status_name(s), moe_last_error());
}

static void test_refusals(void)
{
    int32_t room[256] = {0};
#define REFUSE(what, block_size, change, code, says)                                               \
    do {                                                                                           \
        sorting s = {                                                                              \
            .tokens = 5, .top_k = 2, .experts = 4, .block = (block_size), .num_valid = -100};      \
        sorting_alloc(&s);                                                                         \
        moe_sort_args a = sorting_args(&s);                                                        \
        change;                                                                                    \
        expect_refused(&a, what, code, says);                                                      \
        sorting_free(&s);                                                                          \
    } while (0)
    REFUSE("struct_size", 0, a.struct_size = 1, MOE_E_VERSION, "struct_size = 1");
    REFUSE("E 0", 0, a.num_experts = 0, MOE_E_ARGUMENT, "num_experts = 0");
    REFUSE("E 8193", 0, a.num_experts = 8193, MOE_E_ARGUMENT, "8193");
    REFUSE("block -1", 0, a.block = -1, MOE_E_ARGUMENT, "block = -1");
    REFUSE("ids dtype", 0, a.ids.dtype = MOE_F32, MOE_E_DTYPE, "ids is f32");
    REFUSE("ids absent", 0, a.ids.data = NULL, MOE_E_ARGUMENT, "ids");
    REFUSE("too many slots", 0, (a.ids.shape[0] = INT64_MAX / 8, a.ids.shape[1] = 2),
           MOE_E_OVERFLOW, "ids");
    REFUSE("offsets", 0, a.offsets.shape[0] = 4, MOE_E_SHAPE, "[5]");
    REFUSE("slots", 0, a.slots.shape[0] = 9, MOE_E_SHAPE, "slots is int32 [9], must be int32 [10]");
    REFUSE("blocks in the contiguous form", 0, a.block_experts = moe_tensor_1d(room, MOE_I32, 1),
           MOE_E_ARGUMENT, "block_experts");
    REFUSE("num_padded in the contiguous form", 0, a.num_padded = moe_tensor_1d(room, MOE_I32, 1),
           MOE_E_ARGUMENT, "num_padded");
    REFUSE("offsets in blocks", 8, a.offsets = moe_tensor_1d(room, MOE_I32, 5), MOE_E_ARGUMENT,
           "offsets is given, but block = 8");
    REFUSE("P", 8, a.slots.shape[0]--, MOE_E_SHAPE, "[40]");
    REFUSE("blocks", 8, a.block_experts.shape[0]--, MOE_E_SHAPE, "[5]");
    REFUSE("no num_padded", 8, a.num_padded.data = NULL, MOE_E_ARGUMENT, "num_padded is absent");
    REFUSE("P beyond int32", 8, (a.block = 1 << 30), MOE_E_OVERFLOW, "1073741824");
    REFUSE("positions", 0, a.positions.shape[0] = 11, MOE_E_SHAPE, "positions");
    REFUSE("counts dtype", 0, a.counts.dtype = MOE_U32, MOE_E_DTYPE, "counts is uint32");
    REFUSE("map dtype", 0, (a.expert_map = moe_tensor_1d(room, MOE_I64, 4)), MOE_E_DTYPE,
           "expert_map");
    REFUSE("overlap", 0, a.slots.data = a.ids.data, MOE_E_OVERLAP, "slots overlaps ids");
    REFUSE("overlapping outputs", 0, a.positions.data = a.slots.data, MOE_E_OVERLAP,
           "slots overlaps positions");
    REFUSE("alignment", 0, a.offsets.byte_offset = 1, MOE_E_ALIGNMENT, "offsets");
#undef REFUSE
    CHECK(moe_sort(NULL, NULL, NULL) == MOE_E_ARGUMENT, "no context");
    CHECK(moe_sort(contexts[0], NULL, NULL) == MOE_E_ARGUMENT, "no args");
}

// ---- The batched layout -----------------------------------------------------------------------

static void test_batched(void)
{
    enum { T = 23, K = 3, E = 7, ROOM = 13, H = 5, X_STRIDE = 9, B_STRIDE = 6 };
    static int32_t ids[T * K];
    static uint16_t x[T * X_STRIDE];
    static uint16_t batched[E * ROOM * B_STRIDE];
    static int32_t counts[E];
    static int32_t rows[T * K];
    moec_rng r = {17};
    moe_batched_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    for (int i = 0; i < T * K; i++) {
        ids[i] = (int32_t)moec_below(&r, E + 2) - 1;
    }
    for (int i = 0; i < T * X_STRIDE; i++) {
        x[i] = (uint16_t)moec_next(&r);
    }
    a.ids = moe_tensor_2d(ids, MOE_I32, T, K);
    a.x = moe_tensor_2d(x, MOE_BF16, T, H);
    a.x.stride[0] = X_STRIDE;
    a.batched = moe_tensor_3d(batched, MOE_BF16, E, ROOM, H);
    a.batched.stride[1] = B_STRIDE;
    a.batched.stride[0] = ROOM * B_STRIDE;
    a.counts = moe_tensor_1d(counts, MOE_I32, E);
    a.rows = moe_tensor_1d(rows, MOE_I32, T * K);
    for (int c = 0; c < 2; c++) {
        int seen[E] = {0};
        memset(batched, 0xEE, sizeof batched);
        CHECK(moe_gather_batched(contexts[c], &a, NULL) == MOE_OK, "%s", moe_last_error());
        for (int i = 0; i < T * K; i++) {
            const int32_t id = ids[i];
            const int32_t row = id >= 0 && id < E ? id * ROOM + seen[id] : -1;
            CHECK(rows[i] == row, "slot %d in row %d, expected %d", i, (int)rows[i], (int)row);
            if (row >= 0) {
                seen[id]++;
                CHECK(memcmp(batched + row * B_STRIDE, x + i / K * X_STRIDE, H * 2) == 0,
                      "row %d is not token %d", (int)row, i / K);
            }
        }
        for (int e = 0; e < E; e++) {
            CHECK(counts[e] == seen[e], "count of %d: %d, expected %d", e, (int)counts[e], seen[e]);
            for (int i = 0; i < ROOM * B_STRIDE; i++) { // gaps, and rows past the count
                CHECK((i % B_STRIDE < H && i / B_STRIDE < seen[e]) ||
                          batched[e * ROOM * B_STRIDE + i] == 0xEEEE,
                      "expert %d element %d was written", e, i);
            }
        }
    }
    for (int i = 0; i < T; i++) { // more than there is room for
        ids[i * K] = 2;
    }
    memset(batched, 0xEE, sizeof batched);
    CHECK(moe_gather_batched(contexts[0], &a, NULL) == MOE_E_SHAPE &&
              strstr(moe_last_error(), "expert 2 gets") != NULL &&
              strstr(moe_last_error(), "room for 13") != NULL,
          "overfull: \"%s\"", moe_last_error());
    for (size_t i = 0; i < sizeof batched / 2; i++) {
        CHECK(batched[i] == 0xEEEE, "a refused gather wrote");
    }
    moe_batched_args bad = a;
    bad.batched.dtype = MOE_F16;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_DTYPE, "dtype: %s",
          moe_last_error());
    bad = a;
    bad.x.device = MOE_DEVICE_CUDA;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_ARGUMENT &&
              strstr(moe_last_error(), "x lies on device \"cuda\"") != NULL,
          "device: %s", moe_last_error());
    bad = a;
    bad.batched.shape[2] = H - 1;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_SHAPE, "width: %s",
          moe_last_error());
    bad = a;
    bad.x.shape[0] = T - 1;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_SHAPE, "tokens: %s",
          moe_last_error());
    bad = a;
    bad.counts.data = rows;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_OVERLAP, "overlap: %s",
          moe_last_error());
    bad = a;
    bad.struct_size = 0;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_VERSION, "struct_size");
    // FP4 codes: rows of whole bytes go, others do not.
    bad = a;
    ids[0] = 0;
    bad.ids = moe_tensor_2d(ids, MOE_I32, 1, 1);
    bad.rows = moe_tensor_1d(rows, MOE_I32, 1);
    bad.x = moe_tensor_2d(x, MOE_E2M1, 1, 6);
    bad.batched = moe_tensor_3d(batched, MOE_E2M1, 1, 1, 6);
    bad.counts = moe_tensor_1d(counts, MOE_I32, 1);
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_OK && memcmp(batched, x, 3) == 0,
          "e2m1: %s", moe_last_error());
    bad.x.shape[1] = 5;
    bad.batched.shape[2] = 5;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_E_SHAPE, "half a byte: %s",
          moe_last_error());
    bad = a;
    bad.ids = moe_tensor_2d(ids, MOE_I32, 0, K);
    bad.x.shape[0] = 0;
    bad.rows.shape[0] = 0;
    CHECK(moe_gather_batched(contexts[0], &bad, NULL) == MOE_OK && counts[2] == 0, "no tokens: %s",
          moe_last_error());
}

// ---- The bit matrix form ----------------------------------------------------------------------

typedef struct sparse {
    int64_t tokens, top_k, num_slots, words;
    int32_t experts;
    uint32_t *bits;
    int32_t *counts, *offsets, *gather, *scatter;
    float *gate;
    moe_routing_sparse view;
} sparse;

static void sparse_alloc(sparse *s, int64_t tokens, int64_t top_k, int32_t experts, bool transposed)
{
    s->tokens = tokens;
    s->top_k = top_k;
    s->experts = experts;
    s->num_slots = tokens * top_k;
    s->words = (experts + 31) / 32;
    const int64_t padded_rows = (tokens + 31) / 32 * 32;
    s->bits = problem_array(padded_rows * s->words, sizeof(uint32_t));
    s->counts = problem_array(experts, sizeof(int32_t));
    s->offsets = problem_array(experts + 1, sizeof(int32_t));
    s->gather = problem_array(s->num_slots, sizeof(int32_t));
    s->scatter = problem_array(s->num_slots, sizeof(int32_t));
    s->gate = problem_array(s->num_slots, sizeof(float));
    memset(s->bits, 0xFF, (size_t)(padded_rows * s->words) * 4);
    s->view.bitmatrix = moe_tensor_2d(s->bits, MOE_U32, tokens, s->words);
    if (transposed) {
        s->view.bitmatrix.stride[0] = 1;
        s->view.bitmatrix.stride[1] = padded_rows;
    }
    s->view.counts = moe_tensor_1d(s->counts, MOE_I32, experts);
    s->view.offsets = moe_tensor_1d(s->offsets, MOE_I32, experts + 1);
    s->view.gather = moe_tensor_1d(s->gather, MOE_I32, s->num_slots);
    s->view.scatter = moe_tensor_1d(s->scatter, MOE_I32, s->num_slots);
    s->view.gate_scale = moe_tensor_1d(s->gate, MOE_F32, s->num_slots);
}

static void sparse_free(sparse *s)
{
    free(s->bits);
    free(s->counts);
    free(s->offsets);
    free(s->gather);
    free(s->scatter);
    free(s->gate);
}

static bool bit_set(const sparse *s, int64_t t, int64_t e)
{
    const int64_t *stride = s->view.bitmatrix.stride;
    return (s->bits[t * stride[0] + e / 32 * stride[1]] >> (e % 32) & 1) != 0;
}

static void test_sparse_forms(void)
{
    static const struct {
        int64_t tokens, top_k;
        int32_t experts;
    } shapes[] = {{0, 4, 8}, {1, 1, 1}, {7, 4, 32}, {33, 4, 128}, {40, 6, 33}, {64, 8, 257}};
    for (int i = 0; i < 6 * 4; i++) {
        const int64_t n = shapes[i % 6].tokens * shapes[i % 6].top_k;
        const int64_t k = shapes[i % 6].top_k;
        const int32_t experts = shapes[i % 6].experts;
        sparse s;
        sparse_alloc(&s, shapes[i % 6].tokens, k, experts, i / 6 % 2 == 1);
        moec_rng r = {900 + (uint64_t)i};
        int32_t *ids = problem_array(n, sizeof(int32_t));
        float *weights = problem_array(n, sizeof(float));
        int64_t *back = problem_array(n, sizeof(int64_t));
        float *weights_back = problem_array(n, sizeof(float));
        for (int64_t j = 0; j < n; j++) {
            const int64_t step = experts > k ? experts / k : 1;
            ids[j] = (int32_t)(j % k * step + moec_below(&r, step)); // no id twice
            ids[j] = ids[j] >= experts ? -1 : ids[j];
            const int64_t odd = i / 6 >= 2 ? moec_below(&r, 6) : 9;
            ids[j] = odd == 0 ? -1 : odd == 1 ? experts : odd == 2 ? INT32_MIN : ids[j];
            weights[j] = 1.0f + (float)j;
        }
        const moe_tensor id_view = moe_tensor_2d(ids, MOE_I32, s.tokens, k);
        const moe_tensor weight_view = moe_tensor_2d(weights, MOE_F32, s.tokens, k);
        CHECK(moe_routing_to_sparse(&id_view, &weight_view, experts, &s.view) == MOE_OK, "%s",
              moe_last_error());
        int64_t at = 0;
        int64_t set = 0;
        for (int32_t e = 0; e < experts; e++) {
            CHECK(s.offsets[e] == at, "expert %d from %d, expected %d", (int)e, (int)s.offsets[e],
                  (int)at);
            for (int64_t j = 0; j < n; j++) {
                if (ids[j] == e) {
                    CHECK(s.gather[at] == j && s.scatter[j] == at, "slot %d: gather %d scatter %d",
                          (int)j, (int)s.gather[at], (int)s.scatter[j]);
                    CHECK(s.gate[at] == weights[j], "gate of slot %d: %g", (int)j,
                          (double)s.gate[at]);
                    CHECK(bit_set(&s, j / k, e), "token %d lacks the bit of %d", (int)(j / k),
                          (int)e);
                    at++;
                }
            }
            CHECK(s.counts[e] == at - s.offsets[e], "count of %d: %d", (int)e, (int)s.counts[e]);
        }
        for (int64_t t = 0; t < s.tokens; t++) {
            for (int64_t e = 0; e < s.words * 32; e++) { // bits past E too
                set += bit_set(&s, t, e);
            }
        }
        CHECK(set == at && s.offsets[experts] == at, "%d bits, %d slots, end %d", (int)set, (int)at,
              (int)s.offsets[experts]);
        for (int64_t j = 0; j < n; j++) {
            const bool here = ids[j] >= 0 && ids[j] < experts;
            CHECK(here || s.scatter[j] == -1, "absent slot %d at %d", (int)j, (int)s.scatter[j]);
            CHECK(j < at || s.gather[j] == -1, "gather past the end: %d", (int)s.gather[j]);
            CHECK(j < at || s.gate[j] == 0.0f, "gate past the end: %g", (double)s.gate[j]);
        }
        // And back; what lies past the end may be anything.
        for (int64_t j = at; j < n; j++) {
            s.gather[j] = 12345;
            s.gate[j] = NAN;
        }
        const moe_tensor back_view = moe_tensor_2d(back, MOE_I64, s.tokens, k);
        const moe_tensor weights_back_view = moe_tensor_2d(weights_back, MOE_F32, s.tokens, k);
        CHECK(moe_routing_from_sparse(&s.view, experts, &back_view, &weights_back_view) == MOE_OK,
              "%s", moe_last_error());
        for (int64_t j = 0; j < n; j++) {
            const bool here = ids[j] >= 0 && ids[j] < experts;
            CHECK(back[j] == (here ? ids[j] : -1), "slot %d came back as %d", (int)j, (int)back[j]);
            CHECK(weights_back[j] == (here ? weights[j] : 0.0f), "weight of slot %d: %g", (int)j,
                  (double)weights_back[j]);
        }
        free(ids);
        free(weights);
        free(back);
        free(weights_back);
        sparse_free(&s);
    }
}

static void test_sparse_refusals(void)
{
    int32_t ids[12] = {3, 1, 5, 0, 2, 4, 5, 3, 1, 4, -1, 0};
    int32_t back[12] = {0};
    uint16_t half[12] = {0};
    float weights[12] = {0};
    sparse s;
    sparse_alloc(&s, 4, 3, 6, false);
    moe_tensor id_view = moe_tensor_2d(ids, MOE_I32, 4, 3);
    const moe_tensor back_view = moe_tensor_2d(back, MOE_I32, 4, 3);
    const moe_tensor weight_view = moe_tensor_2d(weights, MOE_F32, 4, 3);
    for (int i = 0; i < 12; i++) {
        weights[i] = 0.1f * (float)i;
    }
    CHECK(moe_routing_to_sparse(&id_view, &weight_view, 6, &s.view) == MOE_OK, "%s",
          moe_last_error());
    CHECK(moe_routing_from_sparse(&s.view, 6, &back_view, NULL) == MOE_OK, "%s", moe_last_error());
    // Everything that the two halves of the form can disagree about.
    int32_t *const cells[] = {&s.counts[2],  &s.offsets[0],         &s.offsets[3],
                              &s.gather[4],  &s.gather[0],          &s.scatter[5],
                              &s.scatter[0], &s.scatter[10],        &s.counts[5],
                              &s.offsets[6], (int32_t *)&s.bits[0], (int32_t *)&s.bits[3]};
    const int32_t values[] = {7, 1, -1, 0, 12, 3, -1, 0, INT32_MAX, 13, 0x2B, 0x11 | 1 << 30};
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++) {
        const int32_t old = *cells[i];
        CHECK(old != values[i], "cell %d is already %d", (int)i, (int)old);
        *cells[i] = values[i];
        CHECK(moe_routing_from_sparse(&s.view, 6, &back_view, NULL) == MOE_E_VALUE,
              "cell %d = %d was accepted", (int)i, (int)values[i]);
        *cells[i] = old;
    }
    CHECK(moe_routing_from_sparse(&s.view, 6, &back_view, NULL) == MOE_OK, "%s", moe_last_error());
    // All of it moved up by one position: consistent, but for where it begins.
    memmove(s.gather + 1, s.gather, 11 * sizeof(int32_t));
    for (int i = 0; i < 12; i++) {
        s.scatter[i] += s.scatter[i] >= 0;
        s.offsets[i < 7 ? i : 6] += i < 7;
    }
    CHECK(moe_routing_from_sparse(&s.view, 6, &back_view, NULL) == MOE_E_VALUE &&
              strstr(moe_last_error(), "offsets[0] = 1") != NULL,
          "\"%s\"", moe_last_error());
    // A weight rounds once to bf16.
    moe_routing_sparse bf16 = s.view;
    bf16.gate_scale = moe_tensor_1d(half, MOE_BF16, 12);
    CHECK(moe_routing_to_sparse(&id_view, &weight_view, 6, &bf16) == MOE_OK, "%s",
          moe_last_error());
    CHECK(half[0] == moei_f32_to_bf16(weights[3]), "gate 0 in bf16: %04x", half[0]);
    moe_routing_sparse none = s.view;
    none.gate_scale.data = NULL;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &none) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_routing_to_sparse(&id_view, &weight_view, 6, &none) == MOE_E_ARGUMENT &&
              strstr(moe_last_error(), "weights is given without gate_scale") != NULL,
          "\"%s\"", moe_last_error());
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &s.view) == MOE_E_ARGUMENT, "no weights");
    CHECK(moe_routing_from_sparse(&none, 6, &back_view, &weight_view) == MOE_E_ARGUMENT,
          "no gate_scale");
    ids[4] = 0; // token 1 has 0, 0, 4
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &none) == MOE_E_VALUE &&
              strstr(moe_last_error(), "token 1 slot 1: id 0") != NULL,
          "\"%s\"", moe_last_error());
    ids[4] = 2;
    moe_routing_sparse bad = none;
    bad.bitmatrix.dtype = MOE_I64;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &bad) == MOE_E_DTYPE, "bit matrix dtype");
    bad = none;
    bad.bitmatrix.shape[1] = 2;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &bad) == MOE_E_SHAPE, "bit matrix width");
    bad = none;
    bad.bitmatrix.byte_offset = 2;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &bad) == MOE_E_ALIGNMENT, "alignment");
    bad = none;
    bad.gather.data = s.scatter;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &bad) == MOE_E_OVERLAP, "overlap");
    bad = none;
    bad.offsets.shape[0] = 6;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, &bad) == MOE_E_SHAPE, "offsets");
    CHECK(moe_routing_to_sparse(&id_view, NULL, 0, &none) == MOE_E_ARGUMENT, "E 0");
    CHECK(moe_routing_to_sparse(NULL, NULL, 6, &none) == MOE_E_ARGUMENT, "no ids");
    CHECK(moe_routing_to_sparse(&id_view, NULL, 6, NULL) == MOE_E_ARGUMENT, "no output");
    CHECK(moe_routing_from_sparse(NULL, 6, &back_view, NULL) == MOE_E_ARGUMENT, "no input");
    sparse_free(&s);
    sparse two; // strides that lay two words on each other
    sparse_alloc(&two, 4, 3, 40, true);
    two.view.bitmatrix.stride[1] = 3;
    two.view.gate_scale.data = NULL;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 40, &two.view) == MOE_E_SHAPE, "strides 1, 3");
    two.view.bitmatrix.stride[1] = 4;
    CHECK(moe_routing_to_sparse(&id_view, NULL, 40, &two.view) == MOE_OK, "%s", moe_last_error());
    sparse_free(&two);
}

int main(void)
{
    contexts[0] = route_context("ref", 1);
    contexts[1] = route_context("ref_fma", 3);
    if (CHECK(contexts[0] != NULL && contexts[1] != NULL, "no context: %s", moe_last_error())) {
        test_random_sorts();
        test_dtypes();
        test_documented_example();
        test_padded_size();
        test_refusals();
        test_batched();
        test_sparse_forms();
        test_sparse_refusals();
    }
    moe_context_destroy(contexts[0]);
    moe_context_destroy(contexts[1]);
    return test_summary();
}
