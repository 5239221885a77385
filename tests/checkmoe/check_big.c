// SPDX-License-Identifier: Apache-2.0
// Weights beyond 2^31 and 2^32 bytes. The host keeps one period of them, which fills the device's
// memory again and again: the period is prime, so that an offset which lost its upper bits meets
// other weights. Weights are 0, 1 and -1, x is 1 and 2, gates are large: every sum, every rounding
// and the activation give whole numbers, and one wrong element shows.
#include "checkmoe/check_big.h"

#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_layer.h"

#define NAME   "big"
#define TOKENS 5
#define PIECE  ((int64_t)1 << 24) // elements of a copy, roughly

enum { BF16_ONE = 0x3F80, BF16_TWO = 0x4000, BF16_MINUS_ONE = 0xBF80 };

const moec_big_sizes moec_big_full = {3, 16384, 65600, 1048573, 256};

size_t moec_big_bytes(const moec_big_sizes *sizes)
{
    return (size_t)sizes->experts * (size_t)sizes->hidden * (size_t)sizes->inter * 3 * 2;
}

// ---- weights ------------------------------------------------------------------------------------

/// One period of weights: where they are not 0, and what they are there.
typedef struct pattern {
    int64_t period, count;
    int32_t *at;         // [count] ascending
    int8_t *sign;        // [count]
    int32_t *first;      // [period]: the first of `at` that is not before it
    int64_t copied;      // elements of the two below, whole periods
    uint16_t *positive;  // the weights as bf16, all 1
    uint16_t *alternate; // with their signs
} pattern;

static void free_pattern(pattern *p)
{
    free(p->at);
    free(p->sign);
    free(p->first);
    free(p->positive);
    free(p->alternate);
}

static bool make_pattern(const moec_big_sizes *sizes, uint64_t seed, pattern *p)
{
    moec_rng rng = {seed};
    const size_t period = (size_t)sizes->period;
    const int64_t repeats = PIECE / sizes->period + 1;
    memset(p, 0, sizeof *p);
    p->period = sizes->period;
    p->copied = repeats * sizes->period;
    p->at = calloc(period, sizeof *p->at);
    p->sign = calloc(period, sizeof *p->sign);
    p->first = calloc(period, sizeof *p->first);
    p->positive = calloc((size_t)p->copied, sizeof *p->positive);
    p->alternate = calloc((size_t)p->copied, sizeof *p->alternate);
    if (p->at == NULL || p->sign == NULL || p->first == NULL || p->positive == NULL ||
        p->alternate == NULL) {
        return false;
    }
    for (int64_t i = 0; i < p->period; i += sizes->every) { // one in each `every`
        const int64_t at = i + moec_below(&rng, sizes->every);
        if (at < p->period) {
            p->at[p->count] = (int32_t)at;
            p->sign[p->count++] = moec_below(&rng, 2) == 0 ? 1 : -1;
        }
    }
    for (int64_t i = p->period - 1, n = p->count; i >= 0; i--) {
        n -= n > 0 && p->at[n - 1] >= i;
        p->first[i] = (int32_t)n;
    }
    for (int64_t r = 0; r < repeats; r++) {
        for (int64_t i = 0; i < p->count; i++) {
            p->positive[r * p->period + p->at[i]] = BF16_ONE;
            p->alternate[r * p->period + p->at[i]] = p->sign[i] > 0 ? BF16_ONE : BF16_MINUS_ONE;
        }
    }
    return true;
}

// Elements [begin, end) of a tensor of weights.
static moe_status fill(const moe_context *ctx, void *tensor, int64_t begin, int64_t end,
                       const pattern *p, const uint16_t *from)
{
    while (begin < end) {
        const int64_t phase = begin % p->period;
        const int64_t n = end - begin < p->copied - phase ? end - begin : p->copied - phase;
        MOE_TRY(moe_memory_copy(ctx, (uint16_t *)tensor + begin, from + phase, (size_t)n * 2,
                                MOE_COPY_TO_DEVICE, NULL));
        begin += n;
    }
    return MOE_OK;
}

// The sum of x times the k weights from element `begin` of a tensor, with or without their signs.
static int64_t row_sum(const pattern *p, int64_t begin, int64_t k, bool alternate, const float *x)
{
    int64_t sum = 0;
    for (int64_t done = 0; done < k;) {
        const int64_t phase = (begin + done) % p->period;
        const int64_t n = k - done < p->period - phase ? k - done : p->period - phase;
        for (int64_t i = p->first[phase]; i < p->count && p->at[i] < phase + n; i++) {
            sum += (alternate ? p->sign[i] : 1) * (int64_t)x[done + p->at[i] - phase];
        }
        done += n;
    }
    return sum;
}

// ---- the layer ----------------------------------------------------------------------------------

/// Memory of a context.
typedef struct block {
    void *data;
    size_t bytes;
} block;

enum { W13, W2, X, IDS, WEIGHTS, OUT, WORKSPACE, NUM_BLOCKS };

