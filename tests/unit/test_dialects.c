// SPDX-License-Identifier: Apache-2.0
// Every dialect: the layer that is loaded gives, bit for bit, what the same weights give when they
// are packed from canonical form. Each convention taken the other way round must show in the
// output, which proves that the comparison would see it.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dialects/cases.h"
#include "moe/io.h"
#include "packed_rows.h"
#include "st_image.h"
#include "test.h"

#define TOKENS 5
#define SINGLE "model.safetensors"
#define INDEX  "model.safetensors.index.json"

/// Inputs and outputs of one run.
struct io {
    float x[TOKENS * 256], logits[TOKENS * 8], y[TOKENS * 256];
};

static moe_context *ctx;   // of the next run: one of the following
static moe_context *host;  // canonical weights
static moe_context packed; // weights in a packed layout
static gen_layer layer;
static gen_file file;

static void *aligned(size_t bytes, size_t align)
{
    void *p = aligned_alloc(align < 64 ? 64 : align, (bytes + 4095) / 4096 * 4096 + 4096);
    if (p == NULL) {
        abort();
    }
    return p;
}

static void make_config(const dialect_case *c, char *text, size_t size)
{
    (void)snprintf(text, size, "%s%s%s}", c->config,
                   c->quantization != NULL ? ",\"quantization_config\":" : "",
                   c->quantization != NULL ? c->quantization : "");
}

static void fill_io(struct io *io, uint64_t seed)
{
    for (size_t i = 0; i < COUNT(io->x); i++) {
        io->x[i] = (float)((double)(gen_random(&seed) >> 40) / (1 << 23) - 1.0);
    }
    for (size_t i = 0; i < COUNT(io->logits); i++) {
        io->logits[i] = (float)((double)(gen_random(&seed) >> 40) / (1 << 23) - 1.0);
    }
    memset(io->y, 0, sizeof io->y);
}

static moe_status run(const moe_plan *plan, const moe_weights *weights, const moe_layer_desc *d,
                      struct io *io)
{
    size_t bytes = 0;
    size_t align = 0;
    moe_run_args args = moe_run_args_default();
    moe_status status = moe_plan_workspace(plan, TOKENS, &bytes, &align);
    if (status != MOE_OK) {
        return status;
    }
    void *workspace = aligned(bytes, align);
    args.num_tokens = TOKENS;
    args.x = moe_tensor_2d(io->x, MOE_F32, TOKENS, d->hidden);
    args.logits = moe_tensor_2d(io->logits, MOE_F32, TOKENS, d->num_experts);
    args.out = moe_tensor_2d(io->y, MOE_F32, TOKENS, d->hidden);
    if (d->route.correction_bias != 0) {
        args.correction_bias = moe_tensor_1d(layer.correction, MOE_F32, d->num_experts);
    }
    status = moe_run(plan, weights, &args, workspace, bytes, NULL);
    free(workspace);
    return status;
}

static void set_caller(moe_layer_desc *d)
{
    d->x_dtype = MOE_F32;
    d->max_tokens = TOKENS;
}

// The reference: the configuration's layer with the case's formats, packed from canonical weights.
static moe_status run_canonical(const dialect_case *c, const char *config, struct io *io)
{
    moe_layer_desc d = moe_layer_desc_default();
    moe_weights_source source;
    moe_plan *plan = NULL;
    moe_weights *weights = NULL;
    size_t bytes = 0;
    size_t align = 0;
    moe_status status = moe_layer_desc_from_config_layer(config, strlen(config), 0, &d);
    set_caller(&d);
    d.transposed = 0;
    d.gate_up = c->shape.gated ? MOE_GATE_FIRST : MOE_GATE_UP_UNSET;
    for (int g = 0; g < 2; g++) {
        d.gemm[g].weight_format = c->shape.format;
        d.gemm[g].weight_scale_dtype = c->shape.scale_dtype;
        d.gemm[g].weight_group = c->shape.group;
        d.gemm[g].zero_points = c->shape.zeros;
        d.shared.gemm[g].weight_format = c->shape.shared_format;
        d.shared.gemm[g].weight_scale_dtype = c->shape.shared_scale_dtype;
    }
    gen_source(&layer, &source);
    if (status == MOE_OK) {
        status = moe_plan_create(ctx, &d, &plan);
    }
    if (status == MOE_OK) {
        status = moe_weights_bytes(plan, &bytes, &align);
    }
    void *memory = status == MOE_OK ? aligned(bytes, align) : NULL;
    if (status == MOE_OK) {
        status = moe_weights_create(plan, memory, bytes, &weights);
    }
    if (status == MOE_OK) {
        status = moe_weights_pack(weights, 0, &source);
    }
    if (status == MOE_OK) {
        status = run(plan, weights, &d, io);
    }
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    free(memory);
    return status;
}

/// What opening and loading found.
struct loaded {
    char dialect[64], shared_dialect[64];
    int wraps; ///< as moe_checkpoint_layer_wraps says
    moe_layer_desc desc;
};

