// SPDX-License-Identifier: Apache-2.0
// Sets of inputs that route elsewhere, so that weights come from memory and not from a cache.
#define _GNU_SOURCE
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "bench_noise.h"

/// What a row of the report needs while its sets are drawn, on the host.
typedef struct drawing {
    const bench_request *request;
    bench_layer *layer;
    int64_t tokens;
    moec_rng rng;
    bench_noise noise;
    float *logits, *weights; // [T, E], [T, k]
    int32_t *ids;            // [T, k]
    float *bias;             // [E]: what makes some experts more popular
    bool *hit, *hit_ever;    // [E]
} drawing;

// Uniform: normal logits. Zipf: the logarithm of 1 / rank and Gumbel noise, which draws experts
// without replacement in proportion to 1 / rank; ranks are dealt anew to experts once per row.
static void draw_logits(drawing *d)
{
    const int64_t experts = d->layer->desc.num_experts;
    for (int64_t i = 0; i < d->tokens * experts; i++) {
        if (d->request->zipf) {
            const double u = ((double)(moec_next(&d->rng) >> 11) + 0.5) * 0x1p-53;
            d->logits[i] = d->bias[i % experts] - (float)log(-log(u));
        } else {
            d->logits[i] = (float)moec_normal(&d->rng);
        }
    }
}

static void draw_popularity(drawing *d)
{
    const int32_t experts = d->layer->desc.num_experts;
    for (int32_t e = 0; e < experts; e++) {
        const int32_t other = (int32_t)moec_below(&d->rng, e + 1);
        d->bias[e] = d->bias[other];
        d->bias[other] = -logf((float)(e + 1));
    }
}

moe_status bench_route(const bench_layer *layer, int64_t tokens, const float *logits, int32_t *ids,
                       float *weights)
{
    const moe_layer_desc *d = &layer->desc;
    moe_route_args args = {.struct_size = sizeof args, .desc = d->route};
    args.num_experts = d->num_experts;
    args.top_k = d->top_k;
    args.logits = moe_tensor_2d(logits, MOE_F32, tokens, d->num_experts);
    args.ids = moe_tensor_2d(ids, MOE_I32, tokens, d->top_k);
    args.weights = moe_tensor_2d(weights, MOE_F32, tokens, d->top_k);
    return moe_route(layer->host, &args, NULL);
}

// Which experts the logits call.
static moe_status count_hits(drawing *d, int32_t *hits)
{
    const moe_layer_desc *desc = &d->layer->desc;
    MOE_TRY(bench_route(d->layer, d->tokens, d->logits, d->ids, d->weights));
    memset(d->hit, 0, (size_t)desc->num_experts * sizeof *d->hit);
    for (int64_t i = 0; i < d->tokens * desc->top_k; i++) {
        d->hit[d->ids[i]] = true;
    }
    *hits = 0;
    for (int32_t e = 0; e < desc->num_experts; e++) {
        *hits += d->hit[e];
        d->hit_ever[e] = d->hit_ever[e] || d->hit[e];
    }
    return MOE_OK;
}

// A view of the next part of a set's memory; the parts are those of both kinds of sets.
static moe_tensor place(bench_set *s, moe_dtype dtype, int64_t rows, int64_t columns)
{
    uint8_t *at = s->memory != NULL ? (uint8_t *)s->memory + s->bytes : NULL;
    s->bytes += ((size_t)(rows * columns * moe_dtype_bits(dtype)) / 8 + 255) / 256 * 256;
    return moe_tensor_2d(at, dtype, rows, columns);
}

// With memory NULL this measures.
static void place_set(const drawing *d, bench_set *s)
{
    const moe_layer_desc *desc = &d->layer->desc;
    const int64_t t = d->tokens;
    s->bytes = 0;
    const moe_tensor logits = place(s, MOE_F32, t, desc->num_experts);
    if (!d->request->routing_only) {
        s->run = moe_run_args_default();
        s->run.num_tokens = t;
        s->run.logits = logits;
        s->run.x = place(s, desc->x_dtype, t, desc->hidden);
        s->run.out = place(s, desc->out_dtype, t, desc->hidden);
        return;
    }
    s->route = (moe_route_args){.struct_size = sizeof s->route, .desc = desc->route};
    s->route.num_experts = desc->num_experts;
    s->route.top_k = desc->top_k;
    s->route.logits = logits;
    s->route.ids = place(s, MOE_I32, t, desc->top_k);
    s->route.weights = place(s, MOE_F32, t, desc->top_k);
    s->sort = (moe_sort_args){.struct_size = sizeof s->sort, .num_experts = desc->num_experts};
    s->sort.ids = s->route.ids;
    s->sort.offsets = place(s, MOE_I32, 1, desc->num_experts + 1);
    s->sort.slots = place(s, MOE_I32, 1, t * desc->top_k);
    s->sort.offsets = moe_tensor_1d(s->sort.offsets.data, MOE_I32, desc->num_experts + 1);
    s->sort.slots = moe_tensor_1d(s->sort.slots.data, MOE_I32, t * desc->top_k);
}

