// SPDX-License-Identifier: Apache-2.0
// The layer that is measured: weights of any format from a few random experts, and sets of inputs
// that route elsewhere, so that weights come from memory and not from a cache.
#define _GNU_SOURCE
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "core/safemath.h"
#include "ops/quantize.h"
#include "quant/elements.h"
#include "quant/formats.h"
#include "quant/specs.h"

#define HOST_BYTES ((size_t)1 << 28) // of random experts on the host, but at least one
#define NOISE      65536             // elements; a multiple of NOISE_STEP
#define NOISE_STEP 8                 // elements of any type that fill whole bytes

static bool failed(moe_status status, int *code)
{
    if (status != MOE_OK) {
        *code = cli_failed(status);
    }
    return status != MOE_OK;
}

static void *take(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    if (p == NULL) {
        (void)fprintf(stderr, "moe: no memory for %zu bytes\n", bytes);
    }
    return p;
}

// ---- noise
// ---------------------------------------------------------------------------------------

/// Normal numbers in an element type; matrices are cut from it, from random places. Codes of narrow
/// types are those nearest to a normal number whose deviation is a third of the largest code.
typedef struct noise {
    uint8_t bytes[NOISE * sizeof(float)];
    size_t size;
    double rms; // root of the mean square of the values
} noise;

typedef struct code_table {
    uint8_t code[256];
    double value[256];
    int count;
    double largest;
} code_table;

// The finite codes with their values, zero points taken off.
static void list_codes(const moei_format_info *info, code_table *t)
{
    const double zero = info->zero_point >= 0 ? info->zero_point : 0;
    t->count = 0;
    t->largest = 0;
    for (int code = 0; code < 1 << moe_dtype_bits(info->elem); code++) {
        const uint8_t row[4] = {(uint8_t)code};
        const double value = (double)moei_load_one(info->elem, row, 0) - zero;
        if (isfinite(value)) {
            t->code[t->count] = (uint8_t)code;
            t->value[t->count++] = value;
            t->largest = fabs(value) > t->largest ? fabs(value) : t->largest;
        }
    }
}

static int nearest(const code_table *t, double value)
{
    int best = 0;
    for (int i = 1; i < t->count; i++) {
        if (fabs(t->value[i] - value) < fabs(t->value[best] - value)) {
            best = i;
        }
    }
    return best;
}

static void make_float_noise(noise *n, moe_dtype dtype, double deviation, moec_rng *rng)
{
    const size_t bytes = (size_t)moe_dtype_bits(dtype) / 8;
    for (size_t i = 0; i < NOISE; i++) {
        const float value = (float)(deviation * moec_normal(rng));
        moei_store_f32(dtype, n->bytes + i * bytes, 1, &value);
    }
    n->size = NOISE * bytes;
    n->rms = deviation;
}

static void make_code_noise(noise *n, const moei_format_info *info, moec_rng *rng)
{
    const unsigned bits = (unsigned)moe_dtype_bits(info->elem);
    code_table table;
    double squares = 0;
    list_codes(info, &table);
    n->size = NOISE * bits / 8;
    memset(n->bytes, 0, n->size);
    for (size_t i = 0; i < NOISE; i++) {
        const int at = nearest(&table, table.largest / 3 * moec_normal(rng));
        for (unsigned b = 0; b < bits; b++) { // low bits first, whatever the width
            const size_t bit = i * bits + b;
            n->bytes[bit / 8] |= (uint8_t)((table.code[at] >> b & 1) << bit % 8);
        }
        squares += table.value[at] * table.value[at];
    }
    n->rms = sqrt(squares / NOISE);
}

static void cut_rows(const noise *n, moec_rng *rng, void *to, int64_t rows, size_t row_bytes)
{
    const size_t step = n->size / (NOISE / NOISE_STEP);
    uint8_t *at = to;
    for (int64_t r = 0; r < rows; r++) {
        size_t from = (size_t)moec_below(rng, NOISE / NOISE_STEP) * step;
        for (size_t left = row_bytes; left > 0;) {
            const size_t piece = left < n->size - from ? left : n->size - from;
            memcpy(at, n->bytes + from, piece);
            at += piece;
            left -= piece;
            from = 0;
        }
    }
}

// ---- weights
// -------------------------------------------------------------------------------------

