// SPDX-License-Identifier: Apache-2.0
// From a layer's tensors to weights: where they lie, or packed, one expert at a time by all
// threads: from where it lies, or gathered first, so that no more than an expert is held besides.
// Dialects differ here in four ways only: gate and up joined or apart, codes in words, second-level
// scales that divide, and zero points packed along the rows.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/checkpoint.h"
#include "io/dialects.h"
#include "io/text.h"
#include "moe/layouts.h"

#define ALIGN 64 // of each view in scratch

/// Scratch for one expert: measured with a NULL base; then placed, with shares = 0, which fills
/// what is small; then filled, share by share, in any order.
struct scratch {
    unsigned char *base;
    size_t used;
    size_t share, shares;
};

/// What the making of one product's source shares.
struct filling {
    const moe_checkpoint_layer *layer;
    const struct moei_stack *stack;
    const struct moei_product *product;
    const char *call;
    struct scratch *scratch;
    enum moei_projection part[2];
    int parts, gemm;
    int32_t expert;
};

static unsigned char *take(struct scratch *s, size_t bytes)
{
    const size_t at = moei_size_align(s->used, ALIGN);
    s->used = moei_size_add(at, bytes);
    return s->base == NULL ? NULL : s->base + at;
}

static bool is_placing(const struct scratch *s)
{
    return s->base != NULL && s->shares == 0;
}

static bool is_filling(const struct scratch *s)
{
    return s->base != NULL && s->shares > 0;
}

// The share's part of `count` things, in steps.
static void share_of(const struct scratch *s, size_t count, size_t step, size_t *begin, size_t *end)
{
    const size_t steps = count / step + (count % step != 0);
    *begin = steps * s->share / s->shares * step;
    *end = steps * (s->share + 1) / s->shares * step;
    *end = *end < count ? *end : count;
    *begin = *begin < *end ? *begin : *end;
}

static unsigned char *data_of(const moe_tensor *t)
{
    return (unsigned char *)t->data + t->byte_offset;
}

static size_t bytes_of(const moe_tensor *t)
{
    size_t bits = (size_t)moe_dtype_bits(t->dtype);
    for (int i = 0; i < t->ndim; i++) {
        bits *= (size_t)t->shape[i];
    }
    return bits / 8;
}

// One expert's share of a tensor, with the experts' dimension in front where all experts are asked
// for (expert -1).
static moe_status expert_view(const struct filling *f, int part, int suffix, moe_tensor *out)
{
    const struct moei_stack *s = f->stack;
    const struct moei_piece *piece = moei_stack_piece(s, f->expert, f->part[part]);
    MOE_TRY(moei_piece_view(f->layer, f->call, piece, (enum moei_suffix)suffix, out));
    if (out->data == NULL || f->expert < 0 || !s->stacked || s->count == 1) {
        return MOE_OK;
    }
    const size_t bytes = bytes_of(out) / (size_t)s->count;
    out->byte_offset += (uint64_t)bytes * (uint64_t)f->expert;
    out->ndim--;
    for (int i = 0; i < out->ndim; i++) {
        out->shape[i] = out->shape[i + 1];
        out->stride[i] = out->stride[i + 1];
    }
    return MOE_OK;
}

// Compact bytes seen as another shape of the same size.
static moe_tensor reshaped(const void *data, moe_dtype dtype, int64_t d0, int64_t d1, int64_t d2)
{
    return moe_tensor_3d(data, dtype, d0, d1, d2);
}

#define COPY_STEP 4096 // bytes

