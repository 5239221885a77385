// SPDX-License-Identifier: Apache-2.0
// What moe_route and moe_routing_validate refuse, and that the message names the field and both
// values. A refused call writes nothing.
#include "checkmoe/route_problem.h"
#include "ops/route.h"
#include "unit/test.h"

static moe_context *ctx;

typedef struct base {
    problem p;
    moe_route_args a;
    float gate[8];
    int32_t map[32], table[64], count[16], load[32], num_valid[2];
} base;

static void base_init(base *b)
{
    moec_rng r = {1};
    memset(b, 0, sizeof *b);
    b->p.desc = route_desc(MOE_SCORING_SIGMOID, MOE_RENORM_SUM);
    b->p.experts = 16;
    b->p.top_k = 4;
    b->p.tokens = 3;
    problem_alloc(&b->p);
    problem_fill(&b->p, &r, 1.0f);
    b->a = problem_args(&b->p);
}

static void base_free(base *b)
{
    problem_free(&b->p);
}

// A call that must be refused with `code`, a message that has every text of `says`, and outputs
// left alone.
static void expect_refusal(base *b, const char *what, moe_status code, const char *says,
                           const char *also)
{
    memset(b->p.ids, 0x3C, 3 * 4 * sizeof(int32_t));
    memset(b->p.weights, 0x3C, 3 * 4 * sizeof(float));
    const moe_status s = moe_route(ctx, &b->a, NULL);
    CHECK(s == code, "%s: %s, expected %s (%s)", what, moe_status_name(s), moe_status_name(code),
          moe_last_error());
    const char *message = moe_last_error();
    CHECK(strstr(message, says) != NULL && strstr(message, also) != NULL,
          "%s: \"%s\" lacks \"%s\" or \"%s\"", what, message, says, also);
    CHECK(strncmp(message, "moe_route: ", 11) == 0, "%s: \"%s\" does not name the call", what,
          message);
    const unsigned char *bytes = (const unsigned char *)b->p.ids;
    for (size_t i = 0; i < 3 * 4 * sizeof(int32_t); i++) {
        if (bytes[i] != 0x3C) {
            CHECK(0, "%s: a refused call wrote ids", what);
            break;
        }
    }
}

#define REFUSE(what, change, code, says, also)                                                     \
    do {                                                                                           \
        base b;                                                                                    \
        base_init(&b);                                                                             \
        change;                                                                                    \
        expect_refusal(&b, what, code, says, also);                                                \
        base_free(&b);                                                                             \
    } while (0)

#define D b.a.desc

static void test_fields(void)
{
    REFUSE("scoring unset", D.scoring = 0, MOE_E_UNSET, "route.scoring", "unset");
    REFUSE("scoring 9", D.scoring = 9, MOE_E_ARGUMENT, "route.scoring = 9", "1..6");
    REFUSE("renormalise unset", D.renormalise = 0, MOE_E_UNSET, "route.renormalise", "unset");
    REFUSE("renormalise 4", D.renormalise = 4, MOE_E_ARGUMENT, "renormalise = 4", "1..3");
    REFUSE("select_on", D.select_on = 3, MOE_E_ARGUMENT, "select_on = 3", "0..2");
    REFUSE("flag", D.scale_tensor = 2, MOE_E_ARGUMENT, "scale_tensor = 2", "0 or 1");
    REFUSE("negative scale", D.scale = -1.5f, MOE_E_ARGUMENT, "scale = -1.5", "at least 0");
    REFUSE("infinite scale", D.scale = HUGE_VALF, MOE_E_ARGUMENT, "scale = inf", "finite");
    REFUSE("NaN eps", D.renorm_eps = NAN, MOE_E_ARGUMENT, "renorm_eps = ", "finite");
    REFUSE("E 0", b.a.num_experts = 0, MOE_E_ARGUMENT, "num_experts = 0", "1..4096");
    REFUSE("E 4097", b.a.num_experts = 4097, MOE_E_ARGUMENT, "num_experts = 4097", "1..4096");
    REFUSE("k 0", b.a.top_k = 0, MOE_E_ARGUMENT, "top_k = 0", "1..16");
    REFUSE("k 17", b.a.top_k = 17, MOE_E_ARGUMENT, "top_k = 17", "num_experts = 16");
    REFUSE("zero experts", D.zero_experts = -1, MOE_E_ARGUMENT, "zero_experts = -1", "at least 0");
    REFUSE("rows", D.zero_experts = 8177, MOE_E_ARGUMENT, "8193", "8192");
    REFUSE("overflowing rows", (D.zero_experts = INT32_MAX, D.append_shared = INT32_MAX),
           MOE_E_ARGUMENT, "2147483647", "8192");
    REFUSE("struct_size", b.a.struct_size = 4, MOE_E_VERSION, "struct_size = 4", "size");
}

