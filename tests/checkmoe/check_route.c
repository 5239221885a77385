// SPDX-License-Identifier: Apache-2.0
// Every route row, over the grid of problems that the tests of routing draw from: ids and weights
// against float64; the same bits alone, among other tokens and with every row; ids through replicas
// and expert_map, load, strides and narrow results, exactly as what was routed says.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "checkmoe/route_problem.h"
#include "float64/route.h"
#include "ops/backend.h"
#include "ops/route.h"
#include "quant/elements.h"

typedef struct route_case {
    problem p; // its outputs are those of `plain`
    moec_buffers buffers;
    moek_route_args plain; // compact f32 and int32 results, nothing mapped
    moec_buffers map_buffers;
    moek_route_args mapped; // the same tokens with every option of where results go
    int edge;               // PROBLEM_EDGES: none
    char text[200];
} route_case;

typedef struct route_check {
    moec_run *run;
    const moei_kernel *kernel;
    moec_teams teams;
    moec_rng rng;
    long exact, close; // tokens of random logits
} route_check;

static void *input_of(void *self, int64_t count)
{
    return moec_input(self, count, sizeof(float));
}

static void *output_of(void *self, int64_t count)
{
    return moec_output(self, count, sizeof(float));
}

// ---- The problem as the kernel sees it ----------------------------------------------------------

// Logits in the dtype that the kernel reads, with NaN between tokens; the problem's own become what
// these hold.
static void store_logits(route_case *c, moec_rng *rng)
{
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    problem *p = &c->p;
    const moe_dtype dtype = dtypes[moec_below(rng, 3)];
    const size_t size = (size_t)moe_dtype_bits(dtype) / 8;
    const int64_t stride = p->rows + moec_below(rng, 4);
    const int64_t n = p->tokens > 0 ? (p->tokens - 1) * stride + p->rows : 0;
    unsigned char *stored = moec_input(&c->buffers, n, size);
    for (int64_t i = 0; stored != NULL && i < n; i++) {
        const int64_t t = i / stride;
        const int64_t e = i % stride;
        float v = e < p->rows ? p->logits[t * p->rows + e] : NAN;
        moei_store_f32(dtype, stored + (size_t)i * size, 1, &v);
        if (e < p->rows) {
            p->logits[t * p->rows + e] = moei_load_one(dtype, stored, i);
        }
    }
    c->plain.logits = stored;
    c->plain.logit_dtype = dtype;
    c->plain.logit_token_stride = stride * (int64_t)size;
}

// Token ids and entries that name nothing; half of the time both as int64.
static void store_hash(route_case *c, moec_rng *rng)
{
    problem *p = &c->p;
    for (int64_t t = 0; t < p->tokens; t++) {
        const int64_t odd = moec_below(rng, 8);
        p->token_ids[t] = odd == 0 ? -1 : odd == 1 ? (int32_t)p->vocabulary : p->token_ids[t];
    }
    for (int64_t v = 0; v < p->vocabulary; v += 3) {
        p->hash_table[v * p->top_k] = v % 2 == 0 ? -5 : p->experts + p->desc.zero_experts;
    }
    if (moec_below(rng, 2) == 0) {
        return;
    }
    const int64_t stride = p->top_k + 2;
    const int64_t n = (p->vocabulary - 1) * stride + p->top_k;
    int64_t *table = moec_input(&c->buffers, n, sizeof *table);
    int64_t *tokens = moec_input(&c->buffers, p->tokens, sizeof *tokens);
    for (int64_t i = 0; table != NULL && i < n; i++) {
        table[i] = i % stride < p->top_k ? p->hash_table[i / stride * p->top_k + i % stride] : -1;
    }
    for (int64_t t = 0; tokens != NULL && t < p->tokens; t++) {
        tokens[t] = p->token_ids[t] == -1 ? (int64_t)1 << 32 : p->token_ids[t];
    }
    c->plain.hash_table = table;
    c->plain.token_ids = tokens;
    c->plain.hash_dtype = MOE_I64;
    c->plain.hash_token_stride = stride;
}

