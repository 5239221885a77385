// SPDX-License-Identifier: Apache-2.0
// From config.json to a descriptor: finds the row of the model class and reads the keys that the
// row names. What a key means lies in the row alone; there is no code per model.
#include "io/config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "io/text.h"
#include "moe/io.h"

#define KEY_BYTES 96
#define CALL      "moe_layer_desc_from_config"

static const struct moei_model_class classes[] = {
#include "io/config_table.def"
};
static const size_t num_classes = sizeof classes / sizeof classes[0];

#define MAX_TYPES (sizeof classes[0].types / sizeof classes[0].types[0])

/// A configuration being read for one layer.
struct reader {
    const moei_json *doc;
    const json_t *object; ///< the one that describes the language model
    const struct moei_model_class *row;
    const char *type; ///< model_type
    int32_t layer;    ///< -1: any; lists per layer must then be uniform
};

/// A value with the key under which it was found; value NULL: none of the keys is there.
struct found {
    const json_t *value;
    char key[KEY_BYTES];
};

// Cuts the next piece off a list such as "a|b". The pieces of the table fit in KEY_BYTES.
static bool next_piece(const char **rest, char separator, char piece[KEY_BYTES])
{
    if (*rest == NULL) {
        return false;
    }
    const char *end = strchr(*rest, separator);
    const size_t size = end == NULL ? strlen(*rest) : (size_t)(end - *rest);
    MOE_ASSERT(size < KEY_BYTES);
    memcpy(piece, *rest, size);
    piece[size] = '\0';
    *rest = end == NULL ? NULL : end + 1;
    return true;
}

// As Python compares them: 8 equals 8.0, but true does not equal 1.
static bool same_value(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b)) {
        return !(json_number_value(a) < json_number_value(b)) &&
               !(json_number_value(a) > json_number_value(b));
    }
    return json_equal(a, b) != 0;
}

// Lists with one entry per layer: the layer's entry, or the one that all share.
static moe_status pick_layer(const struct reader *r, struct found *found)
{
    const json_t *list = found->value;
    const size_t size = json_array_size(list);
    MOE_REQUIRE(size > 0, MOE_E_MALFORMED, "%s: %s: \"%s\" is an empty list", r->doc->call,
                r->doc->label, found->key);
    if (r->layer >= 0) {
        MOE_REQUIRE((size_t)r->layer < size, MOE_E_MALFORMED,
                    "%s: %s: \"%s\" has %zu entries, layer %" PRId32 " needs more", r->doc->call,
                    r->doc->label, found->key, size, r->layer);
        found->value = json_array_get(list, (size_t)r->layer);
        return MOE_OK;
    }
    for (size_t i = 1; i < size; i++) {
        if (!same_value(json_array_get(list, 0), json_array_get(list, i))) {
            return moe_fail(MOE_E_UNSUPPORTED,
                            "%s: %s: \"%s\" differs by layer: %s in layer 0, %s in layer %zu; "
                            "name the layer with moe_layer_desc_from_config_layer",
                            r->doc->call, r->doc->label, found->key,
                            moei_json_describe(json_array_get(list, 0)).text,
                            moei_json_describe(json_array_get(list, i)).text, i);
        }
    }
    found->value = json_array_get(list, 0);
    return MOE_OK;
}

static moe_status find(const struct reader *r, const char *keys, struct found *out)
{
    struct found found;
    out->value = NULL;
    (void)snprintf(out->key, KEY_BYTES, "%s", keys == NULL ? "" : keys);
    while (next_piece(&keys, '|', found.key)) {
        found.value = json_object_get(r->object, found.key);
        if (found.value == NULL || json_is_null(found.value)) {
            continue;
        }
        if (json_is_array(found.value)) {
            MOE_TRY(pick_layer(r, &found));
        }
        if (json_is_null(found.value)) {
            continue;
        }
        if (out->value == NULL) {
            *out = found;
            continue;
        }
        MOE_REQUIRE(same_value(out->value, found.value), MOE_E_MALFORMED,
                    "%s: %s: \"%s\" is %s, but \"%s\" is %s", r->doc->call, r->doc->label, out->key,
                    moei_json_describe(out->value).text, found.key,
                    moei_json_describe(found.value).text);
    }
    return MOE_OK;
}