typedef struct matrix_shape {
    const moe_gemm_desc *gemm;
    const moei_format_info *info;
    int64_t n, k;
    moe_dtype scale_dtype; // 0: none
    int64_t part;          // rows after which blocks begin anew: gate rows, then up rows
    int64_t block_k;       // 0: all
    int64_t scale_rows, scale_columns;
} matrix_shape;

static matrix_shape shape_of(const moe_layer_desc *d, int g)
{
    const moe_gemm_desc *gemm = &d->gemm[g];
    matrix_shape s = {.gemm = gemm, .info = moei_format(gemm->weight_format)};
    const int64_t rows1 = d->inter * (moe_activation_gated(d->activation) != 0 ? 2 : 1);
    s.n = g == 0 ? rows1 : d->hidden;
    s.k = g == 0 ? d->hidden : d->inter;
    if (s.info->scale_dtypes != 0) {
        const bool halves = g == 0 && d->gate_up == MOE_GATE_FIRST;
        s.part = halves ? s.n / 2 : s.n;
        s.block_k = moei_gemm_block_k(s.info, gemm);
        s.scale_dtype = moei_format_scale_dtype(s.info);
        s.scale_rows =
            s.info->block_n == 0 ? 1 : s.n / s.part * moei_i64_ceil_div(s.part, s.info->block_n);
        s.scale_columns = s.block_k > 0 ? moei_i64_ceil_div(s.k, s.block_k) : 1;
    }
    return s;
}

static size_t value_bytes(const matrix_shape *s)
{
    return (size_t)s->n * (size_t)moei_elem_bytes(s->info->elem, s->k);
}

static size_t scale_bytes(const matrix_shape *s)
{
    return s->scale_dtype == 0
               ? 0
               : (size_t)(s->scale_rows * s->scale_columns * moe_dtype_bits(s->scale_dtype) / 8);
}

static size_t bias_bytes(const matrix_shape *s)
{
    return s->gemm->bias != 0 ? (size_t)s->n * sizeof(uint16_t) : 0; // bf16
}

static size_t matrix_bytes(const matrix_shape *s)
{
    return value_bytes(s) + scale_bytes(s) + bias_bytes(s) + (s->info->scale2 ? sizeof(float) : 0);
}

// About `size`, not all the same.
static void draw_scales(const matrix_shape *s, double size, moec_rng *rng, void *scales)
{
    for (int64_t i = 0; i < s->scale_rows * s->scale_columns; i++) {
        const int64_t draw = moec_below(rng, 8);
        if (s->scale_dtype == MOE_E8M0) {
            ((uint8_t *)scales)[i] = (uint8_t)(127 + lrint(log2(size)) + (draw == 0) - (draw == 1));
        } else if (s->scale_dtype == MOE_E4M3FN) {
            ((uint8_t *)scales)[i] = (uint8_t)(0x34 + draw); // 0.75 .. 1.375; scale2 has the size
        } else {
            const float value = (float)(size * (0.75 + 0.0625 * (double)draw));
            moei_store_f32(s->scale_dtype,
                           (uint8_t *)scales + i * moe_dtype_bits(s->scale_dtype) / 8, 1, &value);
        }
    }
}

// What a static quantiser is given for inputs of deviation 1: they end at four.
static float given_scale(const moe_quant_desc *act)
{
    moe_quant_desc resolved = *act;
    moei_quant_resolve(&resolved);
    const double largest = (double)moei_quant_max(moei_quant_get(act->spec), resolved.elem);
    return (float)(moei_quant_has_global_scale(&resolved) ? 448 * largest / 4 : 4 / largest);
}

