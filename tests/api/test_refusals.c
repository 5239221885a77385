// SPDX-License-Identifier: Apache-2.0
// Every way in which contexts, plans and weights are refused: a valid call, one change, the code,
// and what the message must say. A refused call leaves everything of the caller's as it was.
#define _POSIX_C_SOURCE 200809L
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "api/layer_case.h"
#include "api/layer_edits.h"
#include "api/refusals.h"

static moe_context *ctx;

// ---- contexts ----------------------------------------------------------------------------------

static moe_status create_context(const moe_context_desc *d)
{
    moe_context *const sentinel = (moe_context *)(void *)&ctx;
    moe_context *out = sentinel;
    const moe_status status = moe_context_create(d, &out);
    CHECK(status == MOE_OK || out == sentinel, "a refused moe_context_create wrote *out");
    if (status == MOE_OK) {
        moe_context_destroy(out);
    }
    return status;
}

static void *no_memory(void *self, size_t bytes, size_t align)
{
    (void)self;
    (void)bytes;
    (void)align;
    return NULL;
}

static void free_nothing(void *self, void *memory, size_t bytes)
{
    (void)self;
    (void)bytes;
    CHECK(memory == NULL, "memory is freed that was never there");
}

static size_t pool_size(void *self)
{
    (void)self;
    return 3;
}

static void pool_for(void *self, size_t n, moe_task_fn task, void *arg)
{
    (void)self;
    for (size_t i = 0; i < n; i++) {
        task(arg, i);
    }
}

static void test_contexts(void)
{
    const moe_allocator none = {NULL, no_memory, free_nothing};
    const moe_allocator half = {NULL, no_memory, NULL};
    const moe_thread_pool pool = {NULL, pool_size, pool_for};
    const moe_thread_pool half_pool = {NULL, pool_size, NULL};
#define REFUSE(edit, code, ...)                                                                    \
    do {                                                                                           \
        moe_context_desc d = moe_context_desc_default();                                           \
        edit;                                                                                      \
        REFUSED(create_context(&d), code, "moe_context_create", __VA_ARGS__);                      \
    } while (0)
    REFUSED(moe_context_create(NULL, NULL), MOE_E_ARGUMENT, "moe_context_create", "out");
    REFUSE(d.struct_size = 0, MOE_E_VERSION, "desc.struct_size = 0");
    REFUSE(d.device = 99, MOE_E_UNSUPPORTED, "unknown device", "\"cpu\" works");
    REFUSE(d.device = MOE_DEVICE_HIP, MOE_E_UNSUPPORTED, "hip", "\"cpu\" works");
    REFUSE(d.device_id = 1, MOE_E_ARGUMENT, "desc.device_id = 1", "cpu", "0");
    REFUSE((d.device = MOE_DEVICE_CPU, d.device_id = -1), MOE_E_ARGUMENT, "desc.device_id = -1");
    REFUSE(d.num_threads = -1, MOE_E_ARGUMENT, "desc.num_threads = -1", "0 (all)");
    REFUSE(d.num_threads = 1 << 20, MOE_E_ARGUMENT, "num_threads = 1048576", "1024");
    REFUSE((d.num_threads = 2, d.pool = &pool), MOE_E_ARGUMENT, "desc.num_threads = 2",
           "desc.pool");
    REFUSE(d.isa = "sse9", MOE_E_ARGUMENT, "desc.isa = \"sse9\"", "avx2");
    REFUSE(d.allocator = &half, MOE_E_ARGUMENT, "desc.allocator", "free");
    REFUSE(d.pool = &half_pool, MOE_E_ARGUMENT, "desc.pool", "parallel_for");
    REFUSE(d.allocator = &none, MOE_E_NO_MEMORY, "no memory for", "bytes");
#undef REFUSE
    (void)setenv("MOE_ISA", "sse9", 1);
    REFUSED(create_context(NULL), MOE_E_ARGUMENT, "MOE_ISA = \"sse9\"", "avx2");
    (void)setenv("MOE_ISA", "", 1);
    CHECK(create_context(NULL) == MOE_OK, "an empty MOE_ISA: %s", moe_last_error());
    (void)unsetenv("MOE_ISA");
    moe_context_destroy(NULL);
}

// ---- plans -------------------------------------------------------------------------------------

static moe_status create_plan(const moe_layer_desc *d)
{
    moe_plan *const sentinel = (moe_plan *)(void *)&ctx;
    moe_plan *plan = sentinel;
    const moe_status status = moe_plan_create(ctx, d, &plan);
    CHECK(status == MOE_OK || plan == sentinel, "a refused moe_plan_create wrote *out");
    if (status == MOE_OK) {
        moe_plan_destroy(plan);
    }
    return status;
}

#define REFUSE(edit, code, ...)                                                                    \
    do {                                                                                           \
        moe_layer_desc d = layer_case_base();                                                      \
        edit;                                                                                      \
        REFUSED(create_plan(&d), code, "moe_plan_create", __VA_ARGS__);                            \
    } while (0)
