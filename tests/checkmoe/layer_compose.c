// SPDX-License-Identifier: Apache-2.0
// The layer once more, out of the public ops on buffers of its own: compact, in the order of the
// items, gate and up often as two matrices. A plan must give the same bits.
#include <stdlib.h>
#include <string.h>

#include "checkmoe/layer_case.h"
#include "core/check.h"
#include "moe/ops.h"
#include "numerics/math.h"
#include "ops/quantize.h"
#include "quant/elements.h"

#define MAX_BLOCKS 256

/// Memory of a composition.
typedef struct heap {
    void *block[MAX_BLOCKS];
    int used;
    bool full;
} heap;

static void *take(heap *h, int64_t count, size_t bytes)
{
    void *p = h->used < MAX_BLOCKS ? calloc((size_t)count + 1, bytes) : NULL;
    if (p == NULL) {
        h->full = true;
        return NULL;
    }
    h->block[h->used++] = p;
    return p;
}

static void release(heap *h)
{
    for (int i = 0; i < h->used; i++) {
        free(h->block[i]);
    }
}

static size_t dtype_bytes(moe_dtype dtype)
{
    return (size_t)moe_dtype_bits(dtype) / 8;
}

/// Input of a product: floats, or codes with their scales.
typedef struct operand {
    moe_tensor x, scales, given;
} operand;

typedef struct composition {
    const moe_context *ctx;
    const moec_layer_case *c;
    const int32_t *items;
    int32_t n, slots; // of a token
    heap heap;
    moec_routing routing;
    int32_t *local;   // [n, slots]: local ids, -1 absent
    int32_t *offsets; // [experts + 1]
    int32_t *sorted;  // position -> slot
} composition;

/// An MLP stack with what the descriptor says about it.
typedef struct mlp {
    const moec_stack *w; // two
    moe_activation activation;
    float alpha, beta, linear_beta, limit;
    moe_gate_up gate_up;
} mlp;

static moe_tensor new_tensor(composition *k, moe_dtype dtype, int64_t rows, int64_t columns)
{
    return moe_tensor_2d(take(&k->heap, rows * columns, dtype_bytes(dtype)), dtype, rows, columns);
}

// ---- routing ------------------------------------------------------------------------------------

void moec_routing_free(moec_routing *r)
{
    free(r->ids);
    free(r->weights);
    free(r->shared);
    memset(r, 0, sizeof *r);
}

static void *gather_rows(heap *h, const void *data, size_t bytes, const int32_t *items, int32_t n)
{
    unsigned char *rows = take(h, n, bytes > 0 ? bytes : 1);
    for (int32_t p = 0; rows != NULL && p < n; p++) {
        memcpy(rows + (size_t)p * bytes, (const unsigned char *)data + (size_t)items[p] * bytes,
               bytes);
    }
    return rows;
}

static moe_status route_logits(const moe_context *ctx, const moec_layer_case *c, heap *h,
                               const int32_t *items, int32_t n, moec_routing *out)
{
    const moe_layer_desc *d = &c->desc;
    const moe_dtype dtype = d->logits_dtype != 0 ? d->logits_dtype : MOE_F32;
    const int32_t slots = moec_layer_slots(c);
    moe_route_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.desc = d->route;
    a.num_experts = d->num_experts;
    a.top_k = d->top_k;
    a.logits = moe_tensor_2d(
        gather_rows(h, c->logits, (size_t)c->logit_columns * dtype_bytes(dtype), items, n), dtype,
        n, c->logit_columns);
    if (d->route.correction_bias != 0) {
        a.correction_bias = moe_tensor_1d(c->correction_bias, MOE_F32,
                                          (int64_t)d->num_experts + d->route.zero_experts);
    }
    if (d->route.scale_tensor != 0) {
        a.scale_tensor = moe_tensor_1d(c->scale_tensor, MOE_F32, 1);
    }
    if (d->route.hash_table != 0) {
        a.hash_table = moe_tensor_2d(c->hash_table, MOE_I64, c->vocabulary, d->top_k);
        a.token_ids =
            moe_tensor_1d(gather_rows(h, c->token_ids, sizeof(int64_t), items, n), MOE_I64, n);
    }
    if (moec_layer_has_append_gate(c)) {
        const size_t bytes = (size_t)d->route.append_shared * sizeof(float);
        a.shared_gate = moe_tensor_2d(gather_rows(h, c->append_gate, bytes, items, n), MOE_F32, n,
                                      d->route.append_shared);
    }
    a.ids = moe_tensor_2d(out->ids, MOE_I32, n, slots);
    a.weights = moe_tensor_2d(out->weights, MOE_F32, n, slots);
    if (d->route.shared_scores > 0) {
        a.shared_weights = moe_tensor_2d(out->shared, MOE_F32, n, d->route.shared_scores);
    }
    return h->full ? MOE_E_NO_MEMORY : moe_route(ctx, &a, NULL);
}

