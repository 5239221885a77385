// SPDX-License-Identifier: Apache-2.0
// Edges of the contract that no tolerance sees: the sign of a zero, which rows count for a scale
// that spans tokens (docs/numerics.md), an odd K of packed codes.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "api/layer_edits.h"
#include "quant/elements.h"
#include "unit/test.h"

#define HIDDEN 144

static moe_context *ctx;

static int make(layer_case *c, moe_plan **plan, const moe_layer_desc *d, int64_t tokens)
{
    *plan = NULL;
    memset(c, 0, sizeof *c);
    return CHECK(moe_plan_create(ctx, d, plan) == MOE_OK &&
                     layer_case_make(c, *plan, d, tokens) == MOE_OK,
                 "%s", moe_last_error());
}

static void drop(layer_case *c, moe_plan *plan)
{
    layer_case_free(c);
    moe_plan_destroy(plan);
}

// ---- zeros --------------------------------------------------------------------------------------

#define ZERO_ROWS 5
#define ZEROS     (ZERO_ROWS * HIDDEN)

// Signs of the results of rows whose weight is 0: those of the sums before it. `sum`: out is added
// to, having been -0.
static void zero_signs(moe_layer_desc d, moe_dtype partial, moe_dtype out, int sum,
                       unsigned char signs[ZEROS])
{
    layer_case c;
    moe_plan *plan;
    d.x_dtype = MOE_F32;
    d.partial_dtype = partial;
    d.out_dtype = out;
    d.accumulate = sum;
    memset(signs, 2, ZEROS);
    if (!make(&c, &plan, &d, ZERO_ROWS)) {
        return;
    }
    const size_t bytes = (size_t)moe_dtype_bits(out) / 8;
    const float minus = -0.0f;
    uint8_t *y = c.args.out.data;
    memset(c.args.weights.data, 0, ZERO_ROWS * sizeof(float));
    for (size_t i = 0; sum != 0 && i < ZEROS; i++) {
        moei_store_f32(out, y + i * bytes, 1, &minus);
    }
    CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < ZEROS; i++) {
        const float v = moei_load_one(out, y, i);
        CHECK(v == 0.0f, "element %d is %g, its weight is 0", i, (double)v);
        signs[i] = signbit(v) != 0;
    }
    drop(&c, plan);
}

static void test_zeros(void)
{
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    static unsigned char want[ZEROS];
    static unsigned char have[ZEROS];
    static const unsigned char plus[ZEROS] = {0};
    moe_layer_desc sorted = layer_case_base();
    moe_layer_desc slots = layer_case_base();
    place(&sorted, MOE_X_SORTED);
    give(&slots);
    slots.top_k = 1;
    for (int form = 0; form < 2; form++) {
        moe_layer_desc d = form == 0 ? sorted : slots;
        d.out_mode = form == 0 ? MOE_OUT_LAYOUT : MOE_OUT_SLOTS;
        zero_signs(d, MOE_F32, MOE_F32, 0, want);
        CHECK(memchr(want, 1, ZEROS) != NULL && memchr(want, 0, ZEROS) != NULL,
              "form %d: all zeros have one sign", form);
        for (int i = 0; i < 9; i++) {
            zero_signs(d, dtypes[i / 3], dtypes[i % 3], 0, have);
            CHECK(memcmp(have, want, ZEROS) == 0, "form %d, %s to %s: other signs", form,
                  moe_dtype_name(dtypes[i / 3]), moe_dtype_name(dtypes[i % 3]));
            zero_signs(d, dtypes[i / 3], dtypes[i % 3], 1, have);
            CHECK(memcmp(have, plus, ZEROS) == 0, "form %d, %s to %s: a sum is -0", form,
                  moe_dtype_name(dtypes[i / 3]), moe_dtype_name(dtypes[i % 3]));
        }
    }
    slots.out_mode = MOE_OUT_COMBINED;
    zero_signs(slots, MOE_F32, MOE_F32, 0, have);
    CHECK(memcmp(have, plus, ZEROS) == 0, "combined: a sum is -0");
}

static void test_absent_slot(void)
{
    moe_layer_desc d = layer_case_base();
    layer_case c;
    moe_plan *plan;
    give(&d);
    d.top_k = 1;
    d.out_mode = MOE_OUT_SLOTS;
    if (!make(&c, &plan, &d, 3)) {
        return;
    }
    static const uint16_t zero[HIDDEN] = {0};
    ((int32_t *)c.args.ids.data)[1] = -1;
    CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
    CHECK(memcmp((uint16_t *)c.args.out.data + HIDDEN, zero, sizeof zero) == 0,
          "an absent slot is not +0");
    drop(&c, plan);
}

