// SPDX-License-Identifier: Apache-2.0
// Routing: every rule of docs/routing.md by example.
#include "checkmoe/route_problem.h"
#include "float64/route.h"
#include "numerics/math.h"
#include "unit/test.h"

#define INF HUGE_VALF

static route_contexts ctx;

static float bits_float(uint32_t u)
{
    return moei_f32_from_bits(u);
}

// ---- Single tokens, by example ----------------------------------------------------------------

// Routes one token in both builds; ids must equal, weights agree to a millionth (NaN: anything).
static void expect_token(const char *what, moe_route_desc desc, int32_t experts, int32_t top_k,
                         const float *logits, const float *bias, const int32_t *ids,
                         const float *weights)
{
    problem p = {.desc = desc, .experts = experts, .top_k = top_k, .tokens = 1};
    problem_alloc(&p);
    memcpy(p.logits, logits, (size_t)p.rows * sizeof(float));
    p.desc.correction_bias = bias != NULL;
    if (bias != NULL) {
        memcpy(p.bias, bias, (size_t)(experts + desc.zero_experts) * sizeof(float));
    }
    const moe_context *const both[] = {ctx.ref, ctx.fma};
    for (int c = 0; c < 2; c++) {
        if (CHECK(problem_run(both[c], &p) == MOE_OK, "%s: %s", what, moe_last_error())) {
            for (int64_t j = 0; j < p.slots; j++) {
                CHECK(p.ids[j] == ids[j], "%s: slot %d: id %d, expected %d", what, (int)j,
                      (int)p.ids[j], (int)ids[j]);
                CHECK(weights[j] != weights[j] || fabs((double)p.weights[j] - (double)weights[j]) <=
                                                      1e-6 * fabs((double)weights[j]),
                      "%s: slot %d: weight %.9g, expected %.9g", what, (int)j, (double)p.weights[j],
                      (double)weights[j]);
            }
        }
    }
    problem_free(&p);
}

#define IDS(...)    ((const int32_t[]){__VA_ARGS__})
#define FLOATS(...) ((const float[]){__VA_ARGS__})

static void test_ties(void)
{
    const moe_route_desc softmax = route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_NONE);
    const moe_route_desc selected = route_desc(MOE_SCORING_SOFTMAX_SELECTED, MOE_RENORM_NONE);
    expect_token("all equal", softmax, 8, 3, FLOATS(2, 2, 2, 2, 2, 2, 2, 2), NULL, IDS(0, 1, 2),
                 FLOATS(.125f, .125f, .125f));
    expect_token("all equal, k = E", selected, 4, 4, FLOATS(-1, -1, -1, -1), NULL, IDS(0, 1, 2, 3),
                 FLOATS(.25f, .25f, .25f, .25f));
    expect_token("equal pairs", selected, 6, 4, FLOATS(1, 3, 1, 3, 1, 3), NULL, IDS(1, 3, 5, 0),
                 FLOATS(NAN, NAN, NAN, NAN));
    expect_token("-0 ties with +0", selected, 4, 2, FLOATS(-0.0f, 0, -0.0f, 0), NULL, IDS(0, 1),
                 FLOATS(.5f, .5f));
    expect_token("+0 first, then -0", selected, 4, 3, FLOATS(-1, 0, -0.0f, 0), NULL, IDS(1, 2, 3),
                 FLOATS(NAN, NAN, NAN));
    // Different logits whose scores are both exactly 1 tie too.
    expect_token("saturated sigmoid", route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE), 4, 2,
                 FLOATS(0, 30, 40, 35), NULL, IDS(1, 2), FLOATS(1, 1));
    // A key of score + bias may tie where scores do not.
    expect_token("tie by bias", route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE), 3, 1,
                 FLOATS(0, -INF, 0), FLOATS(0, 0.5f, 0), IDS(0), FLOATS(.5f));
    moe_route_desc d = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE);
    d.num_groups = 4;
    d.top_groups = 2;
    d.group_score = MOE_GROUP_SCORE_MAX;
    expect_token("equal groups", d, 8, 3, FLOATS(0, 1, 1, 0, 1, 0, 0, 1), NULL, IDS(1, 2, 0),
                 FLOATS(NAN, NAN, .5f));
}

