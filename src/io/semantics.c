// SPDX-License-Identifier: Apache-2.0
// The vocabulary in which oracle files describe a layer, and the one way from facts, whatever
// their source, to a descriptor.
//
// An oracle case is a JSON object with the sizes H, I, E, k and an object "semantics". A word that
// is not known here is refused by name, because passing over it would compute something else.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/check.h"
#include "io/config.h"
#include "io/text.h"
#include "moe/io.h"

#define MAX_DIM     (INT64_C(1) << 20)
#define MAX_EXPERTS 4096

const struct moei_word moei_scoring_words[] = {
    {"softmax", MOE_SCORING_SOFTMAX},
    {"sigmoid", MOE_SCORING_SIGMOID},
    {"sqrtsoftplus", MOE_SCORING_SQRTSOFTPLUS},
    {"sparsemixer", MOE_SCORING_SPARSEMIXER},
    {NULL, 0},
};

moe_status moei_word_find(const moei_json *doc, const char *key, const char *word,
                          const struct moei_word *words, int32_t *out)
{
    char known[200] = "";
    size_t used = 0;
    for (const struct moei_word *w = words; w->word != NULL; w++) {
        if (strcmp(w->word, word) == 0) {
            *out = w->value;
            return MOE_OK;
        }
        const size_t size = strlen(w->word);
        if (used + size + 3 < sizeof known) {
            memcpy(known + used, used > 0 ? ", " : "", used > 0 ? 2 : 0);
            used += used > 0 ? 2 : 0;
            memcpy(known + used, w->word, size + 1);
            used += size;
        }
    }
    return moe_fail(MOE_E_UNSUPPORTED, "%s: %s: \"%s\" is \"%s\", known are %s", doc->call,
                    doc->label, key, moei_quote_head(word, strlen(word)).text, known);
}

static moe_status in_range(const moei_json *doc, const char *name, int64_t value, int64_t min,
                           int64_t max)
{
    MOE_REQUIRE(value >= min, MOE_E_MALFORMED,
                "%s: %s: the %s is %" PRId64 ", must be at least %" PRId64, doc->call, doc->label,
                name, value, min);
    MOE_REQUIRE(value <= max, MOE_E_LIMIT, "%s: %s: the %s is %" PRId64 ", the limit is %" PRId64,
                doc->call, doc->label, name, value, max);
    return MOE_OK;
}

// A finite float of at least `min` that does not vanish where the descriptor reads 0 as "none".
static moe_status real_in_range(const moei_json *doc, const char *name, double value, double min)
{
    const float f = (float)value;
    MOE_REQUIRE(isfinite(f) && value >= min, MOE_E_UNSUPPORTED,
                "%s: %s: the %s is %g, must be a finite float32 of at least %g", doc->call,
                doc->label, name, value, min);
    return MOE_OK;
}

static moe_status check_sizes(const moei_json *doc, const struct moei_facts *f)
{
    MOE_TRY(in_range(doc, "hidden size", f->hidden, 1, MAX_DIM));
    MOE_TRY(in_range(doc, "experts' inner size", f->inter, 1, MAX_DIM));
    MOE_TRY(in_range(doc, "number of experts", f->experts, 1, MAX_EXPERTS));
    MOE_TRY(in_range(doc, "latent size", f->latent, 0, MAX_DIM));
    MOE_TRY(in_range(doc, "number of zero experts", f->zero_experts, 0, MAX_EXPERTS));
    MOE_TRY(in_range(doc, "number of experts per token", f->top_k, 1, INT32_MAX));
    MOE_REQUIRE(f->top_k <= f->experts + f->zero_experts, MOE_E_MALFORMED,
                "%s: %s: %" PRId64 " experts per token exceed the %" PRId64 " that there are",
                doc->call, doc->label, f->top_k, f->experts + f->zero_experts);
    MOE_TRY(in_range(doc, "number of shared experts", f->shared_count, 0, MAX_EXPERTS));
    return f->shared_count == 0
               ? MOE_OK
               : in_range(doc, "shared experts' inner size", f->shared_inter, 1, MAX_DIM);
}

