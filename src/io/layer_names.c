// SPDX-License-Identifier: Apache-2.0
// The tensors of a layer by their names:
//   [model.]layers.N.<block>.experts.E.<projection>.<suffix>      one expert
//   [model.]layers.N.<block>.experts.<projection>[<suffix>]       all experts in one tensor
//   [model.]layers.N.<block>.{input,output}_linear.weight         the same (Granite)
//   [model.]layers.N.[<block>.]shared_expert[s].<projection>.<suffix>
// Every tensor below "experts." and the shared experts must be one of those.
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "core/safemath.h"
#include "io/checkpoint.h"
#include "io/dialects.h"
#include "io/text.h"

#define LAYERS      "layers."
#define MAX_LAYER   1000000
#define EXPERTS     "experts."
#define GRANITE_IN  "input_linear."
#define GRANITE_OUT "output_linear."

static const struct {
    const char *name;
    enum moei_projection projection;
} projections[] = {
    {"gate_up_proj", MOEI_GATE_UP},
    {"gate_proj", MOEI_GATE},
    {"up_proj", MOEI_UP},
    {"down_proj", MOEI_DOWN},
    {"w1", MOEI_GATE},
    {"w3", MOEI_UP},
    {"w2", MOEI_DOWN},
    {"input_linear", MOEI_GATE_UP},
    {"output_linear", MOEI_DOWN},
};

static const struct {
    const char *name;
    enum moei_suffix suffix;
} suffixes[] = {
    {"weight", MOEI_SUFFIX_WEIGHT},
    {"", MOEI_SUFFIX_WEIGHT},
    {"blocks", MOEI_SUFFIX_BLOCKS},
    {"scales", MOEI_SUFFIX_SCALES},
    {"scale", MOEI_SUFFIX_SCALE},
    {"weight_scale", MOEI_SUFFIX_WEIGHT_SCALE},
    {"weight_scale_inv", MOEI_SUFFIX_WEIGHT_SCALE_INV},
    {"scale_inv", MOEI_SUFFIX_WEIGHT_SCALE_INV},
    {"weight_scale_2", MOEI_SUFFIX_WEIGHT_SCALE_2},
    {"weight_packed", MOEI_SUFFIX_WEIGHT_PACKED},
    {"weight_global_scale", MOEI_SUFFIX_WEIGHT_GLOBAL_SCALE},
    {"weight_zero_point", MOEI_SUFFIX_WEIGHT_ZERO_POINT},
    {"weight_shape", MOEI_SUFFIX_WEIGHT_SHAPE},
    {"weight_g_idx", MOEI_SUFFIX_WEIGHT_G_IDX},
    {"input_scale", MOEI_SUFFIX_INPUT_SCALE},
    {"input_global_scale", MOEI_SUFFIX_INPUT_GLOBAL_SCALE},
    {"bias", MOEI_SUFFIX_BIAS},
};

// Where shared experts are, below the block or beside it.
static const char *const shared_names[] = {"shared_experts.", "shared_expert.", "shared_mlp.",
                                           "share_expert."};

// Components in front of "layers." that are other models than the language model.
static const char *const other_models[] = {"mtp",          "talker",      "visual", "vision_tower",
                                           "vision_model", "audio_tower", "draft"};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static bool begins_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool in_other_model(const char *name, const char *end)
{
    const char *at = name;
    while (at < end) {
        const char *dot = strchr(at, '.');
        const size_t size = dot == NULL ? strlen(at) : (size_t)(dot - at);
        for (size_t i = 0; i < COUNT(other_models); i++) {
            if (strlen(other_models[i]) == size && strncmp(at, other_models[i], size) == 0) {
                return true;
            }
        }
        at += size + 1;
    }
    return false;
}

