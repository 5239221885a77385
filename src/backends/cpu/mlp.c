// SPDX-License-Identifier: Apache-2.0
// Two stages, each one job of the pool, but for few rows, where they are one (rescue.c):
//   1  task = expert x band of h x block of rows: gate columns, up columns, activation, codes
//   2  task = expert x band of outputs x block of rows
// Few tokens: the tasks of stage 2 lie band by band, and the one that ends a band sums the slots of
// its columns. Many: that sum is a job of its own, over tokens.
#include "backends/cpu/mlp.h"

#include <stdatomic.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/rescue.h"
#include "backends/cpu/slots.h"
#include "backends/cpu/x_tiles.h"
#include "ops/combine.h"
#include "ops/ggemm.h"
#include "ops/glu.h"
#include "ops/quantize.h"

#define FEW_TOKENS  64        // up to here one thread sums a band's slots
#define MOST_BANDS  256       // that count their tasks
#define BLOCK_ROWS  256       // rows that share a band's weights while those are in a cache
#define MANY_ROWS   48        // of an expert, on average, whose x is worth a job that makes tiles
#define GATE_UP_MAX (1 << 15) // rows times columns of h: 256 KiB of gate and up
#define DOWN_MAX    (1 << 16) // rows times outputs of a task: else all wait long for the last

// ---- which steps --------------------------------------------------------------------------------

// Columns of h of which bands must be multiples, so that each has scales of its own; 0: none will
// do.
static int64_t quantize_unit(const moek_quantize_args *q)
{
    const int64_t group = q->quant.group;
    if (moei_quantize_is_global(q->info) || q->quant.scale_type == MOE_SCALE_UE8M0_PACKED) {
        return 0;
    }
    if (q->info->grain == MOEI_GRAIN_TENSOR) {
        return MOEI_CPU_PANEL;
    }
    if (q->info->grain != MOEI_GRAIN_GROUP || group <= 0) {
        return 0;
    }
    return MOEI_CPU_PANEL % group == 0 ? MOEI_CPU_PANEL : group % MOEI_CPU_PANEL == 0 ? group : 0;
}

static bool is_plain_quantize(const moek_quantize_args *q, const moek_glu_args *glu)
{
    return q->stage == MOEK_QUANTIZE_CODES && !q->silu_mul && !q->zero_absent_scales &&
           q->x == glu->y && q->x_row_stride == glu->y_row_stride &&
           q->x_batch_stride == glu->y_batch_stride;
}

// Bands are whole panels of packed weights: so gate and up must both begin with one.
static bool bands_fit(const moei_step *first, const moek_glu_args *glu)
{
    const int64_t apart = glu->up_offset > glu->gate_offset ? glu->up_offset : glu->gate_offset;
    return first->kernel->layout == MOEI_LAYOUT_ROW || glu->step != 1 ||
           apart % MOEI_CPU_PANEL == 0;
}

static bool same_rows(const moek_ggemm_args *a, const moek_ggemm_args *b)
{
    return a->w.count == b->w.count && a->offsets == b->offsets && a->counts == b->counts &&
           a->rows == b->rows && b->row_index == NULL;
}

// Sums over the columns of what `second` writes.
static bool sums_columns(const moei_step *step, const moek_ggemm_args *second)
{
    const moek_combine_args *c = &step->args.combine;
    return step->op == MOEI_OP_COMBINE && c->width == second->w.n;
}

