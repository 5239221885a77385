// SPDX-License-Identifier: Apache-2.0
// Routing: random problems against the float64 statement and in the stated order of summation, and
// bit equality over builds, threads, batches, dtypes and strides.
#include "checkmoe/route_problem.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "numerics/math.h"
#include "unit/test.h"

static route_contexts ctx;

// ---- Random problems against float64 ----------------------------------------------------------

static long exact_tokens;
static long close_tokens; // margin too small for f32 to decide

static void check_token(const problem *p, int64_t t, const char *what)
{
    char text[200];
    const problem_verdict verdict = problem_judge(p, t, text, sizeof text);
    CHECK(verdict != PROBLEM_DIFFERS, "%s: %s", what, text);
    exact_tokens += verdict == PROBLEM_HOLDS;
    close_tokens += verdict == PROBLEM_CLOSE;
}

// Runs one random problem everywhere: float64, and bit equality of builds and thread counts.
static void check_problem(problem *p, uint64_t seed, float spread, const char *what)
{
    moec_rng r = {seed};
    problem_alloc(p);
    problem_fill(p, &r, spread);
    const moe_status s = problem_run(ctx.ref, p);
    if (CHECK(s == MOE_OK, "%s: %s (%s)", what, moe_status_name(s), moe_last_error())) {
        for (int64_t t = 0; t < p->tokens; t++) {
            check_token(p, t, what);
        }
        const moe_context *const others[] = {ctx.fma, ctx.threads};
        for (int i = 0; i < 2; i++) {
            problem q = problem_beside(p);
            CHECK(problem_run(others[i], &q) == MOE_OK, "%s: %s", what, moe_last_error());
            CHECK(problem_same(p, 0, &q, 0, p->tokens), "%s: context %d gives other bits", what, i);
            problem_free_outputs(&q);
        }
    }
    problem_free(p);
}

static void test_random(void)
{
    for (int number = 0; number < PROBLEM_GRID; number++) {
        problem p;
        char what[96];
        const float spread = problem_draw(&p, number, what, sizeof what);
        check_problem(&p, 1 + (uint64_t)number, spread, what);
    }
    CHECK(close_tokens * 20 < exact_tokens, "%ld of %ld tokens were too close to decide",
          close_tokens, exact_tokens);
}

// Every selected expert must be one whose key nothing outside beats: k = E, all of 4096.
static void test_all_of_4096(void)
{
    problem all = {.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_NONE),
                   .experts = 4096,
                   .top_k = 4096,
                   .tokens = 3};
    moec_rng r = {811};
    problem_alloc(&all);
    problem_fill(&all, &r, 2.0f);
    CHECK(problem_run(ctx.fma, &all) == MOE_OK, "%s", moe_last_error());
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
        moec_rng r = {seed++};
        problem_alloc(&p);
        problem_fill(&p, &r, 1.0f);
        for (int32_t b = 0; b < p.experts; b++) {
            p.bias[b] = 0.9f;
        }
        CHECK(problem_run(ctx.threads, &p) == MOE_OK, "%s: %s", what, moe_last_error());
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
        moec_rng r = {500 + i};
        problem_alloc(&p);
        problem_fill(&p, &r, 2.0f);
        float *single = problem_array(p.tokens * k, sizeof(float));
        CHECK(problem_run(ctx.fma, &p) == MOE_OK, "%s", moe_last_error());
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
        CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
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
    moec_rng r = {61};
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
        CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
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
        CHECK(moe_route(ctx.fma, &a, NULL) == MOE_OK, "%s", moe_last_error());
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
    moec_rng r = {71};
    p.desc.correction_bias = 1;
    p.desc.num_groups = 8;
    p.desc.top_groups = 4;
    p.desc.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    p.desc.scale = 2.5f;
    problem_alloc(&p);
    problem_fill(&p, &r, 1.0f);
    CHECK(problem_run(ctx.ref, &p) == MOE_OK, "%s", moe_last_error());
    for (int64_t cut = 0; cut <= 61; cut += 13) { // two batches
        problem q = problem_beside(&p);
        for (int half = 0; half < 2; half++) {
            const int64_t first = half == 0 ? 0 : cut;
            problem part = q;
            part.tokens = half == 0 ? cut : 61 - cut;
            part.logits = p.logits + first * 96;
            part.ids = q.ids + first * 8;
            part.weights = q.weights + first * 8;
            CHECK(problem_run(ctx.threads, &part) == MOE_OK, "%s", moe_last_error());
        }
        CHECK(problem_same(&p, 0, &q, 0, 61), "a batch cut at %d gives other bits", (int)cut);
        problem_free_outputs(&q);
    }
    problem shuffled = problem_beside(&p); // another order of tokens
    shuffled.logits = problem_array(61 * 96, sizeof(float));
    for (int64_t t = 0; t < 61; t++) {
        memcpy(shuffled.logits + t * 17 % 61 * 96, p.logits + t * 96, 96 * sizeof(float));
    }
    CHECK(problem_run(ctx.threads, &shuffled) == MOE_OK, "%s", moe_last_error());
    for (int64_t t = 0; t < 61; t++) {
        CHECK(problem_same(&p, t, &shuffled, t * 17 % 61, 1),
              "token %d gives other bits elsewhere in the batch", (int)t);
    }
    free(shuffled.logits);
    problem_free_outputs(&shuffled);
    problem_free(&p);
}

int main(void)
{
    if (CHECK(route_contexts_make(&ctx), "no context: %s", moe_last_error())) {
        test_random();
        test_all_of_4096();
        test_vllm_grid();
        test_order_of_sums();
        test_dtypes_and_strides();
        test_batches();
    }
    (void)printf("float64: %ld tokens exact, %ld too close to decide\n", exact_tokens,
                 close_tokens);
    route_contexts_destroy(&ctx);
    return test_summary();
}
