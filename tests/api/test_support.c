// SPDX-License-Identifier: Apache-2.0
// The support query says what plan creation does, and the row that it calls chosen is the row that
// runs: over some hundred random descriptors, good and bad. Then the texts: explain and describe.
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/layer_case.h"
#include "core/isa.h"
#include "core/registry.h"
#include "quant/formats.h"
#include "quant/specs.h"
#include "unit/test.h"

#define DESCRIPTORS 600
#define MAX_ROWS    512
#define MAX_KERNELS 256

static uint64_t rng = 0x853C49E6748FEA9Bu;

static uint32_t below(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) * n >> 31);
}

static bool chance(uint32_t percent)
{
    return below(100) < percent;
}

static int32_t from_to(int32_t low, int32_t high)
{
    return low + (int32_t)below((uint32_t)(high - low + 1));
}

// ---- random descriptors ------------------------------------------------------------------------

// Formats and quantisers go together half of the time; the rest is refused, which is also an
// answer.
static void draw_gemm(moe_gemm_desc *gemm)
{
    static const int32_t groups[] = {0, 0, 0, 16, 32, 64, 128, 48};
    const moei_quant_info *info;
    size_t specs = 0;
    memset(gemm, 0, sizeof *gemm);
    gemm->weight_format = from_to(MOE_FORMAT_F32, MOE_FORMAT_NVFP4);
    const moei_format_info *format = moei_format(gemm->weight_format);
    gemm->weight_group = format->free_group || chance(3) ? groups[below(7)] : 0;
    gemm->weight_scale_dtype = chance(4) ? from_to(MOE_F32, MOE_E8M0) : 0;
    gemm->zero_points = format->zero_point >= 0 || chance(3) ? (int32_t)below(2) : 0;
    gemm->channel_scale = format->free_group || chance(2) ? (int32_t)below(2) : 0;
    gemm->bias = chance(30);
    while (moei_quant_at(specs) != NULL) {
        specs++;
    }
    if (chance(50)) {
        return;
    }
    info = moei_quant_at(below((uint32_t)specs));
    gemm->act.spec = info->spec;
    gemm->act.group = info->free_group ? groups[below(8)] : 0;
    gemm->act.scale_type = chance(4) ? from_to(MOE_SCALE_F32, MOE_SCALE_E4M3FN) : 0;
}

static void draw_activation(moe_activation *activation, moe_gate_up *gate_up, float *alpha,
                            float *beta, float *limit)
{
    *activation = from_to(MOE_ACT_SILU, MOE_ACT_RELU2_NO_MUL);
    *gate_up = moe_activation_gated(*activation) != 0 ? from_to(1, 4) : 0;
    *alpha = *activation == MOE_ACT_SWIGLUOAI ? 1.702f : 0.0f;
    *beta = *activation == MOE_ACT_SWIGLUOAI || *activation == MOE_ACT_SITU ? 1.0f : 0.0f;
    *limit = *activation == MOE_ACT_SWIGLUSTEP || (*activation == MOE_ACT_SILU && chance(30)) ||
                     chance(2)
                 ? 2.0f
                 : 0.0f;
}

static void draw_routing(moe_layer_desc *d)
{
    d->routing = from_to(MOE_ROUTING_FROM_LOGITS, MOE_ROUTING_PLACED);
    d->top_k = from_to(1, d->num_experts);
    memset(&d->route, 0, sizeof d->route);
    if (d->routing == MOE_ROUTING_PLACED) {
        d->top_k = 0;
        d->x_layout = from_to(MOE_X_BATCHED, MOE_X_SORTED);
        return;
    }
    d->out_mode = chance(20) ? MOE_OUT_SLOTS : MOE_OUT_DEFAULT;
    if (chance(20)) {
        d->expert_map = 1;
        d->num_local_experts = from_to(1, d->num_experts);
    }
    if (d->routing == MOE_ROUTING_FROM_LOGITS) {
        d->route.scoring = from_to(MOE_SCORING_SOFTMAX, MOE_SCORING_SIGMOID_SELECTED);
        d->route.renormalise = from_to(MOE_RENORM_NONE, MOE_RENORM_CLAMPED);
        d->route.correction_bias = chance(20);
        d->route.zero_experts = chance(10) ? 2 : 0;
        d->logits_dtype = from_to(MOE_F32, MOE_F16);
    }
}

