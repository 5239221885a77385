// SPDX-License-Identifier: Apache-2.0
// Every place row: ids through replicas and expert_map, weights, load, exactly as the rules of
// docs/routing.md say, slot by slot.
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "float64/route.h"
#include "ops/backend.h"
#include "ops/place.h"
#include "quant/elements.h"

#define CASES 500

typedef struct place_case {
    moek_place_args a;
    moec_buffers buffers;
    char text[200];
} place_case;

static void draw_sizes(moek_place_args *a, moec_rng *rng)
{
    static const int32_t experts[] = {1, 2, 7, 32, 129, 1024};
    a->tokens = moec_below(rng, 8) == 0 ? 0 : moec_below(rng, 300); // tasks of 64 tokens
    a->top_k = 1 + (int32_t)moec_below(rng, 9);
    a->num_experts = experts[moec_below(rng, 6)];
    a->num_identity = moec_below(rng, 2) == 0 ? 0 : (int32_t)moec_below(rng, 5);
    a->num_physical = a->num_experts;
    a->id_dtype = moec_below(rng, 2) == 0 ? MOE_I64 : MOE_I32;
    a->id_token_stride = a->top_k + moec_below(rng, 3);
    a->weight_dtype = moec_below(rng, 2) == 0 ? MOE_BF16 : MOE_F32;
    a->weight_token_stride = a->top_k + moec_below(rng, 3);
    a->out_id_dtype = moec_below(rng, 2) == 0 ? MOE_I64 : MOE_I32;
    a->out_id_stride = a->top_k + moec_below(rng, 3);
    a->out_weight_dtype = moec_below(rng, 2) == 0 ? MOE_BF16 : MOE_F32;
    a->out_weight_stride = a->top_k + moec_below(rng, 3);
}

// Elements of T rows of k with a stride; nothing after the last.
static int64_t extent(const moek_place_args *a, int64_t stride)
{
    return a->tokens > 0 ? (a->tokens - 1) * stride + a->top_k : 0;
}

// A table with every kind of bad entry: counts out of range, ids out of range.
static void draw_replicas(place_case *c, moec_rng *rng)
{
    moek_place_args *a = &c->a;
    a->replica_slots = 1 + (int32_t)moec_below(rng, 4);
    a->replica_stride = a->replica_slots + moec_below(rng, 2);
    a->num_physical = a->num_experts + (int32_t)moec_below(rng, 2 * a->num_experts);
    const int64_t entries = (a->num_experts - 1) * a->replica_stride + a->replica_slots;
    int32_t *table = moec_input(&c->buffers, entries, sizeof *table);
    int32_t *count = moec_input(&c->buffers, a->num_experts, sizeof *count);
    for (int64_t i = 0; table != NULL && i < entries; i++) {
        table[i] = moec_below(rng, 12) == 0 ? a->num_physical
                                            : (int32_t)moec_below(rng, a->num_physical + 1) - 1;
    }
    for (int32_t e = 0; count != NULL && e < a->num_experts; e++) {
        count[e] = moec_below(rng, 8) == 0 ? (int32_t)moec_below(rng, 12) - 4
                                           : 1 + (int32_t)moec_below(rng, a->replica_slots);
    }
    a->replica_table = table;
    a->replica_count = count;
}

static void draw_inputs(place_case *c, moec_rng *rng)
{
    moek_place_args *a = &c->a;
    moec_buffers *b = &c->buffers;
    const int64_t ids = extent(a, a->id_token_stride);
    void *stored = moec_input(b, ids, a->id_dtype == MOE_I64 ? 8 : 4);
    for (int64_t i = 0; stored != NULL && i < ids; i++) {
        const int64_t odd = moec_below(rng, 30);
        const int64_t far =
            a->id_dtype == MOE_I64 ? (int64_t)1 << (32 + moec_below(rng, 31)) : INT32_MAX;
        moec_id_put(a->id_dtype, stored, i,
                    odd == 0   ? INT32_MIN
                    : odd == 1 ? far
                               : moec_below(rng, a->num_experts + a->num_identity + 4) - 2);
    }
    a->ids = stored;
    if (moec_below(rng, 4) != 0) {
        const int64_t n = extent(a, a->weight_token_stride);
        const size_t size = (size_t)moe_dtype_bits(a->weight_dtype) / 8;
        unsigned char *weights = moec_input(b, n, size);
        for (int64_t i = 0; weights != NULL && i < n; i++) {
            const float w = (float)moec_normal(rng);
            moei_store_f32(a->weight_dtype, weights + (size_t)i * size, 1, &w);
        }
        a->weights = weights;
    }
    if (moec_below(rng, 2) == 0) {
        draw_replicas(c, rng);
    }
    a->num_local = a->num_physical;
    if (moec_below(rng, 2) == 0) {
        int32_t *map = moec_input(b, a->num_physical, sizeof *map);
        a->num_local = 1 + (int32_t)moec_below(rng, a->num_physical);
        for (int32_t e = 0; map != NULL && e < a->num_physical; e++) {
            map[e] = (int32_t)moec_below(rng, a->num_local + 4) - 2;
        }
        a->expert_map = map;
    }
    a->num_valid = moec_draw_valid(rng, b, a->tokens);
}

