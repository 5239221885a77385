// SPDX-License-Identifier: Apache-2.0
// Every way in which a run is refused: a valid run, one change, the code, and what the message must
// say. A refused run writes nothing.
#include <stdlib.h>

#include "api/layer_case.h"
#include "api/layer_edits.h"
#include "api/refusals.h"

static moe_context *ctx;

typedef void edit_fn(moe_layer_desc *d);

static int start(edit_fn *edit, moe_layer_desc *d, moe_plan **plan, layer_case *c)
{
    *d = layer_case_base();
    if (edit != NULL) {
        edit(d);
    }
    *plan = NULL;
    memset(c, 0, sizeof *c);
    return CHECK(moe_plan_create(ctx, d, plan) == MOE_OK &&
                     layer_case_make(c, *plan, d, 5) == MOE_OK,
                 "%s", moe_last_error());
}

static void finish(moe_plan *plan, layer_case *c)
{
    CHECK(layer_case_run(c) == MOE_OK, "the unchanged run: %s", moe_last_error());
    layer_case_free(c);
    moe_plan_destroy(plan);
}

#define REFUSE(edit, code, ...)                                                                    \
    do {                                                                                           \
        moe_run_args a = c.args;                                                                   \
        edit;                                                                                      \
        REFUSED(moe_run(plan, c.weights, &a, c.workspace, c.workspace_bytes, NULL), code,          \
                "moe_run", __VA_ARGS__);                                                           \
        CHECK(layer_case_untouched(&c), "a refused run wrote an output");                          \
    } while (0)

static moe_tensor moved(moe_tensor t, const moe_tensor *to)
{
    t.data = to->data;
    return t;
}

static void test_run_objects(void)
{
    moe_layer_desc d;
    moe_plan *plan;
    layer_case c;
    if (!start(NULL, &d, &plan, &c)) {
        return;
    }
    unsigned char *workspace = c.workspace;
    const size_t bytes = c.workspace_bytes;
    int stream = 0;
    moe_plan *other = NULL;
    CHECK(moe_plan_create(ctx, &d, &other) == MOE_OK, "%s", moe_last_error());
    REFUSED(moe_run(NULL, c.weights, &c.args, workspace, bytes, NULL), MOE_E_ARGUMENT,
            "plan is NULL");
    REFUSED(moe_run(plan, NULL, &c.args, workspace, bytes, NULL), MOE_E_ARGUMENT,
            "weights is NULL");
    REFUSED(moe_run(plan, c.weights, NULL, workspace, bytes, NULL), MOE_E_ARGUMENT, "args is NULL");
    REFUSED(moe_run(plan, c.weights, &c.args, workspace, bytes, &stream), MOE_E_ARGUMENT, "stream",
            "cpu");
    REFUSED(moe_run(other, c.weights, &c.args, workspace, bytes, NULL), MOE_E_ARGUMENT,
            "another plan");
    REFUSED(moe_run(plan, c.weights, &c.args, NULL, bytes, NULL), MOE_E_WORKSPACE,
            "workspace of 0 bytes", "5 tokens need");
    REFUSED(moe_run(plan, c.weights, &c.args, workspace, bytes - 1, NULL), MOE_E_WORKSPACE,
            "workspace of", "5 tokens need");
    REFUSED(moe_run(plan, c.weights, &c.args, workspace + 64, bytes, NULL), MOE_E_ALIGNMENT,
            "256 bytes");
    CHECK(layer_case_untouched(&c), "a refused run wrote an output");
    moe_plan_destroy(other);
    REFUSE(a.struct_size = 3, MOE_E_VERSION, "args.struct_size = 3");
    REFUSE(a.num_tokens = -1, MOE_E_ARGUMENT, "args.num_tokens = -1", "0..16");
    REFUSE(a.num_tokens = 17, MOE_E_ARGUMENT, "args.num_tokens = 17", "0..16");
    finish(plan, &c);
}