static void test_selection_keys(void)
{
    moe_route_desc d = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE);
    // The bias selects and orders; weights are the scores without it.
    expect_token("bias only selects", d, 4, 2, FLOATS(2, 1, 0, -1), FLOATS(0, 0, 1, 2), IDS(3, 2),
                 FLOATS(0.26894142f, 0.5f));
    // A bias far above the scores must not cost their precision.
    expect_token("large bias", d, 4, 2, FLOATS(-20, -21, -22, -23), FLOATS(11, 35, 30, 12),
                 IDS(1, 2), FLOATS(7.582560e-10f, 2.789468e-10f));
    d.renormalise = MOE_RENORM_SUM;
    expect_token("large bias, renormalised", d, 4, 2, FLOATS(-20, -21, -22, -23),
                 FLOATS(11, 35, 30, 12), IDS(1, 2), FLOATS(0.73105858f, 0.26894142f));
    // The GPU kernels that start an arg-max from -1 fail where a bias drives every key below.
    d.renormalise = MOE_RENORM_NONE;
    expect_token("keys below -1", d, 3, 2, FLOATS(0, 1, 2), FLOATS(-5, -7, -6), IDS(0, 2),
                 FLOATS(.5f, 0.88079708f));
    d.select_on = MOE_SELECT_LOGITS;
    expect_token("select on logits, with bias", d, 3, 2, FLOATS(0, 1, 2), FLOATS(0, 1.5f, 0),
                 IDS(1, 2), FLOATS(0.73105858f, 0.88079708f));
    expect_token("softmax over all, selected on logits",
                 (moe_route_desc){.scoring = MOE_SCORING_SOFTMAX,
                                  .select_on = MOE_SELECT_LOGITS,
                                  .renormalise = MOE_RENORM_NONE},
                 3, 1, FLOATS(0, 1, 2), NULL, IDS(2), FLOATS(0.66524096f));
    expect_token("a NaN bias ranks as -inf", d, 3, 3, FLOATS(0, 1, 2), FLOATS(0, 0, NAN),
                 IDS(1, 0, 2), FLOATS(0.73105858f, .5f, 0.88079708f));
    expect_token("a bias of -inf is a mask", d, 3, 2, FLOATS(0, 1, 2), FLOATS(0, 0, -INF),
                 IDS(1, 0), FLOATS(0.73105858f, .5f));
    expect_token("E = 1", route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_NONE), 1, 1, FLOATS(-3), NULL,
                 IDS(0), FLOATS(1));
}

