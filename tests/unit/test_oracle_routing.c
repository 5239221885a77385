// SPDX-License-Identifier: Apache-2.0
// Routing as other libraries computed it (tests/oracles/README.md, parts A, D and E): PyTorch's
// top-k before and after a softmax, routing data of triton_kernels in both of its forms, and the
// router of each Mixture-of-Experts block of transformers.
//   test_oracle_routing routing.safetensors [moe_blocks.safetensors]
// What a case holds decides how it is read; nothing here knows a case by name. A line per case says
// how many of its comparisons hold; a case that nothing here can read is skipped by name.
//
// Where keys are equal the libraries choose among equals in an order that they do not promise. Such
// rows are compared by value, which is the whole of what both must agree on; that ours are the
// lowest ids is checked by itself.
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>

#include "checkmoe/route_problem.h"
#include "float64/route.h"
#include "moe/io.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"
#include "unit/test.h"

static moe_context *ctx;
static moe_file *file;
static const char *case_name;
static const json_t *case_json;
static long held; // comparisons of the case
static long compared;
static char notes[512];

static bool expect(bool holds)
{
    compared++;
    held += holds;
    return holds;
}

// A failing comparison; the first few of a case are printed.
#define EXPECT(cond, ...)                                                                          \
    do {                                                                                           \
        if (!expect(cond) && compared - held <= 3) {                                               \
            (void)printf("  %s: ", case_name);                                                     \
            (void)printf(__VA_ARGS__);                                                             \
            (void)printf("\n");                                                                    \
        }                                                                                          \
    } while (0)

static void note(const char *format, ...) TEST_PRINTF(1, 2);

static void note(const char *format, ...)
{
    const size_t used = strlen(notes);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(notes + used, sizeof notes - used, format, args);
    va_end(args);
}

// ---- Items ------------------------------------------------------------------------------------

typedef struct item {
    bool found;
    int64_t rows, columns, count;
    float *f;   // of float types
    int64_t *i; // of integer types
    moe_tensor view;
} item;

static int64_t integer_at(const moe_tensor *t, int64_t i)
{
    const char *data = (const char *)t->data + t->byte_offset;
    int64_t wide;
    int32_t word;
    int16_t half;
    switch (t->dtype) {
    case MOE_I64:
        memcpy(&wide, data + 8 * i, 8);
        return wide;
    case MOE_I32:
        memcpy(&word, data + 4 * i, 4);
        return word;
    default:
        memcpy(&half, data + 2 * i, 2);
        return half;
    }
}

static float float_at(const moe_tensor *t, int64_t i)
{
    const char *data = (const char *)t->data + t->byte_offset;
    uint16_t half;
    float value;
    if (t->dtype == MOE_F32) {
        memcpy(&value, data + 4 * i, 4);
        return value;
    }
    memcpy(&half, data + 2 * i, 2);
    return t->dtype == MOE_BF16 ? moei_bf16_to_f32(half) : moei_f16_to_f32(half);
}

// "<case>/<name>", or the item that the case says it equals.
static item load(const char *name)
{
    item r;
    char full[256];
    const char *same;
    memset(&r, 0, sizeof r);
    (void)snprintf(full, sizeof full, "%s/%s", case_name, name);
    if (moe_file_tensor(file, full, &r.view) != MOE_OK) {
        same = json_string_value(json_object_get(json_object_get(case_json, "identical_to"), name));
        (void)snprintf(full, sizeof full, "%s/%s", case_name, same != NULL ? same : "");
        if (same == NULL || moe_file_tensor(file, full, &r.view) != MOE_OK) {
            return r;
        }
    }
    const moe_dtype d = r.view.dtype;
    r.found = true;
    r.rows = r.view.ndim > 1 ? r.view.shape[0] : 1;
    r.count = 1;
    for (int32_t dim = 0; dim < r.view.ndim; dim++) {
        r.count *= r.view.shape[dim];
    }
    r.columns = r.rows > 0 ? r.count / r.rows : 0;
    if (d == MOE_F32 || d == MOE_BF16 || d == MOE_F16) {
        r.f = problem_array(r.count, sizeof(float));
        for (int64_t i = 0; i < r.count; i++) {
            r.f[i] = float_at(&r.view, i);
        }
    } else {
        r.i = problem_array(r.count, sizeof(int64_t));
        for (int64_t i = 0; i < r.count; i++) {
            r.i[i] = integer_at(&r.view, i);
        }
    }
    return r;
}