static bool make_matrix(const matrix_shape *s, const noise *values, moec_rng *rng,
                        bench_expert *expert, int g)
{
    moe_matrix_source *m = &expert->source.gemm[g];
    const bool whole_bytes = s->k * moe_dtype_bits(s->info->elem) % 8 == 0;
    const int64_t row_bytes = moei_elem_bytes(s->info->elem, s->k);
    void **block = expert->blocks[g];
    block[0] = take(value_bytes(s));
    block[1] = take(scale_bytes(s));
    block[2] = take(bias_bytes(s));
    if (block[0] == NULL || block[1] == NULL || block[2] == NULL) {
        return false;
    }
    cut_rows(values, rng, block[0], s->n, (size_t)row_bytes);
    m->values = whole_bytes ? moe_tensor_3d(block[0], s->info->elem, 1, s->n, s->k)
                            : moe_tensor_3d(block[0], MOE_U8, 1, s->n, row_bytes);
    const double size = 1 / (values->rms * sqrt((double)s->k));
    if (s->scale_dtype != 0) {
        draw_scales(s, size, rng, block[1]);
        m->scales = s->info->block_n == 0 ? moe_tensor_1d(block[1], s->scale_dtype, 1)
                                          : moe_tensor_3d(block[1], s->scale_dtype, 1,
                                                          s->scale_rows, s->scale_columns);
    }
    if (s->info->scale2) {
        expert->scale2[g] = (float)size;
        m->scale2 = moe_tensor_1d(&expert->scale2[g], MOE_F32, 1);
    }
    for (int64_t i = 0; s->gemm->bias != 0 && i < s->n; i++) {
        const float value = (float)(0.1 * moec_normal(rng));
        moei_store_f32(MOE_BF16, (uint8_t *)block[2] + 2 * i, 1, &value);
    }
    m->bias = s->gemm->bias != 0 ? moe_tensor_2d(block[2], MOE_BF16, 1, s->n) : m->bias;
    return true;
}

int64_t bench_expert_row(const bench_layer *layer, int32_t e, int g, int64_t n, double *values,
                         double *bias)
{
    const matrix_shape s = shape_of(&layer->desc, g);
    const bench_expert *expert = &layer->experts[e % layer->num_experts];
    void *const *block = expert->blocks[g];
    const uint8_t *row = (const uint8_t *)block[0] + n * moei_elem_bytes(s.info->elem, s.k);
    const double zero = s.info->zero_point >= 0 ? s.info->zero_point : 0;
    const int64_t scale_row = s.info->block_n == 0
                                  ? 0
                                  : n / s.part * moei_i64_ceil_div(s.part, s.info->block_n) +
                                        n % s.part / s.info->block_n;
    for (int64_t k = 0; k < s.k; k++) {
        const int64_t at = scale_row * s.scale_columns + (s.block_k > 0 ? k / s.block_k : 0);
        double scale = s.scale_dtype != 0 ? (double)moei_load_one(s.scale_dtype, block[1], at) : 1;
        scale *= s.info->scale2 ? (double)expert->scale2[g] : 1;
        values[k] = ((double)moei_load_one(s.info->elem, row, k) - zero) * scale;
    }
    *bias = s.gemm->bias != 0 ? (double)moei_load_one(MOE_BF16, block[2], n) : 0;
    return s.k;
}

// As many different experts as the host's share of memory takes.
static bool make_experts(const bench_request *request, bench_layer *layer, float given[2])
{
    const matrix_shape shapes[2] = {shape_of(&layer->desc, 0), shape_of(&layer->desc, 1)};
    moec_rng rng = {request->seed};
    noise *values = take(2 * sizeof *values);
    if (values == NULL) {
        return false;
    }
    const size_t bytes = matrix_bytes(&shapes[0]) + matrix_bytes(&shapes[1]);
    const size_t most = bytes < HOST_BYTES ? HOST_BYTES / bytes : 1;
    bool good = true;
    layer->bytes_per_expert = (double)bytes;
    for (int g = 0; g < 2; g++) {
        const matrix_shape *s = &shapes[g];
        if (s->scale_dtype == 0) {
            make_float_noise(&values[g], s->info->elem, 1 / sqrt((double)s->k), &rng);
        } else {
            make_code_noise(&values[g], s->info, &rng);
        }
    }
    while (good && layer->num_experts < layer->desc.num_experts &&
           layer->num_experts < BENCH_MAX_EXPERTS && (size_t)layer->num_experts < most) {
        bench_expert *e = &layer->experts[layer->num_experts++];
        e->source = moe_weights_source_default();
        for (int g = 0; g < 2 && good; g++) {
            good = make_matrix(&shapes[g], &values[g], &rng, e, g);
            if (moei_quant_needs_given_scale(&shapes[g].gemm->act)) {
                given[g] = given_scale(&shapes[g].gemm->act);
                e->source.gemm[g].act_scale = moe_tensor_1d(&given[g], MOE_F32, 1);
            }
        }
    }
    free(values);
    return good;
}

typedef struct packing {
    bench_layer *layer;
    int32_t failed; // an expert that could not be packed, -1: none
} packing;

static moe_status pack_expert(const bench_layer *layer, int32_t e)
{
    return moe_weights_pack(layer->weights, e, &layer->experts[e % layer->num_experts].source);
}

