// SPDX-License-Identifier: Apache-2.0
// Every glu row: all activations, gate/up orders and dtypes, against float64.
#include <float.h>
#include <math.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "float64/ggemm.h"
#include "float64/glu.h"
#include "ops/glu.h"
#include "quant/elements.h"

#define ROWS   5
#define POISON 0xA5

typedef struct glu_case {
    float64_act act;
    moe_gate_up gate_up;
    moe_dtype x_dtype, y_dtype;
    int64_t inter;
    int fill;
    char text[160];
} glu_case;

static float draw(moec_rng *rng, int fill)
{
    static const double specials[] = {0.0,   -0.0,   1e-40,    -1e-40,    3e38,        -3e38, 88.0,
                                      -88.0, -104.0, HUGE_VAL, -HUGE_VAL, (double)NAN, 7.0,   -7.0};
    switch (fill) {
    case 0:
        return (float)(2.0 * moec_normal(rng));
    case 1:
        return (float)(30.0 * moec_normal(rng));
    case 2:
        return (float)ldexp(moec_normal(rng), -(int)moec_below(rng, 140));
    default:
        return (float)specials[moec_below(rng, (int64_t)(sizeof specials / sizeof specials[0]))];
    }
}

// Results of the first row that ran a case: every other row must give the same bits.
#define MAX_CASES 4096
static uint64_t case_hash[MAX_CASES];
static bool case_seen[MAX_CASES];

static void run_glu(moec_run *run, const moei_kernel *kernel, const glu_case *c, moec_rng *rng,
                    int number)
{
    const bool gated = moe_activation_gated(c->act.activation) != 0;
    const int64_t width = gated ? 2 * c->inter : c->inter;
    const size_t xb = (size_t)moe_dtype_bits(c->x_dtype) / 8;
    const size_t yb = (size_t)moe_dtype_bits(c->y_dtype) / 8;
    const int64_t y_stride = c->inter + 2;
    moec_guard x;
    moec_guard y;
    if (!moec_guard_alloc(&x, (size_t)(ROWS * width) * xb, true)) {
        return;
    }
    if (!moec_guard_alloc(&y, (size_t)(ROWS * y_stride) * yb, true)) {
        moec_guard_free(&x);
        return;
    }
    for (int64_t i = 0; i < ROWS * width; i++) {
        const float v = draw(rng, c->fill);
        moei_store_f32(c->x_dtype, x.data + (size_t)i * xb, 1, &v);
    }
    memset(y.data, POISON, y.bytes);
    moek_glu_args a = {.act = {c->act.activation, (float)c->act.alpha, (float)c->act.beta,
                               (float)c->act.linear_beta, (float)c->act.limit},
                       .x = x.data,
                       .x_dtype = c->x_dtype,
                       .x_row_stride = width * (int64_t)xb,
                       .y = y.data,
                       .y_dtype = c->y_dtype,
                       .y_row_stride = y_stride * (int64_t)yb,
                       .inter = c->inter,
                       .rows = ROWS,
                       .batches = 1};
    moei_glu_order(c->act.activation, c->gate_up, c->inter, &a.gate_offset, &a.up_offset, &a.step);
    const moei_exec exec = {run->ctx, NULL};
    const uint64_t before = moec_hash(x.data, x.bytes);
    (void)run->ctx->backend->glu(&exec, kernel, &a);
    double worst = 0.0;
    char where[200] = "";
    for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t j = 0; j < c->inter; j++) {
            const unsigned char *row = x.data + (size_t)(r * width) * xb;
            const double g = (double)moei_load_one(c->x_dtype, row, a.gate_offset + j * a.step);
            const double u =
                gated ? (double)moei_load_one(c->x_dtype, row, a.up_offset + j * a.step) : 1.0;
            double error;
            const double want = float64_glu(&c->act, g, u, &error);
            const double have =
                (double)moei_load_one(c->y_dtype, y.data + (size_t)(r * y_stride) * yb, j);
            const double bound = error + float64_half_ulp(fabs(want) + error, c->y_dtype);
            const double limit = c->y_dtype == MOE_F16 ? 65504.0 : (double)FLT_MAX;
            double ratio = fabs(have - want) / bound;
            if (isnan(want) || isnan(have)) {
                // inf * 0 in a product of exact limits is NaN in both, or the exact value of an
                // intermediate overflowed f32.
                ratio = isnan(want) && isnan(have) ? 0.0 : HUGE_VAL;
            } else if (!isfinite(have) || !isfinite(want)) {
                ratio =
                    fabs(want) + bound >= limit && (want > 0.0) == (have > 0.0) ? 0.0 : HUGE_VAL;
            }
            // Products of intermediates beyond f32's range overflow on the way.
            if (ratio > worst && fabs(g) < 1e38 && fabs(u) < 1e38) {
                worst = ratio;
                (void)snprintf(where, sizeof where,
                               "row %lld col %lld: g %.9g u %.9g have %.9g want %.17g",
                               (long long)r, (long long)j, g, u, have, want);
            }
        }
        const unsigned char *pad = y.data + (size_t)(r * y_stride + c->inter) * yb;
        for (size_t b = 0; b < (size_t)(y_stride - c->inter) * yb; b++) {
            if (pad[b] != POISON) {
                worst = HUGE_VAL;
                (void)snprintf(where, sizeof where, "padding of row %lld written", (long long)r);
            }
        }
    }
    moec_check(run, worst <= 1.0, kernel->name, "%s: %s: error %.3g x bound at %s", kernel->name,
               c->text, worst, where);
    const uint64_t first = moec_hash(y.data, y.bytes);
    (void)run->ctx->backend->glu(&exec, kernel, &a);
    moec_check(run, moec_hash(y.data, y.bytes) == first && moec_hash(x.data, x.bytes) == before,
               kernel->name, "%s: %s: two runs differ, or x changed", kernel->name, c->text);
    moec_check(run, number >= MAX_CASES || !case_seen[number] || case_hash[number] == first,
               kernel->name, "%s: %s: bits differ from another row's", kernel->name, c->text);
    if (number < MAX_CASES) {
        case_hash[number] = first;
        case_seen[number] = true;
    }
    moec_guard_free(&x);
    moec_guard_free(&y);
}

