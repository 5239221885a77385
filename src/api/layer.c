// SPDX-License-Identifier: Apache-2.0
// The layer: how a run flows through the ops. moe_run at the end of the file is the whole story;
// what precedes it is the list of workspace buffers, the checks, and one function per step.
//
//   route -> place -> sort -> [latent in] -> [weight on input] -> [quantize] -> ggemm gate_up
//   -> glu -> [quantize] -> ggemm down -> [shared experts] -> combine -> [latent out]
#include <inttypes.h>

#include "api/plan_internal.h"
#include "moe/ops.h"
#include "quant/elements.h"

// ---- workspace --------------------------------------------------------------------------------------

/// Buffers of one stack of MLPs. Rows: sorted slots, batches of rows, or count x tokens.
typedef struct mlp_buffers {
    moek_quantize_args in;     // x as codes, where gemm[0] quantises
    float *gate_up;            // [rows, rows1]
    void *h;                   // [rows, inter] inter_dtype (f32 where it is quantised next)
    moek_quantize_args h_quant; // h as codes, where gemm[1] quantises
    void *y;                   // [rows, width] partial_dtype
} mlp_buffers;

typedef struct buffers {
    int32_t *route_ids;   // [T, k] as computed
    float *route_weights; // [T, k]
    float *shared_scores; // [T, shared_scores]
    int32_t *router_ids;  // [T, k]
    int32_t *local_ids;   // [T, k]
    float *weights;       // [T, k]
    int32_t *offsets;     // [experts + 1]
    int32_t *slots;       // [T * k]
    void *latent;         // [T, L] x_dtype
    void *weighted_x;     // [rows, width] x_dtype: weight stage INPUT
    float *shared_gate;   // [T]: logits, then their sigmoid
    void *latent_sum;     // [T, L] partial_dtype
    float *latent_out;    // [T, H]
    mlp_buffers routed, shared;
} buffers;

static size_t dtype_bytes(moe_dtype dtype)
{
    return (size_t)moe_dtype_bits(dtype) / 8;
}

// Codes and scales of [batches, rows, k], quantised by a resolved descriptor.
static void carve_quantize(moei_arena *arena, const moe_quant_desc *desc, int64_t batches,
                           int64_t rows, int64_t k, moek_quantize_args *out)
{
    moe_quant_desc quant = *desc;
    quant.scale_layout = MOE_SCALE_LAYOUT_ROW; // the layer's own buffers
    moek_quantize_args a = moei_quantize_args_make(&quant);
    const moei_scale_shape scale = moei_quant_scale_shape(&quant, batches, rows, k);
    a.rows = rows;
    a.k = k;
    a.batches = (int32_t)batches;
    a.q_row_stride = moei_quant_row_bytes(quant.elem, k);
    a.q_batch_stride = rows * a.q_row_stride;
    a.q = moei_arena_array(arena, (size_t)(batches * rows), (size_t)a.q_row_stride);
    a.scale_batch_stride = scale.batch_stride;
    a.scale_row_stride = scale.row_stride;
    a.scale_k_stride = scale.k_stride;
    if (!moei_quant_needs_given_scale(&quant) || moei_quant_has_global_scale(&quant)) {
        a.scales = moei_arena_array(arena, scale.elems, dtype_bytes(scale.dtype));
    }
    if (moei_quant_has_global_scale(&quant) && !moei_quant_needs_given_scale(&quant)) {
        a.global_scale = moei_arena_array(arena, 1, sizeof(float));
    }
    if (moei_quantize_is_global(a.info)) {
        a.amax = moei_arena_array(arena, 1, sizeof(uint32_t));
    }
    *out = a;
}

static void carve_mlp(moei_arena *arena, const moe_plan *plan, const moei_mlp *mlp,
                      bool quantize_input, int64_t in_batches, int64_t in_rows, int64_t batches,
                      int64_t rows, mlp_buffers *b)
{
    const size_t all = (size_t)(batches * rows);
    if (quantize_input) {
        carve_quantize(arena, &mlp->gemm[0].act, in_batches, in_rows, mlp->width, &b->in);
    }
    b->gate_up = moei_arena_array(arena, moei_size_mul(all, (size_t)mlp->rows1), sizeof(float));
    const bool quantize_h = moei_mlp_quantizes(mlp, 1);
    b->h = moei_arena_array(arena, moei_size_mul(all, (size_t)mlp->inter),
                            quantize_h ? sizeof(float) : dtype_bytes(plan->desc.inter_dtype));
    if (quantize_h) {
        carve_quantize(arena, &mlp->gemm[1].act, batches, rows, mlp->inter, &b->h_quant);
    }
    b->y = moei_arena_array(arena, moei_size_mul(all, (size_t)mlp->width),
                            dtype_bytes(plan->desc.partial_dtype));
}