typedef struct big {
    moec_run *run;
    moe_context *ctx;
    const moec_big_sizes *sizes;
    pattern pattern;
    block block[NUM_BLOCKS];
    int32_t ids[TOKENS];
    float *x;          // [TOKENS, hidden]
    uint16_t *x_bf16;  // the same
    float *gate_up;    // [1, 2 inter]
    uint16_t *h;       // [1, inter]
    float *h_wide;     // the same
    float *want, *out; // [TOKENS, hidden]
} big;

static moe_status take(big *b, int i, size_t bytes)
{
    moe_memory_free(b->ctx, b->block[i].data, b->block[i].bytes);
    b->block[i] = (block){NULL, 0};
    MOE_TRY(moe_memory_alloc(b->ctx, bytes, &b->block[i].data));
    b->block[i].bytes = bytes;
    return MOE_OK;
}

static moe_status send(big *b, int i, const void *from, size_t bytes)
{
    MOE_TRY(take(b, i, bytes));
    return moe_memory_copy(b->ctx, b->block[i].data, from, bytes, MOE_COPY_TO_DEVICE, NULL);
}

// Every expert's gate rows, then its up rows.
static moe_status fill_weights(big *b)
{
    const pattern *p = &b->pattern;
    const int64_t half = b->sizes->inter * b->sizes->hidden;
    for (int64_t e = 0; e < b->sizes->experts; e++) {
        MOE_TRY(fill(b->ctx, b->block[W13].data, 2 * e * half, (2 * e + 1) * half, p, p->positive));
        MOE_TRY(fill(b->ctx, b->block[W13].data, (2 * e + 1) * half, (2 * e + 2) * half, p,
                     p->alternate));
    }
    return fill(b->ctx, b->block[W2].data, 0, b->sizes->experts * half, p, p->alternate);
}

static bool make_host(big *b)
{
    const size_t hidden = (size_t)b->sizes->hidden;
    const size_t inter = (size_t)b->sizes->inter;
    moec_rng rng = {b->run->options->seed + 1};
    b->x = calloc(TOKENS * hidden, sizeof *b->x);
    b->x_bf16 = calloc(TOKENS * hidden, sizeof *b->x_bf16);
    b->gate_up = calloc(2 * inter, sizeof *b->gate_up);
    b->h = calloc(inter, sizeof *b->h);
    b->h_wide = calloc(inter, sizeof *b->h_wide);
    b->want = calloc(TOKENS * hidden, sizeof *b->want);
    b->out = calloc(TOKENS * hidden, sizeof *b->out);
    if (b->x == NULL || b->x_bf16 == NULL || b->gate_up == NULL || b->h == NULL ||
        b->h_wide == NULL || b->want == NULL || b->out == NULL) {
        return false;
    }
    for (size_t i = 0; i < TOKENS * hidden; i++) {
        const bool two = moec_below(&rng, 2) == 0;
        b->x[i] = two ? 2.0f : 1.0f;
        b->x_bf16[i] = two ? BF16_TWO : BF16_ONE;
    }
    for (int t = 0; t < TOKENS; t++) { // the last expert first, and no expert without tokens
        b->ids[t] = b->sizes->experts - 1 - t % b->sizes->experts;
    }
    return make_pattern(b->sizes, b->run->options->seed, &b->pattern);
}

static void free_big(big *b)
{
    for (int i = 0; i < NUM_BLOCKS; i++) {
        moe_memory_free(b->ctx, b->block[i].data, b->block[i].bytes);
    }
    free(b->x);
    free(b->x_bf16);
    free(b->gate_up);
    free(b->h);
    free(b->h_wide);
    free(b->want);
    free(b->out);
    free_pattern(&b->pattern);
}

// The outputs as whole numbers; the activation and its rounding are the CPU's, which every backend
// has bit for bit.
static moe_status compute(big *b)
{
    const int64_t hidden = b->sizes->hidden;
    const int64_t inter = b->sizes->inter;
    const pattern *p = &b->pattern;
    moe_context *cpu = NULL;
    moe_glu_args glu = {.struct_size = sizeof glu};
    moe_status status = moe_context_create(NULL, &cpu);
    glu.activation = MOE_ACT_SILU;
    glu.gate_up = MOE_GATE_FIRST;
    glu.x = moe_tensor_2d(b->gate_up, MOE_F32, 1, 2 * inter);
    glu.y = moe_tensor_2d(b->h, MOE_BF16, 1, inter);
    for (int64_t t = 0; t < TOKENS && status == MOE_OK; t++) {
        const float *x = b->x + t * hidden;
        const int64_t e = b->ids[t];
        for (int64_t i = 0; i < 2 * inter; i++) {
            b->gate_up[i] = (float)row_sum(p, (2 * e * inter + i) * hidden, hidden, i >= inter, x);
        }
        status = moe_glu(cpu, &glu, NULL);
        for (int64_t i = 0; i < inter; i++) {
            const uint32_t bits = (uint32_t)b->h[i] << 16;
            memcpy(&b->h_wide[i], &bits, sizeof bits);
        }
        for (int64_t i = 0; i < hidden; i++) {
            b->want[t * hidden + i] =
                (float)row_sum(p, (e * hidden + i) * inter, inter, true, b->h_wide);
        }
    }
    moe_context_destroy(cpu);
    return status;
}

