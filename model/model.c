// SPDX-License-Identifier: Apache-2.0
// Opens a checkpoint: finds each tensor by its name, checks its shape, plans each layer's experts.
#define _POSIX_C_SOURCE 200809L
#include "model/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/decoder.h"

#define DEFAULT_BATCH 512

double moem_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void *moem_allocate(size_t bytes, size_t align)
{
    align = align < 64 ? 64 : align;
    bytes = bytes == 0 ? 1 : bytes;
    return bytes > SIZE_MAX - align ? NULL
                                    : aligned_alloc(align, (bytes + align - 1) / align * align);
}

// "2, 3"; MOE_MAX_DIMS numbers of 20 digits fit 128 bytes.
static void shape_text(const moe_tensor *t, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (int32_t d = 0; d < t->ndim && used < size; d++) {
        const int n =
            snprintf(out + used, size - used, "%s%" PRId64, d > 0 ? ", " : "", t->shape[d]);
        used += n > 0 ? (size_t)n : 0;
    }
}

// A tensor of the checkpoint: [rows, columns], or [rows] where columns is 0.
static moe_status find(const moem_model *m, const char *name, int64_t rows, int64_t columns,
                       moe_tensor *out)
{
    const int32_t ndim = columns > 0 ? 2 : 1;
    const moe_status status = moe_checkpoint_tensor(m->checkpoint, name, out);
    if (status != MOE_OK) {
        return status;
    }
    if (out->ndim != ndim || out->shape[0] != rows || (columns > 0 && out->shape[1] != columns)) {
        char have[128];
        char must[128];
        const moe_tensor shape = {.ndim = ndim, .shape = {rows, columns}};
        shape_text(out, have, sizeof have);
        shape_text(&shape, must, sizeof must);
        return moe_fail(MOE_E_SHAPE, "%s has shape [%s], must be [%s]", name, have, must);
    }
    if (out->dtype != MOE_BF16 && out->dtype != MOE_F16 && out->dtype != MOE_F32) {
        return moe_fail(MOE_E_DTYPE, "%s is %s, must be bf16, f16 or f32", name,
                        moe_dtype_name(out->dtype));
    }
    return MOE_OK;
}

// A small vector as float32 of our own.
static moe_status vector(const moem_model *m, const char *name, int64_t count, float **out)
{
    moe_tensor from;
    const moe_status status = find(m, name, count, 0, &from);
    if (status != MOE_OK) {
        return status;
    }
    *out = moem_allocate((size_t)count * sizeof **out, 0);
    if (*out == NULL) {
        return moe_fail(MOE_E_NO_MEMORY, "%s: no memory for %" PRId64 " floats", name, count);
    }
    const moe_tensor to = moe_tensor_1d(*out, MOE_F32, count);
    return moe_convert(&from, &to);
}

static moe_status linear(const moem_model *m, const char *prefix, const char *name, int64_t outputs,
                         int64_t inputs, moem_linear *out)
{
    char full[256];
    (void)snprintf(full, sizeof full, "%s%s.weight", prefix, name);
    moe_status status = find(m, full, outputs, inputs, &out->weight);
    (void)snprintf(full, sizeof full, "%s%s.bias", prefix, name);
    if (status == MOE_OK) {
        status = find(m, full, outputs, 0, &out->bias);
        if (status == MOE_E_NOT_FOUND) { // a layer without bias
            memset(&out->bias, 0, sizeof out->bias);
            status = MOE_OK;
        }
    }
    return status;
}

static moe_status open_attention(const moem_model *m, int64_t layer, moem_layer *l)
{
    const moem_config *c = &m->config;
    char prefix[64];
    char name[128];
    (void)snprintf(prefix, sizeof prefix, "model.layers.%" PRId64 ".", layer);
    (void)snprintf(name, sizeof name, "%sinput_layernorm.weight", prefix);
    moe_status status = vector(m, name, c->hidden, &l->input_norm);
    (void)snprintf(name, sizeof name, "%spost_attention_layernorm.weight", prefix);
    status = status ? status : vector(m, name, c->hidden, &l->post_norm);
    (void)snprintf(name, sizeof name, "%sself_attn.sinks", prefix);
    status = status ? status : vector(m, name, c->heads, &l->sinks);
    const int64_t wide = c->heads * c->head_dim;
    const int64_t narrow = c->kv_heads * c->head_dim;
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    const int64_t outputs[] = {wide, narrow, narrow};
    for (int32_t i = 0; status == MOE_OK && i < 3; i++) {
        status = linear(m, prefix, names[i], outputs[i], c->hidden, &l->qkv[i]);
    }
    l->num_qkv = 3;
    return status ? status : linear(m, prefix, "self_attn.o_proj", c->hidden, wide, &l->o);
}

