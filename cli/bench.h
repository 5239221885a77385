// SPDX-License-Identifier: Apache-2.0
// Parts of moe bench: the layer (bench_layer.c), its inputs (bench_sets.c), clocks and ceilings
// (bench_measure.c), the error (bench_error.c), figures (bench_figures.c), tables and JSON
// (bench_report.c); a whole model (bench_model.c); results read again (bench_results.c), compared
// (bench_compare.c), drawn (bench_plot.c).
#ifndef MOE_CLI_BENCH_H
#define MOE_CLI_BENCH_H

#include <jansson.h>

#include "checkmoe/checkmoe.h"
#include "cli.h"
#include "io/json.h"
#include "ops/backend.h"

#define BENCH_MAX_ROWS    32
#define BENCH_MAX_EXPERTS 8  // different ones on the host; the layer's repeat them
#define BENCH_MAX_SETS    64 // that are chosen; --sets may ask for more

/// What the command line asks for.
typedef struct bench_request {
    const char *shape, *device, *threads, *json, *command;
    const char *model, *activation; // a whole model: its folder; as given, NULL if not
    int64_t context;                // of a model, before a row's tokens; -1: chosen
    moe_layer_desc desc;            // but max_tokens
    int64_t tokens[BENCH_MAX_ROWS];
    int num_rows;
    bool zipf, routing_only, error;
    bool ceilings;         // measured beside a layer, for floors
    bool both_activations; // a CPU's integer products, too, where the weights allow them
    int64_t repeats, sets; // 0: chosen
    uint64_t seed;
} bench_request;

/// True after one line on stderr, with *code the exit code, where a call has failed.
static inline bool bench_failed(moe_status status, int *code)
{
    if (status != MOE_OK) {
        *code = cli_failed(status);
    }
    return status != MOE_OK;
}

/// Memory to be freed; NULL after one line on stderr.
void *bench_take(size_t bytes);

// ---- figures -----------------------------------------------------------------------------------

/// Milliseconds of one set.
typedef struct bench_times {
    double median, q1, q3, mean;
} bench_times;

/// Quartiles of `count` > 0 measurements of `sets` sets each; sorts `seconds`.
bench_times bench_quartiles(double *seconds, int count, int64_t sets);

/// What a layer has to do at least, and what the device can do at most.
typedef struct bench_work {
    double bytes;    // read and written
    double flops[2]; // of each product
    double read;     // bytes per second; 0: not known
    double peak[2];  // operations per second for each product; 0: not known
} bench_work;

/// Milliseconds below which the layer cannot run; *kind says for what: "mem" or "mma". 0: not
/// known, and *kind NULL.
double bench_floor(const bench_work *work, const char **kind);

/// floor / ms * 100; 0 where the floor is not known.
double bench_percent(double floor_ms, double ms);

/// ms of B over ms of A, and the interval that their quartiles span.
typedef struct bench_ratio {
    double value, low, high;
} bench_ratio;
bench_ratio bench_compare_times(bench_times a, bench_times b);

// ---- the layer and its data --------------------------------------------------------------------

/// One random expert on the host.
typedef struct bench_expert {
    moe_weights_source source;
    void *blocks[2][3]; // of each product: values, scales, bias
    float scale2[2];
} bench_expert;

typedef struct bench_layer {
    moe_context *ctx;  // of the device
    moe_context *host; // of the CPU: routes for the counts; the same where ctx is of the CPU
    moe_layer_desc desc;
    moe_plan *plan;
    moe_weights *weights;
    void *memory, *workspace;
    size_t memory_bytes, workspace_bytes;
    bench_expert experts[BENCH_MAX_EXPERTS];
    int32_t num_experts;     // of those
    double bytes_per_expert; // as stored: values, scales, biases
} bench_layer;

/// One input with room for its output, in memory of the device.
typedef struct bench_set {
    void *memory;
    size_t bytes;
    moe_run_args run;
    moe_route_args route; // routing alone
    moe_sort_args sort;
    int32_t experts_hit;
} bench_set;

typedef struct bench_sets {
    bench_layer *layer;
    bench_set *sets;
    int64_t count;
    double experts_hit; // of a set, on average
    bool routing_only;
} bench_sets;

/// Makes the plan for up to max_tokens, and weights with which outputs are about 1. False after one
/// line on stderr; *code is the exit code.
bool bench_layer_open(const bench_request *request, int64_t max_tokens, bench_layer *layer,
                      int *code);
void bench_layer_close(bench_layer *layer);

/// Row n of the g-th matrix of an expert, dequantised, and its bias; returns the row's length.
int64_t bench_expert_row(const bench_layer *layer, int32_t e, int g, int64_t n, double *values,
                         double *bias);