static bool build(route_case *c, route_check *check, int number)
{
    char what[120];
    moec_rng *rng = &check->rng;
    problem *p = &c->p;
    memset(c, 0, sizeof *c);
    c->buffers.flip = number % 2 == 1;
    c->map_buffers.flip = number % 2 == 1;
    const float spread = problem_draw(p, number, what, sizeof what);
    p->desc.append_shared = moec_below(rng, 3) == 0 ? 1 + (int32_t)moec_below(rng, 3) : 0;
    c->edge = moec_below(rng, 2) == 0 ? PROBLEM_EDGES : (int)moec_below(rng, PROBLEM_EDGES);
    problem_alloc_inputs(p, input_of, &c->buffers);
    problem_alloc_outputs(p, output_of, &c->buffers);
    float *scale = moec_input(&c->buffers, 1, sizeof *scale);
    float *gate = moec_input(&c->buffers, p->tokens * p->desc.append_shared, sizeof *gate);
    if (c->buffers.failed) {
        return false;
    }
    problem_fill(p, rng, spread);
    if (c->edge < PROBLEM_EDGES) {
        problem_fill_edge(p, rng, (problem_edge)c->edge);
    }
    const moe_route_args args = problem_args(p);
    if (moei_route_prepare(&args, "moe check", &c->plain) != MOE_OK) {
        return false;
    }
    scale[0] = p->scale_tensor;
    c->plain.scale_tensor = p->desc.scale_tensor ? scale : NULL;
    for (int64_t i = 0; i < p->tokens * p->desc.append_shared; i++) {
        gate[i] = (float)moec_normal(rng);
    }
    if (moec_below(rng, 2) == 0 && p->desc.append_shared > 0) {
        c->plain.shared_gate = gate;
        c->plain.shared_gate_stride = p->desc.append_shared;
    }
    store_logits(c, rng);
    if (p->desc.hash_table) {
        store_hash(c, rng);
    }
    static const char *const fills[] = {" ties", " specials", " masked", ""};
    (void)snprintf(c->text, sizeof c->text, "%s, %s%s%s%s", what,
                   moe_dtype_name(c->plain.logit_dtype), fills[c->edge],
                   p->desc.correction_bias ? " bias" : "",
                   p->desc.append_shared > 0 ? " append_shared" : "");
    return !c->buffers.failed;
}

// ---- What was routed ----------------------------------------------------------------------------

static void check_values(route_check *check, const route_case *c)
{
    const problem *p = &c->p;
    const char *name = check->kernel->name;
    for (int64_t t = 0; t < p->tokens; t++) {
        char text[200] = "";
        const problem_verdict verdict = problem_judge(p, t, text, sizeof text);
        moec_check(check->run, verdict != PROBLEM_DIFFERS, name, "%s: %s: %s", name, c->text, text);
        check->exact += c->edge == PROBLEM_EDGES && verdict == PROBLEM_HOLDS;
        check->close += c->edge == PROBLEM_EDGES && verdict == PROBLEM_CLOSE;
        for (int32_t j = 0; j < p->desc.append_shared; j++) {
            const int64_t at = t * p->slots + p->top_k + j;
            const int32_t id = p->experts + p->desc.zero_experts + j;
            const float weight = c->plain.shared_gate != NULL
                                     ? c->plain.shared_gate[t * c->plain.shared_gate_stride + j]
                                     : 1.0f;
            moec_check(check->run, p->ids[at] == id && p->weights[at] == weight, name,
                       "%s: %s: token %lld appended %d: id %d weight %.9g, expected %d %.9g", name,
                       c->text, (long long)t, (int)j, (int)p->ids[at], (double)p->weights[at],
                       (int)id, (double)weight);
        }
    }
}

static const unsigned char *token_of(const void *base, moe_dtype dtype, int64_t t)
{
    return (const unsigned char *)base + t * (dtype == MOE_I64 ? 8 : 4);
}