static void test_contradictions(void)
{
    REFUSE("k of sparsemixer", (D.scoring = MOE_SCORING_SPARSEMIXER, D.renormalise = 1),
           MOE_E_ARGUMENT, "top_k = 4", "sparsemixer");
    REFUSE("E of sparsemixer",
           (D.scoring = MOE_SCORING_SPARSEMIXER, D.renormalise = 1, D.zero_experts = 1,
            b.a.top_k = 2, b.a.num_experts = 1),
           MOE_E_ARGUMENT, "num_experts = 1", "at least 2");
    REFUSE("sparsemixer normalised", (D.scoring = MOE_SCORING_SPARSEMIXER, b.a.top_k = 2),
           MOE_E_ARGUMENT, "renormalise = 2", "sparsemixer");
    REFUSE("sparsemixer with bias",
           (D.scoring = MOE_SCORING_SPARSEMIXER, b.a.top_k = 2, D.renormalise = 1,
            D.correction_bias = 1),
           MOE_E_UNSUPPORTED, "correction_bias = 1", "sparsemixer");
    REFUSE(
        "sparsemixer with hash",
        (D.scoring = MOE_SCORING_SPARSEMIXER, b.a.top_k = 2, D.renormalise = 1, D.hash_table = 1),
        MOE_E_ARGUMENT, "hash_table = 1", "sparsemixer");
    REFUSE("jitter elsewhere", D.jitter_eps = 0.5f, MOE_E_ARGUMENT, "jitter_eps = 0.5", "sigmoid");
    REFUSE("select on scores",
           (D.scoring = MOE_SCORING_SOFTMAX_SELECTED, D.select_on = MOE_SELECT_SCORES),
           MOE_E_ARGUMENT, "select_on = 1", "softmax_selected");
    REFUSE("eps without sum", (D.renormalise = 1, D.renorm_eps = 0.25f), MOE_E_ARGUMENT,
           "renorm_eps = 0.25", "MOE_RENORM_NONE");
    REFUSE("shared sum without sum", (D.renormalise = 1, D.renorm_shared = 1, D.shared_scores = 1),
           MOE_E_ARGUMENT, "renorm_shared = 1", "MOE_RENORM_NONE");
    REFUSE("shared sum without shared", D.renorm_shared = 1, MOE_E_ARGUMENT, "renorm_shared = 1",
           "shared_scores = 0");
    REFUSE("shared rows of a softmax", (D.scoring = MOE_SCORING_SOFTMAX, D.shared_scores = 2),
           MOE_E_UNSUPPORTED, "shared_scores = 2", "softmax");
    REFUSE("groups do not divide", (D.num_groups = 3, D.top_groups = 2, D.group_score = 1),
           MOE_E_ARGUMENT, "num_experts = 16", "num_groups = 3");
    REFUSE("top_groups", (D.num_groups = 4, D.top_groups = 5, D.group_score = 1), MOE_E_ARGUMENT,
           "top_groups = 5", "num_groups = 4");
    REFUSE("top_groups unset", (D.num_groups = 4, D.group_score = 1), MOE_E_UNSET, "top_groups",
           "num_groups = 4");
    REFUSE("group_score unset", (D.num_groups = 4, D.top_groups = 2), MOE_E_UNSET, "group_score",
           "num_groups = 4");
    REFUSE("pairs in groups of one", (D.num_groups = 16, D.top_groups = 4, D.group_score = 2),
           MOE_E_ARGUMENT, "group_score", "1 expert a group");
    REFUSE("k beyond the groups", (D.num_groups = 8, D.top_groups = 1, D.group_score = 1),
           MOE_E_ARGUMENT, "top_k = 4", "top_groups = 1");
    REFUSE("groups off, top_groups on", D.top_groups = 2, MOE_E_ARGUMENT, "num_groups = 0",
           "top_groups = 2");
    REFUSE("groups off, mask on", D.group_mask_zero = 1, MOE_E_ARGUMENT, "num_groups = 0",
           "group_mask_zero = 1");
    REFUSE("groups with zero experts",
           (D.num_groups = 4, D.top_groups = 2, D.group_score = 1, D.zero_experts = 4),
           MOE_E_UNSUPPORTED, "num_groups = 4", "zero_experts = 4");
    REFUSE("hash with groups",
           (D.hash_table = 1, D.num_groups = 4, D.top_groups = 2, D.group_score = 1),
           MOE_E_ARGUMENT, "hash_table = 1", "num_groups = 4");
    REFUSE("hash with bias", (D.hash_table = 1, D.correction_bias = 1), MOE_E_ARGUMENT,
           "hash_table = 1", "correction_bias = 1");
    REFUSE("hash with a key", (D.hash_table = 1, D.select_on = MOE_SELECT_LOGITS), MOE_E_ARGUMENT,
           "hash_table = 1", "select_on = 2");
}

