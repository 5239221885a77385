// SPDX-License-Identifier: Apache-2.0
/// @file decoder.h  What an open model holds; model.c opens it, session.c runs it.
#ifndef MOEM_DECODER_H
#define MOEM_DECODER_H

#include "model/attention.h"
#include "model/device.h"
#include "model/linear.h"
#include "model/model.h"

typedef struct moem_layer {
    float *input_norm, *post_norm; ///< [hidden]
    float *sinks;                  ///< [heads]
    /// q, k and v, in that order: packed or small one layer, else three.
    moem_linear qkv[3];
    int32_t num_qkv;
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
    moe_packed *packed;   ///< NULL: none
    char placing[256];    ///< where the weights lie, and why
    moe_tensor embedding; ///< [vocab, hidden]
    moem_linear output;   ///< to [vocab]
    float *norm;          ///< [hidden]
    float *frequencies;   ///< [head_dim / 2]
    moem_layer *layers;
    int64_t max_batch;
    int32_t experts, top_k;
    size_t workspace_bytes, workspace_align; ///< of any layer's run of max_batch tokens
};

/// Memory at a multiple of 64, at least one byte; NULL when there is none.
void *moem_allocate(size_t bytes, size_t align);

#endif
