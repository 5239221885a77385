// SPDX-License-Identifier: Apache-2.0
// Draws descriptors over all of their fields, within what a plan accepts: a refused one is a
// failure.
#include <stdlib.h>
#include <string.h>

#include "checkmoe/layer_case.h"
#include "core/safemath.h"
#include "ops/ggemm.h"
#include "ops/quantize.h"
#include "quant/specs.h"

#define MAX_ITEMS   24
#define MAX_WEIGHTS 120000 // elements of the routed experts
#define MAX_MADDS   1500000

static bool chance(moec_rng *rng, int percent)
{
    return moec_below(rng, 100) < percent;
}

static int32_t between(moec_rng *rng, int32_t low, int32_t high)
{
    return low + (int32_t)moec_below(rng, (int64_t)high - low + 1);
}

static float uniform(moec_rng *rng, double low, double high)
{
    return (float)(low + (high - low) * (double)(moec_next(rng) >> 40) * 0x1p-24);
}

static moe_dtype draw_float(moec_rng *rng)
{
    static const moe_dtype floats[] = {MOE_F32, MOE_BF16, MOE_F16};
    return floats[moec_below(rng, 3)];
}

// Sizes at and beside every block and vector length, and a few of real models' odd ones.
static int64_t draw_size(moec_rng *rng)
{
    static const int32_t usual[] = {1,  2,  3,  5,  7,  8,  13, 15, 16, 17, 24, 31,
                                    32, 33, 40, 47, 48, 63, 64, 65, 80, 96, 99, 100};
    static const int32_t large[] = {127, 128, 129, 160, 255, 256, 257, 288, 320, 384};
    return chance(rng, 16) ? large[moec_below(rng, (int64_t)(sizeof large / sizeof large[0]))]
                           : usual[moec_below(rng, (int64_t)(sizeof usual / sizeof usual[0]))];
}

// ---- products -----------------------------------------------------------------------------------

static bool product_exists(const moe_gemm_desc *gemm, moe_dtype x)
{
    const moei_ggemm_problem problem = {.m_max = 1,
                                        .n = 1,
                                        .k = 1,
                                        .experts = 1,
                                        .gemm = gemm,
                                        .x_dtype = moei_gemm_operand_dtype(gemm, x),
                                        .y_dtype = MOE_F32};
    return moei_ggemm_fold(&problem) >= 0 && moei_ggemm_arith(&problem) != MOEI_NUM_ARITH;
}

static void draw_format(moec_rng *rng, moe_gemm_desc *gemm, bool whole_bytes)
{
    static const int32_t groups[] = {0, 16, 32, 64, 128};
    const moei_format_info *info;
    do {
        gemm->weight_format = between(rng, MOE_FORMAT_F32, MOEI_FORMAT_END - 1);
        info = moei_format(gemm->weight_format);
    } while (whole_bytes && moe_dtype_bits(info->elem) < 8);
    gemm->weight_group = info->free_group ? groups[moec_below(rng, 5)] : 0;
    gemm->weight_scale_dtype = 0;
    if (info->scale_dtypes != 0 && chance(rng, 60)) {
        do {
            gemm->weight_scale_dtype = (moe_dtype)moec_below(rng, 20);
        } while ((info->scale_dtypes & (1u << gemm->weight_scale_dtype)) == 0);
    }
    gemm->zero_points = info->zero_point >= 0 ? (int32_t)moec_below(rng, 2) : 0;
    gemm->bias = chance(rng, 40);
    gemm->channel_scale = info->free_group ? (int32_t)moec_below(rng, 2) : 0;
}

static moe_dtype draw_elem(moec_rng *rng, uint32_t elems)
{
    moe_dtype elem;
    do {
        elem = (moe_dtype)moec_below(rng, 24);
    } while ((elems & (1u << elem)) == 0);
    return elem;
}

