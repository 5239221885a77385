// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/rescue.h"

#include <string.h>

#include "backends/cpu/cpu.h"
#include "core/arena.h"
#include "ops/quantize.h"
#include "quant/elements.h"

#define MOST_ROWS   32            // of all experts
#define MOST_BYTES  (16ull << 20) // of a plan
#define MOST_PIECES 1024          // of a stage
#define SHARES      16            // tasks of stage 2 per thread
#define WIDEST      4             // bytes of an element of any buffer
#define LEAST_GROUP 16            // elements per scale

// What a job reads.
typedef struct inputs {
    struct moei_cpu_rescue *owner;
    int slot;
    moei_cpu_mlp mlp;
    moei_step product, glu, quantize; // of it
    moei_cpu_piece *pieces;
    atomic_uint *done;
    uint8_t *x, *scales; // rows of x, or of h
    int32_t *offsets;
    int32_t *index; // sorted row to slot
    float *weights; // of slots
} inputs;

// What a thread writes.
typedef struct outputs {
    uint8_t *gate_up, *h, *codes, *scales, *y;
} outputs;

typedef struct moei_cpu_rescue {
    size_t bytes; // of all
    int64_t rows;
    int64_t row1, row_h, row_scales, row_y; // bytes of a row, at most
    int32_t experts;
    int32_t num_threads;
    inputs inputs[MOEI_POOL_SLOTS];
    outputs *outputs; // [num_threads]
} moei_cpu_rescue;

// ---- memory -------------------------------------------------------------------------------------

// The one list of it: measures with a NULL base, places otherwise.
static void carve(moei_arena *arena, moei_cpu_rescue *r)
{
    const size_t rows = (size_t)r->rows;
    const int64_t widest = moei_i64_max(r->row_y, r->row_h);
    r->outputs = moei_arena_array(arena, (size_t)r->num_threads, sizeof(outputs));
    for (int s = 0; s < MOEI_POOL_SLOTS; s++) {
        inputs *in = &r->inputs[s];
        in->pieces = moei_arena_array(arena, MOST_PIECES, sizeof *in->pieces);
        in->done = moei_arena_array(arena, MOST_PIECES, sizeof *in->done);
        in->x = moei_arena_array(arena, rows, (size_t)widest);
        in->scales = moei_arena_array(arena, rows, (size_t)r->row_scales);
        in->offsets = moei_arena_array(arena, (size_t)r->experts + 1, sizeof *in->offsets);
        in->index = moei_arena_array(arena, rows, sizeof *in->index);
        in->weights = moei_arena_array(arena, rows, sizeof *in->weights);
    }
    for (int32_t t = 0; t < r->num_threads; t++) {
        const outputs o = {.gate_up = moei_arena_array(arena, rows, (size_t)r->row1),
                           .h = moei_arena_array(arena, rows, (size_t)r->row_h),
                           .codes = moei_arena_array(arena, rows, (size_t)r->row_h),
                           .scales = moei_arena_array(arena, rows, (size_t)r->row_scales),
                           .y = moei_arena_array(arena, rows, (size_t)r->row_y)};
        if (arena->base != NULL) {
            r->outputs[t] = o;
        }
    }
}

static size_t measure(moei_cpu_rescue *r)
{
    moei_arena arena = {NULL, sizeof *r};
    carve(&arena, r);
    return arena.used;
}

