// SPDX-License-Identifier: Apache-2.0
// The layer: how a run flows through the ops. moe_run at the end of the file is the whole story;
// what precedes it is one function per step. prepare.c lists the workspace and checks the
// arguments.
//
//   route -> place -> sort -> [latent in] -> [weight on input] -> [quantize] -> ggemm gate_up
//   -> glu -> [quantize] -> ggemm down -> [shared experts] -> combine -> [latent out]
#include "api/run.h"

// Hands the listed steps to a backend that runs several at once.
static moe_status flush_steps(run *r)
{
    const int32_t count = r->num_steps;
    r->num_steps = 0;
    return count == 0 ? MOE_OK : r->exec.ctx->backend->run_steps(&r->exec, r->steps, count);
}

// The next op of the run: done now, or listed for a backend that looks at all of them.
static moe_status add_step(run *r, const moei_step *step)
{
    moei_count_run(r->exec.ctx, step->kernel);
    if (r->exec.ctx->backend->run_steps == NULL) {
        return moei_step_run(r->exec.ctx->backend, &r->exec, step);
    }
    if (r->num_steps == MOEI_RUN_STEPS) {
        MOE_TRY(flush_steps(r));
    }
    r->steps[r->num_steps++] = *step;
    return MOE_OK;
}

// One function per op that every context has one kernel for.
#define ADD_STEP(name, OP)                                                                         \
    static moe_status add_##name(run *r, const moek_##name##_args *args)                           \
    {                                                                                              \
        const moei_step step = {                                                                   \
            .op = OP, .kernel = r->exec.ctx->op_kernel[OP], .args = {.name = *args}};              \
        return add_step(r, &step);                                                                 \
    }
ADD_STEP(route, MOEI_OP_ROUTE)
ADD_STEP(place, MOEI_OP_PLACE)
ADD_STEP(sort, MOEI_OP_SORT)
ADD_STEP(quantize, MOEI_OP_QUANTIZE)
ADD_STEP(glu, MOEI_OP_GLU)
ADD_STEP(combine, MOEI_OP_COMBINE)
#undef ADD_STEP

static moe_status add_ggemm(run *r, const moei_kernel *kernel, const moek_ggemm_args *args)
{
    const moei_step step = {.op = MOEI_OP_GGEMM, .kernel = kernel, .args = {.ggemm = *args}};
    return add_step(r, &step);
}

static moe_status place_step(run *r)
{
    const moe_layer_desc *d = r->desc;
    const moe_run_args *a = &r->args;
    const bool given = d->routing == MOE_ROUTING_GIVEN;
    moek_place_args p = {
        .tokens = r->tokens,
        .top_k = r->top_k,
        .num_experts = d->num_experts + d->route.append_shared,
        .num_identity = d->route.zero_experts,
        .num_physical = d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared,
        .num_local = r->plan->routed.count,
        .num_valid = r->num_valid,
        .ids = given ? (const void *)moei_tensor_data(&a->ids) : r->b.route_ids,
        .id_dtype = given ? a->ids.dtype : MOE_I32,
        .id_token_stride = given ? a->ids.stride[0] : r->top_k,
        .weights = given ? (const void *)moei_tensor_data(&a->weights) : r->b.route_weights,
        .weight_dtype = given ? a->weights.dtype : MOE_F32,
        .weight_token_stride = given ? a->weights.stride[0] : r->top_k,
        .replica_table = (const int32_t *)(const void *)moei_tensor_data(&a->replica_table),
        .replica_stride = a->replica_table.stride[0],
        .replica_slots = (int32_t)moei_i64_min(a->replica_table.shape[1], INT32_MAX),
        .replica_count = (const int32_t *)(const void *)moei_tensor_data(&a->replica_count),
        .expert_map = (const int32_t *)(const void *)moei_tensor_data(&a->expert_map),
        .router_ids = r->b.router_ids,
        .local_ids = r->b.local_ids,
        .local_weights = r->b.weights,
        .out_ids = moei_tensor_data(&a->out_ids),
        .out_id_dtype = d->ids_dtype,
        .out_id_stride = a->out_ids.stride[0],
        .out_weights = moei_tensor_data(&a->out_weights),
        .out_weight_dtype = d->weights_dtype,
        .out_weight_stride = a->out_weights.stride[0],
        .load = (int32_t *)(void *)moei_tensor_data(&a->load),
    };
    return add_place(r, &p);
}

