// SPDX-License-Identifier: Apache-2.0
// moe inspect: what a checkpoint holds, whether its numbers are sane, and what a plan would run.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

// Scales beyond these are reported as absurd: no weight or activation of a model comes near.
#define LOW_SCALE  0x1p-64f
#define HIGH_SCALE 0x1p24f
#define PLAN_T     256 // tokens for which the plan is made

/// What one layer, or a run of equal ones, is.
struct summary {
    int32_t first, last;
    char text[512];                   // dialects, sizes, formats, kernels: equal in equal layers
    char members[1024];               // the same as members of a JSON object
    uint64_t experts, shared, router; // bytes
    moe_tensor_stats scales, values;
};

struct totals {
    uint64_t experts, shared, router;
    moe_tensor_stats scales, values;
    int32_t moe, dense, failed;
};

static uint64_t bytes_of(const moe_tensor *t)
{
    uint64_t bits = (uint64_t)moe_dtype_bits(t->dtype);
    for (int i = 0; i < t->ndim; i++) {
        bits *= (uint64_t)t->shape[i];
    }
    return bits / 8;
}

static void add_stats(moe_tensor_stats *to, const moe_tensor_stats *from)
{
    to->count += from->count;
    to->nan += from->nan;
    to->infinite += from->infinite;
    to->negative += from->negative;
    to->zero += from->zero;
    to->outside += from->outside;
}

static bool insane(const moe_tensor_stats *scales, const moe_tensor_stats *values)
{
    return scales->nan + scales->infinite + scales->negative + values->nan + values->infinite > 0;
}

// ---- a layer -----------------------------------------------------------------------------------

static int visit_tensor(void *self, const moe_layer_tensor *t)
{
    struct summary *s = self;
    uint64_t *bytes = t->role == MOE_ROLE_ROUTER ? &s->router
                      : t->shared != 0           ? &s->shared
                                                 : &s->experts;
    *bytes += bytes_of(&t->tensor);
    const bool is_scale =
        t->role == MOE_ROLE_SCALES || t->role == MOE_ROLE_SCALE2 || t->role == MOE_ROLE_ACT_SCALE;
    if (is_scale) {
        (void)moe_tensor_survey(&t->tensor, t->element, LOW_SCALE, HIGH_SCALE, &s->scales);
    } else if (t->role == MOE_ROLE_VALUES || t->role == MOE_ROLE_BIAS) {
        // Codes of less than a byte, and integers, are all numbers.
        (void)moe_tensor_survey(&t->tensor, t->element, 0.0f, 0x1.fffffep127f, &s->values);
    }
    return 0;
}

static int visit_kernel(void *self, const moe_support *support)
{
    struct summary *s = self;
    const size_t used = strlen(s->text);
    const size_t written = strlen(s->members);
    if (support->chosen && strncmp(support->kernel, "moek_ggemm", 10) == 0) {
        (void)snprintf(s->text + used, sizeof s->text - used, "\n%12s %s", support->step,
                       support->kernel);
        (void)snprintf(s->members + written, sizeof s->members - written, "%s\"%s\": \"%s\"",
                       s->members[written - 1] == '{' ? "" : ", ", support->step, support->kernel);
    }
    return 0;
}

static void describe(struct summary *s, const moe_context *ctx, const moe_checkpoint_layer *layer)
{
    moe_layer_desc d = moe_layer_desc_default();
    const char *shared = moe_checkpoint_layer_shared_dialect(layer);
    d.x_dtype = MOE_BF16;
    d.max_tokens = PLAN_T;
    (void)moe_checkpoint_layer_desc(layer, &d);
    int used = snprintf(
        s->text, sizeof s->text,
        "%s: %d experts, %d a token, hidden %" PRId64 ", inner %" PRId64 ", %s, %s / %s",
        moe_checkpoint_layer_dialect(layer), (int)d.num_experts, (int)d.top_k, d.hidden, d.inter,
        moe_activation_name(d.activation), moe_format_name(d.gemm[0].weight_format),
        moe_format_name(d.gemm[1].weight_format));
    if (shared != NULL) {
        (void)snprintf(s->text + used, sizeof s->text - (size_t)used,
                       "; %d shared, inner %" PRId64 ", %s", (int)d.shared.count, d.shared.inter,
                       shared);
    }
    (void)snprintf(s->members, sizeof s->members,
                   "\"dialect\": \"%s\", \"shared_dialect\": \"%s\", \"experts\": %d, "
                   "\"top_k\": %d, \"hidden\": %" PRId64 ", \"inter\": %" PRId64
                   ", \"shared\": %d, \"activation\": \"%s\", \"formats\": [\"%s\", \"%s\"], "
                   "\"kernels\": {",
                   moe_checkpoint_layer_dialect(layer), shared != NULL ? shared : "",
                   (int)d.num_experts, (int)d.top_k, d.hidden, d.inter, (int)d.shared.count,
                   moe_activation_name(d.activation), moe_format_name(d.gemm[0].weight_format),
                   moe_format_name(d.gemm[1].weight_format));
    if (moe_query_support(ctx, &d, visit_kernel, s) != MOE_OK) {
        used = (int)strlen(s->text);
        (void)snprintf(s->text + used, sizeof s->text - (size_t)used, "\n     no plan: %s",
                       moe_last_error());
    }
}