// The parts' bytes one after the other in scratch, or where they lie if there is one.
static moe_status joined(const struct filling *f, int role, unsigned char **out, size_t *bytes,
                         moe_dtype *dtype)
{
    moe_tensor t[2];
    size_t size[2] = {0, 0};
    const int suffix = role == MOE_ROLE_BIAS ? MOEI_SUFFIX_BIAS : f->stack->dialect->role[role];
    for (int i = 0; i < f->parts; i++) {
        MOE_TRY(expert_view(f, i, suffix, &t[i]));
        size[i] = bytes_of(&t[i]);
    }
    *bytes = size[0] + size[1];
    *dtype = t[0].dtype;
    if (f->parts == 1) {
        *out = data_of(&t[0]);
        return MOE_OK;
    }
    *out = take(f->scratch, *bytes);
    for (int i = 0; i < f->parts; i++) {
        size_t begin = 0;
        size_t end = 0;
        if (role == MOE_ROLE_SCALE2 && is_placing(f->scratch)) { // read while placing
            end = size[i];
        } else if (role != MOE_ROLE_SCALE2 && is_filling(f->scratch)) {
            share_of(f->scratch, size[i], COPY_STEP, &begin, &end);
        }
        if (end > begin) {
            memcpy(*out + (i > 0 ? size[0] : 0) + begin, data_of(&t[i]) + begin, end - begin);
        }
    }
    return MOE_OK;
}

// Rows [r0, r1) of words to canonical bytes.
static moe_status convert_words(const moe_tensor *words, int bits, int64_t k, int64_t r0,
                                int64_t r1, unsigned char *to)
{
    const int64_t row_bytes = moei_i64_ceil_div(k * bits, 8);
    if (bits == 4) {
        const moe_tensor dst = moe_tensor_2d(to + r0 * row_bytes, MOE_U8, r1 - r0, row_bytes);
        moe_tensor src = *words;
        src.byte_offset += (uint64_t)(bytes_of(words) / (size_t)words->shape[0] * (size_t)r0);
        src.shape[0] = r1 - r0;
        return moe_layout_int4_values(MOE_INT4_COMPRESSED_TENSORS, &src, MOE_INT4_CANONICAL, &dst);
    }
    const unsigned char *from = data_of(words);
    const int64_t step = moei_i64_ceil_div(k, 4) * 4;
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t i = 0; i < k; i++) {
            to[r * row_bytes + i] = from[r * step + i] ^ 0x80;
        }
    }
    return MOE_OK;
}

// Words of 4-bit codes to canonical bytes; words of 8-bit codes lose their offset.
static moe_status fill_words(const struct filling *f, int64_t rows, moe_tensor *out)
{
    const struct moei_product *p = f->product;
    const int bits = f->stack->dialect->bits;
    const int64_t row_bytes = moei_i64_ceil_div(p->k * bits, 8);
    unsigned char *to = take(f->scratch, moei_size_mul((size_t)rows, (size_t)row_bytes));
    *out = reshaped(to, MOE_U8, 1, rows, row_bytes);
    for (int i = 0; is_filling(f->scratch) && i < f->parts; i++) {
        moe_tensor words;
        size_t begin;
        size_t end;
        MOE_TRY(expert_view(f, i, f->stack->dialect->role[MOE_ROLE_VALUES], &words));
        share_of(f->scratch, (size_t)p->rows[i], 8, &begin, &end);
        if (end > begin) {
            MOE_TRY(convert_words(&words, bits, p->k, (int64_t)begin, (int64_t)end, to));
        }
        to += p->rows[i] * row_bytes;
    }
    return MOE_OK;
}

static moe_status fill_values(const struct filling *f, int64_t rows, moe_tensor *out)
{
    const struct moei_product *p = f->product;
    unsigned char *bytes = NULL;
    size_t size = 0;
    moe_dtype dtype = 0;
    if (f->stack->dialect->kind == MOEI_KIND_WORDS) {
        return fill_words(f, rows, out);
    }
    MOE_TRY(joined(f, MOE_ROLE_VALUES, &bytes, &size, &dtype));
    const int64_t count = f->expert < 0 ? f->stack->count : 1;
    const int bits = moe_dtype_bits(p->element);
    const int64_t columns = bits == 4 ? moei_i64_ceil_div(p->k, 2) : p->k;
    *out = f->stack->transposed ? reshaped(bytes, dtype, count, columns, rows)
                                : reshaped(bytes, dtype, count, rows, columns);
    return MOE_OK;
}