static item load2(const char *name, const char *suffix)
{
    char full[128];
    (void)snprintf(full, sizeof full, "%s%s", name, suffix);
    return load(full);
}

static void release(item *r)
{
    free(r->f);
    free(r->i);
}

// ---- Running the library ----------------------------------------------------------------------

// Routes logits as the file stores them.
static bool run(problem *p, const item *logits, moe_route_desc desc, int64_t experts, int64_t top_k)
{
    memset(p, 0, sizeof *p);
    p->desc = desc;
    p->experts = (int32_t)experts;
    p->top_k = (int32_t)top_k;
    p->tokens = logits->rows;
    problem_alloc(p);
    for (int64_t i = 0; i < logits->count && i < p->tokens * p->rows; i++) {
        p->logits[i] = logits->f[i];
    }
    moe_route_args a = problem_args(p);
    a.logits = moe_tensor_2d((const char *)logits->view.data + logits->view.byte_offset,
                             logits->view.dtype, logits->rows, logits->columns);
    const moe_status s = moe_route(ctx, &a, NULL);
    EXPECT(s == MOE_OK, "%s", moe_last_error());
    return s == MOE_OK;
}

static bool close_to(double a, double b, double rtol)
{
    return a == b || fabs(a - b) <= rtol * fabs(b);
}

// True if rows[at[0..k)] hold the same values as rows[other[0..k)], in whatever order.
static bool same_values(const float *row, const int32_t *at, const int64_t *other, int64_t k)
{
    for (int64_t j = 0; j < k; j++) {
        int64_t ours = 0;
        int64_t theirs = 0;
        if (other[j] < 0) {
            return false;
        }
        for (int64_t i = 0; i < k; i++) {
            ours += row[at[i]] == row[other[j]];
            theirs += row[other[i]] == row[other[j]];
        }
        if (ours != theirs) {
            return false;
        }
    }
    return true;
}

// True if the ids are the k largest finite values of the row, equals by ascending id, best first.
static bool lowest_ids(const float *row, int64_t n, const int32_t *ids, int64_t k)
{
    for (int64_t e = 0; e < n; e++) {
        int64_t better = 0;
        for (int64_t o = 0; o < n; o++) {
            better += row[o] > row[e] || (row[o] == row[e] && o < e);
        }
        if (better < k && ids[better] != e) {
            return false;
        }
    }
    return true;
}

static int64_t same_order(const int32_t *ids, const int64_t *other, int64_t k)
{
    for (int64_t j = 0; j < k; j++) {
        if (ids[j] != other[j]) {
            return 0;
        }
    }
    return 1;
}

// ---- PyTorch's top-k --------------------------------------------------------------------------

static const char *const devices[] = {".cpu", ".cuda"};

// One of the two orders of softmax and top-k on one device.
static void check_topk(const item *logits, const char *ids_item, const char *weights_item,
                       const char *device, moe_scoring scoring, int64_t *ordered, int64_t *rows)
{
    item ids = load2(ids_item, device);
    item weights = load2(weights_item, device);
    problem p;
    if (ids.found && weights.found &&
        run(&p, logits, route_desc(scoring, MOE_RENORM_NONE), logits->columns, ids.columns)) {
        const int64_t k = ids.columns;
        for (int64_t t = 0; t < logits->rows; t++) {
            const float *row = logits->f + t * logits->columns;
            EXPECT(same_values(row, p.ids + t * k, ids.i + t * k, k),
                   "%s%s: row %d: other values chosen", ids_item, device, (int)t);
            EXPECT(lowest_ids(row, logits->columns, p.ids + t * k, k),
                   "%s%s: row %d: not the lowest ids", ids_item, device, (int)t);
            for (int64_t j = 0; j < k; j++) {
                EXPECT(close_to((double)p.weights[t * k + j], (double)weights.f[t * k + j], 1e-6),
                       "%s%s: row %d slot %d: %.9g, expected %.9g", weights_item, device, (int)t,
                       (int)j, (double)p.weights[t * k + j], (double)weights.f[t * k + j]);
            }
            *ordered += same_order(p.ids + t * k, ids.i + t * k, k);
            ++*rows;
        }
        problem_free(&p);
    }
    EXPECT(ids.found && weights.found, "no %s or %s%s", ids_item, weights_item, device);
    release(&ids);
    release(&weights);
}

