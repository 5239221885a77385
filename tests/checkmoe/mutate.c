// SPDX-License-Identifier: Apache-2.0
#include "checkmoe/mutate.h"

#include <stdlib.h>
#include <string.h>

#include "ops/combine.h"
#include "ops/ggemm.h"
#include "ops/glu.h"
#include "ops/place.h"
#include "ops/quantize.h"
#include "ops/route.h"
#include "quant/elements.h"

static const moei_backend *real; // what the mutant calls
static moec_mutation active;
static int products; // of this run: even ones are gate_up, odd ones down
static unsigned long hits;

const char *moec_mutation_name(moec_mutation mutation)
{
    static const char *const names[MOEC_NUM_MUTATIONS] = {
        [MOEC_MUTATE_NOTHING] = "nothing",
        [MOEC_MUTATE_ELEMENT_ZEROED] = "one output element zeroed",
        [MOEC_MUTATE_WRONG_ROW] = "16 elements from the wrong row",
        [MOEC_MUTATE_LAST_ROW_SCALED] = "last row x 1.02",
        [MOEC_MUTATE_LAST_K_DROPPED] = "last k dropped",
        [MOEC_MUTATE_K_TAIL] = "tail of K left out",
        [MOEC_MUTATE_PADDING_READ] = "padding of x read",
        [MOEC_MUTATE_BIAS_DROPPED] = "bias dropped",
        [MOEC_MUTATE_SCALE_DOUBLED] = "one scale doubled",
        [MOEC_MUTATE_SCALE_ROW_OFF] = "scale row off by one",
        [MOEC_MUTATE_ZERO_POINTS_IGNORED] = "zero points ignored",
        [MOEC_MUTATE_SCALE2_IGNORED] = "second-level scale ignored",
        [MOEC_MUTATE_SCALE2_TWICE] = "second-level scale applied twice",
        [MOEC_MUTATE_EXPERT_BOUNDARY] = "a row by the wrong expert",
        [MOEC_MUTATE_TOKEN_OFF] = "a row of the wrong token",
        [MOEC_MUTATE_WEIGHT_TWICE] = "router weight applied twice",
        [MOEC_MUTATE_GATE_UP_SWAPPED] = "gate and up swapped",
        [MOEC_MUTATE_LIMIT_IGNORED] = "activation limit ignored",
        [MOEC_MUTATE_WRONG_ACTIVATION] = "wrong activation",
        [MOEC_MUTATE_MAP_IGNORED] = "expert_map ignored",
        [MOEC_MUTATE_TIES_HIGH] = "ties to the higher id",
        [MOEC_MUTATE_BIAS_IN_WEIGHT] = "bias in the returned weight",
        [MOEC_MUTATE_SCALE_TWICE] = "routed scale applied twice",
        [MOEC_MUTATE_VALID_IGNORED] = "num_valid ignored",
        [MOEC_MUTATE_QUANT_SCALE_ONE] = "activations scaled by 1",
        [MOEC_MUTATE_QUANT_OTHER_GRID] = "activations on another grid",
        [MOEC_MUTATE_SLOTS_REVERSED] = "slots summed in reverse",
        [MOEC_MUTATE_SHARED_DROPPED] = "shared experts dropped",
        [MOEC_MUTATE_ACCUMULATE_IGNORED] = "accumulate ignored",
    };
    return names[mutation];
}

void moec_mutant_begin(void)
{
    products = 0;
    hits = 0;
}

unsigned long moec_mutant_hits(void)
{
    return hits;
}

static void *copy_of(const void *from, size_t bytes)
{
    void *to = malloc(bytes + 1);
    if (to == NULL) {
        abort();
    }
    memcpy(to, from, bytes);
    hits++;
    return to;
}

// ---- products -----------------------------------------------------------------------------------

static size_t scale_bytes(const moei_matrices *w)
{
    return (size_t)(w->count * w->scale_e_stride) * (size_t)moe_dtype_bits(w->scale_dtype) / 8;
}

static void double_scale(moe_dtype dtype, unsigned char *at)
{
    if (dtype == MOE_E8M0) {
        at[0]++;
    } else if (dtype == MOE_E4M3FN) {
        at[0] = (unsigned char)(at[0] + 8); // one more in the exponent
    } else {
        const float twice = 2.0f * moei_load_one(dtype, at, 0);
        moei_store_f32(dtype, at, 1, &twice);
    }
}