static void test_nonfinite(void)
{
    const float nan = bits_float(0x7FC00000u);
    const float negative_nan = bits_float(0xFFC12345u);
    const moe_route_desc all[] = {route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_NONE),
                                  route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_SUM)};
    for (int i = 0; i < 2; i++) {
        const moe_route_desc d = all[i];
        // Scores of a row with NaN or +inf, or all -inf, are NaN: 0, and the lowest ids.
        expect_token("softmax, NaN", d, 4, 2, FLOATS(1, nan, 3, 2), NULL, IDS(0, 1), FLOATS(0, 0));
        expect_token("softmax, -NaN", d, 4, 2, FLOATS(1, 2, 3, negative_nan), NULL, IDS(0, 1),
                     FLOATS(0, 0));
        expect_token("softmax, inf", d, 4, 2, FLOATS(1, 2, INF, 2), NULL, IDS(0, 1), FLOATS(0, 0));
        expect_token("softmax, all -inf", d, 4, 3, FLOATS(-INF, -INF, -INF, -INF), NULL,
                     IDS(0, 1, 2), FLOATS(0, 0, 0));
        expect_token("softmax, mask", d, 4, 3, FLOATS(-INF, 1, -INF, 1), NULL, IDS(1, 3, 0),
                     FLOATS(.5f, .5f, 0));
    }
    const moe_route_desc sigmoid = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE);
    expect_token("sigmoid", sigmoid, 4, 4, FLOATS(nan, INF, -INF, 0), NULL, IDS(1, 3, 0, 2),
                 FLOATS(1, .5f, 0, 0));
    const moe_route_desc root = route_desc(MOE_SCORING_SQRTSOFTPLUS, MOE_RENORM_NONE);
    expect_token("sqrtsoftplus", root, 4, 4, FLOATS(nan, INF, -INF, 0), NULL, IDS(3, 0, 1, 2),
                 FLOATS(0.83255461f, 0, 0, 0));
    const moe_route_desc selected = route_desc(MOE_SCORING_SOFTMAX_SELECTED, MOE_RENORM_NONE);
    expect_token("-inf is a mask", selected, 5, 3, FLOATS(-INF, 0, -INF, 0, -INF), NULL,
                 IDS(1, 3, 0), FLOATS(.5f, .5f, 0));
    expect_token("NaN ranks as -inf", selected, 5, 4, FLOATS(nan, 0, -INF, 1, negative_nan), NULL,
                 IDS(3, 1, 0, 2), FLOATS(0.73105858f, 0.26894142f, 0, 0));
    expect_token("NaN not chosen harms nothing", selected, 3, 2, FLOATS(0, nan, 0), NULL, IDS(0, 2),
                 FLOATS(.5f, .5f));
    expect_token("+inf is kept", selected, 3, 2, FLOATS(0, 1, INF), NULL, IDS(2, 1), FLOATS(0, 0));
    expect_token("+inf, sigmoid", route_desc(MOE_SCORING_SIGMOID_SELECTED, MOE_RENORM_NONE), 3, 2,
                 FLOATS(0, INF, nan), NULL, IDS(1, 0), FLOATS(1, .5f));
    expect_token("NaN, sigmoid", route_desc(MOE_SCORING_SIGMOID_SELECTED, MOE_RENORM_NONE), 3, 3,
                 FLOATS(0, INF, nan), NULL, IDS(1, 0, 2), FLOATS(1, .5f, 0));
    expect_token("all -inf, selected", selected, 3, 2, FLOATS(-INF, -INF, -INF), NULL, IDS(0, 1),
                 FLOATS(0, 0));
    const moe_route_desc mixer = route_desc(MOE_SCORING_SPARSEMIXER, MOE_RENORM_NONE);
    expect_token("sparsemixer, all -inf", mixer, 3, 2, FLOATS(-INF, -INF, -INF), NULL, IDS(0, 1),
                 FLOATS(0, 0));
    expect_token("sparsemixer, one finite", mixer, 3, 2, FLOATS(-INF, -INF, 1), NULL, IDS(2, 0),
                 FLOATS(1, 0));
    expect_token("sparsemixer, NaN", mixer, 3, 2, FLOATS(nan, 2, 1), NULL, IDS(1, 2), FLOATS(1, 1));
    expect_token("sparsemixer, inf", mixer, 3, 2, FLOATS(1, INF, -INF), NULL, IDS(1, 0),
                 FLOATS(0, 1));
}

