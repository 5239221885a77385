// SPDX-License-Identifier: Apache-2.0
// quantization_config as compressed-tensors, ModelOpt, Quark, and transformers' own methods write
// it.
#include "io/quant_config.h"

#include <stdio.h>
#include <string.h>

#include "core/check.h"
#include "io/config.h"
#include "io/pattern.h"

struct reading {
    const moei_json *doc;
    const json_t *config;
    const char *const *names;
    size_t count;
};

static moe_status means_module(const struct reading *r, const char *entry, bool *means)
{
    for (size_t i = 0; i < r->count && !*means; i++) {
        int matches = 0;
        MOE_TRY(moei_pattern_match(r->doc->call, entry, r->names[i], &matches));
        *means = matches != 0;
    }
    return MOE_OK;
}

// The first string of a list that means the module; absent and null are empty lists.
static moe_status find_entry(const struct reading *r, const json_t *list, const char *key,
                             const char **found)
{
    if (list == NULL || json_is_null(list)) {
        return MOE_OK;
    }
    MOE_REQUIRE(json_is_array(list), MOE_E_MALFORMED,
                "%s: %s: quantization_config: \"%s\" is %s, expected a list", r->doc->call,
                r->doc->label, key, moei_json_describe(list).text);
    for (size_t i = 0; i < json_array_size(list) && *found == NULL; i++) {
        const char *entry = json_string_value(json_array_get(list, i));
        bool means = false;
        MOE_REQUIRE(entry != NULL, MOE_E_MALFORMED,
                    "%s: %s: quantization_config: \"%s\" holds %s, expected strings", r->doc->call,
                    r->doc->label, key, moei_json_describe(json_array_get(list, i)).text);
        MOE_TRY(means_module(r, entry, &means));
        *found = means ? entry : NULL;
    }
    return MOE_OK;
}

static moe_status read_exclusions(const struct reading *r, struct moei_quant_says *out)
{
    static const char *const keys[] = {"ignore", "modules_to_not_convert", "ignored_layers",
                                       "exclude", "exclude_modules"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0] && !out->excluded; i++) {
        const char *entry = NULL;
        MOE_TRY(find_entry(r, json_object_get(r->config, keys[i]), keys[i], &entry));
        if (entry != NULL) {
            out->excluded = true;
            out->entry = moei_quote_head(entry, strlen(entry));
        }
    }
    return MOE_OK;
}

// A string into a field; what is longer than any known word is no known word.
static void copy_word(const json_t *value, char *out, size_t size)
{
    const char *word = json_is_string(value) ? json_string_value(value) : "";
    (void)snprintf(out, size, "%s", word);
}

static void read_weights(const json_t *weights, struct moei_quant_says *out)
{
    out->bits = (int64_t)json_integer_value(json_object_get(weights, "num_bits"));
    out->group = (int64_t)json_integer_value(json_object_get(weights, "group_size"));
    out->group = out->group > 0 ? out->group : 0;
}

// compressed-tensors: groups of modules, by class ("Linear") or by name. A name counts before a
// class; a module that no group targets stays as it is.
static moe_status read_groups(const struct reading *r, struct moei_quant_says *out)
{
    const json_t *groups = json_object_get(r->config, "config_groups");
    const json_t *chosen = NULL;
    bool by_name = false;
    struct moei_json_iter it = {.object = json_is_object(groups) ? groups : NULL};
    if (it.object == NULL) {
        return MOE_OK;
    }
    while (moei_json_next(&it)) {
        const json_t *targets = json_object_get(it.value, "targets");
        const char *entry = NULL;
        bool linear = false;
        for (size_t i = 0; i < json_array_size(targets); i++) {
            const char *target = json_string_value(json_array_get(targets, i));
            linear = linear || (target != NULL &&
                                (strcmp(target, "Linear") == 0 || strcmp(target, "FusedMoE") == 0));
        }
        MOE_TRY(find_entry(r, targets, "targets", &entry));
        if (entry != NULL ? !by_name : linear && chosen == NULL) {
            chosen = it.value;
            by_name = entry != NULL;
        }
    }
    if (chosen == NULL) {
        out->excluded = true;
        out->entry = moei_quote_head("config_groups", strlen("config_groups"));
        return MOE_OK;
    }
    read_weights(json_object_get(chosen, "weights"), out);
    if (json_is_string(json_object_get(chosen, "format"))) {
        copy_word(json_object_get(chosen, "format"), out->format, sizeof out->format);
    }
    return MOE_OK;
}

static moe_status read_block(const struct reading *r, struct moei_quant_says *out)
{
    const json_t *block = json_object_get(r->config, "weight_block_size");
    if (block == NULL || json_is_null(block)) {
        return MOE_OK;
    }
    for (size_t i = 0; i < 2; i++) {
        const json_t *size = json_array_get(block, i);
        MOE_REQUIRE(json_array_size(block) == 2 && json_is_integer(size), MOE_E_MALFORMED,
                    "%s: %s: quantization_config: \"weight_block_size\" is %s, expected two "
                    "integers",
                    r->doc->call, r->doc->label, moei_json_describe(block).text);
        out->block[i] = (int64_t)json_integer_value(size);
    }
    return MOE_OK;
}

moe_status moei_quant_read(const moei_json *doc, const char *const names[], size_t count,
                           struct moei_quant_says *out)
{
    memset(out, 0, sizeof *out);
    const json_t *config = moei_config_find(doc->root, "quantization_config");
    config = config != NULL ? config : moei_config_find(doc->root, "compression_config");
    if (config == NULL) {
        return MOE_OK;
    }
    MOE_REQUIRE(json_is_object(config), MOE_E_MALFORMED,
                "%s: %s: \"quantization_config\" is %s, expected an object", doc->call, doc->label,
                moei_json_describe(config).text);
    const struct reading r = {.doc = doc, .config = config, .names = names, .count = count};
    const json_t *method = json_object_get(config, "quant_method");
    const json_t *algorithm = json_object_get(config, "quant_algo");
    MOE_REQUIRE(json_is_string(method) || json_is_string(algorithm), MOE_E_MALFORMED,
                "%s: %s: quantization_config: \"quant_method\" is %s, expected a string", doc->call,
                doc->label, moei_json_describe(method).text);
    out->given = true;
    copy_word(method, out->method, sizeof out->method);
    if (method == NULL) {
        (void)snprintf(out->method, sizeof out->method, "modelopt");
    }
    MOE_TRY(read_exclusions(&r, out));
    MOE_TRY(read_block(&r, out));
    if (out->excluded) {
        return MOE_OK;
    }
    if (strcmp(out->method, "compressed-tensors") == 0) {
        copy_word(json_object_get(config, "format"), out->format, sizeof out->format);
        MOE_TRY(read_groups(&r, out));
    } else if (strcmp(out->method, "quark") == 0) {
        const json_t *global = json_object_get(config, "global_quant_config");
        if (json_object_size(json_object_get(config, "layer_quant_config")) == 0) {
            copy_word(json_object_get(json_object_get(global, "weight"), "dtype"), out->format,
                      sizeof out->format);
        }
    } else {
        copy_word(algorithm, out->format, sizeof out->format);
    }
    if (strcmp(out->format, "mixed-precision") == 0 ||
        strcmp(out->format, "MIXED_PRECISION") == 0) {
        out->format[0] = '\0';
    }
    return MOE_OK;
}
