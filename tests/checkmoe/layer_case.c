// SPDX-License-Identifier: Apache-2.0
// Builds the weights, items and tables of a case for its descriptor.
#include "checkmoe/layer_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ggemm.h"
#include "ops/quantize.h"
#include "quant/elements.h"

bool moec_is_float(moe_dtype dtype)
{
    return dtype == MOE_F32 || dtype == MOE_BF16 || dtype == MOE_F16;
}

static moe_dtype or_x(const moec_layer_case *c, moe_dtype dtype)
{
    return dtype != 0 ? dtype : c->desc.x_dtype;
}

moe_dtype moec_layer_inter_dtype(const moec_layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    if (d->gemm[1].act.spec != MOE_QUANT_NONE &&
        (d->shared.count == 0 || d->shared.gemm[1].act.spec != MOE_QUANT_NONE)) {
        return MOE_F32;
    }
    return or_x(c, c->desc.inter_dtype);
}

moe_dtype moec_layer_partial_dtype(const moec_layer_case *c)
{
    return or_x(c, c->desc.partial_dtype);
}

moe_dtype moec_layer_out_dtype(const moec_layer_case *c)
{
    return or_x(c, c->desc.out_dtype);
}

int32_t moec_layer_local_count(const moec_layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    return d->num_local_experts > 0 ? d->num_local_experts
           : d->replicas > 0        ? d->replicas
                                    : d->num_experts + d->route.append_shared;
}

int32_t moec_layer_slots(const moec_layer_case *c)
{
    return c->desc.x_layout == MOE_X_TOKENS ? c->desc.top_k + c->desc.route.append_shared : 1;
}

bool moec_layer_by_index(const moec_layer_case *c)
{
    return c->desc.replicas > 0 && (!c->replicas_alike || c->desc.expert_map != 0);
}

static size_t dtype_bytes(moe_dtype dtype)
{
    return (size_t)moe_dtype_bits(dtype) / 8;
}

static double unit(moec_rng *rng)
{
    return (double)(moec_next(rng) >> 11) * 0x1p-53;
}

static void store(moe_dtype dtype, void *data, int64_t i, double value)
{
    const float f = (float)value;
    moei_store_f32(dtype, (uint8_t *)data + (size_t)i * dtype_bytes(dtype), 1, &f);
}

// A value that its dtype can hold.
static float representable(moe_dtype dtype, double value)
{
    return moei_round_to(dtype, (float)value);
}

// ---- weights ------------------------------------------------------------------------------------

static bool build_stack(moec_layer_case *c, moec_rng *rng, moec_stack *m, bool shared, int g)
{
    const moe_layer_desc *d = &c->desc;
    const moe_activation act = shared ? d->shared.activation : d->activation;
    const int64_t inter = shared ? d->shared.inter : d->inter;
    const int64_t width = !shared && d->latent > 0 ? d->latent : d->hidden;
    m->gemm = shared ? d->shared.gemm[g] : d->gemm[g];
    m->info = moei_format(m->gemm.weight_format);
    m->count = shared ? d->shared.count : moec_layer_local_count(c);
    m->n = g == 1 ? width : moe_activation_gated(act) != 0 ? 2 * inter : inter;
    m->k = g == 0 ? width : inter;
    m->transposed = (shared ? d->shared.transposed : d->transposed) != 0;
    m->gate_up = g == 1 ? MOE_GATE_UP_UNSET : shared ? d->shared.gate_up : d->gate_up;
    return moec_stack_build(m, rng, c->fill);
}

static bool build_linear(moec_rng *rng, moec_linear *l, int64_t n, int64_t k)
{
    static const moe_dtype floats[] = {MOE_F32, MOE_BF16, MOE_F16};
    l->dtype = floats[moec_below(rng, 3)];
    l->n = n;
    l->k = k;
    l->dense = malloc((size_t)(n * k) * sizeof(double));
    if (l->dense == NULL ||
        !moec_guard_alloc(&l->values, (size_t)(n * k) * dtype_bytes(l->dtype), true)) {
        return false;
    }
    for (int64_t i = 0; i < n * k; i++) {
        store(l->dtype, l->values.data, i, 1.2 * moec_normal(rng) / sqrt((double)k));
        l->dense[i] = (double)moei_load_one(l->dtype, l->values.data, i);
    }
    return true;
}