static void topk_case(const item *logits)
{
    int64_t ordered = 0;
    int64_t rows = 0;
    for (int d = 0; d < 2; d++) {
        check_topk(logits, "softmax_topk_ids", "softmax_topk_w", devices[d], MOE_SCORING_SOFTMAX,
                   &ordered, &rows);
        check_topk(logits, "logits_topk_ids", "topk_softmax_w", devices[d],
                   MOE_SCORING_SOFTMAX_SELECTED, &ordered, &rows);
        item unsorted = load2("logits_topk_unsorted_ids", devices[d]);
        problem p;
        if (unsorted.found &&
            run(&p, logits, route_desc(MOE_SCORING_SOFTMAX_SELECTED, MOE_RENORM_NONE),
                logits->columns, unsorted.columns)) {
            for (int64_t t = 0; t < logits->rows; t++) {
                EXPECT(same_values(logits->f + t * logits->columns, p.ids + t * unsorted.columns,
                                   unsorted.i + t * unsorted.columns, unsorted.columns),
                       "unsorted%s: row %d: other values chosen", devices[d], (int)t);
            }
            problem_free(&p);
        }
        release(&unsorted);
    }
    note("; ids in torch's order in %d of %d rows, the others hold equal logits", (int)ordered,
         (int)rows);
}

// Rows with NaN, +inf and -inf. torch ranks NaN first and lets NaN spread; here NaN ranks as -inf
// and what would be NaN is 0.
static void check_nonfinite(const item *logits, const char *device, int64_t *replaced)
{
    item ids = load2("logits_topk_ids", device);
    item values = load2("logits_topk_vals", device);
    item after = load2("topk_softmax_w", device);
    item before = load2("softmax_topk_w", device);
    const int64_t n = logits->columns;
    const int64_t k = values.columns;
    static float64_route f64;
    problem all, selected;
    const bool found = ids.found && values.found && after.found && before.found;
    EXPECT(found, "items missing%s", device);
    if (found &&
        run(&selected, logits, route_desc(MOE_SCORING_SOFTMAX_SELECTED, MOE_RENORM_NONE), n, k)) {
        (void)run(&all, logits, route_desc(MOE_SCORING_SOFTMAX, MOE_RENORM_NONE), n, k);
        for (int64_t t = 0; t < logits->rows; t++) {
            const float *row = logits->f + t * n;
            const float *v = values.f + t * k;
            const int32_t *chosen = selected.ids + t * k;
            bool spoilt = false; // a softmax over the row is NaN
            bool any = false;
            int64_t nans = 0;
            for (int64_t e = 0; e < n; e++) {
                spoilt |= row[e] != row[e] || row[e] == HUGE_VALF;
                any |= row[e] > -HUGE_VALF;
            }
            spoilt |= !any;
            while (nans < k && v[nans] != v[nans]) {
                nans++;
            }
            for (int64_t j = nans; j < k; j++) { // after its NaN, torch's choice is ours
                EXPECT(row[chosen[j - nans]] == v[j], "row %d: chose %g, torch %g", (int)t,
                       (double)row[chosen[j - nans]], (double)v[j]);
            }
            memset(&f64, 0, sizeof f64);
            f64.desc = &selected.desc;
            f64.num_experts = (int32_t)n;
            f64.top_k = (int32_t)k;
            f64.logits = row;
            float64_route_token(&f64);
            for (int64_t j = 0; j < k; j++) {
                const double w = (double)selected.weights[t * k + j];
                const double torch_w = (double)after.f[t * k + j];
                const double w_all = (double)all.weights[t * k + j];
                const double torch_all = (double)before.f[t * k + j];
                EXPECT(chosen[j] == f64.ids[j] && fabs(w - f64.weights[j]) <= f64.bounds[j],
                       "row %d slot %d: id %d weight %g, float64 says %d %g", (int)t, (int)j,
                       (int)chosen[j], w, (int)f64.ids[j], f64.weights[j]);
                EXPECT(torch_w != torch_w || close_to(w, torch_w, 1e-6),
                       "row %d slot %d: weight %g, torch %g", (int)t, (int)j, w, torch_w);
                EXPECT(spoilt ? torch_all != torch_all && w_all == 0.0 && all.ids[t * k + j] == j
                              : close_to(w_all, torch_all, 1e-6),
                       "row %d slot %d, softmax first: weight %g, torch %g", (int)t, (int)j, w_all,
                       torch_all);
                *replaced += (torch_w != torch_w) + (torch_all != torch_all);
            }
        }
        problem_free(&all);
        problem_free(&selected);
    }
    release(&ids);
    release(&values);
    release(&after);
    release(&before);
}