static void print_stats(const char *name, const moe_tensor_stats *t)
{
    (void)printf("\"%s\": {\"count\": %" PRId64 ", \"nan\": %" PRId64 ", \"infinite\": %" PRId64
                 ", \"negative\": %" PRId64 ", \"zero\": %" PRId64 ", \"absurd\": %" PRId64 "}",
                 name, t->count, t->nan, t->infinite, t->negative, t->zero, t->outside);
}

static void print_summary(const struct summary *s, bool json, bool first)
{
    char text[3][32];
    if (json) {
        (void)printf("%s{\"layer\": %d, %s}, ", first ? "" : ", ", (int)s->first, s->members);
        (void)printf("\"experts_bytes\": %" PRIu64 ", \"shared_bytes\": %" PRIu64
                     ", \"router_bytes\": %" PRIu64 ", ",
                     s->experts, s->shared, s->router);
        print_stats("scales", &s->scales);
        (void)printf(", ");
        print_stats("values", &s->values);
        (void)printf("}");
        return;
    }
    if (s->first == s->last) {
        (void)printf("layer %d  ", (int)s->first);
    } else {
        (void)printf("layers %d..%d  ", (int)s->first, (int)s->last);
    }
    (void)printf("%s\n", s->text);
    (void)printf("%12s experts %s, shared %s, router %s%s\n", "bytes",
                 cli_size_text(s->experts, text[0]), cli_size_text(s->shared, text[1]),
                 cli_size_text(s->router, text[2]), s->first == s->last ? "" : " in all");
}

// Adds a layer to the run of equal ones before it, or prints that run and begins another.
static void emit(struct summary *run, const struct summary *s, bool json)
{
    if (!json && run->last >= run->first && strcmp(run->text, s->text) == 0) {
        run->last = s->last;
        run->experts += s->experts;
        run->shared += s->shared;
        run->router += s->router;
        return;
    }
    if (!json && run->last >= run->first) {
        print_summary(run, false, false);
    }
    if (json) {
        print_summary(s, true, run->last < run->first);
    }
    *run = *s;
}

static void add_totals(struct totals *t, const struct summary *s)
{
    t->experts += s->experts;
    t->shared += s->shared;
    t->router += s->router;
    add_stats(&t->scales, &s->scales);
    add_stats(&t->values, &s->values);
    t->moe++;
}

static void inspect_layers(const cli_model *model, const moe_context *ctx, bool json,
                           struct totals *t)
{
    struct summary run = {.first = 0, .last = -1};
    const int32_t count = moe_checkpoint_layers(model->checkpoint);
    for (int32_t i = 0; i < count; i++) {
        struct summary s = {.first = i, .last = i};
        moe_checkpoint_layer *layer = NULL;
        if (!moe_checkpoint_has_experts(model->checkpoint, i)) {
            t->dense++;
            continue;
        }
        if (moe_checkpoint_layer_open(model->checkpoint, model->config, model->config_size, i,
                                      &layer) != MOE_OK) {
            (void)fprintf(stderr, "moe: layer %d: %s\n", (int)i, moe_last_error());
            t->failed++;
            continue;
        }
        if (t->moe == 0 && !json) {
            (void)printf("class       %s\n", moe_checkpoint_layer_class(layer));
        }
        describe(&s, ctx, layer);
        (void)moe_checkpoint_layer_visit(layer, visit_tensor, &s);
        moe_checkpoint_layer_close(layer);
        emit(&run, &s, json);
        add_totals(t, &s);
    }
    if (!json && run.last >= run.first) {
        print_summary(&run, false, false);
    }
}

static uint64_t all_bytes(const moe_checkpoint *checkpoint)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < moe_checkpoint_count(checkpoint); i++) {
        moe_tensor t;
        if (moe_checkpoint_tensor(checkpoint, moe_checkpoint_name(checkpoint, i), &t) == MOE_OK) {
            bytes += bytes_of(&t);
        }
    }
    return bytes;
}

static void print_sanity(const char *what, const moe_tensor_stats *t)
{
    (void)printf("%-11s %" PRId64 ": %" PRId64 " NaN, %" PRId64 " infinite", what, t->count, t->nan,
                 t->infinite);
    if (strcmp(what, "scales") == 0) {
        (void)printf(", %" PRId64 " negative, %" PRId64 " zero, %" PRId64
                     " absurd (beyond 2^-64 .. 2^24)",
                     t->negative, t->zero, t->outside);
    }
    (void)printf("\n");
}