static bool x_is_float(const moe_plan *plan)
{
    return (MOEI_DTYPE_BIT(plan->desc.x_dtype) & MOEI_DTYPES_FLOAT) != 0;
}

static int32_t slots_per_token(const moe_plan *plan)
{
    return plan->desc.top_k + plan->desc.route.append_shared;
}

/// The one list of buffers: measures with a NULL base, places otherwise.
static void carve(moei_arena *arena, const moe_plan *plan, int64_t tokens, buffers *b)
{
    const moe_layer_desc *d = &plan->desc;
    const bool by_token = d->x_layout == MOE_X_TOKENS;
    const size_t t = (size_t)tokens;
    const size_t slots = t * (size_t)slots_per_token(plan);
    const size_t width = (size_t)plan->routed.width;
    const int64_t batches = d->x_layout == MOE_X_BATCHED ? plan->routed.count : 1;
    const int64_t rows = by_token ? (int64_t)slots : tokens;
    const size_t x_bytes = x_is_float(plan) ? dtype_bytes(d->x_dtype) : 0;
    memset(b, 0, sizeof *b);
    if (by_token) {
        if (d->routing == MOE_ROUTING_FROM_LOGITS) {
            b->route_ids = moei_arena_array(arena, slots, sizeof(int32_t));
            b->route_weights = moei_arena_array(arena, slots, sizeof(float));
            b->shared_scores =
                moei_arena_array(arena, t * (size_t)d->route.shared_scores, sizeof(float));
        }
        b->router_ids = moei_arena_array(arena, slots, sizeof(int32_t));
        b->local_ids = moei_arena_array(arena, slots, sizeof(int32_t));
        b->weights = moei_arena_array(arena, slots, sizeof(float));
        b->offsets = moei_arena_array(arena, (size_t)plan->routed.count + 1, sizeof(int32_t));
        b->slots = moei_arena_array(arena, slots, sizeof(int32_t));
    }
    if (d->latent > 0) {
        b->latent = moei_arena_array(arena, t * width, x_bytes);
        b->latent_sum = moei_arena_array(arena, t * width, dtype_bytes(d->partial_dtype));
        b->latent_out = moei_arena_array(arena, t * (size_t)d->hidden, sizeof(float));
    }
    if (d->weight_stage == MOE_WEIGHT_INPUT) {
        b->weighted_x = moei_arena_array(arena, moei_size_mul((size_t)(batches * rows), width),
                                         x_bytes);
    }
    const int64_t in_rows = by_token && d->weight_stage != MOE_WEIGHT_INPUT ? tokens : rows;
    carve_mlp(arena, plan, &plan->routed,
              x_is_float(plan) && moei_mlp_quantizes(&plan->routed, 0), batches, in_rows, batches,
              rows, &b->routed);
    if (d->shared.count > 0) {
        b->shared_gate = moei_arena_array(arena, t, sizeof(float));
        carve_mlp(arena, plan, &plan->shared,
                  x_is_float(plan) && moei_mlp_quantizes(&plan->shared, 0), 1, tokens,
                  plan->shared.count, tokens, &b->shared);
    }
}

size_t moei_layer_workspace(const moe_plan *plan, int64_t num_tokens)
{
    buffers unused;
    moei_arena arena = {NULL, 0};
    carve(&arena, plan, num_tokens, &unused);
    return arena.used;
}

// ---- arguments --------------------------------------------------------------------------------------

/// What a run works on: checked views as pointers, and the buffers.
typedef struct run {
    const moe_plan *plan;
    const moe_layer_desc *desc;
    const moe_weights *weights;
    moe_run_args args;
    moek_route_args route; // FROM_LOGITS
    moei_exec exec;
    int64_t tokens;
    int32_t top_k; // slots per token
    const int32_t *num_valid;
    moei_operand x; // as it arrived
    buffers b;
} run;

#define CALL "moe_run"

#define NUM_VIEWS 23