#define ACCEPT(edit)                                                                               \
    do {                                                                                           \
        moe_layer_desc d = layer_case_base();                                                      \
        edit;                                                                                      \
        CHECK(create_plan(&d) == MOE_OK, "%s: %s", #edit, moe_last_error());                       \
    } while (0)

static void test_struct_sizes(void)
{
    // As newer headers would have it: the same fields, then some that this library does not know.
    struct {
        moe_layer_desc known;
        uint64_t more[4];
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.known = layer_case_base();
    newer.known.struct_size = sizeof newer;
    CHECK(create_plan(&newer.known) == MOE_OK, "a zero tail: %s", moe_last_error());
    newer.more[3] = (uint64_t)1 << 56;
    REFUSED(create_plan(&newer.known), MOE_E_VERSION, "desc.struct_size", "byte");
    newer.more[3] = 0;
    newer.more[0] = 1;
    REFUSED(create_plan(&newer.known), MOE_E_VERSION, "desc.struct_size", "byte");
    // As older headers would have it: fields at the end are missing, and mean 0.
    moe_layer_desc older = layer_case_base();
    older.struct_size = offsetof(moe_layer_desc, workspace_cap);
    older.workspace_cap = 1; // not theirs: must not be read
    CHECK(create_plan(&older) == MOE_OK, "a shorter struct: %s", moe_last_error());
    older.struct_size = offsetof(moe_layer_desc, x_dtype) / 8 * 8;
    REFUSED(create_plan(&older), MOE_E_UNSET, "x_dtype is unset");
    older.struct_size = sizeof older.struct_size;
    REFUSED(create_plan(&older), MOE_E_ARGUMENT, "desc.hidden = 0");
    older.struct_size = sizeof older.struct_size - 1;
    REFUSED(create_plan(&older), MOE_E_VERSION, "desc.struct_size = 7");
}

static void test_plan_sizes(void)
{
    moe_plan *plan = NULL;
    const moe_layer_desc base = layer_case_base();
    REFUSED(moe_plan_create(NULL, &base, &plan), MOE_E_ARGUMENT, "moe_plan_create", "ctx is NULL");
    REFUSED(moe_plan_create(ctx, NULL, &plan), MOE_E_ARGUMENT, "moe_plan_create", "desc is NULL");
    REFUSED(moe_plan_create(ctx, &base, NULL), MOE_E_ARGUMENT, "moe_plan_create", "out is NULL");
    moe_plan_destroy(NULL);
    REFUSE(d.hidden = 0, MOE_E_ARGUMENT, "desc.hidden = 0", "1..1048576");
    REFUSE(d.hidden = (1 << 20) + 1, MOE_E_ARGUMENT, "desc.hidden = 1048577", "1048576");
    REFUSE(d.inter = INT64_MAX, MOE_E_ARGUMENT, "desc.inter = 9223372036854775807", "1048576");
    REFUSE(d.num_experts = 4097, MOE_E_ARGUMENT, "desc.num_experts = 4097", "4096");
    REFUSE(d.max_tokens = -1, MOE_E_ARGUMENT, "desc.max_tokens = -1", "0..2147483647");
    REFUSE(d.top_k = 9, MOE_E_ARGUMENT, "top_k = 9", "num_experts = 8");
    REFUSE(d.top_k = 0, MOE_E_ARGUMENT, "top_k = 0", "1..8");
    REFUSE((give(&d), d.top_k = 9), MOE_E_ARGUMENT, "desc.top_k = 9", "1..8");
    REFUSE(d.max_tokens = INT32_MAX, MOE_E_OVERFLOW, "desc.max_tokens = 2147483647", "times 2");
    REFUSE((place(&d, MOE_X_BATCHED), d.max_tokens = INT32_MAX / 2), MOE_E_OVERFLOW,
           "desc.max_tokens = 1073741823", "times 8");
    REFUSE(d.num_local_experts = 7, MOE_E_UNSUPPORTED, "desc.num_local_experts = 7 of 8",
           "expert_map = 1");
    REFUSE(d.num_local_experts = 5000, MOE_E_ARGUMENT, "desc.num_local_experts = 5000", "4096");
    REFUSE(d.route.append_shared = INT32_MAX, MOE_E_ARGUMENT, "route.append_shared = 2147483647",
           "4096");
    REFUSE(d.latent = -1, MOE_E_ARGUMENT, "desc.latent = -1", "0..");
    REFUSE(d.workspace_cap = 1, MOE_E_WORKSPACE, "16 tokens", "workspace_cap = 1", "max_tokens");
    ACCEPT(d.max_tokens = 0);
    ACCEPT(d.top_k = 8);
    // The workspace of the largest descriptor that the limits admit is a number, not an overflow.
    REFUSE((d.max_tokens = INT32_MAX / 8, d.top_k = 8, d.hidden = d.inter = 1 << 20,
            d.workspace_cap = 1),
           MOE_E_WORKSPACE, "workspace_cap = 1");
}

static void test_plan_routing(void)
{
    REFUSE(d.routing = 0, MOE_E_UNSET, "desc.routing is unset");
    REFUSE(d.routing = 4, MOE_E_ARGUMENT, "desc.routing = 4", "1..3");
    REFUSE(d.routing = MOE_ROUTING_PLACED, MOE_E_UNSUPPORTED, "desc.routing = 3", "x_layout = 0");
    REFUSE((give(&d), d.x_layout = MOE_X_SORTED), MOE_E_UNSUPPORTED, "desc.routing = 2",
           "x_layout = 2");
    REFUSE(d.route.scoring = 0, MOE_E_UNSET, "route.scoring is unset");
    REFUSE(d.route.renormalise = 0, MOE_E_UNSET, "route.renormalise is unset");
    REFUSE(d.weight_stage = 0, MOE_E_UNSET, "desc.weight_stage is unset");
    REFUSE(d.weight_stage = 4, MOE_E_ARGUMENT, "desc.weight_stage = 4", "1..3");
    REFUSE(d.ids_dtype = MOE_I8, MOE_E_DTYPE, "desc.ids_dtype = int8", "int32 or int64");
    REFUSE(d.weights_dtype = MOE_F16, MOE_E_DTYPE, "desc.weights_dtype = f16", "f32 or bf16");
    REFUSE(d.logits_dtype = MOE_I32, MOE_E_DTYPE, "desc.logits_dtype = int32", "f32, bf16 or f16");
    REFUSE((give(&d), d.logits_dtype = MOE_F32), MOE_E_UNSUPPORTED, "desc.logits_dtype = f32",
           "not FROM_LOGITS");
    REFUSE((give(&d), d.route.scale = 2.0f), MOE_E_UNSUPPORTED, "desc.route", "GIVEN");
    REFUSE((place(&d, MOE_X_SORTED), d.route.scale = 2.0f), MOE_E_UNSUPPORTED, "desc.route",
           "PLACED");
    REFUSE((place(&d, MOE_X_SORTED), d.top_k = 2), MOE_E_ARGUMENT, "top_k (PLACED) = 2", "0..0");
    REFUSE((place(&d, MOE_X_SORTED), d.expert_map = 1), MOE_E_ARGUMENT, "expert_map (PLACED)");
    REFUSE((place(&d, MOE_X_SORTED), d.replicas = 8), MOE_E_ARGUMENT, "replicas (PLACED)");
    REFUSE((place(&d, MOE_X_SORTED), d.ids_dtype = MOE_I32), MOE_E_UNSUPPORTED, "ids_dtype = int32",
           "PLACED");
    REFUSE((place(&d, MOE_X_BATCHED), d.weights_dtype = MOE_BF16), MOE_E_UNSUPPORTED,
           "weights_dtype = bf16", "f32 works");
    REFUSE((d.route.append_shared = 1, d.route.zero_experts = 1), MOE_E_UNSUPPORTED,
           "append_shared = 1", "zero_experts = 1");
    REFUSE((d.route.append_shared = 1, d.replicas = 9), MOE_E_UNSUPPORTED, "append_shared = 1",
           "replicas = 9");
    REFUSE(d.route.num_groups = 3, MOE_E_UNSET, "top_groups is unset", "num_groups = 3");
    REFUSE((d.route.num_groups = 3, d.route.top_groups = 1, d.route.group_score = 1),
           MOE_E_ARGUMENT, "num_experts = 8", "num_groups = 3");
}

static void test_plan_experts(void)
{
    REFUSE(d.gemm[0].weight_format = 0, MOE_E_UNSET, "desc.gemm[0].weight_format is unset");
    REFUSE(d.gemm[1].weight_format = 99, MOE_E_ARGUMENT, "desc.gemm[1].weight_format = 99");
    REFUSE(d.gemm[0].weight_scale_dtype = MOE_F32, MOE_E_UNSUPPORTED,
           "desc.gemm[0].weight_scale_dtype = f32", "bf16", "no scales");
    REFUSE(d.gemm[0].weight_group = 32, MOE_E_UNSUPPORTED, "weight_group = 32", "bf16");
    REFUSE((d.gemm[0].weight_format = MOE_FORMAT_INT4_GROUP, d.gemm[0].weight_group = 24),
           MOE_E_UNSUPPORTED, "desc.gemm[0].weight_group = 24", "16, 32, 64 or 128");
    REFUSE(d.gemm[0].zero_points = 1, MOE_E_UNSUPPORTED, "zero_points = 1", "bf16", "int4_group");
    REFUSE(d.gemm[0].zero_points = 2, MOE_E_ARGUMENT, "zero_points = 2", "0 or 1");
    REFUSE(d.gemm[1].channel_scale = 1, MOE_E_UNSUPPORTED, "desc.gemm[1].channel_scale = 1", "bf16",
           "int4_group");
    REFUSE(d.gemm[0].channel_scale = -1, MOE_E_ARGUMENT, "channel_scale = -1", "0 or 1");
    REFUSE(d.gemm[1].bias = 2, MOE_E_ARGUMENT, "desc.gemm[1].bias = 2", "0 or 1");
    REFUSE(d.gemm[0].act.elem = MOE_E4M3FN, MOE_E_UNSET, "quant.spec is unset", "elem = 14");
    REFUSE(d.gemm[0].act.spec = 99, MOE_E_ARGUMENT, "quant.spec = 99");
    REFUSE(d.gemm[0].act.spec = MOE_QUANT_FP8_BLOCK_INVERSE, MOE_E_UNSUPPORTED,
           "desc.gemm[0].act = fp8_block_inverse", "128 rows", "fp8_group");
    REFUSE((quantise(&d), d.gemm[0].act.elem = MOE_E2M1), MOE_E_UNSUPPORTED, "quant.elem = e2m1",
           "e4m3fn");
    REFUSE((d.gemm[0].act.spec = MOE_QUANT_FP8_TOKEN, d.gemm[0].act.amax_bound = -1.0f),
           MOE_E_ARGUMENT, "quant.amax_bound = -1");
    REFUSE(d.activation = 0, MOE_E_UNSET, "activation is unset");
    REFUSE(d.activation = 11, MOE_E_ARGUMENT, "activation = 11", "1..10");
    REFUSE(d.gate_up = 0, MOE_E_UNSET, "gate_up is unset", "silu");
    REFUSE(d.gate_up = 5, MOE_E_ARGUMENT, "gate_up = 5", "1..4");
    REFUSE(d.activation = MOE_ACT_RELU2_NO_MUL, MOE_E_UNSUPPORTED, "gate_up = 1", "relu2_no_mul");
    REFUSE(d.alpha = 1.702f, MOE_E_UNSUPPORTED, "alpha = 1.702", "silu", "set it to 0");
    REFUSE(d.activation = MOE_ACT_SWIGLUOAI, MOE_E_UNSET, "alpha is unset", "swigluoai");
    REFUSE(d.limit = NAN, MOE_E_ARGUMENT, "limit = nan", "finite");
    REFUSE(d.limit = -7.0f, MOE_E_ARGUMENT, "limit = -7", ">= 0");
    REFUSE((d.activation = MOE_ACT_GELU, d.limit = 7.0f), MOE_E_UNSUPPORTED, "limit = 7", "gelu");
    REFUSE(d.transposed = 2, MOE_E_ARGUMENT, "desc.transposed = 2", "0..1");
    REFUSE((d.transposed = 1, d.gemm[1].weight_format = MOE_FORMAT_MXFP4), MOE_E_UNSUPPORTED,
           "desc.transposed = 1", "desc.gemm[1].weight_format = mxfp4", "4 bits");
    REFUSE((d.gemm[0].weight_format = MOE_FORMAT_E4M3FN_BLOCK,
            d.gemm[0].act = (moe_quant_desc){.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 48}),
           MOE_E_NO_KERNEL, "gate_up", "every 128", "every 48", "divide");
    REFUSE((d.gemm[0].act = (moe_quant_desc){.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 48}),
           MOE_E_NO_KERNEL, "gate_up", "e4m3fn x bf16", "48");
    REFUSE((d.determinism = MOE_DET_BATCH, d.gemm[1].act.spec = MOE_QUANT_FP8_TENSOR), MOE_E_LEVEL,
           "down", "fp8_tensor", "level RUN", "desc.determinism = BATCH", "works");
    ACCEPT((d.determinism = MOE_DET_RUN, d.gemm[1].act.spec = MOE_QUANT_FP8_TENSOR));
    REFUSE(d.determinism = 5, MOE_E_ARGUMENT, "desc.determinism = 5", "0..4");
}

static void test_plan_shared(void)
{
    REFUSE(d.shared.inter = 24, MOE_E_UNSUPPORTED, "desc.shared", "shared.count = 0");
    REFUSE(d.shared.count = -1, MOE_E_ARGUMENT, "desc.shared.count = -1", "4096");
    REFUSE((share(&d), d.shared.inter = 0), MOE_E_ARGUMENT, "desc.shared.inter = 0");
    REFUSE((share(&d), d.shared.gate = 3), MOE_E_ARGUMENT, "desc.shared.gate = 3", "0..2");
    REFUSE((share(&d), d.shared.gate = MOE_SHARED_ROUTER_WEIGHTED), MOE_E_UNSUPPORTED,
           "route.shared_scores = 0", "shared.count = 2");
    REFUSE((d.route.scoring = MOE_SCORING_SIGMOID, d.route.shared_scores = 1), MOE_E_UNSUPPORTED,
           "route.shared_scores = 1", "shared.count = 0");
    REFUSE((share(&d), d.shared.transposed = -1), MOE_E_ARGUMENT, "desc.shared.transposed = -1");
    REFUSE((share(&d), d.shared.gemm[1].weight_format = 0), MOE_E_UNSET,
           "desc.shared.gemm[1].weight_format is unset");
    REFUSE((share(&d), d.shared.transposed = 1, d.shared.gemm[0].weight_format = MOE_FORMAT_NVFP4),
           MOE_E_UNSUPPORTED, "desc.shared.transposed = 1", "nvfp4");
    REFUSE((share(&d), d.shared.activation = 0), MOE_E_UNSET, "activation is unset");
    REFUSE((share(&d), arrive_as_codes(&d), d.inter_dtype = MOE_F16), MOE_E_UNSUPPORTED,
           "shared.gemm[0].act");
    REFUSE((share(&d), arrive_as_codes(&d), d.shared.gemm[0].act = d.gemm[0].act,
            d.shared.gate = MOE_SHARED_SIGMOID, d.inter_dtype = MOE_F32),
           MOE_E_UNSUPPORTED, "shared.gate = SIGMOID", "e4m3fn");
}

static void test_plan_precision(void)
{
    REFUSE((quantise(&d), d.gemm[0].act.scale_layout = MOE_SCALE_LAYOUT_COLUMN), MOE_E_UNSUPPORTED,
           "desc.gemm[0].act.scale_layout = COLUMN", "lays out the scales");
    REFUSE((arrive_as_codes(&d), d.gemm[1].act.scale_layout = MOE_SCALE_LAYOUT_COLUMN),
           MOE_E_UNSUPPORTED, "desc.gemm[1].act.scale_layout = COLUMN");
    REFUSE((quantise(&d), d.gemm[1].act.scale_type = MOE_SCALE_UE8M0_PACKED), MOE_E_UNSUPPORTED,
           "desc.gemm[1].act.scale_type = UE8M0_PACKED", "E8M0 (3)");
    ACCEPT((arrive_as_codes(&d), d.gemm[0].act.scale_layout = MOE_SCALE_LAYOUT_COLUMN,
            d.gemm[0].act.scale_type = MOE_SCALE_UE8M0_PACKED));
    REFUSE(d.x_dtype = 0, MOE_E_UNSET, "desc.x_dtype is unset");
    REFUSE(d.x_dtype = MOE_E4M3FN, MOE_E_DTYPE, "desc.x_dtype = e4m3fn", "f32, bf16, f16");
    REFUSE((quantise(&d), d.x_dtype = MOE_E5M2), MOE_E_DTYPE, "desc.x_dtype = e5m2", "e4m3fn");
    REFUSE(d.inter_dtype = MOE_I8, MOE_E_DTYPE, "desc.inter_dtype = int8", "f32, bf16 or f16");
    REFUSE(d.partial_dtype = MOE_I8, MOE_E_DTYPE, "desc.partial_dtype = int8");
    REFUSE(d.out_dtype = MOE_F64, MOE_E_DTYPE, "desc.out_dtype = f64");
    REFUSE((quantise(&d), d.inter_dtype = MOE_BF16), MOE_E_UNSUPPORTED, "desc.inter_dtype = bf16",
           "fp8_group_div", "f32");
    REFUSE((arrive_as_codes(&d), d.out_dtype = 0), MOE_E_UNSET, "desc.out_dtype is unset",
           "e4m3fn");
    REFUSE((arrive_as_codes(&d), d.latent = 32), MOE_E_UNSUPPORTED, "desc.latent = 32", "e4m3fn");
    REFUSE((arrive_as_codes(&d), d.weight_stage = MOE_WEIGHT_INPUT), MOE_E_UNSUPPORTED,
           "weight_stage = INPUT", "OUTPUT works");
    REFUSE((arrive_as_codes(&d), d.route.zero_experts = 1), MOE_E_UNSUPPORTED,
           "route.zero_experts = 1", "e4m3fn");
    REFUSE((d.determinism = MOE_DET_RUN, d.gemm[0].weight_format = MOE_FORMAT_NVFP4,
            d.gemm[0].act.spec = MOE_QUANT_NVFP4_INVERSE, d.x_dtype = MOE_E2M1,
            d.inter_dtype = d.partial_dtype = d.out_dtype = MOE_BF16),
           MOE_E_UNSUPPORTED, "desc.x_dtype = e2m1", "nvfp4_inverse", "nvfp4, ");
    REFUSE(d.x_layout = 3, MOE_E_ARGUMENT, "desc.x_layout = 3", "0..2");
    REFUSE(d.out_mode = MOE_OUT_LAYOUT, MOE_E_UNSUPPORTED, "desc.out_mode = 3", "x_layout = 0");
    REFUSE((place(&d, MOE_X_BATCHED), d.out_mode = MOE_OUT_COMBINED), MOE_E_UNSUPPORTED,
           "desc.out_mode = 1", "x_layout = 1");
    REFUSE((d.out_mode = MOE_OUT_SLOTS, d.output_bias = 1), MOE_E_UNSUPPORTED, "desc.output_bias",
           "out_mode = 2", "COMBINED");
    REFUSE((d.out_mode = MOE_OUT_SLOTS, d.latent = 8), MOE_E_UNSUPPORTED, "desc.latent",
           "out_mode = 2");
    REFUSE((d.out_mode = MOE_OUT_SLOTS, share(&d)), MOE_E_UNSUPPORTED, "desc.shared.count",
           "out_mode = 2");
    REFUSE(d.accumulate = 2, MOE_E_ARGUMENT, "desc.accumulate = 2", "0..1");
}
#undef REFUSE
#undef ACCEPT

// ---- plan queries ------------------------------------------------------------------------------

static void test_plan_queries(void)
{
    moe_plan *plan = NULL;
    const moe_layer_desc d = layer_case_base();
    size_t bytes = 77;
    size_t align = 77;
    char text[8];
    if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK, "%s", moe_last_error())) {
        return;
    }
    REFUSED(moe_plan_workspace(NULL, 1, &bytes, &align), MOE_E_ARGUMENT, "moe_plan_workspace");
    REFUSED(moe_plan_workspace(plan, 1, NULL, &align), MOE_E_ARGUMENT, "moe_plan_workspace");
    REFUSED(moe_plan_workspace(plan, -1, &bytes, &align), MOE_E_ARGUMENT, "num_tokens = -1",
            "0..16");
    REFUSED(moe_plan_workspace(plan, 17, &bytes, &align), MOE_E_ARGUMENT, "num_tokens = 17",
            "0..16");
    CHECK(bytes == 77 && align == 77, "a refused query wrote %zu, %zu", bytes, align);
    size_t last = 0;
    for (int64_t t = 0; t <= 16; t++) {
        CHECK(moe_plan_workspace(plan, t, &bytes, &align) == MOE_OK && bytes >= last,
              "workspace of %d tokens: %zu bytes, one less needs %zu", (int)t, bytes, last);
        last = bytes;
    }
    REFUSED(moe_plan_explain(NULL, text, sizeof text, NULL), MOE_E_ARGUMENT, "moe_plan_explain",
            "plan is NULL");
    REFUSED(moe_plan_explain(plan, NULL, 8, NULL), MOE_E_ARGUMENT, "buffer is NULL", "8");
    REFUSED(moe_plan_describe(NULL, text, sizeof text, NULL), MOE_E_ARGUMENT, "moe_plan_describe");
    REFUSED(moe_plan_describe(plan, NULL, 8, NULL), MOE_E_ARGUMENT, "buffer is NULL", "8");
    moe_plan_destroy(plan);
}