static void test_run_views(void)
{
    moe_layer_desc d;
    moe_plan *plan;
    layer_case c;
    if (!start(NULL, &d, &plan, &c)) {
        return;
    }
    REFUSE(a.x.data = NULL, MOE_E_ARGUMENT, "x is absent");
    REFUSE(a.x.ndim = 3, MOE_E_SHAPE, "args.x has 3 dimensions", "2");
    REFUSE(a.x.ndim = 1000, MOE_E_SHAPE, "args.x has 1000 dimensions");
    REFUSE(a.x.shape[0] = 4, MOE_E_SHAPE, "args.x is [.., 4, 144]", "5, 144");
    REFUSE(a.x.shape[1] = 143, MOE_E_SHAPE, "args.x is [.., 5, 143]", "5, 144");
    REFUSE(a.x.dtype = MOE_F16, MOE_E_DTYPE, "args.x is f16", "bf16");
    REFUSE(a.x.stride[1] = 2, MOE_E_SHAPE, "stride 2");
    REFUSE(a.x_scales = a.x, MOE_E_ARGUMENT, "x_scales are given", "no quantiser");
    REFUSE(a.logits.data = NULL, MOE_E_ARGUMENT, "args.logits is absent");
    REFUSE(a.logits.dtype = MOE_BF16, MOE_E_DTYPE, "args.logits is bf16", "f32");
    REFUSE(a.logits.shape[1] = 9, MOE_E_SHAPE, "args.logits is f32 [5, 9]", "[5, 8]");
    REFUSE(a.logits.ndim = 1000, MOE_E_SHAPE, "args.logits has 1000 dimensions");
    REFUSE(a.logits.byte_offset = 2, MOE_E_ALIGNMENT, "args.logits", "2 bytes past");
    REFUSE(a.out.data = NULL, MOE_E_ARGUMENT, "args.out is absent");
    REFUSE(a.out.dtype = MOE_F32, MOE_E_DTYPE, "args.out is f32", "bf16");
    REFUSE(a.out.shape[0] = 6, MOE_E_SHAPE, "args.out is bf16 [6, 144]", "[5, 144]");
    REFUSE(a.out.stride[0] = 143, MOE_E_SHAPE, "args.out has stride 143", "144");
    REFUSE(a.out_ids.dtype = MOE_I64, MOE_E_DTYPE, "args.out_ids is int64", "int32");
    REFUSE(a.out_ids.byte_offset = 1, MOE_E_ALIGNMENT, "args.out_ids", "1 bytes past");
    REFUSE(a.out_weights.shape[1] = 3, MOE_E_SHAPE, "args.out_weights", "[5, 3]", "[5, 2]");
    REFUSE(a.out_counts.dtype = MOE_I32, MOE_E_DTYPE, "args.out_counts is int32", "int64");
    REFUSE(a.load.shape[0] = 7, MOE_E_SHAPE, "args.load", "[7]", "[8]");
    REFUSE((a.num_valid = a.load, a.load.data = NULL), MOE_E_SHAPE, "args.num_valid", "[8]", "[1]");
    REFUSE(a.x.device = MOE_DEVICE_CUDA, MOE_E_ARGUMENT, "args.x", "cuda", "cpu");
    REFUSE(a.out.device_id = 1, MOE_E_ARGUMENT, "args.out", "device_id = 1");
    // Nothing that is written may lie in anything else.
    REFUSE(a.out = moved(a.out, &a.x), MOE_E_OVERLAP, "args.out overlaps args.x");
    REFUSE(a.out = moved(a.out, &a.logits), MOE_E_OVERLAP, "args.out overlaps args.");
    REFUSE(a.out_ids = moved(a.out_ids, &a.out), MOE_E_OVERLAP, "args.out overlaps args.out_ids");
    REFUSE(a.load = moved(a.load, &a.logits), MOE_E_OVERLAP, "args.load overlaps args.logits");
    REFUSE(a.out_counts.data = a.out_weights.data, MOE_E_OVERLAP, "args.out_weights",
           "args.out_counts");
    REFUSE(a.x.data = c.workspace, MOE_E_OVERLAP, "workspace overlaps args.x");
    REFUSE(a.out_ids.data = c.workspace, MOE_E_OVERLAP, "workspace overlaps args.out_ids");
    // What the descriptor does not call for must be absent.
    REFUSE(a.ids = a.out_ids, MOE_E_ARGUMENT, "args.ids is given", "not GIVEN");
    REFUSE(a.weights = a.out_weights, MOE_E_ARGUMENT, "args.weights is given", "FROM_LOGITS");
    REFUSE(a.shared_weights = a.out_weights, MOE_E_ARGUMENT, "args.shared_weights is given");
    REFUSE(a.correction_bias = a.logits, MOE_E_ARGUMENT, "correction_bias is given");
    REFUSE(a.scale_tensor = a.logits, MOE_E_ARGUMENT, "scale_tensor is given");
    REFUSE(a.hash_table = a.out_ids, MOE_E_ARGUMENT, "hash_table is given");
    REFUSE(a.token_ids = a.out_ids, MOE_E_ARGUMENT, "token_ids is given");
    REFUSE(a.append_gate = a.logits, MOE_E_ARGUMENT, "is given", "append_shared");
    REFUSE(a.expert_map = a.load, MOE_E_ARGUMENT, "args.expert_map is given", "expert_map is 0");
    REFUSE(a.replica_table = a.out_ids, MOE_E_ARGUMENT, "args.replica_table is given");
    REFUSE(a.replica_count = a.load, MOE_E_ARGUMENT, "args.replica_count is given");
    REFUSE(a.counts = a.load, MOE_E_ARGUMENT, "args.counts is given", "not BATCHED");
    REFUSE(a.offsets = a.load, MOE_E_ARGUMENT, "args.offsets is given", "not SORTED");
    finish(plan, &c);
}

