// SPDX-License-Identifier: Apache-2.0
// Every sort row: both forms, exactly as the plain statement sorts.
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "float64/sort.h"
#include "ops/backend.h"
#include "ops/sort.h"

#define CASES 360

typedef struct sort_case {
    moek_sort_args a;
    moec_buffers buffers;
    plain_sort want;
    void *memory; // of the expected results
    char text[160];
} sort_case;

// Ids that name experts, and some that do not: just outside, far outside, and wide ones whose low
// half would name an expert.
static int64_t draw_id(moec_rng *rng, moe_dtype dtype, int64_t experts, int mode)
{
    const int64_t odd = moec_below(rng, 40);
    if (odd == 0) {
        return moec_below(rng, 2) == 0 ? INT32_MAX : INT32_MIN;
    }
    if (odd == 1 && dtype == MOE_I64) {
        return (int64_t)1 << (32 + moec_below(rng, 31));
    }
    switch (mode) {
    case 0:
        return moec_below(rng, experts + 4) - 2;
    case 1: // nearly all with one expert
        return moec_below(rng, 8) == 0 ? moec_below(rng, experts) : experts / 2;
    default: // few experts
        return moec_below(rng, experts < 3 ? experts : 3);
    }
}

static void draw_sizes(moek_sort_args *a, moec_rng *rng)
{
    static const int64_t experts[] = {1, 2, 8, 17, 60, 64, 128, 257, 1024, 8192};
    static const int32_t blocks[] = {1, 2, 4, 7, 16, 64, 128};
    a->tokens =
        moec_below(rng, 6) == 0 ? 0 : moec_below(rng, moec_below(rng, 20) == 0 ? 6000 : 150);
    a->top_k = (int32_t)moec_below(rng, 11);
    a->num_experts = (int32_t)experts[moec_below(rng, 10)];
    a->block = moec_below(rng, 2) == 0 ? 0 : blocks[moec_below(rng, 7)];
    a->id_dtype = moec_below(rng, 2) == 0 ? MOE_I64 : MOE_I32;
    a->id_token_stride = a->top_k + moec_below(rng, 3);
    a->count_dtype = moec_below(rng, 2) == 0 ? MOE_I64 : MOE_I32;
    a->padded = a->tokens * a->top_k;
    if (a->block != 0) {
        a->padded = moe_sort_padded_size(a->padded, a->num_experts, a->block);
    }
}

static void draw_inputs(sort_case *c, moec_rng *rng)
{
    moek_sort_args *a = &c->a;
    moec_buffers *b = &c->buffers;
    const size_t id_size = a->id_dtype == MOE_I64 ? 8 : 4;
    const int64_t ids = a->tokens > 0 ? (a->tokens - 1) * a->id_token_stride + a->top_k : 0;
    const int mode = (int)moec_below(rng, 3);
    a->num_global = a->num_experts;
    if (moec_below(rng, 2) == 0) {
        a->num_global = 2 * a->num_experts + 1;
        int32_t *map = moec_input(b, a->num_global, sizeof *map);
        for (int32_t g = 0; map != NULL && g < a->num_global; g++) {
            map[g] = moec_below(rng, 2) == 0 ? -1 : (int32_t)moec_below(rng, a->num_experts + 1);
        }
        a->expert_map = map;
    }
    void *stored = moec_input(b, ids, id_size);
    for (int64_t i = 0; stored != NULL && i < ids; i++) { // gaps between tokens, too
        moec_id_put(a->id_dtype, stored, i, draw_id(rng, a->id_dtype, a->num_global, mode));
    }
    a->ids = stored;
    a->num_valid = moec_draw_valid(rng, b, a->tokens);
}

static void make_outputs(sort_case *c, moec_rng *rng)
{
    moek_sort_args *a = &c->a;
    moec_buffers *b = &c->buffers;
    a->slots = moec_output(b, a->padded, sizeof(int32_t));
    if (moec_below(rng, 4) != 0) {
        a->positions = moec_output(b, a->tokens * a->top_k, sizeof(int32_t));
    }
    if (moec_below(rng, 4) != 0) {
        a->counts = moec_output(b, a->num_experts, a->count_dtype == MOE_I64 ? 8 : 4);
    }
    if (a->block == 0) {
        a->offsets = moec_output(b, a->num_experts + 1, sizeof(int32_t));
    } else {
        a->block_experts = moec_output(b, (a->padded + a->block - 1) / a->block, sizeof(int32_t));
        a->num_padded = moec_output(b, 1, sizeof(int32_t));
    }
}