static moe_layer_desc draw(void)
{
    moe_layer_desc d = layer_case_base();
    d.max_tokens = 6;
    d.hidden = from_to(1, 150);
    d.inter = from_to(1, 150);
    d.num_experts = from_to(1, 6);
    d.x_dtype = from_to(MOE_F32, MOE_F16);
    draw_gemm(&d.gemm[0]);
    draw_gemm(&d.gemm[1]);
    draw_activation(&d.activation, &d.gate_up, &d.alpha, &d.beta, &d.limit);
    draw_routing(&d);
    d.weight_stage = from_to(MOE_WEIGHT_OUTPUT, MOE_WEIGHT_NONE);
    const bool combined = d.x_layout == MOE_X_TOKENS && d.out_mode != MOE_OUT_SLOTS;
    d.transposed = chance(10);
    d.accumulate = chance(20);
    d.output_bias = combined ? chance(30) : chance(2);
    d.latent = (combined ? chance(25) : chance(2)) ? from_to(1, 100) : 0;
    d.determinism = chance(60) ? MOE_DET_RUN : from_to(MOE_DET_DEFAULT, MOE_DET_KERNEL);
    d.partial_dtype = chance(30) ? from_to(MOE_F32, MOE_F16) : 0;
    d.out_dtype = chance(30) ? from_to(MOE_F32, MOE_F16) : 0;
    d.workspace_cap = chance(10) ? 3000 : 0;
    if (d.gemm[0].act.spec != 0 && d.latent == 0 && d.weight_stage != MOE_WEIGHT_INPUT &&
        chance(40)) {
        d.x_dtype = moei_quant_get(d.gemm[0].act.spec)->elem;
        d.inter_dtype = d.gemm[1].act.spec == 0 ? MOE_BF16 : 0;
        d.partial_dtype = d.out_dtype = MOE_F32;
    }
    if (combined ? chance(30) : chance(2)) {
        moe_shared_desc *s = &d.shared;
        s->count = from_to(1, 3);
        s->inter = from_to(1, 80);
        s->gate = from_to(MOE_SHARED_PLAIN, MOE_SHARED_SIGMOID);
        draw_gemm(&s->gemm[0]);
        draw_gemm(&s->gemm[1]);
        draw_activation(&s->activation, &s->gate_up, &s->alpha, &s->beta, &s->limit);
    }
    return d;
}

// ---- what a query says -------------------------------------------------------------------------

typedef struct row {
    const char *kernel, *arith;
    char step[32];
    int supported, chosen;
    moe_determinism level;
} row;

typedef struct answer {
    row rows[MAX_ROWS];
    int num_rows;
} answer;

static const char *value_name(const char *kind, int64_t value, char *buffer, size_t capacity)
{
    static const char *const levels[] = {"DEFAULT", "NONE", "RUN", "BATCH", "KERNEL"};
    if (strcmp(kind, "DTYPE") == 0) {
        return moe_dtype_name((moe_dtype)value);
    }
    if (strcmp(kind, "FORMAT") == 0) {
        return moe_format_name((moe_format)value);
    }
    if (strcmp(kind, "QUANT") == 0) {
        return moe_quant_name((moe_quant_spec)value);
    }
    if (strcmp(kind, "ARITH") == 0) {
        return moei_arith_get((moei_arith)value)->name;
    }
    if (strcmp(kind, "LEVEL") == 0) {
        return levels[value];
    }
    if (strcmp(kind, "LAYOUT") == 0) {
        return value == MOEI_LAYOUT_PACKED ? "packed" : "canonical";
    }
    if (strcmp(kind, "ISA") == 0) {
        return moei_isa_text((uint64_t)value, buffer, capacity);
    }
    (void)snprintf(buffer, capacity, "%" PRId64, value);
    return buffer;
}