static void nonfinite_case(const item *logits)
{
    int64_t replaced = 0;
    for (int d = 0; d < 2; d++) {
        check_nonfinite(logits, devices[d], &replaced);
    }
    note("; %d NaN weights of torch have the value of the rules in docs/routing.md", (int)replaced);
}

// ---- triton_kernels ---------------------------------------------------------------------------

static void expect_integers(const char *what, const int32_t *ours, const item *theirs, int64_t n)
{
    EXPECT(theirs->found && theirs->count >= n, "no %s of %d", what, (int)n);
    for (int64_t i = 0; theirs->found && i < n && i < theirs->count; i++) {
        EXPECT(ours[i] == theirs->i[i], "%s[%d] = %d, expected %d", what, (int)i, (int)ours[i],
               (int)theirs->i[i]);
    }
}

static void expect_item(const char *name, const int32_t *ours, int64_t n)
{
    item theirs = load(name);
    expect_integers(name, ours, &theirs, n);
    release(&theirs);
}

// Blocks of `block` slots per expert: where each expert's begin, and (index << 16 | expert) of each
// block. Both follow from our block-aligned sort. Of `offsets` and `map`, whose row `at` counts,
// entries past the last block may hold anything.
static void check_blocks(const moe_tensor *ids, int32_t experts, int32_t block, const item *offsets,
                         const item *map, int64_t at)
{
    const int64_t n = ids->shape[0] * ids->shape[1];
    const int64_t padded = moe_sort_padded_size(n, experts, block);
    const int64_t blocks = (padded + block - 1) / block;
    int32_t *slots = problem_array(padded, sizeof(int32_t));
    int32_t *owner = problem_array(blocks, sizeof(int32_t));
    int32_t used = 0;
    moe_sort_args a;
    memset(&a, 0, sizeof a);
    a.struct_size = sizeof a;
    a.num_experts = experts;
    a.block = block;
    a.ids = *ids;
    a.slots = moe_tensor_1d(slots, MOE_I32, padded);
    a.block_experts = moe_tensor_1d(owner, MOE_I32, blocks);
    a.num_padded = moe_tensor_1d(&used, MOE_I32, 1);
    EXPECT(moe_sort(ctx, &a, NULL) == MOE_OK, "%s", moe_last_error());
    EXPECT(offsets->found && map->found && offsets->columns == experts + 1 &&
               map->columns >= used / block,
           "no metadata for blocks of %d", (int)block);
    if (offsets->found && map->found) {
        int64_t index = 0;
        for (int64_t b = 0; b < used / block && b < map->columns; b++) {
            index = b > 0 && owner[b] == owner[b - 1] ? index + 1 : 0;
            EXPECT(map->i[at * map->columns + b] == (index << 16 | owner[b]),
                   "block %d of %d: %" PRId64 ", expected %d of expert %d", (int)b, (int)block,
                   map->i[at * map->columns + b], (int)index, (int)owner[b]);
        }
        int64_t b = 0;
        for (int32_t e = 0; e <= experts; e++) {
            while (b < used / block && owner[b] < e) {
                b++;
            }
            EXPECT(offsets->i[at * offsets->columns + e] == b,
                   "blocks of %d: expert %d at %" PRId64 ", expected %d", (int)block, (int)e,
                   offsets->i[at * offsets->columns + e], (int)b);
        }
    }
    free(slots);
    free(owner);
}

