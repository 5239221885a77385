// SPDX-License-Identifier: Apache-2.0
/// @file model.h  A small decoder for whole gpt-oss-style checkpoints, over the public API of
/// libmoe and libmoe_io alone: what an engine has to add to the library to write text. Every
/// step is computed per token in a fixed order, so a token's bits do not depend on the batch, the
/// chunk of the prompt or the threads.
#ifndef MOEM_MODEL_H
#define MOEM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/io.h"
#include "moe/moe.h"

#define MOEM_MAX_LAYERS 1024
#define MOEM_MAX_EOS    16

/// What config.json and generation_config.json say about the decoder around the experts.
typedef struct moem_config {
    int64_t hidden, vocab, layers, heads, kv_heads, head_dim;
    int64_t context;             ///< max_position_embeddings
    int64_t window;              ///< keys that a sliding layer sees, the query's own included
    double norm_eps;             ///< added to the mean square
    double rope_theta;           ///< base of the rotary frequencies
    double rope_attention;       ///< factor of cosine and sine (YaRN; else 1)
    double rope_factor;          ///< YaRN: context extension; 1: plain rotary embedding
    double rope_original;        ///< YaRN: context before the extension
    double rope_fast, rope_slow; ///< YaRN: beta_fast, beta_slow, in rotations
    bool rope_truncate;          ///< YaRN: the corrected dimensions are rounded outwards
    bool tied;                   ///< the output matrix is the embedding
    int32_t eos[MOEM_MAX_EOS];
    int32_t num_eos;
    bool sliding[MOEM_MAX_LAYERS];
} moem_config;

/// Reads a folder's config.json (and generation_config.json where there is one). A model class or
/// a setting that the decoder does not know is refused by name. `text`, `size`: config.json whole,
/// to be freed, NULL if not wanted. Nothing is written on failure. Errors: ARGUMENT (a path too
/// long), IO, MALFORMED, UNSUPPORTED, LIMIT, NO_MEMORY.
moe_status moem_config_read(const char *dir, moem_config *out, char **text, size_t *size);

/// The same from the bytes of a config.json; `label` names it in messages, `out` is untouched on
/// failure. Errors: MALFORMED, UNSUPPORTED, LIMIT, NO_MEMORY.
moe_status moem_config_parse(const char *text, size_t size, const char *label, moem_config *out);

/// Rotary frequencies [head_dim / 2] as float32, the way transformers rounds them.
/// Source: Su et al., RoFormer, 2021; Peng et al., YaRN, 2023, §3.2.
void moem_rope_frequencies(const moem_config *config, float *out);

/// Where the weights of the experts lie, and the matrices beside them. The bits are the same.
typedef enum moem_placing {
    /// As the kernels want them, in memory, where it suffices for all layers; else in the
    /// checkpoint's file where they can be used there. Kernels that read canonical rows gain
    /// nothing by a copy: for them in the file if they can. Matrices beside the experts are packed
    /// where memory then holds them, and the pages of experts in a file.
    MOEM_PLACE_AUTO,
    MOEM_PLACE_PACKED, ///< as the kernels want them, in memory
    MOEM_PLACE_MAPPED  ///< in the checkpoint's file; UNSUPPORTED where they cannot
} moem_placing;

/// How to open a model; zero is a sensible value for every field.
typedef struct moem_options {
    /// Where the experts run; attention, norms, router and sampling stay on the CPU. A device with
    /// memory of its own gets the expert weights copied there once, and of each step the experts'
    /// inputs; UNSET or CPU: nothing is copied.
    moe_device_type device;
    int32_t threads;     ///< 0: every CPU
    const char *isa;     ///< of the CPU, as moe_context_desc
    uint32_t file_flags; ///< MOE_FILE_*
    int64_t max_batch;   ///< tokens of one forward call; 0: 512
    moe_quant_desc act;  ///< how the experts' inputs are quantised; zero: float32 as they are
    /// On the CPU, weights of 4 bits take inputs in 16-bit fixed point (i16b32) where act is zero.
    /// Integer products of these are fast, and their bits are the same on every CPU; weights are
    /// repacked for them, which takes memory of their size.
    bool fixed_point;
    moem_placing placing;
    const char *packed; ///< a file of moe_packed_write of this model; NULL: none. placing is AUTO
} moem_options;

/// The rest of the descriptor of a layer's experts, which has the checkpoint's part, as the decoder
/// runs it. A file for moem_options.packed is packed with plans of it.
/// @param[in] on_cpu  false: the plan is of another device
void moem_experts_desc(const moem_options *options, bool on_cpu, moe_layer_desc *desc);

typedef struct moem_model moem_model;