static moe_status check_groups(const moei_json *doc, const struct moei_facts *f)
{
    const int64_t all = f->experts + f->zero_experts;
    if (f->groups <= 1) {
        return MOE_OK;
    }
    MOE_REQUIRE(all % f->groups == 0, MOE_E_MALFORMED,
                "%s: %s: %" PRId64 " experts do not split into %" PRId64 " equal groups", doc->call,
                doc->label, all, f->groups);
    MOE_REQUIRE(f->top_groups >= 1 && f->top_groups <= f->groups, MOE_E_MALFORMED,
                "%s: %s: %" PRId64 " groups of %" PRId64 " cannot be kept", doc->call, doc->label,
                f->top_groups, f->groups);
    MOE_REQUIRE(f->top_groups * (all / f->groups) >= f->top_k, MOE_E_MALFORMED,
                "%s: %s: %" PRId64 " groups of %" PRId64 " experts hold fewer than the %" PRId64
                " experts per token",
                doc->call, doc->label, f->top_groups, all / f->groups, f->top_k);
    MOE_REQUIRE(f->group_score != MOE_GROUP_SCORE_TOP2_SUM || all / f->groups >= 2,
                MOE_E_UNSUPPORTED, "%s: %s: a group of one expert has no sum of the two largest",
                doc->call, doc->label);
    return MOE_OK;
}

static moe_status route_from_facts(const moei_json *doc, const struct moei_facts *f,
                                   moe_route_desc *route)
{
    const bool mixer = f->scoring == MOE_SCORING_SPARSEMIXER;
    MOE_TRY(check_groups(doc, f));
    MOE_TRY(real_in_range(doc, "scale", f->scale, 1e-30));
    MOE_TRY(real_in_range(doc, "epsilon of the renormalisation", f->renorm_eps, 0));
    MOE_TRY(real_in_range(doc, "epsilon of the jitter", f->jitter_eps, 0));
    route->scoring = f->scoring;
    if (f->selected) {
        MOE_REQUIRE(f->on_logits, MOE_E_UNSUPPORTED,
                    "%s: %s: scores over the selected logits cannot select", doc->call, doc->label);
        MOE_REQUIRE(f->scoring == MOE_SCORING_SOFTMAX || f->scoring == MOE_SCORING_SIGMOID,
                    MOE_E_UNSUPPORTED,
                    "%s: %s: over the selected logits only softmax and sigmoid are known",
                    doc->call, doc->label);
        route->scoring = f->scoring == MOE_SCORING_SOFTMAX ? MOE_SCORING_SOFTMAX_SELECTED
                                                           : MOE_SCORING_SIGMOID_SELECTED;
    } else if (f->on_logits) {
        route->select_on = MOE_SELECT_LOGITS;
    }
    MOE_REQUIRE(!mixer || (f->renormalise == MOE_RENORM_NONE && !f->correction_bias &&
                           f->groups <= 1 && !f->scale_tensor && !(f->scale < 1) &&
                           !(f->scale > 1) && f->zero_experts == 0),
                MOE_E_UNSUPPORTED,
                "%s: %s: sparsemixer has no bias, groups, zero experts, renormalisation or scale",
                doc->call, doc->label);
    MOE_REQUIRE(!mixer || f->top_k == 2, MOE_E_UNSUPPORTED,
                "%s: %s: sparsemixer takes 2 experts per token, not %" PRId64, doc->call,
                doc->label, f->top_k);
    route->renormalise = f->renormalise;
    route->renorm_eps = f->renormalise == MOE_RENORM_NONE ? 0.0f : (float)f->renorm_eps;
    route->scale = (float)f->scale;
    route->correction_bias = f->correction_bias;
    route->scale_tensor = f->scale_tensor;
    if (f->groups > 1) {
        route->num_groups = (int32_t)f->groups;
        route->top_groups = (int32_t)f->top_groups;
        route->group_score = f->group_score;
        route->group_mask_zero = f->group_mask_zero;
    }
    route->zero_experts = (int32_t)f->zero_experts;
    route->hash_table = f->hash_table;
    route->jitter_eps = mixer ? (float)f->jitter_eps : 0.0f;
    if (f->shared_gate == MOE_SHARED_ROUTER_WEIGHTED && f->shared_count > 0) {
        route->shared_scores = (int32_t)f->shared_count;
        route->renorm_shared = f->renorm_shared && f->renormalise != MOE_RENORM_NONE;
    }
    return MOE_OK;
}

