// SPDX-License-Identifier: Apache-2.0
// combine, portable: sums a token's slots in f32, in slot order, and rounds once. Limiting
// resource: memory bandwidth; spans of a row keep the sum in L1.
#include "ops/combine.h"

#include "backends/cpu/ref/ref.h"
#include "core/safemath.h"
#include "quant/elements.h"

#define SPAN 256

// Id of a slot, or -1 where the slot is absent.
static int64_t slot_id(const moek_combine_args *a, int64_t t, int32_t j)
{
    if (a->ids == NULL) {
        return 0;
    }
    const int64_t at = t * a->id_token_stride + j;
    int64_t id;
    if (a->id_dtype == MOE_I64) {
        memcpy(&id, (const uint8_t *)a->ids + 8 * at, sizeof id);
    } else {
        int32_t narrow;
        memcpy(&narrow, (const uint8_t *)a->ids + 4 * at, sizeof narrow);
        id = narrow;
    }
    return id;
}

static bool is_identity(const moek_combine_args *a, int64_t t, int32_t j)
{
    if (a->router_ids == NULL) {
        return false;
    }
    const int32_t id = a->router_ids[t * a->router_token_stride + j];
    return id >= a->identity_first && id - a->identity_first < a->identity_count;
}

static void add_span(moe_dtype dtype, const uint8_t *row, int64_t h0, int64_t n, float *sum)
{
    float v[SPAN];
    moei_load_f32(dtype, row, h0, n, v);
    for (int64_t h = 0; h < n; h++) {
        sum[h] += v[h];
    }
}

// False where no slot is there.
static bool add_slots(const moek_combine_args *a, int64_t t, int64_t h0, int64_t n, float *sum)
{
    bool any = false;
    for (int32_t j = 0; j < a->slots_per_token; j++) {
        const int64_t id = slot_id(a, t, j);
        float v[SPAN];
        if (is_identity(a, t, j)) {
            any = true;
            const float weight = a->identity_weights != NULL
                                     ? a->identity_weights[t * a->router_token_stride + j]
                                     : 1.0f;
            moei_load_f32(a->x_dtype, a->x + t * a->x_token_stride, h0, n, v);
            for (int64_t h = 0; h < n; h++) {
                sum[h] += moei_round_to(a->slot_dtype, weight * v[h]);
            }
            continue;
        }
        if (id < 0 || (a->first_absent > 0 && id >= a->first_absent)) {
            continue;
        }
        any = true;
        moei_load_f32(a->slot_dtype, a->slots + t * a->slot_token_stride + j * a->slot_stride, h0,
                      n, v);
        const float weight = a->weights != NULL ? moei_load_one(a->weight_dtype, a->weights,
                                                                t * a->weight_token_stride + j)
                                                : 1.0f;
        for (int64_t h = 0; h < n; h++) {
            sum[h] += a->weights != NULL ? weight * v[h] : v[h];
        }
    }
    return any;
}

moek_combine_fn MOEI_REF(moek_combine_any_any);
void MOEI_REF(moek_combine_any_any)(const moek_combine_args *args, int64_t t0, int64_t t1)
{
    const int out_bytes = moe_dtype_bits(args->out_dtype) / 8;
    for (int64_t t = t0; t < t1; t++) {
        uint8_t *out = args->out + t * args->out_token_stride;
        if (args->batch_counts != NULL &&
            t % args->batch_rows >= args->batch_counts[t / args->batch_rows]) {
            continue;
        }
        for (int64_t h0 = 0; h0 < args->width; h0 += SPAN) {
            const int64_t n = moei_i64_min(SPAN, args->width - h0);
            float sum[SPAN] = {0};
            for (int64_t h = 0; args->convert && h < n; h++) {
                sum[h] = -0.0f; // what changes no term, itself -0 or not
            }
            if (!add_slots(args, t, h0, n, sum)) {
                memset(sum, 0, sizeof sum);
            }
            if (args->bias != NULL) {
                add_span(args->bias_dtype, args->bias, h0, n, sum);
            }
            for (int32_t s = 0; s < args->num_shared; s++) {
                add_span(args->shared_dtype,
                         args->shared + t * args->shared_token_stride + s * args->shared_stride, h0,
                         n, sum);
            }
            if (args->accumulate) {
                add_span(args->out_dtype, out, h0, n, sum);
            }
            moei_store_f32(args->out_dtype, out + h0 * out_bytes, n, sum);
        }
    }
}