static void pack_task(void *arg, size_t e)
{
    packing *p = arg;
    if (pack_expert(p->layer, (int32_t)e) != MOE_OK) {
        __atomic_store_n(&p->failed, (int32_t)e, __ATOMIC_RELAXED);
    }
}

// On all threads; a message is its thread's own, so that a failure is repeated on this one.
static moe_status pack_all(bench_layer *layer)
{
    packing p = {layer, -1};
    const moe_thread_pool pool = moe_context_pool(layer->ctx);
    pool.parallel_for(pool.self, (size_t)layer->desc.num_experts, pack_task, &p);
    return p.failed >= 0 ? pack_expert(layer, p.failed) : MOE_OK;
}

// Refused rather than ended by the system for want of memory.
static bool fits(const bench_layer *layer, int *code)
{
    const double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (layer->ctx->backend->host_memory && (double)layer->memory_bytes > have) {
        (void)fprintf(stderr, "moe: the weights are %.1f GB, this machine has %.1f GB of memory\n",
                      1e-9 * (double)layer->memory_bytes, 1e-9 * have);
        *code = CLI_UNSUPPORTED;
        return false;
    }
    return true;
}

bool bench_layer_open(const bench_request *request, int64_t max_tokens, bench_layer *layer,
                      int *code)
{
    float given[2] = {0, 0};
    size_t align = 0;
    *layer = (bench_layer){.desc = request->desc};
    layer->ctx = cli_context(request->threads, request->device, code);
    if (layer->ctx == NULL) {
        return false;
    }
    layer->host = layer->ctx;
    if (!layer->ctx->backend->host_memory) {
        layer->host = cli_context(request->threads, "cpu", code);
        if (layer->host == NULL) {
            return false;
        }
    }
    *code = CLI_FAILED;
    layer->desc.max_tokens = max_tokens;
    if (request->routing_only) {
        return true;
    }
    if (failed(moe_plan_create(layer->ctx, &layer->desc, &layer->plan), code) ||
        failed(moe_plan_desc(layer->plan, &layer->desc), code) ||
        failed(moe_weights_bytes(layer->plan, &layer->memory_bytes, &align), code) ||
        !fits(layer, code) ||
        failed(moe_memory_alloc(layer->ctx, layer->memory_bytes, &layer->memory), code) ||
        failed(moe_weights_create(layer->plan, layer->memory, layer->memory_bytes, &layer->weights),
               code) ||
        failed(moe_plan_workspace(layer->plan, max_tokens, &layer->workspace_bytes, &align),
               code) ||
        failed(moe_memory_alloc(layer->ctx, layer->workspace_bytes, &layer->workspace), code)) {
        return false;
    }
    return make_experts(request, layer, given) && !failed(pack_all(layer), code);
}

void bench_layer_close(bench_layer *layer)
{
    for (int32_t e = 0; e < layer->num_experts; e++) {
        for (int b = 0; b < 6; b++) {
            free(layer->experts[e].blocks[b / 3][b % 3]);
        }
    }
    moe_weights_destroy(layer->weights);
    moe_plan_destroy(layer->plan);
    if (layer->ctx != NULL) {
        moe_memory_free(layer->ctx, layer->workspace, layer->workspace_bytes);
        moe_memory_free(layer->ctx, layer->memory, layer->memory_bytes);
    }
    if (layer->host != layer->ctx) {
        moe_context_destroy(layer->host);
    }
    moe_context_destroy(layer->ctx);
}

// ---- sets
// ----------------------------------------------------------------------------------------

/// What a row of the report needs while its sets are drawn, on the host.
typedef struct drawing {
    const bench_request *request;
    bench_layer *layer;
    int64_t tokens;
    moec_rng rng;
    noise noise;
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
    cut_rows(&d->noise, &d->rng, x, d->tokens, row_bytes);
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
    d->logits = take((size_t)d->tokens * experts * sizeof *d->logits);
    d->weights = take(slots * sizeof *d->weights);
    d->ids = take(slots * sizeof *d->ids);
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
        make_float_noise(&d->noise, layer->desc.x_dtype, 1, &d->rng);
    }
    if (good && request->zipf) {
        draw_popularity(d);
    }
    while (good && !enough(d, out->count)) {
        bench_set *s = &out->sets[out->count++];
        good = !failed(make_set(d, s), code);
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