// Any quantiser of rows that goes with the weights. arrives: the caller quantises.
static void draw_act(moec_rng *rng, moe_gemm_desc *gemm, bool arrives)
{
    static const int32_t groups[] = {0, 0, 16, 32, 64, 128};
    const moei_quant_info *info;
    size_t specs = 0;
    while (moei_quant_at(specs) != NULL) {
        specs++;
    }
    for (;;) {
        info = moei_quant_at((size_t)moec_below(rng, (int64_t)specs));
        moe_quant_desc act = {.spec = info->spec};
        if (info->level == MOE_DET_RUN && !chance(rng, 50)) {
            continue;
        }
        act.elem = chance(rng, 70) ? draw_elem(rng, info->elems) : 0;
        act.scale_type = chance(rng, 50) ? between(rng, MOE_SCALE_F32, MOE_SCALE_E4M3FN) : 0;
        act.scale_layout = info->group > 0 ? (moe_scale_layout)moec_below(rng, 3) : 0;
        act.group = info->free_group ? groups[moec_below(rng, 6)] : 0;
        act.amax_bound = info->scale == MOEI_SCALE_TOKEN && chance(rng, 30) ? 1.5f : 0.0f;
        gemm->act = act;
        // What the plan quantises it lays out itself; a global scale of codes must be given.
        if (arrives ? act.spec == MOE_QUANT_NVFP4_INVERSE
                    : act.scale_layout == MOE_SCALE_LAYOUT_COLUMN ||
                          act.scale_type == MOE_SCALE_UE8M0_PACKED) {
            continue;
        }
        if (moei_quant_check(&act, "draw") == MOE_OK &&
            moei_quant_check_act(&act, "draw", "draw") == MOE_OK && product_exists(gemm, MOE_F32)) {
            return;
        }
    }
}

typedef struct mlp_fields {
    moe_activation *activation;
    float *alpha, *beta, *linear_beta, *limit;
    moe_gate_up *gate_up;
    int32_t *transposed;
    moe_gemm_desc *gemm;
} mlp_fields;

// Limits are drawn so that they bite: gates and ups are about 1.
static void draw_activation(moec_rng *rng, const mlp_fields *f)
{
    *f->activation = between(rng, MOE_ACT_SILU, MOE_ACT_RELU2_NO_MUL);
    switch (*f->activation) {
    case MOE_ACT_SILU:
        *f->limit = chance(rng, 40) ? uniform(rng, 0.3, 2.0) : 0.0f;
        break;
    case MOE_ACT_SWIGLUOAI:
        *f->alpha = chance(rng, 50) ? 1.702f : uniform(rng, 0.5, 3.0);
        *f->beta = uniform(rng, 0.5, 1.5);
        *f->limit = chance(rng, 70) ? uniform(rng, 0.3, 3.0) : 0.0f;
        break;
    case MOE_ACT_SWIGLUSTEP:
        *f->limit = uniform(rng, 0.3, 1.5);
        break;
    case MOE_ACT_SITU:
        *f->beta = uniform(rng, 0.5, 4.0);
        *f->linear_beta = chance(rng, 60) ? uniform(rng, 0.5, 4.0) : 0.0f;
        break;
    default:
        break;
    }
    *f->gate_up = moe_activation_gated(*f->activation) != 0
                      ? between(rng, MOE_GATE_FIRST, MOE_UP_GATE_INTERLEAVED)
                      : 0;
}

static void draw_mlp(moec_rng *rng, const mlp_fields *f, const moe_quant_desc *x_codes)
{
    *f->transposed = chance(rng, 25);
    draw_activation(rng, f);
    do {
        draw_format(rng, &f->gemm[0], *f->transposed != 0);
        if (x_codes != NULL) {
            f->gemm[0].act = *x_codes;
        }
    } while (!product_exists(&f->gemm[0], MOE_F32));
    if (chance(rng, 60)) {
        f->gemm[1] = f->gemm[0];
        f->gemm[1].act = (moe_quant_desc){0};
        f->gemm[1].bias = chance(rng, 40);
    } else {
        draw_format(rng, &f->gemm[1], *f->transposed != 0);
    }
}

