// SPDX-License-Identifier: Apache-2.0
#define _POSIX_C_SOURCE 200809L
#include "api/layer_case.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/safemath.h"
#include "core/tensor.h"
#include "ops/quantize.h"
#include "quant/elements.h"
#include "quant/formats.h"
#include "quant/specs.h"

#define POISON         0xA5
#define FLOATS_AT_ONCE 256

// ---- data --------------------------------------------------------------------------------------

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static uint64_t seed_of(const char *name)
{
    uint64_t seed = 0xCBF29CE484222325u;
    for (; *name != '\0'; name++) {
        seed = (seed ^ (unsigned char)*name) * 0x100000001B3u;
    }
    return seed;
}

#define NOISE 65536
static uint64_t noise[NOISE]; // filled by the first case; a test makes that one on its main thread

static uint64_t draw(uint64_t seed, int64_t i)
{
    return noise[(seed + (uint64_t)i) % NOISE];
}

// In [low, high).
static float draw_float(uint64_t seed, int64_t i, float low, float high)
{
    return low + (high - low) * (float)(draw(seed, i) >> 40) * 0x1p-24f;
}

// Memory of exactly `bytes` bytes, so that a sanitizer sees the first byte past it.
static void *take(layer_case *c, size_t bytes, size_t align)
{
    void *p = NULL;
    if (c->num_blocks == LAYER_CASE_BLOCKS ||
        posix_memalign(&p, align, bytes > 0 ? bytes : 1) != 0) {
        abort();
    }
    memset(p, 0, bytes > 0 ? bytes : 1);
    c->blocks[c->num_blocks] = p;
    c->block_bytes[c->num_blocks++] = bytes;
    return p;
}

static int64_t elems(int ndim, const int64_t *shape)
{
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) {
        n *= shape[i];
    }
    return n;
}

static moe_tensor tensor(layer_case *c, moe_dtype dtype, int ndim, const int64_t *shape)
{
    const int64_t inner = ndim > 0 ? shape[ndim - 1] : 1;
    const int64_t rows = ndim > 0 ? elems(ndim - 1, shape) : 1;
    void *data = take(c, (size_t)(rows * moei_elem_bytes(dtype, inner)), 64);
    return moe_tensor_make(data, dtype, ndim, shape);
}

// f32, bf16, f16, e8m0 or e4m3fn (codes of positive scales) with values in [low, high).
static moe_tensor floats(layer_case *c, const char *name, moe_dtype dtype, int ndim,
                         const int64_t *shape, float low, float high)
{
    const moe_tensor t = tensor(c, dtype, ndim, shape);
    const uint64_t seed = seed_of(name);
    const int64_t n = elems(ndim, shape);
    uint8_t *at = (uint8_t *)t.data;
    if (dtype == MOE_E8M0 || dtype == MOE_E4M3FN) {
        const uint64_t first = dtype == MOE_E8M0 ? 120 : 0x28;
        const uint64_t count = dtype == MOE_E8M0 ? 4 : 16;
        for (int64_t i = 0; i < n; i++) {
            at[i] = (uint8_t)(first + draw(seed, i) % count);
        }
        return t;
    }
    float values[FLOATS_AT_ONCE];
    for (int64_t begin = 0; begin < n; begin += FLOATS_AT_ONCE) {
        const int64_t count = n - begin < FLOATS_AT_ONCE ? n - begin : FLOATS_AT_ONCE;
        for (int64_t i = 0; i < count; i++) {
            values[i] = draw_float(seed, begin + i, low, high);
        }
        moei_store_f32(dtype, at + begin * moe_dtype_bits(dtype) / 8, count, values);
    }
    return t;
}