static moe_status fill_scales(const struct filling *f, int64_t rows, moe_tensor *out)
{
    const struct moei_product *p = f->product;
    unsigned char *bytes = NULL;
    size_t size = 0;
    moe_dtype dtype = 0;
    if (p->grain == MOEI_GRAIN_NONE) {
        return MOE_OK;
    }
    MOE_TRY(joined(f, MOE_ROLE_SCALES, &bytes, &size, &dtype));
    const int64_t count = f->expert < 0 ? f->stack->count : 1;
    const int64_t each = (int64_t)(size / ((size_t)moe_dtype_bits(dtype) / 8)) / count;
    switch (p->grain) {
    case MOEI_GRAIN_TENSOR:
        *out = moe_tensor_2d(bytes, dtype, count, each);
        break;
    case MOEI_GRAIN_CHANNEL:
        *out = reshaped(bytes, dtype, count, rows, 1);
        break;
    default: {
        const int64_t columns = moei_i64_ceil_div(p->k, p->block_k);
        *out = reshaped(bytes, dtype, count, each / columns, columns);
    }
    }
    return MOE_OK;
}

// Multipliers as they are, divisors as their reciprocals.
static moe_status fill_scale2(const struct filling *f, moe_tensor *out)
{
    const struct moei_dialect *row = f->stack->dialect;
    unsigned char *bytes = NULL;
    size_t size = 0;
    moe_dtype dtype = 0;
    if (row->role[MOE_ROLE_SCALE2] == 0) {
        return MOE_OK;
    }
    MOE_TRY(joined(f, MOE_ROLE_SCALE2, &bytes, &size, &dtype));
    const int64_t count = f->expert < 0 ? f->stack->count : 1;
    const int64_t each = (int64_t)(size / sizeof(float)) / count;
    if (row->scale2_divides) {
        unsigned char *to = take(f->scratch, size);
        for (size_t i = 0; is_placing(f->scratch) && i < size; i += sizeof(float)) {
            float value;
            memcpy(&value, bytes + i, sizeof value);
            value = 1.0f / value;
            memcpy(to + i, &value, sizeof value);
        }
        bytes = to;
    }
    *out = moe_tensor_2d(bytes, MOE_F32, count, each);
    return MOE_OK;
}

static moe_status fill_zeros(const struct filling *f, int64_t rows, moe_tensor *out)
{
    const struct moei_product *p = f->product;
    if (!p->zeros) {
        return MOE_OK;
    }
    const int64_t groups = moei_i64_ceil_div(p->k, p->group);
    unsigned char *to = take(f->scratch, moei_size_mul((size_t)rows, (size_t)groups));
    *out = reshaped(to, MOE_U8, 1, rows, groups);
    for (int i = 0; is_placing(f->scratch) && i < f->parts; i++) {
        moe_tensor words;
        const moe_tensor dst = moe_tensor_2d(to, MOE_U8, p->rows[i], groups);
        MOE_TRY(expert_view(f, i, f->stack->dialect->role[MOE_ROLE_ZERO_POINTS], &words));
        MOE_TRY(moe_layout_int4_zero_points(p->rows[i], MOE_INT4_COMPRESSED_TENSORS, &words,
                                            MOE_INT4_CANONICAL, &dst));
        to += p->rows[i] * groups;
    }
    return MOE_OK;
}

static moe_status fill_bias(const struct filling *f, int64_t rows, moe_tensor *out)
{
    unsigned char *bytes = NULL;
    size_t size = 0;
    moe_dtype dtype = 0;
    if (!f->product->bias) {
        return MOE_OK;
    }
    MOE_TRY(joined(f, MOE_ROLE_BIAS, &bytes, &size, &dtype));
    *out = moe_tensor_2d(bytes, dtype, f->expert < 0 ? f->stack->count : 1, rows);
    return MOE_OK;
}

