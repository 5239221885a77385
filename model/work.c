// SPDX-License-Identifier: Apache-2.0
// What a step costs at least, counted from the model's sizes.
#include "model/decoder.h"

static double size_of(const moe_tensor *t)
{
    double elements = t->ndim > 0 ? 1 : 0;
    for (int32_t d = 0; d < t->ndim; d++) {
        elements *= (double)t->shape[d];
    }
    return elements * moe_dtype_bits(t->dtype) / 8;
}

static double bytes_of(const moem_linear *l)
{
    return size_of(&l->weight) + size_of(&l->bias);
}

// Pairs of a query and a key that it sees.
static double pairs_of(int64_t window, int64_t first, int64_t count)
{
    double pairs = 0;
    for (int64_t at = first; at < first + count; at++) {
        pairs += (double)(at < window ? at + 1 : window);
    }
    return pairs;
}

void moem_model_work(const moem_model *m, int64_t first, int64_t count, int64_t logits,
                     moem_work *out)
{
    const moem_config *c = &m->config;
    const double wide = (double)(c->heads * c->head_dim);
    const double narrow = (double)(c->kv_heads * c->head_dim);
    const double hidden = (double)c->hidden;
    const double tokens = (double)count;
    *out = (moem_work){.bytes = 0};
    for (int64_t i = 0; i < c->layers; i++) {
        const moem_layer *l = &m->layers[i];
        const int64_t window = c->sliding[i] ? c->window : INT64_MAX;
        const int64_t kept = first < window - 1 ? first : window - 1; // that are still seen
        for (int32_t j = 0; j < l->num_qkv; j++) {
            out->bytes += bytes_of(&l->qkv[j]);
        }
        out->bytes += bytes_of(&l->o) + bytes_of(&l->router);
        out->bytes += (double)(kept + count) * 2 * narrow * (double)sizeof(float);
        out->projections += 2 * tokens * hidden * (2 * wide + 2 * narrow);
        out->attention += 4 * wide * pairs_of(window, first, count);
        out->router += 2 * tokens * hidden * m->experts;
    }
    out->bytes += logits > 0 ? bytes_of(&m->output) : 0;
    out->output = 2 * (double)logits * hidden * (double)c->vocab;
}
