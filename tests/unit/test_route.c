// SPDX-License-Identifier: Apache-2.0
// Routing: every rule of docs/routing.md by example, random problems against the float64 statement,
// and bit equality over builds, threads, batches, dtypes and strides.
#include "float64/route.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "numerics/math.h"
#include "unit/route_problem.h"
#include "unit/test.h"

#define INF HUGE_VALF

static moe_context *ctx_ref;     // baseline, 1 thread
static moe_context *ctx_fma;     // with FMA where the machine has it, 2 threads
static moe_context *ctx_threads; // 7 threads

static float bits_float(uint32_t u)
{
    return moei_f32_from_bits(u);
}

static bool same_bits(const void *a, const void *b, int64_t n, size_t size)
{
    return n <= 0 || memcmp(a, b, (size_t)n * size) == 0;
}

// ---- Random problems against float64 ----------------------------------------------------------

static long exact_tokens;
static long close_tokens; // margin too small for f32 to decide

static float64_route f64;

static void check_token(const problem *p, int64_t t, const char *what)
{
    const float *logits = p->logits + t * p->rows;
    int64_t row[64];
    f64.desc = &p->desc;
    f64.num_experts = p->experts;
    f64.top_k = p->top_k;
    f64.logits = logits;
    f64.bias = p->desc.correction_bias ? p->bias : NULL;
    f64.scale_tensor = (double)p->scale_tensor;
    f64.hash = NULL;
    if (p->desc.hash_table && p->token_ids[t] >= 0 && p->token_ids[t] < p->vocabulary) {
        for (int32_t j = 0; j < p->top_k; j++) {
            row[j] = p->hash_table[p->token_ids[t] * p->top_k + j];
        }
        f64.hash = row;
    }
    float64_route_token(&f64);
    const int32_t *ids = p->ids + t * p->slots;
    const float *weights = p->weights + t * p->slots;
    if (f64.margin < FLOAT64_ROUTE_MARGIN) {
        close_tokens++;
        return;
    }
    exact_tokens++;
    for (int32_t j = 0; j < p->top_k; j++) {
        if (!CHECK(ids[j] == f64.ids[j], "%s: token %d slot %d: id %d, float64 says %d", what,
                   (int)t, (int)j, (int)ids[j], (int)f64.ids[j])) {
            return;
        }
        CHECK(fabs((double)weights[j] - f64.weights[j]) <= f64.bounds[j],
              "%s: token %d slot %d: weight %.9g, float64 %.9g +- %.2g", what, (int)t, (int)j,
              (double)weights[j], f64.weights[j], f64.bounds[j]);
    }
    for (int32_t i = 0; i < p->desc.shared_scores; i++) {
        const float w = p->shared[t * p->desc.shared_scores + i];
        CHECK(fabs((double)w - f64.shared[i]) <= f64.shared_bounds[i],
              "%s: token %d shared %d: weight %.9g, float64 %.9g +- %.2g", what, (int)t, (int)i,
              (double)w, f64.shared[i], f64.shared_bounds[i]);
    }
}

// Runs one random problem everywhere: float64, and bit equality of builds and thread counts.
static void check_problem(problem *p, uint64_t seed, float spread, const char *what)
{
    rng r = {seed};
    problem_alloc(p);
    problem_fill(p, &r, spread);
    const moe_status s = problem_run(ctx_ref, p);
    if (CHECK(s == MOE_OK, "%s: %s (%s)", what, moe_status_name(s), moe_last_error())) {
        for (int64_t t = 0; t < p->tokens; t++) {
            check_token(p, t, what);
        }
        problem q = *p;
        const moe_context *const others[] = {ctx_fma, ctx_threads};
        for (int i = 0; i < 2; i++) {
            q.ids = problem_array(p->tokens * p->slots, sizeof(int32_t));
            q.weights = problem_array(p->tokens * p->slots, sizeof(float));
            q.shared = problem_array(p->tokens * p->desc.shared_scores, sizeof(float));
            CHECK(problem_run(others[i], &q) == MOE_OK, "%s: %s", what, moe_last_error());
            CHECK(same_bits(p->ids, q.ids, p->tokens * p->slots, 4) &&
                      same_bits(p->weights, q.weights, p->tokens * p->slots, 4) &&
                      same_bits(p->shared, q.shared, p->tokens * p->desc.shared_scores, 4),
                  "%s: context %d gives other bits", what, i);
            free(q.ids);
            free(q.weights);
            free(q.shared);
        }
    }
    problem_free(p);
}