// ---- weights -----------------------------------------------------------------------------------

static moe_weights_source first_two(const moe_weights_source *all)
{
    moe_weights_source s = *all;
    s.gemm[0].values.shape[0] = s.gemm[1].values.shape[0] = 2;
    return s;
}

static void test_weights_objects(const layer_case *c)
{
    moe_weights *const sentinel = (moe_weights *)(void *)&ctx;
    moe_weights *w = sentinel;
    size_t bytes = 0;
    size_t align = 0;
    REFUSED(moe_weights_bytes(NULL, &bytes, &align), MOE_E_ARGUMENT, "moe_weights_bytes");
    CHECK(moe_weights_bytes(c->plan, &bytes, &align) == MOE_OK, "%s", moe_last_error());
    unsigned char *memory = aligned_alloc(align, bytes + align);
    if (memory == NULL) {
        abort();
    }
    REFUSED(moe_weights_create(NULL, memory, bytes, &w), MOE_E_ARGUMENT, "plan is NULL");
    REFUSED(moe_weights_create(c->plan, memory, bytes, NULL), MOE_E_ARGUMENT, "out is NULL");
    REFUSED(moe_weights_create(c->plan, NULL, bytes, &w), MOE_E_ARGUMENT, "memory of 0 bytes");
    REFUSED(moe_weights_create(c->plan, memory, bytes - 1, &w), MOE_E_ARGUMENT, "memory of",
            "needs");
    REFUSED(moe_weights_create(c->plan, memory + 1, bytes, &w), MOE_E_ALIGNMENT, "256 bytes");
    CHECK(w == sentinel, "a refused moe_weights_create wrote *out");
    if (!CHECK(moe_weights_create(c->plan, memory, bytes, &w) == MOE_OK, "%s", moe_last_error())) {
        free(memory);
        return;
    }
    moe_run_args args = c->args;
    REFUSED(moe_run(c->plan, w, &args, c->workspace, c->workspace_bytes, NULL), MOE_E_STATE,
            "gate_up of expert 0 has not been given");
    moe_weights_source s = first_two(&c->source);
    CHECK(moe_weights_pack(w, 0, &s) == MOE_OK, "%s", moe_last_error());
    REFUSED(moe_run(c->plan, w, &args, c->workspace, c->workspace_bytes, NULL), MOE_E_STATE,
            "gate_up of expert 2 has not been given");
    s.gemm[1].values.data = NULL;
    CHECK(moe_weights_pack(w, 2, &s) == MOE_OK, "%s", moe_last_error());
    REFUSED(moe_run(c->plan, w, &args, c->workspace, c->workspace_bytes, NULL), MOE_E_STATE,
            "down of expert 2 has not been given");
    s = first_two(&c->source);
    REFUSED(moe_weights_unpack(w, 1, &s), MOE_E_STATE, "down of expert 2");
    moe_weights_destroy(w);
    moe_weights_destroy(NULL);
    free(memory);
}