static void free_linear(moec_linear *l)
{
    moec_guard_free(&l->values);
    free(l->dense);
}

// Replicas of an expert hold the weights of the first of them.
static void equalise_replicas(moec_layer_case *c)
{
    for (int32_t e = 0; e < c->desc.num_experts; e++) {
        for (int32_t s = 1; s < c->replica_count[e] && s < c->replica_slots; s++) {
            const int32_t *slots = c->replica_table + (int64_t)e * c->replica_slots;
            if (slots[0] >= 0 && slots[s] >= 0 && slots[s] != slots[0]) {
                moec_stack_copy_expert(&c->gemm[0], slots[0], slots[s]);
                moec_stack_copy_expert(&c->gemm[1], slots[0], slots[s]);
            }
        }
    }
}

static bool build_weights(moec_layer_case *c, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    bool ok = true;
    for (int g = 0; g < 2; g++) {
        ok = ok && build_stack(c, rng, &c->gemm[g], false, g);
        ok = ok && (d->shared.count == 0 || build_stack(c, rng, &c->shared[g], true, g));
    }
    if (ok && !moec_is_float(d->x_dtype) && c->shared[0].act_scale.data != NULL) {
        memcpy(c->shared[0].act_scale.data, c->gemm[0].act_scale.data, sizeof(float));
    }
    if (ok && d->shared.count > 0 && d->shared.gate == MOE_SHARED_SIGMOID) {
        ok = build_linear(rng, &c->shared_gate, 1, d->hidden);
    }
    if (ok && d->latent > 0) {
        ok = build_linear(rng, &c->latent_in, d->latent, d->hidden) &&
             build_linear(rng, &c->latent_out, d->hidden, d->latent);
    }
    if (ok && d->output_bias != 0) {
        ok = build_linear(rng, &c->output_bias, d->hidden, 1);
    }
    if (ok && d->replicas > 0 && c->replicas_alike && d->expert_map == 0) {
        equalise_replicas(c);
    }
    return ok;
}

bool moec_layer_redraw_experts(moec_layer_case *c, moec_rng *rng)
{
    // Static activation scales belong to all experts.
    for (int g = 0; g < 2; g++) {
        float scale = 0.0f;
        if (c->gemm[g].act_scale.data != NULL) {
            memcpy(&scale, c->gemm[g].act_scale.data, sizeof scale);
        }
        if (!moec_stack_redraw(&c->gemm[g], rng, c->fill)) {
            return false;
        }
        if (c->gemm[g].act_scale.data != NULL) {
            memcpy(c->gemm[g].act_scale.data, &scale, sizeof scale);
        }
    }
    return true;
}

static moe_tensor linear_tensor(const moec_linear *l)
{
    return l->n == 0 ? (moe_tensor){0} : moe_tensor_2d(l->values.data, l->dtype, l->n, l->k);
}

moe_weights_source moec_layer_expert_source(const moec_layer_case *c, int32_t expert)
{
    moe_weights_source s = moe_weights_source_default();
    s.gemm[0] = moec_stack_source(&c->gemm[0], expert, 1);
    s.gemm[1] = moec_stack_source(&c->gemm[1], expert, 1);
    return s;
}

moe_weights_source moec_layer_source(const moec_layer_case *c)
{
    moe_weights_source s = moe_weights_source_default();
    for (int g = 0; g < 2; g++) {
        s.gemm[g] = moec_stack_source(&c->gemm[g], 0, c->gemm[g].count);
        if (c->desc.shared.count > 0) {
            s.shared[g] = moec_stack_source(&c->shared[g], 0, c->shared[g].count);
        }
    }
    s.shared_gate = linear_tensor(&c->shared_gate);
    s.latent_in = linear_tensor(&c->latent_in);
    s.latent_out = linear_tensor(&c->latent_out);
    if (c->output_bias.n > 0) {
        s.output_bias =
            moe_tensor_1d(c->output_bias.values.data, c->output_bias.dtype, c->output_bias.n);
    }
    return s;
}