static void test_groups(void)
{
    const float nan = bits_float(0x7FC00000u);
    moe_route_desc d = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM);
    d.num_groups = 3;
    d.top_groups = 1;
    d.group_score = MOE_GROUP_SCORE_MAX;
    d.scale = 2.0f;
    // max picks group 0 (it has the 3), the sum of two picks group 2
    expect_token("max", d, 6, 2, FLOATS(3, -3, 1, 1, 2, 2), NULL, IDS(0, 1),
                 FLOATS(1.9051483f, 0.0948517f));
    d.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    expect_token("sum of two", d, 6, 2, FLOATS(3, -3, 1, 1, 2, 2), NULL, IDS(4, 5), FLOATS(1, 1));
    // Groups are scored by keys, bias included.
    expect_token("bias moves a group", d, 6, 2, FLOATS(3, -3, 1, 1, 2, 2), FLOATS(0, 0, 1, 1, 0, 0),
                 IDS(2, 3), FLOATS(1, 1));
    // Dropped groups: -inf, or 0 where keys may be below.
    d.top_groups = 2;
    d.renormalise = MOE_RENORM_NONE;
    d.scale = 0.0f;
    const float *low = FLOATS(0, 0, -1, -1, -2, -2);
    expect_token("mask -inf", d, 6, 4, FLOATS(0, 0, 0, 0, 0, 0), low, IDS(0, 1, 2, 3),
                 FLOATS(.5f, .5f, .5f, .5f));
    d.group_mask_zero = 1;
    expect_token("mask 0", d, 6, 4, FLOATS(0, 0, 0, 0, 0, 0), low, IDS(0, 1, 4, 5),
                 FLOATS(.5f, .5f, .5f, .5f));
    // .. but a logit that is not finite stays -inf, in a dropped group too.
    expect_token("mask 0, not over a mask", d, 6, 4, FLOATS(0, 0, 0, 0, -INF, 0), low,
                 IDS(0, 1, 5, 2), FLOATS(.5f, .5f, .5f, .5f));
    d.group_mask_zero = 0;
    // An expert whose logit is not finite has key -inf, and score 0.
    d.group_score = MOE_GROUP_SCORE_MAX;
    expect_token("inf is no key", d, 6, 3, FLOATS(INF, 0, 1, nan, -INF, -1), NULL, IDS(2, 1, 0),
                 FLOATS(0.73105858f, .5f, 0));
    // The last kept group has nothing to choose: ids 0 .. k-1 with 1/k, neither scaled nor divided.
    d.scale = 2.5f;
    d.renormalise = MOE_RENORM_SUM;
    expect_token("too few groups", d, 6, 3, FLOATS(nan, -INF, 5, 4, -INF, INF), NULL, IDS(0, 1, 2),
                 FLOATS(0.33333334f, 0.33333334f, 0.33333334f));
    d.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    expect_token("too few pairs", d, 6, 4, FLOATS(1, 2, 5, nan, -INF, 3), NULL, IDS(0, 1, 2, 3),
                 FLOATS(.25f, .25f, .25f, .25f));
    expect_token("pairs enough", d, 6, 4, FLOATS(1, 2, 5, nan, 0, 3), NULL, IDS(5, 1, 0, 4),
                 FLOATS(NAN, NAN, NAN, NAN));
    // One group is no grouping: +inf stays.
    d = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE);
    d.num_groups = 1;
    d.top_groups = 1;
    d.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    expect_token("one group", d, 3, 1, FLOATS(0, INF, 1), NULL, IDS(1), FLOATS(1));
}

static void test_normalisation(void)
{
    moe_route_desc d = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM);
    expect_token("sum", d, 3, 2, FLOATS(0, -INF, 0), NULL, IDS(0, 2), FLOATS(.5f, .5f));
    d.renorm_eps = 1.0f;
    expect_token("sum + eps", d, 3, 2, FLOATS(0, -INF, 0), NULL, IDS(0, 2), FLOATS(.25f, .25f));
    d.renormalise = MOE_RENORM_CLAMPED;
    expect_token("clamp below", d, 3, 2, FLOATS(0, -INF, 0), NULL, IDS(0, 2), FLOATS(.5f, .5f));
    d.renorm_eps = 4.0f;
    expect_token("clamped", d, 3, 2, FLOATS(0, -INF, 0), NULL, IDS(0, 2), FLOATS(.125f, .125f));
    d.renorm_eps = 0.0f;
    for (d.renormalise = MOE_RENORM_SUM; d.renormalise <= MOE_RENORM_CLAMPED; d.renormalise++) {
        expect_token("nothing to divide by", d, 3, 2, FLOATS(-INF, -INF, -INF), NULL, IDS(0, 1),
                     FLOATS(0, 0));
    }
    // k = 1: exactly 1, whatever the score; and the scale exactly once, after the division.
    for (int i = 0; i < 200; i++) {
        problem p = {
            .desc = route_desc(i % 2 ? MOE_SCORING_SIGMOID : MOE_SCORING_SOFTMAX, MOE_RENORM_SUM),
            .experts = 7,
            .top_k = 1,
            .tokens = 1};
        moec_rng r = {(uint64_t)i};
        p.desc.scale = i % 4 < 2 ? 0.0f : 2.4460001f;
        problem_alloc(&p);
        problem_fill(&p, &r, 3.0f);
        CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
        const float expected = i % 4 < 2 ? 1.0f : 2.4460001f;
        CHECK(p.weights[0] == expected, "k = 1, renormalised: %.9g, not %.9g", (double)p.weights[0],
              (double)expected);
        problem_free(&p);
    }
    // Scaled weights are the unscaled ones times the factors, to the bit, in this order.
    problem p = {.desc = route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_SUM),
                 .experts = 24,
                 .top_k = 6,
                 .tokens = 11};
    moec_rng r = {77};
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    float plain[11 * 6];
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    memcpy(plain, p.weights, sizeof plain);
    p.desc.scale = 1.7f;
    p.desc.scale_tensor = 1;
    p.scale_tensor = 0.3f;
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < 66; i++) {
        CHECK(p.weights[i] == plain[i] * 1.7f * 0.3f, "scaled: %.9g of %.9g", (double)p.weights[i],
              (double)plain[i]);
    }
    problem_free(&p);
}

