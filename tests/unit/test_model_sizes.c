// SPDX-License-Identifier: Apache-2.0
// A checkpoint with the sizes of gpt-oss-20b and two layers: 4.7 GB, nearly all of it a hole in the
// file. Nothing of the experts is copied, and the few values that are not zero lie beyond 2^31 and
// 2^32 bytes, where a truncated offset would read zeros.
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/decoder.h"
#include "unit/test.h"

#define HIDDEN  2880
#define INTER   2880
#define EXPERTS 32
#define VOCAB   201088
#define HEADS   64
#define KV      8
#define DIM     64
#define LAYERS  2
#define GROUPS  (HIDDEN / 32)
#define ONE     0x3F80 // bf16
#define FILLER  1200000000
#define CONTEXT 131072
#define WINDOW  128
#define BATCH   4 // max_batch
#define LAST    (VOCAB - 1)
#define ANSWER  200999 // the token whose logit is made the largest

static char header[1 << 16];
static size_t header_size;
static int64_t data_size;
static int file = -1;
static int failed_writes;

/// Where a tensor begins, behind the header.
struct place {
    char name[96];
    int64_t at;
};
static struct place places[64];
static int num_places;

static void add(const char *name, const char *dtype, int64_t bytes_each, int ndim,
                const int64_t *shape)
{
    int64_t count = 1;
    char dims[128] = "";
    for (int i = 0; i < ndim; i++) {
        const size_t used = strlen(dims);
        (void)snprintf(dims + used, sizeof dims - used, "%s%lld", i > 0 ? "," : "",
                       (long long)shape[i]);
        count *= shape[i];
    }
    (void)snprintf(places[num_places].name, sizeof places[0].name, "%s", name);
    places[num_places++].at = data_size;
    header_size +=
        (size_t)snprintf(header + header_size, sizeof header - header_size,
                         "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lld,%lld]}",
                         header_size > 1 ? "," : "", name, dtype, dims, (long long)data_size,
                         (long long)(data_size + count * bytes_each));
    data_size += count * bytes_each;
}

static void add_bf16(const char *prefix, const char *name, int64_t rows, int64_t columns)
{
    char full[96];
    const int64_t shape[] = {rows, columns};
    (void)snprintf(full, sizeof full, "%s%s", prefix, name);
    add(full, "BF16", 2, columns > 0 ? 2 : 1, shape);
}

static void add_experts(const char *prefix, const char *name, int64_t rows)
{
    char full[96];
    const int64_t blocks[] = {EXPERTS, rows, GROUPS, 16};
    (void)snprintf(full, sizeof full, "%smlp.experts.%s_blocks", prefix, name);
    add(full, "U8", 1, 4, blocks);
    (void)snprintf(full, sizeof full, "%smlp.experts.%s_scales", prefix, name);
    add(full, "U8", 1, 3, blocks);
    (void)snprintf(full, sizeof full, "mlp.experts.%s_bias", name);
    add_bf16(prefix, full, EXPERTS, rows);
}

static void add_layer(int layer)
{
    char prefix[32];
    (void)snprintf(prefix, sizeof prefix, "model.layers.%d.", layer);
    add_bf16(prefix, "input_layernorm.weight", HIDDEN, 0);
    add_bf16(prefix, "post_attention_layernorm.weight", HIDDEN, 0);
    add_bf16(prefix, "self_attn.sinks", HEADS, 0);
    add_bf16(prefix, "self_attn.q_proj.weight", HEADS * DIM, HIDDEN);
    add_bf16(prefix, "self_attn.q_proj.bias", HEADS * DIM, 0);
    add_bf16(prefix, "self_attn.k_proj.weight", KV * DIM, HIDDEN);
    add_bf16(prefix, "self_attn.k_proj.bias", KV * DIM, 0);
    add_bf16(prefix, "self_attn.v_proj.weight", KV * DIM, HIDDEN);
    add_bf16(prefix, "self_attn.v_proj.bias", KV * DIM, 0);
    add_bf16(prefix, "self_attn.o_proj.weight", HIDDEN, HEADS * DIM);
    add_bf16(prefix, "self_attn.o_proj.bias", HIDDEN, 0);
    add_bf16(prefix, "mlp.router.weight", EXPERTS, HIDDEN);
    add_bf16(prefix, "mlp.router.bias", EXPERTS, 0);
    add_experts(prefix, "gate_up_proj", 2 * INTER);
    add_experts(prefix, "down_proj", HIDDEN);
}

