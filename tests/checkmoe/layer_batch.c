// SPDX-License-Identifier: Apache-2.0
// Lays items out in memory as a run wants them: any layout, wide strides, guard pages, poison in
// everything that is not an item's.
#include <stdlib.h>
#include <string.h>

#include "api/plan_internal.h"
#include "checkmoe/layer_case.h"
#include "checkmoe/twins.h"
#include "core/safemath.h"
#include "ops/ggemm.h"
#include "ops/quantize.h"
#include "quant/elements.h"

#define WORKSPACE_ALIGN 256

static size_t dtype_bytes(moe_dtype dtype)
{
    return (size_t)moe_dtype_bits(dtype) / 8;
}

/// An array of [groups][rows][width bytes] with strides in bytes.
typedef struct lines {
    moec_guard *guard;
    size_t offset; // of the first byte within the guard's memory
    int64_t width, row_stride, group_stride;
} lines;

static unsigned char *line(const lines *l, int64_t group, int64_t row)
{
    return l->guard->data + l->offset + group * l->group_stride + row * l->row_stride;
}

// Memory that ends (or begins) with the first (last) byte of the array; `odd` moves it by one.
static bool allocate(const moec_batch *r, lines *l, int64_t groups, int64_t rows, bool odd,
                     int fill)
{
    const int64_t span = groups == 0 || rows == 0 ? 0
                                                  : (groups - 1) * l->group_stride +
                                                        (rows - 1) * l->row_stride + l->width;
    l->offset = odd && !r->style.at_end ? 1 : 0;
    if (!moec_guard_alloc(l->guard, (size_t)span + (odd ? 1 : 0), r->style.at_end)) {
        return false;
    }
    memset(l->guard->data, fill, l->guard->bytes);
    return true;
}

static bool vector(const moec_batch *r, moec_guard *guard, const void *data, size_t bytes)
{
    if (!moec_guard_alloc(guard, bytes, r->style.at_end)) {
        return false;
    }
    memcpy(guard->data, data, bytes);
    return true;
}

// ---- where the items lie ------------------------------------------------------------------------

static bool place_items(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const bool placed = c->desc.x_layout != MOE_X_TOKENS;
    const int32_t experts = moec_layer_local_count(c);
    r->group = calloc((size_t)r->n + 1, sizeof *r->group);
    r->row = calloc((size_t)r->n + 1, sizeof *r->row);
    int32_t *counts = calloc((size_t)experts + 1, sizeof *counts);
    if (r->group == NULL || r->row == NULL || counts == NULL) {
        free(counts);
        return false;
    }
    int32_t most = 0;
    for (int32_t p = 0; p < r->n; p++) {
        r->row[p] = p;
        if (c->desc.x_layout == MOE_X_BATCHED) {
            r->group[p] = c->expert[r->items[p]];
            r->row[p] = counts[r->group[p]];
        }
        if (placed) {
            const int32_t count = ++counts[c->expert[r->items[p]]];
            most = count > most ? count : most;
        }
    }
    r->groups = c->desc.x_layout == MOE_X_BATCHED ? experts : 1;
    r->rows = c->desc.x_layout == MOE_X_BATCHED ? most + r->style.extra
              : placed || c->use_valid          ? r->n + r->style.extra
                                                : r->n;
    bool ok = true;
    if (c->desc.x_layout == MOE_X_BATCHED) {
        ok = vector(r, &r->counts, counts, (size_t)experts * 4);
        r->args.counts = moe_tensor_1d(r->counts.data, MOE_I32, experts);
    } else if (placed) {
        for (int32_t e = experts; e > 0; e--) {
            counts[e] = counts[e - 1];
        }
        counts[0] = 0;
        for (int32_t e = 0; e < experts; e++) {
            counts[e + 1] += counts[e];
        }
        ok = vector(r, &r->offsets, counts, ((size_t)experts + 1) * 4);
        r->args.offsets = moe_tensor_1d(r->offsets.data, MOE_I32, (int64_t)experts + 1);
    } else if (c->use_valid) {
        // A number beyond the tokens that are there means all of them.
        const int32_t none = c->seed % 2 == 0 ? 0 : -3; // a negative one: none
        const int32_t valid = r->style.extra == 0 ? r->n + 3 : r->n > 0 ? r->n : none;
        ok = vector(r, &r->num_valid, &valid, sizeof valid);
        r->args.num_valid = moe_tensor_1d(r->num_valid.data, MOE_I32, 1);
    }
    r->args.num_tokens = r->rows;
    free(counts);
    return ok;
}