static void test_sparsemixer(void)
{
    moe_route_desc d = route_desc(MOE_SCORING_SPARSEMIXER, MOE_RENORM_NONE);
    d.jitter_eps = 0.01f;
    // First: within 2 % of 10 are 10 and 9.9. Second: without expert 1, within 2 % of 9.9 is 9.8.
    expect_token("band", d, 4, 2, FLOATS(9.9f, 10, 9.75f, 1), NULL, IDS(1, 0),
                 FLOATS(0.52497919f, 0.53742983f));
    // The relative distance is to the larger of |l| and the maximum: -10 is far from 10.
    expect_token("negative", d, 3, 2, FLOATS(-10, 10, -10.1f), NULL, IDS(1, 0),
                 FLOATS(1, 0.52497919f));
    expect_token("equal logits", d, 3, 2, FLOATS(4, 4, 4), NULL, IDS(0, 1),
                 FLOATS(0.33333334f, .5f));
    d.jitter_eps = 0.0f;
    expect_token("no band", d, 3, 2, FLOATS(4, 4.00001f, 3), NULL, IDS(1, 0), FLOATS(1, 1));
    expect_token("zeros", d, 3, 2, FLOATS(0, 0, -1), NULL, IDS(0, 1), FLOATS(.5f, 1));
}

static void test_further_rows(void)
{
    moe_route_desc d = route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_NONE);
    d.zero_experts = 2;
    d.scale = 2.0f;
    expect_token("zero experts", d, 2, 3, FLOATS(1, 0, 0, 1), NULL, IDS(0, 3, 1),
                 FLOATS(0.73105858f, 0.73105858f, 0.26894142f));
    d = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE);
    d.append_shared = 2;
    d.zero_experts = 1;
    d.scale = 4.0f;
    expect_token("appended shared experts", d, 3, 1, FLOATS(0, -1, -1, -1), NULL, IDS(0, 4, 5),
                 FLOATS(2, 1, 1));
    // Router-weighted shared experts: their rows are last, they are not selected.
    problem p = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM),
                 .experts = 3,
                 .top_k = 2,
                 .tokens = 1};
    p.desc.shared_scores = 2;
    p.desc.scale = 2.0f;
    problem_alloc(&p);
    memcpy(p.logits, FLOATS(0, -INF, 0, 0, INF), 5 * sizeof(float));
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    CHECK(p.ids[0] == 0 && p.ids[1] == 2, "shared rows were selected: %d %d", (int)p.ids[0],
          (int)p.ids[1]);
    CHECK(p.weights[0] == 1.0f && p.weights[1] == 1.0f, "weights %g %g", (double)p.weights[0],
          (double)p.weights[1]);
    CHECK(p.shared[0] == 1.0f && p.shared[1] == 2.0f, "shared weights %g %g: scaled only",
          (double)p.shared[0], (double)p.shared[1]);
    p.desc.renorm_shared = 1;
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    CHECK(p.weights[0] == 0.4f && p.shared[0] == 0.4f && p.shared[1] == 0.8f,
          "joined sum: %g %g %g", (double)p.weights[0], (double)p.shared[0], (double)p.shared[1]);
    problem_free(&p);
    // A gate per token for the appended experts.
    problem q = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM),
                 .experts = 4,
                 .top_k = 2,
                 .tokens = 3};
    moec_rng r = {9};
    float gate[6] = {0.5f, 0.25f, 1.5f, -2.0f, 0.0f, 3.0f};
    q.desc.append_shared = 2;
    problem_alloc(&q);
    problem_fill(&q, &r, 1.0f);
    moe_route_args a = problem_args(&q);
    a.shared_gate = moe_tensor_2d(gate, MOE_F32, 3, 2);
    CHECK(moe_route(ctx.ref, &a, NULL) == MOE_OK, "%s", moe_last_error());
    for (int t = 0; t < 3; t++) {
        CHECK(q.ids[t * 4 + 2] == 4 && q.ids[t * 4 + 3] == 5, "appended ids of token %d", t);
        CHECK(q.weights[t * 4 + 2] == gate[t * 2] && q.weights[t * 4 + 3] == gate[t * 2 + 1],
              "gate of token %d", t);
    }
    problem_free(&q);
}