static void put(const char *name, int64_t offset, const void *bytes, size_t size)
{
    for (int i = 0; i < num_places; i++) {
        if (strcmp(places[i].name, name) == 0) {
            const off_t at = (off_t)(8 + (int64_t)header_size + places[i].at + offset);
            failed_writes += pwrite(file, bytes, size, at) != (ssize_t)size;
            return;
        }
    }
    failed_writes++;
}

static void put_bf16(const char *name, int64_t element, uint16_t bits, int64_t count)
{
    uint16_t values[HIDDEN];
    for (int64_t i = 0; i < count; i++) {
        values[i] = bits;
    }
    put(name, 2 * element, values, (size_t)count * 2);
}

// x begins as a unit vector; layer 0 adds 4 to x[7] by a bias, layer 1 about 7 to x[9] through
// one code of expert 31.
static void put_values(void)
{
    static const uint8_t code = 2;    // e2m1 1.0, the even element's nibble
    static const uint8_t scale = 127; // 2^0
    put_bf16("model.embed_tokens.weight", (int64_t)LAST * HIDDEN, ONE, 1);
    put_bf16("model.norm.weight", 0, ONE, HIDDEN);
    put_bf16("lm_head.weight", 5 * HIDDEN, ONE, 1);
    put_bf16("lm_head.weight", (int64_t)(ANSWER - 1) * HIDDEN + 7, ONE, 1);
    put_bf16("lm_head.weight", (int64_t)ANSWER * HIDDEN + 9, ONE, 1);
    for (int layer = 0; layer < LAYERS; layer++) {
        char name[96];
        (void)snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
        put_bf16(name, 0, ONE, HIDDEN);
        (void)snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", layer);
        put_bf16(name, 0, ONE, HIDDEN);
        (void)snprintf(name, sizeof name, "model.layers.%d.mlp.router.bias", layer);
        put_bf16(name, 31, 0x41F0, 1); // 30: all of the weight on expert 31
    }
    put_bf16("model.layers.0.mlp.experts.down_proj_bias", 31 * HIDDEN + 7, 0x4080, 1);
    put_bf16("model.layers.1.mlp.experts.gate_up_proj_bias", (int64_t)31 * 2 * INTER, 0x40E0, 1);
    put("model.layers.1.mlp.experts.down_proj_blocks", ((int64_t)31 * HIDDEN + 9) * GROUPS * 16,
        &code, 1);
    put("model.layers.1.mlp.experts.down_proj_scales", ((int64_t)31 * HIDDEN + 9) * GROUPS, &scale,
        1);
}

// %lld: the context.
static const char config[] =
    "{\"model_type\":\"gpt_oss\",\"hidden_size\":2880,\"intermediate_size\":2880,"
    "\"num_local_experts\":32,\"num_experts_per_tok\":4,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":64,\"num_key_value_heads\":8,\"head_dim\":64,\"vocab_size\":201088,"
    "\"max_position_embeddings\":%lld,\"sliding_window\":128,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":150000,\"hidden_act\":\"silu\",\"swiglu_limit\":7.0,\"eos_token_id\":200002,"
    "\"attention_bias\":true,\"tie_word_embeddings\":false,"
    "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":32.0,\"beta_fast\":32.0,"
    "\"beta_slow\":1.0,\"original_max_position_embeddings\":4096,\"truncate\":false},"
    "\"quantization_config\":{\"quant_method\":\"mxfp4\"}}";

static bool write_config(const char *dir, int64_t context)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *out = fopen(path, "wb");
    const bool good = out != NULL && fprintf(out, config, (long long)context) > 0;
    return (out == NULL || fclose(out) == 0) && good;
}