static void test_weights_sources(layer_case *c)
{
    moe_weights *const sentinel = (moe_weights *)(void *)&ctx;
    moe_weights *wrapped = sentinel;
#define REFUSE(edit, code, ...)                                                                    \
    do {                                                                                           \
        moe_weights_source s = c->source;                                                          \
        edit;                                                                                      \
        REFUSED(moe_weights_pack(c->weights, 0, &s), code, "moe_weights_pack", __VA_ARGS__);       \
        REFUSED(moe_weights_wrap(c->plan, &s, &wrapped), code, "moe_weights_wrap", __VA_ARGS__);   \
        CHECK(wrapped == sentinel, "a refused moe_weights_wrap wrote *out");                       \
    } while (0)
    moe_tensor *const values = &c->source.gemm[0].values;
    REFUSED(moe_weights_pack(NULL, 0, &c->source), MOE_E_ARGUMENT, "weights is NULL");
    REFUSED(moe_weights_pack(c->weights, 0, NULL), MOE_E_ARGUMENT, "source is NULL");
    REFUSED(moe_weights_wrap(NULL, &c->source, &wrapped), MOE_E_ARGUMENT, "plan is NULL");
    REFUSED(moe_weights_wrap(c->plan, &c->source, NULL), MOE_E_ARGUMENT, "out is NULL");
    REFUSED(moe_weights_unpack(NULL, 0, &c->source), MOE_E_ARGUMENT, "weights is NULL");
    REFUSED(moe_weights_pack(c->weights, -1, &c->source), MOE_E_SHAPE, "experts -1", "has 8");
    REFUSED(moe_weights_pack(c->weights, 1, &c->source), MOE_E_SHAPE, "experts 1 .. 8", "has 8");
    REFUSED(moe_weights_update(c->weights, 8, &c->source), MOE_E_SHAPE, "experts 8 .. 8", "has 8");
    REFUSED(moe_weights_update(c->weights, 0, &c->source), MOE_E_SHAPE, "moe_weights_update",
            "[8, 272, 144]", "[1, 272, 144]");
    REFUSE(s.struct_size = 1, MOE_E_VERSION, "source.struct_size = 1");
    REFUSE(s.gemm[0].values.shape[1]--, MOE_E_SHAPE, "gate_up", "[8, 271, 144]", "[8, 272, 144]");
    REFUSE(s.gemm[1].values.shape[0]--, MOE_E_SHAPE, "8", "7");
    REFUSE(s.gemm[0].values.ndim = 1, MOE_E_SHAPE, "gate_up has 1 dimensions");
    REFUSE(s.gemm[0].values.ndim = 1000, MOE_E_SHAPE, "gate_up has 1000 dimensions");
    REFUSE(s.gemm[0].values.dtype = MOE_F16, MOE_E_DTYPE, "gate_up is f16", "bf16");
    REFUSE(s.gemm[0].values.dtype = 99, MOE_E_DTYPE, "unknown dtype", "bf16");
    REFUSE(s.gemm[0].values.stride[2] = 2, MOE_E_SHAPE, "stride 2", "must be 1");
    REFUSE(s.gemm[0].values.stride[1] = -144, MOE_E_SHAPE, "stride -144");
    REFUSE(s.gemm[0].values.stride[0] = INT64_MAX / 2, MOE_E_OVERFLOW, "2^57");
    REFUSE(s.gemm[0].values.device = MOE_DEVICE_CUDA, MOE_E_ARGUMENT, "cuda", "cpu");
    REFUSE(s.gemm[1].values.device_id = 3, MOE_E_ARGUMENT, "device_id = 3", "0 only");
    REFUSE(s.gemm[0].scales = *values, MOE_E_ARGUMENT, "gate_up scales", "bf16 has none");
    REFUSE(s.gemm[0].scale2 = *values, MOE_E_ARGUMENT, "second-level scale", "bf16 has none");
    REFUSE(s.gemm[0].zero_points = *values, MOE_E_ARGUMENT, "zero points", "zero_points = 0");
    REFUSE(s.gemm[1].bias = *values, MOE_E_ARGUMENT, "down bias", "bias = 0");
    REFUSE(s.gemm[1].act_scale = *values, MOE_E_ARGUMENT, "down activation scale", "none");
    REFUSE(s.shared[0].values = *values, MOE_E_ARGUMENT, "shared is given", "shared.count = 0");
    REFUSE(s.shared[1].bias = *values, MOE_E_ARGUMENT, "shared down bias", "without values");
    REFUSE(s.shared_gate = *values, MOE_E_ARGUMENT, "shared_gate is given", "not SIGMOID");
    REFUSE(s.latent_in = *values, MOE_E_ARGUMENT, "latent", "= 0");
    REFUSE(s.latent_out = *values, MOE_E_ARGUMENT, "latent", "= 0");
    REFUSE(s.output_bias = *values, MOE_E_ARGUMENT, "output_bias", "= 0");
    moe_weights_source none = moe_weights_source_default();
    REFUSED(moe_weights_wrap(c->plan, &none, &wrapped), MOE_E_STATE, "gate_up of expert 0");
    if (CHECK(moe_weights_wrap(c->plan, &c->source, &wrapped) == MOE_OK, "%s", moe_last_error())) {
        REFUSED(moe_weights_pack(wrapped, 0, &c->source), MOE_E_STATE, "wrap");
        REFUSED(moe_weights_update(wrapped, 0, &c->source), MOE_E_STATE, "wrap");
        moe_weights_destroy(wrapped);
    }
#undef REFUSE
}