static void test_hash(void)
{
    problem p = {.desc = route_desc(MOE_SCORING_SQRTSOFTPLUS, MOE_RENORM_SUM),
                 .experts = 6,
                 .top_k = 3,
                 .tokens = 7};
    moec_rng r = {21};
    p.desc.hash_table = 1;
    p.desc.scale = 1.5f;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    const int32_t tokens[7] = {0, 1, -1, 50, 2147483647, -2147483647 - 1, 2};
    memcpy(p.token_ids, tokens, sizeof tokens);
    const int32_t table[9] = {5, 0, 2, /**/ -3, 6, 3, /**/ 4, 4, 1};
    memcpy(p.hash_table, table, sizeof table);
    CHECK(problem_run(ctx.fma, &p) == MOE_OK, "%s", moe_last_error());
    for (int t = 0; t < 7; t++) {
        const bool known = tokens[t] >= 0 && tokens[t] < 50;
        float sum = 0.0f;
        float score[3] = {0};
        for (int j = 0; j < 3; j++) {
            const int32_t named = known ? table[tokens[t] * 3 + j] : -1;
            const int32_t expected = named >= 0 && named < 6 ? named : -1;
            CHECK(p.ids[t * 3 + j] == expected, "token %d slot %d: id %d, expected %d", t, j,
                  (int)p.ids[t * 3 + j], (int)expected);
            if (expected >= 0) {
                score[j] = moei_sqrtf(moei_softplusf(p.logits[t * 6 + expected]));
                sum += score[j];
            }
        }
        for (int j = 0; j < 3; j++) {
            const float w = sum > 0.0f ? score[j] / sum * 1.5f : 0.0f;
            CHECK(p.weights[t * 3 + j] == w, "token %d slot %d: weight %.9g, expected %.9g", t, j,
                  (double)p.weights[t * 3 + j], (double)w);
        }
    }
    // The same with int64, including values beyond int32.
    int64_t wide_table[150];
    int64_t wide_tokens[7] = {0, 1, -1, 50, INT64_MAX, INT64_MIN, 2};
    int64_t wide_ids[21];
    float weights[21];
    for (int i = 0; i < 150; i++) {
        wide_table[i] = p.hash_table[i];
    }
    wide_table[4] = (int64_t)1 << 32; // its low half names expert 0
    moe_route_args a = problem_args(&p);
    a.hash_table = moe_tensor_2d(wide_table, MOE_I64, 50, 3);
    a.token_ids = moe_tensor_1d(wide_tokens, MOE_I64, 7);
    a.ids = moe_tensor_2d(wide_ids, MOE_I64, 7, 3);
    a.weights = moe_tensor_2d(weights, MOE_F32, 7, 3);
    CHECK(moe_route(ctx.ref, &a, NULL) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < 21; i++) {
        CHECK(wide_ids[i] == p.ids[i] && weights[i] == p.weights[i], "int64 slot %d: %lld", i,
              (long long)wide_ids[i]);
    }
    // Softmax over what the table names.
    p.desc.scoring = MOE_SCORING_SOFTMAX_SELECTED;
    p.desc.renormalise = MOE_RENORM_NONE;
    p.desc.scale = 0.0f;
    memcpy(p.logits, FLOATS(1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6), 12 * sizeof(float));
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    CHECK(p.weights[3] == 0.0f && p.weights[4] == 0.0f && p.weights[5] == 1.0f,
          "absent slots joined the softmax: %g %g %g", (double)p.weights[3], (double)p.weights[4],
          (double)p.weights[5]);
    problem_free(&p);
}