int32_t moei_cpu_mlp_match(const moei_step *steps, int32_t count, moei_cpu_mlp *out)
{
    if (count < 3 || steps[0].op != MOEI_OP_GGEMM || steps[1].op != MOEI_OP_GLU) {
        return 0;
    }
    const moek_ggemm_args *first = &steps[0].args.ggemm;
    const moek_glu_args *glu = &steps[1].args.glu;
    int32_t next = 2;
    *out = (moei_cpu_mlp){.first = &steps[0], .glu = &steps[1], .unit = MOEI_CPU_PANEL};
    if (glu->x != first->y || glu->x_row_stride != first->y_row_stride ||
        glu->x_batch_stride != first->y_batch_stride || first->out_index != NULL ||
        first->w.count > MOEI_SORT_MAX_EXPERTS || !bands_fit(&steps[0], glu)) {
        return 0;
    }
    const uint8_t *h = glu->y;
    if (steps[next].op == MOEI_OP_QUANTIZE) {
        const moek_quantize_args *q = &steps[next].args.quantize;
        if (!is_plain_quantize(q, glu)) {
            return 0;
        }
        out->quantize = &steps[next++];
        out->unit = quantize_unit(q);
        h = q->q;
    }
    if (next == count || steps[next].op != MOEI_OP_GGEMM) {
        return 0;
    }
    const moek_ggemm_args *second = &steps[next].args.ggemm;
    if (second->x.data != h || !same_rows(first, second)) {
        return 0;
    }
    out->second = &steps[next++];
    out->tail = steps + next;
    while (next < count && sums_columns(&steps[next], second)) {
        next++;
        out->tails++;
    }
    return next;
}

// ---- bands --------------------------------------------------------------------------------------

static int64_t bytes_of(moe_dtype dtype, int64_t elems)
{
    return elems * moe_dtype_bits(dtype) / 8;
}

// A range of columns of an op is the op itself, from other addresses.
static moek_glu_args glu_columns(const moek_glu_args *glu, int64_t j0, int64_t j1)
{
    moek_glu_args a = *glu;
    a.inter = j1 - j0;
    a.x += bytes_of(a.x_dtype, glu->step * j0);
    a.y += bytes_of(a.y_dtype, j0);
    return a;
}

static moek_quantize_args quantize_columns(const moek_quantize_args *q, int64_t j0, int64_t j1)
{
    moek_quantize_args a = *q;
    a.k = j1 - j0;
    a.x += bytes_of(a.x_dtype, j0);
    a.q += moei_quant_row_bytes(a.quant.elem, j0);
    if (a.info->grain == MOEI_GRAIN_GROUP) {
        a.scales = moei_quantize_scale_at(q, 0, 0, j0 / a.quant.group);
    }
    return a;
}

static moek_combine_args combine_columns(const moek_combine_args *c, int64_t n0, int64_t n1)
{
    moek_combine_args a = *c;
    a.width = n1 - n0;
    a.slots += a.slots != NULL ? bytes_of(a.slot_dtype, n0) : 0;
    a.x += a.x != NULL ? bytes_of(a.x_dtype, n0) : 0;
    a.bias += a.bias != NULL ? bytes_of(a.bias_dtype, n0) : 0;
    a.shared += a.shared != NULL ? bytes_of(a.shared_dtype, n0) : 0;
    a.out += bytes_of(a.out_dtype, n0);
    return a;
}

static void product_columns(const moei_step *step, const moei_cpu_piece *p, int64_t n0, int64_t n1)
{
    ((moek_ggemm_fn *)step->kernel->fn)(&step->args.ggemm, p->expert, p->i0, p->i1, n0, n1);
}

// Columns [n0, n1) to where row 0 has its first one, had it rows and columns from 0 on.
static void product_to(const moei_step *step, const moei_cpu_piece *p, int64_t n0, int64_t n1,
                       uint8_t *y, int64_t stride)
{
    moei_step to = *step;
    to.args.ggemm.y = y;
    to.args.ggemm.y_row_stride = stride;
    product_columns(&to, p, n0, n1);
}

// ---- gate and up --------------------------------------------------------------------------------

static bool is_gated(const moek_glu_args *glu)
{
    return moe_activation_gated(glu->act.activation) != 0;
}

// Gate and up of a piece to where the steps have them. Returns what takes them from there.
static moek_glu_args gate_up_in_rows(const moei_cpu_mlp *m, const moei_cpu_piece *p)
{
    const moek_glu_args *glu = &m->glu->args.glu;
    if (glu->step == 2) {
        product_columns(m->first, p, 2 * p->n0, 2 * p->n1);
    } else {
        product_columns(m->first, p, glu->gate_offset + p->n0, glu->gate_offset + p->n1);
        if (is_gated(glu)) {
            product_columns(m->first, p, glu->up_offset + p->n0, glu->up_offset + p->n1);
        }
    }
    return glu_columns(glu, p->n0, p->n1);
}

