// SPDX-License-Identifier: Apache-2.0
// Every glu row: all activations, gate/up orders and dtypes, against float64.
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "float64/ggemm.h"
#include "float64/glu.h"
#include "ops/glu.h"
#include "quant/elements.h"

#define ROWS    6 // of all batches
#define BATCHES 3 // or 1

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
    case 2: {
        const int down = (int)moec_below(rng, 140); // first, on every compiler
        return (float)ldexp(moec_normal(rng), -down);
    }
    default:
        return (float)specials[moec_below(rng, (int64_t)(sizeof specials / sizeof specials[0]))];
    }
}

// A case in memory.
typedef struct glu_data {
    moek_glu_args a;
    moec_buffers buffers;
    unsigned char *x, *y;
    int64_t y_stride;
} glu_data;

// How many rows are there is said in one of three ways, or not at all.
static void draw_rows(moec_rng *rng, glu_data *d)
{
    moek_glu_args *a = &d->a;
    int32_t *counts = moec_input(&d->buffers, BATCHES, sizeof *counts);
    int32_t *total = moec_input(&d->buffers, 1, sizeof *total);
    if (d->buffers.failed) {
        return;
    }
    a->batches = moec_below(rng, 2) == 0 ? BATCHES : 1;
    a->rows = ROWS / a->batches;
    a->x_batch_stride = a->rows * a->x_row_stride;
    a->y_batch_stride = a->rows * a->y_row_stride;
    for (int32_t b = 0; b < BATCHES; b++) {
        counts[b] = (int32_t)moec_below(rng, a->rows + 1);
    }
    total[0] = (int32_t)moec_below(rng, a->rows + 1);
    a->counts = a->batches > 1 && moec_below(rng, 2) == 0 ? counts : NULL;
    a->total = a->counts == NULL && moec_below(rng, 3) == 0 ? total : NULL;
}

static bool is_there(const glu_data *d, int64_t row)
{
    const moek_glu_args *a = &d->a;
    const int64_t rows = a->counts != NULL  ? a->counts[row / a->rows]
                         : a->total != NULL ? a->total[0]
                                            : a->rows;
    return row % a->rows < rows;
}

static bool build(const glu_case *c, moec_rng *rng, glu_data *d)
{
    const bool gated = moe_activation_gated(c->act.activation) != 0;
    const int64_t width = gated ? 2 * c->inter : c->inter;
    const size_t xb = (size_t)moe_dtype_bits(c->x_dtype) / 8;
    const size_t yb = (size_t)moe_dtype_bits(c->y_dtype) / 8;
    memset(d, 0, sizeof *d);
    d->y_stride = c->inter + 2 * moec_below(rng, 3);
    d->x = moec_input(&d->buffers, ROWS * width, xb);
    d->buffers.flip = true; // both end at a guard page
    d->y = moec_output(&d->buffers, ROWS * d->y_stride, yb);
    if (d->x == NULL || d->y == NULL) {
        return false;
    }
    for (int64_t i = 0; i < ROWS * width; i++) {
        const float v = draw(rng, c->fill);
        moei_store_f32(c->x_dtype, d->x + (size_t)i * xb, 1, &v);
    }
    d->a = (moek_glu_args){.act = {c->act.activation, (float)c->act.alpha, (float)c->act.beta,
                                   (float)c->act.linear_beta, (float)c->act.limit},
                           .x = d->x,
                           .x_dtype = c->x_dtype,
                           .x_row_stride = width * (int64_t)xb,
                           .y = d->y,
                           .y_dtype = c->y_dtype,
                           .y_row_stride = d->y_stride * (int64_t)yb,
                           .inter = c->inter};
    draw_rows(rng, d);
    moei_glu_order(c->act.activation, c->gate_up, c->inter, &d->a.gate_offset, &d->a.up_offset,
                   &d->a.step);
    return !d->buffers.failed;
}