// ---- x ------------------------------------------------------------------------------------------

static bool build_x(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    const int bits = moe_dtype_bits(d->x_dtype);
    const int64_t unit = bits > 8 ? bits / 8 : 1;
    lines l = {.guard = &r->x, .width = (int64_t)c->x_bytes};
    l.row_stride = l.width + r->style.extra * unit;
    const bool free_groups = d->weight_stage != MOE_WEIGHT_INPUT;
    l.group_stride = (r->rows + (free_groups ? r->style.extra : 0)) * l.row_stride;
    if (!allocate(r, &l, r->groups, r->rows, c->misaligned, r->style.poison)) {
        return false;
    }
    for (int32_t p = 0; p < r->n; p++) {
        memcpy(line(&l, r->group[p], r->row[p]), c->x + (size_t)r->items[p] * c->x_bytes,
               c->x_bytes);
    }
    // Codes may come under their own dtype, or as bytes.
    const bool as_bytes = !moec_is_float(d->x_dtype) && bits <= 8 &&
                          (r->style.extra % 2 == 1 || (bits == 6 && l.row_stride % 3 != 0));
    const int64_t scale = as_bytes ? 8 : bits;
    const int64_t shape[3] = {r->groups, r->rows, as_bytes ? l.width : d->hidden};
    const bool batched = d->x_layout == MOE_X_BATCHED;
    moe_tensor t = moe_tensor_make(r->x.data, as_bytes ? MOE_U8 : d->x_dtype, batched ? 3 : 2,
                                   batched ? shape : shape + 1);
    t.byte_offset = l.offset;
    t.stride[batched ? 1 : 0] = l.row_stride * 8 / scale;
    if (batched) {
        t.stride[0] = l.group_stride * 8 / scale;
    }
    r->args.x = t;
    return true;
}

// Scales of codes, in the layout that the descriptor names.
static bool build_x_scales(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    if (moec_is_float(d->x_dtype)) {
        return true;
    }
    moe_quant_desc act = d->gemm[0].act;
    moei_quant_resolve(&act);
    const moei_scale_shape s = moei_quant_scale_shape(&act, r->groups, r->rows, d->hidden);
    if (moei_quant_get(act.spec)->scale == MOEI_SCALE_GIVEN) {
        return true;
    }
    if (s.row_stride == 0) {
        r->args.x_scales.ndim = 1;
        const bool ok = vector(r, &r->x_scales, &c->x_scale, sizeof c->x_scale);
        r->args.x_scales = moe_tensor_1d(r->x_scales.data, s.dtype, 1);
        return ok;
    }
    const bool by_row = act.scale_layout != MOE_SCALE_LAYOUT_COLUMN;
    const int64_t row = by_row ? s.columns + r->style.extra : 1;
    const int64_t column = by_row ? 1 : s.k_stride + r->style.extra;
    const int64_t group = by_row ? r->rows * row : s.columns * column;
    const int64_t span =
        r->rows == 0 ? 0
                     : (r->groups - 1) * group + (r->rows - 1) * row + (s.columns - 1) * column + 1;
    const size_t bytes = dtype_bytes(s.dtype);
    if (!moec_guard_alloc(&r->x_scales, (size_t)span * bytes, r->style.at_end)) {
        return false;
    }
    memset(r->x_scales.data, r->style.poison, r->x_scales.bytes);
    for (int32_t p = 0; p < r->n; p++) {
        for (int64_t k = 0; k < s.columns; k++) {
            const int64_t at = r->group[p] * group + r->row[p] * row + k * column;
            memcpy(r->x_scales.data + (size_t)at * bytes,
                   c->x_scales + (size_t)r->items[p] * c->x_scale_bytes + (size_t)k * bytes, bytes);
        }
    }
    const int64_t shape[3] = {r->groups, r->rows, s.columns};
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const int n = batched ? 3 : 2;
    moe_tensor t =
        moe_tensor_make(r->x_scales.data, bytes == 1 && r->style.extra % 2 == 1 ? MOE_U8 : s.dtype,
                        n, batched ? shape : shape + 1);
    t.stride[n - 1] = column;
    t.stride[n - 2] = row;
    t.stride[0] = batched ? group : row;
    if (s.columns == 1 && r->style.extra % 2 == 0) { // one scale a row: [rows] will do
        t.ndim--;
    }
    r->args.x_scales = t;
    return true;
}

