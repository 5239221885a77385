// SPDX-License-Identifier: Apache-2.0
// A layer's router and linear maps: the tensors beside the experts, by the names of model classes.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "io/checkpoint.h"
#include "io/dialects.h"
#include "io/text.h"
#include "quant/elements.h"

/// Which field a tensor goes to; the index of moe_checkpoint_layer.named.
enum target {
    ROUTER_WEIGHT,
    ROUTER_BIAS,
    CORRECTION_BIAS,
    SCALE_TENSOR,
    HASH_TABLE,
    SHARED_GATE,
    LATENT_IN,
    LATENT_OUT,
    OUTPUT_BIAS,
    NUM_TARGETS
};
_Static_assert(SHARED_GATE == MOEI_NUM_ROUTER_TENSORS && NUM_TARGETS == MOEI_NUM_NAMED,
               "moe_checkpoint_layer.named has a place for each");

// Below the layer's block. The first name that is there counts.
static const struct {
    enum target target;
    const char *name;
} names[] = {
    {ROUTER_WEIGHT, "router.weight"},
    {ROUTER_WEIGHT, "gate.weight"},
    {ROUTER_WEIGHT, "router.layer.weight"},
    {ROUTER_WEIGHT, "router.classifier.weight"},
    {ROUTER_WEIGHT, "router.gate.weight"},
    {ROUTER_WEIGHT, "gate.wg.weight"},
    {ROUTER_BIAS, "router.bias"},
    {ROUTER_BIAS, "gate.bias"},
    {CORRECTION_BIAS, "gate.e_score_correction_bias"},
    {CORRECTION_BIAS, "e_score_correction_bias"},
    {CORRECTION_BIAS, "router.e_score_correction_bias"},
    {CORRECTION_BIAS, "moe_statics.e_score_correction_bias"},
    {CORRECTION_BIAS, "gate.expert_bias"},
    {CORRECTION_BIAS, "expert_bias"},
    {CORRECTION_BIAS, "router.expert_bias"},
    {CORRECTION_BIAS, "router_bias"},
    {SCALE_TENSOR, "gate.global_scale"},
    {SCALE_TENSOR, "router.global_scale"},
    {HASH_TABLE, "gate.tid2eid"},
    {SHARED_GATE, "shared_expert_gate.weight"},
    {LATENT_IN, "fc1_latent_proj.weight"},
    {LATENT_OUT, "fc2_latent_proj.weight"},
    {OUTPUT_BIAS, "bias"},
};

#define FLOATS (1u << MOE_F32 | 1u << MOE_BF16 | 1u << MOE_F16)
#define IDS    (1u << MOE_I32 | 1u << MOE_I64)

static uint32_t find(const moe_checkpoint_layer *layer, const char *name)
{
    char full[MOEI_NAME_BYTES];
    (void)snprintf(full, sizeof full, "%s%s", layer->prefix, name);
    const size_t i = moei_checkpoint_lower(layer->checkpoint, full);
    const bool found = i < moe_checkpoint_count(layer->checkpoint) &&
                       strcmp(moei_checkpoint_sorted(layer->checkpoint, i), full) == 0;
    return found ? (uint32_t)i + 1 : 0;
}

static void find_all(moe_checkpoint_layer *layer)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        uint32_t *slot = &layer->named[names[i].target];
        *slot = *slot != 0 ? *slot : find(layer, names[i].name);
    }
    // DeepSeek-V4 calls its correction bias the gate's bias.
    if (layer->desc.route.correction_bias != 0 && layer->named[CORRECTION_BIAS] == 0) {
        layer->named[CORRECTION_BIAS] = layer->named[ROUTER_BIAS];
        layer->named[ROUTER_BIAS] = 0;
    }
}

// The example among the names, for messages about what is missing.
static const char *example(enum target target)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].target == target) {
            return names[i].name;
        }
    }
    return "";
}

/// What a tensor must be; dimensions that are -1 may be anything.
struct need {
    enum target target;
    bool wanted, optional;
    uint32_t dtypes;
    int64_t shape[2]; ///< shape[1] 0: one dimension
    moe_tensor *out;
};

