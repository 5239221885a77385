// SPDX-License-Identifier: Apache-2.0
// config.json of a decoder. What is not known is refused: a model that is run with another
// rotary embedding than it was trained with writes fluent nonsense.
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

#define MAX_FILE (16 << 20) // bytes of a configuration
#define MAX_PATH 4096
#define MAX_DIM  (1 << 24) // of sizes in it; products stay far below 2^63

/// A file being read: its values and its name for messages.
struct source {
    json_t *root;
    const char *path;
};

static moe_status read_file(const char *path, char **text, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return moe_fail(MOE_E_IO, "%s: %s", path, strerror(errno));
    }
    char *bytes = malloc(MAX_FILE + 1);
    if (bytes == NULL) {
        (void)fclose(file);
        return moe_fail(MOE_E_NO_MEMORY, "%s: no memory for %d bytes", path, MAX_FILE);
    }
    *size = fread(bytes, 1, MAX_FILE + 1, file);
    const int failed = ferror(file);
    (void)fclose(file);
    if (failed || *size > MAX_FILE) {
        free(bytes);
        return failed ? moe_fail(MOE_E_IO, "%s: cannot be read", path)
                      : moe_fail(MOE_E_LIMIT, "%s: more than %d bytes", path, MAX_FILE);
    }
    *text = bytes;
    return MOE_OK;
}

static moe_status parse(const char *text, size_t size, const char *path, json_t **out)
{
    json_error_t error;
    memset(&error, 0, sizeof error);
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) { // an error of the text has words, one of memory has none
        const bool words = error.text[0] != '\0';
        return moe_fail(words ? MOE_E_MALFORMED : MOE_E_NO_MEMORY, "%s: %s", path,
                        words ? error.text : "no memory for its values");
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return moe_fail(MOE_E_MALFORMED, "%s: not a JSON object", path);
    }
    *out = root;
    return MOE_OK;
}

// A key that is absent or null has the fallback.
static json_t *find(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static moe_status integer(const struct source *s, const char *key, int64_t low, int64_t high,
                          int64_t fallback, int64_t *out)
{
    const json_t *value = find(s->root, key);
    if (value == NULL) {
        *out = fallback;
        return fallback >= low ? MOE_OK
                               : moe_fail(MOE_E_MALFORMED, "%s: \"%s\" is missing", s->path, key);
    }
    if (!json_is_integer(value)) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"%s\" must be a whole number in %lld..%lld", s->path,
                        key, (long long)low, (long long)high);
    }
    if (json_integer_value(value) < low || json_integer_value(value) > high) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"%s\" is %lld, must be in %lld..%lld", s->path, key,
                        (long long)json_integer_value(value), (long long)low, (long long)high);
    }
    *out = json_integer_value(value);
    return MOE_OK;
}

static moe_status number(const struct source *s, const json_t *object, const char *key, double low,
                         double fallback, double *out)
{
    const json_t *value = find(object, key);
    *out = value == NULL ? fallback : json_number_value(value);
    if (value != NULL && !json_is_number(value)) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"%s\" must be a number", s->path, key);
    }
    if (!(*out >= low) || !isfinite(*out)) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"%s\" is %g, must be a number of at least %g",
                        s->path, key, *out, low);
    }
    return MOE_OK;
}

// A setting that is true or false; absent: the fallback.
static moe_status boolean(const struct source *s, const json_t *object, const char *key,
                          bool fallback, bool *out)
{
    const json_t *value = find(object, key);
    *out = value == NULL ? fallback : json_is_true(value);
    return value == NULL || json_is_boolean(value)
               ? MOE_OK
               : moe_fail(MOE_E_MALFORMED, "%s: \"%s\" must be true or false", s->path, key);
}