// ---- routing ------------------------------------------------------------------------------------

// A [rows, columns] view with rows of the items from a compact array; rows past them hold `fill`.
static bool build_table(moec_batch *r, moec_guard *guard, moe_tensor *view, moe_dtype dtype,
                        int64_t columns, const void *data, int fill)
{
    const size_t bytes = dtype_bytes(dtype);
    lines l = {.guard = guard, .width = columns * (int64_t)bytes};
    l.row_stride = l.width + r->style.extra * (int64_t)bytes;
    if (!allocate(r, &l, 1, r->rows, false, fill)) {
        return false;
    }
    for (int32_t p = 0; data != NULL && p < r->n; p++) {
        memcpy(line(&l, 0, p), (const unsigned char *)data + (size_t)r->items[p] * (size_t)l.width,
               (size_t)l.width);
    }
    *view = moe_tensor_2d(guard->data, dtype, r->rows, columns);
    view->stride[0] = columns + r->style.extra;
    return true;
}

static bool build_given(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    const moe_dtype id_dtype = d->ids_dtype != 0 ? d->ids_dtype : MOE_I32;
    const moe_dtype weight_dtype = d->weights_dtype != 0 ? d->weights_dtype : MOE_F32;
    // Rows past the items name expert 0: they would show in counts and load.
    if (!build_table(r, &r->ids, &r->args.ids, id_dtype, d->top_k, NULL, 0)) {
        return false;
    }
    const bool weighted = d->weight_stage != MOE_WEIGHT_NONE;
    if (weighted && !build_table(r, &r->weights, &r->args.weights, weight_dtype, d->top_k, NULL,
                                 r->style.poison)) {
        return false;
    }
    for (int32_t p = 0; p < r->n; p++) {
        for (int32_t j = 0; j < d->top_k; j++) {
            const int64_t from = (int64_t)r->items[p] * d->top_k + j;
            const int64_t at = p * (d->top_k + (int64_t)r->style.extra) + j;
            const int32_t narrow = (int32_t)c->ids[from];
            memcpy(r->ids.data + (size_t)at * dtype_bytes(id_dtype),
                   id_dtype == MOE_I64 ? (const void *)&c->ids[from] : &narrow,
                   dtype_bytes(id_dtype));
            if (weighted) {
                moei_store_f32(weight_dtype,
                               r->weights.data + (size_t)at * dtype_bytes(weight_dtype), 1,
                               &c->weights[from]);
            }
        }
    }
    return d->shared.count == 0 || d->shared.gate != MOE_SHARED_ROUTER_WEIGHTED ||
           build_table(r, &r->shared_weights, &r->args.shared_weights, MOE_F32, d->shared.count,
                       c->shared_weights, r->style.poison);
}