// From gate and up to h, or its codes.
static void first_ends(const moei_cpu_mlp *m, const moei_cpu_piece *p, const moek_glu_args *band)
{
    const int32_t batch = m->first->args.ggemm.offsets == NULL ? p->expert : 0;
    ((moek_glu_fn *)m->glu->kernel->fn)(band, batch, p->i0, p->i1);
    if (m->quantize != NULL && m->unit > 0) {
        const moek_quantize_args *whole = &m->quantize->args.quantize;
        const moek_quantize_args q = quantize_columns(whole, p->n0, p->n1);
        if (p->i0 < moei_quantize_count(whole, batch)) {
            ((moek_quantize_fn *)m->quantize->kernel->fn)(&q, batch, p->i0, p->i1);
        }
    }
}

void moei_cpu_mlp_first(const moei_cpu_mlp *m, const moei_cpu_piece *p)
{
    const moek_glu_args band = gate_up_in_rows(m, p);
    first_ends(m, p, &band);
}

void moei_cpu_mlp_second(const moei_cpu_mlp *m, const moei_cpu_piece *p)
{
    product_columns(m->second, p, p->n0, p->n1);
}

void moei_cpu_mlp_sum(const moei_cpu_mlp *m, int64_t n0, int64_t n1)
{
    for (int32_t i = 0; i < m->tails; i++) {
        const moek_combine_args *whole = &m->tail[i].args.combine;
        const moek_combine_args c = combine_columns(whole, n0, n1);
        ((moek_combine_fn *)m->tail[i].kernel->fn)(&c, 0, moei_cpu_combine_tokens(whole));
    }
}

// ---- a layer's products -------------------------------------------------------------------------

typedef struct stage {
    const moei_cpu_mlp *mlp;
    moei_cpu_cut cut;
    moei_cpu_slots gate_up; // none: in rows
    int64_t h_in_slot;      // where h of a task is, behind its gate and up
    bool tiled;             // x of both products is tiles
    moei_cpu_x_tiles x, h;
    int64_t tile[MOEI_SORT_MAX_EXPERTS]; // the first of each expert
    atomic_int left[MOST_BANDS];         // tasks of each band of outputs that have not ended
} stage;

// ---- slots --------------------------------------------------------------------------------------

// A task alone wants its gate and up. Where there are many rows it has them in a slot at the end of
// that memory, which a thread uses again and again: so they need not go to memory. A slot's rows
// are reached by their numbers in all of the memory, from a base that does not lie before it.
// `used`: bytes at its beginning that are others'.
static bool choose_slots(stage *s, int32_t threads, int64_t used)
{
    const moek_ggemm_args *a = &s->mlp->first->args.ggemm;
    const moek_glu_args *glu = &s->mlp->glu->args.glu;
    const moei_cpu_cut *cut = &s->cut;
    const int64_t all = a->rows * a->y_row_stride;
    const int64_t rows = moei_i64_min(cut->most_rows, moei_i64_round_up(cut->block, cut->step));
    const int64_t stride = bytes_of(a->y_dtype, (is_gated(glu) ? 2 : 1) * cut->band);
    const int64_t h = s->tiled ? bytes_of(glu->y_dtype, cut->band) : 0;
    const int64_t slots = threads * rows * (stride + h);
    s->gate_up.count = 0;
    s->h_in_slot = rows * stride;
    if (a->offsets == NULL || threads > MOEI_CPU_MOST_SLOTS ||
        a->y_row_stride + a->rows * stride + slots > all || used + slots > all) {
        return false;
    }
    moei_cpu_slots_begin(&s->gate_up, threads, rows * (stride + h), a->y + all - slots);
    return true;
}