// The tokens `from`, in this order, as a batch of their own: the bits that each had in the whole.
static void check_batch(route_check *check, route_case *c, const int64_t *from, int64_t n,
                        const char *what)
{
    const problem *p = &c->p;
    const char *name = check->kernel->name;
    moek_route_args a = c->plain;
    problem q = *p;
    moec_buffers b;
    memset(&b, 0, sizeof b);
    q.tokens = n;
    problem_alloc_outputs(&q, output_of, &b);
    const int64_t row = p->rows * moe_dtype_bits(a.logit_dtype) / 8;
    const size_t token = a.hash_dtype == MOE_I64 ? 8 : 4;
    unsigned char *logits = moec_input(&b, n * row, 1);
    unsigned char *tokens = moec_input(&b, n, token);
    float *gate = moec_input(&b, n * p->desc.append_shared, sizeof *gate);
    if (moec_check(check->run, !b.failed, name, "%s: %s: no memory", name, c->text)) {
        for (int64_t i = 0; i < n; i++) {
            memcpy(logits + i * row, a.logits + from[i] * a.logit_token_stride, (size_t)row);
            if (a.token_ids != NULL) {
                memcpy(tokens + (size_t)i * token, token_of(a.token_ids, a.hash_dtype, from[i]),
                       token);
            }
            for (int32_t j = 0; a.shared_gate != NULL && j < p->desc.append_shared; j++) {
                gate[i * p->desc.append_shared + j] =
                    a.shared_gate[from[i] * a.shared_gate_stride + j];
            }
        }
        a.tokens = n;
        a.logits = logits;
        a.logit_token_stride = row;
        a.token_ids = a.token_ids != NULL ? tokens : NULL;
        a.shared_gate = a.shared_gate != NULL ? gate : NULL;
        a.ids = q.ids;
        a.weights = q.weights;
        a.shared_weights = q.shared;
        const moec_launch launch = {.kernel = check->kernel,
                                    .args = &a,
                                    .buffers = &b,
                                    .also = &c->buffers,
                                    .text = c->text};
        moec_launch_on(check->run, check->teams.ctx[2], &launch);
        int64_t wrong = -1;
        for (int64_t i = 0; i < n && wrong < 0; i++) {
            wrong = problem_same(p, from[i], &q, i, 1) ? -1 : from[i];
        }
        moec_check(check->run, wrong < 0, name, "%s: %s: token %lld gives other bits %s", name,
                   c->text, (long long)wrong, what);
    }
    moec_buffers_free(&b);
}

static void check_batches(route_check *check, route_case *c)
{
    const int64_t n = c->p.tokens;
    int64_t from[64];
    if (n == 0 || n > 64) {
        return;
    }
    for (int64_t i = 0; i < n; i++) { // a permutation, drawn
        const int64_t at = moec_below(&check->rng, i + 1);
        from[i] = from[at];
        from[at] = i;
    }
    check_batch(check, c, from, n, "in another order");
    check_batch(check, c, from, (n + 1) / 2, "beside fewer tokens");
    check_batch(check, c, from, 1, "alone");
}

// ---- Where it goes ------------------------------------------------------------------------------

static void draw_mapping(route_case *c, moec_rng *rng)
{
    moek_route_args *a = &c->mapped;
    moec_buffers *b = &c->map_buffers;
    const int32_t experts = a->num_experts;
    if (a->desc.zero_experts == 0 && moec_below(rng, 2) == 0) {
        a->replica_slots = 1 + (int32_t)moec_below(rng, 4);
        a->replica_stride = a->replica_slots + moec_below(rng, 2);
        a->num_physical = experts + (int32_t)moec_below(rng, 2 * experts);
        const int64_t entries = (experts - 1) * a->replica_stride + a->replica_slots;
        int32_t *table = moec_input(b, entries, sizeof *table);
        int32_t *count = moec_input(b, experts, sizeof *count);
        for (int64_t i = 0; table != NULL && i < entries; i++) {
            table[i] = (int32_t)moec_below(rng, a->num_physical + 2) - 1;
        }
        for (int32_t e = 0; count != NULL && e < experts; e++) {
            count[e] = (int32_t)moec_below(rng, a->replica_slots + 3) - 1;
        }
        a->replica_table = table;
        a->replica_count = count;
    }
    if (moec_below(rng, 3) != 0) {
        int32_t *map = moec_input(b, a->num_physical, sizeof *map);
        for (int32_t e = 0; map != NULL && e < a->num_physical; e++) {
            map[e] = (int32_t)moec_below(rng, a->num_physical + 4) - 2;
        }
        a->expert_map = map;
    }
    a->num_valid = moec_draw_valid(rng, b, a->tokens);
}