// The source of product g of one expert, or of all where they lie (expert -1). With a NULL base
// only the scratch is measured.
static moe_status fill_matrix(const moe_checkpoint_layer *layer, const char *call,
                              const struct moei_stack *stack, int32_t expert, int g,
                              struct scratch *scratch, moe_matrix_source *out)
{
    struct filling f = {.layer = layer,
                        .stack = stack,
                        .product = &stack->gemm[g],
                        .call = call,
                        .scratch = scratch,
                        .gemm = g,
                        .expert = expert};
    f.parts = moei_stack_parts(stack, g, f.part);
    const int64_t rows = f.product->rows[0] + f.product->rows[1];
    MOE_TRY(fill_values(&f, rows, &out->values));
    MOE_TRY(fill_scales(&f, rows, &out->scales));
    MOE_TRY(fill_scale2(&f, &out->scale2));
    MOE_TRY(fill_zeros(&f, rows, &out->zero_points));
    return fill_bias(&f, rows, &out->bias);
}

// ---- the plan ----------------------------------------------------------------------------------

static moe_status check_plan(const moe_checkpoint_layer *layer, const moe_plan *plan,
                             const char *call, moe_layer_desc *d)
{
    *d = moe_layer_desc_default();
    MOE_TRY(moe_plan_desc(plan, d));
    const moe_layer_desc *own = &layer->desc;
    const struct {
        const char *name;
        int64_t plan, own;
    } fields[] = {
        {"hidden", d->hidden, own->hidden},
        {"inter", d->inter, own->inter},
        {"num_experts", d->num_experts, own->num_experts},
        {"num_local_experts", d->num_local_experts, own->num_experts},
        {"latent", d->latent, own->latent},
        {"gate_up", d->gate_up, own->gate_up},
        {"transposed", d->transposed, own->transposed},
        {"output_bias", d->output_bias, own->output_bias},
        {"shared.count", d->shared.count, own->shared.count},
        {"shared.inter", d->shared.inter, own->shared.inter},
        {"shared.gate", d->shared.gate, own->shared.gate},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        MOE_REQUIRE(fields[i].plan == fields[i].own, MOE_E_SHAPE,
                    "%s: the plan has %s = %" PRId64 ", the checkpoint's layer %" PRId64, call,
                    fields[i].name, fields[i].plan, fields[i].own);
    }
    for (int i = 0; i < (own->shared.count > 0 ? 4 : 2); i++) {
        const moe_gemm_desc *a = i < 2 ? &d->gemm[i] : &d->shared.gemm[i - 2];
        const moe_gemm_desc *b = i < 2 ? &own->gemm[i] : &own->shared.gemm[i - 2];
        MOE_REQUIRE(a->weight_format == b->weight_format, MOE_E_SHAPE,
                    "%s: the plan has %sgemm[%d] in %s, the checkpoint's layer in %s", call,
                    i < 2 ? "" : "shared.", i % 2, moe_format_name(a->weight_format),
                    moe_format_name(b->weight_format));
    }
    return MOE_OK;
}

// ---- scales of activations ---------------------------------------------------------------------

// One number serves a layer: the largest input scale. As NVFP4's global, which multiplies, it is
// the reciprocal of that; dialects that store the reciprocal have the least.
static moe_status find_act_scale(const moe_checkpoint_layer *layer, const char *call,
                                 const struct moei_stack *stack, int g, moe_quant_spec spec,
                                 float *out)
{
    const struct moei_dialect *row = stack->dialect;
    const bool global = spec == MOE_QUANT_NVFP4;
    bool any = false;
    float best = 0.0f;
    MOE_REQUIRE(stack->gemm[g].act, MOE_E_NOT_FOUND,
                "%s: %s: quantiser %s of the %s needs a given scale, the checkpoint (%s) has none",
                call, moei_checkpoint_label(layer->checkpoint), moe_quant_name(spec), stack->what,
                row->name);
    MOE_REQUIRE(global == (stack->gemm[g].format == MOE_FORMAT_NVFP4), MOE_E_UNSUPPORTED,
                "%s: %s: quantiser %s with the input scales of %s", call,
                moei_checkpoint_label(layer->checkpoint), moe_quant_name(spec), row->name);
    struct filling f = {.layer = layer, .stack = stack, .call = call, .gemm = g};
    f.parts = moei_stack_parts(stack, g, f.part);
    for (f.expert = 0; f.expert < stack->count; f.expert++) {
        for (int i = 0; i < f.parts; i++) {
            moe_tensor t;
            float value;
            MOE_TRY(expert_view(&f, i, row->role[MOE_ROLE_ACT_SCALE], &t));
            memcpy(&value, data_of(&t), sizeof value);
            MOE_REQUIRE(value > 0.0f && value <= 3.4028234e38f, MOE_E_VALUE,
                        "%s: %s: input scale %g of expert %d, must be finite and above 0", call,
                        moei_checkpoint_label(layer->checkpoint), (double)value, (int)f.expert);
            const bool better = row->act_divides ? value < best : value > best;
            best = !any || better ? value : best;
            any = true;
        }
    }
    *out = global && !row->act_divides ? 1.0f / best : best;
    return MOE_OK;
}