static void route_given(const moec_layer_case *c, const int32_t *items, int32_t n,
                        moec_routing *out)
{
    const moe_layer_desc *d = &c->desc;
    const int32_t slots = moec_layer_slots(c);
    const bool placed = d->routing == MOE_ROUTING_PLACED;
    for (int32_t p = 0; p < n; p++) {
        for (int32_t j = 0; j < slots; j++) {
            const int64_t from = (int64_t)items[p] * slots + j;
            const int64_t id = placed ? c->expert[items[p]] : c->ids[from];
            const bool named =
                placed || (id >= 0 && id < (int64_t)d->num_experts + d->route.zero_experts);
            const bool weighted = d->weight_stage != MOE_WEIGHT_NONE;
            out->ids[p * slots + j] = named ? (int32_t)id : -1;
            out->weights[p * slots + j] = !named ? 0.0f : weighted ? c->weights[from] : 1.0f;
        }
        for (int32_t i = 0; i < d->shared.count && !placed; i++) {
            out->shared[p * d->shared.count + i] =
                c->shared_weights[items[p] * d->shared.count + i];
        }
    }
}

moe_status moec_layer_route(const moe_context *ctx, const moec_layer_case *c, const int32_t *items,
                            int32_t n, moec_routing *out)
{
    const size_t slots = (size_t)n * (size_t)moec_layer_slots(c);
    out->ids = calloc(slots + 1, sizeof *out->ids);
    out->weights = calloc(slots + 1, sizeof *out->weights);
    out->shared = calloc((size_t)n * (size_t)c->desc.shared.count + 1, sizeof *out->shared);
    moe_status status = MOE_E_NO_MEMORY;
    if (out->ids != NULL && out->weights != NULL && out->shared != NULL) {
        status = MOE_OK;
        if (c->desc.routing != MOE_ROUTING_FROM_LOGITS) {
            route_given(c, items, n, out);
        } else if (n > 0) {
            heap h = {.used = 0};
            status = route_logits(ctx, c, &h, items, n, out);
            release(&h);
        }
    }
    return status;
}

int32_t moec_layer_physical(const moec_layer_case *c, int64_t position, int32_t id)
{
    const moe_layer_desc *d = &c->desc;
    if (id < 0 || id >= d->num_experts + d->route.append_shared) {
        return -1;
    }
    if (d->replicas > 0) {
        const int32_t count = c->replica_count[id];
        if (count < 1 || count > c->replica_slots) {
            return -1;
        }
        const uint32_t hash = (uint32_t)((uint64_t)position * 0x9E3779B9u);
        id = c->replica_table[id * c->replica_slots + (int32_t)(hash % (uint32_t)count)];
    }
    return id;
}

int32_t moec_layer_local(const moec_layer_case *c, int64_t position, int32_t id)
{
    if (c->desc.routing == MOE_ROUTING_PLACED) {
        return id;
    }
    int32_t local = moec_layer_physical(c, position, id);
    if (local >= 0 && c->desc.expert_map != 0) {
        local = c->expert_map[local];
    }
    return local >= 0 && local < moec_layer_local_count(c) ? local : -1;
}