// Codes of any element type, all of them finite and of ordinary size. Packed rows that do not end
// on a byte come as a view of bytes.
static moe_tensor codes(layer_case *c, const char *name, moe_dtype dtype, int ndim,
                        const int64_t *shape)
{
    const bool bytes_view = shape[ndim - 1] * moe_dtype_bits(dtype) % 8 != 0;
    int64_t as_bytes[MOE_MAX_DIMS];
    memcpy(as_bytes, shape, (size_t)ndim * sizeof *shape);
    as_bytes[ndim - 1] = moei_elem_bytes(dtype, shape[ndim - 1]);
    const moe_tensor t =
        tensor(c, bytes_view ? MOE_U8 : dtype, ndim, bytes_view ? as_bytes : shape);
    const uint64_t seed = seed_of(name);
    const size_t bytes = c->block_bytes[c->num_blocks - 1];
    uint8_t *at = t.data;
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t byte = (uint8_t)draw(seed, (int64_t)i);
        switch (dtype) {
        case MOE_E4M3FN:
        case MOE_E5M2:
            at[i] = byte & 0xBF; // the top exponent bit clear
            break;
        case MOE_E4M3FNUZ:
        case MOE_E5M2FNUZ:
            at[i] = (byte & 0x3F) == 0 ? 1 : byte & 0xBF; // 80 is NaN
            break;
        default:
            at[i] = byte;
            break;
        }
    }
    return t;
}

static moe_tensor ints(layer_case *c, moe_dtype dtype, int ndim, const int64_t *shape,
                       int64_t (*value)(const layer_case *, int64_t))
{
    const moe_tensor t = tensor(c, dtype, ndim, shape);
    const int64_t n = elems(ndim, shape);
    for (int64_t i = 0; i < n; i++) {
        const int64_t v = value(c, i);
        if (dtype == MOE_I64) {
            ((int64_t *)t.data)[i] = v;
        } else {
            ((int32_t *)t.data)[i] = (int32_t)v;
        }
    }
    return t;
}

// ---- weights -----------------------------------------------------------------------------------

static bool is_float(moe_dtype dtype)
{
    return dtype == MOE_F32 || dtype == MOE_BF16 || dtype == MOE_F16;
}

static void make_matrix(layer_case *c, const moe_gemm_desc *gemm, int64_t count, int64_t n,
                        int64_t k, bool gated_halves, bool transposed, const char *name,
                        moe_matrix_source *m)
{
    const moei_format_info *info = moei_format(gemm->weight_format);
    const int64_t shape[3] = {count, transposed ? k : n, transposed ? n : k};
    char label[64];
    m->values = is_float(info->elem) ? floats(c, name, info->elem, 3, shape, -0.25f, 0.25f)
                                     : codes(c, name, info->elem, 3, shape);
    if (info->scale_dtypes != 0) {
        const moe_dtype dtype = gemm->weight_scale_dtype != 0 ? gemm->weight_scale_dtype
                                                              : moei_format_scale_dtype(info);
        const int64_t block_k = moei_gemm_block_k(info, gemm);
        const int64_t part = gated_halves ? n / 2 : n;
        const int64_t rows =
            info->block_n == 0 ? 1 : n / part * moei_i64_ceil_div(part, info->block_n);
        const int64_t scales[3] = {count, rows, block_k > 0 ? moei_i64_ceil_div(k, block_k) : 1};
        (void)strcat(strcpy(label, name), ".scales");
        const float s = info->elem == MOE_I8 || info->elem == MOE_U8 ? 0.0003f : 0.02f;
        m->scales = floats(c, label, dtype, info->block_n == 0 ? 1 : 3, scales, s, 3.0f * s);
    }
    if (info->scale2) {
        (void)strcat(strcpy(label, name), ".scale2");
        m->scale2 = floats(c, label, MOE_F32, 1, &count, 0.1f, 0.2f);
    }
    if (gemm->channel_scale != 0) {
        const int64_t channels[2] = {count, n};
        (void)strcat(strcpy(label, name), ".channels");
        m->scale2 = floats(c, label, MOE_F32, 2, channels, 0.5f, 1.5f);
    }
    if (gemm->zero_points != 0) {
        const int64_t zeros[3] = {count, n, moei_i64_ceil_div(k, moei_gemm_block_k(info, gemm))};
        (void)strcat(strcpy(label, name), ".zeros");
        m->zero_points = codes(c, label, MOE_U8, 3, zeros);
        for (size_t i = 0; info->elem == MOE_UINT4 && i < c->block_bytes[c->num_blocks - 1]; i++) {
            ((uint8_t *)m->zero_points.data)[i] &= 15;
        }
    }
    if (gemm->bias != 0) {
        const int64_t bias[2] = {count, n};
        (void)strcat(strcpy(label, name), ".bias");
        m->bias = floats(c, label, MOE_F32, 2, bias, -1.0f, 1.0f);
    }
    if (moei_quant_needs_given_scale(&gemm->act)) {
        const int64_t one = 1;
        (void)strcat(strcpy(label, name), ".act_scale");
        const bool global = moei_quant_has_global_scale(&gemm->act);
        m->act_scale = global ? floats(c, label, MOE_F32, 1, &one, 90.0f, 100.0f)
                              : floats(c, label, MOE_F32, 1, &one, 0.02f, 0.03f);
    }
}

