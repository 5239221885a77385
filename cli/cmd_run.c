// SPDX-License-Identifier: Apache-2.0
// moe run: one layer of a checkpoint on the tokens of a safetensors file.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "model/device.h"

/// What the command line asks for.
struct request {
    const char *dir, *layer, *input, *output, *logits, *ids, *weights, *device, *threads;
    bool no_mmap, json;
};

/// A run: what was opened, and what it computes. Everything is released by close_run.
struct run {
    moe_context *ctx;    // of the CPU
    moe_context *device; // of the layer; NULL: it runs on ctx
    cli_model model;
    moe_file *input;
    moe_checkpoint_layer *layer;
    moe_plan *plan;
    moem_weights weights;
    void *workspace, *outputs;
    size_t workspace_bytes;
    moem_room room; // of the tensors and the workspace on the device
    moe_layer_desc desc;
    moe_tensor x, y, logits, ids, weights_in, ids_out, weights_out;
    bool given; // ids and weights
    int64_t tokens;
};

static void close_run(struct run *r)
{
    moem_weights_free(&r->weights);
    moe_plan_destroy(r->plan);
    moe_checkpoint_layer_close(r->layer);
    moe_file_close(r->input);
    cli_model_close(&r->model);
    moem_room_free(&r->room);
    moe_context_destroy(r->device);
    moe_context_destroy(r->ctx);
    free(r->workspace);
    free(r->outputs);
}

static void *aligned(size_t bytes, size_t align)
{
    const size_t a = align < 64 ? 64 : align;
    void *p = bytes > SIZE_MAX - 2 * a ? NULL : aligned_alloc(a, (bytes + a) / a * a);
    if (p == NULL) {
        (void)fprintf(stderr, "moe: no memory for %zu bytes\n", bytes);
    }
    return p;
}

static bool failed(moe_status status, int *code)
{
    if (status != MOE_OK) {
        *code = cli_failed(status);
    }
    return status != MOE_OK;
}

static bool wrong(const char *option, const char *name, const moe_tensor *t, const char *want)
{
    (void)fprintf(stderr, "moe: %s: the tensor \"%s\" is %s of %d dimensions", option, name,
                  moe_dtype_name(t->dtype), (int)t->ndim);
    for (int i = 0; i < t->ndim; i++) {
        (void)fprintf(stderr, "%s%" PRId64, i == 0 ? ", [" : ", ", t->shape[i]);
    }
    (void)fprintf(stderr, "%s, must be %s\n", t->ndim > 0 ? "]" : "", want);
    return false;
}

// FILE or FILE:NAME. Without a name, the only tensor, or "x".
static bool open_input(struct run *r, const struct request *q, int *code)
{
    char path[CLI_PATH_BYTES];
    const char *colon = strrchr(q->input, ':');
    const char *name = "x";
    const uint32_t flags = q->no_mmap ? MOE_FILE_NO_MMAP : MOE_FILE_DEFAULT;
    (void)snprintf(path, sizeof path, "%.*s",
                   colon != NULL ? (int)(colon - q->input) : (int)strlen(q->input), q->input);
    if (failed(moe_file_open(path, flags, &r->input), code)) {
        return false;
    }
    if (colon != NULL) {
        name = colon + 1;
    } else if (moe_file_count(r->input) == 1) {
        name = moe_file_name(r->input, 0);
    }
    if (failed(moe_file_tensor(r->input, name, &r->x), code)) {
        return false;
    }
    *code = CLI_FAILED;
    if (r->x.ndim != 2 || r->x.shape[1] != r->desc.hidden ||
        (r->x.dtype != MOE_F32 && r->x.dtype != MOE_BF16 && r->x.dtype != MOE_F16)) {
        char want[96];
        (void)snprintf(want, sizeof want, "f32, bf16 or f16 [tokens, %" PRId64 "]", r->desc.hidden);
        return wrong("--input", name, &r->x, want);
    }
    r->tokens = r->x.shape[0];
    return true;
}

// A tensor of the input file with a row for each token.
static bool find_rows(struct run *r, const char *option, const char *name, int64_t columns,
                      moe_tensor *out, int *code)
{
    if (name == NULL) {
        return true;
    }
    if (failed(moe_file_tensor(r->input, name, out), code)) {
        return false;
    }
    *code = CLI_FAILED;
    if (out->ndim != 2 || out->shape[0] != r->tokens || out->shape[1] != columns) {
        char want[96];
        (void)snprintf(want, sizeof want, "[%" PRId64 ", %" PRId64 "]", r->tokens, columns);
        return wrong(option, name, out, want);
    }
    return true;
}

static int64_t router_rows(const moe_layer_desc *d)
{
    return d->num_experts + d->route.zero_experts + d->route.shared_scores;
}