uint64_t moec_layer_hash(const moec_layer_case *c)
{
    uint64_t hash = 0;
    const moec_stack *stacks[] = {&c->gemm[0], &c->gemm[1], &c->shared[0], &c->shared[1]};
    for (size_t i = 0; i < 4; i++) {
        const moec_stack *m = stacks[i];
        const moec_guard *guards[] = {&m->values, &m->scales, &m->scale2,
                                      &m->zeros,  &m->bias,   &m->act_scale};
        for (size_t j = 0; j < sizeof guards / sizeof guards[0]; j++) {
            hash = hash * 31 + moec_hash(guards[j]->data, guards[j]->bytes);
        }
    }
    const moec_linear *linears[] = {&c->shared_gate, &c->latent_in, &c->latent_out,
                                    &c->output_bias};
    for (size_t i = 0; i < 4; i++) {
        hash = hash * 31 + moec_hash(linears[i]->values.data, linears[i]->values.bytes);
    }
    return hash;
}

// ---- x ------------------------------------------------------------------------------------------

static double draw_x(moec_rng *rng, moec_layer_fill fill, int64_t k, bool special)
{
    static const double specials[] = {-0.0, 0.0,      0x1p-130,  -0x1p-140,
                                      1e20, HUGE_VAL, -HUGE_VAL, (double)NAN};
    if (special && moec_below(rng, 12) == 0) {
        return specials[moec_below(rng, 8)];
    }
    const double x = moec_normal(rng);
    return fill == MOEC_LAYER_HEAVY && k % 13 == 5 ? 100.0 * x
           : fill == MOEC_LAYER_TINY               ? x * (k % 3 == 0 ? 0x1p-60 : 0x1p-20)
                                                   : x;
}

// What a code of x stands for: exact in double.
static double code_value(const moec_layer_case *c, const moe_quant_desc *act, int64_t row,
                         int64_t k)
{
    const int64_t group = act->group > 0 ? k / act->group : 0;
    const unsigned char *scales = c->x_scales + (size_t)row * c->x_scale_bytes;
    double value = (double)moei_load_one(act->elem, c->x + (size_t)row * c->x_bytes, k);
    float given = c->x_scale;
    if (c->gemm[0].act_scale.data != NULL) {
        memcpy(&given, c->gemm[0].act_scale.data, sizeof given);
    }
    if (c->x_scale_bytes == 0) {
        return value * (double)given;
    }
    // Packed scales are bytes in the order of their groups.
    const bool packed = act->scale_type == MOE_SCALE_UE8M0_PACKED;
    value *=
        (double)moei_load_one(packed ? MOE_E8M0 : moei_scale_dtype(act->scale_type), scales, group);
    return moei_quant_has_global_scale(act) ? value / (double)given : value;
}

