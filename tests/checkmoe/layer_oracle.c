// SPDX-License-Identifier: Apache-2.0
// What must come out of a case: the float64 layer, and plain statements of the routing outputs.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/plan_internal.h"
#include "checkmoe/ggemm_case.h"
#include "checkmoe/layer_case.h"
#include "float64/route.h"
#include "quant/elements.h"

// Infinite scales of codes multiply sums of a group, which dense values cannot express.
bool moec_layer_judged(const moec_layer_case *c)
{
    const bool inputs = c->desc.gemm[0].act.spec == MOE_QUANT_NONE &&
                        c->desc.shared.gemm[0].act.spec == MOE_QUANT_NONE;
    const bool codes = !moec_is_float(c->desc.x_dtype) && c->fill != MOEC_LAYER_SPECIAL;
    return (inputs || codes) && c->desc.gemm[1].act.spec == MOE_QUANT_NONE &&
           c->desc.shared.gemm[1].act.spec == MOE_QUANT_NONE;
}

static float64_mlp mlp_of(const moec_stack *w, const moei_mlp *plan)
{
    float64_mlp m = {.count = w[0].count, .width = w[0].k, .inter = w[1].k};
    for (int g = 0; g < 2; g++) {
        m.w[g] = w[g].dense;
        m.bias[g] = w[g].dense_bias;
        m.model[g] = moec_model_of(plan->kernel[g]);
    }
    m.activation = plan->act.activation;
    m.alpha = (double)plan->act.alpha;
    m.beta = (double)plan->act.beta;
    m.linear_beta = (double)plan->act.linear_beta;
    m.limit = (double)plan->act.limit;
    m.gate_up = plan->gate_up;
    return m;
}

static float64_layer layer_of(const moec_layer_case *c, const moe_plan *plan)
{
    const moe_layer_desc *d = &c->desc;
    float64_layer l = {.hidden = d->hidden,
                       .latent = d->latent,
                       .routed = mlp_of(c->gemm, &plan->routed),
                       .shared_gate_kind = d->shared.gate,
                       .shared_gate = c->shared_gate.dense,
                       .latent_in = c->latent_in.dense,
                       .latent_out = c->latent_out.dense,
                       .output_bias = c->output_bias.dense,
                       .shared_gate_model = moec_model_of(plan->linear[MOEI_LINEAR_SHARED_GATE]),
                       .latent_in_model = moec_model_of(plan->linear[MOEI_LINEAR_LATENT_IN]),
                       .latent_out_model = moec_model_of(plan->linear[MOEI_LINEAR_LATENT_OUT]),
                       .weight_stage = d->weight_stage,
                       .x_dtype = d->x_dtype,
                       .inter_dtype = moec_layer_inter_dtype(c),
                       .partial_dtype = moec_layer_partial_dtype(c),
                       .out_dtype = moec_layer_out_dtype(c),
                       .combined =
                           d->routing != MOE_ROUTING_PLACED && d->out_mode != MOE_OUT_SLOTS};
    if (d->shared.count > 0) {
        l.shared = mlp_of(c->shared, &plan->shared);
    }
    return l;
}

// ---- routing ------------------------------------------------------------------------------------

/// Slots of an item as float64 states them, and whether it could tell.
typedef struct item_slots {
    float64_slot *slot;
    int32_t *id; // as the router numbers experts
    double *shared, *shared_errors;
    bool certain;
    float64_route *route;
    float *logits;
} item_slots;

static bool slots_make(const moec_layer_case *c, item_slots *s)
{
    const size_t slots = (size_t)moec_layer_slots(c) + 1;
    const size_t shared = (size_t)c->desc.shared.count + 1;
    memset(s, 0, sizeof *s);
    s->slot = calloc(slots, sizeof *s->slot);
    s->id = calloc(slots, sizeof *s->id);
    s->shared = calloc(shared, sizeof(double));
    s->shared_errors = calloc(shared, sizeof(double));
    s->route = malloc(sizeof *s->route);
    s->logits = calloc((size_t)c->logit_columns + 1, sizeof(float));
    return s->slot != NULL && s->id != NULL && s->shared != NULL && s->shared_errors != NULL &&
           s->route != NULL && s->logits != NULL;
}

static void slots_free(item_slots *s)
{
    free(s->slot);
    free(s->id);
    free(s->shared);
    free(s->shared_errors);
    free(s->route);
    free(s->logits);
}