// What matrix units multiply without decoding it, on one device or another: chance alone would
// hardly ever draw both sides of a pair, nor sizes of several of its blocks.
static const struct {
    moe_format weights;
    moe_quant_desc act;
} pairs[MOEC_LAYERS_PAIRS / 2] = {
    {MOE_FORMAT_E4M3FNUZ_BLOCK, {.spec = MOE_QUANT_FP8_GROUP_DIV, .elem = MOE_E4M3FNUZ}},
    {MOE_FORMAT_E4M3FNUZ_CHANNEL, {.spec = MOE_QUANT_FP8_TOKEN, .elem = MOE_E4M3FNUZ}},
    {MOE_FORMAT_E4M3FN_BLOCK, {.spec = MOE_QUANT_FP8_GROUP_DIV, .elem = MOE_E4M3FN}},
    {MOE_FORMAT_E5M2_TENSOR, {.spec = MOE_QUANT_FP8_TOKEN, .elem = MOE_E5M2}},
    {MOE_FORMAT_MXFP4, {.spec = MOE_QUANT_MX_EVEN, .elem = MOE_E2M1}},
    {MOE_FORMAT_MXFP4, {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E4M3FN}},
    {MOE_FORMAT_MXFP6_E2M3, {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E2M3}},
    {MOE_FORMAT_MXFP8_E4M3, {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E5M2}},
};

static bool has_pair(int number)
{
    return number >= MOEC_LAYERS_DRAWN;
}

static void draw_pair(moe_layer_desc *d, int number)
{
    const size_t i = (size_t)(number - MOEC_LAYERS_DRAWN) / 2;
    for (int g = 0; g < 2; g++) {
        d->gemm[g] = (moe_gemm_desc){
            .weight_format = pairs[i].weights, .act = pairs[i].act, .bias = d->gemm[g].bias};
    }
    d->transposed = 0;
    d->x_dtype = moec_is_float(d->x_dtype) ? d->x_dtype : MOE_BF16;
}

// ---- routing ------------------------------------------------------------------------------------

static void draw_groups(moec_rng *rng, moe_layer_desc *d)
{
    moe_route_desc *r = &d->route;
    const int32_t groups = between(rng, 2, 8);
    if (d->num_experts % groups != 0) {
        r->num_groups = chance(rng, 20);
        return;
    }
    const int32_t size = d->num_experts / groups;
    r->num_groups = groups;
    r->top_groups = between(rng, (d->top_k + size - 1) / size, groups);
    r->group_score = size >= 2 && chance(rng, 50) ? MOE_GROUP_SCORE_TOP2_SUM : MOE_GROUP_SCORE_MAX;
    r->group_mask_zero = chance(rng, 30);
}

