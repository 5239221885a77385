// SPDX-License-Identifier: Apache-2.0
// Every ggemm row, over every weight format and activation format that its arithmetic class takes.
// A case is drawn from the seed, the class and its number alone, so that rows of one class get the
// same problems and must give the same bits.
#include "checkmoe/check_ggemm.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/weights_internal.h"
#include "checkmoe/ggemm_case.h"
#include "quant/elements.h"

// ---- packed layouts ----------------------------------------------------------------------------

// Packs one expert and unpacks it: all bytes must come back, unless the backend says that it cannot
// keep them (VALUE).
static moe_status pack_exactly(moec_run *run, const moei_kernel *kernel, const moec_ggemm_case *c,
                               const moei_matrices *one, uint8_t *block)
{
    static const char silent[] = "pack gave no reason";
    const moei_backend *b = run->ctx->backend;
    const uint8_t *from[3] = {one->values, one->scales, one->zeros};
    const size_t bytes[3] = {(size_t)one->value_e_stride,
                             one->scales != NULL ? (size_t)one->scale_e_stride *
                                                       (size_t)moe_dtype_bits(one->scale_dtype) / 8
                                                 : 0,
                             one->zeros != NULL ? (size_t)one->zero_e_stride : 0};
    (void)moe_fail(MOE_E_VALUE, "%s", silent);
    const moe_status status = b->pack(kernel, one, block);
    if (status != MOE_OK) {
        moec_check(run, status == MOE_E_VALUE && strcmp(moe_last_error(), silent) != 0,
                   kernel->name, "%s: %s: pack says %s: %s", kernel->name, c->text,
                   moe_status_name(status), moe_last_error());
        return status;
    }
    uint8_t *memory = malloc(bytes[0] + bytes[1] + bytes[2] + 1);
    if (!moec_check(run, memory != NULL, kernel->name, "%s: %s: memory is short", kernel->name,
                    c->text)) {
        return MOE_E_NO_MEMORY;
    }
    uint8_t *to[3] = {memory, memory + bytes[0], memory + bytes[0] + bytes[1]};
    moei_matrices back = *one;
    memset(memory, MOEC_POISON, bytes[0] + bytes[1] + bytes[2]);
    back.values = to[0];
    back.scales = one->scales != NULL ? to[1] : NULL;
    back.zeros = one->zeros != NULL ? to[2] : NULL;
    b->unpack(kernel, block, &back);
    for (int p = 0; p < 3; p++) {
        static const char *const names[3] = {"values", "scales", "zero points"};
        moec_check(run, bytes[p] == 0 || memcmp(to[p], from[p], bytes[p]) == 0, kernel->name,
                   "%s: %s: pack and unpack change %s", kernel->name, c->text, names[p]);
    }
    free(memory);
    return MOE_OK;
}

// Scales at the ends of their range are kept, or refused; those that every layout keeps are kept,
// and all where the machine multiplies by the scale itself.
static void check_extremes(moec_run *run, const moei_kernel *kernel, const moec_ggemm_case *c,
                           const moei_matrices *expert, uint8_t *block)
{
    const bool all = kernel->arith == MOEI_ARITH_MFMA_MX_K128;
    const uint8_t first = all ? 0 : moec_first_kept(expert->format);
    const uint8_t last = all ? 255 : moec_last_kept(expert->format);
    const uint8_t codes[] = {0, 1, first, last, 253, 254, 255};
    const size_t scales = (size_t)expert->scale_e_stride;
    uint8_t *copy = malloc(scales + 1);
    if (!moec_check(run, copy != NULL, kernel->name, "%s: %s: memory is short", kernel->name,
                    c->text)) {
        return;
    }
    moei_matrices one = *expert;
    one.scales = copy;
    for (size_t i = 0; i < sizeof codes; i++) {
        memcpy(copy, expert->scales, scales);
        copy[scales - 1] = codes[i];
        const moe_status status = pack_exactly(run, kernel, c, &one, block);
        moec_check(run,
                   status == MOE_OK ||
                       (status == MOE_E_VALUE && (codes[i] < first || codes[i] > last)),
                   kernel->name, "%s: %s: scale %d is not packed: %s", kernel->name, c->text,
                   (int)codes[i], moe_last_error());
    }
    free(copy);
}