static moe_status sort_slots(composition *k)
{
    const int32_t experts = moec_layer_local_count(k->c);
    const int64_t slots = (int64_t)k->n * k->slots;
    k->local = take(&k->heap, slots, sizeof(int32_t));
    k->offsets = take(&k->heap, (int64_t)experts + 1, sizeof(int32_t));
    k->sorted = take(&k->heap, slots, sizeof(int32_t));
    if (k->heap.full) {
        return MOE_E_NO_MEMORY;
    }
    for (int64_t s = 0; s < slots; s++) {
        k->local[s] = moec_layer_local(k->c, s / k->slots, k->routing.ids[s]);
    }
    moe_sort_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.num_experts = experts;
    a.ids = moe_tensor_2d(k->local, MOE_I32, k->n, k->slots);
    a.offsets = moe_tensor_1d(k->offsets, MOE_I32, (int64_t)experts + 1);
    a.slots = moe_tensor_1d(k->sorted, MOE_I32, slots);
    return moe_sort(k->ctx, &a, NULL);
}

// ---- products -----------------------------------------------------------------------------------

// A view of packed codes that states how many there are: rows of whole elements and whole bytes.
static moe_tensor new_codes(composition *k, moe_dtype elem, int64_t rows, int64_t columns)
{
    const int bits = moe_dtype_bits(elem);
    const int64_t step = bits == 6 ? 4 : bits == 4 ? 2 : 1; // elements that end on a byte
    const int64_t stride = (columns + step - 1) / step * step;
    moe_tensor t =
        moe_tensor_2d(take(&k->heap, rows, (size_t)(stride * bits / 8)), elem, rows, columns);
    t.stride[0] = stride;
    return t;
}

static moe_status quantise(composition *k, const moe_quant_desc *act, const moec_stack *w,
                           const moe_tensor *x, operand *out)
{
    const int64_t rows = x->shape[0];
    const int64_t columns = x->shape[1];
    memset(out, 0, sizeof *out);
    out->x = *x;
    if (act->spec == MOE_QUANT_NONE) {
        return MOE_OK;
    }
    moe_quantize_args a = moe_quantize_args_default();
    a.quant = *act;
    a.quant.scale_layout = MOE_SCALE_LAYOUT_ROW;
    const moei_scale_shape s = moei_quant_scale_shape(&a.quant, 1, rows, columns);
    moe_quant_desc resolved = a.quant;
    moei_quant_resolve(&resolved);
    a.x = *x;
    a.q = new_codes(k, resolved.elem, rows, columns);
    if (w->act_scale.data != NULL) {
        out->given = moe_tensor_1d(w->act_scale.data, MOE_F32, 1);
    }
    if (moei_quant_has_global_scale(&resolved)) {
        if (out->given.data == NULL) {
            out->given = moe_tensor_1d(take(&k->heap, 1, sizeof(float)), MOE_F32, 1);
        }
        a.global_scale = out->given;
    }
    if (s.row_stride == 0 && out->given.data != NULL) {
        a.scales = out->given;
    } else {
        out->scales = s.row_stride == 0
                          ? moe_tensor_1d(take(&k->heap, 1, sizeof(float)), s.dtype, 1)
                          : new_tensor(k, s.dtype, rows, s.columns);
        a.scales = out->scales;
    }
    out->x = a.q;
    return k->heap.full ? MOE_E_NO_MEMORY : moe_quantize(k->ctx, &a, NULL);
}

// Where the rows of a grouped product come from and go to.
typedef struct rows {
    moe_tensor offsets, row_index, out_index, row_weight;
} rows;

static moe_status product(composition *k, const moe_gemm_desc *gemm, bool transposed,
                          const moe_matrix_source *w, const operand *x, const rows *r,
                          const moe_tensor *y)
{
    moe_ggemm_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.gemm = *gemm;
    a.transposed = transposed;
    a.weights = *w;
    a.weights.act_scale = x->given;
    a.x = x->x;
    a.x_scales = x->scales;
    a.offsets = r->offsets;
    a.row_index = r->row_index;
    a.out_index = r->out_index;
    a.row_weight = r->row_weight;
    a.y = *y;
    return k->heap.full ? MOE_E_NO_MEMORY : moe_ggemm(k->ctx, &a, NULL);
}