moe_status moei_cpu_plan_prepare(const moei_exec *exec, const moei_plan_info *plan, void **out)
{
    const moe_layer_desc *d = plan->desc;
    const int64_t top_k = d->top_k + d->route.append_shared;
    *out = NULL;
    if (exec->ctx->own_pool == NULL || exec->ctx->num_threads < 2 || d->x_layout != MOE_X_TOKENS) {
        return MOE_OK;
    }
    moei_cpu_rescue r = {
        .row1 = 2 * d->inter * WIDEST,
        .row_h = d->inter * WIDEST,
        .row_y = d->hidden * WIDEST,
        .row_scales = moei_i64_ceil_div(moei_i64_max(d->hidden, d->inter), LEAST_GROUP) * WIDEST,
        .experts = plan->products[0].problem.experts,
        .num_threads = exec->ctx->num_threads,
    };
    int64_t tokens = moei_i64_min(d->max_tokens, MOST_ROWS / top_k);
    for (;; tokens--) {
        r.rows = tokens * top_k;
        r.bytes = measure(&r);
        if (tokens <= 0) {
            return MOE_OK;
        }
        if (r.bytes <= MOST_BYTES) {
            break;
        }
    }
    moei_arena arena = {moei_alloc(exec->ctx, r.bytes, MOEI_ARENA_ALIGN), sizeof r};
    MOE_REQUIRE(arena.base != NULL, MOE_E_NO_MEMORY,
                "moe_plan_create: no memory for %zu bytes of late tasks", r.bytes);
    moei_cpu_rescue *kept = (moei_cpu_rescue *)(void *)arena.base;
    *kept = r;
    carve(&arena, kept);
    for (int s = 0; s < MOEI_POOL_SLOTS; s++) {
        kept->inputs[s].owner = kept;
        kept->inputs[s].slot = s;
    }
    *out = kept;
    return MOE_OK;
}

void moei_cpu_plan_release(const moei_exec *exec, void *plan)
{
    moei_cpu_rescue *r = plan;
    if (r != NULL) {
        moei_pool_drain(exec->ctx->own_pool);
        moei_free(exec->ctx, r, r->bytes);
    }
}

// ---- copies -------------------------------------------------------------------------------------

static void copy_rows(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride,
                      int64_t rows, int64_t bytes)
{
    for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * to_stride, from + r * from_stride, (size_t)bytes);
    }
}

// Bytes from the first scale of an operand to the end of its last.
static int64_t scale_span(const moei_operand *x, int64_t rows, int64_t k)
{
    const int64_t groups = x->group > 0 ? moei_i64_ceil_div(k, x->group) : 1;
    return ((rows - 1) * x->scale_row_stride + (groups - 1) * x->scale_k_stride + 1) *
           moe_dtype_bits(x->scale_dtype) / 8;
}

static bool operand_fits(const moei_cpu_rescue *r, const moei_operand *x, int64_t rows, int64_t k)
{
    return rows <= r->rows && x->scale2 == NULL && !x->packed &&
           moei_elem_bytes(x->dtype, k) <= moei_i64_max(r->row_y, r->row_h) &&
           (x->scales == NULL || scale_span(x, rows, k) <= rows * r->row_scales);
}

static void copy_operand(inputs *in, moei_operand *x, int64_t rows, int64_t k)
{
    const int64_t bytes = moei_elem_bytes(x->dtype, k);
    copy_rows(in->x, bytes, x->data, x->row_stride, rows, bytes);
    x->data = in->x;
    x->row_stride = bytes;
    if (x->scales != NULL) {
        memcpy(in->scales, x->scales, (size_t)scale_span(x, rows, k));
        x->scales = in->scales;
    }
}

static bool fits(const moei_cpu_rescue *r, const moek_ggemm_args *a, const moei_cpu_cut *cut)
{
    return cut->tasks > 0 && cut->tasks <= MOST_PIECES && a->offsets != NULL && a->counts == NULL &&
           a->w.count <= r->experts && a->rows <= r->rows;
}

// The memory of a job's slot, with its pieces; NULL where the pool is in use.
static inputs *begin(const moei_exec *exec, const moei_cpu_mlp *mlp, const moei_cpu_cut *cut)
{
    moei_cpu_rescue *r = exec->plan;
    const int slot = moei_pool_take(exec->ctx->own_pool);
    if (slot < 0) {
        return NULL;
    }
    inputs *in = &r->inputs[slot];
    in->mlp = *mlp;
    for (int64_t i = 0; i < cut->tasks; i++) {
        in->pieces[i] = moei_cpu_cut_at(cut, i);
    }
    return in;
}