static bool halves(moe_gate_up gate_up)
{
    return gate_up == MOE_GATE_FIRST || gate_up == MOE_UP_FIRST;
}

static moe_status make_weights(layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    const int64_t width = d->latent > 0 ? d->latent : d->hidden;
    const int64_t rows1 = d->inter * (moe_activation_gated(d->activation) != 0 ? 2 : 1);
    size_t align = 0;
    c->source = moe_weights_source_default();
    make_matrix(c, &d->gemm[0], d->num_local_experts, rows1, width, halves(d->gate_up),
                d->transposed != 0, "gate_up", &c->source.gemm[0]);
    make_matrix(c, &d->gemm[1], d->num_local_experts, width, d->inter, false, d->transposed != 0,
                "down", &c->source.gemm[1]);
    if (d->shared.count > 0) {
        const moe_shared_desc *s = &d->shared;
        const int64_t shared1 = s->inter * (moe_activation_gated(s->activation) != 0 ? 2 : 1);
        make_matrix(c, &s->gemm[0], s->count, shared1, d->hidden, halves(s->gate_up),
                    s->transposed != 0, "shared_gate_up", &c->source.shared[0]);
        make_matrix(c, &s->gemm[1], s->count, d->hidden, s->inter, false, s->transposed != 0,
                    "shared_down", &c->source.shared[1]);
        if (!is_float(d->x_dtype)) { // codes of x have one scale
            c->source.shared[0].act_scale = c->source.gemm[0].act_scale;
        }
        if (s->gate == MOE_SHARED_SIGMOID) {
            c->source.shared_gate = floats(c, "shared_gate", MOE_F32, 1, &d->hidden, -0.1f, 0.1f);
        }
    }
    if (d->latent > 0) {
        const int64_t in[2] = {d->latent, d->hidden};
        const int64_t out[2] = {d->hidden, d->latent};
        c->source.latent_in = floats(c, "latent_in", MOE_F32, 2, in, -0.2f, 0.2f);
        c->source.latent_out = floats(c, "latent_out", MOE_F32, 2, out, -0.2f, 0.2f);
    }
    if (d->output_bias != 0) {
        c->source.output_bias = floats(c, "output_bias", MOE_F32, 1, &d->hidden, -1.0f, 1.0f);
    }
    moe_status status = moe_weights_bytes(c->plan, &c->weights_bytes, &align);
    if (status == MOE_OK) {
        status = moe_weights_create(c->plan, take(c, c->weights_bytes, align), c->weights_bytes,
                                    &c->weights);
    }
    return status == MOE_OK ? moe_weights_pack(c->weights, 0, &c->source) : status;
}

// ---- arguments ---------------------------------------------------------------------------------

static int64_t physical_experts(const moe_layer_desc *d)
{
    return d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
}

// Distinct within a token: k <= E + zero experts.
static int64_t id_value(const layer_case *c, int64_t i)
{
    const int64_t k = c->desc.top_k;
    return (i / k * 3 + i % k) % (c->desc.num_experts + c->desc.route.zero_experts);
}

static int64_t hash_value(const layer_case *c, int64_t i)
{
    const int64_t k = c->desc.top_k;
    return (i / k * 5 + 1 + i % k) % (c->desc.num_experts + c->desc.route.zero_experts);
}

static int64_t token_value(const layer_case *c, int64_t i)
{
    (void)c;
    return (i * 7 + 2) % 16;
}

static int64_t map_value(const layer_case *c, int64_t i)
{
    return i < c->desc.num_local_experts ? i : -1;
}

static int64_t replica_value(const layer_case *c, int64_t i)
{
    return i % 2 == 0 ? i / 2 : (i / 2 + c->desc.num_experts) % c->desc.replicas;
}

static int64_t replica_count_value(const layer_case *c, int64_t i)
{
    (void)c;
    return 1 + i % 2;
}

static int64_t count_value(const layer_case *c, int64_t i)
{
    return i % (c->args.num_tokens + 1);
}

