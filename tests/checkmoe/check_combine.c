// SPDX-License-Identifier: Apache-2.0
// Every combine row: f32 sums in slot order are exact statements, so the check is bit equality with
// a scalar loop that shares only the codecs.
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "ops/combine.h"
#include "quant/elements.h"

#define FEW_SLOTS  9
#define MANY_SLOTS 70

static float element(moe_dtype dtype, const void *p, int64_t i)
{
    return moei_load_one(dtype, p, i);
}

typedef struct combine_case {
    moek_combine_args a;
    moec_guard slots, ids, router_ids, weights, identity, x, bias, shared, out, valid, counts;
    char text[160];
} combine_case;

static void fill_floats(moec_rng *rng, moe_dtype dtype, moec_guard *g)
{
    const size_t bytes = (size_t)moe_dtype_bits(dtype) / 8;
    for (size_t i = 0; i < g->bytes / bytes; i++) {
        const float v = moec_below(rng, 30) == 0 ? -0.0f : (float)moec_normal(rng);
        moei_store_f32(dtype, g->data + i * bytes, 1, &v);
    }
}

static bool build(combine_case *c, moec_rng *rng)
{
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    moek_combine_args *a = &c->a;
    a->tokens = moec_below(rng, 20);
    a->width = moec_below(rng, 3) != 0 ? 1 + moec_below(rng, 300) : 8 * (1 + moec_below(rng, 300));
    a->slots_per_token =
        1 + (int32_t)moec_below(rng, moec_below(rng, 8) == 0 ? MANY_SLOTS : FEW_SLOTS);
    a->batch_rows = 1 + moec_below(rng, 7);
    a->slot_dtype = dtypes[moec_below(rng, 3)];
    a->out_dtype = dtypes[moec_below(rng, 3)];
    a->num_shared = (int32_t)moec_below(rng, 3);
    a->accumulate = moec_below(rng, 2) == 0;
    if (moec_below(rng, 4) == 0) {
        a->convert = true;
        a->slots_per_token = 1;
        a->num_shared = 0;
        a->accumulate = false;
    }
    const int64_t sb = moe_dtype_bits(a->slot_dtype) / 8;
    const int64_t ob = moe_dtype_bits(a->out_dtype) / 8;
    const size_t slots = (size_t)(a->tokens * a->slots_per_token);
    const size_t wide = (size_t)a->width;
    const int64_t padding = moec_below(rng, 3) * 4 - 1; // -1: none
    const int64_t columns = a->width + (padding > 0 ? padding : 0);
    const size_t batches = (size_t)((a->tokens + a->batch_rows - 1) / a->batch_rows);
    if (!moec_guard_alloc(&c->slots, slots * wide * (size_t)sb, true) ||
        !moec_guard_alloc(&c->ids, slots * 8, true) ||
        !moec_guard_alloc(&c->router_ids, slots * 4, true) ||
        !moec_guard_alloc(&c->weights, slots * 4, true) ||
        !moec_guard_alloc(&c->identity, slots * 4, true) ||
        !moec_guard_alloc(&c->x, (size_t)a->tokens * wide * 2, true) ||
        !moec_guard_alloc(&c->bias, wide * 4, true) ||
        !moec_guard_alloc(&c->shared, (size_t)(a->num_shared * a->tokens) * wide * 2, true) ||
        !moec_guard_alloc(&c->valid, 4, true) || !moec_guard_alloc(&c->counts, batches * 4, true) ||
        !moec_guard_alloc(&c->out, (size_t)(a->tokens * columns * ob), true)) {
        return false;
    }
    fill_floats(rng, a->slot_dtype, &c->slots);
    a->weight_dtype = moec_below(rng, 2) == 0 ? MOE_F32 : MOE_BF16;
    fill_floats(rng, a->weight_dtype, &c->weights);
    fill_floats(rng, MOE_F32, &c->identity);
    fill_floats(rng, MOE_BF16, &c->x);
    fill_floats(rng, MOE_F32, &c->bias);
    fill_floats(rng, MOE_BF16, &c->shared);
    fill_floats(rng, a->out_dtype, &c->out);
    const bool wide_ids = moec_below(rng, 2) == 0;
    for (size_t s = 0; s < slots; s++) {
        const int64_t id = moec_below(rng, 4) == 0 ? -1 : moec_below(rng, 12);
        const int32_t narrow = (int32_t)id;
        memcpy(c->ids.data + s * (wide_ids ? 8 : 4), wide_ids ? (const void *)&id : &narrow,
               wide_ids ? 8 : 4);
        ((int32_t *)(void *)c->router_ids.data)[s] = (int32_t)moec_below(rng, 14);
    }
    a->slots = c->slots.data;
    a->slot_stride = a->width * sb;
    a->slot_token_stride = a->slots_per_token * a->slot_stride;
    if (moec_below(rng, 3) != 0) {
        a->ids = c->ids.data;
        a->id_dtype = wide_ids ? MOE_I64 : MOE_I32;
        a->id_token_stride = a->slots_per_token;
        a->first_absent = moec_below(rng, 2) == 0 ? 8 : 0;
    }
    if (!a->convert && moec_below(rng, 2) == 0) {
        a->weights = c->weights.data;
        a->weight_token_stride = a->slots_per_token;
    }
    if (moec_below(rng, 2) == 0) {
        a->router_ids = (const int32_t *)(const void *)c->router_ids.data;
        a->router_token_stride = a->slots_per_token;
        a->identity_first = 10;
        a->identity_count = 3;
        a->identity_weights =
            moec_below(rng, 2) == 0 ? (const float *)(const void *)c->identity.data : NULL;
        a->x = c->x.data;
        a->x_dtype = MOE_BF16;
        a->x_token_stride = a->width * 2;
    }
    if (!a->convert && moec_below(rng, 2) == 0) {
        a->bias = c->bias.data;
        a->bias_dtype = MOE_F32;
    }
    a->shared = c->shared.data;
    a->shared_dtype = MOE_BF16;
    a->shared_token_stride = a->width * 2;
    a->shared_stride = a->tokens * a->width * 2;
    if (moec_below(rng, 3) == 0) {
        const int32_t valid = (int32_t)moec_below(rng, a->tokens + 3);
        memcpy(c->valid.data, &valid, sizeof valid);
        a->num_valid = (const int32_t *)(const void *)c->valid.data;
    }
    if (moec_below(rng, 4) == 0) {
        int32_t *counts = (int32_t *)(void *)c->counts.data;
        for (size_t b = 0; b < batches; b++) {
            counts[b] = (int32_t)moec_below(rng, a->batch_rows + 1);
        }
        a->batch_counts = counts;
    }
    a->out = c->out.data;
    a->out_token_stride = columns * ob;
    (void)snprintf(c->text, sizeof c->text,
                   "%s -> %s tokens=%lld slots=%d width=%lld shared=%d%s%s%s%s%s",
                   moe_dtype_name(a->slot_dtype), moe_dtype_name(a->out_dtype),
                   (long long)a->tokens, (int)a->slots_per_token, (long long)a->width,
                   (int)a->num_shared, a->accumulate ? " accumulate" : "",
                   a->convert ? " convert" : "", a->router_ids != NULL ? " identity" : "",
                   a->bias != NULL ? " bias" : "", a->batch_counts != NULL ? " batches" : "");
    return true;
}