// Parameters that an activation does not have are refused, those that it needs are demanded.
static moe_status check_activation(const moei_json *doc, const char *whose,
                                   moe_activation activation, double alpha, double beta,
                                   double limit)
{
    const bool oai = activation == MOE_ACT_SWIGLUOAI;
    const bool clamps = oai || activation == MOE_ACT_SILU || activation == MOE_ACT_SWIGLUSTEP;
    MOE_TRY(real_in_range(doc, "activation's alpha", alpha, 0));
    MOE_TRY(real_in_range(doc, "activation's beta", beta, 0));
    MOE_TRY(real_in_range(doc, "activation's limit", limit, 0));
    MOE_REQUIRE(oai || (!(alpha > 0) && !(beta > 0)), MOE_E_UNSUPPORTED,
                "%s: %s: %s activation %s has no alpha or beta (%g, %g)", doc->call, doc->label,
                whose, moe_activation_name(activation), alpha, beta);
    MOE_REQUIRE(!oai || alpha > 0, MOE_E_MALFORMED, "%s: %s: %s activation %s needs an alpha",
                doc->call, doc->label, whose, moe_activation_name(activation));
    MOE_REQUIRE(clamps || !(limit > 0), MOE_E_UNSUPPORTED,
                "%s: %s: %s activation %s has no limit (%g)", doc->call, doc->label, whose,
                moe_activation_name(activation), limit);
    return MOE_OK;
}

static moe_status shared_from_facts(const moei_json *doc, const struct moei_facts *f,
                                    moe_shared_desc *shared)
{
    shared->count = (int32_t)f->shared_count;
    if (f->shared_count == 0) {
        return MOE_OK;
    }
    MOE_TRY(check_activation(doc, "the shared experts'", f->shared_activation, f->shared_alpha,
                             f->shared_beta, f->shared_limit));
    shared->inter = f->shared_inter;
    shared->gate = f->shared_gate;
    shared->activation = f->shared_activation;
    shared->alpha = (float)f->shared_alpha;
    shared->beta = (float)f->shared_beta;
    shared->linear_beta = 0.0f;
    shared->limit = (float)f->shared_limit;
    // Their matrices come as two, or joined with the gate first.
    shared->gate_up =
        moe_activation_gated(f->shared_activation) ? MOE_GATE_FIRST : MOE_GATE_UP_UNSET;
    shared->transposed = 0;
    shared->gemm[0].bias = f->shared_bias[0];
    shared->gemm[1].bias = f->shared_bias[1];
    return MOE_OK;
}

moe_status moei_facts_apply(const moei_json *doc, const struct moei_facts *f, moe_layer_desc *desc)
{
    moe_layer_desc d = *desc;
    MOE_TRY(check_sizes(doc, f));
    d.hidden = f->hidden;
    d.inter = f->inter;
    d.num_experts = (int32_t)f->experts;
    d.top_k = (int32_t)f->top_k;
    d.latent = f->latent;
    memset(&d.route, 0, sizeof d.route);
    if (f->scoring == MOE_SCORING_UNSET) {
        d.routing = MOE_ROUTING_GIVEN;
    } else {
        d.routing = MOE_ROUTING_FROM_LOGITS;
        MOE_TRY(route_from_facts(doc, f, &d.route));
    }
    d.weight_stage = f->weight_on_input ? MOE_WEIGHT_INPUT : MOE_WEIGHT_OUTPUT;
    MOE_TRY(check_activation(doc, "the", f->activation, f->alpha, f->beta, f->limit));
    d.activation = f->activation;
    d.alpha = (float)f->alpha;
    d.beta = (float)f->beta;
    d.linear_beta = 0.0f;
    d.limit = (float)f->limit;
    d.gate_up = f->gate_up;
    d.transposed = f->transposed;
    d.gemm[0].bias = f->bias[0];
    d.gemm[1].bias = f->bias[1];
    d.output_bias = f->output_bias;
    MOE_TRY(shared_from_facts(doc, f, &d.shared));
    *desc = d;
    return MOE_OK;
}