static moe_status sort_step(run *r)
{
    const moek_sort_args sort = {
        .tokens = r->tokens,
        .top_k = r->top_k,
        .num_experts = r->plan->routed.count,
        .ids = r->b.local_ids,
        .id_dtype = MOE_I32,
        .id_token_stride = r->top_k,
        .offsets = r->b.offsets,
        .slots = r->b.slots,
        .counts = moei_tensor_data(&r->args.out_counts),
        .count_dtype = MOE_I64,
    };
    return add_sort(r, &sort);
}

// y[rows, n] = x . W^T for one float matrix: latent transforms and the shared experts' gate.
static moe_status linear_step(run *r, moei_linear map, const moei_matrices *w,
                              const moei_operand *x, void *y, moe_dtype y_dtype)
{
    moek_ggemm_args a = {.w = *w,
                         .x = *x,
                         .rows = r->tokens,
                         .row_divisor = 1,
                         .y = y,
                         .y_dtype = y_dtype,
                         .y_row_stride = w->n * (int64_t)dtype_bytes(y_dtype)};
    return add_ggemm(r, r->plan->linear[map], &a);
}

static moei_operand float_operand(const void *data, moe_dtype dtype, int64_t k, int64_t rows)
{
    const int64_t row = k * (int64_t)dtype_bytes(dtype);
    return (moei_operand){
        .data = data, .dtype = dtype, .row_stride = row, .batch_stride = rows * row};
}

// Router weight times x, rounded to x's dtype: one row per slot, or per placed row.
static moe_status weigh_input_step(run *r, moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    const bool by_token = d->x_layout == MOE_X_TOKENS;
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const int32_t per_token = by_token ? r->top_k : 1;
    const int64_t row = r->plan->routed.width * (int64_t)dtype_bytes(d->x_dtype);
    for (int32_t j = 0; j < per_token; j++) {
        moek_combine_args c = {
            .tokens = batched ? r->tokens * r->plan->routed.count : r->tokens,
            .width = r->plan->routed.width,
            .slots_per_token = 1,
            .num_valid = by_token ? r->num_valid
                         : batched
                             ? NULL
                             : (const int32_t *)(const void *)moei_tensor_data(&r->args.offsets) +
                                   r->plan->routed.count,
            .batch_counts =
                batched ? (const int32_t *)(const void *)moei_tensor_data(&r->args.counts) : NULL,
            .batch_rows = r->tokens,
            .slots = x->data,
            .slot_dtype = d->x_dtype,
            .slot_token_stride = x->row_stride,
            .weights = by_token ? (const void *)(r->b.weights + j)
                                : (const void *)moei_tensor_data(&r->args.weights),
            .weight_dtype = MOE_F32,
            .weight_token_stride = per_token,
            .out = (uint8_t *)r->b.weighted_x + j * row,
            .out_dtype = d->x_dtype,
            .out_token_stride = per_token * row,
        };
        MOE_TRY(add_combine(r, &c));
    }
    *x = float_operand(r->b.weighted_x, d->x_dtype, r->plan->routed.width, r->tokens);
    return MOE_OK;
}

/// The rows that a stack of MLPs works on.
typedef struct mlp_rows {
    int32_t batches;        // groups of equal room; 1 with offsets
    int64_t rows;           // of a batch, at most
    const int32_t *offsets; // sorted rows, else NULL
    const int32_t *counts;  // rows of each batch, else NULL
    const int32_t *total;   // device-side number of sorted rows, else NULL
    const int32_t *valid;   // device-side number of rows of a batch that are there, else NULL
    const int32_t *gather;  // sorted row -> slot of x, else NULL
    int32_t gather_divisor;
    const int32_t *scatter; // sorted row -> row of y, else NULL
    const float *row_weight;
    int64_t weight_batch_stride, weight_row_stride;
    uint8_t *y;
    int64_t y_row_stride, y_batch_stride; // bytes
} mlp_rows;