static void check_text(const moe_support *s)
{
    static const char *const kinds[] = {
#define MOE_WHYNOT(ID, kind, text) #kind,
#include "moe/whynot.def"
#undef MOE_WHYNOT
    };
    char have[128];
    char need[128];
    CHECK((s->code == 0) == (s->supported != 0), "%s: code %d, supported %d", s->kernel,
          (int)s->code, s->supported);
    if (s->supported) {
        CHECK(s->text[0] == '\0', "%s is supported, but: %s", s->kernel, s->text);
        return;
    }
    if (CHECK(s->code > 0 && s->code < MOEI_NUM_WHYNOT, "%s: code %d", s->kernel, (int)s->code)) {
        const char *kind = kinds[s->code];
        CHECK(strstr(s->text, value_name(kind, s->have, have, sizeof have)) != NULL &&
                  strstr(s->text, value_name(kind, s->need, need, sizeof need)) != NULL,
              "%s: \"%s\" lacks one of %" PRId64 ", %" PRId64 " (%s)", s->kernel, s->text, s->have,
              s->need, kind);
    }
}

static int collect(void *self, const moe_support *s)
{
    answer *a = self;
    check_text(s);
    CHECK(!s->chosen || s->supported, "%s: %s is chosen, but not supported", s->step, s->kernel);
    CHECK(strncmp(s->kernel, "moek_", 5) == 0, "a row is called %s", s->kernel);
    if (CHECK(a->num_rows < MAX_ROWS, "more than %d rows", MAX_ROWS)) {
        row *r = &a->rows[a->num_rows++];
        *r = (row){.kernel = s->kernel,
                   .arith = s->arith,
                   .supported = s->supported,
                   .chosen = s->chosen,
                   .level = s->level};
        (void)snprintf(r->step, sizeof r->step, "%s", s->step);
    }
    return 0;
}

// Of the rows of a step: how many could, how many would.
static void count_step(const answer *a, const char *step, int *supported, int *chosen)
{
    *supported = *chosen = 0;
    for (int i = 0; i < a->num_rows; i++) {
        if (strcmp(a->rows[i].step, step) == 0) {
            *supported += a->rows[i].supported;
            *chosen += a->rows[i].chosen;
        }
    }
}

static bool is_op(const char *step)
{
    for (int op = 0; op < MOEI_NUM_OPS; op++) {
        if (strcmp(step, moei_op_name((moei_op)op)) == 0) {
            return true;
        }
    }
    return false;
}

static void check_answer(const answer *a, const moe_layer_desc *d, moe_status status,
                         const moe_plan *plan)
{
    bool all_products = true;
    moe_determinism level = MOE_DET_KERNEL;
    for (int i = 0; i < a->num_rows; i++) {
        const row *r = &a->rows[i];
        int supported;
        int chosen;
        count_step(a, r->step, &supported, &chosen);
        CHECK(chosen <= 1, "%s: %d rows are chosen", r->step, chosen);
        if (!is_op(r->step)) {
            CHECK(chosen == (status == MOE_OK), "%s: %d rows are chosen, the plan says %s", r->step,
                  chosen, moe_status_name(status));
            all_products = all_products && supported > 0;
        } else {
            CHECK(supported >= 1, "%s: no row runs here", r->step);
        }
        level = r->chosen && r->level < level ? r->level : level;
    }
    if (status == MOE_E_NO_KERNEL) {
        CHECK(a->num_rows > 0 && !all_products, "NO_KERNEL, but each product has a row");
    } else {
        CHECK(a->num_rows == 0 || all_products, "%s, but a product has no row",
              moe_status_name(status));
    }
    CHECK((a->num_rows > 0) == (status == MOE_OK || status == MOE_E_NO_KERNEL ||
                                status == MOE_E_LEVEL || status == MOE_E_WORKSPACE),
          "%d rows with %s", a->num_rows, moe_status_name(status));
    if (status == MOE_OK) {
        const moe_determinism held = moe_plan_level(plan);
        const moe_determinism asked =
            d->determinism != MOE_DET_DEFAULT ? d->determinism : MOE_DET_BATCH;
        CHECK(held >= asked && held <= level, "the plan holds %d, its rows %d, %d was asked",
              (int)held, (int)level, (int)asked);
    }
}