static moe_status make_set(drawing *d, bench_set *s)
{
    const moe_layer_desc *desc = &d->layer->desc;
    const moe_context *ctx = d->layer->ctx;
    draw_logits(d);
    MOE_TRY(count_hits(d, &s->experts_hit));
    place_set(d, s);
    MOE_TRY(moe_memory_alloc(ctx, s->bytes, &s->memory));
    place_set(d, s);
    MOE_TRY(moe_memory_copy(ctx, s->memory, d->logits,
                            (size_t)(d->tokens * desc->num_experts) * sizeof *d->logits,
                            MOE_COPY_TO_DEVICE, NULL));
    if (d->request->routing_only) {
        return MOE_OK;
    }
    const size_t row_bytes = (size_t)(desc->hidden * moe_dtype_bits(desc->x_dtype)) / 8;
    const size_t x_bytes = (size_t)d->tokens * row_bytes;
    void *x = malloc(x_bytes + 1);
    MOE_REQUIRE(x != NULL, MOE_E_NO_MEMORY, "no memory for %zu bytes", x_bytes);
    bench_noise_rows(&d->noise, &d->rng, x, d->tokens, row_bytes);
    const moe_status status =
        moe_memory_copy(ctx, s->run.x.data, x, x_bytes, MOE_COPY_TO_DEVICE, NULL);
    free(x);
    return status;
}

// Eight sets, fewer of long ones; on a host, whose caches are large beside its memory's speed,
// until the weights that they read are four times the last-level cache.
static bool enough(const drawing *d, int64_t sets)
{
    const int64_t least = d->tokens <= 512 ? 8 : d->tokens <= 2048 ? 4 : 2;
    const double cache = (double)sysconf(_SC_LEVEL3_CACHE_SIZE);
    int32_t ever = 0;
    if (d->request->sets > 0 || sets < least) {
        return sets >= (d->request->sets > 0 ? d->request->sets : least);
    }
    for (int32_t e = 0; e < d->layer->desc.num_experts; e++) {
        ever += d->hit_ever[e];
    }
    return !d->layer->ctx->backend->host_memory || d->request->routing_only ||
           sets >= BENCH_MAX_SETS || ever == d->layer->desc.num_experts ||
           ever * d->layer->bytes_per_expert >= 4 * cache;
}

static bool take_drawing(drawing *d)
{
    const size_t experts = (size_t)d->layer->desc.num_experts;
    const size_t slots = (size_t)(d->tokens * d->layer->desc.top_k);
    d->logits = bench_take((size_t)d->tokens * experts * sizeof *d->logits);
    d->weights = bench_take(slots * sizeof *d->weights);
    d->ids = bench_take(slots * sizeof *d->ids);
    d->bias = calloc(experts, sizeof *d->bias);
    d->hit = calloc(experts, sizeof *d->hit);
    d->hit_ever = calloc(experts, sizeof *d->hit_ever);
    return d->logits != NULL && d->weights != NULL && d->ids != NULL && d->bias != NULL &&
           d->hit != NULL && d->hit_ever != NULL;
}

static void free_drawing(drawing *d)
{
    free(d->logits);
    free(d->weights);
    free(d->ids);
    free(d->bias);
    free(d->hit);
    free(d->hit_ever);
    free(d);
}

bool bench_sets_make(const bench_request *request, bench_layer *layer, int64_t tokens,
                     bench_sets *out, int *code)
{
    const int64_t most = request->sets > 0 ? request->sets : BENCH_MAX_SETS;
    *out = (bench_sets){.layer = layer, .routing_only = request->routing_only};
    out->sets = calloc((size_t)most, sizeof *out->sets);
    drawing *d = calloc(1, sizeof *d);
    *code = CLI_FAILED;
    if (out->sets == NULL || d == NULL) {
        (void)fprintf(stderr, "moe: no memory for %" PRId64 " sets\n", most);
        free(d);
        return false;
    }
    d->request = request;
    d->layer = layer;
    d->tokens = tokens;
    d->rng.state = request->seed + (uint64_t)tokens;
    bool good = take_drawing(d);
    if (good && !request->routing_only) {
        bench_noise_floats(&d->noise, layer->desc.x_dtype, 1, &d->rng);
    }
    if (good && request->zipf) {
        draw_popularity(d);
    }
    while (good && !enough(d, out->count)) {
        bench_set *s = &out->sets[out->count++];
        good = !bench_failed(make_set(d, s), code);
        out->experts_hit += s->experts_hit;
    }
    out->experts_hit /= (double)out->count;
    free_drawing(d);
    return good;
}

void bench_sets_free(bench_sets *sets)
{
    for (int64_t i = 0; i < sets->count; i++) {
        moe_memory_free(sets->layer->ctx, sets->sets[i].memory, sets->sets[i].bytes);
    }
    free(sets->sets);
    *sets = (bench_sets){0};
}

moe_status bench_enqueue(void *arg, void *stream)
{
    const bench_sets *b = arg;
    const bench_layer *layer = b->layer;
    for (int64_t i = 0; i < b->count; i++) {
        const bench_set *s = &b->sets[i];
        if (b->routing_only) {
            MOE_TRY(moe_route(layer->ctx, &s->route, stream));
            MOE_TRY(moe_sort(layer->ctx, &s->sort, stream));
        } else {
            MOE_TRY(moe_run(layer->plan, layer->weights, &s->run, layer->workspace,
                            layer->workspace_bytes, stream));
        }
    }
    return MOE_OK;
}