// Codes and scales of x as a caller's quantiser would give them, from f32 rows.
static bool quantise_x(moec_layer_case *c, moe_context *ctx, const float *x)
{
    const moe_layer_desc *d = &c->desc;
    const int64_t rows = 2 * (int64_t)c->items;
    moe_quantize_args a = moe_quantize_args_default();
    a.quant = d->gemm[0].act;
    a.quant.scale_layout = MOE_SCALE_LAYOUT_ROW;
    const moei_scale_shape s = moei_quant_scale_shape(&a.quant, 1, rows, d->hidden);
    const bool codes_are_bytes = moe_dtype_bits(d->x_dtype) <= 8;
    c->x_bytes = (size_t)moei_quant_row_bytes(d->x_dtype, d->hidden);
    c->x_scale_bytes = s.row_stride == 0 ? 0 : (size_t)s.columns * dtype_bytes(s.dtype);
    c->x = calloc((size_t)rows + 1, c->x_bytes);
    c->x_scales = calloc((size_t)rows + 1, c->x_scale_bytes + sizeof(float));
    c->x_dense = calloc((size_t)(rows * d->hidden) + 1, sizeof(double));
    if (c->x == NULL || c->x_scales == NULL || c->x_dense == NULL) {
        return false;
    }
    if (c->items == 0) {
        return true;
    }
    a.x = moe_tensor_2d(x, MOE_F32, rows, d->hidden);
    a.q = moe_tensor_2d(c->x, codes_are_bytes ? MOE_U8 : d->x_dtype, rows,
                        codes_are_bytes ? (int64_t)c->x_bytes : d->hidden);
    a.scales = s.row_stride != 0 ? moe_tensor_2d(c->x_scales, s.dtype, rows, s.columns)
                                 : moe_tensor_1d(&c->x_scale, MOE_F32, 1);
    if (moei_quant_needs_given_scale(&a.quant)) {
        const moe_tensor given = moe_tensor_1d(c->gemm[0].act_scale.data, MOE_F32, 1);
        if (moei_quant_has_global_scale(&a.quant)) {
            a.global_scale = given;
        } else {
            a.scales = given;
        }
    }
    if (moe_quantize(ctx, &a, NULL) != MOE_OK) {
        return false;
    }
    moe_quant_desc resolved = a.quant;
    moei_quant_resolve(&resolved);
    for (int64_t i = 0; i < rows * d->hidden; i++) {
        c->x_dense[i] = code_value(c, &resolved, i / d->hidden, i % d->hidden);
    }
    return true;
}

static bool build_x(moec_layer_case *c, moe_context *ctx, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    const size_t rows = 2 * (size_t)c->items;
    const size_t elems = rows * (size_t)d->hidden;
    float *x = calloc(elems + 1, sizeof *x);
    bool ok = x != NULL;
    for (size_t r = 0; ok && r < rows; r++) {
        // Companions are the worst neighbours: half of them are NaN or infinite.
        const bool companion = r >= (size_t)c->items;
        const bool special =
            companion || (c->fill == MOEC_LAYER_SPECIAL && moec_below(rng, 3) == 0);
        for (int64_t k = 0; k < d->hidden; k++) {
            x[r * (size_t)d->hidden + (size_t)k] = (float)draw_x(rng, c->fill, k, special);
        }
    }
    if (ok && !moec_is_float(d->x_dtype)) {
        ok = quantise_x(c, ctx, x);
    } else if (ok) {
        c->x_bytes = (size_t)d->hidden * dtype_bytes(d->x_dtype);
        c->x = calloc(rows + 1, c->x_bytes);
        c->x_dense = calloc(elems + 1, sizeof(double));
        ok = c->x != NULL && c->x_dense != NULL;
        for (size_t i = 0; ok && i < elems; i++) {
            store(d->x_dtype, c->x, (int64_t)i, (double)x[i]);
            c->x_dense[i] = (double)moei_load_one(d->x_dtype, c->x, (int64_t)i);
        }
    }
    free(x);
    return ok;
}

// ---- routing ------------------------------------------------------------------------------------

static void draw_logits(moec_layer_case *c, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    const moe_dtype dtype = d->logits_dtype != 0 ? d->logits_dtype : MOE_F32;
    const int32_t favourite = (int32_t)moec_below(rng, d->num_experts);
    static const double specials[] = {HUGE_VAL, -HUGE_VAL, (double)NAN, -0.0, 30.0, -30.0};
    for (int32_t t = 0; t < 2 * c->items; t++) {
        const bool special =
            (c->fill == MOEC_LAYER_SPECIAL || t >= c->items) && moec_below(rng, 3) == 0;
        for (int32_t e = 0; e < c->logit_columns; e++) {
            double value = 2.0 * moec_normal(rng);
            value = c->ties ? floor(value) : value;
            value += c->one_expert && e == favourite ? 40.0 : 0.0;
            if (special && moec_below(rng, 4) == 0) {
                value = specials[moec_below(rng, 6)];
            }
            store(dtype, c->logits, (int64_t)t * c->logit_columns + e, value);
        }
    }
}