// Quantises rows into the buffers that carve_quantize placed.
static moe_status quantize_step(run *r, moek_quantize_args *q, const moei_operand *x,
                                const int32_t *counts, const int32_t *total, int32_t total_rows,
                                const float *act_scale)
{
    q->x = (uint8_t *)(uintptr_t)x->data;
    q->x_dtype = x->dtype;
    q->x_row_stride = x->row_stride;
    q->x_batch_stride = x->batch_stride;
    q->counts = counts;
    q->total = total;
    q->total_rows = total_rows;
    if (act_scale != NULL && moei_quant_has_global_scale(&q->quant)) {
        q->global_scale = (float *)(uintptr_t)act_scale;
    } else if (act_scale != NULL) {
        q->scales = (void *)(uintptr_t)act_scale;
    }
    return add_quantize(r, q);
}

static const moei_kernel *kernel_of(const moei_mlp *mlp, int g, const moei_matrices *w)
{
    return w->layout == MOEI_LAYOUT_PACKED ? mlp->kernel[g] : mlp->canonical[g];
}

static moe_status mlp_step(run *r, const moei_mlp *mlp, const moei_matrices w[2], mlp_buffers *b,
                           const mlp_rows *rows, const moei_operand *x)
{
    const int64_t gate_up_row = mlp->rows1 * (int64_t)sizeof(float);
    moek_ggemm_args first = {.w = w[0],
                             .x = *x,
                             .offsets = rows->offsets,
                             .counts = rows->counts,
                             .rows = rows->rows,
                             .row_index = rows->gather,
                             .row_divisor = rows->gather_divisor,
                             .y = (uint8_t *)b->gate_up,
                             .y_dtype = MOE_F32,
                             .y_row_stride = gate_up_row,
                             .y_batch_stride = rows->rows * gate_up_row};
    MOE_TRY(add_ggemm(r, kernel_of(mlp, 0, &w[0]), &first));

    const bool quantize_h = moei_mlp_quantizes(mlp, 1);
    const moe_dtype h_dtype = quantize_h ? MOE_F32 : r->desc->inter_dtype;
    moei_operand h = float_operand(b->h, h_dtype, mlp->inter, rows->rows);
    moek_glu_args glu = {.act = mlp->act,
                         .x = first.y,
                         .x_dtype = MOE_F32,
                         .x_row_stride = gate_up_row,
                         .x_batch_stride = first.y_batch_stride,
                         .y = b->h,
                         .y_dtype = h_dtype,
                         .y_row_stride = h.row_stride,
                         .y_batch_stride = h.batch_stride,
                         .inter = mlp->inter,
                         .rows = rows->rows,
                         .batches = rows->batches,
                         .counts = rows->counts,
                         .total = rows->total};
    moei_glu_order(mlp->act.activation, mlp->gate_up, mlp->inter, &glu.gate_offset, &glu.up_offset,
                   &glu.step);
    MOE_TRY(add_glu(r, &glu));

    if (quantize_h) {
        MOE_TRY(quantize_step(r, &b->h_quant, &h, rows->counts,
                              rows->total != NULL ? rows->total : rows->valid, 1, w[1].act_scale));
        h = moei_operand_from_quantize(&b->h_quant);
    }
    moek_ggemm_args second = {.w = w[1],
                              .x = h,
                              .offsets = rows->offsets,
                              .counts = rows->counts,
                              .rows = rows->rows,
                              .row_divisor = 1,
                              .out_index = rows->scatter,
                              .row_weight = rows->row_weight,
                              .weight_batch_stride = rows->weight_batch_stride,
                              .weight_row_stride = rows->weight_row_stride,
                              .y = rows->y,
                              .y_dtype = r->desc->partial_dtype,
                              .y_row_stride = rows->y_row_stride,
                              .y_batch_stride = rows->y_batch_stride};
    return add_ggemm(r, kernel_of(mlp, 1, &w[1]), &second);
}

static void y_in_workspace(run *r, const moei_mlp *mlp, mlp_buffers *b, mlp_rows *rows)
{
    rows->y = b->y;
    rows->y_row_stride = mlp->width * (int64_t)dtype_bytes(r->desc->partial_dtype);
    rows->y_batch_stride = rows->rows * rows->y_row_stride;
}

