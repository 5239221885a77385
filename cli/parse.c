// SPDX-License-Identifier: Apache-2.0
// Options, numbers and names of a command line; each says on stderr what it does not take.
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

bool cli_parse(int argc, char **argv, const cli_option *options, const char **positional, int max,
               int *count)
{
    bool only_positional = false;
    *count = 0;
    for (int i = 0; i < argc; i++) {
        const cli_option *o = options;
        if (!only_positional && strcmp(argv[i], "--") == 0) {
            only_positional = true;
            continue;
        }
        // A letter after one dash is somebody's habit from another program, hardly a text.
        if (!only_positional && argv[i][0] == '-' && isalpha((unsigned char)argv[i][1])) {
            (void)fprintf(stderr,
                          "moe: unknown option \"%s\"; options begin with --, and -- stands before "
                          "a text that looks like one\n",
                          argv[i]);
            return false;
        }
        if (only_positional || strncmp(argv[i], "--", 2) != 0) {
            if (*count >= max) {
                (void)fprintf(stderr, "moe: \"%s\" is one argument too many\n", argv[i]);
                return false;
            }
            positional[(*count)++] = argv[i];
            continue;
        }
        while (o->name != NULL && strcmp(o->name, argv[i] + 2) != 0) {
            o++;
        }
        if (o->name == NULL) {
            (void)fprintf(stderr, "moe: unknown option \"%s\"\n", argv[i]);
            return false;
        }
        if (o->flag != NULL) {
            *o->flag = true;
        } else if (i + 1 < argc) {
            *o->value = argv[++i];
        } else {
            (void)fprintf(stderr, "moe: option \"%s\" needs a value\n", argv[i]);
            return false;
        }
    }
    return true;
}

bool cli_number(const char *name, const char *text, int64_t low, int64_t high, int64_t *out)
{
    char *end = NULL;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    // strtoll takes blanks and a plus sign, too.
    if (text[0] == '\0' || strchr("-0123456789", text[0]) == NULL || *end != '\0' || errno != 0 ||
        value < low || value > high) {
        (void)fprintf(stderr, "moe: %s \"%s\" is not a whole number in %lld..%lld\n", name, text,
                      (long long)low, (long long)high);
        return false;
    }
    *out = value;
    return true;
}

bool cli_real(const char *name, const char *text, double low, double high, double *out)
{
    char *end = NULL;
    *out = strtod(text, &end);
    if (text[0] == '\0' || strspn(text, "+-.0123456789eE") != strlen(text) || end == text ||
        *end != '\0' || !(*out >= low) || !(*out <= high)) {
        (void)fprintf(stderr, "moe: %s \"%s\" is not a number in %g..%g\n", name, text, low, high);
        return false;
    }
    return true;
}

bool cli_device(const char *text, moe_device_type *out)
{
    const moe_device_type types[] = {MOE_DEVICE_CPU, MOE_DEVICE_CUDA, MOE_DEVICE_HIP,
                                     MOE_DEVICE_EXT};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(text, moe_device_name(types[i])) == 0) {
            *out = types[i];
            return true;
        }
    }
    (void)fprintf(stderr, "moe: --device \"%s\" is not one of cpu, cuda, hip, ext\n", text);
    return false;
}

bool cli_split(const char *where, char dir[CLI_PATH_BYTES], int64_t *layer)
{
    const char *colon = strrchr(where, ':');
    const size_t length = colon != NULL ? (size_t)(colon - where) : strlen(where);
    *layer = 0;
    if (length >= CLI_PATH_BYTES) {
        (void)fprintf(stderr, "moe: \"%s\" is too long a name\n", where);
        return false;
    }
    memcpy(dir, where, length);
    dir[length] = '\0';
    return colon == NULL || cli_number("layer", colon + 1, 0, INT32_MAX, layer);
}