// ---- what a run does ---------------------------------------------------------------------------

typedef struct counters {
    const char *names[MAX_KERNELS];
    uint64_t runs[MAX_KERNELS];
    int n;
} counters;

// Rows of the context's backend; plugins beside the program may have rows of the same names.
static int count_runs(void *self, const moe_kernel_info *info)
{
    counters *c = self;
    if (strcmp(info->backend, "cpu") != 0) {
        return 0;
    }
    if (CHECK(c->n < MAX_KERNELS, "more than %d kernels", MAX_KERNELS)) {
        c->names[c->n] = info->name;
        c->runs[c->n++] = info->runs;
    }
    return 0;
}

static void check_run(moe_context *ctx, const moe_plan *plan, const moe_layer_desc *d,
                      const answer *a)
{
    layer_case c;
    counters before = {.n = 0};
    counters after = {.n = 0};
    if (!CHECK(layer_case_make(&c, plan, d, from_to(1, 6)) == MOE_OK,
               "an accepted plan takes no weights: %s", moe_last_error())) {
        layer_case_free(&c);
        return;
    }
    CHECK(moe_context_visit_kernels(ctx, count_runs, &before) == 0, "the visit stopped");
    CHECK(layer_case_run(&c) == MOE_OK, "an accepted plan does not run: %s", moe_last_error());
    CHECK(moe_context_visit_kernels(ctx, count_runs, &after) == 0, "the visit stopped");
    for (int k = 0; k < before.n; k++) {
        int chosen = 0;
        for (int i = 0; i < a->num_rows; i++) {
            chosen += a->rows[i].chosen && strcmp(a->rows[i].kernel, before.names[k]) == 0;
        }
        const uint64_t ran = after.runs[k] - before.runs[k];
        CHECK((ran > 0) == (chosen > 0) && ran >= (uint64_t)chosen,
              "%s ran %" PRIu64 " times, it is chosen for %d steps", before.names[k], ran, chosen);
    }
    layer_case_free(&c);
}

// ---- texts -------------------------------------------------------------------------------------

static const char *skip_value(const char *c);

static const char *skip_blanks(const char *c)
{
    while (*c == ' ') {
        c++;
    }
    return c;
}

static const char *skip_string(const char *c)
{
    for (c++; *c != '\0' && *c != '"'; c++) {
        if (*c == '\\' || (unsigned char)*c < 0x20) {
            return NULL;
        }
    }
    return *c == '"' ? c + 1 : NULL;
}

static const char *skip_list(const char *c, char end, bool keys)
{
    c = skip_blanks(c + 1);
    while (c != NULL && *c != end) {
        if (keys) {
            c = *c == '"' ? skip_string(c) : NULL;
            c = c != NULL && *c == ':' ? skip_blanks(c + 1) : NULL;
        }
        c = c != NULL ? skip_value(c) : NULL;
        if (c != NULL && *c == ',') {
            c = skip_blanks(c + 1);
            c = *c == end ? NULL : c;
        } else if (c != NULL && *c != end) {
            c = NULL;
        }
    }
    return c != NULL ? c + 1 : NULL;
}