// -- The vocabulary of oracle files ---------------------------------------------------------------

static const struct moei_word weights_from_words[] = {{"scores", 1}, {NULL, 0}};
static const struct moei_word scoring_over_words[] = {
    {"all", 0}, {"selected logits", 1}, {NULL, 0}};
static const struct moei_word select_on_words[] = {{"scores", 0}, {"logits", 1}, {NULL, 0}};
static const struct moei_word renorm_words[] = {{"clamped", MOE_RENORM_CLAMPED}, {NULL, 0}};
static const struct moei_word renorm_over_words[] = {
    {"selected", 0}, {"selected+shared", 1}, {NULL, 0}};
static const struct moei_word group_score_words[] = {
    {"max", MOE_GROUP_SCORE_MAX}, {"top2sum", MOE_GROUP_SCORE_TOP2_SUM}, {NULL, 0}};
static const struct moei_word zero_kind_words[] = {{"identity", 1}, {NULL, 0}};
static const struct moei_word weight_on_words[] = {{"output", 0}, {"input", 1}, {NULL, 0}};
static const struct moei_word act_words[] = {{"silu_glu", MOE_ACT_SILU},
                                             {"gpt_oss_swiglu", MOE_ACT_SWIGLUOAI},
                                             {"relu2", MOE_ACT_RELU2_NO_MUL},
                                             {NULL, 0}};
static const struct moei_word shared_act_words[] = {
    {"silu_glu", MOE_ACT_SILU}, {"relu2", MOE_ACT_RELU2_NO_MUL}, {NULL, 0}};
static const struct moei_word layout_words[] = {{"out_in", 0}, {"in_out", 1}, {NULL, 0}};
static const struct moei_word gate_up_words[] = {{"split", MOE_GATE_FIRST},
                                                 {"interleaved", MOE_GATE_UP_INTERLEAVED},
                                                 {"none", MOE_GATE_UP_UNSET},
                                                 {NULL, 0}};
static const struct moei_word shared_words[] = {{"plain", MOE_SHARED_PLAIN},
                                                {"sigmoid_gated", MOE_SHARED_SIGMOID},
                                                {"router_weighted", MOE_SHARED_ROUTER_WEIGHTED},
                                                {NULL, 0}};

static const char *const known_keys[] = {
    "scoring",     "scoring_over", "select_on",    "correction_bias", "groups",
    "renormalise", "renorm_over",  "renorm_eps",   "renorm_min",      "jitter_eps",
    "scale",       "scale_tensor", "weights_from", "weight_on",       "act",
    "alpha",       "limit",        "layout",       "gate_up",         "shared",
    "shared_act",  "latent",       "zero_experts", "tensors",         "note",
};
static const char *const known_group_keys[] = {"n", "top", "score", "masked_value"};
static const char *const known_zero_keys[] = {"n", "kind"};
static const char *const known_roles[] = {
    "router",
    "router_bias",
    "gate_up",
    "up",
    "down",
    "gate_up_bias",
    "down_bias",
    "latent_in",
    "latent_out",
    "shared_gate",
    "shared_up",
    "shared_down",
    "shared_gate_up",
    "shared_gating",
    "shared_up_bias",
    "shared_gate_bias",
    "shared_down_bias",
    "output_bias",
};

/// A case being read.
struct case_reader {
    moei_json doc;
    const json_t *semantics, *tensors;
    moe_shape_fn shape_of;
    void *self;
    struct moei_facts facts;
};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static moe_status only_known(const moei_json *doc, const char *what, const json_t *object,
                             const char *const *known, size_t num_known)
{
    struct moei_json_iter it = {.object = object};
    while (moei_json_next(&it)) {
        bool found = false;
        for (size_t i = 0; i < num_known; i++) {
            found = found || strcmp(known[i], it.key) == 0;
        }
        MOE_REQUIRE(found, MOE_E_UNSUPPORTED, "%s: %s: %s \"%s\" (%s) is not known", doc->call,
                    doc->label, what, moei_quote_head(it.key, strlen(it.key)).text,
                    moei_json_describe(it.value).text);
    }
    return MOE_OK;
}