// The arguments for a row of a packed layout. VALUE: it cannot keep the case's scales.
static moe_status pack_case(moec_run *run, const moei_kernel *kernel, moec_ggemm_case *c,
                            const moek_ggemm_args *canonical, moek_ggemm_args *out)
{
    moei_matrices m = canonical->w;
    m.values = NULL;
    m.scales = NULL;
    m.zeros = NULL;
    const size_t bytes = run->ctx->backend->packed_bytes(kernel, &m);
    MOE_REQUIRE(bytes > 0 && bytes % 16 == 0 && bytes != SIZE_MAX, MOE_E_STATE,
                "a packed expert takes %zu bytes, must be a multiple of 16", bytes);
    c->packed = moec_ggemm_take(c, false, c->experts, bytes, c->at_end);
    MOE_REQUIRE(c->packed != NULL, MOE_E_NO_MEMORY, "memory is short");
    for (int32_t e = 0; e < c->experts; e++) {
        const moei_matrices one = moei_expert_of(&canonical->w, e);
        uint8_t *block = c->packed + (size_t)e * bytes;
        MOE_TRY(pack_exactly(run, kernel, c, &one, block));
        if (e == 0 && c->fill == MOEC_SPECIAL && one.scales != NULL &&
            one.scale_dtype == MOE_E8M0) {
            check_extremes(run, kernel, c, &one, block);
            MOE_TRY(pack_exactly(run, kernel, c, &one, block));
        }
    }
    *out = *canonical;
    m.layout = MOEI_LAYOUT_PACKED;
    m.values = c->packed;
    m.value_e_stride = (int64_t)bytes;
    out->w = m;
    return MOE_OK;
}

// ---- checking ----------------------------------------------------------------------------------

// Error / bound of the result of row i of expert e, column n, and what it follows from.
static double ratio_at(const moec_ggemm_case *c, float64_model model, int32_t e, int64_t i,
                       int64_t n, double *want, double *bound)
{
    const int64_t y_row = c->scatter ? c->out_index[i] : i;
    const double weight = c->row_weights ? (double)c->weights[y_row] : 1.0;
    const double have = (double)moei_load_one(c->y_dtype, c->y, y_row * c->y_stride + n);
    const double scale = fabs(weight) * float64_ggemm_scale(&c->oracle, e, c->index[i], n);
    double magnitude;
    *want = float64_ggemm_element(&c->oracle, e, c->index[i], n, weight, &magnitude);
    *bound = c->fill == MOEC_EXACT
                 ? float64_half_ulp(*want, c->y_dtype)
                 : float64_ggemm_bound(model, c->k, magnitude, scale, *want, c->y_dtype);
    if (isnan(*want) || isnan(have)) {
        // Products beyond f32's range may meet as inf - inf.
        const bool overflow = isnan(have) && magnitude > (double)FLT_MAX;
        return (isnan(*want) && isnan(have)) || overflow ? 0.0 : HUGE_VAL;
    }
    if (isinf(*want) || isinf(have)) {
        // Beyond the range of f32, or of y: infinity of the right sign.
        const double limit = c->y_dtype == MOE_F16 ? 65504.0 : (double)FLT_MAX;
        const bool may = fabs(*want) + *bound > limit || magnitude > (double)FLT_MAX;
        return (isinf(*want) && have == *want) || (may && (isinf(have) || fabs(*want) >= limit))
                   ? 0.0
                   : HUGE_VAL;
    }
    const double error = fabs(have - *want);
    return error == 0.0 ? 0.0 : *bound > 0.0 ? error / *bound : HUGE_VAL;
}

