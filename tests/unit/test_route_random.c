// SPDX-License-Identifier: Apache-2.0
// Routing: random problems against the float64 statement and in the stated order of summation, and
// bit equality over builds, threads, batches, dtypes and strides.
#include "float64/route.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "numerics/math.h"
#include "unit/route_problem.h"
#include "unit/test.h"

static moe_context *ctx_ref;     // baseline, 1 thread
static moe_context *ctx_fma;     // with FMA where the machine has it, 2 threads
static moe_context *ctx_threads; // 7 threads

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
            wide[i] = moei_f32_from_bits(MOEI_NAN_BITS);
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

int main(void)
{
    ctx_ref = route_context("ref", 1);
    ctx_fma = route_context("ref_fma", 2);
    ctx_threads = route_context("ref_fma", 7);
    if (CHECK(ctx_ref != NULL && ctx_fma != NULL && ctx_threads != NULL, "no context: %s",
              moe_last_error())) {
        test_random();
        test_random_groups();
        test_random_sparsemixer();
        test_vllm_grid();
        test_order_of_sums();
        test_dtypes_and_strides();
        test_batches();
    }
    (void)printf("float64: %ld tokens exact, %ld too close to decide\n", exact_tokens,
                 close_tokens);
    moe_context_destroy(ctx_ref);
    moe_context_destroy(ctx_fma);
    moe_context_destroy(ctx_threads);
    return test_summary();
}