void moec_check_glu(moec_run *run, const moei_kernel *kernel)
{
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    static const int64_t sizes[] = {1, 7, 33, 256, 257};
    static const float64_act acts[] = {{MOE_ACT_SILU, 0, 0, 0, 0},
                                       {MOE_ACT_SILU, 0, 0, 0, 10.0},
                                       {MOE_ACT_GELU, 0, 0, 0, 0},
                                       {MOE_ACT_GELU_TANH, 0, 0, 0, 0},
                                       {MOE_ACT_SWIGLUOAI, (double)1.702f, 1.0, 0, 7.0},
                                       {MOE_ACT_SWIGLUOAI, 1.0, 0.5, 0, 0},
                                       {MOE_ACT_SWIGLUSTEP, 0, 0, 0, 7.0},
                                       {MOE_ACT_SITU, 0, 4.0, 25.0, 0},
                                       {MOE_ACT_SITU, 0, 4.0, 0, 0},
                                       {MOE_ACT_SILU_NO_MUL, 0, 0, 0, 0},
                                       {MOE_ACT_GELU_NO_MUL, 0, 0, 0, 0},
                                       {MOE_ACT_GELU_TANH_NO_MUL, 0, 0, 0, 0},
                                       {MOE_ACT_RELU2_NO_MUL, 0, 0, 0, 0}};
    moec_rng rng = {run->options->seed * 77u + 5u};
    int number = 0;
    for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++) {
        const bool gated = moe_activation_gated(acts[i].activation) != 0;
        for (moe_gate_up order = gated ? 1 : 0; order <= (gated ? MOE_UP_GATE_INTERLEAVED : 0);
             order++) {
            for (int d = 0; d < 9; d++) {
                for (int fill = 0; fill < 4; fill++) {
                    glu_case c = {
                        acts[i], order, dtypes[d % 3], dtypes[d / 3], sizes[moec_below(&rng, 5)],
                        fill,    ""};
                    (void)snprintf(c.text, sizeof c.text, "%s order %d %s -> %s inter=%lld fill=%d",
                                   moe_activation_name(acts[i].activation), (int)order,
                                   moe_dtype_name(c.x_dtype), moe_dtype_name(c.y_dtype),
                                   (long long)c.inter, fill);
                    run_glu(run, kernel, &c, &rng, number++);
                }
            }
        }
    }
}