// What the thread wrote whose result of a task counts.
static const outputs *winner(const inputs *in, int64_t task)
{
    const unsigned done = atomic_load_explicit(&in->done[task], memory_order_relaxed);
    return &in->owner->outputs[done - 1];
}

static void copy_offsets(inputs *in, moek_ggemm_args *a)
{
    memcpy(in->offsets, a->offsets, ((size_t)a->w.count + 1) * sizeof *in->offsets);
    a->offsets = in->offsets;
}

// ---- stage 1 ------------------------------------------------------------------------------------

static bool first_fits(const moei_cpu_rescue *r, const moei_cpu_mlp *m, const moei_cpu_cut *cut)
{
    const moek_ggemm_args *a = &m->first->args.ggemm;
    const moek_glu_args *glu = &m->glu->args.glu;
    const moek_quantize_args *q = m->quantize != NULL ? &m->quantize->args.quantize : NULL;
    return fits(r, a, cut) && a->row_index != NULL && a->row_weight == NULL &&
           operand_fits(r, &a->x, a->rows / a->row_divisor, a->w.k) && a->y_row_stride <= r->row1 &&
           glu->y_row_stride <= r->row_h &&
           (q == NULL || (m->unit > 0 && q->info->grain == MOEI_GRAIN_GROUP &&
                          q->global_scale == NULL && q->q_row_stride <= r->row_h));
}

static void first_attempt(void *arg, size_t index, int thread)
{
    const inputs *in = arg;
    const outputs *out = &in->owner->outputs[thread];
    moei_step first = in->product;
    moei_step glu = in->glu;
    moei_step quantize = in->quantize;
    moei_cpu_mlp mlp = in->mlp;
    first.args.ggemm.y = out->gate_up;
    glu.args.glu.x = out->gate_up;
    glu.args.glu.y = out->h;
    mlp.first = &first;
    mlp.glu = &glu;
    if (mlp.quantize != NULL) {
        quantize.args.quantize.x = out->h;
        quantize.args.quantize.q = out->codes;
        quantize.args.quantize.scales = out->scales;
        mlp.quantize = &quantize;
    }
    moei_cpu_mlp_first(&mlp, &in->pieces[index]);
}

static void keep_codes(const moek_quantize_args *to, const outputs *out, const moei_cpu_piece *p)
{
    moek_quantize_args from = *to;
    const int64_t at = moei_quant_row_bytes(to->quant.elem, p->n0);
    const int64_t rows = p->i1 - p->i0;
    const int64_t stride = to->q_row_stride;
    const size_t bytes = (size_t)moe_dtype_bits(moei_scale_dtype(to->quant.scale_type)) / 8;
    from.scales = out->scales;
    copy_rows(to->q + p->i0 * stride + at, stride, out->codes + p->i0 * stride + at, stride, rows,
              moei_quant_row_bytes(to->quant.elem, p->n1 - p->n0));
    for (int64_t i = p->i0; i < p->i1; i++) {
        for (int64_t g = p->n0 / to->quant.group; g * to->quant.group < p->n1; g++) {
            memcpy(moei_quantize_scale_at(to, 0, i, g), moei_quantize_scale_at(&from, 0, i, g),
                   bytes);
        }
    }
}

static void keep_h(const moek_glu_args *to, const outputs *out, const moei_cpu_piece *p)
{
    const int64_t stride = to->y_row_stride;
    const int64_t at = p->i0 * stride + moei_elem_bytes(to->y_dtype, p->n0);
    copy_rows(to->y + at, stride, out->h + at, stride, p->i1 - p->i0,
              moei_elem_bytes(to->y_dtype, p->n1 - p->n0));
}