static void test_random(void)
{
    static const struct {
        int32_t experts, top_k;
    } shapes[] = {{1, 1},   {2, 1},    {2, 2},    {3, 2},    {8, 2},     {16, 4},   {31, 5},
                  {32, 4},  {33, 33},  {60, 4},   {64, 6},   {128, 8},   {160, 6},  {256, 8},
                  {384, 8}, {512, 10}, {512, 22}, {1000, 7}, {1024, 22}, {2048, 6}, {4096, 8}};
    static const int64_t tokens[] = {0, 1, 7, 33};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (moe_scoring scoring = MOE_SCORING_SOFTMAX; scoring <= MOE_SCORING_SIGMOID_SELECTED;
             scoring++) {
            for (int variant = 0; variant < 6; variant++) {
                problem p = {.desc = route_desc(scoring, variant % 3 + 1),
                             .experts = shapes[i].experts,
                             .top_k = shapes[i].top_k,
                             .tokens = tokens[(variant + (int)i) % 4]};
                char what[96];
                p.desc.correction_bias = variant % 2;
                p.desc.scale_tensor = variant == 4;
                p.desc.scale = variant == 3 ? 2.5f : 0.0f;
                p.desc.renorm_eps = p.desc.renormalise == MOE_RENORM_NONE ? 0.0f
                                    : variant >= 3                        ? 0.125f
                                                                          : 1e-20f;
                if (variant == 5 && scoring <= MOE_SCORING_SQRTSOFTPLUS) {
                    p.desc.select_on = MOE_SELECT_LOGITS;
                }
                (void)snprintf(what, sizeof what, "scoring %d E %d k %d variant %d", (int)scoring,
                               (int)p.experts, (int)p.top_k, variant);
                check_problem(&p, seed++, variant == 2 ? 8.0f : 1.5f, what);
            }
        }
    }
    // Rows that most models lack.
    for (int variant = 0; variant < 24; variant++) {
        problem p = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM),
                     .experts = 20 + variant,
                     .top_k = 5,
                     .tokens = 9};
        char what[64];
        (void)snprintf(what, sizeof what, "further rows, variant %d", variant);
        p.desc.shared_scores = variant % 4;
        p.desc.renorm_shared = variant % 4 > 1;
        p.desc.scale = 1.5f;
        p.desc.hash_table = variant % 3 == 2;
        p.desc.zero_experts = variant % 5;
        p.desc.scoring = variant % 4 == 0   ? MOE_SCORING_SOFTMAX
                         : variant % 4 == 1 ? MOE_SCORING_SQRTSOFTPLUS
                         : variant % 4 == 2 ? MOE_SCORING_SIGMOID
                                            : MOE_SCORING_SIGMOID_SELECTED;
        check_problem(&p, seed++, 1.5f, what);
    }
    // Every selected expert must be one whose key nothing outside beats: k = E, all of 4096.
    problem all = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE),
                   .experts = 4096,
                   .top_k = 4096,
                   .tokens = 3};
    rng r = {seed};
    problem_alloc(&all);
    problem_fill(&all, &r, 2.0f);
    CHECK(problem_run(ctx_fma, &all) == MOE_OK, "%s", moe_last_error());
    for (int64_t i = 0; i < all.tokens * 4096; i++) {
        const bool first = i % 4096 == 0;
        CHECK(first || all.weights[i] < all.weights[i - 1] ||
                  (all.weights[i] == all.weights[i - 1] && all.ids[i] > all.ids[i - 1]),
              "k = E = 4096: slot %d out of order", (int)(i % 4096));
    }
    CHECK(moe_routing_validate(&(moe_tensor){.data = all.ids,
                                             .dtype = MOE_I32,
                                             .ndim = 2,
                                             .shape = {3, 4096},
                                             .stride = {4096, 1}},
                               NULL, 4096, 0.0f, 0.0f) == MOE_OK,
          "k = E = 4096: %s", moe_last_error());
    problem_free(&all);
    CHECK(close_tokens * 20 < exact_tokens, "%ld of %ld tokens were too close to decide",
          close_tokens, exact_tokens);
}

