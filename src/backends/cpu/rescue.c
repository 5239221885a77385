// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/rescue.h"

#include <string.h>

#include "backends/cpu/cpu.h"
#include "core/arena.h"
#include "ops/quantize.h"
#include "quant/elements.h"

#define MOST_ROWS   32            // of all experts
#define MOST_BYTES  (24ull << 20) // of a plan
#define MOST_TASKS  1024
#define LAST_PARTS  4  // of each of the last tasks, so that nobody waits long for the end
#define WIDEST      4  // bytes of an element of any buffer
#define LEAST_GROUP 16 // elements per scale

// A piece of stage 1 or 2, and the tasks of stage 1 whose h it reads.
typedef struct task {
    moei_cpu_piece piece;
    size_t need, need_end;
} task;

// What a job reads.
typedef struct inputs {
    struct moei_cpu_rescue *owner;
    int slot;
    moei_cpu_mlp mlp; // the steps below
    moei_step first, glu, quantize, second;
    uint8_t *y; // where the caller wants what `second` gives
    task *tasks;
    size_t split, count; // tasks of stage 1, of both
    atomic_uint *done;
    uint8_t *x, *scales;
    int32_t *offsets;
    int32_t *row_index, *out_index;
    float *weights; // of slots
} inputs;

// h, or its codes, of the tasks of stage 1 that a thread did in a job. Others read it: so each slot
// of the pool has its own, which stays while anybody is in its job.
typedef struct made {
    uint8_t *h, *scales;
} made;

// What a thread writes.
typedef struct outputs {
    made made[MOEI_POOL_SLOTS];
    uint8_t *gate_up, *h;              // of a task
    made x;                            // of stage 2: h of an expert,
    int32_t x_expert[MOEI_POOL_SLOTS]; // of this one in that slot's job; -1: none yet
    uint8_t *y;
} outputs;

typedef struct moei_cpu_rescue {
    size_t bytes; // of all
    int64_t rows;
    int64_t row1, row_h, row_scales, row_y; // bytes of a row, at most
    int32_t experts;
    int32_t num_threads;
    moei_pool *pool;
    inputs inputs[MOEI_POOL_SLOTS];
    outputs *outputs; // [num_threads]
} moei_cpu_rescue;

// ---- memory -------------------------------------------------------------------------------------

static made carve_made(moei_arena *arena, const moei_cpu_rescue *r)
{
    const size_t rows = (size_t)r->rows;
    uint8_t *h = moei_arena_array(arena, rows, (size_t)r->row_h);
    return (made){h, moei_arena_array(arena, rows, (size_t)r->row_scales)};
}