static bool build_ids_vector(moec_batch *r, moec_guard *guard, bool wide, const int64_t *from,
                             int64_t n, const int32_t *items)
{
    if (!moec_guard_alloc(guard, (size_t)n * (wide ? 8 : 4), r->style.at_end)) {
        return false;
    }
    memset(guard->data, 0, guard->bytes);
    for (int64_t i = 0; i < (items != NULL ? r->n : n); i++) {
        const int64_t id = from[items != NULL ? items[i] : i];
        const int32_t narrow = (int32_t)id;
        memcpy(guard->data + (size_t)i * (wide ? 8 : 4), wide ? (const void *)&id : &narrow,
               wide ? 8 : 4);
    }
    return true;
}

static bool build_logits(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    const moe_dtype dtype = d->logits_dtype != 0 ? d->logits_dtype : MOE_F32;
    const int64_t keyed = (int64_t)d->num_experts + d->route.zero_experts;
    bool ok = build_table(r, &r->logits, &r->args.logits, dtype, c->logit_columns, c->logits,
                          r->style.poison);
    if (ok && d->route.correction_bias != 0) {
        ok = vector(r, &r->correction_bias, c->correction_bias, (size_t)keyed * 4);
        r->args.correction_bias = moe_tensor_1d(r->correction_bias.data, MOE_F32, keyed);
    }
    if (ok && d->route.scale_tensor != 0) {
        ok = vector(r, &r->scale_tensor, c->scale_tensor, 4);
        r->args.scale_tensor = moe_tensor_1d(r->scale_tensor.data, MOE_F32, 1);
    }
    if (ok && d->route.hash_table != 0) {
        const moe_dtype ids = c->hash_wide ? MOE_I64 : MOE_I32;
        const int64_t entries = (int64_t)c->vocabulary * d->top_k;
        ok = build_ids_vector(r, &r->hash_table, c->hash_wide, c->hash_table, entries, NULL) &&
             build_ids_vector(r, &r->token_ids, c->hash_wide, c->token_ids, r->rows, r->items);
        r->args.hash_table = moe_tensor_2d(r->hash_table.data, ids, c->vocabulary, d->top_k);
        r->args.token_ids = moe_tensor_1d(r->token_ids.data, ids, r->rows);
    }
    if (ok && moec_layer_has_append_gate(c)) {
        ok = build_table(r, &r->append_gate, &r->args.append_gate, MOE_F32, d->route.append_shared,
                         c->append_gate, r->style.poison);
    }
    return ok;
}

static bool build_maps(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    bool ok = true;
    if (d->expert_map != 0) {
        ok = vector(r, &r->expert_map, c->expert_map, (size_t)c->physical * 4);
        r->args.expert_map = moe_tensor_1d(r->expert_map.data, MOE_I32, c->physical);
    }
    if (ok && d->replicas > 0) {
        const size_t entries = (size_t)d->num_experts * (size_t)c->replica_slots;
        ok = vector(r, &r->replica_table, c->replica_table, entries * 4) &&
             vector(r, &r->replica_count, c->replica_count, (size_t)d->num_experts * 4);
        r->args.replica_table =
            moe_tensor_2d(r->replica_table.data, MOE_I32, d->num_experts, c->replica_slots);
        r->args.replica_count = moe_tensor_1d(r->replica_count.data, MOE_I32, d->num_experts);
    }
    return ok;
}

static bool build_placed_weights(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    if (c->desc.weight_stage == MOE_WEIGHT_NONE) {
        return true;
    }
    lines l = {.guard = &r->weights, .width = 4, .row_stride = 4, .group_stride = 4 * r->rows};
    if (!allocate(r, &l, r->groups, r->rows, false, r->style.poison)) {
        return false;
    }
    for (int32_t p = 0; p < r->n; p++) {
        memcpy(line(&l, r->group[p], r->row[p]), &c->weights[r->items[p]], sizeof(float));
    }
    r->args.weights = c->desc.x_layout == MOE_X_BATCHED
                          ? moe_tensor_2d(r->weights.data, MOE_F32, r->groups, r->rows)
                          : moe_tensor_1d(r->weights.data, MOE_F32, r->rows);
    return true;
}

// ---- outputs ------------------------------------------------------------------------------------

