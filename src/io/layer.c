// SPDX-License-Identifier: Apache-2.0
// A layer of a checkpoint: open, and what it says of itself.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "io/checkpoint.h"
#include "io/config.h"
#include "io/dialects.h"

#define CALL "moe_checkpoint_layer_open"

// The stacks as the configuration has them, before any tensor is seen.
static void expect_stacks(moe_checkpoint_layer *layer)
{
    const moe_layer_desc *d = &layer->desc;
    layer->routed = (struct moei_stack){.what = "experts",
                                        .count = d->num_experts,
                                        .transposed = d->transposed != 0,
                                        .gate_up = d->gate_up};
    layer->shared = (struct moei_stack){.what = "shared experts",
                                        .count = d->shared.count,
                                        .transposed = d->shared.transposed != 0,
                                        .gate_up = d->shared.gate_up};
}

// The names by which lists of modules may mean a stack: that of one tensor without its suffix, and
// what is before it up to each dot, so that a list may name the whole.
static size_t module_names(const moe_checkpoint_layer *layer, const struct moei_stack *s,
                           char names[2][MOEI_NAME_BYTES])
{
    const char *name = NULL;
    for (int p = 0; p < MOEI_NUM_PROJECTIONS && name == NULL; p++) {
        for (int suffix = 1; suffix < MOEI_NUM_SUFFIXES && name == NULL; suffix++) {
            name = moei_piece_name(layer, &s->pieces[p], (enum moei_suffix)suffix);
        }
    }
    if (name == NULL || strlen(name) >= MOEI_NAME_BYTES) {
        return 0;
    }
    (void)snprintf(names[0], MOEI_NAME_BYTES, "%s", name);
    char *dot = strrchr(names[0], '.');
    if (!s->stacked && dot != NULL) {
        *dot = '\0';
    }
    memcpy(names[1], names[0], MOEI_NAME_BYTES);
    for (int up = s->stacked ? 1 : 2; up > 0; up--) {
        dot = strrchr(names[1], '.');
        if (dot != NULL) {
            *dot = '\0';
        }
    }
    return 2;
}

static moe_status check_stack(moe_checkpoint_layer *layer, const moei_json *doc,
                              struct moei_stack *stack)
{
    char names[2][MOEI_NAME_BYTES];
    struct moei_quant_says says;
    const size_t count = module_names(layer, stack, names);
    const char *const list[] = {names[0], names[1]};
    MOE_TRY(moei_quant_read(doc, list, count, &says));
    return moei_stack_check(layer, CALL, &says, stack);
}

// The descriptor's part of a stack, as load gives the weights.
static void fill_products(const struct moei_stack *s, moe_gate_up *gate_up, int32_t *transposed,
                          moe_gemm_desc gemm[2])
{
    *gate_up = s->gate_up;
    *transposed = s->transposed;
    for (int g = 0; g < 2; g++) {
        const struct moei_product *p = &s->gemm[g];
        gemm[g].weight_format = p->format;
        gemm[g].weight_scale_dtype = p->scale_dtype;
        gemm[g].weight_group = p->group;
        gemm[g].zero_points = p->zeros;
        gemm[g].bias = p->bias;
    }
}

static moe_status open_layer(moe_checkpoint_layer *layer, const moei_json *doc, int32_t index)
{
    const char *type = NULL;
    moe_layer_desc *d = &layer->desc;
    MOE_TRY(moei_config_type(doc, &type));
    (void)snprintf(layer->class_name, sizeof layer->class_name, "%s", type);
    expect_stacks(layer);
    MOE_TRY(moei_layer_gather(layer, CALL, index));
    MOE_TRY(check_stack(layer, doc, &layer->routed));
    fill_products(&layer->routed, &d->gate_up, &d->transposed, d->gemm);
    if (layer->shared.count > 0) {
        MOE_TRY(check_stack(layer, doc, &layer->shared));
        fill_products(&layer->shared, &d->shared.gate_up, &d->shared.transposed, d->shared.gemm);
    }
    return moei_layer_find_router(layer, CALL);
}