// Opens the folder's layer 0, loads it (packed even where it need not be, if `pack`) and runs it.
static moe_status run_loaded(const char *config, uint32_t flags, int pack, struct io *io,
                             struct loaded *found)
{
    moe_checkpoint *checkpoint = NULL;
    moe_checkpoint_layer *source = NULL;
    moe_plan *plan = NULL;
    moe_weights *weights = NULL;
    void *memory = NULL;
    size_t bytes = 0;
    size_t align = 0;
    moe_layer_desc d = moe_layer_desc_default();
    set_caller(&d);
    moe_status status = moe_checkpoint_open(folder, flags, &checkpoint);
    if (status == MOE_OK) {
        status = moe_checkpoint_layer_open(checkpoint, config, strlen(config), 0, &source);
    }
    if (status == MOE_OK) {
        const char *shared = moe_checkpoint_layer_shared_dialect(source);
        (void)snprintf(found->dialect, sizeof found->dialect, "%s",
                       moe_checkpoint_layer_dialect(source));
        (void)snprintf(found->shared_dialect, sizeof found->shared_dialect, "%s",
                       shared != NULL ? shared : "");
        status = moe_checkpoint_layer_desc(source, &d);
        found->desc = d;
    }
    if (status == MOE_OK) {
        status = moe_plan_create(ctx, &d, &plan);
    }
    if (status == MOE_OK) {
        status = moe_checkpoint_layer_bytes(source, plan, &bytes, &align);
    }
    if (status == MOE_OK) {
        status = moe_checkpoint_layer_wraps(source, plan, &found->wraps);
        CHECK(bytes > 0, "no bytes");
    }
    if (status == MOE_OK) {
        memory = pack || found->wraps == 0 ? aligned(bytes, align) : NULL;
        status = moe_checkpoint_layer_load(source, plan, memory, bytes, &weights);
    }
    if (status == MOE_OK) {
        status = run(plan, weights, &d, io);
    }
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    moe_checkpoint_layer_close(source);
    moe_checkpoint_close(checkpoint);
    free(memory);
    return status;
}

static void write_single(void)
{
    if (moe_file_write(in_folder(SINGLE), file.entries, file.count, NULL, 0) != MOE_OK) {
        (void)printf("writing: %s\n", moe_last_error());
        exit(1);
    }
}

// The same tensors over two shards, every other one in each, with an index.
static void write_sharded(void)
{
    static const char *const names[] = {"a.safetensors", "b.safetensors"};
    static char index[GEN_MAX_TENSORS * 300];
    size_t used = 0;
    used += (size_t)snprintf(index, sizeof index, "{\"weight_map\":{");
    for (size_t s = 0; s < 2; s++) {
        static moe_file_entry part[GEN_MAX_TENSORS];
        size_t count = 0;
        for (size_t i = s; i < file.count; i += 2) {
            part[count++] = file.entries[i];
            used += (size_t)snprintf(index + used, sizeof index - used, "%s\"%s\":\"%s\"",
                                     s + i > 0 ? "," : "", file.entries[i].name, names[s]);
        }
        CHECK(moe_file_write(in_folder(names[s]), part, count, NULL, 0) == MOE_OK, "%s",
              moe_last_error());
    }
    used += (size_t)snprintf(index + used, sizeof index - used, "}}");
    write_file(INDEX, index, used);
}

static void check_desc(const dialect_case *c, const struct loaded *found, bool in_place)
{
    const moe_layer_desc *d = &found->desc;
    for (int g = 0; g < 2; g++) {
        CHECK(d->gemm[g].weight_format == c->shape.format, "%s: format %s", c->name,
              moe_format_name(d->gemm[g].weight_format));
        CHECK(d->gemm[g].weight_scale_dtype == c->shape.scale_dtype, "%s: scales %s", c->name,
              moe_dtype_name(d->gemm[g].weight_scale_dtype));
        CHECK(d->gemm[g].weight_group == c->shape.group, "%s: group %d", c->name,
              (int)d->gemm[g].weight_group);
        CHECK(d->gemm[g].zero_points == c->shape.zeros, "%s: zero points", c->name);
        CHECK(d->gemm[g].bias == c->shape.bias, "%s: bias", c->name);
        CHECK(c->shape.shared_inter == 0 ||
                  d->shared.gemm[g].weight_format == c->shape.shared_format,
              "%s: shared format %s", c->name, moe_format_name(d->shared.gemm[g].weight_format));
    }
    CHECK(strcmp(found->dialect, c->dialect) == 0, "%s: is %s", c->name, found->dialect);
    CHECK(strcmp(found->shared_dialect, c->shared_dialect != NULL ? c->shared_dialect : "") == 0,
          "%s: shared experts are %s", c->name, found->shared_dialect);
    CHECK((found->wraps == 1) == in_place, "%s: %s", c->name,
          found->wraps ? "can be wrapped" : moe_last_error());
}