// Whether every element is within its bound. Where `wants` and `bounds` are given ([rows, n]),
// fills them instead of stopping at the first that is not. Raises `worst` to the largest ratio.
static bool within_bounds(const moec_ggemm_case *c, float64_model model, double *wants,
                          double *bounds, double *worst)
{
    bool within = true;
    for (int32_t e = 0; e < c->experts; e++) {
        for (int64_t i = c->offsets[e]; i < c->offsets[e + 1]; i++) {
            const int64_t y_row = c->scatter ? c->out_index[i] : i;
            for (int64_t n = 0; n < c->n && (within || wants != NULL); n++) {
                double want;
                double bound;
                const double ratio = ratio_at(c, model, e, i, n, &want, &bound);
                within = within && ratio <= 1.0;
                *worst = ratio > *worst ? ratio : *worst;
                if (wants != NULL) {
                    // Equal, or excused: infinities and NaN that overflow explains.
                    wants[y_row * c->n + n] =
                        ratio > 0.0
                            ? want
                            : (double)moei_load_one(c->y_dtype, c->y, y_row * c->y_stride + n);
                    bounds[y_row * c->n + n] = bound;
                }
            }
        }
    }
    return within;
}

static void check_bounds(moec_run *run, const moei_kernel *kernel, const moec_ggemm_case *c)
{
    const float64_model model = moec_model_of(kernel);
    if (within_bounds(c, model, NULL, NULL, &run->worst)) {
        run->counts->passed++;
        return;
    }
    const size_t elements = (size_t)(c->rows * c->n);
    double *wants = calloc(2 * elements, sizeof *wants);
    if (!moec_check(run, wants != NULL, kernel->name, "%s: %s: beyond its bound; memory is short",
                    kernel->name, c->text)) {
        return;
    }
    (void)within_bounds(c, model, wants, wants + elements, &run->worst);
    moec_compare compare = {.actual = moe_tensor_2d(c->y, c->y_dtype, c->rows, c->n),
                            .expected = moe_tensor_2d(wants, MOE_F64, c->rows, c->n),
                            .bound = wants + elements,
                            .nan_matches = 1};
    compare.actual.stride[0] = c->y_stride;
    moec_fail_compare(run, &compare, kernel->name, "%s: %s", kernel->name, c->text);
    free(wants);
}

static bool padding_intact(const moec_ggemm_case *c)
{
    const size_t bytes = (size_t)moe_dtype_bits(c->y_dtype) / 8;
    for (int64_t r = 0; r < c->rows; r++) {
        const unsigned char *row = c->y + (size_t)(r * c->y_stride) * bytes;
        for (size_t b = (size_t)c->n * bytes; b < (size_t)c->y_stride * bytes; b++) {
            if (row[b] != MOEC_POISON) {
                return false;
            }
        }
    }
    return true;
}

// All of y, padding included, against what it was.
static bool same_y(moec_run *run, const moec_ggemm_case *c, const unsigned char *was,
                   const char *repro, const char *row, const char *what)
{
    return moec_check_same(run, c->y_dtype, c->rows, c->y_stride, c->y, was, repro, "%s: %s: %s",
                           row, c->text, what);
}

// Against the bits of the row of the same class that had the case before.
static void compare_rows(moec_run *run, const moec_launch *launch, const moec_ggemm_case *c,
                         const unsigned char *first, uint64_t hash, int number)
{
    const moei_kernel *kernel = launch->kernel;
    moec_seen *seen = moec_seen_at(run, kernel, number);
    if (seen == NULL) {
        return;
    }
    if (seen->kernel != NULL && seen->hash != hash) {
        char both[128];
        char what[160];
        const char *isa = run->isa;
        moec_launch other = *launch;
        other.kernel = seen->kernel;
        other.args = moec_args_for(launch, seen->kernel);
        moec_pair_glob(seen->kernel->name, kernel->name, both, sizeof both);
        if (seen->kernel->layout != MOEI_LAYOUT_ROW) { // its weights are gone
            moec_check(run, false, both, "%s: %s: bits differ from %s", kernel->name, c->text,
                       seen->kernel->name);
            return;
        }
        (void)snprintf(what, sizeof what, "%s of the same class has other bits than expected",
                       seen->kernel->name);
        run->isa = NULL;
        moec_buffers_poison(launch->buffers);
        moec_launch_on(run, run->ctx, &other);
        same_y(run, c, first, both, kernel->name, what);
        run->isa = isa;
        return;
    }
    moec_seen_keep(run, kernel, number, hash, c->text);
}