static int64_t offset_value(const layer_case *c, int64_t i)
{
    return c->args.num_tokens * i / c->desc.num_local_experts;
}

static void make_x(layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const int64_t t = c->args.num_tokens;
    const int64_t shape[3] = {d->num_local_experts, t, d->hidden};
    const int64_t *s = batched ? shape : shape + 1;
    if (is_float(d->x_dtype)) {
        c->args.x = floats(c, "x", d->x_dtype, batched ? 3 : 2, s, -8.0f, 8.0f);
        return;
    }
    moe_quant_desc act = d->gemm[0].act;
    moei_quant_resolve(&act);
    c->args.x = codes(c, "x", d->x_dtype, batched ? 3 : 2, s);
    if (moei_quant_needs_given_scale(&act) && !moei_quant_has_global_scale(&act)) {
        return;
    }
    const moei_scale_shape scale =
        moei_quant_scale_shape(&act, batched ? d->num_local_experts : 1, t, d->hidden);
    const int64_t scales[3] = {d->num_local_experts, scale.rows, scale.columns};
    const int64_t one = 1;
    if (scale.row_stride == 0) {
        c->args.x_scales = floats(c, "x_scales", scale.dtype, 1, &one, 0.5f, 1.0f);
        return;
    }
    const int64_t all = (int64_t)scale.elems;
    moe_tensor flat = scale.dtype == MOE_I32
                          ? tensor(c, MOE_I32, 1, &all)
                          : floats(c, "x_scales", scale.dtype, 1, &all, 0.5f, 1.0f);
    for (int64_t i = 0; scale.dtype == MOE_I32 && i < all; i++) {
        ((int32_t *)flat.data)[i] = 0x797A7B78; // four e8m0 bytes
    }
    moe_tensor view =
        moe_tensor_make(flat.data, scale.dtype, batched ? 3 : 2, batched ? scales : scales + 1);
    view.stride[view.ndim - 2] = scale.row_stride;
    view.stride[view.ndim - 1] = scale.k_stride;
    if (batched) {
        view.stride[0] = scale.batch_stride;
    }
    c->args.x_scales = view;
}

static void make_routing(layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    moe_run_args *a = &c->args;
    const int64_t t = a->num_tokens;
    const int64_t per_slot[2] = {t, d->top_k};
    const int64_t one = 1;
    const int64_t experts = d->num_experts;
    const int64_t local = d->num_local_experts;
    if (d->routing == MOE_ROUTING_FROM_LOGITS) {
        const int64_t keyed = experts + d->route.zero_experts;
        const int64_t logits[2] = {t, keyed + d->route.shared_scores};
        const int64_t table[2] = {16, d->top_k};
        const int64_t gate[2] = {t, d->route.append_shared};
        a->logits = floats(c, "logits", d->logits_dtype, 2, logits, -3.0f, 3.0f);
        if (d->route.correction_bias != 0) {
            a->correction_bias = floats(c, "correction_bias", MOE_F32, 1, &keyed, -2.0f, 2.0f);
        }
        if (d->route.scale_tensor != 0) {
            a->scale_tensor = floats(c, "scale_tensor", MOE_F32, 1, &one, 1.5f, 2.0f);
        }
        if (d->route.hash_table != 0) {
            a->hash_table = ints(c, MOE_I32, 2, table, hash_value);
            a->token_ids = ints(c, MOE_I32, 1, &t, token_value);
        }
        if (d->route.append_shared > 0) {
            a->append_gate = floats(c, "append_gate", MOE_F32, 2, gate, 0.1f, 0.9f);
        }
    } else if (d->routing == MOE_ROUTING_GIVEN) {
        a->ids = ints(c, d->ids_dtype, 2, per_slot, id_value);
        if (d->weight_stage != MOE_WEIGHT_NONE) {
            a->weights = floats(c, "weights", d->weights_dtype, 2, per_slot, 0.1f, 0.9f);
        }
        if (d->shared.count > 0 && d->shared.gate == MOE_SHARED_ROUTER_WEIGHTED) {
            const int64_t shared[2] = {t, d->shared.count};
            a->shared_weights = floats(c, "shared_weights", MOE_F32, 2, shared, 0.1f, 0.9f);
        }
    } else {
        const bool batched = d->x_layout == MOE_X_BATCHED;
        const int64_t ends = local + 1;
        const int64_t rows[2] = {local, t};
        if (batched) {
            a->counts = ints(c, MOE_I32, 1, &local, count_value);
        } else {
            a->offsets = ints(c, MOE_I32, 1, &ends, offset_value);
        }
        if (d->weight_stage != MOE_WEIGHT_NONE) {
            a->weights = floats(c, "weights", MOE_F32, batched ? 2 : 1, batched ? rows : rows + 1,
                                0.1f, 0.9f);
        }
    }
    if (d->expert_map != 0) {
        const int64_t physical = physical_experts(d);
        a->expert_map = ints(c, MOE_I32, 1, &physical, map_value);
    }
    if (d->replicas > 0) {
        const int64_t table[2] = {experts, 2};
        a->replica_table = ints(c, MOE_I32, 2, table, replica_value);
        a->replica_count = ints(c, MOE_I32, 1, &experts, replica_count_value);
    }
}