// Error / bound of element j of row r, and what it follows from.
static double ratio_at(const glu_case *c, const glu_data *d, int64_t r, int64_t j, double *want,
                       double *bound)
{
    const moek_glu_args *a = &d->a;
    const unsigned char *row = d->x + r * a->x_row_stride;
    const bool gated = moe_activation_gated(c->act.activation) != 0;
    const double g = (double)moei_load_one(c->x_dtype, row, a->gate_offset + j * a->step);
    const double u =
        gated ? (double)moei_load_one(c->x_dtype, row, a->up_offset + j * a->step) : 1.0;
    const double have = (double)moei_load_one(c->y_dtype, d->y, r * d->y_stride + j);
    double error;
    if (!is_there(d, r)) {
        *want = have; // padding_intact looks at it
        *bound = 0.0;
        return 0.0;
    }
    *want = float64_glu(&c->act, g, u, &error);
    *bound = error + float64_half_ulp(fabs(*want) + error, c->y_dtype);
    // Products of intermediates beyond f32's range overflow on the way.
    if (!(fabs(g) < 1e38) || !(fabs(u) < 1e38)) {
        return 0.0;
    }
    if (isnan(*want) || isnan(have)) {
        return isnan(*want) && isnan(have) ? 0.0 : HUGE_VAL;
    }
    if (!isfinite(have) || !isfinite(*want)) {
        const double limit = c->y_dtype == MOE_F16 ? 65504.0 : (double)FLT_MAX;
        const bool beyond = fabs(*want) + *bound >= limit;
        return beyond && (*want > 0.0) == (have > 0.0) ? 0.0 : HUGE_VAL;
    }
    const double difference = fabs(have - *want);
    return difference > 0.0 ? difference / *bound : 0.0;
}

static bool within_bounds(const glu_case *c, const glu_data *d)
{
    double want;
    double bound;
    for (int64_t i = 0; i < ROWS * c->inter; i++) {
        if (!(ratio_at(c, d, i / c->inter, i % c->inter, &want, &bound) <= 1.0)) {
            return false;
        }
    }
    return true;
}

static void report(moec_run *run, const moei_kernel *kernel, const glu_case *c, const glu_data *d)
{
    const size_t n = (size_t)(ROWS * c->inter);
    double *want = calloc(2 * n, sizeof *want);
    if (!moec_check(run, want != NULL, kernel->name, "%s: %s: beyond its bound; memory is short",
                    kernel->name, c->text)) {
        return;
    }
    for (int64_t i = 0; i < ROWS * c->inter; i++) {
        const int64_t r = i / c->inter;
        const int64_t j = i % c->inter;
        if (ratio_at(c, d, r, j, &want[i], &want[(int64_t)n + i]) <= 0.0) {
            // Equal, or excused: infinities and NaN that overflow explains.
            want[i] = (double)moei_load_one(c->y_dtype, d->y, r * d->y_stride + j);
        }
    }
    moec_compare compare = {.actual = moe_tensor_2d(d->y, c->y_dtype, ROWS, c->inter),
                            .expected = moe_tensor_2d(want, MOE_F64, ROWS, c->inter),
                            .bound = want + n,
                            .nan_matches = 1};
    compare.actual.stride[0] = d->y_stride;
    moec_fail_compare(run, &compare, kernel->name, "%s: %s", kernel->name, c->text);
    free(want);
}

// What is no row's is as it was, and rows that are not there are.
static bool padding_intact(const glu_case *c, const glu_data *d)
{
    const size_t yb = (size_t)moe_dtype_bits(c->y_dtype) / 8;
    for (int64_t r = 0; r < ROWS; r++) {
        const int64_t first = is_there(d, r) ? c->inter : 0;
        const unsigned char *pad = d->y + (size_t)(r * d->y_stride + first) * yb;
        for (size_t b = 0; b < (size_t)(d->y_stride - first) * yb; b++) {
            if (pad[b] != MOEC_POISON) {
                return false;
            }
        }
    }
    return true;
}

static void run_glu(moec_run *run, const moec_teams *teams, const moei_kernel *kernel,
                    const glu_case *c, moec_rng *rng, int number)
{
    glu_data d;
    if (moec_check(run, build(c, rng, &d), kernel->name, "%s: memory is short", kernel->name) &&
        moec_wants_case(run, number)) {
        const moec_launch launch = {.kernel = kernel,
                                    .args = &d.a,
                                    .buffers = &d.buffers,
                                    .result = moe_tensor_2d(d.y, c->y_dtype, ROWS, d.y_stride),
                                    .text = c->text};
        const uint64_t hash = moec_run_all(run, teams, &launch);
        if (within_bounds(c, &d)) {
            run->counts->passed++;
        } else {
            report(run, kernel, c, &d);
        }
        moec_check(run, padding_intact(c, &d), kernel->name,
                   "%s: %s: wrote past its columns or rows", kernel->name, c->text);
        moec_rows_agree(run, kernel, number, hash, c->text);
    }
    moec_buffers_free(&d.buffers);
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
                                       {MOE_ACT_RELU2_NO_MUL, 0, 0, 0, 0},
                                       {MOEI_ACT_SIGMOID, 0, 0, 0, 0}};
    moec_rng rng = {run->options->seed * 77u + 5u};
    moec_teams teams;
    int number = 0;
    if (!moec_check(run, moec_teams_make(run, &teams), kernel->name, "%s: no threads",
                    kernel->name)) {
        return;
    }
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
                    run_glu(run, &teams, kernel, &c, &rng, number++);
                }
            }
        }
    }
    moec_teams_free(&teams);
}