// Batch invariance: every row alone, in one group of its expert.
static void check_rows_alone(moec_run *run, const moec_launch *launch, const moec_ggemm_case *c,
                             const unsigned char *first)
{
    const char *name = launch->kernel->name;
    const moek_ggemm_args *whole = launch->args;
    moek_ggemm_args *alone = calloc((size_t)c->rows + 1, sizeof *alone);
    if (!moec_check(run, alone != NULL, name, "%s: %s: memory is short", name, c->text)) {
        return;
    }
    for (int32_t e = 0; e < c->experts; e++) {
        for (int64_t i = c->offsets[e]; i < c->offsets[e + 1]; i++) {
            alone[i] = *whole;
            alone[i].offsets = moec_ggemm_one_row(c, e);
            alone[i].rows = 1;
            alone[i].row_index += i;
            if (c->scatter) {
                alone[i].out_index += i;
                continue;
            }
            alone[i].y += i * whole->y_row_stride;
            alone[i].row_weight += c->row_weights ? i : 0;
        }
    }
    moec_launch each = *launch;
    each.args = alone;
    each.count = c->rows;
    moec_buffers_poison(launch->buffers);
    if (c->rows > 0) {
        moec_launch_on(run, run->ctx, &each);
    }
    same_y(run, c, first, name, name, "rows alone differ from rows together");
    free(alone);
}

/// What becomes of a case.
typedef enum outcome {
    CASE_REFUSED, // the row does not take it
    CASE_BEYOND,  // the row's layout cannot keep its scales
    CASE_DONE
} outcome;

static outcome run_case(moec_run *run, const moec_teams *teams, const moei_kernel *kernel,
                        const moei_ggemm_problem *problem, moec_ggemm_case *c, int number)
{
    const char *name = kernel->name;
    const bool packed = kernel->layout == MOEI_LAYOUT_PACKED;
    moek_ggemm_args canonical;
    moek_ggemm_args a;
    moe_status status = moec_ggemm_args(c, &canonical);
    a = canonical;
    if (status == MOE_OK && packed) {
        status = pack_case(run, kernel, c, &canonical, &a);
    }
    if (status == MOE_E_VALUE && packed && !c->moderate) {
        return CASE_BEYOND;
    }
    const size_t bytes = (size_t)(c->rows * c->y_stride * moe_dtype_bits(c->y_dtype) / 8);
    unsigned char *first = malloc(bytes + 1);
    if (moec_check(run, first != NULL && status == MOE_OK, name, "%s: %s: %s", name, c->text,
                   first != NULL ? moe_last_error() : "memory is short")) {
        const moec_launch launch = {.kernel = kernel,
                                    .args = &a,
                                    .canonical = &canonical,
                                    .problem = problem,
                                    .buffers = &c->buffers,
                                    .result = moe_tensor_2d(c->y, c->y_dtype, c->rows, c->y_stride),
                                    .text = c->text};
        const uint64_t hash = moec_run_all(run, teams, &launch);
        memcpy(first, c->y, bytes);
        check_bounds(run, kernel, c);
        moec_check(run, padding_intact(c), name, "%s: %s: wrote past its columns", name, c->text);
        check_rows_alone(run, &launch, c, first);
        if (!c->moderate) { // other rows have the case with other scales
            compare_rows(run, &launch, c, first, hash, number);
        }
    }
    free(first);
    return CASE_DONE;
}