static lines out_lines(const moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    const int64_t bytes = (int64_t)dtype_bytes(moec_layer_out_dtype(c));
    const bool slots = d->out_mode == MOE_OUT_SLOTS;
    const bool direct =
        d->accumulate == 0 && moec_layer_out_dtype(c) == moec_layer_partial_dtype(c);
    lines l = {.guard = (moec_guard *)(uintptr_t)&r->out};
    const int64_t row = (d->hidden + r->style.extra) * bytes;
    const int64_t lines_per_row = slots ? moec_layer_slots(c) : 1;
    l.width = (lines_per_row - 1) * row + d->hidden * bytes;
    l.row_stride = slots ? lines_per_row * row + r->style.extra * bytes : row;
    l.group_stride = (r->rows + (direct ? r->style.extra : 0)) * l.row_stride;
    l.offset = c->misaligned && !r->style.at_end ? 1 : 0;
    return l;
}

// Bytes from a slot's row of out to the next.
static int64_t slot_stride(const moec_batch *r)
{
    return (r->c->desc.hidden + r->style.extra) * (int64_t)dtype_bytes(moec_layer_out_dtype(r->c));
}

typedef void visit_row(unsigned char *row, unsigned char *item, size_t bytes);

// Calls visit for each row of each item, in `memory` laid out as out, with its place in `items`.
static void each_row(const moec_batch *r, unsigned char *memory, unsigned char *items,
                     const int32_t *index, visit_row *visit)
{
    const moec_layer_case *c = r->c;
    const lines l = out_lines(r);
    const int64_t lines_per_row = c->desc.out_mode == MOE_OUT_SLOTS ? moec_layer_slots(c) : 1;
    const size_t bytes = (size_t)c->desc.hidden * dtype_bytes(moec_layer_out_dtype(c));
    for (int32_t p = 0; p < r->n; p++) {
        unsigned char *row =
            memory + l.offset + r->group[p] * l.group_stride + r->row[p] * l.row_stride;
        const size_t item = (size_t)(index != NULL ? index[p] : p);
        for (int64_t j = 0; j < lines_per_row; j++) {
            visit(row + j * slot_stride(r),
                  items + (item * (size_t)lines_per_row + (size_t)j) * bytes, bytes);
        }
    }
}

static void to_row(unsigned char *row, unsigned char *item, size_t bytes)
{
    memcpy(row, item, bytes);
}

static void from_row(unsigned char *row, unsigned char *item, size_t bytes)
{
    memcpy(item, row, bytes);
}

static bool build_out(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    const moe_dtype dtype = moec_layer_out_dtype(c);
    const int64_t bytes = (int64_t)dtype_bytes(dtype);
    lines l = out_lines(r);
    if (!allocate(r, &l, r->groups, r->rows, c->misaligned, r->style.poison)) {
        return false;
    }
    if (d->accumulate != 0) {
        each_row(r, r->out.data, c->previous, r->items, to_row);
    }
    const bool slots = d->out_mode == MOE_OUT_SLOTS;
    const bool batched = d->x_layout == MOE_X_BATCHED;
    moe_tensor t = slots
                       ? moe_tensor_3d(r->out.data, dtype, r->rows, moec_layer_slots(c), d->hidden)
                   : batched ? moe_tensor_3d(r->out.data, dtype, r->groups, r->rows, d->hidden)
                             : moe_tensor_2d(r->out.data, dtype, r->rows, d->hidden);
    t.byte_offset = l.offset;
    t.stride[0] = (batched ? l.group_stride : l.row_stride) / bytes;
    if (slots) {
        t.stride[1] = slot_stride(r) / bytes;
    } else if (batched) {
        t.stride[1] = l.row_stride / bytes;
    }
    r->args.out = t;
    return true;
}

