// SPDX-License-Identifier: Apache-2.0
// One step of the decoder, top to bottom: embedding; per layer norm, attention, norm, router,
// experts; norm and output matrix for the tokens that want logits.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/decoder.h"

struct sequence {
    int64_t length;
    moem_cache *caches; ///< [layers]
};

struct moem_session {
    const moem_model *model;
    int32_t count;
    int64_t capacity;
    struct sequence *sequences; ///< [count]
    moem_cache *caches;         ///< [count, layers], storage of the sequences' arrays
    int64_t *load;              ///< [layers, experts]

    // Buffers of one step of up to max_batch tokens.
    float *x;            ///< [T, hidden], the residual stream
    float *normed;       ///< [T, hidden]
    float *qkv;          ///< [T, (heads + 2 kv_heads) * head_dim]: queries, keys, values
    float *turns;        ///< [T, head_dim], of the rotary embedding
    float *attention;    ///< [T, heads * head_dim]
    float *branch;       ///< [T, hidden], what the next norm adds to x
    float *logits;       ///< [T, experts] of the router
    int32_t *ids;        ///< [T, top_k]
    moem_query *queries; ///< [T]
    int64_t *positions;  ///< [T]
    int64_t *wanted;     ///< [T], tokens that want logits
    int64_t *lengths;    ///< [count], of the sequences after the step
    void *workspace;     ///< NULL where the experts run on a device, in `room`
    moem_room room;
};

// Keys that a layer must hold: all, or its window and a step's tokens.
static int64_t cache_rows(const moem_session *s, int64_t layer)
{
    const moem_config *c = &s->model->config;
    if (!c->sliding[layer] || c->window > s->capacity - s->model->max_batch) {
        return s->capacity;
    }
    return c->window + s->model->max_batch - 1;
}

static bool allocate_caches(moem_session *s)
{
    const moem_config *c = &s->model->config;
    for (int32_t i = 0; i < s->count; i++) {
        s->sequences[i].caches = s->caches + (int64_t)i * c->layers;
        for (int64_t l = 0; l < c->layers; l++) {
            if (!moem_cache_create(cache_rows(s, l), c->kv_heads, c->head_dim,
                                   &s->sequences[i].caches[l])) {
                return false;
            }
        }
    }
    return true;
}

static float *floats(int64_t rows, int64_t width)
{
    const int64_t most = INT64_MAX / (int64_t)sizeof(float);
    return rows > most / width ? NULL : moem_allocate((size_t)(rows * width) * sizeof(float), 0);
}

static bool allocate_buffers(moem_session *s)
{
    const moem_model *m = s->model;
    const moem_config *c = &m->config;
    const int64_t t = m->max_batch;
    return (s->x = floats(t, c->hidden)) != NULL && (s->normed = floats(t, c->hidden)) != NULL &&
           (s->qkv = floats(t, (c->heads + 2 * c->kv_heads) * c->head_dim)) != NULL &&
           (s->turns = floats(t, c->head_dim)) != NULL &&
           (s->attention = floats(t, c->heads * c->head_dim)) != NULL &&
           (s->branch = floats(t, c->hidden)) != NULL &&
           (s->logits = floats(t, m->experts)) != NULL &&
           (s->ids = moem_allocate((size_t)(t * m->top_k) * sizeof *s->ids, 0)) != NULL &&
           (s->queries = calloc((size_t)t, sizeof *s->queries)) != NULL &&
           (s->positions = calloc((size_t)t, sizeof *s->positions)) != NULL &&
           (s->wanted = calloc((size_t)t, sizeof *s->wanted)) != NULL &&
           (s->lengths = calloc((size_t)s->count, sizeof *s->lengths)) != NULL &&
           (m->device != NULL ||
            (s->workspace = moem_allocate(m->workspace_bytes, m->workspace_align)) != NULL);
}

// The experts' tensors of a step.
static moe_run_args expert_args(const moem_session *s, int64_t count)
{
    const moem_model *m = s->model;
    moe_run_args args = moe_run_args_default();
    args.num_tokens = count;
    args.x = moe_tensor_2d(s->normed, MOE_F32, count, m->config.hidden);
    args.logits = moe_tensor_2d(s->logits, MOE_F32, count, m->experts);
    args.out_ids = moe_tensor_2d(s->ids, MOE_I32, count, m->top_k);
    args.out = moe_tensor_2d(s->branch, MOE_F32, count, m->config.hidden);
    return args;
}

