// SPDX-License-Identifier: Apache-2.0
// moei_gpu_prologue on the host: what one launch or two write is what route, place, sort and
// quantize write one after the other. Their own rows are checked by `moe check --device ext`.
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>

#include "backends/gpu/args.h"
#include "checkmoe/route_problem.h"
#include "ops/quantize.h"
#include "ops/route.h"
#include "sim/sim.h"
#include "unit/test.h"

static int launches;
static int seen[4];      // problems by their number of launches
static int few;          // launches of the body for few slots
static int quantized;    // of the one that quantises, too
static uint32_t cluster; // blocks, at most

uint32_t moei_gpu_cluster_blocks(const moei_exec *exec)
{
    (void)exec;
    return cluster;
}

moe_status moei_gpu_launch(const moei_exec *exec, moei_gpu_body body, moei_gpu_grid grid,
                           const void *args)
{
    char text[256];
    (void)exec;
    launches++;
    few += body == MOEI_GPU_prologue_few;
    quantized += body == MOEI_GPU_prologue_quantize;
    return CHECK(moei_sim_launch(&moei_sim_bodies[body], grid, args, 0, text, sizeof text), "%s",
                 text)
               ? MOE_OK
               : MOE_E_DEVICE;
}

// Counters that a launch leaves at 0, and what lies beside them.
enum { MAX_COUNTERS = 900, OTHER = 7 };
static int32_t counters[MAX_COUNTERS + 2];

static moei_gpu_counters next_counters(void)
{
    static uint32_t count;
    count = (count + 211) % (MAX_COUNTERS + 1);
    for (int i = 0; i < MAX_COUNTERS + 2; i++) {
        counters[i] = OTHER;
    }
    return (moei_gpu_counters){counters + 1, count};
}

static void check_counters(const moei_gpu_counters *c, const char *what)
{
    int wrong = 0;
    for (uint32_t i = 0; i < MAX_COUNTERS + 2; i++) {
        wrong += counters[i] != (i >= 1 && i <= c->count ? 0 : OTHER);
    }
    CHECK(wrong == 0, "%s: %d of %u counters and their neighbours", what, wrong, c->count);
}

// Everything that the three write, in one piece of memory, and their arguments over it.
typedef struct outputs {
    unsigned char *memory;
    size_t bytes;
    moek_route_args route;
    moek_place_args place;
    moek_sort_args sort;
} outputs;

static void *part(outputs *o, size_t *at, int64_t count)
{
    void *p = o->memory + *at;
    *at += (size_t)count * sizeof(int32_t);
    return p;
}

