// SPDX-License-Identifier: Apache-2.0
// Every quantize row: all named rules, element types, scale types, layouts and input dtypes, byte
// for byte against the statement of tests/float64; forwards, back, and behind a SiLU product.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkmoe/check_rows.h"
#include "checkmoe/quantize_case.h"
#include "checkmoe/twins.h"
#include "float64/quantize.h"
#include "numerics/e8m0.h"
#include "ops/backend.h"
#include "quant/elements.h"

#define ENOUGH       60 // failures of a row
#define NUM_CONTEXTS 3

typedef struct quantize_rows {
    moec_run *run;
    const moei_kernel *kernel;
    moec_teams teams;
    moe_context ctx[NUM_CONTEXTS]; // the teams, with the row in hand as their quantiser
    int number;                    // of the case: decides its layout
    unsigned long failed;          // before this row
} quantize_rows;

// ---- what a failure prints ----------------------------------------------------------------------

static double scale_value(const moec_quantize_problem *p, const unsigned char *at)
{
    float f;
    switch (p->quant.scale_type) {
    case MOE_SCALE_E8M0:
    case MOE_SCALE_UE8M0_PACKED:
        return (double)moei_e8m0_to_f32(*at);
    case MOE_SCALE_E4M3FN:
        return (double)moei_load_one(MOE_E4M3FN, at, 0);
    default:
        memcpy(&f, at, sizeof f);
        return (double)f;
    }
}

static uint16_t code_at(moe_dtype elem, const unsigned char *row, int64_t k)
{
    const int bits = moe_dtype_bits(elem);
    unsigned code = 0;
    for (int bit = 0; bit < bits; bit++) {
        const int64_t place = k * bits + bit;
        code |= (row[place / 8] >> (place % 8) & 1u) << bit;
    }
    return (uint16_t)code;
}

// What the codes (or scales) of the rows that are there mean, one row after another.
static int64_t decode(const moec_quantize_problem *p, const moec_quantize_output *o, bool scales,
                      double *out)
{
    const bool tensor = moei_quant_get(p->quant.spec)->grain == MOEI_GRAIN_TENSOR;
    const int64_t block = moec_quantize_block_rows(p);
    const int64_t columns = scales ? moec_quantize_groups(p) : p->k;
    int64_t rows = 0;
    for (int32_t b = 0; b < p->batches; b++) {
        for (int64_t r = 0; r < moec_quantize_count(p, b); r++, rows++) {
            for (int64_t i = 0; i < columns; i++) {
                double *value = &out[rows * columns + i];
                *value = scales ? scale_value(p, moec_quantize_scale(&o->scales, p, b, r / block,
                                                                     tensor ? 0 : i))
                                : (double)float64_code_value(
                                      p->quant.elem,
                                      code_at(p->quant.elem, moec_quantize_row(&o->q, p, b, r), i));
            }
        }
    }
    return rows;
}

static void report_values(const quantize_rows *q, const moec_quantize_case *c,
                          const moec_quantize_output *have, const char *what)
{
    const moec_quantize_problem *p = &c->p;
    const bool scales = strcmp(what, "scales") == 0;
    const int64_t columns = scales ? moec_quantize_groups(p) : p->k;
    const size_t size = (size_t)(p->batches * p->rows * columns) + 1;
    double *values = calloc(2 * size, sizeof *values);
    if (values == NULL) {
        return;
    }
    const int64_t rows = decode(p, have, scales, values);
    (void)decode(p, &c->want, scales, values + size);
    const moec_compare compare = {.actual = moe_tensor_2d(values, MOE_F64, rows, columns),
                                  .expected = moe_tensor_2d(values + size, MOE_F64, rows, columns),
                                  .exact = 1};
    if (memcmp(values, values + size, (size_t)(rows * columns) * sizeof *values) != 0) {
        moec_fail_compare(q->run, &compare, q->kernel->name, "%s: %s: the values of %s",
                          q->kernel->name, c->text, what);
    }
    free(values);
}

