// SPDX-License-Identifier: Apache-2.0
// Before a run: the one list of workspace buffers, which the size query measures and a run places,
// and the checks of every argument.
#include <inttypes.h>

#include "api/run.h"

// ---- workspace ---------------------------------------------------------------------------------

// Codes and scales of [batches, rows, k], quantised by a resolved descriptor.
static void carve_quantize(moei_arena *arena, const moe_quant_desc *quant, int64_t batches,
                           int64_t rows, int64_t k, moek_quantize_args *out)
{
    moek_quantize_args a = moei_quantize_args_make(quant);
    const moei_scale_shape scale = moei_quant_scale_shape(quant, batches, rows, k);
    a.rows = rows;
    a.k = k;
    a.batches = (int32_t)batches;
    a.q_row_stride = moei_quant_row_bytes(quant->elem, k);
    a.q_batch_stride = rows * a.q_row_stride;
    a.q = moei_arena_array(arena, (size_t)(batches * rows), (size_t)a.q_row_stride);
    a.scale_batch_stride = scale.batch_stride;
    // Scales of neighbouring rows lie side by side, as tiles of a product read them.
    const bool by_column = scale.dtype == MOE_F32 && scale.k_stride == 1 && scale.row_stride > 1;
    a.scale_row_stride = by_column ? 1 : scale.row_stride;
    a.scale_k_stride = by_column ? rows : scale.k_stride;
    if (!moei_quant_needs_given_scale(quant) || moei_quant_has_global_scale(quant)) {
        a.scales = moei_arena_array(arena, scale.elems, dtype_bytes(scale.dtype));
    }
    if (moei_quant_has_global_scale(quant) && !moei_quant_needs_given_scale(quant)) {
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
        b->weighted_x =
            moei_arena_array(arena, moei_size_mul((size_t)(batches * rows), width), x_bytes);
    }
    const int64_t in_rows = by_token && d->weight_stage != MOE_WEIGHT_INPUT ? tokens : rows;
    carve_mlp(arena, plan, &plan->routed, x_is_float(plan) && moei_mlp_quantizes(&plan->routed, 0),
              batches, in_rows, batches, rows, &b->routed);
    if (d->shared.count > 0) {
        b->shared_gate = moei_arena_array(arena, t, sizeof(float));
        carve_mlp(arena, plan, &plan->shared,
                  x_is_float(plan) && moei_mlp_quantizes(&plan->shared, 0), 1, tokens,
                  plan->shared.count, tokens, &b->shared);
    }
    const moei_backend *backend = plan->ctx->backend;
    if (backend->scratch_bytes != NULL) {
        const moei_exec exec = moei_exec_make(plan->ctx, NULL);
        b->scratch = moei_arena_take(arena, backend->scratch_bytes(&exec, d, tokens));
    }
}

size_t moei_layer_workspace(const moe_plan *plan, int64_t num_tokens)
{
    buffers unused;
    moei_arena arena = {NULL, 0};
    carve(&arena, plan, num_tokens, &unused);
    return arena.used;
}

// ---- arguments ---------------------------------------------------------------------------------

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
        MOE_TRY(check_view(&a->ids, "args.ids", MOEI_DTYPE_BIT(d->ids_dtype), 2, shape));
        if (d->weight_stage == MOE_WEIGHT_NONE) {
            MOE_TRY(check_absent(&a->weights, "weights", "the descriptor's weight_stage is NONE"));
        } else {
            MOE_TRY(check_view(&a->weights, "args.weights", MOEI_DTYPE_BIT(d->weights_dtype), 2,
                               shape));
        }
    } else {
        MOE_TRY(check_absent(&a->ids, "ids", "the descriptor's routing is not GIVEN"));
    }
    if (from_logits) {
        MOE_TRY(check_absent(&a->weights, "weights", "the descriptor's routing is FROM_LOGITS"));
    }
    if (given && d->shared.count > 0 && d->shared.gate == MOE_SHARED_ROUTER_WEIGHTED) {
        const int64_t shared_shape[2] = {r->tokens, d->shared.count};
        MOE_TRY(check_view(&a->shared_weights, "args.shared_weights", MOEI_DTYPE_BIT(MOE_F32), 2,
                           shared_shape));
    } else {
        MOE_TRY(check_absent(&a->shared_weights, "shared_weights",
                             "no given routing weighs the shared experts"));
    }
    if (d->expert_map != 0) {
        const int64_t physical =
            d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
        MOE_TRY(
            check_view(&a->expert_map, "args.expert_map", MOEI_DTYPE_BIT(MOE_I32), 1, &physical));
    } else {
        MOE_TRY(check_absent(&a->expert_map, "expert_map", "the descriptor's expert_map is 0"));
    }
    if (d->replicas > 0) {
        const int64_t table[2] = {d->num_experts, -1};
        MOE_TRY(
            check_view(&a->replica_table, "args.replica_table", MOEI_DTYPE_BIT(MOE_I32), 2, table));
        MOE_TRY(
            check_view(&a->replica_count, "args.replica_count", MOEI_DTYPE_BIT(MOE_I32), 1, table));
    } else {
        MOE_TRY(check_absent(&a->replica_table, "replica_table", "the descriptor's replicas is 0"));
        MOE_TRY(check_absent(&a->replica_count, "replica_count", "the descriptor's replicas is 0"));
    }
    return MOE_OK;
}