// bench/shapes.def: the models whose layers are spoken of by name.
static const struct {
    const char *name;
    int64_t hidden, inter;
    int32_t experts, top_k;
    moe_format format;
    moe_activation activation;
} shapes[] = {
#define MOE_SHAPE(name, hidden, inter, experts, top_k, format, activation)                         \
    {name, hidden, inter, experts, top_k, MOE_FORMAT_##format, MOE_ACT_##activation},
#include "../bench/shapes.def"
#undef MOE_SHAPE
};

bool cli_shape(const char *text, moe_layer_desc *d)
{
    int64_t v[4] = {0, 0, 0, 0};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(text, shapes[i].name) == 0) {
            d->hidden = shapes[i].hidden;
            d->inter = shapes[i].inter;
            d->num_experts = shapes[i].experts;
            d->top_k = shapes[i].top_k;
            return true;
        }
    }
    const char *at = text;
    for (int i = 0; i < 4; i++) {
        char *end = NULL;
        v[i] = strtoll(at, &end, 10);
        if (!isdigit((unsigned char)*at) || *end != (i < 3 ? ',' : '\0') || v[i] < 0 ||
            v[i] > INT32_MAX) {
            (void)fprintf(stderr, "moe: --shape \"%s\" is neither H,I,E,k nor one of", text);
            for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
                (void)fprintf(stderr, " %s", shapes[s].name);
            }
            (void)fprintf(stderr, "\n");
            return false;
        }
        at = end + 1;
    }
    d->hidden = v[0];
    d->inter = v[1];
    d->num_experts = (int32_t)v[2];
    d->top_k = (int32_t)v[3];
    return true;
}

moe_activation cli_shape_activation(const char *name, moe_format format)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(name, shapes[i].name) == 0 && shapes[i].format == format) {
            return shapes[i].activation;
        }
    }
    return MOE_ACT_SILU;
}

void cli_plain_layer(moe_layer_desc *d)
{
    d->routing = MOE_ROUTING_FROM_LOGITS;
    d->route.scoring = MOE_SCORING_SOFTMAX;
    d->route.renormalise = MOE_RENORM_SUM;
    d->activation = MOE_ACT_SILU;
    d->gate_up = MOE_GATE_FIRST;
    d->weight_stage = MOE_WEIGHT_OUTPUT;
}

static const char *const levels[] = {"none", "run", "batch", "kernel"};

const char *cli_level_name(moe_determinism level)
{
    return levels[level - MOE_DET_NONE];
}

bool cli_level(const char *text, moe_determinism *out)
{
    for (moe_determinism level = MOE_DET_NONE; level <= MOE_DET_KERNEL; level++) {
        if (strcmp(text, cli_level_name(level)) == 0) {
            *out = level;
            return true;
        }
    }
    (void)fprintf(stderr, "moe: --det \"%s\" is not one of none, run, batch, kernel\n", text);
    return false;
}

bool cli_format(const char *option, const char *text, moe_format *out)
{
    *out = moe_format_from_name(text);
    if (*out == MOE_FORMAT_UNSET) {
        (void)fprintf(stderr, "moe: %s \"%s\" is not a format\n", option, text);
    }
    return *out != MOE_FORMAT_UNSET;
}

bool cli_quantiser(const char *option, const char *text, moe_quant_desc *out)
{
    char name[64];
    const size_t length = strcspn(text, ":");
    (void)snprintf(name, sizeof name, "%.*s", (int)(length < 63 ? length : 63), text);
    *out = (moe_quant_desc){.spec = moe_quant_from_name(name)};
    if (out->spec == MOE_QUANT_NONE && strcmp(text, "none") != 0) {
        (void)fprintf(stderr, "moe: %s \"%s\" is not a quantiser\n", option, text);
        return false;
    }
    for (moe_dtype d = 1; d < 32 && text[length] == ':' && out->elem == 0; d++) {
        out->elem = strcmp(text + length + 1, moe_dtype_name(d)) == 0 ? d : 0;
    }
    if (text[length] == ':' && out->elem == 0) {
        (void)fprintf(stderr, "moe: %s \"%s\": \"%s\" is not an element type\n", option, text,
                      text + length + 1);
        return false;
    }
    return true;
}