static bool has_4_bits(moe_format format)
{
    return format == MOE_FORMAT_MXFP4 || format == MOE_FORMAT_NVFP4 ||
           format == MOE_FORMAT_INT4_GROUP;
}

void moem_experts_desc(const moem_options *options, bool on_cpu, moe_layer_desc *desc)
{
    const bool chooses = options->fixed_point && options->act.spec == MOE_QUANT_NONE && on_cpu &&
                         has_4_bits(desc->gemm[0].weight_format) &&
                         has_4_bits(desc->gemm[1].weight_format);
    const moe_quant_desc fixed = {.spec = MOE_QUANT_I16B32};
    desc->gemm[0].act = desc->gemm[1].act = chooses ? fixed : options->act;
    desc->x_dtype = MOE_F32;
    desc->max_tokens = options->max_batch > 0 ? options->max_batch : DEFAULT_BATCH;
}

static moe_status plan_experts(moem_model *m, int64_t layer, const char *config, size_t size,
                               const moem_options *options, moem_layer *l)
{
    moe_layer_desc desc = moe_layer_desc_default();
    moe_router_tensors router;
    size_t bytes = 0;
    size_t align = 0;
    moe_status status =
        moe_checkpoint_layer_open(m->checkpoint, config, size, (int32_t)layer, &l->source);
    status = status ? status : moe_checkpoint_layer_desc(l->source, &desc);
    status = status ? status : moe_checkpoint_layer_router(l->source, &router);
    if (status != MOE_OK) {
        return status;
    }
    l->router.weight = router.weight;
    l->router.bias = router.bias;
    moem_experts_desc(options, m->device == NULL, &desc);
    m->experts = desc.num_experts;
    m->top_k = desc.top_k;
    status = moe_plan_create(m->device != NULL ? m->device : m->ctx, &desc, &l->plan);
    status = status ? status : moe_plan_workspace(l->plan, m->max_batch, &bytes, &align);
    if (status == MOE_OK) {
        m->workspace_bytes = bytes > m->workspace_bytes ? bytes : m->workspace_bytes;
        m->workspace_align = align > m->workspace_align ? align : m->workspace_align;
    }
    return status;
}

// Heads the last message.
static moe_status name_layer(moe_status status, int64_t layer)
{
    char why[512];
    (void)snprintf(why, sizeof why, "%s", moe_last_error());
    return moe_fail(status, "layer %" PRId64 ": %s", layer, why);
}

static moe_status open_tensors(moem_model *m, const char *config, size_t size,
                               const moem_options *options)
{
    const moem_config *c = &m->config;
    moe_status status = find(m, "model.embed_tokens.weight", c->vocab, c->hidden, &m->embedding);
    m->output.weight = m->embedding;
    if (status == MOE_OK && !c->tied) {
        status = find(m, "lm_head.weight", c->vocab, c->hidden, &m->output.weight);
    }
    status = status ? status : vector(m, "model.norm.weight", c->hidden, &m->norm);
    for (int64_t i = 0; status == MOE_OK && i < c->layers; i++) {
        status = open_attention(m, i, &m->layers[i]);
        status = status ? status : plan_experts(m, i, config, size, options, &m->layers[i]);
        if (status != MOE_OK) {
            return name_layer(status, i);
        }
    }
    return status;
}

// ---- where the experts' weights lie ------------------------------------------------------------