static moe_status check(const moe_checkpoint_layer *layer, const char *call, const struct need *n)
{
    const char *label = moei_checkpoint_label(layer->checkpoint);
    const uint32_t index = layer->named[n->target];
    moe_tensor t;
    if (index == 0) {
        MOE_REQUIRE(!n->wanted || n->optional, MOE_E_NOT_FOUND,
                    "%s: %s: no tensor \"%s%s\", the configuration asks for it", call, label,
                    moei_quote_head(layer->prefix, strlen(layer->prefix)).text, example(n->target));
        return MOE_OK;
    }
    const char *name = moei_checkpoint_sorted(layer->checkpoint, index - 1);
    MOE_REQUIRE(n->wanted, MOE_E_MALFORMED,
                "%s: %s: the tensor \"%s\" is there, the configuration does not ask for it", call,
                label, moei_quote_head(name, strlen(name)).text);
    MOE_TRY(moei_checkpoint_view(call, layer->checkpoint, index - 1, &t));
    if (t.ndim == 2 && t.shape[0] == 1 && n->shape[1] == 0) {
        t.ndim = 1;
        t.shape[0] = t.shape[1];
        t.stride[0] = 1;
    } else if (t.ndim == 1 && n->shape[0] == 1 && n->shape[1] > 1) {
        t = moe_tensor_2d(t.data, t.dtype, 1, t.shape[0]);
    } else if (t.ndim == 0) {
        t.ndim = 1;
    }
    const bool shaped = t.ndim == (n->shape[1] != 0 ? 2 : 1) &&
                        (n->shape[0] < 0 || t.shape[0] == n->shape[0]) &&
                        (n->shape[1] == 0 || t.shape[1] == n->shape[1]);
    MOE_REQUIRE(shaped && (n->dtypes >> t.dtype & 1) != 0, MOE_E_MALFORMED,
                "%s: %s: \"%s\" is %s, expected %s [%" PRId64 ", %" PRId64 "]", call, label,
                moei_quote_head(name, strlen(name)).text, moei_tensor_describe(&t).text,
                n->dtypes == FLOATS ? "f32, bf16 or f16" : "i32 or i64", n->shape[0],
                n->shape[1] != 0 ? n->shape[1] : 1);
    *n->out = t;
    return MOE_OK;
}

// The correction bias and the scale are read as f32, which old files may also misalign.
static moe_status widen(moe_checkpoint_layer *layer, const char *call)
{
    moe_tensor *const tensors[] = {&layer->router.correction_bias, &layer->router.scale_tensor};
    size_t count = 0;
    for (size_t i = 0; i < 2; i++) {
        count += tensors[i]->data != NULL ? (size_t)tensors[i]->shape[0] : 0;
    }
    if (count == 0) {
        return MOE_OK;
    }
    layer->widened = malloc(count * sizeof layer->widened[0]);
    MOE_REQUIRE(layer->widened != NULL, MOE_E_NO_MEMORY, "%s: %s: out of memory", call,
                moei_checkpoint_label(layer->checkpoint));
    float *to = layer->widened;
    for (size_t i = 0; i < 2; i++) {
        if (tensors[i]->data == NULL) {
            continue;
        }
        const int64_t n = tensors[i]->shape[0];
        for (int64_t j = 0; j < n; j++) {
            to[j] =
                moei_load_one(tensors[i]->dtype,
                              (const unsigned char *)tensors[i]->data + tensors[i]->byte_offset, j);
        }
        *tensors[i] = moe_tensor_1d(to, MOE_F32, n);
        to += n;
    }
    return MOE_OK;
}

moe_status moei_layer_find_router(moe_checkpoint_layer *layer, const char *call)
{
    const moe_layer_desc *d = &layer->desc;
    const bool routed = d->routing == MOE_ROUTING_FROM_LOGITS;
    const bool sigmoid = d->shared.count > 0 && d->shared.gate == MOE_SHARED_SIGMOID;
    const int64_t scores = d->num_experts + d->route.zero_experts;
    const int64_t rows = scores + d->route.shared_scores;
    moe_router_tensors *r = &layer->router;
    const struct need needs[] = {
        {ROUTER_WEIGHT, routed, false, FLOATS, {rows, d->hidden}, &r->weight},
        {ROUTER_BIAS, routed, true, FLOATS, {rows, 0}, &r->bias},
        {CORRECTION_BIAS,
         d->route.correction_bias != 0,
         false,
         FLOATS,
         {scores, 0},
         &r->correction_bias},
        {SCALE_TENSOR, d->route.scale_tensor != 0, false, FLOATS, {1, 0}, &r->scale_tensor},
        {HASH_TABLE, d->route.hash_table != 0, false, IDS, {-1, d->top_k}, &r->hash_table},
        {SHARED_GATE, sigmoid, false, FLOATS, {1, d->hidden}, &layer->shared_gate},
        {LATENT_IN, d->latent > 0, false, FLOATS, {d->latent, d->hidden}, &layer->latent_in},
        {LATENT_OUT, d->latent > 0, false, FLOATS, {d->hidden, d->latent}, &layer->latent_out},
        {OUTPUT_BIAS, d->output_bias != 0, false, FLOATS, {d->hidden, 0}, &layer->output_bias},
    };
    find_all(layer);
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++) {
        MOE_TRY(check(layer, call, &needs[i]));
    }
    return widen(layer, call);
}
