// SPDX-License-Identifier: Apache-2.0
// How the CPU cuts a layer into tasks: every element of a cut once, and each layer the bits that
// its steps give one after the other, for few and many tokens, even and uneven routing, 1 to 7
// threads.
#include <stdlib.h>
#include <string.h>

#include "api/layer_case.h"
#include "api/layer_edits.h"
#include "backends/cpu/cut.h"
#include "ops/backend.h"
#include "unit/test.h"

// ---- cuts --------------------------------------------------------------------------------------

#define EXPERTS 9
#define ROWS    700
#define COLUMNS 1000

static unsigned char seen[ROWS][COLUMNS];
static uint64_t state = 1;

static int64_t below(int64_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(state >> 33) % n;
}

static void check_cut(const moei_cpu_cut *cut, int64_t rows, const moei_cpu_cut_limits *limits)
{
    const int32_t *offsets = cut->args->offsets;
    int64_t misplaced = 0;
    int64_t too_large = 0;
    int64_t not_once = 0;
    memset(seen, 0, sizeof seen);
    for (int64_t i = 0; i < cut->tasks; i++) {
        const moei_cpu_piece p = moei_cpu_cut_at(cut, i);
        misplaced += p.i0 < offsets[p.expert] || p.i0 >= p.i1 || p.i1 > offsets[p.expert + 1] ||
                     p.n0 >= p.n1 || p.n1 > cut->columns || p.n0 % limits->unit != 0;
        too_large += p.i1 - p.i0 > moei_i64_round_up(limits->block, limits->step) ||
                     (limits->bands == INT64_MAX && p.n1 - p.n0 > limits->unit &&
                      (p.n1 - p.n0) * (p.i1 - p.i0 - limits->step) > limits->area);
        for (int64_t r = p.i0; misplaced == 0 && r < p.i1; r++) {
            for (int64_t n = p.n0; n < p.n1; n++) {
                seen[r][n]++;
            }
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t n = 0; n < cut->columns; n++) {
            not_once += seen[r][n] != 1;
        }
    }
    CHECK(misplaced == 0 && too_large == 0 && not_once == 0,
          "%lld rows, %lld columns: %lld tasks misplaced, %lld too large, %lld elements not once",
          (long long)rows, (long long)cut->columns, (long long)misplaced, (long long)too_large,
          (long long)not_once);
}

// A thread's share is never one or two tasks, if there are enough rows or columns to divide; of a
// product that is done at once, never less than one.
static void check_even(const moei_cpu_cut *cut, const moei_cpu_cut_limits *limits, int64_t least_of)
{
    int64_t total = 0;
    int64_t most = 0;
    for (int64_t i = 0; i < cut->tasks; i++) {
        const moei_cpu_piece p = moei_cpu_cut_at(cut, i);
        const int64_t cost = (p.i1 - p.i0) * (p.n1 - p.n0);
        total += cost;
        most = cost > most ? cost : most;
    }
    const int64_t least = 2 * limits->step * limits->unit; // what cannot be cut much further
    CHECK(most <= least || most * limits->threads * least_of <= total,
          "the largest of %lld tasks is %lld of %lld for %lld threads", (long long)cut->tasks,
          (long long)most, (long long)total, (long long)limits->threads);
}

static void test_cuts(void)
{
    static const int64_t units[] = {64, 128, 192};
    static const int64_t steps[] = {1, 32, 36};
    static const int64_t threads[] = {1, 2, 7, 64};
    static moei_cpu_cut cut;
    for (int i = 0; i < 200; i++) {
        int32_t offsets[EXPERTS + 1] = {0};
        const bool uneven = below(2) == 0;
        for (int32_t e = 0; e < EXPERTS; e++) {
            const int64_t left = ROWS - offsets[e];
            const int64_t rows = below(3) == 0 ? 0 : below(uneven && e == 3 ? 600 : 12);
            offsets[e + 1] = offsets[e] + (int32_t)moei_i64_min(rows, left);
        }
        const bool large = i % 2 == 0;
        const moek_ggemm_args args = {.w = {.count = EXPERTS, .k = large ? 1 << 20 : 1},
                                      .offsets = offsets};
        const moei_cpu_cut_limits limits = {.unit = units[below(3)],
                                            .step = steps[below(3)],
                                            .block = below(2) == 0 ? 256 : 72,
                                            .area = below(2) == 0 ? INT64_MAX : 4096,
                                            .bands = below(2) == 0 ? INT64_MAX : 4,
                                            .threads = threads[below(4)]};
        moei_cpu_cut_begin(&cut, &args);
        moei_cpu_cut_choose(&cut, 1 + below(COLUMNS), &limits);
        CHECK(cut.bands <= limits.bands, "%lld bands", (long long)cut.bands);
        check_cut(&cut, offsets[EXPERTS], &limits);
        if (limits.bands == INT64_MAX && limits.threads > 1 && offsets[EXPERTS] >= 8 * EXPERTS) {
            check_even(&cut, &limits, large ? 2 : 1);
        }
    }
}

// ---- layers ------------------------------------------------------------------------------------

static void plain(moe_layer_desc *d)
{
    (void)d;
}

static void interleave(moe_layer_desc *d)
{
    d->gate_up = MOE_UP_GATE_INTERLEAVED;
    d->gemm[0].weight_format = d->gemm[1].weight_format = MOE_FORMAT_MXFP4;
}