static void test_random_groups(void)
{
    static const struct {
        int32_t experts, groups, top_groups, top_k;
    } shapes[] = {{64, 8, 4, 6}, {32, 4, 2, 2}, {32, 4, 2, 6},     {256, 8, 4, 8}, {16, 2, 1, 4},
                  {60, 6, 6, 4}, {8, 8, 2, 2},  {1024, 16, 4, 22}, {96, 3, 1, 32}};
    uint64_t seed = 1000;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int variant = 0; variant < 16; variant++) {
            problem p = {.desc = route_desc(variant & 1 ? MOE_SCORING_SIGMOID : MOE_SCORING_SOFTMAX,
                                            variant & 2 ? MOE_RENORM_SUM : MOE_RENORM_NONE),
                         .experts = shapes[i].experts,
                         .top_k = shapes[i].top_k,
                         .tokens = 21};
            char what[96];
            p.desc.num_groups = shapes[i].groups;
            p.desc.top_groups = shapes[i].top_groups;
            p.desc.group_score = variant & 4 && shapes[i].experts > shapes[i].groups
                                     ? MOE_GROUP_SCORE_TOP2_SUM
                                     : MOE_GROUP_SCORE_MAX;
            p.desc.correction_bias = variant & 4 ? 1 : 0;
            p.desc.group_mask_zero = variant & 8 ? 1 : 0;
            p.desc.scale = 1.1f;
            (void)snprintf(what, sizeof what, "groups %d of %d, E %d k %d variant %d",
                           (int)p.desc.top_groups, (int)p.desc.num_groups, (int)p.experts,
                           (int)p.top_k, variant);
            check_problem(&p, seed++, 1.0f, what);
        }
    }
}

static void test_random_sparsemixer(void)
{
    for (int variant = 0; variant < 12; variant++) {
        problem p = {.desc = route_desc(MOE_SCORING_SPARSEMIXER, MOE_RENORM_NONE),
                     .experts = variant == 0 ? 2 : 5 + 11 * variant,
                     .top_k = 2,
                     .tokens = 40};
        char what[64];
        p.desc.jitter_eps = variant % 3 == 0 ? 0.01f : variant % 3 == 1 ? 0.3f : 0.0f;
        p.desc.scale = variant == 5 ? 3.0f : 0.0f;
        (void)snprintf(what, sizeof what, "sparsemixer, E %d, eps %g", (int)p.experts,
                       (double)p.desc.jitter_eps);
        check_problem(&p, 3000 + (uint64_t)variant, 2.0f, what);
    }
}

// ---- Single tokens, by example ----------------------------------------------------------------

