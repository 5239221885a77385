// SPDX-License-Identifier: Apache-2.0
/// @file oracle.h  Replays what other libraries computed: oracle files (tests/oracles/README.md)
/// and a model's reference, through the public API only. Each function prints a line per case and
/// returns 0, or -1 if it could not begin.
#ifndef MOEC_ORACLE_H
#define MOEC_ORACLE_H

#include <stdio.h>

#include "checkmoe/checkmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Runs every case of a file in the layout of moe_blocks.safetensors: the descriptor comes from the
/// case's semantics (and must be that of its config), the layer runs in float32 with the weights as
/// stored, and logits, ids, weights, output and the outputs of submodules are compared with the
/// file's tolerances (rtol 1e-5, atol 1e-5 of the standard deviation). options->kernel is a glob
/// over case names. A case that the library refuses as unsupported is skipped with the reason.
int moec_oracle_run(const char *path, const moec_options *options, FILE *out, moec_counts *counts);

/// Runs the Mixture-of-Experts layers of a checkpoint alone on the inputs recorded in a reference
/// file (items pN.lM.moe_in_bf16 and so on), with f32 activations, and compares router logits, ids,
/// weights and outputs.
/// @param[in] dir        a folder with config.json and the checkpoint
/// @param[in] reference  NULL: reference.safetensors in that folder
int moec_model_layers_run(const char *dir, const char *reference, const moec_options *options,
                          FILE *out, moec_counts *counts);

/// Runs the checkpoint as a whole: the text's tokens, the logits of the prompts' last positions
/// (1e-4 of a position's largest), greedy continuations (equal up to a near tie of 1e-3), the mean
/// likelihood of each window of the text, and the same bits whatever the threads, the steps in
/// which a prompt is read and the sequences beside it. options->quick: prompts alone.
int moec_model_text_run(const char *dir, const char *reference, const moec_options *options,
                        FILE *out, moec_counts *counts);

#ifdef __cplusplus
}
#endif
#endif
