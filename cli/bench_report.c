// SPDX-License-Identifier: Apache-2.0
// What moe bench says: a table for people, and rows of JSON that say everything about themselves.
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "bench.h"
#include "core/cpus.h"
#include "core/isa.h"
#include "io/write_whole.h"
#include "quant/formats.h"

// That of 8 bits is of floats on devices, of integers on a host.
static const char *ceiling_name(moei_ceiling which, bool host)
{
    static const char *const names[MOEI_NUM_CEILINGS] = {"read", "f32", "bf16", "fp8"};
    return host && which == MOEI_CEILING_FP8 ? "int8" : names[which];
}

static double ceiling_unit(moei_ceiling which)
{
    return which == MOEI_CEILING_READ ? 1e-9 : 1e-12;
}

double bench_ceiling_key(moei_ceiling which, bool host, char *key, size_t capacity)
{
    (void)snprintf(key, capacity, "%s_%s", ceiling_name(which, host),
                   which == MOEI_CEILING_READ ? "gb_per_s" : "tflops");
    return ceiling_unit(which);
}

// ---- the table ---------------------------------------------------------------------------------

static void print_layer(const moe_layer_desc *d, bool routing_only)
{
    (void)printf("H %" PRId64 ", I %" PRId64 ", E %d, k %d", d->hidden, d->inter,
                 (int)d->num_experts, (int)d->top_k);
    for (int g = 0; g < 2 && !routing_only; g++) {
        (void)printf("%s%s", g == 0 ? ", " : " / ", moe_format_name(d->gemm[g].weight_format));
        if (d->gemm[g].act.spec != MOE_QUANT_NONE) {
            (void)printf(" x %s", moe_quant_name(d->gemm[g].act.spec));
        }
    }
    if (!routing_only) {
        (void)printf(", %s, x %s", moe_activation_name(d->activation), moe_dtype_name(d->x_dtype));
    }
}

void bench_print_head(const bench_request *request, const bench_layer *layer,
                      const bench_ceilings *ceilings)
{
    const moei_backend *backend = layer->ctx->backend;
    (void)printf("%s on %s: ", request->shape, backend->name);
    print_layer(&layer->desc, request->routing_only);
    (void)printf("%s%s\n", request->zipf ? ", zipf" : "",
                 request->routing_only ? ", routing alone" : "");
    if (layer->plan != NULL) {
        (void)printf("level %s, weights %.3g GB", cli_level_name(moe_plan_level(layer->plan)),
                     1e-9 * (double)layer->memory_bytes);
        for (int i = 0; i < MOEI_NUM_CEILINGS; i++) {
            if (ceilings->per_second[i] > 0) {
                (void)printf(", %s %.4g %s/s", ceiling_name((moei_ceiling)i, backend->host_memory),
                             ceilings->per_second[i] * ceiling_unit((moei_ceiling)i),
                             i == MOEI_CEILING_READ ? "GB" : "TFLOP");
            }
        }
        (void)printf("\n");
    }
    (void)printf("%7s %7s %5s %10s %21s %10s %4s %8s %9s %9s\n", "tokens", "experts", "sets", "ms",
                 "q1 .. q3", "floor ms", "", "of floor", "GB/s", "TFLOP/s");
}

void bench_print_row(const bench_row *row)
{
    const double ms = row->times.median;
    (void)printf("%7" PRId64 " %7.1f %5" PRId64 " %10.4g %9.4g .. %8.4g ", row->tokens,
                 row->experts_hit, row->sets, ms, row->times.q1, row->times.q3);
    if (row->floor_kind != NULL) {
        (void)printf("%10.4g %4s %7.1f%% ", row->floor_ms, row->floor_kind, row->percent);
    } else {
        (void)printf("%10s %4s %8s ", "-", "", "-");
    }
    if (row->work.bytes > 0) {
        (void)printf("%9.1f %9.4g", 1e-6 * row->work.bytes / ms,
                     1e-9 * (row->work.flops[0] + row->work.flops[1]) / ms);
    } else {
        (void)printf("%9s %9s", "-", "-");
    }
    if (row->error >= 0) {
        (void)printf("  error %.2e", row->error);
    }
    (void)printf("\n");
    (void)fflush(stdout); // rows of large layers come slowly
}