static void given_with_map(moe_layer_desc *d)
{
    give(d);
    d->ids_dtype = MOE_I64;
    d->expert_map = 1;
    d->replicas = 12;
    d->num_local_experts = 4;
    share(d);
    d->shared.gate = MOE_SHARED_ROUTER_WEIGHTED;
}

static void test_run_given(void)
{
    moe_layer_desc d;
    moe_plan *plan;
    layer_case c;
    if (!start(given_with_map, &d, &plan, &c)) {
        return;
    }
    REFUSE(a.logits = a.weights, MOE_E_ARGUMENT, "args.logits is given", "not FROM_LOGITS");
    REFUSE(a.correction_bias = a.weights, MOE_E_ARGUMENT, "args.correction_bias is given");
    REFUSE(a.scale_tensor = a.weights, MOE_E_ARGUMENT, "args.scale_tensor is given");
    REFUSE(a.hash_table = a.ids, MOE_E_ARGUMENT, "args.hash_table is given");
    REFUSE(a.token_ids = a.ids, MOE_E_ARGUMENT, "args.token_ids is given");
    REFUSE(a.append_gate = a.weights, MOE_E_ARGUMENT, "args.append_gate is given");
    REFUSE(a.ids.data = NULL, MOE_E_ARGUMENT, "args.ids is absent");
    REFUSE(a.ids.dtype = MOE_I32, MOE_E_DTYPE, "args.ids is int32", "int64");
    REFUSE(a.ids.byte_offset = 4, MOE_E_ALIGNMENT, "args.ids", "4 bytes past", "8-byte");
    REFUSE(a.weights.data = NULL, MOE_E_ARGUMENT, "args.weights is absent");
    REFUSE(a.weights.dtype = MOE_BF16, MOE_E_DTYPE, "args.weights is bf16", "f32");
    REFUSE(a.shared_weights.data = NULL, MOE_E_ARGUMENT, "args.shared_weights is absent");
    REFUSE(a.shared_weights.shape[1] = 1, MOE_E_SHAPE, "args.shared_weights", "[5, 1]", "[5, 2]");
    REFUSE(a.expert_map.data = NULL, MOE_E_ARGUMENT, "args.expert_map is absent");
    REFUSE(a.expert_map.shape[0] = 8, MOE_E_SHAPE, "args.expert_map", "[8]", "[12]");
    REFUSE(a.replica_table.shape[0] = 7, MOE_E_SHAPE, "args.replica_table", "[7, 2]");
    REFUSE(a.replica_count.data = NULL, MOE_E_ARGUMENT, "args.replica_count is absent");
    REFUSE(a.replica_count.byte_offset = 1, MOE_E_ALIGNMENT, "args.replica_count");
    REFUSE(a.load = moved(a.load, &a.expert_map), MOE_E_OVERLAP,
           "args.load overlaps args.expert_map");
    finish(plan, &c);
}