// A refused call sets no activation scale: a later one may give others.
static void test_weights_refused_scale(const layer_case *c)
{
    const float twice[2] = {2.0f * *(const float *)c->source.gemm[0].act_scale.data,
                            2.0f * *(const float *)c->source.gemm[1].act_scale.data};
    moe_weights *w = NULL;
    size_t bytes = 0;
    size_t align = 0;
    CHECK(moe_weights_bytes(c->plan, &bytes, &align) == MOE_OK, "%s", moe_last_error());
    void *memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    if (CHECK(memory != NULL && moe_weights_create(c->plan, memory, bytes, &w) == MOE_OK, "%s",
              moe_last_error())) {
        moe_weights_source s = c->source;
        s.gemm[0] = (moe_matrix_source){0};
        CHECK(moe_weights_pack(w, 0, &s) == MOE_OK, "%s", moe_last_error());
        s = c->source;
        s.gemm[0].act_scale.data = (void *)(uintptr_t)&twice[0];
        s.gemm[1].act_scale.data = (void *)(uintptr_t)&twice[1];
        REFUSED(moe_weights_pack(w, 0, &s), MOE_E_VALUE, "down activation scale", "earlier");
        CHECK(moe_weights_pack(w, 0, &c->source) == MOE_OK, "%s", moe_last_error());
    }
    moe_weights_destroy(w);
    free(memory);
}