// A decimal number of few digits and the '.' after it; -1: something else.
static int32_t read_number(const char **at)
{
    int32_t n = 0;
    const char *c = *at;
    while (*c >= '0' && *c <= '9' && n < MAX_LAYER) {
        n = n * 10 + (*c++ - '0');
    }
    if (c == *at || *c != '.' || n >= MAX_LAYER || (**at == '0' && c > *at + 1)) {
        return -1;
    }
    *at = c + 1;
    return n;
}

// The number after "layers." of the language model, and what follows it; -1: none.
static int32_t layer_of(const char *name, const char **rest)
{
    const char *at = strstr(name, LAYERS);
    while (at != NULL) {
        const char *after = at + strlen(LAYERS);
        if ((at == name || at[-1] == '.') && !in_other_model(name, at)) {
            const int32_t n = read_number(&after);
            if (n >= 0) {
                *rest = after;
                return n;
            }
        }
        at = strstr(at + 1, LAYERS);
    }
    return -1;
}

int32_t moe_checkpoint_layers(const moe_checkpoint *checkpoint)
{
    int32_t count = 0;
    for (size_t i = 0; i < moe_checkpoint_count(checkpoint); i++) {
        const char *rest;
        const int32_t n = layer_of(moei_checkpoint_sorted(checkpoint, i), &rest);
        count = n >= count ? n + 1 : count;
    }
    return count;
}

static bool after_shared(const char *start, const char *at)
{
    for (size_t i = 0; i < COUNT(shared_names); i++) {
        const size_t size = strlen(shared_names[i]);
        if ((size_t)(at - start) >= size && strncmp(at - size, shared_names[i], size) == 0) {
            return true;
        }
    }
    return false;
}

// Where the experts' own part of a name begins; NULL: not a tensor of routed experts.
static const char *find_experts(const char *rest)
{
    static const char *const marks[] = {EXPERTS, GRANITE_IN, GRANITE_OUT};
    for (size_t i = 0; i < COUNT(marks); i++) {
        const char *at = strstr(rest, marks[i]);
        if (at != NULL && (at == rest || at[-1] == '.') && !after_shared(rest, at)) {
            return at;
        }
    }
    return NULL;
}

int moe_checkpoint_has_experts(const moe_checkpoint *checkpoint, int32_t layer)
{
    for (size_t i = 0; i < moe_checkpoint_count(checkpoint); i++) {
        const char *rest = NULL;
        const int32_t n = layer_of(moei_checkpoint_sorted(checkpoint, i), &rest);
        if (n >= 0 && n == layer && find_experts(rest) != NULL) {
            return 1;
        }
    }
    return 0;
}

// Finds layer->prefix and layer->outer: one for all experts.
static moe_status find_prefix(moe_checkpoint_layer *layer, const char *call, int32_t index)
{
    const moe_checkpoint *c = layer->checkpoint;
    int32_t first = -1;
    for (size_t i = 0; i < moe_checkpoint_count(c); i++) {
        const char *name = moei_checkpoint_sorted(c, i);
        const char *rest = NULL;
        const int32_t n = layer_of(name, &rest);
        const char *at = n >= 0 ? find_experts(rest) : NULL;
        if (at == NULL || n != index) {
            first = at != NULL && (first < 0 || n < first) ? n : first;
            continue;
        }
        const size_t size = (size_t)(at - name);
        if (layer->prefix[0] != '\0') {
            MOE_REQUIRE(strlen(layer->prefix) == size && strncmp(layer->prefix, name, size) == 0,
                        MOE_E_MALFORMED,
                        "%s: %s: layer %" PRId32 " has experts below \"%s\" and in \"%s\"", call,
                        moei_checkpoint_label(c), index,
                        moei_quote_head(layer->prefix, strlen(layer->prefix)).text,
                        moei_quote_head(name, strlen(name)).text);
            continue;
        }
        MOE_REQUIRE(size < MOEI_NAME_BYTES - 64, MOE_E_LIMIT,
                    "%s: %s: \"%s\": a name of %zu bytes before its experts, the limit is %d", call,
                    moei_checkpoint_label(c), moei_quote_head(name, strlen(name)).text, size,
                    MOEI_NAME_BYTES - 64);
        memcpy(layer->prefix, name, size);
        memcpy(layer->outer, name, (size_t)(rest - name));
    }
    if (layer->prefix[0] == '\0' && first >= 0) {
        return moe_fail(MOE_E_NOT_FOUND,
                        "%s: %s: layer %" PRId32 " has no experts; the first that has is %" PRId32,
                        call, moei_checkpoint_label(c), index, first);
    }
    MOE_REQUIRE(layer->prefix[0] != '\0', MOE_E_NOT_FOUND,
                "%s: %s: layer %" PRId32 " has no experts, nor has any other: no tensor is named "
                "..." LAYERS "N...." EXPERTS "...",
                call, moei_checkpoint_label(c), index);
    return MOE_OK;
}