// Every view of a run, and the workspace. What is not written is read.
static void list_views(const moe_run_args *a, const moe_tensor *workspace,
                       moei_view views[NUM_VIEWS])
{
    const moei_view all[NUM_VIEWS] = {
        {workspace, "workspace", true},
        {&a->out, "args.out", true},
        {&a->out_ids, "args.out_ids", true},
        {&a->out_weights, "args.out_weights", true},
        {&a->out_counts, "args.out_counts", true},
        {&a->load, "args.load", true},
        {&a->x, "args.x", false},
        {&a->x_scales, "args.x_scales", false},
        {&a->logits, "args.logits", false},
        {&a->ids, "args.ids", false},
        {&a->weights, "args.weights", false},
        {&a->shared_weights, "args.shared_weights", false},
        {&a->correction_bias, "args.correction_bias", false},
        {&a->scale_tensor, "args.scale_tensor", false},
        {&a->hash_table, "args.hash_table", false},
        {&a->token_ids, "args.token_ids", false},
        {&a->append_gate, "args.append_gate", false},
        {&a->expert_map, "args.expert_map", false},
        {&a->replica_table, "args.replica_table", false},
        {&a->replica_count, "args.replica_count", false},
        {&a->counts, "args.counts", false},
        {&a->offsets, "args.offsets", false},
        {&a->num_valid, "args.num_valid", false},
    };
    memcpy(views, all, sizeof all);
}

static moe_status check_absent(const moe_tensor *t, const char *name, const char *why)
{
    MOE_REQUIRE(t->data == NULL, MOE_E_ARGUMENT, CALL ": args.%s is given, but %s", name, why);
    return MOE_OK;
}

// What the kernels read as whole elements is aligned to them; x, its scales and out need not be.
static moe_status check_view(const moe_tensor *t, const char *name, uint32_t dtypes, int ndim,
                             const int64_t *shape)
{
    return moei_route_view_check(t, CALL, name, dtypes, ndim, shape);
}

static moe_status check_routing_args(const run *r)
{
    const moe_layer_desc *d = r->desc;
    const moe_run_args *a = &r->args;
    const bool from_logits = d->routing == MOE_ROUTING_FROM_LOGITS;
    const bool given = d->routing == MOE_ROUTING_GIVEN;
    const int64_t shape[2] = {r->tokens, d->top_k};
    if (!from_logits) {
        const char *why = "the descriptor's routing is not FROM_LOGITS";
        MOE_TRY(check_absent(&a->logits, "logits", why));
        MOE_TRY(check_absent(&a->correction_bias, "correction_bias", why));
        MOE_TRY(check_absent(&a->scale_tensor, "scale_tensor", why));
        MOE_TRY(check_absent(&a->hash_table, "hash_table", why));
        MOE_TRY(check_absent(&a->token_ids, "token_ids", why));
        MOE_TRY(check_absent(&a->append_gate, "append_gate", why));
    }
    if (given) {
        MOE_TRY(check_view(&a->ids, "args.ids", MOEI_DTYPE_BIT(d->ids_dtype), 2,
                                  shape));
        if (d->weight_stage == MOE_WEIGHT_NONE) {
            MOE_TRY(check_absent(&a->weights, "weights", "the descriptor's weight_stage is NONE"));
        } else {
            MOE_TRY(check_view(&a->weights, "args.weights", MOEI_DTYPE_BIT(d->weights_dtype), 2, shape));
        }
    } else {
        MOE_TRY(check_absent(&a->ids, "ids", "the descriptor's routing is not GIVEN"));
    }
    if (from_logits) {
        MOE_TRY(check_absent(&a->weights, "weights", "the descriptor's routing is FROM_LOGITS"));
    }
    if (given && d->shared.count > 0 && d->shared.gate == MOE_SHARED_ROUTER_WEIGHTED) {
        const int64_t shared_shape[2] = {r->tokens, d->shared.count};
        MOE_TRY(check_view(&a->shared_weights, "args.shared_weights", MOEI_DTYPE_BIT(MOE_F32), 2, shared_shape));
    } else {
        MOE_TRY(check_absent(&a->shared_weights, "shared_weights",
                             "no given routing weighs the shared experts"));
    }
    if (d->expert_map != 0) {
        const int64_t physical =
            d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
        MOE_TRY(check_view(&a->expert_map, "args.expert_map", MOEI_DTYPE_BIT(MOE_I32),
                                  1, &physical));
    } else {
        MOE_TRY(check_absent(&a->expert_map, "expert_map", "the descriptor's expert_map is 0"));
    }
    if (d->replicas > 0) {
        const int64_t table[2] = {d->num_experts, -1};
        MOE_TRY(check_view(&a->replica_table, "args.replica_table", MOEI_DTYPE_BIT(MOE_I32), 2, table));
        MOE_TRY(check_view(&a->replica_count, "args.replica_count", MOEI_DTYPE_BIT(MOE_I32), 1, table));
    } else {
        MOE_TRY(check_absent(&a->replica_table, "replica_table", "the descriptor's replicas is 0"));
        MOE_TRY(check_absent(&a->replica_count, "replica_count", "the descriptor's replicas is 0"));
    }
    return MOE_OK;
}