static int64_t out_columns(const moek_combine_args *a)
{
    return a->out_token_stride * 8 / moe_dtype_bits(a->out_dtype);
}

// One element, as the contract says it: slots, bias, shared, previous out; f32; one rounding.
static float expected(const moek_combine_args *a, const unsigned char *old, int64_t t, int64_t h)
{
    float sum = 0.0f;
    for (int32_t j = 0; j < a->slots_per_token; j++) {
        const int64_t slot = t * a->slots_per_token + j;
        if (a->router_ids != NULL && a->router_ids[slot] >= a->identity_first &&
            a->router_ids[slot] < a->identity_first + a->identity_count) {
            const float w = a->identity_weights != NULL ? a->identity_weights[slot] : 1.0f;
            const float v =
                moei_round_to(a->slot_dtype, w * element(a->x_dtype, a->x, t * a->width + h));
            sum = a->convert ? v : sum + v;
            continue;
        }
        int64_t id = 0;
        if (a->ids != NULL && a->id_dtype == MOE_I64) {
            memcpy(&id, (const unsigned char *)a->ids + 8 * slot, 8);
        } else if (a->ids != NULL) {
            int32_t narrow;
            memcpy(&narrow, (const unsigned char *)a->ids + 4 * slot, 4);
            id = narrow;
        }
        if (id < 0 || (a->first_absent > 0 && id >= a->first_absent)) {
            continue;
        }
        const float v = element(a->slot_dtype, a->slots, slot * a->width + h);
        sum = a->convert           ? v
              : a->weights != NULL ? sum + element(a->weight_dtype, a->weights, slot) * v
                                   : sum + v;
    }
    if (a->bias != NULL) {
        sum += element(a->bias_dtype, a->bias, h);
    }
    for (int32_t s = 0; s < a->num_shared; s++) {
        sum += element(a->shared_dtype, a->shared, (s * a->tokens + t) * a->width + h);
    }
    if (a->accumulate) {
        sum += element(a->out_dtype, old, t * out_columns(a) + h);
    }
    return moei_round_to(a->out_dtype, sum);
}