static void route_in_float64(const moec_layer_case *c, int32_t item, item_slots *s)
{
    const moe_layer_desc *d = &c->desc;
    const moe_dtype dtype = d->logits_dtype != 0 ? d->logits_dtype : MOE_F32;
    float64_route *r = s->route;
    const size_t row = (size_t)c->logit_columns * (size_t)moe_dtype_bits(dtype) / 8;
    moei_load_f32(dtype, c->logits + (size_t)item * row, 0, c->logit_columns, s->logits);
    r->desc = &d->route;
    r->num_experts = d->num_experts;
    r->top_k = d->top_k;
    r->logits = s->logits;
    r->bias = d->route.correction_bias != 0 ? c->correction_bias : NULL;
    r->scale_tensor = (double)c->scale_tensor[0];
    const int64_t token = c->token_ids[item];
    r->hash = d->route.hash_table != 0 && token >= 0 && token < c->vocabulary
                  ? c->hash_table + token * d->top_k
                  : NULL;
    float64_route_token(r);
    s->certain = r->margin > FLOAT64_ROUTE_MARGIN;
}

// The slots of the item at a position of a batch. Where float64 cannot tell which of two nearly
// equal scores is larger, `routing` decides.
static void fill_slots(const moec_layer_case *c, const moec_routing *routing, int32_t item,
                       int32_t position, item_slots *s)
{
    const moe_layer_desc *d = &c->desc;
    const int32_t slots = moec_layer_slots(c);
    const bool from_logits = d->routing == MOE_ROUTING_FROM_LOGITS;
    s->certain = true;
    if (from_logits) {
        route_in_float64(c, item, s);
    }
    for (int32_t j = 0; j < slots; j++) {
        float64_slot *slot = &s->slot[j];
        const int32_t at = position * slots + j;
        s->id[j] = routing->ids[at];
        slot->weight = (double)routing->weights[at];
        slot->weight_error = 0.0;
        if (from_logits && s->certain && j < d->top_k) {
            s->id[j] = s->route->ids[j];
            slot->weight = s->route->weights[j];
            slot->weight_error = s->route->bounds[j];
        } else if (from_logits && j >= d->top_k) {
            s->id[j] = d->num_experts + (j - d->top_k);
            slot->weight =
                moec_layer_has_append_gate(c)
                    ? (double)c->append_gate[item * d->route.append_shared + j - d->top_k]
                    : 1.0;
        }
        const bool identity = d->routing != MOE_ROUTING_PLACED && s->id[j] >= d->num_experts &&
                              s->id[j] < d->num_experts + d->route.zero_experts;
        slot->expert = identity ? FLOAT64_IDENTITY : moec_layer_local(c, position, s->id[j]);
    }
    for (int32_t i = 0; i < d->shared.count; i++) {
        const bool scored = from_logits && s->certain && d->route.shared_scores > 0;
        s->shared[i] =
            scored ? s->route->shared[i] : (double)routing->shared[position * d->shared.count + i];
        s->shared_errors[i] = scored ? s->route->shared_bounds[i] : 0.0;
    }
}

// ---- results ------------------------------------------------------------------------------------

static void compare(const moec_layer_case *c, const unsigned char *row, const double *value,
                    const double *bound, int32_t position, moec_layer_stats *stats)
{
    const moe_dtype dtype = moec_layer_out_dtype(c);
    for (size_t i = 0; i < c->out_row_elems; i++) {
        const double have = (double)moei_load_one(dtype, row, (int64_t)i);
        const double ratio = float64_ratio(have, value[i], bound[i]);
        stats->elements++;
        stats->unsure += bound[i] == HUGE_VAL && !isnan(value[i]);
        stats->marginal += ratio > 0.5;
        // What nothing was added to is +0.
        const bool negative_zero = value[i] == 0.0 && bound[i] == 0.0 && signbit(have) != 0;
        if (!(ratio <= stats->ratio) || negative_zero) {
            stats->ratio = negative_zero ? HUGE_VAL : ratio;
        }
        if (stats->values != NULL) {
            const size_t at = (size_t)position * c->out_row_elems + i;
            stats->values[at] = ratio > 0.0 || negative_zero ? value[i] : have;
            stats->bounds[at] = negative_zero ? (double)NAN : bound[i]; // NaN: nothing is within
        }
    }
}