// ---- scales that span tokens --------------------------------------------------------------------

typedef enum fate { ROUTED, ABSENT, REMOTE, PADDING, NUM_FATES } fate;

// Row 0 of a run of three tokens, the last of which is loud or quiet and has a fate.
static void first_row(const moe_layer_desc *d, fate last, float loudness, float row[HIDDEN])
{
    layer_case c;
    moe_plan *plan;
    const int32_t ids[3] = {0, 1, last == ABSENT ? -1 : last == REMOTE ? 3 : 2};
    const int32_t two = 2;
    memset(row, 0, HIDDEN * sizeof *row);
    if (!make(&c, &plan, d, 3)) {
        return;
    }
    memcpy(c.args.ids.data, ids, sizeof ids);
    float *x = c.args.x.data;
    for (int i = 2 * HIDDEN; i < 3 * HIDDEN; i++) {
        x[i] *= loudness;
    }
    if (last == PADDING) {
        c.args.num_valid = moe_tensor_1d(&two, MOE_I32, 1);
    }
    CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
    memcpy(row, c.args.out.data, HIDDEN * sizeof *row);
    drop(&c, plan);
}

static moe_layer_desc spanning(moe_weight_stage stage, int g)
{
    moe_layer_desc d = layer_case_base();
    give(&d);
    d.top_k = 1;
    d.num_experts = 4;
    d.num_local_experts = 3; // expert 3 is remote
    d.expert_map = 1;
    d.weight_stage = stage;
    d.x_dtype = MOE_F32;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_E4M3FN_TENSOR;
    d.gemm[g].act.spec = MOE_QUANT_FP8_TENSOR;
    d.determinism = MOE_DET_RUN;
    return d;
}