static void make(outputs *o, const problem *p, const moek_route_args *route, int32_t block,
                 const int32_t *map, const int32_t *num_valid)
{
    const int32_t top_k = (int32_t)p->slots;
    const int64_t slots = p->tokens * top_k;
    const int64_t padded = block > 0 ? moe_sort_padded_size(slots, p->experts, block) : slots;
    size_t at = 0;
    memset(o, 0, sizeof *o);
    o->bytes = (size_t)(2 * p->tokens * p->slots + p->tokens * p->desc.shared_scores + 6 * slots +
                        2 * padded + 4 * p->experts + 2) *
               sizeof(int32_t);
    o->memory = problem_array((int64_t)o->bytes, 1);
    o->route = *route;
    o->route.num_valid = num_valid;
    o->route.ids = part(o, &at, p->tokens * p->slots);
    o->route.weights = part(o, &at, p->tokens * p->slots);
    o->route.shared_weights = part(o, &at, p->tokens * p->desc.shared_scores);
    o->route.load = part(o, &at, p->experts);
    moek_place_args *l = &o->place;
    l->tokens = p->tokens;
    l->top_k = top_k;
    l->num_experts = p->experts;
    l->num_identity = p->desc.zero_experts;
    l->num_physical = p->experts;
    l->num_local = p->experts;
    l->num_valid = num_valid;
    l->ids = o->route.ids;
    l->id_dtype = MOE_I32;
    l->id_token_stride = p->slots;
    l->weights = o->route.weights;
    l->weight_dtype = MOE_F32;
    l->weight_token_stride = p->slots;
    l->expert_map = map;
    l->load = part(o, &at, p->experts);
    l->out_ids = part(o, &at, slots);
    l->out_id_dtype = MOE_I32;
    l->out_id_stride = l->top_k;
    l->out_weights = part(o, &at, slots);
    l->out_weight_dtype = MOE_F32;
    l->out_weight_stride = l->top_k;
    l->router_ids = part(o, &at, slots);
    l->local_ids = part(o, &at, slots);
    l->local_weights = part(o, &at, slots);
    moek_sort_args *s = &o->sort;
    s->tokens = p->tokens;
    s->top_k = top_k;
    s->num_experts = p->experts;
    s->ids = l->local_ids;
    s->id_dtype = MOE_I32;
    s->id_token_stride = top_k;
    s->block = block;
    s->padded = padded;
    s->positions = part(o, &at, slots);
    s->slots = part(o, &at, padded);
    s->counts = part(o, &at, p->experts);
    s->count_dtype = MOE_I32;
    if (block == 0) {
        s->offsets = part(o, &at, p->experts + 1);
    } else {
        s->block_experts = part(o, &at, (padded + block - 1) / block);
        s->num_padded = part(o, &at, 1);
    }
}

// Rows to quantise beside routing; codes and scales are one piece of memory.
static moek_quantize_args draw_rows(const problem *p, moec_rng *rng, const int32_t *total,
                                    size_t *bytes)
{
    static const moe_quant_desc descs[] = {{.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 128},
                                           {.spec = MOE_QUANT_MX_CEIL},
                                           {.spec = MOE_QUANT_FP8_GROUP_RECIP, .group = 128},
                                           {.spec = MOE_QUANT_FP8_TOKEN}};
    const moe_quant_desc *desc = &descs[moec_below(rng, 4)];
    const int64_t k = 8 * (1 + (int64_t)moec_below(rng, 80));
    const moei_scale_shape shape = moei_quant_scale_shape(desc, 1, p->tokens, k);
    moek_quantize_args a = moei_quantize_args_make(desc);
    float *x = problem_array(p->tokens * k, sizeof *x);
    for (int64_t i = 0; i < p->tokens * k; i++) {
        x[i] = (float)moec_below(rng, 2001) - 1000.0f;
    }
    a.rows = p->tokens;
    a.k = k;
    a.total = total;
    a.x = (uint8_t *)x;
    a.x_dtype = MOE_F32;
    a.x_row_stride = k * (int64_t)sizeof *x;
    a.q_row_stride = moei_quant_row_bytes(a.quant.elem, k);
    a.scale_row_stride = shape.row_stride;
    a.scale_k_stride = shape.k_stride;
    a.zero_absent_scales = moec_below(rng, 2) == 0;
    const size_t codes = ((size_t)(a.rows * a.q_row_stride) + 3) / 4 * 4;
    *bytes = codes + 4 * shape.elems;
    a.q = problem_array((int64_t)*bytes, 1);
    memset(a.q, 0, *bytes);
    a.scales = a.q + codes;
    return a;
}