typedef struct forms {
    int64_t tokens, top_k, slots, words;
    int32_t experts;
    int32_t *ids;
    uint32_t *bits; // transposed, rows padded to 32, as the library stores them
    int32_t *counts, *offsets, *gather, *scatter;
    uint32_t *gate; // bf16 or f32
    moe_routing_sparse view;
} forms;

static void forms_alloc(forms *s, const item *ids, const item *values, int32_t experts)
{
    memset(s, 0, sizeof *s);
    s->tokens = ids->rows;
    s->top_k = ids->columns;
    s->slots = ids->count;
    s->experts = experts;
    s->words = (experts + 31) / 32;
    const int64_t rows = (s->tokens + 31) / 32 * 32;
    s->ids = problem_array(s->slots, sizeof(int32_t));
    s->bits = problem_array(rows * s->words, sizeof(uint32_t));
    s->counts = problem_array(experts, sizeof(int32_t));
    s->offsets = problem_array(experts + 1, sizeof(int32_t));
    s->gather = problem_array(s->slots, sizeof(int32_t));
    s->scatter = problem_array(s->slots, sizeof(int32_t));
    s->gate = problem_array(s->slots, sizeof(uint32_t));
    for (int64_t i = 0; i < s->slots; i++) {
        s->ids[i] = (int32_t)ids->i[i];
    }
    s->view.bitmatrix = moe_tensor_2d(s->bits, MOE_U32, s->tokens, s->words);
    s->view.bitmatrix.stride[0] = 1;
    s->view.bitmatrix.stride[1] = rows;
    s->view.counts = moe_tensor_1d(s->counts, MOE_I32, experts);
    s->view.offsets = moe_tensor_1d(s->offsets, MOE_I32, experts + 1);
    s->view.gather = moe_tensor_1d(s->gather, MOE_I32, s->slots);
    s->view.scatter = moe_tensor_1d(s->scatter, MOE_I32, s->slots);
    s->view.gate_scale = moe_tensor_1d(s->gate, values->view.dtype, s->slots);
}

static void forms_free(forms *s)
{
    free(s->ids);
    free(s->bits);
    free(s->counts);
    free(s->offsets);
    free(s->gather);
    free(s->scatter);
    free(s->gate);
}

// Selection and weights, the library's tie order aside.
static void check_selection(const item *logits, const item *ids, const item *values)
{
    const int64_t k = ids->columns;
    int64_t same_sets = 0;
    problem p;
    if (!run(&p, logits, route_desc(MOE_SCORING_SOFTMAX_SELECTED, MOE_RENORM_NONE), logits->columns,
             k)) {
        return;
    }
    for (int64_t t = 0; t < logits->rows; t++) {
        const float *row = logits->f + t * logits->columns;
        const int32_t *chosen = p.ids + t * k;
        int64_t common = 0;
        EXPECT(same_values(row, chosen, ids->i + t * k, k), "row %d: other values chosen", (int)t);
        EXPECT(lowest_ids(row, logits->columns, chosen, k), "row %d: not the lowest ids", (int)t);
        for (int64_t j = 0; j < k; j++) { // equal logits have equal weights, whatever the id
            for (int64_t i = 0; i < k; i++) {
                const int64_t id = ids->i[t * k + i];
                common += chosen[j] == id;
                if (row[chosen[j]] != row[id]) {
                    continue;
                }
                const float w = p.weights[t * k + j];
                const float expected = values->f[t * k + i];
                const bool narrow = values->view.dtype == MOE_BF16;
                EXPECT(narrow ? moei_bf16_to_f32(moei_f32_to_bf16(w)) == expected
                              : close_to((double)w, (double)expected, 1e-6),
                       "row %d id %d: weight %.9g, expected %.9g", (int)t, (int)id, (double)w,
                       (double)expected);
            }
        }
        same_sets += common == k;
    }
    const json_t *told =
        json_object_get(json_object_get(case_json, "tie_break"), "lowest_ids_win_rows");
    EXPECT(told == NULL || json_integer_value(told) == same_sets,
           "lowest ids in %d rows, the file says %d", (int)same_sets,
           (int)json_integer_value(told));
    note("; lowest ids also there in %d of %d rows, the others hold equal logits", (int)same_sets,
         (int)logits->rows);
    problem_free(&p);
}