static moe_status gate_up_product(composition *k, const mlp *m, const operand *x, const rows *r,
                                  int64_t count, moe_tensor *gate_up, moe_gate_up *order)
{
    const moec_stack *w = &m->w[0];
    const bool gated = moe_activation_gated(m->activation) != 0;
    *gate_up = new_tensor(k, MOE_F32, count, w->n);
    *order = m->gate_up;
    if (!gated ||
        (!moec_stack_must_split(w) && (k->c->seed % 3 != 0 || !moec_stack_can_split(w)))) {
        const moe_matrix_source s = moec_stack_source(w, 0, w->count);
        return product(k, &w->gemm, w->transposed, &s, x, r, gate_up);
    }
    const bool gate_first = m->gate_up == MOE_GATE_FIRST || m->gate_up == MOE_GATE_UP_INTERLEAVED;
    *order = gate_first ? MOE_GATE_FIRST : MOE_UP_FIRST;
    for (int part = 0; part < 2; part++) {
        const moe_matrix_source s =
            moec_stack_split(w, part, take(&k->heap, 1, moec_stack_split_bytes(w)));
        moe_tensor y = *gate_up;
        y.shape[1] = w->n / 2;
        y.byte_offset = (uint64_t)(part * (w->n / 2)) * sizeof(float);
        MOE_TRY(product(k, &w->gemm, w->transposed, &s, x, r, &y));
    }
    return MOE_OK;
}

// count rows through the stack; y's rows are named by r->out_index, or are the same.
static moe_status run_mlp(composition *k, const mlp *m, const operand *x, const rows *first,
                          const rows *second, int64_t count, const moe_tensor *y)
{
    const moec_stack *w = m->w;
    const bool quantised = w[1].gemm.act.spec != MOE_QUANT_NONE;
    moe_tensor gate_up;
    moe_gate_up order;
    MOE_TRY(gate_up_product(k, m, x, first, count, &gate_up, &order));
    const moe_tensor h =
        new_tensor(k, quantised ? MOE_F32 : moec_layer_inter_dtype(k->c), count, w[1].k);
    moe_glu_args glu;
    memset(&glu, 0, sizeof glu);
    glu.struct_size = sizeof glu;
    glu.activation = m->activation;
    glu.alpha = m->alpha;
    glu.beta = m->beta;
    glu.linear_beta = m->linear_beta;
    glu.limit = m->limit;
    glu.gate_up = order;
    glu.x = gate_up;
    glu.y = h;
    if (k->heap.full) {
        return MOE_E_NO_MEMORY;
    }
    MOE_TRY(moe_glu(k->ctx, &glu, NULL));
    operand operand_h;
    MOE_TRY(quantise(k, &w[1].gemm.act, &w[1], &h, &operand_h));
    const moe_matrix_source s = moec_stack_source(&w[1], 0, w[1].count);
    return product(k, &w[1].gemm, w[1].transposed, &s, &operand_h, second, y);
}

// y = x . W^T for a float matrix of the layer.
static moe_status linear(composition *k, const moec_linear *w, const moe_tensor *x, moe_dtype dtype,
                         moe_tensor *y)
{
    const moe_gemm_desc gemm = {.weight_format = w->dtype == MOE_F32    ? MOE_FORMAT_F32
                                                 : w->dtype == MOE_BF16 ? MOE_FORMAT_BF16
                                                                        : MOE_FORMAT_F16};
    const moe_matrix_source s = {.values = moe_tensor_2d(w->values.data, w->dtype, w->n, w->k)};
    const operand in = {.x = *x};
    const rows all = {0};
    *y = new_tensor(k, dtype, x->shape[0], w->n);
    return product(k, &gemm, false, &s, &in, &all, y);
}

// x as codes, with the scales that came with it.
static operand arrived_codes(composition *k, const moe_tensor *x)
{
    const moec_layer_case *c = k->c;
    operand in = {.x = *x};
    if (c->gemm[0].act_scale.data != NULL) {
        in.given = moe_tensor_1d(c->gemm[0].act_scale.data, MOE_F32, 1);
    }
    if (c->x_scale_bytes > 0) {
        const moei_scale_shape s =
            moei_quant_scale_shape(&c->desc.gemm[0].act, 1, k->n, c->desc.hidden);
        in.scales =
            moe_tensor_2d(gather_rows(&k->heap, c->x_scales, c->x_scale_bytes, k->items, k->n),
                          s.dtype, k->n, s.columns);
    } else if (in.given.data == NULL) {
        in.scales = moe_tensor_1d(&c->x_scale, MOE_F32, 1);
    }
    return in;
}

// ---- routed experts -----------------------------------------------------------------------------