static moe_status sizes(const struct source *s, moem_config *c)
{
    moe_status status = integer(s, "hidden_size", 1, MAX_DIM, -1, &c->hidden);
    status = status ? status : integer(s, "vocab_size", 1, MAX_DIM, -1, &c->vocab);
    status = status ? status : integer(s, "num_hidden_layers", 1, MOEM_MAX_LAYERS, -1, &c->layers);
    status = status ? status : integer(s, "num_attention_heads", 1, MAX_DIM, -1, &c->heads);
    status =
        status ? status : integer(s, "num_key_value_heads", 1, MAX_DIM, c->heads, &c->kv_heads);
    status =
        status ? status : integer(s, "head_dim", 1, MAX_DIM, c->hidden / c->heads, &c->head_dim);
    status = status ? status
                    : integer(s, "max_position_embeddings", 1, (int64_t)1 << 40, -1, &c->context);
    status =
        status ? status : integer(s, "sliding_window", 1, (int64_t)1 << 40, INT64_MAX, &c->window);
    status = status ? status : number(s, s->root, "rms_norm_eps", 0, 1e-5, &c->norm_eps);
    if (status == MOE_OK && (c->heads % c->kv_heads != 0 || c->head_dim % 2 != 0)) {
        return moe_fail(MOE_E_UNSUPPORTED,
                        "%s: %lld heads over %lld key heads of %lld: the first must be a multiple "
                        "of the second, the third even",
                        s->path, (long long)c->heads, (long long)c->kv_heads,
                        (long long)c->head_dim);
    }
    return status ? status : boolean(s, s->root, "tie_word_embeddings", false, &c->tied);
}

// Settings that would change the computation, where present, must be those that are computed.
static moe_status must_be(const struct source *s, const char *key, const char *word)
{
    const json_t *value = find(s->root, key);
    const char *have = json_string_value(value);
    if (value != NULL && (have == NULL || strcmp(have, word) != 0)) {
        return moe_fail(MOE_E_UNSUPPORTED, "%s: \"%s\" is %s%s%s; the decoder knows \"%s\"",
                        s->path, key, have != NULL ? "\"" : "", have != NULL ? have : "no string",
                        have != NULL ? "\"" : "", word);
    }
    return MOE_OK;
}

static moe_status layer_types(const struct source *s, moem_config *c)
{
    const json_t *types = find(s->root, "layer_types");
    if (types != NULL && json_array_size(types) != (size_t)c->layers) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"layer_types\" has %zu entries for %lld layers",
                        s->path, json_array_size(types), (long long)c->layers);
    }
    for (int64_t i = 0; i < c->layers; i++) {
        const char *type = types != NULL ? json_string_value(json_array_get(types, (size_t)i))
                           : i % 2 == 0  ? "sliding_attention"
                                         : "full_attention";
        c->sliding[i] = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!c->sliding[i] && (type == NULL || strcmp(type, "full_attention") != 0)) {
            return moe_fail(MOE_E_UNSUPPORTED,
                            "%s: \"layer_types\"[%lld] is \"%s\"; the decoder knows "
                            "sliding_attention and full_attention",
                            s->path, (long long)i, type != NULL ? type : "no string");
        }
        if (c->sliding[i] && c->window == INT64_MAX) {
            return moe_fail(MOE_E_MALFORMED,
                            "%s: layer %lld is sliding, but \"sliding_window\" is missing", s->path,
                            (long long)i);
        }
    }
    return MOE_OK;
}

// Refuses parameters of their own for each kind of layer, and parameters without a type: what else
// than "default" they belong to is not known.
static moe_status rope_keys(const struct source *s, json_t *scaling, bool typed)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(scaling, key, value)
    {
        if (json_is_object(value)) {
            return moe_fail(MOE_E_UNSUPPORTED,
                            "%s: rotary parameters of \"%s\" layers; the decoder knows one set for "
                            "all",
                            s->path, key);
        }
        if (!typed && !json_is_null(value) && strcmp(key, "rope_theta") != 0) {
            return moe_fail(MOE_E_UNSUPPORTED,
                            "%s: rotary embedding with \"%s\" but without \"rope_type\"", s->path,
                            key);
        }
    }
    return MOE_OK;
}