static moe_status wrong(const struct reader *r, const struct found *found, const char *want)
{
    if (found->value == NULL) {
        return moe_fail(MOE_E_MALFORMED, "%s: %s: \"%s\" is missing, model class \"%s\" needs it",
                        r->doc->call, r->doc->label, found->key, r->type);
    }
    return moe_fail(MOE_E_MALFORMED, "%s: %s: \"%s\" is %s, expected %s", r->doc->call,
                    r->doc->label, found->key, moei_json_describe(found->value).text, want);
}

static moe_status read_integer(const struct reader *r, const char *keys, int64_t *out)
{
    struct found found;
    MOE_TRY(find(r, keys, &found));
    if (!json_is_integer(found.value)) {
        return wrong(r, &found, "an integer");
    }
    *out = (int64_t)json_integer_value(found.value);
    return MOE_OK;
}

// An integer that may be absent, and is 0 then.
static moe_status read_optional(const struct reader *r, const char *keys, int64_t *out)
{
    struct found found;
    MOE_TRY(find(r, keys, &found));
    *out = 0;
    return found.value == NULL ? MOE_OK : read_integer(r, keys, out);
}

static moe_status read_number(const struct reader *r, const struct moei_number *number, double *out)
{
    struct found found;
    MOE_TRY(find(r, number->key, &found));
    if (found.value == NULL && number->fallback > MOEI_REQUIRED) {
        *out = number->fallback;
        return MOE_OK;
    }
    if (!json_is_number(found.value)) {
        return wrong(r, &found, "a number");
    }
    *out = json_number_value(found.value);
    return MOE_OK;
}

static moe_status read_count(const struct reader *r, const struct moei_number *number, int64_t *out)
{
    struct found found;
    MOE_TRY(find(r, number->key, &found));
    if (found.value == NULL && number->fallback > MOEI_REQUIRED) {
        *out = (int64_t)number->fallback;
        return MOE_OK;
    }
    return read_integer(r, number->key, out);
}

static moe_status read_flag(const struct reader *r, const struct moei_number *number, bool *out)
{
    struct found found;
    MOE_TRY(find(r, number->key, &found));
    if (found.value == NULL && number->fallback > MOEI_REQUIRED) {
        *out = number->fallback > 0;
        return MOE_OK;
    }
    if (!json_is_boolean(found.value)) {
        return wrong(r, &found, "true or false");
    }
    *out = json_is_true(found.value);
    return MOE_OK;
}

static bool has_text(const json_t *value, const char *text)
{
    if (json_is_string(value)) {
        return strcmp(json_string_value(value), text) == 0;
    }
    if (json_is_boolean(value)) {
        return strcmp(json_is_true(value) ? "true" : "false", text) == 0;
    }
    if (json_is_number(value)) {
        char *end;
        const double number = strtod(text, &end);
        return end != text && *end == '\0' && !(number < json_number_value(value)) &&
               !(number > json_number_value(value));
    }
    return false;
}

// A rule "key=value|value". `holds` where the key is absent is left as it was.
static moe_status check_rule(const struct reader *r, const char *rule, struct found *found,
                             const char **values, bool *holds)
{
    char key[KEY_BYTES];
    *values = rule;
    (void)next_piece(values, '=', key);
    MOE_TRY(find(r, key, found));
    if (found->value != NULL) {
        const char *rest = *values;
        char value[KEY_BYTES];
        *holds = false;
        while (next_piece(&rest, '|', value)) {
            *holds = *holds || has_text(found->value, value);
        }
    }
    return MOE_OK;
}

static moe_status check_must(const struct reader *r, const char *rest, bool absent_holds)
{
    char rule[KEY_BYTES];
    while (next_piece(&rest, ';', rule)) {
        struct found found;
        const char *values;
        bool holds = absent_holds;
        MOE_TRY(check_rule(r, rule, &found, &values, &holds));
        MOE_REQUIRE(holds, MOE_E_UNSUPPORTED,
                    "%s: %s: \"%s\" is %s; for model class \"%s\" only %s is known", r->doc->call,
                    r->doc->label, found.key, moei_json_describe(found.value).text, r->type,
                    values);
    }
    return MOE_OK;
}