// Whether a kernel of the plan reads a packed layout; "rows" are canonical.
static moe_status reads_packed(const moe_plan *plan, bool *out)
{
    size_t size = 0;
    moe_status status = moe_weights_layout(plan, NULL, 0, &size);
    char *text = status == MOE_OK ? malloc(size + 1) : NULL;
    if (status == MOE_OK && text == NULL) {
        return moe_fail(MOE_E_NO_MEMORY, "no memory for %zu bytes", size + 1);
    }
    status = status ? status : moe_weights_layout(plan, text, size + 1, NULL);
    *out = status == MOE_OK && strstr(text, ".layout=packed-") != NULL;
    free(text);
    return status;
}

/// What is known of the layers before any of them is loaded.
struct weighing {
    uint64_t bytes; // of all, packed
    bool wraps;     // each can be used in the file
    bool packed;    // a kernel reads a packed layout
};

// Whether layers can be used in the file is asked only where it matters: it takes a look at all
// scales.
static moe_status weigh(const moem_model *m, moem_placing placing, struct weighing *out)
{
    *out = (struct weighing){.wraps = placing == MOEM_PLACE_AUTO && m->device == NULL};
    for (int64_t i = 0; i < m->config.layers; i++) {
        const moem_layer *l = &m->layers[i];
        size_t bytes = 0;
        size_t align = 0;
        int wraps = 0;
        bool packed = false;
        moe_status status = moe_checkpoint_layer_bytes(l->source, l->plan, &bytes, &align);
        if (status == MOE_OK && out->wraps) {
            status = moe_checkpoint_layer_wraps(l->source, l->plan, &wraps);
        }
        status = status ? status : reads_packed(l->plan, &packed);
        if (status != MOE_OK) {
            return name_layer(status, i);
        }
        out->bytes += bytes;
        out->wraps = out->wraps && wraps != 0;
        out->packed = out->packed || packed;
    }
    return MOE_OK;
}

#define MEGABYTES(bytes) ((double)(bytes) / 1e6)

// True: packed in memory. A tenth of what is free is left to others.
static bool choose(moem_model *m, moem_placing placing, const struct weighing *w)
{
    const uint64_t free_bytes = moem_memory_available();
    const bool fits = w->bytes <= free_bytes / 10 * 9;
    const char *const verb = m->device != NULL ? "on the device" : "in memory";
    if (placing == MOEM_PLACE_MAPPED) {
        (void)snprintf(m->placing, sizeof m->placing, "in the checkpoint's file, as asked");
        return false;
    }
    if (placing == MOEM_PLACE_PACKED || m->device != NULL) {
        (void)snprintf(m->placing, sizeof m->placing, "%.1f MB %s%s", MEGABYTES(w->bytes), verb,
                       placing == MOEM_PLACE_PACKED ? ", packed as asked" : "");
        return true;
    }
    if (!w->wraps) {
        (void)snprintf(m->placing, sizeof m->placing,
                       "%.1f MB in memory, packed: they cannot be used in the checkpoint's file",
                       MEGABYTES(w->bytes));
        return true;
    }
    if (!w->packed) {
        (void)snprintf(m->placing, sizeof m->placing,
                       "in the checkpoint's file, as the kernels read them");
        return false;
    }
    (void)snprintf(m->placing, sizeof m->placing, "%s: packed they take %.1f MB, %.1f MB are free",
                   fits ? "in memory" : "in the checkpoint's file", MEGABYTES(w->bytes),
                   MEGABYTES(free_bytes));
    return fits;
}

static moe_status load_packed_file(moem_model *m, const char *path, uint32_t flags)
{
    moe_status status = moe_packed_open(path, m->checkpoint, flags, &m->packed);
    for (int64_t i = 0; status == MOE_OK && i < m->config.layers; i++) {
        moem_layer *l = &m->layers[i];
        status = moem_weights_adopt(m->device, m->packed, (int32_t)i, l->plan, &l->weights);
        status = status ? name_layer(status, i) : status;
    }
    (void)snprintf(m->placing, sizeof m->placing, "%s the packed file",
                   m->device != NULL ? "on the device, copied from" : "in the pages of");
    return status;
}