// Routes one token in both builds; ids must equal, weights lie within 1e-6 (NaN: anything).
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
    const moe_context *const both[] = {ctx_ref, ctx_fma};
    for (int c = 0; c < 2; c++) {
        if (CHECK(problem_run(both[c], &p) == MOE_OK, "%s: %s", what, moe_last_error())) {
            for (int64_t j = 0; j < p.slots; j++) {
                CHECK(p.ids[j] == ids[j], "%s: slot %d: id %d, expected %d", what, (int)j,
                      (int)p.ids[j], (int)ids[j]);
                CHECK(weights[j] != weights[j] ||
                          fabs((double)p.weights[j] - (double)weights[j]) <= 1e-6,
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
    expect_token("mask 0, not over a mask", d, 6, 5, FLOATS(0, 0, 0, 0, -INF, 0), low,
                 IDS(0, 1, 5, 2, 3), FLOATS(.5f, .5f, .5f, .5f, .5f));
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
        rng r = {(uint64_t)i};
        p.desc.scale = i % 4 < 2 ? 0.0f : 2.4460001f;
        problem_alloc(&p);
        problem_fill(&p, &r, 3.0f);
        CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
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
    rng r = {77};
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    float plain[11 * 6];
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    memcpy(plain, p.weights, sizeof plain);
    p.desc.scale = 1.7f;
    p.desc.scale_tensor = 1;
    p.scale_tensor = 0.3f;
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < 66; i++) {
        CHECK(p.weights[i] == plain[i] * 1.7f * 0.3f, "scaled: %.9g of %.9g", (double)p.weights[i],
              (double)plain[i]);
    }
    problem_free(&p);
}

// The order of summation, written out: 32 partial sums, then halves; slots in order.
static void test_order_of_sums(void)
{
    static const int32_t experts[] = {1, 5, 31, 32, 33, 64, 100, 256, 1000, 4096};
    for (size_t i = 0; i < sizeof experts / sizeof experts[0]; i++) {
        const int32_t n = experts[i];
        const int32_t k = n < 9 ? n : 9;
        problem p = {.desc = route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_NONE),
                     .experts = n,
                     .top_k = k,
                     .tokens = 4};
        rng r = {500 + i};
        problem_alloc(&p);
        problem_fill(&p, &r, 2.0f);
        float *single = problem_array(p.tokens * k, sizeof(float));
        CHECK(problem_run(ctx_fma, &p) == MOE_OK, "%s", moe_last_error());
        for (int64_t t = 0; t < p.tokens; t++) {
            const float *l = p.logits + t * n;
            float partial[32] = {0};
            float m = l[0];
            for (int32_t e = 1; e < n; e++) {
                m = fmaxf(m, l[e]);
            }
            for (int32_t e = 0; e < n; e++) {
                partial[e % 32] += moei_expf(l[e] - m);
            }
            for (int width = 16; width >= 1; width /= 2) {
                float next[32];
                for (int j = 0; j < 32; j++) { // a butterfly: every lane adds its partner
                    next[j] = partial[j] + partial[j ^ width];
                }
                memcpy(partial, next, sizeof next);
            }
            for (int32_t j = 0; j < k; j++) {
                const float w = moei_expf(l[p.ids[t * k + j]] - m) * (1.0f / partial[0]);
                CHECK(p.weights[t * k + j] == w, "E %d slot %d: %.9g, the stated order gives %.9g",
                      (int)n, (int)j, (double)p.weights[t * k + j], (double)w);
            }
        }
        memcpy(single, p.weights, (size_t)(p.tokens * k) * sizeof(float));
        p.desc.renormalise = MOE_RENORM_SUM;
        CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
        for (int64_t t = 0; t < p.tokens; t++) {
            float sum = 0.0f;
            for (int32_t j = 0; j < k; j++) {
                sum += single[t * k + j];
            }
            for (int32_t j = 0; j < k; j++) {
                CHECK(p.weights[t * k + j] == single[t * k + j] / sum,
                      "E %d: renormalised in another order", (int)n);
            }
        }
        free(single);
        problem_free(&p);
    }
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
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    CHECK(p.ids[0] == 0 && p.ids[1] == 2, "shared rows were selected: %d %d", (int)p.ids[0],
          (int)p.ids[1]);
    CHECK(p.weights[0] == 1.0f && p.weights[1] == 1.0f, "weights %g %g", (double)p.weights[0],
          (double)p.weights[1]);
    CHECK(p.shared[0] == 1.0f && p.shared[1] == 2.0f, "shared weights %g %g: scaled only",
          (double)p.shared[0], (double)p.shared[1]);
    p.desc.renorm_shared = 1;
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    CHECK(p.weights[0] == 0.4f && p.shared[0] == 0.4f && p.shared[1] == 0.8f,
          "joined sum: %g %g %g", (double)p.weights[0], (double)p.shared[0], (double)p.shared[1]);
    problem_free(&p);
    // A gate per token for the appended experts.
    problem q = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM),
                 .experts = 4,
                 .top_k = 2,
                 .tokens = 3};
    rng r = {9};
    float gate[6] = {0.5f, 0.25f, 1.5f, -2.0f, 0.0f, 3.0f};
    q.desc.append_shared = 2;
    problem_alloc(&q);
    problem_fill(&q, &r, 1.0f);
    moe_route_args a = problem_args(&q);
    a.shared_gate = moe_tensor_2d(gate, MOE_F32, 3, 2);
    CHECK(moe_route(ctx_ref, &a, NULL) == MOE_OK, "%s", moe_last_error());
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
    rng r = {21};
    p.desc.hash_table = 1;
    p.desc.scale = 1.5f;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    const int32_t tokens[7] = {0, 1, -1, 50, 2147483647, -2147483647 - 1, 2};
    memcpy(p.token_ids, tokens, sizeof tokens);
    const int32_t table[9] = {5, 0, 2, /**/ -3, 6, 3, /**/ 4, 4, 1};
    memcpy(p.hash_table, table, sizeof table);
    CHECK(problem_run(ctx_fma, &p) == MOE_OK, "%s", moe_last_error());
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
    CHECK(moe_route(ctx_ref, &a, NULL) == MOE_OK, "%s", moe_last_error());
    for (int i = 0; i < 21; i++) {
        CHECK(wide_ids[i] == p.ids[i] && weights[i] == p.weights[i], "int64 slot %d: %lld", i,
              (long long)wide_ids[i]);
    }
    // Softmax over what the table names.
    p.desc.scoring = MOE_SCORING_SOFTMAX_SELECTED;
    p.desc.renormalise = MOE_RENORM_NONE;
    p.desc.scale = 0.0f;
    memcpy(p.logits, FLOATS(1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6), 12 * sizeof(float));
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
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
    rng r = {31};
    p.desc.zero_experts = 3;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
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
    CHECK(moe_route(ctx_threads, &a, NULL) == MOE_OK, "%s", moe_last_error());
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
    rng r = {41};
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    // 9 physical experts; bad entries: a count of 0, one past the slots, an id out of range.
    int32_t table[18] = {0,      6,  7,  /**/ 1, 8,  -1, /**/ 2, -1, -1, /**/ 3, -1, -1,
                         /**/ 4, -1, -1, /**/ 9, -1, -1};
    int32_t count[6] = {3, 2, 1, 0, 4, 1};
    int32_t map[9] = {-1, 0, 1, 2, 3, 4, 5, -1, 6};
    int32_t load[9] = {100, 0, 0, 0, 0, 0, 0, 0, 0};
    int32_t ids[1200];
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
        CHECK(moe_route(ctx_threads, &a, NULL) == MOE_OK, "%s", moe_last_error());
        for (int64_t i = 0; i < 1200; i++) {
            const bool valid = i / 3 < num_valid;
            int32_t id = valid ? float64_replica(table, 3, count, i / 3, p.ids[i]) : -1;
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
        CHECK(moe_route(ctx_threads, &b, NULL) == MOE_OK, "%s", moe_last_error());
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
    rng r = {51};
    p.desc.append_shared = 1;
    p.desc.shared_scores = 1;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        problem q = p;
        q.ids = problem_array(17 * 4, sizeof(int32_t));
        q.weights = problem_array(17 * 4, sizeof(float));
        q.shared = problem_array(17, sizeof(float));
        memset(q.ids, 0x5A, 17 * 4 * 4);
        memset(q.weights, 0x5A, 17 * 4 * 4);
        memset(q.shared, 0x5A, 17 * 4);
        moe_route_args a = problem_args(&q);
        int32_t load[12] = {0};
        int32_t total = 0;
        a.num_valid = moe_tensor_1d(&limits[i], MOE_I32, 1);
        a.load = moe_tensor_1d(load, MOE_I32, 12);
        CHECK(moe_route(ctx_threads, &a, NULL) == MOE_OK, "%s", moe_last_error());
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
        free(q.ids);
        free(q.weights);
        free(q.shared);
    }
    problem_free(&p);
}