/// The layer's routing, on the host: ids and weights [tokens, top_k].
moe_status bench_route(const bench_layer *layer, int64_t tokens, const float *logits, int32_t *ids,
                       float *weights);

/// Draws the sets of a row; likewise.
bool bench_sets_make(const bench_request *request, bench_layer *layer, int64_t tokens,
                     bench_sets *out, int *code);
void bench_sets_free(bench_sets *sets);

/// Bytes of an expert as a checkpoint stores it: values, scales, biases.
double bench_expert_bytes(const moe_layer_desc *desc);

/// Runs all sets (a bench_sets), one after the other; what bench_time measures.
moe_status bench_enqueue(void *arg, void *stream);

// ---- measuring ---------------------------------------------------------------------------------

/// By moei_ceiling; 0: the device cannot say.
typedef struct bench_ceilings {
    double per_second[MOEI_NUM_CEILINGS];
} bench_ceilings;

/// False after one line on stderr where the backend has no clock and its calls do not wait.
bool bench_can_time(const moe_context *ctx, int *code);

bool bench_measure_ceilings(const moe_context *ctx, bench_ceilings *out, int *code);

/// A row's ceilings: a device's serve all rows; of a host, which others use besides, the higher of
/// those before and after it. `last` becomes the latter.
bool bench_raise_ceilings(const moe_context *ctx, bench_ceilings *last, bench_ceilings *of_row,
                          int *code);

/// Counts of each kernel's runs; NULL after one line on stderr. To be freed.
uint64_t *bench_runs(const moei_backend *backend);

/// The names of the rows that have run since.
json_t *bench_kernels_since(const moei_backend *backend, const uint64_t *runs);

/// The key of a ceiling in JSON; the unit that its value is in, times operations or bytes a second.
double bench_ceiling_key(moei_ceiling which, bool host, char *key, size_t capacity);

/// The ceiling that products of a descriptor have; MOEI_NUM_CEILINGS: not known.
moei_ceiling bench_peak_of(const bench_ceilings *ceilings, const moe_layer_desc *desc, int gemm,
                           bool host);

/// Seconds that all sets take, `repeats` times (0: as many as a short while allows). *seconds is to
/// be freed.
bool bench_time(bench_sets *sets, int64_t repeats, double **seconds, int *count, int *code);

/// |out - reference| / |reference| of the first set, which has run: the layer in float64 on the
/// dequantised weights, nothing rounded in between.
#define BENCH_ERROR_TOKENS 8 // at most, since a host takes seconds for more
bool bench_error(const bench_sets *sets, double *error, int *code);

// ---- reports -----------------------------------------------------------------------------------

typedef struct bench_row {
    int64_t tokens, sets;
    int repeats;
    double experts_hit, error; // error < 0: not computed
    bench_times times;
    bench_work work;
    double floor_ms, percent;
    const char *floor_kind; // NULL: not known
    json_t *kernels;        // names of the rows that ran
} bench_row;

void bench_print_head(const bench_request *request, const bench_layer *layer,
                      const bench_ceilings *ceilings);
void bench_print_row(const bench_row *row);

/// A row as JSON; NULL where memory is short.
json_t *bench_row_json(const bench_request *request, const bench_layer *layer,
                       const bench_ceilings *ceilings, const bench_row *row);

/// A row of a file: what was measured of what, and where it comes from. Takes both over; NULL, with
/// a line on stderr: no memory.
json_t *bench_whole_row(json_t *what, json_t *measured, const bench_request *request,
                        const moe_context *ctx, const bench_ceilings *ceilings);

/// What is not known is null.
json_t *bench_real_or_null(bool known, double value);

/// A string of the machine or of the command line, which need not be UTF-8.
json_t *bench_text_json(const char *string);

/// Writes rows to a file whole or not at all ("-": to standard output).
int bench_write_json(const char *path, const json_t *rows);

/// A file that bench_write_json wrote.
typedef struct bench_results {
    char *text;
    moei_json doc;
    const json_t *rows;
} bench_results;

/// False after one line on stderr; to be closed either way.
bool bench_results_open(const char *path, bench_results *out);
void bench_results_close(bench_results *r);

/// moe bench --model DIR: appends a row for each number of tokens. False after one line on stderr.
bool bench_model(const bench_request *request, json_t *rows, int *code);

/// moe bench --compare A B
int bench_compare(const char *a, const char *b);

/// moe bench --plot SVG FILE...: time over tokens (or threads), and the roofline.
int bench_plot(const char *svg, const char *const *files, int count);

#endif
