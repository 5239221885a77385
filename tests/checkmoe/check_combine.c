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
    moek_combine_args a; // first: what `reset` is given
    moec_buffers buffers;
    size_t out_bytes;
    unsigned char *old; // out as it was
    char text[160];
} combine_case;

static void fill_floats(moec_rng *rng, moe_dtype dtype, unsigned char *data, size_t count)
{
    const size_t bytes = (size_t)moe_dtype_bits(dtype) / 8;
    for (size_t i = 0; i < count; i++) {
        const float v = moec_below(rng, 30) == 0 ? -0.0f : (float)moec_normal(rng);
        moei_store_f32(dtype, data + i * bytes, 1, &v);
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
    const int64_t slots = a->tokens * a->slots_per_token;
    const int64_t padding = moec_below(rng, 3) * 4 - 1; // -1: none
    const int64_t columns = a->width + (padding > 0 ? padding : 0);
    const int64_t out_elements = a->tokens * columns;
    const int64_t batches = (a->tokens + a->batch_rows - 1) / a->batch_rows;
    const bool wide_ids = moec_below(rng, 2) == 0;
    moec_buffers *b = &c->buffers;
    unsigned char *slot_rows = moec_input(b, slots * a->width, (size_t)sb);
    unsigned char *ids = moec_input(b, slots, wide_ids ? 8 : 4);
    int32_t *router_ids = moec_input(b, slots, sizeof *router_ids);
    unsigned char *weights = moec_input(b, slots, sizeof(float));
    float *identity = moec_input(b, slots, sizeof *identity);
    unsigned char *x = moec_input(b, a->tokens * a->width, 2);
    unsigned char *bias = moec_input(b, a->width, sizeof(float));
    unsigned char *shared = moec_input(b, a->num_shared * a->tokens * a->width, 2);
    int32_t *num_valid = moec_input(b, 1, sizeof *num_valid);
    int32_t *counts = moec_input(b, batches, sizeof *counts);
    unsigned char *out = moec_output(b, out_elements, (size_t)ob);
    c->out_bytes = (size_t)(out_elements * ob);
    c->old = malloc(c->out_bytes + 1);
    if (b->failed || c->old == NULL) {
        return false;
    }
    fill_floats(rng, a->slot_dtype, slot_rows, (size_t)(slots * a->width));
    a->weight_dtype = moec_below(rng, 2) == 0 ? MOE_F32 : MOE_BF16;
    fill_floats(rng, a->weight_dtype, weights, (size_t)slots);
    fill_floats(rng, MOE_F32, (unsigned char *)identity, (size_t)slots);
    fill_floats(rng, MOE_BF16, x, (size_t)(a->tokens * a->width));
    fill_floats(rng, MOE_F32, bias, (size_t)a->width);
    fill_floats(rng, MOE_BF16, shared, (size_t)(a->num_shared * a->tokens * a->width));
    fill_floats(rng, a->out_dtype, c->old, (size_t)out_elements);
    for (int64_t s = 0; s < slots; s++) {
        moec_id_put(wide_ids ? MOE_I64 : MOE_I32, ids, s,
                    moec_below(rng, 4) == 0 ? -1 : moec_below(rng, 12));
        router_ids[s] = (int32_t)moec_below(rng, 14);
    }
    a->slots = slot_rows;
    a->slot_stride = a->width * sb;
    a->slot_token_stride = a->slots_per_token * a->slot_stride;
    if (moec_below(rng, 3) != 0) {
        a->ids = ids;
        a->id_dtype = wide_ids ? MOE_I64 : MOE_I32;
        a->id_token_stride = a->slots_per_token;
        a->first_absent = moec_below(rng, 2) == 0 ? 8 : 0;
    }
    if (!a->convert && moec_below(rng, 2) == 0) {
        a->weights = weights;
        a->weight_token_stride = a->slots_per_token;
    }
    if (moec_below(rng, 2) == 0) {
        a->router_ids = router_ids;
        a->router_token_stride = a->slots_per_token;
        a->identity_first = 10;
        a->identity_count = 3;
        a->identity_weights = moec_below(rng, 2) == 0 ? identity : NULL;
        a->x = x;
        a->x_dtype = MOE_BF16;
        a->x_token_stride = a->width * 2;
    }
    if (!a->convert && moec_below(rng, 2) == 0) {
        a->bias = bias;
        a->bias_dtype = MOE_F32;
    }
    a->shared = shared;
    a->shared_dtype = MOE_BF16;
    a->shared_token_stride = a->width * 2;
    a->shared_stride = a->tokens * a->width * 2;
    if (moec_below(rng, 3) == 0) {
        num_valid[0] = (int32_t)moec_below(rng, a->tokens + 3);
        a->num_valid = num_valid;
    }
    if (moec_below(rng, 4) == 0) {
        for (int64_t i = 0; i < batches; i++) {
            counts[i] = (int32_t)moec_below(rng, a->batch_rows + 1);
        }
        a->batch_counts = counts;
    }
    a->out = out;
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

static void reset(const void *args)
{
    const combine_case *c = args;
    memcpy(c->a.out, c->old, c->out_bytes);
}

static void report(moec_run *run, const moei_kernel *kernel, const combine_case *c)
{
    const moek_combine_args *a = &c->a;
    const int64_t columns = out_columns(a);
    const size_t bytes = (size_t)moe_dtype_bits(a->out_dtype) / 8;
    unsigned char *want = calloc(c->out_bytes + 1, 1);
    for (int64_t i = 0; want != NULL && i < a->tokens * columns; i++) {
        const float value = expected_at(a, c->old, i);
        moei_store_f32(a->out_dtype, want + (size_t)i * bytes, 1, &value);
    }
    if (moec_check(run, want != NULL, kernel->name, "%s: %s: differs; memory is short",
                   kernel->name, c->text)) {
        moec_check_same(run, a->out_dtype, a->tokens, columns, a->out, want, kernel->name,
                        "%s: %s (all memory)", kernel->name, c->text);
    }
    free(want);
}

static void run_combine(moec_run *run, const moec_teams *teams, const moei_kernel *kernel,
                        combine_case *c, int number)
{
    const moek_combine_args *a = &c->a;
    const int64_t columns = out_columns(a);
    const moec_launch launch = {.kernel = kernel,
                                .args = a,
                                .reset = reset,
                                .buffers = &c->buffers,
                                .result = moe_tensor_2d(a->out, a->out_dtype, a->tokens, columns),
                                .text = c->text};
    const uint64_t hash = moec_run_all(run, teams, &launch);
    int64_t wrong = -1;
    for (int64_t i = 0; i < a->tokens * columns && wrong < 0; i++) {
        const float have = element(a->out_dtype, a->out, i);
        const float want = expected_at(a, c->old, i);
        wrong = memcmp(&have, &want, sizeof have) != 0 ? i : -1;
    }
    if (wrong < 0) {
        run->counts->passed++;
    } else {
        report(run, kernel, c);
    }
    moec_rows_agree(run, kernel, number, hash, c->text);
}

void moec_check_combine(moec_run *run, const moei_kernel *kernel)
{
    moec_rng rng = {run->options->seed * 991u + 3u};
    moec_teams teams;
    if (!moec_check(run, moec_teams_make(run, &teams), kernel->name, "%s: no threads",
                    kernel->name)) {
        return;
    }
    for (int i = 0; i < 400; i++) {
        combine_case *c = calloc(1, sizeof *c);
        if (c == NULL) {
            break;
        }
        c->buffers.flip = i % 2 == 1;
        if (moec_check(run, build(c, &rng), kernel->name, "%s: no memory", kernel->name) &&
            moec_wants_case(run, i)) {
            run_combine(run, &teams, kernel, c, i);
        }
        moec_buffers_free(&c->buffers);
        free(c->old);
        free(c);
    }
    moec_teams_free(&teams);
}