static void up_first_codes(moe_layer_desc *d)
{
    interleave(d);
    d->gate_up = MOE_UP_FIRST;
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_MX_FLOOR;
    d->gemm[0].act.elem = d->gemm[1].act.elem = MOE_E2M3;
}

static void fixed_codes(moe_layer_desc *d)
{
    interleave(d);
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_I8B32;
}

// A group of h is two panels.
static void fixed_codes_128(moe_layer_desc *d)
{
    interleave(d);
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_I8B128;
}

static void by_token(moe_layer_desc *d)
{
    d->gemm[0].weight_format = d->gemm[1].weight_format = MOE_FORMAT_E4M3FN_CHANNEL;
    d->gemm[0].act.spec = d->gemm[1].act.spec = MOE_QUANT_FP8_TOKEN;
}

static void no_gate(moe_layer_desc *d)
{
    d->activation = MOE_ACT_RELU2_NO_MUL;
    d->gate_up = MOE_GATE_UP_UNSET;
    d->weight_stage = MOE_WEIGHT_INPUT;
}

static void with_shared(moe_layer_desc *d)
{
    layer_case_add_shared(d);
    d->accumulate = 1;
}

static void slots(moe_layer_desc *d)
{
    d->out_mode = MOE_OUT_SLOTS;
}

static void batched(moe_layer_desc *d)
{
    layer_case_place(d, MOE_X_BATCHED);
}

static void sorted_codes(moe_layer_desc *d)
{
    layer_case_place(d, MOE_X_SORTED);
    quantise(d);
}

// So many slots that their sort is a job of the pool.
static void narrow(moe_layer_desc *d)
{
    d->hidden = d->inter = 32;
    d->num_experts = 40;
    d->top_k = 6;
}

static const struct {
    const char *name;
    void (*edit)(moe_layer_desc *d);
    int64_t most_tokens;
} layers[] = {
    {"bf16", plain, 300},
    {"interleaved mxfp4", interleave, 70},
    {"up first, 6-bit codes", up_first_codes, 70},
    {"fp8 groups", quantise, 70},
    {"8-bit codes", fixed_codes, 70},
    {"8-bit codes per 128", fixed_codes_128, 70},
    {"a scale per token", by_token, 70},
    {"no gate, weights on x", no_gate, 70},
    {"shared experts, accumulated", with_shared, 70},
    {"slots", slots, 70},
    {"batched", batched, 9},
    {"sorted codes", sorted_codes, 70},
    {"many slots", narrow, 1001},
};

// Half of the tokens call the same expert first.
static void lean(layer_case *c)
{
    float *logits = c->args.logits.data;
    for (int64_t t = 0; logits != NULL && t < c->args.num_tokens; t += 2) {
        logits[t * c->desc.num_experts + 3] += 8.0f;
    }
}

// The outputs of a layer in a context, as one number; 0 where it did not run.
static uint64_t outputs_of(moe_context *ctx, const moe_layer_desc *d, int64_t tokens,
                           const char *name)
{
    moe_plan *plan = NULL;
    layer_case c;
    uint64_t outputs = 0;
    if (CHECK(moe_plan_create(ctx, d, &plan) == MOE_OK, "%s: %s", name, moe_last_error())) {
        if (CHECK(layer_case_make(&c, plan, d, tokens) == MOE_OK, "%s: %s", name,
                  moe_last_error())) {
            lean(&c);
            if (CHECK(layer_case_run(&c) == MOE_OK, "%s: %s", name, moe_last_error())) {
                outputs = layer_case_outputs(&c);
            }
        }
        layer_case_free(&c);
    }
    moe_plan_destroy(plan);
    return outputs;
}

static void test_layer(moe_context *const ctx[4], size_t which, int64_t tokens)
{
    moe_layer_desc d = layer_case_base();
    d.hidden = 320;
    d.inter = 200;
    d.max_tokens = tokens;
    layers[which].edit(&d);
    const uint64_t want = outputs_of(ctx[0], &d, tokens, layers[which].name);
    for (int i = 1; i < 4; i++) {
        CHECK(outputs_of(ctx[i], &d, tokens, layers[which].name) == want,
              "%s, %lld tokens, %d threads: not what the steps give one after the other",
              layers[which].name, (long long)tokens, moe_context_num_threads(ctx[i]));
    }
}

int main(void)
{
    static const int32_t threads[] = {2, 1, 2, 7};
    static const int64_t tokens[] = {1, 9, 70, 300, 1001};
    moe_context *ctx[4] = {NULL};
    moei_backend steps;
    test_cuts();
    for (int i = 0; i < 4; i++) {
        moe_context_desc desc = moe_context_desc_default();
        desc.num_threads = threads[i];
        if (!CHECK(moe_context_create(&desc, &ctx[i]) == MOE_OK, "%s", moe_last_error())) {
            return test_summary();
        }
    }
    steps = *ctx[0]->backend;
    CHECK(steps.run_steps != NULL, "the backend runs steps one after the other");
    steps.run_steps = NULL;
    ctx[0]->backend = &steps;
    for (size_t l = 0; l < sizeof layers / sizeof layers[0]; l++) {
        for (size_t t = 0; t < 5 && tokens[t] <= layers[l].most_tokens; t++) {
            test_layer(ctx, l, tokens[t]);
        }
    }
    for (int i = 0; i < 4; i++) {
        moe_context_destroy(ctx[i]);
    }
    return test_summary();
}