// One launch of all four, where it is one, beside a launch each.
static void compare_rows(const outputs *one, problem *p, moec_rng *rng, const int32_t *num_valid,
                         const char *what)
{
    size_t bytes;
    const int32_t other = (int32_t)p->tokens;
    const moek_quantize_args a =
        draw_rows(p, rng, moec_below(rng, 8) == 0 ? &other : num_valid, &bytes);
    const moei_step steps[] = {{.op = MOEI_OP_ROUTE, .args = {.route = one->route}},
                               {.op = MOEI_OP_PLACE, .args = {.place = one->place}},
                               {.op = MOEI_OP_SORT, .args = {.sort = one->sort}},
                               {.op = MOEI_OP_QUANTIZE, .args = {.quantize = a}}};
    const int32_t count = moei_gpu_prologue_steps(NULL, steps, 4);
    CHECK(moei_gpu_prologue_steps(NULL, steps, 3) == 3 &&
              moei_gpu_prologue_steps(NULL, steps + 1, 3) == 0,
          "%s: steps", what);
    CHECK(count == 3 || (a.total != &other && a.quant.spec != MOE_QUANT_FP8_TOKEN),
          "%s: quantised beside what it waits for", what);
    if (count == 4) {
        unsigned char *all = problem_array((int64_t)one->bytes, 1);
        unsigned char *codes = problem_array((int64_t)bytes, 1);
        memcpy(all, one->memory, one->bytes);
        memset(one->memory, 0, one->bytes); // loads count from 0
        launches = 0;
        const moei_gpu_counters zeros = next_counters();
        CHECK(moei_gpu_prologue(NULL, &one->route, &one->place, &one->sort, &a, &zeros) == MOE_OK &&
                  launches == 1,
              "%s: %d launches with quantize", what, launches);
        check_counters(&zeros, what);
        memcpy(codes, a.q, bytes);
        memset(a.q, 0, bytes);
        CHECK(moei_gpu_quantize(NULL, NULL, &a) == MOE_OK, "%s: quantize", what);
        CHECK(memcmp(all, one->memory, one->bytes) == 0 && memcmp(codes, a.q, bytes) == 0,
              "%s, T %d, k %d: other bytes with quantize", what, (int)p->tokens, (int)a.k);
        free(all);
        free(codes);
    }
    free(a.x);
    free(a.q);
}

static void compare(problem *p, const moek_route_args *route, moec_rng *rng, const char *what)
{
    static const int32_t blocks[] = {0, 0, 1, 16};
    const int32_t block = blocks[moec_below(rng, 4)];
    const bool hands_over = moec_below(rng, 6) > 0; // else place has weights of its own: 1
    const int32_t valid = (int32_t)moec_below(rng, p->tokens + 2) - 1;
    const int32_t *num_valid = moec_below(rng, 2) == 0 ? &valid : NULL;
    int32_t *map = problem_array(p->experts, sizeof *map);
    outputs one;
    outputs three;
    for (int32_t e = 0; e < p->experts; e++) {
        map[e] = (int32_t)moec_below(rng, p->experts + 2) - 1;
    }
    make(&one, p, route, block, map, num_valid);
    make(&three, p, route, block, map, num_valid);
    if (!hands_over) {
        one.place.weights = NULL;
        three.place.weights = NULL;
    }
    launches = 0;
    cluster = 1u << moec_below(rng, 4);
    const moei_gpu_counters zeros = next_counters();
    const moe_status status =
        moei_gpu_prologue(NULL, &one.route, &one.place, &one.sort, NULL, &zeros);
    check_counters(&zeros, what);
    const bool small = p->desc.num_groups <= 32 && p->desc.scoring != MOE_SCORING_SPARSEMIXER &&
                       p->rows <= 512 && p->top_k <= 32 && hands_over &&
                       p->tokens <= (cluster == 1 ? 32 : 16 * cluster);
    const int expected = small ? 1 : hands_over ? 2 : 3;
    CHECK(status == MOE_OK && launches == expected, "%s: status %d, %d launches", what, (int)status,
          launches);
    seen[expected]++;
    compare_rows(&one, p, rng, num_valid, what);
    cluster = 1;
    CHECK(moei_gpu_route(NULL, NULL, &three.route) == MOE_OK &&
              moei_gpu_place(NULL, NULL, &three.place) == MOE_OK &&
              moei_gpu_sort(NULL, NULL, &three.sort) == MOE_OK,
          "%s: a launch failed", what);
    CHECK(memcmp(one.memory, three.memory, one.bytes) == 0,
          "%s, T %d, block %d, %d launches: other bytes", what, (int)p->tokens, (int)block,
          expected);
    free(one.memory);
    free(three.memory);
    free(map);
}