// One row per slot: x times the router's weight, in x's dtype.
static moe_status weigh(composition *k, moe_tensor *x)
{
    const int64_t width = x->shape[1];
    const int64_t slots = (int64_t)k->n * k->slots;
    const size_t row = (size_t)width * dtype_bytes(x->dtype);
    moe_tensor copies = new_tensor(k, x->dtype, slots, width);
    const moe_tensor out = new_tensor(k, x->dtype, slots, width);
    if (k->heap.full) {
        return MOE_E_NO_MEMORY;
    }
    for (int64_t s = 0; s < slots; s++) {
        memcpy((unsigned char *)copies.data + (size_t)s * row,
               (unsigned char *)x->data + (size_t)(s / k->slots) * row, row);
    }
    moe_combine_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.slots = moe_tensor_3d(copies.data, x->dtype, slots, 1, width);
    a.weights = moe_tensor_2d(k->routing.weights, MOE_F32, slots, 1);
    a.out = out;
    *x = out;
    return moe_combine(k->ctx, &a, NULL);
}

// Zero experts: their slots hold weight times x, rounded as other slots are.
static void fill_identity(const composition *k, const moe_tensor *x, const moe_tensor *y)
{
    const moe_layer_desc *d = &k->c->desc;
    const int64_t width = x->shape[1];
    const size_t y_bytes = dtype_bytes(y->dtype);
    for (int64_t s = 0; s < (int64_t)k->n * k->slots; s++) {
        const int32_t id = k->routing.ids[s];
        if (id < d->num_experts || id >= d->num_experts + d->route.zero_experts) {
            continue;
        }
        const float weight = d->weight_stage == MOE_WEIGHT_NONE ? 1.0f : k->routing.weights[s];
        k->local[s] = 0; // it is there
        for (int64_t i = 0; i < width; i++) {
            const float v = weight * moei_load_one(x->dtype, x->data, s / k->slots * width + i);
            moei_store_f32(y->dtype, (uint8_t *)y->data + (size_t)(s * width + i) * y_bytes, 1, &v);
        }
    }
}

static moe_status routed(composition *k, const moe_tensor *x, moe_tensor *y)
{
    const moec_layer_case *c = k->c;
    const moe_layer_desc *d = &c->desc;
    const mlp m = {c->gemm, d->activation, d->alpha, d->beta, d->linear_beta, d->limit, d->gate_up};
    const int32_t experts = moec_layer_local_count(c);
    const int64_t slots = (int64_t)k->n * k->slots;
    MOE_TRY(sort_slots(k));
    *y = new_tensor(k, moec_layer_partial_dtype(c), slots, c->gemm[1].n);
    operand in = {.x = *x};
    if (moec_is_float(d->x_dtype)) {
        moe_tensor weighted = *x;
        if (d->weight_stage == MOE_WEIGHT_INPUT) {
            MOE_TRY(weigh(k, &weighted));
        }
        MOE_TRY(quantise(k, &d->gemm[0].act, &c->gemm[0], &weighted, &in));
    } else {
        in = arrived_codes(k, x);
    }
    int32_t *index = take(&k->heap, slots, sizeof *index);
    if (k->heap.full) {
        return MOE_E_NO_MEMORY;
    }
    const int32_t count = k->offsets[experts];
    for (int32_t i = 0; i < count; i++) {
        index[i] = d->weight_stage == MOE_WEIGHT_INPUT ? k->sorted[i] : k->sorted[i] / k->slots;
    }
    rows first = {.offsets = moe_tensor_1d(k->offsets, MOE_I32, (int64_t)experts + 1),
                  .row_index = moe_tensor_1d(index, MOE_I32, count)};
    rows second = {.offsets = first.offsets, .out_index = moe_tensor_1d(k->sorted, MOE_I32, count)};
    if (d->weight_stage == MOE_WEIGHT_OUTPUT) {
        second.row_weight = moe_tensor_1d(k->routing.weights, MOE_F32, slots);
    }
    MOE_TRY(run_mlp(k, &m, &in, &first, &second, count, y));
    if (moec_is_float(d->x_dtype)) {
        fill_identity(k, x, y);
    }
    return MOE_OK;
}

// ---- shared experts -----------------------------------------------------------------------------