static void draw_given(moec_layer_case *c, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    const int64_t named = (int64_t)d->num_experts + d->route.zero_experts;
    const int64_t favourite = moec_below(rng, d->num_experts);
    const moe_dtype dtype = d->weights_dtype != 0 ? d->weights_dtype : MOE_F32;
    for (int64_t t = 0; t < 2 * (int64_t)c->items; t++) {
        for (int32_t j = 0; j < d->top_k; j++) {
            const int64_t at = t * d->top_k + j;
            const int64_t wide[] = {-1,
                                    -1,
                                    -1,
                                    named,
                                    named + 7,
                                    -5,
                                    INT32_MAX,
                                    INT64_C(0x100000000),
                                    -(INT64_C(1) << 40)};
            const int64_t kinds = d->ids_dtype == MOE_I64 ? 9 : 7;
            int64_t id = c->one_expert ? favourite : moec_below(rng, named);
            if (c->all_absent || moec_below(rng, 7) == 0) {
                id = wide[moec_below(rng, kinds)];
            }
            double weight = 0.4 + 0.3 * moec_normal(rng);
            const bool absent = id < 0 || id >= named;
            if (absent && moec_below(rng, 2) == 0) {
                weight = (double)NAN; // of nothing: must not show
            }
            c->ids[at] = id;
            c->weights[at] = representable(dtype, weight);
        }
        for (int32_t i = 0; i < d->shared.count; i++) {
            c->shared_weights[t * d->shared.count + i] = (float)(0.5 * moec_normal(rng));
        }
    }
}

static void draw_hash(moec_layer_case *c, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    const int64_t named = (int64_t)d->num_experts + d->route.zero_experts;
    c->hash_wide = moec_below(rng, 2) == 0;
    for (int64_t i = 0; i < (int64_t)c->vocabulary * d->top_k; i++) {
        c->hash_table[i] = moec_below(rng, 12) == 0 ? (moec_below(rng, 2) == 0 ? -1 : named)
                                                    : moec_below(rng, named);
    }
    for (int32_t t = 0; t < 2 * c->items; t++) {
        c->token_ids[t] = moec_below(rng, c->vocabulary + 2) - 1;
    }
}

// Local ids of physical experts: distinct ones where there is room, some remote, some nonsense.
static void draw_map(moec_layer_case *c, moec_rng *rng)
{
    const int32_t local = moec_layer_local_count(c);
    int32_t next = 0;
    for (int32_t p = 0; p < c->physical; p++) {
        const int64_t at = moec_below(rng, 10);
        c->expert_map[p] = at < 2         ? -1
                           : at == 2      ? (int32_t)moec_below(rng, local)
                           : at == 3      ? local + (int32_t)moec_below(rng, 3)
                           : next < local ? next++
                                          : -1;
    }
}

static void draw_replicas(moec_layer_case *c, moec_rng *rng)
{
    const int32_t experts = c->desc.num_experts;
    for (int32_t i = 0; i < experts * c->replica_slots; i++) {
        c->replica_table[i] = -1;
    }
    for (int32_t p = 0; p < c->desc.replicas; p++) { // physical expert p is one of expert p mod E
        const int32_t e = p % experts;
        if (c->replica_count[e] < c->replica_slots) {
            c->replica_table[e * c->replica_slots + c->replica_count[e]++] = p;
        }
    }
    for (int32_t e = 0; e < experts && !c->replicas_alike; e++) {
        const int64_t at = moec_below(rng, 12);
        c->replica_count[e] = at == 0 ? 0 : at == 1 ? c->replica_slots + 1 : c->replica_count[e];
    }
}