// Writes the checkpoint; false with a reason printed where this file system cannot hold it.
static bool write_checkpoint(const char *path)
{
    struct stat status;
    unsigned char length[8];
    const int64_t filler[] = {FILLER};
    header[header_size++] = '{';
    add_bf16("", "model.embed_tokens.weight", VOCAB, HIDDEN);
    add_bf16("", "lm_head.weight", VOCAB, HIDDEN);
    add_bf16("", "model.norm.weight", HIDDEN, 0);
    add_layer(0);
    add("filler", "U8", 1, 1, filler); // moves layer 1 across 2^32
    add_layer(1);
    header[header_size++] = '}';
    while (header_size % 8 != 0) {
        header[header_size++] = ' ';
    }
    for (int i = 0; i < 8; i++) {
        length[i] = (unsigned char)(header_size >> (8 * i));
    }
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || pwrite(file, length, 8, 0) != 8 ||
        pwrite(file, header, header_size, 8) != (ssize_t)header_size ||
        ftruncate(file, (off_t)(8 + (int64_t)header_size + data_size)) != 0) {
        printf("SKIP: %s: no file of %lld bytes can be made here\n", path, (long long)data_size);
        return false;
    }
    put_values();
    if (fstat(file, &status) != 0 || status.st_blocks > (64 << 20) / 512) {
        printf("SKIP: %s: the file system has no holes\n", path);
        return false;
    }
    CHECK(failed_writes == 0, "%d values could not be written", failed_writes);
    CHECK(data_size > (int64_t)1 << 32, "%lld bytes", (long long)data_size);
    return true;
}