static float *squared(const float *from, int64_t count)
{
    float *to = copy_of(from, (size_t)count * sizeof *to);
    for (int64_t i = 0; i < count; i++) {
        to[i] *= to[i];
    }
    return to;
}

// Before the product; returns memory to free after it.
static void *spoil_product(moek_ggemm_args *a, bool down)
{
    moei_matrices *w = &a->w;
    void *copy = NULL;
    switch (active) {
    case MOEC_MUTATE_LAST_K_DROPPED:
        if (down) {
            w->k--;
            hits++;
        }
        break;
    case MOEC_MUTATE_K_TAIL:
        if (!down && w->k % 32 != 0) {
            w->k -= w->k % 32;
            hits++;
        }
        break;
    case MOEC_MUTATE_BIAS_DROPPED:
        hits += w->bias != NULL;
        w->bias = NULL;
        break;
    case MOEC_MUTATE_SCALE_DOUBLED:
        if (down && w->scales != NULL) {
            copy = copy_of(w->scales, scale_bytes(w));
            double_scale(w->scale_dtype, copy);
            w->scales = copy;
        }
        break;
    case MOEC_MUTATE_SCALE_ROW_OFF:
        if (!down && w->scales != NULL && w->scale_e_stride > w->scale_n_stride) {
            const size_t row =
                (size_t)w->scale_n_stride * (size_t)moe_dtype_bits(w->scale_dtype) / 8;
            copy = copy_of(w->scales, scale_bytes(w));
            memmove(copy, (unsigned char *)copy + row, scale_bytes(w) - row);
            w->scales = copy;
        }
        break;
    case MOEC_MUTATE_ZERO_POINTS_IGNORED:
        hits += w->zeros != NULL;
        w->zeros = NULL;
        break;
    case MOEC_MUTATE_SCALE2_IGNORED:
        hits += down && w->scale2 != NULL;
        w->scale2 = down ? NULL : w->scale2;
        break;
    case MOEC_MUTATE_SCALE2_TWICE:
        if (down && w->scale2 != NULL) {
            copy = squared(w->scale2, w->count * w->scale2_e_stride);
            w->scale2 = copy;
        }
        break;
    case MOEC_MUTATE_EXPERT_BOUNDARY:
        if (down && a->offsets != NULL) {
            int32_t *offsets = copy_of(a->offsets, ((size_t)w->count + 1) * sizeof *offsets);
            for (int32_t e = 1; e < w->count; e++) {
                if (offsets[e] < offsets[e + 1]) {
                    offsets[e]++;
                    break;
                }
            }
            copy = offsets;
            a->offsets = offsets;
        }
        break;
    case MOEC_MUTATE_TOKEN_OFF:
        if (!down && a->row_index != NULL && a->offsets[w->count] > 1) {
            const size_t rows = (size_t)a->offsets[w->count];
            int32_t *index = copy_of(a->row_index, rows * sizeof *index);
            index[0] += (index[0] / a->row_divisor == 0 ? 1 : -1) * a->row_divisor;
            copy = index;
            a->row_index = index;
        }
        break;
    case MOEC_MUTATE_WEIGHT_TWICE:
        if (down && a->row_weight != NULL) {
            copy = squared(a->row_weight, a->rows);
            a->row_weight = copy;
        }
        break;
    default:
        break;
    }
    return copy;
}

static uint8_t *row_of_y(const moek_ggemm_args *a, int64_t i)
{
    return a->y + (a->out_index != NULL ? a->out_index[i] : i) * a->y_row_stride;
}

