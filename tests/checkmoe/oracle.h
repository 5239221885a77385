// SPDX-License-Identifier: Apache-2.0
/// @file oracle.h  Replays what other libraries computed: oracle files (tests/oracles/README.md)
/// and a model's reference, through the public API only. Each function prints a line per case and
/// then "N passed, N failed, N skipped", and returns 0, or -1 if it could not begin.
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

/// The same for people: per layer the experts' load, the routing of some tokens, the time, and the
/// agreement with the reference. Returns 0 when all agree, else 1.
int moec_demo(const char *dir, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