static long resident_kb(void)
{
    struct rusage usage;
    (void)getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

static void check_logits(const moem_model *model)
{
    moem_session *session = NULL;
    float *logits = malloc((size_t)VOCAB * sizeof *logits);
    const moem_input token = {LAST, 0, true};
    CHECK(moem_session_create(model, 1, 8, &session) == MOE_OK, "%s", moe_last_error());
    if (session == NULL || logits == NULL) {
        free(logits);
        return;
    }
    CHECK(moem_forward(session, &token, 1, logits) == MOE_OK, "%s", moe_last_error());
    // h = 7 sigmoid(1.702 * 7) (0 + 1); the norm divides all components by the same.
    const double h = 7 / (1 + exp(-1.702 * 7));
    CHECK(fabs((double)logits[ANSWER] / (double)logits[5] - h) < 1e-5 * h, "%g and %g",
          (double)logits[ANSWER], (double)logits[5]);
    CHECK(fabs((double)logits[ANSWER - 1] / (double)logits[5] - 4) < 1e-5 * 4, "%g",
          (double)logits[ANSWER - 1]);
    const double norm = sqrt((1 + 16 + h * h) / HIDDEN + 1e-5);
    CHECK(fabs((double)logits[5] * norm - 1) < 1e-5, "%g of %g", (double)logits[5], 1 / norm);
    for (int i = 0; i < EXPERTS; i++) {
        CHECK(moem_session_load(session)[EXPERTS + i] == (i < 3 || i == 31), "expert %d", i);
    }
    moem_session_destroy(session);
    free(logits);
}

static bool collect(void *self, int32_t request, int32_t id)
{
    int32_t **next = self;
    (void)request;
    *(*next)++ = id;
    return true;
}

static void check_text(const moem_model *model)
{
    const int32_t prompt[] = {LAST};
    int32_t ids[2] = {-1, -1};
    int32_t *next = ids;
    const moem_request request = {.prompt = prompt, .prompt_count = 1, .max_tokens = 2};
    CHECK(moem_generate(model, &request, 1, collect, &next, NULL, NULL) == MOE_OK, "%s",
          moe_last_error());
    CHECK(ids[0] == ANSWER && ids[1] == ANSWER, "%d, %d", (int)ids[0], (int)ids[1]);
}

// Bytes of address space that the process has, -1 where the system does not tell.
static int64_t address_space(void)
{
    long long pages = -1;
    FILE *stats = fopen("/proc/self/statm", "r");
    if (stats != NULL && fscanf(stats, "%lld", &pages) != 1) {
        pages = -1;
    }
    if (stats != NULL) {
        (void)fclose(stats);
    }
    return pages < 0 ? -1 : (int64_t)pages * sysconf(_SC_PAGESIZE);
}

// The whole context: 512 MB of keys and values for the full layer, a window for the sliding one.
// Memory is reserved, not touched.
static void check_context(const moem_model *model)
{
    moem_session *session = NULL;
    const int64_t row = 2 * (int64_t)KV * DIM * (int64_t)sizeof(float);
    const int64_t caches = (CONTEXT + WINDOW + BATCH - 1) * row;
    const int64_t before = address_space();
    const long resident = resident_kb();
    CHECK(moem_session_create(model, 1, CONTEXT, &session) == MOE_OK, "%s", moe_last_error());
    const int64_t grown = address_space() - before;
    if (before < 0) {
        printf("SKIP: size of the caches: no /proc/self/statm\n");
    } else {
        CHECK(grown >= caches && grown < caches + (64 << 20), "%lld bytes, expected %lld",
              (long long)grown, (long long)caches);
    }
    CHECK(resident_kb() - resident < 64 << 10, "%ld kB touched", resident_kb() - resident);
    moem_session_destroy(session);
    session = NULL;
    CHECK(moem_session_create(model, 1, CONTEXT + 1, &session) == MOE_E_LIMIT &&
              strstr(moe_last_error(), "131073 tokens exceed the model's context of 131072") !=
                  NULL &&
              session == NULL,
          "%s", moe_last_error());
}

// A context whose caches no address space holds: 2^40 tokens of 2 KiB a layer, beyond 32 and 47
// bits; a size cut to 32 bits would be 0.
static void check_beyond_memory(const char *dir, const moem_options *options)
{
    moem_model *model = NULL;
    moem_session *session = NULL;
    const int64_t context = (int64_t)1 << 40;
    if (CHECK(write_config(dir, context), "%s: cannot be written", dir) &&
        CHECK(moem_model_open(dir, options, &model) == MOE_OK, "%s", moe_last_error())) {
        CHECK(moem_session_create(model, 1, context, &session) == MOE_E_NO_MEMORY &&
                  strstr(moe_last_error(), "no memory for 1 sequences of 1099511627776 tokens") !=
                      NULL &&
                  session == NULL,
              "%s", moe_last_error());
    }
    moem_model_close(model);
}

int main(int argc, char **argv)
{
    char path[512];
    char config_path[512];
    const char *dir = argc > 1 ? argv[1] : ".";
    (void)mkdir(dir, 0700);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", dir);
    (void)snprintf(config_path, sizeof config_path, "%s/config.json", dir);
    if (CHECK(write_config(dir, CONTEXT), "%s: cannot be written", dir) && write_checkpoint(path)) {
        moem_model *model = NULL;
        const moem_options options = {.max_batch = BATCH, .placing = MOEM_PLACE_MAPPED};
        const double start = moem_now();
        const long before = resident_kb();
        CHECK(moem_model_open(dir, &options, &model) == MOE_OK, "%s", moe_last_error());
        const long grown = resident_kb() - before;
        // Scales are read once, to be checked: 47 MB a layer. Weights are not.
        CHECK(grown < 256 << 10, "opening took %ld kB of memory", grown);
        printf("opened %.1f GB in %.1f s, %ld MB of it touched\n", (double)data_size * 1e-9,
               moem_now() - start, grown >> 10);
        if (model != NULL) {
            for (int i = 0; i < LAYERS; i++) {
                CHECK(model->layers[i].weights.memory == NULL, "layer %d: weights were packed", i);
            }
            check_context(model);
            check_logits(model);
            check_text(model);
        }
        moem_model_close(model);
        check_beyond_memory(dir, &options);
        printf("%.1f s\n", moem_now() - start);
    }
    (void)close(file);
    (void)unlink(path);
    (void)unlink(config_path);
    return test_summary();
}