// "gate_proj.weight_scale" to projection and suffix; false: it is neither.
static bool read_tail(const char *tail, enum moei_projection *projection, enum moei_suffix *suffix)
{
    for (size_t i = 0; i < COUNT(projections); i++) {
        if (!begins_with(tail, projections[i].name)) {
            continue;
        }
        const char *rest = tail + strlen(projections[i].name);
        if (*rest != '\0' && *rest != '.' && *rest != '_') {
            continue;
        }
        rest += *rest != '\0';
        for (size_t s = 0; s < COUNT(suffixes); s++) {
            if (strcmp(rest, suffixes[s].name) == 0) {
                *projection = projections[i].projection;
                *suffix = suffixes[s].suffix;
                return true;
            }
        }
    }
    return false;
}

static moe_status unknown_tensor(const moe_checkpoint_layer *layer, const char *call,
                                 const struct moei_stack *stack, const char *name)
{
    return moe_fail(MOE_E_MALFORMED,
                    "%s: %s: the tensor \"%s\" of the %s has no meaning that is known", call,
                    moei_checkpoint_label(layer->checkpoint),
                    moei_quote_head(name, strlen(name)).text, stack->what);
}

// Puts a tensor in its place. `tail` is what follows "experts." and the like.
static moe_status place(const moe_checkpoint_layer *layer, const char *call, size_t index,
                        const char *tail, struct moei_stack *stack)
{
    const char *name = moei_checkpoint_sorted(layer->checkpoint, index);
    const char *label = moei_checkpoint_label(layer->checkpoint);
    const int32_t expert = read_number(&tail);
    const bool stacked = expert < 0;
    enum moei_projection projection = MOEI_GATE_UP;
    enum moei_suffix suffix = MOEI_SUFFIX_NONE;
    if (!read_tail(tail, &projection, &suffix)) {
        return unknown_tensor(layer, call, stack, name);
    }
    if (stack->pieces == NULL) {
        // Shared experts of one are stored without a number, which is a stack without experts'
        // dimension.
        stack->stacked = stacked;
        const size_t pieces = (size_t)(stacked ? 1 : stack->count) * MOEI_NUM_PROJECTIONS;
        stack->pieces = calloc(pieces, sizeof stack->pieces[0]);
        MOE_REQUIRE(stack->pieces != NULL, MOE_E_NO_MEMORY, "%s: %s: out of memory", call, label);
    }
    MOE_REQUIRE(stacked == stack->stacked, MOE_E_MALFORMED,
                "%s: %s: \"%s\" holds %s, other tensors of the %s hold %s", call, label,
                moei_quote_head(name, strlen(name)).text, stacked ? "all experts" : "one expert",
                stack->what, stacked ? "one each" : "all");
    MOE_REQUIRE(expert < stack->count, MOE_E_MALFORMED,
                "%s: %s: \"%s\" is of expert %" PRId32 ", the configuration has %" PRId32, call,
                label, moei_quote_head(name, strlen(name)).text, expert, stack->count);
    const size_t at = (size_t)(stacked ? 0 : expert) * MOEI_NUM_PROJECTIONS + projection;
    uint32_t *slot = &stack->pieces[at].tensor[suffix];
    MOE_REQUIRE(*slot == 0, MOE_E_MALFORMED, "%s: %s: \"%s\" and \"%s\" are the same tensor", call,
                label,
                moei_quote_head(moei_checkpoint_sorted(layer->checkpoint, *slot - 1),
                                strlen(moei_checkpoint_sorted(layer->checkpoint, *slot - 1)))
                    .text,
                moei_quote_head(name, strlen(name)).text);
    *slot = (uint32_t)index + 1;
    return MOE_OK;
}

