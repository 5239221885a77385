// SPDX-License-Identifier: Apache-2.0
// The layer that is measured: a plan, and weights of any format from a few random experts.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench_noise.h"
#include "core/safemath.h"
#include "ops/quantize.h"
#include "quant/elements.h"
#include "quant/formats.h"
#include "quant/specs.h"

#define HOST_BYTES ((size_t)1 << 28) // of random experts on the host, but at least one

void *bench_take(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    if (p == NULL) {
        (void)fprintf(stderr, "moe: no memory for %zu bytes\n", bytes);
    }
    return p;
}

// ---- weights -----------------------------------------------------------------------------------

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

double bench_expert_bytes(const moe_layer_desc *desc)
{
    const matrix_shape shapes[2] = {shape_of(desc, 0), shape_of(desc, 1)};
    return (double)(matrix_bytes(&shapes[0]) + matrix_bytes(&shapes[1]));
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

static bool make_matrix(const matrix_shape *s, const bench_noise *values, moec_rng *rng,
                        bench_expert *expert, int g)
{
    moe_matrix_source *m = &expert->source.gemm[g];
    const bool whole_bytes = s->k * moe_dtype_bits(s->info->elem) % 8 == 0;
    const int64_t row_bytes = moei_elem_bytes(s->info->elem, s->k);
    void **block = expert->blocks[g];
    block[0] = bench_take(value_bytes(s));
    block[1] = bench_take(scale_bytes(s));
    block[2] = bench_take(bias_bytes(s));
    if (block[0] == NULL || block[1] == NULL || block[2] == NULL) {
        return false;
    }
    bench_noise_rows(values, rng, block[0], s->n, (size_t)row_bytes);
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
    bench_noise *values = bench_take(2 * sizeof *values);
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
            bench_noise_floats(&values[g], s->info->elem, 1 / sqrt((double)s->k), &rng);
        } else {
            bench_noise_codes(&values[g], s->info, &rng);
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

// Bytes that the system can give; 0: it does not say.
static double available_bytes(void)
{
    char line[128];
    double kib = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "MemAvailable:", 13) == 0) {
            kib = strtod(line + 13, NULL);
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return 1024 * kib;
}

// Refused rather than ended by the system for want of memory.
static bool fits(const bench_layer *layer, int *code)
{
    const double need = (double)layer->memory_bytes;
    const double have = available_bytes();
    if (layer->ctx->backend->host_memory && have > 0 && need > have) {
        (void)fprintf(stderr, "moe: the weights are %.1f GB, %.1f GB of memory are available\n",
                      1e-9 * need, 1e-9 * have);
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
    if (layer->ctx == NULL || !bench_can_time(layer->ctx, code)) {
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
    if (bench_failed(moe_plan_create(layer->ctx, &layer->desc, &layer->plan), code) ||
        bench_failed(moe_plan_desc(layer->plan, &layer->desc), code) ||
        bench_failed(moe_weights_bytes(layer->plan, &layer->memory_bytes, &align), code) ||
        !fits(layer, code) ||
        bench_failed(moe_memory_alloc(layer->ctx, layer->memory_bytes, &layer->memory), code) ||
        bench_failed(
            moe_weights_create(layer->plan, layer->memory, layer->memory_bytes, &layer->weights),
            code) ||
        bench_failed(moe_plan_workspace(layer->plan, max_tokens, &layer->workspace_bytes, &align),
                     code) ||
        bench_failed(moe_memory_alloc(layer->ctx, layer->workspace_bytes, &layer->workspace),
                     code)) {
        return false;
    }
    return make_experts(request, layer, given) && !bench_failed(pack_all(layer), code);
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