static moe_status shared_weights(composition *k, const moe_tensor *x, moe_tensor *weights)
{
    const moe_layer_desc *d = &k->c->desc;
    float *w = take(&k->heap, (int64_t)d->shared.count * k->n, sizeof *w);
    moe_tensor logits = {0};
    if (d->shared.gate == MOE_SHARED_PLAIN) {
        return MOE_OK;
    }
    if (d->shared.gate == MOE_SHARED_SIGMOID) {
        MOE_TRY(linear(k, &k->c->shared_gate, x, MOE_F32, &logits));
    }
    for (int32_t e = 0; w != NULL && e < d->shared.count; e++) {
        for (int32_t p = 0; p < k->n; p++) {
            w[e * k->n + p] = logits.data != NULL ? moei_sigmoidf(((const float *)logits.data)[p])
                                                  : k->routing.shared[p * d->shared.count + e];
        }
    }
    *weights = moe_tensor_1d(w, MOE_F32, (int64_t)d->shared.count * k->n);
    return w != NULL ? MOE_OK : MOE_E_NO_MEMORY;
}

// All shared experts as one grouped product: expert e has rows e n .. e n + n - 1.
static moe_status shared(composition *k, const moe_tensor *x, moe_tensor *y)
{
    const moec_layer_case *c = k->c;
    const moe_shared_desc *s = &c->desc.shared;
    const mlp m = {c->shared,      s->activation, s->alpha,  s->beta,
                   s->linear_beta, s->limit,      s->gate_up};
    const int64_t count = (int64_t)s->count * k->n;
    int32_t *offsets = take(&k->heap, (int64_t)s->count + 1, sizeof *offsets);
    int32_t *index = take(&k->heap, count, sizeof *index);
    operand in;
    rows first = {0};
    if (k->heap.full) {
        return MOE_E_NO_MEMORY;
    }
    for (int32_t e = 0; e <= s->count; e++) {
        offsets[e] = e * k->n;
    }
    for (int64_t i = 0; i < count; i++) {
        index[i] = (int32_t)(i % k->n);
    }
    first.offsets = moe_tensor_1d(offsets, MOE_I32, (int64_t)s->count + 1);
    rows second = {.offsets = first.offsets};
    first.row_index = moe_tensor_1d(index, MOE_I32, count);
    MOE_TRY(shared_weights(k, x, &second.row_weight));
    if (moec_is_float(c->desc.x_dtype)) {
        MOE_TRY(quantise(k, &s->gemm[0].act, &c->shared[0], x, &in));
    } else {
        in = arrived_codes(k, x);
    }
    *y = new_tensor(k, moec_layer_partial_dtype(c), count, c->desc.hidden);
    return run_mlp(k, &m, &in, &first, &second, count, y);
}

// ---- the sum ------------------------------------------------------------------------------------

// One more term at a time: sums in f32 stay f32 until the last.
static moe_status add_up(composition *k, moe_combine_args *a, const moe_tensor *shared_y,
                         unsigned char *results)
{
    const moec_layer_case *c = k->c;
    const int64_t hidden = c->desc.hidden;
    const int32_t terms = c->desc.shared.count;
    const moe_tensor out = moe_tensor_2d(results, moec_layer_out_dtype(c), k->n, hidden);
    for (int32_t e = 0; e < (terms > 0 ? terms : 1); e++) {
        const bool last = e + 1 >= terms;
        if (terms > 0) {
            a->shared = moe_tensor_2d(shared_y->data, shared_y->dtype, k->n, hidden);
            a->shared.byte_offset =
                (uint64_t)((int64_t)e * k->n * hidden) * dtype_bytes(shared_y->dtype);
        }
        a->accumulate = last ? c->desc.accumulate : 0;
        a->out = last ? out : new_tensor(k, MOE_F32, k->n, hidden);
        if (k->heap.full) {
            return MOE_E_NO_MEMORY;
        }
        MOE_TRY(moe_combine(k->ctx, a, NULL));
        const moe_tensor sum = a->out;
        memset(a, 0, sizeof *a);
        a->struct_size = sizeof *a;
        a->slots = moe_tensor_3d(sum.data, MOE_F32, k->n, 1, hidden);
    }
    return MOE_OK;
}