// Activation forms: floats, and one quantiser of each scale form.
static const moe_quant_desc act_forms[] = {
    {.spec = MOE_QUANT_NONE},
    {.spec = MOE_QUANT_FP8_TOKEN},
    {.spec = MOE_QUANT_FP8_STATIC},
    {.spec = MOE_QUANT_FP8_GROUP_DIV},
    {.spec = MOE_QUANT_FP8_GROUP_RECIP,
     .scale_type = MOE_SCALE_UE8M0_PACKED,
     .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 64, .scale_layout = MOE_SCALE_LAYOUT_COLUMN},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .group = 256}, // coarser than blocks of weights
    {.spec = MOE_QUANT_INT8_TOKEN},
    {.spec = MOE_QUANT_INT8_STATIC},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E2M1},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E4M3FN},
    {.spec = MOE_QUANT_MX_EVEN, .elem = MOE_E3M2},
    {.spec = MOE_QUANT_NVFP4},
    {.spec = MOE_QUANT_I8B32},
    {.spec = MOE_QUANT_I16B32},
    {.spec = MOE_QUANT_I8B128},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .scale_type = MOE_SCALE_UE8M0_F32},
    // Of devices alone, whose matrix units have formats of their own; a CPU reads all codes alike.
    {.spec = MOE_QUANT_FP8_TOKEN, .elem = MOE_E4M3FNUZ},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .elem = MOE_E4M3FNUZ},
    {.spec = MOE_QUANT_FP8_GROUP_DIV, .elem = MOE_E5M2, .scale_type = MOE_SCALE_UE8M0_F32},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E2M3},
    {.spec = MOE_QUANT_MX_FLOOR, .elem = MOE_E5M2, .scale_type = MOE_SCALE_UE8M0_PACKED},
};
enum { DEVICE_FORMS = 5 }; // the last ones

/// A row and its walk over the problems.
typedef struct ggemm_walk {
    moec_run *run;
    const moei_kernel *kernel;
    moec_teams teams;
    int number; // of the next case, the same for every row
} ggemm_walk;

static outcome one_case(const ggemm_walk *w, const moe_gemm_desc *gemm, moe_dtype x_dtype,
                        moec_fill fill, moec_ggemm_shape shape, bool moderate)
{
    moec_run *run = w->run;
    const int number = w->number + (int)shape;
    if (!moec_wants_case(run, w->number / MOEC_NUM_SHAPES)) {
        return CASE_DONE;
    }
    const char *name = w->kernel->name;
    moec_rng rng = {run->options->seed * 1000003u + (uint64_t)w->kernel->arith * 65537u +
                    (uint64_t)number};
    moei_whynot why;
    moec_ggemm_case *c = calloc(1, sizeof *c);
    if (c == NULL) {
        moec_check(run, false, name, "%s: no memory for a case", name);
        return CASE_DONE;
    }
    moec_ggemm_begin(c, gemm, x_dtype, fill, moderate);
    moec_ggemm_draw(c, &rng, shape);
    const moei_ggemm_problem problem = {.m_max = c->rows,
                                        .n = c->n,
                                        .k = c->k,
                                        .experts = c->experts,
                                        .gemm = &c->gemm,
                                        .x_dtype = x_dtype,
                                        .y_dtype = c->y_dtype,
                                        .transposed = c->transposed};
    outcome end = CASE_REFUSED;
    if (moei_registry_supports(w->kernel, run->ctx->isa, &problem, &why)) {
        end = CASE_DONE;
        if (moec_check(run, moec_ggemm_build(c, &rng), name, "%s: no memory for a case", name)) {
            end = run_case(run, &w->teams, w->kernel, &problem, c, number);
        }
    }
    moec_ggemm_free(c);
    free(c);
    return end;
}