moe_status moem_session_create(const moem_model *model, int32_t sequences, int64_t capacity,
                               moem_session **out)
{
    static const char call[] = "moem_session_create";
    const moem_config *c = &model->config;
    if (sequences < 1 || capacity < 1) {
        return moe_fail(MOE_E_ARGUMENT, "%s: %d sequences of %" PRId64 " tokens", call,
                        (int)sequences, capacity);
    }
    if (capacity > c->context) {
        return moe_fail(MOE_E_LIMIT, "%" PRId64 " tokens exceed the model's context of %" PRId64,
                        capacity, c->context);
    }
    const int64_t row = c->kv_heads * c->head_dim * (int64_t)sizeof(float);
    moem_session *s = calloc(1, sizeof *s);
    bool made = s != NULL && capacity < INT64_MAX / row;
    if (made) {
        s->model = model;
        s->count = sequences;
        s->capacity = capacity;
        s->sequences = calloc((size_t)sequences, sizeof *s->sequences);
        s->caches = calloc((size_t)sequences * (size_t)c->layers, sizeof *s->caches);
        s->load = calloc((size_t)(c->layers * model->experts), sizeof *s->load);
        made = s->sequences != NULL && s->caches != NULL && s->load != NULL && allocate_caches(s) &&
               allocate_buffers(s);
    }
    if (!made) {
        moem_session_destroy(s);
        return moe_fail(MOE_E_NO_MEMORY,
                        "%s: no memory for %d sequences of %" PRId64 " tokens in %" PRId64
                        " layers",
                        call, (int)sequences, capacity, c->layers);
    }
    if (model->device != NULL) {
        const moe_run_args most = expert_args(s, model->max_batch);
        const moe_status status =
            moem_room_create(model->device, &most, model->workspace_bytes, &s->room);
        if (status != MOE_OK) {
            moem_session_destroy(s);
            return status;
        }
    }
    *out = s;
    return MOE_OK;
}

void moem_session_destroy(moem_session *s)
{
    if (s == NULL) {
        return;
    }
    for (int64_t i = 0; s->caches != NULL && i < s->count * s->model->config.layers; i++) {
        moem_cache_free(&s->caches[i]);
    }
    void *buffers[] = {s->sequences, s->caches,    s->load,    s->x,        s->normed, s->qkv,
                       s->turns,     s->attention, s->branch,  s->logits,   s->ids,    s->queries,
                       s->positions, s->wanted,    s->lengths, s->workspace};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        free(buffers[i]);
    }
    moem_room_free(&s->room);
    free(s);
}

void moem_session_reset(moem_session *session, int32_t sequence)
{
    session->sequences[sequence].length = 0;
}

int64_t moem_session_length(const moem_session *session, int32_t sequence)
{
    return session->sequences[sequence].length;
}

const int64_t *moem_session_load(const moem_session *session)
{
    return session->load;
}

// -- Steps ---------------------------------------------------------------------------------------

static moe_status embed(const moem_session *s, const moem_input *tokens, int64_t count)
{
    const moe_tensor *all = &s->model->embedding;
    const int64_t width = s->model->config.hidden;
    moe_status status = MOE_OK;
    for (int64_t t = 0; status == MOE_OK && t < count; t++) {
        moe_tensor row = moe_tensor_1d(all->data, all->dtype, width);
        row.byte_offset = all->byte_offset + (uint64_t)(tokens[t].id * all->stride[0]) *
                                                 (uint64_t)(moe_dtype_bits(all->dtype) / 8);
        const moe_tensor to = moe_tensor_1d(s->x + t * width, MOE_F32, width);
        status = moe_convert(&row, &to);
    }
    return status;
}

// x += what the last branch gave, and its norm.
static void norm(const moem_session *s, const float *branch, const float *weight, int64_t count,
                 const int64_t *index)
{
    const moem_model *m = s->model;
    moem_rms_norm(&m->pool, &(moem_norm_args){.kernels = m->kernels,
                                              .x = s->x,
                                              .branch = branch,
                                              .weight = weight,
                                              .eps = m->config.norm_eps,
                                              .rows = count,
                                              .width = m->config.hidden,
                                              .index = index,
                                              .out = s->normed});
}