// ---- Bit equality -----------------------------------------------------------------------------

static void test_dtypes_and_strides(void)
{
    const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    problem p = {.desc = route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_SUM),
                 .experts = 45,
                 .top_k = 6,
                 .tokens = 19};
    rng r = {61};
    p.desc.scale = 1.3f;
    problem_alloc(&p);
    for (int d = 0; d < 3; d++) {
        // Logits in 16 bits with gaps between rows; the same values as compact f32.
        const int64_t stride = 45 + 7;
        float *wide = problem_array(19 * stride, sizeof(float));
        uint16_t *narrow = problem_array(19 * stride, sizeof(uint16_t));
        problem_fill(&p, &r, 1.0f);
        for (int64_t i = 0; i < 19 * stride; i++) {
            wide[i] = bits_float(0x7FC00000u);
            narrow[i] = 0x7FFF;
        }
        for (int64_t t = 0; t < 19; t++) {
            for (int64_t e = 0; e < 45; e++) {
                float *value = &p.logits[t * 45 + e];
                uint16_t *code = &narrow[t * stride + e];
                if (dtypes[d] == MOE_BF16) {
                    *code = moei_f32_to_bf16(*value);
                    *value = moei_bf16_to_f32(*code);
                } else if (dtypes[d] == MOE_F16) {
                    *code = moei_f32_to_f16(*value);
                    *value = moei_f16_to_f32(*code);
                }
                wide[t * stride + e] = *value;
            }
        }
        CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
        moe_route_args a = problem_args(&p);
        int64_t ids[19 * 11];
        uint16_t weights[19 * 9];
        memset(ids, 0x77, sizeof ids);
        memset(weights, 0x77, sizeof weights);
        a.logits = moe_tensor_2d(d == 0 ? (void *)wide : (void *)narrow, dtypes[d], 19, 45);
        a.logits.stride[0] = stride;
        a.ids = moe_tensor_2d(ids, MOE_I64, 19, 6);
        a.ids.stride[0] = 11;
        a.weights = moe_tensor_2d(weights, MOE_BF16, 19, 6);
        a.weights.stride[0] = 9;
        CHECK(moe_route(ctx_fma, &a, NULL) == MOE_OK, "%s", moe_last_error());
        for (int t = 0; t < 19; t++) {
            for (int j = 0; j < 11; j++) {
                const int64_t expected = j < 6 ? p.ids[t * 6 + j] : 0x7777777777777777;
                CHECK(ids[t * 11 + j] == expected, "%s: token %d id %d", moe_dtype_name(dtypes[d]),
                      t, j);
            }
            for (int j = 0; j < 9; j++) {
                const uint16_t expected = j < 6 ? moei_f32_to_bf16(p.weights[t * 6 + j]) : 0x7777;
                CHECK(weights[t * 9 + j] == expected, "%s: token %d weight %d: %04x, expected %04x",
                      moe_dtype_name(dtypes[d]), t, j, weights[t * 9 + j], expected);
            }
        }
        free(wide);
        free(narrow);
    }
    problem_free(&p);
}