// Formats with scales: what they may not be, and that one activation scale serves a layer.
static void test_weights_values(void)
{
    moe_layer_desc d = layer_case_base();
    moe_plan *plan = NULL;
    layer_case c;
    d.gemm[0].weight_format = MOE_FORMAT_NVFP4;
    d.gemm[0].act.spec = MOE_QUANT_NVFP4;
    d.gemm[1].weight_format = MOE_FORMAT_E4M3FN_TENSOR;
    d.gemm[1].act.spec = MOE_QUANT_FP8_STATIC;
    if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, 3) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    uint8_t *scales = c.source.gemm[0].scales.data;
    float *scale2 = c.source.gemm[0].scale2.data;
    float *tensor = c.source.gemm[1].scales.data;
    float *act = c.source.gemm[1].act_scale.data;
    const uint8_t scale_was = scales[272 * 9 * 3 + 9 * 5 + 4];
    scales[272 * 9 * 3 + 9 * 5 + 4] = 0x7F;
    REFUSED(moe_weights_pack(c.weights, 0, &c.source), MOE_E_VALUE, "gate_up scales of expert 3",
            "[5, 4]", "NaN");
    scales[272 * 9 * 3 + 9 * 5 + 4] = scale_was;
    const float scale2_was = scale2[7];
    scale2[7] = INFINITY;
    REFUSED(moe_weights_pack(c.weights, 0, &c.source), MOE_E_VALUE, "second-level", "expert 7",
            "infinite");
    scale2[7] = scale2_was;
    const float tensor_was = tensor[2];
    tensor[2] = NAN;
    REFUSED(moe_weights_pack(c.weights, 0, &c.source), MOE_E_VALUE, "down scales of expert 2",
            "NaN");
    tensor[2] = tensor_was;
    const float act_was = *act;
    *act = 0.0f;
    REFUSED(moe_weights_pack(c.weights, 0, &c.source), MOE_E_VALUE, "down activation scale is 0");
    *act = act_was * 2.0f;
    REFUSED(moe_weights_pack(c.weights, 0, &c.source), MOE_E_VALUE, "down activation scale",
            "earlier", "a layer has one");
    *act = act_was;
    CHECK(moe_weights_pack(c.weights, 0, &c.source) == MOE_OK, "%s", moe_last_error());
    test_weights_refused_scale(&c);
    // Floats of a mapped file may lie anywhere: copied they may, read in place they may not.
    moe_weights *wrapped = NULL;
    _Alignas(float) unsigned char raw[2 * sizeof(float)];
    moe_weights_source s = c.source;
    memcpy(raw + 1, act, sizeof *act);
    s.gemm[1].act_scale.data = raw;
    s.gemm[1].act_scale.byte_offset = 1;
    CHECK(moe_weights_pack(c.weights, 0, &s) == MOE_OK, "%s", moe_last_error());
    REFUSED(moe_weights_wrap(plan, &s, &wrapped), MOE_E_ALIGNMENT, "down activation scale",
            "1 bytes");
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