// Does a loud last token change row 0? Only where it counts for the scale.
static void test_spanning_tokens(void)
{
    static const struct {
        moe_weight_stage stage;
        int g;
        int counts[NUM_FATES]; // by fate
    } rows[] = {
        {MOE_WEIGHT_OUTPUT, 0, {1, 1, 1, 0}}, // x: every valid token, wherever it goes
        {MOE_WEIGHT_INPUT, 0, {1, 0, 1, 0}},  // weighted x: a slot that names no expert weighs 0
        {MOE_WEIGHT_OUTPUT, 1, {1, 0, 0, 0}}, // h: rows that are computed here
        {MOE_WEIGHT_INPUT, 1, {1, 0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const moe_layer_desc d = spanning(rows[i].stage, rows[i].g);
        for (fate f = ROUTED; f < NUM_FATES; f++) {
            float quiet[HIDDEN];
            float loud[HIDDEN];
            float routed[HIDDEN];
            first_row(&d, f, 0.001f, quiet);
            first_row(&d, f, 1000.0f, loud);
            first_row(&d, ROUTED, 1000.0f, routed);
            const int changed = memcmp(quiet, loud, sizeof quiet) != 0;
            CHECK(changed == rows[i].counts[f], "stage %d, gemm[%d], fate %d: %s",
                  (int)rows[i].stage, rows[i].g, (int)f,
                  changed ? "counts for the scale" : "does not count for the scale");
            CHECK(!changed || memcmp(loud, routed, sizeof loud) == 0,
                  "stage %d, gemm[%d], fate %d: counts otherwise than a routed token",
                  (int)rows[i].stage, rows[i].g, (int)f);
        }
        moe_layer_desc batch = d;
        moe_plan *plan = NULL;
        batch.determinism = MOE_DET_DEFAULT;
        CHECK(moe_plan_create(ctx, &batch, &plan) == MOE_E_LEVEL &&
                  strstr(moe_last_error(), "spans tokens") != NULL,
              "at BATCH: %s", moe_last_error());
    }
}

// Rows of an expert at or past its count, loud or quiet, change nothing.
static void test_spanning_batches(void)
{
    uint64_t outputs[2];
    for (int loud = 0; loud < 2; loud++) {
        moe_layer_desc d = spanning(MOE_WEIGHT_OUTPUT, 0);
        layer_case c;
        moe_plan *plan;
        place(&d, MOE_X_BATCHED);
        d.expert_map = 0;
        d.num_local_experts = 0;
        d.gemm[1].act.spec = MOE_QUANT_FP8_TENSOR;
        if (!make(&c, &plan, &d, 2)) {
            return;
        }
        float *x = c.args.x.data;
        for (int e = 0; e < 4; e++) {
            ((int32_t *)c.args.counts.data)[e] = 1;
            for (int i = 0; i < HIDDEN; i++) {
                x[(2 * e + 1) * HIDDEN + i] *= loud != 0 ? 1000.0f : 0.001f;
            }
        }
        CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
        outputs[loud] = layer_case_outputs(&c);
        drop(&c, plan);
    }
    CHECK(outputs[0] == outputs[1], "rows past the counts count for the scale");
}

// Shared experts quantise h together: one with a large h, whose down is 0, changes the other's.
static void test_spanning_shared(void)
{
    uint64_t outputs[2];
    for (int loud = 0; loud < 2; loud++) {
        moe_layer_desc d = layer_case_base();
        layer_case c;
        moe_plan *plan;
        share(&d);
        d.shared.gemm[0].weight_format = MOE_FORMAT_E4M3FN_TENSOR;
        d.shared.gemm[1].weight_format = MOE_FORMAT_E4M3FN_TENSOR;
        d.shared.gemm[1].act.spec = MOE_QUANT_FP8_TENSOR;
        d.determinism = MOE_DET_RUN;
        if (!make(&c, &plan, &d, 3)) {
            return;
        }
        const size_t down = (size_t)HIDDEN * 24;
        memset((uint8_t *)c.source.shared[1].values.data + down, 0, down);
        ((float *)c.source.shared[0].scales.data)[1] *= loud != 0 ? 100.0f : 0.01f;
        CHECK(moe_weights_pack(c.weights, 0, &c.source) == MOE_OK && layer_case_run(&c) == MOE_OK,
              "%s", moe_last_error());
        outputs[loud] = layer_case_outputs(&c);
        drop(&c, plan);
    }
    CHECK(outputs[0] != outputs[1], "shared experts do not share the scale of h");
}

// ---- packed x -----------------------------------------------------------------------------------

// An odd K of x as packed bytes: the weights say it. The half byte past it belongs to nothing.
static void test_odd_k(void)
{
    enum { ROWS = 3, N = 5, K = 33, BYTES = 17 };
    static uint8_t codes[ROWS * BYTES];
    static uint8_t scales[ROWS * 2];
    static float w[N * K];
    float want[ROWS * N] = {0};
    float have[ROWS * N] = {0};
    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    for (size_t i = 0; i < sizeof codes; i++) {
        codes[i] = (uint8_t)(i * 37 + 5);
        scales[i % sizeof scales] = (uint8_t)(126 + i % 3);
    }
    for (int i = 0; i < N * K; i++) {
        w[i] = 0.25f * (float)(i * 7 % 23 - 11);
    }
    a.struct_size = sizeof a;
    a.gemm.weight_format = MOE_FORMAT_F32;
    a.gemm.act.spec = MOE_QUANT_MX_FLOOR;
    a.weights.values = moe_tensor_3d(w, MOE_F32, 1, N, K);
    a.x = moe_tensor_2d(codes, MOE_E2M1, ROWS, K);
    a.x.stride[0] = 2 * BYTES;
    a.x_scales = moe_tensor_2d(scales, MOE_E8M0, ROWS, 2);
    a.y = moe_tensor_2d(want, MOE_F32, ROWS, N);
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s", moe_last_error());
    a.x = moe_tensor_2d(codes, MOE_U8, ROWS, BYTES);
    a.y = moe_tensor_2d(have, MOE_F32, ROWS, N);
    for (int r = 0; r < ROWS; r++) {
        codes[BYTES * r + BYTES - 1] ^= 0xF0;
    }
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_OK, "%s", moe_last_error());
    CHECK(memcmp(have, want, sizeof want) == 0 && want[0] != 0.0f,
          "bytes give other bits than codes");
    a.weights.values = moe_tensor_3d(w, MOE_F32, 1, N, K - 2);
    CHECK(moe_ggemm(ctx, &a, NULL) == MOE_E_SHAPE, "31 columns of weights, 17 bytes of x: %s",
          moe_last_error());
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    test_zeros();
    test_absent_slot();
    test_spanning_tokens();
    test_spanning_batches();
    test_spanning_shared();
    test_odd_k();
    moe_context_destroy(ctx);
    return test_summary();
}