static void test_views(void)
{
    REFUSE("no logits", b.a.logits.data = NULL, MOE_E_ARGUMENT, "logits", "absent");
    REFUSE("logits dtype", b.a.logits.dtype = MOE_I32, MOE_E_DTYPE, "logits is int32", "f32");
    REFUSE("logits shape", b.a.logits.shape[1] = 15, MOE_E_SHAPE, "[3, 15]", "16]");
    REFUSE("logits stride", b.a.logits.stride[1] = 2, MOE_E_SHAPE, "logits", "stride 2");
    REFUSE("logits alignment", b.a.logits.byte_offset = 2, MOE_E_ALIGNMENT, "logits", "2 bytes");
    REFUSE("bias missing", D.correction_bias = 1, MOE_E_ARGUMENT, "correction_bias is absent",
           "route.correction_bias");
    REFUSE("bias not asked for", b.a.correction_bias = moe_tensor_1d(b.p.bias, MOE_F32, 16),
           MOE_E_ARGUMENT, "correction_bias is given", "ignored");
    REFUSE("bias shape",
           (D.correction_bias = 1, b.a.correction_bias = moe_tensor_1d(b.p.bias, MOE_F32, 15)),
           MOE_E_SHAPE, "correction_bias", "[16]");
    REFUSE("scale tensor", b.a.scale_tensor = moe_tensor_1d(&b.p.scale_tensor, MOE_F32, 1),
           MOE_E_ARGUMENT, "scale_tensor is given", "route.scale_tensor");
    REFUSE("token ids not asked for", b.a.token_ids = moe_tensor_1d(b.p.token_ids, MOE_I32, 3),
           MOE_E_ARGUMENT, "token_ids is given", "hash_table");
    REFUSE("hash dtypes",
           (D.hash_table = 1, b.a.hash_table = moe_tensor_2d(b.p.hash_table, MOE_I32, 50, 4),
            b.a.token_ids = moe_tensor_1d(b.p.hash_table, MOE_I64, 3)),
           MOE_E_DTYPE, "token_ids is int64", "hash_table is int32");
    REFUSE("hash shape",
           (D.hash_table = 1, b.a.hash_table = moe_tensor_2d(b.p.hash_table, MOE_I32, 50, 3),
            b.a.token_ids = moe_tensor_1d(b.p.token_ids, MOE_I32, 3)),
           MOE_E_SHAPE, "hash_table", "[50, 3]");
    REFUSE("ids shape", b.a.ids.shape[1] = 3, MOE_E_SHAPE, "ids", "[3, 4]");
    REFUSE("ids dtype", b.a.ids.dtype = MOE_U32, MOE_E_DTYPE, "ids is uint32", "int32");
    REFUSE("weights dtype", b.a.weights.dtype = MOE_F16, MOE_E_DTYPE, "weights is f16", "bf16");
    REFUSE("weights rows", b.a.weights.shape[0] = 4, MOE_E_SHAPE, "weights", "[4, 4]");
    REFUSE("shared weights missing",
           (D.shared_scores = 1, b.a.logits.shape[1] = 17, b.a.logits.shape[0] = 2,
            b.a.ids.shape[0] = 2, b.a.weights.shape[0] = 2),
           MOE_E_ARGUMENT, "shared_weights is absent", "shared_scores");
    REFUSE("gate not asked for", b.a.shared_gate = moe_tensor_2d(b.gate, MOE_F32, 3, 1),
           MOE_E_ARGUMENT, "shared_gate is given", "append_shared");
    REFUSE("ids overlap weights", b.a.weights.data = b.p.ids, MOE_E_OVERLAP, "ids", "weights");
    REFUSE("weights overlap logits", b.a.weights.data = b.p.logits + 44, MOE_E_OVERLAP, "weights",
           "logits");
    REFUSE("folded ids", b.a.ids.stride[0] = 3, MOE_E_SHAPE, "ids", "3");
    REFUSE("folded weights", b.a.weights.stride[0] = 1, MOE_E_SHAPE, "weights", "1");
    REFUSE("replica table alone", b.a.replica_table = moe_tensor_2d(b.table, MOE_I32, 16, 4),
           MOE_E_ARGUMENT, "replica_table", "replica_count");
    REFUSE("replica count alone", b.a.replica_count = moe_tensor_1d(b.count, MOE_I32, 16),
           MOE_E_ARGUMENT, "replica_count", "replica_table");
    REFUSE("map shape", b.a.expert_map = moe_tensor_1d(b.map, MOE_I32, 17), MOE_E_SHAPE,
           "expert_map", "[16]");
    REFUSE("load shape", b.a.load = moe_tensor_1d(b.load, MOE_I32, 15), MOE_E_SHAPE, "load",
           "[16]");
    REFUSE("map and load of replicas",
           (b.a.replica_table = moe_tensor_2d(b.table, MOE_I32, 16, 4),
            b.a.replica_count = moe_tensor_1d(b.count, MOE_I32, 16),
            b.a.expert_map = moe_tensor_1d(b.map, MOE_I32, 20),
            b.a.load = moe_tensor_1d(b.load, MOE_I32, 19)),
           MOE_E_SHAPE, "load is int32 [19]", "[20]");
    REFUSE("appended ids and a map",
           (D.append_shared = 1, b.a.expert_map = moe_tensor_1d(b.map, MOE_I32, 16)),
           MOE_E_UNSUPPORTED, "append_shared = 1", "expert_map");
    REFUSE("zero experts and replicas",
           (D.zero_experts = 1, b.a.logits.shape[0] = 2, b.a.logits.shape[1] = 17,
            b.a.logits.stride[0] = 17, b.a.replica_table = moe_tensor_2d(b.table, MOE_I32, 16, 4),
            b.a.replica_count = moe_tensor_1d(b.count, MOE_I32, 16)),
           MOE_E_UNSUPPORTED, "zero_experts = 1", "replica_table");
    REFUSE("num_valid", b.a.num_valid = moe_tensor_1d(b.num_valid, MOE_I32, 2), MOE_E_SHAPE,
           "num_valid", "[1]");
    CHECK(moe_route(NULL, NULL, NULL) == MOE_E_ARGUMENT, "no context");
    CHECK(moe_route(ctx, NULL, NULL) == MOE_E_ARGUMENT &&
              strstr(moe_last_error(), "args is NULL") != NULL,
          "no args: %s", moe_last_error());
}