// After the product.
static void spoil_result(const moek_ggemm_args *a, bool down)
{
    const int64_t rows = a->offsets != NULL ? a->offsets[a->w.count] : a->rows;
    const int64_t bytes = moe_dtype_bits(a->y_dtype) / 8;
    if (rows < 2) {
        return;
    }
    if (active == MOEC_MUTATE_ELEMENT_ZEROED && down) {
        memset(row_of_y(a, rows / 2) + a->w.n / 2 * bytes, 0, (size_t)bytes);
        hits++;
    } else if (active == MOEC_MUTATE_WRONG_ROW && down && a->w.n > 20) {
        memcpy(row_of_y(a, 0) + 3 * bytes, row_of_y(a, 1) + 3 * bytes, (size_t)(16 * bytes));
        hits++;
    } else if (active == MOEC_MUTATE_LAST_ROW_SCALED && down) {
        uint8_t *row = row_of_y(a, rows - 1);
        for (int64_t n = 0; n < a->w.n; n++) {
            const float scaled = 1.02f * moei_load_one(a->y_dtype, row, n);
            moei_store_f32(a->y_dtype, row + n * bytes, 1, &scaled);
        }
        hits++;
    } else if (active == MOEC_MUTATE_PADDING_READ && !down && a->x.scales == NULL) {
        const int64_t x_row = a->row_index != NULL ? a->row_index[0] / a->row_divisor : 0;
        float *y = (float *)(void *)row_of_y(a, 0);
        y[0] += 0.0f * moei_load_one(a->x.dtype, a->x.data + x_row * a->x.row_stride, a->w.k);
        hits++;
    }
}

static moe_status mutant_ggemm(const moei_exec *exec, const moei_kernel *kernel,
                               const moek_ggemm_args *args)
{
    moek_ggemm_args a = *args;
    const bool down = products++ % 2 == 1;
    void *copy = spoil_product(&a, down);
    const moe_status status = real->ggemm(exec, kernel, &a);
    free(copy);
    spoil_result(args, down);
    return status;
}

// ---- activation ---------------------------------------------------------------------------------

static moe_status mutant_glu(const moei_exec *exec, const moei_kernel *kernel,
                             const moek_glu_args *args)
{
    moek_glu_args a = *args;
    if (active == MOEC_MUTATE_GATE_UP_SWAPPED) {
        a.gate_offset = args->up_offset;
        a.up_offset = args->gate_offset;
        hits++;
    } else if (active == MOEC_MUTATE_LIMIT_IGNORED) {
        hits += a.act.limit > 0.0f;
        a.act.limit = 0.0f;
    } else if (active == MOEC_MUTATE_WRONG_ACTIVATION && a.act.activation == MOE_ACT_SILU) {
        a.act = (moei_activation_params){.activation = MOE_ACT_GELU};
        hits++;
    }
    return real->glu(exec, kernel, &a);
}

// ---- routing ------------------------------------------------------------------------------------

static moe_status mutant_place(const moei_exec *exec, const moei_kernel *kernel,
                               const moek_place_args *args)
{
    moek_place_args a = *args;
    if (active == MOEC_MUTATE_MAP_IGNORED) {
        hits += a.expert_map != NULL;
        a.expert_map = NULL;
    } else if (active == MOEC_MUTATE_VALID_IGNORED) {
        hits += a.num_valid != NULL;
        a.num_valid = NULL;
    }
    return real->place(exec, kernel, &a);
}

static float logit_at(const moek_route_args *a, int64_t t, int32_t e)
{
    return moei_load_one(a->logit_dtype, a->logits + t * a->logit_token_stride, e);
}

// Puts the highest id of those with the same logit in the place of a chosen one.
static void choose_higher(const moek_route_args *a, int64_t t, int32_t *ids)
{
    for (int32_t j = 0; j < a->top_k; j++) {
        for (int32_t e = a->num_experts - 1; e > ids[j]; e--) {
            bool chosen = false;
            for (int32_t i = 0; i < a->top_k; i++) {
                chosen = chosen || ids[i] == e;
            }
            if (!chosen && logit_at(a, t, e) == logit_at(a, t, ids[j])) {
                ids[j] = e;
                hits++;
                break;
            }
        }
    }
}

static moe_status mutant_route(const moei_exec *exec, const moei_kernel *kernel,
                               const moek_route_args *args)
{
    const moe_status status = real->route(exec, kernel, args);
    for (int64_t t = 0; t < args->tokens; t++) {
        int32_t *ids = (int32_t *)args->ids + t * args->id_token_stride;
        float *weights = (float *)args->weights + t * args->weight_token_stride;
        if (active == MOEC_MUTATE_TIES_HIGH) {
            choose_higher(args, t, ids);
        }
        for (int32_t j = 0; j < args->top_k; j++) {
            if (active == MOEC_MUTATE_BIAS_IN_WEIGHT && ids[j] >= 0 &&
                args->correction_bias != NULL) {
                weights[j] += args->correction_bias[ids[j]];
                hits++;
            } else if (active == MOEC_MUTATE_SCALE_TWICE && args->desc.scale != 1.0f) {
                weights[j] *= args->desc.scale;
                hits++;
            }
        }
    }
    return status;
}