static bool build_side_outputs(moec_batch *r)
{
    const moec_layer_case *c = r->c;
    const moe_layer_desc *d = &c->desc;
    const moe_dtype ids = d->ids_dtype != 0 ? d->ids_dtype : MOE_I32;
    const moe_dtype weights = d->weights_dtype != 0 ? d->weights_dtype : MOE_F32;
    const int32_t experts = moec_layer_local_count(c);
    if (d->x_layout != MOE_X_TOKENS || r->style.extra == 3) { // they are optional
        return true;
    }
    if (!build_table(r, &r->out_ids, &r->args.out_ids, ids, moec_layer_slots(c), NULL,
                     r->style.poison) ||
        !build_table(r, &r->out_weights, &r->args.out_weights, weights, moec_layer_slots(c), NULL,
                     r->style.poison) ||
        !moec_guard_alloc(&r->out_counts, (size_t)experts * 8, r->style.at_end) ||
        !moec_guard_alloc(&r->load, (size_t)c->physical * 4, r->style.at_end)) {
        return false;
    }
    memset(r->out_counts.data, r->style.poison, r->out_counts.bytes);
    memset(r->load.data, 0, r->load.bytes);
    r->args.out_counts = moe_tensor_1d(r->out_counts.data, MOE_I64, experts);
    r->args.load = moe_tensor_1d(r->load.data, MOE_I32, c->physical);
    return true;
}

// ---- the batch ----------------------------------------------------------------------------------

// All memory of a batch: NUM_INPUTS inputs, then what a run writes, the workspace last.
enum { NUM_INPUTS = 17, NUM_WITHOUT_WORKSPACE = NUM_INPUTS + 5, NUM_GUARDS };

static void list_guards(moec_batch *r, moec_guard *guards[NUM_GUARDS])
{
    moec_guard *const all[NUM_GUARDS] = {&r->x,
                                         &r->x_scales,
                                         &r->logits,
                                         &r->ids,
                                         &r->weights,
                                         &r->shared_weights,
                                         &r->token_ids,
                                         &r->append_gate,
                                         &r->correction_bias,
                                         &r->scale_tensor,
                                         &r->hash_table,
                                         &r->expert_map,
                                         &r->replica_table,
                                         &r->replica_count,
                                         &r->counts,
                                         &r->offsets,
                                         &r->num_valid,
                                         &r->out,
                                         &r->out_ids,
                                         &r->out_weights,
                                         &r->out_counts,
                                         &r->load,
                                         &r->workspace};
    memcpy(guards, all, sizeof all);
}

static uint64_t hash_inputs(const moec_batch *r)
{
    moec_guard *guards[NUM_GUARDS];
    uint64_t hash = 0;
    list_guards((moec_batch *)(uintptr_t)r, guards);
    for (int i = 0; i < NUM_INPUTS; i++) {
        hash = hash * 31 + moec_hash(guards[i]->data, guards[i]->bytes);
    }
    return hash;
}

static bool keep_outputs(moec_batch *r)
{
    const moec_guard *outputs[] = {&r->out, &r->out_ids, &r->out_weights};
    size_t bytes = 1;
    for (size_t i = 0; i < 3; i++) {
        bytes += outputs[i]->bytes;
    }
    r->before = malloc(bytes);
    size_t at = 0;
    for (size_t i = 0; r->before != NULL && i < 3; i++) {
        if (outputs[i]->bytes > 0) {
            memcpy(r->before + at, outputs[i]->data, outputs[i]->bytes);
            at += outputs[i]->bytes;
        }
    }
    return r->before != NULL;
}

bool moec_batch_build(moec_batch *r, const moec_layer_case *c, const int32_t *items, int32_t n,
                      const moec_batch_style *style)
{
    memset(r, 0, sizeof *r);
    r->c = c;
    r->items = items;
    r->n = n;
    r->style = *style;
    r->args = moe_run_args_default();
    bool ok = place_items(r) && build_x(r) && build_x_scales(r);
    switch (c->desc.routing) {
    case MOE_ROUTING_FROM_LOGITS:
        ok = ok && build_logits(r);
        break;
    case MOE_ROUTING_GIVEN:
        ok = ok && build_given(r);
        break;
    default:
        ok = ok && build_placed_weights(r);
        break;
    }
    ok = ok && build_maps(r) && build_out(r) && build_side_outputs(r) && keep_outputs(r);
    r->inputs = ok ? hash_inputs(r) : 0;
    return ok;
}