// Element i of out: computed, or padding and absent rows as they were.
static float expected_at(const moek_combine_args *a, const unsigned char *old, int64_t i)
{
    const int64_t t = i / out_columns(a);
    const int64_t h = i % out_columns(a);
    const int64_t tokens =
        a->num_valid != NULL && a->num_valid[0] < a->tokens ? a->num_valid[0] : a->tokens;
    const bool there = t < tokens && (a->batch_counts == NULL ||
                                      t % a->batch_rows < a->batch_counts[t / a->batch_rows]);
    return there && h < a->width ? expected(a, old, t, h) : element(a->out_dtype, old, i);
}

static void report(moec_run *run, const moei_kernel *kernel, const combine_case *c,
                   const unsigned char *old)
{
    const moek_combine_args *a = &c->a;
    const int64_t columns = out_columns(a);
    const size_t bytes = (size_t)moe_dtype_bits(a->out_dtype) / 8;
    unsigned char *want = calloc(c->out.bytes + 1, 1);
    for (int64_t i = 0; want != NULL && i < a->tokens * columns; i++) {
        const float value = expected_at(a, old, i);
        moei_store_f32(a->out_dtype, want + (size_t)i * bytes, 1, &value);
    }
    if (moec_check(run, want != NULL, kernel->name, "%s: %s: differs; memory is short",
                   kernel->name, c->text)) {
        moec_check_same(run, a->out_dtype, a->tokens, columns, c->out.data, want, kernel->name,
                        "%s: %s (all memory)", kernel->name, c->text);
    }
    free(want);
}

static void run_combine(moec_run *run, const moei_kernel *kernel, combine_case *c)
{
    const moek_combine_args *a = &c->a;
    const moei_exec exec = moei_exec_make(run->ctx, NULL);
    unsigned char *old = malloc(c->out.bytes + 1);
    if (old == NULL) {
        return;
    }
    memcpy(old, c->out.data, c->out.bytes);
    (void)run->ctx->backend->combine(&exec, kernel, a);
    const int64_t columns = out_columns(a);
    int64_t wrong = -1;
    for (int64_t i = 0; i < a->tokens * columns && wrong < 0; i++) {
        const float have = element(a->out_dtype, c->out.data, i);
        const float want = expected_at(a, old, i);
        wrong = memcmp(&have, &want, sizeof have) != 0 ? i : -1;
    }
    if (wrong < 0) {
        run->counts->passed++;
    } else {
        report(run, kernel, c, old);
    }
    free(old);
}

void moec_check_combine(moec_run *run, const moei_kernel *kernel)
{
    moec_rng rng = {run->options->seed * 991u + 3u};
    for (int i = 0; i < 400; i++) {
        combine_case *c = calloc(1, sizeof *c);
        if (c == NULL) {
            return;
        }
        if (moec_check(run, build(c, &rng), kernel->name, "%s: no memory", kernel->name)) {
            run_combine(run, kernel, c);
        }
        moec_guard *guards[] = {&c->slots,    &c->ids,   &c->router_ids, &c->weights,
                                &c->identity, &c->x,     &c->bias,       &c->shared,
                                &c->out,      &c->valid, &c->counts};
        for (size_t g = 0; g < sizeof guards / sizeof guards[0]; g++) {
            moec_guard_free(guards[g]);
        }
        free(c);
    }
}