// Rows per expert: host-visible on the CPU, so their values are checked too.
static moe_status check_placement(const run *r)
{
    const moe_layer_desc *d = r->desc;
    const moe_run_args *a = &r->args;
    const int64_t experts = r->plan->routed.count;
    if (d->x_layout == MOE_X_BATCHED) {
        MOE_TRY(check_view(&a->counts, "args.counts", MOEI_DTYPE_BIT(MOE_I32), 1,
                                  &experts));
        MOE_TRY(moei_counts_check((const int32_t *)(const void *)moei_tensor_data(&a->counts),
                                  experts, r->tokens, CALL));
    } else {
        MOE_TRY(check_absent(&a->counts, "counts", "the descriptor's x_layout is not BATCHED"));
    }
    if (d->x_layout == MOE_X_SORTED) {
        const int64_t entries = experts + 1;
        MOE_TRY(check_view(&a->offsets, "args.offsets", MOEI_DTYPE_BIT(MOE_I32), 1,
                                  &entries));
        const int32_t *p = (const int32_t *)(const void *)moei_tensor_data(&a->offsets);
        for (int64_t e = 0; e < experts; e++) {
            MOE_REQUIRE(p[0] == 0 && p[e] <= p[e + 1] && p[e + 1] <= r->tokens, MOE_E_VALUE,
                        CALL ": args.offsets[%" PRId64 "] = %d, [%" PRId64
                             "] = %d; must ascend from 0 to at most %" PRId64,
                        e, (int)p[e], e + 1, (int)p[e + 1], r->tokens);
        }
    } else {
        MOE_TRY(check_absent(&a->offsets, "offsets", "the descriptor's x_layout is not SORTED"));
    }
    if (d->routing != MOE_ROUTING_PLACED) {
        return MOE_OK;
    }
    if (d->weight_stage == MOE_WEIGHT_NONE) {
        return check_absent(&a->weights, "weights", "the descriptor's weight_stage is NONE");
    }
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const int64_t shape[2] = {batched ? experts : r->tokens, r->tokens};
    MOE_TRY(check_view(&a->weights, "args.weights", MOEI_DTYPE_BIT(MOE_F32),
                              batched ? 2 : 1, shape));
    MOE_REQUIRE(!batched || a->weights.stride[0] == r->tokens, MOE_E_SHAPE,
                CALL ": args.weights has stride %" PRId64 " between experts, must be %" PRId64,
                a->weights.stride[0], r->tokens);
    return MOE_OK;
}

static moe_status check_x(run *r)
{
    const moe_layer_desc *d = r->desc;
    const moe_tensor *x = &r->args.x;
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const moe_quant_desc none = {0};
    const moe_quant_desc *act = x_is_float(r->plan) ? &none : &d->gemm[0].act;
    moe_tensor given_scale = {0};
    int64_t rows = 0;
    int64_t k = d->hidden;
    if (!x_is_float(r->plan) && r->weights->gemm[0].act_scale != NULL) {
        given_scale = moe_tensor_1d(r->weights->gemm[0].act_scale, MOE_F32, 1);
    }
    MOE_REQUIRE(x->ndim == (batched ? 3 : 2), MOE_E_SHAPE,
                CALL ": args.x has %d dimensions, x_layout says %d", (int)x->ndim, batched ? 3 : 2);
    MOE_TRY(moei_operand_from_tensors(x, &r->args.x_scales, &given_scale, act, CALL, &r->x, &rows,
                                      &k));
    MOE_REQUIRE(r->x.dtype == d->x_dtype, MOE_E_DTYPE, CALL ": args.x is %s, the plan takes %s",
                moe_dtype_name(x->dtype), moe_dtype_name(d->x_dtype));
    MOE_REQUIRE(rows == r->tokens && k == d->hidden, MOE_E_SHAPE,
                CALL ": args.x is [.., %" PRId64 ", %" PRId64 "], must be [.., %" PRId64
                     ", %" PRId64 "] (num_tokens, hidden)",
                rows, k, r->tokens, d->hidden);
    MOE_REQUIRE(!batched || x->shape[0] == r->plan->routed.count, MOE_E_SHAPE,
                CALL ": args.x has %" PRId64 " experts, the plan %d", x->shape[0],
                (int)r->plan->routed.count);
    // The weighted copy of x is made over rows at one stride.
    MOE_REQUIRE(!batched || d->weight_stage != MOE_WEIGHT_INPUT ||
                    x->stride[0] == x->shape[1] * x->stride[1],
                MOE_E_SHAPE,
                CALL ": args.x has stride %" PRId64 " between experts, weight_stage INPUT needs "
                     "%" PRId64,
                x->stride[0], x->shape[1] * x->stride[1]);
    return MOE_OK;
}