static const struct moei_word act_words[] = {
    {"silu", MOE_ACT_SILU},
    {"swish", MOE_ACT_SILU},
    {"gelu", MOE_ACT_GELU},
    {"gelu_pytorch_tanh", MOE_ACT_GELU_TANH},
    {"gelu_new", MOE_ACT_GELU_TANH},
    {"relu2", MOE_ACT_RELU2_NO_MUL},
    {NULL, 0},
};

// The word names the function of one number; whether a second factor follows is the row's.
static moe_status read_activation(const struct reader *r, moe_activation *out)
{
    struct found found;
    *out = r->row->activation;
    MOE_TRY(find(r, r->row->act_key, &found));
    if (found.value == NULL) {
        return MOE_OK;
    }
    if (!json_is_string(found.value)) {
        return wrong(r, &found, "a string");
    }
    const char *word = json_string_value(found.value);
    MOE_TRY(moei_word_find(r->doc, found.key, word, act_words, out));
    if (r->row->gate_up == MOE_GATE_UP_UNSET) {
        static const moe_activation alone[] = {
            [MOE_ACT_SILU] = MOE_ACT_SILU_NO_MUL,
            [MOE_ACT_GELU] = MOE_ACT_GELU_NO_MUL,
            [MOE_ACT_GELU_TANH] = MOE_ACT_GELU_TANH_NO_MUL,
            [MOE_ACT_RELU2_NO_MUL] = MOE_ACT_RELU2_NO_MUL,
        };
        *out = alone[*out];
    }
    MOE_REQUIRE(r->row->gate_up == MOE_GATE_UP_UNSET || *out != MOE_ACT_RELU2_NO_MUL,
                MOE_E_UNSUPPORTED,
                "%s: %s: \"%s\" is \"%s\", but the experts of model class \"%s\" have a gate",
                r->doc->call, r->doc->label, found.key, word, r->type);
    return MOE_OK;
}

static moe_status read_sizes(const struct reader *r, struct moei_facts *f)
{
    const struct moei_model_class *row = r->row;
    MOE_TRY(read_integer(r, row->hidden == NULL ? "hidden_size" : row->hidden, &f->hidden));
    MOE_TRY(read_integer(r, row->inter, &f->inter));
    MOE_TRY(read_integer(r, row->experts, &f->experts));
    MOE_TRY(read_integer(r, row->top_k, &f->top_k));
    MOE_TRY(read_optional(r, row->latent, &f->latent));
    return read_optional(r, row->zero_experts, &f->zero_experts);
}

static moe_status read_groups(const struct reader *r, struct moei_facts *f)
{
    const struct moei_model_class *row = r->row;
    if (row->groups_if != NULL) {
        struct found found;
        const char *values;
        bool grouped = false;
        MOE_TRY(check_rule(r, row->groups_if, &found, &values, &grouped));
        if (!grouped) {
            return MOE_OK;
        }
    }
    if (row->top_groups == NULL) {
        return MOE_OK;
    }
    MOE_TRY(read_count(r, &row->groups, &f->groups));
    f->group_score = row->group_score;
    f->group_mask_zero = row->group_mask_zero;
    return f->groups <= 1 ? MOE_OK : read_integer(r, row->top_groups, &f->top_groups);
}

static moe_status read_hash(const struct reader *r, struct moei_facts *f)
{
    struct found types;
    if (r->row->hash_layers == NULL || r->layer < 0) {
        return MOE_OK;
    }
    MOE_TRY(find(r, r->row->hash_layer_types, &types));
    if (types.value != NULL) {
        f->hash_table = has_text(types.value, "hash_moe");
    } else {
        int64_t layers;
        MOE_TRY(read_integer(r, r->row->hash_layers, &layers));
        f->hash_table = r->layer < layers;
    }
    f->correction_bias = f->correction_bias && !f->hash_table;
    return MOE_OK;
}