static void make_outputs(place_case *c, moec_rng *rng)
{
    moek_place_args *a = &c->a;
    moec_buffers *b = &c->buffers;
    const int64_t slots = a->tokens * a->top_k;
    a->router_ids = moec_output(b, slots, sizeof(int32_t));
    a->local_ids = moec_output(b, slots, sizeof(int32_t));
    a->local_weights = moec_output(b, slots, sizeof(float));
    if (moec_below(rng, 2) == 0) {
        a->out_ids =
            moec_output(b, extent(a, a->out_id_stride), a->out_id_dtype == MOE_I64 ? 8 : 4);
    }
    if (moec_below(rng, 2) == 0) {
        a->out_weights = moec_output(b, extent(a, a->out_weight_stride),
                                     (size_t)moe_dtype_bits(a->out_weight_dtype) / 8);
    }
    if (moec_below(rng, 2) == 0) {
        a->load = moec_output(b, a->num_physical, sizeof(int32_t));
    }
}

static int32_t load_before(int32_t expert)
{
    return 100 + expert % 7;
}

static void reset(const void *args)
{
    const moek_place_args *a = args;
    for (int32_t e = 0; a->load != NULL && e < a->num_physical; e++) {
        a->load[e] = load_before(e);
    }
}

typedef struct placed {
    int32_t router, physical, local;
    float weight;
} placed;

static placed expect(const moek_place_args *a, int64_t t, int32_t j)
{
    placed p = {-1, -1, -1, 0.0f};
    const int64_t id = moec_id_at(a->id_dtype, a->ids, t * a->id_token_stride + j);
    if ((a->num_valid != NULL && t >= a->num_valid[0]) || id < 0 ||
        id >= (int64_t)a->num_experts + a->num_identity) {
        return p;
    }
    p.router = (int32_t)id;
    p.weight = a->weights != NULL
                   ? moei_load_one(a->weight_dtype, a->weights, t * a->weight_token_stride + j)
                   : 1.0f;
    if (id >= a->num_experts) {
        return p;
    }
    p.physical = a->replica_table != NULL
                     ? float64_replica(a->replica_table, a->replica_stride, a->replica_slots,
                                       a->replica_count, t, p.router)
                     : p.router;
    if (p.physical < 0 || p.physical >= a->num_physical) {
        p.physical = -1;
        return p;
    }
    p.local = a->expert_map != NULL ? a->expert_map[p.physical] : p.physical;
    p.local = p.local >= 0 && p.local < a->num_local ? p.local : -1;
    return p;
}

static bool poisoned(const void *base, int64_t i, size_t size)
{
    const unsigned char *p = (const unsigned char *)base + (size_t)i * size;
    for (size_t b = 0; b < size; b++) {
        if (p[b] != MOEC_POISON) {
            return false;
        }
    }
    return true;
}

// What the optional copies hold at slot j of token t; j from top_k on: the gap before the next
// token.
static bool copies_hold(const moek_place_args *a, int64_t t, int64_t j, const placed *p)
{
    const bool written = j < a->top_k && (a->num_valid == NULL || t < a->num_valid[0]);
    bool same = true;
    if (a->out_ids != NULL && j < a->out_id_stride) {
        const int64_t i = t * a->out_id_stride + j;
        const size_t size = a->out_id_dtype == MOE_I64 ? 8 : 4;
        same = written ? moec_id_at(a->out_id_dtype, a->out_ids, i) == p->router
                       : poisoned(a->out_ids, i, size);
    }
    if (a->out_weights != NULL && j < a->out_weight_stride) {
        const int64_t i = t * a->out_weight_stride + j;
        const size_t size = (size_t)moe_dtype_bits(a->out_weight_dtype) / 8;
        const float want = moei_round_to(a->out_weight_dtype, p->weight);
        const float have = moei_load_one(a->out_weight_dtype, a->out_weights, i);
        same &=
            written ? memcmp(&have, &want, sizeof have) == 0 : poisoned(a->out_weights, i, size);
    }
    return same;
}