static bool out_is_direct(const run *r)
{
    return moei_plan_writes_out_directly(r->plan);
}

static moe_status check_outputs(const run *r)
{
    const moe_layer_desc *d = r->desc;
    const moe_run_args *a = &r->args;
    const int64_t experts = r->plan->routed.count;
    const uint32_t dtype = MOEI_DTYPE_BIT(d->out_dtype);
    const int64_t combined[2] = {r->tokens, d->hidden};
    const int64_t slots[3] = {r->tokens, r->top_k, d->hidden};
    const int64_t batched[3] = {experts, r->tokens, d->hidden};
    const bool three = d->out_mode == MOE_OUT_SLOTS || d->x_layout == MOE_X_BATCHED;
    MOE_TRY(moei_tensor_check(&a->out, CALL, "args.out", dtype, three ? 3 : 2,
                              !three                         ? combined
                              : d->out_mode == MOE_OUT_SLOTS ? slots
                                                             : batched));
    MOE_REQUIRE(d->x_layout != MOE_X_BATCHED || out_is_direct(r) ||
                    a->out.stride[0] == a->out.shape[1] * a->out.stride[1],
                MOE_E_SHAPE,
                CALL ": args.out has stride %" PRId64 " between experts, must be %" PRId64
                     " where out_dtype differs from partial_dtype or accumulate is set",
                a->out.stride[0], a->out.shape[1] * a->out.stride[1]);
    MOE_TRY(moei_tensor_check_unfolded(&a->out, CALL, "args.out"));
    const bool placed = d->routing == MOE_ROUTING_PLACED;
    if (placed) {
        const char *why = "the descriptor's routing is PLACED";
        MOE_TRY(check_absent(&a->out_ids, "out_ids", why));
        MOE_TRY(check_absent(&a->out_weights, "out_weights", why));
        MOE_TRY(check_absent(&a->out_counts, "out_counts", why));
        MOE_TRY(check_absent(&a->load, "load", why));
        MOE_TRY(check_absent(&a->num_valid, "num_valid", why));
        return MOE_OK;
    }
    const int64_t per_slot[2] = {r->tokens, r->top_k};
    if (a->out_ids.data != NULL) {
        MOE_TRY(check_view(&a->out_ids, "args.out_ids", MOEI_DTYPE_BIT(d->ids_dtype),
                                  2, per_slot));
        MOE_TRY(moei_tensor_check_unfolded(&a->out_ids, CALL, "args.out_ids"));
    }
    if (a->out_weights.data != NULL) {
        MOE_TRY(check_view(&a->out_weights, "args.out_weights", MOEI_DTYPE_BIT(d->weights_dtype), 2, per_slot));
        MOE_TRY(moei_tensor_check_unfolded(&a->out_weights, CALL, "args.out_weights"));
    }
    if (a->out_counts.data != NULL) {
        MOE_TRY(check_view(&a->out_counts, "args.out_counts", MOEI_DTYPE_BIT(MOE_I64),
                                  1, &experts));
    }
    if (a->load.data != NULL) {
        const int64_t physical =
            d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
        MOE_TRY(check_view(&a->load, "args.load", MOEI_DTYPE_BIT(MOE_I32), 1,
                                  &physical));
    }
    if (a->num_valid.data != NULL) {
        const int64_t one = 1;
        MOE_TRY(check_view(&a->num_valid, "args.num_valid", MOEI_DTYPE_BIT(MOE_I32), 1, &one));
    }
    return MOE_OK;
}

// ---- steps ------------------------------------------------------------------------------------------

static const moei_kernel *kernel_of(const run *r, moei_op op)
{
    const moei_kernel *kernel = r->exec.ctx->op_kernel[op];
    moei_count_run(r->exec.ctx, kernel);
    return kernel;
}

// Checks the router's views and fills its kernels' arguments, now that the workspace is placed.
static moe_status prepare_route(run *r)
{
    const moe_run_args *a = &r->args;
    moe_route_args route;
    memset(&route, 0, sizeof route);
    route.struct_size = sizeof route;
    route.desc = r->desc->route;
    route.num_experts = r->desc->num_experts;
    route.top_k = r->desc->top_k;
    route.logits = a->logits;
    route.correction_bias = a->correction_bias;
    route.scale_tensor = a->scale_tensor;
    route.hash_table = a->hash_table;
    route.token_ids = a->token_ids;
    route.shared_gate = a->append_gate;
    route.num_valid = a->num_valid;
    route.ids = moe_tensor_2d(r->b.route_ids, MOE_I32, r->tokens, r->top_k);
    route.weights = moe_tensor_2d(r->b.route_weights, MOE_F32, r->tokens, r->top_k);
    if (r->desc->route.shared_scores > 0) {
        route.shared_weights = moe_tensor_2d(r->b.shared_scores, MOE_F32, r->tokens,
                                             r->desc->route.shared_scores);
    }
    const uint32_t dtype = MOEI_DTYPE_BIT(r->desc->logits_dtype);
    const int64_t shape[2] = {r->tokens, moei_route_rows(&route.desc, route.num_experts)};
    MOE_TRY(check_view(&a->logits, "args.logits", dtype, 2, shape));
    return moei_route_prepare(&route, CALL, &r->route);
}