static void report(const quantize_rows *q, const moec_quantize_case *c,
                   const moec_quantize_output *have, const char *what, int threads)
{
    const bool codes = strcmp(what, "codes") == 0;
    const moec_guard *a = codes ? &have->q.guard : &have->scales.guard;
    const moec_guard *b = codes ? &c->want.q.guard : &c->want.scales.guard;
    const char *name = q->kernel->name;
    size_t at = 0;
    if (strcmp(what, "values back") == 0) {
        a = &have->back.guard;
        b = &c->want.back.guard;
        const int64_t elements = (int64_t)(a->bytes / (size_t)moe_dtype_bits(c->p.x_dtype) * 8);
        moec_check_same(q->run, c->p.x_dtype, 1, elements, a->data, b->data, name,
                        "%s: %s: values back (all memory), %d threads", name, c->text, threads);
    } else if (strcmp(what, "global scale") == 0) {
        moec_check_same(q->run, MOE_F32, 1, 1, &have->global, &c->want.global, name,
                        "%s: %s: global scale, %d threads", name, c->text, threads);
    } else {
        while (a->data[at] == b->data[at]) {
            at++;
        }
        moec_check(q->run, false, name,
                   "%s: %s: %s differ at byte %zu of %zu: %02x, expected %02x (%d threads)", name,
                   c->text, what, at, a->bytes, a->data[at], b->data[at], threads);
        report_values(q, c, have, what);
    }
}

// ---- running ------------------------------------------------------------------------------------

// One run in one context. False: it failed.
static bool run_once(const quantize_rows *q, const moec_quantize_case *c, size_t context,
                     const char *when)
{
    moec_quantize_output have;
    const moe_status status = moec_quantize_run(&q->ctx[context], c, &have);
    bool ok = moec_check(q->run, status == MOE_OK, q->kernel->name, "%s: %s: %s%s", q->kernel->name,
                         c->text, when, moe_last_error());
    const char *wrong = ok ? moec_quantize_differs(&have, &c->want) : NULL;
    if (wrong != NULL) {
        report(q, c, &have, wrong, moe_context_num_threads(&q->ctx[context]));
        ok = false;
    }
    q->run->counts->passed += ok;
    moec_quantize_output_free(&have);
    return ok;
}

static void run_problem(quantize_rows *q, const moec_quantize_problem *p, moec_rng *rng)
{
    moec_quantize_case c;
    const char *name = q->kernel->name;
    if (!moec_wants_case(q->run, q->number)) {
        return;
    }
    q->run->cases++;
    if (moec_check(q->run, moec_quantize_build(&c, p, rng), name, "%s: %s: memory is short", name,
                   c.text)) {
        const uint64_t before = moec_hash(c.x.guard.data, c.x.guard.bytes);
        const size_t other = 1 + (size_t)q->number % 2; // 2 and 7 threads take turns
        bool ok = run_once(q, &c, 0, "") && run_once(q, &c, other, "");
        ok = ok && run_once(q, &c, q->number % 4 < 2 ? 0 : other, "a second run: ");
        moec_check(q->run, moec_hash(c.x.guard.data, c.x.guard.bytes) == before, name,
                   "%s: %s: x changed", name, c.text);
    }
    moec_quantize_free(&c);
}

// ---- cases --------------------------------------------------------------------------------------