static int inspect_model(const cli_model *model, bool json)
{
    struct totals t = {0};
    char text[5][32];
    int code = CLI_OK;
    moe_context *ctx = cli_context(NULL, NULL, &code);
    if (ctx == NULL) {
        return code;
    }
    const uint64_t all = all_bytes(model->checkpoint);
    (void)printf(json ? "{\"tensors\": %zu, \"bytes\": %" PRIu64 ", \"layers\": ["
                      : "tensors     %zu, %" PRIu64 " bytes\n",
                 moe_checkpoint_count(model->checkpoint), all);
    inspect_layers(model, ctx, json, &t);
    moe_context_destroy(ctx);
    const uint64_t rest = all - t.experts - t.shared - t.router;
    if (json) {
        (void)printf("], \"moe_layers\": %d, \"dense_layers\": %d, \"failed_layers\": %d, "
                     "\"experts_bytes\": %" PRIu64 ", \"shared_bytes\": %" PRIu64
                     ", \"router_bytes\": %" PRIu64 ", \"other_bytes\": %" PRIu64 ", ",
                     (int)t.moe, (int)t.dense, (int)t.failed, t.experts, t.shared, t.router, rest);
        print_stats("scales", &t.scales);
        (void)printf(", ");
        print_stats("values", &t.values);
        (void)printf("}\n");
    } else {
        (void)printf("layers      %d with experts, %d dense, %d that cannot be read\n", (int)t.moe,
                     (int)t.dense, (int)t.failed);
        (void)printf("bytes       experts %s, shared %s, router %s, other %s, total %s\n",
                     cli_size_text(t.experts, text[0]), cli_size_text(t.shared, text[1]),
                     cli_size_text(t.router, text[2]), cli_size_text(rest, text[3]),
                     cli_size_text(all, text[4]));
        print_sanity("scales", &t.scales);
        print_sanity("floats", &t.values);
    }
    return t.failed > 0 || t.moe == 0 || insane(&t.scales, &t.values) ? CLI_FAILED : CLI_OK;
}

// ---- files without a configuration -------------------------------------------------------------

static int list_tensors(const moe_checkpoint *checkpoint, bool json)
{
    uint64_t all = 0;
    (void)printf("%s", json ? "{\"tensors\": [" : "");
    for (size_t i = 0; i < moe_checkpoint_count(checkpoint); i++) {
        const char *name = moe_checkpoint_name(checkpoint, i);
        moe_tensor t = {0};
        const bool known = moe_checkpoint_tensor(checkpoint, name, &t) == MOE_OK;
        const char *type = known ? moe_dtype_name(t.dtype) : "complex64";
        const uint64_t bytes = known ? bytes_of(&t) : 0;
        all += bytes;
        if (json) {
            (void)printf("%s{\"name\": ", i > 0 ? ", " : "");
            cli_json_string(name);
            (void)printf(", \"dtype\": \"%s\", \"bytes\": %" PRIu64 ", \"shape\": [", type, bytes);
        } else {
            (void)printf("%12" PRIu64 "  %-9s [", bytes, type);
        }
        for (int d = 0; d < t.ndim; d++) {
            (void)printf("%s%" PRId64, d > 0 ? ", " : "", t.shape[d]);
        }
        (void)printf(json ? "]}" : "]  ");
        if (!json) {
            cli_plain_string(name);
            (void)printf("\n");
        }
    }
    (void)printf(json ? "], \"bytes\": %" PRIu64 "}\n" : "%12" PRIu64 "  bytes in all\n", all);
    return CLI_OK;
}

static bool has_config(const char *path)
{
    char config[CLI_PATH_BYTES + 16];
    struct stat info;
    return snprintf(config, sizeof config, "%s/config.json", path) < (int)sizeof config &&
           stat(config, &info) == 0;
}

int cmd_inspect(int argc, char **argv)
{
    const char *path = NULL;
    bool no_mmap = false;
    bool json = false;
    int count = 0;
    int code = CLI_OK;
    const cli_option options[] = {
        {"no-mmap", NULL, &no_mmap}, {"json", NULL, &json}, {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, &path, 1, &count) || path == NULL) {
        return CLI_USAGE;
    }
    const uint32_t flags = no_mmap ? MOE_FILE_NO_MMAP : MOE_FILE_DEFAULT;
    if (has_config(path)) {
        cli_model model;
        if (!cli_model_open(path, flags, &model)) {
            return CLI_FAILED;
        }
        code = inspect_model(&model, json);
        cli_model_close(&model);
        return code;
    }
    if (cli_is_packed(path)) {
        return cli_inspect_packed(path, flags, json);
    }
    moe_checkpoint *checkpoint = NULL;
    const moe_status status = moe_checkpoint_open(path, flags, &checkpoint);
    if (status != MOE_OK) {
        return cli_failed(status);
    }
    code = list_tensors(checkpoint, json);
    moe_checkpoint_close(checkpoint);
    return code;
}