static moe_status route_step(const run *r)
{
    return r->exec.ctx->backend->route(&r->exec, kernel_of(r, MOEI_OP_ROUTE), &r->route);
}

static moe_status place_step(const run *r)
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
    return r->exec.ctx->backend->place(&r->exec, kernel_of(r, MOEI_OP_PLACE), &p);
}

static moe_status sort_step(const run *r)
{
    moe_sort_args sort;
    memset(&sort, 0, sizeof sort);
    sort.struct_size = sizeof sort;
    sort.num_experts = r->plan->routed.count;
    sort.ids = moe_tensor_2d(r->b.local_ids, MOE_I32, r->tokens, r->top_k);
    sort.offsets = moe_tensor_1d(r->b.offsets, MOE_I32, (int64_t)r->plan->routed.count + 1);
    sort.slots = moe_tensor_1d(r->b.slots, MOE_I32, r->tokens * r->top_k);
    sort.counts = r->args.out_counts;
    return moe_sort(r->exec.ctx, &sort, r->exec.stream);
}

// y[rows, n] = x . W^T for one float matrix: latent transforms and the shared experts' gate.
static moe_status linear_step(const run *r, moei_linear map, const moei_matrices *w,
                              const moei_operand *x, void *y, moe_dtype y_dtype)
{
    moek_ggemm_args a = {.w = *w,
                         .x = *x,
                         .rows = r->tokens,
                         .row_divisor = 1,
                         .y = y,
                         .y_dtype = y_dtype,
                         .y_row_stride = w->n * (int64_t)dtype_bytes(y_dtype)};
    moei_count_run(r->exec.ctx, r->plan->linear[map]);
    return r->exec.ctx->backend->ggemm(&r->exec, r->plan->linear[map], &a);
}

static moei_operand float_operand(const void *data, moe_dtype dtype, int64_t k, int64_t rows)
{
    const int64_t row = k * (int64_t)dtype_bytes(dtype);
    return (moei_operand){
        .data = data, .dtype = dtype, .row_stride = row, .batch_stride = rows * row};
}