static bool open_layer(struct run *r, const struct request *q, int64_t index, int *code)
{
    r->desc = moe_layer_desc_default();
    return !failed(moe_checkpoint_layer_open(r->model.checkpoint, r->model.config,
                                             r->model.config_size, (int32_t)index, &r->layer),
                   code) &&
           !failed(moe_checkpoint_layer_desc(r->layer, &r->desc), code) && open_input(r, q, code);
}

// Routing as asked for: by the router, by given logits, or given.
static bool settle_routing(struct run *r, const struct request *q, int *code)
{
    moe_layer_desc *d = &r->desc;
    d->x_dtype = r->x.dtype;
    d->max_tokens = r->tokens;
    if (!find_rows(r, "--logits", q->logits, router_rows(d), &r->logits, code) ||
        !find_rows(r, "--ids", q->ids, d->top_k, &r->ids, code) ||
        !find_rows(r, "--weights", q->weights, d->top_k, &r->weights_in, code)) {
        return false;
    }
    r->given = q->ids != NULL;
    if (r->given) {
        d->routing = MOE_ROUTING_GIVEN;
        d->route = (moe_route_desc){0};
        d->ids_dtype = r->ids.dtype;
        d->weights_dtype = r->weights_in.dtype;
    } else if (d->route.hash_table != 0) {
        (void)fprintf(stderr, "moe: layer %s routes by token ids; give --ids and --weights\n",
                      q->layer);
        *code = CLI_UNSUPPORTED;
        return false;
    }
    if (!r->given) {
        d->logits_dtype = r->logits.data != NULL ? r->logits.dtype : MOE_F32;
    }
    return true;
}

// Outputs in one block of memory.
static bool make_outputs(struct run *r)
{
    const moe_layer_desc *d = &r->desc;
    const size_t t = (size_t)r->tokens;
    const size_t y = (t * (size_t)d->hidden * 4 + 63) / 64 * 64;
    const size_t k = (t * (size_t)d->top_k * 4 + 63) / 64 * 64;
    const size_t logits = t * (size_t)router_rows(d) * 4;
    char *base = r->outputs = aligned(y + 2 * k + logits, 64);
    if (base == NULL) {
        return false;
    }
    r->y = moe_tensor_2d(base, d->x_dtype, r->tokens, d->hidden);
    r->ids_out = moe_tensor_2d(base + y, MOE_I32, r->tokens, d->top_k);
    r->weights_out = moe_tensor_2d(base + y + k, MOE_F32, r->tokens, d->top_k);
    if (r->logits.data == NULL && !r->given) {
        r->logits = moe_tensor_2d(base + y + 2 * k, MOE_F32, r->tokens, router_rows(d));
    }
    return true;
}

// logits = x W^T + bias in f32.
static moe_status compute_logits(const struct run *r, const moe_router_tensors *router)
{
    moe_ggemm_args args = {.struct_size = sizeof args};
    const moe_dtype type = router->weight.dtype;
    args.gemm.weight_format = type == MOE_F32    ? MOE_FORMAT_F32
                              : type == MOE_BF16 ? MOE_FORMAT_BF16
                                                 : MOE_FORMAT_F16;
    args.gemm.bias = router->bias.data != NULL;
    args.weights.values = router->weight;
    args.weights.bias = router->bias;
    args.x = r->x;
    args.y = r->logits;
    return moe_ggemm(r->ctx, &args, NULL);
}

static bool load(struct run *r, int *code)
{
    size_t align = 0;
    if (failed(moe_plan_create(r->device != NULL ? r->device : r->ctx, &r->desc, &r->plan), code) ||
        failed(moem_weights_load(r->device, r->layer, r->plan, &r->weights), code) ||
        failed(moe_plan_workspace(r->plan, r->tokens, &r->workspace_bytes, &align), code)) {
        return false;
    }
    *code = CLI_FAILED;
    r->workspace = r->device != NULL ? NULL : aligned(r->workspace_bytes, align);
    return r->device != NULL || r->workspace != NULL;
}

static moe_status run_layer(struct run *r, const moe_run_args *args)
{
    if (r->device == NULL) {
        return moe_run(r->plan, r->weights.weights, args, r->workspace, r->workspace_bytes, NULL);
    }
    const moe_status status = moem_room_create(r->device, args, r->workspace_bytes, &r->room);
    return status != MOE_OK ? status : moem_room_run(&r->room, r->plan, r->weights.weights, args);
}