// Rows per expert. Where the host can read them, their values are checked too.
static moe_status check_placement(const run *r)
{
    const moe_layer_desc *d = r->desc;
    const moe_run_args *a = &r->args;
    const int64_t experts = r->plan->routed.count;
    const bool readable = r->plan->ctx->backend->host_memory;
    if (d->x_layout == MOE_X_BATCHED) {
        const int32_t *counts = (const int32_t *)(const void *)moei_tensor_data(&a->counts);
        MOE_TRY(check_view(&a->counts, "args.counts", MOEI_DTYPE_BIT(MOE_I32), 1, &experts));
        if (readable) {
            MOE_TRY(moei_counts_check(counts, experts, r->tokens, CALL));
        }
    } else {
        MOE_TRY(check_absent(&a->counts, "counts", "the descriptor's x_layout is not BATCHED"));
    }
    if (d->x_layout == MOE_X_SORTED) {
        const int64_t entries = experts + 1;
        MOE_TRY(check_view(&a->offsets, "args.offsets", MOEI_DTYPE_BIT(MOE_I32), 1, &entries));
        const int32_t *p = (const int32_t *)(const void *)moei_tensor_data(&a->offsets);
        for (int64_t e = 0; readable && e < experts; e++) {
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
    MOE_TRY(
        check_view(&a->weights, "args.weights", MOEI_DTYPE_BIT(MOE_F32), batched ? 2 : 1, shape));
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
    MOE_TRY(
        moei_operand_from_tensors(x, &r->args.x_scales, &given_scale, act, CALL, &r->x, &rows, &k));
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
        MOE_TRY(check_view(&a->out_ids, "args.out_ids", MOEI_DTYPE_BIT(d->ids_dtype), 2, per_slot));
        MOE_TRY(moei_tensor_check_unfolded(&a->out_ids, CALL, "args.out_ids"));
    }
    if (a->out_weights.data != NULL) {
        MOE_TRY(check_view(&a->out_weights, "args.out_weights", MOEI_DTYPE_BIT(d->weights_dtype), 2,
                           per_slot));
        MOE_TRY(moei_tensor_check_unfolded(&a->out_weights, CALL, "args.out_weights"));
    }
    if (a->out_counts.data != NULL) {
        MOE_TRY(
            check_view(&a->out_counts, "args.out_counts", MOEI_DTYPE_BIT(MOE_I64), 1, &experts));
    }
    if (a->load.data != NULL) {
        const int64_t physical =
            d->replicas > 0 ? d->replicas : d->num_experts + d->route.append_shared;
        MOE_TRY(check_view(&a->load, "args.load", MOEI_DTYPE_BIT(MOE_I32), 1, &physical));
    }
    if (a->num_valid.data != NULL) {
        const int64_t one = 1;
        MOE_TRY(check_view(&a->num_valid, "args.num_valid", MOEI_DTYPE_BIT(MOE_I32), 1, &one));
    }
    return MOE_OK;
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
        route.shared_weights =
            moe_tensor_2d(r->b.shared_scores, MOE_F32, r->tokens, r->desc->route.shared_scores);
    }
    const uint32_t dtype = MOEI_DTYPE_BIT(r->desc->logits_dtype);
    const int64_t shape[2] = {r->tokens, moei_route_rows(&route.desc, route.num_experts)};
    MOE_TRY(check_view(&a->logits, "args.logits", dtype, 2, shape));
    return moei_route_prepare(&route, CALL, &r->route);
}

moe_status moei_run_prepare(run *r, void *workspace, size_t bytes)
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
    r->exec.scratch = r->b.scratch;
    if (r->desc->routing == MOE_ROUTING_FROM_LOGITS) {
        MOE_TRY(prepare_route(r));
    }
    whole.shape[0] = need < INT64_MAX ? (int64_t)need : INT64_MAX;
    return moei_views_check_overlap(views, NUM_VIEWS, CALL);
}