void moec_batch_free(moec_batch *r)
{
    moec_guard *guards[NUM_GUARDS];
    list_guards(r, guards);
    for (int i = 0; i < NUM_GUARDS; i++) {
        moec_guard_free(guards[i]);
    }
    free(r->group);
    free(r->row);
    free(r->before);
    memset(r, 0, sizeof *r);
}

static void restore_outputs(moec_batch *r)
{
    const moec_guard *outputs[] = {&r->out, &r->out_ids, &r->out_weights};
    size_t at = 0;
    for (size_t i = 0; i < 3; i++) {
        if (outputs[i]->bytes > 0) {
            memcpy(outputs[i]->data, r->before + at, outputs[i]->bytes);
            at += outputs[i]->bytes;
        }
    }
    if (r->load.data != NULL) {
        memset(r->load.data, 0, r->load.bytes);
    }
}

static moe_status make_workspace(moec_batch *r, const moe_plan *plan)
{
    size_t bytes = 0;
    size_t align = 0;
    MOE_TRY(moe_plan_workspace(plan, r->args.num_tokens, &bytes, &align));
    if (r->workspace.data == NULL || r->workspace_bytes != bytes) {
        moec_guard_free(&r->workspace);
        const size_t room = moei_size_align(bytes, WORKSPACE_ALIGN);
        if (align > WORKSPACE_ALIGN || !moec_guard_alloc(&r->workspace, room, r->style.at_end)) {
            return MOE_E_NO_MEMORY;
        }
        r->workspace_bytes = bytes;
    }
    return MOE_OK;
}

moe_status moec_batch_up(moec_batch *r, moec_twins *twins, const moe_plan *plan, moe_run_args *args,
                         void **workspace)
{
    moec_guard *guards[NUM_GUARDS];
    MOE_TRY(make_workspace(r, plan));
    memset(r->workspace.data, r->style.poison, r->workspace.bytes);
    restore_outputs(r);
    list_guards(r, guards);
    moec_twins_begin(twins, plan->ctx);
    for (int i = 0; i < NUM_GUARDS; i++) {
        moec_twins_add(twins, guards[i], i >= NUM_INPUTS);
    }
    MOE_TRY(moec_twins_up(twins, r->style.poison));
    *args = r->args;
    moec_twins_run_args(twins, args);
    *workspace = moec_twins_at(twins, r->workspace.data);
    MOE_REQUIRE(!twins->stray, MOE_E_STATE, "moe check: a view lies outside of the batch");
    return MOE_OK;
}

// What the device leaves around and in its inputs is checked; the batch's memory holds what it
// wrote.
static moe_status run_on_twins(moec_batch *r, moec_twins *twins, const moe_plan *plan,
                               const moe_weights *weights)
{
    char wrong[200] = "";
    moe_run_args args;
    void *workspace;
    MOE_TRY(moec_batch_up(r, twins, plan, &args, &workspace));
    MOE_TRY(moe_run(plan, weights, &args, workspace, r->workspace_bytes, NULL));
    MOE_REQUIRE(moec_twins_down(twins, wrong, sizeof wrong), MOE_E_DEVICE, "%s", wrong);
    return MOE_OK;
}

moe_status moec_batch_execute(moec_batch *r, const moe_plan *plan, const moe_weights *weights)
{
    moec_twins twins = {0};
    const moe_status status = run_on_twins(r, &twins, plan, weights);
    moec_twins_end(&twins);
    return status;
}

// ---- batches that are laid out alike ------------------------------------------------------------