// The result by the statement.
static bool expect(sort_case *c)
{
    const moek_sort_args *a = &c->a;
    plain_sort *w = &c->want;
    const int64_t num_slots = a->tokens * a->top_k;
    const int64_t blocks = a->block == 0 ? 0 : (a->padded + a->block - 1) / a->block;
    const int64_t words = a->padded + num_slots + 2 * (int64_t)a->num_experts + 1 + blocks;
    int64_t *experts =
        malloc((size_t)num_slots * sizeof(int64_t) + (size_t)words * sizeof(int32_t));
    if (experts == NULL) {
        return false;
    }
    for (int64_t i = 0; i < num_slots; i++) {
        const int64_t t = i / a->top_k;
        int64_t id = moec_id_at(a->id_dtype, a->ids, t * a->id_token_stride + i % a->top_k);
        if (a->expert_map != NULL) {
            id = id >= 0 && id < a->num_global ? a->expert_map[id] : -1;
        }
        experts[i] = a->num_valid != NULL && t >= a->num_valid[0] ? -1 : id;
    }
    c->memory = experts;
    w->experts = experts;
    w->num_slots = num_slots;
    w->num_experts = a->num_experts;
    w->block = a->block;
    w->padded = a->padded;
    w->slots = (int32_t *)(void *)(experts + num_slots);
    w->positions = w->slots + a->padded;
    w->counts = w->positions + num_slots;
    w->offsets = w->counts + a->num_experts;
    w->block_experts = w->offsets + a->num_experts + 1;
    plain_sort_run(w);
    return true;
}

static bool as_expected(const sort_case *c, char *where, size_t size)
{
    const moek_sort_args *a = &c->a;
    const plain_sort *w = &c->want;
    for (int32_t e = 0; a->counts != NULL && e < a->num_experts; e++) {
        const int64_t count = moec_id_at(a->count_dtype, a->counts, e);
        if (count != w->counts[e]) {
            (void)snprintf(where, size, "counts[%d] = %lld, expected %d", (int)e, (long long)count,
                           (int)w->counts[e]);
            return false;
        }
    }
    const bool layout =
        a->block == 0
            ? moec_same_i32("offsets", a->offsets, w->offsets, a->num_experts + 1, where, size)
            : moec_same_i32("num_padded", a->num_padded, &w->num_padded, 1, where, size) &&
                  moec_same_i32("block_experts", a->block_experts, w->block_experts,
                                (a->padded + a->block - 1) / a->block, where, size);
    return layout && moec_same_i32("slots", a->slots, w->slots, a->padded, where, size) &&
           (a->positions == NULL ||
            moec_same_i32("positions", a->positions, w->positions, w->num_slots, where, size));
}

static void run_case(moec_run *run, const moec_teams *teams, const moei_kernel *kernel, int number,
                     moec_rng *rng)
{
    sort_case c;
    memset(&c, 0, sizeof c);
    c.buffers.flip = number % 2 == 1;
    draw_sizes(&c.a, rng);
    draw_inputs(&c, rng);
    make_outputs(&c, rng);
    (void)snprintf(c.text, sizeof c.text, "case %d: T=%lld k=%d E=%d block=%d ids %s%s%s", number,
                   (long long)c.a.tokens, (int)c.a.top_k, (int)c.a.num_experts, (int)c.a.block,
                   moe_dtype_name(c.a.id_dtype), c.a.expert_map != NULL ? " map" : "",
                   c.a.num_valid != NULL ? " num_valid" : "");
    if (moec_wants_case(run, number) &&
        moec_check(run, !c.buffers.failed && expect(&c), kernel->name, "%s: %s: no memory",
                   kernel->name, c.text)) {
        const moec_launch launch = {
            .kernel = kernel, .args = &c.a, .buffers = &c.buffers, .text = c.text};
        const uint64_t hash = moec_run_all(run, teams, &launch);
        char where[120] = "";
        moec_check(run, as_expected(&c, where, sizeof where), kernel->name, "%s: %s: %s",
                   kernel->name, c.text, where);
        moec_rows_agree(run, kernel, number, hash, c.text);
    }
    free(c.memory);
    moec_buffers_free(&c.buffers);
}

void moec_check_sort(moec_run *run, const moei_kernel *kernel)
{
    moec_rng rng = {run->options->seed * 577u + 11u};
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
