// SPDX-License-Identifier: Apache-2.0
// What a Mixture-of-Experts layer computes, as configurations and oracle files say it, and the one
// way from there to a descriptor. config.c reads config.json through the table of model classes,
// semantics.c reads the vocabulary of oracle files; both fill moei_facts and call
// moei_facts_apply.
#ifndef MOEI_IO_CONFIG_H
#define MOEI_IO_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "io/json.h"
#include "moe/plan.h"

/// One layer, unchecked. Zero is "none" everywhere but in `scale`.
struct moei_facts {
    int64_t hidden, inter, experts, top_k, latent, zero_experts;

    // Routing. `scoring` is SOFTMAX, SIGMOID, SQRTSOFTPLUS or SPARSEMIXER; UNSET: nothing is
    // routed.
    moe_scoring scoring;
    bool selected;  ///< scored after the selection, over the selected logits only
    bool on_logits; ///< selected on the logits
    bool correction_bias;
    int64_t groups, top_groups; ///< groups <= 1: not grouped, the fields after it mean nothing
    moe_group_score group_score;
    bool group_mask_zero;
    moe_renorm renormalise;
    bool renorm_shared;
    double renorm_eps;
    double jitter_eps;
    double scale;
    bool scale_tensor;
    bool hash_table;
    bool weight_on_input;

    // Experts.
    moe_activation activation;
    double alpha, beta, limit;
    moe_gate_up gate_up;
    bool transposed;
    bool bias[2]; ///< of gate_up (or up) and down
    bool output_bias;

    // Shared experts; shared_count 0: none.
    int64_t shared_count, shared_inter;
    moe_shared_gate shared_gate;
    moe_activation shared_activation;
    double shared_alpha, shared_beta, shared_limit;
    bool shared_bias[2];
};

/// Checks ranges and combinations and fills the descriptor: nothing of it changes on failure.
/// `doc` gives messages their beginning. Errors: MALFORMED, LIMIT, UNSUPPORTED.
moe_status moei_facts_apply(const moei_json *doc, const struct moei_facts *facts,
                            moe_layer_desc *desc);

/// A word of a file and what it means; lists end with NULL.
struct moei_word {
    const char *word;
    int32_t value;
};

extern const struct moei_word moei_scoring_words[]; ///< moe_scoring, for both kinds of file

/// Looks a word up. UNSUPPORTED names key, word and the words that are known.
moe_status moei_word_find(const moei_json *doc, const char *key, const char *word,
                          const struct moei_word *words, int32_t *out);

/// The value of a key that a configuration has once, at its top or, where it is multimodal, in the
/// language model's object; NULL where it is absent or null.
const json_t *moei_config_find(const json_t *root, const char *key);

/// The language model's model_type. Errors: MALFORMED, NOT_FOUND.
moe_status moei_config_type(const moei_json *doc, const char **type);

/// A config key with the value that counts where the key is absent or null. Keys are alternatives
/// "a|b" (all that are present must agree) and may be paths "a.b". A value may be a list with one
/// entry per layer. key NULL: always `fallback`.
struct moei_number {
    const char *key;
    double fallback; ///< MOEI_REQUIRED: absent is an error
};
#define MOEI_REQUIRED (-1e300)

/// How the inner size of the shared experts is found.
enum moei_shared_kind {
    MOEI_SHARED_NONE = 0,
    MOEI_SHARED_JOINED, ///< one expert of shared_count times the unit
    MOEI_SHARED_STACKED ///< shared_count experts of the unit each
};

/// One row of config_table.def.
struct moei_model_class {
    const char *types[6];     ///< values of model_type; NULL ends
    const char *architecture; ///< NULL, or one that "architectures" must hold too
    const char *must; ///< "key=value|value;key=value": a key that is present must have one of the
                      ///< values, because others mean another computation

    const char *hidden; ///< NULL: "hidden_size"
    const char *inter, *experts, *top_k;
    const char *latent;       ///< optional
    const char *zero_experts; ///< optional

    moe_scoring scoring;
    const char *scoring_key; ///< optional: overrides `scoring`
    bool selected;
    struct moei_number correction_bias;
    struct moei_number groups; ///< with a key; <= 1: not grouped
    const char *groups_if;     ///< optional "key=value": otherwise not grouped
    const char *top_groups;
    moe_group_score group_score;
    bool group_mask_zero;
    struct moei_number renormalise;
    moe_renorm renorm_form; ///< UNSET: SUM
    struct moei_number renorm_eps;
    struct moei_number jitter_eps;
    struct moei_number scale;
    bool scale_tensor;
    bool weight_on_input;
    const char *hash_layers;      ///< optional: the first so many layers route by token id
    const char *hash_layer_types; ///< optional: list with "hash_moe" for those layers

    const char *act_key;       ///< hidden_act and the like; NULL: `activation`
    moe_activation activation; ///< with act_key: where the key is absent
    struct moei_number alpha, beta, limit;
    bool limit_after; ///< a limit makes SILU SWIGLUSTEP: it clamps after the activation
    moe_gate_up gate_up;
    bool transposed;
    bool bias;
    bool output_bias;

    enum moei_shared_kind shared;
    struct moei_number shared_count;
    struct moei_number shared_inter; ///< the unit; no key: `inter`; 0: no shared experts
    const char *shared_must; ///< as `must`, but the key is needed, where there are shared experts
    moe_shared_gate shared_gate;
    struct moei_number shared_bias;
    struct moei_number shared_limit; ///< the activation is the experts'
};

#endif