// ---- Mapping ----------------------------------------------------------------------------------

static void test_expert_map(void)
{
    problem p = {.desc = route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_SUM),
                 .experts = 13,
                 .top_k = 4,
                 .tokens = 50};
    moec_rng r = {31};
    p.desc.zero_experts = 3;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    int32_t *map = problem_array(13, sizeof(int32_t)); // exactly E: a sanitizer sees any other use
    for (int32_t e = 0; e < 13; e++) {
        map[e] = e % 3 == 0 ? e / 3 : e == 7 ? 1000000 : e == 8 ? -7 : -1;
    }
    int64_t ids[200];
    float weights[200];
    moe_route_args a = problem_args(&p);
    a.expert_map = moe_tensor_1d(map, MOE_I32, 13);
    a.ids = moe_tensor_2d(ids, MOE_I64, 50, 4);
    a.weights = moe_tensor_2d(weights, MOE_F32, 50, 4);
    CHECK(moe_route(ctx.threads, &a, NULL) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < 200; i++) {
        const int32_t id = p.ids[i];
        const int64_t expected = id >= 13 ? id : id % 3 == 0 ? id / 3 : -1;
        CHECK(ids[i] == expected, "id %d maps to %lld, expected %lld", (int)id, (long long)ids[i],
              (long long)expected);
        CHECK(weights[i] == p.weights[i], "mapping changed a weight");
    }
    free(map);
    problem_free(&p);
}

static void test_replicas(void)
{
    problem p = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE),
                 .experts = 6,
                 .top_k = 3,
                 .tokens = 400};
    moec_rng r = {41};
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    // 9 physical experts; bad entries: a count of 0, one past the slots, an id out of range.
    int32_t table[18] = {0,      6,  7,  /**/ 1, 8,  -1, /**/ 2, -1, -1, /**/ 3, -1, -1,
                         /**/ 4, -1, -1, /**/ 9, -1, -1};
    int32_t count[6] = {3, 2, 1, 0, 4, 1};
    int32_t map[9] = {-1, 0, 1, 2, 3, 4, 5, -1, 6};
    int32_t load[9] = {100, 0, 0, 0, 0, 0, 0, 0, 0};
    int32_t ids[1200] = {0};
    int32_t num_valid = 377;
    moe_route_args a = problem_args(&p);
    a.replica_table = moe_tensor_2d(table, MOE_I32, 6, 3);
    a.replica_count = moe_tensor_1d(count, MOE_I32, 6);
    a.load = moe_tensor_1d(load, MOE_I32, 9);
    a.num_valid = moe_tensor_1d(&num_valid, MOE_I32, 1);
    a.ids = moe_tensor_2d(ids, MOE_I32, 400, 3);
    float weights[1200];
    a.weights = moe_tensor_2d(weights, MOE_F32, 400, 3);
    for (int mapped = 0; mapped < 2; mapped++) {
        int32_t expected_load[9];
        memcpy(expected_load, load, sizeof load);
        a.expert_map = mapped ? moe_tensor_1d(map, MOE_I32, 9) : (moe_tensor){.data = NULL};
        CHECK(moe_route(ctx.threads, &a, NULL) == MOE_OK, "%s", moe_last_error());
        for (int64_t i = 0; i < 1200; i++) {
            const bool valid = i / 3 < num_valid;
            int32_t id = valid ? float64_replica(table, 3, 3, count, i / 3, p.ids[i]) : -1;
            id = id >= 0 && id < 9 ? id : -1;
            expected_load[id >= 0 ? id : 0] += id >= 0;
            id = mapped && id >= 0 ? map[id] : id;
            CHECK(ids[i] == id, "slot %d: physical id %d, expected %d", (int)i, (int)ids[i],
                  (int)id);
            CHECK(weights[i] == (valid ? p.weights[i] : 0.0f), "slot %d: weight %g", (int)i,
                  (double)weights[i]);
        }
        for (int i = 0; i < 9; i++) {
            CHECK(load[i] == expected_load[i], "load of %d: %d, expected %d", i, (int)load[i],
                  (int)expected_load[i]);
        }
    }
    problem_free(&p);
    // Spread over the replicas of one hot expert: max over mean below 1.15.
    for (int32_t replicas = 2; replicas <= 8; replicas++) {
        problem q = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE),
                     .experts = 1,
                     .top_k = 1,
                     .tokens = 8192};
        int32_t row[8] = {0, 1, 2, 3, 4, 5, 6, 7};
        int32_t spread[8] = {0};
        int32_t most = 0;
        problem_alloc(&q);
        moe_route_args b = problem_args(&q);
        b.replica_table = moe_tensor_2d(row, MOE_I32, 1, replicas);
        b.replica_count = moe_tensor_1d(&replicas, MOE_I32, 1);
        b.load = moe_tensor_1d(spread, MOE_I32, 8);
        CHECK(moe_route(ctx.threads, &b, NULL) == MOE_OK, "%s", moe_last_error());
        for (int i = 0; i < replicas; i++) {
            most = spread[i] > most ? spread[i] : most;
        }
        CHECK((double)most * replicas / 8192 < 1.15, "%d replicas: the busiest gets %d of 8192",
              (int)replicas, (int)most);
        problem_free(&q);
    }
}