// Groups in registers, of whole registers and across them, give what the wide body gives, which
// `moe check` holds to the CPU's row.
static void compare_groups(moec_rng *rng)
{
    static const struct {
        int32_t experts, groups, top_groups, top_k;
    } shapes[] = {{256, 8, 4, 8},    {512, 8, 3, 10}, {480, 5, 2, 8}, {160, 8, 3, 6},
                  {512, 32, 31, 32}, {256, 4, 2, 8},  {66, 2, 1, 3},  {6, 3, 2, 2}};
    static const problem_edge edges[] = {PROBLEM_TIES, PROBLEM_SPECIALS, PROBLEM_MASKED};
    for (int i = 0; i < 8 * 8 * 4; i++) {
        problem p;
        moek_route_args route;
        memset(&p, 0, sizeof p);
        p.desc = route_desc(i & 8 ? MOE_SCORING_SIGMOID : MOE_SCORING_SOFTMAX, MOE_RENORM_SUM);
        p.tokens = 40;
        p.experts = shapes[i % 8].experts;
        p.top_k = shapes[i % 8].top_k;
        p.desc.num_groups = shapes[i % 8].groups;
        p.desc.top_groups = shapes[i % 8].top_groups;
        p.desc.group_score = i & 16 ? MOE_GROUP_SCORE_TOP2_SUM : MOE_GROUP_SCORE_MAX;
        p.desc.correction_bias = i & 16 ? 1 : 0;
        p.desc.group_mask_zero = i & 32 ? 1 : 0;
        problem_alloc(&p);
        problem_fill(&p, rng, 1.0f);
        if (i >= 64) {
            problem_fill_edge(&p, rng, edges[i / 64 - 1]);
        }
        problem wide = problem_beside(&p);
        const moe_route_args args = problem_args(&p);
        if (CHECK(moei_route_prepare(&args, "test", &route) == MOE_OK, "%s", moe_last_error())) {
            CHECK(moei_gpu_route_in_registers(&route) &&
                      moei_gpu_route(NULL, NULL, &route) == MOE_OK,
                  "groups %d: not in registers", i);
            route.ids = wide.ids;
            route.weights = wide.weights;
            CHECK(moei_gpu_route_wide(NULL, &route) == MOE_OK &&
                      problem_same(&p, 0, &wide, 0, p.tokens),
                  "groups %d: the wide body differs", i);
        }
        problem_free_outputs(&wide);
        problem_free(&p);
    }
}

int main(void)
{
    static const char *const orders[] = {"0", "1", "2", "3"}; // of threads and blocks
    moec_rng rng = {5};
    for (int number = 0; number < PROBLEM_GRID; number += 3) {
        char what[120];
        problem p;
        const float spread = problem_draw(&p, number, what, sizeof what);
        p.tokens = moec_below(&rng, moec_below(&rng, 4) == 0 ? 300 : 40);
        (void)setenv("MOE_SIM_ORDER", orders[moec_below(&rng, 4)], 1);
        problem_alloc(&p);
        problem_fill(&p, &rng, spread);
        const moe_route_args args = problem_args(&p);
        moek_route_args route;
        if (CHECK(moei_route_prepare(&args, "test", &route) == MOE_OK, "%s: %s", what,
                  moe_last_error())) {
            compare(&p, &route, &rng, what);
        }
        problem_free(&p);
    }
    compare_groups(&rng);
    CHECK(seen[1] > 100 && seen[2] > 50 && seen[3] > 5, "problems of 1, 2 and 3 launches: %d %d %d",
          seen[1], seen[2], seen[3]);
    CHECK(quantized > 20, "%d launches that quantise, too", quantized);
    CHECK(few > 50 && few < seen[1] - 50, "%d of %d launches of few slots", few, seen[1]);
    return test_summary();
}