static bool allocate_routing(moec_layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    const size_t rows = 2 * (size_t)c->items + 1;
    c->logit_columns = d->num_experts + d->route.zero_experts + d->route.shared_scores;
    c->vocabulary = 17;
    const size_t slots = (size_t)moec_layer_slots(c);
    c->logits = calloc(rows * (size_t)c->logit_columns, 4);
    c->ids = calloc(rows * slots, sizeof *c->ids);
    c->token_ids = calloc(rows, sizeof *c->token_ids);
    c->weights = calloc(rows * slots, sizeof *c->weights);
    c->shared_weights = calloc(rows * ((size_t)d->shared.count + 1), sizeof *c->shared_weights);
    c->append_gate = calloc(rows * ((size_t)d->route.append_shared + 1), sizeof *c->append_gate);
    c->expert = calloc(rows, sizeof *c->expert);
    c->correction_bias = calloc((size_t)c->logit_columns, sizeof *c->correction_bias);
    c->scale_tensor = calloc(1, sizeof *c->scale_tensor);
    c->hash_table = calloc((size_t)c->vocabulary * slots, sizeof *c->hash_table);
    c->expert_map = calloc((size_t)c->physical + 1, sizeof *c->expert_map);
    c->replica_table =
        calloc((size_t)d->num_experts * ((size_t)c->replica_slots + 1), sizeof *c->replica_table);
    c->replica_count = calloc((size_t)d->num_experts, sizeof *c->replica_count);
    return c->logits != NULL && c->ids != NULL && c->token_ids != NULL && c->weights != NULL &&
           c->shared_weights != NULL && c->append_gate != NULL && c->expert != NULL &&
           c->correction_bias != NULL && c->scale_tensor != NULL && c->hash_table != NULL &&
           c->expert_map != NULL && c->replica_table != NULL && c->replica_count != NULL;
}

static void draw_placed(moec_layer_case *c, moec_rng *rng)
{
    const int32_t experts = moec_layer_local_count(c);
    int32_t expert = c->one_expert ? (int32_t)moec_below(rng, experts) : 0;
    for (int32_t i = 0; i < c->items; i++) {
        while (!c->one_expert && expert + 1 < experts && moec_below(rng, 3) == 0) {
            expert++;
        }
        c->expert[i] = expert;
        c->expert[c->items + i] = expert;
    }
    for (int32_t i = 0; i < 2 * c->items; i++) {
        c->weights[i] = (float)(0.4 + 0.3 * moec_normal(rng));
    }
}

static void draw_routing(moec_layer_case *c, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    if (d->routing == MOE_ROUTING_PLACED) {
        draw_placed(c, rng);
        return;
    }
    if (d->routing == MOE_ROUTING_GIVEN) {
        draw_given(c, rng);
    } else {
        draw_logits(c, rng);
        for (int32_t e = 0; e < d->num_experts + d->route.zero_experts; e++) {
            c->correction_bias[e] = (float)(0.3 * moec_normal(rng));
        }
        c->scale_tensor[0] = (float)(0.5 + unit(rng));
        if (d->route.hash_table) {
            draw_hash(c, rng);
        }
        for (int32_t i = 0; i < 2 * c->items * d->route.append_shared; i++) {
            c->append_gate[i] = (float)(0.5 * moec_normal(rng));
        }
    }
    if (d->replicas > 0) {
        draw_replicas(c, rng);
    }
    if (d->expert_map != 0) {
        draw_map(c, rng);
    }
}

static bool build_previous(moec_layer_case *c, moec_rng *rng)
{
    const moe_layer_desc *d = &c->desc;
    const moe_dtype dtype = moec_layer_out_dtype(c);
    const bool slots = d->out_mode == MOE_OUT_SLOTS;
    c->out_row_elems = (size_t)d->hidden * (slots ? (size_t)moec_layer_slots(c) : 1);
    const size_t elems = 2 * (size_t)c->items * c->out_row_elems;
    c->previous = calloc(elems + 1, dtype_bytes(dtype));
    for (size_t i = 0; c->previous != NULL && i < elems; i++) {
        store(dtype, c->previous, (int64_t)i, moec_normal(rng));
    }
    return c->previous != NULL;
}

// ---- the case -----------------------------------------------------------------------------------