// ---- quantisers ---------------------------------------------------------------------------------

static moe_status mutant_quantize(const moei_exec *exec, const moei_kernel *kernel,
                                  const moek_quantize_args *args)
{
    const moe_status status = real->quantize(exec, kernel, args);
    const int64_t rows = args->stage == MOEK_QUANTIZE_CODES ? moei_quantize_count(args, 0) : 0;
    const int64_t row_bytes = moei_quant_row_bytes(args->quant.elem, args->k);
    const int64_t block = args->info->grain == MOEI_GRAIN_BLOCK ? args->info->block_rows : 1;
    for (int64_t r = 0; r < rows; r++) {
        if (active == MOEC_MUTATE_QUANT_SCALE_ONE && args->quant.scale_type == MOE_SCALE_F32) {
            ((float *)args->scales)[r / block * args->scale_row_stride] = 1.0f;
            hits++;
        }
        for (int64_t k = 0; active == MOEC_MUTATE_QUANT_OTHER_GRID && k < row_bytes; k++) {
            args->q[r * args->q_row_stride + k] &= 0xFE;
            hits++;
        }
    }
    return status;
}

// ---- the sum ------------------------------------------------------------------------------------

static moe_status mutant_combine(const moei_exec *exec, const moei_kernel *kernel,
                                 const moek_combine_args *args)
{
    moek_combine_args a = *args;
    uint8_t *slots = NULL;
    int32_t *ids = NULL;
    if (active == MOEC_MUTATE_SHARED_DROPPED) {
        hits += a.num_shared > 0;
        a.num_shared = 0;
    } else if (active == MOEC_MUTATE_ACCUMULATE_IGNORED) {
        hits += a.accumulate;
        a.accumulate = false;
    } else if (active == MOEC_MUTATE_SLOTS_REVERSED && a.slots_per_token > 1 && a.ids != NULL) {
        const int64_t k = a.slots_per_token;
        slots = copy_of(a.slots, (size_t)(a.tokens * a.slot_token_stride));
        ids = copy_of(a.ids, (size_t)(a.tokens * k) * sizeof *ids);
        for (int64_t s = 0; s < a.tokens * k; s++) {
            const int64_t mirror = s / k * k + (k - 1 - s % k);
            memcpy(slots + s * a.slot_stride, args->slots + mirror * a.slot_stride,
                   (size_t)a.slot_stride);
            ids[s] = ((const int32_t *)args->ids)[mirror];
        }
        a.slots = slots;
        a.ids = ids;
    }
    const moe_status status = real->combine(exec, kernel, &a);
    free(slots);
    free(ids);
    return status;
}

void moec_mutant_make(moec_mutant *mutant, const moe_context *ctx, moec_mutation mutation)
{
    mutant->ctx = *ctx;
    mutant->backend = *ctx->backend;
    mutant->backend.kernels = mutant->kernels;
    mutant->backend.num_kernels = 0;
    for (size_t i = 0; i < ctx->backend->num_kernels; i++) {
        const moei_kernel *kernel = &ctx->backend->kernels[i];
        if (kernel->layout == MOEI_LAYOUT_ROW &&
            mutant->backend.num_kernels < MOEC_MUTANT_KERNELS) {
            moei_kernel *copy = &mutant->kernels[mutant->backend.num_kernels++];
            *copy = *kernel;
            if (ctx->op_kernel[kernel->op] == kernel) {
                mutant->ctx.op_kernel[kernel->op] = copy;
            }
        }
    }
    mutant->backend.run_steps = NULL; // each op has its own mistakes
    mutant->backend.ggemm = mutant_ggemm;
    mutant->backend.glu = mutant_glu;
    mutant->backend.place = mutant_place;
    mutant->backend.route = mutant_route;
    mutant->backend.quantize = mutant_quantize;
    mutant->backend.combine = mutant_combine;
    mutant->ctx.backend = &mutant->backend;
    real = ctx->backend;
    active = mutation;
    moec_mutant_begin();
}