// transformers 4 has rope_theta and rope_scaling, transformers 5 both in rope_parameters.
static moe_status rope(const struct source *s, moem_config *c)
{
    json_t *five = find(s->root, "rope_parameters");
    json_t *scaling = five != NULL ? five : find(s->root, "rope_scaling");
    const char *key = find(scaling, "rope_type") != NULL ? "rope_type" : "type";
    const json_t *named = find(scaling, key);
    const char *type = named != NULL ? json_string_value(named) : "default";
    if ((scaling != NULL && !json_is_object(scaling)) || type == NULL) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"%s\" must be %s", s->path,
                        type == NULL   ? key
                        : five != NULL ? "rope_parameters"
                                       : "rope_scaling",
                        type == NULL ? "a string" : "an object");
    }
    const double absent = -1; // below what any of these may be
    double mscale = absent;
    double mscale_all = absent;
    double rotated = 1;
    moe_status status = rope_keys(s, scaling, named != NULL);
    status = status ? status
                    : number(s, find(five, "rope_theta") != NULL ? five : s->root, "rope_theta", 1,
                             10000, &c->rope_theta);
    status = status ? status : number(s, s->root, "partial_rotary_factor", 0, 1, &rotated);
    c->rope_factor = c->rope_attention = 1;
    if (status == MOE_OK && (rotated != 1 || !(c->rope_theta > 1))) {
        return moe_fail(MOE_E_UNSUPPORTED,
                        "%s: \"partial_rotary_factor\" %g and \"rope_theta\" %g; the decoder "
                        "knows 1 and more than 1",
                        s->path, rotated, c->rope_theta);
    }
    if (status != MOE_OK || strcmp(type, "default") == 0) {
        return status;
    }
    if (strcmp(type, "yarn") != 0) {
        return moe_fail(MOE_E_UNSUPPORTED,
                        "%s: rotary embedding of type \"%s\"; the decoder knows default and yarn",
                        s->path, type);
    }
    const double context = (double)c->context;
    status = number(s, scaling, "original_max_position_embeddings", 1, context, &c->rope_original);
    status = status ? status
                    : number(s, scaling, "factor", 1, context / c->rope_original, &c->rope_factor);
    status = status ? status : number(s, scaling, "beta_fast", 0, 32, &c->rope_fast);
    status = status ? status : number(s, scaling, "beta_slow", 0, 1, &c->rope_slow);
    status = status ? status : number(s, scaling, "mscale", absent, absent, &mscale);
    status = status ? status : number(s, scaling, "mscale_all_dim", absent, absent, &mscale_all);
    // Peng et al., YaRN, 2023, eq. 22; DeepSeek's configurations scale its logarithm.
    const double grow = 0.1 * log(c->rope_factor);
    const double standard =
        mscale > 0 && mscale_all > 0 ? (1 + mscale * grow) / (1 + mscale_all * grow) : 1 + grow;
    status =
        status ? status : number(s, scaling, "attention_factor", 0, standard, &c->rope_attention);
    status = status ? status : boolean(s, scaling, "truncate", true, &c->rope_truncate);
    if (status == MOE_OK && !(c->rope_slow > 0 && c->rope_slow < c->rope_fast)) {
        return moe_fail(MOE_E_MALFORMED,
                        "%s: \"beta_slow\" %g and \"beta_fast\" %g: must rise from 0", s->path,
                        c->rope_slow, c->rope_fast);
    }
    if (status == MOE_OK && !(c->rope_attention > 0)) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"attention_factor\" is %g, must be more than 0",
                        s->path, c->rope_attention);
    }
    return status;
}

static moe_status add_eos(const struct source *s, moem_config *c)
{
    const json_t *value = find(s->root, "eos_token_id");
    const size_t count = json_is_array(value) ? json_array_size(value) : value != NULL;
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_is_array(value) ? json_array_get(value, i) : value;
        const int64_t id = json_integer_value(one);
        bool known = false;
        if (!json_is_integer(one)) {
            return moe_fail(MOE_E_MALFORMED,
                            "%s: \"eos_token_id\" must be a whole number in 0..%lld, or a list of "
                            "such",
                            s->path, (long long)c->vocab - 1);
        }
        if (id < 0 || id >= c->vocab) {
            return moe_fail(MOE_E_MALFORMED, "%s: \"eos_token_id\" %lld is not in 0..%lld", s->path,
                            (long long)id, (long long)c->vocab - 1);
        }
        for (int32_t j = 0; j < c->num_eos; j++) {
            known = known || c->eos[j] == id;
        }
        if (!known && c->num_eos == MOEM_MAX_EOS) {
            return moe_fail(MOE_E_LIMIT, "%s: more than %d end-of-text tokens", s->path,
                            MOEM_MAX_EOS);
        }
        if (!known) {
            c->eos[c->num_eos++] = (int32_t)id;
        }
    }
    return MOE_OK;
}

