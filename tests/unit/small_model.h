// SPDX-License-Identifier: Apache-2.0
// A gpt-oss-style checkpoint of a few kilobytes in a temporary folder, and changes to it.
#ifndef MOE_TESTS_UNIT_SMALL_MODEL_H
#define MOE_TESTS_UNIT_SMALL_MODEL_H

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkmoe/checkmoe.h"
#include "model/model.h"
#include "unit/test.h"

#define SMALL_LAYERS  3
#define SMALL_HIDDEN  64
#define SMALL_VOCAB   40
#define SMALL_HEADS   6
#define SMALL_KV      2
#define SMALL_DIM     10 // no multiple of a vector
#define SMALL_EXPERTS 4
#define SMALL_TOP_K   2
#define SMALL_INTER   32
#define SMALL_WINDOW  4
#define SMALL_CONTEXT 48

static const char small_config[] =
    "{\"model_type\":\"gpt_oss\",\"hidden_size\":64,\"intermediate_size\":32,\"vocab_size\":40,"
    "\"num_hidden_layers\":3,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":10,"
    "\"max_position_embeddings\":48,\"sliding_window\":4,\"num_local_experts\":4,"
    "\"num_experts_per_tok\":2,\"rms_norm_eps\":1e-5,\"rope_theta\":1000,\"swiglu_limit\":7.0,"
    "\"hidden_act\":\"silu\",\"quantization_config\":{\"quant_method\":\"mxfp4\"}}";

/// One tensor that is not as it should be. name NULL: none.
typedef struct small_change {
    const char *name;
    bool drop, nan, zero;
    const char *alias; ///< the tensor whose numbers it has
    moe_dtype dtype;   ///< if ndim > 0, with the shape
    int ndim;
    int64_t shape[3];
} small_change;

struct small_writer {
    moe_file_entry entries[80];
    char names[80][256];
    void *memory[80];
    size_t count;
    const small_change *change;
};

static inline void small_add(struct small_writer *w, const char *prefix, const char *name,
                             moe_dtype dtype, int ndim, const int64_t *shape)
{
    const size_t i = w->count;
    (void)snprintf(w->names[i], sizeof w->names[i], "%s%s", prefix, name);
    const small_change *c = w->change;
    const bool changed = c->name != NULL && strcmp(c->name, w->names[i]) == 0;
    if (changed && c->drop) {
        return;
    }
    if (changed && c->ndim > 0) {
        dtype = c->dtype;
        ndim = c->ndim;
        shape = c->shape;
    }
    // Numbers of its own, whatever else the file holds.
    moec_rng rng = {1};
    for (const char *at = changed && c->alias != NULL ? c->alias : w->names[i]; *at != '\0'; at++) {
        rng.state = rng.state * 131 + (unsigned char)*at;
    }
    moe_tensor t = {.dtype = dtype, .ndim = ndim};
    int64_t n = 1;
    for (int d = ndim; d-- > 0;) {
        t.shape[d] = shape[d];
        t.stride[d] = n;
        n *= shape[d];
    }
    t.data = w->memory[i] = calloc((size_t)n, (size_t)moe_dtype_bits(dtype) / 8);
    const bool scales = strstr(name, "_scales") != NULL;
    const bool norm = strstr(name, "norm") != NULL;
    for (int64_t k = 0; k < n; k++) {
        const float value = (float)moec_normal(&rng) * 0.25f + (norm ? 1.0f : 0.0f);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (changed && c->nan) {
            bits = UINT32_MAX;
        } else if (changed && c->zero) {
            bits = 0;
        }
        if (dtype == MOE_BF16) {
            ((uint16_t *)w->memory[i])[k] = (uint16_t)(bits >> 16);
        } else if (dtype == MOE_F32) {
            ((uint32_t *)w->memory[i])[k] = bits;
        } else if (dtype == MOE_U8) {
            ((uint8_t *)w->memory[i])[k] =
                (uint8_t)(scales ? 121 + moec_below(&rng, 3) : moec_below(&rng, 256));
        }
    }
    w->entries[i] = (moe_file_entry){w->names[i], t};
    w->count++;
}

static inline void small_linear(struct small_writer *w, const char *prefix, const char *name,
                                int64_t outputs, int64_t inputs)
{
    char full[64];
    (void)snprintf(full, sizeof full, "%s.weight", name);
    small_add(w, prefix, full, MOE_BF16, 2, (int64_t[]){outputs, inputs});
    (void)snprintf(full, sizeof full, "%s.bias", name);
    small_add(w, prefix, full, MOE_BF16, 1, (int64_t[]){outputs});
}