bool moec_layer_judge(const moec_layer_case *c, const moe_plan *plan, const int32_t *items,
                      int32_t n, const moec_routing *routing, const unsigned char *results,
                      moec_layer_stats *stats)
{
    const float64_layer layer = layer_of(c, plan);
    const moe_dtype dtype = moec_layer_out_dtype(c);
    const size_t row = moec_layer_result_bytes(c, 1);
    double *value = calloc(3 * c->out_row_elems, sizeof(double));
    item_slots s;
    bool ok = slots_make(c, &s) && value != NULL;
    for (int32_t p = 0; ok && p < n; p++) {
        double *previous = value + 2 * c->out_row_elems;
        float64_token t = {.x = c->x_dense + (size_t)items[p] * (size_t)c->desc.hidden,
                           .slots = s.slot,
                           .num_slots = moec_layer_slots(c),
                           .shared_weights = s.shared,
                           .shared_weight_errors = s.shared_errors,
                           .value = value,
                           .bound = value + c->out_row_elems};
        fill_slots(c, routing, items[p], p, &s);
        if (c->desc.accumulate != 0) {
            for (size_t i = 0; i < c->out_row_elems; i++) {
                previous[i] =
                    (double)moei_load_one(dtype, c->previous + (size_t)items[p] * row, (int64_t)i);
            }
            t.previous = previous;
        }
        ok = float64_layer_token(&layer, &t);
        if (ok) {
            compare(c, results + (size_t)p * row, t.value, t.bound, p, stats);
        }
    }
    slots_free(&s);
    free(value);
    return ok;
}

// ---- outputs of the routing ---------------------------------------------------------------------

static int64_t load_id(const moe_tensor *t, int64_t row, int64_t column)
{
    const int64_t at = row * t->stride[0] + column;
    int64_t wide;
    int32_t narrow;
    if (t->dtype == MOE_I64) {
        memcpy(&wide, (const unsigned char *)t->data + 8 * at, sizeof wide);
        return wide;
    }
    memcpy(&narrow, (const unsigned char *)t->data + 4 * at, sizeof narrow);
    return narrow;
}

static bool check_slot(const moec_batch *r, const item_slots *s, const moec_routing *routing,
                       int32_t p, int32_t j, moec_routing_verdict *v)
{
    const int32_t at = p * moec_layer_slots(r->c) + j;
    const moe_tensor *weights = &r->args.out_weights;
    const int64_t id = load_id(&r->args.out_ids, p, j);
    const float have = moei_load_one(weights->dtype, weights->data, p * weights->stride[0] + j);
    const float want = moei_round_to(weights->dtype, routing->weights[at]);
    const double exact = s->slot[j].weight;
    const double bound = s->slot[j].weight_error +
                         (weights->dtype == MOE_BF16 ? 0x1p-8 : 0x1p-23) * fabs(exact) + 1e-40;
    const bool nan = isnan(have) && isnan(want);
    const bool routed = memcmp(&have, &want, sizeof have) == 0 || nan;
    const bool within = fabs((double)have - exact) <= bound || (isnan(have) && isnan(exact));
    if (v->values != NULL) {
        v->values[at] = routed && within ? (double)have : exact;
        v->bounds[at] = routed ? bound : (double)NAN; // NaN: nothing is within
    }
    if (id != s->id[j]) {
        (void)snprintf(v->text, sizeof v->text, "out_ids of item %d slot %d is %lld, must be %d",
                       (int)p, (int)j, (long long)id, (int)s->id[j]);
        return false;
    }
    if (!routed || !within) {
        (void)snprintf(v->text, sizeof v->text,
                       "out_weights of item %d slot %d is %.9g, moe_route gives %.9g, float64 "
                       "%.17g +- %.3g",
                       (int)p, (int)j, (double)have, (double)want, exact, bound);
        v->weights = true;
        return false;
    }
    return true;
}

bool moec_layer_check_routing(const moec_batch *r, const moec_routing *routing,
                              moec_routing_verdict *v)
{
    const moec_layer_case *c = r->c;
    if (r->out_ids.data == NULL) {
        return true;
    }
    const int32_t experts = moec_layer_local_count(c);
    int64_t *counts = calloc((size_t)experts + 1, sizeof *counts);
    int32_t *load = calloc((size_t)c->physical + 1, sizeof *load);
    item_slots s;
    const bool made = slots_make(c, &s) && counts != NULL && load != NULL;
    bool ok = made;
    for (int32_t p = 0; made && (ok || v->values != NULL) && p < r->n; p++) {
        fill_slots(c, routing, r->items[p], p, &s);
        for (int32_t j = 0; (ok || v->values != NULL) && j < moec_layer_slots(c); j++) {
            ok = check_slot(r, &s, routing, p, j, v) && ok;
            const int32_t physical = moec_layer_physical(c, p, s.id[j]);
            if (physical >= 0) {
                load[physical]++;
            }
            if (s.slot[j].expert >= 0) {
                counts[s.slot[j].expert]++;
            }
        }
    }
    if (ok && memcmp(counts, r->out_counts.data, (size_t)experts * sizeof *counts) != 0) {
        (void)snprintf(v->text, sizeof v->text, "out_counts differ from a plain count");
        ok = false;
    }
    if (ok && memcmp(load, r->load.data, (size_t)c->physical * sizeof *load) != 0) {
        (void)snprintf(v->text, sizeof v->text, "load differs from a plain count");
        ok = false;
    }
    slots_free(&s);
    free(counts);
    free(load);
    return ok;
}