static moe_status routed_step(run *r, moei_operand x)
{
    const moe_layer_desc *d = r->desc;
    const moei_mlp *mlp = &r->plan->routed;
    mlp_buffers *b = &r->b.routed;
    const bool by_token = d->x_layout == MOE_X_TOKENS;
    mlp_rows rows = {.batches = 1, .rows = r->tokens, .gather_divisor = 1, .weight_row_stride = 1};
    if (by_token) {
        rows.rows = r->tokens * r->top_k;
        rows.offsets = r->b.offsets;
        rows.gather = r->b.slots;
        rows.gather_divisor = d->weight_stage == MOE_WEIGHT_INPUT ? 1 : r->top_k;
        rows.scatter = r->b.slots;
    } else if (d->x_layout == MOE_X_BATCHED) {
        rows.batches = mlp->count;
        rows.counts = (const int32_t *)(const void *)moei_tensor_data(&r->args.counts);
        rows.weight_batch_stride = r->tokens;
    } else {
        rows.offsets = (const int32_t *)(const void *)moei_tensor_data(&r->args.offsets);
    }
    if (rows.offsets != NULL) {
        rows.total = rows.offsets + mlp->count;
    }
    if (d->weight_stage == MOE_WEIGHT_OUTPUT) {
        rows.row_weight = by_token
                              ? r->b.weights
                              : (const float *)(const void *)moei_tensor_data(&r->args.weights);
    }
    if (out_is_direct(r)) {
        rows.y = moei_tensor_data(&r->args.out);
        rows.y_row_stride = moei_tensor_stride_bytes(&r->args.out, r->args.out.ndim - 2);
        rows.y_batch_stride = moei_tensor_stride_bytes(&r->args.out, 0);
    } else {
        y_in_workspace(r, mlp, b, &rows);
    }
    if (d->weight_stage == MOE_WEIGHT_INPUT) {
        MOE_TRY(weigh_input_step(r, &x));
    }
    if (x_is_float(r->plan) && moei_mlp_quantizes(mlp, 0)) {
        // Rows past the valid tokens hold nothing, and a scale that spans rows must not see them.
        const int32_t *total = by_token ? r->num_valid : rows.total;
        const int32_t per_token = by_token && d->weight_stage == MOE_WEIGHT_INPUT ? r->top_k : 1;
        MOE_TRY(quantize_step(r, &b->in, &x, rows.counts, total, per_token,
                              r->weights->gemm[0].act_scale));
        x = moei_operand_from_quantize(&b->in);
    }
    return mlp_step(r, mlp, r->weights->gemm, b, &rows, &x);
}

// sigmoid(gate . x), one scalar per token, in place over the logits.
static moe_status shared_gate_step(run *r)
{
    MOE_TRY(linear_step(r, MOEI_LINEAR_SHARED_GATE, &r->weights->shared_gate, &r->x,
                        r->b.shared_gate, MOE_F32));
    const moek_glu_args sigmoid = {.act = {.activation = MOEI_ACT_SIGMOID},
                                   .x = (const uint8_t *)r->b.shared_gate,
                                   .x_dtype = MOE_F32,
                                   .x_row_stride = sizeof(float),
                                   .step = 1,
                                   .y = (uint8_t *)r->b.shared_gate,
                                   .y_dtype = MOE_F32,
                                   .y_row_stride = sizeof(float),
                                   .inter = 1,
                                   .rows = r->tokens,
                                   .batches = 1};
    return add_glu(r, &sigmoid);
}

static moe_status shared_step(run *r)
{
    const moe_layer_desc *d = r->desc;
    const moei_mlp *mlp = &r->plan->shared;
    mlp_buffers *b = &r->b.shared;
    moei_operand x = r->x;
    x.batch_stride = 0; // every shared expert reads the same rows
    x.scale_batch_stride = 0;
    mlp_rows rows = {
        .batches = mlp->count, .rows = r->tokens, .valid = r->num_valid, .gather_divisor = 1};
    if (d->shared.gate == MOE_SHARED_SIGMOID) {
        MOE_TRY(shared_gate_step(r));
        rows.row_weight = r->b.shared_gate;
        rows.weight_row_stride = 1;
    } else if (d->shared.gate == MOE_SHARED_ROUTER_WEIGHTED) {
        const bool given = d->routing == MOE_ROUTING_GIVEN;
        rows.row_weight =
            given ? (const float *)(const void *)moei_tensor_data(&r->args.shared_weights)
                  : r->b.shared_scores;
        rows.weight_batch_stride = 1;
        rows.weight_row_stride = given ? r->args.shared_weights.stride[0] : mlp->count;
    }
    y_in_workspace(r, mlp, b, &rows);
    if (x_is_float(r->plan) && moei_mlp_quantizes(mlp, 0)) {
        MOE_TRY(
            quantize_step(r, &b->in, &x, NULL, r->num_valid, 1, r->weights->shared[0].act_scale));
        x = moei_operand_from_quantize(&b->in);
        x.batch_stride = 0;
        x.scale_batch_stride = 0;
    }
    return mlp_step(r, mlp, r->weights->shared, b, &rows, &x);
}