// Router weight times x, rounded to x's dtype: one row per slot, or per placed row.
static moe_status weigh_input_step(const run *r, moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    const bool by_token = d->x_layout == MOE_X_TOKENS;
    const bool batched = d->x_layout == MOE_X_BATCHED;
    const int32_t per_token = by_token ? r->top_k : 1;
    const int64_t row = r->plan->routed.width * (int64_t)dtype_bytes(d->x_dtype);
    const moei_kernel *kernel = kernel_of(r, MOEI_OP_COMBINE);
    for (int32_t j = 0; j < per_token; j++) {
        moek_combine_args c = {
            .tokens = batched ? r->tokens * r->plan->routed.count : r->tokens,
            .width = r->plan->routed.width,
            .slots_per_token = 1,
            .num_valid = by_token               ? r->num_valid
                         : batched              ? NULL
                                                : (const int32_t *)(const void *)moei_tensor_data(
                                         &r->args.offsets) +
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
        MOE_TRY(r->exec.ctx->backend->combine(&r->exec, kernel, &c));
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
static moe_status quantize_step(const run *r, moek_quantize_args *q, const moei_operand *x,
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
    return r->exec.ctx->backend->quantize(&r->exec, kernel_of(r, MOEI_OP_QUANTIZE), q);
}

static moe_status mlp_step(const run *r, const moei_mlp *mlp, const moei_matrices w[2],
                           mlp_buffers *b, const mlp_rows *rows, const moei_operand *x)
{
    const moei_backend *backend = r->exec.ctx->backend;
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
    moei_count_run(r->exec.ctx, mlp->kernel[0]);
    MOE_TRY(backend->ggemm(&r->exec, mlp->kernel[0], &first));

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
    MOE_TRY(backend->glu(&r->exec, kernel_of(r, MOEI_OP_GLU), &glu));

    if (quantize_h) {
        MOE_TRY(quantize_step(r, &b->h_quant, &h, rows->counts,
                              rows->total != NULL ? rows->total : rows->valid, 1,
                              w[1].act_scale));
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
    moei_count_run(r->exec.ctx, mlp->kernel[1]);
    return backend->ggemm(&r->exec, mlp->kernel[1], &second);
}

static void y_in_workspace(const run *r, const moei_mlp *mlp, mlp_buffers *b, mlp_rows *rows)
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
        const int32_t per_token =
            by_token && d->weight_stage == MOE_WEIGHT_INPUT ? r->top_k : 1;
        MOE_TRY(quantize_step(r, &b->in, &x, rows.counts, total, per_token,
                              r->weights->gemm[0].act_scale));
        x = moei_operand_from_quantize(&b->in);
    }
    return mlp_step(r, mlp, r->weights->gemm, b, &rows, &x);
}

// sigmoid(gate . x), one scalar per token, in place over the logits.
static moe_status shared_gate_step(const run *r)
{
    MOE_TRY(linear_step(r, MOEI_LINEAR_SHARED_GATE, &r->weights->shared_gate, &r->x, r->b.shared_gate,
                        MOE_F32));
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
    return r->exec.ctx->backend->glu(&r->exec, kernel_of(r, MOEI_OP_GLU), &sigmoid);
}

static moe_status shared_step(run *r)
{
    const moe_layer_desc *d = r->desc;
    const moei_mlp *mlp = &r->plan->shared;
    mlp_buffers *b = &r->b.shared;
    moei_operand x = r->x;
    x.batch_stride = 0; // every shared expert reads the same rows
    x.scale_batch_stride = 0;
    mlp_rows rows = {.batches = mlp->count,
                     .rows = r->tokens,
                     .valid = r->num_valid,
                     .gather_divisor = 1};
    if (d->shared.gate == MOE_SHARED_SIGMOID) {
        MOE_TRY(shared_gate_step(r));
        rows.row_weight = r->b.shared_gate;
        rows.weight_row_stride = 1;
    } else if (d->shared.gate == MOE_SHARED_ROUTER_WEIGHTED) {
        const bool given = d->routing == MOE_ROUTING_GIVEN;
        rows.row_weight = given ? (const float *)(const void *)moei_tensor_data(
                                      &r->args.shared_weights)
                                : r->b.shared_scores;
        rows.weight_batch_stride = 1;
        rows.weight_row_stride = given ? r->args.shared_weights.stride[0] : mlp->count;
    }
    y_in_workspace(r, mlp, b, &rows);
    if (x_is_float(r->plan) && moei_mlp_quantizes(mlp, 0)) {
        MOE_TRY(quantize_step(r, &b->in, &x, NULL, r->num_valid, 1,
                              r->weights->shared[0].act_scale));
        x = moei_operand_from_quantize(&b->in);
        x.batch_stride = 0;
        x.scale_batch_stride = 0;
    }
    return mlp_step(r, mlp, r->weights->shared, b, &rows, &x);
}

// The slots of the routed experts as combine reads them; where x is an identity expert's input.
static moek_combine_args combine_slots(const run *r, const moei_operand *x)
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

static void add_tail(const run *r, moek_combine_args *c)
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

static moe_status combine_step(const run *r, const moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    const moei_backend *backend = r->exec.ctx->backend;
    const moei_kernel *kernel = kernel_of(r, MOEI_OP_COMBINE);
    moek_combine_args c = combine_slots(r, x);
    if (d->latent == 0) {
        add_tail(r, &c);
        return backend->combine(&r->exec, kernel, &c);
    }
    // Latent experts: their sum goes through the output transform before the rest is added.
    const int64_t row = d->latent * (int64_t)dtype_bytes(d->partial_dtype);
    c.out = r->b.latent_sum;
    c.out_dtype = d->partial_dtype;
    c.out_token_stride = row;
    MOE_TRY(backend->combine(&r->exec, kernel, &c));
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
    return backend->combine(&r->exec, kernel, &tail);
}

// out_mode SLOTS: slot j of every token at a time; absent slots become 0.
static moe_status slots_step(const run *r, const moei_operand *x)
{
    const moe_layer_desc *d = r->desc;
    const moei_kernel *kernel = kernel_of(r, MOEI_OP_COMBINE);
    for (int32_t j = 0; j < r->top_k; j++) {
        moek_combine_args c = combine_slots(r, x);
        c.slots_per_token = 1;
        c.slots += j * c.slot_stride;
        c.ids = (const int32_t *)c.ids + j;
        c.router_ids = c.router_ids != NULL ? c.router_ids + j : NULL;
        c.identity_weights = c.identity_weights != NULL ? c.identity_weights + j : NULL;
        c.accumulate = d->accumulate != 0;
        c.out = moei_tensor_data(&r->args.out) + j * moei_tensor_stride_bytes(&r->args.out, 1);
        c.out_dtype = d->out_dtype;
        c.out_token_stride = moei_tensor_stride_bytes(&r->args.out, 0);
        MOE_TRY(r->exec.ctx->backend->combine(&r->exec, kernel, &c));
    }
    return MOE_OK;
}

// out_mode LAYOUT where the rows could not be written to out directly.
static moe_status layout_step(const run *r)
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
        .out = moei_tensor_data(&r->args.out),
        .out_dtype = d->out_dtype,
        .out_token_stride = moei_tensor_stride_bytes(&r->args.out, r->args.out.ndim - 2),
    };
    return r->exec.ctx->backend->combine(&r->exec, kernel_of(r, MOEI_OP_COMBINE), &c);
}