static moe_status word(const struct case_reader *r, const json_t *object, const char *key,
                       const struct moei_word *words, int32_t *out)
{
    const char *text;
    MOE_TRY(moei_json_string(&r->doc, object, key, &text));
    return moei_word_find(&r->doc, key, text, words, out);
}

static moe_status flag_word(const struct case_reader *r, const char *key,
                            const struct moei_word *words, bool *out)
{
    int32_t value;
    MOE_TRY(word(r, r->semantics, key, words, &value));
    *out = value != 0;
    return MOE_OK;
}

// A number that may be absent or null; `absent` then.
static moe_status optional_number(const struct case_reader *r, const char *key, double absent,
                                  double *out)
{
    *out = absent;
    return moei_json_has(r->semantics, key) ? moei_json_double(&r->doc, r->semantics, key, out)
                                            : MOE_OK;
}

// Null, or the name of a tensor.
static moe_status optional_name(const struct case_reader *r, const char *key, bool *out)
{
    const char *name;
    *out = moei_json_has(r->semantics, key);
    return *out ? moei_json_string(&r->doc, r->semantics, key, &name) : MOE_OK;
}

static bool has_role(const struct case_reader *r, const char *role)
{
    return moei_json_has(r->tensors, role);
}

static moe_status read_groups(struct case_reader *r)
{
    const moei_json *doc = &r->doc;
    const json_t *groups;
    if (!moei_json_has(r->semantics, "groups")) {
        return MOE_OK;
    }
    MOE_TRY(moei_json_object(doc, r->semantics, "groups", &groups));
    MOE_TRY(only_known(doc, "key of groups", groups, known_group_keys, COUNT(known_group_keys)));
    MOE_TRY(moei_json_int64(doc, groups, "n", &r->facts.groups));
    MOE_TRY(moei_json_int64(doc, groups, "top", &r->facts.top_groups));
    MOE_TRY(word(r, groups, "score", group_score_words, &r->facts.group_score));
    const json_t *masked = json_object_get(groups, "masked_value");
    const bool zero = json_is_number(masked) && !(json_number_value(masked) < 0) &&
                      !(json_number_value(masked) > 0);
    const bool inf = json_is_string(masked) && strcmp(json_string_value(masked), "-inf") == 0;
    MOE_REQUIRE(zero || inf, MOE_E_UNSUPPORTED,
                "%s: %s: \"masked_value\" is %s, known are 0.0 and \"-inf\"", doc->call, doc->label,
                moei_json_describe(masked).text);
    r->facts.group_mask_zero = zero;
    return MOE_OK;
}

static moe_status read_renorm(struct case_reader *r)
{
    struct moei_facts *f = &r->facts;
    const json_t *value = json_object_get(r->semantics, "renormalise");
    MOE_TRY(flag_word(r, "renorm_over", renorm_over_words, &f->renorm_shared));
    if (json_is_boolean(value)) {
        f->renormalise = json_is_true(value) ? MOE_RENORM_SUM : MOE_RENORM_NONE;
    } else {
        MOE_TRY(word(r, r->semantics, "renormalise", renorm_words, &f->renormalise));
    }
    const bool clamped = f->renormalise == MOE_RENORM_CLAMPED;
    const char *other = clamped ? "renorm_eps" : "renorm_min";
    MOE_REQUIRE(!moei_json_has(r->semantics, other), MOE_E_UNSUPPORTED,
                "%s: %s: \"%s\" means nothing with \"renormalise\" %s", r->doc.call, r->doc.label,
                other, moei_json_describe(value).text);
    return optional_number(r, clamped ? "renorm_min" : "renorm_eps", 0, &f->renorm_eps);
}