static moe_status attention_step(moem_session *s, const moem_input *tokens, int64_t count,
                                 int64_t layer)
{
    const moem_model *m = s->model;
    const moem_config *c = &m->config;
    const moem_layer *l = &m->layers[layer];
    const int64_t stride = (c->heads + 2 * c->kv_heads) * c->head_dim;
    moe_status status = MOE_OK;
    norm(s, layer > 0 ? s->branch : NULL, l->input_norm, count, NULL);
    float *y = s->qkv;
    for (int32_t i = 0; status == MOE_OK && i < l->num_qkv; i++) {
        status = moem_linear_run(m->ctx, &l->qkv[i], s->normed, count, y, stride);
        y += l->qkv[i].weight.shape[0];
    }
    if (status != MOE_OK) {
        return status;
    }
    for (int64_t t = 0; t < count; t++) {
        s->queries[t].cache = &s->sequences[tokens[t].sequence].caches[layer];
        s->queries[t].position = s->positions[t];
    }
    moem_attention(&m->pool, &(moem_attention_args){
                                 .kernels = m->kernels,
                                 .tokens = count,
                                 .heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim,
                                 .window = c->sliding[layer] ? c->window : INT64_MAX,
                                 .queries = s->queries,
                                 .q = s->qkv,
                                 .q_stride = stride,
                                 .sinks = l->sinks,
                                 .out = s->attention,
                                 .turns = s->turns,
                             });
    return moem_linear_run(m->ctx, &l->o, s->attention, count, s->branch, c->hidden);
}

static moe_status expert_step(moem_session *s, int64_t count, int64_t layer)
{
    const moem_model *m = s->model;
    const moem_layer *l = &m->layers[layer];
    const moe_run_args args = expert_args(s, count);
    norm(s, s->branch, l->post_norm, count, NULL);
    moe_status status =
        moem_linear_run(m->ctx, &l->router, s->normed, count, s->logits, m->experts);
    if (status == MOE_OK) {
        status = m->device != NULL ? moem_room_run(&s->room, l->plan, l->weights.weights, &args)
                                   : moe_run(l->plan, l->weights.weights, &args, s->workspace,
                                             m->workspace_bytes, NULL);
    }
    for (int64_t i = 0; status == MOE_OK && i < count * m->top_k; i++) {
        s->load[layer * m->experts + s->ids[i]]++;
    }
    return status;
}

// Where each token goes. Nothing of the session that lasts is changed.
static moe_status place(moem_session *s, const moem_input *tokens, int64_t count)
{
    static const char call[] = "moem_forward";
    const moem_config *c = &s->model->config;
    if (count < 1 || count > s->model->max_batch) {
        return moe_fail(MOE_E_ARGUMENT, "%s: %" PRId64 " tokens, must be 1..%" PRId64, call, count,
                        s->model->max_batch);
    }
    for (int32_t i = 0; i < s->count; i++) {
        s->lengths[i] = s->sequences[i].length;
    }
    for (int64_t t = 0; t < count; t++) {
        const moem_input *token = &tokens[t];
        if (token->id < 0 || token->id >= c->vocab || token->sequence < 0 ||
            token->sequence >= s->count) {
            return moe_fail(MOE_E_ARGUMENT,
                            "%s: token %" PRId64 " has id %d (0..%" PRId64 ") and sequence %d "
                            "(0..%d)",
                            call, t, (int)token->id, c->vocab - 1, (int)token->sequence,
                            (int)s->count - 1);
        }
        s->positions[t] = s->lengths[token->sequence]++;
        if (s->positions[t] >= s->capacity) {
            return moe_fail(MOE_E_LIMIT, "%s: sequence %d is full at %" PRId64 " tokens", call,
                            (int)token->sequence, s->capacity);
        }
    }
    return MOE_OK;
}

moe_status moem_forward(moem_session *s, const moem_input *tokens, int64_t count, float *logits)
{
    const moem_model *m = s->model;
    const moem_config *c = &m->config;
    moe_status status = place(s, tokens, count);
    status = status ? status : embed(s, tokens, count);
    for (int64_t t = 0; status == MOE_OK && t < count; t++) { // of all layers
        moem_turn(m->frequencies, c->rope_attention, s->positions[t], c->head_dim,
                  s->turns + t * c->head_dim);
    }
    for (int64_t layer = 0; status == MOE_OK && layer < c->layers; layer++) {
        status = attention_step(s, tokens, count, layer);
        status = status ? status : expert_step(s, count, layer);
    }
    if (status != MOE_OK) {
        return status;
    }
    int64_t wanted = 0;
    for (int64_t t = 0; t < count; t++) {
        if (tokens[t].want_logits) {
            s->wanted[wanted++] = t;
        }
    }
    if (wanted > 0) {
        norm(s, s->branch, m->norm, wanted, s->wanted);
        status = moem_linear_run(m->ctx, &m->output, s->normed, wanted, logits, c->vocab);
    }
    // Rows of a ring that a failed step wrote lie behind every window: the step can be repeated.
    for (int32_t i = 0; status == MOE_OK && i < s->count; i++) {
        s->sequences[i].length = s->lengths[i];
    }
    return status;
}