// The way back: metadata of the file, in its storage order, to ids and weights.
static void check_way_back(forms *s, const item *values, const char *bits, const char *counts,
                           const char *offsets, const char *gather, const char *scatter)
{
    const char *const names[] = {bits, counts, offsets, gather, scatter};
    int32_t *const to[] = {NULL, s->counts, s->offsets, s->gather, s->scatter};
    int32_t *ids = problem_array(s->slots, sizeof(int32_t));
    float *weights = problem_array(s->slots, sizeof(float));
    const moe_tensor id_view = moe_tensor_2d(ids, MOE_I32, s->tokens, s->top_k);
    const moe_tensor weight_view = moe_tensor_2d(weights, MOE_F32, s->tokens, s->top_k);
    for (int n = 0; n < 5; n++) {
        item theirs = load(names[n]);
        for (int64_t i = 0; i < theirs.count; i++) {
            if (n == 0) {
                s->bits[i / s->words + i % s->words * s->view.bitmatrix.stride[1]] =
                    (uint32_t)theirs.i[i];
            } else {
                to[n][i] = (int32_t)theirs.i[i];
            }
        }
        release(&theirs);
    }
    const moe_status status = moe_routing_from_sparse(&s->view, s->experts, &id_view, &weight_view);
    EXPECT(status == MOE_OK, "%s", moe_last_error());
    for (int64_t i = 0; i < s->slots; i++) {
        EXPECT(ids[i] == s->ids[i] && weights[i] == values->f[i], "slot %d came back as %d, %g",
               (int)i, (int)ids[i], (double)weights[i]);
    }
    free(ids);
    free(weights);
}

// The tuple (values, ids, bit matrix) with RoutingData, GatherIndx and ScatterIndx if `tuple`, else
// the SparseMatrix with ragged metadata. Ids and values of the file in, metadata compared.
static void triton_case(const item *logits, bool tuple)
{
    item ids = load(tuple ? "topk.indx" : "sparse.indx");
    item values = load(tuple ? "topk.vals" : "sparse.vals");
    const char *bits = tuple ? "topk.bitmatrix.storage.data" : "sparse.mask.storage.data";
    const char *counts = tuple ? "routing.0.expt_hist" : "sparse.mask_metadata.col_sum";
    const char *offsets = tuple ? "routing.0.expt_data.token_offs_raw" : "ragged.slice_offs";
    const char *gather = tuple ? "routing.1.src_indx" : "sparse.mask_metadata.col_sorted_indx";
    const char *scatter = tuple ? "routing.1.dst_indx" : "sparse.mask_metadata.row_sorted_indx";
    const int32_t experts = (int32_t)logits->columns;
    forms s;
    forms_alloc(&s, &ids, &values, experts);
    check_selection(logits, &ids, &values);
    const moe_tensor id_view = moe_tensor_2d(s.ids, MOE_I32, s.tokens, s.top_k);
    const moe_tensor weight_view =
        moe_tensor_2d((const char *)values.view.data + values.view.byte_offset, values.view.dtype,
                      s.tokens, s.top_k);
    EXPECT(moe_routing_to_sparse(&id_view, &weight_view, experts, &s.view) == MOE_OK, "%s",
           moe_last_error());
    item words = load(bits);
    EXPECT(words.found && words.count == s.tokens * s.words, "bit matrix of %d words",
           (int)words.count);
    for (int64_t i = 0; i < words.count; i++) {
        const uint32_t word = s.bits[i / s.words + i % s.words * s.view.bitmatrix.stride[1]];
        EXPECT(word == (uint32_t)words.i[i], "word %d: %08x, expected %08x", (int)i, word,
               (uint32_t)words.i[i]);
    }
    release(&words);
    expect_item(counts, s.counts, experts);
    expect_item(offsets, s.offsets, experts + 1);
    expect_item(gather, s.gather, s.slots);
    expect_item(scatter, s.scatter, s.slots);
    if (tuple) {
        item gate = load("routing.0.gate_scal");
        expect_item("routing.0.expt_data.hist", s.counts, experts);
        expect_item("routing.2.src_indx", s.scatter, s.slots);
        expect_item("routing.2.dst_indx", s.gather, s.slots);
        for (int64_t i = 0; i < gate.count; i++) {
            const float ours = float_at(&s.view.gate_scale, i);
            EXPECT(ours == gate.f[i], "gate_scal[%d] = %.9g, expected %.9g", (int)i, (double)ours,
                   (double)gate.f[i]);
        }
        release(&gate);
    } else {
        expect_item("ragged.slice_sizes", s.counts, experts);
    }
    int sizes = 0;
    for (int32_t block = 16; block <= 128; block *= 2, sizes++) {
        char text[64];
        (void)snprintf(text, sizeof text, "routing.0.expt_data.token_offs_pad.%d", (int)block);
        item begin = load(tuple ? text : "ragged.block_offs_data");
        (void)snprintf(text, sizeof text, "routing.0.expt_data.block_pid_map.%d", (int)block);
        item map = load(tuple ? text : "ragged.block_schedule_data");
        check_blocks(&id_view, experts, block, &begin, &map, tuple ? 0 : sizes);
        release(&begin);
        release(&map);
    }
    check_way_back(&s, &values, bits, counts, offsets, gather, scatter);
    note("; block entries past the last block not compared");
    forms_free(&s);
    release(&ids);
    release(&values);
}