static moe_status combined(composition *k, const moe_tensor *y, const moe_tensor *shared_y,
                           unsigned char *results)
{
    const moec_layer_case *c = k->c;
    const int64_t width = c->gemm[1].n;
    moe_combine_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.slots = moe_tensor_3d(y->data, y->dtype, k->n, k->slots, width);
    a.ids = moe_tensor_2d(k->local, MOE_I32, k->n, k->slots);
    if (c->desc.latent > 0) {
        const moe_tensor sum = new_tensor(k, y->dtype, k->n, width);
        moe_tensor wide;
        a.out = sum;
        MOE_TRY(moe_combine(k->ctx, &a, NULL));
        MOE_TRY(linear(k, &c->latent_out, &sum, MOE_F32, &wide));
        memset(&a, 0, sizeof a);
        a.struct_size = sizeof a;
        a.slots = moe_tensor_3d(wide.data, MOE_F32, k->n, 1, c->desc.hidden);
    }
    if (c->output_bias.n > 0) {
        a.bias = moe_tensor_1d(c->output_bias.values.data, c->output_bias.dtype, c->desc.hidden);
    }
    return add_up(k, &a, shared_y, results);
}

// A result per slot: converted, so that -0 stays, or added to what is there.
static moe_status per_slot(composition *k, const moe_tensor *y, unsigned char *results)
{
    const moec_layer_case *c = k->c;
    const int64_t slots = (int64_t)k->n * k->slots;
    const moe_dtype out = moec_layer_out_dtype(c);
    for (int64_t i = 0; c->desc.accumulate == 0 && i < slots * c->desc.hidden; i++) {
        const bool there = k->local[i / c->desc.hidden] >= 0;
        const float v = there ? moei_load_one(y->dtype, y->data, i) : 0.0f;
        moei_store_f32(out, results + (size_t)i * dtype_bytes(out), 1, &v);
    }
    if (c->desc.accumulate == 0) {
        return MOE_OK;
    }
    moe_combine_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.slots = moe_tensor_3d(y->data, y->dtype, slots, 1, c->desc.hidden);
    a.ids = moe_tensor_2d(k->local, MOE_I32, slots, 1);
    a.accumulate = c->desc.accumulate;
    a.out = moe_tensor_2d(results, out, slots, c->desc.hidden);
    return moe_combine(k->ctx, &a, NULL);
}

static moe_status compose(composition *k, unsigned char *results)
{
    const moec_layer_case *c = k->c;
    const moe_layer_desc *d = &c->desc;
    const size_t row = moec_layer_result_bytes(c, 1);
    MOE_TRY(moec_layer_route(k->ctx, c, k->items, k->n, &k->routing));
    for (int32_t p = 0; d->accumulate != 0 && p < k->n; p++) {
        memcpy(results + (size_t)p * row, c->previous + (size_t)k->items[p] * row, row);
    }
    if (k->n == 0) {
        return MOE_OK;
    }
    const moe_tensor x = new_codes(k, d->x_dtype, k->n, d->hidden);
    for (int32_t p = 0; !k->heap.full && p < k->n; p++) {
        memcpy((unsigned char *)x.data + p * x.stride[0] * moe_dtype_bits(d->x_dtype) / 8,
               c->x + (size_t)k->items[p] * c->x_bytes, c->x_bytes);
    }
    moe_tensor inner = x;
    moe_tensor y;
    moe_tensor shared_y = {0};
    if (d->latent > 0) {
        MOE_TRY(linear(k, &c->latent_in, &x, d->x_dtype, &inner));
    }
    MOE_TRY(routed(k, &inner, &y));
    if (d->shared.count > 0) {
        MOE_TRY(shared(k, &x, &shared_y));
    }
    const bool sums = d->routing != MOE_ROUTING_PLACED && d->out_mode != MOE_OUT_SLOTS;
    return sums ? combined(k, &y, &shared_y, results) : per_slot(k, &y, results);
}

moe_status moec_layer_compose(const moe_context *ctx, const moec_layer_case *c,
                              const int32_t *items, int32_t n, unsigned char *results)
{
    composition k = {.ctx = ctx, .c = c, .items = items, .n = n, .slots = moec_layer_slots(c)};
    moe_status status = compose(&k, results);
    if (k.heap.full) {
        status = MOE_E_NO_MEMORY;
    }
    release(&k.heap);
    moec_routing_free(&k.routing);
    return status;
}