static moe_status read_routing(const struct reader *r, struct moei_facts *f)
{
    const struct moei_model_class *row = r->row;
    struct found found;
    bool renormalise = false;
    f->scoring = row->scoring;
    MOE_TRY(find(r, row->scoring_key, &found));
    if (found.value != NULL) {
        if (!json_is_string(found.value)) {
            return wrong(r, &found, "a string");
        }
        MOE_TRY(moei_word_find(r->doc, found.key, json_string_value(found.value),
                               moei_scoring_words, &f->scoring));
    }
    f->selected = row->selected;
    f->on_logits = row->selected;
    MOE_TRY(read_flag(r, &row->correction_bias, &f->correction_bias));
    MOE_TRY(read_groups(r, f));
    MOE_TRY(read_flag(r, &row->renormalise, &renormalise));
    // Softmax over the chosen adds up to 1 as it is.
    if (renormalise && !(f->selected && f->scoring == MOE_SCORING_SOFTMAX)) {
        f->renormalise = row->renorm_form != MOE_RENORM_UNSET ? row->renorm_form : MOE_RENORM_SUM;
        MOE_TRY(read_number(r, &row->renorm_eps, &f->renorm_eps));
    } else {
        f->renormalise = MOE_RENORM_NONE;
    }
    MOE_TRY(read_number(r, &row->jitter_eps, &f->jitter_eps));
    MOE_TRY(read_number(r, &row->scale, &f->scale));
    f->scale_tensor = row->scale_tensor;
    f->weight_on_input = row->weight_on_input;
    return read_hash(r, f);
}

static moe_status read_experts(const struct reader *r, struct moei_facts *f)
{
    const struct moei_model_class *row = r->row;
    MOE_TRY(read_activation(r, &f->activation));
    MOE_TRY(read_number(r, &row->alpha, &f->alpha));
    MOE_TRY(read_number(r, &row->beta, &f->beta));
    MOE_TRY(read_number(r, &row->limit, &f->limit));
    f->shared_activation = f->activation;
    f->gate_up = row->gate_up;
    f->transposed = row->transposed;
    f->bias[0] = f->bias[1] = row->bias;
    f->output_bias = row->output_bias;
    return MOE_OK;
}

static moe_status read_shared(const struct reader *r, struct moei_facts *f)
{
    const struct moei_model_class *row = r->row;
    int64_t unit = f->inter;
    bool bias = false;
    if (row->shared == MOEI_SHARED_NONE) {
        return MOE_OK;
    }
    MOE_TRY(read_count(r, &row->shared_count, &f->shared_count));
    if (row->shared_inter.key != NULL) {
        MOE_TRY(read_count(r, &row->shared_inter, &unit));
    }
    if (f->shared_count == 0 || unit == 0) {
        f->shared_count = 0;
        return MOE_OK;
    }
    MOE_TRY(check_must(r, row->shared_must, false));
    f->shared_inter = unit;
    if (row->shared == MOEI_SHARED_JOINED) {
        MOE_REQUIRE(!__builtin_mul_overflow(unit, f->shared_count, &f->shared_inter), MOE_E_LIMIT,
                    "%s: %s: %" PRId64 " shared experts of inner size %" PRId64, r->doc->call,
                    r->doc->label, f->shared_count, unit);
        f->shared_count = f->shared_count > 0 ? 1 : f->shared_count;
    }
    f->shared_gate = row->shared_gate;
    f->renorm_shared = row->shared_gate == MOE_SHARED_ROUTER_WEIGHTED;
    MOE_TRY(read_flag(r, &row->shared_bias, &bias));
    f->shared_bias[0] = f->shared_bias[1] = bias;
    MOE_TRY(read_number(r, &row->shared_limit, &f->shared_limit));
    f->shared_alpha = f->alpha;
    f->shared_beta = f->beta;
    return MOE_OK;
}