static void test_batches(void)
{
    problem p = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM),
                 .experts = 96,
                 .top_k = 8,
                 .tokens = 61};
    rng r = {71};
    p.desc.correction_bias = 1;
    p.desc.num_groups = 8;
    p.desc.top_groups = 4;
    p.desc.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    p.desc.scale = 2.5f;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx_ref, &p) == MOE_OK, "%s", moe_last_error());
    for (int64_t cut = 0; cut <= 61; cut += 13) { // two batches
        problem q = p;
        q.ids = problem_array(61 * 8, sizeof(int32_t));
        q.weights = problem_array(61 * 8, sizeof(float));
        for (int half = 0; half < 2; half++) {
            const int64_t first = half == 0 ? 0 : cut;
            problem part = q;
            part.tokens = half == 0 ? cut : 61 - cut;
            part.logits = p.logits + first * 96;
            part.ids = q.ids + first * 8;
            part.weights = q.weights + first * 8;
            CHECK(problem_run(ctx_threads, &part) == MOE_OK, "%s", moe_last_error());
        }
        CHECK(same_bits(p.ids, q.ids, 61 * 8, 4) && same_bits(p.weights, q.weights, 61 * 8, 4),
              "a batch cut at %d gives other bits", (int)cut);
        free(q.ids);
        free(q.weights);
    }
    problem shuffled = p; // another order of tokens
    shuffled.logits = problem_array(61 * 96, sizeof(float));
    shuffled.ids = problem_array(61 * 8, sizeof(int32_t));
    shuffled.weights = problem_array(61 * 8, sizeof(float));
    for (int64_t t = 0; t < 61; t++) {
        memcpy(shuffled.logits + t * 17 % 61 * 96, p.logits + t * 96, 96 * sizeof(float));
    }
    CHECK(problem_run(ctx_threads, &shuffled) == MOE_OK, "%s", moe_last_error());
    for (int64_t t = 0; t < 61; t++) {
        const int64_t at = t * 17 % 61;
        CHECK(same_bits(p.ids + t * 8, shuffled.ids + at * 8, 8, 4) &&
                  same_bits(p.weights + t * 8, shuffled.weights + at * 8, 8, 4),
              "token %d gives other bits elsewhere in the batch", (int)t);
    }
    free(shuffled.logits);
    free(shuffled.ids);
    free(shuffled.weights);
    problem_free(&p);
}