// ---- Blocks of transformers -------------------------------------------------------------------

static moe_status find_shape(void *self, const char *name, moe_tensor *out)
{
    char full[256];
    (void)self;
    (void)snprintf(full, sizeof full, "%s/w.%s", case_name, name);
    return moe_file_tensor(file, full, out);
}

// A vector named by a key of the semantics, as f32.
static item load_vector(const char *key)
{
    const json_t *semantics = json_object_get(case_json, "semantics");
    const char *name = json_string_value(json_object_get(semantics, key));
    return load2("w.", name != NULL ? name : "?");
}

// Ids as sets with their weights, for T tokens.
static void check_block(const moe_layer_desc *d, const char *suffix)
{
    const char *ids_item = json_string_value(json_object_get(case_json, "ids_item"));
    const char *slot_item = json_string_value(json_object_get(case_json, "weights_slot_item"));
    item logits = load2("logits", suffix);
    item ids = load2(ids_item != NULL ? ids_item : "ids", suffix);
    item weights = load2("weights", suffix);
    item order = load2(slot_item != NULL ? slot_item : "?", suffix);
    item bias = load_vector("correction_bias");
    item scale = load_vector("scale_tensor");
    problem p;
    memset(&p, 0, sizeof p);
    p.desc = d->route;
    p.experts = d->num_experts;
    p.top_k = d->top_k;
    p.tokens = logits.rows;
    problem_alloc(&p);
    const int64_t k = p.top_k;
    EXPECT(logits.columns == p.rows && ids.count == p.tokens * k && weights.count == p.tokens * k,
           "%s: logits [.., %d], %d ids, %d weights", suffix, (int)logits.columns, (int)ids.count,
           (int)weights.count);
    if (logits.count == p.tokens * p.rows && ids.i != NULL && weights.f != NULL &&
        ids.count == p.tokens * k && weights.count == ids.count) {
        memcpy(p.logits, logits.f, (size_t)logits.count * sizeof(float));
        for (int64_t i = 0; bias.f != NULL && i < bias.count; i++) {
            p.bias[i] = bias.f[i];
        }
        p.scale_tensor = scale.f != NULL ? scale.f[0] : 1.0f;
        const moe_status status = problem_run(ctx, &p);
        EXPECT(status == MOE_OK, "%s: %s", suffix, moe_last_error());
        for (int64_t i = 0; status == MOE_OK && i < ids.count; i++) {
            // Element i of the weights belongs to slot `at` of the ids.
            const int64_t at = order.found ? order.i[i] : i;
            const int64_t t = at / k;
            int64_t j = 0;
            while (j < k && p.ids[t * k + j] != ids.i[at]) {
                j++;
            }
            EXPECT(j < k, "%s: token %d: id %d was not chosen", suffix, (int)t, (int)ids.i[at]);
            EXPECT(j == k || close_to((double)p.weights[t * k + j], (double)weights.f[i], 1e-5),
                   "%s: token %d id %d: weight %.9g, expected %.9g", suffix, (int)t, (int)ids.i[at],
                   (double)p.weights[t * k + (j < k ? j : 0)], (double)weights.f[i]);
        }
    }
    problem_free(&p);
    release(&logits);
    release(&ids);
    release(&weights);
    release(&order);
    release(&bias);
    release(&scale);
}