static bool as_expected(const moek_place_args *a, int32_t *load, char *where, size_t size)
{
    for (int32_t e = 0; e < a->num_physical; e++) {
        load[e] = load_before(e);
    }
    for (int64_t t = 0; t < a->tokens; t++) {
        const int64_t gap = t + 1 < a->tokens ? 2 : 0; // nothing lies after the last token
        for (int64_t j = 0; j < a->top_k + gap; j++) {
            const placed none = {-1, -1, -1, 0.0f};
            const placed p = j < a->top_k ? expect(a, t, (int32_t)j) : none;
            if (!copies_hold(a, t, j, &p)) {
                (void)snprintf(where, size, "token %lld slot %lld: out_ids or out_weights",
                               (long long)t, (long long)j);
                return false;
            }
            if (j >= a->top_k) {
                continue;
            }
            const int64_t s = t * a->top_k + j;
            if (a->router_ids[s] != p.router || a->local_ids[s] != p.local ||
                memcmp(&a->local_weights[s], &p.weight, sizeof p.weight) != 0) {
                (void)snprintf(where, size,
                               "token %lld slot %lld: router %d local %d weight %.9g, expected %d "
                               "%d %.9g",
                               (long long)t, (long long)j, (int)a->router_ids[s],
                               (int)a->local_ids[s], (double)a->local_weights[s], (int)p.router,
                               (int)p.local, (double)p.weight);
                return false;
            }
            if (p.physical >= 0) {
                load[p.physical]++;
            }
        }
    }
    return a->load == NULL || moec_same_i32("load", a->load, load, a->num_physical, where, size);
}

static void run_case(moec_run *run, const moec_teams *teams, const moei_kernel *kernel, int number,
                     moec_rng *rng)
{
    place_case c;
    memset(&c, 0, sizeof c);
    c.buffers.flip = number % 2 == 1;
    draw_sizes(&c.a, rng);
    draw_inputs(&c, rng);
    make_outputs(&c, rng);
    (void)snprintf(c.text, sizeof c.text,
                   "case %d: T=%lld k=%d E=%d zero=%d physical=%d local=%d ids %s%s%s%s", number,
                   (long long)c.a.tokens, (int)c.a.top_k, (int)c.a.num_experts,
                   (int)c.a.num_identity, (int)c.a.num_physical, (int)c.a.num_local,
                   moe_dtype_name(c.a.id_dtype), c.a.replica_table != NULL ? " replicas" : "",
                   c.a.expert_map != NULL ? " map" : "", c.a.num_valid != NULL ? " num_valid" : "");
    int32_t *load = malloc((size_t)c.a.num_physical * sizeof *load);
    if (moec_wants_case(run, number) &&
        moec_check(run, !c.buffers.failed && load != NULL, kernel->name, "%s: %s: no memory",
                   kernel->name, c.text)) {
        const moec_launch launch = {
            .kernel = kernel, .args = &c.a, .reset = reset, .buffers = &c.buffers, .text = c.text};
        const uint64_t hash = moec_run_all(run, teams, &launch);
        char where[200] = "";
        moec_check(run, as_expected(&c.a, load, where, sizeof where), kernel->name, "%s: %s: %s",
                   kernel->name, c.text, where);
        moec_rows_agree(run, kernel, number, hash, c.text);
    }
    free(load);
    moec_buffers_free(&c.buffers);
}

void moec_check_place(moec_run *run, const moei_kernel *kernel)
{
    moec_rng rng = {run->options->seed * 733u + 7u};
    moec_teams teams;
    if (!moec_check(run, moec_teams_make(run, &teams), kernel->name, "%s: no threads",
                    kernel->name)) {
        return;
    }
    for (int i = 0; i < CASES; i++) {
        run_case(run, &teams, kernel, i, &rng);
    }
    moec_teams_free(&teams);
}