// ---- the run ----------------------------------------------------------------------------------------

// Checks everything and places the buffers; nothing has been written when it fails.
static moe_status prepare(run *r, void *workspace, size_t bytes)
{
    const moe_plan *plan = r->plan;
    const moe_run_args *a = &r->args;
    moei_view views[NUM_VIEWS];
    moe_tensor whole = moe_tensor_1d(workspace, MOE_U8, 0);
    list_views(a, &whole, views);
    MOE_TRY(moei_views_check_device(views, NUM_VIEWS, plan->ctx->backend->device, CALL));
    MOE_REQUIRE(r->weights->plan == plan, MOE_E_ARGUMENT,
                CALL ": the weights were made for another plan");
    MOE_REQUIRE(a->num_tokens >= 0 && a->num_tokens <= plan->desc.max_tokens, MOE_E_ARGUMENT,
                CALL ": args.num_tokens = %" PRId64 ", must be 0..%" PRId64 " (max_tokens)",
                a->num_tokens, plan->desc.max_tokens);
    r->tokens = a->num_tokens;
    r->top_k = slots_per_token(plan);
    r->num_valid = (const int32_t *)(const void *)moei_tensor_data(&a->num_valid);
    MOE_TRY(moei_weights_check_complete(r->weights, CALL));
    MOE_TRY(check_x(r));
    MOE_TRY(check_routing_args(r));
    MOE_TRY(check_placement(r));
    MOE_TRY(check_outputs(r));
    const size_t need = moei_layer_workspace(plan, r->tokens);
    MOE_REQUIRE(bytes >= need && (workspace != NULL || need == 0), MOE_E_WORKSPACE,
                CALL ": workspace of %zu bytes, %" PRId64 " tokens need %zu",
                workspace == NULL ? 0 : bytes, r->tokens, need);
    MOE_REQUIRE((uintptr_t)workspace % MOEI_ARENA_ALIGN == 0, MOE_E_ALIGNMENT,
                CALL ": workspace is not aligned to %d bytes", MOEI_ARENA_ALIGN);
    moei_arena arena = {workspace, 0};
    carve(&arena, plan, r->tokens, &r->b);
    if (r->desc->routing == MOE_ROUTING_FROM_LOGITS) {
        MOE_TRY(prepare_route(r));
    }
    whole.shape[0] = need < INT64_MAX ? (int64_t)need : INT64_MAX;
    return moei_views_check_overlap(views, NUM_VIEWS, CALL);
}

moe_status moe_run(const moe_plan *plan, const moe_weights *weights, const moe_run_args *args,
                   void *workspace, size_t bytes, void *stream)
{
    MOE_REQUIRE(plan != NULL && weights != NULL && args != NULL, MOE_E_ARGUMENT, CALL ": %s is NULL",
                plan == NULL      ? "plan"
                : weights == NULL ? "weights"
                                  : "args");
    run r;
    memset(&r, 0, sizeof r);
    r.plan = plan;
    r.desc = &plan->desc;
    r.weights = weights;
    r.exec = (moei_exec){plan->ctx, stream};
    MOE_TRY(moei_op_begin(plan->ctx, args, &r.args, sizeof r.args, stream, CALL));
    MOE_TRY(prepare(&r, workspace, bytes));

    if (plan->desc.x_layout == MOE_X_TOKENS) {
        if (plan->desc.routing == MOE_ROUTING_FROM_LOGITS) {
            MOE_TRY(route_step(&r));
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
    switch (plan->desc.out_mode) {
    case MOE_OUT_COMBINED:
        return combine_step(&r, &x);
    case MOE_OUT_SLOTS:
        return slots_step(&r, &x);
    default:
        return out_is_direct(&r) ? MOE_OK : layout_step(&r);
    }
}
