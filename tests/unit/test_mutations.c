// SPDX-License-Identifier: Apache-2.0
// Plants mistakes in the layer and shows that its checks notice every one, over several weight
// formats, at the precision that models use (bf16 in and out). Prints what caught each.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_layer.h"
#include "checkmoe/mutate.h"
#include "unit/test.h"

enum { BF16 = 1, MXFP4 = 2, BLOCK = 4, INT4 = 8, NVFP4 = 16, CHANNEL = 32, ALL = 63 };

static const struct {
    int bit;
    moe_format format;
} formats[] = {{BF16, MOE_FORMAT_BF16},          {MXFP4, MOE_FORMAT_MXFP4},
               {BLOCK, MOE_FORMAT_E4M3FN_BLOCK}, {INT4, MOE_FORMAT_INT4_GROUP},
               {NVFP4, MOE_FORMAT_NVFP4},        {CHANNEL, MOE_FORMAT_INT8_CHANNEL}};

// The formats that have what a mutation breaks.
static int applies_to(moec_mutation mutation)
{
    switch (mutation) {
    case MOEC_MUTATE_SCALE_DOUBLED:
    case MOEC_MUTATE_SCALE_ROW_OFF:
        return ALL & ~BF16;
    case MOEC_MUTATE_ZERO_POINTS_IGNORED:
        return INT4;
    case MOEC_MUTATE_SCALE2_IGNORED:
    case MOEC_MUTATE_SCALE2_TWICE:
        return NVFP4 | INT4;
    default:
        return ALL;
    }
}

// A layer like a model's, with what the mutation breaks and little else.
static void describe(moec_layer_case *c, moec_mutation mutation, moe_format format)
{
    moe_layer_desc *d = &c->desc;
    *d = moe_layer_desc_default();
    c->items = 11;
    c->use_valid = true;
    d->max_tokens = c->items + 4;
    d->hidden = 203;
    d->inter = 137;
    d->num_experts = 5;
    d->top_k = 3;
    d->routing = MOE_ROUTING_FROM_LOGITS;
    d->route.scoring = MOE_SCORING_SIGMOID;
    d->route.renormalise = MOE_RENORM_SUM;
    d->route.scale = 2.5f;
    d->route.correction_bias = 1;
    d->weight_stage = MOE_WEIGHT_OUTPUT;
    d->activation = MOE_ACT_SILU;
    d->limit = 0.8f;
    d->gate_up = MOE_GATE_FIRST;
    for (int g = 0; g < 2; g++) {
        d->gemm[g].weight_format = format;
        d->gemm[g].weight_group = format == MOE_FORMAT_INT4_GROUP ? 32 : 0;
        d->gemm[g].zero_points = format == MOE_FORMAT_INT4_GROUP;
        d->gemm[g].channel_scale = format == MOE_FORMAT_INT4_GROUP;
        d->gemm[g].bias = 1;
    }
    d->x_dtype = MOE_BF16;
    c->physical = d->num_experts;
    switch (mutation) {
    case MOEC_MUTATE_MAP_IGNORED:
        d->expert_map = 1;
        d->num_local_experts = 3;
        break;
    case MOEC_MUTATE_TIES_HIGH:
        d->route.correction_bias = 0;
        c->ties = true;
        break;
    case MOEC_MUTATE_QUANT_SCALE_ONE:
    case MOEC_MUTATE_QUANT_OTHER_GRID:
        d->gemm[0].act.spec = MOE_QUANT_FP8_TOKEN;
        d->gemm[1].act.spec = MOE_QUANT_FP8_TOKEN;
        break;
    case MOEC_MUTATE_SLOTS_REVERSED: // shows in f32 alone
        d->x_dtype = MOE_F32;
        break;
    case MOEC_MUTATE_SHARED_DROPPED:
        d->shared.count = 1;
        d->shared.inter = 64;
        d->shared.activation = MOE_ACT_SILU;
        d->shared.gate_up = MOE_GATE_FIRST;
        d->shared.gemm[0].weight_format = d->shared.gemm[1].weight_format = format;
        break;
    case MOEC_MUTATE_ACCUMULATE_IGNORED:
        d->accumulate = 1;
        break;
    default:
        break;
    }
}

// What the checks say about one run.
typedef struct verdict {
    bool ran, judged, routing, intact, same;
    double ratio;
    unsigned long hits;
} verdict;

static bool passes(const verdict *v)
{
    return v->ran && v->routing && v->intact && v->same && !(v->judged && v->ratio > 1.0);
}