moe_status moe_checkpoint_layer_open(const moe_checkpoint *checkpoint, const char *config,
                                     size_t config_size, int32_t layer, moe_checkpoint_layer **out)
{
    moei_json doc;
    MOE_REQUIRE(checkpoint != NULL, MOE_E_ARGUMENT, CALL ": checkpoint is NULL");
    MOE_REQUIRE(config != NULL, MOE_E_ARGUMENT, CALL ": config is NULL");
    MOE_REQUIRE(out != NULL, MOE_E_ARGUMENT, CALL ": out is NULL");
    moe_layer_desc desc = moe_layer_desc_default();
    MOE_TRY(moe_layer_desc_from_config_layer(config, config_size, layer, &desc));
    MOE_TRY(moei_json_parse(&doc, CALL, "config", config, config_size, MOEI_JSON_PYTHON));
    moe_checkpoint_layer *l = calloc(1, sizeof *l);
    moe_status status = MOE_E_NO_MEMORY;
    if (l == NULL) {
        (void)moe_fail(status, CALL ": out of memory");
    } else {
        l->checkpoint = checkpoint;
        l->desc = desc;
        status = open_layer(l, &doc, layer);
    }
    moei_json_free(&doc);
    if (status != MOE_OK) {
        moe_checkpoint_layer_close(l);
        return status;
    }
    *out = l;
    return MOE_OK;
}

void moe_checkpoint_layer_close(moe_checkpoint_layer *layer)
{
    if (layer != NULL) {
        free(layer->routed.pieces);
        free(layer->shared.pieces);
        free(layer->widened);
        free(layer);
    }
}

const char *moe_checkpoint_layer_dialect(const moe_checkpoint_layer *layer)
{
    return layer == NULL ? NULL : layer->routed.dialect->name;
}

const char *moe_checkpoint_layer_shared_dialect(const moe_checkpoint_layer *layer)
{
    return layer == NULL || layer->shared.count == 0 ? NULL : layer->shared.dialect->name;
}

const char *moe_checkpoint_layer_class(const moe_checkpoint_layer *layer)
{
    return layer == NULL ? NULL : layer->class_name;
}

static void copy_products(const moe_gemm_desc from[2], moe_gemm_desc to[2])
{
    for (int g = 0; g < 2; g++) {
        const moe_quant_desc act = to[g].act;
        to[g] = from[g];
        to[g].act = act;
    }
}

moe_status moe_checkpoint_layer_desc(const moe_checkpoint_layer *layer, moe_layer_desc *desc)
{
    const char *call = "moe_checkpoint_layer_desc";
    MOE_REQUIRE(layer != NULL && desc != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                layer == NULL ? "layer" : "desc");
    moe_layer_desc d;
    MOE_TRY(moei_struct_read(desc, &d, sizeof d, call, "desc"));
    const moe_layer_desc *own = &layer->desc;
    moe_shared_desc shared = own->shared;
    for (int g = 0; g < 2; g++) {
        shared.gemm[g].act = d.shared.gemm[g].act;
    }
    copy_products(own->gemm, d.gemm);
    d.hidden = own->hidden;
    d.inter = own->inter;
    d.num_experts = own->num_experts;
    d.top_k = own->top_k;
    d.latent = own->latent;
    d.routing = own->routing;
    d.route = own->route;
    d.weight_stage = own->weight_stage;
    d.activation = own->activation;
    d.alpha = own->alpha;
    d.beta = own->beta;
    d.linear_beta = own->linear_beta;
    d.limit = own->limit;
    d.gate_up = own->gate_up;
    d.transposed = own->transposed;
    d.shared = shared;
    d.output_bias = own->output_bias;
    return moei_struct_write(&d, sizeof d, desc, call, "desc");
}