static moek_glu_args gate_up_in_slot(const moei_cpu_mlp *m, const moei_cpu_piece *p, uint8_t *slot)
{
    const moe_dtype dtype = m->first->args.ggemm.y_dtype;
    const int64_t width = p->n1 - p->n0;
    moek_glu_args glu = glu_columns(&m->glu->args.glu, p->n0, p->n1);
    const int64_t stride = bytes_of(dtype, (is_gated(&glu) ? 2 : 1) * width);
    uint8_t *rows = slot - p->i0 * stride;
    if (glu.step == 2) {
        product_to(m->first, p, 2 * p->n0, 2 * p->n1, rows - bytes_of(dtype, 2 * p->n0), stride);
    } else {
        const int64_t gate = glu.gate_offset + p->n0;
        const int64_t up = glu.up_offset + p->n0;
        product_to(m->first, p, gate, gate + width, rows - bytes_of(dtype, gate), stride);
        if (is_gated(&glu)) {
            product_to(m->first, p, up, up + width, rows - bytes_of(dtype, up - width), stride);
        }
        glu.gate_offset = 0;
        glu.up_offset = width;
    }
    glu.x = rows;
    glu.x_row_stride = stride;
    return glu;
}

// ---- x as tiles ---------------------------------------------------------------------------------

// Where experts have many rows, each is copied to tiles once for all tasks: x by a job of its own,
// h by the task that made it. They lie in the memory of gate and up that slots leave.
static bool choose_tiles(stage *s, int32_t threads)
{
    const moek_ggemm_args *a = &s->mlp->first->args.ggemm;
    const int64_t tiles = moei_cpu_x_tiles_first(&s->cut, s->tile);
    s->tiled = s->mlp->quantize == NULL && a->offsets != NULL &&
               s->mlp->glu->args.glu.y_dtype == MOE_BF16 &&
               a->offsets[a->w.count] >= MANY_ROWS * s->cut.busy &&
               moei_cpu_takes_tiles(s->mlp->first->kernel) &&
               moei_cpu_takes_tiles(s->mlp->second->kernel);
    if (!s->tiled) {
        return false;
    }
    s->x = (moei_cpu_x_tiles){.k = a->w.k, .bytes = moei_cpu_x_tiles_bytes(a->w.k)};
    s->h = (moei_cpu_x_tiles){.k = s->cut.columns, .bytes = moei_cpu_x_tiles_bytes(s->cut.columns)};
    s->x.at =
        a->y + (MOEI_CPU_TILE_LINE - (uintptr_t)a->y % MOEI_CPU_TILE_LINE) % MOEI_CPU_TILE_LINE;
    s->h.at = s->x.at + tiles * s->x.bytes;
    s->tiled = choose_slots(s, threads, MOEI_CPU_TILE_LINE + tiles * (s->x.bytes + s->h.bytes));
    return s->tiled;
}

static int64_t tile_of(const stage *s, const moei_cpu_piece *p)
{
    int64_t i0;
    (void)moei_cpu_rows_of(s->cut.args, p->expert, &i0);
    return s->tile[p->expert] + (p->i0 - i0) / MOEI_CPU_TILE_ROWS;
}

// `step` with its x as tiles.
static moei_step tiled_step(const stage *s, const moei_step *step, const moei_cpu_x_tiles *x,
                            const moei_cpu_piece *p)
{
    moei_step tiled = *step;
    tiled.args.ggemm.x.data = x->at + tile_of(s, p) * x->bytes;
    tiled.args.ggemm.x.row_stride = MOEI_CPU_TILED;
    return tiled;
}