static inline void small_experts(struct small_writer *w, const char *prefix, const char *name,
                                 int64_t outputs, int64_t inputs)
{
    char full[64];
    (void)snprintf(full, sizeof full, "mlp.experts.%s_blocks", name);
    small_add(w, prefix, full, MOE_U8, 3, (int64_t[]){SMALL_EXPERTS, outputs, inputs / 2});
    w->entries[w->count - 1].tensor.ndim = 4; // [experts, outputs, groups, 16]
    moe_tensor *t = &w->entries[w->count - 1].tensor;
    t->shape[2] = inputs / 32;
    t->stride[2] = 16;
    t->shape[3] = 16;
    t->stride[3] = 1;
    (void)snprintf(full, sizeof full, "mlp.experts.%s_scales", name);
    small_add(w, prefix, full, MOE_U8, 3, (int64_t[]){SMALL_EXPERTS, outputs, inputs / 32});
    (void)snprintf(full, sizeof full, "mlp.experts.%s_bias", name);
    small_add(w, prefix, full, MOE_BF16, 2, (int64_t[]){SMALL_EXPERTS, outputs});
}

static inline void small_path(char *out, size_t size, const char *dir, const char *name)
{
    (void)snprintf(out, size, "%s/%s", dir, name);
}

static inline void small_text(const char *dir, const char *name, const char *text)
{
    char path[512];
    small_path(path, sizeof path, dir, name);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0, "cannot write %s", path);
}

/// Writes config.json: `base` with the keys of the object `patch` set; null removes a key.
static inline void small_write_config(const char *dir, const char *base, const char *patch)
{
    json_t *root = json_loads(base, 0, NULL);
    json_t *changes = json_loads(patch, 0, NULL);
    CHECK(root != NULL && changes != NULL, "no JSON: %s", patch);
    const char *key;
    json_t *value;
    json_object_foreach(changes, key, value)
    {
        if (json_is_null(value)) {
            (void)json_object_del(root, key);
        } else {
            (void)json_object_set(root, key, value);
        }
    }
    char *text = json_dumps(root, 0);
    small_text(dir, "config.json", text);
    free(text);
    json_decref(root);
    json_decref(changes);
}

static inline void small_write_tensors(const char *dir, const small_change *change)
{
    static const small_change none;
    struct small_writer *w = calloc(1, sizeof *w);
    char path[512];
    w->change = change != NULL ? change : &none;
    small_add(w, "", "model.embed_tokens.weight", MOE_F32, 2,
              (int64_t[]){SMALL_VOCAB, SMALL_HIDDEN});
    small_add(w, "", "lm_head.weight", MOE_BF16, 2, (int64_t[]){SMALL_VOCAB, SMALL_HIDDEN});
    small_add(w, "", "model.norm.weight", MOE_BF16, 1, (int64_t[]){SMALL_HIDDEN});
    for (int i = 0; i < SMALL_LAYERS; i++) {
        char prefix[64];
        (void)snprintf(prefix, sizeof prefix, "model.layers.%d.", i);
        const int64_t wide = SMALL_HEADS * SMALL_DIM;
        const int64_t narrow = SMALL_KV * SMALL_DIM;
        small_add(w, prefix, "input_layernorm.weight", MOE_BF16, 1, (int64_t[]){SMALL_HIDDEN});
        small_add(w, prefix, "post_attention_layernorm.weight", MOE_BF16, 1,
                  (int64_t[]){SMALL_HIDDEN});
        small_add(w, prefix, "self_attn.sinks", MOE_BF16, 1, (int64_t[]){SMALL_HEADS});
        small_linear(w, prefix, "self_attn.q_proj", wide, SMALL_HIDDEN);
        small_linear(w, prefix, "self_attn.k_proj", narrow, SMALL_HIDDEN);
        small_linear(w, prefix, "self_attn.v_proj", narrow, SMALL_HIDDEN);
        small_linear(w, prefix, "self_attn.o_proj", SMALL_HIDDEN, wide);
        small_linear(w, prefix, "mlp.router", SMALL_EXPERTS, SMALL_HIDDEN);
        small_experts(w, prefix, "gate_up_proj", 2 * SMALL_INTER, SMALL_HIDDEN);
        small_experts(w, prefix, "down_proj", SMALL_HIDDEN, SMALL_INTER);
    }
    small_path(path, sizeof path, dir, "model.safetensors");
    CHECK(moe_file_write(path, w->entries, w->count, NULL, 0) == MOE_OK, "%s", moe_last_error());
    for (size_t i = 0; i < w->count; i++) {
        free(w->memory[i]);
    }
    free(w);
}

static inline void small_folder(char *dir, size_t size)
{
    const char *base = getenv("TMPDIR");
    (void)snprintf(dir, size, "%s/moe-test-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(dir) == NULL) {
        perror(dir);
        exit(1);
    }
}

static inline void small_remove(const char *dir)
{
    static const char *const names[] = {"config.json", "generation_config.json",
                                        "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512];
        small_path(path, sizeof path, dir, names[i]);
        (void)unlink(path);
    }
    CHECK(rmdir(dir) == 0, "%s is not empty", dir);
}

/// The last call failed with `status`, and its message holds `part`.
static inline void small_refused(moe_status have, moe_status status, const char *part,
                                 const char *what)
{
    CHECK(have == status && strstr(moe_last_error(), part) != NULL,
          "%s: status %d, expected %d; \"%s\", expected \"%s\"", what, (int)have, (int)status,
          have == MOE_OK ? "" : moe_last_error(), part);
}

#endif