/// Opens a checkpoint folder. Errors: those of moe_context_create (UNSUPPORTED: no such device
/// here, with the reason), moe_checkpoint_open, moem_config_read, moe_plan_create, moe_packed_open,
/// moe_packed_adopt and moe_memory_alloc; ARGUMENT (placing and packed); NOT_FOUND and SHAPE name
/// the tensor.
moe_status moem_model_open(const char *dir, const moem_options *options, moem_model **out);
void moem_model_close(moem_model *model);
const moem_config *moem_model_config(const moem_model *model);
const moe_context *moem_model_context(const moem_model *model); ///< of the CPU
int64_t moem_model_max_batch(const moem_model *model);
int32_t moem_model_experts(const moem_model *model); ///< routed experts of a layer
int32_t moem_model_top_k(const moem_model *model);
const char *moem_model_dialect(const moem_model *model); ///< of the expert weights
const char *moem_model_placing(const moem_model *model); ///< where the weights lie, and why
const moe_plan *moem_model_plan(const moem_model *model, int64_t layer);

/// What a step has to do at least, but for the experts, which it chooses as it goes
/// (moem_session_load).
typedef struct moem_work {
    double bytes;       ///< read: weights as stored, keys and values once
    double projections; ///< operations: a multiplication and an addition count as two
    double attention;   ///< scores and weighted values
    double router, output;
} moem_work;

/// @param first   tokens of the sequence before the step
/// @param count   tokens of the step
/// @param logits  of those want logits
void moem_model_work(const moem_model *model, int64_t first, int64_t count, int64_t logits,
                     moem_work *out);

/// Sequences with their keys and values. One thread at a time.
typedef struct moem_session moem_session;

/// Room for `sequences` sequences of up to `capacity` tokens each, at most the model's context.
/// Errors: ARGUMENT, LIMIT (names both values), NO_MEMORY, DEVICE.
moe_status moem_session_create(const moem_model *model, int32_t sequences, int64_t capacity,
                               moem_session **out);
void moem_session_destroy(moem_session *session);
void moem_session_reset(moem_session *session, int32_t sequence); ///< forgets its tokens
int64_t moem_session_length(const moem_session *session, int32_t sequence);

/// Times that each expert was chosen so far: [layers, experts].
const int64_t *moem_session_load(const moem_session *session);

/// One token of a forward call; it is appended to its sequence.
typedef struct moem_input {
    int32_t id;
    int32_t sequence;
    bool want_logits;
} moem_input;

/// Runs the model over `count` tokens (at most max_batch) and writes the logits of those that want
/// them, in order: float32 [wanted, vocab]. No sequence grows on failure. Errors: ARGUMENT (an id
/// outside the vocabulary, an unknown sequence, too many tokens), LIMIT (a full sequence): nothing
/// is changed; those of moe_run, moe_ggemm and moe_memory_copy.
moe_status moem_forward(moem_session *session, const moem_input *tokens, int64_t count,
                        float *logits);

/// How the next token is drawn. temperature 0: the largest logit, ties to the lower id. Else from
/// softmax(logits / temperature), kept to the smallest set of most likely tokens whose
/// probabilities reach top_p. The draw depends on seed, stream and position alone.
typedef struct moem_sampling {
    double temperature; ///< 0..
    double top_p;       ///< (0, 1]
    uint64_t seed;
} moem_sampling;

/// @param scratch  vocab floats and vocab int32: moem_sample_scratch bytes
size_t moem_sample_scratch(int64_t vocab);
int32_t moem_sample(const moem_sampling *sampling, const float *logits, int64_t vocab,
                    uint64_t stream, uint64_t position, void *scratch);

/// One prompt and what to make of it.
typedef struct moem_request {
    const int32_t *prompt;
    int64_t prompt_count; ///< at least 1
    int64_t max_tokens;   ///< at most the context less the prompt
    moem_sampling sampling;
} moem_request;

/// Gets each new token; an end-of-text token is not passed on. False ends the whole generation.
typedef bool (*moem_emit_fn)(void *self, int32_t request, int32_t id);

/// What moem_generate did, and in how many seconds.
typedef struct moem_times {
    int64_t prompt_tokens, new_tokens;
    double prompt_seconds, decode_seconds;
} moem_times;

/// Runs all requests as one batch. `load`, if not NULL, [layers, experts], is added to.
/// Errors: ARGUMENT (sampling out of its ranges among them), LIMIT (prompt and max_tokens beyond
/// the context), VALUE (logits that are not finite), those of moem_session_create and moem_forward.
moe_status moem_generate(const moem_model *model, const moem_request *requests, int32_t count,
                         moem_emit_fn emit, void *self, int64_t *load, moem_times *times);

/// Mean negative log-likelihood of a text, in nats: cut into windows of `window` tokens from the
/// start, each run alone from position 0, its first token not scored. Errors: ARGUMENT (fewer than
/// two tokens, an id outside the vocabulary), those of moem_session_create and moem_forward.
typedef struct moem_score {
    double nll;     ///< summed over the scored tokens
    int64_t scored; ///< tokens
    double seconds;
} moem_score;
/// @param window_nll  optional [ceil(count / window)]: the sum of each window
/// @param load        optional [layers, experts], added to
moe_status moem_model_score(const moem_model *model, const int32_t *ids, int64_t count,
                            int64_t window, double *window_nll, int64_t *load, moem_score *out);

/// Seconds of a monotonic clock.
double moem_now(void);

#endif