static void examine(moe_context *clean, const moec_layer_case *c, const moec_made *made,
                    const int32_t *items, verdict *v)
{
    const moec_batch_style style = {true, 0xFF, 1};
    const char *wrong = "";
    moec_batch batch = {0};
    moec_routing routing = {0};
    moec_routing_verdict checked = {0};
    moec_layer_stats stats = {0};
    const size_t bytes = moec_layer_result_bytes(c, c->items);
    unsigned char *have = calloc(bytes, 1);
    unsigned char *want = calloc(bytes, 1);
    v->ran = have != NULL && want != NULL && moec_batch_build(&batch, c, items, c->items, &style);
    moec_mutant_begin();
    v->ran = v->ran && moec_batch_execute(&batch, made->plan, made->weights) == MOE_OK;
    v->hits = moec_mutant_hits();
    v->ran = v->ran && moec_layer_route(clean, c, items, c->items, &routing) == MOE_OK &&
             moec_layer_compose(clean, c, items, c->items, want) == MOE_OK;
    if (v->ran) {
        moec_batch_collect(&batch, have);
        v->intact = moec_batch_intact(&batch, &wrong);
        v->routing = moec_layer_check_routing(&batch, &routing, &checked);
        v->same = memcmp(have, want, bytes) == 0;
        v->judged = moec_layer_judged(c);
        if (v->judged) {
            v->ran = moec_layer_judge(c, made->plan, items, c->items, &routing, have, &stats);
            v->ratio = stats.ratio;
        }
    }
    moec_routing_free(&routing);
    moec_batch_free(&batch);
    free(have);
    free(want);
}

static verdict run_mutant(moe_context *clean, const moec_layer_case *c, moec_mutation mutation)
{
    static moec_mutant mutant;
    verdict v = {false, false, false, false, false, 0.0, 0};
    moec_made made;
    moec_rng rng = {7};
    int32_t items[32];
    for (int32_t i = 0; i < c->items; i++) {
        items[i] = i;
    }
    moec_mutant_make(&mutant, clean, mutation);
    if (moec_make(&mutant.ctx, c, &rng, &made)) {
        examine(clean, c, &made, items, &v);
        moec_unmake(&made);
    }
    return v;
}

static void check_one(moe_context *clean, moec_mutation mutation, moe_format format)
{
    moec_layer_case c;
    moec_rng rng = {(uint64_t)mutation * 1000u + (uint64_t)format};
    char by[96] = "";
    memset(&c, 0, sizeof c);
    c.seed = 1;
    describe(&c, mutation, format);
    if (!CHECK(moec_layer_build(&c, clean, &rng), "no case: %s", moe_last_error())) {
        moec_layer_free(&c);
        return;
    }
    if (c.desc.expert_map != 0) { // no expert where it would be without a map
        static const int32_t map[5] = {2, -1, 0, 1, -1};
        memcpy(c.expert_map, map, sizeof map);
    }
    const verdict good = run_mutant(clean, &c, MOEC_MUTATE_NOTHING);
    CHECK(passes(&good),
          "%s, %s: the layer as it is fails: ran %d routing %d intact %d same %d ratio %.3g",
          moec_mutation_name(mutation), moe_format_name(format), good.ran, good.routing,
          good.intact, good.same, good.ratio);
    const verdict bad = run_mutant(clean, &c, mutation);
    CHECK(bad.ran && bad.hits > 0, "%s, %s: the mutation had nothing to act on",
          moec_mutation_name(mutation), moe_format_name(format));
    CHECK(!passes(&bad), "%s, %s: SURVIVED", moec_mutation_name(mutation), moe_format_name(format));
    (void)snprintf(by, sizeof by, "%s%s%s%s", bad.judged && bad.ratio > 1.0 ? "float64 " : "",
                   bad.same ? "" : "composition ", bad.routing ? "" : "routing ",
                   bad.intact ? "" : "padding ");
    char ratio[32] = "-";
    if (bad.judged) {
        (void)snprintf(ratio, sizeof ratio, "%.3g", bad.ratio);
    }
    (void)printf("%-30s %-14s %-34s %8s  (unmutated %.2f)\n", moec_mutation_name(mutation),
                 moe_format_name(format), passes(&bad) ? "SURVIVED" : by, ratio, good.ratio);
    moec_layer_free(&c);
}

// ---- the other form of a routing result ---------------------------------------------------------

#define TOKENS    9
#define SLOTS     3
#define MAX_WORDS 3