moe_status moe_checkpoint_layer_router(const moe_checkpoint_layer *layer, moe_router_tensors *out)
{
    MOE_REQUIRE(layer != NULL && out != NULL, MOE_E_ARGUMENT,
                "moe_checkpoint_layer_router: %s is NULL", layer == NULL ? "layer" : "out");
    *out = layer->router;
    return MOE_OK;
}

// ---- visit -------------------------------------------------------------------------------------

struct walk {
    const moe_checkpoint_layer *layer;
    int (*visit)(void *self, const moe_layer_tensor *t);
    void *self;
    bool stopped;
};

static moe_dtype element_of(const struct moei_stack *s, const struct moei_product *p,
                            moe_tensor_role role, moe_dtype dtype)
{
    switch (role) {
    case MOE_ROLE_VALUES:
        return p->element;
    case MOE_ROLE_SCALES:
        return p->scale_dtype;
    case MOE_ROLE_ZERO_POINTS:
        return s->dialect->kind == MOEI_KIND_WORDS ? MOE_UINT4 : dtype;
    default:
        return dtype;
    }
}

static moe_status visit_piece(struct walk *w, const struct moei_stack *s,
                              const struct moei_piece *piece, int g)
{
    for (int suffix = 1; suffix < MOEI_NUM_SUFFIXES && !w->stopped; suffix++) {
        moe_layer_tensor t = {.shared = s == &w->layer->shared, .gemm = g};
        t.name = moei_piece_name(w->layer, piece, (enum moei_suffix)suffix);
        if (t.name == NULL) {
            continue;
        }
        MOE_TRY(moei_piece_view(w->layer, "moe_checkpoint_layer_visit", piece,
                                (enum moei_suffix)suffix, &t.tensor));
        t.role = MOE_ROLE_BIAS;
        for (int role = 1; role < MOEI_NUM_ROLES; role++) {
            t.role = s->dialect->role[role] == suffix ? role : t.role;
        }
        t.element = element_of(s, &s->gemm[g], t.role, t.tensor.dtype);
        w->stopped = w->visit(w->self, &t) != 0;
    }
    return MOE_OK;
}

static moe_status visit_stack(struct walk *w, const struct moei_stack *s)
{
    for (int e = 0; e < (s->stacked ? 1 : s->count); e++) {
        for (int g = 0; g < 2; g++) {
            enum moei_projection parts[2];
            const int n = moei_stack_parts(s, g, parts);
            for (int i = 0; i < n; i++) {
                MOE_TRY(visit_piece(w, s, moei_stack_piece(s, e, parts[i]), g));
            }
        }
    }
    return MOE_OK;
}

moe_status moe_checkpoint_layer_visit(const moe_checkpoint_layer *layer,
                                      int (*visit)(void *self, const moe_layer_tensor *t),
                                      void *self)
{
    const char *call = "moe_checkpoint_layer_visit";
    MOE_REQUIRE(layer != NULL && visit != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                layer == NULL ? "layer" : "visit");
    struct walk w = {layer, visit, self, false};
    MOE_TRY(visit_stack(&w, &layer->routed));
    if (layer->shared.count > 0) {
        MOE_TRY(visit_stack(&w, &layer->shared));
    }
    for (size_t i = 0; i < sizeof layer->named / sizeof layer->named[0] && !w.stopped; i++) {
        if (layer->named[i] == 0) {
            continue;
        }
        moe_layer_tensor t = {.gemm = -1};
        t.name = moei_checkpoint_sorted(layer->checkpoint, layer->named[i] - 1);
        t.role = i < MOEI_NUM_ROUTER_TENSORS ? MOE_ROLE_ROUTER : MOE_ROLE_LINEAR;
        MOE_TRY(moei_checkpoint_view(call, layer->checkpoint, layer->named[i] - 1, &t.tensor));
        t.element = t.tensor.dtype;
        w.stopped = visit(self, &t) != 0;
    }
    return MOE_OK;
}