static moe_status read_zero_experts(struct case_reader *r)
{
    const json_t *zero;
    int32_t kind;
    if (!moei_json_has(r->semantics, "zero_experts")) {
        return MOE_OK;
    }
    MOE_TRY(moei_json_object(&r->doc, r->semantics, "zero_experts", &zero));
    MOE_TRY(
        only_known(&r->doc, "key of zero_experts", zero, known_zero_keys, COUNT(known_zero_keys)));
    MOE_TRY(moei_json_int64(&r->doc, zero, "n", &r->facts.zero_experts));
    return word(r, zero, "kind", zero_kind_words, &kind);
}

static moe_status read_routing(struct case_reader *r)
{
    struct moei_facts *f = &r->facts;
    bool scores;
    MOE_TRY(word(r, r->semantics, "scoring", moei_scoring_words, &f->scoring));
    MOE_TRY(flag_word(r, "scoring_over", scoring_over_words, &f->selected));
    MOE_TRY(flag_word(r, "select_on", select_on_words, &f->on_logits));
    MOE_TRY(flag_word(r, "weights_from", weights_from_words, &scores));
    MOE_TRY(flag_word(r, "weight_on", weight_on_words, &f->weight_on_input));
    MOE_TRY(optional_name(r, "correction_bias", &f->correction_bias));
    MOE_TRY(optional_name(r, "scale_tensor", &f->scale_tensor));
    MOE_TRY(read_groups(r));
    MOE_TRY(read_renorm(r));
    MOE_TRY(optional_number(r, "jitter_eps", 0, &f->jitter_eps));
    MOE_TRY(optional_number(r, "scale", 1, &f->scale));
    return read_zero_experts(r);
}

static moe_status read_experts(struct case_reader *r)
{
    struct moei_facts *f = &r->facts;
    const moei_json *doc = &r->doc;
    MOE_TRY(word(r, r->semantics, "act", act_words, &f->activation));
    MOE_TRY(word(r, r->semantics, "gate_up", gate_up_words, &f->gate_up));
    MOE_TRY(flag_word(r, "layout", layout_words, &f->transposed));
    const bool gated = moe_activation_gated(f->activation) != 0;
    MOE_REQUIRE(gated == (f->gate_up != MOE_GATE_UP_UNSET), MOE_E_UNSUPPORTED,
                "%s: %s: \"act\" %s with \"gate_up\" %s", doc->call, doc->label,
                moei_json_describe(json_object_get(r->semantics, "act")).text,
                moei_json_describe(json_object_get(r->semantics, "gate_up")).text);
    MOE_TRY(optional_number(r, "alpha", 0, &f->alpha));
    MOE_TRY(optional_number(r, "limit", 0, &f->limit));
    MOE_REQUIRE(f->limit > 0 || !moei_json_has(r->semantics, "limit"), MOE_E_UNSUPPORTED,
                "%s: %s: \"limit\" is %g, which would clamp everything to it", doc->call,
                doc->label, f->limit);
    f->beta = f->activation == MOE_ACT_SWIGLUOAI ? 1 : 0;
    if (moei_json_has(r->semantics, "latent")) {
        MOE_TRY(moei_json_int64(doc, r->semantics, "latent", &f->latent));
        MOE_TRY(in_range(doc, "latent size", f->latent, 1, MAX_DIM));
    }
    f->bias[0] = has_role(r, "gate_up_bias");
    f->bias[1] = has_role(r, "down_bias");
    const char *first = gated ? "gate_up" : "up";
    const char *needed[] = {"router", first, "down"};
    for (size_t i = 0; i < COUNT(needed); i++) {
        MOE_REQUIRE(has_role(r, needed[i]), MOE_E_MALFORMED,
                    "%s: %s: \"tensors\" lacks the role \"%s\"", doc->call, doc->label, needed[i]);
    }
    MOE_REQUIRE(!has_role(r, gated ? "up" : "gate_up"), MOE_E_UNSUPPORTED,
                "%s: %s: the role \"%s\" means nothing beside \"%s\"", doc->call, doc->label,
                gated ? "up" : "gate_up", first);
    MOE_REQUIRE((f->latent > 0) == has_role(r, "latent_in") &&
                    (f->latent > 0) == has_role(r, "latent_out"),
                MOE_E_MALFORMED, "%s: %s: \"latent\" is %" PRId64 ", the roles say otherwise",
                doc->call, doc->label, f->latent);
    return MOE_OK;
}