// The slots of the routed experts as combine reads them; where x is an identity expert's input.
static moek_combine_args combine_slots(run *r, const moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    const int64_t row = r->plan->routed.width * (int64_t)dtype_bytes(d->partial_dtype);
    moek_combine_args c = {.tokens = r->tokens,
                           .width = r->plan->routed.width,
                           .slots_per_token = r->top_k,
                           .num_valid = r->num_valid,
                           .slots = r->b.routed.y,
                           .slot_dtype = d->partial_dtype,
                           .slot_token_stride = r->top_k * row,
                           .slot_stride = row,
                           .ids = r->b.local_ids,
                           .id_dtype = MOE_I32,
                           .id_token_stride = r->top_k};
    if (d->route.zero_experts > 0) {
        c.router_ids = r->b.router_ids;
        c.identity_first = d->num_experts;
        c.identity_count = d->route.zero_experts;
        c.identity_weights = d->weight_stage == MOE_WEIGHT_NONE ? NULL : r->b.weights;
        c.router_token_stride = r->top_k;
        c.x = x->data;
        c.x_dtype = x->dtype;
        c.x_token_stride = x->row_stride;
    }
    return c;
}

static void add_tail(run *r, moek_combine_args *c)
{
    const moe_layer_desc *d = r->desc;
    if (d->output_bias != 0) {
        c->bias = r->weights->output_bias;
        c->bias_dtype = r->weights->output_bias_dtype;
    }
    if (d->shared.count > 0) {
        const int64_t row = d->hidden * (int64_t)dtype_bytes(d->partial_dtype);
        c->shared = r->b.shared.y;
        c->shared_dtype = d->partial_dtype;
        c->shared_token_stride = row;
        c->shared_stride = r->tokens * row;
        c->num_shared = d->shared.count;
    }
    c->accumulate = d->accumulate != 0;
    c->out = moei_tensor_data(&r->args.out);
    c->out_dtype = d->out_dtype;
    c->out_token_stride = moei_tensor_stride_bytes(&r->args.out, 0);
}

static moe_status combine_step(run *r, const moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    moek_combine_args c = combine_slots(r, x);
    if (d->latent == 0) {
        add_tail(r, &c);
        return add_combine(r, &c);
    }
    // Latent experts: their sum goes through the output transform before the rest is added.
    const int64_t row = d->latent * (int64_t)dtype_bytes(d->partial_dtype);
    c.out = r->b.latent_sum;
    c.out_dtype = d->partial_dtype;
    c.out_token_stride = row;
    MOE_TRY(add_combine(r, &c));
    const moei_operand sum = float_operand(r->b.latent_sum, d->partial_dtype, d->latent, r->tokens);
    MOE_TRY(linear_step(r, MOEI_LINEAR_LATENT_OUT, &r->weights->latent_out, &sum, r->b.latent_out,
                        MOE_F32));
    moek_combine_args tail = {.tokens = r->tokens,
                              .width = d->hidden,
                              .slots_per_token = 1,
                              .num_valid = r->num_valid,
                              .slots = (const uint8_t *)r->b.latent_out,
                              .slot_dtype = MOE_F32,
                              .slot_token_stride = d->hidden * (int64_t)sizeof(float)};
    add_tail(r, &tail);
    return add_combine(r, &tail);
}