// The one list of it: measures with a NULL base, places otherwise.
static void carve(moei_arena *arena, moei_cpu_rescue *r)
{
    const size_t rows = (size_t)r->rows;
    const int64_t widest = moei_i64_max(r->row_y, r->row_h);
    r->outputs = moei_arena_array(arena, (size_t)r->num_threads, sizeof(outputs));
    for (int s = 0; s < MOEI_POOL_SLOTS; s++) {
        inputs *in = &r->inputs[s];
        in->tasks = moei_arena_array(arena, MOST_TASKS, sizeof *in->tasks);
        in->done = moei_arena_array(arena, MOST_TASKS, sizeof *in->done);
        in->x = moei_arena_array(arena, rows, (size_t)widest);
        in->scales = moei_arena_array(arena, rows, (size_t)r->row_scales);
        in->offsets = moei_arena_array(arena, (size_t)r->experts + 1, sizeof *in->offsets);
        in->row_index = moei_arena_array(arena, rows, sizeof *in->row_index);
        in->out_index = moei_arena_array(arena, rows, sizeof *in->out_index);
        in->weights = moei_arena_array(arena, rows, sizeof *in->weights);
    }
    for (int32_t t = 0; t < r->num_threads; t++) {
        const outputs o = {.made = {carve_made(arena, r), carve_made(arena, r)},
                           .gate_up = moei_arena_array(arena, rows, (size_t)r->row1),
                           .h = moei_arena_array(arena, rows, (size_t)r->row_h),
                           .x = carve_made(arena, r),
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
        .pool = exec->ctx->own_pool,
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

// Codes and scales of a piece, from an op of the same layout.
static void copy_codes(const moek_quantize_args *to, const made *from, const moei_cpu_piece *p)
{
    moek_quantize_args source = *to;
    const int64_t at = moei_quant_row_bytes(to->quant.elem, p->n0);
    const int64_t stride = to->q_row_stride;
    const size_t bytes = (size_t)moe_dtype_bits(moei_scale_dtype(to->quant.scale_type)) / 8;
    source.scales = from->scales;
    copy_rows(to->q + p->i0 * stride + at, stride, from->h + p->i0 * stride + at, stride,
              p->i1 - p->i0, moei_quant_row_bytes(to->quant.elem, p->n1 - p->n0));
    for (int64_t i = p->i0; i < p->i1; i++) {
        for (int64_t g = p->n0 / to->quant.group; g * to->quant.group < p->n1; g++) {
            memcpy(moei_quantize_scale_at(to, 0, i, g), moei_quantize_scale_at(&source, 0, i, g),
                   bytes);
        }
    }
}

// Columns of a piece's rows.
static void copy_piece(uint8_t *to, const uint8_t *from, const moei_cpu_piece *p, moe_dtype dtype,
                       int64_t stride)
{
    const int64_t at = p->i0 * stride + moei_elem_bytes(dtype, p->n0);
    copy_rows(to + at, stride, from + at, stride, p->i1 - p->i0,
              moei_elem_bytes(dtype, p->n1 - p->n0));
}

// ---- the job's tasks ----------------------------------------------------------------------------

static void first_attempt(const inputs *in, const moei_cpu_piece *p, int thread)
{
    const outputs *out = &in->owner->outputs[thread];
    const made *own = &out->made[in->slot];
    moei_step first = in->first;
    moei_step glu = in->glu;
    moei_step quantize = in->quantize;
    moei_cpu_mlp mlp = in->mlp;
    first.args.ggemm.y = out->gate_up;
    glu.args.glu.x = out->gate_up;
    glu.args.glu.y = mlp.quantize != NULL ? out->h : own->h;
    mlp.first = &first;
    mlp.glu = &glu;
    if (mlp.quantize != NULL) {
        quantize.args.quantize.x = out->h;
        quantize.args.quantize.q = own->h;
        quantize.args.quantize.scales = own->scales;
        mlp.quantize = &quantize;
    }
    moei_cpu_mlp_first(&mlp, p);
}

// The thread's result of a task counts.
static const outputs *winner(const inputs *in, size_t i)
{
    const unsigned done = atomic_load_explicit(&in->done[i], memory_order_relaxed);
    return &in->owner->outputs[done - 1];
}

// h of a task's expert to where the thread reads it.
static void gather_h(const inputs *in, const task *t, int thread)
{
    outputs *out = &in->owner->outputs[thread];
    const moek_glu_args *glu = &in->glu.args.glu;
    moek_quantize_args q = in->quantize.args.quantize;
    q.q = out->x.h;
    q.scales = out->x.scales;
    moei_pool_need(t->need, t->need_end);
    if (out->x_expert[in->slot] == t->piece.expert) {
        return;
    }
    for (size_t i = t->need; i < t->need_end; i++) {
        const made *from = &winner(in, i)->made[in->slot];
        if (in->mlp.quantize != NULL) {
            copy_codes(&q, from, &in->tasks[i].piece);
        } else {
            copy_piece(out->x.h, from->h, &in->tasks[i].piece, glu->y_dtype, glu->y_row_stride);
        }
    }
    out->x_expert[in->slot] = t->piece.expert;
}

static void second_attempt(const inputs *in, const task *t, int thread)
{
    const outputs *out = &in->owner->outputs[thread];
    moei_step second = in->second;
    moei_cpu_mlp mlp = in->mlp;
    gather_h(in, t, thread);
    second.args.ggemm.x.data = out->x.h;
    if (second.args.ggemm.x.scales != NULL) {
        second.args.ggemm.x.scales = out->x.scales;
    }
    second.args.ggemm.y = out->y;
    mlp.second = &second;
    moei_cpu_mlp_second(&mlp, &t->piece);
}

static void attempt_task(void *arg, size_t i, int thread)
{
    const inputs *in = arg;
    if (i < in->split) {
        first_attempt(in, &in->tasks[i].piece, thread);
    } else {
        second_attempt(in, &in->tasks[i], thread);
    }
}

static void keep_task(void *arg, size_t i, int thread)
{
    const inputs *in = arg;
    const moek_ggemm_args *a = &in->second.args.ggemm;
    moei_cpu_piece row = in->tasks[i].piece;
    for (int64_t r = row.i0, end = row.i1; i >= in->split && r < end; r++) {
        row.i0 = moei_y_row(a, r);
        row.i1 = row.i0 + 1;
        copy_piece(in->y, in->owner->outputs[thread].y, &row, a->y_dtype, a->y_row_stride);
    }
}

// ---- the job ------------------------------------------------------------------------------------

// Arguments whose memory, and what is copied of the caller's, the plan has room for.
static bool fits(const moei_cpu_rescue *r, const moei_cpu_mlp *m)
{
    const moek_ggemm_args *a = &m->first->args.ggemm;
    const moek_ggemm_args *b = &m->second->args.ggemm;
    const moek_glu_args *glu = &m->glu->args.glu;
    const moek_quantize_args *q = m->quantize != NULL ? &m->quantize->args.quantize : NULL;
    return a->offsets != NULL && a->counts == NULL && a->w.count <= r->experts &&
           a->rows <= r->rows && a->row_index != NULL && a->row_weight == NULL &&
           operand_fits(r, &a->x, a->rows / a->row_divisor, a->w.k) && a->y_row_stride <= r->row1 &&
           glu->y_row_stride <= r->row_h &&
           (q == NULL || (m->unit > 0 && q->info->grain == MOEI_GRAIN_GROUP &&
                          q->global_scale == NULL && q->q_row_stride <= r->row_h)) &&
           b->out_index != NULL && operand_fits(r, &b->x, b->rows, b->w.k) &&
           b->y_row_stride <= r->row_y;
}

// Tasks of stage 1 that are of the same expert as t: those that it needs, as they lie expert by
// expert.
static void find_needs(const inputs *in, task *t)
{
    while (in->tasks[t->need].piece.expert != t->piece.expert) {
        t->need++;
    }
    for (t->need_end = t->need; t->need_end < in->split; t->need_end++) {
        if (in->tasks[t->need_end].piece.expert != t->piece.expert) {
            return;
        }
    }
}

// Tasks of a stage, of which the last one of each thread is small where all wait for its end. False
// where there is no room.
static bool list_stage(inputs *in, const moei_cpu_cut *cut, const moei_cpu_cut_limits *limits,
                       bool all_wait)
{
    const bool second = in->split > 0;
    task t = {.need = 0};
    for (int64_t i = 0; i < cut->tasks; i++) {
        t.piece = moei_cpu_cut_at(cut, i);
        if (second) {
            find_needs(in, &t);
        }
        const int64_t end = t.piece.n1;
        const int64_t parts = all_wait && i >= cut->tasks - limits->threads ? LAST_PARTS : 1;
        const int64_t part = moei_i64_ceil_div(end - t.piece.n0, parts);
        const int64_t width = moei_i64_round_up(part, limits->unit);
        for (; t.piece.n0 < end; t.piece.n0 = t.piece.n1) {
            t.piece.n1 = moei_i64_min(t.piece.n0 + width, end);
            if (in->count == MOST_TASKS) {
                return false;
            }
            in->tasks[in->count++] = t;
        }
    }
    return true;
}

// Both stages expert by expert, so that the h that a task of stage 2 needs was made some time ago,
// unless all experts are one.
static bool list(inputs *in, moei_cpu_cut *cut, const moei_cpu_mlp *mlp,
                 const moei_cpu_cut_limits *first, const moei_cpu_cut_limits *second)
{
    in->split = in->count = 0;
    moei_cpu_cut_choose(cut, mlp->glu->args.glu.inter, first);
    if (!list_stage(in, cut, first, cut->busy == 1) || in->count == 0) {
        return false;
    }
    in->split = in->count;
    moei_cpu_cut_choose(cut, mlp->second->args.ggemm.w.n, second);
    return list_stage(in, cut, second, true);
}

// Everything that tasks read to the memory of the job.
static void copy_inputs(inputs *in, const moei_cpu_mlp *mlp)
{
    in->mlp = *mlp;
    in->first = *mlp->first;
    in->glu = *mlp->glu;
    in->glu.args.glu.total = NULL;
    in->second = *mlp->second;
    in->y = mlp->second->args.ggemm.y;
    if (mlp->quantize != NULL) {
        in->quantize = *mlp->quantize;
        in->quantize.args.quantize.total = NULL;
        in->quantize.args.quantize.rows = moei_quantize_count(&mlp->quantize->args.quantize, 0);
    }
    moek_ggemm_args *a = &in->first.args.ggemm;
    moek_ggemm_args *b = &in->second.args.ggemm;
    const size_t rows = (size_t)a->offsets[a->w.count];
    copy_operand(in, &a->x, a->rows / a->row_divisor, a->w.k);
    memcpy(in->offsets, a->offsets, ((size_t)a->w.count + 1) * sizeof *in->offsets);
    memcpy(in->row_index, a->row_index, rows * sizeof *in->row_index);
    memcpy(in->out_index, b->out_index, rows * sizeof *in->out_index);
    a->offsets = b->offsets = in->offsets;
    a->row_index = in->row_index;
    b->out_index = in->out_index;
    if (b->row_weight != NULL) {
        memcpy(in->weights, b->row_weight, (size_t)b->rows * sizeof *in->weights);
        b->row_weight = in->weights;
    }
    for (int32_t t = 0; t < in->owner->num_threads; t++) {
        in->owner->outputs[t].x_expert[in->slot] = -1;
    }
}

bool moei_cpu_rescue_run(const moei_exec *exec, const moei_cpu_mlp *mlp, moei_cpu_cut *cut,
                         moei_cpu_cut_limits first, moei_cpu_cut_limits second)
{
    moei_cpu_rescue *r = exec->plan;
    const int slot = r != NULL && fits(r, mlp) ? moei_pool_take(r->pool) : -1;
    if (slot < 0) {
        return false;
    }
    inputs *in = &r->inputs[slot];
    first.joined = second.joined = true;
    const bool listed = list(in, cut, mlp, &first, &second);
    if (listed) {
        copy_inputs(in, mlp);
        const moei_attempts job = {in->count, attempt_task, keep_task, in, in->done};
        moei_pool_attempts(r->pool, slot, &job);
    }
    moei_pool_give_back(r->pool);
    return listed;
}