// Past a JSON value as this library writes them (no escapes), or NULL.
static const char *skip_value(const char *c)
{
    static const char *const words[] = {"true", "false", "null"};
    switch (*c) {
    case '{':
        return skip_list(c, '}', true);
    case '[':
        return skip_list(c, ']', false);
    case '"':
        return skip_string(c);
    default:
        break;
    }
    for (size_t i = 0; i < 3; i++) {
        if (strncmp(c, words[i], strlen(words[i])) == 0) {
            return c + strlen(words[i]);
        }
    }
    const char *start = c;
    c += *c == '-';
    const char *digits = c;
    while (isdigit((unsigned char)*c)) {
        c++;
    }
    if (c == digits || (*digits == '0' && c > digits + 1)) {
        return NULL;
    }
    if (*c == '.') {
        for (c++; isdigit((unsigned char)*c); c++) {
        }
    }
    if (*c == 'e') {
        c += c[1] == '-' || c[1] == '+' ? 2 : 1;
        while (isdigit((unsigned char)*c)) {
            c++;
        }
    }
    return c > start && isdigit((unsigned char)c[-1]) ? c : NULL;
}

typedef moe_status text_fn(const moe_plan *, char *, size_t, size_t *);

// Few on the way, then those around the end.
static size_t next_capacity(size_t capacity, size_t needed)
{
    const size_t next = capacity + 1 + capacity / 2;
    return capacity >= needed ? capacity + 1 : next < needed ? next : needed;
}

// The whole text, after checks of what a shorter buffer gets.
static char *whole_text(text_fn *fn, const moe_plan *plan, const char *name)
{
    size_t needed = 0;
    CHECK(fn(plan, NULL, 0, &needed) == MOE_OK && needed > 0, "%s: %s", name, moe_last_error());
    char *whole = malloc(needed + 1);
    char *part = malloc(needed + 3);
    if (whole == NULL || part == NULL) {
        abort();
    }
    size_t again = 0;
    CHECK(fn(plan, whole, needed + 1, &again) == MOE_OK && again == needed &&
              strlen(whole) == needed,
          "%s: needs %zu, then %zu, is %zu long", name, needed, again, strlen(whole));
    for (size_t capacity = 1; capacity <= needed + 2; capacity = next_capacity(capacity, needed)) {
        memset(part, '#', needed + 3);
        CHECK(fn(plan, part, capacity, &again) == MOE_OK && again == needed,
              "%s, %zu bytes: needs %zu, not %zu", name, capacity, again, needed);
        const size_t fits = capacity - 1 < needed ? capacity - 1 : needed;
        CHECK(strnlen(part, needed + 3) == fits && strncmp(part, whole, fits) == 0 &&
                  part[capacity] == '#',
              "%s, %zu bytes: not the first %zu of the text, with its end", name, capacity, fits);
    }
    CHECK(fn(plan, part, 5, NULL) == MOE_OK && part[4] == '\0', "%s: without needed", name);
    free(part);
    return whole;
}

static void check_texts(const moe_plan *plan, const answer *a)
{
    char *json = whole_text(moe_plan_describe, plan, "moe_plan_describe");
    const char *end = skip_value(json);
    CHECK(end != NULL && *end == '\0', "not JSON: %s", json);
    char *explain = whole_text(moe_plan_explain, plan, "moe_plan_explain");
    for (int i = 0; i < a->num_rows; i++) {
        char star[128];
        (void)snprintf(star, sizeof star, " *  %s ", a->rows[i].kernel);
        CHECK(!a->rows[i].chosen || strstr(explain, star) != NULL, "explain has no star at %s:\n%s",
              a->rows[i].kernel, explain);
        CHECK(!a->rows[i].chosen || is_op(a->rows[i].step) ||
                  strncmp(a->rows[i].step, "latent", 6) == 0 ||
                  strcmp(a->rows[i].step, "shared gate") == 0 ||
                  strstr(json, a->rows[i].kernel) != NULL,
              "the description lacks %s", a->rows[i].kernel);
    }
    const bool ref = strstr(explain, "portable reference") != NULL;
    CHECK(ref == ((moe_plan_flags(plan) & MOE_PLAN_USES_REF) != 0) &&
              ref == (strstr(json, "\"uses_ref\": true") != NULL),
          "flags %u: explain and describe disagree about the reference",
          (unsigned)moe_plan_flags(plan));
    free(json);
    free(explain);
}