// out_mode SLOTS: slot j of every token at a time; absent slots become 0.
static moe_status slots_step(run *r, const moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    for (int32_t j = 0; j < r->top_k; j++) {
        moek_combine_args c = combine_slots(r, x);
        c.slots_per_token = 1;
        c.slots += j * c.slot_stride;
        c.ids = (const int32_t *)c.ids + j;
        c.router_ids = c.router_ids != NULL ? c.router_ids + j : NULL;
        c.identity_weights = c.identity_weights != NULL ? c.identity_weights + j : NULL;
        c.accumulate = d->accumulate != 0;
        c.convert = !c.accumulate;
        c.out = moei_tensor_data(&r->args.out) + j * moei_tensor_stride_bytes(&r->args.out, 1);
        c.out_dtype = d->out_dtype;
        c.out_token_stride = moei_tensor_stride_bytes(&r->args.out, 0);
        MOE_TRY(add_combine(r, &c));
    }
    return MOE_OK;
}

// out_mode LAYOUT where the rows could not be written to out directly.
static moe_status layout_step(run *r)
{
    const moe_layer_desc *d = r->desc;
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const int32_t *offsets = (const int32_t *)(const void *)moei_tensor_data(&r->args.offsets);
    const moek_combine_args c = {
        .tokens = batched ? r->tokens * r->plan->routed.count : r->tokens,
        .width = d->hidden,
        .slots_per_token = 1,
        .num_valid = batched ? NULL : offsets + r->plan->routed.count,
        .batch_counts =
            batched ? (const int32_t *)(const void *)moei_tensor_data(&r->args.counts) : NULL,
        .batch_rows = r->tokens,
        .slots = r->b.routed.y,
        .slot_dtype = d->partial_dtype,
        .slot_token_stride = d->hidden * (int64_t)dtype_bytes(d->partial_dtype),
        .accumulate = d->accumulate != 0,
        .convert = d->accumulate == 0,
        .out = moei_tensor_data(&r->args.out),
        .out_dtype = d->out_dtype,
        .out_token_stride = moei_tensor_stride_bytes(&r->args.out, r->args.out.ndim - 2),
    };
    return add_combine(r, &c);
}

// ---- the run -----------------------------------------------------------------------------------

moe_status moe_run(const moe_plan *plan, const moe_weights *weights, const moe_run_args *args,
                   void *workspace, size_t bytes, void *stream)
{
    MOE_REQUIRE(plan != NULL && weights != NULL && args != NULL, MOE_E_ARGUMENT,
                CALL ": %s is NULL",
                plan == NULL      ? "plan"
                : weights == NULL ? "weights"
                                  : "args");
    moei_step steps[MOEI_RUN_STEPS];
    run r;
    memset(&r, 0, sizeof r);
    r.steps = steps;
    r.plan = plan;
    r.desc = &plan->desc;
    r.weights = weights;
    r.exec = moei_exec_make(plan->ctx, stream);
    r.exec.plan = plan->prepared;
    MOE_TRY(moei_op_begin(plan->ctx, args, &r.args, sizeof r.args, stream, CALL));
    MOE_TRY(moei_run_prepare(&r, workspace, bytes));

    if (plan->desc.x_layout == MOE_X_TOKENS) {
        if (plan->desc.routing == MOE_ROUTING_FROM_LOGITS) {
            MOE_TRY(add_route(&r, &r.route));
        }
        MOE_TRY(place_step(&r));
        MOE_TRY(sort_step(&r));
    }
    moei_operand x = r.x;
    if (plan->desc.latent > 0) {
        MOE_TRY(linear_step(&r, MOEI_LINEAR_LATENT_IN, &weights->latent_in, &r.x, r.b.latent,
                            plan->desc.x_dtype));
        x = float_operand(r.b.latent, plan->desc.x_dtype, plan->desc.latent, r.tokens);
    }
    MOE_TRY(routed_step(&r, x));
    if (plan->desc.shared.count > 0) {
        MOE_TRY(shared_step(&r));
    }
    if (plan->desc.out_mode == MOE_OUT_COMBINED) {
        MOE_TRY(combine_step(&r, &x));
    } else if (plan->desc.out_mode == MOE_OUT_SLOTS) {
        MOE_TRY(slots_step(&r, &x));
    } else if (!out_is_direct(&r)) {
        MOE_TRY(layout_step(&r));
    }
    return flush_steps(&r);
}