// A limit of 0 is "none" in some lists per layer, and an error wherever a clamp is meant.
static moe_status settle_limit(const struct reader *r, const char *name, double limit,
                               moe_activation *activation)
{
    const struct moei_model_class *row = r->row;
    if (row->limit_after) {
        *activation = limit > 0 ? MOE_ACT_SWIGLUSTEP : *activation;
        return MOE_OK;
    }
    MOE_REQUIRE(limit > 0 || row->limit.key == NULL, MOE_E_UNSUPPORTED,
                "%s: %s: \"%s\" is %g, which would clamp everything to it", r->doc->call,
                r->doc->label, name, limit);
    return MOE_OK;
}

static moe_status read_facts(const struct reader *r, struct moei_facts *f)
{
    const struct moei_model_class *row = r->row;
    memset(f, 0, sizeof *f);
    MOE_TRY(check_must(r, row->must, true));
    MOE_TRY(read_sizes(r, f));
    MOE_TRY(read_routing(r, f));
    MOE_TRY(read_experts(r, f));
    MOE_TRY(read_shared(r, f));
    MOE_TRY(settle_limit(r, row->limit.key, f->limit, &f->activation));
    if (f->shared_count > 0 && row->shared_limit.key != NULL) {
        MOE_TRY(settle_limit(r, row->shared_limit.key, f->shared_limit, &f->shared_activation));
    }
    return MOE_OK;
}