// Layouts take turns from case to case: every rule meets each with every dtype.
static void set_layout(moec_quantize_problem *p, const moei_quant_info *info, int number,
                       moec_rng *rng)
{
    static const int64_t ks[] = {1, 5, 31, 33, 64, 127, 130, 257};
    const bool block = info->grain == MOEI_GRAIN_BLOCK;
    p->k = ks[moec_below(rng, 8)];
    p->rows = block ? moec_below(rng, 140) : moec_below(rng, 5);
    p->rows = number % 11 == 0 ? 0 : number % 11 == 1 ? 1 : p->rows;
    p->bytes = (moe_dtype_bits(p->quant.elem) < 8 && p->k % 8 != 0) || moec_below(rng, 2) != 0;
    p->padded = number / 2 % 2 != 0;
    p->batched = number % 2 != 0;
    p->batches = 1;
    p->at_end = moec_below(rng, 2) != 0;
    p->quant.scale_layout =
        info->group > 0 && number / 4 % 2 != 0 ? MOE_SCALE_LAYOUT_COLUMN : MOE_SCALE_LAYOUT_ROW;
    if (info->free_group && moec_below(rng, 4) == 0) {
        static const int32_t groups[] = {2, 8, 24, 32, 64, 520};
        p->quant.group = groups[moec_below(rng, 6)];
    }
    if (info->scale == MOEI_SCALE_TOKEN && moec_below(rng, 2) != 0) {
        p->quant.amax_bound = 0.75f;
    }
    if (p->batched) {
        p->batches = 1 + (int32_t)moec_below(rng, 3);
        p->with_counts = moec_below(rng, 4) > 0;
        moec_quantize_draw_counts(p, rng);
    }
}

// A row that is wrong everywhere ends early.
static bool enough(const quantize_rows *q)
{
    return q->run->counts->failed - q->failed >= ENOUGH;
}

static void check_form(quantize_rows *q, const moei_quant_info *info, moe_dtype elem,
                       moe_scale_type type, moec_rng *rng)
{
    static const moe_dtype dtypes[] = {MOE_F32, MOE_BF16, MOE_F16};
    for (int d = 0; d < 3; d++) {
        for (int fill = 0; fill <= MOEC_QUANTIZE_MIXED && !enough(q); fill++, q->number++) {
            moec_quantize_problem p = {.quant = {.spec = info->spec,
                                                 .elem = elem,
                                                 .group = info->group,
                                                 .scale_type = type},
                                       .x_dtype = dtypes[d],
                                       .fill = (moec_quantize_fill)fill,
                                       .given = moec_quantize_draw_given(rng)};
            set_layout(&p, info, q->number, rng);
            run_problem(q, &p, rng);
        }
    }
}

static void check_specs(quantize_rows *q, moec_rng *rng)
{
    const moei_quant_info *info;
    for (size_t i = 0; (info = moei_quant_at(i)) != NULL; i++) {
        for (moe_dtype elem = 1; elem < 32; elem++) {
            for (moe_scale_type type = 1; type < 6 && (info->elems & (1u << elem)) != 0; type++) {
                if ((info->scale_types & (1u << type)) != 0) {
                    check_form(q, info, elem, type, rng);
                }
            }
        }
    }
}

// Rows enough to be split over threads.
static void check_large(quantize_rows *q, moec_rng *rng)
{
    static const struct {
        moe_quant_spec spec;
        moe_dtype x_dtype;
        moec_quantize_fill fill;
    } forms[] = {{MOE_QUANT_FP8_TENSOR, MOE_BF16, MOEC_QUANTIZE_MIXED},
                 {MOE_QUANT_FP8_GROUP_RECIP, MOE_BF16, MOEC_QUANTIZE_MIXED},
                 {MOE_QUANT_FP8_BLOCK_INVERSE, MOE_BF16, MOEC_QUANTIZE_MIXED},
                 {MOE_QUANT_NVFP4_INVERSE, MOE_BF16, MOEC_QUANTIZE_MIXED},
                 {MOE_QUANT_I8B32, MOE_F32, MOEC_QUANTIZE_EDGE},
                 {MOE_QUANT_I16B32, MOE_F32, MOEC_QUANTIZE_EDGE},
                 {MOE_QUANT_I8B128, MOE_F32, MOEC_QUANTIZE_EDGE}};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++, q->number++) {
        moec_quantize_problem p = {.quant = {.spec = forms[i].spec},
                                   .x_dtype = forms[i].x_dtype,
                                   .batches = 2,
                                   .batched = true,
                                   .with_counts = true,
                                   .rows = 200,
                                   .counts = {200, 131},
                                   .k = 520,
                                   .fill = forms[i].fill,
                                   .given = 1.0f};
        moei_quant_resolve(&p.quant);
        run_problem(q, &p, rng);
    }
}