static moe_layer_desc desc_of(const big *b, moe_determinism level)
{
    moe_layer_desc d = moe_layer_desc_default();
    d.max_tokens = TOKENS;
    d.hidden = b->sizes->hidden;
    d.inter = b->sizes->inter;
    d.num_experts = b->sizes->experts;
    d.top_k = 1;
    d.x_dtype = MOE_BF16;
    d.partial_dtype = MOE_F32;
    d.out_dtype = MOE_F32;
    d.gemm[0].weight_format = MOE_FORMAT_BF16;
    d.gemm[1].weight_format = MOE_FORMAT_BF16;
    d.routing = MOE_ROUTING_GIVEN;
    d.activation = MOE_ACT_SILU;
    d.gate_up = MOE_GATE_FIRST;
    d.weight_stage = MOE_WEIGHT_OUTPUT;
    d.determinism = level;
    return d;
}

static moe_status run_planned(big *b, const moe_plan *plan, moe_weights **weights)
{
    const moec_big_sizes *s = b->sizes;
    moe_weights_source source = moe_weights_source_default();
    moe_run_args args = moe_run_args_default();
    size_t bytes = 0;
    size_t align = 0;
    source.gemm[0].values =
        moe_tensor_3d(b->block[W13].data, MOE_BF16, s->experts, 2 * s->inter, s->hidden);
    source.gemm[1].values =
        moe_tensor_3d(b->block[W2].data, MOE_BF16, s->experts, s->hidden, s->inter);
    MOE_TRY(moe_weights_wrap(plan, &source, weights));
    MOE_TRY(moe_plan_workspace(plan, TOKENS, &bytes, &align));
    MOE_TRY(take(b, WORKSPACE, bytes));
    args.num_tokens = TOKENS;
    args.x = moe_tensor_2d(b->block[X].data, MOE_BF16, TOKENS, s->hidden);
    args.ids = moe_tensor_2d(b->block[IDS].data, MOE_I32, TOKENS, 1);
    args.weights = moe_tensor_2d(b->block[WEIGHTS].data, MOE_F32, TOKENS, 1);
    args.out = moe_tensor_2d(b->block[OUT].data, MOE_F32, TOKENS, s->hidden);
    MOE_TRY(moe_run(plan, *weights, &args, b->block[WORKSPACE].data, bytes, NULL));
    return moe_memory_copy(b->ctx, b->out, b->block[OUT].data, b->block[OUT].bytes,
                           MOE_COPY_FROM_DEVICE, NULL);
}

static void check_level(big *b, moe_determinism level)
{
    const moe_layer_desc d = desc_of(b, level);
    const char *rows = level == MOE_DET_KERNEL ? "rows of level KERNEL" : "the fastest rows";
    moe_plan *plan = NULL;
    moe_weights *weights = NULL;
    moe_status status = moe_plan_create(b->ctx, &d, &plan);
    if (status == MOE_OK) {
        status = run_planned(b, plan, &weights);
    }
    if (moec_check(b->run, status == MOE_OK, NAME, NAME ": %s: %s", rows, moe_last_error())) {
        moec_check_same(b->run, MOE_F32, TOKENS, b->sizes->hidden, b->out, b->want, NAME,
                        NAME ": %s: offsets into %zu bytes of weights", rows,
                        moec_big_bytes(b->sizes));
    }
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
}

static moe_status prepare(big *b)
{
    const size_t hidden = (size_t)b->sizes->hidden;
    float ones[TOKENS];
    for (int t = 0; t < TOKENS; t++) {
        ones[t] = 1.0f;
    }
    MOE_TRY(send(b, X, b->x_bf16, TOKENS * hidden * 2));
    MOE_TRY(send(b, IDS, b->ids, sizeof b->ids));
    MOE_TRY(send(b, WEIGHTS, ones, sizeof ones));
    MOE_TRY(take(b, OUT, TOKENS * hidden * sizeof(float)));
    MOE_TRY(fill_weights(b));
    return compute(b);
}

moe_status moec_big_check(moec_run *run, moe_context *ctx, const moec_big_sizes *sizes)
{
    big b = {.run = run, .ctx = ctx, .sizes = sizes};
    const size_t third = moec_big_bytes(sizes) / 3;
    moe_status status = take(&b, W13, 2 * third);
    if (status == MOE_OK) {
        status = take(&b, W2, third);
    }
    if (status != MOE_E_NO_MEMORY) {
        if (status == MOE_OK) {
            status = make_host(&b) ? prepare(&b)
                                   : moe_fail(MOE_E_NO_MEMORY, "moe check: memory is short");
        }
        if (moec_check(run, status == MOE_OK, NAME, NAME ": %s", moe_last_error())) {
            check_level(&b, MOE_DET_DEFAULT);
            check_level(&b, MOE_DET_KERNEL);
        }
        status = MOE_OK;
    }
    free_big(&b);
    return status;
}