// The second scale of a group format: one number per output.
static void test_weights_channel_scale(void)
{
    moe_layer_desc d = layer_case_base();
    moe_plan *plan = NULL;
    layer_case c;
    d.gemm[0].weight_format = d.gemm[1].weight_format = MOE_FORMAT_INT4_GROUP;
    d.gemm[0].channel_scale = 1;
    if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                   layer_case_make(&c, plan, &d, 3) == MOE_OK,
               "%s", moe_last_error())) {
        return;
    }
    float *channels = c.source.gemm[0].scale2.data;
#define REFUSE(edit, code, ...)                                                                    \
    do {                                                                                           \
        moe_weights_source s = c.source;                                                           \
        edit;                                                                                      \
        REFUSED(moe_weights_pack(c.weights, 0, &s), code, __VA_ARGS__);                            \
    } while (0)
    REFUSE(s.gemm[0].scale2.data = NULL, MOE_E_ARGUMENT, "gate_up channel scale", "absent");
    REFUSE(s.gemm[0].scale2.shape[1] = 2, MOE_E_SHAPE, "gate_up channel scale", "272");
    REFUSE(s.gemm[0].scale2.stride[1] = 2, MOE_E_SHAPE, "channel scale has stride 2", "must be 1");
    REFUSE(s.gemm[0].scale2.dtype = MOE_BF16, MOE_E_DTYPE, "gate_up channel scale is bf16", "f32");
    REFUSE(s.gemm[1].scale2 = s.gemm[0].scale2, MOE_E_ARGUMENT, "down second-level scale is given",
           "int4_group has none", "channel_scale = 0");
    channels[272 * 3 + 17] = -INFINITY;
    REFUSE((void)s, MOE_E_VALUE, "gate_up channel scale of expert 3", "[17] is infinite");