static moe_status load_experts(moem_model *m, const moem_options *options)
{
    struct weighing w;
    if (options->packed != NULL) {
        return load_packed_file(m, options->packed, options->file_flags);
    }
    moe_status status = weigh(m, options->placing, &w);
    const bool packs = status == MOE_OK && choose(m, options->placing, &w);
    for (int64_t i = 0; status == MOE_OK && i < m->config.layers; i++) {
        moem_layer *l = &m->layers[i];
        status = packs ? moem_weights_pack(m->device, l->source, l->plan, &l->weights)
                       : moem_weights_map(l->source, l->plan, &l->weights);
        status = status ? name_layer(status, i) : status;
    }
    return status;
}

// ---- where the linear layers beside them lie ----------------------------------------------------

#define MOST_JOINED ((size_t)4 << 20) // bytes; reading more takes longer than a wait for threads

static moe_status add_bytes(const moem_model *m, const moem_linear *l, uint64_t *total)
{
    size_t bytes = 0;
    const moe_status status = moem_linear_bytes(m->ctx, l, &bytes);
    *total += bytes;
    return status;
}

static moe_status weigh_linears(const moem_model *m, uint64_t *total)
{
    moe_status status = add_bytes(m, &m->output, total);
    for (int64_t i = 0; i < m->config.layers; i++) {
        const moem_layer *l = &m->layers[i];
        for (int32_t j = 0; status == MOE_OK && j < l->num_qkv; j++) {
            status = add_bytes(m, &l->qkv[j], total);
        }
        status = status ? status : add_bytes(m, &l->o, total);
        status = status ? status : add_bytes(m, &l->router, total);
    }
    return status;
}

// One layer of q, k and v saves two waits for the threads; packed, the copy is made anyway.
static moe_status load_layer(const moem_model *m, bool packs, moem_layer *l)
{
    size_t packed = 0;
    moe_status status = packs ? moem_linear_bytes(m->ctx, &l->qkv[0], &packed) : MOE_OK;
    status = status ? status
                    : moem_linear_join(l->qkv, &l->num_qkv, packed > 0 ? SIZE_MAX : MOST_JOINED);
    for (int32_t j = 0; status == MOE_OK && packs && j < l->num_qkv; j++) {
        status = moem_linear_pack(m->ctx, &l->qkv[j]);
    }
    if (status == MOE_OK && packs) {
        status = moem_linear_pack(m->ctx, &l->o);
        status = status ? status : moem_linear_pack(m->ctx, &l->router);
    }
    return status;
}

// Experts in files: their pages are to stay in memory, too.
static moe_status weigh_mapped(const moem_model *m, uint64_t *total)
{
    moe_status status = MOE_OK;
    for (int64_t i = 0; status == MOE_OK && i < m->config.layers; i++) {
        const moem_layer *l = &m->layers[i];
        size_t bytes = 0;
        size_t align = 0;
        if (l->weights.memory == NULL) {
            status = moe_weights_bytes(l->plan, &bytes, &align);
        }
        *total += bytes;
    }
    return status;
}

// Packed where what the experts have left suffices, unless another place is asked for.
static moe_status load_linears(moem_model *m, const moem_options *options)
{
    uint64_t bytes = 0;
    uint64_t mapped = 0;
    moe_status status = options->placing == MOEM_PLACE_MAPPED ? MOE_OK : weigh_linears(m, &bytes);
    status = status ? status : weigh_mapped(m, &mapped);
    const bool packs = bytes > 0 && (options->placing == MOEM_PLACE_PACKED ||
                                     bytes + mapped <= moem_memory_available() / 10 * 9);
    if (status == MOE_OK && packs) {
        status = moem_linear_pack(m->ctx, &m->output);
    }
    for (int64_t i = 0; status == MOE_OK && i < m->config.layers; i++) {
        status = load_layer(m, packs, &m->layers[i]);
        status = status ? name_layer(status, i) : status;
    }
    const size_t used = strlen(m->placing);
    if (packs) {
        (void)snprintf(m->placing + used, sizeof m->placing - used,
                       "; %.1f MB beside the experts packed in memory", MEGABYTES(bytes));
    }
    return status;
}