// FP8 in whole groups of 128, which devices take several rows at a time where there are many.
static void check_whole_groups(quantize_rows *q, moec_rng *rng)
{
    static const int64_t ks[] = {128, 256, 640, 1024};
    static const moe_scale_type types[] = {MOE_SCALE_F32, MOE_SCALE_UE8M0_F32};
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_GROUP_DIV, MOE_QUANT_FP8_GROUP_RECIP,
                                           MOE_QUANT_FP8_GROUP_DEEPGEMM};
    const int fills = MOEC_QUANTIZE_MIXED + 1;
    for (int i = 0; i < 3 * 2 * 2 * (fills + 1) && !enough(q); i++, q->number++) {
        const bool many = i / 12 == fills;
        moec_quantize_problem p = {
            .quant = {.spec = specs[i % 3], .group = 128, .scale_type = types[i / 3 % 2]},
            .x_dtype = i / 6 % 2 != 0 ? MOE_BF16 : MOE_F32,
            .fill = many ? MOEC_QUANTIZE_MIXED : (moec_quantize_fill)(i / 12)};
        moei_quant_resolve(&p.quant);
        set_layout(&p, moei_quant_get(p.quant.spec), q->number, rng);
        p.quant.group = 128;
        p.k = ks[moec_below(rng, 4)];
        if (many) {
            p.rows = 517;
            p.k = 1024;
            p.batches = p.batched ? 2 : 1;
            p.counts[0] = 517;
            p.counts[1] = 131;
        }
        run_problem(q, &p, rng);
    }
}

// The masked SiLU-mul-quantise form: rules that are scaled by groups, bf16.
static void check_silu(quantize_rows *q, moec_rng *rng)
{
    static const int64_t ks[] = {1, 127, 128, 130, 384, 640};
    static const moe_dtype elems[] = {MOE_E4M3FN, MOE_E4M3FNUZ, MOE_E5M2};
    static const moe_quant_spec specs[] = {MOE_QUANT_FP8_GROUP_DIV, MOE_QUANT_FP8_GROUP_RECIP,
                                           MOE_QUANT_FP8_GROUP_BF16STEPS,
                                           MOE_QUANT_FP8_GROUP_DEEPGEMM};
    for (int i = 0; i < 4 * 3 * 4 * 4; i++, q->number++) {
        moec_quantize_problem p = {.quant = {.spec = specs[i % 4],
                                             .elem = elems[i / 4 % 3],
                                             .group = 128,
                                             .scale_type = 1 + i / 12 % 4},
                                   .x_dtype = MOE_BF16,
                                   .silu = true};
        set_layout(&p, moei_quant_get(p.quant.spec), q->number, rng);
        p.k = ks[moec_below(rng, 6)];
        p.round_steps = p.quant.spec == MOE_QUANT_FP8_GROUP_BF16STEPS || i / 48 % 2 != 0;
        run_problem(q, &p, rng);
    }
}

void moec_check_quantize(moec_run *run, const moei_kernel *kernel)
{
    moec_rng rng = {run->options->seed * 1009u + 7u};
    quantize_rows q = {.run = run, .kernel = kernel, .failed = run->counts->failed};
    if (!moec_check(run, moec_teams_make(run, &q.teams), kernel->name, "%s: no threads",
                    kernel->name)) {
        return;
    }
    for (size_t i = 0; i < NUM_CONTEXTS; i++) {
        q.ctx[i] = *q.teams.ctx[i];
        q.ctx[i].op_kernel[MOEI_OP_QUANTIZE] = kernel;
    }
    check_specs(&q, &rng);
    if (!enough(&q)) {
        check_large(&q, &rng);
        check_whole_groups(&q, &rng);
        check_silu(&q, &rng);
    }
    for (size_t i = 0; i < NUM_CONTEXTS; i++) {
        moec_twins_release(&q.ctx[i]);
    }
    moec_teams_free(&q.teams);
}