#undef REFUSE
    channels[272 * 3 + 17] = 1.0f;
    moe_weights_source s = c.source;
    s.gemm[0].scale2.ndim = 3; // [n, N, 1]
    CHECK(moe_weights_pack(c.weights, 0, &s) == MOE_OK, "%s", moe_last_error());
    layer_case_free(&c);
    moe_plan_destroy(plan);
}

// Codes of x have one scale: that of the shared experts is the routed experts'.
static void test_weights_x_scale(void)
{
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_STATIC, MOE_QUANT_INT8_STATIC,
                                           MOE_QUANT_NVFP4};
    static const moe_dtype codes[] = {MOE_E4M3FN, MOE_I8, MOE_E2M1};
    for (int i = 0; i < 3; i++) {
        moe_layer_desc d = layer_case_base();
        moe_plan *plan = NULL;
        moe_weights *wrapped = NULL;
        layer_case c;
        float other = 0.5f;
        share(&d);
        d.gemm[0].weight_format = d.shared.gemm[0].weight_format = MOE_FORMAT_INT8_CHANNEL;
        d.gemm[0].act.spec = d.shared.gemm[0].act.spec = specs[i];
        d.x_dtype = codes[i];
        d.inter_dtype = d.partial_dtype = d.out_dtype = MOE_BF16;
        if (!CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                       layer_case_make(&c, plan, &d, 3) == MOE_OK,
                   "%s", moe_last_error())) {
            return;
        }
        moe_weights_source s = c.source;
        s.shared[0].act_scale.data = &other;
        REFUSED(moe_weights_pack(c.weights, 0, &s), MOE_E_VALUE, "shared gate_up activation scale",
                "is 0.5", "x arrives");
        REFUSED(moe_weights_wrap(plan, &s, &wrapped), MOE_E_VALUE,
                "shared gate_up activation scale", "is 0.5", "x arrives");
        for (int g = 0; g < 2; g++) { // the shared experts in a call of their own
            s.gemm[g] = (moe_matrix_source){0};
        }
        REFUSED(moe_weights_pack(c.weights, 0, &s), MOE_E_VALUE, "shared gate_up activation scale",
                "0.5, an earlier call", "x arrives");
        // A refused call sets no scale: the second product's comes too late to save the first's.
        CHECK(layer_case_run(&c) == MOE_OK, "%s", moe_last_error());
        layer_case_free(&c);
        moe_plan_destroy(plan);
    }
}

static void test_weights(void)
{
    const moe_layer_desc d = layer_case_base();
    moe_plan *plan = NULL;
    layer_case c;
    if (CHECK(moe_plan_create(ctx, &d, &plan) == MOE_OK &&
                  layer_case_make(&c, plan, &d, 3) == MOE_OK,
              "%s", moe_last_error())) {
        test_weights_objects(&c);
        test_weights_sources(&c);
        layer_case_free(&c);
    }
    moe_plan_destroy(plan);
    test_weights_values();
    test_weights_channel_scale();
    test_weights_x_scale();
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
        return test_summary();
    }
    test_contexts();
    test_struct_sizes();
    test_plan_sizes();
    test_plan_routing();
    test_plan_experts();
    test_plan_shared();
    test_plan_precision();
    test_plan_queries();
    test_weights();
    REACHED(MOE_E_ARGUMENT, MOE_E_UNSET, MOE_E_SHAPE, MOE_E_DTYPE, MOE_E_OVERFLOW, MOE_E_VERSION,
            MOE_E_ALIGNMENT, MOE_E_STATE, MOE_E_VALUE, MOE_E_UNSUPPORTED, MOE_E_NO_KERNEL,
            MOE_E_LEVEL, MOE_E_NO_MEMORY, MOE_E_WORKSPACE);
    CHECK(strcmp(moe_status_name(MOE_E_SHAPE), "MOE_E_SHAPE") == 0, "a name");
    CHECK(strcmp(moe_status_name(1234), "unknown status") == 0, "no name");
    moe_context_destroy(ctx);
    return test_summary();
}