// Experts that a router weighs without choosing them need scores of single logits.
static void draw_logits_routing(moec_rng *rng, moe_layer_desc *d, bool single_logits)
{
    moe_route_desc *r = &d->route;
    d->logits_dtype = chance(rng, 30) ? 0 : draw_float(rng);
    do {
        r->scoring = between(rng, MOE_SCORING_SOFTMAX, MOE_SCORING_SPARSEMIXER);
    } while (single_logits && r->scoring != MOE_SCORING_SIGMOID &&
             r->scoring != MOE_SCORING_SQRTSOFTPLUS && r->scoring != MOE_SCORING_SIGMOID_SELECTED);
    if (r->scoring == MOE_SCORING_SPARSEMIXER && d->num_experts < 2) {
        r->scoring = MOE_SCORING_SOFTMAX;
    }
    r->scale = chance(rng, 50) ? uniform(rng, 0.3, 2.5) : 0.0f;
    r->scale_tensor = chance(rng, 25);
    if (r->scoring == MOE_SCORING_SPARSEMIXER) {
        d->top_k = 2;
        r->renormalise = MOE_RENORM_NONE;
        r->jitter_eps = chance(rng, 70) ? 0.01f : 0.0f;
    } else {
        r->renormalise = between(rng, MOE_RENORM_NONE, MOE_RENORM_CLAMPED);
        r->renorm_eps = r->renormalise != MOE_RENORM_NONE && chance(rng, 50) ? 1e-6f : 0.0f;
        if (d->x_dtype >= MOE_F32 && d->x_dtype <= MOE_F16 && chance(rng, 20)) {
            r->zero_experts = between(rng, 1, 5);
            d->top_k = chance(rng, 20) ? d->num_experts + r->zero_experts : d->top_k;
        }
        r->hash_table = chance(rng, 12);
        if (!r->hash_table) {
            r->correction_bias = chance(rng, 40);
            r->select_on = r->scoring <= MOE_SCORING_SQRTSOFTPLUS
                               ? (moe_select_on)moec_below(rng, 3)
                           : chance(rng, 50) ? MOE_SELECT_LOGITS
                                             : 0;
            if (r->zero_experts == 0 && chance(rng, 30)) {
                draw_groups(rng, d);
            }
        }
    }
    r->append_shared =
        r->zero_experts == 0 && d->replicas == 0 && chance(rng, 20) ? between(rng, 1, 2) : 0;
}

static void draw_placement(moec_layer_case *c, moec_rng *rng)
{
    moe_layer_desc *d = &c->desc;
    if (chance(rng, 15) && d->route.append_shared == 0) {
        d->replicas = between(rng, 1, 2 * d->num_experts);
        c->replicas_alike = chance(rng, 60);
        c->replica_slots = between(rng, 1, 4);
    }
    c->physical = d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
    if (chance(rng, 30)) {
        d->expert_map = 1;
        d->num_local_experts = between(rng, 1, c->physical);
    } else if (chance(rng, 30)) {
        d->num_local_experts = c->physical; // as the default says
    }
}

static void draw_routing(moec_layer_case *c, moec_rng *rng, bool single_logits, int number)
{
    moe_layer_desc *d = &c->desc;
    d->weight_stage = moec_is_float(d->x_dtype) ? between(rng, MOE_WEIGHT_OUTPUT, MOE_WEIGHT_NONE)
                      : chance(rng, 80)         ? MOE_WEIGHT_OUTPUT
                                                : MOE_WEIGHT_NONE;
    if (d->x_layout != MOE_X_TOKENS) {
        d->routing = MOE_ROUTING_PLACED;
        d->top_k = 0;
        d->num_local_experts = chance(rng, 30) ? d->num_experts : 0;
        return;
    }
    const bool given = number == 9 || (number != 1 && number != 5 && chance(rng, 40));
    d->routing = given ? MOE_ROUTING_GIVEN : MOE_ROUTING_FROM_LOGITS;
    d->ids_dtype = chance(rng, 50) ? MOE_I64 : (moe_dtype)(moec_below(rng, 2) * MOE_I32);
    d->weights_dtype = chance(rng, 40) ? MOE_BF16 : (moe_dtype)(moec_below(rng, 2) * MOE_F32);
    if (given) {
        d->route.zero_experts =
            moec_is_float(d->x_dtype) && chance(rng, 20) ? between(rng, 1, 3) : 0;
        c->all_absent = number == 9;
    } else {
        draw_logits_routing(rng, d, single_logits);
        c->ties = chance(rng, 30);
    }
    draw_placement(c, rng);
}

// ---- the rest -----------------------------------------------------------------------------------