// All tensors whose names begin with `prefix`, whose last `kept` bytes belong to the projection.
static moe_status gather_prefix(const moe_checkpoint_layer *layer, const char *call,
                                const char *prefix, size_t kept, struct moei_stack *stack)
{
    const moe_checkpoint *c = layer->checkpoint;
    for (size_t i = moei_checkpoint_lower(c, prefix);
         i < moe_checkpoint_count(c) && begins_with(moei_checkpoint_sorted(c, i), prefix); i++) {
        const char *name = moei_checkpoint_sorted(c, i);
        MOE_REQUIRE(stack->count > 0, MOE_E_MALFORMED,
                    "%s: %s: the tensor \"%s\" is there, the configuration has no %s", call,
                    moei_checkpoint_label(c), moei_quote_head(name, strlen(name)).text,
                    stack->what);
        MOE_TRY(place(layer, call, i, name + strlen(prefix) - kept, stack));
    }
    return MOE_OK;
}

static moe_status gather_shared(moe_checkpoint_layer *layer, const char *call)
{
    const char *const bases[] = {layer->prefix, layer->outer};
    for (size_t b = 0; b < (strcmp(layer->prefix, layer->outer) == 0 ? 1 : COUNT(bases)); b++) {
        for (size_t i = 0; i < COUNT(shared_names); i++) {
            char prefix[MOEI_NAME_BYTES];
            (void)snprintf(prefix, sizeof prefix, "%s%s", bases[b], shared_names[i]);
            MOE_TRY(gather_prefix(layer, call, prefix, 0, &layer->shared));
        }
    }
    MOE_REQUIRE(layer->shared.count == 0 || layer->shared.pieces != NULL, MOE_E_NOT_FOUND,
                "%s: %s: the configuration has %" PRId32 " shared experts, no tensor is named "
                "\"%s%s...\"",
                call, moei_checkpoint_label(layer->checkpoint), layer->shared.count,
                moei_quote_head(layer->prefix, strlen(layer->prefix)).text, shared_names[0]);
    return MOE_OK;
}

moe_status moei_layer_gather(moe_checkpoint_layer *layer, const char *call, int32_t index)
{
    static const char *const ends[] = {EXPERTS, GRANITE_IN, GRANITE_OUT};
    MOE_TRY(find_prefix(layer, call, index));
    for (size_t i = 0; i < COUNT(ends); i++) {
        char prefix[MOEI_NAME_BYTES];
        (void)snprintf(prefix, sizeof prefix, "%s%s", layer->prefix, ends[i]);
        MOE_TRY(gather_prefix(layer, call, prefix, i == 0 ? 0 : strlen(ends[i]), &layer->routed));
    }
    return gather_shared(layer, call);
}

const char *moei_piece_name(const moe_checkpoint_layer *layer, const struct moei_piece *piece,
                            enum moei_suffix suffix)
{
    const uint32_t index = piece->tensor[suffix];
    return index == 0 ? NULL : moei_checkpoint_sorted(layer->checkpoint, index - 1);
}

moe_status moei_piece_view(const moe_checkpoint_layer *layer, const char *call,
                           const struct moei_piece *piece, enum moei_suffix suffix, moe_tensor *out)
{
    const uint32_t index = piece->tensor[suffix];
    memset(out, 0, sizeof *out);
    return index == 0 ? MOE_OK : moei_checkpoint_view(call, layer->checkpoint, index - 1, out);
}