static void unweighed(moe_layer_desc *d)
{
    give(d);
    d->weight_stage = MOE_WEIGHT_NONE;
}

static void batched(moe_layer_desc *d)
{
    place(d, MOE_X_BATCHED);
    d->accumulate = 1;
}

static void batched_codes(moe_layer_desc *d)
{
    place(d, MOE_X_BATCHED);
    arrive_as_codes(d);
}

static void sorted(moe_layer_desc *d)
{
    place(d, MOE_X_SORTED);
    d->weight_stage = MOE_WEIGHT_NONE;
}

static void test_run_placed(void)
{
    moe_layer_desc d;
    moe_plan *plan;
    layer_case c;
    if (start(unweighed, &d, &plan, &c)) {
        REFUSE(a.weights = a.out_weights, MOE_E_ARGUMENT, "args.weights is given", "NONE");
        finish(plan, &c);
    }
    if (start(batched, &d, &plan, &c)) {
        int32_t *counts = c.args.counts.data;
        const int32_t was = counts[2];
        REFUSE(counts[2] = 6, MOE_E_VALUE, "counts[2] = 6", "0..5");
        REFUSE(counts[2] = -1, MOE_E_VALUE, "counts[2] = -1", "0..5");
        counts[2] = was;
        REFUSE(a.counts.data = NULL, MOE_E_ARGUMENT, "args.counts is absent");
        REFUSE(a.counts.byte_offset = 2, MOE_E_ALIGNMENT, "args.counts", "2 bytes past");
        REFUSE(a.x.ndim = 2, MOE_E_SHAPE, "args.x has 2 dimensions", "3");
        REFUSE(a.x.shape[0] = 7, MOE_E_SHAPE, "args.x has 7 experts", "8");
        REFUSE(a.out.stride[0]++, MOE_E_SHAPE, "args.out has stride 721", "720");
        REFUSE(a.weights.stride[0]++, MOE_E_SHAPE, "args.weights has stride 6", "5");
        REFUSE(a.out_ids = a.counts, MOE_E_ARGUMENT, "args.out_ids is given", "PLACED");
        REFUSE(a.out_weights = a.weights, MOE_E_ARGUMENT, "args.out_weights is given", "PLACED");
        REFUSE(a.out_counts = a.counts, MOE_E_ARGUMENT, "args.out_counts is given", "PLACED");
        REFUSE(a.load = a.counts, MOE_E_ARGUMENT, "args.load is given", "PLACED");
        REFUSE(a.num_valid = a.counts, MOE_E_ARGUMENT, "args.num_valid is given", "PLACED");
        REFUSE(a.ids = a.counts, MOE_E_ARGUMENT, "args.ids is given");
        finish(plan, &c);
    }
    if (start(sorted, &d, &plan, &c)) {
        int32_t *offsets = c.args.offsets.data;
        const int32_t first = offsets[0];
        const int32_t last = offsets[8];
        REFUSE(offsets[0] = 1, MOE_E_VALUE, "args.offsets[0] = 1", "from 0");
        offsets[0] = first;
        REFUSE(offsets[8] = 6, MOE_E_VALUE, "[8] = 6", "at most 5");
        offsets[8] = last;
        REFUSE(a.offsets.shape[0] = 8, MOE_E_SHAPE, "args.offsets", "[8]", "[9]");
        REFUSE(a.counts = a.offsets, MOE_E_ARGUMENT, "args.counts is given", "not BATCHED");
        REFUSE(a.weights = a.offsets, MOE_E_ARGUMENT, "args.weights is given", "NONE");
        finish(plan, &c);
    }
    if (start(batched_codes, &d, &plan, &c)) {
        REFUSE(a.x_scales.data = NULL, MOE_E_ARGUMENT, "x_scales is absent");
        REFUSE(a.x_scales.shape[2] = 1, MOE_E_SHAPE, "x_scales", "[8, 5, 1]", "[8, 5, 2]");
        REFUSE(a.x_scales.dtype = MOE_BF16, MOE_E_DTYPE, "x_scales is bf16", "f32");
        REFUSE(a.x.dtype = MOE_E5M2, MOE_E_DTYPE, "x is e5m2", "e4m3fn");
        finish(plan, &c);
    }
}