static bool needs_scale(moe_quant_spec spec)
{
    return spec == MOE_QUANT_FP8_STATIC || spec == MOE_QUANT_INT8_STATIC || spec == MOE_QUANT_NVFP4;
}

/// The activation scales of a layer; `given` where the plan asks for one.
struct act_scales {
    float value[4];
    bool given[4];
};

static moe_status find_act_scales(const moe_checkpoint_layer *layer, const char *call,
                                  const moe_layer_desc *d, struct act_scales *out)
{
    memset(out, 0, sizeof *out);
    for (int i = 0; i < (layer->shared.count > 0 ? 4 : 2); i++) {
        const struct moei_stack *stack = i < 2 ? &layer->routed : &layer->shared;
        const moe_quant_spec spec = i < 2 ? d->gemm[i].act.spec : d->shared.gemm[i - 2].act.spec;
        out->given[i] = needs_scale(spec);
        if (out->given[i]) {
            MOE_TRY(find_act_scale(layer, call, stack, i % 2, spec, &out->value[i]));
        }
    }
    return MOE_OK;
}

static void give_act_scales(const struct act_scales *scales, int first, moe_matrix_source out[2])
{
    for (int g = 0; g < 2; g++) {
        if (scales->given[first + g]) {
            out[g].act_scale = moe_tensor_1d(&scales->value[first + g], MOE_F32, 1);
        }
    }
}

// ---- load --------------------------------------------------------------------------------------

static bool lies_ready(const struct moei_stack *s)
{
    return s->count == 0 || ((s->stacked || s->count == 1) && !s->apart &&
                             s->dialect->kind != MOEI_KIND_WORDS && !s->dialect->scale2_divides);
}

static void fill_linears(const moe_checkpoint_layer *layer, moe_weights_source *out)
{
    out->shared_gate = layer->shared_gate;
    out->latent_in = layer->latent_in;
    out->latent_out = layer->latent_out;
    out->output_bias = layer->output_bias;
}

// UNSUPPORTED, ALIGNMENT and, from a plan on a device, ARGUMENT mean: give memory.
static moe_status wrap(const moe_checkpoint_layer *layer, const moe_plan *plan, const char *call,
                       const struct act_scales *scales, moe_weights **out)
{
    struct scratch none = {.base = NULL};
    moe_weights_source source = moe_weights_source_default();
    const struct moei_stack *stacks[] = {&layer->routed, &layer->shared};
    for (int s = 0; s < 2; s++) {
        MOE_REQUIRE(lies_ready(stacks[s]), MOE_E_UNSUPPORTED,
                    "%s: %s: the %s (%s) are not stored as one stack of weights; give memory", call,
                    moei_checkpoint_label(layer->checkpoint), stacks[s]->what,
                    stacks[s]->dialect->name);
        moe_matrix_source *to = s == 0 ? source.gemm : source.shared;
        for (int g = 0; g < 2 && stacks[s]->count > 0; g++) {
            const int32_t all = stacks[s]->count == 1 ? 0 : -1;
            MOE_TRY(fill_matrix(layer, call, stacks[s], all, g, &none, &to[g]));
        }
        give_act_scales(scales, 2 * s, to);
    }
    fill_linears(layer, &source);
    source.gemm[0].values.device = MOE_DEVICE_CPU; // else it would be taken for the plan's
    return moe_weights_wrap(plan, &source, out);
}