static bool has_architecture(const json_t *object, const char *name)
{
    const json_t *list = json_object_get(object, "architectures");
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (json_is_string(json_array_get(list, i)) &&
            strcmp(json_string_value(json_array_get(list, i)), name) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_type(const struct moei_model_class *row, const char *type)
{
    for (size_t i = 0; i < MAX_TYPES && row->types[i] != NULL; i++) {
        if (strcmp(row->types[i], type) == 0) {
            return true;
        }
    }
    return false;
}

static const struct moei_model_class *find_class(const json_t *object, const char *type)
{
    for (size_t i = 0; i < num_classes; i++) {
        if (has_type(&classes[i], type) && (classes[i].architecture == NULL ||
                                            has_architecture(object, classes[i].architecture))) {
            return &classes[i];
        }
    }
    return NULL;
}

static bool in_earlier_row(size_t row, const char *type)
{
    while (row-- > 0) {
        if (has_type(&classes[row], type)) {
            return true;
        }
    }
    return false;
}

const char *moe_config_class(size_t i)
{
    for (size_t row = 0; row < num_classes; row++) {
        for (size_t t = 0; t < MAX_TYPES && classes[row].types[t] != NULL; t++) {
            if (!in_earlier_row(row, classes[row].types[t]) && i-- == 0) {
                return classes[row].types[t];
            }
        }
    }
    return NULL;
}

// How many leading characters two names share: what a misspelt or newer class comes near to.
static size_t common_prefix(const char *a, const char *b)
{
    size_t n = 0;
    while (a[n] != '\0' && a[n] == b[n]) {
        n++;
    }
    return n;
}

static moe_status unknown_class(const moei_json *doc, const char *type)
{
    // The message has 511 bytes: the nearest names come first, the rest is cut.
    char list[384] = "";
    size_t used = 0;
    size_t best = 0;
    for (size_t i = 0; moe_config_class(i) != NULL; i++) {
        const size_t n = common_prefix(moe_config_class(i), type);
        best = n > best ? n : best;
    }
    for (size_t prefix = best + 1; prefix-- > 0;) {
        const char *name;
        for (size_t i = 0; (name = moe_config_class(i)) != NULL; i++) {
            const size_t size = strlen(name);
            if (common_prefix(name, type) != prefix || used + size + 3 > sizeof list) {
                continue;
            }
            memcpy(list + used, used > 0 ? ", " : "", used > 0 ? 2 : 0);
            used += used > 0 ? 2 : 0;
            memcpy(list + used, name, size + 1);
            used += size;
        }
    }
    return moe_fail(MOE_E_NOT_FOUND, "%s: %s: model class \"%s\" is not known; known are %s, ...",
                    doc->call, doc->label, moei_quote_head(type, strlen(type)).text, list);
}

// Multimodal configurations keep the language model's in an object of their own; NULL: there is
// none.
static const json_t *inner_model(const json_t *object)
{
    static const char *const keys[] = {"text_config", "thinker_config", "language_config",
                                       "llm_config"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const json_t *inner = json_object_get(object, keys[i]);
        if (json_is_object(inner)) {
            return inner;
        }
    }
    return NULL;
}

#define MAX_NESTING 3 // of those objects

static moe_status find_model(struct reader *r)
{
    const char *outer_type = NULL;
    for (int depth = 0; depth < MAX_NESTING; depth++) {
        const json_t *type = json_object_get(r->object, "model_type");
        if (json_is_string(type)) {
            r->type = json_string_value(type);
            r->row = find_class(r->object, r->type);
            if (r->row != NULL) {
                return MOE_OK;
            }
            outer_type = r->type;
        }
        const json_t *next = inner_model(r->object);
        if (next == NULL) {
            break;
        }
        r->object = next;
    }
    MOE_REQUIRE(outer_type != NULL, MOE_E_MALFORMED,
                "%s: %s: \"model_type\" is %s, expected a string", r->doc->call, r->doc->label,
                moei_json_describe(json_object_get(r->object, "model_type")).text);
    for (size_t i = 0; i < num_classes; i++) {
        if (has_type(&classes[i], outer_type)) {
            return moe_fail(MOE_E_NOT_FOUND,
                            "%s: %s: \"model_type\" \"%s\" is several classes, and "
                            "\"architectures\" holds none of theirs (\"%s\" is one)",
                            r->doc->call, r->doc->label, outer_type, classes[i].architecture);
        }
    }
    return unknown_class(r->doc, outer_type);
}

const json_t *moei_config_find(const json_t *root, const char *key)
{
    const json_t *found = NULL;
    for (int depth = 0; depth < MAX_NESTING && root != NULL && found == NULL; depth++) {
        found = json_object_get(root, key);
        found = json_is_null(found) ? NULL : found;
        root = inner_model(root);
    }
    return found;
}

moe_status moei_config_type(const moei_json *doc, const char **type)
{
    struct reader r = {.doc = doc, .object = doc->root, .layer = -1};
    MOE_TRY(find_model(&r));
    *type = r.type;
    return MOE_OK;
}

// MXFP4 packs two elements of a row into a byte, so such a checkpoint is never transposed.
static bool is_mxfp4(const json_t *root)
{
    const json_t *quantisation = moei_config_find(root, "quantization_config");
    return has_text(json_object_get(quantisation, "quant_method"), "mxfp4");
}

static moe_status from_config(const char *call, const char *json, size_t size, int32_t layer,
                              moe_layer_desc *desc)
{
    moei_json doc;
    struct moei_facts facts;
    MOE_REQUIRE(json != NULL && desc != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                json == NULL ? "json" : "desc");
    moe_layer_desc known;
    MOE_TRY(moei_struct_read(desc, &known, sizeof known, call, "desc"));
    MOE_TRY(moei_json_parse(&doc, call, "config", json, size, MOEI_JSON_PYTHON));
    struct reader r = {.doc = &doc, .object = doc.root, .layer = layer};
    moe_status status = find_model(&r);
    if (status == MOE_OK) {
        status = read_facts(&r, &facts);
    }
    if (status == MOE_OK) {
        facts.transposed = facts.transposed && !is_mxfp4(doc.root);
        status = moei_facts_apply(&doc, &facts, &known);
    }
    if (status == MOE_OK) {
        status = moei_struct_write(&known, sizeof known, desc, call, "desc");
    }
    moei_json_free(&doc);
    return status;
}

moe_status moe_layer_desc_from_config(const char *json, size_t size, moe_layer_desc *desc)
{
    return from_config(CALL, json, size, -1, desc);
}

moe_status moe_layer_desc_from_config_layer(const char *json, size_t size, int32_t layer,
                                            moe_layer_desc *desc)
{
    MOE_REQUIRE(layer >= 0, MOE_E_ARGUMENT, CALL "_layer: layer = %" PRId32 ", must be 0 or more",
                layer);
    return from_config(CALL "_layer", json, size, layer, desc);
}