// ---- JSON --------------------------------------------------------------------------------------

json_t *bench_text_json(const char *string)
{
    json_t *value = json_string(string);
    return value != NULL ? value : json_string("(not UTF-8)");
}

static void cpu_model(char *model, size_t capacity)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    (void)snprintf(model, capacity, "unknown");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            (void)snprintf(model, capacity, "%.*s", (int)strcspn(colon + 1, "\n") - 1, colon + 2);
            break;
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
}

static json_t *machine_json(const moe_context *ctx)
{
    char model[128];
    char device[256] = "";
    char used[128] = "";
    struct utsname system = {.machine = "unknown"};
    uint64_t isa = 0;
    cpu_model(model, sizeof model);
    (void)ctx->backend->probe(&isa, device, sizeof device);
    (void)uname(&system);
    if (ctx->backend->host_memory) { // what the context may use of it ($MOE_ISA)
        (void)moei_isa_text(ctx->isa, used, sizeof used);
    }
    return json_pack("{s:o, s:s, s:o, s:i, s:i, s:I, s:I, s:o, s:s}", "device",
                     bench_text_json(device), "isa", used, "cpu", bench_text_json(model), "cpus",
                     moei_cpu_count(), "threads", moe_context_num_threads(ctx), "last_level_cache",
                     (json_int_t)sysconf(_SC_LEVEL3_CACHE_SIZE), "memory",
                     (json_int_t)sysconf(_SC_PHYS_PAGES) * (json_int_t)sysconf(_SC_PAGESIZE),
                     "system", bench_text_json(system.release), "compiler", __VERSION__);
}

static json_t *ceilings_json(const bench_ceilings *ceilings, bool host)
{
    json_t *object = json_object();
    for (int i = 0; i < MOEI_NUM_CEILINGS; i++) {
        char key[32];
        const double unit = bench_ceiling_key((moei_ceiling)i, host, key, sizeof key);
        if (ceilings->per_second[i] > 0) {
            (void)json_object_set_new(object, key, json_real(ceilings->per_second[i] * unit));
        }
    }
    return object;
}

json_t *bench_real_or_null(bool known, double value)
{
    return known ? json_real(value) : json_null();
}

// The arithmetic class of a product's row, where that is the one that runs.
static int add_class(void *classes, const moe_support *support)
{
    if (support->chosen != 0 && support->arith[0] != '\0' &&
        (strcmp(support->step, "gate_up") == 0 || strcmp(support->step, "down") == 0)) {
        (void)json_array_append_new(classes, json_string(support->arith));
    }
    return 0;
}

// What the layer computes. Null where routing is all that ran.
static json_t *layer_json(const bench_request *request, const bench_layer *layer)
{
    const moe_layer_desc *d = &layer->desc;
    const bool whole = !request->routing_only;
    json_t *formats = whole ? json_array() : NULL;
    json_t *quantisers = whole ? json_array() : NULL;
    json_t *classes = whole ? json_array() : NULL;
    if (whole) {
        (void)moe_query_support(layer->ctx, d, add_class, classes);
    }
    for (int g = 0; g < 2 && whole; g++) {
        (void)json_array_append_new(formats,
                                    json_string(moe_format_name(d->gemm[g].weight_format)));
        (void)json_array_append_new(quantisers,
                                    json_string(d->gemm[g].act.spec == MOE_QUANT_NONE
                                                    ? "none"
                                                    : moe_quant_name(d->gemm[g].act.spec)));
    }
    return json_pack("{s:o, s:I, s:I, s:i, s:i, s:s, s:b, s:o?, s:o?, s:s?, s:s?, s:o?, s:s?}",
                     "shape", bench_text_json(request->shape), "hidden", (json_int_t)d->hidden,
                     "inter", (json_int_t)d->inter, "experts", (int)d->num_experts, "top_k",
                     (int)d->top_k, "routing", request->zipf ? "zipf" : "uniform", "routing_only",
                     (int)request->routing_only, "format", formats, "activation", quantisers, "glu",
                     whole ? moe_activation_name(d->activation) : NULL, "x",
                     whole ? moe_dtype_name(d->x_dtype) : NULL, "arith", classes, "level",
                     whole ? cli_level_name(moe_plan_level(layer->plan)) : NULL);
}

