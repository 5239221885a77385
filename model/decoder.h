// SPDX-License-Identifier: Apache-2.0
/// @file decoder.h  What an open model holds; model.c opens it, session.c runs it.
#ifndef MOEM_DECODER_H
#define MOEM_DECODER_H

#include "model/attention.h"
#include "model/device.h"
#include "model/model.h"

/// A linear layer where the checkpoint has it: weight [outputs, inputs], bias [outputs] or absent.
typedef struct moem_linear {
    moe_tensor weight, bias;
} moem_linear;

typedef struct moem_layer {
    float *input_norm, *post_norm; ///< [hidden]
    float *sinks;                  ///< [heads]
    /// q, k and v, in that order: where they are small one matrix, else three.
    moem_linear qkv[3];
    int32_t num_qkv;
    void *joined; ///< memory of the one
    moem_linear o, router;
    moe_checkpoint_layer *source; ///< owns what `weights` needs of the checkpoint
    moe_plan *plan;
    moem_weights weights;
} moem_layer;

struct moem_model {
    moem_config config;
    moe_context *ctx;    ///< of the CPU
    moe_context *device; ///< of the experts; NULL: they run on ctx
    moe_thread_pool pool;
    const moem_kernels *kernels;
    moe_checkpoint *checkpoint;
    moe_packed *packed;           ///< NULL: none
    char placing[160];            ///< where the experts' weights lie, and why
    moe_tensor embedding, output; ///< [vocab, hidden]
    float *norm;                  ///< [hidden]
    float *frequencies;           ///< [head_dim / 2]
    moem_layer *layers;
    int64_t max_batch;
    int32_t experts, top_k;
    size_t workspace_bytes, workspace_align; ///< of any layer's run of max_batch tokens
};

/// Memory at a multiple of 64, at least one byte; NULL when there is none.
void *moem_allocate(size_t bytes, size_t align);

#endif