bool moec_batch_take(moec_batch *r, const moec_batch *from)
{
    moec_guard *to[NUM_GUARDS];
    moec_guard *other[NUM_GUARDS];
    list_guards(r, to);
    list_guards((moec_batch *)(uintptr_t)from, other);
    bool alike = r->rows == from->rows && r->groups == from->groups &&
                 memcmp(&r->style, &from->style, sizeof r->style) == 0;
    for (int i = 0; i < NUM_WITHOUT_WORKSPACE; i++) {
        alike = alike && to[i]->bytes == other[i]->bytes;
    }
    for (int i = 0; alike && i < NUM_WITHOUT_WORKSPACE; i++) {
        if (to[i]->bytes > 0) {
            memcpy(to[i]->data, other[i]->data, to[i]->bytes);
        }
    }
    if (alike && r->workspace.data != NULL) {
        memset(r->workspace.data, r->style.poison, r->workspace.bytes);
    }
    return alike;
}

bool moec_batch_same_outputs(const moec_batch *a, const moec_batch *b, const char **what)
{
    static const char *const names[] = {"out", "out_ids", "out_weights", "out_counts", "load"};
    moec_guard *one[NUM_GUARDS];
    moec_guard *other[NUM_GUARDS];
    list_guards((moec_batch *)(uintptr_t)a, one);
    list_guards((moec_batch *)(uintptr_t)b, other);
    *what = "";
    for (int i = NUM_INPUTS; i < NUM_WITHOUT_WORKSPACE; i++) {
        if (one[i]->bytes != other[i]->bytes ||
            (one[i]->bytes > 0 && memcmp(one[i]->data, other[i]->data, one[i]->bytes) != 0)) {
            *what = names[i - NUM_INPUTS];
            return false;
        }
    }
    return true;
}

// ---- results ------------------------------------------------------------------------------------

size_t moec_layer_result_bytes(const moec_layer_case *c, int32_t n)
{
    return (size_t)n * c->out_row_elems * dtype_bytes(moec_layer_out_dtype(c));
}

void moec_batch_collect(const moec_batch *r, unsigned char *results)
{
    each_row(r, r->out.data, results, NULL, from_row);
}

// What is not an item's in out, out_ids and out_weights is as it was.
bool moec_batch_intact(const moec_batch *r, const char **what)
{
    const unsigned char *before = r->before;
    *what = "memory is short";
    unsigned char *now = malloc(r->out.bytes + 1);
    unsigned char *items = malloc(moec_layer_result_bytes(r->c, r->n) + 1);
    bool ok = now != NULL && items != NULL;
    if (ok) {
        memcpy(now, r->out.data, r->out.bytes);
        each_row(r, r->before, items, NULL, from_row);
        each_row(r, now, items, NULL, to_row);
        *what = "out's padding was written";
        ok = memcmp(now, before, r->out.bytes) == 0;
    }
    before += r->out.bytes;
    const struct {
        const moec_guard *guard;
        const moe_tensor *view;
        const char *what;
    } tables[] = {{&r->out_ids, &r->args.out_ids, "out_ids' padding was written"},
                  {&r->out_weights, &r->args.out_weights, "out_weights' padding was written"}};
    for (size_t i = 0; i < 2; i++) {
        const moec_guard *g = tables[i].guard;
        const size_t bytes = g->bytes > 0 ? dtype_bytes(tables[i].view->dtype) : 0;
        for (size_t b = 0; ok && b < g->bytes; b++) {
            const int64_t element = (int64_t)(b / bytes);
            const int64_t row = element / tables[i].view->stride[0];
            const bool item =
                row < r->n && element % tables[i].view->stride[0] < tables[i].view->shape[1];
            *what = tables[i].what;
            ok = item || g->data[b] == before[b];
        }
        before += g->bytes;
    }
    for (size_t b = r->workspace_bytes; ok && b < r->workspace.bytes; b++) {
        *what = "the workspace was overrun";
        ok = r->workspace.data[b] == r->style.poison;
    }
    if (ok) {
        *what = "an input was written";
        ok = hash_inputs(r) == r->inputs;
    }
    free(now);
    free(items);
    return ok;
}