static void make_outputs(layer_case *c)
{
    const moe_layer_desc *d = &c->desc;
    moe_run_args *a = &c->args;
    const int64_t t = a->num_tokens;
    const int64_t k = d->top_k + d->route.append_shared;
    const int64_t slots[3] = {t, k, d->hidden};
    const int64_t combined[2] = {t, d->hidden};
    const int64_t batched[3] = {d->num_local_experts, t, d->hidden};
    const bool three = d->out_mode == MOE_OUT_SLOTS || d->x_layout == MOE_X_BATCHED;
    a->out = tensor(c, d->out_dtype, three ? 3 : 2,
                    !three                         ? combined
                    : d->out_mode == MOE_OUT_SLOTS ? slots
                                                   : batched);
    if (d->routing != MOE_ROUTING_PLACED) {
        const int64_t physical = physical_experts(d);
        const int64_t local = d->num_local_experts;
        a->out_ids = tensor(c, d->ids_dtype, 2, slots);
        a->out_weights = tensor(c, d->weights_dtype, 2, slots);
        a->out_counts = tensor(c, MOE_I64, 1, &local);
        a->load = tensor(c, MOE_I32, 1, &physical);
    }
}

// The defaults that the descriptor leaves to the library, as plan.h states them.
static void resolve(moe_layer_desc *d)
{
    const bool tokens = d->x_layout == MOE_X_TOKENS;
    d->num_local_experts =
        d->num_local_experts != 0 ? d->num_local_experts : (int32_t)physical_experts(d);
    d->logits_dtype = d->logits_dtype != 0 ? d->logits_dtype : MOE_F32;
    d->ids_dtype = d->ids_dtype != 0 ? d->ids_dtype : MOE_I32;
    d->weights_dtype = d->weights_dtype != 0 ? d->weights_dtype : MOE_F32;
    d->out_dtype = d->out_dtype != 0 ? d->out_dtype : d->x_dtype;
    if (d->out_mode == MOE_OUT_DEFAULT) {
        d->out_mode = tokens ? MOE_OUT_COMBINED : MOE_OUT_LAYOUT;
    }
}

moe_layer_desc layer_case_base(void)
{
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = 16;
    d.hidden = 144;
    d.inter = 136;
    d.num_experts = 8;
    d.top_k = 2;
    d.x_dtype = MOE_BF16;
    d.gemm[0].weight_format = MOE_FORMAT_BF16;
    d.gemm[1].weight_format = MOE_FORMAT_BF16;
    d.routing = MOE_ROUTING_FROM_LOGITS;
    d.route.scoring = MOE_SCORING_SOFTMAX;
    d.route.renormalise = MOE_RENORM_SUM;
    d.activation = MOE_ACT_SILU;
    d.gate_up = MOE_GATE_FIRST;
    d.weight_stage = MOE_WEIGHT_OUTPUT;
    return d;
}

void layer_case_add_shared(moe_layer_desc *d)
{
    d->shared.count = 2;
    d->shared.inter = 24;
    d->shared.gate = MOE_SHARED_SIGMOID;
    d->shared.activation = MOE_ACT_SILU;
    d->shared.gate_up = MOE_UP_FIRST;
    d->shared.gemm[0].weight_format = d->shared.gemm[1].weight_format = MOE_FORMAT_BF16;
}