// Where a row comes from.
static json_t *origin_json(const bench_request *request, const moe_context *ctx,
                           const bench_ceilings *ceilings)
{
    return json_pack(
        "{s:o, s:s, s:o, s:s, s:s?, s:I, s:o}", "ceilings",
        ceilings_json(ceilings, ctx->backend->host_memory), "device", ctx->backend->name, "machine",
        machine_json(ctx), "version", moe_version_string(), "commit",
#ifdef MOE_COMMIT
        MOE_COMMIT,
#else
        NULL,
#endif
        "seed", (json_int_t)request->seed, "command", bench_text_json(request->command));
}

json_t *bench_whole_row(json_t *what, json_t *measured, const bench_request *request,
                        const moe_context *ctx, const bench_ceilings *ceilings)
{
    json_t *origin = origin_json(request, ctx, ceilings);
    if (what == NULL || measured == NULL || origin == NULL ||
        json_object_update(what, measured) != 0 || json_object_update(what, origin) != 0) {
        (void)fprintf(stderr, "moe: no memory for a row of JSON\n");
        json_decref(what);
        what = NULL;
    }
    json_decref(measured);
    json_decref(origin);
    return what;
}

json_t *bench_row_json(const bench_request *request, const bench_layer *layer,
                       const bench_ceilings *ceilings, const bench_row *row)
{
    const bool known = row->floor_kind != NULL;
    const bool whole = !request->routing_only;
    json_t *object = layer_json(request, layer);
    json_t *measured = json_pack(
        "{s:I, s:I, s:i, s:f, s:f, s:f, s:f, s:o, s:s?, s:o, s:f, s:o, s:o, s:o, s:O}", "tokens",
        (json_int_t)row->tokens, "sets", (json_int_t)row->sets, "repeats", row->repeats, "ms",
        row->times.median, "ms_q1", row->times.q1, "ms_q3", row->times.q3, "ms_mean",
        row->times.mean, "floor_ms", bench_real_or_null(known, row->floor_ms), "floor_kind",
        row->floor_kind, "percent_of_floor", bench_real_or_null(known, row->percent), "experts_hit",
        row->experts_hit, "bytes", bench_real_or_null(whole, row->work.bytes), "flops",
        bench_real_or_null(whole, row->work.flops[0] + row->work.flops[1]), "error",
        bench_real_or_null(row->error >= 0, row->error), "kernels", row->kernels);
    return bench_whole_row(object, measured, request, layer->ctx, ceilings);
}

static bool put_rows(FILE *file, void *arg)
{
    const json_t *rows = arg;
    bool good = fputs("{\"rows\": [\n", file) >= 0;
    for (size_t i = 0; i < json_array_size(rows) && good; i++) {
        good = json_dumpf(json_array_get(rows, i), file, JSON_REAL_PRECISION(9)) == 0 &&
               fputs(i + 1 < json_array_size(rows) ? ",\n" : "\n", file) >= 0;
    }
    return good && fputs("]}\n", file) >= 0;
}

int bench_write_json(const char *path, const json_t *rows)
{
    void *arg = (void *)(uintptr_t)rows;
    if (strcmp(path, "-") == 0) {
        return put_rows(stdout, arg) ? CLI_OK : CLI_FAILED;
    }
    const moe_status status = moei_write_whole("moe bench --json", path, put_rows, arg);
    return status == MOE_OK ? CLI_OK : cli_failed(status);
}