// No token is no mistake: views without rows may come without memory.
static void test_run_empty(void)
{
    moe_layer_desc d;
    moe_plan *plan;
    layer_case c;
    if (!start(NULL, &d, &plan, &c)) {
        return;
    }
    moe_run_args a = c.args;
    a.num_tokens = 0;
    moe_tensor *const rows[] = {&a.x, &a.logits, &a.out, &a.out_ids, &a.out_weights};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        rows[i]->shape[0] = 0;
        rows[i]->data = NULL;
    }
    size_t bytes = 0;
    size_t align = 0;
    CHECK(moe_plan_workspace(plan, 0, &bytes, &align) == MOE_OK &&
              moe_run(plan, c.weights, &a, c.workspace, bytes, NULL) == MOE_OK,
          "no tokens: %s", moe_last_error());
    const int64_t *counts = c.args.out_counts.data;
    CHECK(counts[0] == 0 && counts[7] == 0, "counts of no tokens: %d", (int)counts[0]);
    finish(plan, &c);
}

static void test_run_struct_sizes(void)
{
    moe_layer_desc d;
    moe_plan *plan;
    layer_case c;
    if (!start(NULL, &d, &plan, &c)) {
        return;
    }
    struct {
        moe_run_args known;
        uint64_t more[2];
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.known = c.args;
    newer.known.struct_size = sizeof newer;
    newer.more[1] = 1;
    REFUSED(moe_run(plan, c.weights, &newer.known, c.workspace, c.workspace_bytes, NULL),
            MOE_E_VERSION, "args.struct_size", "byte");
    CHECK(layer_case_untouched(&c), "a refused run wrote an output");
    newer.more[1] = 0;
    CHECK(moe_run(plan, c.weights, &newer.known, c.workspace, c.workspace_bytes, NULL) == MOE_OK,
          "a zero tail: %s", moe_last_error());
    moe_run_args older = c.args;
    older.struct_size = offsetof(moe_run_args, load); // load is not theirs: it must not be read
    older.load.ndim = 77;
    CHECK(moe_run(plan, c.weights, &older, c.workspace, c.workspace_bytes, NULL) == MOE_OK,
          "a shorter struct: %s", moe_last_error());
    finish(plan, &c);
}
#undef REFUSE

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    test_run_objects();
    test_run_views();
    test_run_given();
    test_run_placed();
    test_run_empty();
    test_run_struct_sizes();
    REACHED(MOE_E_ARGUMENT, MOE_E_SHAPE, MOE_E_DTYPE, MOE_E_OVERLAP, MOE_E_VERSION, MOE_E_ALIGNMENT,
            MOE_E_VALUE, MOE_E_WORKSPACE);
    moe_context_destroy(ctx);
    return test_summary();
}