typedef struct sparse {
    uint32_t bits[TOKENS * MAX_WORDS];
    int32_t counts[96], offsets[97], gather[TOKENS * SLOTS], scatter[TOKENS * SLOTS];
} sparse;

static moe_routing_sparse views(sparse *s, int32_t experts)
{
    moe_routing_sparse v;
    memset(&v, 0, sizeof v);
    v.bitmatrix = moe_tensor_2d(s->bits, MOE_U32, TOKENS, (experts + 31) / 32);
    v.counts = moe_tensor_1d(s->counts, MOE_I32, experts);
    v.offsets = moe_tensor_1d(s->offsets, MOE_I32, (int64_t)experts + 1);
    v.gather = moe_tensor_1d(s->gather, MOE_I32, (int64_t)TOKENS * SLOTS);
    v.scatter = moe_tensor_1d(s->scatter, MOE_I32, (int64_t)TOKENS * SLOTS);
    return v;
}

// Bits set as by (1 << id) in word id / 32; `shifts_absent`: for -1 as well, as a known bug did.
static void set_bits(const int32_t *ids, int32_t experts, bool shifts_absent, uint32_t *bits)
{
    const int32_t words = (experts + 31) / 32;
    memset(bits, 0, (size_t)(TOKENS * words) * sizeof *bits);
    for (int32_t s = 0; s < TOKENS * SLOTS; s++) {
        if (ids[s] >= 0 || shifts_absent) {
            bits[s / SLOTS * words + ids[s] / 32] |= 1u << (ids[s] & 31);
        }
    }
}

static void check_bitmatrix(int32_t experts)
{
    moec_rng rng = {(uint64_t)experts};
    int32_t ids[TOKENS * SLOTS];
    int32_t back[TOKENS * SLOTS];
    uint32_t want[TOKENS * MAX_WORDS];
    sparse s;
    for (int32_t i = 0; i < TOKENS * SLOTS; i++) { // distinct within a token
        ids[i] = moec_below(&rng, 4) == 0
                     ? -1
                     : i % SLOTS * (experts / SLOTS) + (int32_t)moec_below(&rng, experts / SLOTS);
    }
    const moe_tensor dense = moe_tensor_2d(ids, MOE_I32, TOKENS, SLOTS);
    const moe_tensor again = moe_tensor_2d(back, MOE_I32, TOKENS, SLOTS);
    const moe_routing_sparse v = views(&s, experts);
    const size_t bytes = (size_t)(TOKENS * ((experts + 31) / 32)) * sizeof *want;
    memset(&s, 0xA5, sizeof s);
    set_bits(ids, experts, false, want);
    CHECK(moe_routing_to_sparse(&dense, NULL, experts, &v) == MOE_OK, "%s", moe_last_error());
    CHECK(memcmp(want, s.bits, bytes) == 0, "the bit matrix of %d experts is wrong", (int)experts);
    CHECK(moe_routing_from_sparse(&v, experts, &again, NULL) == MOE_OK &&
              memcmp(ids, back, sizeof ids) == 0,
          "ids of %d experts do not come back", (int)experts);
    set_bits(ids, experts, true, s.bits);
    const bool differs = memcmp(want, s.bits, bytes) != 0;
    const bool refused = moe_routing_from_sparse(&v, experts, &again, NULL) == MOE_E_VALUE;
    CHECK(differs && refused, "-1 shifted into the bit matrix of %d experts: SURVIVED",
          (int)experts);
    (void)printf("%-30s %-14d %-34s\n", "-1 shifted into a bit matrix", (int)experts,
                 differs && refused ? "bits refused" : "SURVIVED");
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    moe_context *clean = NULL;
    desc.num_threads = 2;
    if (!CHECK(moe_context_create(&desc, &clean) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    (void)printf("%-30s %-14s %-34s %8s\n", "mutation", "format", "caught by", "ratio");
    int mutations = 0;
    for (moec_mutation m = MOEC_MUTATE_NOTHING + 1; m < MOEC_NUM_MUTATIONS; m++, mutations++) {
        for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
            if ((applies_to(m) & formats[f].bit) != 0) {
                check_one(clean, m, formats[f].format);
            }
        }
    }
    static const int32_t experts[] = {24, 32, 66};
    for (size_t i = 0; i < sizeof experts / sizeof experts[0]; i++) {
        check_bitmatrix(experts[i]);
    }
    (void)printf("%d mutations\n", mutations + 1);
    moe_context_destroy(clean);
    return test_summary();
}