moe_status moe_checkpoint_layer_bytes(const moe_checkpoint_layer *layer, const moe_plan *plan,
                                      size_t *bytes, size_t *align)
{
    const char *call = "moe_checkpoint_layer_bytes";
    moe_layer_desc d;
    struct act_scales scales;
    MOE_REQUIRE(layer != NULL && plan != NULL && bytes != NULL && align != NULL, MOE_E_ARGUMENT,
                "%s: an argument is NULL", call);
    MOE_TRY(check_plan(layer, plan, call, &d));
    MOE_TRY(find_act_scales(layer, call, &d, &scales));
    return moe_weights_bytes(plan, bytes, align);
}

moe_status moe_checkpoint_layer_wraps(const moe_checkpoint_layer *layer, const moe_plan *plan,
                                      int *wraps)
{
    const char *call = "moe_checkpoint_layer_wraps";
    moe_layer_desc d;
    struct act_scales scales;
    moe_weights *weights = NULL;
    MOE_REQUIRE(layer != NULL && plan != NULL && wraps != NULL, MOE_E_ARGUMENT,
                "%s: an argument is NULL", call);
    MOE_TRY(check_plan(layer, plan, call, &d));
    MOE_TRY(find_act_scales(layer, call, &d, &scales));
    const moe_status status = wrap(layer, plan, call, &scales, &weights);
    moe_weights_destroy(weights);
    if (status != MOE_OK && status != MOE_E_UNSUPPORTED && status != MOE_E_ALIGNMENT &&
        status != MOE_E_ARGUMENT) {
        return status;
    }
    *wraps = status == MOE_OK ? 1 : 0;
    return MOE_OK;
}

/// The packing of a layer.
struct packing {
    const moe_checkpoint_layer *layer;
    const moe_plan *plan;
    const char *call;
    struct act_scales scales;
    moe_weights *weights;
    size_t threads;
    unsigned char *scratch; // of an expert; NULL: everything lies ready
    struct share *shares;   // [threads]
};

/// What a thread has to say of its share of an expert.
struct share {
    moe_status status;
    char message[512];
};

static moe_status first_failure(const struct packing *p)
{
    for (size_t i = 0; i < p->threads; i++) {
        if (p->shares[i].status != MOE_OK) {
            return moe_fail(p->shares[i].status, "%s", p->shares[i].message);
        }
    }
    return MOE_OK;
}

static moe_status fill_expert(const struct packing *p, bool shared, int32_t expert,
                              struct scratch *scratch, moe_weights_source *out)
{
    const struct moei_stack *stack = shared ? &p->layer->shared : &p->layer->routed;
    moe_matrix_source *to = shared ? out->shared : out->gemm;
    *out = moe_weights_source_default();
    for (int g = 0; g < 2; g++) {
        MOE_TRY(fill_matrix(p->layer, p->call, stack, expert, g, scratch, &to[g]));
    }
    give_act_scales(&p->scales, shared ? 2 : 0, to);
    return MOE_OK;
}

/// The gathering of an expert.
struct gathering {
    const struct packing *packing;
    bool shared;
    int32_t expert;
};

static void gather_share(void *arg, size_t i)
{
    const struct gathering *g = arg;
    const struct packing *p = g->packing;
    struct scratch scratch = {p->scratch, 0, i, p->threads};
    moe_weights_source source;
    struct share *own = &p->shares[i];
    own->status = fill_expert(p, g->shared, g->expert, &scratch, &source);
    if (own->status != MOE_OK) { // said on this thread
        (void)snprintf(own->message, sizeof own->message, "%s", moe_last_error());
    }
}