// Rows of x to tiles.
static void tile_task(void *arg, size_t index)
{
    const stage *s = arg;
    int32_t b = 0;
    while (b + 1 < s->cut.busy && s->tile[s->cut.expert[b + 1]] <= (int64_t)index) {
        b++;
    }
    const int32_t e = s->cut.expert[b];
    int64_t i0;
    const int64_t end = moei_cpu_rows_of(s->cut.args, e, &i0);
    i0 += ((int64_t)index - s->tile[e]) * MOEI_CPU_TILE_ROWS;
    moei_cpu_x_tiles_begin(&s->x, (int64_t)index);
    moei_cpu_x_tiles_begin(&s->h, (int64_t)index);
    moei_cpu_x_tiles_fill(&s->x, (int64_t)index, s->cut.args, e, i0,
                          moei_i64_min(i0 + MOEI_CPU_TILE_ROWS, end), 0, s->x.k);
}

// ---- stages -------------------------------------------------------------------------------------

// h of a piece, which begins with row i0 at `from`, to tiles.
static void tile_h(const stage *s, const moei_cpu_piece *p, const uint8_t *from, int64_t stride)
{
    moek_ggemm_args a = s->mlp->second->args.ggemm;
    a.x.data = from - p->i0 * stride - bytes_of(MOE_BF16, p->n0);
    a.x.row_stride = stride;
    moei_cpu_x_tiles_fill(&s->h, tile_of(s, p), &a, p->expert, p->i0, p->i1, p->n0, p->n1);
}

static void first_in_slot(const stage *s, const moei_cpu_piece *p, uint8_t *slot)
{
    if (!s->tiled) {
        const moek_glu_args band = gate_up_in_slot(s->mlp, p, slot);
        first_ends(s->mlp, p, &band);
        return;
    }
    const moei_step first = tiled_step(s, s->mlp->first, &s->x, p);
    moei_cpu_mlp mlp = *s->mlp;
    mlp.first = &first;
    moek_glu_args band = gate_up_in_slot(&mlp, p, slot);
    band.y_row_stride = bytes_of(MOE_BF16, p->n1 - p->n0);
    band.y = slot + s->h_in_slot - p->i0 * band.y_row_stride;
    first_ends(&mlp, p, &band);
    tile_h(s, p, slot + s->h_in_slot, band.y_row_stride);
}

static void first_task(void *arg, size_t index)
{
    stage *s = arg;
    const moei_cpu_piece p = moei_cpu_cut_at(&s->cut, (int64_t)index);
    if (s->gate_up.count == 0) {
        moei_cpu_mlp_first(s->mlp, &p);
        return;
    }
    const int32_t slot = moei_cpu_slot_take(&s->gate_up);
    first_in_slot(s, &p, s->gate_up.at + slot * s->gate_up.bytes);
    moei_cpu_slot_give(&s->gate_up, slot);
}

static void second_piece(const stage *s, const moei_cpu_piece *p)
{
    if (!s->tiled) {
        moei_cpu_mlp_second(s->mlp, p);
        return;
    }
    const moei_step second = tiled_step(s, s->mlp->second, &s->h, p);
    product_columns(&second, p, p->n0, p->n1);
}

static void second_task(void *arg, size_t index)
{
    const stage *s = arg;
    const moei_cpu_piece p = moei_cpu_cut_at(&s->cut, (int64_t)index);
    second_piece(s, &p);
}

// Band by band, all rows of an expert in each.
static void second_and_sum_task(void *arg, size_t index)
{
    stage *s = arg;
    const int64_t band = (int64_t)index / s->cut.busy;
    moei_cpu_piece p = {.expert = s->cut.expert[(int64_t)index % s->cut.busy],
                        .n0 = band * s->cut.band};
    p.i1 = moei_cpu_rows_of(s->cut.args, p.expert, &p.i0);
    p.n1 = moei_i64_min(p.n0 + s->cut.band, s->cut.columns);
    second_piece(s, &p);
    if (atomic_fetch_sub_explicit(&s->left[band], 1, memory_order_acq_rel) == 1) {
        moei_cpu_mlp_sum(s->mlp, p.n0, p.n1);
    }
}

// Sums that a band's last task can do: of few tokens, where there is a task.
static bool sums_bands(const stage *s)
{
    int64_t tokens = 0;
    for (int32_t i = 0; i < s->mlp->tails; i++) {
        tokens = moei_i64_max(tokens, s->mlp->tail[i].args.combine.tokens);
    }
    return s->mlp->tails > 0 && tokens <= FEW_TOKENS && s->cut.busy > 0;
}