// ---- all ---------------------------------------------------------------------------------------

static const char *after_call(const char *message)
{
    const char *colon = strchr(message, ':');
    return colon != NULL ? colon : message;
}

static void test_descriptor(moe_context *ctx, const moe_layer_desc *d, int accepted[128])
{
    static answer a;
    moe_plan *plan = NULL;
    char said[512];
    a.num_rows = 0;
    const moe_status asked = moe_query_support(ctx, d, collect, &a);
    (void)snprintf(said, sizeof said, "%s", asked != MOE_OK ? after_call(moe_last_error()) : "");
    const moe_status status = moe_plan_create(ctx, d, &plan);
    CHECK(asked == status, "the query says %s, creation %s", moe_status_name(asked),
          moe_status_name(status));
    CHECK(status == MOE_OK || strcmp(said, after_call(moe_last_error())) == 0,
          "the query says \"%s\", creation \"%s\"", said, moe_last_error());
    accepted[status]++;
    check_answer(&a, d, status, plan);
    if (status == MOE_OK) {
        check_run(ctx, plan, d, &a);
        check_texts(plan, &a);
    }
    moe_plan_destroy(plan);
}

static int stop_at_third(void *self, const moe_support *s)
{
    (void)s;
    return ++*(int *)self == 3;
}

static int nothing(void *self, const moe_support *s)
{
    (void)self;
    (void)s;
    return 0;
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_time(moe_context *ctx)
{
    const moe_layer_desc d = layer_case_base();
    double best = 1e9;
    double all = 0.0;
    for (int i = 0; i < 200; i++) {
        const double start = now();
        (void)moe_query_support(ctx, &d, nothing, NULL);
        const double took = now() - start;
        best = took < best ? took : best;
        all += took;
    }
    (void)printf("moe_query_support: %.1f us at best, %.1f us on average (stated: under 1000)\n",
                 best * 1e6, all / 200 * 1e6);
}

int main(void)
{
    static int accepted[128];
    static const char *const ceilings[] = {NULL, "ref"};
    for (int i = 0; i < 2; i++) {
        moe_context *ctx = NULL;
        moe_context_desc desc = moe_context_desc_default();
        desc.num_threads = 2;
        desc.isa = ceilings[i];
        if (!CHECK(moe_context_create(&desc, &ctx) == MOE_OK, "%s", moe_last_error())) {
            return test_summary();
        }
        for (int n = 0; n < DESCRIPTORS / 2; n++) {
            const moe_layer_desc d = draw();
            test_descriptor(ctx, &d, accepted);
        }
        int visits = 0;
        const moe_layer_desc base = layer_case_base();
        CHECK(moe_query_support(ctx, &base, stop_at_third, &visits) == MOE_OK && visits == 3,
              "a visit that stops at the third row saw %d", visits);
        CHECK(moe_query_support(NULL, &base, nothing, NULL) == MOE_E_ARGUMENT &&
                  moe_query_support(ctx, NULL, nothing, NULL) == MOE_E_ARGUMENT &&
                  moe_query_support(ctx, &base, NULL, NULL) == MOE_E_ARGUMENT,
              "a NULL argument is accepted");
        test_time(ctx);
        moe_context_destroy(ctx);
    }
    for (int status = 0; status < 128; status++) {
        if (accepted[status] > 0) {
            (void)printf("%d descriptors: %s\n", accepted[status], moe_status_name(status));
        }
    }
    CHECK(accepted[MOE_OK] >= 100 && accepted[MOE_E_NO_KERNEL] >= 5 && accepted[MOE_E_LEVEL] >= 5 &&
              accepted[MOE_E_WORKSPACE] >= 5,
          "the draw has become one-sided");
    return test_summary();
}