static moe_status pack_expert(const struct packing *p, bool shared, int32_t expert)
{
    const moe_thread_pool pool = moe_context_pool(moe_plan_context(p->plan));
    struct gathering g = {p, shared, expert};
    struct scratch scratch = {.base = p->scratch};
    moe_weights_source source;
    MOE_TRY(fill_expert(p, shared, expert, &scratch, &source));
    if (scratch.used > 0) {
        pool.parallel_for(pool.self, p->threads, gather_share, &g);
        MOE_TRY(first_failure(p));
    }
    return moe_weights_pack(p->weights, shared ? 0 : expert, &source);
}

// Several shared experts come as one source: all of them or none.
static int32_t shared_index(const moe_checkpoint_layer *layer)
{
    return layer->shared.count > 1 ? -1 : 0;
}

static moe_status pack_rest(const struct packing *p)
{
    moe_weights_source rest = moe_weights_source_default();
    if (p->layer->shared.count > 0) {
        MOE_TRY(pack_expert(p, true, shared_index(p->layer)));
    }
    fill_linears(p->layer, &rest);
    return moe_weights_pack(p->weights, 0, &rest);
}

// Scratch that an expert takes, of the routed ones or the shared.
static moe_status measure(const struct packing *p, size_t *bytes)
{
    const moe_checkpoint_layer *layer = p->layer;
    struct scratch scratch = {.base = NULL};
    moe_weights_source source;
    MOE_TRY(fill_expert(p, false, 0, &scratch, &source));
    *bytes = scratch.used;
    if (layer->shared.count > 0) {
        MOE_REQUIRE(layer->shared.count == 1 || lies_ready(&layer->shared), MOE_E_UNSUPPORTED,
                    "%s: %s: %d shared experts in tensors of their own, only one is known", p->call,
                    moei_checkpoint_label(layer->checkpoint), (int)layer->shared.count);
        scratch.used = 0;
        MOE_TRY(fill_expert(p, true, shared_index(layer), &scratch, &source));
        *bytes = scratch.used > *bytes ? scratch.used : *bytes;
    }
    return MOE_OK;
}

static moe_status pack_all(struct packing *p)
{
    size_t need = 0;
    MOE_TRY(measure(p, &need));
    const size_t all = need > 0 ? moei_size_align(need, ALIGN) : 0;
    p->threads = (size_t)moe_context_num_threads(moe_plan_context(p->plan));
    p->scratch = all > 0 && all < SIZE_MAX ? aligned_alloc(ALIGN, all) : NULL;
    p->shares = calloc(p->threads, sizeof p->shares[0]);
    moe_status status = MOE_OK;
    if ((all > 0 && p->scratch == NULL) || p->shares == NULL) {
        status = moe_fail(MOE_E_NO_MEMORY, "%s: no memory for %zu bytes", p->call, all);
    }
    for (int32_t e = 0; e < p->layer->routed.count && status == MOE_OK; e++) {
        status = pack_expert(p, false, e);
    }
    status = status == MOE_OK ? pack_rest(p) : status;
    free(p->scratch);
    free(p->shares);
    return status;
}

moe_status moe_checkpoint_layer_load(const moe_checkpoint_layer *layer, const moe_plan *plan,
                                     void *memory, size_t bytes, moe_weights **out)
{
    const char *call = "moe_checkpoint_layer_load";
    moe_layer_desc d;
    struct packing p = {.layer = layer, .plan = plan, .call = call};
    MOE_REQUIRE(layer != NULL && plan != NULL && out != NULL, MOE_E_ARGUMENT, "%s: %s is NULL",
                call,
                layer == NULL  ? "layer"
                : plan == NULL ? "plan"
                               : "out");
    MOE_TRY(check_plan(layer, plan, call, &d));
    MOE_TRY(find_act_scales(layer, call, &d, &p.scales));
    if (memory == NULL) {
        return wrap(layer, plan, call, &p.scales, out);
    }
    MOE_TRY(moe_weights_create(plan, memory, bytes, &p.weights));
    const moe_status status = pack_all(&p);
    if (status != MOE_OK) {
        moe_weights_destroy(p.weights);
        return status;
    }
    *out = p.weights;
    return MOE_OK;
}