static void draw_outputs(route_case *c, moec_rng *rng)
{
    moek_route_args *a = &c->mapped;
    moec_buffers *b = &c->map_buffers;
    const int64_t slots = c->p.slots;
    a->id_dtype = moec_below(rng, 2) == 0 ? MOE_I64 : MOE_I32;
    a->weight_dtype = moec_below(rng, 2) == 0 ? MOE_BF16 : MOE_F32;
    a->id_token_stride = slots + moec_below(rng, 3);
    a->weight_token_stride = slots + moec_below(rng, 3);
    a->ids = moec_output(b, a->tokens * a->id_token_stride, a->id_dtype == MOE_I64 ? 8 : 4);
    a->weights = moec_output(b, a->tokens * a->weight_token_stride,
                             (size_t)moe_dtype_bits(a->weight_dtype) / 8);
    if (a->desc.shared_scores > 0) {
        a->shared_weight_stride = a->desc.shared_scores + moec_below(rng, 3);
        a->shared_weights = moec_output(b, a->tokens * a->shared_weight_stride, sizeof(float));
    }
    if (moec_below(rng, 3) != 0) {
        a->load = moec_output(b, a->num_physical, sizeof(int32_t));
    }
}

static int32_t load_before(int32_t expert)
{
    return 40 + expert % 5;
}

static void reset(const void *args)
{
    const moek_route_args *a = args;
    for (int32_t e = 0; a->load != NULL && e < a->num_physical; e++) {
        a->load[e] = load_before(e);
    }
}

// Id of a routed slot after replicas and map, by the rules; counts load.
static int32_t map_id(const moek_route_args *a, int64_t t, int32_t id, int32_t *load)
{
    if (id < 0 || id >= a->num_experts) {
        return id;
    }
    if (a->replica_table != NULL) {
        id = float64_replica(a->replica_table, a->replica_stride, a->replica_slots,
                             a->replica_count, t, id);
    }
    if (id < 0 || id >= a->num_physical) {
        return -1;
    }
    load[id]++;
    if (a->expert_map != NULL) {
        id = a->expert_map[id];
    }
    return id >= 0 && id < a->num_physical ? id : -1;
}

static uint64_t bits_at(const void *base, int64_t i, size_t size)
{
    uint64_t bits = 0;
    memcpy(&bits, (const unsigned char *)base + (size_t)i * size, size);
    return bits;
}

// Results of a token after the mapping; elements between tokens still hold poison.
static bool token_as_expected(const route_case *c, int64_t t, int32_t *load, char *where,
                              size_t size)
{
    const moek_route_args *a = &c->mapped;
    const problem *p = &c->p;
    const size_t id_size = a->id_dtype == MOE_I64 ? 8 : 4;
    const size_t weight_size = (size_t)moe_dtype_bits(a->weight_dtype) / 8;
    const bool valid = a->num_valid == NULL || t < a->num_valid[0];
    uint64_t poison;
    memset(&poison, MOEC_POISON, sizeof poison);
    for (int64_t j = 0; j < a->id_token_stride; j++) {
        const int64_t i = t * a->id_token_stride + j;
        int64_t want = -1;
        memcpy(&want, &poison, sizeof want);
        if (j < p->slots) {
            want = valid ? map_id(a, t, p->ids[t * p->slots + j], load) : -1;
        }
        if (bits_at(a->ids, i, id_size) != bits_at(&want, 0, id_size)) {
            (void)snprintf(where, size, "token %lld slot %lld: id %lld, expected %lld",
                           (long long)t, (long long)j,
                           (long long)moec_id_at(a->id_dtype, a->ids, i), (long long)want);
            return false;
        }
    }
    for (int64_t j = 0; j < a->weight_token_stride; j++) {
        const float w = j < p->slots && valid ? p->weights[t * p->slots + j] : 0.0f;
        uint64_t want = poison;
        if (j < p->slots) {
            moei_store_f32(a->weight_dtype, (uint8_t *)&want, 1, &w);
        }
        if (bits_at(a->weights, t * a->weight_token_stride + j, weight_size) !=
            bits_at(&want, 0, weight_size)) {
            (void)snprintf(where, size, "token %lld slot %lld: weight, expected %.9g", (long long)t,
                           (long long)j, (double)w);
            return false;
        }
    }
    for (int64_t j = 0; j < a->shared_weight_stride; j++) {
        uint64_t want = poison;
        if (j < a->desc.shared_scores) {
            const float w = valid ? p->shared[t * a->desc.shared_scores + j] : 0.0f;
            memcpy(&want, &w, sizeof w);
        }
        if (bits_at(a->shared_weights, t * a->shared_weight_stride + j, sizeof(float)) !=
            bits_at(&want, 0, sizeof(float))) {
            (void)snprintf(where, size, "token %lld: shared weight %lld", (long long)t,
                           (long long)j);
            return false;
        }
    }
    return true;
}