static void check_case(const dialect_case *c)
{
    static struct io expected;
    static struct io actual;
    struct loaded found;
    char config[2048];
    gen_make(&layer, &c->shape, 7);
    make_config(c, config, sizeof config);
    fill_io(&expected, 11);
    fill_io(&actual, 11);
    const moe_status canonical = run_canonical(c, config, &expected);
    CHECK(canonical == MOE_OK, "%s: canonical: %s", c->name, moe_last_error());
    gen_write(&layer, GEN_RIGHT, &file);
    for (int way = 0; way < 4; way++) {
        // Mapped and in place where that works; read and packed; for rows of a packed layout;
        // sharded.
        if (way < 3) {
            write_single();
        } else {
            remove_file(SINGLE);
            write_sharded();
        }
        memset(actual.y, 0, sizeof actual.y);
        ctx = way == 2 ? &packed : host;
        const moe_status status = run_loaded(config, way == 1 ? MOE_FILE_NO_MMAP : 0,
                                             way == 1 || way == 2, &actual, &found);
        ctx = host;
        if (CHECK(status == MOE_OK, "%s: %s", c->name, moe_last_error())) {
            check_desc(c, &found, c->in_place);
            CHECK(memcmp(expected.y, actual.y, sizeof actual.y) == 0,
                  "%s, way %d: the output differs from that of canonical weights", c->name, way);
        }
    }
    remove_file("a.safetensors");
    remove_file("b.safetensors");
    remove_file(INDEX);
    for (size_t i = 0; i < COUNT(c->wrong) && c->wrong[i] != GEN_RIGHT; i++) {
        gen_write(&layer, c->wrong[i], &file);
        write_single();
        const moe_status status = run_loaded(config, 0, 0, &actual, &found);
        CHECK(status == MOE_OK, "%s, wrong %d: %s", c->name, c->wrong[i], moe_last_error());
        CHECK(memcmp(expected.y, actual.y, sizeof actual.y) != 0,
              "%s: convention %d can be taken either way", c->name, c->wrong[i]);
    }
    remove_file(SINGLE);
    gen_free(&layer);
}

// What moe inspect says of numbers.
static void check_survey(void)
{
    static const float f32[] = {0.0f, -0.0f, 1.0f, -1.0f, 0x1p-70f, 0x1p30f};
    static const uint8_t e8m0[] = {0, 1, 127, 255, 254};
    static const uint8_t e4m3[] = {0x7F, 0xFF, 0x38, 0xB8, 0x00};
    static const uint16_t f16[] = {0x7C00, 0x7E00, 0xFC00, 0x3C00};
    static const struct {
        const void *data;
        moe_dtype dtype, element;
        int64_t n;
        moe_tensor_stats want; // count, NaN, infinite, negative, zero, outside
    } cases[] = {
        {f32, MOE_F32, 0, 6, {6, 0, 0, 1, 2, 2}},
        {e8m0, MOE_U8, MOE_E8M0, 5, {5, 1, 0, 0, 1, 2}},
        {e4m3, MOE_E4M3FN, 0, 5, {5, 2, 0, 1, 1, 0}},
        {f16, MOE_F16, 0, 4, {4, 1, 2, 1, 0, 0}},
        {f32, MOE_F32, 0, 0, {0, 0, 0, 0, 0, 0}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        moe_tensor_stats s = {0};
        const moe_tensor t = moe_tensor_1d(cases[i].data, cases[i].dtype, cases[i].n);
        CHECK(moe_tensor_survey(&t, cases[i].element, 0x1p-64f, 0x1p24f, &s) == MOE_OK, "%s",
              moe_last_error());
        CHECK(memcmp(&s, &cases[i].want, sizeof s) == 0,
              "case %zu: %d NaN, %d infinite, %d negative, %d zero, %d outside", i, (int)s.nan,
              (int)s.infinite, (int)s.negative, (int)s.zero, (int)s.outside);
    }
    moe_tensor_stats s = {0};
    moe_tensor t = moe_tensor_1d(e8m0, MOE_U8, 5);
    CHECK(moe_tensor_survey(&t, MOE_UINT4, 0, 1, &s) == MOE_E_DTYPE, "uint4");
    CHECK(moe_tensor_survey(&t, MOE_F32, 0, 1, &s) == MOE_E_DTYPE, "f32 in bytes");
    CHECK(moe_tensor_survey(NULL, 0, 0, 1, &s) == MOE_E_ARGUMENT, "NULL");
    t.shape[0] = 2;
    t.stride[0] = 2;
    CHECK(moe_tensor_survey(&t, MOE_E8M0, 0, 1, &s) == MOE_E_ARGUMENT, "a stride");
}

int main(void)
{
    moe_context_desc desc = moe_context_desc_default();
    desc.num_threads = 1;
    if (moe_context_create(&desc, &host) != MOE_OK) {
        (void)printf("%s\n", moe_last_error());
        return 1;
    }
    ctx = host;
    packed = *host;
    packed_rows_move(&packed, &packed_rows_make(host->backend)->backend);
    folder_make();
    for (size_t i = 0; i < NUM_DIALECT_CASES; i++) {
        check_case(&dialect_cases[i]);
    }
    check_survey();
    folder_remove();
    moe_context_destroy(host);
    return test_summary();
}