// The grid of vLLM's routing tests: grouped and plain, with structural checks and float64.
static void test_vllm_grid(void)
{
    static const int32_t experts[] = {8, 16, 64};
    static const int32_t top_k[] = {2, 4, 6};
    static const float scales[] = {1.0f, 1.1f};
    uint64_t seed = 7000;
    for (int i = 0; i < 3 * 3 * 2 * 2 * 2 * 2 * 2; i++) {
        const int32_t k = top_k[i % 3];
        const int32_t e = experts[i / 3 % 3];
        const int rest = i / 9;
        problem p = {.desc = route_desc(rest & 1 ? MOE_SCORING_SIGMOID : MOE_SCORING_SOFTMAX,
                                        rest & 2 ? MOE_RENORM_SUM : MOE_RENORM_NONE),
                     .experts = e,
                     .top_k = k,
                     .tokens = rest & 4 ? 64 : 32};
        char what[64];
        if (rest & 16) {
            p.experts = rest & 1 ? 64 : 32;
            p.desc.num_groups = rest & 1 ? 8 : 4;
            p.desc.top_groups = rest & 1 ? 4 : 2;
            p.desc.group_score = MOE_GROUP_SCORE_TOP2_SUM;
        }
        p.desc.correction_bias = 1;
        p.desc.scale = scales[rest & 8 ? 1 : 0];
        (void)snprintf(what, sizeof what, "vLLM grid %d: E %d k %d", i, (int)p.experts, (int)k);
        rng r = {seed++};
        problem_alloc(&p);
        problem_fill(&p, &r, 1.0f);
        for (int32_t b = 0; b < p.experts; b++) {
            p.bias[b] = 0.9f;
        }
        CHECK(problem_run(ctx_threads, &p) == MOE_OK, "%s: %s", what, moe_last_error());
        const moe_tensor ids = moe_tensor_2d(p.ids, MOE_I32, p.tokens, k);
        const moe_tensor weights = moe_tensor_2d(p.weights, MOE_F32, p.tokens, k);
        CHECK(moe_routing_validate(&ids, &weights, p.experts, rest & 2 ? p.desc.scale : 0.0f,
                                   1e-6f) == MOE_OK,
              "%s: %s", what, moe_last_error());
        for (int64_t t = 0; t < p.tokens; t++) {
            check_token(&p, t, what);
        }
        problem_free(&p);
    }
}

int main(void)
{
    ctx_ref = route_context("ref", 1);
    ctx_fma = route_context("ref_fma", 2);
    ctx_threads = route_context("ref_fma", 7);
    if (!CHECK(ctx_ref != NULL && ctx_fma != NULL && ctx_threads != NULL, "no context: %s",
               moe_last_error())) {
        return test_summary();
    }
    test_ties();
    test_selection_keys();
    test_nonfinite();
    test_groups();
    test_normalisation();
    test_order_of_sums();
    test_sparsemixer();
    test_further_rows();
    test_hash();
    test_expert_map();
    test_replicas();
    test_num_valid();
    test_dtypes_and_strides();
    test_batches();
    test_random();
    test_random_groups();
    test_random_sparsemixer();
    test_vllm_grid();
    (void)printf("float64: %ld tokens exact, %ld too close to decide\n", exact_tokens,
                 close_tokens);
    moe_context_destroy(ctx_ref);
    moe_context_destroy(ctx_fma);
    moe_context_destroy(ctx_threads);
    return test_summary();
}