// The unit of tiles is a core's: a second thread of it would wait for the first.
static void run_job(const moei_exec *exec, stage *s, size_t tasks, moe_task_fn task)
{
    if (s->tiled) {
        moei_parallel_for_cores(&exec->ctx->pool, tasks, task, s);
    } else {
        moei_parallel_for(&exec->ctx->pool, tasks, task, s);
    }
}

static moei_cpu_cut_limits first_limits(const moei_exec *exec, const moei_cpu_mlp *mlp)
{
    return (moei_cpu_cut_limits){.unit = mlp->unit > 0 ? mlp->unit : MOEI_CPU_PANEL,
                                 .step = mlp->first->kernel->mr,
                                 .block = BLOCK_ROWS,
                                 .area = GATE_UP_MAX,
                                 .bands = INT64_MAX,
                                 .threads = exec->ctx->num_threads};
}

static moei_cpu_cut_limits second_limits(const moei_exec *exec, const moei_cpu_mlp *mlp)
{
    return (moei_cpu_cut_limits){.unit = MOEI_CPU_PANEL,
                                 .step = mlp->second->kernel->mr,
                                 .block = BLOCK_ROWS,
                                 .area = DOWN_MAX,
                                 .bands = MOST_BANDS,
                                 .threads = exec->ctx->num_threads};
}

static moe_status run_sums(const moei_exec *exec, const moei_cpu_mlp *mlp)
{
    for (int32_t i = 0; i < mlp->tails; i++) {
        const moei_step *sum = &mlp->tail[i];
        MOE_TRY(moei_cpu_combine(exec, sum->kernel, &sum->args.combine));
    }
    return MOE_OK;
}

static moe_status run_second(const moei_exec *exec, stage *s)
{
    const moei_cpu_cut_limits limits = second_limits(exec, s->mlp);
    moei_cpu_cut_choose(&s->cut, s->mlp->second->args.ggemm.w.n, &limits);
    if (!sums_bands(s)) {
        run_job(exec, s, (size_t)s->cut.tasks, second_task);
        return run_sums(exec, s->mlp);
    }
    for (int64_t b = 0; b < s->cut.bands; b++) {
        atomic_init(&s->left[b], s->cut.busy);
    }
    run_job(exec, s, (size_t)(s->cut.bands * s->cut.busy), second_and_sum_task);
    return MOE_OK;
}

// Chooses where gate and up of tasks lie, and x.
static void run_tiles(const moei_exec *exec, stage *s)
{
    const int32_t threads = exec->ctx->num_threads;
    if (choose_tiles(s, threads)) {
        const size_t tiles = (size_t)((s->h.at - s->x.at) / s->x.bytes);
        moei_parallel_for(&exec->ctx->pool, tiles, tile_task, s);
    } else {
        (void)choose_slots(s, threads, 0);
    }
}

moe_status moei_cpu_mlp_run(const moei_exec *exec, const moei_cpu_mlp *mlp)
{
    stage s;
    const moei_cpu_cut_limits first = first_limits(exec, mlp);
    const moei_cpu_cut_limits second = second_limits(exec, mlp);
    s.mlp = mlp;
    s.tiled = false;
    moei_cpu_cut_begin(&s.cut, &mlp->first->args.ggemm);
    if (moei_cpu_rescue_run(exec, mlp, &s.cut, first, second)) {
        return run_sums(exec, mlp);
    }
    moei_cpu_cut_choose(&s.cut, mlp->glu->args.glu.inter, &first);
    run_tiles(exec, &s);
    run_job(exec, &s, (size_t)s.cut.tasks, first_task);
    if (mlp->quantize != NULL && mlp->unit == 0) {
        MOE_TRY(moei_cpu_quantize(exec, mlp->quantize->kernel, &mlp->quantize->args.quantize));
    }
    return run_second(exec, &s);
}