static void draw_shared(moec_rng *rng, moe_layer_desc *d, moe_shared_gate gate)
{
    moe_shared_desc *s = &d->shared;
    const mlp_fields f = {&s->activation, &s->alpha,   &s->beta,       &s->linear_beta,
                          &s->limit,      &s->gate_up, &s->transposed, s->gemm};
    const bool codes = !moec_is_float(d->x_dtype);
    s->count = between(rng, 1, 3);
    s->inter = between(rng, 1, 40);
    s->gate = gate;
    draw_mlp(rng, &f, codes ? &d->gemm[0].act : NULL);
    if (!codes && chance(rng, 25)) {
        draw_act(rng, &s->gemm[0], false);
    }
    if (chance(rng, 25)) {
        draw_act(rng, &s->gemm[1], false);
    }
}

// Where every second product quantises h, there is no dtype of h but f32.
static void draw_precision(moec_rng *rng, moe_layer_desc *d)
{
    const bool must = !moec_is_float(d->x_dtype);
    const bool quantised = d->gemm[1].act.spec != MOE_QUANT_NONE &&
                           (d->shared.count == 0 || d->shared.gemm[1].act.spec != MOE_QUANT_NONE);
    d->inter_dtype = quantised                 ? (moe_dtype)(moec_below(rng, 2) * MOE_F32)
                     : must || chance(rng, 40) ? draw_float(rng)
                                               : 0;
    d->partial_dtype = must || chance(rng, 40) ? draw_float(rng) : 0;
    d->out_dtype = must || chance(rng, 40) ? draw_float(rng) : 0;
}

static void draw_sizes(moec_layer_case *c, moec_rng *rng, int number)
{
    moe_layer_desc *d = &c->desc;
    d->hidden = number == 2 || number == 8 ? 1 : draw_size(rng);
    d->inter = number == 3 || number == 8 ? 1 : draw_size(rng);
    if (has_pair(number)) {
        d->hidden = chance(rng, 50) ? 256 : 144;
        d->inter = chance(rng, 50) ? 160 : 130;
    }
    const int64_t room = has_pair(number) ? 6 : MAX_WEIGHTS / (3 * d->hidden * d->inter);
    const int32_t most = (int32_t)moei_i64_min(moei_i64_max(room, 1), 40);
    d->num_experts = number == 4 || number == 8 ? 1
                     : number == 11             ? most
                     : chance(rng, 60)          ? between(rng, 1, (int32_t)moei_i64_min(most, 8))
                                                : between(rng, 1, most);
    d->top_k = number == 1 || chance(rng, 12)
                   ? d->num_experts
                   : between(rng, 1, (int32_t)moei_i64_min(d->num_experts, 8));
    c->items = number == 0 || number == 6 || number == 7 ? 0
               : number == 1 || number == 8              ? 1
               : number == 11                            ? 3
                                                         : between(rng, 1, MAX_ITEMS);
}

static void draw_quantisation(moec_rng *rng, moe_layer_desc *d)
{
    if (chance(rng, 40)) {
        const bool arrives = chance(rng, 40);
        draw_act(rng, &d->gemm[0], arrives);
        if (arrives) {
            d->x_dtype = moei_gemm_operand_dtype(&d->gemm[0], MOE_DTYPE_UNSET);
        }
    }
    if (chance(rng, 35)) {
        draw_act(rng, &d->gemm[1], false);
    }
}

static bool spans(const moe_gemm_desc *gemm)
{
    return gemm->act.spec != MOE_QUANT_NONE && moei_quant_level(&gemm->act) < MOE_DET_BATCH;
}

bool moec_layer_spans_tokens(const moec_layer_case *c)
{
    return spans(&c->desc.gemm[0]) || spans(&c->desc.gemm[1]) || spans(&c->desc.shared.gemm[0]) ||
           spans(&c->desc.shared.gemm[1]);
}