static moe_status fill(const struct source *s, moem_config *c)
{
    moe_status status = must_be(s, "model_type", "gpt_oss");
    if (status == MOE_OK && find(s->root, "model_type") == NULL) {
        return moe_fail(MOE_E_MALFORMED, "%s: \"model_type\" is missing", s->path);
    }
    status = status ? status : sizes(s, c);
    status = status ? status : layer_types(s, c);
    status = status ? status : rope(s, c);
    return status ? status : add_eos(s, c);
}

moe_status moem_config_parse(const char *text, size_t size, const char *label, moem_config *out)
{
    struct source s = {NULL, label};
    moem_config c;
    memset(&c, 0, sizeof c);
    moe_status status = parse(text, size, label, &s.root);
    status = status ? status : fill(&s, &c);
    json_decref(s.root);
    if (status == MOE_OK) {
        *out = c;
    }
    return status;
}

// generation_config.json may name more end-of-text tokens; it is optional.
static moe_status generation(const char *dir, moem_config *c)
{
    char path[MAX_PATH];
    char *text = NULL;
    size_t size = 0;
    (void)snprintf(path, sizeof path, "%s/generation_config.json", dir);
    FILE *file = fopen(path, "rb");
    if (file == NULL && errno == ENOENT) {
        return MOE_OK;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    struct source s = {NULL, path};
    moe_status status = read_file(path, &text, &size);
    status = status ? status : parse(text, size, path, &s.root);
    status = status ? status : add_eos(&s, c);
    json_decref(s.root);
    free(text);
    return status;
}

moe_status moem_config_read(const char *dir, moem_config *out, char **text, size_t *size)
{
    char path[MAX_PATH];
    char *bytes = NULL;
    size_t length = 0;
    moem_config c;
    const int n = snprintf(path, sizeof path, "%s/config.json", dir);
    if (n < 0 || (size_t)n + 32 >= sizeof path) { // room for the other file's name
        return moe_fail(MOE_E_ARGUMENT, "path of %d bytes, at most %zu", n, sizeof path - 33);
    }
    moe_status status = read_file(path, &bytes, &length);
    status = status ? status : moem_config_parse(bytes, length, path, &c);
    status = status ? status : generation(dir, &c);
    if (status == MOE_OK) {
        *out = c;
    }
    if (status == MOE_OK && text != NULL) {
        *text = bytes;
        *size = length;
    } else {
        free(bytes);
    }
    return status;
}

// The dimension (a real number) that turns `rotations` times over the original context.
static double corrected(const moem_config *c, double rotations)
{
    const double pi = 3.14159265358979323846;
    return (double)c->head_dim * log(c->rope_original / (rotations * 2 * pi)) /
           (2 * log(c->rope_theta));
}

void moem_rope_frequencies(const moem_config *c, float *out)
{
    double low = 0;
    double high = 0;
    if (c->rope_factor != 1) {
        low = corrected(c, c->rope_fast);
        high = corrected(c, c->rope_slow);
        low = fmax(c->rope_truncate ? floor(low) : low, 0);
        high = fmin(c->rope_truncate ? ceil(high) : high, (double)c->head_dim - 1);
        high += high == low ? 0.001 : 0;
    }
    for (int64_t i = 0; i < c->head_dim / 2; i++) {
        const double plain = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
        double kept = 1; // share of the plain frequency; the rest is interpolated
        if (c->rope_factor != 1) {
            kept = 1 - fmin(fmax(((double)i - low) / (high - low), 0), 1);
        }
        out[i] = (float)(plain * kept + plain / c->rope_factor * (1 - kept));
    }
}