// The sizes of shared experts are nowhere but in the shapes of their tensors.
static moe_status read_shared_shape(struct case_reader *r)
{
    struct moei_facts *f = &r->facts;
    const bool joined = has_role(r, "shared_gate_up");
    const char *role = joined ? "shared_gate_up" : "shared_up";
    const char *name;
    moe_tensor t;
    MOE_TRY(moei_json_string(&r->doc, r->tensors, role, &name));
    MOE_REQUIRE(r->shape_of != NULL, MOE_E_ARGUMENT,
                "%s: %s: shape_of is NULL, shared experts have their size from \"%s\"", r->doc.call,
                r->doc.label, name);
    MOE_TRY(r->shape_of(r->self, name, &t));
    const bool stacked = f->shared_gate == MOE_SHARED_ROUTER_WEIGHTED;
    MOE_REQUIRE(t.ndim == (stacked ? 3 : 2), MOE_E_MALFORMED,
                "%s: %s: tensor \"%s\" of role \"%s\" has %d dimensions, expected %d", r->doc.call,
                r->doc.label, name, role, (int)t.ndim, stacked ? 3 : 2);
    f->shared_count = stacked ? t.shape[0] : 1;
    f->shared_inter = t.shape[t.ndim - 2];
    MOE_REQUIRE(!joined || f->shared_inter % 2 == 0, MOE_E_MALFORMED,
                "%s: %s: tensor \"%s\" of role \"%s\" has %" PRId64
                " rows, expected an even number",
                r->doc.call, r->doc.label, name, role, f->shared_inter);
    f->shared_inter /= joined ? 2 : 1;
    return MOE_OK;
}

static moe_status read_shared(struct case_reader *r)
{
    struct moei_facts *f = &r->facts;
    const moei_json *doc = &r->doc;
    f->output_bias = has_role(r, "output_bias");
    if (!moei_json_has(r->semantics, "shared")) {
        MOE_REQUIRE(!f->renorm_shared, MOE_E_UNSUPPORTED,
                    "%s: %s: \"renorm_over\" is \"selected+shared\", but nothing is shared",
                    doc->call, doc->label);
        for (size_t i = 0; i < COUNT(known_roles); i++) {
            MOE_REQUIRE(strncmp(known_roles[i], "shared_", 7) != 0 || !has_role(r, known_roles[i]),
                        MOE_E_MALFORMED, "%s: %s: there is a role \"%s\", but nothing is shared",
                        doc->call, doc->label, known_roles[i]);
        }
        return MOE_OK;
    }
    MOE_TRY(word(r, r->semantics, "shared", shared_words, &f->shared_gate));
    MOE_TRY(word(r, r->semantics, "shared_act", shared_act_words, &f->shared_activation));
    const bool weighted = f->shared_gate == MOE_SHARED_ROUTER_WEIGHTED;
    MOE_REQUIRE(weighted == f->renorm_shared, MOE_E_UNSUPPORTED,
                "%s: %s: \"shared\" %s with \"renorm_over\" %s", doc->call, doc->label,
                moei_json_describe(json_object_get(r->semantics, "shared")).text,
                moei_json_describe(json_object_get(r->semantics, "renorm_over")).text);
    const bool gated = moe_activation_gated(f->shared_activation) != 0;
    const bool joined = has_role(r, "shared_gate_up");
    MOE_REQUIRE(joined ? gated && !has_role(r, "shared_gate") && !has_role(r, "shared_up")
                       : gated == has_role(r, "shared_gate"),
                MOE_E_MALFORMED, "%s: %s: the roles of the shared experts do not fit \"%s\"",
                doc->call, doc->label, gated ? "silu_glu" : "relu2");
    MOE_REQUIRE((f->shared_gate == MOE_SHARED_SIGMOID) == has_role(r, "shared_gating"),
                MOE_E_MALFORMED, "%s: %s: the role \"shared_gating\" does not fit \"shared\" %s",
                doc->call, doc->label,
                moei_json_describe(json_object_get(r->semantics, "shared")).text);
    f->shared_bias[0] = has_role(r, "shared_up_bias");
    f->shared_bias[1] = has_role(r, "shared_down_bias");
    MOE_REQUIRE(has_role(r, "shared_gate_bias") == (gated && f->shared_bias[0]), MOE_E_UNSUPPORTED,
                "%s: %s: a bias for only one of \"shared_gate\", \"shared_up\"", doc->call,
                doc->label);
    return read_shared_shape(r);
}