void layer_case_place(moe_layer_desc *d, moe_x_layout layout)
{
    d->routing = MOE_ROUTING_PLACED;
    d->x_layout = layout;
    d->top_k = 0;
    memset(&d->route, 0, sizeof d->route);
    d->logits_dtype = 0;
}

static const moe_tensor *output(const layer_case *c, int i)
{
    const moe_tensor *const all[] = {&c->args.out, &c->args.out_ids, &c->args.out_weights,
                                     &c->args.out_counts, &c->args.load};
    return i < 5 ? all[i] : NULL;
}

static size_t output_bytes(const moe_tensor *t)
{
    return t->data != NULL ? (size_t)(elems(t->ndim, t->shape) * moe_dtype_bits(t->dtype) / 8) : 0;
}

// What is added to begins as a number: load as 0, out as 0.0115 in every type.
static int pattern_of(const layer_case *c, const moe_tensor *t)
{
    return t == &c->args.load ? 0 : t == &c->args.out && c->desc.accumulate != 0 ? 0x3C : POISON;
}

void layer_case_poison(layer_case *c)
{
    const moe_tensor *t;
    for (int i = 0; (t = output(c, i)) != NULL; i++) {
        if (t->data != NULL) {
            memset(t->data, pattern_of(c, t), output_bytes(t));
        }
    }
}

int layer_case_untouched(const layer_case *c)
{
    const moe_tensor *t;
    for (int i = 0; (t = output(c, i)) != NULL; i++) {
        for (size_t b = 0; b < output_bytes(t); b++) {
            if (((const unsigned char *)t->data)[b] != pattern_of(c, t)) {
                return 0;
            }
        }
    }
    return 1;
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001B3u;
    }
    return hash;
}

uint64_t layer_case_outputs(const layer_case *c)
{
    const moe_tensor *t;
    uint64_t hash = seed_of("outputs");
    for (int i = 0; (t = output(c, i)) != NULL; i++) {
        hash = hash_bytes(hash, t->data, output_bytes(t));
    }
    return hash;
}

uint64_t layer_case_forms(const layer_case *c)
{
    const size_t first = offsetof(moe_run_args, x);
    const size_t count = (sizeof(moe_run_args) - first) / sizeof(moe_tensor);
    uint64_t hash = hash_bytes(seed_of("forms"), &c->weights_bytes, sizeof c->weights_bytes);
    for (size_t i = 0; i < count; i++) {
        moe_tensor t;
        memcpy(&t, (const unsigned char *)&c->args + first + i * sizeof t, sizeof t);
        const int64_t head[4] = {t.data != NULL, t.dtype, t.ndim, (int64_t)i};
        if (t.data != NULL) {
            hash = hash_bytes(hash, head, sizeof head);
            hash = hash_bytes(hash, t.shape, (size_t)t.ndim * sizeof t.shape[0]);
            hash = hash_bytes(hash, t.stride, (size_t)t.ndim * sizeof t.stride[0]);
        }
    }
    return hash;
}

moe_status layer_case_make(layer_case *c, const moe_plan *plan, const moe_layer_desc *desc,
                           int64_t tokens)
{
    size_t align = 0;
    for (uint64_t i = 0; noise[0] == 0 && i < NOISE; i++) {
        noise[NOISE - 1 - i] = mix((i + 1) * 0x9E3779B97F4A7C15u);
    }
    memset(c, 0, sizeof *c);
    c->plan = plan;
    c->desc = *desc;
    resolve(&c->desc);
    c->args = moe_run_args_default();
    c->args.num_tokens = tokens;
    moe_status status = make_weights(c);
    if (status != MOE_OK) {
        return status;
    }
    make_x(c);
    make_routing(c);
    make_outputs(c);
    layer_case_poison(c);
    status = moe_plan_workspace(plan, tokens, &c->workspace_bytes, &align);
    if (status == MOE_OK) {
        c->workspace = take(c, c->workspace_bytes, align);
        memset(c->workspace, POISON, c->workspace_bytes);
    }
    return status;
}

moe_status layer_case_run(layer_case *c)
{
    return moe_run(c->plan, c->weights, &c->args, c->workspace, c->workspace_bytes, NULL);
}

void layer_case_free(layer_case *c)
{
    moe_weights_destroy(c->weights);
    for (int i = 0; i < c->num_blocks; i++) {
        free(c->blocks[i]);
    }
    memset(c, 0, sizeof *c);
}