static int count_route_runs(void *self, const moe_kernel_info *info)
{
    if (strcmp(info->op, "route") == 0) {
        *(uint64_t *)self += info->runs;
    }
    return 0;
}

static void test_accepted(void)
{
    base b;
    base_init(&b);
    uint64_t before = 0;
    uint64_t after = 0;
    (void)moe_context_visit_kernels(ctx, count_route_runs, &before);
    CHECK(moe_route(ctx, &b.a, NULL) == MOE_OK, "the unchanged call: %s", moe_last_error());
    (void)moe_context_visit_kernels(ctx, count_route_runs, &after);
    CHECK(after == before + 1, "runs counted: %llu", (unsigned long long)(after - before));
    // One group of all experts is what some configurations spell; the other fields may say so.
    D.num_groups = 1;
    D.top_groups = 1;
    D.group_score = MOE_GROUP_SCORE_TOP2_SUM;
    CHECK(moe_route(ctx, &b.a, NULL) == MOE_OK, "one group: %s", moe_last_error());
    base_free(&b);
    base_init(&b);
    // A caller whose struct ends before a field does not use it; here `load`, which would not fit.
    b.a.load = moe_tensor_1d(b.load, MOE_I32, 3);
    b.a.struct_size = offsetof(moe_route_args, load);
    CHECK(moe_route(ctx, &b.a, NULL) == MOE_OK && b.load[0] == 0, "a shorter struct: %s",
          moe_last_error());
    b.a.struct_size = sizeof b.a;
    b.a.load.data = NULL;
    CHECK(moe_route(ctx, &b.a, &b) == MOE_E_ARGUMENT, "a stream on the CPU");
    moei_route_resolve(&D);
    CHECK(D.scale == 1.0f && D.select_on == MOE_SELECT_SCORES, "defaults: scale %g, select_on %d",
          (double)D.scale, (int)D.select_on);
    CHECK(moei_route_check(&D, 16, 4, "again") == MOE_OK, "a resolved descriptor: %s",
          moe_last_error());
    D.scoring = MOE_SCORING_SIGMOID_SELECTED;
    D.select_on = MOE_SELECT_DEFAULT;
    moei_route_resolve(&D);
    CHECK(D.select_on == MOE_SELECT_LOGITS, "select_on of a SELECTED scoring: %d",
          (int)D.select_on);
    base_free(&b);
}