static void test_num_valid(void)
{
    const int32_t limits[] = {-5, 0, 1, 8, 9, 16, 17, 1000};
    problem p = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM),
                 .experts = 12,
                 .top_k = 3,
                 .tokens = 17};
    moec_rng r = {51};
    p.desc.append_shared = 1;
    p.desc.shared_scores = 1;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        problem q = problem_beside(&p);
        memset(q.ids, 0x5A, 17 * 4 * 4);
        memset(q.weights, 0x5A, 17 * 4 * 4);
        memset(q.shared, 0x5A, 17 * 4);
        moe_route_args a = problem_args(&q);
        int32_t load[12] = {0};
        int32_t total = 0;
        a.num_valid = moe_tensor_1d(&limits[i], MOE_I32, 1);
        a.load = moe_tensor_1d(load, MOE_I32, 12);
        CHECK(moe_route(ctx.threads, &a, NULL) == MOE_OK, "%s", moe_last_error());
        for (int s = 0; s < 17 * 4; s++) {
            const bool valid = s / 4 < limits[i];
            CHECK(q.ids[s] == (valid ? p.ids[s] : -1) &&
                      q.weights[s] == (valid ? p.weights[s] : 0.0f) &&
                      q.shared[s / 4] == (valid ? p.shared[s / 4] : 0.0f),
                  "num_valid %d, slot %d: id %d weight %g", (int)limits[i], s, (int)q.ids[s],
                  (double)q.weights[s]);
        }
        for (int e = 0; e < 12; e++) {
            total += load[e];
        }
        const int32_t valid = limits[i] < 0 ? 0 : limits[i] > 17 ? 17 : limits[i];
        CHECK(total == 3 * valid, "num_valid %d: %d slots counted", (int)limits[i], (int)total);
        problem_free_outputs(&q);
    }
    problem_free(&p);
}

int main(void)
{
    if (CHECK(route_contexts_make(&ctx), "no context: %s", moe_last_error())) {
        test_ties();
        test_selection_keys();
        test_nonfinite();
        test_groups();
        test_normalisation();
        test_sparsemixer();
        test_further_rows();
        test_hash();
        test_expert_map();
        test_replicas();
        test_num_valid();
    }
    route_contexts_destroy(&ctx);
    return test_summary();
}