static void draw_combined(moec_rng *rng, moe_layer_desc *d, moe_shared_gate gate, bool shared)
{
    if (shared) {
        draw_shared(rng, d, gate);
        if (gate == MOE_SHARED_ROUTER_WEIGHTED && d->routing == MOE_ROUTING_FROM_LOGITS) {
            d->route.shared_scores = d->shared.count;
            d->route.renorm_shared =
                d->route.renormalise != MOE_RENORM_NONE && chance(rng, 50) ? 1 : 0;
        }
    }
    d->latent = moec_is_float(d->x_dtype) && chance(rng, 15) ? between(rng, 1, 64) : 0;
    d->output_bias = chance(rng, 25);
}

static void draw_fill(moec_layer_case *c, moec_rng *rng)
{
    const int64_t at = moec_below(rng, 100);
    c->fill = at < 66   ? MOEC_LAYER_NORMAL
              : at < 76 ? MOEC_LAYER_HEAVY
              : at < 84 ? MOEC_LAYER_TINY
                        : MOEC_LAYER_SPECIAL;
    c->misaligned = chance(rng, 15);
}

void moec_layer_draw(moec_layer_case *c, moec_rng *rng, int number)
{
    moe_layer_desc *d = &c->desc;
    const mlp_fields f = {&d->activation, &d->alpha,   &d->beta,       &d->linear_beta,
                          &d->limit,      &d->gate_up, &d->transposed, d->gemm};
    const int64_t layout = moec_below(rng, 100);
    *d = moe_layer_desc_default();
    d->x_layout = number == 6                  ? MOE_X_BATCHED
                  : number == 7                ? MOE_X_SORTED
                  : number < 12 || layout < 70 ? MOE_X_TOKENS
                  : layout < 85                ? MOE_X_BATCHED
                                               : MOE_X_SORTED;
    draw_fill(c, rng);
    draw_sizes(c, rng, number);
    d->x_dtype = draw_float(rng);
    draw_mlp(rng, &f, NULL);
    draw_quantisation(rng, d);
    if (has_pair(number)) {
        draw_pair(d, number);
    }
    const bool tokens = d->x_layout == MOE_X_TOKENS;
    const bool slots = tokens && chance(rng, 25);
    d->out_mode = slots             ? MOE_OUT_SLOTS
                  : chance(rng, 50) ? MOE_OUT_DEFAULT
                  : tokens          ? MOE_OUT_COMBINED
                                    : MOE_OUT_LAYOUT;
    const bool shared = tokens && !slots && chance(rng, 40);
    moe_shared_gate gate = between(rng, MOE_SHARED_PLAIN, MOE_SHARED_ROUTER_WEIGHTED);
    if (!moec_is_float(d->x_dtype) && gate == MOE_SHARED_SIGMOID) {
        gate = MOE_SHARED_PLAIN;
    }
    draw_routing(c, rng, shared && gate == MOE_SHARED_ROUTER_WEIGHTED, number);
    if (tokens && !slots) {
        draw_combined(rng, d, gate, shared);
    }
    draw_precision(rng, d);
    if (has_pair(number) && number % 2 == 0) { // x is weighed, then quantised
        d->weight_stage = MOE_WEIGHT_INPUT;
    }
    d->accumulate = chance(rng, 25);
    c->one_expert = number == 5 || chance(rng, 6);
    c->use_valid = tokens && (number == 10 || chance(rng, 30));
    if (number == 10) {
        c->items = 0;
    }
    const int64_t work = 3 * d->hidden * d->inter * moei_i64_max(moec_layer_slots(c), 1);
    if (c->items > 1) {
        c->items = (int32_t)moei_i64_max(1, moei_i64_min(c->items, MAX_MADDS / work));
    }
    // Room for the batches that the checks make of the items, with rows past them.
    d->max_tokens = c->items + 8;
    d->determinism = moec_layer_spans_tokens(c) ? between(rng, MOE_DET_NONE, MOE_DET_RUN)
                     : has_pair(number)         ? MOE_DET_BATCH
                                                : (moe_determinism)moec_below(rng, 5);
}