static bool compute(struct run *r, bool logits_given, int *code)
{
    moe_router_tensors router;
    moe_run_args args = moe_run_args_default();
    if (failed(moe_checkpoint_layer_router(r->layer, &router), code) ||
        (!r->given && !logits_given && failed(compute_logits(r, &router), code))) {
        return false;
    }
    args.num_tokens = r->tokens;
    args.x = r->x;
    args.out = r->y;
    if (r->given) {
        args.ids = r->ids;
        args.weights = r->weights_in;
    } else {
        args.logits = r->logits;
        args.correction_bias = router.correction_bias;
        args.scale_tensor = router.scale_tensor;
        args.out_ids = r->ids_out;
        args.out_weights = r->weights_out;
    }
    return !failed(run_layer(r, &args), code);
}

static bool write_output(const struct run *r, const struct request *q, int *code)
{
    const moe_file_entry entries[] = {{"y", r->y},
                                      {"ids", r->given ? r->ids : r->ids_out},
                                      {"weights", r->given ? r->weights_in : r->weights_out},
                                      {"logits", r->logits}};
    const moe_file_pair metadata[] = {{"layer", q->layer},
                                      {"dialect", moe_checkpoint_layer_dialect(r->layer)}};
    return !failed(moe_file_write(q->output, entries, r->given ? 3 : 4, metadata, 2), code);
}

static void report(const struct run *r, const struct request *q)
{
    const char *dialect = moe_checkpoint_layer_dialect(r->layer);
    if (q->json) {
        (void)printf("{\"layer\": %lld, \"dialect\": \"%s\", \"tokens\": %" PRId64
                     ", \"hidden\": %" PRId64 ", \"dtype\": \"%s\", \"in_place\": %s, "
                     "\"threads\": %d, \"output\": ",
                     strtoll(q->layer, NULL, 10), dialect, r->tokens, r->desc.hidden,
                     moe_dtype_name(r->y.dtype), r->weights.memory == NULL ? "true" : "false",
                     moe_context_num_threads(r->ctx));
        cli_json_string(q->output);
        (void)printf("}\n");
        return;
    }
    (void)printf("layer %s (%s): y %s [%" PRId64 ", %" PRId64 "], ids and weights [%" PRId64
                 ", %d]%s in %s\n",
                 q->layer, dialect, moe_dtype_name(r->y.dtype), r->tokens, r->desc.hidden,
                 r->tokens, (int)r->desc.top_k, r->given ? "" : ", logits", q->output);
}

static bool usable(const struct request *q, int64_t *index)
{
    const struct {
        const char *name, *value;
    } needed[] = {
        {"DIR", q->dir}, {"--layer", q->layer}, {"--input", q->input}, {"--output", q->output}};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (needed[i].value == NULL) {
            (void)fprintf(stderr, "moe: %s is missing\n", needed[i].name);
            return false;
        }
    }
    if ((q->ids == NULL) != (q->weights == NULL) || (q->ids != NULL && q->logits != NULL)) {
        (void)fprintf(stderr, "moe: give --logits, or --ids and --weights, or neither\n");
        return false;
    }
    return cli_number("--layer", q->layer, 0, INT32_MAX, index);
}

int cmd_run(int argc, char **argv)
{
    struct request q = {0};
    struct run r = {0};
    int64_t index = 0;
    int count = 0;
    int code = CLI_FAILED;
    const cli_option options[] = {{"layer", &q.layer, NULL},
                                  {"input", &q.input, NULL},
                                  {"output", &q.output, NULL},
                                  {"logits", &q.logits, NULL},
                                  {"ids", &q.ids, NULL},
                                  {"weights", &q.weights, NULL},
                                  {"device", &q.device, NULL},
                                  {"threads", &q.threads, NULL},
                                  {"no-mmap", NULL, &q.no_mmap},
                                  {"json", NULL, &q.json},
                                  {NULL, NULL, NULL}};
    if (!cli_parse(argc, argv, options, &q.dir, 1, &count) || !usable(&q, &index)) {
        return CLI_USAGE;
    }
    moe_device_type device = MOE_DEVICE_CPU;
    if (q.device != NULL && !cli_device(q.device, &device)) {
        return CLI_USAGE;
    }
    r.ctx = cli_context(q.threads, NULL, &code);
    if (r.ctx == NULL) {
        return code;
    }
    code = CLI_FAILED;
    const uint32_t flags = q.no_mmap ? MOE_FILE_NO_MMAP : MOE_FILE_DEFAULT;
    if (!failed(moem_device_open(r.ctx, device, &r.device), &code) &&
        cli_model_open(q.dir, flags, &r.model) && open_layer(&r, &q, index, &code) &&
        settle_routing(&r, &q, &code) && make_outputs(&r) && load(&r, &code) &&
        compute(&r, q.logits != NULL, &code) && write_output(&r, &q, &code)) {
        report(&r, &q);
        code = CLI_OK;
    }
    close_run(&r);
    return code;
}