bool moei_cpu_rescue_first(const moei_exec *exec, const moei_cpu_mlp *mlp, const moei_cpu_cut *cut)
{
    moei_cpu_rescue *r = exec->plan;
    inputs *in = r != NULL && first_fits(r, mlp, cut) ? begin(exec, mlp, cut) : NULL;
    if (in == NULL) {
        return false;
    }
    in->product = *mlp->first;
    in->glu = *mlp->glu;
    moek_ggemm_args *a = &in->product.args.ggemm;
    const int64_t rows = a->offsets[a->w.count];
    copy_operand(in, &a->x, a->rows / a->row_divisor, a->w.k);
    copy_offsets(in, a);
    memcpy(in->index, a->row_index, (size_t)rows * sizeof *in->index);
    a->row_index = in->index;
    in->glu.args.glu.total = NULL;
    if (mlp->quantize != NULL) {
        in->quantize = *mlp->quantize;
        in->quantize.args.quantize.total = NULL;
        in->quantize.args.quantize.rows = moei_quantize_count(&mlp->quantize->args.quantize, 0);
    }
    moei_pool_attempts(exec->ctx->own_pool, in->slot, (size_t)cut->tasks, first_attempt, in,
                       in->done);
    for (int64_t i = 0; i < cut->tasks; i++) {
        if (mlp->quantize != NULL) {
            keep_codes(&mlp->quantize->args.quantize, winner(in, i), &in->pieces[i]);
        } else {
            keep_h(&mlp->glu->args.glu, winner(in, i), &in->pieces[i]);
        }
    }
    moei_pool_give_back(exec->ctx->own_pool);
    return true;
}

// ---- stage 2 ------------------------------------------------------------------------------------

static bool second_fits(const moei_cpu_rescue *r, const moei_cpu_mlp *m, const moei_cpu_cut *cut)
{
    const moek_ggemm_args *a = &m->second->args.ggemm;
    return fits(r, a, cut) && a->out_index != NULL && operand_fits(r, &a->x, a->rows, a->w.k) &&
           a->y_row_stride <= r->row_y;
}

static void second_attempt(void *arg, size_t index, int thread)
{
    const inputs *in = arg;
    moei_step second = in->product;
    moei_cpu_mlp mlp = in->mlp;
    second.args.ggemm.y = in->owner->outputs[thread].y;
    mlp.second = &second;
    moei_cpu_mlp_second(&mlp, &in->pieces[index]);
}

static void keep_y(const moek_ggemm_args *to, const outputs *out, const moei_cpu_piece *p)
{
    const int64_t at = moei_elem_bytes(to->y_dtype, p->n0);
    for (int64_t i = p->i0; i < p->i1; i++) {
        const int64_t row = moei_y_row(to, i) * to->y_row_stride + at;
        memcpy(to->y + row, out->y + row, (size_t)moei_elem_bytes(to->y_dtype, p->n1 - p->n0));
    }
}

bool moei_cpu_rescue_second(const moei_exec *exec, const moei_cpu_mlp *mlp, const moei_cpu_cut *cut)
{
    moei_cpu_rescue *r = exec->plan;
    const moek_ggemm_args *to = &mlp->second->args.ggemm;
    inputs *in = r != NULL && second_fits(r, mlp, cut) ? begin(exec, mlp, cut) : NULL;
    if (in == NULL) {
        return false;
    }
    in->product = *mlp->second;
    moek_ggemm_args *a = &in->product.args.ggemm;
    const int64_t rows = a->offsets[a->w.count];
    copy_operand(in, &a->x, rows, a->w.k);
    copy_offsets(in, a);
    memcpy(in->index, a->out_index, (size_t)rows * sizeof *in->index);
    a->out_index = in->index;
    if (a->row_weight != NULL) {
        memcpy(in->weights, a->row_weight, (size_t)a->rows * sizeof *in->weights);
        a->row_weight = in->weights;
    }
    moei_pool_attempts(exec->ctx->own_pool, in->slot, (size_t)cut->tasks, second_attempt, in,
                       in->done);
    for (int64_t i = 0; i < cut->tasks; i++) {
        keep_y(to, winner(in, i), &in->pieces[i]);
    }
    moei_pool_give_back(exec->ctx->own_pool);
    return true;
}