moe_status moem_model_open(const char *dir, const moem_options *options, moem_model **out)
{
    static const moem_options defaults;
    options = options != NULL ? options : &defaults;
    moe_context_desc desc = moe_context_desc_default();
    char *config = NULL;
    size_t size = 0;
    if (options->max_batch < 0) {
        return moe_fail(MOE_E_ARGUMENT,
                        "moem_model_open: max_batch = %" PRId64 ", must be at least 0",
                        options->max_batch);
    }
    if (options->packed != NULL && options->placing != MOEM_PLACE_AUTO) {
        return moe_fail(MOE_E_ARGUMENT,
                        "moem_model_open: a packed file, and placing = %d, must be 0 with one",
                        (int)options->placing);
    }
    moem_model *m = calloc(1, sizeof *m);
    if (m == NULL) {
        return moe_fail(MOE_E_NO_MEMORY, "%s: no memory for the model", dir);
    }
    m->max_batch = options->max_batch > 0 ? options->max_batch : DEFAULT_BATCH;
    desc.num_threads = options->threads;
    desc.isa = options->isa;
    moe_status status = moem_config_read(dir, &m->config, &config, &size);
    if (status == MOE_OK && m->config.head_dim > MOEM_MAX_HEAD_DIM) {
        status = moe_fail(MOE_E_LIMIT, "%s: heads of %" PRId64 ", at most %d", dir,
                          m->config.head_dim, MOEM_MAX_HEAD_DIM);
    }
    status = status ? status : moe_context_create(&desc, &m->ctx);
    status = status ? status : moem_device_open(m->ctx, options->device, &m->device);
    status = status ? status : moe_checkpoint_open(dir, options->file_flags, &m->checkpoint);
    if (status == MOE_OK) {
        m->pool = moe_context_pool(m->ctx);
        m->kernels = moem_kernels_of(m->ctx);
        m->layers = calloc((size_t)m->config.layers, sizeof *m->layers);
        m->frequencies = moem_allocate((size_t)m->config.head_dim / 2 * sizeof(float), 0);
        status = m->layers != NULL && m->frequencies != NULL
                     ? open_tensors(m, config, size, options)
                     : moe_fail(MOE_E_NO_MEMORY, "%s: no memory for the layers", dir);
    }
    status = status ? status : load_experts(m, options);
    status = status ? status : load_linears(m, options);
    free(config);
    if (status != MOE_OK) {
        moem_model_close(m);
        return status;
    }
    moem_rope_frequencies(&m->config, m->frequencies);
    *out = m;
    return MOE_OK;
}

void moem_model_close(moem_model *m)
{
    if (m == NULL) {
        return;
    }
    for (int64_t i = 0; m->layers != NULL && i < m->config.layers; i++) {
        moem_layer *l = &m->layers[i];
        moem_weights_free(&l->weights);
        moe_plan_destroy(l->plan);
        moe_checkpoint_layer_close(l->source);
        free(l->input_norm);
        free(l->post_norm);
        free(l->sinks);
        for (int32_t j = 0; j < 3; j++) {
            moem_linear_free(&l->qkv[j]);
        }
        moem_linear_free(&l->o);
        moem_linear_free(&l->router);
    }
    free(m->layers);
    moem_linear_free(&m->output);
    moe_packed_close(m->packed);
    free(m->norm);
    free(m->frequencies);
    moe_checkpoint_close(m->checkpoint);
    moe_context_destroy(m->device);
    moe_context_destroy(m->ctx);
    free(m);
}

const moem_config *moem_model_config(const moem_model *model)
{
    return &model->config;
}

const moe_context *moem_model_context(const moem_model *model)
{
    return model->ctx;
}

int64_t moem_model_max_batch(const moem_model *model)
{
    return model->max_batch;
}

int32_t moem_model_experts(const moem_model *model)
{
    return model->experts;
}

int32_t moem_model_top_k(const moem_model *model)
{
    return model->top_k;
}

const char *moem_model_dialect(const moem_model *model)
{
    return moe_checkpoint_layer_dialect(model->layers[0].source);
}

const char *moem_model_placing(const moem_model *model)
{
    return model->placing;
}

const moe_plan *moem_model_plan(const moem_model *model, int64_t layer)
{
    return model->layers[layer].plan;
}