// One case, if the row takes it; with moderate scales where its layout cannot keep others.
static bool try_case(const ggemm_walk *w, const moe_gemm_desc *gemm, moe_dtype x_dtype,
                     moec_fill fill, moec_ggemm_shape shape)
{
    outcome end = one_case(w, gemm, x_dtype, fill, shape, false);
    if (end == CASE_BEYOND) {
        end = one_case(w, gemm, x_dtype, fill, shape, true);
    }
    return end != CASE_REFUSED;
}

static void check_problem(ggemm_walk *w, const moe_gemm_desc *gemm, moe_dtype x_dtype)
{
    // On a CPU, float64 would take minutes for them.
    const bool large = !w->run->ctx->backend->host_memory && !w->run->options->quick;
    for (int fill = 0; fill < MOEC_NUM_FILLS; fill++, w->number += MOEC_NUM_SHAPES) {
        if (!try_case(w, gemm, x_dtype, (moec_fill)fill, MOEC_SHAPE_PLAIN)) {
            (void)try_case(w, gemm, x_dtype, (moec_fill)fill, MOEC_SHAPE_ROUND);
        }
        if (large && fill == MOEC_NORMAL &&
            !try_case(w, gemm, x_dtype, MOEC_NORMAL, MOEC_SHAPE_LARGE)) {
            (void)try_case(w, gemm, x_dtype, MOEC_NORMAL, MOEC_SHAPE_LARGE_ROUND);
        }
    }
}

// Every activation form with one scale dtype and group of a format.
static void check_weights(ggemm_walk *w, const moe_gemm_desc *weights)
{
    static const moe_dtype floats[] = {MOE_F32, MOE_BF16, MOE_F16};
    const bool alike =
        w->run->ctx->backend->host_memory && moei_arith_get(w->kernel->arith)->consistent;
    const size_t forms = sizeof act_forms / sizeof act_forms[0] - (alike ? DEVICE_FORMS : 0);
    for (size_t v = 0; v < forms; v++) {
        // Other scale dtypes than the first change nothing in how activations are read.
        if (weights->weight_scale_dtype != MOE_DTYPE_UNSET && v != 1) {
            continue;
        }
        moe_gemm_desc gemm = *weights;
        gemm.act = act_forms[v];
        if (act_forms[v].spec != MOE_QUANT_NONE) {
            check_problem(w, &gemm, moei_gemm_operand_dtype(&gemm, MOE_DTYPE_UNSET));
            continue;
        }
        for (int d = 0; d < 3; d++) {
            check_problem(w, &gemm, floats[d]);
        }
    }
}

void moec_check_ggemm(moec_run *run, const moei_kernel *kernel)
{
    static const int32_t groups[] = {0, 32, 64, 16};
    const moei_format_info *info;
    ggemm_walk w = {.run = run, .kernel = kernel};
    const unsigned long before = run->cases;
    if (!moec_check(run, moec_teams_make(run, &w.teams), kernel->name, "%s: no threads",
                    kernel->name)) {
        return;
    }
    for (size_t f = 0; (info = moei_format_at(f)) != NULL; f++) {
        if (run->options->format != 0 && run->options->format != info->format) {
            continue;
        }
        for (int g = 0; g < (info->free_group ? 4 : 1); g++) {
            for (moe_dtype s = MOE_DTYPE_UNSET; s <= MOE_E8M0; s++) {
                if (s != MOE_DTYPE_UNSET && (info->scale_dtypes & (1u << s)) == 0) {
                    continue;
                }
                const moe_gemm_desc weights = {.weight_format = info->format,
                                               .weight_scale_dtype = s,
                                               .weight_group = groups[g]};
                check_weights(&w, &weights);
            }
        }
    }
    moec_teams_free(&w.teams);
    // One format alone, or some cases, need not have one of every class.
    if (run->options->format == 0 && run->options->every <= 1) {
        moec_check(run, run->cases > before, kernel->name, "%s: no case fits", kernel->name);
    }
}