// Returns a reason where the case cannot be read.
static const char *block_case(void)
{
    moe_layer_desc d = moe_layer_desc_default();
    char *text = json_dumps(case_json, JSON_COMPACT);
    const moe_status s = moe_layer_desc_from_semantics(
        text != NULL ? text : "", text != NULL ? strlen(text) : 0, find_shape, NULL, &d);
    char prefix[128];
    int sizes = 0;
    free(text);
    if (s != MOE_OK) {
        return moe_last_error();
    }
    if (d.routing != MOE_ROUTING_FROM_LOGITS) {
        return "nothing is routed";
    }
    const int length = snprintf(prefix, sizeof prefix, "%s/x", case_name);
    for (size_t i = 0; i < moe_file_count(file); i++) {
        const char *name = moe_file_name(file, i);
        if (strncmp(name, prefix, (size_t)length) == 0 && name[length] == '.') {
            check_block(&d, name + length);
            sizes++;
        }
    }
    return sizes > 0 ? NULL : "no inputs in the file";
}

// ---- Files ------------------------------------------------------------------------------------

static bool has(const char *name)
{
    item r = load(name);
    release(&r);
    return r.found;
}

static const char *run_case(void)
{
    const char *reason = NULL;
    if (json_object_get(case_json, "semantics") != NULL) {
        return block_case();
    }
    item logits = load("logits");
    if (!logits.found || logits.f == NULL) {
        reason = "it holds no logits";
    } else if (has("topk.indx")) {
        triton_case(&logits, true);
    } else if (has("sparse.indx")) {
        triton_case(&logits, false);
    } else if (has("logits_topk_vals.cpu")) {
        nonfinite_case(&logits);
    } else if (has("softmax_topk_ids.cpu")) {
        topk_case(&logits);
    } else {
        reason = "nothing here reads what it holds";
    }
    release(&logits);
    return reason;
}

static void run_file(const char *path)
{
    json_error_t error;
    long cases = 0, good = 0, skipped = 0;
    if (!CHECK(moe_file_open(path, MOE_FILE_DEFAULT, &file) == MOE_OK, "%s", moe_last_error())) {
        return;
    }
    const char *text = moe_file_metadata(file, "cases");
    json_t *all = text != NULL ? json_loads(text, 0, &error) : NULL;
    CHECK(all != NULL, "%s: no cases in its metadata", path);
    for (void *it = json_object_iter(all); it != NULL; it = json_object_iter_next(all, it)) {
        case_name = json_object_iter_key(it);
        case_json = json_object_iter_value(it);
        held = 0;
        compared = 0;
        notes[0] = '\0';
        const char *reason = run_case();
        cases++;
        if (reason != NULL) {
            (void)printf("%s: skipped: %s\n", case_name, reason);
            skipped++;
            continue;
        }
        (void)printf("%s: %ld of %ld%s\n", case_name, held, compared, notes);
        good += CHECK(held == compared && compared > 0, "%s: %ld of %ld hold", case_name, held,
                      compared);
    }
    (void)printf("%s: %ld of %ld cases, %ld skipped\n", path, good, cases - skipped, skipped);
    CHECK(cases > skipped, "%s: every case was skipped", path);
    json_decref(all);
    moe_file_close(file);
    file = NULL;
}

int main(int argc, char **argv)
{
    ctx = route_context(NULL, 2);
    if (argc < 2 || !CHECK(ctx != NULL, "no context: %s", moe_last_error())) {
        (void)fprintf(stderr,
                      "usage: test_oracle_routing ROUTING.safetensors [BLOCKS.safetensors]\n");
        moe_context_destroy(ctx);
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        run_file(argv[i]);
    }
    moe_context_destroy(ctx);
    return test_summary();
}