static void test_validate(void)
{
    int32_t ids[6] = {2, 0, 1, -1, 3, -1};
    float weights[6] = {0.5f, 0.25f, 0.25f, 0.0f, 1.0f, 0.0f};
    const moe_tensor i = moe_tensor_2d(ids, MOE_I32, 2, 3);
    const moe_tensor w = moe_tensor_2d(weights, MOE_F32, 2, 3);
    int64_t wide[2] = {5, (int64_t)1 << 40};
    const moe_tensor wide_ids = moe_tensor_2d(wide, MOE_I64, 1, 2);
    const moe_tensor absent = {.data = NULL};
    const struct {
        const char *what;
        int slot;
        int32_t id;
        float weight;
        const char *says;
    } bad[] = {{"id too large", 1, 4, 0.25f, "slot 1: id 4"},
               {"id below -1", 4, -2, 1.0f, "token 1 slot 1: id -2"},
               {"id twice", 2, 2, 0.25f, "token 0 slot 2: id 2"},
               {"negative weight", 1, 0, -0.25f, "weight -0.25"},
               {"NaN weight", 1, 0, NAN, "token 0 slot 1: weight"},
               {"infinite weight", 4, 3, HUGE_VALF, "weight inf"},
               {"wrong sum", 4, 3, 1.125f, "token 1: weights add up to 1.125"}};
    CHECK(moe_routing_validate(&i, &w, 4, 1.0f, 1e-6f) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_routing_validate(&i, NULL, 4, 0.0f, 0.0f) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_routing_validate(&i, &absent, 4, 0.0f, 0.0f) == MOE_OK, "%s", moe_last_error());
    for (size_t c = 0; c < sizeof bad / sizeof bad[0]; c++) {
        const int32_t id = ids[bad[c].slot];
        const float weight = weights[bad[c].slot];
        ids[bad[c].slot] = bad[c].id;
        weights[bad[c].slot] = bad[c].weight;
        CHECK(moe_routing_validate(&i, &w, 4, 1.0f, 1e-6f) == MOE_E_VALUE &&
                  strstr(moe_last_error(), bad[c].says) != NULL,
              "%s: \"%s\"", bad[c].what, moe_last_error());
        ids[bad[c].slot] = id;
        weights[bad[c].slot] = weight;
    }
    ids[0] = ids[1] = ids[2] = -1; // a token without experts has no weights to add up
    weights[0] = weights[1] = weights[2] = 0.0f;
    CHECK(moe_routing_validate(&i, &w, 4, 1.0f, 1e-6f) == MOE_OK, "%s", moe_last_error());
    CHECK(moe_routing_validate(&wide_ids, NULL, 8, 0.0f, 0.0f) == MOE_E_VALUE &&
              strstr(moe_last_error(), "1099511627776") != NULL,
          "int64 id: \"%s\"", moe_last_error());
    CHECK(moe_routing_validate(&i, NULL, 4, 1.0f, 0.0f) == MOE_E_ARGUMENT, "a sum of no weights");
    CHECK(moe_routing_validate(&i, &w, 0, 0.0f, 0.0f) == MOE_E_ARGUMENT, "E 0");
    CHECK(moe_routing_validate(&i, &w, 4, -1.0f, 0.0f) == MOE_E_ARGUMENT, "sum -1");
    CHECK(moe_routing_validate(NULL, &w, 4, 0.0f, 0.0f) == MOE_E_ARGUMENT, "no ids");
    CHECK(moe_routing_validate(&w, &w, 4, 0.0f, 0.0f) == MOE_E_DTYPE, "f32 ids");
    CHECK(moe_routing_validate(&i, &i, 4, 0.0f, 0.0f) == MOE_E_DTYPE, "int32 weights");
}

int main(void)
{
    ctx = route_context(NULL, 2);
    if (CHECK(ctx != NULL, "no context: %s", moe_last_error())) {
        test_fields();
        test_contradictions();
        test_views();
        test_accepted();
        test_validate();
    }
    moe_context_destroy(ctx);
    return test_summary();
}
