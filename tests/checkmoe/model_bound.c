// SPDX-License-Identifier: Apache-2.0
// The float64 layer from a checkpoint's own tensors: codes times scales, as its dialect stores
// them.
#include "checkmoe/model_bound.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/plan_internal.h"
#include "checkmoe/ggemm_case.h"
#include "quant/elements.h"

/// Tensors of the routed experts by product and role.
struct found {
    moe_layer_tensor of[2][MOE_ROLE_BIAS + 1];
    int others; ///< tensors that this statement does not read
};

static int visit(void *self, const moe_layer_tensor *t)
{
    struct found *f = self;
    if (t->role == MOE_ROLE_ROUTER) {
        return 0;
    }
    const bool known =
        t->role == MOE_ROLE_VALUES || t->role == MOE_ROLE_SCALES || t->role == MOE_ROLE_BIAS;
    if (!known || t->shared != 0 || t->gemm < 0 || f->of[t->gemm][t->role].name != NULL) {
        f->others++; // a shared expert, a second scale, or experts one by one
    } else {
        f->of[t->gemm][t->role] = *t;
    }
    return 0;
}

static int64_t elements(const moe_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) {
        n *= t->shape[i];
    }
    return n;
}

// out[i] = element i, times the scale of its group of `group` (scales NULL: none).
static void widen(const moe_layer_tensor *t, const moe_layer_tensor *scales, int64_t group,
                  double *out, int64_t n)
{
    const uint8_t *data = (const uint8_t *)t->tensor.data + t->tensor.byte_offset;
    for (int64_t i = 0; i < n; i++) {
        out[i] = (double)moei_load_one(t->element, data, i);
        if (scales != NULL) {
            out[i] *= (double)moei_load_one(
                scales->element, (const uint8_t *)scales->tensor.data + scales->tensor.byte_offset,
                i / group);
        }
    }
}

static bool make_product(const struct found *f, int g, int64_t outputs, int64_t inputs,
                         int32_t experts, moec_heap *heap, float64_mlp *mlp)
{
    const moe_layer_tensor *values = &f->of[g][MOE_ROLE_VALUES];
    const moe_layer_tensor *scales = &f->of[g][MOE_ROLE_SCALES];
    const moe_layer_tensor *bias = &f->of[g][MOE_ROLE_BIAS];
    const int64_t n = experts * outputs * inputs;
    const int64_t groups = scales->name != NULL ? elements(&scales->tensor) : 0;
    if (values->name == NULL ||
        elements(&values->tensor) * moe_dtype_bits(values->tensor.dtype) !=
            n * moe_dtype_bits(values->element) ||
        (groups > 0 && (n % groups != 0 || inputs % (n / groups) != 0))) {
        return false; // transposed, padded or scaled by blocks of rows
    }
    double *w = moec_keep(heap, (size_t)n, sizeof *w);
    widen(values, groups > 0 ? scales : NULL, groups > 0 ? n / groups : 1, w, n);
    mlp->w[g] = w;
    if (bias->name != NULL) {
        double *b = moec_keep(heap, (size_t)(experts * outputs), sizeof *b);
        widen(bias, NULL, 1, b, experts * outputs);
        mlp->bias[g] = b;
    }
    return true;
}

bool moec_model_bound_make(const moe_checkpoint_layer *source, const moe_plan *plan,
                           moec_heap *heap, float64_layer *out)
{
    struct found f;
    const moe_layer_desc *d = &plan->desc;
    const moei_mlp *p = &plan->routed;
    memset(&f, 0, sizeof f);
    memset(out, 0, sizeof *out);
    if (moe_checkpoint_layer_visit(source, visit, &f) != MOE_OK || f.others > 0 || p->transposed ||
        d->shared.count > 0 || d->latent > 0 || d->gemm[0].act.spec != MOE_QUANT_NONE ||
        d->gemm[1].act.spec != MOE_QUANT_NONE) {
        return false;
    }
    out->hidden = d->hidden;
    out->routed = (float64_mlp){.count = p->count,
                                .width = p->width,
                                .inter = p->inter,
                                .model = {moec_model_of(p->kernel[0]), moec_model_of(p->kernel[1])},
                                .activation = p->act.activation,
                                .alpha = (double)p->act.alpha,
                                .beta = (double)p->act.beta,
                                .linear_beta = (double)p->act.linear_beta,
                                .limit = (double)p->act.limit,
                                .gate_up = p->gate_up};
    out->weight_stage = d->weight_stage;
    out->x_dtype = d->x_dtype;
    out->inter_dtype = d->inter_dtype;
    out->partial_dtype = d->partial_dtype;
    out->out_dtype = d->out_dtype;
    out->combined = true;
    return make_product(&f, 0, p->rows1, p->width, p->count, heap, &out->routed) &&
           make_product(&f, 1, p->width, p->inter, p->count, heap, &out->routed);
}

double moec_model_bound_ratio(const float64_layer *layer, int32_t top_k, int64_t tokens,
                              const float *x, const int32_t *ids, const float *weights,
                              const float *y)
{
    const size_t wide = (size_t)layer->hidden;
    double worst = 0;
    double *row = malloc(3 * wide * sizeof *row);
    float64_slot *slots = malloc((size_t)top_k * sizeof *slots);
    for (int64_t t = 0; t < tokens; t++) {
        const float64_token token = {.x = row,
                                     .slots = slots,
                                     .num_slots = top_k,
                                     .value = row + wide,
                                     .bound = row + 2 * wide};
        if (row == NULL || slots == NULL) {
            worst = HUGE_VAL;
            break;
        }
        for (size_t h = 0; h < wide; h++) {
            row[h] = (double)x[t * layer->hidden + (int64_t)h];
        }
        for (int32_t j = 0; j < top_k; j++) {
            slots[j] = (float64_slot){ids[t * top_k + j], (double)weights[t * top_k + j], 0};
        }
        if (!float64_layer_token(layer, &token)) {
            worst = HUGE_VAL;
            break;
        }
        for (size_t h = 0; h < wide; h++) {
            worst = fmax(worst, float64_ratio((double)y[t * layer->hidden + (int64_t)h],
                                              token.value[h], token.bound[h]));
        }
    }
    free(row);
    free(slots);
    return worst;
}