// "scoring": "none": the layer is its shared experts. One expert that no token chooses stands for
// the routed ones.
static moe_status read_unrouted(struct case_reader *r)
{
    struct moei_facts *f = &r->facts;
    f->scoring = MOE_SCORING_UNSET;
    f->inter = f->experts = f->top_k = 1;
    f->scale = 1;
    f->activation = MOE_ACT_SILU;
    f->gate_up = MOE_GATE_FIRST;
    MOE_REQUIRE(moei_json_has(r->semantics, "shared"), MOE_E_MALFORMED,
                "%s: %s: neither routed nor shared experts", r->doc.call, r->doc.label);
    return MOE_OK;
}

static moe_status read_case(struct case_reader *r)
{
    const moei_json *doc = &r->doc;
    struct moei_facts *f = &r->facts;
    const char *scoring;
    int64_t zero = 0;
    MOE_TRY(moei_json_object(doc, doc->root, "semantics", &r->semantics));
    MOE_TRY(only_known(doc, "key of semantics", r->semantics, known_keys, COUNT(known_keys)));
    MOE_TRY(moei_json_object(doc, r->semantics, "tensors", &r->tensors));
    MOE_TRY(only_known(doc, "role", r->tensors, known_roles, COUNT(known_roles)));
    MOE_TRY(moei_json_int64(doc, doc->root, "H", &f->hidden));
    MOE_TRY(moei_json_string(doc, r->semantics, "scoring", &scoring));
    if (strcmp(scoring, "none") == 0) {
        MOE_TRY(read_unrouted(r));
        return read_shared(r);
    }
    MOE_TRY(moei_json_int64(doc, doc->root, "I", &f->inter));
    MOE_TRY(moei_json_int64(doc, doc->root, "E", &f->experts));
    MOE_TRY(moei_json_int64(doc, doc->root, "k", &f->top_k));
    MOE_TRY(read_routing(r));
    MOE_TRY(read_experts(r));
    if (moei_json_has(doc->root, "zero_experts")) {
        MOE_TRY(moei_json_int64(doc, doc->root, "zero_experts", &zero));
        MOE_REQUIRE(zero == f->zero_experts, MOE_E_MALFORMED,
                    "%s: %s: %" PRId64 " zero experts, but semantics have %" PRId64, doc->call,
                    doc->label, zero, f->zero_experts);
    }
    return read_shared(r);
}

moe_status moe_layer_desc_from_semantics(const char *json, size_t size, moe_shape_fn shape_of,
                                         void *self, moe_layer_desc *desc)
{
    const char *call = "moe_layer_desc_from_semantics";
    struct case_reader r = {.shape_of = shape_of, .self = self};
    MOE_REQUIRE(json != NULL && desc != NULL, MOE_E_ARGUMENT, "%s: %s is NULL", call,
                json == NULL ? "json" : "desc");
    moe_layer_desc known;
    MOE_TRY(moei_struct_read(desc, &known, sizeof known, call, "desc"));
    MOE_TRY(moei_json_parse(&r.doc, call, "case", json, size, MOEI_JSON_PYTHON));
    moe_status status = read_case(&r);
    if (status == MOE_OK) {
        status = moei_facts_apply(&r.doc, &r.facts, &known);
    }
    if (status == MOE_OK) {
        status = moei_struct_write(&known, sizeof known, desc, call, "desc");
    }
    moei_json_free(&r.doc);
    return status;
}