static void describe(moec_layer_case *c)
{
    static const char *const layouts[] = {"tokens", "batched", "sorted"};
    static const char *const routings[] = {"unset", "logits", "given", "placed"};
    static const char *const modes[] = {"default", "combined", "slots", "layout"};
    static const char *const fills[] = {"normal", "heavy", "tiny", "special"};
    const moe_layer_desc *d = &c->desc;
    const moe_gemm_desc *g = d->gemm;
    (void)snprintf(
        c->text, sizeof c->text,
        "T=%d H=%lld I=%lld E=%d local=%d k=%d %s %s->%s fill=%s x=%s inter=%s partial=%s out=%s "
        "[%s sd=%d g=%d z=%d b=%d act=%s/%s/%d/%d] [%s sd=%d g=%d z=%d b=%d act=%s/%s/%d/%d]%s "
        "%s a=%g b=%g lb=%g l=%g gu=%d stage=%d scoring=%d renorm=%d scale=%g zero=%d append=%d "
        "groups=%d hash=%d map=%d replicas=%d%s shared=%dx%lld gate=%d latent=%lld obias=%d acc=%d "
        "valid=%d det=%d",
        (int)c->items, (long long)d->hidden, (long long)d->inter, (int)d->num_experts,
        (int)moec_layer_local_count(c), (int)d->top_k, layouts[d->x_layout], routings[d->routing],
        modes[d->out_mode], fills[c->fill], moe_dtype_name(d->x_dtype),
        moe_dtype_name(moec_layer_inter_dtype(c)), moe_dtype_name(moec_layer_partial_dtype(c)),
        moe_dtype_name(moec_layer_out_dtype(c)), moe_format_name(g[0].weight_format),
        (int)g[0].weight_scale_dtype, (int)g[0].weight_group, (int)g[0].zero_points, (int)g[0].bias,
        moe_quant_name(g[0].act.spec), moe_dtype_name(g[0].act.elem), (int)g[0].act.scale_type,
        (int)g[0].act.group, moe_format_name(g[1].weight_format), (int)g[1].weight_scale_dtype,
        (int)g[1].weight_group, (int)g[1].zero_points, (int)g[1].bias,
        moe_quant_name(g[1].act.spec), moe_dtype_name(g[1].act.elem), (int)g[1].act.scale_type,
        (int)g[1].act.group, d->transposed ? " transposed" : "", moe_activation_name(d->activation),
        (double)d->alpha, (double)d->beta, (double)d->linear_beta, (double)d->limit,
        (int)d->gate_up, (int)d->weight_stage, (int)d->route.scoring, (int)d->route.renormalise,
        (double)d->route.scale, (int)d->route.zero_experts, (int)d->route.append_shared,
        (int)d->route.num_groups, (int)d->route.hash_table, (int)d->expert_map, (int)d->replicas,
        c->replicas_alike ? " alike" : "", (int)d->shared.count, (long long)d->shared.inter,
        (int)d->shared.gate, (long long)d->latent, (int)d->output_bias, (int)d->accumulate,
        (int)c->use_valid, (int)d->determinism);
}

bool moec_layer_build(moec_layer_case *c, moe_context *ctx, moec_rng *rng)
{
    describe(c);
    if (!allocate_routing(c)) {
        return false;
    }
    draw_routing(c, rng); // before the weights, which replicas share
    return build_weights(c, rng) && build_x(c, ctx, rng) && build_previous(c, rng);
}

void moec_layer_free(moec_layer_case *c)
{
    for (int g = 0; g < 2; g++) {
        moec_stack_free(&c->gemm[g]);
        moec_stack_free(&c->shared[g]);
    }
    free_linear(&c->shared_gate);
    free_linear(&c->latent_in);
    free_linear(&c->latent_out);
    free_linear(&c->output_bias);
    void *const blocks[] = {c->x,
                            c->x_scales,
                            c->x_dense,
                            c->logits,
                            c->ids,
                            c->token_ids,
                            c->weights,
                            c->shared_weights,
                            c->append_gate,
                            c->expert,
                            c->previous,
                            c->correction_bias,
                            c->scale_tensor,
                            c->hash_table,
                            c->expert_map,
                            c->replica_table,
                            c->replica_count};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        free(blocks[i]);
    }
    memset(c, 0, sizeof *c);
}