// Routes once more with a mapping and results elsewhere. Returns the hash of those.
static uint64_t check_mapped(route_check *check, route_case *c)
{
    const char *name = check->kernel->name;
    moek_route_args *a = &c->mapped;
    *a = c->plain;
    a->shared_weight_stride = 0;
    draw_mapping(c, &check->rng);
    draw_outputs(c, &check->rng);
    char text[300];
    (void)snprintf(text, sizeof text, "%s%s%s%s, ids %s, weights %s", c->text,
                   a->replica_table != NULL ? " replicas" : "", a->expert_map != NULL ? " map" : "",
                   a->num_valid != NULL ? " num_valid" : "", moe_dtype_name(a->id_dtype),
                   moe_dtype_name(a->weight_dtype));
    int32_t *load = malloc((size_t)a->num_physical * sizeof *load);
    uint64_t hash = 0;
    if (moec_check(check->run, load != NULL && !c->map_buffers.failed, name, "%s: %s: no memory",
                   name, text)) {
        const moec_launch launch = {.kernel = check->kernel,
                                    .args = a,
                                    .reset = reset,
                                    .buffers = &c->map_buffers,
                                    .also = &c->buffers,
                                    .text = text};
        char where[160] = "";
        hash = moec_run_all(check->run, &check->teams, &launch);
        for (int32_t e = 0; e < a->num_physical; e++) {
            load[e] = load_before(e);
        }
        bool same = true;
        for (int64_t t = 0; t < a->tokens && same; t++) {
            same = token_as_expected(c, t, load, where, sizeof where);
        }
        same = same && (a->load == NULL ||
                        moec_same_i32("load", a->load, load, a->num_physical, where, sizeof where));
        moec_check(check->run, same, name, "%s: %s: %s", name, text, where);
    }
    free(load);
    moec_buffers_free(&c->map_buffers);
    return hash;
}

static void run_case(route_check *check, int number)
{
    const char *name = check->kernel->name;
    route_case *c = calloc(1, sizeof *c);
    if (!moec_check(check->run, c != NULL, name, "%s: no memory", name)) {
        return;
    }
    if (moec_check(check->run, build(c, check, number), name, "%s: problem %d: %s", name, number,
                   c->buffers.failed ? "no memory" : moe_last_error())) {
        const moec_launch launch = {
            .kernel = check->kernel, .args = &c->plain, .buffers = &c->buffers, .text = c->text};
        const uint64_t hash = moec_run_all(check->run, &check->teams, &launch);
        check_values(check, c);
        check_batches(check, c);
        const uint64_t mapped = check_mapped(check, c);
        moec_check(check->run, moec_buffers_hash(&c->buffers, true) == hash, name,
                   "%s: %s: a later run wrote into these results", name, c->text);
        moec_rows_agree(check->run, check->kernel, number, hash ^ mapped, c->text);
    }
    moec_buffers_free(&c->buffers);
    free(c);
}

void moec_check_route(moec_run *run, const moei_kernel *kernel)
{
    route_check *check = calloc(1, sizeof *check);
    if (!moec_check(run, check != NULL && moec_teams_make(run, &check->teams), kernel->name,
                    "%s: no threads", kernel->name)) {
        free(check);
        return;
    }
    check->run = run;
    check->kernel = kernel;
    check->rng.state = run->options->seed * 389u + 13u;
    for (int number = 0; number < PROBLEM_GRID; number++) {
        if (!moec_wants_case(run, number)) {
            continue;
        }
        run_case(check, number);
    }
    moec_check(run, check->close * 20 < check->exact, kernel->name,
               "%s: %ld tokens of random logits too close to decide, %ld decided", kernel->name,
               check->close, check->exact);
    moec_teams_free(&check->teams);
    free(check);
}
